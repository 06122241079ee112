"""`ray.util.joblib`."""

from ..._missing import getter

__getattr__ = getter("ray.util.joblib")


def register_ray() -> None:
    """`joblib.parallel_backend("ray")` means this cluster from now on."""
    from joblib.parallel import register_parallel_backend

    from .....joblib import Backend

    register_parallel_backend("ray", Backend)


__all__ = ["register_ray"]
