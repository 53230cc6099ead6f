//! Thousands of connections that wait for one pod.

use std::io;

use integration::{agent::Agent, net::Host, soon};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream},
    net::{TcpSocket, TcpStream},
    runtime,
    sync::oneshot,
    task::{JoinSet, spawn_local},
};

use crate::{
    bench::{Bench, FRONTEND},
    clients::PORT,
};

/// Waits for the pod to speak first, then asks, and whether that was answered.
async fn talk() -> io::Result<bool> {
    let mut stream = BufStream::new(TcpStream::connect(FRONTEND).await?);
    let mut lines = String::new();
    stream.read_line(&mut lines).await?;
    stream.write_all(b"hello\n").await?;
    stream.flush().await?;
    stream.read_line(&mut lines).await?;
    Ok(lines == "web\nhello\n")
}

/// How many of so many connections at once were answered with a line, and again when they had asked.
fn connect_many(from: &Host, many: usize) -> oneshot::Receiver<usize> {
    from.start(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut connections = JoinSet::new();
            for _ in 0..many {
                connections.spawn(talk());
            }
            let answered = connections.join_all().await.into_iter();
            answered.filter(|answered| matches!(answered, Ok(true))).count()
        })
    })
}

/// Listens in a pod, with as long a queue as servers ask for that expect many, greets each connection with a line, and says again
/// what it is told.
fn answer_many(pod: &Host) {
    drop(pod.start(|| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build_local(runtime::LocalOptions::default());
        runtime.unwrap().block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(([0, 0, 0, 0], PORT).into()).unwrap();
            let listener = socket.listen(4096).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                // A client that has gone is missed at its end.
                spawn_local(async {
                    let mut stream = BufStream::new(stream);
                    let mut line = String::new();
                    _ = stream.write_all(b"web\n").await;
                    _ = stream.flush().await;
                    _ = stream.read_line(&mut line).await;
                    _ = stream.write_all(line.as_bytes()).await;
                    _ = stream.flush().await;
                });
            }
        });
    }));
}

#[tokio::test]
#[ignore = "needs root: run by cargo xtask test"]
async fn more_connections_than_the_kernel_can_tell_of_at_once_are_all_held_and_all_answered() {
    // The ring buffer has room for 5,242. Both ends are files of this process, of which it may have no more than some thousands.
    const CLIENTS: usize = 11;
    const EACH: usize = 500;
    let mut bench = Bench::new();
    let clients: Vec<_> = (0..CLIENTS).map(|_| bench.net.pod()).collect();
    let agent = Agent::start(&bench.net, &bench.world).await;
    agent.until("web", "cold").await;
    let asking: Vec<_> = clients.iter().map(|client| connect_many(client, EACH)).collect();
    let all = u64::try_from(CLIENTS * EACH).unwrap();
    agent.until_held("web", all).await;
    answer_many(&bench.pod);
    bench.endpoints(&[&bench.pod]);
    for client in asking {
        assert_eq!(soon("a client's connections are answered", client).await.unwrap(), EACH);
    }
    // Clients have their answers before the agent has read that they were given.
    agent.until_held("web", 0).await;
    // With so many at once an answer may be lost on its way: then the client begins again, and is answered again.
    assert!(agent.metric("rouse_hold_connections_total{outcome=\"taken\"}").await >= all);
}
