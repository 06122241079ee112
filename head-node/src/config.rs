//! What a head is told at its start.

use std::path::PathBuf;
use std::time::Duration;

use crate::store::etcd::EtcdUrl;

/// The port that a head listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 8264;

/// What a head is told at its start; the listener comes beside it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's secret; every call must carry it.
    pub token: String,
    /// Where what must survive the head is kept.
    pub state: StateAt,
    /// The file that tasks which ended are written to; `None`: the next head does not show them.
    pub history: Option<PathBuf>,
    /// Silence after which a node is declared lost.
    pub loss_timeout: Duration,
    /// Finished tasks that `cluster list tasks` and `cluster why` know.
    pub tasks_kept: usize,
    /// Bytes of specs kept to make lost objects again.
    pub lineage_memory: u64,
    /// Bytes that may wait for one node; a node that reads too slowly for that is closed (rule S7).
    pub outbox_limit: usize,
}

/// Where a head keeps what must survive it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateAt {
    /// It need not survive: for tests.
    Memory,
    /// In a file, which one head has open at a time.
    File(PathBuf),
    /// In an etcd, for several heads: one leads, the others stand by.
    Etcd {
        /// Which.
        url: EtcdUrl,
        /// `host:port` where others reach this head.
        address: String,
    },
}

impl Config {
    /// The defaults, with this token.
    pub fn new(token: impl Into<String>) -> Self {
        Self {
            token: token.into(),
            state: StateAt::Memory,
            history: None,
            loss_timeout: Duration::from_secs(5),
            tasks_kept: 10_000,
            lineage_memory: 256 << 20,
            outbox_limit: 256 << 20,
        }
    }
}
