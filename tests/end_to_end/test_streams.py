"""Tasks that yield: their items are read while they run, wherever that is and whatever happens to them."""

import asyncio
import gc
import os
import pickle
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from testkit import wait_until

pytestmark = pytest.mark.timeout(90)

MIB = 1 << 20


def counted(path: Any) -> int:
    """How many items a task says, by the length of a file, that it has made."""
    return len(path.read_text()) if path.exists() else 0


def counts(path: Any, size: int = 0) -> Any:
    """Code that yields for ever and says how far it is; made here, so that it travels by value."""

    def forever() -> Any:
        n = 0
        try:
            while True:
                with path.open("a") as file:
                    file.write("x")
                yield bytes(size) if size else n
                n += 1
        finally:
            path.with_suffix(".closed").touch()

    return forever


# ---- reading ----


def test_items_come_one_by_one_in_order(cml: Any):
    @cml.remote
    def squares(n):
        for i in range(n):
            yield i * i

    gen = squares.remote(5)
    assert isinstance(gen, cml.ObjectRefGenerator)
    assert [cml.get(ref) for ref in gen] == [0, 1, 4, 9, 16]


def test_an_item_can_be_read_while_the_producer_runs(cml: Any, tmp_path):
    go = tmp_path / "go"

    @cml.remote
    def two():
        yield "first"
        while not go.exists():
            time.sleep(0.01)
        yield "second"

    gen = two.remote()
    assert cml.get(next(gen), timeout=20) == "first"
    assert not gen.is_finished()
    go.touch()
    assert cml.get(next(gen), timeout=20) == "second"
    assert next(gen, None) is None
    assert gen.is_finished()


def test_large_items_are_views_of_shared_memory(cml: Any):
    @cml.remote
    def arrays():
        for i in range(8):
            yield np.full(MIB, i, dtype=np.uint8)

    for i, ref in enumerate(arrays.remote()):
        array = cml.get(ref)
        assert array.shape == (MIB,)
        assert array[0] == array[-1] == i
        assert not array.flags.writeable


def test_thousands_of_items_lose_nothing(cml: Any):
    @cml.remote
    def many(n):
        yield from range(n)

    assert cml.get(list(many.remote(5000)), timeout=60) == list(range(5000))


def test_items_are_refs_like_any_other(cml: Any):
    @cml.remote
    def parts():
        for i in range(3):
            yield [i] * 2000

    @cml.remote
    def first(part, kept):
        return part[0], cml.get(kept[0])[0]

    refs = list(parts.remote())
    assert cml.get([first.remote(ref, [refs[0]]) for ref in refs]) == [(0, 0), (1, 0), (2, 0)]


def test_refs_inside_items_stay_alive(cml: Any):
    @cml.remote
    def boxes():
        for i in range(3):
            yield [cml.put(np.full(1000, i))]

    refs = list(boxes.remote())
    assert [int(cml.get(cml.get(ref)[0])[0]) for ref in refs] == [0, 1, 2]


def test_no_items_at_all(cml: Any):
    @cml.remote
    def none():
        return
        yield

    gen = none.remote()
    assert list(gen) == []
    assert gen.is_finished()


def test_what_is_returned_to_loop_over_may_be_a_stream(cml: Any):
    @cml.remote(num_returns="streaming")
    def lines():
        return ["a", "b"]

    assert cml.get(list(lines.remote())) == ["a", "b"]

    @cml.remote(num_returns="streaming")
    def one():
        return 5

    with pytest.raises(TypeError, match="cannot be iterated over"):
        cml.get(next(one.remote()))


def test_a_stream_is_an_option_of_a_call(cml: Any):
    @cml.remote
    def pair():
        return 1, 2

    assert cml.get(list(pair.options(num_returns="streaming").remote())) == [1, 2]

    @cml.remote(num_returns=2)
    def both():
        yield 1
        yield 2

    assert cml.get(both.remote()) == [1, 2]


def test_completed_is_ready_when_the_task_has_ended(cml: Any, tmp_path):
    go = tmp_path / "go"

    @cml.remote
    def work():
        yield 1
        while not go.exists():
            time.sleep(0.01)
        return "the end"

    gen = work.remote()
    done = gen.completed()
    assert cml.wait([done], timeout=0.2) == ([], [done])
    go.touch()
    assert cml.get(done, timeout=20) == "the end"
    assert [cml.get(ref) for ref in gen] == [1]


def test_wait_takes_generators(cml: Any, tmp_path):
    go = tmp_path / "go"

    @cml.remote
    def later():
        while not go.exists():
            time.sleep(0.01)
        yield 1

    @cml.remote
    def now():
        yield 2

    slow, quick = later.remote(), now.remote()
    ready, others = cml.wait([slow, quick], timeout=20)
    assert ready == [quick]
    assert others == [slow]
    assert cml.get(next(quick)) == 2
    # One whose end has come is ready, too.
    assert cml.wait([quick], timeout=20) == ([quick], [])
    assert list(quick) == []
    go.touch()
    assert cml.wait([slow], timeout=20) == ([slow], [])


def test_a_stream_can_be_read_once(cml: Any):
    @cml.remote
    def some():
        yield 1

    gen = some.remote()
    assert len(list(gen)) == 1
    with pytest.raises(RuntimeError, match="taken already"):
        list(gen)
    with pytest.raises(StopIteration):
        next(gen)


def test_a_generator_stays_in_its_process(cml: Any):
    @cml.remote
    def some():
        yield 1

    @cml.remote
    def use(x):
        return x

    gen = some.remote()
    for attempt in (lambda: use.remote(gen), lambda: use.remote([gen]), lambda: cml.put(gen)):
        with pytest.raises(TypeError, match="cannot be passed to another process"):
            attempt()
    with pytest.raises(TypeError):
        pickle.dumps(gen)
    with pytest.raises(TypeError, match="loop over it"):
        cml.get(gen)


def test_tasks_read_streams_of_tasks(cml: Any):
    @cml.remote
    def inner(n):
        yield from range(n)

    @cml.remote
    def total(n):
        return sum(cml.get(ref) for ref in inner.remote(n))

    @cml.remote
    def outer():
        for n in range(3):
            for ref in inner.remote(n):
                yield cml.get(ref)

    # More readers than CPUs: one that waits lends its own.
    assert cml.get([total.remote(10) for _ in range(4)], timeout=60) == [45] * 4
    assert cml.get(list(outer.remote())) == [0, 0, 1]


def test_dynamic_gives_one_list_of_refs(cml: Any):
    @cml.remote(num_returns="dynamic")
    def split(n):
        for i in range(n):
            yield np.full(1000, i)

    made = cml.get(split.remote(3), timeout=20)
    assert isinstance(made, cml.DynamicObjectRefGenerator)
    assert len(made) == 3
    assert [int(cml.get(ref)[0]) for ref in made] == [0, 1, 2]


# ---- event loops ----


def test_async_for(cml: Any):
    @cml.remote
    def slow():
        for i in range(5):
            time.sleep(0.02)
            yield i

    async def read():
        return [await ref async for ref in slow.remote()]

    async def several():
        return await asyncio.gather(read(), read())

    assert asyncio.run(several()) == [[0, 1, 2, 3, 4]] * 2


def test_cancelling_the_reading_coroutine_leaves_the_task(cml: Any, tmp_path):
    go = tmp_path / "go"

    @cml.remote
    def later():
        while not go.exists():
            time.sleep(0.01)
        yield 1

    async def read():
        gen = later.remote()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(gen), 0.2)
        go.touch()
        return await (await asyncio.wait_for(anext(gen), 20))

    assert asyncio.run(read()) == 1


def test_async_generator_functions(cml: Any):
    @cml.remote
    async def ticks(n):
        for i in range(n):
            await asyncio.sleep(0.01)
            yield i

    assert cml.get(list(ticks.remote(4))) == [0, 1, 2, 3]


# ---- errors ----


def test_an_error_stands_behind_the_items_before_it(cml: Any):
    @cml.remote
    def breaks():
        yield 1
        yield 2
        raise ValueError("enough")

    gen = breaks.remote()
    assert [cml.get(next(gen)), cml.get(next(gen))] == [1, 2]
    failed = next(gen)
    with pytest.raises(ValueError, match="enough"):
        cml.get(failed)
    assert next(gen, None) is None
    with pytest.raises(ValueError, match="enough"):
        cml.get(gen.completed())
    # It can be passed on like any other.
    with pytest.raises(ValueError, match="enough"):
        cml.get(cml.remote(lambda x: x).remote(failed), timeout=20)


def test_an_item_that_cannot_be_sent_is_an_error_in_its_place(cml: Any):
    @cml.remote
    def locks():
        yield 1
        yield threading.Lock()

    gen = locks.remote()
    assert cml.get(next(gen)) == 1
    with pytest.raises(TypeError, match="an item of"):
        cml.get(next(gen))
    assert next(gen, None) is None


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_returns": "stream"}, ValueError, "streaming"),
        ({"num_returns": 1.5}, TypeError, "whole number"),
        ({"stream_max_items": 0}, ValueError, "1 or more"),
        ({"stream_max_bytes": "1 GiB"}, TypeError, "whole number"),
    ],
)
def test_wrong_options_are_told_where_they_are_written(cml: Any, options, error, words):
    with pytest.raises(error, match=words):
        cml.remote(**options)(lambda: 1)


# ---- back-pressure ----


def test_a_producer_waits_when_it_is_ahead_by_so_many_items(cml: Any, tmp_path):
    path = tmp_path / "count"
    gen = cml.remote(stream_max_items=3)(counts(path)).remote()
    wait_until(lambda: counted(path) == 3, 20, "three items are there")
    time.sleep(0.3)
    assert counted(path) == 3
    assert [cml.get(next(gen)) for _ in range(4)] == [0, 1, 2, 3]
    wait_until(lambda: 5 <= counted(path) <= 7, 20, "it goes on")
    assert [cml.get(next(gen)) for _ in range(50)] == list(range(4, 54))
    assert counted(path) <= 54 + 3


def test_a_producer_waits_when_it_is_ahead_by_so_many_bytes(cml: Any, tmp_path):
    path = tmp_path / "count"
    gen = cml.remote(stream_max_bytes=4 * MIB)(counts(path, MIB)).remote()
    wait_until(lambda: counted(path) == 4, 20, "4 MiB are there")
    time.sleep(0.3)
    assert counted(path) == 4
    for _ in range(20):
        assert len(cml.get(next(gen))) == MIB
    wait_until(lambda: counted(path) >= 20, 20, "it goes on")


def test_one_item_may_be_larger_than_the_limit(cml: Any):
    @cml.remote(stream_max_bytes=1000)
    def large():
        for _ in range(3):
            yield bytes(MIB)

    assert [len(cml.get(ref)) for ref in large.remote()] == [MIB] * 3


def test_a_producer_that_waits_lends_its_cpu(cml: Any, tmp_path):
    path = tmp_path / "count"
    gens = [cml.remote(num_cpus=2, stream_max_items=1)(counts(path)).remote()]
    wait_until(lambda: counted(path) == 1, 20, "an item is there")

    @cml.remote(num_cpus=2)
    def other():
        return "ran"

    assert cml.get(other.remote(), timeout=20) == "ran"
    assert cml.get(next(gens[0])) == 0


def test_dropping_the_generator_ends_a_producer_that_waits(cml: Any, tmp_path):
    path = tmp_path / "count"
    gen = cml.remote(stream_max_items=2)(counts(path)).remote()
    done = gen.completed()
    wait_until(lambda: counted(path) == 2, 20, "it waits")
    del gen
    gc.collect()
    # As a generator in one process: it is closed where it stands.
    wait_until(path.with_suffix(".closed").exists, 20, "the generator is closed")
    assert cml.get(done, timeout=20) is None


def test_breaking_out_of_the_loop_ends_an_endless_producer(cml: Any, tmp_path):
    path = tmp_path / "count"
    for ref in cml.remote(counts(path)).remote():
        if cml.get(ref) == 10:
            break
    gc.collect()
    wait_until(path.with_suffix(".closed").exists, 20, "the generator is closed")


def test_closing_by_hand(cml: Any, tmp_path):
    path = tmp_path / "count"
    gen = cml.remote(stream_max_items=2)(counts(path)).remote()
    kept = next(gen)
    gen.close()
    wait_until(path.with_suffix(".closed").exists, 20, "the generator is closed")
    assert list(gen) == []
    assert cml.get(kept) == 0


def test_items_nobody_takes_are_freed(cml: Any):
    @cml.remote
    def arrays():
        for _ in range(8):
            yield np.zeros(MIB, dtype=np.uint8)

    def stored():
        import json

        from concurrent_ml import _state

        return json.loads(_state.connected().query("status"))["objects"]

    gc.collect()
    before = stored()
    gen = arrays.remote()
    cml.get(gen.completed(), timeout=20)
    assert stored() >= before + 8
    del gen
    gc.collect()
    wait_until(lambda: stored() <= before + 1, 20, "the items are freed")


# ---- cancelling and dying ----


def test_cancelling_ends_the_stream_with_that_error(cml: Any, tmp_path):
    path = tmp_path / "count"
    gen = cml.remote(stream_max_items=2)(counts(path)).remote()
    wait_until(lambda: counted(path) == 2, 20, "it waits for its reader")
    cml.cancel(gen)
    assert [cml.get(next(gen)), cml.get(next(gen))] == [0, 1]
    with pytest.raises(cml.exceptions.TaskCancelledError, match="by the driver"):
        cml.get(next(gen), timeout=20)
    assert next(gen, None) is None
    assert path.with_suffix(".closed").exists()


def test_a_timeout_ends_a_producer_that_nobody_reads(cml: Any, tmp_path):
    path = tmp_path / "count"
    gen = cml.remote(stream_max_items=1, timeout="500ms")(counts(path)).remote()
    with pytest.raises(cml.exceptions.TaskCancelledError, match="timeout"):
        cml.get(gen.completed(), timeout=20)


def test_a_lost_producer_is_tried_again_and_repeats_nothing(cml: Any, tmp_path):
    @cml.remote(stream_max_items=4)
    def numbers():
        with (tmp_path / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        for i in range(20):
            yield i, np.full(5000, i)

    gen = numbers.remote()
    kept = [next(gen) for _ in range(6)]
    pid = int((tmp_path / "pids").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    refs = kept + list(gen)
    values = [cml.get(ref, timeout=30) for ref in refs]
    assert [i for i, _ in values] == list(range(20))
    assert all(int(array[0]) == i for i, array in values)
    assert len((tmp_path / "pids").read_text().split()) == 2


def test_a_producer_that_dies_for_good_ends_the_stream(cml: Any):
    @cml.remote(max_retries=0)
    def dies():
        yield 1
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
        yield 2

    gen = dies.remote()
    assert cml.get(next(gen)) == 1
    with pytest.raises(cml.exceptions.WorkerCrashedError, match="SIGKILL"):
        cml.get(next(gen), timeout=30)
    assert next(gen, None) is None


def test_exceptions_are_tried_again_where_that_is_asked_for(cml: Any, tmp_path):
    @cml.remote(retry_exceptions=[OSError], max_retries=2)
    def flaky():
        with (tmp_path / "tries").open("a") as file:
            file.write("x")
        for i in range(6):
            if i == 3 and len((tmp_path / "tries").read_text()) < 3:
                raise OSError("again")
            yield i, bytes(10_000)

    assert [cml.get(ref)[0] for ref in flaky.remote()] == list(range(6))
    assert len((tmp_path / "tries").read_text()) == 3


# ---- actors ----


def test_methods_yield(cml: Any):
    @cml.remote
    class Source:
        def __init__(self):
            self.start = 0

        def next(self, n):
            for _ in range(n):
                yield self.start
                self.start += 1

        def where(self):
            return self.start

        @cml.method(stream_max_items=1)
        def one_ahead(self):
            while True:
                yield self.start

    source = Source.remote()
    assert cml.get(list(source.next.remote(3))) == [0, 1, 2]
    assert cml.get(list(source.next.remote(2))) == [3, 4]
    assert cml.get(source.where.remote()) == 5
    gen = source.one_ahead.remote()
    assert cml.get(next(gen)) == 5
    del gen
    gc.collect()
    # Its end lets the next call go on.
    assert cml.get(source.where.remote(), timeout=20) == 5


def test_methods_of_threaded_actors_yield_at_once(cml: Any):
    @cml.remote(max_concurrency=3)
    class Source:
        def __init__(self):
            self.barrier = threading.Barrier(2)

        @cml.method(stream_max_items=2)
        def go(self, name):
            self.barrier.wait(20)
            for i in range(5):
                yield name, i

    source = Source.remote()
    one, two = source.go.remote("a"), source.go.remote("b")
    assert cml.get(list(one)) == [("a", i) for i in range(5)]
    assert cml.get(list(two)) == [("b", i) for i in range(5)]


def test_async_actors_yield_on_their_loop(cml: Any):
    @cml.remote
    class Source:
        def __init__(self):
            self.open = 0

        @cml.method(stream_max_items=1)
        async def go(self, n):
            self.open += 1
            try:
                for i in range(n):
                    await asyncio.sleep(0)
                    yield i
            finally:
                self.open -= 1

        def plain(self, n):
            yield from range(n)

        async def count(self):
            return self.open

    source = Source.remote()
    gens = [source.go.remote(10) for _ in range(3)]
    # All wait for their readers, and the loop serves others meanwhile.
    wait_until(lambda: cml.get(source.count.remote(), timeout=20) == 3, 20, "three streams are open")
    assert cml.get(list(source.plain.remote(3))) == [0, 1, 2]
    assert [cml.get(list(gen)) for gen in gens[:2]] == [list(range(10))] * 2
    cml.cancel(gens[2])
    with pytest.raises(cml.exceptions.TaskCancelledError):
        cml.get(list(gens[2]), timeout=20)
    gens.clear()
    gc.collect()
    wait_until(lambda: cml.get(source.count.remote(), timeout=20) == 0, 20, "none is open")


def test_waiting_for_an_item_in_an_actors_loop_warns_with_the_line(cml: Any):
    @cml.remote
    def later():
        time.sleep(0.3)
        yield 1

    @cml.remote
    class Reader:
        async def read(self):
            import warnings

            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                value = await next(later.remote())
            return value, [(str(one.message), one.filename) for one in told]

    value, told = cml.get(Reader.remote().read.remote(), timeout=30)
    assert value == 1
    [(words, file)] = told
    assert "async for" in words
    assert file == __file__


def test_a_stream_of_a_dead_actor_ends(cml: Any):
    @cml.remote
    class Source:
        def go(self):
            yield os.getpid()
            while True:
                time.sleep(0.05)
                yield 0

    source = Source.remote()
    gen = source.go.remote()
    os.kill(cml.get(next(gen)), signal.SIGKILL)
    with pytest.raises(cml.exceptions.ActorDiedError, match="SIGKILL"):
        cml.get(list(gen), timeout=30)


def test_a_call_that_is_tried_again_repeats_nothing(cml: Any, tmp_path):
    @cml.remote(max_restarts=1, max_task_retries=1)
    class Source:
        @cml.method(stream_max_items=2)
        def go(self):
            for i in range(10):
                if i == 5 and not (tmp_path / "died").exists():
                    (tmp_path / "died").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield i

    source = Source.remote()
    assert [cml.get(ref, timeout=30) for ref in source.go.remote()] == list(range(10))
    assert (tmp_path / "died").exists()
