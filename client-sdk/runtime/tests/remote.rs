//! A driver without a daemon on its machine: the head names a gateway, the gateway passes frames to a daemon.

#![allow(clippy::unwrap_used)]

mod fake;

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use client_runtime::{Client, ClientError, ConnectError, ConnectOptions, Got, Kind, Target, View};
use cluster_proto::auth::CheckToken;
use cluster_proto::frame::{FrameReader, write_frame};
use cluster_proto::heads::not_leading;
use cluster_proto::stream::{Piece, StreamEnd};
use cluster_proto::v1;
use cluster_proto::v1::client_service_server::{ClientService, ClientServiceServer};
use cluster_proto::v1::head_server::{Head, HeadServer};
use cluster_types::client_node::PutValue;
use cluster_types::{ClientToNode, Heads, Refs};
use fake::{Daemon, call, driver, soon, template};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Its gateways, or where the head is that knows some.
struct FakeHead(Result<Vec<String>, Heads>);

#[tonic::async_trait]
impl Head for FakeHead {
    type AttachStream = Outgoing<v1::HeadFrame>;

    async fn attach(
        &self,
        _: Request<Streaming<v1::NodeFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn find_gateway(
        &self,
        _: Request<v1::FindGatewayRequest>,
    ) -> Result<Response<v1::FindGatewayResponse>, Status> {
        match &self.0 {
            Ok(addresses) => Ok(Response::new(v1::FindGatewayResponse { addresses: addresses.clone() })),
            Err(heads) => Err(not_leading(heads)),
        }
    }

    async fn ask(&self, _: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// Joins a gRPC stream to the fake daemon's socket.
struct FakeGateway(UnixStream);

#[tonic::async_trait]
impl ClientService for FakeGateway {
    type AttachStream = Outgoing<v1::NodeFrame>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::ClientFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let socket = self.0.try_clone().unwrap();
        socket.set_nonblocking(true).unwrap();
        let (mut from_daemon, mut to_daemon) = tokio::net::UnixStream::from_std(socket).unwrap().into_split();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            let mut end = StreamEnd::once();
            let mut hello = true;
            while let Ok(Some(frame)) = incoming.message().await {
                let batch = match std::mem::take(&mut hello) {
                    true => Some(frame.payload),
                    false => end.receive(Piece::from(frame)).unwrap(),
                };
                let mut out = BytesMut::new();
                if let Some(batch) = batch {
                    write_frame(&mut out, |out| out.extend_from_slice(&batch));
                    to_daemon.write_all(&out).await.unwrap();
                }
            }
        });
        let (frames, outgoing) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            let (mut reader, mut end) = (FrameReader::default(), StreamEnd::once());
            while from_daemon.read_buf(reader.buffer()).await.is_ok_and(|count| count > 0) {
                while let Some(frame) = reader.next_frame().unwrap() {
                    for piece in end.send(frame) {
                        let _ = frames.send(Ok(v1::NodeFrame::from(piece))).await;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Serves both on one port, until the runtime is dropped.
fn serve(
    gateways: impl Fn(SocketAddr) -> Vec<String>,
    daemon: UnixStream,
) -> (tokio::runtime::Runtime, String) {
    serve_head(|own| FakeHead(Ok(gateways(own))), daemon)
}

fn serve_head(
    head: impl Fn(SocketAddr) -> FakeHead,
    daemon: UnixStream,
) -> (tokio::runtime::Runtime, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let check = CheckToken::new("secret");
    let head = HeadServer::with_interceptor(head(address), check.clone());
    let gateway = ClientServiceServer::with_interceptor(FakeGateway(daemon), check);
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(head)
            .add_service(gateway)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (runtime, address.to_string())
}

fn connect(address: &str, token: &str) -> Result<Client, ConnectError> {
    Client::connect(Target::Remote(address.to_owned()), ConnectOptions::new(driver(), token), &mut || Ok(()))
}

#[test]
fn a_remote_driver_submits_puts_and_gets() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = Daemon::start(ours);
    let (runtime, address) = serve(|own| vec!["127.0.0.1:1".to_owned(), own.to_string()], theirs);
    let client = connect(&address, "secret").unwrap();
    let go = &mut || Ok(());
    for n in 0..50 {
        let text = format!("call {n}");
        let ids = client.submit(call(&template("echo"), text.as_bytes()), go).unwrap();
        let got = client.get(&ids, soon(), go).unwrap();
        assert!(
            matches!(&got[0], Got::Value(value) if View::parse(value).unwrap().in_band() == text.as_bytes())
        );
        client.drop_handles(&ids);
    }
    // Half a megabyte travels as it is, and is the daemon's to keep.
    let data = vec![5; 500 << 10];
    let draft = client.reserve(Kind::RAW, 0, &[data.len()], go).unwrap();
    let id = client.put(draft.write(&[], &[&data], go).unwrap(), &[]).unwrap();
    let got = client.get(&[id], soon(), go).unwrap();
    let Got::Value(value) = &got[0] else { panic!("a value") };
    assert_eq!(View::parse(value).unwrap().buffer(0), Some(&data[..]));
    let mut large = call(&template("echo"), b"");
    large.payload = client.reserve(Kind::RAW, 10_000, &[], go).unwrap().write(&[1; 10_000], &[], go).unwrap();
    let ids: Refs = client.submit(large, go).unwrap();
    client.get(&ids, soon(), go).unwrap();
    assert!(daemon.heard().iter().any(|m| matches!(m, ClientToNode::Put { value: PutValue::Inline(_), .. })));
    let never = client.submit(call(&template("never"), b""), go).unwrap();
    drop(daemon);
    runtime.shutdown_background();
    assert!(matches!(client.get(&never, soon(), go), Err(ClientError::ConnectionLost(_))));
}

#[test]
fn goodbye_reaches_the_daemon() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = Daemon::start(ours);
    let (_runtime, address) = serve(|own| vec![own.to_string()], theirs);
    let client = connect(&address, "secret").unwrap();
    drop(client);
    daemon.hears(|m| matches!(m, ClientToNode::Goodbye).then_some(()));
}

#[test]
fn a_driver_is_sent_on_to_the_head_that_leads() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = Daemon::start(ours);
    let (_leads, leader) = serve(|own| vec![own.to_string()], theirs.try_clone().unwrap());
    let standby = |leader: &str| FakeHead(Err(Heads { leader: leader.to_owned(), all: vec![] }));
    let (_stands_by, address) = serve_head(|_| standby(&leader), theirs.try_clone().unwrap());
    // Nobody is at the first address.
    let client = connect(&format!("127.0.0.1:1,{address}"), "secret").unwrap();
    drop(client);
    daemon.hears(|m| matches!(m, ClientToNode::Goodbye).then_some(()));
    let (_alone, address) = serve_head(|_| standby(""), theirs);
    let mut options = ConnectOptions::new(driver(), "secret");
    options.timeout = Duration::from_millis(500);
    let why = Client::connect(Target::Remote(address), options, &mut || Ok(())).unwrap_err().to_string();
    assert!(why.contains("none does at this moment"), "{why}");
}

#[test]
fn refusals_and_dead_ends_are_told() {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let (_runtime, address) = serve(|_| vec![], theirs.try_clone().unwrap());
    assert!(matches!(connect(&address, "wrong"), Err(ConnectError::Rejected(why)) if why.contains("token")));
    let why = connect(&address, "secret").unwrap_err().to_string();
    assert!(why.contains(&address) && why.contains("none of its nodes"), "{why}");
    let (_runtime, address) = serve(|_| vec!["127.0.0.1:1".to_owned()], theirs);
    let why = connect(&address, "secret").unwrap_err().to_string();
    assert!(why.contains("127.0.0.1:1") && why.contains("firewall"), "{why}");
    // Something listens and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut options = ConnectOptions::new(driver(), "secret");
    options.timeout = Duration::from_millis(200);
    let begun = Instant::now();
    let why =
        Client::connect(Target::Remote(address.clone()), options, &mut || Ok(())).unwrap_err().to_string();
    assert!(why.contains(&address) && begun.elapsed() < Duration::from_secs(3), "{why}");
}
