//! What the daemon says.

use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::{
    ClientToNode, Failure, FailureKind, Location, NodeToClient, ObjectId, ResultValue, Set, TaskId, Value,
};

use crate::ClientCore;
use crate::core::FAILED_KEPT;
use crate::state::State;

impl ClientCore {
    /// Takes a message in; gives back those that are not about objects.
    pub fn on_message(&mut self, message: NodeToClient) -> Option<NodeToClient> {
        match message {
            NodeToClient::Finished { task, outcome } => self.told_finished(task, outcome),
            NodeToClient::NoCalls { actor } => self.no_calls(actor),
            NodeToClient::FarCalls { actor, in_order, window } => {
                self.far_calls_opened(actor, in_order, window);
            }
            NodeToClient::FarAnswer { task, outcome } => {
                self.on_answer(NodeToClient::Finished { task, outcome });
            }
            NodeToClient::CancelOwn { task, reason, recursive } => {
                self.cancel_call(task.result(0), &reason, recursive);
            }
            NodeToClient::CallsEnded { actor, why, lost } => self.calls_ended(actor, &why, lost),
            NodeToClient::Item { task, index, value } => self.item_came(task, index, value),
            NodeToClient::Ready { object, value } => self.arrived(object, value),
            NodeToClient::RangesFreed(ranges) => ranges.into_iter().for_each(|range| self.range_freed(range)),
            NodeToClient::Evict { object } => self.evict(object),
            NodeToClient::RecallMemory => {
                self.release_unviewed();
                return Some(NodeToClient::RecallMemory);
            }
            other => return Some(other),
        }
        None
    }

    /// The daemon says so. Of a call that went straight to its actor: with a value that the head knows by now.
    fn told_finished(&mut self, task: TaskId, outcome: FinishedOutcome) {
        let own_way = self.unfinished.get(&task).filter(|task| task.own_way).map(|task| task.returns);
        match (own_way, &outcome) {
            (Some(_), FinishedOutcome::Failed(_)) => {
                self.on_answer(NodeToClient::Finished { task, outcome });
            }
            (Some(returns), FinishedOutcome::Ok(_)) => {
                (0..returns).for_each(|index| self.settle_known(task.result(index)));
                self.finished(task, outcome);
            }
            (None, _) => self.finished(task, outcome),
        }
    }

    /// TASK-1: told once; a second telling, or one of a task that is none of ours, changes nothing.
    pub(crate) fn finished(&mut self, task: TaskId, outcome: FinishedOutcome) {
        let Some(ended) = self.unfinished.remove(&task) else { return };
        self.take_in_outcome(task, ended.returns, outcome);
        if ended.creates {
            self.creating -= 1;
            if self.creating == 0 {
                self.send_all_held();
            }
        }
        if let Some(actor) = ended.actor {
            self.call_ended(actor, task, ended.own_way);
        }
    }

    fn take_in_outcome(&mut self, task: TaskId, returns: u32, outcome: FinishedOutcome) {
        match outcome {
            FinishedOutcome::Ok(values) if values.len() == returns as usize => {
                for (index, value) in (0..).zip(values) {
                    let state = match value {
                        ResultValue::Inline(bytes) => State::Inline(bytes),
                        ResultValue::Stored { .. } => State::Stored,
                    };
                    self.settle(task.result(index), state);
                }
                self.stream_ended(task, None);
            }
            FinishedOutcome::Ok(values) => {
                let failure = Arc::new(Failure {
                    kind: FailureKind::Internal,
                    message: format!(
                        "task {task} was to return {returns} values, but its node reported {}: \
                         this is an error of the cluster's own",
                        values.len()
                    )
                    .into(),
                    payload: bytes::Bytes::new(),
                    task: Some(task),
                });
                self.fail(task, returns, &failure);
            }
            FinishedOutcome::Failed(failure) => self.fail(task, returns, &Arc::new(failure)),
        }
    }

    fn fail(&mut self, task: TaskId, returns: u32, failure: &Arc<Failure>) {
        for index in 0..returns {
            self.settle(task.result(index), State::Failed(failure.clone()));
        }
        self.stream_ended(task, Some(failure));
    }

    /// An object that had no value here has one now, or is known to exist.
    pub(crate) fn settle(&mut self, object: ObjectId, state: State) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        if entry.state.is_here() {
            return;
        }
        entry.state = state;
        self.progress += 1;
        if matches!(entry.state, State::Failed(_)) {
            self.failures += 1;
            if self.failed.len() == FAILED_KEPT {
                self.failed.pop_front();
            }
            self.failed.push_back(object);
        }
        if entry.state.is_here() {
            entry.wanted = false;
            if std::mem::take(&mut entry.hooked) {
                self.fired.push(object);
            }
        } else if entry.wanted && !entry.asked {
            entry.asked = true;
            self.out.get(object);
        }
    }

    fn arrived(&mut self, object: ObjectId, value: Value) {
        let Some(entry) = self.objects.get_mut(&object) else {
            if let Value::Local(_) = value {
                // Nobody waits for it any more; the telling is given back (rule P1).
                self.out.release(object, 1);
            }
            return;
        };
        entry.asked = false;
        match value {
            Value::Inline(bytes) => self.settle(object, State::Inline(bytes)),
            Value::Failed(failure) => self.settle(object, State::Failed(Arc::new(failure))),
            Value::Local(location) => {
                entry.told += 1;
                let idle = entry.is_idle();
                self.settle(object, State::Located(location));
                self.note_located(object);
                if idle {
                    self.became_idle(object);
                }
            }
        }
    }

    fn range_freed(&mut self, range: Location) {
        let Some(object) = self.object_at(range) else { return };
        if self.forget_spare_range(object, range) {
            return self.freed.push(range);
        }
        let known = self.own_ranges.get(&object) == Some(&range);
        let viewed = self.objects.get(&object).is_some_and(|entry| {
            entry.views > 0 && matches!(entry.state, State::Own(at) | State::Located(at) if at == range)
        });
        // What is viewed here cannot have been freed: a daemon that says so is wrong, and the range stays.
        if known && !viewed {
            self.forget_own_range(object);
            self.freed.push(range);
            if let Some(entry) = self.objects.get_mut(&object)
                && entry.state == State::Own(range)
            {
                entry.state = State::Unknown;
            }
        }
    }

    /// The object is on disk too: its memory can go, unless it is viewed here.
    fn evict(&mut self, object: ObjectId) {
        let mut freed = true;
        if let Some(entry) = self.objects.get_mut(&object) {
            if entry.views > 0 {
                freed = false;
            } else if matches!(entry.state, State::Own(_) | State::Located(_)) {
                let told = std::mem::take(&mut entry.told);
                entry.state = State::Stored;
                self.out.release(object, told);
            }
        }
        if freed && let Some(location) = self.forget_own_range(object) {
            self.freed.push(location);
        }
        self.out.push(ClientToNode::Evicted { object, freed });
    }

    /// The node's memory is short: what is not viewed here need not stay in it. Reading it again asks again.
    fn release_unviewed(&mut self) {
        let mut located = std::mem::take(&mut self.located);
        located.retain(|&object| {
            let Some(entry) = self.objects.get_mut(&object) else { return false };
            if !matches!(entry.state, State::Located(_)) || entry.views > 0 {
                return matches!(entry.state, State::Located(_));
            }
            entry.state = State::Stored;
            self.out.release(object, std::mem::take(&mut entry.told));
            false
        });
        self.located = located;
    }

    pub(crate) fn note_located(&mut self, object: ObjectId) {
        // Most are dropped long before anybody asks for them.
        if self.located.len() >= 64 && self.located.len() >= 2 * self.objects.len() {
            let mut seen = Set::default();
            self.located.retain(|object| self.objects.contains_key(object) && seen.insert(*object));
        }
        self.located.push(object);
    }
}
