//! A driver against a daemon in a thread, over a real socket with real segments.

#![allow(clippy::unwrap_used)]

mod fake;

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use client_runtime::{
    Client, ClientError, ConnectError, ConnectOptions, Got, HandleSource, Interrupted, Kind, Notice, Target,
    View,
};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{ClientToNode, Location, NodeToClient, ObjectId, Refs, SegmentId};
use fake::{Daemon, MEMORY_MAX, call, driver, soon, template};

fn bytes(got: &Got) -> Vec<u8> {
    match got {
        Got::Value(value) => View::parse(value).unwrap().in_band().to_vec(),
        Got::Failed(failure) => panic!("{failure:?}"),
    }
}

fn submit(client: &Client, name: &str, payload: &[u8]) -> ObjectId {
    client.submit(call(&template(name), payload), &mut || Ok(())).unwrap()[0]
}

fn put(client: &Client, len: usize) -> ObjectId {
    let data = vec![7; len];
    let draft = client.reserve(Kind::RAW, 5, &[len], &mut || Ok(())).unwrap();
    client.put(draft.write(b"array", &[&data], &mut || Ok(())).unwrap(), &[]).unwrap()
}

#[test]
fn results_come_back_inline_stored_or_failed() {
    let (daemon, client) = Daemon::with_driver();
    let ids = ["echo", "stored", "fail"].map(|name| submit(&client, name, b"hello"));
    let got = client.get(&ids[..2], soon(), &mut || Ok(())).unwrap();
    assert_eq!((bytes(&got[0]), bytes(&got[1])), (b"hello".to_vec(), b"hello".to_vec()));
    assert!(matches!(&got[1], Got::Value(value) if value.is_shared()));
    let failed = client.get(&ids, soon(), &mut || Ok(())).unwrap();
    assert!(matches!(failed.last(), Some(Got::Failed(failure)) if &*failure.message == "it failed"));
    drop(failed);
    assert!(ids.iter().all(|&id| client.is_ready(id) && client.try_get(id).is_some()));
    client.drop_handles(&ids);
    daemon
        .hears(|message| matches!(message, ClientToNode::Drop(list) if list.contains(&ids[0])).then_some(()));
    let released = |message: &ClientToNode| {
        matches!(message, ClientToNode::Release(list) if list.contains(&ids[1])).then_some(())
    };
    assert!(!daemon.heard().iter().any(|message| released(message).is_some()), "it is viewed");
    drop(got);
    daemon.hears(released);
}

#[test]
fn puts_lie_in_own_memory_and_are_read_without_a_message() {
    let (daemon, client) = Daemon::with_driver();
    let id = put(&client, 100_000);
    let Some(Got::Value(value)) = client.try_get(id) else { panic!("it is here") };
    assert!(value.is_shared());
    let view = View::parse(&value).unwrap();
    assert_eq!((view.in_band(), view.buffer(0)), (&b"array"[..], Some(&vec![7u8; 100_000][..])));
    let location = daemon.hears(|message| match message {
        ClientToNode::Put { value: cluster_types::client_node::PutValue::Stored(location), .. } => {
            Some(*location)
        }
        _ => None,
    });
    assert_eq!(daemon.speaker().read(location), *value);
    client.drop_handle(id);
    drop(value);
    let again = put(&client, 100_000);
    let Some(Got::Value(value)) = client.try_get(again) else { panic!("it is here") };
    assert_eq!(value.len() as u64, location.len);
    let requests = daemon.heard().iter().filter(|m| matches!(m, ClientToNode::RequestMemory { .. })).count();
    assert_eq!(requests, 1, "freed memory is used again");
    assert!(client.try_get(put(&client, 10)).is_some());
}

#[test]
fn what_can_never_fit_says_so() {
    let (_daemon, client) = Daemon::with_driver();
    let too_large = |len: u64| match client.reserve(Kind::RAW, len as usize, &[], &mut || Ok(())) {
        Err(ClientError::NoMemory(failure)) => failure.message.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(too_large(MEMORY_MAX + 1), "the store is too small");
    assert!(too_large(2 << 30).contains("object store of 1024.0 MiB"));
}

#[test]
fn a_large_payload_is_put_by_itself() {
    let (daemon, client) = Daemon::with_driver();
    let draft = client.reserve(Kind::RAW, 50_000, &[], &mut || Ok(())).unwrap();
    let mut call = call(&template("echo"), b"");
    call.payload = draft.write(&vec![1; 50_000], &[], &mut || Ok(())).unwrap();
    let id = client.submit(call, &mut || Ok(())).unwrap()[0];
    assert_eq!(bytes(&client.get(&[id], soon(), &mut || Ok(())).unwrap()[0]), b"large");
    let heard = daemon.heard();
    let at = |pass: fn(&ClientToNode) -> bool| heard.iter().position(pass).unwrap();
    let put = at(|m| matches!(m, ClientToNode::Put { .. }));
    let escape = at(|m| matches!(m, ClientToNode::Escape(_)));
    assert!(put < escape && escape < at(|m| matches!(m, ClientToNode::Submit(_))));
}

#[test]
fn a_get_of_several_is_over_when_one_has_failed() {
    let (_daemon, client) = Daemon::with_driver();
    let go = &mut || Ok(());
    let never = submit(&client, "never", b"");
    for _ in 0..300 {
        let others = submit(&client, "fail", b"");
        client.wait(&[others], 1, soon(), true, go).unwrap();
    }
    let ids = [submit(&client, "echo", b"1"), never, submit(&client, "fail", b"")];
    for _ in 0..2 {
        let got = client.get(&ids, soon(), go).unwrap();
        assert!(matches!(got.last(), Some(Got::Failed(_))), "{got:?}");
    }
    // What fails while it is waited for.
    for _ in 0..20 {
        let got = client.get(&[never, submit(&client, "fail", b"")], soon(), go).unwrap();
        assert!(matches!(got.last(), Some(Got::Failed(_))), "{got:?}");
    }
}

#[test]
fn wait_counts_what_is_ready_and_keeps_to_its_deadline() {
    let (_daemon, client) = Daemon::with_driver();
    let go = &mut || Ok(());
    let never = submit(&client, "never", b"");
    let ids = [never, submit(&client, "echo", b"1"), never, submit(&client, "stored", b"2")];
    assert_eq!(client.wait(&ids, 2, soon(), true, go), Ok(vec![1, 3]));
    assert_eq!(client.wait(&ids, 1, soon(), true, go), Ok(vec![1]));
    let begun = Instant::now();
    let short = Some(begun + Duration::from_millis(30));
    assert_eq!(client.wait(&ids, 3, short, false, go), Ok(vec![1, 3]));
    assert!(begun.elapsed() >= Duration::from_millis(30) && begun.elapsed() < Duration::from_secs(5));
    let later = [never, submit(&client, "echo", b"3")];
    let short = Some(Instant::now() + Duration::from_millis(300));
    assert_eq!(client.wait(&later, 2, short, true, go), Ok(vec![1]), "became ready while it waited");
    assert!(matches!(client.get(&ids, Some(Instant::now()), go), Err(ClientError::TimedOut)));
    let unknown = ObjectId::default();
    assert!(matches!(client.get(&[unknown], soon(), go), Err(ClientError::NoHandle(id)) if id == unknown));
    assert_eq!(client.wait(&[unknown], 1, soon(), true, go), Err(ClientError::NoHandle(unknown)));
    assert_eq!(client.wait(&[], 1, None, true, go), Ok(vec![]));
}

#[test]
fn a_queue_is_waited_for_until_something_is_in_it() {
    let (_daemon, client) = Daemon::with_driver();
    let go = &mut || Ok(());
    let queue = client.completion_queue().unwrap();
    let ids = [submit(&client, "never", b""), submit(&client, "echo", b"1")];
    for (token, id) in (7..).zip(ids) {
        client.on_ready(id, &queue, token).unwrap();
    }
    assert_eq!(client.wait_queue(None, &queue, &ids, soon(), go), Ok(true));
    assert_eq!(queue.drain(), [8]);
    let short = Some(Instant::now() + Duration::from_millis(30));
    assert_eq!(client.wait_queue(None, &queue, &ids, short, go), Ok(false));
    client.disconnect();
    assert_eq!(client.wait_queue(None, &queue, &ids, soon(), go), Ok(true), "nothing more will come");
    assert_eq!(queue.drain(), [7]);
}

#[test]
fn a_wait_is_interrupted() {
    let (_daemon, client) = Daemon::with_driver();
    let never = submit(&client, "never", b"");
    let asked = AtomicU32::new(0);
    let result = client.get(&[never], None, &mut || match asked.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => Ok(()),
        _ => Err(Interrupted),
    });
    assert!(matches!(result, Err(ClientError::Interrupted)));
}

/// The daemon answers before it hears on: what it says must be read, though the socket takes nothing more.
#[test]
fn a_full_socket_keeps_nobody_from_reading() {
    let (_daemon, client) = Daemon::with_driver();
    let (waits, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let never = submit(&client, "never", b"");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            client.get(&[never], None, &mut || {
                waits.store(true, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
            })
        });
        while !waits.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let ids: Vec<ObjectId> = (0..5_000).map(|_| submit(&client, "echo", &[7; 4_000])).collect();
        let got = client.get(&ids, soon(), &mut || Ok(()));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(got.map(|got| got.len()), Ok(5_000));
        assert!(matches!(reader.join().unwrap(), Err(ClientError::Interrupted)));
    });
}

#[test]
fn threads_share_the_socket() {
    let (_daemon, client) = Daemon::with_driver();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waits_long = scope.spawn(|| {
            let never = submit(&client, "never", b"");
            client.get(&[never], None, &mut || match stop.load(Ordering::Relaxed) {
                true => Err(Interrupted),
                false => Ok(()),
            })
        });
        let printer = scope.spawn(|| while client.next_notice(Duration::from_millis(5)) == Ok(None) {});
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let client = client.clone();
                scope.spawn(move || {
                    for n in 0..500 {
                        let name = if n % 5 == 0 { "stored" } else { "echo" };
                        let text = format!("{worker} {n}");
                        let id = submit(&client, name, text.as_bytes());
                        let got = client.get(&[id], soon(), &mut || Ok(())).unwrap();
                        assert_eq!(bytes(&got[0]), text.as_bytes());
                        client.drop_handle(id);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(waits_long.join().unwrap(), Err(ClientError::Interrupted)));
        client.disconnect();
        printer.join().unwrap();
    });
}

#[test]
fn the_helper_sends_and_reads_when_nobody_waits() {
    let (daemon, client) = Daemon::with_driver();
    let first = submit(&client, "never", b"");
    let second = submit(&client, "echo", b"");
    daemon.hears(|m| matches!(m, ClientToNode::Submit(spec) if spec.id.result(0) == second).then_some(()));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !client.is_ready(second) {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    client.drop_handles(&[first, second]);
    daemon.hears(|m| matches!(m, ClientToNode::Drop(list) if list.contains(&first)).then_some(()));
}

#[test]
fn event_loops_are_told_in_batches() {
    let (_daemon, client) = Daemon::with_driver();
    let queue = client.completion_queue().unwrap();
    let ids: Vec<_> =
        (0..200).map(|n| submit(&client, if n % 2 == 0 { "echo" } else { "stored" }, b"x")).collect();
    for (token, &id) in (0..).zip(&ids) {
        client.on_ready(id, &queue, token).unwrap();
    }
    let mut told = Vec::new();
    while told.len() < ids.len() {
        let mut fds = [rustix::event::PollFd::new(&queue, rustix::event::PollFlags::IN)];
        assert!(
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 })).unwrap()
                > 0
        );
        told.extend(queue.drain());
    }
    told.sort_unstable();
    assert!(told.into_iter().eq(0..200));
    assert!(ids.iter().all(|&id| client.try_get(id).is_some()));
    let _ = queue.as_fd();
}

#[test]
fn questions_lines_and_notices() {
    let (daemon, client) = Daemon::with_driver();
    let reply = client.query(Query::Status, soon(), &mut || Ok(())).unwrap();
    assert!(matches!(reply, QueryReply::Status(_)));
    daemon.say(&[NodeToClient::Notice { text: "no node has a GPU".to_owned() }]);
    let deadline = Instant::now() + Duration::from_secs(10);
    let notice = loop {
        if let Some(notice) = client.next_notice(Duration::from_millis(50)).unwrap() {
            break notice;
        }
        assert!(Instant::now() < deadline);
    };
    assert_eq!(notice, Notice::Text("no node has a GPU".to_owned()));
}

#[test]
fn memory_goes_back_when_it_is_recalled_or_evicted() {
    let (daemon, client) = Daemon::with_driver();
    let id = put(&client, 100_000);
    daemon.say(&[NodeToClient::RecallMemory, NodeToClient::Evict { object: id }]);
    let freed = daemon.hears(|m| match m {
        ClientToNode::Evicted { object, freed } if *object == id => Some(*freed),
        _ => None,
    });
    assert!(freed);
    assert!(!daemon.heard().iter().any(|m| matches!(m, ClientToNode::ReturnMemory(_))), "it was in use");
    daemon.say(&[NodeToClient::RecallMemory]);
    let returned = daemon.hears(|m| match m {
        ClientToNode::ReturnMemory(segments) => Some(segments.clone()),
        _ => None,
    });
    assert_eq!(returned, [SegmentId(1)]);
    // Asked for again, since it is not here any more. The fake daemon has forgotten to copy it to disk.
    assert!(client.try_get(id).is_none());
}

#[test]
fn a_range_freed_by_the_daemon_is_used_again() {
    let (daemon, client) = Daemon::with_driver();
    let big = (6 << 20) as usize;
    let id = put(&client, big);
    let mut task = call(&template("echo"), b"");
    task.deps = Refs::from_slice(&[id]);
    let result = client.submit(task, &mut || Ok(())).unwrap();
    client.drop_handle(id);
    client.get(&result, soon(), &mut || Ok(())).unwrap();
    let location: Location = daemon.hears(|m| match m {
        ClientToNode::Put { value: cluster_types::client_node::PutValue::Stored(location), .. } => {
            Some(*location)
        }
        _ => None,
    });
    daemon.hears(|m| matches!(m, ClientToNode::Drop(list) if list.contains(&id)).then_some(()));
    daemon.say(&[NodeToClient::RangesFreed(vec![location])]);
    client.query(Query::Status, soon(), &mut || Ok(())).unwrap();
    put(&client, big);
    let requests = daemon.heard().iter().filter(|m| matches!(m, ClientToNode::RequestMemory { .. })).count();
    assert_eq!(requests, 1);
}

#[test]
fn a_daemon_that_vanishes_ends_every_wait_with_a_sentence() {
    let (daemon, client) = Daemon::with_driver();
    let never = submit(&client, "never", b"");
    let ready = submit(&client, "echo", b"kept");
    client.get(&[ready], soon(), &mut || Ok(())).unwrap();
    let queue = client.completion_queue().unwrap();
    client.on_ready(never, &queue, 5).unwrap();
    std::thread::scope(|scope| {
        let waits: Vec<_> =
            (0..3).map(|_| scope.spawn(|| client.get(&[never], None, &mut || Ok(())))).collect();
        daemon.speaker().close();
        for wait in waits {
            match wait.join().unwrap() {
                Err(ClientError::ConnectionLost(why)) => {
                    assert!(why.contains("the socket it was given"), "{why}")
                }
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(queue.drain(), [5]);
    assert_eq!(bytes(&client.try_get(ready).unwrap()), b"kept");
    assert!(matches!(
        client.submit(call(&template("echo"), b""), &mut || Ok(())),
        Err(ClientError::ConnectionLost(_))
    ));
    assert!(matches!(client.broken(), Some(ClientError::ConnectionLost(_))));
}

#[test]
fn disconnecting_ends_waits_and_says_goodbye_unless_something_is_viewed() {
    let (daemon, client) = Daemon::with_driver();
    let never = submit(&client, "never", b"");
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| client.get(&[never], None, &mut || Ok(())));
        daemon.hears(|m| matches!(m, ClientToNode::Submit(_)).then_some(()));
        client.disconnect();
        assert!(matches!(wait.join().unwrap(), Err(ClientError::Closed)));
    });
    client.disconnect();
    daemon.hears(|m| matches!(m, ClientToNode::Goodbye).then_some(()));
    assert!(matches!(
        client.put(client_runtime::Parcel::small(Kind::RAW, b"").unwrap(), &[]),
        Err(ClientError::Closed)
    ));

    let (daemon, client) = Daemon::with_driver();
    let id = put(&client, 100_000);
    let value = client.try_get(id);
    drop(client);
    assert!(matches!(value, Some(Got::Value(value)) if value.len() > 100_000));
    assert!(!daemon.heard().iter().any(|m| matches!(m, ClientToNode::Goodbye)));
}

#[test]
fn a_client_that_is_far_ahead_waits_and_loses_nothing() {
    let (daemon, client) = Daemon::with_driver();
    let echo = template("echo");
    let payload = [9; 4000];
    let ids: Vec<_> =
        (0..40_000).map(|_| client.submit(call(&echo, &payload), &mut || Ok(())).unwrap()[0]).collect();
    let ready = client.wait(&ids, ids.len(), soon(), true, &mut || Ok(())).unwrap();
    assert_eq!(ready.len(), ids.len());
    drop(daemon);
}

#[test]
fn connecting_to_nobody_says_what_was_tried() {
    let dir = std::env::temp_dir().join(format!("client-runtime-test-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("node.sock");
    let connect = |target| Client::connect(target, ConnectOptions::new(driver(), "secret"), &mut || Ok(()));
    let error = connect(Target::Unix(path.clone())).unwrap_err().to_string();
    assert!(error.contains("node.sock") && error.contains("cluster up"), "{error}");
    drop(UnixListener::bind(&path).unwrap());
    let error = connect(Target::Unix(path.clone())).unwrap_err().to_string();
    assert!(error.contains("has ended"), "{error}");
    std::fs::remove_dir_all(&dir).unwrap();

    let begun = Instant::now();
    for address in ["127.0.0.1:1", "no such address"] {
        let error = connect(Target::Remote(address.to_owned())).unwrap_err();
        assert!(matches!(&error, ConnectError::Unreachable(text) if text.contains(address)), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(6));

    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut options = ConnectOptions::new(driver(), "secret");
    options.timeout = Duration::from_millis(50);
    let error = Client::connect(Target::Socket(theirs), options, &mut || Ok(())).unwrap_err();
    assert!(error.to_string().contains("did not answer in time"), "{error}");
    drop(ours);
}

#[test]
fn a_refused_hello_gives_the_daemons_reason() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let _daemon = Daemon::start(ours);
    let error =
        Client::connect(Target::Socket(theirs), ConnectOptions::new(driver(), "wrong"), &mut || Ok(()));
    let Err(ConnectError::Rejected(reason)) = error else { panic!("{error:?}") };
    assert!(reason.contains("token"));
}

#[test]
fn a_handle_that_came_out_of_a_value_costs_no_message() {
    let (daemon, client) = Daemon::with_driver();
    let container = submit(&client, "echo", b"");
    let inner = ObjectId::put(cluster_types::ClientId(5), 5);
    client.get(&[container], soon(), &mut || Ok(())).unwrap();
    client.add_handle(inner, HandleSource::Inside(container));
    client.drop_handle(inner);
    client.query(Query::Status, soon(), &mut || Ok(())).unwrap();
    assert!(!daemon.heard().iter().any(|m| matches!(m, ClientToNode::Hold(_) | ClientToNode::Drop(_))));
}

#[test]
fn garbage_from_the_daemon_is_an_error_not_a_crash() {
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\x05\0\0\0\x0a\xff\xff\xff\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let daemon = Daemon::start(ours.try_clone().unwrap());
        let client =
            Client::connect(Target::Socket(theirs), ConnectOptions::new(driver(), "secret"), &mut || Ok(()))
                .unwrap();
        std::io::Write::write_all(&mut &ours, garbage).unwrap();
        let never = ObjectId::put(cluster_types::ClientId(5), 5);
        client.add_handle(never, HandleSource::Elsewhere);
        let got = client.get(&[submit_or(&client).unwrap_or(never)], soon(), &mut || Ok(()));
        assert!(matches!(got, Err(ClientError::ConnectionLost(_))), "{got:?}");
        drop(daemon);
    }
}

fn submit_or(client: &Client) -> Option<ObjectId> {
    client.submit(call(&template("never"), b""), &mut || Ok(())).ok().map(|ids| ids[0])
}
