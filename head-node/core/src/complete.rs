//! Attempts end, and with them, sooner or later, their tasks (TASK-1, TASK-2).

use std::cmp::Reverse;
use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::task::{Backoff, Strategy};
use cluster_types::{
    Attempt, Failure, FailureKind, HeadToNode, Lease, Outcome, ResultValue, Span, TaskId, TaskKind,
    TaskResult, TaskSpec,
};

use crate::head::{Head, failure};
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, TaskIx};
use crate::tasks::{Ended, Task, TaskState};

/// Memory that ran out is not there again at once.
const ROOM_AFTER: Span = Span::secs(1);

impl Head {
    /// An attempt ended; `started` runs in its lease now (rule S2, one step).
    pub(crate) fn done(
        &mut self,
        node: NodeIx,
        id: TaskId,
        attempt: Attempt,
        outcome: Outcome,
        retry: Retry,
        started: Option<(TaskId, Attempt)>,
        micros: u64,
    ) {
        // TASK-2: a stale report ends nothing; but what it says has started is booked.
        let current = self.tasks.current(id, attempt, node);
        if let Some(ix) = current.filter(|ix| self.is_living(*ix)) {
            if let Outcome::Failed(failure) = outcome {
                self.actor_died(ix, failure, retry);
                self.nodes.mark_dirty(node);
            }
            return;
        }
        let bundle = current.and_then(|ix| self.tasks.get(ix)).and_then(|task| task.bundle);
        let lease = match current {
            Some(ix) => {
                if matches!(outcome, Outcome::Ok(_)) {
                    self.note_duration(ix, node, micros);
                }
                self.detach(ix)
            }
            None => None,
        };
        let inherited = started.is_some_and(|(heir, attempt)| {
            // Out of a bundle nothing is inherited.
            let lease = lease.as_ref().filter(|_| bundle.is_none());
            self.inherit(node, heir, attempt, lease)
        });
        if !inherited {
            self.nodes.mark_dirty(node);
        }
        let Some(ix) = current else {
            // What it made nobody will free.
            if let Outcome::Ok(results) = outcome {
                (0..results.len() as u32).for_each(|index| self.spare_value(node, id.result(index)));
            }
            return;
        };
        let Some(spec) = self.tasks.get(ix).map(|task| task.spec.clone()) else { return };
        let called = spec.called_actor();
        let makes_actor = matches!(spec.template.kind, TaskKind::Actor(_));
        let outcome = match outcome {
            Outcome::Ok(results) if makes_actor && results.len() == 1 => {
                return self.actor_made(ix, node, lease.unwrap_or_default(), bundle, results, micros);
            }
            // No making: one that lived before dies of it, and its submitter hears of no second end (TASK-1).
            outcome if makes_actor => check_outcome(outcome, &spec, &self.nodes.name(node)),
            outcome => outcome,
        };
        if self.is_revived_and_cancelled(ix, &outcome) {
            self.enqueue(ix, true);
            return;
        }
        let may_retry = self.tasks.get(ix).is_some_and(|task| match retry {
            Retry::NoRoom => task.may_try_again_uncounted(),
            _ => task.may_retry(),
        });
        let retried = retry != Retry::No && matches!(outcome, Outcome::Failed(_)) && may_retry;
        if retried {
            self.try_again(ix, retry);
        } else {
            let name = self.nodes.name(node);
            let outcome = match (called, outcome) {
                // Its node knows how the actor died, and not whether it will be back.
                (Some(handle), Outcome::Failed(lost))
                    if lost.kind == FailureKind::ActorDied && retry == Retry::Infrastructure =>
                {
                    Outcome::Failed(self.lost_call(&spec, handle, None))
                }
                (_, outcome) => outcome,
            };
            self.finish(ix, outcome, Some(node), Some(name), micros);
        }
        if let Some(actor) = called {
            self.feed_actor(actor);
        }
    }

    /// Tries a failed task again: at once; or later, where it raised by itself and asks for that, or its node had no
    /// memory left.
    pub(crate) fn try_again(&mut self, ix: TaskIx, retry: Retry) {
        let now = self.now;
        let Some(task) = self.tasks.get_mut(ix) else { return };
        task.retries += u32::from(retry != Retry::NoRoom);
        let pause = match retry {
            Retry::NoRoom if task.spec.called_actor().is_none() => ROOM_AFTER,
            Retry::Exception if task.spec.called_actor().is_none() => {
                pause(task.spec.template.backoff, task.spec.id, task.retries)
            }
            _ => Span::default(),
        };
        if pause == Span::default() {
            return self.enqueue(ix, true);
        }
        let until = now + pause;
        task.state = TaskState::Delayed { until };
        self.delayed.push(Reverse((until, ix, task.stamp)));
    }

    /// At every tick: tasks whose pause is over are queued again.
    pub(crate) fn queue_delayed(&mut self) {
        while let Some(Reverse((until, ix, stamp))) = self.delayed.peek().copied() {
            if until > self.now {
                return;
            }
            self.delayed.pop();
            let waits =
                |task: &Task| matches!(task.state, TaskState::Delayed { until: then } if then == until);
            if self.tasks.stamped(ix, stamp).is_some_and(waits) {
                self.enqueue(ix, true);
            }
        }
    }

    /// A task left the table, and with that its shapes.
    pub(crate) fn uncount(&mut self, task: &Task) {
        for ix in task.shapes() {
            if let Some(shape) = self.shapes.get_mut(ix) {
                shape.tasks -= 1;
            }
        }
    }

    /// Whether the attempt was cancelled with its job, and its submitter, back again, submitted the task anew meanwhile.
    fn is_revived_and_cancelled(&mut self, ix: TaskIx, outcome: &Outcome) -> bool {
        let Some(task) = self.tasks.get_mut(ix) else { return false };
        let cancelled = matches!(outcome, Outcome::Failed(failure) if failure.kind == FailureKind::Cancelled);
        std::mem::take(&mut task.revived) && cancelled
    }

    /// Books `heir` in the lease that its node handed on to it. If a grant crossed the report, the inherited lease
    /// counts and the granted one is free again. False: nothing was booked.
    fn inherit(&mut self, node: NodeIx, heir: TaskId, attempt: Attempt, lease: Option<&Lease>) -> bool {
        let Some(ix) = self.tasks.current(heir, attempt, node) else {
            // The node runs what is not current any more: it is to stop.
            self.cancel_attempt(node, heir, attempt, "this attempt was superseded");
            return false;
        };
        // A call or a living actor takes over no lease, whatever its node says.
        let waits_for_lease = self.tasks.get(ix).is_some_and(|task| {
            matches!(task.state, TaskState::Prefetched { .. } | TaskState::Leased { .. })
        });
        if !waits_for_lease {
            return false;
        }
        let granted = self.detach(ix).is_some();
        let Some(task) = self.tasks.get(ix) else { return false };
        let spec = task.spec.clone();
        let none = Lease::default();
        let in_group = spec.template.strategy.group().is_some();
        let adopted = !in_group
            && self
                .nodes
                .get_mut(node)
                .is_some_and(|node| node.ledger.adopt(&spec.template.resources, lease.unwrap_or(&none)));
        if adopted {
            self.set_leased(ix, node, lease.cloned().unwrap_or_default());
            if granted {
                self.nodes.mark_dirty(node);
            }
            return true;
        }
        // A lease of another shape, or of nothing: the heir starts over.
        self.cancel_attempt(
            node,
            heir,
            attempt,
            "it started without a lease of its shape; it starts again elsewhere",
        );
        if self.tasks.get(ix).is_some_and(|task| task.cancelled) {
            self.end_cancelled(ix);
        } else {
            self.enqueue(ix, true);
        }
        false
    }

    /// Attempts that were called back and had not started (rule S2).
    pub(crate) fn returned(&mut self, node: NodeIx, attempts: &[(TaskId, Attempt)]) {
        for (id, attempt) in attempts {
            let Some(ix) = self.tasks.current(*id, *attempt, node) else { continue };
            if let Some(actor) = self.tasks.get(ix).and_then(|task| task.spec.called_actor()) {
                self.call_returned(actor);
            }
            self.detach(ix);
            self.nodes.mark_dirty(node);
            if self.tasks.get(ix).is_some_and(|task| task.cancelled) {
                self.end_cancelled(ix);
            } else {
                self.enqueue(ix, true);
            }
        }
    }

    /// Takes a task out of wherever it is (queue, a node's attempts, a node's books); it is nowhere until the caller
    /// puts it somewhere. Returns the lease it had.
    pub(crate) fn detach(&mut self, ix: TaskIx) -> Option<Lease> {
        let task = self.tasks.get_mut(ix)?;
        let (shape_ix, promoted, spec) = (task.shape, task.promoted, task.spec.clone());
        let bundle = task.bundle.take();
        match std::mem::replace(&mut task.state, TaskState::Waiting { missing: 0 }) {
            TaskState::Waiting { .. } | TaskState::AtActor => {
                if let Some(actor) = spec.called_actor() {
                    self.call_leaves(actor, spec.id);
                }
                None
            }
            TaskState::Direct => None,
            TaskState::HandedOut { node, .. } => {
                if let Some(state) = self.nodes.get_mut(node) {
                    state.attempts.remove(&ix);
                }
                if let Some(actor) = spec.called_actor().and_then(|handle| self.actors.get_mut(handle)) {
                    actor.calls.handed_out = actor.calls.handed_out.saturating_sub(1);
                }
                None
            }
            TaskState::Reserving | TaskState::Delayed { .. } => None,
            TaskState::Alive { node, lease, .. } => {
                self.give_back(ix, &spec, node, bundle, &lease, false);
                if let Some(state) = self.nodes.get_mut(node) {
                    state.attempts.remove(&ix);
                    self.nodes.mark_dirty(node);
                }
                Some(lease)
            }
            TaskState::Queued { .. } => {
                self.leave_queues(ix, promoted);
                None
            }
            TaskState::Prefetched { node, called_back, .. } => {
                self.leave_prefetched(ix, shape_ix, node, called_back);
                None
            }
            TaskState::Leased { node, lease, blocked, .. } => {
                let was_over = self.give_back(ix, &spec, node, bundle, &lease, blocked);
                let Some(state) = self.nodes.get_mut(node) else { return Some(lease) };
                state.attempts.remove(&ix);
                state.running -= 1;
                if blocked {
                    state.blocked -= 1;
                    if state.blocked == 0 {
                        state.crowd_next = None;
                    }
                } else {
                    state.shape_mut(shape_ix).awake -= 1;
                }
                if was_over && state.ledger.over().is_zero() {
                    self.reopen_room(node);
                } else if let Some(shape) = self.shapes.get_mut(shape_ix) {
                    shape.room.insert(node);
                }
                Some(lease)
            }
        }
    }

    /// Frees a lease in the books it is in. Whether those were over before.
    fn give_back(
        &mut self,
        ix: TaskIx,
        spec: &TaskSpec,
        node: NodeIx,
        bundle: Option<u32>,
        lease: &Lease,
        blocked: bool,
    ) -> bool {
        let mut was_over = false;
        if let Some(ledger) = self.books(spec, node, bundle) {
            was_over = !ledger.over().is_zero();
            ledger.give(&spec.template.resources, lease, blocked);
        }
        if let (Some(index), Some(place)) = (bundle, spec.template.strategy.group()) {
            self.leave_bundle(ix, index, place.group);
        }
        was_over
    }

    /// Notes a lease that the ledger has booked already.
    pub(crate) fn set_leased(&mut self, ix: TaskIx, node: NodeIx, lease: Lease) {
        let now = self.now;
        let Some(task) = self.tasks.get_mut(ix) else { return };
        task.state = TaskState::Leased { node, since: now, lease, blocked: false };
        let shape_ix = task.shape;
        if let Some(state) = self.nodes.get_mut(node) {
            state.attempts.insert(ix);
            state.running += 1;
            state.shape_mut(shape_ix).awake += 1;
        }
        if let Some(shape) = self.shapes.get_mut(shape_ix) {
            shape.served = now;
            shape.room.insert(node);
            if shape.queued() > 0 {
                self.shapes.make_ready(shape_ix);
            }
        }
    }

    /// A task that was cancelled, or that nobody wants, ends.
    pub(crate) fn end_cancelled(&mut self, ix: TaskIx) {
        let Some(task) = self.tasks.get(ix) else { return };
        let id = task.spec.id;
        let why = match self.unwanted.get(&id) {
            Some(wish) => wish.reason.as_str(),
            None => "the process that submitted it ended and nobody else holds its results",
        };
        let message = format!("task {} ({id}) was cancelled: {why}", task.spec.template.name);
        self.detach(ix);
        self.finish(ix, Outcome::Failed(failure(FailureKind::Cancelled, message, Some(id))), None, None, 0);
    }

    /// Works off the tasks that fail because something they need failed; each may make others fail.
    pub(crate) fn fail_failing(&mut self) {
        while let Some((ix, stamp, failure)) = self.failing.pop() {
            let Some(task) = self.tasks.stamped(ix, stamp) else { continue };
            // What a node has already ends there.
            if task.node().is_none() {
                self.detach(ix);
                self.finish(ix, Outcome::Failed(failure), None, None, 0);
            }
        }
    }

    /// TASK-1: the task, detached, reaches its end: results exist, what it held is let go, its submitter is told.
    pub(crate) fn finish(
        &mut self,
        ix: TaskIx,
        mut outcome: Outcome,
        home: Option<NodeIx>,
        node_name: Option<Arc<str>>,
        micros: u64,
    ) {
        if let Some(handle) = self.tasks.get(ix).map(|task| task.spec.id.result(0))
            && let Outcome::Failed(failure) = &outcome
            && self.actors.get(handle).is_some_and(|actor| actor.made && actor.task == Some(ix))
        {
            // Its submitter was told long ago that it was made.
            return self.bury_actor(ix, failure.clone());
        }
        if let Some(task) = self.tasks.get(ix)
            && matches!(task.spec.template.strategy, Strategy::Group(_))
        {
            let spec = task.spec.clone();
            outcome = self.outcome_in_group(ix, &spec, outcome);
        }
        let Some(task) = self.tasks.remove(ix) else { return };
        self.uncount(&task);
        let spec = task.spec;
        // Its submitter asked its actor itself, and knows.
        let knows = matches!(task.state, TaskState::Direct) || task.made_again;
        let outcome = check_outcome(outcome, &spec, node_name.as_deref().unwrap_or("?"));
        let told = FinishedOutcome::from(&outcome);
        let error = match &outcome {
            Outcome::Ok(_) => None,
            Outcome::Failed(failure) => Some(failure.message.clone()),
        };
        let death = match &outcome {
            Outcome::Failed(failure)
                if matches!(spec.template.kind, TaskKind::Actor(_) | TaskKind::Group(_)) =>
            {
                Some(failure.clone())
            }
            _ => None,
        };
        let items = match &outcome {
            _ if spec.template.stream.is_none() => 0,
            Outcome::Failed(failure) => self.end_stream(spec.id, Some(failure)),
            Outcome::Ok(_) => self.end_stream(spec.id, None),
        };
        let is_group = matches!(spec.template.kind, TaskKind::Group(_));
        let outcome = match outcome {
            // Also of one that ended well before and was submitted anew: its submitter had been out of touch.
            Outcome::Failed(failure) => {
                self.forget_lineage(spec.id);
                Outcome::Failed(if task.made_again { not_made_again(&failure) } else { failure })
            }
            other => other,
        };
        let is_stored = |result: &TaskResult| matches!(result.value, ResultValue::Stored { .. });
        let leaves_something = matches!(
            &outcome,
            Outcome::Ok(results) if task.made_again || results.iter().any(is_stored)
        ) || (matches!(&outcome, Outcome::Ok(_))
            && self.has_stored_items(spec.id, items));
        match &outcome {
            Outcome::Ok(_) if is_group => self.set_group_value(ix, &spec),
            _ => self.set_results(ix, &spec, outcome, home),
        }
        if leaves_something {
            self.keep_lineage(&spec, items, task.attempt, task.retries);
        }
        self.let_go(&spec);
        if let Some(cause) = death.as_ref().filter(|_| is_group) {
            self.close_group(&spec, cause.clone());
        } else if let Some(cause) = death {
            let mut failure =
                self.death_of(spec.id.result(0), &format!("it could not be made: {}", cause.message));
            if cause.kind == FailureKind::ActorDied {
                failure.message = cause.message.clone();
            }
            failure.payload = cause.payload;
            self.close_actor(&spec, failure);
        }
        if let Some(submitter) = self.clients.get(&spec.id.client).filter(|_| !knows) {
            let node = submitter.node;
            self.send(node, HeadToNode::Finished { task: spec.id, outcome: told });
        }
        if task.made_again {
            return;
        }
        self.tasks.remember(Ended {
            id: spec.id,
            name: spec.template.name.clone(),
            job: spec.job,
            error,
            node: node_name,
            attempt: task.attempt,
            submitted: task.submitted,
            micros,
        });
    }

    /// What the task held while it was pending (REF-1).
    pub(crate) fn let_go(&mut self, spec: &Arc<TaskSpec>) {
        if !self.children.is_empty() {
            self.children.remove(&spec.id);
        }
        if !self.unwanted.is_empty() {
            self.unwanted.remove(&spec.id);
        }
        for held in spec.held() {
            let Some(object_ix) = self.objects.find(held) else { continue };
            if let Some(object) = self.objects.get_mut(object_ix) {
                object.tasks -= 1;
                if object.tasks == 0 {
                    self.objects.doubt(object_ix);
                }
            }
        }
    }

    pub(crate) fn set_results(
        &mut self,
        ix: TaskIx,
        spec: &Arc<TaskSpec>,
        outcome: Outcome,
        home: Option<NodeIx>,
    ) {
        match outcome {
            Outcome::Failed(failure) => {
                for index in 0..spec.template.num_returns {
                    if let Some(object) = self.pending_result(ix, spec.id, index) {
                        self.objects.set_failed(object, failure.clone());
                        self.value_known(object);
                    }
                }
            }
            Outcome::Ok(results) => {
                let Some(home) = home else { return };
                let is_durable = spec.is_durable();
                for (index, result) in results.into_iter().enumerate() {
                    let id = spec.id.result(index as u32);
                    let Some(object) = self.pending_result(ix, spec.id, index as u32) else {
                        // Nobody can reach it any more, and it goes as it comes; or it was not lost when others of its
                        // task were.
                        self.spare_value(home, id);
                        if is_durable {
                            self.spare_durable(home, id);
                        }
                        continue;
                    };
                    let (size, inline) = result.value.into_parts();
                    if is_durable {
                        self.set_durable(object, home);
                    }
                    self.set_value(object, size, inline, result.contains, home);
                }
            }
        }
    }

    pub(crate) fn pending_result(
        &self,
        ix: TaskIx,
        task: TaskId,
        index: u32,
    ) -> Option<crate::slab::ObjectIx> {
        let object_ix = self.objects.find(task.result(index))?;
        let object = self.objects.get(object_ix)?;
        matches!(object.value, ObjectValue::Pending(maker) if maker == ix).then_some(object_ix)
    }
}

/// An outcome with another number of values than promised is none.
fn check_outcome(outcome: Outcome, spec: &TaskSpec, node_name: &str) -> Outcome {
    let wanted = spec.template.num_returns as usize;
    match outcome {
        Outcome::Ok(results) if results.len() != wanted => {
            let message = format!(
                "task {} ({}) gave {} values on node {node_name}, but its num_returns is {wanted}",
                spec.template.name,
                spec.id,
                results.len()
            );
            let failure: Failure = failure(FailureKind::Internal, message, Some(spec.id));
            Outcome::Failed(failure)
        }
        outcome => outcome,
    }
}

/// A pause before a retry: a part, drawn by the task and the try, of a time that grows with each (full jitter). Equal
/// inputs give equal pauses, so that a simulation can be replayed.
fn pause(backoff: Backoff, id: TaskId, retry: u32) -> Span {
    let growth = f64::from(backoff.growth.max(100)) / 100.0;
    let most = f64::from(backoff.most_ms.max(backoff.first_ms));
    let grown = f64::from(backoff.first_ms) * growth.powi(retry.saturating_sub(1).min(64) as i32);
    // SplitMix64.
    let mut mixed =
        id.client.0 ^ id.seq.rotate_left(24) ^ u64::from(retry).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let part = ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
    Span((grown.min(most) * part * 1000.0) as u64)
}

/// What is said of an object that its task failed to make a second time.
fn not_made_again(cause: &Failure) -> Failure {
    let message = format!("an object was lost with its node, and could not be made again: {}", cause.message);
    failure(FailureKind::ObjectLost, message, cause.task)
}
