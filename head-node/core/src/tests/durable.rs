//! Objects with a copy in durable storage outlive every node.

use std::sync::Arc;

use cluster_types::{HeadToNode, Located, NodeId, NodeToHead, ObjectId, Resources, TaskTemplate};

use super::scene::*;

fn located(scene: &mut Scene, n: u64, object: ObjectId) -> Option<Located> {
    scene.heard(n).into_iter().rev().find_map(|message| match message {
        HeadToNode::Located { object: of, located } if of == object => Some(located),
        _ => None,
    })
}

fn deleted(scene: &mut Scene, n: u64) -> Vec<(NodeId, Vec<ObjectId>)> {
    let of = |message| match message {
        HeadToNode::DeleteDurable { writer, objects } => Some((writer, objects)),
        _ => None,
    };
    scene.heard(n).into_iter().filter_map(of).collect()
}

/// A put of an executor of node 2, which the driver on node 1 holds.
fn put(scene: &mut Scene) -> ObjectId {
    let executor = scene.executor(2, 5);
    let put = ObjectId::put(executor, 1);
    scene.escape(2, put, &[]);
    scene.hold(1, DRIVER, put);
    scene.tell(2, NodeToHead::Durable { object: put, writer: node(2) });
    scene.said.clear();
    put
}

#[test]
fn it_is_read_from_storage_when_no_node_has_it() {
    let mut scene = Scene::cluster(&[1, 1]);
    let put = put(&mut scene);
    scene.tell(1, NodeToHead::Locate(put));
    assert!(matches!(located(&mut scene, 1, put), Some(Located::Stored { .. })));
    scene.disconnect(2);
    scene.tell(1, NodeToHead::Locate(put));
    assert_eq!(located(&mut scene, 1, put), Some(Located::Durable { size: 1 << 20, writer: node(2) }));
    scene.tell(1, NodeToHead::CopyAdded(put));
    scene.join(3, Resources::cpus(1));
    scene.tell(3, NodeToHead::Locate(put));
    assert!(matches!(located(&mut scene, 3, put), Some(Located::Stored { .. })));
}

#[test]
fn who_wrote_it_deletes_it_when_nobody_holds_it() {
    let mut scene = Scene::cluster(&[1, 1]);
    let put = put(&mut scene);
    scene.drop_hold(1, DRIVER, put);
    scene.tell(2, NodeToHead::ClientGone { client: put.client });
    assert_eq!(deleted(&mut scene, 2), [(node(2), vec![put])]);
}

#[test]
fn another_node_deletes_what_a_lost_one_wrote() {
    let mut scene = Scene::cluster(&[1, 1]);
    let put = put(&mut scene);
    scene.disconnect(2);
    scene.drop_hold(1, DRIVER, put);
    assert_eq!(deleted(&mut scene, 1), [(node(2), vec![put])]);
}

#[test]
fn what_was_freed_before_it_was_written_is_deleted() {
    let mut scene = Scene::cluster(&[1, 1]);
    let put = ObjectId::put(scene.executor(2, 5), 1);
    scene.tell(2, NodeToHead::Durable { object: put, writer: node(2) });
    assert_eq!(deleted(&mut scene, 2), [(node(2), vec![put])]);
}

#[test]
fn a_copy_that_cannot_be_read_counts_no_more() {
    let mut scene = Scene::cluster(&[1, 1]);
    let put = put(&mut scene);
    scene.disconnect(2);
    let reason = "the bucket is gone".to_owned();
    scene.tell(1, NodeToHead::DurableLost { object: put, writer: node(2), reason });
    let Some(Located::Failed(failure)) = located(&mut scene, 1, put) else { panic!("it is lost") };
    assert!(failure.message.contains("the bucket is gone"), "{failure:?}");
}

#[test]
fn a_durable_result_is_not_made_again_but_read() {
    let mut scene = Scene::cluster(&[0, 1]);
    let template = scene.template("f", Resources::cpus(1));
    let spec = scene.spec(DRIVER, Arc::new(TaskTemplate { durable: true, ..(*template).clone() }), &[]);
    let result = spec.id.result(0);
    scene.tell(1, NodeToHead::Submit(spec));
    let assigned = scene.assigned_one();
    scene.done(&assigned, stored(1 << 20));
    scene.disconnect(2);
    scene.join(3, Resources::cpus(1));
    scene.said.clear();
    scene.tell(1, NodeToHead::Locate(result));
    assert_eq!(located(&mut scene, 1, result), Some(Located::Durable { size: 1 << 20, writer: node(2) }));
    // Until it turns out that it cannot be read.
    scene.tell(1, NodeToHead::DurableLost { object: result, writer: node(2), reason: String::new() });
    assert_eq!(scene.assigned_one().task.result(0), result);
}
