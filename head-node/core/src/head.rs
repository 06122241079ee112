//! The machine itself: what it consists of, and what each message leads to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use cluster_types::client_node::{Cancellation, LogLine};
use cluster_types::query::Query;
use cluster_types::{
    Attempt, ClientId, Failure, FailureKind, HeadToNode, JobId, JobInfo, Map, NodeId, NodeToHead, ObjectId,
    Set, Span, TaskId, Time,
};

use crate::actors::Actors;
use crate::checkpoints::KeptStates;
use crate::event::{Effect, Event, HeadConfig};
use crate::groups::Groups;
use crate::jobs::Jobs;
use crate::lineage::Lineage;
use crate::logs::{Asker, LogQuestions};
use crate::nodes::Nodes;
use crate::objects::Objects;
use crate::pulse::Pulses;
use crate::recovery::Recovery;
use crate::shapes::Shapes;
use crate::slab::{NodeIx, TaskIx};
use crate::starving::KeptNodes;
use crate::streams::Streams;
use crate::tasks::Tasks;

/// Objects freed in one step at most; the rest waits for the next (rule S6).
const SWEEP_SLICE: usize = 20_000;
/// Tasks that ended, for the disk, at one tick.
const HISTORY_SLICE: usize = 500;

/// A client attached to some node.
#[derive(Debug)]
pub(crate) struct Client {
    pub node: NodeIx,
    pub job: JobId,
    pub is_driver: bool,
    /// Objects of other makers that it holds.
    pub held: Set<ObjectId>,
}

/// Everything one driver submitted.
#[derive(Debug)]
pub(crate) struct Job {
    pub driver: ClientId,
    pub info: Arc<JobInfo>,
    /// Clients that have submitted tasks of it.
    pub submitters: Set<ClientId>,
    /// Functions (by name and shape) a notice was given about.
    pub noticed: Set<(Arc<str>, u32)>,
}

/// The head. See [`Head::step`].
#[derive(Debug)]
pub struct Head {
    pub(crate) config: HeadConfig,
    pub(crate) now: Time,
    pub(crate) last_tick: Option<Time>,
    pub(crate) nodes: Nodes,
    pub(crate) clients: Map<ClientId, Client>,
    pub(crate) jobs: Map<JobId, Job>,
    pub(crate) objects: Objects,
    pub(crate) tasks: Tasks,
    pub(crate) actors: Actors,
    pub(crate) groups: Groups,
    pub(crate) lineage: Lineage,
    /// Bytes that it may hold; follows the stores.
    pub(crate) lineage_leaves_max: u64,
    /// Tasks that pause before their next try, by the end of that.
    pub(crate) delayed: BinaryHeap<Reverse<(Time, TaskIx, u32)>>,
    /// Which actors keep something over their restarts.
    pub(crate) kept_states: KeptStates,
    /// For a group that starves.
    pub(crate) kept_nodes: Option<KeptNodes>,
    /// Those whose calls go on at the next tick.
    pub(crate) paused_actors: Vec<ObjectId>,
    /// What a task that has not ended submitted.
    pub(crate) children: Map<TaskId, Vec<TaskId>>,
    /// Who wants a task ended that a node has, for its error should the node not come to say it.
    pub(crate) unwanted: Map<TaskId, Cancellation>,
    /// Tasks that yield items.
    pub(crate) streams: Streams,
    pub(crate) shapes: Shapes,
    pub(crate) out: Vec<Effect>,
    /// Tasks that fail, with why; worked off iteratively, for a failure makes dependants fail.
    pub(crate) failing: Vec<(TaskIx, u32, Failure)>,
    /// Objects to delete, by node; sent as one message at the step's end.
    pub(crate) to_free: Map<NodeIx, Vec<ObjectId>>,
    /// Durable copies to delete, by who wrote them; kept while there is no node that could.
    pub(crate) to_delete: BTreeMap<NodeId, Vec<ObjectId>>,
    pub(crate) pulses: Pulses,
    /// Programs that the cluster runs by itself.
    pub(crate) submitted: Jobs,
    pub(crate) log_questions: LogQuestions,
    /// Until the nodes of the term before have said what there is.
    pub(crate) recovery: Option<Recovery>,
    /// Notices to give unless a node joins first.
    pub(crate) notices: Vec<(Time, TaskIx, u32)>,
    /// When `Remember` was said last.
    history_written: Time,
}

impl Head {
    /// A head that knows nothing yet.
    pub fn new(mut config: HeadConfig) -> Self {
        let tasks = Tasks::new(config.term.0, config.finished_kept, std::mem::take(&mut config.history));
        let mut nodes = Nodes::default();
        nodes.incarnations.extend(config.roster.iter().map(|member| (member.node, member.incarnation)));
        let recovery = Recovery::of(&config.roster);
        Self {
            recovery,
            pulses: Pulses::default(),
            submitted: Jobs::of(&config.jobs),
            log_questions: LogQuestions::default(),
            config,
            now: Time::default(),
            last_tick: None,
            nodes,
            clients: Map::default(),
            jobs: Map::default(),
            objects: Objects::default(),
            tasks,
            actors: Actors::default(),
            groups: Groups::default(),
            lineage: Lineage::default(),
            lineage_leaves_max: 0,
            delayed: BinaryHeap::new(),
            kept_states: KeptStates::default(),
            kept_nodes: None,
            paused_actors: Vec::new(),
            children: Map::default(),
            unwanted: Map::default(),
            streams: Streams::default(),
            shapes: Shapes::default(),
            out: Vec::new(),
            failing: Vec::new(),
            to_free: Map::default(),
            to_delete: BTreeMap::new(),
            notices: Vec::new(),
            history_written: Time::default(),
        }
    }

    /// Takes in one event and appends what is to be done about it. True: planning was cut short (rule S6); call again
    /// with `Tick` once other events that are there already were taken in.
    pub fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) -> bool {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.out, effects);
        match event {
            Event::NodeConnected { connection, hello } => self.node_connected(connection, hello),
            Event::NodeDisconnected { node, incarnation } => {
                if let Some(ix) = self.nodes.current(node, incarnation) {
                    self.lose_node(ix, "its connection closed");
                }
            }
            // FENCE-1: what an old incarnation says changes nothing.
            Event::FromNode { node, incarnation, message } => {
                if let Some(ix) = self.nodes.current(node, incarnation) {
                    self.hear(ix, node, incarnation, message);
                }
            }
            Event::Query { number, query: Query::Log(log) } => self.read_log(Asker::Head(number), log),
            Event::Query { number, query } => {
                let reply = self.ask(&query);
                self.out.push(Effect::Reply { number, reply });
            }
            Event::Tick => self.tick(),
        }
        if self.recover() {
            std::mem::swap(&mut self.out, effects);
            return false;
        }
        self.fail_failing();
        self.place_jobs();
        let more = self.plan();
        let more = self.sweep() || more;
        if self.objects.over_budget(self.config.inline_budget) {
            let nodes = &self.nodes;
            self.objects.keep_budget(self.config.inline_budget, |node| nodes.is_alive(node));
        }
        std::mem::swap(&mut self.out, effects);
        more
    }

    pub(crate) fn take_message(&mut self, ix: NodeIx, message: NodeToHead) {
        match message {
            NodeToHead::Heartbeat { store, executors } => {
                if let Some(node) = self.nodes.get_mut(ix) {
                    node.store = store;
                    node.executors = executors;
                }
            }
            NodeToHead::ClientAttached { client, kind, job, .. } => {
                self.client_attached(ix, client, kind, job)
            }
            NodeToHead::ClientGone { client } => {
                if self.is_attached(client, ix) {
                    self.client_gone(client, "the process that submitted it ended");
                }
            }
            NodeToHead::Submit(spec) => self.submit(ix, spec),
            NodeToHead::Expect(spec) => self.expect(ix, spec),
            NodeToHead::PutFailed { object, failure } => self.put_failed(ix, object, failure),
            NodeToHead::SubmitAgain { spec, may_have_run } => self.submit_again(ix, spec, may_have_run),
            NodeToHead::Called(calls) => self.called(ix, calls),
            NodeToHead::FindActor(actor) => self.find_actor(ix, actor),
            NodeToHead::Confirm(number) => self.send(ix, HeadToNode::Confirmed(number)),
            NodeToHead::Promote(on) => self.promote(&on),
            NodeToHead::Escaped { object, size, inline, contains } => {
                self.escaped(ix, object, size, inline, contains);
            }
            NodeToHead::Hold { client, objects } => self.hold(ix, client, &objects),
            NodeToHead::Drop { client, objects } => self.drop_holds(ix, client, &objects),
            NodeToHead::Done { task, attempt, outcome, retry, started, micros, .. } => {
                self.done(ix, task, attempt, outcome, retry, started, micros);
            }
            NodeToHead::Yielded { task, attempt, index, item } => {
                self.yielded(ix, task, attempt, index, item);
            }
            NodeToHead::Taken { task, items, closed } => self.taken(ix, task, items, closed),
            NodeToHead::Returned(attempts) => self.returned(ix, &attempts),
            NodeToHead::Blocked { task, attempt, on } => self.blocked(ix, task, attempt, &on),
            NodeToHead::Unblocked { task, attempt } => self.unblocked(ix, task, attempt),
            NodeToHead::Cancel { client, what } => {
                if self.is_attached(client, ix) {
                    self.cancel(&what);
                }
            }
            NodeToHead::Kill { client, actor, restart } => {
                if self.is_attached(client, ix) {
                    self.kill(client, actor, restart);
                }
            }
            NodeToHead::Locate(object) => self.locate(ix, object),
            NodeToHead::SourceFailed { object, source } => self.source_failed(ix, object, source),
            NodeToHead::CopyAdded(object) => self.copy_added(ix, object),
            NodeToHead::CopyRemoved(object) => self.copy_removed(ix, object),
            NodeToHead::Durable { object, writer } => self.written_durably(object, writer),
            NodeToHead::DurableLost { object, writer, reason } => {
                self.durable_lost(ix, object, writer, &reason);
            }
            NodeToHead::Drain { deadline_ms } => {
                self.drain(ix, Span::millis(deadline_ms), "its daemon was told to end");
            }
            NodeToHead::Log(lines) => self.forward_log(lines),
            NodeToHead::Query { client, number, query: Query::KeepState { actor, attempt, object } } => {
                self.keep_state(ix, (client, number), &actor, attempt, &object);
            }
            NodeToHead::Query { client, number, query: Query::MoveActor { actor, attempt } } => {
                self.move_actor(ix, (client, number), &actor, attempt);
            }
            // Said to a head that did not ask.
            NodeToHead::Kept { .. }
            | NodeToHead::Running { .. }
            | NodeToHead::Made(_)
            | NodeToHead::Told { .. }
            | NodeToHead::Unanswered { .. }
            | NodeToHead::Lives { .. }
            | NodeToHead::Ended { .. }
            | NodeToHead::SnapshotEnd => {}
            NodeToHead::Jobs(said) => self.hear_of_job(ix, said),
            NodeToHead::Query { client, number, query: Query::Log(log) } => {
                self.read_log(Asker::Client(ix, client, number), log);
            }
            NodeToHead::Mark { number, heard } => self.marked(ix, number, heard),
            NodeToHead::Query { client, number, query } => {
                let reply = self.ask(&query);
                self.send(ix, HeadToNode::Reply { client, number, reply });
            }
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        let timeout = self.config.loss_timeout;
        // If this head itself was held up (stopped, swapped out), the nodes' messages were too: they get their time.
        let held_up = self.last_tick.is_some_and(|last| now.since(last) > Span(timeout.0 / 2));
        self.last_tick = Some(now);
        let mut silent = Vec::new();
        for at in 0..self.nodes.alive().len() {
            let ix = self.nodes.alive()[at];
            let Some(node) = self.nodes.get_mut(ix) else { continue };
            if held_up {
                node.last_heard = node.last_heard.max(now - Span(timeout.0 / 2));
            }
            let heard = now.since(node.last_heard);
            if heard > timeout {
                silent.push((ix, heard));
            }
        }
        for (ix, heard) in silent {
            self.lose_node(ix, &format!("it was silent for {:.1} s", heard.0 as f64 / 1e6));
        }
        self.send_pulses();
        self.write_history();
        self.measure_lineage();
        self.look_at_draining();
        self.look_at_states();
        self.queue_delayed();
        self.give_notices();
        self.resume_calls();
        self.care_for_the_starving();
        self.care_for_starving_groups();
    }

    /// At once where it is little; once a second where tasks end by the thousand.
    fn write_history(&mut self) {
        let late = self.now.since(self.history_written) >= Span::secs(1);
        if let Some(history) = self.tasks.take_unwritten(if late { usize::MAX } else { HISTORY_SLICE }) {
            self.history_written = self.now;
            self.out.push(Effect::Remember(history));
        }
    }

    fn forward_log(&mut self, lines: Vec<LogLine>) {
        let mut by_job: Map<JobId, Vec<LogLine>> = Map::default();
        for line in lines {
            if self.jobs.get(&line.job).is_some_and(|job| job.info.log_to_driver) {
                by_job.entry(line.job).or_default().push(line);
            }
        }
        for (job, lines) in by_job {
            let Some(driver) = self.jobs.get(&job).map(|job| job.driver) else { continue };
            let Some(node) = self.clients.get(&driver).map(|client| client.node) else { continue };
            self.send(node, HeadToNode::Log { client: driver, lines });
        }
    }

    /// Frees what nobody can reach any more (REF-2), a slice at a time. True: there is more.
    fn sweep(&mut self) -> bool {
        for _ in 0..SWEEP_SLICE {
            let Some(object) = self.objects.sweep_one() else { break };
            self.forget_object(object);
        }
        if !self.to_free.is_empty() {
            for (node, objects) in std::mem::take(&mut self.to_free) {
                self.send(node, HeadToNode::Free(objects));
            }
        }
        if !self.to_delete.is_empty() {
            self.delete_durable();
        }
        self.objects.has_doubtful()
    }

    /// To a node, if it is alive.
    pub(crate) fn send(&mut self, ix: NodeIx, message: HeadToNode) {
        if let Some(node) = self.nodes.get(ix) {
            self.out.push(Effect::ToNode { node: node.id, message });
        }
    }

    pub(crate) fn is_attached(&self, client: ClientId, node: NodeIx) -> bool {
        self.clients.get(&client).is_some_and(|client| client.node == node)
    }

    pub(crate) fn cancel_attempt(&mut self, ix: NodeIx, task: TaskId, attempt: Attempt, reason: &str) {
        let reason = reason.to_owned();
        self.send(ix, HeadToNode::Cancel { task, attempt, reason, force: true });
    }
}

/// A failure without payload.
pub(crate) fn failure(kind: FailureKind, message: impl Into<Arc<str>>, task: Option<TaskId>) -> Failure {
    Failure { kind, message: message.into(), payload: bytes::Bytes::new(), task }
}
