//! What waits to be sent to one node: bounded in bytes, so that a node that does not read cannot fill the head's
//! memory, and written without ever blocking (rule S7).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use cluster_proto::v1::HeadFrame;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_stream::Stream;
use tonic::Status;

/// The driver's end.
#[derive(Clone)]
pub(crate) struct Outbox {
    queue: Arc<Mutex<Queue>>,
    limit: usize,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<HeadFrame>,
    bytes: usize,
    /// Set once; sent after the frames.
    end: Option<Status>,
    ended: bool,
    reader: Option<Waker>,
}

/// The node reads too slowly.
#[derive(Debug, PartialEq)]
pub(crate) struct Full;

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self { queue: Arc::default(), limit }
    }

    /// Queues a frame; `Full` if more would wait than may.
    pub(crate) fn push(&self, frame: HeadFrame) -> Result<(), Full> {
        let mut queue = self.queue.lock();
        if queue.ended {
            return Ok(());
        }
        if queue.bytes + frame.payload.len() > self.limit {
            return Err(Full);
        }
        queue.bytes += frame.payload.len();
        queue.frames.push_back(frame);
        queue.wake();
        Ok(())
    }

    /// Ends the stream with this status after what is queued.
    pub(crate) fn end(&self, status: Status) {
        let mut queue = self.queue.lock();
        if !queue.ended {
            queue.ended = true;
            queue.end = Some(status);
        }
        queue.wake();
    }

    /// Ends the stream with this status at once; what is queued is dropped.
    pub(crate) fn cut(&self, status: Status) {
        {
            let mut queue = self.queue.lock();
            queue.frames.clear();
            queue.bytes = 0;
        }
        self.end(status);
    }
}

impl Queue {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// The stream that tonic sends from. It owns the task that reads the node's frames: when the connection is gone, both
/// end.
pub(crate) struct Outgoing {
    queue: Arc<Mutex<Queue>>,
    reader: AbortHandle,
}

impl Outgoing {
    pub(crate) fn new(outbox: &Outbox, reader: AbortHandle) -> Self {
        Self { queue: outbox.queue.clone(), reader }
    }
}

impl Stream for Outgoing {
    type Item = Result<HeadFrame, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = self.queue.lock();
        if let Some(frame) = queue.frames.pop_front() {
            queue.bytes -= frame.payload.len();
            return Poll::Ready(Some(Ok(frame)));
        }
        if queue.ended {
            return Poll::Ready(queue.end.take().map(Err));
        }
        queue.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    fn frame(seq: u64, len: usize) -> HeadFrame {
        HeadFrame { seq, payload: vec![0; len].into(), ..HeadFrame::default() }
    }

    #[tokio::test]
    async fn frames_come_in_order_then_the_status() {
        let outbox = Outbox::new(100);
        let mut outgoing = Outgoing::new(&outbox, tokio::spawn(async {}).abort_handle());
        outbox.push(frame(1, 60)).unwrap();
        assert_eq!(outbox.push(frame(2, 60)), Err(Full));
        assert_eq!(outgoing.next().await.unwrap().unwrap().seq, 1);
        outbox.push(frame(2, 60)).unwrap();
        outbox.end(Status::aborted("enough"));
        outbox.push(frame(3, 1)).unwrap();
        assert_eq!(outgoing.next().await.unwrap().unwrap().seq, 2);
        assert_eq!(outgoing.next().await.unwrap().unwrap_err().message(), "enough");
        assert!(outgoing.next().await.is_none());
    }

    #[tokio::test]
    async fn a_cut_drops_what_waits() {
        let outbox = Outbox::new(100);
        let mut outgoing = Outgoing::new(&outbox, tokio::spawn(async {}).abort_handle());
        outbox.push(frame(1, 60)).unwrap();
        outbox.cut(Status::resource_exhausted("too slow"));
        assert_eq!(outgoing.next().await.unwrap().unwrap_err().message(), "too slow");
    }
}
