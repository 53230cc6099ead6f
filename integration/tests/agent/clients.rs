//! Clients and pods that speak a line each way over TCP.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use integration::{net::Host, patience};
use socket2::{Domain, Socket, Type};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// Where pods listen.
pub(crate) const PORT: u16 = 8080;

/// How a client fared.
pub(crate) type Outcome = io::Result<Answer>;

/// What a client got.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What the pod said.
    pub(crate) line: String,
    /// When the connection was open.
    pub(crate) connected: Instant,
    /// The connection, which is still open.
    pub(crate) stream: TcpStream,
}

/// Connects, says hello, and waits for what is answered; all of it beside what follows.
pub(crate) fn connect(from: &Host, to: &str) -> oneshot::Receiver<Outcome> {
    let to: SocketAddr = to.parse().unwrap();
    from.start(move || {
        // What blocks fails with the kernel's error; one that is waited for with `poll` has none at times when it was refused at once.
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_write_timeout(Some(patience()))?;
        socket.connect(&to.into())?;
        let stream = TcpStream::from(socket);
        let connected = Instant::now();
        let line = ask(&stream)?;
        Ok(Answer { line, connected, stream })
    })
}

/// Says hello, and what is answered.
pub(crate) fn ask(mut stream: &TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(patience()))?;
    stream.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// A pod that listens.
pub(crate) struct Listening {
    /// When it began to.
    pub(crate) since: Instant,
    /// Who connects.
    pub(crate) clients: mpsc::UnboundedReceiver<SocketAddr>,
}

/// Listens in a pod for both families, and answers each line with a name and who asked.
pub(crate) async fn listen(pod: &Host, name: &'static str) -> Listening {
    listen_at(pod, PORT, name).await
}

/// The same at another port.
pub(crate) async fn listen_at(pod: &Host, port: u16, name: &'static str) -> Listening {
    let (tell, clients) = mpsc::unbounded_channel();
    let since = pod.run(move || {
        let before = Instant::now();
        let listener = TcpListener::bind(("::", port)).unwrap();
        thread::spawn(move || {
            while let Ok((stream, client)) = listener.accept() {
                let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                if tell.send(client).is_err() {
                    return;
                }
                thread::spawn(move || answer(&stream, name, client));
            }
        });
        before
    });
    Listening { since: since.await, clients }
}

fn answer(mut stream: &TcpStream, name: &str, client: SocketAddr) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        if stream.write_all(format!("{name} to {client}: {line}\n").as_bytes()).is_err() {
            return;
        }
    }
}
