//! Placement groups, as the head sees them.

use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::query::{GroupView, Query, QueryReply};
use cluster_types::task::{GroupStrategy, GroupTraits, InGroup, Strategy};
use cluster_types::{
    ActorTraits, Amount, ClientId, FailureKind, HeadToNode, JobId, NodeToHead, ObjectId, Resources, Span,
    TaskId, TaskKind, TaskTemplate,
};

use super::scene::*;
use crate::HeadConfig;

const CLOSED: HeadConfig = HeadConfig {
    roster: Vec::new(),
    actors: Vec::new(),
    groups: Vec::new(),
    durables: Vec::new(),
    jobs: Vec::new(),
    history: crate::History { tasks: Vec::new(), finished: 0, failed: 0 },
    term: cluster_types::Term(1),
    loss_timeout: Span::secs(5),
    closed: true,
    finished_kept: 100,
    inline_budget: 1 << 20,
    lineage_budget: 1 << 20,
    prefetch_max: 16,
};

fn group_of(scene: &mut Scene, traits: GroupTraits, job: JobId) -> TaskId {
    let template = TaskTemplate {
        name: "placement group".into(),
        num_returns: 1,
        kind: TaskKind::Group(Arc::new(traits)),
        ..TaskTemplate::default()
    };
    let mut spec = scene.spec(DRIVER, Arc::new(template), &[]);
    spec.job = job;
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    id
}

fn group(scene: &mut Scene, strategy: GroupStrategy, bundles: &[Resources]) -> TaskId {
    let traits = GroupTraits { strategy, bundles: bundles.to_vec(), ..GroupTraits::default() };
    group_of(scene, traits, JOB)
}

fn cpus(each: &[i64]) -> Vec<Resources> {
    each.iter().map(|n| Resources::cpus(*n)).collect()
}

/// A task of so many cores in the group.
fn inside(scene: &mut Scene, group: TaskId, bundle: Option<u32>, asks: Resources) -> TaskId {
    let place = InGroup { group: group.result(0), bundle, capture: false };
    let plain = scene.template("inside", asks);
    let template = TaskTemplate { strategy: Strategy::Group(place), ..(*plain).clone() };
    let spec = scene.spec(DRIVER, Arc::new(template), &[]);
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    id
}

fn remove(scene: &mut Scene, group: TaskId) {
    scene.tell(1, NodeToHead::Kill { client: DRIVER, actor: group.result(0), restart: false });
}

fn view(scene: &Scene, group: TaskId) -> GroupView {
    let query = Query::Group { group: group.result(0).to_string() };
    match scene.head.answer(&query) {
        Ok(QueryReply::Group(Some(view))) => view,
        other => panic!("{other:?}"),
    }
}

/// On which host each bundle is; 0: nowhere.
fn hosts(scene: &Scene, group: TaskId) -> Vec<u64> {
    let place = |node: &str| u64::from_str_radix(node, 16).unwrap_or(0);
    view(scene, group).bundles.iter().map(|bundle| place(&bundle.node)).collect()
}

fn is_ready(scene: &mut Scene, group: TaskId) -> bool {
    matches!(scene.finished(1, group), Some(FinishedOutcome::Ok(_)))
}

#[test]
fn each_strategy_places_bundles_as_it_says() {
    use GroupStrategy::{Pack, Spread, StrictPack, StrictSpread};
    type Row = (&'static [i64], GroupStrategy, &'static [i64], Option<usize>);
    let table: &[Row] = &[
        // Cores of the nodes, strategy, cores of the bundles, on how many nodes they lie (None: it waits).
        (&[4, 4], Pack, &[1, 1, 2], Some(1)),
        (&[4, 4], Pack, &[3, 3], Some(2)),
        (&[4, 4], Spread, &[1, 1], Some(2)),
        (&[4, 4], Spread, &[1, 1, 1], Some(2)),
        (&[4], Spread, &[1, 1], Some(1)),
        (&[4, 4], StrictPack, &[2, 2], Some(1)),
        (&[4, 4], StrictPack, &[3, 3], None),
        (&[4, 4], StrictSpread, &[1, 1], Some(2)),
        (&[4, 4], StrictSpread, &[1, 1, 1], None),
        // Only a matching finds this: the large one must not be taken by a small bundle.
        (&[1, 2, 4], StrictSpread, &[1, 2, 4], Some(3)),
        (&[2, 2], Pack, &[2, 2, 1], None),
    ];
    for (nodes, strategy, bundles, on) in table {
        let mut scene = Scene::cluster(nodes);
        let made = group(&mut scene, *strategy, &cpus(bundles));
        let mut places = hosts(&scene, made);
        places.sort_unstable();
        places.dedup();
        let case = format!("{nodes:?} {strategy:?} {bundles:?}");
        match on {
            Some(count) => {
                assert!(is_ready(&mut scene, made), "{case}");
                assert_eq!(places.len(), *count, "{case}");
            }
            None => {
                assert_eq!((is_ready(&mut scene, made), places), (false, vec![0]), "all or nothing: {case}")
            }
        }
    }
}

#[test]
fn a_group_takes_what_it_holds_from_others_until_it_is_removed() {
    let mut scene = Scene::cluster(&[2]);
    let made = group(&mut scene, GroupStrategy::Pack, &cpus(&[2]));
    assert!(is_ready(&mut scene, made));
    let other = scene.submit(&[]);
    assert!(scene.assigned().is_empty());
    let mine = inside(&mut scene, made, None, Resources::cpus(1));
    assert_eq!(scene.assigned_one().task, mine);
    remove(&mut scene, made);
    // What runs in it keeps it until it has ended.
    let said = scene.heard(1);
    assert!(
        said.iter().any(|said| matches!(said, HeadToNode::Cancel { task, force: true, .. } if *task == mine))
    );
    assert!(scene.assigned().is_empty());
    let running = Assigned {
        node: node(1),
        task: mine,
        attempt: cluster_types::Attempt { term: 1, n: 1 },
        lease: None,
    };
    scene.ended(&running, failed(FailureKind::Cancelled), Retry::No, None);
    let failure = scene.failed_with(1, mine);
    assert_eq!(failure.kind, FailureKind::GroupRemoved);
    assert!(failure.message.contains("was removed by the driver of job"), "{}", failure.message);
    let _ = other;
    assert_eq!(view(&scene, made).state, "removed");
}

#[test]
fn what_a_removed_group_held_goes_to_others_at_once_if_nothing_is_in_it() {
    let mut scene = Scene::cluster(&[2]);
    let made = group(&mut scene, GroupStrategy::Pack, &cpus(&[2]));
    let other = scene.submit(&[]);
    assert!(scene.assigned().is_empty());
    remove(&mut scene, made);
    assert_eq!(scene.assigned_one().task, other);
}

#[test]
fn tasks_wait_for_their_group_and_then_for_room_in_their_bundle() {
    let mut scene = Scene::cluster(&[4]);
    let blocker = scene.submit_as(1, DRIVER, Resources::cpus(4), &[]);
    let running = scene.assigned_one();
    let made = group(&mut scene, GroupStrategy::Pack, &cpus(&[1, 1]));
    let first = inside(&mut scene, made, Some(1), Resources::cpus(1));
    let second = inside(&mut scene, made, Some(1), Resources::cpus(1));
    let any = inside(&mut scene, made, None, Resources::cpus(1));
    assert!(scene.assigned().is_empty(), "{blocker} has all");
    scene.done(&running, inline(b"x"));
    let sent = scene.assigned();
    let mut tasks: Vec<TaskId> = sent.iter().map(|sent| sent.task).collect();
    tasks.sort_unstable();
    assert_eq!(tasks, [first, any], "one in each bundle");
    let first = sent.iter().find(|sent| sent.task == first).cloned();
    scene.done(&first.unwrap(), inline(b"x"));
    assert_eq!(scene.assigned_one().task, second);
}

#[test]
fn gpus_of_a_bundle_are_those_its_tasks_get() {
    let mut scene = Scene::empty();
    scene.join(1, with_gpus(4, 4));
    scene.driver(1);
    let made = group(&mut scene, GroupStrategy::Pack, &[with_gpus(1, 1), with_gpus(1, 2)]);
    assert!(is_ready(&mut scene, made));
    scene.submit_as(1, DRIVER, with_gpus(1, 1), &[]);
    inside(&mut scene, made, Some(1), with_gpus(0, 2));
    let half = Resources { gpu: Amount(5_000), ..Resources::default() };
    inside(&mut scene, made, Some(0), half.clone());
    inside(&mut scene, made, Some(0), half);
    let mut seen: Vec<u16> = scene
        .assigned()
        .into_iter()
        .flat_map(|sent| sent.lease.unwrap_or_default().gpus)
        .map(|share| share.index)
        .collect();
    assert_eq!(seen.len(), 5);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 3], "the two halves share one, and no other is given twice");
}

#[test]
fn a_lost_nodes_bundles_find_another_place_and_the_others_stay() {
    let mut scene = Scene::cluster(&[2, 2, 2]);
    let made = group(&mut scene, GroupStrategy::StrictSpread, &cpus(&[2, 1]));
    let before = hosts(&scene, made);
    let lost = before[0].max(before[1]).max(2);
    let (gone, kept) = if before[0] == lost { (0, 1) } else { (1, 0) };
    let task = inside(&mut scene, made, Some(gone as u32), Resources::cpus(1));
    assert_eq!(scene.assigned_one().node.0, lost);
    scene.disconnect(lost);
    let after = hosts(&scene, made);
    assert_eq!(after[kept], before[kept]);
    assert!(after[gone] != 0 && after[gone] != lost && after[gone] != after[kept], "{after:?}");
    // What ran there runs again, in the same bundle.
    let again = scene.assigned_one();
    assert_eq!((again.task, again.node.0), (task, after[gone]));
}

#[test]
fn a_group_that_lost_a_bundle_waits_for_a_node_and_says_so() {
    let mut scene = Scene::cluster(&[2, 2]);
    let made = group(&mut scene, GroupStrategy::StrictSpread, &cpus(&[2, 2]));
    scene.disconnect(2);
    assert_eq!(view(&scene, made).state, "rescheduling");
    let lost = u32::from(hosts(&scene, made)[1] == 0);
    let task = inside(&mut scene, made, Some(lost), Resources::cpus(1));
    assert!(scene.assigned().is_empty());
    let Ok(QueryReply::Why(why)) = scene.head.answer(&Query::Why { task: task.to_string() }) else {
        panic!()
    };
    assert!(why.reason.contains("bundle") && why.reason.contains("join"), "{}", why.reason);
    scene.join(3, Resources::cpus(2));
    assert_eq!(view(&scene, made).state, "created");
    assert_eq!(scene.assigned_one().task, task);
}

#[test]
fn a_group_that_can_never_be_fails_where_nobody_can_join_and_is_told_of_elsewhere() {
    let strategies = [GroupStrategy::Pack, GroupStrategy::StrictPack, GroupStrategy::StrictSpread];
    let table: &[(GroupStrategy, &[i64], &str)] = &[
        (strategies[0], &[8], "bundle 0 needs 8 CPU; no node has more than 4"),
        (strategies[1], &[3, 3], "all its bundles on one node need 6 CPU; no node has more than 4"),
        (strategies[2], &[1, 1, 1], "its 3 bundles need as many nodes"),
        (strategies[0], &[4, 4, 1], "its bundles together need 9 CPU of 8"),
    ];
    for (strategy, bundles, reason) in table {
        let mut scene = Scene::with(CLOSED);
        scene.join(1, Resources::cpus(4));
        scene.join(2, Resources::cpus(4));
        scene.driver(1);
        let made = group(&mut scene, *strategy, &cpus(bundles));
        let failure = scene.failed_with(1, made);
        assert_eq!(failure.kind, FailureKind::Unschedulable);
        assert!(failure.message.contains(reason), "{}", failure.message);
        let late = inside(&mut scene, made, None, Resources::cpus(1));
        assert!(scene.failed_with(1, late).message.contains(reason));

        let mut scene = Scene::cluster(&[4, 4]);
        let made = group(&mut scene, *strategy, &cpus(bundles));
        scene.pass(Span::secs(1));
        let told = scene
            .heard(1)
            .into_iter()
            .any(|said| matches!(said, HeadToNode::Notice { client: DRIVER, text } if text.contains(reason)));
        assert!(told, "{reason}");
        assert!(view(&scene, made).reason.contains(reason));
        scene.join(3, Resources::cpus(8));
        assert!(is_ready(&mut scene, made));
    }
}

#[test]
fn what_fits_no_bundle_fails_at_once() {
    let mut scene = Scene::cluster(&[4]);
    let made = group(&mut scene, GroupStrategy::Pack, &cpus(&[1, 2]));
    let table = [
        (Some(0), 2, "it needs 2 CPU, and bundle 0 of"),
        (Some(2), 1, "has no bundle 2; its bundles are {1 CPU}, {2 CPU}"),
        (None, 3, "it needs 3 CPU, and no bundle of"),
    ];
    for (bundle, cores, reason) in table {
        let task = inside(&mut scene, made, bundle, Resources::cpus(cores));
        let failure = scene.failed_with(1, task);
        assert_eq!(failure.kind, FailureKind::Unschedulable);
        assert!(failure.message.contains(reason), "{}", failure.message);
    }
    let never = TaskId { client: DRIVER, seq: 1 };
    let ordinary = scene.submit(&[]);
    let assigned = scene.assigned_one();
    scene.done(&assigned, inline(b"x"));
    let task = inside(&mut scene, ordinary, None, Resources::cpus(1));
    assert!(scene.failed_with(1, task).message.contains("there is no placement group"), "{never}");
}

#[test]
fn a_removed_groups_waiting_tasks_fail_and_so_do_late_ones() {
    let mut scene = Scene::cluster(&[1]);
    let made = group(&mut scene, GroupStrategy::Pack, &cpus(&[1]));
    let running = inside(&mut scene, made, None, Resources::cpus(1));
    let queued = inside(&mut scene, made, None, Resources::cpus(1));
    let sent = scene.assigned_one();
    assert_eq!(sent.task, running);
    remove(&mut scene, made);
    assert_eq!(scene.failed_with(1, queued).kind, FailureKind::GroupRemoved);
    let late = inside(&mut scene, made, None, Resources::cpus(1));
    assert_eq!(scene.failed_with(1, late).kind, FailureKind::GroupRemoved);
    // Its process died of it: no retry.
    scene.ended(&sent, failed(FailureKind::ExecutorDied), Retry::Infrastructure, None);
    assert_eq!(scene.failed_with(1, running).kind, FailureKind::GroupRemoved);
}

#[test]
fn a_pending_group_is_removed_too() {
    let mut scene = Scene::cluster(&[1]);
    let made = group(&mut scene, GroupStrategy::Pack, &cpus(&[2]));
    let task = inside(&mut scene, made, None, Resources::cpus(1));
    remove(&mut scene, made);
    assert_eq!(scene.failed_with(1, made).kind, FailureKind::GroupRemoved);
    let mut scene2 = Scene::cluster(&[1]);
    let made2 = group(&mut scene2, GroupStrategy::Pack, &cpus(&[2]));
    let task2 = inside(&mut scene2, made2, None, Resources::cpus(1));
    remove(&mut scene2, made2);
    assert_eq!(scene2.failed_with(1, task2).kind, FailureKind::GroupRemoved);
    let _ = task;
}

#[test]
fn a_group_lives_as_long_as_its_job_and_a_detached_one_until_it_is_removed() {
    for detached in [false, true] {
        let mut scene = Scene::cluster(&[2]);
        let traits =
            GroupTraits { name: "mine".to_owned(), detached, bundles: cpus(&[2]), ..GroupTraits::default() };
        let job = if detached { JobId(99) } else { JOB };
        let made = group_of(&mut scene, traits, job);
        scene.drop_hold(1, DRIVER, made.result(0));
        let named = |scene: &Scene| {
            let query = Query::NamedGroup { namespace: String::new(), name: "mine".to_owned() };
            matches!(scene.head.answer(&query), Ok(QueryReply::Group(Some(_))))
        };
        assert!(named(&scene), "no handle is needed");
        scene.tell(1, NodeToHead::ClientGone { client: DRIVER });
        assert_eq!(named(&scene), detached);
        let free = |scene: &Scene| match scene.head.answer(&Query::Status) {
            Ok(QueryReply::Status(status)) => status.available["CPU"],
            other => panic!("{other:?}"),
        };
        assert_eq!(free(&scene), if detached { 0.0 } else { 2.0 });
        if detached {
            let other = ClientId(77);
            let kind = cluster_types::ClientKind::Driver { job: JobId(8), info: Default::default() };
            scene.attach(1, other, kind);
            scene.hold(1, other, made.result(0));
            scene.tell(1, NodeToHead::Kill { client: other, actor: made.result(0), restart: false });
            assert_eq!(free(&scene), 2.0);
            assert!(!named(&scene));
            scene.drop_hold(1, other, made.result(0));
        }
        assert_eq!(scene.head.groups.iter().count(), 0, "nothing is kept of what nobody names");
    }
}

#[test]
fn a_name_is_taken_once() {
    let mut scene = Scene::cluster(&[2]);
    let traits = || GroupTraits { name: "mine".to_owned(), bundles: cpus(&[1]), ..GroupTraits::default() };
    let first = group_of(&mut scene, traits(), JOB);
    assert!(is_ready(&mut scene, first));
    let second = group_of(&mut scene, traits(), JOB);
    assert!(scene.failed_with(1, second).message.contains("the name \"mine\" is taken"));
    remove(&mut scene, first);
    let third = group_of(&mut scene, traits(), JOB);
    assert!(is_ready(&mut scene, third));
}

#[test]
fn an_actor_in_a_bundle_keeps_its_part_until_it_dies_and_dies_with_the_group() {
    let mut scene = Scene::cluster(&[2]);
    let made = group(&mut scene, GroupStrategy::Pack, &cpus(&[1]));
    scene.said.clear();
    let place = InGroup { group: made.result(0), bundle: Some(0), capture: false };
    let template = TaskTemplate {
        strategy: Strategy::Group(place),
        kind: TaskKind::Actor(Arc::new(ActorTraits { max_restarts: -1, ..ActorTraits::default() })),
        ..(*scene.template("Counter", Resources::cpus(1))).clone()
    };
    let spec = scene.spec(DRIVER, Arc::new(template), &[]);
    let actor = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    let assigned = scene.assigned_one();
    scene.done(&assigned, inline(b"handle"));
    let waits = inside(&mut scene, made, Some(0), Resources::cpus(1));
    assert!(scene.assigned().is_empty(), "the actor has the bundle");
    scene.ended(&assigned, failed(FailureKind::ActorDied), Retry::Infrastructure, None);
    // It is made anew in front of what waits.
    let again = scene.assigned_one();
    assert_eq!(again.task, actor);
    scene.done(&again, inline(b"handle"));
    remove(&mut scene, made);
    assert_eq!(scene.failed_with(1, waits).kind, FailureKind::GroupRemoved);
    scene.ended(&again, failed(FailureKind::ActorDied), Retry::No, None);
    let other = scene.submit_as(1, DRIVER, Resources::cpus(2), &[]);
    assert_eq!(scene.assigned_one().task, other, "all is free again");
}

#[test]
fn a_task_that_waits_lends_its_cores_to_its_bundle() {
    let mut scene = Scene::cluster(&[1]);
    let made = group(&mut scene, GroupStrategy::Pack, &cpus(&[1]));
    inside(&mut scene, made, None, Resources::cpus(1));
    let parent = scene.assigned_one();
    let child = inside(&mut scene, made, None, Resources::cpus(1));
    assert!(scene.assigned().is_empty());
    scene.blocked(&parent, &[child.result(0)]);
    let sent = scene.assigned_one();
    assert_eq!(sent.task, child);
    scene.done(&sent, inline(b"x"));
    scene.unblocked(&parent);
    scene.done(&parent, inline(b"x"));
    let last: ObjectId = made.result(0);
    remove(&mut scene, made);
    assert_eq!(view(&scene, made).state, "removed", "{last}");
}

#[test]
fn many_groups_wait_and_each_gets_its_turn() {
    let mut scene = Scene::cluster(&[2]);
    let mut made: Vec<TaskId> =
        (0..40).map(|_| group(&mut scene, GroupStrategy::Pack, &cpus(&[1]))).collect();
    while !made.is_empty() {
        let whole: Vec<TaskId> =
            made.iter().copied().filter(|group| view(&scene, *group).state == "created").collect();
        assert_eq!(whole.len(), made.len().min(2));
        for group in whole {
            remove(&mut scene, group);
            made.retain(|left| *left != group);
        }
    }
}

#[test]
fn a_large_group_does_not_starve_behind_small_tasks() {
    let mut scene = Scene::cluster(&[2, 2, 2]);
    // An actor holds a core for ever: its node is not waited for.
    let template = TaskTemplate {
        kind: TaskKind::Actor(Arc::new(ActorTraits::default())),
        ..(*scene.template("Counter", Resources::cpus(1))).clone()
    };
    let spec = scene.spec(DRIVER, Arc::new(template), &[]);
    scene.tell(1, NodeToHead::Submit(spec));
    let actor = scene.assigned_one();
    scene.done(&actor, inline(b"handle"));
    let mut running: Vec<Assigned> = Vec::new();
    for _ in 0..60 {
        scene.submit(&[]);
        running.extend(scene.assigned().into_iter().filter(|one| one.lease.is_some()));
    }
    assert_eq!(running.len(), 5);
    let large = group(&mut scene, GroupStrategy::Spread, &cpus(&[2, 2]));
    scene.pass(Span::secs(3));
    // What was sent ahead comes back when it is asked for.
    let called_back: Vec<(u64, Vec<_>)> = scene
        .said
        .iter()
        .filter_map(|effect| match effect {
            crate::event::Effect::ToNode { node, message: HeadToNode::CallBack(tasks) } => {
                Some((node.0, tasks.clone()))
            }
            _ => None,
        })
        .collect();
    scene.said.clear();
    for (n, tasks) in called_back {
        scene.tell(n, NodeToHead::Returned(tasks));
    }
    let mut others = 0;
    for one in running {
        scene.done(&one, inline(b"1"));
        others +=
            scene.assigned().iter().filter(|task| task.lease.is_some() && task.node != actor.node).count();
        scene.pass(Span::millis(200));
    }
    assert_eq!(others, 0, "nothing small starts where the group is to go");
    assert!(
        view(&scene, large).bundles.iter().all(|bundle| !bundle.node.is_empty()),
        "{:?}",
        view(&scene, large)
    );
    scene.said.clear();
    remove(&mut scene, large);
    scene.pass(Span::millis(200));
    assert!(scene.assigned().iter().filter(|one| one.lease.is_some()).count() >= 4, "small ones go on");
}

#[test]
fn a_group_that_actors_leave_no_room_for_keeps_nothing() {
    let mut scene = Scene::cluster(&[2]);
    let template = TaskTemplate {
        kind: TaskKind::Actor(Arc::new(ActorTraits::default())),
        ..(*scene.template("Counter", Resources::cpus(1))).clone()
    };
    let spec = scene.spec(DRIVER, Arc::new(template), &[]);
    scene.tell(1, NodeToHead::Submit(spec));
    let actor = scene.assigned_one();
    scene.done(&actor, inline(b"handle"));
    group(&mut scene, GroupStrategy::Pack, &cpus(&[2]));
    scene.pass(Span::secs(5));
    scene.said.clear();
    scene.submit(&[]);
    assert!(scene.assigned_one().lease.is_some());
}
