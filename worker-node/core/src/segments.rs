//! Segments that clients write in: leased, given back, orphaned (rules P1 to P3).

use std::collections::BTreeMap;

use cluster_types::{ClientId, Failure, FailureKind, Location, NodeToClient, ObjectId, SegmentId};

use crate::event::Effect;
use crate::memory::Want;
use crate::node::{Node, failure};
use crate::objects::Writer;

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) len: u64,
    /// `None`: the client that wrote it is gone, or writes no more there.
    pub(crate) lessee: Option<ClientId>,
    pub(crate) file_backed: bool,
    /// `SegmentCreated` has come.
    pub(crate) made: bool,
    /// What the client asked for.
    pub(crate) asked: u64,
    /// Objects in it: where each begins, how long it is, which it is.
    pub(crate) objects: BTreeMap<u64, (u64, ObjectId)>,
}

impl Node {
    pub(crate) fn request_memory(&mut self, client: ClientId, bytes: u64, effects: &mut Vec<Effect>) {
        if bytes > self.config.store_capacity {
            let message = format!(
                "a value needs {:.1} MiB, and the object store of node {} holds {:.1} MiB at most: split the value, or start the node with a larger --object-store-memory",
                bytes as f64 / 1_048_576.0,
                self.me(),
                self.config.store_capacity as f64 / 1_048_576.0
            );
            let failure = failure(FailureKind::ObjectTooLarge, message, None);
            self.tell_client(client, NodeToClient::NoMemory { bytes, failure }, effects);
            return;
        }
        self.memory.wants.push_back(Want::Lease { client, bytes });
        self.make_room(effects);
    }

    pub(crate) fn create_segment(
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
            Segment { len, lessee: Some(client), file_backed, made: false, asked, objects: BTreeMap::new() },
        );
        let for_daemon = self.clients.get(&client).is_some_and(|known| !known.shares_memory);
        effects.push(Effect::CreateSegment { segment, len, file_backed, for_daemon });
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
            let Some(gone) = self.memory.segments.remove(&segment) else { return };
            if !gone.file_backed {
                // It waits until there is memory, or room is made, or it must lie in a file (rule P4).
                self.memory.leased -= len;
                self.memory.refused_by_machine(self.now);
                self.memory.wants.push_front(Want::Lease { client, bytes: asked });
                self.make_room(effects);
                return;
            }
            self.tell_client(client, NodeToClient::NoMemory { bytes: asked, failure }, effects);
            return;
        }
        self.memory.refused_since = None;
        if let Some(known) = self.clients.get_mut(&client) {
            known.segments.insert(segment);
        }
        self.tell_client(client, NodeToClient::Segment { segment, len, writable: true }, effects);
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
                .is_some_and(|known| known.lessee == Some(client) && known.objects.is_empty());
            if own {
                if let Some(known) = self.clients.get_mut(&client) {
                    known.segments.remove(&segment);
                }
                // Readers may keep it mapped for long; no object is in it, so its pages need not wait for them.
                let len = self.memory.len_of(segment);
                effects.push(Effect::PunchHole(Location { segment, offset: 0, len }));
                self.drop_segment(segment, effects);
            }
        }
        self.make_room(effects);
    }

    /// The client has written what it wanted the segment for, and writes no more there.
    pub(crate) fn end_lease(&mut self, client: ClientId, segment: SegmentId, effects: &mut Vec<Effect>) {
        if let Some(known) = self.memory.segments.get_mut(&segment) {
            known.lessee = None;
        }
        if let Some(known) = self.clients.get_mut(&client) {
            known.segments.remove(&segment);
        }
        self.punch_gaps(segment, effects);
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
        let leased = self.leased_to(client);
        let objects = self.objects_in(&leased);
        for segment in &leased {
            if let Some(known) = self.memory.segments.get_mut(segment) {
                known.lessee = None;
            }
            // What it had not sealed is gone with it.
            if !self.is_empty(*segment) {
                self.punch_gaps(*segment, effects);
            }
        }
        for object in objects {
            let Some(known) = self.objects.get_mut(&object) else { continue };
            if let Some(memory) = known.memory.as_mut() {
                memory.writer = Writer::Orphan;
            }
            if known.evicting {
                // It may have used the range again before it could say so; the object is on disk.
                if let Some(memory) = self.lift(object) {
                    effects.push(Effect::PunchHole(memory.location));
                }
                self.settle_eviction(object, effects);
            }
        }
        for segment in leased {
            // One that is being made is dropped when it is.
            if self.is_empty(segment) && self.memory.segments.get(&segment).is_some_and(|known| known.made) {
                self.drop_segment(segment, effects);
            }
        }
        self.memory.wants.retain(|want| !matches!(want, Want::Lease { client: of, .. } if *of == client));
        self.make_room(effects);
    }
}
