//! The routes that take all requests of a host, by the host as clients spell it: a shortcut past the table, which with
//! thousands of routes is spread over much memory. Owned by a worker; forgotten with each new snapshot.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::LocalRoute;

/// Most hosts that are kept: clients choose the spelling, and a wildcard takes any host. When full, all are forgotten.
pub(super) const MOST: usize = 32 * 1024;

/// Longer hosts are left to the table.
const LONGEST: usize = 128;

/// Within the table itself, as long as most are.
type Host = SmallVec<[u8; 32]>;

/// Routes by host, as of one snapshot.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    known: RefCell<HashMap<Host, Rc<LocalRoute>, RandomState>>,
}

// === impl Hosts ===

impl Hosts {
    pub(crate) fn find(&self, host: &[u8]) -> Option<Rc<LocalRoute>> {
        self.known.borrow().get(host).cloned()
    }

    /// Keeps what was found for a host, whatever its path and headers are. Whether others had to be forgotten for it.
    pub(crate) fn keep(&self, host: &[u8], route: &Rc<LocalRoute>) -> bool {
        if host.len() > LONGEST {
            return false;
        }
        let mut known = self.known.borrow_mut();
        let is_full = known.len() >= MOST;
        if is_full {
            known.clear();
        }
        known.insert(Host::from_slice(host), Rc::clone(route));
        is_full
    }

    /// There is another snapshot.
    pub(crate) fn forget(&self) {
        self.known.borrow_mut().clear();
    }
}
