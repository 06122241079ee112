//! What a client (driver or executor) and its daemon say to each other (rule T1: to exactly one daemon).
//!
//! Each direction is one ordered stream (rule T3). Neither side waits for a reply to anything: questions carry the id
//! of what they ask about, and answers come when they are known.

use std::sync::Arc;

use bytes::Bytes;

use crate::query::{Query, QueryReply};
use crate::{
    Attempt, ClientId, Failure, GpuShare, JobId, Location, NodeId, ObjectId, Outcome, Refs, ResultValue,
    SegmentId, TaskId, TaskSpec, Value,
};

/// The first message of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientHello {
    /// [`crate::PROTOCOL_VERSION`] of the client.
    pub protocol: u32,
    /// The cluster's secret.
    pub token: String,
    /// Random, made by the process.
    pub client: ClientId,
    /// The process.
    pub pid: u32,
    /// What it is.
    pub kind: ClientKind,
    /// Whether it can map the daemon's segments (it came by Unix socket).
    pub shares_memory: bool,
}

/// What a client is.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientKind {
    /// A program of a user; it brings a job.
    Driver {
        /// Random.
        job: JobId,
        /// What executors of this job need to know.
        info: Arc<JobInfo>,
    },
    /// A process started by the daemon; `executor` is the number it was started with.
    Executor {
        /// Given on its command line.
        executor: u32,
    },
    /// Asks questions only (the `cluster` command).
    Observer,
}

/// What executors of a job need to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct JobInfo {
    /// For people: the script's name.
    pub name: String,
    /// `major.minor` of the driver's Python; daemons refuse a job whose version their interpreter has not. Empty: none.
    pub python_version: String,
    /// The driver's interpreter; used where it exists, else the daemon's own.
    pub python: String,
    /// Directories the driver imports from (its script's and its own changes to `sys.path`).
    pub sys_path: Vec<String>,
    /// Executors start there, where it exists.
    pub working_dir: String,
    /// `runtime_env={"env_vars": …}` of `init`.
    pub env_vars: std::collections::BTreeMap<String, String>,
    /// Whether executors' prints go to the driver.
    pub log_to_driver: bool,
    /// Names of this job live in it.
    pub namespace: String,
}

/// What a client says to its daemon.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientToNode {
    /// Run this. The submitter holds the results from now on (rule R2). Every object the spec names that the client
    /// itself put was `Put` and `Escape`d before, in this stream.
    Submit(TaskSpec),
    /// A value of the client's own is complete. For a range in its own lease: sent at the seal, so that the daemon can
    /// spill it. For inline bytes: sent just before `Escape`. From a client without shared memory, `Bytes` of any
    /// length.
    Put {
        /// A put of this client.
        object: ObjectId,
        /// Where it is.
        value: PutValue,
        /// The refs inside it; each escaped before, or held.
        contains: Refs,
    },
    /// These objects of the client's own, `Put` before, become known beyond this process: the head is told.
    Escape(Vec<ObjectId>),
    /// The process has its first handle on each of these (not sent for own results and own puts: those it holds from
    /// the start). Rule R1: precedes the drop of whatever the refs came out of.
    Hold(Vec<ObjectId>),
    /// The process's last handle on each of these is gone. Ends the hold that `Hold`, `Submit` or `Escape` began, or
    /// (never escaped) the object itself, whose range the client reuses at once.
    Drop(Vec<ObjectId>),
    /// Send `Ready` for each, as soon as its value is known and, if stored, is on this node. Not needed for results of
    /// own tasks that arrive inline with `Finished`.
    Get(Vec<ObjectId>),
    /// The client keeps nothing of these locations any more: no handle, no view (rule P1).
    Release(Vec<ObjectId>),
    /// Lease me a segment in which this many bytes fit. Answered by `Segment` (writable) or `NoMemory`.
    RequestMemory {
        /// In bytes.
        bytes: u64,
    },
    /// From a client without shared memory: bytes for a segment of its lease, which hold one value. They precede the
    /// `Put` that says what lies there; with it the lease ends.
    Write {
        /// A segment that the client was told of as writable.
        segment: SegmentId,
        /// Where in it they begin.
        offset: u64,
        /// At most [`crate::PART`].
        bytes: Bytes,
    },
    /// These segments of my lease are wholly free and unmapped; take them back.
    ReturnMemory(Vec<SegmentId>),
    /// Answer to `Evict`.
    Evicted {
        /// The object.
        object: ObjectId,
        /// False: something in this process still views it, the range stays.
        freed: bool,
    },
    /// An executor's task cannot go on until some of these are ready; its CPU may be used meanwhile (rule S4). What was
    /// pipelined behind it and not started is handed back by this (rule S3).
    Blocked {
        /// The running task.
        tag: u64,
        /// What it waits for.
        on: Vec<ObjectId>,
    },
    /// It goes on.
    Unblocked {
        /// The running task.
        tag: u64,
    },
    /// An executor finished the task it was given under `tag`.
    Completed(Completion),
    /// The task that an executor runs yields its next item.
    Yielded(YieldedItem),
    /// The submitter of a task that yields has taken this many of its items, counted from the first. Said now and then
    /// where the task has limits, and when nobody will take any more.
    Taken {
        /// A task of this client.
        task: TaskId,
        /// How many.
        items: u32,
        /// Nobody will take any more: the task ends at its next yield.
        closed: bool,
    },
    /// Cancel the task that makes this object; its results become [`crate::FailureKind::Cancelled`], unless it has ended.
    Cancel(Cancellation),
    /// End the actor, or remove the placement group.
    Kill {
        /// Its handle, or the group's object.
        actor: ObjectId,
        /// Whether it may be made anew, if it has restarts left.
        restart: bool,
    },
    /// Connect me with the executor of this actor, if it lives on this node: calls then go straight to it. Answered by
    /// `Calls` or `NoCalls`.
    OpenCalls(ObjectId),
    /// A call that the client sent, or will send, to its actor by itself; it is about to name its result. What comes of
    /// it is said by `Put` and `Escape`, by `PutFailed`, by the executor's `Answered`, or it is `SubmitAgain`.
    Expect(TaskSpec),
    /// A result of the client's own, of a call that went straight to its actor, is this failure.
    PutFailed {
        /// The result.
        object: ObjectId,
        /// Why there is no value.
        failure: Failure,
    },
    /// A call that went straight to an actor that is no more: it goes by the head now, whether `Expect`ed or not.
    SubmitAgain {
        /// The call.
        spec: TaskSpec,
        /// It may have run, so that was one of its tries: why no answer came.
        may_have_run: Option<Arc<str>>,
    },
    /// Stop a call that went straight to its actor.
    CancelCall {
        /// The actor.
        actor: ObjectId,
        /// The call.
        task: TaskId,
        /// For the error.
        reason: String,
        /// What it submitted, too.
        recursive: bool,
    },
    /// An actor's executor: a call that came straight from a client of this node returned something that cannot go back
    /// the same way, because it lies in the store, has refs inside, or must not overtake what this process said.
    Answered {
        /// The call.
        task: TaskId,
        /// As in [`Completion`].
        result: Result<Vec<ExecutorResult>, Failure>,
    },
    /// Call an actor past the head, through the daemons: `FarCalls` said that it may be done so.
    CallFar(TaskSpec),
    /// An actor's executor: the answer to a call that came by `Called`. Small, without refs, and of a call during which
    /// this process told its daemon nothing; others are `Answered`.
    AnswerFar {
        /// The call.
        task: TaskId,
        /// As its caller is told.
        outcome: FinishedOutcome,
    },
    /// An actor's executor: calls that came straight from clients and have ended, for the task table.
    Called(Vec<CallReport>),
    /// An actor's executor: `exit_actor` was called in a call that came straight from a client.
    Left {
        /// For the errors of its calls.
        reason: String,
    },
    /// A whole line that user code printed.
    Log(LogLine),
    /// A question; answered by `Reply` with the same number.
    Query {
        /// Chosen by the client.
        number: u64,
        /// The question.
        query: Query,
    },
    /// The client ends by itself; everything it held is dropped.
    Goodbye,
}

/// A call that went straight from its caller to its actor, and has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct CallReport {
    /// The call.
    pub task: TaskId,
    /// For people.
    pub name: Arc<str>,
    /// How long user code ran, in microseconds.
    pub micros: u64,
    /// Why it failed; `None`: it did not.
    pub error: Option<Arc<str>>,
}

/// The wish that a task ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancellation {
    /// Any of its results.
    pub object: ObjectId,
    /// End the executor's process if it runs.
    pub force: bool,
    /// The tasks it submitted, too, and theirs.
    pub recursive: bool,
    /// Who asks and why, for the error: `cancelled by the driver`.
    pub reason: String,
}

/// The bytes of something put.
#[derive(Clone, Debug, PartialEq)]
pub enum PutValue {
    /// The bytes themselves.
    Inline(Bytes),
    /// In a segment leased to the client.
    Stored(Location),
}

/// How an execution ended, as the executor tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// From `Run`.
    pub tag: u64,
    /// What came of it. Stored results lie in the executor's own lease.
    pub result: Result<Vec<ExecutorResult>, ExecutorFailure>,
    /// How long user code ran, in microseconds.
    pub micros: u64,
}

/// One value returned, as the executor tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecutorResult {
    /// Where it is.
    pub value: PutValue,
    /// The refs inside it; each escaped before, or held.
    pub contains: Refs,
}

/// An item that a task yields, as the executor tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct YieldedItem {
    /// From `Run`.
    pub tag: u64,
    /// Counts from 0 in each attempt, without holes.
    pub index: u32,
    /// The value. A stored one lies in the executor's own lease.
    pub item: ExecutorResult,
}

/// An exception, as the executor tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecutorFailure {
    /// What happened; its `kind` is usually `Exception`.
    pub failure: Failure,
    /// Whether `retry_exceptions` names it.
    pub retryable: bool,
}

/// A line that user code printed.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// The job it belongs to.
    pub job: JobId,
    /// The task that was running, if one was, with its name.
    pub task: Option<(TaskId, Arc<str>)>,
    /// The printing process.
    pub pid: u32,
    /// Its node.
    pub node: NodeId,
    /// Whether it went to stderr.
    pub stderr: bool,
    /// Without the newline.
    pub text: String,
}

/// What a daemon says to its client.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeToClient {
    /// The hello was accepted.
    Welcome(Welcome),
    /// The hello, or something later, was not; the stream ends after this. One clear sentence.
    Rejected {
        /// What is wrong and what to do.
        reason: String,
    },
    /// A task the client submitted reached its end (TASK-1: told once).
    Finished {
        /// The task.
        task: TaskId,
        /// Results are inline, or stored somewhere in the cluster (`Get` brings them here).
        outcome: FinishedOutcome,
    },
    /// A task the client submitted has yielded this item; the client holds it from now on. Items of a task come in
    /// order, before its `Finished`; where the head forgot what it knew, they begin anew.
    Item {
        /// The task.
        task: TaskId,
        /// Which item.
        index: u32,
        /// As for a result.
        value: ResultValue,
    },
    /// As the submitter said it, of the task under this tag (executors only).
    Taken {
        /// From `Run`, which precedes this.
        tag: u64,
        /// How many items count as taken.
        items: u32,
        /// Nobody will take any more.
        closed: bool,
    },
    /// A value asked for with `Get`.
    Ready {
        /// The object.
        object: ObjectId,
        /// Its value. A `Local` location is the client's until it says `Release`.
        value: Value,
    },
    /// For a client without shared memory: the next bytes of a large value that it asked for. With the last of them the
    /// value is there, as with `Ready`; or a `Ready` says why no more will come.
    Part {
        /// The object.
        object: ObjectId,
        /// Where in the value they begin.
        offset: u64,
        /// Bytes of the whole value.
        len: u64,
        /// At most [`crate::PART`], not empty.
        bytes: Bytes,
    },
    /// A descriptor of a segment comes with this message (SCM_RIGHTS), unless the client shares no memory. Writable: it
    /// is leased to the client. Else it precedes the first location in it that the client is told.
    Segment {
        /// Its name.
        segment: SegmentId,
        /// In bytes.
        len: u64,
        /// Whether it is leased to the client.
        writable: bool,
    },
    /// The request for this many bytes cannot be granted, ever.
    NoMemory {
        /// As requested.
        bytes: u64,
        /// Why.
        failure: Failure,
    },
    /// These ranges of the client's lease are free again: nobody can reach or sees what was there.
    RangesFreed(Vec<Location>),
    /// The object was copied to disk; give its range back if nothing here views it. Answered by `Evicted`.
    Evict {
        /// The object.
        object: ObjectId,
    },
    /// Give back segments that are wholly free.
    RecallMemory,
    /// Execute this (executors only).
    Run(Box<RunTask>),
    /// Stop the task under this tag if it is the one running (rule E3).
    Cancel {
        /// From `Run`, or [`direct_tag`].
        tag: u64,
        /// Who asked, for the error.
        reason: String,
        /// What it submitted is to be cancelled by this process. (Of tasks that came from the head, the head does it.)
        recursive: bool,
    },
    /// With a descriptor: a socket whose other end the actor's executor has. Calls may be sent on it as `Submit`; they
    /// are answered on it by `Finished`, or by the daemon.
    Calls {
        /// The actor.
        actor: ObjectId,
        /// It takes calls one after the other.
        in_order: bool,
    },
    /// The actor is not on this node, or this client can share no socket.
    NoCalls {
        /// The actor.
        actor: ObjectId,
    },
    /// The actor that `Calls` named is no more, and the head knows. Calls that were not answered are the client's again.
    CallsEnded {
        /// The actor.
        actor: ObjectId,
        /// For errors: `actor NAME (ID) died: …`.
        why: String,
        /// Answers may be lost: of those that were not answered, all may have run.
        lost: bool,
    },
    /// Calls to this actor may be sent as `CallFar`: the daemons pass them on to each other, and the head is not on
    /// their way. They are answered by `FarAnswer` or `Finished`.
    FarCalls {
        /// The actor.
        actor: ObjectId,
        /// It takes calls one after the other.
        in_order: bool,
        /// So many may be unanswered.
        window: u32,
    },
    /// The answer to a `CallFar`. Nobody but the two knows it; what the head knows comes as `Finished`.
    FarAnswer {
        /// The call.
        task: TaskId,
        /// What it came to.
        outcome: FinishedOutcome,
    },
    /// For an actor's executor: a call that came past the head from a client that has no socket to this process.
    Called {
        /// The actor takes calls one after the other.
        in_order: bool,
        /// The call.
        spec: Box<TaskSpec>,
    },
    /// For an actor's executor: calls of this client that came by `Called` and have not begun are not to begin: they are
    /// the client's again.
    ForgetCalls(ClientId),
    /// Somebody wants this call of the client's own to end, which the head does not have.
    CancelOwn {
        /// The call.
        task: TaskId,
        /// For the error.
        reason: String,
        /// What it submitted, too.
        recursive: bool,
    },
    /// With a descriptor, for an actor's executor: calls of this client come on it.
    Serve {
        /// The caller.
        caller: ClientId,
        /// The actor takes calls one after the other.
        in_order: bool,
    },
    /// This caller is gone: nobody reads answers to it.
    CallerGone(ClientId),
    /// No more work will come: end.
    Exit,
    /// Lines printed by executors of the client's job.
    Log(Vec<LogLine>),
    /// Something a person should know: a task that no node can run at present, say.
    Notice {
        /// A sentence.
        text: String,
    },
    /// An answer.
    Reply {
        /// From `Query`.
        number: u64,
        /// The answer, or why there is none.
        reply: Result<QueryReply, String>,
    },
}

/// What an accepted client should know.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    /// The daemon's node.
    pub node: NodeId,
    /// The job the client belongs to.
    pub job: JobId,
    /// The job's description (executors need it).
    pub info: Arc<JobInfo>,
    /// The largest object the store can ever hold, in bytes.
    pub store_capacity: u64,
    /// Cores of the node; a driver spins only when there are at least two (rule S8).
    pub cores: u32,
}

/// How a task ended, as its submitter is told.
#[derive(Clone, Debug, PartialEq)]
pub enum FinishedOutcome {
    /// One per result.
    Ok(Vec<ResultValue>),
    /// All results are this.
    Failed(Failure),
}

impl From<&Outcome> for FinishedOutcome {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Ok(results) => {
                FinishedOutcome::Ok(results.iter().map(|result| result.value.clone()).collect())
            }
            Outcome::Failed(failure) => FinishedOutcome::Failed(failure.clone()),
        }
    }
}

/// In a `Cancel`: no execution's tag. The executor's actor is to keep its state and ask to be moved, if it can.
pub const MOVE_TAG: u64 = u64::MAX;

/// In [`RunTask::slot`]: a call of an actor that runs several at once.
pub const NO_SLOT: u16 = u16::MAX;

/// In what an executor keeps of a task: a call that came straight from its caller, of an actor that takes them in order.
pub const DIRECT_SLOT: u16 = u16::MAX - 1;

/// The tag of a call that goes straight to its actor: caller, daemon and executor name it the same without telling each
/// other. Above all tags that daemons give out, and below 2^62.
pub fn direct_tag(task: TaskId) -> u64 {
    // SplitMix64's finalizer (Steele, Lea, Flood 2014): equal tags of two calls at one actor are as good as impossible.
    let mut mixed = task.client.0 ^ task.seq.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    DIRECT_BIT | ((mixed ^ (mixed >> 31)) & (DIRECT_BIT - 1))
}

/// Set in every [`direct_tag`], and in no other.
pub const DIRECT_BIT: u64 = 1 << 61;

/// A task for an executor, with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct RunTask {
    /// Names this execution between this daemon and this executor; never repeats in a daemon's life, never 0.
    pub tag: u64,
    /// The executor claims this slot of the shared page before it runs (rule S3); [`NO_SLOT`]: it is begun at once, with
    /// nothing to claim.
    pub slot: u16,
    /// Which try this is.
    pub attempt: Attempt,
    /// What to run.
    pub spec: Arc<TaskSpec>,
    /// The values of `spec.needed()` that are not in it, by id; for the function only where this executor has not been
    /// given it before.
    pub values: Vec<(ObjectId, Value)>,
    /// The devices it may use.
    pub gpus: Vec<GpuShare>,
}
