//! The hold programs on devices: by links where the kernel has them, which may be pinned and then outlive the agent, and by
//! filters before that.

use std::{
    fs, io, mem,
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

const IN: Side = Side { program: INGRESS, direction: TcAttachType::Ingress, prefix: "ingress-" };
const OUT: Side = Side { program: EGRESS, direction: TcAttachType::Egress, prefix: "egress-" };

/// A side of devices.
#[derive(Debug)]
struct Side {
    program: &'static str,
    direction: TcAttachType,
    /// Below which a pinned link's name continues with the device's index.
    prefix: &'static str,
}

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
    device: Device,
    ingress: Link,
    /// Only while connections from the device are tried: all that leaves on any other passes nobody.
    egress: Option<Link>,
    /// Whether one was since the last [`rest`](Self::rest).
    is_tried: bool,
}

/// Where programs are put, and by what.
#[derive(Debug)]
struct Device {
    index: u32,
    name: String,
    hooks: Hooks,
    /// The folder for pins.
    pins: Option<PathBuf>,
}

/// A program on a device.
#[derive(Debug)]
struct Link {
    pin: Option<PathBuf>,
    _link: Holds,
}

/// What keeps a program there.
#[derive(Debug)]
enum Holds {
    Own { _link: SchedClassifierLink },
    Pinned { _link: PinnedLink },
}

// === impl Attached ===

impl Attached {
    /// Attaches the program for what comes in; with a folder, to the link that is pinned there for the device, or pins a new one. That
    /// for answers is attached if it is pinned, as by an agent before.
    pub(super) fn new(
        ebpf: &mut Ebpf,
        (index, name): (u32, &str),
        hooks: Hooks,
        pins: Option<&Path>,
    ) -> Result<Self, ProgramError> {
        let folder = pins;
        let pins = pins.filter(|_| hooks.has_links()).map(Path::to_owned);
        let device = Device { index, name: name.to_owned(), hooks, pins };
        let ingress = device.put(ebpf, &IN)?;
        let egress = device.go_on(ebpf, &OUT)?;
        device.replace_other_hooks(folder);
        Ok(Self { device, ingress, is_tried: egress.is_some(), egress })
    }

    /// Sees to it that answers to what is sent on are seen.
    pub(super) fn expect_answers(&mut self, ebpf: &mut Ebpf) -> Result<(), ProgramError> {
        self.is_tried = true;
        if self.egress.is_none() {
            self.egress = Some(self.device.put(ebpf, &OUT)?);
        }
        Ok(())
    }

    /// Takes the program for answers off if none was expected since the last time.
    pub(super) fn rest(&mut self) {
        if !mem::take(&mut self.is_tried)
            && let Some(egress) = self.egress.take()
        {
            egress.unpin();
        }
    }

    /// Takes the pins of a device that has gone, or is to be left alone.
    pub(super) fn unpin(self) {
        self.ingress.unpin();
        if let Some(egress) = self.egress {
            egress.unpin();
        }
    }
}

// === impl Device ===

impl Device {
    fn pin(&self, side: &Side) -> Option<PathBuf> {
        Some(self.pins.as_ref()?.join(format!("{}{}", side.prefix, self.index)))
    }

    fn put(&self, ebpf: &mut Ebpf, side: &Side) -> Result<Link, ProgramError> {
        let program: &mut SchedClassifier = classifier(ebpf, side.program)?;
        let pin = self.pin(side);
        let link = match &pin {
            Some(pin) => pinned(program, &self.name, side.direction, pin)?,
            None => Holds::Own { _link: attach(program, &self.name, side.direction, self.hooks)? },
        };
        Ok(Link { pin, _link: link })
    }

    /// Takes off what an agent before has left that used the other kind of hook: of two programs the second would hold what the first has
    /// let go on.
    fn replace_other_hooks(&self, folder: Option<&Path>) {
        if self.hooks.has_links() {
            for side in [IN, OUT] {
                // Most devices have none.
                _ = tc::qdisc_detach_program(&self.name, side.direction, side.program);
            }
        } else if let Some(folder) = folder {
            unpin(folder, self.index);
        }
    }

    /// Puts ours in the place of a link that is pinned, and takes off a filter that an agent before has left.
    fn go_on(&self, ebpf: &mut Ebpf, side: &Side) -> Result<Option<Link>, ProgramError> {
        if !self.hooks.has_links() {
            // Most devices have none.
            _ = tc::qdisc_detach_program(&self.name, side.direction, side.program);
        }
        self.pin(side).filter(|pin| pin.exists()).map(|_| self.put(ebpf, side)).transpose()
    }
}

// === impl Link ===

impl Link {
    fn unpin(self) {
        if let Some(pin) = &self.pin {
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
            [IN, OUT].iter().find_map(|side| name.strip_prefix(side.prefix)?.parse().ok())
        })
        .collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

/// Takes the pinned links of a device away.
pub(super) fn unpin(folder: &Path, device: u32) {
    for side in [IN, OUT] {
        _ = fs::remove_file(folder.join(format!("{}{device}", side.prefix)));
    }
}

/// Takes everything off that an agent has left, with its pins: links go with them, filters are looked for on every device.
pub(super) fn remove(folder: Option<&Path>, devices: impl IntoIterator<Item = String>) -> io::Result<()> {
    if let Some(folder) = folder {
        pins::remove(folder)?;
    }
    for device in devices {
        for side in [IN, OUT] {
            // Most devices have none.
            _ = tc::qdisc_detach_program(&device, side.direction, side.program);
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
) -> Result<Holds, ProgramError> {
    if let Ok(found) = PinnedLink::from_pin(pin) {
        let link = SchedClassifierLink::try_from(FdLink::from(found));
        if let Ok(link) = link
            && let Ok(id) = program.attach_to_link(link)
        {
            return Ok(Holds::Own { _link: program.take_link(id)? });
        }
        _ = fs::remove_file(pin);
    }
    let link = FdLink::try_from(attach(program, device, direction, Hooks::Auto)?)
        .map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    let link = link.pin(pin).map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    Ok(Holds::Pinned { _link: link })
}
