//! What a task is and how it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{JobId, NodeId, ObjectId, Refs, Resources, TaskId};

/// What all calls of one remote function with the same options share. Interned: a million tasks hold one of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TaskTemplate {
    /// What people see: the function's qualified name, or the `name` option.
    pub name: Arc<str>,
    /// The pickled function (rule R6: functions are objects).
    pub function: ObjectId,
    /// What an attempt holds while it runs.
    pub resources: Resources,
    /// How many values it returns.
    pub num_returns: u32,
    /// How often it is tried again when it was not its own doing (executor or node lost); -1 is without end.
    pub max_retries: i32,
    /// Which of its own exceptions count as failures to retry; opaque to all but the executor. Empty: none.
    pub retry_exceptions: Bytes,
    /// Environment variables for its executor; part of what makes executors interchangeable.
    pub env_vars: BTreeMap<String, String>,
    /// Where it may run.
    pub strategy: Strategy,
}

/// Where a task may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Where its arguments are, then pack, then spread.
    #[default]
    Default,
    /// On as many nodes as there are.
    Spread,
    /// On this node; when it is gone, anywhere if `soft`, else it fails.
    Node {
        /// The node.
        id: NodeId,
        /// Whether another will do.
        soft: bool,
    },
}

/// The pickled arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// At most [`crate::INLINE_MAX`] bytes.
    Inline(Bytes),
    /// Larger: put into the store by the submitter, held by the task.
    Stored(ObjectId),
}

/// One call of a remote function.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSpec {
    /// Made by the submitter.
    pub id: TaskId,
    /// What it belongs to.
    pub job: JobId,
    /// What it shares with its like.
    pub template: Arc<TaskTemplate>,
    /// The arguments, with placeholders for `deps`.
    pub payload: Payload,
    /// Top-level refs among the arguments, in placeholder order; the executor gets their values (DEP-1).
    pub deps: Refs,
    /// Refs nested inside the arguments; they stay refs.
    pub borrowed: Refs,
}

impl TaskSpec {
    /// Every object the task holds while it is pending (REF-1): function, payload, arguments, nested refs.
    pub fn held(&self) -> impl Iterator<Item = ObjectId> + '_ {
        let payload = match self.payload {
            Payload::Stored(id) => Some(id),
            Payload::Inline(_) => None,
        };
        std::iter::once(self.template.function)
            .chain(payload)
            .chain(self.deps.iter().copied())
            .chain(self.borrowed.iter().copied())
    }

    /// Every object whose *value* must be on the node before the task starts: function, payload, `deps`.
    pub fn needed(&self) -> impl Iterator<Item = ObjectId> + '_ {
        let payload = match self.payload {
            Payload::Stored(id) => Some(id),
            Payload::Inline(_) => None,
        };
        std::iter::once(self.template.function).chain(payload).chain(self.deps.iter().copied())
    }
}

/// One value a task returned.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskResult {
    /// The value, or that it lies in the store of the node that ran the task.
    pub value: ResultValue,
    /// The refs inside it.
    pub contains: Refs,
}

/// Where a task's result is.
#[derive(Clone, Debug, PartialEq)]
pub enum ResultValue {
    /// At most [`crate::INLINE_MAX`] bytes.
    Inline(Bytes),
    /// In the store of the node that ran the task.
    Stored {
        /// In bytes.
        size: u64,
    },
}

/// How a task ended, for good.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// One per `num_returns`.
    Ok(SmallVec<[TaskResult; 1]>),
    /// All its results are this failure.
    Failed(Failure),
}

/// Why there is no value.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Which Python exception class it becomes.
    pub kind: FailureKind,
    /// One clear sentence: what happened, to which task, where, why.
    pub message: Arc<str>,
    /// For [`FailureKind::Exception`]: the pickled exception with its traceback. At most 64 KiB; empty otherwise.
    pub payload: Bytes,
    /// The task that failed first; dependants carry their argument's failure on.
    pub task: Option<TaskId>,
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The user's code raised.
    Exception,
    /// The executor's process ended.
    ExecutorDied,
    /// The node was lost.
    NodeLost,
    /// Somebody cancelled it.
    Cancelled,
    /// No node has, or can ever have, what it asks for.
    Unschedulable,
    /// The object was in no store any more.
    ObjectLost,
    /// The object was freed before this reader asked (its holders were gone).
    ObjectFreed,
    /// It can never fit the store.
    ObjectTooLarge,
    /// The disk is full while the store had to spill.
    OutOfDisk,
    /// A broken promise of ours or of a peer.
    Internal,
}
