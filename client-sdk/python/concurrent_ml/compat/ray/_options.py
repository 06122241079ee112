"""Ray's options, as this library's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..._strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

_IGNORED = {
    "_metadata": "it is for Ray's own tools",
    "_labels": "it is for Ray's own tools",
    "enable_task_events": "the task table is always there",
    "allow_out_of_order_execution": "calls of one caller run in order",
    "object_store_memory": "the store makes room by itself",
    "isolate_process_group": "every executor has a process group of its own",
}
"""Options without effect here, and why none is needed."""

_GROUP_OPTIONS = (
    "placement_group",
    "placement_group_bundle_index",
    "placement_group_capture_child_tasks",
)

_NOT_PROVIDED = {
    "tensor_transport": "tensors go through shared memory",
    "fallback_strategy": "not yet",
}

_HARMLESS_IN_ENVIRONMENTS = {"config", "eager_install", "excludes", "_ray_release", "_ray_commit"}


def translated(given: Mapping[str, Any], *, of_actor: bool) -> dict[str, Any]:
    """The options of a function or a class."""
    _check(given)
    if of_actor and given.get("name") == "":
        raise ValueError("Actor name cannot be an empty string.")
    options: dict[str, Any] = {}
    for key, value in given.items():
        if key in _IGNORED:
            continue
        if key in _GROUP_OPTIONS:
            continue
        if key == "label_selector":
            if value:
                options["scheduling_strategy"] = _labels(value)
        elif key in _NOT_PROVIDED:
            if value not in (None, {}, [], -1):
                raise ValueError(f"the option {key!r} is not provided: {_NOT_PROVIDED[key]}")
        elif key == "accelerator_type":
            if value is not None:
                kind = {f"accelerator_type:{value}": 0.001}
                options["resources"] = {**(options.get("resources") or given.get("resources") or {}), **kind}
        elif key == "resources":
            options.setdefault("resources", value)
        elif key == "_generator_backpressure_num_objects":
            options["stream_max_items"] = None if value in (None, -1) else value
        elif key == "runtime_env":
            options[key] = environment(value)
        elif key in ("max_restarts", "max_task_retries", "max_retries"):
            options[key] = (0 if of_actor else 3) if value is None else value
        elif key == "retry_exceptions":
            options[key] = value or False
        else:
            options[key] = value
    if not of_actor and given.get("num_gpus") and "max_calls" not in given:
        # A process that used a GPU gives its memory back by ending.
        options["max_calls"] = 1
    group = given.get("placement_group", "default")
    if group not in ("default", None):
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            group,
            given.get("placement_group_bundle_index", -1),
            given.get("placement_group_capture_child_tasks"),
        )
    return options


def _labels(selector: Mapping[str, str]) -> NodeLabelSchedulingStrategy:
    """`{"zone": "west", "kind": "!in(a, b)"}` as rules."""
    rules: dict[str, In | NotIn | Exists | DoesNotExist] = {}
    for key, wanted in selector.items():
        negated, text = wanted.startswith("!"), wanted.removeprefix("!")
        several = text.startswith("in(") and text.endswith(")")
        values = [value.strip() for value in text[3:-1].split(",")] if several else [text]
        rules[key] = NotIn(*values) if negated else In(*values)
    return NodeLabelSchedulingStrategy(hard=rules)


_NONE = type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "max_retries": (int, _NONE),
    "max_calls": (int, _NONE),
    "max_restarts": (int, _NONE),
    "max_task_retries": (int, _NONE),
    "max_pending_calls": (int, _NONE),
    "num_returns": (int, str, _NONE),
    "_metadata": (dict, _NONE),
}


def _check(given: Mapping[str, Any]) -> None:
    """Says of common mistakes what Ray says, in its words: programs look for them."""
    for key, value in given.items():
        kinds = _TYPES.get(key)
        if kinds is not None and not isinstance(value, kinds):
            raise TypeError(f"The type of keyword '{key}' must be {kinds}, but received type {type(value)}")
        if not isinstance(value, int):
            continue
        if key == "max_calls" and value < 0:
            raise ValueError(f"The keyword '{key}' only accepts None, 0 or a positive integer")
        if key == "num_returns" and value < 0:
            raise ValueError(
                f"The keyword '{key}' only accepts None, a non-negative integer, 'streaming' (for generators), or "
                "'dynamic'"
            )
        if key in ("max_retries", "max_restarts", "max_task_retries") and value < -1:
            raise ValueError(
                f"The keyword '{key}' only accepts None, 0, -1 or a positive integer, where -1 represents infinity."
            )
    resources = dict(given.get("resources") or {})
    for key in ("num_cpus", "num_gpus"):
        resources[key] = given.get(key)
    for name, amount in resources.items():
        if isinstance(amount, float) and 0 < amount < 0.0001:
            raise ValueError(
                f"The precision of the fractional quantity of resource {name} cannot go beyond 0.0001"
            )


def environment(given: Any) -> dict[str, Any]:
    """A `runtime_env` of a job, a task or an actor, as this library's."""
    if isinstance(given, str):
        raise TypeError(f"runtime_env is {given!r}; it must be a dict or a RuntimeEnv")
    known: dict[str, Any] = {}
    for key, value in dict(given or {}).items():
        if key in _HARMLESS_IN_ENVIRONMENTS or value in (None, {}, []):
            continue
        if key == "working_dir":
            known[key] = directory(key, value)
        elif key == "py_modules":
            known[key] = [
                directory(key, one) for one in (value if isinstance(value, list | tuple) else [value])
            ]
        elif key in ("env_vars", "pip", "uv"):
            known[key] = value
        else:
            raise ValueError(
                f"runtime_env[{key!r}] is not provided: install what executors need on every node beforehand"
            )
    return known


def directory(key: str, value: Any) -> str:
    """The absolute path of one, or of a module's."""
    path = getattr(value, "__path__", [value])[0]
    if not isinstance(path, str | os.PathLike) or not os.path.isdir(path):
        raise ValueError(f"runtime_env[{key!r}] is {value!r}; it must be a directory on this machine")
    return os.path.abspath(path)
