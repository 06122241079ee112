//! Segments: shared memory that the daemon makes and one writer fills (rules P1, P3, P4 and P6 of the store).
//!
//! The daemon makes a [`Segment`] and sends its descriptors over Unix sockets ([`send_with_fds`]): the writable one
//! to the process that leases it, a read-only one to every process that is told of an object in it. The writer maps
//! it once and allocates from an [`Arena`]; a reader maps the whole segment once ([`ReadMapping`]) and holds a
//! [`ReadBuf`] for each object it views.
//!
//! **What makes the borrowed bytes sound.** Memory shared between processes is outside Rust's own rules; these hold
//! it together: a segment is leased to one writer and mapped for writing by one `Arena`; the arena's allocator never
//! gives out overlapping ranges; a location is told to others only after [`WriteBuf::seal`], which gives up write
//! access; and a range is freed only when nobody can view it any more (P1, kept by the daemon). Sealed against
//! shrinking and allocated in full beforehand, the memory cannot vanish under a mapping.

mod arena;
mod create;
mod fds;
mod mapping;
mod memory;

pub use arena::{Arena, WriteBuf};
pub use create::{Segment, SegmentError, fill};
pub use fds::{MAX_FDS, recv_with_fds, send_with_fds};
pub(crate) use mapping::Mapped;
pub use mapping::{ReadBuf, ReadMapping, WriteMapping};
pub use memory::{MemoryUse, available_memory, memory_use};
