//! Pods and clients for the tests: a pod counts what it sees, and a client tells it with its first byte how the connection
//! shall end.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime,
    sync::oneshot,
    task::JoinSet,
};

/// How a connection goes and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Connects, says nothing, closes.
    Mute,
    /// One echo, then the client closes.
    Echo,
    /// The pod closes first.
    PodCloses,
    /// The pod resets.
    PodResets,
    /// The client resets.
    ClientResets,
    /// The client half-closes, the pod answers and closes, then the client.
    HalfClose,
}

/// A listener that does as it is told, and what it saw.
pub(crate) struct Pod {
    pub(crate) addr: SocketAddr,
    accepted: Arc<AtomicU64>,
    ended: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Manner {
    pub(crate) const ALL: [Self; 6] =
        [Self::Mute, Self::Echo, Self::PodCloses, Self::PodResets, Self::ClientResets, Self::HalfClose];

    fn byte(self) -> u8 {
        match self {
            Self::Mute => b'm',
            Self::Echo => b'e',
            Self::PodCloses => b's',
            Self::PodResets => b'r',
            Self::ClientResets => b'c',
            Self::HalfClose => b'h',
        }
    }
}

impl Pod {
    pub(crate) fn start(addr: SocketAddr) -> Self {
        let listener = StdListener::bind(addr).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (accepted, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (stop, stopped) = oneshot::channel();
        let counters = (Arc::clone(&accepted), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(serve(listener, counters, stopped));
        });
        Self { addr, accepted, ended, stop: Some(stop), thread: Some(thread) }
    }

    /// Connections that the pod saw, and those of them that have ended.
    pub(crate) fn saw(&self) -> (u64, u64) {
        (self.accepted.load(Relaxed), self.ended.load(Relaxed))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(self.stop.take());
        let joined = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            joined.expect("the pod was started").expect("the pod did not panic");
        }
    }
}

async fn serve(
    listener: StdListener,
    (accepted, ended): (Arc<AtomicU64>, Arc<AtomicU64>),
    stop: oneshot::Receiver<()>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            _ = &mut stop => return,
            Some(done) = connections.join_next() => done.unwrap(),
            stream = listener.accept() => {
                accepted.fetch_add(1, Relaxed);
                let (stream, _) = stream.unwrap();
                let ended = Arc::clone(&ended);
                connections.spawn(async move {
                    answer(stream).await;
                    ended.fetch_add(1, Relaxed);
                });
            }
        }
    }
}

/// Errors are what resets look like from here, and end the connection like everything else.
async fn answer(mut stream: TcpStream) {
    let mut first = [0];
    if !matches!(stream.read(&mut first).await, Ok(1)) {
        return;
    }
    match first[0] {
        b'r' => SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
        b's' => {}
        b'h' => {
            _ = stream.read_to_end(&mut Vec::new()).await;
            _ = stream.write_all(b"answer").await;
        }
        byte => {
            _ = stream.write_all(&[byte]).await;
            _ = stream.read(&mut first).await;
        }
    }
}

/// Makes one connection that goes as `manner` says; panics unless it is established.
pub(crate) fn visit(addr: SocketAddr, manner: Manner) {
    use std::io::{Read as _, Write as _};

    let mut stream = connect(addr).unwrap_or_else(|error| panic!("{addr}: {error}"));
    let mut buffer = [0; 16];
    if manner == Manner::Mute {
        return;
    }
    stream.write_all(&[manner.byte()]).unwrap();
    match manner {
        Manner::Echo => assert_eq!(stream.read(&mut buffer).unwrap(), 1),
        Manner::PodCloses => assert_eq!(stream.read(&mut buffer).unwrap(), 0),
        Manner::PodResets => assert!(stream.read(&mut buffer).is_err()),
        Manner::ClientResets => SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
        Manner::HalfClose => {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert_eq!(answer, b"answer");
        }
        Manner::Mute => unreachable!("returned above"),
    }
}

/// Connects by a socket of the address's own family.
pub(crate) fn connect(addr: SocketAddr) -> std::io::Result<std::net::TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.connect(&addr.into())?;
    Ok(socket.into())
}

/// An address where nothing listens, though the port was free a moment ago and is kept from others.
pub(crate) struct Closed {
    pub(crate) addr: SocketAddr,
    _bound: Socket,
}

impl Closed {
    pub(crate) fn new(ip: [u8; 4]) -> Self {
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        bound.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
        Self { addr: bound.local_addr().unwrap().as_socket().unwrap(), _bound: bound }
    }
}
