//! Clients end, and lie.

use bytes::Bytes;
use cluster_types::client_node::PutValue;
use cluster_types::{ClientToNode, HeadToNode, Location, NodeToClient, NodeToHead, SegmentId};

use super::scene::*;
use crate::{Effect, Event};

/// A driver with a leased segment, in which its put 2 lies at 0.
fn with_segment() -> (Scene, SegmentId, u64) {
    let mut scene = Scene::new();
    let (segment, len) = scene.lease(DRIVER, MIB);
    scene.put_stored(put(2), at(segment, 0, 8192));
    scene.said.clear();
    (scene, segment, len)
}

#[test]
fn a_lie_about_memory_ends_the_conversation_with_a_sentence() {
    let (_, segment, len) = with_segment();
    for (lie, sentence) in [
        (at(SegmentId(77), 0, 64), "not leased to it"),
        (at(segment, len - 64, 128), "are no range of segment"),
        (at(segment, u64::MAX - 63, 64), "are no range of segment"),
        (at(segment, 7, 64), "are no range of segment"),
        (at(segment, 16384, 0), "are no range of segment"),
        (at(segment, 8128, 64), "lie over"),
    ] {
        let (mut scene, ..) = with_segment();
        scene.put_stored(put(3), lie);
        let told = scene.told(DRIVER);
        let [NodeToClient::Rejected { reason }] = &told[..] else { panic!("{lie:?}: {told:?}") };
        assert!(reason.contains(sentence), "{reason}");
        assert_eq!(scene.todo(), [Effect::CloseClient { client: DRIVER }]);
        // It is not listened to any more, and its end is an end like any other.
        scene.driver_says(ClientToNode::Escape(vec![put(2)]));
        assert_eq!(scene.said, []);
        scene.event(Event::ClientEnded { client: DRIVER });
        assert!(scene.told_head().contains(&NodeToHead::ClientGone { client: DRIVER }));
    }
}

#[test]
fn an_executor_that_lies_about_a_result_is_killed_and_its_task_tried_again() {
    let (mut scene, segment, _) = with_segment();
    let (executor, run) = scene.running(1);
    scene.said.clear();
    scene.completes(executor, run.tag, PutValue::Stored(at(segment, 65536, 64)), 1);
    assert_eq!(scene.done(), []);
    assert!(scene.todo().contains(&Effect::EndExecutor { executor: 1, force: true }));
    scene.event(Event::ExecutorExited { executor: 1, cause: "killed".into(), unstarted: vec![] });
    assert_eq!(scene.done(), [(task(1), false, None)]);
}

#[test]
fn what_a_client_kept_to_itself_goes_with_it() {
    let (mut scene, segment, len) = with_segment();
    scene.event(Event::ClientEnded { client: DRIVER });
    assert!(scene.todo().contains(&Effect::DropSegment { segment }));
    assert!(len >= MIB);
    assert_eq!(scene.node.store_usage().reserved, 0);
}

#[test]
fn what_escaped_stays_and_the_gaps_around_it_go_back_to_the_system() {
    let (mut scene, segment, len) = with_segment();
    scene.escaped(put(3), at(segment, 16384, 8192));
    scene.event(Event::ClientEnded { client: DRIVER });
    let punched: Vec<Location> = scene
        .todo()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::PunchHole(location) => Some(location),
            _ => None,
        })
        .collect();
    assert_eq!(punched, [at(segment, 0, 16384), at(segment, 24576, len - 24576)]);
    scene.head(HeadToNode::Free(vec![put(3)]));
    let freed = scene.todo();
    assert_eq!(freed[1..], [Effect::PunchHole(at(segment, 16384, 8192)), Effect::DropSegment { segment }]);
}

#[test]
fn memory_that_readers_keep_mapped_is_given_back_to_the_system() {
    let mut scene = Scene::new();
    let (segment, len) = scene.lease(DRIVER, MIB);
    scene.driver_says(ClientToNode::ReturnMemory(vec![segment]));
    assert_eq!(scene.todo(), [Effect::PunchHole(at(segment, 0, len)), Effect::DropSegment { segment }]);
}

#[test]
fn a_lease_asked_for_by_a_client_that_is_gone_is_dropped_when_it_is_made() {
    let mut scene = Scene::new();
    scene.driver_says(ClientToNode::RequestMemory { bytes: MIB });
    let made = scene.todo();
    let [Effect::CreateSegment { segment, .. }] = made[..] else { panic!("{made:?}") };
    scene.event(Event::ClientEnded { client: DRIVER });
    scene.event(Event::SegmentCreated { segment, failure: None });
    assert!(scene.todo().contains(&Effect::DropSegment { segment }));
}

#[test]
fn a_client_without_shared_memory_gets_bytes_and_its_puts_move_to_the_store() {
    let mut scene = Scene::alone();
    scene.head(admitted());
    scene.driver(false);
    scene.said.clear();
    let value = PutValue::Inline(Bytes::from(vec![1; 10_000]));
    scene.driver_says(ClientToNode::Put { object: put(2), value, contains: Default::default() });
    assert!(matches!(scene.todo()[..], [Effect::StoreBytes { .. }]));
    scene.event(Event::Stored { object: put(2), location: own(0, 10_000) });
    scene.driver_says(ClientToNode::Escape(vec![put(2)]));
    scene.said.clear();
    scene.driver_says(ClientToNode::Get(vec![put(2)]));
    assert!(scene.todo().contains(&Effect::SendBytes { client: DRIVER, object: put(2) }));
}

/// A remote driver, with a segment of its own for a value of a megabyte.
fn remote_with_a_segment() -> (Scene, SegmentId) {
    let mut scene = Scene::alone();
    scene.head(admitted());
    scene.driver(false);
    let (segment, len) = scene.lease(DRIVER, MIB);
    assert_eq!(len, 2 * MIB, "no more than the value needs, in whole huge pages");
    scene.said.clear();
    (scene, segment)
}

#[test]
fn what_a_remote_client_wrote_is_the_daemons_from_then_on() {
    let (mut scene, segment) = remote_with_a_segment();
    scene.put_stored(put(2), at(segment, 0, MIB));
    let rest = at(segment, MIB, MIB);
    assert_eq!(scene.todo(), [Effect::PunchHole(rest)]);
    scene.driver_says(ClientToNode::Escape(vec![put(2)]));
    scene.said.clear();
    // Memory is short: it goes to disk without a word of the client, which may be away.
    scene.driver_says(ClientToNode::RequestMemory { bytes: 63 * MIB });
    assert_eq!(scene.todo(), [Effect::Spill { objects: vec![(put(2), at(segment, 0, MIB))] }]);
    scene.event(Event::Spilled { objects: vec![put(2)] });
    assert!(scene.said.contains(&Effect::DropSegment { segment }));
    assert!(!scene.told(DRIVER).contains(&NodeToClient::Evict { object: put(2) }));
    scene.leased(DRIVER);
}

#[test]
fn what_a_remote_client_wrote_and_dropped_leaves_nothing() {
    let (mut scene, segment) = remote_with_a_segment();
    scene.put_stored(put(2), at(segment, 0, MIB));
    scene.said.clear();
    scene.driver_says(ClientToNode::Drop(vec![put(2)]));
    assert!(scene.todo().contains(&Effect::DropSegment { segment }));
    assert_eq!(scene.told(DRIVER), []);
}
