//! How attempts end, each once (TASK-1), and who inherits their leases (rule S2).

use cluster_types::client_node::{Completion, ExecutorResult, PutValue};
use cluster_types::node_head::Retry;
use cluster_types::{
    ClientId, Failure, FailureKind, Location, NodeToClient, NodeToHead, Outcome, TaskId, TaskResult,
};

use crate::actors::traits_of;
use crate::attempts::{Assigned, Attempts, Stage};
use crate::event::Effect;
use crate::executors::Ended;
use crate::node::{Node, failure};
use crate::streams::known_value;

impl Node {
    pub(crate) fn end_cancelled(&mut self, task: TaskId, effects: &mut Vec<Effect>) {
        let reason =
            self.attempts.get(&task).and_then(|assigned| assigned.cancelled.clone()).unwrap_or_default();
        let message = format!("{} was cancelled before it started: {reason}", self.name(task));
        self.end_failed(task, FailureKind::Cancelled, message, Retry::No, None, effects);
    }

    /// Ends an attempt that no executor runs.
    pub(crate) fn end_failed(
        &mut self,
        task: TaskId,
        kind: FailureKind,
        message: String,
        retry: Retry,
        heir: Option<TaskId>,
        effects: &mut Vec<Effect>,
    ) {
        self.end_attempt(
            task,
            None,
            Outcome::Failed(failure(kind, message, Some(task))),
            retry,
            0,
            heir,
            effects,
        );
    }

    /// Rule S2: an attempt ends, and another of its shape, sent ahead, starts in its lease: one message.
    pub(crate) fn end_attempt(
        &mut self,
        task: TaskId,
        executor: Option<ClientId>,
        outcome: Outcome,
        retry: Retry,
        micros: u64,
        heir: Option<TaskId>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(ended) = self.forget_attempt(task) else { return };
        let cpu = ended.spec.template.resources.cpu;
        let over = !cpu.is_zero() && self.cpu_used + cpu > self.config.resources.cpu;
        let mut started = None;
        let mut start = None;
        let called = ended.spec.called_actor();
        // A call has no lease to hand on.
        if let Some(lease) = ended.lease.filter(|_| called.is_none()) {
            // Rule S4: more runs than there are cores for, since one that waited went on; so nothing starts.
            let inherited = heir.or_else(|| {
                if over {
                    return None;
                }
                let queue = self.ahead.get_mut(&ended.shape)?;
                let next = queue.pop_front()?;
                start = Some(next);
                Some(next)
            });
            if let Some(next) = inherited.and_then(|next| self.attempts.get_mut(&next)) {
                self.cpu_used -= next.cpu();
                next.lease = Some(lease);
                self.cpu_used += next.cpu();
                next.calling_back = false;
                started = Some((next.spec.id, next.attempt));
            }
        }
        self.remember_end(&ended.spec, ended.attempt, &outcome, retry, micros, false);
        let done =
            NodeToHead::Done { task, attempt: ended.attempt, executor, outcome, retry, started, micros };
        self.tell_head(done, effects);
        if let Some(next) = start {
            self.make_ready(next, effects);
        }
        if let Some(actor) = called {
            self.feed_actor(actor, effects);
        }
    }

    /// Takes an attempt out of every list but its executor's.
    pub(crate) fn forget_attempt(&mut self, task: TaskId) -> Option<Assigned> {
        self.unpin(task);
        let gone = self.attempts.remove(&task)?;
        self.cpu_used -= gone.cpu();
        if gone.admission {
            self.memory.admissions.retain(|waiting| *waiting != task);
        }
        match gone.stage {
            Stage::Arguments => {
                for object in gone.spec.needed() {
                    if let Some(known) = self.objects.get_mut(&object) {
                        known.waiting_tasks.retain(|waiting| *waiting != task);
                    }
                    self.forget_cached(object);
                    self.forget_if_empty(object);
                }
                if let Some(actor) = gone.spec.called_actor() {
                    self.leave_actor_queue(actor, task);
                }
            }
            Stage::Ready => {
                if let Some(actor) = gone.spec.called_actor() {
                    self.leave_actor_queue(actor, task);
                } else if gone.lease.is_some() {
                    self.pool(gone.pool).waiting.retain(|have| *have != task);
                } else if let Some(queue) = self.ahead.get_mut(&gone.shape) {
                    queue.retain(|have| *have != task);
                }
            }
            Stage::Sent { .. } => {}
        }
        Some(gone)
    }

    pub(crate) fn completed(&mut self, client: ClientId, completion: Completion, effects: &mut Vec<Effect>) {
        let Some(executor) = self.executor_of(client) else { return };
        if let Err(lie) = self.check_results(client, &completion) {
            return self.part_with(client, &lie, effects);
        }
        if let Some(actor) = self.executors.get(&executor).and_then(|known| known.actor) {
            return self.call_completed(actor, client, completion, effects);
        }
        self.proved_claimed(executor, completion.tag, effects);
        let task = self.shift(executor, completion.tag);
        let Some(task) = task.filter(|task| self.attempts.contains_key(task)) else {
            return self.give_back_results(client, completion.result.unwrap_or_default(), effects);
        };
        let micros = completion.micros;
        let (outcome, retry) = self.outcome_of(client, task, completion, effects);
        let ended = self.attempts.get(&task);
        let attempt = ended.filter(|ended| ended.spec.is_durable()).map(|ended| ended.attempt);
        if let (Some(attempt), Outcome::Ok(results)) = (attempt, &outcome) {
            self.make_results_durable(client, task, attempt, results.len() as u32, effects);
        }
        let makes_actor = self.attempts.get(&task).is_some_and(|made| traits_of(&made.spec).is_some());
        if makes_actor && matches!(outcome, Outcome::Ok(_)) {
            return self.actor_made(executor, client, task, outcome, micros, effects);
        }
        if let Some(known) = self.executors.get_mut(&executor) {
            known.ended = Some(Ended { task, outcome, retry, micros });
        }
        self.settle_ended(executor, effects);
    }

    /// What came of an execution, as the head is told; its results are noted here.
    pub(crate) fn outcome_of(
        &mut self,
        client: ClientId,
        task: TaskId,
        completion: Completion,
        effects: &mut Vec<Effect>,
    ) -> (Outcome, Retry) {
        let Some(assigned) = self.attempts.get(&task) else {
            let message = format!("task {task} ended where nobody knows it");
            return (Outcome::Failed(failure(FailureKind::Internal, message, Some(task))), Retry::No);
        };
        let spec = assigned.spec.clone();
        self.catalogue.observe(&spec.template, completion.micros);
        match completion.result {
            Ok(results) if results.len() == spec.template.num_returns as usize => {
                let results = results
                    .into_iter()
                    .enumerate()
                    .map(|(index, result)| {
                        let object = task.result(index as u32);
                        let value = known_value(&result.value);
                        self.keep_result(client, object, result.value, &result.contains, effects);
                        TaskResult { value, contains: result.contains }
                    })
                    .collect();
                (Outcome::Ok(results), Retry::No)
            }
            Ok(results) => {
                let message = format!(
                    "{} returned {} values, {} were declared with num_returns",
                    self.name(task),
                    results.len(),
                    spec.template.num_returns
                );
                self.give_back_results(client, results, effects);
                (Outcome::Failed(failure(FailureKind::Internal, message, Some(task))), Retry::No)
            }
            Err(failed) => {
                (Outcome::Failed(failed.failure), if failed.retryable { Retry::Exception } else { Retry::No })
            }
        }
    }

    /// Each result lies in the executor's own memory, apart from the others.
    fn check_results(&self, client: ClientId, completion: &Completion) -> Result<(), String> {
        let Ok(results) = &completion.result else { return Ok(()) };
        let mut places: Vec<Location> = Vec::new();
        for result in results {
            self.check_value(client, &result.value)
                .map_err(|lie| format!("it returned a value, but {lie}"))?;
            if let PutValue::Stored(location) = result.value {
                places.push(location);
            }
        }
        places.sort_unstable();
        match places
            .windows(2)
            .find(|pair| pair[0].segment == pair[1].segment && pair[0].offset + pair[0].len > pair[1].offset)
        {
            Some(pair) => Err(format!("it returned two values that lie over each other, at {:?}", pair[1])),
            None => Ok(()),
        }
    }

    /// Nobody wants these results: the executor may use their ranges again.
    pub(crate) fn give_back_results(
        &self,
        client: ClientId,
        results: Vec<ExecutorResult>,
        effects: &mut Vec<Effect>,
    ) {
        let places = results.into_iter().filter_map(|result| match result.value {
            PutValue::Stored(location) => Some(location),
            PutValue::Inline(_) => None,
        });
        let places: Vec<Location> = places.collect();
        if !places.is_empty() {
            self.tell_client(client, NodeToClient::RangesFreed(places), effects);
        }
    }

    /// Reports what an executor ended, as soon as it is certain what it runs now: while the next in its queue is being
    /// taken back, nobody knows whether that inherits the lease (rules S2, S3).
    pub(crate) fn settle_ended(&mut self, executor: u32, effects: &mut Vec<Effect>) {
        let Some(known) = self.executors.get_mut(&executor) else { return };
        if known.sent.front().is_some_and(|next| next.revoking) {
            return;
        }
        // A durable result is reported when its copy is written.
        if known.ended.as_ref().is_some_and(|ended| self.durable.is_written_for(ended.task)) {
            return;
        }
        let heir = known.sent.front().map(|next| next.task);
        let Some(Ended { task, outcome, retry, micros }) = known.ended.take() else { return };
        let client = known.client;
        let heir = heir.filter(|_| assigned_lease(&self.attempts, task));
        self.end_attempt(task, client, outcome, retry, micros, heir, effects);
        if self.executors.get(&executor).is_some_and(|known| known.sent.is_empty()) {
            self.became_idle(executor, effects);
        } else {
            self.pipeline(executor, effects);
        }
    }

    /// Attempts that wait for an object which will never come.
    pub(crate) fn fail_waiting_tasks(
        &mut self,
        tasks: impl IntoIterator<Item = TaskId>,
        failure: &Failure,
        effects: &mut Vec<Effect>,
    ) {
        for task in tasks {
            self.end_attempt(task, None, Outcome::Failed(failure.clone()), Retry::No, 0, None, effects);
        }
    }
}

fn assigned_lease(attempts: &Attempts, task: TaskId) -> bool {
    attempts.get(&task).is_some_and(|assigned| assigned.lease.is_some())
}
