//! The hold programs on devices: by links where the kernel has them, which may be pinned and then outlive the agent, and by
//! filters before that.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
    },
    util::KernelVersion,
};

use crate::pins;

pub(super) const INGRESS: &str = "hold_ingress";
pub(super) const EGRESS: &str = "hold_egress";

/// Below which a pinned link's name continues with the device's index.
const PREFIXES: [(&str, &str, TcAttachType); 2] =
    [("egress-", EGRESS, TcAttachType::Egress), ("ingress-", INGRESS, TcAttachType::Ingress)];

/// By what the programs are on devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hooks {
    /// By links where the kernel has them (6.6), by filters where it has not.
    #[default]
    Auto,
    /// By filters below `clsact`, as before 6.6: where others expect to be first among the links.
    Filters,
}

/// The programs on one device; dropping it takes them off unless they are pinned.
#[derive(Debug)]
pub(super) struct Attached {
    pins: Vec<PathBuf>,
    _links: Vec<Link>,
}

#[derive(Debug)]
enum Link {
    Own { _link: SchedClassifierLink },
    Pinned { _link: PinnedLink },
}

// === impl Attached ===

impl Attached {
    /// Attaches both programs; with a folder, to the links that are pinned there for the device, or pins new ones.
    pub(super) fn new(
        ebpf: &mut Ebpf,
        (index, name): (u32, &str),
        hooks: Hooks,
        pins: Option<&Path>,
    ) -> Result<Self, ProgramError> {
        let (mut links, mut all) = (Vec::new(), Vec::new());
        // The way out first: what is held needs it at once.
        for (prefix, program, direction) in PREFIXES {
            let program: &mut SchedClassifier = classifier(ebpf, program)?;
            let pin = pins.filter(|_| hooks.has_links()).map(|folder| folder.join(format!("{prefix}{index}")));
            links.push(match &pin {
                Some(pin) => pinned(program, name, direction, pin)?,
                None => Link::Own { _link: attach(program, name, direction, hooks)? },
            });
            all.extend(pin);
        }
        Ok(Self { pins: all, _links: links })
    }

    /// Takes the pins of a device that has gone, or is to be left alone.
    pub(super) fn unpin(self) {
        for pin in &self.pins {
            // What is not there is no pin.
            _ = fs::remove_file(pin);
        }
    }
}

/// The devices that have pinned links.
pub(super) fn pinned_devices(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut devices: Vec<u32> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            PREFIXES.iter().find_map(|(prefix, ..)| name.strip_prefix(prefix)?.parse().ok())
        })
        .collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

/// Takes the pinned links of a device away.
pub(super) fn unpin(folder: &Path, device: u32) {
    for (prefix, ..) in PREFIXES {
        _ = fs::remove_file(folder.join(format!("{prefix}{device}")));
    }
}

/// Takes everything off that an agent has left, with its pins: links go with them, filters are looked for on every device.
pub(super) fn remove(folder: Option<&Path>, devices: impl IntoIterator<Item = String>) -> io::Result<()> {
    if let Some(folder) = folder {
        pins::remove(folder)?;
    }
    for device in devices {
        for (_, program, direction) in PREFIXES {
            // Most devices have none.
            _ = tc::qdisc_detach_program(&device, direction, program);
        }
    }
    Ok(())
}

pub(super) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, ProgramError> {
    let unknown = || ProgramError::InvalidName { name: name.to_owned() };
    ebpf.program_mut(name).ok_or_else(unknown)?.try_into()
}

// === impl Hooks ===

impl Hooks {
    /// Whether programs attach by links that know their order and end with their descriptor. Before that they are filters of a
    /// queueing discipline.
    fn has_links(self) -> bool {
        self == Self::Auto && KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
    }
}

fn attach(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
    hooks: Hooks,
) -> Result<SchedClassifierLink, ProgramError> {
    let id = if hooks.has_links() {
        program.attach_with_options(device, direction, TcAttachOptions::TcxOrder(LinkOrder::first()))?
    } else {
        match tc::qdisc_add_clsact(device) {
            Ok(()) => {}
            // One is enough, whosoever it is.
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // One that an agent before has left there would be the first to see a packet, and keep it for nobody.
        let name = program.info()?.name_as_str().unwrap_or_default().to_owned();
        _ = tc::qdisc_detach_program(device, direction, &name);
        let first = NlOptions { priority: 1, ..NlOptions::default() };
        program.attach_with_options(device, direction, TcAttachOptions::Netlink(first))?
    };
    program.take_link(id)
}

/// The link at a pin, with the program in place of the one it had, or a new one. One whose device has gone is no use.
fn pinned(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
    pin: &Path,
) -> Result<Link, ProgramError> {
    if let Ok(found) = PinnedLink::from_pin(pin) {
        let link = SchedClassifierLink::try_from(FdLink::from(found));
        if let Ok(link) = link
            && let Ok(id) = program.attach_to_link(link)
        {
            return Ok(Link::Own { _link: program.take_link(id)? });
        }
        _ = fs::remove_file(pin);
    }
    let link = FdLink::try_from(attach(program, device, direction, Hooks::Auto)?)
        .map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    let link = link.pin(pin).map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    Ok(Link::Pinned { _link: link })
}
