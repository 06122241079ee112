//! Where tasks go that say where, what they get that would take one of several things, and when they are tried again.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_types::node_head::Retry;
use cluster_types::query::{Query, QueryReply};
use cluster_types::task::{Backoff, LabelMatch, LabelRule, LabelSelector, Strategy};
use cluster_types::{FailureKind, HeadToNode, NodeToHead, Resources, Span, TaskId, TaskTemplate};

use super::scene::*;
use crate::HeadConfig;

fn submit(scene: &mut Scene, change: impl FnOnce(&mut TaskTemplate)) -> TaskId {
    let mut template = (*scene.template("f", Resources::cpus(1))).clone();
    change(&mut template);
    let spec = scene.spec(DRIVER, Arc::new(template), &[]);
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    id
}

fn zones(scene: &mut Scene) {
    for (n, zone) in [(1, "a"), (2, "b"), (3, "b")] {
        let mut labels = BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        if n == 3 {
            labels.insert("spot".to_owned(), "yes".to_owned());
        }
        scene.join_labelled(n, Resources::cpus(1), labels);
    }
    scene.driver(1);
}

fn rule(key: &str, rule: LabelMatch) -> LabelRule {
    LabelRule { key: key.to_owned(), rule }
}

fn values(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[test]
fn hard_rules_on_labels_say_where_a_task_may_run() {
    let table: &[(LabelRule, &[u64])] = &[
        (rule("zone", LabelMatch::In(values(&["a"]))), &[1]),
        (rule("zone", LabelMatch::In(values(&["b", "c"]))), &[2, 3]),
        (rule("zone", LabelMatch::NotIn(values(&["b"]))), &[1]),
        (rule("spot", LabelMatch::NotIn(values(&["no"]))), &[1, 2, 3]),
        (rule("spot", LabelMatch::Exists), &[3]),
        (rule("spot", LabelMatch::DoesNotExist), &[1, 2]),
        (rule("node-id", LabelMatch::In(values(&["0000000000000002"]))), &[2]),
        (rule("zone", LabelMatch::In(values(&["d"]))), &[]),
    ];
    for (wanted, on) in table {
        let mut scene = Scene::empty();
        zones(&mut scene);
        let selector = Arc::new(LabelSelector { hard: vec![wanted.clone()], soft: Vec::new() });
        for _ in 0..4 {
            submit(&mut scene, |template| template.strategy = Strategy::Labels(selector.clone()));
        }
        let mut nodes: Vec<u64> =
            scene.assigned().iter().filter(|sent| sent.lease.is_some()).map(|sent| sent.node.0).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, *on, "{wanted}");
    }
}

#[test]
fn soft_rules_choose_among_those_that_have_room() {
    let mut scene = Scene::empty();
    zones(&mut scene);
    let soft = vec![rule("zone", LabelMatch::In(values(&["b"])))];
    let selector = Arc::new(LabelSelector { hard: Vec::new(), soft });
    let mut nodes = Vec::new();
    for _ in 0..3 {
        submit(&mut scene, |template| template.strategy = Strategy::Labels(selector.clone()));
        nodes.push(scene.assigned_one().node.0);
    }
    nodes[..2].sort_unstable();
    assert_eq!(nodes, [2, 3, 1]);
}

#[test]
fn labels_that_no_node_has_are_told_of() {
    for closed in [true, false] {
        let mut scene = Scene::with(HeadConfig { closed, ..HeadConfig::default() });
        zones(&mut scene);
        let hard = vec![rule("zone", LabelMatch::In(values(&["d"])))];
        let selector = Arc::new(LabelSelector { hard, soft: Vec::new() });
        let task = submit(&mut scene, |template| template.strategy = Strategy::Labels(selector));
        let reason = "needs a node with zone in (d); there is none";
        if closed {
            let failure = scene.failed_with(1, task);
            assert_eq!(failure.kind, FailureKind::Unschedulable);
            assert!(failure.message.contains(reason), "{}", failure.message);
            continue;
        }
        scene.pass(Span::secs(1));
        let told = scene
            .heard(1)
            .into_iter()
            .any(|said| matches!(said, HeadToNode::Notice { text, .. } if text.contains(reason)));
        assert!(told);
        let labels = BTreeMap::from([("zone".to_owned(), "d".to_owned())]);
        scene.join_labelled(4, Resources::cpus(1), labels);
        assert_eq!(scene.assigned_one().node.0, 4);
    }
}

/// One GPU, or two cores.
fn variants(template: &mut TaskTemplate) {
    template.resources = with_gpus(0, 1);
    template.variants = vec![Resources::cpus(2)];
}

fn asked(scene: &mut Scene) -> Vec<(TaskId, Resources)> {
    let sent = scene
        .said
        .iter()
        .filter_map(|effect| match effect {
            crate::Effect::ToNode { message: HeadToNode::Assign { spec, lease: Some(_), .. }, .. } => {
                assert!(spec.template.variants.is_empty(), "its node sees what it got");
                Some((spec.id, spec.template.resources.clone()))
            }
            _ => None,
        })
        .collect();
    scene.said.clear();
    sent
}

#[test]
fn of_variants_a_task_gets_what_is_free_first() {
    let mut scene = Scene::empty();
    scene.join(1, with_gpus(2, 1));
    scene.driver(1);
    let tasks: Vec<TaskId> = (0..3).map(|_| submit(&mut scene, variants)).collect();
    let sent = asked(&mut scene);
    assert_eq!(sent, [(tasks[0], with_gpus(0, 1)), (tasks[1], Resources::cpus(2))]);
    let first = Assigned {
        node: node(1),
        task: tasks[0],
        attempt: cluster_types::Attempt { term: 1, n: 1 },
        lease: None,
    };
    scene.done(&first, inline(b"x"));
    assert_eq!(asked(&mut scene), [(tasks[2], with_gpus(0, 1))]);
}

#[test]
fn a_variant_is_chosen_anew_at_each_try_and_one_that_is_impossible_does_not_matter() {
    let mut scene = Scene::with(HeadConfig { closed: true, ..HeadConfig::default() });
    scene.join(1, Resources::cpus(2));
    scene.join(2, with_gpus(0, 1));
    scene.driver(1);
    let task = submit(&mut scene, variants);
    let other = submit(&mut scene, variants);
    let places: Vec<Assigned> = scene.assigned();
    assert_eq!(places.len(), 2);
    scene.disconnect(2);
    let lost = if places[0].node.0 == 2 { task } else { other };
    let kept = places.iter().find(|sent| sent.node.0 == 1).cloned().unwrap();
    scene.done(&kept, inline(b"x"));
    let again = scene.assigned_one();
    assert_eq!((again.task, again.node.0), (lost, 1), "the GPU is gone, the cores do as well");
    let never = submit(&mut scene, |template| {
        template.resources = with_gpus(0, 4);
        template.variants = vec![Resources::cpus(8)];
    });
    let message = scene.failed_with(1, never).message;
    assert!(message.contains("4 GPU") && message.contains(", or 8 CPU"), "{message}");
}

#[test]
fn what_raised_pauses_before_its_next_try_and_what_was_lost_does_not() {
    let backoff = Backoff { first_ms: 1_000, growth: 200, most_ms: 60_000 };
    let mut scene = Scene::cluster(&[1]);
    let task = submit(&mut scene, |template| template.backoff = backoff);
    let first = scene.assigned_one();
    scene.ended(&first, failed(FailureKind::ExecutorDied), Retry::Infrastructure, None);
    let second = scene.assigned_one();
    scene.ended(&second, failed(FailureKind::Exception), Retry::Exception, None);
    assert!(scene.assigned().is_empty());
    let Ok(QueryReply::Why(why)) = scene.head.answer(&Query::Why { task: task.to_string() }) else {
        panic!()
    };
    assert!(
        why.reason.contains("is tried again in") && why.reason.contains("retry 2 of 3"),
        "{}",
        why.reason
    );
    scene.pass(Span::secs(3));
    let third = scene.assigned_one();
    assert_eq!((third.task, third.attempt.n), (task, 3));
    scene.ended(&third, failed(FailureKind::Exception), Retry::Exception, None);
    scene.tell(1, NodeToHead::ClientGone { client: DRIVER });
    scene.pass(Span::secs(10));
    assert!(scene.assigned().is_empty(), "nobody wants it any more");
}

#[test]
fn what_had_no_room_is_tried_again_after_a_pause_as_often_as_it_takes() {
    let mut scene = Scene::cluster(&[1]);
    let task = submit(&mut scene, |template| template.max_retries = 1);
    for _ in 0..5 {
        let assigned = scene.assigned_one();
        scene.ended(&assigned, failed(FailureKind::OutOfMemory), Retry::NoRoom, None);
        assert!(scene.assigned().is_empty(), "memory is not back at once");
        scene.pass(Span::secs(2));
    }
    let assigned = scene.assigned_one();
    scene.ended(&assigned, failed(FailureKind::OutOfMemory), Retry::Infrastructure, None);
    let last = scene.assigned_one();
    scene.ended(&last, failed(FailureKind::OutOfMemory), Retry::Infrastructure, None);
    assert_eq!(scene.failed_with(1, task).kind, FailureKind::OutOfMemory);

    let never = submit(&mut scene, |template| template.max_retries = 0);
    let assigned = scene.assigned_one();
    scene.ended(&assigned, failed(FailureKind::OutOfMemory), Retry::NoRoom, None);
    assert_eq!(scene.failed_with(1, never).kind, FailureKind::OutOfMemory);
}
