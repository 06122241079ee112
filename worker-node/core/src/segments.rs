//! Segments that clients write in: leased, given back, orphaned (rules P1 to P3).

use cluster_types::{ClientId, Failure, FailureKind, NodeToClient, SegmentId};

use crate::event::Effect;
use crate::memory::Want;
use crate::node::{Node, failure};
use crate::objects::Writer;

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) len: u64,
    /// `None`: the client that wrote it is gone.
    pub(crate) lessee: Option<ClientId>,
    pub(crate) file_backed: bool,
    /// `SegmentCreated` has come.
    pub(crate) made: bool,
    /// What the client asked for.
    pub(crate) asked: u64,
    /// Objects in it.
    pub(crate) objects: i64,
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
            self.tell_client(client, NodeToClient::NoMemory { bytes: asked, failure }, effects);
            return;
        }
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
        self.memory.wants.retain(|want| !matches!(want, Want::Lease { client: of, .. } if *of == client));
        self.make_room(effects);
    }
}
