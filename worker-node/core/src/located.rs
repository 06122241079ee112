//! What the head answers to `Locate`, and what comes of it.

use cluster_types::{FailureKind, Located, Location, NodeToHead, ObjectId};

use crate::event::Effect;
use crate::memory::Want;
use crate::node::{Node, failure};
use crate::objects::Fetch;
use crate::values::own;

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
        if known.is_here() {
            known.cached &= !keep;
            return;
        }
        if asked && known.fetch == Fetch::Locating {
            known.fetch = Fetch::Idle;
        }
        match located {
            Located::Inline(bytes) => {
                known.size = bytes.len() as u64;
                known.inline = Some(bytes);
                known.cached = !keep;
                if known.fetch == Fetch::Locating {
                    known.fetch = Fetch::Idle;
                }
                // A task that waits for it may wait for more; it is forgotten when that runs.
                let for_task = !known.waiting_tasks.is_empty();
                self.came(object, effects);
                if asked && !for_task {
                    self.forget_cached(object);
                }
            }
            Located::Failed(failure) => self.will_not_come(object, &failure, effects),
            Located::Stored { size, copies } => {
                if matches!(known.fetch, Fetch::Pulling | Fetch::Restoring) {
                    return;
                }
                known.size = size;
                let Some((source, address)) = copies.into_iter().find(|(node, _)| *node != me) else {
                    let failure = failure(
                        FailureKind::ObjectLost,
                        format!(
                            "object {object} is lost: the only copy was said to be on node {me}, which has none"
                        ),
                        None,
                    );
                    self.tell_head(NodeToHead::CopyRemoved(object), effects);
                    self.will_not_come(object, &failure, effects);
                    return;
                };
                known.fetch = Fetch::Pulling;
                self.memory.wants.push_back(Want::Pull { object, size, source, address });
                self.make_room(effects);
            }
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
        let Some(known) = self
            .objects
            .get_mut(&object)
            .filter(|known| matches!(known.fetch, Fetch::Pulling | Fetch::Restoring))
        else {
            effects.push(Effect::FreeOwn(location));
            return;
        };
        let pulled = known.fetch == Fetch::Pulling && known.inline.is_none();
        known.fetch = Fetch::Idle;
        known.inline = None;
        known.memory = Some(own(location));
        if known.freed {
            self.maybe_free(object, effects);
            return;
        }
        if pulled {
            self.tell_head(NodeToHead::CopyAdded(object), effects);
        }
        if self.objects.get(&object).is_some_and(|known| known.escaped) {
            self.serve(object, effects);
        }
        self.came(object, effects);
    }

    pub(crate) fn store_failed(
        &mut self,
        object: ObjectId,
        missing: bool,
        reason: &str,
        no_memory: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        let (size, fetch) = (known.size, known.fetch);
        known.fetch = Fetch::Idle;
        self.memory.own = self.memory.own.saturating_sub(size);
        if known.freed {
            self.maybe_free(object, effects);
            return;
        }
        if known.inline.is_some() {
            return; // A remote client's bytes: they stay on the heap.
        }
        if fetch == Fetch::Pulling && known.waiting_clients.is_empty() && known.waiting_tasks.is_empty() {
            // Who wanted it is gone, and it most likely is too.
            self.memory.pulling.remove(&object);
            self.forget_if_empty(object);
            return;
        }
        match fetch {
            Fetch::Pulling if no_memory => {
                let message = format!(
                    "object {object} ({} MiB) could not be brought to node {}: {reason}",
                    size >> 20,
                    self.me()
                );
                self.will_not_come(object, &failure(FailureKind::ObjectTooLarge, message, None), effects);
            }
            Fetch::Pulling => {
                // The head names another source, or says that there is none.
                let source = self.memory.pulling.remove(&object);
                known_locating(self, object);
                let message = match source {
                    Some(source) => NodeToHead::SourceFailed { object, source },
                    None => NodeToHead::Locate(object),
                };
                let _ = missing;
                self.tell_head(message, effects);
            }
            _ => {
                let message = format!(
                    "object {object} could not be read back from disk on node {}: {reason}",
                    self.me()
                );
                if let Some(known) = self.objects.get_mut(&object) {
                    known.disk = false;
                }
                self.tell_head(NodeToHead::CopyRemoved(object), effects);
                self.will_not_come(object, &failure(FailureKind::ObjectLost, message, None), effects);
            }
        }
    }
}

fn known_locating(node: &mut Node, object: ObjectId) {
    if let Some(known) = node.objects.get_mut(&object) {
        known.fetch = Fetch::Locating;
    }
}
