"""Placement groups: resources of several kinds or nodes, set aside all at once."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from . import _native, _options, _state
from ._native import ObjectRef
from .exceptions import ClusterClosedError

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class PlacementGroup:
    """Resources that were set aside together: what `placement_group` returns. It can be passed to tasks and actors."""

    def __init__(self, ref: ObjectRef[Any], bundles: list[dict[str, float]] | None = None) -> None:
        self._ref = ref
        self._bundles = bundles
        self._generation = _state.generation

    @property
    def id(self) -> str:
        """Names it, in messages and `cluster list placement-groups`."""
        return self._ref._id

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A ref that is ready when all bundles are; its value is this group."""
        return self._ref

    def wait(self, timeout_seconds: float | None = 30) -> bool:
        """Whether all bundles are there within this time. False at once, with a warning, if they never will be."""
        client = _state.connected()
        ready, _ = client.wait([self._ref], 1, timeout_seconds, True)
        if not ready:
            return False
        try:
            client.get(self._ref)
        except Exception as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)
            return False
        return True

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """What each bundle sets aside, by resource name."""
        if self._bundles is None:
            view = _ask(self)
            self._bundles = [bundle["total"] for bundle in view["bundles"]]
        return [dict(bundle) for bundle in self._bundles]

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other._ref == self._ref

    def __hash__(self) -> int:
        return hash(self._ref)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self._ref, self._bundles)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id})"


class _Ready:
    """What a group's ref leads to: the group itself. It cannot hold its own ref, so it finds it where it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _group_that_is_read, ()


def _group_that_is_read() -> PlacementGroup:
    return PlacementGroup(_native._this_value())


_READY = _Ready()


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK",
    name: str = "",
    lifetime: Literal["detached"] | None = None,
) -> PlacementGroup:
    """Sets resources aside, all bundles or none; returns at once. See `ready` and `wait` of what it returns.

    Each bundle is a dict of amounts by name ("CPU", "GPU", "memory", and custom ones) and lies on one node; "PACK":
    on as few nodes as they fit; "SPREAD": on as many as there are; "STRICT_PACK": all on one; "STRICT_SPREAD": each
    on another. Tasks and actors use it by `scheduling_strategy=PlacementGroupSchedulingStrategy(group)`. It is
    there until `remove_placement_group`, or until its program ends unless `lifetime="detached"`.

    >>> import concurrent_ml as cml
    >>> group = cml.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK")
    >>> group.wait(10)
    True
    >>> @cml.remote
    ... def where():
    ...     return cml.get_current_placement_group() == group
    >>> inside = cml.PlacementGroupSchedulingStrategy(group, 1)
    >>> cml.get(where.options(scheduling_strategy=inside).remote())
    True
    >>> cml.remove_placement_group(group)
    """
    checked = _checked(bundles)
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}")
    if lifetime not in (None, "detached"):
        raise ValueError(
            f'lifetime is {lifetime!r}; it must be None (it ends with this program) or "detached" (until it is removed)'
        )
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name is {name!r}; it must be a string")
    client = _state.connected()
    if not name:
        shape = tuple(tuple(sorted(bundle.items())) for bundle in checked)
        maker = _maker(_state.generation, shape, strategy, lifetime == "detached")
        return PlacementGroup(maker.make(_READY), checked)
    space = client.namespace
    maker = _native.GroupMaker(client, checked, strategy, name, space, lifetime == "detached")
    group = PlacementGroup(maker.make(_READY), checked)
    # The same stream carries both, so this is the answer to whether the name was free.
    found = client.named_group(space, name)
    if found is not None and found != group._ref:
        raise ValueError(
            f"the name {name!r} is taken in namespace {space!r} by another placement group: take another, or remove "
            "that one"
        )
    return group


@functools.lru_cache(128)
def _maker(
    _generation: int, shape: tuple[tuple[tuple[str, float], ...], ...], strategy: str, detached: bool
) -> _native.GroupMaker:
    return _native.GroupMaker(
        _state.connected(), [dict(bundle) for bundle in shape], strategy, "", "", detached
    )


def _checked(bundles: Any) -> list[dict[str, float]]:
    if isinstance(bundles, Mapping | str) or not isinstance(bundles, Sequence):
        raise ValueError(
            f'bundles is {bundles!r}; it must be a list of dicts like [{{"CPU": 1}}, {{"GPU": 1}}]'
        )
    if not bundles:
        raise ValueError("bundles is empty; a placement group has one bundle or more")
    _options.few_enough("bundles", bundles)
    checked: list[dict[str, float]] = []
    for index, bundle in enumerate(bundles):
        if not isinstance(bundle, Mapping):
            raise ValueError(f'bundle {index} is {bundle!r}; it must be a dict like {{"CPU": 1}}')
        _options.few_enough(f"bundle {index}", bundle)
        for key, value in bundle.items():
            if not isinstance(key, str) or not key:
                raise TypeError(f"bundle {index} has the name {key!r}; names of resources are words")
            _options.amount(f"bundle {index}[{key!r}]", value)
        amounts = {key: float(value) for key, value in bundle.items() if value}
        if not amounts:
            raise ValueError(f"bundle {index} is {dict(bundle)!r}, which asks for nothing")
        checked.append(amounts)
    return checked


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Gives back what the group holds. What runs in it is ended at once and fails, and so does what waits for it."""
    _check(placement_group)
    _state.connected().kill(placement_group._ref, False)


def _check(group: Any) -> None:
    if not isinstance(group, PlacementGroup):
        raise TypeError(f"this takes a PlacementGroup, not a value of type {type(group).__name__}")
    if group._generation != _state.generation:
        raise ClusterClosedError(
            f"the placement group {group.id} belongs to a cluster that this program has left: it is of no use here"
        )


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of this name, in this program's namespace. `ValueError` if there is none."""
    name = placement_group_name
    if not isinstance(name, str) or not name:
        raise ValueError(f"placement_group_name is {name!r}; it must be a string that is not empty")
    client = _state.connected()
    found = client.named_group(client.namespace, name)
    if found is None:
        raise ValueError(
            f"there is no placement group named {name!r} in namespace {client.namespace!r}: it was not made or is "
            "removed (see `cluster list placement-groups`)"
        )
    return PlacementGroup(found)


def get_current_placement_group() -> PlacementGroup | None:
    """The group that the running task or actor is in; `None` elsewhere."""
    task = _state.actor.task if _state.actor is not None else _state.current_task()
    place = task.group if task is not None else None
    return PlacementGroup(place[0]) if place is not None else None


def _ask(group: PlacementGroup) -> dict[str, Any]:
    view = json.loads(_state.connected().query("group", group.id))
    if view is None:
        raise ValueError(f"the placement group {group.id} is not known: it was removed, or never made")
    return view


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What there is to know of a group; without one, of all, by their ids."""
    if placement_group is not None:
        _check(placement_group)
        return _row(_ask(placement_group))
    return {view["group"]: _row(view) for view in json.loads(_state.connected().query("groups"))}


def _row(view: dict[str, Any]) -> dict[str, Any]:
    return {
        "placement_group_id": view["group"],
        "name": view["name"],
        "namespace": view["namespace"],
        "strategy": view["strategy"],
        "state": view["state"].upper(),
        "bundles": {index: bundle["total"] for index, bundle in enumerate(view["bundles"])},
        "bundles_to_node_id": {index: bundle["node"] for index, bundle in enumerate(view["bundles"])},
        "is_detached": view["detached"],
        "job_id": view["job"],
        "reason": view["reason"],
    }


__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]
