//! The programs, and the cgroups that they are attached to.

use std::{collections::HashSet, fs, path::PathBuf};

use aya::{
    Ebpf,
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

/// The loaded programs.
#[derive(Debug)]
pub(super) struct Programs {
    ids: [(&'static str, u32); 3],
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
    /// Hands the programs to the verifier.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self, CountError> {
        let mut id = |name| {
            let loaded = load(ebpf, name);
            loaded.map(|id| (name, id)).map_err(|error| CountError::Load { name, source: Box::new(error) })
        };
        Ok(Self { ids: [id(ACCEPTED)?, id(RECEIVED)?, id(SENT)?] })
    }

    pub(super) fn ids(&self) -> Vec<(&'static str, u32)> {
        self.ids.to_vec()
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
