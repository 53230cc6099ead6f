//! `externalscaler.ExternalScaler`: translates between KEDA and the board, and decides nothing. What is wrong with a question
//! is told with the code `UNKNOWN`, as the KEDA HTTP Add-on does; that there is no answer yet, with `UNAVAILABLE`.

use std::{pin::Pin, sync::Arc, time::Duration};

use api::names::{DEMAND_VIEW, VIEW_KEY};
use futures_util::Stream;
use interceptor_core::route::RouteKind;
use proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, ScaledObjectRef,
    external_scaler_server::ExternalScaler,
};
use runtime::signal::Shutdown;
use tonic::{Request, Response, Status};

use crate::{
    board::{Board, Unknown, View},
    push::Activity,
    spec::{self, TargetError},
    subject::{Subject, SubjectError},
};

mod streams;

pub(crate) use self::streams::MAX_STREAMS;
pub use self::streams::Streams;

/// How the service behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Least time from a `true` on `StreamIsActive` to the `false` after it.
    pub interval: Duration,
    /// The interceptors' admin Service, as messages name it.
    pub admin_service: String,
}

/// The service.
#[derive(Clone, Debug)]
pub struct Service {
    board: Board,
    config: Config,
    streams: Arc<Streams>,
    shutdown: Shutdown,
}

// === impl Service ===

impl Service {
    /// A service that reads `board`; its streams end when `shutdown` is requested.
    pub fn new(board: Board, config: Config, streams: Arc<Streams>, shutdown: Shutdown) -> Self {
        Self { board, config, streams, shutdown }
    }

    fn specs(&self, subject: &Subject) -> Result<Vec<MetricSpec>, Status> {
        match subject {
            Subject::Route(kind, key) => {
                let route = self.board.route(*kind, key).map_err(|unknown| self.status(unknown))?;
                Ok(spec::route_specs(&route))
            }
            Subject::Interceptor { .. } => spec::interceptor_specs(subject).map_err(|error| invalid_target(&error)),
        }
    }

    fn metrics(&self, subject: &Subject, asked: &str) -> Result<GetMetricsResponse, Status> {
        let (route, sample) = self.board.sample(subject).map_err(|unknown| self.status(unknown))?;
        let metric_values = match route {
            Some(route) if self.board.settles(&route) => return Err(self.status(Unknown::Agents)),
            Some(route) => {
                spec::route_values(&route, sample, asked).map_err(|unknown| Status::unavailable(unknown.to_string()))?
            }
            None => spec::interceptor_values(subject, sample),
        };
        Ok(GetMetricsResponse { metric_values })
    }

    fn status(&self, unknown: Unknown) -> Status {
        let service = &self.config.admin_service;
        match unknown {
            Unknown::NoRoute(RouteKind::InterceptorRoute, key) => {
                Status::unknown(format!("InterceptorRoute {key} not found, or not valid"))
            }
            Unknown::NoRoute(RouteKind::HttpScaledObject, key) => {
                Status::unknown(format!("HTTPScaledObject {key} not found, or not valid"))
            }
            Unknown::NotSynced => Status::unavailable("the scaler has not read all objects yet"),
            Unknown::NoSource => Status::unavailable(format!(
                "there isn't any valid interceptor endpoint: Service {service} has none that is ready"
            )),
            Unknown::NoReport(listed) => Status::unavailable(format!(
                "none of the {listed} interceptors of Service {service} has been reached yet"
            )),
            Unknown::Agents => Status::unavailable(
                "some node agents have not been reached yet, or are too many to be listened to: what their pods take is not known",
            ),
        }
    }
}

#[tonic::async_trait]
impl ExternalScaler for Service {
    type StreamIsActiveStream = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;
    type StreamMetricSpecStream = Pin<Box<dyn Stream<Item = Result<GetMetricSpecResponse, Status>> + Send>>;

    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        let subject = Subject::parse(request.into_inner()).map_err(|error| invalid_metadata(&error))?;
        let (route, sample) = self.board.sample(&subject).map_err(|unknown| self.status(unknown))?;
        let active = match route {
            Some(route) => spec::is_active(&route, sample),
            None => spec::any_positive(&spec::interceptor_values(&subject, sample)),
        };
        if active {
            return Ok(Response::new(IsActiveResponse { result: true }));
        }
        match self.board.activity(&subject, View::Scaling) {
            Activity { doubtful: true, .. } => Err(self.status(Unknown::Agents)),
            activity => Ok(Response::new(IsActiveResponse { result: activity.active })),
        }
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let reference = request.into_inner();
        let wants_demand = reference.scaler_metadata.get(VIEW_KEY).is_some_and(|view| view == DEMAND_VIEW);
        let view = if wants_demand { View::Demand } else { View::Scaling };
        let subject = Subject::parse(reference).map_err(|error| invalid_metadata(&error))?;
        let open = self.streams.enter()?;
        let of = (subject, view);
        let stream = streams::activity(self.board.clone(), of, self.config.interval, self.shutdown.clone(), open);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let subject = Subject::parse(request.into_inner()).map_err(|error| invalid_metadata(&error))?;
        Ok(Response::new(GetMetricSpecResponse { metric_specs: self.specs(&subject)? }))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
        let reference = scaled_object_ref.ok_or_else(|| Status::unknown("scaledObjectRef is missing"))?;
        let subject = Subject::parse(reference).map_err(|error| invalid_metadata(&error))?;
        Ok(Response::new(self.metrics(&subject, &metric_name)?))
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        let subject = Subject::parse(request.into_inner()).map_err(|error| invalid_metadata(&error))?;
        if let Subject::Interceptor { .. } = subject {
            spec::interceptor_specs(&subject).map_err(|error| invalid_target(&error))?;
        }
        let open = self.streams.enter()?;
        Ok(Response::new(Box::pin(streams::specs(self.clone(), subject, open))))
    }
}

fn invalid_metadata(error: &SubjectError) -> Status {
    Status::unknown(error.to_string())
}

fn invalid_target(error: &TargetError) -> Status {
    Status::unknown(error.to_string())
}
