//! Making segments: the daemon's side.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;

use super::memory::available_memory;

/// Why a segment could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The system refused to set aside the memory, or the disk space.
    #[error("no room for a segment of {len} bytes in {place}")]
    NoRoom {
        /// Bytes asked for.
        len: u64,
        /// `memory`, or the directory.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {what} a segment")]
    Io {
        /// The step that failed.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl Fn(Errno) -> SegmentError {
    move |errno| SegmentError::Io { what, source: errno.into() }
}

/// A piece of shared memory, or of disk with the same interface, allocated in full. It has no name: when the last
/// process that maps it ends, however it ends, the memory is free.
#[derive(Debug)]
pub struct Segment {
    writable: OwnedFd,
    readable: OwnedFd,
    len: u64,
}

impl Segment {
    /// Makes a segment of `len` bytes in memory. Takes about 0.25 s for each GiB.
    ///
    /// # Errors
    /// [`SegmentError::NoRoom`] if [`available_memory`] is less, or the system refuses. What the executors will need
    /// is the caller's to set aside.
    pub fn create(len: u64) -> Result<Segment, SegmentError> {
        Segment::create_with(len, |fd| allocate(fd, len, || "memory".to_owned()))
    }

    /// The same, at once and without the memory: who writes there allocates it piece by piece, with [`fill`]. A reader
    /// may be shown only what was filled, or it could get SIGBUS.
    ///
    /// # Errors
    /// As [`Segment::create`].
    pub fn create_unfilled(len: u64) -> Result<Segment, SegmentError> {
        Segment::create_with(len, |fd| rustix::fs::ftruncate(fd, len).map_err(failed("size")))
    }

    fn create_with(
        len: u64,
        size: impl FnOnce(&OwnedFd) -> Result<(), SegmentError>,
    ) -> Result<Segment, SegmentError> {
        // A memfd has no size limit of its own: the kernel would go on allocating until it kills somebody.
        if len > available_memory() {
            return Err(no_room(Errno::NOMEM, len, "memory".to_owned()));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("cluster-segment", flags).map_err(failed("create"))?;
        size(&fd)?;
        // Against shrinking: readers would get SIGBUS. Against growing: the size is what the daemon counts.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(failed("seal"))?;
        Segment::from_allocated(fd, len)
    }

    /// Makes a segment of `len` bytes on disk, in an unnamed file in `dir`: for when memory is full and nothing can
    /// be spilled. A file cannot be sealed, so this is for writers that are trusted not to shorten it.
    ///
    /// # Errors
    /// [`SegmentError::NoRoom`] if the disk is full.
    pub fn create_in_file(dir: &Path, len: u64) -> Result<Segment, SegmentError> {
        let fd = unnamed_file(dir).map_err(failed("create"))?;
        allocate(&fd, len, || dir.display().to_string())?;
        Segment::from_allocated(fd, len)
    }

    fn from_allocated(writable: OwnedFd, len: u64) -> Result<Segment, SegmentError> {
        // A descriptor opened read-only cannot be mapped writable. The mode keeps a reader that is not root from
        // opening it anew for writing by mistake; against malice by the same user nothing would.
        rustix::fs::fchmod(&writable, Mode::RUSR).map_err(failed("protect"))?;
        let path = format!("/proc/self/fd/{}", writable.as_raw_fd());
        let readable = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("reopen (is /proc mounted?)"))?;
        Ok(Segment { writable, readable, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: an empty segment cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The descriptor for the one process that this segment is leased to.
    pub fn writer_fd(&self) -> BorrowedFd<'_> {
        self.writable.as_fd()
    }

    /// The descriptor for readers: it cannot be mapped writable.
    pub fn reader_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }

    /// Gives the whole pages within `offset..offset + len` back to the system. They read as zeros afterwards, and
    /// must be allocated again ([`Segment::refill`]) before anybody writes there.
    ///
    /// # Errors
    /// What the system says; `EOPNOTSUPP` on file systems that cannot.
    pub fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let start = offset.checked_next_multiple_of(4096).unwrap_or(u64::MAX);
        let end = offset.saturating_add(len).min(self.len) / 4096 * 4096;
        if start >= end {
            return Ok(());
        }
        retry(|| rustix::fs::fallocate(&self.writable, flags, start, end - start)).map_err(Into::into)
    }

    /// Allocates memory again where holes were punched.
    ///
    /// # Errors
    /// [`SegmentError::NoRoom`].
    pub fn refill(&self, offset: u64, len: u64) -> Result<(), SegmentError> {
        let len = len.min(self.len.saturating_sub(offset));
        if len == 0 {
            return Ok(());
        }
        if len > available_memory() {
            return Err(no_room(Errno::NOMEM, len, "memory".to_owned()));
        }
        retry(|| rustix::fs::fallocate(&self.writable, FallocateFlags::KEEP_SIZE, offset, len))
            .map_err(|errno| no_room(errno, len, "the segment".to_owned()))
    }
}

/// Allocates a range of a segment that was made unfilled, by the descriptor for its writer.
///
/// # Errors
/// [`SegmentError::NoRoom`].
pub fn fill(writer: impl AsFd, offset: u64, len: u64) -> Result<(), SegmentError> {
    retry(|| rustix::fs::fallocate(&writer, FallocateFlags::KEEP_SIZE, offset, len))
        .map_err(|errno| no_room(errno, len, "memory".to_owned()))
}

fn allocate(fd: &OwnedFd, len: u64, place: impl Fn() -> String) -> Result<(), SegmentError> {
    if len == 0 || i64::try_from(len).is_err() {
        return Err(failed("allocate")(Errno::INVAL));
    }
    retry(|| rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, len))
        .map_err(|errno| no_room(errno, len, place()))
}

fn no_room(errno: Errno, len: u64, place: String) -> SegmentError {
    match errno {
        Errno::NOSPC | Errno::NOMEM | Errno::DQUOT | Errno::FBIG => {
            SegmentError::NoRoom { len, place, source: errno.into() }
        }
        _ => failed("allocate")(errno),
    }
}

/// A signal interrupts a long fallocate, which then has changed nothing.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn unnamed_file(dir: &Path) -> Result<OwnedFd, Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
        // Not every file system has unnamed files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
        other => return other,
    }
    let path = unique_name(dir);
    let fd = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    rustix::fs::unlink(&path)?;
    Ok(fd)
}

fn unique_name(dir: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    dir.join(format!(".cluster-segment-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::super::{ReadMapping, WriteMapping};
    use super::*;

    #[test]
    fn readers_cannot_map_or_write() {
        let dir = std::env::temp_dir();
        for segment in [Segment::create(1 << 16).unwrap(), Segment::create_in_file(&dir, 1 << 16).unwrap()] {
            assert!(WriteMapping::map(segment.writer_fd()).is_ok());
            assert!(ReadMapping::map(segment.reader_fd()).is_ok());
            let refused = WriteMapping::map(segment.reader_fd()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(rustix::io::write(segment.reader_fd(), b"x"), Err(Errno::BADF));
        }
    }

    #[test]
    fn it_cannot_be_shortened() {
        let segment = Segment::create(1 << 16).unwrap();
        assert_eq!(rustix::fs::ftruncate(segment.writer_fd(), 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(segment.writer_fd(), 1 << 20), Err(Errno::PERM));
    }

    fn pages_held(segment: &Segment) -> i64 {
        rustix::fs::fstat(segment.writer_fd()).unwrap().st_blocks * 512 / 4096
    }

    #[test]
    fn holes_give_memory_back() {
        let segment = Segment::create(16 * 4096).unwrap();
        assert_eq!(pages_held(&segment), 16);
        segment.punch_hole(100, 3 * 4096).unwrap(); // two whole pages
        assert_eq!(pages_held(&segment), 14);
        segment.punch_hole(10, 20).unwrap();
        segment.punch_hole(u64::MAX, u64::MAX).unwrap();
        assert_eq!(pages_held(&segment), 14);
        segment.refill(0, 16 * 4096).unwrap();
        assert_eq!(pages_held(&segment), 16);
    }

    #[test]
    fn an_unfilled_one_takes_memory_as_it_is_filled() {
        let segment = Segment::create_unfilled(16 * 4096).unwrap();
        assert_eq!((pages_held(&segment), segment.len()), (0, 16 * 4096));
        fill(segment.writer_fd(), 0, 5 * 4096 + 1).unwrap();
        assert_eq!(pages_held(&segment), 6);
        assert_eq!(rustix::fs::ftruncate(segment.writer_fd(), 0), Err(Errno::PERM));
        assert!(matches!(Segment::create_unfilled(1 << 62), Err(SegmentError::NoRoom { .. })));
    }

    #[test]
    fn what_cannot_fit_is_an_error() {
        let too_long = Segment::create(1 << 62).unwrap_err();
        assert!(matches!(too_long, SegmentError::NoRoom { .. }), "{too_long:?}");
        assert!(matches!(Segment::create(0), Err(SegmentError::Io { .. })));
        let missing = Segment::create_in_file(Path::new("/nonexistent"), 4096);
        assert!(matches!(missing, Err(SegmentError::Io { .. })));
    }
}
