"""Initializers of pools: called once in each process, before the first of the pool's calls that it runs."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from ._native import ObjectRef

Initial = tuple[str, Callable[..., object], tuple[Any, ...]]
"""The pool's own key, its initializer and the arguments for it."""


def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Calls what comes along."""
    return function(*args, **kwargs)


def prepared(function: Callable[..., Any] | None, initial: Initial | None) -> Callable[..., Any]:
    """What a pool's calls run: the function, or with `None` what comes along as first argument."""
    if initial is None:
        return call if function is None else function
    return _Initialized(initial, function)


class _Initialized:
    """A function behind an initializer. Both are pickled together, so that they share their module's variables."""

    def __init__(self, initial: Initial, function: Callable[..., Any] | None) -> None:
        self.initial = initial
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = self.function
        if function is None:
            function, *args = args  # type: ignore[assignment]
        assert function is not None
        _share(initialize(self.initial), self.initial[1], function)
        return function(*args, **kwargs)


_assigned: dict[str, dict[str, Any]] = {}
"""By pool: the variables of its module that the initializer assigned in this process."""


def initialize(initial: Initial) -> dict[str, Any]:
    """Calls the initializer, if this process has not yet; returns what it assigned."""
    key, initializer, initargs = initial
    assigned = _assigned.get(key)
    if assigned is None:
        from ._api import get

        space = _variables(initializer)
        before = dict(space)
        initializer(*(get(value) if isinstance(value, ObjectRef) else value for value in initargs))
        assigned = {name: value for name, value in space.items() if before.get(name, before) is not value}
        _assigned[key] = assigned
    return assigned


def _share(
    assigned: dict[str, Any], initializer: Callable[..., object], function: Callable[..., Any]
) -> None:
    # A function of a script is pickled with variables of its own: it gets those that the initializer assigned.
    if assigned and _module(function) == _module(initializer):
        space = _variables(function)
        if any(space.get(name, space) is not value for name, value in assigned.items()):
            space.update(assigned)


def _innermost(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__func__", function)


def _module(function: Any) -> Any:
    return getattr(_innermost(function), "__module__", None)


def _variables(function: Any) -> dict[str, Any]:
    inner = _innermost(function)
    return inner.__globals__ if isinstance(inner, types.FunctionType) else {}
