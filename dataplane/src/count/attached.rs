//! The programs, and the cgroups that they are attached to.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{MapData, ProgramArray},
    programs::{
        CgroupAttachMode, CgroupSkb,
        CgroupSkbAttachType::{self, Egress, Ingress},
        Program, ProgramError, SockOps,
        cgroup_skb::CgroupSkbLink,
        sock_ops::SockOpsLink,
    },
};
use interceptor_common::Jump;
use interceptor_core::{UpstreamId, mapops::Slot};

use super::{CountError, maps};
use crate::{
    maps::gone,
    open::words,
    pins::{self, Pinned},
    probe::{self, Probed},
    syscall::{self, Hook},
};

const ACCEPTED: &str = "count_accepted";
pub(super) const RECEIVED: &str = "count_received";
pub(super) const SENT: &str = "count_sent";
/// Those to which the others jump.
const SETTLE: [&str; 2] = ["settle_received", "settle_sent"];
const STREAMS: [&str; 2] = ["streams_received", "streams_sent"];

/// The loaded programs.
pub(super) struct Programs {
    ids: Vec<(&'static str, u32)>,
    /// Why there are none for HTTP/2, if so.
    without_streams: Option<String>,
    _jumps: Jumps,
}

/// Where programs jump, by the segment's way. Dropping it would leave them without those they jump to.
struct Jumps([ProgramArray<MapData>; 2]);

/// The programs on one pod's cgroup. Dropping it takes them off.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) path: PathBuf,
    /// The upstreams that list the pod.
    pub(super) upstreams: HashSet<UpstreamId>,
    /// The slots that its sockets may bear.
    pub(super) slots: BTreeSet<Slot>,
    pub(super) links: Links,
}

/// One link a program: held, so that they stay, or pinned.
#[derive(Debug)]
pub(super) enum Links {
    Own { _segments: [CgroupSkbLink; 2], _accepted: SockOpsLink },
    Pinned([Pinned; 3]),
}

/// What a pinned link's name continues with is the pod's UID. The order is that in which they are attached.
const PREFIXES: [&str; 3] = ["sent-", "received-", "accepted-"];

// === impl Programs ===

impl Programs {
    /// Hands the programs to the verifier, also those for HTTP/2 if it can be had: without them its connections count as those of any
    /// other protocol.
    pub(super) fn load(ebpf: &mut Ebpf, probed: Probed) -> Result<Self, CountError> {
        let names = [ACCEPTED, RECEIVED, SENT].into_iter().chain(SETTLE);
        let mut ids = names.map(|name| load(ebpf, name, probed.lacks())).collect::<Result<Vec<_>, _>>()?;
        let mut jumps = Jumps::take(ebpf)?;
        jumps.lead(ebpf, Jump::SETTLE, SETTLE)?;
        jumps.lead(ebpf, Jump::AGAIN, [RECEIVED, SENT])?;
        let streams = if probed.perfmon {
            streams(ebpf, &mut jumps)
                .map_err(|error| format!("{}{}", probe::too_old((5, 17), "bpf_loop"), words(&error)))
        } else {
            Err("missing CAP_PERFMON".to_owned())
        };
        let without_streams = match streams {
            Ok(of_streams) => {
                ids.extend(of_streams);
                None
            }
            Err(why) => {
                jumps.forget(Jump::STREAMS)?;
                Some(why)
            }
        };
        Ok(Self { ids, without_streams, _jumps: jumps })
    }

    /// Why requests of HTTP/2 are not counted, if so.
    pub(super) fn without_streams(&self) -> Option<&str> {
        self.without_streams.as_deref()
    }

    pub(super) fn ids(&self) -> Vec<(&'static str, u32)> {
        self.ids.clone()
    }

    /// Attaches all of them: first those that see segments, so that no connection is tagged whose first request they miss.
    /// Links always allow several programs on a cgroup; the flag for it is refused together with them. With names for pins,
    /// to the links that are there, or they are pinned.
    #[expect(clippy::unused_self, reason = "that there is one shows that the programs are loaded")]
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        dir: &fs::File,
        pins: Option<[PathBuf; 3]>,
    ) -> Result<Links, ProgramError> {
        let Some(pins) = pins else {
            let sent = segments(program(ebpf, SENT)?, dir, Egress)?;
            let received = segments(program(ebpf, RECEIVED)?, dir, Ingress)?;
            return Ok(Links::Own { _segments: [sent, received], _accepted: accepted(program(ebpf, ACCEPTED)?, dir)? });
        };
        let attached = pin_all(ebpf, dir, pins.clone());
        if attached.is_err() {
            pins.map(Pinned::at).into_iter().for_each(Pinned::remove);
        }
        attached.map(Links::Pinned)
    }

    /// Whether all of them are on a cgroup.
    pub(super) fn are_on(&self, cgroup: &Path) -> io::Result<bool> {
        let dir = fs::File::open(cgroup)?;
        for (name, hook) in [(SENT, Hook::Sent), (RECEIVED, Hook::Received), (ACCEPTED, Hook::SockOps)] {
            let there = syscall::attached(dir.as_fd(), hook)?.ids;
            if !self.ids.iter().any(|(of, id)| *of == name && there.contains(id)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Loads the programs for HTTP/2, and only if both are accepted lets others jump there.
fn streams(ebpf: &mut Ebpf, jumps: &mut Jumps) -> Result<[(&'static str, u32); 2], CountError> {
    let [received, sent] = STREAMS;
    let ids = [load(ebpf, received, "")?, load(ebpf, sent, "")?];
    jumps.lead(ebpf, Jump::STREAMS, STREAMS)?;
    Ok(ids)
}

fn pin_all(
    ebpf: &mut Ebpf,
    dir: &fs::File,
    [sent, received, accepts]: [PathBuf; 3],
) -> Result<[Pinned; 3], ProgramError> {
    let seen = |program: &mut Program, direction| pins::descriptor(segments(program, dir, direction)?);
    let sent = Pinned::link(sent, program(ebpf, SENT)?, |program| seen(program, Egress))?;
    let received = Pinned::link(received, program(ebpf, RECEIVED)?, |program| seen(program, Ingress))?;
    let accept = |program: &mut Program| pins::descriptor(accepted(program, dir)?);
    Ok([sent, received, Pinned::link(accepts, program(ebpf, ACCEPTED)?, accept)?])
}

fn segments(
    program: &mut Program,
    dir: &fs::File,
    direction: CgroupSkbAttachType,
) -> Result<CgroupSkbLink, ProgramError> {
    let segments: &mut CgroupSkb = program.try_into()?;
    let id = segments.attach(dir, direction, CgroupAttachMode::Single)?;
    segments.take_link(id)
}

fn accepted(program: &mut Program, dir: &fs::File) -> Result<SockOpsLink, ProgramError> {
    let accepted: &mut SockOps = program.try_into()?;
    let id = accepted.attach(dir, CgroupAttachMode::Single)?;
    accepted.take_link(id)
}

/// Where a pod's links are pinned.
pub(super) fn pins(folder: &Path, uid: &str) -> [PathBuf; 3] {
    PREFIXES.map(|prefix| folder.join(format!("{prefix}{uid}")))
}

/// Pods of which links are pinned.
pub(super) fn pinned(folder: &Path) -> BTreeSet<Arc<str>> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let uid = |name: &str| PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).map(Arc::from);
    names.filter_map(|name| uid(name.to_str()?)).collect()
}

// === impl Jumps ===

impl Jumps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, CountError> {
        let mut take = |map| {
            let taken = ebpf.take_map(map).ok_or_else(|| CountError::Map(format!("the object has no map {map}")))?;
            ProgramArray::try_from(taken).map_err(|error| CountError::Map(format!("the object's map {map}: {error}")))
        };
        Ok(Self([take(maps::JUMPS_RECEIVED)?, take(maps::JUMPS_SENT)?]))
    }

    /// Lets programs jump from a place to these, each those of its way.
    fn lead(&mut self, ebpf: &Ebpf, place: u32, to: [&'static str; 2]) -> Result<(), CountError> {
        for (array, name) in self.0.iter_mut().zip(to) {
            let wrong =
                |error: &dyn std::error::Error| CountError::Map(format!("no jump to the program {name}: {error}"));
            let program =
                ebpf.program(name).ok_or_else(|| CountError::Map(format!("the object has no program {name}")))?;
            let program: &CgroupSkb = program.try_into().map_err(|error: ProgramError| wrong(&error))?;
            let fd = program.fd().map_err(|error| wrong(&error))?;
            array.set(place, fd, 0).map_err(|error| wrong(&error))?;
        }
        Ok(())
    }

    /// Lets no program jump from a place any more, where those of a process before may.
    fn forget(&mut self, place: u32) -> Result<(), CountError> {
        let wrong = |error: io::Error| CountError::Map(format!("programs go on to jump to others: {error}"));
        self.0.iter_mut().try_for_each(|array| gone(array.clear_index(&place)).map_err(wrong))
    }
}

// === impl Links ===

impl Links {
    /// Takes the programs off, also those that are pinned.
    pub(super) fn take_off(self) {
        if let Self::Pinned(pins) = self {
            pins.into_iter().for_each(Pinned::remove);
        }
    }

    /// Pins what is not pinned any more: how many are again.
    pub(super) fn pin_again(&self) -> io::Result<usize> {
        let Self::Pinned(pins) = self else { return Ok(0) };
        pins::again(pins)
    }
}

// === impl Attached ===

impl Attached {
    /// Takes the programs off, also those that are pinned.
    pub(super) fn detach(self) {
        self.links.take_off();
    }

    /// Whether the cgroup still exists.
    pub(super) fn is_there(&self) -> bool {
        self.path.is_dir()
    }
}

fn load(ebpf: &mut Ebpf, name: &'static str, lacks: &'static str) -> Result<(&'static str, u32), CountError> {
    let mut load = || match program(ebpf, name)? {
        Program::SockOps(program) => {
            program.load()?;
            Ok(program.info()?.id())
        }
        program => {
            let program: &mut CgroupSkb = program.try_into()?;
            program.load()?;
            Ok(program.info()?.id())
        }
    };
    let id = load().map_err(|error| CountError::Load { name, lacks, source: Box::new(error) })?;
    Ok((name, id))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, ProgramError> {
    ebpf.program_mut(name).ok_or_else(|| ProgramError::InvalidName { name: name.to_owned() })
}
