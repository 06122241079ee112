//! How many tasks a second go through the node's core: each is assigned, sent to an executor, completed and reported,
//! its arguments and result inline. Run with `cargo run --release -p worker-core --example throughput`.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use cluster_types::client_node::{Completion, ExecutorResult, FinishedOutcome, PutValue};
use cluster_types::{
    Attempt, ClientId, ClientKind, ClientToNode, HeadToNode, JobId, JobInfo, Lease, NodeId, NodeToClient,
    NodeToHead, ObjectId, Payload, Refs, Resources, ResultValue, Span, TaskId, TaskSpec, TaskTemplate, Time,
};
use worker_core::{Effect, Event, Node, NodeConfig};

const TASKS: u64 = 1_000_000;
const CORES: u64 = 2;
const DRIVER: ClientId = ClientId(0xd);
const JOB: JobId = JobId(7);

/// The node, and the effects of its last steps.
struct Bench {
    node: Node,
    now: Time,
    events: u64,
    effects: Vec<Effect>,
}

impl Bench {
    fn event(&mut self, event: Event) {
        self.events += 1;
        self.now = self.now + Span(1);
        self.node.step(self.now, event, &mut self.effects);
    }

    fn head(&mut self, message: HeadToNode) {
        self.event(Event::FromHead(message));
    }
}

fn main() {
    println!(
        "{:<34} {:>12} {:>12} {:>10}",
        "one task's way through the core", "tasks/s", "events/s", "ns/event"
    );
    for (name, ahead) in [("one after the other", 0), ("8 sent ahead", 8), ("64 sent ahead", 64)] {
        let (mut bench, template) = start();
        let (before, begun) = (bench.events, Instant::now());
        run(&mut bench, &template, ahead);
        let (events, seconds) = ((bench.events - before) as f64, begun.elapsed().as_secs_f64());
        println!(
            "{name:<34} {:>12.0} {:>12.0} {:>10.0}",
            TASKS as f64 / seconds,
            events / seconds,
            seconds / events * 1e9
        );
    }
}

/// A node with a head, a driver, and a function.
fn start() -> (Bench, Arc<TaskTemplate>) {
    let config = NodeConfig {
        node: NodeId(1),
        hostname: "bench".to_owned(),
        resources: Resources::cpus(CORES as i64),
        cores: CORES as u32,
        store_capacity: 1 << 30,
        idle_executors: 2,
        idle_timeout: Span::secs(60),
        head_may_restart: false,
    };
    let mut bench = Bench { node: Node::new(config), now: Time(1), events: 0, effects: Vec::new() };
    bench.head(HeadToNode::Admitted {
        term: Default::default(),
        incarnation: Default::default(),
        loss_timeout_ms: 5_000,
    });
    let kind = ClientKind::Driver { job: JOB, info: Arc::new(JobInfo::default()) };
    bench.event(Event::ClientAttached { client: DRIVER, pid: 1, kind, shares_memory: true });
    let function = ObjectId::put(DRIVER, 1);
    let value = PutValue::Inline(Bytes::from_static(b"f"));
    let put = ClientToNode::Put { object: function, value, contains: Refs::new() };
    bench.event(Event::FromClient { client: DRIVER, message: put });
    bench.event(Event::FromClient { client: DRIVER, message: ClientToNode::Escape(vec![function]) });
    bench.effects.clear();
    let template = TaskTemplate {
        name: "f".into(),
        function,
        resources: Resources::cpus(1),
        num_returns: 1,
        max_retries: 0,
        retry_exceptions: Bytes::new(),
        env_vars: Default::default(),
        strategy: Default::default(),
        kind: Default::default(),
        ..TaskTemplate::default()
    };
    (bench, Arc::new(template))
}

/// Submits all tasks, plays the head, the executors and the edge, and lets go of each result.
fn run(bench: &mut Bench, template: &Arc<TaskTemplate>, ahead: u64) {
    let (mut next, mut leases, mut waiting, mut done) = (2, CORES, 0, 0);
    let mut effects = Vec::new();
    while done < TASKS {
        while next < TASKS + 2 && (leases > 0 || waiting < ahead) {
            let id = TaskId { client: DRIVER, seq: next };
            next += 1;
            let spec = TaskSpec {
                id,
                job: JOB,
                template: template.clone(),
                payload: Payload::Inline(Bytes::from_static(b"arguments")),
                parent: None,
                deps: Refs::new(),
                borrowed: Refs::new(),
            };
            bench.event(Event::FromClient { client: DRIVER, message: ClientToNode::Submit(spec.clone()) });
            let lease = (leases > 0).then(Lease::default);
            match lease {
                Some(_) => leases -= 1,
                None => waiting += 1,
            }
            let (spec, attempt) = (Arc::new(spec), Attempt { term: 1, n: 1 });
            bench.head(HeadToNode::Assign { spec, attempt, lease, located: Vec::new() });
        }
        std::mem::swap(&mut effects, &mut bench.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::StartExecutor { executor, .. } => {
                    let kind = ClientKind::Executor { executor };
                    let client = ClientId(0xe00 + u64::from(executor));
                    bench.event(Event::ClientAttached { client, pid: 2, kind, shares_memory: true });
                }
                Effect::ToClient { client, message: NodeToClient::Run(run) } => {
                    let value = PutValue::Inline(Bytes::from_static(b"result"));
                    let result = Ok(vec![ExecutorResult { value, contains: Refs::new() }]);
                    let message = ClientToNode::Completed(Completion { tag: run.tag, result, micros: 20 });
                    bench.event(Event::FromClient { client, message });
                }
                Effect::ToHead(NodeToHead::Done { task, started, .. }) => {
                    done += 1;
                    match started {
                        Some(_) => waiting -= 1,
                        None => leases += 1,
                    }
                    let result = ResultValue::Inline(Bytes::from_static(b"result"));
                    bench.head(HeadToNode::Finished { task, outcome: FinishedOutcome::Ok(vec![result]) });
                    let drop = ClientToNode::Drop(vec![task.result(0)]);
                    bench.event(Event::FromClient { client: DRIVER, message: drop });
                    bench.head(HeadToNode::Free(vec![task.result(0)]));
                }
                Effect::Revoke { executor, tag, .. } => {
                    bench.event(Event::Revoked { executor, tag, won: false });
                }
                _ => {}
            }
        }
    }
}
