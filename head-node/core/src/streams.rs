//! Tasks that yield items while they run.
//!
//! An item is (task, index) whatever the attempt (rule T4): an attempt that is tried again yields from 0 anew, and what
//! was known before is not told a second time. It gives back what was lost with the node that made it first. The end of
//! a stream is the end of its task: every item precedes it on its way to the submitter.

use cluster_types::task::ITEM_OVERHEAD;
use cluster_types::{Attempt, Failure, FailureKind, HeadToNode, Map, ObjectId, TaskId, TaskResult};

use crate::head::{Head, failure};
use crate::objects::{Object, ObjectValue};
use crate::slab::{NodeIx, ObjectIx, TaskIx};
use crate::tasks::Task;

/// What is known of a task that yields.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Items whose submitter was told of them.
    pub known: u32,
    /// Of those, how many the task need not wait for.
    taken: u32,
    /// Nobody will take any more.
    pub closed: bool,
    /// Items that were lost, and that an attempt under way will make again.
    missing: Vec<u32>,
    /// The task ended before and runs only to make those again.
    again: bool,
}

fn size_of(object: &Object) -> u64 {
    match object.value {
        ObjectValue::Available { size, .. } => size,
        _ => 0,
    }
}

/// By task, those that have not ended.
pub(crate) type Streams = Map<TaskId, Stream>;

impl Head {
    /// An attempt yielded an item, which is on its node.
    pub(crate) fn yielded(
        &mut self,
        node: NodeIx,
        task: TaskId,
        attempt: Attempt,
        index: u32,
        item: TaskResult,
    ) {
        let id = task.item(index);
        // TASK-2: of a stale attempt nothing is new.
        let current = self.tasks.current(task, attempt, node);
        let Some((ix, stream)) = current.zip(self.streams.get_mut(&task)) else {
            return self.spare_value(node, id);
        };
        if index == stream.known && stream.again && !stream.closed {
            // It yields more than it did: nobody was told of that.
            self.close_stream(task);
            return self.spare_value(node, id);
        }
        if index != stream.known || stream.closed {
            // A hole can only be a lie.
            if index < stream.known {
                self.yielded_again(node, ix, id, item);
            } else {
                self.spare_value(node, id);
            }
            return;
        }
        stream.known += 1;
        let told = item.value.clone();
        let object_ix = self.objects.find_or_insert(id, || ObjectValue::Unknown);
        if let Some(object) = self.objects.get_mut(object_ix) {
            // Rule R2: the submitter holds it from now on.
            object.own = true;
        }
        self.set_item(object_ix, item, node);
        if let Some(submitter) = self.clients.get(&task.client) {
            let node = submitter.node;
            self.send(node, HeadToNode::Item { task, index, value: told });
        }
    }

    fn set_item(&mut self, ix: ObjectIx, item: TaskResult, home: NodeIx) {
        let (size, inline) = item.value.into_parts();
        self.set_value(ix, size, inline, item.contains, home);
    }

    /// An item that is known already: it counts only where the first one was lost and somebody still has a handle.
    fn yielded_again(&mut self, node: NodeIx, task_ix: TaskIx, id: ObjectId, item: TaskResult) {
        let Some(object_ix) = self.objects.find(id) else { return self.spare_value(node, id) };
        let is_settled = |object: &Object| {
            // Who was told that it is lost is told nothing else.
            self.is_somewhere(object) || matches!(object.value, ObjectValue::Failed(_))
        };
        if self.objects.get(object_ix).is_some_and(is_settled) {
            return self.spare_value(node, id);
        }
        self.make_pending_again(object_ix, task_ix);
        self.set_item(object_ix, item, node);
    }

    pub(crate) fn is_somewhere(&self, object: &Object) -> bool {
        matches!(object.value, ObjectValue::Available { inline: Some(_), .. })
            || object.durable().is_some()
            || object.copies().any(|copy| self.nodes.is_alive(copy))
    }

    /// A value too many. It is no copy of the first: who knows whether a generator yields the same twice (rule R7). A
    /// node that has the first has kept that.
    pub(crate) fn spare_value(&mut self, node: NodeIx, id: ObjectId) {
        if !self.objects.by_id(id).is_some_and(|object| object.copies().any(|copy| copy == node)) {
            self.to_free.entry(node).or_default().push(id);
        }
    }

    pub(crate) fn make_pending_again(&mut self, ix: ObjectIx, task: TaskIx) {
        let Some(own) = self.objects.get(ix).map(|object| object.own) else { return };
        self.objects.set_pending(ix, task);
        if let Some(object) = self.objects.get_mut(ix) {
            object.own = own;
        }
    }

    /// No node has this object. If it is an item of a task that is being tried again, it will be made again: true.
    pub(crate) fn comes_again(&mut self, ix: ObjectIx) -> bool {
        if self.streams.is_empty() {
            return false;
        }
        let Some((task, at)) = self.objects.get(ix).and_then(|object| object.id.task()) else { return false };
        let Some(task_ix) = self.tasks.find(task) else { return false };
        let Some(stream) = self.streams.get_mut(&task).filter(|_| at > 0) else { return false };
        stream.missing.push(at - 1);
        self.make_pending_again(ix, task_ix);
        true
    }

    /// The submitter took items, or will take no more.
    pub(crate) fn taken(&mut self, node: NodeIx, task: TaskId, items: u32, closed: bool) {
        if !self.is_attached(task.client, node) {
            return;
        }
        let Some(stream) = self.streams.get_mut(&task) else { return };
        stream.taken = stream.taken.max(items.min(stream.known));
        stream.closed |= closed;
        self.tell_taken(task);
    }

    /// Nobody can take items of this task any more.
    pub(crate) fn close_stream(&mut self, task: TaskId) {
        if let Some(stream) = self.streams.get_mut(&task)
            && !std::mem::replace(&mut stream.closed, true)
        {
            self.tell_taken(task);
        }
    }

    pub(crate) fn tell_taken(&mut self, id: TaskId) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (items, closed) = (stream.taken, stream.closed);
        let Some(task) = self.tasks.find(id).and_then(|ix| self.tasks.get(ix)) else { return };
        let (Some(node), attempt) = (task.node(), self.tasks.attempt_of(task)) else { return };
        self.send(node, HeadToNode::Taken { task: id, attempt, items, closed });
    }

    /// The task was assigned anew: what is known already need not be waited for.
    pub(crate) fn begin_stream(&mut self, id: TaskId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.taken = stream.known;
        if stream.taken > 0 || stream.closed {
            self.tell_taken(id);
        }
    }

    /// What a wait for this object waits for: an item that is not known yet comes with its task.
    pub(crate) fn awaited(&self, id: ObjectId) -> ObjectId {
        match id.task() {
            Some((task, at)) if at > 0 && self.streams.contains_key(&task) => match self.objects.find(id) {
                None => task.result(0),
                Some(_) => id,
            },
            _ => id,
        }
    }

    /// A task that yields is as far ahead of its reader as it may be: says so.
    pub(crate) fn why_ahead(&self, task: &Task) -> Option<String> {
        let (limits, stream) = (task.spec.template.stream?, self.streams.get(&task.spec.id)?);
        let ahead = stream.known.checked_sub(stream.taken).filter(|ahead| *ahead > 0 && !stream.closed)?;
        let full = limits.max_items > 0 && ahead >= limits.max_items;
        let bytes = || -> u64 {
            let waiting =
                (stream.taken..stream.known).filter_map(|at| self.objects.by_id(task.spec.id.item(at)));
            waiting.map(|item| size_of(item) + ITEM_OVERHEAD).sum()
        };
        let may = match limits {
            _ if full => format!("it may be {} ahead", limits.max_items),
            _ if limits.max_bytes > 0 && bytes() >= limits.max_bytes => {
                format!("they are {} bytes of the {} that it may be ahead", bytes(), limits.max_bytes)
            }
            _ => return None,
        };
        let node = task.node().map(|node| format!(" on node {}", self.nodes.name(node))).unwrap_or_default();
        let reader = task.spec.id.client;
        Some(format!(
            "it runs{node} and waits for who reads its items, client {reader}: {} are yielded, {ahead} of them not \
             taken, and {may}",
            stream.known
        ))
    }

    /// Why an item that is not known will never be, for people.
    pub(crate) fn no_such_item(&self, id: ObjectId) -> Option<String> {
        let (task, at) = id.task()?;
        let stream = self.streams.get(&task).filter(|_| at > 0)?;
        Some(match at <= stream.known {
            true => format!("object {id} was freed: everything that held it had dropped it"),
            false => format!("object {id} does not exist: its task has yielded {} items", stream.known),
        })
    }

    /// The task ended. A failure stands where the next item would.
    /// Returns how many items there are.
    pub(crate) fn end_stream(&mut self, task: TaskId, failed: Option<&Failure>) -> u32 {
        let Some(stream) = self.streams.remove(&task) else { return 0 };
        for index in stream.missing {
            let Some(ix) = self.objects.find(task.item(index)) else { continue };
            if !self.objects.get(ix).is_some_and(|item| matches!(item.value, ObjectValue::Pending(_))) {
                continue;
            }
            let id = task.item(index);
            let message = format!(
                "object {id} is lost: no node has a copy any more, and its task did not yield it again. Compute it again"
            );
            self.objects.set_failed(ix, failure(FailureKind::ObjectLost, message, Some(task)));
            self.result_is_lost(task);
            self.value_known(ix);
        }
        if let Some(failure) = failed
            && !stream.closed
            && !stream.again
            && self.clients.contains_key(&task.client)
        {
            let id = task.item(stream.known);
            let ix = self.objects.find_or_insert(id, || ObjectValue::Unknown);
            // A node said to a head before this one that it has such an item, which its submitter was never told of.
            let copies: Vec<NodeIx> = self.objects.get(ix).into_iter().flat_map(Object::copies).collect();
            for node in copies {
                self.to_free.entry(node).or_default().push(id);
                if let Some(object) = self.objects.get_mut(ix) {
                    object.remove_copy(node);
                }
            }
            self.objects.set_failed(ix, failure.clone());
            if let Some(object) = self.objects.get_mut(ix) {
                object.own = true;
            }
            self.value_known(ix);
        }
        stream.known
    }

    /// The task, which yielded so many items, runs once more to make some of them again.
    pub(crate) fn begin_again(&mut self, task: TaskId, items: u32) {
        self.streams.insert(task, Stream { known: items, taken: items, again: true, ..Stream::default() });
    }

    /// This object is to come of a task that is in the table again.
    pub(crate) fn note_missing(&mut self, id: ObjectId) {
        if let Some((task, at)) = id.task().filter(|(_, at)| *at > 0)
            && let Some(stream) = self.streams.get_mut(&task)
        {
            stream.missing.push(at - 1);
        }
    }

    /// Whether it is known of each item what became of it.
    pub(crate) fn knows_items(&self, task: TaskId, items: u32) -> bool {
        let is_known = |item: &Object| !matches!(item.value, ObjectValue::Unknown | ObjectValue::Pending(_));
        (0..items).all(|at| self.objects.by_id(task.item(at)).is_none_or(is_known))
    }

    /// Whether an item of this task is in the stores only.
    pub(crate) fn has_stored_items(&self, task: TaskId, items: u32) -> bool {
        (0..items).any(|at| {
            let item = self.objects.by_id(task.item(at));
            item.is_some_and(|item| matches!(item.value, ObjectValue::Available { inline: None, .. }))
        })
    }

    /// What must hold of streams between steps.
    pub(crate) fn audit_streams(&self) -> Result<(), String> {
        for (task, stream) in &self.streams {
            if self.tasks.find(*task).is_none() {
                return Err(format!("task {task} yields items and is over"));
            }
            if stream.taken > stream.known {
                return Err(format!("task {task}: more items taken than yielded"));
            }
        }
        Ok(())
    }
}
