//! Memory of a process with many routes: asked to be in huge pages, since each request reads some of it that is in no cache.

use std::convert::Infallible;

use runtime::snapshot::Reader;

/// With fewer routes it would not be noticed, and some megabytes would be used for nothing.
const MANY: usize = 1_000;

/// Asks when there are many routes, and again whenever there are twice as many. Does not end.
pub(crate) async fn follow(mut reader: Reader) -> Result<(), Infallible> {
    let mut next = MANY;
    loop {
        let routes = reader.load().routes.len();
        if routes >= next {
            next = routes.saturating_mul(2);
            match dataplane::ask_for_huge_pages() {
                Ok(_bytes) => tracing::info!(routes, "many routes: huge pages are asked for"),
                Err(error) => tracing::info!(routes, %error, "many routes, and no huge pages for them"),
            }
        }
        reader.published().await;
    }
}
