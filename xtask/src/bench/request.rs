//! The client of the benches on a cluster: a process of its own, because it runs in a node's or a pod's network. Sends one request and
//! tells when it was connected, when it sent, and when the answer began.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::bench::clock::Moment;

/// Nobody waits longer for one answer.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two connections of a client that tries until it is not refused.
const AGAIN: Duration = Duration::from_millis(5);
const SUCCESS: &[u8] = b"HTTP/1.1 200";

/// What the client saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moments {
    /// Its connection was open.
    pub(crate) connected: Moment,
    /// Its request was sent.
    pub(crate) sent: Moment,
    /// The first byte of the answer came.
    pub(crate) answered: Moment,
}

/// `cargo xtask bench request`: prints the moments.
pub(crate) fn run(to: SocketAddr, host: &str, retry: bool) -> Result<()> {
    let mut stream = connect(to, retry).with_context(|| format!("cannot connect to {to}"))?;
    let connected = Moment::now();
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let sent = Moment::now();
    let mut first = [0; SUCCESS.len()];
    stream.read_exact(&mut first).context("no answer")?;
    let answered = Moment::now();
    if first != SUCCESS {
        let mut rest = String::new();
        let _ = stream.read_to_string(&mut rest);
        bail!("expected an answer of the workload, not {}{rest}", String::from_utf8_lossy(&first));
    }
    println!("{} {} {}", connected.seconds(), sent.seconds(), answered.seconds());
    Ok(())
}

fn connect(to: SocketAddr, retry: bool) -> io::Result<TcpStream> {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect_timeout(&to, PATIENCE) {
            Err(error) if retry && error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < until => {
                thread::park_timeout(AGAIN);
            }
            result => return result,
        }
    }
}

/// Reads what [`run`] printed.
pub(crate) fn parse(text: &str) -> Result<Moments> {
    let moments: Vec<Moment> = text.split_whitespace().filter_map(Moment::parse).collect();
    ensure!(moments.len() == 3, "expected three moments, not {text:?}");
    Ok(Moments { connected: moments[0], sent: moments[1], answered: moments[2] })
}
