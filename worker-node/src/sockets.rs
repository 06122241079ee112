//! The daemon's Unix socket: clients of this machine.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use cluster_proto::auth::token_refusal;
use cluster_proto::frame::FrameReader;
use cluster_proto::{Codec, check_protocol};
use cluster_types::{ClientHello, ClientId, ClientKind, ClientToNode, NodeToClient};
use rustix::process::{Pid, PidfdFlags};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use worker_core::Event;

use crate::client_socket::{ClientSocket, Received};
use crate::clients::{Client, ClientLink, SocketLink};
use crate::config::WorkerError;
use crate::event_loop::{Daemon, Handle};
use crate::supervisor::poll::register_readable;
use crate::supervisor::{Interpreter, check_version};

/// A stranger may take this long to say who it is.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// An executor that closed its socket ends by itself within this, or is ended.
const EXIT_WITHIN: Duration = Duration::from_secs(2);
/// How long a driver waits for an interpreter that is not known yet.
const INTERPRETER_WITHIN: Duration = Duration::from_secs(20);

/// The socket's name in the daemon's directory.
pub const SOCKET_NAME: &str = "node.sock";

/// The bound socket; its file goes when this is dropped.
pub(crate) struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as the daemon lives, so that a file left by a dead one is told from one in use.
    _lock: OwnedFd,
}

impl Listener {
    pub(crate) fn bind(dir: &Path) -> Result<Listener, WorkerError> {
        let name = dir.display();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(WorkerError::io(format!("make the directory {name}")))?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .map_err(WorkerError::io(format!("make the directory {name} private")))?;
        let path = dir.join(SOCKET_NAME);
        let lock = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("node.lock"))
            .map_err(WorkerError::io(format!("open {name}/node.lock")))?;
        let lock = OwnedFd::from(lock);
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(WorkerError::AlreadyRunning { socket: path });
        }
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(|source| {
            let long = path.as_os_str().len() > 107;
            let hint = if long {
                " (a socket's path may have 107 bytes: set CLUSTER_DIR to a shorter one)"
            } else {
                ""
            };
            WorkerError::Io { what: format!("listen on {}{hint}", path.display()), source }
        })?;
        Ok(Listener { listener, path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Serves for ever.
    pub(crate) async fn serve(self, handle: Handle) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::task::spawn_local(greet(handle.clone(), stream));
                }
                Err(error) => {
                    // Out of descriptors, most likely: they come back as clients end.
                    tracing::warn!(%error, "cannot accept a client");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Hears the hello, then serves the client to its end.
async fn greet(handle: Handle, stream: UnixStream) {
    let socket = match ClientSocket::new(stream, handle.scratch.clone()) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%error, "cannot watch a client's socket"),
    };
    let mut frames = FrameReader::default();
    let hello = match timeout(HELLO_WITHIN, first_frame(&socket, &mut frames)).await {
        Ok(Ok(Some(hello))) => hello,
        Ok(Ok(None)) => return,
        Ok(Err(reason)) => return reject(&socket, reason).await,
        Err(_) => return reject(&socket, "no hello came within 5 s".to_owned()).await,
    };
    if let Err(reason) = check_hello(&handle, &hello, true).await {
        return reject(&socket, reason).await;
    }
    let (pid, pidfd) = match peer(&socket) {
        Ok(peer) => peer,
        // It has ended already.
        Err(_) => return,
    };
    let link = SocketLink::new(socket);
    let (drained, drained_later) = watch::channel(false);
    let ClientHello { client, kind, shares_memory, .. } = hello;
    let accepted = {
        let client = Client::new(kind.clone(), ClientLink::Socket(link.clone()), drained_later);
        handle.borrow().attach(hello.client, pid, client, shares_memory)
    };
    if let Err(reason) = accepted {
        return reject(link.socket(), reason).await;
    }
    tracing::info!(%client, pid, "client attached");
    let said_goodbye = tokio::select! {
        biased;
        said_goodbye = read(&handle, client, link.socket(), &mut frames) => said_goodbye,
        () = process_ended(&pidfd) => {
            // What it had said before is still in the socket.
            drain(&handle, client, &link, &mut frames);
            false
        }
        () = link.write_leftovers() => false,
        () = link.broken.notified() => {
            drain(&handle, client, &link, &mut frames);
            false
        }
    };
    drained.send_replace(true);
    if let ClientKind::Executor { executor } = kind {
        // Its zygote reports the end of its process; it has no business without its socket.
        handle.borrow().supervisor.end(executor, false);
        let _ = timeout(EXIT_WITHIN, process_ended(&pidfd)).await;
        handle.borrow().supervisor.end(executor, true);
        return;
    }
    if !said_goodbye {
        // A lost socket is not an end: what the process views must stay as it is (rule P1).
        process_ended(&pidfd).await;
    }
    tracing::info!(%client, pid, "client ended");
    let mut daemon = handle.borrow();
    daemon.end_client(client);
    daemon.pump();
}

impl Daemon {
    /// Takes a client in; the core answers with `Welcome` or `Rejected`.
    pub(crate) fn attach(
        &mut self,
        client: ClientId,
        pid: u32,
        known: Client,
        shares_memory: bool,
    ) -> Result<(), String> {
        if self.clients.contains_key(&client) {
            return Err(format!("a client {client} is attached already; an id must be used once"));
        }
        if let ClientKind::Executor { executor } = known.kind {
            self.executors.attach(executor, client)?;
        }
        let kind = known.kind.clone();
        self.clients.insert(client, known);
        self.push(Event::ClientAttached { client, pid, kind, shares_memory });
        self.pump();
        Ok(())
    }

    /// Queues what a frame holds; true if the client says goodbye in it.
    fn receive(&mut self, client: ClientId, frame: bytes::Bytes) -> Result<bool, String> {
        self.decode(frame).map(|messages| self.hear(client, messages))
    }

    /// What a frame holds.
    pub(crate) fn decode(&mut self, frame: bytes::Bytes) -> Result<Vec<ClientToNode>, String> {
        self.codec.decode_client_batch(frame).map_err(|error| error.to_string())
    }

    /// Queues what a client says; true if goodbye is among it.
    pub(crate) fn hear(&mut self, client: ClientId, messages: Vec<ClientToNode>) -> bool {
        let mut goodbye = false;
        for message in messages {
            goodbye |= matches!(message, ClientToNode::Goodbye);
            if let ClientToNode::Log(line) = &message
                && line.stderr
                && let Some(ClientKind::Executor { executor }) =
                    self.clients.get(&client).map(|known| known.kind.clone())
            {
                self.executors.wrote(executor, &line.text);
            }
            self.push(Event::FromClient { client, message });
        }
        goodbye
    }

    /// Forgets a client whose process ended, or that said goodbye.
    pub(crate) fn end_client(&mut self, client: ClientId) {
        if self.clients.remove(&client).is_some() {
            self.push(Event::ClientEnded { client });
        }
    }
}

/// Reads until the client closes, or sends what is no message; whether it said goodbye.
async fn read(handle: &Handle, client: ClientId, socket: &ClientSocket, frames: &mut FrameReader) -> bool {
    let mut goodbye = false;
    loop {
        match take_frames(handle, client, frames) {
            Ok(said) => goodbye |= said,
            Err(reason) => {
                tracing::warn!(%client, reason, "a client broke the protocol; parting with it");
                let mut daemon = handle.borrow();
                daemon.tell_client(client, NodeToClient::Rejected { reason });
                if let Some(known) = daemon.clients.get_mut(&client) {
                    known.closing = true;
                }
                return false;
            }
        }
        if socket.receive(frames).await == Received::End {
            return goodbye;
        }
    }
}

/// Reads what is there, and no more.
fn drain(handle: &Handle, client: ClientId, link: &Rc<SocketLink>, frames: &mut FrameReader) {
    while link.socket().try_receive(frames) == Received::Some {
        if take_frames(handle, client, frames).is_err() {
            return;
        }
    }
}

fn take_frames(handle: &Handle, client: ClientId, frames: &mut FrameReader) -> Result<bool, String> {
    let mut daemon = handle.borrow();
    let mut goodbye = false;
    loop {
        match frames.next_frame() {
            Ok(Some(frame)) => goodbye |= daemon.receive(client, frame)?,
            Ok(None) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    daemon.pump();
    Ok(goodbye)
}

async fn first_frame(socket: &ClientSocket, frames: &mut FrameReader) -> Result<Option<ClientHello>, String> {
    loop {
        if let Some(frame) = frames.next_frame().map_err(|error| error.to_string())? {
            return Codec::decode_hello(frame).map(Some).map_err(|error| error.to_string());
        }
        if socket.receive(frames).await == Received::End {
            return Ok(None);
        }
    }
}

/// What every client must show, however it came. `is_here`: it runs on this machine.
pub(crate) async fn check_hello(handle: &Handle, hello: &ClientHello, is_here: bool) -> Result<(), String> {
    check_protocol("daemon", "client", hello.protocol).map_err(|error| error.to_string())?;
    if let Some(refusal) = token_refusal(&handle.borrow().token, Some(&hello.token)) {
        return Err(refusal);
    }
    if let ClientKind::Driver { info, .. } = &hello.kind {
        let (mut interpreter, same) = {
            let daemon = handle.borrow();
            // The same program of this machine has the same version; there is no need to wait for its imports.
            let same =
                is_here && !info.python.is_empty() && daemon.supervisor.is_default_by_name(&info.python);
            (daemon.supervisor.interpreter(&info.python), same)
        };
        if info.python_version.is_empty() || same {
            return Ok(());
        }
        let known = interpreter.wait_for(|state| *state != Interpreter::Starting);
        // What is wrong with one that takes longer is told when the first executor is started.
        if let Ok(Ok(state)) = timeout(INTERPRETER_WITHIN, known).await {
            match &*state {
                Interpreter::Ready(version) => {
                    let python = handle.borrow().supervisor.resolve(&info.python);
                    check_version(&info.python_version, version, &python)?;
                }
                Interpreter::Failed(reason) => {
                    return Err(format!("this node cannot run executors: {reason}"));
                }
                Interpreter::Starting => {}
            }
        }
    }
    Ok(())
}

async fn reject(socket: &ClientSocket, reason: String) {
    tracing::warn!(reason, "client rejected");
    let mut frame = BytesMut::new();
    Codec::default().frame_node_messages(&[NodeToClient::Rejected { reason }], &mut frame);
    let write = async {
        let mut sent = 0;
        while sent < frame.len() {
            match socket.try_send(&frame[sent..], &[]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if socket.writable().await.is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        // Read what it may still be sending: closing with that unread would take the sentence away again.
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
        while socket.receive(&mut FrameReader::default()).await == Received::Some {}
    };
    let _ = timeout(Duration::from_secs(1), write).await;
}

type Pidfd = tokio::io::unix::AsyncFd<OwnedFd>;

/// The process at the other end, by a descriptor that names it whatever becomes of its number.
fn peer(socket: &ClientSocket) -> io::Result<(u32, Pidfd)> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    let pid: Pid = credentials.pid;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    Ok((pid.as_raw_nonzero().get().unsigned_abs(), register_readable(pidfd)?))
}

async fn process_ended(pidfd: &Pidfd) {
    let _ = pidfd.readable().await;
}
