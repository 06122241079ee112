//! The small language of the event tables: feed a message, look at what the head says to whom.

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::task::Strategy;
use cluster_types::{
    Amount, Attempt, ClientId, ClientKind, Failure, FailureKind, HeadToNode, Incarnation, JobId, JobInfo,
    Lease, Map, NodeHello, NodeId, NodeToHead, ObjectId, Outcome, PROTOCOL_VERSION, Payload, Refs, Resources,
    ResultValue, Span, TaskId, TaskResult, TaskSpec, TaskTemplate, Time,
};

use crate::{Effect, Event, Head, HeadConfig};

pub const JOB: JobId = JobId(7);
pub const DRIVER: ClientId = ClientId(0xd);

/// A head, and everything it said and was not asked about yet.
pub struct Scene {
    pub head: Head,
    pub now: Time,
    pub incarnations: Map<NodeId, Incarnation>,
    pub said: Vec<Effect>,
    next_seq: u64,
    templates: Vec<Arc<TaskTemplate>>,
}

pub fn node(n: u64) -> NodeId {
    NodeId(n)
}

/// The driver's function object.
pub fn function() -> ObjectId {
    ObjectId::put(DRIVER, 1)
}

pub fn failed(kind: FailureKind) -> Outcome {
    Outcome::Failed(Failure { kind, message: "because".into(), payload: Bytes::new(), task: None })
}

pub fn inline(bytes: &'static [u8]) -> TaskResult {
    TaskResult { value: ResultValue::Inline(Bytes::from_static(bytes)), contains: Refs::new() }
}

pub fn stored(size: u64) -> TaskResult {
    TaskResult { value: ResultValue::Stored { size }, contains: Refs::new() }
}

/// An `Assign` as tests look at it.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned {
    pub node: NodeId,
    pub task: TaskId,
    pub attempt: Attempt,
    pub lease: Option<Lease>,
}

impl Scene {
    /// A head alone.
    pub fn empty() -> Self {
        Self::with(HeadConfig::default())
    }

    pub fn with(config: HeadConfig) -> Self {
        Self {
            head: Head::new(config),
            now: Time(1_000_000),
            incarnations: Map::default(),
            said: Vec::new(),
            next_seq: 100,
            templates: Vec::new(),
        }
    }

    /// Nodes 1, 2, … with these cores; the driver is on node 1, and its function is known.
    pub fn cluster(cores: &[i64]) -> Self {
        let mut scene = Self::empty();
        for (at, cores) in cores.iter().enumerate() {
            scene.join(at as u64 + 1, Resources::cpus(*cores));
        }
        scene.driver(1);
        scene
    }

    pub fn driver(&mut self, n: u64) {
        let info = Arc::new(JobInfo { log_to_driver: true, ..JobInfo::default() });
        self.attach(n, DRIVER, ClientKind::Driver { job: JOB, info });
        let escaped = NodeToHead::Escaped {
            object: function(),
            size: 1,
            inline: Some(Bytes::from_static(b"f")),
            contains: Refs::new(),
        };
        self.tell(n, escaped);
        self.said.clear();
    }

    pub fn join(&mut self, n: u64, resources: Resources) {
        self.join_labelled(n, resources, Default::default());
    }

    pub fn join_labelled(
        &mut self,
        n: u64,
        resources: Resources,
        labels: std::collections::BTreeMap<String, String>,
    ) {
        let hello = NodeHello {
            protocol: PROTOCOL_VERSION,
            node: node(n),
            hostname: format!("host{n}"),
            data_address: format!("host{n}:8266"),
            gateway_address: String::new(),
            resources,
            labels,
            store_capacity: 1 << 30,
            previous: None,
        };
        self.event(Event::NodeConnected { connection: n, hello });
        for effect in &self.said {
            if let Effect::AdmitNode { node, incarnation, .. } = effect {
                self.incarnations.insert(*node, *incarnation);
            }
        }
    }

    pub fn attach(&mut self, n: u64, client: ClientId, kind: ClientKind) {
        self.tell(n, NodeToHead::ClientAttached { client, kind, job: JOB, pid: 1 });
    }

    pub fn executor(&mut self, n: u64, client: u64) -> ClientId {
        self.attach(n, ClientId(client), ClientKind::Executor { executor: client as u32 });
        ClientId(client)
    }

    pub fn event(&mut self, event: Event) {
        let mut event = Some(event);
        while let Some(next) = event.take() {
            let more = self.head.step(self.now, next, &mut self.said);
            if let Err(problem) = self.head.check_invariants() {
                panic!("{problem}");
            }
            event = more.then_some(Event::Tick);
        }
    }

    pub fn tell(&mut self, n: u64, message: NodeToHead) {
        let incarnation = self.incarnations.get(&node(n)).copied().unwrap_or_default();
        self.event(Event::FromNode { node: node(n), incarnation, message });
    }

    pub fn disconnect(&mut self, n: u64) {
        let incarnation = self.incarnations[&node(n)];
        self.event(Event::NodeDisconnected { node: node(n), incarnation });
    }

    /// Time passes, with heartbeats.
    pub fn pass(&mut self, span: Span) {
        let end = self.now + span;
        while self.now < end {
            self.now = (self.now + Span::millis(100)).min(end);
            let mut nodes: Vec<_> = self.incarnations.keys().map(|node| node.0).collect();
            nodes.sort_unstable();
            let store = cluster_types::query::StoreUsage { capacity: 1 << 30, ..Default::default() };
            for n in nodes {
                self.tell(n, NodeToHead::Heartbeat { store, executors: 0 });
            }
            self.event(Event::Tick);
        }
    }

    pub fn template(&mut self, name: &str, resources: Resources) -> Arc<TaskTemplate> {
        let template = TaskTemplate {
            name: name.into(),
            function: function(),
            resources,
            num_returns: 1,
            max_retries: 3,
            retry_exceptions: Bytes::new(),
            env_vars: Default::default(),
            strategy: Strategy::Default,
            kind: Default::default(),
            ..TaskTemplate::default()
        };
        if let Some(known) = self.templates.iter().find(|known| ***known == template) {
            return known.clone();
        }
        self.templates.push(Arc::new(template));
        self.templates[self.templates.len() - 1].clone()
    }

    pub fn spec(&mut self, client: ClientId, template: Arc<TaskTemplate>, deps: &[ObjectId]) -> TaskSpec {
        self.next_seq += 1;
        TaskSpec {
            id: TaskId { client, seq: self.next_seq },
            job: JOB,
            template,
            payload: Payload::Inline(Bytes::new()),
            deps: deps.iter().copied().collect(),
            parent: None,
            borrowed: Refs::new(),
        }
    }

    /// The driver on node 1 submits a task of one core.
    pub fn submit(&mut self, deps: &[ObjectId]) -> TaskId {
        self.submit_as(1, DRIVER, Resources::cpus(1), deps)
    }

    pub fn submit_as(&mut self, n: u64, client: ClientId, asks: Resources, deps: &[ObjectId]) -> TaskId {
        let template = self.template("f", asks);
        let spec = self.spec(client, template, deps);
        let id = spec.id;
        self.tell(n, NodeToHead::Submit(spec));
        id
    }

    /// Assignments since the last look.
    pub fn assigned(&mut self) -> Vec<Assigned> {
        let all = self
            .said
            .iter()
            .filter_map(|effect| match effect {
                Effect::ToNode { node, message: HeadToNode::Assign { spec, attempt, lease, .. } } => {
                    Some(Assigned { node: *node, task: spec.id, attempt: *attempt, lease: lease.clone() })
                }
                _ => None,
            })
            .collect();
        self.said.clear();
        all
    }

    /// The one assignment since the last look.
    pub fn assigned_one(&mut self) -> Assigned {
        let all = self.assigned();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }

    /// Messages to a node since the last look; others stay.
    pub fn heard(&mut self, n: u64) -> Vec<HeadToNode> {
        let mut heard = Vec::new();
        self.said.retain(|effect| match effect {
            Effect::ToNode { node: to, message } if *to == node(n) => {
                heard.push(message.clone());
                false
            }
            _ => true,
        });
        heard
    }

    pub fn done(&mut self, assigned: &Assigned, result: TaskResult) {
        self.done_and_started(assigned, result, None);
    }

    pub fn done_and_started(&mut self, assigned: &Assigned, result: TaskResult, heir: Option<&Assigned>) {
        let outcome = Outcome::Ok([result].into_iter().collect());
        self.ended(assigned, outcome, Retry::No, heir);
    }

    pub fn ended(&mut self, assigned: &Assigned, outcome: Outcome, retry: Retry, heir: Option<&Assigned>) {
        let message = NodeToHead::Done {
            task: assigned.task,
            attempt: assigned.attempt,
            executor: None,
            outcome,
            retry,
            started: heir.map(|heir| (heir.task, heir.attempt)),
            micros: 1000,
        };
        self.tell(assigned.node.0, message);
    }

    pub fn blocked(&mut self, assigned: &Assigned, on: &[ObjectId]) {
        let (task, attempt) = (assigned.task, assigned.attempt);
        self.tell(assigned.node.0, NodeToHead::Blocked { task, attempt, on: on.to_vec() });
    }

    pub fn unblocked(&mut self, assigned: &Assigned) {
        let (task, attempt) = (assigned.task, assigned.attempt);
        self.tell(assigned.node.0, NodeToHead::Unblocked { task, attempt });
    }

    pub fn escape(&mut self, n: u64, object: ObjectId, contains: &[ObjectId]) {
        let contains = contains.iter().copied().collect();
        self.tell(n, NodeToHead::Escaped { object, size: 1 << 20, inline: None, contains });
    }

    pub fn hold(&mut self, n: u64, client: ClientId, object: ObjectId) {
        self.tell(n, NodeToHead::Hold { client, objects: vec![object] });
    }

    pub fn drop_hold(&mut self, n: u64, client: ClientId, object: ObjectId) {
        self.tell(n, NodeToHead::Drop { client, objects: vec![object] });
    }

    /// What a node was told to free since the last look, sorted.
    pub fn freed(&mut self, n: u64) -> Vec<ObjectId> {
        let mut freed: Vec<_> = self
            .heard(n)
            .into_iter()
            .filter_map(|message| match message {
                HeadToNode::Free(objects) => Some(objects),
                _ => None,
            })
            .flatten()
            .collect();
        freed.sort_unstable();
        freed
    }

    /// How a task ended, from what node `n` heard; it must have heard so at most once.
    pub fn finished(&mut self, n: u64, id: TaskId) -> Option<FinishedOutcome> {
        let mut outcomes: Vec<_> = self
            .heard(n)
            .into_iter()
            .filter_map(|message| match message {
                HeadToNode::Finished { task, outcome } if task == id => Some(outcome),
                _ => None,
            })
            .collect();
        assert!(outcomes.len() <= 1, "TASK-1: {outcomes:?}");
        outcomes.pop()
    }

    pub fn failed_with(&mut self, n: u64, id: TaskId) -> Failure {
        match self.finished(n, id) {
            Some(FinishedOutcome::Failed(failure)) => failure,
            other => panic!("{id} did not fail: {other:?}"),
        }
    }
}

pub fn with_gpus(cpus: i64, gpus: i64) -> Resources {
    Resources { gpu: Amount::units(gpus), ..Resources::cpus(cpus) }
}
