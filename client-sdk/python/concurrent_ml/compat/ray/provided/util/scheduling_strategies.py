"""`ray.util.scheduling_strategies`."""

from __future__ import annotations

from ....._strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)
from ....._strategies import NodeAffinitySchedulingStrategy as OwnNodeAffinity
from ..._missing import getter

__getattr__ = getter("ray.util.scheduling_strategies")


class NodeAffinitySchedulingStrategy(OwnNodeAffinity):
    """On that node; if `soft`, elsewhere when it is gone."""

    def __init__(
        self,
        node_id: str,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        super().__init__(str(node_id), soft)


__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]
