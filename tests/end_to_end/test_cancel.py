"""Cancelling: what waits never starts, what runs is interrupted, and the error says who did it."""

import asyncio
import os
import socket
import threading
import time
from typing import Any

import pytest

from testkit import wait_until

pytestmark = pytest.mark.timeout(60)


def cancelled(cml: Any, ref: Any, words: str = "by the driver") -> None:
    with pytest.raises(cml.exceptions.TaskCancelledError, match=words):
        cml.get(ref, timeout=20)


def body(name: str) -> Any:
    """A task's code that hangs in its own way; made here, so that it travels by value."""

    def sleeps(mark: Any) -> None:
        mark.touch()
        time.sleep(1000)

    def spins(mark: Any) -> None:
        mark.touch()
        while True:
            pass

    def reads(mark: Any) -> None:
        one, _other = socket.socketpair()
        mark.touch()
        one.recv(1)

    def waits(mark: Any) -> None:
        import concurrent_ml as cml

        @cml.remote
        def never() -> None:
            time.sleep(1000)

        ref = never.remote()
        mark.touch()
        cml.get(ref)

    return {"sleeps": sleeps, "spins": spins, "reads": reads, "waits": waits}[name]


@pytest.mark.parametrize("how", ["sleeps", "spins", "reads", "waits"])
def test_a_running_task_is_interrupted_wherever_it_is(cml: Any, tmp_path, how: str):
    mark = tmp_path / "began"
    ref = cml.remote(max_retries=0)(body(how)).remote(mark)
    wait_until(mark.exists, 20, "the task begins")
    cml.cancel(ref)
    cancelled(cml, ref, "was cancelled: by the driver")


def test_the_process_goes_on_with_other_tasks(cml: Any, tmp_path):
    @cml.remote
    def hang():
        (tmp_path / "began").write_text(str(os.getpid()))
        time.sleep(1000)

    @cml.remote
    def pid():
        return os.getpid()

    ref = hang.remote()
    wait_until((tmp_path / "began").exists, 20, "the task begins")
    cml.cancel(ref)
    cancelled(cml, ref)
    assert cml.get([pid.remote() for _ in range(4)], timeout=20)


def test_a_task_is_cancelled_whenever_the_wish_comes(cml: Any):
    """Also between its executor's claim and the first line of its code."""

    @cml.remote
    def sleep():
        time.sleep(1000)

    for turn in range(40):
        refs = [sleep.remote() for _ in range(4)]
        # From turn to turn a little later: before they are sent, while they begin, when they run.
        time.sleep(turn * 0.0002)
        for ref in refs:
            cml.cancel(ref)
        assert len(cml.wait(refs, num_returns=4, timeout=20)[0]) == 4, f"turn {turn}"


def test_a_queued_task_never_starts(cml: Any, tmp_path):
    @cml.remote(num_cpus=2)
    def hold():
        (tmp_path / "holds").touch()
        while not (tmp_path / "go").exists():
            time.sleep(0.01)

    @cml.remote(num_cpus=2)
    def note():
        (tmp_path / "ran").touch()

    first = hold.remote()
    wait_until((tmp_path / "holds").exists, 20, "the first task begins")
    queued = note.remote()
    cml.cancel(queued)
    cancelled(cml, queued)
    (tmp_path / "go").touch()
    cml.get(first, timeout=20)
    assert not (tmp_path / "ran").exists()


def test_a_task_that_depends_on_a_cancelled_one_fails_with_it(cml: Any, tmp_path):
    @cml.remote
    def hang():
        (tmp_path / "began").touch()
        time.sleep(1000)

    @cml.remote
    def use(value):
        return value

    first = hang.remote()
    second = use.remote(first)
    wait_until((tmp_path / "began").exists, 20, "the task begins")
    cml.cancel(first)
    cancelled(cml, second)


def test_children_are_cancelled_with_their_parent_unless_told(cml: Any, tmp_path):
    @cml.remote(num_cpus=0.1)
    def child(name):
        (tmp_path / name).write_text(str(os.getpid()))
        time.sleep(2 if name == "spared" else 1000)
        (tmp_path / f"{name}.done").touch()

    @cml.remote(num_cpus=0.1)
    def parent(name):
        ref = child.remote(name)
        cml.get(ref)

    ref = parent.remote("followed")
    wait_until((tmp_path / "followed").exists, 20, "the child begins")
    cml.cancel(ref)
    cancelled(cml, ref)

    @cml.remote
    def keep(name):
        ref = child.remote(name)
        return [ref], cml.get(ref)

    ref = keep.remote("spared")
    wait_until((tmp_path / "spared").exists, 20, "the child begins")
    cml.cancel(ref, recursive=False)
    cancelled(cml, ref)
    wait_until((tmp_path / "spared.done").exists, 20, "the child ends by itself")


def test_force_ends_the_process_of_a_task_that_does_not_listen(cml: Any, tmp_path):
    @cml.remote(max_retries=3)
    def stubborn():
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        (tmp_path / "began").touch()
        time.sleep(1000)

    ref = stubborn.remote()
    wait_until((tmp_path / "began").exists, 20, "the task begins")
    cml.cancel(ref, force=True)
    cancelled(cml, ref)


def test_a_task_that_has_ended_stays_as_it_is(cml: Any):
    @cml.remote
    def one():
        return 1

    ref = one.remote()
    assert cml.get(ref) == 1
    cml.cancel(ref)
    assert cml.get(ref) == 1
    put = cml.put(2)
    cml.cancel(put)
    assert cml.get(put) == 2


def test_a_task_that_cancels_is_named(cml: Any, tmp_path):
    @cml.remote
    def hang():
        (tmp_path / "began").touch()
        time.sleep(1000)

    @cml.remote
    def canceller(refs):
        cml.cancel(refs[0])

    ref = hang.remote()
    wait_until((tmp_path / "began").exists, 20, "the task begins")
    cml.get(canceller.remote([ref]), timeout=20)
    cancelled(cml, ref, "by task .*canceller")


# ---- calls of actors ----


def test_a_call_of_a_plain_actor_is_interrupted_and_the_actor_lives_on(cml: Any, tmp_path):
    @cml.remote
    class Sleeper:
        def sleep(self):
            (tmp_path / "began").touch()
            time.sleep(1000)

        def pid(self):
            return os.getpid()

    sleeper = Sleeper.remote()
    pid = cml.get(sleeper.pid.remote())
    running, queued, after = sleeper.sleep.remote(), sleeper.sleep.remote(), sleeper.pid.remote()
    wait_until((tmp_path / "began").exists, 20, "the call begins")
    cml.cancel(queued)
    cml.cancel(running)
    cancelled(cml, running)
    cancelled(cml, queued)
    assert cml.get(after, timeout=20) == pid


def test_a_coroutine_gets_cancelled_error(cml: Any):
    @cml.remote
    class Sleeper:
        def __init__(self):
            self.began = asyncio.Event()
            self.cleaned = False

        async def sleep(self):
            self.began.set()
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                self.cleaned = True
                raise

        async def started(self):
            await self.began.wait()

        async def was_cleaned(self):
            return self.cleaned

    sleeper = Sleeper.remote()
    ref = sleeper.sleep.remote()
    cml.get(sleeper.started.remote(), timeout=20)
    cml.cancel(ref)
    cancelled(cml, ref)
    assert cml.get(sleeper.was_cleaned.remote(), timeout=20)


def test_a_threaded_call_ends_between_bytecodes_or_in_our_own_waits(cml: Any, tmp_path):
    @cml.remote(num_cpus=0)
    def never():
        time.sleep(1000)

    @cml.remote(max_concurrency=3)
    class Threaded:
        def spin(self):
            (tmp_path / "spins").touch()
            while True:
                time.sleep(0.001)

        def wait(self):
            ref = never.remote()
            (tmp_path / "waits").touch()
            cml.get(ref)

        def fine(self):
            return threading.active_count() > 0

    threaded = Threaded.remote()
    refs = {"spins": threaded.spin.remote(), "waits": threaded.wait.remote()}
    for name, ref in refs.items():
        wait_until((tmp_path / name).exists, 20, "the call begins")
        cml.cancel(ref)
        cancelled(cml, ref)
    assert cml.get(threaded.fine.remote(), timeout=20)


# ---- by itself ----


def test_a_task_that_runs_longer_than_its_timeout_is_cancelled_with_its_children(cml: Any, tmp_path):
    @cml.remote(num_cpus=0.1)
    def child():
        (tmp_path / "child").write_text(str(os.getpid()))
        time.sleep(1000)

    @cml.remote(num_cpus=0.1, timeout="500ms")
    def parent():
        ref = child.remote()
        cml.get(ref)

    @cml.remote
    def quick():
        return 1

    cancelled(cml, parent.remote(), "it ran longer than its timeout of 0.5 s")
    assert cml.get(quick.options(timeout=20).remote()) == 1
    with pytest.raises(ValueError, match='like "500ms"'):
        quick.options(timeout="soon")


@pytest.mark.parametrize("concurrency", [1, 2])
def test_calls_have_timeouts_too(cml: Any, concurrency: int):
    @cml.remote(max_concurrency=concurrency)
    class Sleeper:
        def sleep(self):
            while True:
                time.sleep(0.01)

        def fine(self):
            return True

    sleeper = Sleeper.remote()
    cancelled(cml, sleeper.sleep.options(timeout=0.3).remote(), "timeout of 0.3 s")
    assert cml.get(sleeper.fine.remote(), timeout=20)


def test_a_coroutine_that_is_cancelled_before_its_first_step_says_so(cml: Any):
    @cml.remote
    class Sleeper:
        async def sleep(self):
            await asyncio.sleep(1000)

    sleeper = Sleeper.remote()
    cml.get(sleeper.__ray_ready__.remote())
    for pause in [0, 0.0001, 0.0002, 0.0005, 0.001] * 20:
        ref = sleeper.sleep.remote()
        time.sleep(pause)
        cml.cancel(ref)
        cancelled(cml, ref)


def test_waiting_for_a_child_of_a_cancelled_parent_ends_too(cml: Any, tmp_path):
    @cml.remote
    class Keeper:
        def keep(self, refs):
            self.refs = refs

        def kept(self):
            return self.refs

    @cml.remote
    def child():
        (tmp_path / "began").touch()
        time.sleep(1000)

    @cml.remote
    def parent(keeper):
        ref = child.remote()
        cml.get(keeper.keep.remote([ref]))
        return cml.get(ref)

    keeper = Keeper.options(num_cpus=0).remote()
    ref = parent.remote(keeper)
    wait_until((tmp_path / "began").exists, 20, "the child begins")
    [kept] = cml.get(keeper.kept.remote())
    cml.cancel(ref)
    cancelled(cml, kept)
    cancelled(cml, ref)
