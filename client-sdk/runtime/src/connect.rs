//! Finding the daemon and saying hello.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use client_core::ClientCore;
use cluster_proto::Codec;
use cluster_proto::frame::write_frame;
use cluster_store::segment::Arena;
use cluster_store::slots::ExecutorPage;
use cluster_types::client_node::Welcome;
use cluster_types::{ClientHello, ClientId, ClientKind, NodeToClient, PROTOCOL_VERSION};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::helper::Helper;
use crate::reader::{ReadHalf, Received};
use crate::shared::{Inner, Shared, WriteHalf, generation};
use crate::spin::Spinning;
use crate::waiting::poll;
use crate::{ConnectError, ConnectOptions, Interrupt, Target, bridge};

/// A daemon that has just started still learns its interpreter's version before it accepts a Python driver.
const INTERPRETER_WITHIN: Duration = Duration::from_secs(25);
/// Waits are cut into pieces of this, to ask whether to go on.
const PIECE: Duration = Duration::from_millis(200);

pub(crate) fn connect(
    target: Target,
    options: ConnectOptions,
    interrupt: Interrupt<'_>,
) -> Result<Arc<Shared>, ConnectError> {
    let begun = Instant::now();
    let local = |what: &str, error: &dyn std::fmt::Display| ConnectError::Local(format!("{what}: {error}"));
    let id = match options.client {
        Some(id) => id,
        None => ClientId(getrandom::u64().map_err(|error| local("no random numbers", &error))?),
    };
    let shares_memory = !matches!(target, Target::Remote(_));
    let hello = ClientHello {
        protocol: PROTOCOL_VERSION,
        token: options.token.trim().to_owned(),
        client: id,
        pid: std::process::id(),
        kind: options.kind.clone(),
        shares_memory,
    };
    let (socket, lane, place) = match target {
        Target::Unix(path) => (open(&path)?, None, path.display().to_string()),
        Target::Socket(socket) => (socket, None, "the socket it was given".to_owned()),
        Target::Remote(address) => {
            let bridge = bridge::open(&address, &hello.token, begun + options.timeout, interrupt)?;
            (bridge.socket, Some(bridge.lane), bridge.place)
        }
    };
    socket.set_nonblocking(true).map_err(|error| local("the socket", &error))?;
    let mut frame = BytesMut::new();
    write_frame(&mut frame, |out| Codec::encode_hello(&hello, out));
    // A few kilobytes at the most into an empty socket.
    let sent = rustix::net::send(&socket, &frame, rustix::net::SendFlags::NOSIGNAL).map_err(|errno| {
        ConnectError::Unreachable(format!("the daemon at {place} closed the connection at once: {errno}"))
    })?;
    if sent != frame.len() {
        return Err(ConnectError::Local(format!(
            "the job's description is too long ({} bytes); pass fewer env_vars, or a shorter sys.path",
            frame.len()
        )));
    }
    let python = matches!(&options.kind, ClientKind::Driver { info, .. } if !info.python_version.is_empty());
    let patience = if python { options.timeout.max(INTERPRETER_WITHIN) } else { options.timeout };
    let mut read = ReadHalf::default();
    let (welcome, rest) = hear_welcome(&socket, &place, &mut read, Instant::now() + patience, interrupt)?;
    let page = match options.page {
        Some(fd) => {
            Some(ExecutorPage::map(&fd).map_err(|error| local("the page shared with the daemon", &error))?)
        }
        None => None,
    };
    let mut core = ClientCore::new(id, welcome.job);
    if !matches!(options.kind, ClientKind::Observer) {
        core.open_calls();
    }
    let helper = Helper::new().map_err(|error| local("no descriptor is left", &error))?;
    let is_driver = matches!(options.kind, ClientKind::Driver { .. });
    let shared = Arc::new_cyclic(|me| Shared {
        id,
        welcome,
        is_driver,
        shares_memory,
        socket,
        lane,
        place,
        pid: std::process::id(),
        generation: generation(),
        me: me.clone(),
        arena: Arena::new(),
        page,
        inner: Mutex::new(Inner::new(core)),
        write: Mutex::new(WriteHalf {
            codec: Codec::default(),
            buffer: BytesMut::new(),
            broken: false,
            channels: Vec::new(),
        }),
        read: Mutex::new(read),
        unsent: AtomicUsize::new(0),
        spinning: Spinning::default(),
        helper,
    });
    shared.take_in(&mut shared.read.lock(), Received::Messages(rest));
    // An executor that has not run anything yet has nothing for it to do.
    if !matches!(options.kind, ClientKind::Executor { .. }) {
        shared.helper.start(&shared).map_err(|error| local("no thread can be started", &error))?;
    }
    Ok(shared)
}

fn open(path: &Path) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path).map_err(|error| {
        let path = path.display();
        let why = match error.kind() {
            ErrorKind::NotFound => "there is no such socket, so no cluster runs in that directory".to_owned(),
            ErrorKind::ConnectionRefused => {
                "nobody listens on it any more: the daemon that made it has ended".to_owned()
            }
            ErrorKind::PermissionDenied => "it belongs to another user".to_owned(),
            _ => error.to_string(),
        };
        ConnectError::Unreachable(format!(
            "no daemon answers at {path}: {why}. Start one with `cluster up`, or call init() without an address"
        ))
    })
}

/// Reads until the daemon has accepted or refused. Whatever follows the welcome comes with it.
fn hear_welcome(
    socket: &UnixStream,
    place: &str,
    read: &mut ReadHalf,
    deadline: Instant,
    interrupt: Interrupt<'_>,
) -> Result<(Welcome, Vec<NodeToClient>), ConnectError> {
    loop {
        match read.receive(socket) {
            Received::Messages(messages) if messages.is_empty() => {}
            Received::Messages(mut messages) => {
                let rest = messages.split_off(1);
                return match messages.pop() {
                    Some(NodeToClient::Welcome(welcome)) => Ok((welcome, rest)),
                    Some(NodeToClient::Rejected { reason }) => Err(ConnectError::Rejected(reason)),
                    _ => Err(ConnectError::Unreachable(format!(
                        "what answers at {place} is no cluster daemon of this version"
                    ))),
                };
            }
            Received::Ended(reason) => {
                return Err(ConnectError::Unreachable(format!(
                    "the daemon at {place} did not answer the hello: {reason}"
                )));
            }
            Received::Nothing => {
                let now = Instant::now();
                if now >= deadline {
                    return Err(ConnectError::Unreachable(format!(
                        "the daemon at {place} took the connection but did not answer in time; \
                         look at its log, or start it again"
                    )));
                }
                let mut fds = [PollFd::new(socket, PollFlags::IN)];
                let polled = poll(&mut fds, Some(deadline.min(now + PIECE)));
                if matches!(polled, Ok(false) | Err(Errno::INTR)) {
                    interrupt().map_err(|_| ConnectError::Interrupted)?;
                }
            }
        }
    }
}
