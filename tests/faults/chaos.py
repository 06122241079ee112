"""Kills, pauses and cuts off what it finds while two programs run, whose results must be those of a quiet run.

A head and three workers, each in a network namespace of its own; the programs run beside the head. See
`scripts/chaos --help`.
"""

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from testkit import Host, Network, Role

HERE = Path(__file__).resolve().parent
# No single run may take longer than this, whatever happens to it.
PROGRAM_WITHIN = 600


class Chaos:
    """Does something to the cluster every now and then, from a thread of its own."""

    def __init__(self, net: Network, head: Host, workers: list[Host], seed: int, kinds: list[str]) -> None:
        self.net = net
        self.head = head
        self.workers = workers
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.log: list[str] = []
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._faults: dict[str, Callable[[], str]] = {kind: getattr(self, f"_{kind}") for kind in kinds}
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None

    def __enter__(self) -> "Chaos":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what went wrong that was not meant to."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._over.wait(self.random.uniform(0.5, 3)):
                kind = self.random.choice(sorted(self._faults))
                what = self._faults[kind]()
                self.done[kind] += 1
                line = f"{time.monotonic() - self._begun:7.1f} s  {what}"
                self.log.append(line)
                print(line, file=sys.stderr, flush=True)
        except BaseException as error:
            self._failure = error

    def _sleep(self, least: float, most: float) -> float:
        seconds = self.random.uniform(least, most)
        time.sleep(seconds)
        return seconds

    def _executor(self) -> str:
        """An executor is killed."""
        host = self.random.choice([self.head, *self.workers])
        executors = host.processes(Role.EXECUTOR)
        if not executors:
            return f"no executor on {host.name}"
        victim = self.random.choice(executors)
        victim.kill()
        return f"killed executor {victim.pid} on {host.name}"

    def _daemon(self) -> str:
        """A worker daemon is killed and, after a while, started again."""
        host = self.random.choice(self.workers)
        host.kill(Role.WORKER)
        seconds = self._sleep(0, 3)
        join(host, self.head)
        return f"killed the daemon on {host.name}, and started it {seconds:.1f} s later"

    def _pause(self) -> str:
        """A worker daemon stands still, for longer or shorter than it takes to be declared lost."""
        host = self.random.choice(self.workers)
        paused = host.pause(Role.WORKER)
        seconds = self._sleep(0.2, 8)
        for process in paused:
            process.resume()
        return f"the daemon on {host.name} stood still for {seconds:.1f} s"

    def _cut(self) -> str:
        """A host is cut off."""
        host = self.random.choice(self.workers)
        self.net.cut(host)
        seconds = self._sleep(0.2, 8)
        self.net.restore(host)
        return f"{host.name} was cut off for {seconds:.1f} s"

    def _head(self) -> str:
        """The head is killed and started again."""
        self.head.kill(Role.HEAD)
        seconds = self._sleep(0, 2)
        self.head.cluster("up", "--host", self.head.address, "--num-cpus", "1", "--json")
        return f"killed the head, and started it {seconds:.1f} s later"


def join(host: Host, head: Host) -> None:
    host.cluster_join(head, num_cpus=1, object_store_memory="1GiB")


def run(head: Host, program: str, size: int) -> tuple[str, float]:
    """The program's result and how long it took."""
    begun = time.monotonic()
    done = head.python(HERE / f"{program}.py", timeout=PROGRAM_WITHIN, arguments=[str(size)])
    return done.stdout.strip(), time.monotonic() - begun


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="how long things go wrong (5)")
    parser.add_argument("--seed", type=int, default=None, help="of what goes wrong, and when")
    parser.add_argument("--fits", type=int, default=300, help="models that the sweep fits (300)")
    parser.add_argument("--megabytes", type=int, default=2_000, help="that the shuffle moves (2000)")
    kinds = ["executor", "daemon", "pause", "cut", "head"]
    parser.add_argument("--faults", default=",".join(kinds), help=f"of {', '.join(kinds)}, with commas")
    given = parser.parse_args()
    chosen = given.faults.split(",")
    if unknown := set(chosen) - set(kinds):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    programs = {"sweep": given.fits, "shuffle": given.megabytes}
    print(f"seed {seed}", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with Network() as net:
        head = net.host("head")
        workers = [net.host(name) for name in ("a", "b", "c")]
        head.cluster_up(num_cpus=1, object_store_memory="1GiB")
        for worker in workers:
            join(worker, head)
        expected = {}
        for name, size in programs.items():
            expected[name], seconds = run(head, name, size)
            print(f"{name}: undisturbed in {seconds:.1f} s", file=sys.stderr)
        runs: Counter[str] = Counter()
        with Chaos(net, head, workers, seed, chosen) as chaos:
            end = time.monotonic() + given.minutes * 60
            while time.monotonic() < end:
                for name, size in programs.items():
                    try:
                        result, seconds = run(head, name, size)
                    except (AssertionError, subprocess.SubprocessError) as error:
                        print(f"FAILED: {name}, with seed {seed}: {error}", file=sys.stderr)
                        show_logs(net)
                        return 1
                    if result != expected[name]:
                        print(f"FAILED: {name} gave another result, with seed {seed}", file=sys.stderr)
                        return 1
                    chaos.check()
                    runs[name] += 1
                    print(f"{name}: right, in {seconds:.1f} s", file=sys.stderr)
        faults = ", ".join(f"{number} × {kind}" for kind, number in sorted(chaos.done.items()))
        told = ", ".join(f"{number} × {name}" for name, number in runs.items())
        print(f"every result was that of the quiet run: {told}, while things went wrong: {faults}")
    return 0


def show_logs(net: Network) -> None:
    """The last that the daemons wrote."""
    for host in net.hosts.values():
        for log in sorted(host.directory.rglob("*.log")):
            with contextlib.suppress(OSError):
                lines = log.read_text(errors="replace").splitlines()[-15:]
                print(f"--- {host.name}: {log.name}", *lines, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
