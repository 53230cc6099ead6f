//! What a route may ask of the table. `api` refuses what is over it; the index drops the rules of what comes all the same.

use super::{MAX_HOST, MAX_PREFIX, Route};

/// How many combinations of host and path a route may have: one tenant's rules must not fill everybody's memory.
pub const MAX_KEYS: usize = 4096;

/// How many headers a rule may ask for; each costs a look-up per request.
pub const MAX_HEADERS: usize = 64;

/// How many hosts, paths and headers a route's static routes may have together: they are looked at one by one.
pub const MAX_STATIC_PATTERNS: usize = 1024;

/// Why a route can't stand in the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Hosts × paths are too many.
    #[error("rules have {0} combinations of host and path: expected at most {MAX_KEYS}")]
    Keys(usize),
    /// A host that no request can have.
    #[error("rules[{rule}].hosts[{host}] has {len} bytes: expected at most {MAX_HOST}")]
    Host {
        /// Index of the rule.
        rule: usize,
        /// Index of the host.
        host: usize,
        /// Its length.
        len: usize,
    },
    /// A path that is too long.
    #[error("rules[{rule}].paths[{path}] has {len} bytes: expected at most {MAX_PREFIX}")]
    Path {
        /// Index of the rule.
        rule: usize,
        /// Index of the path.
        path: usize,
        /// Its length.
        len: usize,
    },
    /// Too much to compare each request with.
    #[error("staticRoutes have {0} hosts, paths and headers: expected at most {MAX_STATIC_PATTERNS}")]
    StaticRoutes(usize),
    /// Too many headers.
    #[error("rules[{rule}].headers has {len} entries: expected at most {MAX_HEADERS}")]
    Headers {
        /// Index of the rule.
        rule: usize,
        /// How many.
        len: usize,
    },
}

impl Route {
    /// Whether it fits into the table.
    pub fn check(&self) -> Result<(), RouteError> {
        let keys = self.rules.iter().map(|rule| rule.hosts.len().max(1).saturating_mul(rule.paths.len().max(1)));
        let keys = keys.fold(0, usize::saturating_add);
        if keys > MAX_KEYS {
            return Err(RouteError::Keys(keys));
        }
        let rules = self.static_routes.iter().flat_map(|route| &route.rules);
        let patterns = rules.map(|rule| 1 + rule.hosts.len() + rule.paths.len() + rule.headers.len()).sum();
        if patterns > MAX_STATIC_PATTERNS {
            return Err(RouteError::StaticRoutes(patterns));
        }
        for (rule, parts) in self.rules.iter().enumerate() {
            if let Some(host) = parts.hosts.iter().position(|host| host.len() > MAX_HOST) {
                return Err(RouteError::Host { rule, host, len: parts.hosts[host].len() });
            }
            if let Some(path) = parts.paths.iter().position(|path| path.len() > MAX_PREFIX) {
                return Err(RouteError::Path { rule, path, len: parts.paths[path].len() });
            }
            if parts.headers.len() > MAX_HEADERS {
                return Err(RouteError::Headers { rule, len: parts.headers.len() });
            }
        }
        Ok(())
    }
}
