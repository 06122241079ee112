//! Actors and their calls, as the head sees them.

use std::collections::BTreeMap;

use std::sync::Arc;

use cluster_types::client_node::FinishedOutcome;
use cluster_types::node_head::Retry;
use cluster_types::query::{ActorView, Query, QueryReply};
use cluster_types::{
    ActorTraits, FailureKind, HeadToNode, Located, NodeToHead, ObjectId, Resources, TaskId, TaskKind,
    TaskSpec, TaskTemplate,
};

use super::scene::*;
use crate::{Effect, Record};

/// Submits what makes an actor on node 1's driver; it is not assigned yet.
fn make(scene: &mut Scene, asks: Resources, traits: ActorTraits) -> TaskId {
    let template = TaskTemplate {
        kind: TaskKind::Actor(Arc::new(traits)),
        max_retries: 0,
        ..(*scene.template("Counter", asks)).clone()
    };
    let spec = scene.spec(DRIVER, Arc::new(template), &[]);
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    id
}

pub fn living(scene: &mut Scene, traits: ActorTraits) -> Assigned {
    make(scene, Resources::default(), traits);
    let assigned = scene.assigned_one();
    scene.done(&assigned, inline(b"handle"));
    scene.said.clear();
    assigned
}

/// A call; `max_retries` is the actor's `max_task_retries`.
fn call(scene: &mut Scene, actor: TaskId, max_retries: i32, deps: &[ObjectId]) -> TaskId {
    let spec = call_spec(scene, actor, max_retries, deps);
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    id
}

pub fn call_spec(scene: &mut Scene, actor: TaskId, max_retries: i32, deps: &[ObjectId]) -> TaskSpec {
    let kind = TaskKind::Method { method: "add".into(), group: "".into(), concurrent: false };
    let function = actor.result(0);
    let plain = scene.template("Counter.add", Resources::default());
    let template = TaskTemplate { kind, function, max_retries, ..(*plain).clone() };
    scene.spec(DRIVER, Arc::new(template), deps)
}

fn tasks(assigned: &[Assigned]) -> Vec<TaskId> {
    assigned.iter().map(|assigned| assigned.task).collect()
}

pub fn dies(scene: &mut Scene, actor: &Assigned, retry: Retry) {
    scene.ended(actor, failed(FailureKind::ActorDied), retry, None);
}

fn view(scene: &Scene) -> ActorView {
    match scene.head.answer(&Query::Actors { limit: 10 }) {
        Ok(QueryReply::Actors(mut views)) if views.len() == 1 => views.remove(0),
        other => panic!("{other:?}"),
    }
}

fn restarting(max_restarts: i32) -> ActorTraits {
    ActorTraits { max_restarts, ..ActorTraits::default() }
}

#[test]
fn an_actor_keeps_its_lease_while_it_lives_and_no_longer() {
    let mut scene = Scene::cluster(&[1]);
    let actor = make(&mut scene, Resources::cpus(1), ActorTraits::default());
    let assigned = scene.assigned_one();
    scene.done(&assigned, inline(b"handle"));
    assert!(matches!(scene.finished(1, actor), Some(FinishedOutcome::Ok(_))));
    let task = scene.submit(&[]);
    assert!(scene.assigned().is_empty(), "the actor has the one core");
    dies(&mut scene, &assigned, Retry::No);
    assert_eq!(scene.assigned_one().task, task);
}

#[test]
fn calls_wait_until_the_actor_is_made_and_then_go_to_its_node() {
    let mut scene = Scene::cluster(&[1, 1]);
    let actor = make(&mut scene, Resources::default(), ActorTraits::default());
    let first = call(&mut scene, actor, 0, &[]);
    let making = scene.assigned_one();
    scene.done(&making, inline(b"handle"));
    let second = call(&mut scene, actor, 0, &[]);
    let assigned = scene.assigned();
    assert_eq!(tasks(&assigned), [first, second]);
    assert!(assigned.iter().all(|call| call.node == making.node && call.lease.is_some()));
    scene.done(&assigned[1], inline(b"2"));
    assert!(matches!(scene.finished(1, second), Some(FinishedOutcome::Ok(_))));
}

#[test]
fn a_call_without_its_argument_holds_up_its_callers_later_ones_only_where_order_counts() {
    for (traits, goes) in
        [(ActorTraits::default(), 0), (ActorTraits { max_concurrency: 2, ..Default::default() }, 1)]
    {
        let mut scene = Scene::cluster(&[4]);
        let actor = living(&mut scene, traits);
        let maker = scene.submit(&[]);
        let making = scene.assigned_one();
        let first = call(&mut scene, actor.task, 0, &[maker.result(0)]);
        let second = call(&mut scene, actor.task, 0, &[]);
        assert_eq!(scene.assigned().len(), goes);
        scene.done(&making, inline(b"1"));
        let then = scene.assigned();
        assert_eq!(tasks(&then), if goes == 0 { vec![first, second] } else { vec![first] });
    }
}

#[test]
fn at_most_256_calls_more_than_can_run_are_handed_out() {
    let groups = BTreeMap::from([("io".to_owned(), 1)]);
    for (traits, most) in [
        (ActorTraits { max_concurrency: 1, ..Default::default() }, 257),
        (ActorTraits { max_concurrency: 1000, is_async: true, ..Default::default() }, 1256),
        (ActorTraits { groups, ..Default::default() }, 1300),
    ] {
        let mut scene = Scene::cluster(&[1]);
        let actor = living(&mut scene, traits);
        for _ in 0..1300 {
            call(&mut scene, actor.task, 0, &[]);
        }
        assert_eq!(scene.assigned().len(), most);
    }
}

#[test]
fn a_call_that_ends_makes_room_for_the_next() {
    let mut scene = Scene::cluster(&[1]);
    let actor = living(&mut scene, ActorTraits::default());
    for _ in 0..300 {
        call(&mut scene, actor.task, 0, &[]);
    }
    let assigned = scene.assigned();
    assert_eq!(assigned.len(), 256);
    assert_eq!((view(&scene).queued, view(&scene).running), (44, 256));
    scene.done(&assigned[0], inline(b"1"));
    assert_eq!(scene.assigned().len(), 1);
}

#[test]
fn a_failed_init_is_the_death_that_calls_are_told_of() {
    let mut scene = Scene::cluster(&[1]);
    let actor = make(&mut scene, Resources::default(), ActorTraits::default());
    let making = scene.assigned_one();
    let waiting = call(&mut scene, actor, 0, &[]);
    scene.ended(&making, failed(FailureKind::Exception), Retry::No, None);
    let failure = scene.failed_with(1, waiting);
    assert_eq!(failure.kind, FailureKind::ActorDied);
    assert!(failure.message.ends_with("it could not be made: because"), "{}", failure.message);
    let late = call(&mut scene, actor, 0, &[]);
    assert_eq!(scene.failed_with(1, late).kind, FailureKind::ActorDied);
}

#[test]
fn a_crash_is_followed_by_another_making_and_the_calls_in_their_order() {
    let mut scene = Scene::cluster(&[1]);
    let actor = living(&mut scene, restarting(1));
    let ids: Vec<TaskId> = (0..3).map(|_| call(&mut scene, actor.task, 1, &[])).collect();
    let sent = scene.assigned();
    dies(&mut scene, &actor, Retry::Infrastructure);
    assert_eq!(view(&scene).state, "restarting");
    scene.ended(&sent[0], failed(FailureKind::ActorDied), Retry::Infrastructure, None);
    let back = sent[1..].iter().map(|call| (call.task, call.attempt)).collect();
    scene.tell(1, NodeToHead::Returned(back));
    let making = scene.assigned_one();
    assert_eq!((making.task, making.attempt.n), (actor.task, 2));
    scene.done(&making, inline(b"handle"));
    assert_eq!(tasks(&scene.assigned()), ids);
    assert_eq!((view(&scene).state.as_str(), view(&scene).restarts), ("alive", 1));
    // The one restart is spent.
    dies(&mut scene, &making, Retry::Infrastructure);
    assert_eq!(view(&scene).state, "dead");
}

#[test]
fn a_call_that_may_have_run_is_tried_again_only_if_its_retries_allow() {
    let mut scene = Scene::cluster(&[1]);
    let actor = living(&mut scene, restarting(5));
    let once = call(&mut scene, actor.task, 0, &[]);
    let sent = scene.assigned_one();
    dies(&mut scene, &actor, Retry::Infrastructure);
    scene.ended(&sent, failed(FailureKind::ActorDied), Retry::Infrastructure, None);
    assert_eq!(scene.failed_with(1, once).kind, FailureKind::ActorUnavailable);
}

#[test]
fn the_submitter_is_told_once_that_its_actor_was_made() {
    let mut scene = Scene::cluster(&[1]);
    let actor = make(&mut scene, Resources::default(), restarting(1));
    let making = scene.assigned_one();
    scene.done(&making, inline(b"handle"));
    assert!(scene.finished(1, actor).is_some());
    dies(&mut scene, &making, Retry::Infrastructure);
    let again = scene.assigned_one();
    scene.done(&again, inline(b"handle"));
    assert_eq!(scene.finished(1, actor), None);
}

#[test]
fn the_handle_that_a_lost_node_had_is_the_next_makings() {
    let mut scene = Scene::cluster(&[0, 1, 1]);
    let actor = make(&mut scene, Resources::cpus(1), restarting(1));
    let first = scene.assigned_one();
    scene.done(&first, stored(1 << 20));
    scene.disconnect(first.node.0);
    let again = scene.assigned_one();
    scene.done(&again, inline(b"handle"));
    scene.said.clear();
    scene.tell(1, NodeToHead::Locate(actor.result(0)));
    let told = scene.heard(1);
    assert!(
        told.iter().any(|told| matches!(told, HeadToNode::Located { located: Located::Inline(_), .. })),
        "{told:?}"
    );
}

#[test]
fn who_asks_for_a_lost_handle_is_answered_when_the_actor_is_made_again_or_is_no_more() {
    for made_again in [true, false] {
        let mut scene = Scene::cluster(&[0, 1, 1]);
        let actor = make(&mut scene, Resources::cpus(1), restarting(1));
        let first = scene.assigned_one();
        scene.done(&first, stored(1 << 20));
        scene.disconnect(first.node.0);
        let again = scene.assigned_one();
        scene.tell(1, NodeToHead::Locate(actor.result(0)));
        scene.said.clear();
        if made_again {
            scene.done(&again, inline(b"handle"));
        } else {
            dies(&mut scene, &again, Retry::No);
        }
        let told = scene.heard(1);
        let answer = told.iter().find_map(|told| match told {
            HeadToNode::Located { located, .. } => Some(located),
            _ => None,
        });
        match answer {
            Some(Located::Inline(_)) => assert!(made_again),
            Some(Located::Failed(failure)) => assert!(!made_again, "{failure:?}"),
            _ => panic!("{told:?}"),
        }
    }
}

#[test]
fn with_its_node_an_actor_dies_or_moves() {
    for restarts in [0, 1] {
        let mut scene = Scene::cluster(&[1, 1]);
        let away = TaskTemplate {
            kind: TaskKind::Actor(Arc::new(restarting(restarts))),
            strategy: cluster_types::task::Strategy::Node { id: node(2), soft: true },
            ..(*scene.template("Counter", Resources::default())).clone()
        };
        let spec = scene.spec(DRIVER, Arc::new(away), &[]);
        let actor = spec.id;
        scene.tell(1, NodeToHead::Submit(spec));
        let making = scene.assigned_one();
        assert_eq!(making.node, node(2));
        scene.done(&making, inline(b"handle"));
        let running = call(&mut scene, actor, 0, &[]);
        scene.said.clear();
        scene.disconnect(2);
        let failure = scene.failed_with(1, running);
        let kind = if restarts == 0 { FailureKind::ActorDied } else { FailureKind::ActorUnavailable };
        assert_eq!(failure.kind, kind);
        assert!(failure.message.contains("node host2 is lost"), "{}", failure.message);
        let after = call(&mut scene, actor, 0, &[]);
        if restarts == 0 {
            let failure = scene.failed_with(1, after);
            assert!(failure.message.contains("node host2 is lost"), "{}", failure.message);
        } else {
            assert_eq!(view(&scene).state, "restarting");
        }
    }
}

#[test]
fn when_nobody_has_a_handle_the_actor_is_asked_to_end() {
    let mut scene = Scene::cluster(&[1]);
    let actor = living(&mut scene, ActorTraits::default());
    call(&mut scene, actor.task, 0, &[]);
    let sent = scene.assigned_one();
    scene.drop_hold(1, DRIVER, actor.task.result(0));
    let ends = |scene: &mut Scene| {
        scene.heard(1).iter().any(|message| matches!(message, HeadToNode::EndActor { force: false, .. }))
    };
    assert!(!ends(&mut scene), "a call that is not answered is a handle");
    scene.done(&sent, inline(b"1"));
    assert!(ends(&mut scene));
    dies(&mut scene, &actor, Retry::No);
    assert_eq!(scene.head.answer(&Query::Actors { limit: 9 }), Ok(QueryReply::Actors(Vec::new())));
}

#[test]
fn a_killed_actor_is_dead_unless_it_may_start_again() {
    for (restart, state) in [(false, "dead"), (true, "restarting")] {
        let mut scene = Scene::cluster(&[1]);
        let actor = living(&mut scene, restarting(3));
        scene.tell(1, NodeToHead::Kill { client: DRIVER, actor: actor.task.result(0), restart });
        let heard = scene.heard(1);
        assert!(
            heard.iter().any(|message| matches!(message, HeadToNode::EndActor { force: true, .. })),
            "{heard:?}"
        );
        let meanwhile = call(&mut scene, actor.task, 0, &[]);
        assert!(scene.assigned().is_empty(), "it is about to end");
        dies(&mut scene, &actor, Retry::No);
        assert_eq!(view(&scene).state, state);
        if !restart {
            assert_eq!(scene.failed_with(1, meanwhile).kind, FailureKind::ActorDied);
        }
    }
}

#[test]
fn one_killed_before_it_is_made_never_is() {
    let mut scene = Scene::cluster(&[1]);
    // No node has eight cores: it waits for one.
    let actor = make(&mut scene, Resources::cpus(8), ActorTraits::default());
    scene.tell(1, NodeToHead::Kill { client: DRIVER, actor: actor.result(0), restart: false });
    let failure = scene.failed_with(1, actor);
    assert!(failure.message.contains("killed by the driver"), "{}", failure.message);
}

#[test]
fn one_that_may_start_again_and_is_yet_to_be_made_is_made_all_the_same() {
    for (max_restarts, is_made) in [(1, true), (0, false)] {
        let mut scene = Scene::cluster(&[1]);
        let actor = make(&mut scene, Resources::cpus(8), restarting(max_restarts));
        scene.tell(1, NodeToHead::Kill { client: DRIVER, actor: actor.result(0), restart: true });
        assert_eq!(view(&scene).state == "pending", is_made);
        // That was its restart.
        scene.tell(1, NodeToHead::Kill { client: DRIVER, actor: actor.result(0), restart: true });
        assert_eq!(view(&scene).state, "dead");
    }
}

#[test]
fn a_name_is_taken_until_its_actor_is_dead() {
    let mut scene = Scene::cluster(&[1]);
    let traits = || ActorTraits { name: "bob".into(), namespace: "here".into(), ..ActorTraits::default() };
    let named = |scene: &Scene| {
        let query = Query::NamedActor { namespace: "here".into(), name: "bob".into() };
        match scene.head.answer(&query) {
            Ok(QueryReply::NamedActor(found)) => found.map(|found| found.actor),
            other => panic!("{other:?}"),
        }
    };
    let first = living(&mut scene, traits());
    assert_eq!(named(&scene), Some(first.task.result(0).to_string()));
    let second = make(&mut scene, Resources::default(), traits());
    let failure = scene.failed_with(1, second);
    assert!(
        failure.message.contains("the name \"bob\" is taken in namespace \"here\""),
        "{}",
        failure.message
    );
    let called = call(&mut scene, second, 0, &[]);
    assert!(scene.failed_with(1, called).message.contains("is taken"));
    dies(&mut scene, &first, Retry::No);
    assert_eq!(named(&scene), None);
    let third = living(&mut scene, traits());
    // One that was killed for good answers to it no more, although its process may still be there.
    scene.tell(1, NodeToHead::Kill { client: DRIVER, actor: third.task.result(0), restart: false });
    assert_eq!(named(&scene), None);
    let fourth = living(&mut scene, traits());
    dies(&mut scene, &third, Retry::No);
    assert_eq!(named(&scene), Some(fourth.task.result(0).to_string()));
}

#[test]
fn a_detached_actor_outlives_its_driver_and_its_job_ends_with_it() {
    let mut scene = Scene::cluster(&[1, 1]);
    let kind = TaskKind::Actor(Arc::new(ActorTraits { detached: true, ..ActorTraits::default() }));
    let template = TaskTemplate { kind, ..(*scene.template("Counter", Resources::default())).clone() };
    let mut spec = scene.spec(DRIVER, Arc::new(template), &[]);
    spec.job = cluster_types::JobId(99);
    scene.tell(1, NodeToHead::Submit(spec));
    let actor = scene.assigned_one();
    scene.done(&actor, inline(b"handle"));
    scene.tell(1, NodeToHead::ClientGone { client: DRIVER });
    assert_eq!(view(&scene).state, "alive");
    scene.said.clear();
    dies(&mut scene, &actor, Retry::No);
    let heard = scene.heard(actor.node.0);
    assert!(
        heard.iter().any(|message| matches!(message, HeadToNode::JobEnded(job) if job.0 == 99)),
        "{heard:?}"
    );
}

#[test]
fn with_its_job_an_actor_ends_at_once() {
    let mut scene = Scene::cluster(&[1, 1]);
    let actor = living(&mut scene, restarting(-1));
    scene.tell(1, NodeToHead::ClientGone { client: DRIVER });
    let heard = scene.heard(actor.node.0);
    assert!(
        heard.iter().any(|message| matches!(message, HeadToNode::EndActor { force: true, .. })),
        "{heard:?}"
    );
    dies(&mut scene, &actor, Retry::Infrastructure);
    assert!(scene.assigned().is_empty(), "it is not made anew");
}

#[test]
fn calls_of_what_is_no_actor_fail() {
    let mut scene = Scene::cluster(&[1]);
    let no_actor = TaskId { client: DRIVER, seq: 4 };
    let lost = call(&mut scene, no_actor, 0, &[]);
    assert_eq!(scene.failed_with(1, lost).kind, FailureKind::ActorDied);
    scene.tell(1, NodeToHead::Kill { client: DRIVER, actor: no_actor.result(0), restart: false });
}

#[test]
fn a_call_that_comes_back_from_an_actor_said_to_live_goes_again_at_the_next_tick() {
    let mut scene = Scene::cluster(&[1]);
    let actor = living(&mut scene, ActorTraits::default());
    let id = call(&mut scene, actor.task, 0, &[]);
    let sent = scene.assigned_one();
    scene.tell(1, NodeToHead::Returned(vec![(sent.task, sent.attempt)]));
    assert!(scene.assigned().is_empty(), "it would come back again and again");
    scene.pass(cluster_types::Span::millis(100));
    assert_eq!(scene.assigned_one().task, id);
}

/// Submits a detached actor that names this job.
fn detached(scene: &mut Scene, job: cluster_types::JobId, name: &str) -> TaskId {
    let traits = ActorTraits { detached: true, name: name.into(), ..ActorTraits::default() };
    let template = TaskTemplate {
        kind: TaskKind::Actor(Arc::new(traits)),
        ..(*scene.template("Counter", Resources::default())).clone()
    };
    let mut spec = scene.spec(DRIVER, Arc::new(template), &[]);
    spec.job = job;
    let id = spec.id;
    scene.tell(1, NodeToHead::Submit(spec));
    id
}

#[test]
fn a_detached_actor_takes_over_no_job_that_exists() {
    let mut scene = Scene::cluster(&[1]);
    let actor = detached(&mut scene, JOB, "");
    assert!(scene.failed_with(1, actor).message.contains("exists already"));
    let task = scene.submit(&[]);
    assert_eq!(scene.assigned_one().task, task, "the driver's job goes on");
}

#[test]
fn a_detached_actor_that_is_refused_leaves_no_job() {
    let mut scene = Scene::cluster(&[1]);
    detached(&mut scene, cluster_types::JobId(98), "bob");
    detached(&mut scene, cluster_types::JobId(99), "bob");
    assert!(scene.head.jobs.contains_key(&cluster_types::JobId(98)));
    assert!(!scene.head.jobs.contains_key(&cluster_types::JobId(99)));
}

#[test]
fn a_call_inherits_no_lease_whatever_its_node_says() {
    let mut scene = Scene::cluster(&[1]);
    let actor = living(&mut scene, ActorTraits::default());
    call(&mut scene, actor.task, 0, &[]);
    let second = call(&mut scene, actor.task, 0, &[]);
    let sent = scene.assigned();
    scene.done_and_started(&sent[0], inline(b"1"), Some(&sent[1]));
    assert_eq!(view(&scene).running, 1);
    scene.done(&sent[1], inline(b"2"));
    assert!(matches!(scene.finished(1, second), Some(FinishedOutcome::Ok(_))));
}

#[test]
fn an_actor_made_anew_with_a_wrong_number_of_results_dies_and_its_submitter_is_not_told_twice() {
    let mut scene = Scene::cluster(&[1]);
    let actor = living(&mut scene, restarting(1));
    dies(&mut scene, &actor, Retry::Infrastructure);
    let again = scene.assigned_one();
    let two = [inline(b"1"), inline(b"2")].into_iter().collect();
    scene.ended(&again, cluster_types::Outcome::Ok(two), Retry::No, None);
    assert_eq!(scene.finished(1, actor.task), None);
    assert_eq!(view(&scene).state, "dead");
}

#[test]
fn nothing_is_handed_to_a_node_while_it_is_being_lost() {
    let mut scene = Scene::cluster(&[4, 1]);
    let actor = living(&mut scene, restarting(1));
    let home = actor.node.0;
    // On the actor's node: its caller's first call lacks an argument and goes with the caller.
    let caller = scene.executor(home, 50);
    let maker = scene.submit(&[]);
    let kind = TaskKind::Method { method: "add".into(), group: "".into(), concurrent: false };
    let plain = (*scene.template("Counter.add", Resources::default())).clone();
    let template = TaskTemplate { kind, function: actor.task.result(0), ..plain };
    let waits = scene.spec(caller, Arc::new(template.clone()), &[maker.result(0)]);
    let behind = scene.spec(caller, Arc::new(template), &[]);
    let kept = behind.id.result(0);
    scene.tell(home, NodeToHead::Submit(waits));
    scene.tell(home, NodeToHead::Submit(behind));
    let elsewhere = scene.executor(3 - home, 51);
    scene.hold(3 - home, elsewhere, kept);
    scene.said.clear();
    // The invariants are checked after it: no attempt is on a lost node.
    scene.disconnect(home);
    assert!(tasks(&scene.assigned()).iter().all(|task| task.client != caller));
}

#[test]
fn what_the_store_keeps_of_an_actor_says_that_it_was_made_also_when_nobody_has_a_handle() {
    let mut scene = Scene::cluster(&[1]);
    let actor = make(&mut scene, Resources::default(), restarting(1));
    let assigned = scene.assigned_one();
    scene.drop_hold(1, DRIVER, actor.result(0));
    scene.said.clear();
    scene.done(&assigned, inline(b"handle"));
    let kept = scene.said.iter().find_map(|effect| match effect {
        Effect::Persist(Record::ActorKept(kept)) => Some(kept.value.is_some()),
        _ => None,
    });
    assert_ne!(kept, Some(false), "its submitter is told of it now, and never again");
}
