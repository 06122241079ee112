//! What a remote client and its gateway said to each other: it survives the stream it travelled on (rule P1: a lost
//! stream alone is no end).
//!
//! Both ends keep what the other has not acknowledged. A client that comes back says what it has, is told what the
//! gateway has, and both send the rest again, so that whatever is behind them sees one uninterrupted stream.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::{Codec, WireError, v1};
use cluster_types::client_node::PutValue;
use cluster_types::{ClientToNode, Map, NodeToClient, ObjectId, SegmentId};
use tokio::sync::{Notify, mpsc};
use tonic::Status;

use super::feeding::Feed;
use crate::head_link::unframe;

/// Where frames to the client go: the stream that it has now. Bounded in bytes by what the client's outbox may hold.
pub(super) type Frames = mpsc::UnboundedSender<Result<v1::NodeFrame, Status>>;
/// Where its frames come from.
pub(super) type FromClient = mpsc::Receiver<v1::ClientFrame>;

/// The gateway's end of a client's session.
pub(crate) struct Session {
    id: Option<u64>,
    grace: Duration,
    end: RefCell<StreamEnd>,
    /// `None` while the client is away, and after the end.
    frames: RefCell<Option<Frames>>,
    /// The client came back on this.
    next: RefCell<Option<FromClient>>,
    over: Cell<bool>,
    news: Notify,
    /// Segments that it may have written to, with their lengths.
    leases: RefCell<Map<SegmentId, (u64, Arc<OwnedFd>)>>,
    pub(super) feed: RefCell<Feed>,
    /// There is more to be fed, or room for it.
    pub(super) hungry: Notify,
}

/// What a session's task learns of beside frames.
pub(super) enum News {
    /// The client is on another stream now.
    Back(FromClient),
    /// The daemon has parted with the client.
    Over,
}

impl Session {
    /// Without an id it ends with its stream.
    pub(super) fn new(id: Option<u64>, grace: Duration, frames: Frames) -> Rc<Session> {
        Rc::new(Session {
            id,
            grace: if id.is_some() { grace } else { Duration::ZERO },
            end: RefCell::new(StreamEnd::resumable()),
            frames: RefCell::new(Some(frames)),
            next: RefCell::default(),
            over: Cell::new(false),
            news: Notify::new(),
            leases: RefCell::default(),
            feed: RefCell::default(),
            hungry: Notify::new(),
        })
    }

    /// Whether a client that names this id is the one.
    pub(super) fn is(&self, id: u64) -> bool {
        self.id == Some(id) && !self.over.get()
    }

    /// For how long a client that is away is waited for.
    pub(super) fn grace(&self) -> Duration {
        self.grace
    }

    /// Bytes that the client has not acknowledged.
    pub(crate) fn backlog(&self) -> usize {
        self.end.borrow().unacknowledged_bytes()
    }

    pub(crate) fn send(&self, messages: &[NodeToClient], codec: &mut Codec, buffer: &mut BytesMut) {
        codec.frame_node_messages(messages, buffer);
        for batch in unframe(buffer) {
            let pieces = self.end.borrow_mut().send(batch);
            pieces.into_iter().for_each(|piece| self.pass(piece));
        }
    }

    fn pass(&self, piece: Piece) {
        if let Some(frames) = &*self.frames.borrow() {
            // If the stream has ended meanwhile: it is kept.
            let _ = frames.send(Ok(piece.into()));
        }
    }

    /// The session is over; what was sent before still arrives, if the client is there.
    pub(crate) fn close(&self) {
        self.over.set(true);
        self.frames.take();
        self.news.notify_one();
    }

    /// Takes a frame of the client; the batch that it completes.
    pub(super) fn receive(&self, frame: v1::ClientFrame) -> Result<Option<Bytes>, WireError> {
        let piece = Piece::from(frame);
        let mut end = self.end.borrow_mut();
        let only_acknowledges = piece.seq == 0;
        let batch = end.receive(piece)?;
        self.hungry.notify_one();
        if only_acknowledges {
            return Ok(None);
        }
        let owed = end.owes_acknowledgement().then(|| end.acknowledgement());
        drop(end);
        owed.into_iter().for_each(|piece| self.pass(piece));
        Ok(batch)
    }

    // ---- large values ----

    /// A large value is to be sent, or what is left of it.
    pub(crate) fn want(&self, object: ObjectId) {
        self.feed.borrow_mut().want(object);
        self.hungry.notify_one();
    }

    /// The client is told something that concerns large values.
    pub(crate) fn note_told(&self, message: &NodeToClient) {
        if let NodeToClient::Ready { object, .. } = message {
            self.feed.borrow_mut().forget(*object);
        }
    }

    /// The client may have this segment written to.
    pub(crate) fn lease(&self, segment: SegmentId, len: u64, writer: Arc<OwnedFd>) {
        self.leases.borrow_mut().insert(segment, (len, writer));
    }

    /// The client says something that ends a lease.
    pub(super) fn note_said(&self, message: &ClientToNode) {
        let mut leases = self.leases.borrow_mut();
        match message {
            ClientToNode::Put { value: PutValue::Stored(location), .. } => {
                leases.remove(&location.segment);
            }
            ClientToNode::ReturnMemory(segments) => {
                segments.iter().for_each(|segment| drop(leases.remove(segment)));
            }
            _ => {}
        }
    }

    /// Writes what the client says into a segment of its own.
    ///
    /// # Errors
    /// Why not, for the client.
    pub(super) async fn write(&self, segment: SegmentId, offset: u64, bytes: Bytes) -> Result<(), String> {
        let lease = self.leases.borrow().get(&segment).cloned();
        let end = offset.checked_add(bytes.len() as u64);
        let Some((_, writer)) = lease.filter(|(len, _)| end.is_some_and(|end| end <= *len)) else {
            let (len, segment) = (bytes.len(), segment.0);
            return Err(format!(
                "{len} bytes at {offset} of segment {segment} are not this program's to write"
            ));
        };
        let write = move || write_at(&writer, &bytes, offset);
        let written = tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string())?;
        written.map_err(|error| format!("a value of this program could not be written: {error}"))
    }

    /// Something that came is not acknowledged yet.
    pub(super) fn has_to_acknowledge(&self) -> bool {
        self.end.borrow().unacknowledged_received() > 0
    }

    pub(super) fn acknowledge(&self) {
        let piece = self.end.borrow_mut().acknowledgement();
        self.pass(piece);
    }

    /// The stream has ended without a farewell. If the client is on another already, that one stays.
    pub(super) fn lost(&self) {
        if self.next.borrow().is_none() {
            self.frames.take();
        }
    }

    /// The client is back, on a stream of its own, and has everything up to `received`.
    pub(super) fn resume(&self, frames: Frames, incoming: FromClient, received: u64) {
        {
            let mut end = self.end.borrow_mut();
            let first = [end.acknowledgement()];
            // An ended stream: the client will come again.
            for piece in first.into_iter().chain(end.replay(received)) {
                let _ = frames.send(Ok(piece.into()));
            }
        }
        self.frames.replace(Some(frames));
        self.next.replace(Some(incoming));
        self.news.notify_one();
    }

    pub(super) async fn news(&self) -> News {
        loop {
            if self.over.get() {
                return News::Over;
            }
            if let Some(incoming) = self.next.take() {
                return News::Back(incoming);
            }
            self.news.notified().await;
        }
    }
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, offset))?;
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}
