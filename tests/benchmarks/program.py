"""The measured program: one file, run unchanged under both systems, each in its own environment.

    python program.py --system ray|concurrent_ml --rows ROW,ROW --seconds 2 --out FILE [--address ADDRESS]

The rows mean what they mean in Ray's own microbenchmark, with a few differences, the same for both systems: the
clients of "multi client tasks async" are tasks that hold no CPU (not actors) and submit 2,500 tasks each (not
10,000), and a batch of actor calls has 2,500 (not 5,000), so that a row takes seconds; the n of actor rows is 2.
The rows of the remote client run with an address, and put their 0.8 GB as 20 values.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

arguments = argparse.ArgumentParser()
arguments.add_argument("--system", choices=("ray", "concurrent_ml"), required=True)
arguments.add_argument("--rows", required=True)
arguments.add_argument("--seconds", type=float, default=2.0)
arguments.add_argument("--out", type=Path, required=True)
arguments.add_argument("--address", help="of a cluster that runs; then without its shared memory")

options = arguments.parse_args()
api: Any = importlib.import_module(options.system)


@api.remote
def small_value() -> bytes:
    return b"ok"


@api.remote(num_cpus=0)
def client_of_tasks(count: int) -> None:
    api.get([small_value.remote() for _ in range(count)])


@api.remote
def client_of_small_puts() -> None:
    for _ in range(100):
        api.put(0)


@api.remote
def client_of_large_puts() -> None:
    for _ in range(10):
        api.put(np.zeros(10 * 1024 * 1024, dtype=np.int64))


@api.remote
def many_refs() -> list[Any]:
    return [api.put(1) for _ in range(10_000)]


@api.remote(num_returns="streaming")
def items(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"ok"


@api.remote(num_cpus=0)
class Server:
    def small_value(self) -> bytes:
        return b"ok"

    def small_value_arg(self, value: object) -> bytes:
        return b"ok"


@api.remote(num_cpus=0)
class AsyncServer:
    async def small_value(self) -> bytes:
        return b"ok"

    async def small_value_arg(self, value: object) -> bytes:
        return b"ok"


@api.remote(num_cpus=0)
class Caller:
    def __init__(self, servers: list[Any]) -> None:
        self.servers = servers

    def batch(self, count: int) -> None:
        api.get([server.small_value.remote() for server in self.servers for _ in range(count)])

    def batch_with_arg(self, count: int) -> None:
        value = api.put(0)
        api.get([server.small_value_arg.remote(value) for server in self.servers for _ in range(count)])


@api.remote(num_cpus=0)
def caller_of_actors(servers: list[Any], count: int) -> None:
    api.get([servers[number % len(servers)].small_value.remote() for number in range(count)])


def rate(action: Callable[[], object], amount: float) -> float:
    """How much an action that does `amount` at once does a second, after one unmeasured call of it."""
    action()
    done = 0
    start = time.perf_counter()
    while True:
        action()
        done += 1
        elapsed = time.perf_counter() - start
        if elapsed >= options.seconds:
            return amount * done / elapsed


def rate_of_calls(action: Callable[[], object]) -> float:
    """Calls a second of something quick: the clock is read once for many, so that its cost does not count."""

    def many() -> None:
        for _ in range(100):
            action()

    return rate(many, 100)


def tasks_sync() -> float:
    return rate_of_calls(lambda: api.get(small_value.remote()))


def tasks_async() -> float:
    return rate(lambda: api.get([small_value.remote() for _ in range(1000)]), 1000)


def tasks_and_get_batch() -> float:
    return rate(lambda: api.get([small_value.remote() for _ in range(1000)]), 1)


def multi_client_tasks_async() -> float:
    return rate(lambda: api.get([client_of_tasks.remote(2500) for _ in range(4)]), 10_000)


def get_calls() -> float:
    ref = api.put(0)
    return rate_of_calls(lambda: api.get(ref))


def put_calls() -> float:
    return rate_of_calls(lambda: api.put(0))


def multi_client_put_calls() -> float:
    return rate(lambda: api.get([client_of_small_puts.remote() for _ in range(10)]), 1000)


def put_gigabytes() -> float:
    array = np.zeros(100 * 1024 * 1024, dtype=np.int64)  # 0.84 GB, counted as 0.8 as Ray's benchmark does
    return rate(lambda: api.put(array), 0.8)


def put_gigabytes_in_parts() -> float:
    arrays = [np.zeros(5 * 1024 * 1024, dtype=np.int64) for _ in range(20)]
    return rate(lambda: [api.put(array) for array in arrays], 0.8)


def multi_client_put_gigabytes() -> float:
    return rate(lambda: api.get([client_of_large_puts.remote() for _ in range(10)]), 8.0)


def get_object_containing_refs() -> float:
    ref = many_refs.remote()
    return rate(lambda: api.get(ref), 1)


def wait_refs() -> float:
    def one_by_one() -> None:
        waiting = [small_value.remote() for _ in range(1000)]
        while waiting:
            _, waiting = api.wait(waiting)

    return rate(one_by_one, 1)


SERVERS = 2


def actor_calls_sync() -> float:
    server = Server.remote()
    return rate_of_calls(lambda: api.get(server.small_value.remote()))


def thousand_calls(server: Any) -> float:
    return rate(lambda: api.get([server.small_value.remote() for _ in range(1000)]), 1000)


def actor_calls_from_one() -> float:
    caller = Caller.remote([Server.remote() for _ in range(SERVERS)])
    return rate(lambda: api.get(caller.batch.remote(2500)), 2500 * SERVERS)


def calls_from_many(kind: Any) -> float:
    servers = [kind.remote() for _ in range(SERVERS)]
    return rate(lambda: api.get([caller_of_actors.remote(servers, 2500) for _ in range(4)]), 10_000)


def calls_with_arg_from_many() -> float:
    callers = [Caller.remote([Server.remote()]) for _ in range(SERVERS)]
    return rate(lambda: api.get([caller.batch_with_arg.remote(1000) for caller in callers]), 1000 * SERVERS)


def async_actor_calls_sync() -> float:
    server = AsyncServer.remote()
    return rate_of_calls(lambda: api.get(server.small_value.remote()))


def async_actor_calls_with_args() -> float:
    server = AsyncServer.remote()
    return rate(lambda: api.get([server.small_value_arg.remote(number) for number in range(1000)]), 1000)


def stream_items() -> float:
    def read() -> None:
        for ref in items.remote(1000):
            api.get(ref)

    return rate(read, 1000)


def groups() -> float:
    module = importlib.import_module("ray.util") if options.system == "ray" else api

    def make_and_remove() -> None:
        made = [module.placement_group([{"CPU": 0.001}]) for _ in range(100)]
        for group in made:
            if not group.wait(30):
                raise TimeoutError("a placement group was not ready after 30 s")
        for group in made:
            module.remove_placement_group(group)

    return rate(make_and_remove, 100)


ROWS: dict[str, Callable[[], float]] = {
    "single client tasks sync": tasks_sync,
    "single client tasks async": tasks_async,
    "single client tasks and get batch": tasks_and_get_batch,
    "multi client tasks async": multi_client_tasks_async,
    "single client get calls": get_calls,
    "single client put calls": put_calls,
    "multi client put calls": multi_client_put_calls,
    "single client put gigabytes": put_gigabytes,
    "multi client put gigabytes": multi_client_put_gigabytes,
    "single client get object containing 10k refs": get_object_containing_refs,
    "single client wait 1k refs": wait_refs,
    "1:1 actor calls sync": actor_calls_sync,
    "1:1 actor calls async": lambda: thousand_calls(Server.remote()),
    "1:1 actor calls concurrent": lambda: thousand_calls(Server.options(max_concurrency=16).remote()),
    "1:n actor calls async": actor_calls_from_one,
    "n:n actor calls async": lambda: calls_from_many(Server),
    "n:n actor calls with arg async": calls_with_arg_from_many,
    "1:1 async-actor calls sync": async_actor_calls_sync,
    "1:1 async-actor calls async": lambda: thousand_calls(AsyncServer.remote()),
    "1:1 async-actor calls with args async": async_actor_calls_with_args,
    "n:n async-actor calls async": lambda: calls_from_many(AsyncServer),
    "items of a stream read one by one": stream_items,
    "placement group create and removal": groups,
    "remote client: get calls": get_calls,
    "remote client: put calls": put_calls,
    "remote client: put gigabytes": put_gigabytes_in_parts,
    "remote client: 1:1 actor calls sync": actor_calls_sync,
    "remote client: 1:1 actor calls async": lambda: thousand_calls(Server.remote()),
}
INIT = "init to first result"


def main() -> None:
    wanted = options.rows.split(",")
    begun = time.perf_counter()
    api.init(options.address)
    api.get(small_value.remote())
    results: dict[str, float] = {}
    failed = False
    if INIT in wanted:
        results[INIT] = time.perf_counter() - begun
    # Every executor there will be has started before anything is counted.
    api.get([small_value.remote() for _ in range(1000)])
    for name, measure in ROWS.items():
        if name in wanted:
            try:
                results[name] = measure()
            except Exception as error:  # one row's failure must not cost the figures of the others
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                failed = True
                continue
            print(f"{options.system}: {name}: {results[name]:.6g}", file=sys.stderr, flush=True)
            options.out.write_text(json.dumps(results))
    options.out.write_text(json.dumps(results))
    api.shutdown()
    sys.exit(failed)


if __name__ == "__main__":
    main()
