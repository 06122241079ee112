"""Where an actor lives: its instance, and how its calls run.

| the actor | its calls run |
| --- | --- |
| plain | one after the other on the main thread, by the executor's own loop |
| `max_concurrency` above 1, or groups | on threads, so many at once as each group allows |
| with coroutines | on an event loop in a thread, each group on its own; sync methods run on it too, and hold it up |

While calls run elsewhere, the main thread takes what comes and hands it out.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import ctypes
import inspect
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from . import _checkpoints, _native, _state, _streams
from .exceptions import ClusterError, _ActorExit, _Cancelled

if TYPE_CHECKING:
    from ._executor import Reports

MOVES_AFTER = 10.0
"""Calls that run at once may end for so long before the actor moves without them."""

GRACE = 60.0
"""An actor that nobody has a handle on lets running calls end for so long; its daemon may be less patient."""


class Calls(Protocol):
    """How calls run at once."""

    def make(
        self,
        cls: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        restored: Callable[[Any], Any] | None,
    ) -> Any:
        """The instance, with its state from before."""
        ...

    def start(self, task: _native.Task) -> None:
        """Begins a call, or queues it."""
        ...

    def cancel(self, tag: int) -> None:
        """Ends a call."""
        ...

    def count(self) -> int:
        """Calls that have not ended."""
        ...


class Actor:
    """The actor that this process is."""

    def __init__(self, task: _native.Task, reports: Reports) -> None:
        self.task = task
        self.instance: Any = None
        limit, groups, is_async = task.concurrency
        self.calls: Calls | None = None
        if is_async:
            self.calls = EventLoop(self, reports, {"": limit, **groups})
        elif limit > 1 or groups:
            self.calls = Threads(self, reports, {"": limit, **groups})
        if self.calls is not None:
            _native.run_several(_state.running.get)
        self.states = _checkpoints.States.of(self)

    def make(self, cls: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Runs `__init__`, and `__restore__` where there is a state from before."""
        restored = self.states.restored if self.states is not None else None
        if self.calls is None:
            self.instance = cls(*args, **kwargs)
            if restored is not None:
                restored(self.instance)
        else:
            self.instance = self.calls.make(cls, args, kwargs, restored)

    def method(self, name: str) -> Callable[..., Any]:
        """What a call calls."""
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self.instance)
        if name.endswith(_streams.COLLECTED):
            return _streams.Collected(self.method(name.removesuffix(_streams.COLLECTED)))
        if self.states is not None:
            if name == "__checkpoint__":
                return self.states.save
            self.states.calls += 1
        found = getattr(self.instance, name)
        if not callable(found):  # an attribute of the instance hides the method that handles know
            kind = type(self.instance)
            found = inspect.getattr_static(kind, name).__get__(self.instance, kind)
        return found

    def move(self) -> None:
        """This node is to leave: the actor lives on elsewhere with the state it has now, if it can keep one. What comes
        for it meanwhile is for its next life; what runs may end first.
        """
        if self.states is None:
            return
        end = time.monotonic() + MOVES_AFTER
        while self.calls is not None and self.calls.count() and time.monotonic() < end:
            time.sleep(0.01)
        try:
            made = self.states.save()
            if made is not None:
                assert isinstance(self.calls, EventLoop)
                asyncio.run_coroutine_threadsafe(made, self.calls.loops[""].loop).result()
        except Exception as error:
            self.states.complain(error)
            return
        with contextlib.suppress(ClusterError):
            self.task.move_actor()

    def let_calls_end(self, client: _native.Client) -> None:
        """No more will come: those that run may end."""
        end = time.monotonic() + GRACE
        while self.calls is not None and self.calls.count() and time.monotonic() < end:
            if client.broken() is not None:
                return
            time.sleep(0.01)


def _call_with(instance: Any) -> Callable[..., Any]:
    return lambda function, *args, **kwargs: function(instance, *args, **kwargs)


def _terminate(_instance: Any) -> Callable[..., Any]:
    def leave() -> NoReturn:
        raise _ActorExit

    return leave


_SPECIAL: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "__ray_ready__": lambda _instance: lambda: True,
    "__ray_call__": _call_with,
    "__ray_terminate__": _terminate,
}


def end_process(leaving: SystemExit) -> NoReturn:
    """`sys.exit` in a call that does not run on the main thread ends the process all the same."""
    code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)


class Threads:
    """Threads for each group; a call waits where all of its group's are busy."""

    def __init__(self, actor: Actor, reports: Reports, limits: dict[str, int]) -> None:
        self.actor = actor
        self.reports = reports
        self.pools = {group: _Pool(self, group, limit) for group, limit in limits.items()}
        self.lock = threading.Lock()
        # By tag: a call, and the thread that runs its code at this moment.
        self.running: dict[int, tuple[_native.Task, int | None]] = {}

    def make(
        self,
        cls: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        restored: Callable[[Any], Any] | None,
    ) -> Any:
        instance = cls(*args, **kwargs)
        if restored is not None:
            restored(instance)
        return instance

    def start(self, task: _native.Task) -> None:
        with self.lock:
            self.running[task.tag] = (task, None)
        self.pools.get(task.method[1], self.pools[""]).add(task)

    def cancel(self, tag: int) -> None:
        with self.lock:
            task, thread = self.running.get(tag, (None, None))
            if task is None:
                return
            if thread is not None:
                _raise_in(thread, _Cancelled)
                return
            del self.running[tag]
        self.reports.cancelled(task)

    def count(self) -> int:
        return len(self.running)

    def serve(self, task: _native.Task) -> None:
        """In a thread of a pool: one call."""
        with self.lock:
            if task.tag not in self.running:
                return  # cancelled while it waited
            self.running[task.tag] = (task, threading.get_ident())
        _state.running.set(task)
        try:
            self.reports.settle(task, self.call)
        except SystemExit as leaving:
            end_process(leaving)
        finally:
            _state.running.set(None)
            with self.lock:
                self.running.pop(task.tag, None)

    def call(self, task: _native.Task) -> Any:
        try:
            args, kwargs = task.arguments()
            with self.reports.limit(task):
                result = self.actor.method(task.method[0])(*args, **kwargs)
                return _streams.settled(task, result)
        finally:
            # From here on nothing is raised in it any more, and what was to be is forgotten.
            with self.lock:
                self.running[task.tag] = (task, None)
                _raise_in(threading.get_ident(), None)


class _Pool:
    """The threads of one group, started as they are needed."""

    def __init__(self, calls: Threads, group: str, limit: int) -> None:
        self.calls = calls
        self.group = group
        self.limit = limit
        self.queue: queue.SimpleQueue[_native.Task] = queue.SimpleQueue()
        self.threads = 0
        self.idle = 0
        self.lock = threading.Lock()

    def add(self, task: _native.Task) -> None:
        self.queue.put(task)
        with self.lock:
            # Those about to take what was queued before are not idle.
            if self.queue.qsize() <= self.idle or self.threads == self.limit:
                return
            self.threads += 1
        name = f"actor-{self.group or 'call'}-{self.threads}"
        threading.Thread(target=self.work, name=name, daemon=True).start()

    def work(self) -> None:
        while True:
            with self.lock:
                self.idle += 1
            task = self.queue.get()
            with self.lock:
                self.idle -= 1
            # One that was raised too late is nobody's.
            with contextlib.suppress(_Cancelled):
                self.calls.serve(task)
            del task


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Raises in another thread when it next runs Python code; with `None`, forgets that."""
    raised = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)


class EventLoop:
    """An event loop in a thread for each group, so that a call which blocks its loop holds up its own group only."""

    def __init__(self, actor: Actor, reports: Reports, limits: dict[str, int]) -> None:
        self.actor = actor
        self.limits = limits
        self.reports = reports
        self.group_of: dict[int, str] = {}
        # That of `__init__` and of calls in no group is there from the beginning, the others when they are needed.
        self.loops = {"": _GroupLoop(self, "")}

    def make(
        self,
        cls: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        restored: Callable[[Any], Any] | None,
    ) -> Any:
        async def made() -> Any:
            instance = cls(*args, **kwargs)
            if restored is not None:
                done = restored(instance)
                if inspect.isawaitable(done):
                    await done
            return instance

        return asyncio.run_coroutine_threadsafe(made(), self.loops[""].loop).result()

    def start(self, task: _native.Task) -> None:
        group = task.method[1]
        if group not in self.limits:
            group = ""
        loop = self.loops.get(group)
        if loop is None:
            loop = self.loops[group] = _GroupLoop(self, group)
        if group:
            self.group_of[task.tag] = group
        loop.start(task)

    def cancel(self, tag: int) -> None:
        self.loops[self.group_of.get(tag, "")].cancel(tag)

    def count(self) -> int:
        return sum(loop.count() for loop in self.loops.values())


class _GroupLoop:
    """The event loop of one group, and how many of its calls may run at once."""

    def __init__(self, whose: EventLoop, group: str) -> None:
        self.actor = whose.actor
        self.reports = whose.reports
        self.group_of = whose.group_of
        self.limit = asyncio.Semaphore(whose.limits[group])
        self.running: dict[int, asyncio.Task[None]] = {}
        self.begun: set[int] = set()
        self.incoming: collections.deque[_native.Task] = collections.deque()
        self.told = False
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.work, name=f"actor-event-loop {group}".rstrip(), daemon=True).start()

    def work(self) -> None:
        _state.loop_threads.add(threading.get_ident())
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        except SystemExit as leaving:  # raised by a task of the user's own
            end_process(leaving)

    def start(self, task: _native.Task) -> None:
        self.incoming.append(task)
        # Many that come together wake the loop once.
        if not self.told:
            self.told = True
            self.loop.call_soon_threadsafe(self.take)

    def take(self) -> None:
        self.told = False
        while self.incoming:
            task = self.incoming.popleft()
            self.running[task.tag] = self.loop.create_task(self.serve(task))

    def cancel(self, tag: int) -> None:
        def stop() -> None:
            running = self.running.get(tag)
            if running is None:
                return
            if tag in self.begun:
                running.cancel()
            else:  # cancelled before its first step, a coroutine would not say that it was
                self.loop.call_soon(stop)

        self.loop.call_soon_threadsafe(stop)

    def count(self) -> int:
        return len(self.running) + len(self.incoming)

    async def serve(self, task: _native.Task) -> None:
        """One call."""
        self.begun.add(task.tag)
        _state.running.set(task)
        reports = self.reports
        name = task.method[0]
        try:
            async with self.limit:
                args, kwargs = task.arguments()
                with reports.limit(task):
                    result = self.actor.method(name)(*args, **kwargs)
                    if inspect.isawaitable(result) and not isinstance(result, _native.ObjectRef):
                        result = await result
                    result = await _streams.settled_in_loop(task, result)
            reports.finished(task, result)
        except SystemExit as leaving:
            reports.leaving(task, leaving)
            end_process(leaving)
        except asyncio.CancelledError as error:
            if task.cancel_reason() is None:  # of the user's own making
                reports.failed(task, error)
            else:
                reports.cancelled(task)
        except BaseException as error:
            reports.ended_by(task, error)
        finally:
            self.running.pop(task.tag, None)
            self.begun.discard(task.tag)
            self.group_of.pop(task.tag, None)
