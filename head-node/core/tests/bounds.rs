//! Under a steady load the head remembers no more after a hundred thousand tasks than after twenty thousand.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cluster_types::node_head::Retry;
use cluster_types::task::Strategy;
use cluster_types::{
    Amount, Attempt, ClientId, ClientKind, Failure, FailureKind, HeadToNode, Incarnation, JobId, JobInfo,
    NodeHello, NodeId, NodeToHead, ObjectId, Outcome, PROTOCOL_VERSION, Payload, Refs, Resources,
    ResultValue, TaskId, TaskResult, TaskSpec, TaskTemplate, Time,
};
use head_core::{Effect, Event, Head, HeadConfig};

/// Programs, one after the other, and the tasks of each.
const PROGRAMS: u64 = 100;
const TASKS: u64 = 1_000;
/// When all that is bounded must have reached its bound.
const SETTLED: u64 = 20;
/// Of one program's tasks that are in flight at a time.
const IN_FLIGHT: usize = 64;

struct World {
    head: Head,
    now: Time,
    incarnations: BTreeMap<NodeId, Incarnation>,
    running: VecDeque<(NodeId, TaskId, Attempt)>,
    ended: u64,
}

impl World {
    fn new() -> World {
        let config = HeadConfig {
            finished_kept: 2_000,
            inline_budget: 64 << 10,
            lineage_budget: 64 << 10,
            prefetch_max: 0,
            ..HeadConfig::default()
        };
        World {
            head: Head::new(config),
            now: Time(1),
            incarnations: BTreeMap::new(),
            running: VecDeque::new(),
            ended: 0,
        }
    }

    fn step(&mut self, event: Event) {
        self.now = Time(self.now.0 + 20);
        let mut effects = Vec::new();
        let mut event = Some(event);
        while let Some(next) = event.take() {
            event = self.head.step(self.now, next, &mut effects).then_some(Event::Tick);
        }
        for effect in effects {
            match effect {
                Effect::AdmitNode { node, incarnation, .. } => {
                    self.incarnations.insert(node, incarnation);
                }
                Effect::ToNode { node, message: HeadToNode::Assign { spec, attempt, .. } } => {
                    self.running.push_back((node, spec.id, attempt));
                }
                _ => {}
            }
        }
    }

    fn tell(&mut self, node: NodeId, message: NodeToHead) {
        let incarnation = self.incarnations[&node];
        self.step(Event::FromNode { node, incarnation, message });
    }

    fn join(&mut self, node: NodeId) {
        let hello = NodeHello {
            protocol: PROTOCOL_VERSION,
            node,
            hostname: format!("host{node}"),
            data_address: format!("host{node}:8266"),
            gateway_address: String::new(),
            resources: Resources::cpus(16),
            labels: Default::default(),
            store_capacity: 1 << 20,
            previous: None,
        };
        self.step(Event::NodeConnected { connection: node.0, hello });
    }

    /// A program comes, runs its tasks, and goes. Of its tasks some return large values, some take those of others, some
    /// fail, some are tried again, some ask for what no task before asked for.
    fn program(&mut self, number: u64) {
        let (home, driver, job) = (NodeId(1), ClientId(0x100 + number), JobId(number as u32 + 1));
        let kind = ClientKind::Driver { job, info: Arc::new(JobInfo::default()) };
        self.tell(home, NodeToHead::ClientAttached { client: driver, kind, job, pid: 1 });
        let function = ObjectId::put(driver, 1);
        let inline = Some(Bytes::from_static(b"f"));
        self.tell(home, NodeToHead::Escaped { object: function, size: 1, inline, contains: Refs::new() });
        let mut last: Option<ObjectId> = None;
        let mut held: VecDeque<ObjectId> = VecDeque::new();
        for seq in 0..TASKS {
            let strategy = match seq % 50 {
                7 => Strategy::Node { id: NodeId(10 + number), soft: true },
                _ => Strategy::Default,
            };
            let cpu = Amount(10_000 + if seq % 50 == 9 { number as i64 } else { 0 });
            let template = Arc::new(TaskTemplate {
                name: "f".into(),
                function,
                resources: Resources { cpu, ..Resources::default() },
                num_returns: 1,
                max_retries: 3,
                strategy,
                ..TaskTemplate::default()
            });
            let id = TaskId { client: driver, seq: seq + 10 };
            let deps: Refs = last.filter(|_| seq % 3 == 0).into_iter().collect();
            let payload = Payload::Inline(Bytes::from_static(b"some arguments"));
            let spec = TaskSpec { id, job, template, payload, deps, parent: None, borrowed: Refs::new() };
            self.tell(home, NodeToHead::Submit(spec));
            last = Some(id.result(0));
            held.push_back(id.result(0));
            while self.running.len() >= IN_FLIGHT {
                self.end_one();
            }
            if held.len() > 2 * IN_FLIGHT {
                let object = held.pop_front().unwrap();
                self.tell(home, NodeToHead::Drop { client: driver, objects: vec![object] });
            }
            if seq % 500 == 499 {
                self.step(Event::Tick);
            }
        }
        while !self.running.is_empty() {
            self.end_one();
        }
        self.tell(home, NodeToHead::ClientGone { client: driver });
        self.running.clear();
    }

    fn end_one(&mut self) {
        let (node, task, attempt) = self.running.pop_front().unwrap();
        self.ended += 1;
        let (outcome, retry) = match (task.seq % 20, attempt.n) {
            (3, 1) => (failed(), Retry::Infrastructure),
            (5, _) => (failed(), Retry::No),
            (n, _) => {
                let value = match n % 4 {
                    0 => ResultValue::Stored { size: 10_000 },
                    _ => ResultValue::Inline(Bytes::from_static(&[7; 100])),
                };
                (Outcome::Ok([TaskResult { value, contains: Refs::new() }].into_iter().collect()), Retry::No)
            }
        };
        let message =
            NodeToHead::Done { task, attempt, executor: None, outcome, retry, started: None, micros: 50 };
        self.tell(node, message);
    }
}

fn failed() -> Outcome {
    let message = "it failed".into();
    Outcome::Failed(Failure { kind: FailureKind::ExecutorDied, message, payload: Bytes::new(), task: None })
}

#[test]
fn a_steady_load_leaves_nothing_behind() {
    let mut world = World::new();
    (1..=4).for_each(|node| world.join(NodeId(node)));
    let mut most: BTreeMap<&str, usize> = BTreeMap::new();
    let mut grown: BTreeMap<&str, String> = BTreeMap::new();
    for number in 0..PROGRAMS {
        // A machine comes and goes with each program.
        let passing = NodeId(1_000 + number);
        world.join(passing);
        world.program(number);
        let incarnation = world.incarnations[&passing];
        world.step(Event::NodeDisconnected { node: passing, incarnation });
        world.head.check_invariants().unwrap();
        for (table, size) in world.head.sizes() {
            let known = most.entry(table).or_default();
            // What is counted in slots or bytes varies a little with what ran at the same time.
            if number >= SETTLED && size > *known + *known / 4 + 16 {
                grown.insert(table, format!("{size} after {} tasks, {known} before", world.ended));
            }
            if number < SETTLED {
                *known = size.max(*known);
            }
        }
    }
    // Machines that came and went are remembered for a while.
    grown.remove("incarnations of nodes");
    assert!(grown.is_empty(), "{grown:#?}");
    for n in 0..3_000 {
        let passing = NodeId(10_000 + n);
        world.join(passing);
        let incarnation = world.incarnations[&passing];
        world.step(Event::NodeDisconnected { node: passing, incarnation });
    }
    assert!(world.ended >= PROGRAMS * TASKS, "{}", world.ended);
    let sizes: BTreeMap<&str, usize> = world.head.sizes().into_iter().collect();
    assert_eq!(sizes["ended tasks"], 2_000);
    assert!(sizes["incarnations of nodes"] <= 1_004, "{}", sizes["incarnations of nodes"]);
    for gone in
        ["tasks", "objects", "clients", "jobs", "attempts on nodes", "kept specs", "functions on nodes"]
    {
        assert_eq!(sizes[gone], 0, "{gone}");
    }
}
