//! Memory that the daemon itself writes: objects pulled, restored, or received from drivers without shared memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use cluster_store::alloc::Allocator;
use cluster_store::segment::{Arena, WriteBuf, WriteMapping};
use cluster_types::{Location, SegmentId};

use super::segments::{Place, Segments};

/// The core names its segments from 1 up; ours have the upper half.
const FIRST: u32 = 1 << 31;
/// Segments are made in at least this size, so that small objects share one.
const SEGMENT_MIN: u64 = 16 << 20;
/// Wholly free segments kept for the next object.
const KEEP: u64 = 64 << 20;

pub(super) struct OwnMemory {
    arena: Arena,
    segments: Segments,
    next: AtomicU32,
    /// One thread at a time makes a segment; those that waited look again first.
    growing: Mutex<()>,
}

impl OwnMemory {
    pub(super) fn new(segments: Segments) -> OwnMemory {
        OwnMemory { arena: Arena::new(), segments, next: AtomicU32::new(FIRST), growing: Mutex::new(()) }
    }

    /// Memory of this length; may allocate a segment, so not for the event loop.
    pub(super) fn alloc(&self, len: u64) -> Result<WriteBuf, String> {
        let size = usize::try_from(len).map_err(|_| format!("{len} bytes are more than can be addressed"))?;
        if let Some(buffer) = self.arena.alloc(size) {
            return Ok(buffer);
        }
        let _one_at_a_time = self.growing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(buffer) = self.arena.alloc(size) {
            return Ok(buffer);
        }
        let id = SegmentId(self.next.fetch_add(1, Ordering::Relaxed));
        let segment =
            self.segments.create(id, Allocator::segment_len(len).max(SEGMENT_MIN), &Place::Memory)?;
        let mapped = WriteMapping::map(segment.segment().writer_fd()).map_err(|error| error.to_string());
        let added =
            mapped.and_then(|mapping| self.arena.add_segment(id, mapping).map_err(|error| error.to_string()));
        if let Err(reason) = added {
            self.segments.remove(id);
            return Err(reason);
        }
        self.arena.alloc(size).ok_or_else(|| format!("a new segment has no room for {len} bytes"))
    }

    /// The range is free again.
    pub(super) fn free(&self, location: Location) {
        if let Err(error) = self.arena.free(location) {
            tracing::error!(?location, %error, "memory was to be freed that is not in use");
        }
        for segment in self.arena.take_free_segments(KEEP) {
            self.segments.remove(segment);
        }
    }
}
