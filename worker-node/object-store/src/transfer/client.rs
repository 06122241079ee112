//! The receiving side: pulls objects from peers into memory provided by the caller.

use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::net::RecvFlags;

use super::connection::{
    Key, TransferError, TransferErrorKind, connect, present_token, set_up, write_request,
};
use super::pool::Pool;
use super::wire::{self, Request};
use crate::threads::with_signals_blocked;

/// One `recv` asks for at most this many bytes: enough that system calls do not count, and less than the socket's
/// buffer holds, so that waiting for all of it does not stop the sender (4 MiB was a fifth slower).
const RECV_MAX: usize = 1 << 20;

/// How a puller works.
#[derive(Clone, Debug)]
pub struct PullerConfig {
    /// Threads, that is pulls at a time.
    pub workers: usize,
    /// Pulls at a time from one peer; fewer than `workers`, so that one that stalls does not hold up the others.
    pub per_peer: usize,
    /// For connecting and the handshake, each.
    pub connect_timeout: Duration,
    /// A pull fails when no byte comes for this long.
    pub stall_timeout: Duration,
}

impl Default for PullerConfig {
    fn default() -> PullerConfig {
        PullerConfig {
            workers: 8,
            per_peer: 3,
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(15),
        }
    }
}

/// A pull that failed, with the memory that was provided for it, which holds no object.
#[derive(Debug)]
pub struct PullFailure<D> {
    /// What happened.
    pub error: TransferError,
    /// The destination, if the provider had been asked.
    pub destination: Option<D>,
}

/// Pulls objects, several at a time, over kept connections. Dropping it cuts what is under way, fails what waits,
/// and waits for its threads (for up to the connect timeout, if one is connecting).
pub struct Puller {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    token: Vec<u8>,
    config: PullerConfig,
    pool: Mutex<Pool<Box<dyn Job>>>,
    wake: Condvar,
}

/// One pull, its types hidden.
trait Job: Send {
    fn key(&self) -> Key;
    /// Asks for `len` bytes of memory.
    fn provide(&mut self, len: u64) -> Result<&mut [u8], TransferErrorKind>;
    fn complete(self: Box<Self>, result: Result<(), TransferError>);
}

struct Pull<D, P, C> {
    key: Key,
    provide: Option<P>,
    destination: Option<D>,
    complete: C,
}

impl<D, P, C> Job for Pull<D, P, C>
where
    D: AsMut<[u8]> + Send,
    P: FnOnce(u64) -> Result<D, String> + Send,
    C: FnOnce(Result<D, PullFailure<D>>) + Send,
{
    fn key(&self) -> Key {
        self.key
    }

    fn provide(&mut self, len: u64) -> Result<&mut [u8], TransferErrorKind> {
        let refuse = |reason| TransferErrorKind::Destination { len, reason };
        let provide = self.provide.take().ok_or_else(|| refuse("asked twice".to_owned()))?;
        let memory = self.destination.insert(provide(len).map_err(refuse)?).as_mut();
        if memory.len() as u64 == len {
            Ok(memory)
        } else {
            Err(refuse(format!("{} bytes were provided", memory.len())))
        }
    }

    fn complete(self: Box<Self>, result: Result<(), TransferError>) {
        let this = *self;
        let result = match (result, this.destination) {
            (Ok(()), Some(destination)) => Ok(destination),
            (Ok(()), None) => unreachable!("a pull that succeeded has a destination"),
            (Err(error), destination) => Err(PullFailure { error, destination }),
        };
        (this.complete)(result);
    }
}

impl Puller {
    /// Starts the workers.
    ///
    /// # Errors
    /// What the system says if no thread is to be had; `InvalidInput` for a token that is empty or too long.
    pub fn start(token: &[u8], config: PullerConfig) -> io::Result<Puller> {
        if token.is_empty() || token.len() > wire::MAX_TOKEN {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "token empty or too long"));
        }
        let pool = Mutex::new(Pool::new(config.per_peer));
        let workers = config.workers.max(1);
        let shared = Arc::new(Shared { token: token.to_vec(), config, pool, wake: Condvar::new() });
        let mut puller = Puller { shared, threads: Vec::new() };
        for _ in 0..workers {
            let shared = puller.shared.clone();
            let builder = Builder::new().name("data-pull".to_owned()).stack_size(256 << 10);
            puller.threads.push(with_signals_blocked(|| builder.spawn(move || work(&shared)))?);
        }
        Ok(puller)
    }

    /// Pulls an object from `peer` (`host:port`). Returns at once.
    ///
    /// `provide` is called with the object's length when that is known, and returns memory of just this length, or
    /// the reason why there is none. `complete` is called exactly once: with the memory, filled; or with the error,
    /// and the memory if it had been provided. Both run on one of the puller's threads and should not take long.
    ///
    /// ```
    /// use std::sync::{Arc, mpsc};
    /// use cluster_store::transfer::*;
    ///
    /// struct Source;
    /// impl ObjectSource for Source {
    ///     fn open(&self, _: Key) -> Opened {
    ///         Opened::Bytes(bytes::Bytes::from_static(b"value"))
    ///     }
    /// }
    /// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let server = DataServer::start(listener, b"token", Arc::new(Source), ServerConfig::default())?;
    /// let puller = Puller::start(b"token", PullerConfig::default())?;
    /// let (done, wait) = mpsc::channel();
    /// let peer = server.address().to_string();
    /// puller.pull(&peer, [1; 16], |len| Ok(vec![0; len as usize]), move |result| {
    ///     let _ = done.send(result);
    /// });
    /// assert_eq!(wait.recv()?.map_err(|failure| failure.error)?, b"value");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pull<D, P, C>(&self, peer: &str, key: Key, provide: P, complete: C)
    where
        D: AsMut<[u8]> + Send + 'static,
        P: FnOnce(u64) -> Result<D, String> + Send + 'static,
        C: FnOnce(Result<D, PullFailure<D>>) + Send + 'static,
    {
        let job = Box::new(Pull { key, provide: Some(provide), destination: None, complete });
        // Only dropping stops the pool, and nobody holds `self` then.
        self.shared.lock().add(peer.into(), job);
        self.shared.wake.notify_one();
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        let left = self.shared.lock().stop();
        self.shared.wake.notify_all();
        for (peer, job) in left {
            let (key, kind) = (job.key(), TransferErrorKind::Stopped);
            job.complete(Err(TransferError { peer: peer.to_string(), key, kind }));
        }
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // A completion may hold the last reference: then this is one of the workers.
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    /// The pool's methods leave it whole even if they panic.
    fn lock(&self) -> MutexGuard<'_, Pool<Box<dyn Job>>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(shared: &Shared) {
    let mut pool = shared.lock();
    loop {
        if let Some((peer, mut job)) = pool.begin() {
            drop(pool);
            let key = job.key();
            let (result, keep) = match run(shared, &peer, &mut *job) {
                Ok(stream) => (Ok(()), Some(stream)),
                Err((kind, keep)) => (Err(kind), keep),
            };
            let mut locked = shared.lock();
            let stopping = locked.stopping();
            locked.ended(&peer, keep);
            drop(locked);
            // The peer may have a turn again, and other workers may be asleep.
            shared.wake.notify_one();
            job.complete(result.map_err(|kind| {
                let kind = if stopping { TransferErrorKind::Stopped } else { kind };
                TransferError { peer: peer.to_string(), key, kind }
            }));
            pool = shared.lock();
        } else if pool.stopping() {
            return;
        } else {
            pool = shared.wake.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

type Stream = Arc<TcpStream>;

/// Runs one pull over a kept connection, or a new one. Returns the connection if it is good for another pull.
fn run(
    shared: &Shared,
    peer: &Arc<str>,
    job: &mut dyn Job,
) -> Result<Stream, (TransferErrorKind, Option<Stream>)> {
    loop {
        let kept = shared.lock().idle_connection(peer);
        let was_kept = kept.is_some();
        let stream = match kept {
            Some(stream) => stream,
            None => Arc::new(connect(peer, shared.config.connect_timeout).map_err(|kind| (kind, None))?),
        };
        let number = shared.lock().register(&stream).ok_or((TransferErrorKind::Stopped, None))?;
        let result = if was_kept { Ok(()) } else { greet(shared, &stream) }
            .and_then(|()| ask(shared, &stream, job.key()))
            .map_err(|kind| (kind, was_kept))
            .and_then(|len| receive(shared, &stream, job, len).map_err(|kind| (kind, false)));
        shared.lock().unregister(number);
        return match result {
            Ok(()) => Ok(stream),
            // The peer closed the connection while it was idle: nothing was lost, ask again on another.
            Err((TransferErrorKind::Broken { .. }, true)) => continue,
            Err((kind @ TransferErrorKind::Missing, _)) => Err((kind, Some(stream))),
            Err((kind, _)) => Err((kind, None)),
        };
    }
}

fn greet(shared: &Shared, stream: &TcpStream) -> Result<(), TransferErrorKind> {
    set_up(stream).map_err(TransferErrorKind::Connect)?;
    present_token(stream, &shared.token, shared.config.connect_timeout)?;
    stream.set_read_timeout(Some(shared.config.stall_timeout)).map_err(TransferErrorKind::Connect)?;
    stream.set_write_timeout(Some(shared.config.stall_timeout)).map_err(TransferErrorKind::Connect)
}

/// Asks for the object; returns its length.
fn ask(shared: &Shared, stream: &TcpStream, key: Key) -> Result<u64, TransferErrorKind> {
    let failed = |error| interrupted(shared, error, 0, 0);
    write_request(stream, Request::Get(key)).map_err(failed)?;
    let mut head = [0; wire::RESPONSE];
    let mut reader = stream;
    reader.read_exact(&mut head).map_err(failed)?;
    wire::read_response(head).ok_or(TransferErrorKind::Protocol)?.ok_or(TransferErrorKind::Missing)
}

fn receive(
    shared: &Shared,
    stream: &TcpStream,
    job: &mut dyn Job,
    len: u64,
) -> Result<(), TransferErrorKind> {
    let key = job.key();
    let memory = job.provide(len)?;
    let mut received = 0;
    while received < memory.len() {
        let end = memory.len().min(received + RECV_MAX);
        // WAITALL: one wake-up for many segments, which gains a fifth over loopback. It returns early, with what there
        // is, when the stall timeout passes.
        let part = &mut memory[received..end];
        match rustix::net::recv(stream, part, RecvFlags::WAITALL).map(|(_, n)| n).map_err(io::Error::from) {
            Ok(0) => {
                return Err(interrupted(shared, io::ErrorKind::UnexpectedEof.into(), received as u64, len));
            }
            Ok(n) => received += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(interrupted(shared, error, received as u64, len)),
        }
    }
    // If this cannot be sent, the peer may have given up on us, and reused the range while we were reading.
    write_request(stream, Request::Received(key)).map_err(|error| interrupted(shared, error, len, len))
}

fn interrupted(shared: &Shared, source: io::Error, received: u64, len: u64) -> TransferErrorKind {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            TransferErrorKind::Stalled { received, len, after: shared.config.stall_timeout }
        }
        _ => TransferErrorKind::Broken { received, len, source },
    }
}
