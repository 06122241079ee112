//! Tasks that ask for the same wait in the same queue: a *shape* is what is asked for and where it may run.
//!
//! Whether the first task of a queue can start somewhere says it for all of them, so planning costs what it places,
//! not what waits. Each shape keeps the nodes that *may* have room: a node enters when its books change, and leaves
//! when it was looked at and had none. Nothing ever looks at all nodes for one task.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::task::{LabelRule, Strategy};
use cluster_types::{Map, Resources, TaskTemplate, Time};

use crate::nodes::Node;
use crate::slab::{Index as _, NodeIx, ShapeIx, Slab, TaskIx};

/// Nodes, each at most once, that are cheap to add, remove and go around.
#[derive(Debug, Default)]
pub(crate) struct NodeSet {
    nodes: Vec<NodeIx>,
    /// By node: 1 + its place in `nodes`.
    places: Vec<u32>,
    cursor: usize,
}

impl NodeSet {
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn contains(&self, node: NodeIx) -> bool {
        self.places.get(node.at()).is_some_and(|place| *place > 0)
    }

    pub fn insert(&mut self, node: NodeIx) {
        if self.places.len() <= node.at() {
            self.places.resize(node.at() + 1, 0);
        }
        if self.places[node.at()] == 0 {
            self.nodes.push(node);
            self.places[node.at()] = self.nodes.len() as u32;
        }
    }

    pub fn remove(&mut self, node: NodeIx) {
        let Some(place) = self.places.get_mut(node.at()) else { return };
        if *place == 0 {
            return;
        }
        let at = (*place - 1) as usize;
        *place = 0;
        self.nodes.swap_remove(at);
        if let Some(moved) = self.nodes.get(at) {
            self.places[moved.at()] = at as u32 + 1;
        }
    }

    /// The node the cursor is at.
    pub fn current(&mut self) -> Option<NodeIx> {
        if self.cursor >= self.nodes.len() {
            self.cursor = 0;
        }
        self.nodes.get(self.cursor).copied()
    }

    /// The node `ahead` places after the cursor.
    pub fn ahead(&self, ahead: usize) -> Option<NodeIx> {
        if self.nodes.is_empty() {
            return None;
        }
        self.nodes.get((self.cursor + ahead) % self.nodes.len()).copied()
    }

    pub fn skip(&mut self, places: usize) {
        self.cursor = (self.cursor + places) % self.nodes.len().max(1);
    }

    pub fn advance(&mut self) {
        self.cursor += 1;
    }
}

/// Tasks in the order they came; entries of tasks that left by another way are skipped when they come up.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: VecDeque<(TaskIx, u32)>,
    /// Entries whose task is still queued here.
    pub live: usize,
}

impl Queue {
    pub fn push_back(&mut self, task: TaskIx, ticket: u32) {
        self.entries.push_back((task, ticket));
        self.live += 1;
    }

    pub fn push_front(&mut self, task: TaskIx, ticket: u32) {
        self.entries.push_front((task, ticket));
        self.live += 1;
    }

    pub fn front(&self) -> Option<(TaskIx, u32)> {
        self.entries.front().copied()
    }

    pub fn pop_front(&mut self) {
        self.entries.pop_front();
    }

    /// A task left from the middle. Forgotten entries go when they are the majority.
    pub fn left(&mut self, is_queued: impl Fn(TaskIx, u32) -> bool) {
        self.live -= 1;
        if self.entries.len() > 64 && self.entries.len() > 4 * self.live {
            self.entries.retain(|(task, ticket)| is_queued(*task, *ticket));
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (TaskIx, u32)> + '_ {
        self.entries.iter().copied()
    }
}

/// What tasks ask for, with all that wait for it.
#[derive(Debug)]
pub(crate) struct Shape {
    pub resources: Resources,
    pub strategy: Strategy,
    /// Its tasks would take something else as well, so none is sent ahead to wait for this.
    pub is_variant: bool,
    pub queue: Queue,
    /// Tasks that somebody blocked waits for (rule S4); they go first.
    pub promoted: Queue,
    /// Live tasks of this shape.
    pub tasks: usize,
    /// Nodes that may start one now.
    pub candidates: NodeSet,
    /// Nodes that may start a promoted one now.
    pub promoted_candidates: NodeSet,
    /// Nodes that may take one ahead (rule S2).
    pub room: NodeSet,
    /// Nodes that have some ahead.
    pub holding: NodeSet,
    /// Attempts sent ahead, and how many of them were called back and not answered for.
    pub prefetched: usize,
    pub called_back: usize,
    /// Not before this is anything called back again.
    pub next_call_back: Time,
    /// Live nodes whose total fits.
    pub feasible: usize,
    /// The node being filled.
    pub pack: Option<NodeIx>,
    /// When one of the queue was last sent somewhere, or the queue began.
    pub served: Time,
    /// The node kept free for it because it starved.
    pub reservation: Option<NodeIx>,
    /// How long they run, in microseconds; a moving average over all nodes.
    pub micros: Option<f32>,
    /// Whether it is in `Shapes::ready`.
    pub ready: bool,
}

impl Shape {
    pub fn queued(&self) -> usize {
        self.queue.live + self.promoted.live
    }

    /// Where it must run, if the strategy says so and there is no way out.
    pub fn may_run_on(&self, node: &Node, target_is_alive: bool) -> bool {
        match &self.strategy {
            Strategy::Node { id, soft } => *id == node.id || (*soft && !target_is_alive),
            _ => self.labels_match(node),
        }
    }

    /// Whether the node's labels are such as the strategy demands.
    pub fn labels_match(&self, node: &Node) -> bool {
        match &self.strategy {
            Strategy::Labels(selector) => selector.hard.iter().all(|rule| rule.holds(&node.labels)),
            _ => true,
        }
    }

    /// Rules of which a node that obeys all goes before others.
    pub fn wishes(&self) -> &[LabelRule] {
        match &self.strategy {
            Strategy::Labels(selector) => &selector.soft,
            _ => &[],
        }
    }
}

/// The requests of which a task takes the first that is free: the shape of each, and the template as its executor is to
/// see it.
#[derive(Debug, Default)]
pub(crate) struct Choices {
    pub variants: Vec<(ShapeIx, Arc<TaskTemplate>)>,
}

/// All shapes.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    slab: Slab<ShapeIx, Shape>,
    /// By what is asked for, where, and whether it is one of several requests of the same task.
    index: Map<Resources, Map<(Strategy, bool), ShapeIx>>,
    /// The last template with variants asked for.
    last_choices: Option<(Arc<TaskTemplate>, Arc<Choices>)>,
    /// The last template asked for: submissions come in runs.
    last: Option<(Arc<TaskTemplate>, ShapeIx)>,
    /// Those whose tasks any node may run: not those of placement groups, which only their groups' bundles run.
    alive: Vec<ShapeIx>,
    /// Shapes to plan, in turn.
    pub ready: VecDeque<ShapeIx>,
    tickets: u32,
    /// Shapes with promoted tasks queued.
    pub promoted: Vec<ShapeIx>,
    rotations: usize,
}

impl Shapes {
    pub fn get(&self, ix: ShapeIx) -> Option<&Shape> {
        self.slab.get(ix)
    }

    pub fn get_mut(&mut self, ix: ShapeIx) -> Option<&mut Shape> {
        self.slab.get_mut(ix)
    }

    pub fn len(&self) -> usize {
        self.slab.iter().count()
    }

    pub fn alive(&self) -> &[ShapeIx] {
        &self.alive
    }

    pub fn iter(&self) -> impl Iterator<Item = (ShapeIx, &Shape)> {
        self.slab.iter()
    }

    /// The template's shape; the flag says that it is new.
    pub fn of(&mut self, template: &Arc<TaskTemplate>, now: Time) -> (ShapeIx, bool) {
        if let Some((last, ix)) = &self.last
            && Arc::ptr_eq(last, template)
        {
            return (*ix, false);
        }
        let (ix, is_new) = self.find_or_make(template, false, now);
        self.last = Some((template.clone(), ix));
        (ix, is_new)
    }

    /// The shapes of a template with variants: one for each request; and those of them that are new.
    pub fn choices_of(&mut self, template: &Arc<TaskTemplate>, now: Time) -> (Arc<Choices>, Vec<ShapeIx>) {
        if let Some((last, choices)) = &self.last_choices
            && Arc::ptr_eq(last, template)
        {
            return (choices.clone(), Vec::new());
        }
        let mut choices = Choices::default();
        let mut new = Vec::new();
        for resources in std::iter::once(&template.resources).chain(&template.variants) {
            let variant =
                TaskTemplate { resources: resources.clone(), variants: Vec::new(), ..(**template).clone() };
            let variant = Arc::new(variant);
            let (ix, is_new) = self.find_or_make(&variant, true, now);
            if choices.variants.iter().all(|(known, _)| *known != ix) {
                choices.variants.push((ix, variant));
            }
            if is_new {
                new.push(ix);
            }
        }
        let choices = Arc::new(choices);
        self.last_choices = Some((template.clone(), choices.clone()));
        (choices, new)
    }

    fn find_or_make(&mut self, template: &Arc<TaskTemplate>, is_variant: bool, now: Time) -> (ShapeIx, bool) {
        let key = (template.strategy.clone(), is_variant);
        let known = self.index.get(&template.resources).and_then(|shapes| shapes.get(&key));
        if let Some(ix) = known {
            return (*ix, false);
        }
        let ix = self.slab.insert(Shape {
            resources: template.resources.clone(),
            strategy: template.strategy.clone(),
            is_variant,
            queue: Queue::default(),
            promoted: Queue::default(),
            tasks: 0,
            candidates: NodeSet::default(),
            promoted_candidates: NodeSet::default(),
            room: NodeSet::default(),
            holding: NodeSet::default(),
            prefetched: 0,
            called_back: 0,
            next_call_back: now,
            feasible: 0,
            pack: None,
            served: now,
            reservation: None,
            micros: None,
            ready: false,
        });
        let strategies = self.index.entry(template.resources.clone()).or_default();
        strategies.insert(key, ix);
        if template.strategy.group().is_none() {
            self.alive.push(ix);
        }
        (ix, true)
    }

    /// Forgets a shape that no live task has.
    pub fn retire(&mut self, ix: ShapeIx) {
        let Some(shape) = self.slab.remove(ix) else { return };
        self.alive.retain(|alive| *alive != ix);
        self.ready.retain(|ready| *ready != ix);
        self.promoted.retain(|promoted| *promoted != ix);
        if let Some(shapes) = self.index.get_mut(&shape.resources) {
            shapes.remove(&(shape.strategy, shape.is_variant));
            if shapes.is_empty() {
                self.index.remove(&shape.resources);
            }
        }
        self.last = None;
        self.last_choices = None;
    }

    /// Where to begin going around the shapes: another each time.
    pub fn rotation(&mut self) -> usize {
        self.rotations = self.rotations.wrapping_add(1);
        self.rotations % self.alive.len().max(1)
    }

    pub fn ticket(&mut self) -> u32 {
        self.tickets = self.tickets.wrapping_add(1);
        self.tickets
    }

    /// The shape gets its turn in this step's plan.
    pub fn make_ready(&mut self, ix: ShapeIx) {
        let Some(shape) = self.slab.get_mut(ix) else { return };
        if !shape.promoted_candidates.is_empty() && shape.promoted.live > 0 && !self.promoted.contains(&ix) {
            self.promoted.push(ix);
        }
        if !shape.ready {
            shape.ready = true;
            self.ready.push_back(ix);
        }
    }
}
