//! A task's way, retries, losses, and messages that cross each other.

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::{FailureKind, HeadToNode, NodeToHead, ResultValue};

use super::scene::*;

#[test]
fn a_task_is_submitted_assigned_done_and_finished() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit(&[]);
    let assigned = scene.assigned_one();
    assert_eq!((assigned.node, assigned.task), (node(1), task));
    assert!(assigned.lease.is_some());
    scene.done(&assigned, inline(b"42"));
    let outcome = scene.finished(1, task);
    assert_eq!(outcome, Some(FinishedOutcome::Ok(vec![ResultValue::Inline("42".into())])));
}

#[test]
fn a_job_is_told_before_its_first_task_and_only_once() {
    let mut scene = Scene::cluster(&[2]);
    scene.submit(&[]);
    scene.submit(&[]);
    let heard = scene.heard(1);
    assert!(matches!(heard[0], HeadToNode::Job { .. }));
    assert_eq!(heard.iter().filter(|message| matches!(message, HeadToNode::Job { .. })).count(), 1);
}

#[test]
fn a_repeated_submit_changes_nothing() {
    let mut scene = Scene::cluster(&[2]);
    let template = scene.template("f", cluster_types::Resources::cpus(1));
    let spec = scene.spec(DRIVER, template, &[]);
    scene.tell(1, NodeToHead::Submit(spec.clone()));
    scene.tell(1, NodeToHead::Submit(spec.clone()));
    let assigned = scene.assigned_one();
    scene.done(&assigned, inline(b"1"));
    scene.said.clear();
    scene.tell(1, NodeToHead::Submit(spec));
    assert_eq!(scene.said, []);
}

#[test]
fn a_stale_report_changes_nothing() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit(&[]);
    let first = scene.assigned_one();
    scene.ended(&first, failed(FailureKind::ExecutorDied), Retry::Infrastructure, None);
    let second = scene.assigned_one();
    assert_eq!(second.attempt.n, 2);
    scene.done(&first, inline(b"stale"));
    assert_eq!(scene.finished(1, task), None);
    scene.done(&second, inline(b"good"));
    assert!(matches!(scene.finished(1, task), Some(FinishedOutcome::Ok(_))));
}
