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


VALID_PLACEMENT_GROUP_STRATEGIES = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}


def validate_placement_group(
    bundles: Any,
    strategy: Any = "PACK",
    lifetime: Any = None,
    _soft_target_node_id: Any = None,
    bundle_label_selector: Any = None,
) -> bool:
    """Raises what is wrong with a group's description; returns whether it is detached."""
    _validate_bundles(bundles)
    if strategy not in VALID_PLACEMENT_GROUP_STRATEGIES:
        known = ", ".join(sorted(VALID_PLACEMENT_GROUP_STRATEGIES))
        raise ValueError(f"Invalid placement group strategy {strategy}. Supported strategies are: {known}.")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime is {lifetime!r}; it must be None or 'detached'")
    return lifetime == "detached"


def _validate_bundles(bundles: Any) -> None:
    if not isinstance(bundles, list):
        raise ValueError(f"Placement group bundles must be a list, got {type(bundles)}.")
    if not bundles:
        raise ValueError("Bundles must be a non-empty list of resource dictionaries: [{'CPU': 1.0}].")
    for bundle in bundles:
        if not isinstance(bundle, dict) or not all(
            isinstance(name, str) and isinstance(amount, int | float) for name, amount in bundle.items()
        ):
            raise ValueError(f"Bundles must be resource dictionaries like {{'CPU': 1.0}}, got {bundle!r}.")
        if not any(bundle.values()):
            raise ValueError(f"Bundles cannot be an empty dictionary or have only 0 values: {bundle!r}.")


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
    "VALID_PLACEMENT_GROUP_STRATEGIES",
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
    "validate_placement_group",
]
