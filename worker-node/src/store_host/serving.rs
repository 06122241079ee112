//! What other nodes may pull, and what they are pulling.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cluster_store::segment::{ReadBuf, ReadMapping};
use cluster_store::spill::{SpillError, SpillLocation};
use cluster_store::transfer::{Key, ObjectSource, Opened};
use cluster_types::{ClientId, FailureKind, Location, Map, ObjectId, PART};
use tokio::sync::mpsc;

use super::StoreNotice;
use super::segments::Held;
use crate::gateway::Part;

/// What a transfer keeps as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Range {
    Memory(Location),
    Disk(ObjectId),
}

/// What is done with a range when no transfer uses it any more.
pub(super) enum Deferred {
    /// It goes back to the writer it belongs to.
    Writer(ClientId),
    /// Its writer is asked to give it back.
    Evict(ClientId, ObjectId),
    /// It goes back to the daemon's own memory.
    FreeOwn,
    /// It goes back to the system.
    Punch,
    /// It goes from the disk.
    DeleteSpilled,
}

/// Where an object is served from.
#[derive(Clone)]
pub(super) enum Served {
    Memory { segment: Arc<Held>, location: Location },
    Disk { file: Arc<OwnedFd>, at: SpillLocation },
    Inline(Bytes),
}

impl Served {
    pub(super) fn on_disk(file: &File, at: SpillLocation) -> Option<Served> {
        let file = Arc::new(OwnedFd::from(file.try_clone().ok()?));
        Some(Served::Disk { file, at })
    }
}

/// Shared with the data port's threads.
pub(super) struct Serving {
    index: Mutex<Index>,
    /// Transfers under way; zero is the usual case, and answered without the lock.
    active: AtomicUsize,
    notices: mpsc::UnboundedSender<StoreNotice>,
}

#[derive(Default)]
struct Index {
    /// Boxed, so that the table's growth moves little.
    served: Map<ObjectId, Box<Served>>,
    spilled: Map<ObjectId, SpillLocation>,
    in_use: Map<Range, InUse>,
}

struct InUse {
    object: ObjectId,
    transfers: usize,
}

impl Serving {
    pub(super) fn new(notices: mpsc::UnboundedSender<StoreNotice>) -> Serving {
        Serving { index: Mutex::default(), active: AtomicUsize::new(0), notices }
    }

    /// The index is changed in single steps, so a poisoned lock holds good data.
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn serve(&self, object: ObjectId, served: Served) {
        let served = Box::new(served);
        self.lock().served.insert(object, served);
    }

    pub(super) fn stop(&self, object: ObjectId) {
        self.lock().served.remove(&object);
    }

    /// The length of what is served.
    pub(super) fn len(&self, object: ObjectId) -> Option<u64> {
        Some(match &**self.lock().served.get(&object)? {
            Served::Memory { location, .. } => location.len,
            Served::Disk { at, .. } => at.len,
            Served::Inline(bytes) => bytes.len() as u64,
        })
    }

    pub(super) fn note_spilled(&self, places: &[(ObjectId, SpillLocation)]) {
        self.lock().spilled.extend(places.iter().copied());
    }

    pub(super) fn spilled(&self, object: ObjectId) -> Option<SpillLocation> {
        self.lock().spilled.get(&object).copied()
    }

    pub(super) fn forget_spilled(&self, object: ObjectId) -> Option<SpillLocation> {
        self.lock().spilled.remove(&object)
    }

    /// Whether no transfer is under way at all.
    ///
    /// A transfer begins under the lock and only while its object is served; whoever asks has stopped serving the
    /// object before, under the same lock, so a transfer of it that began is counted by now.
    pub(super) fn idle(&self) -> bool {
        self.active.load(Ordering::SeqCst) == 0
    }

    pub(super) fn in_use(&self, range: Range) -> bool {
        !self.idle() && self.lock().in_use.contains_key(&range)
    }

    /// The memory from which the object is being sent, if it is.
    pub(super) fn memory_in_use(&self, object: ObjectId) -> Option<Range> {
        if self.idle() {
            return None;
        }
        let in_memory = |(range, used): (&Range, &InUse)| {
            (used.object == object && matches!(range, Range::Memory(_))).then_some(*range)
        };
        self.lock().in_use.iter().find_map(in_memory)
    }

    /// From here to the guard's end, what is served stays as it is.
    pub(super) fn begin(self: &Arc<Self>, object: ObjectId) -> Option<(Served, Option<Guard>)> {
        let mut index = self.lock();
        let served = Served::clone(index.served.get(&object)?);
        let range = match &served {
            Served::Memory { location, .. } => Range::Memory(*location),
            Served::Disk { .. } => Range::Disk(object),
            Served::Inline(_) => return Some((served, None)),
        };
        index.in_use.entry(range).or_insert(InUse { object, transfers: 0 }).transfers += 1;
        self.active.fetch_add(1, Ordering::SeqCst);
        Some((served, Some(Guard { serving: self.clone(), range })))
    }
}

/// Bytes of an object being served, where they lie.
pub(super) enum ServedBytes {
    Inline(Bytes),
    Memory { mapping: Arc<ReadMapping>, location: Location },
    Disk(ReadBuf),
}

impl std::ops::Deref for ServedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            ServedBytes::Inline(bytes) => bytes,
            // Checked when it was made.
            ServedBytes::Memory { mapping, location } => {
                mapping.bytes(location.offset, location.len).unwrap_or_default()
            }
            ServedBytes::Disk(mapped) => mapped,
        }
    }
}

impl Served {
    /// The part that begins there, copied.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(super) fn read_part(&self, from: u64) -> Result<Part, String> {
        let explain = |error: std::io::Error| error.to_string();
        let (file, start, len) = match self {
            Served::Memory { segment, location } => {
                (segment.reader().map_err(explain)?, location.offset, location.len)
            }
            Served::Disk { file, at } => (file.clone(), at.offset, at.len),
            Served::Inline(bytes) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
                let to = bytes.len().min(from.saturating_add(PART));
                return Ok(Part { bytes: bytes.slice(from..to), len: bytes.len() as u64 });
            }
        };
        let mut bytes = vec![0; len.saturating_sub(from).min(PART as u64) as usize];
        let mut done = 0;
        while done < bytes.len() {
            let at = start + from + done as u64;
            match rustix::io::retry_on_intr(|| rustix::io::pread(&*file, &mut bytes[done..], at)) {
                Ok(0) => return Err("what lies there is shorter".to_owned()),
                Ok(count) => done += count,
                Err(error) => return Err(explain(error.into())),
            }
        }
        Ok(Part { bytes: bytes.into(), len })
    }

    /// # Errors
    /// Why they cannot be read.
    pub(super) fn read(
        &self,
        map: impl FnOnce(SpillLocation) -> Result<ReadBuf, SpillError>,
    ) -> Result<ServedBytes, String> {
        match self {
            Served::Inline(bytes) => Ok(ServedBytes::Inline(bytes.clone())),
            Served::Memory { segment, location } => {
                let mapping = segment.read_mapping().map_err(|error| error.to_string())?;
                match mapping.bytes(location.offset, location.len) {
                    Some(_) => Ok(ServedBytes::Memory { mapping, location: *location }),
                    None => Err("it lies beyond its segment".to_owned()),
                }
            }
            Served::Disk { at, .. } => {
                map(*at).map(ServedBytes::Disk).map_err(|error| super::explain(&error))
            }
        }
    }
}

/// Bytes of an object being served, copied; or why not.
pub(super) fn copy_out(
    served: Served,
    map: impl FnOnce(SpillLocation) -> Result<ReadBuf, SpillError>,
) -> Result<Bytes, (FailureKind, String)> {
    let lost = |reason: String| (FailureKind::ObjectLost, reason);
    match served {
        Served::Inline(bytes) => Ok(bytes),
        Served::Memory { segment, location } => {
            let mapping = segment.read_mapping().map_err(|error| lost(error.to_string()))?;
            let bytes = mapping.bytes(location.offset, location.len);
            bytes.map(Bytes::copy_from_slice).ok_or_else(|| lost("it lies beyond its segment".to_owned()))
        }
        Served::Disk { at, .. } => {
            let mapped = map(at).map_err(|error| lost(super::explain(&error)))?;
            Ok(Bytes::copy_from_slice(&mapped))
        }
    }
}

/// A transfer under way.
pub(super) struct Guard {
    serving: Arc<Serving>,
    range: Range,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut index = self.serving.lock();
        if let Some(count) = index.in_use.get_mut(&self.range) {
            count.transfers -= 1;
            if count.transfers == 0 {
                index.in_use.remove(&self.range);
            }
        }
        self.serving.active.fetch_sub(1, Ordering::SeqCst);
        drop(index);
        let _ = self.serving.notices.send(StoreNotice::TransferEnded(self.range));
    }
}

/// The data port's view.
pub(super) struct DataPort(pub(super) Arc<Serving>);

impl ObjectSource for DataPort {
    fn tunnel(&self, stream: std::net::TcpStream) {
        let _ = self.0.notices.send(StoreNotice::Tunnel(stream));
    }

    fn open(&self, key: Key) -> Opened {
        let found = self.0.begin(ObjectId::from_bytes(key));
        let (served, guard) = match found {
            None => return Opened::Missing,
            Some((Served::Inline(bytes), _)) => return Opened::Bytes(bytes),
            Some((served, guard)) => (served, Box::new(guard)),
        };
        match served {
            Served::Inline(bytes) => Opened::Bytes(bytes),
            Served::Memory { segment, location } => match segment.reader() {
                Ok(fd) => Opened::Found { fd, offset: location.offset, len: location.len, guard },
                Err(_) => Opened::Missing,
            },
            Served::Disk { file, at } => Opened::Found { fd: file, offset: at.offset, len: at.len, guard },
        }
    }
}
