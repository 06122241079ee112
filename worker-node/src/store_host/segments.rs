//! The node's segments, by name; shared with blocking threads.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cluster_store::segment::{ReadMapping, Segment, available_memory};
use cluster_types::{Location, Map, SegmentId};

/// Left to the processes of the machine.
const MARGIN: u64 = 64 << 20;

/// Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Segments {
    shared: Arc<Mutex<Map<SegmentId, Arc<Held>>>>,
}

/// Where a segment is made.
pub(super) enum Place {
    Memory,
    /// In memory, none of which is allocated: who writes there does that first.
    Unfilled,
    /// In this directory.
    File(PathBuf),
}

/// A segment, with what is made of it when first asked for.
pub(super) struct Held {
    segment: Segment,
    reader: OnceLock<Arc<OwnedFd>>,
    mapping: OnceLock<Arc<ReadMapping>>,
}

impl Segments {
    /// The map is changed in single steps, so a poisoned lock holds good data.
    fn lock(&self) -> MutexGuard<'_, Map<SegmentId, Arc<Held>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one. Takes a while.
    pub(super) fn create(&self, id: SegmentId, len: u64, place: &Place) -> Result<Arc<Held>, String> {
        let made = match place {
            Place::File(dir) => {
                std::fs::create_dir_all(dir)
                    .map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
                Segment::create_in_file(dir, len)
            }
            Place::Memory => check_memory(len).map(|()| Segment::create(len))?,
            Place::Unfilled => check_memory(len).map(|()| Segment::create_unfilled(len))?,
        };
        let made = made.map_err(|error| super::explain(&error))?;
        let held = Arc::new(Held { segment: made, reader: OnceLock::new(), mapping: OnceLock::new() });
        self.lock().insert(id, held.clone());
        Ok(held)
    }

    pub(super) fn get(&self, id: SegmentId) -> Option<Arc<Held>> {
        self.lock().get(&id).cloned()
    }

    pub(super) fn remove(&self, id: SegmentId) -> Option<Arc<Held>> {
        self.lock().remove(&id)
    }
}

impl Held {
    pub(super) fn len(&self) -> u64 {
        self.segment.len()
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// A descriptor that cannot be mapped for writing.
    pub(super) fn reader(&self) -> io::Result<Arc<OwnedFd>> {
        if let Some(fd) = self.reader.get() {
            return Ok(fd.clone());
        }
        let fd = Arc::new(self.segment.reader_fd().try_clone_to_owned()?);
        Ok(self.reader.get_or_init(|| fd).clone())
    }

    /// For the one process that it is leased to.
    pub(super) fn writer(&self) -> io::Result<Arc<OwnedFd>> {
        Ok(Arc::new(self.segment.writer_fd().try_clone_to_owned()?))
    }

    /// The daemon's own view of all of it.
    pub(super) fn read_mapping(&self) -> io::Result<Arc<ReadMapping>> {
        if let Some(mapping) = self.mapping.get() {
            return Ok(mapping.clone());
        }
        let mapping = Arc::new(ReadMapping::map(self.segment.reader_fd())?);
        Ok(self.mapping.get_or_init(|| mapping).clone())
    }

    /// Gives a range's whole pages back to the system.
    pub(super) fn punch(&self, range: Location) {
        if let Err(error) = self.segment.punch_hole(range.offset, range.len) {
            tracing::warn!(%error, "memory of an ended writer stays allocated");
        }
    }
}

/// Under a cgroup's limit, asking for too much is answered by the OOM killer (rule P3); so this asks first.
fn check_memory(len: u64) -> Result<(), String> {
    let available = available_memory();
    if len.saturating_add(MARGIN) <= available {
        return Ok(());
    }
    Err(format!(
        "{len} bytes of shared memory are needed, and {available} bytes of memory are available (the least of the \
         machine's and its cgroups' limits)"
    ))
}
