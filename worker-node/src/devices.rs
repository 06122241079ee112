//! What this machine has: cores, memory, GPUs, and the limits this process is under.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cluster_types::{Amount, Resources};

use crate::config::{MEMORY_THRESHOLD, Machine, Offer, WorkerError};

/// The share of memory that the object store takes unless told otherwise.
const STORE_SHARE: f64 = 0.3;
/// Less than this is no store.
const STORE_MIN: u64 = 64 << 20;

/// What is offered: what was asked for, else what is found.
pub(crate) fn discover(offer: &Offer) -> Result<Machine, WorkerError> {
    let cores = cores();
    let memory = memory_limit();
    let gpu_names = match offer.num_gpus {
        Some(told) => named_gpus(told.max(0.0).ceil() as usize),
        None => found_gpus(),
    };
    let store_capacity = match offer.object_store_memory {
        Some(told) if told < STORE_MIN => {
            return Err(WorkerError::Config(format!(
                "object_store_memory is {told} bytes; the smallest store is {STORE_MIN} bytes (64 MiB)"
            )));
        }
        Some(told) => told,
        None => ((memory as f64 * STORE_SHARE) as u64).max(STORE_MIN),
    };
    let amount = |name: &str, number: f64| {
        Amount::from_f64(number).map_err(|error| WorkerError::Config(format!("{name} {error}")))
    };
    let mut resources = Resources {
        cpu: amount("num_cpus", offer.num_cpus.unwrap_or(cores))?,
        gpu: amount("num_gpus", offer.num_gpus.unwrap_or(gpu_names.len() as f64))?,
        memory: amount("memory", offer.memory.unwrap_or(memory.saturating_sub(store_capacity)) as f64)?,
        ..Resources::default()
    };
    for (name, number) in &offer.resources {
        resources.set_custom(name, amount(&format!("resource `{name}`"), *number)?);
    }
    resources.check_request().map_err(|error| WorkerError::Config(format!("num_gpus {error}")))?;
    Ok(Machine {
        hostname: hostname(),
        resources,
        labels: offer.labels.clone(),
        cores: cores.ceil().max(1.0) as u32,
        memory_threshold: offer.memory_threshold.unwrap_or(MEMORY_THRESHOLD),
        gpu_names,
        store_capacity,
    })
}

fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".to_owned() } else { name.trim().to_owned() }
}

/// Cores this process may use: its affinity, and its cgroups' quotas (which may be fractions).
fn cores() -> f64 {
    let affinity = rustix::thread::sched_getaffinity(None).map_or(1.0, |cores| f64::from(cores.count()));
    cgroup_dirs("cpu").iter().filter_map(|dir| cpu_quota(dir)).fold(affinity, f64::min).max(0.0001)
}

fn cpu_quota(dir: &Path) -> Option<f64> {
    let (quota, period) = match fs::read_to_string(dir.join("cpu.max")) {
        Ok(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
        }
        Err(_) => (number(&dir.join("cpu.cfs_quota_us"))?, number(&dir.join("cpu.cfs_period_us"))?),
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// Bytes: the host's memory, or less where a cgroup says so (rule P3).
fn memory_limit() -> u64 {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim();
        line.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = cgroup_dirs("memory");
    let limits = groups.iter().filter_map(|dir| {
        let limit = ["memory.max", "memory.limit_in_bytes"];
        limit.iter().find_map(|name| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok())
    });
    limits.chain(host).min().unwrap_or(1 << 30)
}

/// This process's cgroup and all above it, of version 2 and of one controller of version 1.
fn cgroup_dirs(controller: &str) -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut dirs = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => PathBuf::from("/sys/fs/cgroup"),
            list if list.split(',').any(|name| name == controller) => Path::new("/sys/fs/cgroup").join(list),
            _ => continue,
        };
        // A container may see its own cgroup as the root while the path is the host's.
        dirs.extend(Path::new(path.trim_start_matches('/')).ancestors().map(|part| root.join(part)));
    }
    dirs
}

fn number(path: &Path) -> Option<f64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The devices that this process may see, in CUDA's order, as `CUDA_VISIBLE_DEVICES` names them.
fn found_gpus() -> Vec<String> {
    named_gpus(cuda_device_count())
}

fn named_gpus(count: usize) -> Vec<String> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let visible: Vec<&str> = visible.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    (0..count)
        .map(|index| visible.get(index).map_or_else(|| index.to_string(), |name| (*name).to_owned()))
        .collect()
}

/// Zero where there is no CUDA. Asked in a thread, because cudarc panics on a driver it does not know, and initialising
/// CUDA must not touch the thread that forks.
fn cuda_device_count() -> usize {
    if !cuda_library_exists() {
        return 0;
    }
    let asked = std::thread::Builder::new().name("cuda-discovery".to_owned()).spawn(|| {
        cudarc::driver::result::init().ok()?;
        cudarc::driver::result::device::get_count().ok()
    });
    match asked.map(std::thread::JoinHandle::join) {
        Ok(Ok(Some(count))) => usize::try_from(count).unwrap_or(0),
        Ok(Err(_)) => {
            tracing::warn!("the CUDA driver of this machine could not be used; offering no GPUs");
            0
        }
        Ok(Ok(None)) | Err(_) => 0,
    }
}

#[allow(unsafe_code)]
fn cuda_library_exists() -> bool {
    // SAFETY: it loads the system's own libcuda, if there is one, and runs its initialisers, which is what using CUDA
    // means; nothing of it is called here.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// The environment that shows an executor its devices and no other.
pub(crate) fn show_devices(env: &mut BTreeMap<String, String>, gpus: &[u16], names: &[String]) {
    if names.is_empty() {
        return;
    }
    let shown: Vec<&str> =
        gpus.iter().filter_map(|index| names.get(usize::from(*index)).map(String::as_str)).collect();
    env.insert("CUDA_VISIBLE_DEVICES".to_owned(), shown.join(","));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_something() {
        let machine = discover(&Offer::default()).unwrap();
        assert!(machine.cores >= 1 && machine.resources.cpu > Amount::ZERO);
        assert!(machine.store_capacity >= STORE_MIN);
        assert!(!machine.hostname.is_empty());
    }

    #[test]
    fn what_is_told_is_checked() {
        let offer = Offer { num_cpus: Some(-1.0), ..Offer::default() };
        assert_eq!(
            discover(&offer).unwrap_err().to_string(),
            "num_cpus is -1; an amount of a resource cannot be negative"
        );
        let offer = Offer { resources: [("tpu".to_owned(), f64::NAN)].into(), ..Offer::default() };
        assert!(discover(&offer).unwrap_err().to_string().starts_with("resource `tpu` is NaN"));
        let offer = Offer { num_cpus: Some(0.0), num_gpus: Some(2.0), ..Offer::default() };
        let machine = discover(&offer).unwrap();
        assert_eq!(machine.resources.gpu, Amount::units(2));
        assert_eq!(machine.gpu_names.len(), 2);
    }

    #[test]
    fn executors_see_their_devices_only() {
        let names = ["3".to_owned(), "GPU-8".to_owned()];
        let mut env = BTreeMap::new();
        show_devices(&mut env, &[1], &names);
        assert_eq!(env["CUDA_VISIBLE_DEVICES"], "GPU-8");
        show_devices(&mut env, &[], &names);
        assert_eq!(env["CUDA_VISIBLE_DEVICES"], "");
    }
}
