//! Which objects have a copy in durable storage: who wrote it, and who deletes it when nobody can reach the object.

use cluster_types::kept::KeptDurable;
use cluster_types::{HeadToNode, NodeId, ObjectId};

use crate::event::{Effect, Record};
use crate::head::Head;
use crate::objects::ObjectValue;
use crate::slab::{NodeIx, ObjectIx};

/// Copies to delete that are remembered while there is no node: more stay in storage.
const DELETED_LATER: usize = 100_000;

impl Head {
    /// A result is here that its node wrote before it reported it.
    pub(crate) fn set_durable(&mut self, ix: ObjectIx, home: NodeIx) {
        let Some(writer) = self.nodes.get(home).map(|node| node.id) else { return };
        self.set_writer(ix, writer);
    }

    fn set_writer(&mut self, ix: ObjectIx, writer: NodeId) {
        let Some(object) = self.objects.get_mut(ix) else { return };
        let id = object.id;
        let more = object.more_mut();
        more.durable_lost = None;
        // What was there before is another attempt's, and counts no more (rule R7).
        let before = more.durable.replace(writer);
        let contains = more.contains.clone();
        let size = match object.value {
            ObjectValue::Available { size, .. } => size,
            _ => 0,
        };
        if before != Some(writer) {
            let kept = KeptDurable { object: id, writer, size, contains };
            self.out.push(Effect::Persist(Record::DurableKept(kept)));
        }
        if let Some(old) = before.filter(|old| *old != writer) {
            self.to_delete.entry(old).or_default().push(id);
        }
    }

    /// A copy of which the head before this one knew. Nobody else may: its nodes may all be gone.
    pub(crate) fn restore_durable(&mut self, kept: KeptDurable) {
        let KeptDurable { object: id, writer, size, contains } = kept;
        let ix = self.objects.find_or_insert(id, || ObjectValue::Unknown);
        if matches!(self.objects.get(ix).map(|object| &object.value), Some(ObjectValue::Unknown)) {
            for inner in &contains {
                self.add_container(*inner);
            }
            self.objects.set_available(ix, size, None, None);
            if let Some(object) = self.objects.get_mut(ix) {
                object.more_mut().contains = contains;
            }
        }
        if let Some(object) = self.objects.get_mut(ix) {
            object.more_mut().durable = Some(writer);
        }
    }

    /// A result that nobody needs was written.
    pub(crate) fn spare_durable(&mut self, home: NodeIx, id: ObjectId) {
        let Some(writer) = self.nodes.get(home).map(|node| node.id) else { return };
        if self.objects.by_id(id).is_none_or(|object| object.durable() != Some(writer)) {
            self.to_delete.entry(writer).or_default().push(id);
        }
    }

    /// A node wrote a copy, or says again that it had.
    pub(crate) fn written_durably(&mut self, id: ObjectId, writer: NodeId) {
        let ix = self.objects.find(id).filter(|ix| {
            let object = self.objects.get(*ix);
            object.is_some_and(|object| matches!(object.value, ObjectValue::Available { .. }))
        });
        match ix {
            Some(ix) => self.set_writer(ix, writer),
            None => self.to_delete.entry(writer).or_default().push(id),
        }
    }

    /// The copy could not be read where it was needed: the object is made again, or lost.
    pub(crate) fn durable_lost(&mut self, node: NodeIx, id: ObjectId, writer: NodeId, why: &str) {
        if let Some(object) = self.objects.by_id_mut(id)
            && object.durable() == Some(writer)
        {
            let more = object.more_mut();
            (more.durable, more.durable_lost) = (None, Some(why.into()));
        }
        self.locate(node, id);
    }

    /// Who wrote a copy deletes it; if that node is lost, any other. Called at the end of a step.
    pub(crate) fn delete_durable(&mut self) {
        let Some(any) = self.nodes.alive().first().copied() else {
            if self.to_delete.values().map(Vec::len).sum::<usize>() > DELETED_LATER {
                self.to_delete.clear();
            }
            return;
        };
        for (writer, objects) in std::mem::take(&mut self.to_delete) {
            let node = self.nodes.find(writer).unwrap_or(any);
            self.send(node, HeadToNode::DeleteDurable { writer, objects });
        }
    }
}
