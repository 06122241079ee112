//! Memory: leases, who waits, what is spilled, restored, evicted, admitted (rules P2 to P5).

use std::collections::HashMap;

use cluster_types::client_node::PutValue;
use cluster_types::{
    ClientToNode, FailureKind, HeadToNode, NodeToClient, NodeToHead, ObjectId, SegmentId, Span, Value,
};

use super::scene::*;
use crate::{Effect, Event, ServeFrom};

/// The driver's segment takes all of the store; puts 2.. of 8 MiB each lie in it, the head knows them.
fn full() -> (Scene, SegmentId) {
    let mut scene = Scene::new();
    let (segment, len) = scene.lease(DRIVER, 64 * MIB);
    assert_eq!(len, 64 * MIB);
    for n in 0..8 {
        scene.escaped(put(2 + n), at(segment, n * 8 * MIB, 8 * MIB));
    }
    (scene, segment)
}

fn spill_of(effects: &[Effect]) -> Vec<ObjectId> {
    match effects {
        [Effect::Spill { objects }] => objects.iter().map(|(object, _)| *object).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn segments_grow_with_what_a_client_asks_for() {
    let mut scene = Scene::new();
    assert_eq!(scene.lease(DRIVER, 4096).1, 8 * MIB);
    assert_eq!(scene.lease(DRIVER, 4096).1, 16 * MIB);
    assert_eq!(scene.lease(DRIVER, 33 * MIB).1, 34 * MIB);
}

#[test]
fn what_can_never_fit_fails_at_once() {
    let mut scene = Scene::new();
    scene.driver_says(ClientToNode::RequestMemory { bytes: 65 * MIB });
    let told = scene.told(DRIVER);
    let [NodeToClient::NoMemory { failure, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(failure.kind, FailureKind::ObjectTooLarge);
    assert!(failure.message.contains("holds 64.0 MiB at most"), "{}", failure.message);
}

#[test]
fn a_full_store_spills_asks_writers_and_takes_back_segments() {
    let (mut scene, segment) = full();
    // Used since: it goes last.
    scene.driver_says(ClientToNode::Get(vec![put(2)]));
    scene.driver_says(ClientToNode::Release(vec![put(2)]));
    scene.said.clear();
    scene.driver_says(ClientToNode::RequestMemory { bytes: 9 * MIB });
    assert_eq!(scene.told(DRIVER), [NodeToClient::RecallMemory]);
    let spilled = spill_of(&scene.todo());
    assert_eq!(spilled, [3, 4, 5, 6, 7, 8, 9, 2].map(put));
    scene.event(Event::Spilled { objects: spilled.clone() });
    for object in &spilled {
        assert!(scene.said.contains(&Effect::Serve { object: *object, source: ServeFrom::Disk }));
    }
    for object in &spilled {
        scene.driver_says(ClientToNode::Evicted { object: *object, freed: true });
    }
    scene.said.clear();
    scene.driver_says(ClientToNode::ReturnMemory(vec![segment]));
    scene.leased(DRIVER);
}

#[test]
fn a_writer_that_waits_takes_the_range_that_it_gives_up() {
    let (mut scene, _) = full();
    scene.driver_says(ClientToNode::RequestMemory { bytes: 8 * MIB });
    let spilled = spill_of(&scene.todo());
    scene.event(Event::Spilled { objects: spilled.clone() });
    scene.said.clear();
    scene.driver_says(ClientToNode::Evicted { object: spilled[0], freed: true });
    assert_eq!(scene.told(DRIVER), [], "it has what it waited for, and is not asked to give it back");
    // Another waits for what the driver frees from now on.
    scene.driver_says(ClientToNode::Evicted { object: spilled[1], freed: true });
    assert_eq!(scene.told(DRIVER), [NodeToClient::RecallMemory]);
    assert!(!scene.todo().iter().any(|effect| matches!(effect, Effect::CreateSegment { .. })));
}

/// A store of 256 MiB, full of puts 2.. of 32 MiB each, of which the driver wants one more.
fn full_of_large() -> Scene {
    let mut scene = Scene::with_store(256 * MIB);
    let (segment, _) = scene.lease(DRIVER, 256 * MIB);
    for n in 0..8 {
        scene.escaped(put(2 + n), at(segment, n * 32 * MIB, 32 * MIB));
    }
    scene.driver_says(ClientToNode::RequestMemory { bytes: 32 * MIB });
    scene
}

fn evicted_of(told: &[NodeToClient]) -> Vec<ObjectId> {
    let of = |told: &NodeToClient| match told {
        NodeToClient::Evict { object } => Some(*object),
        _ => None,
    };
    told.iter().filter_map(of).collect()
}

#[test]
fn the_next_batch_is_written_while_writers_fill_what_the_first_left() {
    let mut scene = full_of_large();
    let first = spill_of(&scene.todo());
    assert_eq!(first, [put(2), put(3)]);
    scene.event(Event::Spilled { objects: first.clone() });
    let next: Vec<_> =
        scene.todo().into_iter().filter(|effect| matches!(effect, Effect::Spill { .. })).collect();
    assert_eq!(spill_of(&next), [put(4), put(5)]);
    assert_eq!(evicted_of(&scene.told(DRIVER)), first);
    for object in &first {
        scene.driver_says(ClientToNode::Evicted { object: *object, freed: true });
    }
    scene.said.clear();
    // They stay in memory, and nothing more is written, until somebody needs the room.
    scene.event(Event::Spilled { objects: vec![put(4), put(5)] });
    assert_eq!((scene.todo(), scene.told(DRIVER)), (vec![], vec![]));
    // Then they go at once.
    scene.driver_says(ClientToNode::RequestMemory { bytes: 32 * MIB });
    assert_eq!(evicted_of(&scene.told(DRIVER)), [put(4), put(5)]);
    let next: Vec<_> =
        scene.todo().into_iter().filter(|effect| matches!(effect, Effect::Spill { .. })).collect();
    assert_eq!(spill_of(&next), [put(6), put(7)]);
}

#[test]
fn no_more_of_the_daemons_own_memory_is_given_up_than_is_needed() {
    let mut scene = Scene::with_store(128 * MIB);
    for n in 0..3 {
        let object = task(10 + n).result(0);
        scene.driver_says(ClientToNode::Get(vec![object]));
        scene.head(HeadToNode::Located { object, located: elsewhere(40 * MIB) });
        scene.event(Event::Stored { object, location: own(n * 40 * MIB, 40 * MIB) });
        scene.driver_says(ClientToNode::Release(vec![object]));
    }
    scene.said.clear();
    scene.driver_says(ClientToNode::RequestMemory { bytes: 40 * MIB });
    let written = spill_of(&scene.todo());
    assert_eq!(written.len(), 2);
    scene.event(Event::Spilled { objects: written });
    let freed = |effect: &&Effect| matches!(effect, Effect::FreeOwn(_));
    assert_eq!(scene.said.iter().filter(freed).count(), 1);
}

#[test]
fn a_full_disk_is_not_told_while_others_give_up_what_was_written_before() {
    let mut scene = full_of_large();
    let first = spill_of(&scene.todo());
    scene.event(Event::Spilled { objects: first.clone() });
    scene.said.clear();
    scene
        .event(Event::SpillFailed { objects: vec![put(4), put(5)], failure: failed(FailureKind::OutOfDisk) });
    assert_eq!(scene.told(DRIVER), []);
    scene.driver_says(ClientToNode::Evicted { object: first[0], freed: true });
    assert!(!scene.told(DRIVER).iter().any(|told| matches!(told, NodeToClient::NoMemory { .. })));
}

#[test]
fn turns_of_what_is_gone_are_forgotten() {
    let mut scene = Scene::new();
    let (segment, _) = scene.lease(DRIVER, 8 * MIB);
    for n in 2..1002 {
        scene.put_stored(put(n), at(segment, 0, MIB));
        scene.driver_says(ClientToNode::Drop(vec![put(n)]));
    }
    let sizes: HashMap<_, _> = scene.node.sizes().into_iter().collect();
    assert!(sizes["objects"] < 10 && sizes["turns to go to disk"] < 100, "{sizes:?}");
}

#[test]
fn what_somebody_sees_is_not_spilled() {
    let (mut scene, _) = full();
    scene.driver_says(ClientToNode::Get(vec![put(2)]));
    scene.said.clear();
    scene.driver_says(ClientToNode::RequestMemory { bytes: MIB });
    assert!(!spill_of(&scene.todo()).contains(&put(2)));
}

#[test]
fn a_writer_that_will_not_give_up_is_asked_again_only_later() {
    let (mut scene, _) = full();
    scene.driver_says(ClientToNode::RequestMemory { bytes: MIB });
    let spilled = spill_of(&scene.todo());
    scene.event(Event::Spilled { objects: spilled.clone() });
    scene.said.clear();
    for object in &spilled {
        scene.driver_says(ClientToNode::Evicted { object: *object, freed: false });
    }
    let asked = |told: &[NodeToClient]| told.iter().any(|m| matches!(m, NodeToClient::Evict { .. }));
    assert!(!asked(&scene.told(DRIVER)));
    scene.pass(Span::millis(100));
    assert!(asked(&scene.told(DRIVER)));
}

#[test]
fn a_spilled_object_is_restored_for_who_asks() {
    let (mut scene, segment) = full();
    scene.driver_says(ClientToNode::RequestMemory { bytes: 9 * MIB });
    let spilled = spill_of(&scene.todo());
    scene.event(Event::Spilled { objects: spilled.clone() });
    for object in &spilled {
        scene.driver_says(ClientToNode::Evicted { object: *object, freed: true });
    }
    scene.driver_says(ClientToNode::ReturnMemory(vec![segment]));
    scene.leased(DRIVER);
    scene.said.clear();
    scene.driver_says(ClientToNode::Get(vec![put(2)]));
    assert_eq!(scene.todo(), [Effect::Restore { object: put(2) }]);
    scene.event(Event::Restored { object: put(2), location: own(0, 8 * MIB) });
    let told = scene.told(DRIVER);
    assert!(told.contains(&NodeToClient::Ready { object: put(2), value: Value::Local(own(0, 8 * MIB)) }));
}

#[test]
fn what_clients_remember_and_do_not_view_is_asked_back_when_memory_is_short() {
    let (mut scene, segment) = full();
    scene.driver_says(ClientToNode::RequestMemory { bytes: 9 * MIB });
    let spilled = spill_of(&scene.todo());
    scene.event(Event::Spilled { objects: spilled.clone() });
    for object in &spilled {
        scene.driver_says(ClientToNode::Evicted { object: *object, freed: true });
    }
    scene.driver_says(ClientToNode::ReturnMemory(vec![segment]));
    let (leased, _) = scene.leased(DRIVER);
    scene.driver_says(ClientToNode::ReturnMemory(vec![leased]));
    // All are read again, one after the other, until the store is full of what the driver was told of.
    for n in 0..8 {
        scene.driver_says(ClientToNode::Get(vec![put(2 + n)]));
        let at = own(n * 8 * MIB, 8 * MIB);
        scene.event(Event::Restored { object: put(2 + n), location: at });
    }
    assert_eq!(scene.node.store_usage().live, 64 * MIB);
    scene.said.clear();
    scene.driver_says(ClientToNode::RequestMemory { bytes: 16 * MIB });
    assert_eq!(scene.told(DRIVER), [NodeToClient::RecallMemory]);
    scene.driver_says(ClientToNode::RequestMemory { bytes: 16 * MIB });
    assert_eq!(scene.told(DRIVER), [], "it was told of nothing since");
    // It views the rest.
    scene.driver_says(ClientToNode::Release(vec![put(2), put(3), put(4)]));
    let todo = scene.todo();
    for n in 0..3 {
        assert!(todo.contains(&Effect::FreeOwn(own(n * 8 * MIB, 8 * MIB))), "{todo:?}");
    }
    assert!(todo.iter().any(|effect| matches!(effect, Effect::CreateSegment { .. })), "{todo:?}");
}

#[test]
fn a_writer_that_dies_while_asked_may_have_used_the_range_again() {
    let (mut scene, segment) = full();
    scene.driver_says(ClientToNode::RequestMemory { bytes: MIB });
    let spilled = spill_of(&scene.todo());
    scene.event(Event::Spilled { objects: spilled.clone() });
    scene.said.clear();
    scene.event(Event::ClientEnded { client: DRIVER });
    let todo = scene.todo();
    assert!(todo.contains(&Effect::DropSegment { segment }), "{todo:?}");
    assert_eq!(scene.node.store_usage().live, 0);
    assert_eq!(scene.node.store_usage().spilled, 64 * MIB);
}

#[test]
fn a_store_full_of_what_is_seen_lends_from_a_file_and_says_so() {
    let (mut scene, _) = full();
    scene.driver_says(ClientToNode::Get((2..10).map(put).collect()));
    scene.driver_says(ClientToNode::RequestMemory { bytes: MIB });
    scene.said.clear();
    scene.pass(Span::millis(600));
    assert!(matches!(scene.todo()[..], [Effect::CreateSegment { file_backed: true, .. }]));
    assert!(scene.told(DRIVER).iter().any(|told| matches!(told, NodeToClient::Notice { .. })));
}

#[test]
fn a_full_disk_is_told_to_who_waits_for_memory() {
    let (mut scene, _) = full();
    scene.driver_says(ClientToNode::RequestMemory { bytes: MIB });
    let objects = spill_of(&scene.todo());
    scene.event(Event::SpillFailed { objects, failure: failed(FailureKind::OutOfDisk) });
    let no_memory = |told: &NodeToClient| matches!(told, NodeToClient::NoMemory { failure, .. } if failure.kind == FailureKind::OutOfDisk);
    assert!(scene.told(DRIVER).iter().any(no_memory));
}

#[test]
fn a_segment_that_the_machine_has_no_memory_for_is_tried_again_then_made_in_a_file() {
    let mut scene = Scene::new();
    scene.driver_says(ClientToNode::RequestMemory { bytes: MIB });
    let mut tries = 0;
    loop {
        let todo = scene.todo();
        match todo[..] {
            [Effect::CreateSegment { segment, file_backed: false, .. }] => {
                tries += 1;
                let failure = Some(failed(FailureKind::ObjectTooLarge));
                scene.event(Event::SegmentCreated { segment, failure });
                let again =
                    |effect: &Effect| matches!(effect, Effect::CreateSegment { file_backed: false, .. });
                assert!(!scene.said.iter().any(again), "not at once");
            }
            [Effect::CreateSegment { file_backed: true, .. }] => break,
            [] => scene.pass(Span::millis(100)),
            _ => panic!("{todo:?}"),
        }
        assert!(tries < 20);
    }
    assert!(tries > 2, "{tries}");
    assert!(!scene.told(DRIVER).iter().any(|told| matches!(told, NodeToClient::NoMemory { .. })));
}

#[test]
fn an_object_that_the_machine_has_no_memory_for_is_tried_again_and_not_lost() {
    let mut scene = Scene::new();
    let object = task(5).result(0);
    scene.driver_says(ClientToNode::Get(vec![object]));
    scene.head(HeadToNode::Located { object, located: elsewhere(MIB) });
    scene.said.clear();
    scene.event(Event::StoreFailed { object, missing: false, reason: "full".into(), no_memory: true });
    assert_eq!(scene.said, []);
    scene.pass(Span::millis(100));
    assert!(matches!(scene.todo()[..], [Effect::Pull { .. }]));
    scene.event(Event::Stored { object, location: own(0, MIB) });
    assert!(scene.told(DRIVER).iter().any(|told| matches!(told, NodeToClient::Ready { .. })));
}

#[test]
fn it_is_given_up_in_the_end_with_the_reason() {
    let mut scene = Scene::new();
    let object = task(5).result(0);
    scene.driver_says(ClientToNode::Get(vec![object]));
    scene.head(HeadToNode::Located { object, located: elsewhere(MIB) });
    for _ in 0..200 {
        scene.event(Event::StoreFailed { object, missing: false, reason: "no room".into(), no_memory: true });
        scene.pass(Span::millis(100));
    }
    let told = scene.told(DRIVER);
    let [NodeToClient::Ready { value: Value::Failed(failure), .. }] = &told[..] else { panic!("{told:?}") };
    assert!(failure.message.contains("no room"), "{}", failure.message);
}

// ---- rule P5 ----

#[test]
fn arguments_come_all_or_none() {
    let mut scene = Scene::new();
    let objects: Vec<ObjectId> = (10..14).map(|n| task(n).result(0)).collect();
    let pulls = |scene: &mut Scene| -> Vec<ObjectId> {
        let of = |effect| match effect {
            Effect::Pull { object, .. } => Some(object),
            _ => None,
        };
        scene.todo().into_iter().filter_map(of).collect()
    };
    scene.assign(
        1,
        true,
        &[(objects[0], Some(elsewhere(20 * MIB))), (objects[1], Some(elsewhere(20 * MIB)))],
    );
    assert_eq!(pulls(&mut scene), objects[..2]);
    scene.assign(
        2,
        true,
        &[(objects[2], Some(elsewhere(20 * MIB))), (objects[3], Some(elsewhere(20 * MIB)))],
    );
    assert_eq!(pulls(&mut scene), [], "not a half of them");
    assert!(scene.node.store_usage().reserved <= 64 * MIB);
    // The first ends: the second's come.
    for (n, object) in (0..).zip(&objects[..2]) {
        scene.event(Event::Stored { object: *object, location: own(n * 20 * MIB, 20 * MIB) });
    }
    let executor = scene.executor();
    let run = scene.run(executor);
    scene.says(executor, ClientToNode::Release(objects[..2].to_vec()));
    scene.returns(executor, run.tag);
    scene.head(HeadToNode::Free(objects[..2].to_vec()));
    assert_eq!(pulls(&mut scene), objects[2..]);
}

#[test]
fn a_running_tasks_get_comes_before_new_admissions() {
    let mut scene = Scene::new();
    let (executor, _) = scene.running(1);
    let (segment, _) = scene.lease(executor, 40 * MIB);
    let argument = task(10).result(0);
    scene.assign(2, true, &[(argument, Some(elsewhere(30 * MIB)))]);
    assert!(!scene.todo().iter().any(|effect| matches!(effect, Effect::Pull { .. })));
    let wanted = task(11).result(0);
    scene.says(executor, ClientToNode::Get(vec![wanted]));
    scene.head(HeadToNode::Located { object: wanted, located: elsewhere(30 * MIB) });
    scene.said.clear();
    scene.says(executor, ClientToNode::ReturnMemory(vec![segment]));
    let pulled = |effect: &Effect| match effect {
        Effect::Pull { object, .. } => Some(*object),
        _ => None,
    };
    let pulls: Vec<_> = scene.todo().iter().filter_map(pulled).collect();
    assert_eq!(pulls, [wanted, argument]);
}

#[test]
fn arguments_that_never_fit_together_fail_the_task_at_once() {
    let mut scene = Scene::new();
    let (a, b) = (task(10).result(0), task(11).result(0));
    scene.assign(1, true, &[(a, Some(elsewhere(40 * MIB))), (b, Some(elsewhere(40 * MIB)))]);
    let told = scene.told_head();
    let Some(NodeToHead::Done { outcome: cluster_types::Outcome::Failed(failure), .. }) = told.last() else {
        panic!("{told:?}")
    };
    assert_eq!(failure.kind, FailureKind::ObjectTooLarge);
    assert!(failure.message.contains("80 MiB"), "{}", failure.message);
}

#[test]
fn an_argument_spilled_while_another_was_looked_for_is_brought_back() {
    let (mut scene, segment) = full();
    let other = task(10).result(0);
    scene.assign(1, true, &[(put(2), None), (other, None)]);
    assert!(scene.told_head().contains(&NodeToHead::Locate(other)));
    scene.driver_says(ClientToNode::RequestMemory { bytes: 9 * MIB });
    let spilled = spill_of(&scene.todo());
    scene.event(Event::Spilled { objects: spilled.clone() });
    for object in &spilled {
        scene.driver_says(ClientToNode::Evicted { object: *object, freed: true });
    }
    scene.driver_says(ClientToNode::ReturnMemory(vec![segment]));
    scene.leased(DRIVER);
    scene.said.clear();
    scene.head(HeadToNode::Located { object: other, located: elsewhere(MIB) });
    let todo = scene.todo();
    assert!(todo.contains(&Effect::Restore { object: put(2) }), "{todo:?}");
    assert!(todo.iter().any(|effect| matches!(effect, Effect::Pull { .. })), "{todo:?}");
}

#[test]
fn a_result_that_came_while_a_copy_was_pulled_may_go_to_disk_when_that_is_over() {
    let over = [
        |object| Event::Stored { object, location: own(0, MIB) },
        |object| Event::StoreFailed { object, missing: true, reason: "gone".into(), no_memory: false },
    ];
    for over in over {
        let mut scene = Scene::new();
        let (executor, run) = scene.running(1);
        let (segment, _) = scene.lease(executor, MIB);
        let object = task(1).result(0);
        scene.driver_says(ClientToNode::Get(vec![object]));
        scene.head(HeadToNode::Located { object, located: elsewhere(MIB) });
        scene.completes(executor, run.tag, PutValue::Stored(at(segment, 0, MIB)), 10);
        scene.driver_says(ClientToNode::Release(vec![object]));
        // Its turn comes: `Scene::event` checks that (P4).
        scene.event(over(object));
    }
}
