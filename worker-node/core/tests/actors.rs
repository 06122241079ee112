//! Actors on one node: what it does about each event, told as short stories.

#[path = "actors/far.rs"]
mod far;

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::{
    Completion, ExecutorFailure, ExecutorResult, FinishedOutcome, NO_SLOT, PutValue, RunTask, direct_tag,
};
use cluster_types::{
    ActorTraits, Attempt, ClientId, ClientKind, ClientToNode, Failure, FailureKind, HeadToNode, Incarnation,
    JobId, JobInfo, Lease, Located, NodeId, NodeToClient, NodeToHead, ObjectId, Outcome, Payload, Refs,
    Resources, ResultValue, Span, TaskId, TaskKind, TaskSpec, TaskTemplate, Term, Time,
};
use worker_core::{Effect, Event, Node, NodeConfig};

const DRIVER: ClientId = ClientId(1);
const JOB: JobId = JobId(7);
const FIRST: Attempt = Attempt { term: 1, n: 1 };

/// A node with one driver, connected to the head. Executors attach as soon as they are started, as client
/// 1000 + number.
struct Scene {
    node: Node,
    effects: Vec<Effect>,
    class: ObjectId,
}

impl Scene {
    fn new() -> Scene {
        let mut node = Node::new(NodeConfig {
            node: NodeId(5),
            hostname: "here".to_owned(),
            resources: Resources::default(),
            cores: 2,
            store_capacity: 1 << 30,
            idle_executors: 2,
            idle_timeout: Span::secs(60),
            head_may_restart: true,
        });
        let mut effects = Vec::new();
        let admitted =
            HeadToNode::Admitted { term: Term(1), incarnation: Incarnation(1), loss_timeout_ms: 5000 };
        node.step(Time(0), Event::FromHead(admitted), &mut effects);
        let info = Arc::new(JobInfo::default());
        node.step(Time(0), Event::FromHead(HeadToNode::Job { job: JOB, info: info.clone() }), &mut effects);
        let kind = ClientKind::Driver { job: JOB, info };
        let attached = Event::ClientAttached { client: DRIVER, pid: 10, kind, shares_memory: true };
        node.step(Time(0), attached, &mut effects);
        Scene { node, effects: Vec::new(), class: ObjectId::put(DRIVER, 1) }
    }

    /// One event; executors that it starts attach. What the head is told by it.
    fn step(&mut self, event: Event) -> Vec<NodeToHead> {
        let mut effects = Vec::new();
        self.node.step(Time(1), event, &mut effects);
        let mut at = 0;
        while at < effects.len() {
            if let Effect::StartExecutor { executor, .. } = effects[at] {
                let kind = ClientKind::Executor { executor };
                let client = client_of(executor);
                let attached =
                    Event::ClientAttached { client, pid: executor + 100, kind, shares_memory: true };
                self.node.step(Time(1), attached, &mut effects);
            }
            at += 1;
        }
        if let Err(broken) = self.node.check_invariants() {
            panic!("{broken}");
        }
        let told = effects.iter().filter_map(|effect| match effect {
            Effect::ToHead(message @ (NodeToHead::Done { .. } | NodeToHead::Returned(_))) => {
                Some(message.clone())
            }
            _ => None,
        });
        let told = told.collect();
        self.effects.extend(effects);
        told
    }

    fn spec(&self, seq: u64, kind: TaskKind, deps: Refs) -> Arc<TaskSpec> {
        let function = if let TaskKind::Method { .. } = kind { task(100).result(0) } else { self.class };
        let template = TaskTemplate {
            name: "Counter".into(),
            function,
            resources: Resources::default(),
            num_returns: 1,
            max_retries: 0,
            retry_exceptions: Bytes::new(),
            env_vars: Default::default(),
            strategy: Default::default(),
            kind,
            ..TaskTemplate::default()
        };
        let payload = Payload::Inline(Bytes::new());
        Arc::new(TaskSpec {
            id: task(seq),
            job: JOB,
            template: Arc::new(template),
            payload,
            parent: None,
            deps,
            borrowed: Refs::new(),
        })
    }

    /// Assigns the task that makes the actor; it starts.
    fn make(&mut self, max_concurrency: u32) -> RunTask {
        let traits = ActorTraits { max_concurrency, ..ActorTraits::default() };
        let spec = self.spec(100, TaskKind::Actor(Arc::new(traits)), Refs::new());
        let located = vec![(self.class, Located::Inline(Bytes::from_static(b"class")))];
        let lease = Some(Lease::default());
        self.step(Event::FromHead(HeadToNode::Assign { spec, attempt: FIRST, lease, located }));
        self.runs().pop().expect("the actor is being made")
    }

    fn made(max_concurrency: u32) -> Scene {
        let mut scene = Scene::new();
        let run = scene.make(max_concurrency);
        let told = scene.complete(run.tag, Ok(()));
        assert!(
            matches!(&told[..], [NodeToHead::Done { outcome: Outcome::Ok(_), started: None, .. }]),
            "{told:?}"
        );
        scene
    }

    fn call(&mut self, seq: u64, deps: Refs) -> Vec<NodeToHead> {
        let kind = TaskKind::Method { method: "add".into(), group: "".into(), concurrent: false };
        let spec = self.spec(seq, kind, deps);
        let lease = Some(Lease::default());
        self.step(Event::FromHead(HeadToNode::Assign { spec, attempt: FIRST, lease, located: Vec::new() }))
    }

    fn complete(&mut self, tag: u64, result: Result<(), FailureKind>) -> Vec<NodeToHead> {
        let result = match result {
            Ok(()) => {
                Ok(vec![ExecutorResult { value: PutValue::Inline(Bytes::new()), contains: Refs::new() }])
            }
            Err(kind) => {
                let failure = Failure { kind, message: "it did".into(), payload: Bytes::new(), task: None };
                Err(ExecutorFailure { failure, retryable: false })
            }
        };
        let message = ClientToNode::Completed(Completion { tag, result, micros: 5 });
        self.step(Event::FromClient { client: client_of(1), message })
    }

    /// What executors were told to run since this was asked last.
    fn runs(&mut self) -> Vec<RunTask> {
        let runs = self.effects.drain(..).filter_map(|effect| match effect {
            Effect::ToClient { message: NodeToClient::Run(run), .. } => Some(*run),
            _ => None,
        });
        runs.collect()
    }

    fn seqs(&mut self) -> Vec<u64> {
        self.runs().iter().map(|run| run.spec.id.seq).collect()
    }

    fn exits(&mut self, unstarted: Vec<u64>) -> Vec<NodeToHead> {
        self.step(Event::ExecutorExited { executor: 1, cause: "exit code 3".to_owned(), unstarted })
    }
}

fn task(seq: u64) -> TaskId {
    TaskId { client: DRIVER, seq }
}

fn client_of(executor: u32) -> ClientId {
    ClientId(1000 + u64::from(executor))
}

/// `died 100 Infrastructure`, `done 1 Infrastructure`, `returned 2`.
fn words(told: &[NodeToHead]) -> Vec<String> {
    let mut words = Vec::new();
    for message in told {
        match message {
            NodeToHead::Done { task, outcome, retry, .. } => {
                let how = match outcome {
                    Outcome::Ok(_) => "ok",
                    Outcome::Failed(failure) if failure.kind == FailureKind::ActorDied => "died",
                    Outcome::Failed(failure) if failure.kind == FailureKind::Cancelled => "cancelled",
                    Outcome::Failed(_) => "failed",
                };
                words.push(format!("{how} {} {retry:?}", task.seq));
            }
            NodeToHead::Returned(tasks) => {
                words.extend(tasks.iter().map(|(task, _)| format!("returned {}", task.seq)));
            }
            _ => {}
        }
    }
    words
}

#[test]
fn a_living_actor_is_given_its_calls_in_order() {
    let mut scene = Scene::made(1);
    for seq in 1..=3 {
        assert!(scene.call(seq, Refs::new()).is_empty());
    }
    let runs = scene.runs();
    assert_eq!(runs.iter().map(|run| run.spec.id.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(words(&scene.complete(runs[0].tag, Ok(()))), ["ok 1 No"]);
    assert_eq!(words(&scene.complete(runs[1].tag, Err(FailureKind::Exception))), ["failed 2 No"]);
}

#[test]
fn a_call_whose_argument_is_missing_holds_up_those_behind_it_where_order_counts() {
    let missing: Refs = [ObjectId::put(ClientId(9), 4)].into_iter().collect();
    let mut scene = Scene::made(1);
    scene.call(1, missing.clone());
    scene.call(2, Refs::new());
    assert!(scene.seqs().is_empty());
    let located = Located::Inline(Bytes::from_static(b"there"));
    scene.step(Event::FromHead(HeadToNode::Located { object: missing[0], located }));
    assert_eq!(scene.seqs(), [1, 2]);

    let mut scene = Scene::made(10);
    scene.call(1, missing);
    scene.call(2, Refs::new());
    let runs = scene.runs();
    assert_eq!((runs.len(), runs[0].spec.id.seq, runs[0].slot), (1, 2, NO_SLOT));
}

#[test]
fn an_actor_in_order_is_sent_a_few_calls_ahead_and_the_others_as_those_end() {
    let mut scene = Scene::made(1);
    for seq in 1..=40 {
        scene.call(seq, Refs::new());
    }
    let runs = scene.runs();
    assert_eq!(runs.len(), 32);
    scene.complete(runs[0].tag, Ok(()));
    assert_eq!(scene.seqs(), [33]);
}

#[test]
fn calls_of_a_concurrent_actor_end_in_any_order() {
    let mut scene = Scene::made(4);
    for seq in 1..=3 {
        scene.call(seq, Refs::new());
    }
    let runs = scene.runs();
    assert_eq!(words(&scene.complete(runs[2].tag, Ok(()))), ["ok 3 No"]);
    assert_eq!(words(&scene.complete(runs[0].tag, Ok(()))), ["ok 1 No"]);
}

#[test]
fn when_the_process_ends_the_actors_death_is_told_first_and_which_calls_had_not_started() {
    let mut scene = Scene::made(1);
    for seq in 1..=40 {
        scene.call(seq, Refs::new());
    }
    let runs = scene.runs();
    let told = scene.exits(runs[1..].iter().map(|run| run.tag).collect());
    let words = words(&told);
    assert_eq!(words[..2], ["died 100 Infrastructure", "died 1 Infrastructure"]);
    let returned: Vec<String> = (2..=40).map(|seq| format!("returned {seq}")).collect();
    assert_eq!(words[2..], returned);
    let NodeToHead::Done { outcome: Outcome::Failed(failure), .. } = &told[0] else { panic!("{told:?}") };
    assert_eq!(
        &*failure.message,
        "actor Counter (0000000000000001.100.0) died: its process (pid 101) on node 0000000000000005 (here) ended: exit \
         code 3"
    );
}

#[test]
fn a_call_for_an_actor_that_is_not_here_goes_back() {
    let mut scene = Scene::made(1);
    scene.exits(vec![]);
    assert_eq!(words(&scene.call(1, Refs::new())), ["returned 1"]);
    assert_eq!(words(&Scene::new().call(1, Refs::new())), ["returned 1"]);
}

#[test]
fn an_actor_that_is_to_end_dies_by_wish() {
    let mut scene = Scene::made(1);
    scene.call(1, Refs::new());
    let reason = "killed by the driver with kill()".to_owned();
    let end = HeadToNode::EndActor { task: task(100), attempt: FIRST, reason, force: true };
    assert!(scene.step(Event::FromHead(end)).is_empty());
    assert!(scene.effects.contains(&Effect::EndExecutor { executor: 1, force: true }));
    assert_eq!(words(&scene.call(2, Refs::new())), ["returned 2"]);
    assert_eq!(words(&scene.exits(vec![])), ["died 100 No", "died 1 Infrastructure"]);
}

#[test]
fn one_that_is_to_end_before_it_is_made_is_cancelled() {
    let mut scene = Scene::new();
    scene.make(1);
    let end =
        HeadToNode::EndActor { task: task(100), attempt: FIRST, reason: "killed".to_owned(), force: true };
    scene.step(Event::FromHead(end));
    assert_eq!(words(&scene.exits(vec![])), ["cancelled 100 No"]);
}

#[test]
fn exit_actor_ends_it_and_nothing_else_starts() {
    let mut scene = Scene::made(1);
    scene.call(1, Refs::new());
    scene.call(2, Refs::new());
    let runs = scene.runs();
    let told = scene.complete(runs[0].tag, Err(FailureKind::ActorDied));
    assert_eq!(words(&told), ["died 100 No", "died 1 No", "died 2 Infrastructure"]);
    assert!(words(&scene.exits(vec![])).is_empty());
}

#[test]
fn a_failed_init_leaves_an_executor_for_others_and_no_actor() {
    let mut scene = Scene::new();
    let run = scene.make(1);
    assert_eq!(words(&scene.complete(run.tag, Err(FailureKind::Exception))), ["failed 100 No"]);
    assert_eq!(words(&scene.call(1, Refs::new())), ["returned 1"]);
}

#[test]
fn a_cancelled_call_is_interrupted_or_taken_back_and_its_actor_lives() {
    let mut scene = Scene::made(1);
    scene.call(1, Refs::new());
    scene.call(2, Refs::new());
    let runs = scene.runs();
    let cancel = |seq| {
        let (task, reason) = (task(seq), "by the driver".to_owned());
        Event::FromHead(HeadToNode::Cancel { task, attempt: FIRST, reason, force: true })
    };
    scene.step(cancel(1));
    assert!(scene.effects.contains(&Effect::Interrupt { executor: 1, tag: runs[0].tag }));
    scene.step(cancel(2));
    assert!(scene.effects.contains(&Effect::Revoke { executor: 1, slot: runs[1].slot, tag: runs[1].tag }));
    let told = scene.step(Event::Revoked { executor: 1, tag: runs[1].tag, won: true });
    assert_eq!(words(&told), ["cancelled 2 No"]);
    assert_eq!(words(&scene.complete(runs[0].tag, Err(FailureKind::Cancelled))), ["cancelled 1 No"]);
    scene.call(3, Refs::new());
    assert_eq!(scene.seqs(), [3]);
}

// ---- calls that go straight from their caller to the actor

fn says(client: ClientId, message: ClientToNode) -> Event {
    Event::FromClient { client, message }
}

/// An actor that the driver calls straight.
fn joined(max_concurrency: u32) -> Scene {
    let mut scene = Scene::made(max_concurrency);
    scene.effects.clear();
    let actor = task(100).result(0);
    scene.step(says(DRIVER, ClientToNode::OpenCalls(actor)));
    let (executor, in_order) = (client_of(1), max_concurrency == 1);
    let join = Effect::JoinCalls { caller: DRIVER, executor, actor, in_order };
    assert_eq!(std::mem::take(&mut scene.effects), [join]);
    scene
}

fn to(client: ClientId, message: NodeToClient) -> Effect {
    Effect::ToClient { client, message }
}

#[test]
fn a_caller_is_joined_to_an_actor_of_its_node_once() {
    let mut scene = joined(1);
    let actor = task(100).result(0);
    scene.step(says(DRIVER, ClientToNode::OpenCalls(actor)));
    assert_eq!(scene.effects, [], "it has a socket");
    let elsewhere = task(50).result(0);
    scene.step(says(DRIVER, ClientToNode::OpenCalls(elsewhere)));
    assert_eq!(scene.effects, [Effect::ToHead(NodeToHead::FindActor(elsewhere))]);
    scene.effects.clear();
    // An actor does not call itself past its daemon.
    scene.step(says(client_of(1), ClientToNode::OpenCalls(actor)));
    assert_eq!(scene.effects, [to(client_of(1), NodeToClient::NoCalls { actor })]);
}

#[test]
fn its_callers_hear_of_an_actors_end_after_the_head() {
    let mut scene = joined(1);
    assert_eq!(words(&scene.exits(vec![])), ["died 100 Infrastructure"]);
    let of = |wanted: fn(&Effect) -> bool| scene.effects.iter().position(wanted);
    let head = of(|effect| matches!(effect, Effect::ToHead(NodeToHead::Done { .. })));
    let caller = of(|effect| {
        matches!(effect, Effect::ToClient { client: DRIVER, message: NodeToClient::CallsEnded { why, .. } }
            if why.contains("exit code 3"))
    });
    assert!(head.is_some() && head < caller, "{:?}", scene.effects);
}

#[test]
fn exit_actor_in_a_straight_call_ends_the_actor_by_its_wish() {
    let mut scene = joined(1);
    let told = scene.step(says(client_of(1), ClientToNode::Left { reason: "it left".to_owned() }));
    assert_eq!(words(&told), ["died 100 No"]);
    assert!(
        scene.effects.iter().any(|effect| matches!(effect,
        Effect::ToClient { client: DRIVER, message: NodeToClient::CallsEnded { why, .. } } if why.contains("it left")))
    );
    assert_eq!(scene.exits(vec![]), [], "it died once");
}

#[test]
fn a_value_that_cannot_go_straight_is_known_before_its_caller_hears_of_it() {
    let mut scene = joined(1);
    let value = PutValue::Inline(Bytes::from_static(b"5"));
    let contains = Refs::from_slice(&[ObjectId::put(client_of(1), 3)]);
    let result = Ok(vec![ExecutorResult { value, contains: contains.clone() }]);
    scene.step(says(client_of(1), ClientToNode::Answered { task: task(7), result }));
    let (object, inline) = (task(7).result(0), Bytes::from_static(b"5"));
    let escaped = NodeToHead::Escaped { object, size: 1, inline: Some(inline.clone()), contains };
    let outcome = FinishedOutcome::Ok(vec![ResultValue::Inline(inline)]);
    let finished = NodeToClient::Finished { task: task(7), outcome };
    assert_eq!(scene.effects, [Effect::ToHead(escaped), to(DRIVER, finished)]);
}

#[test]
fn only_an_actor_answers_calls() {
    let mut scene = joined(1);
    let answered = ClientToNode::Answered { task: task(7), result: Ok(Vec::new()) };
    scene.step(says(DRIVER, answered));
    assert!(scene.effects.contains(&Effect::CloseClient { client: DRIVER }), "{:?}", scene.effects);
}

#[test]
fn a_straight_call_is_interrupted_under_the_name_that_everybody_gives_it() {
    for max_concurrency in [1, 4] {
        let mut scene = joined(max_concurrency);
        let (actor, reason) = (task(100).result(0), "by a test".to_owned());
        let cancel =
            ClientToNode::CancelCall { actor, task: task(7), reason: reason.clone(), recursive: true };
        scene.step(says(DRIVER, cancel));
        let tag = direct_tag(task(7));
        let mut expected = vec![to(client_of(1), NodeToClient::Cancel { tag, reason, recursive: true })];
        if max_concurrency == 1 {
            expected.push(Effect::Interrupt { executor: 1, tag });
        }
        assert_eq!(scene.effects, expected);
    }
}

#[test]
fn an_actor_hears_that_a_caller_is_gone() {
    let mut scene = joined(1);
    scene.step(Event::ClientEnded { client: DRIVER });
    assert!(
        scene.effects.contains(&to(client_of(1), NodeToClient::CallerGone(DRIVER))),
        "{:?}",
        scene.effects
    );
    scene.effects.clear();
    scene.exits(vec![]);
    assert!(!scene.effects.iter().any(|effect| matches!(effect, Effect::ToClient { client: DRIVER, .. })));
}

#[test]
fn what_a_straight_call_waits_for_goes_first() {
    let mut scene = joined(1);
    let on = vec![task(9).result(0)];
    scene.step(says(client_of(1), ClientToNode::Blocked { tag: direct_tag(task(7)), on: on.clone() }));
    assert_eq!(scene.effects, [Effect::ToHead(NodeToHead::Promote(on))]);
}
