//! The vocabulary that every part of the cluster shares: ids, resources, tasks, objects, and the messages that
//! clients, nodes and the head send each other.
//!
//! These are domain types. The wire (protobuf) lives in `cluster-proto` and is converted at the edge; the cores know
//! only what is here. Nothing in this crate does I/O.
//!
//! Where to look:
//! - [`ids`]: what things are called, and how the names print.
//! - [`resources`]: amounts, requests, GPU shares.
//! - [`task`]: what a task is ([`task::TaskSpec`]) and how it ends ([`task::Outcome`]).
//! - [`object`]: where values lie ([`object::Location`]) and how they travel ([`object::Value`]).
//! - [`client_node`], [`node_head`]: the two conversations, with the rules each message stands for.
//! - [`job`]: submitted programs, what is known of them, and pieces of logs.
//! - [`query`]: questions about the cluster's state, and their answers.
//! - [`link`]: sequence numbers and acknowledgements of a stream that survives a reconnect.

pub mod client_node;
pub mod ids;
pub mod job;
pub mod kept;
pub mod link;
pub mod node_head;
pub mod node_node;
pub mod object;
pub mod query;
pub mod resources;
pub mod task;
pub mod time;

pub use client_node::{ClientHello, ClientKind, ClientToNode, JobInfo, NodeToClient};
pub use ids::{Attempt, ClientId, Incarnation, JobId, NodeId, ObjectId, SegmentId, TaskId, Term};
pub use node_head::{HeadToNode, Heads, NodeHello, NodeToHead};
pub use node_node::{NodeToNode, TunnelHello, TunnelWelcome};
pub use object::{INLINE_MAX, Located, Location, PART, Refs, Value};
pub use resources::{Amount, GpuShare, Lease, Resources};
pub use task::{
    ActorTraits, Failure, FailureKind, Outcome, Payload, ResultValue, StreamLimits, TaskKind, TaskResult,
    TaskSpec, TaskTemplate,
};
pub use time::{Span, Time};

/// The version of every protocol in this repository; peers that differ part at the handshake with one clear sentence.
pub const PROTOCOL_VERSION: u32 = 1;

/// A hash map whose iteration order depends only on its history, so that a simulation can be replayed.
pub type Map<K, V> = rustc_hash::FxHashMap<K, V>;
/// A hash set with the same property as [`Map`].
pub type Set<K> = rustc_hash::FxHashSet<K>;
