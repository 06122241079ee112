"""`ray.cloudpickle`: cloudpickle itself."""

from cloudpickle import *  # noqa: F403
from cloudpickle import __version__, dump, dumps, load, loads

__all__ = ["__version__", "dump", "dumps", "load", "loads"]
