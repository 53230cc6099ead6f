//! The programs, and the cgroups that they are attached to.

use std::{collections::HashSet, fs, path::PathBuf};

use aya::{
    Ebpf,
    maps::{MapData, ProgramArray},
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, Program, ProgramError, SockOps, cgroup_skb::CgroupSkbLink,
        sock_ops::SockOpsLink,
    },
};
use interceptor_core::UpstreamId;

use super::CountError;

const ACCEPTED: &str = "count_accepted";
const RECEIVED: &str = "count_received";
const SENT: &str = "count_sent";
/// Those to which the others jump, and by which map.
const STREAMS: [(&str, &str); 2] = [("streams_received", "GO_ON_RECEIVED"), ("streams_sent", "GO_ON_SENT")];

/// The loaded programs.
pub(super) struct Programs {
    ids: Vec<(&'static str, u32)>,
    /// Dropping it would leave the others without those they jump to.
    jumps: Vec<ProgramArray<MapData>>,
}

/// The programs on one pod's cgroup. Dropping it takes them off.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) path: PathBuf,
    /// The upstreams that list the pod.
    pub(super) upstreams: HashSet<UpstreamId>,
    pub(super) _links: Links,
}

/// One link a program.
#[derive(Debug)]
#[expect(dead_code, reason = "held, so that they stay")]
pub(super) struct Links(CgroupSkbLink, CgroupSkbLink, SockOpsLink);

// === impl Programs ===

impl Programs {
    /// Hands the programs to the verifier, those for HTTP/2 if that is wanted: without them its segments go uncounted.
    pub(super) fn load(ebpf: &mut Ebpf, streams: bool) -> Result<Self, CountError> {
        let mut id = |name| {
            let loaded = load(ebpf, name);
            loaded.map(|id| (name, id)).map_err(|error| CountError::Load { name, source: Box::new(error) })
        };
        let streams = if streams { &STREAMS[..] } else { &[] };
        let names = [ACCEPTED, RECEIVED, SENT].into_iter().chain(streams.iter().map(|(name, _)| *name));
        let ids = names.map(&mut id).collect::<Result<_, _>>()?;
        let jumps = streams.iter().map(|stream| jump(ebpf, *stream)).collect::<Result<_, _>>()?;
        Ok(Self { ids, jumps })
    }

    pub(super) fn has_streams(&self) -> bool {
        !self.jumps.is_empty()
    }

    pub(super) fn ids(&self) -> Vec<(&'static str, u32)> {
        self.ids.clone()
    }

    /// Attaches all of them: first those that see segments, so that no connection is tagged whose first request they miss.
    /// Links always allow several programs on a cgroup; the flag for it is refused together with them.
    #[expect(clippy::unused_self, reason = "that there is one shows that the programs are loaded")]
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf, dir: &fs::File) -> Result<Links, ProgramError> {
        let sent: &mut CgroupSkb = program(ebpf, SENT)?.try_into()?;
        let id = sent.attach(dir, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)?;
        let sent = sent.take_link(id)?;
        let received: &mut CgroupSkb = program(ebpf, RECEIVED)?.try_into()?;
        let id = received.attach(dir, CgroupSkbAttachType::Ingress, CgroupAttachMode::Single)?;
        let received = received.take_link(id)?;
        let accepted: &mut SockOps = program(ebpf, ACCEPTED)?.try_into()?;
        let id = accepted.attach(dir, CgroupAttachMode::Single)?;
        Ok(Links(sent, received, accepted.take_link(id)?))
    }
}

// === impl Attached ===

impl Attached {
    /// Whether the cgroup still exists.
    pub(super) fn is_there(&self) -> bool {
        self.path.is_dir()
    }
}

/// Tells programs to which other they may jump.
fn jump(ebpf: &mut Ebpf, (name, map): (&str, &str)) -> Result<ProgramArray<MapData>, CountError> {
    let missing = |what| CountError::Map(format!("the object has no {what}"));
    let wrong = |error: &dyn std::error::Error| CountError::Map(format!("the object's map {map}: {error}"));
    let taken = ebpf.take_map(map).ok_or_else(|| missing(format!("map {map}")))?;
    let mut jumps = ProgramArray::try_from(taken).map_err(|error| wrong(&error))?;
    let program = ebpf.program(name).ok_or_else(|| missing(format!("program {name}")))?;
    let program: &CgroupSkb = program.try_into().map_err(|error: ProgramError| wrong(&error))?;
    let fd = program.fd().map_err(|error| wrong(&error))?;
    jumps.set(0, fd, 0).map_err(|error| wrong(&error))?;
    Ok(jumps)
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<u32, ProgramError> {
    match program(ebpf, name)? {
        Program::SockOps(program) => {
            program.load()?;
            Ok(program.info()?.id())
        }
        program => {
            let program: &mut CgroupSkb = program.try_into()?;
            program.load()?;
            Ok(program.info()?.id())
        }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, ProgramError> {
    ebpf.program_mut(name).ok_or_else(|| ProgramError::InvalidName { name: name.to_owned() })
}
