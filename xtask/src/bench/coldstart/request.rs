//! The client of the cold start bench: a process of its own, because it runs in a node's network. Sends one request and tells
//! when it was sent and when the answer began.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::clock::Moment;

/// Nobody waits longer for one answer.
const PATIENCE: Duration = Duration::from_secs(90);
const SUCCESS: &[u8] = b"HTTP/1.1 200";

/// `cargo xtask bench request`: prints both moments.
pub(crate) fn run(proxy: SocketAddr, host: &str) -> Result<()> {
    let mut stream = TcpStream::connect(proxy).with_context(|| format!("cannot connect to {proxy}"))?;
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
    println!("{} {}", sent.seconds(), answered.seconds());
    Ok(())
}

/// Reads what [`run`] printed.
pub(super) fn parse(text: &str) -> Result<(Moment, Moment)> {
    let moments: Vec<Moment> = text.split_whitespace().filter_map(Moment::parse).collect();
    ensure!(moments.len() == 2, "expected two moments, not {text:?}");
    Ok((moments[0], moments[1]))
}
