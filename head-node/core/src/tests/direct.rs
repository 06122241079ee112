//! Calls that clients send straight to actors, as far as the head hears of them.

use cluster_types::client_node::CallReport;
use cluster_types::node_head::Retry;
use cluster_types::query::{Query, QueryReply};
use cluster_types::{ActorTraits, FailureKind, NodeToHead, Span, TaskSpec};

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
fn one_that_waits_for_an_argument_when_it_is_handed_over_goes_on_waiting() {
    let mut scene = Scene::cluster(&[2]);
    let actor = living(&mut scene, ActorTraits::default());
    let maker = scene.submit(&[]);
    let making = scene.assigned_one();
    let spec = call_spec(&mut scene, actor.task, 0, &[maker.result(0)]);
    scene.tell(1, NodeToHead::Expect(spec.clone()));
    scene.tell(1, NodeToHead::SubmitAgain { spec: spec.clone(), may_have_run: false });
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
