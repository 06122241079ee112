"""Calls that go straight from their caller to an actor of the same machine: what users must not notice of it.

The first call of a handle goes by the head and opens the way; `straight` says when a caller has it.
"""

import contextlib
import json
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from concurrent_ml import _state

DEADLINE = 30


@pytest.fixture(scope="module")
def actor_class(cml: Any) -> Any:
    class Log:
        def __init__(self) -> None:
            self.entries: list[Any] = []

        def add(self, entry: Any = None) -> int:
            self.entries.append(entry)
            return len(self.entries)

        def all(self) -> list[Any]:
            return self.entries

        def zeros(self, count: int) -> np.ndarray:
            return np.zeros(count)

        def refs(self) -> list[Any]:
            return [cml.put("inside")]

        def sleep(self, seconds: float) -> str:
            time.sleep(seconds)
            return "slept"

        def fail(self) -> None:
            raise ValueError("on purpose")

        def pid(self) -> int:
            return os.getpid()

        def exit(self) -> None:
            cml.exit_actor()

        def child(self) -> Any:
            return cml.get(nap.remote())

    @cml.remote
    def nap() -> str:
        time.sleep(0.1)
        return "rested"

    return Log


def straight(cml: Any, cls: Any, **options: Any) -> Any:
    """A handle whose calls go straight: some calls were answered, and nothing is under way."""
    actor = cml.remote(cls).options(num_cpus=0, **options).remote()
    for _ in range(3):
        cml.get(actor.pid.remote(), timeout=DEADLINE)
    return actor


def test_calls_keep_their_order_whichever_way_each_goes(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class)
    large, ref = np.zeros(10_000), cml.put("by ref")
    for number in range(200):
        actor.add.remote(number)
        if number % 20 == 0:
            actor.add.remote(large)
        if number % 30 == 0:
            actor.add.remote(ref)
    entries = [e for e in cml.get(actor.all.remote(), timeout=DEADLINE) if isinstance(e, int)]
    assert entries == list(range(200))


def test_results_of_every_kind_come_back(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class)
    assert cml.get(actor.zeros.remote(100_000), timeout=DEADLINE).sum() == 0
    assert cml.get(cml.get(actor.refs.remote(), timeout=DEADLINE)[0]) == "inside"
    with pytest.raises(ValueError, match="on purpose"):
        cml.get(actor.fail.remote(), timeout=DEADLINE)
    assert cml.get(actor.child.remote(), timeout=DEADLINE) == "rested"


def test_a_result_is_an_argument_before_it_exists(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class)
    other = straight(cml, actor_class)

    @cml.remote
    def double(text: str) -> str:
        return text * 2

    slow = actor.sleep.remote(0.3)
    assert cml.get([double.remote(slow), other.add.remote(slow)], timeout=DEADLINE) == ["sleptslept", 1]
    assert cml.get(other.all.remote(), timeout=DEADLINE) == ["slept"]
    failed = actor.fail.remote()
    with pytest.raises(ValueError, match="on purpose"):
        cml.get(double.remote(failed), timeout=DEADLINE)
    # Told to somebody else after it was answered, too.
    with pytest.raises(ValueError, match="on purpose"):
        cml.get(double.remote(failed), timeout=DEADLINE)


def test_what_a_dead_actor_had_not_answered_fails_with_the_reason(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class)
    pid = cml.get(actor.pid.remote())
    calls = [actor.sleep.remote(60)] + [actor.add.remote() for _ in range(5)]
    os.kill(pid, signal.SIGKILL)
    for call in calls:
        with pytest.raises(cml.exceptions.ActorDiedError, match="SIGKILL"):
            cml.get(call, timeout=DEADLINE)
    with pytest.raises(cml.exceptions.ActorDiedError, match="SIGKILL"):
        cml.get(actor.add.remote(), timeout=DEADLINE)


def test_calls_go_on_at_the_next_incarnation(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class, max_restarts=1, max_task_retries=2)
    pid = cml.get(actor.pid.remote())
    first = actor.sleep.remote(2)
    calls = [actor.add.remote(number) for number in range(100)]
    os.kill(pid, signal.SIGKILL)
    assert cml.get(first, timeout=DEADLINE) == "slept"
    assert cml.get(calls, timeout=DEADLINE) == list(range(1, 101))
    assert cml.get(actor.all.remote(), timeout=DEADLINE) == list(range(100))


def test_exit_actor_ends_its_calls(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class)
    with pytest.raises(cml.exceptions.ActorDiedError, match="exit_actor"):
        cml.get(actor.exit.remote(), timeout=DEADLINE)


def test_cancel_reaches_a_running_and_a_waiting_call(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class)
    running, waiting = actor.sleep.remote(60), actor.add.remote("never")
    cml.cancel(waiting)
    time.sleep(0.1)  # so that the other one most likely runs; either way it ends
    cml.cancel(running)
    for call in (running, waiting):
        with pytest.raises(cml.exceptions.TaskCancelledError):
            cml.get(call, timeout=DEADLINE)
    assert cml.get(actor.all.remote(), timeout=DEADLINE) == []


def test_an_actor_lives_until_its_last_call_is_answered(cml: Any, actor_class: Any):
    call = straight(cml, actor_class).sleep.remote(0.5)
    assert cml.get(call, timeout=DEADLINE) == "slept"


def test_ten_thousand_calls_wait_in_their_caller_not_in_the_head(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class)
    blocker = actor.sleep.remote(1)
    calls = [actor.add.remote(number) for number in range(10_000)]
    counts = json.loads(_state.connected().query("status"))["tasks"]
    assert counts["queued"] + counts["waiting"] + counts["running"] < 1_000, counts
    assert cml.get(blocker, timeout=DEADLINE) == "slept"
    assert cml.get(calls[-1], timeout=DEADLINE) == 10_000


def test_threads_call_the_same_actor_at_once(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class)

    def call(results: list[int]) -> None:
        results.extend(cml.get(actor.add.remote(), timeout=DEADLINE) for _ in range(200))

    lists: list[list[int]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=call, args=(results,)) for results in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(number for results in lists for number in results) == list(range(1, 801))
    assert all(results == sorted(results) for results in lists)


def test_what_a_call_submitted_can_be_seen_after_its_answer(cml: Any, actor_class: Any):
    class Maker:
        def pid(self) -> int:
            return os.getpid()

        def make(self, name: str) -> bool:
            self.made = cml.remote(actor_class).options(name=name, num_cpus=0).remote()
            return True

    maker = straight(cml, Maker)
    for number in range(20):
        name = f"made-{number}"
        assert cml.get(maker.make.remote(name), timeout=DEADLINE)
        assert cml.get(cml.get_actor(name).add.remote(), timeout=DEADLINE) == 1


def test_calls_of_a_task_that_does_not_wait_for_them_are_made(cml: Any, actor_class: Any):
    actor = straight(cml, actor_class)

    @cml.remote
    def fire(handle: Any) -> None:
        cml.get(handle.add.remote("opens the way"))
        for number in range(100):
            handle.add.remote(number)

    cml.get([fire.remote(actor) for _ in range(3)], timeout=DEADLINE)
    end = time.monotonic() + DEADLINE
    while len(entries := cml.get(actor.all.remote(), timeout=DEADLINE)) < 303:
        assert time.monotonic() < end, f"{len(entries)} of 303 calls arrived"
        time.sleep(0.05)


def test_a_call_that_waits_for_a_later_one_gets_it_where_calls_run_at_once(cml: Any):
    class Gate:
        def __init__(self) -> None:
            self.opened = threading.Event()

        def pid(self) -> int:
            return os.getpid()

        def wait(self) -> bool:
            return self.opened.wait(DEADLINE)

        def open(self, _value: Any) -> None:
            self.opened.set()

    gate = straight(cml, Gate, max_concurrency=400)
    waiting = [gate.wait.remote() for _ in range(300)]
    gate.open.remote(np.zeros(10_000))
    assert all(cml.get(waiting, timeout=DEADLINE))


def test_a_forked_child_of_an_actor_changes_nothing_about_its_end(cml: Any):
    class Forks:
        def pid(self) -> int:
            return os.getpid()

        def fork(self) -> int:
            child = os.fork()
            if child == 0:
                time.sleep(5)
                os._exit(0)
            return child

        def end(self) -> None:
            os._exit(3)

    actor = straight(cml, Forks)
    child = cml.get(actor.fork.remote(), timeout=DEADLINE)
    began = time.monotonic()
    with pytest.raises(cml.exceptions.ActorDiedError, match="exit code 3"):
        cml.get(actor.end.remote(), timeout=DEADLINE)
    assert time.monotonic() - began < 4
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
