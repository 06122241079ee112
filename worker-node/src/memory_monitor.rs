//! How much memory the machine and single executors use; what to do about it the core decides.

use std::fs;
use std::time::Duration;

use cluster_store::segment::memory_use;
use worker_core::{Event, MemoryShort, ProcessMemory};

use crate::event_loop::Handle;
use crate::supervisor::Supervisor;

/// Between two looks. A process that writes fresh memory does so at a gigabyte or two a second.
const LOOK: Duration = Duration::from_millis(100);
/// Processes that are named.
const NAMED: usize = 8;

/// Tells the core as long as more than the threshold is used.
pub(crate) async fn watch(handle: Handle) {
    let threshold = handle.borrow().machine.memory_threshold;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(now) = memory_use() else { continue };
        if now.used as f64 <= now.limit as f64 * threshold {
            continue;
        }
        let of = if now.of_group { "the memory that its cgroup allows" } else { "the machine's memory" };
        let short = MemoryShort { used: now.used, limit: now.limit, of, largest: largest_processes() };
        let mut daemon = handle.borrow();
        daemon.push(Event::MemoryShort(short));
        daemon.pump();
    }
}

/// What each of these executors and its children take for themselves; those that are gone are left out.
pub(crate) fn measure(supervisor: &Supervisor, executors: &[u32]) -> Vec<(u32, u64)> {
    let of = |executor: &u32| Some((*executor, own_memory(supervisor.pid(*executor)?)?));
    executors.iter().filter_map(of).collect()
}

/// Bytes that a process and its descendants have written and share with nobody outside: no code, no files, nothing of
/// the object store.
fn own_memory(pid: u32) -> Option<u64> {
    let descendants = descendants_of(pid);
    if descendants.is_empty() {
        return field(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "RssAnon:");
    }
    // A fork shares its parent's pages: each is to count once. This looks at every page, so it is not done always.
    let share = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        field(&text, "Pss_Anon:")
    };
    Some(std::iter::once(&pid).chain(&descendants).filter_map(share).sum())
}

fn descendants_of(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![pid];
    while let Some(pid) = open.pop() {
        // Of each thread, for any may have forked.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let children = children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok());
            let before = found.len();
            found.extend(children);
            open.extend_from_slice(&found[before..]);
        }
    }
    found
}

fn largest_processes() -> Vec<ProcessMemory> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let name = status.lines().find_map(|line| line.strip_prefix("Name:"))?.trim().to_owned();
        Some(ProcessMemory { pid, name, bytes: field(&status, "VmRSS:")? })
    };
    let mut largest: Vec<ProcessMemory> = processes.filter_map(of).collect();
    largest.sort_by_key(|process| std::cmp::Reverse(process.bytes));
    largest.truncate(NAMED);
    largest
}

/// Bytes, of a line like `VmRSS:   1234 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured_and_among_the_largest_there_are_some() {
        let own = own_memory(std::process::id()).unwrap();
        assert!((64 << 10..1 << 40).contains(&own), "{own}");
        assert_eq!(own_memory(u32::MAX), None);
        let largest = largest_processes();
        assert!(largest.len() > 1 && largest.windows(2).all(|pair| pair[0].bytes >= pair[1].bytes));
    }

    #[test]
    fn children_count() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = descendants_of(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()));
    }
}
