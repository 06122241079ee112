//! With the real zygote. Processes are looked up in /proc, states are awaited, never slept for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::LocalSet;

use super::*;

/// An interpreter that has NumPy: the checkout's own (`scripts/test` makes it), else whatever `python3` is.
pub(crate) fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let own = root.join(".venv/bin/python");
    if own.exists() {
        return own;
    }
    let output =
        std::process::Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    PathBuf::from(String::from_utf8(output.unwrap().stdout).unwrap().trim())
}

/// A supervisor whose executors are those of `tests/fake_executors.py`.
pub(crate) fn fake_config(socket: PathBuf, token: &str) -> SupervisorConfig {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let zygote = root.join("../client-sdk/python/concurrent_ml/_zygote.py");
    let mut config = SupervisorConfig::new(python(), socket, token.to_owned());
    let path = format!("import sys; sys.path.insert(0, {:?}); ", root.join("tests"));
    let run =
        format!("import runpy; sys.argv[0] = 'zygote'; runpy.run_path({zygote:?}, run_name='__main__')");
    config.arguments = vec!["-c".to_owned(), path + &run, "fake_executors:main".to_owned()];
    config
}

fn order(executor: u32, what: &str) -> ExecutorOrder {
    let page = rustix::fs::memfd_create("page", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    ExecutorOrder {
        executor,
        python: String::new(),
        python_version: String::new(),
        env: BTreeMap::from([("FAKE".to_owned(), what.to_owned())]),
        cwd: "/".to_owned(),
        sys_path: vec!["/the/driver's".to_owned()],
        page,
        preload: Vec::new(),
        program: None,
    }
}

fn on_one_thread<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(30), test).await.expect("done within 30 s");
    });
}

fn started() -> (Supervisor, UnboundedReceiver<ExecutorEvent>) {
    Supervisor::new(fake_config("/nowhere".into(), "secret"))
}

fn state_of(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

async fn gone(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while state_of(pid).is_some_and(|state| state != 'Z') {
        assert!(Instant::now() < deadline, "process {pid} is still there");
        sleep(Duration::from_millis(2)).await;
    }
}

/// All that one executor prints, and its cause.
async fn to_its_end(events: &mut UnboundedReceiver<ExecutorEvent>) -> (Vec<String>, String) {
    let mut lines = Vec::new();
    loop {
        match events.recv().await.unwrap() {
            ExecutorEvent::Started { .. } => {}
            ExecutorEvent::Printed { text, .. } => lines.push(text),
            ExecutorEvent::Exited { cause, .. } => return (lines, cause),
        }
    }
}

/// Starts an executor with a child and a grandchild in a session of its own; their pids.
async fn family(supervisor: &Supervisor, events: &mut UnboundedReceiver<ExecutorEvent>) -> Vec<u32> {
    supervisor.start(order(1, "family"));
    let mut pids = Vec::new();
    while pids.len() < 3 {
        match events.recv().await.unwrap() {
            ExecutorEvent::Printed { text, .. } => {
                pids.extend(text.split(' ').filter_map(|word| word.parse::<u32>().ok()));
            }
            ExecutorEvent::Exited { cause, .. } => panic!("{cause}"),
            ExecutorEvent::Started { .. } => {}
        }
    }
    pids.dedup();
    pids
}

#[test]
fn exit_causes_are_told_with_the_last_output() {
    on_one_thread(async {
        let (supervisor, mut events) = started();
        supervisor.start(order(1, "exit 3"));
        assert_eq!(to_its_end(&mut events).await.1, "exit code 3");
        supervisor.start(order(2, "raise"));
        let (_, cause) = to_its_end(&mut events).await;
        assert!(cause.starts_with("exit code 1; its last output was:\nTraceback"), "{cause}");
        assert!(cause.ends_with("ValueError: no good"), "{cause}");
        supervisor.start(order(3, "sleep"));
        assert!(matches!(events.recv().await, Some(ExecutorEvent::Started { executor: 3, .. })));
        supervisor.end(3, true);
        assert_eq!(to_its_end(&mut events).await.1, "killed by signal 9 (SIGKILL)");
        supervisor.shutdown().await;
    });
}

#[test]
fn an_executor_ended_before_its_fork_is_ended_all_the_same() {
    on_one_thread(async {
        let (supervisor, mut events) = started();
        supervisor.start(order(1, "sleep"));
        supervisor.end(1, true);
        assert_eq!(to_its_end(&mut events).await.1, "killed by signal 9 (SIGKILL)");
    });
}

#[test]
fn a_forked_executor_is_like_a_fresh_process() {
    on_one_thread(async {
        let (supervisor, mut events) = started();
        let mut seen = Vec::new();
        for executor in 1..=2 {
            supervisor.start(order(executor, "report"));
            let (lines, cause) = to_its_end(&mut events).await;
            assert_eq!(cause.split(';').next(), Some("exit code 0"));
            let all = lines.join("\n");
            assert!(all.contains("open ['0', '1', '2', '3'] main __main__"), "{all}");
            assert!(all.contains("threads 1 path /the/driver's"), "{all}");
            seen.push(lines.into_iter().find(|line| line.starts_with("random")).unwrap());
        }
        assert_ne!(seen[0], seen[1], "NumPy's generator is seeded anew");
    });
}

#[test]
fn nothing_an_executor_started_outlives_the_supervisor() {
    on_one_thread(async {
        let (supervisor, mut events) = started();
        let pids = family(&supervisor, &mut events).await;
        supervisor.shutdown().await;
        for pid in pids {
            assert_eq!(state_of(pid), None, "process {pid} is left");
        }
    });
}

#[test]
fn a_killed_zygote_takes_its_executors_along_and_is_replaced() {
    on_one_thread(async {
        let (supervisor, mut events) = started();
        supervisor.start(order(1, "sleep"));
        let Some(ExecutorEvent::Started { pid, .. }) = events.recv().await else { panic!("not started") };
        let zygote = supervisor.inner.borrow().zygotes.values().next().unwrap().zygote.clone();
        zygote.kill();
        let (_, cause) = to_its_end(&mut events).await;
        assert!(cause.contains("killed by signal 9 (SIGKILL)"), "{cause}");
        gone(pid).await;
        let again = Instant::now() + Duration::from_secs(5);
        let mut executor = 2;
        loop {
            supervisor.start(order(executor, "exit 3"));
            let (_, cause) = to_its_end(&mut events).await;
            if cause == "exit code 3" {
                break;
            }
            assert!(Instant::now() < again, "{cause}");
            executor += 1;
            sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn an_interpreter_that_cannot_be_used_says_why() {
    on_one_thread(async {
        let mut config = fake_config("/nowhere".into(), "");
        config.preload.push("no_such_module".to_owned());
        let (supervisor, mut events) = Supervisor::new(config);
        supervisor.start(order(1, "sleep"));
        let (_, cause) = to_its_end(&mut events).await;
        assert!(cause.contains("No module named 'no_such_module'"), "{cause}");
        let mut config = fake_config("/nowhere".into(), "");
        config.python = "/no/such/python".into();
        let (supervisor, mut events) = Supervisor::new(config);
        supervisor.start(order(1, "sleep"));
        let (_, cause) = to_its_end(&mut events).await;
        assert!(cause.starts_with("could not start: cannot run the interpreter /no/such/python"), "{cause}");
    });
}

#[test]
fn another_minor_version_is_refused_with_both_named() {
    on_one_thread(async {
        let (supervisor, mut events) = started();
        let mut state = supervisor.interpreter("");
        state.wait_for(|state| *state != Interpreter::Starting).await.unwrap();
        let mut other = order(1, "sleep");
        other.python_version = "3.1".to_owned();
        supervisor.start(other);
        let (_, cause) = to_its_end(&mut events).await;
        assert!(cause.contains("Python 3.1,") && cause.contains("run Python 3."), "{cause}");
    });
}

#[test]
fn names_of_one_interpreter_are_one() {
    let own = python();
    let other = own.with_file_name("python3");
    if other.exists() && own.file_name() != other.file_name() {
        assert!(same_interpreter(&own, &other));
    }
    assert!(!same_interpreter(&own, Path::new("/bin/sh")));
    assert!(find_program("sh".into()).is_absolute());
}

/// The daemon of the SIGKILL test: this test binary, run again by the test.
#[test]
#[ignore = "not a test: the process that the next one kills"]
fn daemon_that_is_killed() {
    on_one_thread(async {
        let (supervisor, mut events) = started();
        let pids = family(&supervisor, &mut events).await;
        let zygote = supervisor.inner.borrow().zygotes.values().next().unwrap().zygote.pid();
        println!("family: {zygote} {}", pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_killed_daemon_leaves_no_process() {
    use std::io::BufRead;
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "supervisor::tests::daemon_that_is_killed"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(daemon.stdout.take().unwrap()).lines();
    let pids = lines.find_map(|line| line.unwrap().split_once("family: ").map(|(_, pids)| pids.to_owned()));
    let pids: Vec<u32> = pids.unwrap().split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.len() >= 3 && pids.iter().all(|pid| state_of(*pid).is_some()));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    on_one_thread(async {
        for pid in pids {
            gone(pid).await;
        }
    });
}
