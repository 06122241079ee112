"""`ray.actor`."""

from __future__ import annotations

from typing import Any, NoReturn

from .... import _actor
from ...._actor import ActorHandle, ActorMethod
from ...ray import _options
from .._missing import getter
from .._names import why_not
from ._ids import ActorID
from .exceptions import ActorAlreadyExistsError

__getattr__ = getter("ray.actor")


def _remote(self: ActorMethod[..., Any], args: Any = None, kwargs: Any = None, **options: Any) -> Any:
    chosen = self.options(**options) if options else self
    return chosen.remote(*(args or ()), **(kwargs or {}))


# Handles are this library's own, with what programs use of Ray's beside `remote` and `options`.
ActorMethod._remote = _remote  # type: ignore[attr-defined]
ActorHandle._actor_id = ActorHandle._ray_actor_id = property(  # type: ignore[assignment,attr-defined]
    lambda self: ActorID(self._ref._id)
)


class ActorClassInheritanceException(TypeError):
    """Ray raises it when a class inherits from a remote class; here it may."""


class ActorClass(_actor.ActorClass[..., Any]):
    """A class of actors with Ray's options."""

    def options(self, **options: Any) -> ActorClass:
        """The same class with other options."""
        return type(self)(self._class, self._options.changed(_options.translated(options, of_actor=True)))

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[Any]:
        """Makes an actor."""
        try:
            return super().remote(*args, **kwargs)
        except ActorAlreadyExistsError as error:
            name = self._options.name
            raise ActorAlreadyExistsError(
                f"The name {name} is already taken. Please use a different name or get the existing actor using "
                f"ray.get_actor({name!r}): {error}"
            ) from None

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Actors are made by `.remote()`."""
        name = self.__name__
        raise TypeError(
            f"Actors cannot be instantiated directly. Instead of '{name}()', use '{name}.remote()'"
        )

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> ActorHandle[Any]:
        chosen = self.options(**options) if options else self
        return chosen.remote(*(args or ()), **(kwargs or {}))

    def bind(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Graphs of calls are not provided."""
        raise NotImplementedError(why_not("ray.dag"))


def exit_actor() -> NoReturn:
    """Ends the actor in whose method this is called."""
    try:
        _actor.exit_actor()
    except TypeError as error:
        raise TypeError(f"exit_actor API is called on a non-actor worker: {error}") from None


_IGNORED_OF_METHODS = {"enable_task_events", "_labels"}


def method(*args: Any, **options: Any) -> Any:
    """Options of one method."""
    if args or not options:
        raise ValueError("@ray.method takes options: @ray.method(num_returns=2)")
    return _actor.method(**_of_method(options))


def _of_method(given: dict[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in given.items() if key not in _IGNORED_OF_METHODS}
    if "_generator_backpressure_num_objects" in options:
        ahead = options.pop("_generator_backpressure_num_objects")
        options["stream_max_items"] = None if ahead in (None, -1) else ahead
    return options


_own_options = ActorMethod.options


def _options_of(self: ActorMethod[..., Any], **options: Any) -> ActorMethod[..., Any]:
    return _own_options(self, **_of_method(options))


ActorMethod.options = _options_of


__all__ = [
    "ActorClass",
    "ActorClassInheritanceException",
    "ActorHandle",
    "ActorMethod",
    "exit_actor",
    "method",
]
