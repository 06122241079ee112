//! A task's way, retries, losses, and messages that cross each other.

use cluster_types::client_node::{FinishedOutcome, LogLine};
use cluster_types::node_head::Retry;
use cluster_types::query::{Query, QueryReply};
use cluster_types::task::Strategy;
use cluster_types::{
    ClientId, ClientKind, FailureKind, HeadToNode, JobId, NodeToHead, ObjectId, Resources, ResultValue, Span,
    TaskId, TaskTemplate,
};

use super::scene::*;
use crate::{Effect, Event, HeadConfig};

#[test]
fn a_task_is_submitted_assigned_done_and_finished() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit(&[]);
    let assigned = scene.assigned_one();
    assert_eq!((assigned.node, assigned.task), (node(1), task));
    assert!(assigned.lease.is_some());
    scene.done(&assigned, inline(b"42"));
    let outcome = scene.finished(1, task);
    assert_eq!(outcome, Some(FinishedOutcome::Ok(vec![ResultValue::Inline("42".into())])));
}

#[test]
fn a_job_is_told_before_its_first_task_and_only_once() {
    let mut scene = Scene::cluster(&[0, 2]);
    scene.submit(&[]);
    scene.submit(&[]);
    let heard = scene.heard(2);
    assert!(matches!(heard[0], HeadToNode::Job { .. }));
    assert_eq!(heard.iter().filter(|message| matches!(message, HeadToNode::Job { .. })).count(), 1);
}

#[test]
fn the_node_of_a_driver_is_told_of_the_end_of_its_job_also_when_none_of_it_ran_there() {
    let mut scene = Scene::cluster(&[2]);
    scene.tell(1, NodeToHead::ClientGone { client: DRIVER });
    let heard = scene.heard(1);
    assert!(heard.iter().any(|message| matches!(message, HeadToNode::JobEnded(_))), "{heard:?}");
}

#[test]
fn a_repeated_submit_changes_nothing() {
    let mut scene = Scene::cluster(&[2]);
    let template = scene.template("f", Resources::cpus(1));
    let spec = scene.spec(DRIVER, template, &[]);
    scene.tell(1, NodeToHead::Submit(spec.clone()));
    scene.tell(1, NodeToHead::Submit(spec.clone()));
    let assigned = scene.assigned_one();
    scene.done(&assigned, inline(b"1"));
    scene.said.clear();
    scene.tell(1, NodeToHead::Submit(spec));
    assert_eq!(scene.said, []);
}

#[test]
fn a_stale_report_changes_nothing() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit(&[]);
    let first = scene.assigned_one();
    scene.ended(&first, failed(FailureKind::ExecutorDied), Retry::Infrastructure, None);
    let second = scene.assigned_one();
    assert_eq!(second.attempt.n, 2);
    scene.done(&first, inline(b"stale"));
    assert_eq!(scene.finished(1, task), None);
    scene.done(&second, inline(b"good"));
    assert!(matches!(scene.finished(1, task), Some(FinishedOutcome::Ok(_))));
}

#[test]
fn retries_end_and_the_failure_spreads_to_dependants() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit(&[]);
    let child = scene.submit(&[task.result(0)]);
    let grandchild = scene.submit(&[child.result(0)]);
    for attempt in 1..=4 {
        let assigned = scene.assigned_one();
        assert_eq!(assigned.attempt.n, attempt);
        scene.ended(&assigned, failed(FailureKind::ExecutorDied), Retry::Infrastructure, None);
    }
    let said = scene.said.clone();
    for id in [task, child, grandchild] {
        scene.said = said.clone();
        assert_eq!(scene.failed_with(1, id).kind, FailureKind::ExecutorDied);
    }
}

#[test]
fn an_exception_nobody_wants_retried_is_final() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit(&[]);
    let assigned = scene.assigned_one();
    scene.ended(&assigned, failed(FailureKind::Exception), Retry::No, None);
    assert_eq!(scene.failed_with(1, task).kind, FailureKind::Exception);
}

#[test]
fn a_lost_nodes_tasks_run_again_and_what_was_sent_ahead_costs_no_retry() {
    let mut scene = Scene::cluster(&[0, 1]);
    let first = scene.submit(&[]);
    let second = scene.submit(&[]);
    let assigned = scene.assigned();
    assert!(assigned.iter().all(|a| a.node == node(2)));
    scene.disconnect(2);
    scene.join(3, Resources::cpus(2));
    let again = scene.assigned();
    let mut tasks: Vec<_> = again.iter().map(|a| (a.node, a.task, a.attempt.n)).collect();
    tasks.sort_unstable();
    assert_eq!(tasks, [(node(3), first, 2), (node(3), second, 2)]);
    // FENCE-1: what the old incarnation still says changes nothing.
    scene.tell(2, NodeToHead::Heartbeat { store: Default::default(), executors: 0 });
    scene.done(&assigned[0], inline(b"old"));
    assert_eq!(scene.finished(1, first), None);
}

#[test]
fn a_silent_node_is_lost_and_comes_back_under_a_higher_incarnation() {
    let mut scene = Scene::cluster(&[1, 1]);
    let before = scene.incarnations[&node(2)];
    scene.said.clear();
    for _ in 0..60 {
        scene.now = scene.now + Span::millis(100);
        scene.tell(1, NodeToHead::Heartbeat { store: Default::default(), executors: 0 });
        scene.event(Event::Tick);
    }
    let closed = scene
        .said
        .iter()
        .any(|effect| matches!(effect, Effect::CloseNode { node: lost, .. } if *lost == node(2)));
    assert!(closed);
    scene.join(2, Resources::cpus(1));
    assert!(scene.incarnations[&node(2)] > before);
}

#[test]
fn a_task_no_node_can_run_fails_at_once_where_nobody_can_join() {
    let mut scene = Scene::with(HeadConfig { closed: true, ..HeadConfig::default() });
    scene.join(1, Resources::cpus(2));
    scene.driver(1);
    let task = scene.submit_as(1, DRIVER, with_gpus(1, 2), &[]);
    let failure = scene.failed_with(1, task);
    assert_eq!(failure.kind, FailureKind::Unschedulable);
    assert!(failure.message.contains("needs 2 GPU; no node has more than 0"), "{}", failure.message);
}

#[test]
fn elsewhere_the_driver_is_told_once_and_the_task_waits() {
    let mut scene = Scene::cluster(&[2]);
    let task = scene.submit_as(1, DRIVER, with_gpus(1, 2), &[]);
    scene.submit_as(1, DRIVER, with_gpus(1, 2), &[]);
    scene.pass(Span::secs(1));
    let notices: Vec<String> = scene
        .heard(1)
        .into_iter()
        .filter_map(|message| match message {
            HeadToNode::Notice { client: DRIVER, text } => Some(text),
            _ => None,
        })
        .collect();
    assert_eq!(notices, ["task f needs 2 GPU; no node has more than 0 — it waits for a node to join"]);
    scene.join(2, with_gpus(1, 2));
    assert_eq!(scene.assigned()[0].task, task);
}

#[test]
fn a_drivers_end_ends_its_job_everywhere_and_its_leases_when_the_nodes_say_so() {
    let mut scene = Scene::cluster(&[0, 1]);
    let running = scene.submit(&[]);
    let ahead = scene.submit(&[]);
    scene.submit(&[]);
    let assigned = scene.assigned();
    assert_eq!(assigned.iter().map(|a| a.task).collect::<Vec<_>>(), [running, ahead]);
    scene.tell(1, NodeToHead::ClientGone { client: DRIVER });
    let heard = scene.heard(2);
    assert_eq!(heard.iter().filter(|message| matches!(message, HeadToNode::Cancel { .. })).count(), 2);
    assert!(heard.contains(&HeadToNode::JobEnded(JOB)));
    assert!(heard.contains(&HeadToNode::ClientGone(DRIVER)));
    // A report that crosses the end of the job; then the heir's own.
    scene.done_and_started(&assigned[0], inline(b""), Some(&assigned[1]));
    scene.ended(&assigned[1], failed(FailureKind::Cancelled), Retry::No, None);
    assert_eq!(scene.head.tasks.iter().count(), 0);
    assert_eq!(scene.head.objects.len(), 0);
}

#[test]
fn an_heir_from_another_job_keeps_the_lease_of_a_job_that_ended() {
    let mut scene = Scene::cluster(&[0, 1]);
    let other_driver = ClientId(0xe);
    let other_job = JobId(8);
    let kind = ClientKind::Driver { job: other_job, info: Default::default() };
    scene.tell(1, NodeToHead::ClientAttached { client: other_driver, kind, job: other_job, pid: 1 });
    scene.hold(1, other_driver, function());
    scene.submit(&[]);
    let template = scene.template("f", Resources::cpus(1));
    let mut spec = scene.spec(other_driver, template, &[]);
    spec.job = other_job;
    let heir = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    let assigned = scene.assigned();
    assert_eq!(assigned[1].task, heir);
    scene.tell(1, NodeToHead::ClientGone { client: DRIVER });
    scene.done_and_started(&assigned[0], inline(b""), Some(&assigned[1]));
    scene.done(&assigned[1], inline(b"mine"));
    assert!(matches!(scene.finished(1, heir), Some(FinishedOutcome::Ok(_))));
}

#[test]
fn a_driver_that_was_out_of_touch_submits_again_and_its_tasks_run_again() {
    let mut scene = Scene::cluster(&[0, 1]);
    let template = scene.template("f", Resources::cpus(1));
    let running = scene.spec(DRIVER, template.clone(), &[]);
    let queued = scene.spec(DRIVER, template.clone(), &[]);
    let third = scene.spec(DRIVER, template, &[]);
    for spec in [&running, &queued, &third] {
        scene.tell(1, NodeToHead::Submit(spec.clone()));
    }
    let assigned = scene.assigned();
    scene.disconnect(1);
    scene.join(1, Resources::cpus(0));
    scene.driver(1);
    for spec in [&running, &queued, &third] {
        scene.tell(1, NodeToHead::Submit(spec.clone()));
    }
    // Only now node 2 says that the attempts it was to cancel ended.
    for assigned in &assigned {
        scene.ended(assigned, failed(FailureKind::Cancelled), Retry::No, None);
    }
    assert_eq!(scene.heard(1), []);
    let mut seen = Vec::new();
    for _ in 0..3 {
        for assigned in scene.assigned() {
            seen.push(assigned.task);
            scene.done(&assigned, inline(b"1"));
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [running.id, queued.id, third.id]);
}

#[test]
fn what_only_a_dead_executor_wanted_ends_and_what_others_hold_goes_on() {
    let mut scene = Scene::cluster(&[0, 4]);
    let executor = scene.executor(2, 5);
    let wanted = scene.submit_as(2, executor, Resources::cpus(1), &[]);
    let unwanted = scene.submit_as(2, executor, Resources::cpus(1), &[]);
    let never_started = scene.submit_as(2, executor, Resources::cpus(100), &[]);
    let assigned = scene.assigned();
    scene.hold(1, DRIVER, wanted.result(0));
    scene.tell(2, NodeToHead::ClientGone { client: executor });
    let cancelled: Vec<_> = scene
        .heard(2)
        .into_iter()
        .filter_map(|message| match message {
            HeadToNode::Cancel { task, .. } => Some(task),
            _ => None,
        })
        .collect();
    assert_eq!(cancelled, [unwanted]);
    assert!(scene.head.tasks.find(never_started).is_none());
    // The lease is the cancelled attempt's until the node says that it ended.
    let unwanted = assigned.iter().find(|a| a.task == unwanted).unwrap();
    scene.ended(unwanted, failed(FailureKind::Cancelled), Retry::Infrastructure, None);
    assert_eq!(scene.assigned(), []);
}

#[test]
fn a_clients_death_at_any_step_of_its_task_leaves_nothing_behind() {
    for step in 0..5 {
        let mut scene = Scene::cluster(&[0, 1]);
        let executor = scene.executor(1, 5);
        let put = ObjectId::put(executor, 1);
        let mut assigned = None;
        for at in 0..=step {
            match at {
                0 => scene.escape(1, put, &[]),
                1 => {
                    scene.submit_as(1, executor, Resources::cpus(1), &[put]);
                    assigned = Some(scene.assigned_one());
                }
                2 => scene.blocked(assigned.as_ref().unwrap(), &[]),
                3 => scene.unblocked(assigned.as_ref().unwrap()),
                _ => scene.done(assigned.as_ref().unwrap(), stored(1 << 20)),
            }
        }
        scene.tell(1, NodeToHead::ClientGone { client: executor });
        if let Some(assigned) = assigned {
            scene.ended(&assigned, failed(FailureKind::Cancelled), Retry::No, None);
        }
        let known: Vec<_> = scene.head.objects.iter().map(|(_, object)| object.id).collect();
        assert_eq!(known, [function()], "died after step {step}");
        assert_eq!(scene.head.tasks.iter().count(), 0, "died after step {step}");
    }
}

#[test]
fn work_goes_where_its_arguments_are() {
    let mut scene = Scene::cluster(&[4, 4, 4]);
    let put = ObjectId::put(DRIVER, 50);
    scene.escape(1, put, &[]);
    scene.tell(3, NodeToHead::CopyAdded(put));
    scene.tell(1, NodeToHead::CopyRemoved(put));
    scene.submit(&[put]);
    assert_eq!(scene.assigned_one().node, node(3));
}

#[test]
fn work_is_packed_up_to_half_a_node_then_spread() {
    let mut scene = Scene::cluster(&[4, 4]);
    let nodes: Vec<u64> = (0..6)
        .map(|_| {
            scene.submit(&[]);
            scene.assigned_one().node.0
        })
        .collect();
    assert_eq!(nodes[0], nodes[1]);
    assert_eq!(nodes[2], nodes[3]);
    assert_ne!(nodes[0], nodes[2]);
    assert_ne!(nodes[4], nodes[5]);
}

#[test]
fn a_task_bound_to_a_node_runs_there_or_fails_with_it() {
    let mut scene = Scene::cluster(&[4, 4]);
    let bound = |scene: &mut Scene, soft| {
        let template = scene.template("f", Resources::cpus(4));
        let strategy = Strategy::Node { id: node(2), soft };
        let mut spec = scene.spec(DRIVER, template, &[]);
        spec.template = std::sync::Arc::new(TaskTemplate { strategy, ..(*spec.template).clone() });
        let id = spec.id;
        scene.tell(1, NodeToHead::Submit(spec));
        id
    };
    let first = bound(&mut scene, false);
    assert_eq!(scene.assigned_one().node, node(2));
    let waiting: Vec<_> = (0..2).map(|_| bound(&mut scene, false)).collect();
    let soft = bound(&mut scene, true);
    scene.said.clear();
    scene.disconnect(2);
    let said = scene.said.clone();
    assert_eq!(scene.failed_with(1, waiting[1]).kind, FailureKind::Unschedulable);
    scene.said = said.clone();
    assert_eq!(scene.failed_with(1, first).kind, FailureKind::Unschedulable);
    scene.said = said;
    let moved = scene.assigned_one();
    assert_eq!((moved.node, moved.task), (node(1), soft));
    let late = bound(&mut scene, false);
    assert_eq!(scene.failed_with(1, late).kind, FailureKind::Unschedulable);
}

#[test]
fn logs_go_to_the_driver_of_their_job() {
    let mut scene = Scene::cluster(&[1, 1]);
    let line = |job| LogLine { job, task: None, pid: 1, node: node(2), stderr: false, text: "hi".into() };
    scene.tell(2, NodeToHead::Log(vec![line(JOB), line(JobId(99)), line(JOB)]));
    assert_eq!(scene.heard(1), [HeadToNode::Log { client: DRIVER, lines: vec![line(JOB), line(JOB)] }]);
}

#[test]
fn why_says_what_is_waited_for() {
    let mut scene = Scene::cluster(&[1]);
    let why = |scene: &mut Scene, task: TaskId| {
        scene.said.clear();
        scene.event(Event::Query { number: 1, query: Query::Why { task: task.to_string() } });
        match scene.said.pop() {
            Some(Effect::Reply { number: 1, reply: Ok(QueryReply::Why(why)) }) => why,
            other => panic!("{other:?}"),
        }
    };
    let gpu = scene.submit_as(1, DRIVER, with_gpus(1, 2), &[]);
    let running = scene.submit(&[]);
    let waiting = scene.submit(&[running.result(0)]);
    let told = why(&mut scene, gpu);
    assert_eq!(told.reason, "it needs 2 GPU; no node has more than 0; it waits for a node to join");
    assert_eq!(told.nodes, ["host1: 2 GPU asked, 0 in all"]);
    let told = why(&mut scene, waiting);
    assert_eq!(
        told.reason,
        format!(
            "it waits for its argument {}, the result of task f, which is running on node host1",
            running.result(0)
        )
    );
    assert!(why(&mut scene, running).reason.starts_with("it was given to node host1"));
}
