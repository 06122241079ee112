//! Which task goes where. Goals, in order:
//!
//! 1. Promoted tasks first (rule S4): somebody holding resources waits for them.
//! 2. Within a shape, first come, first served. Between shapes, turns: no shape blocks another (each has its own queue),
//!    and one that was not served for [`STARVING`] gets a node kept free for it (`Node::reserved`).
//! 3. Where the argument bytes are, if that node can run the task now.
//! 4. Pack: a node that already works, up to half its cores, so that idle machines stay idle and may be given back;
//!    then nodes that idle; then the one with the most free among a few. [`Strategy::Spread`] takes the least loaded.
//! 5. Keep nodes busy without waiting for the head (rule S2, see `prefetch`).
//!
//! Planning places at most [`SLICE`] tasks a step (rule S6). What it costs depends on what is placed and on which
//! nodes' books changed, not on how much waits or how many nodes there are.

use cluster_types::task::Strategy;
use cluster_types::{Amount, HeadToNode, Map, Payload, Resources, Span, TaskSpec, Time};

use crate::head::Head;
use crate::ledger::Ledger;
use crate::nodes::{Node, Nodes};
use crate::objects::ObjectValue;
use crate::shapes::Shape;
use crate::slab::{NodeIx, ShapeIx, TaskIx};
use crate::starving::takes_from_group;
use crate::tasks::TaskState;
use crate::values::NotThere;

/// Tasks placed in one step.
const SLICE: usize = 512;
/// Tasks of one shape placed before the next shape's turn.
const TURN: usize = 64;
/// Candidates looked at for one task.
const LOOKED_AT: usize = 8;
/// What a node costs more where the labels that a task would rather have are not.
const NOT_WANTED: u64 = 1 << 40;
/// A shape that was not served for so long gets a node kept free.
const STARVING: Span = Span::millis(500);
/// Stored argument bytes below which it does not matter where they are.
const BYTES_THAT_MATTER: u64 = 64 << 10;

/// Whether a task of the shape may start on the node now.
pub(crate) fn can_start(
    node: &Node,
    shapes: &crate::shapes::Shapes,
    ix: ShapeIx,
    resources: &Resources,
    promoted: bool,
    now: Time,
) -> bool {
    if node.draining.is_some() || !node.ledger.fits(resources) {
        return false;
    }
    promoted
        || (node.ledger.over().is_zero()
            && !keeps_free(node, shapes, ix, resources)
            && !is_crowded(node, &node.ledger, resources, now))
}

/// Whether the node is kept free for another shape that wants what this one asks for.
pub(crate) fn keeps_free(
    node: &Node,
    shapes: &crate::shapes::Shapes,
    ix: ShapeIx,
    resources: &Resources,
) -> bool {
    if takes_from_group(node, resources, None) {
        return true;
    }
    let Some(other) = node.reserved.filter(|reserved| *reserved != ix) else { return false };
    shapes.get(other).is_some_and(|other| competes(resources, &other.resources, &node.ledger))
}

/// Whether tasks that ask for `this` stand in the way of one that starves for `other`. Cores are kept free only if cores
/// are all that is lacking: they should not idle for hours behind a busy GPU.
fn competes(this: &Resources, other: &Resources, ledger: &Ledger) -> bool {
    let without_cpu = Resources { cpu: Amount::ZERO, ..other.clone() };
    let share_cpu = !this.cpu.is_zero() && !other.cpu.is_zero() && ledger.fits(&without_cpu);
    let share_rest = (!this.gpu.is_zero() && !other.gpu.is_zero())
        || (!this.memory.is_zero() && !other.memory.is_zero())
        || this.custom.iter().any(|(name, _)| !other.custom(name).is_zero());
    share_cpu || share_rest
}

/// Rule S4: unpromoted tasks use CPU that blocked ones gave back only up to twice the cores in executors, then one more
/// per growing delay. Tasks that ask for nothing are limited the same way, for each takes an executor.
pub(crate) fn is_crowded(node: &Node, ledger: &Ledger, resources: &Resources, now: Time) -> bool {
    if resources.is_empty() {
        return node.running >= 4 * node.cores() + 16;
    }
    if node.blocked == 0 || ledger.free_cpu_beyond_lent() >= resources.cpu {
        return false;
    }
    node.running >= 2 * node.cores() && node.crowd_next.is_none_or(|(next, _)| now < next)
}

impl Head {
    /// Sends tasks where they can run. True: the slice was used up and there may be more (rule S6).
    pub(crate) fn plan(&mut self) -> bool {
        self.settle_closing();
        self.plan_groups();
        let mut placed = self.plan_dirty_nodes();
        if !self.shapes.promoted.is_empty() {
            for ix in std::mem::take(&mut self.shapes.promoted) {
                placed += self.plan_shape(ix, SLICE, true);
            }
        }
        while placed < SLICE {
            let Some(ix) = self.shapes.ready.pop_front() else { break };
            if let Some(shape) = self.shapes.get_mut(ix) {
                shape.ready = false;
            }
            let turn = TURN.min(SLICE - placed);
            let here = self.plan_shape(ix, turn, false);
            placed += here;
            if here == turn {
                self.shapes.make_ready(ix);
            }
        }
        self.fail_failing();
        self.settle_closing();
        self.groups.has_untried()
            || !self.shapes.ready.is_empty()
            || !self.shapes.promoted.is_empty()
            || !self.nodes.dirty.is_empty()
    }

    /// Nodes whose books changed give leases to what waits on them, then start what is queued, promoted tasks first and
    /// each shape in turn; and they are candidates again for what comes later.
    fn plan_dirty_nodes(&mut self) -> usize {
        let mut placed = 0;
        while placed < SLICE {
            let Some(node) = self.nodes.dirty.pop() else { break };
            let Some(state) = self.nodes.get_mut(node) else { continue };
            state.dirty = false;
            if !state.wanting.is_empty() || state.prefetched > 0 {
                self.grant_waiting(node);
            }
            let count = self.shapes.alive().len();
            for at in 0..count {
                let ix = self.shapes.alive()[at];
                if self.shapes.get(ix).is_some_and(|shape| shape.promoted.live > 0) && self.offer_to(node, ix)
                {
                    placed += self.plan_shape(ix, TURN, true);
                }
            }
            let rotation = self.shapes.rotation();
            for at in 0..count {
                let ix = self.shapes.alive()[(at + rotation) % count];
                if self.offer_to(node, ix)
                    && self.shapes.get(ix).is_some_and(|shape| shape.queued() > 0 || shape.prefetched > 0)
                {
                    placed += self.plan_shape(ix, TURN, false);
                }
            }
        }
        placed
    }

    /// The node is a candidate for the shape if it has room for it.
    fn offer_to(&mut self, node: NodeIx, ix: ShapeIx) -> bool {
        let (Some(state), Some(shape)) = (self.nodes.get(node), self.shapes.get_mut(ix)) else {
            return false;
        };
        if state.draining.is_some() || !state.ledger.fits(&shape.resources) {
            return false;
        }
        if matches!(shape.strategy, Strategy::Node { .. } | Strategy::Labels(_)) {
            let target_is_alive = self.target_is_alive(ix);
            let (Some(state), Some(shape)) = (self.nodes.get(node), self.shapes.get(ix)) else {
                return false;
            };
            if !shape.may_run_on(state, target_is_alive) {
                return false;
            }
        }
        let Some(shape) = self.shapes.get_mut(ix) else { return false };
        shape.candidates.insert(node);
        shape.promoted_candidates.insert(node);
        true
    }

    pub(crate) fn offer_all_nodes(&mut self, ix: ShapeIx) {
        for at in 0..self.nodes.alive().len() {
            let node = self.nodes.alive()[at];
            self.offer_to(node, ix);
        }
        self.shapes.make_ready(ix);
    }

    /// The node may take attempts ahead again of what runs there.
    pub(crate) fn reopen_room(&mut self, node: NodeIx) {
        let Some(state) = self.nodes.get(node) else { return };
        for (ix, here) in &state.shapes {
            if here.awake > 0
                && let Some(shape) = self.shapes.get_mut(*ix)
            {
                shape.room.insert(node);
                if shape.queued() > 0 {
                    self.shapes.make_ready(*ix);
                }
            }
        }
    }

    /// Places up to `turn` tasks of one shape, promoted ones only if `promoted_only`. Returns how many.
    fn plan_shape(&mut self, ix: ShapeIx, turn: usize, promoted_only: bool) -> usize {
        if let Some(place) = self.shapes.get(ix).and_then(|shape| shape.strategy.group()) {
            return self.plan_in_group(ix, place, turn);
        }
        let mut placed = 0;
        while placed < turn {
            let Some((task, promoted)) = self.next_queued(ix) else {
                self.call_back(ix);
                break;
            };
            if promoted_only && !promoted {
                break;
            }
            let heavy = self.heaviest_node(task);
            let now_on = self.choose(ix, heavy, promoted);
            let Some(node) = now_on.or_else(|| self.choose_ahead(ix, heavy)) else {
                // A promoted task that fits nowhere must not keep others of its shape from where only they may go.
                break;
            };
            self.choose_variant(task, ix);
            self.assign(task, node, now_on.is_some(), None);
            placed += 1;
        }
        placed
    }

    /// The next task of the shape, promoted ones first.
    pub(crate) fn next_queued(&mut self, ix: ShapeIx) -> Option<(TaskIx, bool)> {
        let shape = self.shapes.get_mut(ix)?;
        for promoted in [true, false] {
            let queue = if promoted { &mut shape.promoted } else { &mut shape.queue };
            while let Some((task, ticket)) = queue.front() {
                if is_queued(&self.tasks, task, ticket) {
                    return Some((task, promoted));
                }
                queue.pop_front();
            }
        }
        None
    }

    /// Of several requests, a task is given this one.
    pub(crate) fn choose_variant(&mut self, ix: TaskIx, shape: ShapeIx) {
        let Some(task) = self.tasks.get_mut(ix) else { return };
        let Some((choices, submitted)) = &task.choices else { return };
        if let Some((_, template)) = choices.variants.iter().find(|(variant, _)| *variant == shape) {
            let spec = TaskSpec { template: template.clone(), ..(**submitted).clone() };
            task.spec = std::sync::Arc::new(spec);
            task.shape = shape;
        }
    }

    /// A queued task left its queue, or those of all its variants.
    pub(crate) fn leave_queues(&mut self, ix: TaskIx, promoted: bool) {
        let Some(task) = self.tasks.get(ix) else { return };
        if task.choices.is_none() {
            return self.leave_queue(task.shape, promoted);
        }
        for shape in task.shapes() {
            self.leave_queue(shape, promoted);
        }
    }

    fn leave_queue(&mut self, ix: ShapeIx, promoted: bool) {
        let tasks = &self.tasks;
        let Some(shape) = self.shapes.get_mut(ix) else { return };
        let queue = if promoted { &mut shape.promoted } else { &mut shape.queue };
        queue.left(|task, ticket| is_queued(tasks, task, ticket));
    }

    /// The node with the most bytes of the task's arguments, if it matters. The function does not count: it is cached
    /// everywhere soon, and would draw all work to the driver's node.
    pub(crate) fn heaviest_node(&self, ix: TaskIx) -> Option<NodeIx> {
        let spec = &self.tasks.get(ix)?.spec;
        if spec.deps.is_empty() && matches!(spec.payload, Payload::Inline(_)) {
            return None;
        }
        let mut bytes: Map<NodeIx, u64> = Map::default();
        for id in spec.needed().skip(1) {
            let Some(object) = self.objects.by_id(id) else { continue };
            if let ObjectValue::Available { size, inline: None, .. } = object.value {
                for copy in object.copies() {
                    *bytes.entry(copy).or_default() += size;
                }
            }
        }
        let (node, most) =
            bytes.into_iter().max_by_key(|(node, bytes)| (*bytes, std::cmp::Reverse(*node)))?;
        (most >= BYTES_THAT_MATTER).then_some(node)
    }

    /// Whether the node that the strategy names is there and can ever run the shape.
    fn target_is_alive(&self, ix: ShapeIx) -> bool {
        let Some(shape) = self.shapes.get(ix) else { return false };
        let Strategy::Node { id, .. } = shape.strategy else { return false };
        let target = self.nodes.find(id).and_then(|node| self.nodes.get(node));
        target.is_some_and(|node| node.draining.is_none() && node.ledger.could_ever_fit(&shape.resources))
    }

    /// The node that starts the shape's next task now.
    pub(crate) fn choose(&mut self, ix: ShapeIx, heavy: Option<NodeIx>, promoted: bool) -> Option<NodeIx> {
        let now = self.now;
        let shape = self.shapes.get(ix)?;
        if let Strategy::Node { id, soft } = shape.strategy
            && (!soft || self.target_is_alive(ix))
        {
            let target = self.nodes.find(id)?;
            let node = self.nodes.get(target)?;
            return can_start(node, &self.shapes, ix, &shape.resources, promoted, now).then_some(target);
        }
        let fits = |node: NodeIx, shape: &Shape| {
            self.nodes
                .get(node)
                .is_some_and(|node| can_start(node, &self.shapes, ix, &shape.resources, promoted, now))
        };
        let spread = shape.strategy == Strategy::Spread;
        if !shape.wishes().is_empty() {
            return self.choose_among_candidates(ix, promoted, spread);
        }
        if let Some(heavy) = heavy
            && fits(heavy, shape)
            && self.nodes.get(heavy).is_some_and(|node| shape.labels_match(node))
        {
            return Some(heavy);
        }
        if let Some(pack) = shape.pack
            && !spread
            && fits(pack, shape)
            && packs(&self.nodes, pack, &shape.resources)
        {
            return Some(pack);
        }
        self.choose_among_candidates(ix, promoted, spread)
    }

    fn choose_among_candidates(&mut self, ix: ShapeIx, promoted: bool, spread: bool) -> Option<NodeIx> {
        let now = self.now;
        let mut best: Option<(u64, NodeIx)> = None;
        let mut looked_at = 0;
        loop {
            let shape = self.shapes.get(ix)?;
            let set = if promoted { &shape.promoted_candidates } else { &shape.candidates };
            let most = if shape.wishes().is_empty() { LOOKED_AT } else { usize::MAX };
            if looked_at >= most.min(set.len()) {
                break;
            }
            let candidate = set.ahead(looked_at)?;
            let node = self.nodes.get(candidate);
            let starts =
                node.filter(|node| can_start(node, &self.shapes, ix, &shape.resources, promoted, now));
            if let Some(node) = starts {
                let wanted = shape.wishes().iter().all(|rule| rule.holds(&node.labels));
                let cost = cost(node, &shape.resources, spread) + if wanted { 0 } else { NOT_WANTED };
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, candidate));
                }
                looked_at += 1;
                if cost == 0 {
                    break;
                }
                continue;
            }
            // It comes back when its books change.
            let shape = self.shapes.get_mut(ix)?;
            let set = if promoted { &mut shape.promoted_candidates } else { &mut shape.candidates };
            set.remove(candidate);
        }
        let (_, node) = best?;
        let shape = self.shapes.get_mut(ix)?;
        shape.pack = Some(node);
        let set = if promoted { &mut shape.promoted_candidates } else { &mut shape.candidates };
        set.advance();
        Some(node)
    }

    /// Sends the task to the node: with a lease, of the node or of a bundle there, if it starts `now`, else ahead.
    pub(crate) fn assign(&mut self, ix: TaskIx, node: NodeIx, starts_now: bool, bundle: Option<u32>) {
        let Some(task) = self.tasks.get(ix) else { return };
        let spec = task.spec.clone();
        let located = match self.located_for(&spec, node) {
            Ok(located) => located,
            // DEP-1: an argument was lost while the task was queued.
            Err(NotThere::Gone(failure)) => {
                self.detach(ix);
                self.finish(ix, cluster_types::Outcome::Failed(failure), None, None, 0);
                return;
            }
            Err(NotThere::IsMadeAgain) => {
                self.detach(ix);
                let Some(stamp) = self.tasks.get(ix).map(|task| task.stamp) else { return };
                return self.wait_for_arguments(ix, &spec, stamp);
            }
        };
        self.tell_of_job(node, &spec);
        self.detach(ix);
        let mut lease = None;
        if starts_now {
            lease = self.books(&spec, node, bundle).and_then(|ledger| ledger.take(&spec.template.resources));
            if lease.is_none() {
                self.enqueue(ix, true);
                return;
            }
        }
        let Some(task) = self.tasks.begin_attempt(ix) else { return };
        let shape_ix = task.shape;
        match &lease {
            Some(lease) => {
                self.set_leased(ix, node, lease.clone());
                if let Some(index) = bundle {
                    self.enter_bundle(ix, index);
                }
                self.note_crowding(node);
                self.end_reservation_at(node, shape_ix);
            }
            None => self.set_prefetched(ix, node),
        }
        let Some(attempt) = self.tasks.get(ix).map(|task| self.tasks.attempt_of(task)) else { return };
        let id = spec.id;
        self.send(node, HeadToNode::Assign { spec, attempt, lease, located });
        self.begin_stream(id);
    }

    pub(crate) fn tell_of_job(&mut self, node: NodeIx, spec: &TaskSpec) {
        let Some(state) = self.nodes.get_mut(node) else { return };
        if state.jobs.contains(&spec.job) {
            return;
        }
        if let Some(job) = self.jobs.get(&spec.job) {
            state.jobs.insert(spec.job);
            let info = job.info.clone();
            self.send(node, HeadToNode::Job { job: spec.job, info });
        }
    }

    /// Rule S4: beyond twice the cores in executors, each unpromoted start doubles the pause before the next.
    pub(crate) fn note_crowding(&mut self, node: NodeIx) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(node) else { return };
        if node.blocked == 0 || node.running < 2 * node.cores() {
            return;
        }
        node.crowd_next = match node.crowd_next {
            None => Some((now + Span::secs(1), Span::secs(2))),
            Some((next, pause)) if now >= next => Some((now + pause, Span(pause.0.saturating_mul(2)))),
            waiting => waiting,
        };
    }

    fn end_reservation_at(&mut self, node: NodeIx, shape: ShapeIx) {
        let Some(state) = self.nodes.get_mut(node).filter(|node| node.reserved == Some(shape)) else {
            return;
        };
        state.reserved = None;
        if let Some(shape) = self.shapes.get_mut(shape) {
            shape.reservation = None;
        }
        self.nodes.mark_dirty(node);
        self.reopen_room(node);
    }

    /// At every tick: a shape that starves gets a node kept free; reservations that are not needed end; crowded nodes
    /// are offered again when their pause is over; shapes long unused are forgotten.
    pub(crate) fn care_for_the_starving(&mut self) {
        let now = self.now;
        let shapes: Vec<ShapeIx> = self.shapes.alive().to_vec();
        for ix in shapes {
            let Some(shape) = self.shapes.get(ix) else { continue };
            let starves = shape.queued() > 0 && shape.feasible > 0 && now.since(shape.served) > STARVING;
            match shape.reservation {
                Some(node) if shape.queued() == 0 => self.end_reservation_at(node, ix),
                None if starves => self.reserve_for(ix),
                _ => {}
            }
            let Some(shape) = self.shapes.get(ix) else { continue };
            if shape.queued() == 0 && shape.prefetched > 0 {
                self.shapes.make_ready(ix);
            } else if shape.tasks == 0 && self.shapes.alive().len() > 64 {
                self.retire_shape(ix);
            }
        }
        for ix in self.groups.all_shapes() {
            if self.shapes.get(ix).is_some_and(|shape| shape.queued() > 0) {
                self.shapes.make_ready(ix);
            }
        }
        for at in 0..self.nodes.alive().len() {
            let node = self.nodes.alive()[at];
            let paused = self.nodes.get(node).and_then(|node| node.crowd_next);
            if paused.is_some_and(|(next, _)| now >= next) {
                self.nodes.mark_dirty(node);
            }
        }
    }

    /// Keeps the node free that needs to free the least, and calls back what was sent ahead to it in the way.
    fn reserve_for(&mut self, ix: ShapeIx) {
        let target_is_alive = self.target_is_alive(ix);
        let Some(shape) = self.shapes.get(ix) else { return };
        let best = self
            .nodes
            .iter()
            .filter(|(_, node)| node.reserved.is_none())
            .filter(|(_, node)| shape.may_run_on(node, target_is_alive))
            .filter(|(_, node)| node.ledger.could_ever_fit(&shape.resources))
            .max_by_key(|(ix, node)| (node.ledger.free_cpu() - shape.resources.cpu, std::cmp::Reverse(*ix)))
            .map(|(ix, _)| ix);
        let Some(node) = best else { return };
        let wanted = shape.resources.clone();
        if let Some(shape) = self.shapes.get_mut(ix) {
            shape.reservation = Some(node);
        }
        let Some(state) = self.nodes.get_mut(node) else { return };
        state.reserved = Some(ix);
        let mut in_the_way = Vec::new();
        for (other, here) in &state.shapes {
            let stands = self
                .shapes
                .get(*other)
                .is_some_and(|other| competes(&other.resources, &wanted, &state.ledger));
            if *other != ix && stands {
                in_the_way.extend(here.prefetched.iter().copied());
            }
        }
        in_the_way.sort_unstable();
        self.call_back_from(node, &in_the_way);
    }

    pub(crate) fn retire_shape(&mut self, ix: ShapeIx) {
        if let Some(node) = self.shapes.get(ix).and_then(|shape| shape.reservation) {
            self.end_reservation_at(node, ix);
        }
        self.shapes.retire(ix);
        for at in 0..self.nodes.alive().len() {
            let node = self.nodes.alive()[at];
            if let Some(node) = self.nodes.get_mut(node) {
                node.shapes.remove(&ix);
            }
        }
    }
}

pub(crate) fn is_queued(tasks: &crate::tasks::Tasks, ix: TaskIx, ticket: u32) -> bool {
    tasks.get(ix).is_some_and(|task| matches!(task.state, TaskState::Queued { ticket: now } if now == ticket))
}

/// Whether the node works and stays within half its cores with this task too.
fn packs(nodes: &Nodes, ix: NodeIx, resources: &Resources) -> bool {
    nodes.get(ix).is_some_and(|node| {
        let after = node.ledger.leased_cpu() + resources.cpu;
        node.running > 0 && after.0.saturating_mul(2) <= node.ledger.total().cpu.0
    })
}

/// The least is best: 0 for a node to pack, then idle nodes, then the least loaded.
fn cost(node: &Node, resources: &Resources, spread: bool) -> u64 {
    let load = u64::from(node.running + node.prefetched) * 1000 / u64::from(node.cores());
    if spread {
        return 1 + load;
    }
    let after = node.ledger.leased_cpu() + resources.cpu;
    if node.running > 0 && after.0.saturating_mul(2) <= node.ledger.total().cpu.0 {
        return 0;
    }
    if node.running == 0 { 1 } else { 2 + load }
}
