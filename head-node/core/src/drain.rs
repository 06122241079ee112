//! Nodes that are to leave: a machine that will be switched off, a spot machine that is called back.
//!
//! Nothing new starts there. What was sent ahead is called back, what runs may end, and objects of which the only copy is
//! there are copied to other nodes. When nothing is left that anybody needs, or the time is over, the node leaves; what
//! still runs then is tried again elsewhere, as after a loss, but not counted against its retries.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::query::DrainView;
use cluster_types::{Attempt, HeadToNode, Located, Map, ObjectId, Span, TaskId, Time};

use crate::head::Head;
use crate::objects::{Object, ObjectValue};
use crate::slab::{NodeIx, TaskIx};
use crate::tasks::TaskState;

/// Objects are looked for this often: new ones come while tasks still end.
const SCAN_EVERY: Span = Span::secs(1);
/// Of what is being copied off one node at a time, in bytes and in number.
const UNDER_WAY_BYTES: u64 = 256 << 20;
const UNDER_WAY: usize = 4_000;
/// A copy that is not there by then is asked for again, of another node perhaps.
const COPY_WITHIN: Span = Span::secs(10);
/// Nobody waits longer than a month.
const LONGEST: Span = Span::secs(30 * 24 * 3600);

/// What is still to be done before a node can leave.
#[derive(Debug)]
pub(crate) struct Draining {
    until: Time,
    why: Arc<str>,
    scanned: Option<Time>,
    /// Objects that are nowhere else, as of the last scan.
    to_move: VecDeque<ObjectId>,
    /// Objects being copied: their sizes, and since when.
    moving: Map<ObjectId, (u64, Time)>,
    /// Actors that were asked to move, in this life of theirs.
    asked: Map<TaskId, Attempt>,
}

impl Head {
    /// The node whose id, beginning of an id, or hostname this is.
    pub(crate) fn node_named(&self, name: &str) -> Result<NodeIx, String> {
        let name = name.trim();
        let by = |matches: &dyn Fn(&crate::nodes::Node) -> bool| -> Vec<NodeIx> {
            self.nodes.iter().filter(|(_, node)| matches(node)).map(|(ix, _)| ix).collect()
        };
        let mut found = by(&|node| &*node.hostname == name);
        if found.is_empty() && !name.is_empty() {
            found = by(&|node| node.id.to_string().starts_with(name));
        }
        match found.as_slice() {
            [one] => Ok(*one),
            [] => {
                let known = self.nodes.iter().map(|(_, node)| format!("{} ({})", node.hostname, node.id));
                let known = known.collect::<Vec<_>>().join(", ");
                Err(format!("there is no node {name:?}; there are: {known}"))
            }
            many => Err(format!("{} nodes are called {name:?}: name one by its id", many.len())),
        }
    }

    /// The node is to leave within this time. Asked again, the earlier end counts.
    pub(crate) fn drain(&mut self, ix: NodeIx, within: Span, why: &str) {
        let until = self.now + Span(within.0.min(LONGEST.0));
        let Some(node) = self.nodes.get_mut(ix) else { return };
        if let Some(draining) = &mut node.draining {
            draining.until = draining.until.min(until);
            return;
        }
        node.draining = Some(Draining {
            until,
            why: why.into(),
            scanned: None,
            to_move: VecDeque::new(),
            moving: Map::default(),
            asked: Map::default(),
        });
        node.reserved = None;
        let mut ahead: Vec<TaskIx> =
            node.shapes.values().flat_map(|here| here.prefetched.iter().copied()).collect();
        ahead.sort_unstable();
        self.call_back_from(ix, &ahead);
        for at in 0..self.shapes.alive().len() {
            let shape_ix = self.shapes.alive()[at];
            if let Some(shape) = self.shapes.get_mut(shape_ix) {
                shape.candidates.remove(ix);
                shape.promoted_candidates.remove(ix);
                shape.room.remove(ix);
                shape.pack = shape.pack.filter(|pack| *pack != ix);
                shape.reservation = shape.reservation.filter(|reserved| *reserved != ix);
            }
            self.count_feasible(shape_ix);
        }
        // What would rather have run there may go elsewhere now.
        for at in 0..self.shapes.alive().len() {
            let shape_ix = self.shapes.alive()[at];
            if self.shapes.get(shape_ix).is_some_and(|shape| shape.queued() > 0) {
                self.offer_all_nodes(shape_ix);
            }
        }
        self.judge_feasibility();
    }

    /// At every tick.
    pub(crate) fn look_at_draining(&mut self) {
        let draining: Vec<NodeIx> =
            self.nodes.iter().filter(|(_, node)| node.draining.is_some()).map(|(ix, _)| ix).collect();
        for ix in draining {
            let Some(mut state) = self.nodes.get_mut(ix).and_then(|node| node.draining.take()) else {
                continue;
            };
            let leaves = self.go_on_draining(ix, &mut state);
            let why = state.why.clone();
            if let Some(node) = self.nodes.get_mut(ix) {
                node.draining = Some(state);
            }
            if let Some(when) = leaves {
                self.send(ix, HeadToNode::Drained);
                self.lose_node(ix, &format!("it left {when} ({why})"));
            }
        }
    }

    /// Why the node can leave now, if it can.
    fn go_on_draining(&mut self, ix: NodeIx, state: &mut Draining) -> Option<&'static str> {
        let now = self.now;
        if now >= state.until {
            return Some("when its time was over");
        }
        let node = self.nodes.get(ix)?;
        let is_idle =
            node.attempts.is_empty() && self.drivers_at(ix) == 0 && self.submitted.running_on(ix) == 0;
        let others = self.nodes.iter().any(|(other, node)| other != ix && node.draining.is_none());
        if !others && self.nodes.alive().len() == 1 {
            // Nobody is left to hold anything that is here.
            return is_idle.then_some("when nothing was left to do");
        }
        let (objects, nodes) = (&self.objects, &self.nodes);
        let is_sole = |object: &Object| {
            let mut alive = object.copies().filter(|copy| nodes.is_alive(*copy));
            alive.next() == Some(ix) && alive.all(|copy| copy == ix)
        };
        state.moving.retain(|id, (_, since)| {
            now.since(*since) < COPY_WITHIN && objects.by_id(*id).is_some_and(is_sole)
        });
        let mut scanned_now = false;
        let is_due = state.scanned.is_none_or(|at| now.since(at) >= SCAN_EVERY);
        if state.to_move.is_empty() && state.moving.is_empty() && (is_due || is_idle) {
            let found = objects.iter().filter(|(_, object)| is_sole(object));
            state.to_move = found.map(|(_, object)| object.id).collect();
            state.scanned = Some(now);
            scanned_now = true;
        }
        if others {
            self.move_actors(ix, state);
            self.move_some(ix, state);
        }
        let moved = state.to_move.is_empty() && state.moving.is_empty();
        (is_idle && scanned_now && moved).then_some("when nothing was left to do")
    }

    /// Asks actors that another node can hold to keep their states and move.
    fn move_actors(&mut self, ix: NodeIx, state: &mut Draining) {
        let Some(node) = self.nodes.get(ix) else { return };
        let mut movable: Vec<(TaskIx, TaskId, Attempt)> = Vec::new();
        for &task_ix in &node.attempts {
            let Some(task) = self.tasks.get(task_ix) else { continue };
            let attempt = self.tasks.attempt_of(task);
            let has_place = self.shapes.get(task.shape).is_some_and(|shape| shape.feasible > 0);
            let is_alive = matches!(task.state, TaskState::Alive { .. }) && task.bundle.is_none();
            if is_alive && has_place && state.asked.get(&task.spec.id) != Some(&attempt) {
                movable.push((task_ix, task.spec.id, attempt));
            }
        }
        movable.sort_unstable_by_key(|(task_ix, ..)| *task_ix);
        for (_, task, attempt) in movable {
            state.asked.insert(task, attempt);
            self.send(ix, HeadToNode::MoveActor { task, attempt });
        }
    }

    /// Has other nodes copy what is only on this one.
    fn move_some(&mut self, ix: NodeIx, state: &mut Draining) {
        let mut bytes: u64 = state.moving.values().map(|(size, _)| *size).sum();
        while bytes < UNDER_WAY_BYTES && state.moving.len() < UNDER_WAY {
            let Some(id) = state.to_move.pop_front() else { return };
            let Some(object_ix) = self.objects.find(id) else { continue };
            let is_there = |object: &Object| matches!(object.value, ObjectValue::Available { .. });
            if !self.objects.get(object_ix).is_some_and(is_there) {
                continue;
            }
            let Some(located) = self.located(object_ix) else { continue };
            let size = match &located {
                Located::Stored { size, .. } => *size,
                Located::Inline(bytes) => bytes.len() as u64,
                Located::Failed(_) | Located::Durable { .. } => continue,
            };
            let Some(target) = self.roomiest_beside(ix) else { return };
            if let Some(node) = self.nodes.get_mut(target) {
                // Until its heartbeat says so.
                node.store.live = node.store.live.saturating_add(size);
            }
            state.moving.insert(id, (size, self.now));
            bytes += size;
            let contains = self.contents_of(object_ix);
            self.send(target, HeadToNode::Copy { object: id, located, contains });
        }
    }

    pub(crate) fn roomiest_beside(&self, ix: NodeIx) -> Option<NodeIx> {
        let stays = self.nodes.iter().filter(|(other, node)| *other != ix && node.draining.is_none());
        let room = |node: &crate::nodes::Node| i128::from(node.store.capacity) - i128::from(node.store.live);
        stays.max_by_key(|(other, node)| (room(node), std::cmp::Reverse(*other))).map(|(other, _)| other)
    }

    fn drivers_at(&self, ix: NodeIx) -> usize {
        let Some(node) = self.nodes.get(ix) else { return 0 };
        let is_driver = |client| self.clients.get(client).is_some_and(|client| client.is_driver);
        node.clients.iter().filter(|client| is_driver(client)).count()
    }

    /// For people.
    pub(crate) fn drain_view(&self, ix: NodeIx, state: &Draining) -> DrainView {
        let alive = |task: &&TaskIx| {
            self.tasks.get(**task).is_some_and(|task| matches!(task.state, TaskState::Alive { .. }))
        };
        let actors = self.nodes.get(ix).map_or(0, |node| node.attempts.iter().filter(alive).count());
        DrainView {
            left_ms: state.until.since(self.now).0 / 1000,
            actors: actors as u32,
            drivers: self.drivers_at(ix) as u32,
            objects: (state.to_move.len() + state.moving.len()) as u32,
        }
    }
}
