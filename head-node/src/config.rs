//! What a head is told at its start.

use std::path::PathBuf;
use std::time::Duration;

/// The port that a head listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 8264;

/// What a head is told at its start; the listener comes beside it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's secret; every call must carry it.
    pub token: String,
    /// The file of the embedded state store; `None` keeps state in memory only, for tests.
    pub state: Option<PathBuf>,
    /// Silence after which a node is declared lost.
    pub loss_timeout: Duration,
    /// Bytes that may wait for one node; a node that reads too slowly for that is closed (rule S7).
    pub outbox_limit: usize,
}

impl Config {
    /// The defaults, with this token.
    pub fn new(token: impl Into<String>) -> Self {
        Self {
            token: token.into(),
            state: None,
            loss_timeout: Duration::from_secs(5),
            outbox_limit: 256 << 20,
        }
    }
}
