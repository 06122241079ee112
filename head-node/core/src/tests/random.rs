//! Random histories: plausible and garbage messages in any order. Nothing panics, and every invariant holds after
//! every step (`Scene::event` checks).

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::node_head::Retry;
use cluster_types::query::Query;
use cluster_types::task::Strategy;
use cluster_types::{
    Amount, Attempt, ClientId, ClientKind, FailureKind, HeadToNode, JobId, NodeToHead, ObjectId, Outcome,
    Payload, Refs, Resources, ResultValue, Span, TaskId, TaskResult, TaskSpec, TaskTemplate,
};
use proptest::prelude::*;

use super::scene::*;
use crate::{Effect, Event, HeadConfig};

/// A few numbers from which a step is made.
type Step = (u8, u8, u8, u8, u8);

struct World {
    scene: Scene,
    /// Attempts the nodes have: (node, task, attempt).
    attempts: Vec<(u64, TaskId, Attempt)>,
    told_finished: cluster_types::Map<TaskId, u32>,
}

fn client(n: u8) -> ClientId {
    ClientId(100 + u64::from(n % 6))
}

fn object(a: u8, b: u8) -> ObjectId {
    let seq = u64::from(b % 12) + 1;
    if a.is_multiple_of(2) {
        ObjectId::put(client(a / 2), seq)
    } else {
        TaskId { client: client(a / 2), seq }.result(u32::from(b) % 2)
    }
}

impl World {
    fn take(&mut self, step: Step) {
        let (kind, a, b, c, d) = step;
        let n = u64::from(a % 3) + 1;
        match kind % 22 {
            0 => {
                let mut resources = with_gpus(i64::from(b % 3), i64::from(c % 3));
                resources.set_custom("tpu", Amount::units(i64::from(d % 2)));
                self.scene.join(n, resources);
            }
            1 if d < 40 && self.scene.incarnations.contains_key(&node(n)) => self.scene.disconnect(n),
            2 => {
                let job = JobId(u32::from(client(b).0 as u8 % 2));
                let kind = if b % 6 < 2 {
                    ClientKind::Driver { job, info: Default::default() }
                } else {
                    ClientKind::Executor { executor: u32::from(b) }
                };
                self.tell(n, NodeToHead::ClientAttached { client: client(b), kind, job, pid: 1 });
            }
            3 if d < 60 => self.tell(n, NodeToHead::ClientGone { client: client(b) }),
            4..=7 => self.submit(n, b, c, d),
            8 => {
                let contains =
                    if d.is_multiple_of(2) { Refs::new() } else { [object(c, d)].into_iter().collect() };
                let inline = d.is_multiple_of(3).then(|| Bytes::from_static(b"value"));
                self.tell(n, NodeToHead::Escaped { object: object(b, c), size: 99, inline, contains });
            }
            9 => self
                .tell(n, NodeToHead::Hold { client: client(b), objects: vec![object(c, d), object(d, c)] }),
            10 => self
                .tell(n, NodeToHead::Drop { client: client(b), objects: vec![object(c, d), object(d, c)] }),
            11..=13 => self.done(b, c, d),
            14 => {
                if let Some((n, task, attempt)) = self.some_attempt(b) {
                    let on = vec![object(c, d), object(d, b)];
                    self.tell(n, NodeToHead::Blocked { task, attempt, on });
                }
            }
            15 => {
                if let Some((n, task, attempt)) = self.some_attempt(b) {
                    self.tell(n, NodeToHead::Unblocked { task, attempt });
                }
            }
            16 => {
                if let Some((n, task, attempt)) = self.some_attempt(b) {
                    self.tell(n, NodeToHead::Returned(vec![(task, attempt), (task, attempt)]));
                }
            }
            17 => self.tell(n, NodeToHead::Locate(object(b, c))),
            18 => self
                .tell(n, NodeToHead::SourceFailed { object: object(b, c), source: node(u64::from(d % 4)) }),
            19 if d.is_multiple_of(2) => self.tell(n, NodeToHead::CopyAdded(object(b, c))),
            19 => self.tell(n, NodeToHead::CopyRemoved(object(b, c))),
            20 => {
                self.scene.now = self.scene.now + Span::millis(u64::from(b) * 4);
                self.scene.event(Event::Tick);
            }
            21 => {
                let query = match b % 5 {
                    0 => Query::Status,
                    1 => Query::Nodes,
                    2 => Query::Tasks { limit: u32::from(c % 4) },
                    3 => Query::Objects { limit: u32::from(c % 4) },
                    _ => Query::Why { task: u64::from(c % 12).to_string() },
                };
                self.scene.event(Event::Query { number: 1, query });
            }
            _ => {}
        }
        self.listen();
    }

    fn tell(&mut self, n: u64, message: NodeToHead) {
        self.scene.tell(n, message);
    }

    fn submit(&mut self, n: u64, b: u8, c: u8, d: u8) {
        let strategy = match d % 7 {
            0 => Strategy::Spread,
            1 => Strategy::Node { id: node(u64::from(c % 4)), soft: b.is_multiple_of(2) },
            _ => Strategy::Default,
        };
        let gpu = [0, 0, 0, 2_500, 10_000, 20_000, 15_000, -1][usize::from(c % 8)];
        let mut resources =
            Resources { cpu: Amount(5_000 * i64::from(b % 4)), gpu: Amount(gpu), ..Resources::default() };
        resources.set_custom("tpu", Amount::units(i64::from(d.is_multiple_of(9))));
        let template = TaskTemplate {
            name: "f".into(),
            function: object(c & 0xfe, d),
            resources,
            num_returns: u32::from(c % 3),
            max_retries: i32::from(d % 3) - 1,
            retry_exceptions: Bytes::new(),
            env_vars: Default::default(),
            strategy,
            kind: Default::default(),
        };
        let deps: Refs = if c.is_multiple_of(3) { [object(b, d)].into_iter().collect() } else { Refs::new() };
        let spec = TaskSpec {
            id: TaskId { client: client(b), seq: u64::from(d % 12) + 1 },
            job: JobId(u32::from(client(b).0 as u8 % 2)),
            template: Arc::new(template),
            payload: if c.is_multiple_of(5) {
                Payload::Stored(object(d, c))
            } else {
                Payload::Inline(Bytes::new())
            },
            parent: None,
            borrowed: if b.is_multiple_of(4) { [object(c, b)].into_iter().collect() } else { Refs::new() },
            deps,
        };
        self.tell(n, NodeToHead::Submit(spec));
    }

    fn some_attempt(&self, b: u8) -> Option<(u64, TaskId, Attempt)> {
        let count = self.attempts.len();
        (count > 0).then(|| self.attempts[usize::from(b) % count])
    }

    fn done(&mut self, b: u8, c: u8, d: u8) {
        let Some((n, task, attempt)) = self.some_attempt(b) else { return };
        let started = (c.is_multiple_of(2)).then(|| self.some_attempt(c)).flatten();
        let outcome = if d.is_multiple_of(4) {
            failed(FailureKind::ExecutorDied)
        } else {
            let contains =
                if d.is_multiple_of(3) { [object(c, d)].into_iter().collect() } else { Refs::new() };
            let value = if d.is_multiple_of(5) {
                ResultValue::Stored { size: 9 }
            } else {
                ResultValue::Inline("x".into())
            };
            let result = TaskResult { value, contains };
            Outcome::Ok(std::iter::repeat_n(result, usize::from(d % 3)).collect())
        };
        let retry = [Retry::No, Retry::Infrastructure, Retry::Exception][usize::from(b % 3)];
        let started = started.map(|(_, task, attempt)| (task, attempt));
        let micros = u64::from(c) * 100;
        self.tell(n, NodeToHead::Done { task, attempt, executor: None, outcome, retry, started, micros });
        // Some reports come twice.
        if !b.is_multiple_of(5) {
            self.attempts.retain(|known| *known != (n, task, attempt));
        }
    }

    fn listen(&mut self) {
        for effect in std::mem::take(&mut self.scene.said) {
            let Effect::ToNode { node, message } = effect else { continue };
            match message {
                HeadToNode::Assign { spec, attempt, .. } => self.attempts.push((node.0, spec.id, attempt)),
                HeadToNode::Finished { task, .. } => {
                    // Elsewhere it says that the submitter is not attached there.
                    let submitter = self.scene.head.clients.get(&task.client).map(|client| client.node);
                    if submitter.is_some() && submitter == self.scene.head.nodes.find(node) {
                        *self.told_finished.entry(task).or_default() += 1;
                    }
                }
                HeadToNode::Free(objects) => {
                    for object in objects {
                        assert!(
                            self.scene.head.objects.by_id(object).is_none_or(|object| object.is_reachable()),
                            "freed and kept"
                        );
                    }
                }
                HeadToNode::Located { located: cluster_types::Located::Stored { copies, .. }, .. } => {
                    assert!(!copies.is_empty());
                }
                _ => {}
            }
        }
    }
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    proptest::collection::vec(any::<Step>(), 1..120)
}

fn world(config: HeadConfig) -> World {
    let mut world =
        World { scene: Scene::with(config), attempts: Vec::new(), told_finished: Default::default() };
    world.take((0, 0, 2, 2, 1));
    world.take((0, 1, 1, 0, 0));
    for n in 0..6 {
        world.take((2, n % 2, n, 0, 0));
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nothing_breaks_an_invariant(steps in steps()) {
        let config = HeadConfig { inline_budget: 20, finished_kept: 1_000, prefetch_max: 4, ..HeadConfig::default() };
        let mut world = world(config);
        for step in steps {
            world.take(step);
        }
    }

    #[test]
    fn every_submitter_learns_at_most_once(steps in steps()) {
        // Clients stay where they are: at their end their numbers may be used again.
        let config = HeadConfig { finished_kept: 1_000, closed: true, ..HeadConfig::default() };
        let mut world = world(config);
        for step in steps {
            if !matches!(step.0 % 22, 0..=3 | 20) {
                world.take(step);
            }
        }
        for (task, times) in &world.told_finished {
            prop_assert_eq!(*times, 1, "TASK-1: {}", task);
        }
    }
}
