//! One task's whole way: a driver's socket, the head's and the node's cores, an executor's socket, and back.

use super::*;
use cluster_types::client_node::{ExecutorResult, FinishedOutcome, PutValue};
use cluster_types::{ResultValue, Value};

fn info() -> Arc<JobInfo> {
    let env_vars = [("FAKE".to_owned(), "sleep".to_owned())].into();
    Arc::new(JobInfo { env_vars, log_to_driver: true, ..JobInfo::default() })
}

fn driver_of_job() -> ClientKind {
    ClientKind::Driver { job: JobId(1), info: info() }
}

fn task(seq: u64, deps: &[ObjectId]) -> TaskSpec {
    let NodeToClient::Run(any) = run(1, 0) else { unreachable!() };
    let id = TaskId { client: ClientId(1), seq };
    TaskSpec { id, deps: deps.iter().copied().collect(), ..(*any.spec).clone() }
}

/// What a driver says before its first task: the function is an object of its own.
fn put_function() -> Vec<ClientToNode> {
    let object = ObjectId::put(ClientId(1), 1);
    let value = PutValue::Inline(Bytes::from_static(b"def f"));
    vec![
        ClientToNode::Put { object, value, contains: Default::default() },
        ClientToNode::Escape(vec![object]),
    ]
}

fn completed(tag: u64, bytes: &'static [u8]) -> ClientToNode {
    let value = PutValue::Inline(Bytes::from_static(bytes));
    let result = ExecutorResult { value, contains: Default::default() };
    ClientToNode::Completed(Completion { tag, result: Ok(vec![result]), micros: 5 })
}

/// Plays executors: the processes that the daemon forks sleep, and this speaks for them.
fn attach_executor(daemon: &Running, executor: u32) -> Peer {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let mut peer = daemon.connect();
        peer.hello(&hello(1000 + u64::from(executor), ClientKind::Executor { executor }));
        match peer.next() {
            Some(NodeToClient::Welcome(welcome)) => {
                assert_eq!(welcome.job, JobId(1));
                return peer;
            }
            // It has not been asked for yet.
            Some(NodeToClient::Rejected { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "no executor {executor} was started within 15 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn next_run(executor: &mut Peer) -> cluster_types::client_node::RunTask {
    loop {
        match executor.next() {
            Some(NodeToClient::Run(run)) => return *run,
            Some(_) => {}
            None => panic!("the executor's stream ended"),
        }
    }
}

fn next_finished(driver: &mut Peer) -> (TaskId, FinishedOutcome) {
    loop {
        match driver.next() {
            Some(NodeToClient::Finished { task, outcome }) => return (task, outcome),
            Some(_) => {}
            None => panic!("the driver's stream ended"),
        }
    }
}

#[test]
fn a_task_goes_to_an_executor_and_its_result_comes_back() {
    let daemon = Running::start_with_cores("task");
    let mut driver = daemon.connect();
    driver.hello(&hello(1, driver_of_job()));
    assert!(matches!(driver.next(), Some(NodeToClient::Welcome(_))));
    let mut messages = put_function();
    messages.push(ClientToNode::Submit(task(2, &[])));
    messages.push(ClientToNode::Submit(task(3, &[task(2, &[]).id.result(0)])));
    driver.send(&messages);

    let mut executor = attach_executor(&daemon, 1);
    let first = next_run(&mut executor);
    assert_eq!(first.spec.id.seq, 2);
    assert!(first.values.iter().any(|(id, value)| {
        *id == ObjectId::put(ClientId(1), 1) && *value == Value::Inline(Bytes::from_static(b"def f"))
    }));
    executor.send(&[completed(first.tag, b"two")]);
    let (id, outcome) = next_finished(&mut driver);
    assert_eq!(id.seq, 2);
    assert_eq!(outcome, FinishedOutcome::Ok(vec![ResultValue::Inline(Bytes::from_static(b"two"))]));

    let second = next_run(&mut executor);
    assert_eq!(second.spec.id.seq, 3);
    let argument = task(2, &[]).id.result(0);
    assert!(second.values.contains(&(argument, Value::Inline(Bytes::from_static(b"two")))));
    executor.send(&[completed(second.tag, b"three")]);
    assert_eq!(next_finished(&mut driver).0.seq, 3);
}

#[test]
fn a_killed_executor_fails_its_task_with_the_cause() {
    let daemon = Running::start_with_cores("cause");
    let mut driver = daemon.connect();
    let info = Arc::new(JobInfo {
        env_vars: [("FAKE".to_owned(), "exit 3".to_owned())].into(),
        ..JobInfo::default()
    });
    driver.hello(&hello(1, ClientKind::Driver { job: JobId(1), info }));
    assert!(matches!(driver.next(), Some(NodeToClient::Welcome(_))));
    let mut messages = put_function();
    messages.push(ClientToNode::Submit(task(2, &[])));
    driver.send(&messages);
    let (_, FinishedOutcome::Failed(failure)) = next_finished(&mut driver) else {
        panic!("it cannot succeed")
    };
    assert!(failure.message.contains("exit code 3"), "{}", failure.message);
}
