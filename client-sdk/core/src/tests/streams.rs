//! What own tasks yield: taken once and in order, dropped when nobody takes it.

use bytes::Bytes;
use cluster_types::client_node::FinishedOutcome;
use cluster_types::{
    Failure, FailureKind, Location, NodeToClient, ObjectId, ResultValue, StreamLimits, TaskId, TaskTemplate,
    Value,
};

use super::*;
use crate::{ClientCore, Reading, Taking};

fn stream(core: &mut ClientCore, max_items: u32, max_bytes: u64) -> TaskId {
    let plain = template(foreign(1), 1);
    let limits = StreamLimits { max_items, max_bytes };
    let template = Arc::new(TaskTemplate { stream: Some(limits), ..(*plain).clone() });
    let (task, results) = core.submit(&template, args(), Refs::new(), Refs::new(), None);
    assert_eq!(results.len(), 1);
    batch(core);
    task
}

fn comes(core: &mut ClientCore, task: TaskId, index: u32) {
    let value = ResultValue::Inline(Bytes::from_static(b"item"));
    core.on_message(NodeToClient::Item { task, index, value });
}

fn ends(core: &mut ClientCore, task: TaskId) {
    let value = ResultValue::Inline(Bytes::from_static(b"end"));
    core.on_message(NodeToClient::Finished { task, outcome: FinishedOutcome::Ok(vec![value]) });
}

fn fails(core: &mut ClientCore, task: TaskId) {
    let failure = Failure {
        kind: FailureKind::Exception,
        message: "boom".into(),
        payload: Bytes::new(),
        task: Some(task),
    };
    core.on_message(NodeToClient::Finished { task, outcome: FinishedOutcome::Failed(failure) });
}

fn take(core: &mut ClientCore, task: TaskId) -> ObjectId {
    match core.take_item(task) {
        Taking::Item(item) => item,
        other => panic!("{other:?}"),
    }
}

#[test]
fn items_are_taken_in_order_and_the_next_can_be_waited_for() {
    let mut core = core();
    let task = stream(&mut core, 0, 0);
    assert_eq!(core.take_item(task), Taking::NotYet(task.item(0)));
    assert!(core.is_pending(task.item(0)) && !core.is_ready(task.item(0)));
    assert!(!core.hook(task.item(0)));
    comes(&mut core, task, 0);
    assert_eq!(core.take_fired(), [task.item(0)]);
    comes(&mut core, task, 1);
    assert_eq!(take(&mut core, task), task.item(0));
    assert_eq!(core.read(task.item(0)), Some(Reading::Inline(Bytes::from_static(b"item"))));
    assert_eq!(take(&mut core, task), task.item(1));
    assert!(!core.hook(task.item(2)));
    assert!(!core.is_drained(task));
    ends(&mut core, task);
    assert_eq!(core.take_fired(), [task.item(2)], "whoever waits learns that there is no more");
    assert_eq!(core.take_item(task), Taking::End);
    assert!(core.is_drained(task));
    assert_eq!(batch(&mut core), [""; 0], "nobody was asked anything");
}

#[test]
fn a_failure_stands_behind_the_items_before_it_and_the_stream_ends_after_it() {
    let mut core = core();
    let task = stream(&mut core, 0, 0);
    comes(&mut core, task, 0);
    fails(&mut core, task);
    assert_eq!(take(&mut core, task), task.item(0));
    assert!(!core.is_drained(task));
    let failed = take(&mut core, task);
    assert!(matches!(core.read(failed), Some(Reading::Failed(failure)) if &*failure.message == "boom"));
    assert_eq!(core.take_item(task), Taking::End);
    core.drop_handle(failed);
    assert_eq!(batch(&mut core), ["drop 1.1.2"], "the head has it for this process too");
}

#[test]
fn closing_drops_what_was_not_taken_and_what_still_comes() {
    let mut core = core();
    let task = stream(&mut core, 0, 0);
    for index in 0..3 {
        comes(&mut core, task, index);
    }
    let first = take(&mut core, task);
    core.close_stream(task);
    assert_eq!(core.take_item(task), Taking::End);
    assert_eq!(
        batch(&mut core),
        ["Taken { task: 0000000000000001.1, items: 0, closed: true }", "drop 1.1.3 1.1.2"]
    );
    assert!(core.knows(first), "what was taken stays");
    comes(&mut core, task, 3);
    fails(&mut core, task);
    assert_eq!(batch(&mut core), ["drop 1.1.4 1.1.5"]);
    core.drop_handle(first);
    core.drop_handle(task.result(0));
    assert_eq!(batch(&mut core), ["drop 1.1.0 1.1.1"]);
    assert_eq!(core.known(), 0);
}

#[test]
fn a_stream_that_ended_is_closed_without_a_word() {
    let mut core = core();
    let task = stream(&mut core, 0, 0);
    comes(&mut core, task, 0);
    ends(&mut core, task);
    core.close_stream(task);
    core.drop_handle(task.result(0));
    assert_eq!(batch(&mut core), ["drop 1.1.0 1.1.1"]);
    assert_eq!((core.known(), core.unfinished()), (0, 0));
}

#[test]
fn what_was_taken_is_told_by_halves_of_the_limit() {
    for (max_items, max_bytes, told_at) in [(1, 0, 1), (4, 0, 2), (0, 4 * 132, 2), (0, 1, 1), (0, 0, 99)] {
        let mut core = core();
        let task = stream(&mut core, max_items, max_bytes);
        for index in 0..3 {
            comes(&mut core, task, index);
        }
        for taken in 1..=2 {
            take(&mut core, task);
            let told = batch(&mut core);
            assert_eq!(!told.is_empty(), taken % told_at == 0, "{max_items} {max_bytes} {taken}: {told:?}");
        }
    }
}

#[test]
fn items_told_anew_are_not_taken_anew() {
    let mut core = core();
    let task = stream(&mut core, 1, 0);
    comes(&mut core, task, 0);
    comes(&mut core, task, 1);
    let first = take(&mut core, task);
    core.drop_handle(first);
    batch(&mut core);
    comes(&mut core, task, 0);
    comes(&mut core, task, 1);
    assert_eq!(
        batch(&mut core),
        ["Taken { task: 0000000000000001.1, items: 1, closed: false }", "drop 1.1.1"],
        "the head made this process a holder again"
    );
    assert_eq!(take(&mut core, task), task.item(1));
    assert_eq!(core.take_item(task), Taking::NotYet(task.item(2)));
}

#[test]
fn a_stored_item_is_fetched_for_who_waits_for_it() {
    let mut core = core();
    let task = stream(&mut core, 0, 0);
    core.hook(task.item(0));
    core.on_message(NodeToClient::Item { task, index: 0, value: ResultValue::Stored { size: 10_000 } });
    assert_eq!(batch(&mut core), ["get 1.1.1"]);
    core.on_message(NodeToClient::Ready { object: task.item(0), value: Value::Local(at(0)) });
    assert_eq!(core.take_fired(), [task.item(0)]);
}

#[test]
fn a_range_of_an_item_that_was_yielded_twice_is_freed_by_its_place() {
    let mut core = core();
    let item = foreign(5);
    let (first, second): (Location, Location) = (at(0), at(20_032));
    core.note_own_range(item, first);
    core.note_own_range(item, second);
    core.on_message(NodeToClient::RangesFreed(vec![second]));
    assert_eq!(core.take_freed(), [second]);
    core.note_own_range(item, second);
    core.on_message(NodeToClient::RangesFreed(vec![first]));
    assert_eq!(core.take_freed(), [first]);
    core.on_message(NodeToClient::Evict { object: item });
    assert_eq!(core.take_freed(), [second]);
}
