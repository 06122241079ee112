//! What daemons are told at their start, and why they end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cluster_types::Resources;

/// What a machine offers; `None` is what was found on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    /// Cores.
    pub num_cpus: Option<f64>,
    /// GPUs.
    pub num_gpus: Option<f64>,
    /// Bytes for tasks that ask for memory.
    pub memory: Option<u64>,
    /// Custom resources.
    pub resources: BTreeMap<String, f64>,
    /// `key=value`.
    pub labels: BTreeMap<String, String>,
    /// Bytes the object store may take.
    pub object_store_memory: Option<u64>,
    /// The share of the machine's memory beyond which a task is ended before the kernel ends something;
    /// [`MEMORY_THRESHOLD`] where it is `None`.
    pub memory_threshold: Option<f64>,
}

/// The usual [`Offer::memory_threshold`].
pub const MEMORY_THRESHOLD: f64 = 0.95;

/// A daemon that joins a cluster.
#[derive(Debug)]
pub struct WorkerConfig {
    /// Where its socket is made; `node.sock` in it. Made if missing, for its owner only.
    pub dir: PathBuf,
    /// `host:port` of the head.
    pub head: String,
    /// The cluster's secret.
    pub token: String,
    /// What this machine offers.
    pub offer: Offer,
    /// For executors of jobs that name no interpreter, or none that this machine has.
    pub python: PathBuf,
    /// Where the data port listens.
    pub data_listen: SocketAddr,
    /// Where drivers of other machines attach; `None`: they cannot.
    pub gateway_listen: Option<SocketAddr>,
    /// How long a driver of another machine may be out of touch before it counts as ended.
    pub client_grace: std::time::Duration,
    /// The name or address by which other machines reach this one; empty: the data port's own address.
    pub advertise: String,
    /// Where objects go when memory is full; empty: in `dir`.
    pub spill_dir: PathBuf,
    /// Where durable copies of objects lie: a file or s3 URL, the same for all nodes; empty: in `dir`.
    pub durable: String,
    /// How long SIGTERM lets running tasks end; zero: not at all.
    pub drain: std::time::Duration,
    /// One line of JSON is written here once the head has admitted the node; see [`Ready`].
    pub ready: Option<OwnedFd>,
}

/// A cluster within one process, for one driver.
#[derive(Debug)]
pub struct EmbeddedConfig {
    /// As in [`WorkerConfig`].
    pub dir: PathBuf,
    /// Empty: one is made.
    pub token: String,
    /// What it offers.
    pub offer: Offer,
    /// The driver's interpreter.
    pub python: PathBuf,
    /// The cluster ends when the other end of this pipe or socket is closed.
    pub lifeline: OwnedFd,
    /// One line of JSON is written here once drivers can attach; see [`Ready`].
    pub ready: OwnedFd,
    /// As in [`WorkerConfig`].
    pub spill_dir: PathBuf,
    /// As in [`WorkerConfig`].
    pub durable: String,
}

/// The line that a daemon prints when it is ready.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ready {
    /// The socket's path.
    pub socket: PathBuf,
    /// What a driver shows there.
    pub token: String,
    /// Sixteen hex digits.
    pub node: String,
}

/// Why a daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A setting that cannot be.
    #[error("{0}")]
    Config(String),
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        source: std::io::Error,
    },
    /// Another daemon uses the directory.
    #[error(
        "a daemon already runs on {socket}: end it with `cluster down`, or set CLUSTER_DIR to another directory"
    )]
    AlreadyRunning {
        /// Its socket.
        socket: PathBuf,
    },
    /// Nobody answered at the head's address.
    #[error(
        "no head at {address} ({reason}): is it up, and is the port open? `cluster up` on that machine starts one"
    )]
    HeadUnreachable {
        /// As configured.
        address: String,
        /// What the last try said.
        reason: String,
    },
    /// The head answered, and will not have this node.
    #[error("the head at {address} refused this node: {reason}")]
    Refused {
        /// As configured.
        address: String,
        /// Its sentence.
        reason: String,
    },
}

impl WorkerError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> WorkerError {
        let what = what.into();
        move |source| WorkerError::Io { what, source }
    }

    /// The exit code of a process that ends with this.
    pub fn exit_code(&self) -> u8 {
        match self {
            WorkerError::Config(_) => 2,
            WorkerError::Io { .. } | WorkerError::AlreadyRunning { .. } => 1,
            WorkerError::HeadUnreachable { .. } => 3,
            WorkerError::Refused { .. } => 4,
        }
    }
}

/// What a node is made of, found or told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Machine {
    pub(crate) hostname: String,
    pub(crate) resources: Resources,
    pub(crate) labels: BTreeMap<String, String>,
    /// Real cores that this process may use, rounded up.
    pub(crate) cores: u32,
    /// See [`Offer::memory_threshold`].
    pub(crate) memory_threshold: f64,
    /// What `CUDA_VISIBLE_DEVICES` must hold for each GPU, by our index.
    pub(crate) gpu_names: Vec<String>,
    pub(crate) store_capacity: u64,
}
