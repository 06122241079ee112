//! Large values of a process that shares no memory with its daemon: they travel in parts. One that is put is written
//! into a segment that the daemon lends for it, one that is read is gathered here.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster_proto::Codec;
use cluster_types::{ClientToNode, Failure, FailureKind, Location, Map, ObjectId, PART, SegmentId, Value};

use crate::bridge::LaneError;
use crate::shared::{Inner, Shared};
use crate::waiting::{For, Manner, Step};
use crate::{ClientError, Interrupt};

/// What a connection that has ended said last is heard within this.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(5);

/// Memory of the daemon's for one value. Dropped unsealed, it is given back.
pub(crate) struct FarRange {
    shared: Arc<Shared>,
    place: Option<Location>,
}

impl fmt::Debug for FarRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FarRange").field(&self.place).finish()
    }
}

impl FarRange {
    pub(crate) fn len(&self) -> usize {
        self.place.map_or(0, |place| place.len as usize)
    }

    /// Sends bytes of the value, as fast as the connection takes them.
    ///
    /// # Errors
    /// If it takes none any more, or the wait was interrupted.
    pub(crate) fn write(&self, at: usize, bytes: &[u8], interrupt: Interrupt<'_>) -> Result<(), ClientError> {
        let (Some(Location { segment, offset, .. }), Some(lane)) = (self.place, &self.shared.lane) else {
            return Ok(());
        };
        let mut offset = offset + at as u64;
        for part in bytes.chunks(PART) {
            let sent = lane.wait_for_room(interrupt);
            sent.and_then(|()| lane.send(|out| Codec::encode_write(segment, offset, part, out))).map_err(
                |error| match error {
                    LaneError::Interrupted => ClientError::Interrupted,
                    LaneError::Closed => self.shared.why_lost(interrupt),
                },
            )?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// It is written, and is going to be put.
    pub(crate) fn seal(mut self) -> Location {
        self.place.take().unwrap_or(Location { segment: SegmentId(0), offset: 0, len: 0 })
    }
}

impl Drop for FarRange {
    fn drop(&mut self) {
        let Some(place) = self.place.take().filter(|_| !self.shared.is_forked()) else { return };
        let mut inner = self.shared.lock();
        if inner.lost.is_none() {
            inner.core.push(ClientToNode::ReturnMemory(vec![place.segment]));
            self.shared.after_change(inner);
        }
    }
}

impl Shared {
    /// The bridge has ended: what it said last is still to be read.
    fn why_lost(&self, interrupt: Interrupt<'_>) -> ClientError {
        let manner = Manner::until(Some(Instant::now() + LAST_WORDS_WITHIN));
        let wait =
            self.wait_until(manner, interrupt, |_| Ok(Step::<Infallible>::Wait(For::Progress(u64::MAX))));
        match wait {
            Ok(never) => match never {},
            Err(ClientError::TimedOut) => ClientError::ConnectionLost(format!(
                "the connection to the daemon at {} has ended",
                self.place
            )),
            Err(error) => error,
        }
    }
    /// Memory of the daemon's; waits until it has some.
    pub(crate) fn borrow_far(
        self: &Arc<Self>,
        len: usize,
        interrupt: Interrupt<'_>,
    ) -> Result<FarRange, ClientError> {
        let len = len as u64;
        self.claim(len, interrupt, || {
            let segment = self.lock().far.take_segment(len)?;
            Some(FarRange { shared: self.clone(), place: Some(Location { segment, offset: 0, len }) })
        })
    }
}

/// What a process without shared memory keeps of values under way.
#[derive(Default)]
pub(crate) struct Far {
    /// Segments lent and not taken, with their lengths.
    lent: Vec<(SegmentId, u64)>,
    /// Values of which a part has come.
    coming: Map<ObjectId, Vec<u8>>,
}

impl Far {
    pub(crate) fn was_lent(&mut self, segment: SegmentId, len: u64) {
        self.lent.push((segment, len));
    }

    /// The smallest in which so many bytes fit.
    fn take_segment(&mut self, len: u64) -> Option<SegmentId> {
        let fitting = self.lent.iter().enumerate().filter(|(_, (_, has))| *has >= len);
        let (at, _) = fitting.min_by_key(|(_, (_, has))| *has)?;
        Some(self.lent.swap_remove(at).0)
    }

    /// Those that nobody took, because who asked has given up.
    pub(crate) fn take_unused(&mut self) -> Vec<SegmentId> {
        self.lent.drain(..).map(|(segment, _)| segment).collect()
    }

    /// A part of a value has come; the value, if it was the last. Parts of a second telling are passed over.
    pub(crate) fn take_part(
        &mut self,
        object: ObjectId,
        offset: u64,
        len: u64,
        bytes: &[u8],
    ) -> Option<Value> {
        if offset == 0 && !self.coming.contains_key(&object) {
            let mut room = Vec::new();
            if room.try_reserve_exact(usize::try_from(len).unwrap_or(usize::MAX)).is_err() {
                return Some(Value::Failed(too_large(object, len)));
            }
            self.coming.insert(object, room);
        }
        let coming = self.coming.get_mut(&object).filter(|coming| coming.len() as u64 == offset)?;
        coming.extend_from_slice(bytes);
        if (coming.len() as u64) < len {
            return None;
        }
        self.coming.remove(&object).map(|whole| Value::Inline(whole.into()))
    }

    /// The daemon said otherwise what became of it.
    pub(crate) fn forget(&mut self, object: ObjectId) {
        self.coming.remove(&object);
    }
}

impl Inner {
    /// The daemon's memory is short.
    pub(crate) fn return_far(&mut self) {
        let unused = self.far.take_unused();
        if !unused.is_empty() {
            self.core.push(ClientToNode::ReturnMemory(unused));
        }
    }
}

fn too_large(object: ObjectId, len: u64) -> Failure {
    Failure {
        kind: FailureKind::ObjectTooLarge,
        message: format!(
            "object {object} has {len} bytes, and this process cannot have so much memory: read smaller pieces, or raise \
             its limits (ulimit -v)"
        )
        .into(),
        payload: Bytes::new(),
        task: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_types::ClientId;

    fn object(seq: u64) -> ObjectId {
        ObjectId::put(ClientId(1), seq)
    }

    #[test]
    fn parts_of_several_values_become_whole() {
        let mut far = Far::default();
        assert_eq!(far.take_part(object(1), 0, 4, b"ab"), None);
        assert_eq!(far.take_part(object(2), 0, 3, b"xyz"), Some(Value::Inline("xyz".into())));
        assert_eq!(far.take_part(object(1), 2, 4, b"cd"), Some(Value::Inline("abcd".into())));
        assert!(far.coming.is_empty());
    }

    #[test]
    fn a_second_telling_changes_nothing() {
        let mut far = Far::default();
        assert_eq!(far.take_part(object(1), 0, 4, b"ab"), None);
        assert_eq!(far.take_part(object(1), 0, 4, b"ab"), None);
        assert_eq!(far.take_part(object(1), 2, 4, b"cd"), Some(Value::Inline("abcd".into())));
        assert_eq!(far.take_part(object(1), 2, 4, b"cd"), None);
        assert!(far.coming.is_empty());
    }

    #[test]
    fn a_value_too_large_for_this_process_fails_and_its_parts_are_passed_over() {
        let mut far = Far::default();
        let Some(Value::Failed(failure)) = far.take_part(object(1), 0, u64::MAX, b"ab") else { panic!() };
        assert!(failure.message.contains("cannot have so much memory"), "{}", failure.message);
        assert_eq!(far.take_part(object(1), 2, u64::MAX, b"cd"), None);
        assert!(far.coming.is_empty());
    }

    #[test]
    fn each_takes_the_smallest_segment_that_will_do() {
        let mut far = Far::default();
        far.was_lent(SegmentId(1), 300);
        far.was_lent(SegmentId(2), 100);
        assert_eq!(far.take_segment(400), None);
        assert_eq!(far.take_segment(80), Some(SegmentId(2)));
        assert_eq!(far.take_segment(80), Some(SegmentId(1)));
        assert_eq!(far.take_unused(), []);
    }
}
