"""`concurrent_ml.util.ActorPool`: work shared by a few actors."""

import time
from typing import Any

import pytest

from concurrent_ml.util import ActorPool

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def workers(cml: Any):
    @cml.remote
    class Worker:
        def __init__(self, name):
            self.name = name

        def double(self, x):
            return 2 * x

        def nap(self, seconds):
            time.sleep(seconds)
            return seconds

        def who(self, _):
            return self.name

        def fail(self, x):
            raise ValueError(x)

        @cml.method(num_returns=2)
        def both(self, x):
            return x, -x

    return [Worker.remote(name) for name in "ab"]


@pytest.fixture
def pool(workers):
    return ActorPool(workers)


def double(actor, value):
    return actor.double.remote(value)


def nap(actor, value):
    return actor.nap.remote(value)


def test_map_gives_results_in_order(pool: ActorPool):
    assert list(pool.map(double, range(10))) == [2 * n for n in range(10)]
    assert list(pool.map(nap, [0.3, 0, 0])) == [0.3, 0, 0]


def test_map_unordered_gives_them_as_they_come(pool: ActorPool):
    assert list(pool.map_unordered(nap, [0.5, 0.1, 0])) == [0.1, 0, 0.5]


def test_each_actor_has_one_piece_of_work_at_a_time(pool: ActorPool):
    begun = time.monotonic()
    assert list(pool.map(nap, [0.2] * 4)) == [0.2] * 4
    assert 0.4 <= time.monotonic() - begun < 20


def test_submit_and_get_next(pool: ActorPool):
    for n in range(4):
        pool.submit(double, n)
    results = []
    while pool.has_next():
        results.append(pool.get_next())
    assert results == [0, 2, 4, 6]
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_both_ways_of_taking_results_can_be_mixed(pool: ActorPool):
    pool.submit(nap, 0.5)
    pool.submit(nap, 0)
    pool.submit(nap, 0.01)
    assert pool.get_next_unordered() == 0
    assert pool.get_next() == 0.5
    assert pool.get_next() == 0.01
    assert not pool.has_next()


@pytest.mark.parametrize("how", ["get_next", "get_next_unordered"])
def test_a_late_result_can_be_asked_for_again(pool: ActorPool, how: str):
    pool.submit(nap, 0.5)
    with pytest.raises(TimeoutError, match=r"no result after 0.05 s; ObjectRef\(.*\) of Actor\(Worker"):
        getattr(pool, how)(timeout=0.05)
    assert getattr(pool, how)(timeout=20) == 0.5


@pytest.mark.parametrize("how", ["get_next", "get_next_unordered"])
def test_a_late_result_can_be_given_up(pool: ActorPool, how: str):
    pool.submit(nap, 0.5)
    with pytest.raises(TimeoutError, match="given up"):
        getattr(pool, how)(timeout=0.05, ignore_if_timedout=True)
    assert not pool.has_next()
    assert list(pool.map(double, [1])) == [2]


def test_a_failure_is_raised_and_the_pool_goes_on(pool: ActorPool):
    results = pool.map(lambda a, v: a.fail.remote(v) if v == 1 else a.double.remote(v), [0, 1, 2])
    assert next(results) == 0
    with pytest.raises(ValueError, match="1"):
        next(results)
    assert pool.get_next() == 4


def test_a_method_of_several_values_gives_a_list(pool: ActorPool):
    values = [n for n in range(3)]  # noqa: C416
    assert list(pool.map(lambda a, v: a.both.remote(v), values)) == [[0, 0], [1, -1], [2, -2]]
    unordered = pool.map_unordered(lambda a, v: a.both.remote(v), values)
    assert sorted(unordered) == [[0, 0], [1, -1], [2, -2]]


def test_map_drops_results_that_nobody_took(pool: ActorPool):
    for n in range(5):
        pool.submit(nap, n / 100)
    assert list(pool.map(double, [7])) == [14]


def test_actors_come_and_go(workers):
    pool = ActorPool(workers[:1])
    assert pool.has_free()
    pool.submit(nap, 0.2)
    assert not pool.has_free()
    assert pool.pop_idle() is None
    pool.submit(lambda a, v: a.who.remote(v), None)
    pool.push(workers[1])
    assert pool.get_next_unordered() == "b"
    assert pool.get_next() == 0.2
    with pytest.raises(ValueError, match="is in this pool already"):
        pool.push(workers[1])
    taken = pool.pop_idle()
    assert taken in workers
    pool.push(taken)


def test_wrong_use_is_told(cml: Any, pool: ActorPool, workers):
    with pytest.raises(TypeError, match=r"the function returned a int and not a ref: .*actor.method.remote"):
        pool.submit(lambda actor, value: value, 1)
    with pytest.raises(TypeError, match="submit.. takes a function"):  # noqa: RUF043
        pool.submit(5, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the pool has no actors"):
        ActorPool([]).map(double, [1])
    with pytest.raises(TypeError, match="a pool holds handles of actors, not a int"):
        ActorPool([1])
    with pytest.raises(TypeError, match=r"make one with \.remote"):
        ActorPool([cml.remote(type("Plain", (), {}))])
    assert list(pool.map(double, [1, 2])) == [2, 4], "the pool is as it was"


def test_a_dead_actor_fails_its_work_and_no_other(cml: Any, pool: ActorPool, workers):
    cml.kill(workers[0])
    results = []
    for n in range(4):
        pool.submit(double, n)
    while pool.has_next():
        try:
            results.append(pool.get_next(timeout=20))
        except cml.exceptions.ActorDiedError:
            results.append("died")
    assert set(results) <= {"died", 0, 2, 4, 6}
    assert len(results) == 4
    assert "died" in results
