"""The package on an embedded cluster: what is particular to Python. What users see is in tests/end_to_end."""

import asyncio
import copy
import gc
import os
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def echo(cml: Any):
    return cml.remote(lambda *args, **kwargs: (args, kwargs))


def wait_until(check, what, seconds=20):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.005)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(100_000),
        np.asfortranarray(np.arange(10_000.0).reshape(100, 100)),
        np.arange(30_000)[::3],
        [np.arange(10), np.arange(10_000)],
        {"a": np.arange(10_000), "b": ("c", np.arange(20_000))},
        np.array(["x", None, 3], dtype=object),
        np.float32(2.5),
        b"x" * 3_000_000,
        "é" * 100_000,
        list(range(100_000)),
        {1: {2: {3: {4: {5: {6: "deep"}}}}}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_equal_from_a_put_and_from_a_task(cml: Any, echo, value):
    from_put = cml.get(cml.put(value))
    (from_task,), _ = cml.get(echo.remote(value))
    for back in (from_put, from_task):
        np.testing.assert_equal(back, value)
        assert type(back) is type(value)


def test_refs_and_arrays_travel_in_one_value(cml: Any):
    inner = cml.put(np.arange(5000))
    back = cml.get(cml.put([inner, np.arange(2000), {"again": inner}]))
    assert back[0] == inner == back[2]["again"]
    assert cml.get(back[0]).sum() == np.arange(5000).sum()
    del inner
    assert cml.get(back[2]["again"]).sum() == np.arange(5000).sum()


def test_refs_may_be_named_arguments_and_are_given_as_values(cml: Any, echo):
    ref = cml.put(5)
    args, kwargs = cml.get(echo.remote(1, ref, named=ref, inside=[ref]))
    assert args == (1, 5)
    assert kwargs == {"named": 5, "inside": [ref]}


def test_wrong_calls_fail_where_they_are_written(cml: Any):
    @cml.remote
    def f(a, b=2, *, c=3):
        return a + b + c

    @cml.remote
    def only_named(*, x):
        return x

    @cml.remote
    def by_position(a, /, **rest):
        return a, rest

    wrong = [
        (f, (), {}),
        (f, (1, 2, 3), {}),
        (f, (1,), {"a": 1}),
        (f, (1,), {"d": 4}),
        (f, (), {"b": 1}),
        (only_named, (), {}),
        (only_named, (1,), {}),
        (by_position, (), {}),
    ]
    for function, args, kwargs in wrong:
        with pytest.raises(TypeError, match=r"\.remote\(\): "):
            function.remote(*args, **kwargs)
    calls = [f.remote(1), f.remote(1, 2, c=0), f.remote(a=1, c=1), only_named.remote(x=7)]
    assert cml.get(calls) == [6, 3, 4, 7]
    assert cml.get(by_position.remote(1, a=2)) == (1, {"a": 2})


def test_an_argument_that_cannot_be_pickled_is_named(cml: Any):
    @cml.remote
    def use(first, settings):
        return settings

    with pytest.raises(TypeError, match=r"argument 'settings' of use: \['guard'\] is a _thread.lock"):
        use.remote(1, {"guard": threading.Lock()})


def test_a_result_that_cannot_be_pickled_is_named(cml: Any):
    @cml.remote
    def make():
        return {"deep": [threading.Lock()]}

    with pytest.raises(TypeError, match=r"the result of make: \['deep'\]\[0\] is a _thread.lock"):
        cml.get(make.remote())


def test_functions_call_themselves_and_each_other(cml: Any):
    @cml.remote
    def fib(n):
        return n if n < 2 else sum(cml.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert cml.get(fib.remote(6)) == 8


def test_more_functions_than_an_executor_keeps(cml: Any):
    functions = [cml.remote(lambda number=number: number) for number in range(300)]
    for _ in range(2):
        assert cml.get([f.remote() for f in functions]) == list(range(300))


def test_a_function_that_could_not_be_loaded_at_first_is_tried_again(cml: Any, tmp_path):
    class Shy:
        def __init__(self, path):
            self.path = path

        def __call__(self):
            return "loaded"

        def __reduce__(self):
            def make(path):
                if not os.path.exists(path):
                    open(path, "w").close()
                    raise ImportError("not there yet")
                return lambda: "loaded"

            return make, (self.path,)

    f = cml.remote(Shy(str(tmp_path / "there"))).options(num_cpus=2)
    with pytest.raises(ImportError, match="not there yet"):
        cml.get(f.remote())
    assert cml.get(f.remote()) == "loaded"


def test_wait_keeps_order_and_sees_duplicates(cml: Any):
    refs = [cml.put(i) for i in range(100)]
    for count in (1, 16, 17, 99, 100):
        ready, rest = cml.wait(refs, num_returns=count)
        assert ready == refs[:count]
        assert rest == refs[count:]
    with pytest.raises(ValueError, match="duplicate"):
        cml.wait([refs[0], refs[1], refs[0]])
    assert cml.wait(refs, num_returns=2)[0] == refs[:2]


def test_copies_of_a_ref_are_the_same_ref(cml: Any):
    ref = cml.put(1)
    assert copy.copy(ref) is ref
    assert copy.deepcopy({"r": [ref]})["r"][0] is ref


def test_a_ref_pickled_by_somebody_else_keeps_its_object_with_a_warning(cml: Any):
    ref = cml.put(np.arange(10_000))
    with pytest.warns(UserWarning, match="kept until this process ends"):
        data = pickle.dumps(ref)
    del ref
    gc.collect()
    assert cml.get(pickle.loads(data)).sum() == np.arange(10_000).sum()


def test_ids_are_text_that_can_be_looked_up(cml: Any, echo):
    ref = echo.remote()
    assert len(ref.hex()) == 32
    assert ref.hex() == ref.binary().hex()
    assert ref.task_id()
    assert cml.put(1).task_id() is None


def test_errors_name_task_attempt_node_and_executor(cml: Any):
    @cml.remote
    def fail():
        raise LookupError("nothing")

    with pytest.raises(LookupError) as caught:
        cml.get(fail.remote())
    text = str(caught.value)
    node = cml.get_runtime_context().get_node_id()
    for words in ("task fail", "attempt 1", f"node {node}", "executor "):
        assert words in text
    assert "concurrent_ml/_executor.py" not in text


def test_a_timeout_says_what_was_waited_for(cml: Any):
    @cml.remote
    def slow():
        time.sleep(2)

    ref = slow.remote()
    with pytest.raises(cml.exceptions.GetTimeoutError, match=r"not ready after 0\.05 s: task .*slow"):
        cml.get(ref, timeout=0.05)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            cml.get(ref, timeout=wrong)
    cml.get(ref)


def test_many_awaits_in_several_loops(cml: Any, echo):
    async def all_of(count):
        return [args[0] for args, _ in await asyncio.gather(*(echo.remote(i) for i in range(count)))]

    for _ in range(3):
        assert asyncio.run(all_of(200)) == list(range(200))


def test_asyncio_waits_for_some_of_many_refs(cml: Any, echo):
    async def main():
        # What the warning about `wait` in an event loop says to write.
        waiting = [asyncio.ensure_future(echo.remote(number)) for number in range(3)]
        done, late = await asyncio.wait(waiting, timeout=20)
        return sorted(args[0] for args, _ in (future.result() for future in done)), late

    assert asyncio.run(main()) == ([0, 1, 2], set())


def test_an_await_that_is_given_up_harms_nothing(cml: Any):
    @cml.remote
    def slow():
        time.sleep(0.3)
        return "done"

    async def main():
        ref = slow.remote()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(wrap(ref))), 0.01)
        task = asyncio.ensure_future(wrap(ref))
        await asyncio.sleep(0)
        task.cancel()
        return await ref

    async def wrap(ref):
        return await ref

    assert asyncio.run(main()) == "done"


def test_futures_carry_values_and_errors(cml: Any, echo):
    @cml.remote
    def fail():
        raise KeyError("k")

    assert echo.remote(1).future().result(20) == ((1,), {})
    assert isinstance(fail.remote().future().exception(20), KeyError)


def test_thread_pools_follow_the_cpus_of_the_task(cml: Any):
    def threads():
        return os.environ.get("OMP_NUM_THREADS")

    counts = [cml.remote(threads).options(num_cpus=n).remote() for n in (1, 2, 0.5)]
    assert cml.get(counts) == ["1", "2", "1"]


def test_an_executor_keeps_nothing_of_a_task_that_has_ended(cml: Any):
    array = cml.put(np.ones(1_000_000))

    @cml.remote
    def use(x):
        return float(x.sum())

    assert cml.get(use.remote(array)) == 1e6
    from concurrent_ml import _state

    name = str(array).removeprefix("ObjectRef(").removesuffix(")")
    del array
    client = _state.connected()
    wait_until(lambda: name not in client.query("objects"), f"object {name} is freed")


def test_a_forked_child_of_a_task_can_print(cml: Any):
    @cml.remote
    def forks():
        child = os.fork()
        if child == 0:
            print("from the child")
            os._exit(0)
        return os.waitpid(child, 0)[1]

    assert cml.get(forks.remote()) == 0


def test_the_context_tells_of_the_task(cml: Any):
    @cml.remote(num_cpus=0.5, name="renamed")
    def where():
        here = cml.get_runtime_context()
        return here.get_task_name(), here.get_assigned_resources(), here.get_attempt_number()

    assert cml.get(where.remote()) == ("renamed", {"CPU": 0.5}, 0)
    assert cml.get_runtime_context().get_task_id() is None


def test_a_function_without_parameters_takes_none(cml: Any):
    nothing = cml.remote(lambda: None)
    for wrong in (lambda: nothing.remote(1), lambda: nothing.remote(x=1)):
        with pytest.raises(TypeError):
            wrong()


def test_an_executor_ends_after_max_calls_of_a_function(cml: Any):
    @cml.remote(max_calls=2, num_cpus=0.5)
    def where() -> int:
        import os

        return os.getpid()

    pids = cml.get([where.remote() for _ in range(12)])
    assert all(pids.count(pid) <= 2 for pid in pids)


def test_an_attribute_of_the_same_name_does_not_hide_a_method(cml: Any):
    class Lamp:
        def lit(self) -> bool:
            return self.__dict__["lit"]

        def __init__(self) -> None:
            self.__dict__["lit"] = True

    assert cml.get(cml.remote(Lamp).remote().lit.remote()) is True


def test_as_many_calls_run_at_once_as_an_actor_with_coroutines_allows(cml: Any):
    import asyncio

    @cml.remote
    class Gate:
        def __init__(self) -> None:
            self.waiting = 0
            self.event = asyncio.Event()

        async def wait_for(self, others: int) -> int:
            self.waiting += 1
            if self.waiting == others:
                self.event.set()
            await self.event.wait()
            return self.waiting

    gate = Gate.remote()
    assert set(cml.get([gate.wait_for.remote(900) for _ in range(900)], timeout=30)) == {900}


def test_a_coroutine_that_blocks_holds_up_its_own_group_only(cml: Any):
    import time

    @cml.remote(concurrency_groups={"slow": 1, "quick": 1})
    class Mixed:
        @cml.method(concurrency_group="slow")
        async def block(self) -> None:
            time.sleep(1000)

        @cml.method(concurrency_group="quick")
        def answer(self) -> int:
            return 1

        async def also(self) -> int:
            return 2

    mixed = Mixed.remote()
    mixed.block.remote()
    assert cml.get([mixed.answer.remote(), mixed.also.remote()], timeout=20) == [1, 2]
    cml.kill(mixed)


def test_a_number_of_threads_that_the_user_chose_stays(cml: Any):
    @cml.remote(num_cpus=2)
    def threads() -> str | None:
        import os

        return os.environ.get("OMP_NUM_THREADS")

    chosen = threads.options(runtime_env={"env_vars": {"OMP_NUM_THREADS": "7"}})
    assert cml.get([threads.remote(), chosen.remote()]) == ["2", "7"]
