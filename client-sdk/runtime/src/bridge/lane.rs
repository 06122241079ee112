//! Parts of large values go past the socket pair, straight from who writes them to the bridge.
//!
//! What travels by the socket keeps its place after them: a part is in the lane before the message that says what the
//! value is comes into the socket, and the bridge empties the lane before it passes a frame on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::PIECE;
use crate::Interrupt;
use crate::shared::{eventfd, signal, unsignal};
use crate::waiting::poll;

/// No more bytes than this wait in the lane; what is sent meanwhile goes between them.
const AHEAD_MAX: usize = 4 << 20;

/// Buffers are kept for so long after the last part.
const KEEP_BUFFERS: Duration = Duration::from_secs(1);

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
    /// Buffers of parts that were acknowledged: memory fresh from the system would cost more than filling it.
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// A part in its buffer, which is used again when the part is acknowledged.
struct Part {
    bytes: Vec<u8>,
    ahead: Arc<Ahead>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        if !self.ahead.closed.load(Ordering::Acquire) {
            self.ahead.buffers.lock().push(bytes);
        }
    }
}

/// Why nothing can be sent.
pub(crate) enum LaneError {
    /// The bridge has ended.
    Closed,
    Interrupted,
}

pub(super) fn lane() -> std::io::Result<(Lane, LaneEnd)> {
    let ahead = Ahead {
        bytes: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        taken: eventfd()?,
        buffers: Mutex::default(),
    };
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

    /// Appends a frame, whose payload `fill` appends to an empty buffer.
    pub(crate) fn send(&self, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), LaneError> {
        let mut bytes = self.ahead.buffers.lock().pop().unwrap_or_default();
        fill(&mut bytes);
        self.ahead.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        let part = Bytes::from_owner(Part { bytes, ahead: self.ahead.clone() });
        self.parts.send(part).map_err(|_| LaneError::Closed)
    }
}

impl LaneEnd {
    /// The next part; waits for it. Never ends: it is the socket that tells that the client is gone.
    pub(super) async fn next(&mut self) -> Bytes {
        while self.has_buffers() {
            match timeout(KEEP_BUFFERS, self.parts.recv()).await {
                Ok(Some(part)) => return self.took(part),
                Ok(None) => break,
                Err(_) => self.drop_buffers(),
            }
        }
        match self.parts.recv().await {
            Some(part) => self.took(part),
            None => std::future::pending().await,
        }
    }

    /// The next part, if there is one now.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        self.parts.try_recv().ok().map(|part| self.took(part))
    }

    /// Here or with parts on their way, which refer to the same, as both ends of the lane do.
    fn has_buffers(&self) -> bool {
        Arc::strong_count(&self.ahead) > 2 || !self.ahead.buffers.lock().is_empty()
    }

    /// Gives the memory of buffers back.
    fn drop_buffers(&self) {
        self.ahead.buffers.lock().clear();
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
        self.drop_buffers();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_given_back() {
        let (lane, mut end) = lane().unwrap();
        assert!(lane.send(|part| part.resize(1 << 20, 1)).is_ok());
        let part = end.take().unwrap();
        let address = part.as_ptr();
        drop(part);
        assert!(lane.send(|part| part.resize(1 << 20, 2)).is_ok());
        let part = end.take().unwrap();
        assert!(part.as_ptr() == address && part.iter().all(|byte| *byte == 2));
        drop(part);
        end.drop_buffers();
        assert!(lane.ahead.buffers.lock().is_empty());
        assert!(lane.send(|part| part.push(3)).is_ok());
        let part = end.take().unwrap();
        drop(end);
        drop(part);
        assert!(lane.ahead.buffers.lock().is_empty(), "nobody would use them again");
    }

    #[test]
    fn who_writes_waits_until_something_is_taken_or_nobody_is_there() {
        let (lane, mut end) = lane().unwrap();
        let never = &mut || Ok(());
        while lane.ahead.bytes.load(Ordering::Relaxed) < AHEAD_MAX {
            assert!(lane.wait_for_room(never).is_ok());
            assert!(lane.send(|part| part.resize(1 << 20, 0)).is_ok());
        }
        assert!(matches!(lane.wait_for_room(&mut || Err(crate::Interrupted)), Err(LaneError::Interrupted)));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| lane.wait_for_room(&mut || Ok(())));
            assert!(end.take().is_some());
            assert!(writer.join().unwrap().is_ok());
        });
        assert!(lane.send(|part| part.resize(1 << 20, 0)).is_ok());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| lane.wait_for_room(&mut || Ok(())));
            drop(end);
            assert!(matches!(writer.join().unwrap(), Err(LaneError::Closed)));
        });
    }
}
