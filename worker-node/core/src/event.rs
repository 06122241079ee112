//! What happens to a node, and what it does about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::LogLine;
use cluster_types::job::{JobOrder, JobStage, LogQuery};
use cluster_types::{
    ClientId, ClientKind, ClientToNode, Failure, HeadToNode, JobId, JobInfo, Location, NodeId, NodeToClient,
    NodeToHead, NodeToNode, ObjectId, Resources, SegmentId, Span,
};

/// What the node is told at its start; nothing in it changes later.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its name.
    pub node: NodeId,
    /// For people: error messages name it.
    pub hostname: String,
    /// What it has.
    pub resources: Resources,
    /// Real cores: what executors beyond twice their number wait for (rule S4), and what drivers may spin on (S8).
    pub cores: u32,
    /// Bytes that segments may take together.
    pub store_capacity: u64,
    /// Executors kept idle per job before the oldest is ended, beyond those that recently worked.
    pub idle_executors: u32,
    /// How long an idle executor is kept.
    pub idle_timeout: Span,
    /// Whether the head can come back without what it knew: then specs are kept here (rule T6).
    pub head_may_restart: bool,
}

/// Something that happened. The edge feeds these to `Node::step` one at a time.
#[derive(Clone, Debug)]
pub enum Event {
    /// The head said something. The first message of each stream is `Admitted`.
    FromHead(HeadToNode),
    /// The stream to the head broke; the edge is reconnecting.
    HeadLost,
    /// A client's hello passed (token, protocol). The node answers with `Welcome` or `Rejected`.
    ClientAttached {
        /// Who.
        client: ClientId,
        /// Its process.
        pid: u32,
        /// What it is.
        kind: ClientKind,
        /// Whether it can map segments.
        shares_memory: bool,
    },
    /// A client said something.
    FromClient {
        /// Who.
        client: ClientId,
        /// What.
        message: ClientToNode,
    },
    /// The client's process ended, or a remote client's grace period did (rule P1: a lost socket alone is not an end).
    ClientEnded {
        /// Who.
        client: ClientId,
    },
    /// An executor's process ended or could not be started. If it had attached, its `ClientEnded` comes too, after
    /// this.
    ExecutorExited {
        /// From `StartExecutor`.
        executor: u32,
        /// For people: `killed by signal 9 (SIGKILL)`, `exit code 3`, `could not start: …`, with the last lines of its
        /// stderr if it wrote any.
        cause: String,
        /// Tags of pipelined tasks that it had not claimed; the edge revoked their slots.
        unstarted: Vec<u64>,
    },
    /// Answer to `Revoke`.
    Revoked {
        /// Whose slot.
        executor: u32,
        /// Which execution.
        tag: u64,
        /// True: the executor had not claimed it and never will. False: it runs or ran.
        won: bool,
    },
    /// Answer to `CreateSegment`.
    SegmentCreated {
        /// Its name.
        segment: SegmentId,
        /// `None`: made. Else why not.
        failure: Option<Failure>,
    },
    /// Answer to `Pull` and `StoreBytes`: the object lies here, in memory of the daemon's own.
    Stored {
        /// Which.
        object: ObjectId,
        /// Where.
        location: Location,
    },
    /// Answer to `Pull`, `StoreBytes` and `Restore`: it failed.
    StoreFailed {
        /// Which.
        object: ObjectId,
        /// Whether the source answered that it has no such object.
        missing: bool,
        /// For people.
        reason: String,
        /// Whether this node had no memory for it after all.
        no_memory: bool,
    },
    /// Answer to `Spill`: these are on disk too now; their memory is as it was.
    Spilled {
        /// Which.
        objects: Vec<ObjectId>,
    },
    /// Answer to `Spill`: nothing of the batch was written.
    SpillFailed {
        /// Which.
        objects: Vec<ObjectId>,
        /// Why; `OutOfDisk` names directory and sizes.
        failure: Failure,
    },
    /// Answer to `Restore`: the spilled object lies in memory of the daemon's own again.
    Restored {
        /// Which.
        object: ObjectId,
        /// Where.
        location: Location,
    },
    /// Answer to `WriteDurable`: the copy is there.
    DurableWritten {
        /// Which.
        object: ObjectId,
    },
    /// Answer to `WriteDurable`: nothing was written.
    DurableFailed {
        /// Which.
        object: ObjectId,
        /// What ends a sentence: where to, and why not.
        reason: String,
    },
    /// The machine's memory, or what a cgroup leaves this node of it, is about to run out. Said a few times a second as
    /// long as it is so.
    MemoryShort(MemoryShort),
    /// Answer to `MeasureMemory`.
    MemoryMeasured {
        /// Which, and how many bytes are its own and its children's, for each that still runs.
        executors: Vec<(u32, u64)>,
    },
    /// The machine is about to go: the node leaves as soon as what runs has ended, and by then in any case. Answered by
    /// `End`.
    ToldToLeave {
        /// How much time there is.
        within: Span,
    },
    /// Another node said something in a conversation about calls to actors, whichever of the two opened it.
    FromPeer {
        /// Which.
        node: NodeId,
        /// What.
        message: NodeToNode,
    },
    /// Answer to `ConnectPeer`: the conversation is open.
    PeerOpened {
        /// With whom.
        node: NodeId,
    },
    /// A conversation is over, and what was on its way in it is lost.
    PeerClosed {
        /// With whom.
        node: NodeId,
        /// It was the one that this node opened, or was to open; else the other's.
        opened_here: bool,
        /// For errors.
        why: String,
    },
    /// How far a job is that `StartJob` named; `Ended` is the last that is said of an attempt.
    JobSaid {
        /// Which.
        job: String,
        /// Which try.
        attempt: u32,
        /// How far.
        stage: JobStage,
    },
    /// Time passed. At least every 100 ms, and at `Effect::WakeAt`.
    Tick,
}

/// How much memory is used, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryShort {
    /// Bytes.
    pub used: u64,
    /// Bytes that there are.
    pub limit: u64,
    /// What ends a sentence: `the machine's memory`, `the memory of its cgroup`.
    pub of: &'static str,
    /// The largest processes of the machine, the largest first.
    pub largest: Vec<ProcessMemory>,
}

/// A process and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Which.
    pub pid: u32,
    /// Its command, for people.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
}

/// Among the environment variables of a task: its executor is a program of the user's own instead of Python. The value
/// is the SHA-256 of its file, the platform it is for, and the object that holds it (the task's function), apart by
/// blanks. So executors of different programs are never interchanged.
pub const PROGRAM: &str = "CLUSTER_PROGRAM";

/// Something for the edge to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell the head. While there is no stream to it the edge drops these; a new stream begins with a snapshot.
    ToHead(NodeToHead),
    /// Tell a client. For `Segment` the edge attaches the descriptor (read-only or writable as the message says); for
    /// `Run` it offers the slot of the executor's page first.
    ToClient {
        /// Whom.
        client: ClientId,
        /// What.
        message: NodeToClient,
    },
    /// Close a client's stream after what was sent.
    CloseClient {
        /// Whose.
        client: ClientId,
    },
    /// Fork an executor. It attaches as a client of kind `Executor { executor }`, or `ExecutorExited` says why not.
    StartExecutor {
        /// Chosen by the node, never reused.
        executor: u32,
        /// Its job.
        job: JobId,
        /// What it needs to know of it.
        info: Arc<JobInfo>,
        /// Environment of the tasks it will run, over that of the job.
        env_vars: Arc<BTreeMap<String, String>>,
        /// Device indices it may see; sets `CUDA_VISIBLE_DEVICES`.
        gpus: Vec<u16>,
        /// Where the program lies that [`PROGRAM`] names; `None`: none is named, or it is not here any more.
        program: Option<Location>,
    },
    /// End an executor: with SIGKILL if `force`, else it was told `Exit` and has two seconds.
    EndExecutor {
        /// Which.
        executor: u32,
        /// At once.
        force: bool,
    },
    /// Interrupt the task under this tag in this executor (rule E3): write the tag to the page, signal.
    Interrupt {
        /// Which executor.
        executor: u32,
        /// Which execution.
        tag: u64,
    },
    /// Make a pair of connected sockets and give one end to each, with `Calls` and `Serve`: from here on the caller
    /// calls the actor itself. If that cannot be done, tell the caller `NoCalls`.
    JoinCalls {
        /// A client of this node.
        caller: ClientId,
        /// The actor's executor.
        executor: ClientId,
        /// The actor.
        actor: ObjectId,
        /// It takes calls one after the other.
        in_order: bool,
    },
    /// How much memory do these executors take? Answered by `MemoryMeasured`.
    MeasureMemory {
        /// Which.
        executors: Vec<u32>,
    },
    /// Open a conversation with another node, about calls to actors there. Answered by `PeerOpened` or `PeerClosed`.
    ConnectPeer {
        /// With whom.
        node: NodeId,
        /// Its data port.
        address: String,
    },
    /// Say this to another node: in the conversation that this node opened if it is what callers' nodes say, else in the
    /// other's. Dropped if there is none.
    ToPeer {
        /// To whom.
        node: NodeId,
        /// What.
        message: NodeToNode,
    },
    /// End both conversations with this node, without a word: it is lost, or no longer needed. Not answered.
    DropPeer {
        /// With whom.
        node: NodeId,
    },
    /// Take back a pipelined task (rule S3). Answered by `Revoked`.
    Revoke {
        /// Which executor.
        executor: u32,
        /// Its slot.
        slot: u16,
        /// Which execution.
        tag: u64,
    },
    /// Make a segment of this many bytes (rule P3). Answered by `SegmentCreated`.
    CreateSegment {
        /// Chosen by the node.
        segment: SegmentId,
        /// In bytes.
        len: u64,
        /// In a file of the spill directory instead of memory (rule P4).
        file_backed: bool,
        /// The daemon itself writes there, for a client without shared memory, and allocates as it goes.
        for_daemon: bool,
    },
    /// Unmap and close a segment: its memory goes back to the system.
    DropSegment {
        /// Which.
        segment: SegmentId,
    },
    /// Nobody uses this range of a segment whose writer is gone: give its whole pages back to the system.
    PunchHole(Location),
    /// This range, from `Stored` or `Restored`, is the daemon's own and free again.
    FreeOwn(Location),
    /// Copy an object from another node into memory of the daemon's own. The node reserved the bytes already.
    Pull {
        /// Which.
        object: ObjectId,
        /// In bytes.
        size: u64,
        /// From whom.
        source: NodeId,
        /// Its data port.
        address: String,
    },
    /// Copy these bytes, from a client without shared memory, into memory of the daemon's own.
    StoreBytes {
        /// Which.
        object: ObjectId,
        /// What.
        bytes: Bytes,
    },
    /// The object may be served to other nodes and mapped from here from now on.
    Serve {
        /// Which.
        object: ObjectId,
        /// What is served.
        source: ServeFrom,
    },
    /// It may not any more (transfers under way go on: the edge keeps the range until they end, see `StopServing`).
    StopServing {
        /// Which.
        object: ObjectId,
    },
    /// Write these to disk in one batch. Answered by `Spilled` or `SpillFailed`.
    Spill {
        /// Which, and where they lie.
        objects: Vec<(ObjectId, Location)>,
    },
    /// Read a spilled object back into memory of the daemon's own. The node reserved the bytes already. Answered by
    /// `Restored` or `StoreFailed`.
    Restore {
        /// Which.
        object: ObjectId,
    },
    /// Delete the spilled copy.
    DeleteSpilled {
        /// Which.
        object: ObjectId,
    },
    /// Write a copy of an object that is being served to durable storage, under this node's name. Answered by
    /// `DurableWritten` or `DurableFailed`.
    WriteDurable {
        /// Which.
        object: ObjectId,
    },
    /// Read an object from durable storage into memory of the daemon's own. The node reserved the bytes already. Answered
    /// by `Stored` or `StoreFailed`.
    FetchDurable {
        /// Which.
        object: ObjectId,
        /// In bytes.
        size: u64,
        /// Under whose name it was written.
        writer: NodeId,
    },
    /// Delete this from durable storage, if it is there.
    DeleteDurable {
        /// Which.
        object: ObjectId,
        /// Under whose name it was written.
        writer: NodeId,
    },
    /// Delete the file of an actor's state that nobody keeps any more, if there is one: its executor wrote it.
    DeleteState {
        /// Which.
        object: ObjectId,
    },
    /// Send the bytes of a stored object to a client without shared memory, as `Ready { Inline }`.
    SendBytes {
        /// To whom.
        client: ClientId,
        /// Which; it is being served.
        object: ObjectId,
    },
    /// Run a submitted job's program, whatever has to be fetched and built for it first. Answered by `JobSaid`.
    StartJob {
        /// What.
        order: Box<JobOrder>,
    },
    /// End a job, and all that it started: it is asked first, unless `at_once`.
    StopJob {
        /// Which.
        job: String,
        /// With SIGKILL.
        at_once: bool,
    },
    /// Delete what a job printed.
    DeleteJobLogs {
        /// Which.
        job: String,
    },
    /// Read a piece of a log and tell the head.
    ReadLog {
        /// The head's name for the question.
        ask: u64,
        /// What; an actor is named by its executor's process.
        log: LogQuery,
        /// Who wrote it writes no more.
        ended: bool,
    },
    /// An executor printed this: keep it.
    KeepLine(LogLine),
    /// The daemon ends: the node has left the cluster.
    End,
    /// Call `step` with `Tick` at this time at the latest.
    WakeAt(cluster_types::Time),
}

/// What other nodes get when they ask for an object.
#[derive(Clone, Debug, PartialEq)]
pub enum ServeFrom {
    /// A range of a segment.
    Memory(Location),
    /// The spilled copy.
    Disk,
    /// A small value.
    Inline(Bytes),
}
