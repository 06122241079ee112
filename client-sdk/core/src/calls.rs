//! Calls that go straight to their actor (design: the head is not on their way).
//!
//! Where an actor lives on this client's node, its daemon joins the two by a socket, and calls travel on that. A call
//! travels so only if nothing but its arguments' bytes goes with it: no refs, no timeout. All others go by the head.
//! The head is also where everything unusual ends up: what an actor that died had not answered is submitted there
//! again.
//!
//! - ORDER-1: a client's calls on an actor that takes them in order go one way at a time. Before the way changes, what
//!   was sent on the other must be answered; what comes meanwhile is held here.
//! - Rule A1: an unanswered call counts as a handle on its actor.
//! - REF-1: a call that waits here has handles on what it names.
//! - Rule R2: a result that no message has named is this client's secret. When it is about to be named, the head is
//!   told: of its value if there is one, else that there will be (`Expect`).
//! - Rule A4: callers send within a window. Beyond it calls wait here, not in the head.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cluster_types::client_node::{FinishedOutcome, PutValue};
use cluster_types::{
    ClientToNode, Failure, FailureKind, NodeToClient, ObjectId, Payload, ResultValue, TaskId, TaskKind,
    TaskSpec,
};

use crate::ClientCore;
use crate::state::State;

/// Calls sent straight to one actor and not answered.
const WINDOW: usize = 1024;
/// Calls of one actor that takes them in order which the head has and has not answered.
const HEAD_WINDOW: usize = 256;
/// An actor that was elsewhere is looked for again after so many answers.
const LOOK_AGAIN: u32 = 10_000;
/// An executor that takes calls in order may have begun this many of the first that it has not answered: answers that
/// are ready are gathered.
const MAY_HAVE_RUN: usize = 32;

/// How this client's calls reach one actor.
#[derive(Debug)]
pub(crate) struct Route {
    way: Way,
    /// It runs one call at a time.
    in_order: bool,
    /// Calls that the head has.
    by_head: usize,
    /// Calls sent straight to it, by number.
    direct: BTreeMap<u64, TaskSpec>,
    /// Calls that wait for their turn, by rising number.
    held: VecDeque<TaskSpec>,
}

/// Whether there is a way past the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Nothing is known; asked after so many answers.
    Unknown {
        ask_after: u32,
    },
    Asked,
    /// A socket to its executor.
    Open,
    /// The daemons pass calls on; so many may be unanswered.
    Far {
        window: usize,
    },
}

/// An own task that has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unfinished {
    pub(crate) returns: u32,
    /// What it is called of.
    pub(crate) actor: Option<ObjectId>,
    /// It makes an actor.
    pub(crate) creates: bool,
    /// The head knows nothing of it, or only that it is expected.
    pub(crate) own_way: bool,
    /// The head was told to expect it.
    pub(crate) expected: bool,
}

/// For one actor's socket: messages to send, in order.
#[derive(Debug, PartialEq)]
pub struct DirectBatch {
    /// The actor.
    pub actor: ObjectId,
    /// Each a `Submit`.
    pub calls: Vec<ClientToNode>,
}

/// Whether a call may go straight to its actor.
fn may_go_direct(spec: &TaskSpec) -> bool {
    matches!(spec.payload, Payload::Inline(_))
        && spec.deps.is_empty()
        && spec.borrowed.is_empty()
        && spec.template.num_returns == 1
        && spec.template.stream.is_none()
        && spec.template.retry_exceptions.is_empty()
}

impl Route {
    fn new(spec: &TaskSpec) -> Route {
        let concurrent = matches!(spec.template.kind, TaskKind::Method { concurrent: true, .. });
        Route {
            way: Way::Unknown { ask_after: 1 },
            in_order: !concurrent,
            by_head: 0,
            direct: BTreeMap::new(),
            held: VecDeque::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.by_head == 0 && self.direct.is_empty() && self.held.is_empty()
    }

    /// Which way a call may go at this moment: `Some(true)` straight, `Some(false)` by the head, `None` not yet.
    fn way_of(&self, spec: &TaskSpec, creating: bool) -> Option<bool> {
        let window = match self.way {
            Way::Far { window } => window,
            _ if self.in_order => WINDOW,
            _ => usize::MAX,
        };
        let direct = matches!(self.way, Way::Open | Way::Far { .. }) && may_go_direct(spec) && !creating;
        match (direct, self.in_order) {
            (true, _) if self.direct.len() >= window => None,
            (true, true) => (self.by_head == 0).then_some(true),
            // One may wait for what a later one does.
            (true, false) => Some(true),
            (false, true) => (self.direct.is_empty() && self.by_head < HEAD_WINDOW).then_some(false),
            (false, false) => Some(false),
        }
    }
}

impl ClientCore {
    /// Sends a call, or holds it. Its results are in the table already.
    pub(crate) fn enter_call(&mut self, actor: ObjectId, spec: TaskSpec) {
        // Rule A1; and what it names stays alive here until the head has it.
        for held in spec.held() {
            if let Some(entry) = self.objects.get_mut(&held) {
                entry.refs += 1;
            }
        }
        self.routes.entry(actor).or_insert_with(|| Route::new(&spec)).held.push_back(spec);
        self.send_held(actor);
    }

    /// Sends what may go.
    fn send_held(&mut self, actor: ObjectId) {
        let creating = self.creating > 0;
        while let Some(route) = self.routes.get_mut(&actor) {
            let Some(direct) = route.held.front().and_then(|spec| route.way_of(spec, creating)) else {
                return;
            };
            let Some(spec) = route.held.pop_front() else { return };
            let id = spec.id;
            if direct {
                route.direct.insert(id.seq, spec.clone());
                if let Way::Far { .. } = route.way {
                    // Nothing else that is said depends on it.
                    self.out.push_aside(ClientToNode::CallFar(spec));
                    continue;
                }
                match self.direct_out.iter_mut().find(|batch| batch.actor == actor) {
                    Some(batch) => batch.calls.push(ClientToNode::Submit(spec)),
                    None => {
                        self.direct_out.push(DirectBatch { actor, calls: vec![ClientToNode::Submit(spec)] });
                    }
                }
            } else {
                route.by_head += 1;
                self.hand_to_head(spec, false, None);
            }
        }
    }

    /// The head has it from here on; of one that `went` its own way before and may have run: why no answer came.
    fn hand_to_head(&mut self, spec: TaskSpec, went: bool, may_have_run: Option<Arc<str>>) {
        let (id, returns) = (spec.id, spec.template.num_returns);
        let mut expected = false;
        if let Some(task) = self.unfinished.get_mut(&id) {
            task.own_way = false;
            expected = task.expected;
        }
        self.share_all(spec.held());
        let arguments: Vec<ObjectId> = spec.held().skip(1).collect();
        self.out.push(if went || expected {
            ClientToNode::SubmitAgain { spec, may_have_run }
        } else {
            ClientToNode::Submit(spec)
        });
        if self.is_closed(id) {
            // Its reader left while it waited here.
            self.out.push(ClientToNode::Taken { task: id, items: 0, closed: true });
        }
        // From here on the task holds them.
        arguments.into_iter().for_each(|argument| self.drop_handle(argument));
        // Rule R2: the submitter holds its results from here on.
        for result in (0..returns).map(|index| id.result(index)) {
            match self.objects.get_mut(&result) {
                Some(entry) => entry.escaped = true,
                // Its last handle went before.
                None if !expected => self.out.drop(result),
                None => {}
            }
        }
    }

    /// A call that the head does not know.
    fn own_call(&self, task: TaskId) -> Option<&TaskSpec> {
        let unfinished = self.unfinished.get(&task).filter(|task| task.own_way)?;
        let route = self.routes.get(&unfinished.actor?)?;
        route.direct.get(&task.seq).or_else(|| {
            let at = route.held.binary_search_by_key(&task.seq, |spec| spec.id.seq).ok()?;
            route.held.get(at)
        })
    }

    /// What the call that will give this result names and nobody else knows.
    pub(crate) fn named_by_maker(&self, object: ObjectId) -> Vec<ObjectId> {
        let call = object.task().and_then(|(task, _)| self.own_call(task));
        let named = call.into_iter().flat_map(TaskSpec::held);
        named.filter(|named| self.objects.get(named).is_some_and(|entry| !entry.escaped)).collect()
    }

    /// The result of a call that the head does not know is about to be named.
    fn expect(&mut self, task: TaskId) {
        let Some(spec) = self.own_call(task).cloned() else { return };
        let Some(unfinished) = self.unfinished.get_mut(&task).filter(|task| !task.expected) else { return };
        unfinished.expected = true;
        self.out.push(ClientToNode::Expect(spec));
    }

    /// What came on the socket of an actor.
    pub fn on_answer(&mut self, message: NodeToClient) {
        let NodeToClient::Finished { task, outcome } = message else { return };
        let Some(unfinished) = self.unfinished.get(&task).copied() else { return };
        if !unfinished.own_way {
            return; // The head has it meanwhile: what counts is what it says.
        }
        if unfinished.expected {
            self.tell_of_answer(task, &outcome);
        }
        self.finished(task, outcome);
    }

    /// The head expects the value.
    fn tell_of_answer(&mut self, task: TaskId, outcome: &FinishedOutcome) {
        let object = task.result(0);
        match outcome {
            FinishedOutcome::Ok(values) => {
                let Some(ResultValue::Inline(bytes)) = values.first() else { return };
                let value = PutValue::Inline(bytes.clone());
                self.out.push(ClientToNode::Put { object, value, contains: Default::default() });
                self.out.escape(object);
                if !self.objects.contains_key(&object) {
                    self.out.drop(object);
                }
            }
            FinishedOutcome::Failed(failure) => {
                self.out.push(ClientToNode::PutFailed { object, failure: failure.clone() });
            }
        }
    }

    /// An own call has ended, on whichever way: others may go.
    pub(crate) fn call_ended(&mut self, actor: ObjectId, task: TaskId, own_way: bool) {
        if let Some(route) = self.routes.get_mut(&actor) {
            if own_way {
                route.direct.remove(&task.seq);
            } else {
                route.by_head = route.by_head.saturating_sub(1);
                if let Way::Unknown { ask_after } = &mut route.way {
                    *ask_after = ask_after.saturating_sub(1);
                    if *ask_after == 0 && self.opens_calls {
                        route.way = Way::Asked;
                        self.out.push(ClientToNode::OpenCalls(actor));
                    }
                }
            }
            self.send_held(actor);
        }
        self.drop_handle(actor);
    }

    /// The socket to an actor is there.
    pub fn calls_opened(&mut self, actor: ObjectId, in_order: bool) {
        if let Some(route) = self.routes.get_mut(&actor) {
            route.way = Way::Open;
            route.in_order = in_order;
            self.send_held(actor);
        }
    }

    /// The daemons pass on calls to an actor.
    pub(crate) fn far_calls_opened(&mut self, actor: ObjectId, in_order: bool, window: u32) {
        if let Some(route) = self.routes.get_mut(&actor).filter(|route| route.way == Way::Asked) {
            route.way = Way::Far { window: window as usize };
            route.in_order = in_order;
            self.send_held(actor);
        }
    }

    pub(crate) fn no_calls(&mut self, actor: ObjectId) {
        if let Some(route) = self.routes.get_mut(&actor)
            && route.way == Way::Asked
        {
            route.way = Way::Unknown { ask_after: LOOK_AGAIN };
        }
    }

    /// The actor is no more, and the head knows: what it did not answer goes by the head.
    /// `lost`: it may have answered more than came here.
    pub(crate) fn calls_ended(&mut self, actor: ObjectId, why: &str, lost: bool) {
        self.direct_out.retain(|batch| batch.actor != actor);
        let Some(route) = self.routes.get_mut(&actor) else { return };
        route.way = Way::Unknown { ask_after: 1 };
        let uncertain = if route.in_order && !lost { MAY_HAVE_RUN } else { usize::MAX };
        // Those that may not be tried again fail there: the head knows whether the actor will be back. ORDER-1: later
        // calls go behind them, which way they go.
        let why: Arc<str> = why.into();
        let again = std::mem::take(&mut route.direct);
        route.by_head += again.len();
        for (nth, spec) in again.into_values().enumerate() {
            self.hand_to_head(spec, true, (nth < uncertain).then(|| why.clone()));
        }
        self.send_held(actor);
        if !self.objects.contains_key(&actor) {
            self.forget_route(actor);
        }
    }

    /// Whether this is the result of a call of this client's that has not ended.
    pub fn is_own_call(&self, object: ObjectId) -> bool {
        let task = object.task().and_then(|(task, _)| self.unfinished.get(&task));
        task.is_some_and(|task| task.actor.is_some())
    }

    /// Cancels a call that the head does not know; false if it is none.
    pub fn cancel_call(&mut self, object: ObjectId, reason: &str, recursive: bool) -> bool {
        let Some((task, _)) = object.task() else { return false };
        let Some(unfinished) = self.unfinished.get(&task).copied().filter(|task| task.own_way) else {
            return false;
        };
        let Some(actor) = unfinished.actor else { return false };
        let Some(route) = self.routes.get_mut(&actor) else { return false };
        if let Ok(at) = route.held.binary_search_by_key(&task.seq, |spec| spec.id.seq) {
            let Some(spec) = route.held.remove(at) else { return false };
            let name = spec.template.name.clone();
            spec.held().skip(1).for_each(|argument| self.drop_handle(argument));
            let message = format!("task {name} ({task}) was cancelled before it started: {reason}");
            let failure = Failure {
                kind: FailureKind::Cancelled,
                message: message.into(),
                payload: bytes::Bytes::new(),
                task: Some(task),
            };
            self.on_answer(NodeToClient::Finished { task, outcome: FinishedOutcome::Failed(failure) });
        } else {
            let reason = reason.to_owned();
            self.out.push(ClientToNode::CancelCall { actor, task, reason, recursive });
        }
        true
    }

    /// Whether a call waits here for its turn.
    pub(crate) fn is_held(&self, task: TaskId) -> bool {
        let route = self.unfinished.get(&task).and_then(|call| self.routes.get(&call.actor?));
        route.is_some_and(|route| route.held.binary_search_by_key(&task.seq, |spec| spec.id.seq).is_ok())
    }

    /// For the edge: what is to be sent on the sockets of actors.
    pub fn take_direct(&mut self) -> Vec<DirectBatch> {
        std::mem::take(&mut self.direct_out)
    }

    /// Calls that [`ClientCore::take_direct`] would give.
    pub fn direct_len(&self) -> usize {
        self.direct_out.iter().map(|batch| batch.calls.len()).sum()
    }

    /// From now on the daemon is asked for sockets to actors.
    pub fn open_calls(&mut self) {
        self.opens_calls = true;
    }

    pub(crate) fn send_all_held(&mut self) {
        let mut actors: Vec<ObjectId> =
            self.routes.iter().filter(|(_, route)| !route.held.is_empty()).map(|(actor, _)| *actor).collect();
        actors.sort_unstable();
        actors.into_iter().for_each(|actor| self.send_held(actor));
    }

    /// This client ends: what was never sent goes by the head, which outlives it.
    pub fn release_held(&mut self) {
        let mut actors: Vec<ObjectId> = self.routes.keys().copied().collect();
        actors.sort_unstable();
        for actor in actors {
            let held = self.routes.get_mut(&actor).map(|route| std::mem::take(&mut route.held));
            for spec in held.into_iter().flatten() {
                if let Some(route) = self.routes.get_mut(&actor) {
                    route.by_head += 1;
                }
                self.hand_to_head(spec, false, None);
            }
        }
    }

    /// Nobody here knows the actor any more.
    pub(crate) fn forget_route(&mut self, actor: ObjectId) {
        if self
            .routes
            .get(&actor)
            .is_some_and(|route| route.is_idle() && !matches!(route.way, Way::Open | Way::Far { .. }))
        {
            self.routes.remove(&actor);
        }
    }

    /// A value came for a call that went its own way: the daemon has told the head, with this client as its holder.
    pub(crate) fn settle_known(&mut self, object: ObjectId) {
        match self.objects.get_mut(&object) {
            Some(entry) => entry.escaped = true,
            None => self.out.drop(object),
        }
    }

    /// A result that is about to be named and whose value nobody else knows.
    pub(crate) fn tell_of_result(&mut self, object: ObjectId) {
        let Some((task, _)) = object.task() else { return };
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.escaped = true;
        }
        match self.objects.get(&object).map(|entry| &entry.state) {
            Some(State::Pending) => self.expect(task),
            Some(State::Failed(failure)) => {
                let failure = (**failure).clone();
                self.out.push(ClientToNode::PutFailed { object, failure });
            }
            _ => {}
        }
    }
}
