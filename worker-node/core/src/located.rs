//! What the head answers to `Locate`, and what comes of it.

use cluster_types::{FailureKind, Located, Location, NodeToHead, ObjectId, Refs, Span};

use crate::event::Effect;
use crate::node::{Node, failure};
use crate::objects::Fetch;
use crate::values::own;

/// An object that the machine had no memory for is tried again for so long.
const REFUSED_AT_MOST: Span = Span::secs(10);

impl Node {
    /// The head says where an object is. `asked`: in answer to this node, rather than along with a task. `keep`: the
    /// head counts on a copy here and will free it.
    pub(crate) fn located(
        &mut self,
        object: ObjectId,
        located: Located,
        asked: bool,
        keep: bool,
        effects: &mut Vec<Effect>,
    ) {
        let me = self.config.node;
        let known = self.objects.entry(object).or_default();
        if known.fetch == Fetch::Locating && (asked || !matches!(located, Located::Failed(_))) {
            known.fetch = Fetch::Idle;
        }
        if known.has_copy() || known.fetch == Fetch::Arriving {
            known.cached &= !keep;
            // It may be on disk, and have waited for this answer.
            return self.bring(object, effects);
        }
        match located {
            Located::Inline(bytes) => {
                known.size = bytes.len() as u64;
                known.inline = Some(bytes);
                known.cached = !keep;
                // A task that waits for it may wait for more; it is forgotten when that runs.
                let for_task = !known.waiting_tasks.is_empty();
                self.came(object, effects);
                if asked && !for_task {
                    self.forget_cached(object);
                }
            }
            Located::Failed(failure) => self.will_not_come(object, &failure, effects),
            Located::Stored { size, copies } => {
                let Some(source) = copies.into_iter().find(|(node, _)| *node != me) else {
                    let message = format!(
                        "object {object} is lost: the only copy was said to be on node {me}, which has none"
                    );
                    self.tell_head(NodeToHead::CopyRemoved(object), effects);
                    self.will_not_come(object, &failure(FailureKind::ObjectLost, message, None), effects);
                    return;
                };
                known.size = size;
                known.source = Some(source);
                known.fetch = Fetch::Waiting;
                self.bring_if_wanted(object, asked, effects);
            }
            Located::Durable { size, writer } => {
                known.size = size;
                known.source = None;
                known.written_by = Some(writer);
                known.fetch = Fetch::Waiting;
                self.bring_if_wanted(object, asked, effects);
            }
        }
    }

    /// Brings it for whoever waits for it. If an answer came too late for all who did, it is forgotten; what comes along
    /// with a task is wanted the next moment.
    fn bring_if_wanted(&mut self, object: ObjectId, asked: bool, effects: &mut Vec<Effect>) {
        self.bring(object, effects);
        if asked {
            self.forget_if_empty(object);
        }
    }

    /// A node that has the object leaves: there is to be a copy here.
    pub(crate) fn move_in(
        &mut self,
        object: ObjectId,
        located: Located,
        contains: Refs,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.objects.entry(object).or_default();
        known.contains = contains;
        if known.has_copy() || matches!(located, Located::Failed(_)) {
            known.cached = false;
            if known.has_copy() {
                self.tell_head(NodeToHead::CopyAdded(object), effects);
            }
            return self.forget_if_empty(object);
        }
        known.moving_in = true;
        let is_small = matches!(located, Located::Inline(_));
        self.located(object, located, false, true, effects);
        // Of what is larger the head is told when it has come.
        if is_small {
            self.tell_head(NodeToHead::CopyAdded(object), effects);
        }
    }

    /// Drops such bytes once nobody here is about to use them.
    pub(crate) fn forget_cached(&mut self, object: ObjectId) {
        let unused = self.objects.get(&object).is_some_and(|known| {
            known.cached
                && known.pins == 0
                && known.waiting_clients.is_empty()
                && known.waiting_tasks.is_empty()
        });
        if unused {
            self.objects.remove(&object);
        }
    }

    /// A pull, a restore or a remote client's bytes are complete.
    pub(crate) fn stored(&mut self, object: ObjectId, location: Location, effects: &mut Vec<Effect>) {
        self.memory.refused.remove(&object);
        self.memory.refused_since = None;
        let expected = self.memory.arriving.remove(&object);
        self.memory.own = (self.memory.own + location.len).saturating_sub(expected.unwrap_or(0));
        let Some(known) = self.objects.get_mut(&object).filter(|_| expected.is_some()) else {
            return self.give_back(own(location), effects);
        };
        known.fetch = Fetch::Idle;
        let pulled = known.inline.is_none() && !known.disk;
        known.source = None;
        known.written_by = None;
        if known.memory.is_some() {
            // A result of the same task came meanwhile. Until now this held it in memory.
            self.give_back(own(location), effects);
            self.let_go(object);
        } else {
            known.inline = None;
            self.lay(object, own(location));
        }
        let Some(known) = self.objects.get(&object) else { return };
        if known.freed {
            return self.freed(object, effects);
        }
        let escaped = known.escaped;
        if pulled {
            self.tell_head(NodeToHead::CopyAdded(object), effects);
        }
        if escaped {
            self.serve(object, effects);
        }
        self.came(object, effects);
    }

    pub(crate) fn store_failed(
        &mut self,
        object: ObjectId,
        reason: &str,
        no_memory: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(size) = self.memory.arriving.remove(&object) else { return };
        self.memory.own = self.memory.own.saturating_sub(size);
        let Some(known) = self.objects.get_mut(&object) else { return };
        known.fetch = Fetch::Idle;
        if known.freed {
            return self.freed(object, effects);
        }
        if known.inline.is_some() || known.memory.is_some() {
            // A remote client's bytes: they stay on the heap. Or a result came meanwhile, which may go to disk from now on.
            return self.let_go(object);
        }
        if no_memory {
            return self.refused(object, reason, effects);
        }
        if known.disk {
            let message =
                format!("object {object} could not be read back from disk on node {}: {reason}", self.me());
            self.delete_spilled(object, effects);
            self.tell_head(NodeToHead::CopyRemoved(object), effects);
            self.will_not_come(object, &failure(FailureKind::ObjectLost, message, None), effects);
            return;
        }
        let source = known.source.take();
        let written_by = known.written_by.take();
        if !known.is_awaited() {
            // Who wanted it is gone, and it most likely is too.
            self.forget_if_empty(object);
            return;
        }
        // The head names another source, or says that there is none.
        known.fetch = Fetch::Locating;
        let message = match (source, written_by) {
            (Some((source, _)), _) => NodeToHead::SourceFailed { object, source },
            (None, Some(writer)) => NodeToHead::DurableLost { object, writer, reason: reason.to_owned() },
            (None, None) => NodeToHead::Locate(object),
        };
        self.tell_head(message, effects);
    }

    /// The machine had no memory for it, whatever the account says: it waits until some is free, though not for ever.
    fn refused(&mut self, object: ObjectId, reason: &str, effects: &mut Vec<Effect>) {
        let since = *self.memory.refused.entry(object).or_insert(self.now);
        self.memory.refused_by_machine(self.now);
        let Some(known) = self.objects.get_mut(&object) else { return };
        if self.now.since(since) < REFUSED_AT_MOST && known.is_awaited() {
            known.fetch = Fetch::Waiting;
            return self.bring(object, effects);
        }
        self.memory.refused.remove(&object);
        let message = format!(
            "object {object} ({} MiB) could not be brought to node {}: {reason}",
            known.size >> 20,
            self.me()
        );
        self.will_not_come(object, &failure(FailureKind::ObjectTooLarge, message, None), effects);
    }
}
