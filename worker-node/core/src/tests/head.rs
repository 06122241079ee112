//! The head is away, comes, comes back (rule T6, FENCE-1).

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::{FinishedOutcome, LogLine};
use cluster_types::{
    ClientToNode, FailureKind, HeadToNode, JobId, Located, NodeId, NodeToHead, ResultValue, SegmentId, Span,
    TaskKind, TaskTemplate,
};

use super::scene::*;
use crate::node::failure;
use crate::{Effect, Event};

#[test]
fn what_clients_said_before_the_head_was_there_is_told_in_order() {
    let mut scene = Scene::alone();
    scene.driver(true);
    scene.driver_says(ClientToNode::Submit(scene.spec(1, &[])));
    assert_eq!(scene.told_head(), []);
    scene.head(admitted());
    let told = scene.told_head();
    assert!(matches!(told[0], NodeToHead::ClientAttached { .. }));
    assert!(matches!(told[1], NodeToHead::Escaped { .. }));
    assert!(matches!(told[2], NodeToHead::Submit(_)));
}

#[test]
fn lines_for_an_absent_head_are_bounded_and_the_others_counted() {
    let mut scene = Scene::alone();
    scene.driver(true);
    for _ in 0..5_000 {
        let line = LogLine {
            job: JOB,
            task: None,
            pid: 1,
            node: NodeId(1),
            stderr: false,
            text: "still here".to_owned(),
        };
        scene.driver_says(ClientToNode::Log(line));
    }
    scene.head(admitted());
    let told = scene.told_head().into_iter().filter_map(|message| match message {
        NodeToHead::Log(lines) => Some(lines),
        _ => None,
    });
    let lines: Vec<LogLine> = told.flatten().collect();
    assert_eq!(lines.len(), 1_001);
    assert!(lines[1_000].text.starts_with("4000 lines that tasks printed"), "{:?}", lines[1_000]);
}

#[test]
fn a_head_that_comes_back_is_told_clients_objects_and_unfinished_tasks() {
    let mut scene = Scene::new();
    scene.driver_says(ClientToNode::Submit(scene.spec(1, &[])));
    scene.said.clear();
    scene.event(Event::HeadLost);
    scene.head(admitted());
    let told = scene.told_head();
    assert!(matches!(told[0], NodeToHead::ClientAttached { .. }), "{told:?}");
    assert!(matches!(told[1], NodeToHead::Escaped { object, .. } if object == function()));
    assert!(matches!(&told[2], NodeToHead::Submit(spec) if spec.id == task(1)));
}

#[test]
fn attempts_of_the_old_stream_are_over() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    scene.said.clear();
    scene.event(Event::HeadLost);
    scene.head(admitted());
    assert_eq!(scene.todo(), [Effect::EndExecutor { executor: 1, force: true }]);
    scene.told_head();
    scene.returns(executor, run.tag);
    assert_eq!(scene.done(), [], "FENCE-1");
}

#[test]
fn a_copy_for_a_node_that_leaves_is_brought_and_kept() {
    let mut scene = Scene::new();
    let large = put(7);
    scene.head(HeadToNode::Copy { object: large, located: elsewhere(4096), contains: Default::default() });
    assert!(matches!(scene.todo()[..], [Effect::Pull { object, .. }] if object == large));
    scene.event(Event::Stored { object: large, location: at(SegmentId(90), 0, 4096) });
    assert!(scene.told_head().contains(&NodeToHead::CopyAdded(large)));
    // Whoever needs it here finds it.
    scene.driver_says(ClientToNode::Get(vec![large]));
    assert_eq!(scene.told_head(), []);

    let small = put(8);
    let located = Located::Inline(Bytes::from_static(b"small"));
    scene.head(HeadToNode::Copy { object: small, located: located.clone(), contains: Default::default() });
    assert_eq!(scene.told_head(), [NodeToHead::CopyAdded(small)]);
    scene.head(HeadToNode::Copy { object: small, located, contains: Default::default() });
    assert_eq!(scene.told_head(), [NodeToHead::CopyAdded(small)], "asked twice, answered twice");
}

#[test]
fn told_to_leave_it_asks_the_head_and_ends_when_that_says_so() {
    let mut scene = Scene::new();
    scene.event(Event::ToldToLeave { within: Span::secs(5) });
    assert_eq!(scene.told_head(), [NodeToHead::Drain { deadline_ms: 5_000 }]);
    scene.head(HeadToNode::Drained);
    assert!(scene.todo().contains(&Effect::End));
}

#[test]
fn told_to_leave_it_does_not_wait_for_a_head_that_is_away_or_says_nothing() {
    let mut scene = Scene::new();
    scene.event(Event::ToldToLeave { within: Span::secs(5) });
    scene.pass(Span::secs(6));
    assert!(!scene.todo().contains(&Effect::End));
    scene.pass(Span::secs(2));
    assert!(scene.todo().contains(&Effect::End));

    // Another head may come, and take over what is here.
    let mut scene = Scene::new();
    scene.event(Event::HeadLost);
    scene.event(Event::ToldToLeave { within: Span::secs(5) });
    scene.pass(Span::secs(4));
    assert!(!scene.todo().contains(&Effect::End));
    scene.pass(Span::secs(4));
    assert!(scene.todo().contains(&Effect::End));

    let mut scene = Scene::alone();
    scene.event(Event::ToldToLeave { within: Span::secs(5) });
    assert!(scene.todo().contains(&Effect::End), "nobody ever knew of it");
}

fn resumed() -> HeadToNode {
    HeadToNode::Resumed { term: Default::default(), incarnation: Default::default(), loss_timeout_ms: 5000 }
}

#[test]
fn what_runs_goes_on_under_a_head_of_a_new_term_which_is_told_of_it() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    scene.event(Event::HeadLost);
    scene.said.clear();
    scene.head(resumed());
    assert_eq!(scene.todo(), [], "nothing is ended");
    let told = scene.told_head();
    let runs = told.iter().any(|message| {
        matches!(message, NodeToHead::Running { spec, attempt, lease: Some(_), .. }
            if spec.id == task(1) && *attempt == run.attempt)
    });
    assert!(runs, "{told:?}");
    assert!(
        told.iter()
            .any(|message| matches!(message, NodeToHead::Kept { object, .. } if *object == function()))
    );
    assert!(told.contains(&NodeToHead::SnapshotEnd));
    scene.returns(executor, run.tag);
    assert_eq!(scene.done().len(), 1);
}

#[test]
fn an_end_that_nobody_confirmed_is_told_the_next_head_and_one_that_is_settled_is_not() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    scene.returns(executor, run.tag);
    scene.event(Event::HeadLost);
    scene.said.clear();
    scene.head(resumed());
    let ended = |scene: &mut Scene| {
        let told = scene.told_head();
        told.iter().filter(|message| matches!(message, NodeToHead::Ended { .. })).count()
    };
    assert_eq!(ended(&mut scene), 1);
    // A mark follows it; when that is settled, everybody knows.
    scene.pass(Span::secs(1));
    scene.head(HeadToNode::Pulse { number: 9, settled: 1_000 });
    scene.event(Event::HeadLost);
    scene.said.clear();
    scene.head(resumed());
    assert_eq!(ended(&mut scene), 0);
}

#[test]
fn what_clients_hold_and_wish_is_told_the_next_head() {
    let mut scene = Scene::new();
    scene.driver_says(ClientToNode::Submit(scene.spec(1, &[])));
    scene.driver_says(ClientToNode::Submit(scene.spec(2, &[])));
    scene.driver_says(ClientToNode::Drop(vec![task(1).result(0)]));
    scene.driver_says(ClientToNode::Kill { actor: task(9).result(0), restart: false });
    scene.event(Event::HeadLost);
    scene.said.clear();
    scene.head(resumed());
    let told = scene.told_head();
    let hold = NodeToHead::Hold { client: DRIVER, objects: vec![function(), task(2).result(0)] };
    let drop = NodeToHead::Drop { client: DRIVER, objects: vec![task(1).result(0)] };
    let kill = NodeToHead::Kill { client: DRIVER, actor: task(9).result(0), restart: false };
    for message in [hold, drop, kill] {
        assert!(told.contains(&message), "{message:?} is not in {told:?}");
    }
}

#[test]
fn what_made_a_result_that_lies_here_is_told_the_next_head_though_its_submitter_dropped_it() {
    let mut scene = Scene::new();
    let result = task(1).result(0);
    scene.driver_says(ClientToNode::Submit(scene.spec(1, &[])));
    let outcome = FinishedOutcome::Ok(vec![ResultValue::Stored { size: 10_000 }]);
    scene.head(HeadToNode::Finished { task: task(1), outcome });
    scene.driver_says(ClientToNode::Get(vec![result]));
    let located = Located::Stored { size: 10_000, copies: vec![(NodeId(5), "b:8266".into())] };
    scene.head(HeadToNode::Located { object: result, located });
    scene.event(Event::Stored { object: result, location: own(0, 10_000) });
    // Another's value has it inside, so somebody may still ask for it.
    scene.driver_says(ClientToNode::Release(vec![result]));
    scene.driver_says(ClientToNode::Drop(vec![result]));
    let made = |scene: &mut Scene| {
        scene.said.clear();
        scene.head(resumed());
        scene.told_head().iter().any(|told| matches!(told, NodeToHead::Made(spec) if spec.id == task(1)))
    };
    assert!(made(&mut scene));
    scene.head(HeadToNode::Free(vec![result]));
    assert!(!made(&mut scene), "nobody can ask any more");
}

#[test]
fn an_attempt_of_a_task_whose_earlier_one_is_still_here_goes_back() {
    let mut scene = Scene::new();
    let (_, run) = scene.running(1);
    scene.said.clear();
    let again = |n| HeadToNode::Assign {
        spec: run.spec.clone(),
        attempt: attempt(n),
        lease: Some(Default::default()),
        located: Vec::new(),
    };
    scene.head(again(1));
    assert_eq!(scene.told_head(), [], "it is the same one");
    scene.head(again(2));
    assert_eq!(scene.told_head(), [NodeToHead::Returned(vec![(task(1), attempt(2))])]);
}

#[test]
fn why_a_task_failed_is_told_the_next_head_while_another_needs_its_result() {
    let mut scene = Scene::new();
    let result = task(1).result(0);
    scene.driver_says(ClientToNode::Submit(scene.spec(1, &[])));
    scene.driver_says(ClientToNode::Submit(scene.spec(2, &[result])));
    scene.driver_says(ClientToNode::Drop(vec![result]));
    let failed = || FinishedOutcome::Failed(failure(FailureKind::GroupRemoved, "removed".to_owned(), None));
    scene.head(HeadToNode::Finished { task: task(1), outcome: failed() });
    let told_of = |scene: &mut Scene| {
        scene.event(Event::HeadLost);
        scene.said.clear();
        scene.head(resumed());
        let told = scene.told_head();
        let why =
            told.iter().any(|said| matches!(said, NodeToHead::PutFailed { object, .. } if *object == result));
        let drop = NodeToHead::Drop { client: DRIVER, objects: vec![result] };
        (why, told.contains(&drop))
    };
    assert_eq!(told_of(&mut scene), (true, true), "its submitter does not hold it");
    scene.head(HeadToNode::Finished { task: task(2), outcome: failed() });
    assert_eq!(told_of(&mut scene), (false, false));
}

#[test]
fn an_answer_that_comes_when_whoever_asked_is_gone_leaves_nothing() {
    let object = task(5).result(0);
    let durable = Located::Durable { size: MIB, writer: NodeId(2) };
    for located in [elsewhere(MIB), durable, Located::Inline(Bytes::from_static(b"5"))] {
        let mut scene = Scene::new();
        scene.driver_says(ClientToNode::Get(vec![object]));
        scene.event(Event::ClientEnded { client: DRIVER });
        scene.said.clear();
        scene.head(HeadToNode::Located { object, located });
        assert_eq!(scene.todo(), []);
        assert!(!scene.node.objects.contains_key(&object));
    }
}

#[test]
fn a_job_that_nothing_here_is_of_is_forgotten_when_another_head_leads() {
    for news in [resumed(), admitted()] {
        let mut scene = Scene::new();
        let idle = JobId(99);
        scene.head(HeadToNode::Job { job: idle, info: Default::default() });
        scene.event(Event::HeadLost);
        scene.head(news);
        let known: Vec<JobId> = scene.node.jobs.keys().copied().collect();
        assert_eq!(known, [JOB], "that of the driver goes on");
    }
}

#[test]
fn what_came_along_with_a_call_that_goes_back_at_once_is_forgotten() {
    let mut scene = Scene::new();
    let argument = task(5).result(0);
    let mut spec = scene.spec(6, &[argument]);
    let kind = TaskKind::Method { method: "m".into(), group: "".into(), concurrent: false };
    let actor = task(9).result(0);
    spec.template = Arc::new(TaskTemplate { kind, function: actor, ..spec.template.as_ref().clone() });
    let located = vec![(argument, Located::Inline(Bytes::from_static(b"5")))];
    scene.head(HeadToNode::Assign { spec: Arc::new(spec), attempt: attempt(1), lease: None, located });
    assert!(scene.told_head().contains(&NodeToHead::Returned(vec![(task(6), attempt(1))])));
    assert!(!scene.node.objects.contains_key(&argument));
}
