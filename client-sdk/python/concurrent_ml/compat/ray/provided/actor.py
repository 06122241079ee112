"""`ray.actor`."""

from __future__ import annotations

from typing import Any, NoReturn

from .... import _actor
from ...._actor import ActorHandle, ActorMethod, exit_actor
from ...ray import _options
from .._missing import getter
from .._names import why_not

__getattr__ = getter("ray.actor")


class ActorClass(_actor.ActorClass[..., Any]):
    """A class of actors with Ray's options."""

    def options(self, **options: Any) -> ActorClass:
        """The same class with other options."""
        return type(self)(self._class, self._options.changed(_options.translated(options, of_actor=True)))

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> ActorHandle[Any]:
        chosen = self.options(**options) if options else self
        return chosen.remote(*(args or ()), **(kwargs or {}))

    def bind(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Graphs of calls are not provided."""
        raise NotImplementedError(why_not("ray.dag"))


_IGNORED_OF_METHODS = {"enable_task_events", "_labels"}


def method(*args: Any, **options: Any) -> Any:
    """Options of one method."""
    if args or not options:
        raise ValueError("@ray.method takes options: @ray.method(num_returns=2)")
    known = {key: value for key, value in options.items() if key not in _IGNORED_OF_METHODS}
    return _actor.method(**known)


__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "exit_actor", "method"]
