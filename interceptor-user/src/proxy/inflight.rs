//! One request while it is in flight: keeps it counted, and writes its metrics and log line when it ends, however it
//! ends. Made by the first stage, carried by the response body.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use http::{Method, StatusCode};
use interceptor_core::inflight::Guard;
use tokio::time::Instant;

use super::{
    access::{End, Line},
    gate::Slot,
    respond::CLIENT_CLOSED_REQUEST,
    trace::Trace,
};
use crate::{
    metrics::{MethodLabel, Outcome},
    server::connection::{Connection, Phase},
    worker::{LocalRoute, Worker},
};

/// A request in flight.
#[derive(Debug)]
pub(crate) struct InFlight {
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    /// `None` for a request without a route.
    route: Option<Rc<LocalRoute>>,
    count: Option<Guard<Rc<LocalRoute>>>,
    /// Its place at a pod, while others wait for one.
    slot: RefCell<Option<Box<Slot>>>,
    /// It waited for its workload to get ready.
    cold: Cell<bool>,
    arrived: Instant,
    method: MethodLabel,
    /// Of the response; what a client leaves behind that goes before one, until then.
    status: u16,
    bytes: u64,
    told: Told,
}

/// What is told of a request beside metrics, where the process was asked for it.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) line: Option<Box<Line>>,
    pub(crate) trace: Option<Box<Trace>>,
}

// === impl InFlight ===

impl InFlight {
    pub(crate) fn new(worker: Rc<Worker>, connection: Rc<Connection>, method: &Method, told: Told) -> Self {
        connection.request_began();
        Self {
            worker,
            connection,
            route: None,
            count: None,
            slot: RefCell::default(),
            cold: Cell::new(false),
            arrived: Instant::now(),
            method: MethodLabel::from(method),
            status: CLIENT_CLOSED_REQUEST,
            bytes: 0,
            told,
        }
    }

    /// Attributes the request to `route`, without counting it yet.
    pub(crate) fn set_route(&mut self, route: &Rc<LocalRoute>) {
        self.route = Some(Rc::clone(route));
    }

    /// Counts the request as demand for its route from now on.
    pub(crate) fn count(&mut self, route: &Rc<LocalRoute>) {
        self.count = Some(Guard::enter(Rc::clone(route)));
    }

    /// Whether it is.
    pub(crate) fn is_counted(&self) -> bool {
        self.count.is_some()
    }

    /// Notes that the request waits for its workload.
    pub(crate) fn set_cold(&self) {
        self.cold.set(true);
    }

    /// Keeps the request's place at a pod, or has none, until it ends.
    pub(crate) fn set_slot(&self, slot: Option<Slot>) {
        self.slot.replace(slot.map(Box::new));
    }

    /// Its spans, where they are made.
    pub(crate) fn trace(&self) -> Option<&Trace> {
        self.told.trace.as_deref()
    }

    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }

    pub(crate) fn set_status(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }

    pub(crate) fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count = None;
        self.slot.take();
        self.connection.request_ended();
        if self.status == CLIENT_CLOSED_REQUEST && self.connection.phase() == Phase::Cut {
            self.status = StatusCode::GATEWAY_TIMEOUT.as_u16();
        }
        let elapsed = self.arrived.elapsed();
        match &self.route {
            Some(route) => {
                let outcome = Outcome { method: self.method, code: self.status, cold: self.cold.get() };
                route.record(outcome, elapsed);
            }
            None => self.worker.shared.metrics.record_unrouted(self.method, self.status, elapsed),
        }
        if let Some(trace) = self.told.trace.take() {
            trace.end(self.status);
        }
        if let Some(line) = self.told.line.take() {
            line.write(End {
                client: self.connection.peer(),
                status: self.status,
                bytes: self.bytes,
                elapsed,
                route: self.route.as_ref().map(|route| &route.entry.route.key),
            });
        }
    }
}
