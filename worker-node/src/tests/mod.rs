//! The edge around a scripted core: real sockets, descriptors and processes.

mod embedded;
mod grpc;
mod task;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster_proto::Codec;
use cluster_proto::frame::{FrameReader, write_frame};
use cluster_store::segment::recv_with_fds;
use cluster_types::client_node::{Completion, LogLine, Welcome};
use cluster_types::task::TaskTemplate;
use cluster_types::{
    Attempt, ClientHello, ClientId, ClientKind, ClientToNode, JobId, JobInfo, NodeHello, NodeId,
    NodeToClient, ObjectId, PROTOCOL_VERSION, Payload, SegmentId, TaskId, TaskSpec, Time,
};
use tokio::task::LocalSet;
use worker_core::{Effect, Event};

use crate::config::Offer;
use crate::event_loop::{Handle, NodeCore, Parts};
use crate::head_link::HeadLink;
use crate::head_side::HeadSide;
use crate::sockets::Listener;
use crate::store_host::StoreHost;
use crate::supervisor::Supervisor;
use crate::supervisor::tests::fake_config;

const TOKEN: &str = "a secret";

type Script = Box<dyn FnMut(&Event, &mut Vec<Effect>) + Send>;

/// Welcomes everybody, records events, and does what its script says.
struct Scripted {
    script: Script,
    seen: mpsc::Sender<Event>,
}

impl NodeCore for Scripted {
    fn step(&mut self, _now: Time, event: Event, effects: &mut Vec<Effect>) {
        if let Event::ClientAttached { client, .. } = event {
            effects.push(Effect::ToClient { client, message: welcome() });
        }
        (self.script)(&event, effects);
        if !matches!(event, Event::Tick) {
            let _ = self.seen.send(event);
        }
    }
}

/// The real core; with CLUSTER_TEST_TRACE set, everything in and out of it is printed.
struct Traced(worker_core::Node);

impl NodeCore for Traced {
    fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        let trace = std::env::var_os("CLUSTER_TEST_TRACE").is_some() && !matches!(event, Event::Tick);
        if trace {
            eprintln!("{:?} -> {event:?}", now.0);
        }
        self.0.step(now, event, effects);
        if trace {
            effects.iter().for_each(|effect| eprintln!("{:?}    {effect:?}", now.0));
        }
    }
}

fn welcome() -> NodeToClient {
    NodeToClient::Welcome(Welcome {
        node: NodeId(1),
        job: JobId(1),
        info: Arc::default(),
        store_capacity: 0,
        cores: 1,
    })
}

/// A daemon on a thread of its own, ended when dropped.
struct Running {
    dir: PathBuf,
    events: mpsc::Receiver<Event>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(name: &str, script: impl FnMut(&Event, &mut Vec<Effect>) + Send + 'static) -> Running {
        Running::start_around(name, move |seen| {
            let core = Scripted { script: Box::new(script), seen };
            (Box::new(core), HeadSide::Remote(HeadLink::default()))
        })
    }

    /// The real cores, as they are embedded, with two CPUs.
    fn start_with_cores(name: &str) -> Running {
        Running::start_around(name, |_| {
            let config = worker_core::NodeConfig {
                node: NodeId(1),
                hostname: "here".to_owned(),
                resources: cluster_types::Resources::cpus(2),
                cores: 2,
                store_capacity: 256 << 20,
                idle_executors: 2,
                idle_timeout: cluster_types::Span::secs(60),
                head_may_restart: false,
            };
            let head = head_core::Head::new(head_core::HeadConfig { closed: true, ..Default::default() });
            let head = HeadSide::Embedded { head: Box::new(head), incarnation: Default::default() };
            (Box::new(Traced(worker_core::Node::new(config))), head)
        })
    }

    fn start_around(
        name: &str,
        cores: impl FnOnce(mpsc::Sender<Event>) -> (Box<dyn NodeCore>, HeadSide) + Send + 'static,
    ) -> Running {
        let dir = std::env::temp_dir().join(format!("cluster-edge-{}-{name}", std::process::id()));
        let (seen, events) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let at = dir.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, async move {
                let listener = Listener::bind(&at).unwrap();
                let config = fake_config(listener.path().to_path_buf(), TOKEN);
                let (supervisor, executor_events) = Supervisor::new(config);
                let (store, notices) = StoreHost::new(TOKEN.to_owned(), at.join("spill"));
                let (node, head) = cores(seen);
                let embedded = matches!(head, HeadSide::Embedded { .. });
                let handle = Handle::new(Parts {
                    node_id: NodeId(1),
                    node,
                    token: TOKEN.to_owned(),
                    machine: Rc::new(crate::devices::discover(&Offer::default()).unwrap()),
                    store,
                    supervisor: supervisor.clone(),
                    head,
                });
                handle.start(notices, executor_events);
                if embedded {
                    handle.borrow().connect_embedded(NodeHello {
                        protocol: PROTOCOL_VERSION,
                        node: NodeId(1),
                        hostname: "here".to_owned(),
                        data_address: String::new(),
                        gateway_address: String::new(),
                        resources: cluster_types::Resources::cpus(2),
                        labels: Default::default(),
                        store_capacity: 256 << 20,
                        previous: None,
                    });
                }
                ready.send(()).unwrap();
                tokio::select! {
                    () = listener.serve(handle) => {}
                    _ = stopped => {}
                }
                supervisor.shutdown().await;
            });
        });
        is_ready.recv_timeout(Duration::from_secs(10)).unwrap();
        Running { dir, events, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> Peer {
        Peer::connect(&self.dir)
    }

    fn attach(&self, client: u64, kind: ClientKind) -> Peer {
        let mut peer = self.connect();
        peer.hello(&hello(client, kind));
        assert!(matches!(peer.next(), Some(NodeToClient::Welcome(_))));
        peer
    }

    /// The first event that is wanted.
    fn wait<T>(&self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(found) = wanted(self.events.recv_timeout(left).expect("the event comes in time")) {
                return found;
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        let ended = self.thread.take().unwrap().join();
        let _ = std::fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// A client's end of the socket.
struct Peer {
    stream: UnixStream,
    codec: Codec,
    frames: FrameReader,
    ready: std::collections::VecDeque<NodeToClient>,
    fds: Vec<OwnedFd>,
}

impl Peer {
    fn connect(dir: &Path) -> Peer {
        let stream = UnixStream::connect(dir.join(crate::SOCKET_NAME)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        Peer {
            stream,
            codec: Codec::default(),
            frames: FrameReader::default(),
            ready: Default::default(),
            fds: Vec::new(),
        }
    }

    fn hello(&mut self, hello: &ClientHello) {
        let mut frame = BytesMut::new();
        write_frame(&mut frame, |out| Codec::encode_hello(hello, out));
        self.stream.write_all(&frame).unwrap();
    }

    fn send(&mut self, messages: &[ClientToNode]) {
        let mut frame = BytesMut::new();
        self.codec.frame_client_messages(messages, &mut frame);
        self.stream.write_all(&frame).unwrap();
    }

    /// The next message, or `None` at the end of the stream.
    fn next(&mut self) -> Option<NodeToClient> {
        let mut bytes = [0; 65536];
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if let Some(frame) = self.frames.next_frame().unwrap() {
                self.ready.extend(self.codec.decode_node_batch(frame).unwrap());
                continue;
            }
            match recv_with_fds(&self.stream, &mut bytes, &mut self.fds).unwrap() {
                0 => return None,
                len => self.frames.push(&bytes[..len]),
            }
        }
    }

    fn rejection(&mut self) -> String {
        match self.next() {
            Some(NodeToClient::Rejected { reason }) => {
                assert_eq!(self.next(), None, "the connection ends after that");
                reason
            }
            other => panic!("not rejected: {other:?}"),
        }
    }
}

fn hello(client: u64, kind: ClientKind) -> ClientHello {
    ClientHello {
        protocol: PROTOCOL_VERSION,
        token: TOKEN.to_owned(),
        client: ClientId(client),
        pid: std::process::id(),
        kind,
        shares_memory: true,
    }
}

fn driver() -> ClientKind {
    ClientKind::Driver { job: JobId(1), info: Arc::new(JobInfo::default()) }
}

#[test]
fn strangers_get_one_clear_sentence_and_disturb_nobody() {
    let daemon = Running::start("strangers", |_, _| {});
    let mut good = daemon.attach(1, driver());

    let mut peer = daemon.connect();
    peer.hello(&ClientHello { token: "a guess".to_owned(), ..hello(2, driver()) });
    assert!(peer.rejection().starts_with("the token is not this cluster's"));

    let mut peer = daemon.connect();
    peer.hello(&ClientHello { protocol: PROTOCOL_VERSION + 1, ..hello(2, driver()) });
    let reason = peer.rejection();
    assert!(reason.contains(&format!("protocol {}", PROTOCOL_VERSION + 1)), "{reason}");

    let mut peer = daemon.connect();
    peer.stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(peer.rejection().contains("is it a cluster client?"));

    let mut peer = daemon.connect();
    peer.hello(&hello(1, driver()));
    assert!(peer.rejection().contains("attached already"));

    let mut peer = daemon.connect();
    peer.hello(&hello(3, ClientKind::Executor { executor: 77 }));
    assert!(peer.rejection().contains("no executor 77"));

    let info = Arc::new(JobInfo { python_version: "2.7".to_owned(), ..JobInfo::default() });
    let mut peer = daemon.connect();
    peer.hello(&hello(4, ClientKind::Driver { job: JobId(4), info }));
    let reason = peer.rejection();
    assert!(reason.contains("Python 2.7") && reason.contains("Python 3."), "{reason}");

    // Half a frame, then the end.
    let mut peer = daemon.connect();
    peer.stream.write_all(&[200, 0, 0, 0, 1, 2, 3]).unwrap();
    drop(peer);

    // A good hello, then garbage.
    let mut peer = daemon.attach(5, driver());
    peer.stream.write_all(&[6, 0, 0, 0, 10, 200, 1, 1, 1, 1]).unwrap();
    assert!(peer.rejection().contains("the peer sent"));

    good.send(&[ClientToNode::Goodbye]);
    daemon.wait(|event| matches!(event, Event::FromClient { client: ClientId(1), .. }).then_some(()));
}

#[test]
fn descriptors_come_in_the_order_of_their_segments() {
    const SEGMENTS: u32 = 75;
    let mut made = 0;
    let daemon = Running::start("descriptors", move |event, effects| match event {
        Event::ClientAttached { .. } => effects.extend((1..=SEGMENTS).map(|n| Effect::CreateSegment {
            segment: SegmentId(n),
            len: u64::from(n) * 4096,
            file_backed: false,
            for_daemon: false,
        })),
        Event::SegmentCreated { .. } => {
            made += 1;
            if made == SEGMENTS {
                effects.extend((1..=SEGMENTS).map(|n| Effect::ToClient {
                    client: ClientId(1),
                    message: NodeToClient::Segment { segment: SegmentId(n), len: 0, writable: n % 2 == 0 },
                }));
            }
        }
        _ => {}
    });
    let mut peer = daemon.attach(1, driver());
    for n in 1..=SEGMENTS {
        let Some(NodeToClient::Segment { segment, len, writable }) = peer.next() else {
            panic!("no segment")
        };
        assert_eq!((segment, len), (SegmentId(n), u64::from(n) * 4096));
        let fd = peer.fds.remove(0);
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_size as u64, len);
        let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
        assert_eq!(flags.contains(rustix::fs::OFlags::RDWR), writable);
    }
    assert!(peer.fds.is_empty());
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    const MESSAGES: u64 = 20_000;
    let daemon = Running::start("slow", |event, effects| {
        if let Event::FromClient { client, message: ClientToNode::Hold(_) } = event {
            effects.extend((0..MESSAGES).map(|number| Effect::ToClient {
                client: *client,
                message: NodeToClient::Reply { number, reply: Err("x".repeat(1000)) },
            }));
        }
    });
    let mut slow = daemon.attach(1, driver());
    let mut other = daemon.attach(2, driver());
    slow.send(&[ClientToNode::Hold(Vec::new())]);
    // Another client is served although 20 MB wait for the first.
    daemon.wait(|event| matches!(event, Event::FromClient { client: ClientId(1), .. }).then_some(()));
    other.send(&[ClientToNode::Drop(Vec::new())]);
    daemon.wait(|event| matches!(event, Event::FromClient { client: ClientId(2), .. }).then_some(()));
    for expected in 0..MESSAGES {
        match slow.next() {
            Some(NodeToClient::Reply { number, .. }) => assert_eq!(number, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_reader_too_slow_for_printed_lines_is_told_how_many_it_missed_though_no_more_come() {
    const LINES: usize = 20_000;
    let daemon = Running::start("lines", |event, effects| {
        if let Event::FromClient { client, message: ClientToNode::Drop(_) } = event {
            let text = "x".repeat(1000);
            let line = LogLine { job: JobId(1), task: None, pid: 1, node: NodeId(1), stderr: false, text };
            effects.push(Effect::ToClient { client: *client, message: NodeToClient::Log(vec![line; 100]) });
        }
    });
    let mut slow = daemon.attach(1, driver());
    // Each in a turn of its own: what is gathered in one goes as a whole.
    for _ in 0..LINES / 100 {
        slow.send(&[ClientToNode::Drop(Vec::new())]);
        daemon.wait(|event| matches!(event, Event::FromClient { .. }).then_some(()));
    }
    let mut shown = 0;
    let told = loop {
        match slow.next() {
            Some(NodeToClient::Log(lines)) => shown += lines.len(),
            Some(NodeToClient::Notice { text }) => break text,
            other => panic!("{other:?}"),
        }
    };
    assert!(shown < LINES, "the socket took all: the test shows nothing");
    assert!(told.starts_with(&format!("{} lines", LINES - shown)), "{shown} were shown, and: {told}");
}

#[test]
fn goodbye_and_close_end_a_client_and_a_lost_socket_does_not() {
    let daemon = Running::start("goodbye", |_, _| {});
    let lost = daemon.attach(1, driver());
    drop(lost);
    let mut leaving = daemon.attach(2, driver());
    leaving.send(&[ClientToNode::Goodbye]);
    drop(leaving);
    let ended = daemon.wait(|event| match event {
        Event::ClientEnded { client } => Some(client),
        _ => None,
    });
    // This process, which lost its first socket, lives on; so what it views must stay (rule P1).
    assert_eq!(ended, ClientId(2));
}

/// A client in a process of its own, for the next test.
#[test]
#[ignore = "not a test: the process that the next one kills"]
fn client_that_is_killed() {
    let Ok(dir) = std::env::var("CLUSTER_TEST_DIR") else { return };
    let mut peer = Peer::connect(Path::new(&dir));
    peer.hello(&hello(9, driver()));
    // Even with the socket in other hands, the end of the process is the end of the client.
    let inherited = peer.stream.try_clone().unwrap();
    let mut child =
        std::process::Command::new("sleep").arg("3").stdin(OwnedFd::from(inherited)).spawn().unwrap();
    peer.send(&[ClientToNode::Hold(vec![ObjectId::put(ClientId(9), 1)])]);
    let _ = child.wait();
}

#[test]
fn a_killed_process_is_the_end_of_its_client() {
    let daemon = Running::start("killed", |_, _| {});
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "tests::client_that_is_killed"])
        .env("CLUSTER_TEST_DIR", &daemon.dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    daemon.wait(|event| matches!(event, Event::FromClient { .. }).then_some(()));
    process.kill().unwrap();
    process.wait().unwrap();
    daemon.wait(|event| matches!(event, Event::ClientEnded { client: ClientId(9) }).then_some(()));
}

fn run(tag: u64, slot: u16) -> NodeToClient {
    let template = TaskTemplate {
        name: "f".into(),
        function: ObjectId::put(ClientId(1), 1),
        resources: cluster_types::Resources::cpus(1),
        num_returns: 1,
        max_retries: 0,
        retry_exceptions: Bytes::new(),
        env_vars: Default::default(),
        strategy: Default::default(),
        kind: Default::default(),
        ..TaskTemplate::default()
    };
    let spec = TaskSpec {
        id: TaskId { client: ClientId(1), seq: tag },
        job: JobId(1),
        template: Arc::new(template),
        payload: Payload::Inline(Bytes::new()),
        deps: Default::default(),
        parent: None,
        borrowed: Default::default(),
    };
    NodeToClient::Run(Box::new(cluster_types::client_node::RunTask {
        tag,
        slot,
        attempt: Attempt { term: 1, n: 1 },
        spec: Arc::new(spec),
        values: Vec::new(),
        gpus: Vec::new(),
    }))
}

fn start_executor(executor: u32, what: &str) -> Effect {
    let env_vars = Arc::new([("FAKE".to_owned(), what.to_owned())].into());
    let (info, gpus) = (Arc::default(), Vec::new());
    Effect::StartExecutor { executor, job: JobId(1), info, env_vars, gpus, program: None }
}

#[test]
fn an_ended_executor_hands_back_what_it_had_not_claimed_after_what_it_said() {
    let script = move |event: &Event, effects: &mut Vec<Effect>| match event {
        Event::ClientAttached { kind: ClientKind::Driver { .. }, .. } => {
            effects.push(start_executor(1, "sleep"));
        }
        Event::ClientAttached { client, kind: ClientKind::Executor { .. }, .. } => {
            for (tag, slot) in [(1001, 3), (1002, 4)] {
                effects.push(Effect::ToClient { client: *client, message: run(tag, slot) });
            }
        }
        Event::FromClient { message: ClientToNode::Completed(_), .. } => {
            effects.push(Effect::Revoke { executor: 1, slot: 3, tag: 1001 });
            effects.push(Effect::EndExecutor { executor: 1, force: true });
        }
        _ => {}
    };
    let daemon = Running::start("executor", script);
    let _driver = daemon.attach(1, driver());
    // The process that was forked sleeps; this test speaks for it.
    let mut peer = daemon.attach(2, ClientKind::Executor { executor: 1 });
    assert!(matches!(peer.next(), Some(NodeToClient::Run(_))));
    let done = Completion { tag: 7, result: Ok(Vec::new()), micros: 1 };
    peer.send(&[ClientToNode::Completed(done)]);
    let mut last = None;
    daemon.wait(|event| match event {
        Event::Revoked { executor: 1, tag, won } => {
            assert_eq!((tag, won), (1001, true));
            None
        }
        Event::ExecutorExited { executor: 1, cause, unstarted } => {
            assert_eq!(cause, "killed by signal 9 (SIGKILL)");
            assert_eq!(unstarted, [1002]);
            last = Some(());
            None
        }
        Event::ClientEnded { client: ClientId(2) } => {
            assert!(last.is_some(), "the end of the process is told first");
            Some(())
        }
        _ => None,
    });
}

#[test]
fn what_an_executor_prints_past_python_is_logged_with_its_process() {
    let daemon = Running::start("prints", |event, effects| {
        if let Event::ClientAttached { kind: ClientKind::Driver { .. }, .. } = event {
            effects.push(start_executor(1, "family"));
        }
    });
    let _driver = daemon.attach(1, driver());
    let _executor = daemon.attach(2, ClientKind::Executor { executor: 1 });
    daemon.wait(|event| match event {
        Event::FromClient { message: ClientToNode::Log(line), .. } => {
            assert!(line.pid > 0 && !line.stderr);
            Some(())
        }
        _ => None,
    });
}
