//! A client on a machine without a daemon: a thread that passes frames between a socket pair and a gateway's gRPC
//! stream, so that everything else speaks to a Unix socket (rule T1).

use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster_proto::auth::AddToken;
use cluster_proto::frame::{FrameReader, write_frame};
use cluster_proto::heads::{KnownHeads, heads_of};
use cluster_proto::limits::MAX_GRPC_MESSAGE;
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::v1::client_service_client::ClientServiceClient;
use cluster_proto::v1::head_client::HeadClient;
use cluster_proto::v1::{ClientFrame, FindGatewayRequest, NodeFrame};
use cluster_store::with_signals_blocked;
use cluster_types::{Heads, PROTOCOL_VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::{ConnectError, Interrupt};

/// Frames on their way into the stream; past it the socket is not read, and the client gathers.
const FRAMES_MAX: usize = 16;
const PIECE: Duration = Duration::from_millis(100);
/// How long one of several heads may take.
const ONE_HEAD: Duration = Duration::from_secs(2);
/// Before the next is asked.
const AGAIN: Duration = Duration::from_millis(200);

type Gateway = ClientServiceClient<InterceptedService<Channel, AddToken>>;

/// Finds the gateway and connects to it. Returns this process's end of the socket pair, and the gateway's address.
pub(crate) fn open(
    address: &str,
    token: &str,
    deadline: Instant,
    interrupt: Interrupt<'_>,
) -> Result<(UnixStream, String), ConnectError> {
    let local = |error: std::io::Error| ConnectError::Local(error.to_string());
    let (ours, theirs) = UnixStream::pair().map_err(local)?;
    theirs.set_nonblocking(true).map_err(local)?;
    let (tell, told) = mpsc::channel();
    let (address, token) = (address.to_owned(), token.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(local)?;
    let bridge = move || {
        runtime.block_on(async {
            let patience = deadline.saturating_duration_since(Instant::now());
            let gateway = match tokio::time::timeout(patience, find(&address, &token, deadline)).await {
                Ok(found) => found,
                Err(_) => Err(unreachable(&address, "it did not answer in time")),
            };
            match gateway {
                Ok((gateway, place)) => {
                    // The one who asked may have been interrupted; then the pair's other end is closed too.
                    let _ = tell.send(Ok(place));
                    carry(gateway, theirs).await;
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        });
    };
    // It ends when either side closes, so nobody joins it.
    with_signals_blocked(|| std::thread::Builder::new().name("cluster-bridge".to_owned()).spawn(bridge))
        .map_err(local)?;
    loop {
        match told.recv_timeout(PIECE) {
            Ok(answer) => return answer.map(|place| (ours, place)),
            Err(mpsc::RecvTimeoutError::Timeout) => interrupt().map_err(|_| ConnectError::Interrupted)?,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(ConnectError::Local("the thread that connects has ended".to_owned()));
            }
        }
    }
}

fn unreachable(address: &str, why: &str) -> ConnectError {
    ConnectError::Unreachable(format!(
        "no cluster answers at {address}: {why}. Tried to reach its head there over gRPC; check the address and the \
         firewall, and that the cluster was started with an address that other machines can reach \
         (`cluster up --host`)"
    ))
}

fn refused(address: &str, status: &Status) -> ConnectError {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition => {
            ConnectError::Rejected(status.message().to_owned())
        }
        _ => unreachable(address, status.message()),
    }
}

fn endpoint(address: &str) -> Result<Endpoint, ConnectError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| unreachable(address, "that is no address; give host:port, such as 10.0.0.5:8264"))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

/// Asks one head after the other, for the cluster may be without a leader for a while.
async fn find(addresses: &str, token: &str, deadline: Instant) -> Result<(Gateway, String), ConnectError> {
    let mut heads = KnownHeads::new(addresses);
    loop {
        let now = Instant::now();
        let address = heads.next(now);
        let patience = deadline.saturating_duration_since(now);
        let patience = if heads.are_several() { patience.min(ONE_HEAD) } else { patience };
        let error = match ask(&address, token, patience).await {
            Ok(gateways) => match reach(&address, gateways, token).await {
                // Nodes may be on their way to a head that leads since a moment ago.
                Err(error) if heads.are_several() => error,
                outcome => return outcome,
            },
            Err(Unanswered::Elsewhere(known, error)) => {
                heads.learn(&known);
                error
            }
            Err(Unanswered::Failed(error @ ConnectError::Unreachable(_))) if heads.are_several() => {
                heads.unreachable(&address, Instant::now());
                error
            }
            Err(Unanswered::Failed(error)) => return Err(error),
        };
        if Instant::now() + AGAIN >= deadline {
            return Err(error);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Why a head named no gateways.
enum Unanswered {
    /// Another may.
    Elsewhere(Heads, ConnectError),
    Failed(ConnectError),
}

/// The gateways that this head knows.
async fn ask(address: &str, token: &str, patience: Duration) -> Result<Vec<String>, Unanswered> {
    let endpoint = endpoint(address).map_err(Unanswered::Failed)?.connect_timeout(patience);
    let failed = |why: &str| Unanswered::Failed(unreachable(address, why));
    let channel = endpoint.connect().await.map_err(|error| failed(&innermost(&error)))?;
    let mut head = HeadClient::with_interceptor(channel, AddToken::new(token));
    let request = FindGatewayRequest { protocol: PROTOCOL_VERSION };
    let answer = tokio::time::timeout(patience, head.find_gateway(request)).await;
    match answer.map_err(|_| failed("it did not answer in time"))? {
        Ok(answer) => Ok(answer.into_inner().addresses),
        Err(status) => Err(match heads_of(&status) {
            Some(heads) => Unanswered::Elsewhere(heads, unreachable(address, status.message())),
            None => Unanswered::Failed(refused(address, &status)),
        }),
    }
}

async fn reach(address: &str, gateways: Vec<String>, token: &str) -> Result<(Gateway, String), ConnectError> {
    let mut failed = Vec::new();
    for gateway in gateways {
        match endpoint(&gateway)?.connect().await {
            Ok(channel) => {
                let client = ClientServiceClient::with_interceptor(channel, AddToken::new(token))
                    .max_decoding_message_size(MAX_GRPC_MESSAGE)
                    .max_encoding_message_size(MAX_GRPC_MESSAGE);
                return Ok((client, gateway));
            }
            Err(error) => failed.push(format!("{gateway} ({})", innermost(&error))),
        }
    }
    Err(ConnectError::Unreachable(match failed.as_slice() {
        [] => format!(
            "the head at {address} answers, but none of its nodes serves drivers from elsewhere: start a worker \
             daemon beside it (`cluster up` does)"
        ),
        failed => format!(
            "the head at {address} answers, but the daemons that serve drivers cannot be reached: {}. Check the \
             firewall between this machine and them",
            failed.join(", ")
        ),
    }))
}

/// The cause that says something: `Connection refused`, say.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Passes frames on, both ways, until either side ends.
async fn carry(mut gateway: Gateway, socket: UnixStream) {
    let Ok(socket) = tokio::net::UnixStream::from_std(socket) else { return };
    let (mut from_client, mut to_client) = socket.into_split();
    let (frames, outgoing) = tokio::sync::mpsc::channel::<ClientFrame>(FRAMES_MAX);
    let up = async move {
        let (mut reader, mut end, mut first) = (FrameReader::default(), StreamEnd::once(), true);
        loop {
            while let Ok(Some(frame)) = reader.next_frame() {
                let pieces =
                    if std::mem::take(&mut first) { vec![Piece::hello(frame)] } else { end.send(frame) };
                for piece in pieces {
                    if frames.send(piece.into()).await.is_err() {
                        return;
                    }
                }
            }
            match from_client.read_buf(reader.buffer()).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    let down = async move {
        let refusal = match gateway.attach(ReceiverStream::new(outgoing)).await {
            Ok(answer) => receive(answer.into_inner(), &mut to_client).await,
            Err(status) => Some(status),
        };
        if let Some(status) = refusal {
            let reason = format!("the gateway ended the connection: {}", status.message());
            let mut frame = BytesMut::new();
            let rejected = [cluster_types::NodeToClient::Rejected { reason }];
            cluster_proto::Codec::default().frame_node_messages(&rejected, &mut frame);
            let _ = to_client.write_all(&frame).await;
        }
    };
    // What the client said last is still to be delivered when it closes; the gateway closes then.
    let mut down = std::pin::pin!(down);
    tokio::select! {
        () = up => {
            let _ = tokio::time::timeout(Duration::from_secs(2), down).await;
        }
        () = &mut down => {}
    }
}

async fn receive(
    mut stream: Streaming<NodeFrame>,
    to_client: &mut tokio::net::unix::OwnedWriteHalf,
) -> Option<Status> {
    let mut end = StreamEnd::once();
    let mut out = BytesMut::new();
    loop {
        let batch: Bytes = match stream.message().await {
            Ok(Some(frame)) => match end.receive(Piece::from(frame)) {
                Ok(Some(batch)) => batch,
                Ok(None) => continue,
                Err(error) => return Some(Status::data_loss(error.to_string())),
            },
            Ok(None) => return None,
            Err(status) => return Some(status),
        };
        out.clear();
        write_frame(&mut out, |out| out.extend_from_slice(&batch));
        if to_client.write_all(&out).await.is_err() {
            return None;
        }
    }
}
