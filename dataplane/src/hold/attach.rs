//! The hold programs on devices: by links where the kernel has them, which may be pinned and then outlive the agent, and by
//! filters before that, which outlive it where maps are pinned.

use std::{
    fs, io,
    mem::{self, ManuallyDrop},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    util::KernelVersion,
};

use crate::devices::{Devices, devices};

pub(super) const INGRESS: &str = "hold_ingress";
pub(super) const EGRESS: &str = "hold_egress";

const IN: Side = Side { program: INGRESS, direction: TcAttachType::Ingress, prefix: "ingress-" };
const OUT: Side = Side { program: EGRESS, direction: TcAttachType::Egress, prefix: "egress-" };

/// The place of our filters on a device, by which one agent replaces what one before has left.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0x526f, 0x7573);

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

/// The programs on one device; dropping it takes them off unless there is a folder for pins: then they go on.
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
    holds: Holds,
}

/// What keeps a program there.
#[derive(Debug)]
enum Holds {
    Own {
        _link: SchedClassifierLink,
    },
    Pinned {
        _link: PinnedLink,
    },
    /// The device itself does, until it is told otherwise.
    Device(ManuallyDrop<SchedClassifierLink>),
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
        let device = Device { index, name: name.to_owned(), hooks, pins: pins.map(Path::to_owned) };
        let ingress = device.put(ebpf, &IN)?;
        let egress = device.go_on(ebpf, &OUT)?;
        device.replace_other_hooks();
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
            egress.take_off();
        }
    }

    /// Takes the programs off a device that has gone, or is to be left alone, with their pins.
    pub(super) fn take_off(self) {
        self.ingress.take_off();
        if let Some(egress) = self.egress {
            egress.take_off();
        }
    }
}

// === impl Device ===

impl Device {
    fn pin(&self, side: &Side) -> Option<PathBuf> {
        let folder = self.pins.as_ref().filter(|_| self.hooks.has_links())?;
        Some(folder.join(format!("{}{}", side.prefix, self.index)))
    }

    fn put(&self, ebpf: &mut Ebpf, side: &Side) -> Result<Link, ProgramError> {
        let program: &mut SchedClassifier = classifier(ebpf, side.program)?;
        let pin = self.pin(side);
        let (name, side, hooks) = (&self.name, side.direction, self.hooks);
        let holds = match (&pin, &self.pins) {
            (Some(pin), _) => pinned(program, name, side, pin)?,
            (None, Some(_)) => Holds::Device(ManuallyDrop::new(attach(program, name, side, hooks)?)),
            (None, None) => Holds::Own { _link: attach(program, name, side, hooks)? },
        };
        Ok(Link { pin, holds })
    }

    /// Takes off what an agent before has left that used the other kind of hook: of two programs the second would hold what the first has
    /// let go on.
    fn replace_other_hooks(&self) {
        if self.hooks.has_links() {
            take_off_filters(&self.name);
        } else if let Some(folder) = &self.pins {
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
    fn take_off(self) {
        let Self { pin, holds } = self;
        if let Some(pin) = pin {
            // What is not there is no pin.
            _ = fs::remove_file(pin);
        }
        if let Holds::Device(filter) = holds {
            drop(ManuallyDrop::into_inner(filter));
        }
    }
}

/// Takes off what an agent before has left on devices other than these: links that are pinned, and filters.
pub(super) fn take_off_others(folder: Option<&Path>, kept: &Devices) -> io::Result<()> {
    if let Some(folder) = folder {
        let gone = pinned_devices(folder).into_iter().filter(|index| !kept.contains_key(index));
        gone.for_each(|index| unpin(folder, index));
    }
    let others = devices()?.into_iter().filter(|(index, _)| !kept.contains_key(index));
    others.for_each(|(_, device)| take_off_filters(&device.name));
    Ok(())
}

/// The devices that have pinned links.
fn pinned_devices(folder: &Path) -> Vec<u32> {
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
fn unpin(folder: &Path, device: u32) {
    for side in [IN, OUT] {
        _ = fs::remove_file(folder.join(format!("{}{device}", side.prefix)));
    }
}

/// Takes our filters off a device, of which most have none.
fn take_off_filters(device: &str) {
    for side in [IN, OUT] {
        _ = tc::qdisc_detach_program(device, side.direction, side.program);
    }
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
    if hooks.has_links() {
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(device, direction, first)?;
        return program.take_link(id);
    }
    match tc::qdisc_add_clsact(device) {
        Ok(()) => {}
        // One is enough, whosoever it is.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    // In the place of one that an agent before has left there, so that nothing passes in between.
    let left = SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None)?;
    if let Ok(id) = program.attach_to_link(left) {
        return program.take_link(id);
    }
    // One that an older agent has left elsewhere would be the first to see a packet, and keep it for nobody.
    let name = program.info()?.name_as_str().unwrap_or_default().to_owned();
    _ = tc::qdisc_detach_program(device, direction, &name);
    let ours = NlOptions { priority: PRIORITY, handle: HANDLE, ..NlOptions::default() };
    let id = program.attach_with_options(device, direction, TcAttachOptions::Netlink(ours))?;
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
