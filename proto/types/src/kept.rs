//! What the head writes into its store of actors and placement groups, for the head that comes after it.

use std::sync::Arc;

use crate::client_node::JobInfo;
use crate::{Attempt, Lease, NodeId, ObjectId, Refs, TaskResult, TaskSpec};

/// An actor whose submitter need not know its spec any more: it is detached, or may be made anew.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptActor {
    /// What makes it.
    pub spec: Arc<TaskSpec>,
    /// Of a detached one, what its executor knows of its job, which is its own (rule A6).
    pub info: Option<Arc<JobInfo>>,
    /// Its handle's value, once it was made.
    pub value: Option<TaskResult>,
    /// How often it was made anew.
    pub restarts: u32,
    /// Its last life that is known to have ended.
    pub ended: Option<Attempt>,
    /// Its checkpoints, the oldest first.
    pub states: Vec<ObjectId>,
}

/// A placement group that has, or had, its bundles.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptGroup {
    /// What makes it.
    pub spec: Arc<TaskSpec>,
    /// Of a detached one, what executors know of its job, which is its own.
    pub info: Option<Arc<JobInfo>>,
    /// Where each bundle is, with what it holds there.
    pub places: Vec<Option<(NodeId, Lease)>>,
}

/// An object with a copy in durable storage.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptDurable {
    /// Which.
    pub object: ObjectId,
    /// Who wrote it.
    pub writer: NodeId,
    /// In bytes.
    pub size: u64,
    /// The refs inside it.
    pub contains: Refs,
}
