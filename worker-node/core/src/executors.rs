//! Executors: how many there are, what each has been sent, and what becomes of that when one ends.

use std::collections::{BTreeMap, VecDeque};

use cluster_types::client_node::{NO_SLOT, RunTask};
use cluster_types::node_head::Retry;
use cluster_types::{
    ClientId, FailureKind, Location, NodeToClient, ObjectId, Outcome, Set, Span, TaskId, TaskKind, Time,
    Value,
};

use crate::attempts::{Queue, Stage};
use crate::catalogue::{PoolKey, PoolTraits};
use crate::event::{Effect, PROGRAM};
use crate::node::{Node, failure};
use crate::short_memory::OutOfMemory;

/// Slots of the page that daemon and executor share.
const SLOTS: u32 = 64;
/// A task that runs longer than this was not as short as its like: what was queued behind it is taken back.
const PATIENCE: Span = Span::millis(5);

/// Something sent to an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) tag: u64,
    pub(crate) task: TaskId,
    pub(crate) slot: u16,
    /// `Revoke` was asked for and not answered.
    pub(crate) revoking: bool,
}

/// What an executor ended and the head was not told yet.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) task: TaskId,
    pub(crate) outcome: Outcome,
    pub(crate) retry: Retry,
    pub(crate) micros: u64,
}

/// A process that runs tasks, from its start on.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) pool: PoolKey,
    /// Once it attached.
    pub(crate) client: Option<ClientId>,
    pub(crate) pid: u32,
    /// The first runs, the others are queued behind it.
    pub(crate) sent: VecDeque<Sent>,
    slots: u64,
    pub(crate) ended: Option<Ended>,
    pub(crate) blocked: bool,
    pub(crate) ending: bool,
    /// The actor whose it is; it runs nothing else any more.
    pub(crate) actor: Option<ObjectId>,
    /// Functions it was given.
    functions: Set<ObjectId>,
    /// When the running task began, or the executor became idle.
    pub(crate) since: Time,
    /// It is being ended for the memory that it takes.
    pub(crate) out_of_memory: Option<OutOfMemory>,
}

impl Executor {
    fn take_slot(&mut self) -> Option<u16> {
        let slot = (!self.slots).trailing_zeros();
        (slot < SLOTS).then(|| {
            self.slots |= 1 << slot;
            slot as u16
        })
    }

    /// Whether it has anything to do, or to answer for.
    pub(crate) fn is_at_work(&self) -> bool {
        !self.sent.is_empty() || self.ended.is_some()
    }

    fn free_slot(&mut self, slot: u16) {
        if u32::from(slot) < SLOTS {
            self.slots &= !(1 << slot);
        }
    }
}

/// Executors that are interchangeable.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// The last one to become idle is used first: its caches are warm, and the others can end.
    pub(crate) idle: Vec<u32>,
    pub(crate) starting: u32,
    /// Attempts with a lease that wait for an executor.
    pub(crate) waiting: Queue,
    /// Starts in a row that failed.
    failed_starts: u32,
}

impl Node {
    pub(crate) fn pool(&mut self, key: PoolKey) -> &mut Pool {
        self.pools.entry(key).or_default()
    }

    /// Forgets the pools of jobs that are over, and queues that nobody is in.
    pub(crate) fn forget_pools(&mut self) {
        self.ahead.retain(|_, queue| !queue.is_empty());
        let jobs = &self.jobs;
        let over =
            |(pool, traits): (&PoolKey, &PoolTraits)| (!jobs.contains_key(&traits.job)).then_some(*pool);
        let mut over: Set<PoolKey> = self.catalogue.traits.iter().filter_map(over).collect();
        if over.is_empty() {
            return;
        }
        for used in self.executors.values().map(|known| known.pool) {
            over.remove(&used);
        }
        for used in self.attempts.values().map(|known| known.pool) {
            over.remove(&used);
        }
        for pool in over {
            self.pools.remove(&pool);
            self.catalogue.forget_pool(pool);
        }
    }

    /// Gives a ready attempt with a lease an executor, or has it wait for one.
    pub(crate) fn dispatch(&mut self, task: TaskId, effects: &mut Vec<Effect>) {
        let Some(key) = self.attempts.get(&task).map(|attempt| attempt.pool) else { return };
        self.pool(key).waiting.push_back(task);
        self.feed(key, effects);
    }

    /// Sends waiting attempts to idle executors, and starts as many executors as are missing.
    pub(crate) fn feed(&mut self, key: PoolKey, effects: &mut Vec<Effect>) {
        loop {
            let pool = self.pool(key);
            let Some(task) = pool.waiting.front().copied() else { return };
            if self.waits_for_memory() {
                return;
            }
            let pool = self.pool(key);
            let Some(executor) = pool.idle.pop() else { break };
            pool.waiting.pop_front();
            if !self.executors.get(&executor).is_some_and(|known| known.client.is_some() && !known.ending) {
                self.pool(key).waiting.push_front(task);
                continue;
            }
            if !self.send(task, executor, effects) {
                self.pool(key).idle.push(executor);
                continue;
            }
            if let Some(known) = self.executors.get_mut(&executor) {
                known.since = self.now;
            }
            self.pipeline(executor, effects);
        }
        let Some(traits) = self.catalogue.traits.get(&key).cloned() else { return };
        let Some(info) = self.jobs.get(&traits.job).cloned() else { return };
        let program = self.program(&traits.env_vars);
        let pool = self.pool(key);
        let missing = (pool.waiting.len() as u32).saturating_sub(pool.starting);
        pool.starting += missing;
        for _ in 0..missing {
            let executor = self.next_executor;
            self.next_executor += 1;
            self.executors.insert(
                executor,
                Executor {
                    pool: key,
                    client: None,
                    pid: 0,
                    sent: VecDeque::new(),
                    slots: 0,
                    ended: None,
                    blocked: false,
                    ending: false,
                    actor: None,
                    functions: Set::default(),
                    since: self.now,
                    out_of_memory: None,
                },
            );
            effects.push(Effect::StartExecutor {
                executor,
                job: traits.job,
                info: info.clone(),
                env_vars: traits.env_vars.clone(),
                gpus: traits.gpus.clone(),
                program,
            });
        }
    }

    /// Where the program lies that executors with these variables run. Here, as it is their tasks' function (DEP-1).
    fn program(&self, env_vars: &BTreeMap<String, String>) -> Option<Location> {
        let object = env_vars.get(PROGRAM)?.rsplit(' ').next()?.parse().ok()?;
        self.objects.get(&object)?.memory.map(|memory| memory.location)
    }

    /// Sends an attempt whose arguments are here. False: they are not, any more; it went back to wait for them.
    pub(crate) fn send(&mut self, task: TaskId, executor: u32, effects: &mut Vec<Effect>) -> bool {
        let Some(assigned) = self.attempts.get(&task) else { return false };
        let spec = assigned.spec.clone();
        if spec.needed().any(|object| !self.objects.get(&object).is_some_and(|known| known.is_here())) {
            self.await_arguments(task, effects);
            return false;
        }
        let Some(client) = self.executors.get(&executor).and_then(|known| known.client) else { return false };
        let function = spec.template.function;
        let mut values: Vec<(ObjectId, Value)> = Vec::new();
        for object in spec.needed() {
            let again = object == function
                && self.executors.get_mut(&executor).is_some_and(|known| !known.functions.insert(object));
            if again || values.iter().any(|(have, _)| *have == object) {
                continue;
            }
            if let Some(value) = self.hand_out(object, client, effects) {
                values.push((object, value));
            }
        }
        self.unpin(task);
        self.next_tag += 1;
        let tag = self.next_tag;
        let Some(known) = self.executors.get_mut(&executor) else { return false };
        // Calls that run at once are begun as they come: there is nothing to take back.
        let concurrent =
            known.actor.and_then(|handle| self.actors.get(&handle)).is_some_and(|actor| !actor.in_order);
        let Some(slot) = (if concurrent { Some(NO_SLOT) } else { known.take_slot() }) else { return false };
        known.sent.push_back(Sent { tag, task, slot, revoking: false });
        let Some(assigned) = self.attempts.get_mut(&task) else { return false };
        assigned.stage = Stage::Sent { executor, tag };
        let gpus = assigned.lease.as_ref().map(|lease| lease.gpus.to_vec()).unwrap_or_default();
        let run = RunTask { tag, slot, attempt: assigned.attempt, spec, values, gpus };
        effects.push(Effect::ToClient { client, message: NodeToClient::Run(Box::new(run)) });
        self.pass_taken(task, client, tag, effects);
        true
    }

    /// Rule S3: queues tasks that were sent ahead behind the one that runs, if their function has proved short.
    pub(crate) fn pipeline(&mut self, executor: u32, effects: &mut Vec<Effect>) {
        let Some(known) = self.executors.get(&executor) else { return };
        let idles = known.blocked || known.ending || known.actor.is_some();
        if idles || self.cpu_used > self.config.resources.cpu {
            return;
        }
        let (pool, have) = (known.pool, known.sent.len());
        let Some(running) = known.sent.front().and_then(|sent| self.attempts.get(&sent.task)) else { return };
        let shape = running.shape;
        let template = running.spec.template.clone();
        // Nothing waits behind an actor that is being made: the executor will be its own.
        // Nor behind one that has not ended before its results are written.
        if template.kind != TaskKind::Function || template.durable {
            return;
        }
        let depth = self.catalogue.depth(&template);
        // Topped up by halves, so that messages go out in batches.
        if have > depth / 2 {
            return;
        }
        for _ in have..depth {
            let Some(next) = self.ahead.get_mut(&shape).and_then(Queue::pop_front) else { return };
            let fits = self.attempts.get(&next).is_some_and(|next| {
                next.pool == pool && next.lease.is_none() && next.spec.template.kind == TaskKind::Function
            });
            let short = fits
                && self
                    .attempts
                    .get(&next)
                    .map(|next| next.spec.template.clone())
                    .is_some_and(|next| !next.durable && self.catalogue.depth(&next) > 1);
            if !short {
                self.ahead.entry(shape).or_default().push_front(next);
                return;
            }
            self.send(next, executor, effects);
        }
    }

    /// Takes back what an executor has not started.
    pub(crate) fn revoke_queued(&mut self, executor: u32, effects: &mut Vec<Effect>) {
        // An actor's calls keep their order and wait.
        let Some(known) = self.executors.get_mut(&executor).filter(|known| known.actor.is_none()) else {
            return;
        };
        // What ended may not have been reported yet: then the first is in doubt, not running for certain.
        let running = usize::from(known.ended.is_none());
        // The last first: each goes back to the front of the queue it came from.
        for sent in known.sent.iter_mut().skip(running).rev().filter(|sent| !sent.revoking) {
            sent.revoking = true;
            effects.push(Effect::Revoke { executor, slot: sent.slot, tag: sent.tag });
        }
    }

    /// More runs than there are cores for: what has not started is taken back (rule S4).
    pub(crate) fn revoke_all_queued(&mut self, effects: &mut Vec<Effect>) {
        let queued: Vec<u32> =
            self.executors.iter().filter(|(_, known)| known.sent.len() > 1).map(|(id, _)| *id).collect();
        for executor in queued {
            self.revoke_queued(executor, effects);
        }
    }

    /// The task waits in `get`, or goes on.
    pub(crate) fn lend_cpu(&mut self, task: TaskId, lends: bool) {
        let Some(known) = self.attempts.get_mut(&task) else { return };
        let before = known.cpu();
        known.lends_cpu = lends;
        let after = known.cpu();
        self.cpu_used = self.cpu_used - before + after;
    }

    /// Takes back one, wherever it was sent.
    pub(crate) fn revoke(&mut self, executor: u32, tag: u64, effects: &mut Vec<Effect>) {
        let Some(known) = self.executors.get_mut(&executor) else { return };
        if let Some(sent) = known.sent.iter_mut().find(|sent| sent.tag == tag && !sent.revoking) {
            sent.revoking = true;
            effects.push(Effect::Revoke { executor, slot: sent.slot, tag });
        }
    }

    pub(crate) fn revoked(&mut self, executor: u32, tag: u64, won: bool, effects: &mut Vec<Effect>) {
        let Some(known) = self.executors.get_mut(&executor) else { return };
        let Some(at) = known.sent.iter().position(|sent| sent.tag == tag) else { return };
        if !won {
            known.sent[at].revoking = false;
            self.settle_ended(executor, effects);
            self.cancel_if_asked(executor, tag, effects);
            return;
        }
        let Some(sent) = known.sent.remove(at) else { return };
        known.free_slot(sent.slot);
        self.back_to_queue(sent.task, effects);
        self.settle_ended(executor, effects);
    }

    /// The executor speaks of this execution: it claimed it, whatever was to be taken back. It takes them in order, so
    /// those before it were taken back, and the answers that say so are on their way.
    pub(crate) fn proved_claimed(&mut self, executor: u32, tag: u64, effects: &mut Vec<Effect>) {
        let Some(known) = self.executors.get_mut(&executor) else { return };
        let Some(at) = known.sent.iter().position(|sent| sent.tag == tag) else { return };
        if let Some(claimed) = known.sent.remove(at) {
            known.sent.push_front(Sent { revoking: false, ..claimed });
        }
        self.settle_ended(executor, effects);
    }

    /// It was to be cancelled and could not be taken back: it runs.
    fn cancel_if_asked(&mut self, executor: u32, tag: u64, effects: &mut Vec<Effect>) {
        let Some(known) = self.executors.get(&executor) else { return };
        let Some(sent) = known.sent.iter().find(|sent| sent.tag == tag) else { return };
        let cancelled = self.attempts.get(&sent.task).and_then(|assigned| assigned.cancelled.clone());
        if let Some(reason) = cancelled.as_ref().filter(|_| known.actor.is_some()) {
            self.interrupt_call(executor, tag, reason, effects);
        } else if cancelled.is_some() {
            effects.push(Effect::EndExecutor { executor, force: true });
        }
    }

    /// An attempt that no executor has any more and that has not started.
    fn back_to_queue(&mut self, task: TaskId, effects: &mut Vec<Effect>) {
        let Some(assigned) = self.attempts.get_mut(&task) else { return };
        assigned.stage = Stage::Ready;
        if assigned.cancelled.is_some() {
            self.end_cancelled(task, effects);
        } else if assigned.lease.is_some() {
            self.make_ready(task, effects);
        } else if assigned.calling_back {
            let attempt = assigned.attempt;
            self.forget_attempt(task);
            self.tell_head(cluster_types::NodeToHead::Returned(vec![(task, attempt)]), effects);
        } else {
            let shape = assigned.shape;
            self.ahead.entry(shape).or_default().push_front(task);
            self.pin(task);
        }
    }

    /// The executor's front task ended: forgets it, and names the executor's next, which runs now.
    pub(crate) fn shift(&mut self, executor: u32, tag: u64) -> Option<TaskId> {
        let known = self.executors.get_mut(&executor)?;
        let at = known.sent.iter().position(|sent| sent.tag == tag)?;
        let sent = known.sent.remove(at)?;
        known.free_slot(sent.slot);
        known.blocked = false;
        known.since = self.now;
        Some(sent.task)
    }

    pub(crate) fn executor_attached(
        &mut self,
        executor: u32,
        client: ClientId,
        pid: u32,
        effects: &mut Vec<Effect>,
    ) {
        let Some(known) = self.executors.get_mut(&executor) else { return };
        (known.client, known.pid, known.since) = (Some(client), pid, self.now);
        let key = known.pool;
        let pool = self.pool(key);
        pool.starting = pool.starting.saturating_sub(1);
        pool.failed_starts = 0;
        pool.idle.push(executor);
        self.feed(key, effects);
    }

    pub(crate) fn became_idle(&mut self, executor: u32, effects: &mut Vec<Effect>) {
        let Some(known) =
            self.executors.get(&executor).filter(|known| known.sent.is_empty() && !known.ending)
        else {
            return;
        };
        let key = known.pool;
        self.pool(key).idle.push(executor);
        self.feed(key, effects);
    }

    pub(crate) fn executor_exited(
        &mut self,
        executor: u32,
        cause: &str,
        unstarted: &[u64],
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut gone) = self.executors.remove(&executor) else { return };
        let key = gone.pool;
        if let Some(actor) = gone.actor.take() {
            self.actor_exited(actor, gone, cause, unstarted, effects);
            return self.feed(key, effects);
        }
        let mut ended = gone.ended.take();
        let pool = self.pool(key);
        pool.idle.retain(|idle| *idle != executor);
        if gone.client.is_none() {
            pool.starting = pool.starting.saturating_sub(1);
            pool.failed_starts += 1;
            if pool.failed_starts >= 3 {
                pool.failed_starts = 0;
                let waiting = std::mem::take(&mut pool.waiting);
                for task in waiting {
                    let message = format!(
                        "{} could not run on node {}: no executor starts there: {cause}",
                        self.name(task),
                        self.me()
                    );
                    self.end_failed(
                        task,
                        FailureKind::ExecutorDied,
                        message,
                        Retry::Infrastructure,
                        None,
                        effects,
                    );
                }
            }
        }
        // What it had not claimed goes back first, so that a lease that falls free finds it.
        let (back, lost): (Vec<Sent>, Vec<Sent>) = gone.sent.into_iter().partition(|sent| {
            unstarted.contains(&sent.tag)
                && self.attempts.get(&sent.task).is_none_or(|task| task.lease.is_none())
        });
        for sent in back.into_iter().rev() {
            self.back_to_queue(sent.task, effects);
        }
        let mut lost = lost.into_iter().peekable();
        if let Some(ended) = ended.take_if(|ended| self.durable.is_written_for(ended.task)) {
            self.durable.orphans.insert(ended.task, (gone.client, ended));
        }
        if let Some(Ended { task, outcome, retry, micros }) = ended {
            let heir = lost.peek().map(|next| next.task);
            let heir = heir.filter(|next| self.attempts.get(next).is_some_and(|next| next.lease.is_none()));
            self.end_attempt(task, gone.client, outcome, retry, micros, heir, effects);
        }
        while let Some(sent) = lost.next() {
            if unstarted.contains(&sent.tag) {
                // It had a lease, but the process ended before it began.
                self.back_to_queue(sent.task, effects);
                continue;
            }
            // What it claimed and did not report follows in the same lease, one after the other.
            let heir = lost
                .peek()
                .map(|next| next.task)
                .filter(|next| self.attempts.get(next).is_some_and(|next| next.lease.is_none()));
            let reason = self.attempts.get(&sent.task).and_then(|task| task.cancelled.clone());
            let (kind, message, retry) = match (reason, &gone.out_of_memory) {
                (Some(reason), _) => (
                    FailureKind::Cancelled,
                    format!("{} was cancelled: {reason}", self.name(sent.task)),
                    Retry::No,
                ),
                (None, Some(OutOfMemory { why, retry })) => {
                    (FailureKind::OutOfMemory, format!("{} was ended: {why}", self.name(sent.task)), *retry)
                }
                (None, None) => {
                    let message = format!(
                        "{} lost its executor (pid {}) on node {}: {cause}",
                        self.name(sent.task),
                        gone.pid,
                        self.me()
                    );
                    (FailureKind::ExecutorDied, message, Retry::Infrastructure)
                }
            };
            let outcome = Outcome::Failed(failure(kind, message, Some(sent.task)));
            self.end_attempt(sent.task, gone.client, outcome, retry, 0, heir, effects);
        }
        self.feed(key, effects);
    }

    /// Ends executors that are idle for long, and takes back what waits behind tasks that turned out long.
    pub(crate) fn look_at_executors(&mut self, effects: &mut Vec<Effect>) {
        let mut stuck = Vec::new();
        let mut idle_long = Vec::new();
        for (id, executor) in &self.executors {
            let age = self.now.since(executor.since);
            if executor.actor.is_some() {
                continue;
            }
            if executor.sent.len() > 1 && age > PATIENCE {
                stuck.push(*id);
            }
            // What its process submitted would lose its submitter.
            let waits_for_own =
                |client| self.clients.get(&client).is_some_and(|known| !known.submitted.is_empty());
            if !executor.is_at_work()
                && executor.client.is_some_and(|client| !waits_for_own(client))
                && !executor.ending
                && age > self.config.idle_timeout
            {
                idle_long.push(*id);
            }
        }
        stuck.sort_unstable();
        idle_long.sort_unstable();
        for executor in stuck {
            self.revoke_queued(executor, effects);
        }
        for executor in idle_long {
            let Some(key) = self.executors.get(&executor).map(|known| known.pool) else { continue };
            if self.pool(key).idle.len() as u32 > self.config.idle_executors {
                self.end_executor(executor, effects);
            }
        }
    }

    pub(crate) fn end_executor(&mut self, executor: u32, effects: &mut Vec<Effect>) {
        let Some(known) = self.executors.get_mut(&executor) else { return };
        if std::mem::replace(&mut known.ending, true) {
            return;
        }
        let (key, client) = (known.pool, known.client);
        self.pool(key).idle.retain(|idle| *idle != executor);
        if let Some(client) = client {
            effects.push(Effect::ToClient { client, message: NodeToClient::Exit });
        }
        effects.push(Effect::EndExecutor { executor, force: false });
    }
}
