"""Actors that keep their state over restarts: `__checkpoint__`, `__restore__`, when and how."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import concurrent_ml as cml
from concurrent_ml.exceptions import ActorError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    cml.init(num_cpus=2)
    yield
    cml.shutdown()


class Kept:
    """A counter whose state is its count, with all that it went through."""

    def __init__(self, start: int = 0) -> None:
        self.count = start
        self.story = [f"init {start}"]

    def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    def add_and_keep(self, n: int = 1) -> int:
        self.count += n
        cml.checkpoint()
        return self.count

    def look(self) -> tuple[int, list[str]]:
        return self.count, self.story

    def pid(self) -> int:
        return os.getpid()

    def __checkpoint__(self) -> Any:
        return {"count": self.count}

    def __restore__(self, state: Any) -> None:
        self.count = state["count"]
        self.story.append(f"restore {state['count']}")


def kill_process(actor: Any) -> None:
    """As a crash would end it."""
    os.kill(cml.get(actor.pid.remote(), timeout=20), signal.SIGKILL)


def until(check: Any, what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def again(actor: Any) -> tuple[int, list[str]]:
    """What it has when it is there again."""
    found: list[tuple[int, list[str]]] = []

    def is_back() -> bool:
        try:
            found.append(cml.get(actor.look.remote(), timeout=20))
        except ActorError:
            return False
        return len(found[-1][1]) > 1 or "restore" in str(found[-1][1])

    until(is_back, "the actor is restored")
    return found[-1]


def test_a_state_kept_on_request_comes_back_after_a_crash_and_what_came_after_it_does_not(
    cluster: Any,
) -> None:
    actor = cml.remote(max_restarts=-1)(Kept).remote(5)
    assert cml.get(actor.add_and_keep.remote(2), timeout=20) == 7
    assert cml.get(actor.add.remote(100), timeout=20) == 107
    kill_process(actor)
    assert again(actor) == (7, ["init 5", "restore 7"])
    # Its second life keeps its state as the first did.
    cml.get(actor.add_and_keep.remote(), timeout=20)
    kill_process(actor)
    assert again(actor) == (8, ["init 5", "restore 8"])


def test_without_a_state_kept_it_begins_anew(cluster: Any) -> None:
    actor = cml.remote(max_restarts=-1, max_task_retries=-1)(Kept).remote(5)
    cml.get(actor.add.remote(), timeout=20)
    first = cml.get(actor.pid.remote(), timeout=20)
    os.kill(first, signal.SIGKILL)
    until(lambda: cml.get(actor.pid.remote(), timeout=20) != first, "it is made again")
    assert cml.get(actor.look.remote(), timeout=20) == (5, ["init 5"])


def test_a_handle_asks_for_it_in_the_order_of_calls(cluster: Any) -> None:
    actor = cml.remote(max_restarts=-1)(Kept).remote()
    actor.add.remote(3)
    kept = actor.__checkpoint__.remote()
    actor.add.remote(4)
    assert cml.get(kept, timeout=20) is None
    kill_process(actor)
    assert again(actor)[0] == 3


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 3}])
def test_a_state_is_kept_at_the_interval(cluster: Any, options: Any) -> None:
    actor = cml.remote(max_restarts=-1, checkpoint_interval="100ms", **options)(Kept).remote()
    cml.get(actor.add.remote(9), timeout=20)
    time.sleep(0.6)  # six intervals
    kill_process(actor)
    assert again(actor) == (9, ["init 0", "restore 9"])


class Loop:
    """The same with coroutines."""

    def __init__(self) -> None:
        self.count, self.story = 0, ["init"]

    async def add_and_keep(self) -> int:
        self.count += 1
        await cml.checkpoint()
        return self.count

    async def look(self) -> tuple[int, list[str]]:
        return self.count, self.story

    async def pid(self) -> int:
        return os.getpid()

    async def __checkpoint__(self) -> int:
        return self.count

    async def __restore__(self, count: int) -> None:
        self.count = count
        self.story.append("restore")


def test_coroutines_keep_and_restore(cluster: Any) -> None:
    actor = cml.remote(max_restarts=-1)(Loop).remote()
    assert cml.get(actor.add_and_keep.remote(), timeout=20) == 1
    kill_process(actor)
    assert again(actor) == (1, ["init", "restore"])
    actor.add_and_keep.remote()
    cml.get(actor.__checkpoint__.remote(), timeout=20)
    kill_process(actor)
    assert again(actor)[0] == 2


def test_at_an_interval_coroutines_too(cluster: Any) -> None:
    class Quiet(Loop):
        async def add(self) -> None:
            self.count += 1

    actor = cml.remote(max_restarts=-1, checkpoint_interval=0.1)(Quiet).remote()
    cml.get(actor.add.remote(), timeout=20)
    time.sleep(0.6)  # six intervals
    kill_process(actor)
    assert again(actor)[0] == 1


def test_large_states_and_refs_inside_them_come_back(cluster: Any) -> None:
    np = pytest.importorskip("numpy")

    class Model(Kept):
        def learn(self, weights: Any) -> None:
            self.weights = weights * 2
            self.ref = cml.put(["kept", "too"])
            cml.checkpoint()

        def __checkpoint__(self) -> Any:
            return self.weights, [self.ref]

        def __restore__(self, state: Any) -> None:
            self.weights, [self.ref] = state
            self.story.append("restore")

        def sum(self) -> tuple[float, Any]:
            return float(self.weights.sum()), cml.get(self.ref)

    actor = cml.remote(max_restarts=-1)(Model).remote()
    cml.get(actor.learn.remote(np.ones(1_000_000)), timeout=20)
    kill_process(actor)
    again(actor)
    assert cml.get(actor.sum.remote(), timeout=20) == (2_000_000.0, ["kept", "too"])


def test_a_state_that_no_store_has_any_more_is_read_from_disk_and_the_file_goes_with_the_actor(
    cluster: Any,
) -> None:
    class Reader(Kept):
        def restore_from_disk(self) -> str:
            from concurrent_ml import _checkpoints, _state
            from concurrent_ml.exceptions import ObjectLostError

            class NoStore:
                def get(self, ref: Any, timeout: Any) -> Any:
                    raise ObjectLostError(f"{ref} is lost")

            connected = _state.connected
            _state.connected = NoStore
            try:
                _state.actor.states._read()(self)  # type: ignore[union-attr,misc]
            finally:
                _state.connected = connected
            return os.path.dirname(_checkpoints._path(cml.put(0)))

    actor = cml.remote(max_restarts=-1)(Reader).remote()
    cml.get([actor.add_and_keep.remote(3), actor.add_and_keep.remote(3), actor.add.remote(50)], timeout=20)
    directory = cml.get(actor.restore_from_disk.remote(), timeout=20)
    assert cml.get(actor.look.remote(), timeout=20) == (6, ["init 0", "restore 6"])
    files = set(os.listdir(directory))
    assert files, directory
    del actor
    until(lambda: len(os.listdir(directory)) < len(files), "its file is deleted")


class Broken(Kept):
    def break_it(self, how: str) -> None:
        self.how = how

    def __checkpoint__(self) -> Any:
        how = getattr(self, "how", "")
        if how == "raise":
            raise KeyError("no state today")
        return {"count": self.count, "what": threading.Lock() if how == "lock" else None}


@pytest.mark.parametrize(
    ("how", "kind", "says"), [("raise", KeyError, "no state"), ("lock", TypeError, "lock")]
)
def test_a_state_that_cannot_be_taken_leaves_the_one_before(
    cluster: Any, how: str, kind: Any, says: str
) -> None:
    actor = cml.remote(max_restarts=-1)(Broken).remote()
    cml.get(actor.add_and_keep.remote(4), timeout=20)
    cml.get(actor.break_it.remote(how), timeout=20)
    with pytest.raises(kind, match=says):
        cml.get(actor.add_and_keep.remote(), timeout=20)
    with pytest.raises(kind, match=says):
        cml.get(actor.__checkpoint__.remote(), timeout=20)
    kill_process(actor)
    assert again(actor)[0] == 4


def test_at_the_interval_the_driver_hears_of_it(cluster: Any, capfd: Any) -> None:
    actor = cml.remote(max_restarts=-1, checkpoint_interval=0.1)(Broken).remote()
    cml.get(actor.break_it.remote("raise"), timeout=20)
    seen = []

    def said() -> bool:
        seen.append(capfd.readouterr().err)
        return "could not be kept: KeyError: 'no state today'" in "".join(seen)

    until(said, "the driver's terminal says that the state could not be kept")


def test_a_restore_that_raises_is_as_an_init_that_raises(cluster: Any) -> None:
    class Stubborn(Kept):
        def __restore__(self, _state: Any) -> None:
            raise ValueError("this state is not mine")

    actor = cml.remote(max_restarts=-1)(Stubborn).remote()
    cml.get(actor.add_and_keep.remote(), timeout=20)
    kill_process(actor)

    def fails() -> str:
        try:
            cml.get(actor.look.remote(), timeout=20)
        except ActorError as error:
            return str(error)
        return ""

    until(lambda: "this state is not mine" in fails(), "its calls say why")


def test_what_is_wrong_is_said_where_it_is_written(cluster: Any) -> None:
    class Half:
        def __checkpoint__(self) -> None: ...

    with pytest.raises(TypeError, match="defines __checkpoint__ and no __restore__"):
        cml.remote(Half).remote()

    class Without:
        def ask(self) -> None:
            cml.checkpoint()

    with pytest.raises(TypeError, match="defines no __checkpoint__"):
        cml.remote(checkpoint_interval=1)(Without).remote()
    with pytest.raises(ValueError, match="checkpoint_interval"):
        cml.remote(checkpoint_interval="soon")(Kept)
    with pytest.raises(TypeError, match="does not define __checkpoint__"):
        cml.get(cml.remote(Without).remote().ask.remote(), timeout=20)
    with pytest.raises(TypeError, match="in a method of an actor"):
        cml.checkpoint()
    with pytest.raises(AttributeError):
        _ = cml.remote(Without).remote().__checkpoint__
