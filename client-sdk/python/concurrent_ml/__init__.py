"""Run Python functions at once on every core, GPU and machine you have.

>>> import concurrent_ml as cml
>>> cml.init(num_cpus=2)            # a cluster inside this program; or init("host:8264")
>>> @cml.remote
... def square(x):
...     return x * x
>>> cml.get([square.remote(i) for i in range(4)])
[0, 1, 4, 9]
>>> cml.shutdown()
"""

from . import _joblib_name, _native, exceptions
from ._actor import (
    Actor,
    ActorClass,
    ActorHandle,
    ActorMethod,
    cancel,
    checkpoint,
    exit_actor,
    get_actor,
    kill,
    method,
)
from ._api import (
    available_resources,
    cluster_resources,
    get,
    init,
    is_initialized,
    nodes,
    put,
    shutdown,
    wait,
)
from ._completed import as_completed
from ._context import RuntimeContext, get_runtime_context
from ._groups import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ._native import ObjectRef, ObjectRefGenerator
from ._progress import progress
from ._remote import RemoteFunction, remote
from ._strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)
from ._streams import DynamicObjectRefGenerator

__version__ = _native.VERSION

_joblib_name.offer()

__all__ = [
    "Actor",
    "ActorClass",
    "ActorHandle",
    "ActorMethod",
    "DoesNotExist",
    "DynamicObjectRefGenerator",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroup",
    "PlacementGroupSchedulingStrategy",
    "RemoteFunction",
    "RuntimeContext",
    "__version__",
    "as_completed",
    "available_resources",
    "cancel",
    "checkpoint",
    "cluster_resources",
    "exceptions",
    "exit_actor",
    "get",
    "get_actor",
    "get_current_placement_group",
    "get_placement_group",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "placement_group",
    "placement_group_table",
    "progress",
    "put",
    "remote",
    "remove_placement_group",
    "shutdown",
    "wait",
]
