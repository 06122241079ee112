//! The conversation with a head in another process.
//!
//! Each connection is a conversation of its own: the head admits the node anew, and the core begins with a snapshot.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster_proto::auth::AddToken;
use cluster_proto::frame::FrameReader;
use cluster_proto::heads::{KnownHeads, heads_of};
use cluster_proto::limits::MAX_GRPC_MESSAGE;
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::v1::head_client::HeadClient;
use cluster_proto::{Codec, v1};
use cluster_types::{HeadToNode, Heads, NodeHello, NodeToHead};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use worker_core::Event;

use crate::config::WorkerError;
use crate::event_loop::Handle;

/// Nobody at the address is an error after this, at the daemon's start.
const FIRST_CONNECT: Duration = Duration::from_millis(3_500);
/// There are heads, and none leads: that too is an error then.
const FIRST_LEADER: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_millis(1_500);
const ANSWER: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Where one of several heads will lead soon.
const BACKOFF_SEVERAL: Duration = Duration::from_millis(200);
/// How often a connection is tried out while nothing comes, and for how long. With several heads another may lead long
/// before a connection to one that was paused, or cut off, is closed by anybody.
const ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(4));
const ALIVE_SEVERAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// Untold messages beyond this: the connection is of no use.
const BACKLOG_MAX: usize = 256 << 20;

/// The sending side, held by the event loop.
#[derive(Default)]
pub(crate) struct HeadLink {
    messages: Vec<NodeToHead>,
    connection: Option<Connection>,
    buffer: BytesMut,
}

struct Connection {
    end: Rc<RefCell<StreamEnd>>,
    /// Bounded by `BACKLOG_MAX` bytes, counted beside it.
    frames: mpsc::UnboundedSender<v1::NodeFrame>,
    backlog: Arc<AtomicUsize>,
}

impl HeadLink {
    /// Gathers a message; true if it is the first since the last flush. Without a connection there is nobody to tell,
    /// and the snapshot of the next says it anyway.
    pub(crate) fn tell(&mut self, message: NodeToHead) -> bool {
        if self.connection.is_none() {
            return false;
        }
        self.messages.push(message);
        self.messages.len() == 1
    }

    /// Sends what was gathered.
    pub(crate) fn flush(&mut self, codec: &mut Codec) {
        let Some(connection) = &self.connection else {
            self.messages.clear();
            return;
        };
        if self.messages.is_empty() {
            return;
        }
        codec.frame_to_head_messages(&self.messages, &mut self.buffer);
        self.messages.clear();
        let mut end = connection.end.borrow_mut();
        for batch in unframe(&mut self.buffer) {
            for piece in end.send(batch) {
                connection.backlog.fetch_add(piece.payload.len(), Ordering::Relaxed);
                let _ = connection.frames.send(piece.into());
            }
        }
        drop(end);
        if connection.backlog.load(Ordering::Relaxed) > BACKLOG_MAX {
            tracing::error!("the head does not read what it is told; connecting anew");
            self.connection = None;
        }
    }
}

/// The payloads of frames just written: a gRPC stream has frames of its own.
pub(crate) fn unframe(frames: &mut BytesMut) -> Vec<Bytes> {
    let mut reader = FrameReader::default();
    std::mem::swap(reader.buffer(), frames);
    std::iter::from_fn(|| reader.next_frame().ok().flatten()).collect()
}

/// Why a connection ended, or never began.
enum Parted {
    /// Worth another try.
    Lost(String),
    /// It would be the same again.
    Refused(String),
    /// It stands by.
    NotLeading(Heads),
}

/// Talks to the head for ever, whichever leads; returns only with an error that ends the daemon. `addresses` are those of
/// heads, with commas between. `learnt` is told all that are known when that changes; `admitted` is called once.
pub(crate) async fn run(
    handle: Handle,
    addresses: String,
    token: String,
    mut hello: NodeHello,
    learnt: impl Fn(&KnownHeads),
    admitted: impl FnOnce(),
) -> WorkerError {
    let mut admitted = Some(admitted);
    let mut heads = KnownHeads::new(&addresses);
    let start = Instant::now();
    let mut backoff = BACKOFF_MIN;
    let mut some_head_answered = false;
    loop {
        let address = heads.next(Instant::now());
        let mut was_admitted = false;
        let first_hello = hello.clone();
        let alive = if heads.are_several() { ALIVE_SEVERAL } else { ALIVE };
        let mut on_message = |message: &HeadToNode| match message {
            HeadToNode::Admitted { term, incarnation, .. }
            | HeadToNode::Resumed { term, incarnation, .. } => {
                // FENCE-1: who led before does not lead again, except where all its state was taken away.
                if heads.are_several() && hello.previous.is_some_and(|(last, _)| *term < last) {
                    return Err(format!("it leads in {term:?}, and a later one has begun"));
                }
                was_admitted = true;
                hello.previous = Some((*term, *incarnation));
                tracing::info!(%address, ?term, ?incarnation, "admitted by the head");
                if let Some(admitted) = admitted.take() {
                    admitted();
                }
                Ok(())
            }
            HeadToNode::Heads(known) => {
                heads.learn(known);
                learnt(&heads);
                Ok(())
            }
            _ => Ok(()),
        };
        let parted = converse(&handle, &address, &token, &first_hello, alive, &mut on_message).await;
        {
            let mut daemon = handle.borrow();
            daemon.disconnect_head();
            if was_admitted {
                daemon.push(Event::HeadLost);
                daemon.pump();
            }
        }
        let starting = admitted.is_some();
        match parted {
            Parted::Refused(reason) if !was_admitted && !heads.are_several() => {
                return WorkerError::Refused { address, reason };
            }
            Parted::Refused(reason) if starting => return WorkerError::Refused { address, reason },
            Parted::Lost(reason) if starting && !some_head_answered && start.elapsed() > FIRST_CONNECT => {
                return WorkerError::HeadUnreachable { address: heads.list(), reason };
            }
            Parted::NotLeading(_) if starting && start.elapsed() > FIRST_LEADER => {
                let reason = "there are heads, and none of them leads".to_owned();
                return WorkerError::HeadUnreachable { address: heads.list(), reason };
            }
            Parted::Lost(reason) | Parted::Refused(reason) => {
                tracing::warn!(%address, reason, "no head; connecting again");
                heads.unreachable(&address, Instant::now());
            }
            Parted::NotLeading(known) => {
                some_head_answered = true;
                tracing::info!(%address, leader = known.leader, "this head does not lead");
                heads.learn(&known);
                learnt(&heads);
                // Another knows already who does.
                if !known.leader.is_empty() {
                    backoff = BACKOFF_MIN;
                }
            }
        }
        if was_admitted {
            backoff = BACKOFF_MIN;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(match (heads.are_several(), starting) {
            (true, _) => BACKOFF_SEVERAL,
            (false, true) => Duration::from_millis(500),
            (false, false) => BACKOFF_MAX,
        });
    }
}

async fn converse(
    handle: &Handle,
    address: &str,
    token: &str,
    hello: &NodeHello,
    alive: (Duration, Duration),
    on_message: &mut impl FnMut(&HeadToNode) -> Result<(), String>,
) -> Parted {
    let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint,
        Err(error) => return Parted::Refused(format!("`{address}` is no host:port: {error}")),
    };
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(alive.0)
        .keep_alive_timeout(alive.1)
        .tcp_nodelay(true);
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => return Parted::Lost(all_causes(&error)),
    };
    let mut client = HeadClient::with_interceptor(channel, AddToken::new(token))
        .max_decoding_message_size(MAX_GRPC_MESSAGE)
        .max_encoding_message_size(MAX_GRPC_MESSAGE);
    let (frames, outgoing) = mpsc::unbounded_channel();
    let mut payload = BytesMut::new();
    Codec::encode_node_hello(hello, &mut payload);
    let _ = frames.send(Piece::hello(payload.freeze()).into());
    let backlog = Arc::new(AtomicUsize::new(0));
    let counted = backlog.clone();
    let outgoing = UnboundedReceiverStream::new(outgoing).map(move |frame: v1::NodeFrame| {
        // The hello was not counted.
        if frame.seq > 0 {
            counted.fetch_sub(frame.payload.len(), Ordering::Relaxed);
        }
        frame
    });
    let mut incoming = match tokio::time::timeout(ANSWER, client.attach(outgoing)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return parted(&status),
        Err(_) => return Parted::Lost("it accepted the connection and did not answer within 5 s".to_owned()),
    };
    let end = Rc::new(RefCell::new(StreamEnd::once()));
    handle.borrow().connect_head(Connection { end: end.clone(), frames, backlog });
    loop {
        let frame = match incoming.message().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Parted::Lost("it closed the connection".to_owned()),
            Err(status) => return parted(&status),
        };
        let batch = match end.borrow_mut().receive(frame.into()) {
            Ok(Some(batch)) => batch,
            Ok(None) => continue,
            Err(error) => return Parted::Lost(error.to_string()),
        };
        let mut daemon = handle.borrow();
        let messages = match daemon.codec.decode_to_node_batch(batch) {
            Ok(messages) => messages,
            Err(error) => return Parted::Lost(error.to_string()),
        };
        for message in messages {
            if let Err(reason) = on_message(&message) {
                return Parted::Lost(reason);
            }
            daemon.push(Event::FromHead(message));
        }
        daemon.pump();
    }
}

fn parted(status: &Status) -> Parted {
    if let Some(heads) = heads_of(status) {
        return Parted::NotLeading(heads);
    }
    let reason = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::Unimplemented => Parted::Refused(reason),
        code => Parted::Lost(format!("{code}: {reason}")),
    }
}

fn all_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}

impl crate::event_loop::Daemon {
    fn connect_head(&mut self, connection: Connection) {
        if let crate::head_side::HeadSide::Remote(link) = &mut self.head {
            link.messages.clear();
            link.connection = Some(connection);
        }
    }

    fn disconnect_head(&mut self) {
        if let crate::head_side::HeadSide::Remote(link) = &mut self.head {
            link.messages.clear();
            link.connection = None;
        }
    }
}
