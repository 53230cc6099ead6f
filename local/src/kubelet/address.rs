//! Loopback addresses for pods: one block 127.a.b.0/24 a run, claimed by a listener that other runs collide with.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
};

use thiserror::Error;

/// The port of a block's last address that says the block is taken, as long as somebody listens there.
const CLAIM_PORT: u16 = 47_321;
/// Blocks from 127.16.0.0 on; the first addresses belong to the machine's own services.
const FIRST_SECOND_OCTET: u32 = 16;
const BLOCKS: u32 = (256 - FIRST_SECOND_OCTET) * 256;
/// How many blocks are tried: more runs than this on one machine are a mistake.
const TRIES: u32 = 64;
/// Addresses .1 to .250 are for pods.
const PODS: u8 = 250;

/// The addresses of one run.
#[derive(Debug)]
pub struct Block {
    second: u8,
    third: u8,
    last: u8,
    used: [bool; PODS as usize + 1],
    _claim: TcpListener,
}

/// Why there is no address.
#[derive(Debug, Error)]
pub enum AddressError {
    /// Every block that was tried is taken, or loopback cannot be bound at all.
    #[error("no free block of loopback addresses after {TRIES} tries")]
    NoBlock(#[source] io::Error),
    /// As many pods as one run may have.
    #[error("all {PODS} addresses of this run are in use: no more pods can be started")]
    Full,
    /// Something else listens on the pod's port, on all addresses.
    #[error("port {port} is taken on every loopback address, choose another containerPort")]
    Port {
        /// The port.
        port: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

// === impl Block ===

impl Block {
    /// Claims a block; `seed` says where to look first.
    pub fn claim(seed: u32) -> Result<Self, AddressError> {
        let mut error = None;
        for step in 0..TRIES {
            // A step that shares no factor with the number of blocks visits them all.
            let block = seed.wrapping_mul(101).wrapping_add(step.wrapping_mul(7919)) % BLOCKS;
            let [_, _, second, third] = (block + FIRST_SECOND_OCTET * 256).to_be_bytes();
            match TcpListener::bind((Ipv4Addr::new(127, second, third, 254), CLAIM_PORT)) {
                Ok(claim) => {
                    let used = [false; PODS as usize + 1];
                    return Ok(Self { second, third, last: 0, used, _claim: claim });
                }
                Err(taken) => error = Some(taken),
            }
        }
        Err(AddressError::NoBlock(error.unwrap_or_else(|| io::ErrorKind::AddrInUse.into())))
    }

    /// An address on which all `ports` are free. One that was given back is used again as late as possible.
    pub fn take(&mut self, ports: &[u16]) -> Result<Ipv4Addr, AddressError> {
        let mut occupied = None;
        for step in 0..PODS {
            // `last` and `step` are below 251, so the sum wraps once at most.
            let host = match self.last.checked_add(step) {
                Some(sum) if sum < PODS => sum + 1,
                Some(sum) => sum - PODS + 1,
                None => self.last - (PODS - step) + 1,
            };
            if self.used[usize::from(host)] {
                continue;
            }
            let address = Ipv4Addr::new(127, self.second, self.third, host);
            match bindable(address, ports) {
                Ok(()) => {
                    self.used[usize::from(host)] = true;
                    self.last = host;
                    return Ok(address);
                }
                Err(error) => occupied = Some(error),
            }
        }
        Err(occupied.unwrap_or(AddressError::Full))
    }

    /// Gives an address back.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        let host = usize::from(address.octets()[3]);
        if let Some(used) = self.used.get_mut(host) {
            *used = false;
        }
    }
}

fn bindable(address: Ipv4Addr, ports: &[u16]) -> Result<(), AddressError> {
    for &port in ports {
        let bound = TcpListener::bind(SocketAddr::new(IpAddr::V4(address), port));
        drop(bound.map_err(|source| AddressError::Port { port, source })?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> u32 {
        std::process::id()
    }

    #[test]
    fn two_runs_with_the_same_seed_get_different_blocks() {
        let (first, second) = (Block::claim(seed()).unwrap(), Block::claim(seed()).unwrap());
        assert_ne!((first.second, first.third), (second.second, second.third));
    }

    #[test]
    fn an_address_is_not_used_again_at_once() {
        let mut block = Block::claim(seed()).unwrap();
        let first = block.take(&[]).unwrap();
        block.give_back(first);
        assert_ne!(block.take(&[]).unwrap(), first);
    }

    #[test]
    fn the_number_of_addresses_is_bounded_and_given_back_ones_return() {
        let mut block = Block::claim(seed()).unwrap();
        let all: Vec<_> = (0..PODS).map(|_| block.take(&[]).unwrap()).collect();
        assert!(matches!(block.take(&[]), Err(AddressError::Full)));
        block.give_back(all[17]);
        assert_eq!(block.take(&[]).unwrap(), all[17]);
    }

    #[test]
    fn a_port_that_is_taken_everywhere_is_named() {
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        let error = Block::claim(seed()).unwrap().take(&[port]).unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}
