//! Tasks that yield: items are known once and in order, whatever happens to the attempts that make them.

use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::query::{Query, QueryReply};
use cluster_types::{
    ClientKind, FailureKind, HeadToNode, Located, NodeToHead, ObjectId, Outcome, Resources, ResultValue,
    StreamLimits, TaskId, TaskResult, TaskTemplate,
};

use super::scene::*;
use crate::event::Effect;

/// The driver on node 1 submits a task that yields.
fn stream(scene: &mut Scene, cores: i64) -> TaskId {
    let plain = scene.template("g", Resources::cpus(cores));
    let limits = StreamLimits { max_items: 2, max_bytes: 0 };
    let template = Arc::new(TaskTemplate { stream: Some(limits), ..(*plain).clone() });
    let spec = scene.spec(DRIVER, template, &[]);
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    id
}

fn yields(scene: &mut Scene, by: &Assigned, index: u32, item: TaskResult) {
    let (task, attempt) = (by.task, by.attempt);
    scene.tell(by.node.0, NodeToHead::Yielded { task, attempt, index, item });
}

/// The items that node `n` was told of since the last look, and whether the end came.
fn items(scene: &mut Scene, n: u64) -> (Vec<u32>, Option<bool>) {
    let (mut items, mut end) = (Vec::new(), None);
    for message in scene.heard(n) {
        match message {
            HeadToNode::Item { index, .. } => {
                assert_eq!(end, None, "an item after the end");
                items.push(index);
            }
            HeadToNode::Finished { outcome, .. } => end = Some(matches!(outcome, FinishedOutcome::Ok(_))),
            _ => {}
        }
    }
    (items, end)
}

fn taken(scene: &mut Scene, n: u64) -> Vec<(u32, bool)> {
    let of = |message| match message {
        HeadToNode::Taken { items, closed, .. } => Some((items, closed)),
        _ => None,
    };
    scene.heard(n).into_iter().filter_map(of).collect()
}

fn located(scene: &mut Scene, n: u64, object: ObjectId) -> Option<Located> {
    scene.tell(n, NodeToHead::Locate(object));
    found(scene, n)
}

fn found(scene: &mut Scene, n: u64) -> Option<Located> {
    scene.heard(n).into_iter().find_map(|message| match message {
        HeadToNode::Located { located, .. } => Some(located),
        _ => None,
    })
}

fn dies(scene: &mut Scene, by: &Assigned) {
    scene.ended(by, failed(FailureKind::ExecutorDied), Retry::Infrastructure, None);
}

#[test]
fn items_are_told_as_they_come_and_the_end_after_them() {
    let mut scene = Scene::cluster(&[1]);
    let task = stream(&mut scene, 1);
    let by = scene.assigned_one();
    yields(&mut scene, &by, 0, inline(b"a"));
    assert_eq!(items(&mut scene, 1), (vec![0], None));
    yields(&mut scene, &by, 1, stored(1 << 20));
    scene.done(&by, inline(b"end"));
    assert_eq!(items(&mut scene, 1), (vec![1], Some(true)));
    assert!(matches!(located(&mut scene, 1, task.item(1)), Some(Located::Stored { .. })));
    // The submitter holds each until it drops it (rule R2).
    scene.drop_hold(1, DRIVER, task.item(0));
    assert_eq!(scene.freed(1), [task.item(0)]);
}

#[test]
fn an_attempt_that_is_tried_again_tells_only_what_is_new() {
    let mut scene = Scene::cluster(&[1]);
    let task = stream(&mut scene, 1);
    let first = scene.assigned_one();
    yields(&mut scene, &first, 0, inline(b"a"));
    yields(&mut scene, &first, 1, inline(b"b"));
    scene.drop_hold(1, DRIVER, task.item(0));
    items(&mut scene, 1);
    dies(&mut scene, &first);
    // It need not be waited for what is there already.
    let told: Vec<_> = scene.said.clone();
    let second = scene.assigned_one();
    assert!(told.iter().any(|effect| matches!(
        effect,
        crate::Effect::ToNode { message: HeadToNode::Taken { items: 2, closed: false, .. }, .. }
    )));
    yields(&mut scene, &second, 0, inline(b"a"));
    assert_eq!(scene.freed(1), [task.item(0)], "it was taken and dropped: nobody wants it again");
    yields(&mut scene, &second, 1, inline(b"b"));
    yields(&mut scene, &second, 2, inline(b"c"));
    // TASK-2: what the first attempt says now counts no more.
    yields(&mut scene, &first, 3, inline(b"x"));
    scene.done(&second, inline(b"end"));
    assert_eq!(items(&mut scene, 1), (vec![2], Some(true)));
}

#[test]
fn an_item_lost_with_its_node_is_made_again_by_the_retry() {
    let mut scene = Scene::cluster(&[1, 2]);
    let task = stream(&mut scene, 2);
    let first = scene.assigned_one();
    assert_eq!(first.node, node(2));
    for index in 0..3 {
        yields(&mut scene, &first, index, stored(1 << 20));
    }
    assert_eq!(items(&mut scene, 1).0, [0, 1, 2]);
    scene.drop_hold(1, DRIVER, task.item(2));
    scene.disconnect(2);
    assert_eq!(located(&mut scene, 1, task.item(0)), None, "it will come again");
    scene.join(3, Resources::cpus(2));
    let second = scene.assigned_one();
    yields(&mut scene, &second, 0, stored(1 << 20));
    assert!(matches!(found(&mut scene, 1), Some(Located::Stored { .. })));
    yields(&mut scene, &second, 1, stored(1 << 20));
    yields(&mut scene, &second, 2, stored(1 << 20));
    assert_eq!(scene.freed(3), [task.item(2)]);
    scene.done(&second, inline(b"end"));
    assert!(matches!(located(&mut scene, 1, task.item(1)), Some(Located::Stored { .. })));
    scene.drop_hold(1, DRIVER, task.item(1));
    assert_eq!(scene.freed(3), [task.item(1)]);
}

#[test]
fn what_a_retry_makes_elsewhere_is_no_copy_of_the_first() {
    let mut scene = Scene::cluster(&[1, 2, 2]);
    let task = stream(&mut scene, 2);
    let first = scene.assigned_one();
    yields(&mut scene, &first, 0, stored(1 << 20));
    let blocker = scene.submit_as(1, DRIVER, Resources::cpus(2), &[]);
    scene.ended(&first, failed(FailureKind::ExecutorDied), Retry::Infrastructure, None);
    let assigned = scene.assigned();
    let second = assigned.iter().rfind(|assigned| assigned.task == task).expect("it is tried again").clone();
    yields(&mut scene, &second, 0, stored(77));
    let sources = match located(&mut scene, 1, task.item(0)) {
        Some(Located::Stored { size, copies }) => (size, copies.len(), copies[0].0),
        other => panic!("{other:?}"),
    };
    assert_eq!(sources, (1 << 20, 1, first.node));
    let freed = scene.freed(second.node.0);
    assert_eq!(freed.contains(&task.item(0)), second.node != first.node, "{blocker}");
}

#[test]
fn an_item_that_the_retry_did_not_make_again_is_lost_when_it_ends() {
    let mut scene = Scene::cluster(&[1, 2]);
    let task = stream(&mut scene, 2);
    let first = scene.assigned_one();
    yields(&mut scene, &first, 0, stored(1 << 20));
    scene.disconnect(2);
    assert_eq!(located(&mut scene, 1, task.item(0)), None);
    scene.join(3, Resources::cpus(2));
    let second = scene.assigned_one();
    scene.done(&second, inline(b"end"));
    let Some(Located::Failed(failure)) = found(&mut scene, 1) else { panic!("nobody was told") };
    assert_eq!(failure.kind, FailureKind::ObjectLost);
}

#[test]
fn a_failure_stands_behind_the_items_that_came_before_it() {
    let mut scene = Scene::cluster(&[1]);
    let task = stream(&mut scene, 1);
    let by = scene.assigned_one();
    yields(&mut scene, &by, 0, inline(b"a"));
    scene.ended(&by, failed(FailureKind::Exception), Retry::No, None);
    assert_eq!(items(&mut scene, 1), (vec![0], Some(false)));
    assert!(matches!(located(&mut scene, 1, task.item(0)), Some(Located::Inline(_))));
    // The submitter holds it, and passes it on like any other.
    assert!(matches!(located(&mut scene, 1, task.item(1)), Some(Located::Failed(_))));
    scene.drop_hold(1, DRIVER, task.item(1));
    let Some(Located::Failed(failure)) = located(&mut scene, 1, task.item(1)) else { panic!() };
    assert_eq!(failure.kind, FailureKind::ObjectFreed);
}

#[test]
fn what_is_taken_is_passed_on_and_of_a_closed_stream_nothing_is_kept() {
    let mut scene = Scene::cluster(&[1]);
    let task = stream(&mut scene, 1);
    let by = scene.assigned_one();
    yields(&mut scene, &by, 0, inline(b"a"));
    // More than there is cannot have been taken.
    scene.tell(1, NodeToHead::Taken { task, items: 9, closed: false });
    assert_eq!(taken(&mut scene, 1), [(1, false)]);
    scene.tell(1, NodeToHead::Taken { task, items: 0, closed: true });
    assert_eq!(taken(&mut scene, 1), [(1, true)]);
    yields(&mut scene, &by, 1, inline(b"b"));
    assert_eq!(scene.freed(1), [task.item(1)]);
    scene.done(&by, inline(b"end"));
    assert_eq!(items(&mut scene, 1), (vec![], Some(true)));
}

#[test]
fn a_stream_whose_reader_is_gone_is_closed_even_if_its_end_is_awaited() {
    let mut scene = Scene::cluster(&[1]);
    let reader = scene.executor(1, 50);
    let plain = scene.template("g", Resources::cpus(1));
    let template = Arc::new(TaskTemplate { stream: Some(StreamLimits::default()), ..(*plain).clone() });
    let spec = scene.spec(reader, template, &[]);
    let task = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    let by = scene.assigned_one();
    scene.hold(1, DRIVER, task.result(0));
    yields(&mut scene, &by, 0, inline(b"a"));
    scene.said.clear();
    scene.tell(1, NodeToHead::ClientGone { client: reader });
    let heard = scene.heard(1);
    assert!(
        heard.iter().any(|message| matches!(message, HeadToNode::Taken { closed: true, .. })),
        "{heard:?}"
    );
    assert!(!heard.iter().any(|message| matches!(message, HeadToNode::Cancel { .. })), "{heard:?}");
    scene.done(&by, inline(b"end"));
    assert!(matches!(located(&mut scene, 1, task.result(0)), Some(Located::Inline(_))));
}

#[test]
fn lies_about_streams_change_nothing() {
    let mut scene = Scene::cluster(&[1, 1]);
    let task = stream(&mut scene, 1);
    let by = scene.assigned_one();
    yields(&mut scene, &by, 7, inline(b"a"));
    assert_eq!(items(&mut scene, 1), (vec![], None), "a hole");
    scene.attach(2, cluster_types::ClientId(99), ClientKind::Executor { executor: 1 });
    scene.tell(2, NodeToHead::Taken { task, items: 1, closed: true });
    assert_eq!(taken(&mut scene, 1), [], "not its submitter's node");
    // A task that does not yield.
    let plain = scene.submit(&[]);
    let other = scene.assigned_one();
    yields(&mut scene, &other, 0, inline(b"a"));
    let outcome = Outcome::Ok([inline(b"1")].into_iter().collect());
    scene.ended(&other, outcome, Retry::No, None);
    assert!(scene.finished(1, plain).is_some());
    // An item nobody yielded.
    let Some(Located::Failed(failure)) = located(&mut scene, 1, task.item(3)) else { panic!() };
    assert!(failure.message.contains("does not exist"), "{}", failure.message);
    assert!(matches!(inline(b"a").value, ResultValue::Inline(_)));
}

#[test]
fn why_a_producer_stands_still_names_its_reader() {
    let mut scene = Scene::cluster(&[1]);
    let task = stream(&mut scene, 1);
    let by = scene.assigned_one();
    let why = |scene: &Scene| match scene.head.answer(&Query::Why { task: task.to_string() }) {
        Ok(QueryReply::Why(why)) => why.reason,
        other => panic!("{other:?}"),
    };
    yields(&mut scene, &by, 0, inline(b"a"));
    assert!(why(&scene).contains("has not ended"), "{}", why(&scene));
    yields(&mut scene, &by, 1, inline(b"b"));
    let told = why(&scene);
    assert!(told.contains(&format!("waits for who reads its items, client {DRIVER}")), "{told}");
    assert!(told.contains("2 are yielded, 2 of them not taken, and it may be 2 ahead"), "{told}");
    scene.tell(1, NodeToHead::Taken { task, items: 1, closed: false });
    assert!(why(&scene).contains("has not ended"), "{}", why(&scene));
}

#[test]
fn items_of_a_stream_that_ended_are_made_again_by_running_it_once_more() {
    let mut scene = Scene::cluster(&[0, 1, 1]);
    let plain = scene.template("g", Resources::cpus(1));
    let limits = StreamLimits { max_items: 1, max_bytes: 0 };
    let template = TaskTemplate { stream: Some(limits), max_retries: 2, ..(*plain).clone() };
    let spec = scene.spec(DRIVER, Arc::new(template), &[]);
    let task = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    let by = scene.assigned_one();
    for index in 0..3 {
        yields(&mut scene, &by, index, stored(1 << 20));
        scene.tell(1, NodeToHead::Taken { task, items: index + 1, closed: false });
    }
    scene.done(&by, inline(b"end"));
    scene.drop_hold(1, DRIVER, task.item(0));
    scene.said.clear();
    scene.disconnect(by.node.0);
    assert_eq!(located(&mut scene, 1, task.item(1)), None, "it will come");
    let there = 5 - by.node.0;
    let told = |effect: &Effect| matches!(effect, Effect::ToNode { node: to, message: HeadToNode::Taken { items: 3, closed: false, .. } } if *to == node(there));
    assert!(scene.said.iter().any(told), "nothing is waited for");
    let again = scene.assigned_one();
    assert_eq!((again.task, again.node), (task, node(there)));
    scene.said.clear();
    yields(&mut scene, &again, 0, stored(1 << 20));
    assert_eq!(scene.freed(again.node.0), [task.item(0)], "nobody has a handle on it");
    yields(&mut scene, &again, 1, stored(1 << 20));
    let heard = scene.heard(1);
    assert!(
        heard
            .iter()
            .any(|message| matches!(message, HeadToNode::Located { object, .. } if *object == task.item(1)))
    );
    assert!(!heard.iter().any(|message| matches!(message, HeadToNode::Item { .. })), "told once");
    // It yields other than before: one too few, whose reader hears of that.
    assert_eq!(located(&mut scene, 1, task.item(2)), None);
    scene.said.clear();
    scene.done(&again, inline(b"end"));
    assert!(
        matches!(found(&mut scene, 1), Some(Located::Failed(failure)) if failure.kind == FailureKind::ObjectLost)
    );
    assert!(scene.finished(1, task).is_none(), "TASK-1");
}

#[test]
fn an_item_that_is_said_to_be_lost_stays_so_when_its_task_runs_once_more() {
    let mut scene = Scene::cluster(&[0, 1]);
    let plain = scene.template("g", Resources::cpus(1));
    let limits = StreamLimits { max_items: 8, max_bytes: 0 };
    let template = TaskTemplate { stream: Some(limits), max_retries: 5, ..(*plain).clone() };
    let spec = scene.spec(DRIVER, Arc::new(template), &[]);
    let task = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    let mut by = scene.assigned_one();
    yields(&mut scene, &by, 0, stored(1 << 20));
    yields(&mut scene, &by, 1, stored(1 << 20));
    scene.done(&by, inline(b"end"));
    // Its node is lost, twice. The second run yields one item less, the third as many as the first.
    for (next, count) in [(3, 1), (4, 2)] {
        scene.disconnect(by.node.0);
        scene.join(next, Resources::cpus(1));
        scene.said.clear();
        assert_eq!(located(&mut scene, 1, task.item(0)), None, "it will come");
        scene.tell(1, NodeToHead::Locate(task.item(1)));
        by = scene.assigned_one();
        scene.said.clear();
        for index in 0..count {
            yields(&mut scene, &by, index, stored(1 << 20));
        }
        scene.done(&by, inline(b"end"));
    }
    assert!(scene.freed(by.node.0).contains(&task.item(1)), "who waited for it was told that it is lost");
}
