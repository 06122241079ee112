"""`ray.util.annotations`: decorators that return what they decorate."""

from __future__ import annotations

from typing import Any

from ..._missing import getter

__getattr__ = getter("ray.util.annotations")


def PublicAPI(*args: Any, **_options: Any) -> Any:  # noqa: N802 - Ray's name
    """Marks a name as public."""
    return args[0] if args and callable(args[0]) else lambda decorated: decorated


DeveloperAPI = Deprecated = PublicAPI

__all__ = ["Deprecated", "DeveloperAPI", "PublicAPI"]
