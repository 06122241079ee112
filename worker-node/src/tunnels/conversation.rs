//! One end of a conversation between two nodes: numbered frames that survive their connection, and how long the end
//! waits for the other.
//!
//! ORDER-1 between nodes rests on these times: the callee's end gives up first, by a margin. The callers' end says
//! nothing on a connection that was silent for [`SILENCE`], begins no other later than [`RECONNECT_FOR`] after it last
//! heard of the callee, and drops one that is not open within [`ATTEMPT`]. So the callee's end has last heard of it 12 s
//! after that at the latest, gives up within 20 s, and the callers' end after 22 s.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cluster_proto::frame::write_frame;
use cluster_proto::stream::{Piece, StreamEnd};

/// A silent end says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A connection on which nothing came for so long is of no use.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// The callers' end connects anew for so long.
pub(crate) const RECONNECT_FOR: Duration = Duration::from_secs(10);
/// One attempt to connect.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(2);
/// The callee's end waits for so long …
const CALLEE_WAITS: Duration = Duration::from_secs(8);
/// … and the callers' for so long.
const CALLER_WAITS: Duration = Duration::from_secs(22);
/// Frames received beyond this many are acknowledged at once.
const ACKNOWLEDGE: u64 = 16;
/// Sent and not acknowledged frames beyond this many: the other end reads nothing.
const KEPT_MAX: usize = 100_000;
/// Number, acknowledgement, and whether the batch goes on.
const HEAD: usize = 17;

/// What it says, hears and waits for.
pub(crate) struct Conversation {
    pub(crate) number: u64,
    end: StreamEnd,
    heard: Instant,
    said: Instant,
    waits: Duration,
}

impl Conversation {
    pub(crate) fn new(number: u64, opened_here: bool, now: Instant) -> Conversation {
        let waits = if opened_here { CALLER_WAITS } else { CALLEE_WAITS };
        Conversation { number, end: StreamEnd::resumable(), heard: now, said: now, waits }
    }

    /// Appends the frames of a batch; kept until the other end has them.
    pub(crate) fn say(&mut self, batch: Bytes, now: Instant, out: &mut BytesMut) {
        self.said = now;
        for piece in self.end.send(batch) {
            put(&piece, out);
        }
    }

    /// A frame that came; the batch that it completes.
    ///
    /// # Errors
    /// In words. The connection is of no use.
    pub(crate) fn hear(&mut self, mut frame: Bytes, now: Instant) -> Result<Option<Bytes>, String> {
        if frame.len() < HEAD {
            return Err("it sent a frame that is too short".to_owned());
        }
        let (seq, ack, more) = (frame.get_u64_le(), frame.get_u64_le(), frame.get_u8() != 0);
        self.heard = now;
        let piece = Piece { seq, ack, payload: frame, more };
        if seq == 0 {
            // A mere acknowledgement repeats nothing.
            return self.end.receive(piece).map(|_| None).map_err(|error| error.to_string());
        }
        self.end.receive(piece).map_err(|error| error.to_string())
    }

    /// Appends an acknowledgement if one is due, or a sign of life.
    pub(crate) fn care(&mut self, now: Instant, out: &mut BytesMut) {
        let silent = now.saturating_duration_since(self.said) >= HEARTBEAT;
        if silent || self.end.unacknowledged_received() >= ACKNOWLEDGE {
            self.said = now;
            put(&self.end.acknowledgement(), out);
        }
    }

    /// A new connection: appends what the other end, which has everything up to `received`, must be sent again.
    pub(crate) fn resume(&mut self, received: u64, now: Instant, out: &mut BytesMut) {
        (self.heard, self.said) = (now, now);
        for piece in self.end.replay(received) {
            put(&piece, out);
        }
    }

    /// The last frame that came.
    pub(crate) fn received(&self) -> u64 {
        self.end.received()
    }

    /// For how long the other end was not heard of.
    pub(crate) fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// Nobody waits for the other end any longer.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.silent_for(now) > self.waits || self.end.unacknowledged_sent() > KEPT_MAX
    }
}

fn put(piece: &Piece, out: &mut BytesMut) {
    write_frame(out, |out| {
        out.put_u64_le(piece.seq);
        out.put_u64_le(piece.ack);
        out.put_u8(piece.more.into());
        out.extend_from_slice(&piece.payload);
    });
}

#[cfg(test)]
mod tests {
    use cluster_proto::frame::FrameReader;

    use super::*;

    fn frames(out: &mut BytesMut) -> Vec<Bytes> {
        let mut reader = FrameReader::default();
        std::mem::swap(reader.buffer(), out);
        std::iter::from_fn(|| reader.next_frame().unwrap()).collect()
    }

    #[test]
    fn what_a_broken_connection_lost_is_said_again_once() {
        let now = Instant::now();
        let (mut a, mut b) = (Conversation::new(1, true, now), Conversation::new(1, false, now));
        let mut out = BytesMut::new();
        for word in ["one", "two", "three"] {
            a.say(word.into(), now, &mut out);
        }
        let sent = frames(&mut out);
        assert_eq!(b.hear(sent[0].clone(), now), Ok(Some("one".into())));
        // The rest is lost with the connection.
        a.resume(b.received(), now, &mut out);
        let again: Vec<Option<Bytes>> =
            frames(&mut out).into_iter().map(|frame| b.hear(frame, now).unwrap()).collect();
        assert_eq!(again, [Some("two".into()), Some("three".into())]);
        assert_eq!(b.hear(sent[2].clone(), now), Ok(None), "said before");
        b.care(now + HEARTBEAT, &mut out);
        for frame in frames(&mut out) {
            assert_eq!(a.hear(frame, now), Ok(None));
        }
        a.resume(b.received(), now, &mut out);
        assert!(out.is_empty(), "everything was acknowledged");
        assert!(a.hear("short".into(), now).is_err());
    }

    #[test]
    fn many_frames_are_acknowledged_without_waiting() {
        let now = Instant::now();
        let (mut a, mut b) = (Conversation::new(1, true, now), Conversation::new(1, false, now));
        let mut out = BytesMut::new();
        for _ in 0..ACKNOWLEDGE {
            b.care(now, &mut out);
            assert!(out.is_empty());
            a.say("x".into(), now, &mut out);
            for frame in frames(&mut out) {
                b.hear(frame, now).unwrap();
            }
        }
        b.care(now, &mut out);
        assert_eq!(frames(&mut out).len(), 1);
    }

    #[test]
    fn the_callees_end_gives_up_first_by_a_margin() {
        let now = Instant::now();
        let (caller, mut callee) = (Conversation::new(1, true, now), Conversation::new(1, false, now));
        // The last that it can have heard.
        callee.resume(0, now + RECONNECT_FOR + ATTEMPT, &mut BytesMut::new());
        let over = now + RECONNECT_FOR + ATTEMPT + CALLEE_WAITS + Duration::from_millis(1);
        assert!(callee.is_over(over) && !caller.is_over(over));
        assert!(!caller.is_over(over + Duration::from_secs(1)));
        assert!(caller.is_over(now + CALLER_WAITS + Duration::from_millis(1)));
    }
}
