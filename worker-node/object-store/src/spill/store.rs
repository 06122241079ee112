//! Spill files and the objects in them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::direct;
use super::directory::OwnDirectory;
use crate::segment::{ReadBuf, ReadMapping};

const PAGE: u64 = direct::PAGE as u64;

/// Why spilling or restoring failed.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The disk has no room for the batch; nothing of it was written.
    #[error("{} is full: spilling needs {needed} bytes, {free} are free", dir.display())]
    DiskFull {
        /// The spill directory.
        dir: PathBuf,
        /// Bytes that the batch needs.
        needed: u64,
        /// Bytes free there, as far as the system says.
        free: u64,
    },
    /// The location is not of a spilled object, or of one that was removed.
    #[error("no spilled object at {0:?}")]
    Unknown(SpillLocation),
    /// Anything else.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The step that failed.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A spill file of this daemon; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpillFileId(pub u64);

/// Where a spilled object lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpillLocation {
    /// The file.
    pub file: SpillFileId,
    /// In bytes from the file's start; a multiple of the page size.
    pub offset: u64,
    /// The object's length in bytes.
    pub len: u64,
}

/// One daemon's spilled objects in one directory. Usable from all threads; calls block on the disk.
///
/// ```
/// use cluster_store::spill::SpillStore;
///
/// let dir = std::env::temp_dir().join(format!("spill-example-{}", std::process::id()));
/// let store = SpillStore::open(&dir)?;
/// let at = store.write_batch(&[("a", b"first".as_slice()), ("b", b"second")])?;
/// assert_eq!(&*store.map(at[1].1)?, b"second");
/// for (_, location) in at {
///     store.remove(location)?;
/// }
/// # drop(store);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SpillStore {
    parent: PathBuf,
    dir: OwnDirectory,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    files: FxHashMap<SpillFileId, SpillFile>,
    bytes: u64,
}

#[derive(Debug)]
struct SpillFile {
    file: Arc<File>,
    /// Length of each object, by offset.
    objects: FxHashMap<u64, u64>,
}

impl SpillStore {
    /// Takes `dir` (made if missing) into use, and removes what dead daemons left in it.
    ///
    /// # Errors
    /// [`SpillError::Io`] if the directory cannot be made or read.
    pub fn open(dir: &Path) -> Result<SpillStore, SpillError> {
        let own = OwnDirectory::create(dir).map_err(failed("open the spill directory", dir))?;
        Ok(SpillStore { parent: dir.to_owned(), dir: own, state: Mutex::default() })
    }

    /// The state is changed in single steps, so a poisoned lock holds good data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes objects to one new file, and says where each came to lie. Not synced: spilled objects need not outlive
    /// the machine.
    ///
    /// # Errors
    /// [`SpillError::DiskFull`] before anything is written, where the file system can allocate; in any error nothing
    /// of the batch stays.
    pub fn write_batch<K: Copy>(
        &self,
        objects: &[(K, &[u8])],
    ) -> Result<Vec<(K, SpillLocation)>, SpillError> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let id = {
            let mut state = self.lock();
            state.next += 1;
            SpillFileId(state.next)
        };
        let mut locations = Vec::with_capacity(objects.len());
        let mut end = 0;
        for (key, bytes) in objects {
            locations.push((*key, SpillLocation { file: id, offset: end, len: bytes.len() as u64 }));
            // An empty object has a page too, so that offsets tell objects apart.
            end += (bytes.len() as u64).max(1).next_multiple_of(PAGE);
        }
        let path = self.path(id);
        let file = self.write(&path, end, objects, &locations).inspect_err(|_| {
            let _ = rustix::fs::unlink(&path);
        })?;
        let by_offset = locations.iter().map(|(_, at)| (at.offset, at.len)).collect();
        let mut state = self.lock();
        state.bytes += locations.iter().map(|(_, at)| at.len).sum::<u64>();
        state.files.insert(id, SpillFile { file: Arc::new(file), objects: by_offset });
        Ok(locations)
    }

    fn write<K>(
        &self,
        path: &Path,
        len: u64,
        objects: &[(K, &[u8])],
        locations: &[(K, SpillLocation)],
    ) -> Result<File, SpillError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file: File = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| self.write_error("create", path, len, errno.into()))?
            .into();
        loop {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
                Err(Errno::INTR) => {}
                // A file system that cannot allocate: a full disk shows while writing then.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    file.set_len(len).map_err(|error| self.write_error("extend", path, len, error))?;
                    break;
                }
                other => {
                    other.map_err(|errno| self.write_error("allocate", path, len, errno.into()))?;
                    break;
                }
            }
        }
        let placed: Vec<(u64, &[u8])> =
            objects.iter().zip(locations).map(|((_, bytes), (_, at))| (at.offset, *bytes)).collect();
        direct::write(path, &file, &placed).map_err(|error| self.write_error("write", path, len, error))?;
        Ok(file)
    }

    fn write_error(&self, what: &'static str, path: &Path, needed: u64, source: io::Error) -> SpillError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                let free = self.free_bytes().unwrap_or(0);
                SpillError::DiskFull { dir: self.parent.clone(), needed, free }
            }
            _ => failed(what, path)(source),
        }
    }

    /// Bytes free on the disk, for users that are not root.
    ///
    /// # Errors
    /// [`SpillError::Io`].
    pub fn free_bytes(&self) -> Result<u64, SpillError> {
        let stat = rustix::fs::statvfs(self.dir.path())
            .map_err(|errno| failed("ask the free space of", &self.parent)(errno.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The bytes of the spilled objects.
    pub fn spilled_bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn path(&self, id: SpillFileId) -> PathBuf {
        self.dir.path().join(format!("{}.spill", id.0))
    }

    /// The file of an object, to send it from: keep it while sending, and the bytes stay readable even if the last
    /// object of the file is removed meanwhile. (The object itself must not be: its pages are given back.)
    ///
    /// # Errors
    /// [`SpillError::Unknown`].
    pub fn file(&self, at: SpillLocation) -> Result<Arc<File>, SpillError> {
        let state = self.lock();
        let spill = state.files.get(&at.file).filter(|f| f.objects.get(&at.offset) == Some(&at.len));
        Ok(spill.ok_or(SpillError::Unknown(at))?.file.clone())
    }

    /// Reads an object back, into memory of its length.
    ///
    /// # Errors
    /// [`SpillError::Unknown`], also if `dst` has another length; [`SpillError::Io`].
    pub fn read(&self, at: SpillLocation, dst: &mut [u8]) -> Result<(), SpillError> {
        if dst.len() as u64 != at.len {
            return Err(SpillError::Unknown(at));
        }
        let file = self.file(at)?;
        let path = self.path(at.file);
        direct::read(&path, &file, at.offset, dst).map_err(failed("read", &path))
    }

    /// Maps an object in place. The mapping must be dropped before the object is removed.
    ///
    /// # Errors
    /// [`SpillError::Unknown`]; [`SpillError::Io`] if the system cannot map it.
    pub fn map(&self, at: SpillLocation) -> Result<ReadBuf, SpillError> {
        let file = self.file(at)?;
        // An empty mapping is not possible; an empty object has a page all the same.
        let len = usize::try_from(at.len.max(1)).map_err(|_| SpillError::Unknown(at))?;
        let mapping =
            ReadMapping::map_part(&*file, at.offset, len).map_err(failed("map", &self.path(at.file)))?;
        ReadBuf::new(Arc::new(mapping), 0, at.len).ok_or(SpillError::Unknown(at))
    }

    /// Removes an object: its disk space is free at once, and its file goes with the last object in it.
    ///
    /// # Errors
    /// [`SpillError::Unknown`]; [`SpillError::Io`] if the file could not be removed (it is forgotten all the same).
    pub fn remove(&self, at: SpillLocation) -> Result<(), SpillError> {
        let mut state = self.lock();
        let spill = state.files.get_mut(&at.file).ok_or(SpillError::Unknown(at))?;
        if spill.objects.get(&at.offset) != Some(&at.len) {
            return Err(SpillError::Unknown(at));
        }
        spill.objects.remove(&at.offset);
        let file = spill.file.clone();
        let last = spill.objects.is_empty();
        if last {
            state.files.remove(&at.file);
        }
        state.bytes -= at.len;
        drop(state);
        if last {
            let path = self.path(at.file);
            return rustix::fs::unlink(&path).map_err(|errno| failed("remove", &path)(errno.into()));
        }
        // Where holes cannot be punched, the space is free when the file goes.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = rustix::fs::fallocate(&*file, flags, at.offset, at.len.max(1).next_multiple_of(PAGE));
        Ok(())
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpillError {
    let path = path.to_owned();
    move |source| SpillError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    struct Fixture(PathBuf);

    impl Fixture {
        fn new(name: &str) -> Fixture {
            Fixture(std::env::temp_dir().join(format!("cluster-spill-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn files(store: &SpillStore) -> usize {
        std::fs::read_dir(store.dir.path()).unwrap().count()
    }

    #[test]
    fn a_batch_is_written_read_mapped_and_removed() {
        let fixture = Fixture::new("batch");
        let store = SpillStore::open(&fixture.0).unwrap();
        let large = vec![7u8; 100_000];
        let at = store.write_batch(&[(1, &large[..]), (2, b""), (3, b"small")]).unwrap();
        assert_eq!(files(&store), 1);
        assert_eq!(store.spilled_bytes(), 100_005);
        assert!(at.iter().all(|(_, at)| at.offset % PAGE == 0));
        let mut back = vec![0; large.len()];
        store.read(at[0].1, &mut back).unwrap();
        assert_eq!(back, large);
        assert!(store.map(at[1].1).unwrap().is_empty());
        let view = store.map(at[2].1).unwrap();
        assert_eq!((&*view, view.as_ptr() as usize % 4096), (&b"small"[..], 0));

        let file = store.file(at[2].1).unwrap();
        let before = file.metadata().unwrap().blocks();
        store.remove(at[0].1).unwrap();
        assert!(file.metadata().unwrap().blocks() < before, "its space is free at once");
        assert_eq!(&*view, b"small");
        assert!(matches!(store.remove(at[0].1), Err(SpillError::Unknown(_))));
        store.remove(at[1].1).unwrap();
        store.remove(at[2].1).unwrap();
        assert_eq!((files(&store), store.spilled_bytes()), (0, 0));
        assert!(matches!(store.map(at[2].1), Err(SpillError::Unknown(_))));
        assert_eq!(&*view, b"small", "a view outlives the file");
    }

    #[test]
    fn wrong_locations_are_refused() {
        let fixture = Fixture::new("wrong");
        let store = SpillStore::open(&fixture.0).unwrap();
        assert!(store.write_batch::<u8>(&[]).unwrap().is_empty());
        let at = store.write_batch(&[((), &b"abc"[..])]).unwrap()[0].1;
        for wrong in [
            SpillLocation { len: 4, ..at },
            SpillLocation { offset: 1, ..at },
            SpillLocation { file: SpillFileId(99), ..at },
        ] {
            assert!(matches!(store.remove(wrong), Err(SpillError::Unknown(_))));
            assert!(matches!(store.map(wrong), Err(SpillError::Unknown(_))));
        }
        assert!(matches!(store.read(at, &mut [0; 2]), Err(SpillError::Unknown(_))));
    }

    #[test]
    fn a_full_disk_is_an_error_and_leaves_nothing() {
        // Longer than any disk: answered like a full one, before anything is written.
        let fixture = Fixture::new("full");
        let store = SpillStore::open(&fixture.0).unwrap();
        let path = store.path(SpillFileId(5));
        let error = store.write::<()>(&path, 1 << 55, &[], &[]).unwrap_err();
        match error {
            SpillError::DiskFull { dir, needed, free } => {
                assert_eq!((dir, needed), (fixture.0.clone(), 1 << 55));
                assert!(free > 0);
            }
            other => panic!("{other:?}"),
        }
    }
}
