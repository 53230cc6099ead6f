//! A span for each call of a gRPC server, from its head to the end of what is answered. Names and attributes are
//! OpenTelemetry's semantic conventions for gRPC.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use opentelemetry::{
    KeyValue,
    propagation::TextMapPropagator as _,
    trace::{Span as _, SpanBuilder, SpanKind, Status, Tracer as _},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span},
};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

/// The field, and the trailer, in which a call's outcome stands.
const STATUS: &str = "grpc-status";

/// Makes a span for each call, where there is a tracer.
#[derive(Clone, Debug)]
pub struct Spans {
    tracer: Option<SdkTracer>,
}

/// A service whose calls have spans.
#[derive(Clone, Debug)]
pub struct Spanned<S> {
    tracer: Option<SdkTracer>,
    inner: S,
}

pin_project! {
    /// A call that is not answered yet.
    #[derive(Debug)]
    pub struct Call<F> {
        #[pin]
        inner: F,
        span: Option<Span>,
    }
}

pin_project! {
    /// An answer; its end is the call's.
    #[derive(Debug)]
    pub struct Answer<B> {
        #[pin]
        inner: B,
        span: Option<Span>,
    }
}

// === impl Spans ===

impl Spans {
    /// Makes spans with `tracer`, or none.
    pub fn new(tracer: Option<SdkTracer>) -> Self {
        Self { tracer }
    }
}

impl<S> Layer<S> for Spans {
    type Service = Spanned<S>;

    fn layer(&self, inner: S) -> Spanned<S> {
        Spanned { tracer: self.tracer.clone(), inner }
    }
}

// === impl Spanned ===

impl<S, A, B> Service<Request<A>> for Spanned<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<Answer<B>>;
    type Error = S::Error;
    type Future = Call<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Call<S::Future> {
        let span = self.tracer.as_ref().map(|tracer| span(tracer, &request));
        Call { inner: self.inner.call(request), span }
    }
}

// === impl Call ===

impl<F, B, E> Future for Call<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Answer<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        note(this.span, response.headers());
        let span = this.span.take();
        Poll::Ready(Ok(response.map(|inner| Answer { inner, span })))
    }
}

// === impl Answer ===

impl<B: Body> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            note(this.span, trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn span<A>(tracer: &SdkTracer, request: &Request<A>) -> Span {
    let path = request.uri().path().trim_start_matches('/');
    let (service, method) = path.split_once('/').unwrap_or((path, ""));
    let parent = TraceContextPropagator::new().extract(&HeaderExtractor(request.headers()));
    let builder = SpanBuilder::from_name(path.to_owned()).with_kind(SpanKind::Server).with_attributes([
        KeyValue::new("rpc.system", "grpc"),
        KeyValue::new("rpc.service", service.to_owned()),
        KeyValue::new("rpc.method", method.to_owned()),
    ]);
    tracer.build_with_context(builder, &parent)
}

fn note(span: &mut Option<Span>, fields: &HeaderMap) {
    let status = fields.get(STATUS).and_then(|status| status.to_str().ok()?.parse::<i64>().ok());
    if let (Some(span), Some(status)) = (span, status) {
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", status));
        if status != 0 {
            span.set_status(Status::error(""));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, Full};
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{InMemorySpanExporterBuilder, SdkTracerProvider};
    use tower::{ServiceBuilder, ServiceExt as _, service_fn};

    use super::*;

    #[tokio::test]
    async fn a_call_s_span_is_below_its_caller_s_and_ends_with_the_trailers() {
        let memory = InMemorySpanExporterBuilder::new().build();
        let provider = SdkTracerProvider::builder().with_simple_exporter(memory.clone()).build();
        let answer = |_: Request<()>| async {
            let trailers = HeaderMap::from_iter([(STATUS.parse().unwrap(), "5".parse().unwrap())]);
            let body = Full::new(bytes::Bytes::from("data")).with_trailers(async { Some(Ok(trailers)) });
            Ok::<_, Infallible>(Response::new(body))
        };
        let service =
            ServiceBuilder::new().layer(Spans::new(Some(provider.tracer("test")))).service(service_fn(answer));
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let request = Request::post("http://scaler/a.Service/Method").header("traceparent", parent).body(()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert!(memory.get_finished_spans().unwrap().is_empty(), "the call goes on");
        response.into_body().collect().await.unwrap();
        let [span] = &memory.get_finished_spans().unwrap()[..] else { panic!("one span") };
        assert_eq!((&*span.name, span.parent_span_id.to_string().as_str()), ("a.Service/Method", "b7ad6b7169203331"));
        for expected in [
            KeyValue::new("rpc.service", "a.Service"),
            KeyValue::new("rpc.method", "Method"),
            KeyValue::new("rpc.grpc.status_code", 5_i64),
        ] {
            assert!(span.attributes.contains(&expected), "{expected:?}");
        }
        assert_eq!(span.status, Status::error(""));
    }
}
