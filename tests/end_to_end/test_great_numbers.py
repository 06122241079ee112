"""Numbers at which anything quadratic, or a thread for each wait, would show."""

import asyncio
import threading
from typing import Any

import pytest

from testkit import Machine, Role, wait_until
from testkit.processes import by_role

pytestmark = pytest.mark.timeout(60)

MIB = 2**20


def test_10_000_awaits_at_once_take_no_threads(cml: Any):
    @cml.remote(num_cpus=0)
    class Gate:
        def __init__(self):
            self.opened = asyncio.Event()

        async def passed(self):
            await self.opened.wait()

        async def open(self):
            self.opened.set()

    @cml.remote(num_cpus=0.1)
    def number(n, passed):
        return n

    async def main() -> None:
        gate = Gate.remote()
        passed = gate.passed.remote()

        async def one(n: int) -> int:
            return await number.remote(n, passed)

        waits = [asyncio.create_task(one(n)) for n in range(10_000)]
        before = threading.active_count()
        # Each has begun to wait when a task that is behind them all has had its turn.
        await asyncio.sleep(0)
        assert threading.active_count() <= before + 1
        assert not any(wait.done() for wait in waits)
        await gate.open.remote()
        assert await asyncio.gather(*waits) == list(range(10_000))

    asyncio.run(main())


def test_100_000_refs_in_one_wait_and_in_one_get(cml: Any):
    refs = cml.remote(num_cpus=0.1)(lambda n: n).map(range(100_000))
    ready, waiting = cml.wait(refs, num_returns=len(refs), timeout=40)
    assert (ready, waiting) == (refs, [])
    assert cml.get(refs) == list(range(100_000))


def test_a_wait_for_few_of_100_000_refs_leaves_the_others(cml: Any):
    refs = [cml.put(n) for n in range(100_000)]
    ready, waiting = cml.wait(refs, num_returns=10)
    assert (len(ready), len(waiting)) == (10, 99_990)


QUEUED = """
import os, time
import concurrent_ml as cml
cml.init()

@cml.remote(num_cpus=0)
class Slow:
    def wait(self, opened):
        return 0
    def take(self, text):
        return len(text)

@cml.remote
def until(path):
    while not os.path.exists(path):
        time.sleep(0.02)

slow = Slow.remote()
assert cml.get([slow.take.remote("warm" + str(n)) for n in range(1000)])
text = "x" * 2000
first = slow.wait.remote(until.remote(os.path.abspath("opened")))
refs = [slow.take.remote(text) for n in range(10_000)]
print("queued", flush=True)
assert cml.get(refs) == [2000] * 10_000
print("done", flush=True)
"""


def test_10_000_calls_queued_on_an_actor_do_not_grow_the_head(machine: Machine):
    machine.cluster("up", "--port", "0", "--data-port", "0", "--num-cpus", "2")
    (head,) = by_role(machine.directory / "run", Role.HEAD)
    child = machine.popen(QUEUED)
    assert child.stdout is not None
    try:
        before = head.resident_bytes()
        assert child.stdout.readline() == "queued\n"
        # The calls alone have 20 MB of arguments.
        assert head.resident_bytes() - before < 4 * MIB
        (machine.directory / "opened").touch()
        assert child.stdout.readline() == "done\n"
        wait_until(lambda: child.poll() == 0, 10, "the program ends")
    finally:
        child.kill()
        child.communicate()
        machine.cluster("down", check=False)
