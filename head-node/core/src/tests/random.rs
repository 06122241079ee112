//! Random histories: plausible and garbage messages in any order. Nothing panics, and every invariant holds after
//! every step (`Scene::event` checks).

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::Cancellation;
use cluster_types::node_head::Retry;
use cluster_types::query::Query;
use cluster_types::task::{
    Backoff, GroupStrategy, GroupTraits, InGroup, LabelMatch, LabelRule, LabelSelector, Strategy,
};
use cluster_types::{
    ActorTraits, Amount, Attempt, ClientId, ClientKind, FailureKind, HeadToNode, JobId, NodeToHead, ObjectId,
    Outcome, Payload, Refs, Resources, ResultValue, Span, StreamLimits, TaskId, TaskKind, TaskResult,
    TaskSpec, TaskTemplate,
};
use proptest::prelude::*;

use super::scene::*;
use crate::{Effect, Event, HeadConfig};

/// Kinds of steps; the last nine are of actors, cancellation and streams.
const KINDS: u8 = 33;
const FIRST_OF_ACTORS: u8 = 22;

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

/// A rule on the label with the node's id.
fn label(key: &str, kind: u8, c: u8) -> LabelRule {
    let values = vec![node(u64::from(c % 4)).to_string()];
    let rule = match kind {
        0 => LabelMatch::In(values),
        1 => LabelMatch::NotIn(values),
        _ => LabelMatch::Exists,
    };
    LabelRule { key: key.to_owned(), rule }
}

fn class() -> ObjectId {
    ObjectId::put(client(0), 20)
}

impl World {
    fn take(&mut self, step: Step) {
        let (kind, a, b, c, d) = step;
        let n = u64::from(a % 3) + 1;
        match kind % KINDS {
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
                let query = match b % 8 {
                    7 => Query::Groups { limit: u32::from(c % 4) },
                    0 => Query::Status,
                    1 => Query::Nodes,
                    2 => Query::Tasks { limit: u32::from(c % 4) },
                    3 => Query::Objects { limit: u32::from(c % 4) },
                    4 => Query::Actors { limit: u32::from(c % 4) },
                    5 => Query::NamedActor { namespace: String::new(), name: "a".to_owned() },
                    _ => Query::Why { task: u64::from(c % 12).to_string() },
                };
                self.scene.event(Event::Query { number: 1, query });
            }
            22 => self.submit_actor(b, c, d),
            23 | 24 => self.call(b, c, d),
            25 => self.kill(n, b, c, d),
            26 => self.cancel(n, b, c, d),
            27 => self.make_or_end(b, c),
            28 => self.answer_call(b, c, d),
            29 => self.yields(b, c, d),
            30 => self.taken(n, b, c, d),
            31 => self.submit_group(b, c, d),
            32 => {
                let n = self.node_of(client(b)).unwrap_or(n);
                let actor = self.some_group(c).unwrap_or_else(|| object(c, d));
                self.tell(n, NodeToHead::Kill { client: client(b), actor, restart: false });
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
            2 => Strategy::Labels(Arc::new(LabelSelector {
                hard: vec![label("node-id", b % 3, c)],
                soft: vec![label("node-id", 0, d)],
            })),
            3 | 4 => Strategy::Group(InGroup {
                group: self.some_group(c).unwrap_or_else(|| object(b, c)),
                bundle: [None, Some(0), Some(1)][usize::from(b % 3)],
                capture: false,
            }),
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
            // One result, sometimes with items beside it.
            stream: (c % 3 == 1).then(StreamLimits::default),
            variants: if c % 5 == 1 { vec![Resources::cpus(i64::from(b % 3))] } else { Vec::new() },
            backoff: Backoff { first_ms: u32::from(b % 2) * 300, growth: 200, most_ms: 1_000 },
            durable: d % 4 == 1,
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

    /// Where the client is: what it says is taken from nobody else.
    fn node_of(&self, client: ClientId) -> Option<u64> {
        let node = self.scene.head.clients.get(&client)?.node;
        self.scene.head.nodes.get(node).map(|node| node.id.0)
    }

    /// A handle: of an actor there is, mostly, else of anything.
    fn handle(&self, b: u8, c: u8) -> ObjectId {
        let mut handles: Vec<_> = self.scene.head.actors.iter().map(|(handle, _)| *handle).collect();
        handles.sort_unstable();
        let some =
            (!handles.is_empty() && !b.is_multiple_of(8)).then(|| handles[usize::from(c) % handles.len()]);
        some.unwrap_or_else(|| object(b, c))
    }

    fn submit_actor(&mut self, b: u8, c: u8, d: u8) {
        let Some(n) = self.node_of(client(b)) else { return };
        let traits = ActorTraits {
            name: if c.is_multiple_of(3) { "a".to_owned() } else { String::new() },
            detached: c.is_multiple_of(4),
            max_restarts: i32::from(d % 3) - 1,
            max_concurrency: 1 + u32::from(b.is_multiple_of(5)),
            ..ActorTraits::default()
        };
        let own = JobId(u32::from(client(b).0 as u8 % 2));
        // A detached actor's job should be new; it is not always.
        let job = if traits.detached && !d.is_multiple_of(5) { JobId(1000 + u32::from(d)) } else { own };
        let template = TaskTemplate {
            name: "Class".into(),
            // A class that exists, mostly.
            function: if c.is_multiple_of(7) { object(c & 0xfe, d) } else { class() },
            resources: Resources { cpu: Amount(5_000 * i64::from(b % 3)), ..Resources::default() },
            num_returns: u32::from(!d.is_multiple_of(16)),
            max_retries: 0,
            retry_exceptions: Bytes::new(),
            env_vars: Default::default(),
            strategy: match self.some_group(d) {
                Some(group) if c % 3 == 1 => Strategy::Group(InGroup { group, bundle: None, capture: false }),
                _ => Strategy::Default,
            },
            kind: TaskKind::Actor(Arc::new(traits)),
            ..TaskTemplate::default()
        };
        self.submit_spec(n, b, d, job, template, c);
    }

    fn call(&mut self, b: u8, c: u8, d: u8) {
        let Some(n) = self.node_of(client(b)) else { return };
        let template = TaskTemplate {
            name: "Class.method".into(),
            function: self.handle(b, c),
            resources: Resources::default(),
            num_returns: u32::from(d % 3),
            max_retries: i32::from(c % 3) - 1,
            retry_exceptions: Bytes::new(),
            env_vars: Default::default(),
            strategy: Strategy::Default,
            kind: TaskKind::Method { method: "method".into(), group: "".into(), concurrent: false },
            ..TaskTemplate::default()
        };
        self.submit_spec(n, b, d, JobId(u32::from(client(b).0 as u8 % 2)), template, c);
    }

    fn submit_spec(&mut self, n: u64, b: u8, d: u8, job: JobId, template: TaskTemplate, c: u8) {
        let mut template = template;
        if c.is_multiple_of(3) && !matches!(template.kind, TaskKind::Actor(_)) {
            let limits = StreamLimits { max_items: 2, max_bytes: 0 };
            template = TaskTemplate { stream: Some(limits), num_returns: 1, ..template };
        }
        let deps = if c.is_multiple_of(5) { [object(b, c)].into_iter().collect() } else { Refs::new() };
        let parent = c.is_multiple_of(2).then(|| TaskId { client: client(d), seq: u64::from(c % 24) + 1 });
        let spec = TaskSpec {
            // Numbers beside those of plain tasks, too.
            id: TaskId { client: client(b), seq: u64::from(d % 24) + 1 },
            job,
            template: Arc::new(template),
            payload: Payload::Inline(Bytes::new()),
            parent,
            borrowed: Refs::new(),
            deps,
        };
        self.tell(n, NodeToHead::Submit(spec));
    }

    /// A node says that an attempt has yielded: the next item, one again, or one out of order.
    fn yields(&mut self, b: u8, c: u8, d: u8) {
        let head = &self.scene.head;
        let mut streams: Vec<_> = head
            .streams
            .keys()
            .filter_map(|id| {
                let task = head.tasks.get(head.tasks.find(*id)?)?;
                Some((head.nodes.get(task.node()?)?.id.0, *id, head.tasks.attempt_of(task)))
            })
            .collect();
        streams.sort_unstable();
        let some = match streams.len() {
            0 => self.some_attempt(b),
            // A stale one, now and then.
            _ if d.is_multiple_of(7) => self.some_attempt(b),
            count => Some(streams[usize::from(b) % count]),
        };
        let Some((n, task, attempt)) = some else { return };
        let contains = if d.is_multiple_of(3) { [object(c, d)].into_iter().collect() } else { Refs::new() };
        let value = if c.is_multiple_of(2) {
            ResultValue::Stored { size: 9 }
        } else {
            ResultValue::Inline("item".into())
        };
        for index in 0..u32::from(c % 4) {
            let item = TaskResult { value: value.clone(), contains: contains.clone() };
            self.tell(n, NodeToHead::Yielded { task, attempt, index, item });
        }
        self.tell(n, NodeToHead::Locate(task.item(u32::from(d % 4))));
    }

    /// A reader takes items, drops some, or reads no more.
    fn taken(&mut self, n: u64, b: u8, c: u8, d: u8) {
        let task = TaskId { client: client(b), seq: u64::from(d % 24) + 1 };
        let n = self.node_of(client(b)).unwrap_or(n);
        let objects = vec![task.item(u32::from(c % 3))];
        self.tell(n, NodeToHead::Drop { client: client(b), objects });
        let closed = c.is_multiple_of(9);
        self.tell(n, NodeToHead::Taken { task, items: u32::from(c % 5), closed });
    }

    /// A placement group: there is, or was lately.
    fn some_group(&self, c: u8) -> Option<ObjectId> {
        let mut groups: Vec<_> = self.scene.head.groups.iter().map(|(group, _)| *group).collect();
        groups.sort_unstable();
        (!groups.is_empty()).then(|| groups[usize::from(c) % groups.len()])
    }

    fn submit_group(&mut self, b: u8, c: u8, d: u8) {
        let Some(n) = self.node_of(client(b)) else { return };
        let bundle = |c: u8| match c % 5 {
            0 => with_gpus(0, 1),
            1 => Resources { gpu: Amount(5_000), ..Resources::cpus(1) },
            2 => Resources::default(),
            n => Resources::cpus(i64::from(n) - 2),
        };
        use GroupStrategy::{Pack, Spread, StrictPack, StrictSpread};
        let traits = GroupTraits {
            name: if c.is_multiple_of(4) { "g".to_owned() } else { String::new() },
            namespace: String::new(),
            detached: d.is_multiple_of(4),
            strategy: [Pack, Spread, StrictPack, StrictSpread][usize::from(d / 4 % 4)],
            bundles: (0..=b / 6 % 3).map(|at| bundle(c.wrapping_add(at * 7))).collect(),
        };
        let own = JobId(u32::from(client(b).0 as u8 % 2));
        let job = if traits.detached { JobId(2000 + u32::from(d)) } else { own };
        let template = TaskTemplate {
            name: "group".into(),
            num_returns: u32::from(!d.is_multiple_of(32)),
            kind: TaskKind::Group(Arc::new(traits)),
            ..TaskTemplate::default()
        };
        let c = if c.is_multiple_of(5) { c.wrapping_add(1) } else { c };
        self.submit_spec(n, b, d, job, template, c);
    }

    fn kill(&mut self, n: u64, b: u8, c: u8, d: u8) {
        let n = self.node_of(client(b)).unwrap_or(n);
        let actor = self.handle(b, c);
        self.tell(n, NodeToHead::Kill { client: client(b), actor, restart: d.is_multiple_of(2) });
    }

    fn cancel(&mut self, n: u64, b: u8, c: u8, d: u8) {
        let n = self.node_of(client(b)).unwrap_or(n);
        let object = match (d % 3, self.some_attempt(c)) {
            (0, _) => self.handle(b, c),
            (1, Some((_, task, _))) => task.result(0),
            _ => object(c, d),
        };
        let what = Cancellation {
            object,
            force: d.is_multiple_of(2),
            recursive: c.is_multiple_of(2),
            reason: "cancelled by chance".to_owned(),
        };
        self.tell(n, NodeToHead::Cancel { client: client(b), what });
    }

    /// An actor's attempt has made it, or a living one's process ends: its node says so.
    fn make_or_end(&mut self, b: u8, c: u8) {
        let head = &self.scene.head;
        let mut placed: Vec<_> = head
            .actors
            .iter()
            .filter_map(|(_, actor)| {
                let ix = actor.task?;
                let task = head.tasks.get(ix)?;
                let node = head.nodes.get(task.node()?)?.id.0;
                Some((node, task.spec.id, head.tasks.attempt_of(task), head.is_living(ix)))
            })
            .collect();
        placed.sort_unstable();
        if placed.is_empty() {
            return;
        }
        let (n, task, attempt, lives) = placed[usize::from(b) % placed.len()];
        if lives && c.is_multiple_of(3) {
            return self.keep_state(n, task, attempt, b, c);
        }
        let ends = lives || c.is_multiple_of(5);
        let outcome = if ends {
            failed(FailureKind::ActorDied)
        } else {
            Outcome::Ok([inline(b"handle")].into_iter().collect())
        };
        let retry = if c.is_multiple_of(3) { Retry::No } else { Retry::Infrastructure };
        self.tell(
            n,
            NodeToHead::Done { task, attempt, executor: None, outcome, retry, started: None, micros: 0 },
        );
    }

    /// A node answers a call it was handed: ended, failed, or not begun.
    fn answer_call(&mut self, b: u8, c: u8, d: u8) {
        let head = &self.scene.head;
        let mut calls: Vec<_> = head
            .tasks
            .iter()
            .filter(|(_, task)| task.spec.called_actor().is_some())
            .filter_map(|(_, task)| {
                let node = head.nodes.get(task.node()?)?.id.0;
                Some((node, task.spec.id, head.tasks.attempt_of(task), task.spec.template.num_returns))
            })
            .collect();
        calls.sort_unstable();
        if calls.is_empty() {
            return;
        }
        let (n, task, attempt, returns) = calls[usize::from(b) % calls.len()];
        if c.is_multiple_of(3) {
            let mut all: Vec<_> =
                calls.iter().filter(|call| call.0 == n).map(|call| (call.1, call.2)).collect();
            if d.is_multiple_of(2) {
                all.reverse();
            }
            return self.tell(n, NodeToHead::Returned(all));
        }
        let (outcome, retry) = if d.is_multiple_of(3) {
            (failed(FailureKind::ActorDied), Retry::Infrastructure)
        } else {
            (Outcome::Ok(std::iter::repeat_n(inline(b"r"), returns as usize).collect()), Retry::No)
        };
        self.tell(
            n,
            NodeToHead::Done { task, attempt, executor: None, outcome, retry, started: None, micros: 0 },
        );
    }

    /// Some value becomes the state of an actor.
    fn keep_state(&mut self, n: u64, actor: TaskId, attempt: Attempt, b: u8, c: u8) {
        let objects: Vec<ObjectId> = self.scene.head.objects.iter().map(|(_, object)| object.id).collect();
        let state = objects.get(usize::from(c) % objects.len().max(1)).copied().unwrap_or(object(b, c));
        let query = Query::KeepState {
            actor: actor.result(0).to_string(),
            attempt: (attempt.term, attempt.n),
            object: state.to_string(),
        };
        self.tell(n, NodeToHead::Query { client: client(b), number: u64::from(c), query });
        if b.is_multiple_of(2) {
            self.tell(u64::from(b % 4), NodeToHead::CopyAdded(state));
        }
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
        let retry = [Retry::No, Retry::Infrastructure, Retry::Exception, Retry::NoRoom][usize::from(b % 4)];
        let started = started.map(|(_, task, attempt)| (task, attempt));
        let micros = u64::from(c) * 100;
        self.tell(n, NodeToHead::Done { task, attempt, executor: None, outcome, retry, started, micros });
        // Some reports come twice.
        if !b.is_multiple_of(5) {
            self.attempts.retain(|known| *known != (n, task, attempt));
        }
    }

    fn listen(&mut self) {
        // ORDER-1, as a node hears it: within one breath each caller's calls come by rising number.
        let mut last: cluster_types::Map<(ObjectId, ClientId), u64> = Default::default();
        for effect in std::mem::take(&mut self.scene.said) {
            let Effect::ToNode { node, message } = effect else { continue };
            match message {
                HeadToNode::Assign { spec, attempt, lease, .. } => {
                    self.attempts.push((node.0, spec.id, attempt));
                    let Some(handle) = spec.called_actor() else { continue };
                    assert_eq!(lease, Some(Default::default()), "a call asks for nothing");
                    let actor = self.scene.head.actors.get(handle);
                    if actor.is_some_and(|actor| actor.traits().in_order()) {
                        let before = last.insert((handle, spec.id.client), spec.id.seq);
                        assert!(before < Some(spec.id.seq), "ORDER-1: {before:?}, then {}", spec.id);
                    }
                }
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
    let inline = Some(Bytes::from_static(b"class"));
    world.tell(1, NodeToHead::Escaped { object: class(), size: 5, inline, contains: Refs::new() });
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
    fn no_life_of_an_actor_breaks_an_invariant(steps in proptest::collection::vec(any::<Step>(), 40..160)) {
        let config = HeadConfig { finished_kept: 1_000, prefetch_max: 4, ..HeadConfig::default() };
        let mut world = world(config);
        for (kind, a, b, c, d) in steps {
            // Of eight steps, seven are of actors or streams.
            let kind = if kind.is_multiple_of(8) { kind / 8 } else { FIRST_OF_ACTORS + kind % 9 };
            world.take((kind, a, b, c, d));
        }
    }

    #[test]
    fn no_life_of_a_group_breaks_an_invariant(steps in proptest::collection::vec(any::<Step>(), 40..160)) {
        let config = HeadConfig { finished_kept: 1_000, prefetch_max: 4, ..HeadConfig::default() };
        let mut world = world(config);
        for (kind, a, b, c, d) in steps {
            // Groups, what runs in them, its ends, and nodes that come and go.
            let kinds = [0, 1, 4, 5, 6, 11, 12, 13, 14, 15, 20, 22, 24, 26, 27, 28, 31, 31, 31, 32];
            world.take((kinds[usize::from(kind) % kinds.len()], a, b, c, d));
        }
    }

    #[test]
    fn every_submitter_learns_at_most_once(steps in steps()) {
        // Clients stay where they are: at their end their numbers may be used again.
        let config = HeadConfig { finished_kept: 1_000, closed: true, ..HeadConfig::default() };
        let mut world = world(config);
        for step in steps {
            if !matches!(step.0 % KINDS, 0..=3 | 20) {
                world.take(step);
            }
        }
        for (task, times) in &world.told_finished {
            prop_assert_eq!(*times, 1, "TASK-1: {}", task);
        }
    }
}
