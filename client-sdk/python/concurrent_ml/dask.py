"""Dask collections computed by the cluster: a scheduler for `dask.compute`.

    import dask.array as da
    from concurrent_ml.dask import get

    total = da.ones((10_000, 10_000), chunks=1000).sum()
    total.compute(scheduler=get)

Each node of Dask's graph is a task, and what one node makes for another stays in the cluster's object stores: only the
values that were asked for come to the program. `persist` keeps refs in the collection instead of values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import dask
import dask.config
from dask._task_spec import Alias, DataNode, GraphNode, Task, convert_legacy_graph, cull
from dask.base import named_schedulers
from dask.callbacks import local_callbacks, unpack_callbacks
from dask.core import flatten
from dask.local import nested_get
from dask.order import order
from dask.tokenize import normalize_token
from dask.utils import key_split

from . import _state
from ._api import get as _get
from ._api import put
from ._completed import as_completed
from ._native import ObjectRef
from ._options import Options
from ._remote import RemoteFunction
from .exceptions import ClusterError

STORED_FROM = 64 * 1024
"""Data of at least this many bytes in a graph is stored once for all nodes that use it."""

_OF_OTHER_SCHEDULERS = {"num_workers", "pool", "chunksize", "cache", "rerun_exceptions_locally"}


def get(dsk: Any, keys: Any, *, callbacks: Any = None, **options: Any) -> Any:
    """Computes keys of a graph: give it to Dask as `scheduler=`.

    Options of `@remote` may be given beside it: `x.compute(scheduler=get, num_cpus=2)`. Dask's callbacks, and with them
    its `ProgressBar`, are told when tasks end, but not their values.

    >>> from concurrent_ml.dask import get
    >>> get({"x": 1, "y": (sum, ["x", 2])}, "y")
    3
    """
    refs = _submitted(dsk, keys, callbacks, options)
    values = dict(zip(refs, _get_all(list(refs.values())), strict=True))
    return nested_get(keys, values)


def _persist(collections: Sequence[Any], *, optimize_graph: bool = True, **options: Any) -> Any:
    """What `dask.persist` calls: the collections with refs in place of data."""
    return dask.persist(  # type: ignore[attr-defined]
        *collections, scheduler=_get_refs, optimize_graph=optimize_graph, **options
    )


get.persist = _persist  # type: ignore[attr-defined]


def _get_refs(dsk: Any, keys: Any, *, callbacks: Any = None, **options: Any) -> Any:
    refs = _submitted(dsk, keys, callbacks, options)
    return nested_get(
        keys, {key: ref if isinstance(ref, ObjectRef) else put(ref) for key, ref in refs.items()}
    )


def enable_dask_on_concurrent_ml(**options: Any) -> Any:
    """Makes the cluster Dask's scheduler where none is named; with `with`, until its end.

    >>> import dask
    >>> from concurrent_ml.dask import enable_dask_on_concurrent_ml
    >>> with enable_dask_on_concurrent_ml(num_cpus=0.5):
    ...     dask.compute(dask.delayed(pow)(2, 10))
    (1024,)
    """
    Options().changed(options)
    if not options:
        return dask.config.set(scheduler=get)
    scheduler: Any = functools.partial(get, **options)
    scheduler.persist = functools.partial(_persist, **options)
    return dask.config.set(scheduler=scheduler)


def disable_dask_on_concurrent_ml() -> None:
    """Dask chooses its scheduler itself again."""
    dask.config.set(scheduler=None)


# ---- graphs ----


def _submitted(dsk: Any, keys: Any, callbacks: Any, options: dict[str, Any]) -> dict[Any, Any]:
    """Of each key asked for its ref, or its value where the graph has it."""
    wanted = list(dict.fromkeys(flatten([keys])))
    graph = convert_legacy_graph(dsk if isinstance(dsk, Mapping) else dsk.__dask_graph__())
    for key in wanted:
        if key not in graph:
            raise KeyError(f"the graph has no key {key!r}")
    graph = cull(graph, wanted)
    remote = _Remote({name: value for name, value in options.items() if name not in _OF_OTHER_SCHEDULERS})
    with local_callbacks(callbacks) as active:
        if active:
            return _observed(graph, wanted, remote, active)
        # Refs of what is in between are dropped as soon as all is submitted: the tasks that use it hold it.
        made = _made(graph, remote)
    return {key: made[key] for key in wanted}


def _made(graph: dict[Any, GraphNode], remote: _Remote) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key in sorted(graph, key=order(graph).__getitem__):
        node = graph[key]
        if isinstance(node, Alias):
            made[key] = made[node.target]
        elif isinstance(node, DataNode):
            made[key] = _data(node.value)
        else:
            needed = tuple(node.dependencies)
            missing = [other for other in needed if other not in made]
            if missing:
                raise KeyError(f"the graph has no key {missing[0]!r}, which {key!r} needs")
            made[key] = remote(key_split(key))(node, needed, *(made[other] for other in needed))
    return made


def _data(value: Any) -> Any:
    """What tasks are given for data in the graph."""
    if isinstance(value, ObjectRef):
        return value
    size = getattr(value, "nbytes", None)
    if size is None and isinstance(value, bytes | bytearray | str | list | tuple | dict):
        size = len(value) * (1 if isinstance(value, bytes | bytearray | str) else 64)
    return put(value) if isinstance(size, int) and size >= STORED_FROM else value


class _Remote:
    """Remote functions by the name that their tasks have in listings."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = Options().changed(options)
        self.named: dict[str, Callable[..., Any]] = {}

    def __call__(self, name: str) -> Callable[..., Any]:
        found = self.named.get(name)
        if found is None:
            options = self.options if self.options.name else self.options.changed({"name": name})
            found = self.named[name] = RemoteFunction(_run, options).remote
        return found


def _observed(
    graph: dict[Any, GraphNode], wanted: Iterable[Any], remote: _Remote, callbacks: Any
) -> dict[Any, Any]:
    """As without callbacks, but waits for all tasks and tells of each."""
    _, _, before, after, _ = unpack_callbacks(callbacks)
    tasks = {key for key, node in graph.items() if not isinstance(node, Alias | DataNode)}
    state: dict[str, Any] = {
        "waiting": {},
        "ready": [],
        "running": set(tasks),
        "finished": set(),
        "cache": {},
        "released": set(),
        "dependencies": {key: set(node.dependencies) for key, node in graph.items()},
    }
    started = []
    succeeded = False
    try:
        for callback in callbacks:
            if callback[0]:
                callback[0](graph)
            started.append(callback)
        for _, start_state, _, _, _ in callbacks:
            if start_state:
                start_state(graph, state)
        for key in tasks:
            for tell in before:
                tell(key, graph, state)
        made = _made(graph, remote)
        keys = {made[key]: key for key in tasks}
        for ref in as_completed(list(keys)):
            if _state.connected().has_failed(ref):
                _get(ref)
            key = keys[ref]
            state["running"].discard(key)
            state["finished"].add(key)
            for tell in after:
                tell(key, None, graph, state, "cluster")
        succeeded = True
        return {key: made[key] for key in wanted}
    finally:
        for *_, finish in started:
            if finish:
                finish(graph, state, not succeeded)


def _get_all(values: list[Any]) -> Iterator[Any]:
    refs = [value for value in values if isinstance(value, ObjectRef)]
    try:
        got = iter(_get(refs))
    except KeyboardInterrupt:
        for ref in refs:
            try:
                _state.connected().cancel(ref, False, True, "by dask.get, which was interrupted")
            except ClusterError:
                break
        raise
    return (next(got) if isinstance(value, ObjectRef) else value for value in values)


# ---- in executors ----


def _run(node: GraphNode, needed: tuple[Any, ...], *values: Any) -> Any:
    return _resolved(node)(dict(zip(needed, values, strict=True)))


def _resolved(part: Any) -> Any:
    """A node, with the values of refs that Dask has moved into it."""
    if isinstance(part, ObjectRef):
        return _get(part)
    if isinstance(part, DataNode):
        return DataNode(part.key, _get(part.value)) if isinstance(part.value, ObjectRef) else part
    if isinstance(part, Task):
        part.args = tuple(map(_resolved, part.args))
        part.kwargs = {name: _resolved(value) for name, value in part.kwargs.items()}
    elif isinstance(part, dict) and any(isinstance(value, GraphNode | ObjectRef) for value in part.values()):
        return {key: _resolved(value) for key, value in part.items()}
    elif isinstance(part, list | tuple) and any(isinstance(value, GraphNode | ObjectRef) for value in part):
        return type(part)(map(_resolved, part)) if type(part) in (list, tuple) else part
    return part


# `scheduler="concurrent_ml"`, once this module is imported.
named_schedulers["concurrent_ml"] = get

# Dask names things by their content: a ref's is the object that it names.
normalize_token.register(ObjectRef, lambda ref: ("concurrent_ml.ObjectRef", ref.hex()))

__all__ = ["disable_dask_on_concurrent_ml", "enable_dask_on_concurrent_ml", "get"]
