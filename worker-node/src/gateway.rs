//! Drivers of machines without a daemon, over gRPC (rule T1). They share no memory; otherwise they are like others.

mod feeding;
mod session;

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use cluster_proto::auth::CheckToken;
use cluster_proto::limits::MAX_GRPC_MESSAGE;
use cluster_proto::session::{GRACE_HEADER, HTTP_FRAME, KEEP_ALIVE_EVERY, KEEP_ALIVE_WITHIN, STREAM_WINDOW};
use cluster_proto::strangers::{Incoming, Patience};
use cluster_proto::stream::StreamEnd;
use cluster_proto::v1::client_service_server::{ClientService, ClientServiceServer};
use cluster_proto::{Codec, v1};
use cluster_types::{ClientHello, ClientId, ClientKind, ClientToNode, NodeToClient};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use crate::clients::{Client, ClientLink};
use crate::event_loop::{Daemon, Handle};
use crate::sockets::check_hello;

pub(crate) use feeding::{NoPart, Part};
pub(crate) use session::Session;
use session::{Frames, FromClient, News};

const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Frames of one client that wait for the event loop; beyond this its stream's flow control holds it back.
const INCOMING_MAX: usize = 64;
/// A silent end acknowledges after this.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(100);

/// A stream whose token was right, handed to the event loop.
struct Arrived {
    incoming: FromClient,
    frames: Frames,
}

/// What tonic calls; it knows nothing of the daemon, whose state is not for other threads.
struct Door {
    arrivals: mpsc::Sender<Arrived>,
    grace: Duration,
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
        let arrived = Arrived { incoming: receiver, frames };
        self.arrivals.send(arrived).await.map_err(|_| Status::unavailable("the daemon is ending"))?;
        // Ends with the stream, or when the event loop has parted with the client.
        tokio::spawn(async move {
            while let Ok(Some(frame)) = stream.message().await {
                if incoming.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let mut response: Response<Self::AttachStream> =
            Response::new(Box::pin(UnboundedReceiverStream::new(outgoing)));
        response.metadata_mut().insert(GRACE_HEADER, (self.grace.as_millis() as u64).into());
        Ok(response)
    }
}

/// Starts serving; returns the address.
///
/// A client that is away is waited for during `grace`, or as long as it asked for if that is less.
pub(crate) async fn serve(
    handle: Handle,
    listener: TcpListener,
    grace: Duration,
) -> std::io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let (arrivals, mut arrived) = mpsc::channel(64);
    let service = ClientServiceServer::new(Door { arrivals, grace })
        .max_decoding_message_size(MAX_GRPC_MESSAGE)
        .max_encoding_message_size(MAX_GRPC_MESSAGE);
    let service = InterceptedService::new(service, CheckToken::new(&handle.borrow().token));
    let files = crate::packages::service(handle.borrow().jobs.chunks());
    let files = InterceptedService::new(files, CheckToken::new(&handle.borrow().token));
    tokio::task::spawn_local(async move {
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW)
            .max_frame_size(HTTP_FRAME)
            .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_WITHIN))
            .add_service(service)
            .add_service(files)
            .serve_with_incoming(Incoming::new(listener, Patience::default()));
        if let Err(error) = server.await {
            tracing::error!(%error, "the gateway has ended");
        }
    });
    tokio::task::spawn_local(async move {
        while let Some(stream) = arrived.recv().await {
            tokio::task::spawn_local(greet(handle.clone(), stream, grace));
        }
    });
    Ok(address)
}

/// Hears the hello, then serves the client to its end.
async fn greet(handle: Handle, mut arrived: Arrived, grace: Duration) {
    let first = match timeout(HELLO_WITHIN, arrived.incoming.recv()).await {
        Ok(Some(frame)) => frame,
        Ok(None) => return,
        Err(_) => return reject(&arrived, "no hello came within 5 s".to_owned()),
    };
    let asked = first.session;
    let hello = match Codec::decode_hello(first.payload) {
        Ok(hello) => hello,
        Err(error) => return reject(&arrived, error.to_string()),
    };
    if let Some(v1::Session { id, resumed: true, received, .. }) = asked {
        return resume(&handle, arrived, hello.client, id, received);
    }
    if let Err(reason) = check(&handle, &hello).await {
        return reject(&arrived, reason);
    }
    let ClientHello { client, kind, pid, .. } = hello;
    let grace = asked.map_or(grace, |asked| grace.min(Duration::from_millis(asked.grace_ms)));
    let session = Session::new(asked.map(|asked| asked.id), grace, arrived.frames.clone());
    let (drained, drained_later) = watch::channel(false);
    let known = Client::new(kind, ClientLink::Remote(session.clone()), drained_later);
    if let Err(reason) = handle.borrow().attach(client, pid, known, false) {
        return reject(&arrived, reason);
    }
    let Arrived { incoming, frames } = arrived;
    // The session holds the only one from here on, so that closing it ends the stream.
    drop(frames);
    tracing::info!(%client, "remote client attached");
    let feeding = tokio::task::spawn_local(feeding::feed(handle.clone(), client, session.clone()));
    serve_session(&handle, client, &session, incoming).await;
    feeding.abort();
    drained.send_replace(true);
    tracing::info!(%client, "remote client ended");
    let mut daemon = handle.borrow();
    daemon.end_client(client);
    daemon.pump();
}

/// A client comes back.
fn resume(handle: &Handle, arrived: Arrived, client: ClientId, id: u64, received: u64) {
    let session = match handle.borrow().clients.get(&client).map(|known| &known.link) {
        Some(ClientLink::Remote(session)) if session.is(id) => session.clone(),
        _ => {
            tracing::info!(%client, "a remote client came back too late, or to another daemon than it left");
            let unknown = "the daemon knows nothing of this program any more: it was started anew since, or parted with \
                           the program, or the program was away for longer than its grace period (CLUSTER_CLIENT_GRACE, \
                           `cluster up --client-grace`)";
            let _ = arrived.frames.send(Err(Status::not_found(unknown)));
            return;
        }
    };
    tracing::info!(%client, "remote client is back");
    session.resume(arrived.frames, arrived.incoming, received);
}

/// Why a stream is read no more.
enum Parted {
    /// It broke.
    Lost,
    /// There is a newer one.
    Replaced(FromClient),
    /// The client said goodbye, or the daemon parts with it.
    Over,
}

/// Serves a client across the streams that it comes on, until it ends or is away for too long.
async fn serve_session(handle: &Handle, client: ClientId, session: &Session, mut incoming: FromClient) {
    loop {
        incoming = match read(handle, client, session, &mut incoming).await {
            Parted::Replaced(next) => next,
            Parted::Over => return,
            Parted::Lost if session.grace().is_zero() => return,
            Parted::Lost => {
                session.lost();
                tracing::info!(%client, grace = ?session.grace(), "lost touch with a remote client; waiting for it");
                match timeout(session.grace(), session.news()).await {
                    Ok(News::Back(next)) => next,
                    Ok(News::Over) => return,
                    Err(_) => return tracing::info!(%client, "a remote client did not come back"),
                }
            }
        };
    }
}

async fn read(handle: &Handle, client: ClientId, session: &Session, incoming: &mut FromClient) -> Parted {
    loop {
        let frame = tokio::select! {
            frame = incoming.recv() => frame,
            news = session.news() => return match news {
                News::Back(next) => Parted::Replaced(next),
                News::Over => Parted::Over,
            },
            () = sleep(ACKNOWLEDGE_AFTER), if session.has_to_acknowledge() => {
                session.acknowledge();
                continue;
            }
        };
        let Some(frame) = frame else { return Parted::Lost };
        let taken = match session.receive(frame).map_err(|error| error.to_string()) {
            Ok(Some(batch)) => take(handle, client, session, batch).await,
            Ok(None) => continue,
            Err(reason) => Err(reason),
        };
        match taken {
            Ok(false) => {}
            Ok(true) => return Parted::Over,
            Err(reason) => {
                tracing::warn!(%client, reason, "parting with a remote client");
                handle.borrow().part_with(client, reason);
            }
        }
    }
}

/// Passes on what a batch says, in order, but for bytes of large values, which go to where they belong; true if it says
/// goodbye.
async fn take(
    handle: &Handle,
    client: ClientId,
    session: &Session,
    batch: bytes::Bytes,
) -> Result<bool, String> {
    let mut goodbye = false;
    let mut gathered = Vec::new();
    let mut pass_on = |messages: Vec<ClientToNode>| {
        let mut daemon = handle.borrow();
        goodbye |= daemon.hear(client, messages);
        daemon.pump();
    };
    let messages = handle.borrow().decode(batch)?;
    for message in messages {
        match message {
            ClientToNode::Write { segment, offset, bytes } => {
                pass_on(std::mem::take(&mut gathered));
                session.write(segment, offset, bytes).await?;
            }
            message => {
                session.note_said(&message)?;
                gathered.push(message);
            }
        }
    }
    pass_on(gathered);
    Ok(goodbye)
}

impl Daemon {
    /// Says why, and ends the connection.
    fn part_with(&mut self, client: ClientId, reason: String) {
        self.tell_client(client, NodeToClient::Rejected { reason });
        if let Some(known) = self.clients.get_mut(&client) {
            known.closing = true;
        }
    }

    /// The daemon ends: clients of other machines would look for it for a long time.
    pub(crate) fn part_with_remote_clients(&mut self, reason: &str) {
        let is_remote = |known: &Client| matches!(known.link, ClientLink::Remote(_));
        let remote: Vec<ClientId> =
            self.clients.iter().filter(|(_, known)| is_remote(known)).map(|(client, _)| *client).collect();
        for client in remote {
            self.part_with(client, reason.to_owned());
        }
        self.flush();
    }
}

async fn check(handle: &Handle, hello: &ClientHello) -> Result<(), String> {
    if matches!(hello.kind, ClientKind::Executor { .. }) {
        return Err("executors attach by Unix socket, not here".to_owned());
    }
    check_hello(handle, hello, false).await
}

fn reject(arrived: &Arrived, reason: String) {
    tracing::warn!(reason, "remote client rejected");
    let mut batch = BytesMut::new();
    Codec::default().encode_node_batch(&[NodeToClient::Rejected { reason }], &mut batch);
    for piece in StreamEnd::once().send(batch.freeze()) {
        let _ = arrived.frames.send(Ok(piece.into()));
    }
}
