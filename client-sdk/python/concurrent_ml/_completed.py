"""`as_completed`: refs in the order in which they become ready."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from . import _state
from ._native import ObjectRef
from .exceptions import GetTimeoutError

T = TypeVar("T")

_LENT_FOR = 1000
"""A task that waits names so many of those it waits for: when one of them is ready it goes on anyway."""


def as_completed(refs: Iterable[ObjectRef[T]], *, timeout: float | None = None) -> Completed[T]:
    """Iterates over refs in the order in which they become ready, by `for` or `async for`.

    A failed one is ready too: `get` raises what went wrong. When some are not ready `timeout` seconds after the call,
    the iteration raises `GetTimeoutError`.

    >>> import concurrent_ml as cml, time
    >>> @cml.remote(num_cpus=0.5)
    ... def nap(seconds):
    ...     time.sleep(seconds)
    ...     return seconds
    >>> [cml.get(ref) for ref in cml.as_completed([nap.remote(0.5), nap.remote(0)])]
    [0, 0.5]
    """
    return Completed(refs, timeout)


class Completed(Generic[T], Iterator[ObjectRef[T]], AsyncIterator[ObjectRef[T]]):
    """What `as_completed` returns. `len()` of it is how many are still to come."""

    def __init__(self, refs: Iterable[ObjectRef[T]], timeout: float | None) -> None:
        if isinstance(refs, ObjectRef):
            raise TypeError("as_completed() takes several ObjectRefs, not a single one: as_completed([ref])")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout is {timeout}; it must be a number of seconds, 0 or more, or None")
        pending = dict(enumerate(refs))
        for index, ref in pending.items():
            if not isinstance(ref, ObjectRef):
                raise TypeError(
                    f"as_completed() takes ObjectRefs, but item {index} is of type {type(ref).__name__}"
                )
        self._pending = pending
        self._count = len(pending)
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout
        self._ready: list[ObjectRef[T]] = []
        self._client = _state.connected()
        self._queue = self._client.completions()
        for index, ref in pending.items():
            self._client.on_ready(ref, self._queue, index)
        self._take()

    def __len__(self) -> int:
        return len(self._pending) + len(self._ready)

    def _take(self) -> None:
        """What became ready since the last look; in `_ready` the first is last."""
        came = self._queue.drain()
        if came and self._client.broken() is not None:
            self._client.get(next(iter(self._pending.values())))  # raises why the connection is of no use
        self._ready[:0] = [self._pending.pop(index) for index in reversed(came)]

    def _left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def _late(self) -> GetTimeoutError:
        one = next(iter(self._pending.values()))
        return GetTimeoutError(
            f"{len(self._pending)} of {self._count} values were not ready after {self._timeout} s, {one} among them"
        )

    def __iter__(self) -> Completed[T]:
        return self

    def __next__(self) -> ObjectRef[T]:
        if not self._ready:
            if not self._pending:
                raise StopIteration
            if _state.loop_threads:
                from ._api import _warn_in_loop

                _warn_in_loop("as_completed", "async for ref in as_completed(refs)")
            if not self._client.wait_queue(self._queue, self._awaited(), self._left()):
                raise self._late()
            self._take()
        return self._ready.pop()

    def _awaited(self) -> list[ObjectRef[Any]]:
        return list(itertools.islice(self._pending.values(), _LENT_FOR)) if _state.is_executor else []

    def _within(self, seconds: float) -> list[ObjectRef[T]]:
        """All that is ready; if nothing is, what becomes ready first within these seconds."""
        if not self._ready and self._pending:
            self._client.wait_queue(self._queue, self._awaited(), seconds)
            self._take()
        ready, self._ready = self._ready[::-1], []
        return ready

    def __aiter__(self) -> Completed[T]:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        self._take()
        if not self._ready:
            if not self._pending:
                raise StopAsyncIteration
            await self._some()
        return self._ready.pop()

    async def _some(self) -> None:
        loop = asyncio.get_running_loop()
        fd = self._queue.fileno()
        came = asyncio.Event()
        loop.add_reader(fd, came.set)
        try:
            await asyncio.wait_for(came.wait(), self._left())
        except TimeoutError:
            raise self._late() from None
        finally:
            loop.remove_reader(fd)
        self._take()
