//! Tasks that no node can run: they fail at once where nobody can join or the strategy rules all others out, else they
//! wait, and the job's driver gets a sentence about it.

use cluster_types::task::Strategy;
use cluster_types::{FailureKind, HeadToNode, NodeId, Outcome, Resources, Span};

use crate::head::{Head, failure};
use crate::nodes::Node;
use crate::slab::{ShapeIx, TaskIx};
use crate::tasks::{Task, TaskState};

/// A node that is just starting is given so long before anybody is told that it is missing.
const PATIENCE: Span = Span::millis(500);

impl Head {
    /// Counts the nodes that could ever run the shape.
    pub(crate) fn count_feasible(&mut self, ix: ShapeIx) {
        let Some(shape) = self.shapes.get(ix) else { return };
        let could = |node: &Node| {
            node.draining.is_none()
                && node.ledger.could_ever_fit(&shape.resources)
                && shape.labels_match(node)
        };
        let count = self.nodes.iter().filter(|(_, node)| could(node)).count();
        if let Some(shape) = self.shapes.get_mut(ix) {
            shape.feasible = count;
        }
    }

    /// A task was queued that perhaps no node can run.
    pub(crate) fn judge_task(&mut self, ix: TaskIx, stamp: u32) {
        let Some(task) = self.tasks.get(ix) else { return };
        let (id, name) = (task.spec.id, task.spec.template.name.clone());
        let Some(shape) = self.shapes.get(task.shape) else { return };
        if let Strategy::Node { id: node, soft: false } = shape.strategy
            && self.nodes.any_joined
        {
            let problem = match self.nodes.find(node).and_then(|ix| self.nodes.get(ix)) {
                None => Some(format!("it may run on node {node} only, and that is not in the cluster")),
                Some(state) if !state.ledger.could_ever_fit(&shape.resources) => {
                    let lacks = shape.resources.missing_from(state.ledger.total());
                    let lacks: Vec<_> = lacks
                        .iter()
                        .map(|(what, asked, has)| format!("{asked} {what} (it has {has})"))
                        .collect();
                    let host = &state.hostname;
                    Some(format!(
                        "it may run on node {host} only, which can never give it {}",
                        lacks.join(", ")
                    ))
                }
                Some(_) => None,
            };
            if let Some(problem) = problem {
                let message = format!("task {name} ({id}) cannot run: {problem}");
                let failure = failure(FailureKind::Unschedulable, message, Some(id));
                self.failing.push((ix, stamp, failure));
            }
            return;
        }
        if self.is_feasible(task) {
            return;
        }
        if self.config.closed && self.nodes.any_joined {
            let lacks = self.lacking_for(task);
            let message = format!("task {name} ({id}) needs {lacks}, and no node can join this cluster");
            let failure = failure(FailureKind::Unschedulable, message, Some(id));
            self.failing.push((ix, stamp, failure));
        } else {
            self.notices.push((self.now + PATIENCE, ix, stamp));
        }
    }

    /// Whether a node could ever run it, in one way or another.
    pub(crate) fn is_feasible(&self, task: &Task) -> bool {
        task.shapes().iter().any(|ix| self.shapes.get(*ix).is_some_and(|shape| shape.feasible > 0))
    }

    /// What a task that no node can run asks for, each way.
    pub(crate) fn lacking_for(&self, task: &Task) -> String {
        let each: Vec<String> = task
            .shapes()
            .iter()
            .filter_map(|ix| {
                let shape = self.shapes.get(*ix)?;
                if let Strategy::Labels(selector) = &shape.strategy
                    && !self.nodes.iter().any(|(_, node)| shape.labels_match(node))
                {
                    let rules: Vec<_> = selector.hard.iter().map(ToString::to_string).collect();
                    return Some(format!("a node with {}; there is none", rules.join(", ")));
                }
                Some(self.lacking(&shape.resources))
            })
            .collect();
        each.join(", or ")
    }

    /// `2 GPU; no node has more than 0`.
    pub(crate) fn lacking(&self, request: &Resources) -> String {
        let mut most = Resources::default();
        for (_, node) in self.nodes.iter() {
            let total = node.ledger.total();
            most.cpu = most.cpu.max(total.cpu);
            most.gpu = most.gpu.max(total.gpu);
            most.memory = most.memory.max(total.memory);
            for (name, amount) in &total.custom {
                most.set_custom(name, most.custom(name).max(*amount));
            }
        }
        let missing = request.missing_from(&most);
        if missing.is_empty() {
            return format!("{request}; no node has all of that at once");
        }
        let each: Vec<_> = missing
            .iter()
            .map(|(name, asked, has)| format!("{asked} {name}; no node has more than {has}"))
            .collect();
        each.join(", and ")
    }

    /// The nodes changed: what is queued and cannot run is judged again.
    pub(crate) fn judge_feasibility(&mut self) {
        for at in 0..self.shapes.alive().len() {
            let ix = self.shapes.alive()[at];
            let Some(shape) = self.shapes.get(ix) else { continue };
            let is_bound = matches!(shape.strategy, Strategy::Node { .. });
            if (shape.feasible == 0 || is_bound) && shape.queued() > 0 {
                for (task, stamp) in self.queued_of(ix) {
                    self.judge_task(task, stamp);
                }
            }
        }
        self.judge_groups();
    }

    pub(crate) fn queued_of(&self, ix: ShapeIx) -> Vec<(TaskIx, u32)> {
        let Some(shape) = self.shapes.get(ix) else { return Vec::new() };
        shape
            .promoted
            .iter()
            .chain(shape.queue.iter())
            .filter(|(task, ticket)| crate::scheduler::is_queued(&self.tasks, *task, *ticket))
            .filter_map(|(task, _)| Some((task, self.tasks.get(task)?.stamp)))
            .collect()
    }

    /// A node is lost: tasks that may run nowhere else fail.
    pub(crate) fn fail_tasks_bound_to(&mut self, node: NodeId, hostname: &str) {
        for at in 0..self.shapes.alive().len() {
            let ix = self.shapes.alive()[at];
            let is_bound = self.shapes.get(ix).is_some_and(
                |shape| matches!(shape.strategy, Strategy::Node { id, soft: false } if id == node),
            );
            if !is_bound {
                continue;
            }
            for (task_ix, _) in self.queued_of(ix) {
                let Some(task) = self.tasks.get(task_ix) else { continue };
                let id = task.spec.id;
                let name = &task.spec.template.name;
                let message = format!("task {name} ({id}) may run on node {hostname} only, and that is lost");
                let failure = failure(FailureKind::Unschedulable, message, Some(id));
                self.detach(task_ix);
                self.finish(task_ix, Outcome::Failed(failure), None, None, 0);
            }
        }
    }

    /// Tells drivers, once per function, of tasks that wait for a node that does not exist.
    pub(crate) fn give_notices(&mut self) {
        if self.notices.is_empty() {
            return;
        }
        let mut later = Vec::new();
        for (when, ix, stamp) in std::mem::take(&mut self.notices) {
            if when > self.now {
                later.push((when, ix, stamp));
                continue;
            }
            let Some(task) = self.tasks.stamped(ix, stamp) else { continue };
            if matches!(task.state, TaskState::Reserving) {
                let client = task.spec.id.client;
                if let Some(text) = self.group_notice(ix)
                    && let Some(node) = self.clients.get(&client).map(|driver| driver.node)
                {
                    self.send(node, HeadToNode::Notice { client, text });
                }
                continue;
            }
            let (job, name, shape_ix) = (task.spec.job, task.spec.template.name.clone(), task.shape);
            if self.is_feasible(task) {
                continue;
            }
            if !matches!(task.state, TaskState::Queued { .. }) {
                continue;
            }
            let lacks = self.lacking_for(task);
            let text = format!("task {name} needs {lacks} — it waits for a node to join");
            let Some(job) = self.jobs.get_mut(&job) else { continue };
            if !job.noticed.insert((name, shape_ix.0)) {
                continue;
            }
            let client = job.driver;
            let Some(node) = self.clients.get(&client).map(|driver| driver.node) else { continue };
            self.send(node, HeadToNode::Notice { client, text });
        }
        self.notices = later;
    }
}
