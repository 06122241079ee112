//! Bundles: what a placement group has set aside, and the tasks and actors in it.
//!
//! A bundle is a lease of its node, with books of its own for what is leased out of it (LEDGER-1 holds of both): the
//! same GPU indices, and nothing that anybody else uses. Nothing is sent ahead to a bundle: each task gets a lease.

use cluster_types::task::InGroup;
use cluster_types::{Lease, ObjectId, Resources, Set, TaskSpec};

use crate::head::Head;
use crate::ledger::Ledger;
use crate::scheduler::is_crowded;
use crate::slab::{NodeIx, ShapeIx, TaskIx};

/// Resources set aside together on one node.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub resources: Resources,
    /// Where they are; `None`: nowhere yet, or not any more.
    pub place: Option<Place>,
}

/// Where a bundle is.
#[derive(Debug)]
pub(crate) struct Place {
    pub node: NodeIx,
    /// What the node gave.
    pub lease: Lease,
    /// What of that is leased on.
    pub ledger: Ledger,
    /// Attempts and actors in it.
    pub tasks: Set<TaskIx>,
}

impl Bundle {
    pub fn new(resources: Resources) -> Self {
        Self { resources, place: None }
    }

    pub fn tasks(&self) -> impl Iterator<Item = TaskIx> + '_ {
        self.place.iter().flat_map(|place| place.tasks.iter().copied())
    }

    pub fn could_ever_fit(&self, request: &Resources) -> bool {
        request.missing_from(&self.resources).is_empty()
    }
}

impl Head {
    /// The books that a task's lease is in: its bundle's, or its node's.
    pub(crate) fn books(
        &mut self,
        spec: &TaskSpec,
        node: NodeIx,
        bundle: Option<u32>,
    ) -> Option<&mut Ledger> {
        let (Some(index), Some(InGroup { group, .. })) = (bundle, spec.template.strategy.group()) else {
            return Some(&mut self.nodes.get_mut(node)?.ledger);
        };
        let bundle = self.groups.get_mut(group)?.bundles.get_mut(index as usize)?;
        Some(&mut bundle.place.as_mut()?.ledger)
    }

    /// The task is in the bundle from now on.
    pub(crate) fn enter_bundle(&mut self, ix: TaskIx, index: u32) {
        let Some(task) = self.tasks.get_mut(ix) else { return };
        let Some(InGroup { group, .. }) = task.spec.template.strategy.group() else { return };
        let place = self
            .groups
            .get_mut(group)
            .and_then(|group| group.bundles.get_mut(index as usize))
            .and_then(|bundle| bundle.place.as_mut());
        if let Some(place) = place {
            place.tasks.insert(ix);
            task.bundle = Some(index);
        }
    }

    /// The task, whose lease was given back, is not in the bundle any more; others may fit.
    pub(crate) fn leave_bundle(&mut self, ix: TaskIx, index: u32, group: ObjectId) {
        if let Some(known) = self.groups.get_mut(group) {
            if let Some(place) = known.bundles.get_mut(index as usize).and_then(|b| b.place.as_mut()) {
                place.tasks.remove(&ix);
            }
            if known.removed.is_some() {
                self.groups.closing.push(group);
            }
        }
        self.feed_group(group);
    }

    /// Something in the group is free: what waits for it has its turn.
    pub(crate) fn feed_group(&mut self, group: ObjectId) {
        for at in 0..self.groups.shapes_of(group).len() {
            let ix = self.groups.shapes_of(group)[at];
            if self.shapes.get(ix).is_some_and(|shape| shape.queued() > 0) {
                self.shapes.make_ready(ix);
            }
        }
    }

    /// Bundles of removed groups are given back, each when the last of what was in it has ended: what that held (a
    /// GPU's memory, say) is not free before.
    pub(crate) fn settle_closing(&mut self) {
        for object in std::mem::take(&mut self.groups.closing) {
            let Some(group) = self.groups.get_mut(object).filter(|group| group.removed.is_some()) else {
                continue;
            };
            let mut given = Vec::new();
            for bundle in &mut group.bundles {
                if let Some(place) = bundle.place.take_if(|place| place.tasks.is_empty()) {
                    given.push((place.node, bundle.resources.clone(), place.lease));
                }
            }
            for (node, resources, lease) in given {
                if let Some(state) = self.nodes.get_mut(node) {
                    state.ledger.give(&resources, &lease, false);
                    self.nodes.mark_dirty(node);
                }
            }
            if self.objects.find(object).is_none() {
                self.group_forgotten(object);
            }
        }
    }

    /// Starts what is queued for a group, as far as its bundles have room. Returns how many.
    pub(crate) fn plan_in_group(&mut self, ix: ShapeIx, wanted: InGroup, turn: usize) -> usize {
        let mut placed = 0;
        while placed < turn {
            let Some((task, promoted)) = self.next_queued(ix) else { break };
            let Some((node, bundle)) = self.choose_bundle(ix, wanted, task, promoted) else { break };
            self.assign(task, node, true, Some(bundle));
            placed += 1;
        }
        placed
    }

    /// A bundle that has room: where the task's arguments are, or the first.
    fn choose_bundle(
        &mut self,
        ix: ShapeIx,
        wanted: InGroup,
        task: TaskIx,
        promoted: bool,
    ) -> Option<(NodeIx, u32)> {
        let heavy = self.heaviest_node(task);
        let resources = &self.shapes.get(ix)?.resources;
        let group = self.groups.get(wanted.group).filter(|group| group.removed.is_none())?;
        let has_room = |index: usize| {
            let place = group.bundles.get(index)?.place.as_ref()?;
            let node = self.nodes.get(place.node)?;
            let goes = node.draining.is_none()
                && place.ledger.fits(resources)
                && (promoted
                    || (place.ledger.over().is_zero()
                        && !is_crowded(node, &place.ledger, resources, self.now)));
            goes.then_some((place.node, index as u32))
        };
        if let Some(index) = wanted.bundle {
            return has_room(index as usize);
        }
        let mut fitting = (0..group.bundles.len()).filter_map(has_room);
        let first = fitting.next()?;
        match heavy {
            Some(heavy) if first.0 != heavy => fitting.find(|(node, _)| *node == heavy).or(Some(first)),
            _ => Some(first),
        }
    }
}
