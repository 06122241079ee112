//! Promotion, blocked tasks, sending ahead, grants and call-backs (rules S2 and S4).

use std::collections::VecDeque;

use cluster_types::{Amount, ClientId, HeadToNode, NodeToHead, ObjectId, Resources, Span};

use super::scene::*;
use crate::HeadConfig;

fn grants(heard: &[HeadToNode]) -> Vec<cluster_types::TaskId> {
    heard
        .iter()
        .filter_map(|message| match message {
            HeadToNode::Grant { task, .. } => Some(*task),
            _ => None,
        })
        .collect()
}

#[test]
fn one_attempt_is_sent_ahead_and_inherits_the_lease() {
    let mut scene = Scene::cluster(&[1]);
    let tasks: Vec<_> = (0..3).map(|_| scene.submit(&[])).collect();
    let assigned = scene.assigned();
    assert_eq!(assigned.iter().map(|a| a.task).collect::<Vec<_>>(), tasks[..2]);
    assert!(assigned[0].lease.is_some() && assigned[1].lease.is_none());
    scene.done_and_started(&assigned[0], inline(b"1"), Some(&assigned[1]));
    let third = scene.assigned_one();
    assert!(third.lease.is_none(), "the lease went to the second");
    scene.done(&assigned[1], inline(b"2"));
    assert_eq!(grants(&scene.heard(1)), [tasks[2]], "the node did not hand it on: the head does");
}

#[test]
fn a_grant_that_crosses_an_inherited_start_is_taken_back() {
    // Two cores; the second attempt ahead is granted a lease while the node starts it in an inherited one.
    let mut scene = Scene::empty();
    scene.join(1, Resources::cpus(2));
    scene.driver(1);
    let parent = scene.submit(&[]);
    let other = scene.submit(&[]);
    let child = scene.submit(&[]);
    let assigned = scene.assigned();
    let [parent, other, child] =
        [parent, other, child].map(|id| assigned.iter().find(|a| a.task == id).unwrap().clone());
    assert!(child.lease.is_none());
    scene.blocked(&parent, &[child.task.result(0)]);
    assert_eq!(grants(&scene.heard(1)), [child.task]);
    // The report that crossed the grant.
    scene.done_and_started(&other, inline(b"1"), Some(&child));
    // One core is the child's; the other, granted in vain, is free again: the next task starts at once.
    scene.said.clear();
    scene.submit(&[]);
    assert!(scene.assigned_one().lease.is_some());
    scene.submit(&[]);
    assert!(scene.assigned_one().lease.is_none());
}

#[test]
fn a_called_back_task_moves_only_when_it_is_returned() {
    let mut scene = Scene::cluster(&[1, 0]);
    let tasks: Vec<_> = (0..2).map(|_| scene.submit(&[])).collect();
    let assigned = scene.assigned();
    assert_eq!(assigned[1].lease, None);
    scene.join(3, Resources::cpus(1));
    scene.pass(Span::millis(300));
    let called = scene.heard(1).into_iter().any(|message| {
        matches!(message, HeadToNode::CallBack(attempts) if attempts == [(tasks[1], assigned[1].attempt)])
    });
    assert!(called);
    assert_eq!(scene.assigned(), []);
    scene.tell(1, NodeToHead::Returned(vec![(tasks[1], assigned[1].attempt)]));
    let moved = scene.assigned_one();
    assert_eq!((moved.node, moved.task, moved.attempt.n), (node(3), tasks[1], 2));
    // A report of the attempt that was returned is stale.
    scene.done(&assigned[1], inline(b"stale"));
    assert_eq!(scene.finished(1, tasks[1]), None);
}

#[test]
fn a_task_that_started_before_the_call_back_came_stays() {
    let mut scene = Scene::cluster(&[1]);
    let tasks: Vec<_> = (0..2).map(|_| scene.submit(&[])).collect();
    let assigned = scene.assigned();
    scene.join(2, Resources::cpus(1));
    scene.pass(Span::millis(300));
    scene.done_and_started(&assigned[0], inline(b"1"), Some(&assigned[1]));
    scene.done(&assigned[1], inline(b"2"));
    assert!(scene.finished(1, tasks[1]).is_some());
}

#[test]
fn a_grant_and_a_call_back_that_cross_leave_the_task_once() {
    let mut scene = Scene::cluster(&[1]);
    let parent = scene.submit(&[]);
    let child = scene.submit(&[]);
    let assigned = scene.assigned();
    assert_eq!(assigned[0].task, parent);
    scene.join(2, Resources::cpus(1));
    scene.pass(Span::millis(300));
    scene.blocked(&assigned[0], &[child.result(0)]);
    assert_eq!(grants(&scene.heard(1)), [child]);
    scene.tell(1, NodeToHead::Returned(vec![(child, assigned[1].attempt)]));
    let again = scene.assigned_one();
    assert_eq!((again.task, again.attempt.n), (child, 2));
}

#[test]
fn what_a_blocked_task_waits_for_goes_before_what_came_earlier() {
    let mut scene = Scene::with(HeadConfig { prefetch_max: 0, ..HeadConfig::default() });
    scene.join(1, Resources::cpus(1));
    scene.driver(1);
    let parent = scene.submit(&[]);
    let parent_at = scene.assigned_one();
    assert_eq!(parent_at.task, parent);
    let others: Vec<_> = (0..3).map(|_| scene.submit(&[])).collect();
    let leaf = scene.submit(&[]);
    let child = scene.submit(&[leaf.result(0)]);
    scene.blocked(&parent_at, &[child.result(0)]);
    let leaf_at = scene.assigned_one();
    assert_eq!(leaf_at.task, leaf, "promoted through the child's argument");
    scene.done(&leaf_at, inline(b"1"));
    let child_at = scene.assigned_one();
    assert_eq!(child_at.task, child);
    // The child ends; one more may start in the parent's core, for executors are fewer than twice the cores.
    scene.done(&child_at, inline(b"2"));
    assert_eq!(scene.assigned_one().task, others[0]);
    // The parent wakes: its core is booked twice, and nothing starts until that is over.
    scene.unblocked(&parent_at);
    scene.done(&parent_at, inline(b"3"));
    assert_eq!(scene.assigned(), []);
}

#[test]
fn other_work_uses_given_back_cpu_only_up_to_twice_the_cores_then_with_growing_pauses() {
    let mut scene = Scene::with(HeadConfig { prefetch_max: 0, ..HeadConfig::default() });
    scene.join(1, Resources::cpus(1));
    scene.driver(1);
    let never = ObjectId::put(DRIVER, 5);
    let mut starts = Vec::new();
    for _ in 0..10 {
        scene.submit(&[]);
    }
    for _ in 0..80 {
        for assigned in scene.assigned() {
            starts.push(scene.now.0 / 100_000);
            scene.blocked(&assigned, &[never]);
        }
        let said: Vec<_> = scene.said.clone();
        scene.pass(Span::millis(100));
        scene.said.splice(0..0, said);
    }
    let begin = starts[0];
    let after: Vec<u64> = starts.iter().map(|start| start - begin).collect();
    assert_eq!(after[..2], [0, 1], "twice the core without a pause");
    let pauses: Vec<u64> = after[1..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() >= 2 && pauses.windows(2).all(|pair| pair[1] > pair[0]), "{after:?}");
}

/// A node with one core that obeys rule S2 and S4, and runs programs that nest.
#[test]
fn a_chain_of_nested_tasks_on_one_core_ends() {
    const DEPTH: u64 = 50;
    let mut scene = Scene::cluster(&[1]);
    let first = scene.submit(&[]);
    let mut levels = vec![first];
    let mut executors: Vec<(Assigned, ClientId)> = Vec::new();
    let mut ahead: VecDeque<Assigned> = VecDeque::new();
    let mut woken = 0;
    for _ in 0..10_000 {
        let said = std::mem::take(&mut scene.said);
        if said.is_empty() {
            break;
        }
        for effect in said {
            let crate::Effect::ToNode { message, .. } = effect else { continue };
            match message {
                HeadToNode::Assign { spec, attempt, lease, .. } => {
                    let assigned = Assigned { node: node(1), task: spec.id, attempt, lease };
                    if assigned.lease.is_some() {
                        run(&mut scene, assigned, &mut levels, &mut executors, DEPTH);
                    } else {
                        ahead.push_back(assigned);
                    }
                }
                HeadToNode::Grant { task, .. } => {
                    let at = ahead.iter().position(|a| a.task == task).unwrap();
                    let assigned = ahead.remove(at).unwrap();
                    run(&mut scene, assigned, &mut levels, &mut executors, DEPTH);
                }
                HeadToNode::Finished { task, .. } => {
                    let Some(at) = levels.iter().position(|level| *level == task) else { continue };
                    if at == 0 {
                        woken += 1;
                        continue;
                    }
                    // The parent wakes and ends with what it was waiting for.
                    let (parent, client) = executors[at - 1].clone();
                    scene.unblocked(&parent);
                    woken += 1;
                    scene.done(&parent, inline(b"up"));
                    scene.tell(1, NodeToHead::ClientGone { client });
                }
                _ => {}
            }
        }
    }
    assert_eq!(woken, DEPTH, "the chain stuck at depth {}", levels.len());
}

fn run(
    scene: &mut Scene,
    assigned: Assigned,
    levels: &mut Vec<cluster_types::TaskId>,
    executors: &mut Vec<(Assigned, ClientId)>,
    depth: u64,
) {
    let level = executors.len() as u64 + 1;
    let client = scene.executor(1, 1000 + level);
    executors.push((assigned.clone(), client));
    if level == depth {
        scene.done(&assigned, inline(b"bottom"));
        return;
    }
    let child = scene.submit_as(1, client, Resources::cpus(1), &[]);
    levels.push(child);
    scene.blocked(&assigned, &[child.result(0)]);
}

#[test]
fn a_shape_that_asks_for_much_is_not_starved_by_small_ones() {
    let mut scene = Scene::cluster(&[4]);
    let mut running: VecDeque<Assigned> = VecDeque::new();
    let mut ahead: VecDeque<Assigned> = VecDeque::new();
    for _ in 0..8 {
        scene.submit(&[]);
    }
    let big = scene.submit_as(1, DRIVER, Resources::cpus(4), &[]);
    for _ in 0..60 {
        // Small work never ends, and each is 100 ms.
        let mut called = Vec::new();
        for effect in std::mem::take(&mut scene.said) {
            let crate::Effect::ToNode { message, .. } = effect else { continue };
            match message {
                HeadToNode::Assign { spec, attempt, lease, .. } => {
                    if spec.id == big && lease.is_some() {
                        return;
                    }
                    let assigned = Assigned { node: node(1), task: spec.id, attempt, lease };
                    if assigned.lease.is_some() {
                        running.push_back(assigned)
                    } else {
                        ahead.push_back(assigned)
                    }
                }
                HeadToNode::Grant { task, .. } => {
                    let at = ahead.iter().position(|a| a.task == task).unwrap();
                    running.extend(ahead.remove(at));
                }
                HeadToNode::CallBack(attempts) => called.extend(attempts),
                _ => {}
            }
        }
        if !called.is_empty() {
            ahead.retain(|a| !called.contains(&(a.task, a.attempt)));
            scene.tell(1, NodeToHead::Returned(called));
        }
        scene.submit(&[]);
        if let Some(ended) = running.pop_front() {
            let heir = ahead.pop_front();
            scene.done_and_started(&ended, inline(b""), heir.as_ref());
            running.extend(heir);
        }
        let said = std::mem::take(&mut scene.said);
        scene.pass(Span::millis(100));
        scene.said.splice(0..0, said);
    }
    panic!("the big task never started");
}

#[test]
fn gpus_are_not_given_back_by_a_blocked_task() {
    let mut scene = Scene::empty();
    scene.join(1, with_gpus(4, 1));
    scene.driver(1);
    let parent = scene.submit_as(1, DRIVER, with_gpus(1, 1), &[]);
    let parent_at = scene.assigned_one();
    assert_eq!(parent_at.task, parent);
    assert_eq!(parent_at.lease.as_ref().unwrap().gpus[0].amount, Amount::ONE);
    let child = scene.submit_as(1, DRIVER, with_gpus(1, 1), &[]);
    scene.said.clear();
    scene.blocked(&parent_at, &[child.result(0)]);
    assert_eq!(scene.heard(1).len(), 0);
}
