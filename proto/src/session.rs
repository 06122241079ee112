//! What a client on a machine without a daemon and its gateway agree on beside the frames.

use std::time::Duration;

/// In the answer to a client's `Attach`: for how many milliseconds the gateway waits for a client that is away.
pub const GRACE_HEADER: &str = "cluster-client-grace-ms";

/// A silent connection is asked for a sign of life this often …
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(3);
/// … and is lost without one after this.
pub const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(5);

/// Bytes on their way one way: what a fast line of long delay holds.
pub const STREAM_WINDOW: u32 = 16 << 20;
/// Bytes of a frame of HTTP/2, each of which costs the same, however long it is.
pub const HTTP_FRAME: u32 = 1 << 20;
