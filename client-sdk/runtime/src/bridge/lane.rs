//! Parts of large values go past the socket pair, straight from who writes them to the bridge.
//!
//! What travels by the socket keeps its place after them: a part is in the lane before the message that says what the
//! value is comes into the socket, and the bridge empties the lane before it passes a frame on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::PIECE;
use crate::Interrupt;
use crate::shared::{eventfd, signal, unsignal};
use crate::waiting::poll;

/// No more bytes than this wait in the lane; what is sent meanwhile goes between them.
const AHEAD_MAX: usize = 4 << 20;

/// The client's end.
pub(crate) struct Lane {
    parts: mpsc::UnboundedSender<Bytes>,
    ahead: Arc<Ahead>,
}

/// The bridge's end.
pub(super) struct LaneEnd {
    parts: mpsc::UnboundedReceiver<Bytes>,
    ahead: Arc<Ahead>,
}

/// What is in the lane.
struct Ahead {
    bytes: AtomicUsize,
    /// Nobody takes anything out of it any more.
    closed: AtomicBool,
    /// Tells that something was taken out.
    taken: OwnedFd,
}

/// Why nothing can be sent.
pub(crate) enum LaneError {
    /// The bridge has ended.
    Closed,
    Interrupted,
}

pub(super) fn lane() -> std::io::Result<(Lane, LaneEnd)> {
    let ahead = Ahead { bytes: AtomicUsize::new(0), closed: AtomicBool::new(false), taken: eventfd()? };
    let ahead = Arc::new(ahead);
    let (sender, receiver) = mpsc::unbounded_channel();
    Ok((Lane { parts: sender, ahead: ahead.clone() }, LaneEnd { parts: receiver, ahead }))
}

impl Lane {
    /// Waits for room for one more part.
    pub(crate) fn wait_for_room(&self, interrupt: Interrupt<'_>) -> Result<(), LaneError> {
        loop {
            if self.ahead.closed.load(Ordering::Acquire) {
                return Err(LaneError::Closed);
            }
            if self.ahead.bytes.load(Ordering::Acquire) < AHEAD_MAX {
                return Ok(());
            }
            let mut fds = [PollFd::new(&self.ahead.taken, PollFlags::IN)];
            match poll(&mut fds, Some(Instant::now() + PIECE)) {
                // Another thread that waits may miss it, and looks again after a piece.
                Ok(true) => unsignal(&self.ahead.taken),
                Ok(false) | Err(Errno::INTR) => interrupt().map_err(|_| LaneError::Interrupted)?,
                Err(_) => {}
            }
        }
    }

    /// Appends a frame's payload.
    pub(crate) fn send(&self, part: Bytes) -> Result<(), LaneError> {
        self.ahead.bytes.fetch_add(part.len(), Ordering::AcqRel);
        self.parts.send(part).map_err(|_| LaneError::Closed)
    }
}

impl LaneEnd {
    /// The next part; waits for it. Never ends: it is the socket that tells that the client is gone.
    pub(super) async fn next(&mut self) -> Bytes {
        match self.parts.recv().await {
            Some(part) => self.took(part),
            None => std::future::pending().await,
        }
    }

    /// The next part, if there is one now.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        self.parts.try_recv().ok().map(|part| self.took(part))
    }

    fn took(&self, part: Bytes) -> Bytes {
        self.ahead.bytes.fetch_sub(part.len(), Ordering::AcqRel);
        signal(&self.ahead.taken);
        part
    }
}

impl Drop for LaneEnd {
    fn drop(&mut self) {
        self.ahead.closed.store(true, Ordering::Release);
        signal(&self.ahead.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_waits_until_something_is_taken_or_nobody_is_there() {
        let (lane, mut end) = lane().unwrap();
        let never = &mut || Ok(());
        while lane.ahead.bytes.load(Ordering::Relaxed) < AHEAD_MAX {
            assert!(lane.wait_for_room(never).is_ok());
            assert!(lane.send(vec![0; 1 << 20].into()).is_ok());
        }
        assert!(matches!(lane.wait_for_room(&mut || Err(crate::Interrupted)), Err(LaneError::Interrupted)));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| lane.wait_for_room(&mut || Ok(())));
            assert!(end.take().is_some());
            assert!(writer.join().unwrap().is_ok());
        });
        assert!(lane.send(vec![0; 1 << 20].into()).is_ok());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| lane.wait_for_room(&mut || Ok(())));
            drop(end);
            assert!(matches!(writer.join().unwrap(), Err(LaneError::Closed)));
        });
    }
}
