//! Our table in the node's packet filter, and the sets that its rules look into. It touches no other table.
//!
//! ```text
//! table inet rouse {
//!   set alive { type nf_proto; flags timeout; timeout 30s }      while the agent gives signs of life
//!   set cold4 { type ipv4_addr . inet_service }                  addresses of cold Services
//!   set cold6 { type ipv6_addr . inet_service }
//!   chain output { type filter hook output priority -310 }       before all others', which see what is sent on
//!   chain input { type filter hook input priority 200 }          after addresses have been translated back
//! }
//! ```
//!
//! When the agent dies, what is in `alive` goes by itself, and no rule matches any more.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use interceptor_common::hold::HEARTBEAT_NS;

use super::rules::{self, ALIVE, COLD4, COLD6, INPUT, IPV4, IPV6, LOCAL_IN, LOCAL_OUT, OUTPUT};
use crate::nfnetlink::{Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, Netfilter, Received, attributes};

pub(super) const TABLE: &str = "rouse";

/// `NFNL_SUBSYS_NFTABLES`, and its messages.
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const DELETE_TABLE: u16 = NFTABLES << 8 | 2;
const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
const LIST_RULES: u16 = NFTABLES << 8 | 7;
const NEW_SET: u16 = NFTABLES << 8 | 9;
const NEW_ELEMENTS: u16 = NFTABLES << 8 | 0xc;
const LIST_ELEMENTS: u16 = NFTABLES << 8 | 0xd;
const DELETE_ELEMENTS: u16 = NFTABLES << 8 | 0xe;

/// Attributes that all of these begin with: which table, and what in it.
const IN_TABLE: u16 = 1;
const NAME: u16 = 2;

const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_ID: u16 = 10;
const SET_TIMEOUT: u16 = 11;
const WITH_TIMEOUT: u32 = 0x10;

const ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const VALUE: u16 = 1;

/// What `nft` calls `nf_proto`, `ipv4_addr . inet_service` and `ipv6_addr . inet_service`: only that shows it.
const PROTOCOL: u32 = 2;
const ADDRESS4_AND_PORT: u32 = 7 << 6 | 0xd;
const ADDRESS6_AND_PORT: u32 = 8 << 6 | 0xd;

/// Each takes up to 32 bytes of an attribute, of which there are 65,535.
const ELEMENTS_OF_MESSAGE: usize = 1024;

/// Before the rules that others call raw, and after addresses are translated.
const FIRST: i32 = -310;
const TRANSLATED: i32 = 200;

/// The table of the network namespace that it was opened in.
pub(super) struct Table(Netfilter);

/// What is in the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Addresses of cold Services.
    pub(super) cold: BTreeSet<SocketAddr>,
    /// How many rules there are.
    pub(super) rules: usize,
}

// === impl Table ===

impl Table {
    pub(super) fn open() -> io::Result<Self> {
        Netfilter::open().map(Self)
    }

    /// Puts a table with these addresses in the place of one that may be there, in one step.
    pub(super) fn replace(&mut self, cold: &BTreeSet<SocketAddr>) -> io::Result<()> {
        // What is not there cannot be deleted.
        let mut all = vec![table(NEW_TABLE), table(DELETE_TABLE), table(NEW_TABLE)];
        all.extend([
            set(1, ALIVE, (PROTOCOL, 1), Some(HEARTBEAT_NS / 1_000_000)),
            set(2, COLD4, (ADDRESS4_AND_PORT, 8), None),
            set(3, COLD6, (ADDRESS6_AND_PORT, 20), None),
            chain(OUTPUT, (LOCAL_OUT, FIRST)),
            chain(INPUT, (LOCAL_IN, TRANSLATED)),
        ]);
        all.extend(rules::all());
        all.push(alive());
        all.extend(addresses(NEW_ELEMENTS, cold));
        self.0.transaction(NFTABLES, all)
    }

    /// Adds and removes addresses.
    pub(super) fn change<'a>(
        &mut self,
        added: impl IntoIterator<Item = &'a SocketAddr>,
        removed: impl IntoIterator<Item = &'a SocketAddr>,
    ) -> io::Result<()> {
        let mut all = addresses(DELETE_ELEMENTS, removed);
        all.extend(addresses(NEW_ELEMENTS, added));
        self.0.transaction(NFTABLES, all)
    }

    /// Gives the sign of life without which no rule matches. Kernels before 6.12 renew no element: it is put in anew.
    pub(super) fn beat(&mut self) -> io::Result<()> {
        let emptied = of_set(DELETE_ELEMENTS, 0, ALIVE);
        self.0.transaction(NFTABLES, vec![emptied, alive()])
    }

    /// What is there; `None` without a table.
    pub(super) fn read(&mut self) -> io::Result<Option<Found>> {
        let mut found = Found { cold: BTreeSet::new(), rules: 0 };
        for set in [COLD4, COLD6] {
            let listed = self.0.list(of_set(LIST_ELEMENTS, NLM_F_DUMP, set), |entry| found.cold.extend(keys(entry)));
            match listed {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                listed => listed?,
            }
        }
        let mut request = Message::new(LIST_RULES, NLM_F_REQUEST | NLM_F_DUMP, libc::NFPROTO_INET);
        request.text(IN_TABLE, TABLE);
        self.0.list(request, |_| found.rules += 1)?;
        Ok(Some(found))
    }

    /// Takes the table out, if it is there.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.0.transaction(NFTABLES, vec![table(NEW_TABLE), table(DELETE_TABLE)])
    }
}

/// How many rules there should be.
pub(super) fn rules() -> usize {
    rules::all().len()
}

fn table(kind: u16) -> Message {
    let create = if kind == NEW_TABLE { NLM_F_CREATE } else { 0 };
    let mut message = Message::new(kind, NLM_F_REQUEST | create, libc::NFPROTO_INET);
    message.text(IN_TABLE, TABLE);
    message
}

fn set(id: u32, name: &str, (kind, length): (u32, u32), timeout: Option<u64>) -> Message {
    let mut message = of_set(NEW_SET, NLM_F_CREATE, name);
    message.number(SET_KEY_TYPE, kind);
    message.number(SET_KEY_LENGTH, length);
    message.number(SET_ID, id);
    if let Some(millis) = timeout {
        message.number(SET_FLAGS, WITH_TIMEOUT);
        message.attribute(SET_TIMEOUT, &millis.to_be_bytes());
    }
    message
}

fn chain(name: &str, (hook, priority): (u32, i32)) -> Message {
    let mut message = Message::new(NEW_CHAIN, NLM_F_REQUEST | NLM_F_CREATE, libc::NFPROTO_INET);
    message.text(IN_TABLE, TABLE);
    message.text(3, name);
    message.nest(4, |where_| {
        where_.number(1, hook);
        where_.attribute(2, &priority.to_be_bytes());
    });
    message.text(7, "filter");
    message
}

fn of_set(kind: u16, flags: u16, name: &str) -> Message {
    let mut message = Message::new(kind, NLM_F_REQUEST | flags, libc::NFPROTO_INET);
    message.text(IN_TABLE, TABLE);
    message.text(NAME, name);
    message
}

fn alive() -> Message {
    elements(NEW_ELEMENTS, ALIVE, [IPV4, IPV6].map(|family| vec![family]))
}

fn addresses<'a>(kind: u16, addresses: impl IntoIterator<Item = &'a SocketAddr>) -> Vec<Message> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|addr| addr.is_ipv4());
    let of = |set, all: Vec<&SocketAddr>| -> Vec<_> {
        all.chunks(ELEMENTS_OF_MESSAGE).map(|some| elements(kind, set, some.iter().map(|addr| key(addr)))).collect()
    };
    let mut messages = of(COLD4, v4);
    messages.extend(of(COLD6, v6));
    messages
}

fn elements(kind: u16, set: &str, keys: impl IntoIterator<Item = Vec<u8>>) -> Message {
    let create = if kind == NEW_ELEMENTS { NLM_F_CREATE } else { 0 };
    let mut message = of_set(kind, create, set);
    message.nest(ELEMENTS, |list| {
        for key in keys {
            list.nest(LIST_ELEMENT, |element| element.nest(KEY, |data| data.attribute(VALUE, &key)));
        }
    });
    message
}

/// An address and a port, in network byte order, the port in a register of its own.
fn key(addr: &SocketAddr) -> Vec<u8> {
    let mut key = match addr.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    key.extend(addr.port().to_be_bytes());
    key.extend([0; 2]);
    key
}

/// The addresses of a list of elements.
fn keys(entry: &Received<'_>) -> Vec<SocketAddr> {
    let of = |bytes, kind| attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value);
    let lists = entry.attributes().filter(|(kind, _)| *kind == ELEMENTS).flat_map(|(_, list)| attributes(list));
    lists.filter_map(|(_, element)| addr(of(of(element, KEY)?, VALUE)?)).collect()
}

fn addr(key: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = key.split_at_checked(key.len().checked_sub(4)?)?;
    let ip = match ip.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::received;

    #[test]
    fn addresses_come_back_from_their_elements() {
        let all: BTreeSet<SocketAddr> =
            ["10.96.0.1:80", "10.96.0.2:65535", "[fd00:96::1]:443"].map(|addr| addr.parse().unwrap()).into();
        let found: BTreeSet<_> = addresses(NEW_ELEMENTS, &all)
            .into_iter()
            .flat_map(|message| received(&message.finish(1)).flat_map(|entry| keys(&entry)).collect::<Vec<_>>())
            .collect();
        assert_eq!(found, all);
    }

    #[test]
    fn many_addresses_are_told_in_several_messages() {
        let all: BTreeSet<SocketAddr> = (0..3000).map(|port| SocketAddr::from(([0xfd; 16], port))).collect();
        let messages = addresses(NEW_ELEMENTS, &all);
        assert_eq!(messages.len(), 3);
        let found = messages.into_iter().map(|message| message.finish(1));
        assert_eq!(
            found.map(|bytes| received(&bytes).map(|entry| keys(&entry).len()).sum::<usize>()).sum::<usize>(),
            3000
        );
    }

    #[test]
    fn keys_of_no_address_are_left_out() {
        for key in [&[][..], &[0; 3], &[0; 4], &[0; 9], &[0; 24]] {
            assert_eq!(addr(key), None);
        }
    }
}
