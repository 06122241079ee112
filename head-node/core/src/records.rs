//! What the head keeps in its store beside the roster (rules H1, A6), and takes up again.
//!
//! Only what nobody else could tell the next head: actors that may live on when their submitters are gone or no longer
//! know their specs, and where the bundles of placement groups are. Everything else is told by the nodes.

use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::kept::{KeptActor, KeptGroup};
use cluster_types::{
    ClientId, HeadToNode, JobInfo, ObjectId, Outcome, Payload, ResultValue, Set, TaskKind, TaskResult,
    TaskSpec,
};
use smallvec::smallvec;

use crate::bundles::Place;
use crate::event::{Effect, Record};
use crate::head::{Head, Job};
use crate::ledger::Ledger;
use crate::objects::ObjectValue;
use crate::slab::NodeIx;

impl Head {
    // ---- writing ----

    /// The actor changed in a way that a later head has to know of.
    pub(crate) fn store_actor(&mut self, handle: ObjectId) {
        let Some(actor) = self.actors.get(handle) else { return };
        let traits = actor.traits();
        let is_kept = actor.death.is_none() && (traits.detached || (traits.max_restarts != 0 && actor.made));
        if !is_kept || self.config.closed {
            return;
        }
        let kept = KeptActor {
            spec: actor.spec.clone(),
            info: self.own_info(&actor.spec, traits.detached),
            // Its submitter knows that it was made, also when nobody has a handle any more and it is about to end.
            value: actor.made.then(|| self.handle_value(handle).unwrap_or_else(no_value)),
            restarts: actor.restarts,
            ended: actor.ended,
            states: actor.kept.states().collect(),
        };
        self.out.push(Effect::Persist(Record::ActorKept(kept)));
        if let Some(actor) = self.actors.get_mut(handle) {
            actor.stored = true;
        }
    }

    /// It is dead for good.
    pub(crate) fn unstore_actor(&mut self, handle: ObjectId) {
        let Some(actor) = self.actors.get_mut(handle) else { return };
        if std::mem::take(&mut actor.stored) {
            let task = actor.spec.id;
            self.out.push(Effect::Persist(Record::ActorGone(task)));
        }
    }

    pub(crate) fn store_group(&mut self, object: ObjectId) {
        let Some(group) = self.groups.get(object).filter(|group| group.removed.is_none()) else { return };
        if self.config.closed {
            return;
        }
        let place_of = |place: &Place| Some((self.nodes.get(place.node)?.id, place.lease.clone()));
        let kept = KeptGroup {
            spec: group.spec.clone(),
            info: self.own_info(&group.spec, group.traits().detached),
            places: group.bundles.iter().map(|bundle| bundle.place.as_ref().and_then(place_of)).collect(),
        };
        self.out.push(Effect::Persist(Record::GroupKept(kept)));
    }

    fn own_info(&self, spec: &TaskSpec, detached: bool) -> Option<Arc<JobInfo>> {
        detached.then(|| self.jobs.get(&spec.job).map(|job| job.info.clone())).flatten()
    }

    /// A handle's value is small: it is with its record.
    fn handle_value(&self, handle: ObjectId) -> Option<TaskResult> {
        let object = self.objects.by_id(handle)?;
        let ObjectValue::Available { size, inline, .. } = &object.value else { return None };
        let contains = object.more().map(|more| more.contains.clone()).unwrap_or_default();
        let value = inline.clone().map_or(ResultValue::Stored { size: *size }, ResultValue::Inline);
        Some(TaskResult { value, contains })
    }

    // ---- taking up again ----

    /// An actor of the term before. Where it lives is told later; if it does not, it is made anew.
    pub(crate) fn restore_actor(&mut self, kept: KeptActor) {
        let KeptActor { spec, info, value, restarts, ended, states } = kept;
        let handle = spec.id.result(0);
        if !self.restore_job(&spec, info) {
            // Its driver was gone, and is.
            return self.out.push(Effect::Persist(Record::ActorGone(spec.id)));
        }
        if self.tasks.find(spec.id).is_some() {
            return;
        }
        let submitter_knows = value.is_some();
        let here = self.take_value(handle);
        self.enter_checked((*spec).clone(), None);
        if let Some((node, result)) = here {
            self.kept(node, handle, result);
        } else if let Some(value) = &value
            && let Some(ix) = self.objects.find(handle)
        {
            let (size, inline) = match &value.value {
                ResultValue::Inline(bytes) => (bytes.len() as u64, Some(bytes.clone())),
                ResultValue::Stored { size } => (*size, None),
            };
            self.objects.set_available(ix, size, inline, None);
            self.value_known(ix);
        }
        self.held_by_none(&spec);
        for state in &states {
            self.restore_state(handle, *state);
        }
        if let Some(actor) = self.actors.get_mut(handle) {
            actor.made = submitter_knows;
            actor.restarts = restarts;
            actor.ended = ended;
            actor.stored = true;
        }
        if let (Some(value), Some(recovery)) = (value, &mut self.recovery) {
            recovery.remember_handle(spec.id, value);
        }
    }

    /// A placement group of the term before: what of it is on nodes that live is where it was.
    pub(crate) fn restore_group(&mut self, kept: KeptGroup) {
        let KeptGroup { spec, info, places } = kept;
        let object = spec.id.result(0);
        let (TaskKind::Group(_), Payload::Inline(bytes)) = (&spec.template.kind, &spec.payload) else {
            return;
        };
        if !self.restore_job(&spec, info) {
            return self.out.push(Effect::Persist(Record::GroupGone(spec.id)));
        }
        let ix = self.objects.find_or_insert(object, || ObjectValue::Unknown);
        self.objects.set_available(ix, bytes.len() as u64, Some(bytes.clone()), None);
        self.value_known(ix);
        self.insert_group(&spec, None);
        for (index, place) in places.into_iter().enumerate() {
            let Some((node, lease)) = place else { continue };
            let Some(ix) = self.nodes.find(node).filter(|ix| self.is_resumed(*ix)) else { continue };
            let Some(bundle) = self.groups.get_mut(object).and_then(|group| group.bundles.get_mut(index))
            else {
                continue;
            };
            let Some(state) = self.nodes.get_mut(ix) else { continue };
            if state.ledger.adopt(&bundle.resources, &lease) {
                let ledger = Ledger::of_lease(bundle.resources.clone(), &lease);
                bundle.place = Some(Place { node: ix, lease, ledger, tasks: Set::default() });
            }
        }
        if self.groups.get(object).is_some_and(|group| !group.is_whole()) {
            self.groups.wait(object);
        }
    }

    /// The job that it belongs to lives, or is its own.
    fn restore_job(&mut self, spec: &TaskSpec, info: Option<Arc<JobInfo>>) -> bool {
        if let Some(info) = info {
            let driver: ClientId = spec.id.client;
            self.jobs.entry(spec.job).or_insert_with(|| Job {
                driver,
                info,
                submitters: Set::default(),
                noticed: Set::default(),
            });
        }
        self.jobs.contains_key(&spec.job)
    }

    /// The results of a task that its submitter does not speak of: whoever holds them says so.
    pub(crate) fn held_by_none(&mut self, spec: &TaskSpec) {
        for index in 0..spec.template.num_returns {
            let Some(ix) = self.objects.find(spec.id.result(index)) else { continue };
            if let Some(object) = self.objects.get_mut(ix) {
                object.own = false;
            }
            self.objects.doubt(ix);
        }
    }

    /// A group that its submitter submits again, not knowing that it is made. False: it is no such.
    pub(crate) fn tell_group_again(&mut self, node: NodeIx, spec: &TaskSpec) -> bool {
        let object = spec.id.result(0);
        let (TaskKind::Group(_), Payload::Inline(bytes)) = (&spec.template.kind, &spec.payload) else {
            return false;
        };
        if self.groups.get(object).is_none_or(|group| group.task.is_some()) {
            return false;
        }
        if let Some(known) = self.objects.by_id_mut(object) {
            known.own = true;
        }
        let result = TaskResult { value: ResultValue::Inline(bytes.clone()), contains: Default::default() };
        let outcome = FinishedOutcome::from(&Outcome::Ok(smallvec![result]));
        self.send(node, HeadToNode::Finished { task: spec.id, outcome });
        true
    }

    /// A bundle on that node in which the task's lease lies.
    pub(crate) fn bundle_for(
        &self,
        spec: &TaskSpec,
        node: NodeIx,
        lease: &cluster_types::Lease,
    ) -> Option<u32> {
        let wanted = spec.template.strategy.group()?;
        let group = self.groups.get(wanted.group)?;
        let named = wanted.bundle.map(|bundle| bundle as usize);
        let here: Vec<usize> = (0..group.bundles.len())
            .filter(|index| named.is_none_or(|named| named == *index))
            .filter(|index| group.bundles[*index].place.as_ref().is_some_and(|place| place.node == node))
            .collect();
        let adopts = |index: &usize, over: bool| {
            let mut trial = group.bundles[*index].place.as_ref()?.ledger.clone();
            let fits = trial.adopt(&spec.template.resources, lease) && (over || trial.over().is_zero());
            fits.then_some(*index as u32)
        };
        // More than there is runs where one that waited goes on (rule S4).
        let mut roomy = here.iter().filter_map(|index| adopts(index, false));
        roomy.next().or_else(|| here.iter().find_map(|index| adopts(index, true)))
    }
}

fn no_value() -> TaskResult {
    TaskResult { value: ResultValue::Inline(bytes::Bytes::new()), contains: Default::default() }
}
