//! The face of this crate.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_store::layout::Kind;
use cluster_types::client_node::{ExecutorFailure, LogLine, Welcome};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{Attempt, ClientId, GpuShare, JobId, ObjectId, Refs, TaskSpec, TaskTemplate};

use crate::{ClientError, ConnectError, ConnectOptions, Draft, Got, HandleSource, Interrupt, Parcel, Target};

/// One process's connection to its daemon. A cheap clone; the last one to go disconnects.
#[derive(Clone, Debug)]
pub struct Client {}

/// One call of a remote function.
#[derive(Debug)]
pub struct Call {
    /// What it shares with its like. Keep the `Arc` and reuse it: equal pointers are encoded once.
    pub template: Arc<TaskTemplate>,
    /// The arguments, with placeholders for `deps`. Of any size: a large one is put by itself.
    pub payload: Parcel,
    /// Top-level refs among the arguments, in placeholder order.
    pub deps: Refs,
    /// Refs nested inside the arguments.
    pub borrowed: Refs,
}

/// A task for this executor, claimed: nobody else will run this attempt.
#[derive(Debug)]
pub struct Task {
    /// Names this execution towards the daemon.
    pub tag: u64,
    /// Which try this is.
    pub attempt: Attempt,
    /// What to run.
    pub spec: Arc<TaskSpec>,
    /// The values of `spec.needed()` by id: function (only where this executor was not given it before), payload if it
    /// is stored, arguments. An inline payload is in `spec.payload`.
    pub values: Vec<(ObjectId, Got)>,
    /// The devices it may use.
    pub gpus: Vec<GpuShare>,
}

/// Something for a person to read.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A line printed by an executor of the job.
    Log(LogLine),
    /// A sentence from the cluster: a task that no node can run at present, say.
    Text(String),
}

/// Objects that became ready, as the tokens they were registered under. One per event loop: poll its descriptor,
/// then drain it.
#[derive(Clone, Debug)]
pub struct CompletionQueue {
    fd: Arc<OwnedFd>,
}

impl CompletionQueue {
    /// The tokens of all registered objects that became ready since the last call. Never waits.
    pub fn drain(&self) -> Vec<u64> {
        Vec::new()
    }
}

impl AsFd for CompletionQueue {
    /// Readable while there is something to drain.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Client {
    /// Connects and says hello. Waits at most `options.timeout`.
    ///
    /// # Errors
    /// A sentence that says what was tried, or the daemon's reason for refusing.
    pub fn connect(
        target: Target,
        options: ConnectOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<Client, ConnectError> {
        let _ = (target, options, interrupt);
        Err(ConnectError::Unreachable("not built yet".to_owned()))
    }

    /// Tells every client of this process that it is a forked child now: from here on calls say so and drops do
    /// nothing (rule P6). For `os.register_at_fork(after_in_child=…)`; callable in any state.
    pub fn mark_forked() {}

    /// This client's id: random, new after each connect.
    pub fn id(&self) -> ClientId {
        ClientId(0)
    }

    /// The job it belongs to.
    pub fn job(&self) -> JobId {
        JobId(0)
    }

    /// What the daemon told at the start: node, job, the job's description, store capacity, cores.
    pub fn welcome(&self) -> &Welcome {
        unreachable!("no client can be made yet")
    }

    /// Ends the connection: unsent messages are flushed, the daemon is told, the helper thread joined. Waiting calls
    /// end with [`ClientError::Closed`]. Views stay valid. Idempotent.
    pub fn disconnect(&self) {}

    /// Why the connection is of no use any more, if it is.
    pub fn broken(&self) -> Option<ClientError> {
        None
    }

    // ---- values ----

    /// Memory for a value of these lengths. Waits where the store has no room at present, and goes on when it has.
    ///
    /// # Errors
    /// [`ClientError::NoMemory`] if it can never fit.
    pub fn reserve(
        &self,
        kind: Kind,
        in_band_len: usize,
        buffer_lens: &[usize],
        interrupt: Interrupt<'_>,
    ) -> Result<Draft, ClientError> {
        let _ = (kind, in_band_len, buffer_lens, interrupt);
        Err(ClientError::Closed)
    }

    /// Makes an object of a value, with one handle. `contains` are the refs inside it; each needs a handle now.
    /// Never waits.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn put(&self, value: Parcel, contains: &[ObjectId]) -> Result<ObjectId, ClientError> {
        let _ = (value, contains);
        Err(ClientError::Closed)
    }

    /// Submits a task. Each result has one handle. Waits only while this process is more than 64 MiB ahead of its
    /// daemon.
    ///
    /// # Errors
    /// If the connection is of no use, or the wait was interrupted (then nothing was submitted).
    pub fn submit(&self, call: Call, interrupt: Interrupt<'_>) -> Result<Refs, ClientError> {
        let _ = (call, interrupt);
        Err(ClientError::Closed)
    }

    // ---- handles ----

    /// One more handle on an object.
    pub fn add_handle(&self, object: ObjectId, source: HandleSource) {
        let _ = (object, source);
    }

    /// As [`Client::add_handle`] for each, under one lock.
    pub fn add_handles(&self, objects: &[ObjectId], source: HandleSource) {
        let _ = (objects, source);
    }

    /// One handle less.
    pub fn drop_handle(&self, object: ObjectId) {
        let _ = object;
    }

    /// As [`Client::drop_handle`] for each, under one lock.
    pub fn drop_handles(&self, objects: &[ObjectId]) {
        let _ = objects;
    }

    // ---- reading and waiting ----

    /// Whether the object's task has ended, or its value is known to exist. Never waits, never reads the socket.
    pub fn is_ready(&self, object: ObjectId) -> bool {
        let _ = object;
        false
    }

    /// The value, if it is in this process or on this node already. Never waits.
    pub fn try_get(&self, object: ObjectId) -> Option<Got> {
        let _ = object;
        None
    }

    /// All these values, in order.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], [`ClientError::Interrupted`], [`ClientError::NoHandle`], or a broken connection.
    pub fn get(
        &self,
        objects: &[ObjectId],
        deadline: Option<Instant>,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<Got>, ClientError> {
        let _ = (objects, deadline, interrupt);
        Err(ClientError::Closed)
    }

    /// Waits until `num_ready` of the objects are ready or the deadline passes, and returns the indices of ready ones
    /// in ascending order, at most `num_ready`. With `fetch`, ready means: the value is on this node.
    ///
    /// # Errors
    /// As [`Client::get`], but a passed deadline is none.
    pub fn wait(
        &self,
        objects: &[ObjectId],
        num_ready: usize,
        deadline: Option<Instant>,
        fetch: bool,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<usize>, ClientError> {
        let _ = (objects, num_ready, deadline, fetch, interrupt);
        Err(ClientError::Closed)
    }

    /// A queue for one event loop.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn completion_queue(&self) -> Result<CompletionQueue, ClientError> {
        Err(ClientError::Closed)
    }

    /// Puts `token` into the queue once `try_get` of the object will answer (at once, if it already does), or once the
    /// connection is of no use any more.
    ///
    /// # Errors
    /// [`ClientError::NoHandle`], or a broken connection.
    pub fn on_ready(&self, object: ObjectId, queue: &CompletionQueue, token: u64) -> Result<(), ClientError> {
        let _ = (object, queue, token);
        Err(ClientError::Closed)
    }

    // ---- people ----

    /// Sends a line that user code printed.
    pub fn log(&self, line: LogLine) {
        let _ = line;
    }

    /// The next thing to print; `Ok(None)` after `timeout`. For a thread of its own.
    ///
    /// # Errors
    /// Once the connection has ended and all was printed.
    pub fn next_notice(&self, timeout: Duration) -> Result<Option<Notice>, ClientError> {
        let _ = timeout;
        Err(ClientError::Closed)
    }

    /// Asks the cluster about its state.
    ///
    /// # Errors
    /// [`ClientError::Query`] with the reason, or as [`Client::get`].
    pub fn query(
        &self,
        query: Query,
        deadline: Option<Instant>,
        interrupt: Interrupt<'_>,
    ) -> Result<QueryReply, ClientError> {
        let _ = (query, deadline, interrupt);
        Err(ClientError::Closed)
    }

    // ---- executors ----

    /// The next task to run, claimed; `None` when no more will come: end the process. Call it from the thread that
    /// runs the tasks; a `get` or `wait` of that thread lends the task's CPU to others while it blocks.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub fn next_task(&self, interrupt: Interrupt<'_>) -> Result<Option<Task>, ClientError> {
        let _ = interrupt;
        Err(ClientError::Closed)
    }

    /// User code of the task begins: from here on it can be cancelled.
    pub fn enter_user_code(&self, tag: u64) {
        let _ = tag;
    }

    /// User code has ended: nothing is raised any more.
    pub fn leave_user_code(&self) {}

    /// In the signal handler: whether the running task is to be cancelled. True once for each request.
    pub fn take_cancel(&self) -> bool {
        false
    }

    /// Who cancelled the task and why, if the daemon said so.
    pub fn cancel_reason(&self, tag: u64) -> Option<String> {
        let _ = tag;
        None
    }

    /// Reports how a task ended: one value per result with the refs inside it (each with a handle now; drop those
    /// after this), or the exception. Never waits.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn complete(
        &self,
        tag: u64,
        result: Result<Vec<(Parcel, Refs)>, ExecutorFailure>,
        micros: u64,
    ) -> Result<(), ClientError> {
        let _ = (tag, result, micros);
        Err(ClientError::Closed)
    }
}
