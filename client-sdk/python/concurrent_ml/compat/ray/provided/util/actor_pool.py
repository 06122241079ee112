"""`ray.util.actor_pool`."""

from .....util import ActorPool
from ..._missing import getter

__getattr__ = getter("ray.util.actor_pool")

__all__ = ["ActorPool"]
