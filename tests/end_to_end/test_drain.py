"""Nodes that leave on purpose: `cluster drain`, and SIGTERM to a worker daemon."""

import json
import signal

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(120)


def two(net: Network) -> tuple[Host, Host]:
    """A head with one CPU, and a node `b` with two and the resource `there`."""
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=2, resources='{"there": 2}')
    return a, b


def node_id(a: Host, host: Host) -> str:
    """What the head calls the node on this host."""
    nodes = {node["address"].split(":")[0]: node["id"] for node in a.cluster_json("list", "nodes")}
    return nodes[host.address]


PROGRAM = """
import sys, time
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote(resources={"there": 1}, max_retries=0)
def slow(seconds):
    time.sleep(seconds)
    return cml.get_runtime_context().get_node_id()

@cml.remote(resources={"there": 0.001})
def large(n):
    return np.full(300_000, n)

arrays = [large.remote(n) for n in range(int(sys.argv[1]))]
cml.get(arrays[-1:])
running = slow.remote(3)
time.sleep(0.3)
print("ready", flush=True)
sys.stdin.readline()
there = cml.get(running)
print(len({there}), sum(int(array.sum()) for array in cml.get(arrays)) // 300_000, flush=True)
"""


def test_a_drained_node_ends_what_it_runs_and_its_objects_move(net: Network):
    a, b = two(net)
    driver = a.popen_python(PROGRAM, arguments=["20"])
    assert driver.stdout is not None
    assert driver.stdin is not None
    assert driver.stdout.readline() == "ready\n"
    drained = a.cluster("drain", node_id(a, b), "--deadline", "60s")
    assert "has left the cluster" in drained.stdout
    assert "waits for 1 task" in drained.stderr
    assert [node["address"].split(":")[0] for node in a.cluster_json("list", "nodes")] == [a.address]
    wait_until(lambda: not b.processes(Role.WORKER), 10, "the daemon has ended")
    # The task had no retries, and the arrays' only copies were there.
    out, err = driver.communicate("\n", timeout=30)
    assert out == "1 190\n", err
    assert driver.returncode == 0


@pytest.mark.parametrize("by", ["terminate", "interrupt"])
def test_sigterm_lets_what_runs_end_and_sigint_does_not(net: Network, by: str):
    a, b = two(net)
    driver = a.popen_python(PROGRAM, arguments=["0"])
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    for daemon in b.processes(Role.WORKER):
        daemon.kill(signal.SIGTERM if by == "terminate" else signal.SIGINT, deadline=20)
    out, err = driver.communicate("\n", timeout=30)
    if by == "terminate":
        assert out == "1 0\n", err
    else:
        assert "NodeLostError" in err


def test_what_still_runs_at_the_deadline_runs_again_elsewhere(net: Network):
    a, b = two(net)
    text = """
import sys, time
import concurrent_ml as cml
cml.init()

@cml.remote(scheduling_strategy="SPREAD", num_cpus=0.5)
def where(first):
    name = cml.get_runtime_context().get_node_id()
    if name == first:
        time.sleep(60)
    return name

b = sys.argv[1]
refs = [where.remote(b) for _ in range(4)]
print("ready", flush=True)
print(b not in cml.get(refs))
"""
    there = node_id(a, b)
    driver = a.popen_python(text, arguments=[there])
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    wait_until(lambda: b.processes(Role.EXECUTOR), 10, "one runs on b")
    a.cluster("drain", node_id(a, b), "--deadline", "1s")
    out, err = driver.communicate(timeout=30)
    assert out == "True\n", err


def test_a_node_that_does_not_exist_is_refused_with_the_names_there_are(net: Network):
    a, b = two(net)
    refused = a.cluster("drain", "nobody", check=False)
    assert refused.returncode != 0
    assert 'there is no node "nobody"' in refused.stderr
    assert node_id(a, a) in refused.stderr
    assert node_id(a, b) in refused.stderr
    view = json.loads(a.cluster("drain", node_id(a, b), "--no-wait", "--json").stdout)
    assert view["left"] is False


MOVES = """
import sys
import concurrent_ml as cml
cml.init()

class Model:
    def __init__(self):
        self.steps, self.said = 0, []

    def learn(self):
        self.steps += 1
        return self.steps

    def look(self):
        here = cml.get_runtime_context().get_node_id()
        zone = next(node["Labels"]["zone"] for node in cml.nodes() if node["NodeID"] == here)
        return self.steps, zone, self.said

    def __checkpoint__(self):
        return self.steps

    def __restore__(self, steps):
        self.steps = steps
        self.said.append("restored")

class Coroutines(Model):
    async def learn(self):
        self.steps += 1
        return self.steps

cls = {"plain": Model, "threads": Model, "coroutines": Coroutines}[sys.argv[1]]
many = {"max_concurrency": 4} if sys.argv[1] == "threads" else {}
# No restarts: it did not fail.
model = cml.remote(resources={"away": 1}, max_task_retries=3, **many)(cls).remote()
for _ in range(100):
    cml.get(model.learn.remote())
print(cml.get(model.look.remote())[1], flush=True)
sys.stdin.readline()
print(*cml.get(model.look.remote(), timeout=30), cml.get(model.learn.remote(), timeout=30), flush=True)
"""


@pytest.mark.parametrize("kind", ["plain", "threads", "coroutines"])
def test_an_actor_that_can_keep_its_state_moves_with_it(net: Network, kind: str):
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1)
    for host in (b, c):
        host.cluster_join(a, num_cpus=1, resources={"away": 1}, label={"zone": host.name})
    driver = a.popen_python(MOVES, arguments=[kind])
    assert driver.stdout is not None
    zone = driver.stdout.readline().strip()
    leaves, stays = (b, c) if zone == "b" else (c, b)
    drained = a.cluster("drain", node_id(a, leaves), "--deadline", "60s")
    assert "has left the cluster" in drained.stdout
    out, err = driver.communicate("\n", timeout=30)
    assert out == f"100 {stays.name} ['restored'] 101\n", err
