//! What can go wrong.

use client_runtime::{ClientError, ConnectError};
use cluster_types::{Failure, FailureKind};

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A task failed, or its value is no more.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// No connection came about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection, or what was asked of it, is of no use.
    #[error(transparent)]
    Client(ClientError),
    /// The deadline passed.
    #[error("the deadline passed before the value was there")]
    TimedOut,
    /// The task whose code this is was cancelled. Return it: the task ends as cancelled.
    #[error("the running task was cancelled")]
    Cancelled,
    /// A value could not be written or read: of another type or language than was expected, say.
    #[error("{0}")]
    Value(String),
    /// This program has no cluster, or asks what cannot be.
    #[error("{0}")]
    Misuse(String),
}

/// How a task failed. Its message names the task, its attempt, node and process, and says why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct TaskError {
    /// What kind of failure.
    pub kind: FailureKind,
    /// What happened, where and why.
    pub message: String,
    /// Where the code panicked, if it is Rust's and did.
    pub backtrace: Option<String>,
    /// The task that failed first.
    pub task: Option<String>,
}

/// Begins the backtrace among what a failed Rust task tells. No pickle begins so.
pub(crate) const BACKTRACE: &[u8] = b"rust backtrace\n";

impl TaskError {
    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.kind == FailureKind::Cancelled
    }
}

impl From<&Failure> for TaskError {
    fn from(failure: &Failure) -> TaskError {
        let backtrace = failure.payload.strip_prefix(BACKTRACE);
        TaskError {
            kind: failure.kind,
            message: failure.message.to_string(),
            backtrace: backtrace.map(|text| String::from_utf8_lossy(text).into_owned()),
            task: failure.task.map(|task| task.to_string()),
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Error {
        match error {
            ClientError::TimedOut => Error::TimedOut,
            ClientError::Cancelled | ClientError::Interrupted => Error::Cancelled,
            other => Error::Client(other),
        }
    }
}
