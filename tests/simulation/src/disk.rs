//! What the head keeps on disk: it outlives the head's process.

use std::collections::BTreeMap;

use cluster_types::job::JobView;
use cluster_types::kept::{KeptActor, KeptDurable, KeptGroup};
use cluster_types::{Incarnation, NodeId, ObjectId, TaskId, Term};
use head_core::{HeadConfig, Member, Record};

/// The head's store, and whether a head runs on it.
#[derive(Debug, Default)]
pub(crate) struct HeadDisk {
    pub is_up: bool,
    /// What the living head admitted each node as.
    pub admitted: BTreeMap<NodeId, Incarnation>,
    term: u32,
    roster: BTreeMap<NodeId, Member>,
    actors: BTreeMap<TaskId, KeptActor>,
    groups: BTreeMap<TaskId, KeptGroup>,
    durables: BTreeMap<ObjectId, KeptDurable>,
    pub jobs: BTreeMap<String, JobView>,
}

impl HeadDisk {
    /// A head starts: what it is told.
    pub fn begin(&mut self) -> HeadConfig {
        self.is_up = true;
        self.term += 1;
        self.admitted.clear();
        HeadConfig {
            term: Term(self.term),
            finished_kept: 1_000,
            roster: self.roster.values().copied().collect(),
            actors: self.actors.values().cloned().collect(),
            durables: self.durables.values().cloned().collect(),
            groups: self.groups.values().cloned().collect(),
            jobs: self.jobs.values().cloned().collect(),
            ..HeadConfig::default()
        }
    }

    pub fn write(&mut self, record: Record) {
        match record {
            Record::NodeJoined { node, incarnation, since, .. } => {
                self.roster.insert(node, Member { node, incarnation, since });
            }
            Record::NodeLeft { node } => {
                self.roster.remove(&node);
            }
            Record::ActorKept(kept) => {
                self.actors.insert(kept.spec.id, kept);
            }
            Record::ActorGone(task) => {
                self.actors.remove(&task);
            }
            Record::GroupKept(kept) => {
                self.groups.insert(kept.spec.id, kept);
            }
            Record::GroupGone(task) => {
                self.groups.remove(&task);
            }
            Record::DurableKept(kept) => {
                self.durables.insert(kept.object, kept);
            }
            Record::DurableGone(object) => {
                self.durables.remove(&object);
            }
            Record::JobKept(view) => {
                self.jobs.insert(view.job.clone(), *view);
            }
            Record::JobGone(job) => {
                self.jobs.remove(&job);
            }
        }
    }
}
