//! Memory of the store: segments leased to writers, what waits for room, and what makes room (rules P2 to P5).
//!
//! Who waits is served in order. Room is made, one means after the other: writers give back what is wholly free, then
//! least-recently-used objects that nobody sees go to disk and their writers give up the ranges; and when nothing at all
//! can go, a segment lies in a file instead of memory, and a person is told.

use cluster_types::query::StoreUsage;
use cluster_types::{
    ClientId, Failure, FailureKind, Location, Map, NodeId, NodeToClient, ObjectId, SegmentId, Span, Time,
};

use crate::event::Effect;
use crate::located::Known;
use crate::node::{Node, failure};
use crate::objects::{Fetch, Memory, Writer};

/// Bytes written to disk in one batch, at most.
const BATCH: u64 = 64 << 20;
/// Segments are whole pages.
const PAGE: u64 = 4096;
/// A segment in which small objects fit too.
const SMALLEST: u64 = 512 << 10;
/// The largest segment for small values.
const GROWTH_MAX: u64 = 64 << 20;
/// Between two recalls of free memory that nobody waits for.
const RECALL_EVERY: Span = Span::secs(5);
/// Without progress for this long, a waiting lease lies in a file.
const PATIENCE: Span = Span::millis(500);

/// A segment that the node made.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) len: u64,
    /// `None`: the client that wrote it is gone.
    pub(crate) lessee: Option<ClientId>,
    pub(crate) file_backed: bool,
    /// `SegmentCreated` has come.
    made: bool,
    /// What the client asked for.
    asked: u64,
    /// Objects in it.
    pub(crate) objects: i64,
}

/// The account of the store's memory.
#[derive(Debug, Default)]
pub(crate) struct Memories {
    pub(crate) segments: Map<SegmentId, Segment>,
    next_segment: u32,
    /// Bytes of segments in memory.
    pub(crate) leased: u64,
    /// Bytes of the daemon's own: pulled, restored, stored for remote clients.
    pub(crate) own: u64,
    /// Bytes on disk.
    pub(crate) spilled: u64,
    /// What waits for memory, oldest first.
    pub(crate) wants: std::collections::VecDeque<Known>,
    /// Where objects under way come from.
    pub(crate) pulling: Map<ObjectId, NodeId>,
    /// Objects being written to disk or given up by their writers.
    pub(crate) leaving: u32,
    stuck_since: Option<Time>,
    next_recall: Time,
    recalled: bool,
    told_full: bool,
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

    pub(crate) fn request_memory(&mut self, client: ClientId, bytes: u64, effects: &mut Vec<Effect>) {
        if bytes > self.config.store_capacity {
            let message = format!(
                "a value needs {:.1} MiB, and the object store of node {} holds {:.1} MiB at most: split the value, or start the node with a larger --object-store-memory",
                bytes as f64 / 1_048_576.0,
                self.me(),
                self.config.store_capacity as f64 / 1_048_576.0
            );
            let failure = failure(FailureKind::ObjectTooLarge, message, None);
            self.to_client(client, NodeToClient::NoMemory { bytes, failure }, effects);
            return;
        }
        self.memory.wants.push_back(Known::Lease { client, bytes });
        self.make_room(effects);
    }

    /// Serves who waits for memory, in order, and makes room for the first who cannot be served.
    pub(crate) fn make_room(&mut self, effects: &mut Vec<Effect>) {
        while let Some(first) = self.memory.wants.front().cloned() {
            let free = self.config.store_capacity.saturating_sub(self.memory.leased + self.memory.own);
            match first {
                Known::Lease { client, bytes } => {
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
                Known::Pull { object, size, source, ref address } => {
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
                Known::Restore { object, size } => {
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

    fn create_segment(
        &mut self,
        client: ClientId,
        len: u64,
        asked: u64,
        file_backed: bool,
        effects: &mut Vec<Effect>,
    ) {
        let segment = SegmentId(self.memory.next_segment);
        self.memory.next_segment += 1;
        if !file_backed {
            self.memory.leased += len;
        }
        self.memory.segments.insert(
            segment,
            Segment { len, lessee: Some(client), file_backed, made: false, asked, objects: 0 },
        );
        effects.push(Effect::CreateSegment { segment, len, file_backed });
    }

    pub(crate) fn segment_created(
        &mut self,
        segment: SegmentId,
        failure: Option<Failure>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.memory.segments.get_mut(&segment) else { return };
        known.made = true;
        let (client, len, asked) = (known.lessee, known.len, known.asked);
        let Some(client) = client.filter(|client| self.clients.contains_key(client)) else {
            self.drop_segment(segment, effects);
            return;
        };
        if let Some(failure) = failure {
            if !self.memory.segments[&segment].file_backed {
                self.memory.leased -= len;
            }
            self.memory.segments.remove(&segment);
            self.to_client(client, NodeToClient::NoMemory { bytes: asked, failure }, effects);
            return;
        }
        if let Some(known) = self.clients.get_mut(&client) {
            known.segments.insert(segment);
        }
        self.to_client(client, NodeToClient::Segment { segment, len, writable: true }, effects);
    }

    pub(crate) fn return_memory(
        &mut self,
        client: ClientId,
        segments: Vec<SegmentId>,
        effects: &mut Vec<Effect>,
    ) {
        for segment in segments {
            let own = self
                .memory
                .segments
                .get(&segment)
                .is_some_and(|known| known.lessee == Some(client) && known.objects <= 0);
            if own {
                if let Some(known) = self.clients.get_mut(&client) {
                    known.segments.remove(&segment);
                }
                self.drop_segment(segment, effects);
            }
        }
        self.make_room(effects);
    }

    pub(crate) fn drop_segment(&mut self, segment: SegmentId, effects: &mut Vec<Effect>) {
        let Some(gone) = self.memory.segments.remove(&segment) else { return };
        if !gone.file_backed {
            self.memory.leased -= gone.len;
        }
        for client in self.clients.values_mut() {
            client.segments.remove(&segment);
        }
        effects.push(Effect::DropSegment { segment });
    }

    /// A writer is gone: what it had not sealed is gone with it, what it had lies on until freed.
    pub(crate) fn orphan_memory(&mut self, client: ClientId, effects: &mut Vec<Effect>) {
        self.forget_unescaped_of(client, effects);
        let mut unsettled = Vec::new();
        for (id, known) in &mut self.objects {
            if let Some(memory) =
                known.memory.as_mut().filter(|memory| memory.writer == Writer::Client(client))
            {
                memory.writer = Writer::Orphan;
                if known.evicting {
                    unsettled.push(*id);
                }
            }
        }
        unsettled.sort_unstable();
        for object in unsettled {
            self.settle_eviction(client, object, false, effects);
        }
        let mut empty = Vec::new();
        for (id, segment) in &mut self.memory.segments {
            if segment.lessee == Some(client) {
                segment.lessee = None;
                if segment.objects <= 0 && segment.made {
                    empty.push(*id);
                }
            }
        }
        empty.sort_unstable();
        for segment in empty {
            self.drop_segment(segment, effects);
        }
        self.memory.wants.retain(|want| !matches!(want, Known::Lease { client: of, .. } if *of == client));
        self.make_room(effects);
    }

    // ---- making room ----

    fn press(&mut self, effects: &mut Vec<Effect>) {
        let since = *self.memory.stuck_since.get_or_insert(self.now);
        if !std::mem::replace(&mut self.memory.recalled, true) {
            self.recall(effects);
        }
        if self.memory.leaving > 0 {
            return;
        }
        let mut able: Vec<(u64, ObjectId)> = self
            .objects
            .iter()
            .filter(|(_, known)| known.can_spill())
            .map(|(id, known)| (known.used, *id))
            .collect();
        able.sort_unstable();
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (_, object) in able {
            let Some(known) = self.objects.get_mut(&object) else { continue };
            let Some(memory) = known.memory else { continue };
            if known.disk {
                self.give_up(object, effects);
                continue;
            }
            known.spilling = true;
            batch.push((object, memory.location));
            bytes += memory.location.len;
            if bytes >= BATCH {
                break;
            }
        }
        if !batch.is_empty() {
            self.memory.leaving += 1;
            effects.push(Effect::Spill { objects: batch });
            return;
        }
        if self.now.since(since) >= PATIENCE {
            self.fall_back_to_disk(effects);
        }
    }

    /// Rule P4: nothing can go, so the first who waits gets memory that lies in a file.
    fn fall_back_to_disk(&mut self, effects: &mut Vec<Effect>) {
        let Some(first) = self.memory.wants.pop_front() else { return };
        self.memory.stuck_since = None;
        let (client, bytes) = match first {
            Known::Lease { client, bytes } => (client, bytes),
            // What a running task reads must come, or nothing would ever be let go of: beyond the limit, for once.
            Known::Pull { object, size, source, address } => {
                self.memory.own += size;
                self.memory.pulling.insert(object, source);
                effects.push(Effect::Pull { object, size, source, address });
                return;
            }
            Known::Restore { object, size } => {
                self.memory.own += size;
                effects.push(Effect::Restore { object });
                return;
            }
        };
        self.create_segment(client, bytes.div_ceil(2 << 20) * (2 << 20), bytes, true, effects);
        if !std::mem::replace(&mut self.memory.told_full, true) {
            let text = format!(
                "the object store of node {} is full of objects in use: new values go to disk, slowly. Drop refs, or start the node with a larger --object-store-memory",
                self.me()
            );
            self.to_client(client, NodeToClient::Notice { text }, effects);
        }
        self.make_room(effects);
    }

    fn recall(&mut self, effects: &mut Vec<Effect>) {
        let mut writers: Vec<ClientId> =
            self.memory.segments.values().filter_map(|segment| segment.lessee).collect();
        writers.sort_unstable();
        writers.dedup();
        for client in writers {
            self.to_client(client, NodeToClient::RecallMemory, effects);
        }
    }

    pub(crate) fn spilled(&mut self, objects: Vec<ObjectId>, effects: &mut Vec<Effect>) {
        self.memory.leaving = self.memory.leaving.saturating_sub(1);
        for object in objects {
            let Some(known) = self.objects.get_mut(&object) else {
                // Dropped while it was being written.
                effects.push(Effect::DeleteSpilled { object });
                continue;
            };
            known.spilling = false;
            known.disk = true;
            self.memory.spilled += known.size;
            if known.freed {
                self.maybe_free(object, effects);
            } else if known.memory.is_some() && !known.is_busy() && known.pins == 0 {
                self.give_up(object, effects);
            }
        }
        self.make_room(effects);
    }

    /// The memory of an object that is on disk too.
    fn give_up(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        let Some(memory) = known.memory else { return };
        if let Writer::Client(client) = memory.writer {
            known.evicting = true;
            self.memory.leaving += 1;
            if known.escaped {
                self.serve(object, effects);
            }
            self.to_client(client, NodeToClient::Evict { object }, effects);
            return;
        }
        known.memory = None;
        let escaped = known.escaped;
        if escaped {
            self.serve(object, effects);
        }
        self.give_back(memory, effects);
    }

    pub(crate) fn evicted(
        &mut self,
        client: ClientId,
        object: ObjectId,
        freed: bool,
        effects: &mut Vec<Effect>,
    ) {
        if !self.objects.get(&object).is_some_and(|known| known.evicting) {
            return;
        }
        self.settle_eviction(client, object, freed, effects);
        self.to_client(client, NodeToClient::RecallMemory, effects);
        self.make_room(effects);
    }

    /// The writer answered, or is gone (`freed` false).
    fn settle_eviction(
        &mut self,
        client: ClientId,
        object: ObjectId,
        freed: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.memory.leaving = self.memory.leaving.saturating_sub(1);
        let Some(known) = self.objects.get_mut(&object) else { return };
        known.evicting = false;
        if freed && known.memory.is_some_and(|memory| memory.writer == Writer::Client(client)) {
            // The writer has the range back already.
            if let Some(memory) = known.memory.take() {
                self.memory.holds(memory.location.segment, -1);
            }
        } else if known.escaped && !known.freed {
            self.serve(object, effects);
        }
        self.maybe_free(object, effects);
        match self.objects.get(&object) {
            Some(known) if known.is_here() => self.came(object, effects),
            Some(known) if !known.waiting_clients.is_empty() || !known.waiting_tasks.is_empty() => {
                self.fetch(object, effects);
            }
            _ => {}
        }
    }

    pub(crate) fn spill_failed(
        &mut self,
        objects: Vec<ObjectId>,
        failure: &Failure,
        effects: &mut Vec<Effect>,
    ) {
        self.memory.leaving = self.memory.leaving.saturating_sub(1);
        for object in objects {
            if let Some(known) = self.objects.get_mut(&object) {
                known.spilling = false;
            }
            self.maybe_free(object, effects);
        }
        // Nothing else can make room: whoever waits is told, and others try again when something is freed.
        for want in std::mem::take(&mut self.memory.wants) {
            match want {
                Known::Lease { client, bytes } => {
                    self.to_client(
                        client,
                        NodeToClient::NoMemory { bytes, failure: failure.clone() },
                        effects,
                    );
                }
                Known::Pull { object, .. } | Known::Restore { object, .. } => {
                    self.will_not_come(object, failure, effects)
                }
            }
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

    /// What must hold between steps.
    pub(crate) fn audit_memory(&self) -> Result<(), String> {
        let leased: u64 = self
            .memory
            .segments
            .values()
            .filter(|segment| !segment.file_backed)
            .map(|segment| segment.len)
            .sum();
        if leased != self.memory.leased {
            return Err(format!("P2: {} bytes are leased, {} are counted", leased, self.memory.leased));
        }
        let mut ranges: Vec<(Location, ObjectId)> =
            self.objects.iter().filter_map(|(id, known)| Some((known.memory?.location, *id))).collect();
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            let (a, b) = (pair[0].0, pair[1].0);
            if a.segment == b.segment && a.offset + a.len > b.offset {
                return Err(format!("P1: {} and {} lie over each other: {a:?}, {b:?}", pair[0].1, pair[1].1));
            }
        }
        for (id, known) in &self.objects {
            if let Some(Memory { writer: Writer::Client(client), .. }) = known.memory {
                if !self.clients.contains_key(&client) {
                    return Err(format!("P1: {id} lies in memory of {client}, which is gone"));
                }
            }
        }
        Ok(())
    }
}
