"""`ray.types`."""

from ...._native import ObjectRef
from .._missing import getter

__getattr__ = getter("ray.types")

__all__ = ["ObjectRef"]
