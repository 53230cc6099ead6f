//! The rules of our table, as expressions of the kernel's packet filter: `linux/netfilter/nf_tables.h`.

use interceptor_common::hold::{MARK, Seen};

use super::{log::GROUP, table::TABLE};
use crate::nfnetlink::{Message, NLM_F_CREATE, NLM_F_REQUEST};

pub(super) const OUTPUT: &str = "output";
pub(super) const INPUT: &str = "input";
pub(super) const ALIVE: &str = "alive";
pub(super) const COLD4: &str = "cold4";
pub(super) const COLD6: &str = "cold6";

/// `NF_INET_LOCAL_IN`, `NF_INET_LOCAL_OUT`.
pub(super) const LOCAL_IN: u32 = 1;
pub(super) const LOCAL_OUT: u32 = 3;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;

/// Message and attributes of a rule, with `NLM_F_APPEND`.
const NEW_RULE: u16 = 10 << 8 | 6;
const NLM_F_APPEND: u16 = 0x800;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;

const META_MARK: u32 = 3;
const META_PROTOCOL: u32 = 15;
const META_TRANSPORT: u32 = 16;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// Registers of four bytes, one after the other; the verdict has one of its own.
const VERDICT: u32 = 0;
const FIRST: u32 = 8;

/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// Where TCP has its numbers and flags.
const SEQUENCE_AT: u32 = 4;
const FLAGS_AT: u32 = 13;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A family of addresses, as rules see it.
#[derive(Clone, Copy)]
struct Family {
    number: u8,
    cold: &'static str,
    /// Where the header has its source and its destination, and how long they are.
    source: u32,
    destination: u32,
    length: u32,
    /// What is there in a header without options or extensions.
    plain: (u32, u8),
}

const FAMILIES: [Family; 2] = [
    Family { number: IPV4, cold: COLD4, source: 12, destination: 16, length: 4, plain: (0, 0x45) },
    Family { number: IPV6, cold: COLD6, source: 8, destination: 24, length: 16, plain: (6, TCP) },
];

/// Which end of a connection is the Service.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// The expressions of a rule under construction.
struct Rule<'a>(&'a mut Message);

/// Every rule, in order.
pub(super) fn all() -> Vec<Message> {
    let mut rules = output();
    rules.extend(input());
    rules
}

/// What the node itself sends. What we send on is let go, without its mark.
fn output() -> Vec<Message> {
    let rule = |fill: &dyn Fn(&mut Rule<'_>)| rule(OUTPUT, fill);
    let mut rules = vec![
        rule(&|rule| rule.not_tcp().verdict(ACCEPT)),
        rule(&|rule| rule.flags(SYN | RST | ACK).differs(&[SYN]).verdict(ACCEPT)),
        rule(&|rule| rule.ours().verdict(ACCEPT)),
    ];
    for family in FAMILIES {
        rules.push(rule(&|rule| {
            let (at, byte) = family.plain;
            let rule = rule.alive(family).payload(NETWORK, at, 1, FIRST).equals(&[byte]);
            rule.cold(family, End::Destination).log().verdict(DROP);
        }));
    }
    rules
}

/// What the node itself receives: answers to what was sent on, and refusals, which have the number zero as those of an open
/// connection have not.
fn input() -> Vec<Message> {
    let rule = |fill: &dyn Fn(&mut Rule<'_>)| rule(INPUT, fill);
    let mut rules = vec![
        rule(&|rule| rule.not_tcp().verdict(ACCEPT)),
        rule(&|rule| rule.flags(SYN | RST).equals(&[0]).verdict(ACCEPT)),
        rule(&|rule| rule.ours().verdict(ACCEPT)),
    ];
    for family in FAMILIES {
        rules.push(rule(&|rule| {
            let rule = rule.alive(family).flags(SYN | RST | ACK).equals(&[SYN | ACK]);
            rule.cold(family, End::Source).log().verdict(ACCEPT);
        }));
        rules.push(rule(&|rule| {
            let rule = rule.alive(family).flags(SYN | RST | ACK).equals(&[RST | ACK]);
            let rule = rule.payload(TRANSPORT, SEQUENCE_AT, 4, FIRST).equals(&[0; 4]);
            rule.cold(family, End::Source).log().verdict(DROP);
        }));
    }
    rules
}

fn rule(chain: &str, fill: impl Fn(&mut Rule<'_>)) -> Message {
    let mut message = Message::new(NEW_RULE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND, libc::NFPROTO_INET);
    message.text(RULE_TABLE, TABLE);
    message.text(RULE_CHAIN, chain);
    message.nest(RULE_EXPRESSIONS, |expressions| fill(&mut Rule(expressions)));
    message
}

// === impl Rule ===

impl Rule<'_> {
    fn not_tcp(&mut self) -> &mut Self {
        self.meta(META_TRANSPORT).differs(&[TCP])
    }

    /// Those of the flags that are set.
    fn flags(&mut self, of: u8) -> &mut Self {
        self.payload(TRANSPORT, FLAGS_AT, 1, FIRST).masked(of)
    }

    /// A packet of the agent's; takes its mark off.
    fn ours(&mut self) -> &mut Self {
        self.meta(META_MARK).equals(&MARK.to_ne_bytes());
        self.expression("immediate", |data| {
            data.number(1, FIRST);
            data.nest(2, |value| value.attribute(1, &[0; 4]));
        });
        self.expression("meta", |data| {
            data.number(2, META_MARK);
            data.number(3, FIRST);
        })
    }

    /// A packet of the family, while the agent gives signs of life.
    fn alive(&mut self, family: Family) -> &mut Self {
        self.meta(META_PROTOCOL).equals(&[family.number]).lookup(ALIVE)
    }

    /// One end of the connection is a cold Service.
    fn cold(&mut self, family: Family, end: End) -> &mut Self {
        let (address, port) = match end {
            End::Source => (family.source, 0),
            End::Destination => (family.destination, 2),
        };
        self.payload(NETWORK, address, family.length, FIRST);
        self.payload(TRANSPORT, port, 2, FIRST + family.length / 4).lookup(family.cold)
    }

    fn meta(&mut self, key: u32) -> &mut Self {
        self.expression("meta", |data| {
            data.number(1, FIRST);
            data.number(2, key);
        })
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) -> &mut Self {
        self.expression("payload", |data| {
            data.number(1, register);
            data.number(2, base);
            data.number(3, offset);
            data.number(4, length);
        })
    }

    fn masked(&mut self, mask: u8) -> &mut Self {
        self.expression("bitwise", |data| {
            data.number(1, FIRST);
            data.number(2, FIRST);
            data.number(3, 1);
            data.nest(4, |value| value.attribute(1, &[mask]));
            data.nest(5, |value| value.attribute(1, &[0]));
        })
    }

    fn equals(&mut self, bytes: &[u8]) -> &mut Self {
        self.compare(0, bytes)
    }

    fn differs(&mut self, bytes: &[u8]) -> &mut Self {
        self.compare(1, bytes)
    }

    fn compare(&mut self, how: u32, bytes: &[u8]) -> &mut Self {
        self.expression("cmp", |data| {
            data.number(1, FIRST);
            data.number(2, how);
            data.nest(3, |value| value.attribute(1, bytes));
        })
    }

    fn lookup(&mut self, set: &str) -> &mut Self {
        self.expression("lookup", |data| {
            data.text(1, set);
            data.number(2, FIRST);
        })
    }

    fn log(&mut self) -> &mut Self {
        self.expression("log", |data| {
            data.attribute(1, &GROUP.to_be_bytes());
            data.number(3, u32::try_from(Seen::MOST).unwrap_or(u32::MAX));
        })
    }

    fn verdict(&mut self, verdict: u32) {
        self.expression("immediate", |data| {
            data.number(1, VERDICT);
            data.nest(2, |value| value.nest(2, |code| code.number(1, verdict)));
        });
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Message)) -> &mut Self {
        self.0.nest(LIST_ELEMENT, |expression| {
            expression.text(1, name);
            expression.nest(2, fill);
        });
        self
    }
}
