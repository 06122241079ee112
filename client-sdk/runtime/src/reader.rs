//! The reading side: bytes and descriptors in, messages applied.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use cluster_proto::Codec;
use cluster_proto::frame::FrameReader;
use cluster_store::segment::{ReadMapping, WriteMapping, recv_with_fds};
use cluster_types::client_node::{MOVE_TAG, NO_SLOT, RunTask};
use cluster_types::{ClientToNode, NodeToClient, SegmentId, Value};
use parking_lot::MutexGuard;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use smallvec::{SmallVec, smallvec};

use crate::ClientError;
use crate::client::{Notice, Task};
use crate::direct::{Channel, ChannelReader, Heard, Peer};
use crate::shared::{Inner, Shared, signal};
use crate::value::{Got, ValueBytes};
use crate::waiting::poll;

const READABLE: PollFlags = PollFlags::IN.union(PollFlags::HUP).union(PollFlags::ERR);
const READ_MAX: usize = 128 << 10;
/// Refusals of memory that are remembered for those who wait for them.
const DENIED_MAX: usize = 64;

/// What only the reader touches.
pub(crate) struct ReadHalf {
    pub(crate) codec: Codec,
    pub(crate) frames: FrameReader,
    pub(crate) fds: Vec<OwnedFd>,
    /// Descriptors in the order they came, for `Segment` messages in the order they come.
    pub(crate) segments: VecDeque<OwnedFd>,
    pub(crate) channels: Vec<ChannelReader>,
    pub(crate) bytes: Box<[u8]>,
}

impl Default for ReadHalf {
    fn default() -> Self {
        ReadHalf {
            codec: Codec::default(),
            frames: FrameReader::default(),
            fds: Vec::new(),
            segments: VecDeque::new(),
            channels: Vec::new(),
            bytes: vec![0; READ_MAX].into(),
        }
    }
}

/// What one attempt to read gave.
#[derive(Debug, PartialEq)]
pub(crate) enum Received {
    /// Whole messages.
    Messages(Vec<NodeToClient>),
    /// Nothing there.
    Nothing,
    /// The stream has ended; why.
    Ended(String),
}

impl ReadHalf {
    /// Reads once, without waiting.
    pub(crate) fn receive(&mut self, socket: &impl std::os::fd::AsFd) -> Received {
        match recv_with_fds(socket, &mut self.bytes, &mut self.fds) {
            Ok(0) => return Received::Ended("it closed the connection".to_owned()),
            Ok(count) => self.frames.push(&self.bytes[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Nothing,
            Err(error) => return Received::Ended(error.to_string()),
        }
        self.segments.extend(self.fds.drain(..));
        let mut messages = Vec::new();
        loop {
            match self.frames.next_frame() {
                Ok(Some(frame)) => match self.codec.decode_node_batch(frame) {
                    Ok(batch) if messages.is_empty() => messages = batch,
                    Ok(batch) => messages.extend(batch),
                    Err(error) => return Received::Ended(error.to_string()),
                },
                Ok(None) => return Received::Messages(messages),
                Err(error) => return Received::Ended(error.to_string()),
            }
        }
    }
}

impl Inner {
    /// A segment of this length has come: the longest request that it can serve is served.
    fn served(&mut self, len: u64) {
        self.memory_news += 1;
        let requests = self.requested.iter().enumerate().filter(|(_, asked)| **asked <= len);
        if let Some(at) = requests.max_by_key(|(_, asked)| **asked).map(|(at, _)| at) {
            self.requested.swap_remove(at);
        }
    }
}

fn interest(writing: bool) -> PollFlags {
    if writing { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
}

/// How a channel is polled. One that ended would be told again and again.
pub(crate) fn watch(channel: &Channel) -> Option<PollFd<'_>> {
    let full = channel.full.load(Ordering::Relaxed);
    (!channel.ended.load(Ordering::Relaxed)).then(|| PollFd::new(&channel.socket, interest(full)))
}

impl Shared {
    /// The reader's step without sleeping: asks again and again until then. True if something came and was applied.
    pub(crate) fn read_spinning(self: &Shared, until: Instant) -> bool {
        let mut read = self.read.lock();
        loop {
            match read.receive(&self.socket) {
                Received::Nothing => {}
                received => {
                    self.take_in(&mut read, received);
                    return true;
                }
            }
            if self.read_channels(&mut read) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            for _ in 0..8 {
                std::hint::spin_loop();
            }
        }
    }

    /// The reader's step: waits for the socket until then at the latest, reads and applies once; writes what the
    /// socket did not take before. True if a signal came.
    pub(crate) fn read_once(self: &Shared, until: Instant) -> bool {
        let mut read = self.read.lock();
        let writing = self.unsent.load(Ordering::Relaxed) > 0;
        let (ready, others) = {
            let mut fds: SmallVec<[PollFd<'_>; 8]> = smallvec![PollFd::new(&self.socket, interest(writing))];
            fds.extend(read.channels.iter().filter_map(|known| watch(&known.channel)));
            match poll(&mut fds, Some(until)) {
                Err(Errno::INTR) => return true,
                Ok(true) => {}
                Ok(false) | Err(_) => return false,
            }
            let others = fds[1..].iter().fold(PollFlags::empty(), |all, fd| all | fd.revents());
            (fds[0].revents(), others)
        };
        if (ready | others).contains(PollFlags::OUT) {
            self.flush();
        }
        if others.intersects(READABLE) {
            self.read_channels(&mut read);
        }
        if ready.intersects(READABLE) {
            let received = read.receive(&self.socket);
            self.take_in(&mut read, received);
        }
        false
    }

    /// Reads each channel once, without waiting. True if something came.
    fn read_channels(&self, read: &mut ReadHalf) -> bool {
        let ReadHalf { channels, bytes, .. } = read;
        let mut inner = None;
        for channel in channels {
            match channel.receive(bytes) {
                Heard::Nothing => {}
                heard => {
                    let inner = inner.get_or_insert_with(|| self.lock());
                    self.hear(inner, channel.channel.peer, heard);
                }
            }
        }
        match inner {
            Some(inner) => {
                self.after_reading(inner);
                true
            }
            None => false,
        }
    }

    /// Applies what was read and wakes whom it concerns.
    pub(crate) fn take_in(&self, read: &mut ReadHalf, received: Received) {
        let messages = match received {
            Received::Nothing => return,
            Received::Ended(reason) => {
                let error = ClientError::ConnectionLost(format!(
                    "the connection to the cluster at {} is lost: {reason}. Objects and tasks of this process are \
                     gone with it; if the cluster runs (see `cluster status`), start this program again",
                    self.place
                ));
                self.lock().lose(error);
                return;
            }
            Received::Messages(messages) => messages,
        };
        let mut inner = self.lock();
        for message in messages {
            if let NodeToClient::CallsEnded { actor, .. } = &message {
                // Answers that it gave before its end count.
                self.close_channel(&mut inner, read, |peer| *peer == Peer::Actor(*actor));
            }
            if let NodeToClient::Ready { object, .. } = &message {
                inner.far.forget(*object);
            }
            let Some(message) = inner.core.on_message(message) else { continue };
            self.on_message(&mut inner, read, message);
        }
        self.after_reading(inner);
    }

    /// Wakes whom it concerns that something was read, and sends what followed from it.
    fn after_reading(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.reads += 1;
        let reply = inner.core.has_messages();
        self.tell_of_news(inner);
        if reply {
            self.flush();
        }
    }

    /// Wakes whom it concerns that the table changed.
    pub(crate) fn tell_of_news(&self, mut inner: MutexGuard<'_, Inner>) {
        self.reuse_freed(&mut inner);
        for object in inner.core.take_fired() {
            for (queue, token) in inner.hooks.remove(&object).into_iter().flatten() {
                queue.push(token);
            }
        }
        let met = inner.met(self.backlog(&inner));
        drop(inner);
        for fd in met {
            signal(&fd);
        }
    }

    /// What is not about objects.
    fn on_message(&self, inner: &mut Inner, read: &mut ReadHalf, message: NodeToClient) {
        match message {
            NodeToClient::Part { object, offset, len, bytes } => {
                if let Some(value) = inner.far.take_part(object, offset, len, &bytes) {
                    inner.core.on_message(NodeToClient::Ready { object, value });
                }
            }
            NodeToClient::Segment { segment, len, writable } if self.shares_memory => {
                self.on_segment(inner, segment, len, writable, read.segments.pop_front());
            }
            NodeToClient::Segment { segment, len, .. } => {
                inner.far.was_lent(segment, len);
                inner.served(len);
            }
            NodeToClient::NoMemory { bytes, failure } => {
                if let Some(at) = inner.requested.iter().position(|asked| *asked == bytes) {
                    inner.requested.swap_remove(at);
                }
                inner.memory_news += 1;
                if inner.denied.len() == DENIED_MAX {
                    inner.denied.pop_front();
                }
                let number = inner.memory_news;
                inner.denied.push_back((number, bytes, failure));
            }
            NodeToClient::RecallMemory => {
                // What this very batch freed counts.
                self.reuse_freed(inner);
                inner.return_far();
                let free = self.arena.take_free_segments(0);
                if !free.is_empty() {
                    free.iter().for_each(|segment| {
                        inner.segments.remove(segment);
                    });
                    inner.core.push(ClientToNode::ReturnMemory(free));
                }
            }
            NodeToClient::Run(run) => self.on_run(inner, *run),
            NodeToClient::Taken { tag, items, closed } => {
                // It may be of one that is just being claimed, and so in no list.
                inner.items_taken(tag, items, closed);
            }
            NodeToClient::Calls { actor, in_order } => {
                if let Some(socket) = read.segments.pop_front() {
                    self.open_channel(inner, read, Peer::Actor(actor), socket);
                    inner.core.calls_opened(actor, in_order);
                }
            }
            NodeToClient::Serve { caller, in_order } => {
                if let Some(socket) = read.segments.pop_front() {
                    self.open_channel(inner, read, Peer::Caller { client: caller, in_order }, socket);
                }
            }
            NodeToClient::CallerGone(caller) => {
                let is_it = |peer: &Peer| matches!(peer, Peer::Caller { client, .. } if *client == caller);
                self.close_channel(inner, read, is_it);
            }
            NodeToClient::Called { in_order, spec } => inner.called_far(in_order, *spec),
            NodeToClient::ForgetCalls(caller) => inner.forget_calls(caller),
            NodeToClient::Cancel { tag: MOVE_TAG, .. } => {
                inner.to_cancel.push_back(MOVE_TAG);
                inner.wake_all();
            }
            NodeToClient::Cancel { tag, reason, recursive } => {
                if recursive {
                    inner.cancel_children(tag, &reason);
                }
                // Told too late, it stays; tags are few and never used twice.
                if inner.cancels.len() < 10_000 {
                    inner.cancels.insert(tag, reason);
                }
                if inner.running.get(&tag).is_some_and(|current| current.slot == NO_SLOT) {
                    inner.to_cancel.push_back(tag);
                    inner.wake_all();
                }
            }
            NodeToClient::Exit => inner.exit = true,
            NodeToClient::Log(lines) => {
                lines.into_iter().for_each(|line| inner.notice(Notice::Log(line)));
            }
            NodeToClient::Notice { text } => inner.notice(Notice::Text(text)),
            NodeToClient::Reply { number, reply } => {
                if let Some(waiting) = inner.replies.get_mut(&number) {
                    *waiting = Some(reply);
                }
            }
            NodeToClient::Rejected { reason } => inner.lose(ClientError::ConnectionLost(format!(
                "the cluster at {} ended the connection: {reason}",
                self.place
            ))),
            // A second welcome says nothing new; the others are the core's and were taken by it.
            NodeToClient::Welcome(_)
            | NodeToClient::Finished { .. }
            | NodeToClient::Item { .. }
            | NodeToClient::Ready { .. }
            | NodeToClient::RangesFreed(_)
            | NodeToClient::NoCalls { .. }
            | NodeToClient::FarCalls { .. }
            | NodeToClient::FarAnswer { .. }
            | NodeToClient::CancelOwn { .. }
            | NodeToClient::CallsEnded { .. }
            | NodeToClient::Evict { .. } => {}
        }
    }

    fn on_segment(
        &self,
        inner: &mut Inner,
        segment: SegmentId,
        len: u64,
        writable: bool,
        fd: Option<OwnedFd>,
    ) {
        let mapped = match fd {
            None => Err("the descriptor did not come with it".to_owned()),
            Some(fd) => self.map_segment(inner, segment, writable, &fd),
        };
        if writable {
            inner.served(len);
        }
        if let Err(reason) = mapped {
            inner.lose(ClientError::ConnectionLost(format!(
                "this process cannot map a segment of {len} bytes that the daemon at {} passed to it ({reason}); \
                 raise its limits on memory mappings, address space or descriptors (ulimit -v, ulimit -n)",
                self.place
            )));
        }
    }

    fn map_segment(
        &self,
        inner: &mut Inner,
        segment: SegmentId,
        writable: bool,
        fd: &OwnedFd,
    ) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        // Views use a second, read-only mapping, also of own memory (rule P6).
        let reading = Arc::new(ReadMapping::map(fd).map_err(text)?);
        if writable {
            let writing = WriteMapping::map(fd).map_err(text)?;
            self.arena.add_segment(segment, writing).map_err(|error| error.to_string())?;
        }
        inner.segments.insert(segment, reading);
        Ok(())
    }

    fn on_run(&self, inner: &mut Inner, run: RunTask) {
        let RunTask { tag, slot, attempt, spec, values, gpus } = run;
        let values = values
            .into_iter()
            .map(|(object, value)| {
                let got = match value {
                    Value::Inline(bytes) => Got::Value(ValueBytes::inline(bytes)),
                    Value::Failed(failure) => Got::Failed(failure),
                    Value::Local(location) => {
                        inner.core.lend(object, location);
                        self.me().map_or_else(
                            || Got::Failed(crate::shared::internal("the client is ending".to_owned())),
                            |me| me.view(inner, object, location),
                        )
                    }
                };
                (object, got)
            })
            .collect();
        inner.runs.push_back((slot, Task { tag, attempt, spec, values, gpus }));
    }
}
