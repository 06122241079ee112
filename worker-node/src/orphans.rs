//! Processes that became this daemon's when their zygote was killed (rule E2: the daemon is a subreaper too).

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};

/// Ends every child of this process, and their children as they become ours. For the end of the daemon: by then its
/// zygotes are gone, and all that is left was started by user code.
pub(crate) fn end_all() {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        for child in children() {
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::NOHANG) {
            // No child at all.
            Err(_) => return,
            Ok(Some(_)) => {}
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Processes beside submitted jobs: children of the daemon that are no strays.
static SPARED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn spared() -> MutexGuard<'static, BTreeSet<u32>> {
    SPARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This child is the daemon's own.
pub(crate) fn spare(pid: u32) {
    spared().insert(pid);
}

/// It has ended.
pub(crate) fn spare_no_more(pid: u32) {
    spared().remove(&pid);
}

/// Ends every child but these: a zygote that was killed leaves what its executors had started to us.
pub(crate) fn end_all_but(zygotes: &[u32]) {
    // Each pass makes the children of those that it ends ours.
    for _ in 0..100 {
        let mut strays = children();
        let own = spared();
        strays.retain(|child| {
            let pid = child.as_raw_nonzero().get().unsigned_abs();
            !zygotes.contains(&pid) && !own.contains(&pid)
        });
        drop(own);
        if strays.is_empty() {
            return;
        }
        for stray in strays {
            let _ = rustix::process::kill_process(stray, Signal::KILL);
            // Killed, so this is short.
            let _ = rustix::process::waitpid(Some(stray), WaitOptions::empty());
        }
    }
}

pub(crate) fn children() -> Vec<Pid> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|pids| {
            pids.split(' ').filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect::<Vec<_>>()
        })
        .collect()
}
