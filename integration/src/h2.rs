//! HTTP/2 peers over cleartext, with prior knowledge: a client of the interceptor, and a pod.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::{
    RecvStream, SendStream, client,
    server::{self, SendResponse},
};
use http::{HeaderMap, Request, Response};
use runtime::task;
use tokio::net::TcpStream;

use crate::{Peer, soon};

/// A client's connection.
#[derive(Clone, Debug)]
pub struct Client(client::SendRequest<Bytes>);

/// A pod's end of a connection.
pub type Server = server::Connection<TcpStream, Bytes>;

/// A request as the pod sees it, with the way to answer.
#[derive(Debug)]
pub struct Exchange {
    /// Head and body.
    pub request: Request<RecvStream>,
    /// The way to answer.
    pub respond: SendResponse<Bytes>,
}

// === impl Client ===

impl Client {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = Peer::connect(addr).await.into_stream();
        let (client, connection) = soon("HTTP/2 handshake", client::handshake(stream)).await.unwrap();
        task::spawn("h2 client", async move {
            let _ = connection.await;
        });
        Self(client)
    }

    /// Whether the server has said that it takes extended CONNECT (RFC 8441).
    pub fn may_connect(&self) -> bool {
        self.0.is_extended_connect_protocol_enabled()
    }

    /// Sends a head, and returns the response to come and the stream for the body.
    pub async fn start(&self, request: Request<()>, end: bool) -> (client::ResponseFuture, SendStream<Bytes>) {
        let mut client = soon("a free stream", self.0.clone().ready()).await.unwrap();
        client.send_request(request, end).unwrap()
    }

    /// As [`Client::start`] for a connection that may be closed by now.
    pub async fn try_start(
        &mut self,
        request: Request<()>,
    ) -> Result<(client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut client = soon("a free stream", self.0.clone().ready()).await?;
        client.send_request(request, false)
    }

    /// One request without a body; the response read whole, with its trailers.
    pub async fn send(&self, request: Request<()>) -> Result<(Response<String>, Option<HeaderMap>), h2::Error> {
        let (response, _) = self.start(request, true).await;
        let (head, mut body) = soon("a response", response).await?.into_parts();
        let text = read(&mut body).await?;
        let trailers = soon("trailers", body.trailers()).await?;
        Ok((Response::from_parts(head, text), trailers))
    }
}

/// Takes a connection that a pod accepted.
pub async fn serve(peer: Peer) -> Server {
    soon("HTTP/2 handshake", server::handshake(peer.into_stream())).await.unwrap()
}

/// Takes a connection that a pod accepted, waits for its first request, and keeps the connection going.
pub async fn first(peer: Peer) -> Exchange {
    let mut server = serve(peer).await;
    let (request, respond) = soon("an HTTP/2 request", server.accept()).await.unwrap().unwrap();
    task::spawn("h2 pod", async move { while server.accept().await.is_some() {} });
    Exchange { request, respond }
}

/// Reads a body to its end.
pub async fn read(body: &mut RecvStream) -> Result<String, h2::Error> {
    let mut text = String::new();
    while let Some(data) = soon("data", body.data()).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    Ok(text)
}

/// Reads the next piece of a body.
pub async fn piece(body: &mut RecvStream) -> String {
    let data = soon("data", body.data()).await.unwrap().unwrap();
    body.flow_control().release_capacity(data.len()).unwrap();
    String::from_utf8(data.to_vec()).unwrap()
}
