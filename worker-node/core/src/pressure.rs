//! What makes room when memory is short, one means after the other (rules P3, P4): writers give back what is wholly
//! free, least-recently-used objects that nobody sees go to disk and their writers give up the ranges, and when nothing
//! at all can go, a segment lies in a file and a person is told.

use cluster_types::{ClientId, Failure, NodeToClient, ObjectId, Span};

use crate::clients::Client;
use crate::event::Effect;
use crate::memory::{PAGE, Want, smallest_segment};
use crate::node::Node;
use crate::objects::Writer;

/// Bytes that leave memory in one step: no more than somebody may need, in writes that a disk likes.
const BATCH: u64 = 64 << 20;
/// Without progress for this long, a waiting lease lies in a file.
const PATIENCE: Span = Span::millis(500);

impl Node {
    /// Does the next thing that could make room; true if there is some at once.
    pub(crate) fn press(&mut self, effects: &mut Vec<Effect>) -> bool {
        let since = *self.memory.stuck_since.get_or_insert(self.now);
        let since = self.memory.refused_since.map_or(since, |refused| refused.min(since));
        if !std::mem::replace(&mut self.memory.recalled, true) {
            self.recall(effects);
        }
        self.recall_views(effects);
        let before = self.free_memory();
        if self.memory.leaving == 0 {
            self.give_up_written(effects);
        }
        self.write_next(effects);
        if self.free_memory() > before {
            return true;
        }
        if self.memory.leaving > 0 || self.memory.writing {
            return false;
        }
        if self.lend_less() {
            return self.press(effects);
        }
        self.now.since(since) >= PATIENCE && self.go_beyond(effects)
    }

    /// The next objects in turn leave memory, as far as they are on disk: as many as are needed, and a batch at most.
    fn give_up_written(&mut self, effects: &mut Vec<Effect>) {
        let mut bytes = 0;
        while bytes < BATCH
            && !self.has_room_for_first()
            && let Some(object) = self.next_idle()
        {
            if !self.is_on_disk(object) {
                self.comes_first(object);
                break;
            }
            bytes += self.bytes_in_memory(object);
            self.give_up(object, effects);
        }
    }

    /// Writes the next batch, unless one is written already, so that the disk works while writers fill what the batch
    /// before left to them. Its objects stay in memory until somebody needs the room.
    fn write_next(&mut self, effects: &mut Vec<Effect>) {
        if self.memory.writing {
            return;
        }
        let Some(first) = self.next_idle() else { return };
        self.comes_first(first);
        if self.is_on_disk(first) {
            return;
        }
        let (mut batch, mut written) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        while bytes < BATCH
            && let Some(object) = self.next_idle()
        {
            bytes += self.bytes_in_memory(object);
            let Some(known) = self.objects.get_mut(&object) else { continue };
            match known.memory {
                Some(memory) if !known.disk => {
                    known.spilling = true;
                    batch.push((object, memory.location));
                }
                _ => written.push(object),
            }
        }
        for object in written.into_iter().rev() {
            self.comes_first(object);
        }
        if !batch.is_empty() {
            self.memory.writing = true;
            effects.push(Effect::Spill { objects: batch });
        }
    }

    /// What the daemon itself wrote is free at once. (Writers are asked for a whole batch, since their answer takes a
    /// while.) A machine that has no memory needs all that can go.
    fn has_room_for_first(&self) -> bool {
        let needed = match self.memory.wants.front() {
            Some(Want::Lease { bytes, .. }) => smallest_segment(*bytes),
            Some(Want::Object(object)) => self.objects.get(object).map_or(0, |known| known.size),
            None => return false,
        };
        self.memory.refused_since.is_none() && self.free_memory() >= needed
    }

    fn is_on_disk(&self, object: ObjectId) -> bool {
        self.objects.get(&object).is_some_and(|known| known.disk)
    }

    fn bytes_in_memory(&self, object: ObjectId) -> u64 {
        self.objects.get(&object).and_then(|known| known.memory).map_or(0, |memory| memory.location.len)
    }

    /// Rule P4: nothing can go, so the first who waits gets memory that lies in a file, or beyond the limit. True if
    /// that serves somebody.
    fn go_beyond(&mut self, effects: &mut Vec<Effect>) -> bool {
        let Some(first) = self.memory.wants.pop_front() else { return self.admit_beyond(effects) };
        self.memory.stuck_since = None;
        match first {
            Want::Lease { client, bytes } => {
                self.create_segment(client, bytes.div_ceil(2 << 20) * (2 << 20), bytes, true, effects);
                if !std::mem::replace(&mut self.memory.told_full, true) {
                    let text = format!(
                        "the object store of node {} is full of objects in use: new values go to disk, slowly. Drop refs, or start the node with a larger --object-store-memory",
                        self.me()
                    );
                    self.tell_client(client, NodeToClient::Notice { text }, effects);
                }
            }
            // What a running task reads must come, or nothing would ever be let go of: beyond the limit, for once.
            Want::Object(object) => {
                if let Some(known) = self.objects.get_mut(&object) {
                    known.wanted = false;
                }
                self.begin(object, effects);
            }
        }
        true
    }

    pub(crate) fn recall(&mut self, effects: &mut Vec<Effect>) {
        let mut writers: Vec<ClientId> =
            self.memory.segments.values().filter_map(|segment| segment.lessee).collect();
        writers.sort_unstable();
        writers.dedup();
        for client in writers {
            if let Some(known) = self.clients.get_mut(&client) {
                known.told_more = false;
            }
            self.tell_client(client, NodeToClient::RecallMemory, effects);
        }
    }

    /// Clients remember where values lie that they have refs to, so that reading one again costs no message. They are
    /// asked to let go of those that they do not view.
    fn recall_views(&mut self, effects: &mut Vec<Effect>) {
        let told =
            |(id, known): (&ClientId, &mut Client)| std::mem::take(&mut known.told_more).then_some(*id);
        let mut readers: Vec<ClientId> = self.clients.iter_mut().filter_map(told).collect();
        readers.sort_unstable();
        for client in readers {
            self.tell_client(client, NodeToClient::RecallMemory, effects);
        }
    }

    pub(crate) fn spilled(&mut self, objects: Vec<ObjectId>, effects: &mut Vec<Effect>) {
        self.memory.writing = false;
        // They left the front of the queue, and go back there.
        for object in objects.into_iter().rev() {
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
            } else {
                self.comes_first(object);
            }
        }
        self.make_room(effects);
    }

    /// The memory of an object that is on disk too.
    pub(crate) fn give_up(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        let Some(memory) = known.memory else { return };
        if let Writer::Client(client) = memory.writer {
            known.evicting = true;
            self.memory.leaving += 1;
            if known.escaped {
                self.serve(object, effects);
            }
            self.tell_client(client, NodeToClient::Evict { object }, effects);
            return;
        }
        let escaped = known.escaped;
        self.lift(object);
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
        let asked = self.objects.get(&object).is_some_and(|known| known.evicting);
        if !asked || self.writer_of(object) != Some(Writer::Client(client)) {
            return;
        }
        // The writer has the range back already. If it was it that waited, it takes it, warm as it is, and does not
        // wait for another; else it may have a segment for others.
        let range = if freed { self.lift(object) } else { None };
        let serves = range.is_some_and(|range| self.takes_its_own(client, range.location.len));
        if serves {
            self.memory.wants.pop_front();
            self.memory.stuck_since = None;
        }
        self.settle_eviction(object, effects);
        if !serves {
            self.tell_client(client, NodeToClient::RecallMemory, effects);
        }
        self.make_room(effects);
    }

    /// Whether the client is the first who waits, and for no more than this.
    fn takes_its_own(&self, client: ClientId, len: u64) -> bool {
        matches!(self.memory.wants.front(), Some(Want::Lease { client: first, bytes })
            if *first == client && *bytes <= len.next_multiple_of(PAGE))
    }

    /// The writer answered, or is gone. If the object is in memory still, its writer would not give it up.
    pub(crate) fn settle_eviction(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        self.memory.leaving = self.memory.leaving.saturating_sub(1);
        let Some(known) = self.objects.get_mut(&object) else { return };
        known.evicting = false;
        if known.memory.is_some() && known.escaped && !known.freed {
            self.serve(object, effects);
        }
        self.refused_to_go(object);
        self.maybe_free(object, effects);
        match self.objects.get(&object) {
            Some(known) if known.is_here() => self.came(object, effects),
            Some(known) if !known.waiting_clients.is_empty() || !known.waiting_tasks.is_empty() => {
                self.bring(object, effects);
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
        self.memory.writing = false;
        for object in objects {
            if let Some(known) = self.objects.get_mut(&object) {
                known.spilling = false;
            }
            self.let_go(object);
            self.maybe_free(object, effects);
        }
        // It was written ahead: what others give up may do.
        if self.memory.leaving > 0 {
            return;
        }
        // Nothing else can make room: whoever waits is told. Attempts wait on, for those that run to end.
        for want in std::mem::take(&mut self.memory.wants) {
            match want {
                Want::Lease { client, bytes } => {
                    self.tell_client(
                        client,
                        NodeToClient::NoMemory { bytes, failure: failure.clone() },
                        effects,
                    );
                }
                Want::Object(object) => {
                    if let Some(known) = self.objects.get_mut(&object) {
                        known.wanted = false;
                    }
                    self.will_not_come(object, failure, effects);
                }
            }
        }
    }
}
