//! A head that comes after another learns from the nodes what there is (rules H1 to H3).
//!
//! The store says which nodes there were. Until each has told what is on it, or is lost, nothing is planned, freed or
//! declared lost; what is said meanwhile waits. Then all of it is taken in at once, in an order in which everything
//! is known before it is spoken of: clients, values, actors, tasks, which of those run, how others ended, and the news.
//! HEAD-1: what a node says that it runs is booked there; only what no node has is queued.

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::{
    Attempt, Failure, FailureKind, HeadToNode, Incarnation, JobInfo, Lease, Map, NodeHello, NodeId,
    NodeToHead, ObjectId, Outcome, ResultValue, Set, TaskId, TaskKind, TaskResult, TaskSpec, Time,
};
use std::sync::Arc;

use crate::event::{Effect, Record};
use crate::head::{Head, Job, failure};
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, TaskIx};
use crate::tasks::TaskState;

/// What is known before all nodes have reported.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// Nodes of the stored roster that have not reported.
    awaited: Map<NodeId, Incarnation>,
    /// They are lost if they have not by then.
    until: Option<Time>,
    /// What was said, in order.
    said: Vec<(NodeId, Incarnation, NodeToHead)>,
    /// Actors that live, with the values of their handles: whoever made one may not know yet.
    living: Map<TaskId, TaskResult>,
}

impl Recovery {
    /// `None`: there was nobody.
    pub fn of(roster: &[(NodeId, Incarnation)]) -> Option<Self> {
        (!roster.is_empty()).then(|| Self {
            awaited: roster.iter().copied().collect(),
            until: None,
            said: Vec::new(),
            living: Map::default(),
        })
    }
}

/// What comes first, whoever says it.
fn rank(message: &NodeToHead) -> u32 {
    match message {
        NodeToHead::ClientAttached { .. } => 0,
        NodeToHead::Kept { .. } => 1,
        NodeToHead::Lives { .. } => 2,
        NodeToHead::Ended { lived: true, .. } => 3,
        NodeToHead::Submit(_) => 4,
        NodeToHead::Running { .. } => 5,
        NodeToHead::Ended { .. } => 6,
        _ => 7,
    }
}

impl Head {
    pub(crate) fn is_recovering(&self) -> bool {
        self.recovery.is_some()
    }

    /// Whether the node was of the term before, and nothing came between.
    pub(crate) fn recognises(&mut self, hello: &NodeHello) -> bool {
        let Some(recovery) = &mut self.recovery else { return false };
        let Some(known) = recovery.awaited.get(&hello.node) else { return false };
        let recognised = hello
            .previous
            .is_some_and(|(term, incarnation)| term < self.config.term && incarnation == *known);
        if !recognised {
            recovery.awaited.remove(&hello.node);
        }
        recognised
    }

    pub(crate) fn await_no_more(&mut self, node: NodeId) {
        if let Some(recovery) = &mut self.recovery {
            recovery.awaited.remove(&node);
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
            (Some(recovery), message) if !matches!(message, NodeToHead::Heartbeat { .. }) => {
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
                _ => 0,
            };
            (rank(message), latest)
        });
        for (node, incarnation, message) in said {
            let Some(ix) = self.nodes.current(node, incarnation) else { continue };
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
                message => self.take_message(ix, message),
            }
        }
        self.recovery = None;
        let actors: Vec<ObjectId> = {
            let mut all: Vec<ObjectId> = self.actors.iter().map(|(handle, _)| *handle).collect();
            all.sort_unstable();
            all
        };
        actors.into_iter().for_each(|actor| self.feed_actor(actor));
        false
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

    /// A value on a node. The first that is named is its home.
    fn kept(&mut self, node: NodeIx, id: ObjectId, result: TaskResult) {
        let own = self.clients.contains_key(&id.client);
        let ix = self.objects.find_or_insert(id, || ObjectValue::Unknown);
        let Some(object) = self.objects.get_mut(ix) else { return };
        if let ObjectValue::Available { .. } = object.value {
            if !object.copies().any(|copy| copy == node) {
                object.more_mut().copies.push(node);
            }
            return;
        }
        object.own = own;
        let (size, inline) = match result.value {
            ResultValue::Inline(bytes) => (bytes.len() as u64, Some(bytes)),
            ResultValue::Stored { size } => (size, None),
        };
        self.set_value(ix, size, inline, result.contains, node);
    }

    /// The task that a node speaks of: entered if its submitter is gone and cannot speak of it. `None`: nobody wants
    /// it.
    fn known_task(&mut self, spec: &Arc<TaskSpec>) -> Option<TaskIx> {
        if let Some(ix) = self.tasks.find(spec.id) {
            return Some(ix);
        }
        let makes_actor = matches!(spec.template.kind, TaskKind::Actor(_));
        let submitter = self.clients.contains_key(&spec.id.client);
        if !self.jobs.contains_key(&spec.job) || (submitter && !makes_actor) {
            return None;
        }
        let known: Vec<Option<_>> = results_of(spec)
            .map(|id| self.objects.by_id(id).filter(|object| is_available(&object.value)).map(|_| id))
            .collect();
        // A result that is there already (an actor's handle) keeps its value.
        let values: Vec<_> = known.into_iter().flatten().map(|id| (id, self.take_value(id))).collect();
        self.enter_checked((**spec).clone(), None);
        let ix = self.tasks.find(spec.id)?;
        for (id, value) in values {
            if let Some((node, result)) = value {
                self.kept(node, id, result);
            }
        }
        if !submitter {
            for id in results_of(spec) {
                if let Some(object) = self.objects.find(id) {
                    if let Some(object) = self.objects.get_mut(object) {
                        object.own = false;
                    }
                    self.objects.doubt(object);
                }
            }
        }
        Some(ix)
    }

    fn take_value(&mut self, id: ObjectId) -> Option<(NodeIx, TaskResult)> {
        let object = self.objects.by_id(id)?;
        let ObjectValue::Available { size, inline, home } = &object.value else { return None };
        let contains = object.more().map(|more| more.contains.clone()).unwrap_or_default();
        Some(((*home)?, TaskResult { value: value_of(*size, inline.clone()), contains }))
    }

    /// The attempt that is, or was, on a node is the task's last. False: a later one is known.
    fn set_attempt(&mut self, ix: TaskIx, attempt: Attempt) -> bool {
        let Some(task) = self.tasks.get_mut(ix) else { return false };
        if task.node().is_some()
            || (task.attempt > 0 && (task.term, task.attempt) > (attempt.term, attempt.n))
        {
            return false;
        }
        task.attempt = attempt.n.max(1);
        task.term = attempt.term;
        self.detach(ix);
        true
    }

    fn lives(
        &mut self,
        node: NodeIx,
        spec: &Arc<TaskSpec>,
        attempt: Attempt,
        lease: Lease,
        handle: TaskResult,
        info: Arc<JobInfo>,
    ) {
        let TaskKind::Actor(traits) = &spec.template.kind else { return };
        if traits.detached && !self.jobs.contains_key(&spec.job) {
            // Rule A6: its job is its own.
            let job =
                Job { driver: spec.id.client, info, submitters: Set::default(), noticed: Set::default() };
            self.jobs.insert(spec.job, job);
        }
        let task = spec.id;
        let booked = self.known_task(spec).filter(|ix| {
            let free = self.nodes.get_mut(node).is_some_and(|node| {
                let fits = node.ledger.adopt(&spec.template.resources, &lease);
                if fits {
                    node.ledger.give(&spec.template.resources, &lease, false);
                }
                fits
            });
            free && self.set_attempt(*ix, attempt)
        });
        let Some(ix) = booked else {
            let reason = "the head, started again, does not know what it is for".to_owned();
            return self.send(node, HeadToNode::EndActor { task, attempt, reason, force: true });
        };
        let object = task.result(0);
        if self.objects.by_id(object).is_some_and(|object| !is_available(&object.value)) {
            self.kept(node, object, handle.clone());
        }
        if let Some(job) = self.jobs.get_mut(&spec.job) {
            job.submitters.insert(task.client);
        }
        if let Some(state) = self.nodes.get_mut(node) {
            state.jobs.insert(spec.job);
        }
        if let Some(actor) = self.actors.get_mut(object) {
            actor.made = true;
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.living.insert(task, handle);
        }
        self.actor_made(ix, node, lease, None, Default::default(), 0);
    }

    fn runs(
        &mut self,
        node: NodeIx,
        spec: &Arc<TaskSpec>,
        attempt: Attempt,
        lease: Option<Lease>,
        yielded: u32,
    ) {
        let id = spec.id;
        let why = "the head, started again, does not know what it is for";
        let Some(ix) = self.known_task(spec) else {
            return self.cancel_attempt(node, id, attempt, why);
        };
        let home = spec.called_actor().and_then(|actor| {
            let task = self.tasks.get(self.actors.get(actor)?.task?)?;
            matches!(task.state, TaskState::Alive { .. }).then(|| task.node())?
        });
        if (spec.called_actor().is_some() && home != Some(node)) || !self.set_attempt(ix, attempt) {
            return self.cancel_attempt(node, id, attempt, why);
        }
        if let Some(state) = self.nodes.get_mut(node) {
            state.jobs.insert(spec.job);
        }
        self.set_variant(ix, spec);
        let now = self.now;
        match (spec.called_actor(), lease) {
            (Some(actor), _) => {
                if let Some(task) = self.tasks.get_mut(ix) {
                    task.state = TaskState::HandedOut { node, since: now };
                }
                if let Some(state) = self.nodes.get_mut(node) {
                    state.attempts.insert(ix);
                }
                if let Some(actor) = self.actors.get_mut(actor) {
                    actor.calls.handed_out += 1;
                }
            }
            (None, None) => self.set_prefetched(ix, node),
            (None, Some(lease)) => {
                let adopted = self
                    .nodes
                    .get_mut(node)
                    .is_some_and(|node| node.ledger.adopt(&spec.template.resources, &lease));
                if !adopted {
                    self.cancel_attempt(node, id, attempt, why);
                    let message = format!(
                        "task {} ({id}) ran while the head was started again, which found no lease for it",
                        spec.template.name
                    );
                    let failure = failure(FailureKind::Internal, message, Some(id));
                    return self.finish(ix, Outcome::Failed(failure), None, None, 0);
                }
                self.set_leased(ix, node, lease);
            }
        }
        self.resume_stream(ix, id, yielded);
    }

    /// Of a task with several requests one was chosen.
    fn set_variant(&mut self, ix: TaskIx, spec: &TaskSpec) {
        let Some((choices, _)) = self.tasks.get(ix).and_then(|task| task.choices.as_ref()) else { return };
        let chosen = choices
            .variants
            .iter()
            .find(|(_, template)| template.resources == spec.template.resources)
            .map(|(shape, _)| *shape);
        if let Some(shape) = chosen {
            self.choose_variant(ix, shape);
        }
    }

    /// Items of the attempt that are there still are told again: the submitter knows which it had.
    fn resume_stream(&mut self, ix: TaskIx, id: TaskId, yielded: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.known = yielded;
        let submitter = self.clients.get(&id.client).map(|client| client.node);
        for index in 0..yielded {
            let Some(object) = self.objects.by_id_mut(id.item(index)) else { continue };
            let ObjectValue::Available { size, inline, .. } = &object.value else { continue };
            let value = value_of(*size, inline.clone());
            if let Some(node) = submitter {
                object.own = true;
                self.send(node, HeadToNode::Item { task: id, index, value });
            }
        }
        if submitter.is_none() {
            self.close_stream(id);
        }
        let _ = ix;
    }

    /// An attempt ended while nobody listened, or the submitter may not have heard (rule R5).
    fn ended_before(
        &mut self,
        node: NodeIx,
        spec: &Arc<TaskSpec>,
        attempt: Attempt,
        outcome: Outcome,
        retry: Retry,
        micros: u64,
        lived: bool,
    ) {
        if lived {
            let Outcome::Failed(failure) = outcome else { return };
            return self.died_before(spec, attempt, failure, retry);
        }
        // Of a task that its submitter does not speak of, it knows the end.
        let Some(ix) = self.tasks.find(spec.id) else { return };
        let makes_actor = matches!(spec.template.kind, TaskKind::Actor(_));
        if (makes_actor && matches!(outcome, Outcome::Ok(_))) || !self.set_attempt(ix, attempt) {
            return;
        }
        let may_retry = self.tasks.get(ix).is_some_and(|task| match retry {
            Retry::NoRoom => task.may_try_again_uncounted(),
            _ => task.may_retry(),
        });
        if retry != Retry::No && matches!(outcome, Outcome::Failed(_)) && may_retry {
            self.try_again(ix, retry);
        } else {
            let name = self.nodes.name(node);
            self.finish(ix, outcome, Some(node), Some(name), micros);
        }
    }

    /// An actor died; it may live elsewhere since.
    fn died_before(&mut self, spec: &Arc<TaskSpec>, attempt: Attempt, failure: Failure, retry: Retry) {
        if self.tasks.find(spec.id).is_some() {
            return;
        }
        let Some(ix) = self.known_task(spec) else { return };
        if let Some(actor) = self.actors.get_mut(spec.id.result(0)) {
            actor.made = true;
        }
        if self.set_attempt(ix, attempt) {
            self.actor_died(ix, failure, retry);
        }
    }
}

fn results_of(spec: &TaskSpec) -> impl Iterator<Item = ObjectId> + use<> {
    let (id, returns) = (spec.id, spec.template.num_returns);
    (0..returns).map(move |index| id.result(index))
}

fn is_available(value: &ObjectValue) -> bool {
    matches!(value, ObjectValue::Available { .. })
}

fn value_of(size: u64, inline: Option<bytes::Bytes>) -> ResultValue {
    inline.map_or(ResultValue::Stored { size }, ResultValue::Inline)
}
