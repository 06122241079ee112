"""Actors on one machine: names and meanings as Ray's users know them. Nothing here hangs: each test has a deadline.

Classes are defined inside the tests, so that they travel by value, as a script's own do.
"""

import asyncio
import os
import re
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from testkit import RunProgram, wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def counter(cml: Any):
    @cml.remote
    class Counter:
        def __init__(self, start=0):
            self.count = start

        def add(self, n=1):
            self.count += n
            return self.count

        def pid(self):
            return os.getpid()

    return Counter


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# ---- making and calling ----


def test_an_actor_keeps_its_state_between_calls(cml: Any, counter):
    one, other = counter.remote(5), counter.remote()
    assert cml.get([one.add.remote(), one.add.remote(10), other.add.remote(n=2)]) == [6, 16, 2]
    assert cml.get(one.pid.remote()) != os.getpid()


def test_calls_of_one_caller_run_in_the_order_they_were_made(cml: Any):
    @cml.remote
    class Log:
        def __init__(self):
            self.seen = []

        def note(self, n):
            self.seen.append(n)

        def all(self):
            return self.seen

    log = Log.remote()
    for n in range(1000):
        log.note.remote(n)
    assert cml.get(log.all.remote()) == list(range(1000))


def test_a_call_whose_argument_is_not_ready_holds_back_later_ones_of_its_caller(cml: Any):
    @cml.remote
    def slowly(value):
        time.sleep(0.3)
        return value

    @cml.remote
    class Log:
        def __init__(self):
            self.seen = []

        def note(self, n):
            self.seen.append(n)
            return self.seen

    log = Log.remote()
    log.note.remote(slowly.remote("first"))
    assert cml.get(log.note.remote("second")) == ["first", "second"]


def test_init_and_methods_take_refs_and_large_arrays(cml: Any):
    @cml.remote
    class Model:
        def __init__(self, weights):
            self.weights = weights

        def scaled(self, by):
            return self.weights * by

    weights = np.arange(100_000.0)
    model = Model.remote(cml.put(weights))
    np.testing.assert_array_equal(cml.get(model.scaled.remote(cml.put(2.0))), weights * 2)


def test_a_method_may_return_several_values(cml: Any):
    @cml.remote
    class Pair:
        @cml.method(num_returns=2)
        def both(self):
            return 1, 2

        def three(self):
            return 1, 2, 3

    pair = Pair.remote()
    assert cml.get(pair.both.remote()) == [1, 2]
    assert cml.get(pair.three.options(num_returns=3).remote()) == [1, 2, 3]


def test_wrong_calls_fail_where_they_are_written(cml: Any, counter):
    with pytest.raises(TypeError, match="unexpected keyword argument 'begin'"):
        counter.remote(begin=5)
    one = counter.remote()
    with pytest.raises(TypeError, match="too many positional"):
        one.add.remote(1, 2)
    with pytest.raises(AttributeError, match="did you mean add"):
        one.addd.remote(1)
    with pytest.raises(TypeError, match="remote"):
        one.add(1)
    with pytest.raises(TypeError, match="remote"):
        counter(1)


def test_an_exception_of_a_method_is_the_calls_and_the_actor_lives_on(cml: Any):
    @cml.remote
    class Fragile:
        def fail(self):
            raise KeyError("nothing there")

        def fine(self):
            return "fine"

    fragile = Fragile.remote()
    with pytest.raises(KeyError, match="nothing there"):
        cml.get(fragile.fail.remote())
    assert cml.get(fragile.fine.remote()) == "fine"


# ---- handles ----


def test_handles_can_be_passed_stored_and_kept_in_values(cml: Any, counter):
    @cml.remote
    def add_through(handles, n):
        return cml.get(handles["the counter"].add.remote(n))

    @cml.remote
    class Keeper:
        def __init__(self, handle):
            self.handle = handle

        def give_back(self):
            return self.handle

        async def add(self):
            return await self.handle.add.remote(1)

    one = counter.remote()
    assert cml.get(add_through.remote({"the counter": one}, 5)) == 5
    keeper = Keeper.remote(one)
    assert cml.get(keeper.give_back.remote()) == one
    assert cml.get(cml.get(cml.put([one]))[0].add.remote()) == 6
    assert cml.get(keeper.add.remote()) == 7


def test_an_actor_ends_when_its_last_handle_goes(cml: Any, counter):
    one = counter.remote()
    pid = cml.get(one.pid.remote())
    last = one.add.remote(1)
    del one
    assert cml.get(last) == 1, "a call that waits counts as a handle"
    wait_until(lambda: gone(pid), 20, "the actor's process ends")


def test_an_actor_lives_while_a_handle_lies_in_an_object(cml: Any, counter):
    one = counter.remote()
    pid = cml.get(one.pid.remote())
    stored = cml.put({"inside": one})
    del one
    time.sleep(0.3)
    assert cml.get(cml.get(stored)["inside"].add.remote()) == 1
    del stored
    wait_until(lambda: gone(pid), 20, "the actor's process ends")


def test_an_actor_can_make_actors_and_call_itself_by_name(cml: Any, counter):
    @cml.remote
    class Parent:
        def __init__(self):
            self.child = counter.remote(100)

        def add(self):
            return cml.get(self.child.add.remote())

        def who(self):
            context = cml.get_runtime_context()
            return context.get_actor_id(), context.get_task_name()

    parent = Parent.remote()
    assert cml.get(parent.add.remote()) == 101
    actor, task = cml.get(parent.who.remote())
    assert actor == parent._actor_id
    assert task == "Parent.who"


# ---- names ----


def test_a_named_actor_is_found_by_its_name_until_it_dies(cml: Any, counter):
    one = counter.options(name="the-one").remote(1)
    assert cml.get_actor("the-one") == one
    assert cml.get(cml.get_actor("the-one").add.remote()) == 2

    @cml.remote
    def elsewhere():
        return cml.get(cml.get_actor("the-one").add.remote())

    assert cml.get(elsewhere.remote()) == 3
    with pytest.raises(ValueError, match="the name 'the-one' is taken"):
        counter.options(name="the-one").remote()
    same = counter.options(name="the-one", get_if_exists=True).remote()
    assert same == one
    cml.kill(one)
    wait_until(lambda: not found(cml, "the-one"), 20, "the name of a dead actor is free")
    again = counter.options(name="the-one", get_if_exists=True).remote(7)
    assert cml.get(again.add.remote()) == 8
    cml.kill(again)


def found(cml: Any, name: str) -> bool:
    try:
        cml.get_actor(name)
    except ValueError:
        return False
    return True


def test_namespaces_keep_names_apart(cml: Any, counter):
    one = counter.options(name="both", namespace="a").remote(1)
    other = counter.options(name="both", namespace="b").remote(2)
    assert cml.get_actor("both", "a") == one
    assert cml.get_actor("both", namespace="b") == other
    with pytest.raises(ValueError, match="no actor named 'both'"):
        cml.get_actor("both")


def test_a_name_that_nobody_has_says_so(cml: Any):
    with pytest.raises(ValueError, match="no actor named 'nobody'"):
        cml.get_actor("nobody")


def test_a_detached_actor_outlives_its_handles(cml: Any, counter):
    one = counter.options(name="stays", lifetime="detached").remote(10)
    pid = cml.get(one.pid.remote())
    del one
    time.sleep(0.5)
    again = cml.get_actor("stays")
    assert cml.get(again.pid.remote()) == pid
    cml.kill(again)
    wait_until(lambda: gone(pid), 20, "a killed actor's process ends")


# ---- ends ----


def test_calls_of_a_killed_actor_fail_at_once_and_say_who_killed_it(cml: Any):
    @cml.remote
    class Busy:
        def work(self):
            time.sleep(1000)

        def pid(self):
            return os.getpid()

    busy = Busy.remote()
    pid = cml.get(busy.pid.remote())
    running, waiting = busy.work.remote(), busy.work.remote()
    cml.kill(busy)
    for ref in (running, waiting, busy.work.remote()):
        with pytest.raises(cml.exceptions.ActorDiedError, match="kill") as caught:
            cml.get(ref, timeout=20)
        assert caught.value.actor_id == busy._actor_id
    wait_until(lambda: gone(pid), 20, "a killed actor's process ends")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("os._exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("sys.exit(4)", "exit code 4"),
        ("ctypes.string_at(0)", "SIGSEGV"),
    ],
)
def test_an_actor_that_ends_in_a_call_says_how(cml: Any, how: str, words: str):
    @cml.remote
    class Crash:
        def crash(self):
            import ctypes
            import sys

            exec(how, {"os": os, "sys": sys, "ctypes": ctypes})

    crash = Crash.remote()
    for ref in (crash.crash.remote(), crash.crash.remote()):
        with pytest.raises(cml.exceptions.ActorDiedError, match=words):
            cml.get(ref, timeout=20)
    with pytest.raises(cml.exceptions.ActorDiedError, match=words):
        cml.get(crash.crash.remote(), timeout=20)


def test_an_exception_in_init_is_the_cause_of_its_calls_failures(cml: Any):
    @cml.remote
    class Broken:
        def __init__(self):
            raise ValueError("no such data")

        def use(self): ...

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(cml.exceptions.ActorDiedError, match="no such data") as caught:
            cml.get(broken.use.remote(), timeout=20)
        assert isinstance(caught.value.cause, ValueError)


def test_exit_actor_ends_the_actor_after_its_call(cml: Any):
    @cml.remote(max_restarts=5)
    class Leaver:
        def pid(self):
            return os.getpid()

        def leave(self):
            cml.exit_actor()

    leaver = Leaver.remote()
    pid = cml.get(leaver.pid.remote())
    with pytest.raises(cml.exceptions.ActorDiedError, match="exit_actor"):
        cml.get(leaver.leave.remote(), timeout=20)
    wait_until(lambda: gone(pid), 20, "the process ends")
    with pytest.raises(cml.exceptions.ActorDiedError, match="exit_actor"):
        cml.get(leaver.pid.remote(), timeout=20)


def test_an_actor_with_restarts_left_is_made_anew(cml: Any):
    @cml.remote(max_restarts=1, max_task_retries=-1)
    class Phoenix:
        def __init__(self):
            self.calls = 0

        def call(self):
            self.calls += 1
            again = cml.get_runtime_context().was_current_actor_reconstructed
            return self.calls, os.getpid(), again

    phoenix = Phoenix.remote()
    calls, pid, again = cml.get(phoenix.call.remote())
    assert (calls, again) == (1, False)
    os.kill(pid, signal.SIGKILL)
    calls, new_pid, again = cml.get(phoenix.call.remote(), timeout=30)
    assert new_pid != pid
    assert (calls, again) == (1, True), "its state is that of a new one"
    os.kill(new_pid, signal.SIGKILL)
    with pytest.raises(cml.exceptions.ActorDiedError, match="SIGKILL"):
        cml.get(phoenix.call.remote(), timeout=30)


def test_kill_with_restart_makes_it_anew(cml: Any):
    # The next call may be on its way to the old process before the news of its end is here.
    @cml.remote(max_restarts=1, max_task_retries=1)
    class Phoenix:
        def pid(self):
            return os.getpid()

    phoenix = Phoenix.remote()
    pid = cml.get(phoenix.pid.remote())
    cml.kill(phoenix, no_restart=False)
    wait_until(lambda: gone(pid), 20, "the process ends")
    assert cml.get(phoenix.pid.remote(), timeout=30) != pid
    cml.kill(phoenix)


def test_a_call_that_may_have_run_is_not_repeated_unless_asked(cml: Any, tmp_path):
    @cml.remote(max_restarts=-1)
    class Once:
        def crash_first(self, name):
            first = not (tmp_path / name).exists()
            (tmp_path / name).touch()
            if first:
                os._exit(1)
            return "second time"

    once = Once.remote()
    with pytest.raises(cml.exceptions.ActorUnavailableError, match="exit code 1"):
        cml.get(once.crash_first.remote("a"), timeout=30)
    again = Once.options(max_task_retries=1).remote()
    assert cml.get(again.crash_first.remote("b"), timeout=30) == "second time"


# ---- several calls at once ----


def test_a_threaded_actor_runs_calls_at_once(cml: Any):
    @cml.remote(max_concurrency=3)
    class Meeting:
        def __init__(self):
            self.barrier = threading.Barrier(3, timeout=20)

        def meet(self):
            return self.barrier.wait()

    meeting = Meeting.remote()
    assert sorted(cml.get([meeting.meet.remote() for _ in range(3)], timeout=30)) == [0, 1, 2]


def test_coroutines_run_at_once_on_one_loop(cml: Any):
    @cml.remote
    class Gate:
        def __init__(self):
            self.gate = asyncio.Event()

        async def wait(self, n):
            await self.gate.wait()
            return n

        async def open(self):
            self.gate.set()

    gate = Gate.remote()
    waiting = [gate.wait.remote(n) for n in range(200)]
    cml.get(gate.open.remote(), timeout=20)
    assert cml.get(waiting, timeout=20) == list(range(200))


def test_concurrency_groups_do_not_hold_each_other_up(cml: Any):
    @cml.remote(concurrency_groups={"io": 2, "compute": 1})
    class Worker:
        def __init__(self):
            self.stop = threading.Event()

        @cml.method(concurrency_group="io")
        def wait(self):
            return self.stop.wait(20)

        @cml.method(concurrency_group="compute")
        def answer(self):
            return 42

        def release(self):
            self.stop.set()

    worker = Worker.remote()
    waiting = [worker.wait.remote() for _ in range(2)]
    assert cml.get(worker.answer.remote(), timeout=20) == 42
    assert cml.get(worker.answer.options(concurrency_group="compute").remote(), timeout=20) == 42
    cml.get(worker.release.remote(), timeout=20)
    assert cml.get(waiting, timeout=20) == [True, True]
    with pytest.raises(ValueError, match="no concurrency group 'other'"):
        worker.answer.options(concurrency_group="other").remote()


def test_tasks_of_calls_that_run_at_once_know_their_own_parent(cml: Any):
    @cml.remote
    def child():
        return os.getpid()

    @cml.remote
    class Many:
        async def run(self):
            before = cml.get_runtime_context().get_task_id()
            pid = await child.remote()
            await asyncio.sleep(0)
            return before == cml.get_runtime_context().get_task_id(), pid

    many = Many.remote()
    assert all(same for same, _ in cml.get([many.run.remote() for _ in range(20)], timeout=30))


def test_get_in_an_event_loop_warns_and_names_the_line(program: RunProgram):
    done = program(
        """\
import concurrent_ml as cml

@cml.remote
def one():
    return 1

@cml.remote
class A:
    async def run(self):
        return cml.get(one.remote())  # this line

cml.init(num_cpus=2)
a = A.remote()
print(cml.get(a.run.remote(), timeout=20))
"""
    )
    assert done.returncode == 0, done.stderr
    assert "blocks this actor's event loop" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]
    assert re.search(r"program_\w+\.py:10: ", line), line


def test_prints_of_an_actor_carry_their_call(program: RunProgram):
    done = program(
        """\
import concurrent_ml as cml

@cml.remote(max_concurrency=2)
class Talker:
    def say(self, what):
        print("it says", what)

cml.init(num_cpus=2)
talker = Talker.remote()
cml.get([talker.say.remote(n) for n in range(3)], timeout=20)
cml.shutdown()
"""
    )
    assert done.returncode == 0, done.stderr
    for n in range(3):
        assert f"it says {n}" in done.stderr
    assert "(Talker.say pid=" in done.stderr


def test_a_handle_of_a_cluster_that_was_left_says_so(program: RunProgram):
    done = program(
        """\
import concurrent_ml as cml

@cml.remote
class A:
    def f(self):
        return 1

cml.init(num_cpus=1)
old = A.remote()
assert cml.get(old.f.remote()) == 1
cml.shutdown()
cml.init(num_cpus=1)
try:
    old.f.remote()
except cml.exceptions.ClusterClosedError as error:
    print(error)
assert cml.get(A.remote().f.remote()) == 1
"""
    )
    assert done.returncode == 0, done.stderr
    assert "belongs to a cluster that this program has left" in done.stdout


def test_a_program_that_ends_takes_its_actors_with_it(program: RunProgram):
    done = program(
        """\
import os, concurrent_ml as cml

@cml.remote
class A:
    def pid(self):
        return os.getpid()

cml.init(num_cpus=1)
actors = [A.remote() for _ in range(3)]
print(*cml.get([a.pid.remote() for a in actors]))
"""
    )
    assert done.returncode == 0, done.stderr
    for pid in done.stdout.split():
        wait_until(lambda pid=pid: gone(int(pid)), 20, "the actor ends with its program")


def test_a_ref_that_a_method_returns_stays_one(cml: Any):
    @cml.remote
    class Keeper:
        async def make(self):
            return cml.put("kept")

        def make_at_once(self):
            return cml.put("kept")

    keeper = Keeper.remote()
    for ref in cml.get([keeper.make.remote(), keeper.make_at_once.remote()]):
        assert isinstance(ref, cml.ObjectRef)
        assert cml.get(ref) == "kept"


def test_a_taken_name_is_a_value_error_of_its_own(cml: Any, counter: Any):
    kept = counter.options(name="taken").remote()
    with pytest.raises(
        cml.exceptions.ActorNameTakenError, match=r"'taken' is taken in namespace '.*' by an actor"
    ):
        counter.options(name="taken").remote()
    with pytest.raises(ValueError, match="get_if_exists=True"):
        counter.options(name="taken").remote()
    assert counter.options(name="taken", get_if_exists=True).remote() == kept


def test_calls_that_wait_behind_an_exit_fail_with_it(cml: Any):
    @cml.remote
    class Leaver:
        def leave(self):
            time.sleep(0.3)
            cml.exit_actor()

        def stay(self):
            return 1

    leaver = Leaver.remote()
    leaver.leave.remote()
    for ref in [leaver.stay.remote() for _ in range(1000)]:
        with pytest.raises(
            cml.exceptions.ActorDiedError, match=r"exit_actor\(\) was called in .*Leaver.leave"
        ):
            cml.get(ref, timeout=20)
    with pytest.raises(cml.exceptions.ActorDiedError, match=r"exit_actor\(\) was called"):
        cml.get(leaver.stay.remote(), timeout=20)
