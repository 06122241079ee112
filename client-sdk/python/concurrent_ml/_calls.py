"""What a call's arguments must be like, so that a wrong call fails where it is written and not on some node."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from . import _native
from ._serialization import CannotPickle, explain

Described = tuple[tuple[str, int, bool], ...]
"""A signature that can travel anywhere: of each parameter its name, its kind and whether it has a default."""


class Limited:
    """A function of which an executor runs only so many calls before it ends: what the function leaves behind, in a
    library or on a GPU, ends with it.
    """

    def __init__(self, function: Callable[..., Any], calls: int) -> None:
        self.function = function
        self.left = calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        return self.function(*args, **kwargs)


def described(function: Callable[..., Any], *, bound: bool = False) -> Described | None:
    """A function's signature, without its first parameter if it is a method's; `None` where it cannot be known."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    if (
        bound
        and parameters
        and parameters[0].kind
        in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
    ):
        parameters = parameters[1:]
    return tuple((p.name, int(p.kind), p.default is not p.empty) for p in parameters)


def parameters(signature: Described | None) -> dict[str, Any] | None:
    """What the native module checks in a moment: see `Parameters` there."""
    if signature is None:
        return None
    kind = inspect.Parameter
    named = [p for p in signature if p[1] not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)]
    required = [p for p in named if not p[2]]
    kinds = {p[1] for p in signature}
    return {
        "names": [(name, not has_default) for name, _, has_default in named],
        "positional": None if kind.VAR_POSITIONAL in kinds else sum(p[1] != kind.KEYWORD_ONLY for p in named),
        "positional_only": sum(p[1] == kind.POSITIONAL_ONLY for p in named),
        "required": None if any(p[1] == kind.KEYWORD_ONLY for p in required) else len(required),
        "any_names": kind.VAR_KEYWORD in kinds,
    }


def requests(asks: list[dict[str, float]]) -> dict[str, Any]:
    """What the native module takes for what is asked for, one way or another."""
    first, *others = asks
    custom = {name: amount for name, amount in first.items() if name not in ("CPU", "GPU", "memory")}
    plain = {"num_cpus": first["CPU"], "num_gpus": first["GPU"], "memory": first["memory"]}
    return {**plain, "resources": custom, "variants": others}


def retry_bytes(wanted: bool | bytes | tuple[type[BaseException], ...]) -> bytes:
    """What an executor reads to know whether an exception is to be retried."""
    if isinstance(wanted, bytes):
        return wanted
    if wanted is False or wanted == ():
        return b""
    import cloudpickle

    return cloudpickle.dumps(wanted)


def complain(
    signature: Described | None,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: TypeError | None = None,
) -> None:
    """Raises what is wrong with a call's arguments; called by the native module when something seems to be."""
    made = inspect.Signature(
        [
            inspect.Parameter(
                name, inspect._ParameterKind(kind), default=None if default else inspect.Parameter.empty
            )
            for name, kind, default in (
                (("args", 2, False), ("kwargs", 4, False)) if signature is None else signature
            )
        ]
    )
    try:
        bound = made.bind(*args, **kwargs)
    except TypeError as wrong:
        raise TypeError(f"{name}.remote(): {wrong}") from None
    if isinstance(error, CannotPickle):
        from . import _serialization

        for argument, value in bound.arguments.items():
            if not _serialization._can_pickle(value):
                what = f"argument {argument!r} of {name}"
                raise CannotPickle(explain(value, what, error.__cause__ or error)) from error.__cause__


def many(
    native: _native.Function, what: str, iterables: tuple[Iterable[Any], ...], kwargs: dict[str, Any]
) -> list[Any]:
    """Calls with one item of each iterable, until the shortest ends."""
    if not iterables:
        raise TypeError(f"{what}() takes one iterable or more: {what}(range(10))")
    for given in iterables:
        if isinstance(given, _native.ObjectRef):
            raise TypeError(
                f"{what}() takes iterables, and {given} is a ref to one value: get() it first, or give a list of refs"
            )
        if not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
            raise TypeError(f"{what}() takes iterables, not a value of type {type(given).__name__}")
    return native.call_many(zip(*iterables, strict=False), kwargs)
