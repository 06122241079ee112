//! What lies where in the store's memory: each object's range in its segment (rule P1), and which objects nobody sees
//! and could be moved to disk, the least recently used first (rule P4).

use std::collections::VecDeque;

use cluster_types::client_node::PutValue;
use cluster_types::{ClientId, Location, ObjectId, SegmentId};

use crate::event::Effect;
use crate::node::Node;
use crate::objects::{Memory, Writer};

/// Where values may begin in a segment.
const ALIGNMENT: u64 = 64;

/// So few turns of objects that are gone are not worth a look.
const TURNS_OF_NOTHING: usize = 64;

/// Objects that may be moved to disk, in the order in which they were last let go of. An object is in it once; one that
/// is used meanwhile is passed over, or moves to the end, when its turn comes. So a turn costs no look at the others.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    turns: VecDeque<(u64, ObjectId)>,
    /// Their writers still use them: their turn comes again with the next tick.
    pub(crate) refused: Vec<ObjectId>,
}

impl Idle {
    /// How many turns it keeps.
    pub(crate) fn len(&self) -> usize {
        self.turns.len() + self.refused.len()
    }
}

impl Node {
    /// Whether the client may say that a value of its own lies there.
    ///
    /// # Errors
    /// Why not, to be told to the client.
    pub(crate) fn check_place(&self, client: ClientId, at: Location) -> Result<(), String> {
        let segment = self
            .memory
            .segments
            .get(&at.segment)
            .filter(|known| known.lessee == Some(client) && known.made)
            .ok_or_else(|| format!("segment {} is not leased to it", at.segment.0))?;
        let end = at.offset.checked_add(at.len).filter(|end| *end <= segment.len && at.len > 0);
        let (Some(end), true) = (end, at.offset.is_multiple_of(ALIGNMENT)) else {
            return Err(format!(
                "{} bytes at {} are no range of segment {}, which has {} bytes",
                at.len, at.offset, at.segment.0, segment.len
            ));
        };
        match segment.objects.range(..end).next_back() {
            Some((offset, (len, other))) if offset + len > at.offset => {
                Err(format!("{} bytes at {} of segment {} lie over {other}", at.len, at.offset, at.segment.0))
            }
            _ => Ok(()),
        }
    }

    /// The same for a value wherever it is.
    ///
    /// # Errors
    /// As [`Node::check_place`].
    pub(crate) fn check_value(&self, client: ClientId, value: &PutValue) -> Result<(), String> {
        match value {
            PutValue::Stored(location) => self.check_place(client, *location),
            PutValue::Inline(_) => Ok(()),
        }
    }

    /// Notes where an object lies, which lay nowhere.
    pub(crate) fn lay(&mut self, object: ObjectId, memory: Memory) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        known.memory = Some(memory);
        let Location { segment, offset, len } = memory.location;
        self.memory.live += len;
        if let Some(segment) = self.memory.segments.get_mut(&segment) {
            segment.objects.insert(offset, (len, object));
        }
        self.let_go(object);
    }

    /// Takes an object out of memory; what becomes of its range is the caller's to say.
    pub(crate) fn lift(&mut self, object: ObjectId) -> Option<Memory> {
        let memory = self.objects.get_mut(&object)?.memory.take()?;
        self.unlist(memory.location);
        Some(memory)
    }

    /// Forgets a range of memory.
    pub(crate) fn unlist(&mut self, at: Location) {
        self.memory.live = self.memory.live.saturating_sub(at.len);
        if let Some(segment) = self.memory.segments.get_mut(&at.segment) {
            segment.objects.remove(&at.offset);
        }
    }

    /// Whether nothing lies in this segment.
    pub(crate) fn is_empty(&self, segment: SegmentId) -> bool {
        self.memory.segments.get(&segment).is_some_and(|known| known.objects.is_empty())
    }

    /// Gives back to the system what no object uses in a segment whose writer is gone.
    pub(crate) fn punch_gaps(&self, segment: SegmentId, effects: &mut Vec<Effect>) {
        let Some(known) = self.memory.segments.get(&segment) else { return };
        let mut from = 0;
        let ends = known.objects.iter().map(|(offset, (len, _))| (*offset, offset + len));
        for (offset, end) in ends.chain([(known.len, known.len)]) {
            if offset > from {
                effects.push(Effect::PunchHole(Location { segment, offset: from, len: offset - from }));
            }
            from = end;
        }
    }

    /// Objects in segments of this client, by where they lie.
    pub(crate) fn objects_in(&self, segments: &[SegmentId]) -> Vec<ObjectId> {
        segments
            .iter()
            .filter_map(|segment| self.memory.segments.get(segment))
            .flat_map(|known| known.objects.values().map(|(_, object)| *object))
            .collect()
    }

    /// Segments leased to this client, in order.
    pub(crate) fn leased_to(&self, client: ClientId) -> Vec<SegmentId> {
        let mut leased: Vec<SegmentId> = self
            .memory
            .segments
            .iter()
            .filter(|(_, known)| known.lessee == Some(client))
            .map(|(segment, _)| *segment)
            .collect();
        leased.sort_unstable();
        leased
    }

    // ---- who may go to disk ----

    /// Something that used the object does so no more: if nothing else does, it may go to disk.
    pub(crate) fn let_go(&mut self, object: ObjectId) {
        let Some(known) = self.objects.get_mut(&object).filter(|known| known.can_spill()) else { return };
        if !std::mem::replace(&mut known.idle, true) {
            self.memory.idle.turns.push_back((known.used, object));
            self.forget_turns();
        }
    }

    /// Forgets turns of objects that are gone, once these are the most: nothing else does while memory suffices.
    fn forget_turns(&mut self) {
        let turns = &mut self.memory.idle.turns;
        if turns.len() > 2 * self.objects.len() + TURNS_OF_NOTHING {
            turns.retain(|(_, object)| self.objects.get(object).is_some_and(|known| known.idle));
            // What a burst needed is given back.
            turns.shrink_to(2 * turns.len());
        }
    }

    /// It is the next to go, if it may go at all.
    pub(crate) fn comes_first(&mut self, object: ObjectId) {
        let Some(known) = self.objects.get_mut(&object).filter(|known| known.can_spill()) else { return };
        if !std::mem::replace(&mut known.idle, true) {
            self.memory.idle.turns.push_front((known.used, object));
        }
    }

    /// Its writer would not give it up: not again before the next tick.
    pub(crate) fn refused_to_go(&mut self, object: ObjectId) {
        if let Some(known) = self.objects.get_mut(&object).filter(|known| known.can_spill() && !known.idle) {
            known.idle = true;
            self.memory.idle.refused.push(object);
        }
    }

    /// Those come up again.
    pub(crate) fn ask_again(&mut self) {
        for object in std::mem::take(&mut self.memory.idle.refused) {
            if let Some(known) = self.objects.get_mut(&object) {
                known.idle = false;
            }
            self.let_go(object);
        }
    }

    /// The least recently used object that may go to disk.
    pub(crate) fn next_idle(&mut self) -> Option<ObjectId> {
        while let Some((used, object)) = self.memory.idle.turns.pop_front() {
            let Some(known) = self.objects.get_mut(&object) else { continue };
            known.idle = false;
            if known.used == used && known.can_spill() {
                return Some(object);
            }
            self.let_go(object);
        }
        None
    }

    pub(crate) fn writer_of(&self, object: ObjectId) -> Option<Writer> {
        Some(self.objects.get(&object)?.memory?.writer)
    }
}
