"""Actors, streams and cancel over three hosts, as programs see them."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(180)


def three(net: Network) -> tuple[Host, Host, Host]:
    """A head, and two hosts that hold one `far` each."""
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=2)
    for host in (b, c):
        host.cluster_join(a, num_cpus=2, resources={"far": 1, host.name: 1}, label={"zone": host.name})
    return a, b, c


COMMON = """
import os, sys, time
import concurrent_ml as cml
from concurrent_ml import exceptions

def zone():
    here = cml.get_runtime_context().get_node_id()
    return next(node["Labels"].get("zone", "a") for node in cml.nodes() if node["NodeID"] == here)

@cml.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.count = 0
    def add(self, n=1):
        self.count += n
        return self.count
    def zone(self):
        return zone()
    def nap(self, seconds, begun):
        open(begun, "x").close()
        time.sleep(seconds)

def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)
"""


def run(host: Host, program: str) -> str:
    """What it prints."""
    process = host.popen_python(COMMON + program)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return str(out)


def test_a_detached_actor_is_found_by_its_name_on_every_host_until_somebody_kills_it(net: Network) -> None:
    hosts = three(net)
    out = run(
        hosts[1],
        """
cml.init(namespace="shared")
kept = Counter.options(name="kept", lifetime="detached", resources={"c": 0.1}).remote()
print(cml.get(kept.add.remote(5), timeout=30), cml.get(kept.zone.remote(), timeout=30))
""",
    )
    assert out == "5 c\n"
    for number, host in enumerate(hosts, start=6):
        out = run(
            host,
            """
cml.init(namespace="shared")
print(cml.get(cml.get_actor("kept").add.remote(), timeout=30))
try:
    Counter.options(name="kept").remote()
except ValueError as error:
    print("is taken" in str(error))
""",
        )
        assert out == f"{number}\nTrue\n"
    out = run(
        hosts[2],
        """
cml.init(namespace="shared")
kept = cml.get_actor("kept")
cml.kill(kept)
try:
    cml.get(kept.add.remote(), timeout=30)
except exceptions.ActorDiedError as error:
    print("killed by" in str(error), error.actor_id == kept._actor_id)
def is_gone():
    try:
        cml.get_actor("kept")
    except ValueError:
        return True
    return False
until(is_gone)
""",
    )
    assert out == "True True\n"


def test_handles_travel_between_hosts_inside_values_and_keep_their_actor(net: Network) -> None:
    a, _, _ = three(net)
    out = run(
        a,
        """
cml.init()

@cml.remote(num_cpus=0)
class Keeper:
    def __init__(self):
        self.kept = None
    def keep(self, things):
        self.kept = things
        return zone()
    def use(self):
        return cml.get(self.kept["counter"].add.remote(10), timeout=30)
    def forget(self):
        self.kept = None

@cml.remote(resources={"b": 0.1})
def made_there():
    counter = Counter.options(resources={"c": 0.1}).remote()
    cml.get(counter.add.remote())
    return {"counter": counter, "method": counter.add}

things = cml.get(made_there.remote(), timeout=30)
keeper = Keeper.options(resources={"b": 0.1}).remote()
print(cml.get(keeper.keep.remote(things), timeout=30), cml.get(things["counter"].zone.remote(), timeout=30))
print(cml.get(things["method"].remote(), timeout=30))
actor = things["counter"]._actor_id
del things
print(cml.get(keeper.use.remote(), timeout=30), flush=True)
cml.get(keeper.forget.remote(), timeout=30)
# The last handle is gone, and with it the actor.
import json, subprocess
def lives():
    told = subprocess.run(["cluster", "list", "actors", "--json"], capture_output=True, text=True, check=True).stdout
    return any(actor in line and "dead" not in line for line in map(str, json.loads(told)))
until(lambda: not lives())
""",
    )
    assert out == "b c\n2\n12\n"


@pytest.mark.parametrize("max_restarts", [0, 1])
def test_an_actor_whose_host_is_lost_is_dead_or_made_anew_elsewhere(
    net: Network, tmp_path: Path, max_restarts: int
) -> None:
    a, b, c = three(net)
    process = a.popen(
        [
            "python",
            "-c",
            COMMON
            + f"""
cml.init()
actor = Counter.options(resources={{"far": 1}}, max_restarts={max_restarts}).remote()
cml.get(actor.add.remote(7), timeout=30)
where = cml.get(actor.zone.remote(), timeout=30)
# A call that had not begun would be made of the new incarnation.
begun = {str(tmp_path / "begun")!r}
running = actor.nap.remote(100, begun)
until(lambda: os.path.exists(begun))
print(where, flush=True)
sys.stdin.readline()
try:
    cml.get(running, timeout=60)
except exceptions.ActorError as error:
    print(type(error).__name__, "is lost" in str(error), error.actor_id == actor._actor_id)
try:
    print(cml.get(actor.add.remote(), timeout=60), cml.get(actor.zone.remote(), timeout=30))
except exceptions.ActorDiedError as error:
    print("dead", "is lost" in str(error))
""",
        ],
        env=a.cluster_environment(),
        stdin=subprocess.PIPE,
    )
    assert process.stdout is not None
    where = process.stdout.readline().strip()
    lost, other = (b, "c") if where == "b" else (c, "b")
    lost.kill(Role.WORKER)
    alive: Any = lambda: [n for n in a.cluster_json("list", "nodes") if n["state"] == "alive"]  # noqa: E731
    wait_until(lambda: len(alive()) == 2, 20, "the head to notice")
    out, err = process.communicate("\n", timeout=120)
    expected = (
        "ActorUnavailableError True True\n1 " + other
        if max_restarts
        else "ActorDiedError True True\ndead True"
    )
    assert out.strip() == expected, err


def test_a_producer_on_another_host_waits_for_its_reader(net: Network) -> None:
    a, _, _ = three(net)
    out = run(
        a,
        """
cml.init()
seen = Counter.remote()

@cml.remote(resources={"far": 0.1}, stream_max_items=3)
def numbers(seen):
    for number in range(50):
        cml.get(seen.add.remote())
        yield number

items = numbers.remote(seen)
until(lambda: cml.get(seen.add.remote(0)) >= 3)
time.sleep(1)
# One more may be made and wait for its place.
print(cml.get(seen.add.remote(0)) <= 4, [cml.get(next(items), timeout=30) for _ in range(10)])
until(lambda: cml.get(seen.add.remote(0)) >= 13)
time.sleep(0.5)
print(cml.get(seen.add.remote(0)) <= 14, sum(cml.get(list(items), timeout=60)))
""",
    )
    assert out == f"True {list(range(10))}\nTrue {sum(range(10, 50))}\n"


def test_cancel_reaches_other_hosts_and_what_was_submitted_there(net: Network) -> None:
    a, _, _ = three(net)
    out = run(
        a,
        """
cml.init()
begun, ended = Counter.remote(), Counter.remote()

@cml.remote(resources={"c": 0.1})
def child(begun, ended):
    try:
        cml.get(begun.add.remote())
        time.sleep(100)
    finally:
        cml.get(ended.add.remote())

@cml.remote(resources={"b": 0.1})
def parent(begun, ended, wait):
    refs = [child.remote(begun, ended) for _ in range(2)]
    cml.get(begun.add.remote())
    cml.get(refs) if wait else time.sleep(100)

for number, (wait, recursive) in enumerate([(True, True), (False, True)], start=1):
    running = parent.remote(begun, ended, wait)
    until(lambda: cml.get(begun.add.remote(0)) == 3 * number)
    cml.cancel(running, recursive=recursive)
    try:
        cml.get(running, timeout=30)
    except exceptions.TaskCancelledError as error:
        print("cancelled", "driver" in str(error))
    until(lambda: cml.get(ended.add.remote(0)) == 2 * number)

# By force: the process goes, and a task that waits in a queue never starts.
@cml.remote(resources={"b": 1}, max_retries=0)
def deaf(begun):
    cml.get(begun.add.remote(100))
    while True:
        try:
            time.sleep(100)
        except BaseException:
            pass

running, waiting = deaf.remote(begun), deaf.remote(begun)
until(lambda: cml.get(begun.add.remote(0)) >= 100)
cml.cancel(waiting)
cml.cancel(running, force=True)
for ref in (waiting, running):
    try:
        cml.get(ref, timeout=30)
    except (exceptions.TaskCancelledError, exceptions.WorkerCrashedError) as error:
        print(type(error).__name__)
print(cml.get(begun.add.remote(0)))
""",
    )
    assert out == "cancelled True\ncancelled True\nTaskCancelledError\nTaskCancelledError\n106\n"
