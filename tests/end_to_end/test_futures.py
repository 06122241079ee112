"""`concurrent_ml.futures.Executor`: what programs written for `ProcessPoolExecutor` expect, on the cluster."""

import concurrent.futures
import functools
import os
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest

from concurrent_ml.futures import Executor, Future
from testkit import RunProgram, wait_until

pytestmark = pytest.mark.timeout(60)


def square(x):
    return x * x


def nap(seconds):
    time.sleep(seconds)
    return seconds


def fail(text):
    raise ValueError(text)


@pytest.fixture
def executor(cml: Any):
    with Executor() as made:
        yield made


# ---- submit ----


def test_it_is_an_executor_and_gives_futures(executor: Executor):
    assert isinstance(executor, concurrent.futures.Executor)
    future = executor.submit(pow, 2, 10, mod=1000)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(20) == 24
    assert future.done()
    assert not future.cancel()


def test_calls_run_in_other_processes(executor: Executor):
    assert executor.submit(os.getpid).result() != os.getpid()


def test_anything_that_can_be_called_can_be_submitted(executor: Executor):
    class Adder:
        def __init__(self, n):
            self.n = n

        def add(self, x):
            return self.n + x

        __call__ = add

    adder = Adder(1)
    calls = [lambda x: x + 1, adder, adder.add, functools.partial(sum, start=1)]
    arguments = [1, 1, 1, [1]]
    assert [executor.submit(f, a).result() for f, a in zip(calls, arguments, strict=True)] == [2, 2, 2, 2]
    adder.n = 10
    assert executor.submit(adder.add, 1).result() == 11, "what can change is sent as it is at each call"


def test_an_exception_arrives_as_itself(executor: Executor):
    future = executor.submit(fail, "on purpose")
    assert isinstance(future.exception(20), ValueError)
    with pytest.raises(ValueError, match="on purpose"):
        future.result(20)


def test_a_call_that_cannot_be_sent_fails_in_its_future(executor: Executor):
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        executor.submit(square).result(20)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="argument 'x' of square"):
        executor.submit(square, threading.Lock()).result(20)


def test_a_result_that_is_late_raises_timeout_error(executor: Executor):
    future = executor.submit(nap, 20)
    with pytest.raises(TimeoutError):
        future.result(0.1)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(0)
    end_now(future)


def end_now(future: Future[Any]) -> None:
    import concurrent_ml as cml

    assert future.ref is not None
    cml.cancel(future.ref)


def test_a_future_knows_its_ref_and_refs_can_be_arguments(cml: Any, executor: Executor):
    first = executor.submit(square, 3)
    assert executor.submit(square, first.ref).result(20) == 81
    assert cml.get(first.ref) == 9


def test_callbacks_are_called(executor: Executor):
    seen = []
    future = executor.submit(square, 2)
    future.add_done_callback(lambda done: seen.append(done.result()))
    wait_until(lambda: seen == [4], 20, "the callback is called")


def test_options_are_those_of_remote(cml: Any):
    def cpus():
        return cml.get_runtime_context().get_assigned_resources()["CPU"], os.environ.get("WHO")

    with Executor(num_cpus=0.5, runtime_env={"env_vars": {"WHO": "me"}}) as executor:
        assert executor.submit(cpus).result(20) == (0.5, "me")


# ---- cancelling ----


@pytest.fixture
def blocked(cml: Any):
    """Calls of which two run and the others wait for CPUs."""
    with Executor() as executor:
        futures = [executor.submit(nap, 100) for _ in range(6)]
        wait_until(lambda: sum(future.running() for future in futures) == 2, 20, "two run")
        yield futures
        for future in futures:
            if not future.cancelled():
                end_now(future)


def test_a_call_that_waits_can_be_cancelled_one_that_runs_cannot(blocked: list[Future[Any]]):
    running = [future for future in blocked if future.running()]
    waiting = [future for future in blocked if future not in running]
    assert not any(future.cancel() for future in running)
    assert all(future.cancel() for future in waiting)
    assert all(future.cancelled() and future.done() and not future.running() for future in waiting)
    with pytest.raises(CancelledError):
        waiting[0].result(1)
    assert concurrent.futures.wait(blocked, 20, concurrent.futures.FIRST_COMPLETED).not_done == set(running)
    assert set(concurrent.futures.as_completed(waiting, 20)) == set(waiting)
    assert all(future.cancel() for future in waiting), "again, it stays cancelled"


def test_shutdown_can_cancel_what_waits(cml: Any):
    executor = Executor()
    futures = [executor.submit(nap, 0.5) for _ in range(8)]
    wait_until(lambda: sum(future.running() for future in futures) == 2, 20, "two run")
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures if not future.cancelled()] == [0.5] * 2
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(square, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(square, [1])


def test_leaving_the_with_waits_for_all(cml: Any):
    with Executor() as executor:
        futures = [executor.submit(nap, 0.2) for _ in range(4)]
    assert all(future.done() for future in futures)


def test_shutdown_without_waiting_returns_at_once(cml: Any):
    executor = Executor()
    future = executor.submit(nap, 0.5)
    begun = time.monotonic()
    executor.shutdown(wait=False)
    assert time.monotonic() - begun < 0.4
    assert future.result(20) == 0.5


def test_concurrent_futures_wait_and_as_completed(executor: Executor):
    slow, quick = executor.submit(nap, 0.5), executor.submit(square, 2)
    assert concurrent.futures.wait([slow, quick], 20, concurrent.futures.FIRST_COMPLETED).done == {quick}
    assert list(concurrent.futures.as_completed([slow, quick], 20)) == [quick, slow]


# ---- map ----


def test_map_gives_results_in_order(executor: Executor):
    assert list(executor.map(square, range(1000))) == [n * n for n in range(1000)]
    assert list(executor.map(pow, [2, 3], (n for n in [5, 2, 9]))) == [32, 9]
    assert list(executor.map(square, [])) == []


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_in_chunks_gives_the_same(cml: Any, executor: Executor, chunksize: int):
    assert list(executor.map(pow, range(10), [2] * 10, chunksize=chunksize)) == [n**2 for n in range(10)]
    refs = [cml.put(n) for n in range(10)]
    assert list(executor.map(square, refs, chunksize=chunksize)) == [n * n for n in range(10)]


def test_map_raises_where_a_call_raised(executor: Executor):
    results = executor.map(lambda n: 1 // n, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_with_a_timeout(executor: Executor):
    results = executor.map(nap, [0, 20], timeout=1)
    assert next(results) == 0
    with pytest.raises(TimeoutError):
        next(results)
    for ref in results._refs:  # type: ignore[attr-defined]
        import concurrent_ml

        concurrent_ml.cancel(ref)


def test_closing_the_results_cancels_what_has_not_started(cml: Any):
    with Executor(num_cpus=0.5) as executor:
        results = executor.map(nap, [0, *[0.2] * 5000])
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
        assert list(results) == []
        begun = time.monotonic()
        assert executor.submit(square, 3).result(20) == 9, "what was queued before it is gone"
        assert time.monotonic() - begun < 20


def test_map_with_a_buffersize_reads_ahead_no_further(executor: Executor):
    read = []

    def items():
        for n in range(100):
            read.append(n)
            yield n

    results = executor.map(square, items(), buffersize=4)
    assert read == [0, 1, 2, 3]
    assert next(results) == 0
    assert read == [0, 1, 2, 3, 4]
    assert list(results) == [n * n for n in range(1, 100)]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"chunksize": 0}, "chunksize is 0"),
        ({"buffersize": 0}, "buffersize is 0"),
        ({"chunksize": 1.5}, "whole"),
    ],
)
def test_wrong_sizes_are_told(executor: Executor, options, error: str):
    with pytest.raises((ValueError, TypeError), match=error):
        executor.map(square, [1], **options)


# ---- max_workers, initializers ----


def test_max_workers_limits_what_runs_at_once(cml: Any):
    @cml.remote(num_cpus=0)
    class Gauge:
        def __init__(self):
            self.now = self.most = 0

        def change(self, by):
            self.now += by
            self.most = max(self.most, self.now)
            return self.most

    gauge = Gauge.remote()

    def work(n):
        cml.get(gauge.change.remote(1))
        time.sleep(0.05)
        cml.get(gauge.change.remote(-1))
        return n

    with Executor(max_workers=2, num_cpus=0.1) as executor:
        assert list(executor.map(work, range(10))) == list(range(10))
        futures = [executor.submit(work, n) for n in range(10)]
        assert futures[-1].cancel()
        # The last first: waiting for it makes those before it go on.
        assert [future.result(20) for future in futures[-2::-1]] == list(range(8, -1, -1))
    assert cml.get(gauge.change.remote(0)) == 2


def test_futures_inside_a_task_lend_its_cpu(cml: Any):
    @cml.remote
    def parent(max_workers):
        with Executor(max_workers) as executor:
            futures = [executor.submit(square, n) for n in range(4)]
            return [future.result() for future in futures[::-1]]

    refs = [parent.remote(max_workers) for max_workers in (None, 1, None, 2)]
    assert cml.get(refs, timeout=40) == [[9, 4, 1, 0]] * 4


def test_the_initializer_runs_once_in_each_process_before_its_calls(program: RunProgram):
    done = program(
        """\
import os, concurrent_ml as cml
from concurrent_ml.futures import Executor

def initialize(start):
    global base, pid
    base, pid = start, os.getpid()
    print("initializing", os.getpid())

def use(n):
    assert pid == os.getpid()
    return base + n

def other(n):
    return base * n

cml.init(num_cpus=2)
with Executor(initializer=initialize, initargs=(10,)) as executor:
    assert list(executor.map(use, range(20))) == [10 + n for n in range(20)]
    assert list(executor.map(other, range(20), chunksize=5)) == [10 * n for n in range(20)]
    assert executor.submit(use, 1).result() == 11
    import functools
    assert executor.submit(functools.partial(other, 2)).result() == 20
cml.shutdown()
"""
    )
    lines = [line for line in done.stderr.splitlines() if "initializing" in line]
    pids = [line.split()[-1] for line in lines]
    assert pids, done.stderr
    assert len(pids) == len(set(pids)), lines


def test_an_initializer_that_fails_fails_the_calls(cml: Any):
    with (
        Executor(initializer=fail, initargs=("no start",)) as executor,
        pytest.raises(ValueError, match="no start"),
    ):
        executor.submit(square, 1).result(20)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_workers": 0}, "max_workers is 0; it must be 1 or more"),
        ({"max_workers": "2"}, "max_workers is '2'; it must be a whole number"),
        ({"initializer": 5}, "initializer is a int"),
        ({"num_returns": 2}, "takes no num_returns"),
        ({"num_cpu": 2}, "did you mean num_cpus"),
    ],
)
def test_wrong_options_are_told(cml: Any, options, error: str):
    with pytest.raises((ValueError, TypeError), match=error):
        Executor(**options)


def test_submitting_what_cannot_be_called_is_told(executor: Executor):
    with pytest.raises(TypeError, match=r"submit\(\) takes a function and its arguments, not a int"):
        executor.submit(5)  # type: ignore[arg-type]


def test_a_remote_function_is_not_what_is_submitted(cml: Any, executor: Executor):
    remote: Any = cml.remote(square)
    for call in (lambda: executor.submit(remote, 1), lambda: executor.map(remote, [1])):
        with pytest.raises(TypeError, match=r"square is remote: give square\.__wrapped__"):
            call()


def test_an_executor_stays_where_it_is(cml: Any, executor: Executor):
    with pytest.raises(TypeError, match="make one where it is used"):
        cml.put(executor)


# ---- ends ----


def test_a_program_waits_for_its_calls_before_it_ends(program: RunProgram, tmp_path):
    program(
        f"""\
import time, pathlib
from concurrent_ml.futures import Executor

def write():
    time.sleep(0.5)
    pathlib.Path({str(tmp_path / "written")!r}).write_text("yes")

Executor().submit(write)
"""
    )
    assert (tmp_path / "written").read_text() == "yes"


def test_a_lost_cluster_ends_all_futures(program: RunProgram):
    done = program(
        """\
import time, concurrent_ml as cml
from concurrent_ml.futures import Executor

cml.init(num_cpus=1)
executor = Executor(max_workers=2)
futures = [executor.submit(time.sleep, 1000) for _ in range(4)]
cml.shutdown()
for future in futures:
    print(type(future.exception(10)).__name__)
""",
        timeout=30,
    )
    assert done.stdout.split() == ["ClusterClosedError"] * 4
