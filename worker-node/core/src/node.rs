//! The node: what it knows, and what it does about each event.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cluster_types::client_node::LogLine;
use cluster_types::{
    Amount, ClientId, Failure, FailureKind, JobId, JobInfo, Map, NodeToClient, NodeToHead, ObjectId, Set,
    Span, TaskId, Time,
};

use crate::actors::Actors;
use crate::attempts::{Attempts, Queue};
use crate::catalogue::{Catalogue, PoolKey, ShapeKey};
use crate::clients::Client;
use crate::durable::Durable;
use crate::event::{Effect, Event, NodeConfig};
use crate::executors::{Executor, Pool};
use crate::far::Far;
use crate::jobs::JobsHere;
use crate::memory::Memories;
use crate::objects::Objects;
use crate::short_memory::Shortage;
use crate::successor::Remembered;

/// Printed lines that are kept while the head is away.
const LINES_HELD: usize = 1_000;
const HEARTBEAT: Span = Span::millis(500);
/// The head keeps the time that a leaving node has; this is for one that does not.
const PATIENCE_WITH_THE_HEAD: Span = Span::secs(2);

/// The node as a state machine. `step` is the only thing that changes it.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) now: Time,
    /// The head's stream is open.
    pub(crate) connected: bool,
    /// It was open before.
    pub(crate) was_connected: bool,
    /// Messages to the head from before its stream was open, in order. What is here was said by clients, each of which
    /// keeps more than this for every entry: a task that it waits for, or a handle that it had. Printed lines, of which
    /// there is no such end, are counted apart.
    pub(crate) held_back: Vec<NodeToHead>,
    pub(crate) clients: Map<ClientId, Client>,
    pub(crate) jobs: Map<JobId, Arc<JobInfo>>,
    /// Programs that the cluster runs by itself.
    pub(crate) submitted: JobsHere,
    pub(crate) executors: BTreeMap<u32, Executor>,
    pub(crate) next_executor: u32,
    pub(crate) actors: Actors,
    /// The processes of the last actors that were made here, for those who look for their logs.
    pub(crate) past_actors: VecDeque<(ObjectId, u32)>,
    /// Calls to actors of other nodes.
    pub(crate) far: Far,
    pub(crate) pools: Map<PoolKey, Pool>,
    pub(crate) catalogue: Catalogue,
    pub(crate) attempts: Attempts,
    /// Ready attempts sent ahead, by shape.
    pub(crate) ahead: Map<ShapeKey, Queue>,
    pub(crate) objects: Objects,
    /// States of actors that executors of this node have kept, each with a file of the same name.
    pub(crate) states: Set<ObjectId>,
    pub(crate) memory: Memories,
    pub(crate) durable: Durable,
    /// What the whole machine has left of it.
    pub(crate) shortage: Shortage,
    /// For a head that comes without knowing what this one knows.
    pub(crate) remembered: Remembered,
    /// Small results since the last tick.
    pub(crate) fresh: Vec<ObjectId>,
    /// Cores that attempts take up now; more than there are after one that waited goes on (rule S4).
    pub(crate) cpu_used: Amount,
    /// Lines held back for the head.
    held_lines: usize,
    /// Lines that were not, by job.
    lost_lines: BTreeMap<JobId, u64>,
    pub(crate) next_tag: u64,
    pub(crate) uses: u64,
    pub(crate) next_heartbeat: Time,
    /// It was told to leave; it does by then, whatever the head says.
    leave_by: Option<Time>,
}

impl Node {
    /// A node that knows nobody yet.
    pub fn new(config: NodeConfig) -> Self {
        Self {
            config,
            now: Time::default(),
            connected: false,
            was_connected: false,
            fresh: Vec::new(),
            held_back: Vec::new(),
            clients: Map::default(),
            jobs: Map::default(),
            submitted: JobsHere::default(),
            executors: BTreeMap::new(),
            next_executor: 1,
            actors: Actors::default(),
            past_actors: VecDeque::new(),
            far: Far::default(),
            pools: Map::default(),
            catalogue: Catalogue::default(),
            attempts: Attempts::default(),
            ahead: Map::default(),
            objects: Objects::default(),
            states: Set::default(),
            memory: Memories::default(),
            durable: Durable::default(),
            shortage: Shortage::default(),
            remembered: Remembered::default(),
            cpu_used: Amount::ZERO,
            held_lines: 0,
            lost_lines: BTreeMap::new(),
            next_tag: 0,
            uses: 0,
            next_heartbeat: Time::default(),
            leave_by: None,
        }
    }

    /// Takes in one event; appends what to do about it, in order.
    pub fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        self.now = now;
        let Some(event) = self.durable.hold_back(event) else { return };
        match event {
            Event::FromHead(message) => self.head_says(message, effects),
            Event::HeadLost => self.connected = false,
            Event::ClientAttached { client, pid, kind, shares_memory } => {
                self.client_attached(client, pid, kind, shares_memory, effects)
            }
            Event::FromClient { client, message } => {
                if self.clients.contains_key(&client) {
                    self.client_says(client, message, effects);
                }
            }
            Event::ClientEnded { client } => self.client_ended(client, effects),
            Event::ExecutorExited { executor, cause, unstarted } => {
                self.executor_exited(executor, &cause, &unstarted, effects)
            }
            Event::Revoked { executor, tag, won } => self.revoked(executor, tag, won, effects),
            Event::SegmentCreated { segment, failure } => self.segment_created(segment, failure, effects),
            Event::Stored { object, location } | Event::Restored { object, location } => {
                self.stored(object, location, effects)
            }
            Event::StoreFailed { object, reason, no_memory, .. } => {
                self.store_failed(object, &reason, no_memory, effects)
            }
            Event::Spilled { objects } => self.spilled(objects, effects),
            Event::SpillFailed { objects, failure } => self.spill_failed(objects, &failure, effects),
            Event::DurableWritten { object } => self.durable_written(object, effects),
            Event::DurableFailed { object, reason } => self.durable_failed(object, &reason, effects),
            Event::MemoryShort(short) => self.memory_short(&short, effects),
            Event::MemoryMeasured { executors } => self.memory_measured(&executors, effects),
            Event::ToldToLeave { within } => self.told_to_leave(within, effects),
            Event::FromPeer { node, message } => self.peer_says(node, message, effects),
            Event::PeerOpened { node } => self.peer_opened(node, effects),
            Event::PeerClosed { node, opened_here: true, why } => {
                self.callees_lost(node, &why, effects);
            }
            Event::PeerClosed { node, opened_here: false, .. } => self.callers_lost(node, effects),
            Event::JobSaid { job, attempt, stage } => self.job_said(&job, attempt, stage, effects),
            Event::Tick => self.tick(effects),
        }
    }

    pub(crate) fn tick(&mut self, effects: &mut Vec<Effect>) {
        self.look_at_executors(effects);
        self.look_at_memory(effects);
        self.look_at_shortage(effects);
        self.serve_small(effects);
        let is_alone = !self.connected && !self.config.head_may_restart;
        if self.leave_by.is_some_and(|by| self.now >= by || is_alone) {
            self.leave_by = None;
            effects.push(Effect::End);
        }
        if self.now >= self.next_heartbeat {
            self.next_heartbeat = self.now + HEARTBEAT;
            self.forget_pools();
            if self.connected {
                let store = self.store_usage();
                effects.push(Effect::ToHead(NodeToHead::Heartbeat {
                    store,
                    executors: self.executors.len() as u32,
                }));
                if self.config.head_may_restart {
                    let mark = self.remembered.next_mark();
                    effects.push(Effect::ToHead(mark));
                }
            }
        }
    }

    fn told_to_leave(&mut self, within: Span, effects: &mut Vec<Effect>) {
        let may_return = self.was_connected && self.config.head_may_restart;
        if !self.connected && !may_return {
            // Nobody could take over what is here.
            effects.push(Effect::End);
            return;
        }
        self.leave_by = Some(self.now + within + PATIENCE_WITH_THE_HEAD);
        self.tell_head(NodeToHead::Drain { deadline_ms: within.0 / 1000 }, effects);
    }

    /// How long what runs may still run, if the node was told to leave.
    pub(crate) fn time_to_leave(&self) -> Option<u64> {
        let by = self.leave_by?;
        Some(by.since(self.now + PATIENCE_WITH_THE_HEAD).0 / 1000)
    }

    pub(crate) fn tell_head(&mut self, message: NodeToHead, effects: &mut Vec<Effect>) {
        if self.connected {
            effects.push(Effect::ToHead(message));
            return;
        }
        if let NodeToHead::Log(lines) = &message {
            if self.held_lines >= LINES_HELD {
                for line in lines {
                    *self.lost_lines.entry(line.job).or_default() += 1;
                }
                return;
            }
            self.held_lines += lines.len();
        } else if self.was_connected && self.config.head_may_restart {
            // The next head is told how things stand then.
            return;
        }
        self.held_back.push(message);
    }

    /// The stream is open: what waited for it goes.
    pub(crate) fn tell_held_back(&mut self, effects: &mut Vec<Effect>) {
        self.held_lines = 0;
        for (job, lines) in std::mem::take(&mut self.lost_lines) {
            let text = format!(
                "{lines} lines that tasks printed on {} are not shown: the head was away (`cluster logs` has them)",
                self.config.hostname
            );
            let line = LogLine { job, task: None, pid: 0, node: self.config.node, stderr: true, text };
            self.held_back.push(NodeToHead::Log(vec![line]));
        }
        effects.extend(std::mem::take(&mut self.held_back).into_iter().map(Effect::ToHead));
    }

    pub(crate) fn tell_client(&self, client: ClientId, message: NodeToClient, effects: &mut Vec<Effect>) {
        if self.clients.contains_key(&client) {
            effects.push(Effect::ToClient { client, message });
        }
    }

    /// This node, for people.
    pub(crate) fn me(&self) -> String {
        format!("{} ({})", self.config.node, self.config.hostname)
    }

    /// A task here, for people.
    pub(crate) fn name(&self, task: TaskId) -> String {
        match self.attempts.get(&task) {
            Some(known) => format!("task {} ({task}{})", known.spec.template.name, known.attempt),
            None => format!("task {task}"),
        }
    }
}

pub(crate) fn failure(kind: FailureKind, message: String, task: Option<TaskId>) -> Failure {
    Failure { kind, message: message.into(), payload: bytes::Bytes::new(), task }
}
