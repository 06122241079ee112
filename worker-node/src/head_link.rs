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
use cluster_proto::limits::MAX_GRPC_MESSAGE;
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::v1::head_client::HeadClient;
use cluster_proto::{Codec, v1};
use cluster_types::{HeadToNode, NodeHello, NodeToHead};
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
const CONNECT: Duration = Duration::from_millis(1_500);
const ANSWER: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
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
}

/// Talks to the head for ever; returns only with an error that ends the daemon. `admitted` is called once.
pub(crate) async fn run(
    handle: Handle,
    address: String,
    token: String,
    mut hello: NodeHello,
    admitted: impl FnOnce(),
) -> WorkerError {
    let mut admitted = Some(admitted);
    let start = Instant::now();
    let mut backoff = BACKOFF_MIN;
    loop {
        let mut was_admitted = false;
        let first_hello = hello.clone();
        let mut on_message = |message: &HeadToNode| {
            if let HeadToNode::Admitted { term, incarnation, .. } = message {
                was_admitted = true;
                hello.previous = Some((*term, *incarnation));
                tracing::info!(%address, ?term, ?incarnation, "admitted by the head");
                if let Some(admitted) = admitted.take() {
                    admitted();
                }
            }
        };
        let parted = converse(&handle, &address, &token, &first_hello, &mut on_message).await;
        {
            let mut daemon = handle.borrow();
            daemon.disconnect_head();
            if was_admitted {
                daemon.push(Event::HeadLost);
                daemon.pump();
            }
        }
        match parted {
            Parted::Refused(reason) if !was_admitted => return WorkerError::Refused { address, reason },
            Parted::Lost(reason) if admitted.is_some() && start.elapsed() > FIRST_CONNECT => {
                return WorkerError::HeadUnreachable { address, reason };
            }
            Parted::Lost(reason) | Parted::Refused(reason) => {
                tracing::warn!(%address, reason, "no head; connecting again");
            }
        }
        if was_admitted {
            backoff = BACKOFF_MIN;
        }
        tokio::time::sleep(backoff).await;
        backoff =
            (backoff * 2).min(if admitted.is_some() { Duration::from_millis(500) } else { BACKOFF_MAX });
    }
}

async fn converse(
    handle: &Handle,
    address: &str,
    token: &str,
    hello: &NodeHello,
    on_message: &mut impl FnMut(&HeadToNode),
) -> Parted {
    let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint,
        Err(error) => return Parted::Refused(format!("`{address}` is no host:port: {error}")),
    };
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(4))
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
            on_message(&message);
            daemon.push(Event::FromHead(message));
        }
        daemon.pump();
    }
}

fn parted(status: &Status) -> Parted {
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
