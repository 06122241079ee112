//! Both ends of a stream against a daemon in a thread: reading what a task yields, and yielding in one.

#![allow(clippy::unwrap_used)]

mod fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use client_runtime::{Client, ClientError, Kind, Parcel, Taking, Work};
use cluster_store::slots::{DaemonPage, Tag};
use cluster_types::client_node::{FinishedOutcome, NO_SLOT, RunTask};
use cluster_types::{
    Attempt, ClientId, ClientKind, ClientToNode, JobId, NodeToClient, Payload, Refs, ResultValue,
    StreamLimits, TaskId, TaskSpec, TaskTemplate,
};
use fake::{Daemon, call, soon, template};

const LIMITS: StreamLimits = StreamLimits { max_items: 2, max_bytes: 0 };
/// Tags from here on are of calls that run at once.
const CONCURRENT: u64 = 1000;

fn streaming() -> Arc<TaskTemplate> {
    Arc::new(TaskTemplate { stream: Some(LIMITS), ..(*template("never")).clone() })
}

fn small(bytes: &[u8]) -> Parcel {
    Parcel::small(Kind::RAW, bytes).unwrap()
}

// ---- reading ----

fn reader() -> (Daemon, Client, TaskId) {
    let (daemon, client) = Daemon::with_driver();
    let results = client.submit(call(&streaming(), b""), &mut || Ok(())).unwrap();
    (daemon, client, results[0].task().unwrap().0)
}

fn item(task: TaskId, index: u32) -> NodeToClient {
    NodeToClient::Item { task, index, value: ResultValue::Inline(b"item".to_vec().into()) }
}

fn end(task: TaskId) -> NodeToClient {
    let outcome = FinishedOutcome::Ok(vec![ResultValue::Inline(b"end".to_vec().into())]);
    NodeToClient::Finished { task, outcome }
}

fn next(client: &Client, task: TaskId) -> Result<Taking, ClientError> {
    client.next_item(None, task, soon(), &mut || Ok(()))
}

#[test]
fn a_reader_waits_for_items_and_for_the_end() {
    let (daemon, client, task) = reader();
    let speaker = daemon.speaker();
    let says = std::thread::spawn(move || {
        for index in 0..3 {
            std::thread::sleep(Duration::from_millis(5));
            speaker.say(&[item(task, index)]);
        }
        std::thread::sleep(Duration::from_millis(5));
        speaker.say(&[end(task)]);
    });
    for index in 0..3 {
        assert_eq!(next(&client, task).unwrap(), Taking::Item(task.item(index)));
    }
    assert_eq!(next(&client, task).unwrap(), Taking::End);
    assert!(client.is_drained(task));
    says.join().unwrap();
    daemon.hears(|said| match said {
        ClientToNode::Taken { items: 1, closed: false, .. } => Some(()),
        _ => None,
    });
}

#[test]
fn several_threads_take_each_item_once() {
    let (daemon, client, task) = reader();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            std::thread::spawn(move || {
                let mut taken = Vec::new();
                while let Taking::Item(item) = next(&client, task).unwrap() {
                    taken.push(item);
                }
                taken
            })
        })
        .collect();
    for index in 0..200 {
        daemon.say(&[item(task, index)]);
    }
    daemon.say(&[end(task)]);
    let mut all: Vec<_> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, (0..200).map(|index| task.item(index)).collect::<Vec<_>>());
}

#[test]
fn a_wait_that_is_over_time_takes_nothing() {
    let (daemon, client, task) = reader();
    let brief = Some(Instant::now() + Duration::from_millis(10));
    assert!(matches!(client.next_item(None, task, brief, &mut || Ok(())), Err(ClientError::TimedOut)));
    daemon.say(&[item(task, 0)]);
    assert_eq!(next(&client, task).unwrap(), Taking::Item(task.item(0)));
}

#[test]
fn closing_ends_the_wait_of_another_thread() {
    let (daemon, client, task) = reader();
    let waits = std::thread::spawn({
        let client = client.clone();
        move || next(&client, task)
    });
    std::thread::sleep(Duration::from_millis(20));
    client.close_stream(task);
    assert_eq!(waits.join().unwrap().unwrap(), Taking::End);
    daemon.hears(|said| match said {
        ClientToNode::Taken { closed: true, .. } => Some(()),
        _ => None,
    });
}

#[test]
fn a_lost_connection_ends_the_wait() {
    let (daemon, client, task) = reader();
    drop(daemon);
    assert!(matches!(next(&client, task), Err(ClientError::ConnectionLost(_))));
}

// ---- yielding ----

fn run(n: u64) -> NodeToClient {
    let spec = TaskSpec {
        id: TaskId { client: ClientId(5), seq: n },
        job: JobId(7),
        template: streaming(),
        payload: Payload::Inline(b"args".to_vec().into()),
        deps: Refs::new(),
        parent: None,
        borrowed: Refs::new(),
    };
    let slot = if n < CONCURRENT { n as u16 } else { NO_SLOT };
    let attempt = Attempt { term: 1, n: 1 };
    NodeToClient::Run(Box::new(RunTask {
        tag: n,
        slot,
        attempt,
        spec: Arc::new(spec),
        values: Vec::new(),
        gpus: Vec::new(),
    }))
}

fn taken(tag: u64, items: u32, closed: bool) -> NodeToClient {
    NodeToClient::Taken { tag, items, closed }
}

/// An executor that has begun the task under this tag, told of this before or behind it.
fn producer(tag: u64, told: &[NodeToClient]) -> (Daemon, DaemonPage, Client) {
    let page = DaemonPage::create().unwrap();
    let fd = page.fd().try_clone_to_owned().unwrap();
    let (daemon, client) = Daemon::with(ClientKind::Executor { executor: 3 }, Some(fd));
    if tag < CONCURRENT {
        assert!(page.offer(tag as usize, Tag::new(tag).unwrap()));
    }
    daemon.say(&[run(tag)]);
    daemon.say(told);
    let Some(Work::Run(task)) = client.next_work(&mut || Ok(())).unwrap() else { panic!("no task") };
    assert_eq!(task.tag, tag);
    (daemon, page, client)
}

fn wait(client: &Client, tag: u64) -> Result<bool, ClientError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    client.wait_for_room(tag, LIMITS, &mut || {
        if Instant::now() < deadline { Ok(()) } else { Err(client_runtime::Interrupted) }
    })
}

#[test]
fn a_producer_waits_at_its_limit_and_lends_its_cpu() {
    let (daemon, _page, client) = producer(1, &[]);
    for index in 0..2 {
        assert!(wait(&client, 1).unwrap());
        assert!(client.yield_item(1, small(b"item"), Refs::new()).unwrap());
        daemon.hears(|said| match said {
            ClientToNode::Yielded(item) if item.index == index => Some(()),
            _ => None,
        });
    }
    assert_eq!(client.room(1, LIMITS), (false, true));
    let waits = std::thread::spawn({
        let client = client.clone();
        move || wait(&client, 1)
    });
    daemon.hears(|said| matches!(said, ClientToNode::Blocked { tag: 1, .. }).then_some(()));
    assert!(!waits.is_finished());
    daemon.say(&[taken(1, 1, false)]);
    assert!(waits.join().unwrap().unwrap());
    daemon.hears(|said| matches!(said, ClientToNode::Unblocked { tag: 1 }).then_some(()));
}

#[test]
fn what_earlier_attempts_yielded_is_not_waited_for() {
    let (_daemon, _page, client) = producer(1, &[taken(1, 3, false)]);
    // It may come behind the task, in its own time.
    while client.room(1, LIMITS) != (true, true) {
        std::thread::yield_now();
    }
    for _ in 0..5 {
        assert!(wait(&client, 1).unwrap());
        client.yield_item(1, small(b"item"), Refs::new()).unwrap();
    }
    assert_eq!(client.room(1, LIMITS), (false, true));
}

#[test]
fn a_producer_nobody_reads_goes_on_to_its_end() {
    let (daemon, _page, client) = producer(1, &[]);
    for _ in 0..2 {
        client.yield_item(1, small(b"item"), Refs::new()).unwrap();
    }
    daemon.say(&[taken(1, 0, true)]);
    assert!(!wait(&client, 1).unwrap());
    assert!(!client.yield_item(1, small(b"item"), Refs::new()).unwrap());
    client.complete(1, Ok(vec![(small(b"end"), Refs::new())]), 10).unwrap();
    daemon.hears(|said| matches!(said, ClientToNode::Completed(_)).then_some(()));
    let items = daemon.heard().iter().filter(|said| matches!(said, ClientToNode::Yielded(_))).count();
    assert_eq!(items, 2);
    assert!(matches!(client.yield_item(1, small(b"item"), Refs::new()), Err(ClientError::Misuse(_))));
}

#[test]
fn a_call_that_runs_at_once_with_others_is_cancelled_where_it_waits() {
    let tag = CONCURRENT;
    let (daemon, _page, client) = producer(tag, &[]);
    for _ in 0..2 {
        client.yield_item(tag, small(b"item"), Refs::new()).unwrap();
    }
    daemon.say(&[NodeToClient::Cancel { tag, reason: "by the driver".to_owned(), recursive: false }]);
    assert!(matches!(wait(&client, tag), Err(ClientError::Cancelled)));
}

#[test]
fn an_event_loop_is_told_when_there_is_room() {
    let (daemon, _page, client) = producer(1, &[]);
    let queue = client.completion_queue().unwrap();
    client.on_room(1, LIMITS, &queue, 7);
    assert_eq!(queue.drain(), [7], "there is room now");
    for _ in 0..2 {
        client.yield_item(1, small(b"item"), Refs::new()).unwrap();
    }
    client.on_room(1, LIMITS, &queue, 8);
    assert_eq!(queue.drain(), [0u64; 0]);
    daemon.say(&[taken(1, 2, false)]);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // Its helper reads while no thread waits.
        let told = queue.drain();
        if told == [8] {
            break;
        }
        assert!(told.is_empty() && Instant::now() < deadline, "{told:?}");
        std::thread::yield_now();
    }
}
