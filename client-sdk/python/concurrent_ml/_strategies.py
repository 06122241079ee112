"""Where tasks and actors may run: what `scheduling_strategy` takes beside "DEFAULT" and "SPREAD"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from ._groups import PlacementGroup


class PlacementGroupSchedulingStrategy:
    """In what a placement group set aside: in its bundle of that index, or (-1) in any.

    With `placement_group_capture_child_tasks`, what the task submits goes into the group too, unless it says otherwise.
    """

    def __init__(
        self,
        placement_group: PlacementGroup,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        from ._groups import PlacementGroup

        if not isinstance(placement_group, PlacementGroup):
            kind = type(placement_group).__name__
            raise TypeError(f"placement_group is of type {kind}; it must be what placement_group() returns")
        if isinstance(placement_group_bundle_index, bool) or not isinstance(
            placement_group_bundle_index, int
        ):
            raise TypeError(
                f"placement_group_bundle_index is {placement_group_bundle_index!r}; it must be a whole number"
            )
        if placement_group_bundle_index < -1:
            raise ValueError(
                f"placement_group_bundle_index is {placement_group_bundle_index}; "
                "it must be the index of a bundle, or -1 for any"
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks

    def _native(self) -> tuple[Any, ...]:
        index = self.placement_group_bundle_index
        capture = bool(self.placement_group_capture_child_tasks)
        return self.placement_group._ref, None if index < 0 else index, capture


class NodeAffinitySchedulingStrategy:
    """On the node of this id (`NodeID` in `nodes()`); with `soft`, elsewhere when it is gone or too small."""

    def __init__(self, node_id: str, soft: bool) -> None:
        if isinstance(node_id, bytes):
            node_id = node_id.hex()
        if not isinstance(node_id, str):
            raise TypeError(f"node_id is {node_id!r}; it must be a string, as nodes() has it in NodeID")
        if not isinstance(soft, bool):
            raise TypeError(f"soft is {soft!r}; it must be True or False")
        try:
            valid = 0 < len(node_id) <= 16 and int(node_id, 16) >= 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"node_id is {node_id!r}; ids of nodes are 16 hexadecimal digits")
        self.node_id = node_id
        self.soft = soft

    def _native(self) -> tuple[Any, ...]:
        return self.node_id, self.soft


class In:
    """The label's value is one of these."""

    _kind = "in"

    def __init__(self, *values: str) -> None:
        for value in values:
            if not isinstance(value, str):
                raise TypeError(f"{type(self).__name__}() takes strings, not {value!r}")
        if not values:
            raise ValueError(f"{type(self).__name__}() takes the values to compare with, one or more")
        self.values = list(values)


class NotIn(In):
    """The label's value is none of these, or there is no such label."""

    _kind = "not in"


class Exists:
    """There is such a label."""

    _kind = "exists"
    values: tuple[str, ...] = ()


class DoesNotExist:
    """There is no such label."""

    _kind = "absent"
    values: tuple[str, ...] = ()


LabelRules: TypeAlias = "Mapping[str, In | NotIn | Exists | DoesNotExist]"


class NodeLabelSchedulingStrategy:
    """On nodes whose labels match all of `hard`, and of these rather on one that matches all of `soft`.

    >>> NodeLabelSchedulingStrategy(hard={"zone": In("a", "b"), "spot": DoesNotExist()}).hard.keys()
    dict_keys(['zone', 'spot'])
    """

    def __init__(self, hard: LabelRules, *, soft: LabelRules | None = None) -> None:
        self.hard = self._checked("hard", hard)
        self.soft = self._checked("soft", soft)

    @staticmethod
    def _checked(which: str, rules: LabelRules | None) -> dict[str, In | NotIn | Exists | DoesNotExist]:
        if rules is None:
            return {}
        if not isinstance(rules, Mapping):
            raise TypeError(f'{which} is {rules!r}; it must be a dict like {{"zone": In("a")}}')
        for key, rule in rules.items():
            if not isinstance(key, str) or not key:
                raise TypeError(f"{which} has the key {key!r}; keys of labels are words")
            if not isinstance(rule, In | Exists | DoesNotExist):
                raise TypeError(
                    f"{which}[{key!r}] is {rule!r}; it must be In(...), NotIn(...), Exists() or DoesNotExist()"
                )
        return dict(rules)

    def _native(self) -> tuple[Any, ...]:
        def listed(rules: dict[str, In | NotIn | Exists | DoesNotExist]) -> list[tuple[str, str, list[str]]]:
            return [(key, rule._kind, list(rule.values)) for key, rule in rules.items()]

        return listed(self.hard), listed(self.soft)


SchedulingStrategy: TypeAlias = (
    Literal["DEFAULT", "SPREAD"]
    | PlacementGroupSchedulingStrategy
    | NodeAffinitySchedulingStrategy
    | NodeLabelSchedulingStrategy
)

KINDS = (PlacementGroupSchedulingStrategy, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy)


def native(strategy: Any, captured: Any) -> Any:
    """What the native module takes. `captured`: the group of the running task, if that captures what it submits."""
    if strategy is None:
        return "DEFAULT" if captured is None else (captured, None, True)
    return strategy if isinstance(strategy, str) else strategy._native()


def check_place(strategy: Any, what: str, asks: Mapping[str, float]) -> None:
    """Raises if the group that a strategy names is known to have no bundle for this."""
    if not isinstance(strategy, PlacementGroupSchedulingStrategy):
        return
    bundles = strategy.placement_group._bundles
    index = strategy.placement_group_bundle_index
    if bundles is None:
        return
    if index >= len(bundles):
        raise ValueError(
            f"placement_group_bundle_index is {index}; "
            f"the group has {len(bundles)} bundles, from 0 to {len(bundles) - 1}"
        )
    asks = {name: amount for name, amount in asks.items() if amount}
    there = bundles if index < 0 else [bundles[index]]
    if not any(all(bundle.get(name, 0) >= amount for name, amount in asks.items()) for bundle in there):
        which = "none of the group's bundles has" if index < 0 else f"bundle {index} of the group has not"
        raise ValueError(f"{what} needs {asks}, and {which} that: {there}")
