//! One end of a raw connection, with just enough HTTP/1.1 to read what the other end wrote.

use std::{io, net::SocketAddr};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::soon;

/// A client of the interceptor, or what a pod sees of it.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    buffer: BytesMut,
    /// The other end's address.
    pub addr: SocketAddr,
}

/// The head of a request or response.
#[derive(Clone, Debug)]
pub struct Head {
    /// Request line or status line.
    pub start: String,
    /// Names as on the wire, in order.
    pub headers: Vec<(String, String)>,
}

/// A response, read whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its head.
    pub head: Head,
    /// Its body, without transfer coding.
    pub body: String,
}

// === impl Peer ===

impl Peer {
    /// A client.
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = soon("connection", TcpStream::connect(addr)).await.unwrap();
        Self::new(stream, addr)
    }

    pub(crate) fn new(stream: TcpStream, addr: SocketAddr) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: BytesMut::new(), addr }
    }

    /// Sends a request without body to the interceptor.
    pub async fn get(&mut self, host: &str, target: &str) {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    }

    /// Sends text as it is.
    pub async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    /// Sends bytes as they are.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        soon("the other end takes what is sent", self.stream.write_all(bytes)).await.unwrap();
    }

    /// Sends bytes; the other end may have closed, which is told.
    pub async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        soon("the other end takes what is sent", self.stream.write_all(bytes)).await
    }

    /// Sends one chunk of a chunked body.
    pub async fn send_chunk(&mut self, text: &str) {
        self.send(&format!("{:x}\r\n{text}\r\n", text.len())).await;
    }

    /// Ends the sending side.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Closes with a reset instead of an orderly end.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Reads a head.
    pub async fn head(&mut self) -> Head {
        soon("a head", self.try_head()).await.expect("the other end closed before a whole head")
    }

    /// Reads a head, unless the other end closes first.
    pub async fn try_head(&mut self) -> Option<Head> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.buffer.split_to(end + 4);
                return Some(Head::parse(std::str::from_utf8(&head).unwrap()));
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Reads exactly this many bytes.
    pub async fn exactly(&mut self, count: usize) -> String {
        soon("bytes of a body", async {
            while self.buffer.len() < count {
                let got = String::from_utf8_lossy(&self.buffer).into_owned();
                assert!(self.fill().await, "closed after {got:?}");
            }
        })
        .await;
        String::from_utf8(self.buffer.split_to(count).to_vec()).unwrap()
    }

    /// Reads a line without its end.
    pub async fn line(&mut self) -> String {
        soon("a line", async {
            loop {
                if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                    let line = String::from_utf8(self.buffer.split_to(end).to_vec()).unwrap();
                    self.buffer.advance(2);
                    return line;
                }
                assert!(self.fill().await, "closed after {:?}", String::from_utf8_lossy(&self.buffer));
            }
        })
        .await
    }

    /// Reads one chunk of a chunked body; empty at its end, with the trailer section left to be read.
    pub async fn chunk(&mut self) -> String {
        let line = self.line().await;
        let size = usize::from_str_radix(line.split(';').next().unwrap(), 16).unwrap();
        if size == 0 {
            return String::new();
        }
        let chunk = self.exactly(size).await;
        assert_eq!(self.line().await, "");
        chunk
    }

    /// Reads what follows the last chunk.
    pub async fn trailers(&mut self) -> Vec<(String, String)> {
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(':') else { return trailers };
            trailers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Reads the body that goes with `head`.
    pub async fn body(&mut self, head: &Head) -> String {
        if head.get("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            let mut body = String::new();
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    self.trailers().await;
                    return body;
                }
                body.push_str(&chunk);
            }
        }
        match head.get("content-length") {
            Some(length) => self.exactly(length.parse().unwrap()).await,
            None if head.start.starts_with("HTTP/")
                && ![" 204", " 304"].iter().any(|code| head.start.contains(code)) =>
            {
                self.rest().await
            }
            None => String::new(),
        }
    }

    /// Reads a whole response.
    pub async fn response(&mut self) -> Response {
        let head = self.head().await;
        let body = self.body(&head).await;
        Response { head, body }
    }

    /// Reads until the other end closes, in whatever way.
    pub async fn rest(&mut self) -> String {
        soon("the other end closes", async { while self.fill().await {} }).await;
        String::from_utf8_lossy(&self.buffer.split()).into_owned()
    }

    /// Waits until the other end has closed; whatever it sends before is thrown away.
    pub async fn closed(&mut self) {
        self.rest().await;
    }

    /// What has arrived by now and was not read.
    pub fn arrived(&mut self) -> String {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = self.stream.try_read(&mut bytes) {
            self.buffer.extend_from_slice(&bytes[..count]);
        }
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Whether the other end has closed without sending more.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0; 1];
        match self.stream.try_read(&mut byte) {
            Ok(0) => true,
            Ok(_) => {
                self.buffer.extend_from_slice(&byte);
                false
            }
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// The raw stream, when nothing that was read is left over.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.buffer.is_empty(), "unread: {:?}", self.buffer);
        self.stream
    }

    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..))
    }
}

// === impl Head ===

impl Head {
    fn parse(text: &str) -> Self {
        let mut lines = text.trim_end().split("\r\n");
        let start = lines.next().unwrap().to_owned();
        let headers = lines.map(|line| line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}")));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Self { start, headers }
    }

    /// The first value of a header.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let matching = self.headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
        matching.map(|(_, value)| value.as_str()).collect()
    }

    /// A response's status.
    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// A request's target, as on the wire.
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap()
    }
}

// === impl Response ===

impl Response {
    /// Its status.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// The cold-start header.
    pub fn cold_start(&self) -> Option<&str> {
        self.head.get("x-keda-http-cold-start")
    }
}
