"""A queue that tasks, actors and drivers share, first in, first out."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from .._actor import ActorHandle, kill
from .._api import get, wait
from .._remote import remote

T = TypeVar("T")

_AT_ONCE = 1_000_000
"""So many calls may wait for an item or for room. Those that wait for an item must not hold up those that bring one."""


class Empty(queue.Empty):
    """There is nothing in the queue, or not so much, or nothing came in time."""


class Full(queue.Full):
    """There is no room in the queue, or there was none in time."""


class _QueueActor:
    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    def empty(self) -> bool:
        return self.queue.empty()

    def full(self) -> bool:
        return self.queue.full()

    def qsize(self) -> int:
        return self.queue.qsize()

    async def put(self, item: Any, timeout: float | None) -> None:
        try:
            await asyncio.wait_for(self.queue.put(item), timeout)
        except TimeoutError:
            raise asyncio.QueueFull from None

    async def get(self, timeout: float | None) -> Any:
        try:
            return await asyncio.wait_for(self.queue.get(), timeout)
        except TimeoutError:
            raise asyncio.QueueEmpty from None

    def put_nowait(self, items: list[Any]) -> None:
        if self.maxsize > 0 and len(items) + self.queue.qsize() > self.maxsize:
            raise asyncio.QueueFull
        for item in items:
            self.queue.put_nowait(item)

    def get_nowait(self, count: int) -> list[Any]:
        if count > self.queue.qsize():
            raise asyncio.QueueEmpty
        return [self.queue.get_nowait() for _ in range(count)]


class Queue(Generic[T]):
    """A queue in an actor: whoever has the `Queue` puts and gets, wherever it runs; it can be passed like any value.

    `maxsize` items fit in; 0 is no limit. `actor_options` are those of a remote class: `{"name": "work"}`.

    >>> import concurrent_ml as cml
    >>> from concurrent_ml.util import Queue
    >>> queue = Queue(maxsize=10)
    >>> produce = cml.remote(lambda queue, n: [queue.put(i) for i in range(n)])
    >>> _ = produce.remote(queue, 3)
    >>> [queue.get() for _ in range(3)]
    [0, 1, 2]
    """

    def __init__(self, maxsize: int = 0, actor_options: Mapping[str, Any] | None = None) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"maxsize is {maxsize!r}; it must be a whole number; 0 is no limit")
        options = {"max_concurrency": _AT_ONCE, **(actor_options or {})}
        self.maxsize = maxsize
        self.actor: ActorHandle[Any] | None = remote(_QueueActor).options(**options).remote(maxsize)

    def _actor(self) -> ActorHandle[Any]:
        if self.actor is None:
            raise RuntimeError("this queue was shut down")
        return self.actor

    def __len__(self) -> int:
        return self.qsize()

    def size(self) -> int:
        """How many items are in it."""
        return self.qsize()

    def qsize(self) -> int:
        """How many items are in it."""
        return get(self._actor().qsize.remote())

    def empty(self) -> bool:
        """Whether nothing is in it."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether it has no room."""
        return 0 < self.maxsize <= self.qsize()

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Puts an item in; waits for room. After `timeout` seconds, or at once with `block=False`, `Full`."""
        with self._translated():
            get(self._put(item, block, timeout))

    async def put_async(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """As `put`, in an event loop."""
        with self._translated():
            await self._put(item, block, timeout)

    def _put(self, item: T, block: bool, timeout: float | None) -> Any:
        if block:
            return self._actor().put.remote(item, _checked(timeout))
        return self._actor().put_nowait.remote([item])

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Takes the first item out; waits for one. After `timeout` seconds, or at once with `block=False`, `Empty`."""
        if not block:
            return self.get_nowait()
        with self._translated():
            return get(self._actor().get.remote(_checked(timeout)))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> T:
        """As `get`, in an event loop."""
        with self._translated():
            if block:
                return await self._actor().get.remote(_checked(timeout))
            (item,) = await self._actor().get_nowait.remote(1)
            return item

    def put_nowait(self, item: T) -> None:
        """Puts an item in; `Full` if there is no room."""
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[T]) -> None:
        """Puts all of these in, or none: `Full` if there is no room for all."""
        if isinstance(items, str | bytes) or not isinstance(items, Iterable):
            raise TypeError(f"items is a {type(items).__name__}; it must be a list or another iterable")
        batch = list(items)
        with self._translated(f"there is no room for {len(batch)} items in a queue of {self.maxsize}"):
            get(self._actor().put_nowait.remote(batch))

    def get_nowait(self) -> T:
        """Takes the first item out; `Empty` if there is none."""
        return self.get_nowait_batch(1)[0]

    def get_nowait_batch(self, num_items: int) -> list[T]:
        """Takes so many items out; `Empty`, and none is taken, if there are fewer."""
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"num_items is {num_items!r}; it must be a whole number")
        if num_items < 0:
            raise ValueError(f"num_items is {num_items}; it must be 0 or more")
        with self._translated(f"the queue has no {num_items} items" if num_items > 1 else ""):
            return get(self._actor().get_nowait.remote(num_items))

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """Ends the queue and what is in it. Unless `force`, calls that run may end within `grace_period_s` seconds."""
        actor, self.actor = self._actor(), None
        if not force:
            ended, _ = wait([actor.__ray_terminate__.remote()], timeout=grace_period_s)
            if ended:
                return
        kill(actor, no_restart=True)

    @contextlib.contextmanager
    def _translated(self, text: str = "") -> Iterator[None]:
        try:
            yield
        except asyncio.QueueFull:
            raise Full(text or f"the queue has {self.maxsize} items, and no room") from None
        except asyncio.QueueEmpty:
            raise Empty(text or "the queue is empty") from None

    def __repr__(self) -> str:
        return f"Queue(maxsize={self.maxsize}, {self.actor or 'shut down'})"


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout is {timeout}; it must be a number of seconds, 0 or more, or None")
    return timeout
