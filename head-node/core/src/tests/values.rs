//! Who holds what, and when it is freed (REF-1, REF-2, rules R1 to R4).

use bytes::Bytes;
use cluster_types::node_head::Retry;
use cluster_types::{
    ClientId, FailureKind, HeadToNode, Located, NodeToHead, ObjectId, Outcome, Refs, Resources, TaskResult,
};

use super::scene::*;
use crate::HeadConfig;

fn located(heard: Vec<HeadToNode>) -> Vec<Located> {
    heard
        .into_iter()
        .filter_map(|message| match message {
            HeadToNode::Located { located, .. } => Some(located),
            _ => None,
        })
        .collect()
}

fn failure_of(heard: Vec<HeadToNode>) -> FailureKind {
    match located(heard).as_slice() {
        [Located::Failed(failure)] => failure.kind,
        other => panic!("no failure: {other:?}"),
    }
}

fn containing(inner: ObjectId) -> TaskResult {
    TaskResult { contains: [inner].into_iter().collect(), ..stored(1 << 20) }
}

#[test]
fn a_result_is_freed_where_it_lies_when_its_last_holder_drops_it() {
    let mut scene = Scene::cluster(&[2, 2]);
    let task = scene.submit(&[]);
    let assigned = scene.assigned_one();
    scene.done(&assigned, stored(1 << 20));
    scene.tell(2, NodeToHead::CopyAdded(task.result(0)));
    scene.said.clear();
    scene.drop_hold(1, DRIVER, task.result(0));
    assert_eq!(scene.freed(1), [task.result(0)]);
    assert_eq!(scene.freed(2), [task.result(0)]);
}

#[test]
fn a_copy_that_another_node_could_not_take_is_freed_with_the_rest() {
    let mut scene = Scene::cluster(&[2, 2]);
    let put = ObjectId::put(DRIVER, 50);
    scene.escape(1, put, &[]);
    scene.tell(2, NodeToHead::SourceFailed { object: put, source: node(1) });
    scene.said.clear();
    scene.drop_hold(1, DRIVER, put);
    assert_eq!(scene.freed(1), [put], "REF-2");
}

#[test]
fn a_hold_keeps_what_the_maker_drops() {
    let mut scene = Scene::cluster(&[2, 2]);
    let put = ObjectId::put(DRIVER, 50);
    scene.escape(1, put, &[]);
    let executor = scene.executor(2, 5);
    scene.hold(2, executor, put);
    scene.drop_hold(1, DRIVER, put);
    assert_eq!(scene.freed(1), []);
    scene.drop_hold(2, executor, put);
    assert_eq!(scene.freed(1), [put]);
}

#[test]
fn an_argument_lives_as_long_as_its_task() {
    let mut scene = Scene::cluster(&[2]);
    let put = ObjectId::put(DRIVER, 50);
    scene.escape(1, put, &[]);
    let task = scene.submit(&[put]);
    let assigned = scene.assigned_one();
    scene.drop_hold(1, DRIVER, put);
    assert_eq!(scene.freed(1), []);
    scene.done(&assigned, inline(b""));
    assert_eq!(scene.freed(1), [put]);
    scene.drop_hold(1, DRIVER, task.result(0));
    assert_eq!(scene.freed(1), [task.result(0)]);
}

#[test]
fn what_a_result_contains_lives_on_when_its_executor_ends_and_goes_with_it() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit(&[]);
    let assigned = scene.assigned_one();
    let executor = scene.executor(1, 5);
    let inner = ObjectId::put(executor, 1);
    scene.escape(1, inner, &[]);
    scene.ended(&assigned, Outcome::Ok([containing(inner)].into_iter().collect()), Retry::No, None);
    scene.drop_hold(1, executor, inner);
    scene.tell(1, NodeToHead::ClientGone { client: executor });
    assert_eq!(scene.freed(1), []);
    scene.drop_hold(1, DRIVER, task.result(0));
    let mut both = vec![task.result(0), inner];
    both.sort_unstable();
    assert_eq!(scene.freed(1), both);
}

#[test]
fn a_long_chain_of_containers_is_freed_without_recursion() {
    let mut scene = Scene::cluster(&[2]);
    let mut inner: Vec<ObjectId> = Vec::new();
    for seq in 0..2_000 {
        let put = ObjectId::put(DRIVER, 1000 + seq);
        scene.head.step(
            scene.now,
            crate::Event::FromNode {
                node: node(1),
                incarnation: scene.incarnations[&node(1)],
                message: NodeToHead::Escaped {
                    object: put,
                    size: 1 << 20,
                    inline: None,
                    contains: inner.last().copied().into_iter().collect::<Refs>(),
                },
            },
            &mut scene.said,
        );
        inner.push(put);
    }
    let last = inner[inner.len() - 1];
    scene.tell(1, NodeToHead::Drop { client: DRIVER, objects: inner[..inner.len() - 1].to_vec() });
    assert_eq!(scene.freed(1), []);
    scene.drop_hold(1, DRIVER, last);
    assert_eq!(scene.freed(1).len(), 2_000);
}

#[test]
fn a_result_dropped_before_its_task_ended_goes_as_it_comes() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit(&[]);
    let assigned = scene.assigned_one();
    scene.drop_hold(1, DRIVER, task.result(0));
    scene.done(&assigned, stored(1 << 20));
    assert_eq!(scene.freed(1), [task.result(0)]);
    // Its copy elsewhere, complete too late, goes as well.
    scene.join(2, Resources::cpus(1));
    scene.tell(2, NodeToHead::CopyAdded(task.result(0)));
    assert_eq!(scene.freed(2), [task.result(0)]);
}

#[test]
fn whoever_asks_for_a_pending_value_is_told_when_it_exists() {
    let mut scene = Scene::cluster(&[2, 2]);
    let task = scene.submit(&[]);
    let assigned = scene.assigned_one();
    scene.tell(2, NodeToHead::Locate(task.result(0)));
    assert_eq!(scene.heard(2), []);
    scene.done(&assigned, stored(5000));
    let expected = Located::Stored {
        size: 5000,
        copies: vec![(assigned.node, format!("host{}:8266", assigned.node.0))],
    };
    assert_eq!(located(scene.heard(2)), [expected]);
}

#[test]
fn nobody_who_asks_about_an_unknown_object_waits_in_silence() {
    let mut scene = Scene::cluster(&[2, 2]);
    // Of a maker nobody knows.
    scene.tell(2, NodeToHead::Locate(ObjectId::put(ClientId(0xbad), 1)));
    assert_eq!(failure_of(scene.heard(2)), FailureKind::ObjectFreed);
    // Of a maker who is here: the answer comes when it escapes,
    let executor = scene.executor(1, 5);
    let first = ObjectId::put(executor, 1);
    scene.hold(1, DRIVER, first);
    scene.tell(2, NodeToHead::Locate(first));
    assert_eq!(scene.heard(2), []);
    scene.escape(1, first, &[]);
    assert_eq!(located(scene.heard(2)).len(), 1);
    // or when the maker is gone.
    let second = ObjectId::put(executor, 2);
    scene.hold(1, DRIVER, second);
    scene.tell(2, NodeToHead::Locate(second));
    let waiting = scene.submit(&[second]);
    assert_eq!(scene.heard(2), []);
    scene.tell(1, NodeToHead::ClientGone { client: executor });
    assert_eq!(failure_of(scene.heard(2)), FailureKind::ObjectFreed);
    assert_eq!(scene.failed_with(1, waiting).kind, FailureKind::ObjectFreed);
}

#[test]
fn a_freed_result_is_answered_as_freed() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit(&[]);
    let assigned = scene.assigned_one();
    scene.done(&assigned, inline(b"1"));
    scene.drop_hold(1, DRIVER, task.result(0));
    scene.said.clear();
    scene.tell(1, NodeToHead::Locate(task.result(0)));
    assert_eq!(failure_of(scene.heard(1)), FailureKind::ObjectFreed);
}

#[test]
fn a_value_whose_only_copy_was_on_a_lost_node_is_lost_by_name() {
    let mut scene = Scene::cluster(&[1, 4]);
    let template = scene.template("f", Resources::cpus(2));
    let once = cluster_types::TaskTemplate { max_retries: 0, ..(*template).clone() };
    let spec = scene.spec(DRIVER, once.into(), &[]);
    let task = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    let assigned = scene.assigned_one();
    assert_eq!(assigned.node, node(2));
    scene.done(&assigned, stored(1 << 20));
    scene.disconnect(2);
    scene.said.clear();
    scene.tell(1, NodeToHead::SourceFailed { object: task.result(0), source: node(2) });
    let heard = located(scene.heard(1));
    let [Located::Failed(failure)] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!(failure.kind, FailureKind::ObjectLost);
    assert!(failure.message.contains("host2"), "{}", failure.message);
    // A task that needs it fails the same way.
    let dependant = scene.submit(&[task.result(0)]);
    assert_eq!(scene.failed_with(1, dependant).kind, FailureKind::ObjectLost);
}

#[test]
fn beyond_its_budget_the_cache_leaves_small_values_to_their_home() {
    let mut scene = Scene::with(HeadConfig { inline_budget: 10, ..HeadConfig::default() });
    scene.join(1, Resources::cpus(4));
    scene.join(2, Resources::cpus(4));
    scene.driver(1);
    let tasks: Vec<_> = (0..3).map(|_| scene.submit(&[])).collect();
    let assigned = scene.assigned();
    for assigned in &assigned {
        scene.done(assigned, inline(b"12345678"));
    }
    scene.said.clear();
    scene.tell(2, NodeToHead::Locate(tasks[0].result(0)));
    let home = assigned[0].node;
    let expected = Located::Stored { size: 8, copies: vec![(home, format!("host{}:8266", home.0))] };
    assert_eq!(located(scene.heard(2)), [expected]);
    scene.tell(2, NodeToHead::Locate(tasks[2].result(0)));
    assert_eq!(located(scene.heard(2)), [Located::Inline(Bytes::from_static(b"12345678"))]);
}

#[test]
fn a_function_is_sent_to_a_node_once_and_freed_there_in_the_end() {
    let mut scene = Scene::cluster(&[0, 4]);
    let mut count_located = Vec::new();
    for _ in 0..2 {
        scene.submit(&[]);
        for message in scene.heard(2) {
            if let HeadToNode::Assign { spec, attempt, lease, located } = message {
                count_located.push(located.len());
                scene.done(&Assigned { node: node(2), task: spec.id, attempt, lease }, inline(b""));
            }
        }
    }
    assert_eq!(count_located, [1, 0]);
    scene.tell(1, NodeToHead::ClientGone { client: DRIVER });
    assert!(scene.freed(2).contains(&function()));
}

#[test]
fn a_refused_task_costs_little_however_many_values_it_names() {
    let mut scene = Scene::cluster(&[1]);
    let template = scene.template("f", Resources::default());
    let many = cluster_types::TaskTemplate { num_returns: u32::MAX, ..(*template).clone() };
    let spec = scene.spec(DRIVER, many.into(), &[]);
    let task = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    assert!(scene.failed_with(1, task).message.contains("at most 100000"));
    let objects = scene.head.sizes().into_iter().find(|(name, _)| *name == "objects").map(|(_, count)| count);
    assert!(objects.is_some_and(|count| count < 2_000), "{objects:?}");
    scene.said.clear();
    scene.tell(1, NodeToHead::Locate(task.result(50_000)));
    assert!(matches!(located(scene.heard(1)).as_slice(), [Located::Failed(_)]), "nobody waits for it");
}
