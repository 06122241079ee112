//! Sockets between callers and actors of one machine: calls and answers that no daemon sees.
//!
//! The daemon makes a pair of sockets and gives each of the two one end. The caller says `Submit`, the actor's executor
//! answers `Finished`. Whether one of them is gone is said by the daemon, never concluded from a socket's end: a child
//! that one of them forked may hold that open. What was written before an end is read to its last byte.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use cluster_proto::Codec;
use cluster_proto::frame::FrameReader;
use cluster_types::client_node::{
    CallReport, Cancellation, Completion, DIRECT_SLOT, ExecutorResult, FinishedOutcome, NO_SLOT, PutValue,
    direct_tag,
};
use cluster_types::{
    Attempt, ClientId, ClientToNode, FailureKind, INLINE_MAX, NodeToClient, ObjectId, ResultValue, TaskId,
    TaskSpec,
};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::client::Task;
use crate::reader::ReadHalf;
use crate::shared::{Current, Inner, Shared, WriteHalf};

/// Calls that ended are reported for the task table this long after the first of them …
const REPORT_AFTER: Duration = Duration::from_millis(100);
/// … or when they are so many.
const REPORTS_MAX: usize = 1000;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// An actor that this client calls.
    Actor(ObjectId),
    /// A client that calls this process's actor.
    Caller { client: ClientId, in_order: bool },
}

/// One socket.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) socket: OwnedFd,
    pub(crate) peer: Peer,
    /// Bytes wait for room in it.
    pub(crate) full: AtomicBool,
    /// Nothing more will be read.
    pub(crate) ended: AtomicBool,
}

/// Its reading side.
pub(crate) struct ChannelReader {
    pub(crate) channel: Arc<Channel>,
    frames: FrameReader,
    codec: Codec,
}

/// Its writing side.
pub(crate) struct ChannelWriter {
    channel: Arc<Channel>,
    codec: Codec,
    buffer: BytesMut,
}

/// What one attempt to read gave.
pub(crate) enum Heard {
    Answers(Vec<NodeToClient>),
    Calls(Vec<ClientToNode>),
    Nothing,
}

impl ChannelReader {
    /// Reads once, without waiting.
    pub(crate) fn receive(&mut self, bytes: &mut [u8]) -> Heard {
        if self.channel.ended.load(Ordering::Relaxed) {
            return Heard::Nothing;
        }
        match rustix::net::recv(&self.channel.socket, &mut *bytes, RecvFlags::empty()) {
            Ok((_, count)) if count > 0 => self.frames.push(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
            Ok(_) | Err(_) => {
                self.channel.ended.store(true, Ordering::Relaxed);
                return Heard::Nothing;
            }
        }
        let (mut answers, mut calls) = (Vec::new(), Vec::new());
        let is_actor = matches!(self.channel.peer, Peer::Actor(_));
        loop {
            let frame = match self.frames.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => {
                    self.channel.ended.store(true, Ordering::Relaxed);
                    break;
                }
            };
            let read = match is_actor {
                true => self.codec.decode_node_batch(frame).map(|batch| answers.extend(batch)),
                false => self.codec.decode_client_batch(frame).map(|batch| calls.extend(batch)),
            };
            // A process of the same user that writes nonsense: it is heard no more, and its end is the daemon's to tell.
            if read.is_err() {
                self.channel.ended.store(true, Ordering::Relaxed);
                break;
            }
        }
        if is_actor { Heard::Answers(answers) } else { Heard::Calls(calls) }
    }
}

impl ChannelWriter {
    fn new(channel: Arc<Channel>) -> ChannelWriter {
        ChannelWriter { channel, codec: Codec::default(), buffer: BytesMut::new() }
    }

    fn send(&mut self) {
        while !self.buffer.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.channel.socket, &self.buffer, flags) {
                Ok(sent) => self.buffer.advance(sent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // What becomes of it, the daemon tells.
                Err(_) => self.buffer.clear(),
            }
        }
        if self.buffer.is_empty() && self.buffer.capacity() > 1 << 20 {
            self.buffer = BytesMut::new();
        }
        self.channel.full.store(!self.buffer.is_empty(), Ordering::Relaxed);
    }
}

/// What goes on one channel.
pub(crate) enum Said {
    Calls(Vec<ClientToNode>),
    Answers(Vec<NodeToClient>),
}

impl Inner {
    fn channel_of(&self, peer: impl Fn(&Peer) -> bool) -> Option<&Arc<Channel>> {
        self.channels.iter().find(|channel| peer(&channel.peer))
    }

    /// Everything that is to go on channels.
    pub(crate) fn take_said(&mut self) -> Vec<(Arc<Channel>, Said)> {
        let mut said = Vec::new();
        if self.core.direct_len() > 0 {
            for batch in self.core.take_direct() {
                if let Some(channel) = self.channel_of(|peer| *peer == Peer::Actor(batch.actor)) {
                    said.push((channel.clone(), Said::Calls(batch.calls)));
                }
            }
        }
        for (caller, answers) in self.answers.drain(..).collect::<Vec<_>>() {
            let is_caller = |peer: &Peer| matches!(peer, Peer::Caller { client, .. } if *client == caller);
            if let Some(channel) = self.channel_of(is_caller) {
                said.push((channel.clone(), Said::Answers(answers)));
            }
        }
        said
    }

    /// On the socket of the caller if it has one, else through the daemons.
    fn push_answer(&mut self, caller: ClientId, task: TaskId, outcome: FinishedOutcome) {
        let is_caller = |peer: &Peer| matches!(peer, Peer::Caller { client, .. } if *client == caller);
        if self.channel_of(is_caller).is_none() {
            return self.core.push_aside(ClientToNode::AnswerFar { task, outcome });
        }
        let answer = NodeToClient::Finished { task, outcome };
        match self.answers.iter_mut().find(|(to, _)| *to == caller) {
            Some((_, answers)) => answers.push(answer),
            None => self.answers.push((caller, vec![answer])),
        }
    }

    /// The daemon passed a call on.
    pub(crate) fn called_far(&mut self, in_order: bool, spec: TaskSpec) {
        if spec.called_actor().is_some() {
            self.called(spec.id.client, in_order, spec);
        }
    }

    /// What this client called and has not begun is not to begin; and what runs for it, nobody is to hear of: it may
    /// call the same again meanwhile.
    pub(crate) fn forget_calls(&mut self, caller: ClientId) {
        let callers = &mut self.callers;
        self.runs.retain(|(_, task)| {
            let forgotten = callers.get(&task.tag) == Some(&caller);
            if forgotten {
                callers.remove(&task.tag);
            }
            !forgotten
        });
        for current in self.running.values_mut().filter(|current| current.caller == Some(caller)) {
            (current.caller, current.slot) = (None, NO_SLOT);
        }
    }

    /// A call came straight from a client.
    fn called(&mut self, caller: ClientId, in_order: bool, spec: TaskSpec) {
        let tag = direct_tag(spec.id);
        self.callers.insert(tag, caller);
        let slot = if in_order { DIRECT_SLOT } else { NO_SLOT };
        let attempt = Attempt { term: 0, n: 1 };
        let task = Task { tag, attempt, spec: Arc::new(spec), values: Vec::new(), gpus: Vec::new() };
        self.runs.push_back((slot, task));
    }

    /// Of a call that came straight and is cancelled before it begins: it is answered so. True if it was.
    pub(crate) fn refuse_cancelled(&mut self, task: &Task) -> bool {
        let Some(reason) = self.cancels.remove(&task.tag) else { return false };
        let Some(caller) = self.callers.remove(&task.tag) else { return false };
        let (id, name) = (task.spec.id, &task.spec.template.name);
        let failure = cluster_types::Failure {
            kind: FailureKind::Cancelled,
            message: format!("task {name} ({id}) was cancelled before it started: {reason}").into(),
            payload: bytes::Bytes::new(),
            task: Some(id),
        };
        self.push_answer(caller, id, FinishedOutcome::Failed(failure));
        true
    }

    /// What a call that came straight submitted is cancelled with it: the head does not know whose children they are.
    pub(crate) fn cancel_children(&mut self, tag: u64, reason: &str) {
        for object in self.children.remove(&tag).unwrap_or_default() {
            if !self.core.cancel_call(object, reason, true) {
                let reason = reason.to_owned();
                self.core.push(ClientToNode::Cancel(Cancellation {
                    object,
                    force: false,
                    recursive: true,
                    reason,
                }));
            }
        }
    }

    /// Notes what a call that came straight submits.
    pub(crate) fn note_child(&mut self, parent: &Current, results: &[ObjectId]) {
        if let (Some(_), Some(result)) = (parent.caller, results.first()) {
            self.children.entry(parent.tag).or_default().push(*result);
        }
    }

    /// A call that came straight has ended.
    pub(crate) fn answer(&mut self, current: Current, caller: ClientId, completion: Completion) {
        let Completion { tag, result, micros } = completion;
        let task = current.task;
        self.cancels.remove(&tag);
        self.children.remove(&tag);
        let error = result.as_ref().err().map(|failed| failed.failure.message.clone());
        let left = match &result {
            Err(failed) if failed.failure.kind == FailureKind::ActorDied => {
                Some(failed.failure.message.to_string())
            }
            _ => None,
        };
        // An answer overtakes nothing that this process said because of the call: it takes the same way then.
        let silent = self.core.outbox().said() == current.said;
        let is_small = |result: &ExecutorResult| {
            matches!(&result.value, PutValue::Inline(bytes) if bytes.len() <= INLINE_MAX)
                && result.contains.is_empty()
        };
        match (left, result) {
            // Its calls end with the actor, this one too.
            (Some(reason), _) => self.core.push(ClientToNode::Left { reason }),
            (None, Ok(results)) if silent && results.iter().all(is_small) => {
                let values = results.into_iter().filter_map(|result| match result.value {
                    PutValue::Inline(bytes) => Some(ResultValue::Inline(bytes)),
                    PutValue::Stored(_) => None,
                });
                self.push_answer(caller, task, FinishedOutcome::Ok(values.collect()));
            }
            (None, Err(failed)) if silent => {
                self.push_answer(caller, task, FinishedOutcome::Failed(failed.failure));
            }
            (None, result) => {
                let result = result.map_err(|failed| failed.failure);
                self.core.push(ClientToNode::Answered { task, result });
            }
        }
        let name = current.name.unwrap_or_default();
        self.reports.push(CallReport { task, name, micros, error });
        self.report_at.get_or_insert_with(|| Instant::now() + REPORT_AFTER);
    }

    /// Whether calls that ended are to be reported now.
    pub(crate) fn report_if_due(&mut self, now: Instant) {
        if self.report_at.is_some_and(|at| now >= at) || self.reports.len() >= REPORTS_MAX {
            self.report_at = None;
            let calls = std::mem::take(&mut self.reports);
            self.core.push_aside(ClientToNode::Called(calls));
        }
    }
}

impl Shared {
    /// The daemon made a socket.
    pub(crate) fn open_channel(&self, inner: &mut Inner, read: &mut ReadHalf, peer: Peer, socket: OwnedFd) {
        let (full, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let channel = Arc::new(Channel { socket, peer, full, ended });
        inner.channels.retain(|known| known.peer != peer);
        read.channels.retain(|known| known.channel.peer != peer);
        inner.channels.push(channel.clone());
        read.channels.push(ChannelReader {
            channel,
            frames: FrameReader::default(),
            codec: Codec::default(),
        });
    }

    /// What the peer had written before its end is taken in; then the channel goes.
    pub(crate) fn close_channel(
        &self,
        inner: &mut Inner,
        read: &mut ReadHalf,
        is_it: impl Fn(&Peer) -> bool,
    ) {
        let Some(at) = read.channels.iter().position(|known| is_it(&known.channel.peer)) else { return };
        let mut channel = read.channels.swap_remove(at);
        while !channel.channel.ended.load(Ordering::Relaxed) {
            match channel.receive(&mut read.bytes) {
                Heard::Nothing => break,
                heard => self.hear(inner, channel.channel.peer, heard),
            }
        }
        inner.channels.retain(|known| !is_it(&known.peer));
    }

    /// Applies what came on a channel.
    pub(crate) fn hear(&self, inner: &mut Inner, peer: Peer, heard: Heard) {
        match (peer, heard) {
            (Peer::Actor(_), Heard::Answers(answers)) => {
                answers.into_iter().for_each(|answer| inner.core.on_answer(answer));
            }
            (Peer::Caller { client, in_order }, Heard::Calls(calls)) => {
                for call in calls {
                    // Nobody calls in another's name.
                    if let ClientToNode::Submit(spec) = call
                        && spec.id.client == client
                        && spec.called_actor().is_some()
                    {
                        inner.called(client, in_order, spec);
                    }
                }
            }
            _ => {}
        }
    }

    /// Encodes and sends what goes on channels, and what one did not take before.
    pub(crate) fn send_said(&self, write: &mut WriteHalf, said: Vec<(Arc<Channel>, Said)>) {
        for (channel, said) in said {
            let at = write.channels.iter().position(|known| Arc::ptr_eq(&known.channel, &channel));
            let at = at.unwrap_or_else(|| {
                // Of those that went, only this side is left.
                write.channels.retain(|known| Arc::strong_count(&known.channel) > 1);
                write.channels.push(ChannelWriter::new(channel));
                write.channels.len() - 1
            });
            let ChannelWriter { codec, buffer, .. } = &mut write.channels[at];
            match said {
                Said::Calls(calls) => codec.frame_client_messages(&calls, buffer),
                Said::Answers(answers) => codec.frame_node_messages(&answers, buffer),
            }
            write.channels[at].send();
        }
    }

    /// Tries again where a socket was full.
    pub(crate) fn send_leftovers(&self, write: &mut WriteHalf) {
        write.channels.iter_mut().filter(|writer| !writer.buffer.is_empty()).for_each(ChannelWriter::send);
    }
}
