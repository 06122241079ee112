//! Own puts become known beyond this process (rule R2).

use cluster_types::client_node::PutValue;
use cluster_types::{ClientToNode, ObjectId};

use crate::ClientCore;
use crate::state::State;

impl ClientCore {
    /// These are about to be named in a message: own puts among them escape first, with all that is inside them.
    pub(crate) fn share_all(&mut self, objects: impl IntoIterator<Item = ObjectId>) {
        for object in objects {
            if self.objects.get(&object).is_some_and(|entry| !entry.escaped) {
                self.escape(object);
            }
        }
    }

    /// Names objects in messages that the caller pushes: what is inside an executor's result, say.
    pub fn share(&mut self, objects: &[ObjectId]) {
        self.share_all(objects.iter().copied());
    }

    /// Inner ones first, without recursion: puts can be nested as deep as a program likes. An object cannot be inside
    /// itself, because its refs were made before it.
    fn escape(&mut self, object: ObjectId) {
        let mut todo = vec![(object, false)];
        while let Some((object, inner_done)) = todo.pop() {
            let Some(entry) = self.objects.get_mut(&object) else { continue };
            if entry.escaped {
                continue;
            }
            if entry.contains && !entry.announced && !inner_done {
                todo.push((object, true));
                let inner = self.contains.get(&object);
                todo.extend(inner.into_iter().flatten().map(|&inner| (inner, false)));
                continue;
            }
            let is_secret_result = !object.is_put() && !matches!(entry.state, State::Inline(_));
            if is_secret_result {
                let named = if inner_done { Vec::new() } else { self.named_by_maker(object) };
                if named.is_empty() {
                    self.tell_of_result(object);
                } else {
                    todo.push((object, true));
                    todo.extend(named.into_iter().map(|named| (named, false)));
                }
                continue;
            }
            entry.escaped = true;
            if !entry.announced {
                entry.announced = true;
                if let State::Inline(bytes) = &entry.state {
                    let value = PutValue::Inline(bytes.clone());
                    let contains = self.contains.get(&object).cloned().unwrap_or_default();
                    self.out.push(ClientToNode::Put { object, value, contains });
                }
            }
            self.out.escape(object);
        }
    }
}
