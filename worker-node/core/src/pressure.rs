//! What makes room when memory is short, one means after the other (rules P3, P4): writers give back what is wholly
//! free, least-recently-used objects that nobody sees go to disk and their writers give up the ranges, and when nothing
//! at all can go, a segment lies in a file and a person is told.

use cluster_types::{ClientId, Failure, NodeToClient, ObjectId, Span};

use crate::event::Effect;
use crate::memory::Want;
use crate::node::Node;
use crate::objects::Writer;

/// Bytes written to disk in one batch, at most.
const BATCH: u64 = 64 << 20;
/// Without progress for this long, a waiting lease lies in a file.
const PATIENCE: Span = Span::millis(500);

impl Node {
    pub(crate) fn press(&mut self, effects: &mut Vec<Effect>) {
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
    pub(crate) fn fall_back_to_disk(&mut self, effects: &mut Vec<Effect>) {
        let Some(first) = self.memory.wants.pop_front() else { return };
        self.memory.stuck_since = None;
        let (client, bytes) = match first {
            Want::Lease { client, bytes } => (client, bytes),
            // What a running task reads must come, or nothing would ever be let go of: beyond the limit, for once.
            Want::Pull { object, size, source, address } => {
                self.memory.own += size;
                self.memory.pulling.insert(object, source);
                effects.push(Effect::Pull { object, size, source, address });
                return;
            }
            Want::Restore { object, size } => {
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
            self.tell_client(client, NodeToClient::Notice { text }, effects);
        }
        self.make_room(effects);
    }

    pub(crate) fn recall(&mut self, effects: &mut Vec<Effect>) {
        let mut writers: Vec<ClientId> =
            self.memory.segments.values().filter_map(|segment| segment.lessee).collect();
        writers.sort_unstable();
        writers.dedup();
        for client in writers {
            self.tell_client(client, NodeToClient::RecallMemory, effects);
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
        self.tell_client(client, NodeToClient::RecallMemory, effects);
        self.make_room(effects);
    }

    /// The writer answered, or is gone (`freed` false).
    pub(crate) fn settle_eviction(
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
                Want::Lease { client, bytes } => {
                    self.tell_client(
                        client,
                        NodeToClient::NoMemory { bytes, failure: failure.clone() },
                        effects,
                    );
                }
                Want::Pull { object, .. } | Want::Restore { object, .. } => {
                    self.will_not_come(object, failure, effects)
                }
            }
        }
    }
}
