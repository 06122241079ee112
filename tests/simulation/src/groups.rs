//! What programs do with placement groups: they make some, run tasks in them, and remove some.
//!
//! Bundles are of memory only, which nothing else asks for, and few enough to fit one machine: so every group has a place
//! some time, and a program that waits for a task in one does not wait for itself.

use std::sync::Arc;

use cluster_types::task::{GroupStrategy, GroupTraits, InGroup, Strategy};
use cluster_types::{
    Amount, ClientId, ClientToNode, ObjectId, Payload, Refs, Resources, TaskKind, TaskTemplate,
};

use crate::client::encode;
use crate::world::World;

/// Groups that one program has at a time.
const MOST: usize = 2;
/// Bytes of a bundle: two of each group, two groups of each of eight programs fit 8 GiB.
const BUNDLE: i64 = 200 << 20;

fn memory(bytes: i64) -> Resources {
    Resources { memory: Amount::units(bytes), ..Resources::default() }
}

impl World {
    /// A program makes a group, removes one, or submits this task in one. False: none of that.
    pub(crate) fn use_groups(
        &mut self,
        client: ClientId,
        template: &Arc<TaskTemplate>,
        deps: &Refs,
        borrowed: &Refs,
    ) -> bool {
        let roll = self.random.between(0, 11);
        let strategies = [GroupStrategy::Pack, GroupStrategy::Spread, GroupStrategy::StrictPack];
        let strategy = *self.random.pick(&strategies).expect("there are three");
        let bundles = self.random.between(1, 2) as usize;
        let bundle = if self.random.one_in(2) { None } else { Some(0) };
        let Some(process) = self.processes.get_mut(&client) else { return false };
        match roll {
            0 if process.groups.len() < MOST => {
                let traits = GroupTraits {
                    strategy,
                    bundles: vec![memory(BUNDLE); bundles],
                    ..GroupTraits::default()
                };
                let template = TaskTemplate {
                    name: "group".into(),
                    num_returns: 1,
                    kind: TaskKind::Group(Arc::new(traits)),
                    ..TaskTemplate::default()
                };
                let payload = Payload::Inline(encode(ObjectId::default(), &[]));
                let (_, made) =
                    process.core.submit(&Arc::new(template), payload, Refs::new(), Refs::new(), None);
                process.groups.extend(made);
            }
            1 if !process.groups.is_empty() => {
                let group = process.groups.remove(0);
                process.core.push(ClientToNode::Kill { actor: group, restart: false });
                process.core.drop_handle(group);
            }
            2..=4 if !process.groups.is_empty() => {
                let group = process.groups[process.groups.len() - 1];
                let place = InGroup { group, bundle, capture: false };
                let template = TaskTemplate {
                    resources: memory(BUNDLE / 2),
                    strategy: Strategy::Group(place),
                    ..(**template).clone()
                };
                let payload = Payload::Inline(encode(ObjectId::default(), borrowed));
                let (_, results) =
                    process.core.submit(&Arc::new(template), payload, deps.clone(), borrowed.clone(), None);
                process.refs.extend(results);
            }
            _ => return false,
        }
        true
    }
}
