"""`ray.util.joblib`."""

from __future__ import annotations

from typing import Any

from ..._missing import getter
from ..._options import translated

__getattr__ = getter("ray.util.joblib")


def register_ray() -> None:
    """`joblib.parallel_backend("ray")` means this cluster from now on."""
    from joblib.parallel import register_parallel_backend

    from .....joblib import Backend

    class RayBackend(Backend):
        """Takes the options of tasks as Ray's backend does."""

        def __init__(
            self,
            nesting_level: int | None = None,
            inner_max_num_threads: int | None = None,
            ray_remote_args: dict[str, Any] | None = None,
            **others: Any,
        ) -> None:
            options: Any = translated({**others, **(ray_remote_args or {})}, of_actor=False)
            super().__init__(nesting_level, inner_max_num_threads, **options)

    register_parallel_backend("ray", RayBackend)


__all__ = ["register_ray"]
