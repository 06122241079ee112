"""Placement groups and labels on three hosts, each a network namespace with real daemons in it."""

import re
import subprocess
from typing import Any

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(120)


def three(net: Network) -> tuple[Host, Host, Host]:
    """A head and two that join it, two CPUs each, in zones of their own."""
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=2, label={"zone": "a"})
    b.cluster_join(a, num_cpus=2, label={"zone": "b"})
    c.cluster_join(a, num_cpus=2, label={"zone": "c"})
    return a, b, c


def test_strategies_place_bundles_and_tasks_run_where_theirs_is(net: Network) -> None:
    a, _, _ = three(net)
    text = """
import concurrent_ml as cml
cml.init()

@cml.remote
def node():
    return cml.get_runtime_context().get_node_id()

for strategy, count in [("PACK", 1), ("SPREAD", 3), ("STRICT_PACK", 1), ("STRICT_SPREAD", 3)]:
    size = 0.5 if count == 1 else 2
    group = cml.placement_group([{"CPU": size}] * 3, strategy=strategy)
    assert group.wait(20), strategy
    inside = [cml.PlacementGroupSchedulingStrategy(group, index) for index in range(3)]
    nodes = cml.get([node.options(scheduling_strategy=place, num_cpus=0.5).remote() for place in inside])
    said = cml.placement_group_table(group)["bundles_to_node_id"]
    assert nodes == [said[index] for index in range(3)], (nodes, said)
    assert len(set(nodes)) == count, (strategy, nodes)
    cml.remove_placement_group(group)
print("good")
"""
    assert a.python(text, timeout=90).stdout.split() == ["good"]


def test_a_lost_hosts_bundle_moves_with_its_actor(net: Network) -> None:
    a, b, c = three(net)
    text = """
import time
import concurrent_ml as cml
cml.init()

@cml.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)
class Here:
    def zone(self):
        here = cml.get_runtime_context().get_node_id()
        return next(node["Labels"]["zone"] for node in cml.nodes() if node["NodeID"] == here)

group = cml.placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD", name="pair")
assert group.wait(20)
places = [cml.PlacementGroupSchedulingStrategy(group, index) for index in range(2)]
actors = [Here.options(scheduling_strategy=place).remote() for place in places]
print("zones", *cml.get([actor.zone.remote() for actor in actors]), flush=True)
input()
print("zones", *cml.get([actor.zone.remote() for actor in actors], timeout=60), flush=True)
print("state", cml.placement_group_table(group)["state"], flush=True)
"""
    # The driver's own host keeps its daemon: whichever other has a bundle is killed.
    process = a.popen(["python", "-c", text], env=a.cluster_environment(), stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    before = process.stdout.readline().split()[1:]
    lost = next(zone for zone in before if zone != "a")
    host = b if lost == "b" else c
    host.kill(Role.WORKER)

    def is_lost() -> bool:
        return sum(node["state"] == "alive" for node in a.cluster_json("list", "nodes")) == 2

    wait_until(is_lost, 20, "the head to notice")
    process.stdin.write("\n")
    process.stdin.flush()
    after = process.stdout.readline().split()[1:]
    assert process.stdout.readline().split() == ["state", "CREATED"]
    assert process.wait(20) == 0
    kept = [index for index in range(2) if before[index] != lost]
    assert len(set(after)) == 2
    assert lost not in after
    assert all(after[index] == before[index] for index in kept)


def test_the_command_shows_groups_and_labels_and_why_a_task_waits_for_one(net: Network) -> None:
    a, _, _ = three(net)
    text = """
import concurrent_ml as cml
cml.init(namespace="n")
group = cml.placement_group([{"CPU": 1}] * 2, strategy="SPREAD", name="shown")
large = cml.placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD", name="large")
assert group.wait(20)
place = cml.PlacementGroupSchedulingStrategy(large)
task = cml.remote(lambda: 1).options(scheduling_strategy=place, name="inner").remote()
print(task.task_id(), flush=True)
input()
"""
    process = a.popen(["python", "-c", text], env=a.cluster_environment(), stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    task = process.stdout.readline().strip()
    groups: list[dict[str, Any]] = a.cluster_json("list", "placement-groups")
    states = {group["name"]: (group["strategy"], group["state"]) for group in groups}
    assert states == {"shown": ("SPREAD", "created"), "large": ("STRICT_SPREAD", "pending")}
    shown = a.cluster("list", "placement-groups").stdout
    assert re.search(r"shown +SPREAD +created +0 +1 CPU on", shown), shown
    assert "it waits until 2 CPU for bundle 0" in shown, shown
    why = a.cluster("why", task).stdout
    assert 'it waits for placement group "large"' in why
    assert "2 CPU for bundle" in why
    assert "zone=b" in a.cluster("list", "nodes").stdout
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(20) == 0
    wait_until(
        lambda: {group["state"] for group in a.cluster_json("list", "placement-groups")} <= {"removed"},
        10,
        "end",
    )


def test_labels_choose_hosts_and_a_detached_group_outlives_its_program(net: Network) -> None:
    a, b, _ = three(net)
    text = """
import concurrent_ml as cml
cml.init(namespace="n")
zones = {node["NodeID"]: node["Labels"]["zone"] for node in cml.nodes()}

@cml.remote(num_cpus=0.5)
def zone():
    return zones[cml.get_runtime_context().get_node_id()]

def where(hard, soft=None):
    strategy = cml.NodeLabelSchedulingStrategy(hard=hard, soft=soft)
    return set(cml.get([zone.options(scheduling_strategy=strategy).remote() for _ in range(6)]))

assert where({"zone": cml.In("b")}) == {"b"}
assert where({"zone": cml.NotIn("a", "b")}) == {"c"}
assert "a" in where({"zone": cml.Exists()}, {"zone": cml.In("a")})
group = cml.placement_group([{"CPU": 1}], name="kept", lifetime="detached")
assert group.wait(20)
print("good")
"""
    assert a.python(text, timeout=60).stdout.split() == ["good"]
    later = """
import concurrent_ml as cml
cml.init(namespace="n")
group = cml.get_placement_group("kept")
place = cml.PlacementGroupSchedulingStrategy(group, 0)
print(cml.get(cml.remote(lambda: "inside").options(scheduling_strategy=place).remote(), timeout=20))
cml.remove_placement_group(group)
"""
    assert b.python(later, timeout=60).stdout.split() == ["inside"]
