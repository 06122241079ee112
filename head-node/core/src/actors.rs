//! Actors: from the task that makes one to its death, and back if it has restarts left.
//!
//! The task that makes an actor stays in the task table as long as the actor may live, in the state
//! [`TaskState::Alive`] while it does: so its lease stays booked, and what its making needs stays held for the next
//! time. The task's result 0 is the handle's object; whoever can reach that can call (rule A1).

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::query::{ActorView, NamedActor};
use cluster_types::{
    ActorTraits, Attempt, Failure, FailureKind, HeadToNode, Lease, Map, ObjectId, Outcome, TaskKind,
    TaskResult, TaskSpec,
};
use smallvec::SmallVec;

use crate::calls::Calls;
use crate::checkpoints::Kept;
use crate::head::{Head, failure};
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, TaskIx};
use crate::tasks::{Ended, TaskState};

/// An actor, from the submission of what makes it until nobody can ask for it any more.
#[derive(Debug)]
pub(crate) struct Actor {
    pub spec: Arc<TaskSpec>,
    /// What makes it; `None` once it is dead for good.
    pub task: Option<TaskIx>,
    /// It was made at least once.
    pub made: bool,
    pub restarts: u32,
    /// Its last life that is known to have ended.
    pub ended: Option<Attempt>,
    /// Somebody ended it, for this reason; whether it may be made anew.
    pub ending: Option<(String, bool)>,
    /// It ends where it is to live on elsewhere: that is none of its restarts.
    pub moves: bool,
    /// Why it is dead.
    pub death: Option<Failure>,
    /// How it ended the last time before it was made anew, for people.
    pub last_end: Option<Arc<str>>,
    pub calls: Calls,
    /// What it keeps over its restarts.
    pub kept: Kept,
    /// The store has it.
    pub stored: bool,
    /// Where it lives, for people.
    pub node: Option<Arc<str>>,
}

impl Actor {
    pub fn traits(&self) -> &ActorTraits {
        match &self.spec.template.kind {
            TaskKind::Actor(traits) => traits,
            _ => unreachable!("only specs of that kind are entered"),
        }
    }

    /// Whether it has restarts left.
    fn may_restart(&self) -> bool {
        let most = self.traits().max_restarts;
        most < 0 || self.restarts < most.cast_unsigned()
    }

    /// For people.
    fn title(&self) -> String {
        let traits = self.traits();
        let name = if traits.name.is_empty() { String::new() } else { format!(" named {:?}", traits.name) };
        format!("actor {} ({}){name}", self.spec.template.name, self.spec.id.result(0))
    }
}

/// The actors by their handles' objects, and by name.
#[derive(Debug, Default)]
pub(crate) struct Actors {
    known: Map<ObjectId, Actor>,
    names: Map<(String, String), ObjectId>,
    /// The last that ended, for those who look for their logs.
    past: VecDeque<PastActor>,
}

/// As many are remembered.
const PAST_ACTORS: usize = 10_000;

/// An actor that ended.
#[derive(Debug)]
pub(crate) struct PastActor {
    pub handle: ObjectId,
    pub name: String,
    /// Where it lived last.
    pub node: Option<Arc<str>>,
}

impl Actors {
    pub fn get(&self, handle: ObjectId) -> Option<&Actor> {
        self.known.get(&handle)
    }

    pub fn get_mut(&mut self, handle: ObjectId) -> Option<&mut Actor> {
        self.known.get_mut(&handle)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ObjectId, &Actor)> {
        self.known.iter()
    }

    /// Those that ended, the last first.
    pub fn past(&self) -> impl Iterator<Item = &PastActor> {
        self.past.iter().rev()
    }

    fn remember_past(&mut self, handle: ObjectId) {
        let Some(actor) = self.known.get(&handle) else { return };
        let past = PastActor { handle, name: actor.traits().name.clone(), node: actor.node.clone() };
        if self.past.len() >= PAST_ACTORS {
            self.past.pop_front();
        }
        self.past.push_back(past);
    }

    /// It will be no actor's for long: another may take it.
    fn free_name(&mut self, handle: ObjectId) {
        let Some(traits) = self.known.get(&handle).map(Actor::traits) else { return };
        let key = (traits.namespace.clone(), traits.name.clone());
        if self.names.get(&key) == Some(&handle) {
            self.names.remove(&key);
        }
    }

    pub fn named(&self, namespace: &str, name: &str) -> Option<(ObjectId, &Actor)> {
        let handle = *self.names.get(&(namespace.to_owned(), name.to_owned()))?;
        Some((handle, self.known.get(&handle)?))
    }
}

impl Head {
    /// What makes an actor was submitted.
    pub(crate) fn enter_actor(&mut self, spec: &Arc<TaskSpec>, task: TaskIx) {
        let TaskKind::Actor(traits) = &spec.template.kind else { return };
        let handle = spec.id.result(0);
        if !traits.name.is_empty() {
            self.actors.names.insert((traits.namespace.clone(), traits.name.clone()), handle);
        }
        if traits.detached {
            // The head itself holds it, until it is killed.
            self.add_container(handle);
        }
        let actor = Actor {
            spec: spec.clone(),
            task: Some(task),
            made: false,
            restarts: 0,
            ended: None,
            ending: None,
            moves: false,
            death: None,
            last_end: None,
            calls: Calls::new(traits.in_order()),
            kept: Kept::default(),
            stored: false,
            node: None,
        };
        self.actors.known.insert(handle, actor);
        self.store_actor(handle);
    }

    /// Whether the spec of an actor may be entered.
    pub(crate) fn check_actor(&self, spec: &TaskSpec) -> Result<(), String> {
        let TaskKind::Actor(traits) = &spec.template.kind else { return Ok(()) };
        if spec.template.num_returns != 1 {
            return Err("what makes an actor has one result, its handle".to_owned());
        }
        match self.actors.named(&traits.namespace, &traits.name) {
            Some((_, other)) if !traits.name.is_empty() => Err(format!(
                "the name {:?} is taken in namespace {:?} by {}",
                traits.name,
                traits.namespace,
                other.title()
            )),
            _ => Ok(()),
        }
    }

    /// The attempt, detached, made its actor: its lease is booked again, and stays.
    pub(crate) fn actor_made(
        &mut self,
        ix: TaskIx,
        node: NodeIx,
        lease: Lease,
        bundle: Option<u32>,
        results: SmallVec<[TaskResult; 1]>,
        micros: u64,
    ) {
        let Some(task) = self.tasks.get(ix) else { return };
        let spec = task.spec.clone();
        let (attempt, submitted, stamp) = (task.attempt, task.submitted, task.stamp);
        let booked = self
            .books(&spec, node, bundle)
            .is_some_and(|ledger| ledger.adopt(&spec.template.resources, &lease));
        debug_assert!(booked, "what was given back a moment ago fits");
        let now = self.now;
        if let Some(task) = self.tasks.get_mut(ix) {
            task.state = TaskState::Alive { node, since: now, lease };
        }
        if let Some(state) = self.nodes.get_mut(node) {
            state.attempts.insert(ix);
        }
        if let Some(index) = bundle {
            self.enter_bundle(ix, index);
        }
        let handle = spec.id.result(0);
        let name = self.nodes.name(node);
        let Some(actor) = self.actors.get_mut(handle) else {
            // Nobody can reach it any more: it ends as it begins.
            return self.end_living(ix, "nobody has a handle on it any more", false);
        };
        actor.node = Some(name.clone());
        if !std::mem::replace(&mut actor.made, true) {
            let outcome = Outcome::Ok(results);
            let told = FinishedOutcome::from(&outcome);
            self.set_results(ix, &spec, outcome, Some(node));
            if let Some(submitter) = self.clients.get(&spec.id.client) {
                let node = submitter.node;
                self.send(node, HeadToNode::Finished { task: spec.id, outcome: told });
            }
            self.tasks.remember(Ended {
                id: spec.id,
                name: spec.template.name.clone(),
                job: spec.job,
                error: None,
                node: Some(name),
                attempt,
                submitted,
                micros,
            });
            self.store_actor(handle);
        } else {
            self.keep_one_handle(ix, handle, node, results);
        }
        // It was to end while it was being made.
        let wish = self.actors.get(handle).and_then(|actor| actor.ending.clone());
        if let Some((reason, _)) = wish {
            self.end_living(ix, &reason, true);
        } else if self.tasks.stamped(ix, stamp).is_some_and(|task| task.cancelled) {
            self.end_living(ix, "its job ended", true);
        }
        self.feed_actor(handle);
    }

    /// The handle's value is known since the first making; this node's stands in for one that was lost.
    fn keep_one_handle(
        &mut self,
        ix: TaskIx,
        handle: ObjectId,
        node: NodeIx,
        results: SmallVec<[TaskResult; 1]>,
    ) {
        let nodes = &self.nodes;
        let found = self.objects.find(handle).and_then(|at| Some((at, self.objects.get_mut(at)?)));
        if let Some((at, object)) = found {
            let has_copy = object.copies().any(|copy| nodes.is_alive(copy));
            let is_missed = match &mut object.value {
                ObjectValue::Available { inline, home, .. }
                    if home.is_none_or(|home| home == node || !nodes.is_alive(home)) =>
                {
                    if inline.is_some() {
                        *home = Some(node);
                        return;
                    }
                    !has_copy
                }
                // Somebody asked for it while it was lost.
                ObjectValue::Pending(_) => true,
                _ => false,
            };
            if is_missed {
                // It need not be as large as the first, nor lie where that lay.
                if let Some(result) = results.into_iter().next() {
                    self.make_pending_again(at, ix);
                    let (size, inline) = result.value.into_parts();
                    self.set_value(at, size, inline, result.contains, node);
                }
                return;
            }
        }
        if self.objects.by_id(handle).is_none_or(|object| !object.copies().any(|copy| copy == node)) {
            self.to_free.entry(node).or_default().push(handle);
        }
    }

    /// The second report of an actor's attempt: it died.
    pub(crate) fn actor_died(&mut self, ix: TaskIx, failure: Failure, retry: Retry) {
        self.detach(ix);
        let Some(task) = self.tasks.get(ix) else { return };
        let (handle, cancelled) = (task.spec.id.result(0), task.cancelled);
        let attempt = self.tasks.attempt_of(task);
        let restarts = match self.actors.get_mut(handle) {
            Some(actor) => {
                actor.ended = Some(attempt);
                let wished = match actor.ending.take() {
                    Some((_, may_restart)) => may_restart,
                    None => retry != Retry::No,
                };
                let moves = std::mem::take(&mut actor.moves);
                let may = moves || actor.may_restart();
                let again = wished && !cancelled && may;
                actor.calls.lost_home();
                actor.restarts += u32::from(again && !moves);
                again
            }
            None => false,
        };
        if restarts {
            if let Some(actor) = self.actors.get_mut(handle) {
                actor.last_end = Some(failure.message);
                actor.calls.restarts();
            }
            self.store_actor(handle);
            self.enqueue(ix, true);
        } else {
            self.bury_actor(ix, failure);
        }
    }

    /// The actor, detached from every node, is dead for good.
    pub(crate) fn bury_actor(&mut self, ix: TaskIx, mut failure: Failure) {
        let Some(task) = self.tasks.remove(ix) else { return };
        self.uncount(&task);
        self.let_go(&task.spec);
        failure.kind = FailureKind::ActorDied;
        // Its submitter was out of touch, came back while it ended, and waits for the handle again.
        if self.pending_result(ix, task.spec.id, 0).is_some() {
            let outcome = Outcome::Failed(failure.clone());
            let told = FinishedOutcome::from(&outcome);
            self.set_results(ix, &task.spec, outcome, None);
            if let Some(node) = self.clients.get(&task.spec.id.client).map(|submitter| submitter.node) {
                self.send(node, HeadToNode::Finished { task: task.spec.id, outcome: told });
            }
        }
        self.close_actor(&task.spec, failure);
    }

    /// No call will be answered any more: the name is free, and what waited fails.
    pub(crate) fn close_actor(&mut self, spec: &Arc<TaskSpec>, failure: Failure) {
        let handle = spec.id.result(0);
        let Some(actor) = self.actors.get_mut(handle) else { return };
        if actor.death.is_some() {
            return;
        }
        actor.task = None;
        actor.death = Some(failure.clone());
        let waiting = actor.calls.take_all();
        let detached = actor.traits().detached;
        self.actors.remember_past(handle);
        self.actors.free_name(handle);
        self.unstore_actor(handle);
        self.forget_states(handle);
        for call in waiting {
            if let Some(task) = self.tasks.get(call) {
                self.failing.push((call, task.stamp, failure.clone()));
            }
        }
        if detached {
            if let Some(object_ix) = self.objects.find(handle)
                && let Some(object) = self.objects.get_mut(object_ix)
            {
                object.containers -= 1;
                self.objects.doubt(object_ix);
            }
            self.end_job(spec.job, "its detached actor ended");
        } else if self.objects.find(handle).is_none() {
            self.actors.known.remove(&handle);
        }
    }

    /// Nobody has a handle any more.
    pub(crate) fn handle_forgotten(&mut self, handle: ObjectId) {
        let Some(actor) = self.actors.get(handle) else { return };
        match actor.task {
            None => {
                self.actors.known.remove(&handle);
            }
            Some(ix) => self.end_actor(ix, "nobody has a handle on it any more", false, false),
        }
    }

    /// A client wants the actor to end.
    pub(crate) fn kill(&mut self, client: cluster_types::ClientId, handle: ObjectId, restart: bool) {
        if self.groups.get(handle).is_some() {
            return self.remove_group(client, handle);
        }
        let Some(actor) = self.actors.get(handle) else { return };
        let Some(ix) = actor.task else { return };
        let who = match self.clients.get(&client) {
            Some(known) if known.is_driver => format!("the driver of job {}", known.job),
            _ => format!("client {client}"),
        };
        self.end_actor(ix, &format!("killed by {who} with kill()"), restart, true);
    }

    /// Ends an actor wherever it stands. Dead for good unless `restart`.
    pub(crate) fn end_actor(&mut self, ix: TaskIx, reason: &str, restart: bool, force: bool) {
        let Some(task) = self.tasks.get(ix) else { return };
        let handle = task.spec.id.result(0);
        let (is_placed, is_alive) = (task.node().is_some(), matches!(task.state, TaskState::Alive { .. }));
        if restart
            && let Some(actor) = self.actors.get_mut(handle)
            && !(is_alive || actor.made && is_placed)
            && (actor.made || actor.may_restart())
        {
            // It is about to live. Where it never did, that spends a restart all the same.
            actor.restarts += u32::from(!actor.made);
            return;
        }
        if let Some(actor) = self.actors.get_mut(handle)
            && (actor.ending.is_none() || !restart)
        {
            actor.ending = Some((reason.to_owned(), restart && actor.made));
        }
        if !restart {
            self.actors.free_name(handle);
        }
        if is_alive {
            self.end_living(ix, reason, force);
        } else if is_placed {
            self.tell_to_end(ix, reason, true);
        } else {
            self.detach(ix);
            let failure = self.death_of(handle, reason);
            self.end_unmade(ix, failure);
        }
    }

    /// What never lived, or waits to live again, ends.
    pub(crate) fn end_unmade(&mut self, ix: TaskIx, failure: Failure) {
        let Some(task) = self.tasks.get(ix) else { return };
        let handle = task.spec.id.result(0);
        if self.actors.get(handle).is_some_and(|actor| actor.made) {
            self.bury_actor(ix, failure);
        } else {
            self.finish(ix, Outcome::Failed(failure), None, None, 0);
        }
    }

    /// A failure that says why this actor is dead.
    pub(crate) fn death_of(&self, handle: ObjectId, reason: &str) -> Failure {
        let title = self.actors.get(handle).map_or_else(|| format!("actor {handle}"), Actor::title);
        failure(
            FailureKind::ActorDied,
            format!("{title} died: {reason}"),
            handle.task().map(|(task, _)| task),
        )
    }

    /// What became of a call that may have run at its actor's last place, and may not be tried again. `why`: what its
    /// caller knows of the reason.
    pub(crate) fn lost_call(&self, spec: &TaskSpec, handle: ObjectId, why: Option<&str>) -> Failure {
        let (kind, why) = match self.actors.get(handle).map(|actor| (actor, &actor.death)) {
            Some((actor, None)) => {
                let known = why.or(actor.last_end.as_deref());
                let known = known.map_or_else(|| format!("{} was cut off", actor.title()), str::to_owned);
                let lives = actor.task.is_some_and(|task| self.is_living(task));
                let anew = if lives { "" } else { ". It is being made anew" };
                let may = "The call may have run: max_task_retries=1 tries it again";
                (FailureKind::ActorUnavailable, format!("{known}{anew}. {may}"))
            }
            Some((_, Some(death))) => (FailureKind::ActorDied, death.message.to_string()),
            None => (FailureKind::ActorDied, format!("actor {handle} is gone")),
        };
        let message = format!("task {} ({}) failed: {why}", spec.template.name, spec.id);
        failure(kind, message, handle.task().map(|(maker, _)| maker))
    }

    pub(crate) fn end_living(&mut self, ix: TaskIx, reason: &str, force: bool) {
        self.tell_to_end(ix, reason, force);
    }

    fn tell_to_end(&mut self, ix: TaskIx, reason: &str, force: bool) {
        let Some(task) = self.tasks.get(ix) else { return };
        let (Some(node), id, attempt) = (task.node(), task.spec.id, self.tasks.attempt_of(task)) else {
            return;
        };
        if let Some(actor) = self.actors.get_mut(id.result(0)) {
            // From now on its node returns what comes for it.
            actor.ending.get_or_insert((reason.to_owned(), false));
        }
        self.send(node, HeadToNode::EndActor { task: id, attempt, reason: reason.to_owned(), force });
    }

    /// The attempt that lives there, if it does.
    pub(crate) fn is_living(&self, ix: TaskIx) -> bool {
        self.tasks.get(ix).is_some_and(|task| matches!(task.state, TaskState::Alive { .. }))
    }

    /// Where the actor lives, with the attempt that made it.
    pub(crate) fn home_of(&self, handle: ObjectId) -> Option<(NodeIx, Attempt)> {
        let actor = self.actors.get(handle)?;
        if actor.ending.is_some() || self.is_recovering() {
            return None;
        }
        let task = self.tasks.get(actor.task?)?;
        match task.state {
            // While a node is being taken out of the books, nothing goes there.
            TaskState::Alive { node, .. } if self.nodes.is_alive(node) => {
                Some((node, self.tasks.attempt_of(task)))
            }
            _ => None,
        }
    }

    pub(crate) fn named_actor(&self, namespace: &str, name: &str) -> Option<NamedActor> {
        let (handle, actor) = self.actors.named(namespace, name)?;
        Some(NamedActor { actor: handle.to_string(), handle: actor.traits().handle.to_vec() })
    }

    pub(crate) fn actor_views(&self, limit: usize) -> Vec<ActorView> {
        let mut all: Vec<(&ObjectId, &Actor)> = self.actors.iter().collect();
        all.sort_unstable_by_key(|(handle, _)| std::cmp::Reverse((handle.client, handle.local)));
        all.truncate(limit);
        let view = |(handle, actor): (&ObjectId, &Actor)| {
            let living = actor.task.is_some_and(|ix| self.is_living(ix));
            let is_ending = matches!(actor.ending, Some((_, false)));
            let state = match (&actor.death, living, actor.made) {
                (Some(_), ..) => "dead",
                _ if is_ending => "ending",
                (None, true, _) => "alive",
                (None, false, true) => "restarting",
                (None, false, false) => "pending",
            };
            ActorView {
                actor: handle.to_string(),
                class: actor.spec.template.name.to_string(),
                name: actor.traits().name.clone(),
                namespace: actor.traits().namespace.clone(),
                state: state.to_owned(),
                job: actor.spec.job.to_string(),
                node: actor.node.as_deref().filter(|_| living).unwrap_or_default().to_owned(),
                restarts: actor.restarts,
                queued: actor.calls.waiting() as u64,
                running: actor.calls.handed_out as u64,
                error: actor.death.as_ref().map(|failure| failure.message.to_string()).unwrap_or_default(),
            }
        };
        all.into_iter().map(view).collect()
    }

    /// What must hold of actors between steps.
    pub(crate) fn audit_actors(&self) -> Result<(), String> {
        let mut handed_out: Map<ObjectId, usize> = Map::default();
        let mut waiting: Map<ObjectId, usize> = Map::default();
        for (_, task) in self.tasks.iter() {
            let Some(handle) = task.spec.called_actor() else { continue };
            match task.state {
                TaskState::HandedOut { .. } => *handed_out.entry(handle).or_default() += 1,
                TaskState::Direct => {}
                _ => *waiting.entry(handle).or_default() += 1,
            }
        }
        for (handle, actor) in self.actors.iter() {
            if actor.death.is_some() && (actor.calls.waiting() > 0 || actor.task.is_some()) {
                return Err(format!("actor {handle} is dead and has something to do"));
            }
            if actor.death.is_none() && actor.task.and_then(|ix| self.tasks.get(ix)).is_none() {
                return Err(format!("actor {handle} is not dead and nothing makes it"));
            }
            let (out, here) = (handed_out.remove(handle), waiting.remove(handle));
            if out.unwrap_or(0) != actor.calls.handed_out {
                return Err(format!(
                    "actor {handle}: {out:?} calls are handed out, not {}",
                    actor.calls.handed_out
                ));
            }
            if here.unwrap_or(0) != actor.calls.waiting() && actor.death.is_none() {
                return Err(format!(
                    "ORDER-1: actor {handle}: {here:?} calls wait, not {}",
                    actor.calls.waiting()
                ));
            }
            actor.calls.audit().map_err(|problem| format!("ORDER-1: actor {handle}: {problem}"))?;
        }
        Ok(())
    }
}
