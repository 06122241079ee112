//! Clients attach and are gone; with its driver a job ends.

use std::sync::Arc;

use cluster_types::{ClientId, ClientKind, FailureKind, HeadToNode, JobId, Outcome, Set};

use crate::head::{Client, Head, Job, failure};
use crate::nodes::Ghost;
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, TaskIx};
use crate::tasks::TaskState;

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
        let mut is_driver = false;
        if let ClientKind::Driver { job: own, info } = kind {
            if self.jobs.contains_key(&own) {
                let message = format!("job {own} exists already: start the driver again for another id");
                let failure = failure(FailureKind::Internal, message, None);
                self.send(ix, HeadToNode::RejectClient { client, failure });
                return;
            }
            is_driver = true;
            self.jobs.insert(
                own,
                Job { driver: client, info, submitters: Set::default(), noticed: Set::default() },
            );
            self.clients.insert(client, Client { node: ix, job: own, is_driver, held: Set::default() });
        } else {
            self.clients.insert(client, Client { node: ix, job, is_driver, held: Set::default() });
        }
        if let Some(node) = self.nodes.get_mut(ix) {
            node.clients.insert(client);
        }
    }

    /// A client is gone for good: all it held is dropped (rule R1), what it put and never let escape is gone (rule
    /// R2), what was asked about its things is answered (rule R3), and work nobody can reach any more ends.
    pub(crate) fn client_gone(&mut self, client: ClientId, why: &str) {
        let Some(gone) = self.clients.remove(&client) else { return };
        if let Some(node) = self.nodes.get_mut(gone.node) {
            node.clients.remove(&client);
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
            if !self.results_are_reachable(task) {
                self.drop_task(task, why);
            }
        }
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
        let Some(task) = self.tasks.get_mut(ix) else { return };
        match task.node() {
            None => self.end_cancelled(ix),
            Some(node) if !task.cancelled => {
                task.cancelled = true;
                let id = task.spec.id;
                let Some(attempt) = self.tasks.get(ix).map(|task| self.tasks.attempt_of(task)) else {
                    return;
                };
                self.cancel_attempt(node, id, attempt, why);
            }
            Some(_) => {}
        }
    }

    /// Every task of the job ends now. `JobEnded` makes the nodes forget the attempts, so their leases are free; a
    /// report that crosses it finds what it hands on among the node's ghosts.
    fn end_job(&mut self, id: JobId, why: &str) {
        let Some(job) = self.jobs.remove(&id) else { return };
        let mut submitters: Vec<_> = job.submitters.into_iter().collect();
        submitters.sort_unstable();
        let why: Arc<str> = format!("its job {id} ended: {why}").into();
        for client in submitters {
            for ix in self.tasks.submitted_by(client) {
                let Some(task) = self.tasks.get(ix).filter(|task| task.spec.job == id) else { continue };
                if let TaskState::Leased { node, lease, .. } = &task.state {
                    let ghost = Ghost {
                        since: self.now,
                        task: task.spec.id,
                        attempt: self.tasks.attempt_of(task),
                        lease: lease.clone(),
                    };
                    let node = *node;
                    if let Some(node) = self.nodes.get_mut(node) {
                        node.ghosts.push_back(ghost);
                    }
                    self.nodes.mark_dirty(node);
                }
                let task = task.spec.id;
                self.detach(ix);
                let failure = failure(FailureKind::Cancelled, why.clone(), Some(task));
                self.finish(ix, Outcome::Failed(failure), None, None, 0);
            }
        }
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
