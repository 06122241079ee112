//! Large groups that wait among small tasks.
//!
//! A group gets all its bundles at once or none, and tasks that need less take what frees up, one after the other, for
//! ever. So one group at a time, the one that waits longest, has nodes kept for it: those where its bundles would go if
//! no task ran there. What actors and other groups hold is not waited for, for they may never go. On such a node a
//! task starts only if the bundles would still fit beside it.

use cluster_types::{Map, ObjectId, Resources, Span};

use crate::head::Head;
use crate::ledger::Ledger;
use crate::nodes::Node;
use crate::places::add;
use crate::slab::NodeIx;
use crate::tasks::TaskState;

/// A group that waited for so long, and could fit, has nodes kept.
const STARVING: Span = Span::secs(1);
/// Groups that could have nodes kept, looked at in one tick (rule S6).
const LOOKED_AT: usize = 4;

/// Nodes kept for a group.
#[derive(Debug)]
pub(crate) struct KeptNodes {
    pub group: ObjectId,
    nodes: Vec<NodeIx>,
}

/// Whether a task, or another group's bundle, that asks for this would take what is kept for a group.
pub(crate) fn takes_from_group(node: &Node, asks: &Resources, group: Option<ObjectId>) -> bool {
    let kept = node.kept_for.as_ref().filter(|(kept_for, _)| Some(*kept_for) != group);
    let Some((_, wanted)) = kept else { return false };
    let shares = (!asks.cpu.is_zero() && !wanted.cpu.is_zero())
        || (!asks.gpu.is_zero() && !wanted.gpu.is_zero())
        || (!asks.memory.is_zero() && !wanted.memory.is_zero())
        || asks.custom.iter().any(|(name, _)| !wanted.custom(name).is_zero());
    let mut both = wanted.clone();
    add(&mut both, asks);
    shares && !node.ledger.fits(&both)
}

impl Head {
    /// At every tick: nodes are kept for a group that starves, and given free when it has its place, or is gone, or a
    /// node is.
    pub(crate) fn care_for_starving_groups(&mut self) {
        if let Some(kept) = &self.kept_nodes {
            let waits = self.groups.waits_since(kept.group).is_some();
            let stand = |ix: &NodeIx| {
                let node = self.nodes.get(*ix).filter(|node| node.draining.is_none());
                node.is_some_and(|node| node.kept_for.as_ref().is_some_and(|(group, _)| *group == kept.group))
            };
            if waits && kept.nodes.iter().all(stand) {
                return;
            }
            self.give_kept_free();
        }
        let now = self.now;
        let mut starving = self.groups.waiting_since(now, STARVING);
        starving.truncate(LOOKED_AT);
        for group in starving {
            if let Some(places) = self.places_without_tasks(group) {
                return self.keep_nodes(group, places);
            }
        }
    }

    /// Where the bundles that a group lacks would go if only actors and other groups were there.
    fn places_without_tasks(&self, object: ObjectId) -> Option<Vec<(NodeIx, Resources)>> {
        let group = self.groups.get(object)?;
        let mut empty: Map<NodeIx, Ledger> = Map::default();
        let mut order = Vec::new();
        for (ix, node) in self.nodes.iter().filter(|(_, node)| node.draining.is_none()) {
            let mut ledger = Ledger::new(node.ledger.total().clone());
            let mut attempts: Vec<_> = node.attempts.iter().copied().collect();
            attempts.sort_unstable();
            for task in attempts.iter().filter_map(|task| self.tasks.get(*task)) {
                if matches!(task.state, TaskState::Alive { .. }) && task.bundle.is_none() {
                    ledger.take(&task.spec.template.resources);
                }
            }
            empty.insert(ix, ledger);
            order.push(ix);
        }
        for (_, other) in self.groups.iter() {
            for bundle in &other.bundles {
                let ledger = bundle.place.as_ref().and_then(|place| empty.get_mut(&place.node));
                if let Some(ledger) = ledger {
                    ledger.take(&bundle.resources);
                }
            }
        }
        let ledgers = order.iter().filter_map(|ix| Some((*ix, empty.get(ix)?))).collect();
        let mut places: Vec<(NodeIx, Resources)> = Vec::new();
        for (index, node) in self.arrange_group(group, ledgers)? {
            let asked = &group.bundles.get(index)?.resources;
            match places.iter_mut().find(|(at, _)| *at == node) {
                Some((_, sum)) => add(sum, asked),
                None => places.push((node, asked.clone())),
            }
        }
        Some(places)
    }

    fn keep_nodes(&mut self, group: ObjectId, places: Vec<(NodeIx, Resources)>) {
        let nodes = places.iter().map(|(node, _)| *node).collect();
        self.kept_nodes = Some(KeptNodes { group, nodes });
        for (ix, wanted) in places {
            let Some(node) = self.nodes.get_mut(ix) else { continue };
            node.kept_for = Some((group, wanted));
            // What was sent ahead would start there without asking.
            let mut ahead = Vec::new();
            for (shape, here) in &node.shapes {
                let asks = self.shapes.get(*shape).map(|shape| &shape.resources);
                if asks.is_some_and(|asks| takes_from_group(node, asks, None)) {
                    ahead.extend(here.prefetched.iter().copied());
                }
            }
            ahead.sort_unstable();
            self.call_back_from(ix, &ahead);
        }
    }

    /// Nothing is kept any more; what was kept out is offered the nodes.
    pub(crate) fn give_kept_free(&mut self) {
        let Some(kept) = self.kept_nodes.take() else { return };
        for ix in kept.nodes {
            if let Some(node) = self.nodes.get_mut(ix) {
                node.kept_for = None;
                self.nodes.mark_dirty(ix);
                self.reopen_room(ix);
            }
        }
    }

    /// What must hold of kept nodes between steps.
    pub(crate) fn audit_kept_nodes(&self) -> Result<(), String> {
        for (_, node) in self.nodes.iter() {
            let group = node.kept_for.as_ref().map(|(group, _)| *group);
            if group.is_some() && group != self.kept_nodes.as_ref().map(|kept| kept.group) {
                return Err(format!("node {} is kept for a group that has none kept", node.id));
            }
        }
        Ok(())
    }
}
