//! How much memory there is to allocate: asked before, because afterwards the answer is the OOM killer (rule P3).

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that could be allocated now without swapping or hitting a limit: what the host calls available, or what the
/// tightest memory cgroup above this process leaves, page cache that can be dropped included. `u64::MAX` where
/// neither can be read.
///
/// Others allocate at the same time, so leave a margin. Takes some 50 µs.
pub fn available_memory() -> u64 {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| host_available(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    group_dirs(&groups)
        .iter()
        .filter_map(|(dir, version)| group_left(dir, *version))
        .chain(host)
        .min()
        .unwrap_or(u64::MAX)
}

/// How much of what limits this process is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes, page cache that can be dropped not counted.
    pub used: u64,
    /// Bytes.
    pub limit: u64,
    /// The limit is a cgroup's, not the machine's own memory.
    pub of_group: bool,
}

/// What is nearest to its limit: the machine's memory, or one of the memory cgroups that this process is in. `None`
/// where nothing can be read. Takes some 50 µs.
pub fn memory_use() -> Option<MemoryUse> {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| host_use(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = group_dirs(&groups);
    let groups = groups.iter().filter_map(|(dir, version)| group_use(dir, *version));
    let fullest = |one: &MemoryUse| (u128::from(one.used) << 64) / u128::from(one.limit.max(1));
    groups.chain(host).max_by_key(fullest)
}

fn host_use(meminfo: &str) -> Option<MemoryUse> {
    let limit = meminfo_field(meminfo, "MemTotal:")?;
    let used = limit.saturating_sub(meminfo_field(meminfo, "MemAvailable:")?);
    Some(MemoryUse { used, limit, of_group: false })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

fn host_available(meminfo: &str) -> Option<u64> {
    meminfo_field(meminfo, "MemAvailable:")
}

fn meminfo_field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The memory cgroup's directory and all above it: a limit anywhere on the path counts.
fn group_dirs(proc_self_cgroup: &str) -> Vec<(PathBuf, Version)> {
    let mut dirs = Vec::new();
    for line in proc_self_cgroup.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, version) = match controllers {
            "" => ("/sys/fs/cgroup", Version::Two),
            list if list.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", Version::One),
            _ => continue,
        };
        let relative = Path::new(path.trim_start_matches('/'));
        dirs.extend(relative.ancestors().map(|part| (Path::new(root).join(part), version)));
    }
    dirs
}

/// `None` where there is no limit, as in the root and in directories that a container does not show.
fn group_left(dir: &Path, version: Version) -> Option<u64> {
    let MemoryUse { used, limit, .. } = group_use(dir, version)?;
    Some(limit.saturating_sub(used))
}

fn group_use(dir: &Path, version: Version) -> Option<MemoryUse> {
    let (limit, usage, reclaimable) = match version {
        Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        Version::Two => ("memory.max", "memory.current", "inactive_file"),
    };
    let number = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(limit)?, number(usage)?);
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let used = usage.saturating_sub(stat_field(&stat, reclaimable));
    Some(MemoryUse { used, limit, of_group: true })
}

fn stat_field(stat: &str, name: &str) -> u64 {
    let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_and_stat_are_read() {
        let text = "MemTotal:       24683688 kB\nMemFree: 1 kB\nMemAvailable:   23955456 kB\n";
        assert_eq!(host_available(text), Some(23_955_456 * 1024));
        assert_eq!(host_available("MemTotal: 5 kB"), None);
        let used = (24_683_688 - 23_955_456) * 1024;
        assert_eq!(host_use(text), Some(MemoryUse { used, limit: 24_683_688 * 1024, of_group: false }));
        assert_eq!(stat_field("inactive_file_x 1\ninactive_file 4096\n", "inactive_file"), 4096);
        assert_eq!(stat_field("", "inactive_file"), 0);
    }

    #[test]
    fn limits_above_count_too() {
        let two = group_dirs("0::/a/b\n");
        let expect = ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup/"];
        assert_eq!(two.len(), 3);
        assert!(two.iter().zip(expect).all(|((dir, v), e)| dir == Path::new(e) && *v == Version::Two));
        let one = group_dirs("4:cpu,memory:/x\n3:cpuset:/\nnonsense\n");
        assert_eq!(one[0], (PathBuf::from("/sys/fs/cgroup/memory/x"), Version::One));
        assert_eq!(one.len(), 2);
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_cannot_be_dropped() {
        let dir = std::env::temp_dir().join(format!("cluster-memory-test-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("memory.max"), "1000\n").unwrap();
        fs::write(dir.join("memory.current"), "700\n").unwrap();
        fs::write(dir.join("memory.stat"), "anon 600\ninactive_file 50\n").unwrap();
        assert_eq!(group_left(&dir, Version::Two), Some(350));
        fs::write(dir.join("memory.max"), "max\n").unwrap();
        assert_eq!(group_left(&dir, Version::Two), None);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn this_machine_has_some() {
        assert!(available_memory() > 1 << 20);
    }
}
