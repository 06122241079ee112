"""`ray.util.multiprocessing`."""

from ...._missing import getter
from .pool import JoinableQueue, Pool, TimeoutError  # noqa: A004 - the name that programs use

__getattr__ = getter("ray.util.multiprocessing")

__all__ = ["JoinableQueue", "Pool", "TimeoutError"]
