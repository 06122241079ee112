//! How many scheduling decisions one core makes in a second: 1,000 nodes, 100,000 tasks of 20 shapes queued, and each
//! task that ends replaced by another.
//!
//! `cargo run --release -p head-core --example decisions`
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster_types::node_head::Retry;
use cluster_types::{
    Amount, Attempt, ClientId, ClientKind, HeadToNode, Incarnation, JobId, JobInfo, NodeHello, NodeId,
    NodeToHead, ObjectId, Outcome, PROTOCOL_VERSION, Payload, Refs, Resources, ResultValue, Span, TaskId,
    TaskResult, TaskSpec, TaskTemplate, Time,
};
use head_core::{Effect, Event, Head, HeadConfig};

const NODES: u64 = 1_000;
const QUEUED: u64 = 100_000;
const DECISIONS: u64 = 1_000_000;
const DRIVER: ClientId = ClientId(0x5eed_5eed_5eed_5eed);

struct Bench {
    head: Head,
    now: Time,
    effects: Vec<Effect>,
    templates: Vec<Arc<TaskTemplate>>,
    seq: u64,
    /// Attempts at nodes in the order they will end, with whether they hold a lease.
    at_nodes: VecDeque<(NodeId, TaskId, Attempt)>,
    decisions: u64,
    /// Attempts sent ahead, by node and function.
    waiting: HashMap<(NodeId, u64), VecDeque<(TaskId, Attempt)>>,
    ahead: u64,
    grants: u64,
}

fn main() {
    let prefetch = std::env::args().nth(1).map_or(0, |text| text.parse().unwrap());
    let mut bench = Bench::new(prefetch);
    let begin = cpu_time();
    while bench.seq < QUEUED {
        bench.submit();
    }
    report("submitted", bench.seq, begin);
    let begin = cpu_time();
    let before = bench.decisions;
    while bench.decisions - before < DECISIONS {
        bench.end_one();
        bench.submit();
    }
    let per_second = report(
        "decisions (a submit, a completion, a placement and a drop each)",
        bench.decisions - before,
        begin,
    );
    println!("{} sent ahead, {} of these granted a lease of their own", bench.ahead, bench.grants);
    println!("{}", rss());
    println!("{{\"decisions_per_second\": {per_second:.0}}}");
}

/// Gives back how many a second.
fn report(what: &str, count: u64, begin: Duration) -> f64 {
    let seconds = (cpu_time() - begin).as_secs_f64();
    let per_second = count as f64 / seconds;
    println!("{count} {what} in {seconds:.2} s of one core: {per_second:.0} a second");
    per_second
}

/// Of this process, so that a busy machine does not count.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

fn rss() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().to_owned()
}

impl Bench {
    fn new(prefetch_max: u32) -> Self {
        let config =
            HeadConfig { prefetch_max, loss_timeout: Span::secs(1_000_000), ..HeadConfig::default() };
        let mut bench = Self {
            head: Head::new(config),
            now: Time(3),
            effects: Vec::new(),
            templates: Vec::new(),
            seq: 0,
            at_nodes: VecDeque::new(),
            decisions: 0,
            waiting: HashMap::new(),
            ahead: 0,
            grants: 0,
        };
        for n in 0..NODES {
            let mut resources = Resources::cpus(16);
            resources.gpu = Amount::units(4);
            resources.memory = Amount::units(64 << 30);
            let hello = NodeHello {
                protocol: PROTOCOL_VERSION,
                node: NodeId(n),
                hostname: format!("host{n}"),
                data_address: format!("host{n}:8266"),
                gateway_address: String::new(),
                resources,
                labels: Default::default(),
                store_capacity: 1 << 30,
                previous: None,
            };
            bench.step(Event::NodeConnected { connection: n, hello });
        }
        let kind = ClientKind::Driver { job: JobId(1), info: Arc::new(JobInfo::default()) };
        bench.tell(NodeId(0), NodeToHead::ClientAttached { client: DRIVER, kind, job: JobId(1), pid: 1 });
        let function = ObjectId::put(DRIVER, 0);
        let inline = Some(Bytes::from_static(b"f"));
        bench.tell(
            NodeId(0),
            NodeToHead::Escaped { object: function, size: 1, inline, contains: Refs::new() },
        );
        for shape in 0..20 {
            let mut resources = Resources { cpu: Amount(5_000 * (1 + shape % 8)), ..Resources::default() };
            if shape % 5 == 4 {
                resources.gpu = Amount(2_500);
            }
            resources.memory = Amount::units((1 + shape) << 20);
            bench.templates.push(Arc::new(TaskTemplate {
                name: format!("f{shape}").into(),
                function,
                resources,
                num_returns: 1,
                max_retries: 3,
                retry_exceptions: Bytes::new(),
                env_vars: Default::default(),
                strategy: Default::default(),
                kind: Default::default(),
                ..TaskTemplate::default()
            }));
        }
        bench
    }

    fn tell(&mut self, node: NodeId, message: NodeToHead) {
        self.step(Event::FromNode { node, incarnation: Incarnation(1), message });
    }

    fn step(&mut self, event: Event) {
        self.now = Time(self.now.0 + 3);
        if self.now.0.is_multiple_of(99_999) {
            self.head.step(self.now, Event::Tick, &mut self.effects);
        }
        let mut more = self.head.step(self.now, event, &mut self.effects);
        while more {
            more = self.head.step(self.now, Event::Tick, &mut self.effects);
        }
        let mut returned = Vec::new();
        for effect in self.effects.drain(..) {
            match effect {
                Effect::ToNode { node, message: HeadToNode::Assign { spec, attempt, lease, .. } } => {
                    self.decisions += 1;
                    match lease {
                        Some(_) => self.at_nodes.push_back((node, spec.id, attempt)),
                        None => {
                            self.ahead += 1;
                            let shape = (node, spec.id.seq % 20);
                            self.waiting.entry(shape).or_default().push_back((spec.id, attempt));
                        }
                    }
                }
                Effect::ToNode { node, message: HeadToNode::Grant { task, attempt, .. } } => {
                    self.grants += 1;
                    // Ignored if it started meanwhile by inheriting.
                    let waiting = self.waiting.entry((node, task.seq % 20)).or_default();
                    if let Some(at) = waiting.iter().position(|(ahead, _)| *ahead == task) {
                        waiting.remove(at);
                        self.at_nodes.push_back((node, task, attempt));
                    }
                }
                Effect::ToNode { node, message: HeadToNode::CallBack(attempts) } => {
                    returned.push((node, attempts))
                }
                Effect::ToNode { message: HeadToNode::Cancel { task, attempt, reason, .. }, .. } => {
                    panic!("{task}{attempt}: {reason}");
                }
                _ => {}
            }
        }
        for (node, mut attempts) in returned {
            attempts.retain(|(task, _)| {
                let waiting = self.waiting.entry((node, task.seq % 20)).or_default();
                let before = waiting.len();
                waiting.retain(|(ahead, _)| ahead != task);
                waiting.len() < before
            });
            self.tell(node, NodeToHead::Returned(attempts));
        }
    }

    fn submit(&mut self) {
        let seq = self.seq;
        self.seq += 1;
        let template = self.templates[(seq % 20) as usize].clone();
        let spec = TaskSpec {
            id: TaskId { client: DRIVER, seq: seq + 1 },
            job: JobId(1),
            template,
            payload: Payload::Inline(Bytes::from_static(b"arguments")),
            deps: Refs::new(),
            parent: None,
            borrowed: Refs::new(),
        };
        self.tell(NodeId(0), NodeToHead::Submit(spec));
    }

    fn end_one(&mut self) {
        let (node, task, attempt) = self.at_nodes.pop_front().unwrap();
        let started = self.waiting.get_mut(&(node, task.seq % 20)).and_then(VecDeque::pop_front);
        if let Some((heir, attempt)) = started {
            self.at_nodes.push_back((node, heir, attempt));
        }
        let result =
            TaskResult { value: ResultValue::Inline(Bytes::from_static(b"result")), contains: Refs::new() };
        let outcome = Outcome::Ok([result].into_iter().collect());
        self.tell(
            node,
            NodeToHead::Done {
                task,
                attempt,
                executor: None,
                outcome,
                retry: Retry::No,
                started: None,
                micros: 50_000,
            },
        );
        self.tell(NodeId(0), NodeToHead::Drop { client: DRIVER, objects: vec![task.result(0)] });
    }
}
