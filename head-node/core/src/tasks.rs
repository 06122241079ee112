//! The task table: every task from its submission to its end, and the last that ended.
//!
//! `Waiting → Queued → (Prefetched →) Leased → ended`; back to `Queued` when an attempt is returned, or failed and is
//! tried again. TASK-2: a task has at most one attempt that counts, the one its state names; a report of any other is
//! stale.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::{Attempt, ClientId, JobId, Lease, Map, Set, TaskId, TaskSpec, Time};

use smallvec::SmallVec;

use crate::shapes::Choices;
use crate::slab::{NodeIx, ShapeIx, Slab, TaskIx};

/// Where a task is.
#[derive(Debug)]
pub(crate) enum TaskState {
    /// This many of its arguments do not exist yet (DEP-1).
    Waiting { missing: u32 },
    /// In its shape's queue (or in those of all its variants), under this ticket.
    Queued { ticket: u32 },
    /// It raised, and is tried again then.
    Delayed { until: Time },
    /// Sent ahead, without a lease (rule S2).
    Prefetched { node: NodeIx, since: Time, called_back: bool },
    /// It may run, and runs as soon as its arguments are there. `blocked`: it waits in `get` (rule S4).
    Leased { node: NodeIx, since: Time, lease: Lease, blocked: bool },
    /// A call whose arguments exist, in its actor's queue.
    AtActor,
    /// A call that its actor's node has.
    HandedOut { node: NodeIx, since: Time },
    /// A placement group that lacks leases for its bundles.
    Reserving,
    /// A call that its client sends to the actor itself, and whose result others know of.
    Direct,
    /// It made an actor, which lives in its lease.
    Alive { node: NodeIx, since: Time, lease: Lease },
}

/// One live task.
#[derive(Debug)]
pub(crate) struct Task {
    pub spec: Arc<TaskSpec>,
    pub shape: ShapeIx,
    /// If several requests would do: those, and the spec as it was submitted. `spec` and `shape` are of the one chosen,
    /// once it is.
    pub choices: Option<(Arc<Choices>, Arc<TaskSpec>)>,
    /// Tells apart tasks that had the same slot.
    pub stamp: u32,
    /// The number of the last attempt; 0 before the first.
    pub attempt: u32,
    /// The term in which that began.
    pub term: u32,
    /// How often it was tried again.
    pub retries: u32,
    pub submitted: Time,
    /// Somebody blocked waits for it (rule S4).
    pub promoted: bool,
    /// Nobody wants it any more; it ends when its node says so.
    pub cancelled: bool,
    /// It ended before, and runs once more because what it made was lost: nobody is told of its end again.
    pub made_again: bool,
    /// It was cancelled with its job, and submitted again before its node had answered.
    pub revived: bool,
    /// The bundle of its placement group in which it has its lease.
    pub bundle: Option<u32>,
    pub state: TaskState,
}

impl Task {
    /// The node that has its current attempt.
    pub fn node(&self) -> Option<NodeIx> {
        match self.state {
            TaskState::Prefetched { node, .. }
            | TaskState::Leased { node, .. }
            | TaskState::HandedOut { node, .. }
            | TaskState::Alive { node, .. } => Some(node),
            _ => None,
        }
    }

    /// Every shape that counts it: its own, or those of all its variants.
    pub fn shapes(&self) -> SmallVec<[ShapeIx; 2]> {
        match &self.choices {
            Some((choices, _)) => choices.variants.iter().map(|(ix, _)| *ix).collect(),
            None => SmallVec::from_slice(&[self.shape]),
        }
    }

    /// Tries that are not its own fault are not counted; it may have said that it wants none.
    pub fn may_try_again_uncounted(&self) -> bool {
        !self.cancelled && self.spec.template.max_retries != 0
    }

    pub fn may_retry(&self) -> bool {
        let most = self.spec.template.max_retries;
        !self.cancelled && (most < 0 || self.retries < most as u32)
    }
}

/// A task that ended, as `list tasks` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub id: TaskId,
    /// Its function's.
    pub name: Arc<str>,
    /// Whose.
    pub job: JobId,
    /// Why it failed; `None`: it did not.
    pub error: Option<Arc<str>>,
    /// Where it ran, if anywhere.
    pub node: Option<Arc<str>>,
    /// The last one.
    pub attempt: u32,
    /// When.
    pub submitted: Time,
    /// How long its function ran.
    pub micros: u64,
}

/// The tasks that ended last, and how many there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// In the order in which they ended.
    pub tasks: Vec<Ended>,
    /// Since the cluster began.
    pub finished: u64,
    /// Since the cluster began.
    pub failed: u64,
}

/// The table, by submitter and then by number.
#[derive(Debug)]
pub(crate) struct Tasks {
    slab: Slab<TaskIx, Task>,
    submitters: Map<ClientId, Map<u64, TaskIx>>,
    count: usize,
    stamps: u32,
    term: u32,
    history: VecDeque<Ended>,
    history_ids: Map<ClientId, Set<u64>>,
    history_kept: usize,
    /// How many of the last were not given out to be written.
    unwritten: usize,
    /// Ended since the cluster began: well, and not.
    pub finished: u64,
    pub failed: u64,
}

impl Tasks {
    /// Of tasks that ended in a term before, only people want to know: a task is not known by them as ended.
    pub fn new(term: u32, history_kept: usize, before: History) -> Self {
        let skipped = before.tasks.len().saturating_sub(history_kept);
        Self {
            slab: Slab::default(),
            submitters: Map::default(),
            count: 0,
            stamps: 0,
            term,
            history: before.tasks.into_iter().skip(skipped).collect(),
            history_ids: Map::default(),
            history_kept,
            unwritten: 0,
            finished: before.finished,
            failed: before.failed,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (TaskIx, &Task)> {
        self.slab.iter()
    }

    pub fn history(&self) -> &VecDeque<Ended> {
        &self.history
    }

    pub fn find(&self, id: TaskId) -> Option<TaskIx> {
        self.submitters.get(&id.client)?.get(&id.seq).copied()
    }

    pub fn ended(&self, id: TaskId) -> bool {
        self.history_ids.get(&id.client).is_some_and(|ended| ended.contains(&id.seq))
    }

    pub fn get(&self, ix: TaskIx) -> Option<&Task> {
        self.slab.get(ix)
    }

    pub fn get_mut(&mut self, ix: TaskIx) -> Option<&mut Task> {
        self.slab.get_mut(ix)
    }

    /// The task in this slot, if it is still the one of that stamp.
    pub fn stamped(&self, ix: TaskIx, stamp: u32) -> Option<&Task> {
        self.slab.get(ix).filter(|task| task.stamp == stamp)
    }

    pub fn submitted_by(&self, client: ClientId) -> Vec<TaskIx> {
        self.submitters.get(&client).map(|tasks| tasks.values().copied().collect()).unwrap_or_default()
    }

    pub fn insert(&mut self, spec: TaskSpec, shape: ShapeIx, now: Time) -> TaskIx {
        self.stamps = self.stamps.wrapping_add(1);
        let id = spec.id;
        let ix = self.slab.insert(Task {
            spec: Arc::new(spec),
            shape,
            choices: None,
            stamp: self.stamps,
            attempt: 0,
            term: self.term,
            retries: 0,
            submitted: now,
            promoted: false,
            cancelled: false,
            made_again: false,
            revived: false,
            bundle: None,
            state: TaskState::Waiting { missing: 0 },
        });
        self.submitters.entry(id.client).or_default().insert(id.seq, ix);
        self.count += 1;
        ix
    }

    /// The task is over; `ended` is remembered.
    pub fn remove(&mut self, ix: TaskIx) -> Option<Task> {
        let task = self.slab.remove(ix)?;
        self.count -= 1;
        let id = task.spec.id;
        if let Some(tasks) = self.submitters.get_mut(&id.client) {
            tasks.remove(&id.seq);
            if tasks.is_empty() {
                self.submitters.remove(&id.client);
            }
        }
        Some(task)
    }

    pub fn remember(&mut self, ended: Ended) {
        match ended.error {
            None => self.finished += 1,
            Some(_) => self.failed += 1,
        }
        self.history_ids.entry(ended.id.client).or_default().insert(ended.id.seq);
        self.history.push_back(ended);
        self.unwritten += 1;
        while self.history.len() > self.history_kept {
            if let Some(oldest) = self.history.pop_front() {
                self.forget_ended(oldest.id);
            }
        }
    }

    /// What ended since this was asked last, as far as it is remembered; `None`: nothing did, or too much for now.
    pub fn take_unwritten(&mut self, most: usize) -> Option<History> {
        if self.unwritten == 0 || self.unwritten > most {
            return None;
        }
        let known = self.history.len().saturating_sub(self.unwritten);
        self.unwritten = 0;
        let tasks = self.history.range(known..).cloned().collect();
        Some(History { tasks, finished: self.finished, failed: self.failed })
    }

    fn forget_ended(&mut self, id: TaskId) {
        if let Some(ended) = self.history_ids.get_mut(&id.client) {
            ended.remove(&id.seq);
            if ended.is_empty() {
                self.history_ids.remove(&id.client);
            }
        }
    }

    /// What the client submits from now on is new, whatever it submitted before.
    pub fn forget_history_of(&mut self, client: ClientId) {
        self.history_ids.remove(&client);
    }

    /// TASK-2: the task whose current attempt, on this node, this is.
    pub fn current(&self, id: TaskId, attempt: Attempt, node: NodeIx) -> Option<TaskIx> {
        let ix = self.find(id)?;
        let task = self.slab.get(ix)?;
        let is_current = attempt.term == task.term && attempt.n == task.attempt && task.node() == Some(node);
        is_current.then_some(ix)
    }

    /// The next try.
    pub fn begin_attempt(&mut self, ix: TaskIx) -> Option<&mut Task> {
        let term = self.term;
        let task = self.slab.get_mut(ix)?;
        task.attempt += 1;
        task.term = term;
        Some(task)
    }

    pub fn attempt_of(&self, task: &Task) -> Attempt {
        Attempt { term: task.term, n: task.attempt }
    }

    pub fn sizes(&self) -> [(&'static str, usize); 5] {
        [
            ("tasks", self.count),
            ("slots for tasks", self.slab.slots()),
            ("submitters of tasks", self.submitters.len()),
            ("ended tasks", self.history.len()),
            ("ids of ended tasks", self.history_ids.values().map(Set::len).sum()),
        ]
    }

    pub fn audit(&self) -> Result<(), String> {
        let mut count = 0;
        for (ix, task) in self.slab.iter() {
            count += 1;
            if self.find(task.spec.id) != Some(ix) {
                return Err(format!("task {} is not where the index says", task.spec.id));
            }
        }
        let indexed: usize = self.submitters.values().map(|tasks| tasks.len()).sum();
        if count != self.count || indexed != count || self.history.len() > self.history_kept {
            return Err(format!(
                "tasks: {count} in slots, {indexed} in the index, {} counted; {} remembered",
                self.count,
                self.history.len()
            ));
        }
        Ok(())
    }
}
