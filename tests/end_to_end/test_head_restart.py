"""The head is killed and started again: drivers, daemons and executors go on, and nothing runs twice."""

import subprocess

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(120)


def three(net: Network) -> tuple[Host, Host, Host]:
    """A head without room for tasks, and two nodes with two CPUs each."""
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=0)
    b.cluster_join(a, num_cpus=2)
    c.cluster_join(a, num_cpus=2)
    return a, b, c


def line(program: subprocess.Popen[str]) -> str:
    """The next that it prints."""
    assert program.stdout is not None
    return program.stdout.readline().strip()


def go_on(program: subprocess.Popen[str]) -> None:
    """Lets it read a line."""
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()


def ended(program: subprocess.Popen[str]) -> None:
    """It ends well."""
    out, err = program.communicate("\n\n\n", timeout=60)
    assert program.returncode == 0, out + err


WORK = """
import pathlib, sys, time
import numpy as np
import concurrent_ml as cml
cml.init()
ran = pathlib.Path(sys.argv[1])

@cml.remote(max_retries=0)
def slow(n):
    with open(ran, "a") as file:
        file.write(f"{n}\\n")
    time.sleep(1)
    return np.full(50_000, n)

@cml.remote
def total(*arrays):
    return sum(int(array[0]) for array in arrays)

@cml.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.n = 0
    def add(self):
        self.n += 1
        return self.n

counter = Counter.remote()
assert cml.get(counter.add.remote()) == 1
kept = cml.put(np.arange(100_000))
refs = [slow.remote(n) for n in range(12)]
whole = total.remote(*refs)
cml.wait(refs[:1], num_returns=1)
print("runs", flush=True)
# What waits while the head is away has its answer when it is back.
print(cml.get(whole), flush=True)
print(int(cml.get(kept).sum()), cml.get(counter.add.remote()), flush=True)
print(cml.get(total.remote(*[slow.remote(n) for n in range(12, 14)])), flush=True)
"""


def test_what_runs_runs_on_and_what_is_queued_runs_once(net: Network):
    a, _, _ = three(net)
    ran = a.directory / "ran"
    driver = a.popen_python(WORK, arguments=[str(ran)])
    assert line(driver) == "runs"
    a.kill(Role.HEAD)
    a.cluster_up(num_cpus=0)
    assert line(driver) == str(sum(range(12)))
    assert line(driver) == f"{sum(range(100_000))} 2"
    assert line(driver) == "25"
    ended(driver)
    assert sorted(int(n) for n in ran.read_text().split()) == list(range(14))


DETACHED = """
import concurrent_ml as cml
cml.init(namespace="n")

@cml.remote(num_cpus=1)
class Store:
    def __init__(self):
        self.values = {}
    def set(self, key, value):
        self.values[key] = value
    def get(self, key):
        return self.values[key]

store = Store.options(name="store", lifetime="detached", max_restarts=1).remote()
cml.get(store.set.remote("a", 1))
"""

FOUND = """
import concurrent_ml as cml
cml.init(namespace="n")
store = cml.get_actor("store")
print(cml.get(store.get.remote("a")), flush=True)
"""


def test_detached_actors_live_on_and_have_their_names(net: Network):
    a, _, _ = three(net)
    a.python(DETACHED)
    a.kill(Role.HEAD)
    a.cluster_up(num_cpus=0)
    assert a.python(FOUND).stdout == "1\n"


AGAIN = """
import sys
import concurrent_ml as cml
cml.init(namespace="n")

@cml.remote(num_cpus=1, max_restarts=1, max_task_retries=1)
class Here:
    def where(self):
        return cml.get_runtime_context().get_node_id()

here = Here.remote()
print(cml.get(here.where.remote()), flush=True)
sys.stdin.readline()
print(cml.get(here.where.remote()), flush=True)
"""


def test_an_actor_of_a_node_that_is_lost_later_is_made_anew(net: Network):
    a, b, c = three(net)
    nodes = {node["id"]: node["address"].split(":")[0] for node in a.cluster_json("list", "nodes")}
    driver = a.popen_python(AGAIN)
    first = line(driver)
    a.kill(Role.HEAD)
    a.cluster_up(num_cpus=0)
    wait_until(lambda: len(a.cluster_json("list", "nodes")) == 3, 20, "all nodes are back")
    home = b if nodes[first] == b.address else c
    home.kill(Role.WORKER)
    go_on(driver)
    assert line(driver) not in ("", first)
    ended(driver)


def test_a_node_that_died_with_the_head_is_not_waited_for_long(net: Network):
    a, b, _ = three(net)
    ran = a.directory / "ran"
    driver = a.popen_python(WORK.replace("max_retries=0", "max_retries=3"), arguments=[str(ran)])
    assert line(driver) == "runs"
    a.kill(Role.HEAD)
    b.kill(Role.WORKER)
    a.cluster_up(num_cpus=0)
    assert line(driver) == str(sum(range(12)))
    ended(driver)


def test_the_head_may_die_again_and_again(net: Network):
    a, _, _ = three(net)
    ran = a.directory / "ran"
    driver = a.popen_python(WORK, arguments=[str(ran)])
    assert line(driver) == "runs"
    for _ in range(4):
        a.kill(Role.HEAD)
        a.cluster_up(num_cpus=0)
    assert line(driver) == str(sum(range(12)))
    ended(driver)
    assert sorted(int(n) for n in ran.read_text().split()) == list(range(14))


HISTORY = """
import concurrent_ml as cml
cml.init()

@cml.remote(max_retries=0)
def divide(n):
    return 1 / n

refs = [divide.remote(n) for n in range(3)]
cml.wait(refs, num_returns=3)
"""


def test_tasks_that_ended_are_shown_by_the_next_head(net: Network):
    a = net.host("a")
    a.cluster_up(num_cpus=1)
    a.python(HISTORY)

    def shown() -> list[tuple[str, str, str]]:
        return [(task["id"], task["state"], task["error"]) for task in a.cluster_json("list", "tasks")]

    before = shown()
    assert sorted(state for _, state, _ in before) == ["failed", "finished", "finished"]
    history = a.directory / "history.jsonl"
    wait_until(lambda: history.exists() and history.read_text().count("seq") == 3, 10, "they are written")
    a.kill(Role.HEAD)
    a.cluster_up(num_cpus=1)
    assert shown() == before
    failed = next(task for task, state, _ in before if state == "failed")
    assert "division by zero" in a.cluster("why", failed).stdout
    assert (a.cluster_json("status")["tasks"]["finished"], a.cluster_json("status")["tasks"]["failed"]) == (
        2,
        1,
    )
    a.down()
    assert not history.exists()
