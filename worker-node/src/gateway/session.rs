//! What a remote client and its gateway said to each other: it survives the stream it travelled on (rule P1: a lost
//! stream alone is no end).
//!
//! Both ends keep what the other has not acknowledged. A client that comes back says what it has, is told what the
//! gateway has, and both send the rest again, so that whatever is behind them sees one uninterrupted stream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::{Codec, WireError, v1};
use cluster_types::NodeToClient;
use tokio::sync::{Notify, mpsc};
use tonic::Status;

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
        if piece.seq == 0 {
            // A mere acknowledgement.
            return end.receive(piece).map(|_| None);
        }
        let batch = end.receive(piece)?;
        let owed = end.owes_acknowledgement().then(|| end.acknowledgement());
        drop(end);
        owed.into_iter().for_each(|piece| self.pass(piece));
        Ok(batch)
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
