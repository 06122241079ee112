//! A simulated process: a client core, and a program that submits, puts, gets, keeps and drops at random.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use client_core::{ClientCore, HandleSource, Reading};
use cluster_store::alloc::Allocator;
use cluster_types::client_node::{DIRECT_BIT, PutValue, RunTask};
use cluster_types::{ClientId, ClientToNode, JobId, Location, NodeId, ObjectId, Refs, SegmentId, Value};

/// What a value is: the id of its object, then the refs inside it. Enough to see whether a reader got the right one.
pub fn encode(object: ObjectId, contains: &[ObjectId]) -> Bytes {
    let mut bytes = object.to_bytes().to_vec();
    for inner in contains {
        bytes.extend(inner.to_bytes());
    }
    bytes.into()
}

/// The inverse of [`encode`].
pub fn decode(bytes: &[u8]) -> Vec<ObjectId> {
    bytes
        .chunks_exact(16)
        .map(|chunk| ObjectId::from_bytes(chunk.try_into().expect("chunks of 16")))
        .collect()
}

/// What a process is doing.
#[derive(Debug)]
pub enum Doing {
    /// A driver between actions; this many are left.
    Driving { actions: u32 },
    /// A driver waits for these before it goes on.
    Waiting { on: Vec<ObjectId>, actions: u32 },
    /// A driver has dropped everything and said goodbye.
    Gone,
    /// An executor without a task.
    Idle,
    /// An executor runs this; it may wait for its children first.
    Running { run: Box<RunTask>, children: Vec<ObjectId>, blocked: bool },
}

#[derive(Debug)]
pub struct Process {
    pub core: ClientCore,
    pub id: ClientId,
    pub node: NodeId,
    /// Its number at its daemon, if it is an executor.
    pub executor: Option<u32>,
    pub doing: Doing,
    /// Tasks sent to an executor that it has not come to.
    pub inbox: VecDeque<Box<RunTask>>,
    /// Refs the program has in variables, one handle each.
    pub refs: Vec<ObjectId>,
    /// Placement groups of the program's, one handle each.
    pub groups: Vec<ObjectId>,
    pub allocator: Allocator,
    pub leased: BTreeMap<SegmentId, u64>,
    /// Segments asked for that have not come.
    pub requested: Vec<u64>,
    /// Puts that wait for memory: size, and what is inside.
    pub waiting_puts: VecDeque<(u64, Refs)>,
    /// By tag: what it knows of tasks that yield.
    pub yields: BTreeMap<u64, crate::yields::Yields>,
    /// What it had told its daemon when its task began.
    pub said: u64,
    /// Tags of calls that run for a caller which has them back.
    pub forgotten: std::collections::BTreeSet<u64>,
    /// What it knows if it became an actor.
    pub lives: Option<crate::actors::Lives>,
    /// The function every task of this process calls.
    pub function: Option<ObjectId>,
}

impl Process {
    pub fn new(
        id: ClientId,
        job: JobId,
        node: NodeId,
        executor: Option<u32>,
        direct: bool,
        doing: Doing,
    ) -> Self {
        let mut core = ClientCore::new(id, job);
        if direct {
            core.open_calls();
        }
        Self {
            core,
            id,
            node,
            executor,
            doing,
            inbox: VecDeque::new(),
            refs: Vec::new(),
            groups: Vec::new(),
            allocator: Allocator::new(),
            leased: BTreeMap::new(),
            requested: Vec::new(),
            waiting_puts: VecDeque::new(),
            yields: BTreeMap::new(),
            said: 0,
            forgotten: Default::default(),
            lives: None,
            function: None,
        }
    }

    /// An executor without a task.
    pub fn is_idle(&self) -> bool {
        matches!(self.doing, Doing::Idle)
    }

    /// What a caller elsewhere called and has not begun is its own again.
    pub fn forget_calls(&mut self, caller: ClientId) {
        let is_its = |run: &RunTask| run.tag & DIRECT_BIT != 0 && run.spec.id.client == caller;
        self.inbox.retain(|run| !is_its(run));
        if let Doing::Running { run, .. } = &self.doing
            && is_its(run)
        {
            self.forgotten.insert(run.tag);
        }
    }

    /// Ranges the core says are free go back to the allocator.
    pub fn reuse_freed(&mut self) -> Result<(), String> {
        for range in self.core.take_freed() {
            // If the daemon was asked for no more than that, it counts it as its answer.
            self.requested.retain(|asked| *asked > range.len.next_multiple_of(4096));
            self.allocator
                .free(range)
                .map_err(|error| format!("P1: {} frees {range:?}: {error}", self.id))?;
        }
        Ok(())
    }

    pub fn request_memory(&mut self, bytes: u64) {
        self.requested.push(bytes);
        self.core.push(ClientToNode::RequestMemory { bytes });
    }

    /// A segment of this length has come: the longest request that it can serve is served.
    pub fn served(&mut self, len: u64) {
        let requests = self.requested.iter().enumerate().filter(|(_, asked)| **asked <= len);
        if let Some(at) = requests.max_by_key(|(_, asked)| **asked).map(|(at, _)| at) {
            self.requested.swap_remove(at);
        }
    }

    pub fn put_small(&mut self, contains: Refs) -> ObjectId {
        // The id is known only afterwards, so small values say only what is inside them.
        self.core.put(PutValue::Inline(encode(ObjectId::default(), &contains)), contains, true)
    }

    pub fn put_stored(&mut self, location: Location, contains: Refs) -> ObjectId {
        self.core.put(PutValue::Stored(location), contains, true)
    }

    /// A handle on each ref that came out of a value.
    pub fn take_out(&mut self, inner: &[ObjectId], source: HandleSource) {
        for object in inner {
            self.core.add_handle(*object, source);
            self.refs.push(*object);
        }
    }

    pub fn drop_ref(&mut self, at: usize) {
        let object = self.refs.swap_remove(at);
        self.core.drop_handle(object);
    }

    /// What a read gives: inline bytes, or where to look.
    pub fn read(&mut self, object: ObjectId) -> Option<Reading> {
        self.core.read(object)
    }

    /// The arguments of a task, as its executor sees them: views that end with the task.
    pub fn lend_arguments(&mut self, run: &RunTask) {
        for (object, value) in &run.values {
            if let Value::Local(location) = value {
                self.core.lend(*object, *location);
            }
        }
    }
}
