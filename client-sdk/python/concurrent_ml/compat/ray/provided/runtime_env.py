"""`ray.runtime_env`."""

from __future__ import annotations

import json
from typing import Any

from .._missing import getter

__getattr__ = getter("ray.runtime_env")


class RuntimeEnvConfig(dict[str, Any]):
    """How an environment is made: accepted, without effect."""

    def __init__(self, setup_timeout_seconds: int = 600, eager_install: bool = True, **others: Any) -> None:
        super().__init__(setup_timeout_seconds=setup_timeout_seconds, eager_install=eager_install, **others)


class RuntimeEnv(dict[str, Any]):
    """What tasks and actors find around them; a dict with a constructor."""

    def __init__(self, *, _validate: bool = True, **fields: Any) -> None:
        super().__init__({key: value for key, value in fields.items() if value is not None})

    def has_working_dir(self) -> bool:
        """Whether it names one."""
        return "working_dir" in self

    def working_dir(self) -> str:
        """Its working directory."""
        return self.get("working_dir", "")

    def env_vars(self) -> dict[str, str]:
        """Its variables."""
        return self.get("env_vars", {})

    def to_dict(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(self)

    def serialize(self) -> str:
        """As JSON."""
        return json.dumps(self, sort_keys=True)

    @classmethod
    def deserialize(cls, text: str) -> RuntimeEnv:
        """From JSON."""
        return cls(**json.loads(text))


__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]
