//! What all threads of a client share, and how it is sent.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use client_core::{ClientCore, Reading};
use cluster_proto::Codec;
use cluster_store::segment::{Arena, ReadBuf, ReadMapping};
use cluster_store::slots::ExecutorPage;
use cluster_types::client_node::{CallReport, NO_SLOT, Welcome};
use cluster_types::query::QueryReply;
use cluster_types::{ClientId, Failure, FailureKind, Map, NodeToClient, ObjectId, SegmentId};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::EventfdFlags;
use rustix::net::SendFlags;

use crate::ClientError;
use crate::bridge::Lane;
use crate::client::{Notice, Task};
use crate::completion::Queue;
use crate::direct::{Channel, ChannelWriter};
use crate::far::Far;
use crate::helper::{Duty, Helper};
use crate::reader::ReadHalf;
use crate::spin::Spinning;
use crate::streams::Yields;
use crate::value::{Got, Pin, ValueBytes};
use crate::waiting::Waiter;

/// A batch is sent once it has this many messages …
const GATHER_MESSAGES: usize = 64;
/// … or bytes.
const GATHER_BYTES: usize = 32 << 10;
/// Beyond this many bytes that the daemon has not taken, submitting waits (rule S7).
pub(crate) const BACKLOG_MAX: usize = 64 << 20;
/// Lines to print that nobody fetches are forgotten beyond this many, the oldest first.
const NOTICES_MAX: usize = 100_000;

/// How many forks lie between this process and the first that used this crate. A client of an older generation is a
/// copy in a forked child, and dead (rule P6).
static GENERATION: AtomicU32 = AtomicU32::new(0);

pub(crate) fn mark_forked() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// One connection. Locks are taken in the order `read`, `write`, `inner`; none is held while a thread waits, except
/// `read` by the one thread that waits on the socket.
pub(crate) struct Shared {
    pub(crate) id: ClientId,
    pub(crate) welcome: Welcome,
    pub(crate) is_driver: bool,
    pub(crate) shares_memory: bool,
    pub(crate) socket: UnixStream,
    /// For parts of large values, where it shares no memory.
    pub(crate) lane: Option<Lane>,
    /// For error messages: the socket's path, or the gateway's address.
    pub(crate) place: String,
    pub(crate) pid: u32,
    pub(crate) generation: u32,
    pub(crate) me: Weak<Shared>,
    pub(crate) arena: Arena,
    pub(crate) page: Option<ExecutorPage>,
    pub(crate) inner: Mutex<Inner>,
    pub(crate) write: Mutex<WriteHalf>,
    pub(crate) read: Mutex<ReadHalf>,
    /// Bytes that the socket would not take yet.
    pub(crate) unsent: AtomicUsize,
    /// Whether a driver's waits spin (rule S8).
    pub(crate) spinning: Spinning,
    pub(crate) helper: Helper,
}

/// The state behind the one lock.
pub(crate) struct Inner {
    pub(crate) core: ClientCore,
    /// Some thread reads, or is about to.
    pub(crate) reading: bool,
    /// Grows with each thing read.
    pub(crate) reads: u64,
    /// Grows with each batch taken.
    pub(crate) flushes: u64,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) next_waiter: u64,
    /// Descriptors to wake waiters with, to be used again.
    pub(crate) wake_fds: Vec<Arc<OwnedFd>>,
    pub(crate) segments: Map<SegmentId, Arc<ReadMapping>>,
    /// Of a process that shares no memory.
    pub(crate) far: Far,
    /// Lengths of segments asked for.
    pub(crate) requested: Vec<u64>,
    /// Refusals, numbered, by length asked for.
    pub(crate) denied: VecDeque<(u64, u64, Failure)>,
    /// Grows whenever memory may have become free, or was refused.
    pub(crate) memory_news: u64,
    pub(crate) replies: Map<u64, Option<Result<QueryReply, String>>>,
    pub(crate) next_query: u64,
    pub(crate) notices: VecDeque<Notice>,
    /// Older ones, which nobody fetched in time.
    pub(crate) notices_lost: u64,
    pub(crate) hooks: Map<ObjectId, Vec<(Arc<Queue>, u64)>>,
    /// Tasks sent ahead, with their slots; not claimed.
    pub(crate) runs: VecDeque<(u16, Task)>,
    pub(crate) exit: bool,
    /// What runs, by its tag: one task, or some calls of an actor that takes several at once.
    pub(crate) running: Map<u64, Current>,
    /// What tasks yielded here, by their tags.
    pub(crate) yields: Map<u64, Yields>,
    /// Who wants a task to stop and why, by its tag.
    pub(crate) cancels: Map<u64, String>,
    /// Tags to cancel that [`crate::Work::Cancel`] was not made of yet: of calls that run at once with others.
    pub(crate) to_cancel: VecDeque<u64>,
    /// Sockets to actors and from callers.
    pub(crate) channels: Vec<Arc<Channel>>,
    /// Who called what is queued or runs here, by tag; of calls that came straight from their callers.
    pub(crate) callers: Map<u64, ClientId>,
    /// What those submitted, by their tags.
    pub(crate) children: Map<u64, Vec<ObjectId>>,
    /// Answers to them.
    pub(crate) answers: Vec<(ClientId, Vec<NodeToClient>)>,
    /// Those that ended, for the task table …
    pub(crate) reports: Vec<CallReport>,
    /// … which is told then.
    pub(crate) report_at: Option<Instant>,
    /// Completions in the outbox.
    pub(crate) gathered: usize,
    pub(crate) lost: Option<ClientError>,
    pub(crate) duty: Duty,
}

/// A task that an executor runs.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    pub(crate) tag: u64,
    pub(crate) slot: u16,
    pub(crate) task: cluster_types::TaskId,
    pub(crate) thread: ThreadId,
    /// Who called, if the call came straight.
    pub(crate) caller: Option<ClientId>,
    /// Its name then, for the task table.
    pub(crate) name: Option<Arc<str>>,
    /// What this process had told its daemon when it began.
    pub(crate) said: u64,
    /// It may not be tried again.
    pub(crate) once: bool,
}

/// The sending side: messages are taken from the outbox and encoded under this lock, so that they leave in order.
pub(crate) struct WriteHalf {
    pub(crate) codec: Codec,
    /// Encoded, not taken by the socket.
    pub(crate) buffer: BytesMut,
    pub(crate) broken: bool,
    pub(crate) channels: Vec<ChannelWriter>,
}

impl Inner {
    pub(crate) fn new(core: ClientCore) -> Inner {
        Inner {
            core,
            reading: false,
            reads: 0,
            flushes: 0,
            waiters: Vec::new(),
            next_waiter: 0,
            wake_fds: Vec::new(),
            segments: Map::default(),
            far: Far::default(),
            requested: Vec::new(),
            denied: VecDeque::new(),
            memory_news: 0,
            replies: Map::default(),
            next_query: 1,
            notices: VecDeque::new(),
            notices_lost: 0,
            hooks: Map::default(),
            runs: VecDeque::new(),
            exit: false,
            running: Map::default(),
            yields: Map::default(),
            cancels: Map::default(),
            to_cancel: VecDeque::new(),
            channels: Vec::new(),
            callers: Map::default(),
            children: Map::default(),
            answers: Vec::new(),
            reports: Vec::new(),
            report_at: None,
            gathered: 0,
            lost: None,
            duty: Duty::default(),
        }
    }

    pub(crate) fn usable(&self) -> Result<(), ClientError> {
        match &self.lost {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// The task whose code does something: the one told, or the only one that runs.
    pub(crate) fn running(&self, within: Option<u64>) -> Option<Current> {
        match within {
            Some(tag) => self.running.get(&tag).cloned(),
            None if self.running.len() == 1 => self.running.values().next().cloned(),
            None => None,
        }
    }

    /// Whether a task that runs at once with others is to stop: its waits end then. Others are interrupted by signals.
    pub(crate) fn is_cancelled(&self, within: Option<u64>) -> bool {
        !self.cancels.is_empty()
            && within.is_some_and(|tag| {
                self.cancels.contains_key(&tag)
                    && self.running.get(&tag).is_some_and(|current| current.slot == NO_SLOT)
            })
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        if self.notices.len() >= NOTICES_MAX {
            self.notices.pop_front();
            self.notices_lost += 1;
        }
        self.notices.push_back(notice);
    }
}

impl Shared {
    /// For views, which keep their client alive.
    pub(crate) fn me(&self) -> Option<Arc<Shared>> {
        self.me.upgrade()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Whether this is a forked child that at least knows it. Cheap enough for the dropping of a handle.
    pub(crate) fn is_forked(&self) -> bool {
        generation() != self.generation
    }

    /// Asks the system, for calls that do I/O anyway.
    pub(crate) fn check_process(&self) -> Result<(), ClientError> {
        if self.is_forked() || std::process::id() != self.pid {
            return Err(ClientError::Forked { parent: self.pid });
        }
        Ok(())
    }

    // ---- after a change of the table ----

    /// Call before the lock is given up, whenever handles or views went or messages were appended: own ranges become
    /// free at once, and what was appended is sent within a millisecond.
    pub(crate) fn after_change(&self, mut inner: MutexGuard<'_, Inner>) {
        self.reuse_freed(&mut inner);
        if inner.core.has_news() && inner.duty.arm() {
            drop(inner);
            self.helper.kick();
        }
    }

    pub(crate) fn reuse_freed(&self, inner: &mut Inner) {
        let freed = inner.core.take_freed();
        if freed.is_empty() {
            return;
        }
        inner.memory_news += 1;
        for location in freed {
            // Who waits for no more than that tries again with it; if the daemon was asked, it counts it as its answer.
            inner.requested.retain(|asked| *asked > location.len.next_multiple_of(4096));
            // A range that the allocator does not know is none of ours; the table holds only those it gave out.
            let freed = self.arena.free(location);
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }

    /// Sends now or lets gather: the first message with nothing else in flight goes at once, others in batches.
    pub(crate) fn after_append(&self, inner: MutexGuard<'_, Inner>, alone: bool) {
        let outbox = inner.core.outbox();
        let messages = outbox.len() + inner.core.direct_len();
        if alone || messages >= GATHER_MESSAGES || outbox.bytes() >= GATHER_BYTES {
            drop(inner);
            self.flush();
        } else {
            self.after_change(inner);
        }
    }

    // ---- sending ----

    /// Sends all there is, as far as the socket takes it. Never waits.
    pub(crate) fn flush(&self) {
        if self.check_process().is_err() {
            return;
        }
        let mut write = self.write.lock();
        self.send_leftovers(&mut write);
        loop {
            self.send(&mut write);
            // A full socket is no reason to encode more; the outbox is smaller than its encoding.
            let is_full = !write.buffer.is_empty();
            let (batch, said) = {
                let mut inner = self.lock();
                inner.flushes += 1;
                inner.gathered = 0;
                let batch = if is_full { Vec::new() } else { inner.core.take_batch() };
                self.reuse_freed(&mut inner);
                (batch, inner.take_said())
            };
            if batch.is_empty() && said.is_empty() {
                return;
            }
            if batch.is_empty() {
                self.send_said(&mut write, said);
                continue;
            }
            let WriteHalf { codec, buffer, broken, .. } = &mut *write;
            if !*broken {
                codec.frame_client_messages(&batch, buffer);
                self.unsent.store(buffer.len(), Ordering::Relaxed);
            }
            if !said.is_empty() {
                // What the daemon is told comes before what actors and callers are.
                self.send(&mut write);
                self.send_said(&mut write, said);
            }
        }
    }

    fn send(&self, write: &mut WriteHalf) {
        while !write.buffer.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, &write.buffer, flags) {
                Ok(sent) => write.buffer.advance(sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => {
                    // The reason, if there is one, is still to be read: whoever reads next finds the end.
                    write.broken = true;
                    write.buffer.clear();
                }
            }
        }
        if write.buffer.is_empty() && write.buffer.capacity() > 4 << 20 {
            write.buffer = BytesMut::new();
        }
        self.unsent.store(write.buffer.len(), Ordering::Relaxed);
    }

    /// Bytes that wait, encoded or not.
    pub(crate) fn backlog(&self, inner: &Inner) -> usize {
        inner.core.outbox().bytes() + self.unsent.load(Ordering::Relaxed)
    }

    // ---- reading values ----

    /// The value, if it is here.
    pub(crate) fn read_value(self: &Arc<Self>, inner: &mut Inner, object: ObjectId) -> Option<Got> {
        Some(match inner.core.read(object)? {
            Reading::Inline(bytes) => Got::Value(ValueBytes::inline(bytes)),
            Reading::Failed(failure) => Got::Failed((*failure).clone()),
            Reading::View(location) => self.view(inner, object, location),
        })
    }

    /// A view that the core has counted.
    pub(crate) fn view(
        self: &Arc<Self>,
        inner: &mut Inner,
        object: ObjectId,
        location: cluster_types::Location,
    ) -> Got {
        let mapping = inner.segments.get(&location.segment).cloned();
        match mapping.and_then(|mapping| ReadBuf::new(mapping, location.offset, location.len)) {
            Some(buf) => Got::Value(ValueBytes::view(buf, Pin { shared: self.clone(), object })),
            None => {
                inner.core.drop_view(object);
                Got::Failed(internal(format!(
                    "object {object} lies at {location:?}, and the daemon passed no such segment: \
                     this is an error of the cluster's own"
                )))
            }
        }
    }
}

pub(crate) fn internal(message: String) -> Failure {
    Failure { kind: FailureKind::Internal, message: message.into(), payload: bytes::Bytes::new(), task: None }
}

/// A descriptor to wake a thread with.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

pub(crate) fn signal(fd: impl AsFd) {
    // Fails only when the count would overflow, and then it is readable already.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

pub(crate) fn unsignal(fd: impl AsFd) {
    let _ = rustix::io::read(fd, &mut [0u8; 8]);
}
