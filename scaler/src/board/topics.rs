//! Who wants to know of what. Written under the board's lock; a topic without subscribers takes no memory.

use std::{collections::HashMap, sync::Arc};

use interceptor_core::ObjectKey;
use tokio::sync::watch;

use super::Shared;

/// What a subscriber is told of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    /// Counts of one route, or its object.
    Counts(ObjectKey),
    /// One route's object.
    Route(ObjectKey),
    /// Counts of any route.
    All,
    /// The standing of the scaler.
    Standing,
    /// Never told.
    Nothing,
}

/// Topics that have subscribers.
#[derive(Debug, Default)]
pub(super) struct Topics(HashMap<Topic, watch::Sender<()>>);

/// Tells of changes until it is dropped. Subscribe, then read, then wait: no change is lost.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    topic: Topic,
    /// `None` only while it is dropped.
    receiver: Option<watch::Receiver<()>>,
}

// === impl Topics ===

impl Topics {
    pub(super) fn receiver(&mut self, topic: &Topic) -> watch::Receiver<()> {
        match self.0.get(topic) {
            Some(sender) => sender.subscribe(),
            None => self.0.entry(topic.clone()).or_insert_with(|| watch::Sender::new(())).subscribe(),
        }
    }

    pub(super) fn tell(&self, topic: &Topic) {
        if let Some(sender) = self.0.get(topic) {
            sender.send_replace(());
        }
    }

    pub(super) fn forget(&mut self, topic: &Topic) {
        if self.0.get(topic).is_some_and(|sender| sender.receiver_count() == 0) {
            self.0.remove(topic);
        }
    }
}

// === impl Subscription ===

impl Subscription {
    pub(super) fn new(shared: Arc<Shared>, topic: Topic, receiver: watch::Receiver<()>) -> Self {
        Self { shared, topic, receiver: Some(receiver) }
    }

    /// Waits for a change since the subscription or the last call that returned. Cancel safe.
    pub async fn changed(&mut self) {
        match &mut self.receiver {
            Some(receiver) => receiver.changed().await.expect("a topic stays while it has subscribers"),
            None => std::future::pending().await,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.receiver = None;
        self.shared.forget(&self.topic);
    }
}
