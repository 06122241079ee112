//! Calls of actors: which way each goes, and what the daemon is told.

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::FinishedOutcome;
use cluster_types::{
    ClientToNode, FailureKind, NodeToClient, ObjectId, Refs, ResultValue, TaskKind, TaskTemplate,
};

use super::{args, batch, core, foreign, inline, template};
use crate::{ClientCore, HandleSource, Reading};

/// A client that holds a handle of this actor.
fn with_actor() -> (ClientCore, ObjectId) {
    let mut core = core();
    core.open_calls();
    core.add_handle(foreign(1), HandleSource::Elsewhere);
    core.take_batch();
    (core, foreign(1))
}

/// One whose calls go straight.
fn with_open_actor() -> (ClientCore, ObjectId) {
    let (mut core, actor) = with_actor();
    let first = call(&mut core, actor, &[]);
    core.take_batch();
    tell(&mut core, first, "1");
    core.calls_opened(actor, true);
    core.drop_handle(first);
    core.take_batch();
    (core, actor)
}

fn call(core: &mut ClientCore, actor: ObjectId, deps: &[ObjectId]) -> ObjectId {
    call_with(core, actor, deps, 0)
}

fn call_with(core: &mut ClientCore, actor: ObjectId, deps: &[ObjectId], max_retries: i32) -> ObjectId {
    let kind = TaskKind::Method { method: "m".into(), group: "".into(), concurrent: false };
    let template = TaskTemplate { kind, max_retries, ..(*template(actor, 1)).clone() };
    core.submit(&Arc::new(template), args(), Refs::from_slice(deps), Refs::new(), None).1[0]
}

fn ended(result: ObjectId, text: &'static str) -> NodeToClient {
    let (task, _) = result.task().expect("a result");
    let value = ResultValue::Inline(Bytes::from_static(text.as_bytes()));
    NodeToClient::Finished { task, outcome: FinishedOutcome::Ok(vec![value]) }
}

fn tell(core: &mut ClientCore, result: ObjectId, text: &'static str) {
    core.on_message(ended(result, text));
}

/// The calls to send straight.
fn straight(core: &mut ClientCore) -> Vec<ObjectId> {
    let calls = core.take_direct().into_iter().flat_map(|batch| batch.calls);
    calls
        .map(|call| match call {
            ClientToNode::Submit(spec) => spec.id.result(0),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn name(id: ObjectId) -> String {
    id.to_string().replace("000000000000000", "")
}

#[test]
fn the_first_answer_asks_for_the_way_and_what_follows_takes_it() {
    let (mut core, actor) = with_actor();
    let first = call(&mut core, actor, &[]);
    assert_eq!(batch(&mut core), [format!("submit {}", name(first))]);
    tell(&mut core, first, "1");
    assert_eq!(core.take_batch(), [ClientToNode::OpenCalls(actor)]);
    core.calls_opened(actor, true);
    let second = call(&mut core, actor, &[]);
    assert_eq!(straight(&mut core), [second]);
    assert_eq!(batch(&mut core), [""; 0], "nobody else hears of it");
    core.on_answer(ended(second, "2"));
    assert_eq!(core.read(second), Some(Reading::Inline(Bytes::from_static(b"2"))));
    core.drop_handle(second);
    assert_eq!(batch(&mut core), [""; 0]);
}

#[test]
fn the_way_changes_when_the_other_is_empty() {
    let (mut core, actor) = with_open_actor();
    let plain = call(&mut core, actor, &[]);
    let with_ref = call(&mut core, actor, &[foreign(2)]);
    let after = call(&mut core, actor, &[]);
    assert_eq!(straight(&mut core), [plain]);
    assert_eq!(batch(&mut core), [""; 0], "ORDER-1: the head's way is slower, or faster");
    core.on_answer(ended(plain, "1"));
    assert_eq!(batch(&mut core), [format!("submit {}", name(with_ref))]);
    assert_eq!(straight(&mut core), []);
    tell(&mut core, with_ref, "2");
    assert_eq!(straight(&mut core), [after]);
}

#[test]
fn a_call_that_waits_keeps_what_it_names() {
    let (mut core, actor) = with_open_actor();
    let argument = core.put(inline("x"), Refs::new(), true);
    let plain = call(&mut core, actor, &[]);
    let with_ref = call(&mut core, actor, &[argument]);
    core.drop_handle(argument);
    core.drop_handle(actor);
    assert_eq!(batch(&mut core), [""; 0], "REF-1, and rule A1");
    core.on_answer(ended(plain, "1"));
    let (argument, with_ref) = (name(argument), name(with_ref));
    let told = [
        format!("put {argument}"),
        format!("escape {argument}"),
        format!("submit {with_ref}"),
        format!("drop {argument}"),
    ];
    assert_eq!(batch(&mut core), told);
}

#[test]
fn a_result_that_is_named_is_announced() {
    let (mut core, actor) = with_open_actor();
    let pending = call(&mut core, actor, &[]);
    let user = core.submit(&template(foreign(3), 1), args(), Refs::from_slice(&[pending]), Refs::new(), None);
    let told = core.take_batch();
    assert!(matches!(&told[0], ClientToNode::Expect(spec) if spec.id.result(0) == pending), "{told:?}");
    assert!(matches!(&told[1], ClientToNode::Submit(spec) if spec.id == user.0));
    core.on_answer(ended(pending, "1"));
    let pending_name = name(pending);
    assert_eq!(batch(&mut core), [format!("put {pending_name}"), format!("escape {pending_name}")]);
    core.drop_handle(pending);
    assert_eq!(batch(&mut core), [format!("drop {pending_name}")]);
}

#[test]
fn calls_without_an_answer_go_before_those_that_waited_behind_them() {
    let (mut core, actor) = with_open_actor();
    let fails = call(&mut core, actor, &[]);
    let again = call_with(&mut core, actor, &[], 1);
    let fails_too = call(&mut core, actor, &[]);
    // It waits here, and names a result that will never be.
    let held = call(&mut core, actor, &[fails_too]);
    straight(&mut core);
    core.on_message(NodeToClient::CallsEnded { actor, why: "actor A died".into(), lost: true });
    let told = core.take_batch();
    let place = |wanted: &dyn Fn(&ClientToNode) -> bool| told.iter().position(wanted).expect("told");
    let handed_over = |result: ObjectId| {
        place(
            &|message| matches!(message, ClientToNode::SubmitAgain { spec, may_have_run: Some(_) } if spec.id.result(0) == result),
        )
    };
    let went = place(&|message| matches!(message, ClientToNode::Submit(spec) if spec.id.result(0) == held));
    assert!(
        handed_over(fails) < handed_over(again)
            && handed_over(again) < handed_over(fails_too)
            && handed_over(fails_too) < went,
        "ORDER-1, and what it names is known: {told:?}"
    );
    core.drop_handle(fails);
    assert_eq!(batch(&mut core), [format!("drop {}", name(fails))]);
}

#[test]
fn calls_between_nodes_go_in_the_clients_own_stream_within_a_window() {
    let (mut core, actor) = with_actor();
    let first = call(&mut core, actor, &[]);
    core.take_batch();
    tell(&mut core, first, "1");
    assert_eq!(core.take_batch(), [ClientToNode::OpenCalls(actor)]);
    core.on_message(NodeToClient::FarCalls { actor, in_order: true, window: 2 });
    let said = core.outbox().said();
    let calls: Vec<ObjectId> = (0..3).map(|_| call(&mut core, actor, &[])).collect();
    let sent = |core: &mut ClientCore| -> Vec<ObjectId> {
        let far = |message| match message {
            ClientToNode::CallFar(spec) => spec.id.result(0),
            other => panic!("{other:?}"),
        };
        core.take_batch().into_iter().map(far).collect()
    };
    assert_eq!(sent(&mut core), calls[..2]);
    assert_eq!(core.outbox().said(), said, "an actor that calls another answers without a detour");
    assert_eq!(straight(&mut core), []);
    let answer = |result: ObjectId| match ended(result, "x") {
        NodeToClient::Finished { task, outcome } => NodeToClient::FarAnswer { task, outcome },
        other => other,
    };
    core.on_message(answer(calls[0]));
    assert_eq!(core.read(calls[0]), Some(Reading::Inline(Bytes::from_static(b"x"))));
    assert_eq!(sent(&mut core), calls[2..]);
    // Nobody else has heard of it.
    core.drop_handle(calls[0]);
    assert_eq!(batch(&mut core), [""; 0]);
    // What the head knows comes as if it had gone that way.
    tell(&mut core, calls[1], "y");
    core.drop_handle(calls[1]);
    assert_eq!(batch(&mut core), [format!("drop {}", name(calls[1]))]);
    // Somebody else wants the last to end.
    let (task, _) = calls[2].task().expect("a result");
    core.on_message(NodeToClient::CancelOwn { task, reason: "b".to_owned(), recursive: false });
    assert!(
        matches!(&core.take_batch()[..], [ClientToNode::CancelCall { task: asked, .. }] if *asked == task)
    );
}

#[test]
fn what_a_dead_actor_did_not_answer_goes_by_the_head() {
    let (mut core, actor) = with_open_actor();
    let lost: Vec<ObjectId> = (0..40).map(|_| call(&mut core, actor, &[])).collect();
    let again = call_with(&mut core, actor, &[], 1);
    straight(&mut core);
    core.on_message(NodeToClient::CallsEnded { actor, why: "actor A died".into(), lost: false });
    let told = core.take_batch();
    let by_head = told.iter().filter_map(|message| match message {
        ClientToNode::SubmitAgain { spec, may_have_run } => Some((spec.id.result(0), may_have_run.is_some())),
        _ => None,
    });
    // Few are begun before the answer of the first is sent.
    let all = lost.iter().chain([&again]).enumerate();
    let expected: Vec<(ObjectId, bool)> = all.map(|(nth, result)| (*result, nth < 32)).collect();
    assert_eq!(by_head.collect::<Vec<_>>(), expected);
    core.on_answer(ended(lost[33], "late"));
    assert!(core.is_pending(lost[33]), "FENCE-1: the head has it");
}

#[test]
fn a_waiting_call_that_is_cancelled_never_goes() {
    let (mut core, actor) = with_open_actor();
    let running = call(&mut core, actor, &[]);
    let waiting = call(&mut core, actor, &[foreign(2)]);
    assert!(core.cancel_call(waiting, "by a test", true));
    assert!(core.cancel_call(running, "by a test", true));
    let told = core.take_batch();
    assert!(matches!(told.as_slice(), [ClientToNode::CancelCall { .. }]), "{told:?}");
    assert!(
        matches!(core.read(waiting), Some(Reading::Failed(failure)) if failure.kind == FailureKind::Cancelled)
    );
    assert!(core.is_pending(running), "its actor answers");
}

#[test]
fn calls_wait_here_where_the_head_has_many() {
    let (mut core, actor) = with_actor();
    let calls: Vec<ObjectId> = (0..1000).map(|_| call(&mut core, actor, &[])).collect();
    assert_eq!(core.take_batch().len(), 256);
    tell(&mut core, calls[0], "1");
    let told = core.take_batch();
    assert!(matches!(told.as_slice(), [ClientToNode::OpenCalls(_), ClientToNode::Submit(_)]), "{told:?}");
}

#[test]
fn what_was_never_sent_goes_by_the_head_when_its_client_ends() {
    let (mut core, actor) = with_open_actor();
    call(&mut core, actor, &[]);
    let waiting = call(&mut core, actor, &[foreign(2)]);
    core.release_held();
    assert_eq!(batch(&mut core), [format!("submit {}", name(waiting))]);
}
