"""Tasks that yield: how a generator's items become refs while it runs, and what an executor does with one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _async, _native, _state
from ._native import ObjectRef

if TYPE_CHECKING:
    from ._options import MethodOptions, Options

T = TypeVar("T")


# ---- who submits ----


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a generator."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def returns(
    options: Options | MethodOptions, function: Callable[..., Any] | None = None
) -> tuple[int, tuple[int, int] | None]:
    """How many results a call has and, if it yields, how far it may be ahead (items and bytes; 0 is no limit)."""
    wanted = options.num_returns
    if wanted is None and function is not None and is_generator(function):
        wanted = "streaming"
    if wanted == "streaming":
        return 1, (options.stream_max_items or 0, options.stream_max_bytes or 0)
    return (wanted if isinstance(wanted, int) else 1), None


class DynamicObjectRefGenerator(Generic[T]):
    """What a task with `num_returns="dynamic"` returns: the refs of what it yielded, as many as there were.

    >>> import concurrent_ml as cml
    >>> @cml.remote(num_returns="dynamic")
    ... def split(n):
    ...     for part in range(n):
    ...         yield part
    >>> refs = cml.get(split.remote(3))
    >>> len(refs), cml.get(list(refs))
    (3, [0, 1, 2])
    """

    def __init__(self, refs: list[ObjectRef[T]]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: int) -> ObjectRef[T]:
        return self._refs[index]

    def __repr__(self) -> str:
        return f"DynamicObjectRefGenerator({len(self._refs)} refs)"


class Collected:
    """A function whose items are put, one by one, and whose value is a list of their refs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> DynamicObjectRefGenerator[Any]:
        client = _state.connected()
        return DynamicObjectRefGenerator([client.put(item) for item in self.function(*args, **kwargs)])


# ---- who runs it ----


def drain(task: _native.Task, items: Any) -> Any:
    """Yields what a generator does, and is the value that it returns. Waits where nobody takes what is there.

    When nobody wants any more, the generator is closed where it stands.
    """
    if hasattr(items, "__aiter__"):
        return asyncio.run(drain_in_loop(task, items))
    source = _source(task, items)
    try:
        while task.wait_for_room():
            try:
                item = next(source)
            except StopIteration as end:
                return end.value
            task.yield_item(item)
            del item
        return None
    finally:
        if inspect.isgenerator(source):
            source.close()


async def drain_in_loop(task: _native.Task, items: Any) -> Any:
    """The same in an event loop, which goes on while this waits."""
    is_async = hasattr(items, "__aiter__")
    source: Any = aiter(items) if is_async else _source(task, items)
    try:
        while await _has_room(task):
            try:
                item = await anext(source) if is_async else next(source)
            except StopAsyncIteration:
                return None
            except StopIteration as end:
                return end.value
            task.yield_item(item)
            del item
        return None
    finally:
        if inspect.isasyncgen(source):
            await source.aclose()
        elif inspect.isgenerator(source):
            source.close()


async def _has_room(task: _native.Task) -> bool:
    while True:
        room, wanted = task.room()
        if room or not wanted:
            return wanted
        await _async.until(task.on_room)


def _source(task: _native.Task, items: Any) -> Iterator[Any]:
    try:
        return iter(items)
    except TypeError:
        raise TypeError(
            f'{task.name} is to yield items (num_returns="streaming"), but it returned a value of type '
            f"{type(items).__name__}, which cannot be iterated over"
        ) from None
