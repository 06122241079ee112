//! Mappings of segments into this process. All pointers of the crate's shared memory come from here.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, Range};
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// A shared mapping, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapped {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; `Mapped` itself only reads its two words.
unsafe impl Send for Mapped {}
// SAFETY: as above; whoever makes references from the pointer has to keep them apart (see the users below).
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `len` bytes from `offset` (a multiple of the page size), or to the end of the file.
    pub(crate) fn map(fd: impl AsFd, offset: u64, len: Option<usize>, writable: bool) -> io::Result<Mapped> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        // A mapping beyond the file's end would be answered by SIGBUS.
        let size = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
        let there = size.saturating_sub(offset);
        let len = len.map_or(there, |len| len as u64);
        if len == 0 || len > there {
            return Err(invalid("mapping beyond the segment's end, or empty"));
        }
        let len = usize::try_from(len).map_err(|_| invalid("segment too long to map"))?;
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, offset)? };
        let base = NonNull::new(base.cast()).ok_or_else(|| invalid("mapped at address zero"))?;
        Ok(Mapped { base, len })
    }

    /// The first byte; aligned to the page size.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Where `len` bytes at `offset` start, if they lie inside.
    fn at(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.len as u64 {
            return None;
        }
        // SAFETY: offset is at most the mapping's length, so the pointer stays within or one past its end.
        Some(unsafe { self.base.add(offset as usize) })
    }

    /// Best effort: kernels before 5.14 do not know all advice, and then it costs page faults instead.
    fn advise(&self, range: Range<usize>, advice: Advice) -> io::Result<()> {
        debug_assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies in the mapping, and the advice given in this file (do not inherit, populate)
        // changes no byte of it.
        unsafe {
            rustix::mm::madvise(self.base.add(range.start).as_ptr().cast(), range.len(), advice)?;
        }
        Ok(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: base and len are those of mmap, and whoever holds a reference into it holds `self` too.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The writer's mapping of a segment that is leased to it. A forked child does not inherit it (rule P6): it would
/// write over its parent's objects.
///
/// It gives no access by itself: add it to an [`Arena`](super::Arena), which keeps ranges apart.
#[derive(Debug)]
pub struct WriteMapping {
    mapped: Mapped,
}

impl WriteMapping {
    /// Maps the whole segment. The descriptor may be closed afterwards.
    ///
    /// # Errors
    /// What the system says; `PermissionDenied` for a reader's descriptor.
    pub fn map(fd: impl AsFd) -> io::Result<WriteMapping> {
        let mapped = Mapped::map(fd, 0, None, true)?;
        mapped.advise(0..mapped.len, Advice::LinuxDontFork)?;
        Ok(WriteMapping { mapped })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.mapped.len as u64
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.mapped.len == 0
    }

    /// Maps the pages around a range at once, some 3 to 14 GB/s where first writes would fault at 2 GB/s. Changes no
    /// contents. Best effort: a kernel that cannot leaves it to the faults.
    pub fn populate(&self, offset: u64, len: u64) {
        let start = (offset.min(self.len()) as usize) & !4095;
        let end = offset.saturating_add(len).min(self.len()) as usize;
        if start < end {
            let _ = self.mapped.advise(start..end, Advice::LinuxPopulateWrite);
        }
    }

    /// The range's bytes as a pointer; `None` outside. Whoever makes a reference of it must own the range.
    pub(super) fn range(&self, offset: u64, len: u64) -> Option<NonNull<[u8]>> {
        let start = self.mapped.at(offset, len)?;
        Some(NonNull::slice_from_raw_parts(start, usize::try_from(len).ok()?))
    }
}

/// A reader's mapping: of a whole segment, so that it is made once, or of a part of a file. Share it by `Arc`.
#[derive(Debug)]
pub struct ReadMapping {
    mapped: Mapped,
}

impl ReadMapping {
    /// Maps a whole segment read-only. The descriptor may be closed afterwards.
    ///
    /// # Errors
    /// What the system says.
    pub fn map(fd: impl AsFd) -> io::Result<ReadMapping> {
        Ok(ReadMapping { mapped: Mapped::map(fd, 0, None, false)? })
    }

    /// Maps `len` bytes from `offset`, which must be a multiple of the page size: a spilled object in place.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` if the range is empty or beyond the file's end.
    pub fn map_part(fd: impl AsFd, offset: u64, len: usize) -> io::Result<ReadMapping> {
        Ok(ReadMapping { mapped: Mapped::map(fd, offset, Some(len), false)? })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.mapped.len as u64
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.mapped.len == 0
    }

    /// The bytes of a range that was sealed and that the daemon keeps for this process (see the module's
    /// documentation); `None` if it reaches beyond the mapping.
    pub fn bytes(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let start = self.mapped.at(offset, len)?;
        // SAFETY: the range lies in the mapping, which lives as long as `self`; its pages are allocated and the
        // segment cannot shrink. Nobody writes a sealed range until every process that was told of it has released
        // it: the contract of the store (P1), which `self` is given under.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), usize::try_from(len).ok()?) })
    }
}

/// A sealed object's bytes, kept mapped. Cheap to clone.
///
/// ```
/// use std::sync::Arc;
/// use cluster_store::segment::{ReadBuf, ReadMapping, Segment};
///
/// let segment = Segment::create(4096)?;
/// let mapping = Arc::new(ReadMapping::map(segment.reader_fd())?);
/// let bytes = ReadBuf::new(mapping, 64, 100).expect("inside the segment");
/// assert_eq!(*bytes, [0; 100]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ReadBuf {
    mapping: Arc<ReadMapping>,
    offset: u64,
    len: u64,
}

impl ReadBuf {
    /// `None` if the range reaches beyond the mapping.
    pub fn new(mapping: Arc<ReadMapping>, offset: u64, len: u64) -> Option<ReadBuf> {
        mapping.bytes(offset, len)?;
        Some(ReadBuf { mapping, offset, len })
    }
}

impl Deref for ReadBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // Checked when it was made.
        self.mapping.bytes(self.offset, self.len).unwrap_or_default()
    }
}

impl AsRef<[u8]> for ReadBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::Segment;
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let segment = Segment::create(8192).unwrap();
        let mapping = Arc::new(ReadMapping::map(segment.reader_fd()).unwrap());
        assert_eq!(mapping.bytes(8192, 0), Some(&[][..]));
        assert_eq!(mapping.bytes(8000, 192).map(<[u8]>::len), Some(192));
        assert_eq!(mapping.bytes(8000, 193), None);
        assert_eq!(mapping.bytes(u64::MAX, 2), None);
        assert!(ReadBuf::new(mapping, 1, 8192).is_none());
        assert!(ReadMapping::map_part(segment.reader_fd(), 4096, 4096).is_ok());
        assert!(ReadMapping::map_part(segment.reader_fd(), 4096, 4097).is_err());
        assert!(ReadMapping::map_part(segment.reader_fd(), 1 << 40, 1).is_err());
    }

    #[test]
    fn a_view_outlives_descriptor_and_segment() {
        let segment = Segment::create(4096).unwrap();
        rustix::io::pwrite(segment.writer_fd(), b"here", 100).unwrap();
        let mapping = ReadMapping::map(segment.reader_fd()).unwrap();
        drop(segment);
        let view = ReadBuf::new(Arc::new(mapping), 100, 4).unwrap();
        assert_eq!(std::thread::spawn(move || view.to_vec()).join().unwrap(), b"here");
    }

    #[test]
    fn populate_takes_any_range() {
        let segment = Segment::create(1 << 20).unwrap();
        let mapping = WriteMapping::map(segment.writer_fd()).unwrap();
        for (offset, len) in [(0, 1 << 20), (100, 1), (5000, u64::MAX), (u64::MAX, u64::MAX), (1 << 20, 1)] {
            mapping.populate(offset, len);
        }
    }
}
