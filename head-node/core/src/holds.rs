//! Who holds what: holds and drops of clients (rules R1, R3), and what becomes of objects that nobody holds.

use cluster_types::{ClientId, FailureKind, HeadToNode, ObjectId, TaskSpec};

use crate::event::{Effect, Record};
use crate::head::{Head, failure};
use crate::objects::{Object, ObjectValue};
use crate::slab::{NodeIx, ObjectIx};

impl Head {
    pub(crate) fn hold(&mut self, node: NodeIx, client: ClientId, objects: &[ObjectId]) {
        // A hold of a client that is gone already is no hold.
        if !self.is_attached(client, node) {
            return;
        }
        for id in objects {
            let ix = self.ensure_object(*id);
            let Some(object) = self.objects.get_mut(ix) else { continue };
            if id.client == client {
                object.own = true;
                continue;
            }
            object.more_mut().holders.insert(client);
            if let Some(client) = self.clients.get_mut(&client) {
                client.held.insert(*id);
            }
        }
    }

    pub(crate) fn drop_holds(&mut self, node: NodeIx, client: ClientId, objects: &[ObjectId]) {
        if !self.is_attached(client, node) {
            return;
        }
        for id in objects {
            if id.client == client {
                if let Some(ix) = self.objects.find(*id)
                    && let Some(object) = self.objects.get_mut(ix)
                {
                    object.own = false;
                    self.objects.doubt(ix);
                }
                continue;
            }
            if self.clients.get_mut(&client).is_some_and(|client| client.held.remove(id)) {
                self.remove_holder(client, *id);
            }
        }
    }

    pub(crate) fn remove_holder(&mut self, client: ClientId, id: ObjectId) {
        if let Some(ix) = self.objects.find(id)
            && let Some(more) = self.objects.get_mut(ix).and_then(Object::existing_more)
        {
            more.holders.remove(&client);
            self.objects.doubt(ix);
        }
    }

    /// The object's slot. One nobody told us of gets a placeholder (rule R3): what a live task will make is pending;
    /// of what an attached client made, that client will tell; of anything else nobody will.
    pub(crate) fn ensure_object(&mut self, id: ObjectId) -> ObjectIx {
        if let Some(ix) = self.objects.find(id) {
            return ix;
        }
        let value = self.value_of_unknown(id);
        if matches!(value, ObjectValue::Pending(_)) {
            // Its task is being run again, for another of its results.
            self.want_again(id);
        }
        self.objects.find_or_insert(id, || value)
    }

    pub(crate) fn value_of_unknown(&self, id: ObjectId) -> ObjectValue {
        if self.is_recovering() {
            return match id.task().and_then(|(task, index)| Some((self.tasks.find(task)?, index))) {
                Some((ix, index))
                    if self.tasks.get(ix).is_some_and(|t| index < t.spec.template.num_returns) =>
                {
                    ObjectValue::Pending(ix)
                }
                // Whoever has it may not have been heard yet.
                _ => ObjectValue::Unknown,
            };
        }
        let freed =
            |message: String| ObjectValue::Failed(Box::new(failure(FailureKind::ObjectFreed, message, None)));
        if let Some((task_id, index)) = id.task() {
            if let Some(ix) = self.tasks.find(task_id)
                && let Some(task) = self.tasks.get(ix)
            {
                if index < task.spec.template.num_returns {
                    return ObjectValue::Pending(ix);
                }
                if let Some(why) = self.no_such_item(id) {
                    return freed(why);
                }
                let returns = task.spec.template.num_returns;
                return freed(format!("object {id} does not exist: its task returns {returns} values"));
            }
            if self.tasks.ended(task_id) {
                return freed(format!("object {id} was freed: everything that held it had dropped it"));
            }
        }
        if self.clients.contains_key(&id.client) {
            return ObjectValue::Unknown;
        }
        freed(format!("object {id} is gone: nobody held it when the process that made it ended"))
    }

    /// One more task or container holds the object.
    pub(crate) fn add_container(&mut self, id: ObjectId) {
        let ix = self.ensure_object(id);
        if let Some(object) = self.objects.get_mut(ix) {
            object.containers += 1;
        }
    }

    /// A task that has entered the table holds what it names.
    pub(crate) fn hold_arguments(&mut self, spec: &TaskSpec) {
        for held in spec.held() {
            let ix = self.ensure_object(held);
            if let Some(object) = self.objects.get_mut(ix) {
                object.tasks += 1;
                object.function |= spec.function() == Some(held);
            }
        }
    }

    /// A swept object: whoever still asks is answered, and every node that has a copy deletes it.
    pub(crate) fn forget_object(&mut self, object: Object) {
        let id = object.id;
        self.handle_forgotten(id);
        self.result_forgotten(&object);
        self.group_forgotten(id);
        if let Some(more) = object.more()
            && !more.node_waiters.is_empty()
        {
            let message = format!("object {id} was freed: everything that held it had dropped it");
            let freed = failure(FailureKind::ObjectFreed, message, None);
            for node in &more.node_waiters {
                let located = cluster_types::Located::Failed(freed.clone());
                self.send(*node, HeadToNode::Located { object: id, located });
            }
        }
        if let Some(writer) = object.durable() {
            self.out.push(Effect::Persist(Record::DurableGone(id)));
            self.to_delete.entry(writer).or_default().push(id);
        }
        let unreached = object.more().into_iter().flat_map(|more| more.unreached.iter().copied());
        for node in object.copies().chain(unreached) {
            if let Some(node_state) = self.nodes.get_mut(node) {
                node_state.functions.remove(&id);
                self.to_free.entry(node).or_default().push(id);
            }
        }
        if object.function {
            for at in 0..self.nodes.alive().len() {
                let node = self.nodes.alive()[at];
                if self.nodes.get_mut(node).is_some_and(|node| node.functions.remove(&id)) {
                    self.to_free.entry(node).or_default().push(id);
                }
            }
        }
    }
}
