//! What can go wrong between a client and its cluster.

use cluster_store::layout::LayoutError;
use cluster_types::{Failure, ObjectId};

/// The caller's interrupt check asked to stop waiting; it keeps its own reason (a Python exception, say).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

/// Called when a signal interrupts a wait, and a few times a second while one lasts: `PyErr_CheckSignals`. No lock of
/// this crate is held meanwhile.
pub type Interrupt<'a> = &'a mut dyn FnMut() -> Result<(), Interrupted>;

/// Why no connection came about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Nobody there, or nobody who speaks our protocol. Says what was tried and what to do.
    #[error("{0}")]
    Unreachable(String),
    /// The daemon refused: wrong token, other protocol or Python version. Its own sentence.
    #[error("the cluster refused the connection: {0}")]
    Rejected(String),
    /// This process lacks something: descriptors, threads, random numbers.
    #[error("cannot connect to the cluster: {0}")]
    Local(String),
    /// The interrupt check asked to stop.
    #[error("interrupted while connecting")]
    Interrupted,
}

/// Why a call on a [`crate::Client`] gave no answer. Failed tasks are not among these: see [`crate::Got::Failed`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ClientError {
    /// This process was forked from the one that connected.
    #[error(
        "this process was forked from process {parent}, and a cluster connection does not survive a fork: \
         create the child with the `spawn` start method, or use the cluster only in the parent"
    )]
    Forked {
        /// Who connected.
        parent: u32,
    },
    /// The daemon is gone, or its socket is. Says which, and what to do.
    #[error("{0}")]
    ConnectionLost(String),
    /// `disconnect` was called.
    #[error("this client has been shut down; call init() again before using the cluster")]
    Closed,
    /// The deadline passed.
    #[error("the deadline passed before the wait was over")]
    TimedOut,
    /// The interrupt check asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The task whose code waited is to stop.
    #[error("the running task was cancelled")]
    Cancelled,
    /// No handle on this object is known here.
    #[error(
        "object {0} is not known to this connection: its ref is of one that was shut down, or all handles are gone"
    )]
    NoHandle(ObjectId),
    /// The store has no room for a value and never will, or the value is too large to travel.
    #[error("{}", .0.message)]
    NoMemory(Failure),
    /// A value could not be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A question was answered with an error.
    #[error("{0}")]
    Query(String),
    /// Something this process asked for cannot be (a task that is not running, more results than may be).
    #[error("{0}")]
    Misuse(String),
    /// The system refused something small: a descriptor, a mapping.
    #[error("{0}")]
    System(String),
}
