//! Calls that go from a client of this node straight to an actor's executor, past this daemon.
//!
//! The daemon joins the two by a socket, and takes part only where the call's result is more than a few bytes, where
//! somebody wants it to end, and when one of the two is no more.

use cluster_types::client_node::{
    CallReport, DIRECT_BIT, ExecutorResult, FinishedOutcome, PutValue, direct_tag,
};
use cluster_types::node_head::ActorPlace;
use cluster_types::{
    ClientId, Failure, INLINE_MAX, NodeToClient, NodeToHead, NodeToNode, ObjectId, ResultValue, TaskId,
};

use crate::actors::Actor;
use crate::event::Effect;
use crate::node::Node;

impl Node {
    /// A client wants a way to an actor: a socket to one of this node, else through the daemons.
    pub(crate) fn open_calls(&mut self, caller: ClientId, actor: ObjectId, effects: &mut Vec<Effect>) {
        let shares = self.clients.get(&caller).is_some_and(|known| known.shares_memory);
        let executor = self.actors.get(&actor).filter(|known| known.takes_calls()).and_then(|known| {
            self.executors.get(&known.executor).filter(|executor| !executor.ending)?.client
        });
        match (executor, self.actors.get_mut(&actor)) {
            (Some(executor), Some(known)) if shares && executor != caller => {
                if !known.callers.contains(&caller) {
                    known.callers.push(caller);
                    let in_order = known.in_order;
                    effects.push(Effect::JoinCalls { caller, executor, actor, in_order });
                }
            }
            (Some(executor), Some(known)) if executor != caller => {
                let here = ActorPlace {
                    node: self.config.node,
                    address: String::new(),
                    attempt: known.attempt,
                    in_order: known.in_order,
                    concurrency: known.concurrency,
                };
                self.find_far(caller, actor, Some(here), effects);
            }
            (_, Some(_)) => self.tell_client(caller, NodeToClient::NoCalls { actor }, effects),
            (_, None) => self.find_far(caller, actor, None, effects),
        }
    }

    /// The actor is no more, and the head was told: its callers have their calls back. `lost`: what its executor had
    /// answered may not have been read.
    pub(crate) fn end_calls(&mut self, actor: &Actor, why: &str, lost: bool, effects: &mut Vec<Effect>) {
        let why = format!("{} died: {why}", actor.title());
        for &caller in &actor.callers {
            // On a socket between the two nothing is lost: what was written is read to its last byte.
            let ended = NodeToClient::CallsEnded { actor: actor.handle(), why: why.clone(), lost: false };
            self.tell_client(caller, ended, effects);
        }
        self.end_far_calls(actor, &why, lost, effects);
    }

    /// A caller is gone; what it sent is run all the same.
    pub(crate) fn caller_gone(&mut self, caller: ClientId, effects: &mut Vec<Effect>) {
        let mut called: Vec<u32> = Vec::new();
        for actor in self.actors.values_mut() {
            if let Some(at) = actor.callers.iter().position(|known| *known == caller) {
                actor.callers.swap_remove(at);
                called.push(actor.executor);
            }
        }
        called.sort_unstable();
        for executor in called {
            if let Some(client) = self.executors.get(&executor).and_then(|known| known.client) {
                self.tell_client(client, NodeToClient::CallerGone(caller), effects);
            }
        }
        self.far_caller_gone(caller, effects);
    }

    /// A client wants a call of its own stopped that the head does not know.
    pub(crate) fn cancel_call(
        &mut self,
        actor: ObjectId,
        task: TaskId,
        reason: String,
        recursive: bool,
        effects: &mut Vec<Effect>,
    ) {
        if !self.cancel_far(actor, task, &reason, recursive, effects) {
            self.stop_call(actor, task, reason, recursive, effects);
        }
    }

    /// Stops a call that the head does not know, of an actor of this node.
    pub(crate) fn stop_call(
        &mut self,
        actor: ObjectId,
        task: TaskId,
        reason: String,
        recursive: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.actors.get(&actor) else { return };
        let (executor, in_order, tag) = (known.executor, known.in_order, direct_tag(task));
        let Some(client) = self.executors.get(&executor).and_then(|known| known.client) else { return };
        self.tell_client(client, NodeToClient::Cancel { tag, reason, recursive }, effects);
        if in_order {
            effects.push(Effect::Interrupt { executor, tag });
        }
    }

    /// An executor gives an answer that could not go straight back.
    pub(crate) fn answered(
        &mut self,
        client: ClientId,
        task: TaskId,
        result: Result<Vec<ExecutorResult>, Failure>,
        effects: &mut Vec<Effect>,
    ) {
        if self.actor_of(client).is_none() {
            return self.part_with(client, &format!("it answered {task}, and is no actor's"), effects);
        }
        let far = self.far_caller(client, task.client);
        let waited_for = far.is_some() || self.clients.contains_key(&task.client);
        let outcome = match result {
            Err(failure) => FinishedOutcome::Failed(failure),
            Ok(results) => {
                for result in &results {
                    if let Err(lie) = self.check_value(client, &result.value) {
                        return self.part_with(client, &format!("it answered {task}, but {lie}"), effects);
                    }
                }
                if !waited_for {
                    return self.give_back_results(client, results, effects);
                }
                let told = (0..)
                    .zip(results)
                    .map(|(index, result)| self.keep_answer(client, task.result(index), result, effects));
                FinishedOutcome::Ok(told.collect())
            }
        };
        match far {
            // The caller's node speaks to the head on a stream of its own, which must not overtake what was said here.
            Some(node) => {
                let known = matches!(outcome, FinishedOutcome::Ok(_));
                self.confirm(node, NodeToNode::Answer { task, outcome, known }, effects);
            }
            None => self.tell_client(task.client, NodeToClient::Finished { task, outcome }, effects),
        }
    }

    /// Notes a value, tells the head of it, and says what its caller is told.
    fn keep_answer(
        &mut self,
        client: ClientId,
        object: ObjectId,
        result: ExecutorResult,
        effects: &mut Vec<Effect>,
    ) -> ResultValue {
        let (told, size, inline) = match &result.value {
            PutValue::Inline(bytes) if bytes.len() <= INLINE_MAX => {
                (ResultValue::Inline(bytes.clone()), bytes.len() as u64, Some(bytes.clone()))
            }
            PutValue::Inline(bytes) => {
                let size = bytes.len() as u64;
                (ResultValue::Stored { size }, size, None)
            }
            PutValue::Stored(location) => (ResultValue::Stored { size: location.len }, location.len, None),
        };
        let contains = result.contains;
        self.keep_result(client, object, result.value, &contains, effects);
        self.pass_on(client, NodeToHead::Escaped { object, size, inline, contains }, effects);
        told
    }

    /// The actor that this client is the executor of.
    pub(crate) fn actor_of(&self, client: ClientId) -> Option<ObjectId> {
        self.executors.get(&self.executor_of(client)?)?.actor
    }

    /// For people.
    pub(crate) fn called(&mut self, client: ClientId, calls: Vec<CallReport>, effects: &mut Vec<Effect>) {
        if self.actor_of(client).is_some() {
            self.tell_head(NodeToHead::Called(calls), effects);
        }
    }

    /// A call that this daemon was not told of waits.
    pub(crate) fn direct_call_waits(
        &mut self,
        client: ClientId,
        tag: u64,
        on: Vec<ObjectId>,
        effects: &mut Vec<Effect>,
    ) {
        if tag & DIRECT_BIT != 0 && self.actor_of(client).is_some() {
            self.tell_head(NodeToHead::Promote(on), effects);
        }
    }
}
