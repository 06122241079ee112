//! A daemon in a thread, on the other end of a socket pair: it answers by simple rules and remembers what it heard.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use client_runtime::{Call, Client, ConnectOptions, Parcel, Target};
use cluster_proto::Codec;
use cluster_proto::frame::FrameReader;
use cluster_store::layout::{Kind, Layout};
use cluster_store::segment::{Segment, recv_with_fds, send_with_fds};
use cluster_types::client_node::{FinishedOutcome, PutValue, Welcome};
use cluster_types::query::{QueryReply, StatusView};
use cluster_types::{
    ClientHello, ClientId, ClientKind, ClientToNode, Failure, FailureKind, JobId, JobInfo, Location, NodeId,
    NodeToClient, ObjectId, Payload, Refs, ResultValue, SegmentId, TaskTemplate, Value,
};

/// The largest request for memory that is granted.
pub const MEMORY_MAX: u64 = 256 << 20;
/// Segments are at least this long.
const SEGMENT: u64 = 8 << 20;

pub struct Daemon {
    speaker: Arc<Speaker>,
    heard: Arc<Mutex<Vec<ClientToNode>>>,
    thread: Option<JoinHandle<()>>,
}

/// What may be said from any thread.
pub struct Speaker {
    stream: UnixStream,
    codec: Mutex<(Codec, BytesMut)>,
    segments: Mutex<HashMap<SegmentId, Segment>>,
}

impl Speaker {
    pub fn say(&self, messages: &[NodeToClient]) {
        let mut guard = self.codec.lock().unwrap();
        let (codec, out) = &mut *guard;
        codec.frame_node_messages(messages, out);
        let segments = self.segments.lock().unwrap();
        let fds: Vec<_> = messages
            .iter()
            .filter_map(|message| match message {
                NodeToClient::Segment { segment, writable: true, .. } => Some(segments[segment].writer_fd()),
                NodeToClient::Segment { segment, .. } => Some(segments[segment].reader_fd()),
                _ => None,
            })
            .collect();
        let sent = send_with_fds(&self.stream, out, &fds).unwrap_or(out.len());
        let _ = (&self.stream).write_all(&out[sent..]);
        out.clear();
    }

    /// Makes a segment; say it then.
    pub fn make_segment(&self, number: u32, len: u64) -> NodeToClient {
        let segment = Segment::create(len).unwrap();
        self.segments.lock().unwrap().insert(SegmentId(number), segment);
        NodeToClient::Segment { segment: SegmentId(number), len, writable: true }
    }

    pub fn write(&self, location: Location, bytes: &[u8]) {
        let segments = self.segments.lock().unwrap();
        rustix::io::pwrite(segments[&location.segment].writer_fd(), bytes, location.offset).unwrap();
    }

    pub fn read(&self, location: Location) -> Vec<u8> {
        let segments = self.segments.lock().unwrap();
        let mut bytes = vec![0; location.len as usize];
        rustix::io::pread(segments[&location.segment].reader_fd(), &mut bytes, location.offset).unwrap();
        bytes
    }

    pub fn close(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

pub fn driver() -> ClientKind {
    ClientKind::Driver { job: JobId(7), info: Arc::new(JobInfo::default()) }
}

pub fn template(name: &str) -> Arc<TaskTemplate> {
    Arc::new(TaskTemplate {
        name: name.into(),
        function: ObjectId::put(ClientId(99), 1),
        resources: Default::default(),
        num_returns: 1,
        max_retries: 3,
        retry_exceptions: Bytes::new(),
        env_vars: Default::default(),
        strategy: Default::default(),
        kind: Default::default(),
        ..TaskTemplate::default()
    })
}

pub fn call(template: &Arc<TaskTemplate>, payload: &[u8]) -> Call {
    Call {
        template: template.clone(),
        payload: Parcel::small(Kind::RAW, payload).unwrap(),
        deps: Refs::new(),
        borrowed: Refs::new(),
        within: None,
        job: None,
    }
}

pub fn failure(message: &str) -> Failure {
    Failure { kind: FailureKind::Exception, message: message.into(), payload: Bytes::new(), task: None }
}

pub fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

impl Daemon {
    pub fn with_driver() -> (Daemon, Client) {
        Self::with(driver(), None)
    }

    pub fn with(kind: ClientKind, page: Option<std::os::fd::OwnedFd>) -> (Daemon, Client) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let daemon = Self::start(ours);
        let mut options = ConnectOptions::new(kind, "secret");
        options.page = page;
        let client = Client::connect(Target::Socket(theirs), options, &mut || Ok(())).unwrap();
        (daemon, client)
    }

    pub fn start(stream: UnixStream) -> Daemon {
        let speaker = Arc::new(Speaker {
            stream: stream.try_clone().unwrap(),
            codec: Mutex::default(),
            segments: Mutex::default(),
        });
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (to, log) = (speaker.clone(), heard.clone());
        let thread = std::thread::spawn(move || serve(stream, &to, &log));
        Daemon { speaker, heard, thread: Some(thread) }
    }

    pub fn speaker(&self) -> Arc<Speaker> {
        self.speaker.clone()
    }

    pub fn say(&self, messages: &[NodeToClient]) {
        self.speaker.say(messages);
    }

    pub fn heard(&self) -> Vec<ClientToNode> {
        self.heard.lock().unwrap().clone()
    }

    /// Polls until something was heard that passes.
    pub fn hears<T>(&self, pass: impl Fn(&ClientToNode) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = self.heard.lock().unwrap().iter().find_map(&pass) {
                return found;
            }
            assert!(Instant::now() < deadline, "not heard; only {:?}", self.heard());
            std::thread::yield_now();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.speaker.close();
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking(), "the fake daemon panicked");
        }
    }
}

fn serve(stream: UnixStream, to: &Speaker, log: &Mutex<Vec<ClientToNode>>) {
    let (mut codec, mut frames) = (Codec::default(), FrameReader::default());
    let mut greeted = false;
    let (mut bytes, mut fds) = (vec![0; 1 << 16], Vec::new());
    let mut world = World::default();
    let mut answers = Vec::new();
    loop {
        while let Some(frame) = frames.next_frame().unwrap() {
            if !greeted {
                greeted = true;
                answers.push(greet(&Codec::decode_hello(frame).unwrap()));
                continue;
            }
            let messages = codec.decode_client_batch(frame).unwrap();
            for message in &messages {
                world.hear(message, to, &mut answers);
            }
            log.lock().unwrap().extend(messages);
        }
        if !answers.is_empty() {
            to.say(&answers);
            answers.clear();
        }
        match recv_with_fds(stream.as_fd(), &mut bytes, &mut fds) {
            Ok(0) | Err(_) => return,
            Ok(count) => frames.push(&bytes[..count]),
        }
    }
}

fn greet(hello: &ClientHello) -> NodeToClient {
    if hello.token != "secret" {
        return NodeToClient::Rejected { reason: "the token is not this cluster's".to_owned() };
    }
    NodeToClient::Welcome(Welcome {
        node: NodeId(1),
        job: JobId(7),
        info: Arc::new(JobInfo::default()),
        store_capacity: 1 << 30,
        cores: 2,
    })
}

#[derive(Default)]
struct World {
    values: HashMap<ObjectId, Value>,
    segments: u32,
    own: Option<(SegmentId, u64)>,
}

impl World {
    fn hear(&mut self, message: &ClientToNode, to: &Speaker, answers: &mut Vec<NodeToClient>) {
        match message {
            ClientToNode::Submit(spec) => {
                let outcome = match &*spec.template.name {
                    "never" => return,
                    "fail" => FinishedOutcome::Failed(failure("it failed")),
                    "stored" => {
                        let Payload::Inline(payload) = &spec.payload else { panic!("small payload") };
                        let location = self.store(payload, to, answers);
                        self.values.insert(spec.id.result(0), Value::Local(location));
                        FinishedOutcome::Ok(vec![ResultValue::Stored { size: payload.len() as u64 }])
                    }
                    _ => {
                        let value = match &spec.payload {
                            Payload::Inline(payload) => payload.clone(),
                            Payload::Stored(_) => Layout::encode(Kind::RAW, b"large", &[]).unwrap().into(),
                        };
                        FinishedOutcome::Ok(vec![ResultValue::Inline(value)])
                    }
                };
                answers.push(NodeToClient::Finished { task: spec.id, outcome });
            }
            ClientToNode::Put { object, value, .. } => {
                let value = match value {
                    PutValue::Inline(bytes) => Value::Inline(bytes.clone()),
                    PutValue::Stored(location) => Value::Local(*location),
                };
                self.values.insert(*object, value);
            }
            ClientToNode::Get(objects) => {
                for object in objects {
                    let value = self.values.get(object).cloned();
                    let value = value.unwrap_or_else(|| Value::Failed(failure("no such object")));
                    answers.push(NodeToClient::Ready { object: *object, value });
                }
            }
            ClientToNode::RequestMemory { bytes } if *bytes > MEMORY_MAX => {
                let failure = failure("the store is too small");
                answers.push(NodeToClient::NoMemory { bytes: *bytes, failure });
            }
            ClientToNode::RequestMemory { bytes } => {
                self.segments += 1;
                answers.push(to.make_segment(self.segments, SEGMENT.max(*bytes)));
            }
            ClientToNode::Query { number, .. } => {
                let reply = Ok(QueryReply::Status(StatusView::default()));
                answers.push(NodeToClient::Reply { number: *number, reply });
            }
            _ => {}
        }
    }

    /// Puts a value into a segment of the daemon's own and tells it.
    fn store(&mut self, bytes: &[u8], to: &Speaker, answers: &mut Vec<NodeToClient>) -> Location {
        let (segment, offset) = *self.own.get_or_insert_with(|| {
            let NodeToClient::Segment { segment, len, .. } = to.make_segment(1000, 1 << 20) else {
                unreachable!()
            };
            answers.push(NodeToClient::Segment { segment, len, writable: false });
            (segment, 0)
        });
        let location = Location { segment, offset, len: bytes.len() as u64 };
        to.write(location, bytes);
        self.own = Some((segment, (offset + bytes.len() as u64).next_multiple_of(64)));
        location
    }
}
