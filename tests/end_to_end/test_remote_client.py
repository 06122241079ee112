"""A driver on a host without a daemon: its link is cut, it is stopped, its gateway ends, and it goes on."""

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).resolve().parents[2]


def cluster_and_laptop(net: Network, **flags: Any) -> tuple[Host, Host]:
    """A cluster of one host, and a host that knows only its address and token."""
    server, laptop = net.host("server"), net.host("laptop")
    server.cluster_up(num_cpus=2, **flags)
    laptop.join_cluster_of(server)
    return server, laptop


def line(process: "subprocess.Popen[str]", word: str) -> None:
    """Reads the program's next line, which must be this."""
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if said != word:
        process.kill()
        raise AssertionError(f"said {said!r} instead of {word!r}: {process.communicate()[1]}")


def go(process: "subprocess.Popen[str]") -> None:
    """Lets a program go on that waits for a line."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: "subprocess.Popen[str]", timeout: float = 60) -> tuple[int, str, str]:
    """Its status and what it printed."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


# Everything that can be under way while there is no connection.
BUSY = """
import sys, threading, time
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote(num_cpus=0)
def slow(seconds):
    time.sleep(seconds)
    return seconds

@cml.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.calls = []
    def add(self, number, seconds=0.0):
        time.sleep(seconds)
        self.calls.append(number)
        return number
    def seen(self):
        return self.calls

@cml.remote(num_cpus=0)
def stream(items, pause):
    for i in range(items):
        time.sleep(pause)
        yield np.full(2_000, i)

small, large = cml.put({"small": 1}), cml.put(np.arange(500_000))
counter = Counter.remote()
assert cml.get(counter.add.remote(-1)) == -1
items = stream.remote(200, PAUSE / 200)
first = cml.get(next(items))
waiting = slow.remote(PAUSE)
calls = [counter.add.remote(i, PAUSE / 100) for i in range(100)]
puts = []
def put_all():
    for i in range(300):
        puts.append(cml.put(np.full(50_000, i)))
        time.sleep(PAUSE / 300)
thread = threading.Thread(target=put_all)
thread.start()
print("busy", flush=True)
assert cml.get(waiting, timeout=120) == PAUSE
assert cml.get(small) == {"small": 1} and int(cml.get(large, timeout=60).sum()) == 124_999_750_000
assert cml.get(calls, timeout=120) == list(range(100))
assert cml.get(counter.seen.remote(), timeout=60) == [-1, *range(100)]
numbers = [int(cml.get(ref, timeout=60)[0]) for ref in items]
assert int(first[0]) == 0 and numbers == list(range(1, 200)), numbers
thread.join()
assert [int(cml.get(ref, timeout=60)[-1]) for ref in puts] == list(range(300))
print("done", flush=True)
"""


def test_a_cut_link_is_no_end(net: Network):
    server, laptop = cluster_and_laptop(net)
    program = laptop.popen_python(BUSY.replace("PAUSE", "8.0"))
    line(program, "busy")
    net.cut(laptop)
    # Until both ends have noticed.
    log = server.directory / "logs" / "worker.log"
    wait_until(lambda: "lost touch with a remote client" in log.read_text(), 20, "the gateway notices")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 6, 10, "the user is told")
    net.restore(laptop)
    line(program, "done")
    status, _, err = end(program)
    assert status == 0, err
    assert err.count("lost (") == 1, err
    assert "trying again for up to 10 min" in err, err
    assert err.count(f"the connection to the cluster at {server.head_address} is back") == 1, err
    assert "remote client is back" in log.read_text()


def test_a_client_that_is_stopped_goes_on(net: Network):
    server, laptop = cluster_and_laptop(net)
    program = laptop.popen_python(BUSY.replace("PAUSE", "6.0"))
    line(program, "busy")
    stopped = next(p for p in laptop.processes() if p.pid == program.pid)
    stopped.pause()
    log = server.directory / "logs" / "worker.log"
    wait_until(lambda: "lost touch with a remote client" in log.read_text(), 20, "the gateway notices")
    stopped.resume()
    line(program, "done")
    status, _, err = end(program)
    assert status == 0, err


def test_a_client_that_is_killed_is_cleaned_up_after_its_grace(net: Network):
    server, laptop = cluster_and_laptop(net, client_grace="2s")
    text = """
import sys
import numpy as np
import concurrent_ml as cml
cml.init()
kept = [cml.put(np.zeros(100_000)) for _ in range(5)]
@cml.remote
def first(refs):
    return 1
@cml.remote
class Lamp:
    def on(self):
        return True
lamp = Lamp.remote()
assert cml.get(lamp.on.remote()) and cml.get(first.remote(kept)) == 1
print("here", flush=True)
sys.stdin.readline()
"""
    program = laptop.popen_python(text)
    line(program, "here")
    assert server.cluster_json("list", "objects")
    program.kill()
    gone = time.monotonic()
    wait_until(lambda: not server.cluster_json("list", "objects"), 15, "what the client held is gone")
    assert time.monotonic() - gone > 1, "it was not waited for"
    wait_until(
        lambda: all(a["state"] == "dead" for a in server.cluster_json("list", "actors")), 15, "its actor ends"
    )


WAITS = """
import sys, time
import concurrent_ml as cml
cml.init()
@cml.remote
def slow():
    time.sleep(600)
waiting = slow.remote()
kept = cml.put(1)
print("here", flush=True)
begun = time.monotonic()
for _ in range(2):
    try:
        cml.get(waiting, timeout=100)
    except cml.exceptions.ClusterConnectionError as error:
        print(error, flush=True)
try:
    cml.put(2)
except cml.exceptions.ClusterConnectionError as error:
    print("put:", error, flush=True)
print(time.monotonic() - begun)
"""


def test_after_the_grace_period_every_call_says_so(net: Network):
    server, laptop = cluster_and_laptop(net)
    program = laptop.popen(
        ["python", "-c", WAITS], {**laptop.cluster_environment(), "CLUSTER_CLIENT_GRACE": "4s"}
    )
    line(program, "here")
    net.cut(laptop)
    status, out, err = end(program)
    assert status == 0, err
    assert out.count("within the grace period of 4 s") == 3, out
    assert "trying again for up to 4 s" in err, err
    net.restore(laptop)
    wait_until(
        lambda: not [t for t in server.cluster_json("list", "tasks") if t["state"] == "running"],
        30,
        "the daemon lets go of it, too",
    )


@pytest.mark.parametrize("end_of_daemon", ["killed", "restarted", "told to end"])
def test_a_gateway_that_is_gone_is_told_at_once(net: Network, end_of_daemon: str):
    server, laptop = cluster_and_laptop(net)
    program = laptop.popen_python(WAITS)
    line(program, "here")
    if end_of_daemon == "told to end":
        server.process(Role.WORKER).kill(15)
        expected = "has been ended"
    else:
        server.kill(Role.WORKER)
        expected = "has ended, and the cluster is without it"
    if end_of_daemon == "restarted":
        server.cluster_join(server, num_cpus=1)
        expected = ""
    status, out, err = end(program, 90)
    assert status == 0, err
    assert expected in out, out
    assert float(out.splitlines()[-1]) < 40, out


def test_another_python_is_told_at_connect(net: Network):
    _, laptop = cluster_and_laptop(net)
    text = """
import sys
import concurrent_ml as cml
import concurrent_ml._api as api
class Older:
    major, minor = 3, 4
    def __getitem__(self, at):
        return (3, 4, 0)[at]
class System:
    version_info = Older()
    def __getattr__(self, name):
        return getattr(sys, name)
api.sys = System()
cml.init()
"""
    done = laptop.python(text, check=False)
    assert done.returncode != 0
    assert "the driver runs Python 3.4, but executors of this node run Python 3." in done.stderr, done.stderr


def test_streams_and_await_work_from_elsewhere(net: Network):
    _, laptop = cluster_and_laptop(net)
    text = """
import asyncio
import concurrent_ml as cml
cml.init()
@cml.remote
def square(x):
    return x * x
@cml.remote
def count(n):
    for i in range(n):
        yield i
@cml.remote
class Echo:
    async def say(self, word):
        await asyncio.sleep(0.01)
        return word
async def main():
    assert await square.remote(7) == 49
    assert await asyncio.gather(*[square.remote(i) for i in range(50)]) == [i * i for i in range(50)]
    assert [await ref async for ref in count.remote(20)] == list(range(20))
    echo = Echo.remote()
    assert await asyncio.gather(*[echo.say.remote(i) for i in range(20)]) == list(range(20))
asyncio.run(main())
print("done")
"""
    assert laptop.python(text).stdout.splitlines()[-1] == "done"


LARGE = """
import sys, threading
import numpy as np
import concurrent_ml as cml
cml.init()
MB = 1 << 20

@cml.remote
def total(array):
    return int(array[::4096].sum()), len(array)

@cml.remote
def make(megabytes):
    return np.arange(megabytes * MB // 8)

@cml.remote(num_cpus=0)
def small(x):
    return x + 1
"""


def slow_down(host: Host, rate: str) -> None:
    """What it sends goes no faster than this."""
    limit = ["tbf", "rate", rate, "burst", "1mb", "latency", "50ms"]
    host.run(["tc", "qdisc", "add", "dev", "eth0", "root", *limit])


def test_values_larger_than_any_message(net: Network):
    _, laptop = cluster_and_laptop(net, object_store_memory="1GiB")
    text = (
        LARGE
        + """
sent = np.arange(200 * MB // 8)
ref = cml.put(sent)
assert cml.get(total.remote(ref)) == cml.get(total.remote(sent)) == (int(sent[::4096].sum()), len(sent))
assert np.array_equal(cml.get(ref), sent)
# Neither array nor pickle of parts: one long string of bytes.
assert cml.get(cml.put(b"x" * (70 * MB))) == b"x" * (70 * MB)
# Several at once, with small ones between.
refs = [make.remote(100), make.remote(80)]
cml.wait(refs, num_returns=2)
got = []
threads = [threading.Thread(target=lambda ref=ref: got.append(cml.get(ref).nbytes)) for ref in [*refs, refs[0]]]
for thread in threads:
    thread.start()
for i in range(50):
    assert cml.get(small.remote(i)) == i + 1
for thread in threads:
    thread.join()
assert sorted(got) == [80 * MB, 100 * MB, 100 * MB]
try:
    cml.put(np.zeros(2048 * MB, dtype=np.uint8))
except cml.exceptions.ObjectStoreFullError as error:
    print(error)
del ref, refs
# More than the store holds, a bit at a time: what is not needed goes to disk.
kept = [cml.put(np.full(100 * MB, i, dtype=np.uint8)) for i in range(14)]
assert [int(cml.get(ref)[-1]) for ref in kept] == list(range(14))
print("done")
"""
    )
    done = laptop.python(text, timeout=200)
    said = done.stdout.splitlines()
    assert said[-1] == "done", done.stderr
    assert "can never fit the object store" in said[0]


def test_a_large_value_goes_on_where_the_link_was_cut(net: Network):
    server, laptop = cluster_and_laptop(net, object_store_memory="2GiB")
    text = (
        LARGE
        + """
there = make.remote(300)
cml.wait([there])
sent = np.arange(300 * MB // 8)
print("begin", flush=True)
put = []
thread = threading.Thread(target=lambda: put.append(cml.put(sent)))
thread.start()
assert np.array_equal(cml.get(there), sent)
thread.join()
assert cml.get(total.remote(put[0])) == (int(sent[::4096].sum()), len(sent))
print("done", flush=True)
"""
    )
    # Slow enough to be cut in the middle.
    laptop.run(
        [
            "tc",
            "qdisc",
            "add",
            "dev",
            "eth0",
            "root",
            "tbf",
            "rate",
            "800mbit",
            "burst",
            "1mb",
            "latency",
            "50ms",
        ]
    )
    program = laptop.popen_python(text)
    line(program, "begin")
    log = server.directory / "logs" / "worker.log"
    reserved = lambda: server.cluster_json("list", "nodes")[0]["store"]["reserved"]  # noqa: E731
    wait_until(lambda: reserved() > 500 << 20, 20, "it is under way")
    net.cut(laptop)
    wait_until(lambda: "lost touch with a remote client" in log.read_text(), 20, "the gateway notices")
    net.restore(laptop)
    line(program, "done")
    status, _, err = end(program)
    assert status == 0, err
    assert "remote client is back" in log.read_text()


def test_a_large_put_that_is_interrupted_leaves_nothing(net: Network):
    server, laptop = cluster_and_laptop(net, object_store_memory="2GiB")
    text = (
        LARGE
        + """
import os, signal
sent = np.zeros(400 * MB, dtype=np.uint8)
def interrupt():
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
print("begin", flush=True)
try:
    cml.put(sent)
    print("put", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert cml.get(small.remote(1)) == 2
print("goes on", flush=True)
sys.stdin.readline()
"""
    )
    laptop.run(
        [
            "tc",
            "qdisc",
            "add",
            "dev",
            "eth0",
            "root",
            "tbf",
            "rate",
            "400mbit",
            "burst",
            "1mb",
            "latency",
            "50ms",
        ]
    )
    program = laptop.popen_python(text)
    line(program, "begin")
    reserved = lambda: server.cluster_json("list", "nodes")[0]["store"]["reserved"]  # noqa: E731
    wait_until(lambda: reserved() >= 400 << 20, 20, "it is under way")
    go(program)
    line(program, "interrupted")
    line(program, "goes on")
    wait_until(lambda: reserved() < 100 << 20, 20, "its memory is given back")
    go(program)
    assert end(program)[0] == 0


def test_the_commands_of_the_guide_run_as_written(net: Network):
    server, laptop = cluster_and_laptop(net)
    (commands,) = re.findall(
        r"^```sh\n(.+?)^```", (ROOT / "docs/remote-client.md").read_text(), re.MULTILINE | re.DOTALL
    )
    commands = commands.replace("10.0.0.1", server.address).replace("=...", f"={server.token}")
    done = laptop.run(["sh", "-euc", commands], cwd=ROOT, timeout=120)
    assert "Models trained concurrently!" in done.stdout
