//! What it takes to make lost objects again.
//!
//! When a task has made something that lies in the stores, its spec is kept as long as a result is reachable, or another
//! kept spec takes a result as its argument. Should no copy be left when somebody asks, the task runs again, and before
//! it whatever made the arguments that are lost or were freed since. What no task can make again (puts, small values) is
//! held by the specs that need it. The whole is bounded; the oldest goes first.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::{Map, ObjectId, Payload, Set, TaskId, TaskSpec};

use crate::head::Head;
use crate::objects::{Object, ObjectValue};
use crate::slab::{ObjectIx, TaskIx};

/// A spec beside its payload: an estimate.
const SPEC_BYTES: u64 = 256;

/// All that is kept.
#[derive(Debug, Default)]
pub(crate) struct Lineage {
    kept: Map<TaskId, Kept>,
    /// The oldest first; some may be gone.
    order: VecDeque<TaskId>,
    /// Of specs.
    bytes: u64,
    /// What specs hold because no task makes it: how many hold it, and its size.
    leaves: Map<ObjectId, (u32, u64)>,
    leaf_bytes: u64,
}

/// A task that could run again.
#[derive(Debug)]
struct Kept {
    spec: Arc<TaskSpec>,
    /// Those that it yielded.
    items: u32,
    attempts: u32,
    retries: u32,
    /// Results and items in the table of objects, and kept tasks that take one.
    wanted: u32,
    bytes: u64,
    leaves: Vec<ObjectId>,
    /// The kept makers of its arguments, as often as it takes one.
    makers: Vec<TaskId>,
}

/// The results of a task, and what it yielded.
fn made_by(spec: &TaskSpec, items: u32) -> impl Iterator<Item = ObjectId> {
    let id = spec.id;
    (0..spec.template.num_returns)
        .map(move |index| id.result(index))
        .chain((0..items).map(move |at| id.item(at)))
}

impl Lineage {
    /// How often kept specs hold this object (REF-1).
    pub fn holds(&self, object: ObjectId) -> u32 {
        self.leaves.get(&object).map_or(0, |(times, _)| *times)
    }

    pub fn sizes(&self) -> [(&'static str, usize); 4] {
        [
            ("kept specs", self.kept.len()),
            ("order of kept specs", self.order.len()),
            ("bytes of kept specs", self.bytes as usize),
            ("objects held by kept specs", self.leaves.len()),
        ]
    }

    /// Everything that is held.
    pub fn held(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.leaves.keys().copied()
    }
}

impl Head {
    /// A task ended well, and left something in the stores. Called while it still holds its arguments.
    pub(crate) fn keep_lineage(&mut self, spec: &Arc<TaskSpec>, items: u32, attempts: u32, retries: u32) {
        let id = spec.id;
        if let Some(kept) = self.lineage.kept.get_mut(&id) {
            (kept.attempts, kept.retries) = (attempts, retries);
            return;
        }
        let template = &spec.template;
        // Of a stream that ended under the head before, nodes may still have to tell what there is.
        let is_whole = items == 0 || !self.is_recovering() && self.knows_items(id, items);
        let can_run_again = template.can_run_again() && is_whole;
        let exists = |id: &ObjectId| {
            let object = self.objects.by_id(*id);
            object.is_some_and(|object| matches!(object.value, ObjectValue::Available { .. }))
        };
        let results = made_by(spec, items).filter(exists);
        let wanted = if can_run_again { results.count() as u32 } else { 0 };
        if wanted == 0 {
            return;
        }
        self.insert_lineage(spec, items, (attempts, retries), wanted);
        self.keep_lineage_within_bounds();
    }

    /// What the nodes of submitters remember of tasks that ended in a term before, makers before what takes their
    /// results. A result that somebody holds and no node has is not lost: it can be made again.
    /// Those that wait for one are to be told by `value_known`.
    pub(crate) fn restore_lineage(&mut self, specs: &[Arc<TaskSpec>]) -> Vec<ObjectIx> {
        let mut known = Vec::new();
        for spec in specs {
            let id = spec.id;
            if !self.jobs.contains_key(&spec.job)
                || self.lineage.kept.contains_key(&id)
                || self.tasks.find(id).is_some()
            {
                continue;
            }
            let mut wanted = 0;
            for index in 0..spec.template.num_returns {
                let Some(ix) = self.objects.find(id.result(index)) else { continue };
                let value = self.objects.get(ix).map(|object| &object.value);
                if matches!(value, Some(ObjectValue::Unknown)) {
                    self.objects.set_available(ix, 0, None, None);
                    known.push(ix);
                }
                let value = self.objects.get(ix).map(|object| &object.value);
                wanted += u32::from(matches!(value, Some(ObjectValue::Available { .. })));
            }
            self.insert_lineage(spec, 0, (0, 0), wanted);
        }
        for spec in specs.iter().rev() {
            if self.lineage.kept.get(&spec.id).is_some_and(|kept| kept.wanted == 0) {
                self.forget_lineage(spec.id);
            }
        }
        self.keep_lineage_within_bounds();
        known
    }

    /// A node makes what was lost again, for the head of before: its task is in the table, nowhere yet. `None`: nobody
    /// wants what it makes, or it is somewhere.
    pub(crate) fn enter_made_again(&mut self, task: TaskId) -> Option<TaskIx> {
        let spec = self.lineage.kept.get(&task)?.spec.clone();
        let is_lost = |ix: &ObjectIx| {
            let object = self.objects.get(*ix);
            object.is_some_and(|object| {
                matches!(object.value, ObjectValue::Available { .. }) && !self.is_somewhere(object)
            })
        };
        let results =
            (0..spec.template.num_returns).filter_map(|index| self.objects.find(task.result(index)));
        let lost: Vec<ObjectIx> = results.filter(is_lost).collect();
        if lost.is_empty() {
            return None;
        }
        let task_ix = self.enter_again(task)?;
        lost.into_iter().for_each(|ix| self.make_pending_again(ix, task_ix));
        self.hold_arguments(&spec);
        Some(task_ix)
    }

    fn insert_lineage(
        &mut self,
        spec: &Arc<TaskSpec>,
        items: u32,
        (attempts, retries): (u32, u32),
        wanted: u32,
    ) {
        let (id, template) = (spec.id, &spec.template);
        let payload = match &spec.payload {
            Payload::Inline(bytes) => bytes.len() as u64,
            Payload::Stored(_) => 0,
        };
        let (mut leaves, mut makers) = (Vec::new(), Vec::new());
        let group = template.strategy.group().map(|place| place.group);
        for held in spec.held() {
            let maker = held.task().map(|(maker, _)| maker);
            if let Some(kept) = maker.and_then(|maker| self.lineage.kept.get_mut(&maker)) {
                kept.wanted += 1;
                makers.extend(maker);
                continue;
            }
            // Handles end actors, groups and streams when they go; a spec that may never be used must not keep them.
            let is_handle = Some(held) == group
                || self.actors.get(held).is_some()
                || maker.is_some_and(|maker| self.streams.contains_key(&maker));
            let Some(object) = self.objects.by_id_mut(held).filter(|_| !is_handle) else { continue };
            let size = match object.value {
                ObjectValue::Available { size, .. } => size,
                _ => 0,
            };
            object.tasks += 1;
            let leaf = self.lineage.leaves.entry(held).or_insert((0, size));
            if leaf.0 == 0 {
                self.lineage.leaf_bytes += leaf.1;
            }
            leaf.0 += 1;
            leaves.push(held);
        }
        let bytes = SPEC_BYTES + payload + 16 * (leaves.len() + makers.len()) as u64;
        self.lineage.bytes += bytes;
        let kept = Kept { spec: spec.clone(), items, attempts, retries, wanted, bytes, leaves, makers };
        self.lineage.kept.insert(id, kept);
        self.lineage.order.push_back(id);
    }

    fn keep_lineage_within_bounds(&mut self) {
        let most_leaves = self.lineage_leaves_max;
        while self.lineage.bytes > self.config.lineage_budget || self.lineage.leaf_bytes > most_leaves {
            let Some(oldest) = self.lineage.order.pop_front() else { return };
            self.forget_lineage(oldest);
        }
        if self.lineage.order.len() > 1024 && self.lineage.order.len() > 4 * self.lineage.kept.len() {
            let kept = &self.lineage.kept;
            self.lineage.order.retain(|id| kept.contains_key(id));
        }
    }

    /// What specs may hold follows the size of the stores: a quarter of them. Of nodes that come, at once; of nodes that
    /// leave, in minutes: when they are lost is when it is needed.
    pub(crate) fn measure_lineage(&mut self) {
        let quarter: u64 = self.nodes.iter().map(|(_, node)| node.store.capacity / 4).sum();
        let most = self.lineage_leaves_max;
        self.lineage_leaves_max = quarter.max(most - most / 1024);
        self.keep_lineage_within_bounds();
    }

    /// An object left the table.
    pub(crate) fn result_forgotten(&mut self, object: &Object) {
        let was_counted = matches!(object.value, ObjectValue::Available { .. } | ObjectValue::Pending(_));
        if let Some((task, _)) = object.id.task().filter(|_| was_counted) {
            self.unwant(vec![task]);
        }
    }

    /// A result of this task will not come again.
    pub(crate) fn result_is_lost(&mut self, task: TaskId) {
        self.unwant(vec![task]);
    }

    /// It cannot be run again: what it made stays, as long as there are copies.
    pub(crate) fn forget_lineage(&mut self, task: TaskId) {
        if let Some(kept) = self.lineage.kept.remove(&task) {
            let makers = self.let_go_of(kept);
            self.unwant(makers);
        }
    }

    /// One less wants each of these.
    fn unwant(&mut self, mut tasks: Vec<TaskId>) {
        while let Some(task) = tasks.pop() {
            let Some(kept) = self.lineage.kept.get_mut(&task) else { continue };
            kept.wanted -= 1;
            if kept.wanted == 0
                && let Some(kept) = self.lineage.kept.remove(&task)
            {
                tasks.extend(self.let_go_of(kept));
            }
        }
    }

    fn let_go_of(&mut self, kept: Kept) -> Vec<TaskId> {
        self.lineage.bytes -= kept.bytes;
        for leaf in kept.leaves {
            if let Some((times, size)) = self.lineage.leaves.get_mut(&leaf) {
                *times -= 1;
                if *times == 0 {
                    self.lineage.leaf_bytes -= *size;
                    self.lineage.leaves.remove(&leaf);
                }
            }
            let Some(ix) = self.objects.find(leaf) else { continue };
            if let Some(object) = self.objects.get_mut(ix) {
                object.tasks -= 1;
                if object.tasks == 0 {
                    self.objects.doubt(ix);
                }
            }
        }
        kept.makers
    }

    /// No node has a copy of this object: the task that made it runs again, and before it what made its arguments, as far
    /// as those are gone too. An error says why it cannot be.
    pub(crate) fn make_again(&mut self, ix: ObjectIx) -> Result<(), String> {
        let Some(id) = self.objects.get(ix).map(|object| object.id) else {
            return Err("it is gone".to_owned());
        };
        let (lost, tasks) = self.plan_to_make(id)?;
        let mut entered: Vec<TaskIx> = Vec::new();
        for task in tasks {
            entered.extend(self.enter_again(task));
        }
        for id in lost {
            let Some(maker) = id.task().and_then(|(task, _)| self.tasks.find(task)) else { continue };
            match self.objects.find(id) {
                Some(ix) => self.make_pending_again(ix, maker),
                None => {
                    self.objects.find_or_insert(id, || ObjectValue::Pending(maker));
                    self.want_again(id);
                }
            }
            self.note_missing(id);
        }
        for task_ix in &entered {
            if let Some(spec) = self.tasks.get(*task_ix).map(|task| task.spec.clone()) {
                self.hold_arguments(&spec);
            }
        }
        entered.into_iter().for_each(|task_ix| self.place(task_ix));
        Ok(())
    }

    /// A result of a task that is kept is in the table again.
    pub(crate) fn want_again(&mut self, id: ObjectId) {
        if let Some(kept) = id.task().and_then(|(task, _)| self.lineage.kept.get_mut(&task)) {
            kept.wanted += 1;
        }
    }

    /// Objects that are to come again, and the tasks to run for that; nothing is changed.
    fn plan_to_make(&self, id: ObjectId) -> Result<(Vec<ObjectId>, Vec<TaskId>), String> {
        let (mut lost, mut tasks) = (Vec::new(), Vec::new());
        let mut seen = Set::default();
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            if !seen.insert(id) {
                continue;
            }
            let Some((task, _)) = id.task() else {
                return Err(format!("{id} was put, not made by a task"));
            };
            lost.push(id);
            if self.tasks.find(task).is_some() || tasks.contains(&task) {
                continue;
            }
            let kept = self.lineage.kept.get(&task).ok_or_else(|| {
                format!(
                    "what {id} was made of is not kept: it came of a call to an actor, of a task with max_retries=0, or too \
                     long ago"
                )
            })?;
            let template = &kept.spec.template;
            if template.max_retries >= 0 && kept.retries >= template.max_retries as u32 {
                return Err(format!(
                    "task {} ({task}), which makes {id}, was tried {} times already",
                    template.name,
                    kept.retries + 1
                ));
            }
            if !self.jobs.contains_key(&kept.spec.job) {
                return Err(format!(
                    "the job of task {} ({task}), which makes {id}, has ended",
                    template.name
                ));
            }
            if let Some(place) = template.strategy.group()
                && self.groups.get(place.group).is_none()
            {
                return Err(format!(
                    "placement group ({}), in which task {} ({task}) made {id}, was removed",
                    place.group, template.name
                ));
            }
            tasks.push(task);
            for needed in kept.spec.needed() {
                match self.objects.by_id(needed).map(|object| &object.value) {
                    Some(ObjectValue::Failed(_) | ObjectValue::Unknown) => {
                        return Err(format!(
                            "{needed}, an argument of task {} ({task}), is gone",
                            template.name
                        ));
                    }
                    Some(ObjectValue::Pending(_)) => {}
                    Some(ObjectValue::Available { .. }) if self.has_a_copy(needed) => {}
                    Some(ObjectValue::Available { .. }) | None => stack.push(needed),
                }
            }
        }
        Ok((lost, tasks))
    }

    fn has_a_copy(&self, id: ObjectId) -> bool {
        self.objects.by_id(id).is_some_and(|object| self.is_somewhere(object))
    }

    /// The task is in the table again; its submitter knows it as ended, and hears of it no more (TASK-1).
    fn enter_again(&mut self, task: TaskId) -> Option<TaskIx> {
        let kept = self.lineage.kept.get(&task)?;
        let (spec, attempts, retries) = (kept.spec.clone(), kept.attempts, kept.retries + 1);
        if spec.template.stream.is_some() {
            let items = kept.items;
            self.begin_again(task, items);
        }
        let task_ix = self.enter_shape((*spec).clone());
        if let Some(task) = self.tasks.get_mut(task_ix) {
            task.attempt = attempts;
            task.retries = retries;
            task.made_again = true;
        }
        Some(task_ix)
    }
}

impl Head {
    /// What is counted is what is there.
    pub(crate) fn audit_lineage(&self) -> Result<(), String> {
        let mut taken: Map<TaskId, u32> = Map::default();
        for kept in self.lineage.kept.values() {
            for maker in &kept.makers {
                *taken.entry(*maker).or_default() += 1;
            }
        }
        for (id, kept) in &self.lineage.kept {
            let counts = |id: &ObjectId| {
                let object = self.objects.by_id(*id);
                object.is_some_and(|object| {
                    matches!(object.value, ObjectValue::Available { .. } | ObjectValue::Pending(_))
                })
            };
            let results = made_by(&kept.spec, kept.items).filter(counts).count() as u32;
            let makers = taken.get(id).copied().unwrap_or(0);
            if kept.wanted != results + makers {
                return Err(format!(
                    "lineage: {id} counts {} that want it; {results} results and {makers} tasks do",
                    kept.wanted
                ));
            }
        }
        let bytes: u64 = self.lineage.kept.values().map(|kept| kept.bytes).sum();
        let leaf_bytes: u64 = self.lineage.leaves.values().map(|(_, size)| *size).sum();
        if (bytes, leaf_bytes) != (self.lineage.bytes, self.lineage.leaf_bytes) {
            return Err(format!("lineage: {bytes} and {leaf_bytes} bytes are not what was counted"));
        }
        Ok(())
    }
}
