//! A head that comes after another learns from the nodes what there is (rules H1 to H3).
//!
//! The store says which nodes there were. Until each has told what is on it, or is lost, nothing is planned, freed or
//! declared lost; what is said meanwhile waits. Then all of it is taken in at once, in an order in which everything
//! is known before it is spoken of: clients, values, actors, tasks, which of those run, how others ended, and the news.
//! HEAD-1: what a node says that it runs is booked there; only what no node has is queued.

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::{
    Attempt, Failure, FailureKind, HeadToNode, Incarnation, JobId, JobInfo, Lease, Map, NodeHello, NodeId,
    NodeToHead, ObjectId, Outcome, ResultValue, Set, TaskId, TaskKind, TaskResult, TaskSpec, Time,
};
use std::sync::Arc;

use crate::event::{Effect, Member, Record};
use crate::head::{Head, Job, failure};
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, ObjectIx, TaskIx};
use crate::tasks::TaskState;

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
        let mut running = Vec::new();
        for (node, incarnation, message) in later {
            match message {
                NodeToHead::Made(spec) => made.push(spec),
                // Its submitter knows that it ended: it makes something again, if it is for anything.
                NodeToHead::Running { ref spec, .. } if self.has_ended_before(spec) => {
                    running.push((node, incarnation, message));
                }
                message => self.learn(node, incarnation, message),
            }
        }
        made.sort_by_key(|spec| spec.id);
        let found = self.restore_lineage(&made);
        for (node, incarnation, message) in running {
            self.learn_of_made_again(node, incarnation, message);
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

    /// What nobody has is lost; what nobody holds is freed.
    fn lose_unknown(&mut self) {
        let named = self.tasks.iter().filter_map(|(_, task)| task.spec.template.strategy.group());
        let groups: Set<ObjectId> = named.map(|place| place.group).collect();
        let all: Vec<ObjectIx> = self.objects.iter().map(|(ix, _)| ix).collect();
        for ix in all {
            self.objects.doubt(ix);
            let Some(object) = self.objects.get(ix) else { continue };
            if !matches!(object.value, ObjectValue::Unknown) {
                continue;
            }
            let id = object.id;
            let failure = match groups.contains(&id) {
                true => {
                    let message =
                        format!("placement group ({id}) was removed before the head was started again");
                    failure(FailureKind::GroupRemoved, message, None)
                }
                false => {
                    let message = format!(
                        "object {id} is lost: when the head was started again, no node had it, and nobody knew what \
                         makes it"
                    );
                    failure(FailureKind::ObjectLost, message, None)
                }
            };
            self.objects.set_failed(ix, failure);
            self.value_known(ix);
        }
    }

    /// Executors of jobs whose drivers are gone.
    fn end_unknown_jobs(&mut self) {
        let mut ended: Vec<(NodeIx, JobId)> = self
            .clients
            .values()
            .filter(|client| client.job != JobId::default() && !self.jobs.contains_key(&client.job))
            .map(|client| (client.node, client.job))
            .collect();
        ended.sort_unstable();
        ended.dedup();
        for (node, job) in ended {
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

    /// A value on a node. The first that is named is its home.
    pub(crate) fn kept(&mut self, node: NodeIx, id: ObjectId, result: TaskResult) {
        let ix = self.objects.find_or_insert(id, || ObjectValue::Unknown);
        let Some(object) = self.objects.get_mut(ix) else { return };
        if let ObjectValue::Available { .. } = object.value {
            if !object.copies().any(|copy| copy == node) {
                object.more_mut().copies.push(node);
            }
            return;
        }
        let (size, inline) = match result.value {
            ResultValue::Inline(bytes) => (bytes.len() as u64, Some(bytes)),
            ResultValue::Stored { size } => (size, None),
        };
        self.set_value(ix, size, inline, result.contains, node);
    }

    /// Nodes that have a value which its submitter does not know of yet.
    pub(crate) fn copies_before(&self, ix: ObjectIx) -> Vec<NodeIx> {
        match &self.recovery {
            Some(_) => self.objects.get(ix).map(|object| object.copies().collect()).unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// They still have it when it is said to have ended, or is made once more.
    pub(crate) fn keep_copies(&mut self, ix: ObjectIx, nodes: Vec<NodeIx>) {
        for node in nodes {
            let Some(object) = self.objects.get_mut(ix) else { return };
            if !object.copies().any(|copy| copy == node) {
                object.more_mut().copies.push(node);
            }
        }
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
        self.held_by_none(spec);
        Some(ix)
    }

    pub(crate) fn take_value(&mut self, id: ObjectId) -> Option<(NodeIx, TaskResult)> {
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
        let bundle = self.bundle_for(spec, node, &lease);
        let in_group = spec.template.strategy.group().is_some();
        let booked = self.known_task(spec).filter(|ix| {
            let free = (bundle.is_some() || !in_group)
                && self.books(spec, node, bundle).is_some_and(|books| {
                    let fits = books.adopt(&spec.template.resources, &lease);
                    if fits {
                        books.give(&spec.template.resources, &lease, false);
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
        self.actor_made(ix, node, lease, bundle, Default::default(), 0);
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
        let is_elsewhere = spec.called_actor().is_some() && home != Some(node);
        let again = self.lacks_items(id, yielded);
        if is_elsewhere || !self.set_attempt(ix, attempt) {
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
                let bundle = self.bundle_for(spec, node, &lease);
                let has_place = bundle.is_some() || spec.template.strategy.group().is_none();
                let adopted = has_place
                    && self
                        .books(spec, node, bundle)
                        .is_some_and(|books| books.adopt(&spec.template.resources, &lease));
                if !adopted {
                    self.cancel_attempt(node, id, attempt, why);
                    let name = &spec.template.name;
                    let failure = match spec.template.strategy.group() {
                        Some(place) => {
                            let group = place.group;
                            let message = format!(
                                "task {name} ({id}) was ended: placement group ({group}) was removed"
                            );
                            failure(FailureKind::GroupRemoved, message, Some(id))
                        }
                        None => {
                            let message = format!(
                                "task {name} ({id}) ran while the head was started again, which found no lease for it"
                            );
                            failure(FailureKind::Internal, message, Some(id))
                        }
                    };
                    return self.finish(ix, Outcome::Failed(failure), None, None, 0);
                }
                self.set_leased(ix, node, lease);
                if let Some(index) = bundle {
                    self.enter_bundle(ix, index);
                }
            }
        }
        if again {
            // Its node answers before it is tried again (TASK-2).
            if let Some(task) = self.tasks.get_mut(ix) {
                task.revived = true;
            }
            return self.cancel_attempt(node, id, attempt, "an item that it had yielded was lost");
        }
        self.resume_stream(id, yielded);
        // The head before may not have passed on what was taken.
        self.tell_taken(id);
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

    /// How many items of a task that yields there are, the last one counted.
    fn items_here(&self, id: TaskId) -> u32 {
        if !self.streams.contains_key(&id) {
            return 0;
        }
        let items = self.objects.made_by(id.client).into_iter().filter_map(|ix| {
            let object = self.objects.get(ix).filter(|object| is_available(&object.value))?;
            let (task, index) = object.id.task()?;
            (task == id).then_some(index)
        });
        items.max().unwrap_or(0)
    }

    /// Whether an item that its submitter was not told of is gone (a node that had made it was lost, and then the head
    /// which knew its value): the task has to yield it once more.
    fn lacks_items(&self, id: TaskId, yielded: u32) -> bool {
        let Some(stream) = self.streams.get(&id).filter(|stream| !stream.closed) else { return false };
        let is_gone = |index: &u32| {
            self.objects.by_id(id.item(*index)).is_none_or(|object| !is_available(&object.value))
        };
        (stream.known..yielded).any(|index| is_gone(&index))
    }

    /// Items of the attempt that its submitter was not told of are told now.
    fn resume_stream(&mut self, id: TaskId, yielded: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.closed {
            return;
        }
        let told = stream.known;
        stream.known = told.max(yielded);
        let submitter = self.clients.get(&id.client).map(|client| client.node);
        for index in told..yielded {
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
        let yielded = self.items_here(spec.id);
        if (makes_actor && matches!(outcome, Outcome::Ok(_)))
            || self.lacks_items(spec.id, yielded)
            || !self.set_attempt(ix, attempt)
        {
            return;
        }
        self.resume_stream(spec.id, yielded);
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

    /// An actor died; the head before may have known, and the actor may live elsewhere since.
    fn died_before(&mut self, spec: &Arc<TaskSpec>, attempt: Attempt, failure: Failure, retry: Retry) {
        let Some(ix) = self.tasks.find(spec.id) else { return };
        let Some(actor) = self.actors.get_mut(spec.id.result(0)) else { return };
        let is_known = actor.ended.is_some_and(|ended| (ended.term, ended.n) >= (attempt.term, attempt.n));
        if is_known {
            return;
        }
        let was_made = std::mem::replace(&mut actor.made, true);
        if self.set_attempt(ix, attempt) {
            self.actor_died(ix, failure, retry);
        }
        // Who waits to hear that it was made hears of its next life.
        if let Some(actor) = self.actors.get_mut(spec.id.result(0)).filter(|actor| actor.death.is_none()) {
            actor.made = was_made;
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
