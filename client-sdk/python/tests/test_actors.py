"""Actors, as far as one process goes: classes, handles, options, and how calls run where an actor lives."""

import asyncio
import copy
import pickle
import threading
import time
from typing import Any, Generic, TypeVar

import cloudpickle
import pytest

import concurrent_ml as cml
from concurrent_ml import _actor_process, _executor, _state, exceptions
from concurrent_ml._actor import Description, Method, _description
from concurrent_ml._options import ActorOptions, MethodOptions

T = TypeVar("T")


class Counter:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    @cml.method(num_returns=2)
    def both(self) -> tuple[int, int]:
        return self.count, -self.count

    @staticmethod
    def plain(x: int) -> int:
        return x

    @property
    def value(self) -> int:
        return self.count


# ---- classes ----


def test_a_remote_class_keeps_its_name_and_its_plain_class():
    made = cml.remote(Counter)
    assert isinstance(made, cml.ActorClass)
    assert (made.__name__, made.__doc__, made.__wrapped__) == ("Counter", "Counts.", Counter)
    assert repr(made) == "ActorClass(Counter)"
    assert made.__wrapped__(3).add() == 4


def test_what_the_plain_class_has_the_remote_class_has_too():
    class Lamp:
        COLOURS = ("red", "green")

        @staticmethod
        def watts() -> int:
            return 40

    lamp = cml.remote(Lamp)
    assert (lamp.COLOURS, lamp.watts()) == (("red", "green"), 40)
    with pytest.raises(AttributeError, match="the remote class Lamp has no attribute 'volts'"):
        lamp.volts  # noqa: B018
    assert copy.copy(lamp).COLOURS == Lamp.COLOURS


def test_calling_the_class_says_what_to_write():
    with pytest.raises(TypeError, match=r"Counter\.remote\(\.\.\.\)"):
        cml.remote(Counter)(1)  # type: ignore[operator]


def test_a_class_may_inherit_from_a_remote_class():
    remote = cml.remote(Counter)

    class Twice(remote):  # type: ignore[misc,valid-type]
        def add(self, n: int = 1) -> int:
            return super().add(2 * n)

    assert Twice.__mro__[1] is Counter
    assert Twice(1).add(2) == 5
    about = cml.remote(Twice)._describe()
    assert {"add", "both", "plain"} <= set(about.methods)


def test_a_generic_class_can_be_subscribed():
    @cml.remote
    class Box(Generic[T]):
        def get(self) -> int:
            return 1

    assert Box[int] is Box
    with pytest.raises(TypeError, match="Counter is not generic"):
        cml.remote(Counter)[int]


def test_what_a_handle_knows_of_methods():
    about = cml.remote(Counter)._describe()
    assert about.class_name == "Counter"
    assert set(about.methods) == {"add", "both", "plain"}
    assert about.methods["both"].num_returns == 2
    assert about.methods["add"].signature == (("n", 1, True),)
    assert about.methods["plain"].signature == (("x", 1, False),)
    assert not about.is_async
    assert _description(about.pickled) == about


def test_a_coroutine_makes_a_class_asynchronous_inherited_ones_too():
    class Base:
        async def run(self) -> None: ...

    class Child(Base):
        def sync(self) -> None: ...

    assert cml.remote(Child)._describe().is_async


def test_remote_classes_are_pickled_with_their_options():
    made = cml.remote(Counter).options(num_cpus=2, max_restarts=1)
    back = cloudpickle.loads(cloudpickle.dumps(made))
    assert back._options == made._options


# ---- options ----


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_cpu": 1}, "did you mean num_cpus"),
        ({"max_retries": 1}, "'max_retries' is no option of a remote class; did you mean max_task_retries"),
        ({"num_returns": 2}, "no option of a remote class"),
        ({"name": ""}, "not empty"),
        ({"name": 5}, "must be a string"),
        ({"lifetime": "forever"}, "detached"),
        ({"max_restarts": -2}, "without end"),
        ({"max_concurrency": 0}, "1 or more"),
        ({"concurrency_groups": {"io": "many"}}, "whole number"),
        ({"concurrency_groups": ["io"]}, "dict"),
        ({"get_if_exists": True}, "needs a name"),
        ({"num_cpus": -1}, "0 or more"),
    ],
)
def test_a_wrong_option_of_a_class_is_named(given: dict[str, Any], words: str):
    with pytest.raises((TypeError, ValueError), match=words):
        cml.remote(Counter).options(**given)


def test_options_of_a_class_given_to_the_decorator():
    made = cml.remote(num_cpus=1, max_restarts=-1, max_task_retries=2, concurrency_groups={"io": 4})(Counter)
    assert made._options == ActorOptions(
        num_cpus=1, max_restarts=-1, max_task_retries=2, concurrency_groups={"io": 4}
    )
    assert cml.remote(Counter)._options.num_cpus == 0, "an actor holds no CPU unless it asks for one"
    with pytest.raises(TypeError, match="'max_restarts' is no option of a remote function"):
        cml.remote(max_restarts=1)(lambda: 1)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_method_in_a_group_that_the_class_has_not_is_told_when_an_actor_is_made():
    class Store:
        @cml.method(concurrency_group="io")
        def read(self) -> None: ...

    with pytest.raises(ValueError, match="concurrency group 'io'"):
        cml.remote(Store)._describe()
    about = cml.remote(Store).options(concurrency_groups={"io": 2})._describe()
    assert about.methods["read"].group == "io"
    with pytest.raises(TypeError, match="did you mean concurrency_group"):
        cml.method(concurrency_grup="io")  # type: ignore[call-overload]


# ---- handles, on a cluster that is never asked ----


class Ref:
    """Stands for an ObjectRef."""

    def __init__(self, number: int) -> None:
        self._id = f"{number:016x}.1.0"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)


def handle(number: int = 1) -> Any:
    return cml.ActorHandle(Ref(number), cml.remote(Counter)._describe())  # type: ignore[arg-type]


def test_handles_are_compared_by_actor():
    assert handle() == handle() != handle(2)
    assert len({handle(), handle(), handle(2)}) == 2
    assert repr(handle()) == "Actor(Counter, 0000000000000001.1.0)"
    one = handle()
    assert copy.copy(one) is one is copy.deepcopy(one)


def test_a_handle_travels_and_its_methods_do():
    back = pickle.loads(pickle.dumps(handle()))
    assert back == handle()
    assert back.both._declared() == MethodOptions(num_returns=2, concurrency_group="")
    method = pickle.loads(pickle.dumps(handle().add.options(name="more")))
    assert repr(method) == "ActorMethod(Counter.add, 0000000000000001.1.0)"
    assert method._options.name == "more"


def test_a_missing_method_is_named_with_its_nearest_neighbours():
    with pytest.raises(AttributeError, match="Counter has no method 'ad'; did you mean add"):
        handle().ad.remote(1)
    with pytest.raises(AttributeError, match="it has add, both, plain"):
        handle().zzz.remote(1)
    assert not hasattr(handle(), "value"), "a property is no method"


def test_calling_a_method_directly_says_what_to_write():
    with pytest.raises(TypeError, match=r"add\.remote\(\.\.\.\)"):
        handle().add(1)
    with pytest.raises(TypeError, match="handle of an actor"):
        handle()()


def test_attributes_cannot_be_set_through_a_handle():
    with pytest.raises(AttributeError, match="Give Counter a method"):
        handle().count = 5


def test_a_method_that_is_kept_keeps_no_handle_alive_in_a_cycle():
    import gc
    import weakref

    gc.disable()
    try:
        one = handle()
        assert one.add
        assert one.both
        gone = weakref.ref(one)
        del one
        assert gone() is None
    finally:
        gc.enable()


def test_a_handle_of_a_cluster_that_was_left_says_so(monkeypatch: pytest.MonkeyPatch):
    one = handle()
    monkeypatch.setattr(_state, "generation", _state.generation + 1)
    for use in (one.add.remote, lambda: pickle.dumps(one)):
        with pytest.raises(exceptions.ClusterClosedError, match="a cluster that this program has left"):
            use()


def test_what_is_no_actor_and_no_ref_is_refused():
    with pytest.raises(TypeError, match=r"kill\(\) takes the handle of an actor"):
        cml.kill(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"cancel\(\) takes an ObjectRef"):
        cml.cancel(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"kill\(actor\) ends one"):
        cml.cancel(handle())
    with pytest.raises(TypeError, match="this is none"):
        cml.exit_actor()
    with pytest.raises(ValueError, match="not empty"):
        cml.get_actor("")


# ---- errors ----


def test_a_dead_actor_tells_its_id_and_the_exception_of_its_init():
    try:
        raise ValueError("no data")
    except ValueError as error:
        story = exceptions._story(error, "t", "task Counter (t)", "the traceback")
    message = "actor Counter (0000000000000001.1.0) died: its __init__ raised ValueError: no data"
    died = exceptions._from_failure("ActorDied", message, story, "0000000000000001.1")
    assert isinstance(died, exceptions.ActorDiedError)
    assert died.actor_id == "0000000000000001.1.0"
    assert isinstance(died.cause, ValueError)
    assert "the traceback" in str(died)
    assert message in str(died)
    assert not isinstance(died, ValueError), "the call did not raise it"


# ---- how calls run: with tasks that are none ----


class Call:
    """Stands for a task that calls a method."""

    def __init__(self, tag: int, name: str, *args: Any, group: str = "", reason: str | None = None) -> None:
        self.tag, self.name, self.task_id, self.attempt = tag, name, f"t{tag}", 1
        self.kind, self.retry_exceptions, self.timeout = 2, b"", None
        self.method = (name, group)
        self.streams = False
        self.args = args
        self.reason = reason
        self.ended = threading.Event()
        self.result: Any = None

    def arguments(self) -> Any:
        return self.args, {}

    def cancel_reason(self, timeout: float = 0.0) -> str | None:
        return self.reason

    def finish(self, result: Any) -> None:
        self.result = result
        self.ended.set()

    def fail(self, message: str, payload: bytes, retryable: bool, kind: str) -> None:
        self.finish((kind, message))

    def wait(self) -> Any:
        assert self.ended.wait(10), f"{self.name} did not end"
        return self.result


class Client:
    node_id = "n"


class Actor:
    """An instance, with its methods."""

    def __init__(self, instance: Any) -> None:
        self.instance = instance

    def method(self, name: str) -> Any:
        return getattr(self.instance, name)


def threads(instance: Any, **limits: int) -> _actor_process.Threads:
    named = {"": limits.pop("default", 1), **limits}
    return _actor_process.Threads(Actor(instance), _executor.Reports(Client()), named)  # type: ignore[arg-type]


def event_loop(instance: Any, **limits: int) -> _actor_process.EventLoop:
    named = {"": limits.pop("default", 1000), **limits}
    return _actor_process.EventLoop(Actor(instance), _executor.Reports(Client()), named)  # type: ignore[arg-type]


def test_threads_run_as_many_calls_at_once_as_their_group_allows():
    class Meeting:
        barrier = threading.Barrier(3, timeout=10)

        def meet(self) -> int:
            return self.barrier.wait()

        def answer(self) -> str:
            return "yes"

    calls = threads(Meeting(), default=3, io=1)
    met = [Call(tag, "meet") for tag in range(1, 4)]
    for call in met[:2]:
        calls.start(call)  # type: ignore[arg-type]
    # Another group is not held up by those that wait.
    other = Call(9, "answer", group="io")
    calls.start(other)  # type: ignore[arg-type]
    assert other.wait() == "yes"
    calls.start(met[2])  # type: ignore[arg-type]
    assert sorted(call.wait() for call in met) == [0, 1, 2]


def test_a_group_of_one_runs_its_calls_in_order():
    seen: list[int] = []

    class Ordered:
        def add(self, n: int) -> None:
            seen.append(n)

    calls = threads(Ordered())
    many = [Call(n, "add", n) for n in range(1, 200)]
    for call in many:
        calls.start(call)  # type: ignore[arg-type]
    for call in many:
        call.wait()
    assert seen == list(range(1, 200))


def test_a_thread_is_interrupted_between_bytecodes_and_a_queued_call_never_starts():
    class Busy:
        def __init__(self) -> None:
            self.began = threading.Event()
            self.ran: list[str] = []

        def spin(self) -> None:
            self.began.set()
            while True:
                time.sleep(0.001)

        def note(self) -> str:
            self.ran.append("note")
            return "noted"

    busy = Busy()
    calls = threads(busy)
    spin, queued, after = (
        Call(1, "spin", reason="by a test"),
        Call(2, "note", reason="by a test"),
        Call(3, "note"),
    )
    for call in (spin, queued, after):
        calls.start(call)  # type: ignore[arg-type]
    assert busy.began.wait(10)
    calls.cancel(2)
    assert queued.wait() == ("Cancelled", "task note (t2) was cancelled: by a test")
    calls.cancel(1)
    assert spin.wait() == ("Cancelled", "task spin (t1) was cancelled: by a test")
    assert after.wait() == "noted"
    assert busy.ran == ["note"]
    assert calls.count() == 0


def test_coroutines_run_at_once_on_one_loop_and_know_their_own_task():
    class Talk:
        def __init__(self) -> None:
            self.said = asyncio.Event()
            self.loops: set[Any] = set()

        async def hear(self) -> str:
            self.loops.add(asyncio.get_running_loop())
            await self.said.wait()
            task = _state.running.get()
            assert task is not None
            return task.task_id

        async def say(self) -> None:
            self.loops.add(asyncio.get_running_loop())
            self.said.set()

        def sync(self) -> str:
            return "sync"

    talk = Talk()
    calls = event_loop(talk)
    hearing = [Call(tag, "hear") for tag in range(1, 101)]
    for call in [*hearing, Call(500, "say")]:
        calls.start(call)  # type: ignore[arg-type]
    assert [call.wait() for call in hearing] == [f"t{tag}" for tag in range(1, 101)]
    last = Call(501, "sync")
    calls.start(last)  # type: ignore[arg-type]
    assert last.wait() == "sync"
    assert len(talk.loops) == 1


def test_a_group_of_coroutines_has_its_own_limit():
    class Limited:
        def __init__(self) -> None:
            self.now = self.most = 0

        async def work(self) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1

    limited = Limited()
    calls = event_loop(limited, io=2)
    many = [Call(tag, "work", group="io") for tag in range(1, 30)]
    for call in many:
        calls.start(call)  # type: ignore[arg-type]
    for call in many:
        call.wait()
    assert limited.most == 2


def test_a_cancelled_coroutine_gets_cancelled_error():
    class Sleeper:
        def __init__(self) -> None:
            self.began, self.cleaned = threading.Event(), threading.Event()

        async def sleep(self) -> None:
            try:
                self.began.set()
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                self.cleaned.set()
                raise

        async def own(self) -> None:
            raise asyncio.CancelledError

    sleeper = Sleeper()
    calls = event_loop(sleeper)
    call, own = Call(1, "sleep", reason="by a test"), Call(2, "own")
    calls.start(call)  # type: ignore[arg-type]
    calls.start(own)  # type: ignore[arg-type]
    assert sleeper.began.wait(10)
    calls.cancel(1)
    assert call.wait() == ("Cancelled", "task sleep (t1) was cancelled: by a test")
    assert sleeper.cleaned.is_set()
    assert own.wait()[0] == "Exception", "nobody asked for that one"


def test_exit_actor_ends_a_call_by_the_actors_death():
    class Leaver:
        async def leave(self) -> None:
            raise exceptions._ActorExit

        def go(self) -> None:
            raise exceptions._ActorExit

    for calls, name in ((event_loop(Leaver()), "leave"), (threads(Leaver()), "go")):
        call = Call(1, name)
        calls.start(call)  # type: ignore[arg-type]
        assert call.wait() == ("ActorDied", f"exit_actor() was called in {name} (t1)")


def test_descriptions_are_equal_by_value():
    one = Description("C", "m", {"f": Method(1, "", (("x", 1, False),))}, groups=("io",))
    assert _description(one.pickled) == one
