//! The objects that escaped their process, and who can still reach each (rules R1 to R4).
//!
//! An object lives while somebody can reach it (REF-1): its maker (a flag), other clients (a set, with the reverse in
//! the client), pending tasks and containing objects (counts). What lost its last one is put on a list of doubtful
//! objects, and swept at the end of the step (REF-2), its contents after it; never recursively.

use std::collections::VecDeque;

use bytes::Bytes;
use cluster_types::{ClientId, Failure, Map, NodeId, ObjectId, Refs, Set};
use smallvec::SmallVec;

use crate::slab::{NodeIx, ObjectIx, Slab, TaskIx};

/// What is known of an object's value.
#[derive(Debug)]
pub(crate) enum ObjectValue {
    /// Somebody spoke of it before its maker did (rule R3).
    Unknown,
    /// A live task will make it.
    Pending(TaskIx),
    /// It exists.
    Available {
        size: u64,
        /// The value itself, cached (rule R4).
        inline: Option<Bytes>,
        /// The node that made it, which keeps it like a stored copy; it may have been lost since.
        home: Option<NodeIx>,
    },
    /// It never will.
    Failed(Box<Failure>),
}

/// One object.
#[derive(Debug)]
pub(crate) struct Object {
    pub id: ObjectId,
    pub value: ObjectValue,
    /// Its maker holds it.
    pub own: bool,
    /// It is the function of some task: nodes keep it beyond the tasks that brought it.
    pub function: bool,
    /// Pending tasks that hold it, counted as often as they name it.
    pub tasks: u32,
    /// Objects that contain it, counted as often as they name it.
    pub containers: u32,
    /// What few objects have.
    more: Option<Box<More>>,
}

/// What few objects have.
#[derive(Debug, Default)]
pub(crate) struct More {
    /// Clients other than the maker.
    pub holders: Set<ClientId>,
    /// Complete copies beside the home's.
    pub copies: SmallVec<[NodeIx; 2]>,
    /// Nodes from which another could not take theirs: not asked again, and told to free it with the others (REF-2).
    pub unreached: SmallVec<[NodeIx; 1]>,
    /// Who wrote a copy to durable storage, which outlives it.
    pub durable: Option<NodeId>,
    /// Why that is no more.
    pub durable_lost: Option<Box<str>>,
    /// The refs inside it.
    pub contains: Refs,
    /// Tasks whose argument it is, with their stamps; some may have ended.
    pub task_waiters: Vec<(TaskIx, u32)>,
    /// Nodes that asked where it is; some may be lost.
    pub node_waiters: SmallVec<[NodeIx; 2]>,
}

impl Object {
    fn new(id: ObjectId, value: ObjectValue) -> Self {
        Self { id, value, own: false, function: false, tasks: 0, containers: 0, more: None }
    }

    pub fn more(&self) -> Option<&More> {
        self.more.as_deref()
    }

    pub fn more_mut(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    pub fn existing_more(&mut self) -> Option<&mut More> {
        self.more.as_deref_mut()
    }

    /// Whether anybody can reach it, or was promised an answer about it (rule R3).
    pub fn is_reachable(&self) -> bool {
        self.own
            || self.tasks > 0
            || self.containers > 0
            || self.more.as_ref().is_some_and(|more| {
                !more.holders.is_empty()
                    || (matches!(self.value, ObjectValue::Unknown) && !more.node_waiters.is_empty())
            })
    }

    /// Every node that was said to have a copy, the home first; some may be lost.
    pub fn copies(&self) -> impl Iterator<Item = NodeIx> + '_ {
        let home = match self.value {
            ObjectValue::Available { home, .. } => home,
            _ => None,
        };
        home.into_iter().chain(self.more.iter().flat_map(|more| more.copies.iter().copied()))
    }

    /// Who wrote a copy to durable storage.
    pub fn durable(&self) -> Option<NodeId> {
        self.more.as_ref()?.durable
    }

    /// Forgets a node's copy; true if it was known to have one.
    pub fn remove_copy(&mut self, node: NodeIx) -> bool {
        let mut known = false;
        if let ObjectValue::Available { home, .. } = &mut self.value
            && *home == Some(node)
        {
            *home = None;
            known = true;
        }
        if let Some(more) = &mut self.more
            && let Some(at) = more.copies.iter().position(|copy| *copy == node)
        {
            more.copies.swap_remove(at);
            known = true;
        }
        known
    }
}

/// The table, by maker and then by number: the end of a maker finds its objects at once.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    slab: Slab<ObjectIx, Object>,
    makers: Map<ClientId, Map<u64, ObjectIx>>,
    count: usize,
    /// Objects that may be unreachable.
    doubtful: Vec<ObjectIx>,
    /// Cached small values in the order they came; some may be gone.
    cached: VecDeque<ObjectIx>,
    cached_bytes: u64,
}

impl Objects {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn iter(&self) -> impl Iterator<Item = (ObjectIx, &Object)> {
        self.slab.iter()
    }

    pub fn find(&self, id: ObjectId) -> Option<ObjectIx> {
        self.makers.get(&id.client)?.get(&id.local).copied()
    }

    pub fn get(&self, ix: ObjectIx) -> Option<&Object> {
        self.slab.get(ix)
    }

    pub fn get_mut(&mut self, ix: ObjectIx) -> Option<&mut Object> {
        self.slab.get_mut(ix)
    }

    pub fn by_id(&self, id: ObjectId) -> Option<&Object> {
        self.slab.get(self.find(id)?)
    }

    pub fn by_id_mut(&mut self, id: ObjectId) -> Option<&mut Object> {
        let ix = self.find(id)?;
        self.slab.get_mut(ix)
    }

    /// Everything a client made that is still known.
    pub fn made_by(&self, maker: ClientId) -> Vec<ObjectIx> {
        self.makers.get(&maker).map(|made| made.values().copied().collect()).unwrap_or_default()
    }

    /// The object's slot; if it was unknown, a new one with this value.
    pub fn find_or_insert(&mut self, id: ObjectId, value: impl FnOnce() -> ObjectValue) -> ObjectIx {
        match self.makers.entry(id.client).or_default().entry(id.local) {
            std::collections::hash_map::Entry::Occupied(entry) => *entry.get(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let ix = self.slab.insert(Object::new(id, value()));
                entry.insert(ix);
                self.count += 1;
                ix
            }
        }
    }

    /// Sets an inline value, counted against the cache's budget.
    pub fn set_available(&mut self, ix: ObjectIx, size: u64, inline: Option<Bytes>, home: Option<NodeIx>) {
        let Some(object) = self.slab.get_mut(ix) else { return };
        if let Some(bytes) = &inline {
            self.cached_bytes += bytes.len() as u64;
            self.cached.push_back(ix);
        }
        object.value = ObjectValue::Available { size, inline, home };
        if let (Some(home), Some(more)) = (home, &mut object.more) {
            more.copies.retain(|copy| *copy != home);
        }
    }

    /// A task will make it, and its submitter holds it. A value it had (its maker was out of touch, and submits again)
    /// counts no more, nor what was inside that (REF-1).
    pub fn set_pending(&mut self, ix: ObjectIx, maker: TaskIx) {
        let Some(object) = self.slab.get_mut(ix) else { return };
        if let ObjectValue::Available { inline: Some(bytes), .. } = &object.value {
            self.cached_bytes -= bytes.len() as u64;
        }
        object.value = ObjectValue::Pending(maker);
        object.own = true;
        let contains = object.existing_more().map(|more| std::mem::take(&mut more.contains));
        for inner in contains.into_iter().flatten() {
            let Some(inner) = self.find(inner) else { continue };
            if let Some(object) = self.slab.get_mut(inner) {
                object.containers -= 1;
            }
            self.doubtful.push(inner);
        }
    }

    /// Sets any other value.
    pub fn set_failed(&mut self, ix: ObjectIx, failure: Failure) {
        let Some(object) = self.slab.get_mut(ix) else { return };
        if let ObjectValue::Available { inline: Some(bytes), .. } = &object.value {
            self.cached_bytes -= bytes.len() as u64;
        }
        object.value = ObjectValue::Failed(Box::new(failure));
    }

    pub fn sizes(&self) -> [(&'static str, usize); 6] {
        [
            ("objects", self.count),
            ("slots for objects", self.slab.slots()),
            ("makers of objects", self.makers.len()),
            ("doubtful objects", self.doubtful.len()),
            ("cached small values", self.cached.len()),
            ("bytes of cached small values", self.cached_bytes as usize),
        ]
    }

    pub fn over_budget(&self, budget: u64) -> bool {
        self.cached_bytes > budget || (self.cached.len() > 1024 && self.cached.len() > 4 * self.count)
    }

    /// Drops cached small values, oldest first, until the budget is kept. Their homes keep them (rule R4).
    pub fn keep_budget(&mut self, budget: u64, is_alive: impl Fn(NodeIx) -> bool) {
        let mut tries = self.cached.len().min(256);
        while self.cached_bytes > budget && tries > 0 {
            tries -= 1;
            let Some(ix) = self.cached.pop_front() else { break };
            let Some(object) = self.slab.get_mut(ix) else { continue };
            let ObjectValue::Available { inline, home, .. } = &mut object.value else { continue };
            match inline {
                Some(bytes) if home.is_some_and(&is_alive) => {
                    self.cached_bytes -= bytes.len() as u64;
                    *inline = None;
                }
                Some(_) => self.cached.push_back(ix),
                None => {}
            }
        }
        // Entries of freed objects go when they are the majority.
        if self.cached.len() > 1024 && self.cached.len() > 4 * self.count.max(256) {
            let mut seen = Set::default();
            let slab = &self.slab;
            self.cached.retain(|ix| {
                let cached = slab.get(*ix).is_some_and(|object| {
                    matches!(object.value, ObjectValue::Available { inline: Some(_), .. })
                });
                cached && seen.insert(*ix)
            });
        }
    }

    /// The object may have lost the last that could reach it.
    pub fn doubt(&mut self, ix: ObjectIx) {
        self.doubtful.push(ix);
    }

    pub fn has_doubtful(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// Removes the next unreachable object; its contents become doubtful (transitive and iterative).
    pub fn sweep_one(&mut self) -> Option<Object> {
        while let Some(ix) = self.doubtful.pop() {
            if self.slab.get(ix).is_none_or(Object::is_reachable) {
                continue;
            }
            let object = self.slab.remove(ix)?;
            self.count -= 1;
            if let Some(made) = self.makers.get_mut(&object.id.client) {
                made.remove(&object.id.local);
                if made.is_empty() {
                    self.makers.remove(&object.id.client);
                }
            }
            if let ObjectValue::Available { inline: Some(bytes), .. } = &object.value {
                self.cached_bytes -= bytes.len() as u64;
            }
            for inner in object.more().iter().flat_map(|more| more.contains.iter()) {
                if let Some(inner) = self.find(*inner) {
                    if let Some(object) = self.slab.get_mut(inner) {
                        object.containers -= 1;
                    }
                    self.doubtful.push(inner);
                }
            }
            return Some(object);
        }
        None
    }

    pub fn audit(&self) -> Result<(), String> {
        let mut bytes = 0;
        let mut count = 0;
        for (ix, object) in self.slab.iter() {
            count += 1;
            if self.find(object.id) != Some(ix) {
                return Err(format!("object {} is not where the index says", object.id));
            }
            if let ObjectValue::Available { inline: Some(inline), .. } = &object.value {
                bytes += inline.len() as u64;
            }
        }
        let indexed: usize = self.makers.values().map(|made| made.len()).sum();
        if count != self.count || indexed != count || bytes != self.cached_bytes {
            return Err(format!(
                "objects: {count} in slots, {indexed} in the index, {} counted; {bytes} bytes cached, {} counted",
                self.count, self.cached_bytes
            ));
        }
        Ok(())
    }
}
