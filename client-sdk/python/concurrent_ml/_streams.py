"""Tasks that yield: how a generator's items become refs while it runs, and what an executor does with one."""

from __future__ import annotations

import asyncio
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _async, _native, _state, exceptions
from . import _reports as reports
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


COLLECTED = "*"
"""After the name of a method: its items are collected."""


class Collected:
    """A function whose items are put, one by one, and whose value is a list of their refs. Where it raises, the last
    ref does too.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        items = self.function(*args, **kwargs)
        if hasattr(items, "__aiter__"):
            collected = self._collected_in_loop(items)
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return asyncio.run(collected)
            return collected
        if not hasattr(items, "__next__"):
            raise TypeError(
                f'a function with num_returns="dynamic" is to be a generator, and this one returned a value of type '
                f"{type(items).__name__}"
            )
        put = _state.connected().put
        refs: list[ObjectRef[Any]] = []
        try:
            refs.extend(put(item) for item in items)
        except Exception as error:
            refs.append(put(_raising(error)))
        return DynamicObjectRefGenerator(refs)

    async def _collected_in_loop(self, items: Any) -> DynamicObjectRefGenerator[Any]:
        put = _state.connected().put
        refs: list[ObjectRef[Any]] = []
        try:
            async for item in items:
                refs.append(put(item))
        except Exception as error:
            refs.append(put(_raising(error)))
        return DynamicObjectRefGenerator(refs)


def _raising(error: Exception) -> Any:
    """Instead of a value that did not come about: whoever reads it gets the exception."""
    task = _state.running.get() or _state.task
    if task is None or reports.is_retryable(task, error):
        raise error
    return exceptions._Raising(reports.story(task, _state.connected().node_id, error))


# ---- who runs it ----


def settled(task: _native.Task, result: Any) -> Any:
    """What a function returned, as the value of its task."""
    if task.streams:
        return drain(task, result)
    return spread(task, result) if isinstance(result, _GENERATORS) else result


async def settled_in_loop(task: _native.Task, result: Any) -> Any:
    """The same in an event loop."""
    if task.streams:
        return await drain_in_loop(task, result)
    if isinstance(result, types.AsyncGeneratorType):
        return await spread_in_loop(task, result)
    return spread(task, result) if isinstance(result, types.GeneratorType) else result


_GENERATORS = (types.GeneratorType, types.AsyncGeneratorType)


def spread(task: _native.Task, items: Any) -> Any:
    """The results of a task that returned a generator and has so many, or one. Where the generator raises, or ends too
    soon, what came before are results all the same.
    """
    if inspect.isasyncgen(items):
        return asyncio.run(spread_in_loop(task, items))
    values: list[Any] = []
    try:
        for item in items:
            if len(values) == task.num_returns:
                _ignored(task)
                break
            values.append(item)
    except Exception as error:
        return _filled(task, values, error)
    finally:
        items.close()
    return _filled(task, values, None)


async def spread_in_loop(task: _native.Task, items: Any) -> Any:
    """The same of an asynchronous generator."""
    values: list[Any] = []
    try:
        async for item in items:
            if len(values) == task.num_returns:
                _ignored(task)
                break
            values.append(item)
    except Exception as error:
        return _filled(task, values, error)
    finally:
        await items.aclose()
    return _filled(task, values, None)


def _ignored(task: _native.Task) -> None:
    wanted = f"{task.name} was declared with num_returns={task.num_returns}"
    print(f"{wanted} and yielded more: the rest is ignored", file=sys.stderr)


def _filled(task: _native.Task, values: list[Any], error: Exception | None) -> Any:
    count = task.num_returns
    if len(values) < count:
        if error is None:
            declared = f"{task.name} was declared with num_returns={count}"
            error = ValueError(f"{declared} but yielded {len(values)} values")
        if not values:
            raise error
        values += [_raising(error)] * (count - len(values))
    elif error is not None:
        raise error
    return values[0] if count == 1 else values


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
