//! What both sides do with a socket, and the puller's errors.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::wire::{self, Refusal, Request};

/// An object's id in bytes.
pub type Key = [u8; 16];

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot pull object {} from {peer}: {kind}", hex(.key))]
pub struct TransferError {
    /// The peer, as it was given.
    pub peer: String,
    /// The object.
    pub key: Key,
    /// What happened.
    #[source]
    pub kind: TransferErrorKind,
}

/// What happened to a pull.
#[derive(Debug, thiserror::Error)]
pub enum TransferErrorKind {
    /// The peer cannot be reached.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The peer will not serve this node.
    #[error("{0}")]
    Refused(Refusal),
    /// The peer sent what no data port sends.
    #[error("it does not speak the data protocol")]
    Protocol,
    /// The peer does not have the object.
    #[error("it does not have the object")]
    Missing,
    /// No byte came for the stall timeout.
    #[error("no byte for {} s, after {received} of {len} bytes", after.as_secs_f32())]
    Stalled {
        /// Bytes that had come.
        received: u64,
        /// The object's length in bytes; 0 if not yet known.
        len: u64,
        /// The stall timeout.
        after: Duration,
    },
    /// The connection broke.
    #[error("the connection broke after {received} of {len} bytes")]
    Broken {
        /// Bytes that had come.
        received: u64,
        /// The object's length in bytes; 0 if not yet known.
        len: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no memory for the object here, or not of its length.
    #[error("no place for its {len} bytes: {reason}")]
    Destination {
        /// The object's length in bytes.
        len: u64,
        /// What the provider said.
        reason: String,
    },
    /// The puller was shut down.
    #[error("this node is shutting down")]
    Stopped,
}

fn hex(key: &Key) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Options of every data socket. The buffers' sizes are left to the kernel: setting them switches off its tuning, and
/// is capped at `net.core.rmem_max`, often 208 KiB, where tuning goes to 6 MiB and more.
pub(super) fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A peer whose machine is gone says nothing: noticed after one minute.
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    rustix::net::sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

/// Reads all of `buf` before `deadline`, however slowly it trickles in.
pub(super) fn read_exact_until(
    mut stream: &TcpStream,
    mut buf: &mut [u8],
    deadline: Instant,
) -> io::Result<()> {
    while !buf.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buf = &mut buf[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn connect(peer: &str, timeout: Duration) -> Result<TcpStream, TransferErrorKind> {
    let deadline = Instant::now() + timeout;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in peer.to_socket_addrs().map_err(TransferErrorKind::Connect)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(TransferErrorKind::Connect(last))
}

/// The client's half of the handshake.
pub(super) fn present_token(
    mut stream: &TcpStream,
    token: &[u8],
    timeout: Duration,
) -> Result<(), TransferErrorKind> {
    let broken = TransferErrorKind::Connect;
    let deadline = Instant::now() + timeout;
    stream.set_write_timeout(Some(timeout)).map_err(broken)?;
    // A busy server may have answered and closed already: its answer counts, not that the hello did not go.
    let written = stream.write_all(&wire::hello(token));
    let mut verdict = [0; wire::VERDICT];
    read_exact_until(stream, &mut verdict, deadline)
        .map_err(|error| broken(written.err().unwrap_or(error)))?;
    match wire::read_verdict(verdict) {
        None => Err(TransferErrorKind::Protocol),
        Some(Err(refusal)) => Err(TransferErrorKind::Refused(refusal)),
        Some(Ok(())) => Ok(()),
    }
}

/// Opens a connection to a peer's data port that is not about objects: see [`ObjectSource::tunnel`].
///
/// [`ObjectSource::tunnel`]: super::ObjectSource::tunnel
///
/// # Errors
/// The peer cannot be reached within the timeout, or refuses.
pub fn open_tunnel(peer: &str, token: &[u8], timeout: Duration) -> Result<TcpStream, TransferErrorKind> {
    let stream = connect(peer, timeout)?;
    set_up(&stream).map_err(TransferErrorKind::Connect)?;
    present_token(&stream, token, timeout)?;
    write_request(&stream, Request::Tunnel).map_err(TransferErrorKind::Connect)?;
    let unlimited = stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None));
    unlimited.map_err(TransferErrorKind::Connect)?;
    Ok(stream)
}

pub(super) fn write_request(mut stream: &TcpStream, request: Request) -> io::Result<()> {
    stream.write_all(&request.encode())
}
