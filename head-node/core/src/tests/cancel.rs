//! Tasks that somebody wants to end.

use cluster_types::client_node::Cancellation;
use cluster_types::node_head::Retry;
use cluster_types::{FailureKind, HeadToNode, NodeToHead, ObjectId, Resources, TaskId};

use super::scene::*;

fn cancel(scene: &mut Scene, object: ObjectId, recursive: bool) {
    let what = Cancellation { object, force: false, recursive, reason: "by the driver".to_owned() };
    scene.tell(1, NodeToHead::Cancel { client: DRIVER, what });
}

fn cancelled(scene: &mut Scene, n: u64) -> Vec<TaskId> {
    let heard = scene.heard(n);
    let cancels = heard.iter().filter_map(|message| match message {
        HeadToNode::Cancel { task, force: false, reason, .. } if reason == "by the driver" => Some(*task),
        _ => None,
    });
    cancels.collect()
}

#[test]
fn a_queued_task_never_starts_and_who_needs_it_is_told() {
    let mut scene = Scene::cluster(&[1]);
    scene.submit(&[]);
    let running = scene.assigned_one();
    let queued = scene.submit_as(1, DRIVER, Resources::cpus(1), &[]);
    let ahead = scene.assigned();
    let waiting = scene.submit(&[queued.result(0)]);
    cancel(&mut scene, queued.result(0), true);
    // It may have been sent ahead: then its node says so.
    for ahead in &ahead {
        scene.ended(ahead, failed(FailureKind::Cancelled), Retry::No, None);
    }
    let failure = scene.failed_with(1, waiting);
    assert_eq!(failure.kind, FailureKind::Cancelled);
    scene.done(&running, inline(b"1"));
    assert!(scene.assigned().is_empty());
}

#[test]
fn a_waiting_task_ends_at_once_with_the_reason() {
    let mut scene = Scene::cluster(&[1]);
    let first = scene.submit(&[]);
    let waiting = scene.submit(&[first.result(0)]);
    cancel(&mut scene, waiting.result(0), true);
    let failure = scene.failed_with(1, waiting);
    assert!(failure.message.ends_with("was cancelled: by the driver"), "{}", failure.message);
}

#[test]
fn a_running_task_is_cancelled_where_it_runs_and_not_tried_again() {
    let mut scene = Scene::cluster(&[1]);
    let task = scene.submit(&[]);
    let running = scene.assigned_one();
    cancel(&mut scene, task.result(0), true);
    assert_eq!(cancelled(&mut scene, 1), [task]);
    scene.ended(&running, failed(FailureKind::ExecutorDied), Retry::Infrastructure, None);
    assert!(scene.finished(1, task).is_some());
    assert!(scene.assigned().is_empty());
}

#[test]
fn one_whose_node_is_lost_before_it_answers_says_who_cancelled_it() {
    let mut scene = Scene::cluster(&[1, 1]);
    scene.submit(&[]);
    scene.submit(&[]);
    let task = scene.assigned().iter().find(|there| there.node == node(2)).map(|there| there.task).unwrap();
    cancel(&mut scene, task.result(0), true);
    scene.disconnect(2);
    let failure = scene.failed_with(1, task);
    assert_eq!(failure.kind, FailureKind::Cancelled);
    assert!(failure.message.ends_with("was cancelled: by the driver"), "{}", failure.message);
}

#[test]
fn children_follow_if_asked() {
    for recursive in [true, false] {
        let mut scene = Scene::cluster(&[4]);
        let parent = scene.submit(&[]);
        let running = scene.assigned_one();
        let executor = scene.executor(1, 50);
        let template = scene.template("f", Resources::cpus(1));
        let mut spec = scene.spec(executor, template, &[]);
        spec.parent = Some(parent);
        let child = spec.id;
        scene.tell(1, NodeToHead::Submit(spec));
        scene.assigned_one();
        cancel(&mut scene, parent.result(0), recursive);
        let mut told = cancelled(&mut scene, 1);
        told.sort_unstable();
        let mut wanted = if recursive { vec![parent, child] } else { vec![parent] };
        wanted.sort_unstable();
        assert_eq!(told, wanted);
        scene.ended(&running, failed(FailureKind::Cancelled), Retry::No, None);
    }
}

#[test]
fn what_has_ended_or_was_put_stays_as_it_is() {
    let mut scene = Scene::cluster(&[1]);
    let task = scene.submit(&[]);
    let running = scene.assigned_one();
    scene.done(&running, inline(b"1"));
    scene.said.clear();
    cancel(&mut scene, task.result(0), true);
    cancel(&mut scene, function(), true);
    cancel(&mut scene, TaskId { client: DRIVER, seq: 12_345 }.result(0), true);
    assert_eq!(scene.said, []);
}
