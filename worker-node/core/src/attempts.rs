//! Attempts that the head sent here.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::{Amount, Attempt, Lease, Map, TaskId, TaskSpec};

use crate::catalogue::{PoolKey, ShapeKey};
use crate::streams::Taken;

/// Where an attempt stands on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Arguments are on their way here (DEP-1).
    Arguments,
    /// It can start; it is in its pool's queue (with a lease) or its shape's (without).
    Ready,
    /// Sent to an executor under this tag.
    Sent { executor: u32, tag: u64 },
}

/// An attempt on this node.
#[derive(Clone, Debug)]
pub(crate) struct Assigned {
    pub(crate) spec: Arc<TaskSpec>,
    pub(crate) attempt: Attempt,
    /// `None`: sent ahead; it starts only by inheriting, or by `Grant` (rule S2).
    pub(crate) lease: Option<Lease>,
    pub(crate) stage: Stage,
    /// The head wants it back; it goes when it is certain that no executor has it.
    pub(crate) calling_back: bool,
    /// It was cancelled, for this reason.
    pub(crate) cancelled: Option<String>,
    pub(crate) shape: ShapeKey,
    pub(crate) pool: PoolKey,
    /// It waits in `get`: its CPU may be used meanwhile (rule S4).
    pub(crate) lends_cpu: bool,
    /// It is among what waits for memory for its arguments (rule P5).
    pub(crate) admission: bool,
    /// Its arguments are pinned.
    pub(crate) pinned: bool,
    /// Of the items that it yields.
    pub(crate) taken: Taken,
    /// How many those are so far.
    pub(crate) yielded: u32,
}

impl Assigned {
    /// Cores that it takes up now.
    pub(crate) fn cpu(&self) -> Amount {
        match self.lease.is_some() && !self.lends_cpu {
            true => self.spec.template.resources.cpu,
            false => Amount::ZERO,
        }
    }
}

/// Attempts by task: the head has one current attempt of a task at most (TASK-2).
pub(crate) type Attempts = Map<TaskId, Assigned>;
/// Ready attempts that wait for a lease or an executor.
pub(crate) type Queue = VecDeque<TaskId>;
