"""Nodes that are killed, paused or cut off: what was lost is made again, and who returns is new."""

import signal

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(120)


def three(net: Network) -> tuple[Host, Host, Host]:
    """A head without room for tasks, and two nodes with two CPUs each."""
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=0)
    b.cluster_join(a, num_cpus=2, resources='{"b": 8}')
    c.cluster_join(a, num_cpus=2)
    return a, b, c


def live_addresses(a: Host) -> set[str]:
    """Of the nodes that the head has."""
    return {node["address"].split(":")[0] for node in a.cluster_json("list", "nodes")}


CHAIN = """
import sys
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote
def start(n):
    return np.full(200_000, n)

@cml.remote
def plus(array, n):
    return array + n

strategy = cml.NodeAffinitySchedulingStrategy(sys.argv[1], soft=True)
first = [start.options(scheduling_strategy=strategy).remote(n) for n in range(8)]
second = [plus.options(scheduling_strategy=strategy).remote(ref, 10) for ref in first]
# Between them lies what nobody holds any more when it is lost.
del first
third = [plus.options(scheduling_strategy=strategy).remote(ref, 100) for ref in second]
cml.wait(third, num_returns=8, fetch_local=False)
print("made", flush=True)
sys.stdin.readline()
print([int(array[0]) for array in cml.get(third)], [int(array[-1]) for array in cml.get(second)], flush=True)
"""


def test_arrays_that_went_with_a_node_are_made_again_from_the_first(net: Network):
    a, b, _ = three(net)
    [id_of_b] = [n["id"] for n in a.cluster_json("list", "nodes") if n["address"].startswith(b.address)]
    driver = a.popen_python(CHAIN, arguments=[id_of_b])
    assert driver.stdout is not None
    assert driver.stdout.readline() == "made\n"
    b.kill(Role.WORKER)
    out, err = driver.communicate("\n", timeout=60)
    assert driver.returncode == 0, err
    assert out == f"{[n + 110 for n in range(8)]} {[n + 10 for n in range(8)]}\n"


LOST = """
import sys
import numpy as np
import concurrent_ml as cml
from concurrent_ml.exceptions import ObjectLostError
cml.init()

@cml.remote(resources={"b": 1}, max_retries=0)
def once():
    return np.zeros(200_000)

@cml.remote(resources={"b": 1})
def put():
    return cml.put(np.zeros(200_000))

once_only, inside = once.remote(), cml.get(put.remote())
cml.wait([once_only], fetch_local=False)
print("made", flush=True)
sys.stdin.readline()
for ref in (once_only, inside):
    try:
        cml.get(ref)
    except ObjectLostError as error:
        print(error, flush=True)
"""


def test_what_cannot_be_made_again_says_who_had_it_and_why(net: Network):
    a, b, _ = three(net)
    driver = a.popen_python(LOST)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "made\n"
    b.kill(Role.WORKER)
    out, err = driver.communicate("\n", timeout=60)
    assert driver.returncode == 0, err
    lines = out.splitlines()
    assert len(lines) == 2, out
    assert all("node" in line and "lost" in line for line in lines), out
    assert "max_retries" in lines[0], out
    assert "put" in lines[1], out


COUNTED = """
import os, sys, time
import concurrent_ml as cml
cml.init()

@cml.remote(resources={"b": 1} if len(sys.argv) > 1 else None)
def where(n):
    time.sleep(0.2)
    return cml.get_runtime_context().get_node_id()

running = [where.remote(n) for n in range(20)]
cml.get(running[0])
print("runs", flush=True)
sys.stdin.readline()
print(len(cml.get(running)), flush=True)
sys.stdin.readline()
print(len(set(cml.get([where.remote(n) for n in range(8)]))), flush=True)
"""


@pytest.mark.parametrize("how", ["paused", "cut"])
def test_a_node_that_returns_joins_as_a_new_one(net: Network, how: str):
    a, b, c = three(net)
    driver = a.popen_python(COUNTED)
    assert driver.stdout is not None
    assert driver.stdin is not None
    assert driver.stdout.readline() == "runs\n"
    # A node is its daemon and what it started.
    daemons = b.processes(Role.WORKER)
    if how == "cut":
        net.cut(b)
    else:
        for process in b.processes():
            process.pause()
    wait_until(lambda: live_addresses(a) == {a.address, c.address}, 20, "the node is lost")
    driver.stdin.write("\n")
    driver.stdin.flush()
    assert driver.stdout.readline() == "20\n"
    if how == "cut":
        net.restore(b)
    else:
        for process in b.processes():
            process.resume()
    wait_until(lambda: b.address in live_addresses(a), 20, "the node is back")
    # The same daemon, and it takes work again.
    assert [p.pid for p in b.processes(Role.WORKER)] == [p.pid for p in daemons]
    out, err = driver.communicate("\n", timeout=60)
    assert driver.returncode == 0, err
    assert out == "2\n"


def test_a_killed_daemon_takes_its_executors_with_it(net: Network):
    a, b, _ = three(net)
    driver = a.popen_python(COUNTED)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "runs\n"
    for daemon in b.processes(Role.WORKER):
        daemon.kill(signal.SIGKILL)
    wait_until(lambda: not b.processes(), 10, "nothing of the node is left")
    out, err = driver.communicate("\n\n", timeout=60)
    assert driver.returncode == 0, err
    assert out.splitlines()[0] == "20"
