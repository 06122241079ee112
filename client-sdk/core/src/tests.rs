//! Events in, batches out; then random programs against a model of the head that counts every hold.

mod calls;
mod model;
mod streams;

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::{FinishedOutcome, PutValue};
use cluster_types::{
    ClientId, ClientToNode, Failure, FailureKind, JobId, Location, NodeToClient, ObjectId, Payload, Refs,
    ResultValue, SegmentId, TaskId, TaskTemplate, Value,
};
use smallvec::smallvec;

use crate::{ClientCore, HandleSource, Reading};

const ME: ClientId = ClientId(1);

fn core() -> ClientCore {
    ClientCore::new(ME, JobId(7))
}

fn template(function: ObjectId, num_returns: u32) -> Arc<TaskTemplate> {
    Arc::new(TaskTemplate {
        name: "f".into(),
        function,
        resources: Default::default(),
        num_returns,
        max_retries: 3,
        retry_exceptions: Bytes::new(),
        env_vars: Default::default(),
        strategy: Default::default(),
        kind: Default::default(),
        ..TaskTemplate::default()
    })
}

fn inline(text: &'static str) -> PutValue {
    PutValue::Inline(Bytes::from_static(text.as_bytes()))
}

fn at(offset: u64) -> Location {
    Location { segment: SegmentId(3), offset, len: 10_000 }
}

fn foreign(n: u64) -> ObjectId {
    TaskId { client: ClientId(9), seq: n }.result(0)
}

fn args() -> Payload {
    Payload::Inline(Bytes::from_static(b"args"))
}

/// A batch as short lines, ids as they print without the client.
fn batch(core: &mut ClientCore) -> Vec<String> {
    let ids = |ids: &[ObjectId]| {
        let names: Vec<String> = ids.iter().map(|id| id.to_string().replace("000000000000000", "")).collect();
        names.join(" ")
    };
    let line = |message: ClientToNode| match message {
        ClientToNode::Submit(spec) => format!("submit {}", ids(&[spec.id.result(0)])),
        ClientToNode::Put { object, contains, .. } if contains.is_empty() => {
            format!("put {}", ids(&[object]))
        }
        ClientToNode::Put { object, contains, .. } => format!("put {} of {}", ids(&[object]), ids(&contains)),
        ClientToNode::Escape(list) => format!("escape {}", ids(&list)),
        ClientToNode::Hold(list) => format!("hold {}", ids(&list)),
        ClientToNode::Drop(list) => format!("drop {}", ids(&list)),
        ClientToNode::Get(list) => format!("get {}", ids(&list)),
        ClientToNode::Release(list) => format!("release {}", ids(&list)),
        ClientToNode::Evicted { object, freed } => format!("evicted {} {freed}", ids(&[object])),
        other => format!("{other:?}"),
    };
    core.take_batch().into_iter().map(line).collect()
}

fn submit(core: &mut ClientCore, function: ObjectId, deps: Refs) -> ObjectId {
    core.submit(&template(function, 1), args(), deps, Refs::new(), None).1[0]
}

fn finish(core: &mut ClientCore, result: ObjectId, value: ResultValue) {
    let (task, _) = result.task().unwrap();
    core.on_message(NodeToClient::Finished { task, outcome: FinishedOutcome::Ok(vec![value]) });
}

#[test]
fn a_small_put_that_never_escapes_is_never_mentioned() {
    let mut core = core();
    let id = core.put(inline("x"), Refs::new(), true);
    assert_eq!(core.read(id), Some(Reading::Inline(Bytes::from_static(b"x"))));
    core.drop_handle(id);
    assert!(batch(&mut core).is_empty());
    assert_eq!(core.known(), 0);
}

#[test]
fn the_range_of_an_unescaped_put_is_free_without_a_round_trip() {
    let mut core = core();
    let first = core.put(PutValue::Stored(at(0)), Refs::new(), true);
    core.drop_handle(first);
    assert_eq!(core.take_freed(), [at(0)]);
    assert!(batch(&mut core).is_empty(), "an announcement that was not sent is taken back");
    let second = core.put(PutValue::Stored(at(0)), Refs::new(), true);
    assert_eq!(batch(&mut core), ["put 1.2.put"]);
    core.drop_handle(second);
    let third = core.put(PutValue::Stored(at(0)), Refs::new(), true);
    assert_eq!(core.take_freed(), [at(0)]);
    assert_eq!(batch(&mut core), ["drop 1.2.put", "put 1.3.put"], "the range has one owner at any time");
    assert!(core.knows(third));
}

#[test]
fn a_view_keeps_the_range() {
    let mut core = core();
    let id = core.put(PutValue::Stored(at(0)), Refs::new(), true);
    assert_eq!(core.read(id), Some(Reading::View(at(0))));
    core.drop_handle(id);
    assert!(core.take_freed().is_empty());
    core.on_message(NodeToClient::Evict { object: id });
    assert_eq!(batch(&mut core), ["put 1.1.put", "evicted 1.1.put false"]);
    core.drop_view(id);
    assert_eq!(core.take_freed(), [at(0)]);
    assert_eq!(batch(&mut core), ["drop 1.1.put"]);
}

#[test]
fn what_is_inside_escapes_first() {
    let mut core = core();
    let function = core.put(inline("f"), Refs::new(), true);
    let leaf = core.put(inline("leaf"), Refs::new(), true);
    let middle = core.put(inline("middle"), smallvec![leaf], true);
    let top = core.put(inline("top"), smallvec![middle, leaf], true);
    let result = submit(&mut core, function, smallvec![top]);
    assert_eq!(
        batch(&mut core),
        [
            "put 1.1.put",
            "escape 1.1.put",
            "put 1.2.put",
            "escape 1.2.put",
            "put 1.3.put of 1.2.put",
            "escape 1.3.put",
            "put 1.4.put of 1.3.put 1.2.put",
            "escape 1.4.put",
            "submit 1.5.0",
        ]
    );
    submit(&mut core, function, smallvec![top, result]);
    assert_eq!(batch(&mut core), ["submit 1.6.0"], "once");
}

#[test]
fn a_deep_nest_of_puts_is_no_deep_recursion() {
    let mut core = core();
    let mut top = core.put(inline("leaf"), Refs::new(), true);
    for _ in 0..200_000 {
        let outer = core.put(inline("shell"), smallvec![top], true);
        core.drop_handle(top);
        top = outer;
    }
    let other = core.put(inline("shell"), smallvec![top], true);
    core.share(&[other]);
    core.drop_handle(other);
    core.drop_handle(top);
    assert_eq!(core.take_batch().len(), 2 * 200_002 + 1);
    assert_eq!(core.known(), 0);
    let mut top = core.put(inline("leaf"), Refs::new(), true);
    for _ in 0..200_000 {
        let outer = core.put(inline("shell"), smallvec![top], true);
        core.drop_handle(top);
        top = outer;
    }
    core.drop_handle(top);
    assert_eq!((core.known(), core.take_batch().len()), (0, 0));
}

#[test]
fn an_own_inline_result_needs_no_message() {
    let mut core = core();
    let id = submit(&mut core, foreign(1), Refs::new());
    core.take_batch();
    core.want(id, true);
    assert!(!core.is_ready(id) && core.unfinished() == 1);
    finish(&mut core, id, ResultValue::Inline(Bytes::from_static(b"v")));
    assert!(core.is_here(id) && core.unfinished() == 0);
    finish(&mut core, id, ResultValue::Stored { size: 1 });
    assert!(core.is_here(id), "TASK-1: a second end is ignored");
    core.drop_handle(id);
    assert_eq!(batch(&mut core), ["drop 1.1.0"]);
}

#[test]
fn a_wanted_result_is_asked_for_as_soon_as_it_is_stored_and_released_at_the_end() {
    let mut core = core();
    let id = submit(&mut core, foreign(1), Refs::new());
    assert!(!core.hook(id));
    core.take_batch();
    finish(&mut core, id, ResultValue::Stored { size: 10_000 });
    assert!(core.is_ready(id) && !core.is_here(id));
    assert_eq!(batch(&mut core), ["get 1.1.0"]);
    core.want(id, true);
    assert!(batch(&mut core).is_empty(), "asked once");
    core.on_message(NodeToClient::Ready { object: id, value: Value::Local(at(64)) });
    assert_eq!(core.take_fired(), [id]);
    assert_eq!(core.read(id), Some(Reading::View(at(64))));
    core.drop_handle(id);
    assert!(batch(&mut core).is_empty(), "the view holds it");
    core.drop_view(id);
    assert_eq!(batch(&mut core), ["release 1.1.0", "drop 1.1.0"]);
}

#[test]
fn a_location_that_comes_too_late_is_released() {
    let mut core = core();
    core.add_handle(foreign(1), HandleSource::Elsewhere);
    core.want(foreign(1), true);
    core.take_batch();
    core.drop_handle(foreign(1));
    core.take_batch();
    core.on_message(NodeToClient::Ready { object: foreign(1), value: Value::Local(at(0)) });
    assert_eq!(batch(&mut core), ["release 9.1.0"]);
}

#[test]
fn a_known_handle_is_one_on_an_object_that_has_another() {
    let mut core = core();
    assert!(!core.add_known_handle(foreign(1)));
    core.add_handle(foreign(1), HandleSource::Elsewhere);
    assert_eq!(batch(&mut core), ["hold 9.1.0"]);
    assert!(core.add_known_handle(foreign(1)));
    core.drop_handle(foreign(1));
    assert!(batch(&mut core).is_empty());
    core.drop_handle(foreign(1));
    assert_eq!(batch(&mut core), ["drop 9.1.0"]);
    assert!(!core.add_known_handle(foreign(1)));
}

#[test]
fn each_telling_is_released_once() {
    let mut core = core();
    core.lend(foreign(1), at(0));
    core.drop_view(foreign(1));
    core.lend(foreign(1), at(0));
    core.drop_view(foreign(1));
    assert_eq!(batch(&mut core), ["release 9.1.0 9.1.0"]);
}

#[test]
fn a_hold_precedes_the_drop_of_the_container() {
    let mut core = core();
    core.add_handle(foreign(1), HandleSource::Elsewhere);
    assert_eq!(batch(&mut core), ["hold 9.1.0"]);
    core.add_handle(foreign(2), HandleSource::Inside(foreign(1)));
    core.add_handle(foreign(3), HandleSource::Inside(foreign(1)));
    core.drop_handle(foreign(3));
    assert!(batch(&mut core).is_empty(), "the container keeps them");
    core.drop_handle(foreign(1));
    assert_eq!(batch(&mut core), ["hold 9.2.0", "drop 9.1.0"]);
    core.drop_handle(foreign(2));
    assert_eq!(batch(&mut core), ["drop 9.2.0"]);
    assert_eq!(core.known(), 0);
}

#[test]
fn reading_a_container_again_and_again_costs_no_message() {
    let mut core = core();
    core.add_handle(foreign(0), HandleSource::Elsewhere);
    core.take_batch();
    for _ in 0..10 {
        for n in 1..100 {
            core.add_handle(foreign(n), HandleSource::Inside(foreign(0)));
        }
        for n in 1..100 {
            core.drop_handle(foreign(n));
        }
        assert!(batch(&mut core).is_empty());
        assert_eq!(core.known(), 100);
    }
    core.drop_handle(foreign(0));
    assert_eq!(batch(&mut core), ["drop 9.0.0"]);
    assert_eq!(core.known(), 0);
}

#[test]
fn refs_kept_beyond_their_task_are_held_before_its_end() {
    let mut core = core();
    core.add_handle(foreign(1), HandleSource::Task);
    core.add_handle(foreign(2), HandleSource::Task);
    core.drop_handle(foreign(2));
    assert!(batch(&mut core).is_empty());
    core.end_task_cover();
    assert_eq!(batch(&mut core), ["hold 9.1.0"]);
    assert_eq!(core.known(), 1);
}

#[test]
fn eviction_frees_what_is_not_viewed_and_reading_brings_it_back() {
    let mut core = core();
    let id = core.put(PutValue::Stored(at(0)), Refs::new(), true);
    core.share(&[id]);
    core.take_batch();
    core.on_message(NodeToClient::Evict { object: id });
    assert_eq!(core.take_freed(), [at(0)]);
    assert_eq!(batch(&mut core), ["evicted 1.1.put true"]);
    assert_eq!(core.read(id), None);
    core.want(id, true);
    assert_eq!(batch(&mut core), ["get 1.1.put"]);
    core.on_message(NodeToClient::Ready { object: id, value: Value::Local(at(64)) });
    assert!(core.is_here(id));
    core.on_message(NodeToClient::RangesFreed(vec![at(0)]));
    assert!(core.take_freed().is_empty(), "freed once");
    core.on_message(NodeToClient::Evict { object: foreign(5) });
    assert_eq!(batch(&mut core), ["evicted 9.5.0 true"]);
}

#[test]
fn what_is_not_viewed_is_let_go_of_when_memory_is_short() {
    let mut core = core();
    let (viewed, read_once, own) =
        (foreign(1), foreign(2), core.put(PutValue::Stored(at(0)), Refs::new(), true));
    for (id, offset) in [(viewed, 64), (read_once, 128)] {
        core.add_handle(id, HandleSource::Elsewhere);
        core.want(id, true);
        core.on_message(NodeToClient::Ready { object: id, value: Value::Local(at(offset)) });
        assert!(core.read(id).is_some());
    }
    core.drop_view(read_once);
    core.take_batch();
    assert_eq!(core.on_message(NodeToClient::RecallMemory), Some(NodeToClient::RecallMemory));
    assert_eq!(batch(&mut core), ["release 9.2.0"]);
    assert!(core.is_here(viewed) && core.is_here(own) && core.is_ready(read_once));
    assert!(core.read(read_once).is_none());
    core.want(read_once, true);
    assert_eq!(batch(&mut core), ["get 9.2.0"]);
    core.drop_view(viewed);
    core.on_message(NodeToClient::RecallMemory);
    core.on_message(NodeToClient::RecallMemory);
    assert_eq!(batch(&mut core), ["release 9.1.0"], "once for each time that it was told");
}

#[test]
fn an_escaped_range_waits_for_the_daemon() {
    let mut core = core();
    let id = core.put(PutValue::Stored(at(0)), Refs::new(), true);
    core.share(&[id]);
    core.drop_handle(id);
    assert_eq!(batch(&mut core), ["put 1.1.put", "escape 1.1.put", "drop 1.1.put"]);
    assert!(core.take_freed().is_empty());
    let wrong = Location { len: 5, ..at(0) };
    core.on_message(NodeToClient::RangesFreed(vec![at(640), wrong, at(0), at(0)]));
    assert_eq!(core.take_freed(), [at(0)]);
}

#[test]
fn a_failed_task_fails_all_its_results() {
    let mut core = core();
    let (task, results) = core.submit(&template(foreign(1), 3), args(), Refs::new(), Refs::new(), None);
    let failure = Failure {
        kind: FailureKind::ExecutorDied,
        message: "gone".into(),
        payload: Bytes::new(),
        task: Some(task),
    };
    core.on_message(NodeToClient::Finished { task, outcome: FinishedOutcome::Failed(failure) });
    for id in results {
        assert!(matches!(core.read(id), Some(Reading::Failed(f)) if f.kind == FailureKind::ExecutorDied));
    }
    let (task, results) = core.submit(&template(foreign(1), 2), args(), Refs::new(), Refs::new(), None);
    core.on_message(NodeToClient::Finished { task, outcome: FinishedOutcome::Ok(vec![]) });
    assert!(matches!(core.read(results[1]), Some(Reading::Failed(f)) if f.kind == FailureKind::Internal));
}

#[test]
fn other_messages_are_the_edges() {
    assert_eq!(core().on_message(NodeToClient::Exit), Some(NodeToClient::Exit));
}
