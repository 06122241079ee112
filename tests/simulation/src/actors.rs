//! What programs do with actors, and what must hold of them.
//!
//! ORDER-1 as an executor sees it: the calls of one caller that come to one incarnation of an actor which takes them in
//! order have rising numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::RunTask;
use cluster_types::{ActorTraits, ClientId, ObjectId, Payload, Refs, TaskId, TaskKind, TaskTemplate};

use crate::client::encode;
use crate::world::World;

/// What a process that became an actor knows of itself.
#[derive(Debug)]
pub(crate) struct Lives {
    in_order: bool,
    /// By caller: the last call that began.
    last: BTreeMap<ClientId, u64>,
    /// Calls that began.
    begun: BTreeSet<TaskId>,
}

impl World {
    /// A program makes an actor.
    pub(crate) fn make_actor(&mut self, client: ClientId, function: ObjectId) {
        let concurrent = self.random.one_in(3);
        let traits = ActorTraits {
            max_restarts: self.random.between(0, 2) as i32,
            max_concurrency: if concurrent { 4 } else { 1 },
            ..ActorTraits::default()
        };
        let deps = self.some_refs(client, 1);
        let template = self.actor_template("Actor", function, TaskKind::Actor(Arc::new(traits)), 0);
        let Some(process) = self.processes.get_mut(&client) else { return };
        let payload = Payload::Inline(encode(ObjectId::default(), &[]));
        let (_, results) = process.core.submit(&template, payload, deps, Refs::new(), None);
        process.refs.extend(results.iter().copied());
        self.actors.extend(results);
    }

    /// A program calls one of the actors it has a handle on. False: it has none.
    pub(crate) fn call_actor(&mut self, client: ClientId) -> bool {
        let Some(process) = self.processes.get(&client) else { return false };
        let handles: Vec<ObjectId> =
            process.refs.iter().copied().filter(|handle| self.actors.contains(handle)).collect();
        let Some(&actor) = self.random.pick(&handles) else { return false };
        let retries = self.random.between(0, 1) as i32;
        let kind = TaskKind::Method { method: "call".into(), group: "".into(), concurrent: false };
        let template = self.actor_template("Actor.call", actor, kind, retries);
        // A call with nothing but bytes may go straight to its actor.
        let plain = self.random.one_in(2);
        let deps = if plain { Refs::new() } else { self.some_refs(client, 1) };
        if self.plan.streams && self.random.one_in(4) {
            self.submit_stream(client, &template, deps);
            return true;
        }
        let borrowed = if plain { Refs::new() } else { self.some_refs(client, 1) };
        // Some at once, so that they overtake each other if they can.
        let most = if self.plan.busy_actors { 40 } else { 8 };
        let count = if plain && self.plan.direct { self.random.between(1, most) } else { 1 };
        let Some(process) = self.processes.get_mut(&client) else { return false };
        for _ in 0..count {
            let payload = Payload::Inline(encode(ObjectId::default(), &borrowed));
            let (_, results) = process.core.submit(&template, payload, deps.clone(), borrowed.clone(), None);
            process.refs.extend(results);
        }
        true
    }

    fn actor_template(
        &self,
        name: &str,
        function: ObjectId,
        kind: TaskKind,
        max_retries: i32,
    ) -> Arc<TaskTemplate> {
        Arc::new(TaskTemplate {
            name: name.into(),
            function,
            resources: Default::default(),
            num_returns: 1,
            max_retries,
            retry_exceptions: Bytes::new(),
            env_vars: BTreeMap::new(),
            strategy: Default::default(),
            kind,
            ..TaskTemplate::default()
        })
    }

    /// A process begins something: what that makes of it, and whether it may.
    pub(crate) fn check_actor(&mut self, client: ClientId, run: &RunTask) -> Result<(), String> {
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        let id = run.spec.id;
        match (&run.spec.template.kind, &mut process.lives) {
            (TaskKind::Function, None) => Ok(()),
            (TaskKind::Actor(traits), lives @ None) => {
                *lives = Some(Lives {
                    in_order: traits.in_order(),
                    last: BTreeMap::new(),
                    begun: BTreeSet::new(),
                });
                Ok(())
            }
            (TaskKind::Method { .. }, Some(lives)) => {
                let again = !lives.begun.insert(id);
                // A caller that lost touch does not know how far it came, and may try again.
                if again && self.plan.cuts > 0 && run.spec.template.max_retries > 0 {
                    return Ok(());
                }
                let before = lives.last.insert(id.client, id.seq);
                if lives.in_order && before.is_some_and(|before| before >= id.seq) {
                    return Err(format!("ORDER-1: {id} runs after {before:?} of the same caller"));
                }
                Ok(())
            }
            (kind, lives) => Err(format!("{id} ({kind:?}) is given to {client}, which is {lives:?}")),
        }
    }
}
