"""Several heads on one etcd: one leads, and when it fails another does."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from testkit import CommandFailed, Host, Network, Role, start_etcd, wait_until

pytestmark = pytest.mark.timeout(180)

# A standby leads within five seconds of whatever became of the leader.
FAILOVER = 5.0


class Cluster:
    """Heads on hosts a and b; members of etcd on a, b and c, or on others; a worker that joined by a head on c."""

    def __init__(self, net: Network, etcd_apart: bool = False) -> None:
        self.net = net
        self.a, self.b, self.c = net.host("a"), net.host("b"), net.host("c")
        self.members = [net.host(f"e{n}") for n in range(3)] if etcd_apart else [self.a, self.b, self.c]
        self.url = start_etcd(self.members)
        self.a.cluster_up(num_cpus=1, state=self.url)
        self.b.cluster_up(num_cpus=1, state=self.url, env={"CLUSTER_TOKEN": self.a.token})
        # By the head that stands by.
        self.c.cluster_join(self.b, num_cpus=1)

    def leader(self, asked_on: Host) -> str:
        """The address of the leader, as this host's head and those it names say."""
        return str(asked_on.cluster_json("status")["address"])


@pytest.fixture
def cluster(net: Network) -> Cluster:
    return Cluster(net)


def run_on(host: Host, address: str = "", timeout: float = 60) -> int:
    """How many nodes run something for a program that is told this address."""
    text = f"""
import concurrent_ml as cml
cml.init({address!r} or None)

@cml.remote(scheduling_strategy="SPREAD")
def where():
    import time
    time.sleep(0.2)
    return cml.get_runtime_context().get_node_id()

print(len(set(cml.get([where.remote() for _ in range(12)]))))
"""
    return int(host.python(text, timeout=timeout).stdout)


def test_any_heads_address_will_do(cluster: Cluster) -> None:
    a, b, c = cluster.a, cluster.b, cluster.c
    for host in (a, b, c):
        status = host.cluster_json("status")
        assert (status["address"], status["standbys"]) == (a.head_address, [b.head_address])
        assert status["nodes"] == 3
    assert f"standbys  {b.head_address}" in b.cluster("status").stdout
    elsewhere = cluster.net.host("d")
    elsewhere.join_cluster_of(b)
    assert run_on(elsewhere) == 3
    # Nobody is at the first of these.
    assert run_on(elsewhere, f"{cluster.net.SUBNET}.99:8264,{b.head_address}") == 3


def lead_elsewhere(cluster: Cluster, fail: Callable[[Cluster], object]) -> float:
    """Has the leader, on a, fail; returns after how many seconds the head on b leads."""
    log = cluster.b.directory / "logs/head.log"
    assert "head leads" not in log.read_text()
    fail(cluster)
    begun = time.monotonic()
    wait_until(lambda: "head leads" in log.read_text(), 20, "the standby leads")
    took = time.monotonic() - begun
    assert cluster.leader(cluster.b) == cluster.b.head_address
    return took


def cut_off_from_etcd(cluster: Cluster) -> None:
    """It goes on to reach everybody else."""
    for member in cluster.members:
        cluster.a.run(["ip", "route", "add", "blackhole", f"{member.address}/32"])


def reach_etcd(cluster: Cluster) -> None:
    for member in cluster.members:
        cluster.a.run(["ip", "route", "del", "blackhole", f"{member.address}/32"])


@dataclass
class Fault:
    """What becomes of the leader, on host a."""

    begin: Callable[[Cluster], object]
    end: Callable[[Cluster], object] | None
    etcd_apart: bool = False
    # Whether the machine's worker can go to the new leader.
    whole_machine: bool = False


FAULTS = {
    "killed": Fault(lambda cluster: cluster.a.kill(Role.HEAD), None),
    "paused": Fault(lambda cluster: cluster.a.pause(Role.HEAD), lambda cluster: cluster.a.resume(Role.HEAD)),
    "cut off from all": Fault(
        lambda cluster: cluster.net.cut(cluster.a),
        lambda cluster: cluster.net.restore(cluster.a),
        whole_machine=True,
    ),
    "cut off from etcd": Fault(cut_off_from_etcd, reach_etcd, etcd_apart=True),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_standby_leads_within_five_seconds(net: Network, name: str) -> None:
    fault = FAULTS[name]
    cluster = Cluster(net, fault.etcd_apart)
    a, b, c = cluster.a, cluster.b, cluster.c
    assert cluster.leader(b) == a.head_address
    term = b.cluster_json("status")["term"]
    took = lead_elsewhere(cluster, fault.begin)
    assert took < FAILOVER
    assert b.cluster_json("status")["term"] > term
    nodes = 2 if fault.whole_machine else 3
    wait_until(
        lambda: c.cluster_json("status")["nodes"] == nodes, 15, f"{nodes} nodes are with the new leader"
    )
    print(f"{name}: led from elsewhere after {took:.1f} s")
    assert run_on(c) == nodes
    assert run_on(c, f"{a.head_address},{b.head_address}") == nodes
    if fault.end is None:
        return
    fault.end(cluster)
    # The old leader learns that it does not lead, and says so.
    wait_until(lambda: c.cluster_json("status")["nodes"] == 3, 30, "the node that was cut off is back")
    wait_until(lambda: cluster.leader(a) == b.head_address, 10, "the old leader names the new one")
    wait_until(lambda: b.cluster_json("status")["standbys"] == [a.head_address], 10, "it stands by")
    assert run_on(c, a.head_address) == 3


WORK = """
import pathlib, sys, time
import numpy as np
import concurrent_ml as cml
cml.init()
ran = pathlib.Path(sys.argv[1])

@cml.remote
def slow(n):
    with open(ran, "a") as file:
        file.write(f"{n}\\n")
    time.sleep(1)
    return np.full(50_000, n)

@cml.remote
def total(*arrays):
    return sum(int(array[0]) for array in arrays)

refs = [slow.remote(n) for n in range(18)]
whole = total.remote(*refs)
cml.wait(refs[:1], num_returns=1)
print("runs", flush=True)
print(cml.get(whole), flush=True)
"""


@pytest.mark.parametrize("name", list(FAULTS))
def test_work_goes_on_with_the_next_leader(net: Network, name: str) -> None:
    fault = FAULTS[name]
    cluster = Cluster(net, fault.etcd_apart)
    ran = cluster.c.directory / "ran"
    driver = cluster.c.popen_python(WORK, arguments=[str(ran)])
    assert driver.stdout is not None
    assert driver.stdout.readline() == "runs\n"
    lead_elsewhere(cluster, fault.begin)
    out, err = driver.communicate(timeout=60)
    assert (driver.returncode, out) == (0, f"{sum(range(18))}\n"), err
    starts = sorted(int(n) for n in ran.read_text().split())
    if fault.whole_machine:
        # What ran on the machine that is gone ran again.
        assert set(starts) == set(range(18))
    else:
        assert starts == list(range(18))


def test_a_leader_that_is_told_to_end_hands_over_at_once(cluster: Cluster) -> None:
    took = lead_elsewhere(cluster, lambda cluster: cluster.a.down())
    assert took < 3
    assert json.loads(cluster.b.cluster("status", "--json").stdout)["address"] == cluster.b.head_address


def test_what_is_wrong_with_etcd_is_said(net: Network) -> None:
    a, b, c = net.host("a"), net.host("b"), net.host("c")

    def error(url: str) -> str:
        with pytest.raises(CommandFailed) as failed:
            a.cluster_up(num_cpus=1, state=url)
        return str(failed.value)

    assert "write etcd://HOST:PORT" in error("http://h1:2379")
    assert "no etcd answers" in error(f"etcd://{b.address}")
    url = start_etcd([a, b, c])
    a.cluster_up(num_cpus=1, state=url)
    a.down()
    net.cut(b)
    net.cut(c)
    assert "has no quorum" in error(url)
