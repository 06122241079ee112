"""Clusters of several hosts, each a network namespace with real daemons in it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(180)


def three(net: Network, **flags: Any) -> tuple[Host, Host, Host]:
    """A head and two that join it, one CPU each."""
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1, **flags)
    b.cluster_join(a, num_cpus=1, **flags)
    c.cluster_join(a, num_cpus=1, **flags)
    return a, b, c


def alive(host: Host) -> int:
    """How many nodes the head holds to be alive."""
    return sum(node["state"] == "alive" for node in host.cluster_json("list", "nodes"))


@pytest.mark.parametrize("driver", ["on a host of the cluster", "on a host without a daemon"])
def test_the_getting_started_program_runs_on_a_cluster_elsewhere(
    net: Network, getting_started: Path, driver: str
):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=2)
    if driver == "on a host of the cluster":
        b.cluster_join(a, num_cpus=1)
    else:
        b.join_cluster_of(a)
    assert b.python(getting_started, timeout=120).stdout.splitlines()[-1] == "Models trained concurrently!"


def test_300_tasks_with_arrays_made_on_one_host_run_on_all_three(net: Network):
    a, _, _ = three(net)
    text = """
import json, subprocess, time
import numpy as np
import concurrent_ml as cml

cml.init()

@cml.remote
def add(array, number):
    return float(array.sum()) + number, cml.get_runtime_context().get_node_id()

refs = [add.remote(np.full(500_000, i, dtype=np.float64), i) for i in range(300)]
results = cml.get(refs)
wrong = [i for i, (total, _) in enumerate(results) if total != 500_000 * i + i]
del refs
begun = time.monotonic()
while left := json.loads(subprocess.check_output(["cluster", "list", "objects", "--json"])):
    assert time.monotonic() - begun < 1, f"{len(left)} objects are left a second after the last ref's end"
print(json.dumps({"wrong": wrong, "nodes": len({node for _, node in results})}))
"""
    shown = a.python(text, timeout=150).stdout.splitlines()[-1]
    assert shown == '{"wrong": [], "nodes": 3}'


def test_nothing_is_left_on_any_host_after_down(net: Network):
    hosts = three(net)
    text = """
import numpy as np
import concurrent_ml as cml
cml.init()
f = cml.remote(lambda x: x * 2)
print(sum(x.sum() for x in cml.get([f.remote(np.ones(500_000)) for _ in range(30)])))
"""
    assert hosts[1].python(text).stdout.strip() == "30000000.0"
    for host in reversed(hosts):
        host.down()
    net.assert_nothing_left()


def test_a_large_object_is_taken_from_the_host_that_has_it(net: Network):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1, resources={"a": 1})
    b.cluster_join(a, num_cpus=1, resources={"b": 1})
    text = """
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote(resources={"a": 1})
def make():
    return np.arange(30_000_000)

@cml.remote(resources={"b": 1})
def check(array):
    return bool((array == np.arange(30_000_000)).all()), cml.get_runtime_context().get_node_id()

ref = make.remote()
print(*cml.get(check.remote(ref)))
"""
    assert a.python(text).stdout.split()[0] == "True"


def test_a_task_runs_where_its_large_argument_is(net: Network):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1, resources={"b": 1})
    text = """
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote(resources={"b": 0.01})
def make():
    return np.ones(5_000_000), cml.get_runtime_context().get_node_id()

@cml.remote
def use(pair):
    return pair[1] == cml.get_runtime_context().get_node_id()

ref = make.remote()
cml.wait([ref], fetch_local=False)
print([cml.get(use.remote(ref)) for _ in range(10)].count(True))
"""
    assert a.python(text).stdout.strip() == "10"


def test_labels_and_resources_of_a_joined_host_are_told(net: Network):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=3, resources={"tpu": 2}, label={"zone": "west"})
    nodes = {node["address"].partition(":")[0]: node for node in a.cluster_json("list", "nodes")}
    assert nodes[b.address]["resources"]["total"]["CPU"] == 3
    assert nodes[b.address]["resources"]["total"]["tpu"] == 2
    assert nodes[b.address]["labels"]["zone"] == "west"


def test_a_task_nobody_can_run_yet_warns_within_a_second_and_runs_when_a_host_joins(net: Network):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1)
    text = """
import concurrent_ml as cml
cml.init()
f = cml.remote(resources={"unicorn": 1})(lambda: cml.get_runtime_context().get_node_id())
ref = f.remote()
print("submitted", flush=True)
print("ran on", cml.get(ref))
"""
    path = a.directory / "waits.py"
    path.write_text(text)
    log = a.directory / "waits.log"
    with log.open("w") as stream:
        driver = a.popen(["python", path], a.cluster_environment(), stdout=stream, stderr=stream)
    wait_until(lambda: "submitted" in log.read_text(), 20, "the driver has submitted")
    wait_until(lambda: "unicorn" in log.read_text(), 1, "the driver is warned, by the resource's name")
    assert driver.poll() is None
    b.cluster_join(a, num_cpus=1, resources={"unicorn": 1})
    wait_until(lambda: driver.poll() is not None, 30, "the task runs on the host that joined")
    assert driver.returncode == 0
    assert "ran on" in log.read_text()


def test_tasks_of_a_host_that_is_lost_run_again_elsewhere(net: Network):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1)
    folder = a.directory / "signs"
    folder.mkdir()
    text = """
import os, pathlib, sys, time
import concurrent_ml as cml
cml.init()
folder = pathlib.Path(sys.argv[1])

@cml.remote
def run(number):
    (folder / f"{number} {os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return number

print(sorted(cml.get([run.remote(i) for i in range(2)])), flush=True)
"""
    path = a.directory / "run.py"
    path.write_text(text)
    driver = a.popen(["python", path, folder], a.cluster_environment())

    def running_on_b() -> set[int]:
        return {int(sign.name.split()[1]) for sign in folder.iterdir()} & {p.pid for p in b.processes()}

    wait_until(running_on_b, 30, "one of the two tasks runs on b")
    b.kill(Role.WORKER)
    (folder / "go").touch()
    out, err = driver.communicate(timeout=90)
    assert out.strip() == "[0, 1]", err
    assert len(list(folder.iterdir())) == 4, "go, two first attempts, and one second attempt"


def test_a_host_that_is_cut_off_is_given_up_and_comes_back(net: Network):
    a, b, _ = three(net)
    net.cut(b)
    wait_until(lambda: alive(a) == 2, 60, "the head gives up the host that is cut off")
    net.restore(b)
    wait_until(lambda: alive(a) == 3, 60, "the host is back")
    text = """
import concurrent_ml as cml
cml.init()
same = cml.remote(lambda x: x)
print(sum(cml.get([same.remote(i) for i in range(100)])))
"""
    assert a.python(text).stdout.strip() == "4950"


def test_the_wrong_token_keeps_a_host_out(net: Network):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1)
    done = b.cluster(
        "up", "--join", a.head_address, "--host", b.address, check=False, env={"CLUSTER_TOKEN": "wrong"}
    )
    assert done.returncode != 0
    assert re.search("token", done.stderr)
    assert b.processes() == []
    assert alive(a) == 1


def test_daemons_listen_on_loopback_unless_told_otherwise(net: Network):
    a, b = net.host("a"), net.host("b")
    a.run(["cluster", "up"])
    b.join_cluster_of(a)
    done = b.cluster("status", check=False)
    assert done.returncode != 0
    assert a.head_address in done.stderr


def test_work_goes_on_over_a_slow_link(net: Network):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1)
    net.slow(b, delay="30ms", rate="200mbit")
    text = """
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote
def total(array):
    return int(array.sum())

print(sum(cml.get([total.remote(np.full(100_000, 1)) for _ in range(50)])))
"""
    assert b.python(text, timeout=90).stdout.strip() == "5000000"


def test_the_output_of_tasks_on_other_hosts_reaches_the_driver(net: Network):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1, resources={"b": 1})
    text = """
import concurrent_ml as cml
cml.init()

@cml.remote(resources={"b": 1})
def chatty():
    print("hello from afar")

cml.get(chatty.remote())
cml.shutdown()
"""
    done = a.python(text)
    line = next(line for line in (done.stdout + done.stderr).splitlines() if "hello from afar" in line)
    assert "chatty" in line.partition("hello")[0]


def test_a_full_disk_while_spilling_is_an_error_that_says_so_and_loses_nothing(net: Network):
    a = net.host("a")
    # The run directory, where objects are spilled to, is a disk of 32 MiB.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs", a.directory], check=True)
    try:
        a.cluster_up(num_cpus=1, object_store_memory="64MiB")
        text = """
import numpy as np
import concurrent_ml as cml
cml.init()
refs = []
try:
    for number in range(64):
        refs.append(cml.put(np.full(2**19, number)))
except (OSError, cml.exceptions.ObjectStoreFullError) as error:
    print("told:", error)
print(len(refs) >= 10, all((cml.get(ref) == number).all() for number, ref in enumerate(refs)))
"""
        shown = a.python(text).stdout
        assert re.search(r"(?i)told: .*(disk|space|spill)", shown)
        assert shown.splitlines()[-1] == "True True"
    finally:
        a.kill_everything()
        subprocess.run(["umount", "--lazy", a.directory], check=True)
