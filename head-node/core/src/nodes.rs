//! The nodes: what each has, runs and was told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cluster_types::query::StoreUsage;
use cluster_types::{ClientId, Incarnation, JobId, Map, NodeId, ObjectId, Resources, Set, Span, Time};

use crate::drain::Draining;
use crate::ledger::Ledger;
use crate::pulse::Heard;
use crate::slab::{NodeIx, ShapeIx, Slab, TaskIx};

/// One incarnation of a node.
#[derive(Debug)]
pub(crate) struct Node {
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub hostname: Arc<str>,
    pub data_address: String,
    pub labels: BTreeMap<String, String>,
    pub store: StoreUsage,
    pub executors: u32,
    pub ledger: Ledger,
    pub last_heard: Time,
    /// How far it is with what it is told.
    pub heard: Heard,
    /// Attempts here, leased or ahead.
    pub attempts: Set<TaskIx>,
    /// Leased attempts, the blocked ones included.
    pub running: u32,
    /// Blocked attempts.
    pub blocked: u32,
    /// Attempts sent ahead.
    pub prefetched: u32,
    pub shapes: Map<ShapeIx, NodeShape>,
    pub clients: Set<ClientId>,
    /// Jobs it was told of.
    pub jobs: Set<JobId>,
    /// Nodes that were told of an actor here: whose clients may call it past the head.
    pub callers: Set<NodeIx>,
    /// Functions it was told the place or value of.
    pub functions: Set<ObjectId>,
    /// Kept free for this shape.
    pub reserved: Option<ShapeIx>,
    /// Kept for bundles of this group, which together ask for so much.
    pub kept_for: Option<(ObjectId, Resources)>,
    /// Its books changed since it was last offered to the shapes.
    pub dirty: bool,
    /// Rule S4: beyond twice its cores in executors, the next unpromoted start, and the pause after that.
    pub crowd_next: Option<(Time, Span)>,
    /// It is to leave: nothing new starts here.
    pub draining: Option<Draining>,
    /// Promoted attempts that were sent ahead and want a lease.
    pub wanting: Vec<(TaskIx, u32)>,
}

/// What of one shape is on one node.
#[derive(Debug, Default)]
pub(crate) struct NodeShape {
    /// Leased attempts that are awake.
    pub awake: u32,
    /// Attempts ahead, in the order they were sent.
    pub prefetched: VecDeque<TaskIx>,
    /// How long they run, in microseconds; a moving average.
    pub micros: Option<f32>,
}

impl Node {
    /// Whole cores, for rule S4; at least one.
    pub fn cores(&self) -> u32 {
        let units = self.ledger.total().cpu.0 / cluster_types::Amount::PER_UNIT;
        u32::try_from(units).unwrap_or(u32::MAX).max(1)
    }

    pub fn shape_mut(&mut self, shape: ShapeIx) -> &mut NodeShape {
        self.shapes.entry(shape).or_default()
    }
}

/// Lost nodes that are remembered.
const LOST_KEPT: usize = 1000;

/// All nodes that are alive. A lost node's index finds nothing, ever.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    slab: Slab<NodeIx, Node>,
    index: Map<NodeId, NodeIx>,
    alive: Vec<NodeIx>,
    /// The highest incarnation each node had, of those that were lost the last ones.
    pub incarnations: Map<NodeId, Incarnation>,
    /// For messages: what lost nodes were called.
    lost: VecDeque<(NodeIx, NodeId, Arc<str>)>,
    /// Nodes whose books changed.
    pub dirty: Vec<NodeIx>,
    /// Whether any ever joined.
    pub any_joined: bool,
}

impl Nodes {
    pub fn insert(&mut self, node: Node) -> NodeIx {
        let id = node.id;
        let ix = self.slab.insert_new(node);
        self.index.insert(id, ix);
        self.alive.push(ix);
        self.any_joined = true;
        ix
    }

    pub fn remove(&mut self, ix: NodeIx) -> Option<Node> {
        let node = self.slab.retire(ix)?;
        self.index.remove(&node.id);
        self.alive.retain(|alive| *alive != ix);
        self.lost.push_back((ix, node.id, node.hostname.clone()));
        // One that comes back after so many others were lost tells itself which incarnation it had.
        if self.lost.len() > LOST_KEPT
            && let Some((_, oldest, _)) = self.lost.pop_front()
            && !self.index.contains_key(&oldest)
            && !self.lost.iter().any(|(_, id, _)| *id == oldest)
        {
            self.incarnations.remove(&oldest);
        }
        Some(node)
    }

    pub fn find(&self, id: NodeId) -> Option<NodeIx> {
        self.index.get(&id).copied()
    }

    /// FENCE-1: the node, if this is its current incarnation.
    pub fn current(&self, id: NodeId, incarnation: Incarnation) -> Option<NodeIx> {
        let ix = self.find(id)?;
        (self.slab.get(ix)?.incarnation == incarnation).then_some(ix)
    }

    pub fn get(&self, ix: NodeIx) -> Option<&Node> {
        self.slab.get(ix)
    }

    pub fn get_mut(&mut self, ix: NodeIx) -> Option<&mut Node> {
        self.slab.get_mut(ix)
    }

    pub fn is_alive(&self, ix: NodeIx) -> bool {
        self.slab.get(ix).is_some()
    }

    pub fn alive(&self) -> &[NodeIx] {
        &self.alive
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeIx, &Node)> {
        self.alive.iter().filter_map(|ix| Some((*ix, self.slab.get(*ix)?)))
    }

    /// What a node, alive or lost, is called in messages.
    pub fn name(&self, ix: NodeIx) -> Arc<str> {
        if let Some(node) = self.slab.get(ix) {
            return node.hostname.clone();
        }
        let lost = self.lost.iter().find(|(lost, _, _)| *lost == ix);
        lost.map_or_else(|| "a lost node".into(), |(_, _, hostname)| hostname.clone())
    }

    /// The node's books changed for the better: it is offered to the shapes in this step's plan.
    pub fn mark_dirty(&mut self, ix: NodeIx) {
        if let Some(node) = self.slab.get_mut(ix)
            && !node.dirty
        {
            node.dirty = true;
            self.dirty.push(ix);
        }
    }
}
