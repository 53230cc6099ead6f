//! The data plane without the kernel: counts nothing and needs nothing.

use std::sync::Arc;

use interceptor_core::{Upstream, UpstreamId};

use crate::{ConnectionCounters, Dataplane, Level, Logs, RepairReport, SyncError, SyncReport};

/// Level `none`.
#[derive(Debug)]
pub(crate) struct Without {
    reason: String,
}

impl Without {
    pub(crate) fn new(reason: String) -> Self {
        Self { reason }
    }
}

impl Dataplane for Without {
    fn level(&self) -> Level {
        Level::None
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn sync(&mut self, _: &mut dyn Iterator<Item = &Arc<Upstream>>) -> Result<SyncReport, SyncError> {
        Ok(SyncReport::default())
    }

    fn repair(&mut self) -> Result<RepairReport, SyncError> {
        Ok(RepairReport::default())
    }

    fn counters(&self) -> Vec<(UpstreamId, ConnectionCounters)> {
        Vec::new()
    }

    fn take_logs(&mut self) -> Option<Logs> {
        None
    }
}
