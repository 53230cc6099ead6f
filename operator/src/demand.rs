//! Asks the scaler whether there is demand for direct routes: one stream for each, over one connection. What it says goes to
//! the world, as what the API server says does.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    time::Duration,
};

use api::names::{DEMAND_VIEW, INTERCEPTOR_ROUTE_KEY, VIEW_KEY};
use interceptor_core::ObjectKey;
use proto::externalscaler::{ScaledObjectRef, external_scaler_client::ExternalScalerClient};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tonic::transport::{Channel, Endpoint};

use crate::world::Event;

/// A scaler that doesn't take a connection for so long counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer whose host is gone is noticed after an interval and a timeout.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits after an error, doubling from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(10);

/// The scaler's address is none.
#[derive(Debug, Error)]
#[error("the scaler's address {address} cannot be used")]
pub struct AddressError {
    address: String,
    source: tonic::transport::Error,
}

/// A stream; ends when dropped.
#[derive(Debug)]
struct Open(JoinHandle<()>);

/// Follows the demand for all routes that are `wanted`, for ever.
pub async fn follow(
    scaler: String,
    mut wanted: watch::Receiver<BTreeSet<ObjectKey>>,
    changes: mpsc::Sender<Event>,
) -> Result<Infallible, AddressError> {
    let channel = connect(&scaler).map_err(|source| AddressError { address: scaler, source })?;
    let mut open: HashMap<ObjectKey, Open> = HashMap::new();
    loop {
        {
            let wanted = wanted.borrow_and_update();
            open.retain(|key, _| wanted.contains(key));
            for key in wanted.iter() {
                if !open.contains_key(key) {
                    let task = ask(key.clone(), channel.clone(), changes.clone());
                    open.insert(key.clone(), Open(runtime::task::spawn("demand", task)));
                }
            }
        }
        // Nobody wants any more when the process ends.
        if wanted.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn connect(scaler: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{scaler}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

async fn ask(key: ObjectKey, channel: Channel, changes: mpsc::Sender<Event>) {
    let mut client = ExternalScalerClient::new(channel);
    let mut wait = FIRST_WAIT;
    loop {
        let metadata = [(INTERCEPTOR_ROUTE_KEY, key.name()), (VIEW_KEY, DEMAND_VIEW)];
        let reference = ScaledObjectRef {
            name: key.name().to_owned(),
            namespace: key.namespace().to_owned(),
            scaler_metadata: metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        };
        let ended = match client.stream_is_active(reference).await {
            Ok(response) => {
                let mut stream = response.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(said)) => {
                            wait = FIRST_WAIT;
                            if changes.send(Event::Demand(key.clone(), Some(said.result))).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                }
            }
            Err(status) => Some(status),
        };
        if changes.send(Event::Demand(key.clone(), None)).await.is_err() {
            return;
        }
        let why = ended.map(|status| status.to_string());
        tracing::debug!(route = %key, why, "the scaler tells of no demand any more");
        sleep(wait).await;
        wait = (wait * 2).min(LAST_WAIT);
    }
}

// === impl Open ===

impl Drop for Open {
    fn drop(&mut self) {
        self.0.abort();
    }
}
