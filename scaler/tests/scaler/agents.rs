//! Node agents: those that don't count, and those that go.

use std::net::{IpAddr, SocketAddr};

use interceptor_core::{
    Route,
    demand::{AGENT_AWAY, Observed, Report},
    index::Event,
    window::Unit,
};
use runtime::task;
use scaler::{
    board::{self, Board, News, Sender, View},
    discover::Kind,
    subject::Subject,
};

use crate::support::{Interceptor, Scaler, active, demand_of, direct, ir, listeners};

/// A scaler that knows a direct route, an interceptor without requests, and an agent with these counts.
async fn scaler(counts: &[(&str, u64, u64)]) -> (Scaler, Interceptor, IpAddr) {
    let (sockets, addresses, port) = listeners(2).await;
    let mut sockets = sockets.into_iter();
    let _interceptor = Interceptor::serve(sockets.next().unwrap(), "one", &[]);
    let agent = Interceptor::serve(sockets.next().unwrap(), "two", counts).aged();
    let scaler = Scaler::start(port).await;
    scaler.apply(vec![Event::Route(direct("a"))]).await;
    scaler.list(&addresses[..1]).await;
    scaler.list_agents(&addresses[1..]).await;
    scaler.synced().await;
    scaler.census(2, 2, 0).await;
    (scaler, agent, addresses[1])
}

/// A board that runs.
fn running() -> (Sender, Board) {
    let (writer, news, board) = board::channel(Unit::Second);
    drop(task::spawn("board", writer.run()));
    (news, board)
}

fn agent() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9097))
}

fn report(route: &Route, observed: Observed) -> Report {
    Report { complete: true, routes: vec![(route.key.clone(), observed)], ..Report::default() }
}

/// Whether KEDA is told that a route is active.
fn is_kept(board: &Board) -> bool {
    board.activity(&Subject::parse(ir("a")).unwrap(), View::Scaling).active
}

#[tokio::test]
async fn a_workload_is_kept_from_zero_while_an_agent_does_not_count_its_pods() {
    let (mut scaler, agent, _) = scaler(&[("a", 0, 0)]).await;
    let (mut stream, mut demand) = (scaler.stream(ir("a")).await, scaler.stream(demand_of("a")).await);
    assert!(!active(&mut stream).await);
    agent.counts_all(false);
    agent.push(&[("a", 0, 0)]).await;
    assert!(active(&mut stream).await, "nobody knows whether it has something to do");
    assert!(scaler.is_active(ir("a")).await.unwrap());
    assert_eq!(scaler.board.routes()[0].uncounted, Some(1));
    agent.counts_all(true);
    agent.push(&[("a", 0, 0)]).await;
    assert!(!active(&mut stream).await);
    assert!(!scaler.is_active(ir("a")).await.unwrap());
    assert!(!active(&mut demand).await, "and nobody has told the operator of demand");
}

#[tokio::test]
async fn an_agent_that_is_restarted_takes_no_demand_with_it() {
    let (mut scaler, agent, address) = scaler(&[("a", 2, 100)]).await;
    assert!(scaler.is_active(ir("a")).await.unwrap());
    scaler.list_agents(&[]).await;
    scaler.census(1, 1, 0).await;
    assert!(scaler.is_active(ir("a")).await.unwrap(), "its connections live on");
    let value = scaler.metrics(ir("a"), "").await.unwrap()[0].metric_value_float;
    assert_eq!(value.to_string(), "2");
    scaler.list_agents(&[address]).await;
    scaler.census(2, 2, 0).await;
    agent.push(&[("a", 0, 100)]).await;
    let mut stream = scaler.stream(ir("a")).await;
    while active(&mut stream).await {}
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stays_away_is_forgotten_in_time() {
    let (news, board) = running();
    let route = direct("a");
    news.send(News::Route(route.clone())).await.unwrap();
    news.send(News::Listed(agent(), Kind::Agent)).await.unwrap();
    let busy = Observed { in_flight: 1, ..Observed::default() };
    news.send(News::Report(agent(), report(&route, busy))).await.unwrap();
    news.send(News::Unlisted(agent())).await.unwrap();
    let mut changes = board.subscribe_counts(&Subject::parse(ir("a")).unwrap());
    let began = board.now();
    while !is_kept(&board) {
        changes.changed().await;
    }
    while is_kept(&board) {
        changes.changed().await;
    }
    assert!((AGENT_AWAY..AGENT_AWAY * 2).contains(&board.now().saturating_sub(began)));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_counts_is_kept_also_where_no_interceptor_could_stand_in() {
    let (news, board) = running();
    news.send(News::Listed(agent(), Kind::Agent)).await.unwrap();
    news.send(News::Report(agent(), report(&direct("a"), Observed::default()))).await.unwrap();
    let mut changes = board.subscribe_counts(&Subject::parse(ir("a")).unwrap());
    for uncounted in [true, false] {
        news.send(News::Route(Route { uncounted, ..direct("a") })).await.unwrap();
        while is_kept(&board) != uncounted {
            changes.changed().await;
        }
    }
}
