//! Calls that clients send straight to actors, as far as the head hears of them.

use cluster_types::client_node::{CallReport, Cancellation, FinishedOutcome};
use cluster_types::node_head::Retry;
use cluster_types::query::{Query, QueryReply};
use cluster_types::{ActorTraits, FailureKind, HeadToNode, NodeToHead, ResultValue, Span, TaskSpec};

use super::actors::{call_spec, dies, living};
use super::scene::*;

/// An actor that lives, and a call of it that the head is told to expect.
fn expected(scene: &mut Scene, traits: ActorTraits) -> (Assigned, TaskSpec) {
    let actor = living(scene, traits);
    let spec = call_spec(scene, actor.task, 1, &[]);
    scene.tell(1, NodeToHead::Expect(spec.clone()));
    (actor, spec)
}

#[test]
fn what_needs_an_expected_result_waits_for_it_and_its_caller_is_told_nothing() {
    let mut scene = Scene::cluster(&[2]);
    let (_, spec) = expected(&mut scene, ActorTraits::default());
    let result = spec.id.result(0);
    let needs = scene.submit(&[result]);
    assert!(scene.assigned().is_empty(), "DEP-1, and nobody here runs the call");
    let inline = Some(b"5".as_slice().into());
    scene.tell(1, NodeToHead::Escaped { object: result, size: 1, inline, contains: Default::default() });
    assert_eq!(scene.assigned_one().task, needs);
    assert!(scene.finished(1, spec.id).is_none(), "it asked the actor itself");
}

#[test]
fn a_result_that_overtook_its_announcement_stays() {
    let mut scene = Scene::cluster(&[2]);
    let actor = living(&mut scene, ActorTraits::default());
    let spec = call_spec(&mut scene, actor.task, 0, &[]);
    let (object, inline) = (spec.id.result(0), Some(b"5".as_slice().into()));
    scene.tell(1, NodeToHead::Escaped { object, size: 1, inline, contains: Default::default() });
    scene.tell(1, NodeToHead::Expect(spec));
    let needs = scene.submit(&[object]);
    assert_eq!(scene.assigned_one().task, needs);
}

#[test]
fn its_failure_fails_what_needs_it() {
    let mut scene = Scene::cluster(&[2]);
    let (_, spec) = expected(&mut scene, ActorTraits::default());
    let needs = scene.submit(&[spec.id.result(0)]);
    let cluster_types::Outcome::Failed(failure) = failed(FailureKind::Exception) else { unreachable!() };
    scene.tell(1, NodeToHead::PutFailed { object: spec.id.result(0), failure });
    assert_eq!(scene.failed_with(1, needs).kind, FailureKind::Exception);
}

#[test]
fn its_callers_end_fails_what_needs_it() {
    let mut scene = Scene::cluster(&[2]);
    let actor = living(&mut scene, ActorTraits::default());
    let caller = scene.executor(1, 7);
    let mut spec = call_spec(&mut scene, actor.task, 0, &[]);
    spec.id.client = caller;
    scene.tell(1, NodeToHead::Expect(spec.clone()));
    let needs = scene.submit(&[spec.id.result(0)]);
    scene.tell(1, NodeToHead::ClientGone { client: caller });
    assert_eq!(scene.failed_with(1, needs).kind, FailureKind::ObjectLost);
}

#[test]
fn one_that_was_sent_in_vain_goes_to_the_next_incarnation_if_its_tries_allow() {
    for (may_have_run, tries_left) in [(false, true), (true, false)] {
        let mut scene = Scene::cluster(&[2]);
        let actor = living(&mut scene, ActorTraits { max_restarts: 2, ..ActorTraits::default() });
        let spec = call_spec(&mut scene, actor.task, 1, &[]);
        scene.tell(1, NodeToHead::Expect(spec.clone()));
        dies(&mut scene, &actor, Retry::Infrastructure);
        let making = scene.assigned_one();
        scene.done(&making, inline(b"handle"));
        let may_have_run = may_have_run.then(|| "lost".into());
        scene.tell(1, NodeToHead::SubmitAgain { spec: spec.clone(), may_have_run });
        let call = scene.assigned_one();
        assert_eq!((call.task, call.node), (spec.id, making.node));
        // Whether that was its last try shows when it is lost once more.
        dies(&mut scene, &making, Retry::Infrastructure);
        scene.ended(&call, failed(FailureKind::ActorDied), Retry::Infrastructure, None);
        assert_eq!(scene.finished(1, spec.id).is_none(), tries_left);
    }
}

#[test]
fn one_that_may_have_run_and_not_again_fails_with_what_became_of_its_actor() {
    for (max_restarts, kind, word) in [
        (1, FailureKind::ActorUnavailable, "anew. The call may have run"),
        (0, FailureKind::ActorDied, "failed"),
    ] {
        let mut scene = Scene::cluster(&[2]);
        let actor = living(&mut scene, ActorTraits { max_restarts, ..ActorTraits::default() });
        let by_head = call_spec(&mut scene, actor.task, 0, &[]);
        scene.tell(1, NodeToHead::Submit(by_head.clone()));
        let out = scene.assigned_one();
        dies(&mut scene, &actor, Retry::Infrastructure);
        scene.ended(&out, failed(FailureKind::ActorDied), Retry::Infrastructure, None);
        assert_eq!(scene.failed_with(1, by_head.id).kind, kind);
        let straight = call_spec(&mut scene, actor.task, 0, &[]);
        scene.tell(1, NodeToHead::SubmitAgain { spec: straight.clone(), may_have_run: Some("lost".into()) });
        let failure = scene.failed_with(1, straight.id);
        assert_eq!((failure.kind, failure.task), (kind, Some(actor.task)));
        assert!(failure.message.contains(word), "{}", failure.message);
        // One that certainly did not run waits for the next incarnation.
        let next = call_spec(&mut scene, actor.task, 0, &[]);
        scene.tell(1, NodeToHead::SubmitAgain { spec: next.clone(), may_have_run: None });
        assert_eq!(scene.finished(1, next.id).is_none(), max_restarts == 1);
    }
}

#[test]
fn one_that_waits_for_an_argument_when_it_is_handed_over_goes_on_waiting() {
    let mut scene = Scene::cluster(&[2]);
    let actor = living(&mut scene, ActorTraits::default());
    let maker = scene.submit(&[]);
    let making = scene.assigned_one();
    let spec = call_spec(&mut scene, actor.task, 0, &[maker.result(0)]);
    scene.tell(1, NodeToHead::Expect(spec.clone()));
    scene.tell(1, NodeToHead::SubmitAgain { spec: spec.clone(), may_have_run: None });
    assert!(scene.assigned().is_empty());
    scene.done(&making, inline(b"1"));
    assert_eq!(scene.assigned_one().task, spec.id);
}

#[test]
fn calls_that_ended_are_in_the_task_table() {
    let mut scene = Scene::cluster(&[2]);
    let actor = living(&mut scene, ActorTraits::default());
    let task = call_spec(&mut scene, actor.task, 0, &[]).id;
    let report = CallReport { task, name: "Counter.add".into(), micros: 7, error: None };
    scene.tell(1, NodeToHead::Called(vec![report]));
    let Ok(QueryReply::Tasks(tasks)) = scene.head.answer(&Query::Tasks { limit: 10 }) else { panic!() };
    assert!(tasks.iter().any(|view| view.name == "Counter.add"), "{tasks:?}");
}

#[test]
fn a_call_out_to_a_dead_incarnation_goes_before_later_ones() {
    let mut scene = Scene::cluster(&[2]);
    let actor = living(&mut scene, ActorTraits { max_restarts: 1, ..ActorTraits::default() });
    let first = call_spec(&mut scene, actor.task, 0, &[]);
    scene.tell(1, NodeToHead::Submit(first.clone()));
    let out = scene.assigned_one();
    dies(&mut scene, &actor, Retry::Infrastructure);
    let making = scene.assigned_one();
    scene.done(&making, inline(b"handle"));
    let second = call_spec(&mut scene, actor.task, 0, &[]);
    scene.tell(1, NodeToHead::Submit(second.clone()));
    assert!(scene.assigned().is_empty(), "ORDER-1: the first may come back");
    scene.tell(1, NodeToHead::Returned(vec![(out.task, out.attempt)]));
    scene.pass(Span::millis(200));
    let tasks: Vec<_> = scene.assigned().iter().map(|call| call.task).collect();
    assert_eq!(tasks, [first.id, second.id]);
}

// ---- between nodes

#[test]
fn a_node_is_told_where_an_actor_lives_and_when_that_node_is_lost() {
    let mut scene = Scene::cluster(&[2, 2]);
    let actor = living(&mut scene, ActorTraits { max_restarts: 1, ..ActorTraits::default() });
    let home = if actor.node == node(1) { 1 } else { 2 };
    let asking = 3 - home;
    let handle = actor.task.result(0);
    scene.tell(asking, NodeToHead::FindActor(handle));
    let told = scene.heard(asking);
    let [HeadToNode::ActorAt { place: Some(place), .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((place.node, place.attempt), (node(home), actor.attempt));
    assert!(place.in_order && place.concurrency == 1);
    dies(&mut scene, &actor, Retry::Infrastructure);
    scene.said.clear();
    scene.tell(asking, NodeToHead::FindActor(handle));
    assert_eq!(scene.heard(asking), [HeadToNode::ActorAt { actor: handle, place: None }]);
    // Its node is still one that may have said something.
    scene.said.clear();
    scene.disconnect(home);
    let lost = scene.heard(asking).into_iter().find_map(|message| match message {
        HeadToNode::PeerLost { node, why } => Some((node, why)),
        _ => None,
    });
    let (lost, why) = lost.expect("rule A5");
    assert_eq!(lost, node(home));
    assert!(why.contains("is lost"), "{why}");
}

#[test]
fn what_was_said_before_is_taken_in_when_it_is_confirmed() {
    let mut scene = Scene::cluster(&[2, 2]);
    let actor = living(&mut scene, ActorTraits::default());
    let spec = call_spec(&mut scene, actor.task, 0, &[]);
    // The actor's node announces what the call came to, though its caller is on node 1.
    let object = spec.id.result(0);
    let (size, contains) = (1 << 20, Default::default());
    scene.tell(2, NodeToHead::Escaped { object, size, inline: None, contains });
    scene.tell(2, NodeToHead::Confirm(7));
    assert_eq!(scene.heard(2), [HeadToNode::Confirmed(7)]);
    assert_eq!(scene.freed(2), [], "rule R2: the caller holds it");
    // It was told meanwhile that the call is lost, and hands it over.
    scene.said.clear();
    scene.tell(1, NodeToHead::SubmitAgain { spec: spec.clone(), may_have_run: Some("lost".into()) });
    let known = FinishedOutcome::Ok(vec![ResultValue::Stored { size }]);
    assert_eq!(scene.finished(1, spec.id), Some(known));
    assert!(scene.assigned().is_empty());
    scene.drop_hold(1, DRIVER, object);
    assert_eq!(scene.freed(2), [object]);
}

#[test]
fn a_value_of_a_call_that_failed_for_its_caller_is_freed() {
    let mut scene = Scene::cluster(&[2, 2]);
    let actor = living(&mut scene, ActorTraits::default());
    let object = call_spec(&mut scene, actor.task, 0, &[]).id.result(0);
    let cluster_types::Outcome::Failed(failure) = failed(FailureKind::ActorDied) else { unreachable!() };
    scene.tell(1, NodeToHead::PutFailed { object, failure });
    scene.tell(2, NodeToHead::Escaped { object, size: 1 << 20, inline: None, contains: Default::default() });
    assert_eq!(scene.freed(2), [object]);
}

#[test]
fn whoever_cancels_an_expected_call_its_caller_decides() {
    let mut scene = Scene::cluster(&[2, 2]);
    let (_, spec) = expected(&mut scene, ActorTraits::default());
    let other = scene.executor(2, 9);
    let result = spec.id.result(0);
    let what = Cancellation { object: result, force: true, recursive: true, reason: "by a task".to_owned() };
    scene.said.clear();
    scene.tell(2, NodeToHead::Cancel { client: other, what });
    let (task, reason) = (spec.id, "by a task".to_owned());
    assert_eq!(scene.heard(1), [HeadToNode::CancelOwn { task, reason, recursive: true }]);
    // It was just handing it over.
    scene.tell(1, NodeToHead::SubmitAgain { spec: spec.clone(), may_have_run: None });
    assert_eq!(scene.failed_with(1, spec.id).kind, FailureKind::Cancelled);
    assert!(scene.assigned().is_empty());
}
