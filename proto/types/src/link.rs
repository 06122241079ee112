//! A stream that survives a reconnect: frames are numbered, kept until acknowledged, replayed after the last
//! acknowledgement, and accepted once (rule H2, first sentence).

use std::collections::VecDeque;

use bytes::Bytes;

/// A numbered piece of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Counts from 1.
    pub seq: u64,
    /// The last number received in the other direction.
    pub ack: u64,
    /// Encoded messages.
    pub payload: Bytes,
}

/// One end of such a stream.
///
/// ```
/// use cluster_types::link::Link;
/// let (mut a, mut b) = (Link::default(), Link::default());
/// let frame = a.send("hello".into());
/// assert!(b.receive(&frame));
/// assert!(!b.receive(&frame), "a replay is accepted once");
/// let answer = b.send("yes".into());
/// a.receive(&answer);
/// assert_eq!(a.unacknowledged(), 0);
/// ```
#[derive(Debug, Default)]
pub struct Link {
    sent: u64,
    received: u64,
    kept: VecDeque<Frame>,
}

impl Link {
    /// Numbers a payload and keeps it until it is acknowledged.
    pub fn send(&mut self, payload: Bytes) -> Frame {
        self.sent += 1;
        let frame = Frame { seq: self.sent, ack: self.received, payload };
        self.kept.push_back(frame.clone());
        frame
    }

    /// Notes a frame of the other end; false if it is a repeat (drop it) or leaves a gap (the stream is broken).
    pub fn receive(&mut self, frame: &Frame) -> bool {
        self.acknowledged(frame.ack);
        if frame.seq != self.received + 1 {
            return false;
        }
        self.received = frame.seq;
        true
    }

    /// The other end has everything up to `ack`.
    pub fn acknowledged(&mut self, ack: u64) {
        while self.kept.front().is_some_and(|frame| frame.seq <= ack) {
            self.kept.pop_front();
        }
    }

    /// What to send again after a reconnect, in order.
    pub fn replay(&self) -> impl Iterator<Item = &Frame> {
        self.kept.iter()
    }

    /// The last number received.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Frames kept.
    pub fn unacknowledged(&self) -> usize {
        self.kept.len()
    }
}
