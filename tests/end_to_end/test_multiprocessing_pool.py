"""`concurrent_ml.multiprocessing.Pool`: what programs written for `multiprocessing.Pool` expect, on the cluster."""

import multiprocessing
import os
import pickle
import threading
import time
from typing import Any

import pytest

from concurrent_ml.multiprocessing import Pool, TimeoutError  # noqa: A004
from testkit import Network, RunProgram, wait_until

pytestmark = pytest.mark.timeout(60)


def square(x):
    return x * x


def nap(seconds):
    time.sleep(seconds)
    return seconds


@pytest.fixture
def pool(cml: Any):
    with Pool() as made:
        yield made


# ---- calls ----


def test_apply(pool: Pool):
    assert pool.apply(pow, (2, 10)) == 1024
    assert pool.apply(sorted, ([3, 1, 2],), {"reverse": True}) == [3, 2, 1]
    assert pool.apply(os.getpid) != os.getpid()


def test_apply_async(pool: Pool):
    result = pool.apply_async(nap, (0.3,))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.wait(20)
    assert (result.ready(), result.successful(), result.get()) == (True, True, 0.3)


def test_a_result_that_is_late(pool: Pool):
    result = pool.apply_async(nap, (0.5,))
    assert result.wait(0.05) is None
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.05)
    with pytest.raises(TimeoutError):
        result.get(0)
    assert result.get(timeout=20) == 0.5


def test_an_exception_arrives_as_itself(pool: Pool):
    result = pool.apply_async(int, ("five",))
    result.wait(20)
    assert not result.successful()
    with pytest.raises(ValueError, match="five"):
        result.get()


def test_a_timeout_error_of_the_function_is_no_late_result(pool: Pool):
    def late():
        raise OSError(110, "timed out")  # an errno that makes it a TimeoutError

    result = pool.apply_async(late)
    result.wait(20)
    assert result.ready()
    with pytest.raises(OSError, match="timed out"):
        result.get(20)


# ---- map ----


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_map(pool: Pool, chunksize):
    assert pool.map(square, range(20), chunksize) == [n * n for n in range(20)]
    assert pool.map(square, (n for n in [2, 3]), chunksize) == [4, 9]
    assert pool.map(square, [], chunksize) == []


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_starmap(cml: Any, pool: Pool, chunksize):
    assert pool.starmap(pow, [(n, 2) for n in range(20)], chunksize) == [n * n for n in range(20)]
    assert pool.starmap(range, [(2,), (1, 3), [0, 9, 4]], chunksize) == [
        range(2),
        range(1, 3),
        range(0, 9, 4),
    ]
    assert pool.starmap(pow, [(cml.put(2), cml.put(3))], chunksize) == [8], "refs become values"


def test_map_async_and_starmap_async(pool: Pool):
    first, second = pool.map_async(square, range(10)), pool.starmap_async(pow, [(2, 3)])
    assert (first.get(20), second.get(20)) == ([n * n for n in range(10)], [8])


def test_an_exception_in_map(pool: Pool):
    with pytest.raises(ZeroDivisionError):
        pool.map(lambda n: 1 // n, [1, 0, 2])


def test_callbacks_are_called_once_before_the_result_is_ready(pool: Pool):
    seen: list[Any] = []
    one = pool.apply_async(square, (3,), callback=seen.append)
    assert (one.get(20), seen) == (9, [9])
    many = pool.map_async(square, range(3), chunksize=1, callback=seen.extend)
    assert (many.get(20), seen) == ([0, 1, 4], [9, 0, 1, 4])
    failed = pool.apply_async(
        int, ("x",), callback=seen.append, error_callback=lambda e: seen.append(type(e))
    )
    failed.wait(20)
    assert issubclass(seen.pop(), ValueError)
    assert seen == [9, 0, 1, 4]


# ---- imap ----


@pytest.mark.parametrize("chunksize", [1, 3])
def test_imap(pool: Pool, chunksize: int):
    results = pool.imap(square, range(20), chunksize=chunksize)
    assert next(results) == 0
    assert results.next(timeout=20) == 1
    assert list(results) == [n * n for n in range(2, 20)]
    with pytest.raises(StopIteration):
        next(results)


def test_imap_unordered(pool: Pool):
    assert list(pool.imap_unordered(nap, [0.5, 0, 0.1])) == [0, 0.1, 0.5]
    assert sorted(pool.imap_unordered(square, range(100), chunksize=7)) == [n * n for n in range(100)]


def test_imap_of_an_endless_iterable(pool: Pool):
    import itertools

    results = pool.imap(square, itertools.count())
    assert [next(results) for _ in range(100)] == [n * n for n in range(100)]


@pytest.mark.parametrize("how", ["imap", "imap_unordered"])
def test_a_late_item_of_imap_can_be_asked_for_again(pool: Pool, how: str):
    results = getattr(pool, how)(nap, [0.5])
    with pytest.raises(TimeoutError):
        results.next(timeout=0.05)
    assert results.next(timeout=20) == 0.5


def test_an_exception_in_imap_stands_at_its_place(pool: Pool):
    results = pool.imap(lambda n: 1 // n, [1, 0, -1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert next(results) == -1


# ---- processes and initializers ----


def test_processes_limits_what_runs_at_once(cml: Any):
    with Pool(1, num_cpus=0.1) as pool:
        begun = time.monotonic()
        assert pool.map(nap, [0.1] * 4, chunksize=1) == [0.1] * 4
        assert time.monotonic() - begun >= 0.4


def test_the_initializer_prepares_each_process(program: RunProgram):
    done = program(
        """\
import os, threading
from concurrent_ml.multiprocessing import Pool

def initialize(start, by):
    global base, pid
    base, pid = start * by, os.getpid()

def use(n):
    assert pid == os.getpid()
    return base + n

if __name__ == "__main__":
    with Pool(2, initialize, (2, 5), maxtasksperchild=1) as pool:
        assert pool.map(use, range(20)) == list(range(10, 30))
        assert pool.apply(use, (1,)) == 11
        assert list(pool.imap(use, range(3))) == [10, 11, 12]
        print("fine")
"""
    )
    assert done.stdout.strip() == "fine"


def test_two_pools_have_two_initializers(program: RunProgram):
    done = program(
        """\
from concurrent_ml.multiprocessing import Pool

def initialize(n):
    global number
    number = n

def use(_):
    return number

pools = [Pool(2, initialize, (n,)) for n in range(3)]
print([set(pool.map(use, range(8))) for pool in pools for _ in range(2)])
"""
    )
    assert done.stdout.strip() == "[{0}, {0}, {1}, {1}, {2}, {2}]"


def test_a_pool_in_a_task(cml: Any):
    @cml.remote
    def total(n):
        with Pool(2) as pool:
            return sum(pool.map(square, range(n))) + sum(pool.imap_unordered(square, range(n)))

    assert cml.get([total.remote(4)] * 2 + [total.remote(4)], timeout=40) == [28] * 3


# ---- ends ----


def test_close_and_join_let_calls_end(cml: Any):
    pool = Pool(1)
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()
    results = [pool.apply_async(nap, (0.1,)) for _ in range(3)]
    pool.close()
    pool.join()
    assert all(result.ready() for result in results)
    for call in (pool.apply, pool.apply_async):
        with pytest.raises(ValueError, match="Pool not running"):
            call(square, (1,))
    for call in (pool.map, pool.map_async, pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="Pool not running"):
            call(square, [1])
    with pytest.raises(ValueError, match="Pool not running"):
        pool.starmap(pow, [(1, 2)])
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass


def test_what_imap_has_not_read_yet_is_done_after_close(cml: Any):
    pool = Pool(1)
    results = pool.imap(square, range(50))
    pool.close()
    pool.join()
    assert list(results) == [n * n for n in range(50)]


def test_terminate_ends_what_runs(cml: Any):
    pool = Pool()
    results = [pool.apply_async(nap, (1000,)) for _ in range(4)]
    wait_until(lambda: any(f.running() for f in list(pool._outstanding)), 20, "one runs")
    pool.terminate()
    pool.join()
    assert all(result.ready() and not result.successful() for result in results)
    assert cml.get(cml.remote(square).remote(2), timeout=20) == 4, "the CPUs are free"


def test_leaving_the_with_terminates(cml: Any):
    with Pool() as pool:
        result = pool.apply_async(nap, (1000,))
    pool.join()
    assert result.ready()


def test_wrong_use_is_told(cml: Any, pool: Pool):
    for make, error in [
        (lambda: Pool(0), "Number of processes must be at least 1"),
        (lambda: Pool("2"), "processes is '2'; it must be a whole number"),  # type: ignore[arg-type]
        (lambda: Pool(initializer=5), "initializer must be a callable"),  # type: ignore[arg-type]
        (lambda: Pool(maxtasksperchild=0), "maxtasksperchild must be a positive int or None"),
        (lambda: Pool(num_cpu=1), "did you mean num_cpus"),  # type: ignore[call-arg]
        (lambda: pool.map(5, [1]), "a pool takes functions, not a int"),  # type: ignore[arg-type]
        (lambda: pool.map(square, [1], 0), r"Chunksize must be 1\+"),
        (lambda: pool.map(square, 5), "not iterable"),  # type: ignore[arg-type]
        (lambda: pool.apply(5), "takes a function"),  # type: ignore[arg-type]
        (lambda: pool.map(square, [threading.Lock()]), "cannot pickle"),
    ]:
        with pytest.raises((TypeError, ValueError), match=error):
            make()
    with pytest.raises(NotImplementedError, match="cannot be passed between processes or pickled"):
        pickle.dumps(pool)


def test_on_three_hosts(net: Network):
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1)
    c.cluster_join(a, num_cpus=1)
    text = """
import time, concurrent_ml as cml
from concurrent_ml.multiprocessing import Pool

def where(_):
    time.sleep(0.3)
    return cml.get_runtime_context().get_node_id()

with Pool() as pool:
    print(pool._processes, len(set(pool.map(where, range(12), chunksize=1))))
"""
    assert a.python(text, timeout=50).stdout.strip() == "3 3"
