"""Small things made of actors: a pool of them, and a queue.

>>> from concurrent_ml.util import ActorPool, Empty, Full, Queue
"""

from ._actor_pool import ActorPool
from ._queue import Empty, Full, Queue

__all__ = ["ActorPool", "Empty", "Full", "Queue"]
