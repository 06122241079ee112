//! Numbered frames on a gRPC stream: batches above [`MAX_GRPC_PAYLOAD`] are cut, holes are noticed, and a resumable
//! stream keeps what the other end has not acknowledged (rule H2).

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::limits::{MAX_FRAME, MAX_GRPC_PAYLOAD};
use crate::{WireError, v1};

/// More frames than this, or …
const ACKNOWLEDGE_FRAMES: u64 = 16;
/// … more bytes, and an acknowledgement is owed.
const ACKNOWLEDGE_BYTES: usize = 1 << 20;

/// A frame's four fields, whichever of the generated types it came as.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Counts from 1; 0 for a hello or a mere acknowledgement.
    pub seq: u64,
    /// The last number received in the other direction.
    pub ack: u64,
    /// A batch, or a part of one.
    pub payload: Bytes,
    /// Whether the batch goes on in the next frame.
    pub more: bool,
}

macro_rules! piece_is {
    ($($wire:ident),*) => {$(
        impl From<v1::$wire> for Piece {
            fn from(frame: v1::$wire) -> Self {
                let v1::$wire { seq, ack, payload, more } = frame;
                Piece { seq, ack, payload, more }
            }
        }
        impl From<Piece> for v1::$wire {
            fn from(piece: Piece) -> Self {
                let Piece { seq, ack, payload, more } = piece;
                v1::$wire { seq, ack, payload, more }
            }
        }
    )*};
}
piece_is!(NodeFrame, HeadFrame);

impl From<v1::ClientFrame> for Piece {
    fn from(frame: v1::ClientFrame) -> Self {
        let v1::ClientFrame { seq, ack, payload, more, session: _ } = frame;
        Piece { seq, ack, payload, more }
    }
}

impl From<Piece> for v1::ClientFrame {
    fn from(piece: Piece) -> Self {
        let Piece { seq, ack, payload, more } = piece;
        v1::ClientFrame { seq, ack, payload, more, session: None }
    }
}

impl Piece {
    /// The first frame of a stream: not numbered.
    pub fn hello(payload: Bytes) -> Self {
        Piece { seq: 0, ack: 0, payload, more: false }
    }
}

/// One end of a stream of frames.
///
/// ```
/// use cluster_proto::stream::StreamEnd;
/// let (mut a, mut b) = (StreamEnd::once(), StreamEnd::once());
/// let batch = bytes::Bytes::from(vec![7; 3_000_000]);
/// let mut received = None;
/// for piece in a.send(batch.clone()) {
///     received = b.receive(piece).unwrap();
/// }
/// assert_eq!(received, Some(batch));
/// ```
#[derive(Debug, Default)]
pub struct StreamEnd {
    resumable: bool,
    sent: u64,
    received: u64,
    /// What we last acknowledged of `received`.
    acked: u64,
    /// Bytes received since.
    unacked_bytes: usize,
    /// Sent and not acknowledged; empty unless resumable.
    kept: VecDeque<Piece>,
    /// Bytes of what is kept.
    kept_bytes: usize,
    /// Pieces of the batch being received.
    partial: BytesMut,
}

impl StreamEnd {
    /// The end of a stream that dies with its connection: nothing is kept.
    pub fn once() -> Self {
        Self::default()
    }

    /// The end of a stream that survives a reconnect: what was sent is kept until acknowledged.
    pub fn resumable() -> Self {
        StreamEnd { resumable: true, ..Self::default() }
    }

    /// Cuts a batch and numbers its pieces.
    pub fn send(&mut self, mut batch: Bytes) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(batch.len() / MAX_GRPC_PAYLOAD + 1);
        loop {
            let payload = batch.split_to(batch.len().min(MAX_GRPC_PAYLOAD));
            let more = !batch.is_empty();
            pieces.push(self.send_piece(payload, more));
            if !more {
                return pieces;
            }
        }
    }

    /// Numbers a piece of a batch, of at most [`MAX_GRPC_PAYLOAD`] bytes; with `more` the next to be sent is of the same
    /// batch.
    pub fn send_piece(&mut self, payload: Bytes, more: bool) -> Piece {
        self.acked = self.received;
        self.unacked_bytes = 0;
        self.sent += 1;
        let piece = Piece { seq: self.sent, ack: self.received, payload, more };
        if self.resumable {
            self.kept_bytes += piece.payload.len();
            self.kept.push_back(piece.clone());
        }
        piece
    }

    /// Takes a frame of the other end; a batch if this frame completed one. Repeats are dropped.
    ///
    /// # Errors
    /// If a frame is missing or a batch is longer than [`MAX_FRAME`]. The stream is of no use any more.
    pub fn receive(&mut self, piece: Piece) -> Result<Option<Bytes>, WireError> {
        let Piece { seq, ack, payload, more } = piece;
        self.acknowledged(ack);
        if seq <= self.received {
            return Ok(None);
        }
        let expected = self.received + 1;
        if seq != expected {
            return Err(WireError::Gap { got: seq, expected });
        }
        self.received = seq;
        self.unacked_bytes += payload.len();
        let total = self.partial.len() + payload.len();
        if total > MAX_FRAME {
            return Err(WireError::FrameTooLong { announced: total as u64, limit: MAX_FRAME as u64 });
        }
        if self.partial.is_empty() && !more {
            return Ok(Some(payload));
        }
        self.partial.extend_from_slice(&payload);
        Ok((!more).then(|| std::mem::take(&mut self.partial).freeze()))
    }

    /// Frames received and not acknowledged by a frame of ours. A resumable stream that is silent in one direction
    /// sends [`StreamEnd::acknowledgement`] now and then, else the other end keeps everything.
    pub fn unacknowledged_received(&self) -> u64 {
        self.received - self.acked
    }

    /// Whether so much is not acknowledged that the other end should hear of it without waiting for a frame of ours.
    pub fn owes_acknowledgement(&self) -> bool {
        self.unacknowledged_received() >= ACKNOWLEDGE_FRAMES || self.unacked_bytes >= ACKNOWLEDGE_BYTES
    }

    /// A frame that only acknowledges.
    pub fn acknowledgement(&mut self) -> Piece {
        self.acked = self.received;
        self.unacked_bytes = 0;
        Piece { seq: 0, ack: self.acked, payload: Bytes::new(), more: false }
    }

    /// The last number received: what a resuming hello tells.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// After a reconnect: what the other end, which has everything up to `ack`, must be sent again, in order.
    pub fn replay(&mut self, ack: u64) -> impl Iterator<Item = Piece> + '_ {
        self.acknowledged(ack);
        self.kept.iter().cloned()
    }

    /// Frames sent and kept.
    pub fn unacknowledged_sent(&self) -> usize {
        self.kept.len()
    }

    /// Bytes of them.
    pub fn unacknowledged_bytes(&self) -> usize {
        self.kept_bytes
    }

    fn acknowledged(&mut self, ack: u64) {
        while let Some(piece) = self.kept.front().filter(|piece| piece.seq <= ack) {
            self.kept_bytes -= piece.payload.len();
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_stream_loses_and_repeats_nothing() {
        let (mut a, mut b) = (StreamEnd::resumable(), StreamEnd::resumable());
        let batches: Vec<Bytes> = vec!["one".into(), vec![1; 2_500_000].into(), "three".into()];
        let pieces: Vec<Piece> = batches.iter().flat_map(|batch| a.send(batch.clone())).collect();
        let mut seen: Vec<Bytes> = Vec::new();
        // The connection breaks in the middle of the second batch, after an acknowledgement of the first.
        for piece in &pieces[..3] {
            seen.extend(b.receive(piece.clone()).unwrap());
        }
        a.receive(Piece { ack: 1, ..Piece::hello(Bytes::new()) }).unwrap();
        assert_eq!(a.unacknowledged_sent(), 4);
        assert_eq!(a.unacknowledged_bytes(), 2_500_005);
        for piece in a.replay(2) {
            seen.extend(b.receive(piece).unwrap());
        }
        assert_eq!(seen, batches);
        a.receive(b.acknowledgement()).unwrap();
        assert_eq!((a.unacknowledged_sent(), a.unacknowledged_bytes()), (0, 0));
    }

    #[test]
    fn a_gap_and_an_endless_batch_are_errors() {
        let mut end = StreamEnd::once();
        let piece = |seq, len, more| Piece { seq, ack: 0, payload: vec![0; len].into(), more };
        assert_eq!(end.receive(piece(2, 1, false)), Err(WireError::Gap { got: 2, expected: 1 }));
        let mut seq = 0;
        let error = loop {
            seq += 1;
            match end.receive(piece(seq, MAX_GRPC_PAYLOAD, true)) {
                Ok(None) => assert!(seq <= 64),
                other => break other,
            }
        };
        assert!(matches!(error, Err(WireError::FrameTooLong { .. })));
    }
}
