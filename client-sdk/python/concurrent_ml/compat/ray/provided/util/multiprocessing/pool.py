"""`ray.util.multiprocessing.pool`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import JoinableQueue
from typing import Any

from ...... import _api, _state
from ......futures import Future
from ......multiprocessing import (
    AsyncResult,
    TimeoutError,  # noqa: A004 - the name that programs use
    _check_chunks,
    _cpus,
)
from ......multiprocessing import Pool as OwnPool
from ...._missing import getter
from ...._options import translated
from ...._processes import CaughtEach, Each, EachStarred, Processes

__getattr__ = getter("ray.util.multiprocessing.pool")


class Pool(OwnPool):
    """A `multiprocessing.Pool` whose processes are actors, as Ray's are.

    The initializer runs in each before `Pool(...)` returns, and `maxtasksperchild` chunks later another takes its
    place. Options are those of actors; without them, processes need no CPUs. What a call raises, `imap` and
    `imap_unordered` give at its place among the results.
    """

    def __init__(  # noqa: PLR0917 - as Ray has them
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        if _state.client is None:
            from ... import _where, init

            if _where(ray_address) is None and processes is not None and not _api._here(_api._run_dir()):
                init(num_cpus=processes)
            else:
                init(ray_address)
        cpus = max(1, int(_api.cluster_resources().get("CPU", 0)))
        if isinstance(processes, int) and processes > cpus:
            raise ValueError(
                f"Tried to start a pool with {processes} processes on an existing ray cluster, but there are only "
                f"{cpus} CPUs in the ray cluster."
            )
        options: Any = {"num_cpus": 0, **translated(ray_remote_args or {}, of_actor=True)}
        super().__init__(processes, initializer, initargs or (), maxtasksperchild, **options)

    def _made(
        self,
        processes: int | None,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        maxtasksperchild: int | None,
        options: Any,
    ) -> Processes:
        self._actors = Processes(processes or _cpus(), initializer, initargs, maxtasksperchild, options)
        return self._actors

    def _chunks(
        self, func: Callable[..., Any], items: Iterable[Any], chunksize: int, starred: bool
    ) -> Iterator[Future[Any]]:
        return self._submits(func, items, chunksize, EachStarred if starred else Each)

    def _iterated_chunks(
        self, func: Callable[..., Any], items: Iterable[Any], chunksize: int
    ) -> Iterator[Future[Any]]:
        return self._submits(func, items, chunksize, CaughtEach)

    def _submits(
        self, func: Callable[..., Any], items: Iterable[Any], chunksize: int, each: type[Each]
    ) -> Iterator[Future[Any]]:
        _check_chunks(func, chunksize)
        source = iter(items)
        function = self._actors._prepared(func, each)

        def submits() -> Iterator[Future[Any]]:
            while chunk := tuple(itertools.islice(source, chunksize)):
                yield self._kept(self._actors._submitted(function, (chunk,)))

        return submits()

    def terminate(self) -> None:
        """Takes no more calls, and ends the processes."""
        super().terminate()
        self._actors.kill()

    def join(self) -> None:
        """Waits for all calls; then the processes end."""
        super().join()
        self._actors.kill()


__all__ = ["AsyncResult", "JoinableQueue", "Pool", "TimeoutError"]
