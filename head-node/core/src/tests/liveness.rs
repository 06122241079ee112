//! A cluster of simple nodes that obey the rules, with messages to them delayed: whatever is submitted ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cluster_types::node_head::Retry;
use cluster_types::{
    Amount, Attempt, FailureKind, HeadToNode, NodeToHead, Outcome, Resources, Span, TaskId, TaskSpec,
};
use proptest::prelude::*;

use super::scene::*;
use crate::{Effect, HeadConfig};

/// One attempt at a node.
#[derive(Clone)]
struct Here {
    spec: Arc<TaskSpec>,
    attempt: Attempt,
    /// The child it waits for.
    waits_for: Option<TaskId>,
    nested: bool,
}

#[derive(Default)]
struct FakeNode {
    inbox: VecDeque<HeadToNode>,
    running: Vec<Here>,
    ahead: VecDeque<Here>,
}

struct Cluster {
    scene: Scene,
    nodes: BTreeMap<u64, FakeNode>,
    /// Tasks of the driver that have not finished.
    open: cluster_types::Set<TaskId>,
    depth: BTreeMap<TaskId, u64>,
    finished: cluster_types::Set<TaskId>,
    executors: u64,
}

impl Cluster {
    fn new(nodes: &[Resources], prefetch_max: u32) -> Self {
        let mut scene = Scene::with(HeadConfig { prefetch_max, ..HeadConfig::default() });
        scene.join(1, Resources::cpus(0));
        scene.driver(1);
        let mut cluster = Self {
            scene,
            nodes: [(1, FakeNode::default())].into(),
            open: Default::default(),
            depth: BTreeMap::new(),
            finished: Default::default(),
            executors: 1000,
        };
        for (at, resources) in nodes.iter().enumerate() {
            let n = at as u64 + 2;
            cluster.scene.join(n, resources.clone());
            cluster.nodes.insert(n, FakeNode::default());
        }
        cluster
    }

    fn submit(&mut self, asks: Resources, depth: u64, dep: Option<TaskId>) -> TaskId {
        let deps: Vec<_> = dep.map(|dep| dep.result(0)).into_iter().collect();
        let id = self.scene.submit_as(1, DRIVER, asks, &deps);
        self.open.insert(id);
        self.depth.insert(id, depth);
        id
    }

    /// Hands what the head said to the nodes' inboxes; the driver hears at once.
    fn carry(&mut self) {
        for effect in std::mem::take(&mut self.scene.said) {
            let Effect::ToNode { node, message } = effect else { continue };
            if let HeadToNode::Finished { task, outcome } = &message {
                assert!(self.finished.insert(*task), "TASK-1: {task} finished twice");
                assert!(
                    matches!(outcome, cluster_types::client_node::FinishedOutcome::Ok(_)),
                    "{task}: {outcome:?}"
                );
                self.open.remove(task);
            }
            if let Some(node) = self.nodes.get_mut(&node.0) {
                node.inbox.push_back(message);
            }
        }
    }

    /// The node takes in its next message.
    fn deliver(&mut self, n: u64) {
        let Some(message) = self.nodes.get_mut(&n).and_then(|node| node.inbox.pop_front()) else { return };
        match message {
            HeadToNode::Assign { spec, attempt, lease, .. } => {
                let here = Here { spec, attempt, waits_for: None, nested: false };
                if lease.is_some() {
                    self.start(n, here);
                } else if let Some(node) = self.nodes.get_mut(&n) {
                    node.ahead.push_back(here);
                }
            }
            HeadToNode::Grant { task, attempt, .. } => {
                let Some(node) = self.nodes.get_mut(&n) else { return };
                let at = node.ahead.iter().position(|here| here.spec.id == task && here.attempt == attempt);
                if let Some(here) = at.and_then(|at| node.ahead.remove(at)) {
                    self.start(n, here);
                }
            }
            HeadToNode::CallBack(attempts) => {
                let Some(node) = self.nodes.get_mut(&n) else { return };
                let mut returned = Vec::new();
                node.ahead.retain(|here| {
                    let called = attempts.contains(&(here.spec.id, here.attempt));
                    if called {
                        returned.push((here.spec.id, here.attempt));
                    }
                    !called
                });
                if !returned.is_empty() {
                    self.scene.tell(n, NodeToHead::Returned(returned));
                }
            }
            HeadToNode::Cancel { task, .. } => panic!("{task} was cancelled"),
            _ => {}
        }
    }

    fn start(&mut self, n: u64, here: Here) {
        if let Some(node) = self.nodes.get_mut(&n) {
            node.running.push(here);
        }
    }

    /// One running attempt makes progress: submits a child and waits, wakes, or ends.
    fn work(&mut self, n: u64, pick: u8, hand_on: bool, dies: bool) {
        let Some(node) = self.nodes.get_mut(&n) else { return };
        if node.running.is_empty() {
            return;
        }
        let at = usize::from(pick) % node.running.len();
        let here = node.running[at].clone();
        let (task, attempt) = (here.spec.id, here.attempt);
        if let Some(child) = here.waits_for {
            if self.finished.contains(&child) {
                node.running[at].waits_for = None;
                self.scene.tell(n, NodeToHead::Unblocked { task, attempt });
            }
            return;
        }
        let depth = self.depth.get(&task).copied().unwrap_or(0);
        if depth > 0 && !here.nested {
            self.executors += 1;
            let client = self.scene.executor(n, self.executors);
            let child = self.scene.submit_as(n, client, here.spec.template.resources.clone(), &[]);
            self.depth.insert(child, depth - 1);
            let on = vec![child.result(0)];
            self.scene.tell(n, NodeToHead::Blocked { task, attempt, on });
            if let Some(node) = self.nodes.get_mut(&n) {
                node.running[at].waits_for = Some(child);
                node.running[at].nested = true;
            }
            return;
        }
        node.running.swap_remove(at);
        let shape = &here.spec.template.resources;
        let heir = node.ahead.iter().position(|ahead| hand_on && ahead.spec.template.resources == *shape);
        let heir = heir.and_then(|heir| node.ahead.remove(heir));
        let started = heir.as_ref().map(|heir| (heir.spec.id, heir.attempt));
        if let Some(heir) = heir {
            node.running.push(heir);
        }
        let (outcome, retry) = if dies && depth == 0 {
            (failed(FailureKind::ExecutorDied), Retry::Infrastructure)
        } else {
            (Outcome::Ok([inline(b"x")].into_iter().collect()), Retry::No)
        };
        let micros = u64::from(pick) * 300;
        self.scene
            .tell(n, NodeToHead::Done { task, attempt, executor: None, outcome, retry, started, micros });
    }

    fn lose(&mut self, n: u64, resources: Resources) {
        self.scene.disconnect(n);
        self.carry();
        self.nodes.insert(n, FakeNode::default());
        self.scene.join(n, resources);
    }

    /// Everything is delivered and worked at until nothing is open.
    fn settle(&mut self) -> Result<(), String> {
        for round in 0..4_000u32 {
            self.carry();
            if self.open.is_empty() {
                return Ok(());
            }
            let nodes: Vec<u64> = self.nodes.keys().copied().collect();
            for n in nodes {
                while self.nodes.get(&n).is_some_and(|node| !node.inbox.is_empty()) {
                    self.deliver(n);
                    self.carry();
                }
                self.work(n, round as u8, !round.is_multiple_of(3), false);
                self.carry();
            }
            let said = std::mem::take(&mut self.scene.said);
            self.scene.pass(Span::millis(20));
            self.scene.said.splice(0..0, said);
        }
        Err(format!("{} tasks never ended", self.open.len()))
    }
}

fn asks(kind: u8) -> Resources {
    match kind % 5 {
        0 => Resources::cpus(2),
        1 => Resources { cpu: Amount(5_000), ..Resources::default() },
        2 => Resources { gpu: Amount(5_000), ..Resources::cpus(1) },
        _ => Resources::cpus(1),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_submitted_ends(
        steps in proptest::collection::vec(any::<(u8, u8, u8)>(), 1..250),
        prefetch_max in 0..5u32,
        losses in any::<bool>(),
    ) {
        let with_gpu = with_gpus(2, 1);
        let totals = [with_gpu, Resources::cpus(2), Resources::cpus(3)];
        let mut cluster = Cluster::new(&totals, prefetch_max);
        let mut last = None;
        let mut deaths = 0;
        for (kind, a, b) in steps {
            let n = u64::from(a % 3) + 2;
            match kind % 10 {
                // Nested work dies with its node, for its executors do: it is not mixed with losses here.
                0..=2 => {
                    // And GPUs are not given back by a waiting task: nesting such tasks can wait for itself.
                    let depth = if losses || a % 5 == 2 { 0 } else { u64::from(b % 4) };
                    let dep = if b.is_multiple_of(3) { last } else { None };
                    last = Some(cluster.submit(asks(a), depth, dep));
                }
                3..=5 => cluster.deliver(n),
                6..=7 => {
                    deaths += u32::from(b.is_multiple_of(50));
                    cluster.work(n, b, b.is_multiple_of(2), b.is_multiple_of(50) && deaths < 3);
                }
                8 if losses && b < 40 && deaths < 3 => {
                    deaths += 1;
                    cluster.lose(n, totals[usize::from(a % 3)].clone());
                }
                _ => {
                    let said = std::mem::take(&mut cluster.scene.said);
                    cluster.scene.pass(Span::millis(u64::from(b)));
                    cluster.scene.said.splice(0..0, said);
                }
            }
            cluster.carry();
        }
        if let Err(problem) = cluster.settle() {
            return Err(TestCaseError::fail(problem));
        }
    }
}
