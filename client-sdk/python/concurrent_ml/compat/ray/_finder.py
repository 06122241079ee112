"""Makes `import ray` find this library: `ray.x` is `concurrent_ml.compat.ray.provided.x`, the same module object.

Modules and classes keep their own names, so a pickle that mentions them can be read wherever this library is installed,
before any user code has run there.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence

from ._names import why_not

PROVIDED = __name__.rpartition(".")[0] + ".provided"


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands first among Python's finders, so that it wins over an installed Ray."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds `ray` and what is below it; everything else is for others to find."""
        if fullname == "ray" or fullname.startswith("ray."):
            own = PROVIDED + fullname[3:]
            _find(own, fullname)
            spec = importlib.machinery.ModuleSpec(fullname, self, origin=own)
            spec.submodule_search_locations = []
            return spec
        if fullname.startswith(PROVIDED + "."):
            # `from ray import x` asks for this one.
            return _find(fullname, "ray" + fullname[len(PROVIDED) :])
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """The module itself, under its second name."""
        assert spec.origin is not None
        module = importlib.import_module(spec.origin)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """It has run already; but importing it again put another spec into it."""
        assert module.__spec__ is not None
        spec, module.__spec__ = module.__spec__, module.__spec__.loader_state
        # What it imported of its own package is known by its second name too. Else a later import would set it as an
        # attribute of the package, where a function may have taken its name (`ray.util.placement_group`).
        own, known_as = module.__name__ + ".", spec.name + "."
        for name in [name for name in sys.modules if name.startswith(own)]:
            found = sys.modules.setdefault(known_as + name[len(own) :], sys.modules[name])
            if not hasattr(found, "__path__"):
                found.__path__ = []  # so that Python asks this finder for what `from ... import` does not find in it


def _find(own: str, known_as: str) -> importlib.machinery.ModuleSpec:
    parent = importlib.import_module(own.rpartition(".")[0])
    spec = importlib.machinery.PathFinder.find_spec(own, getattr(parent, "__path__", []))
    if spec is None:
        # Without a name: `from ray import x` would hide the sentence otherwise.
        raise ModuleNotFoundError(why_not(known_as))
    return spec
