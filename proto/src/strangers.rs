//! A listener that strangers cannot clog: a connection that has not shown the token soon is closed, and only so many may
//! be about to.
//!
//! Without this, connections that say nothing would hold descriptors of a daemon for as long as they like.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// What strangers are granted.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until they have shown the token.
    pub within: Duration,
    /// How many may be about to; one more, and the one that has been for longest is closed.
    pub at_once: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self { within: Duration::from_secs(10), at_once: 256 }
    }
}

/// The connections that a listener accepts.
pub struct Incoming {
    listener: TcpListener,
    patience: Patience,
    strangers: VecDeque<Stranger>,
    /// No descriptor was to be had: a little later there may be one.
    pause: Option<Pin<Box<Sleep>>>,
}

/// A connection that was a stranger's when it was looked at last.
struct Stranger {
    caller: Caller,
    /// Dropped when there are too many.
    leave: oneshot::Sender<()>,
}

/// Who is at the other end of a connection: among each request's extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its address, if the system knows it.
    pub remote: Option<SocketAddr>,
    /// The address of ours that it connected to.
    pub local: Option<SocketAddr>,
    known: Arc<AtomicBool>,
}

impl Caller {
    /// It has shown the token.
    pub fn is_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }
}

impl Incoming {
    /// What comes to this listener.
    pub fn new(listener: TcpListener, patience: Patience) -> Self {
        Self { listener, patience, strangers: VecDeque::new(), pause: None }
    }

    fn welcome(&mut self, stream: TcpStream) -> Connection {
        // A small message must not wait for the answer to the one before.
        let _ = stream.set_nodelay(true);
        let (remote, local) = (stream.peer_addr().ok(), stream.local_addr().ok());
        let caller = Caller { remote, local, known: Arc::default() };
        self.strangers
            .retain(|stranger| !stranger.leave.is_closed() && !stranger.caller.known.load(Ordering::Relaxed));
        if self.strangers.len() >= self.patience.at_once {
            self.strangers.pop_front();
        }
        let (leave, told_to) = oneshot::channel();
        self.strangers.push_back(Stranger { caller: caller.clone(), leave });
        let probation = Probation { told_to, until: Box::pin(sleep(self.patience.within)) };
        Connection { stream, caller, probation: Some(probation) }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok((stream, _)) => return Poll::Ready(Some(Ok(self.welcome(stream)))),
                // Out of descriptors, most likely; the connection stays in the backlog, so asking at once would spin.
                Err(_) => self.pause = Some(Box::pin(sleep(Duration::from_millis(50)))),
            }
        }
    }
}

/// A connection, closed unless it shows the token in time.
pub struct Connection {
    stream: TcpStream,
    caller: Caller,
    probation: Option<Probation>,
}

struct Probation {
    told_to: oneshot::Receiver<()>,
    until: Pin<Box<Sleep>>,
}

impl Connection {
    /// An error once a stranger's time is up.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(probation) = &mut self.probation else { return Ok(()) };
        if self.caller.known.load(Ordering::Relaxed) {
            self.probation = None;
            return Ok(());
        }
        let over = probation.until.as_mut().poll(context).is_ready()
            || Pin::new(&mut probation.told_to).poll(context).is_ready();
        // What it asked may be answered just now.
        if over && !self.caller.known.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a stranger did not show the token in time"));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    async fn incoming(patience: Patience) -> (Incoming, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Incoming::new(listener, patience), address)
    }

    #[tokio::test]
    async fn a_stranger_that_says_nothing_is_closed_and_one_that_shows_the_token_is_not() {
        let patience = Patience { within: Duration::from_millis(50), at_once: 10 };
        let (mut incoming, address) = incoming(patience).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut silent = incoming.next().await.unwrap().unwrap();
        let mut friend = TcpStream::connect(address).await.unwrap();
        let mut known = incoming.next().await.unwrap().unwrap();
        known.connect_info().is_known();
        let error = silent.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        friend.write_u8(7).await.unwrap();
        assert_eq!(known.read_u8().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn of_too_many_strangers_the_oldest_goes() {
        let patience = Patience { within: Duration::from_secs(60), at_once: 2 };
        let (mut incoming, address) = incoming(patience).await;
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..4 {
            theirs.push(TcpStream::connect(address).await.unwrap());
            ours.push(incoming.next().await.unwrap().unwrap());
            if ours.len() == 2 {
                ours[0].connect_info().is_known();
            }
        }
        // The first was no stranger when the fourth came.
        assert_eq!(ours[1].read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        for good in [0, 2, 3] {
            theirs[good].write_u8(1).await.unwrap();
            assert_eq!(ours[good].read_u8().await.unwrap(), 1);
        }
    }
}
