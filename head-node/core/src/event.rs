//! What happens to the head, and what it does about it.

use std::sync::Arc;

use cluster_types::job::JobView;
use cluster_types::kept::{KeptActor, KeptDurable, KeptGroup};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{HeadToNode, Incarnation, NodeHello, NodeId, NodeToHead, ObjectId, Span, TaskId, Term};

use crate::tasks::History;

/// What the head is told at its start; nothing in it changes later.
#[derive(Clone, Debug)]
pub struct HeadConfig {
    /// This start's number, from the state store.
    pub term: Term,
    /// Silence after which a node is declared lost.
    pub loss_timeout: Span,
    /// Nobody can ever join (a cluster inside a driver): a task that no node can run fails at once instead of waiting.
    pub closed: bool,
    /// How many finished tasks are remembered for `list tasks` and `why`.
    pub finished_kept: usize,
    /// Bytes of small values cached here beside their home nodes (rule R4).
    pub inline_budget: u64,
    /// Bytes of specs kept to make lost objects again.
    pub lineage_budget: u64,
    /// Nodes that the term before knew (rule H1): they are waited for, as long as `loss_timeout`.
    pub roster: Vec<Member>,
    /// Actors that the term before kept.
    pub actors: Vec<KeptActor>,
    /// Its placement groups.
    pub groups: Vec<KeptGroup>,
    /// Its objects with copies in durable storage.
    pub durables: Vec<KeptDurable>,
    /// What ended before.
    pub history: History,
    /// Its submitted jobs.
    pub jobs: Vec<JobView>,
    /// The most attempts sent ahead to a node of one shape, beyond what it can run at once.
    pub prefetch_max: u32,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self {
            term: Term(1),
            loss_timeout: Span::secs(5),
            closed: false,
            finished_kept: 10_000,
            inline_budget: 256 << 20,
            lineage_budget: 256 << 20,
            roster: Vec::new(),
            actors: Vec::new(),
            groups: Vec::new(),
            durables: Vec::new(),
            history: History::default(),
            jobs: Vec::new(),
            prefetch_max: 256,
        }
    }
}

/// Something that happened. The edge feeds these to `Head::step` one at a time.
#[derive(Clone, Debug)]
pub enum Event {
    /// A node's stream opened, its token and protocol version checked. Answered by `ToNode(Admitted)` as the first
    /// message, or by `RefuseNode`.
    NodeConnected {
        /// Names the connection until the node is admitted.
        connection: u64,
        /// Who it is.
        hello: NodeHello,
    },
    /// A node's stream closed. The node is lost.
    NodeDisconnected {
        /// Which.
        node: NodeId,
        /// That stream's incarnation (FENCE-1).
        incarnation: Incarnation,
    },
    /// A node said something.
    FromNode {
        /// Which.
        node: NodeId,
        /// That stream's incarnation (FENCE-1).
        incarnation: Incarnation,
        /// What.
        message: NodeToHead,
    },
    /// Somebody asked the head itself (the `cluster` command).
    Query {
        /// Chosen by the edge.
        number: u64,
        /// The question.
        query: Query,
    },
    /// Time passed. At least every 100 ms; also right after a step that returned true (planning was cut short, rule S6).
    Tick,
}

/// Something for the edge to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Bind the connection to this incarnation of the node; `message` is its first.
    AdmitNode {
        /// From `NodeConnected`.
        connection: u64,
        /// Which node.
        node: NodeId,
        /// Stamped on all that comes over this connection.
        incarnation: Incarnation,
        /// `HeadToNode::Admitted`.
        message: HeadToNode,
    },
    /// Close the connection with a sentence.
    RefuseNode {
        /// From `NodeConnected`.
        connection: u64,
        /// Why.
        reason: String,
    },
    /// Send this to a node.
    ToNode {
        /// Which.
        node: NodeId,
        /// What.
        message: HeadToNode,
    },
    /// The node is lost: close its stream if it is still open.
    CloseNode {
        /// Which.
        node: NodeId,
        /// Which of its streams.
        incarnation: Incarnation,
        /// Told to the node if it can still be.
        reason: String,
    },
    /// Answer to `Query`.
    Reply {
        /// From `Query`.
        number: u64,
        /// The answer, or why there is none.
        reply: Result<QueryReply, String>,
    },
    /// Write this to the state store (rule H1).
    Persist(Record),
    /// Tasks that ended, for `HeadConfig::history` of the next start. It need not be written at once, nor at all.
    Remember(History),
}

/// A change to what must survive the head.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A node was admitted.
    NodeJoined {
        /// Which.
        node: NodeId,
        /// Its number.
        incarnation: Incarnation,
        /// What it was when what runs there began: a head that it was resumed by since may have died before it heard.
        since: Incarnation,
        /// Its data address.
        address: Arc<str>,
    },
    /// A node was lost or left.
    NodeLeft {
        /// Which.
        node: NodeId,
    },
    /// What is to be known of an actor whose submitter need not know any more: one that is detached, or may be made anew.
    ActorKept(KeptActor),
    /// It is dead for good. What made it.
    ActorGone(TaskId),
    /// A placement group has its bundles, or some of them have other places.
    GroupKept(KeptGroup),
    /// It was removed. What made it.
    GroupGone(TaskId),
    /// An object has a copy in durable storage.
    DurableKept(KeptDurable),
    /// It was freed.
    DurableGone(ObjectId),
    /// What is known of a submitted job.
    JobKept(Box<JobView>),
    /// It was deleted.
    JobGone(String),
}

/// A node of the term before. See [`Record::NodeJoined`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub node: NodeId,
    /// Its last number.
    pub incarnation: Incarnation,
    /// The first number under which what runs there is current.
    pub since: Incarnation,
}
