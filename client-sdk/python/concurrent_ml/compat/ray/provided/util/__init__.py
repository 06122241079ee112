"""`ray.util`."""

from __future__ import annotations

import copyreg
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..... import _api, _serialization, _state
from ..._missing import getter
from . import (
    accelerators,
    actor_pool,
    annotations,
    joblib,
    multiprocessing,
    queue,
    scheduling_strategies,
    state,
)
from .actor_pool import ActorPool
from .placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

__getattr__ = getter("ray.util")


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of living actors: of this namespace, or of all as dicts with `name` and `namespace`."""
    client = _state.connected()
    named = [
        actor
        for actor in json.loads(client.query("actors"))
        if actor["name"] and actor["state"] not in ("dead", "ending")
    ]
    if all_namespaces:
        return [{"name": actor["name"], "namespace": actor["namespace"]} for actor in named]
    return [actor["name"] for actor in named if actor["namespace"] == client.namespace]


def get_node_ip_address() -> str:
    """The address of this machine that others reach it by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 1))  # nothing is sent
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def as_completed(
    refs: Sequence[Any], chunk_size: int = 10, yield_as_many_as_possible: bool = False
) -> Iterator[Any]:
    """The values of refs, as they become ready."""
    left = list(refs)
    while left:
        number = min(chunk_size, len(left)) if yield_as_many_as_possible else 1
        _api.wait(left, num_returns=1)
        ready, left = _api.wait(left, num_returns=number, timeout=0)
        for ref in ready:
            yield _api.get(ref)


def map_unordered(
    fn: Any, items: Sequence[Any], backpressure_size: int | None = 100, chunk_size: int = 10
) -> Iterator[Any]:
    """The results of a remote function for items, as they become ready; at most so many run ahead."""
    pending: list[Any] = []
    for item in items:
        if backpressure_size is not None and len(pending) >= backpressure_size:
            ready, pending = _api.wait(pending, num_returns=1)
            yield from _api.get(ready)
        pending.append(fn.remote(item))
    yield from as_completed(pending, chunk_size)


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: Any = None
) -> tuple[bool, set[Any]]:
    """Whether a value can be pickled; if not, the part that cannot is printed and returned."""
    if _serialization._can_pickle(base_obj):
        return True, set()
    path, part = _serialization.offender(base_obj)
    print(f"{name or base_obj!r} cannot be pickled: {path or 'it'} is {part!r}", file=print_file)
    try:
        return False, {part}
    except TypeError:  # not hashable
        return False, {repr(part)}


def register_serializer(
    cls: type[Any], *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """Values of this class are pickled as what `serializer` makes of them, in this process."""
    copyreg.pickle(cls, lambda value: (deserializer, (serializer(value),)))


def deregister_serializer(cls: type[Any]) -> None:
    """Values of this class are pickled as Python does."""
    copyreg.dispatch_table.pop(cls, None)


_logged: dict[str, float] = {}
_log_again: float | None = None
_log_at_all = True


def log_once(key: str) -> bool:
    """Whether this is the first time that somebody asks for this key."""
    if not _log_at_all:
        return False
    before, now = _logged.get(key), time.monotonic()
    if before is not None and (_log_again is None or now - before < _log_again):
        return False
    _logged[key] = now
    return True


def disable_log_once_globally() -> None:
    """`log_once` says no from now on."""
    global _log_at_all
    _log_at_all = False


def enable_periodic_logging() -> None:
    """`log_once` says yes again after a minute."""
    global _log_again
    _log_again = 60.0


__all__ = [
    "ActorPool",
    "accelerators",
    "actor_pool",
    "annotations",
    "as_completed",
    "deregister_serializer",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "joblib",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "multiprocessing",
    "placement_group",
    "placement_group_table",
    "queue",
    "register_serializer",
    "remove_placement_group",
    "scheduling_strategies",
    "state",
]
