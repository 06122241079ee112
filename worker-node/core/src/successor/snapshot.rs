//! What a head of a new term is told when the stream to it is open (rules H2, T6): all that is here, and what is remembered for
//! it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_types::{ClientId, INLINE_MAX, JobInfo, NodeToHead, ObjectId, Outcome, ResultValue, TaskResult};

use super::Way;
use crate::attempts::Stage;
use crate::event::Effect;
use crate::node::Node;
use crate::objects::{Fetch, Object};
use crate::streams::Taken;

impl Node {
    /// To a head that knows nothing of what this node was: its clients, and what they have and want.
    pub(crate) fn introduce_clients(&mut self, resumed: bool, effects: &mut Vec<Effect>) {
        // The marks of another head say nothing to this one.
        self.remembered.heard = 0;
        let mut clients: Vec<ClientId> = self.clients.keys().copied().collect();
        clients.sort_unstable();
        for client in &clients {
            let known = &self.clients[client];
            let (client, kind, job, pid) = (*client, known.kind.clone(), known.job, known.pid);
            effects.push(Effect::ToHead(NodeToHead::ClientAttached { client, kind, job, pid }));
        }
        if !resumed {
            self.report_objects(effects);
        }
        for known in self.remembered.unfinished.values() {
            let spec = known.spec.clone();
            effects.push(Effect::ToHead(match known.way.clone() {
                Way::Submitted => NodeToHead::Submit(spec),
                Way::SubmittedAgain { may_have_run } => NodeToHead::SubmitAgain { spec, may_have_run },
                Way::Expected => NodeToHead::Expect(spec),
            }));
        }
        for (object, failure) in &self.remembered.failed {
            let (object, failure) = (*object, failure.clone());
            effects.push(Effect::ToHead(NodeToHead::PutFailed { object, failure }));
        }
        for client in clients {
            let mut objects: Vec<ObjectId> = self.clients[&client].held.iter().copied().collect();
            objects.sort_unstable();
            if !objects.is_empty() {
                effects.push(Effect::ToHead(NodeToHead::Hold { client, objects }));
            }
        }
        self.introduce_drops(effects);
        if resumed {
            self.introduce_calls(effects);
            let made = self.remembered.made.values().cloned();
            effects.extend(made.map(|spec| Effect::ToHead(NodeToHead::Made(spec))));
        }
        for known in self.remembered.unfinished.values() {
            let (task, Taken { items, closed }) = (known.spec.id, known.taken);
            if known.told > 0 && resumed {
                effects.push(Effect::ToHead(NodeToHead::Told { task, items: known.told }));
            }
            if known.taken != Taken::default() {
                effects.push(Effect::ToHead(NodeToHead::Taken { task, items, closed }));
            }
        }
    }

    /// Submitting a task is holding its results (rule R2), and so is saying why one failed: some were dropped since.
    fn introduce_drops(&self, effects: &mut Vec<Effect>) {
        let mut dropped: BTreeMap<ClientId, Vec<ObjectId>> = BTreeMap::new();
        for (task, known) in &self.remembered.unfinished {
            let Some(submitter) = self.clients.get(&task.client) else { continue };
            let results = (0..known.spec.template.num_returns).map(|index| task.result(index));
            let of_client = dropped.entry(task.client).or_default();
            of_client.extend(results.filter(|result| !submitter.held.contains(result)));
        }
        for object in self.remembered.failed.keys() {
            if self.clients.get(&object.client).is_some_and(|maker| !maker.held.contains(object)) {
                dropped.entry(object.client).or_default().push(*object);
            }
        }
        for (client, objects) in dropped {
            if !objects.is_empty() {
                effects.push(Effect::ToHead(NodeToHead::Drop { client, objects }));
            }
        }
    }

    /// The head does not know these calls. An answer that is on its way may name a value that its node has told of.
    fn introduce_calls(&self, effects: &mut Vec<Effect>) {
        let mut results: BTreeMap<ClientId, Vec<ObjectId>> = BTreeMap::new();
        for (task, (_, returns)) in &self.remembered.calls {
            let of_client = results.entry(task.client).or_default();
            of_client.extend((0..*returns).map(|index| task.result(index)));
        }
        for (client, mut objects) in results {
            objects.sort_unstable();
            effects.push(Effect::ToHead(NodeToHead::Unanswered { client, objects }));
        }
    }

    /// What was asked of the head before it, and what clients wished.
    pub(crate) fn ask_anew(&mut self, effects: &mut Vec<Effect>) {
        let mut sought: Vec<ObjectId> = self
            .objects
            .iter()
            .filter(|(_, known)| known.fetch == Fetch::Locating)
            .map(|(object, _)| *object)
            .collect();
        sought.sort_unstable();
        effects.extend(sought.into_iter().map(|object| Effect::ToHead(NodeToHead::Locate(object))));
        for ((client, number), query) in &self.remembered.questions {
            let (client, number, query) = (*client, *number, query.clone());
            effects.push(Effect::ToHead(NodeToHead::Query { client, number, query }));
        }
        for (_, message) in &self.remembered.unsettled {
            if matches!(message, NodeToHead::Cancel { .. } | NodeToHead::Kill { .. }) {
                effects.push(Effect::ToHead(message.clone()));
            }
        }
    }

    /// The stream to a head of a new term is open, and it knows this node: what runs, runs on (rule H2).
    pub(crate) fn resumed(&mut self, effects: &mut Vec<Effect>) {
        self.connected = true;
        self.was_connected = true;
        self.forget_unused_jobs();
        self.introduce_values(effects);
        self.introduce_clients(true, effects);
        self.introduce_actors(effects);
        self.introduce_attempts(effects);
        self.introduce_jobs(effects);
        for (_, message) in &self.remembered.unsettled {
            if matches!(message, NodeToHead::Ended { .. }) {
                effects.push(Effect::ToHead(message.clone()));
            }
        }
        self.ask_anew(effects);
        self.find_callees_again(effects);
        self.tell_held_back(effects);
        if let Some(deadline_ms) = self.time_to_leave() {
            effects.push(Effect::ToHead(NodeToHead::Drain { deadline_ms }));
        }
        effects.push(Effect::ToHead(NodeToHead::SnapshotEnd));
        self.next_heartbeat = self.now;
        self.tick(effects);
    }

    /// The values here that the head before knew of.
    fn introduce_values(&self, effects: &mut Vec<Effect>) {
        let is_known = |known: &Object| known.escaped && !known.freed && !known.cached && known.has_copy();
        let mut objects: Vec<ObjectId> =
            self.objects.iter().filter(|(_, known)| is_known(known)).map(|(object, _)| *object).collect();
        objects.sort_unstable();
        for object in objects {
            let known = &self.objects[&object];
            effects.push(Effect::ToHead(NodeToHead::Kept {
                object,
                size: known.size,
                inline: known.inline.clone().filter(|bytes| bytes.len() <= INLINE_MAX),
                contains: known.contains.clone(),
            }));
            self.report_durable(object, known, effects);
        }
    }

    fn introduce_actors(&self, effects: &mut Vec<Effect>) {
        let mut actors: Vec<_> = self.actors.values().collect();
        actors.sort_unstable_by_key(|actor| actor.handle());
        for actor in actors {
            let info: Arc<JobInfo> = self.jobs.get(&actor.spec.job).cloned().unwrap_or_default();
            effects.push(Effect::ToHead(NodeToHead::Lives {
                spec: actor.spec.clone(),
                attempt: actor.attempt,
                lease: actor.lease.clone(),
                handle: actor.value.clone(),
                info,
            }));
        }
    }

    fn introduce_attempts(&self, effects: &mut Vec<Effect>) {
        let mut attempts: Vec<_> = self.attempts.values().collect();
        attempts.sort_unstable_by_key(|assigned| assigned.spec.id);
        for assigned in &attempts {
            effects.push(Effect::ToHead(NodeToHead::Running {
                spec: assigned.spec.clone(),
                attempt: assigned.attempt,
                lease: assigned.lease.clone(),
                yielded: assigned.yielded,
            }));
        }
        for assigned in attempts {
            let Stage::Sent { executor, .. } = assigned.stage else { continue };
            let first = self.executors.get(&executor).filter(|known| known.blocked);
            let task = assigned.spec.id;
            if first.and_then(|known| known.sent.front()).is_some_and(|sent| sent.task == task) {
                let (attempt, on) = (assigned.attempt, Vec::new());
                effects.push(Effect::ToHead(NodeToHead::Blocked { task, attempt, on }));
            }
        }
    }

    /// Where the executor ended something and its report waits (rule S2), the attempt is still in the list of attempts.
    pub(crate) fn audit_remembered(&self) -> Result<(), String> {
        let remembered = &self.remembered;
        if remembered.unsettled.iter().any(|(mark, _)| *mark > remembered.marks + 1) {
            return Err("something waits for a mark that is not next".to_owned());
        }
        for (task, (actor, _)) in &remembered.calls {
            if !self.has_far_route(task.client, *actor) {
                return Err(format!("{task} is remembered as a call to {actor}, to which there is no way"));
            }
        }
        for task in remembered.unfinished.keys() {
            if !self.clients.contains_key(&task.client) {
                return Err(format!("{task} is remembered for a client that is gone"));
            }
        }
        Ok(())
    }
}

/// As the head's `Finished` would say it, of an actor's handle.
pub(crate) fn handle_of(outcome: &Outcome) -> TaskResult {
    match outcome {
        Outcome::Ok(results) => results.first().cloned(),
        Outcome::Failed(_) => None,
    }
    .unwrap_or_else(|| TaskResult {
        value: ResultValue::Inline(bytes::Bytes::new()),
        contains: Default::default(),
    })
}
