"""`await ref` and `ref.future()`: no thread waits for one ref; an event loop polls one descriptor for all (rule E5)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from . import _native, _state

T = TypeVar("T")

_tokens = itertools.count(1)


class _Waiter:
    """Refs that something waits for, by token, and the queue that tells which became ready."""

    def __init__(self, client: _native.Client) -> None:
        self.client = client
        self.queue = client.completions()
        self.waiting: dict[int, Callable[[], None]] = {}

    def add(self, ref: _native.ObjectRef[Any], then: Callable[[], None]) -> int:
        token = next(_tokens)
        self.waiting[token] = then
        try:
            self.client.on_ready(ref, self.queue, token)
        except BaseException:
            del self.waiting[token]
            raise
        return token

    def drain(self) -> None:
        for token in self.queue.drain():
            then = self.waiting.pop(token, None)
            if then is not None:
                then()


_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Waiter] = weakref.WeakKeyDictionary()


def _of_loop(loop: asyncio.AbstractEventLoop) -> _Waiter:
    client = _state.connected()
    waiter = _loops.get(loop)
    if waiter is None or waiter.client is not client:
        if waiter is not None:
            loop.remove_reader(waiter.queue.fileno())
        waiter = _Waiter(client)
        loop.add_reader(waiter.queue.fileno(), waiter.drain)
        _loops[loop] = waiter
    return waiter


def await_ref(ref: _native.ObjectRef[Any]) -> Generator[Any, None, Any]:
    """What `await ref` does."""
    loop = asyncio.get_running_loop()
    waiter = _of_loop(loop)
    future: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not future.done():
            future.set_result(None)

    token = waiter.add(ref, done)
    try:
        yield from future
    finally:
        waiter.waiting.pop(token, None)
    return waiter.client.get(ref)


async def until(register: Callable[[_native.Completions, int], None]) -> None:
    """Waits for what puts the token that it is given into the queue that it is given."""
    loop = asyncio.get_running_loop()
    waiter = _of_loop(loop)
    future: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not future.done():
            future.set_result(None)

    token = next(_tokens)
    waiter.waiting[token] = done
    try:
        register(waiter.queue, token)
        await future
    finally:
        waiter.waiting.pop(token, None)


async def next_item(generator: _native.ObjectRefGenerator[T]) -> _native.ObjectRef[T]:
    """What `anext(generator)` does."""
    while True:
        ref = generator._take()
        if ref is not None:
            return ref
        await until(functools.partial(_state.connected().on_ready, generator))


class _Thread:
    """One thread for all futures of a connection; ends with it."""

    def __init__(self, client: _native.Client) -> None:
        self.waiter = _Waiter(client)
        threading.Thread(target=self._run, name="concurrent-ml-futures", daemon=True).start()

    def _run(self) -> None:
        import select

        poll = select.poll()
        poll.register(self.waiter.queue.fileno(), select.POLLIN)
        while self.waiter.client.broken() is None:
            poll.poll(1000)
            self.waiter.drain()
        # Of what is left none is told any more: the connection says why to each that asks.
        self.waiter.drain()
        while self.waiter.waiting:
            self.waiter.waiting.popitem()[1]()


_thread: _Thread | None = None


def when_ready(ref: _native.ObjectRef[Any], then: Callable[[], None]) -> _native.Client:
    """Calls `then` in a thread of ours once `get` of the ref will not wait, or will fail; returns the connection."""
    global _thread
    client = _state.connected()
    with _state.lock:
        if _thread is None or _thread.waiter.client is not client:
            _thread = _Thread(client)
        thread = _thread
    thread.waiter.add(ref, then)
    return client


def future_of(ref: _native.ObjectRef[Any]) -> concurrent.futures.Future[Any]:
    """What `ref.future()` returns. Cancelling it leaves the task running: whoever else has the ref may want it."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    client = _state.connected()

    def done() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            value = client.get(ref)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    when_ready(ref, done)
    return future
