//! Tasks that yield, and programs that read what they yield.
//!
//! How many items a task yields depends on its id alone, so that an attempt that is tried again yields the same. What
//! must hold: the submitter is told of each item once and in order, reads the right value, and at the end of a task that
//! ended well has had all of them.

use std::sync::Arc;

use cluster_types::client_node::{ExecutorResult, PutValue, YieldedItem};
use cluster_types::{ClientId, ClientToNode, ObjectId, Payload, Refs, StreamLimits, TaskId, TaskTemplate};

use client_core::Taking;

use crate::client::{Doing, encode};
use crate::world::World;

/// What an executor knows of a task that yields.
#[derive(Debug, Default)]
pub(crate) struct Yields {
    tag: u64,
    yielded: u32,
    taken: u32,
    closed: bool,
    /// It waits for its reader.
    pub(crate) full: bool,
}

fn length(task: TaskId) -> u32 {
    (task.seq.wrapping_mul(7).wrapping_add(task.client.0) % 9) as u32
}

impl World {
    /// The template of a task like this, but one that yields.
    pub(crate) fn yielding(&mut self, plain: &TaskTemplate) -> Arc<TaskTemplate> {
        let max_items = if self.random.one_in(2) { 2 } else { 0 };
        let stream = Some(StreamLimits { max_items, max_bytes: 0 });
        Arc::new(TaskTemplate { stream, num_returns: 1, ..plain.clone() })
    }

    /// A driver submits a task that yields.
    pub(crate) fn submit_stream(&mut self, client: ClientId, plain: &TaskTemplate, deps: Refs) {
        let template = self.yielding(plain);
        let Some(process) = self.processes.get_mut(&client) else { return };
        let payload = Payload::Inline(encode(ObjectId::default(), &[]));
        let (task, results) = process.core.submit(&template, payload, deps, Refs::new(), None);
        process.refs.extend(results);
        self.reads.insert(task, 0);
    }

    // ---- reading ----

    /// The head tells of an item: each once, and in order.
    pub(crate) fn item_told(&mut self, task: TaskId, index: u32) -> Result<(), String> {
        let next = self.items_told.entry(task).or_default();
        if *next != index {
            return Err(format!("item {index} of {task} was told, not {next}"));
        }
        *next += 1;
        Ok(())
    }

    /// A driver reads on in one of its streams, or drops it. False: it has none.
    pub(crate) fn read_on(&mut self, client: ClientId) -> Result<bool, String> {
        let own: Vec<TaskId> = self.reads.keys().copied().filter(|task| task.client == client).collect();
        let Some(&task) = self.random.pick(&own) else { return Ok(false) };
        if self.random.one_in(8) {
            self.reads.remove(&task);
            if let Some(process) = self.processes.get_mut(&client) {
                process.core.close_stream(task);
            }
            return Ok(true);
        }
        let most = self.random.between(1, 4);
        self.take(client, task, most)?;
        Ok(true)
    }

    /// A driver that is about to go reads what there is. False: some of its streams have not ended.
    pub(crate) fn read_all(&mut self, client: ClientId) -> Result<bool, String> {
        let own: Vec<TaskId> = self.reads.keys().copied().filter(|task| task.client == client).collect();
        for task in own {
            self.take(client, task, u64::MAX)?;
        }
        Ok(!self.reads.keys().any(|task| task.client == client))
    }

    fn take(&mut self, client: ClientId, task: TaskId, most: u64) -> Result<(), String> {
        for _ in 0..most {
            let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
            match process.core.take_item(task) {
                Taking::NotYet(_) => break,
                Taking::Item(item) => {
                    process.refs.push(item);
                    let taken = self.reads.entry(task).or_default();
                    if item != task.item(*taken) {
                        return Err(format!("{item} was taken where item {taken} comes next"));
                    }
                    *taken += 1;
                    process.core.want(item, true);
                    if process.core.is_here(item) {
                        self.check_read(client, item)?;
                    }
                }
                Taking::End => {
                    process.core.close_stream(task);
                    let taken = self.reads.remove(&task).unwrap_or_default();
                    if self.ended_well.contains(&task) && taken != length(task) {
                        return Err(format!("{task} yielded {} items, and {taken} were read", length(task)));
                    }
                    self.report.streams += 1;
                    break;
                }
            }
        }
        Ok(())
    }

    // ---- yielding ----

    /// The daemon says how many items were taken. True: the task can go on.
    pub(crate) fn items_taken(&mut self, client: ClientId, tag: u64, items: u32, closed: bool) -> bool {
        let Some(process) = self.processes.get_mut(&client) else { return false };
        let yields = process.yields.entry(tag).or_default();
        yields.taken = yields.taken.max(items);
        yields.closed |= closed;
        std::mem::take(&mut yields.full)
    }

    /// The task that an executor runs yields, waits or dies instead of ending. False: it yields no more.
    pub(crate) fn yields(&mut self, client: ClientId, tag: u64) -> Result<bool, String> {
        let crashes = self.plan.crash_one_in > 0 && self.random.one_in(self.plan.crash_one_in * 4);
        let (large, holds) = (self.random.one_in(3), self.random.one_in(4));
        let size = self.random.between(5_000, 1 << 20);
        let mut inner = if holds { self.some_refs(client, 1) } else { Refs::new() };
        let Some(process) = self.processes.get_mut(&client) else { return Ok(true) };
        let Doing::Running { run, .. } = &process.doing else { return Ok(false) };
        let Some(limits) = run.spec.template.stream else { return Ok(false) };
        let id = run.spec.id;
        let yields = process.yields.entry(tag).or_default();
        yields.tag = tag;
        if yields.closed || yields.yielded == length(id) {
            process.yields.remove(&tag);
            return Ok(false);
        }
        if crashes {
            let (node, executor) = (process.node, process.executor.unwrap_or_default());
            self.end_executor(node, executor, "killed by signal 11 (SIGSEGV)");
            return Ok(true);
        }
        if limits.max_items > 0 && yields.yielded.saturating_sub(yields.taken) >= limits.max_items {
            yields.full = true;
            return Ok(true);
        }
        let index = yields.yielded;
        yields.yielded += 1;
        let object = id.item(index);
        // What exists already cannot contain what is being yielded: cycles of refs are never freed.
        inner.retain(|inner| process.core.is_here(*inner));
        process.core.share(&inner);
        let location = if large && inner.is_empty() { process.allocator.alloc(size) } else { None };
        let value = match location {
            Some(location) => {
                process.core.note_own_range(object, location);
                if let Some(host) = self.hosts.get_mut(&process.node) {
                    host.memory.insert((location.segment, location.offset), object);
                }
                PutValue::Stored(location)
            }
            None => PutValue::Inline(encode(object, &inner)),
        };
        let item = ExecutorResult { value, contains: inner };
        process.core.push(ClientToNode::Yielded(YieldedItem { tag, index, item }));
        if large && process.leased.is_empty() && process.requested.is_empty() {
            process.request_memory(cluster_store::alloc::Allocator::segment_len(size));
        }
        self.goes_on(client, tag);
        self.flush(client)?;
        Ok(true)
    }
}
