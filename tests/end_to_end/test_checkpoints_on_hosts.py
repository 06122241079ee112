"""Actors' states outlive the machines they were taken on."""

import subprocess
from typing import Any

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import sys
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1, resources={"away": 1})
class Model:
    def __init__(self):
        self.weights, self.restored = np.zeros(size), False

    def learn(self):
        self.weights += 1
        cml.checkpoint()

    def more(self):
        self.weights += 100

    def look(self):
        return float(self.weights.sum()) / size, self.restored

    def zone(self):
        here = cml.get_runtime_context().get_node_id()
        return next(node["Labels"]["zone"] for node in cml.nodes() if node["NodeID"] == here)

    def __checkpoint__(self):
        return self.weights

    def __restore__(self, weights):
        self.weights, self.restored = weights.copy(), True

size = int(sys.argv[1])
model = Model.remote()
for _ in range(3):
    cml.get(model.learn.remote(), timeout=30)
cml.get(model.more.remote(), timeout=30)
for _ in range(2):
    print(cml.get(model.zone.remote(), timeout=60), *cml.get(model.look.remote(), timeout=60), flush=True)
    input()
"""


class Program:
    """It says where its actor is and what it has; again when it is told to go on."""

    def __init__(self, host: Host, size: int) -> None:
        self.process = host.popen(
            ["python", "-c", PROGRAM, str(size)], env=host.cluster_environment(), stdin=subprocess.PIPE
        )

    def says(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def alive(host: Host) -> list[Any]:
    return [node for node in host.cluster_json("list", "nodes") if node["state"] == "alive"]


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_state_outlives_its_machine(net: Network, size: int) -> None:
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1)
    for host in (b, c):
        host.cluster_join(a, num_cpus=1, resources={"away": 1}, label={"zone": host.name})
    program = Program(a, size)
    zone, *before = program.says()
    assert before == ["103.0", "False"]
    {"b": b, "c": c}[zone].kill(Role.WORKER)
    wait_until(lambda: len(alive(a)) == 2, 20, "the head to notice")
    program.goes_on()
    elsewhere, *after = program.says()
    assert {zone, elsewhere} == {"b", "c"}
    assert after == ["3.0", "True"], "what came after the last state is lost"
    program.goes_on()
    assert program.process.wait(20) == 0
