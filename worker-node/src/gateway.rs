//! Drivers of machines without a daemon, over gRPC (rule T1). They share no memory; otherwise they are like others.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use cluster_proto::auth::CheckToken;
use cluster_proto::limits::MAX_GRPC_MESSAGE;
use cluster_proto::strangers::{Incoming, Patience};
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::v1::client_service_server::{ClientService, ClientServiceServer};
use cluster_proto::{Codec, v1};
use cluster_types::{ClientHello, ClientKind, NodeToClient};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use crate::clients::{Client, ClientLink};
use crate::event_loop::Handle;
use crate::head_link::unframe;
use crate::sockets::check_hello;

const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Frames of one client that wait for the event loop; beyond this its stream's flow control holds it back.
const INCOMING_MAX: usize = 64;

type Frames = mpsc::UnboundedSender<Result<v1::NodeFrame, Status>>;

/// The writing half of a client's stream.
pub(crate) struct RemoteClient {
    end: RefCell<StreamEnd>,
    /// `None` once closed. Bounded in bytes by the same limit as a socket's outbox.
    frames: RefCell<Option<Frames>>,
    backlog: Arc<AtomicUsize>,
    closed: Arc<Notify>,
}

impl RemoteClient {
    pub(crate) fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    pub(crate) fn send(&self, messages: &[NodeToClient], codec: &mut Codec, buffer: &mut BytesMut) {
        codec.frame_node_messages(messages, buffer);
        let batches = unframe(buffer);
        let Some(frames) = &*self.frames.borrow() else { return };
        for batch in batches {
            for piece in self.end.borrow_mut().send(batch) {
                self.backlog.fetch_add(piece.payload.len(), Ordering::Relaxed);
                let _ = frames.send(Ok(piece.into()));
            }
        }
    }

    pub(crate) fn close(&self) {
        self.frames.borrow_mut().take();
        self.closed.notify_one();
    }
}

/// A stream whose token was right, handed to the event loop.
struct Arrived {
    incoming: mpsc::Receiver<v1::ClientFrame>,
    frames: Frames,
    backlog: Arc<AtomicUsize>,
}

/// What tonic calls; it knows nothing of the daemon, whose state is not for other threads.
struct Door {
    arrivals: mpsc::Sender<Arrived>,
}

#[tonic::async_trait]
impl ClientService for Door {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::NodeFrame, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::ClientFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut stream = request.into_inner();
        let (incoming, receiver) = mpsc::channel(INCOMING_MAX);
        let (frames, outgoing) = mpsc::unbounded_channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        let arrived = Arrived { incoming: receiver, frames, backlog: backlog.clone() };
        self.arrivals.send(arrived).await.map_err(|_| Status::unavailable("the daemon is ending"))?;
        // Ends with the stream, or when the event loop has parted with the client.
        tokio::spawn(async move {
            while let Ok(Some(frame)) = stream.message().await {
                if incoming.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let counted = UnboundedReceiverStream::new(outgoing).map(move |frame| {
            if let Ok(v1::NodeFrame { payload, .. }) = &frame {
                backlog.fetch_sub(payload.len(), Ordering::Relaxed);
            }
            frame
        });
        Ok(Response::new(Box::pin(counted)))
    }
}

/// Starts serving; returns the address.
pub(crate) async fn serve(handle: Handle, listener: TcpListener) -> std::io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let (arrivals, mut arrived) = mpsc::channel(64);
    let service = ClientServiceServer::new(Door { arrivals })
        .max_decoding_message_size(MAX_GRPC_MESSAGE)
        .max_encoding_message_size(MAX_GRPC_MESSAGE);
    let service = InterceptedService::new(service, CheckToken::new(&handle.borrow().token));
    let files = crate::packages::service(handle.borrow().jobs.chunks());
    let files = InterceptedService::new(files, CheckToken::new(&handle.borrow().token));
    tokio::task::spawn_local(async move {
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(service)
            .add_service(files)
            .serve_with_incoming(Incoming::new(listener, Patience::default()));
        if let Err(error) = server.await {
            tracing::error!(%error, "the gateway has ended");
        }
    });
    tokio::task::spawn_local(async move {
        while let Some(stream) = arrived.recv().await {
            tokio::task::spawn_local(greet(handle.clone(), stream));
        }
    });
    Ok(address)
}

/// Hears the hello, then serves the client to its end.
async fn greet(handle: Handle, mut arrived: Arrived) {
    let first = timeout(HELLO_WITHIN, arrived.incoming.recv()).await;
    let hello = match first {
        Ok(Some(frame)) => Codec::decode_hello(frame.payload).map_err(|error| error.to_string()),
        Ok(None) => return,
        Err(_) => Err("no hello came within 5 s".to_owned()),
    };
    let hello = match hello {
        Ok(hello) => match check(&handle, &hello).await {
            Ok(()) => hello,
            Err(reason) => return reject(&arrived, reason),
        },
        Err(reason) => return reject(&arrived, reason),
    };
    let ClientHello { client, kind, pid, .. } = hello;
    let closed = Arc::new(Notify::new());
    let link = RemoteClient {
        end: RefCell::new(StreamEnd::once()),
        frames: RefCell::new(Some(arrived.frames.clone())),
        backlog: arrived.backlog.clone(),
        closed: closed.clone(),
    };
    let (drained, drained_later) = watch::channel(false);
    let known = Client::new(kind, ClientLink::Remote(link), drained_later);
    if let Err(reason) = handle.borrow().attach(client, pid, known, false) {
        return reject(&arrived, reason);
    }
    let Arrived { mut incoming, frames, .. } = arrived;
    // The client's link holds the only one from here on, so that closing it ends the stream.
    drop(frames);
    tracing::info!(%client, "remote client attached");
    let mut end = StreamEnd::once();
    loop {
        let frame = tokio::select! {
            frame = incoming.recv() => frame,
            () = closed.notified() => None,
        };
        let Some(frame) = frame else { break };
        let mut daemon = handle.borrow();
        let taken = match end.receive(Piece::from(frame)) {
            Ok(Some(batch)) => daemon.receive(client, batch).map(|_| ()),
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        daemon.pump();
        if let Err(reason) = taken {
            tracing::warn!(%client, reason, "a remote client broke the protocol; parting with it");
            daemon.tell_client(client, NodeToClient::Rejected { reason });
            if let Some(known) = daemon.clients.get_mut(&client) {
                known.closing = true;
            }
        }
    }
    drained.send_replace(true);
    tracing::info!(%client, "remote client ended");
    let mut daemon = handle.borrow();
    daemon.end_client(client);
    daemon.pump();
}

async fn check(handle: &Handle, hello: &ClientHello) -> Result<(), String> {
    if matches!(hello.kind, ClientKind::Executor { .. }) {
        return Err("executors attach by Unix socket, not here".to_owned());
    }
    check_hello(handle, hello).await
}

fn reject(arrived: &Arrived, reason: String) {
    tracing::warn!(reason, "remote client rejected");
    let mut batch = BytesMut::new();
    Codec::default().encode_node_batch(&[NodeToClient::Rejected { reason }], &mut batch);
    for piece in StreamEnd::once().send(batch.freeze()) {
        arrived.backlog.fetch_add(piece.payload.len(), Ordering::Relaxed);
        let _ = arrived.frames.send(Ok(piece.into()));
    }
}
