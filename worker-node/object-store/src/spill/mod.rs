//! Spilling: least-recently-used objects written to disk in batches, one file a batch (rule P4).
//!
//! A daemon has a directory of its own inside each spill directory, and holds a lock on it. Each object starts at a
//! page, so it can be mapped in place, sent to a peer by `sendfile`, or read back. Deleting an object gives its disk
//! space back at once; a file goes with its last object. What a daemon leaves behind when it is killed is removed by
//! the next one that opens the same spill directory.

mod direct;
mod directory;
mod store;

pub use store::{SpillError, SpillFileId, SpillLocation, SpillStore};
