//! Node agents: those that don't count, and those that go.

use std::net::{IpAddr, SocketAddr};

use interceptor_core::{
    Route,
    demand::{AGENT_AWAY, MAX_AGENTS, Observed, Report},
    index::Event,
    window::Unit,
};
use runtime::task;
use scaler::{
    board::{self, Board, News, Sender, View},
    discover::Kind,
    subject::Subject,
};

use tonic::Code;

use crate::support::{Interceptor, Scaler, active, demand_of, direct, ir, listeners, route};

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

/// Whether KEDA is told anything at all of a route that seems to have no demand.
fn is_doubtful(board: &Board, view: View) -> bool {
    board.activity(&Subject::parse(ir("a")).unwrap(), view).doubtful
}

#[tokio::test]
async fn nothing_is_told_of_the_end_of_demand_before_every_agent_was_heard() {
    let (sockets, addresses, port) = listeners(3).await;
    let mut sockets = sockets.into_iter();
    let _interceptor = Interceptor::serve(sockets.next().unwrap(), "one", &[]);
    let _agent = Interceptor::serve(sockets.next().unwrap(), "two", &[("a", 0, 9), ("b", 1, 9)]).aged();
    let mut scaler = Scaler::start(port).await;
    let proxied = Event::Route(route("c", Some(1), None));
    scaler.apply(vec![Event::Route(direct("a")), Event::Route(direct("b")), proxied]).await;
    scaler.list(&addresses[..1]).await;
    // The third takes connections, for the kernel does, and never says a word.
    scaler.list_agents(&addresses[1..]).await;
    scaler.synced().await;
    scaler.standing(|standing| standing.census.listed == 3 && standing.census.reported == 2).await;
    assert_eq!(scaler.is_active(ir("a")).await.unwrap_err().code(), Code::Unavailable);
    assert!(scaler.is_active(ir("b")).await.unwrap(), "which others don't change");
    assert!(!scaler.is_active(ir("c")).await.unwrap(), "agents have no part in it");
    let (mut stream, mut demand) = (scaler.stream(ir("a")).await, scaler.stream(demand_of("a")).await);
    let _late = Interceptor::serve(sockets.next().unwrap(), "three", &[("a", 1, 1)]).aged();
    assert!(active(&mut stream).await, "the first that is said");
    assert!(active(&mut demand).await);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_never_heard_is_not_waited_for_for_ever() {
    let (news, board) = running();
    news.send(News::Route(direct("a"))).await.unwrap();
    news.send(News::Listed(agent(), Kind::Agent)).await.unwrap();
    let mut changes = board.subscribe_standing();
    while board.standing().census.listed == 0 {
        changes.changed().await;
    }
    assert!(is_doubtful(&board, View::Demand) && is_doubtful(&board, View::Scaling));
    assert!(board.settles(&direct("a")) && !board.settles(&route("a", Some(1), None)), "nor are numbers told");
    tokio::time::sleep_until(board.instant(board.standing().settles_at.unwrap())).await;
    assert!(!board.settles(&direct("a")) && board.standing().settles_at.is_none());
    assert!(is_doubtful(&board, View::Scaling), "those are good enough by now, and zero is not");
    let activity = board.activity(&Subject::parse(ir("a")).unwrap(), View::Scaling);
    tokio::time::sleep_until(board.instant(activity.again.unwrap())).await;
    assert!(!is_doubtful(&board, View::Demand) && !is_kept(&board));
}

#[tokio::test(start_paused = true)]
async fn what_agents_count_that_are_too_many_to_be_listened_to_is_not_taken_for_nothing() {
    let (news, board) = running();
    news.send(News::Route(direct("a"))).await.unwrap();
    let all = u16::try_from(MAX_AGENTS + 1).unwrap();
    for port in 1..=all {
        let agent = SocketAddr::from(([127, 0, 0, 1], port));
        news.send(News::Listed(agent, Kind::Agent)).await.unwrap();
        news.send(News::Report(agent, Report { complete: true, ..Report::default() })).await.unwrap();
    }
    let mut changes = board.subscribe_standing();
    while board.standing().refused_agents == 0 {
        changes.changed().await;
    }
    assert!(is_doubtful(&board, View::Scaling));
    news.send(News::Unlisted(SocketAddr::from(([127, 0, 0, 1], all)))).await.unwrap();
    let mut changes = board.subscribe_counts(&Subject::parse(ir("a")).unwrap());
    while is_doubtful(&board, View::Scaling) {
        changes.changed().await;
    }
    assert_eq!((board.standing().refused_agents, board.standing().census.listed), (0, MAX_AGENTS));
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
