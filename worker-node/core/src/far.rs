//! Calls from clients of this node to actors of other nodes, and from theirs to actors of this one: past the head.
//!
//! A client asks for a way to an actor, the head says where that lives, and the two daemons open a conversation. From
//! then on calls go client, daemon, daemon, executor, and answers go back so. Neither daemon keeps a call: the client
//! does until it is answered, and what is on its way between daemons is kept by the conversation's two ends.
//!
//! - Nothing is overtaken: what the head has to know before the caller hears of an answer, or of an actor's end, is
//!   said to the head first, and the caller is told when the head has confirmed it.
//! - Rule A5: when the head says that a node is lost, nothing of its conversations counts any more.
//! - Rule A2: an end is told after all answers that were given. Where a conversation breaks, answers may be lost, and
//!   all that was not answered may have run.
//! - ORDER-1: the callee's end of a broken conversation notices first. What its executor had not begun is forgotten
//!   there before the caller has its calls back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::ActorPlace;
use cluster_types::{
    Attempt, ClientId, NodeId, NodeToClient, NodeToHead, NodeToNode, ObjectId, TaskId, TaskSpec,
};

use crate::actors::Actor;
use crate::event::Effect;
use crate::node::Node;

/// Unanswered calls that a caller may have at one actor, beside those that can run at once (rule A4).
const WINDOW: u32 = 1024;

/// What this node knows of calls between nodes.
#[derive(Debug, Default)]
pub(crate) struct Far {
    /// Nodes that clients of this node call actors on, and whether the conversation is open.
    callees: BTreeMap<NodeId, bool>,
    /// Where clients of this node call which actors.
    routes: BTreeMap<(ClientId, ObjectId), Route>,
    /// Actors that the head was asked about, and for whom.
    asked: BTreeMap<ObjectId, Vec<ClientId>>,
    /// What other nodes are told once the head has confirmed this number.
    unconfirmed: VecDeque<(u64, NodeId, NodeToNode)>,
    last_confirm: u64,
}

#[derive(Debug)]
struct Route {
    node: NodeId,
    attempt: Attempt,
    in_order: bool,
    window: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The client waits for the way.
    Opening,
    Open,
    /// Its end is asked for, for this node was itself out of touch.
    Closing,
}

impl Far {
    pub(crate) fn sizes(&self) -> [(&'static str, usize); 4] {
        [
            ("nodes of callees", self.callees.len()),
            ("routes to actors", self.routes.len()),
            ("actors asked about", self.asked.len()),
            ("unconfirmed messages", self.unconfirmed.len()),
        ]
    }
}

impl Node {
    // ---- the callers' node ----

    /// A client wants to call an actor that it can have no socket to. `here`: one of this node.
    pub(crate) fn find_far(
        &mut self,
        caller: ClientId,
        actor: ObjectId,
        here: Option<ActorPlace>,
        effects: &mut Vec<Effect>,
    ) {
        if self.far.routes.contains_key(&(caller, actor)) {
            return;
        }
        if let Some(place) = here {
            return self.open_far(caller, actor, place, effects);
        }
        let asking = self.far.asked.entry(actor).or_default();
        asking.push(caller);
        if asking.len() == 1 {
            self.tell_head(NodeToHead::FindActor(actor), effects);
        }
    }

    /// The head says where it lives.
    pub(crate) fn actor_at(&mut self, actor: ObjectId, place: Option<ActorPlace>, effects: &mut Vec<Effect>) {
        for caller in self.far.asked.remove(&actor).unwrap_or_default() {
            match &place {
                Some(place) if place.node != self.config.node => {
                    self.open_far(caller, actor, place.clone(), effects);
                }
                // It came here meanwhile: asked for again, there is a shorter way.
                _ => self.tell_client(caller, NodeToClient::NoCalls { actor }, effects),
            }
        }
    }

    fn open_far(&mut self, caller: ClientId, actor: ObjectId, place: ActorPlace, effects: &mut Vec<Effect>) {
        let ActorPlace { node, address, attempt, in_order, concurrency } = place;
        if !self.clients.contains_key(&caller) || self.far.routes.contains_key(&(caller, actor)) {
            return;
        }
        let window = WINDOW.saturating_add(concurrency);
        let route = Route { node, attempt, in_order, window, state: State::Opening };
        self.far.routes.insert((caller, actor), route);
        if node == self.config.node {
            return self.tell_peer(node, NodeToNode::Open { caller, actor, attempt }, effects);
        }
        match self.far.callees.get(&node) {
            Some(true) => self.tell_peer(node, NodeToNode::Open { caller, actor, attempt }, effects),
            Some(false) => {}
            None => {
                self.far.callees.insert(node, false);
                effects.push(Effect::ConnectPeer { node, address });
            }
        }
    }

    /// The conversation with a node that has actors is open.
    pub(crate) fn peer_opened(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        let Some(open) = self.far.callees.get_mut(&node) else { return };
        *open = true;
        let waiting: Vec<NodeToNode> = self
            .far
            .routes
            .iter()
            .filter(|(_, route)| route.node == node && route.state == State::Opening)
            .map(|(&(caller, actor), route)| NodeToNode::Open { caller, actor, attempt: route.attempt })
            .collect();
        waiting.into_iter().for_each(|message| self.tell_peer(node, message, effects));
    }

    pub(crate) fn has_far_route(&self, caller: ClientId, actor: ObjectId) -> bool {
        self.far.routes.contains_key(&(caller, actor))
    }

    /// A client sends a call.
    pub(crate) fn call_far(&mut self, spec: TaskSpec, effects: &mut Vec<Effect>) {
        let Some(actor) = spec.called_actor() else { return };
        let route = self.far.routes.get(&(spec.id.client, actor));
        // One that is sent while its way ends is taken back by the client with the others.
        if let Some(node) = route.filter(|route| route.state == State::Open).map(|route| route.node) {
            self.remember_call(&spec, actor);
            self.tell_peer(node, NodeToNode::Call(spec), effects);
        }
    }

    /// A client wants a call stopped that it sent so. False: it did not.
    pub(crate) fn cancel_far(
        &mut self,
        actor: ObjectId,
        task: TaskId,
        reason: &str,
        recursive: bool,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(route) = self.far.routes.get(&(task.client, actor)) else { return false };
        let node = route.node;
        let reason = reason.to_owned();
        self.tell_peer(node, NodeToNode::Cancel { actor, task, reason, recursive }, effects);
        true
    }

    /// A client is gone: it calls nobody any more. What it sent is run all the same.
    pub(crate) fn far_caller_gone(&mut self, caller: ClientId, effects: &mut Vec<Effect>) {
        for asking in self.far.asked.values_mut() {
            asking.retain(|known| *known != caller);
        }
        let first = ObjectId::from_bytes([0; 16]);
        let gone: Vec<(ObjectId, NodeId)> = self
            .far
            .routes
            .range((caller, first)..)
            .take_while(|((client, _), _)| *client == caller)
            .map(|((_, actor), route)| (*actor, route.node))
            .collect();
        for (actor, node) in gone {
            self.far.routes.remove(&(caller, actor));
            self.tell_peer(node, NodeToNode::Close { caller, actor, forget: false }, effects);
        }
    }

    /// The conversation with a node that has actors broke, or could not be opened.
    pub(crate) fn callees_lost(&mut self, node: NodeId, why: &str, effects: &mut Vec<Effect>) {
        self.far.callees.remove(&node);
        let routes: Vec<(ClientId, ObjectId)> =
            self.far.routes.iter().filter(|(_, route)| route.node == node).map(|(key, _)| *key).collect();
        for (caller, actor) in routes {
            self.far_ended(caller, actor, why, true, effects);
        }
    }

    /// No more answers will come.
    fn far_ended(
        &mut self,
        caller: ClientId,
        actor: ObjectId,
        why: &str,
        lost: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(route) = self.far.routes.remove(&(caller, actor)) else { return };
        self.forget_calls(caller, actor);
        let message = match route.state {
            State::Opening => NodeToClient::NoCalls { actor },
            State::Open | State::Closing => NodeToClient::CallsEnded { actor, why: why.to_owned(), lost },
        };
        self.tell_client(caller, message, effects);
    }

    /// FENCE-1: this node was out of touch with the head, which may take its clients' calls for lost.
    pub(crate) fn close_far_routes(&mut self, effects: &mut Vec<Effect>) {
        let routes: Vec<(ClientId, ObjectId, NodeId)> = self
            .far
            .routes
            .iter_mut()
            .filter(|(_, route)| route.state == State::Open)
            .map(|(&(caller, actor), route)| {
                route.state = State::Closing;
                (caller, actor, route.node)
            })
            .collect();
        for (caller, actor, node) in routes {
            self.tell_peer(node, NodeToNode::Close { caller, actor, forget: true }, effects);
        }
        self.ask_for_callees(effects);
    }

    fn ask_for_callees(&mut self, effects: &mut Vec<Effect>) {
        let asked: Vec<ObjectId> = self.far.asked.keys().copied().collect();
        asked.into_iter().for_each(|actor| self.tell_head(NodeToHead::FindActor(actor), effects));
        let numbers: Vec<u64> = self.far.unconfirmed.iter().map(|(number, ..)| *number).collect();
        numbers.into_iter().for_each(|number| self.tell_head(NodeToHead::Confirm(number), effects));
    }

    /// Another head leads. Conversations go on; of what is called it is asked again, so that it knows whom to tell when
    /// a node is lost (rule A5).
    pub(crate) fn find_callees_again(&mut self, effects: &mut Vec<Effect>) {
        let called: BTreeSet<ObjectId> = self.far.routes.keys().map(|(_, actor)| *actor).collect();
        let unasked = called.into_iter().filter(|actor| !self.far.asked.contains_key(actor));
        let unasked: Vec<ObjectId> = unasked.collect();
        unasked.into_iter().for_each(|actor| self.tell_head(NodeToHead::FindActor(actor), effects));
        self.ask_for_callees(effects);
    }

    /// Rule A5: the head says that a node is lost.
    pub(crate) fn peer_lost(&mut self, node: NodeId, why: &str, effects: &mut Vec<Effect>) {
        effects.push(Effect::DropPeer { node });
        self.callees_lost(node, why, effects);
        self.callers_lost(node, effects);
    }

    // ---- the callee's node ----

    fn open_caller(
        &mut self,
        node: NodeId,
        caller: ClientId,
        actor: ObjectId,
        attempt: Attempt,
        effects: &mut Vec<Effect>,
    ) {
        let executor =
            self.actors.get(&actor).filter(|known| known.takes_calls() && known.attempt == attempt);
        let ready = executor.and_then(|known| self.executors.get(&known.executor)).is_some_and(|executor| {
            !executor.ending && executor.client.is_some_and(|client| client != caller)
        });
        let Some(known) = self.actors.get_mut(&actor).filter(|_| ready) else {
            let why = format!("actor {actor} is not on node {} any more", self.me());
            return self.tell_peer(node, NodeToNode::Ended { caller, actor, why, lost: false }, effects);
        };
        if !known.far_callers.contains(&(node, caller)) {
            known.far_callers.push((node, caller));
        }
        self.tell_peer(node, NodeToNode::Opened { caller, actor }, effects);
    }

    /// The executor of an actor, if this client of that node may call it.
    fn called_executor(&self, node: NodeId, caller: ClientId, actor: ObjectId) -> Option<(ClientId, bool)> {
        let known = self.actors.get(&actor).filter(|known| known.far_callers.contains(&(node, caller)))?;
        Some((self.executors.get(&known.executor)?.client?, known.in_order))
    }

    fn close_caller(
        &mut self,
        node: NodeId,
        caller: ClientId,
        actor: ObjectId,
        forget: bool,
        effects: &mut Vec<Effect>,
    ) {
        let executor = self.called_executor(node, caller, actor);
        if let Some(known) = self.actors.get_mut(&actor) {
            known.far_callers.retain(|known| *known != (node, caller));
        }
        if !forget {
            return;
        }
        if let Some((executor, _)) = executor {
            self.tell_client(executor, NodeToClient::ForgetCalls(caller), effects);
        }
        let why = "the caller's node was out of touch with the head".to_owned();
        self.confirm(node, NodeToNode::Ended { caller, actor, why, lost: true }, effects);
    }

    /// A node whose clients call actors here is lost, or its conversation is.
    pub(crate) fn callers_lost(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        self.far.unconfirmed.retain(|(_, to, _)| *to != node);
        let mut forgotten: Vec<(u32, ClientId)> = Vec::new();
        for actor in self.actors.values_mut() {
            let executor = actor.executor;
            actor.far_callers.retain(|(of, caller)| {
                if *of == node {
                    forgotten.push((executor, *caller));
                }
                *of != node
            });
        }
        forgotten.sort_unstable();
        for (executor, caller) in forgotten {
            if let Some(client) = self.executors.get(&executor).and_then(|known| known.client) {
                self.tell_client(client, NodeToClient::ForgetCalls(caller), effects);
            }
        }
    }

    /// Whether this client of another node, or one without memory of this, calls the actor of this executor; and where it
    /// is.
    pub(crate) fn far_caller(&self, executor: ClientId, caller: ClientId) -> Option<NodeId> {
        let actor = self.actors.get(&self.actor_of(executor)?)?;
        actor.far_callers.iter().find(|(_, known)| *known == caller).map(|(node, _)| *node)
    }

    /// An executor answers a call that the daemons passed on.
    pub(crate) fn answer_far(
        &mut self,
        executor: ClientId,
        task: TaskId,
        outcome: FinishedOutcome,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(node) = self.far_caller(executor, task.client) {
            self.tell_peer(node, NodeToNode::Answer { task, outcome, known: false }, effects);
        }
    }

    /// An actor is no more: its callers elsewhere hear of it when the head knows.
    pub(crate) fn end_far_calls(&mut self, actor: &Actor, why: &str, lost: bool, effects: &mut Vec<Effect>) {
        for &(node, caller) in &actor.far_callers {
            let ended = NodeToNode::Ended { caller, actor: actor.handle(), why: why.to_owned(), lost };
            self.confirm(node, ended, effects);
        }
    }

    /// Says something to a caller's node when the head has taken in what was said before.
    pub(crate) fn confirm(&mut self, node: NodeId, message: NodeToNode, effects: &mut Vec<Effect>) {
        if node == self.config.node {
            return self.tell_peer(node, message, effects);
        }
        self.far.last_confirm += 1;
        let number = self.far.last_confirm;
        self.far.unconfirmed.push_back((number, node, message));
        self.tell_head(NodeToHead::Confirm(number), effects);
    }

    /// The head has taken in what was said before.
    pub(crate) fn confirmed(&mut self, number: u64, effects: &mut Vec<Effect>) {
        while self.far.unconfirmed.front().is_some_and(|(waiting, ..)| *waiting <= number) {
            let Some((_, node, message)) = self.far.unconfirmed.pop_front() else { return };
            self.tell_peer(node, message, effects);
        }
    }

    // ---- both ----

    /// Both may be this node: clients without shared memory call its actors so.
    fn tell_peer(&mut self, node: NodeId, message: NodeToNode, effects: &mut Vec<Effect>) {
        if node == self.config.node {
            self.peer_says(node, message, effects);
        } else {
            effects.push(Effect::ToPeer { node, message });
        }
    }

    pub(crate) fn peer_says(&mut self, node: NodeId, message: NodeToNode, effects: &mut Vec<Effect>) {
        // FENCE-1: a node that the head declared lost answers nothing.
        let trusted = message.is_of_caller()
            || node == self.config.node
            || self.far.callees.get(&node).is_some_and(|open| *open);
        if !trusted {
            return;
        }
        match message {
            NodeToNode::Open { caller, actor, attempt } => {
                self.open_caller(node, caller, actor, attempt, effects);
            }
            NodeToNode::Call(spec) => {
                let Some(actor) = spec.called_actor() else { return };
                if let Some((executor, in_order)) = self.called_executor(node, spec.id.client, actor) {
                    let spec = Box::new(spec);
                    self.tell_client(executor, NodeToClient::Called { in_order, spec }, effects);
                }
            }
            NodeToNode::Cancel { actor, task, reason, recursive } => {
                if self.called_executor(node, task.client, actor).is_some() {
                    self.stop_call(actor, task, reason, recursive, effects);
                }
            }
            NodeToNode::Close { caller, actor, forget } => {
                self.close_caller(node, caller, actor, forget, effects);
            }
            NodeToNode::Opened { caller, actor } => {
                let Some(route) =
                    self.far.routes.get_mut(&(caller, actor)).filter(|route| route.node == node)
                else {
                    return;
                };
                if route.state == State::Opening {
                    route.state = State::Open;
                    let (in_order, window) = (route.in_order, route.window);
                    self.tell_client(caller, NodeToClient::FarCalls { actor, in_order, window }, effects);
                }
            }
            NodeToNode::Answer { task, outcome, known } => {
                self.forget_call(task);
                if known {
                    self.remember_answer(task, &outcome);
                }
                let message = match known {
                    true => NodeToClient::Finished { task, outcome },
                    false => NodeToClient::FarAnswer { task, outcome },
                };
                self.tell_client(task.client, message, effects);
            }
            NodeToNode::Ended { caller, actor, why, lost } => {
                if self.far.routes.get(&(caller, actor)).is_some_and(|route| route.node == node) {
                    self.far_ended(caller, actor, &why, lost, effects);
                }
            }
        }
    }

    /// What must hold between steps.
    pub(crate) fn audit_far(&self) -> Result<(), String> {
        for ((caller, actor), route) in &self.far.routes {
            let reachable = route.node == self.config.node || self.far.callees.contains_key(&route.node);
            if !reachable || !self.clients.contains_key(caller) {
                return Err(format!("{caller} calls {actor} on {}, which cannot be", route.node));
            }
        }
        Ok(())
    }
}
