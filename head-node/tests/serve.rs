#![allow(clippy::unwrap_used, missing_docs)]

//! A head's edge in this process, on port 0, with nodes that are nothing but gRPC streams and a core that does what
//! the test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use cluster_proto::auth::AddToken;
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::v1::head_client::HeadClient;
use cluster_proto::v1::{FindGatewayRequest, HeadFrame, NodeFrame, QueryRequest};
use cluster_proto::{Codec, decode_reply, encode_query};
use cluster_types::query::{Query, QueryReply, StatusView, StoreUsage};
use cluster_types::*;
use head_core::{Effect, Event, HeadConfig, Record};
use head_node::{Config, Core, StateAt, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

type Client = HeadClient<InterceptedService<Channel, AddToken>>;

const DEADLINE: Duration = Duration::from_secs(10);

/// Admits all but `forbidden`, echoes a `Locate` as a `Free`, and writes down what it is told.
struct Scripted {
    term: Term,
    incarnation: u32,
    seen: Arc<Mutex<Vec<Event>>>,
    /// Steps that say planning was cut short.
    unfinished: u32,
}

impl Core for Scripted {
    fn step(&mut self, _now: Time, event: Event, effects: &mut Vec<Effect>) -> bool {
        match &event {
            Event::NodeConnected { connection, hello } if hello.hostname == "forbidden" => {
                let reason = "no such node here".to_owned();
                effects.push(Effect::RefuseNode { connection: *connection, reason });
            }
            Event::NodeConnected { connection, hello } => {
                self.incarnation += 1;
                let incarnation = Incarnation(self.incarnation);
                effects.push(Effect::Persist(Record::NodeJoined {
                    node: hello.node,
                    incarnation,
                    since: incarnation,
                    address: hello.data_address.as_str().into(),
                }));
                let message = HeadToNode::Admitted { term: self.term, incarnation, loss_timeout_ms: 5000 };
                let (connection, node) = (*connection, hello.node);
                effects.push(Effect::AdmitNode { connection, node, incarnation, message });
            }
            Event::FromNode { node, message: NodeToHead::Locate(object), .. } => {
                let message = HeadToNode::Free(vec![*object; 200_000]);
                effects.push(Effect::ToNode { node: *node, message });
            }
            Event::FromNode { node, message: NodeToHead::ClientGone { .. }, .. } => {
                let message = HeadToNode::Free(vec![ObjectId::default(); 70_000]);
                effects.extend((0..100).map(|_| Effect::ToNode { node: *node, message: message.clone() }));
            }
            Event::FromNode { node, incarnation, message: NodeToHead::CopyAdded(_) } => {
                let reason = "enough of you".to_owned();
                effects.push(Effect::CloseNode { node: *node, incarnation: *incarnation, reason });
            }
            Event::Query { number, query: Query::Status } => {
                let status = StatusView { term: self.term.0, ..StatusView::default() };
                effects.push(Effect::Reply { number: *number, reply: Ok(QueryReply::Status(status)) });
            }
            Event::Query { number, .. } => {
                effects.push(Effect::Reply { number: *number, reply: Err("never heard of it".to_owned()) });
            }
            _ => {}
        }
        self.seen.lock().unwrap().push(event);
        self.unfinished = self.unfinished.saturating_sub(1);
        self.unfinished > 0
    }
}

struct Head {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Event>>>,
    stop: Option<oneshot::Sender<()>>,
    daemon: JoinHandle<Result<(), head_node::HeadError>>,
}

impl Head {
    async fn start() -> Head {
        Self::with(Config::new("secret"), 0).await
    }

    async fn with(config: Config, unfinished: u32) -> Head {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let log = seen.clone();
        let core = move |config: HeadConfig| Scripted {
            term: config.term,
            incarnation: 0,
            seen: log.clone(),
            unfinished,
        };
        let daemon = tokio::spawn(async move {
            serve(config, core, listener, || {}, async {
                let _ = stopped.await;
            })
            .await
        });
        Head { address, seen, stop: Some(stop), daemon }
    }

    async fn client(&self, token: &str) -> Client {
        let channel = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        HeadClient::with_interceptor(channel.connect().await.unwrap(), AddToken::new(token))
    }

    /// Waits until the core was told something like this.
    async fn until_seen(&self, what: impl Fn(&Event) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !self.seen.lock().unwrap().iter().any(&what) {
            assert!(tokio::time::Instant::now() < deadline, "not seen in {:?}", self.seen.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn status(&self) -> StatusView {
        match ask(&mut self.client("secret").await, Query::Status).await {
            Ok(Ok(QueryReply::Status(status))) => status,
            other => panic!("{other:?}"),
        }
    }

    async fn stop(mut self) -> Result<(), head_node::HeadError> {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(DEADLINE, self.daemon).await.unwrap().unwrap()
    }
}

async fn ask(client: &mut Client, query: Query) -> Result<Result<QueryReply, String>, Status> {
    let request = QueryRequest { protocol: PROTOCOL_VERSION, query: Some(encode_query(&query)) };
    let reply = client.ask(request).await?.into_inner().reply.unwrap();
    Ok(decode_reply(reply).unwrap())
}

/// A node that is nothing but its stream.
struct Node {
    frames: mpsc::Sender<NodeFrame>,
    answers: Streaming<HeadFrame>,
    codec: Codec,
    sending: StreamEnd,
    receiving: StreamEnd,
}

impl Node {
    async fn attach(head: &Head, hello: &NodeHello) -> Result<Node, Status> {
        let mut bytes = BytesMut::new();
        Codec::encode_node_hello(hello, &mut bytes);
        Self::attach_with(head, bytes).await
    }

    async fn attach_with(head: &Head, hello: BytesMut) -> Result<Node, Status> {
        let (frames, stream) = mpsc::channel(64);
        frames.send(Piece::hello(hello.freeze()).into()).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let answers = head.client("secret").await.attach(stream).await?.into_inner();
        let (sending, receiving) = (StreamEnd::once(), StreamEnd::once());
        Ok(Node { frames, answers, codec: Codec::default(), sending, receiving })
    }

    async fn send(&mut self, messages: &[NodeToHead]) {
        let mut bytes = BytesMut::new();
        self.codec.encode_to_head_batch(messages, &mut bytes);
        for piece in self.sending.send(bytes.freeze()) {
            self.frames.send(piece.into()).await.unwrap();
        }
    }

    async fn receive(&mut self) -> Result<Vec<HeadToNode>, Status> {
        loop {
            let next =
                tokio::time::timeout(DEADLINE, self.answers.message()).await.expect("an answer in time");
            let frame = next?.ok_or_else(|| Status::cancelled("ended without a status"))?;
            if let Some(batch) = self.receiving.receive(frame.into()).unwrap() {
                return Ok(self.codec.decode_to_node_batch(batch).unwrap());
            }
        }
    }
}

fn hello(node: u64) -> NodeHello {
    NodeHello {
        protocol: PROTOCOL_VERSION,
        node: NodeId(node),
        hostname: "here".into(),
        data_address: "127.0.0.1:1".into(),
        gateway_address: format!("127.0.0.1:{node}"),
        resources: Resources::cpus(2),
        labels: Default::default(),
        store_capacity: 1,
        previous: None,
    }
}

fn heartbeat() -> NodeToHead {
    NodeToHead::Heartbeat { store: StoreUsage::default(), executors: 1 }
}

#[tokio::test]
async fn a_node_is_admitted_heard_answered_and_missed() {
    let head = Head::start().await;
    let mut node = Node::attach(&head, &hello(7)).await.unwrap();
    let admitted = node.receive().await.unwrap();
    assert!(matches!(admitted[..], [HeadToNode::Admitted { term: Term(1), .. }]), "{admitted:?}");
    let object = ObjectId::put(ClientId(1), 2);
    node.send(&[heartbeat(), NodeToHead::Locate(object)]).await;
    // More than three megabytes: the batch is cut on its way and whole again here.
    assert_eq!(node.receive().await.unwrap(), [HeadToNode::Free(vec![object; 200_000])]);
    head.until_seen(|event| matches!(event, Event::FromNode { message: NodeToHead::Heartbeat { .. }, .. }))
        .await;
    drop(node);
    head.until_seen(|event| matches!(event, Event::NodeDisconnected { node: NodeId(7), .. })).await;
    head.stop().await.unwrap();
}

#[tokio::test]
async fn a_refused_and_a_closed_node_are_told_why() {
    let head = Head::start().await;
    let forbidden = NodeHello { hostname: "forbidden".into(), ..hello(1) };
    let status = Node::attach(&head, &forbidden).await.unwrap().receive().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "no such node here"));

    let mut node = Node::attach(&head, &hello(2)).await.unwrap();
    node.receive().await.unwrap();
    node.send(&[NodeToHead::CopyAdded(ObjectId::default())]).await;
    let status = node.receive().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Aborted, "enough of you"));
    head.stop().await.unwrap();
}

#[tokio::test]
async fn another_protocol_version_is_refused_with_both_versions() {
    let head = Head::start().await;
    let status = Node::attach(&head, &NodeHello { protocol: 99, ..hello(1) }).await.err().unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("protocol 1") && status.message().contains("protocol 99"), "{status}");
    let request = QueryRequest { protocol: 99, query: None };
    let status = head.client("secret").await.ask(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn nobody_is_answered_without_the_token() {
    let head = Head::start().await;
    for token in ["wrong", ""] {
        let mut client = head.client(token).await;
        let status = ask(&mut client, Query::Status).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("CLUSTER_TOKEN"), "{status}");
        let request = FindGatewayRequest { protocol: PROTOCOL_VERSION };
        assert_eq!(client.find_gateway(request).await.unwrap_err().code(), Code::Unauthenticated);
        let attach = client.attach(tokio_stream::iter(Vec::<NodeFrame>::new())).await;
        assert_eq!(attach.err().unwrap().code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn questions_are_answered_and_gateways_named() {
    let head = Head::start().await;
    assert_eq!(head.status().await.term, 1);
    let mut client = head.client("secret").await;
    let reply = ask(&mut client, Query::Nodes).await.unwrap();
    assert_eq!(reply, Err("never heard of it".to_owned()));

    let mut node = Node::attach(&head, &hello(9)).await.unwrap();
    node.receive().await.unwrap();
    let mut without =
        Node::attach(&head, &NodeHello { gateway_address: String::new(), ..hello(3) }).await.unwrap();
    without.receive().await.unwrap();
    let request = FindGatewayRequest { protocol: PROTOCOL_VERSION };
    let gateways = client.find_gateway(request).await.unwrap().into_inner();
    assert_eq!(gateways.addresses, ["127.0.0.1:9"]);
}

#[tokio::test]
async fn garbage_fails_its_own_connection_and_no_other() {
    let head = Head::start().await;
    let mut node = Node::attach(&head, &hello(1)).await.unwrap();
    node.receive().await.unwrap();

    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let half_frame = [&preface[..], &[0, 0, 100, 1, 4, 0, 0, 0, 1, 0x82]].concat();
    let mut noise = Vec::new();
    let mut state = 0x9E37_79B9_u32;
    for _ in 0..4096 {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        noise.push(state as u8);
    }
    let after_preface = [&preface[..], &noise].concat();
    for bytes in [&noise[..], &half_frame, &after_preface, b"GET / HTTP/1.1\r\n\r\n", b""] {
        let mut socket = TcpStream::connect(head.address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        // Whatever the answer, the connection ends.
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the connection stays open after {bytes:?}");
    }

    let hello = BytesMut::from(&b"\xff\xff\xff no hello"[..]);
    let status = Node::attach_with(&head, hello).await.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");

    let mut broken = Node::attach(&head, &self::hello(2)).await.unwrap();
    broken.receive().await.unwrap();
    broken.frames.send(NodeFrame { seq: 1, payload: "garbage".into(), ..Default::default() }).await.unwrap();
    let status = broken.receive().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    head.until_seen(|event| matches!(event, Event::NodeDisconnected { node: NodeId(2), .. })).await;

    node.send(&[NodeToHead::Locate(ObjectId::default())]).await;
    assert_eq!(node.receive().await.unwrap().len(), 1);
    assert_eq!(head.status().await.term, 1);
}

#[tokio::test]
async fn a_node_that_does_not_read_is_closed_as_too_slow() {
    let head = Head::with(Config { outbox_limit: 20 << 20, ..Config::new("secret") }, 0).await;
    let mut node = Node::attach(&head, &hello(1)).await.unwrap();
    node.receive().await.unwrap();
    // A hundred megabytes, of which the connection's window takes eight.
    node.send(&[NodeToHead::ClientGone { client: ClientId(1) }]).await;
    head.until_seen(|event| matches!(event, Event::NodeDisconnected { node: NodeId(1), .. })).await;
    let status = loop {
        if let Err(status) = node.receive().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

#[tokio::test]
async fn an_unfinished_step_is_followed_by_a_tick_at_once() {
    let head = Head::with(Config::new("secret"), 500).await;
    let start = tokio::time::Instant::now();
    head.until_seen(|event| matches!(event, Event::Tick)).await;
    let ticks = || head.seen.lock().unwrap().iter().filter(|event| matches!(event, Event::Tick)).count();
    while ticks() < 500 {
        assert!(start.elapsed() < DEADLINE, "{} ticks", ticks());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_term_rises_with_every_start_on_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { state: StateAt::File(dir.path().join("head.redb")), ..Config::new("secret") };
    for term in 1..=3 {
        let head = Head::with(config.clone(), 0).await;
        assert_eq!(head.status().await.term, term);
        let mut node = Node::attach(&head, &hello(1)).await.unwrap();
        node.receive().await.unwrap();
        head.stop().await.unwrap();
        // The node was told, not merely cut off.
        let status = node.receive().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "the head is stopping"));
    }
    let head = Head::with(config.clone(), 0).await;
    head.status().await;
    let second = Head::with(config, 0).await;
    let error = tokio::time::timeout(DEADLINE, second.daemon).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("in use by another head"), "{error}");
}
