//! A task comes in, waits for its arguments, and is queued.

use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::task::Strategy;
use cluster_types::{FailureKind, HeadToNode, Set, TaskKind, TaskSpec};

use crate::head::{Head, Job, failure};
use crate::ledger::check_amounts;
use crate::objects::ObjectValue;
use crate::shapes::Choices;
use crate::slab::{NodeIx, ShapeIx, TaskIx};
use crate::streams::Stream;
use crate::tasks::{Ended, TaskState};

/// The most values one task may return here.
const MOST_RETURNS: u32 = 100_000;
/// Of a task that is refused so many results say why. Whoever asks for others is told that they are gone: a message of a
/// few bytes must not cost work for each value that it names.
const REFUSED_RESULTS: u32 = 1_000;

impl Head {
    pub(crate) fn submit(&mut self, node: NodeIx, spec: TaskSpec) {
        // A repeat changes nothing (TASK-1).
        if let Some(known) = self.tasks.find(spec.id) {
            self.tell_again(node, known);
            self.revive(node, known);
            return;
        }
        if self.tasks.ended(spec.id) || self.tell_group_again(node, &spec) {
            return;
        }
        self.enter(node, spec, None);
    }

    /// Enters a new task: into that state, or wherever it belongs.
    pub(crate) fn enter(&mut self, node: NodeIx, spec: TaskSpec, state: Option<TaskState>) {
        if let Err(reason) = self.check_spec(node, &spec) {
            self.reject(node, &spec, &reason);
            return;
        }
        self.make_detached_job(&spec);
        self.enter_checked(spec, state);
    }

    /// The same, of a spec that was looked at.
    pub(crate) fn enter_checked(&mut self, spec: TaskSpec, state: Option<TaskState>) {
        let id = spec.id;
        if let Some(parent) = spec.parent
            && self.tasks.find(parent).is_some()
        {
            self.children.entry(parent).or_default().push(id);
        }
        if let Some(job) = self.jobs.get_mut(&spec.job) {
            job.submitters.insert(id.client);
        }
        if !spec.template.variants.is_empty() {
            return self.submit_choices(spec, state);
        }
        let task_ix = self.enter_shape(spec);
        self.note(task_ix, state);
    }

    /// Enters a task into the table, counted by its shape.
    pub(crate) fn enter_shape(&mut self, spec: TaskSpec) -> TaskIx {
        let (shape_ix, is_new) = self.shapes.of(&spec.template, self.now);
        if is_new {
            match spec.template.strategy.group() {
                Some(place) => self.groups.add_shape(place.group, shape_ix),
                None => {
                    self.count_feasible(shape_ix);
                    self.offer_all_nodes(shape_ix);
                }
            }
        }
        if let Some(shape) = self.shapes.get_mut(shape_ix) {
            shape.tasks += 1;
        }
        self.tasks.insert(spec, shape_ix, self.now)
    }

    /// A task that takes the first of several requests that is free.
    fn submit_choices(&mut self, spec: TaskSpec, state: Option<TaskState>) {
        let (choices, new) = self.shapes.choices_of(&spec.template, self.now);
        for ix in new {
            self.count_feasible(ix);
            self.offer_all_nodes(ix);
        }
        for (ix, _) in &choices.variants {
            if let Some(shape) = self.shapes.get_mut(*ix) {
                shape.tasks += 1;
            }
        }
        let Some((first, _)) = choices.variants.first() else { return };
        let task_ix = self.tasks.insert(spec, *first, self.now);
        if let Some(task) = self.tasks.get_mut(task_ix) {
            task.choices = Some((choices, task.spec.clone()));
        }
        self.note(task_ix, state);
    }

    /// A task came into the table: what it makes and holds is noted, and it goes where it belongs.
    fn note(&mut self, task_ix: TaskIx, state: Option<TaskState>) {
        let Some(task) = self.tasks.get(task_ix) else { return };
        let (id, returns) = (task.spec.id, task.spec.template.num_returns);
        if task.spec.template.stream.is_some() {
            self.streams.insert(id, Stream::default());
        }
        // Rule R2: the results are known from now on, with the submitter as holder.
        for index in 0..returns {
            let object = self.objects.find_or_insert(id.result(index), || ObjectValue::Pending(task_ix));
            let copies = self.copies_before(object);
            self.objects.set_pending(object, task_ix);
            self.keep_copies(object, copies);
        }
        let Some(task) = self.tasks.get(task_ix) else { return };
        let spec = task.spec.clone();
        self.hold_arguments(&spec);
        if let Some(state) = state {
            if let Some(task) = self.tasks.get_mut(task_ix) {
                task.state = state;
            }
            return;
        }
        self.place(task_ix);
    }

    /// Puts a task where it belongs: it waits for its arguments, or it is queued.
    pub(crate) fn place(&mut self, task_ix: TaskIx) {
        let Some(task) = self.tasks.get(task_ix) else { return };
        let (spec, stamp) = (task.spec.clone(), task.stamp);
        self.enter_actor(&spec, task_ix);
        self.wait_for_arguments(task_ix, &spec, stamp);
    }

    /// The task, which is nowhere, waits for its arguments, or is queued.
    pub(crate) fn wait_for_arguments(&mut self, task_ix: TaskIx, spec: &Arc<TaskSpec>, stamp: u32) {
        let mut missing = 0;
        let group = spec.template.strategy.group().map(|place| place.group);
        for needed in spec.needed().chain(group) {
            let Some(object) = self.objects.by_id_mut(needed) else { continue };
            match &object.value {
                ObjectValue::Unknown | ObjectValue::Pending(_) => {
                    object.more_mut().task_waiters.push((task_ix, stamp));
                    missing += 1;
                }
                ObjectValue::Failed(failure) => {
                    let failure = failure.as_ref().clone();
                    self.failing.push((task_ix, stamp, failure));
                }
                ObjectValue::Available { .. } => {}
            }
        }
        if missing > 0 {
            if let Some(task) = self.tasks.get_mut(task_ix) {
                task.state = TaskState::Waiting { missing };
            }
            if let Some(actor) = spec.called_actor() {
                self.enter_call(actor, task_ix, false);
            }
        } else {
            self.enqueue(task_ix, false);
        }
    }

    /// The task was cancelled because its submitter was out of touch; it is back, and still wants it.
    fn revive(&mut self, node: NodeIx, ix: TaskIx) {
        let Some(task) = self.tasks.get_mut(ix).filter(|task| task.cancelled) else { return };
        let spec = task.spec.clone();
        if !self
            .clients
            .get(&spec.id.client)
            .is_some_and(|client| client.node == node && client.job == spec.job)
        {
            return;
        }
        let Some(job) = self.jobs.get_mut(&spec.job) else { return };
        job.submitters.insert(spec.id.client);
        task.cancelled = false;
        task.revived = true;
        for index in 0..spec.template.num_returns {
            let object = self.objects.find_or_insert(spec.id.result(index), || ObjectValue::Pending(ix));
            if let Some(object) = self.objects.get_mut(object) {
                object.own = true;
            }
        }
    }

    fn check_spec(&self, node: NodeIx, spec: &TaskSpec) -> Result<(), String> {
        let Some(client) = self.clients.get(&spec.id.client).filter(|client| client.node == node) else {
            return Err("the process that submitted it is not attached to the cluster".to_owned());
        };
        let detached = spec.template.kind.is_detached();
        if detached && self.jobs.contains_key(&spec.job) {
            // Its end would end that job.
            return Err(format!("job {} exists already: what is detached is a job of its own", spec.job));
        }
        if client.job != spec.job && !detached {
            return Err(format!(
                "it names job {}, but its submitter belongs to job {}",
                spec.job, client.job
            ));
        }
        // What a detached actor's job knows, it knows from its maker's.
        let job = if detached { client.job } else { spec.job };
        if !self.jobs.contains_key(&job) {
            return Err(format!("its job {job} has ended"));
        }
        let template = &spec.template;
        if template.num_returns > MOST_RETURNS {
            return Err(format!(
                "it returns {} values; at most {MOST_RETURNS} are possible",
                template.num_returns
            ));
        }
        let is_actor = matches!(template.kind, TaskKind::Actor(_));
        if template.stream.is_some() && (template.num_returns != 1 || is_actor) {
            return Err("what yields items is a function or a method, with one result beside them".to_owned());
        }
        check_amounts(&template.resources)?;
        for variant in &template.variants {
            check_amounts(variant)?;
            variant.check_request().map_err(|problem| format!("its request for GPUs {problem}"))?;
        }
        if !template.variants.is_empty()
            && (spec.called_actor().is_some()
                || matches!(template.kind, TaskKind::Group(_))
                || template.strategy.group().is_some())
        {
            return Err("variants are for tasks and actors outside placement groups".to_owned());
        }
        self.check_actor(spec)?;
        self.check_group(spec)?;
        template.resources.check_request().map_err(|problem| format!("its request for GPUs {problem}"))
    }

    /// A detached actor, or placement group, is a job of its own (rule A6), with what executors knew of its maker's.
    fn make_detached_job(&mut self, spec: &TaskSpec) {
        if !spec.template.kind.is_detached() {
            return;
        }
        let Some(client) = self.clients.get(&spec.id.client) else { return };
        let Some(info) = self.jobs.get(&client.job).map(|job| job.info.clone()) else { return };
        let job = Job { driver: spec.id.client, info, submitters: Set::default(), noticed: Set::default() };
        self.jobs.insert(spec.job, job);
    }

    /// The task cannot even be entered; its submitter learns why, and so does whoever asks for its results.
    fn reject(&mut self, node: NodeIx, spec: &TaskSpec, reason: &str) {
        let name = &spec.template.name;
        let message: Arc<str> = format!("task {name} ({}) was refused: {reason}", spec.id).into();
        let failure = failure(FailureKind::Internal, message.clone(), Some(spec.id));
        if self.is_attached(spec.id.client, node) {
            let first_item = u32::from(spec.template.stream.is_some());
            for index in 0..spec.template.num_returns.min(REFUSED_RESULTS) + first_item {
                let object = self.objects.find_or_insert(spec.id.result(index), || ObjectValue::Unknown);
                self.objects.set_failed(object, failure.clone());
                if let Some(object) = self.objects.get_mut(object) {
                    object.own = true;
                }
                self.value_known(object);
            }
            self.tasks.remember(Ended {
                id: spec.id,
                name: name.clone(),
                job: spec.job,
                error: Some(message),
                node: None,
                attempt: 0,
                submitted: self.now,
                micros: 0,
            });
        }
        self.send(node, HeadToNode::Finished { task: spec.id, outcome: FinishedOutcome::Failed(failure) });
    }

    /// One more argument exists.
    pub(crate) fn argument_ready(&mut self, ix: TaskIx, stamp: u32) {
        let Some(task) = self.tasks.get_mut(ix).filter(|task| task.stamp == stamp) else { return };
        if let TaskState::Waiting { missing } = &mut task.state {
            *missing = missing.saturating_sub(1);
            if *missing == 0 {
                let spec = task.spec.clone();
                match spec.called_actor() {
                    Some(actor) => {
                        task.state = TaskState::AtActor;
                        self.call_ready(actor, spec.id);
                    }
                    None => self.enqueue(ix, false),
                }
            }
        }
    }

    /// Puts a task, all of whose arguments exist (DEP-1), into its shape's queue.
    pub(crate) fn enqueue(&mut self, ix: TaskIx, front: bool) {
        let Some(task) = self.tasks.get_mut(ix) else { return };
        if let Some(actor) = task.spec.called_actor() {
            task.state = TaskState::AtActor;
            return self.enter_call(actor, ix, true);
        }
        if matches!(task.spec.template.kind, TaskKind::Group(_)) {
            return self.enter_group(ix);
        }
        let group = task.spec.template.strategy.group();
        if let Some((choices, submitted)) = &task.choices {
            task.spec = submitted.clone();
            let choices = choices.clone();
            return self.enqueue_choices(ix, &choices, front);
        }
        let ticket = self.shapes.ticket();
        let (shape_ix, stamp, promoted) = (task.shape, task.stamp, task.promoted);
        task.state = TaskState::Queued { ticket };
        self.put_in_queue(ix, shape_ix, ticket, promoted, front);
        let Some(shape) = self.shapes.get(shape_ix) else { return };
        if let Some(place) = group {
            self.shapes.make_ready(shape_ix);
            if let Err(failure) = self.check_place(ix, place) {
                self.failing.push((ix, stamp, failure));
            }
            return;
        }
        let has_where =
            !shape.candidates.is_empty() || !shape.promoted_candidates.is_empty() || !shape.room.is_empty();
        let is_bound = matches!(shape.strategy, Strategy::Node { .. });
        if shape.feasible == 0 || is_bound {
            self.judge_task(ix, stamp);
        }
        if has_where || is_bound {
            self.shapes.make_ready(shape_ix);
        }
    }

    /// Into the queue of each request: the first that is free takes it out of all.
    fn enqueue_choices(&mut self, ix: TaskIx, choices: &Choices, front: bool) {
        let ticket = self.shapes.ticket();
        let Some(task) = self.tasks.get_mut(ix) else { return };
        task.state = TaskState::Queued { ticket };
        let (stamp, promoted) = (task.stamp, task.promoted);
        let is_bound = matches!(task.spec.template.strategy, Strategy::Node { .. });
        let mut feasible = false;
        for (shape_ix, _) in &choices.variants {
            self.put_in_queue(ix, *shape_ix, ticket, promoted, front);
            self.shapes.make_ready(*shape_ix);
            feasible |= self.shapes.get(*shape_ix).is_some_and(|shape| shape.feasible > 0);
        }
        if !feasible || is_bound {
            self.judge_task(ix, stamp);
        }
    }

    fn put_in_queue(&mut self, ix: TaskIx, shape_ix: ShapeIx, ticket: u32, promoted: bool, front: bool) {
        let now = self.now;
        let Some(shape) = self.shapes.get_mut(shape_ix) else { return };
        if shape.queued() == 0 {
            shape.served = now;
        }
        let queue = if promoted { &mut shape.promoted } else { &mut shape.queue };
        if front {
            queue.push_front(ix, ticket);
        } else {
            queue.push_back(ix, ticket);
        }
    }
}
