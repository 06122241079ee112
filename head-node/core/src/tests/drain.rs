//! Nodes that are to leave.

use cluster_types::node_head::Retry;
use cluster_types::query::{Query, QueryReply};
use cluster_types::{FailureKind, HeadToNode, Located, NodeToHead, ObjectId, Resources, Span, TaskTemplate};

use super::scene::*;
use crate::Event;
use crate::event::Effect;

fn has_left(scene: &Scene, n: u64) -> bool {
    !scene.head.nodes.iter().any(|(_, known)| known.id == node(n))
}

/// Objects that a node is to copy.
fn copies(scene: &mut Scene, n: u64) -> Vec<ObjectId> {
    let of = |message| match message {
        HeadToNode::Copy { object, .. } => Some(object),
        _ => None,
    };
    scene.heard(n).into_iter().filter_map(of).collect()
}

fn drain(scene: &mut Scene, n: u64, deadline: Span) {
    scene.tell(n, NodeToHead::Drain { deadline_ms: deadline.0 / 1000 });
}

#[test]
fn nothing_new_starts_and_what_runs_may_end() {
    let mut scene = Scene::cluster(&[1, 1]);
    scene.submit(&[]);
    scene.submit(&[]);
    let assigned = scene.assigned();
    let there = assigned.iter().find(|one| one.node == node(2)).expect("one of them is on node 2").clone();
    assert_eq!(assigned.len(), 2);
    drain(&mut scene, 2, Span::secs(60));
    scene.submit(&[]);
    scene.pass(Span::secs(3));
    assert!(scene.assigned().iter().all(|one| one.node == node(1)));
    assert!(!has_left(&scene, 2));
    scene.done(&there, inline(b"1"));
    scene.pass(Span::millis(200));
    let moved = copies(&mut scene, 1);
    assert_eq!(moved, [there.task.result(0)], "the home of a small value leaves: another keeps it");
    scene.tell(1, NodeToHead::CopyAdded(there.task.result(0)));
    scene.pass(Span::secs(2));
    assert!(has_left(&scene, 2));
}

#[test]
fn what_still_runs_at_the_deadline_is_tried_again_elsewhere_and_not_counted() {
    let mut scene = Scene::cluster(&[1, 1]);
    // One for each node.
    let tasks = [(); 2].map(|()| {
        let plain = scene.template("f", Resources::cpus(1));
        let template = TaskTemplate { max_retries: 1, ..(*plain).clone() };
        let spec = scene.spec(DRIVER, template.into(), &[]);
        scene.tell(1, NodeToHead::Submit(spec.clone()));
        spec.id
    });
    let assigned = scene.assigned();
    assert_eq!(assigned.len(), tasks.len());
    let on = |n| assigned.iter().find(|one| one.node == node(n)).unwrap();
    let there = on(2).task;
    drain(&mut scene, 2, Span::secs(2));
    scene.pass(Span::secs(3));
    assert!(has_left(&scene, 2));
    scene.done(on(1), inline(b"1"));
    let again = scene.assigned_one();
    assert_eq!(again.task, there);
    // Its one retry is still there.
    scene.ended(&again, failed(FailureKind::ExecutorDied), Retry::Infrastructure, None);
    assert_eq!(scene.assigned_one().task, there);
}

#[test]
fn the_only_copies_move_before_the_node_leaves() {
    let mut scene = Scene::cluster(&[1, 1]);
    let executor = scene.executor(2, 5);
    let (only, shared) = (ObjectId::put(executor, 1), ObjectId::put(executor, 2));
    for object in [only, shared] {
        scene.escape(2, object, &[]);
        scene.hold(1, DRIVER, object);
    }
    scene.tell(1, NodeToHead::CopyAdded(shared));
    drain(&mut scene, 2, Span::secs(60));
    scene.pass(Span::millis(200));
    assert_eq!(copies(&mut scene, 1), [only]);
    scene.pass(Span::secs(3));
    assert!(!has_left(&scene, 2), "it waits for the copy");
    scene.tell(1, NodeToHead::CopyAdded(only));
    scene.pass(Span::millis(200));
    assert!(has_left(&scene, 2));
    scene.tell(1, NodeToHead::Locate(only));
    let located = scene.heard(1).into_iter().find_map(|message| match message {
        HeadToNode::Located { located, .. } => Some(located),
        _ => None,
    });
    assert!(!matches!(located, Some(Located::Failed(_)) | None), "{located:?}");
}

#[test]
fn a_copy_that_does_not_come_is_asked_for_again() {
    let mut scene = Scene::cluster(&[1, 1]);
    let executor = scene.executor(2, 5);
    let only = ObjectId::put(executor, 1);
    scene.escape(2, only, &[]);
    scene.hold(1, DRIVER, only);
    drain(&mut scene, 2, Span::secs(60));
    scene.pass(Span::millis(200));
    assert_eq!(copies(&mut scene, 1), [only]);
    scene.pass(Span::secs(11));
    assert_eq!(copies(&mut scene, 1), [only]);
}

#[test]
fn the_node_is_told_that_it_has_left_and_a_driver_keeps_it() {
    let mut scene = Scene::cluster(&[1, 1]);
    drain(&mut scene, 1, Span::secs(5));
    scene.pass(Span::secs(4));
    assert!(!has_left(&scene, 1), "a driver is attached there");
    scene.said.clear();
    scene.pass(Span::secs(2));
    assert!(has_left(&scene, 1));
    let told = scene.said.iter().position(|effect| {
        matches!(effect, Effect::ToNode { node: of, message: HeadToNode::Drained } if *of == node(1))
    });
    let closed = scene
        .said
        .iter()
        .position(|effect| matches!(effect, Effect::CloseNode { node: of, .. } if *of == node(1)));
    assert!(told.is_some() && told < closed);
}

#[test]
fn a_node_is_found_by_its_hostname_or_the_beginning_of_its_id() {
    let mut scene = Scene::cluster(&[1, 1]);
    let ask = |scene: &mut Scene, name: &str| {
        let query = Query::Drain { node: name.to_owned(), deadline_ms: u64::MAX };
        scene.event(Event::Query { number: 7, query });
        scene
            .said
            .iter()
            .rev()
            .find_map(|effect| match effect {
                Effect::Reply { number: 7, reply } => Some(reply.clone()),
                _ => None,
            })
            .unwrap()
    };
    let unknown = ask(&mut scene, "nobody").unwrap_err();
    assert!(unknown.contains("there is no node \"nobody\"; there are: "), "{unknown}");
    assert!(ask(&mut scene, "0").unwrap_err().contains("nodes are called"));
    let Ok(QueryReply::Nodes(views)) = ask(&mut scene, &node(2).to_string()) else { panic!() };
    assert!(views[0].draining.is_some());
}

#[test]
fn an_actor_is_asked_to_move_and_its_move_is_no_restart() {
    // Two have room for it, and a third node that stays has none.
    let mut scene = Scene::cluster(&[0, 1, 1]);
    let plain = scene.template("Counter", Resources::cpus(1));
    let traits = cluster_types::ActorTraits::default();
    let kind = cluster_types::TaskKind::Actor(traits.into());
    let template = TaskTemplate { kind, max_retries: 0, ..(*plain).clone() };
    let spec = scene.spec(DRIVER, template.into(), &[]);
    scene.tell(1, NodeToHead::Submit(spec));
    let actor = scene.assigned_one();
    scene.done(&actor, inline(b"handle"));
    let (here, there) = if actor.node == node(2) { (2, 3) } else { (3, 2) };
    let executor = scene.executor(here, 5);
    let query = |n: u32| Query::MoveActor {
        actor: actor.task.result(0).to_string(),
        attempt: (actor.attempt.term, n),
    };
    let ask = |scene: &mut Scene, n: u32| {
        scene.said.clear();
        scene.tell(here, NodeToHead::Query { client: executor, number: 1, query: query(n) });
        let heard = scene.heard(here);
        let refused = heard.iter().any(|message| matches!(message, HeadToNode::Reply { reply: Err(_), .. }));
        let ended = heard.iter().any(|message| matches!(message, HeadToNode::EndActor { force: true, .. }));
        (refused, ended)
    };
    assert_eq!(ask(&mut scene, actor.attempt.n), (true, false), "its node is not to leave");
    scene.said.clear();
    drain(&mut scene, here, Span::secs(60));
    scene.pass(Span::secs(3));
    let asked =
        |message: &HeadToNode| matches!(message, HeadToNode::MoveActor { task, .. } if *task == actor.task);
    assert_eq!(scene.heard(here).into_iter().filter(asked).count(), 1);
    assert_eq!(ask(&mut scene, actor.attempt.n + 1), (true, false), "FENCE-1");
    assert_eq!(ask(&mut scene, actor.attempt.n), (false, true));
    scene.said.clear();
    scene.ended(&actor, failed(FailureKind::ActorDied), Retry::No, None);
    let again = scene.assigned_one();
    assert_eq!((again.task, again.node), (actor.task, node(there)));
    scene.done(&again, inline(b"handle"));
    // Now nothing else could hold it: it stays as long as it may.
    scene.said.clear();
    drain(&mut scene, there, Span::secs(60));
    scene.pass(Span::secs(3));
    assert_eq!(scene.heard(there).into_iter().filter(asked).count(), 0);
}
