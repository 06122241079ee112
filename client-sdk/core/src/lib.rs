//! The client's half as a pure state machine: refs, waits, resends.

use cluster_types::ObjectId;

/// Where the refs that become handles came from: what keeps their objects alive until this process holds them itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleSource {
    /// Inside the value of this object, on which the process has a handle or a view at this moment.
    Inside(ObjectId),
    /// Among the arguments of the task that runs.
    Task,
    /// Anything else; the process tells its daemon at once.
    Elsewhere,
}
