//! Calls that wait for their actor, and in which order it is given them.
//!
//! ORDER-1: an actor that takes calls in order is given those of one caller by rising number. A call whose arguments do
//! not exist yet holds up those of its caller behind it, and nobody else's.

use std::collections::{BTreeMap, VecDeque};

use cluster_types::{ActorTraits, ClientId, HeadToNode, Lease, ObjectId, Outcome, TaskId};

use crate::head::Head;
use crate::objects::ObjectValue;
use crate::slab::TaskIx;
use crate::tasks::TaskState;
use crate::values::NotThere;

/// Calls that a node has and has not answered, for each actor, beside those that can run at once.
const WINDOW: usize = 256;

/// How many calls may be at an actor's node: all that it can run at once among them, for one may wait for another. In
/// an actor with groups those of one group must not keep out another's.
fn window(traits: &ActorTraits) -> usize {
    if traits.groups.is_empty() { WINDOW + traits.max_concurrency as usize } else { usize::MAX }
}

/// The calls of one actor.
#[derive(Debug)]
pub(crate) struct Calls {
    in_order: bool,
    /// All that were not handed out, by caller and number; whether their arguments exist, and whether they are in
    /// `next`.
    queue: BTreeMap<(ClientId, u64), Queued>,
    /// Those that may be handed out, in the order in which they became so.
    next: VecDeque<(ClientId, u64)>,
    pub handed_out: usize,
    /// Its node returned a call though the actor is said to live: the news is on its way, and until then nothing is
    /// handed out but once a tick.
    paused: bool,
    /// The actor died, and calls are still out to where it was: they may come back, and go before all that were
    /// submitted after them (ORDER-1).
    draining: bool,
}

#[derive(Debug)]
struct Queued {
    task: TaskIx,
    ready: bool,
    offered: bool,
}

fn key(id: TaskId) -> (ClientId, u64) {
    (id.client, id.seq)
}

impl Calls {
    pub fn new(in_order: bool) -> Self {
        Self {
            in_order,
            queue: BTreeMap::new(),
            next: VecDeque::new(),
            handed_out: 0,
            paused: false,
            draining: false,
        }
    }

    /// Not handed out.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn enter(&mut self, id: TaskId, task: TaskIx, ready: bool) {
        self.queue.insert(key(id), Queued { task, ready, offered: false });
        // One that comes back goes before what its caller was offered after it.
        let behind = self.in_order
            && self.queue.range(key(id)..=(id.client, u64::MAX)).any(|(_, queued)| queued.offered);
        if behind {
            self.restarts();
        }
        self.advance(id.client);
    }

    /// The actor is no more where calls are out to.
    pub fn lost_home(&mut self) {
        self.draining = self.in_order && self.handed_out > 0;
    }

    /// Whether nothing may be handed out at this moment.
    fn is_held_up(&mut self, window: usize) -> bool {
        self.draining &= self.handed_out > 0;
        self.draining || self.paused || self.handed_out >= window
    }

    /// What was offered is offered anew, in order.
    pub fn restarts(&mut self) {
        for at in std::mem::take(&mut self.next) {
            if let Some(queued) = self.queue.get_mut(&at) {
                queued.offered = false;
            }
        }
        let mut callers: Vec<ClientId> = self.queue.keys().map(|(client, _)| *client).collect();
        callers.dedup();
        for caller in callers {
            self.advance(caller);
        }
    }

    fn ready(&mut self, id: TaskId) {
        if let Some(queued) = self.queue.get_mut(&key(id)) {
            queued.ready = true;
        }
        self.advance(id.client);
    }

    /// Offers what may go of one caller's calls.
    fn advance(&mut self, caller: ClientId) {
        for (at, queued) in self.queue.range_mut((caller, 0)..=(caller, u64::MAX)) {
            if queued.ready && !queued.offered {
                queued.offered = true;
                self.next.push_back(*at);
            } else if !queued.ready && self.in_order {
                break;
            }
        }
    }

    fn leave(&mut self, id: TaskId) {
        if self.queue.remove(&key(id)).is_some_and(|queued| queued.offered) {
            self.next.retain(|at| *at != key(id));
        }
        self.advance(id.client);
    }

    fn take_next(&mut self) -> Option<TaskIx> {
        let at = self.next.pop_front()?;
        self.queue.remove(&at).map(|queued| queued.task)
    }

    /// Everything that was not handed out.
    pub fn take_all(&mut self) -> Vec<TaskIx> {
        self.next.clear();
        std::mem::take(&mut self.queue).into_values().map(|queued| queued.task).collect()
    }

    pub fn audit(&self) -> Result<(), String> {
        let offered = self.queue.values().filter(|queued| queued.offered).count();
        if offered != self.next.len() {
            return Err(format!("{offered} calls are offered, {} listed", self.next.len()));
        }
        let mut held_up: Option<ClientId> = None;
        for ((caller, seq), queued) in &self.queue {
            if self.in_order && held_up == Some(*caller) && queued.offered {
                return Err(format!("call {seq} of {caller} is offered before one in front of it"));
            }
            if !queued.offered {
                held_up = Some(*caller);
            }
        }
        Ok(())
    }
}

impl Head {
    /// A call was submitted; the actor may be dead, or unknown.
    pub(crate) fn enter_call(&mut self, handle: ObjectId, ix: TaskIx, ready: bool) {
        let Some(task) = self.tasks.get(ix) else { return };
        let (id, stamp) = (task.spec.id, task.stamp);
        match self.actors.get_mut(handle) {
            Some(actor) if actor.death.is_none() => {
                actor.calls.enter(id, ix, ready);
                self.feed_actor(handle);
            }
            Some(actor) => {
                let failure = actor.death.clone();
                self.failing.extend(failure.map(|failure| (ix, stamp, failure)));
            }
            None => {
                let failure = match self.objects.by_id(handle).map(|object| &object.value) {
                    Some(ObjectValue::Failed(cause)) => self.death_of(handle, &cause.message),
                    _ => self.death_of(handle, "it is not known here: it ended, or was never made"),
                };
                self.failing.push((ix, stamp, failure));
            }
        }
    }

    /// The call's arguments exist.
    pub(crate) fn call_ready(&mut self, handle: ObjectId, id: TaskId) {
        if let Some(actor) = self.actors.get_mut(handle) {
            actor.calls.ready(id);
            self.feed_actor(handle);
        }
    }

    /// The call, not handed out, ends.
    pub(crate) fn call_leaves(&mut self, handle: ObjectId, id: TaskId) {
        if let Some(actor) = self.actors.get_mut(handle) {
            actor.calls.leave(id);
            self.feed_actor(handle);
        }
    }

    /// The node gave a call back.
    pub(crate) fn call_returned(&mut self, handle: ObjectId) {
        if self.home_of(handle).is_some()
            && let Some(actor) = self.actors.get_mut(handle)
            && !std::mem::replace(&mut actor.calls.paused, true)
        {
            self.paused_actors.push(handle);
        }
    }

    /// At every tick.
    pub(crate) fn resume_calls(&mut self) {
        for handle in std::mem::take(&mut self.paused_actors) {
            if let Some(actor) = self.actors.get_mut(handle) {
                actor.calls.paused = false;
                self.feed_actor(handle);
            }
        }
    }

    /// Hands out what may go, if the actor lives.
    pub(crate) fn feed_actor(&mut self, handle: ObjectId) {
        let Some((node, _)) = self.home_of(handle) else { return };
        loop {
            let Some(actor) = self.actors.get_mut(handle) else { return };
            let window = window(actor.traits());
            if actor.calls.is_held_up(window) {
                return;
            }
            let Some(ix) = actor.calls.take_next() else { return };
            let Some(task) = self.tasks.get(ix) else { continue };
            let spec = task.spec.clone();
            let located = match self.located_for(&spec, node) {
                Ok(located) => located,
                // DEP-1: an argument was lost while the call waited.
                Err(NotThere::Gone(failure)) => {
                    self.finish(ix, Outcome::Failed(failure), None, None, 0);
                    continue;
                }
                Err(NotThere::IsMadeAgain) => {
                    let Some(stamp) = self.tasks.get(ix).map(|task| task.stamp) else { return };
                    self.wait_for_arguments(ix, &spec, stamp);
                    continue;
                }
            };
            self.tell_of_job(node, &spec);
            let now = self.now;
            let Some(task) = self.tasks.begin_attempt(ix) else { continue };
            task.state = TaskState::HandedOut { node, since: now };
            if let Some(state) = self.nodes.get_mut(node) {
                state.attempts.insert(ix);
            }
            if let Some(actor) = self.actors.get_mut(handle) {
                actor.calls.handed_out += 1;
            }
            let Some(attempt) = self.tasks.get(ix).map(|task| self.tasks.attempt_of(task)) else { continue };
            let id = spec.id;
            self.send(node, HeadToNode::Assign { spec, attempt, lease: Some(Lease::default()), located });
            self.begin_stream(id);
        }
    }
}
