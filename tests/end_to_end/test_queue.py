"""`concurrent_ml.util.Queue`: a queue between tasks, actors and drivers."""

import asyncio
import pickle
import queue
import time
import warnings
from typing import Any

import numpy as np
import pytest

from concurrent_ml.util import Empty, Full, Queue
from testkit import Network

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def of_three(cml: Any):
    made = Queue(maxsize=3)
    yield made
    if made.actor is not None:
        made.shutdown(force=True)


def test_what_is_put_first_comes_first(of_three: Queue):
    for n in range(3):
        of_three.put(n)
    assert (len(of_three), of_three.qsize(), of_three.size()) == (3, 3, 3)
    assert (of_three.full(), of_three.empty()) == (True, False)
    assert [of_three.get() for _ in range(3)] == [0, 1, 2]
    assert (of_three.full(), of_three.empty()) == (False, True)


def test_without_a_maxsize_it_is_never_full(cml: Any):
    endless = Queue()
    endless.put_nowait_batch(range(1000))
    assert (endless.full(), endless.get_nowait_batch(1000)) == (False, list(range(1000)))


def test_what_does_not_wait_raises_full_and_empty(of_three: Queue):
    with pytest.raises(Empty, match="the queue is empty"):
        of_three.get_nowait()
    with pytest.raises(queue.Empty):
        of_three.get(block=False)
    of_three.put_nowait_batch([1, 2, 3])
    with pytest.raises(Full, match="the queue has 3 items, and no room"):
        of_three.put_nowait(4)
    with pytest.raises(queue.Full):
        of_three.put(4, block=False)


def test_what_waits_does_so_until_its_timeout(of_three: Queue):
    begun = time.monotonic()
    with pytest.raises(Empty):
        of_three.get(timeout=0.2)
    assert time.monotonic() - begun >= 0.2
    of_three.put_nowait_batch([1, 2, 3])
    with pytest.raises(Full):
        of_three.put(4, timeout=0.2)
    assert of_three.get_nowait_batch(3) == [1, 2, 3], "nothing was put"


def test_batches_are_all_or_nothing(of_three: Queue):
    of_three.put_nowait_batch([1, 2])
    with pytest.raises(Full, match="no room for 2 items in a queue of 3"):
        of_three.put_nowait_batch([3, 4])
    with pytest.raises(Empty, match="the queue has no 3 items"):
        of_three.get_nowait_batch(3)
    assert of_three.get_nowait_batch(2) == [1, 2]
    assert of_three.get_nowait_batch(0) == []


def test_producers_and_consumers_in_tasks_wait_for_each_other(cml: Any, of_three: Queue):
    @cml.remote
    def produce(to, numbers):
        for n in numbers:
            to.put(n)

    @cml.remote
    def consume(source, count):
        return [source.get() for _ in range(count)]

    # More tasks than CPUs, and consumers first: whoever waits lends its CPU.
    consumers = [consume.remote(of_three, 50) for _ in range(3)]
    producers = [produce.remote(of_three, range(n, n + 50)) for n in (0, 50, 100)]
    assert sorted(n for part in cml.get(consumers, timeout=40) for n in part) == list(range(150))
    cml.get(producers, timeout=20)


def test_many_that_wait_for_items_do_not_keep_items_out(cml: Any):
    wide = Queue()
    waiting = [wide._actor().get.remote(None) for _ in range(200)]
    wide.put_nowait_batch(range(100))
    for n in range(100, 200):
        wide.put(n)
    assert sorted(cml.get(waiting, timeout=40)) == list(range(200))


def test_in_an_event_loop(of_three: Queue):
    async def main():
        async def produce():
            for n in range(20):
                await of_three.put_async(n)

        producing = asyncio.create_task(produce())
        got = [await of_three.get_async() for _ in range(20)]
        await producing
        with pytest.raises(Empty):
            await of_three.get_async(block=False)
        with pytest.raises(Empty):
            await of_three.get_async(timeout=0.05)
        for n in range(3):
            await of_three.put_async(n, block=False)
        with pytest.raises(Full):
            await of_three.put_async(4, block=False)
        with pytest.raises(Full):
            await of_three.put_async(4, timeout=0.05)
        return got

    assert asyncio.run(main()) == list(range(20))


def test_items_are_any_values(cml: Any, of_three: Queue):
    array = np.arange(100_000)
    of_three.put({"array": array, "ref": cml.put("inside"), "none": None})
    item = of_three.get()
    np.testing.assert_array_equal(item["array"], array)
    assert cml.get(item["ref"]) == "inside"


def test_a_handle_can_be_pickled(of_three: Queue):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # outside the cluster's own serializer, its actor is kept
        copy = pickle.loads(pickle.dumps(of_three))
    of_three.put("to the same")
    assert copy.get() == "to the same"


def test_the_actor_has_the_options_given(cml: Any):
    named = Queue(actor_options={"name": "a queue", "num_cpus": 0.1})
    assert cml.get_actor("a queue") == named.actor


@pytest.mark.parametrize("force", [False, True])
def test_after_shutdown_there_is_no_queue(cml: Any, of_three: Queue, force: bool):
    actor = of_three.actor
    of_three.shutdown(force=force)
    with pytest.raises(RuntimeError, match="this queue was shut down"):
        of_three.put(1)
    with pytest.raises(cml.exceptions.ActorDiedError):
        cml.get(actor.qsize.remote(), timeout=20)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda q: q.put(1, timeout=-1), "timeout is -1"),
        (lambda q: q.get(timeout=-1), "timeout is -1"),
        (lambda q: q.put_nowait_batch(5), "items is a int"),
        (lambda q: q.put_nowait_batch("abc"), "items is a str"),
        (lambda q: q.get_nowait_batch("2"), "num_items is '2'; it must be a whole number"),
        (lambda q: q.get_nowait_batch(-1), "num_items is -1; it must be 0 or more"),
        (
            lambda _: Queue(3.5),  # type: ignore[arg-type]
            "maxsize is 3.5",
        ),
    ],
)
def test_wrong_arguments_are_told(of_three: Queue, call, error: str):
    with pytest.raises((TypeError, ValueError), match=error):
        call(of_three)


def test_between_hosts(net: Network):
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1, resources={"b": 1})
    c.cluster_join(a, num_cpus=1, resources={"c": 1})
    text = """
import numpy as np, concurrent_ml as cml
from concurrent_ml.util import Queue
cml.init()
queue = Queue(2)

@cml.remote(resources={"b": 1})
def produce():
    for n in range(10):
        queue.put(np.full(100_000, n))

@cml.remote(resources={"c": 1})
def consume():
    return [int(queue.get(timeout=30)[0]) for _ in range(10)]

made, got = produce.remote(), consume.remote()
print(cml.get(got, timeout=40))
cml.get(made)
"""
    assert a.python(text, timeout=50).stdout.strip() == str(list(range(10)))
