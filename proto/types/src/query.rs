//! Questions about the cluster's state, and their answers: what `cluster list` and `cml.nodes()` show.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::job::{JobSpec, JobView, LogPiece, LogQuery};

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Query {
    /// Totals: nodes, tasks by state, resources.
    Status,
    /// All nodes.
    Nodes,
    /// Tasks, newest first.
    Tasks {
        /// At most this many.
        limit: u32,
    },
    /// Objects the head knows, largest first.
    Objects {
        /// At most this many.
        limit: u32,
    },
    /// Actors, newest first.
    Actors {
        /// At most this many.
        limit: u32,
    },
    /// The living (or not yet made) actor of this name.
    NamedActor {
        /// Where the name counts.
        namespace: String,
        /// The name.
        name: String,
    },
    /// Placement groups, newest first.
    Groups {
        /// At most this many.
        limit: u32,
    },
    /// One placement group, by its object's id as that prints.
    Group {
        /// The id.
        group: String,
    },
    /// The placement group of this name.
    NamedGroup {
        /// Where the name counts.
        namespace: String,
        /// The name.
        name: String,
    },
    /// A node is to leave: nothing new starts there, what runs may end within this time, objects that are only there
    /// move. Answered at once by [`QueryReply::Nodes`] with that one; it is gone from the list when it has left.
    Drain {
        /// Its id, the beginning of it, or its hostname.
        node: String,
        /// From now.
        deadline_ms: u64,
    },
    /// This object is the state of an actor, to be kept over its restarts. Asked by its executor; answered by
    /// [`QueryReply::States`] with that one when it is where it is to be: on a second node too, if there is one that
    /// takes it soon.
    KeepState {
        /// The actor's handle.
        actor: String,
        /// Which of the actor's lives, as term and number; what an earlier one says changes nothing (FENCE-1).
        attempt: (u32, u32),
        /// The object, put by the executor.
        object: String,
    },
    /// What was kept of the actor's state, as [`QueryReply::States`].
    KeptStates {
        /// The actor's handle.
        actor: String,
    },
    /// The executor of an actor, whose node is to leave, kept its state and begins no more calls: it is to be made anew
    /// elsewhere. Answered only if that cannot be.
    MoveActor {
        /// The actor's handle.
        actor: String,
        /// Which of the actor's lives, as term and number (FENCE-1).
        attempt: (u32, u32),
    },
    /// A copy of this object, put by who asks, is to be in durable storage. The daemon answers, with
    /// [`QueryReply::States`] and that one, when it is there.
    MakeDurable {
        /// The object's id as that prints.
        object: String,
    },
    /// Run this program. Asked twice with one id it is run once. Answered, like the next four, by [`QueryReply::Jobs`] with
    /// that job.
    SubmitJob {
        /// Chosen at random by who asks.
        job: String,
        /// What to run.
        spec: Box<JobSpec>,
    },
    /// Submitted jobs, newest first.
    Jobs {
        /// At most this many.
        limit: u32,
    },
    /// One submitted job: its id, the beginning of that, or its name.
    Job {
        /// What the person typed.
        job: String,
    },
    /// End a job and all it started.
    StopJob {
        /// As in `Job`.
        job: String,
    },
    /// Forget a job that has ended, and its log.
    DeleteJob {
        /// As in `Job`.
        job: String,
    },
    /// A piece of a log. Answered by [`QueryReply::Log`].
    Log(LogQuery),
    /// Why a task is where it is. The text may be a task id, or any end of one that is unambiguous.
    Why {
        /// What the person typed.
        task: String,
    },
}

/// The answer to the [`Query`] of the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum QueryReply {
    /// See [`Query::Status`].
    Status(StatusView),
    /// See [`Query::Nodes`].
    Nodes(Vec<NodeView>),
    /// See [`Query::Tasks`].
    Tasks(Vec<TaskView>),
    /// See [`Query::Objects`].
    Objects(Vec<ObjectView>),
    /// See [`Query::Why`].
    Why(WhyView),
    /// See [`Query::Actors`].
    Actors(Vec<ActorView>),
    /// See [`Query::NamedActor`]; `None`: there is none.
    NamedActor(Option<NamedActor>),
    /// See [`Query::Groups`].
    Groups(Vec<GroupView>),
    /// See [`Query::Group`] and [`Query::NamedGroup`]; `None`: there is none.
    Group(Option<GroupView>),
    /// Objects, the newest first: see [`Query::KeepState`] and [`Query::KeptStates`].
    States(Vec<String>),
    /// See [`Query::SubmitJob`] and those after it.
    Jobs(Vec<JobView>),
    /// See [`Query::Log`].
    Log(LogPiece),
}

/// The fill of one node's store, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreUsage {
    /// May be used.
    pub capacity: u64,
    /// Leased to writers or holding objects.
    pub reserved: u64,
    /// In sealed, unfreed objects in memory.
    pub live: u64,
    /// On disk.
    pub spilled: u64,
}

/// A cluster at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// The leader's term.
    pub term: u32,
    /// Nodes alive.
    pub nodes: u32,
    /// Drivers attached.
    pub drivers: u32,
    /// Tasks by state (`waiting`, `queued`, `prefetched`, `running`, `finished`, `failed`).
    pub tasks: BTreeMap<String, u64>,
    /// By resource name: all there is.
    pub total: BTreeMap<String, f64>,
    /// By resource name: what is not leased.
    pub available: BTreeMap<String, f64>,
    /// Objects the head knows.
    pub objects: u64,
    /// All stores together.
    pub store: StoreUsage,
    /// The head that answers and those that stand by.
    #[serde(default)]
    pub heads: crate::Heads,
}

/// A node, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Sixteen hex digits.
    pub node: String,
    /// As the node told it.
    pub hostname: String,
    /// `host:port` of its data port.
    pub address: String,
    /// Whether it is connected.
    pub alive: bool,
    /// By resource name.
    pub total: BTreeMap<String, f64>,
    /// By resource name.
    pub available: BTreeMap<String, f64>,
    /// From `--label`.
    pub labels: BTreeMap<String, String>,
    /// Attempts it runs.
    pub running: u32,
    /// Attempts sent ahead.
    pub prefetched: u32,
    /// Its executors.
    pub executors: u32,
    /// Its store.
    pub store: StoreUsage,
    /// It is leaving.
    #[serde(default)]
    pub draining: Option<DrainView>,
}

/// What keeps a node that is to leave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrainView {
    /// Until it leaves in any case, in milliseconds.
    pub left_ms: u64,
    /// Actors that live there.
    pub actors: u32,
    /// Drivers attached to it.
    pub drivers: u32,
    /// Objects that are nowhere else yet.
    pub objects: u32,
}

/// A task, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskView {
    /// `client.seq`.
    pub task: String,
    /// Its function's name.
    pub name: String,
    /// Its job.
    pub job: String,
    /// `waiting`, `queued`, `prefetched`, `running`, `finished`, `failed`.
    pub state: String,
    /// Tries begun so far.
    pub attempt: u32,
    /// Where it runs or ran; empty if nowhere yet.
    pub node: String,
    /// Since it was submitted, in milliseconds.
    pub age_ms: u64,
    /// How long user code ran, in milliseconds, once it ended.
    pub ran_ms: f64,
    /// Why it failed; empty otherwise.
    pub error: String,
}

/// An object, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObjectView {
    /// `client.seq.index` or `client.seq.put`.
    pub object: String,
    /// In bytes, once known.
    pub size: u64,
    /// `pending`, `inline`, `stored`, `failed`, `lost`.
    pub state: String,
    /// Nodes that have a copy.
    pub nodes: Vec<String>,
    /// Clients that hold it.
    pub clients: u32,
    /// Pending tasks that hold it.
    pub tasks: u32,
    /// Objects that contain it.
    pub containers: u32,
}

/// An actor, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ActorView {
    /// Its handle's object, `client.seq.index`.
    pub actor: String,
    /// Its class.
    pub class: String,
    /// Its name; empty if it has none.
    pub name: String,
    /// Where its name counts.
    pub namespace: String,
    /// `pending`, `alive`, `restarting`, `dead`.
    pub state: String,
    /// Its job.
    pub job: String,
    /// Where it lives; empty if nowhere.
    pub node: String,
    /// How often it was made anew.
    pub restarts: u32,
    /// Calls that it was not given yet.
    pub queued: u64,
    /// Calls that it was given.
    pub running: u64,
    /// Why it died; empty otherwise.
    pub error: String,
}

/// What a client needs to make a handle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedActor {
    /// Its handle's object, as its id prints.
    pub actor: String,
    /// [`crate::ActorTraits::handle`].
    pub handle: Vec<u8>,
}

/// A placement group, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its object, `client.seq.index`.
    pub group: String,
    /// Its name; empty if it has none.
    pub name: String,
    /// Where its name counts.
    pub namespace: String,
    /// `PACK`, `SPREAD`, `STRICT_PACK`, `STRICT_SPREAD`.
    pub strategy: String,
    /// `pending`, `created`, `rescheduling`, `removed`.
    pub state: String,
    /// Its job.
    pub job: String,
    /// Whether it outlives the job that made it.
    pub detached: bool,
    /// In order.
    pub bundles: Vec<BundleView>,
    /// What it waits for, or why it was removed; empty while it is whole.
    pub reason: String,
}

/// A bundle, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BundleView {
    /// What is set aside, by resource name.
    pub total: BTreeMap<String, f64>,
    /// What of it is free, by resource name.
    pub available: BTreeMap<String, f64>,
    /// Where: the node's id; empty if nowhere yet.
    pub node: String,
    /// What people call that node.
    pub hostname: String,
    /// Attempts and actors in it.
    pub running: u32,
}

/// Why a task is where it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WhyView {
    /// The task.
    pub task: TaskView,
    /// One sentence: what it waits for, or what became of it.
    pub reason: String,
    /// Per node: what it lacks.
    pub nodes: Vec<String>,
}
