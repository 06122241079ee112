//! What nodes say, to a head of a new term, that they have: values, actors, attempts that run, attempts that ended.
//!
//! HEAD-1: what runs is booked where it runs. What nobody wants any more is ended there.

use std::sync::Arc;

use cluster_types::node_head::Retry;
use cluster_types::{
    Attempt, Failure, FailureKind, HeadToNode, JobInfo, Lease, ObjectId, Outcome, ResultValue, TaskId,
    TaskKind, TaskResult, TaskSpec,
};

use crate::head::{Head, Job, failure};
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, ObjectIx, TaskIx};
use crate::tasks::TaskState;
use cluster_types::Set;

impl Head {
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
        let (size, inline) = result.value.into_parts();
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

    pub(super) fn lives(
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

    pub(super) fn runs(
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
    pub(super) fn ended_before(
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

pub(super) fn is_available(value: &ObjectValue) -> bool {
    matches!(value, ObjectValue::Available { .. })
}

pub(super) fn value_of(size: u64, inline: Option<bytes::Bytes>) -> ResultValue {
    inline.map_or(ResultValue::Stored { size }, ResultValue::Inline)
}
