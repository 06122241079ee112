//! How to connect.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use cluster_types::{ClientId, ClientKind};

/// Where the cluster is.
#[derive(Debug)]
pub enum Target {
    /// The daemon's socket on this machine.
    Unix(PathBuf),
    /// `host:port` of the head. It names a gateway daemon, which is then spoken to over gRPC: no shared memory.
    Remote(String),
    /// A socket that is connected already. Descriptors can be received over it.
    Socket(UnixStream),
}

/// Who connects.
#[derive(Debug)]
pub struct ConnectOptions {
    /// Driver (with its job), executor or observer.
    pub kind: ClientKind,
    /// The cluster's secret.
    pub token: String,
    /// Fails after this long, with a sentence that says what was tried.
    pub timeout: Duration,
    /// Executors: the page shared with the daemon, from the descriptor that the zygote passed on.
    pub page: Option<OwnedFd>,
    /// For tests that want ids they know. Otherwise random.
    pub client: Option<ClientId>,
}

impl ConnectOptions {
    /// With five seconds' patience and a random id.
    pub fn new(kind: ClientKind, token: impl Into<String>) -> Self {
        Self { kind, token: token.into(), timeout: Duration::from_secs(5), page: None, client: None }
    }
}
