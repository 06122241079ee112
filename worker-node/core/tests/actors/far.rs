//! Calls that daemons pass on to each other: on the callers' node, and on the callee's.

use cluster_types::NodeToNode;
use cluster_types::node_head::ActorPlace;

use super::*;

const OTHER: NodeId = NodeId(6);
/// A client of the other node.
const FAR: ClientId = ClientId(77);

fn actor() -> ObjectId {
    task(100).result(0)
}

/// One that lives on the other node.
fn elsewhere() -> ObjectId {
    TaskId { client: FAR, seq: 9 }.result(0)
}

fn place(attempt: Attempt) -> ActorPlace {
    ActorPlace { node: OTHER, address: "there:1".to_owned(), attempt, in_order: true, concurrency: 1 }
}

fn far_task(seq: u64) -> TaskId {
    TaskId { client: FAR, seq }
}

fn from_other(message: NodeToNode) -> Event {
    Event::FromPeer { node: OTHER, message }
}

fn to_other(message: NodeToNode) -> Effect {
    Effect::ToPeer { node: OTHER, message }
}

impl Scene {
    fn effects_of(&mut self, event: Event) -> Vec<Effect> {
        self.effects.clear();
        self.step(event);
        std::mem::take(&mut self.effects)
    }

    /// A call of the driver's to the actor on the other node, or of the other node's client to the one here.
    fn far_call(&self, id: TaskId, actor: ObjectId) -> TaskSpec {
        let kind = TaskKind::Method { method: "m".into(), group: "".into(), concurrent: false };
        let spec = self.spec(1, kind, Refs::new());
        let template = TaskTemplate { function: actor, ..(*spec.template).clone() };
        TaskSpec { id, template: Arc::new(template), ..(*spec).clone() }
    }
}

/// The driver calls the actor on the other node.
fn calling() -> Scene {
    let mut scene = Scene::new();
    let asked = scene.effects_of(says(DRIVER, ClientToNode::OpenCalls(elsewhere())));
    assert_eq!(asked, [Effect::ToHead(NodeToHead::FindActor(elsewhere()))]);
    assert_eq!(scene.effects_of(says(DRIVER, ClientToNode::OpenCalls(elsewhere()))), [], "asked once");
    let found = HeadToNode::ActorAt { actor: elsewhere(), place: Some(place(FIRST)) };
    let connect = Effect::ConnectPeer { node: OTHER, address: "there:1".to_owned() };
    assert_eq!(scene.effects_of(Event::FromHead(found)), [connect]);
    let open = NodeToNode::Open { caller: DRIVER, actor: elsewhere(), attempt: FIRST };
    assert_eq!(scene.effects_of(Event::PeerOpened { node: OTHER }), [to_other(open)]);
    let opened = NodeToNode::Opened { caller: DRIVER, actor: elsewhere() };
    let window = 1025;
    let told = NodeToClient::FarCalls { actor: elsewhere(), in_order: true, window };
    assert_eq!(scene.effects_of(from_other(opened)), [to(DRIVER, told)]);
    scene
}

/// The other node's client calls the actor here.
fn called() -> Scene {
    let mut scene = Scene::made(1);
    let opened = NodeToNode::Opened { caller: FAR, actor: actor() };
    let open = NodeToNode::Open { caller: FAR, actor: actor(), attempt: FIRST };
    assert_eq!(scene.effects_of(from_other(open)), [to_other(opened)]);
    let spec = Box::new(scene.far_call(far_task(1), actor()));
    let call = NodeToNode::Call((*spec).clone());
    let told = NodeToClient::Called { in_order: true, spec };
    assert_eq!(scene.effects_of(from_other(call)), [to(client_of(1), told)]);
    scene
}

fn ended(why: &str, lost: bool) -> NodeToClient {
    NodeToClient::CallsEnded { actor: elsewhere(), why: why.to_owned(), lost }
}

#[test]
fn calls_and_answers_pass_through_and_leave_nothing() {
    let mut scene = calling();
    let spec = scene.far_call(task(3), elsewhere());
    let passed = scene.effects_of(says(DRIVER, ClientToNode::CallFar(spec.clone())));
    assert_eq!(passed, [to_other(NodeToNode::Call(spec))]);
    let outcome = FinishedOutcome::Ok(vec![ResultValue::Inline(Bytes::from_static(b"3"))]);
    for known in [false, true] {
        let answer = NodeToNode::Answer { task: task(3), outcome: outcome.clone(), known };
        let (task, outcome) = (task(3), outcome.clone());
        let told = match known {
            false => NodeToClient::FarAnswer { task, outcome },
            true => NodeToClient::Finished { task, outcome },
        };
        assert_eq!(scene.effects_of(from_other(answer)), [to(DRIVER, told)]);
    }
    let (task, reason) = (task(4), "by me".to_owned());
    let cancel =
        ClientToNode::CancelCall { actor: elsewhere(), task, reason: reason.clone(), recursive: true };
    let passed = NodeToNode::Cancel { actor: elsewhere(), task, reason, recursive: true };
    assert_eq!(scene.effects_of(says(DRIVER, cancel)), [to_other(passed)]);
    let ended_there =
        NodeToNode::Ended { caller: DRIVER, actor: elsewhere(), why: "it died".to_owned(), lost: false };
    assert_eq!(scene.effects_of(from_other(ended_there)), [to(DRIVER, ended("it died", false))]);
}

#[test]
fn the_next_head_is_told_which_answers_may_be_on_their_way() {
    let mut scene = calling();
    scene.step(says(DRIVER, ClientToNode::CallFar(scene.far_call(task(3), elsewhere()))));
    scene.step(says(DRIVER, ClientToNode::CallFar(scene.far_call(task(4), elsewhere()))));
    let outcome = FinishedOutcome::Ok(vec![ResultValue::Inline(Bytes::from_static(b"3"))]);
    scene.step(from_other(NodeToNode::Answer { task: task(3), outcome, known: false }));
    let unanswered = |scene: &mut Scene| -> Vec<ObjectId> {
        scene.step(Event::HeadLost);
        let resumed =
            HeadToNode::Resumed { term: Term(2), incarnation: Incarnation(2), loss_timeout_ms: 5000 };
        let effects = scene.effects_of(Event::FromHead(resumed));
        let objects = effects.into_iter().filter_map(|effect| match effect {
            Effect::ToHead(NodeToHead::Unanswered { objects, .. }) => Some(objects),
            _ => None,
        });
        objects.flatten().collect()
    };
    assert_eq!(unanswered(&mut scene), [task(4).result(0)]);
    let why = "it died".to_owned();
    scene.step(from_other(NodeToNode::Ended { caller: DRIVER, actor: elsewhere(), why, lost: false }));
    assert_eq!(unanswered(&mut scene), [], "the client sees to the call");
}

#[test]
fn nothing_of_a_lost_node_counts_any_more() {
    let mut scene = calling();
    let lost = HeadToNode::PeerLost { node: OTHER, why: "node x is lost".to_owned() };
    let effects = scene.effects_of(Event::FromHead(lost));
    let dropped = Effect::DropPeer { node: OTHER };
    assert_eq!(effects, [dropped, to(DRIVER, ended("node x is lost", true))]);
    let outcome = FinishedOutcome::Ok(Vec::new());
    let late = NodeToNode::Answer { task: task(3), outcome, known: false };
    assert_eq!(scene.effects_of(from_other(late)), [], "FENCE-1");
}

#[test]
fn a_node_that_cannot_be_reached_leaves_calls_to_the_head() {
    let mut scene = Scene::new();
    scene.step(says(DRIVER, ClientToNode::OpenCalls(elsewhere())));
    let found = HeadToNode::ActorAt { actor: elsewhere(), place: Some(place(FIRST)) };
    scene.step(Event::FromHead(found));
    let why = "a firewall".to_owned();
    let closed = scene.effects_of(Event::PeerClosed { node: OTHER, opened_here: true, why });
    assert_eq!(closed, [to(DRIVER, NodeToClient::NoCalls { actor: elsewhere() })]);
    // An actor that does not live at this moment.
    scene.step(says(DRIVER, ClientToNode::OpenCalls(elsewhere())));
    let nowhere = HeadToNode::ActorAt { actor: elsewhere(), place: None };
    let told = scene.effects_of(Event::FromHead(nowhere));
    assert_eq!(told, [to(DRIVER, NodeToClient::NoCalls { actor: elsewhere() })]);
}

#[test]
fn a_caller_that_is_gone_is_said_to_be_and_a_broken_conversation_ends_its_calls() {
    let mut scene = calling();
    let why = "the link is cut".to_owned();
    let closed = scene.effects_of(Event::PeerClosed { node: OTHER, opened_here: true, why });
    assert_eq!(closed, [to(DRIVER, ended("the link is cut", true))]);
    let mut scene = calling();
    let close = NodeToNode::Close { caller: DRIVER, actor: elsewhere(), forget: false };
    assert!(scene.effects_of(Event::ClientEnded { client: DRIVER }).contains(&to_other(close)));
}

#[test]
fn the_ways_of_a_node_that_was_out_of_touch_are_closed_there_first() {
    let mut scene = calling();
    scene.step(Event::HeadLost);
    let admitted = HeadToNode::Admitted { term: Term(1), incarnation: Incarnation(2), loss_timeout_ms: 5000 };
    let effects = scene.effects_of(Event::FromHead(admitted));
    let close = NodeToNode::Close { caller: DRIVER, actor: elsewhere(), forget: true };
    assert!(effects.contains(&to_other(close)), "{effects:?}");
    let is_told =
        |effect: &Effect| matches!(effect, Effect::ToClient { message: NodeToClient::CallsEnded { .. }, .. });
    assert!(!effects.iter().any(is_told), "not before the other has forgotten what it had not begun");
    let ended_there =
        NodeToNode::Ended { caller: DRIVER, actor: elsewhere(), why: "out of touch".to_owned(), lost: true };
    assert_eq!(scene.effects_of(from_other(ended_there)), [to(DRIVER, ended("out of touch", true))]);
}

#[test]
fn what_the_head_must_know_is_confirmed_before_the_other_node_hears() {
    let mut scene = called();
    let executor = client_of(1);
    // A small value that nobody need know goes at once.
    let outcome = FinishedOutcome::Ok(vec![ResultValue::Inline(Bytes::from_static(b"1"))]);
    let small = ClientToNode::AnswerFar { task: far_task(1), outcome: outcome.clone() };
    let answer = NodeToNode::Answer { task: far_task(1), outcome, known: false };
    assert_eq!(scene.effects_of(says(executor, small)), [to_other(answer)]);
    // One with refs inside is announced.
    let contains = Refs::from_slice(&[ObjectId::put(executor, 3)]);
    let inline = Bytes::from_static(b"2");
    let value = PutValue::Inline(inline.clone());
    let result = Ok(vec![ExecutorResult { value, contains: contains.clone() }]);
    let told = scene.effects_of(says(executor, ClientToNode::Answered { task: far_task(2), result }));
    let object = far_task(2).result(0);
    let escaped = NodeToHead::Escaped { object, size: 1, inline: Some(inline.clone()), contains };
    assert_eq!(told, [Effect::ToHead(escaped), Effect::ToHead(NodeToHead::Confirm(1))]);
    // And the end of the actor is told behind it.
    let effects = scene.effects_of(Event::ExecutorExited {
        executor: 1,
        cause: "exit code 3".to_owned(),
        unstarted: Vec::new(),
    });
    let confirms = effects.iter().position(|effect| *effect == Effect::ToHead(NodeToHead::Confirm(2)));
    let died = effects.iter().position(|effect| matches!(effect, Effect::ToHead(NodeToHead::Done { .. })));
    assert!(died.is_some() && died < confirms, "{effects:?}");
    let outcome = FinishedOutcome::Ok(vec![ResultValue::Inline(inline)]);
    let answer = NodeToNode::Answer { task: far_task(2), outcome, known: true };
    assert_eq!(scene.effects_of(Event::FromHead(HeadToNode::Confirmed(1))), [to_other(answer)]);
    let told = scene.effects_of(Event::FromHead(HeadToNode::Confirmed(2)));
    let [Effect::ToPeer { message: NodeToNode::Ended { caller: FAR, why, lost: false, .. }, .. }] = &told[..]
    else {
        panic!("{told:?}")
    };
    assert!(why.contains("exit code 3"), "{why}");
}

#[test]
fn calls_of_a_conversation_that_broke_are_forgotten_where_they_have_not_begun() {
    let mut scene = called();
    let why = "silence".to_owned();
    let effects = scene.effects_of(Event::PeerClosed { node: OTHER, opened_here: false, why });
    assert_eq!(effects, [to(client_of(1), NodeToClient::ForgetCalls(FAR))]);
    let outcome = FinishedOutcome::Ok(Vec::new());
    let late = ClientToNode::AnswerFar { task: far_task(1), outcome };
    assert_eq!(scene.effects_of(says(client_of(1), late)), []);
    let spec = scene.far_call(far_task(2), actor());
    assert_eq!(scene.effects_of(from_other(NodeToNode::Call(spec))), [], "it has no way any more");
}

#[test]
fn a_way_leads_to_one_incarnation_of_an_actor() {
    let mut scene = Scene::made(1);
    let open = |attempt| from_other(NodeToNode::Open { caller: FAR, actor: actor(), attempt });
    let refused = scene.effects_of(open(Attempt { term: 1, n: 2 }));
    assert!(
        matches!(
            &refused[..],
            [Effect::ToPeer { message: NodeToNode::Ended { caller: FAR, lost: false, .. }, .. }]
        ),
        "{refused:?}"
    );
    let taken = scene.effects_of(open(FIRST));
    assert_eq!(taken, [to_other(NodeToNode::Opened { caller: FAR, actor: actor() })]);
    // A caller cancels its own calls, and no others' (whoever speaks in its name comes from another node).
    let cancel = |task| NodeToNode::Cancel {
        actor: actor(),
        task,
        reason: "by its caller".to_owned(),
        recursive: false,
    };
    assert!(!scene.effects_of(from_other(cancel(far_task(1)))).is_empty());
    assert_eq!(scene.effects_of(from_other(cancel(task(1)))), []);
}

#[test]
fn a_driver_without_shared_memory_calls_actors_of_its_gateways_node_so() {
    let mut scene = Scene::made(1);
    let remote = ClientId(8);
    let kind = ClientKind::Driver { job: JOB, info: Arc::new(JobInfo::default()) };
    scene.step(Event::ClientAttached { client: remote, pid: 0, kind, shares_memory: false });
    let told = scene.effects_of(says(remote, ClientToNode::OpenCalls(actor())));
    let opened = NodeToClient::FarCalls { actor: actor(), in_order: true, window: 1025 };
    assert_eq!(told, [to(remote, opened)]);
    let spec = scene.far_call(TaskId { client: remote, seq: 1 }, actor());
    let called = NodeToClient::Called { in_order: true, spec: Box::new(spec.clone()) };
    assert_eq!(
        scene.effects_of(says(remote, ClientToNode::CallFar(spec.clone()))),
        [to(client_of(1), called)]
    );
    let outcome = FinishedOutcome::Ok(Vec::new());
    let answer = ClientToNode::AnswerFar { task: spec.id, outcome: outcome.clone() };
    let told = NodeToClient::FarAnswer { task: spec.id, outcome };
    assert_eq!(scene.effects_of(says(client_of(1), answer)), [to(remote, told)]);
}
