//! Clients of this node: they attach, say what they say, and end.

use cluster_types::client_node::Welcome;
use cluster_types::query::Query;
use cluster_types::{
    Attempt, ClientId, ClientKind, ClientToNode, JobId, NodeToClient, NodeToHead, ObjectId, SegmentId, Set,
    TaskId,
};
use std::sync::Arc;

use crate::event::Effect;
use crate::node::Node;

/// Somebody attached here.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) kind: ClientKind,
    pub(crate) job: JobId,
    pub(crate) pid: u32,
    pub(crate) shares_memory: bool,
    /// Segments whose descriptor it has.
    pub(crate) segments: Set<SegmentId>,
    /// Objects it views.
    pub(crate) views: Set<ObjectId>,
    /// It was told where a value lies since memory was last recalled from it.
    pub(crate) told_more: bool,
    /// Of an executor: tasks that it submitted and that have not ended.
    pub(crate) submitted: Set<TaskId>,
    /// Objects it waits for.
    pub(crate) waits: Set<ObjectId>,
    /// Puts of its own that have not escaped.
    pub(crate) private: Set<ObjectId>,
    /// What it holds, as the head knows it; kept where another head may have to be told.
    pub(crate) held: Set<ObjectId>,
    /// It was caught in a lie, and told so.
    pub(crate) refused: bool,
    /// Bytes of the next segment leased to it, at least.
    pub(crate) growth: u64,
}

impl Node {
    pub(crate) fn client_attached(
        &mut self,
        client: ClientId,
        pid: u32,
        kind: ClientKind,
        shares_memory: bool,
        effects: &mut Vec<Effect>,
    ) {
        if self.clients.contains_key(&client) {
            return; // A second attach under the same id changes nothing but the connection.
        }
        let (job, info) = match &kind {
            ClientKind::Driver { job, info } => {
                self.jobs.insert(*job, info.clone());
                (*job, info.clone())
            }
            ClientKind::Executor { executor } => {
                let pool = self
                    .executors
                    .get(executor)
                    .filter(|known| known.client.is_none())
                    .map(|known| known.pool);
                let job = pool.and_then(|pool| self.catalogue.traits.get(&pool)).map(|traits| traits.job);
                let Some((job, info)) = job.and_then(|job| Some((job, self.jobs.get(&job)?.clone()))) else {
                    let reason =
                        "this daemon expects no such executor: its job is over, or it attached twice"
                            .to_owned();
                    effects.push(Effect::ToClient { client, message: NodeToClient::Rejected { reason } });
                    effects.push(Effect::CloseClient { client });
                    return;
                };
                (job, info)
            }
            ClientKind::Observer => (JobId::default(), Arc::default()),
        };
        let known = Client {
            kind: kind.clone(),
            job,
            pid,
            shares_memory,
            segments: Set::default(),
            views: Set::default(),
            told_more: false,
            submitted: Set::default(),
            waits: Set::default(),
            refused: false,
            private: Set::default(),
            held: Set::default(),
            // One value each, and no more memory than it needs.
            growth: if shares_memory { 8 << 20 } else { 0 },
        };
        self.clients.insert(client, known);
        let welcome = Welcome {
            node: self.config.node,
            job,
            info,
            store_capacity: self.config.store_capacity,
            cores: self.config.cores,
        };
        effects.push(Effect::ToClient { client, message: NodeToClient::Welcome(welcome) });
        self.tell_head(NodeToHead::ClientAttached { client, kind: kind.clone(), job, pid }, effects);
        if let ClientKind::Executor { executor } = kind {
            self.executor_attached(executor, client, pid, effects);
        }
    }

    pub(crate) fn client_says(&mut self, client: ClientId, message: ClientToNode, effects: &mut Vec<Effect>) {
        if self.clients.get(&client).is_some_and(|known| known.refused) {
            return; // What it says is not believed any more; its end comes from the edge.
        }
        match message {
            ClientToNode::Submit(spec) => {
                if spec.id.client == client && !self.remembered.awaits(spec.id) {
                    if let Some(known) = self.clients.get_mut(&client)
                        && matches!(known.kind, ClientKind::Executor { .. })
                    {
                        known.submitted.insert(spec.id);
                    }
                    self.pass_on(client, NodeToHead::Submit(spec), effects);
                }
            }
            ClientToNode::Put { object, value, contains } => {
                let known = self.objects.get(&object).is_some_and(|known| known.has_copy());
                if object.client != client || known {
                    return; // Not its own, or said twice.
                }
                match self.check_value(client, &value) {
                    Ok(()) => self.put(client, object, value, contains, effects),
                    Err(lie) => self.part_with(client, &format!("it put {object}, but {lie}"), effects),
                }
            }
            ClientToNode::PutFailed { object, failure } => {
                if object.client == client {
                    self.pass_on(client, NodeToHead::PutFailed { object, failure }, effects);
                }
            }
            ClientToNode::OpenCalls(actor) => self.open_calls(client, actor, effects),
            ClientToNode::Expect(spec) => {
                if spec.id.client == client {
                    self.pass_on(client, NodeToHead::Expect(spec), effects);
                }
            }
            ClientToNode::SubmitAgain { spec, may_have_run } => {
                if spec.id.client == client {
                    self.pass_on(client, NodeToHead::SubmitAgain { spec, may_have_run }, effects);
                }
            }
            ClientToNode::CancelCall { actor, task, reason, recursive } => {
                if task.client == client {
                    self.cancel_call(actor, task, reason, recursive, effects);
                }
            }
            ClientToNode::Answered { task, result } => self.answered(client, task, result, effects),
            ClientToNode::CallFar(spec) => {
                if spec.id.client == client {
                    self.call_far(spec, effects);
                }
            }
            ClientToNode::AnswerFar { task, outcome } => self.answer_far(client, task, outcome, effects),
            ClientToNode::Called(calls) => self.called(client, calls, effects),
            ClientToNode::Left { reason } => self.left(client, &reason, effects),
            ClientToNode::Escape(objects) => {
                for object in objects {
                    self.escape(client, object, effects);
                }
            }
            ClientToNode::Hold(objects) => {
                self.pass_on(client, NodeToHead::Hold { client, objects }, effects)
            }
            ClientToNode::Drop(mut objects) => {
                // What never escaped is this node's own business.
                objects.retain(|object| {
                    let own = object.client == client
                        && self.objects.get(object).is_some_and(|known| !known.escaped);
                    if own {
                        self.dropped_unescaped(*object, effects);
                    }
                    !own
                });
                if !objects.is_empty() {
                    self.pass_on(client, NodeToHead::Drop { client, objects }, effects);
                }
            }
            ClientToNode::Get(objects) => {
                for object in objects {
                    self.get(client, object, effects);
                }
            }
            ClientToNode::Release(objects) => {
                // Others may be freed the next moment, and need not be written to disk for that moment.
                let on_disk = |object| self.objects.get(object).is_some_and(|known| known.disk);
                let makes_room = objects.iter().any(on_disk);
                for object in objects {
                    self.release(client, object, effects);
                }
                if makes_room {
                    self.make_room(effects);
                }
            }
            ClientToNode::RequestMemory { bytes } => self.request_memory(client, bytes, effects),
            // The edge writes them, before this core hears what lies there.
            ClientToNode::Write { .. } => {}
            ClientToNode::ReturnMemory(segments) => self.return_memory(client, segments, effects),
            ClientToNode::Evicted { object, freed } => self.evicted(client, object, freed, effects),
            ClientToNode::Blocked { tag, on } => {
                if let Some(executor) = self.executor_of(client) {
                    self.proved_claimed(executor, tag, effects);
                }
                if let Some((executor, task, attempt)) = self.running(client, tag) {
                    // An actor's calls keep their order and wait.
                    if let Some(known) =
                        self.executors.get_mut(&executor).filter(|known| known.actor.is_none())
                    {
                        known.blocked = true;
                        self.lend_cpu(task, true);
                        self.revoke_queued(executor, effects);
                    }
                    self.tell_head(NodeToHead::Blocked { task, attempt, on }, effects);
                } else {
                    self.direct_call_waits(client, tag, on, effects);
                }
            }
            ClientToNode::Unblocked { tag } => {
                if let Some((executor, task, attempt)) = self.running(client, tag) {
                    if let Some(known) = self.executors.get_mut(&executor) {
                        known.blocked = false;
                        known.since = self.now;
                    }
                    self.lend_cpu(task, false);
                    if self.cpu_used > self.config.resources.cpu {
                        self.revoke_all_queued(effects);
                    }
                    self.tell_head(NodeToHead::Unblocked { task, attempt }, effects);
                }
            }
            ClientToNode::Completed(completion) => self.completed(client, completion, effects),
            ClientToNode::Yielded(yielded) => self.yielded(client, yielded, effects),
            ClientToNode::Taken { task, items, closed } => {
                if task.client == client {
                    self.pass_on(client, NodeToHead::Taken { task, items, closed }, effects);
                }
            }
            ClientToNode::Log(line) => {
                effects.push(Effect::KeepLine(line.clone()));
                self.tell_head(NodeToHead::Log(vec![line]), effects);
            }
            ClientToNode::Query { number, query: Query::MakeDurable { object } } => {
                self.make_put_durable(client, number, &object, effects);
            }
            ClientToNode::Query { number, query } => {
                if let Query::KeepState { object, .. } = &query
                    && let Ok(object) = object.parse()
                {
                    self.states.insert(object);
                }
                self.pass_on(client, NodeToHead::Query { client, number, query }, effects)
            }
            ClientToNode::Cancel(what) => self.pass_on(client, NodeToHead::Cancel { client, what }, effects),
            ClientToNode::Kill { actor, restart } => {
                self.pass_on(client, NodeToHead::Kill { client, actor, restart }, effects)
            }
            ClientToNode::Goodbye => self.client_ended(client, effects),
        }
    }

    /// Passes on what a client says, and remembers it for a head that comes after this one.
    pub(crate) fn pass_on(&mut self, client: ClientId, message: NodeToHead, effects: &mut Vec<Effect>) {
        self.remember(client, &message);
        self.tell_head(message, effects);
    }

    /// A client said what cannot be: it is told so, and no longer listened to. An executor is ended, a driver's process
    /// is not ours to end.
    pub(crate) fn part_with(&mut self, client: ClientId, lie: &str, effects: &mut Vec<Effect>) {
        let reason = format!("this daemon parted with client {client}: {lie}");
        self.tell_client(client, NodeToClient::Rejected { reason }, effects);
        effects.push(Effect::CloseClient { client });
        if let Some(known) = self.clients.get_mut(&client) {
            known.refused = true;
        }
        if let Some(executor) = self.executor_of(client) {
            effects.push(Effect::EndExecutor { executor, force: true });
        }
    }

    pub(crate) fn executor_of(&self, client: ClientId) -> Option<u32> {
        match self.clients.get(&client)?.kind {
            ClientKind::Executor { executor } => Some(executor),
            _ => None,
        }
    }

    /// The attempt that this executor runs under this tag.
    pub(crate) fn running(&self, client: ClientId, tag: u64) -> Option<(u32, TaskId, Attempt)> {
        let executor = self.executor_of(client)?;
        let known = self.executors.get(&executor)?;
        // An actor may run several at once; another executor runs the first.
        let at_once = if known.actor.is_some() { known.sent.len() } else { 1 };
        let sent = known.sent.iter().take(at_once).find(|sent| sent.tag == tag)?;
        Some((executor, sent.task, self.attempts.get(&sent.task)?.attempt))
    }

    pub(crate) fn client_ended(&mut self, client: ClientId, effects: &mut Vec<Effect>) {
        let Some(mut gone) = self.clients.remove(&client) else { return };
        let mut views: Vec<ObjectId> = gone.views.drain().collect();
        views.sort_unstable();
        for object in views {
            if let Some(known) = self.objects.get_mut(&object) {
                known.viewers.retain(|(viewer, _)| *viewer != client);
            }
            self.let_go(object);
            self.maybe_free(object, effects);
        }
        self.remembered.forget_client(client);
        let mut waits: Vec<ObjectId> = gone.waits.drain().collect();
        waits.sort_unstable();
        for object in waits {
            if let Some(known) = self.objects.get_mut(&object) {
                known.waiting_clients.retain(|waiting| *waiting != client);
            }
            self.forget_if_empty(object);
        }
        // What it put and never let escape is gone with it (rule R2).
        let mut private: Vec<ObjectId> = gone.private.drain().collect();
        private.sort_unstable();
        for object in private {
            self.freed(object, effects);
        }
        self.orphan_memory(client, effects);
        self.caller_gone(client, effects);
        self.tell_head(NodeToHead::ClientGone { client }, effects);
    }
}
