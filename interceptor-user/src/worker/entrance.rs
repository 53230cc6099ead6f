//! Routes of clients that come by an entrance, a port that stands for one Service.

use std::{num::NonZeroU16, rc::Rc};

use interceptor_core::route::{Headers, Traffic};

use super::{LocalRoute, Worker};

impl Worker {
    /// The route of a request that came by an entrance; `None` once it has gone.
    pub(crate) fn route_at(
        &self,
        entrance: NonZeroU16,
        host: &[u8],
        path: &[u8],
        headers: &impl Headers,
    ) -> Option<Rc<LocalRoute>> {
        self.generation();
        let seen = self.seen.borrow();
        let entrance = seen.entrances.get(&entrance)?;
        let found = std::str::from_utf8(host).map(|name| entrance.lookup(name, path, headers));
        Some(self.local(found.unwrap_or_else(|_| entrance.first())))
    }

    /// The route of what comes by an entrance and is no request, and what its clients speak.
    pub(crate) fn entrance(&self, port: NonZeroU16) -> Option<(Rc<LocalRoute>, Traffic)> {
        self.generation();
        let seen = self.seen.borrow();
        let entrance = seen.entrances.get(&port)?;
        Some((self.local(entrance.first()), entrance.traffic()))
    }
}
