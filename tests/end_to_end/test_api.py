"""The Python API on one machine: names and meanings as Ray's users know them.

Functions are defined inside the tests, so that they travel by value, as a script's own do.
"""

import asyncio
import concurrent.futures
import os
import threading
import time
from typing import Any

import numpy as np
import pytest

from testkit import wait_until


def test_a_function_runs_elsewhere_and_its_value_comes_back(cml: Any):
    @cml.remote
    def add(a, b):
        return a + b, os.getpid()

    value, pid = cml.get(add.remote(1, b=2))
    assert value == 3
    assert pid != os.getpid()


def test_calling_a_remote_function_directly_says_to_use_remote(cml: Any):
    @cml.remote
    def f():
        return 1

    with pytest.raises(TypeError, match=r"\.remote\("):
        f()


def test_a_list_of_refs_gives_a_list_in_the_same_order(cml: Any):
    @cml.remote
    def after(seconds):
        time.sleep(seconds)
        return seconds

    assert cml.get([after.remote(s) for s in (0.2, 0.0, 0.1)]) == [0.2, 0.0, 0.1]
    assert cml.get([]) == []


def test_tasks_run_at_the_same_time(cml: Any, tmp_path):
    @cml.remote
    def meet(me, other):
        (tmp_path / me).touch()
        end = time.monotonic() + 20
        while not (tmp_path / other).exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        return True

    assert cml.get([meet.remote("a", "b"), meet.remote("b", "a")]) == [True, True]


def test_top_level_refs_become_values_and_nested_ones_stay_refs(cml: Any):
    @cml.remote
    def look(value, inside):
        return value, type(inside[0]).__name__, cml.get(inside[0])

    ref = cml.put(7)
    assert cml.get(look.remote(ref, [ref])) == (7, "ObjectRef", 7)


def test_a_result_can_be_the_argument_of_the_next_task(cml: Any):
    @cml.remote
    def increment(x):
        return x + 1

    ref = cml.put(0)
    for _ in range(20):
        ref = increment.remote(ref)
    assert cml.get(ref) == 20


def test_refs_inside_results_and_puts_can_be_got(cml: Any):
    @cml.remote
    def make():
        return {"inner": [cml.put(np.arange(1000)), cml.put("small")]}

    inner = cml.get(cml.put(cml.get(make.remote())))["inner"]
    assert cml.get(inner[0]).sum() == 499_500
    assert cml.get(inner[1]) == "small"


def test_closures_lambdas_and_local_classes_travel(cml: Any):
    factor = 3

    class Point:
        def __init__(self, x):
            self.x = x

    @cml.remote
    def apply(function, point):
        return Point(function(point.x) * factor)

    assert cml.get(apply.remote(lambda x: x + 1, Point(1))).x == 6


def test_nested_tasks_two_deep_with_one_awaiting_many(cml: Any):
    @cml.remote
    def leaf(i):
        return i

    @cml.remote
    def branch(i):
        return sum(cml.get([leaf.remote(i * 10 + j) for j in range(10)]))

    assert sum(cml.get([branch.remote(i) for i in range(10)])) == sum(range(100))


def test_an_array_comes_back_as_a_read_only_view(cml: Any):
    array = np.arange(1_000_000)
    view = cml.get(cml.put(array))
    assert np.array_equal(view, array)
    assert not view.flags.writeable
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_a_view_outlives_its_ref(cml: Any):
    view = cml.get(cml.put(np.full(500_000, 7)))
    for number in range(20):
        cml.put(np.full(500_000, number))
    assert (view == 7).all()


def test_values_of_many_kinds_come_back_equal(cml: Any):
    @cml.remote
    def same(x):
        return x

    values = [
        None,
        True,
        2**80,
        1.5,
        "é" * 5000,
        b"\0" * 200_000,
        {"a": [1, (2, {3})]},
        range(3),
        np.float32(2.5),
    ]
    assert cml.get([same.remote(value) for value in values]) == values
    strided = np.arange(2_000_000).reshape(1000, 2000)[::2, ::3]
    assert np.array_equal(cml.get(same.remote(strided)), strided)
    assert cml.get(same.remote(np.zeros((0, 3)))).shape == (0, 3)


def test_num_returns_gives_one_ref_for_each(cml: Any):
    @cml.remote(num_returns=3)
    def three():
        return 1, "two", np.ones(100_000)

    a, b, c = three.remote()
    assert cml.get(a) == 1
    assert cml.get(b) == "two"
    assert cml.get(c).sum() == 100_000


def test_a_wrong_number_of_returns_is_an_error_that_says_so(cml: Any):
    @cml.remote(num_returns=2)
    def three():
        return 1, 2, 3

    with pytest.raises(ValueError, match=r"2.*3|3.*2"):
        cml.get(three.remote()[0])


def test_options_change_one_call_and_not_the_function(cml: Any):
    @cml.remote
    def pair():
        return 1, 2

    assert len(pair.options(num_returns=2).remote()) == 2
    assert cml.get(pair.remote()) == (1, 2)


def test_an_unknown_option_is_refused_by_name(cml: Any):
    with pytest.raises((TypeError, ValueError), match="num_cpu"):

        @cml.remote(num_cpu=1)
        def f():
            return 1


def test_wait_splits_into_ready_and_not_ready(cml: Any, tmp_path):
    @cml.remote
    def until(name):
        end = time.monotonic() + 20
        while not (tmp_path / name).exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        return name

    slow, quick = until.remote("slow"), cml.put(1)
    assert cml.wait([slow, quick]) == ([quick], [slow])
    assert cml.wait([slow], timeout=0) == ([], [slow])
    (tmp_path / "slow").touch()
    assert cml.wait([slow, quick], num_returns=2, timeout=20) == ([slow, quick], [])


def test_wait_gives_at_its_timeout_what_became_ready_meanwhile(cml: Any):
    @cml.remote(num_cpus=0.1)
    def nap(seconds):
        time.sleep(seconds)

    refs = [nap.remote(0.1), nap.remote(100), nap.remote(0.2)]
    assert cml.wait(refs, num_returns=3, timeout=2) == ([refs[0], refs[2]], [refs[1]])
    cml.cancel(refs[1])


def test_wait_refuses_what_makes_no_sense(cml: Any):
    ref = cml.put(1)
    with pytest.raises(ValueError, match="num_returns"):
        cml.wait([ref], num_returns=2)
    with pytest.raises(ValueError, match=r"(?i)unique|duplicate|twice"):
        cml.wait([ref, ref], num_returns=1)
    with pytest.raises(TypeError):
        cml.wait(ref)


def test_get_with_a_timeout_gives_up_in_time_and_can_be_repeated(cml: Any, tmp_path):
    @cml.remote
    def until_there():
        end = time.monotonic() + 20
        while not (tmp_path / "there").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        return "done"

    ref = until_there.remote()
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        cml.get(ref, timeout=0.2)
    assert 0.15 < time.monotonic() - begun < 2
    (tmp_path / "there").touch()
    assert cml.get(ref, timeout=20) == "done"


def test_refs_are_hashable_and_comparable(cml: Any):
    a, b = cml.put(1), cml.put(1)
    assert a == a  # noqa: PLR0124
    assert a != b
    assert {a: "a", b: "b"}[a] == "a"
    assert len({a, b, a}) == 2
    assert repr(a).startswith("ObjectRef(")


def test_refs_are_awaitable(cml: Any):
    @cml.remote
    def double(x):
        return 2 * x

    @cml.remote
    def fail():
        raise KeyError("lost")

    async def main():
        many = await asyncio.gather(*(double.remote(i) for i in range(100)))
        with pytest.raises(KeyError, match="lost"):
            await fail.remote()
        return many, await cml.put("put")

    assert asyncio.run(main()) == ([2 * i for i in range(100)], "put")


def test_a_ref_gives_a_future(cml: Any):
    @cml.remote
    def one():
        return 1

    future = one.remote().future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=20) == 1


def test_many_threads_can_submit_and_get(cml: Any):
    @cml.remote
    def square(x):
        return x * x

    results = {}

    def work(number):
        results[number] = cml.get([square.remote(number + i) for i in range(50)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=40)
    assert results == {n: [(n + i) ** 2 for i in range(50)] for n in range(8)}


def test_an_exception_keeps_its_type_and_shows_the_remote_traceback(cml: Any):
    @cml.remote
    def fail():
        raise ValueError("the matter")

    with pytest.raises(ValueError, match="the matter") as caught:
        cml.get(fail.remote())
    shown = str(caught.value)
    assert "in fail" in shown
    assert 'raise ValueError("the matter")' in shown


def test_the_error_of_an_argument_reaches_who_asks_for_the_result(cml: Any):
    @cml.remote
    def fail():
        raise ZeroDivisionError("first")

    @cml.remote
    def use(x):
        return x

    with pytest.raises(ZeroDivisionError, match="first"):
        cml.get(use.remote(fail.remote()))


def test_user_exceptions_are_retried_only_when_asked(cml: Any, tmp_path):
    def attempts(name, **options):
        @cml.remote(**options)
        def fail_twice():
            with (tmp_path / name).open("a") as log:
                log.write(".")
            if (tmp_path / name).stat().st_size < 3:
                raise OSError("not yet")
            return "at last"

        return fail_twice.remote()

    with pytest.raises(OSError, match="not yet"):
        cml.get(attempts("never", max_retries=5))
    assert (tmp_path / "never").stat().st_size == 1
    assert cml.get(attempts("always", max_retries=5, retry_exceptions=True)) == "at last"
    assert cml.get(attempts("listed", max_retries=5, retry_exceptions=[OSError])) == "at last"
    with pytest.raises(OSError, match="not yet"):
        cml.get(attempts("other", max_retries=5, retry_exceptions=[KeyError]))


def test_fractions_of_a_cpu_run_side_by_side(cml: Any, tmp_path):
    @cml.remote(num_cpus=0.25)
    def meet(number):
        (tmp_path / str(number)).touch()
        end = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 8:
            assert time.monotonic() < end, "not all eight ran at once on two CPUs"
            time.sleep(0.01)
        return number

    assert sorted(cml.get([meet.remote(i) for i in range(8)])) == list(range(8))


def test_a_custom_resource_lets_one_task_at_a_time(cml: Any, tmp_path):
    @cml.remote(num_cpus=0, resources={"lamp": 1})
    def alone(number):
        lock = tmp_path / "lock"
        lock.touch(exist_ok=False)
        time.sleep(0.02)
        lock.unlink()
        return number

    assert cml.get([alone.remote(i) for i in range(10)]) == list(range(10))


def test_a_task_sees_the_environment_variables_it_asked_for(cml: Any):
    @cml.remote(runtime_env={"env_vars": {"COLOUR": "green"}})
    def colour():
        return os.environ.get("COLOUR")

    @cml.remote
    def plain():
        return os.environ.get("COLOUR")

    assert cml.get([colour.remote(), plain.remote()]) == ["green", None]


def test_thread_pools_are_sized_to_the_tasks_cpus(cml: Any):
    @cml.remote(num_cpus=1)
    def threads():
        return os.environ.get("OMP_NUM_THREADS")

    assert cml.get(threads.remote()) == "1"


def test_without_gpus_a_task_sees_none(cml: Any):
    @cml.remote
    def visible():
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    assert cml.get(visible.remote()) == ""


def test_the_runtime_context_names_node_executor_and_task(cml: Any):
    @cml.remote
    def where():
        here = cml.get_runtime_context()
        return here.get_node_id(), here.get_worker_id(), here.get_task_id(), here.get_job_id()

    node, executor, task, job = cml.get(where.remote())
    assert all(isinstance(word, str) and word for word in (node, executor, task, job))
    assert cml.get(where.remote())[2] != task
    assert job == cml.get_runtime_context().get_job_id()
    assert node in [row["NodeID"] for row in cml.nodes()]


def test_resources_are_counted_and_come_back(cml: Any):
    assert cml.cluster_resources()["CPU"] == 2
    assert cml.cluster_resources()["lamp"] == 1

    @cml.remote(num_cpus=0, resources={"lamp": 1})
    def available():
        return cml.available_resources().get("lamp", 0)

    assert cml.get(available.remote()) == 0
    wait_until(lambda: cml.available_resources().get("lamp") == 1, 5, "the lamp is free again")


def test_nodes_tells_of_the_one_there_is(cml: Any):
    (node,) = cml.nodes()
    assert node["Alive"] is True
    assert node["Resources"]["CPU"] == 2


def test_global_random_numbers_differ_between_executors(cml: Any, tmp_path):
    @cml.remote
    def draw(number):
        (tmp_path / str(number)).touch()
        end = time.monotonic() + 20
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        return os.getpid(), float(np.random.random())

    (one, first), (other, second) = cml.get([draw.remote(0), draw.remote(1)])
    assert one != other
    assert first != second


def test_remote_of_something_that_is_no_function_says_so(cml: Any):
    with pytest.raises(TypeError, match=r"(?i)callable|function"):
        cml.remote(5)


def test_a_get_of_several_raises_as_soon_as_one_has_failed(cml: Any):
    @cml.remote
    def slow():
        time.sleep(30)

    @cml.remote
    def fail():
        raise ValueError("at once")

    late = slow.remote()
    begun = time.monotonic()
    with pytest.raises(ValueError, match="at once"):
        cml.get([late, fail.remote()], timeout=20)
    failed = fail.remote()
    cml.wait([failed])
    with pytest.raises(ValueError, match="at once"):
        cml.get([late, failed], timeout=20)
    assert time.monotonic() - begun < 15
    cml.cancel(late)
