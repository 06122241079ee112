//! Values: asked for, brought here, seen, freed (rules P1, R3).

use cluster_types::{
    ClientToNode, FailureKind, HeadToNode, Located, NodeId, NodeToClient, NodeToHead, Value,
};

use super::scene::*;
use crate::{Effect, Event};

fn located(scene: &mut Scene, object: cluster_types::ObjectId, located: Located) {
    scene.head(HeadToNode::Located { object, located });
}

#[test]
fn an_object_that_is_elsewhere_is_pulled_and_told() {
    let mut scene = Scene::new();
    let object = task(5).result(0);
    scene.driver_says(ClientToNode::Get(vec![object]));
    assert_eq!(scene.told_head(), [NodeToHead::Locate(object)]);
    located(&mut scene, object, elsewhere(MIB));
    assert!(matches!(scene.todo()[..], [Effect::Pull { size: MIB, source: NodeId(2), .. }]));
    scene.event(Event::Stored { object, location: own(0, MIB) });
    assert_eq!(scene.told_head(), [NodeToHead::CopyAdded(object)]);
    let told = scene.told(DRIVER);
    assert!(matches!(told[0], NodeToClient::Segment { writable: false, .. }), "the descriptor comes first");
    assert_eq!(told[1], NodeToClient::Ready { object, value: Value::Local(own(0, MIB)) });
}

#[test]
fn two_that_ask_for_an_object_share_one_pull() {
    let mut scene = Scene::new();
    let object = task(5).result(0);
    scene.driver_says(ClientToNode::Get(vec![object]));
    scene.assign(1, true, &[(object, Some(elsewhere(MIB)))]);
    located(&mut scene, object, elsewhere(MIB));
    let pulls = scene.todo().iter().filter(|effect| matches!(effect, Effect::Pull { .. })).count();
    assert_eq!(pulls, 1);
}

#[test]
fn a_source_that_has_it_no_more_is_told_and_another_asked_for() {
    let mut scene = Scene::new();
    let object = task(5).result(0);
    scene.driver_says(ClientToNode::Get(vec![object]));
    located(&mut scene, object, elsewhere(MIB));
    scene.said.clear();
    scene.event(Event::StoreFailed { object, missing: true, reason: "gone".into(), no_memory: false });
    assert_eq!(scene.told_head(), [NodeToHead::SourceFailed { object, source: NodeId(2) }]);
    located(&mut scene, object, Located::Failed(failed(FailureKind::ObjectLost)));
    assert!(matches!(scene.told(DRIVER)[..], [NodeToClient::Ready { value: Value::Failed(_), .. }]));
}

#[test]
fn a_range_is_freed_when_the_head_freed_the_object_and_nobody_sees_it() {
    let mut scene = Scene::new();
    let (segment, _) = scene.lease(DRIVER, MIB);
    scene.escaped(put(2), at(segment, 0, 8192));
    scene.assign(1, true, &[(put(2), None)]);
    let executor = scene.executor();
    scene.run(executor);
    scene.head(HeadToNode::Free(vec![put(2)]));
    assert_eq!(scene.told(DRIVER), [], "P1: the executor sees it");
    scene.says(executor, ClientToNode::Release(vec![put(2)]));
    assert_eq!(scene.told(DRIVER), [NodeToClient::RangesFreed(vec![at(segment, 0, 8192)])]);
}

#[test]
fn the_end_of_a_client_releases_what_it_saw() {
    let mut scene = Scene::new();
    let (segment, _) = scene.lease(DRIVER, MIB);
    scene.escaped(put(2), at(segment, 0, 8192));
    scene.assign(1, true, &[(put(2), None)]);
    let executor = scene.executor();
    scene.head(HeadToNode::Free(vec![put(2)]));
    scene.event(Event::ExecutorExited { executor: 1, cause: "killed".into(), unstarted: vec![] });
    scene.event(Event::ClientEnded { client: executor });
    assert_eq!(scene.told(DRIVER), [NodeToClient::RangesFreed(vec![at(segment, 0, 8192)])]);
}

#[test]
fn a_put_that_never_escaped_is_its_makers_own_business() {
    let mut scene = Scene::new();
    let (segment, _) = scene.lease(DRIVER, MIB);
    scene.put_stored(put(2), at(segment, 0, 8192));
    scene.driver_says(ClientToNode::Drop(vec![put(2)]));
    assert_eq!(scene.said, [], "neither the head nor the maker is told");
    // The maker uses the range again at once.
    scene.put_stored(put(3), at(segment, 0, 8192));
    assert_eq!(scene.said, []);
}

#[test]
fn who_waits_for_a_freed_object_is_told_so() {
    let mut scene = Scene::new();
    let object = task(5).result(0);
    scene.driver_says(ClientToNode::Get(vec![object]));
    scene.head(HeadToNode::Free(vec![object]));
    let told = scene.told(DRIVER);
    let [NodeToClient::Ready { value: Value::Failed(failure), .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(failure.kind, FailureKind::ObjectFreed);
}

#[test]
fn a_result_that_came_while_its_place_was_asked_for_is_used() {
    let mut scene = Scene::new();
    let object = task(1).result(0);
    scene.driver_says(ClientToNode::Get(vec![object]));
    let (executor, run) = scene.running(1);
    scene.returns(executor, run.tag);
    assert!(matches!(scene.told(DRIVER)[..], [NodeToClient::Ready { value: Value::Inline(_), .. }]));
    scene.said.clear();
    located(&mut scene, object, elsewhere(MIB));
    assert_eq!(scene.todo(), []);
}

#[test]
fn small_values_from_the_heads_cache_go_when_nobody_needs_them() {
    let mut scene = Scene::new();
    let object = task(5).result(0);
    scene.driver_says(ClientToNode::Get(vec![object]));
    located(&mut scene, object, Located::Inline("x".into()));
    assert!(matches!(scene.told(DRIVER)[..], [NodeToClient::Ready { .. }]));
    scene.said.clear();
    scene.driver_says(ClientToNode::Get(vec![object]));
    assert_eq!(scene.told_head(), [NodeToHead::Locate(object)]);
}
