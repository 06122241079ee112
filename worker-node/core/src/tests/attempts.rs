//! An attempt's life: leases, inheritance, prefetch, call-back, revocation, cancellation (rules S2, S3, S4).

use cluster_types::client_node::PutValue;
use cluster_types::{ClientToNode, FailureKind, HeadToNode, Lease, NodeToHead, Outcome};

use super::scene::*;
use crate::{Effect, Event};

#[test]
fn a_leased_task_runs_and_its_end_is_told_once() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    assert_eq!(run.spec.id, task(1));
    scene.returns(executor, run.tag);
    assert_eq!(scene.done(), [(task(1), true, None)]);
    scene.returns(executor, run.tag);
    assert_eq!(scene.done(), []);
}

#[test]
fn what_was_sent_ahead_starts_only_in_an_inherited_lease() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    scene.assign(2, false, &[]);
    assert_eq!(scene.runs(executor), []);
    scene.returns(executor, run.tag);
    assert_eq!(scene.done(), [(task(1), true, Some(task(2)))]);
    assert_eq!(scene.run(executor).spec.id, task(2));
}

#[test]
fn what_was_sent_ahead_starts_when_it_is_granted_a_lease() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    scene.assign(2, false, &[]);
    scene.head(HeadToNode::Grant { task: task(2), attempt: attempt(1), lease: Lease::default() });
    let other = scene.executor();
    assert_eq!(scene.run(other).spec.id, task(2));
    scene.returns(executor, run.tag);
    assert_eq!(scene.done(), [(task(1), true, None)]);
}

#[test]
fn a_short_function_is_queued_behind_itself() {
    let mut scene = Scene::new();
    let executor = scene.f_is_short();
    scene.assign(1, true, &[]);
    scene.assign(2, false, &[]);
    let runs = scene.runs(executor);
    assert_eq!(runs.iter().map(|run| run.spec.id).collect::<Vec<_>>(), [task(1), task(2)]);
    scene.returns(executor, runs[0].tag);
    assert_eq!(scene.done(), [(task(1), true, Some(task(2)))]);
    scene.returns(executor, runs[1].tag);
    assert_eq!(scene.done(), [(task(2), true, None)]);
}

#[test]
fn a_task_called_back_is_returned_when_no_executor_can_have_it() {
    let mut scene = Scene::new();
    let executor = scene.f_is_short();
    scene.assign(1, true, &[]);
    scene.assign(2, false, &[]);
    let tag = scene.runs(executor)[1].tag;
    scene.head(HeadToNode::CallBack(vec![(task(2), attempt(1))]));
    assert_eq!(scene.told_head(), []);
    assert!(matches!(scene.todo()[..], [Effect::Revoke { tag: of, .. }] if of == tag));
    scene.event(Event::Revoked { executor: 1, tag, won: true });
    assert_eq!(scene.told_head(), [NodeToHead::Returned(vec![(task(2), attempt(1))])]);
}

#[test]
fn a_task_called_back_too_late_runs_on() {
    let mut scene = Scene::new();
    let executor = scene.f_is_short();
    scene.assign(1, true, &[]);
    scene.assign(2, false, &[]);
    let runs = scene.runs(executor);
    scene.head(HeadToNode::CallBack(vec![(task(2), attempt(1))]));
    scene.returns(executor, runs[0].tag);
    assert_eq!(scene.done(), [], "nobody knows yet who inherits");
    scene.event(Event::Revoked { executor: 1, tag: runs[1].tag, won: false });
    assert_eq!(scene.done(), [(task(1), true, Some(task(2)))]);
}

#[test]
fn an_executor_that_speaks_of_a_task_has_claimed_it() {
    let mut scene = Scene::new();
    let executor = scene.f_is_short();
    scene.assign(2, false, &[]);
    scene.assign(3, false, &[]);
    scene.assign(1, true, &[]);
    let runs = scene.runs(executor);
    scene.head(HeadToNode::CallBack(vec![(task(2), attempt(1))]));
    scene.returns(executor, runs[0].tag);
    // It skipped the second, which was taken back, before the node learns so.
    scene.returns(executor, runs[2].tag);
    assert_eq!(scene.done(), [(task(1), true, Some(task(3))), (task(3), true, None)][..1]);
    scene.event(Event::Revoked { executor: 1, tag: runs[1].tag, won: true });
    let told = scene.told_head();
    assert!(told.contains(&NodeToHead::Returned(vec![(task(2), attempt(1))])), "{told:?}");
    assert!(
        told.iter().any(|message| matches!(message, NodeToHead::Done { task: of, .. } if *of == task(3)))
    );
}

#[test]
fn a_task_that_waits_hands_back_what_is_queued_behind_it() {
    let mut scene = Scene::new();
    let executor = scene.f_is_short();
    scene.assign(1, true, &[]);
    scene.assign(2, false, &[]);
    let runs = scene.runs(executor);
    scene.says(executor, ClientToNode::Blocked { tag: runs[0].tag, on: vec![] });
    assert!(matches!(scene.todo()[..], [Effect::Revoke { tag, .. }] if tag == runs[1].tag));
    assert!(matches!(scene.told_head()[..], [NodeToHead::Blocked { .. }]));
}

#[test]
fn no_lease_is_passed_on_while_more_runs_than_there_are_cores_for() {
    let mut scene = Scene::new();
    let (first, waits) = scene.running(1);
    scene.says(first, ClientToNode::Blocked { tag: waits.tag, on: vec![] });
    let (second, two) = scene.running(2);
    let (_third, _) = scene.running(3);
    scene.says(first, ClientToNode::Unblocked { tag: waits.tag });
    scene.assign(4, false, &[]);
    scene.told_head();
    scene.returns(second, two.tag);
    assert_eq!(scene.done(), [(task(2), true, None)], "three ran on two cores");
    scene.returns(first, waits.tag);
    assert_eq!(scene.done(), [(task(1), true, Some(task(4)))]);
}

#[test]
fn a_cancelled_task_that_has_not_started_ends_at_once() {
    let mut scene = Scene::new();
    let (executor, _) = scene.running(1);
    scene.assign(2, false, &[]);
    let reason = "asked to".to_owned();
    scene.head(HeadToNode::Cancel { task: task(2), attempt: attempt(1), reason, force: false });
    let told = scene.told_head();
    let Some(NodeToHead::Done { outcome: Outcome::Failed(failure), .. }) = told.last() else {
        panic!("{told:?}")
    };
    assert_eq!(failure.kind, FailureKind::Cancelled);
    assert_eq!(scene.runs(executor), []);
}

#[test]
fn a_cancelled_task_that_runs_is_interrupted_or_killed() {
    for force in [false, true] {
        let mut scene = Scene::new();
        let (_, run) = scene.running(1);
        let reason = "asked to".to_owned();
        scene.head(HeadToNode::Cancel { task: task(1), attempt: attempt(1), reason, force });
        let expected = match force {
            true => Effect::EndExecutor { executor: 1, force: true },
            false => Effect::Interrupt { executor: 1, tag: run.tag },
        };
        assert_eq!(scene.todo(), [expected]);
    }
}

#[test]
fn messages_about_another_attempt_change_nothing() {
    let mut scene = Scene::new();
    scene.assign(1, false, &[]);
    scene.said.clear();
    let (task, old) = (task(1), attempt(9));
    scene.head(HeadToNode::Grant { task, attempt: old, lease: Lease::default() });
    scene.head(HeadToNode::CallBack(vec![(task, old)]));
    scene.head(HeadToNode::Cancel { task, attempt: old, reason: String::new(), force: true });
    assert_eq!(scene.said, []);
}

#[test]
fn a_wrong_number_of_results_is_a_failure_and_their_ranges_are_free() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    let (segment, _) = scene.lease(executor, MIB);
    let result = cluster_types::client_node::ExecutorResult {
        value: PutValue::Stored(at(segment, 0, 4096)),
        contains: Default::default(),
    };
    let other = cluster_types::client_node::ExecutorResult {
        value: PutValue::Stored(at(segment, 4096, 4096)),
        contains: Default::default(),
    };
    let completion =
        cluster_types::client_node::Completion { tag: run.tag, result: Ok(vec![result, other]), micros: 1 };
    scene.says(executor, ClientToNode::Completed(completion));
    assert_eq!(scene.done(), [(task(1), false, None)]);
    let freed = cluster_types::NodeToClient::RangesFreed(vec![at(segment, 0, 4096), at(segment, 4096, 4096)]);
    assert!(scene.told(executor).contains(&freed));
}
