//! What a million queued tasks cost in memory, and whether the last are dispatched as fast as the first.
//!
//! `cargo run --release -p head-core --example queued`
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use cluster_types::node_head::Retry;
use cluster_types::{
    ClientId, ClientKind, HeadToNode, Incarnation, JobId, JobInfo, NodeHello, NodeId, NodeToHead, ObjectId,
    Outcome, PROTOCOL_VERSION, Payload, Refs, Resources, ResultValue, TaskId, TaskResult, TaskSpec,
    TaskTemplate, Time,
};
use head_core::{Effect, Event, Head, HeadConfig};

const TASKS: u64 = 1_000_000;
const DRIVER: ClientId = ClientId(0x5eed_5eed_5eed_5eed);
const NODE: NodeId = NodeId(1);

fn main() {
    let mut head = Head::new(HeadConfig::default());
    let mut effects = Vec::new();
    let hello = NodeHello {
        protocol: PROTOCOL_VERSION,
        node: NODE,
        hostname: "host".into(),
        data_address: "host:8266".into(),
        gateway_address: String::new(),
        resources: Resources::cpus(2),
        labels: Default::default(),
        store_capacity: 1 << 30,
        previous: None,
    };
    head.step(Time(1), Event::NodeConnected { connection: 1, hello }, &mut effects);
    let tell = |message| Event::FromNode { node: NODE, incarnation: Incarnation(1), message };
    let kind = ClientKind::Driver { job: JobId(1), info: Arc::new(JobInfo::default()) };
    head.step(
        Time(1),
        tell(NodeToHead::ClientAttached { client: DRIVER, kind, job: JobId(1), pid: 1 }),
        &mut effects,
    );
    let function = ObjectId::put(DRIVER, 0);
    let inline = Some(Bytes::from_static(b"f"));
    let escaped = NodeToHead::Escaped { object: function, size: 1, inline, contains: Refs::new() };
    head.step(Time(1), tell(escaped), &mut effects);
    let template = Arc::new(TaskTemplate {
        name: "f".into(),
        function,
        resources: Resources::cpus(1),
        num_returns: 1,
        max_retries: 3,
        retry_exceptions: Bytes::new(),
        env_vars: Default::default(),
        strategy: Default::default(),
        kind: Default::default(),
        ..TaskTemplate::default()
    });

    let before = rss();
    let begin = Instant::now();
    for seq in 0..TASKS {
        let spec = TaskSpec {
            id: TaskId { client: DRIVER, seq: seq + 1 },
            job: JobId(1),
            template: template.clone(),
            payload: Payload::Inline(Bytes::from_static(b"arguments")),
            deps: Refs::new(),
            parent: None,
            borrowed: Refs::new(),
        };
        head.step(Time(2), tell(NodeToHead::Submit(spec)), &mut effects);
    }
    let each = (rss() - before) as f64 * 1024.0 / TASKS as f64;
    println!("{TASKS} queued in {:.2} s; {each:.0} bytes each, all in", begin.elapsed().as_secs_f64());

    let mut at_node: std::collections::VecDeque<(TaskId, cluster_types::Attempt)> = Default::default();
    let mut running = std::collections::VecDeque::new();
    let mut ended = 0;
    let mut tenth = Instant::now();
    while ended < TASKS {
        for effect in effects.drain(..) {
            if let Effect::ToNode { message: HeadToNode::Assign { spec, attempt, lease, .. }, .. } = effect {
                match lease {
                    Some(_) => running.push_back((spec.id, attempt)),
                    None => at_node.push_back((spec.id, attempt)),
                }
            }
        }
        let (task, attempt) = running.pop_front().unwrap();
        let started = at_node.pop_front();
        running.extend(started);
        let result =
            TaskResult { value: ResultValue::Inline(Bytes::from_static(b"result")), contains: Refs::new() };
        let outcome = Outcome::Ok([result].into_iter().collect());
        let done =
            NodeToHead::Done { task, attempt, executor: None, outcome, retry: Retry::No, started, micros: 5 };
        head.step(Time(3), tell(done), &mut effects);
        ended += 1;
        if ended % (TASKS / 10) == 0 {
            let rate = TASKS as f64 / 10.0 / tenth.elapsed().as_secs_f64();
            println!("tenth {}: {rate:.0} a second", ended / (TASKS / 10));
            tenth = Instant::now();
        }
    }
}

/// In KiB.
fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
