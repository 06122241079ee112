//! Waiting inside tasks (rule S4): CPU given back, what is waited for goes first, and the CPU is booked again.

use cluster_types::task::InGroup;
use cluster_types::{Attempt, ObjectId, TaskId};

use crate::head::Head;
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, TaskIx};
use crate::tasks::TaskState;

impl Head {
    pub(crate) fn blocked(&mut self, node: NodeIx, id: TaskId, attempt: Attempt, on: &[ObjectId]) {
        let Some(ix) = self.tasks.current(id, attempt, node) else { return };
        let Some(task) = self.tasks.get_mut(ix) else { return };
        let (spec, shape, bundle) = (task.spec.clone(), task.shape, task.bundle);
        let cpu = spec.template.resources.cpu;
        let TaskState::Leased { blocked, .. } = &mut task.state else {
            // A call lends nothing; what it waits for is promoted all the same.
            return self.promote(on);
        };
        if !*blocked {
            *blocked = true;
            let mut was_over = false;
            if let Some(ledger) = self.books(&spec, node, bundle) {
                was_over = !ledger.over().is_zero();
                ledger.block(cpu);
            }
            if let Some(InGroup { group, .. }) = spec.template.strategy.group() {
                self.feed_group(group);
            }
            if let Some(state) = self.nodes.get_mut(node) {
                state.blocked += 1;
                state.shape_mut(shape).awake -= 1;
            }
            if was_over {
                self.reopen_room(node);
            }
            self.note_crowding(node);
            self.nodes.mark_dirty(node);
        }
        self.promote(on);
    }

    pub(crate) fn unblocked(&mut self, node: NodeIx, id: TaskId, attempt: Attempt) {
        let Some(ix) = self.tasks.current(id, attempt, node) else { return };
        let Some(task) = self.tasks.get_mut(ix) else { return };
        let (spec, shape_ix, bundle) = (task.spec.clone(), task.shape, task.bundle);
        let TaskState::Leased { blocked, .. } = &mut task.state else { return };
        if !std::mem::take(blocked) {
            return;
        }
        if let Some(ledger) = self.books(&spec, node, bundle) {
            ledger.unblock(spec.template.resources.cpu);
        }
        if let Some(state) = self.nodes.get_mut(node) {
            state.blocked -= 1;
            if state.blocked == 0 {
                state.crowd_next = None;
            }
            state.shape_mut(shape_ix).awake += 1;
        }
        if let Some(shape) = self.shapes.get_mut(shape_ix) {
            shape.room.insert(node);
            if shape.queued() > 0 {
                self.shapes.make_ready(shape_ix);
            }
        }
    }

    /// Promotes the tasks that make these, and what those wait for, transitively.
    pub(crate) fn promote(&mut self, objects: &[ObjectId]) {
        let mut to_look_at: Vec<ObjectId> = objects.to_vec();
        while let Some(id) = to_look_at.pop() {
            let id = self.awaited(id);
            let Some(ObjectValue::Pending(maker)) = self.objects.by_id(id).map(|object| &object.value) else {
                continue;
            };
            let maker = *maker;
            let Some(task) = self.tasks.get_mut(maker) else { continue };
            if task.promoted {
                continue;
            }
            task.promoted = true;
            if matches!(task.state, TaskState::Waiting { .. }) {
                to_look_at.extend(task.spec.needed());
            }
            self.hurry(maker);
        }
    }

    /// Moves a task that was just promoted ahead of others.
    fn hurry(&mut self, ix: TaskIx) {
        let Some(task) = self.tasks.get_mut(ix) else { return };
        let stamp = task.stamp;
        match task.state {
            TaskState::Waiting { .. }
            | TaskState::Leased { .. }
            | TaskState::AtActor
            | TaskState::Direct
            | TaskState::HandedOut { .. }
            | TaskState::Reserving
            | TaskState::Delayed { .. }
            | TaskState::Alive { .. } => {}
            TaskState::Queued { .. } => {
                task.state = TaskState::Waiting { missing: 0 };
                self.leave_queues(ix, false);
                self.enqueue(ix, false);
            }
            TaskState::Prefetched { node, .. } => {
                if !self.grant(ix, true)
                    && let Some(state) = self.nodes.get_mut(node)
                {
                    state.wanting.push((ix, stamp));
                }
            }
        }
    }
}
