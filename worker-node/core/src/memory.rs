//! The account of the store's memory, and who waits for it. Who waits is served in order (rules P2, P4).

use std::collections::VecDeque;

use cluster_types::query::StoreUsage;
use cluster_types::{ClientId, FailureKind, Map, NodeId, ObjectId, SegmentId, Span, Time};

use crate::event::Effect;
use crate::node::{Node, failure};
use crate::objects::Fetch;
use crate::segments::Segment;

/// Segments are whole pages.
const PAGE: u64 = 4096;
/// A segment in which small objects fit too.
const SMALLEST: u64 = 512 << 10;
/// The largest segment for small values.
const GROWTH_MAX: u64 = 64 << 20;
/// Between two recalls of free memory that nobody waits for.
const RECALL_EVERY: Span = Span::secs(5);

/// Something that waits for bytes of memory, in the order it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Want {
    /// A client wants a segment in which `bytes` fit.
    Lease { client: ClientId, bytes: u64 },
    /// An object is to be copied here.
    Pull { object: ObjectId, size: u64, source: NodeId, address: String },
    /// An object is to be read from disk.
    Restore { object: ObjectId, size: u64 },
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
    /// Bytes on disk.
    pub(crate) spilled: u64,
    /// What waits for memory, oldest first.
    pub(crate) wants: VecDeque<Want>,
    /// Where objects under way come from.
    pub(crate) pulling: Map<ObjectId, NodeId>,
    /// Objects being written to disk or given up by their writers.
    pub(crate) leaving: u32,
    pub(crate) stuck_since: Option<Time>,
    pub(crate) next_recall: Time,
    pub(crate) recalled: bool,
    pub(crate) told_full: bool,
}

impl Memories {
    /// Counts an object in or out of a segment; says how many are left.
    pub(crate) fn holds(&mut self, segment: SegmentId, change: i64) -> i64 {
        self.segments.get_mut(&segment).map_or(-1, |known| {
            known.objects += change;
            known.objects
        })
    }

    /// In bytes; the daemon's own segments, which the edge makes and knows, count as zero.
    pub(crate) fn len_of(&self, segment: SegmentId) -> u64 {
        self.segments.get(&segment).map_or(0, |known| known.len)
    }
}

impl Node {
    pub(crate) fn store_usage(&self) -> StoreUsage {
        let live = self.objects.values().filter(|known| known.memory.is_some()).map(|known| known.size).sum();
        StoreUsage {
            capacity: self.config.store_capacity,
            reserved: self.memory.leased + self.memory.own,
            live,
            spilled: self.memory.spilled,
        }
    }

    /// Serves who waits for memory, in order, and makes room for the first who cannot be served.
    pub(crate) fn make_room(&mut self, effects: &mut Vec<Effect>) {
        while let Some(first) = self.memory.wants.front().cloned() {
            let free = self.config.store_capacity.saturating_sub(self.memory.leased + self.memory.own);
            match first {
                Want::Lease { client, bytes } => {
                    let Some(growth) = self.clients.get(&client).map(|known| known.growth) else {
                        self.memory.wants.pop_front();
                        continue;
                    };
                    let exact = bytes.div_ceil(2 << 20) * (2 << 20);
                    let len = if exact.max(growth) <= free {
                        exact.max(growth)
                    } else {
                        bytes.max(SMALLEST).div_ceil(PAGE) * PAGE
                    };
                    if len > free {
                        break;
                    }
                    self.memory.wants.pop_front();
                    if let Some(known) = self.clients.get_mut(&client) {
                        known.growth = (growth * 2).min(GROWTH_MAX);
                    }
                    self.create_segment(client, len, bytes, false, effects);
                }
                Want::Pull { object, size, source, ref address } => {
                    let wanted = self.objects.get(&object).is_some_and(|known| known.fetch == Fetch::Pulling);
                    if wanted && size > free && size <= self.config.store_capacity {
                        break;
                    }
                    self.memory.wants.pop_front();
                    if !wanted {
                        continue;
                    }
                    if size > self.config.store_capacity {
                        let message = format!(
                            "object {object} ({} MiB) does not fit the object store of node {}",
                            size >> 20,
                            self.me()
                        );
                        self.will_not_come(
                            object,
                            &failure(FailureKind::ObjectTooLarge, message, None),
                            effects,
                        );
                        continue;
                    }
                    self.memory.own += size;
                    self.memory.pulling.insert(object, source);
                    effects.push(Effect::Pull { object, size, source, address: address.clone() });
                }
                Want::Restore { object, size } => {
                    let wanted =
                        self.objects.get(&object).is_some_and(|known| known.fetch == Fetch::Restoring);
                    if wanted && size > free {
                        break;
                    }
                    self.memory.wants.pop_front();
                    if wanted {
                        self.memory.own += size;
                        effects.push(Effect::Restore { object });
                    }
                }
            }
            self.memory.stuck_since = None;
        }
        if !self.memory.wants.is_empty() {
            self.press(effects);
        }
    }

    /// Goes on where it was stuck; recalls memory that nobody needs.
    pub(crate) fn look_at_memory(&mut self, effects: &mut Vec<Effect>) {
        self.memory.recalled = false;
        if !self.memory.wants.is_empty() {
            self.make_room(effects);
        } else if self.now >= self.memory.next_recall {
            self.memory.next_recall = self.now + RECALL_EVERY;
            if self.memory.leased > self.config.store_capacity / 2 {
                self.recall(effects);
            }
        }
    }
}
