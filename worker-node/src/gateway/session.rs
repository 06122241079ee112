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
use cluster_store::segment::fill;
use cluster_types::client_node::PutValue;
use cluster_types::{ClientToNode, Location, Map, NodeToClient, ObjectId, SegmentId};
use tokio::sync::{Notify, mpsc};
use tonic::Status;

use super::feeding::Feed;
use crate::head_link::unframe;
use crate::store_host::explain;

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
    /// Segments that it may have written to.
    leases: RefCell<Map<SegmentId, Lease>>,
    pub(super) feed: RefCell<Feed>,
    /// There is more to be fed, or room for it.
    pub(super) hungry: Notify,
}

/// A segment that a client has written to.
#[derive(Clone)]
struct Lease {
    writer: Arc<OwnedFd>,
    len: u64,
    /// Up to here it was written, and has its memory.
    written: u64,
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
        self.leases.borrow_mut().insert(segment, Lease { writer, len, written: 0 });
    }

    /// The client says something that ends a lease.
    ///
    /// # Errors
    /// If it is a value that was not written, for the client.
    pub(super) fn note_said(&self, message: &ClientToNode) -> Result<(), String> {
        let mut leases = self.leases.borrow_mut();
        match message {
            ClientToNode::Put {
                object, value: PutValue::Stored(Location { segment, offset, len }), ..
            } => {
                let written = leases.remove(segment).map_or(0, |lease| lease.written);
                let end = offset.saturating_add(*len);
                if end > written {
                    let segment = segment.0;
                    return Err(format!(
                        "object {object} ends at {end} of segment {segment}, which was written up to {written}"
                    ));
                }
            }
            ClientToNode::ReturnMemory(segments) => {
                segments.iter().for_each(|segment| drop(leases.remove(segment)));
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes what the client says into a segment of its own.
    ///
    /// # Errors
    /// Why not, for the client.
    pub(super) async fn write(&self, segment: SegmentId, offset: u64, bytes: Bytes) -> Result<(), String> {
        let end = offset.saturating_add(bytes.len() as u64);
        let lease = self.leases.borrow().get(&segment).filter(|lease| end <= lease.len).cloned();
        let Some(Lease { writer, written, .. }) = lease else {
            let (len, segment) = (bytes.len(), segment.0);
            return Err(format!(
                "{len} bytes at {offset} of segment {segment} are not this program's to write"
            ));
        };
        let write = move || -> Result<(), String> {
            if end > written {
                fill(&writer, written, end - written).map_err(|error| explain(&error))?;
            }
            write_at(&writer, &bytes, offset).map_err(|error| error.to_string())
        };
        let done = tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string())?;
        done.map_err(|error| format!("a value of this program could not be written: {error}"))?;
        if let Some(lease) = self.leases.borrow_mut().get_mut(&segment) {
            lease.written = written.max(end);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_store::segment::{ReadBuf, ReadMapping, Segment};
    use cluster_types::ClientId;

    #[test]
    fn only_what_was_written_into_an_own_segment_can_be_put() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let session = Session::new(None, Duration::ZERO, mpsc::unbounded_channel().0);
            let segment = Segment::create_unfilled(1 << 20).unwrap();
            let writer = || Arc::new(segment.writer_fd().try_clone_to_owned().unwrap());
            let put = |segment, len| {
                let location = Location { segment: SegmentId(segment), offset: 0, len };
                let object = ObjectId::put(ClientId(1), 1);
                let contains = Default::default();
                session.note_said(&ClientToNode::Put { object, value: PutValue::Stored(location), contains })
            };
            for n in [1, 2] {
                session.lease(SegmentId(n), 1 << 20, writer());
                session.write(SegmentId(n), 0, vec![1; 5000].into()).await.unwrap();
                session.write(SegmentId(n), 5056, vec![2; 4944].into()).await.unwrap();
            }
            let strange = session.write(SegmentId(3), 0, vec![3; 10].into()).await.unwrap_err();
            assert!(strange.contains("not this program's to write"), "{strange}");
            let beyond = session.write(SegmentId(1), (1 << 20) - 5, vec![3; 10].into()).await.unwrap_err();
            assert!(beyond.contains("not this program's to write"), "{beyond}");
            let overflow = session.write(SegmentId(1), u64::MAX, vec![3; 10].into()).await.unwrap_err();
            assert!(overflow.contains("not this program's to write"), "{overflow}");
            let unwritten = put(2, 10_001).unwrap_err();
            assert!(unwritten.contains("was written up to 10000"), "{unwritten}");
            put(1, 10_000).unwrap();
            assert!(put(1, 10_000).is_err(), "with the put its lease ended");
            let seen = Arc::new(ReadMapping::map(segment.reader_fd()).unwrap());
            let is_all =
                |at, value| ReadBuf::new(seen.clone(), at, 4944).unwrap().iter().all(|byte| *byte == value);
            assert!(is_all(0, 1) && is_all(5056, 2));
        });
    }
}
