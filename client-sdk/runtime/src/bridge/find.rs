//! Which daemon serves a driver from elsewhere, and a connection to it.

use std::time::{Duration, Instant};

use cluster_proto::auth::AddToken;
use cluster_proto::heads::{KnownHeads, heads_of};
use cluster_proto::limits::MAX_GRPC_MESSAGE;
use cluster_proto::session::{KEEP_ALIVE_EVERY, KEEP_ALIVE_WITHIN, STREAM_WINDOW};
use cluster_proto::v1::FindGatewayRequest;
use cluster_proto::v1::client_service_client::ClientServiceClient;
use cluster_proto::v1::head_client::HeadClient;
use cluster_types::{Heads, PROTOCOL_VERSION};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::ConnectError;

/// How long one of several heads may take.
const ONE_HEAD: Duration = Duration::from_secs(2);
/// Before the next is asked.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) type Gateway = ClientServiceClient<InterceptedService<Channel, AddToken>>;

pub(super) fn unreachable(address: &str, why: &str) -> ConnectError {
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
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_WITHIN)
        .keep_alive_while_idle(true))
}

/// Asks one head after the other, for the cluster may be without a leader for a while.
pub(super) async fn find(
    addresses: &str,
    token: &str,
    deadline: Instant,
) -> Result<(Gateway, String), ConnectError> {
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
            Ok(channel) => return Ok((client(channel, token), gateway)),
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

fn client(channel: Channel, token: &str) -> Gateway {
    ClientServiceClient::with_interceptor(channel, AddToken::new(token))
        .max_decoding_message_size(MAX_GRPC_MESSAGE)
        .max_encoding_message_size(MAX_GRPC_MESSAGE)
}

/// No connection to a gateway that there was one to.
pub(super) struct Unreached {
    pub(super) reason: String,
    /// The machine is there, and nobody listens.
    pub(super) refused: bool,
}

/// Connects to a gateway again.
pub(super) async fn gateway_at(address: &str, token: &str) -> Result<Gateway, Unreached> {
    let endpoint =
        endpoint(address).map_err(|error| Unreached { reason: error.to_string(), refused: false })?;
    match endpoint.connect().await {
        Ok(channel) => Ok(client(channel, token)),
        Err(error) => Err(Unreached { reason: innermost(&error), refused: is_refusal(&error) }),
    }
}

fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && error.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether a head that leads says that the gateway is no node of it any more. False while no head answers.
pub(super) async fn has_lost_gateway(heads: &str, gateway: &str, token: &str) -> bool {
    let mut asked: Vec<String> = heads.split(',').map(|head| head.trim().to_owned()).collect();
    let mut next = 0;
    while let Some(head) = asked.get(next).cloned() {
        next += 1;
        match ask(&head, token, ONE_HEAD).await {
            Ok(gateways) => return !gateways.iter().any(|known| known == gateway),
            Err(Unanswered::Elsewhere(known, _)) if !known.leader.is_empty() => {
                if !asked.contains(&known.leader) {
                    asked.push(known.leader);
                }
            }
            Err(_) => {}
        }
    }
    false
}
