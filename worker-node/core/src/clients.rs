//! Clients of this node: they attach, say what they say, and end.

use cluster_types::client_node::Welcome;
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
                let job =
                    pool.and_then(|pool| self.catalogue.traits.get(pool.0 as usize)).map(|traits| traits.job);
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
            growth: 8 << 20,
        };
        if self.clients.insert(client, known).is_some() {
            return; // A second attach under the same id changes nothing but the connection.
        }
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
        match message {
            ClientToNode::Submit(spec) => {
                if spec.id.client == client && !self.unfinished.contains_key(&spec.id) {
                    if self.config.head_may_restart {
                        self.unfinished.insert(spec.id, spec.clone());
                    }
                    self.tell_head(NodeToHead::Submit(spec), effects);
                }
            }
            ClientToNode::Put { object, value, contains } => {
                if object.client == client && object.is_put() {
                    self.put(client, object, value, contains, effects);
                }
            }
            ClientToNode::Escape(objects) => {
                for object in objects {
                    self.escape(client, object, effects);
                }
            }
            ClientToNode::Hold(objects) => self.tell_head(NodeToHead::Hold { client, objects }, effects),
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
                    self.tell_head(NodeToHead::Drop { client, objects }, effects);
                }
            }
            ClientToNode::Get(objects) => {
                for object in objects {
                    self.get(client, object, effects);
                }
            }
            ClientToNode::Release(objects) => {
                for object in objects {
                    self.release(client, object, effects);
                }
            }
            ClientToNode::RequestMemory { bytes } => self.request_memory(client, bytes, effects),
            ClientToNode::ReturnMemory(segments) => self.return_memory(client, segments, effects),
            ClientToNode::Evicted { object, freed } => self.evicted(client, object, freed, effects),
            ClientToNode::Blocked { tag, on } => {
                if let Some(executor) = self.executor_of(client) {
                    self.proved_claimed(executor, tag, effects);
                }
                if let Some((executor, task, attempt)) = self.running(client, tag) {
                    if let Some(known) = self.executors.get_mut(&executor) {
                        known.blocked = true;
                    }
                    self.revoke_queued(executor, effects);
                    self.tell_head(NodeToHead::Blocked { task, attempt, on }, effects);
                }
            }
            ClientToNode::Unblocked { tag } => {
                if let Some((executor, task, attempt)) = self.running(client, tag) {
                    if let Some(known) = self.executors.get_mut(&executor) {
                        known.blocked = false;
                        known.since = self.now;
                    }
                    self.tell_head(NodeToHead::Unblocked { task, attempt }, effects);
                }
            }
            ClientToNode::Completed(completion) => self.completed(client, completion, effects),
            ClientToNode::Log(line) => self.tell_head(NodeToHead::Log(vec![line]), effects),
            ClientToNode::Query { number, query } => {
                self.tell_head(NodeToHead::Query { client, number, query }, effects)
            }
            ClientToNode::Cancel(what) => self.tell_head(NodeToHead::Cancel { client, what }, effects),
            ClientToNode::Kill { actor, restart } => {
                self.tell_head(NodeToHead::Kill { client, actor, restart }, effects)
            }
            ClientToNode::Goodbye => self.client_ended(client, effects),
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
        let sent = self.executors.get(&executor)?.sent.front().filter(|sent| sent.tag == tag)?;
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
            self.maybe_free(object, effects);
        }
        self.unfinished.retain(|task, _| task.client != client);
        for known in self.objects.values_mut() {
            known.waiting_clients.retain(|waiting| *waiting != client);
        }
        self.orphan_memory(client, effects);
        self.tell_head(NodeToHead::ClientGone { client }, effects);
    }
}
