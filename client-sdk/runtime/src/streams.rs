//! Streams, both ends: reading what own tasks yield, and yielding in a task.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client_core::Taking;
use cluster_types::client_node::{ExecutorResult, PutValue, YieldedItem};
use cluster_types::ids::MAX_ITEMS;
use cluster_types::task::ITEM_OVERHEAD;
use cluster_types::{ClientToNode, ObjectId, Refs, StreamLimits, TaskId};

use crate::completion::Queue;
use crate::shared::{BACKLOG_MAX, Inner};
use crate::waiting::{For, Manner, Step};
use crate::{Client, ClientError, CompletionQueue, Interrupt, Parcel};

/// Items that follow each other faster than this are sent together.
const GATHER: Duration = Duration::from_millis(1);

/// So many tasks that ended may still be known.
const STALE_MAX: usize = 64;

/// What a task that runs here has yielded, and how much of it was taken.
#[derive(Default)]
pub(crate) struct Yields {
    /// Items yielded.
    count: u32,
    /// Of those, how many count as taken; may be ahead of `count`, when an earlier attempt yielded more.
    taken: u32,
    /// What each of the others counts, and all together.
    sizes: VecDeque<u64>,
    unread: u64,
    /// Nobody will take any more.
    closed: bool,
    sent: Option<Instant>,
    /// To be told when there is room again.
    hooks: Vec<(Arc<Queue>, u64)>,
}

impl Yields {
    fn add(&mut self, size: u64) {
        self.count += 1;
        if self.count > self.taken {
            self.sizes.push_back(size);
            self.unread += size;
        }
    }

    fn take(&mut self, items: u32, closed: bool) {
        self.closed |= closed;
        self.taken = self.taken.max(items);
        while self.sizes.len() as u32 > self.count.saturating_sub(self.taken) {
            self.unread -= self.sizes.pop_front().unwrap_or(0);
        }
        for (queue, token) in self.hooks.drain(..) {
            queue.push(token);
        }
    }

    fn has_room(&self, limits: StreamLimits) -> bool {
        let few = limits.max_items == 0 || (self.sizes.len() as u32) < limits.max_items;
        let small = limits.max_bytes == 0 || self.unread < limits.max_bytes;
        self.closed || (few && small)
    }
}

impl Inner {
    /// Of a task that runs here, or will.
    pub(crate) fn items_taken(&mut self, tag: u64, items: u32, closed: bool) {
        self.yields.entry(tag).or_default().take(items, closed);
    }

    /// Whether the task under this tag may yield more.
    pub(crate) fn may_yield(&self, tag: u64, limits: StreamLimits) -> bool {
        self.yields.get(&tag).is_none_or(|yields| yields.has_room(limits))
    }

    /// The task under this tag ended. What was told of others too late goes now and then.
    pub(crate) fn forget_yields(&mut self, tag: u64) {
        self.yields.remove(&tag);
        if self.yields.len() > STALE_MAX + self.running.len() + self.runs.len() {
            let (running, runs) = (&self.running, &self.runs);
            self.yields
                .retain(|tag, _| running.contains_key(tag) || runs.iter().any(|(_, task)| task.tag == *tag));
        }
    }

    fn is_closed(&self, tag: u64) -> bool {
        self.yields.get(&tag).is_some_and(|yields| yields.closed)
    }
}

impl Client {
    // ---- reading ----

    /// Takes the next item of an own task that yields, if it is there. Never waits.
    pub fn take_item(&self, task: TaskId) -> Taking {
        let shared = self.shared();
        if shared.is_forked() {
            return Taking::End;
        }
        let mut inner = shared.lock();
        let taking = inner.core.take_item(task);
        shared.after_change(inner);
        taking
    }

    /// As [`Client::take_item`], and waits for it: never [`Taking::NotYet`].
    ///
    /// # Errors
    /// As [`Client::get_within`].
    pub fn next_item(
        &self,
        within: Option<u64>,
        task: TaskId,
        deadline: Option<Instant>,
        interrupt: Interrupt<'_>,
    ) -> Result<Taking, ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let awaited = |inner: &Inner| inner.core.next_item(task).into_iter().collect();
        let manner = Manner { may_spin: true, blocks_on: Some(&awaited), within, ..Manner::until(deadline) };
        shared.wait_until(manner, interrupt, |inner| {
            Ok(match inner.core.take_item(task) {
                Taking::NotYet(item) => Step::Wait(For::Ready(item)),
                taking => Step::Done(taking),
            })
        })
    }

    /// What becomes ready when the next item of the task is there, or when there will be none; `None` where there is
    /// nothing to wait for. Good for [`Client::wait`] and [`Client::on_ready`] until that item is taken.
    pub fn awaited_item(&self, task: TaskId) -> Option<ObjectId> {
        let shared = self.shared();
        if shared.is_forked() { None } else { shared.lock().core.next_item(task) }
    }

    /// Whether the task has ended and all its items were taken.
    pub fn is_drained(&self, task: TaskId) -> bool {
        let shared = self.shared();
        shared.is_forked() || shared.lock().core.is_drained(task)
    }

    /// Nobody here will take items of the task any more: it ends at its next yield.
    pub fn close_stream(&self, task: TaskId) {
        let shared = self.shared();
        if shared.is_forked() {
            return;
        }
        let mut inner = shared.lock();
        inner.core.close_stream(task);
        shared.after_change(inner);
    }

    // ---- yielding ----

    /// The task that runs under this tag yields its next item; the refs inside it have handles now. False: nobody wants
    /// it, nor any more; the task should end. Never waits: see [`Client::wait_for_room`].
    ///
    /// # Errors
    /// If the connection is of no use, if this is not a task that runs, or if it has yielded too many.
    pub fn yield_item(&self, tag: u64, value: Parcel, contains: Refs) -> Result<bool, ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let mut inner = shared.lock();
        inner.usable()?;
        let Some(task) = inner.running.get(&tag).map(|current| current.task) else {
            return Err(ClientError::Misuse(format!("execution {tag} is none that runs here")));
        };
        let yields = inner.yields.entry(tag).or_default();
        if yields.closed {
            return Ok(false);
        }
        let index = yields.count;
        if index >= MAX_ITEMS {
            let problem = format!("task {task} has yielded {MAX_ITEMS} items: a task cannot yield more");
            return Err(ClientError::Misuse(problem));
        }
        yields.add(value.len() as u64 + ITEM_OVERHEAD);
        let now = Instant::now();
        let pauses = yields.sent.is_none_or(|sent| now.duration_since(sent) >= GATHER);
        if pauses {
            yields.sent = Some(now);
        }
        inner.core.share(&contains);
        let value = value.into_put_value();
        if let PutValue::Stored(location) = value {
            inner.core.note_own_range(task.item(index), location);
        }
        let item = ExecutorResult { value, contains };
        inner.core.push(ClientToNode::Yielded(YieldedItem { tag, index, item }));
        shared.after_append(inner, pauses);
        Ok(true)
    }

    /// Whether the task under this tag may yield more without waiting, and whether anybody wants that.
    pub fn room(&self, tag: u64, limits: StreamLimits) -> (bool, bool) {
        let inner = self.shared().lock();
        (inner.may_yield(tag, limits), !inner.is_closed(tag))
    }

    /// Waits until the task under this tag may yield more, and lends its CPU to others meanwhile. False: nobody wants
    /// that.
    ///
    /// # Errors
    /// [`ClientError::Cancelled`] when the task is to stop, or as [`Client::get`].
    pub fn wait_for_room(
        &self,
        tag: u64,
        limits: StreamLimits,
        interrupt: Interrupt<'_>,
    ) -> Result<bool, ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let nothing = |_: &Inner| Vec::new();
        let manner = Manner { blocks_on: Some(&nothing), within: Some(tag), ..Manner::until(None) };
        shared.wait_until(manner, interrupt, |inner| {
            if !inner.may_yield(tag, limits) {
                return Ok(Step::Wait(For::Taken(tag, limits)));
            }
            if shared.backlog(inner) > BACKLOG_MAX {
                return Ok(Step::Wait(For::Room(BACKLOG_MAX)));
            }
            Ok(Step::Done(!inner.is_closed(tag)))
        })
    }

    /// Puts `token` into the queue when [`Client::room`] may have changed for the task under this tag; at once, if there
    /// is room now.
    pub fn on_room(&self, tag: u64, limits: StreamLimits, queue: &CompletionQueue, token: u64) {
        let mut inner = self.shared().lock();
        if inner.may_yield(tag, limits) || inner.lost.is_some() {
            drop(inner);
            queue.queue.push(token);
        } else {
            inner.yields.entry(tag).or_default().hooks.push((queue.queue.clone(), token));
        }
    }
}
