//! States that actors keep over their restarts.

use cluster_types::node_head::Retry;
use cluster_types::query::{Query, QueryReply};
use cluster_types::{
    ActorTraits, Attempt, ClientId, FailureKind, HeadToNode, NodeToHead, ObjectId, Resources, Span, TaskKind,
    TaskTemplate,
};

use super::scene::*;

/// An actor on node 2 that may be made again, and its executor.
fn living(scene: &mut Scene) -> (Assigned, ClientId) {
    let traits = ActorTraits { max_restarts: -1, ..ActorTraits::default() };
    let plain = scene.template("Counter", Resources::cpus(1));
    let template = TaskTemplate { kind: TaskKind::Actor(traits.into()), max_retries: 0, ..(*plain).clone() };
    let spec = scene.spec(DRIVER, template.into(), &[]);
    scene.tell(1, NodeToHead::Submit(spec));
    let assigned = scene.assigned_one();
    scene.done(&assigned, inline(b"handle"));
    assert_eq!(assigned.node, node(2));
    (assigned, scene.executor(2, 5))
}

/// Its executor puts a state and asks that it be kept.
fn save(scene: &mut Scene, actor: &Assigned, attempt: Attempt, executor: ClientId, number: u64) -> ObjectId {
    let state = ObjectId::put(executor, number);
    let n = actor.node.0;
    scene.escape(n, state, &[]);
    scene.said.clear();
    let query = Query::KeepState {
        actor: actor.task.result(0).to_string(),
        attempt: (attempt.term, attempt.n),
        object: state.to_string(),
    };
    scene.tell(n, NodeToHead::Query { client: executor, number, query });
    scene.tell(n, NodeToHead::Drop { client: executor, objects: vec![state] });
    state
}

/// What the executor was answered since the last look, and what is copied where.
fn answers(scene: &mut Scene, n: u64) -> Vec<Result<QueryReply, String>> {
    let of = |message| match message {
        HeadToNode::Reply { reply, .. } => Some(reply),
        _ => None,
    };
    scene.heard(n).into_iter().filter_map(of).collect()
}

fn copies(scene: &mut Scene, n: u64) -> Vec<ObjectId> {
    let of = |message| match message {
        HeadToNode::Copy { object, .. } => Some(object),
        _ => None,
    };
    scene.heard(n).into_iter().filter_map(of).collect()
}

fn kept(scene: &Scene, actor: &Assigned) -> Vec<String> {
    match scene.head.answer(&Query::KeptStates { actor: actor.task.result(0).to_string() }) {
        Ok(QueryReply::States(states)) => states,
        other => panic!("{other:?}"),
    }
}

fn named(states: &[ObjectId]) -> Vec<String> {
    states.iter().map(ObjectId::to_string).collect()
}

#[test]
fn a_state_is_copied_to_a_second_node_and_the_one_before_it_stays_until_then() {
    let mut scene = Scene::cluster(&[0, 1]);
    let (actor, executor) = living(&mut scene);
    let first = save(&mut scene, &actor, actor.attempt, executor, 1);
    assert_eq!(copies(&mut scene, 1), [first]);
    assert_eq!(answers(&mut scene, 2), [], "nobody is told before it is there");
    scene.tell(1, NodeToHead::CopyAdded(first));
    assert_eq!(answers(&mut scene, 2), [Ok(QueryReply::States(named(&[first])))]);

    let second = save(&mut scene, &actor, actor.attempt, executor, 2);
    let third = save(&mut scene, &actor, actor.attempt, executor, 3);
    assert_eq!(kept(&scene, &actor), named(&[third, first]));
    assert_eq!(scene.freed(2), [second], "a newer one came before it was safe");
    scene.said.clear();
    scene.tell(1, NodeToHead::CopyAdded(third));
    assert_eq!(kept(&scene, &actor), named(&[third]));
    assert_eq!(scene.freed(1), [first]);
    assert_eq!(answers(&mut scene, 2).len(), 2, "who waits for an older one is content with a newer");
}

#[test]
fn a_node_alone_keeps_the_newest_and_copies_it_when_another_joins() {
    let mut scene = Scene::empty();
    scene.join(2, Resources::cpus(1));
    scene.driver(2);
    let traits = ActorTraits { max_restarts: -1, ..ActorTraits::default() };
    let plain = scene.template("Counter", Resources::cpus(1));
    let template = TaskTemplate { kind: TaskKind::Actor(traits.into()), ..(*plain).clone() };
    let spec = scene.spec(DRIVER, template.into(), &[]);
    scene.tell(2, NodeToHead::Submit(spec));
    let actor = scene.assigned_one();
    scene.done(&actor, inline(b"handle"));
    let executor = scene.executor(2, 5);
    let first = save(&mut scene, &actor, actor.attempt, executor, 1);
    assert_eq!(answers(&mut scene, 2).len(), 1);
    let second = save(&mut scene, &actor, actor.attempt, executor, 2);
    assert_eq!(kept(&scene, &actor), named(&[second]));
    assert_eq!(scene.freed(2), [first]);
    scene.join(1, Resources::default());
    scene.pass(Span::secs(2));
    assert_eq!(copies(&mut scene, 1), [second]);
}

#[test]
fn a_state_outlives_its_node_and_an_earlier_life_changes_nothing() {
    let mut scene = Scene::cluster(&[0, 1, 1]);
    let (actor, executor) = living(&mut scene);
    let state = save(&mut scene, &actor, actor.attempt, executor, 1);
    let n = if copies(&mut scene, 1).is_empty() { 3 } else { 1 };
    scene.tell(n, NodeToHead::CopyAdded(state));
    scene.said.clear();
    scene.disconnect(2);
    let again = scene.assigned_one();
    assert_eq!(again.node, node(3));
    assert_eq!(kept(&scene, &actor), named(&[state]));
    scene.pass(Span::secs(2));
    assert!(
        !copies(&mut scene, 1).is_empty() || !copies(&mut scene, 3).is_empty(),
        "it is on one node only again"
    );
    scene.done(&again, inline(b"handle"));
    let executor = scene.executor(3, 6);
    save(&mut scene, &again, actor.attempt, executor, 1);
    assert!(matches!(answers(&mut scene, 3).as_slice(), [Err(why)] if why.contains("does not live there")));
    assert_eq!(kept(&scene, &actor), named(&[state]));
}

#[test]
fn who_waits_is_answered_also_when_the_copy_does_not_come_and_it_is_asked_for_again() {
    let mut scene = Scene::cluster(&[0, 1]);
    let (actor, executor) = living(&mut scene);
    let state = save(&mut scene, &actor, actor.attempt, executor, 1);
    assert_eq!(copies(&mut scene, 1), [state]);
    scene.pass(Span::secs(7));
    assert_eq!(answers(&mut scene, 2).len(), 1);
    scene.pass(Span::secs(5));
    assert_eq!(copies(&mut scene, 1), [state]);
}

#[test]
fn states_go_with_their_actor() {
    let mut scene = Scene::cluster(&[0, 1]);
    let (actor, executor) = living(&mut scene);
    let state = save(&mut scene, &actor, actor.attempt, executor, 1);
    scene.tell(2, NodeToHead::ClientGone { client: executor });
    assert_eq!(scene.freed(2), [], "its executor's end alone changes nothing");
    scene.ended(&actor, failed(FailureKind::ActorDied), Retry::No, None);
    assert_eq!(scene.freed(2), [state]);
}
