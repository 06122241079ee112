"""Many calls at once: `map`, `as_completed`, and refs among what asyncio and concurrent.futures wait for."""

import asyncio
import concurrent.futures
import threading
import time
from typing import Any

import pytest

from testkit import RunProgram, wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def nap(cml: Any):
    @cml.remote(num_cpus=0.1)
    def nap(seconds, answer=None):
        time.sleep(seconds)
        return answer or seconds

    return nap


@pytest.fixture
def add(cml: Any):
    @cml.remote
    def add(x, y=0, *, scale=1):
        return (x + y) * scale

    return add


# ---- map ----


def test_map_gives_refs_in_the_order_of_the_items(cml: Any, add):
    refs = add.map(range(1000))
    assert [type(ref) for ref in refs[:2]] == [cml.ObjectRef] * 2
    assert cml.get(refs) == list(range(1000))


def test_map_takes_several_iterables_and_ends_with_the_shortest(cml: Any, add):
    assert cml.get(add.map([1, 2, 3], (n for n in (10, 20)))) == [11, 22]


def test_map_gives_named_arguments_to_each_call(cml: Any, add):
    assert cml.get(add.map([1, 2], scale=cml.put(10))) == [10, 20]


def test_map_takes_refs_as_items(cml: Any, add):
    assert cml.get(add.map(add.map(range(3)), [cml.put(1)] * 3)) == [1, 2, 3]


def test_map_of_nothing_is_nothing(add):
    assert add.map([]) == []


def test_map_has_the_options_of_the_function(cml: Any):
    @cml.remote(num_returns=2)
    def both(x):
        return x, cml.get_runtime_context().get_assigned_resources()["CPU"]

    refs = both.options(num_cpus=0.5).map([1, 2])
    assert [cml.get(pair) for pair in refs] == [[1, 0.5], [2, 0.5]]


def test_map_of_a_method_keeps_the_order_of_calls(cml: Any):
    @cml.remote
    class Log:
        def __init__(self):
            self.seen = []

        def note(self, n):
            self.seen.append(n)
            return len(self.seen)

    log = Log.remote()
    assert cml.get(log.note.map("abc")) == [1, 2, 3]


def test_map_inside_a_task(cml: Any, add):
    @cml.remote
    def total(n):
        return sum(cml.get(add.map(range(n))))

    assert cml.get(total.remote(100), timeout=30) == 4950


def test_map_of_things_without_a_name(cml: Any):
    import functools

    assert cml.get(cml.remote(functools.partial(divmod, 7)).map([2, 3])) == [(3, 1), (2, 1)]


def test_what_is_wrong_with_map_is_told_where_it_is_written(cml: Any, add):
    with pytest.raises(TypeError, match=r"add\.map\(\) takes one iterable or more"):
        add.map()
    with pytest.raises(TypeError, match="takes iterables, not a value of type int"):
        add.map(5)
    with pytest.raises(TypeError, match=r"is a ref to one value: get\(\) it first"):
        add.map(cml.put([1, 2]))
    with pytest.raises(TypeError, match="too many positional arguments"):
        add.map([1], [2], [3])
    with pytest.raises(TypeError, match="unexpected keyword argument 'skale'"):
        add.map([1], skale=2)
    with pytest.raises(TypeError, match="argument 'x' of add"):
        add.map([threading.Lock()])


def test_an_iterable_that_raises_ends_map(add):
    def broken():
        yield 1
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        add.map(broken())


# ---- as_completed ----


def test_as_completed_gives_refs_as_they_become_ready(cml: Any, nap):
    refs = nap.map([0.6, 0.3, 0])
    assert list(cml.as_completed(refs)) == refs[::-1]


def test_as_completed_takes_any_iterable_once(cml: Any, nap):
    completed = cml.as_completed(ref for ref in nap.map([0, 0]))
    assert len(completed) == 2
    assert cml.get(list(completed)) == [0, 0]
    assert list(completed) == []


def test_as_completed_of_100_000_refs_takes_no_quadratic_time(cml: Any):
    refs = cml.remote(num_cpus=0.1)(lambda n: n).map(range(100_000))
    begun = time.monotonic()
    assert sum(1 for _ in cml.as_completed(refs, timeout=40)) == 100_000
    assert time.monotonic() - begun < 40


def test_a_failed_task_is_completed_too(cml: Any):
    @cml.remote
    def fail():
        raise ValueError("on purpose")

    (ref,) = cml.as_completed([fail.remote()])
    with pytest.raises(ValueError, match="on purpose"):
        cml.get(ref)


def test_as_completed_ends_at_its_timeout_and_says_what_was_late(cml: Any, nap):
    slow, quick = nap.remote(20), nap.remote(0)
    seen = []
    with pytest.raises(
        TimeoutError, match=r"1 of 2 values were not ready after 0.5 s, ObjectRef\(.*\) among them"
    ):
        seen.extend(cml.as_completed([slow, quick], timeout=0.5))
    cml.cancel(slow)


def test_what_came_before_the_timeout_is_given_first(cml: Any, nap):
    ready = nap.map([0, 0])
    cml.wait(ready, num_returns=2)
    slow = nap.remote(20)
    completed = cml.as_completed([slow, *ready], timeout=0)
    assert [next(completed), next(completed)] == ready
    with pytest.raises(TimeoutError):
        next(completed)
    cml.cancel(slow)


def test_a_task_in_as_completed_lends_its_cpu(cml: Any):
    @cml.remote
    def child(n):
        return n

    @cml.remote
    def parent():
        return sorted(cml.get(list(cml.as_completed(child.map(range(10))))))

    # As many parents as CPUs: children run only while parents wait.
    assert cml.get([parent.remote() for _ in range(4)], timeout=30) == [list(range(10))] * 4


def test_as_completed_in_an_event_loop(cml: Any, nap):
    refs = nap.map([0.6, 0.3, 0])

    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        seen = [ref async for ref in cml.as_completed(refs)]
        ticking.cancel()
        return seen, ticks

    seen, ticks = asyncio.run(main())
    assert seen == refs[::-1]
    assert ticks > 5, "the loop went on meanwhile"


def test_as_completed_in_an_event_loop_ends_at_its_timeout(cml: Any, nap):
    slow = nap.remote(20)

    async def main():
        async for _ in cml.as_completed([slow], timeout=0.2):
            pass

    with pytest.raises(TimeoutError, match="1 of 1 values were not ready after"):
        asyncio.run(main())
    cml.cancel(slow)


@pytest.mark.parametrize(
    ("refs", "error"),
    [(5, "not iterable"), ([5], "item 0 is of type int"), ("ref", r"as_completed\(\[ref\]\)")],
)
def test_as_completed_takes_refs_only(cml: Any, refs, error: str):
    with pytest.raises(TypeError, match=error):
        cml.as_completed(cml.put(1) if refs == "ref" else refs)


# ---- asyncio ----


def test_asyncio_waits_for_refs(cml: Any, nap):
    async def main():
        slow, quick = (asyncio.ensure_future(ref) for ref in nap.map([20, 0], ["slow", "quick"]))
        done, pending = await asyncio.wait([slow, quick], return_when=asyncio.FIRST_COMPLETED)
        assert ([future.result() for future in done], pending) == (["quick"], {slow})
        slow.cancel()
        values = [await value for value in asyncio.as_completed(nap.map([0.2, 0], [1, 2]))]
        assert values == [2, 1]
        assert await asyncio.gather(*nap.map([0, 0], "ab")) == ["a", "b"]
        assert await asyncio.wait_for(nap.remote(0, "in time"), 20) == "in time"

    asyncio.run(main())


def test_cancelling_who_awaits_leaves_the_task_running(cml: Any, nap):
    ref = nap.remote(0.5, "done")

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ref, 0.05)

    asyncio.run(main())
    assert cml.get(ref, timeout=20) == "done"


# ---- futures of refs ----


def test_futures_of_refs_work_with_concurrent_futures(cml: Any, nap):
    slow, quick = (ref.future() for ref in nap.map([20, 0], ["slow", "quick"]))
    done, pending = concurrent.futures.wait([slow, quick], 20, concurrent.futures.FIRST_COMPLETED)
    assert (done, pending) == ({quick}, {slow})
    assert next(concurrent.futures.as_completed([slow, quick], 20)) is quick


def test_cancelling_a_future_leaves_the_task_running(cml: Any, nap):
    ref = nap.remote(0.5, "done")
    future = ref.future()
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(1)
    assert cml.get(ref, timeout=20) == "done"
    assert ref.future().result(20) == "done"


def test_futures_and_what_awaits_fail_when_the_cluster_is_left(program: RunProgram):
    done = program(
        """\
import asyncio, threading, time, concurrent_ml as cml
cml.init(num_cpus=1)

@cml.remote
def never():
    time.sleep(1000)

ref = never.remote()
future, completed = ref.future(), cml.as_completed([ref])
cml.shutdown()
try:
    future.result(10)
except cml.exceptions.ClusterClosedError as error:
    print("told:", error)
try:
    for ref in completed:
        cml.get(ref)
except RuntimeError as error:
    print("told:", error)
end = time.monotonic() + 10
while any("futures" in thread.name for thread in threading.enumerate()):
    assert time.monotonic() < end, "the thread of the futures stays"
    time.sleep(0.01)
""",
        timeout=30,
    )
    assert done.stdout.count("told:") == 2, done.stdout


def test_a_future_made_after_shutdown_says_so_and_leaves_no_thread(program: RunProgram):
    done = program(
        """\
import threading, concurrent_ml as cml
cml.init(num_cpus=1)
ref = cml.remote(lambda: 1).remote()
assert ref.future().result(20) == 1
cml.shutdown()
cml.init(num_cpus=1)
try:
    print(ref.future().result(10))
except Exception as error:
    print(type(error).__name__, error)
""",
        timeout=30,
    )
    assert "ClusterError" in done.stdout or "ClusterClosedError" in done.stdout, done.stdout


def test_threads_that_iterate_at_once_do_not_disturb_each_other(cml: Any, nap):
    seen: list[list[Any]] = []

    def run():
        seen.append(sorted(cml.get(list(cml.as_completed(nap.map([0.01] * 20, range(1, 21)))))))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), 30, "all have read theirs")
    assert seen == [list(range(1, 21))] * 4
