//! Tasks that somebody wants to end.

use cluster_types::client_node::Cancellation;
use cluster_types::{FailureKind, HeadToNode, Outcome, TaskId};

use crate::head::{Head, failure};
use crate::slab::TaskIx;
use crate::tasks::TaskState;

impl Head {
    /// Ends the task that makes the object and, if asked, what it submitted: now, or, where a node has it, when that says
    /// so. What has ended stays as it is.
    pub(crate) fn cancel(&mut self, what: &Cancellation) {
        let Some((id, _)) = what.object.task() else { return };
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            if what.recursive {
                todo.extend(self.children.get(&id).into_iter().flatten().copied());
            }
            if let Some(ix) = self.tasks.find(id)
                && !self.is_living(ix)
            {
                self.cancel_task(ix, id, what);
            }
        }
    }

    fn cancel_task(&mut self, ix: TaskIx, id: TaskId, what: &Cancellation) {
        let Some(task) = self.tasks.get_mut(ix) else { return };
        task.cancelled = true;
        task.revived = false;
        self.unwanted.insert(id, what.clone());
        let Some(task) = self.tasks.get(ix) else { return };
        if matches!(task.state, TaskState::Direct) {
            // Its caller knows where it is, and says what came of it.
            let (reason, recursive) = (what.reason.clone(), what.recursive);
            if let Some(node) = self.clients.get(&id.client).map(|caller| caller.node) {
                self.send(node, HeadToNode::CancelOwn { task: id, reason, recursive });
            }
            return;
        }
        match task.node() {
            None => {
                let message =
                    format!("task {} ({id}) was cancelled: {}", task.spec.template.name, what.reason);
                let failure = failure(FailureKind::Cancelled, message, Some(id));
                self.detach(ix);
                self.finish(ix, Outcome::Failed(failure), None, None, 0);
            }
            Some(node) => {
                let Some(attempt) = self.tasks.get(ix).map(|task| self.tasks.attempt_of(task)) else {
                    return;
                };
                let (reason, force) = (what.reason.clone(), what.force);
                self.send(node, HeadToNode::Cancel { task: id, attempt, reason, force });
            }
        }
    }
}
