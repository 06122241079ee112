"""What `import ray` gives."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import sys
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from .... import _actor, _api, _remote, _state
from ...._native import ObjectRef, ObjectRefGenerator
from ...._options import ActorOptions, Options
from ...._streams import DynamicObjectRefGenerator
from ....exceptions import ClusterConnectionError
from ...ray import _options
from .._missing import getter
from . import actor, cloudpickle, exceptions, remote_function, runtime_context, runtime_env, util
from ._ids import (
    ActorClassID,
    ActorID,
    FunctionID,
    JobID,
    NodeID,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
)
from .actor import method
from .runtime_context import get_runtime_context

__version__ = "2.60.0"
"""The version of Ray whose public names these are."""

__getattr__ = getter("ray")

SCRIPT_MODE = 0
WORKER_MODE = 1
LOCAL_MODE = 2

ObjectID = ObjectRef


def _as_future(self: ObjectRef[Any], _internal: bool = False) -> asyncio.Future[Any]:
    return asyncio.ensure_future(self)


def _task_id_of(self: ObjectRef[Any]) -> TaskID | None:
    found = _own_task_id(self)
    return None if found is None else TaskID(found)


# Refs are this library's own, with what programs use of Ray's.
_own_task_id = ObjectRef.task_id
ObjectRef.as_future = _as_future  # type: ignore[attr-defined]
ObjectRef.task_id = _task_id_of
# A generator whose items were taken is an empty one.
ObjectRefGenerator.__iter__ = lambda self: self

_job_environment: dict[str, Any] = {}


class Language:
    """Languages of functions and actors: Python."""

    PYTHON = "PYTHON"


class LoggingConfig:
    """How Ray logs: accepted, without effect."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.given = (args, options)


# ---- the connection ----


class Context(Mapping[str, Any]):
    """What `init` returns: answers like a dict, and ends the connection when a `with` block does."""

    dashboard_url = None
    ray_version = __version__
    ray_commit = ""
    protocol_version = None

    def __init__(self) -> None:
        self.python_version = ".".join(str(part) for part in sys.version_info[:3])
        self.address_info = {
            "node_id": _state.connected().node_id,
            "address": _state.address,
            "gcs_address": _state.address,
            "node_ip_address": util.get_node_ip_address(),
            "webui_url": None,
            "session_dir": _state.embedded.dir if _state.embedded is not None else None,
        }

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Ends the connection."""
        shutdown()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address_info})"


_IGNORED_BY_INIT = {
    "include_dashboard",
    "dashboard_host",
    "dashboard_port",
    "job_config",
    "configure_logging",
    "logging_level",
    "logging_format",
    "logging_config",
    "enable_resource_isolation",
    "cgroup_path",
    "system_reserved_cpu",
    "system_reserved_memory",
    "proxy_server_url",
    "storage",
    "allow_multiple",
}


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: int | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    **others: Any,
) -> Context:
    """Starts a cluster inside this program, or joins the one that `address`, RAY_ADDRESS or CLUSTER_ADDRESS names.

    Where none of them names one, one that `cluster up` started on this machine is joined, unless resources are given.
    """
    if local_mode:
        warnings.warn(
            "ray.init(local_mode=True) changes nothing: tasks and actors run in processes of their own",
            stacklevel=2,
        )
    for name in others:
        if name not in _IGNORED_BY_INIT and not name.startswith("_"):
            raise RuntimeError(f"ray.init() got an unknown argument: {name}")
    if namespace is not None and (not isinstance(namespace, str) or not namespace):
        kind = ValueError if isinstance(namespace, str) else TypeError
        raise kind(f"namespace is {namespace!r}; it must be a string that is not empty")
    if _state.client is not None and (ignore_reinit_error or _state.is_executor):
        return Context()
    if _state.client is not None:
        raise RuntimeError(
            "Maybe you called ray.init twice by accident? This error can be suppressed by passing in "
            "'ignore_reinit_error=True' or by calling 'ray.shutdown()' prior to 'ray.init()'."
        )
    environment = _options.environment(runtime_env)
    offer = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "resources": resources,
        "labels": labels,
        "object_store_memory": object_store_memory,
        "memory": others.get("_memory"),
    }
    given = {
        "namespace": namespace or str(uuid.uuid4()),
        "runtime_env": environment,
        "log_to_driver": log_to_driver is not False,
    }
    _init(_where(address), any(value is not None for value in offer.values()), offer, given)
    _job_environment.clear()
    _job_environment.update(runtime_env or {})
    return Context()


def _init(address: str | None, is_offer: bool, offer: dict[str, Any], given: dict[str, Any]) -> None:
    if address is None and not is_offer and (here := _api._here(_api._run_dir()).get("address")):
        with contextlib.suppress(ClusterConnectionError):  # what is written there may be of yesterday
            _api.init(here, **given)
            return
    _api.init(address or "local", **offer, **given)


def _where(address: str | None) -> str | None:
    named = address or os.environ.get("RAY_ADDRESS") or os.environ.get("CLUSTER_ADDRESS")
    if named is None or named == "local":
        return named
    return named.removeprefix("ray://")


def shutdown(*_ignored: Any, **_also: Any) -> None:
    """Disconnects; a cluster of the program's own ends."""
    _api.shutdown()


is_initialized = _api.is_initialized


class ClientBuilder:
    """`ray.client(address)`: connects later."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._given: dict[str, Any] = {}

    def namespace(self, namespace: str) -> Self:
        """The job's namespace."""
        self._given["namespace"] = namespace
        return self

    def env(self, env: Mapping[str, Any]) -> Self:
        """The job's environment."""
        self._given["runtime_env"] = env
        return self

    def connect(self) -> Context:
        """As `init`."""
        return init(self._address, **self._given)


def client(address: str | None = None) -> ClientBuilder:
    """As `init`, but connects when `.connect()` is called."""
    return ClientBuilder(address)


# ---- values ----


class _WrongRefs(ValueError, TypeError):
    """Ray says ValueError where this library says TypeError."""


def get(object_refs: Any, *, timeout: float | None = None, _use_object_store: bool = False) -> Any:
    """The value of a ref, or the list of values of a list of refs. A generator of refs is what it is."""
    if isinstance(object_refs, ObjectRef) or type(object_refs) is list:
        try:
            return _api.get(object_refs, timeout=timeout)
        except TypeError as error:
            if not isinstance(object_refs, list) or all(isinstance(ref, ObjectRef) for ref in object_refs):
                raise
            raise _WrongRefs(f"Invalid type of object refs: {error}") from None
    if isinstance(object_refs, ObjectRefGenerator):
        return object_refs
    if isinstance(object_refs, Sequence) and not isinstance(object_refs, str | bytes):
        return get(list(object_refs), timeout=timeout)
    raise _WrongRefs(
        f"Invalid type of object refs, {type(object_refs)}: get() takes an ObjectRef or a list of ObjectRefs"
    )


def put(value: Any, *, _owner: Any = None, _tensor_transport: str | None = None) -> ObjectRef[Any]:
    """Stores a value once, for any number of tasks."""
    return _api.put(value)


def wait(
    ray_waitables: Any, *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
) -> tuple[list[Any], list[Any]]:
    """Splits refs into those that are ready, at most `num_returns`, and the others."""
    if isinstance(ray_waitables, ObjectRef) or not isinstance(ray_waitables, list):
        raise TypeError(f"wait() takes a list of ObjectRefs, not a {type(ray_waitables).__name__}")
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout is {timeout}; it must be 0 or more")
    if not ray_waitables:
        return [], []
    return _api.wait(ray_waitables, num_returns=num_returns, timeout=timeout, fetch_local=fetch_local)


# ---- tasks and actors ----


def remote(*args: Any, **options: Any) -> Any:
    """Makes a function or a class remote."""
    if len(args) == 1 and not options:
        return _made(args[0], {})
    if args or not options:
        raise TypeError(
            "The @ray.remote decorator must be applied either with no arguments and no parentheses, for example "
            "'@ray.remote', or it must be applied using some of its options, like '@ray.remote(num_cpus=2)'"
        )
    # What neither takes is told at once, where it is written.
    translated = _options.translated(options, of_actor=False)
    if not ActorOptions.knows(translated) or Options.knows(translated):
        Options().changed(translated)
    else:
        ActorOptions().changed(_options.translated(options, of_actor=True))
    return lambda function: _made(function, options)


def _made(function: Any, options: dict[str, Any]) -> Any:
    if isinstance(function, _remote.RemoteFunction | _actor.ActorClass):
        raise TypeError(f"{function!r} is remote already; use its .options(...) to change how it runs")
    if inspect.isclass(function):
        return actor.ActorClass(function, ActorOptions().changed(_options.translated(options, of_actor=True)))
    if inspect.iscoroutinefunction(function):
        raise ValueError(
            "'async def' should not be used for remote tasks. You can wrap the async function with "
            "`asyncio.run(f())`, or make it a method of an actor"
        )
    if not callable(function):
        raise TypeError(
            f"The @ray.remote decorator must be applied to a function or a class, not a {type(function).__name__}"
        )
    return remote_function.RemoteFunction(
        function, Options().changed(_options.translated(options, of_actor=False))
    )


def kill(actor: Any, *, no_restart: bool = True) -> None:
    """Ends an actor at once."""
    if not isinstance(actor, _actor.ActorHandle):
        raise ValueError(f"ray.kill() is for actors; for tasks, use ray.cancel(). Got: {type(actor)}.")
    _actor.kill(actor, no_restart=no_restart)


def cancel(ray_waitable: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Cancels the task whose result this is."""
    _actor.cancel(ray_waitable, force=force, recursive=recursive)


def get_actor(name: str, namespace: str | None = None) -> _actor.ActorHandle[Any]:
    """The actor of this name."""
    if namespace is not None and not namespace:
        raise ValueError('"" is no namespace: leave it out for the namespace of this program')
    try:
        return _actor.get_actor(name, namespace)
    except ValueError as error:
        raise ValueError(f"Failed to look up actor with name {name!r}: {error}") from None


# ---- the cluster ----


def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster."""
    return [{**node, "alive": node["Alive"]} for node in _api.nodes()]


def cluster_resources() -> dict[str, float]:
    """All that the nodes have, by name."""
    return _named(_api.cluster_resources())


def available_resources() -> dict[str, float]:
    """What is not in use, by name."""
    return _named(_api.available_resources(), used=True)


def _named(resources: dict[str, float], used: bool = False) -> dict[str, float]:
    """With one `node:ADDRESS` for each node, which programs count, and the stores' memory."""
    memory = 0
    for node in json.loads(_state.connected().query("nodes")):
        if node["alive"]:
            resources[f"node:{node['address'].rpartition(':')[0] or node['hostname']}"] = 1.0
            memory += node["store"]["capacity"] - (node["store"]["live"] if used else 0)
    return {**resources, "object_store_memory": float(memory)}


def get_gpu_ids() -> list[Any]:
    """The GPUs that the running task may use: numbers, or as `CUDA_VISIBLE_DEVICES` named them, which are strings."""
    return get_runtime_context().gpu_names()


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """The tasks of the cluster's table as events for chrome://tracing."""
    now = time.time() * 1e6
    events = [
        {
            "cat": "task",
            "name": task["name"],
            "ph": "X",
            "pid": task["node"] or "",
            "tid": task["job"],
            "ts": now - task["age_ms"] * 1e3,
            "dur": task["ran_ms"] * 1e3,
            "args": {"task_id": task["task"], "state": task["state"], "attempt": task["attempt"]},
        }
        for task in json.loads(_state.connected().query("tasks"))
    ]
    if filename is None:
        return events
    with open(filename, "w") as file:
        json.dump(events, file)
    return None


__all__ = [
    "LOCAL_MODE",
    "SCRIPT_MODE",
    "WORKER_MODE",
    "ActorClassID",
    "ActorID",
    "ClientBuilder",
    "DynamicObjectRefGenerator",
    "FunctionID",
    "JobID",
    "Language",
    "LoggingConfig",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "TaskID",
    "UniqueID",
    "WorkerID",
    "__version__",
    "actor",
    "available_resources",
    "cancel",
    "client",
    "cloudpickle",
    "cluster_resources",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "remote_function",
    "runtime_context",
    "runtime_env",
    "shutdown",
    "timeline",
    "util",
    "wait",
]
