//! Calls that go straight to actors of the same machine.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::client_node::{
    Cancellation, DIRECT_BIT, DIRECT_SLOT, ExecutorResult, FinishedOutcome, NO_SLOT, PutValue, RunTask,
    direct_tag,
};
use cluster_types::{
    Attempt, ClientId, ClientToNode, FailureKind, Map, NodeToClient, ObjectId, ResultValue, TaskId, TaskSpec,
};

use crate::world::{Arrival, Stream, World};

/// The sockets between callers and actors.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// The executor behind each actor, and its order, by caller.
    ends: Map<(ClientId, ObjectId), (ClientId, bool)>,
    /// Executors and callers with a socket between them.
    joined: std::collections::BTreeSet<(ClientId, ClientId)>,
    /// Answers that were written and not read, by executor and caller. They survive their writer.
    answers: Map<(ClientId, ClientId), VecDeque<(TaskId, FinishedOutcome)>>,
}

impl World {
    /// A daemon joins two of its clients.
    pub(crate) fn join(&mut self, caller: ClientId, executor: ClientId, actor: ObjectId, in_order: bool) {
        self.channels.ends.insert((caller, actor), (executor, in_order));
        self.channels.joined.insert((executor, caller));
        let message = NodeToClient::Calls { actor, in_order };
        self.say(Stream::ToClient(caller), Arrival::AtClient { client: caller, message });
    }

    /// A process sends its calls.
    pub(crate) fn send_calls(&mut self, caller: ClientId) {
        let Some(process) = self.processes.get_mut(&caller) else { return };
        for batch in process.core.take_direct() {
            let Some(&(executor, in_order)) = self.channels.ends.get(&(caller, batch.actor)) else {
                continue;
            };
            for call in batch.calls {
                if let ClientToNode::Submit(spec) = call {
                    self.submitted.insert(spec.id, caller);
                    self.report.direct += 1;
                    let arrival = Arrival::Called { executor, in_order, spec };
                    self.say(Stream::Calls(caller, executor), arrival);
                }
            }
        }
    }

    /// A call comes to an actor; one that is no more reads nothing.
    pub(crate) fn called(
        &mut self,
        executor: ClientId,
        in_order: bool,
        spec: TaskSpec,
    ) -> Result<(), String> {
        let Some(process) = self.processes.get_mut(&executor) else { return Ok(()) };
        process.inbox.push_back(Box::new(RunTask {
            tag: direct_tag(spec.id),
            slot: if in_order { DIRECT_SLOT } else { NO_SLOT },
            attempt: Attempt { term: 0, n: 1 },
            spec: Arc::new(spec),
            values: Vec::new(),
            gpus: Vec::new(),
        }));
        if process.is_idle() {
            self.next_task(executor)?;
        }
        self.flush(executor)
    }

    /// An actor answers a call that came straight: the same way if it may, else through its daemon.
    pub(crate) fn answer(
        &mut self,
        executor: ClientId,
        task: TaskId,
        results: Vec<ExecutorResult>,
        silent: bool,
    ) {
        let Some(process) = self.processes.get_mut(&executor) else { return };
        let small = |result: &ExecutorResult| {
            matches!(result.value, PutValue::Inline(_)) && result.contains.is_empty()
        };
        if !silent || !results.iter().all(small) {
            return process.core.push(ClientToNode::Answered { task, result: Ok(results) });
        }
        let values = results.into_iter().filter_map(|result| match result.value {
            PutValue::Inline(bytes) => Some(ResultValue::Inline(bytes)),
            PutValue::Stored(_) => None,
        });
        self.give_answer(executor, task, FinishedOutcome::Ok(values.collect()));
    }

    /// On the socket of the caller if it has one, else through the daemons.
    fn give_answer(&mut self, executor: ClientId, task: TaskId, outcome: FinishedOutcome) {
        let caller = task.client;
        let joined = self.channels.joined.contains(&(executor, caller));
        let Some(process) = self.processes.get_mut(&executor).filter(|_| !joined) else {
            return self.write_answer(executor, task, outcome);
        };
        process.core.push_aside(ClientToNode::AnswerFar { task, outcome });
    }

    /// An executor is told that nobody wants a call: one that has not begun is answered so.
    pub(crate) fn refuse_cancelled(&mut self, executor: ClientId, tag: u64) {
        let Some(process) = self.processes.get_mut(&executor) else { return };
        let at = process.inbox.iter().position(|run| run.tag == tag && tag & DIRECT_BIT != 0);
        let Some(run) = at.and_then(|at| process.inbox.remove(at)) else { return };
        let failure = crate::host::no(FailureKind::Cancelled, "cancelled before it started");
        self.give_answer(executor, run.spec.id, FinishedOutcome::Failed(failure));
    }

    /// A program wants something to end that it has a ref on.
    pub(crate) fn cancel_something(&mut self, client: ClientId) {
        let Some(process) = self.processes.get(&client) else { return };
        let refs: Vec<ObjectId> =
            process.refs.iter().copied().filter(|object| !self.actors.contains(object)).collect();
        let Some(&object) = self.random.pick(&refs) else { return };
        let Some(process) = self.processes.get_mut(&client) else { return };
        if object.task().is_some() && !process.core.cancel_call(object, "a program said so", false) {
            let reason = "a program said so".to_owned();
            process.core.push(ClientToNode::Cancel(Cancellation {
                object,
                force: false,
                recursive: false,
                reason,
            }));
        }
    }

    /// An answer came through the daemons. What the head has meanwhile, it answers.
    pub(crate) fn far_answer(&mut self, client: ClientId, message: NodeToClient) -> Result<(), String> {
        let NodeToClient::FarAnswer { task, outcome } = &message else { return Ok(()) };
        let (task, well) = (*task, matches!(outcome, FinishedOutcome::Ok(_)));
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        let before = process.core.unfinished();
        process.core.on_message(message);
        if process.core.unfinished() < before {
            if !self.told.insert(task) {
                return Err(format!("TASK-1: {client} was told twice that {task} ended"));
            }
            if well {
                self.report.finished += 1;
                self.ended_well.insert(task);
            } else {
                self.report.failed += 1;
            }
        }
        self.progress(client)?;
        self.flush(client)
    }

    fn write_answer(&mut self, executor: ClientId, task: TaskId, outcome: FinishedOutcome) {
        let (caller, answer) = (task.client, (task, outcome));
        self.channels.answers.entry((executor, caller)).or_default().push_back(answer);
        self.say(Stream::Answers(executor, caller), Arrival::Answered { executor, caller });
    }

    /// The next answer is read.
    pub(crate) fn answered(&mut self, executor: ClientId, caller: ClientId) -> Result<(), String> {
        let Some(answers) = self.channels.answers.get_mut(&(executor, caller)) else { return Ok(()) };
        let Some((task, outcome)) = answers.pop_front() else { return Ok(()) };
        let Some(process) = self.processes.get_mut(&caller) else { return Ok(()) };
        let well = matches!(outcome, FinishedOutcome::Ok(_));
        process.core.on_answer(NodeToClient::Finished { task, outcome });
        if !self.told.insert(task) {
            return Err(format!("TASK-1: {caller} was told twice that {task} ended"));
        }
        if well {
            self.report.finished += 1;
            self.ended_well.insert(task);
        } else {
            self.report.failed += 1;
        }
        self.progress(caller)?;
        self.flush(caller)
    }

    /// Its daemon tells a caller that the actor is no more: what it had answered is read first.
    pub(crate) fn read_last_answers(&mut self, caller: ClientId, actor: ObjectId) -> Result<(), String> {
        let Some((executor, _)) = self.channels.ends.remove(&(caller, actor)) else { return Ok(()) };
        while self.channels.answers.get(&(executor, caller)).is_some_and(|answers| !answers.is_empty()) {
            self.answered(executor, caller)?;
        }
        Ok(())
    }
}
