//! One agent a node: of two each would hold, steer and count what the other does, and take away what the other has put on devices.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    time::Duration,
};

use tokio::time::{sleep, timeout};

/// An abstract name, which is the network namespace's, and goes with the process, in whatever way that ends.
pub(super) const NAME: &str = "rouse-agent";

/// For how long one that is there may still be ending, as where an agent is replaced.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two tries.
const TRY: Duration = Duration::from_millis(100);

/// Nobody else has this while it is held.
#[derive(Debug)]
pub(super) struct Alone {
    _name: Option<UnixListener>,
}

/// Waits until nobody else has the name; fails if somebody keeps it. Nothing is held when it is dropped before it ends.
pub(super) async fn alone(name: &str) -> io::Result<Alone> {
    let address = SocketAddr::from_abstract_name(name)?;
    let mut last = None;
    let tries = async {
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(name) => return Alone { _name: Some(name) },
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
                Err(error) => {
                    tracing::warn!(%error, "a second agent on this node would not be noticed");
                    return Alone { _name: None };
                }
            }
            sleep(TRY).await;
        }
    };
    match timeout(PATIENCE, tries).await {
        Ok(alone) => Ok(alone),
        Err(elapsed) => Err(last.unwrap_or_else(|| elapsed.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_two_agents_the_second_waits_a_while_for_the_first_to_end_and_then_gives_up() {
        let name = format!("rouse-agent-test-{}", std::process::id());
        let first = alone(&name).await.unwrap();
        assert_eq!(alone(&name).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let (second, ()) = tokio::join!(alone(&name), async move {
            sleep(PATIENCE / 2).await;
            drop(first);
        });
        assert!(second.is_ok());
    }
}
