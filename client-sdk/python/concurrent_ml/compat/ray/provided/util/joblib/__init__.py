"""`ray.util.joblib`."""

from __future__ import annotations

from ...._missing import getter

__getattr__ = getter("ray.util.joblib")


def register_ray() -> None:
    """`joblib.parallel_backend("ray")` means this cluster from now on."""
    from joblib.parallel import register_parallel_backend

    from .ray_backend import RayBackend

    register_parallel_backend("ray", RayBackend)


__all__ = ["register_ray"]
