//! The way of an attempt from the head to an executor's queue: its arguments come (DEP-1), it waits for a lease or an
//! executor, the head grants, calls back, cancels (rule S2).

use std::sync::Arc;

use cluster_types::{Attempt, Lease, NodeToClient, NodeToHead, TaskId, TaskSpec};

use crate::attempts::{Assigned, Stage};
use crate::catalogue::PoolKey;
use crate::event::Effect;
use crate::node::Node;
use crate::streams::Taken;

impl Node {
    pub(crate) fn assign(
        &mut self,
        spec: Arc<TaskSpec>,
        attempt: Attempt,
        lease: Option<Lease>,
        effects: &mut Vec<Effect>,
    ) {
        let task = spec.id;
        if let Some(known) = self.attempts.get(&task) {
            // A head that came after another may not know of an attempt that is being ended here: once that is over,
            // there is room for this one. The same again is a repeat.
            if known.attempt != attempt {
                self.tell_head(NodeToHead::Returned(vec![(task, attempt)]), effects);
            }
            return;
        }
        if let Some(actor) = spec.called_actor() {
            return self.assign_call(actor, spec, attempt, effects);
        }
        let shape = self.catalogue.shape(&spec.template);
        let pool = self.pool_for(&spec, lease.as_ref());
        let assigned = Assigned {
            spec,
            attempt,
            lease,
            stage: Stage::Arguments,
            calling_back: false,
            cancelled: None,
            shape,
            pool,
            lends_cpu: false,
            admission: false,
            pinned: false,
            taken: Taken::default(),
            yielded: 0,
        };
        self.cpu_used += assigned.cpu();
        self.attempts.insert(task, assigned);
        self.await_arguments(task, effects);
    }

    pub(crate) fn pool_for(&mut self, spec: &TaskSpec, lease: Option<&Lease>) -> PoolKey {
        let gpus =
            lease.map(|lease| lease.gpus.iter().map(|share| share.index).collect()).unwrap_or_default();
        self.catalogue.pool(spec.job, &spec.template, gpus)
    }

    /// Brings what the attempt needs; goes on when it is here (DEP-1).
    pub(crate) fn await_arguments(&mut self, task: TaskId, effects: &mut Vec<Effect>) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        assigned.stage = Stage::Arguments;
        if self.find_arguments(task, effects) {
            self.seek_admission(task, effects);
            self.make_room(effects);
        } else {
            self.make_ready(task, effects);
        }
    }

    /// Its arguments are here: it starts if it has a lease, else it waits for one.
    pub(crate) fn make_ready(&mut self, task: TaskId, effects: &mut Vec<Effect>) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        assigned.stage = Stage::Ready;
        let (leased, shape, spec) = (assigned.lease.is_some(), assigned.shape, assigned.spec.clone());
        self.pin(task);
        if let Some(actor) = spec.called_actor() {
            return self.feed_actor(actor, effects);
        }
        if leased {
            let lease = self.attempts.get(&task).and_then(|assigned| assigned.lease.clone());
            let pool = self.pool_for(&spec, lease.as_ref());
            if let Some(assigned) = self.attempts.get_mut(&task) {
                assigned.pool = pool;
            }
            self.dispatch(task, effects);
            return;
        }
        self.ahead.entry(shape).or_default().push_back(task);
        // Somebody who runs its like may take it along.
        let busy = self.executors.iter().find(|(_, known)| {
            !known.blocked
                && !known.ending
                && known.actor.is_none()
                && known.sent.len() == 1
                && self.attempts.get(&known.sent[0].task).is_some_and(|running| running.shape == shape)
        });
        if let Some(executor) = busy.map(|(id, _)| *id) {
            self.pipeline(executor, effects);
        }
    }

    pub(crate) fn grant(&mut self, task: TaskId, attempt: Attempt, lease: Lease, effects: &mut Vec<Effect>) {
        let Some(assigned) =
            self.attempts.get_mut(&task).filter(|known| known.attempt == attempt && known.lease.is_none())
        else {
            return;
        };
        assigned.lease = Some(lease);
        assigned.calling_back = false;
        self.cpu_used += assigned.cpu();
        match assigned.stage {
            Stage::Arguments => {}
            Stage::Ready => {
                let shape = assigned.shape;
                if let Some(queue) = self.ahead.get_mut(&shape) {
                    queue.retain(|have| *have != task);
                }
                self.make_ready(task, effects);
            }
            // Queued behind another: taken back if that has not come to it, and then it starts at once. If it has,
            // `Done` says so and the lease it inherited counts.
            Stage::Sent { executor, tag } => self.revoke(executor, tag, effects),
        }
    }

    pub(crate) fn call_back(&mut self, task: TaskId, attempt: Attempt, effects: &mut Vec<Effect>) {
        let Some(assigned) =
            self.attempts.get_mut(&task).filter(|known| known.attempt == attempt && known.lease.is_none())
        else {
            return;
        };
        if let Stage::Sent { executor, tag } = assigned.stage {
            assigned.calling_back = true;
            self.revoke(executor, tag, effects);
            return;
        }
        let shape = assigned.shape;
        if let Some(queue) = self.ahead.get_mut(&shape) {
            queue.retain(|have| *have != task);
        }
        self.forget_attempt(task);
        self.tell_head(NodeToHead::Returned(vec![(task, attempt)]), effects);
    }

    pub(crate) fn cancel(
        &mut self,
        task: TaskId,
        attempt: Attempt,
        reason: &str,
        force: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(assigned) = self.attempts.get_mut(&task).filter(|known| known.attempt == attempt) else {
            return;
        };
        assigned.cancelled = Some(reason.to_owned());
        let Stage::Sent { executor, tag } = assigned.stage else {
            self.end_cancelled(task, effects);
            return;
        };
        let Some(known) = self.executors.get(&executor) else { return };
        let in_order = known.actor.and_then(|handle| self.actors.get(&handle)).map(|actor| actor.in_order);
        let running = known.sent.front().is_some_and(|sent| sent.tag == tag);
        if in_order == Some(false) || (in_order.is_some() && running) {
            self.interrupt_call(executor, tag, reason, effects);
        } else if !running {
            self.revoke(executor, tag, effects);
        } else if force {
            effects.push(Effect::EndExecutor { executor, force: true });
        } else if let Some(client) = known.client {
            effects.push(Effect::Interrupt { executor, tag });
            let reason = reason.to_owned();
            self.tell_client(client, NodeToClient::Cancel { tag, reason, recursive: false }, effects);
        }
    }

    pub(crate) fn pin(&mut self, task: TaskId) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        if std::mem::replace(&mut assigned.pinned, true) {
            return;
        }
        for object in assigned.spec.clone().needed() {
            if let Some(known) = self.objects.get_mut(&object) {
                known.pins += 1;
            }
        }
    }

    pub(crate) fn unpin(&mut self, task: TaskId) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        if !std::mem::replace(&mut assigned.pinned, false) {
            return;
        }
        for object in assigned.spec.clone().needed() {
            if let Some(known) = self.objects.get_mut(&object) {
                known.pins = known.pins.saturating_sub(1);
            }
            self.let_go(object);
            self.forget_cached(object);
        }
    }
}
