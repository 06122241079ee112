"""Generators whose items are a fixed number of results, or one list of refs: what becomes of too few, too many, and
exceptions in between.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import concurrent_ml as cml
from concurrent_ml.exceptions import TaskCancelledError, TaskError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    cml.init(num_cpus=2, log_to_driver=False)
    yield
    cml.shutdown()


def items(count: int, fails: bool = False) -> Iterator[list[int]]:
    for item in range(count):
        yield [item]
    if fails:
        raise KeyError("no more")


class Maker:
    def items(self, count: int, fails: bool = False) -> Iterator[list[int]]:
        yield from items(count, fails)


class AsyncMaker:
    async def items(self, count: int, fails: bool = False) -> AsyncIterator[list[int]]:
        for item in items(count, fails):
            yield item


@pytest.fixture(params=["task", "actor", "threads", "coroutines"])
def call(request: Any) -> Any:
    if request.param == "task":
        return cml.remote(items)
    many: dict[str, Any] = {"max_concurrency": 4} if request.param == "threads" else {}
    made = AsyncMaker if request.param == "coroutines" else Maker
    return cml.remote(made).options(**many).remote().items


def test_as_many_as_declared(call: Any) -> None:
    assert cml.get(call.options(num_returns=3).remote(3), timeout=20) == [[0], [1], [2]]
    assert cml.get(call.options(num_returns=1).remote(1), timeout=20) == [0]


def test_more_than_declared_are_ignored(call: Any) -> None:
    assert cml.get(call.options(num_returns=2).remote(10), timeout=20) == [[0], [1]]


def test_those_before_an_exception_are_there(call: Any) -> None:
    one, two, three = call.options(num_returns=3).remote(1, True)
    assert cml.get(one, timeout=20) == [0]
    for ref in (two, three):
        with pytest.raises(KeyError, match="no more") as caught:
            cml.get(ref, timeout=20)
        assert isinstance(caught.value, TaskError)
        assert "in items" in caught.value.remote_traceback
    # A task that is given one of them fails with it too.
    with pytest.raises(KeyError, match="no more"):
        cml.get(cml.remote(len).remote(two), timeout=20)


def test_fewer_than_declared_are_an_error_of_the_others(call: Any) -> None:
    one, two = call.options(num_returns=2).remote(1)
    assert cml.get(one, timeout=20) == [0]
    with pytest.raises(ValueError, match="num_returns=2 but yielded 1 values"):
        cml.get(two, timeout=20)
    with pytest.raises(ValueError, match="yielded 0 values"):
        cml.get(call.options(num_returns=1).remote(0), timeout=20)


def test_dynamic_is_a_list_of_refs_of_which_the_last_may_raise(call: Any) -> None:
    refs = cml.get(call.options(num_returns="dynamic").remote(3), timeout=20)
    assert cml.get(list(refs), timeout=20) == [[0], [1], [2]]
    first, last = cml.get(call.options(num_returns="dynamic").remote(1, True), timeout=20)
    assert cml.get(first, timeout=20) == [0]
    with pytest.raises(KeyError, match="no more"):
        cml.get(last, timeout=20)


def test_a_generator_that_may_be_tried_again_is(tmp_path: Any) -> None:
    def second_time(path: str) -> Iterator[int]:
        yield 1
        try:
            with open(path, "x"):
                pass
        except FileExistsError:
            yield 2
        else:
            raise OSError("the first time")

    for returns in (2, "dynamic"):
        options: Any = {"num_returns": returns, "retry_exceptions": True, "max_retries": 1}
        made: Any = cml.remote(second_time).options(**options).remote(str(tmp_path / str(returns)))
        refs = list(cml.get(made, timeout=20)) if returns == "dynamic" else made
        assert cml.get(refs, timeout=20) == [1, 2]


def test_who_gets_a_child_of_a_cancelled_task_hears_that_it_was_cancelled() -> None:
    @cml.remote
    def child() -> None:
        time.sleep(60)

    @cml.remote
    class Holder:
        def __init__(self) -> None:
            self.ref: Any = None

        def keep(self, refs: list[Any]) -> None:
            self.ref = refs[0]

        def give(self) -> list[Any]:
            return [self.ref]

    holder = Holder.remote()

    @cml.remote
    def parent(holder: Any) -> None:
        ref = child.remote()
        cml.get(holder.keep.remote([ref]))
        cml.get(ref)

    running = parent.remote(holder)
    while True:
        (ref,) = cml.get(holder.give.remote(), timeout=20)
        if ref is not None:
            break
    cml.cancel(running)
    for cancelled in (ref, running):
        with pytest.raises(TaskCancelledError) as caught:
            cml.get(cancelled, timeout=20)
        assert not isinstance(caught.value, TaskError)


def test_dynamic_is_for_generators() -> None:
    def no_generator() -> list[int]:
        return [1, 2]

    with pytest.raises(TypeError, match="is to be a generator"):
        cml.get(cml.remote(no_generator).options(num_returns="dynamic").remote(), timeout=20)


def test_num_returns_none_is_what_the_method_declares() -> None:
    actor = cml.remote(Maker).remote()
    refs: Any = actor.items.options(num_returns=None).remote(3)
    assert [cml.get(ref, timeout=20) for ref in refs] == [[0], [1], [2]]
