//! The writer's side: an allocator together with the mappings it allocates from.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cluster_types::{Location, SegmentId};
use rustc_hash::FxHashMap;

use super::WriteMapping;
use crate::alloc::{AllocError, Allocator, Stats};

/// From this many fresh bytes on, one call that populates them costs less than the faults it saves.
const POPULATE_MIN: u64 = 64 << 10;

/// The segments leased to this process, and what is allocated in them. Cheap to clone; usable from all threads.
///
/// ```
/// use cluster_store::SegmentId;
/// use cluster_store::segment::{Arena, ReadMapping, Segment, WriteMapping};
///
/// let segment = Segment::create(1 << 20)?; // the daemon
/// let arena = Arena::new(); // the writer
/// arena.add_segment(SegmentId(1), WriteMapping::map(segment.writer_fd())?)?;
/// let mut buf = arena.alloc(5).expect("room for five bytes");
/// buf.copy_from_slice(b"hello");
/// let location = buf.seal();
/// let reader = ReadMapping::map(segment.reader_fd())?;
/// assert_eq!(reader.bytes(location.offset, location.len), Some(&b"hello"[..]));
/// arena.free(location)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Arena {
    shared: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    allocator: Allocator,
    mappings: FxHashMap<SegmentId, Arc<WriteMapping>>,
}

impl Arena {
    /// An arena with no segments yet.
    pub fn new() -> Arena {
        Arena::default()
    }

    /// No code in this file panics between two changes that belong together, so a poisoned lock holds good data.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a leased segment into use.
    ///
    /// # Errors
    /// As [`Allocator::add_segment`].
    pub fn add_segment(&self, id: SegmentId, mapping: WriteMapping) -> Result<(), AllocError> {
        let mut inner = self.lock();
        inner.allocator.add_segment(id, mapping.len())?;
        inner.mappings.insert(id, Arc::new(mapping));
        Ok(())
    }

    /// Memory for `len` bytes, aligned to 64, holding whatever was there before; `None` if no segment has room.
    /// Fresh memory is populated in one call, recycled memory is ready as it is.
    pub fn alloc(&self, len: usize) -> Option<WriteBuf> {
        let mut inner = self.lock();
        let allocated = inner.allocator.alloc_traced(len as u64)?;
        let location = allocated.range;
        let mapping = inner.mappings.get(&location.segment).cloned();
        drop(inner);
        let found = mapping.and_then(|m| Some((m.range(location.offset, location.len)?, m)));
        let Some((bytes, mapping)) = found else {
            unreachable!("the allocator holds just the segments that are mapped");
        };
        if let Some(fresh) = allocated.fresh.filter(|fresh| fresh.len >= POPULATE_MIN) {
            mapping.populate(fresh.offset, fresh.len);
        }
        Some(WriteBuf { arena: self.clone(), _mapping: mapping, bytes, location })
    }

    /// Frees a sealed range: when the daemon says that nobody can view it any more.
    ///
    /// # Errors
    /// As [`Allocator::free`].
    pub fn free(&self, location: Location) -> Result<(), AllocError> {
        self.lock().allocator.free(location)
    }

    /// Unmaps wholly free segments, the coldest first, as long as `keep_bytes` of wholly free segments stay, and
    /// returns which to hand back to the daemon.
    pub fn take_free_segments(&self, keep_bytes: u64) -> Vec<SegmentId> {
        let mut inner = self.lock();
        let ids = inner.allocator.take_free_segments(keep_bytes);
        let unmap: Vec<_> = ids.iter().filter_map(|id| inner.mappings.remove(id)).collect();
        drop(inner);
        drop(unmap); // Takes a while for large segments, so not under the lock.
        ids
    }

    /// Reserved and live bytes.
    pub fn stats(&self) -> Stats {
        self.lock().allocator.stats()
    }
}

/// Memory being written, by one owner. Dropped unsealed, it is free again.
#[derive(Debug)]
pub struct WriteBuf {
    arena: Arena,
    /// Keeps `bytes` mapped.
    _mapping: Arc<WriteMapping>,
    bytes: NonNull<[u8]>,
    location: Location,
}

// SAFETY: a WriteBuf is the one owner of its bytes, as a Vec is of its; nothing in it is tied to a thread.
unsafe impl Send for WriteBuf {}
// SAFETY: `&WriteBuf` gives shared references to the bytes only, and nobody else writes them.
unsafe impl Sync for WriteBuf {}

impl WriteBuf {
    /// Where the bytes lie.
    pub fn location(&self) -> Location {
        self.location
    }

    /// Ends writing: from now on the range belongs to whoever frees the location.
    pub fn seal(self) -> Location {
        let location = self.location;
        let mut this = std::mem::ManuallyDrop::new(self);
        // SAFETY: each field is dropped once, here, because `this` is never dropped, and used no more. Only the
        // freeing of the range is left out.
        unsafe {
            std::ptr::drop_in_place(&raw mut this.arena);
            std::ptr::drop_in_place(&raw mut this._mapping);
        }
        location
    }
}

impl Drop for WriteBuf {
    fn drop(&mut self) {
        // It was allocated and not sealed, so it cannot have been freed.
        let _ = self.arena.free(self.location);
    }
}

impl Deref for WriteBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping that `self` holds, is initialised (shared memory starts as zeros)
        // and was allocated for this WriteBuf only: no other reference to it exists while it is unsealed.
        unsafe { self.bytes.as_ref() }
    }
}

impl DerefMut for WriteBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it the only reference.
        unsafe { self.bytes.as_mut() }
    }
}

impl AsMut<[u8]> for WriteBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ReadMapping, Segment};
    use super::*;

    fn arena(len: u64) -> (Segment, Arena) {
        let segment = Segment::create(len).unwrap();
        let arena = Arena::new();
        arena.add_segment(SegmentId(0), WriteMapping::map(segment.writer_fd()).unwrap()).unwrap();
        (segment, arena)
    }

    #[test]
    fn an_unsealed_buffer_is_freed_when_dropped() {
        let (_segment, arena) = arena(1 << 20);
        drop(arena.alloc(1000));
        assert_eq!(arena.stats().live, 0);
        let location = arena.alloc(1000).unwrap().seal();
        assert_eq!(arena.stats().live, 1000);
        assert!(arena.take_free_segments(0).is_empty());
        arena.free(location).unwrap();
        assert!(arena.free(location).is_err());
        assert_eq!(arena.take_free_segments(0), [SegmentId(0)]);
        assert!(arena.alloc(1).is_none());
    }

    #[test]
    fn threads_write_apart_and_a_reader_sees_it() {
        let (segment, arena) = arena(8 << 20);
        let locations: Vec<(u8, Location)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=4u8)
                .map(|n| {
                    let arena = &arena;
                    scope.spawn(move || {
                        let write = |len: usize| {
                            let mut buf = arena.alloc(len).unwrap();
                            buf.fill(n);
                            (n, buf.seal())
                        };
                        (1..200).map(|i| write(i * 37)).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        let reader = ReadMapping::map(segment.reader_fd()).unwrap();
        for (n, at) in locations {
            assert!(reader.bytes(at.offset, at.len).unwrap().iter().all(|&b| b == n));
        }
    }
}
