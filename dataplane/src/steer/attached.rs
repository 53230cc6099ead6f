//! The steering programs, and the cgroups that they are attached to.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, cgroup_sock_addr::CgroupSockAddrLink},
};

use crate::{
    cgroup,
    pins::{self, Pinned},
    syscall::Hook,
};

/// With what a pinned link's name begins; it continues with the cgroup's id. In the order in which they are attached: who is
/// steered is also told of the Service.
const PROGRAMS: [(&str, &str); 4] = [
    ("peer4-", "steer_peer4"),
    ("peer6-", "steer_peer6"),
    ("connect4-", "steer_connect4"),
    ("connect6-", "steer_connect6"),
];

const HOOKS: [Hook; 4] = [Hook::PeerName4, Hook::PeerName6, Hook::Connect4, Hook::Connect6];

/// The loaded programs' ids.
pub(super) struct Programs([u32; 4]);

/// The programs on one cgroup: held, so that they stay, or pinned.
#[derive(Debug)]
pub(super) enum Links {
    Own { _links: Vec<CgroupSockAddrLink> },
    Pinned([Pinned; 4]),
}

// === impl Programs ===

impl Programs {
    /// Hands the programs to the verifier.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self, (&'static str, ProgramError)> {
        let mut ids = [0; 4];
        for (id, (_, name)) in ids.iter_mut().zip(PROGRAMS) {
            let mut load = || {
                let program: &mut CgroupSockAddr = program(ebpf, name)?.try_into()?;
                program.load()?;
                Ok(program.info()?.id())
            };
            *id = load().map_err(|error| (name, error))?;
        }
        Ok(Self(ids))
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.0
    }
}

// === impl Links ===

impl Links {
    /// Attaches all of them. Links always allow several programs on a cgroup; the flag for it is refused together with them.
    pub(super) fn new(ebpf: &mut Ebpf, path: &Path, pins: Option<[PathBuf; 4]>) -> Result<Self, ProgramError> {
        cgroup::nobody_gives_way(path, &HOOKS).map_err(ProgramError::IOError)?;
        let dir = fs::File::open(path).map_err(ProgramError::IOError)?;
        let Some(pins) = pins else {
            let links =
                PROGRAMS.iter().map(|(_, name)| attach(program(ebpf, name)?, &dir)).collect::<Result<_, _>>()?;
            return Ok(Self::Own { _links: links });
        };
        match pin_all(ebpf, &dir, &pins) {
            Ok(links) => Ok(Self::Pinned(links)),
            Err(error) => {
                Self::Pinned(pins.map(Pinned::at)).detach();
                Err(error)
            }
        }
    }

    /// Pins what is not pinned any more: how many are again.
    pub(super) fn pin_again(&self) -> io::Result<usize> {
        let Self::Pinned(pins) = self else { return Ok(0) };
        pins::again(pins)
    }

    /// Takes the programs off, also those that are pinned: first those that steer.
    pub(super) fn detach(self) {
        if let Self::Pinned(pins) = self {
            pins.into_iter().rev().for_each(Pinned::remove);
        }
    }
}

fn pin_all(ebpf: &mut Ebpf, dir: &fs::File, pins: &[PathBuf; 4]) -> Result<[Pinned; 4], ProgramError> {
    let mut link = |at: usize| {
        let attach = |program: &mut Program| pins::descriptor(attach(program, dir)?);
        Pinned::link(pins[at].clone(), program(ebpf, PROGRAMS[at].1)?, attach)
    };
    Ok([link(0)?, link(1)?, link(2)?, link(3)?])
}

/// Where a cgroup's links are pinned.
pub(super) fn pins(folder: &Path, id: u64) -> [PathBuf; 4] {
    PROGRAMS.map(|(prefix, _)| folder.join(format!("{prefix}{id}")))
}

/// Gives the pinned links of a process before these programs. What is not complete is taken off.
pub(super) fn taken_over(ebpf: &Ebpf, folder: &Path) -> BTreeMap<u64, Links> {
    let mut found: BTreeMap<u64, usize> = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((id, program)) = name.to_str().and_then(parse) else { continue };
        let replaced = ebpf.program(program).is_some_and(|program| Pinned::replaced(entry.path(), program).is_some());
        *found.entry(id).or_default() += usize::from(replaced);
    }
    let mut taken = BTreeMap::new();
    for (id, replaced) in found {
        let links = Links::Pinned(pins(folder, id).map(Pinned::at));
        if replaced == PROGRAMS.len() {
            taken.insert(id, links);
        } else {
            links.detach();
        }
    }
    taken
}

/// The cgroup's id and the program's name in the name of a pin.
fn parse(name: &str) -> Option<(u64, &'static str)> {
    PROGRAMS.iter().find_map(|(prefix, program)| Some((name.strip_prefix(prefix)?.parse().ok()?, *program)))
}

fn attach(program: &mut Program, dir: &fs::File) -> Result<CgroupSockAddrLink, ProgramError> {
    let program: &mut CgroupSockAddr = program.try_into()?;
    let id = program.attach(dir, CgroupAttachMode::Single)?;
    program.take_link(id)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, ProgramError> {
    ebpf.program_mut(name).ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> ProgramError {
    ProgramError::InvalidName { name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_tells_the_cgroup_and_the_program() {
        for pin in pins(Path::new("/folder"), 7) {
            let name = pin.file_name().unwrap().to_str().unwrap();
            let (id, program) = parse(name).unwrap();
            assert_eq!(id, 7);
            assert!(program.ends_with(name.split('-').next().unwrap()), "{name} {program}");
        }
        for other in ["FRONTENDS", "connect4-", "connect4-x", "sent-7"] {
            assert_eq!(parse(other), None);
        }
    }
}
