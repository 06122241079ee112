//! A driver's conversation with its gateway. It survives the stream that it travels on: what the gateway has not
//! acknowledged is kept, and sent again on the next stream, so that both ends see one that never broke.

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster_proto::Codec;
use cluster_proto::frame::{FrameReader, PieceReader, write_frame};
use cluster_proto::limits::MAX_GRPC_PAYLOAD;
use cluster_proto::session::GRACE_HEADER;
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::v1;
use cluster_types::{ClientToNode, NodeToClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use super::find::{self, Gateway};
use super::lane::LaneEnd;

/// Beyond this many bytes that the gateway has not acknowledged the socket is not read, and the client gathers.
const WINDOW: usize = 16 << 20;
/// A silent end acknowledges after this.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(100);
/// One attempt to come back.
const ATTEMPT: Duration = Duration::from_secs(4);
/// Between attempts, at first and at the most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// A connection that is away for longer is worth a line.
const TELL_AFTER: Duration = Duration::from_secs(3);
/// What the client said last is still to be delivered when it closes.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where the session is.
pub(super) struct Place {
    /// The head's address, as it was named.
    pub(super) heads: String,
    pub(super) gateway: String,
    pub(super) token: String,
    /// For how long the user wants to try again.
    pub(super) grace: Duration,
}

struct Session {
    place: Place,
    id: u64,
    hello: Bytes,
    end: RefCell<StreamEnd>,
    /// Bounded by [`WINDOW`], since each frame is kept too. `None` while there is no stream.
    frames: RefCell<Option<mpsc::UnboundedSender<v1::ClientFrame>>>,
    /// The gateway acknowledged something.
    room: Notify,
    /// Something came that is to be acknowledged.
    owes: Notify,
}

/// Why there is no stream.
enum Failed {
    /// Another attempt may be luckier. Whether nobody listens there.
    Now { reason: String, refused: bool },
    /// It would be the same again.
    ForGood(String),
}

/// What ended a stream.
enum Ended {
    Lost(String),
    /// The gateway's word, if it said one, or nobody reads.
    Over(Option<String>),
}

/// Passes frames on, both ways, until either side ends, or both are apart for too long.
pub(super) async fn carry(gateway: Gateway, socket: UnixStream, mut lane: LaneEnd, place: Place) {
    let Ok(socket) = tokio::net::UnixStream::from_std(socket) else { return };
    let (mut from_client, mut to_client) = socket.into_split();
    let mut reader = FrameReader::default();
    let Some(hello) = next_frame(&mut from_client, &mut reader).await else { return };
    let id = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
    let mut session = Session {
        place,
        id,
        hello,
        end: RefCell::new(StreamEnd::resumable()),
        frames: RefCell::default(),
        room: Notify::new(),
        owes: Notify::new(),
    };
    let stream = match session.attach(gateway, false).await {
        Ok((stream, grace)) => {
            session.place.grace = grace;
            stream
        }
        Err(Failed::Now { reason, .. } | Failed::ForGood(reason)) => {
            return end_with(format!("the gateway ended the connection: {reason}"), &mut to_client).await;
        }
    };
    let mut pieces = PieceReader::after(reader, MAX_GRPC_PAYLOAD);
    let up = session.pass_up(&mut from_client, &mut pieces, &mut lane);
    let mut down = std::pin::pin!(session.pass_down(stream, &mut to_client));
    tokio::select! {
        () = up => {
            let _ = timeout(FAREWELL, down).await;
        }
        () = &mut down => {}
        () = session.acknowledge_soon() => {}
    }
}

async fn next_frame(from_client: &mut OwnedReadHalf, reader: &mut FrameReader) -> Option<Bytes> {
    loop {
        if let Ok(Some(frame)) = reader.next_frame() {
            return Some(frame);
        }
        match from_client.read_buf(reader.buffer()).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

async fn next_piece(from_client: &mut OwnedReadHalf, pieces: &mut PieceReader) -> Option<(Bytes, bool)> {
    loop {
        if let Ok(Some(piece)) = pieces.next_piece() {
            return Some(piece);
        }
        match from_client.read_buf(pieces.buffer()).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

impl Session {
    /// One attempt to get a stream.
    async fn attach(
        &self,
        mut gateway: Gateway,
        resumed: bool,
    ) -> Result<(Streaming<v1::NodeFrame>, Duration), Failed> {
        let (frames, outgoing) = mpsc::unbounded_channel();
        let (received, grace_ms) =
            (self.end.borrow().received(), u64::try_from(self.place.grace.as_millis()).unwrap_or(u64::MAX));
        let session = v1::Session { id: self.id, resumed, received, grace_ms };
        let hello = v1::ClientFrame { session: Some(session), ..Piece::hello(self.hello.clone()).into() };
        let _ = frames.send(hello);
        let answer = gateway.attach(UnboundedReceiverStream::new(outgoing)).await.map_err(failed)?;
        let allowed = answer.metadata().get(GRACE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        let grace = self.place.grace.min(allowed.map_or(Duration::ZERO, Duration::from_millis));
        let mut stream = answer.into_inner();
        if resumed {
            let first = match stream.message().await.map_err(failed)? {
                Some(first) if first.seq == 0 => first,
                _ => return Err(Failed::ForGood("it does not say where it was left off".to_owned())),
            };
            for piece in self.end.borrow_mut().replay(first.ack) {
                let _ = frames.send(piece.into());
            }
            self.room.notify_one();
        }
        self.frames.replace(Some(frames));
        Ok((stream, grace))
    }

    fn pass(&self, piece: Piece) {
        if let Some(frames) = &*self.frames.borrow() {
            // If the stream has ended meanwhile: it is kept.
            let _ = frames.send(piece.into());
        }
    }

    /// Until the client closes. Frames are passed on as they come: a large value travels on while it is still written.
    async fn pass_up(&self, from_client: &mut OwnedReadHalf, pieces: &mut PieceReader, lane: &mut LaneEnd) {
        loop {
            let between_frames = !pieces.is_within_frame();
            tokio::select! {
                part = lane.next(), if between_frames => self.send_in_time(part, false).await,
                piece = next_piece(from_client, pieces) => {
                    let Some((payload, more)) = piece else { break };
                    // What was in the lane before the frame was written comes before it.
                    while let Some(part) = between_frames.then(|| lane.take()).flatten() {
                        self.send_in_time(part, false).await;
                    }
                    self.send_in_time(payload, more).await;
                }
            }
        }
        if pieces.is_within_frame() {
            return;
        }
        // Else the gateway would wait for one that will not come back.
        let mut farewell = BytesMut::new();
        Codec::default().encode_client_batch(&[ClientToNode::Goodbye], &mut farewell);
        self.send(farewell.freeze(), false);
    }

    /// Waits until the gateway has acknowledged enough.
    async fn send_in_time(&self, payload: Bytes, more: bool) {
        while self.end.borrow().unacknowledged_bytes() > WINDOW {
            self.room.notified().await;
        }
        self.send(payload, more);
    }

    fn send(&self, payload: Bytes, more: bool) {
        let piece = self.end.borrow_mut().send_piece(payload, more);
        self.pass(piece);
    }

    async fn acknowledge_soon(&self) {
        loop {
            self.owes.notified().await;
            sleep(ACKNOWLEDGE_AFTER).await;
            if self.end.borrow().unacknowledged_received() > 0 {
                let piece = self.end.borrow_mut().acknowledgement();
                self.pass(piece);
            }
        }
    }

    /// Until the session is over.
    async fn pass_down(&self, mut stream: Streaming<v1::NodeFrame>, to_client: &mut OwnedWriteHalf) {
        loop {
            let reason = match self.receive(stream, to_client).await {
                Ended::Over(None) => return,
                Ended::Over(Some(reason)) => return end_with(reason, to_client).await,
                Ended::Lost(reason) => reason,
            };
            self.frames.take();
            // Nothing was agreed on yet: this is an attempt to connect that failed.
            if self.end.borrow().received() == 0 {
                return end_with(reason, to_client).await;
            }
            stream = match self.come_back(reason, to_client).await {
                Ok(stream) => stream,
                Err(reason) => return end_with(reason, to_client).await,
            };
        }
    }

    async fn receive(&self, mut stream: Streaming<v1::NodeFrame>, to_client: &mut OwnedWriteHalf) -> Ended {
        let mut out = BytesMut::new();
        loop {
            let frame = match stream.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ended::Over(None),
                Err(status) => {
                    return match failed(status) {
                        Failed::Now { reason, .. } => Ended::Lost(reason),
                        Failed::ForGood(reason) => Ended::Over(Some(reason)),
                    };
                }
            };
            let only_acknowledges = frame.seq == 0;
            let batch = match self.take(frame) {
                Ok(batch) => batch,
                Err(reason) => return Ended::Over(Some(reason)),
            };
            if only_acknowledges {
                continue;
            }
            self.owes.notify_one();
            let Some(batch) = batch else { continue };
            out.clear();
            write_frame(&mut out, |out| out.extend_from_slice(&batch));
            if to_client.write_all(&out).await.is_err() {
                return Ended::Over(None);
            }
        }
    }

    /// Notes a frame of the gateway; the batch that it completes.
    fn take(&self, frame: v1::NodeFrame) -> Result<Option<Bytes>, String> {
        let mut end = self.end.borrow_mut();
        let batch = end.receive(Piece::from(frame)).map_err(|error| error.to_string())?;
        if end.unacknowledged_bytes() <= WINDOW {
            self.room.notify_one();
        }
        let owed = end.owes_acknowledgement().then(|| end.acknowledgement());
        drop(end);
        owed.into_iter().for_each(|piece| self.pass(piece));
        Ok(batch)
    }

    /// Tries to get another stream, until it is not worth it any more.
    async fn come_back(
        &self,
        mut reason: String,
        to_client: &mut OwnedWriteHalf,
    ) -> Result<Streaming<v1::NodeFrame>, String> {
        let Place { heads, gateway, grace, .. } = &self.place;
        if grace.is_zero() {
            return Err(format!("the connection was lost: {reason}"));
        }
        let (begun, mut pause, mut told) = (Instant::now(), PAUSE.0, false);
        loop {
            if begun.elapsed() >= *grace {
                return Err(format!(
                    "the connection was lost ({reason}) and did not come back within the grace period of {} \
                     (CLUSTER_CLIENT_GRACE). Tasks and objects of this program are let go of",
                    in_words(*grace)
                ));
            }
            let attempt = async {
                let gateway = find::gateway_at(gateway, &self.place.token).await;
                let gateway =
                    gateway.map_err(|error| Failed::Now { reason: error.reason, refused: error.refused })?;
                self.attach(gateway, true).await.map(|(stream, _)| stream)
            };
            let too_long = || Failed::Now { reason: "it does not answer".to_owned(), refused: false };
            match timeout(ATTEMPT, attempt).await.unwrap_or_else(|_| Err(too_long())) {
                Ok(stream) => {
                    if told {
                        let text = format!("the connection to the cluster at {heads} is back");
                        tell(NodeToClient::Notice { text }, to_client).await;
                    }
                    return Ok(stream);
                }
                Err(Failed::ForGood(reason)) => return Err(reason),
                Err(Failed::Now { reason: now, refused }) => {
                    if refused && find::has_lost_gateway(heads, gateway, &self.place.token).await {
                        return Err(format!(
                            "the daemon at {gateway} that this program was attached to has ended, and the cluster is \
                             without it. Tasks and objects of this program are gone with it"
                        ));
                    }
                    reason = now;
                }
            }
            if !told && begun.elapsed() >= TELL_AFTER.min(*grace) {
                told = true;
                let text = format!(
                    "connection to the cluster at {heads} lost ({reason}), trying again for up to {}",
                    in_words(*grace)
                );
                tell(NodeToClient::Notice { text }, to_client).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

fn failed(status: Status) -> Failed {
    let reason = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::NotFound
        | Code::Unimplemented
        | Code::DataLoss => Failed::ForGood(reason),
        _ => Failed::Now { reason, refused: false },
    }
}

async fn tell(message: NodeToClient, to_client: &mut OwnedWriteHalf) {
    let mut frame = BytesMut::new();
    Codec::default().frame_node_messages(&[message], &mut frame);
    let _ = to_client.write_all(&frame).await;
}

async fn end_with(reason: String, to_client: &mut OwnedWriteHalf) {
    tell(NodeToClient::Rejected { reason }, to_client).await;
}

/// A span for people: `10 min`, `90 s`.
fn in_words(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds >= 120 && seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        0 => format!("{} ms", span.as_millis()),
        seconds => format!("{seconds} s"),
    }
}
