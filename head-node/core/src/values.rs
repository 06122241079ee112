//! Where values are: they become known, nodes ask for them, copies come and go.

use bytes::Bytes;
use cluster_types::{Failure, FailureKind, HeadToNode, Located, NodeId, ObjectId, Refs, TaskSpec};

use crate::head::{Head, failure};
use crate::objects::{Object, ObjectValue};
use crate::slab::{NodeIx, ObjectIx};

/// Why a task that was queued cannot start.
pub(crate) enum NotThere {
    /// An argument is no more.
    Gone(Failure),
    /// An argument was lost and is being made again.
    IsMadeAgain,
}

/// Bytes of small values that are given other homes when a node is lost.
const MOVED_AT_ONCE: usize = 64 << 20;

impl Head {
    pub(crate) fn escaped(
        &mut self,
        node: NodeIx,
        id: ObjectId,
        size: u64,
        inline: Option<Bytes>,
        contains: Refs,
    ) {
        // The maker is not on the node that speaks, or gone: nobody has heard of it, and nobody will. What a call came
        // to is another's: of a client anywhere, which calls an actor of that node past this head.
        let is_known = match id.is_put() {
            true => self.is_attached(id.client, node),
            false => self.clients.contains_key(&id.client),
        };
        if !is_known {
            if self.objects.find(id).is_none() {
                self.to_free.entry(node).or_default().push(id);
            }
            return;
        }
        if !id.is_put() && self.expected_value(node, id, size, inline.clone(), contains.clone()) {
            return;
        }
        let ix = self.objects.find_or_insert(id, || ObjectValue::Unknown);
        let Some(object) = self.objects.get_mut(ix) else { return };
        if !matches!(object.value, ObjectValue::Unknown) {
            let is_copy = matches!(object.value, ObjectValue::Available { .. }) && id.is_put();
            if is_copy {
                // Its node was out of touch, and others have had it since.
                object.own = true;
                if !object.copies().any(|copy| copy == node) {
                    object.more_mut().copies.push(node);
                }
            } else if !self.is_attached(id.client, node) {
                // Its caller heard that the call had failed, and said so, before this came.
                self.to_free.entry(node).or_default().push(id);
            }
            return;
        }
        object.own = true;
        self.set_value(ix, size, inline, contains, node);
    }

    /// The value exists, made on `home`. What is inside it is held by it from now on (REF-1).
    pub(crate) fn set_value(
        &mut self,
        ix: ObjectIx,
        size: u64,
        inline: Option<Bytes>,
        contains: Refs,
        home: NodeIx,
    ) {
        for inner in &contains {
            self.add_container(*inner);
        }
        let size = inline.as_ref().map_or(size, |bytes| bytes.len() as u64);
        self.objects.set_available(ix, size, inline, Some(home));
        if !contains.is_empty()
            && let Some(object) = self.objects.get_mut(ix)
        {
            object.more_mut().contains = contains;
        }
        self.value_known(ix);
    }

    /// Tells whoever waited for the value, or for the news that there will be none.
    pub(crate) fn value_known(&mut self, ix: ObjectIx) {
        let Some(object) = self.objects.get_mut(ix) else { return };
        let id = object.id;
        let failed = match &object.value {
            ObjectValue::Failed(failure) => Some(failure.as_ref().clone()),
            _ => None,
        };
        let (tasks, nodes) = match object.existing_more() {
            Some(more) => (std::mem::take(&mut more.task_waiters), std::mem::take(&mut more.node_waiters)),
            None => Default::default(),
        };
        if !object.is_reachable() {
            self.objects.doubt(ix);
        }
        for node in nodes {
            if let Some(located) = self.located(ix) {
                self.send(node, HeadToNode::Located { object: id, located });
            } else if let Some(object) = self.objects.get_mut(ix) {
                // Known, but lost: it is made again.
                object.more_mut().node_waiters.push(node);
            }
        }
        for (task, stamp) in tasks {
            match &failed {
                Some(failure) => self.failing.push((task, stamp, failure.clone())),
                None => self.argument_ready(task, stamp),
            }
        }
    }

    /// What is known of the value; `None`: it does not exist yet.
    pub(crate) fn located(&mut self, ix: ObjectIx) -> Option<Located> {
        let object = self.objects.get(ix)?;
        match &object.value {
            ObjectValue::Unknown | ObjectValue::Pending(_) => return None,
            ObjectValue::Failed(failure) => return Some(Located::Failed(failure.as_ref().clone())),
            ObjectValue::Available { inline: Some(bytes), .. } => {
                return Some(Located::Inline(bytes.clone()));
            }
            ObjectValue::Available { size, inline: None, .. } => {
                let copies: Vec<_> = object
                    .copies()
                    .filter_map(|node| self.nodes.get(node))
                    .map(|node| (node.id, node.data_address.clone()))
                    .collect();
                if !copies.is_empty() {
                    return Some(Located::Stored { size: *size, copies });
                }
                if let Some(writer) = object.durable() {
                    return Some(Located::Durable { size: *size, writer });
                }
            }
        }
        if self.comes_again(ix) {
            return None;
        }
        match self.make_again(ix) {
            Ok(()) => None,
            Err(why) => Some(Located::Failed(self.mark_lost(ix, &why))),
        }
    }

    /// No live node has a copy any more.
    fn mark_lost(&mut self, ix: ObjectIx, why: &str) -> Failure {
        let Some(object) = self.objects.get(ix) else {
            return failure(FailureKind::ObjectLost, "the object is gone", None);
        };
        let mut names: Vec<String> = object.copies().map(|node| self.nodes.name(node).to_string()).collect();
        names.dedup();
        let at = match names.as_slice() {
            [] => "no node has a copy any more".to_owned(),
            [one] => format!("its only copy was on node {one}, which is lost"),
            many => format!("its copies were on nodes {}, which are lost", many.join(", ")),
        };
        let durable = object.more().and_then(|more| more.durable_lost.as_deref());
        let at = match durable {
            Some(why) => format!("{at}; its durable copy cannot be read ({why})"),
            None => at,
        };
        let message = format!("object {} is lost: {at}, and it cannot be made again: {why}", object.id);
        let task = object.id.task().map(|(task, _)| task);
        let failure = failure(FailureKind::ObjectLost, message, task);
        if let Some(task) = task {
            // Of its other results the same is found out when they are asked for.
            self.result_is_lost(task);
        }
        self.objects.set_failed(ix, failure.clone());
        failure
    }

    /// Where everything is that the task needs and `node` may not know (DEP-1), unless an argument is not there any more.
    pub(crate) fn located_for(
        &mut self,
        spec: &TaskSpec,
        node: NodeIx,
    ) -> Result<Vec<(ObjectId, Located)>, NotThere> {
        let mut all = Vec::new();
        for id in spec.needed() {
            let is_function = spec.function() == Some(id);
            let Some(ix) = self.objects.find(id) else {
                let message = format!("object {id} is gone");
                return Err(NotThere::Gone(failure(FailureKind::ObjectFreed, message, None)));
            };
            if is_function && self.nodes.get(node).is_some_and(|node| node.functions.contains(&id)) {
                continue;
            }
            let has_copy = self.objects.get(ix).is_some_and(|object| {
                matches!(object.value, ObjectValue::Available { .. })
                    && object.copies().any(|copy| copy == node)
            });
            if has_copy || all.iter().any(|(known, _)| *known == id) {
                continue;
            }
            match self.located(ix) {
                Some(Located::Failed(failure)) => return Err(NotThere::Gone(failure)),
                Some(located) => all.push((id, located)),
                // It was lost while the task was queued.
                None => return Err(NotThere::IsMadeAgain),
            }
            if is_function && let Some(node) = self.nodes.get_mut(node) {
                node.functions.insert(id);
            }
        }
        Ok(all)
    }

    pub(crate) fn locate(&mut self, node: NodeIx, id: ObjectId) {
        let ix = match self.objects.find(id) {
            Some(ix) => ix,
            None => match self.value_of_unknown(id) {
                ObjectValue::Failed(failure) => {
                    let located = Located::Failed(*failure);
                    self.send(node, HeadToNode::Located { object: id, located });
                    return;
                }
                // A put is told of before anybody can hear of it, so one that is unknown was freed (rule R3).
                ObjectValue::Unknown => {
                    let message = format!("object {id} was freed: nobody held a reference to it any more");
                    let located = Located::Failed(failure(FailureKind::ObjectFreed, message, None));
                    self.send(node, HeadToNode::Located { object: id, located });
                    return;
                }
                _ => self.ensure_object(id),
            },
        };
        if let Some(located) = self.located(ix) {
            self.send(node, HeadToNode::Located { object: id, located });
        } else if let Some(object) = self.objects.get_mut(ix) {
            let waiters = &mut object.more_mut().node_waiters;
            if !waiters.contains(&node) {
                waiters.push(node);
            }
            // Of a pending result that nobody holds, the sweep answers that it was freed.
            self.objects.doubt(ix);
        }
    }

    pub(crate) fn source_failed(&mut self, node: NodeIx, id: ObjectId, source: NodeId) {
        if let Some(ix) = self.objects.find(id)
            && let Some(source) = self.nodes.find(source)
        {
            if let Some(object) =
                self.objects.get_mut(ix).filter(|object| object.copies().any(|copy| copy == source))
            {
                let unreached = &mut object.more_mut().unreached;
                if !unreached.contains(&source) {
                    unreached.push(source);
                }
            }
            self.remove_copy(ix, source);
        }
        self.locate(node, id);
    }

    pub(crate) fn copy_added(&mut self, node: NodeIx, id: ObjectId) {
        let Some(object) = self.objects.by_id_mut(id) else {
            self.to_free.entry(node).or_default().push(id);
            return;
        };
        if matches!(object.value, ObjectValue::Failed(_)) {
            self.to_free.entry(node).or_default().push(id);
            return;
        }
        // Also if the copy that it was taken from is lost meanwhile and it is being made again (REF-2).
        if !object.copies().any(|copy| copy == node) {
            object.more_mut().copies.push(node);
        }
        self.state_copied(id);
    }

    pub(crate) fn contents_of(&self, ix: ObjectIx) -> Refs {
        let object = self.objects.get(ix);
        object.and_then(|object| object.more()).map(|more| more.contains.clone()).unwrap_or_default()
    }

    /// A home is lost. What only this head knows of its objects, another node shall know too, for a head that comes after
    /// this one: small values without another copy, and what is inside values that have one.
    pub(crate) fn find_other_homes(&mut self, lost: NodeIx) {
        let (mut moves, mut bytes) = (Vec::new(), 0);
        for (ix, object) in self.objects.iter() {
            let ObjectValue::Available { inline, home: Some(home), .. } = &object.value else { continue };
            if *home != lost {
                continue;
            }
            let has_refs = object.more().is_some_and(|more| !more.contains.is_empty());
            match (object.copies().find(|copy| self.nodes.is_alive(*copy)), inline) {
                (Some(copy), _) if has_refs => moves.push((ix, copy)),
                (None, Some(value)) if bytes < MOVED_AT_ONCE => {
                    let maker = self.clients.get(&object.id.client).map(|client| client.node);
                    let target = maker.filter(|node| self.nodes.is_alive(*node));
                    if let Some(target) = target.or_else(|| self.nodes.alive().first().copied()) {
                        bytes += value.len();
                        moves.push((ix, target));
                    }
                }
                _ => {}
            }
        }
        for (ix, target) in moves {
            let (Some(id), Some(located)) = (self.objects.get(ix).map(|object| object.id), self.located(ix))
            else {
                continue;
            };
            let contains = self.contents_of(ix);
            self.send(target, HeadToNode::Copy { object: id, located, contains });
        }
    }

    pub(crate) fn copy_removed(&mut self, node: NodeIx, id: ObjectId) {
        if let Some(ix) = self.objects.find(id) {
            self.remove_copy(ix, node);
        }
    }

    fn remove_copy(&mut self, ix: ObjectIx, node: NodeIx) {
        let removed = self.objects.get_mut(ix).is_some_and(|object| object.remove_copy(node));
        let is_cached =
            |object: &Object| matches!(object.value, ObjectValue::Available { inline: Some(_), .. });
        if removed && !self.objects.get(ix).is_some_and(is_cached) {
            // If that was the last one, whoever asks next is told that it is lost.
            let _ = self.located(ix);
        }
    }
}
