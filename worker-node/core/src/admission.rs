//! Rule P5: memory for the arguments of an attempt is reserved for all of them together, and after what running tasks
//! ask for. So no two attempts can each hold a half of what they need and wait for the other.

use cluster_types::node_head::Retry;
use cluster_types::{FailureKind, ObjectId, TaskId};

use crate::attempts::Stage;
use crate::event::Effect;
use crate::node::Node;
use crate::objects::Fetch;

impl Node {
    /// Queues an attempt for memory once it is known where each of its arguments is.
    pub(crate) fn seek_admission(&mut self, task: TaskId, effects: &mut Vec<Effect>) {
        self.find_arguments(task, effects);
        if self.arguments_to_come(task).is_none() {
            return;
        }
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        if !std::mem::replace(&mut assigned.admission, true) {
            self.memory.admissions.push_back(task);
        }
    }

    /// Has each argument found that is not here (any more); true if there are such.
    pub(crate) fn find_arguments(&mut self, task: TaskId, effects: &mut Vec<Effect>) -> bool {
        let Some(assigned) = self.attempts.get(&task).filter(|known| known.stage == Stage::Arguments) else {
            return false;
        };
        let spec = assigned.spec.clone();
        let mut missing = false;
        for object in spec.needed() {
            let known = self.objects.entry(object).or_default();
            if !known.is_here() {
                missing = true;
                if !known.waiting_tasks.contains(&task) {
                    known.waiting_tasks.push(task);
                }
                self.find(object, effects);
            }
        }
        missing
    }

    /// The arguments that have to be brought here, each once; `None` if where one of them is is not known yet.
    fn arguments_to_come(&self, task: TaskId) -> Option<Vec<ObjectId>> {
        let assigned = self.attempts.get(&task).filter(|assigned| assigned.stage == Stage::Arguments)?;
        let mut to_come = Vec::new();
        for object in assigned.spec.needed() {
            let known = self.objects.get(&object)?;
            match known.fetch {
                _ if known.is_here() || to_come.contains(&object) => {}
                Fetch::Waiting => to_come.push(object),
                Fetch::Arriving => {}
                Fetch::Idle | Fetch::Locating => return None,
            }
        }
        Some(to_come)
    }

    /// Admits the first attempt, those that have a lease first; false if there is no room, or none waits.
    pub(crate) fn admit_next(&mut self, effects: &mut Vec<Effect>) -> bool {
        let leased = |task: &TaskId| self.attempts.get(task).is_none_or(|known| known.lease.is_some());
        let Some(at) = self.memory.admissions.iter().position(leased).or(Some(0)) else { return false };
        let Some(task) = self.memory.admissions.get(at).copied() else { return false };
        let to_come = self.arguments_to_come(task);
        let bytes = to_come.as_ref().map_or(0, |objects| self.bytes_of(objects));
        let all = self.all_bytes(task);
        if bytes > self.free_memory() && all <= self.config.store_capacity {
            return false;
        }
        self.memory.admissions.remove(at);
        self.admit(task, to_come, all <= self.config.store_capacity, effects);
        true
    }

    /// Admits the first attempt though there is no room: nothing runs here that could make some.
    pub(crate) fn admit_beyond(&mut self, effects: &mut Vec<Effect>) -> bool {
        let running = self.executors.values().any(|known| !known.sent.is_empty() && !known.blocked);
        let starting = self.pools.values().any(|pool| !pool.waiting.is_empty());
        if running || starting || !self.memory.arriving.is_empty() {
            return false;
        }
        let Some(task) = self.memory.admissions.pop_front() else { return false };
        self.memory.stuck_since = None;
        let to_come = self.arguments_to_come(task);
        self.admit(task, to_come, true, effects);
        true
    }

    fn admit(&mut self, task: TaskId, to_come: Option<Vec<ObjectId>>, fits: bool, effects: &mut Vec<Effect>) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        assigned.admission = false;
        let Some(to_come) = to_come else {
            // One was moved meanwhile, or its source failed.
            return self.seek_admission(task, effects);
        };
        if !fits {
            let message = format!(
                "{} needs arguments of {} MiB together, and the object store of node {} holds {} MiB at most",
                self.name(task),
                self.all_bytes(task) >> 20,
                self.me(),
                self.config.store_capacity >> 20
            );
            return self.end_failed(task, FailureKind::ObjectTooLarge, message, Retry::No, None, effects);
        }
        // What is here already, and what comes, stays until it runs.
        self.pin(task);
        for object in to_come {
            self.begin(object, effects);
        }
    }

    fn bytes_of(&self, objects: &[ObjectId]) -> u64 {
        let sizes = objects.iter().filter_map(|object| self.objects.get(object)).map(|known| known.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// What the arguments that lie in the store take together.
    fn all_bytes(&self, task: TaskId) -> u64 {
        let Some(assigned) = self.attempts.get(&task) else { return 0 };
        let mut objects: Vec<ObjectId> = assigned.spec.needed().collect();
        objects.sort_unstable();
        objects.dedup();
        objects.retain(|object| self.objects.get(object).is_some_and(|known| known.inline.is_none()));
        self.bytes_of(&objects)
    }

    /// Under pressure, what was sent ahead lets go of its arguments: it waits for others, who may wait for memory.
    /// True if that freed anything.
    pub(crate) fn lend_less(&mut self) -> bool {
        let ahead: Vec<TaskId> = self.ahead.values().flatten().copied().collect();
        let mut any = false;
        for task in ahead {
            if self.attempts.get(&task).is_some_and(|known| known.pinned) {
                let needed = self.attempts.get(&task).map(|known| known.spec.clone());
                self.unpin(task);
                any |= needed.is_some_and(|spec| {
                    spec.needed().any(|object| self.objects.get(&object).is_some_and(|known| known.idle))
                });
            }
        }
        any
    }
}
