//! Clients attach and are gone; with its driver a job ends.

use cluster_types::{ClientId, ClientKind, FailureKind, HeadToNode, JobId, Set};

use crate::head::{Client, Head, Job, failure};
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, TaskIx};

impl Head {
    pub(crate) fn client_attached(&mut self, ix: NodeIx, client: ClientId, kind: ClientKind, job: JobId) {
        if let Some(known) = self.clients.get(&client) {
            if known.node != ix {
                let message = format!("client {client} is attached to another node already");
                let failure = failure(FailureKind::Internal, message, None);
                self.send(ix, HeadToNode::RejectClient { client, failure });
            }
            return;
        }
        let mut own = None;
        if let ClientKind::Driver { job, info } = kind {
            if self.jobs.contains_key(&job) {
                let message = format!("job {job} exists already: start the driver again for another id");
                let failure = failure(FailureKind::Internal, message, None);
                self.send(ix, HeadToNode::RejectClient { client, failure });
                return;
            }
            own = Some(job);
            self.jobs.insert(
                job,
                Job { driver: client, info, submitters: Set::default(), noticed: Set::default() },
            );
        }
        let (job, is_driver) = (own.unwrap_or(job), own.is_some());
        self.clients.insert(client, Client { node: ix, job, is_driver, held: Set::default() });
        if let Some(node) = self.nodes.get_mut(ix) {
            node.clients.insert(client);
        }
    }

    /// A client is gone for good: all it held is dropped (rule R1), what it put and never let escape is gone (rule
    /// R2), what was asked about its things is answered (rule R3), and work nobody can reach any more ends.
    pub(crate) fn client_gone(&mut self, client: ClientId, why: &str) {
        let Some(gone) = self.clients.remove(&client) else { return };
        let may_go_on = self.jobs.contains_key(&gone.job) || self.recovery.is_some();
        if let Some(node) = self.nodes.get_mut(gone.node) {
            node.clients.remove(&client);
            if may_go_on && gone.job != JobId::default() {
                // It heard of the job from the driver, or from a head of before, and is to hear of its end also when
                // nothing of it is there any more.
                node.jobs.insert(gone.job);
            }
        }
        if gone.is_driver {
            self.end_job(gone.job, why);
        }
        let mut held: Vec<_> = gone.held.into_iter().collect();
        held.sort_unstable();
        for object in held {
            self.remove_holder(client, object);
        }
        for ix in self.objects.made_by(client) {
            let Some(object) = self.objects.get_mut(ix) else { continue };
            object.own = false;
            if matches!(object.value, ObjectValue::Unknown) {
                let message = format!("object {} was never made: its maker is gone ({why})", object.id);
                self.objects.set_failed(ix, failure(FailureKind::ObjectFreed, message, None));
                self.value_known(ix);
            }
            self.objects.doubt(ix);
        }
        for task in self.tasks.submitted_by(client) {
            self.fail_direct(task, why);
            if !self.results_are_reachable(task) {
                self.drop_task(task, why);
            }
            if let Some(id) = self.tasks.get(task).map(|task| task.spec.id) {
                self.close_stream(id);
            }
        }
        // Should it come back (its node was out of touch), it submits again what it did not see ending.
        self.tasks.forget_history_of(client);
        for at in 0..self.nodes.alive().len() {
            let node = self.nodes.alive()[at];
            self.send(node, HeadToNode::ClientGone(client));
        }
    }

    fn results_are_reachable(&self, ix: TaskIx) -> bool {
        let Some(task) = self.tasks.get(ix) else { return false };
        let id = task.spec.id;
        (0..task.spec.template.num_returns)
            .any(|index| self.objects.by_id(id.result(index)).is_some_and(|object| object.is_reachable()))
    }

    /// Nobody wants this task: it ends now, or, if a node has it, when the node says so.
    fn drop_task(&mut self, ix: TaskIx, why: &str) {
        let is_living = self.is_living(ix);
        let Some(task) = self.tasks.get_mut(ix) else { return };
        match task.node() {
            Some(_) if is_living => {
                task.cancelled = true;
                self.end_living(ix, why, true);
            }
            None => self.end_cancelled(ix),
            Some(node) if !task.cancelled => {
                task.cancelled = true;
                task.revived = false;
                let id = task.spec.id;
                let Some(attempt) = self.tasks.get(ix).map(|task| self.tasks.attempt_of(task)) else {
                    return;
                };
                self.cancel_attempt(node, id, attempt, why);
            }
            Some(_) => {}
        }
    }

    /// Every task of the job ends: now, or, if a node has it, when the node answers the `Cancel`. Until then its lease
    /// is booked, for what it holds (a GPU's memory, say) is not free before its process is gone.
    pub(crate) fn end_job(&mut self, id: JobId, why: &str) {
        let Some(job) = self.jobs.remove(&id) else { return };
        let mut submitters: Vec<_> = job.submitters.into_iter().collect();
        submitters.sort_unstable();
        let why = format!("its job {id} ended: {why}");
        for client in submitters {
            for ix in self.tasks.submitted_by(client) {
                if self.tasks.get(ix).is_some_and(|task| task.spec.job == id) {
                    self.drop_task(ix, &why);
                }
            }
        }
        self.end_groups_of(id, &why);
        for at in 0..self.nodes.alive().len() {
            let ix = self.nodes.alive()[at];
            let told = self.nodes.get_mut(ix).is_some_and(|node| node.jobs.remove(&id));
            let has_client = self.nodes.get(ix).is_some_and(|node| {
                node.clients
                    .iter()
                    .any(|client| self.clients.get(client).is_some_and(|client| client.job == id))
            });
            if told || has_client {
                self.send(ix, HeadToNode::JobEnded(id));
            }
        }
    }
}
