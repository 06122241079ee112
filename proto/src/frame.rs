//! Length-prefixed frames on a Unix socket: four bytes, little-endian, then the payload.

use bytes::{Buf, Bytes, BytesMut};

use crate::WireError;
use crate::limits::MAX_FRAME;

const PREFIX: usize = 4;

/// Frames above this get a buffer of their own, so that they are received without moving and do not stay in memory
/// with their small neighbours.
const OWN_BUFFER: usize = 64 << 10;

/// Appends one frame; `fill` appends its payload.
///
/// A payload above [`MAX_FRAME`] is the caller's mistake that the other end will refuse: see
/// [`crate::Codec::frame_client_messages`] and its like, which begin a new frame in time.
pub fn write_frame<R>(out: &mut BytesMut, fill: impl FnOnce(&mut BytesMut) -> R) -> R {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    let answer = fill(out);
    let len = u32::try_from(out.len() - start - PREFIX).unwrap_or(u32::MAX);
    out[start..start + PREFIX].copy_from_slice(&len.to_le_bytes());
    answer
}

/// Cuts received bytes into frames.
///
/// ```
/// use bytes::BytesMut;
/// use cluster_proto::frame::{FrameReader, write_frame};
/// let mut out = BytesMut::new();
/// write_frame(&mut out, |buf| buf.extend_from_slice(b"one"));
/// let mut reader = FrameReader::default();
/// reader.push(&out[..5]);
/// assert_eq!(reader.next_frame(), Ok(None));
/// reader.push(&out[5..]);
/// assert_eq!(reader.next_frame(), Ok(Some("one".into())));
/// ```
#[derive(Debug, Default)]
pub struct FrameReader {
    received: BytesMut,
}

impl FrameReader {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Where to receive into, without a copy: reserve, fill, then call [`FrameReader::next_frame`].
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.received
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// If a frame is announced that is longer than [`MAX_FRAME`]. The stream is of no use any more.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some(prefix) = self.received.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let announced = u32::from_le_bytes(*prefix);
        let len = announced as usize;
        if len > MAX_FRAME {
            return Err(WireError::FrameTooLong { announced: announced.into(), limit: MAX_FRAME as u64 });
        }
        if self.received.len() < PREFIX + len {
            if len > OWN_BUFFER {
                // Grows with what really comes, so that a prefix alone cannot make us allocate 64 MiB.
                let missing = PREFIX + len - self.received.len();
                self.received.reserve(missing.min(self.received.len().max(OWN_BUFFER)));
            }
            return Ok(None);
        }
        self.received.advance(PREFIX);
        Ok(Some(self.received.split_to(len).freeze()))
    }

    /// Bytes received that are no whole frame yet.
    pub fn pending(&self) -> usize {
        self.received.len()
    }
}

/// Cuts received bytes into pieces of frames, for who passes them on before they are whole.
#[derive(Debug)]
pub struct PieceReader {
    received: BytesMut,
    /// Bytes of the frame that has begun and is not passed on wholly; `None` between frames.
    left: Option<usize>,
    /// Pieces are no longer than this.
    max: usize,
}

impl PieceReader {
    /// Goes on where a reader of whole frames is.
    pub fn after(reader: FrameReader, max: usize) -> Self {
        PieceReader { received: reader.received, left: None, max }
    }

    /// Where to receive into, without a copy.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.received
    }

    /// The next piece, and whether its frame goes on: a whole frame, or as many bytes as a piece has. `None` until
    /// more bytes come.
    ///
    /// # Errors
    /// If a frame is announced that is longer than [`MAX_FRAME`]. The stream is of no use any more.
    pub fn next_piece(&mut self) -> Result<Option<(Bytes, bool)>, WireError> {
        let left = match self.left {
            Some(left) => left,
            None => {
                let Some(prefix) = self.received.first_chunk::<PREFIX>() else { return Ok(None) };
                let announced = u32::from_le_bytes(*prefix);
                if announced as usize > MAX_FRAME {
                    return Err(WireError::FrameTooLong {
                        announced: announced.into(),
                        limit: MAX_FRAME as u64,
                    });
                }
                self.received.advance(PREFIX);
                announced as usize
            }
        };
        let len = left.min(self.max);
        self.left = Some(left);
        if self.received.len() < len {
            self.received.reserve(len - self.received.len());
            return Ok(None);
        }
        self.left = (left > len).then_some(left - len);
        Ok(Some((self.received.split_to(len).freeze(), left > len)))
    }

    /// Whether a frame was passed on in part, so that nothing else may follow yet.
    pub fn is_within_frame(&self) -> bool {
        self.left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_announced_length_beyond_the_limit_is_refused_before_its_bytes_come() {
        let mut reader = FrameReader::default();
        reader.push(b"GET / HTTP/1.1\r\n");
        let error = reader.next_frame().unwrap_err();
        assert!(matches!(error, WireError::FrameTooLong { .. }), "{error}");
    }

    #[test]
    fn pieces_of_too_long_a_frame_are_refused() {
        let mut pieces = PieceReader::after(FrameReader::default(), 10);
        pieces.buffer().extend_from_slice(b"GET / HTTP/1.1\r\n");
        assert!(matches!(pieces.next_piece(), Err(WireError::FrameTooLong { .. })));
    }

    proptest! {
        #[test]
        fn frames_passed_on_in_pieces_are_the_same(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            received in 1usize..100,
            max in 1usize..120,
        ) {
            let mut out = BytesMut::new();
            for frame in &frames {
                write_frame(&mut out, |buf| buf.extend_from_slice(frame));
            }
            let mut pieces = PieceReader::after(FrameReader::default(), max);
            let (mut seen, mut begun) = (Vec::new(), Vec::new());
            for bytes in out.chunks(received) {
                pieces.buffer().extend_from_slice(bytes);
                while let Some((piece, more)) = pieces.next_piece().unwrap() {
                    prop_assert!(piece.len() <= max);
                    begun.extend_from_slice(&piece);
                    if !more {
                        seen.push(std::mem::take(&mut begun));
                    }
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(!pieces.is_within_frame());
        }

        #[test]
        fn frames_survive_any_cutting(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            piece in 1usize..100,
        ) {
            let mut out = BytesMut::new();
            for frame in &frames {
                write_frame(&mut out, |buf| buf.extend_from_slice(frame));
            }
            let mut reader = FrameReader::default();
            let mut seen = Vec::new();
            for bytes in out.chunks(piece) {
                reader.push(bytes);
                while let Some(frame) = reader.next_frame().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(reader.pending(), 0);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut reader = FrameReader::default();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next_frame() {}
        }
    }
}
