//! Durable copies: a put is answered, and a task has ended, when they are written; whoever needs one reads it.

use cluster_types::query::{Query, QueryReply};
use cluster_types::{
    ClientToNode, FailureKind, HeadToNode, Located, Location, NodeId, NodeToClient, NodeToHead, ObjectId,
    Outcome,
};

use super::scene::*;
use crate::{Effect, Event};

const ME: NodeId = NodeId(1);

fn durable_put(scene: &mut Scene, n: u64) -> ObjectId {
    let object = put(n);
    scene.put_inline(object, b"x");
    scene.driver_says(ClientToNode::Escape(vec![object]));
    scene.said.clear();
    scene.driver_says(ClientToNode::Query {
        number: n,
        query: Query::MakeDurable { object: object.to_string() },
    });
    object
}

fn replies(scene: &mut Scene) -> Vec<Result<QueryReply, String>> {
    let of = |message| match message {
        NodeToClient::Reply { reply, .. } => Some(reply),
        _ => None,
    };
    scene.told(DRIVER).into_iter().filter_map(of).collect()
}

fn writes(scene: &mut Scene) -> Vec<ObjectId> {
    let of = |effect| match effect {
        Effect::WriteDurable { object } => Some(object),
        _ => None,
    };
    scene.todo().into_iter().filter_map(of).collect()
}

#[test]
fn a_put_is_answered_when_it_is_written() {
    let mut scene = Scene::new();
    let object = durable_put(&mut scene, 9);
    assert_eq!(writes(&mut scene), [object]);
    assert_eq!(replies(&mut scene), []);
    scene.event(Event::DurableWritten { object });
    assert_eq!(replies(&mut scene), [Ok(QueryReply::States(vec![object.to_string()]))]);
    assert_eq!(scene.told_head(), [NodeToHead::Durable { object, writer: ME }]);
}

#[test]
fn a_put_that_cannot_be_written_is_an_error_and_stays_an_object() {
    let mut scene = Scene::new();
    let object = durable_put(&mut scene, 9);
    scene.event(Event::DurableFailed { object, reason: "file:///full: no space".to_owned() });
    let [Err(why)] = &replies(&mut scene)[..] else { panic!("no error") };
    assert!(why.contains("file:///full: no space"), "{why}");
    assert_eq!(scene.told_head(), []);
    scene.driver_says(ClientToNode::Get(vec![object]));
    assert!(!scene.told(DRIVER).is_empty());
}

#[test]
fn what_is_freed_while_it_is_written_is_deleted_then() {
    let mut scene = Scene::new();
    let object = durable_put(&mut scene, 9);
    scene.head(HeadToNode::DeleteDurable { writer: ME, objects: vec![object] });
    assert!(!scene.todo().iter().any(|effect| matches!(effect, Effect::DeleteDurable { .. })));
    scene.event(Event::DurableWritten { object });
    assert!(scene.todo().contains(&Effect::DeleteDurable { object, writer: ME }));
    assert_eq!(scene.told_head(), []);
}

#[test]
fn what_is_durable_is_not_written_twice() {
    let mut scene = Scene::new();
    let object = durable_put(&mut scene, 9);
    scene.event(Event::DurableWritten { object });
    scene.said.clear();
    let query = Query::MakeDurable { object: object.to_string() };
    scene.driver_says(ClientToNode::Query { number: 10, query });
    assert_eq!(writes(&mut scene), []);
    assert_eq!(replies(&mut scene), [Ok(QueryReply::States(vec![object.to_string()]))]);
}

#[test]
fn what_another_node_wrote_before_it_was_lost_is_deleted_by_this_one() {
    let mut scene = Scene::new();
    let object = ObjectId::put(cluster_types::ClientId(0xf), 3);
    scene.head(HeadToNode::DeleteDurable { writer: NodeId(2), objects: vec![object] });
    assert_eq!(scene.todo(), [Effect::DeleteDurable { object, writer: NodeId(2) }]);
}

#[test]
fn a_task_has_ended_when_its_results_are_written() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running_with(1, |template| template.durable = true);
    scene.returns(executor, run.tag);
    assert_eq!(scene.done(), []);
    assert_eq!(writes(&mut scene), [task(1).result(0)]);
    scene.event(Event::DurableWritten { object: task(1).result(0) });
    assert_eq!(scene.done(), [(task(1), true, None)]);
}

#[test]
fn a_task_whose_executor_ends_before_its_results_are_written_has_ended_well_all_the_same() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running_with(1, |template| template.durable = true);
    scene.returns(executor, run.tag);
    scene.event(Event::ExecutorExited { executor: 1, cause: "it left".to_owned(), unstarted: Vec::new() });
    scene.event(Event::ClientEnded { client: executor });
    assert_eq!(scene.done(), []);
    scene.event(Event::DurableWritten { object: task(1).result(0) });
    assert_eq!(scene.done(), [(task(1), true, None)]);
}

#[test]
fn a_task_whose_results_cannot_be_written_is_tried_again() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running_with(1, |template| template.durable = true);
    scene.returns(executor, run.tag);
    scene.event(Event::DurableFailed { object: task(1).result(0), reason: "s3://b: no".to_owned() });
    let told = scene.told_head();
    let [.., NodeToHead::Done { outcome: Outcome::Failed(failure), retry, .. }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(failure.kind, FailureKind::ObjectLost);
    assert!(failure.message.contains("s3://b: no"), "{failure:?}");
    assert_eq!(*retry, cluster_types::node_head::Retry::Infrastructure);
    // The executor goes on.
    scene.assign(2, true, &[]);
    assert_eq!(scene.run(executor).spec.id, task(2));
}

#[test]
fn nothing_is_queued_behind_a_durable_task() {
    let mut scene = Scene::new();
    let executor = scene.f_is_short();
    std::sync::Arc::make_mut(&mut scene.template).durable = true;
    scene.assign(1, true, &[]);
    scene.assign(2, false, &[]);
    let [run] = &scene.runs(executor)[..] else { panic!("one runs") };
    scene.returns(executor, run.tag);
    assert_eq!(scene.runs(executor), []);
    scene.event(Event::DurableWritten { object: task(1).result(0) });
    assert_eq!(scene.done(), [(task(1), true, Some(task(2)))]);
    assert_eq!(scene.run(executor).spec.id, task(2));
}

#[test]
fn what_an_ended_stream_left_half_written_is_deleted() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running_with(1, |template| template.durable = true);
    scene.returns(executor, run.tag);
    let object = task(1).result(0);
    assert_eq!(writes(&mut scene), [object]);
    scene.event(Event::HeadLost);
    scene.head(admitted());
    scene.event(Event::DurableWritten { object });
    assert_eq!(scene.done(), [], "FENCE-1");
    assert!(scene.todo().contains(&Effect::DeleteDurable { object, writer: ME }));
}

#[test]
fn an_object_that_no_node_has_is_read_from_storage() {
    let mut scene = Scene::new();
    let object = ObjectId::put(cluster_types::ClientId(0xf), 3);
    scene.driver_says(ClientToNode::Get(vec![object]));
    scene.said.clear();
    scene.head(HeadToNode::Located { object, located: Located::Durable { size: 100, writer: NodeId(2) } });
    assert_eq!(scene.todo(), [Effect::FetchDurable { object, size: 100, writer: NodeId(2) }]);
    let location: Location = own(0, 100);
    scene.event(Event::Stored { object, location });
    assert!(scene.told_head().contains(&NodeToHead::CopyAdded(object)));
    let told = scene.told(DRIVER);
    assert!(told.iter().any(|message| matches!(message, NodeToClient::Ready { .. })), "{told:?}");
}

#[test]
fn a_copy_that_cannot_be_read_is_told_to_the_head() {
    let mut scene = Scene::new();
    let object = ObjectId::put(cluster_types::ClientId(0xf), 3);
    scene.driver_says(ClientToNode::Get(vec![object]));
    scene.head(HeadToNode::Located { object, located: Located::Durable { size: 100, writer: NodeId(2) } });
    scene.said.clear();
    let reason = "it is not there".to_owned();
    scene.event(Event::StoreFailed { object, missing: true, reason: reason.clone(), no_memory: false });
    assert_eq!(scene.told_head(), [NodeToHead::DurableLost { object, writer: NodeId(2), reason }]);
}

#[test]
fn what_an_executor_drops_is_told_after_the_result_that_holds_it() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running_with(1, |template| template.durable = true);
    let inner = ObjectId::put(executor, 1);
    scene.put_inline(inner, b"i");
    scene.says(executor, ClientToNode::Escape(vec![inner]));
    scene.returns(executor, run.tag);
    scene.said.clear();
    scene.says(executor, ClientToNode::Drop(vec![inner]));
    scene.event(Event::ExecutorExited { executor: 1, cause: "it left".to_owned(), unstarted: Vec::new() });
    scene.event(Event::ClientEnded { client: executor });
    assert_eq!(scene.told_head(), [], "rule R1");
    scene.event(Event::DurableWritten { object: task(1).result(0) });
    let told = scene.told_head();
    assert!(
        matches!(told[..], [NodeToHead::Done { .. }, NodeToHead::Drop { .. }, NodeToHead::ClientGone { .. }]),
        "{told:?}"
    );
}
