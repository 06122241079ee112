"""`@remote`: a function whose calls run on the cluster."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from . import _calls, _environments, _native, _state, _strategies, _streams
from ._actor import Actor, ActorClass, TypedActorClass
from ._native import ObjectRef, ObjectRefGenerator
from ._options import ActorOptions, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import AllActorOptions, AllOptions, OtherOptions
    from ._streams import DynamicObjectRefGenerator

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")
A_ = TypeVar("A_", bound=Actor)


class RemoteFunction(Generic[P, R]):
    """A function whose calls run on the cluster: `f.remote(...)` starts one and returns a ref at once.

    >>> import concurrent_ml as cml
    >>> double = cml.remote(lambda x: 2 * x)
    >>> cml.get(double.remote(4))
    8
    """

    __name__: str
    __wrapped__: Callable[P, R]

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        self._function = function
        self._options = options
        self._native: _native.Function | None = None
        self._generation = 0
        self._captured: ObjectRef[Any] | None = None
        functools.update_wrapper(cast(Any, self), function)

    if not TYPE_CHECKING:  # to a type checker it cannot be called

        def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
            name = getattr(self._function, "__name__", "f")
            raise TypeError(
                f"{name} is a remote function: call {name}.remote(...), "
                f"or its plain function as {name}.__wrapped__(...)"
            )

    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: RemoteFunction[Concatenate[A, ...], R], ref: ObjectRef[A], /, *args: Any, **kwargs: Any
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: RemoteFunction[Concatenate[A, B, ...], R],
        first: A | ObjectRef[A],
        ref: ObjectRef[B],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self, first: Any, second: Any, third: Any | ObjectRef[Any], /, *args: Any, **kwargs: Any
    ) -> ObjectRef[R]: ...
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Starts a call on the cluster; returns a ref to its result at once (a list of refs with `num_returns`).

        Of a generator function it returns an `ObjectRefGenerator`, which gives a ref for each item as it is yielded.

        A ref among the arguments becomes its value before the function starts; refs inside lists, dicts and other
        objects stay refs.
        """
        native = self._native
        if native is None or self._generation != _state.generation or self._captured is not _state.captured:
            native = self._prepare()
        return native.call(args, kwargs)

    @overload
    def map(
        self: RemoteFunction[Concatenate[A, ...], R],
        values: Iterable[A] | Iterable[ObjectRef[A]],
        /,
        **kwargs: Any,
    ) -> list[ObjectRef[R]]: ...
    @overload
    def map(
        self, first: Iterable[Any], second: Iterable[Any], /, *more: Iterable[Any], **kwargs: Any
    ) -> list[ObjectRef[R]]: ...
    def map(self, *iterables: Iterable[Any], **kwargs: Any) -> list[Any]:
        """Starts a call for each item of an iterable; returns their refs in the order of the items.

        As with Python's `map`, several iterables give as many arguments, and the shortest ends it. Named arguments
        are the same for each call. A ref among the items becomes its value, as with `remote`.

        >>> import concurrent_ml as cml
        >>> add = cml.remote(lambda x, y=0: x + y)
        >>> cml.get(add.map(range(3)))
        [0, 1, 2]
        >>> cml.get(add.map([1, 2], [10, 20]))
        [11, 22]
        >>> cml.get(add.map([1, 2], y=100))
        [101, 102]
        """
        native = self._native
        if native is None or self._generation != _state.generation:
            native = self._prepare()
        return _calls.many(native, f"{_short_name(self._function)}.map", iterables, kwargs)

    def options(self, **options: Unpack[AllOptions]) -> RemoteFunction[P, R]:
        """The same function with other options: `f.options(num_cpus=2).remote(...)`."""
        return type(self)(self._function, self._options.changed(options))

    def _prepare(self) -> _native.Function:
        client = _state.connected()
        with _state.lock:
            options, captured = self._options, _state.captured
            name = options.name or _short_name(self._function)
            _strategies.check_place(options.scheduling_strategy, name, options.asks())
            signature = _calls.described(self._function)
            num_returns, stream = _streams.returns(options, self._function)
            if options.durable and stream is not None:
                raise ValueError(
                    f"{name} yields its items, and durable=True is for results of functions that return"
                )
            function = self._function
            if options.num_returns == "dynamic":
                function = _streams.Collected(function)
            if options.max_calls:
                function = _calls.Limited(function, options.max_calls)
            native = _native.Function(
                client,
                client.put_function(function, f"the function {name}"),
                name,
                **_calls.requests(options.requests()),
                backoff=options.backoff(),
                durable=options.durable,
                num_returns=num_returns,
                max_retries=options.max_retries,
                retry_exceptions=_calls.retry_bytes(options.retry_exceptions),
                env_vars=_environments.variables(options.runtime_env),
                strategy=_strategies.native(options.scheduling_strategy, captured),
                timeout=options.timeout,
                stream=stream,
                parameters=_calls.parameters(signature),
                complain=functools.partial(_calls.complain, signature, name),
            )
            self._native, self._generation, self._captured = native, _state.generation, captured
            return native

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._function, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_short_name(self._function)})"


class RemoteFunctionOfMany(RemoteFunction[P, R]):
    """A remote function that returns several values: `.remote(...)` returns one ref for each."""

    if TYPE_CHECKING:

        def remote(self, *args: Any, **kwargs: Any) -> list[ObjectRef[Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
            """As for one value, but with a list of refs."""
            ...

        def map(self, *iterables: Iterable[Any], **kwargs: Any) -> list[list[ObjectRef[Any]]]:  # pyright: ignore[reportIncompatibleMethodOverride]
            """As for one value, but with a list of refs for each call."""
            ...

        def options(self, **options: Unpack[AllOptions]) -> RemoteFunctionOfMany[P, R]:
            """The same function with other options."""
            ...


class RemoteGenerator(RemoteFunction[P, R]):
    """A remote generator function: `.remote(...)` returns a generator of refs, one for each item that it yields."""

    if TYPE_CHECKING:

        def remote(self, *args: Any, **kwargs: Any) -> ObjectRefGenerator[R]:  # pyright: ignore[reportIncompatibleMethodOverride]
            """As for one value, but with a generator of refs."""
            ...

        def map(self, *iterables: Iterable[Any], **kwargs: Any) -> list[ObjectRefGenerator[R]]:  # pyright: ignore[reportIncompatibleMethodOverride]
            """As for one value, but with a generator of refs for each call."""
            ...

        def options(self, **options: Unpack[AllOptions]) -> RemoteGenerator[P, R]:
            """The same function with other options."""
            ...


def _short_name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return name.rpartition("<locals>.")[2]


class _Decorator(Protocol):
    @overload
    def __call__(self, cls: Callable[P, A_], /) -> TypedActorClass[P, A_]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, cls: type[T], /) -> ActorClass[..., T]: ...
    @overload
    def __call__(self, function: Callable[P, Iterator[T]], /) -> RemoteGenerator[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterator[T]], /) -> RemoteGenerator[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> RemoteFunction[P, R]: ...


class _ClassDecorator(Protocol):
    @overload
    def __call__(self, cls: Callable[P, A_], /) -> TypedActorClass[P, A_]: ...
    @overload
    def __call__(self, cls: type[T], /) -> ActorClass[..., T]: ...


class _DecoratorOfMany(Protocol):
    def __call__(self, function: Callable[P, R], /) -> RemoteFunctionOfMany[P, R]: ...


class _DecoratorOfStream(Protocol):
    @overload
    def __call__(self, function: Callable[P, Iterable[T]], /) -> RemoteGenerator[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterable[T]], /) -> RemoteGenerator[P, T]: ...


class _DecoratorOfDynamic(Protocol):
    def __call__(
        self, function: Callable[P, Iterable[T]], /
    ) -> RemoteFunction[P, DynamicObjectRefGenerator[T]]: ...


@overload
def remote(cls: Callable[P, A_], /) -> TypedActorClass[P, A_]: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def remote(cls: type[T], /) -> ActorClass[..., T]: ...
@overload
def remote(function: Callable[P, Iterator[T]], /) -> RemoteGenerator[P, T]: ...
@overload
def remote(function: Callable[P, AsyncIterator[T]], /) -> RemoteGenerator[P, T]: ...
@overload
def remote(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(*, num_returns: Literal[1] = 1, **options: Unpack[OtherOptions]) -> _Decorator: ...
@overload
def remote(*, num_returns: Literal["streaming"], **options: Unpack[OtherOptions]) -> _DecoratorOfStream: ...
@overload
def remote(*, num_returns: Literal["dynamic"], **options: Unpack[OtherOptions]) -> _DecoratorOfDynamic: ...
@overload
def remote(*, num_returns: int, **options: Unpack[OtherOptions]) -> _DecoratorOfMany: ...
@overload
def remote(**options: Unpack[AllActorOptions]) -> _ClassDecorator: ...
def remote(*args: Any, **options: Any) -> Any:
    """Makes a function or a class remote: `@remote`, or `@remote(num_cpus=2, ...)`.

    Options of a function: `num_cpus` (1; fractions too), `num_gpus` (0), `memory` (bytes), `resources`
    (`{"name": amount}`), `num_returns` (1), `max_calls` (0, any number; else an executor ends after so many calls),
    `max_retries` (3; -1 without end; for executors and nodes that are lost), `retry_exceptions` (False, True, or a list
    of classes: which of the function's own exceptions are retried too; before the first such retry it waits up to
    `retry_delay` ("100ms"), then up to `retry_backoff` (2) times as long each time, but no longer than
    `retry_max_delay` ("30s")), `variants` (`[{"num_gpus": 1}, {"num_cpus": 8}]`: it takes whichever is free first;
    `get_runtime_context().get_assigned_resources()` tells which it got), `name`, `runtime_env`
    (`{"env_vars": {...}}`), `scheduling_strategy` ("DEFAULT", "SPREAD", or one of `PlacementGroupSchedulingStrategy`,
    `NodeAffinitySchedulingStrategy`, `NodeLabelSchedulingStrategy`), `timeout` (seconds, or "30s": it is cancelled when
    it has run for so long), `durable` (False; True: it has ended only when copies of its results are where no loss of
    nodes reaches them, as with `put(..., durable=True)`).

    A generator function (`yield`, also in `async def`) gives each item as soon as it is there: `.remote(...)` returns
    an `ObjectRefGenerator` to loop over. It may be `stream_max_items` (no limit) and `stream_max_bytes` (256 MiB) ahead
    of who takes the items; then it waits. `num_returns="streaming"` says so of a function that returns something to
    loop over; with `num_returns="dynamic"` the one result is a list of refs, there when all items are.

    >>> import concurrent_ml as cml
    >>> @cml.remote(num_cpus=0.5)
    ... def square(x):
    ...     return x * x
    >>> cml.get([square.remote(i) for i in range(3)])
    [0, 1, 4]

    A class becomes a class of actors: see `ActorClass`. Its options: those of resources, `runtime_env` and
    `scheduling_strategy` as above (but `num_cpus` is 0 unless said), `name`, `namespace`, `get_if_exists`,
    `lifetime` ("detached": until it is killed), `max_restarts` (0), `max_task_retries` (0), `max_concurrency` (1, or
    1000 where methods are coroutines), `concurrency_groups` (`{"io": 4}`), `checkpoint_interval` (see `checkpoint`).
    """
    if args and (len(args) > 1 or options):
        raise TypeError("remote() takes either a function or options: @remote, or @remote(num_cpus=2)")

    def make(function: Any) -> Any:
        if isinstance(function, RemoteFunction | ActorClass):
            raise TypeError(f"{function!r} is remote already; use its .options(...) to change how it runs")
        if inspect.isclass(function):
            return ActorClass(function, ActorOptions().changed(options))
        if not callable(function):
            raise TypeError(
                f"remote() takes a function or a class, not a value of type {type(function).__name__}"
            )
        if inspect.iscoroutinefunction(function):
            name = getattr(function, "__qualname__", function)
            raise TypeError(
                f"{name} is an `async def`, and a task has no event loop: make it a method of an actor, or call it in "
                "a plain function with asyncio.run(...)"
            )
        return RemoteFunction(function, Options().changed(options))

    if args:
        return make(args[0])
    # What neither takes is told at once, where it is written.
    known_by_actors = ActorOptions.knows(options)
    if not known_by_actors or Options.knows(options):
        Options().changed(options)
    else:
        ActorOptions().changed(options)
    return make
