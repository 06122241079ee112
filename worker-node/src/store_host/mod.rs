//! Does with memory, disk and the data port what the core decides; answers come as events.
//!
//! Nothing here blocks the event loop: allocating, copying and disk I/O run on blocking threads, transfers on the
//! threads of the data port.

mod durable;
mod own;
mod segments;
mod serving;
#[cfg(test)]
mod tests;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use cluster_store::spill::{SpillError, SpillStore};
use cluster_store::transfer::{DataServer, Puller, PullerConfig, ServerConfig, TransferErrorKind};
use cluster_types::{
    ClientId, Failure, FailureKind, Location, Map, NodeId, NodeToClient, ObjectId, SegmentId, Value,
};
use tokio::sync::mpsc;
use worker_core::{Effect, Event, ServeFrom};

use crate::gateway::{NoPart, Part};
use durable::Durable;
pub use durable::check_durable_url;
pub(crate) use durable::open_storage;
use own::OwnMemory;
use segments::{Place, Segments};
pub(crate) use serving::Range;
use serving::{DataPort, Deferred, Serving};

/// What the store tells the event loop.
pub(crate) enum StoreNotice {
    /// An answer for the core.
    Event(Event),
    /// An answer for a client without shared memory.
    Ready { client: ClientId, object: ObjectId, value: Value },
    /// No transfer uses this any more.
    TransferEnded(Range),
    /// Another node connected to talk about calls to actors.
    Tunnel(std::net::TcpStream),
}

pub(crate) struct StoreHost {
    segments: Segments,
    own: Arc<OwnMemory>,
    serving: Arc<Serving>,
    spill: Arc<Spill>,
    durable: Arc<Durable>,
    /// What waits for transfers to end.
    deferred: Map<Range, Vec<Deferred>>,
    notices: mpsc::UnboundedSender<StoreNotice>,
    token: String,
    puller: Option<Puller>,
    _server: Option<DataServer>,
}

/// The spill directory, made when it is first needed.
struct Spill {
    dir: PathBuf,
    store: OnceLock<SpillStore>,
    lock: std::sync::Mutex<()>,
}

impl Spill {
    fn store(&self) -> Result<&SpillStore, SpillError> {
        let _one_at_a_time = self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let opened = SpillStore::open(&self.dir)?;
        Ok(self.store.get_or_init(|| opened))
    }
}

impl StoreHost {
    /// A store without memory yet, and where its answers come. The channel holds one answer for each effect.
    pub(crate) fn new(
        token: String,
        spill_dir: PathBuf,
    ) -> (StoreHost, mpsc::UnboundedReceiver<StoreNotice>) {
        let (notices, receiver) = mpsc::unbounded_channel();
        let segments = Segments::default();
        let host = StoreHost {
            own: Arc::new(OwnMemory::new(segments.clone())),
            serving: Arc::new(Serving::new(notices.clone())),
            spill: Arc::new(Spill {
                dir: spill_dir,
                store: OnceLock::new(),
                lock: std::sync::Mutex::new(()),
            }),
            durable: Arc::new(Durable::new(String::new())),
            segments,
            deferred: Map::default(),
            notices,
            token,
            puller: None,
            _server: None,
        };
        (host, receiver)
    }

    /// Where durable copies lie.
    pub(crate) fn keep_durable_copies(&mut self, url: String) {
        self.durable = Arc::new(Durable::new(url));
    }

    /// Deletes the durable copies that this daemon wrote: its cluster ends with it. Blocks.
    pub(crate) fn delete_durable_copies(&self, node: NodeId) {
        if !self.durable.is_empty() {
            self.durable.delete_all(node);
        }
    }

    /// Opens the data port.
    pub(crate) fn listen(&mut self, listener: TcpListener) -> std::io::Result<SocketAddr> {
        let config = ServerConfig::default();
        let server = DataServer::start(
            listener,
            self.token.as_bytes(),
            Arc::new(DataPort(self.serving.clone())),
            config,
        )?;
        let address = server.address();
        self._server = Some(server);
        Ok(address)
    }

    /// A segment's length and a descriptor of it.
    pub(crate) fn descriptor(&self, segment: SegmentId, writable: bool) -> Option<(u64, Arc<OwnedFd>)> {
        let held = self.segments.get(segment)?;
        let fd = if writable { held.writer().ok()? } else { held.reader().ok()? };
        Some((held.len(), fd))
    }

    /// Carries out an effect that concerns the store.
    pub(crate) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::CreateSegment { segment, len, file_backed: true, .. } => {
                self.create(segment, len, Place::File(self.spill.dir.clone()));
            }
            Effect::CreateSegment { segment, len, for_daemon, .. } => {
                self.create(segment, len, if for_daemon { Place::Unfilled } else { Place::Memory });
            }
            Effect::DropSegment { segment } => self.in_background({
                let segments = self.segments.clone();
                // Unmapping and freeing takes a while for large ones.
                move |_| drop(segments.remove(segment))
            }),
            Effect::PunchHole(location) => self.when_unused(Range::Memory(location), Deferred::Punch),
            Effect::FreeOwn(location) => self.when_unused(Range::Memory(location), Deferred::FreeOwn),
            Effect::Pull { object, size, address, .. } => self.pull(object, size, &address),
            Effect::StoreBytes { object, bytes } => self.store_bytes(object, bytes),
            Effect::Serve { object, source } => self.serve(object, source),
            Effect::StopServing { object } => self.serving.stop(object),
            Effect::Spill { objects } => self.spill(objects),
            Effect::Restore { object } => self.restore(object),
            Effect::FetchDurable { object, size, writer } => self.fetch_durable(object, size, writer),
            Effect::DeleteDurable { object, writer } => self.delete_durable(object, writer),
            Effect::DeleteSpilled { object } => {
                self.when_unused(Range::Disk(object), Deferred::DeleteSpilled)
            }
            other => tracing::error!(effect = ?other, "an effect that is none of the store's"),
        }
    }

    /// Runs on a blocking thread.
    fn in_background(&self, work: impl FnOnce(&mpsc::UnboundedSender<StoreNotice>) + Send + 'static) {
        let notices = self.notices.clone();
        tokio::task::spawn_blocking(move || work(&notices));
    }

    fn create(&self, segment: SegmentId, len: u64, place: Place) {
        let segments = self.segments.clone();
        self.in_background(move |notices| {
            let in_file = matches!(place, Place::File(_));
            let failure = segments.create(segment, len, &place).err().map(|reason| Failure {
                kind: if in_file { FailureKind::OutOfDisk } else { FailureKind::ObjectTooLarge },
                message: reason.into(),
                payload: Bytes::new(),
                task: None,
            });
            answer(notices, Event::SegmentCreated { segment, failure });
        });
    }

    fn pull(&mut self, object: ObjectId, size: u64, address: &str) {
        let puller = match &mut self.puller {
            Some(puller) => puller,
            none => match Puller::start(self.token.as_bytes(), PullerConfig::default()) {
                Ok(puller) => none.insert(puller),
                Err(error) => {
                    let reason = format!("cannot start receiving objects: {error}");
                    let failed = Event::StoreFailed { object, missing: false, reason, no_memory: true };
                    return answer(&self.notices, failed);
                }
            },
        };
        let (own, notices) = (self.own.clone(), self.notices.clone());
        let provide = move |len| {
            if len != size {
                return Err(format!("it has {len} bytes, {size} were announced"));
            }
            own.alloc(len)
        };
        puller.pull(address, object.to_bytes(), provide, move |result| {
            answer(
                &notices,
                match result {
                    Ok(buffer) => Event::Stored { object, location: buffer.seal() },
                    Err(failure) => Event::StoreFailed {
                        object,
                        missing: matches!(failure.error.kind, TransferErrorKind::Missing),
                        no_memory: matches!(failure.error.kind, TransferErrorKind::Destination { .. }),
                        reason: explain(&failure.error),
                    },
                },
            );
        });
    }

    fn store_bytes(&self, object: ObjectId, bytes: Bytes) {
        let own = self.own.clone();
        self.in_background(move |notices| {
            answer(
                notices,
                match own.alloc(bytes.len() as u64) {
                    Ok(mut buffer) => {
                        cluster_store::copy::copy_into(&mut buffer, &bytes);
                        Event::Stored { object, location: buffer.seal() }
                    }
                    Err(reason) => Event::StoreFailed { object, missing: false, reason, no_memory: true },
                },
            );
        });
    }

    fn serve(&self, object: ObjectId, source: ServeFrom) {
        let served = match source {
            ServeFrom::Inline(bytes) => Some(serving::Served::Inline(bytes)),
            ServeFrom::Memory(location) => self
                .segments
                .get(location.segment)
                .map(|segment| serving::Served::Memory { segment, location }),
            ServeFrom::Disk => {
                let at = self.serving.spilled(object);
                let file = at.and_then(|at| self.spill.store().ok()?.file(at).ok());
                file.and_then(|file| serving::Served::on_disk(&file, at?))
            }
        };
        match served {
            Some(served) => self.serving.serve(object, served),
            None => tracing::error!(%object, "an object was to be served from where it is not"),
        }
    }

    fn spill(&self, objects: Vec<(ObjectId, Location)>) {
        let (segments, spill, serving) = (self.segments.clone(), self.spill.clone(), self.serving.clone());
        self.in_background(move |notices| {
            let ids: Vec<ObjectId> = objects.iter().map(|(object, _)| *object).collect();
            let held: Vec<_> = objects
                .iter()
                .filter_map(|(object, at)| {
                    Some((*object, segments.get(at.segment)?.read_mapping().ok()?, *at))
                })
                .collect();
            let batch: Vec<(ObjectId, &[u8])> = held
                .iter()
                .filter_map(|(object, mapping, at)| Some((*object, mapping.bytes(at.offset, at.len)?)))
                .collect();
            let written = if batch.len() == ids.len() {
                spill.store().and_then(|store| store.write_batch(&batch)).map_err(|error| Failure {
                    kind: FailureKind::OutOfDisk,
                    message: explain(&error).into(),
                    payload: Bytes::new(),
                    task: None,
                })
            } else {
                Err(Failure {
                    kind: FailureKind::Internal,
                    message: "an object to be spilled lies in no segment of this node".into(),
                    payload: Bytes::new(),
                    task: None,
                })
            };
            answer(
                notices,
                match written {
                    Ok(places) => {
                        serving.note_spilled(&places);
                        Event::Spilled { objects: ids }
                    }
                    Err(failure) => Event::SpillFailed { objects: ids, failure },
                },
            );
        });
    }

    fn restore(&self, object: ObjectId) {
        let (own, spill, serving) = (self.own.clone(), self.spill.clone(), self.serving.clone());
        self.in_background(move |notices| {
            let failed =
                |reason, missing, no_memory| Event::StoreFailed { object, missing, reason, no_memory };
            let restored = || {
                let Some(at) = serving.spilled(object) else {
                    return failed("it is not on disk".to_owned(), true, false);
                };
                let mut buffer = match own.alloc(at.len) {
                    Ok(buffer) => buffer,
                    Err(reason) => return failed(reason, false, true),
                };
                match spill.store().and_then(|store| store.read(at, &mut buffer)) {
                    Ok(()) => Event::Restored { object, location: buffer.seal() },
                    Err(error) => failed(explain(&error), false, false),
                }
            };
            answer(notices, restored());
        });
    }

    /// Writes a copy of what is being served; until that is done it stays as it is.
    pub(crate) fn write_durable(&self, object: ObjectId, writer: NodeId) {
        let (durable, spill, begun) = (self.durable.clone(), self.spill.clone(), self.serving.begin(object));
        let notices = self.notices.clone();
        self.in_background(move |failures| {
            let place = durable.place().to_owned();
            let failed = {
                let place = place.clone();
                move |why: String| Event::DurableFailed { object, reason: format!("{place}: {why}") }
            };
            let Some((served, guard)) = begun else {
                return answer(failures, failed("it is not on this node any more".to_owned()));
            };
            let told = failed.clone();
            let started = durable.run(move |turn| async move {
                let written = match served.read(|at| spill.store()?.map(at)) {
                    Ok(bytes) => turn.write(object, writer, &bytes).await,
                    Err(reason) => Err(reason),
                };
                drop(guard);
                let event = match written {
                    Ok(()) => Event::DurableWritten { object },
                    Err(reason) => failed(reason),
                };
                answer(&notices, event);
            });
            if let Err(reason) = started {
                answer(failures, told(reason));
            }
        });
    }

    fn fetch_durable(&self, object: ObjectId, size: u64, writer: NodeId) {
        let (durable, own, notices) = (self.durable.clone(), self.own.clone(), self.notices.clone());
        self.in_background(move |failures| {
            let failed = move |reason: String, no_memory: bool| Event::StoreFailed {
                object,
                missing: !no_memory,
                reason,
                no_memory,
            };
            let mut buffer = match own.alloc(size) {
                Ok(buffer) => buffer,
                Err(reason) => return answer(failures, failed(reason, true)),
            };
            let place = durable.place().to_owned();
            let started = durable.run(move |turn| async move {
                let event = match turn.read(object, writer, &mut buffer).await {
                    Ok(()) => Event::Stored { object, location: buffer.seal() },
                    Err(reason) => failed(format!("{place}: {reason}"), false),
                };
                answer(&notices, event);
            });
            if let Err(reason) = started {
                answer(failures, failed(reason, false));
            }
        });
    }

    fn delete_durable(&self, object: ObjectId, writer: NodeId) {
        let durable = self.durable.clone();
        self.in_background(move |_| {
            let deleted = durable.run(move |turn| async move {
                if let Err(error) = turn.delete(object, writer).await {
                    tracing::warn!(%object, error, "a durable copy that nobody needs stays");
                }
            });
            if let Err(error) = deleted {
                tracing::warn!(%object, error, "a durable copy that nobody needs stays");
            }
        });
    }

    /// Copies an object for a client that cannot map it. What becomes of the object from now on does not matter.
    pub(crate) fn send_bytes(&self, client: ClientId, object: ObjectId) {
        let (spill, begun) = (self.spill.clone(), self.serving.begin(object));
        self.in_background(move |notices| {
            let copied = match begun {
                Some((served, _guard)) => serving::copy_out(served, |at| spill.store()?.map(at)),
                None => Err((FailureKind::ObjectLost, "it is not on this node any more".to_owned())),
            };
            let value = match copied {
                Ok(bytes) => Value::Inline(bytes),
                Err((kind, reason)) => Value::Failed(unreadable(object, kind, &reason)),
            };
            let _ = notices.send(StoreNotice::Ready { client, object, value });
        });
    }

    /// The length of an object that others may have from here.
    pub(crate) fn served_len(&self, object: ObjectId) -> Option<u64> {
        self.serving.len(object)
    }

    /// Copies the part of an object that begins there.
    pub(crate) fn read_part(
        &self,
        object: ObjectId,
        offset: u64,
    ) -> impl Future<Output = Result<Part, NoPart>> + use<> {
        let begun = self.serving.begin(object);
        async move {
            let (served, guard) = begun.ok_or(NoPart::Gone)?;
            let read = move || {
                let read = served.read_part(offset);
                drop(guard);
                read
            };
            let read = tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(error.to_string()));
            read.map_err(|reason| NoPart::Failed(unreadable(object, FailureKind::ObjectLost, &reason)))
        }
    }

    /// Whether a writer may be asked now to give back what holds this object; else it is asked when the transfers that
    /// read there have ended.
    pub(crate) fn evict_now(&mut self, writer: ClientId, object: ObjectId) -> bool {
        let Some(range) = self.serving.memory_in_use(object) else { return true };
        self.deferred.entry(range).or_default().push(Deferred::Evict(writer, object));
        false
    }

    /// Of ranges that a writer may use again, those that no transfer still reads; the others follow when it has ended.
    pub(crate) fn free_now(&mut self, writer: ClientId, ranges: Vec<Location>) -> Vec<Location> {
        if self.serving.idle() {
            return ranges;
        }
        let mut now = Vec::with_capacity(ranges.len());
        for location in ranges {
            let range = Range::Memory(location);
            if self.serving.in_use(range) {
                self.deferred.entry(range).or_default().push(Deferred::Writer(writer));
            } else {
                now.push(location);
            }
        }
        now
    }

    fn when_unused(&mut self, range: Range, what: Deferred) {
        if self.serving.in_use(range) {
            self.deferred.entry(range).or_default().push(what);
        } else {
            self.give_up(range, what);
        }
    }

    /// Does what waited for it; what clients are to be told.
    pub(crate) fn transfer_ended(&mut self, range: Range) -> Vec<(ClientId, NodeToClient)> {
        if self.serving.in_use(range) {
            return Vec::new();
        }
        let mut told = Vec::new();
        for what in self.deferred.remove(&range).unwrap_or_default() {
            match (what, range) {
                (Deferred::Writer(client), Range::Memory(location)) => {
                    told.push((client, NodeToClient::RangesFreed(vec![location])));
                }
                (Deferred::Evict(client, object), _) => told.push((client, NodeToClient::Evict { object })),
                (what, _) => self.give_up(range, what),
            }
        }
        told
    }

    fn give_up(&self, range: Range, what: Deferred) {
        match (what, range) {
            (Deferred::FreeOwn, Range::Memory(location)) => self.own.free(location),
            (Deferred::Punch, Range::Memory(location)) => {
                if let Some(segment) = self.segments.get(location.segment) {
                    self.in_background(move |_| segment.punch(location));
                }
            }
            (Deferred::DeleteSpilled, Range::Disk(object)) => {
                let Some(at) = self.serving.forget_spilled(object) else { return };
                let spill = self.spill.clone();
                self.in_background(move |_| {
                    if let Err(error) = spill.store().and_then(|store| store.remove(at)) {
                        tracing::warn!(%object, error = explain(&error), "a spilled object stays on disk");
                    }
                });
            }
            (_, Range::Memory(_) | Range::Disk(_)) => {}
        }
    }
}

fn unreadable(object: ObjectId, kind: FailureKind, reason: &str) -> Failure {
    let message = format!("object {object} cannot be sent to this driver: {reason}").into();
    Failure { kind, message, payload: Bytes::new(), task: None }
}

fn answer(notices: &mpsc::UnboundedSender<StoreNotice>, event: Event) {
    // Nobody listens only when the daemon is ending.
    let _ = notices.send(StoreNotice::Event(event));
}

/// An error with all its causes.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
