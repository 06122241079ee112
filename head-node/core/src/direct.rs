//! Calls that their clients send straight to actors (see worker-core's and client-core's modules of that kind).
//!
//! The head is told of one only when somebody else is about to hear of its result, when it went wrong, or, for people,
//! when it has ended. A told one is in the task table in the state [`TaskState::Direct`]: nobody here runs it, and it
//! ends when its client says what came of it. TASK-1 is the client's to keep: it asked itself.

use std::sync::Arc;

use cluster_types::client_node::{CallReport, FinishedOutcome};
use cluster_types::node_head::ActorPlace;
use cluster_types::{
    Failure, FailureKind, HeadToNode, NodeId, ObjectId, Outcome, Refs, ResultValue, Set, Span, TaskId,
    TaskResult, TaskSpec, Time,
};
use smallvec::smallvec;

use bytes::Bytes;

use crate::head::{Head, failure};
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, TaskIx};
use crate::tasks::{Ended, TaskState};

impl Head {
    /// A client is about to name the result of a call that it sends itself.
    pub(crate) fn expect(&mut self, node: NodeIx, spec: TaskSpec) {
        if spec.called_actor().is_none() || self.tasks.find(spec.id).is_some() {
            return;
        }
        // Its answer overtook it.
        if self.known_outcome(&spec).is_some() {
            return;
        }
        self.enter(node, spec, Some(TaskState::Direct));
    }

    /// What a call came to, of which this head heard before it heard of the call.
    fn known_outcome(&self, spec: &TaskSpec) -> Option<FinishedOutcome> {
        let mut values = Vec::new();
        for index in 0..spec.template.num_returns {
            match &self.objects.by_id(spec.id.result(index))?.value {
                ObjectValue::Available { inline: Some(bytes), .. } => {
                    values.push(ResultValue::Inline(bytes.clone()));
                }
                ObjectValue::Available { size, .. } => values.push(ResultValue::Stored { size: *size }),
                ObjectValue::Failed(failure) => {
                    return Some(FinishedOutcome::Failed(failure.as_ref().clone()));
                }
                ObjectValue::Unknown | ObjectValue::Pending(_) => return None,
            }
        }
        (!values.is_empty()).then_some(FinishedOutcome::Ok(values))
    }

    /// A node whose clients call this actor asks where it lives.
    pub(crate) fn find_actor(&mut self, asking: NodeIx, actor: ObjectId) {
        let place = self.home_of(actor).and_then(|(home, attempt)| {
            let traits = self.actors.get(actor)?.traits();
            let (in_order, concurrency) = (traits.in_order(), traits.calls_at_once());
            let node = self.nodes.get_mut(home)?;
            // Rule A5: it will be told when that node is lost.
            node.callers.insert(asking);
            let address = node.data_address.clone();
            Some(ActorPlace { node: node.id, address, attempt, in_order, concurrency })
        });
        self.send(asking, HeadToNode::ActorAt { actor, place });
    }

    /// Rule A5: nodes whose clients call actors of a lost one past this head are told.
    pub(crate) fn tell_callers(&mut self, callers: Set<NodeIx>, lost: NodeId, why: &str) {
        let mut callers: Vec<NodeIx> = callers.into_iter().collect();
        callers.sort_unstable();
        for caller in callers {
            self.send(caller, HeadToNode::PeerLost { node: lost, why: why.to_owned() });
        }
    }

    /// The call that will make this object, if a client sends it itself.
    fn direct_maker(&self, object: ObjectId) -> Option<TaskIx> {
        let ObjectValue::Pending(ix) = self.objects.by_id(object)?.value else { return None };
        matches!(self.tasks.get(ix)?.state, TaskState::Direct).then_some(ix)
    }

    /// A value came to be known of which a client said that it was to come; false: none was.
    pub(crate) fn expected_value(
        &mut self,
        node: NodeIx,
        object: ObjectId,
        size: u64,
        inline: Option<Bytes>,
        contains: Refs,
    ) -> bool {
        let Some(ix) = self.direct_maker(object) else { return false };
        let value = match inline {
            Some(bytes) => ResultValue::Inline(bytes),
            None => ResultValue::Stored { size },
        };
        let name = self.nodes.name(node);
        self.finish(ix, Outcome::Ok(smallvec![TaskResult { value, contains }]), Some(node), Some(name), 0);
        true
    }

    /// A call that its client sent itself came to this.
    pub(crate) fn put_failed(&mut self, node: NodeIx, id: ObjectId, failure: Failure) {
        if !self.is_attached(id.client, node) {
            return;
        }
        if let Some(ix) = self.direct_maker(id) {
            return self.finish(ix, Outcome::Failed(failure), None, None, 0);
        }
        let ix = self.objects.find_or_insert(id, || ObjectValue::Unknown);
        let Some(object) = self.objects.get_mut(ix) else { return };
        if !matches!(object.value, ObjectValue::Unknown) {
            return;
        }
        object.own = true;
        self.objects.set_failed(ix, failure);
        self.value_known(ix);
    }

    /// A call that its client sent itself in vain is the head's now.
    pub(crate) fn submit_again(&mut self, node: NodeIx, spec: TaskSpec, may_have_run: Option<Arc<str>>) {
        let id = spec.id;
        match self.tasks.find(id) {
            Some(ix) => {
                if !self.is_attached(id.client, node)
                    || !self.tasks.get(ix).is_some_and(|task| matches!(task.state, TaskState::Direct))
                {
                    return;
                }
            }
            None => match self.known_outcome(&spec) {
                // Its answer overtook it, from a node whose conversation with the caller's broke.
                Some(outcome) => return self.send(node, HeadToNode::Finished { task: id, outcome }),
                None => self.enter(node, spec, may_have_run.as_ref().map(|_| TaskState::Direct)),
            },
        }
        let Some(ix) = self.tasks.find(id) else { return };
        if let Some(task) = self.tasks.get(ix).filter(|task| task.cancelled) {
            let message = format!("task {} ({id}) was cancelled", task.spec.template.name);
            self.detach(ix);
            let failure = failure(FailureKind::Cancelled, message, Some(id));
            return self.finish(ix, Outcome::Failed(failure), None, None, 0);
        }
        let lost = self.tasks.get(ix).filter(|task| may_have_run.is_some() && !task.may_retry());
        if let Some(spec) = lost.map(|task| task.spec.clone())
            && let Some(handle) = spec.called_actor()
        {
            self.detach(ix);
            let failure = self.lost_call(&spec, handle, may_have_run.as_deref());
            return self.finish(ix, Outcome::Failed(failure), None, None, 0);
        }
        if let Some(task) = self.tasks.get_mut(ix) {
            task.retries += u32::from(may_have_run.is_some());
            if matches!(task.state, TaskState::Direct) {
                self.place(ix);
            }
        }
    }

    /// For people.
    pub(crate) fn called(&mut self, node: NodeIx, calls: Vec<CallReport>) {
        let name = self.nodes.name(node);
        for call in calls {
            let Some(job) = self.clients.get(&call.task.client).map(|client| client.job) else { continue };
            // One that the head was told of is remembered when it ends here.
            if self.tasks.find(call.task).is_some() || self.tasks.ended(call.task) {
                continue;
            }
            self.tasks.remember(Ended {
                id: call.task,
                name: call.name,
                job,
                error: call.error,
                node: Some(name.clone()),
                attempt: 1,
                submitted: before(self.now, call.micros),
                micros: call.micros,
            });
        }
    }

    /// The client that sent it is gone: nobody will hear what came of it.
    pub(crate) fn fail_direct(&mut self, ix: TaskIx, why: &str) {
        let Some(task) = self.tasks.get(ix).filter(|task| matches!(task.state, TaskState::Direct)) else {
            return;
        };
        let (id, name): (TaskId, _) = (task.spec.id, task.spec.template.name.clone());
        let message = format!(
            "nobody knows what came of task {name} ({id}): the process that called the actor ended before the answer \
             came ({why})"
        );
        self.detach(ix);
        self.finish(ix, Outcome::Failed(failure(FailureKind::ObjectLost, message, Some(id))), None, None, 0);
    }
}

fn before(now: Time, micros: u64) -> Time {
    Time(now.0.saturating_sub(Span(micros).0))
}
