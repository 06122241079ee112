"""A bit of everything that programs do, over and over, at a steady pace. Run by `soak`; ends when its input does.

load.py ROUNDS SEED LEAVE: after so many rounds (0: no end) it leaves: `well`, by `shutdown`; `short`, by the
interpreter's end; `exit`, by `os._exit` with work in flight.
"""

import asyncio
import contextlib
import os
import random
import select
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import concurrent_ml as cml


@cml.remote
def add(a: int, b: int) -> int:
    return a + b


@cml.remote
def total(array: "np.ndarray[Any, Any]") -> float:
    return float(array.sum())


@cml.remote
def zeros(count: int) -> "np.ndarray[Any, Any]":
    return np.zeros(count)


@cml.remote
def nested(depth: int) -> int:
    return 0 if depth == 0 else 1 + cml.get(nested.remote(depth - 1))


@cml.remote(max_retries=0)
def fails() -> int:
    raise ValueError("as it should")


@cml.remote(max_retries=1)
def dies() -> None:
    os._exit(3)


@cml.remote
def sleeps(seconds: float) -> None:
    time.sleep(seconds)


@cml.remote
def numbers(count: int) -> Iterator[Any]:
    for number in range(count):
        yield number, np.full(2_000, number)


@cml.remote
def keeps(refs: list[Any]) -> list[Any]:
    return [cml.put(cml.get(ref)) for ref in refs]


@cml.remote
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, by: int) -> int:
        self.count += by
        return self.count

    def stops(self) -> None:
        os._exit(4)


@cml.remote
class Waiter:
    async def wait(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds


def tasks(_: random.Random) -> None:
    assert cml.get([add.remote(n, 1) for n in range(200)]) == list(range(1, 201))
    ref = add.remote(0, 0)
    for _number in range(50):
        ref = add.remote(ref, 1)
    assert cml.get(ref) == 50


def trees(_: random.Random) -> None:
    assert cml.get(nested.remote(4)) == 4


def arrays(dice: random.Random) -> None:
    for size in (10, 3_000, 100_000, 1_000_000):
        count = size + dice.randrange(size)
        ref = cml.put(np.ones(count))
        assert cml.get(total.remote(ref)) == count
        assert len(cml.get(zeros.remote(count))) == count
    kept = cml.get(keeps.remote([cml.put(n) for n in range(5)]))
    assert cml.get(kept) == list(range(5))


def failures(_: random.Random) -> None:
    with contextlib.suppress(ValueError):
        cml.get(fails.remote())
    with contextlib.suppress(cml.exceptions.WorkerCrashedError):
        cml.get(dies.remote())
    after = add.remote(fails.remote(), 1)
    with contextlib.suppress(ValueError):
        cml.get(after)


def cancels(dice: random.Random) -> None:
    refs = [sleeps.remote(30) for _ in range(20)]
    cml.wait(refs, timeout=dice.uniform(0, 0.1))
    for number, ref in enumerate(refs):
        cml.cancel(ref, force=number % 5 == 4)
    for ref in refs:
        with contextlib.suppress(cml.exceptions.TaskCancelledError, cml.exceptions.WorkerCrashedError):
            cml.get(ref)


def timeouts(_: random.Random) -> None:
    ref = sleeps.remote(0.2)
    with contextlib.suppress(cml.exceptions.GetTimeoutError):
        cml.get(ref, timeout=0.05)


def streams(dice: random.Random) -> None:
    for position, ref in enumerate(numbers.remote(30)):
        number, array = cml.get(ref)
        assert number == position
        assert array[0] == number
    # Left in the middle.
    stop = dice.randrange(5)
    for position, _ref in enumerate(numbers.remote(10_000)):
        if position == stop:
            break


def actors(_: random.Random) -> None:
    counters = [Counter.options(num_cpus=0).remote() for _ in range(2)]
    assert cml.get([counter.add.remote(n) for counter in counters for n in range(20)])[-1] == 190
    with contextlib.suppress(cml.exceptions.ActorDiedError):
        cml.get(counters[0].stops.remote())
    cml.kill(counters[1])
    waiter = Waiter.options(num_cpus=0).remote()
    assert cml.get([waiter.wait.remote(0.01) for _ in range(20)]) == [0.01] * 20
    name = f"soak-{os.getpid()}"
    named = Counter.options(num_cpus=0, name=name).remote()
    assert cml.get(named.add.remote(1)) == 1
    assert cml.get(cml.get_actor(name).add.remote(1)) == 2


def groups(_: random.Random) -> None:
    group = cml.placement_group([{"CPU": 0.1}, {"CPU": 0.1}])
    cml.get(group.ready(), timeout=30)
    cml.remove_placement_group(group)


STEPS = [tasks, trees, arrays, failures, cancels, timeouts, streams, actors, groups]


def told_to_end(seconds: float) -> bool:
    """Waits, unless whoever started this closes its standard input first."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def main() -> None:
    rounds, seed, leave = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dice = random.Random(seed)
    cml.init()
    done = 0
    while not rounds or done < rounds:
        begun = time.monotonic()
        for step in dice.sample(STEPS, len(STEPS) if not rounds else 3):
            step(dice)
        done += 1
        print(done, flush=True)
        # A steady pace, whatever a round takes.
        if told_to_end(max(0.0, begun + 2 - time.monotonic())):
            break
    in_flight = [sleeps.remote(30) for _ in range(5)], zeros.remote(1_000_000), Counter.remote()
    if leave == "exit":
        time.sleep(0.2)
        os._exit(0)
    if leave == "well":
        cml.shutdown()
    del in_flight


if __name__ == "__main__":
    main()
