"""Runs programs written for Ray's core API, unchanged: `import ray` gives this library under Ray's names.

    python -m concurrent_ml.compat.ray script.py [arguments]
    python -m concurrent_ml.compat.ray -m package.module [arguments]

or, first thing in a program:

>>> from concurrent_ml.compat import ray
>>> ray.install()                                # doctest: +SKIP
>>> import ray                                   # doctest: +SKIP

Nothing of this happens unless it is asked for. What Ray has and this does not raises an error that names it;
`docs/ray-compatibility.md` lists every name.
"""

from __future__ import annotations

import sys

from ... import _state
from ._finder import PROVIDED, Finder

COMPAT_VARIABLE = "CLUSTER_COMPAT"
"""Tells executors of such a program to do the same; set for the job, and gone when the executor has read it."""


def install() -> None:
    """From now on `import ray` means this library, here and in what this program runs on a cluster.

    Call it before `init` and before anything imports Ray's own package, if that is installed too.
    """
    if is_installed():
        return
    if _state.client is not None and not _state.is_executor:
        raise RuntimeError(
            "compat.ray.install() was called after init(): the executors of this program would not know. Call it first"
        )
    loaded = sys.modules.get("ray")
    if loaded is not None and not loaded.__name__.startswith(PROVIDED):
        raise RuntimeError(
            f"compat.ray.install() was called after `ray` was imported from {getattr(loaded, '__file__', None)}: "
            "call it first"
        )
    sys.meta_path.insert(0, Finder())
    _state.job_env[COMPAT_VARIABLE] = "ray"


def is_installed() -> bool:
    """Whether `import ray` means this library."""
    return any(isinstance(finder, Finder) for finder in sys.meta_path)


__all__ = ["install", "is_installed"]
