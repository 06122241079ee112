//! The account of the store's memory, and who waits for it. Who waits is served in order (rules P2, P4).

use std::collections::VecDeque;

use cluster_types::query::StoreUsage;
use cluster_types::{ClientId, FailureKind, Map, ObjectId, SegmentId, Span, TaskId, Time};

use crate::event::Effect;
use crate::node::{Node, failure};
use crate::objects::Fetch;
use crate::places::Idle;
use crate::segments::Segment;

/// Segments are whole pages.
pub(crate) const PAGE: u64 = 4096;
/// A segment in which small objects fit too.
const SMALLEST: u64 = 512 << 10;
/// The largest segment for small values.
const GROWTH_MAX: u64 = 64 << 20;
/// Between two tries to get memory that the machine did not have.
const RETRY_EVERY: Span = Span::millis(100);
/// Between two recalls of free memory that nobody waits for.
const RECALL_EVERY: Span = Span::secs(5);

/// The length of the smallest segment that a client gets who wants these bytes.
pub(crate) fn smallest_segment(bytes: u64) -> u64 {
    bytes.max(SMALLEST).next_multiple_of(PAGE)
}

/// Something that waits for bytes of memory, in the order it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Want {
    /// A client wants a segment in which `bytes` fit.
    Lease { client: ClientId, bytes: u64 },
    /// Clients wait for an object.
    Object(ObjectId),
}

/// The account of the store's memory.
#[derive(Debug, Default)]
pub(crate) struct Memories {
    pub(crate) segments: Map<SegmentId, Segment>,
    pub(crate) next_segment: u32,
    /// Bytes of segments in memory.
    pub(crate) leased: u64,
    /// Bytes of the daemon's own: pulled, restored, stored for remote clients.
    pub(crate) own: u64,
    /// Bytes of objects in memory.
    pub(crate) live: u64,
    pub(crate) idle: Idle,
    /// Bytes on disk.
    pub(crate) spilled: u64,
    /// What waits for memory, oldest first.
    pub(crate) wants: VecDeque<Want>,
    /// Attempts that wait for memory for all their arguments together, oldest first; they come after `wants` (rule P5).
    pub(crate) admissions: VecDeque<TaskId>,
    /// Bytes reserved for objects under way.
    pub(crate) arriving: Map<ObjectId, u64>,
    /// A batch of objects is being written to disk.
    pub(crate) writing: bool,
    /// Objects being given up by their writers.
    pub(crate) leaving: u32,
    pub(crate) stuck_since: Option<Time>,
    pub(crate) next_recall: Time,
    pub(crate) recalled: bool,
    pub(crate) told_full: bool,
    /// The machine had no memory though the account says there is: nothing is asked of it before.
    pub(crate) retry_at: Option<Time>,
    /// Since when, without a success between.
    pub(crate) refused_since: Option<Time>,
    /// Objects it had none for, since when.
    pub(crate) refused: Map<ObjectId, Time>,
    /// Who waits is being served.
    serving: bool,
}

impl Memories {
    /// The machine had no memory after all.
    pub(crate) fn refused_by_machine(&mut self, now: Time) {
        self.retry_at = Some(now + RETRY_EVERY);
        self.refused_since.get_or_insert(now);
    }

    fn is_awaited(&self) -> bool {
        !self.wants.is_empty() || !self.admissions.is_empty()
    }

    /// In bytes; the daemon's own segments, which the edge makes and knows, count as zero.
    pub(crate) fn len_of(&self, segment: SegmentId) -> u64 {
        self.segments.get(&segment).map_or(0, |known| known.len)
    }
}

impl Node {
    pub(crate) fn store_usage(&self) -> StoreUsage {
        StoreUsage {
            capacity: self.config.store_capacity,
            reserved: self.memory.leased + self.memory.own,
            live: self.memory.live,
            spilled: self.memory.spilled,
        }
    }

    /// Bytes that may still be given out.
    pub(crate) fn free_memory(&self) -> u64 {
        self.config.store_capacity.saturating_sub(self.memory.leased.saturating_add(self.memory.own))
    }

    /// Serves who waits for memory, in order, and makes room for the first who cannot be served.
    pub(crate) fn make_room(&mut self, effects: &mut Vec<Effect>) {
        // What is served may end up here again; the loop below goes on with it.
        if !self.memory.is_awaited() || std::mem::replace(&mut self.memory.serving, true) {
            return;
        }
        loop {
            let refused = self.memory.retry_at.is_some_and(|at| self.now < at);
            while !refused && self.serve_next(effects) {
                self.memory.stuck_since = None;
            }
            if !self.memory.is_awaited() || !self.press(effects) {
                break;
            }
        }
        self.memory.serving = false;
    }

    /// Serves the first who waits; false if there is no room for it, or nobody.
    fn serve_next(&mut self, effects: &mut Vec<Effect>) -> bool {
        let free = self.free_memory();
        match self.memory.wants.front() {
            None => return self.admit_next(effects),
            Some(Want::Lease { client, bytes }) => {
                let (client, bytes) = (*client, *bytes);
                let Some(known) = self.clients.get_mut(&client) else {
                    self.memory.wants.pop_front();
                    return true;
                };
                let wished = (bytes.div_ceil(2 << 20) * (2 << 20)).max(known.growth);
                let len = if wished <= free { wished } else { smallest_segment(bytes) };
                if len > free {
                    return false;
                }
                known.growth = (known.growth * 2).min(GROWTH_MAX);
                self.memory.wants.pop_front();
                self.create_segment(client, len, bytes, false, effects);
            }
            Some(Want::Object(object)) => {
                let object = *object;
                let size = self.objects.get(&object).filter(|known| known.waits_for_memory()).map(|o| o.size);
                if size.is_some_and(|size| size > free && size <= self.config.store_capacity) {
                    return false;
                }
                self.memory.wants.pop_front();
                if let Some(known) = self.objects.get_mut(&object) {
                    known.wanted = false;
                }
                if size.is_some_and(|size| size > free) {
                    let message = format!(
                        "object {object} ({} MiB) does not fit the object store of node {}",
                        size.unwrap_or(0) >> 20,
                        self.me()
                    );
                    let failure = failure(FailureKind::ObjectTooLarge, message, None);
                    self.will_not_come(object, &failure, effects);
                } else if size.is_some() {
                    self.begin(object, effects);
                }
            }
        }
        true
    }

    /// Starts to bring an object here, into memory that is reserved for it.
    pub(crate) fn begin(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) = self.objects.get_mut(&object).filter(|known| known.fetch == Fetch::Waiting) else {
            return;
        };
        let size = known.size;
        let effect = match (known.disk, &known.source) {
            (true, _) => Effect::Restore { object },
            (false, Some((source, address))) => {
                Effect::Pull { object, size, source: *source, address: address.clone() }
            }
            (false, None) => match known.written_by {
                Some(writer) => Effect::FetchDurable { object, size, writer },
                None => return,
            },
        };
        known.fetch = Fetch::Arriving;
        self.memory.own = self.memory.own.saturating_add(size);
        self.memory.arriving.insert(object, size);
        effects.push(effect);
    }

    /// Goes on where it was stuck; recalls memory that nobody needs.
    pub(crate) fn look_at_memory(&mut self, effects: &mut Vec<Effect>) {
        self.memory.recalled = false;
        self.ask_again();
        if self.memory.is_awaited() {
            self.make_room(effects);
        } else if self.now >= self.memory.next_recall {
            self.memory.next_recall = self.now + RECALL_EVERY;
            if self.memory.leased > self.config.store_capacity / 2 {
                self.recall(effects);
            }
        }
    }
}
