"""`ray.remote_function`."""

from __future__ import annotations

from typing import Any, NoReturn

from .... import _remote
from ...ray import _options
from .._missing import getter
from .._names import why_not

__getattr__ = getter("ray.remote_function")


class RemoteFunction(_remote.RemoteFunction[..., Any]):
    """A remote function with Ray's options."""

    def options(self, **options: Any) -> RemoteFunction:
        """The same function with other options."""
        return type(self)(self._function, self._options.changed(_options.translated(options, of_actor=False)))

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Tasks are made by `.remote()`."""
        name = self.__name__
        raise TypeError(
            f"Remote functions cannot be called directly. Instead of running '{name}()', try '{name}.remote()'"
        )

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        chosen = self.options(**options) if options else self
        return chosen.remote(*(args or ()), **(kwargs or {}))

    def bind(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Graphs of calls are not provided."""
        raise NotImplementedError(why_not("ray.dag"))


__all__ = ["RemoteFunction"]
