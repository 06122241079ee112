//! What this node remembers for a head that comes after the present one (rules H2, T6); [`snapshot`] is how it tells it.
//!
//! The present head is told everything once and keeps it in memory; when it dies, so does that. Its successor asks each
//! node. Most of the answer is what the node has anyway: clients, values, attempts, actors. What it has not is kept here
//! while it may be needed: specs until their ends are known, what clients hold, answers that are on their way
//! through the head, and wishes that the head may not have passed on.

mod snapshot;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::query::Query;
use cluster_types::{
    Attempt, ClientId, Failure, Map, NodeToHead, ObjectId, Outcome, Payload, ResultValue, TaskId, TaskSpec,
};

use crate::event::Effect;
use crate::node::Node;
use crate::streams::Taken;
pub(crate) use snapshot::handle_of;

/// What specs of ended tasks may take up; the oldest go first.
const MADE_MAX: usize = 64 << 20;
/// A spec beside its payload: an estimate.
const SPEC_BYTES: usize = 256;

/// What is kept for the next head.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// Tasks of attached clients that have not ended.
    unfinished: BTreeMap<TaskId, Unfinished>,
    /// Their tasks that ended and left something in the stores which may still be asked for.
    made: BTreeMap<TaskId, Arc<TaskSpec>>,
    /// How many unfinished and ended tasks take results of each task.
    takers: Map<TaskId, u32>,
    /// Of the payloads in `made`.
    made_bytes: usize,
    /// Why tasks of attached clients failed whose results somebody may still ask for.
    failed: BTreeMap<ObjectId, Failure>,
    /// Calls of attached clients that went past the head to other nodes, and are not answered: of which actor, and how
    /// many results.
    calls: Map<TaskId, (ObjectId, u32)>,
    /// Questions without an answer.
    questions: BTreeMap<(ClientId, u64), Query>,
    /// What was said, with the number of the mark that follows it: until that is settled.
    unsettled: VecDeque<(u64, NodeToHead)>,
    /// The number of the last mark.
    marks: u64,
    /// The number of the head's last pulse.
    heard: u64,
}

#[derive(Debug)]
struct Unfinished {
    spec: TaskSpec,
    way: Way,
    /// Of a task that yields: how many items its submitter was told of,
    told: u32,
    /// and what it said that it took.
    taken: Taken,
}

/// Who runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// The head sees to it.
    Submitted,
    /// The same; its client sent it by itself before, in vain.
    SubmittedAgain { may_have_run: Option<Arc<str>> },
    /// Its client sends it by itself.
    Expected,
}

impl Remembered {
    pub(crate) fn sizes(&self) -> [(&'static str, usize); 7] {
        [
            ("unfinished tasks", self.unfinished.len()),
            ("specs of ended tasks", self.made.len()),
            ("bytes of specs of ended tasks", self.made_bytes),
            ("makers of what is taken", self.takers.len()),
            ("reasons of failures", self.failed.len()),
            ("questions", self.questions.len()),
            ("unsettled messages", self.unsettled.len()),
        ]
    }

    /// Whether this task's end is not known.
    pub(crate) fn awaits(&self, task: TaskId) -> bool {
        self.unfinished.get(&task).is_some_and(|known| known.way != Way::Expected)
    }

    fn insert(&mut self, spec: &TaskSpec, way: Way) {
        let known = Unfinished { spec: spec.clone(), way, told: 0, taken: Taken::default() };
        if self.unfinished.insert(spec.id, known).is_none() {
            for maker in makers_of(spec) {
                *self.takers.entry(maker).or_default() += 1;
            }
        }
    }

    /// The spec takes nothing any more. Gives back the tasks of which nobody takes a result now.
    fn let_go_of(&mut self, spec: &TaskSpec) -> Vec<TaskId> {
        let mut untaken = Vec::new();
        for maker in makers_of(spec) {
            let Some(takers) = self.takers.get_mut(&maker) else { continue };
            *takers -= 1;
            if *takers == 0 {
                self.takers.remove(&maker);
                untaken.push(maker);
            }
        }
        untaken
    }

    /// Everything of a client that is gone.
    pub(crate) fn forget_client(&mut self, client: ClientId) {
        let first = TaskId { client, seq: 0 };
        let last = TaskId { client, seq: u64::MAX };
        let unfinished: Vec<TaskId> = self.unfinished.range(first..=last).map(|(task, _)| *task).collect();
        for task in unfinished {
            if let Some(gone) = self.unfinished.remove(&task) {
                self.let_go_of(&gone.spec);
            }
        }
        let made: Vec<TaskId> = self.made.range(first..=last).map(|(task, _)| *task).collect();
        made.into_iter().for_each(|task| drop(self.forget_made(task)));
        self.failed.retain(|object, _| object.client != client);
        self.calls.retain(|task, _| task.client != client);
        self.questions.retain(|(asking, _), _| *asking != client);
    }

    /// Gives back the tasks of which nobody takes a result any more.
    fn forget_made(&mut self, task: TaskId) -> Vec<TaskId> {
        let Some(spec) = self.made.remove(&task) else { return Vec::new() };
        self.made_bytes -= bytes_of(&spec);
        self.let_go_of(&spec)
    }

    /// What was said before a mark that is settled need not be said again.
    fn settle(&mut self, settled: u64) {
        while self.unsettled.front().is_some_and(|(mark, _)| *mark <= settled) {
            self.unsettled.pop_front();
        }
    }

    /// What ran on a stream that is over counts no more (FENCE-1).
    pub(crate) fn forget_ends(&mut self) {
        self.unsettled.retain(|(_, message)| !matches!(message, NodeToHead::Ended { .. }));
    }

    pub(crate) fn next_mark(&mut self) -> NodeToHead {
        self.marks += 1;
        NodeToHead::Mark { number: self.marks, heard: self.heard }
    }
}

/// Whose results it takes.
fn makers_of(spec: &TaskSpec) -> impl Iterator<Item = TaskId> + '_ {
    spec.held().filter_map(|held| held.task().map(|(task, _)| task))
}

fn bytes_of(spec: &TaskSpec) -> usize {
    let payload = match &spec.payload {
        Payload::Inline(bytes) => bytes.len(),
        Payload::Stored(_) => 0,
    };
    SPEC_BYTES + payload
}

impl Node {
    /// A client of this node says this to the head.
    pub(crate) fn remember(&mut self, client: ClientId, message: &NodeToHead) {
        if !self.config.head_may_restart {
            return;
        }
        match message {
            NodeToHead::Submit(spec) => self.remember_task(spec, Way::Submitted),
            NodeToHead::Expect(spec) => self.remember_task(spec, Way::Expected),
            NodeToHead::SubmitAgain { spec, may_have_run } => {
                self.remember_task(spec, Way::SubmittedAgain { may_have_run: may_have_run.clone() });
            }
            NodeToHead::PutFailed { object, failure } => {
                self.forget_expected(*object);
                self.remembered.failed.insert(*object, failure.clone());
            }
            NodeToHead::Escaped { object, .. } => {
                self.forget_expected(*object);
                if let Some(maker) = self.clients.get_mut(&object.client) {
                    maker.held.insert(*object);
                }
            }
            NodeToHead::Hold { objects, .. } => {
                if let Some(known) = self.clients.get_mut(&client) {
                    known.held.extend(objects);
                }
            }
            NodeToHead::Drop { objects, .. } => {
                let Some(known) = self.clients.get_mut(&client) else { return };
                for object in objects {
                    known.held.remove(object);
                }
                for object in objects {
                    self.forget_failure(*object);
                    self.forget_made(object.task().map(|(task, _)| task));
                }
            }
            NodeToHead::Taken { task, items, closed } => {
                if let Some(known) = self.remembered.unfinished.get_mut(task) {
                    known.taken.items = known.taken.items.max(*items);
                    known.taken.closed |= closed;
                }
            }
            NodeToHead::Query { number, query, .. } => {
                self.remembered.questions.insert((client, *number), query.clone());
            }
            NodeToHead::Cancel { .. } | NodeToHead::Kill { .. } => self.until_settled(message.clone()),
            _ => {}
        }
    }

    fn remember_task(&mut self, spec: &TaskSpec, way: Way) {
        self.remembered.insert(spec, way);
        if let Some(submitter) = self.clients.get_mut(&spec.id.client) {
            submitter.held.extend((0..spec.template.num_returns).map(|index| spec.id.result(index)));
        }
    }

    /// What a client expected has come.
    fn forget_expected(&mut self, object: ObjectId) {
        let Some((task, _)) = object.task() else { return };
        if self.remembered.unfinished.get(&task).is_some_and(|known| known.way == Way::Expected)
            && let Some(ended) = self.remembered.unfinished.remove(&task)
        {
            let untaken = self.remembered.let_go_of(&ended.spec);
            self.forget_made(untaken);
        }
    }

    /// A task of a client of this node has ended.
    pub(crate) fn forget_finished(&mut self, task: TaskId, outcome: &FinishedOutcome) {
        let ended = self.remembered.unfinished.remove(&task);
        for needed in ended.iter().flat_map(|ended| ended.spec.held()) {
            self.forget_failure(needed);
        }
        if let Some(ended) = &ended {
            self.keep_what_made(&ended.spec, outcome);
        }
        let (FinishedOutcome::Failed(failure), Some(submitter)) =
            (outcome, self.clients.get_mut(&task.client))
        else {
            return;
        };
        let Some(ended) = ended else { return };
        if ended.spec.template.stream.is_some() {
            // The failure of a stream stands where its next item would.
            submitter.held.insert(task.item(ended.told));
            self.remembered.failed.insert(task.item(ended.told), failure.clone());
        }
        // A task may need what its submitter has dropped.
        let is_taken = self.remembered.takers.contains_key(&task);
        for object in (0..ended.spec.template.num_returns).map(|index| task.result(index)) {
            let is_held = self.clients.get(&task.client).is_some_and(|maker| maker.held.contains(&object));
            if is_held || (is_taken && self.is_named(object)) {
                self.remembered.failed.insert(object, failure.clone());
            }
        }
    }

    /// Keeps the spec of a task that ended if it may have to run again.
    fn keep_what_made(&mut self, spec: &TaskSpec, outcome: &FinishedOutcome) {
        let in_stores = match outcome {
            FinishedOutcome::Ok(values) => {
                values.iter().any(|value| matches!(value, ResultValue::Stored { .. }))
            }
            FinishedOutcome::Failed(_) => false,
        };
        // Of a stream only the head knows how many items there were.
        if !in_stores || !spec.template.can_run_again() || spec.template.stream.is_some() {
            let untaken = self.remembered.let_go_of(spec);
            return self.forget_made(untaken);
        }
        self.remembered.made_bytes += bytes_of(spec);
        self.remembered.made.insert(spec.id, Arc::new(spec.clone()));
        self.forget_made([spec.id]);
        while self.remembered.made_bytes > MADE_MAX {
            let Some((first, _)) = self.remembered.made.first_key_value() else { return };
            let first = *first;
            let untaken = self.remembered.forget_made(first);
            self.forget_made(untaken);
        }
    }

    /// Forgets those of these tasks whose results nobody here holds or takes, and of which no result lies here: one that
    /// does is held by somebody elsewhere, who may ask for it when this node and the head that knew the task are gone.
    pub(crate) fn forget_made(&mut self, tasks: impl IntoIterator<Item = TaskId>) {
        let mut tasks: Vec<TaskId> = tasks.into_iter().collect();
        while let Some(task) = tasks.pop() {
            let Some(spec) = self.remembered.made.get(&task) else { continue };
            let holder = self.clients.get(&task.client);
            let mut results = (0..spec.template.num_returns).map(|index| task.result(index));
            let is_kept = results.any(|result| {
                holder.is_some_and(|holder| holder.held.contains(&result))
                    || self.objects.get(&result).is_some_and(|known| known.has_copy() && !known.freed)
            });
            if !is_kept && !self.remembered.takers.contains_key(&task) {
                tasks.extend(self.remembered.forget_made(task));
            }
        }
    }

    /// Forgets why a task failed, unless somebody still asks for its results: a client, or a task that needs them.
    fn forget_failure(&mut self, object: ObjectId) {
        if !self.remembered.failed.contains_key(&object) {
            return;
        }
        let is_held = self.clients.get(&object.client).is_some_and(|maker| maker.held.contains(&object));
        if !is_held && !self.is_named(object) {
            self.remembered.failed.remove(&object);
        }
    }

    /// Whether an unfinished task needs it.
    fn is_named(&self, object: ObjectId) -> bool {
        let mut unfinished = self.remembered.unfinished.values();
        unfinished.any(|known| known.spec.held().any(|held| held == object))
    }

    /// A task of a client of this node has yielded. False: the client knows, and holds the item or has dropped it.
    pub(crate) fn is_new_item(&mut self, task: TaskId, index: u32, effects: &mut Vec<Effect>) -> bool {
        if !self.config.head_may_restart {
            return true;
        }
        let Some(submitter) = self.clients.get_mut(&task.client) else { return false };
        let item = task.item(index);
        let is_new = match self.remembered.unfinished.get_mut(&task) {
            Some(known) if index < known.told => false,
            Some(known) => {
                known.told = index + 1;
                true
            }
            None => true,
        };
        if is_new {
            submitter.held.insert(item);
        } else if !submitter.held.contains(&item) {
            // The head that says it again holds it for the client, as at the first time.
            self.tell_head(NodeToHead::Drop { client: task.client, objects: vec![item] }, effects);
        }
        is_new
    }

    /// A call of a client of this node goes to an actor of another.
    pub(crate) fn remember_call(&mut self, spec: &TaskSpec, actor: ObjectId) {
        if self.config.head_may_restart {
            self.remembered.calls.insert(spec.id, (actor, spec.template.num_returns));
        }
    }

    /// An answer has come; or, if the client hears of none, it sees to the call by itself.
    pub(crate) fn forget_call(&mut self, task: TaskId) {
        self.remembered.calls.remove(&task);
    }

    pub(crate) fn forget_calls(&mut self, caller: ClientId, actor: ObjectId) {
        self.remembered.calls.retain(|task, (of, _)| task.client != caller || *of != actor);
    }

    /// A call of a client of this node was answered elsewhere; the head was told there.
    pub(crate) fn remember_answer(&mut self, task: TaskId, outcome: &FinishedOutcome) {
        if !self.config.head_may_restart {
            return;
        }
        self.forget_expected(task.result(0));
        if let (FinishedOutcome::Ok(results), Some(caller)) = (outcome, self.clients.get_mut(&task.client)) {
            caller.held.extend((0..).zip(results).map(|(index, _)| task.result(index)));
        }
    }

    pub(crate) fn forget_question(&mut self, client: ClientId, number: u64) {
        self.remembered.questions.remove(&(client, number));
    }

    /// How an attempt ended, until its submitter is known to have heard (rule R5).
    pub(crate) fn remember_end(
        &mut self,
        spec: &Arc<TaskSpec>,
        attempt: Attempt,
        outcome: &Outcome,
        retry: Retry,
        micros: u64,
        lived: bool,
    ) {
        if self.config.head_may_restart {
            let (spec, outcome) = (spec.clone(), outcome.clone());
            self.until_settled(NodeToHead::Ended { spec, attempt, outcome, retry, micros, lived });
        }
    }

    fn until_settled(&mut self, message: NodeToHead) {
        let next = self.remembered.marks + 1;
        self.remembered.unsettled.push_back((next, message));
    }

    pub(crate) fn pulse(&mut self, number: u64, settled: u64) {
        self.remembered.heard = number;
        self.remembered.settle(settled);
    }
}
