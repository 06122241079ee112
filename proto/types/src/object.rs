//! Where values lie and how they travel.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{Failure, NodeId, ObjectId, SegmentId};

/// The largest value, in bytes, that rides inside messages; anything larger lies in an object store.
pub const INLINE_MAX: usize = 4096;

/// Bytes of one part of a large value on its way to or from a client without shared memory: with what is around it, it
/// fills one frame of a gRPC stream.
pub const PART: usize = 992 << 10;

/// A few object ids: arguments, or the refs inside a value. Usually none or one.
pub type Refs = SmallVec<[ObjectId; 1]>;

/// A range of a segment of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The segment.
    pub segment: SegmentId,
    /// In bytes from the segment's start; a multiple of 64.
    pub offset: u64,
    /// The value's length in bytes (the range reserved for it may be longer).
    pub len: u64,
}

/// A value as a node gives it to a client that asked for it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// The bytes themselves: small values, or any value for a client that shares no memory with the node.
    Inline(Bytes),
    /// On the client's own node. Until the client says `Release`, the range stays as it is (rule P1).
    Local(Location),
    /// There will be no value: the task that should have made it failed, or the object was lost or freed.
    Failed(Failure),
}

/// What the head knows of an object's value, told to a node that needs it.
#[derive(Clone, Debug, PartialEq)]
pub enum Located {
    /// The bytes, from the head's cache.
    Inline(Bytes),
    /// On these nodes (with the address of each one's data port), best source first; never empty.
    Stored {
        /// In bytes.
        size: u64,
        /// Where copies are.
        copies: Vec<(NodeId, String)>,
    },
    /// On no node, but in durable storage.
    Durable {
        /// In bytes.
        size: u64,
        /// Who wrote it there, under this name.
        writer: NodeId,
    },
    /// There will be no value.
    Failed(Failure),
}
