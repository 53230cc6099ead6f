//! A longest-prefix map of the programs, which holds what user space wants it to.

use std::{collections::BTreeMap, io};

use aya::{
    Ebpf, Pod,
    maps::{
        MapData,
        lpm_trie::{Key, LpmTrie},
    },
};

use crate::maps::{WrongMap, gone, os_error, take};

/// What is in it: each key with its bits, and what it means.
pub(in crate::count) type Prefixes<K> = BTreeMap<(u32, K), u32>;

/// The map.
pub(super) struct Trie<K> {
    map: LpmTrie<MapData, K, u32>,
    installed: Prefixes<K>,
}

// === impl Trie ===

impl<K: Pod + Ord> Trie<K> {
    /// Takes the map of that name. A pinned one holds what a process before has put into it.
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, WrongMap> {
        let map: LpmTrie<MapData, K, u32> = take(ebpf, name)?;
        let entries: Result<Vec<_>, _> = map.iter().collect();
        let entries = entries.map_err(|error| WrongMap::new(name, Some(error)))?;
        let installed = entries.into_iter().map(|(key, meaning)| ((key.prefix_len(), key.data()), meaning)).collect();
        Ok(Self { map, installed })
    }

    /// Makes it hold this, adding before removing. Says how many did not fit.
    pub(super) fn set(&mut self, desired: &Prefixes<K>) -> io::Result<usize> {
        let mut refused = 0;
        for (entry @ (bits, key), meaning) in desired {
            if self.installed.get(entry) == Some(meaning) {
                continue;
            }
            match self.map.insert(&Key::new(*bits, *key), meaning, 0).map_err(os_error) {
                Ok(()) => _ = self.installed.insert(*entry, *meaning),
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::E2BIG | libc::ENOMEM)) => {
                    refused += 1;
                }
                Err(error) => return Err(error),
            }
        }
        let stale: Vec<_> = self.installed.keys().filter(|entry| !desired.contains_key(*entry)).copied().collect();
        for entry @ (bits, key) in stale {
            gone(self.map.remove(&Key::new(bits, key)))?;
            self.installed.remove(&entry);
        }
        Ok(refused)
    }
}
