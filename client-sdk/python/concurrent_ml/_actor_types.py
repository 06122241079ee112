"""What type checkers know of methods marked with `@method`. Nothing of this exists when a program runs.

Python's type system cannot say "a handle has the methods of this class, each with `.remote`". But a class may say it
itself: derived from `Actor`, with its methods marked by `@method`, it is its own handle's type.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from ._actor import ActorMethod
from ._native import ObjectRef

P = ParamSpec("P")
R = TypeVar("R")


class Bound(ActorMethod[P, R], Generic[P, R]):
    """Through a handle it has `.remote`; inside the class it is called."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...


class BoundAsync(ActorMethod[P, R], Generic[P, R]):
    """The same of a coroutine: a call's ref has what it returns at last."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...


class BoundOfMany(Generic[P, R]):
    """The same of a method that returns several values."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> list[ObjectRef[Any]]:
        """As for one value, but with a list of refs."""
        ...


class Declared(Generic[P, R]):
    """A marked method, as an attribute of its class."""

    def __get__(self, instance: Any, owner: Any) -> Bound[P, R]: ...


class DeclaredAsync(Generic[P, R]):
    """A marked coroutine."""

    def __get__(self, instance: Any, owner: Any) -> BoundAsync[P, R]: ...


class DeclaredOfMany(Generic[P, R]):
    """A marked method of several values."""

    def __get__(self, instance: Any, owner: Any) -> BoundOfMany[P, R]: ...


class Decorator(Protocol):
    """`@method(...)`."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> DeclaredAsync[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Declared[P, R]: ...


class DecoratorOfMany(Protocol):
    """`@method(num_returns=2)`."""

    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> DeclaredOfMany[P, R]: ...


class Method(Protocol):
    """What `method` is."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> DeclaredAsync[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Declared[P, R]: ...
    @overload
    def __call__(self, *, num_returns: Literal[1] = 1, concurrency_group: str | None = None) -> Decorator: ...
    @overload
    def __call__(self, *, num_returns: int, concurrency_group: str | None = None) -> DecoratorOfMany: ...
