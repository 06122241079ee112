"""Streams between hosts, each a network namespace with real daemons in it."""

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(180)


def three(net: Network) -> tuple[Host, Host, Host]:
    """A head and two that join it."""
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1, resources={"far": 1})
    c.cluster_join(a, num_cpus=1, resources={"far": 1})
    return a, b, c


@pytest.mark.parametrize("driver", ["on a host of the cluster", "on a host without a daemon"])
def test_streams_from_other_hosts_are_read_while_they_are_made(net: Network, driver: str):
    hosts = three(net)
    reader = hosts[0]
    if driver == "on a host without a daemon":
        reader = net.host("d")
        reader.join_cluster_of(hosts[0])
    text = """
import asyncio
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote(resources={"far": 1}, stream_max_items=3)
def arrays(start):
    for i in range(20):
        yield np.full(50_000, start + i), cml.get_runtime_context().get_node_id()

@cml.remote(resources={"far": 1}, num_cpus=0)
class Source:
    @cml.method(stream_max_items=2)
    async def numbers(self):
        for i in range(20):
            await asyncio.sleep(0.001)
            yield i

one, two = arrays.remote(0), arrays.remote(100)
nodes = set()
for i in range(20):
    for start, gen in ((0, one), (100, two)):
        array, node = cml.get(next(gen), timeout=30)
        assert (array == start + i).all()
        nodes.add(node)
assert next(one, None) is None and next(two, None) is None
assert len(nodes) == 2

@cml.remote
def total(refs):
    return sum(int(cml.get(ref)[0][0]) for ref in refs)

assert cml.get(total.remote(list(arrays.remote(0))), timeout=60) == sum(range(20))
source = Source.remote()
assert cml.get(list(source.numbers.remote()), timeout=60) == list(range(20))

async def read():
    return [await ref async for ref in source.numbers.remote()]

assert asyncio.run(asyncio.wait_for(read(), 60)) == list(range(20))
print("all right")
"""
    assert reader.python(text, timeout=120).stdout.strip() == "all right"


def test_a_stream_of_a_host_that_is_lost_goes_on_elsewhere(net: Network):
    a, b, c = three(net)
    folder = a.directory / "signs"
    folder.mkdir()
    text = """
import os, pathlib, sys, time
import numpy as np
import concurrent_ml as cml
cml.init()
folder = pathlib.Path(sys.argv[1])

@cml.remote(resources={"far": 1}, stream_max_items=5)
def arrays():
    (folder / f"{os.getpid()}").touch()
    for i in range(20):
        yield i, np.full(50_000, i)

gen = arrays.remote()
# Taken, and not fetched from where they are: they are lost with their host, and made again.
refs = [next(gen) for _ in range(5)]
(folder / "taken").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
refs += list(gen)
values = [cml.get(ref, timeout=90) for ref in refs]
print([i for i, _ in values] == list(range(20)), all((array == i).all() for i, array in values))
"""
    path = a.directory / "run.py"
    path.write_text(text)
    driver = a.popen(["python", path, folder], a.cluster_environment())
    wait_until((folder / "taken").exists, 30, "some items are taken")
    pids = {int(sign.name) for sign in folder.iterdir() if sign.name.isdigit()}
    runs_on = next(host for host in (b, c) if pids & {process.pid for process in host.processes()})
    runs_on.kill(Role.WORKER)
    (folder / "go").touch()
    out, err = driver.communicate(timeout=120)
    assert out.strip() == "True True", err
    assert len([sign for sign in folder.iterdir() if sign.name.isdigit()]) == 2, "it was tried twice"


def test_a_reader_whose_host_is_lost_ends_its_producers_elsewhere(net: Network):
    a, b, c = three(net)
    folder = a.directory / "signs"
    folder.mkdir()
    text = """
import os, pathlib, sys, time
import concurrent_ml as cml
cml.init()
folder = pathlib.Path(sys.argv[1])

@cml.remote(num_cpus=1)
def waits():
    (folder / f"{os.getpid()}").touch()
    while True:
        time.sleep(0.01)
        yield 1

gens = [waits.remote() for _ in range(2)]
for _ in range(10):
    for gen in gens:
        next(gen)
(folder / "reads").touch()
time.sleep(1000)
"""
    path = b.directory / "run.py"
    path.write_text(text)
    b.popen(["python", path, folder], b.cluster_environment())
    wait_until((folder / "reads").exists, 30, "it reads")
    b.kill_everything()
    names = [sign.name for sign in folder.iterdir() if sign.name.isdigit()]

    def none_left() -> bool:
        running = {str(process.pid) for host in (a, c) for process in host.processes()}
        return not running & set(names)

    wait_until(none_left, 60, "the producers end")


def test_items_that_were_lost_with_their_host_after_the_stream_ended_are_made_again(net: Network):
    a, b, c = three(net)
    text = """
import sys
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote(resources={"far": 1}, stream_max_items=2)
def arrays():
    for i in range(6):
        yield np.full(100_000, i), cml.get_runtime_context().get_node_id()

generator = arrays.remote()
refs = list(generator)
node = cml.get(refs[0])[1]
print(next(known["NodeManagerAddress"] for known in cml.nodes() if known["NodeID"] == node), flush=True)
del refs[1]
sys.stdin.readline()
values = cml.get(refs, timeout=60)
print([int(array[0]) for array, _ in values], node in {made for _, made in values}, flush=True)
"""
    driver = a.popen_python(text)
    assert driver.stdout is not None
    address = driver.stdout.readline().strip()
    lost = b if b.address == address else c
    lost.kill(Role.WORKER)
    wait_until(
        lambda: len([node for node in a.cluster_json("list", "nodes") if node["state"] == "alive"]) == 2,
        20,
        "the head to notice",
    )
    out, err = driver.communicate("\n", timeout=90)
    # What the driver read before it may still have: the rest comes from the other host.
    assert out.startswith("[0, 2, 3, 4, 5] "), err
