"""Pickling what C's pickler alone cannot: functions and classes of `__main__`, mixed sizes of arrays; and saying
which part of a value cannot be pickled.

Plain values, refs and arrays never come here: the native module calls C's pickler itself.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Iterator
from typing import Any

import cloudpickle

OUT_OF_BAND = 4096
"""Buffers of at least this many bytes are copied once, into the store, and viewed there; smaller ones are pickled."""

_LOOKS = 2000
"""So many parts of a value are tried to find the one that cannot be pickled."""

_STEPS_SHOWN = 8
"""So many at each end of the way to it."""


class CannotPickle(TypeError):
    """Some part of a value cannot be pickled; says which, by its path."""


def dump(value: Any, what: str) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """The pickle of a value, and the buffers that lie beside it. `what` names it, should it not be picklable."""
    buffers: list[pickle.PickleBuffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            length = buffer.raw().nbytes
        except BufferError:  # not contiguous
            return True
        if length < OUT_OF_BAND:
            return True
        buffers.append(buffer)
        return False

    file = io.BytesIO()
    try:
        cloudpickle.CloudPickler(file, protocol=5, buffer_callback=keep).dump(value)
    except MemoryError:
        raise
    except Exception as error:
        raise CannotPickle(explain(value, what, error)) from error
    return file.getvalue(), buffers


def explain(value: Any, what: str, error: BaseException) -> str:
    """One sentence: which part of the value it is, and why."""
    try:
        path, part = offender(value)
    except Exception:  # whatever a user's own attributes do when they are looked at
        return f"cannot pickle {what}: {error}"
    kind = f"a {type(part).__module__}.{type(part).__qualname__}".replace("a builtins.", "a ")
    if not path:
        return f"cannot pickle {what}, {kind}: {error}"
    return f"cannot pickle {what}: {path} is {kind}: {error}"


def _can_pickle(value: Any) -> bool:
    try:
        cloudpickle.CloudPickler(io.BytesIO(), protocol=5, buffer_callback=lambda _: False).dump(value)
    except Exception:
        return False
    return True


def offender(value: Any) -> tuple[str, Any]:
    """The innermost part that cannot be pickled, and the path that leads to it."""
    path: list[str] = []
    seen: set[int] = set()
    looks = 0
    while id(value) not in seen:
        seen.add(id(value))
        for step, part in _parts(value):
            looks += 1
            if looks > _LOOKS:
                return _shortened(path), value
            if id(part) not in seen and not _can_pickle(part):
                path.append(step)
                value = part
                break
        else:
            break
    return _shortened(path), value


def _shortened(path: list[str]) -> str:
    """Of a way of thousands of steps its beginning and its end."""
    if len(path) > 2 * _STEPS_SHOWN:
        left_out = f" … {len(path) - 2 * _STEPS_SHOWN} more … "
        path = [*path[:_STEPS_SHOWN], left_out, *path[-_STEPS_SHOWN:]]
    return "".join(path).strip()


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, with how one gets there."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((f"{{{item!r:.60}}}", item) for item in value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, type):
        yield from ((f".{name}", part) for name, part in vars(value).items() if not name.startswith("__"))
    else:
        yield from ((f".{name}", part) for name, part in vars_of(value).items())


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f" → the variable {name} it closes over", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in sorted(_names_used(function.__code__)):
        part = function.__globals__.get(name)
        if not isinstance(part, types.ModuleType | None):
            yield f" → the global {name} it uses", part
    for name, default in (function.__kwdefaults__ or {}).items():
        yield f" → the default of {name}", default
    yield from ((" → a default", default) for default in function.__defaults__ or ())


def _names_used(code: types.CodeType) -> set[str]:
    """Global names that a function or those inside it use, as far as code tells."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_used(constant)
    return names


def vars_of(value: Any) -> dict[str, Any]:
    """An object's attributes, `__slots__` included."""
    found = dict(getattr(value, "__dict__", None) or {})
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found
