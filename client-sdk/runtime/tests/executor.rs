//! An executor against a daemon in a thread, with a real shared page.

#![allow(clippy::unwrap_used)]

mod fake;

use std::sync::Arc;
use std::time::Duration;

use client_runtime::{Client, ClientError, Got, HandleSource, Kind, Parcel, View, Work};
use cluster_store::slots::{DaemonPage, SlotState, Tag};
use cluster_types::client_node::{Completion, ExecutorFailure, NO_SLOT, PutValue, RunTask};
use cluster_types::{
    Attempt, ClientId, ClientKind, ClientToNode, JobId, Location, NodeToClient, ObjectId, Payload, Refs,
    SegmentId, TaskId, TaskSpec, Value,
};
use fake::{Daemon, failure, soon, template};

const OTHER: ClientId = ClientId(5);
/// Tags from here on are of calls that run at once.
const CONCURRENT: u64 = 1000;

fn tag(n: u64) -> Tag {
    Tag::new(n).unwrap()
}

fn run(n: u64, values: Vec<(ObjectId, Value)>) -> NodeToClient {
    let spec = TaskSpec {
        id: TaskId { client: OTHER, seq: n },
        job: JobId(7),
        template: template("f"),
        payload: Payload::Inline(b"args".to_vec().into()),
        deps: values.iter().map(|(id, _)| *id).collect(),
        parent: None,
        borrowed: Refs::new(),
    };
    let attempt = Attempt { term: 1, n: 1 };
    let slot = if n < CONCURRENT { n as u16 } else { NO_SLOT };
    NodeToClient::Run(Box::new(RunTask {
        tag: n,
        slot,
        attempt,
        spec: Arc::new(spec),
        values,
        gpus: Vec::new(),
    }))
}

fn start() -> (Daemon, DaemonPage, Client) {
    let page = DaemonPage::create().unwrap();
    let fd = page.fd().try_clone_to_owned().unwrap();
    let (daemon, client) = Daemon::with(ClientKind::Executor { executor: 3 }, Some(fd));
    (daemon, page, client)
}

fn next(client: &Client) -> Option<client_runtime::Task> {
    match client.next_work(&mut || Ok(())).unwrap() {
        Some(Work::Run(task)) => Some(task),
        Some(Work::Cancel(tag)) => panic!("nobody was to cancel {tag}"),
        None => None,
    }
}

fn completed(daemon: &Daemon, n: u64) -> Completion {
    daemon.hears(|m| match m {
        ClientToNode::Completed(completion) if completion.tag == n => Some(completion.clone()),
        _ => None,
    })
}

fn small(bytes: &[u8]) -> Parcel {
    Parcel::small(Kind::RAW, bytes).unwrap()
}

#[test]
fn tasks_are_claimed_run_and_reported() {
    let (daemon, page, client) = start();
    for n in 1..=3 {
        assert!(page.offer(n as usize, tag(n)));
    }
    assert!(page.revoke(2, tag(2)));
    daemon.say(&[run(1, vec![]), run(2, vec![]), run(3, vec![])]);
    let first = next(&client).unwrap();
    assert_eq!((first.tag, page.state(1)), (1, SlotState::Claimed(tag(1))));
    client.enter_user_code(1);
    page.request_cancel(tag(1));
    assert!(client.take_cancel() && !client.take_cancel());
    client.leave_user_code();
    assert_eq!(client.cancel_reason(1, Duration::ZERO), None);
    daemon.say(&[NodeToClient::Cancel { tag: 1, reason: "by a test".to_owned(), recursive: false }]);
    assert_eq!(client.cancel_reason(1, Duration::from_secs(10)).as_deref(), Some("by a test"));
    client.complete(1, Ok(vec![(small(b"done"), Refs::new())]), 12).unwrap();
    assert_eq!(page.state(1), SlotState::Empty);
    let third = next(&client).unwrap();
    assert_eq!(third.tag, 3, "the revoked one is skipped");
    let error = ExecutorFailure { failure: failure("boom"), retryable: true };
    client.complete(3, Err(error.clone()), 5).unwrap();
    assert_eq!(completed(&daemon, 3).result, Err(error));
    assert_eq!(completed(&daemon, 1).micros, 12);
    assert!(matches!(client.complete(3, Ok(vec![]), 0), Err(ClientError::Misuse(_))));
    daemon.say(&[NodeToClient::Exit]);
    assert!(next(&client).is_none());
}

#[test]
fn the_daemons_end_is_the_executors() {
    let (daemon, _page, client) = start();
    daemon.speaker().close();
    assert!(next(&client).is_none());
}

#[test]
fn arguments_are_views_released_when_the_last_one_goes() {
    let (daemon, page, client) = start();
    let arg = ObjectId::put(OTHER, 9);
    let speaker = daemon.speaker();
    let NodeToClient::Segment { segment, len, .. } = speaker.make_segment(50, 1 << 20) else {
        unreachable!()
    };
    let location = Location { segment, offset: 64, len: 9 };
    speaker.write(location, &cluster_store::layout::Layout::encode(Kind::RAW, b"x", &[]).unwrap());
    page.offer(1, tag(1));
    daemon.say(&[
        NodeToClient::Segment { segment, len, writable: false },
        run(1, vec![(arg, Value::Local(location))]),
    ]);
    let task = next(&client).unwrap();
    let Got::Value(value) = task.values[0].1.clone() else { panic!("a value") };
    assert!(value.is_shared());
    assert_eq!(View::parse(&value).unwrap().in_band(), b"x");
    client.complete(1, Ok(vec![]), 0).unwrap();
    drop(task);
    completed(&daemon, 1);
    let released =
        |m: &ClientToNode| matches!(m, ClientToNode::Release(list) if list[..] == [arg]).then_some(());
    assert!(!daemon.heard().iter().any(|m| released(m).is_some()), "user code still views it");
    drop(value);
    daemon.hears(released);
}

#[test]
fn large_results_lie_in_the_executors_own_lease() {
    let (daemon, page, client) = start();
    page.offer(1, tag(1));
    daemon.say(&[run(1, vec![])]);
    next(&client).unwrap();
    let draft = client.reserve(Kind::RAW, 0, &[20_000], &mut || Ok(())).unwrap();
    let parcel = draft.write(&[], &[&[3; 20_000]], &mut || Ok(())).unwrap();
    client.complete(1, Ok(vec![(parcel, Refs::new())]), 0).unwrap();
    let results = completed(&daemon, 1).result.unwrap();
    let PutValue::Stored(location) = results[0].value else { panic!("stored") };
    assert!(daemon.speaker().read(location).ends_with(&[3; 20_000]));
    daemon.say(&[NodeToClient::RangesFreed(vec![location]), NodeToClient::RecallMemory]);
    let returned = std::thread::scope(|scope| {
        let reads = scope.spawn(|| next(&client));
        let returned = daemon.hears(|m| match m {
            ClientToNode::ReturnMemory(segments) => Some(segments.clone()),
            _ => None,
        });
        daemon.say(&[NodeToClient::Exit]);
        assert!(reads.join().unwrap().is_none());
        returned
    });
    assert_eq!(returned, [SegmentId(1)]);
}

#[test]
fn a_task_that_waits_for_another_lends_its_cpu() {
    let (daemon, page, client) = start();
    page.offer(1, tag(1));
    daemon.say(&[run(1, vec![])]);
    next(&client).unwrap();
    let child = client.submit(fake::call(&template("never"), b""), &mut || Ok(())).unwrap()[0];
    let speaker = daemon.speaker();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            daemon.hears(|m| match m {
                ClientToNode::Blocked { tag: 1, on } if on[..] == [child] => Some(()),
                _ => None,
            });
            let outcome = cluster_types::client_node::FinishedOutcome::Failed(failure("child"));
            speaker.say(&[NodeToClient::Finished { task: child.task().unwrap().0, outcome }]);
        });
        let got = client.get(&[child], soon(), &mut || Ok(())).unwrap();
        assert!(matches!(&got[0], Got::Failed(_)));
    });
    daemon.hears(|m| matches!(m, ClientToNode::Unblocked { tag: 1 }).then_some(()));
    // A value that only has to be brought is no reason to lend.
    let put = client.put(small(b"v"), &[]).unwrap();
    client.get(&[put], soon(), &mut || Ok(())).unwrap();
    let blocked = daemon.heard().iter().filter(|m| matches!(m, ClientToNode::Blocked { .. })).count();
    assert_eq!(blocked, 1);
}

#[test]
fn refs_kept_by_user_code_are_held_before_the_task_ends() {
    let (daemon, page, client) = start();
    page.offer(1, tag(1));
    daemon.say(&[run(1, vec![])]);
    next(&client).unwrap();
    let (kept, passed) = (ObjectId::put(OTHER, 1), ObjectId::put(OTHER, 2));
    client.add_handles(&[kept, passed], HandleSource::Task);
    client.drop_handle(passed);
    client.complete(1, Ok(vec![(small(b""), Refs::new())]), 0).unwrap();
    completed(&daemon, 1);
    let heard = daemon.heard();
    let hold = heard.iter().position(|m| matches!(m, ClientToNode::Hold(list) if list[..] == [kept]));
    let done = heard.iter().position(|m| matches!(m, ClientToNode::Completed(_)));
    assert!(hold.unwrap() < done.unwrap(), "{heard:?}");
}

#[test]
fn completions_are_gathered_while_more_tasks_are_at_hand() {
    let (daemon, page, client) = start();
    let many = (1..=40).map(|n| {
        page.offer(n as usize, tag(n));
        run(n, vec![])
    });
    daemon.say(&many.collect::<Vec<_>>());
    for n in 1..=40 {
        assert_eq!(next(&client).unwrap().tag, n);
        client.complete(n, Ok(vec![(small(b""), Refs::new())]), 0).unwrap();
    }
    completed(&daemon, 40);
    let tags: Vec<u64> = daemon
        .heard()
        .iter()
        .filter_map(|m| match m {
            ClientToNode::Completed(completion) => Some(completion.tag),
            _ => None,
        })
        .collect();
    assert!(tags.into_iter().eq(1..=40));
}

#[test]
fn calls_that_run_at_once_end_in_any_order_and_submit_each_in_its_own_name() {
    let (daemon, page, client) = start();
    page.offer(1, tag(1));
    daemon.say(&[run(1, vec![])]);
    next(&client).unwrap();
    client.complete(1, Ok(vec![(small(b""), Refs::new())]), 0).unwrap();
    daemon.say(&[run(1001, vec![]), run(1002, vec![]), run(1003, vec![])]);
    for n in 1001..=1003 {
        assert_eq!(next(&client).unwrap().tag, n);
    }
    let mut child = fake::call(&template("never"), b"");
    child.within = Some(1002);
    let child = client.submit(child, &mut || Ok(())).unwrap()[0];
    let nobodys = client.submit(fake::call(&template("never"), b""), &mut || Ok(())).unwrap()[0];
    for n in [1002, 1003, 1001] {
        client.complete(n, Ok(vec![(small(b""), Refs::new())]), 0).unwrap();
        completed(&daemon, n);
    }
    let parent_of = |object: ObjectId| {
        daemon.hears(|m| match m {
            ClientToNode::Submit(spec) if spec.id.result(0) == object => Some(spec.parent),
            _ => None,
        })
    };
    assert_eq!(parent_of(child), Some(TaskId { client: OTHER, seq: 1002 }));
    assert_eq!(parent_of(nobodys), None);
}

#[test]
fn a_call_that_runs_at_once_with_others_is_told_to_stop_and_so_are_its_waits() {
    let (daemon, page, client) = start();
    page.offer(1, tag(1));
    daemon.say(&[run(1, vec![])]);
    next(&client).unwrap();
    client.complete(1, Ok(vec![(small(b""), Refs::new())]), 0).unwrap();
    daemon.say(&[run(1001, vec![]), run(1002, vec![])]);
    next(&client).unwrap();
    next(&client).unwrap();
    let child = client.submit(fake::call(&template("never"), b""), &mut || Ok(())).unwrap()[0];
    let cancel = |tag| NodeToClient::Cancel { tag, reason: "by a test".to_owned(), recursive: false };
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| client.get_within(Some(1001), &[child], soon(), &mut || Ok(())));
        daemon.hears(|m| matches!(m, ClientToNode::Blocked { tag: 1001, .. }).then_some(()));
        daemon.say(&[cancel(1001)]);
        let work = client.next_work(&mut || Ok(())).unwrap();
        assert!(matches!(work, Some(Work::Cancel(1001))), "{work:?}");
        assert_eq!(waits.join().unwrap().unwrap_err(), ClientError::Cancelled);
    });
    assert_eq!(client.cancel_reason(1001, Duration::ZERO).as_deref(), Some("by a test"));
    // One that had not begun is begun and told at once.
    daemon.say(&[run(1003, vec![]), cancel(1003)]);
    assert_eq!(next(&client).unwrap().tag, 1003);
    assert!(matches!(client.next_work(&mut || Ok(())).unwrap(), Some(Work::Cancel(1003))));
}
