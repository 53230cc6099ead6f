//! Serves a client over HTTP/2: one task drives the connection, and one each of its streams.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use h2::{
    Reason, RecvStream,
    server::{Builder, SendResponse},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    connection::{Connection, Phase},
    date,
};
use crate::{
    h1::{MAX_HEAD, fields::Known},
    http2::{
        STREAM_WINDOW,
        duplex::Duplex,
        respond::Responder,
        send::{Broken, Sender},
    },
    net::Stream,
    proxy::{
        self, Ask, Reply,
        body::BodyError,
        headers,
        upgrade::{Handover, Tunnel},
    },
    worker::Worker,
};

/// Streams a client may have open at once on one connection; Go's server's value, which the add-on has.
const MAX_STREAMS: u32 = 250;

/// How much a client may send on one connection before it has gone on, in bytes: as many bodies may wait, held or because
/// their upstream takes nothing, before they hold up the others.
const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW;

/// A socket of which something was read already.
struct Prefixed {
    ahead: Bytes,
    stream: Stream,
}

/// Serves until the connection ends.
pub(crate) async fn serve(worker: &Rc<Worker>, connection: &Rc<Connection>, stream: Stream, ahead: Bytes) {
    let mut served = match builder().handshake(Prefixed { ahead, stream }).await {
        Ok(served) => served,
        Err(error) => return tracing::debug!(client = %connection.peer(), %error, "connection ended"),
    };
    let mut told = false;
    loop {
        let accepted = poll_fn(|cx| {
            if connection.phase() >= Phase::Closing && !std::mem::replace(&mut told, true) {
                served.graceful_shutdown();
            }
            served.poll_accept(cx)
        });
        match accepted.await {
            Some(Ok((request, respond))) => {
                let exchange = exchange(Rc::clone(worker), Rc::clone(connection), request, respond);
                runtime::task::spawn_local("http2-stream", exchange);
            }
            Some(Err(error)) => return tracing::debug!(client = %connection.peer(), %error, "connection ended"),
            None => return,
        }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("1 MiB fits into 32 bits"))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}

/// One request and its response. Whatever still belongs to the stream at its end resets it: with `NO_ERROR` when the response
/// is whole, so that a client that still sends may stop.
async fn exchange(
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let is_head = request.method() == Method::HEAD;
    let responder = Rc::new(Responder::new(respond, worker.shared.metrics.interim_dropped.clone()));
    let (ask, tunnel) = Ask::http2(request, &responder);
    let reply = {
        let handled = pin!(proxy::handle(Rc::clone(&worker), connection, ask));
        attend(&responder, handled).await
    };
    let Some(mut reply) = reply else { return };
    if let Some((client, upstream)) = tunnel.zip(reply.tunnel.take()) {
        return switch(&worker, &responder, &reply, client, *upstream).await;
    }
    let (head, last) = head(&reply, is_head);
    let stream = match responder.begin(head, last) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "response cannot be sent");
            return responder.reset(Reason::INTERNAL_ERROR);
        }
    };
    drop(responder);
    if last {
        return;
    }
    let mut sender = Sender::new(stream);
    match poll_fn(|cx| sender.poll(cx, &mut reply.body)).await {
        Ok(()) => {}
        Err(Broken::Stream(error)) => tracing::debug!(%error, "client takes no more of a response"),
        Err(Broken::Body(error)) => {
            tracing::debug!(%error, "response broke off");
            sender.reset(reason(&error));
        }
    }
}

/// Opens the tunnel that an extended CONNECT asked for; that it is open is said with a `200` (RFC 8441 §5).
async fn switch(worker: &Worker, responder: &Responder, reply: &Reply, client: RecvStream, upstream: Tunnel) {
    let mut head = Response::new(());
    headers::response(&reply.fields, &reply.hop, reply.cold, false, head.headers_mut());
    head.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
    match responder.begin(head, false) {
        Ok(stream) => {
            let handover = Handover { client: Duplex::new(client, stream), ahead: Bytes::new(), head: Vec::new() };
            // Its buffers would be a part of every other stream's task.
            Box::pin(upstream.run(handover, worker.tunnel_watch())).await;
        }
        Err(error) => tracing::debug!(%error, "response cannot be sent"),
    }
}

/// Waits for the reply while it watches the client; `None` when the client has left.
async fn attend(responder: &Responder, mut handled: Pin<&mut impl Future<Output = Reply>>) -> Option<Reply> {
    poll_fn(|cx| match handled.as_mut().poll(cx) {
        Poll::Ready(reply) => Poll::Ready(Some(reply)),
        Poll::Pending => responder.poll_gone(cx).map(|()| None),
    })
    .await
}

/// The head of `reply`, and whether it is all there is.
fn head(reply: &Reply, is_head: bool) -> (Response<()>, bool) {
    let bodiless = is_head || matches!(reply.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let own = reply.fields.has(Known::ContentLength);
    let length = match reply.body.left() {
        // An upstream's own length stands in its fields; of what is made here, it is that of the body.
        left if bodiless => left.filter(|left| *left > 0 && is_head && !own),
        left => left.filter(|left| *left > 0 || own),
    };
    let mut head = Response::new(());
    *head.status_mut() = reply.status;
    let own_goes_on = bodiless && own && reply.status != StatusCode::NO_CONTENT;
    headers::response(&reply.fields, &reply.hop, reply.cold, own_goes_on, head.headers_mut());
    if let Some(length) = length {
        head.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if !reply.fields.has(Known::Date) {
        head.headers_mut().insert(header::DATE, date::value());
    }
    (head, bodiless || reply.body.is_done())
}

/// What the client is told of a response that broke off.
fn reason(error: &BodyError) -> Reason {
    match error {
        // The one reason that is about the call and not about the connection it came on.
        BodyError::Http2(error) if error.reason() == Some(Reason::CANCEL) => Reason::CANCEL,
        BodyError::Http1(_) | BodyError::Http2(_) | BodyError::Request(_) | BodyError::Deadline => {
            Reason::INTERNAL_ERROR
        }
    }
}

// === impl Prefixed ===

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
