//! The sending side: answers pulls from segments and spill files.

use std::any::Any;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::connection::{Key, read_exact_until, set_up};
use super::wire::{self, Refusal, Request};
use crate::threads::with_signals_blocked;

/// Where a server finds objects: implemented by the daemon over its index.
pub trait ObjectSource: Send + Sync {
    /// Called on a connection's thread, which may block here, but not for long: the peer gives up after its stall
    /// timeout.
    fn open(&self, key: Key) -> Opened;

    /// A peer that presented the token asks for a connection that is not about objects: here it is. Called on a thread of
    /// the server's. Without another meaning it is closed.
    fn tunnel(&self, stream: TcpStream) {
        drop(stream);
    }
}

/// An object to send.
pub enum Opened {
    /// In a segment or a file.
    Found {
        /// A descriptor open for reading.
        fd: Arc<OwnedFd>,
        /// First byte, from the start of the descriptor's file.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Dropped once the bytes have arrived, or can no longer: the range must stay as it is until then.
        guard: Box<dyn Any + Send>,
    },
    /// In memory of the daemon's own: small values.
    Bytes(Bytes),
    /// Not here (any more): the peer asks where else it is.
    Missing,
}

/// Limits of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Connections above this number are told that the server is busy, unless a stranger can make room. Each costs a
    /// thread.
    pub max_connections: usize,
    /// How long a stranger may take to present the token.
    pub handshake_timeout: Duration,
    /// How long a peer may take no byte, or owe its word that it has received an object.
    pub stall_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            max_connections: 512,
            handshake_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// A running server. Dropping it ends all connections and waits for its threads.
pub struct DataServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<Vec<JoinHandle<()>>>>,
}

struct Open {
    stream: Arc<TcpStream>,
    /// It has not shown the token yet.
    is_stranger: bool,
}

struct Shared {
    token: Vec<u8>,
    source: Arc<dyn ObjectSource>,
    config: ServerConfig,
    stopping: AtomicBool,
    /// Wakes the acceptor.
    wake: OwnedFd,
    open: Mutex<FxHashMap<u64, Open>>,
}

impl DataServer {
    /// Starts serving on a bound listener.
    ///
    /// # Errors
    /// What the system says: no thread or descriptor to be had. `InvalidInput` for a token that is empty or longer
    /// than [`wire::MAX_TOKEN`](super::MAX_TOKEN).
    pub fn start(
        listener: TcpListener,
        token: &[u8],
        source: Arc<dyn ObjectSource>,
        config: ServerConfig,
    ) -> io::Result<DataServer> {
        if token.is_empty() || token.len() > wire::MAX_TOKEN {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "token empty or too long"));
        }
        let address = listener.local_addr()?;
        // A connection that goes between `poll` and `accept` must not block the acceptor.
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            token: token.to_vec(),
            source,
            config,
            stopping: AtomicBool::new(false),
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
            open: Mutex::default(),
        });
        let for_thread = shared.clone();
        let builder = Builder::new().name("data-accept".to_owned()).stack_size(128 << 10);
        let acceptor = with_signals_blocked(|| builder.spawn(move || accept_all(&listener, &for_thread)))?;
        Ok(DataServer { shared, address, acceptor: Some(acceptor) })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.shared.open().len()
    }

    #[cfg(test)]
    pub(super) fn shared_source(&self) -> Arc<dyn ObjectSource> {
        self.shared.source.clone()
    }

    /// Ends all connections and waits for all threads. Also what dropping does.
    pub fn shutdown(self) {}
}

impl Drop for DataServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
        let Some(Ok(threads)) = self.acceptor.take().map(JoinHandle::join) else { return };
        // With the acceptor gone, no connection can be added.
        for open in self.shared.open().values() {
            let _ = open.stream.shutdown(Shutdown::Both);
        }
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, FxHashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the threads that are still running when it is told to stop.
fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let mut number = 0;
    let mut backoff = false;
    while !shared.stopping.load(Ordering::SeqCst) {
        let mut fds = [
            PollFd::new(&shared.wake, PollFlags::IN),
            PollFd::new(listener, if backoff { PollFlags::empty() } else { PollFlags::IN }),
        ];
        let pause = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let _ = rustix::event::poll(&mut fds, backoff.then_some(&pause));
        backoff = false;
        if shared.stopping.load(Ordering::SeqCst) {
            break;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                threads.retain(|thread| !thread.is_finished());
                number += 1;
                threads.extend(begin(stream, number, shared));
            }
            Err(error) => {
                // Out of descriptors, say: the connection stays in the backlog, so asking at once would spin.
                backoff = !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                );
            }
        }
    }
    threads
}

/// Gives a connection a thread; `None`, and the connection closed, if there are too many.
fn begin(stream: TcpStream, number: u64, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    let _ = stream.set_nonblocking(false);
    let stream = Arc::new(stream);
    {
        let mut open = shared.open();
        if open.len() >= shared.config.max_connections && !part_with_a_stranger(&mut open) {
            // Without reading what it says: a few bytes into an empty buffer do not block.
            let _ = rustix::net::send(&*stream, &wire::verdict(Some(Refusal::Busy)), SendFlags::NOSIGNAL);
            return None;
        }
        open.insert(number, Open { stream: stream.clone(), is_stranger: true });
    }
    let registered = Registered { number, shared: shared.clone() };
    let builder = Builder::new().name("data-send".to_owned()).stack_size(256 << 10);
    with_signals_blocked(|| {
        builder.spawn(move || {
            // How a connection ends is the peer's business: it sees it, and asks elsewhere.
            let _ = serve(&stream, &registered);
            drop(registered);
        })
    })
    .ok()
}

/// Closes the connection that has owed the token for longest, so that others need not wait for it; whether there was
/// one.
fn part_with_a_stranger(open: &mut FxHashMap<u64, Open>) -> bool {
    let strangers = open.iter().filter(|(_, open)| open.is_stranger);
    let Some(oldest) = strangers.map(|(number, _)| *number).min() else { return false };
    if let Some(stranger) = open.remove(&oldest) {
        // Its thread ends by this.
        let _ = stranger.stream.shutdown(Shutdown::Both);
    }
    true
}

/// Takes the connection off the list when its thread ends, however that happens.
struct Registered {
    number: u64,
    shared: Arc<Shared>,
}

impl Registered {
    fn is_known(&self) {
        if let Some(open) = self.shared.open().get_mut(&self.number) {
            open.is_stranger = false;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.open().remove(&self.number);
    }
}

fn serve(stream: &TcpStream, registered: &Registered) -> io::Result<()> {
    let shared = &registered.shared;
    set_up(stream)?;
    stream.set_write_timeout(Some(shared.config.stall_timeout))?;
    if !shake_hands(stream, registered)? {
        return Ok(());
    }
    loop {
        // Between requests a peer may be silent for as long as it likes; keep-alive notices when it is gone.
        stream.set_read_timeout(None)?;
        let key = match read_request(stream)? {
            Request::Get(key) => key,
            Request::Tunnel => {
                stream.set_write_timeout(None)?;
                shared.source.tunnel(stream.try_clone()?);
                return Ok(());
            }
            Request::Received(_) => return Err(nonsense()),
        };
        match shared.source.open(key) {
            Opened::Missing => send_all(stream, &wire::response(None), SendFlags::empty())?,
            Opened::Bytes(bytes) => {
                send_all(stream, &wire::response(Some(bytes.len() as u64)), SendFlags::MORE)?;
                send_all(stream, &bytes, SendFlags::empty())?;
                await_received(stream, key, shared)?;
            }
            Opened::Found { fd, offset, len, guard } => {
                let sent = send_all(stream, &wire::response(Some(len)), SendFlags::MORE)
                    .and_then(|()| send_range(stream, &fd, offset, len))
                    .and_then(|()| await_received(stream, key, shared));
                if sent.is_err() {
                    // Resets the connection and drops what is still to be sent, so that no byte written into the
                    // range from now on can reach the peer. Closing would go on sending it.
                    let _ = rustix::net::connect_unspec(stream);
                }
                drop(guard);
                sent?;
            }
        }
    }
}

/// True if the peer is one of ours.
fn shake_hands(stream: &TcpStream, registered: &Registered) -> io::Result<bool> {
    let shared = &registered.shared;
    let deadline = Instant::now() + shared.config.handshake_timeout;
    let mut head = [0; wire::HELLO];
    read_exact_until(stream, &mut head, deadline)?;
    // A stranger gets no answer at all.
    let (version, len) = wire::read_hello(head).ok_or_else(nonsense)?;
    let mut token = vec![0; len];
    read_exact_until(stream, &mut token, deadline)?;
    let refusal = if !wire::same_token(&token, &shared.token) {
        Some(Refusal::Token)
    } else if version != wire::VERSION {
        Some(Refusal::Version(version))
    } else {
        registered.is_known();
        None
    };
    send_all(stream, &wire::verdict(refusal), SendFlags::empty())?;
    Ok(refusal.is_none())
}

fn read_request(mut stream: &TcpStream) -> io::Result<Request> {
    let mut frame = [0; wire::REQUEST];
    stream.read_exact(&mut frame)?;
    Request::decode(frame).ok_or_else(nonsense)
}

fn await_received(stream: &TcpStream, key: Key, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(shared.config.stall_timeout))?;
    if read_request(stream)? == Request::Received(key) { Ok(()) } else { Err(nonsense()) }
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the peer does not keep to the protocol")
}

fn send_all(stream: &TcpStream, mut bytes: &[u8], flags: SendFlags) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(stream, bytes, flags | SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent.min(bytes.len())..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn send_range(stream: &TcpStream, fd: &OwnedFd, offset: u64, len: u64) -> io::Result<()> {
    let end = offset.checked_add(len).ok_or_else(nonsense)?;
    let mut at = offset;
    while at < end {
        let count = (end - at).min(1 << 30) as usize;
        match rustix::fs::sendfile(stream, fd, Some(&mut at), count) {
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the object's file is too short"));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
