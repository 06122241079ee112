//! Streams: tasks that yield items, as their submitter reads them.
//!
//! The items that are known and not taken each have a handle, which becomes the taker's. So has the one behind them,
//! which does not exist yet: it is pending like the result of a task, so that whatever waits for objects can wait for it.
//! At the end of the stream a mark stands there.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::task::ITEM_OVERHEAD;
use cluster_types::{ClientToNode, Failure, FailureKind, ObjectId, ResultValue, StreamLimits, TaskId};

use crate::ClientCore;
use crate::state::{Entry, State};

/// One look at a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// The next item; its handle is the caller's.
    Item(ObjectId),
    /// There is none yet; this becomes ready when there is, or when the stream has ended.
    NotYet(ObjectId),
    /// There will be none any more.
    End,
}

/// What an own task yields.
#[derive(Debug)]
pub(crate) struct Stream {
    limits: StreamLimits,
    /// Items told of.
    known: u32,
    /// Items taken.
    next: u32,
    /// What each item that was not taken counts.
    sizes: VecDeque<u64>,
    /// How many items the task knows to be taken …
    reported: u32,
    /// … and the bytes of those taken since.
    unreported: u64,
    ended: bool,
    closed: bool,
}

impl ClientCore {
    pub(crate) fn open_stream(&mut self, task: TaskId, limits: StreamLimits) {
        let stream = Stream {
            limits,
            known: 0,
            next: 0,
            sizes: VecDeque::new(),
            reported: 0,
            unreported: 0,
            ended: false,
            closed: false,
        };
        self.streams.insert(task, stream);
        self.await_item(task.item(0));
    }

    /// The item that comes next. Nobody else knows it before it is there.
    fn await_item(&mut self, item: ObjectId) {
        self.objects.insert(item, Entry { state: State::Pending, refs: 1, ..Entry::default() });
    }

    /// Takes the next item of an own task that yields.
    pub fn take_item(&mut self, task: TaskId) -> Taking {
        let Some(stream) = self.streams.get_mut(&task).filter(|stream| !stream.closed) else {
            return Taking::End;
        };
        if stream.next == stream.known {
            return if stream.ended { Taking::End } else { Taking::NotYet(task.item(stream.next)) };
        }
        let item = task.item(stream.next);
        stream.next += 1;
        stream.unreported += stream.sizes.pop_front().unwrap_or(0);
        let StreamLimits { max_items, max_bytes } = stream.limits;
        // By halves: the task goes on before it has been waited for, and few messages say so.
        let many = max_items > 0 && stream.next - stream.reported >= (max_items / 2).max(1);
        let large = max_bytes > 0 && stream.unreported >= (max_bytes / 2).max(1);
        if (many || large) && !stream.ended {
            stream.reported = stream.next;
            stream.unreported = 0;
            self.out.push(ClientToNode::Taken { task, items: stream.next, closed: false });
        }
        Taking::Item(item)
    }

    /// What becomes ready when [`ClientCore::take_item`] need not be waited for; `None`: nothing was to be waited for.
    pub fn next_item(&self, task: TaskId) -> Option<ObjectId> {
        self.streams.get(&task).filter(|stream| !stream.closed).map(|stream| task.item(stream.next))
    }

    /// Whether the task has ended and all its items were taken.
    pub fn is_drained(&self, task: TaskId) -> bool {
        self.streams
            .get(&task)
            .is_none_or(|stream| stream.closed || (stream.ended && stream.next == stream.known))
    }

    /// Nobody will take items any more: those not taken are dropped, and the task ends at its next yield.
    pub fn close_stream(&mut self, task: TaskId) {
        let Some(stream) = self.streams.get_mut(&task).filter(|stream| !stream.closed) else { return };
        stream.closed = true;
        let (left, ended) = (stream.next..=stream.known, stream.ended);
        for index in left {
            self.drop_handle(task.item(index));
        }
        if ended {
            self.streams.remove(&task);
        } else if !self.is_held(task) {
            self.out.push(ClientToNode::Taken { task, items: 0, closed: true });
        }
    }

    /// Whether nobody will take items of it any more.
    pub(crate) fn is_closed(&self, task: TaskId) -> bool {
        self.streams.get(&task).is_some_and(|stream| stream.closed)
    }

    /// The task yielded an item, and this process holds it (rule R2).
    pub(crate) fn item_came(&mut self, task: TaskId, index: u32, value: ResultValue) {
        let item = task.item(index);
        let Some(stream) = self.streams.get_mut(&task) else { return self.out.drop(item) };
        if stream.closed {
            stream.known = stream.known.max(index + 1);
            return self.out.drop(item);
        }
        if index != stream.known || stream.ended {
            // Told anew by a head that had forgotten it: what went from here goes from there, too.
            if index < stream.next {
                self.out.push(ClientToNode::Taken { task, items: stream.next, closed: false });
            }
            if !self.objects.get(&item).is_some_and(|entry| entry.held) {
                self.out.drop(item);
            }
            return;
        }
        stream.known += 1;
        let (size, state) = match value {
            ResultValue::Inline(bytes) => (bytes.len() as u64, State::Inline(bytes)),
            ResultValue::Stored { size } => (size, State::Stored),
        };
        stream.sizes.push_back(size + ITEM_OVERHEAD);
        self.await_item(task.item(index + 1));
        if let Some(entry) = self.objects.get_mut(&item) {
            entry.held = true;
        }
        self.settle(item, state);
    }

    /// The task ended. Its failure stands where the next item would.
    pub(crate) fn stream_ended(&mut self, task: TaskId, failed: Option<&Arc<Failure>>) {
        let Some(stream) = self.streams.get_mut(&task) else { return };
        let mut at = task.item(stream.known);
        if stream.closed {
            self.streams.remove(&task);
            if failed.is_some() {
                self.out.drop(at);
            }
            return;
        }
        stream.ended = true;
        if let Some(failure) = failed {
            stream.known += 1;
            stream.sizes.push_back(0);
            let behind = task.item(stream.known);
            self.await_item(behind);
            if let Some(entry) = self.objects.get_mut(&at) {
                entry.held = true;
            }
            self.settle(at, State::Failed(failure.clone()));
            at = behind;
        }
        let end = Failure {
            kind: FailureKind::Internal,
            message: format!("task {task} yields no more").into(),
            payload: bytes::Bytes::new(),
            task: Some(task),
        };
        self.settle(at, State::Failed(Arc::new(end)));
    }
}
