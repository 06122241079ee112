"""A `multiprocessing.Pool` whose processes are the cluster's.

>>> from concurrent_ml.multiprocessing import Pool
>>> with Pool() as pool:
...     print(pool.map(abs, [-1, -2, 3]))
[1, 2, 3]
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from multiprocessing import TimeoutError  # noqa: A004 - the name that programs use
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _state
from .futures import Executor, Future, check_function

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

    from ._options import OtherOptions

T = TypeVar("T")

_AHEAD = 4
"""`imap` is so many chunks for each process ahead of the results taken."""


class AsyncResult(Generic[T]):
    """What will come of `apply_async`, `map_async` or `starmap_async`."""

    def __init__(
        self,
        futures: list[Future[Any]],
        combine: Callable[[list[Any]], T],
        callback: Callable[[T], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._futures = futures
        self._combine = combine
        self._callback = callback
        self._error_callback = error_callback
        self._left = len(futures)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        for future in futures:
            future.add_done_callback(self._one_ended)
        if not futures:
            self._value = combine([])
            self._done.set()

    def _one_ended(self, _future: Any) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        try:
            self._value = self._combine([future.result(0) for future in self._futures])
        except BaseException as error:
            self._error = error
        try:
            if self._error is None and self._callback is not None:
                self._callback(self._value)  # type: ignore[arg-type]
            elif self._error is not None and self._error_callback is not None:
                self._error_callback(self._error)
        finally:
            self._futures = []
            self._done.set()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until all has ended, or for so many seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        for future in list(self._futures):
            try:
                future.exception(_left(end))
            except CancelledError:
                continue
            except builtins.TimeoutError:
                return
        self._done.wait(_left(end))

    def ready(self) -> bool:
        """Whether all has ended."""
        return self._done.is_set()

    def successful(self) -> bool:
        """Whether all has ended without an exception; `ValueError` if it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def get(self, timeout: float | None = None) -> T:
        """What came of it; waits. After `timeout` seconds, `multiprocessing.TimeoutError`."""
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError(f"not ready after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


MapResult = AsyncResult


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


class IMapIterator(Iterator[T]):
    """What `imap` and `imap_unordered` return."""

    def __init__(self, pool: Pool, submits: Iterator[Future[list[T]]], ordered: bool) -> None:
        self._pool = pool
        self._submits = submits
        self._ordered = ordered
        self._futures: deque[Future[list[T]]] = deque()
        self._items: Iterator[T] = iter(())
        self._top_up(_AHEAD * pool._processes)

    def _top_up(self, count: int | None) -> None:
        self._futures.extend(itertools.islice(self._submits, count))

    def __iter__(self) -> IMapIterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """The next result. After `timeout` seconds, `multiprocessing.TimeoutError`; it can be asked for again."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            for item in self._items:
                return item
            if not self._futures:
                raise StopIteration
            future = self._futures[0] if self._ordered else self._first(end)
            try:
                future.exception(_left(end))
            except builtins.TimeoutError:
                raise TimeoutError(f"not ready after {timeout} s") from None
            self._futures.remove(future)
            if not self._pool._closed:
                self._top_up(1)
            self._items = iter(future.result(0))

    def _first(self, end: float | None) -> Future[list[T]]:
        """The first to end, or after the time any."""
        while True:
            for future in self._futures:
                if future.done():
                    return future
            refs = {future.ref: future for future in self._futures if future.ref is not None}
            client = self._pool._executor._client
            ready, _ = client.wait(list(refs), 1, _left(end), True) if refs else ([], None)
            if not ready:
                return self._futures[0]
            return refs[ready[0]]


class _Each:
    """A chunk of `map`: the function with each of these."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *items: Any) -> list[Any]:
        return [self.function(item) for item in items]


class _EachStarred:
    """A chunk of `starmap`: the function with so many of these, then so many."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, widths: tuple[int, ...], *flat: Any) -> list[Any]:
        items = iter(flat)
        return [self.function(*itertools.islice(items, width)) for width in widths]


class Pool:
    """Runs calls on the cluster, with the methods of `multiprocessing.Pool`.

    `processes` is how many calls, or chunks of calls, run at once: as many as the cluster has CPUs, unless told.
    `initializer(*initargs)` is called once in each of the cluster's processes before the pool's first call there.
    `maxtasksperchild` changes nothing: processes belong to the cluster. Options are those of `@remote`.

    >>> from concurrent_ml.multiprocessing import Pool
    >>> with Pool(2, num_cpus=0.5) as pool:
    ...     print(pool.starmap(pow, [(2, 3), (3, 2)]), pool.apply_async(len, ("abc",)).get(timeout=30))
    [8, 9] 3
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Unpack[OtherOptions],
    ) -> None:
        if processes is not None:
            if isinstance(processes, bool) or not isinstance(processes, int):
                raise TypeError(f"processes is {processes!r}; it must be a whole number or None")
            if processes < 1:
                raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int)
            or isinstance(maxtasksperchild, bool)
            or maxtasksperchild < 1
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._executor = self._made(processes, initializer, initargs, maxtasksperchild, options)
        self._processes = processes or _cpus()
        self._iterators: list[IMapIterator[Any]] = []
        self._outstanding: set[Future[Any]] = set()
        self._closed = False

    def _made(
        self,
        processes: int | None,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        _maxtasksperchild: int | None,
        options: OtherOptions,
    ) -> Executor:
        return Executor(processes, initializer=initializer, initargs=initargs, **options)

    # ---- one call ----

    def apply(
        self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None
    ) -> T:
        """Calls `func(*args, **kwds)`; waits for what it returns."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """Calls `func(*args, **kwds)`; returns at once what will come of it."""
        self._check_running()
        future = self._executor.submit(func, *args, **dict(kwds or {}))
        return AsyncResult([self._kept(future)], lambda results: results[0], callback, error_callback)

    # ---- many ----

    def map(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None) -> list[T]:
        """The results of `func(item)` for all items, in order."""
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """As `map`, but returns at once what will come of it."""
        return self._mapped(func, iterable, chunksize, (callback, error_callback), starred=False)

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        """The results of `func(*item)` for all items, in order."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """As `starmap`, but returns at once what will come of it."""
        return self._mapped(func, iterable, chunksize, (callback, error_callback), starred=True)

    def imap(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator[T]:
        """Iterates over the results of `func(item)`, in order; reads the items as it goes on."""
        return self._iterated(func, iterable, chunksize, True)

    def imap_unordered(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator[T]:
        """Iterates over the results of `func(item)` as they come; reads the items as it goes on."""
        return self._iterated(func, iterable, chunksize, False)

    def _mapped(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callbacks: tuple[Any, Any],
        *,
        starred: bool,
    ) -> AsyncResult[list[Any]]:
        self._check_running()
        items = list(iterable)
        if chunksize is None:
            chunksize, extra = divmod(len(items), self._processes * 4)
            chunksize = max(1, chunksize + bool(extra))
        futures = list(self._chunks(func, items, chunksize, starred))
        return AsyncResult(futures, lambda lists: [*itertools.chain(*lists)], *callbacks)

    def _iterated(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int, ordered: bool
    ) -> IMapIterator[Any]:
        self._check_running()
        iterator = IMapIterator(self, self._iterated_chunks(func, iterable, chunksize), ordered)
        self._iterators = [other for other in self._iterators if other._futures]
        self._iterators.append(iterator)
        return iterator

    def _iterated_chunks(
        self, func: Callable[..., Any], items: Iterable[Any], chunksize: int
    ) -> Iterator[Future[Any]]:
        return self._chunks(func, items, chunksize, False)

    def _chunks(
        self, func: Callable[..., Any], items: Iterable[Any], chunksize: int, starred: bool
    ) -> Iterator[Future[Any]]:
        _check_chunks(func, chunksize)
        source = iter(items)
        remote = self._executor._prepared(func, _EachStarred if starred else _Each)

        def submits() -> Iterator[Future[Any]]:
            while chunk := tuple(itertools.islice(source, chunksize)):
                args = chunk
                if starred:
                    tuples = [tuple(item) for item in chunk]
                    args = (tuple(map(len, tuples)), *itertools.chain(*tuples))
                yield self._kept(self._executor._submitted(remote, args))

        return submits()

    def _kept(self, future: Future[T]) -> Future[T]:
        self._outstanding.add(future)
        future.add_done_callback(self._outstanding.discard)
        return future

    # ---- ends ----

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    def close(self) -> None:
        """Takes no more calls; those that were made go on."""
        if self._closed:
            return
        for iterator in self._iterators:
            iterator._top_up(None)
        self._closed = True
        self._executor.shutdown(wait=False)

    def terminate(self) -> None:
        """Takes no more calls, and cancels those that were made, also those that run."""
        self._closed = True
        self._executor.shutdown(wait=False)
        self._executor.cancel_all()

    def join(self) -> None:
        """Waits for all calls. `close` or `terminate` comes first."""
        if not self._closed:
            raise ValueError("Pool is still running")
        for future in list(self._outstanding):
            with contextlib.suppress(CancelledError):
                future.exception()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {'closed' if self._closed else 'running'} processes={self._processes}>"
        )


def _check_chunks(func: Any, chunksize: Any) -> None:
    check_function(func, "a pool takes functions")
    if isinstance(chunksize, bool) or not isinstance(chunksize, int):
        raise TypeError(f"chunksize is {chunksize!r}; it must be a whole number")
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize}")


def _cpus() -> int:
    from ._api import cluster_resources

    _state.connected()
    return max(1, int(cluster_resources().get("CPU", 1)))


__all__ = ["AsyncResult", "IMapIterator", "MapResult", "Pool", "TimeoutError"]
