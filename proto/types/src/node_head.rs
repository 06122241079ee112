//! What a worker daemon and the head say to each other.
//!
//! One ordered stream each way per incarnation of the node; the edge stamps each message with the incarnation of the
//! stream it came on, and the cores ignore what is stale (FENCE-1).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::client_node::{CallReport, Cancellation, FinishedOutcome, JobInfo, LogLine};
use crate::job::{JobFromNode, JobToNode};
use crate::query::{Query, QueryReply, StoreUsage};
use crate::{
    Attempt, ClientId, ClientKind, Failure, Incarnation, JobId, Lease, Located, NodeId, ObjectId, Outcome,
    Refs, Resources, ResultValue, TaskId, TaskResult, TaskSpec, Term,
};

/// A node's first message.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeHello {
    /// [`crate::PROTOCOL_VERSION`].
    pub protocol: u32,
    /// Random, chosen at the daemon's start.
    pub node: NodeId,
    /// For people.
    pub hostname: String,
    /// `host:port` of the data port, as other nodes reach it.
    pub data_address: String,
    /// `host:port` where drivers without a daemon attach; empty if the node is no gateway.
    pub gateway_address: String,
    /// What it has.
    pub resources: Resources,
    /// `key=value`, from `--label`.
    pub labels: BTreeMap<String, String>,
    /// Bytes the object store may use.
    pub store_capacity: u64,
    /// The term of the head it was connected to before, with the incarnation it had; `None` at its start.
    pub previous: Option<(Term, Incarnation)>,
}

/// What a daemon says to the head.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeToHead {
    /// Alive. At least every second.
    Heartbeat {
        /// The store's fill.
        store: StoreUsage,
        /// Executors, running or idle.
        executors: u32,
    },
    /// A client attached. For executors, `job` is that of the work it runs.
    ClientAttached {
        /// Who.
        client: ClientId,
        /// What it is.
        kind: ClientKind,
        /// Where it belongs.
        job: JobId,
        /// The process.
        pid: u32,
    },
    /// A client is gone for good: all it held is dropped (rule R1). A driver's job ends with it.
    ClientGone {
        /// Who.
        client: ClientId,
    },
    /// A client submitted this.
    Submit(TaskSpec),
    /// A client sends this call to its actor by itself, and is about to name its result (see
    /// [`crate::ClientToNode::Expect`]).
    Expect(TaskSpec),
    /// What a client's call came to, which it sent by itself.
    PutFailed {
        /// The result.
        object: ObjectId,
        /// Why there is no value.
        failure: Failure,
    },
    /// A call that its client sent by itself in vain: it is the head's now.
    SubmitAgain {
        /// The call.
        spec: TaskSpec,
        /// That was one of its tries: why no answer came.
        may_have_run: Option<Arc<str>>,
    },
    /// These calls went from clients of this node straight to an actor of this node, and have ended. For people: the
    /// callers have their answers.
    Called(Vec<CallReport>),
    /// Where does this actor live? A client here calls it. Answered by `ActorAt`; and from then on by `PeerLost`, if
    /// that node is lost.
    FindActor(ObjectId),
    /// Answer `Confirmed` when all that was said before has been taken in.
    Confirm(u64),
    /// A call that went straight to its actor waits for these; what makes them goes first (rule S4).
    Promote(Vec<ObjectId>),
    /// A put escaped its process, or a task's payload or function is about to be used: the head may be asked for it.
    /// Or a value that a call came to, which went straight to its actor. The maker is its first holder.
    Escaped {
        /// The object; `object.client` is the holder.
        object: ObjectId,
        /// In bytes.
        size: u64,
        /// The value itself if it is small.
        inline: Option<Bytes>,
        /// The refs inside it, held by it (REF-1).
        contains: Refs,
    },
    /// The client holds these.
    Hold {
        /// Who.
        client: ClientId,
        /// What.
        objects: Vec<ObjectId>,
    },
    /// The client holds these no more.
    Drop {
        /// Who.
        client: ClientId,
        /// What.
        objects: Vec<ObjectId>,
    },
    /// An attempt ended. One message also says which prefetched attempt inherited its lease (rule S2).
    ///
    /// Of an attempt that makes an actor this is said when the actor is made, and its lease stays; and once more, with a
    /// failure ([`crate::FailureKind::ActorDied`]), when the actor ends: `retry` then says whether that was nobody's
    /// wish. What became of each of its calls here is said after that: `Returned` if it had not started, else `Done`.
    /// A call that reaches a node where its actor is no more is `Returned`.
    Done {
        /// The task.
        task: TaskId,
        /// Which try; a stale one is ignored (TASK-2).
        attempt: Attempt,
        /// Who ran it, if anybody did.
        executor: Option<ClientId>,
        /// How it ended.
        outcome: Outcome,
        /// Whether a failure may be tried again: `Infrastructure` counts against `max_retries`, `Exception` too but
        /// only where the user asked for it.
        retry: Retry,
        /// The prefetched attempt of the same shape that now runs in its lease.
        started: Option<(TaskId, Attempt)>,
        /// How long user code ran, in microseconds.
        micros: u64,
    },
    /// An attempt has yielded its next item, which is here. A stale one is ignored (TASK-2).
    Yielded {
        /// The task.
        task: TaskId,
        /// Which try.
        attempt: Attempt,
        /// Which item, from 0 in each attempt.
        index: u32,
        /// The value.
        item: TaskResult,
    },
    /// The submitter, a client here, has taken so many items of its task.
    Taken {
        /// The task.
        task: TaskId,
        /// How many.
        items: u32,
        /// Nobody will take any more.
        closed: bool,
    },
    /// These attempts, called back, had not started; they are the head's again (rule S2).
    Returned(Vec<(TaskId, Attempt)>),
    /// The attempt waits in `get`; its CPU may be used meanwhile (rule S4).
    Blocked {
        /// The task.
        task: TaskId,
        /// Which try.
        attempt: Attempt,
        /// What it waits for: promoted.
        on: Vec<ObjectId>,
    },
    /// It goes on; its CPU is booked again, over if need be.
    Unblocked {
        /// The task.
        task: TaskId,
        /// Which try.
        attempt: Attempt,
    },
    /// A client wants a task to end.
    Cancel {
        /// Who asks.
        client: ClientId,
        /// What it asks.
        what: Cancellation,
    },
    /// A client wants an actor to end, or a placement group to be removed.
    Kill {
        /// Who asks.
        client: ClientId,
        /// Its handle, or the group's object.
        actor: ObjectId,
        /// Whether it may be made anew, if it has restarts left.
        restart: bool,
    },
    /// Somebody here needs this object: tell me when and where it is. Answered by `Located`, once.
    Locate(ObjectId),
    /// The sources given did not have it (any more); asks again like `Locate`.
    SourceFailed {
        /// The object.
        object: ObjectId,
        /// The node that did not have it.
        source: NodeId,
    },
    /// A copy of a stored object is complete on this node.
    CopyAdded(ObjectId),
    /// This node's copy is gone (the daemon lost it; not said in answer to `Free`).
    CopyRemoved(ObjectId),
    /// There is a copy in durable storage. Of the results of a task that is to have them `Done` says it.
    Durable {
        /// The object.
        object: ObjectId,
        /// Who wrote it.
        writer: NodeId,
    },
    /// The copy in durable storage could not be read. Answered like `Locate`.
    DurableLost {
        /// The object.
        object: ObjectId,
        /// Who had written it.
        writer: NodeId,
        /// For people.
        reason: String,
    },
    /// The machine is about to go: nothing new here; what runs may end within this time, and then the answer is
    /// `Drained`.
    Drain {
        /// From now.
        deadline_ms: u64,
    },
    /// Lines that user code printed.
    Log(Vec<LogLine>),
    /// To a head of a new term that recognised this node (rule H2): a value that is here and that the head before it knew
    /// of. What a snapshot says beside this, `Running`, `Lives` and `Ended` is said by the messages for news: clients,
    /// their tasks that have not ended, what they hold.
    Kept {
        /// The object.
        object: ObjectId,
        /// In bytes.
        size: u64,
        /// The value itself if it is small.
        inline: Option<Bytes>,
        /// The refs inside it, held by it (REF-1).
        contains: Refs,
    },
    /// In a snapshot: the submitter, a client here, was told of so many items of its task.
    Told {
        /// The task, which has not ended.
        task: TaskId,
        /// How many.
        items: u32,
    },
    /// In a snapshot: the results of calls that the client sent past the head and that are not answered here. What is
    /// there of them is held by the client: the answers may be on their way.
    Unanswered {
        /// Who calls.
        client: ClientId,
        /// What the calls come to.
        objects: Vec<ObjectId>,
    },
    /// In a snapshot: this attempt is here.
    Running {
        /// What it runs.
        spec: Arc<TaskSpec>,
        /// Which try.
        attempt: Attempt,
        /// `None`: sent ahead (rule S2).
        lease: Option<Lease>,
        /// How many items it has yielded.
        yielded: u32,
    },
    /// In a snapshot: this ended well, and somebody may still ask for what it left in the stores; should that be lost, it
    /// can run again. Its submitter is a client here.
    Made(Arc<TaskSpec>),
    /// In a snapshot: this actor lives here.
    Lives {
        /// What made it.
        spec: Arc<TaskSpec>,
        /// Which try.
        attempt: Attempt,
        /// It stays with the actor.
        lease: Lease,
        /// The handle's value.
        handle: TaskResult,
        /// What its executor knows of its job, which is its own if it is detached (rule A6).
        info: Arc<JobInfo>,
    },
    /// In a snapshot: this attempt ended here, and nobody may know of it (rule R5).
    Ended {
        /// What it ran.
        spec: Arc<TaskSpec>,
        /// Which try.
        attempt: Attempt,
        /// As in `Done`.
        outcome: Outcome,
        /// As in `Done`.
        retry: Retry,
        /// As in `Done`.
        micros: u64,
        /// It had made an actor, whose end this is.
        lived: bool,
    },
    /// The snapshot is complete: what follows is news.
    SnapshotEnd,
    /// Of submitted jobs, and pieces of logs.
    Jobs(JobFromNode),
    /// With each heartbeat: how far this node is with what the head says. See `Pulse`.
    Mark {
        /// One more than the last.
        number: u64,
        /// The last `Pulse` that came.
        heard: u64,
    },
    /// A client's question that the node cannot answer.
    Query {
        /// Who asked.
        client: ClientId,
        /// From the client.
        number: u64,
        /// The question.
        query: Query,
    },
}

/// Where an actor lives, for a node whose clients call it.
#[derive(Clone, Debug, PartialEq)]
pub struct ActorPlace {
    /// Its node.
    pub node: NodeId,
    /// That node's data port.
    pub address: String,
    /// What made it.
    pub attempt: Attempt,
    /// It takes calls one after the other.
    pub in_order: bool,
    /// So many calls it can have begun at once.
    pub concurrency: u32,
}

/// Whether a failed attempt may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// It ended well, or it must not be tried again.
    No,
    /// Not the task's own doing: counts against `max_retries`.
    Infrastructure,
    /// An exception that `retry_exceptions` names: counts against `max_retries` too.
    Exception,
    /// It was ended because others took the node's memory at the same time: tried again after a pause, if it may be at
    /// all, and not counted.
    NoRoom,
}

/// The heads of a cluster that has several: one leads, the others stand by. Each is `host:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Heads {
    /// Empty: none leads at this moment.
    pub leader: String,
    /// The leader among them; empty where there is but one head and no other can take its place.
    pub all: Vec<String>,
}

/// What the head says to a daemon.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadToNode {
    /// The first message: the node is admitted.
    Admitted {
        /// The leader's term.
        term: Term,
        /// Stamped on everything of this stream.
        incarnation: Incarnation,
        /// For the node's own clock of leases and heartbeats: how long silence may last before it is declared lost.
        loss_timeout_ms: u32,
    },
    /// The first message of a head of a new term, to a node that the term before it knew (rule H2): what runs here runs
    /// on. The node answers with a snapshot.
    Resumed {
        /// The leader's term.
        term: Term,
        /// Stamped on everything of this stream.
        incarnation: Incarnation,
        /// As in `Admitted`.
        loss_timeout_ms: u32,
    },
    /// From time to time, to every node: what this node said before its `Mark` of this number has done all it will, and
    /// every node has heard of it. Nobody needs to say it again to a head of another term (rule H2).
    Pulse {
        /// One more than the last.
        number: u64,
        /// The number of a `Mark`; 0: none yet.
        settled: u64,
    },
    /// What executors of this job need to know; precedes the job's first `Assign` on this stream.
    Job {
        /// The job.
        job: JobId,
        /// Its description.
        info: Arc<JobInfo>,
    },
    /// The job is over: end its executors. Each of its attempts here was told `Cancel` before, and is answered for by
    /// `Done` (or `Returned`): until then the head keeps its lease booked.
    JobEnded(JobId),
    /// Run this. With a lease: as soon as its arguments are here. Without: prefetched, it starts only by inheriting a
    /// lease of its own shape, or by `Grant` (rule S2).
    Assign {
        /// What.
        spec: Arc<TaskSpec>,
        /// Which try.
        attempt: Attempt,
        /// `None`: prefetched.
        lease: Option<Lease>,
        /// Where each of `spec.needed()` is, as far as the node may not know it.
        located: Vec<(ObjectId, Located)>,
    },
    /// A prefetched attempt gets a lease of its own. Ignored if it started meanwhile by inheriting: the `Done` that
    /// says so is on its way, and the head keeps the inherited lease and frees this one.
    Grant {
        /// The task.
        task: TaskId,
        /// Which try.
        attempt: Attempt,
        /// Which GPUs.
        lease: Lease,
    },
    /// Give back what has not started of these; the answer is `Returned` for those, nothing for the others.
    CallBack(Vec<(TaskId, Attempt)>),
    /// End this attempt: it was cancelled or superseded. Answered by `Done` or `Returned`, unless it ended already.
    Cancel {
        /// The task.
        task: TaskId,
        /// Which try.
        attempt: Attempt,
        /// For the error.
        reason: String,
        /// Kill its executor.
        force: bool,
    },
    /// End this actor's process and answer with its second `Done`.
    EndActor {
        /// The task that made it.
        task: TaskId,
        /// Which try.
        attempt: Attempt,
        /// Why, for the errors of its calls.
        reason: String,
        /// At once; else after what it runs, as a program ends.
        force: bool,
    },
    /// This actor's node is to leave: if it can keep its state, it keeps it and asks to be moved.
    MoveActor {
        /// The task that made it.
        task: TaskId,
        /// Which try.
        attempt: Attempt,
    },
    /// A task submitted by a client of this node has ended (TASK-1).
    Finished {
        /// The submitter is `task.client`.
        task: TaskId,
        /// As the client is told.
        outcome: FinishedOutcome,
    },
    /// A task submitted by a client of this node has yielded an item, which the client holds from now on (rule R2).
    Item {
        /// The submitter is `task.client`.
        task: TaskId,
        /// Which item; those of a task come in order, before its `Finished`.
        index: u32,
        /// As the client is told.
        value: ResultValue,
    },
    /// So many items of this attempt count as taken: by its submitter, or because an earlier attempt had yielded them.
    Taken {
        /// The task.
        task: TaskId,
        /// Which try; ignored if it is not here.
        attempt: Attempt,
        /// How many.
        items: u32,
        /// Nobody will take any more.
        closed: bool,
    },
    /// Answer to `Locate` and `SourceFailed`.
    Located {
        /// The object.
        object: ObjectId,
        /// Where it is, or why it will never be.
        located: Located,
    },
    /// Nobody can reach these any more: delete the copies here (REF-2).
    Free(Vec<ObjectId>),
    /// Nobody can reach these any more: delete what `writer` wrote to durable storage. It is this node, unless that is
    /// lost.
    DeleteDurable {
        /// Who wrote them.
        writer: NodeId,
        /// Which.
        objects: Vec<ObjectId>,
    },
    /// Make a copy of this object here and keep it: another node that has one leaves. Answered by `CopyAdded`; nothing is
    /// said if it cannot be done.
    Copy {
        /// The object.
        object: ObjectId,
        /// Where it is.
        located: Located,
        /// The refs inside it: who has a copy for good knows them, for a head of another term (rule H2).
        contains: Refs,
    },
    /// Of submitted jobs, and questions about logs.
    Jobs(JobToNode),
    /// Nothing that anybody needs is here any more, or the time for it is over: the daemon ends.
    Drained,
    /// Where heads are; said by a head that others stand by for, at the start of a stream and when it changes.
    Heads(Heads),
    /// This client, of whichever node, is gone: what it put and never let escape is gone too (rule R2).
    ClientGone(ClientId),
    /// Answer to `FindActor`.
    ActorAt {
        /// The actor.
        actor: ObjectId,
        /// `None`: it does not live at this moment, or calls to it must go by the head.
        place: Option<ActorPlace>,
    },
    /// A node that this node was told the place of an actor on is lost. Nothing of it counts any more (rule A5).
    PeerLost {
        /// Which.
        node: NodeId,
        /// For errors.
        why: String,
    },
    /// Answer to `Confirm`.
    Confirmed(u64),
    /// Somebody wants a call to end that a client of this node sent to its actor by itself.
    CancelOwn {
        /// The call.
        task: TaskId,
        /// For the error.
        reason: String,
        /// What it submitted, too.
        recursive: bool,
    },
    /// Lines for a driver attached to this node.
    Log {
        /// The driver.
        client: ClientId,
        /// The lines.
        lines: Vec<LogLine>,
    },
    /// Something a person should know, for a driver attached to this node.
    Notice {
        /// The driver.
        client: ClientId,
        /// A sentence.
        text: String,
    },
    /// The driver's hello was refused by the head (its job id is taken, say); `client` is to be closed with this.
    RejectClient {
        /// Who.
        client: ClientId,
        /// Why.
        failure: Failure,
    },
    /// Answer to a client's question.
    Reply {
        /// Who asked.
        client: ClientId,
        /// From the client.
        number: u64,
        /// The answer, or why there is none.
        reply: Result<QueryReply, String>,
    },
}
