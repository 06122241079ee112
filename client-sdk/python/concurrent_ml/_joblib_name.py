"""Makes joblib know the backend's name once joblib is imported, whether before this package or after."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "concurrent_ml"


def _backend(**options: Any) -> Any:
    from .joblib import Backend

    return Backend(**options)


def _tell(parallel: ModuleType) -> None:
    parallel.register_parallel_backend(NAME, _backend)


class _Finder(MetaPathFinder):
    """Waits for the import of `joblib.parallel`, then goes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "joblib.parallel":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _tell(module)

            loader.exec_module = exec_module
        return spec


def offer() -> None:
    """Costs nothing where joblib is never imported."""
    parallel = sys.modules.get("joblib.parallel")
    if parallel is not None:
        _tell(parallel)
    else:
        sys.meta_path.insert(0, _Finder())
