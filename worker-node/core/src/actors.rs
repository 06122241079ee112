//! Actors: executors that stay with one object, and the calls that wait for it.
//!
//! An actor begins as an attempt like any other. When that ends well its executor leaves its pool and its lease stays
//! with it. From then on calls come as attempts that need no lease. ORDER-1: they are kept in the order the head
//! assigned them, and an actor that takes them in order is sent none before those in front of it.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::client_node::{Completion, MOVE_TAG};
use cluster_types::node_head::Retry;
use cluster_types::{
    ActorTraits, Attempt, ClientId, FailureKind, Lease, Map, NodeId, NodeToClient, NodeToHead, ObjectId,
    Outcome, TaskId, TaskKind, TaskResult, TaskSpec, Time,
};

use crate::attempts::{Assigned, Stage};
use crate::event::Effect;
use crate::executors::{Executor, Sent};
use crate::node::{Node, failure};
use crate::streams::Taken;
use crate::successor::handle_of;

/// Calls that an actor which takes them in order has been sent, the running one included.
const SENT_AHEAD: usize = 32;

/// An actor that lives on this node.
#[derive(Debug)]
pub(crate) struct Actor {
    /// What made it.
    task: TaskId,
    pub(crate) spec: Arc<TaskSpec>,
    pub(crate) attempt: Attempt,
    pub(crate) lease: Lease,
    /// Its handle's value.
    pub(crate) value: TaskResult,
    /// Its class, for people.
    class: Arc<str>,
    /// Bytes that it asked for; zero: it did not say.
    pub(crate) memory: u64,
    /// It may be made anew.
    pub(crate) restarts: bool,
    /// When it was made.
    pub(crate) since: Time,
    pub(crate) executor: u32,
    pub(crate) in_order: bool,
    /// So many calls it can have begun at once.
    pub(crate) concurrency: u32,
    /// Calls that its executor was not sent yet, in the order they came.
    pub(crate) queue: VecDeque<TaskId>,
    /// Clients of this node that call it past this daemon.
    pub(crate) callers: Vec<ClientId>,
    /// Clients elsewhere, with their nodes, or without shared memory, whose calls the daemons pass on.
    pub(crate) far_callers: Vec<(NodeId, ClientId)>,
    /// Somebody wants it to end, for this reason.
    ending: Option<String>,
}

impl Actor {
    /// For people.
    pub(crate) fn title(&self) -> String {
        format!("actor {} ({})", self.class, self.handle())
    }

    pub(crate) fn handle(&self) -> ObjectId {
        self.task.result(0)
    }

    /// Nobody wants it to end.
    pub(crate) fn takes_calls(&self) -> bool {
        self.ending.is_none()
    }
}

/// Actors by their handles' objects.
pub(crate) type Actors = Map<ObjectId, Actor>;

/// What makes an actor, if this spec does.
pub(crate) fn traits_of(spec: &TaskSpec) -> Option<&Arc<ActorTraits>> {
    match &spec.template.kind {
        TaskKind::Actor(traits) => Some(traits),
        _ => None,
    }
}

/// Of so many the processes are remembered.
const PAST_ACTORS: usize = 10_000;

impl Node {
    /// `__init__` ended well: the executor is the actor's from here on.
    pub(crate) fn actor_made(
        &mut self,
        executor: u32,
        client: ClientId,
        task: TaskId,
        outcome: Outcome,
        micros: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(made) = self.forget_attempt(task) else { return };
        let traits = traits_of(&made.spec);
        let in_order = traits.is_none_or(|traits| traits.in_order());
        let concurrency = traits.map_or(1, |traits| traits.calls_at_once());
        let handle = task.result(0);
        if let Some(known) = self.executors.get_mut(&executor) {
            known.actor = Some(handle);
            if self.past_actors.len() >= PAST_ACTORS {
                self.past_actors.pop_front();
            }
            self.past_actors.push_back((handle, known.pid));
        }
        let actor = Actor {
            task,
            spec: made.spec.clone(),
            attempt: made.attempt,
            lease: made.lease.unwrap_or_default(),
            value: handle_of(&outcome),
            class: made.spec.template.name.clone(),
            memory: made.spec.template.resources.memory.as_f64() as u64,
            restarts: traits_of(&made.spec).is_some_and(|traits| traits.max_restarts != 0),
            since: self.now,
            executor,
            in_order,
            concurrency,
            queue: VecDeque::new(),
            callers: Vec::new(),
            far_callers: Vec::new(),
            ending: None,
        };
        self.actors.insert(handle, actor);
        let done = NodeToHead::Done {
            task,
            attempt: made.attempt,
            executor: Some(client),
            outcome,
            retry: Retry::No,
            started: None,
            micros,
        };
        self.tell_head(done, effects);
    }

    /// The head gives a call. One whose actor is not here (any more) goes straight back.
    pub(crate) fn assign_call(
        &mut self,
        actor: ObjectId,
        spec: Arc<TaskSpec>,
        attempt: Attempt,
        effects: &mut Vec<Effect>,
    ) {
        let task = spec.id;
        let executor =
            self.actors.get(&actor).filter(|known| known.ending.is_none()).map(|known| known.executor);
        let Some(pool) = executor.and_then(|id| self.executors.get(&id)).map(|known| known.pool) else {
            self.tell_head(NodeToHead::Returned(vec![(task, attempt)]), effects);
            return;
        };
        let shape = self.catalogue.shape(&spec.template);
        let assigned = Assigned {
            spec,
            attempt,
            lease: Some(Lease::default()),
            stage: Stage::Arguments,
            calling_back: false,
            cancelled: None,
            shape,
            pool,
            admission: false,
            lends_cpu: false,
            pinned: false,
            taken: Taken::default(),
            yielded: 0,
        };
        self.attempts.insert(task, assigned);
        if let Some(known) = self.actors.get_mut(&actor) {
            known.queue.push_back(task);
        }
        self.await_arguments(task, effects);
    }

    /// Sends the actor's executor what may go: the next in order, or whatever is ready.
    pub(crate) fn feed_actor(&mut self, handle: ObjectId, effects: &mut Vec<Effect>) {
        let Some(actor) = self.actors.get(&handle) else { return };
        let executor = actor.executor;
        if actor.in_order {
            let sent = self.executors.get(&executor).map_or(0, |known| known.sent.len());
            for _ in sent..SENT_AHEAD {
                let Some(&next) = self.actors.get(&handle).and_then(|actor| actor.queue.front()) else {
                    return;
                };
                if !self.is_ready(next) || !self.send(next, executor, effects) {
                    return;
                }
                self.leave_actor_queue(handle, next);
            }
        } else {
            // What was ready has been sent before: only a few wait here, for their arguments.
            let ready: Vec<TaskId> =
                actor.queue.iter().copied().filter(|call| self.is_ready(*call)).collect();
            for call in ready {
                if self.send(call, executor, effects) {
                    self.leave_actor_queue(handle, call);
                }
            }
        }
    }

    fn is_ready(&self, call: TaskId) -> bool {
        self.attempts.get(&call).is_some_and(|call| call.stage == Stage::Ready)
    }

    pub(crate) fn leave_actor_queue(&mut self, handle: ObjectId, call: TaskId) {
        let Some(actor) = self.actors.get_mut(&handle) else { return };
        if actor.queue.front() == Some(&call) {
            actor.queue.pop_front();
        } else {
            actor.queue.retain(|waiting| *waiting != call);
        }
    }

    /// The executor ended a call of its actor.
    pub(crate) fn call_completed(
        &mut self,
        handle: ObjectId,
        client: ClientId,
        completion: Completion,
        effects: &mut Vec<Effect>,
    ) {
        let Some(actor) = self.actors.get(&handle) else { return };
        let executor = actor.executor;
        let task = self.shift(executor, completion.tag);
        let Some(task) = task.filter(|task| self.attempts.contains_key(task)) else {
            return self.give_back_results(client, completion.result.unwrap_or_default(), effects);
        };
        let micros = completion.micros;
        if let Err(failed) = &completion.result
            && failed.failure.kind == FailureKind::ActorDied
        {
            let (why, failure) = (failed.failure.message.to_string(), failed.failure.clone());
            let Some(actor) = self.actors.remove(&handle) else { return };
            self.tell_actor_died(&actor, &why, Retry::No, effects);
            self.end_attempt(task, Some(client), Outcome::Failed(failure), Retry::No, micros, None, effects);
            return self.leave(actor, &why, effects);
        }
        let (outcome, retry) = self.outcome_of(client, task, completion, effects);
        self.end_attempt(task, Some(client), outcome, retry, micros, None, effects);
    }

    /// `exit_actor` was called: that is the actor's end, by its own wish, and the head knows.
    fn leave(&mut self, actor: Actor, why: &str, effects: &mut Vec<Effect>) {
        let executor = actor.executor;
        let sent = self.executors.get_mut(&executor).map(|known| std::mem::take(&mut known.sent));
        self.end_calls(&actor, why, false, effects);
        self.lose_calls(&actor, sent.unwrap_or_default(), &[], why, effects);
        self.return_calls(actor.queue, effects);
        self.end_executor(executor, effects);
    }

    /// The same, in a call that went past this daemon.
    pub(crate) fn left(&mut self, client: ClientId, why: &str, effects: &mut Vec<Effect>) {
        let Some(actor) = self.actor_of(client).and_then(|handle| self.actors.remove(&handle)) else {
            return;
        };
        self.tell_actor_died(&actor, why, Retry::No, effects);
        self.leave(actor, why, effects);
    }

    /// The head wants it to end. Its second `Done` comes when its process is gone.
    pub(crate) fn end_actor(
        &mut self,
        task: TaskId,
        attempt: Attempt,
        reason: String,
        force: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(actor) = self.actors.get_mut(&task.result(0)).filter(|actor| actor.attempt == attempt)
        else {
            // It is still being made, or gone already.
            return self.cancel(task, attempt, &reason, true, effects);
        };
        let executor = actor.executor;
        actor.ending.get_or_insert(reason);
        if force {
            effects.push(Effect::EndExecutor { executor, force: true });
        } else {
            self.end_executor(executor, effects);
        }
    }

    /// This node is to leave: the actor may live on elsewhere with the state that it has.
    pub(crate) fn move_actor(&mut self, task: TaskId, attempt: Attempt, effects: &mut Vec<Effect>) {
        let Some(actor) = self.actors.get(&task.result(0)) else { return };
        if actor.attempt != attempt || actor.ending.is_some() {
            return;
        }
        let executor = self.executors.get(&actor.executor);
        if let Some(client) = executor.and_then(|known| known.client) {
            let reason = "its node is to leave".to_owned();
            let ask = NodeToClient::Cancel { tag: MOVE_TAG, reason, recursive: false };
            self.tell_client(client, ask, effects);
        }
    }

    /// The actor's process is gone: the head learns of that first, then of each call that was here.
    pub(crate) fn actor_exited(
        &mut self,
        handle: ObjectId,
        gone: Executor,
        cause: &str,
        unstarted: &[u64],
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut actor) = self.actors.remove(&handle) else { return };
        let (why, retry) = match (actor.ending.take(), &gone.out_of_memory) {
            (Some(reason), _) => (reason, Retry::No),
            (None, Some(ended)) => (ended.why.clone(), Retry::Infrastructure),
            (None, None) => {
                let why = format!("its process (pid {}) on node {} ended: {cause}", gone.pid, self.me());
                (why, Retry::Infrastructure)
            }
        };
        self.tell_actor_died(&actor, &why, retry, effects);
        self.end_calls(&actor, &why, false, effects);
        self.lose_calls(&actor, gone.sent, unstarted, &why, effects);
        self.return_calls(actor.queue, effects);
    }

    fn tell_actor_died(&mut self, actor: &Actor, why: &str, retry: Retry, effects: &mut Vec<Effect>) {
        let message = format!("{} died: {why}", actor.title());
        let outcome = Outcome::Failed(failure(FailureKind::ActorDied, message, Some(actor.task)));
        let (task, attempt) = (actor.task, actor.attempt);
        self.remember_end(&actor.spec, attempt, &outcome, retry, 0, true);
        let done =
            NodeToHead::Done { task, attempt, executor: None, outcome, retry, started: None, micros: 0 };
        self.tell_head(done, effects);
    }

    /// Calls that were sent to an actor that is no more.
    fn lose_calls(
        &mut self,
        actor: &Actor,
        sent: impl IntoIterator<Item = Sent>,
        unstarted: &[u64],
        why: &str,
        effects: &mut Vec<Effect>,
    ) {
        for sent in sent {
            if unstarted.contains(&sent.tag) {
                self.return_calls([sent.task], effects);
                continue;
            }
            let cancelled = self.attempts.get(&sent.task).and_then(|call| call.cancelled.clone());
            let (kind, message, retry) = match cancelled {
                Some(reason) => {
                    let message = format!("{} was cancelled: {reason}", self.name(sent.task));
                    (FailureKind::Cancelled, message, Retry::No)
                }
                None => {
                    let message = format!("{} failed: {} died: {why}", self.name(sent.task), actor.title());
                    (FailureKind::ActorDied, message, Retry::Infrastructure)
                }
            };
            let first = if kind == FailureKind::ActorDied { actor.task } else { sent.task };
            let outcome = Outcome::Failed(failure(kind, message, Some(first)));
            self.end_attempt(sent.task, None, outcome, retry, 0, None, effects);
        }
    }

    /// Calls that had not started: they are the head's again.
    fn return_calls(&mut self, calls: impl IntoIterator<Item = TaskId>, effects: &mut Vec<Effect>) {
        let mut returned = Vec::new();
        for task in calls {
            if self.attempts.get(&task).is_some_and(|call| call.cancelled.is_some()) {
                self.end_cancelled(task, effects);
            } else if let Some(call) = self.forget_attempt(task) {
                returned.push((task, call.attempt));
            }
        }
        if !returned.is_empty() {
            self.tell_head(NodeToHead::Returned(returned), effects);
        }
    }

    /// Stops a call that its executor has begun, or will: one that runs is interrupted, never killed, for its actor is
    /// others' too.
    pub(crate) fn interrupt_call(
        &mut self,
        executor: u32,
        tag: u64,
        reason: &str,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.executors.get(&executor) else { return };
        let Some(client) = known.client else { return };
        let in_order =
            known.actor.and_then(|handle| self.actors.get(&handle)).is_some_and(|actor| actor.in_order);
        if in_order {
            effects.push(Effect::Interrupt { executor, tag });
        }
        self.tell_client(
            client,
            NodeToClient::Cancel { tag, reason: reason.to_owned(), recursive: false },
            effects,
        );
    }

    /// No actor outlives the stream it was assigned on (FENCE-1).
    pub(crate) fn end_all_actors(&mut self, effects: &mut Vec<Effect>) {
        let mut actors: Vec<Actor> = self.actors.drain().map(|(_, actor)| actor).collect();
        actors.sort_unstable_by_key(|actor| actor.executor);
        for actor in &actors {
            self.end_calls(actor, "its node was out of touch with the head", true, effects);
        }
        let executors: Vec<u32> = actors.iter().map(|actor| actor.executor).collect();
        for executor in executors {
            if let Some(known) = self.executors.get_mut(&executor) {
                known.ending = true;
                known.actor = None;
                known.sent.clear();
            }
            effects.push(Effect::EndExecutor { executor, force: true });
        }
    }
}
