//! gRPC calls become inputs of the driver; nothing is decided here but who may speak and whether it makes sense.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cluster_proto::heads::not_leading;
use cluster_proto::limits::MAX_FRAME;
use cluster_proto::strangers::Caller;
use cluster_proto::stream::StreamEnd;
use cluster_proto::v1::head_server::Head;
use cluster_proto::v1::{FindGatewayRequest, FindGatewayResponse, NodeFrame, QueryRequest, QueryResponse};
use cluster_proto::{Codec, WireError, check_protocol, decode_query, encode_reply};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{NodeHello, NodeToHead};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::outbox::{Outbox, Outgoing};
use crate::store::etcd::Position;

/// How long a connection may say nothing before it says who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What the service tells the driver. The queue has no bound of its own: each node's share is bounded by its credits,
/// questions by the connections that wait for them.
pub(crate) enum Input {
    Connected { connection: u64, hello: NodeHello, same_host: bool, outbox: Outbox },
    Batch { connection: u64, messages: Vec<NodeToHead>, _credits: OwnedSemaphorePermit },
    Disconnected { connection: u64, reason: Disconnect },
    Ask { query: Query, answer: oneshot::Sender<Result<QueryReply, String>> },
    FindGateway { answer: oneshot::Sender<Vec<String>> },
}

/// Why a node's stream ended.
pub(crate) enum Disconnect {
    /// The connection broke, or the node ended it.
    Gone(String),
    /// It sent what is no message.
    Broken(WireError),
}

/// Who answers.
pub(crate) enum Door {
    /// This head leads: its driver.
    Leads(mpsc::UnboundedSender<Input>),
    /// Another does, or nobody does yet.
    StandsBy(Option<watch::Receiver<Position>>),
}

#[derive(Clone)]
pub(crate) struct HeadService {
    door: watch::Receiver<Door>,
    connections: Arc<AtomicU64>,
    outbox_limit: usize,
}

impl HeadService {
    pub(crate) fn new(door: watch::Receiver<Door>, outbox_limit: usize) -> Self {
        Self { door, connections: Arc::new(AtomicU64::new(1)), outbox_limit }
    }

    /// The driver, or where to go instead.
    fn inputs(&self) -> Result<mpsc::UnboundedSender<Input>, Status> {
        match &*self.door.borrow() {
            Door::Leads(inputs) => Ok(inputs.clone()),
            Door::StandsBy(position) => {
                let heads = position.as_ref().map(|position| position.borrow().heads.clone());
                Err(not_leading(&heads.unwrap_or_default()))
            }
        }
    }

    /// For those who do not speak gRPC.
    pub(crate) async fn question(&self, query: Query) -> Result<Result<QueryReply, String>, Status> {
        self.ask(|answer| Input::Ask { query, answer }).await
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let stopping = || Status::unavailable("the head is stopping");
        self.inputs()?.send(input(answer)).map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())
    }
}

#[tonic::async_trait]
impl Head for HeadService {
    type AttachStream = Outgoing;

    async fn attach(&self, request: Request<Streaming<NodeFrame>>) -> Result<Response<Outgoing>, Status> {
        let same_host = request.extensions().get::<Caller>().is_some_and(|caller| {
            matches!((caller.remote, caller.local), (Some(remote), Some(local)) if remote.ip() == local.ip())
        });
        let mut frames = request.into_inner();
        let first = timeout(HELLO_TIMEOUT, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came within five seconds"))??
            .ok_or_else(|| Status::invalid_argument("the stream ended before its hello"))?;
        let hello = Codec::decode_node_hello(first.payload).map_err(refusal)?;
        let inputs = self.inputs()?;
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let outbox = Outbox::new(self.outbox_limit);
        let connected = Input::Connected { connection, hello, same_host, outbox: outbox.clone() };
        inputs.send(connected).map_err(|_| Status::unavailable("the head is stopping"))?;
        let reader = tokio::spawn(NodeReader { connection, inputs, reason: None }.read(frames));
        Ok(Response::new(Outgoing::new(&outbox, reader.abort_handle())))
    }

    async fn find_gateway(
        &self,
        request: Request<FindGatewayRequest>,
    ) -> Result<Response<FindGatewayResponse>, Status> {
        check_protocol("head", "client", request.into_inner().protocol).map_err(refusal)?;
        let addresses = self.ask(|answer| Input::FindGateway { answer }).await?;
        Ok(Response::new(FindGatewayResponse { addresses }))
    }

    async fn ask(&self, request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        let request = request.into_inner();
        check_protocol("head", "client", request.protocol).map_err(refusal)?;
        let query = decode_query(&request.query.unwrap_or_default()).map_err(refusal)?;
        let reply = self.ask(|answer| Input::Ask { query, answer }).await?;
        Ok(Response::new(QueryResponse { reply: Some(encode_reply(&reply)) }))
    }
}

/// A refusal's code: another version is for a person to mend, anything else is a broken peer.
fn refusal(error: WireError) -> Status {
    match error {
        WireError::Protocol { .. } => Status::failed_precondition(error.to_string()),
        other => Status::invalid_argument(other.to_string()),
    }
}

/// Reads one node's frames until its connection ends. However that happens, also by being dropped, the driver is told.
struct NodeReader {
    connection: u64,
    inputs: mpsc::UnboundedSender<Input>,
    reason: Option<Disconnect>,
}

impl NodeReader {
    async fn read(mut self, mut frames: Streaming<NodeFrame>) {
        self.reason = Some(match self.batches(&mut frames).await {
            Ok(reason) => Disconnect::Gone(reason),
            Err(error) => Disconnect::Broken(error),
        });
    }

    async fn batches(&self, frames: &mut Streaming<NodeFrame>) -> Result<String, WireError> {
        let mut codec = Codec::default();
        let mut stream = StreamEnd::once();
        // Bytes of batches that the driver has not processed; past it the node's stream is not read, and its own
        // outbox fills.
        let credits = Arc::new(Semaphore::new(MAX_FRAME));
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok("the node ended its stream".to_owned()),
                Err(status) => return Ok(format!("the connection broke: {}", status.message())),
            };
            let Some(batch) = stream.receive(frame.into())? else { continue };
            // At most MAX_FRAME, so neither the cast nor the permits can be too large.
            let permits = batch.len().clamp(1, MAX_FRAME) as u32;
            let messages = codec.decode_to_head_batch(batch)?;
            let Ok(credits) = credits.clone().acquire_many_owned(permits).await else {
                return Ok("the head is stopping".to_owned());
            };
            let batch = Input::Batch { connection: self.connection, messages, _credits: credits };
            if self.inputs.send(batch).is_err() {
                return Ok("the head is stopping".to_owned());
            }
        }
    }
}

impl Drop for NodeReader {
    fn drop(&mut self) {
        let reason =
            self.reason.take().unwrap_or_else(|| Disconnect::Gone("the connection was closed".to_owned()));
        let _ = self.inputs.send(Input::Disconnected { connection: self.connection, reason });
    }
}
