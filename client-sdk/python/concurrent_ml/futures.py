"""A `concurrent.futures.Executor` whose calls run on the cluster.

>>> from concurrent_ml.futures import Executor
>>> with Executor() as executor:
...     print(executor.submit(pow, 2, 10).result(), list(executor.map(abs, [-1, -2])))
1024 [1, 2]
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import itertools
import json
import threading
import time
import types
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from . import _async, _initializer, _state
from ._actor import ActorClass
from ._native import ObjectRef
from ._options import Options
from ._remote import RemoteFunction
from .exceptions import ClusterClosedError, ClusterError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import OtherOptions

P = ParamSpec("P")
T = TypeVar("T")

_FUNCTIONS_KEPT = 128
"""Functions that an executor has stored for its next calls; the longest unused goes first."""

_RUNNING_AT_MOST = 2000
"""Of an executor's calls."""

_NOT_STARTED = ("waiting", "queued", "prefetched")

_all: weakref.WeakSet[Executor] = weakref.WeakSet()


class Future(concurrent.futures.Future[T]):
    """A call on the cluster, as `Executor.submit` returns it. `ref` is the result's `ObjectRef`.

    `ref` is `None` while the call waits in this program for its turn (`max_workers`).
    """

    def __init__(self, executor: Executor, call: Callable[[], ObjectRef[T]]) -> None:
        super().__init__()
        self.ref: ObjectRef[T] | None = None
        self._executor = executor
        self._call: Callable[[], ObjectRef[T]] | None = call
        self._claimed = False

    def running(self) -> bool:
        """Whether it runs at this moment: the cluster is asked."""
        return not self.done() and self.ref is not None and _state_of(self.ref) == "running"

    def cancel(self) -> bool:
        """Cancels the call if it has not started; false if it has (`concurrent_ml.cancel(future.ref)` ends it)."""
        if self.cancelled():
            return True
        if self.done() or not self._executor._withdraw(self) or not super().cancel():
            return False
        self._notify_cancelled()
        return True

    def _notify_cancelled(self) -> None:
        with self._condition:
            if self._state == "CANCELLED":
                self.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> T:
        """What the call returned; raises what it raised. After `timeout` seconds, `TimeoutError`."""
        return super().result(self._wait(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or `None`."""
        return super().exception(self._wait(timeout))

    def _wait(self, timeout: float | None) -> float | None:
        """Waits as `get` does: the thread reads by itself, and in a task the CPU is lent to others meanwhile."""
        end = None if timeout is None else time.monotonic() + timeout
        client = self._executor._client
        while not self.done():
            # A call that waits for its turn gets it when another ends.
            futures = [self] if self.ref is not None else self._executor._some_in_flight()
            refs = {future.ref: future for future in futures if future.ref is not None}
            if not refs:
                break
            left = None if end is None else max(0.0, end - time.monotonic())
            try:
                ready, _ = client.wait(list(refs), 1, left, True)
            except ClusterError:
                break  # the thread of the futures tells them
            if not ready:
                return 0
            refs[ready[0]]._settle()
        return None if end is None else max(0.0, end - time.monotonic())

    def _settle(self) -> None:
        """The value, or the failure, is here. Whoever finds out first takes it."""
        with self._condition:
            if self._claimed:
                return
            self._claimed = True
        value, error = None, None
        try:
            value = self._executor._client.get(self.ref) if not self.cancelled() else None
        except BaseException as raised:
            error = raised
        self._executor._ended(self)
        with self._condition:
            if self.cancelled():
                return
            self.set_running_or_notify_cancel()
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(value)  # type: ignore[arg-type]

    def _fail(self, error: BaseException) -> None:
        with self._condition:
            if self.cancelled() or self._claimed:
                return
            self._claimed = True
            self.set_running_or_notify_cancel()
        self.set_exception(error)


def _state_of(ref: ObjectRef[Any]) -> str:
    """Where the task of a ref is, as `cluster list tasks` says it; nothing if that cannot be known."""
    client = _state.client
    if client is None:
        return ""
    try:
        return json.loads(client.query("why", ref.task_id(), 5.0))["task"]["state"]
    except (ClusterError, ValueError):
        return ""


def check_function(fn: Any, takes: str) -> None:
    """Raises what is wrong with something that should be called."""
    if isinstance(fn, RemoteFunction | ActorClass):
        name = fn.__name__
        raise TypeError(
            f"{takes}, and {name} is remote: give {name}.__wrapped__, and its options to what calls it; or call "
            f"{name}.remote(...)"
        )
    if not callable(fn):
        raise TypeError(f"{takes}, not a {type(fn).__name__}")


def _cancel_waiting(ref: ObjectRef[Any]) -> bool:
    """Cancels the task of a ref unless it has started."""
    client = _state.client
    if client is None or client.is_ready(ref) or _state_of(ref) not in _NOT_STARTED:
        return False
    try:
        client.cancel(ref, False, True, "by the executor that submitted it")
    except ClusterError:
        return False
    return True


class Executor(concurrent.futures.Executor):
    """Runs calls on the cluster, with the methods of `ProcessPoolExecutor`.

    `max_workers` limits how many calls run at once; without it the cluster's resources do. `initializer(*initargs)` is
    called once in each process before its first call. Options are those of `@remote`: `Executor(num_gpus=1)`. A
    future's `cancel` cancels a call that has not started. `ObjectRef`s among the arguments become their values.

    A function is stored at its first call: what it reads from its module later is not seen, unless it is imported from
    a file.

    >>> from concurrent_ml.futures import Executor
    >>> with Executor(max_workers=2, num_cpus=0.5) as executor:
    ...     futures = [executor.submit(divmod, n, 3) for n in range(3)]
    ...     print([future.result() for future in futures])
    [(0, 0), (0, 1), (0, 2)]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        **options: Unpack[OtherOptions],
    ) -> None:
        if max_workers is not None:
            if isinstance(max_workers, bool) or not isinstance(max_workers, int):
                raise TypeError(f"max_workers is {max_workers!r}; it must be a whole number or None")
            if max_workers < 1:
                raise ValueError(f"max_workers is {max_workers}; it must be 1 or more, or None")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer is a {type(initializer).__name__}; it must be something to call")
        if "num_returns" in options:
            raise TypeError("a future has one value, so an Executor takes no num_returns: return a tuple")
        self._options = Options().changed(options)
        self._client = _state.connected()
        self._max_workers = max_workers
        self._initial = None if initializer is None else (uuid.uuid4().hex, initializer, tuple(initargs))
        self._functions: OrderedDict[Any, RemoteFunction[..., Any]] = OrderedDict()
        self._lock = threading.RLock()
        self._in_flight: dict[Future[Any], None] = {}
        self._queued: deque[Future[Any]] = deque()
        self._results: weakref.WeakSet[_Results[Any]] = weakref.WeakSet()
        self._shut = False
        _all.add(self)

    # ---- what users call ----

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Starts a call; returns its future at once."""
        check_function(fn, "submit() takes a function and its arguments")
        remote, first = self._remote(fn)
        return self._submitted(remote, (*first, *args), kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Calls `fn` with the items of the iterables, as Python's `map` does; gives the results in order.

        Everything is submitted at once, unless `buffersize` says how many calls may be ahead of the results taken.
        `chunksize` items make one call. `timeout` seconds after `map` was called, waiting raises `TimeoutError`.
        Closing the iterator cancels the calls that have not started.
        """
        check_function(fn, "map() takes a function and iterables")
        for name, value in (
            ("chunksize", chunksize),
            ("buffersize", 1 if buffersize is None else buffersize),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}; it must be a whole number")
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        if not iterables:
            return iter(())
        end = None if timeout is None else time.monotonic() + timeout
        remote, calls, flatten = self._calls(fn, iterables, chunksize)
        if self._max_workers is None and buffersize is None:
            with self._lock:
                self._check_open()
                results: _Results[T] = _Results(remote, calls, flatten, timeout, end)
                self._results.add(results)
            return results
        return self._by_futures(remote, calls, flatten, end, buffersize)

    def cancel_all(self) -> None:
        """Cancels every call, those that run too, as `concurrent_ml.cancel` does."""
        with self._lock:
            futures = [*self._in_flight, *self._queued]
        for future in reversed(futures):
            if not future.cancel() and future.ref is not None:
                with contextlib.suppress(ClusterError):
                    self._client.cancel(future.ref, False, True, "by the executor that submitted it")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls and waits for those there are; `cancel_futures` cancels those that have not started."""
        with self._lock:
            self._shut = True
            futures, results = [*self._in_flight, *self._queued], list(self._results)
        if cancel_futures:
            # The last first: those are the least likely to start meanwhile.
            for future in reversed(futures):
                future.cancel()
            for result in results:
                result.cancel()
        if wait:
            for future in futures:
                with contextlib.suppress(concurrent.futures.CancelledError):
                    future.exception()
            for result in results:
                result.wait()

    def __reduce__(self) -> Any:
        raise TypeError("an Executor cannot be sent elsewhere: make one where it is used")

    # ---- how ----

    def _check_open(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _remote(self, fn: Callable[..., Any]) -> tuple[RemoteFunction[..., Any], tuple[Any, ...]]:
        """What to call on the cluster, and the arguments before the user's.

        A function is stored once. Anything else that can be called may change between two calls: it travels with each.
        """
        if isinstance(fn, types.FunctionType):
            return self._stored(fn, lambda: self._prepared(fn)), ()
        return self._stored(None, lambda: self._prepared(None)), (fn,)

    def _stored(self, key: Any, make: Callable[[], RemoteFunction[..., Any]]) -> RemoteFunction[..., Any]:
        with self._lock:
            found = self._functions.get(key)
            if found is None:
                found = self._functions[key] = make()
                if len(self._functions) > _FUNCTIONS_KEPT:
                    self._functions.popitem(last=False)
            else:
                self._functions.move_to_end(key)
            return found

    def _prepared(
        self,
        fn: Callable[..., Any] | None,
        around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> RemoteFunction[..., Any]:
        made = _initializer.prepared(fn, self._initial)
        if around is not None:
            made = around(made)
        options = self._options
        if options.name is None and fn is not made:
            options = options.changed({"name": getattr(fn, "__name__", None) or "call"})
        return RemoteFunction(made, options)

    def _calls(
        self, fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], chunksize: int
    ) -> tuple[RemoteFunction[..., Any], Iterable[tuple[Any, ...]], bool]:
        items = zip(*iterables, strict=False)
        if chunksize == 1:
            if isinstance(fn, types.FunctionType):
                return self._remote(fn)[0], items, False
            return self._prepared(fn), items, False
        width = len(iterables)

        def chunks() -> Iterator[tuple[Any, ...]]:
            # Flat, so that refs among the items become values.
            while chunk := tuple(itertools.chain.from_iterable(itertools.islice(items, chunksize))):
                yield chunk

        return self._prepared(fn, lambda made: _Chunk(made, width)), chunks(), True

    def _by_futures(
        self,
        remote: RemoteFunction[..., Any],
        calls: Iterable[tuple[Any, ...]],
        flatten: bool,
        end: float | None,
        buffersize: int | None,
    ) -> Iterator[Any]:
        source = iter(calls)
        futures = deque(self._submitted(remote, args) for args in itertools.islice(source, buffersize))

        def results() -> Iterator[Any]:
            try:
                while futures:
                    left = None if end is None else max(0.0, end - time.monotonic())
                    result = futures[0].result(left)
                    futures.popleft()
                    if buffersize is not None:
                        futures.extend(self._submitted(remote, args) for args in itertools.islice(source, 1))
                    if flatten:
                        yield from result
                    else:
                        yield result
            finally:
                for future in reversed(futures):
                    future.cancel()

        return results()

    def _submitted(
        self, remote: RemoteFunction[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> Future[Any]:
        future: Future[Any] = Future(self, lambda: remote.remote(*args, **(kwargs or {})))
        with self._lock:
            self._check_open()
            if self._max_workers is not None and len(self._in_flight) >= self._max_workers:
                self._queued.append(future)
            else:
                self._start(future)
        return future

    def _start(self, future: Future[Any]) -> None:
        """Submits it. What is wrong with the call, its future tells, as with other executors."""
        call, future._call = future._call, None
        assert call is not None
        try:
            if self._client is not _state.client:
                raise ClusterClosedError(
                    "this Executor belongs to a cluster that the program has left: make a new one"
                )
            future.ref = call()
            self._in_flight[future] = None
            _async.when_ready(future.ref, future._settle)
        except Exception as error:
            self._in_flight.pop(future, None)
            future._fail(error)

    def _ended(self, future: Future[Any]) -> None:
        with self._lock:
            self._in_flight.pop(future, None)
            while self._queued and len(self._in_flight) < (self._max_workers or 1):
                self._start(self._queued.popleft())

    def _withdraw(self, future: Future[Any]) -> bool:
        """Takes a call back, if it has not started."""
        with self._lock:
            if future.ref is None:
                with contextlib.suppress(ValueError):
                    self._queued.remove(future)
                    return True
                return False
        return _cancel_waiting(future.ref)

    def _some_in_flight(self) -> list[Future[Any]]:
        with self._lock:
            return list(itertools.islice(self._in_flight, 1000))


class _Chunk:
    """Several calls as one, of so many arguments each."""

    def __init__(self, function: Callable[..., Any], width: int) -> None:
        self.function = function
        self.width = width

    def __call__(self, *flat: Any) -> list[Any]:
        function, width = self.function, self.width
        return [function(*flat[at : at + width]) for at in range(0, len(flat), width)]


class _Results(Iterator[T]):
    """What `Executor.map` returns where nothing holds calls back."""

    def __init__(
        self,
        remote: RemoteFunction[..., Any],
        calls: Iterable[tuple[Any, ...]],
        flatten: bool,
        timeout: float | None,
        end: float | None,
    ) -> None:
        native = remote._native
        if native is None or remote._generation != _state.generation:
            native = remote._prepare()
        self._client = _state.connected()
        self._refs: deque[ObjectRef[Any]] = deque(native.call_many(calls, {}))
        self._flatten = flatten
        self._timeout = timeout
        self._end = end
        self._items: Iterator[T] = iter(())

    def __next__(self) -> T:
        for item in self._items:
            return item
        if not self._refs:
            raise StopIteration
        left = None if self._end is None else max(0.0, self._end - time.monotonic())
        try:
            result = self._client.get(self._refs[0], left)
        except TimeoutError as error:
            if self._client.is_ready(self._refs[0]):
                raise  # the call's own
            late = f"{len(self._refs)} results of map() were not ready after {self._timeout} s"
            raise TimeoutError(late) from error
        except BaseException:
            self.close()
            raise
        self._refs.popleft()
        if not self._flatten:
            return result
        self._items = iter(result)
        return next(self)

    def cancel(self) -> None:
        """Cancels what has not started."""
        refs = list(self._refs)
        # Behind so many that have not ended none has started, and to ask of each takes 0.1 ms.
        for ref in reversed(refs[_RUNNING_AT_MOST:]):
            with contextlib.suppress(ClusterError):
                self._client.cancel(ref, False, True, "by the executor that submitted it")
        for ref in reversed(refs[:_RUNNING_AT_MOST]):
            _cancel_waiting(ref)

    def wait(self) -> None:
        """Until all have ended."""
        refs = list(self._refs)
        if refs:
            with contextlib.suppress(ClusterError):
                self._client.wait(refs, len(refs), None, False)

    def close(self) -> None:
        """Takes no more results."""
        self.cancel()
        self._refs.clear()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


def _at_exit() -> None:
    """A program does not end before its calls have, as with other executors."""
    for executor in list(_all):
        if _state.client is not None and not _state.is_executor and not _state.is_fork:
            with contextlib.suppress(ClusterError):
                executor.shutdown()


atexit.register(_at_exit)

__all__ = ["Executor", "Future"]
