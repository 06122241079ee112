//! The two gRPC conversations of a daemon: with drivers of other machines, and with a head of another process.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster_proto::auth::{AddToken, CheckToken};
use cluster_proto::heads::{KnownHeads, not_leading};
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::v1;
use cluster_proto::v1::client_service_client::ClientServiceClient;
use cluster_proto::v1::head_server::{Head, HeadServer};
use cluster_types::query::StoreUsage;
use cluster_types::{HeadToNode, Heads, Incarnation, NodeToHead, Term};
use tokio::sync::mpsc as channel;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::config::WorkerError;

type Seen = Rc<RefCell<Vec<Event>>>;

/// A core that welcomes, remembers, and sends a heartbeat once it is admitted.
struct Simple(Seen);

impl NodeCore for Simple {
    fn step(&mut self, _now: Time, event: Event, effects: &mut Vec<Effect>) {
        match &event {
            Event::ClientAttached { client, shares_memory, .. } => {
                assert!(!shares_memory);
                effects.push(Effect::ToClient { client: *client, message: welcome() });
                let reply = NodeToClient::Reply { number: 1, reply: Err("x".repeat(3 << 20)) };
                effects.push(Effect::ToClient { client: *client, message: reply });
            }
            Event::FromHead(HeadToNode::Admitted { .. }) => {
                let store = StoreUsage::default();
                effects.push(Effect::ToHead(NodeToHead::Heartbeat { store, executors: 3 }));
            }
            Event::FromClient { client, message: ClientToNode::Goodbye } => {
                effects.push(Effect::CloseClient { client: *client });
            }
            _ => {}
        }
        if !matches!(event, Event::Tick) {
            self.0.borrow_mut().push(event);
        }
    }
}

fn daemon() -> (Handle, Seen) {
    let seen = Seen::default();
    let (supervisor, executor_events) = Supervisor::new(fake_config("/nowhere".into(), TOKEN));
    let (store, notices) = StoreHost::new(TOKEN.to_owned(), "/nowhere".into());
    let handle = Handle::new(Parts {
        node_id: NodeId(1),
        node: Box::new(Simple(seen.clone())),
        token: TOKEN.to_owned(),
        machine: Rc::new(crate::devices::discover(&Offer::default()).unwrap()),
        store,
        supervisor,
        head: HeadSide::Remote(HeadLink::default()),
    });
    handle.start(notices, executor_events);
    (handle, seen)
}

fn on_one_thread<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("done within 30 s");
    });
}

async fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to that within 10 s");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn attach(
    address: SocketAddr,
    token: &str,
    first: Bytes,
) -> Result<(channel::UnboundedSender<v1::ClientFrame>, Streaming<v1::NodeFrame>), Status> {
    attach_in(None, address, token, first).await
}

async fn attach_in(
    session: Option<v1::Session>,
    address: SocketAddr,
    token: &str,
    first: Bytes,
) -> Result<(channel::UnboundedSender<v1::ClientFrame>, Streaming<v1::NodeFrame>), Status> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut client = ClientServiceClient::with_interceptor(channel, AddToken::new(token))
        .max_decoding_message_size(cluster_proto::limits::MAX_GRPC_MESSAGE);
    let (frames, outgoing) = channel::unbounded_channel();
    frames.send(v1::ClientFrame { session, ..Piece::hello(first).into() }).unwrap();
    let incoming = client.attach(UnboundedReceiverStream::new(outgoing)).await?.into_inner();
    Ok((frames, incoming))
}

fn encoded(hello: &ClientHello) -> Bytes {
    let mut bytes = BytesMut::new();
    Codec::encode_hello(hello, &mut bytes);
    bytes.freeze()
}

/// Messages until the stream ends or there are `enough`.
async fn messages(incoming: &mut Streaming<v1::NodeFrame>, enough: usize) -> Vec<NodeToClient> {
    let (mut codec, mut end, mut messages) = (Codec::default(), StreamEnd::once(), Vec::new());
    while messages.len() < enough {
        let Some(frame) = incoming.message().await.unwrap() else { break };
        if let Some(batch) = end.receive(frame.into()).unwrap() {
            messages.extend(codec.decode_node_batch(batch).unwrap());
        }
    }
    messages
}

#[test]
fn a_driver_of_another_machine_is_served_through_the_gateway() {
    on_one_thread(async {
        let (handle, seen) = daemon();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = crate::gateway::serve(handle, listener, Duration::from_secs(60)).await.unwrap();

        let refused = attach(address, "a guess", Bytes::new()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        for garbage in
            [Bytes::from_static(b"\xff\xff"), encoded(&hello(8, ClientKind::Executor { executor: 1 }))]
        {
            let (_frames, mut incoming) = attach(address, TOKEN, garbage).await.unwrap();
            assert!(matches!(messages(&mut incoming, 9).await[..], [NodeToClient::Rejected { .. }]));
        }

        let other = ClientHello { protocol: PROTOCOL_VERSION + 1, ..hello(9, driver()) };
        let (_frames, mut incoming) = attach(address, TOKEN, encoded(&other)).await.unwrap();
        let told = messages(&mut incoming, 9).await;
        let [NodeToClient::Rejected { reason }] = &told[..] else { panic!("{told:?}") };
        assert!(reason.contains(&format!("{}", PROTOCOL_VERSION + 1)), "{reason}");

        let (frames, mut incoming) = attach(address, TOKEN, encoded(&hello(1, driver()))).await.unwrap();
        let told = messages(&mut incoming, 2).await;
        let [NodeToClient::Welcome(_), NodeToClient::Reply { reply: Err(text), .. }] = &told[..] else {
            panic!("not welcomed")
        };
        assert_eq!(text.len(), 3 << 20);
        let mut batch = BytesMut::new();
        Codec::default().encode_client_batch(&[ClientToNode::Goodbye], &mut batch);
        for piece in StreamEnd::once().send(batch.freeze()) {
            frames.send(piece.into()).unwrap();
        }
        assert_eq!(messages(&mut incoming, 1).await, [], "the daemon closes the stream");
        let ended = |event: &Event| matches!(event, Event::ClientEnded { client: ClientId(1) });
        until(|| seen.borrow().iter().any(ended)).await;

        let (frames, incoming) = attach(address, TOKEN, encoded(&hello(2, driver()))).await.unwrap();
        drop((frames, incoming));
        let ended = |event: &Event| matches!(event, Event::ClientEnded { client: ClientId(2) });
        until(|| seen.borrow().iter().any(ended)).await;
    });
}

#[test]
fn a_client_that_comes_back_finds_what_it_missed() {
    on_one_thread(async {
        let (handle, seen) = daemon();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let grace = Duration::from_secs(60);
        let address = crate::gateway::serve(handle.clone(), listener, grace).await.unwrap();
        let session = |id, resumed, received| {
            Some(v1::Session { id, resumed, received, grace_ms: if id == 7 { 60_000 } else { 1 } })
        };
        let first = encoded(&hello(1, driver()));
        let (frames, mut incoming) =
            attach_in(session(7, false, 0), address, TOKEN, first.clone()).await.unwrap();
        let (mut here, mut decode) = (StreamEnd::resumable(), Codec::default());
        // The welcome and a long reply are one batch; the stream breaks in its middle.
        assert_eq!(here.receive(incoming.message().await.unwrap().unwrap().into()).unwrap(), None);
        // One batch arrives and is not known to have; of the next nothing does.
        let mut query = BytesMut::new();
        Codec::default().encode_client_batch(&[ClientToNode::Unblocked { tag: 5 }], &mut query);
        for _ in 0..2 {
            here.send(query.clone().freeze());
        }
        let sent: Vec<Piece> = here.replay(0).collect();
        frames.send(sent[0].clone().into()).unwrap();
        let heard = || {
            let is_it = |event: &&Event| {
                matches!(event, Event::FromClient { message: ClientToNode::Unblocked { tag: 5 }, .. })
            };
            seen.borrow().iter().filter(is_it).count()
        };
        until(|| heard() == 1).await;
        drop((frames, incoming));
        handle.borrow().tell_client(ClientId(1), NodeToClient::Notice { text: "while away".to_owned() });

        let stranger =
            attach_in(session(8, true, 0), address, TOKEN, first.clone()).await.unwrap().1.message().await;
        assert_eq!(stranger.unwrap_err().code(), tonic::Code::NotFound);
        let back = session(7, true, here.received());
        let (frames, mut incoming) = attach_in(back, address, TOKEN, first).await.unwrap();
        let place = incoming.message().await.unwrap().unwrap();
        assert_eq!((place.seq, place.ack), (0, 1));
        let again: Vec<Piece> = here.replay(place.ack).collect();
        assert_eq!(again, sent[1..]);
        for piece in sent {
            frames.send(piece.into()).unwrap();
        }
        let mut told = Vec::new();
        while told.len() < 3 {
            let frame = incoming.message().await.unwrap().unwrap();
            let numbered = frame.seq > 0;
            if let Some(batch) = here.receive(frame.into()).unwrap().filter(|_| numbered) {
                told.extend(decode.decode_node_batch(batch).unwrap());
            }
        }
        let [NodeToClient::Welcome(_), NodeToClient::Reply { .. }, NodeToClient::Notice { .. }] = &told[..]
        else {
            panic!("{} messages", told.len())
        };
        until(|| heard() == 2).await;

        // Another one is not waited for longer than it asked for.
        let stream =
            attach_in(session(9, false, 0), address, TOKEN, encoded(&hello(2, driver()))).await.unwrap();
        drop(stream);
        let ended = |event: &Event| matches!(event, Event::ClientEnded { client: ClientId(2) });
        until(|| seen.borrow().iter().any(ended)).await;
        assert!(
            !seen.borrow().iter().any(|event| matches!(event, Event::ClientEnded { client: ClientId(1) }))
        );
        // The daemon's end is told.
        handle.borrow().part_with_remote_clients("it ends");
        let rest = messages_of(&mut incoming, &mut here).await;
        assert!(matches!(&rest[..], [NodeToClient::Rejected { reason }] if reason == "it ends"), "{rest:?}");
    });
}

/// All that comes until the end of the stream.
async fn messages_of(incoming: &mut Streaming<v1::NodeFrame>, end: &mut StreamEnd) -> Vec<NodeToClient> {
    let (mut codec, mut messages) = (Codec::default(), Vec::new());
    while let Some(frame) = incoming.message().await.unwrap() {
        let numbered = frame.seq > 0;
        if let Some(batch) = end.receive(frame.into()).unwrap().filter(|_| numbered) {
            messages.extend(codec.decode_node_batch(batch).unwrap());
        }
    }
    messages
}

/// A head that admits every node, and parts with it after its first message.
#[derive(Clone, Default)]
struct FakeHead {
    hellos: Arc<Mutex<Vec<NodeHello>>>,
    heard: Arc<Mutex<Vec<NodeToHead>>>,
    /// Its term, or, while it stands by, what it knows of other heads.
    leads: Arc<Mutex<Option<Result<Term, Heads>>>>,
    /// How often it said that it stands by.
    refused: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Head for FakeHead {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::HeadFrame, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::NodeFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.unwrap();
        let term = match &*self.leads.lock().unwrap() {
            None => Term(1),
            Some(Ok(term)) => *term,
            Some(Err(heads)) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Err(not_leading(heads));
            }
        };
        let n = {
            let mut hellos = self.hellos.lock().unwrap();
            hellos.push(Codec::decode_node_hello(first.payload).unwrap());
            hellos.len() as u32
        };
        let admitted = HeadToNode::Admitted { term, incarnation: Incarnation(n), loss_timeout_ms: 5000 };
        let mut batch = BytesMut::new();
        Codec::default().encode_to_node_batch(&[admitted], &mut batch);
        let (frames, outgoing) = channel::unbounded_channel();
        for piece in StreamEnd::once().send(batch.freeze()) {
            frames.send(Ok(piece.into())).unwrap();
        }
        let heard = self.heard.clone();
        tokio::spawn(async move {
            let mut end = StreamEnd::once();
            while let Ok(Some(frame)) = incoming.message().await {
                if let Ok(Some(batch)) = end.receive(frame.into()) {
                    heard.lock().unwrap().extend(Codec::default().decode_to_head_batch(batch).unwrap());
                    return drop(frames);
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(outgoing).map(|frame| frame))))
    }

    async fn find_gateway(
        &self,
        _: Request<v1::FindGatewayRequest>,
    ) -> Result<Response<v1::FindGatewayResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn ask(&self, _: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

fn node_hello() -> NodeHello {
    NodeHello {
        protocol: PROTOCOL_VERSION,
        node: NodeId(1),
        hostname: "here".to_owned(),
        data_address: String::new(),
        gateway_address: String::new(),
        resources: Default::default(),
        labels: Default::default(),
        store_capacity: 0,
        previous: None,
    }
}

async fn fake_head() -> (FakeHead, String) {
    let head = FakeHead::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = InterceptedService::new(HeadServer::new(head.clone()), CheckToken::new(TOKEN));
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (head, address)
}

#[test]
fn a_lost_head_is_told_to_the_core_and_found_again() {
    on_one_thread(async {
        let (handle, seen) = daemon();
        let (head, address) = fake_head().await;
        let admitted = Rc::new(RefCell::new(0));
        let count = admitted.clone();
        let admit = move || *count.borrow_mut() += 1;
        let run = crate::head_link::run(handle, address, TOKEN.to_owned(), node_hello(), |_| {}, admit);
        tokio::task::spawn_local(run);
        until(|| head.hellos.lock().unwrap().len() >= 3).await;
        assert_eq!(*admitted.borrow(), 1);
        let hellos = head.hellos.lock().unwrap();
        assert_eq!(hellos[0].previous, None);
        assert_eq!(hellos[1].previous, Some((Term(1), Incarnation(1))));
        let heartbeat = NodeToHead::Heartbeat { store: StoreUsage::default(), executors: 3 };
        assert_eq!(head.heard.lock().unwrap()[0], heartbeat);
        let seen = seen.borrow();
        assert!(matches!(seen[0], Event::FromHead(HeadToNode::Admitted { .. })));
        assert!(matches!(seen[1], Event::HeadLost));
    });
}

#[test]
fn a_daemon_goes_to_whichever_head_leads_and_not_back_in_time() {
    on_one_thread(async {
        let (handle, _) = daemon();
        let ((one, first), (other, second)) = (fake_head().await, fake_head().await);
        let heads =
            |leader: &str| Heads { leader: leader.to_owned(), all: vec![first.clone(), second.clone()] };
        *one.leads.lock().unwrap() = Some(Err(heads(&second)));
        *other.leads.lock().unwrap() = Some(Ok(Term(1)));
        let known = Rc::new(RefCell::new(String::new()));
        let list = known.clone();
        let learnt = move |heads: &KnownHeads| *list.borrow_mut() = heads.list();
        // It is told of one head only.
        let (address, token) = (first.clone(), TOKEN.to_owned());
        tokio::task::spawn_local(crate::head_link::run(handle, address, token, node_hello(), learnt, || {}));
        until(|| other.hellos.lock().unwrap().len() > 1).await;
        assert_eq!(*known.borrow(), format!("{first},{second}"));
        // The one that led does so no more, and for a while nobody does.
        *other.leads.lock().unwrap() = Some(Err(heads("")));
        *one.leads.lock().unwrap() = Some(Err(heads("")));
        let parted = one.refused.load(Ordering::Relaxed);
        until(|| one.refused.load(Ordering::Relaxed) > parted + 1).await;
        *one.leads.lock().unwrap() = Some(Ok(Term(2)));
        until(|| one.hellos.lock().unwrap().len() > 2).await;
        let last = |head: &FakeHead| head.hellos.lock().unwrap().last().unwrap().previous.unwrap().0;
        assert_eq!(last(&one), Term(2));
        // One that woke up and believes that it leads is not heard.
        *other.leads.lock().unwrap() = Some(Ok(Term(1)));
        *one.leads.lock().unwrap() = Some(Err(heads(&second)));
        let before = other.heard.lock().unwrap().len();
        let hellos = other.hellos.lock().unwrap().len();
        until(|| other.hellos.lock().unwrap().len() > hellos + 2).await;
        assert_eq!(other.heard.lock().unwrap().len(), before);
        assert_eq!(last(&other), Term(2));
    });
}

#[test]
fn a_wrong_token_and_an_empty_address_are_errors_at_once() {
    on_one_thread(async {
        let (_head, address) = fake_head().await;
        let (handle, _) = daemon();
        let ended =
            crate::head_link::run(handle, address, "a guess".to_owned(), node_hello(), |_| {}, || {}).await;
        assert!(matches!(ended, WorkerError::Refused { .. }), "{ended}");
        assert!(ended.to_string().contains("the token is not this cluster's"), "{ended}");

        let start = Instant::now();
        let (handle, _) = daemon();
        let nobody = "127.0.0.1:1".to_owned();
        let ended =
            crate::head_link::run(handle, nobody, TOKEN.to_owned(), node_hello(), |_| {}, || {}).await;
        assert!(matches!(ended, WorkerError::HeadUnreachable { .. }), "{ended}");
        assert!(ended.to_string().starts_with("no head at 127.0.0.1:1 ("), "{ended}");
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}
