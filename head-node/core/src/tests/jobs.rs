//! Submitted jobs, as the head sees them.

use cluster_types::job::{
    JobFromNode, JobOrder, JobSpec, JobStage, JobState, JobToNode, JobView, LogOf, LogQuery,
};
use cluster_types::node_head::Retry;
use cluster_types::query::{Query, QueryReply};
use cluster_types::{ActorTraits, HeadToNode, NodeToHead, Resources, Span, Term};

use super::actors::{dies, living};
use super::scene::*;
use crate::event::{Effect, Event, Record};
use crate::{HeadConfig, Member};

const ONE: &str = "00000001";
const TWO: &str = "00000002";

fn ask(scene: &mut Scene, query: Query) -> Result<JobView, String> {
    scene.event(Event::Query { number: 9, query });
    let at = scene.said.iter().rposition(|effect| matches!(effect, Effect::Reply { number: 9, .. }));
    let Effect::Reply { reply, .. } = scene.said.remove(at.expect("it answers")) else { unreachable!() };
    match reply? {
        QueryReply::Jobs(mut views) if views.len() == 1 => Ok(views.remove(0)),
        other => panic!("{other:?}"),
    }
}

fn spec(cpus: f64, retries: u32) -> JobSpec {
    let resources = [("CPU".to_owned(), cpus)].into();
    JobSpec { entrypoint: vec!["train".to_owned()], resources, retries, ..JobSpec::default() }
}

fn submit(scene: &mut Scene, job: &str, spec: JobSpec) -> Result<JobView, String> {
    ask(scene, Query::SubmitJob { job: job.to_owned(), spec: Box::new(spec) })
}

fn view(scene: &mut Scene, job: &str) -> JobView {
    ask(scene, Query::Job { job: job.to_owned() }).unwrap()
}

/// What a node was told of jobs.
fn told(scene: &mut Scene, n: u64) -> Vec<JobToNode> {
    let of = |message| match message {
        HeadToNode::Jobs(message) => Some(message),
        _ => None,
    };
    scene.heard(n).into_iter().filter_map(of).collect()
}

fn started(scene: &mut Scene, n: u64) -> Box<JobOrder> {
    match told(scene, n).as_slice() {
        [JobToNode::Start(order)] => order.clone(),
        other => panic!("{other:?}"),
    }
}

fn say(scene: &mut Scene, n: u64, order: &JobOrder, stage: JobStage) {
    scene.tell(n, NodeToHead::Jobs(JobFromNode::Report { order: Box::new(order.clone()), stage }));
}

fn ended(code: i32) -> JobStage {
    let error = if code == 0 { String::new() } else { format!("it ended with exit code {code}") };
    JobStage::Ended { exit_code: Some(code), started_ms: 5, ended_ms: 6, error, hopeless: false }
}

#[test]
fn a_job_is_written_down_before_it_is_started_and_its_end_before_its_node_may_forget_it() {
    let mut scene = Scene::cluster(&[1]);
    assert_eq!(submit(&mut scene, ONE, spec(1.0, 0)).unwrap().state, JobState::Preparing);
    let kept = scene.said.iter().position(|effect| matches!(effect, Effect::Persist(Record::JobKept(_))));
    let sent = scene.said.iter().position(|effect| matches!(effect, Effect::ToNode { .. }));
    assert!(kept.unwrap() < sent.unwrap(), "rule H4");
    let order = started(&mut scene, 1);
    say(&mut scene, 1, &order, JobStage::Running { started_ms: 5 });
    assert_eq!(view(&mut scene, ONE).state, JobState::Running);
    scene.said.clear();
    say(&mut scene, 1, &order, ended(0));
    let kept = scene.said.iter().position(|effect| {
        matches!(effect, Effect::Persist(Record::JobKept(view)) if view.state == JobState::Succeeded)
    });
    let sent = scene.said.iter().position(|effect| matches!(effect, Effect::ToNode { .. }));
    assert!(kept.unwrap() < sent.unwrap(), "rule H4");
    assert_eq!(told(&mut scene, 1), [JobToNode::Forget { job: ONE.to_owned(), attempt: 1 }]);
    assert_eq!(view(&mut scene, ONE).exit_code(), Some(0));
}

#[test]
fn a_job_waits_for_room_and_says_so() {
    let mut scene = Scene::cluster(&[1]);
    submit(&mut scene, ONE, spec(1.0, 0)).unwrap();
    let first = started(&mut scene, 1);
    let waiting = submit(&mut scene, TWO, spec(1.0, 0)).unwrap();
    assert_eq!(
        (waiting.state, waiting.message.as_str()),
        (JobState::Pending, "it waits until 1 CPU are free on a node")
    );
    assert!(told(&mut scene, 1).is_empty());
    say(&mut scene, 1, &first, ended(0));
    scene.event(Event::Tick);
    let messages = told(&mut scene, 1);
    assert!(messages.iter().any(|message| matches!(message, JobToNode::Start(order) if order.job == TWO)));
    let never = submit(&mut scene, "00000003", spec(64.0, 0)).unwrap();
    assert_eq!(never.message, "no node has 64 CPU; it waits for one that does to join");
}

#[test]
fn who_asks_twice_gets_one_job_and_a_name_is_taken_until_its_job_has_ended() {
    let mut scene = Scene::cluster(&[2]);
    let named = |name: &str| JobSpec { name: name.to_owned(), ..spec(0.0, 0) };
    submit(&mut scene, ONE, named("nightly")).unwrap();
    let order = started(&mut scene, 1);
    submit(&mut scene, ONE, named("nightly")).unwrap();
    assert!(told(&mut scene, 1).is_empty(), "asked again by who did not hear the answer");
    let refused = submit(&mut scene, TWO, named("nightly")).unwrap_err();
    assert!(refused.contains("a job called nightly is preparing already (00000001)"), "{refused}");
    say(&mut scene, 1, &order, ended(1));
    submit(&mut scene, TWO, named("nightly")).unwrap();
    assert_eq!(view(&mut scene, "nightly").job, TWO, "the name means the one that lives");
    let with_variable = |name: &str, value: &str| {
        let mut wrong = spec(0.0, 0);
        wrong.runtime_env.env_vars.insert(name.to_owned(), value.to_owned());
        wrong
    };
    for (wrong, why) in [
        (JobSpec { entrypoint: vec![" ".to_owned()], ..JobSpec::default() }, "nothing to run"),
        (JobSpec { entrypoint: vec!["a\0b".to_owned()], ..JobSpec::default() }, "NUL"),
        (named("two\nlines"), "control characters"),
        (JobSpec { timeout_ms: Some(0), ..spec(0.0, 0) }, "a timeout of 0"),
        (with_variable("A=B", ""), "no name of an environment variable"),
        (with_variable("A", "\0"), "environment variable A"),
        (spec(-1.0, 0), "cannot be: CPU is -1"),
    ] {
        let refused = submit(&mut scene, "00000003", wrong).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn a_job_that_fails_or_whose_node_is_lost_is_tried_again_as_often_as_asked() {
    let mut scene = Scene::cluster(&[1, 1]);
    submit(&mut scene, ONE, spec(1.0, 2)).unwrap();
    let order = started(&mut scene, 1);
    say(&mut scene, 1, &order, ended(3));
    scene.event(Event::Tick);
    let (at, order) = (1..=2)
        .find_map(|n| match told(&mut scene, n).into_iter().find(|m| matches!(m, JobToNode::Start(_))) {
            Some(JobToNode::Start(order)) => Some((n, order)),
            _ => None,
        })
        .expect("it is tried again");
    assert_eq!(order.attempt, 2);
    say(&mut scene, at, &order, JobStage::Running { started_ms: 5 });
    scene.disconnect(at);
    scene.incarnations.remove(&node(at));
    scene.pass(Span::secs(10));
    let other = 3 - at;
    let order = started(&mut scene, other);
    assert_eq!(order.attempt, 3);
    assert!(view(&mut scene, ONE).attempts[1].error.contains("is lost"));
    say(&mut scene, other, &order, ended(3));
    let end = view(&mut scene, ONE);
    assert_eq!((end.state, end.attempts.len()), (JobState::Failed, 3));
}

#[test]
fn the_log_of_a_job_whose_node_is_gone_is_asked_of_another_from_durable_storage() {
    let mut scene = Scene::cluster(&[1, 1]);
    submit(&mut scene, ONE, spec(1.0, 0)).unwrap();
    let at = (1..=2).find(|n| !told(&mut scene, *n).is_empty()).expect("it is started");
    let read = |scene: &mut Scene| {
        let of = LogOf::Job(ONE.to_owned(), None);
        scene.event(Event::Query { number: 8, query: Query::Log(LogQuery { of, ..LogQuery::default() }) });
    };
    let asked = |scene: &mut Scene, n: u64| match told(scene, n).pop() {
        Some(JobToNode::ReadLog { log, .. }) => log,
        other => panic!("{other:?}"),
    };
    read(&mut scene);
    assert!(!asked(&mut scene, at).lost);
    scene.disconnect(at);
    scene.incarnations.remove(&node(at));
    scene.pass(Span::secs(10));
    read(&mut scene);
    let log = asked(&mut scene, 3 - at);
    assert_eq!((log.of, log.lost), (LogOf::Job(ONE.to_owned(), Some(1)), true));
}

#[test]
fn the_log_of_an_actor_that_ended_is_asked_of_where_it_lived() {
    let mut scene = Scene::cluster(&[1, 1]);
    let named = |name: &str| ActorTraits { name: name.to_owned(), ..ActorTraits::default() };
    let read = |scene: &mut Scene, text: &str| {
        let log = LogQuery { of: LogOf::Actor(text.to_owned()), ..LogQuery::default() };
        scene.event(Event::Query { number: 8, query: Query::Log(log) });
    };
    let asked = |scene: &mut Scene, n: u64| match told(scene, n).pop() {
        Some(JobToNode::ReadLog { log, .. }) => log.of,
        other => panic!("{other:?}"),
    };
    let first = living(&mut scene, named("lamp"));
    dies(&mut scene, &first, Retry::No);
    let second = living(&mut scene, named("lamp"));
    let whole = |assigned: &Assigned| assigned.task.result(0).to_string();
    read(&mut scene, "lamp");
    assert_eq!(asked(&mut scene, second.node.0), LogOf::Actor(whole(&second)), "the living one is meant");
    dies(&mut scene, &second, Retry::No);
    read(&mut scene, "lamp");
    assert_eq!(asked(&mut scene, second.node.0), LogOf::Actor(whole(&second)), "the last of that name");
    read(&mut scene, &whole(&first));
    assert_eq!(asked(&mut scene, first.node.0), LogOf::Actor(whole(&first)));
}

#[test]
fn a_stopped_job_is_not_tried_again_and_what_is_late_changes_nothing() {
    let mut scene = Scene::cluster(&[1]);
    submit(&mut scene, ONE, spec(1.0, 5)).unwrap();
    let order = started(&mut scene, 1);
    assert!(ask(&mut scene, Query::DeleteJob { job: ONE.to_owned() }).unwrap_err().contains("stop it first"));
    ask(&mut scene, Query::StopJob { job: ONE.to_owned() }).unwrap();
    assert_eq!(told(&mut scene, 1), [JobToNode::Stop { job: ONE.to_owned(), attempt: 1 }]);
    say(&mut scene, 1, &order, JobStage::Running { started_ms: 5 });
    assert_eq!(view(&mut scene, ONE).state, JobState::Stopping);
    say(&mut scene, 1, &order, ended(143));
    assert_eq!(view(&mut scene, ONE).state, JobState::Stopped);
    scene.said.clear();
    say(&mut scene, 1, &JobOrder { attempt: 7, ..*order }, JobStage::Running { started_ms: 5 });
    assert_eq!(told(&mut scene, 1), [JobToNode::Stop { job: ONE.to_owned(), attempt: 7 }], "TASK-2");
    ask(&mut scene, Query::DeleteJob { job: ONE.to_owned() }).unwrap();
    assert_eq!(told(&mut scene, 1), [JobToNode::DeleteLogs { job: ONE.to_owned() }]);
    assert!(ask(&mut scene, Query::Job { job: ONE.to_owned() }).unwrap_err().contains("no job"));
}

/// Two jobs of term 1 run on nodes 1 and 2 of one core each; a head of term 2 knows them and the nodes.
fn restarted() -> (Scene, Vec<JobOrder>) {
    let mut scene = Scene::cluster(&[1, 1]);
    let mut orders = Vec::new();
    for (n, job) in [(1, ONE), (2, TWO)] {
        submit(&mut scene, job, spec(1.0, 0)).unwrap();
        orders.push(*started(&mut scene, n));
    }
    let jobs = [ONE, TWO].map(|job| view(&mut scene, job)).to_vec();
    let roster = (1..=2).map(|n| Member {
        node: node(n),
        incarnation: scene.incarnations[&node(n)],
        since: scene.incarnations[&node(n)],
    });
    let config = HeadConfig { term: Term(2), roster: roster.collect(), jobs, ..HeadConfig::default() };
    (Scene::with(config), orders)
}

#[test]
fn a_head_that_is_started_again_takes_over_what_nodes_run_and_fails_the_rest() {
    let (mut scene, orders) = restarted();
    scene.join(1, Resources::cpus(1));
    scene.said.clear();
    say(&mut scene, 1, &orders[0], JobStage::Running { started_ms: 5 });
    scene.tell(1, NodeToHead::SnapshotEnd);
    assert!(!view(&mut scene, TWO).state.has_ended(), "its node may still come");
    scene.pass(Span::secs(20));
    assert_eq!(view(&mut scene, ONE).state, JobState::Running);
    let lost = view(&mut scene, TWO);
    assert_eq!(lost.state, JobState::Failed);
    assert!(lost.message.contains("did not come back"), "{}", lost.message);
    // Its core is booked: nothing else starts beside it.
    assert_eq!(submit(&mut scene, "00000003", spec(1.0, 0)).unwrap().state, JobState::Pending);
    say(&mut scene, 1, &orders[0], ended(0));
    assert_eq!(view(&mut scene, ONE).state, JobState::Succeeded);
}
