"""Calls to actors of other hosts go from daemon to daemon: in order, past the head, through what breaks."""

import json
from typing import Any

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(180)

# The counter lives on host c, whose lamp it takes; the program runs on host b; the head is on host a.
COUNTER = """
import json, os, signal, sys, time
import concurrent_ml as cml

cml.init()


@cml.remote(num_cpus=0, resources={"lamp": 0.1})
class Counter:
    def __init__(self):
        self.count = 0

    def add(self, n=1):
        self.count += n
        return self.count

    def pid(self):
        return os.getpid()

    def seen(self, numbers):
        self.count += 1
        return [self.count, numbers]


def opened(counter):
    # The first answer asks for the way; what follows takes it when it is there.
    for _ in range(50):
        cml.get(counter.add.remote(0))
        time.sleep(0.01)
    return counter


def told(word):
    print(word, flush=True)
    return sys.stdin.readline()
"""


def three(net: Network) -> tuple[Host, Host, Host]:
    """The head's, the program's and the actor's."""
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1)
    c.cluster_join(a, num_cpus=1, resources={"lamp": 1})
    return a, b, c


class Program:
    """A program on a host that says words and waits for ours."""

    def __init__(self, host: Host, text: str) -> None:
        self.process = host.popen_python(COUNTER + text)

    def hears(self, word: str) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line == word, line + (self.process.stderr.read() if self.process.stderr and not line else "")

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        out, err = self.process.communicate("\n", timeout=120)
        assert self.process.returncode == 0, err
        return json.loads(out.splitlines()[-1])


def test_10000_calls_run_in_order_while_the_head_stands_still(net: Network):
    a, b, _ = three(net)
    program = Program(
        b,
        """
counter = opened(Counter.remote())
told("stop the head")
answers = cml.get([counter.add.remote() for _ in range(10_000)], timeout=20)
one_by_one = [cml.get(counter.add.remote(), timeout=5) for _ in range(200)]
told("start the head")
print(json.dumps(answers + one_by_one == list(range(1, 10_201))))
""",
    )
    program.hears("stop the head")
    # For less time than it takes nodes to think it gone.
    a.pause(Role.HEAD)
    program.goes_on()
    program.hears("start the head")
    a.resume(Role.HEAD)
    assert program.result() is True


def test_results_of_every_kind_come_back_and_nothing_is_left(net: Network):
    a, b, _ = three(net)
    program = Program(
        b,
        """
import numpy as np


@cml.remote(num_cpus=0, resources={"lamp": 0.1})
class Maker:
    def large(self, n):
        return np.full(n, n)

    def ref(self, n):
        return [cml.put(n)]

    def made(self):
        return Counter.remote()

    def fails(self):
        raise KeyError("no such lamp")


@cml.remote
def total(array, *more):
    return int(array.sum()) + sum(more)


maker = Maker.remote()
for _ in range(50):
    cml.get(maker.large.remote(1))
    time.sleep(0.01)
counter = opened(Counter.remote())
arrays = [maker.large.remote(n) for n in (1, 10_000, 300_000)]
# A result is named before it is known, and after.
sums = cml.get([total.remote(array, counter.add.remote(0)) for array in arrays])
inner = cml.get([cml.get(maker.ref.remote(n))[0] for n in range(20)])
made = cml.get(maker.made.remote())
error = ""
try:
    cml.get(maker.fails.remote())
except KeyError as caught:
    error = str(caught)
result = [sums, inner, cml.get(made.add.remote(7)), error]
del arrays, maker, made, counter
told("look")
print(json.dumps(result))
""",
    )
    program.hears("look")
    wait_until(lambda: a.cluster_json("list", "objects") == [], 5, "no object is left")
    sums, inner, added, error = program.result()
    assert sums == [1, 10_000**2, 300_000**2]
    assert (inner, added) == (list(range(20)), 7)
    assert "no such lamp" in error


def test_a_killed_actor_ends_its_calls_and_goes_on_in_its_next_life(net: Network):
    _, b, _ = three(net)
    program = Program(
        b,
        """
counter = opened(Counter.options(max_restarts=-1, max_task_retries=-1).remote())
pid = cml.get(counter.pid.remote())


@cml.remote(resources={"lamp": 0.1}, num_cpus=0)
def kill(pid):
    os.kill(pid, signal.SIGKILL)


refs = [counter.add.remote() for _ in range(500)]
done = kill.remote(pid)
refs += [counter.add.remote() for _ in range(500)]
answers = cml.get(refs, timeout=60)
cml.get(done)
drops = [i for i in range(1, 1000) if answers[i] != answers[i - 1] + 1]
refused = opened(Counter.remote())
refs = [refused.add.remote() for _ in range(1000)]
cml.get(kill.remote(cml.get(refused.pid.remote())))
told("")
kinds = set()
for ref in refs + [refused.add.remote()]:
    try:
        cml.get(ref, timeout=30)
    except cml.exceptions.ActorDiedError as error:
        kinds.add("died" if "SIGKILL" in str(error) else str(error))
print(json.dumps([drops, sorted(kinds), cml.get(counter.pid.remote()) != pid]))
""",
    )
    program.hears("")
    drops, kinds, reborn = program.result()
    # ORDER-1: counts begin anew once, with the new actor, and go up by one.
    assert len(drops) <= 1, drops
    assert (kinds, reborn) == (["died"], True)


def test_a_lost_node_fails_what_may_have_run_and_retries_what_may(net: Network):
    _, b, c = three(net)
    program = Program(
        b,
        """
@cml.remote(num_cpus=0, max_restarts=1, max_task_retries=1)
class Sleeper:
    def node(self):
        return cml.get_runtime_context().get_node_id()

    def sleep(self, seconds):
        time.sleep(seconds)
        return self.node()


counter = opened(Counter.remote())
where = cml.get(counter.add.options(name="first").remote())
lost = [counter.add.remote() for _ in range(3)]
cml.get(lost)
lost = counter.seen.remote("x")
cml.get(lost)
slow = [counter.add.remote()]
told("kill c")
waiting = [counter.add.remote() for _ in range(100)]
words = set()
for ref in waiting:
    try:
        cml.get(ref, timeout=60)
    except cml.exceptions.ActorDiedError as error:
        words.add("lost" if "lost" in str(error) else str(error))
print(json.dumps(sorted(words)))
""",
    )
    program.hears("kill c")
    c.kill_everything()
    assert program.result() == ["lost"]


def test_a_link_that_is_cut_for_seconds_fails_no_call(net: Network):
    _, b, c = three(net)
    program = Program(
        b,
        """
counter = opened(Counter.remote())
told("cut")
refs = [counter.add.remote() for _ in range(1000)]
told("restore")
answers = cml.get(refs, timeout=60)
answers += cml.get([counter.add.remote() for _ in range(1000)], timeout=60)
print(json.dumps(answers == list(range(1, 2001))))
""",
    )
    program.hears("cut")
    with Cut(b, c):
        program.goes_on()
        program.hears("restore")
        # Longer than the daemons take to give their connection up.
        wait_until(lambda: not Cut.connections(c, b), 20, "the connection is given up")
    assert program.result() is True


def test_a_link_that_stays_cut_ends_calls_with_a_reason_and_later_ones_go_by_the_head(net: Network):
    _, b, c = three(net)
    program = Program(
        b,
        """
counter = opened(Counter.remote())
told("cut")
refs = [counter.add.remote() for _ in range(10)]
words = set()
for ref in refs:
    try:
        cml.get(ref, timeout=60)
    except cml.exceptions.ActorUnavailableError as error:
        told = "no word came through" in str(error) and "may have run" in str(error)
        words.add(told or str(error))
count = cml.get(counter.add.remote(), timeout=60)
print(json.dumps([sorted(words), 1 <= count <= 11]))
""",
    )
    program.hears("cut")
    with Cut(b, c):
        assert program.result() == [[True], True]


def test_calls_are_cancelled_by_their_caller_and_by_others(net: Network):
    _, b, _ = three(net)
    program = Program(
        b,
        """
@cml.remote(num_cpus=0, resources={"lamp": 0.1})
class Sleeper:
    def ready(self):
        return True

    def sleep(self, seconds):
        time.sleep(seconds)
        return "slept"


@cml.remote(num_cpus=0)
def cancel(refs):
    cml.cancel(refs[0])


sleeper = Sleeper.remote()
for _ in range(50):
    cml.get(sleeper.ready.remote())
    time.sleep(0.01)


def outcome(ref):
    try:
        return cml.get(ref, timeout=20)
    except cml.exceptions.TaskCancelledError:
        return "cancelled"


begun = time.monotonic()
running, queued = sleeper.sleep.remote(60), sleeper.sleep.remote(60)
time.sleep(0.3)
cml.cancel(queued)
cml.cancel(running)
own = [outcome(running), outcome(queued)]
running = sleeper.sleep.remote(60)
time.sleep(0.3)
cml.get(cancel.remote([running]))
others = outcome(running)
print(json.dumps([own, others, outcome(sleeper.sleep.remote(0)), time.monotonic() - begun < 20]))
""",
    )
    assert program.result() == [["cancelled", "cancelled"], "cancelled", "slept", True]


def test_drivers_without_a_daemon_call_so_too(net: Network):
    a, _, _ = three(net)
    d = net.host("d")
    d.join_cluster_of(a)
    program = Program(
        d,
        """
import numpy as np


@cml.remote(num_cpus=0, resources={"lamp": 0.1})
class Maker:
    def large(self, n):
        return np.full(n, n)


maker = Maker.remote()
counter = opened(Counter.remote())
told("stop the head")
answers = cml.get([counter.add.remote() for _ in range(1000)], timeout=20)
told("start the head")
print(json.dumps([answers == list(range(1, 1001)), int(cml.get(maker.large.remote(200_000)).sum())]))
""",
    )
    program.hears("stop the head")
    a.pause(Role.HEAD)
    program.goes_on()
    program.hears("start the head")
    a.resume(Role.HEAD)
    assert program.result() == [True, 200_000**2]


class Cut:
    """No packet passes between two hosts, and both speak with all others."""

    def __init__(self, one: Host, other: Host) -> None:
        self.ways = [(one, other), (other, one)]

    def __enter__(self) -> None:
        for here, there in self.ways:
            here.run(["ip", "route", "add", "blackhole", there.address])

    def __exit__(self, *_: object) -> None:
        for here, there in self.ways:
            here.run(["ip", "route", "del", "blackhole", there.address])

    @staticmethod
    def connections(here: Host, there: Host) -> list[str]:
        """What one host has open with the other."""
        shown = here.run(["cat", "/proc/net/tcp"]).stdout.splitlines()[1:]
        address = "".join(f"{int(byte):02X}" for byte in reversed(there.address.split(".")))
        return [line for line in shown if line.split()[2].startswith(address) and line.split()[3] == "01"]
