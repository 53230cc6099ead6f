//! How many connections wait in the accept queues of pods: asked of the kernel, socket by socket, by running a program that
//! is attached nowhere. Nothing is kept in between, so that a process that comes next has the same answers, and nothing
//! runs while nobody asks.
//!
//! ```text
//! Queues::open ─► fields (the kernel's type information) ─► load ─► self-test
//! Queues::queue ─ places (address → network namespace) ─► BPF_PROG_TEST_RUN ─► the listening socket's backlog
//! ```

use std::{
    collections::HashMap,
    error::Error,
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapData},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};
use interceptor_common::{
    AddrKey,
    queue::{Answer, Ask},
};
use socket2::{Domain, Socket, Type};

use crate::{
    loading::read_object,
    maps::take,
    object,
    probe::{self, ProbeError},
};

mod fields;
mod places;

use self::{
    fields::FieldsError,
    places::{Place, places},
};

const PROGRAM: &str = "accept_queue";
const FIELDS: &str = "FIELDS";
const WHOSE: &str = "WHOSE";
/// Loopback answers at once, or something drops the packets.
const CONNECT: Duration = Duration::from_secs(1);

/// Reads accept queues.
pub struct Queues {
    ebpf: Ebpf,
    whose: Array<MapData, u64>,
    places: HashMap<IpAddr, Place>,
}

/// The accept queue of a socket, or of those that share an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Which one it is, as long as it is there: a socket that listens for both address families is found at an address of either.
    pub id: u64,
    /// How many connections nobody has accepted yet.
    pub depth: u32,
}

/// Why accept queues cannot be read on this node, by step.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// This process may not, or the kernel can't.
    #[error("{0}")]
    Probe(String),
    /// Sockets' memory is not to be read.
    #[error("missing CAP_PERFMON")]
    Perfmon,
    /// The kernel's type information is of no use.
    #[error("the kernel's type information does not say how sockets look: {0}")]
    Fields(String),
    /// The program is not accepted.
    #[error("cannot load the program that reads accept queues")]
    Object(#[source] Box<EbpfError>),
    /// Nor has it the map that is read.
    #[error("the program that reads accept queues is another one")]
    Map(#[source] Box<dyn Error + Send + Sync>),
    /// Nor is it by the verifier.
    #[error("cannot load program {PROGRAM}")]
    Load(#[source] Box<ProgramError>),
    /// What it reads is not what is there.
    #[error("self-test: a socket with {expected} waiting connections shows {found:?}")]
    SelfTest {
        /// How many there are.
        expected: u32,
        /// What was read.
        found: Result<Option<u32>, Unread>,
    },
    /// It could not be tried.
    #[error("self-test over loopback")]
    Io(#[from] io::Error),
}

/// Why one pod's accept queue is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// No network namespace that a device of this one leads to has the address.
    #[error("no device of the node leads to the pod's network namespace")]
    Nowhere,
    /// Several have it.
    #[error("several network namespaces have the pod's address")]
    Ambiguous,
    /// The kernel does not let the socket be read.
    #[error("the kernel refuses to read the socket")]
    Refused,
}

// === impl Queues ===

impl Queues {
    /// Probes, loads and tries it.
    pub fn open() -> Result<Self, QueueError> {
        let object = object::QUEUE.ok_or_else(|| QueueError::Probe(ProbeError::NoObject.to_string()))?;
        let probed = probe::probe().map_err(|error| QueueError::Probe(error.to_string()))?;
        if !probed.perfmon {
            return Err(QueueError::Perfmon);
        }
        let mut ebpf = read_object(|| load(object))?;
        let whose = take(&mut ebpf, WHOSE).map_err(|error| QueueError::Map(Box::new(error)))?;
        let mut queues = Self { ebpf, whose, places: HashMap::new() };
        queues.try_out()?;
        Ok(queues)
    }

    /// Looks anew in which network namespace each address is.
    pub fn look(&mut self) -> io::Result<()> {
        self.places = places()?;
        Ok(())
    }

    /// The queue of connections to an address; none where nobody listens.
    pub fn queue(&mut self, addr: SocketAddr) -> Result<Option<Queue>, Unread> {
        match self.places.get(&addr.ip()) {
            Some(Place::In(netns)) => self.ask(*netns, addr),
            Some(Place::Several) => Err(Unread::Ambiguous),
            None => Err(Unread::Nowhere),
        }
    }

    /// What the program returns for a packet: for tests.
    pub fn run(&mut self, packet: &[u8]) -> io::Result<u32> {
        let options = TestRunOptions { data_in: Some(packet), repeat: 1, ..Default::default() };
        let ran = program(&mut self.ebpf).and_then(|program| program.test_run(options));
        ran.map(|ran| ran.return_value).map_err(io::Error::other)
    }

    fn ask(&mut self, netns: i32, addr: SocketAddr) -> Result<Option<Queue>, Unread> {
        let ask = Ask { frame: [0; 16], netns, addr: AddrKey::new(addr) };
        match self.run(&ask.bytes()) {
            Ok(Answer::NOBODY) => Ok(None),
            Ok(Answer::UNREADABLE) | Err(_) => Err(Unread::Refused),
            Ok(depth) => self.whose.get(&0, 0).map(|id| Some(Queue { id, depth })).map_err(|_unread| Unread::Refused),
        }
    }

    /// A socket with a connection must show that it has one, and none when it is accepted.
    fn try_out(&mut self) -> Result<(), QueueError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        client.set_linger(Some(Duration::ZERO))?;
        client.connect_timeout(&addr.into(), CONNECT)?;
        self.expect(addr, 1)?;
        drop(listener.accept()?);
        self.expect(addr, 0)
    }

    fn expect(&mut self, addr: SocketAddr, expected: u32) -> Result<(), QueueError> {
        let found = self.ask(Place::HERE, addr).map(|queue| queue.map(|queue| queue.depth));
        if found == Ok(Some(expected)) { Ok(()) } else { Err(QueueError::SelfTest { expected, found }) }
    }
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").field("places", &self.places.len()).finish_non_exhaustive()
    }
}

fn load(object: &[u8]) -> Result<Ebpf, QueueError> {
    let fields = fields::read().map_err(|error: FieldsError| QueueError::Fields(error.to_string()))?;
    let ebpf = EbpfLoader::new().btf(None).override_global(FIELDS, &fields, true).load(object);
    let mut ebpf = ebpf.map_err(|error| QueueError::Object(Box::new(error)))?;
    program(&mut ebpf).and_then(SchedClassifier::load).map_err(|error| QueueError::Load(Box::new(error)))?;
    Ok(ebpf)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, ProgramError> {
    let program = ebpf.program_mut(PROGRAM).ok_or(ProgramError::NotLoaded)?;
    program.try_into()
}
