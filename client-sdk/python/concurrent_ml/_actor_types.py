"""What type checkers know of methods marked with `@method`. Nothing of this exists when a program runs.

Python's type system cannot say "a handle has the methods of this class, each with `.remote`". But a class may say it
itself: derived from `Actor`, with its methods marked by `@method`, it is its own handle's type.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from ._actor import ActorMethod
from ._native import ObjectRef, ObjectRefGenerator

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import AllMethodOptions, OtherMethodOptions

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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


class BoundStream(Generic[P, R, T]):
    """The same of a method that yields: a call gives a ref for each item."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRefGenerator[T]:
        """As for one value, but with a generator of refs."""
        ...

    def options(self, **options: Unpack[AllMethodOptions]) -> BoundStream[P, R, T]:
        """The same method with other options."""
        ...


class Declared(Generic[P, R]):
    """A marked method, as an attribute of its class."""

    def __get__(self, instance: Any, owner: Any) -> Bound[P, R]: ...


class DeclaredAsync(Generic[P, R]):
    """A marked coroutine."""

    def __get__(self, instance: Any, owner: Any) -> BoundAsync[P, R]: ...


class DeclaredStream(Generic[P, R, T]):
    """A marked method that yields."""

    def __get__(self, instance: Any, owner: Any) -> BoundStream[P, R, T]: ...


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
    def __call__(
        self, function: Callable[Concatenate[Any, P], Iterator[T]], /
    ) -> DeclaredStream[P, Iterator[T], T]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], AsyncIterator[T]], /
    ) -> DeclaredStream[P, AsyncIterator[T], T]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Declared[P, R]: ...


class DecoratorOfStream(Protocol):
    """`@method(num_returns="streaming")`."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Iterable[T]], /
    ) -> DeclaredStream[P, Iterable[T], T]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], AsyncIterable[T]], /
    ) -> DeclaredStream[P, AsyncIterable[T], T]: ...


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
    def __call__(
        self, function: Callable[Concatenate[Any, P], Iterator[T]], /
    ) -> DeclaredStream[P, Iterator[T], T]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], AsyncIterator[T]], /
    ) -> DeclaredStream[P, AsyncIterator[T], T]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Declared[P, R]: ...
    @overload
    def __call__(
        self, *, num_returns: Literal[1] | None = None, **options: Unpack[OtherMethodOptions]
    ) -> Decorator: ...
    @overload
    def __call__(
        self, *, num_returns: Literal["streaming"], **options: Unpack[OtherMethodOptions]
    ) -> DecoratorOfStream: ...
    @overload
    def __call__(self, *, num_returns: int, **options: Unpack[OtherMethodOptions]) -> DecoratorOfMany: ...
