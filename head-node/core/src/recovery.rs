//! A head that comes after another learns from the nodes what there is (rules H1 to H3).
//!
//! The store says which nodes there were. Until each has told what is on it, or is lost, nothing is planned, freed or
//! declared lost; what is said meanwhile waits. Then all of it is taken in at once, in an order in which everything
//! is known before it is spoken of: clients, values, actors, tasks, which of those run, how others ended, and the news.
//! HEAD-1: what a node says that it runs is booked there; only what no node has is queued.

mod adoption;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::{
    FailureKind, HeadToNode, Incarnation, JobId, Map, NodeHello, NodeId, NodeToHead, ObjectId, Outcome, Set,
    TaskId, TaskKind, TaskResult, TaskSpec, Time,
};
use std::sync::Arc;

use crate::event::{Effect, Member, Record};
use crate::head::{Head, failure};
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, ObjectIx, TaskIx};
use crate::tasks::TaskState;
use adoption::{is_available, value_of};

/// What is known before all nodes have reported.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// Nodes of the stored roster that have not reported.
    awaited: Map<NodeId, Member>,
    /// They are lost if they have not by then.
    until: Option<Time>,
    /// Those that have, or will.
    resumed: Set<NodeId>,
    /// What was said, in order.
    said: Vec<(NodeId, Incarnation, NodeToHead)>,
    /// Actors that live, with the values of their handles: whoever made one may not know yet.
    living: Map<TaskId, TaskResult>,
}

impl Recovery {
    pub fn remember_handle(&mut self, task: TaskId, value: TaskResult) {
        self.living.insert(task, value);
    }

    /// `None`: there was nobody.
    pub fn of(roster: &[Member]) -> Option<Self> {
        (!roster.is_empty()).then(|| Self {
            awaited: roster.iter().map(|member| (member.node, *member)).collect(),
            until: None,
            resumed: Set::default(),
            said: Vec::new(),
            living: Map::default(),
        })
    }
}

/// Before this rank comes what is known without the store's records; from it on, what may name those.
const RECORDS: u32 = 2;
/// From this rank on: what can be answered when all is known.
const QUESTIONS: u32 = 9;

/// What comes first, whoever says it.
fn rank(message: &NodeToHead) -> u32 {
    match message {
        NodeToHead::ClientAttached { .. } => 0,
        // Copies are told without what is inside: the home goes first.
        NodeToHead::Kept { .. } => 1,
        NodeToHead::Lives { .. } => RECORDS,
        // Of an actor that could not be made this is why, and its calls ask for that as they are entered.
        NodeToHead::PutFailed { .. } => 3,
        // An actor, or a group, before what names it.
        NodeToHead::Submit(spec)
            if spec.template.kind != TaskKind::Function && spec.called_actor().is_none() =>
        {
            4
        }
        NodeToHead::Submit(_)
        | NodeToHead::SubmitAgain { .. }
        | NodeToHead::Expect(_)
        | NodeToHead::Told { .. }
        | NodeToHead::Taken { .. } => 5,
        NodeToHead::Running { .. } => 6,
        NodeToHead::Ended { .. } => 7,
        NodeToHead::FindActor(_) | NodeToHead::Confirm(_) => QUESTIONS,
        _ => 8,
    }
}

/// The tasks of whose attempts a node says what becomes of them.
fn attempts_in(message: &NodeToHead) -> impl Iterator<Item = TaskId> + '_ {
    let (one, heir, returned): (_, _, &[_]) = match message {
        NodeToHead::Done { task, started, .. } => (Some(*task), started.map(|(task, _)| task), &[]),
        NodeToHead::Yielded { task, .. }
        | NodeToHead::Blocked { task, .. }
        | NodeToHead::Unblocked { task, .. } => (Some(*task), None, &[]),
        NodeToHead::Returned(attempts) => (None, None, attempts),
        _ => (None, None, &[]),
    };
    one.into_iter().chain(heir).chain(returned.iter().map(|(task, _)| *task))
}

impl Head {
    /// Whether nodes of the term before are still waited for.
    pub fn is_recovering(&self) -> bool {
        self.recovery.is_some()
    }

    /// Whether the node was of the term before, and nothing came between: since which number.
    pub(crate) fn recognises(&mut self, hello: &NodeHello) -> Option<Incarnation> {
        let recovery = self.recovery.as_mut()?;
        let member = *recovery.awaited.get(&hello.node)?;
        let (term, was) = hello.previous.unwrap_or_default();
        let recognised = term < self.config.term && was >= member.since && was <= member.incarnation;
        if recognised {
            recovery.resumed.insert(hello.node);
            Some(member.since)
        } else {
            recovery.awaited.remove(&hello.node);
            None
        }
    }

    pub(crate) fn await_no_more(&mut self, node: NodeId) {
        if let Some(recovery) = &mut self.recovery {
            recovery.awaited.remove(&node);
            recovery.resumed.remove(&node);
        }
    }

    /// A node said something; before recovery ended, only that it lives counts at once.
    pub(crate) fn hear(&mut self, ix: NodeIx, node: NodeId, incarnation: Incarnation, message: NodeToHead) {
        if let Some(node) = self.nodes.get_mut(ix) {
            node.last_heard = self.now;
        }
        match (&mut self.recovery, message) {
            (Some(recovery), NodeToHead::SnapshotEnd) => {
                recovery.awaited.remove(&node);
            }
            (Some(recovery), message)
                if !matches!(message, NodeToHead::Heartbeat { .. } | NodeToHead::Mark { .. }) =>
            {
                recovery.said.push((node, incarnation, message));
            }
            (_, message) => self.take_message(ix, message),
        }
    }

    /// Ends the recovery if its time has come. True: it goes on.
    pub(crate) fn recover(&mut self) -> bool {
        let (now, patience) = (self.now, self.config.loss_timeout);
        let Some(recovery) = &mut self.recovery else { return false };
        let until = *recovery.until.get_or_insert(now + patience);
        if !recovery.awaited.is_empty() && now < until {
            return true;
        }
        let mut lost: Vec<NodeId> = std::mem::take(&mut recovery.awaited).into_keys().collect();
        lost.sort_unstable();
        let mut said = std::mem::take(&mut recovery.said);
        self.out.extend(lost.into_iter().map(|node| Effect::Persist(Record::NodeLeft { node })));
        // Of several tries of a task the last one's end counts.
        said.sort_by_key(|(_, _, message)| {
            let latest = match message {
                NodeToHead::Ended { attempt, .. } => {
                    u64::MAX - ((u64::from(attempt.term) << 32) | u64::from(attempt.n))
                }
                NodeToHead::Kept { contains, .. } => u64::from(contains.is_empty()),
                _ => 0,
            };
            (rank(message), latest)
        });
        let known_first = said.iter().position(|(_, _, said)| rank(said) >= RECORDS).unwrap_or(said.len());
        let questions = said.iter().position(|(_, _, said)| rank(said) >= QUESTIONS).unwrap_or(said.len());
        let questions = said.split_off(questions);
        let later = said.split_off(known_first);
        said.into_iter().for_each(|(node, incarnation, message)| self.learn(node, incarnation, message));
        for durable in std::mem::take(&mut self.config.durables) {
            self.restore_durable(durable);
        }
        for group in std::mem::take(&mut self.config.groups) {
            self.restore_group(group);
        }
        for actor in std::mem::take(&mut self.config.actors) {
            self.restore_actor(actor);
        }
        let mut made: Vec<Arc<TaskSpec>> = Vec::new();
        let (mut running, mut again) = (Vec::new(), Set::default());
        for (node, incarnation, message) in later {
            match message {
                NodeToHead::Made(spec) => made.push(spec),
                // Its submitter knows that it ended: it makes something again, if it is for anything.
                NodeToHead::Running { ref spec, .. } if self.has_ended_before(spec) => {
                    again.insert(spec.id);
                    running.push((node, incarnation, message));
                }
                // What became of it meanwhile comes after it.
                message if attempts_in(&message).any(|task| again.contains(&task)) => {
                    running.push((node, incarnation, message));
                }
                message => self.learn(node, incarnation, message),
            }
        }
        made.sort_by_key(|spec| spec.id);
        let found = self.restore_lineage(&made);
        for (node, incarnation, message) in running {
            match message {
                NodeToHead::Running { .. } => self.learn_of_made_again(node, incarnation, message),
                message => self.learn(node, incarnation, message),
            }
        }
        // Whoever waits for one of these has it made at once, and what that needs.
        for ix in found {
            if self.objects.get(ix).is_some_and(|object| is_available(&object.value)) {
                self.value_known(ix);
            }
        }
        self.recovery = None;
        self.lose_unknown();
        self.end_unknown_jobs();
        let mut actors: Vec<ObjectId> = self.actors.iter().map(|(handle, _)| *handle).collect();
        actors.sort_unstable();
        actors.into_iter().for_each(|actor| self.feed_actor(actor));
        questions.into_iter().for_each(|(node, incarnation, message)| self.learn(node, incarnation, message));
        false
    }

    fn has_ended_before(&self, spec: &TaskSpec) -> bool {
        let is_function = spec.template.kind == TaskKind::Function && spec.called_actor().is_none();
        is_function && self.tasks.find(spec.id).is_none() && self.clients.contains_key(&spec.id.client)
    }

    fn learn_of_made_again(&mut self, node: NodeId, incarnation: Incarnation, running: NodeToHead) {
        let NodeToHead::Running { spec, .. } = &running else { return };
        let entered = self.enter_made_again(spec.id);
        self.learn(node, incarnation, running);
        let is_nowhere = |ix: &TaskIx| {
            let task = self.tasks.get(*ix);
            task.is_some_and(|task| {
                task.node().is_none() && matches!(task.state, TaskState::Waiting { missing: 0 })
            })
        };
        if let Some(ix) = entered.filter(is_nowhere) {
            self.place(ix);
        }
    }

    fn learn(&mut self, node: NodeId, incarnation: Incarnation, message: NodeToHead) {
        // FENCE-1: it may be lost since.
        let Some(ix) = self.nodes.current(node, incarnation) else { return };
        match message {
            NodeToHead::Kept { object, size, inline, contains } => {
                let result = TaskResult { value: value_of(size, inline), contains };
                self.kept(ix, object, result);
            }
            NodeToHead::Lives { spec, attempt, lease, handle, info } => {
                self.lives(ix, &spec, attempt, lease, handle, info);
            }
            NodeToHead::Running { spec, attempt, lease, yielded } => {
                self.runs(ix, &spec, attempt, lease, yielded);
            }
            NodeToHead::Ended { spec, attempt, outcome, retry, micros, lived } => {
                self.ended_before(ix, &spec, attempt, outcome, retry, micros, lived);
            }
            NodeToHead::Told { task, items } => {
                if self.is_attached(task.client, ix)
                    && let Some(stream) = self.streams.get_mut(&task)
                {
                    stream.known = items;
                }
            }
            NodeToHead::Unanswered { client, objects } => {
                let there =
                    |id: &ObjectId| self.objects.by_id(*id).is_some_and(|object| is_available(&object.value));
                let there: Vec<ObjectId> = objects.into_iter().filter(there).collect();
                self.hold(ix, client, &there);
            }
            message => self.take_message(ix, message),
        }
    }

    /// What nobody has is lost; what nobody holds is freed. A task that fails for a reason that is known fails for that: an
    /// end that nobody heard of may have freed its arguments.
    fn lose_unknown(&mut self) {
        self.fail_failing();
        let named = self.tasks.iter().filter_map(|(_, task)| task.spec.template.strategy.group());
        let groups: Set<ObjectId> = named.map(|place| place.group).collect();
        let all: Vec<ObjectIx> = self.objects.iter().map(|(ix, _)| ix).collect();
        all.iter().for_each(|ix| self.objects.doubt(*ix));
        let unknown = all.into_iter().filter_map(|ix| {
            let object = self.objects.get(ix)?;
            matches!(object.value, ObjectValue::Unknown).then_some((ix, object.id))
        });
        let (removed, lost): (Vec<_>, Vec<_>) = unknown.partition(|(_, id)| groups.contains(id));
        for (ix, id) in removed {
            let message = format!("placement group ({id}) was removed before the head was started again");
            self.objects.set_failed(ix, failure(FailureKind::GroupRemoved, message, None));
            self.value_known(ix);
        }
        self.fail_failing();
        for (ix, id) in lost {
            let message = format!(
                "object {id} is lost: when the head was started again, no node had it, and nobody knew what makes it"
            );
            self.objects.set_failed(ix, failure(FailureKind::ObjectLost, message, None));
            self.value_known(ix);
        }
    }

    /// Jobs whose drivers are gone: their executors end.
    fn end_unknown_jobs(&mut self) {
        let mut ended: Vec<(NodeIx, JobId)> = self
            .clients
            .values()
            .filter(|client| client.job != JobId::default() && !self.jobs.contains_key(&client.job))
            .map(|client| (client.node, client.job))
            .collect();
        // Some have ended since their nodes told of them; the nodes still know their jobs.
        for node in self.nodes.alive() {
            let jobs = self.nodes.get(*node).into_iter().flat_map(|state| &state.jobs);
            ended.extend(jobs.filter(|job| !self.jobs.contains_key(job)).map(|job| (*node, *job)));
        }
        ended.sort_unstable();
        ended.dedup();
        for (node, job) in ended {
            if let Some(state) = self.nodes.get_mut(node) {
                state.jobs.remove(&job);
            }
            self.send(node, HeadToNode::JobEnded(job));
        }
    }

    /// Whether the node runs on from the term before.
    pub(crate) fn is_resumed(&self, ix: NodeIx) -> bool {
        let id = self.nodes.get(ix).map(|node| node.id);
        id.is_some_and(|id| self.recovery.as_ref().is_some_and(|recovery| recovery.resumed.contains(&id)))
    }

    /// Its submitter did not hear that the actor was made.
    pub(crate) fn tell_again(&mut self, node: NodeIx, ix: TaskIx) {
        let Some(recovery) = &mut self.recovery else { return };
        let Some(task) = self.tasks.get(ix) else { return };
        let id = task.spec.id;
        if let Some(handle) = recovery.living.remove(&id) {
            let outcome = FinishedOutcome::from(&Outcome::Ok([handle].into_iter().collect()));
            self.send(node, HeadToNode::Finished { task: id, outcome });
        }
    }
}
