//! What actors keep over their restarts: objects that their executors put, and name as their state.
//!
//! The newest state is copied to a second node, if there is one. The state before it is kept until then, so that the loss
//! of one node at any moment leaves one of them. The actor holds them (REF-1) until it is dead for good.

use cluster_types::query::QueryReply;
use cluster_types::{Attempt, ClientId, HeadToNode, Located, Map, ObjectId, Span, Time};
use smallvec::SmallVec;

use crate::head::Head;
use crate::objects::{Object, ObjectValue};
use crate::slab::{NodeIx, TaskIx};
use crate::tasks::Task;

/// An executor is told that its state is kept after this time at the latest, on a second node or not.
const ANSWER_WITHIN: Span = Span::secs(5);
/// A copy that is not there by then is asked for again, of another node perhaps.
const COPY_WITHIN: Span = Span::secs(10);
/// States are looked at this often: nodes are lost, and join.
const LOOK_EVERY: Span = Span::secs(1);

/// What an actor keeps.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The oldest first: at most one that is safe, and one that is newer and not safe yet.
    states: SmallVec<[ObjectId; 2]>,
    /// The newest is being copied.
    copying: Option<(NodeIx, Time)>,
    /// Who waits to hear that it is kept.
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    node: NodeIx,
    client: ClientId,
    number: u64,
    until: Time,
}

impl Kept {
    pub fn states(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.states.iter().copied()
    }
}

/// Which actors keep something.
#[derive(Debug, Default)]
pub(crate) struct KeptStates {
    /// By their states.
    actors: Map<ObjectId, ObjectId>,
    looked: Option<Time>,
}

impl KeptStates {
    pub fn len(&self) -> usize {
        self.actors.len()
    }
}

impl Head {
    /// An executor asks that this object be kept as the state of its actor.
    pub(crate) fn keep_state(
        &mut self,
        node: NodeIx,
        (client, number): (ClientId, u64),
        actor: &str,
        (term, n): (u32, u32),
        object: &str,
    ) {
        match self.enter_state(node, actor, Attempt { term, n }, object) {
            Ok(handle) => {
                let until = self.now + ANSWER_WITHIN;
                if let Some(actor) = self.actors.get_mut(handle) {
                    actor.kept.waiting.push(Waiting { node, client, number, until });
                }
                self.secure_state(handle);
            }
            Err(why) => self.send(node, HeadToNode::Reply { client, number, reply: Err(why) }),
        }
    }

    /// FENCE-1: what an earlier life of the actor says changes nothing.
    fn living_there(
        &self,
        node: NodeIx,
        actor: &str,
        attempt: Attempt,
    ) -> Result<(ObjectId, TaskIx), String> {
        let handle: ObjectId = actor.parse().map_err(|error| format!("{error}"))?;
        let ix = self.actors.get(handle).and_then(|actor| actor.task);
        let lives = |task: &Task| task.node() == Some(node) && self.tasks.attempt_of(task) == attempt;
        match ix.filter(|ix| self.tasks.get(*ix).is_some_and(lives)) {
            Some(ix) => Ok((handle, ix)),
            None => Err(format!("actor {handle} does not live there any more: its state is another's now")),
        }
    }

    /// The executor of an actor on a node that is to leave kept its state and begins no more calls.
    pub(crate) fn move_actor(
        &mut self,
        node: NodeIx,
        (client, number): (ClientId, u64),
        actor: &str,
        (term, n): (u32, u32),
    ) {
        let leaves = self.nodes.get(node).is_some_and(|node| node.draining.is_some());
        let refused = match self.living_there(node, actor, Attempt { term, n }) {
            Err(why) => Some(why),
            Ok(_) if !leaves => Some("its node is not to leave".to_owned()),
            Ok((handle, ix)) => match self.actors.get_mut(handle) {
                Some(actor) if actor.ending.is_none() => {
                    actor.moves = true;
                    let name = self.nodes.name(node);
                    self.end_actor(ix, &format!("it moves, since node {name} is to leave"), true, true);
                    None
                }
                _ => Some("it was told to end".to_owned()),
            },
        };
        if let Some(why) = refused {
            self.send(node, HeadToNode::Reply { client, number, reply: Err(why) });
        }
    }

    fn enter_state(
        &mut self,
        node: NodeIx,
        actor: &str,
        attempt: Attempt,
        object: &str,
    ) -> Result<ObjectId, String> {
        let (handle, _) = self.living_there(node, actor, attempt)?;
        let object: ObjectId = object.parse().map_err(|error| format!("{error}"))?;
        let is_there = |object: &Object| matches!(object.value, ObjectValue::Available { .. });
        if !self.objects.by_id(object).is_some_and(is_there) || self.kept_states.actors.contains_key(&object)
        {
            return Err(format!("object {object} cannot be the state of an actor: nobody put it as one"));
        }
        self.add_container(object);
        self.kept_states.actors.insert(object, handle);
        let Some(actor) = self.actors.get_mut(handle) else { return Ok(handle) };
        let kept = &mut actor.kept;
        // The one that is not safe yet never will be: this one is newer.
        let passed_over = if kept.states.len() > 1 { kept.states.pop() } else { None };
        kept.states.push(object);
        kept.copying = None;
        if let Some(old) = passed_over {
            self.let_state_go(old);
        }
        self.store_actor(handle);
        Ok(handle)
    }

    /// A state that the head before this one kept.
    pub(crate) fn restore_state(&mut self, handle: ObjectId, state: ObjectId) {
        self.add_container(state);
        self.kept_states.actors.insert(state, handle);
        if let Some(actor) = self.actors.get_mut(handle) {
            actor.kept.states.push(state);
        }
    }

    /// Sees to it that the newest state is on two nodes. When it is, or cannot be, it is the only one.
    fn secure_state(&mut self, handle: ObjectId) {
        let Some(kept) = self.actors.get(handle).map(|actor| &actor.kept) else { return };
        let Some(newest) = kept.states.last().copied() else { return };
        let copying = kept.copying;
        let Some(ix) = self.objects.find(newest) else { return };
        let Some(object) = self.objects.get(ix) else { return };
        let copies: SmallVec<[NodeIx; 2]> =
            object.copies().filter(|copy| self.nodes.is_alive(*copy)).take(2).collect();
        let target = match copies.as_slice() {
            [only] => self.roomiest_beside(*only),
            [] => return,
            _ => None,
        };
        let Some(target) = target else { return self.state_is_safe(handle) };
        if copying.is_some_and(|(to, since)| self.nodes.is_alive(to) && self.now.since(since) < COPY_WITHIN) {
            return;
        }
        let Some(located) = self.located(ix).filter(|located| !matches!(located, Located::Failed(_))) else {
            return;
        };
        if let Some(actor) = self.actors.get_mut(handle) {
            actor.kept.copying = Some((target, self.now));
        }
        let contains = self.contents_of(ix);
        self.send(target, HeadToNode::Copy { object: newest, located, contains });
    }

    fn state_is_safe(&mut self, handle: ObjectId) {
        let Some(actor) = self.actors.get_mut(handle) else { return };
        let kept = &mut actor.kept;
        let newest = kept.states.pop();
        let older = std::mem::replace(&mut kept.states, newest.into_iter().collect());
        kept.copying = None;
        let changed = !older.is_empty();
        for state in older {
            self.let_state_go(state);
        }
        if changed {
            self.store_actor(handle);
        }
        self.answer_keepers(handle, |_| true);
    }

    fn answer_keepers(&mut self, handle: ObjectId, whom: impl Fn(&Waiting) -> bool) {
        let Some(actor) = self.actors.get_mut(handle) else { return };
        let newest: Vec<String> = actor.kept.states.last().map(ObjectId::to_string).into_iter().collect();
        let (answered, waiting) =
            std::mem::take(&mut actor.kept.waiting).into_iter().partition(|one| whom(one));
        actor.kept.waiting = waiting;
        for Waiting { node, client, number, .. } in answered as Vec<Waiting> {
            let reply = Ok(QueryReply::States(newest.clone()));
            self.send(node, HeadToNode::Reply { client, number, reply });
        }
    }

    /// A node has a copy of this, which may be the state of an actor.
    pub(crate) fn state_copied(&mut self, object: ObjectId) {
        if let Some(handle) = self.kept_states.actors.get(&object).copied() {
            self.secure_state(handle);
        }
    }

    /// At every tick.
    pub(crate) fn look_at_states(&mut self) {
        let now = self.now;
        if self.kept_states.looked.is_some_and(|at| now.since(at) < LOOK_EVERY) {
            return;
        }
        self.kept_states.looked = Some(now);
        let mut all: Vec<ObjectId> = self.kept_states.actors.values().copied().collect();
        all.sort_unstable_by_key(|handle| (handle.client, handle.local));
        all.dedup();
        for handle in all {
            self.secure_state(handle);
            self.answer_keepers(handle, |one| now >= one.until);
        }
    }

    /// What was kept of an actor's state, the newest first. What is lost is named too: its node may come back with it.
    pub(crate) fn states_of(&self, actor: &str) -> Result<Vec<String>, String> {
        let handle: ObjectId = actor.parse().map_err(|error| format!("{error}"))?;
        let actor = self.actors.get(handle).ok_or_else(|| format!("there is no actor {handle}"))?;
        Ok(actor.kept.states.iter().rev().map(ObjectId::to_string).collect())
    }

    /// The actor is dead for good.
    pub(crate) fn forget_states(&mut self, handle: ObjectId) {
        let Some(actor) = self.actors.get_mut(handle) else { return };
        for state in std::mem::take(&mut actor.kept).states {
            self.let_state_go(state);
        }
    }

    fn let_state_go(&mut self, state: ObjectId) {
        self.kept_states.actors.remove(&state);
        let Some(ix) = self.objects.find(state) else { return };
        if let Some(object) = self.objects.get_mut(ix) {
            object.containers -= 1;
            self.objects.doubt(ix);
        }
    }
}
