//! Hold and replay in the kernel: loads the programs, puts them on the devices of clients, keeps their maps in step, and
//! sends held packets on.
//!
//! ```text
//! Hold::open ─► load ─► Hold::devices (attach) ─► Hold::sync (maps) ─► Hold::repair (read back)
//! Hold::seen ◄─ ring buffer ◄─ first packets, refusals, answers
//! Hold::send ─► conntrack entry ─► TRIED ─► the packet enters its device again
//!
//! Hold::hold_node: the same for connections of the node itself, by a table in its packet filter, its log, and a raw socket
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    io, iter,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
    time::Duration,
};

use crate::{
    conntrack::{Conntrack, ConntrackError, Translation},
    devices::Devices,
    loading::{loader, monotonic, read_object},
    maps::WrongMap,
    object,
    open::words,
    pins::{self, Folder, Pinned},
    probe::{self, ProbeError, Probed},
    wake::Arrivals,
};
use aya::{
    Ebpf, EbpfError,
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};
use interceptor_common::hold::{HoldStats, MARK};
use interceptor_core::{
    frontends::{Heat, Table},
    holding::Flow,
};

mod attach;
mod maps;
mod node;
mod syn;
mod trial;

pub use self::{
    attach::Hooks,
    maps::{Origin, Sighting, What},
    node::source_toward,
    syn::Syn,
};
use self::{
    attach::{Attached, EGRESS, INGRESS, classifier},
    maps::HoldMaps,
    node::Node,
};

const SEND: &str = "send";

/// An entry for a connection goes after this time when its first packet does not reach the pod.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(5);

/// Where `struct __sk_buff` has the mark.
const MARK_AT: usize = 8;

/// Below where bpffs is mounted; the number changes with the maps' layout, which programs of two versions must not share.
const PINS: &str = "rouse/hold-1";

/// The hold of this node.
pub struct Hold {
    maps: HoldMaps,
    conntrack: Conntrack,
    attached: BTreeMap<u32, Attached>,
    hooks: Hooks,
    pins: Folder,
    /// Those maps that are pinned.
    maps_at_pins: Vec<Pinned>,
    ebpf: Ebpf,
    node: Option<Node>,
    /// Whose turn it is to tell.
    nodes_turn: bool,
}

/// Connections cannot be held, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HoldError(String);

/// Why, by step.
#[derive(Debug, thiserror::Error)]
enum Unavailable {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("cannot load the programs")]
    Object(#[source] Box<EbpfError>),
    #[error(transparent)]
    Map(#[from] WrongMap),
    #[error("cannot load program {name}{}", .probed.lacks())]
    Load { name: &'static str, probed: Probed, source: Box<ProgramError> },
    #[error("cannot read what the maps hold")]
    Read(#[source] io::Error),
    #[error("cannot reach connection tracking")]
    Conntrack(#[source] io::Error),
}

/// Why a packet was not sent on.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Connection tracking has not taken the connection.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// The map of connections that are tried is full.
    #[error("cannot note the connection as tried")]
    Tried(#[source] io::Error),
    /// The device has gone.
    #[error("cannot send on device {device}")]
    Device {
        /// Its index.
        device: u32,
        /// Why, if the kernel says.
        #[source]
        source: Option<Box<ProgramError>>,
    },
    /// The node cannot send it.
    #[error("cannot send from the node itself")]
    Node(#[source] io::Error),
}

/// What a change of devices came to.
#[derive(Debug, Default)]
pub struct Attachment {
    /// Names of the devices that have the programs now.
    pub names: Vec<String>,
    /// Names of devices that can't have them, and why.
    pub failed: Vec<(String, String)>,
}

/// Which way packets go that a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a client into the node.
    In,
    /// From the node to a client.
    Out,
}

/// Where a packet is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toward {
    /// It enters the node, as if the client had sent it.
    Node,
    /// It leaves the node, to the client.
    Client,
}

// === impl Hold ===

impl Hold {
    /// Loads the programs and attaches none. Everything happens in the network namespace that the calling thread is in. Where
    /// bpffs is given, maps and links are pinned there and outlive this process, and those of one before are taken over. No sign
    /// of life is given: what is held by maps of one before must not outlast its own for somebody who cannot bring them in step.
    pub fn open(bpffs: Option<&Path>, hooks: Hooks) -> Result<Self, HoldError> {
        Self::start(bpffs, hooks).map_err(|error| HoldError(words(&error)))
    }

    /// Takes away what an agent before has left pinned or attached.
    pub fn remove(bpffs: Option<&Path>) -> io::Result<()> {
        attach::take_off_others(None, &Devices::new())?;
        bpffs.map_or(Ok(()), |bpffs| pins::remove(bpffs, PINS))?;
        Node::remove()
    }

    /// Why what is held will end with this process, if so.
    pub fn not_pinned(&self) -> Option<&str> {
        self.pins.why_not()
    }

    /// Holds connections of the node itself, too, and of pods in its network. What an agent before has left for that stays as
    /// it is until the first [`sync`](Self::sync).
    pub fn hold_node(&mut self) -> Result<(), HoldError> {
        self.node = Some(Node::open().map_err(|error| HoldError(words(&error)))?);
        Ok(())
    }

    /// Leaves connections of the node itself alone, also where an agent before has held them.
    pub fn leave_node(&mut self) -> io::Result<()> {
        self.node = None;
        Node::remove()
    }

    fn start(bpffs: Option<&Path>, hooks: Hooks) -> Result<Self, Unavailable> {
        let object = object::HOLD.ok_or(ProbeError::NoObject)?;
        let probed = probe::probe()?;
        let pins = Folder::open(bpffs, PINS);
        let mut ebpf = read_object(|| loader(maps::names(), pins.path()).load(object))
            .map_err(|error| Unavailable::Object(Box::new(error)))?;
        let maps_at_pins = pins.hold(maps::names());
        let mut maps = HoldMaps::take(&mut ebpf)?;
        // Nobody waits any more for what an agent before has tried.
        maps.nobody_tried().map_err(Unavailable::Read)?;
        for name in [INGRESS, EGRESS, SEND] {
            let loaded = classifier(&mut ebpf, name).and_then(SchedClassifier::load);
            loaded.map_err(|error| Unavailable::Load { name, probed, source: Box::new(error) })?;
        }
        let conntrack = Conntrack::open().map_err(Unavailable::Conntrack)?;
        let attached = BTreeMap::new();
        Ok(Self { maps, conntrack, attached, hooks, pins, maps_at_pins, ebpf, node: None, nodes_turn: false })
    }

    /// Tells when [`seen`](Self::seen) has something to tell.
    pub fn arrivals(&self) -> io::Result<Arrivals> {
        Arrivals::of(iter::once(self.maps.seen().as_fd()).chain(self.node.as_ref().map(Node::fd)))
    }

    /// What was seen next: by turns on devices and by the node's own rules, while both have something to tell.
    pub fn seen(&mut self) -> Option<Sighting> {
        self.nodes_turn = !self.nodes_turn;
        if self.nodes_turn {
            self.seen_of_node().or_else(|| self.maps.next())
        } else {
            self.maps.next().or_else(|| self.seen_of_node())
        }
    }

    fn seen_of_node(&mut self) -> Option<Sighting> {
        let what = self.node.as_mut()?.seen()?;
        Some(Sighting { at: monotonic(), origin: Origin::Node, what })
    }

    /// Gives the sign of life without which the programs let everything pass.
    pub fn beat(&mut self) -> io::Result<()> {
        self.maps.frontends.beat(monotonic())?;
        self.node.as_mut().map_or(Ok(()), Node::beat)
    }

    /// Has a device's program for answers ready before [`send`](Self::send) needs it: to put one on a device takes milliseconds.
    pub fn expect_answers(&mut self, device: u32) -> Result<(), SendError> {
        let Some(attached) = self.attached.get_mut(&device) else { return Ok(()) };
        let failed = |source| SendError::Device { device, source: Some(Box::new(source)) };
        attached.expect_answers(&mut self.ebpf).map_err(failed)
    }

    /// Takes the programs for answers off devices that are not among these, where connections wait, and from which nothing was sent on
    /// since the last call.
    pub fn rest(&mut self, waiting: &BTreeSet<u32>) {
        let others = self.attached.iter_mut().filter(|(index, _)| !waiting.contains(index));
        others.for_each(|(_, attached)| attached.rest());
    }

    /// Puts the programs on these devices and takes them off all others.
    pub fn devices(&mut self, devices: &Devices) -> Attachment {
        // Nobody has looked yet at what an agent before has left.
        if self.attached.is_empty()
            && let Err(error) = attach::take_off_others(self.pins.path(), devices)
        {
            tracing::warn!(%error, "what an agent has left on devices cannot be looked for");
        }
        for (_, gone) in self.attached.extract_if(.., |index, _| !devices.contains_key(index)) {
            gone.take_off();
        }
        let mut report = Attachment::default();
        for (index, device) in devices {
            if self.attached.contains_key(index) {
                continue;
            }
            match Attached::new(&mut self.ebpf, (*index, &device.name), self.hooks, self.pins.path()) {
                Ok(attached) => {
                    self.attached.insert(*index, attached);
                }
                Err(error) => report.failed.push((device.name.clone(), words(&error))),
            }
        }
        self.pins.be_alone();
        let named = devices.iter().filter(|(index, _)| self.attached.contains_key(index));
        report.names = named.map(|(_, device)| device.name.clone()).collect();
        report
    }

    /// Addresses of Services that are warm as the maps have it; none if no sign of life of an agent's counts any more.
    pub fn warm(&self) -> io::Result<BTreeSet<SocketAddr>> {
        let left = self.maps.frontends.alive(monotonic())?;
        Ok(left.map(|table| addresses(table, Heat::Warm)).unwrap_or_default())
    }

    /// Makes the maps hold `desired`.
    pub fn sync(&mut self, desired: &Table) -> io::Result<usize> {
        let written = self.maps.frontends.sync(desired)?;
        let node = self.node.as_mut().map_or(Ok(0), |node| node.sync(addresses(desired, Heat::Cold)));
        Ok(written + node?)
    }

    /// Reads back what the maps hold and mends what differs from the last sync: how many entries did.
    pub fn repair(&mut self) -> io::Result<usize> {
        self.put_back();
        let drifted = self.maps.frontends.repair();
        let node = self.node.as_mut().map_or(Ok(0), Node::repair);
        Ok(drifted? + node?)
    }

    /// Puts back what somebody has taken off devices, or the pins of.
    fn put_back(&mut self) {
        self.pins.again();
        if self.pins.path().is_some() {
            pins::tell(pins::again(&self.maps_at_pins));
        }
        for attached in self.attached.values() {
            let device = attached.name();
            match attached.put_back(&mut self.ebpf) {
                Ok(false) => {}
                Ok(true) => tracing::warn!(device, "the hold's program or its pin had been taken off, and is back"),
                Err(error) => tracing::warn!(device, %error, "the hold's program may have been taken off"),
            }
        }
    }

    /// What the programs did, ever, and the node's rules since [`hold_node`](Self::hold_node).
    pub fn stats(&self) -> io::Result<HoldStats> {
        let mut stats = self.maps.stats()?;
        let (swallowed, untold) = self.node.as_ref().map(Node::stats).unwrap_or_default();
        stats.swallowed += swallowed;
        stats.untold += untold;
        Ok(stats)
    }

    /// Sends a first packet on to a pod: connection tracking will translate it, and a refusal of the pod is kept from the
    /// client. If it fails, nothing is left of it, nor of tries before.
    pub fn send(&mut self, packet: (&Syn, Origin), held: Duration, translation: &Translation) -> Result<(), SendError> {
        let sent = self.hand_over(packet, held, translation);
        if sent.is_err() {
            // Why it failed is what is told.
            _ = self.forget(&packet.0.flow());
        }
        sent
    }

    fn hand_over(
        &mut self,
        (syn, origin): (&Syn, Origin),
        held: Duration,
        translation: &Translation,
    ) -> Result<(), SendError> {
        let flow = syn.flow();
        if let Origin::Device(device) = origin {
            self.expect_answers(device)?;
        }
        // An entry of an earlier try would lead to its pod, or to none.
        self.conntrack.delete(&flow)?;
        self.conntrack.insert(&flow, translation, ENTRY_TIMEOUT)?;
        match (origin, &mut self.node) {
            (Origin::Device(_), _) => self.maps.tried(&flow).map_err(SendError::Tried)?,
            (Origin::Node, Some(node)) => node.tried(flow),
            (Origin::Node, None) => {}
        }
        self.release((syn, origin), held)
    }

    /// Sends a first packet on for the node's own rules to translate.
    pub fn release(&mut self, (syn, origin): (&Syn, Origin), held: Duration) -> Result<(), SendError> {
        match origin {
            Origin::Device(device) => self.put(&syn.replay(held), device, Toward::Node),
            Origin::Node => self.by_node(|node| node.send(syn, held)),
        }
    }

    /// Tells the client that it is refused.
    pub fn refuse(&mut self, (syn, origin): (&Syn, Origin)) -> Result<(), SendError> {
        match origin {
            Origin::Device(device) => self.put(&syn.refusal(), device, Toward::Client),
            Origin::Node => self.by_node(|node| node.refuse(syn)),
        }
    }

    /// Takes back that a connection was tried, with its entry. False if a pod has answered it before, also where nobody was told: then
    /// everything of it is the client's and the pod's own, and stays.
    pub fn withdraw(&mut self, flow: &Flow, origin: Origin) -> Result<bool, SendError> {
        match origin {
            Origin::Device(_) => {
                // An answer that came between the look and the entry's end would leave a client with a connection to nobody.
                self.maps.withdraw(flow).map_err(SendError::Tried)?;
                let withdrawn = self.take_back(flow);
                self.maps.let_go(flow).map_err(SendError::Tried)?;
                withdrawn
            }
            // What the rules saw is known here when it is read.
            Origin::Node if self.conntrack.is_answered(flow)? => Ok(false),
            Origin::Node => self.forget(flow).map(|()| true),
        }
    }

    fn take_back(&mut self, flow: &Flow) -> Result<bool, SendError> {
        let is_ours = self.maps.untried(flow).map_err(SendError::Tried)?;
        if is_ours {
            self.conntrack.delete(flow)?;
        }
        Ok(is_ours)
    }

    /// Forgets that a connection was tried.
    pub fn untried(&mut self, flow: &Flow) -> Result<(), SendError> {
        if let Some(node) = &mut self.node {
            node.untried(flow);
        }
        self.maps.untried(flow).map(drop).map_err(SendError::Tried)
    }

    fn forget(&mut self, flow: &Flow) -> Result<(), SendError> {
        self.untried(flow)?;
        Ok(self.conntrack.delete(flow)?)
    }

    fn by_node(&self, put: impl FnOnce(&Node) -> io::Result<()>) -> Result<(), SendError> {
        let sent = self.node.as_ref().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), put);
        sent.map_err(SendError::Node)
    }

    fn put(&mut self, frame: &[u8], device: u32, toward: Toward) -> Result<(), SendError> {
        let failed = |source| SendError::Device { device, source };
        let context = context(device, toward);
        let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat: 1, ..Default::default() };
        let program = classifier(&mut self.ebpf, SEND).map_err(|error| failed(Some(Box::new(error))))?;
        let ran = program.test_run(options).map_err(|error| failed(Some(Box::new(error))))?;
        if ran.return_value == 0 { Ok(()) } else { Err(failed(None)) }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold").field("attached", &self.attached.len()).finish_non_exhaustive()
    }
}

/// The addresses of the Services that are of a heat.
fn addresses(table: &Table, heat: Heat) -> BTreeSet<SocketAddr> {
    let of_heat = |service| table.services.get(service) == Some(&heat);
    table.frontends.iter().filter(|(_, service)| of_heat(service)).map(|(addr, _)| *addr).collect()
}

/// Whether the address a connection comes from is the pod's that it is to go to.
pub fn is_hairpin(flow: &Flow, pod: IpAddr) -> bool {
    flow.client.ip() == pod
}

/// The control words of `send` in a `struct __sk_buff` that is zero but for them and the mark.
fn context(device: u32, toward: Toward) -> [u8; 192] {
    const CONTROL_AT: usize = 48;
    let mut context = [0; 192];
    let mut put = |at: usize, word: u32| context[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    put(CONTROL_AT, device);
    if toward == Toward::Node {
        put(MARK_AT, MARK);
        put(CONTROL_AT + 4, 1);
    }
    context
}
