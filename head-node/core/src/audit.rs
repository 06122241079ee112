//! A full audit of all cross-references, for tests and the simulation. Slow: it looks at everything.

use cluster_types::{Map, ObjectId};

use crate::head::Head;
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, ShapeIx};
use crate::tasks::TaskState;

impl Head {
    /// Checks every invariant of the head and every reference between its tables.
    ///
    /// # Errors
    /// A sentence about the first that does not hold.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.tasks.audit()?;
        self.audit_lineage()?;
        self.objects.audit()?;
        self.audit_nodes()?;
        self.audit_shapes()?;
        self.audit_objects()?;
        self.audit_actors()?;
        self.audit_streams()?;
        self.audit_groups()?;
        self.audit_kept_nodes()?;
        self.audit_jobs()?;
        for (id, client) in &self.clients {
            let node = self.nodes.get(client.node).ok_or(format!("client {id} is on a lost node"))?;
            if !node.clients.contains(id) {
                return Err(format!("client {id} is not among those of its node"));
            }
            if client.is_driver && self.jobs.get(&client.job).is_none_or(|job| job.driver != *id) {
                return Err(format!("driver {id} has no job"));
            }
        }
        Ok(())
    }

    /// LEDGER-1, and every attempt on exactly one node.
    fn audit_nodes(&self) -> Result<(), String> {
        let mut attempts: Map<NodeIx, usize> = Map::default();
        for (ix, task) in self.tasks.iter() {
            let Some(node_ix) = task.node() else { continue };
            let id = task.spec.id;
            let node = self.nodes.get(node_ix).ok_or(format!("task {id} is on a lost node"))?;
            if !node.attempts.contains(&ix) {
                return Err(format!("task {id} is not among the attempts of its node"));
            }
            if task.attempt == 0 {
                return Err(format!("task {id} is on a node without an attempt"));
            }
            *attempts.entry(node_ix).or_default() += 1;
        }
        for (ix, node) in self.nodes.iter() {
            if attempts.get(&ix).copied().unwrap_or(0) != node.attempts.len() {
                return Err(format!("node {} has attempts of no task", node.id));
            }
            let here = || node.attempts.iter().filter_map(|task| self.tasks.get(*task));
            let leases = here().filter(|task| task.bundle.is_none()).filter_map(|task| match &task.state {
                TaskState::Leased { lease, blocked, .. } => {
                    Some((&task.spec.template.resources, lease, *blocked))
                }
                TaskState::Alive { lease, .. } => Some((&task.spec.template.resources, lease, false)),
                _ => None,
            });
            let bundles = self.groups.iter().flat_map(|(_, group)| &group.bundles).filter_map(|bundle| {
                let place = bundle.place.as_ref().filter(|place| place.node == ix)?;
                Some((&bundle.resources, &place.lease, false))
            });
            node.ledger
                .audit(leases.chain(bundles).chain(self.submitted.leases_on(ix)))
                .map_err(|problem| format!("node {}: {problem}", node.id))?;
            let mut awake: Map<ShapeIx, u32> = Map::default();
            let (mut running, mut blocked_here, mut ahead) = (0, 0, 0);
            for task in here() {
                match task.state {
                    TaskState::Leased { blocked, .. } => {
                        running += 1;
                        blocked_here += u32::from(blocked);
                        *awake.entry(task.shape).or_default() += u32::from(!blocked);
                    }
                    TaskState::HandedOut { .. } | TaskState::Alive { .. } => {}
                    _ => ahead += 1,
                }
            }
            let listed: usize = node.shapes.values().map(|here| here.prefetched.len()).sum();
            if (running, blocked_here, ahead) != (node.running, node.blocked, node.prefetched)
                || listed != ahead as usize
                || node
                    .shapes
                    .iter()
                    .any(|(shape, here)| here.awake != awake.get(shape).copied().unwrap_or(0))
            {
                return Err(format!("node {}: its counts of attempts are wrong", node.id));
            }
            if let Some(shape) = node.reserved
                && self.shapes.get(shape).is_none_or(|shape| shape.reservation != Some(ix))
            {
                return Err(format!("node {} is kept free for nobody", node.id));
            }
        }
        Ok(())
    }

    fn audit_shapes(&self) -> Result<(), String> {
        let mut tasks: Map<ShapeIx, (usize, usize, usize, usize)> = Map::default();
        for (_, task) in self.tasks.iter() {
            for shape in task.shapes() {
                let counts = tasks.entry(shape).or_default();
                counts.0 += 1;
                match task.state {
                    TaskState::Queued { .. } if task.promoted => counts.2 += 1,
                    TaskState::Queued { .. } => counts.1 += 1,
                    TaskState::Prefetched { .. } => counts.3 += 1,
                    _ => {}
                }
            }
        }
        for (ix, shape) in self.shapes.iter() {
            let counted = (shape.tasks, shape.queue.live, shape.promoted.live, shape.prefetched);
            let found = tasks.remove(&ix).unwrap_or_default();
            if counted != found {
                return Err(format!("shape {}: counted {counted:?}, found {found:?}", shape.resources));
            }
            if shape.queued() > 0 && !shape.ready && shape.strategy.group().is_none() {
                // Whoever could start one is a candidate: nothing waits beside a node with room.
                for (node_ix, node) in self.nodes.iter() {
                    let target = matches!(shape.strategy, cluster_types::task::Strategy::Node { .. });
                    if !node.dirty
                        && !target
                        && shape.labels_match(node)
                        && shape.promoted.live == 0
                        && crate::scheduler::can_start(
                            node,
                            &self.shapes,
                            ix,
                            &shape.resources,
                            false,
                            self.now,
                        )
                        && node.crowd_next.is_none()
                        && !shape.candidates.contains(node_ix)
                    {
                        return Err(format!("node {} has room for {} unnoticed", node.id, shape.resources));
                    }
                }
            }
        }
        if !tasks.is_empty() {
            return Err("tasks of a forgotten shape".to_owned());
        }
        Ok(())
    }

    /// REF-1: counts of holders are what holders say.
    fn audit_objects(&self) -> Result<(), String> {
        let mut by_tasks: Map<ObjectId, u32> = Map::default();
        let mut by_containers: Map<ObjectId, u32> = Map::default();
        for held in self.lineage.held() {
            *by_tasks.entry(held).or_default() += self.lineage.holds(held);
        }
        for (_, task) in self.tasks.iter() {
            for held in task.spec.held() {
                *by_tasks.entry(held).or_default() += 1;
            }
        }
        for (_, object) in self.objects.iter() {
            for inner in object.more().iter().flat_map(|more| more.contains.iter()) {
                *by_containers.entry(*inner).or_default() += 1;
            }
        }
        for (object, group) in self.groups.iter() {
            if group.removed.is_none() {
                *by_containers.entry(*object).or_default() += 1;
            }
        }
        for (handle, actor) in self.actors.iter() {
            if actor.traits().detached && actor.death.is_none() {
                *by_containers.entry(*handle).or_default() += 1;
            }
            for state in actor.kept.states() {
                *by_containers.entry(state).or_default() += 1;
            }
        }
        for (_, object) in self.objects.iter() {
            let id = object.id;
            let tasks = by_tasks.remove(&id).unwrap_or(0);
            let containers = by_containers.remove(&id).unwrap_or(0);
            if (object.tasks, object.containers) != (tasks, containers) {
                return Err(format!(
                    "REF-1: object {id} counts {} tasks and {} containers, {tasks} and {containers} hold it",
                    object.tasks, object.containers
                ));
            }
            if object.own && !self.clients.contains_key(&id.client) {
                return Err(format!("object {id} is held by its maker, who is gone"));
            }
            for holder in object.more().iter().flat_map(|more| more.holders.iter()) {
                if self.clients.get(holder).is_none_or(|client| !client.held.contains(&id)) {
                    return Err(format!("object {id} is held by {holder}, who does not know"));
                }
            }
            if let ObjectValue::Pending(maker) = object.value
                && self
                    .tasks
                    .get(maker)
                    .is_none_or(|task| id.task().is_none_or(|(made, _)| made != task.spec.id))
            {
                return Err(format!("object {id} waits for a task that is not there"));
            }
            if matches!(object.value, ObjectValue::Unknown) && !self.clients.contains_key(&id.client) {
                return Err(format!("R3: object {id} waits for a maker who is gone"));
            }
            if !object.is_reachable() && !self.objects.has_doubtful() {
                return Err(format!("REF-2: object {id} is kept though nobody can reach it"));
            }
        }
        if let Some(id) = by_tasks.keys().chain(by_containers.keys()).next() {
            return Err(format!("REF-1: object {id} is held but not there"));
        }
        for (id, client) in &self.clients {
            for held in &client.held {
                let knows = self.objects.by_id(*held).and_then(|object| object.more());
                if knows.is_none_or(|more| !more.holders.contains(id)) {
                    return Err(format!("REF-1: client {id} holds {held}, which does not know"));
                }
            }
        }
        Ok(())
    }
}
