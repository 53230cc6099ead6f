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
        LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    util::KernelVersion,
};

use crate::{
    devices::{Devices, devices},
    pins::{self, Pinned},
};

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

/// What keeps a program on a device.
#[derive(Debug)]
enum Link {
    Own {
        _link: SchedClassifierLink,
    },
    Pinned(Pinned),
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

    /// Puts back what somebody has taken off the device, or the pins of: whether anything was.
    pub(super) fn put_back(&self, ebpf: &mut Ebpf) -> Result<bool, ProgramError> {
        let ingress = self.device.put_back(ebpf, &IN, &self.ingress)?;
        let egress = self.egress.as_ref().map(|egress| self.device.put_back(ebpf, &OUT, egress)).transpose()?;
        Ok(ingress || egress == Some(true))
    }

    /// The device's name.
    pub(super) fn name(&self) -> &str {
        &self.device.name
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
        let attach = |program: &mut Program| attach(program.try_into()?, &self.name, side.direction, self.hooks);
        let program = program(ebpf, side.program)?;
        Ok(match (self.pin(side), &self.pins) {
            (Some(pin), _) => Link::Pinned(Pinned::link(pin, program, |program| pins::descriptor(attach(program)?))?),
            (None, Some(_)) => Link::Device(ManuallyDrop::new(attach(program)?)),
            (None, None) => Link::Own { _link: attach(program)? },
        })
    }

    /// Puts a program back that somebody has taken off, as with the queueing discipline that filters are below, or its pin: whether it
    /// was.
    fn put_back(&self, ebpf: &mut Ebpf, side: &Side, link: &Link) -> Result<bool, ProgramError> {
        match link {
            Link::Pinned(pinned) => pinned.again().map_err(ProgramError::IOError),
            Link::Own { .. } if self.hooks.has_links() => Ok(false),
            Link::Own { .. } | Link::Device(_) => {
                let (again, was_gone) = filter(classifier(ebpf, side.program)?, &self.name, side.direction)?;
                // It is where the one is that is kept, which takes it off when that is wanted.
                mem::forget(again);
                Ok(was_gone)
            }
        }
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
        match self {
            Self::Own { .. } => {}
            Self::Pinned(pinned) => pinned.remove(),
            Self::Device(filter) => drop(ManuallyDrop::into_inner(filter)),
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
    program(ebpf, name)?.try_into()
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ProgramError> {
    ebpf.program_mut(name).ok_or_else(|| ProgramError::InvalidName { name: name.to_owned() })
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
    filter(program, device, direction).map(|(filter, _)| filter)
}

/// Puts the program on a device as a filter, in the place of ours if there is one: whether there was none.
fn filter(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
) -> Result<(SchedClassifierLink, bool), ProgramError> {
    match tc::qdisc_add_clsact(device) {
        Ok(()) => {}
        // One is enough, whosoever it is.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    // In the place of one that an agent before has left there, so that nothing passes in between.
    let left = SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None)?;
    if let Ok(id) = program.attach_to_link(left) {
        return Ok((program.take_link(id)?, false));
    }
    // One that an older agent has left elsewhere would be the first to see a packet, and keep it for nobody.
    let name = program.info()?.name_as_str().unwrap_or_default().to_owned();
    _ = tc::qdisc_detach_program(device, direction, &name);
    let ours = NlOptions { priority: PRIORITY, handle: HANDLE, ..NlOptions::default() };
    let id = program.attach_with_options(device, direction, TcAttachOptions::Netlink(ours))?;
    Ok((program.take_link(id)?, true))
}
