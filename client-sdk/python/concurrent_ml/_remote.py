"""`@remote`: a function whose calls run on the cluster."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from . import _native, _state
from ._options import Options

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class RemoteFunction(Generic[P, R]):
    """A function whose calls run on the cluster: `f.remote(...)` starts one and returns a ref at once."""

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        self._function = function
        self._options = options
        self._native: _native.Function | None = None
        self._generation = 0
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        name = self._function.__name__
        raise TypeError(f"{name} is a remote function: call {name}.remote(...), or its plain function as {name}.__wrapped__(...)")

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> _native.ObjectRef[R]:
        """Starts a call on the cluster; returns a ref to its result at once (a list of refs with `num_returns`)."""
        if self._generation != _state.generation or self._native is None:
            self._prepare()
        return self._native.call(args, kwargs)  # type: ignore[union-attr]

    def options(self, **options: Any) -> RemoteFunction[P, R]:
        """The same function with other options: `f.options(num_cpus=2).remote(...)`."""
        other = RemoteFunction(self._function, self._options.changed(options))
        return other

    def _prepare(self) -> None:
        client = _state.connected()
        with _state.lock:
            options = self._options
            name = options.name or getattr(self._function, "__qualname__", type(self._function).__name__)
            name = name.rpartition("<locals>.")[2]
            self._native = _native.Function(
                client,
                _exported(client, self._function, name),
                name,
                num_cpus=options.num_cpus,
                num_gpus=options.num_gpus,
                memory=options.memory,
                resources=dict(options.resources),
                num_returns=options.num_returns,
                max_retries=options.max_retries,
                retry_exceptions=_retry_bytes(options.retry_exceptions),
                env_vars=dict(options.runtime_env.get("env_vars", {})),
                spread=options.scheduling_strategy == "SPREAD",
            )
            self._generation = _state.generation

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"RemoteFunction({getattr(self._function, '__qualname__', self._function)})"


def _exported(client: _native.Client, function: Callable[..., Any], name: str) -> _native.ObjectRef[Any]:
    """The function as an object. What it closes over is taken as it is now."""
    return client.put(_Pickled(function, name))


class _Pickled:
    """A function that names itself where it cannot be pickled."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.function,)


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _retry_bytes(wanted: bool | tuple[type[BaseException], ...]) -> bytes:
    if wanted is False or wanted == ():
        return b""
    import cloudpickle

    return cloudpickle.dumps(wanted)


class _Decorator(Protocol):
    def __call__(self, function: Callable[P, R], /) -> RemoteFunction[P, R]: ...


@overload
def remote(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**options: Any) -> _Decorator: ...
def remote(*args: Any, **options: Any) -> Any:
    """Makes a function remote: `@remote`, or `@remote(num_cpus=2, ...)`.

    Options: `num_cpus` (1; fractions too), `num_gpus` (0), `memory` (bytes), `resources` (`{"name": amount}`),
    `num_returns` (1), `max_retries` (3; -1 without end), `retry_exceptions` (False, True, or a list of classes), `name`,
    `runtime_env` (`{"env_vars": {...}}`), `scheduling_strategy` ("DEFAULT" or "SPREAD").
    """
    if args and (len(args) > 1 or options):
        raise TypeError("remote() takes either a function or options: @remote, or @remote(num_cpus=2)")
    chosen = Options().changed(options)

    def make(function: Callable[P, R]) -> RemoteFunction[P, R]:
        if inspect.isclass(function):
            raise TypeError(f"{function.__name__} is a class; remote classes (actors) are not available yet, remote functions are")
        if not callable(function):
            raise TypeError(f"remote() takes a function, not a {type(function).__name__}")
        return RemoteFunction(function, chosen)

    return make(args[0]) if args else cast(_Decorator, make)
