//! Placement groups: from their submission to their removal.
//!
//! The task that makes a group ends when every bundle has its lease; the group itself stays until it is removed, by a
//! client or with its job. Its result 0 is the group's object: tasks that name the group wait for that value as for an
//! argument, and hold it while they are pending, so the group's record outlives all of them. `bundles` is what lies
//! inside, `places` is where bundles go.

use std::collections::VecDeque;
use std::sync::Arc;

use cluster_types::query::{BundleView, GroupView};
use cluster_types::task::{GroupTraits, InGroup};
use cluster_types::{
    ClientId, Failure, FailureKind, JobId, Map, ObjectId, Outcome, Payload, ResultValue, Span, TaskKind,
    TaskResult, TaskSpec, Time,
};
use smallvec::smallvec;

use crate::bundles::Bundle;
use crate::event::{Effect, Record};
use crate::head::{Head, failure};
use crate::ledger::check_amounts;
use crate::queries::by_name;
use crate::slab::{NodeIx, ShapeIx, TaskIx};
use crate::tasks::TaskState;

/// Groups tried in one step (rule S6).
const SLICE: usize = 16;
/// The most bundles a group may have.
const MOST_BUNDLES: usize = 4096;
/// A node that is just starting is given so long before anybody is told that it is missing.
const PATIENCE: Span = Span::millis(500);

/// A placement group, from its submission until nothing names it any more.
#[derive(Debug)]
pub(crate) struct Group {
    pub spec: Arc<TaskSpec>,
    /// What makes it, until all its bundles had a place once.
    pub task: Option<TaskIx>,
    pub bundles: Vec<Bundle>,
    /// Why it is no more.
    pub removed: Option<Failure>,
    /// Whether it is among those that wait for a place.
    waits: bool,
    /// Since when.
    since: Option<Time>,
}

impl Group {
    pub fn traits(&self) -> &GroupTraits {
        match &self.spec.template.kind {
            TaskKind::Group(traits) => traits,
            _ => unreachable!("only specs of that kind are entered"),
        }
    }

    /// For people.
    pub fn title(&self) -> String {
        let name = match self.traits().name.as_str() {
            "" => String::new(),
            name => format!("{name:?} "),
        };
        format!("placement group {name}({})", self.spec.id.result(0))
    }

    pub fn is_whole(&self) -> bool {
        self.bundles.iter().all(|bundle| bundle.place.is_some())
    }
}

/// The groups by their objects, and by name.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    known: Map<ObjectId, Group>,
    names: Map<(String, String), ObjectId>,
    /// The shapes of tasks that name each; a group's own, for no other may use what is set aside.
    shapes: Map<ObjectId, Vec<ShapeIx>>,
    /// Submitted and not tried yet.
    fresh: VecDeque<ObjectId>,
    /// Tried, and without place for all their bundles.
    waiting: VecDeque<ObjectId>,
    /// How many of `waiting`, from the front, may fit since they were tried last.
    untried: usize,
    /// Removed ones whose bundles may be free now.
    pub closing: Vec<ObjectId>,
}

impl Groups {
    pub fn get(&self, group: ObjectId) -> Option<&Group> {
        self.known.get(&group)
    }

    pub fn get_mut(&mut self, group: ObjectId) -> Option<&mut Group> {
        self.known.get_mut(&group)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ObjectId, &Group)> {
        self.known.iter()
    }

    pub fn named(&self, namespace: &str, name: &str) -> Option<(ObjectId, &Group)> {
        let group = *self.names.get(&(namespace.to_owned(), name.to_owned()))?;
        Some((group, self.known.get(&group)?))
    }

    pub fn add_shape(&mut self, group: ObjectId, shape: ShapeIx) {
        self.shapes.entry(group).or_default().push(shape);
    }

    pub fn shapes_of(&self, group: ObjectId) -> &[ShapeIx] {
        self.shapes.get(&group).map_or(&[], Vec::as_slice)
    }

    pub fn all_shapes(&self) -> Vec<ShapeIx> {
        self.shapes.values().flatten().copied().collect()
    }

    /// Whether anything that was not tried may fit.
    pub fn has_untried(&self) -> bool {
        !self.fresh.is_empty() || self.untried > 0
    }

    /// The nodes' books changed: whatever waits may fit now.
    pub fn retry_all(&mut self) {
        self.untried = self.waiting.len();
    }

    pub fn wait(&mut self, group: ObjectId) {
        if let Some(known) = self.known.get_mut(&group)
            && !std::mem::replace(&mut known.waits, true)
        {
            self.fresh.push_back(group);
        }
    }

    /// Since when the group waits for a place; `None`: it does not.
    pub fn waits_since(&self, group: ObjectId) -> Option<Time> {
        self.known.get(&group).filter(|group| group.waits && group.removed.is_none())?.since
    }

    /// Those that wait for so long at least, the longest first.
    pub fn waiting_since(&mut self, now: Time, long: Span) -> Vec<ObjectId> {
        let mut found = Vec::new();
        for object in &self.waiting {
            let Some(group) =
                self.known.get_mut(object).filter(|group| group.waits && group.removed.is_none())
            else {
                continue;
            };
            let since = *group.since.get_or_insert(now);
            if now.since(since) >= long {
                found.push((since, *object));
            }
        }
        // The order in the queue changes with each try.
        found.sort_unstable_by_key(|(since, object)| (*since, object.client, object.local));
        found.into_iter().map(|(_, object)| object).collect()
    }

    fn next_to_try(&mut self) -> Option<ObjectId> {
        self.fresh.pop_front().or_else(|| {
            self.untried = self.untried.checked_sub(1)?;
            self.waiting.pop_front()
        })
    }
}

impl Head {
    /// Whether the spec of a group may be entered.
    pub(crate) fn check_group(&self, spec: &TaskSpec) -> Result<(), String> {
        let TaskKind::Group(traits) = &spec.template.kind else { return Ok(()) };
        if spec.template.num_returns != 1 || !matches!(spec.payload, Payload::Inline(_)) {
            return Err("what makes a placement group has one result, which is its payload".to_owned());
        }
        if !spec.deps.is_empty() || !spec.borrowed.is_empty() || !spec.template.resources.is_empty() {
            return Err("what makes a placement group has no arguments and asks for nothing".to_owned());
        }
        if traits.bundles.is_empty() || traits.bundles.len() > MOST_BUNDLES {
            let count = traits.bundles.len();
            return Err(format!("it has {count} bundles; from 1 to {MOST_BUNDLES} are possible"));
        }
        for (index, bundle) in traits.bundles.iter().enumerate() {
            check_amounts(bundle).map_err(|problem| format!("of bundle {index}, {problem}"))?;
            bundle.check_request().map_err(|problem| format!("of bundle {index}, GPU {problem}"))?;
            if bundle.is_empty() {
                return Err(format!("bundle {index} asks for nothing"));
            }
        }
        match self.groups.named(&traits.namespace, &traits.name) {
            Some((_, other)) if !traits.name.is_empty() => Err(format!(
                "the name {:?} is taken in namespace {:?} by {}",
                traits.name,
                traits.namespace,
                other.title()
            )),
            _ => Ok(()),
        }
    }

    /// What makes a group was submitted.
    pub(crate) fn enter_group(&mut self, ix: TaskIx) {
        let Some(task) = self.tasks.get_mut(ix) else { return };
        task.state = TaskState::Reserving;
        let (spec, stamp) = (task.spec.clone(), task.stamp);
        self.insert_group(&spec, Some(ix));
        let object = spec.id.result(0);
        self.groups.wait(object);
        self.judge_group(object, ix, stamp);
    }

    pub(crate) fn insert_group(&mut self, spec: &Arc<TaskSpec>, task: Option<TaskIx>) {
        let TaskKind::Group(traits) = &spec.template.kind else { return };
        let object = spec.id.result(0);
        if !traits.name.is_empty() {
            self.groups.names.insert((traits.namespace.clone(), traits.name.clone()), object);
        }
        // The head itself holds it, until it is removed.
        self.add_container(object);
        let bundles = traits.bundles.iter().cloned().map(Bundle::new).collect();
        let group = Group { spec: spec.clone(), task, bundles, removed: None, waits: false, since: None };
        self.groups.known.insert(object, group);
    }

    /// Where no node that it needs can ever be, the group fails; else its driver is told.
    fn judge_group(&mut self, object: ObjectId, ix: TaskIx, stamp: u32) {
        let Some(group) = self.groups.get(object) else { return };
        let Some(problem) = self.why_impossible(group) else { return };
        if self.config.closed && self.nodes.any_joined {
            let message =
                format!("{} cannot be: {problem}, and no node can join this cluster", group.title());
            let failure = failure(FailureKind::Unschedulable, message, Some(group.spec.id));
            self.failing.push((ix, stamp, failure));
        } else {
            self.notices.push((self.now + PATIENCE, ix, stamp));
        }
    }

    /// The nodes changed.
    pub(crate) fn judge_groups(&mut self) {
        let waiting: Vec<_> = self
            .groups
            .waiting
            .iter()
            .filter_map(|object| {
                let ix = self.groups.get(*object)?.task?;
                Some((*object, ix, self.tasks.get(ix)?.stamp))
            })
            .collect();
        for (object, ix, stamp) in waiting {
            self.judge_group(object, ix, stamp);
        }
    }

    /// The sentence for the driver about a group that still has no place.
    pub(crate) fn group_notice(&self, ix: TaskIx) -> Option<String> {
        let group = self.groups.get(self.tasks.get(ix)?.spec.id.result(0))?;
        let problem = self.why_impossible(group)?;
        Some(format!("{} has no place: {problem} — it waits for a node to join", group.title()))
    }

    /// Gives bundles their leases, all that a group lacks or none.
    pub(crate) fn plan_groups(&mut self) {
        if !self.nodes.dirty.is_empty() {
            self.groups.retry_all();
        }
        for _ in 0..SLICE {
            let Some(object) = self.groups.next_to_try() else { return };
            let Some(group) = self.groups.known.get_mut(&object) else { continue };
            if group.removed.is_some() || group.is_whole() {
                group.waits = false;
                continue;
            }
            if !self.place_group(object) {
                self.groups.waiting.push_back(object);
                continue;
            }
            let Some(group) = self.groups.known.get_mut(&object) else { continue };
            group.waits = false;
            group.since = None;
            let made = group.task.take();
            if self.kept_nodes.as_ref().is_some_and(|kept| kept.group == object) {
                self.give_kept_free();
            }
            self.store_group(object);
            if let Some(ix) = made {
                self.group_is_whole(ix);
            }
            self.feed_group(object);
        }
    }

    /// The task that makes the group ends: its payload is its value.
    fn group_is_whole(&mut self, ix: TaskIx) {
        let Some(task) = self.tasks.get(ix) else { return };
        let Payload::Inline(bytes) = &task.spec.payload else { return };
        let result = TaskResult { value: ResultValue::Inline(bytes.clone()), contains: Default::default() };
        self.finish(ix, Outcome::Ok(smallvec![result]), None, None, 0);
    }

    /// The group's value is known. It has no home: it stays here.
    pub(crate) fn set_group_value(&mut self, ix: TaskIx, spec: &TaskSpec) {
        let Payload::Inline(bytes) = &spec.payload else { return };
        if let Some(object) = self.pending_result(ix, spec.id, 0) {
            self.objects.set_available(object, bytes.len() as u64, Some(bytes.clone()), None);
            self.value_known(object);
        }
    }

    /// A client wants the group removed.
    pub(crate) fn remove_group(&mut self, client: ClientId, object: ObjectId) {
        let who = match self.clients.get(&client) {
            Some(known) if known.is_driver => format!("the driver of job {}", known.job),
            _ => format!("client {client}"),
        };
        self.end_group(object, &format!("removed by {who}"));
    }

    /// With their job its groups end.
    pub(crate) fn end_groups_of(&mut self, job: JobId, why: &str) {
        if self.groups.known.is_empty() {
            return;
        }
        let mut ended: Vec<ObjectId> = self
            .groups
            .iter()
            .filter(|(_, group)| group.spec.job == job && group.removed.is_none())
            .map(|(object, _)| *object)
            .collect();
        ended.sort_unstable();
        for object in ended {
            self.end_group(object, &format!("removed: {why}"));
        }
    }

    fn end_group(&mut self, object: ObjectId, why: &str) {
        let Some(group) = self.groups.get(object).filter(|group| group.removed.is_none()) else { return };
        let (task, spec) = (group.task, group.spec.clone());
        let message = format!("{} was {why}", group.title());
        let failure = failure(FailureKind::GroupRemoved, message, Some(spec.id));
        match task {
            // Its end closes the group.
            Some(ix) => self.finish(ix, Outcome::Failed(failure), None, None, 0),
            None => self.close_group(&spec, failure),
        }
    }

    /// The group is no more: its name is free, and what names it fails, running or not.
    pub(crate) fn close_group(&mut self, spec: &Arc<TaskSpec>, failure: Failure) {
        let object = spec.id.result(0);
        let Some(group) = self.groups.known.get_mut(&object) else { return };
        if group.removed.is_some() {
            return;
        }
        group.task = None;
        group.removed = Some(failure.clone());
        self.out.push(Effect::Persist(Record::GroupGone(spec.id)));
        let inside: Vec<TaskIx> = group.bundles.iter().flat_map(Bundle::tasks).collect();
        let (key, detached) = {
            let traits = group.traits();
            ((traits.namespace.clone(), traits.name.clone()), traits.detached)
        };
        if self.groups.names.get(&key) == Some(&object) {
            self.groups.names.remove(&key);
        }
        for shape in self.groups.shapes_of(object).to_vec() {
            for (ix, stamp) in self.queued_of(shape) {
                let failure = self.failure_by_group(ix, &failure);
                self.failing.push((ix, stamp, failure));
            }
        }
        for ix in inside {
            self.end_inside(ix, &failure.message);
        }
        self.groups.closing.push(object);
        if let Some(at) = self.objects.find(object)
            && let Some(held) = self.objects.get_mut(at)
        {
            held.containers -= 1;
            self.objects.doubt(at);
        }
        if detached {
            self.end_job(spec.job, "its detached placement group was removed");
        }
    }

    /// What a task is told whose group was removed.
    pub(crate) fn failure_by_group(&self, ix: TaskIx, cause: &Failure) -> Failure {
        let Some(task) = self.tasks.get(ix) else { return cause.clone() };
        let (name, id) = (&task.spec.template.name, task.spec.id);
        let how = if task.attempt > 0 { "was ended" } else { "cannot run" };
        let message = format!("task {name} ({id}) {how}: {}", cause.message);
        failure(cause.kind, message, Some(id))
    }

    /// Ends an attempt or an actor that is in a bundle.
    fn end_inside(&mut self, ix: TaskIx, why: &str) {
        let Some(task) = self.tasks.get_mut(ix) else { return };
        if matches!(task.spec.template.kind, TaskKind::Actor(_)) {
            return self.end_actor(ix, why, false, true);
        }
        let Some(node) = task.node() else { return };
        task.cancelled = true;
        task.revived = false;
        let id = task.spec.id;
        if let Some(attempt) = self.tasks.get(ix).map(|task| self.tasks.attempt_of(task)) {
            self.cancel_attempt(node, id, attempt, why);
        }
    }

    /// How a task that was in a removed group ended: if by the removal, it says so.
    pub(crate) fn outcome_in_group(&self, ix: TaskIx, spec: &TaskSpec, outcome: Outcome) -> Outcome {
        let Some(InGroup { group, .. }) = spec.template.strategy.group() else { return outcome };
        let by_us = |kind| matches!(kind, FailureKind::Cancelled | FailureKind::ExecutorDied);
        match (&outcome, self.groups.get(group).and_then(|group| group.removed.as_ref())) {
            (Outcome::Failed(own), Some(cause)) if by_us(own.kind) => {
                Outcome::Failed(self.failure_by_group(ix, cause))
            }
            _ => outcome,
        }
    }

    /// Nobody names the group any more.
    pub(crate) fn group_forgotten(&mut self, object: ObjectId) {
        if let Some(shapes) = self.groups.shapes.remove(&object) {
            for shape in shapes {
                self.retire_shape(shape);
            }
        }
        if let Some(group) = self.groups.known.get(&object)
            && (group.removed.is_some() && group.bundles.iter().all(|bundle| bundle.place.is_none()))
        {
            self.groups.known.remove(&object);
        }
    }

    /// A node is lost, and what was in its bundles is out of them: those bundles look for another place.
    pub(crate) fn bundles_lost(&mut self, node: NodeIx) {
        let mut hit: Vec<ObjectId> = Vec::new();
        for (object, group) in &mut self.groups.known {
            let mut any = false;
            for bundle in &mut group.bundles {
                if bundle.place.as_ref().is_some_and(|place| place.node == node) {
                    bundle.place = None;
                    any = true;
                }
            }
            if any {
                hit.push(*object);
            }
        }
        hit.sort_unstable();
        for object in hit {
            match self.groups.get(object).is_some_and(|group| group.removed.is_none()) {
                true => self.groups.wait(object),
                false => self.groups.closing.push(object),
            }
        }
    }

    pub(crate) fn group_views(&self, limit: usize) -> Vec<GroupView> {
        let mut all: Vec<(&ObjectId, &Group)> = self.groups.iter().collect();
        all.sort_unstable_by_key(|(object, _)| std::cmp::Reverse((object.client, object.local)));
        all.truncate(limit);
        all.into_iter().map(|(_, group)| self.group_view(group)).collect()
    }

    pub(crate) fn group_view(&self, group: &Group) -> GroupView {
        let traits = group.traits();
        let state = match (&group.removed, group.is_whole(), group.task) {
            (Some(_), ..) => "removed",
            (None, true, _) => "created",
            (None, false, Some(_)) => "pending",
            (None, false, None) => "rescheduling",
        };
        let reason = match &group.removed {
            Some(failure) => failure.message.to_string(),
            None if group.is_whole() => String::new(),
            None => self.why_group_waits(group),
        };
        let bundle_view = |bundle: &Bundle| {
            let place = bundle.place.as_ref();
            let total = by_name(&bundle.resources);
            let mut available = place.map(|place| by_name(&place.ledger.available())).unwrap_or_default();
            if place.is_some() {
                for name in total.keys() {
                    available.entry(name.clone()).or_insert(0.0);
                }
            }
            BundleView {
                total,
                available,
                node: place
                    .and_then(|place| self.nodes.get(place.node))
                    .map(|node| node.id.to_string())
                    .unwrap_or_default(),
                hostname: place.map(|place| self.nodes.name(place.node).to_string()).unwrap_or_default(),
                running: place.map_or(0, |place| place.tasks.len() as u32),
            }
        };
        GroupView {
            group: group.spec.id.result(0).to_string(),
            name: traits.name.clone(),
            namespace: traits.namespace.clone(),
            strategy: traits.strategy.name().to_owned(),
            state: state.to_owned(),
            job: group.spec.job.to_string(),
            detached: traits.detached,
            bundles: group.bundles.iter().map(bundle_view).collect(),
            reason,
        }
    }

    /// A task that names a group which is not there, or has no room for it ever, fails.
    pub(crate) fn check_place(&self, ix: TaskIx, wanted: InGroup) -> Result<(), Failure> {
        let Some(task) = self.tasks.get(ix) else { return Ok(()) };
        let (name, id) = (&task.spec.template.name, task.spec.id);
        let fails = |problem: String| {
            Err(failure(
                FailureKind::Unschedulable,
                format!("task {name} ({id}) cannot run: {problem}"),
                Some(id),
            ))
        };
        let Some(group) = self.groups.get(wanted.group) else {
            return fails(format!("there is no placement group {}", wanted.group));
        };
        if let Some(cause) = &group.removed {
            return Err(self.failure_by_group(ix, cause));
        }
        let resources = &task.spec.template.resources;
        let all: Vec<String> = group.traits().bundles.iter().map(|bundle| format!("{{{bundle}}}")).collect();
        let (title, all) = (group.title(), all.join(", "));
        match wanted.bundle {
            Some(index) => match group.bundles.get(index as usize) {
                None => fails(format!("{title} has no bundle {index}; its bundles are {all}")),
                Some(bundle) if !bundle.could_ever_fit(resources) => fails(format!(
                    "it needs {resources}, and bundle {index} of {title} is {{{}}}",
                    bundle.resources
                )),
                Some(_) => Ok(()),
            },
            None if !group.bundles.iter().any(|bundle| bundle.could_ever_fit(resources)) => {
                fails(format!("it needs {resources}, and no bundle of {title} has that: they are {all}"))
            }
            None => Ok(()),
        }
    }

    /// Why a task of this shape waits inside its group.
    pub(crate) fn why_in_group(&self, wanted: InGroup, shape: ShapeIx) -> String {
        let Some(group) = self.groups.get(wanted.group) else {
            return format!("its placement group {} is not known", wanted.group);
        };
        let title = group.title();
        let of = match wanted.bundle {
            Some(index) => format!("bundle {index} of {title}"),
            None => format!("a bundle of {title}"),
        };
        let lost = group.bundles.iter().enumerate().any(|(index, bundle)| {
            bundle.place.is_none() && wanted.bundle.is_none_or(|wanted| wanted as usize == index)
        });
        if lost {
            return format!("it waits for {of}, which has no place now: {}", self.why_group_waits(group));
        }
        let Some(shape) = self.shapes.get(shape) else { return format!("it waits for {of}") };
        format!("it waits until {} are free in {of}", shape.resources)
    }

    /// What must hold of groups between steps.
    pub(crate) fn audit_groups(&self) -> Result<(), String> {
        let mut inside: Map<(ObjectId, u32), Vec<TaskIx>> = Map::default();
        for (ix, task) in self.tasks.iter() {
            if let Some(bundle) = task.bundle {
                let group = task.spec.template.strategy.group();
                let group = group.ok_or(format!("task {} is in a bundle of no group", task.spec.id))?;
                if group.bundle.is_some_and(|wanted| wanted != bundle) {
                    return Err(format!("task {} is in another bundle than it named", task.spec.id));
                }
                inside.entry((group.group, bundle)).or_default().push(ix);
            }
        }
        for (object, group) in self.groups.iter() {
            if group.task.is_some() && (group.removed.is_some() || group.is_whole()) {
                return Err(format!("group {object} has all and its task has not ended"));
            }
            if group.removed.is_none() && !group.is_whole() && !group.waits {
                return Err(format!("group {object} lacks bundles and does not wait for them"));
            }
            for (index, bundle) in group.bundles.iter().enumerate() {
                let mut here = inside.remove(&(*object, index as u32)).unwrap_or_default();
                let mut said: Vec<TaskIx> = bundle.tasks().collect();
                here.sort_unstable();
                said.sort_unstable();
                if here != said {
                    return Err(format!("bundle {index} of group {object} has {said:?}, not {here:?}"));
                }
                let Some(place) = &bundle.place else { continue };
                if !self.nodes.is_alive(place.node) {
                    return Err(format!("bundle {index} of group {object} is on a lost node"));
                }
                let leases = said.iter().filter_map(|ix| self.tasks.get(*ix)).filter_map(|task| {
                    let resources = &task.spec.template.resources;
                    match &task.state {
                        TaskState::Leased { lease, blocked, .. } => Some((resources, lease, *blocked)),
                        TaskState::Alive { lease, .. } => Some((resources, lease, false)),
                        _ => None,
                    }
                });
                place
                    .ledger
                    .audit(leases)
                    .map_err(|problem| format!("LEDGER-1: bundle {index} of group {object}: {problem}"))?;
            }
        }
        match inside.keys().next() {
            Some((group, bundle)) => Err(format!("tasks are in bundle {bundle} of unknown group {group}")),
            None => Ok(()),
        }
    }
}
