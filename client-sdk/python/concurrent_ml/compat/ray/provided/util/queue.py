"""`ray.util.queue`."""

from __future__ import annotations

from typing import Any

from ..... import util
from .....util import Empty, Full
from ..._missing import getter
from ..._options import translated

__getattr__ = getter("ray.util.queue")


class Queue(util.Queue[Any]):
    """A queue that tasks and actors share."""

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        super().__init__(maxsize, translated(actor_options or {}, of_actor=True))


__all__ = ["Empty", "Full", "Queue"]
