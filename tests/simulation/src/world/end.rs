//! When a run is over, what hangs if it does not end, and what must be left of it: nothing.

use cluster_types::query::{Query, QueryReply};

use super::{Arrival, World};
use crate::client::Doing;
use crate::plan::Report;

/// Tables of a head that are not empty when nobody is left.
const KEPT_BY_HEADS: &[&str] = &[
    "nodes",
    "incarnations of nodes",
    "ended tasks",
    "ids of ended tasks",
    "submitted jobs",
    "slots for objects",
    "slots for tasks",
    "cached small values",
    "shapes",
    "order of kept specs",
    "marks that are not settled",
];
/// The same of a node.
const KEPT_BY_NODES: &[&str] = &["turns to go to disk", "templates", "kinds of leases", "nodes of callees"];

impl World {
    /// Whether all programs have ended and all that followed from it has arrived: only ticks are left.
    pub(super) fn is_over(&self) -> bool {
        self.processes.values().all(|process| matches!(process.doing, Doing::Gone))
            && self.processes.values().all(|process| process.executor.is_none())
            && self.disk.is_up
            && self.hosts.values().all(|host| host.incarnation.is_some())
            && !self.head.is_recovering()
            && self.disk.jobs.values().all(|view| view.state.has_ended())
            && self.queue.values().all(|arrival| matches!(arrival, Arrival::HeadTick | Arrival::NodeTick(_)))
    }

    pub(super) fn hanging(&mut self) -> String {
        let mut lines = Vec::new();
        for (id, process) in &self.processes {
            let doing = match &process.doing {
                Doing::Gone => continue,
                Doing::Idle => format!("is idle, {} tasks in its inbox", process.inbox.len()),
                Doing::Driving { actions } => format!(
                    "has {actions} actions left, {} unfinished tasks, {} puts waiting for memory",
                    process.core.unfinished(),
                    process.waiting_puts.len()
                ),
                Doing::Waiting { on, .. } => {
                    let on: Vec<_> = on.iter().filter(|object| !process.core.is_here(**object)).collect();
                    format!("waits for {on:?}")
                }
                Doing::Running { run, children, .. } => {
                    format!("runs {} and waits for {children:?}", run.spec.id)
                }
            };
            lines.push(format!("{id} on {} {doing}", process.node));
        }
        let mut effects = Vec::new();
        self.head.step(
            self.now,
            head_core::Event::Query { number: 0, query: Query::Tasks { limit: 10_000 } },
            &mut effects,
        );
        if let Some(head_core::Effect::Reply { reply: Ok(QueryReply::Tasks(tasks)), .. }) = effects.pop() {
            for task in tasks.iter().filter(|task| !["finished", "failed"].contains(&task.state.as_str())) {
                lines.push(format!("task {} is {} on {}", task.task, task.state, task.node));
            }
        }
        lines.join("; ")
    }

    pub(super) fn finish(&mut self) -> Result<Report, String> {
        let mut effects = Vec::new();
        self.head.step(self.now, head_core::Event::Query { number: 0, query: Query::Status }, &mut effects);
        let Some(head_core::Effect::Reply { reply: Ok(QueryReply::Status(status)), .. }) = effects.pop()
        else {
            return Err("the head does not say how it is".to_owned());
        };
        if status.objects != 0 {
            self.head.step(
                self.now,
                head_core::Event::Query { number: 0, query: Query::Objects { limit: 10 } },
                &mut effects,
            );
            return Err(format!("REF-2: {} objects are left: {effects:?}", status.objects));
        }
        let pending: u64 = ["waiting", "queued", "prefetched", "running"]
            .iter()
            .filter_map(|state| status.tasks.get(*state))
            .sum();
        if pending != 0 {
            return Err(format!("TASK-1: {pending} tasks have not ended: {:?}", status.tasks));
        }
        if status.total != status.available {
            return Err(format!("LEDGER-1: of {:?} only {:?} came back", status.total, status.available));
        }
        self.check_jobs()?;
        self.check_forgotten()?;
        for (node, host) in &self.hosts {
            if !host.served.is_empty() || !host.spilled.is_empty() {
                return Err(format!(
                    "REF-2: node {node} still has {:?} and {:?}",
                    host.served.keys(),
                    host.spilled.keys()
                ));
            }
        }
        // What a machine wrote and could not tell before it was lost stays, and what a head that was lost had just told to go.
        let nobody_left = self.plan.node_losses + self.plan.head_losses == 0
            && self.plan.drains == 0
            && !self.storage.unsure;
        if nobody_left && !self.storage.copies.is_empty() {
            return Err(format!("REF-2: in durable storage there still are {:?}", self.storage.copies));
        }
        self.report.seconds = self.now.0 as f64 / 1e6;
        Ok(self.report.clone())
    }

    /// Nothing of what was is kept by anybody, but what is kept for people, within its limits.
    fn check_forgotten(&self) -> Result<(), String> {
        let kept =
            |table: &(&'static str, usize), for_good: &[&str]| table.1 > 0 && !for_good.contains(&table.0);
        let of_head = self.head.sizes().into_iter().filter(|table| kept(table, KEPT_BY_HEADS));
        let mut left: Vec<String> =
            of_head.map(|(table, size)| format!("the head: {size} {table}")).collect();
        for (node, host) in &self.hosts {
            let of_node = host.core.sizes().into_iter().filter(|table| kept(table, KEPT_BY_NODES));
            left.extend(of_node.map(|(table, size)| format!("node {node}: {size} {table}")));
        }
        match left.is_empty() {
            true => Ok(()),
            false => Err(format!("REF-2: nobody is left, and there still are: {}", left.join("; "))),
        }
    }
}
