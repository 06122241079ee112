//! A simulated machine: a node core, and the I/O that its effects ask for.

use std::collections::BTreeMap;

use cluster_store::alloc::Allocator;
use cluster_types::{
    Amount, ClientId, Failure, FailureKind, Incarnation, JobId, Location, NodeId, ObjectId, Resources,
    SegmentId, Span, Term,
};
use worker_core::{Node, NodeConfig, ServeFrom};

/// Bytes each machine's store may use: little, so that it is full at times.
pub const STORE: u64 = 64 << 20;

/// Which side has a slot of an executor's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Ready,
    Claimed,
    Revoked,
}

/// An executor's process, from the fork on.
#[derive(Debug)]
pub struct Executor {
    pub job: JobId,
    /// Once it attached.
    pub client: Option<ClientId>,
    /// Its process is gone, or never will be.
    pub dead: bool,
    /// By tag.
    pub slots: BTreeMap<u64, Slot>,
}

#[derive(Debug)]
pub struct Host {
    pub core: Node,
    pub resources: Resources,
    /// Of the current stream to the head.
    pub incarnation: Option<Incarnation>,
    /// What it was to the last head that admitted it.
    pub previous: Option<(Term, Incarnation)>,
    pub executors: BTreeMap<u32, Executor>,
    /// What lies where: the object whose bytes were written last.
    pub memory: BTreeMap<(SegmentId, u64), ObjectId>,
    pub served: BTreeMap<ObjectId, ServeFrom>,
    pub spilled: BTreeMap<ObjectId, u64>,
    /// Submitted jobs that run here: which attempt.
    pub jobs: BTreeMap<String, u32>,
    /// The daemon's own memory, for what it pulls.
    own: Allocator,
    own_segments: u32,
}

/// Segments of the daemon's own are numbered from here, apart from those that the core names.
const OWN_SEGMENTS: u32 = 1 << 31;

impl Host {
    pub fn new(node: NodeId, cpus: i64) -> Self {
        let mut resources = Resources { memory: Amount::units(8 << 30), ..Resources::cpus(cpus) };
        if node.0.is_multiple_of(3) {
            resources.gpu = Amount::units(2);
        }
        let config = NodeConfig {
            node,
            hostname: format!("host-{node}"),
            resources: resources.clone(),
            cores: cpus as u32,
            store_capacity: STORE,
            idle_executors: 2,
            idle_timeout: Span::secs(60),
            head_may_restart: true,
        };
        Self {
            core: Node::new(config),
            resources,
            incarnation: None,
            previous: None,
            executors: BTreeMap::new(),
            memory: BTreeMap::new(),
            served: BTreeMap::new(),
            spilled: BTreeMap::new(),
            jobs: BTreeMap::new(),
            own: Allocator::new(),
            own_segments: 0,
        }
    }

    /// Memory of the daemon's own, with this object's bytes in it.
    pub fn store_own(&mut self, object: ObjectId, size: u64) -> Location {
        let location = loop {
            if let Some(location) = self.own.alloc(size) {
                break location;
            }
            let segment = SegmentId(OWN_SEGMENTS + self.own_segments);
            self.own_segments += 1;
            self.own
                .add_segment(segment, Allocator::segment_len(size).max(1 << 20))
                .expect("a new segment is new");
        };
        self.memory.insert((location.segment, location.offset), object);
        location
    }

    pub fn free_own(&mut self, location: Location) -> Result<(), String> {
        self.memory.remove(&(location.segment, location.offset));
        self.own.free(location).map_err(|error| format!("P1: the daemon's own memory: {error}"))
    }

    /// What another machine gets when it asks for the object.
    pub fn serves(&self, object: ObjectId) -> Result<(), Failure> {
        let right = match self.served.get(&object) {
            None => return Err(no(FailureKind::ObjectLost, "not served")),
            Some(ServeFrom::Memory(location)) => {
                self.memory.get(&(location.segment, location.offset)) == Some(&object)
            }
            Some(ServeFrom::Disk) => self.spilled.contains_key(&object),
            Some(ServeFrom::Inline(_)) => true,
        };
        if right { Ok(()) } else { Err(no(FailureKind::Internal, "P1: other bytes lie there")) }
    }
}

pub fn no(kind: FailureKind, message: &str) -> Failure {
    Failure { kind, message: message.into(), payload: bytes::Bytes::new(), task: None }
}
