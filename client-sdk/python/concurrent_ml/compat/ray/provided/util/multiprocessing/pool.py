"""`ray.util.multiprocessing.pool`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from multiprocessing import JoinableQueue
from typing import Any

from ...... import _state
from ......multiprocessing import AsyncResult, TimeoutError  # noqa: A004 - the name that programs use
from ......multiprocessing import Pool as OwnPool
from ...._missing import getter
from ...._options import translated

__getattr__ = getter("ray.util.multiprocessing.pool")


class Pool(OwnPool):
    """A `multiprocessing.Pool` on the cluster, made as Ray's is."""

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
            from ... import init

            init(ray_address)
        options: Any = translated(ray_remote_args or {}, of_actor=False)
        super().__init__(processes, initializer, initargs or (), maxtasksperchild, **options)


__all__ = ["AsyncResult", "JoinableQueue", "Pool", "TimeoutError"]
