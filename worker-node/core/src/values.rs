//! Values on this node: made here, asked for, brought here, handed out, given up (rule P1).

use cluster_types::client_node::PutValue;
use cluster_types::{
    ClientId, Failure, FailureKind, INLINE_MAX, Location, NodeToClient, NodeToHead, ObjectId, Refs, TaskId,
    Value,
};

use crate::clients::Client;
use crate::event::{Effect, ServeFrom};
use crate::memory::Want;
use crate::node::{Node, failure};
use crate::objects::{Fetch, Memory, Writer};

impl Node {
    /// A client completed a value of its own. Nobody else knows it before `escape`.
    pub(crate) fn put(
        &mut self,
        client: ClientId,
        object: ObjectId,
        value: PutValue,
        contains: Refs,
        effects: &mut Vec<Effect>,
    ) {
        self.record(client, object, value, effects);
        if let Some(known) = self.objects.get_mut(&object) {
            known.escaped = false;
            known.contains = contains;
        }
        if let Some(who) = self.clients.get_mut(&client) {
            who.private.insert(object);
        }
        self.came(object, effects);
    }

    /// Notes where a value lies that a client made.
    fn record(&mut self, client: ClientId, object: ObjectId, value: PutValue, effects: &mut Vec<Effect>) {
        let use_number = self.next_use();
        let known = self.objects.entry(object).or_default();
        known.used = use_number;
        match value {
            PutValue::Stored(location) => {
                known.size = location.len;
                if self.clients.get(&client).is_none_or(|known| known.shares_memory) {
                    return self.lay(object, Memory { location, writer: Writer::Client(client) });
                }
                // It cannot be asked to give the memory back while it is away: from here on the daemon does.
                self.lay(object, Memory { location, writer: Writer::Orphan });
                self.end_lease(client, location.segment, effects);
            }
            PutValue::Inline(bytes) => {
                known.size = bytes.len() as u64;
                known.inline = Some(bytes.clone());
                if bytes.len() > INLINE_MAX && known.fetch != Fetch::Arriving {
                    // From a client without shared memory. The bytes serve as they are until they lie in the store.
                    known.fetch = Fetch::Arriving;
                    self.memory.own += bytes.len() as u64;
                    self.memory.arriving.insert(object, bytes.len() as u64);
                    effects.push(Effect::StoreBytes { object, bytes });
                }
            }
        }
    }

    /// The head is told of an object, because a message that names it follows.
    pub(crate) fn escape(&mut self, client: ClientId, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) =
            self.objects.get_mut(&object).filter(|known| !known.escaped && object.client == client)
        else {
            return;
        };
        known.escaped = true;
        if let Some(who) = self.clients.get_mut(&client) {
            who.private.remove(&object);
        }
        // The home says what is inside to a head that does not know (rule H2).
        let (size, contains) = (known.size, known.contains.clone());
        let inline = known.inline.clone().filter(|bytes| bytes.len() <= INLINE_MAX);
        self.serve(object, effects);
        self.pass_on(client, NodeToHead::Escaped { object, size, inline, contains }, effects);
    }

    /// An executor returned a value: this node is its home (rule R4).
    pub(crate) fn keep_result(
        &mut self,
        client: ClientId,
        object: ObjectId,
        value: PutValue,
        contains: &Refs,
        effects: &mut Vec<Effect>,
    ) {
        if self.objects.get(&object).is_some_and(|known| known.has_copy()) {
            // Another attempt's result is here already.
            if let PutValue::Stored(location) = value {
                self.tell_client(client, NodeToClient::RangesFreed(vec![location]), effects);
            }
            return;
        }
        self.record(client, object, value, effects);
        if let Some(known) = self.objects.get_mut(&object).filter(|_| !contains.is_empty()) {
            known.contains = contains.clone();
        }
        if self.objects.get(&object).is_some_and(|known| known.memory.is_some()) {
            self.serve(object, effects);
        } else {
            self.fresh.push(object);
        }
        self.came(object, effects);
    }

    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// Other nodes may have it, from where it is now.
    pub(crate) fn serve(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        let source = match (&known.inline, known.memory.filter(|_| !known.evicting), known.disk) {
            (_, Some(memory), _) => ServeFrom::Memory(memory.location),
            (Some(bytes), None, _) => ServeFrom::Inline(bytes.clone()),
            (None, None, true) => ServeFrom::Disk,
            (None, None, false) => return,
        };
        known.served = true;
        effects.push(Effect::Serve { object, source });
    }

    /// Small results that outlived a tick: the head's cache may let go of them (rule R4).
    pub(crate) fn serve_small(&mut self, effects: &mut Vec<Effect>) {
        for object in std::mem::take(&mut self.fresh) {
            // Freed since, it may be here again as a copy that the head does not count.
            let known = self.objects.get(&object);
            if known.is_some_and(|known| !known.served && !known.freed && !known.cached) {
                self.serve(object, effects);
            }
        }
    }

    // ---- asking ----

    /// A client needs a value.
    pub(crate) fn get(&mut self, client: ClientId, object: ObjectId, effects: &mut Vec<Effect>) {
        if self.objects.get(&object).is_some_and(|known| known.is_here()) {
            self.give(object, client, effects);
            return;
        }
        let known = self.objects.entry(object).or_default();
        if known.freed {
            let value = Value::Failed(freed(object));
            return self.tell_client(client, NodeToClient::Ready { object, value }, effects);
        }
        if !known.waiting_clients.contains(&client) {
            known.waiting_clients.push(client);
        }
        if let Some(who) = self.clients.get_mut(&client) {
            who.waits.insert(object);
        }
        self.bring(object, effects);
    }

    fn give(&mut self, object: ObjectId, client: ClientId, effects: &mut Vec<Effect>) {
        let stored = self.objects.get(&object).is_some_and(|known| known.inline.is_none());
        let shares = self.clients.get(&client).is_some_and(|known| known.shares_memory);
        if stored && !shares {
            self.serve(object, effects);
            effects.push(Effect::SendBytes { client, object });
            return;
        }
        if let Some(value) = self.hand_out(object, client, effects) {
            self.tell_client(client, NodeToClient::Ready { object, value }, effects);
        }
    }

    /// The value, for a message to a client. A location counts as told until the client releases it.
    pub(crate) fn hand_out(
        &mut self,
        object: ObjectId,
        client: ClientId,
        effects: &mut Vec<Effect>,
    ) -> Option<Value> {
        let use_number = self.next_use();
        let known = self.objects.get_mut(&object)?;
        known.used = use_number;
        if let Some(bytes) = &known.inline {
            return Some(Value::Inline(bytes.clone()));
        }
        let Memory { location, writer } = known.memory?;
        let who = self.clients.get_mut(&client)?;
        known.told(client);
        who.views.insert(object);
        who.told_more = true;
        if writer != Writer::Client(client) && who.segments.insert(location.segment) {
            let len = self.memory.len_of(location.segment);
            effects.push(Effect::ToClient {
                client,
                message: NodeToClient::Segment { segment: location.segment, len, writable: false },
            });
        }
        Some(Value::Local(location))
    }

    /// Finds out where an object is that is not here, unless that is known or being asked.
    pub(crate) fn find(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) = self
            .objects
            .get_mut(&object)
            .filter(|known| !known.is_here() && !known.evicting && known.fetch == Fetch::Idle)
        else {
            return;
        };
        if known.disk {
            known.fetch = Fetch::Waiting;
            return;
        }
        known.fetch = Fetch::Locating;
        self.tell_head(NodeToHead::Locate(object), effects);
    }

    /// Brings an object here for whoever waits for it, as soon as there is memory.
    pub(crate) fn bring(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        self.find(object, effects);
        let Some(known) = self.objects.get_mut(&object).filter(|known| known.fetch == Fetch::Waiting) else {
            return;
        };
        if known.waits_for_memory() && !std::mem::replace(&mut known.wanted, true) {
            self.memory.wants.push_back(Want::Object(object));
        }
        for task in known.waiting_tasks.clone() {
            self.seek_admission(task, effects);
        }
        self.make_room(effects);
    }

    /// The object can be read: whoever waited goes on.
    pub(crate) fn came(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        known.moving_in = false;
        let clients = std::mem::take(&mut known.waiting_clients);
        let tasks = std::mem::take(&mut known.waiting_tasks);
        for client in clients {
            if let Some(who) = self.clients.get_mut(&client) {
                who.waits.remove(&object);
            }
            self.give(object, client, effects);
        }
        for task in tasks {
            self.await_arguments(task, effects);
        }
    }

    /// There will be no value: whoever waited is told.
    pub(crate) fn will_not_come(&mut self, object: ObjectId, failure: &Failure, effects: &mut Vec<Effect>) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        if known.fetch != Fetch::Arriving {
            known.fetch = Fetch::Idle;
        }
        known.moving_in = false;
        let clients = std::mem::take(&mut known.waiting_clients);
        let tasks: Vec<TaskId> = std::mem::take(&mut known.waiting_tasks).into_vec();
        for client in clients {
            if let Some(who) = self.clients.get_mut(&client) {
                who.waits.remove(&object);
            }
            let message = NodeToClient::Ready { object, value: Value::Failed(failure.clone()) };
            self.tell_client(client, message, effects);
        }
        self.fail_waiting_tasks(tasks, failure, effects);
        self.forget_if_empty(object);
    }

    pub(crate) fn forget_if_empty(&mut self, object: ObjectId) {
        let empty = self.objects.get(&object).is_some_and(|known| {
            !known.has_copy() && matches!(known.fetch, Fetch::Idle | Fetch::Waiting) && !known.is_awaited()
        });
        if empty {
            self.objects.remove(&object);
            self.forget_made(object.task().map(|(task, _)| task));
        }
    }

    // ---- giving up (rule P1) ----

    pub(crate) fn release(&mut self, client: ClientId, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        if known.released(client) {
            if let Some(who) = self.clients.get_mut(&client) {
                who.views.remove(&object);
            }
            self.let_go(object);
            self.maybe_free(object, effects);
        }
    }

    /// Nobody can reach it any more.
    pub(crate) fn freed(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        known.freed = true;
        if known.is_awaited() {
            self.will_not_come(object, &freed(object), effects);
        }
        self.maybe_free(object, effects);
    }

    /// A put that never escaped was dropped by its maker, which uses the range again already.
    pub(crate) fn dropped_unescaped(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        if let Some(who) = self.clients.get_mut(&object.client) {
            who.private.remove(&object);
        }
        let Some(known) = self.objects.get_mut(&object) else { return };
        if matches!(known.memory, Some(Memory { writer: Writer::Client(_), .. })) {
            known.inline = None;
            // The drop says all that the answer to `Evict` could.
            if std::mem::take(&mut known.evicting) {
                self.memory.leaving = self.memory.leaving.saturating_sub(1);
            }
            self.lift(object);
        }
        self.freed(object, effects);
    }

    /// Gives the object's memory back if nobody can reach it and nobody sees it.
    pub(crate) fn maybe_free(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        if !self.objects.get(&object).is_some_and(|known| known.freed && !known.is_busy()) {
            return;
        }
        let Some(gone) = self.objects.remove(&object) else { return };
        self.forget_made(object.task().map(|(task, _)| task));
        if gone.served {
            effects.push(Effect::StopServing { object });
        }
        if gone.disk {
            self.memory.spilled = self.memory.spilled.saturating_sub(gone.size);
            effects.push(Effect::DeleteSpilled { object });
        }
        if let Some(memory) = gone.memory {
            self.unlist(memory.location);
            self.give_back(memory, effects);
        }
        self.make_room(effects);
    }

    /// The copy on disk is of no use.
    pub(crate) fn delete_spilled(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        if std::mem::take(&mut known.disk) {
            self.memory.spilled = self.memory.spilled.saturating_sub(known.size);
            effects.push(Effect::DeleteSpilled { object });
        }
    }

    /// A range is free again: for its writer, for the daemon, or for the system.
    pub(crate) fn give_back(&mut self, memory: Memory, effects: &mut Vec<Effect>) {
        let Memory { location, writer } = memory;
        self.memory.retry_at = None;
        match writer {
            Writer::Client(client) => {
                self.tell_client(client, NodeToClient::RangesFreed(vec![location]), effects);
            }
            Writer::Own => {
                self.memory.own = self.memory.own.saturating_sub(location.len);
                effects.push(Effect::FreeOwn(location));
            }
            Writer::Orphan => {
                effects.push(Effect::PunchHole(location));
                if self.is_empty(location.segment) {
                    self.drop_segment(location.segment, effects);
                }
            }
        }
    }

    // ---- for a new head ----

    /// Tells a head that came anew what lies here.
    pub(crate) fn report_objects(&self, effects: &mut Vec<Effect>) {
        let mut objects: Vec<ObjectId> = self
            .objects
            .iter()
            .filter(|(_, known)| known.escaped && !known.freed && known.has_copy())
            .map(|(id, _)| *id)
            .collect();
        objects.sort_unstable();
        for object in objects {
            let known = &self.objects[&object];
            let is_held = |maker: &Client| maker.held.contains(&object);
            let message = match object.is_put() && self.clients.get(&object.client).is_some_and(is_held) {
                true => NodeToHead::Escaped {
                    object,
                    size: known.size,
                    inline: known.inline.clone().filter(|bytes| bytes.len() <= INLINE_MAX),
                    contains: known.contains.clone(),
                },
                false => NodeToHead::CopyAdded(object),
            };
            effects.push(Effect::ToHead(message));
            self.report_durable(object, known, effects);
        }
    }
}

fn freed(object: ObjectId) -> Failure {
    let message = format!("object {object} was freed: nobody held a reference to it any more");
    failure(FailureKind::ObjectFreed, message, None)
}

/// What a pull leaves behind.
pub(crate) fn own(location: Location) -> Memory {
    Memory { location, writer: Writer::Own }
}
