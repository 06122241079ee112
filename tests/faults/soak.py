"""A mixed load for a while, and what grows meanwhile. See `scripts/soak --help`."""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO

from testkit import Host, Network, Process, Role, wait_until

HERE = Path(__file__).resolve().parent
EVERY = 2.0
# Before this share of the time has passed, caches and pools fill.
WARM_UP = 0.3
MIB = 1 << 20


@dataclass(frozen=True)
class Limit:
    """How much more there may be at the end than at the beginning: what is measured varies by as much."""

    unit: str
    slack: float
    share: float = 0.05


LIMITS = {
    "memory": Limit("MiB", 4),
    "files": Limit("", 8),
    "threads": Limit("", 3),
    "segments": Limit("", 8),
    "shared memory": Limit("MiB", 96),
    "processes": Limit("", 4),
    "spilled": Limit("MiB", 64),
    "disk": Limit("MiB", 2),
}


class Samples:
    """What was measured, by name, with the time."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)

    def take(self, when: float, hosts: list[Host], driver: Process | None) -> None:
        for host in hosts:
            executors = host.processes(Role.EXECUTOR)
            self._add(when, f"executors on {host.name}", "processes", len(executors))
            for role in (Role.HEAD, Role.WORKER):
                for process in host.processes(role):
                    self._process(when, f"{role.value} on {host.name}", process)
            zygotes = host.processes(Role.ZYGOTE)
            self._add(when, f"zygotes on {host.name}", "processes", len(zygotes))
            for process in zygotes[:1]:
                self._process(when, f"zygote on {host.name}", process)
            for process in host.processes(Role.WORKER):
                self._add(when, f"worker on {host.name}", "segments", _segments(process))
                shared = _status(process, "RssShmem") / MIB
                self._add(when, f"worker on {host.name}", "shared memory", shared)
            self._add(when, f"folder of {host.name}", "disk", _folder_bytes(host.directory) / MIB)
        if driver is not None:
            self._process(when, "driver", driver)

    def _process(self, when: float, who: str, process: Process) -> None:
        with contextlib.suppress(OSError):
            self._add(when, who, "memory", _status(process, "RssAnon") / MIB)
            self._add(when, who, "threads", len(list(Path(f"/proc/{process.pid}/task").iterdir())))
            self._add(when, who, "files", len(list(Path(f"/proc/{process.pid}/fd").iterdir())))

    def _add(self, when: float, who: str, what: str, value: float) -> None:
        self.series[who, what].append((when, value))

    def report(self) -> bool:
        """Prints the table; whether anything grew."""
        grew = False
        print(f"{'':24} {'':14} {'first':>9} {'last':>9} {'least':>9} {'most':>9} {'per hour':>10}")
        for (who, what), points in sorted(self.series.items()):
            limit = LIMITS[what]
            settled = points[int(len(points) * WARM_UP) :]
            values = [value for _, value in settled]
            if len(values) < 6:
                print(f"{who:24} {what:14} only {len(values)} samples")
                continue
            third = len(values) // 3
            # What is always there, without what each moment adds to it.
            first, last = low(values[:third]), low(values[-third:])
            more = last - first > limit.slack + limit.share * first
            grew |= more
            print(
                f"{who:24} {what:14} {first:9.1f} {last:9.1f} {min(values):9.1f} {max(values):9.1f} "
                f"{slope(settled) * 3600:+10.2f} {limit.unit} {'GREW' if more else ''}"
            )
        return grew


def low(values: list[float]) -> float:
    """Of what goes up and down, what it comes back to."""
    return sorted(values)[len(values) // 5]


def slope(points: list[tuple[float, float]]) -> float:
    """Per second, by Theil and Sen: the median of the slopes between points, which no outlier moves."""
    step = max(1, len(points) // 200)
    thin = points[::step]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(thin) for b in thin[i + 1 :] if b[0] > a[0]]
    return median(slopes)


def _status(process: Process, key: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return float(line.split()[1]) * 1024
    return 0.0


def _segments(process: Process) -> int:
    """Shared-memory segments that it has open, each counted once."""
    found = set()
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith("/memfd:"):
                found.add(entry.stat().st_ino)
    return len(found)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.name.startswith("driver"):
                total += path.stat().st_blocks * 512
    return total


class Passing:
    """Programs that come and go, some of them killed: one at a time, from a thread of its own."""

    def __init__(self, hosts: list[Host], seed: int) -> None:
        self.random = random.Random(seed)
        self.hosts = hosts
        self.came = 0
        self.killed = 0
        self.failure = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Passing":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set() and not self.failure:
            host = self.random.choice(self.hosts)
            leave = self.random.choice(["well", "short", "exit", "killed"])
            log = (host.directory / "driver-passing.log").open("w+")
            program = start_load(host, log, self.random.randrange(1, 3), self.random.randrange(10**6), leave)
            self.came += 1
            if leave == "killed":
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.wait(self.random.uniform(0.2, 6))
                program.kill()
                self.killed += 1
            try:
                status = program.wait(120)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
                status = "no end after 120 s"
            if status != 0 and leave != "killed":
                log.seek(0)
                self.failure = f"a program that was to leave `{leave}` ended with {status}:\n{log.read()}"
            log.close()


def start_load(host: Host, log: IO[str], rounds: int, seed: int, leave: str) -> "subprocess.Popen[str]":
    command = [sys.executable, HERE / "load.py", str(rounds), str(seed), leave]
    return host.popen(
        command, host.cluster_environment(), stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
    )


def what_is_left(head: Host) -> list[str]:
    """What the cluster still has though nobody uses it."""
    left = []
    for what in ("tasks", "actors", "objects", "placement-groups"):
        rows = head.cluster_json("list", what, "--limit", "10000")
        rows = rows if isinstance(rows, list) else next(iter(rows.values()))
        alive = [row for row in rows if str(row.get("state", "")).lower() not in ENDED]
        left += [f"{what}: {json.dumps(row)[:200]}" for row in alive[:5]]
    return left


ENDED = {"finished", "failed", "cancelled", "dead", "removed", "succeeded", "ended"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for how long (10)")
    parser.add_argument("--seed", type=int, default=1, help="of what the programs do")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with Network() as net:
        hosts = [net.host("a"), net.host("b")]
        head = hosts[0]
        # What is bounded is full soon.
        flags = {"num_cpus": 2, "object_store_memory": "256MiB"}
        head.cluster_up(tasks_kept=2000, lineage_memory="8MiB", log_size="1MiB", **flags)
        hosts[1].cluster_join(head, log_size="1MiB", **flags)
        samples = Samples()
        log = (head.directory / "driver-steady.log").open("w+")
        steady = start_load(head, log, 0, given.seed, "well")
        driver = Process.look(steady.pid)
        begun = time.monotonic()
        with Passing(hosts, given.seed) as passing:
            end = begun + given.minutes * 60
            while time.monotonic() < end and steady.poll() is None and not passing.failure:
                time.sleep(EVERY)
                samples.take(time.monotonic() - begun, hosts, driver)
        died = steady.poll()
        if steady.stdin is not None:
            steady.stdin.close()
        if died is None:
            steady.wait(60)
        log.seek(0)
        said = log.read().splitlines()
        failed = bool(passing.failure) or died is not None
        if died is not None:
            print("FAILED: the steady program ended with", died, *said[-30:], sep="\n")
        if passing.failure:
            print("FAILED:", passing.failure)
        rounds = next((line for line in reversed(said) if line.isdigit()), "no")
        print(
            f"{rounds} rounds of the steady program, {passing.came} programs that came and went, {passing.killed} of "
            f"them killed, in {(time.monotonic() - begun) / 60:.1f} minutes\n"
        )
        grew = samples.report()
        left: list[str] = []

        def nothing_left() -> bool:
            left[:] = what_is_left(head)
            return not left

        try:
            wait_until(nothing_left, 30, "nothing is left of programs that are gone")
            print("\nnothing is left of programs that are gone")
        except AssertionError:
            failed = True
            print("\nLEFT of programs that are gone:", *left, sep="\n  ")
    return 1 if grew or failed else 0


if __name__ == "__main__":
    sys.exit(main())
