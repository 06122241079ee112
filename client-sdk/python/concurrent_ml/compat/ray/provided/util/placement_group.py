"""`ray.util.placement_group`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..... import _groups
from ....._groups import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group_table,
    remove_placement_group,
)
from ..._missing import getter
from .._ids import PlacementGroupID

__getattr__ = getter("ray.util.placement_group")

# Groups are this library's own, with an id like Ray's.
PlacementGroup.id = property(  # type: ignore[assignment]
    lambda self: PlacementGroupID(self._ref._id)
)


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: Any = "PACK",
    name: str = "",
    lifetime: Any = None,
    **others: Any,
) -> PlacementGroup:
    """Sets resources aside, all bundles or none."""
    for option, value in others.items():
        if value is not None:
            raise ValueError(f"the option {option!r} of placement_group is not provided")
    return _groups.placement_group(bundles, strategy, name, lifetime)


__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]
