"""Pickling what C's pickler alone cannot: functions and classes of `__main__`, arrays out of band; and saying which
part of a value cannot be pickled."""

from __future__ import annotations

import io
import pickle
import types
from typing import Any

import cloudpickle

OUT_OF_BAND = 4096
"""Buffers of at least this many bytes are copied once, into the store, and viewed there; smaller ones are pickled."""


def dump(value: Any, what: str) -> tuple[bytes, list[memoryview]]:
    """The pickle of a value, and the buffers that lie beside it."""
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < OUT_OF_BAND:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO()
    try:
        cloudpickle.CloudPickler(file, protocol=5, buffer_callback=keep).dump(value)
    except RecursionError:
        raise
    except Exception as error:
        path = offender(value)
        raise TypeError(f"cannot pickle {what}: {path or 'some part of it'}: {error}") from error
    return file.getvalue(), buffers


def _can_pickle(value: Any) -> bool:
    try:
        cloudpickle.CloudPickler(io.BytesIO(), protocol=5, buffer_callback=lambda _: False).dump(value)
    except Exception:
        return False
    return True


def _parts(value: Any) -> list[tuple[str, Any]]:
    """What a value consists of, with how one gets there."""
    if isinstance(value, dict):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, types.MethodType):
        return [(".__self__", value.__self__)]
    if isinstance(value, types.FunctionType):
        parts: list[tuple[str, Any]] = []
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=False):
            try:
                parts.append((f" closes over {name}", cell.cell_contents))
            except ValueError:
                continue
        used = set(value.__code__.co_names)
        parts += [(f" uses the global {name}", value.__globals__[name]) for name in sorted(used) if name in value.__globals__]
        parts += [(f" has the default {name}", item) for name, item in (value.__kwdefaults__ or {}).items()]
        parts += [(" has a default", item) for item in value.__defaults__ or ()]
        return parts
    state = getattr(value, "__dict__", None)
    if isinstance(state, dict):
        return [(f".{key}", item) for key, item in state.items()]
    slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
    return [(f".{name}", getattr(value, name)) for name in slots if hasattr(value, name)]


def offender(value: Any) -> str | None:
    """The path to the innermost part of a value that cannot be pickled, with its type."""
    path, seen = "", set()
    while True:
        if id(value) in seen or len(seen) > 100:
            break
        seen.add(id(value))
        for step, part in _parts(value):
            if not isinstance(part, types.ModuleType) and not _can_pickle(part):
                path, value = path + step, part
                break
        else:
            break
    if not path:
        return f"a {type(value).__name__}"
    return f"value{path} is a {type(value).__name__}"
