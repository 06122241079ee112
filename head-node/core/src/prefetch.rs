//! Sending ahead (rule S2): a node has a few attempts more than it can run, so that a free executor never waits for
//! the head. They hold no lease; they start by inheriting one, or by a grant.

use cluster_types::{HeadToNode, Span};

use crate::head::Head;
use crate::nodes::NodeShape;
use crate::scheduler::{can_start, keeps_free};
use crate::slab::{NodeIx, ShapeIx, TaskIx};
use crate::tasks::TaskState;

/// Work sent ahead, in microseconds of one shape on one node: some round trips' worth.
const AHEAD_MICROS: f32 = 7_500.0;
/// What is likely to start within this is not called back.
const SOON_MICROS: f32 = 5_000.0;
/// What was sent ahead longer ago than this and has not started is called back whatever the averages say.
const STALE: Span = Span::millis(50);
/// How often a shape looks for something to call back, and at how many nodes.
const CALL_BACK_PAUSE: Span = Span::millis(1);
const HOLDERS_ASKED: usize = 32;
/// Attempts called back in one go.
const MOST_CALLED_BACK: usize = 64;

/// How many attempts of a shape a node should have ahead: as many as start within some milliseconds; one if they take
/// long; one for each that runs while nothing is known.
fn depth(here: &NodeShape, micros: Option<f32>, most: u32) -> u32 {
    let wanted = match here.micros.or(micros) {
        None => here.awake,
        Some(micros) => (AHEAD_MICROS * here.awake as f32 / micros.max(1.0)) as u32,
    };
    wanted.clamp(1, most.max(1))
}

impl Head {
    /// A node that should have another attempt of this shape ahead, in turn.
    pub(crate) fn choose_ahead(&mut self, ix: ShapeIx, heavy: Option<NodeIx>) -> Option<NodeIx> {
        if self.config.prefetch_max == 0 || self.shapes.get(ix)?.is_variant {
            return None;
        }
        if let Some(heavy) = heavy
            && self.has_room(ix, heavy)
        {
            return Some(heavy);
        }
        loop {
            let node = self.shapes.get_mut(ix)?.room.current()?;
            if self.has_room(ix, node) {
                self.shapes.get_mut(ix)?.room.advance();
                return Some(node);
            }
            self.shapes.get_mut(ix)?.room.remove(node);
        }
    }

    fn has_room(&self, ix: ShapeIx, node: NodeIx) -> bool {
        let (Some(node), Some(shape)) = (self.nodes.get(node), self.shapes.get(ix)) else { return false };
        let Some(here) = node.shapes.get(&ix) else { return false };
        node.draining.is_none()
            && here.awake > 0
            && (here.prefetched.len() as u32) < depth(here, shape.micros, self.config.prefetch_max)
            && node.ledger.over().is_zero()
            && !keeps_free(node, &self.shapes, ix, &shape.resources)
    }

    /// Learns from a report how long tasks of this shape run.
    pub(crate) fn note_duration(&mut self, ix: TaskIx, node: NodeIx, micros: u64) {
        let Some(shape_ix) = self.tasks.get(ix).map(|task| task.shape) else { return };
        let micros = micros as f32;
        let blend = |old: Option<f32>| Some(old.map_or(micros, |old| old + (micros - old) * 0.2));
        if let Some(shape) = self.shapes.get_mut(shape_ix) {
            shape.micros = blend(shape.micros);
        }
        if let Some(node) = self.nodes.get_mut(node) {
            let here = node.shape_mut(shape_ix);
            here.micros = blend(here.micros);
        }
    }

    /// Notes an attempt sent ahead.
    pub(crate) fn set_prefetched(&mut self, ix: TaskIx, node: NodeIx) {
        let now = self.now;
        let Some(task) = self.tasks.get_mut(ix) else { return };
        task.state = TaskState::Prefetched { node, since: now, called_back: false };
        let (shape_ix, promoted, stamp) = (task.shape, task.promoted, task.stamp);
        if let Some(state) = self.nodes.get_mut(node) {
            state.attempts.insert(ix);
            state.prefetched += 1;
            state.shape_mut(shape_ix).prefetched.push_back(ix);
            if promoted {
                state.wanting.push((ix, stamp));
            }
        }
        if let Some(shape) = self.shapes.get_mut(shape_ix) {
            shape.prefetched += 1;
            shape.holding.insert(node);
        }
    }

    pub(crate) fn leave_prefetched(
        &mut self,
        ix: TaskIx,
        shape_ix: ShapeIx,
        node: NodeIx,
        called_back: bool,
    ) {
        let mut none_left = true;
        if let Some(state) = self.nodes.get_mut(node) {
            state.attempts.remove(&ix);
            state.prefetched -= 1;
            let here = state.shape_mut(shape_ix);
            if let Some(at) = here.prefetched.iter().position(|ahead| *ahead == ix) {
                here.prefetched.remove(at);
            }
            none_left = here.prefetched.is_empty();
        }
        if let Some(shape) = self.shapes.get_mut(shape_ix) {
            shape.prefetched -= 1;
            shape.called_back -= usize::from(called_back);
            shape.room.insert(node);
            if none_left {
                shape.holding.remove(node);
            }
        }
    }

    /// Leases for attempts that wait on a node without one: promoted ones first, then in the order they were sent.
    pub(crate) fn grant_waiting(&mut self, node: NodeIx) {
        let Some(state) = self.nodes.get_mut(node) else { return };
        let wanting = std::mem::take(&mut state.wanting);
        for (ix, stamp) in wanting {
            let is_ahead = self.tasks.stamped(ix, stamp).is_some_and(
                |task| matches!(task.state, TaskState::Prefetched { node: at, .. } if at == node),
            );
            if is_ahead
                && !self.grant(ix, true)
                && let Some(state) = self.nodes.get_mut(node)
            {
                state.wanting.push((ix, stamp));
            }
        }
        let Some(state) = self.nodes.get(node) else { return };
        let mut shapes: Vec<ShapeIx> =
            state.shapes.iter().filter(|(_, here)| !here.prefetched.is_empty()).map(|(ix, _)| *ix).collect();
        shapes.sort_unstable();
        for shape in shapes {
            while let Some(next) = self.first_ahead(node, shape) {
                if !self.grant(next, false) {
                    break;
                }
            }
        }
    }

    /// The first attempt of the shape that waits there and was not called back.
    fn first_ahead(&self, node: NodeIx, shape: ShapeIx) -> Option<TaskIx> {
        let here = self.nodes.get(node)?.shapes.get(&shape)?;
        here.prefetched.iter().copied().find(|ix| {
            self.tasks.get(*ix).is_some_and(|task| {
                matches!(task.state, TaskState::Prefetched { called_back: false, .. }) && !task.cancelled
            })
        })
    }

    /// Gives an attempt that was sent ahead a lease of its own, if its node has room.
    pub(crate) fn grant(&mut self, ix: TaskIx, promoted: bool) -> bool {
        let Some(task) = self.tasks.get(ix) else { return false };
        let TaskState::Prefetched { node, .. } = task.state else { return false };
        let (spec, shape, attempt) = (task.spec.clone(), task.shape, self.tasks.attempt_of(task));
        let resources = &spec.template.resources;
        let fits = self
            .nodes
            .get(node)
            .is_some_and(|node| can_start(node, &self.shapes, shape, resources, promoted, self.now));
        if !fits {
            return false;
        }
        let Some(lease) = self.nodes.get_mut(node).and_then(|node| node.ledger.take(resources)) else {
            return false;
        };
        self.detach(ix);
        self.set_leased(ix, node, lease.clone());
        self.note_crowding(node);
        self.send(node, HeadToNode::Grant { task: spec.id, attempt, lease });
        true
    }

    /// Nothing of the shape is queued: if a node could start one now, others give back what they will not start soon.
    pub(crate) fn call_back(&mut self, ix: ShapeIx) {
        let now = self.now;
        let Some(shape) = self.shapes.get_mut(ix) else { return };
        if shape.prefetched == shape.called_back || now < shape.next_call_back {
            return;
        }
        shape.next_call_back = now + CALL_BACK_PAUSE;
        let Some(idle) = self.choose(ix, None, false) else { return };
        let (Some(shape), Some(node)) = (self.shapes.get(ix), self.nodes.get(idle)) else { return };
        let places = node.ledger.times_cpu_fits(&shape.resources).min(MOST_CALLED_BACK);
        let mut places = places.saturating_sub(shape.called_back);
        let holders: Vec<NodeIx> = (0..shape.holding.len().min(HOLDERS_ASKED))
            .filter_map(|ahead| shape.holding.ahead(ahead))
            .filter(|node| *node != idle)
            .collect();
        for node in holders {
            if places == 0 {
                break;
            }
            let chosen = self.not_starting_soon(ix, node, places);
            places -= chosen.len();
            self.call_back_from(node, &chosen);
        }
        if let Some(shape) = self.shapes.get_mut(ix) {
            shape.holding.skip(HOLDERS_ASKED);
        }
    }

    /// Attempts ahead on a node that will not start soon, the last sent first.
    fn not_starting_soon(&self, ix: ShapeIx, node: NodeIx, most: usize) -> Vec<TaskIx> {
        let Some(here) = self.nodes.get(node).and_then(|node| node.shapes.get(&ix)) else {
            return Vec::new();
        };
        let each = here.micros.map(|micros| micros / here.awake.max(1) as f32);
        let waited = |ix: TaskIx| match self.tasks.get(ix).map(|task| &task.state) {
            Some(TaskState::Prefetched { since, called_back: false, .. }) => Some(self.now.since(*since)),
            _ => None,
        };
        let is_stale =
            here.prefetched.front().and_then(|first| waited(*first)).is_some_and(|age| age > STALE);
        here.prefetched
            .iter()
            .enumerate()
            .rev()
            .filter(|(place, task)| {
                let late = each.is_some_and(|each| each * (*place as f32 + 1.0) > SOON_MICROS);
                waited(**task).is_some() && (is_stale || late)
            })
            .map(|(_, task)| *task)
            .take(most)
            .collect()
    }

    /// Asks for these back. Each moves only when the node says `Returned`, or is lost.
    pub(crate) fn call_back_from(&mut self, node: NodeIx, attempts: &[TaskIx]) {
        let mut asked = Vec::new();
        for ix in attempts {
            let Some(task) = self.tasks.get_mut(*ix) else { continue };
            if let TaskState::Prefetched { called_back, .. } = &mut task.state
                && !*called_back
            {
                *called_back = true;
                let shape_ix = task.shape;
                if let Some(shape) = self.shapes.get_mut(shape_ix) {
                    shape.called_back += 1;
                }
                if let Some(task) = self.tasks.get(*ix) {
                    asked.push((task.spec.id, self.tasks.attempt_of(task)));
                }
            }
        }
        if !asked.is_empty() {
            self.send(node, HeadToNode::CallBack(asked));
        }
    }
}
