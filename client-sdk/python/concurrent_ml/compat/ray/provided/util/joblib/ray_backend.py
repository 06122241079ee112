"""`ray.util.joblib.ray_backend`."""

from __future__ import annotations

from typing import Any

from ......joblib import Backend
from ...._missing import getter
from ...._options import translated

__getattr__ = getter("ray.util.joblib.ray_backend")


class RayBackend(Backend):
    """joblib's backend `"ray"`: takes the options of tasks as Ray's does."""

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        options: Any = translated({**others, **(ray_remote_args or {})}, of_actor=False)
        super().__init__(nesting_level, inner_max_num_threads, **options)


__all__ = ["RayBackend"]
