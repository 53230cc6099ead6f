//! Where the kernel's sockets have the fields that the program reads, by the kernel's own type information (BTF). The crate
//! that loads programs reads it too, and keeps members of structures to itself.

use std::{fs, io};

use interceptor_common::queue::Fields;

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// Bytes of a type before what its kind adds.
const TYPE: usize = 12;
/// Bytes of a member of a structure.
const MEMBER: usize = 12;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Structures without a name within structures are looked into as far as this.
const DEPTH: u32 = 4;

/// What is wrong with the type information.
#[derive(Debug, thiserror::Error)]
pub(super) enum FieldsError {
    #[error("{PATH}: {0}")]
    Io(#[from] io::Error),
    #[error("{PATH} has a form that is not known")]
    Form,
    #[error("{PATH} has no {structure}.{member}")]
    Missing { structure: &'static str, member: &'static str },
}

/// The type information, with the place of each type.
struct Types<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    /// By number, which begins at one.
    places: Vec<usize>,
}

/// Reads it.
pub(super) fn read() -> Result<Fields, FieldsError> {
    fields(&fs::read(PATH)?)
}

fn fields(bytes: &[u8]) -> Result<Fields, FieldsError> {
    let types = Types::parse(bytes).ok_or(FieldsError::Form)?;
    let field = |structure, member| types.member(structure, member).ok_or(FieldsError::Missing { structure, member });
    Ok(Fields {
        backlog: field("sock", "sk_ack_backlog")?,
        group: field("sock", "sk_reuseport_cb")?,
        members: field("sock_reuseport", "num_socks")?,
        member: field("sock_reuseport", "socks")?,
    })
}

// === impl Types ===

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let header = size(word(bytes, 4)?);
        let part = |at| {
            let from = header.checked_add(size(word(bytes, at)?))?;
            bytes.get(from..from.checked_add(size(word(bytes, at + 4)?))?)
        };
        let (types, strings) = (part(8)?, part(16)?);
        let mut places = Vec::new();
        let mut at = 0;
        while at < types.len() {
            places.push(at);
            let (kind, members) = kind(word(types, at + 4)?);
            at += TYPE + more(kind, members)?;
        }
        Some(Self { bytes: types, strings, places })
    }

    /// How many bytes into a structure a member of it is.
    fn member(&self, structure: &str, member: &str) -> Option<u32> {
        let is_it = |at: &usize| {
            let info = word(self.bytes, *at + 4).map(kind);
            info.is_some_and(|(kind, members)| kind == STRUCT && members > 0)
                && self.name(*at) == Some(structure.as_bytes())
        };
        let at = self.places.iter().copied().find(is_it)?;
        self.find(at, member.as_bytes(), DEPTH).map(|bits| bits / 8)
    }

    /// How many bits into the type at a place a member is, also if it is one of a member without a name.
    fn find(&self, at: usize, member: &[u8], depth: u32) -> Option<u32> {
        let info = word(self.bytes, at + 4)?;
        let (kind, members) = kind(info);
        if !matches!(kind, STRUCT | UNION) {
            return None;
        }
        (0..size(members)).find_map(|number| {
            let one = at + TYPE + number * MEMBER;
            let offset = word(self.bytes, one + 8)?;
            // With this bit the upper byte is the width of a bit field.
            let bits = if info >> 31 == 1 { offset & 0xff_ffff } else { offset };
            let name = self.name(one)?;
            if name == member {
                return Some(bits);
            }
            let within = *self.places.get(size(word(self.bytes, one + 4)?).checked_sub(1)?)?;
            (name.is_empty() && depth > 0).then(|| self.find(within, member, depth - 1))?.map(|more| bits + more)
        })
    }

    /// The name whose place among the strings is at a place among the types.
    fn name(&self, at: usize) -> Option<&'a [u8]> {
        let rest = self.strings.get(size(word(self.bytes, at)?)..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

/// A type's kind, and how many members it has.
fn kind(info: u32) -> (u32, u32) {
    (info >> 24 & 0x1f, info & 0xffff)
}

/// How many bytes a kind adds to its type; `None` if it is not known, and with it where the next type begins.
fn more(kind: u32, members: u32) -> Option<usize> {
    let each = match kind {
        // Pointers, forward declarations, names for other types, qualifiers, functions, floats, tags.
        2 | 7..=12 | 16 | 18 => return Some(0),
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => return Some(4),
        // Arrays.
        3 => return Some(12),
        // Structures, unions, sections, enumerations of 64 bits.
        4 | 5 | 15 | 19 => 12,
        // Enumerations, prototypes.
        6 | 13 => 8,
        _ => return None,
    };
    Some(each * size(members))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes)
}

fn size(word: u32) -> usize {
    usize::try_from(word).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Types one after the other, with the names that they refer to.
    fn file(types: &[u32], names: &[&str]) -> Vec<u8> {
        let strings: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), &[0]].concat()).collect();
        let lengths = [types.len() * 4, strings.len()].map(|length| u32::try_from(length).unwrap());
        let header = [0x0001_eb9f, 24, 0, lengths[0], lengths[0], lengths[1]];
        let words = header.iter().chain(types).flat_map(|word| word.to_ne_bytes());
        words.chain(strings).collect()
    }

    #[test]
    fn a_member_is_found_also_in_a_structure_without_a_name() {
        let names = ["", "sock", "sk_ack_backlog", "sk_reuseport_cb", "sock_reuseport", "num_socks", "socks"];
        let name = |wanted| {
            let before = names.iter().take_while(|name| **name != wanted);
            before.map(|name| u32::try_from(name.len()).unwrap() + 1).sum::<u32>()
        };
        #[rustfmt::skip]
        let types = [
            // 1: an integer. 2: a structure without a name.
            0, 1 << 24, 4, 32,
            0, 4 << 24 | 1, 4, name("sk_ack_backlog"), 1, 32,
            // 3: a declaration of that name, and 4: the structure, with offsets of the other kind.
            name("sock"), 7 << 24, 0,
            name("sock"), 1 << 31 | 4 << 24 | 2, 24, 0, 2, 64, name("sk_reuseport_cb"), 1, 128,
            name("sock_reuseport"), 4 << 24 | 2, 24, name("num_socks"), 1, 16, name("socks"), 1, 192,
        ];
        let found = fields(&file(&types, &names)).unwrap();
        assert_eq!(found, Fields { backlog: 12, group: 16, members: 2, member: 24 });
        let error = fields(&file(&types[..10], &names)).unwrap_err().to_string();
        assert!(error.ends_with("has no sock.sk_ack_backlog"), "{error}");
    }

    #[test]
    fn a_form_that_is_not_known_is_refused() {
        assert!(matches!(fields(&[]), Err(FieldsError::Form)));
        assert!(matches!(fields(&file(&[0, 31 << 24, 0], &[""])), Err(FieldsError::Form)));
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_they_are_read_or_refused(types in vec(any::<u32>(), 0..60), cut in 0..300_usize) {
            let mut bytes = file(&types, &["", "sock", "sk_ack_backlog"]);
            bytes.truncate(bytes.len().saturating_sub(cut));
            _ = fields(&bytes);
        }

        #[test]
        fn structures_of_structures_end(members in vec((1..6_u32, any::<u32>()), 1..5)) {
            let count = u32::try_from(members.len()).unwrap();
            let one = |_| [&[1, 4 << 24 | count, 0][..], &members.iter().flat_map(|(of, at)| [0, *of, *at]).collect::<Vec<_>>()].concat();
            let types: Vec<_> = (0..5).flat_map(one).collect();
            _ = fields(&file(&types, &["", "sock"]));
        }
    }
}
