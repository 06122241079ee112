"""Processes of a pool that are actors, as those of Ray's pools are."""

from __future__ import annotations

import contextlib
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ... import _api, _initializer, _state
from ..._actor import kill
from ..._remote import remote
from ...exceptions import ClusterError
from ...futures import Executor, Future


class Each:
    """A chunk of `map`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, items: Iterable[Any]) -> list[Any]:
        return [self.function(item) for item in items]


class EachStarred(Each):
    """A chunk of `starmap`."""

    def __call__(self, items: Iterable[Any]) -> list[Any]:
        return [self.function(*item) for item in items]


class CaughtEach(Each):
    """A chunk of `imap`: what a call raises is its result."""

    def __call__(self, items: Iterable[Any]) -> list[Any]:
        return [self._one(item) for item in items]

    def _one(self, item: Any) -> Any:
        try:
            return self.function(item)
        except Exception as error:
            return error


class _Process:
    """What runs in each process."""

    def __init__(self, initial: _initializer.Initial | None) -> None:
        self._functions: dict[str, Callable[..., Any]] = {}
        if initial is not None:
            _initializer.initialize(initial)

    def ready(self) -> None:
        """Answers once the initializer has run."""

    def run(self, key: str, stored: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a function, which is read once. Refs among the arguments stay refs."""
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = _api.get(stored[0])
        return function(*args, **kwargs)


class _Function:
    """A function that the processes can call; stands where an `Executor` has a remote function."""

    def __init__(self, processes: Processes, function: Callable[..., Any]) -> None:
        self._processes = processes
        self._key = uuid.uuid4().hex
        self._stored = [_api.put(function)]

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it in the process that has been idle longest."""
        return self._processes.called(self._key, self._stored, args, kwargs)


class Processes(Executor):
    """Calls run in so many actors, one at a time in each."""

    def __init__(
        self,
        processes: int,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        calls_each: int | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__(processes, initializer=initializer, initargs=initargs)
        every: dict[str, Any] = {"max_restarts": -1, **options}
        self._actor: Any = remote(**every)(_Process)
        self._calls_each = calls_each
        self._had: dict[Any, int] = {}
        """How many calls each process has had."""
        self._busy: dict[Any, Any] = {}
        """By the ref of the call."""
        self._idle: deque[Any] = deque()
        for _ in range(processes):
            self._begin()
        _api.get([process.ready.remote() for process in self._idle])

    def _begin(self) -> None:
        process = self._actor.remote(self._initial)
        self._had[process] = 0
        self._idle.append(process)

    def _prepared(
        self,
        fn: Callable[..., Any] | None,
        around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> Any:
        made = _initializer.prepared(fn, self._initial)
        return _Function(self, made if around is None else around(made))

    def called(self, key: str, stored: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Sends a call. No more run at once than there are processes, so one is idle."""
        process = self._idle[0]
        ref = process.run.remote(key, stored, args, kwargs)
        self._busy[ref] = self._idle.popleft()
        self._had[process] += 1
        return ref

    def _ended(self, future: Future[Any]) -> None:
        with self._lock:
            process = self._busy.pop(future.ref, None)
            if process is not None and process in self._had:
                if self._calls_each is not None and self._had[process] >= self._calls_each:
                    del self._had[process]
                    self._begin()
                else:
                    self._idle.append(process)
            super()._ended(future)

    def kill(self) -> None:
        """Ends the processes, and what they run."""
        with self._lock:
            processes, self._had = list(self._had), {}
            self._idle.clear()
        if self._client is _state.client:
            for process in processes:
                with contextlib.suppress(ClusterError):
                    kill(process)
