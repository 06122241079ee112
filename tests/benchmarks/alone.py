"""The rows that Ray has no counterpart for, each measured against something of the same machine in the same run."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import disks, failures, heads, jobs
from testkit import Host, Network, Role

Figures = dict[str, float]

ROOT = Path(__file__).resolve().parents[2]


def program(text: str, env: dict[str, str] | None = None, timeout: float = 600) -> Figures:
    """Runs a program on an embedded cluster of its own; its last line of output is JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.py"
        path.write_text(text)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CLUSTER_")}
        done = subprocess.run(
            [sys.executable, path],
            env={**inherited, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


TOUCHED = """
import json, statistics, time
import numpy as np
import concurrent_ml as cml

cml.init()
source = np.arange(100_000_000, dtype=np.int64)
target = np.ones_like(source)
copies, puts = [], []
cml.put(source)  # the first one pays for the memory that the others recycle
for _ in range(7):
    start = time.perf_counter(); np.copyto(target, source); copies.append(time.perf_counter() - start)
    start = time.perf_counter(); ref = cml.put(source); puts.append(time.perf_counter() - start)
    del ref
print(json.dumps({"put of a touched source, of a plain copy": statistics.median(copies) / statistics.median(puts)}))
"""

VIEW = """
import json, statistics, time
import numpy as np
import concurrent_ml as cml

@cml.remote
def make():
    return np.ones(100_000_000, dtype=np.int64)

cml.init()
times = []
for _ in range(5):
    ref = make.remote()
    cml.wait([ref])
    # Writing 800 MB has emptied the CPU's caches: until they know the code again any call takes 100 us more, an
    # 8 KB pickle.loads as well.
    for _ in range(10):
        cml.get(cml.put(np.ones(10_000)))
    start = time.perf_counter(); view = cml.get(ref); times.append(time.perf_counter() - start)
    assert view.nbytes == 800_000_000 and view[-1] == 1
    del view, ref
print(json.dumps({"view of an 800 MB array on its node": statistics.median(times) * 1e6}))
"""

MEMORY = """
import json
import concurrent_ml as cml

def private(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return sum(int(l.split()[1]) for l in lines if l.startswith(("Private_Clean", "Private_Dirty"))) * 1024 / 1e6

@cml.remote
def idle():
    import os
    return os.getpid()

@cml.remote
def with_numpy():
    import os
    import numpy as np
    a = np.ones((200, 200))
    return os.getpid(), float((a @ a).sum())

cml.init()
before = private(cml.get(idle.remote()))
pid, _ = cml.get(with_numpy.remote())
print(json.dumps({"executor's private memory, idle": before,
                  "executor's private memory, after a NumPy task": private(pid)}))
"""

ACTORS = """
import json, os, statistics, time
import concurrent_ml as cml

def private(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return sum(int(l.split()[1]) for l in lines if l.startswith(("Private_Clean", "Private_Dirty"))) * 1024 / 1e6

@cml.remote(num_cpus=0)
class Actor:
    def pid(self):
        return os.getpid()

cml.init()
cml.get(Actor.remote().pid.remote())
start = time.perf_counter()
actors = [Actor.remote() for _ in range(1000)]
pids = cml.get([actor.pid.remote() for actor in actors], timeout=300)
took = time.perf_counter() - start
print(json.dumps({"a thousand actors of no CPU, made and called once": took,
                  "an actor's private memory, one of a thousand": statistics.median(map(private, pids))}))
"""

# What a store's segments occupy is what the kernel has given them, whoever reports what.
FOOTPRINT = """
import collections, json, os, random, statistics
import numpy as np
import concurrent_ml as cml

def segments():
    seen = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = open(f"/proc/{pid}/environ", "rb").read()
            if int(pid) != os.getpid() and b"FOOTPRINT_RUN=1" not in environment:
                continue
            for fd in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{fd}"
                if os.readlink(path).startswith("/memfd:"):
                    stat = os.stat(path)
                    seen[stat.st_ino] = stat.st_blocks * 512
        except OSError:
            continue
    return sum(seen.values())

cml.init()
random.seed(1)
kept, recent, live, ratios = [], collections.deque(), 0, []
source = np.random.default_rng(1).integers(0, 256, 1 << 20, dtype=np.uint8)
for number in range(60_000):
    size = int(4096 * 256 ** random.random())  # 4 KiB to 1 MiB, as many of each order
    ref = cml.put(source[:size])
    live += size
    if random.random() < 0.01:
        kept.append(ref)
    else:
        recent.append((ref, size))
        if len(recent) > 200:
            live -= recent.popleft()[1]
    del ref
    if number >= 20_000 and number % 2_000 == 0:
        ratios.append(segments() / live)
print(json.dumps({"store's footprint under the mix, of live bytes": statistics.median(ratios)}))
"""

# All CPUs are held while the million is submitted, so that all of it is queued before the first one runs.
MILLION = """
import json, pathlib, sys, time
import concurrent_ml as cml

head, gate = int(sys.argv[1]), pathlib.Path(sys.argv[2])
COUNT = 1_000_000

@cml.remote
def hold():
    while not gate.exists():
        time.sleep(0.01)

@cml.remote
def started():
    return time.monotonic()  # one clock for every process of the machine

cml.init()
holders = [hold.remote() for _ in range(int(cml.cluster_resources()["CPU"]))]
refs = [started.remote() for _ in range(COUNT)]
gate.touch()
cml.get(holders)
times = sorted(cml.get(refs))
tenth = COUNT // 10
with open(f"/proc/{head}/status") as lines:
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
print(json.dumps({
    "a million queued tasks: head's memory": peak,
    "a million queued tasks: last tenth's rate, of the first's":
        (times[tenth] - times[0]) / (times[-1] - times[-1 - tenth]),
}))
"""

MADE_ON_A = """
import json, statistics, time
import numpy as np
import concurrent_ml as cml

@cml.remote(resources={"a": 1})
def make(seed):
    return np.full(125_000_000, seed, dtype=np.int64)

@cml.remote(resources={"b": 1})
def take(refs):
    start = time.perf_counter()
    array = cml.get(refs[0])
    elapsed = time.perf_counter() - start
    assert array.nbytes == 1_000_000_000
    return elapsed

cml.init()
times = []
for seed in range(4):
    ref = make.remote(seed)
    cml.wait([ref])
    times.append(cml.get(take.remote([ref])))
    del ref
# The first transfer pays for the memory that the others recycle.
print(json.dumps({"gigabits": 8 / statistics.median(times[1:])}))
"""


def iperf_gigabits(client: Host, server: Host) -> float:
    """One TCP stream, for three seconds."""
    listening = server.popen(["iperf3", "--server", "--one-off", "--bind", server.address, "--forceflush"])
    assert listening.stdout is not None
    while "listening" not in listening.stdout.readline():
        if listening.poll() is not None:
            raise RuntimeError("iperf3 did not start")
    shown = client.run(["iperf3", "--client", server.address, "--time", "3", "--json"]).stdout
    listening.wait(timeout=10)
    return json.loads(shown)["end"]["sum_received"]["bits_per_second"] / 1e9


def transfer() -> Figures:
    """A 1 GB object made on one host and taken by a task on another, beside one iperf3 stream before and after."""
    with Network() as net:
        a, b = net.host("a"), net.host("b")
        a.cluster_up(num_cpus=1, resources={"a": 1}, object_store_memory="4GiB")
        b.cluster_join(a, num_cpus=1, resources={"b": 1}, object_store_memory="4GiB")
        before = iperf_gigabits(b, a)
        ours = json.loads(a.python(MADE_ON_A, timeout=300).stdout.splitlines()[-1])["gigabits"]
        plain = statistics.mean([before, iperf_gigabits(b, a)])
        print(f"  {ours:.1f} Gbit/s, iperf3 {plain:.1f} Gbit/s", file=sys.stderr)
        return {"transfer between two namespaces, of one iperf3 stream": ours / plain}


def million() -> Figures:
    """A million no-op tasks queued at once, on a cluster whose head is a process of its own."""
    with Network() as net:
        host = net.host("a")
        host.cluster_up()
        head = host.process(Role.HEAD)
        arguments = [str(head.pid), str(host.directory / "gate")]
        return json.loads(host.python(MILLION, timeout=900, arguments=arguments).stdout.splitlines()[-1])


def example(package: str, name: str) -> dict[str, float]:
    """What an example of ours that measures says in its last line, built as users build."""
    cargo = shutil.which("cargo") or str(Path.home() / ".cargo/bin/cargo")
    build = [cargo, "build", "--quiet", "--release", "--locked", "--package", package, "--example", name]
    subprocess.run(build, cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    # The command that came with the package.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CLUSTER_")}
    environment = {**inherited, "CLUSTER_BINARY": str(Path(sys.executable).parent / "cluster")}
    done = subprocess.run(
        [target / "release/examples" / name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def decisions() -> Figures:
    """The head's core by itself, on one core."""
    return {
        "scheduling decisions of one core: 1,000 nodes, 100,000 queued tasks": example(
            "head-core", "decisions"
        )["decisions_per_second"]
    }


def rust() -> Figures:
    """The Rust SDK's own figures."""
    figures = example("concurrent-ml", "figures")
    return {
        "Rust: no-op tasks from one client": figures["rust_tasks_per_second"],
        "Rust: a no-op task, sync": figures["rust_sync_us"],
        "Rust: get of an 800 MB ndarray on its node": figures["rust_get_800_mb_first_ms"],
    }


MEASUREMENTS: list[tuple[tuple[str, ...], Callable[[], Figures]]] = [
    (("put of a touched source, of a plain copy",), lambda: program(TOUCHED)),
    (("view of an 800 MB array on its node",), lambda: program(VIEW)),
    (
        ("executor's private memory, idle", "executor's private memory, after a NumPy task"),
        lambda: program(MEMORY),
    ),
    (("transfer between two namespaces, of one iperf3 stream",), transfer),
    (
        (
            "a million queued tasks: head's memory",
            "a million queued tasks: last tenth's rate, of the first's",
        ),
        million,
    ),
    (
        ("a thousand actors of no CPU, made and called once", "an actor's private memory, one of a thousand"),
        lambda: program(ACTORS),
    ),
    (("scheduling decisions of one core: 1,000 nodes, 100,000 queued tasks",), decisions),
    (("store's footprint under the mix, of live bytes",), lambda: program(FOOTPRINT, {"FOOTPRINT_RUN": "1"})),
    ((failures.EXECUTOR,), failures.executor),
    ((failures.NODE_GONE,), failures.node_gone),
    ((failures.NODE_SILENT,), failures.node_silent),
    ((heads.HEAD_RESTART,), heads.head_restart),
    ((heads.FAILOVER,), heads.failover),
    ((disks.SPILLING, disks.RESTORING), disks.spilling),
    ((jobs.SUBMIT,), jobs.submit),
    ((jobs.SENT_AGAIN,), jobs.sent_again),
    ((jobs.FIRST_OF_ENVIRONMENT, jobs.IN_ENVIRONMENT), jobs.environments),
    (
        (
            "Rust: no-op tasks from one client",
            "Rust: a no-op task, sync",
            "Rust: get of an 800 MB ndarray on its node",
        ),
        rust,
    ),
]
