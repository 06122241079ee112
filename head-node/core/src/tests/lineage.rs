//! Lost objects are made again.

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::{
    FailureKind, HeadToNode, Located, NodeToHead, ObjectId, Outcome, Refs, Resources, ResultValue, Span,
    TaskResult, TaskTemplate,
};

use super::scene::*;
use crate::HeadConfig;

const LARGE: u64 = 1 << 20;

fn locate(scene: &mut Scene, n: u64, object: ObjectId) -> Option<Located> {
    scene.tell(n, NodeToHead::Locate(object));
    located(scene, n, object)
}

fn located(scene: &mut Scene, n: u64, object: ObjectId) -> Option<Located> {
    scene.heard(n).into_iter().rev().find_map(|message| match message {
        HeadToNode::Located { object: of, located } if of == object => Some(located),
        _ => None,
    })
}

/// A driver's node without cores, and one that runs what it submits, one after the other.
fn two() -> Scene {
    let mut scene = Scene::with(HeadConfig { prefetch_max: 0, ..HeadConfig::default() });
    scene.join(1, Resources::cpus(0));
    scene.join(2, Resources::cpus(1));
    scene.driver(1);
    scene
}

/// Ends a task on node 2 with a large result.
fn made(scene: &mut Scene, deps: &[ObjectId]) -> ObjectId {
    let task = scene.submit(deps);
    let assigned = scene.assigned_one();
    assert_eq!((assigned.task, assigned.node), (task, node(2)));
    scene.done(&assigned, stored(LARGE));
    scene.said.clear();
    task.result(0)
}

#[test]
fn what_was_on_a_lost_node_is_made_again_and_nobody_is_told_twice() {
    let mut scene = two();
    let object = made(&mut scene, &[]);
    scene.disconnect(2);
    scene.join(3, Resources::cpus(1));
    scene.said.clear();
    assert_eq!(locate(&mut scene, 1, object), None, "not yet");
    let again = scene.assigned_one();
    assert_eq!((again.task, again.attempt.n), (object.task().unwrap().0, 2));
    scene.said.clear();
    scene.done(&again, stored(LARGE));
    assert_eq!(scene.finished(1, again.task), None, "TASK-1");
    let heard = located(&mut scene, 1, object);
    assert!(matches!(heard, None | Some(Located::Stored { .. })));
    assert!(matches!(locate(&mut scene, 1, object), Some(Located::Stored { .. })));
}

#[test]
fn what_its_arguments_were_made_of_runs_first_also_if_they_were_freed_since() {
    let mut scene = two();
    let first = made(&mut scene, &[]);
    let second = made(&mut scene, &[first]);
    let third = made(&mut scene, &[second]);
    scene.drop_hold(1, DRIVER, first);
    scene.drop_hold(1, DRIVER, second);
    assert_eq!(scene.freed(2), {
        let mut both = vec![first, second];
        both.sort_unstable();
        both
    });
    scene.disconnect(2);
    scene.join(3, Resources::cpus(1));
    scene.said.clear();
    assert_eq!(locate(&mut scene, 1, third), None);
    for object in [first, second, third] {
        let again = scene.assigned_one();
        assert_eq!(again.task.result(0), object);
        scene.done(&again, stored(LARGE));
    }
    assert!(matches!(locate(&mut scene, 1, third), Some(Located::Stored { .. })));
    scene.drop_hold(1, DRIVER, third);
    // And what was brought back for its sake only, when that had served.
    assert_eq!(scene.freed(3), [second, third]);
}

#[test]
fn a_queued_task_waits_until_its_lost_argument_is_there_again() {
    let mut scene = two();
    let argument = made(&mut scene, &[]);
    let keeps_it_busy = scene.submit(&[]);
    let task = scene.submit(&[argument]);
    assert_eq!(scene.assigned_one().task, keeps_it_busy);
    scene.disconnect(2);
    scene.join(3, Resources::cpus(1));
    let mut ended = None;
    while let [next] = &scene.assigned()[..] {
        let result = if next.task.result(0) == argument { stored(LARGE) } else { inline(b"1") };
        scene.done(next, result);
        ended = ended.or(scene.finished(1, task));
    }
    assert!(matches!(ended, Some(FinishedOutcome::Ok(_))), "{ended:?}");
}

#[test]
fn what_cannot_be_made_again_says_why() {
    let mut scene = two();
    let executor = scene.executor(2, 5);
    let put = ObjectId::put(executor, 1);
    scene.escape(2, put, &[]);
    scene.hold(1, DRIVER, put);
    let template = scene.template("once", Resources::cpus(1));
    let template = TaskTemplate { max_retries: 0, ..(*template).clone() };
    let spec = scene.spec(DRIVER, template.into(), &[]);
    let once = spec.id.result(0);
    scene.tell(1, NodeToHead::Submit(spec));
    let assigned = scene.assigned_one();
    scene.done(&assigned, stored(LARGE));
    scene.disconnect(2);
    for (object, words) in [(put, "was put, not made by a task"), (once, "max_retries=0")] {
        let Some(Located::Failed(failure)) = locate(&mut scene, 1, object) else { panic!("{object}") };
        assert_eq!(failure.kind, FailureKind::ObjectLost);
        assert!(failure.message.contains("its only copy was on node"), "{failure:?}");
        assert!(failure.message.contains(words), "{failure:?}");
    }
}

#[test]
fn retries_are_used_up_by_losses_too() {
    let mut scene = two();
    let object = made(&mut scene, &[]);
    let mut lost = 2;
    for n in 3..6 {
        scene.disconnect(lost);
        scene.join(n, Resources::cpus(1));
        lost = n;
        scene.said.clear();
        assert_eq!(locate(&mut scene, 1, object), None);
        let again = scene.assigned_one();
        scene.done(&again, stored(LARGE));
    }
    scene.disconnect(lost);
    let Some(Located::Failed(failure)) = locate(&mut scene, 1, object) else { panic!() };
    assert!(failure.message.contains("was tried 4 times already"), "{failure:?}");
}

#[test]
fn a_task_that_fails_the_second_time_loses_the_object_with_its_reason() {
    let mut scene = two();
    let object = made(&mut scene, &[]);
    scene.disconnect(2);
    scene.join(3, Resources::cpus(1));
    scene.said.clear();
    locate(&mut scene, 1, object);
    let again = scene.assigned_one();
    scene.ended(&again, failed(FailureKind::Exception), Retry::No, None);
    let Some(Located::Failed(failure)) = locate(&mut scene, 1, object) else { panic!() };
    assert_eq!(failure.kind, FailureKind::ObjectLost);
    assert!(failure.message.contains("could not be made again: because"), "{failure:?}");
}

#[test]
fn a_diamond_is_made_once_each() {
    let mut scene = two();
    let top = made(&mut scene, &[]);
    let sides: Vec<ObjectId> = (0..100).map(|_| made(&mut scene, &[top])).collect();
    let bottom = made(&mut scene, &sides);
    scene.disconnect(2);
    scene.join(3, Resources::cpus(1));
    scene.said.clear();
    locate(&mut scene, 1, bottom);
    let mut ran = Vec::new();
    loop {
        let assigned = scene.assigned();
        if assigned.is_empty() {
            break;
        }
        for one in assigned.into_iter() {
            ran.push(one.task.result(0));
            scene.done(&one, stored(LARGE));
        }
    }
    assert_eq!((ran.first(), ran.last()), (Some(&top), Some(&bottom)));
    assert_eq!(ran.len(), 102);
}

#[test]
fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
    let config = HeadConfig { lineage_budget: 1_000, ..HeadConfig::default() };
    let mut scene = Scene::with(config);
    scene.join(1, Resources::cpus(0));
    scene.driver(1);
    scene.join(2, Resources::cpus(1));
    let objects: Vec<ObjectId> = (0..5).map(|_| made(&mut scene, &[])).collect();
    scene.disconnect(2);
    let first = locate(&mut scene, 1, objects[0]);
    assert!(matches!(first, Some(Located::Failed(_))), "{first:?}");
    assert_eq!(locate(&mut scene, 1, objects[4]), None);
}

#[test]
fn of_several_results_only_the_lost_one_is_replaced() {
    let mut scene = two();
    let template = scene.template("two", Resources::cpus(1));
    let template = TaskTemplate { num_returns: 2, ..(*template).clone() };
    let spec = scene.spec(DRIVER, template.into(), &[]);
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    let assigned = scene.assigned_one();
    let large = || TaskResult { value: ResultValue::Stored { size: LARGE }, contains: Refs::new() };
    let both = || Outcome::Ok([large(), large()].into_iter().collect());
    scene.ended(&assigned, both(), Retry::No, None);
    scene.tell(1, NodeToHead::CopyAdded(id.result(1)));
    scene.disconnect(2);
    scene.join(3, Resources::cpus(1));
    scene.said.clear();
    locate(&mut scene, 1, id.result(0));
    let again = scene.assigned_one();
    scene.said.clear();
    scene.ended(&again, both(), Retry::No, None);
    assert_eq!(scene.freed(3), [id.result(1)], "who knows whether it is the same");
    assert!(matches!(locate(&mut scene, 1, id.result(0)), Some(Located::Stored { .. })));
}

#[test]
fn a_copy_that_is_told_of_while_the_object_is_being_made_again_is_known() {
    let mut scene = two();
    let object = made(&mut scene, &[]);
    scene.disconnect(2);
    scene.join(3, Resources::cpus(1));
    scene.said.clear();
    assert_eq!(locate(&mut scene, 1, object), None);
    let again = scene.assigned_one();
    // Node 1 took it before node 2 was lost.
    scene.tell(1, NodeToHead::CopyAdded(object));
    scene.done(&again, stored(LARGE));
    scene.said.clear();
    scene.drop_hold(1, DRIVER, object);
    scene.pass(Span::millis(1));
    assert_eq!(scene.freed(1), [object], "REF-2");
    assert_eq!(scene.freed(3), [object]);
}

#[test]
fn each_result_that_cannot_be_made_again_says_why() {
    let mut scene = two();
    let executor = scene.executor(2, 5);
    let put = ObjectId::put(executor, 1);
    scene.escape(2, put, &[]);
    scene.hold(1, DRIVER, put);
    let template = scene.template("two", Resources::cpus(1));
    let template = TaskTemplate { num_returns: 2, ..(*template).clone() };
    let spec = scene.spec(DRIVER, template.into(), &[put]);
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    let assigned = scene.assigned_one();
    let large = || TaskResult { value: ResultValue::Stored { size: LARGE }, contains: Refs::new() };
    scene.ended(&assigned, Outcome::Ok([large(), large()].into_iter().collect()), Retry::No, None);
    scene.disconnect(2);
    for object in [id.result(0), id.result(1)] {
        let Some(Located::Failed(failure)) = locate(&mut scene, 1, object) else { panic!("{object}") };
        assert!(failure.message.contains("was put, not made by a task"), "{failure:?}");
    }
}

#[test]
fn a_result_that_was_freed_and_is_asked_for_late_counts_for_nothing() {
    let mut scene = two();
    let template = scene.template("two", Resources::cpus(1));
    let template = TaskTemplate { num_returns: 2, ..(*template).clone() };
    let spec = scene.spec(DRIVER, template.into(), &[]);
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    let assigned = scene.assigned_one();
    let large = || TaskResult { value: ResultValue::Stored { size: LARGE }, contains: Refs::new() };
    scene.ended(&assigned, Outcome::Ok([large(), large()].into_iter().collect()), Retry::No, None);
    scene.disconnect(2);
    scene.drop_hold(1, DRIVER, id.result(1));
    scene.said.clear();
    assert_eq!(locate(&mut scene, 1, id.result(0)), None, "it is to be made again");
    // A node that took it when it was freed asks where else it is.
    let answer = locate(&mut scene, 1, id.result(1));
    assert!(matches!(answer, Some(Located::Failed(failure)) if failure.kind == FailureKind::ObjectFreed));
}
