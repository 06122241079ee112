//! The node: what it knows, and what it does about each event.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_types::client_node::{Completion, PutValue, Welcome};
use cluster_types::node_head::Retry;
use cluster_types::{
    Attempt, ClientId, ClientKind, ClientToNode, Failure, FailureKind, HeadToNode, JobId, JobInfo, Lease,
    Map, NodeToClient, NodeToHead, ObjectId, Outcome, ResultValue, SegmentId, Set, Span, TaskId, TaskResult,
    TaskSpec, Time,
};

use crate::attempts::{Assigned, Attempts, Catalogue, PoolKey, Queue, ShapeKey, Stage};
use crate::event::{Effect, Event, NodeConfig};
use crate::executors::{Ended, Executor, Pool};
use crate::memory::Memories;
use crate::objects::Objects;

const HEARTBEAT: Span = Span::millis(500);

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

/// The node as a state machine. `step` is the only thing that changes it.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) now: Time,
    /// The head's stream is open.
    connected: bool,
    /// It was open before.
    was_connected: bool,
    /// Messages to the head from before its stream was open, in order. It has no bound of its own: the only limit is what
    /// clients say while the head is away.
    held_back: Vec<NodeToHead>,
    pub(crate) clients: Map<ClientId, Client>,
    pub(crate) jobs: Map<JobId, Arc<JobInfo>>,
    pub(crate) executors: BTreeMap<u32, Executor>,
    pub(crate) next_executor: u32,
    pub(crate) pools: Map<PoolKey, Pool>,
    pub(crate) catalogue: Catalogue,
    pub(crate) attempts: Attempts,
    /// Ready attempts sent ahead, by shape.
    pub(crate) ahead: Map<ShapeKey, Queue>,
    pub(crate) objects: Objects,
    pub(crate) memory: Memories,
    /// Specs of attached clients' tasks that have not ended, for a head that comes back without them (rule T6).
    unfinished: Map<TaskId, TaskSpec>,
    /// Small results since the last tick.
    pub(crate) fresh: Vec<ObjectId>,
    pub(crate) next_tag: u64,
    pub(crate) uses: u64,
    next_heartbeat: Time,
}

impl Node {
    /// A node that knows nobody yet.
    pub fn new(config: NodeConfig) -> Self {
        Self {
            config,
            now: Time::default(),
            connected: false,
            was_connected: false,
            fresh: Vec::new(),
            held_back: Vec::new(),
            clients: Map::default(),
            jobs: Map::default(),
            executors: BTreeMap::new(),
            next_executor: 1,
            pools: Map::default(),
            catalogue: Catalogue::default(),
            attempts: Attempts::default(),
            ahead: Map::default(),
            objects: Objects::default(),
            memory: Memories::default(),
            unfinished: Map::default(),
            next_tag: 0,
            uses: 0,
            next_heartbeat: Time::default(),
        }
    }

    /// Takes in one event; appends what to do about it, in order.
    pub fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        self.now = now;
        match event {
            Event::FromHead(message) => self.from_head(message, effects),
            Event::HeadLost => self.connected = false,
            Event::ClientAttached { client, pid, kind, shares_memory } => {
                self.client_attached(client, pid, kind, shares_memory, effects)
            }
            Event::FromClient { client, message } => {
                if self.clients.contains_key(&client) {
                    self.from_client(client, message, effects);
                }
            }
            Event::ClientEnded { client } => self.client_ended(client, effects),
            Event::ExecutorExited { executor, cause, unstarted } => {
                self.executor_exited(executor, &cause, &unstarted, effects)
            }
            Event::Revoked { executor, tag, won } => self.revoked(executor, tag, won, effects),
            Event::SegmentCreated { segment, failure } => self.segment_created(segment, failure, effects),
            Event::Stored { object, location } | Event::Restored { object, location } => {
                self.stored(object, location, effects)
            }
            Event::StoreFailed { object, missing, reason, no_memory } => {
                self.store_failed(object, missing, &reason, no_memory, effects)
            }
            Event::Spilled { objects } => self.spilled(objects, effects),
            Event::SpillFailed { objects, failure } => self.spill_failed(objects, &failure, effects),
            Event::Tick => self.tick(effects),
        }
    }

    fn tick(&mut self, effects: &mut Vec<Effect>) {
        self.look_at_executors(effects);
        self.look_at_memory(effects);
        self.serve_small(effects);
        if self.now >= self.next_heartbeat {
            self.next_heartbeat = self.now + HEARTBEAT;
            if self.connected {
                let store = self.store_usage();
                effects.push(Effect::ToHead(NodeToHead::Heartbeat {
                    store,
                    executors: self.executors.len() as u32,
                }));
            }
        }
    }

    pub(crate) fn to_head(&mut self, message: NodeToHead, effects: &mut Vec<Effect>) {
        if self.connected {
            effects.push(Effect::ToHead(message));
        } else {
            self.held_back.push(message);
        }
    }

    pub(crate) fn to_client(&self, client: ClientId, message: NodeToClient, effects: &mut Vec<Effect>) {
        if self.clients.contains_key(&client) {
            effects.push(Effect::ToClient { client, message });
        }
    }

    /// This node, for people.
    pub(crate) fn me(&self) -> String {
        format!("{} ({})", self.config.node, self.config.hostname)
    }

    /// A task here, for people.
    pub(crate) fn name(&self, task: TaskId) -> String {
        match self.attempts.get(&task) {
            Some(known) => format!("task {} ({task}{})", known.spec.template.name, known.attempt),
            None => format!("task {task}"),
        }
    }

    // ---- clients ----

    fn client_attached(
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
        self.to_head(NodeToHead::ClientAttached { client, kind: kind.clone(), job, pid }, effects);
        if let ClientKind::Executor { executor } = kind {
            self.executor_attached(executor, client, pid, effects);
        }
    }

    fn from_client(&mut self, client: ClientId, message: ClientToNode, effects: &mut Vec<Effect>) {
        match message {
            ClientToNode::Submit(spec) => {
                if spec.id.client == client && !self.unfinished.contains_key(&spec.id) {
                    if self.config.head_may_restart {
                        self.unfinished.insert(spec.id, spec.clone());
                    }
                    self.to_head(NodeToHead::Submit(spec), effects);
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
            ClientToNode::Hold(objects) => self.to_head(NodeToHead::Hold { client, objects }, effects),
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
                    self.to_head(NodeToHead::Drop { client, objects }, effects);
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
                    self.to_head(NodeToHead::Blocked { task, attempt, on }, effects);
                }
            }
            ClientToNode::Unblocked { tag } => {
                if let Some((executor, task, attempt)) = self.running(client, tag) {
                    if let Some(known) = self.executors.get_mut(&executor) {
                        known.blocked = false;
                        known.since = self.now;
                    }
                    self.to_head(NodeToHead::Unblocked { task, attempt }, effects);
                }
            }
            ClientToNode::Completed(completion) => self.completed(client, completion, effects),
            ClientToNode::Log(line) => self.to_head(NodeToHead::Log(vec![line]), effects),
            ClientToNode::Query { number, query } => {
                self.to_head(NodeToHead::Query { client, number, query }, effects)
            }
            ClientToNode::Goodbye => self.client_ended(client, effects),
        }
    }

    fn executor_of(&self, client: ClientId) -> Option<u32> {
        match self.clients.get(&client)?.kind {
            ClientKind::Executor { executor } => Some(executor),
            _ => None,
        }
    }

    /// The attempt that this executor runs under this tag.
    fn running(&self, client: ClientId, tag: u64) -> Option<(u32, TaskId, Attempt)> {
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
        self.to_head(NodeToHead::ClientGone { client }, effects);
    }

    // ---- the head ----

    fn from_head(&mut self, message: HeadToNode, effects: &mut Vec<Effect>) {
        match message {
            HeadToNode::Admitted { .. } => self.admitted(effects),
            HeadToNode::Job { job, info } => {
                self.jobs.insert(job, info);
            }
            HeadToNode::JobEnded(job) => self.job_ended(job, effects),
            HeadToNode::Assign { spec, attempt, lease, located } => {
                for (object, located) in located {
                    // The head frees functions on every node that was told of them, other small values at home only.
                    let keep = object == spec.template.function;
                    self.located(object, located, false, keep, effects);
                }
                self.assign(spec, attempt, lease, effects);
            }
            HeadToNode::Grant { task, attempt, lease } => self.grant(task, attempt, lease, effects),
            HeadToNode::CallBack(tasks) => {
                for (task, attempt) in tasks {
                    self.call_back(task, attempt, effects);
                }
            }
            HeadToNode::Cancel { task, attempt, reason, force } => {
                self.cancel(task, attempt, &reason, force, effects)
            }
            HeadToNode::Finished { task, outcome } => {
                self.unfinished.remove(&task);
                self.to_client(task.client, NodeToClient::Finished { task, outcome }, effects);
            }
            HeadToNode::Located { object, located } => self.located(object, located, true, false, effects),
            HeadToNode::Free(objects) => {
                for object in objects {
                    self.head_freed(object, effects);
                }
            }
            HeadToNode::ClientGone(client) => {
                if !self.clients.contains_key(&client) {
                    self.forget_unescaped_of(client, effects);
                }
            }
            HeadToNode::Log { client, lines } => self.to_client(client, NodeToClient::Log(lines), effects),
            HeadToNode::Notice { client, text } => {
                self.to_client(client, NodeToClient::Notice { text }, effects)
            }
            HeadToNode::RejectClient { client, failure } => {
                self.to_client(
                    client,
                    NodeToClient::Rejected { reason: failure.message.to_string() },
                    effects,
                );
                effects.push(Effect::CloseClient { client });
            }
            HeadToNode::Reply { client, number, reply } => {
                self.to_client(client, NodeToClient::Reply { number, reply }, effects)
            }
        }
    }

    /// A stream to the head is open. On a new one after another, everything of the old is over (FENCE-1): the head is
    /// told anew what clients and objects there are, and sends its attempts anew.
    fn admitted(&mut self, effects: &mut Vec<Effect>) {
        self.connected = true;
        let first = !std::mem::replace(&mut self.was_connected, true);
        if !first {
            self.end_all_attempts(effects);
            let mut clients: Vec<ClientId> = self.clients.keys().copied().collect();
            clients.sort_unstable();
            for client in clients {
                let known = &self.clients[&client];
                let (kind, job, pid) = (known.kind.clone(), known.job, known.pid);
                effects.push(Effect::ToHead(NodeToHead::ClientAttached { client, kind, job, pid }));
            }
            self.report_objects(effects);
            let mut specs: Vec<TaskSpec> = self.unfinished.values().cloned().collect();
            specs.sort_unstable_by_key(|spec| spec.id);
            effects.extend(specs.into_iter().map(|spec| Effect::ToHead(NodeToHead::Submit(spec))));
        }
        for message in std::mem::take(&mut self.held_back) {
            effects.push(Effect::ToHead(message));
        }
        self.next_heartbeat = self.now;
        self.tick(effects);
    }

    fn end_all_attempts(&mut self, effects: &mut Vec<Effect>) {
        let mut executors: Vec<u32> =
            self.executors.iter().filter(|(_, known)| !known.sent.is_empty()).map(|(id, _)| *id).collect();
        executors.sort_unstable();
        for executor in executors {
            if let Some(known) = self.executors.get_mut(&executor) {
                known.ending = true;
                known.sent.clear();
            }
            effects.push(Effect::EndExecutor { executor, force: true });
        }
        let tasks: Vec<TaskId> = self.attempts.keys().copied().collect();
        for task in tasks {
            self.forget_attempt(task);
        }
    }

    fn job_ended(&mut self, job: JobId, effects: &mut Vec<Effect>) {
        self.jobs.remove(&job);
        let traits = &self.catalogue.traits;
        let of_job = |executor: &Executor| traits[executor.pool.0 as usize].job == job;
        let ending: Vec<u32> =
            self.executors.iter().filter(|(_, known)| of_job(known)).map(|(id, _)| *id).collect();
        for executor in ending {
            self.end_executor(executor, effects);
        }
    }

    // ---- attempts ----

    fn assign(
        &mut self,
        spec: Arc<TaskSpec>,
        attempt: Attempt,
        lease: Option<Lease>,
        effects: &mut Vec<Effect>,
    ) {
        let task = spec.id;
        if self.attempts.contains_key(&task) {
            return; // The head ends one attempt before it makes another: this is a repeat.
        }
        let shape = self.catalogue.shape(&spec.template);
        let pool = self.pool_for(&spec, lease.as_ref());
        let assigned = Assigned {
            spec,
            attempt,
            lease,
            stage: Stage::Arguments,
            calling_back: false,
            cancelled: None,
            shape,
            pool,
            pinned: false,
        };
        self.attempts.insert(task, assigned);
        self.await_arguments(task, effects);
    }

    fn pool_for(&mut self, spec: &TaskSpec, lease: Option<&Lease>) -> PoolKey {
        let gpus =
            lease.map(|lease| lease.gpus.iter().map(|share| share.index).collect()).unwrap_or_default();
        self.catalogue.pool(spec.job, &spec.template, gpus)
    }

    /// Brings what the attempt needs; goes on when it is here (DEP-1).
    pub(crate) fn await_arguments(&mut self, task: TaskId, effects: &mut Vec<Effect>) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        assigned.stage = Stage::Arguments;
        let spec = assigned.spec.clone();
        let mut missing = false;
        for object in spec.needed() {
            let known = self.objects.entry(object).or_default();
            if !known.is_here() {
                missing = true;
                if !known.waiting_tasks.contains(&task) {
                    known.waiting_tasks.push(task);
                }
                self.fetch(object, effects);
            }
        }
        if !missing {
            self.make_ready(task, effects);
        }
    }

    /// Its arguments are here: it starts if it has a lease, else it waits for one.
    pub(crate) fn make_ready(&mut self, task: TaskId, effects: &mut Vec<Effect>) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        assigned.stage = Stage::Ready;
        let (leased, shape, spec) = (assigned.lease.is_some(), assigned.shape, assigned.spec.clone());
        self.pin(task);
        if leased {
            let lease = self.attempts.get(&task).and_then(|assigned| assigned.lease.clone());
            let pool = self.pool_for(&spec, lease.as_ref());
            if let Some(assigned) = self.attempts.get_mut(&task) {
                assigned.pool = pool;
            }
            self.dispatch(task, effects);
            return;
        }
        self.ahead.entry(shape).or_default().push_back(task);
        // Somebody who runs its like may take it along.
        let busy = self.executors.iter().find(|(_, known)| {
            !known.blocked
                && !known.ending
                && known.sent.len() == 1
                && self.attempts.get(&known.sent[0].task).is_some_and(|running| running.shape == shape)
        });
        if let Some(executor) = busy.map(|(id, _)| *id) {
            self.pipeline(executor, effects);
        }
    }

    fn grant(&mut self, task: TaskId, attempt: Attempt, lease: Lease, effects: &mut Vec<Effect>) {
        let Some(assigned) =
            self.attempts.get_mut(&task).filter(|known| known.attempt == attempt && known.lease.is_none())
        else {
            return;
        };
        assigned.lease = Some(lease);
        assigned.calling_back = false;
        match assigned.stage {
            Stage::Arguments => {}
            Stage::Ready => {
                let shape = assigned.shape;
                if let Some(queue) = self.ahead.get_mut(&shape) {
                    queue.retain(|have| *have != task);
                }
                self.make_ready(task, effects);
            }
            // Queued behind another: taken back if that has not come to it, and then it starts at once. If it has,
            // `Done` says so and the lease it inherited counts.
            Stage::Sent { executor, tag } => self.revoke(executor, tag, effects),
        }
    }

    fn call_back(&mut self, task: TaskId, attempt: Attempt, effects: &mut Vec<Effect>) {
        let Some(assigned) =
            self.attempts.get_mut(&task).filter(|known| known.attempt == attempt && known.lease.is_none())
        else {
            return;
        };
        if let Stage::Sent { executor, tag } = assigned.stage {
            assigned.calling_back = true;
            self.revoke(executor, tag, effects);
            return;
        }
        let shape = assigned.shape;
        if let Some(queue) = self.ahead.get_mut(&shape) {
            queue.retain(|have| *have != task);
        }
        self.forget_attempt(task);
        self.to_head(NodeToHead::Returned(vec![(task, attempt)]), effects);
    }

    fn cancel(
        &mut self,
        task: TaskId,
        attempt: Attempt,
        reason: &str,
        force: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(assigned) = self.attempts.get_mut(&task).filter(|known| known.attempt == attempt) else {
            return;
        };
        assigned.cancelled = Some(reason.to_owned());
        let Stage::Sent { executor, tag } = assigned.stage else {
            self.end_cancelled(task, effects);
            return;
        };
        let Some(known) = self.executors.get(&executor) else { return };
        if known.sent.front().is_none_or(|sent| sent.tag != tag) {
            self.revoke(executor, tag, effects);
        } else if force {
            effects.push(Effect::EndExecutor { executor, force: true });
        } else if let Some(client) = known.client {
            effects.push(Effect::Interrupt { executor, tag });
            self.to_client(client, NodeToClient::Cancel { tag, reason: reason.to_owned() }, effects);
        }
    }

    pub(crate) fn end_cancelled(&mut self, task: TaskId, effects: &mut Vec<Effect>) {
        let reason =
            self.attempts.get(&task).and_then(|assigned| assigned.cancelled.clone()).unwrap_or_default();
        let message = format!("{} was cancelled before it started: {reason}", self.name(task));
        self.end_failed(task, FailureKind::Cancelled, message, Retry::No, None, effects);
    }

    /// Ends an attempt that no executor runs.
    pub(crate) fn end_failed(
        &mut self,
        task: TaskId,
        kind: FailureKind,
        message: String,
        retry: Retry,
        heir: Option<TaskId>,
        effects: &mut Vec<Effect>,
    ) {
        self.end_attempt(
            task,
            None,
            Outcome::Failed(failure(kind, message, Some(task))),
            retry,
            0,
            heir,
            effects,
        );
    }

    /// Rule S2: an attempt ends, and another of its shape, sent ahead, starts in its lease: one message.
    pub(crate) fn end_attempt(
        &mut self,
        task: TaskId,
        executor: Option<ClientId>,
        outcome: Outcome,
        retry: Retry,
        micros: u64,
        heir: Option<TaskId>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(ended) = self.forget_attempt(task) else { return };
        let mut started = None;
        let mut start = None;
        if let Some(lease) = ended.lease {
            let inherited = heir.or_else(|| {
                let queue = self.ahead.get_mut(&ended.shape)?;
                let next = queue.pop_front()?;
                start = Some(next);
                Some(next)
            });
            if let Some(next) = inherited.and_then(|next| self.attempts.get_mut(&next)) {
                next.lease = Some(lease);
                next.calling_back = false;
                started = Some((next.spec.id, next.attempt));
            }
        }
        let done =
            NodeToHead::Done { task, attempt: ended.attempt, executor, outcome, retry, started, micros };
        self.to_head(done, effects);
        if let Some(next) = start {
            self.make_ready(next, effects);
        }
    }

    /// Takes an attempt out of every list but its executor's.
    pub(crate) fn forget_attempt(&mut self, task: TaskId) -> Option<Assigned> {
        self.unpin(task);
        let gone = self.attempts.remove(&task)?;
        match gone.stage {
            Stage::Arguments => {
                for object in gone.spec.needed() {
                    if let Some(known) = self.objects.get_mut(&object) {
                        known.waiting_tasks.retain(|waiting| *waiting != task);
                    }
                    self.forget_cached(object);
                }
            }
            Stage::Ready => {
                if gone.lease.is_some() {
                    self.pool(gone.pool).waiting.retain(|have| *have != task);
                } else if let Some(queue) = self.ahead.get_mut(&gone.shape) {
                    queue.retain(|have| *have != task);
                }
            }
            Stage::Sent { .. } => {}
        }
        Some(gone)
    }

    fn completed(&mut self, client: ClientId, completion: Completion, effects: &mut Vec<Effect>) {
        let Some(executor) = self.executor_of(client) else { return };
        self.proved_claimed(executor, completion.tag, effects);
        let Some(task) = self.shift(executor, completion.tag) else { return };
        let Some(assigned) = self.attempts.get(&task) else { return };
        let spec = assigned.spec.clone();
        self.catalogue.observe(&spec.template, completion.micros);
        let (outcome, retry) = match completion.result {
            Ok(results) if results.len() == spec.template.num_returns as usize => {
                let results = results
                    .into_iter()
                    .enumerate()
                    .map(|(index, result)| {
                        let object = task.result(index as u32);
                        let value = match &result.value {
                            PutValue::Inline(bytes) => ResultValue::Inline(bytes.clone()),
                            PutValue::Stored(location) => ResultValue::Stored { size: location.len },
                        };
                        self.keep_result(client, object, result.value, effects);
                        TaskResult { value, contains: result.contains }
                    })
                    .collect();
                (Outcome::Ok(results), Retry::No)
            }
            Ok(results) => {
                let message = format!(
                    "{} returned {} values, {} were declared with num_returns",
                    self.name(task),
                    results.len(),
                    spec.template.num_returns
                );
                (Outcome::Failed(failure(FailureKind::Internal, message, Some(task))), Retry::No)
            }
            Err(failed) => {
                (Outcome::Failed(failed.failure), if failed.retryable { Retry::Exception } else { Retry::No })
            }
        };
        if let Some(known) = self.executors.get_mut(&executor) {
            known.ended = Some(Ended { task, outcome, retry, micros: completion.micros });
        }
        self.settle_ended(executor, effects);
    }

    /// Reports what an executor ended, as soon as it is certain what it runs now: while the next in its queue is being
    /// taken back, nobody knows whether that inherits the lease (rules S2, S3).
    pub(crate) fn settle_ended(&mut self, executor: u32, effects: &mut Vec<Effect>) {
        let Some(known) = self.executors.get_mut(&executor) else { return };
        if known.sent.front().is_some_and(|next| next.revoking) {
            return;
        }
        let heir = known.sent.front().map(|next| next.task);
        let Some(Ended { task, outcome, retry, micros }) = known.ended.take() else { return };
        let client = known.client;
        let heir = heir.filter(|_| assigned_lease(&self.attempts, task));
        self.end_attempt(task, client, outcome, retry, micros, heir, effects);
        if self.executors.get(&executor).is_some_and(|known| known.sent.is_empty()) {
            self.became_idle(executor, effects);
        } else {
            self.pipeline(executor, effects);
        }
    }

    pub(crate) fn pin(&mut self, task: TaskId) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        if std::mem::replace(&mut assigned.pinned, true) {
            return;
        }
        for object in assigned.spec.clone().needed() {
            if let Some(known) = self.objects.get_mut(&object) {
                known.pins += 1;
            }
        }
    }

    pub(crate) fn unpin(&mut self, task: TaskId) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        if !std::mem::replace(&mut assigned.pinned, false) {
            return;
        }
        for object in assigned.spec.clone().needed() {
            if let Some(known) = self.objects.get_mut(&object) {
                known.pins = known.pins.saturating_sub(1);
            }
            self.forget_cached(object);
        }
    }

    /// Attempts that wait for an object which will never come.
    pub(crate) fn fail_waiting_tasks(
        &mut self,
        tasks: impl IntoIterator<Item = TaskId>,
        failure: &Failure,
        effects: &mut Vec<Effect>,
    ) {
        for task in tasks {
            self.end_attempt(task, None, Outcome::Failed(failure.clone()), Retry::No, 0, None, effects);
        }
    }
}

fn assigned_lease(attempts: &Attempts, task: TaskId) -> bool {
    attempts.get(&task).is_some_and(|assigned| assigned.lease.is_some())
}

pub(crate) fn failure(kind: FailureKind, message: String, task: Option<TaskId>) -> Failure {
    Failure { kind, message: message.into(), payload: bytes::Bytes::new(), task }
}
