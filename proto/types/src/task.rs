//! What a task is and how it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{JobId, NodeId, ObjectId, Refs, Resources, TaskId};

/// What all calls of one remote function with the same options share. Interned: a million tasks hold one of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
    /// What running it means.
    pub kind: TaskKind,
    /// It yields items while it runs, each an object of its own ([`TaskId::item`]), and its one result is there when it
    /// has ended.
    pub stream: Option<StreamLimits>,
    /// Other requests that would do as well as `resources`; it gets whichever is free first.
    pub variants: Vec<Resources>,
    /// How long it waits before it is tried again after an exception of its own.
    pub backoff: Backoff,
    /// Its results outlive every node: it has ended only when a copy of each is in durable storage.
    pub durable: bool,
}

impl TaskTemplate {
    /// Whether a task that ended well may run once more to make again what it left in the stores, should that be lost.
    pub fn can_run_again(&self) -> bool {
        self.kind == TaskKind::Function && self.max_retries != 0 && self.variants.is_empty()
    }
}

/// How long a task that raised waits before its next try: a random part of a time that grows with each try. All zero:
/// not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Backoff {
    /// The most that the first retry waits, in milliseconds.
    pub first_ms: u32,
    /// By how much that grows with each try, in hundredths: 200 doubles it.
    pub growth: u32,
    /// Where it stops growing, in milliseconds.
    pub most_ms: u32,
}

/// How far a task that yields items may be ahead of who takes them. Zero: as far as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamLimits {
    /// Items yielded and not taken.
    pub max_items: u32,
    /// Their bytes; each counts [`ITEM_OVERHEAD`] more than its value has. One item of any size may be there.
    pub max_bytes: u64,
}

/// What an item that was not taken counts against [`StreamLimits::max_bytes`] beside its value.
pub const ITEM_OVERHEAD: u64 = 128;

/// What running a task means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// A function is called, in any executor.
    #[default]
    Function,
    /// An object of a class is made, in an executor that stays with it: an actor. The class is the template's
    /// `function`; the task's one result is the actor's handle. Who can reach that result has a handle (rule A1), and
    /// when nobody can any more, the actor ends.
    Actor(Arc<ActorTraits>),
    /// A method of an actor is called, in the actor's executor. The template's `function` is the actor's handle: an
    /// unanswered call holds it (rule A1). It asks for no resources; `max_retries` is the actor's `max_task_retries`.
    Method {
        /// The method's name.
        method: Arc<str>,
        /// The concurrency group; empty: the default one.
        group: Arc<str>,
        /// The actor runs several calls at once, as far as the caller knows: none has to wait for another's end.
        concurrent: bool,
    },
    /// Resources are set aside, all or none, for tasks and actors that name the group: no code runs. The task ends when
    /// all are there; its one result, whose value is its payload, names the group from the submission on. The head holds
    /// that object until the group is removed (by `Kill`, or with its job).
    Group(Arc<GroupTraits>),
}

impl TaskKind {
    /// Whether what it makes outlives the job of its maker.
    pub fn is_detached(&self) -> bool {
        match self {
            TaskKind::Actor(traits) => traits.detached,
            TaskKind::Group(traits) => traits.detached,
            TaskKind::Function | TaskKind::Method { .. } => false,
        }
    }
}

/// What a placement group is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GroupTraits {
    /// Unique among groups of its namespace until it is removed; empty: none.
    pub name: String,
    /// Where its name counts.
    pub namespace: String,
    /// Lives until it is removed, whoever made it; its job is one of its own then (rule A6).
    pub detached: bool,
    /// How its bundles lie on nodes.
    pub strategy: GroupStrategy,
    /// What is set aside; each lies on one node.
    pub bundles: Vec<Resources>,
}

/// How the bundles of a group lie on nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GroupStrategy {
    /// On as few nodes as they fit.
    #[default]
    Pack,
    /// On as many as there are.
    Spread,
    /// On one.
    StrictPack,
    /// Each on another.
    StrictSpread,
}

impl GroupStrategy {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            GroupStrategy::Pack => "PACK",
            GroupStrategy::Spread => "SPREAD",
            GroupStrategy::StrictPack => "STRICT_PACK",
            GroupStrategy::StrictSpread => "STRICT_SPREAD",
        }
    }
}

/// What an actor is, beside what its creating task says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ActorTraits {
    /// Unique in its namespace while the actor lives; empty: none.
    pub name: String,
    /// Where its name counts.
    pub namespace: String,
    /// Lives until it is killed, whoever holds handles.
    pub detached: bool,
    /// How often it is made anew when it died by no wish of anybody; -1 is without end.
    pub max_restarts: i32,
    /// Calls of the default group that run at once; more than 1 gives up the order of a caller's calls.
    pub max_concurrency: u32,
    /// Further groups, with how many of their calls run at once.
    pub groups: BTreeMap<String, u32>,
    /// Its methods are coroutines and run on one event loop.
    pub is_async: bool,
    /// What a client needs to make a handle of the actor's id; opaque to all but the SDK.
    pub handle: Bytes,
}

impl ActorTraits {
    /// Whether one call runs at a time, each caller's in the order it made them (ORDER-1).
    pub fn in_order(&self) -> bool {
        self.max_concurrency <= 1 && self.groups.is_empty() && !self.is_async
    }

    /// How many calls it can have begun at once, over all its groups.
    pub fn calls_at_once(&self) -> u32 {
        self.groups.values().fold(self.max_concurrency.max(1), |sum, group| sum.saturating_add(*group))
    }
}

/// Where a task may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
    /// On nodes whose labels match.
    Labels(Arc<LabelSelector>),
    /// In what a placement group set aside.
    Group(InGroup),
}

impl Strategy {
    /// The placement group that it names.
    pub fn group(&self) -> Option<InGroup> {
        match self {
            Strategy::Group(place) => Some(*place),
            _ => None,
        }
    }
}

/// A place in a placement group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InGroup {
    /// The group: result 0 of the task that made it.
    pub group: ObjectId,
    /// Which bundle; `None`: any that has room.
    pub bundle: Option<u32>,
    /// What the task submits goes into the group too, unless it says otherwise. Only SDKs read it.
    pub capture: bool,
}

/// Which nodes, by their labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    /// All of these must hold.
    pub hard: Vec<LabelRule>,
    /// A node where all of these hold too goes before others.
    pub soft: Vec<LabelRule>,
}

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelRule {
    /// The label's key.
    pub key: String,
    /// What must be of its value.
    pub rule: LabelMatch,
}

/// What must be of a label's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LabelMatch {
    /// It is one of these.
    In(Vec<String>),
    /// It is none of these, or there is no such label.
    NotIn(Vec<String>),
    /// There is one.
    Exists,
    /// There is none.
    DoesNotExist,
}

impl LabelRule {
    /// Whether it holds of these labels.
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match &self.rule {
            LabelMatch::In(values) => value.is_some_and(|value| values.contains(value)),
            LabelMatch::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            LabelMatch::Exists => value.is_some(),
            LabelMatch::DoesNotExist => value.is_none(),
        }
    }
}

impl std::fmt::Display for LabelRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.rule {
            LabelMatch::In(values) => write!(f, "{} in ({})", self.key, values.join(", ")),
            LabelMatch::NotIn(values) => write!(f, "{} not in ({})", self.key, values.join(", ")),
            LabelMatch::Exists => write!(f, "{} exists", self.key),
            LabelMatch::DoesNotExist => write!(f, "no {}", self.key),
        }
    }
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
    /// The task whose code submitted this one, unless a driver's own did.
    pub parent: Option<TaskId>,
    /// Top-level refs among the arguments, in placeholder order; the executor gets their values (DEP-1).
    pub deps: Refs,
    /// Refs nested inside the arguments; they stay refs.
    pub borrowed: Refs,
}

impl TaskSpec {
    /// Every object the task holds while it is pending (REF-1): function, payload, arguments, nested refs, and the
    /// placement group it names.
    pub fn held(&self) -> impl Iterator<Item = ObjectId> + '_ {
        let function = match self.template.kind {
            TaskKind::Group(_) => None,
            _ => Some(self.template.function),
        };
        let payload = match self.payload {
            Payload::Stored(id) => Some(id),
            Payload::Inline(_) => None,
        };
        function
            .into_iter()
            .chain(payload)
            .chain(self.deps.iter().copied())
            .chain(self.borrowed.iter().copied())
            .chain(self.template.strategy.group().map(|place| place.group))
    }

    /// Every object whose *value* must be on the node before the task starts: function (not a method's: that is the
    /// actor itself), payload, `deps`.
    pub fn needed(&self) -> impl Iterator<Item = ObjectId> + '_ {
        let payload = match self.payload {
            Payload::Stored(id) => Some(id),
            Payload::Inline(_) => None,
        };
        self.function().into_iter().chain(payload).chain(self.deps.iter().copied())
    }

    /// The pickled function or class, whose bytes nodes keep beyond the task. A call has none, though its actor's handle
    /// may be among its arguments; nor has a group.
    pub fn function(&self) -> Option<ObjectId> {
        match self.template.kind {
            TaskKind::Function | TaskKind::Actor(_) => Some(self.template.function),
            TaskKind::Method { .. } | TaskKind::Group(_) => None,
        }
    }

    /// Whether its results are to be in durable storage before it has ended.
    pub fn is_durable(&self) -> bool {
        self.template.durable && self.template.kind == TaskKind::Function
    }

    /// The actor that this is a call of.
    pub fn called_actor(&self) -> Option<ObjectId> {
        matches!(self.template.kind, TaskKind::Method { .. }).then_some(self.template.function)
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

impl ResultValue {
    /// Its size, and its bytes if they came with it.
    pub fn into_parts(self) -> (u64, Option<Bytes>) {
        match self {
            Self::Inline(bytes) => (bytes.len() as u64, Some(bytes)),
            Self::Stored { size } => (size, None),
        }
    }
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
    /// The task that failed first; dependants carry their argument's failure on. Of [`FailureKind::ActorDied`] and
    /// [`FailureKind::ActorUnavailable`], what made the actor.
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
    /// The actor that was called is dead; the message says why.
    ActorDied,
    /// The actor that was called died or was cut off and will be back; the call may have run, and may not be tried again.
    ActorUnavailable,
    /// The placement group that it named was removed.
    GroupRemoved,
    /// Its node's memory ran out, or it took more than it had asked for.
    OutOfMemory,
    /// A broken promise of ours or of a peer.
    Internal,
}
