//! A world around one node: drivers, executors, the store's edge and a head, each of which does what its half of the
//! protocol promises, in an order that a seed decides. It checks from outside what the node may never do.
//!
//! - P1: no range is given up, and none is evicted, while a process other than its writer was told of it and has not
//!   released it.
//! - S2: an attempt starts only with a lease: its own, or one handed on in the `Done` of the attempt that had it.
//! - S3: a slot and a tag name one execution at a time.
//! - TASK-1: each attempt is answered once.
//! - A segment's descriptor comes before the first location in it.

mod clients;
mod edge;
mod executors;
mod head;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::{
    Completion, ExecutorFailure, ExecutorResult, FinishedOutcome, JobInfo, PutValue, RunTask,
};
use cluster_types::node_head::Retry;
use cluster_types::{
    Attempt, ClientId, ClientKind, ClientToNode, Failure, FailureKind, HeadToNode, Incarnation, JobId, Lease,
    Located, Location, NodeId, NodeToClient, NodeToHead, ObjectId, Outcome, Payload, Refs, Resources,
    ResultValue, SegmentId, Span, TaskId, TaskSpec, TaskTemplate, Term, Time, Value,
};
use worker_core::{Effect, Event, Node, NodeConfig};

/// A small deterministic generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }
}

pub const NODE: NodeId = NodeId(0xa);
const OTHER: NodeId = NodeId(0xb);
const OWN: SegmentId = SegmentId(1 << 31);

/// A process that is attached.
#[derive(Default)]
struct Process {
    shares_memory: bool,
    is_driver: bool,
    /// Leased segments with what is allocated in each: offset to length.
    leased: BTreeMap<SegmentId, BTreeMap<u64, u64>>,
    asked_memory: Option<u64>,
    mapped: BTreeSet<SegmentId>,
    /// Locations told and not released.
    told: BTreeMap<ObjectId, (u32, Location)>,
    /// Objects it has a hold or is the private maker of.
    held: BTreeSet<ObjectId>,
    private: BTreeMap<ObjectId, Option<Location>>,
    gets: BTreeMap<ObjectId, u32>,
    unfinished: BTreeSet<TaskId>,
    seq: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Slot {
    Empty,
    Offered(u64),
    Claimed(u64),
    Revoked,
}

struct ExecutorModel {
    client: Option<ClientId>,
    job: JobId,
    inbox: VecDeque<RunTask>,
    running: Option<RunTask>,
    blocked: bool,
    slots: [Slot; 64],
    told_exit: bool,
}

#[derive(Clone, PartialEq, Debug)]
enum HeadTask {
    Queued,
    Prefetched { called_back: bool },
    Leased,
}

struct HeadModel {
    up: bool,
    incarnation: u32,
    free_leases: usize,
    tasks: BTreeMap<TaskId, (Arc<TaskSpec>, u32, HeadTask)>,
    ended: BTreeSet<TaskId>,
    /// Values that exist: inline bytes, or the size of what is stored; here or only elsewhere.
    values: BTreeMap<ObjectId, (Result<Bytes, u64>, bool)>,
    holds: BTreeMap<ObjectId, u32>,
    asked: Vec<ObjectId>,
    gone: BTreeSet<ObjectId>,
    hinted_functions: BTreeSet<ObjectId>,
}

pub struct World {
    pub node: Node,
    pub now: Time,
    pub random: Random,
    effects: Vec<Effect>,
    processes: BTreeMap<ClientId, Process>,
    executors: BTreeMap<u32, ExecutorModel>,
    head: HeadModel,
    /// What the edge will answer.
    answers: VecDeque<Event>,
    own: BTreeMap<Location, ObjectId>,
    own_next: u64,
    spilled: BTreeSet<ObjectId>,
    /// Where each object that lies in a writer's segment lies.
    sealed: BTreeMap<Location, (ClientId, ObjectId)>,
    segments: BTreeMap<SegmentId, (u64, bool)>,
    tags: BTreeSet<u64>,
    next_client: u64,
    templates: Vec<Arc<TaskTemplate>>,
    /// What fails: executors, disks, sources.
    pub trouble: bool,
    pub log: Vec<String>,
    /// Keeps all of it.
    pub keep_log: bool,
    pub ran: usize,
    pub ahead: usize,
    pub spills: usize,
}

pub fn config(capacity: u64) -> NodeConfig {
    NodeConfig {
        node: NODE,
        hostname: "here".into(),
        resources: Resources::cpus(3),
        cores: 3,
        store_capacity: capacity,
        idle_executors: 2,
        idle_timeout: Span::secs(60),
        head_may_restart: false,
    }
}

impl World {
    pub fn new(seed: u64, capacity: u64, trouble: bool) -> World {
        World {
            node: Node::new(config(capacity)),
            now: Time(1_000_000),
            random: Random(seed),
            effects: Vec::new(),
            processes: BTreeMap::new(),
            executors: BTreeMap::new(),
            head: HeadModel {
                up: false,
                incarnation: 0,
                free_leases: 3,
                tasks: BTreeMap::new(),
                ended: BTreeSet::new(),
                values: BTreeMap::new(),
                holds: BTreeMap::new(),
                asked: Vec::new(),
                gone: BTreeSet::new(),
                hinted_functions: BTreeSet::new(),
            },
            answers: VecDeque::new(),
            own: BTreeMap::new(),
            own_next: 0,
            spilled: BTreeSet::new(),
            sealed: BTreeMap::new(),
            segments: BTreeMap::new(),
            tags: BTreeSet::new(),
            next_client: 0x100,
            templates: Vec::new(),
            trouble,
            log: Vec::new(),
            keep_log: false,
            ran: 0,
            ahead: 0,
            spills: 0,
        }
    }

    pub fn step(&mut self, event: Event) {
        if !self.keep_log && self.log.len() > 400 {
            self.log.drain(..200);
        }
        self.log.push(format!("{:?} <- {event:?}", self.now));
        let mut effects = std::mem::take(&mut self.effects);
        self.node.step(self.now, event, &mut effects);
        if let Err(broken) = self.node.check_invariants() {
            self.fail(&format!("invariant: {broken}"));
        }
        for effect in effects.drain(..) {
            self.log.push(format!("    -> {effect:?}"));
            self.perform(effect);
        }
        self.effects = effects;
    }

    pub fn fail(&self, why: &str) -> ! {
        let from = if self.keep_log { 0 } else { self.log.len().saturating_sub(120) };
        panic!("{why}\nthe last steps:\n{}", self.log[from..].join("\n"));
    }

    fn says(&mut self, client: ClientId, message: ClientToNode) {
        // What it is about to say already comes first (rule T3).
        let of_it =
            |event: &Event| matches!(event, Event::FromClient { client: from, .. } if *from == client);
        while let Some(at) = self.answers.iter().position(of_it) {
            if let Some(event) = self.answers.remove(at) {
                self.step(event);
            }
        }
        self.step(Event::FromClient { client, message });
    }

    fn head_says(&mut self, message: HeadToNode) {
        if self.head.up {
            self.step(Event::FromHead(message));
        }
    }

    pub fn admit(&mut self) {
        self.head.up = true;
        self.head.incarnation += 1;
        let (term, incarnation) = (Term(1), Incarnation(self.head.incarnation));
        self.step(Event::FromHead(HeadToNode::Admitted { term, incarnation, loss_timeout_ms: 5000 }));
    }

    pub fn tick(&mut self) {
        self.now = self.now + Span(self.random.next() % 60_000);
        self.step(Event::Tick);
    }

    pub fn edge_answers(&mut self) {
        let Some(event) = self.answers.pop_front() else { return };
        match &event {
            Event::FromClient { client, .. } | Event::ClientEnded { client }
                if !self.processes.contains_key(client) => {}
            Event::ClientEnded { client } => self.end_client(*client),
            Event::Revoked { executor, .. } if !self.executors.contains_key(executor) => {}
            _ => self.step(event),
        }
    }

    /// Something happens.
    pub fn act(&mut self) {
        match self.random.below(20) {
            0 => self.tick(),
            1..=6 => self.executor_acts(),
            7..=10 => self.edge_answers(),
            11..=14 => self.head_acts(),
            15 if self.trouble && self.random.chance(40) => {
                self.end_a_driver();
                self.attach_driver(true);
            }
            15 if self.trouble && self.random.chance(4) => self.nonsense(),
            _ => self.client_acts(),
        }
    }

    /// Messages that cannot be meant: unknown names, old attempts, wrong states.
    fn nonsense(&mut self) {
        let all: Vec<ClientId> = self.processes.keys().copied().collect();
        let Some(client) = self.random.pick(&all) else { return };
        let stranger = ObjectId::put(ClientId(0xdead), self.random.next() % 8);
        let task = TaskId { client, seq: self.random.next() % 40 };
        let attempt = Attempt { term: 1, n: 77 };
        let tag = self.random.next() % 50 + 1_000_000;
        let location = Location { segment: SegmentId(self.random.next() as u32), offset: 64, len: 1 << 40 };
        let event = match self.random.below(15) {
            0 => Event::FromClient { client: ClientId(0xbad), message: ClientToNode::Goodbye },
            1 => Event::FromClient { client, message: ClientToNode::Release(vec![stranger]) },
            2 => {
                Event::FromClient { client, message: ClientToNode::Evicted { object: stranger, freed: true } }
            }
            3 => Event::FromClient { client, message: ClientToNode::Escape(vec![stranger]) },
            4 => Event::FromClient { client, message: ClientToNode::ReturnMemory(vec![location.segment]) },
            5 => Event::FromClient {
                client,
                message: ClientToNode::Completed(Completion { tag, result: Ok(vec![]), micros: u64::MAX }),
            },
            6 => Event::FromClient { client, message: ClientToNode::Blocked { tag, on: vec![stranger] } },
            7 => Event::FromHead(HeadToNode::Grant { task, attempt, lease: Lease::default() }),
            8 => Event::FromHead(HeadToNode::CallBack(vec![(task, attempt)])),
            9 => Event::FromHead(HeadToNode::Cancel { task, attempt, reason: "no".into(), force: true }),
            10 => Event::FromHead(HeadToNode::Free(vec![stranger])),
            11 => Event::Revoked { executor: 999, tag, won: true },
            12 => Event::Spilled { objects: vec![] },
            13 => Event::SegmentCreated { segment: location.segment, failure: None },
            _ => {
                Event::StoreFailed { object: stranger, missing: true, reason: "no".into(), no_memory: false }
            }
        };
        if !self.head.up && matches!(event, Event::FromHead(_)) {
            return;
        }
        self.step(event);
    }

    /// Everybody does only what ends things, until nothing is left to do.
    pub fn settle(&mut self) {
        self.trouble = false;
        for _ in 0..6_000 {
            let waits = self
                .processes
                .values()
                .any(|process| !process.unfinished.is_empty() || !process.gets.is_empty());
            if !waits && self.head.tasks.is_empty() && self.answers.is_empty() {
                return;
            }
            match self.random.below(8) {
                0 => {
                    self.now = self.now + Span::millis(200);
                    self.step(Event::Tick);
                }
                1 | 2 => self.executor_acts(),
                3 | 4 => self.edge_answers(),
                5 | 6 => self.head_acts(),
                _ => {
                    // What is seen is let go, so that memory can move.
                    let all: Vec<ClientId> = self.processes.keys().copied().collect();
                    for client in all {
                        let told: Vec<ObjectId> = self.processes[&client].told.keys().copied().collect();
                        let running = self.executors.values().any(|known| known.client == Some(client));
                        if !running {
                            told.into_iter().for_each(|object| self.release(client, object));
                        }
                    }
                }
            }
        }
        let tasks: Vec<_> =
            self.head.tasks.iter().take(5).map(|(id, (_, n, state))| (id, n, state)).collect();
        let gets: Vec<_> =
            self.processes.iter().filter(|(_, p)| !p.gets.is_empty()).map(|(c, p)| (c, &p.gets)).collect();
        let asked: Vec<_> = self
            .head
            .asked
            .iter()
            .map(|o| (o, self.head.gone.contains(o), self.head.values.contains_key(o)))
            .collect();
        let state: Vec<_> = self
            .processes
            .values()
            .flat_map(|p| p.gets.keys())
            .map(|o| {
                (
                    self.head.values.get(o).map(|v| (v.0.is_ok(), v.1)),
                    self.head.gone.contains(o),
                    self.head.holds.get(o),
                    self.sealed.values().any(|(_, x)| x == o),
                    self.spilled.contains(o),
                )
            })
            .collect();
        self.fail(&format!(
            "it never settles: tasks {tasks:?}, gets {gets:?}, {} answers; asked {asked:?}; {state:?}",
            self.answers.len()
        ));
    }

    /// All handles go; nothing may be left then.
    pub fn drop_everything(&mut self) {
        let all: Vec<ClientId> = self.processes.keys().copied().collect();
        for client in all {
            let Some(process) = self.processes.get(&client) else { continue };
            let told: Vec<ObjectId> = process.told.keys().copied().collect();
            told.into_iter().for_each(|object| self.release(client, object));
            let Some(process) = self.processes.get(&client) else { continue };
            let handles: Vec<ObjectId> = process.held.iter().chain(process.private.keys()).copied().collect();
            handles.into_iter().for_each(|object| self.drop_handle(client, object));
        }
        self.templates.clear();
        for _ in 0..400 {
            self.edge_answers();
            if self.answers.is_empty() {
                self.now = self.now + Span::millis(100);
                self.step(Event::Tick);
            }
        }
        if !self.own.is_empty() || !self.sealed.is_empty() {
            self.fail(&format!(
                "REF-2: nobody holds anything, but there lie {:?} in writers' and {:?} in own memory",
                self.sealed, self.own
            ));
        }
        if !self.spilled.is_empty() {
            self.fail(&format!("REF-2: nobody holds anything, but there lie {:?} on disk", self.spilled));
        }
    }
}

fn answered(gets: &mut BTreeMap<ObjectId, u32>, object: ObjectId) {
    if let Some(times) = gets.get_mut(&object) {
        *times -= 1;
        if *times == 0 {
            gets.remove(&object);
        }
    }
}

/// The first gap of a leased segment.
fn alloc(process: &mut Process, segments: &BTreeMap<SegmentId, (u64, bool)>, len: u64) -> Option<Location> {
    for (segment, used) in &mut process.leased {
        let size = segments.get(segment)?.0;
        let mut at = 0;
        for (offset, taken) in used.iter() {
            if *offset >= at + len {
                break;
            }
            at = (offset + taken).next_multiple_of(64);
        }
        if at + len <= size {
            used.insert(at, len);
            return Some(Location { segment: *segment, offset: at, len });
        }
    }
    None
}

fn overlap(a: Location, b: Location) -> bool {
    a.segment == b.segment && a.offset < b.offset + b.len && b.offset < a.offset + a.len
}

pub fn failure(kind: FailureKind, message: &str) -> Failure {
    Failure { kind, message: message.into(), payload: Bytes::new(), task: None }
}
