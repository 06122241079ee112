//! The small language of the event tables: something happens, and one looks at what the node says to whom.

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::{Completion, ExecutorResult, PutValue, RunTask};
use cluster_types::{
    Attempt, ClientId, ClientKind, ClientToNode, Failure, FailureKind, HeadToNode, JobId, JobInfo, Lease,
    Located, Location, NodeId, NodeToClient, NodeToHead, ObjectId, Payload, Resources, SegmentId, Span,
    TaskId, TaskSpec, TaskTemplate, Time,
};

use crate::{Effect, Event, Node, NodeConfig};

pub const DRIVER: ClientId = ClientId(0xd);
pub const JOB: JobId = JobId(7);
pub const MIB: u64 = 1 << 20;

/// A node with two cores and a store of 64 MiB, and all it did that was not looked at yet.
pub struct Scene {
    pub node: Node,
    pub now: Time,
    pub said: Vec<Effect>,
    pub template: Arc<TaskTemplate>,
}

pub fn function() -> ObjectId {
    ObjectId::put(DRIVER, 1)
}

pub fn task(n: u64) -> TaskId {
    TaskId { client: DRIVER, seq: n }
}

pub fn put(n: u64) -> ObjectId {
    ObjectId::put(DRIVER, n)
}

pub fn attempt(n: u32) -> Attempt {
    Attempt { term: 1, n }
}

pub fn at(segment: SegmentId, offset: u64, len: u64) -> Location {
    Location { segment, offset, len }
}

pub fn own(offset: u64, len: u64) -> Location {
    at(SegmentId(1 << 31), offset, len)
}

pub fn failed(kind: FailureKind) -> Failure {
    Failure { kind, message: "because".into(), payload: Bytes::new(), task: None }
}

pub fn elsewhere(size: u64) -> Located {
    Located::Stored { size, copies: vec![(NodeId(2), "two:1".to_owned())] }
}

pub fn admitted() -> HeadToNode {
    HeadToNode::Admitted { term: Default::default(), incarnation: Default::default(), loss_timeout_ms: 5000 }
}

impl Scene {
    /// Nobody is there yet, not even the head.
    pub fn alone() -> Self {
        Self::alone_with_store(64 * MIB)
    }

    fn alone_with_store(store_capacity: u64) -> Self {
        let config = NodeConfig {
            node: NodeId(1),
            hostname: "here".into(),
            resources: Resources::cpus(2),
            cores: 2,
            store_capacity,
            idle_executors: 1,
            idle_timeout: Span::secs(60),
            head_may_restart: true,
        };
        let template = Arc::new(TaskTemplate {
            name: "f".into(),
            function: function(),
            resources: Resources::cpus(1),
            num_returns: 1,
            max_retries: 3,
            retry_exceptions: Bytes::new(),
            env_vars: Default::default(),
            strategy: Default::default(),
            kind: Default::default(),
            ..TaskTemplate::default()
        });
        Self { node: Node::new(config), now: Time(1_000_000), said: Vec::new(), template }
    }

    /// The head, a driver, and its function.
    pub fn new() -> Self {
        Self::with_store(64 * MIB)
    }

    /// The same with another store.
    pub fn with_store(bytes: u64) -> Self {
        let mut scene = Self::alone_with_store(bytes);
        scene.head(admitted());
        scene.driver(true);
        scene.said.clear();
        scene
    }

    pub fn driver(&mut self, shares_memory: bool) {
        let kind = ClientKind::Driver { job: JOB, info: Arc::new(JobInfo::default()) };
        self.event(Event::ClientAttached { client: DRIVER, pid: 1, kind, shares_memory });
        self.put_inline(function(), b"f");
        self.driver_says(ClientToNode::Escape(vec![function()]));
    }

    pub fn event(&mut self, event: Event) {
        self.node.step(self.now, event, &mut self.said);
        if let Err(broken) = self.node.check_invariants() {
            panic!("{broken}");
        }
    }

    pub fn pass(&mut self, span: Span) {
        let end = self.now + span;
        while self.now < end {
            self.now = (self.now + Span::millis(100)).min(end);
            self.event(Event::Tick);
        }
    }

    pub fn head(&mut self, message: HeadToNode) {
        self.event(Event::FromHead(message));
    }

    pub fn says(&mut self, client: ClientId, message: ClientToNode) {
        self.event(Event::FromClient { client, message });
    }

    pub fn driver_says(&mut self, message: ClientToNode) {
        self.says(DRIVER, message);
    }

    // ---- looking ----

    /// What the head was told since the last look.
    pub fn told_head(&mut self) -> Vec<NodeToHead> {
        self.take(|effect| match effect {
            Effect::ToHead(message) => Some(message.clone()),
            _ => None,
        })
    }

    /// What a client was told since the last look.
    pub fn told(&mut self, to: ClientId) -> Vec<NodeToClient> {
        self.take(|effect| match effect {
            Effect::ToClient { client, message } if *client == to => Some(message.clone()),
            _ => None,
        })
    }

    /// What the edge is to do, since the last look.
    pub fn todo(&mut self) -> Vec<Effect> {
        self.take(|effect| match effect {
            Effect::ToHead(_) | Effect::ToClient { .. } => None,
            other => Some(other.clone()),
        })
    }

    fn take<T>(&mut self, which: impl Fn(&Effect) -> Option<T>) -> Vec<T> {
        let mut taken = Vec::new();
        self.said.retain(|effect| match which(effect) {
            Some(one) => {
                taken.push(one);
                false
            }
            None => true,
        });
        taken
    }

    /// The tasks that ended since the last look, each with the one that inherited its lease.
    pub fn done(&mut self) -> Vec<(TaskId, bool, Option<TaskId>)> {
        let of = |message| match message {
            NodeToHead::Done { task, outcome, started, .. } => {
                let well = matches!(outcome, cluster_types::Outcome::Ok(_));
                Some((task, well, started.map(|(task, _)| task)))
            }
            _ => None,
        };
        self.told_head().into_iter().filter_map(of).collect()
    }

    /// The tasks sent to an executor since the last look.
    pub fn runs(&mut self, client: ClientId) -> Vec<RunTask> {
        let of = |message| match message {
            NodeToClient::Run(run) => Some(*run),
            _ => None,
        };
        self.told(client).into_iter().filter_map(of).collect()
    }

    /// The one task sent to an executor since the last look.
    pub fn run(&mut self, client: ClientId) -> RunTask {
        let mut runs = self.runs(client);
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }

    // ---- tasks ----

    pub fn spec(&self, n: u64, deps: &[ObjectId]) -> TaskSpec {
        TaskSpec {
            id: task(n),
            job: JOB,
            template: self.template.clone(),
            payload: Payload::Inline(Bytes::new()),
            parent: None,
            deps: deps.iter().copied().collect(),
            borrowed: Default::default(),
        }
    }

    /// The head sends the `n`-th task, with a lease or ahead of one.
    pub fn assign(&mut self, n: u64, leased: bool, deps: &[(ObjectId, Option<Located>)]) {
        let objects: Vec<ObjectId> = deps.iter().map(|(object, _)| *object).collect();
        let spec = Arc::new(self.spec(n, &objects));
        let located = deps.iter().filter_map(|(object, at)| Some((*object, at.clone()?))).collect();
        let lease = leased.then(Lease::default);
        self.head(HeadToNode::Assign { spec, attempt: attempt(1), lease, located });
    }

    /// The executor that is to be started attaches.
    pub fn executor(&mut self) -> ClientId {
        let of = |effect: &Effect| match effect {
            Effect::StartExecutor { executor, .. } => Some(*executor),
            _ => None,
        };
        let started = self.take(of);
        assert_eq!(started.len(), 1, "{started:?}");
        self.attach(started[0])
    }

    pub fn attach(&mut self, executor: u32) -> ClientId {
        let client = ClientId(0xe00 + u64::from(executor));
        let kind = ClientKind::Executor { executor };
        self.event(Event::ClientAttached { client, pid: 9, kind, shares_memory: true });
        client
    }

    /// A leased task on an executor of its own.
    pub fn running(&mut self, n: u64) -> (ClientId, RunTask) {
        self.assign(n, true, &[]);
        let executor = self.executor();
        let run = self.run(executor);
        (executor, run)
    }

    /// The same of a function that is as `change` makes it.
    pub fn running_with(&mut self, n: u64, change: impl FnOnce(&mut TaskTemplate)) -> (ClientId, RunTask) {
        let before = self.template.clone();
        change(Arc::make_mut(&mut self.template));
        let running = self.running(n);
        self.template = before;
        running
    }

    pub fn completes(&mut self, client: ClientId, tag: u64, value: PutValue, micros: u64) {
        let result = Ok(vec![ExecutorResult { value, contains: Default::default() }]);
        self.says(client, ClientToNode::Completed(Completion { tag, result, micros }));
    }

    pub fn returns(&mut self, client: ClientId, tag: u64) {
        self.completes(client, tag, PutValue::Inline(Bytes::from_static(b"42")), 50);
    }

    /// The catalogue learns that `f` is short.
    pub fn f_is_short(&mut self) -> ClientId {
        let (executor, run) = self.running(901);
        self.returns(executor, run.tag);
        self.assign(902, true, &[]);
        let run = self.run(executor);
        self.returns(executor, run.tag);
        self.said.clear();
        executor
    }

    // ---- memory ----

    /// A segment leased to a client, in which this many bytes fit.
    pub fn lease(&mut self, client: ClientId, bytes: u64) -> (SegmentId, u64) {
        self.says(client, ClientToNode::RequestMemory { bytes });
        self.leased(client)
    }

    /// The segment that is to be made is made, and told to the client.
    pub fn leased(&mut self, client: ClientId) -> (SegmentId, u64) {
        let of = |effect: &Effect| match effect {
            Effect::CreateSegment { segment, len, .. } => Some((*segment, *len)),
            _ => None,
        };
        let made = self.take(of);
        assert_eq!(made.len(), 1, "{made:?}");
        self.event(Event::SegmentCreated { segment: made[0].0, failure: None });
        let (segment, len) = made[0];
        assert!(self.told(client).contains(&NodeToClient::Segment { segment, len, writable: true }));
        made[0]
    }

    pub fn put_inline(&mut self, object: ObjectId, bytes: &'static [u8]) {
        let value = PutValue::Inline(Bytes::from_static(bytes));
        self.says(object.client, ClientToNode::Put { object, value, contains: Default::default() });
    }

    pub fn put_stored(&mut self, object: ObjectId, location: Location) {
        let value = PutValue::Stored(location);
        self.says(object.client, ClientToNode::Put { object, value, contains: Default::default() });
    }

    /// A put that lies in a segment and that the head knows.
    pub fn escaped(&mut self, object: ObjectId, location: Location) {
        self.put_stored(object, location);
        self.says(object.client, ClientToNode::Escape(vec![object]));
        self.said.clear();
    }
}
