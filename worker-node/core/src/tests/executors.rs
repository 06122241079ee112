//! Executors: started when one is missing, used again, ended when idle, and what becomes of their tasks when they die.

use cluster_types::client_node::FinishedOutcome;
use cluster_types::{
    ClientToNode, FailureKind, HeadToNode, NodeToClient, NodeToHead, Outcome, Span, TaskId, TaskSpec,
};

use super::scene::*;
use crate::{Effect, Event};

fn exited(executor: u32, unstarted: &[u64]) -> Event {
    let cause = "killed by signal 9 (SIGKILL)".to_owned();
    Event::ExecutorExited { executor, cause, unstarted: unstarted.to_vec() }
}

#[test]
fn an_idle_executor_is_used_before_another_is_started() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    scene.returns(executor, run.tag);
    scene.assign(2, true, &[]);
    assert_eq!(scene.run(executor).spec.id, task(2));
    assert_eq!(scene.todo(), []);
}

#[test]
fn a_function_is_given_to_an_executor_once() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    assert_eq!(run.values.len(), 1);
    scene.returns(executor, run.tag);
    scene.assign(2, true, &[]);
    assert_eq!(scene.run(executor).values, []);
}

#[test]
fn the_task_of_a_dead_executor_fails_with_the_cause_and_may_be_tried_again() {
    let mut scene = Scene::new();
    scene.running(1);
    scene.event(exited(1, &[]));
    let told = scene.told_head();
    let Some(NodeToHead::Done { outcome: Outcome::Failed(failure), retry, .. }) = told.last() else {
        panic!("{told:?}")
    };
    assert_eq!(failure.kind, FailureKind::ExecutorDied);
    assert!(failure.message.contains("SIGKILL") && failure.message.contains("pid 9"), "{}", failure.message);
    assert_eq!(*retry, cluster_types::node_head::Retry::Infrastructure);
}

#[test]
fn what_a_dead_executor_had_not_claimed_runs_elsewhere_in_the_freed_lease() {
    let mut scene = Scene::new();
    let executor = scene.f_is_short();
    scene.assign(1, true, &[]);
    scene.assign(2, false, &[]);
    let runs = scene.runs(executor);
    scene.event(exited(1, &[runs[1].tag]));
    assert_eq!(scene.done(), [(task(1), false, Some(task(2)))]);
    let other = scene.executor();
    assert_eq!(scene.run(other).spec.id, task(2));
}

#[test]
fn three_starts_that_fail_end_the_tasks_that_wait() {
    let mut scene = Scene::new();
    scene.assign(1, true, &[]);
    for executor in 1..=3 {
        assert!(matches!(scene.todo()[..], [Effect::StartExecutor { .. }]));
        scene.event(exited(executor, &[]));
    }
    assert_eq!(scene.done(), [(task(1), false, None)]);
}

#[test]
fn executors_that_stay_idle_are_ended_down_to_the_number_kept() {
    let mut scene = Scene::new();
    let (first, one) = scene.running(1);
    let (second, two) = scene.running(2);
    scene.returns(first, one.tag);
    scene.returns(second, two.tag);
    scene.said.clear();
    scene.pass(Span::secs(61));
    let ended = scene.todo().into_iter().filter(|effect| matches!(effect, Effect::EndExecutor { .. }));
    assert_eq!(ended.collect::<Vec<_>>(), [Effect::EndExecutor { executor: 1, force: false }]);
    assert!(scene.told(first).contains(&NodeToClient::Exit));
}

#[test]
fn an_idle_executor_whose_tasks_still_run_is_kept() {
    let mut scene = Scene::new();
    let (first, one) = scene.running(1);
    let (second, two) = scene.running(2);
    let nested = TaskId { client: first, seq: 5 };
    let spec = TaskSpec { id: nested, ..scene.spec(5, &[]) };
    scene.says(first, ClientToNode::Submit(spec));
    scene.returns(first, one.tag);
    scene.returns(second, two.tag);
    scene.said.clear();
    scene.pass(Span::secs(61));
    let ended = |scene: &mut Scene| {
        let of = |effect| match effect {
            Effect::EndExecutor { executor, .. } => Some(executor),
            _ => None,
        };
        scene.todo().into_iter().filter_map(of).collect::<Vec<_>>()
    };
    assert_eq!(ended(&mut scene), [2], "the other one, though it was idle for less long");
    scene.said.clear();
    scene.assign(3, true, &[]);
    let three = scene.run(first);
    let (fourth, four) = scene.running(4);
    scene.returns(first, three.tag);
    scene.returns(fourth, four.tag);
    scene.head(HeadToNode::Finished { task: nested, outcome: FinishedOutcome::Ok(Vec::new()) });
    scene.pass(Span::secs(61));
    assert_eq!(ended(&mut scene).len(), 1);
}

#[test]
fn what_waits_behind_a_long_task_is_taken_back() {
    let mut scene = Scene::new();
    let executor = scene.f_is_short();
    scene.assign(1, true, &[]);
    scene.assign(2, false, &[]);
    let tag = scene.runs(executor)[1].tag;
    scene.pass(Span::millis(100));
    let revoked = |effect: &Effect| matches!(effect, Effect::Revoke { tag: of, .. } if *of == tag);
    assert!(scene.todo().iter().any(revoked));
}

#[test]
fn an_executor_that_nobody_started_is_refused() {
    let mut scene = Scene::new();
    let client = scene.attach(77);
    let said = std::mem::take(&mut scene.said);
    assert!(matches!(said[0], Effect::ToClient { message: NodeToClient::Rejected { .. }, .. }), "{said:?}");
    assert_eq!(said[1], Effect::CloseClient { client });
}
