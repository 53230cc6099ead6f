//! A small HTTP/1.1 origin and a client that asks again and again on one connection, for `bench routes`.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Nobody waits longer than this for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Starts an origin that answers every request with 200 for as long as this process lives.
pub(crate) fn origin() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that breaks concerns only whoever made it.
            thread::spawn(move || drop(answer_all(&stream)));
        }
    });
    Ok(address)
}

fn answer_all(stream: &TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        if line == "\r\n" {
            (&*stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")?;
        }
        line.clear();
    }
    Ok(())
}

/// One connection to the proxy.
#[derive(Debug)]
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Status of one request to this host.
    pub(crate) fn get(&mut self, host: &str) -> Result<u16> {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        self.reader.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut status, mut length) = (String::new(), None, 0);
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                bail!("the proxy closed the connection");
            }
            let text = line.trim_end().to_ascii_lowercase();
            if text.is_empty() {
                break;
            } else if let Some(rest) = text.strip_prefix("http/1.1 ") {
                status = rest.split_whitespace().next().and_then(|code| code.parse().ok());
            } else if let Some(rest) = text.strip_prefix("content-length:") {
                length = rest.trim().parse().context("Content-Length is no number")?;
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        status.context("the answer has no status")
    }

    /// Asks until the answer is 200, and returns when that was.
    pub(crate) fn until_routed(&mut self, host: &str, patience: Duration) -> Result<Instant> {
        let deadline = Instant::now() + patience;
        let mut status = self.get(host)?;
        while status != 200 {
            if Instant::now() > deadline {
                bail!("{host} still answers {status} after {patience:?}");
            }
            status = self.get(host)?;
        }
        Ok(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_serves_many_requests() {
        let mut client = Client::connect(origin().unwrap()).unwrap();
        assert_eq!(client.get("a").unwrap(), 200);
        client.until_routed("b", ANSWER).unwrap();
    }
}
