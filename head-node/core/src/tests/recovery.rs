//! A head of a new term: what nodes of the term before tell it (rules H1 to H3, HEAD-1).

use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::task::{InGroup, Strategy};
use cluster_types::{
    Attempt, ClientKind, Failure, FailureKind, HeadToNode, Incarnation, JobInfo, Lease, Located, NodeHello,
    NodeToHead, ObjectId, Outcome, PROTOCOL_VERSION, Resources, ResultValue, Span, TaskId, TaskSpec,
    TaskTemplate, Term,
};

use super::actors::call_spec;
use super::scene::*;
use crate::head::failure;
use crate::{Effect, Event, HeadConfig, Member, Record};

/// Attempts of the term before have this.
const OLD: Attempt = Attempt { term: 1, n: 1 };

/// A head of term 2 that was told of nodes 1, 2, …
fn second(nodes: u64) -> Scene {
    let roster =
        (1..=nodes).map(|n| Member { node: node(n), incarnation: Incarnation(4), since: Incarnation(3) });
    Scene::with(HeadConfig { term: Term(2), roster: roster.collect(), ..HeadConfig::default() })
}

/// Node `n` comes, and says that it was this before; gives back what it is admitted as.
fn comes(scene: &mut Scene, n: u64, was: Option<u32>) -> HeadToNode {
    let hello = NodeHello {
        protocol: PROTOCOL_VERSION,
        node: node(n),
        hostname: format!("host{n}"),
        data_address: format!("host{n}:8266"),
        gateway_address: String::new(),
        resources: Resources::cpus(2),
        labels: Default::default(),
        store_capacity: 1 << 30,
        previous: was.map(|was| (Term(1), Incarnation(was))),
    };
    scene.event(Event::NodeConnected { connection: n, hello });
    let admitted = scene.said.iter().find_map(|effect| match effect {
        Effect::AdmitNode { node, incarnation, message, .. } => Some((*node, *incarnation, message.clone())),
        _ => None,
    });
    let (node, incarnation, message) = admitted.expect("it is admitted");
    scene.incarnations.insert(node, incarnation);
    scene.said.clear();
    message
}

/// Node 1 says who is attached there.
fn says_driver(scene: &mut Scene) {
    let kind = ClientKind::Driver { job: JOB, info: Arc::new(JobInfo::default()) };
    scene.tell(1, NodeToHead::ClientAttached { client: DRIVER, kind, job: JOB, pid: 1 });
    kept(scene, 1, function(), 1);
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![function()] });
}

fn kept(scene: &mut Scene, n: u64, object: ObjectId, size: u64) {
    scene.tell(n, NodeToHead::Kept { object, size, inline: None, contains: Default::default() });
}

fn end(scene: &mut Scene, n: u64) {
    scene.tell(n, NodeToHead::SnapshotEnd);
}

fn of_one_core(scene: &mut Scene) -> TaskSpec {
    let template = scene.template("f", Resources::cpus(1));
    scene.spec(DRIVER, template, &[])
}

fn ended_with(spec: &TaskSpec, outcome: Outcome, retry: Retry) -> NodeToHead {
    let spec = Arc::new(spec.clone());
    NodeToHead::Ended { spec, attempt: OLD, outcome, retry, micros: 1, lived: false }
}

#[test]
fn only_a_node_to_which_nothing_happened_since_is_resumed() {
    for (was, resumed) in
        [(None, false), (Some(2), false), (Some(3), true), (Some(4), true), (Some(5), false)]
    {
        let mut scene = second(1);
        let message = comes(&mut scene, 1, was);
        assert_eq!(matches!(message, HeadToNode::Resumed { .. }), resumed, "it was {was:?}");
        let incarnation = Incarnation(was.unwrap_or(0).max(4) + 1);
        assert!(
            matches!(message, HeadToNode::Resumed { incarnation: now, .. } | HeadToNode::Admitted { incarnation: now, .. }
            if now == incarnation),
            "FENCE-1: {message:?}"
        );
    }
}

#[test]
fn nothing_starts_before_every_node_has_reported() {
    let mut scene = second(2);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let spec = of_one_core(&mut scene);
    scene.tell(1, NodeToHead::Submit(spec.clone()));
    end(&mut scene, 1);
    scene.pass(Span::secs(1));
    assert_eq!(scene.assigned(), []);

    comes(&mut scene, 2, Some(4));
    let lease = Some(Lease::default());
    scene.tell(2, NodeToHead::Running { spec: Arc::new(spec.clone()), attempt: OLD, lease, yielded: 0 });
    end(&mut scene, 2);
    // HEAD-1: it runs there, and nowhere else.
    assert_eq!(scene.assigned(), []);
    let running = Assigned { node: node(2), task: spec.id, attempt: OLD, lease: None };
    scene.done(&running, stored(10));
    assert_eq!(scene.finished(1, spec.id), Some(FinishedOutcome::Ok(vec![ResultValue::Stored { size: 10 }])));
}

#[test]
fn a_job_whose_driver_is_gone_ends_on_nodes_whose_executors_of_it_are_gone_too() {
    let mut scene = second(2);
    comes(&mut scene, 1, Some(4));
    let client = cluster_types::ClientId(0x30e);
    let kind = ClientKind::Executor { executor: 1 };
    scene.tell(1, NodeToHead::ClientAttached { client, kind, job: JOB, pid: 1 });
    end(&mut scene, 1);
    scene.tell(1, NodeToHead::ClientGone { client });
    comes(&mut scene, 2, Some(4));
    scene.said.clear();
    end(&mut scene, 2);
    assert!(scene.heard(1).contains(&HeadToNode::JobEnded(JOB)));
}

#[test]
fn a_node_that_does_not_come_is_lost_and_what_no_node_has_starts() {
    let mut scene = second(2);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let spec = of_one_core(&mut scene);
    scene.tell(1, NodeToHead::Submit(spec.clone()));
    end(&mut scene, 1);
    scene.pass(Span::secs(4));
    assert_eq!(scene.assigned(), []);
    scene.pass(Span::secs(2));
    let left = Effect::Persist(Record::NodeLeft { node: node(2) });
    assert!(scene.said.contains(&left));
    let assigned = scene.assigned_one();
    assert_eq!((assigned.node, assigned.task), (node(1), spec.id));
    assert_eq!(assigned.attempt, Attempt { term: 2, n: 1 });
}

#[test]
fn an_end_that_its_submitter_did_not_hear_of_is_told_it_and_nothing_runs_again() {
    let mut scene = second(2);
    comes(&mut scene, 2, Some(4));
    let spec = of_one_core(&mut scene);
    kept(&mut scene, 2, spec.id.result(0), 10);
    let outcome = Outcome::Ok([stored(10)].into_iter().collect());
    scene.tell(2, ended_with(&spec, outcome, Retry::No));
    end(&mut scene, 2);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    scene.tell(1, NodeToHead::Submit(spec.clone()));
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![spec.id.result(0)] });
    end(&mut scene, 1);
    assert_eq!(scene.finished(1, spec.id), Some(FinishedOutcome::Ok(vec![ResultValue::Stored { size: 10 }])));
    assert_eq!(scene.assigned(), []);
    // And it is freed where it is when nobody holds it any more.
    scene.drop_hold(1, DRIVER, spec.id.result(0));
    assert_eq!(scene.freed(2), [spec.id.result(0)]);
}

#[test]
fn an_attempt_whose_process_died_meanwhile_is_tried_again() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let spec = of_one_core(&mut scene);
    scene.tell(1, NodeToHead::Submit(spec.clone()));
    scene.tell(1, ended_with(&spec, failed(FailureKind::ExecutorDied), Retry::Infrastructure));
    end(&mut scene, 1);
    let assigned = scene.assigned_one();
    // TASK-2: under another number than the one that ended.
    assert_eq!((assigned.task, assigned.attempt), (spec.id, Attempt { term: 2, n: 2 }));
}

#[test]
fn what_runs_for_nobody_is_ended() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let unwanted = of_one_core(&mut scene);
    let lease = Some(Lease::default());
    scene.tell(1, NodeToHead::Running { spec: Arc::new(unwanted.clone()), attempt: OLD, lease, yielded: 0 });
    end(&mut scene, 1);
    let cancelled = scene.heard(1).into_iter().any(|message| {
        matches!(message, HeadToNode::Cancel { task, attempt, .. } if task == unwanted.id && attempt == OLD)
    });
    assert!(cancelled);
}

#[test]
fn what_is_held_and_on_no_node_is_lost_and_what_nobody_holds_is_freed() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let (gone, spare) = (ObjectId::put(DRIVER, 8), ObjectId::put(DRIVER, 9));
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![gone] });
    kept(&mut scene, 1, spare, 10);
    scene.tell(1, NodeToHead::Locate(gone));
    end(&mut scene, 1);
    let heard = scene.heard(1);
    assert!(heard.contains(&HeadToNode::Free(vec![spare])), "REF-2: {heard:?}");
    let lost = heard.iter().any(|message| {
        matches!(message, HeadToNode::Located { object, located: Located::Failed(failure) }
            if *object == gone && failure.kind == FailureKind::ObjectLost)
    });
    assert!(lost, "{heard:?}");
}

#[test]
fn what_was_lost_with_a_node_is_made_again_from_what_its_submitter_remembers() {
    let mut scene = second(2);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let spec = of_one_core(&mut scene);
    let result = spec.id.result(0);
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![result] });
    scene.tell(1, NodeToHead::Made(Arc::new(spec.clone())));
    end(&mut scene, 1);
    // Node 2, which had it, never comes.
    scene.incarnations.retain(|id, _| *id == node(1));
    scene.pass(Span::secs(6));
    assert_eq!(scene.assigned(), []);
    scene.tell(1, NodeToHead::Locate(result));
    let assigned = scene.assigned_one();
    assert_eq!(assigned.task, spec.id);
    scene.done(&assigned, stored(10));
    assert_eq!(scene.finished(1, spec.id), None, "TASK-1: its submitter heard of its end long ago");
}

#[test]
fn what_is_remembered_for_a_lost_node_outlives_its_loss_and_the_time_before_nodes_come() {
    let mut scene = second(2);
    scene.pass(Span::millis(100));
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    comes(&mut scene, 2, Some(4));
    let spec = of_one_core(&mut scene);
    let result = spec.id.result(0);
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![result] });
    scene.tell(1, NodeToHead::Made(Arc::new(spec.clone())));
    kept(&mut scene, 2, result, 10);
    end(&mut scene, 1);
    end(&mut scene, 2);
    scene.disconnect(2);
    scene.tell(1, NodeToHead::Locate(result));
    assert_eq!(scene.assigned_one().task, spec.id);
}

#[test]
fn what_somebody_waits_for_already_is_made_again() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let spec = of_one_core(&mut scene);
    let result = spec.id.result(0);
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![result] });
    scene.tell(1, NodeToHead::Made(Arc::new(spec.clone())));
    scene.tell(1, NodeToHead::Locate(result));
    end(&mut scene, 1);
    let again = scene.assigned_one();
    assert_eq!(again.task, spec.id);
    scene.said.clear();
    scene.done(&again, stored(10));
    let told = |effect: &Effect| {
        matches!(effect, Effect::ToNode { message: HeadToNode::Located { object, located: Located::Stored { .. } }, .. }
            if *object == result)
    };
    assert!(scene.said.iter().any(told), "{:?}", scene.said);
}

#[test]
fn what_a_node_makes_again_for_the_head_before_it_goes_on_making() {
    let mut scene = second(2);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let spec = of_one_core(&mut scene);
    let result = spec.id.result(0);
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![result] });
    scene.tell(1, NodeToHead::Made(Arc::new(spec.clone())));
    scene.tell(1, NodeToHead::Locate(result));
    comes(&mut scene, 2, Some(4));
    let attempt = Attempt { term: 1, n: 2 };
    let lease = Some(Lease::default());
    scene.tell(2, NodeToHead::Running { spec: Arc::new(spec.clone()), attempt, lease, yielded: 0 });
    end(&mut scene, 2);
    end(&mut scene, 1);
    assert_eq!(scene.assigned(), [], "HEAD-1");
    scene.done(&Assigned { node: node(2), task: spec.id, attempt, lease: None }, stored(10));
    let told = |effect: &Effect| {
        matches!(effect, Effect::ToNode { message: HeadToNode::Located { object, located: Located::Stored { .. } }, .. }
            if *object == result)
    };
    assert!(scene.said.iter().any(told), "{:?}", scene.said);
}

#[test]
fn what_was_being_made_again_and_is_done_before_all_nodes_came_is_done() {
    let mut scene = second(2);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let spec = of_one_core(&mut scene);
    let result = spec.id.result(0);
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![result] });
    scene.tell(1, NodeToHead::Made(Arc::new(spec.clone())));
    let lease = Some(Lease::default());
    scene.tell(1, NodeToHead::Running { spec: Arc::new(spec.clone()), attempt: OLD, lease, yielded: 0 });
    scene.tell(1, NodeToHead::Locate(result));
    end(&mut scene, 1);
    let running = Assigned { node: node(1), task: spec.id, attempt: OLD, lease: None };
    scene.done(&running, stored(10));
    // Node 2 never comes.
    scene.incarnations.retain(|id, _| *id == node(1));
    scene.pass(Span::secs(6));
    let told = scene.heard(1).into_iter().any(|message| {
        matches!(message, HeadToNode::Located { object, located: Located::Stored { .. } } if object == result)
    });
    assert!(told, "whoever waits for it is told where it is");
}

#[test]
fn the_function_of_a_task_that_is_made_again_is_freed_where_it_ran() {
    let mut scene = second(2);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    comes(&mut scene, 2, Some(4));
    let template = scene.template("f", Resources::cpus(1));
    let strategy = Strategy::Node { id: node(2), soft: false };
    let template = Arc::new(TaskTemplate { strategy, ..template.as_ref().clone() });
    let spec = scene.spec(DRIVER, template, &[]);
    let result = spec.id.result(0);
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![result] });
    scene.tell(1, NodeToHead::Made(Arc::new(spec)));
    scene.tell(1, NodeToHead::Locate(result));
    end(&mut scene, 1);
    end(&mut scene, 2);
    let again = scene.assigned_one();
    assert_eq!(again.node, node(2));
    scene.done(&again, stored(10));
    scene.drop_hold(1, DRIVER, result);
    scene.drop_hold(1, DRIVER, function());
    scene.pass(Span::millis(1));
    assert_eq!(scene.freed(2), [function(), result], "REF-2: also what nobody said it has a copy of");
}

#[test]
fn what_was_made_in_a_group_that_is_gone_is_not_made_again() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let mut spec = of_one_core(&mut scene);
    let group = TaskId { client: DRIVER, seq: 1 << 20 }.result(0);
    let place = InGroup { group, bundle: None, capture: false };
    spec.template =
        Arc::new(TaskTemplate { strategy: Strategy::Group(place), ..spec.template.as_ref().clone() });
    let result = spec.id.result(0);
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![result] });
    scene.tell(1, NodeToHead::Made(Arc::new(spec)));
    end(&mut scene, 1);
    scene.tell(1, NodeToHead::Locate(result));
    let told = scene.said.iter().any(|effect| {
        matches!(effect, Effect::ToNode { message: HeadToNode::Located { object, located: Located::Failed(why) }, .. }
            if *object == result && why.message.contains("was removed"))
    });
    assert!(told, "{:?}", scene.said);
    assert_eq!(scene.assigned(), []);
}

#[test]
fn what_an_attempt_made_that_is_not_wanted_is_freed() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let spec = of_one_core(&mut scene);
    end(&mut scene, 1);
    // It ran for a head before that had it made again; nobody speaks of it now.
    let stale = Assigned { node: node(1), task: spec.id, attempt: OLD, lease: None };
    scene.done(&stale, stored(10));
    scene.pass(Span::millis(1));
    assert_eq!(scene.freed(1), [spec.id.result(0)], "REF-2");
}

#[test]
fn an_item_that_its_reader_has_is_not_told_again() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let mut spec = of_one_core(&mut scene);
    let stream = cluster_types::task::StreamLimits { max_items: 8, max_bytes: 1 << 20 };
    spec.template =
        Arc::new(cluster_types::TaskTemplate { stream: Some(stream), ..spec.template.as_ref().clone() });
    let id: TaskId = spec.id;
    for index in 0..3 {
        kept(&mut scene, 1, id.item(index), 10);
    }
    scene.tell(1, NodeToHead::Submit(spec.clone()));
    scene.tell(1, NodeToHead::Hold { client: DRIVER, objects: vec![id.item(0), id.item(1)] });
    scene.tell(1, NodeToHead::Told { task: id, items: 2 });
    let lease = Some(Lease::default());
    scene.tell(1, NodeToHead::Running { spec: Arc::new(spec), attempt: OLD, lease, yielded: 3 });
    end(&mut scene, 1);
    let told: Vec<u32> = scene
        .heard(1)
        .into_iter()
        .filter_map(|message| match message {
            HeadToNode::Item { index, .. } => Some(index),
            _ => None,
        })
        .collect();
    assert_eq!(told, [2]);
}

#[test]
fn an_item_that_its_reader_was_not_told_of_is_freed_when_its_task_fails() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let gone = ObjectId::put(DRIVER, 50);
    let stream = cluster_types::task::StreamLimits { max_items: 8, max_bytes: 1 << 20 };
    let template = scene.template("f", Resources::cpus(1));
    let template = Arc::new(TaskTemplate { stream: Some(stream), ..template.as_ref().clone() });
    let spec = scene.spec(DRIVER, template, &[gone]);
    let item = spec.id.item(0);
    kept(&mut scene, 1, item, 10);
    scene.tell(
        1,
        NodeToHead::PutFailed { object: gone, failure: failure(FailureKind::ActorDied, "it died", None) },
    );
    scene.tell(1, NodeToHead::Submit(spec));
    end(&mut scene, 1);
    assert_eq!(scene.freed(1), [item], "REF-2: the failure stands in its place");
}

#[test]
fn marks_are_settled_when_every_node_has_heard_what_came_of_them() {
    let mut scene = Scene::cluster(&[1, 1]);
    let pulses = |scene: &mut Scene, n: u64| -> Vec<(u64, u64)> {
        let pulse = |message| match message {
            HeadToNode::Pulse { number, settled } => Some((number, settled)),
            _ => None,
        };
        scene.heard(n).into_iter().filter_map(pulse).collect()
    };
    scene.tell(1, NodeToHead::Mark { number: 1, heard: 0 });
    scene.tell(2, NodeToHead::Mark { number: 1, heard: 0 });
    scene.event(Event::Tick);
    assert_eq!(pulses(&mut scene, 1), [(1, 0)]);
    // Node 1 has heard; node 2 has not, and may have heard nothing of what node 1 said.
    scene.tell(1, NodeToHead::Mark { number: 2, heard: 1 });
    scene.pass(Span::millis(500));
    assert_eq!(pulses(&mut scene, 1), [(2, 0)]);
    scene.tell(2, NodeToHead::Mark { number: 2, heard: 2 });
    scene.pass(Span::millis(500));
    assert_eq!(pulses(&mut scene, 1), [(3, 1)]);
}

#[test]
fn what_a_call_came_to_is_kept_while_its_answer_is_on_its_way() {
    let mut scene = second(2);
    comes(&mut scene, 1, Some(4));
    comes(&mut scene, 2, Some(4));
    says_driver(&mut scene);
    // The driver's calls went past the head to an actor of node 2, where one has been answered.
    let result = |seq| TaskId { client: DRIVER, seq }.result(0);
    kept(&mut scene, 2, result(70), 10);
    kept(&mut scene, 2, result(71), 10);
    scene.tell(1, NodeToHead::Unanswered { client: DRIVER, objects: vec![result(70), result(72)] });
    end(&mut scene, 1);
    end(&mut scene, 2);
    assert_eq!(scene.freed(2), [result(71)]);
    scene.drop_hold(1, DRIVER, result(70));
    scene.pass(Span::millis(1));
    assert_eq!(scene.freed(2).last(), Some(&result(70)), "it is held as long as the driver says");
}

#[test]
fn what_fails_for_a_reason_that_is_known_does_not_say_that_its_arguments_are_lost() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let mut first = of_one_core(&mut scene);
    let place = InGroup { group: ObjectId::put(DRIVER, 60), bundle: None, capture: false };
    first.template =
        Arc::new(TaskTemplate { strategy: Strategy::Group(place), ..first.template.as_ref().clone() });
    // The head before ended both, freed what they needed, and nobody heard.
    let template = scene.template("g", Resources::cpus(1));
    let second = scene.spec(DRIVER, template, &[ObjectId::put(DRIVER, 61), first.id.result(0)]);
    let id = second.id;
    scene.tell(1, NodeToHead::Submit(first));
    scene.tell(1, NodeToHead::Submit(second));
    end(&mut scene, 1);
    scene.pass(Span::millis(1));
    assert_eq!(scene.failed_with(1, id).kind, FailureKind::GroupRemoved);
}

#[test]
fn calls_on_an_actor_that_could_not_be_made_fail_for_the_reason_of_that() {
    let mut scene = second(1);
    comes(&mut scene, 1, Some(4));
    says_driver(&mut scene);
    let actor = of_one_core(&mut scene).id;
    let call = call_spec(&mut scene, actor, 0, &[]);
    scene.tell(1, NodeToHead::Submit(call.clone()));
    let Outcome::Failed(cause) = failed(FailureKind::Exception) else { unreachable!() };
    let cause = Failure { message: "its wheel came off".into(), ..cause };
    scene.tell(1, NodeToHead::PutFailed { object: actor.result(0), failure: cause });
    end(&mut scene, 1);
    scene.pass(Span::millis(100));
    let failure = scene.failed_with(1, call.id);
    assert!(failure.message.contains("its wheel came off"), "{}", failure.message);
}
