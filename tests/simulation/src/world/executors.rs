//! Executors: they take their next task, begin it, and end it.

use client_core::HandleSource;
use cluster_store::alloc::Allocator;
use cluster_types::client_node::{
    Completion, DIRECT_BIT, DIRECT_SLOT, ExecutorResult, NO_SLOT, PutValue, RunTask,
};
use cluster_types::{ClientId, ClientToNode, ObjectId, Refs, Value};

use super::{Arrival, World};
use crate::client::{Doing, encode};
use crate::host::Slot;

impl World {
    pub(crate) fn next_task(&mut self, client: ClientId) -> Result<(), String> {
        loop {
            let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
            let Some(run) = process.inbox.pop_front() else { return Ok(()) };
            let (node, executor) = (process.node, process.executor);
            let slot = self
                .hosts
                .get_mut(&node)
                .and_then(|host| host.executors.get_mut(&executor?))
                .and_then(|known| known.slots.get_mut(&run.tag));
            match slot {
                _ if run.slot == NO_SLOT || run.slot == DIRECT_SLOT => {}
                Some(slot) if *slot == Slot::Ready => *slot = Slot::Claimed,
                // Taken back before it began: what came with it is given back.
                _ => {
                    for (object, value) in &run.values {
                        if matches!(value, Value::Local(_)) {
                            process.core.push(ClientToNode::Release(vec![*object]));
                        }
                    }
                    continue;
                }
            }
            return self.begin(client, run);
        }
    }

    pub(super) fn begin(&mut self, client: ClientId, run: Box<RunTask>) -> Result<(), String> {
        self.report.ran += 1;
        self.report.made_again += u64::from(self.ended_well.contains(&run.spec.id));
        if self.plan.runs_once() && !self.begun.insert(run.spec.id) {
            return Err(format!("TASK-2: {} runs a second time, though only the head was lost", run.spec.id));
        }
        self.check_actor(client, &run)?;
        if self.plan.crash_one_in > 0 && self.random.one_in(self.plan.crash_one_in) {
            let Some(process) = self.processes.get(&client) else { return Ok(()) };
            let (node, executor) = (process.node, process.executor.unwrap_or_default());
            self.end_executor(node, executor, "killed by signal 11 (SIGSEGV)");
            return Ok(());
        }
        for object in &run.spec.deps {
            // DEP-1, and P1: every argument came along, and lies where it is said to lie.
            let value = run.values.iter().find(|(id, _)| id == object).map(|(_, value)| value);
            match value {
                None if *object == run.spec.template.function => {}
                None => return Err(format!("DEP-1: {} runs without its argument {object}", run.spec.id)),
                Some(Value::Failed(failure)) => {
                    return Err(format!(
                        "DEP-1: {} runs with a failed argument: {}",
                        run.spec.id, failure.message
                    ));
                }
                Some(Value::Inline(_)) => {}
                Some(Value::Local(at)) => {
                    let lies = self.processes.get(&client).and_then(|process| {
                        self.hosts.get(&process.node)?.memory.get(&(at.segment, at.offset))
                    });
                    if lies != Some(object) {
                        return Err(format!(
                            "P1: {} gets {object} at {at:?}, where {lies:?} lies",
                            run.spec.id
                        ));
                    }
                }
            }
        }
        let tag = run.tag;
        let nested = self.random.one_in(6);
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        process.lend_arguments(&run);
        let borrowed = run.spec.borrowed.to_vec();
        process.take_out(&borrowed, HandleSource::Task);
        process.said = process.core.outbox().said();
        process.doing = Doing::Running { run, children: Vec::new(), blocked: false };
        if !nested {
            let long = if self.random.one_in(10) { 20_000 } else { 300 };
            self.after(1, long, Arrival::Finish { client, tag });
            return self.flush(client);
        }
        let before = self.processes[&client].refs.len();
        self.submit(client);
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        let made: Vec<ObjectId> = process.refs[before..].to_vec();
        for child in &made {
            process.core.want(*child, true);
        }
        if let Doing::Running { children, blocked, .. } = &mut process.doing {
            (*children, *blocked) = (made.clone(), true);
        }
        process.core.push(ClientToNode::Blocked { tag, on: made });
        self.flush(client)
    }

    /// A task does its next thing after a while.
    pub(crate) fn goes_on(&mut self, client: ClientId, tag: u64) {
        self.after(1, 300, Arrival::Finish { client, tag });
    }

    pub(super) fn task_ends(&mut self, client: ClientId, tag: u64) -> Result<(), String> {
        let keep = self.random.one_in(20);
        let size = self.random.between(5_000, 1 << 20);
        let stored = self.random.one_in(4);
        let mut inner = self.some_refs(client, 1);
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        // What exists already cannot contain what is being returned: cycles of refs are never freed.
        inner.retain(|object| process.core.is_here(*object));
        let Doing::Running { run, .. } = &process.doing else { return Ok(()) };
        if run.tag != tag {
            return Ok(());
        }
        if self.yields(client, tag)? {
            return Ok(());
        }
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        let Doing::Running { run, .. } = &process.doing else { return Ok(()) };
        let spec = run.spec.clone();
        let values = run.values.clone();
        let mut results = Vec::new();
        for index in 0..spec.template.num_returns {
            let object = spec.id.result(index);
            let contains = if index == 0 { inner.clone() } else { Refs::new() };
            process.core.share(&contains);
            let location = if stored && contains.is_empty() { process.allocator.alloc(size) } else { None };
            let value = match location {
                Some(location) => {
                    process.core.note_own_range(object, location);
                    self.sizes.insert(object, size);
                    if let Some(host) = self.hosts.get_mut(&process.node) {
                        host.memory.insert((location.segment, location.offset), object);
                    }
                    PutValue::Stored(location)
                }
                None => PutValue::Inline(encode(object, &contains)),
            };
            results.push(ExecutorResult { value, contains });
        }
        if stored && process.leased.is_empty() && process.requested.is_empty() {
            process.request_memory(Allocator::segment_len(size));
        }
        process.core.end_task_cover();
        let silent = process.core.outbox().said() == process.said;
        if tag & DIRECT_BIT != 0 && !process.forgotten.remove(&tag) {
            self.answer(client, spec.id, results, silent);
        } else {
            let completion = Completion { tag, result: Ok(results), micros: 100 };
            process.core.push(ClientToNode::Completed(completion));
        }
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        for (object, value) in &values {
            if matches!(value, Value::Local(_)) {
                process.core.drop_view(*object);
            }
        }
        if !keep {
            while !process.refs.is_empty() {
                process.drop_ref(0);
            }
        }
        process.doing = Doing::Idle;
        self.next_task(client)?;
        self.flush(client)
    }
}
