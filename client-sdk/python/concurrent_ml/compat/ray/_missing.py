"""What happens when a program looks up a name that is not provided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._names import why_not


def getter(module: str) -> Callable[[str], Any]:
    """A `__getattr__` for the module that programs know under this name."""

    def __getattr__(name: str) -> Any:  # noqa: N807 - it is one
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        raise AttributeError(why_not(f"{module}.{name}"))

    return __getattr__
