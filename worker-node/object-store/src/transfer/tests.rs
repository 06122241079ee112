//! Both sides over loopback, and each against a peer that misbehaves.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::wire::{self, Request};
use super::*;
use crate::SegmentId;
use crate::segment::{Arena, Segment, WriteMapping};

const TOKEN: &[u8] = b"the cluster's token";
const OFFSET: u64 = 64;

/// Keys: byte 0 says what the object is, byte 1 the fill, bytes 8.. its length.
struct Source {
    fd: Arc<OwnedFd>,
    dropped: Mutex<Sender<Key>>,
}

struct Guard(Key, Sender<Key>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.1.send(self.0);
    }
}

impl ObjectSource for Source {
    fn open(&self, key: Key) -> Opened {
        let len = key_len(key);
        match key[0] {
            b'f' => Opened::Found {
                fd: self.fd.clone(),
                offset: OFFSET,
                len,
                guard: Box::new(Guard(key, self.dropped.lock().unwrap().clone())),
            },
            b'b' => Opened::Bytes(Bytes::from(vec![key[1]; len as usize])),
            _ => Opened::Missing,
        }
    }
}

fn key_len(key: Key) -> u64 {
    u64::from_le_bytes(key[8..].try_into().unwrap())
}

fn key(what: u8, fill: u8, len: u64) -> Key {
    let mut key = [0; 16];
    (key[0], key[1]) = (what, fill);
    key[8..].copy_from_slice(&len.to_le_bytes());
    key
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 253) as u8).collect()
}

/// A server with a segment of 8 MiB, and where the dropping of guards is told.
fn server(config: ServerConfig) -> (DataServer, Receiver<Key>) {
    let len = 8 << 20;
    let segment = Segment::create(len + OFFSET.next_multiple_of(4096)).unwrap();
    let file = std::fs::File::from(segment.writer_fd().try_clone_to_owned().unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, &content(len as usize), OFFSET).unwrap();
    let fd = Arc::new(segment.reader_fd().try_clone_to_owned().unwrap());
    let (dropped, drops) = mpsc::channel();
    let source = Arc::new(Source { fd, dropped: Mutex::new(dropped) });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (DataServer::start(listener, TOKEN, source, config).unwrap(), drops)
}

fn puller() -> Puller {
    Puller::start(TOKEN, PullerConfig::default()).unwrap()
}

type Outcome = Result<Vec<u8>, PullFailure<Vec<u8>>>;

fn start(puller: &Puller, peer: &str, key: Key) -> Receiver<Outcome> {
    let (done, wait) = mpsc::channel();
    puller.pull(
        peer,
        key,
        |len| Ok(vec![0xEE; len as usize]),
        move |result| {
            let _ = done.send(result);
        },
    );
    wait
}

fn pull(puller: &Puller, peer: &str, key: Key) -> Outcome {
    start(puller, peer, key).recv().unwrap()
}

/// A connection that has shaken hands, spoken by hand.
fn raw(server: &DataServer) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(&wire::hello(TOKEN)).unwrap();
    let mut verdict = [0; wire::VERDICT];
    stream.read_exact(&mut verdict).unwrap();
    assert_eq!(wire::read_verdict(verdict), Some(Ok(())));
    stream
}

/// A peer that plays a part: accepts one connection, shakes hands, reads one request.
fn actor(part: impl FnOnce(TcpStream) + Send + 'static) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = vec![0; wire::HELLO + TOKEN.len()];
        stream.read_exact(&mut hello).unwrap();
        stream.write_all(&wire::verdict(None)).unwrap();
        let mut request = [0; wire::REQUEST];
        stream.read_exact(&mut request).unwrap();
        part(stream);
    });
    (address, thread)
}

fn ended(stream: &mut TcpStream) -> bool {
    !matches!(stream.read(&mut [0; 64]), Ok(n) if n > 0)
}

#[test]
fn objects_arrive_whole() {
    let (server, drops) = server(ServerConfig::default());
    let (puller, peer) = (puller(), server.address().to_string());
    for len in [0, 1, 63, 100_000, 8 << 20] {
        assert_eq!(pull(&puller, &peer, key(b'f', 0, len)).unwrap(), content(len as usize));
        assert_eq!(drops.recv().unwrap(), key(b'f', 0, len));
        assert_eq!(pull(&puller, &peer, key(b'b', 9, len)).unwrap(), vec![9; len as usize]);
    }
    let failure = pull(&puller, &peer, key(b'-', 0, 5)).unwrap_err();
    assert!(matches!(failure.error.kind, TransferErrorKind::Missing));
    assert!(failure.destination.is_none());
    assert_eq!(server.connections(), 1, "one connection was kept and used for all");
}

#[test]
fn an_object_arrives_in_shared_memory() {
    let (server, _drops) = server(ServerConfig::default());
    let puller = puller();
    let segment = Segment::create(4 << 20).unwrap();
    let arena = Arena::new();
    arena.add_segment(SegmentId(0), WriteMapping::map(segment.writer_fd()).unwrap()).unwrap();
    let (done, wait) = mpsc::channel();
    let target = arena.clone();
    puller.pull(
        &server.address().to_string(),
        key(b'f', 0, 3_000_000),
        move |len| target.alloc(len as usize).ok_or_else(|| "full".to_owned()),
        move |result| {
            let _ = done.send(result);
        },
    );
    let buf = wait.recv().unwrap().unwrap();
    assert!(*buf == content(3_000_000)[..]);
}

#[test]
fn many_pulls_at_once() {
    let (server, drops) = server(ServerConfig::default());
    let (puller, peer) = (puller(), server.address().to_string());
    let waits: Vec<_> =
        (0..200u64).map(|i| (i, start(&puller, &peer, key(b"fb"[i as usize % 2], 3, i * 997)))).collect();
    for (i, wait) in waits {
        let len = i as usize * 997;
        let expect = if i % 2 == 0 { content(len) } else { vec![3; len] };
        assert!(wait.recv().unwrap().unwrap() == expect);
    }
    assert_eq!(drops.iter().take(100).count(), 100);
    assert!(server.connections() <= PullerConfig::default().per_peer);
}

#[test]
fn the_guard_is_kept_until_the_peer_has_received() {
    let (server, drops) = server(ServerConfig::default());
    let mut stream = raw(&server);
    let wanted = key(b'f', 0, 100);
    stream.write_all(&Request::Get(wanted).encode()).unwrap();
    let mut reply = vec![0; wire::RESPONSE + 100];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[wire::RESPONSE..], content(100));
    assert!(drops.try_recv().is_err());
    stream.write_all(&Request::Received(wanted).encode()).unwrap();
    assert_eq!(drops.recv().unwrap(), wanted);
}

#[test]
fn a_peer_that_goes_or_lies_gives_the_guard_back() {
    let config = ServerConfig { stall_timeout: Duration::from_millis(50), ..ServerConfig::default() };
    let (server, drops) = server(config);
    let wanted = key(b'f', 0, 8 << 20);
    let ask = |frames: &[Request]| {
        let mut stream = raw(&server);
        for frame in frames {
            stream.write_all(&frame.encode()).unwrap();
        }
        stream
    };
    drop(ask(&[Request::Get(wanted)]));
    assert_eq!(drops.recv().unwrap(), wanted);
    // Reads nothing, so that the server cannot send all.
    let mut silent = ask(&[Request::Get(wanted)]);
    assert_eq!(drops.recv().unwrap(), wanted);
    let mut rest = Vec::new();
    let cut = silent.read_to_end(&mut rest);
    assert!(cut.is_err() || rest.len() < 8 << 20, "what was not sent in time is never sent");
    let small = key(b'f', 0, 10);
    let _liar = ask(&[Request::Get(small), Request::Received(wanted)]);
    assert_eq!(drops.recv().unwrap(), small);
}

#[test]
fn strangers_get_no_answer() {
    let config = ServerConfig { handshake_timeout: Duration::from_millis(50), ..ServerConfig::default() };
    let (server, _drops) = server(config);
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"CMLD", b"", b"CMLD\x01\x00\xFF\xFF", b"CMLD\x01\x00\x20\x00half"]
    {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(garbage).unwrap();
        assert!(ended(&mut stream), "{garbage:?}");
    }
    let mut half_request = raw(&server);
    half_request.write_all(&[1, 2, 3]).unwrap();
    half_request.shutdown(Shutdown::Write).unwrap();
    assert!(ended(&mut half_request));
    let mut bad_request = raw(&server);
    bad_request.write_all(&[0xAA; wire::REQUEST]).unwrap();
    assert!(ended(&mut bad_request));
    assert!(pull(&puller(), &server.address().to_string(), key(b'b', 1, 5)).is_ok());
}

#[test]
fn refusals_say_why() {
    let (server, _drops) = server(ServerConfig { max_connections: 1, ..ServerConfig::default() });
    let peer = server.address().to_string();
    let stranger = Puller::start(b"another token", PullerConfig::default()).unwrap();
    let kind = pull(&stranger, &peer, [0; 16]).unwrap_err().error.kind;
    assert!(matches!(kind, TransferErrorKind::Refused(Refusal::Token)), "{kind:?}");

    let (old, thread) = version_peer();
    let kind = pull(&puller(), &old, [0; 16]).unwrap_err().error.kind;
    assert!(matches!(kind, TransferErrorKind::Refused(Refusal::Version(77))), "{kind:?}");
    thread.join().unwrap();

    // The stranger's thread may still be ending: its connection counts until it has.
    while server.connections() > 0 {
        std::thread::yield_now();
    }
    let first = raw(&server);
    let kind = pull(&puller(), &peer, [0; 16]).unwrap_err().error.kind;
    assert!(matches!(kind, TransferErrorKind::Refused(Refusal::Busy)), "{kind:?}");
    drop(first);
}

#[test]
fn strangers_that_say_nothing_keep_nobody_out() {
    let (server, _drops) = server(ServerConfig { max_connections: 4, ..ServerConfig::default() });
    let peer = server.address().to_string();
    let silent: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(&peer).unwrap()).collect();
    assert!(pull(&puller(), &peer, key(b'b', 1, 5)).is_ok());
    assert!(server.connections() <= 4);
    drop(silent);
}

fn version_peer() -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut vec![0; wire::HELLO + TOKEN.len()]).unwrap();
        stream.write_all(&[b'C', b'M', b'L', b'D', 77, 0, 1, 0]).unwrap();
    });
    (address, thread)
}

#[test]
fn another_version_is_told_so() {
    let (server, _drops) = server(ServerConfig::default());
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let mut hello = wire::hello(TOKEN);
    hello[4] = 99;
    stream.write_all(&hello).unwrap();
    let mut verdict = [0; wire::VERDICT];
    stream.read_exact(&mut verdict).unwrap();
    assert!(matches!(wire::read_verdict(verdict), Some(Err(Refusal::Version(_)))));
    assert!(ended(&mut stream));
}

#[test]
fn a_peer_that_dies_mid_object_is_named_and_the_memory_given_back() {
    let (peer, thread) = actor(|mut stream| {
        stream.write_all(&wire::response(Some(1000))).unwrap();
        stream.write_all(&[1; 400]).unwrap();
    });
    let failure = pull(&puller(), &peer, [0xAB; 16]).unwrap_err();
    thread.join().unwrap();
    assert_eq!(failure.destination.map(|d| d.len()), Some(1000));
    assert!(matches!(failure.error.kind, TransferErrorKind::Broken { received: 400, len: 1000, .. }));
    let text = failure.error.to_string();
    assert!(text.contains(&peer) && text.contains(&"ab".repeat(16)), "{text}");
}

#[test]
fn a_peer_that_stalls_is_given_up() {
    let (release, hold) = mpsc::channel::<()>();
    let (peer, thread) = actor(move |mut stream| {
        stream.write_all(&wire::response(Some(10))).unwrap();
        stream.write_all(&[1; 4]).unwrap();
        let _ = hold.recv();
    });
    let config = PullerConfig { stall_timeout: Duration::from_millis(50), ..PullerConfig::default() };
    let puller = Puller::start(TOKEN, config).unwrap();
    let failure = pull(&puller, &peer, [1; 16]).unwrap_err();
    assert!(matches!(failure.error.kind, TransferErrorKind::Stalled { received: 4, len: 10, .. }));
    drop(release);
    thread.join().unwrap();
}

#[test]
fn an_answer_that_is_nonsense_is_an_error() {
    let (peer, thread) = actor(|mut stream| stream.write_all(&[0xFF; wire::RESPONSE]).unwrap());
    assert!(matches!(pull(&puller(), &peer, [1; 16]).unwrap_err().error.kind, TransferErrorKind::Protocol));
    thread.join().unwrap();
}

#[test]
fn a_kept_connection_that_was_closed_meanwhile_is_replaced() {
    let (first, _drops) = server(ServerConfig::default());
    let (puller, address) = (puller(), first.address());
    assert!(pull(&puller, &address.to_string(), key(b'b', 1, 5)).is_ok());
    let source = first.shared_source();
    first.shutdown();
    let listener = TcpListener::bind(address).unwrap();
    let _second = DataServer::start(listener, TOKEN, source, ServerConfig::default()).unwrap();
    assert_eq!(pull(&puller, &address.to_string(), key(b'b', 1, 5)).unwrap(), [1; 5]);
}

#[test]
fn nobody_there_and_no_place() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let puller = puller();
    let kind = pull(&puller, &address, [1; 16]).unwrap_err().error.kind;
    assert!(matches!(kind, TransferErrorKind::Connect(_)));
    let kind = pull(&puller, "no port", [1; 16]).unwrap_err().error.kind;
    assert!(matches!(kind, TransferErrorKind::Connect(_)));

    let (server, drops) = server(ServerConfig::default());
    let (peer, wanted) = (server.address().to_string(), key(b'f', 0, 1 << 20));
    let (done, wait) = mpsc::channel();
    let told = done.clone();
    let refuse = |_| -> Result<Vec<u8>, String> { Err("the store is full".to_owned()) };
    puller.pull(&peer, wanted, refuse, move |result| told.send(result).unwrap());
    let failure = wait.recv().unwrap().unwrap_err();
    assert!(failure.error.to_string().contains("the store is full"), "{}", failure.error);
    assert_eq!(drops.recv().unwrap(), wanted);
    puller.pull(&peer, wanted, |_| Ok(vec![0; 3]), move |result| done.send(result).unwrap());
    let failure = wait.recv().unwrap().unwrap_err();
    assert!(matches!(failure.error.kind, TransferErrorKind::Destination { len: 1_048_576, .. }));
    assert_eq!(failure.destination, Some(vec![0; 3]));
}

#[test]
fn shutting_down_ends_everything() {
    // The server: one connection idle, one in the middle of an object, one that has said nothing.
    let (server, drops) = server(ServerConfig::default());
    let address = server.address();
    let mut idle = raw(&server);
    let mut busy = raw(&server);
    busy.write_all(&Request::Get(key(b'f', 0, 8 << 20)).encode()).unwrap();
    busy.read_exact(&mut [0; wire::RESPONSE]).unwrap();
    let mut mute = TcpStream::connect(address).unwrap();
    server.shutdown();
    assert_eq!(drops.iter().count(), 1, "the guard is dropped, and the source with it");
    assert!(ended(&mut idle) && ended(&mut mute));
    assert!(TcpStream::connect(address).is_err());

    // The puller: one pull under way, others waiting.
    let (release, hold) = mpsc::channel::<()>();
    let (started, begun) = mpsc::channel::<()>();
    let (peer, thread) = actor(move |mut stream| {
        stream.write_all(&wire::response(Some(10))).unwrap();
        started.send(()).unwrap();
        let _ = hold.recv();
    });
    let config = PullerConfig { workers: 1, ..PullerConfig::default() };
    let puller = Puller::start(TOKEN, config).unwrap();
    let waits: Vec<_> = (0..3).map(|n| start(&puller, &peer, [n; 16])).collect();
    begun.recv().unwrap();
    drop(puller);
    for wait in waits {
        let failure = wait.recv().unwrap().unwrap_err();
        assert!(matches!(failure.error.kind, TransferErrorKind::Stopped), "{:?}", failure.error.kind);
    }
    drop(release);
    thread.join().unwrap();
}
