"""Every public name of Ray's core, and what becomes of it here.

A name's state is the first word: `yes`; `partly` and `ignored` (accepted, without effect) say what differs; `no` says
what to do instead. `docs/ray-compatibility.md` is made of this table (`python -m concurrent_ml.compat.ray --names`),
and tests hold both against the code.
"""

from __future__ import annotations

_DAG = "no: call .remote() and pass the refs on"
_OTHER_LANGUAGE = "no: Python only"

NAMES: dict[str, dict[str, str]] = {
    "ray": {
        "init": "partly: starts or joins a Concurrent-ML cluster; arguments of Ray's dashboard, logging and processes "
        "are ignored; `local_mode` warns, and changes nothing: tasks and actors run in processes of their own",
        "shutdown": "yes",
        "is_initialized": "yes",
        "remote": "yes",
        "get": "yes",
        "put": "yes",
        "wait": "yes",
        "kill": "yes",
        "cancel": "yes",
        "get_actor": "yes",
        "method": "yes",
        "nodes": "yes",
        "cluster_resources": "yes",
        "available_resources": "yes",
        "get_gpu_ids": "yes: numbers, or the strings of a CUDA_VISIBLE_DEVICES that the node started with",
        "get_runtime_context": "yes",
        "timeline": "partly: tasks as complete events, without their phases",
        "ObjectRef": "yes: of bytes too, in a process that has a ref to the object",
        "ObjectID": "yes",
        "ObjectRefGenerator": "yes",
        "DynamicObjectRefGenerator": "yes",
        "ActorID": "yes",
        "ActorClassID": "yes",
        "FunctionID": "yes",
        "JobID": "yes",
        "NodeID": "yes",
        "PlacementGroupID": "yes",
        "TaskID": "yes",
        "UniqueID": "yes",
        "WorkerID": "yes",
        "SCRIPT_MODE": "yes",
        "WORKER_MODE": "yes",
        "LOCAL_MODE": "yes",
        "__version__": "yes: of the API that is provided",
        "Language": "partly: Python's only",
        "LoggingConfig": "ignored: logs are as they are",
        "client": "partly: `ray.client(address).connect()` is `ray.init(address)`",
        "ClientBuilder": "partly: see `client`",
        "cloudpickle": "yes: cloudpickle itself",
        "java_function": _OTHER_LANGUAGE,
        "java_actor_class": _OTHER_LANGUAGE,
        "cpp_function": _OTHER_LANGUAGE,
        "cross_language": _OTHER_LANGUAGE,
        "dag": _DAG,
        "data": "no: read and transform with tasks over files, with Arrow or pandas inside them",
        "train": "no: start one actor per GPU and let torch.distributed connect them",
        "tune": "no: run one task per trial and let Optuna choose the next",
        "serve": "no: put a web framework into an async actor",
        "rllib": "no: run environments in actors and learn in the driver",
        "air": "no: it belongs to ray.train",
        "llm": "no: start the engine in an actor of its own",
        "workflow": "no: Ray itself removed it",
        "job_submission": "no: start the program with CLUSTER_ADDRESS set",
        "autoscaler": "no: nodes join by `cluster up --join`",
        "dashboard": "no: see `cluster status` and `cluster list`",
        "widgets": "no: see `cluster status`",
        "internal": "no: it is no public name",
        "experimental": "no: of ray.experimental nothing is here",
        "cluster_utils": "no: `cluster up`, with another CLUSTER_DIR for each node, makes a cluster on one machine",
    },
    "ray.actor": {
        "ActorClass": "yes",
        "ActorHandle": "yes",
        "ActorMethod": "yes",
        "ActorClassInheritanceException": "partly: never raised: a class may inherit from a remote class",
        "exit_actor": "yes",
        "method": "yes",
    },
    "ray.remote_function": {"RemoteFunction": "yes"},
    "ray.runtime_context": {"RuntimeContext": "yes", "get_runtime_context": "yes"},
    "ray.runtime_env": {
        "RuntimeEnv": "partly: `env_vars`, `pip`, `uv`; `working_dir` and `py_modules` that are directories here",
        "RuntimeEnvConfig": "ignored: environments are ready at once",
    },
    "ray.types": {"ObjectRef": "yes"},
    "ray.exceptions": {
        "RayError": "yes",
        "RayTaskError": "yes",
        "RayActorError": "yes",
        "ActorDiedError": "yes",
        "ActorUnavailableError": "partly: for calls that were under way; later ones wait for the actor",
        "ActorUnschedulableError": "yes",
        "ActorAlreadyExistsError": "yes",
        "ActorHandleNotFoundError": "yes",
        "ActorPlacementGroupRemoved": "yes",
        "TaskPlacementGroupRemoved": "yes",
        "TaskUnschedulableError": "yes",
        "TaskCancelledError": "yes",
        "GetTimeoutError": "yes",
        "WorkerCrashedError": "yes",
        "NodeDiedError": "yes: a kind of WorkerCrashedError",
        "LocalRayletDiedError": "yes: the connection was lost",
        "ObjectLostError": "yes",
        "ObjectFreedError": "yes",
        "OwnerDiedError": "partly: never raised, an ObjectLostError is",
        "ObjectFetchTimedOutError": "partly: never raised, an ObjectLostError is",
        "ObjectReconstructionFailedError": "partly: never raised, an ObjectLostError is",
        "ReferenceCountingAssertionError": "partly: never raised",
        "ObjectStoreFullError": "yes",
        "OutOfDiskError": "yes",
        "OutOfMemoryError": "yes",
        "AsyncioActorExit": "partly: never raised: exit_actor() in a coroutine is as in a method",
        "CrossLanguageError": "partly: never raised",
        "PendingCallsLimitExceeded": "yes",
        "RaySystemError": "yes",
        "RpcError": "partly: never raised",
        "AuthenticationError": "yes",
        "RuntimeEnvSetupError": "yes",
        "UserCodeException": "yes",
        "PlasmaObjectNotAvailable": "partly: never raised",
        "ObjectRefStreamEndOfStreamError": "partly: never raised",
        "StreamingGeneratorReplayInconsistentError": "partly: never raised",
        "OufOfBandObjectRefSerializationException": "partly: never raised",
        "UnserializableException": "partly: never raised",
        "RayChannelError": "partly: never raised",
        "RayChannelTimeoutError": "partly: never raised",
    },
    "ray.util": {
        "ActorPool": "yes",
        "actor_pool": "yes",
        "queue": "yes",
        "multiprocessing": "yes",
        "joblib": "yes",
        "placement_group": "partly: without `bundle_label_selector`",
        "placement_group_table": "yes",
        "remove_placement_group": "yes",
        "get_placement_group": "yes",
        "get_current_placement_group": "yes",
        "scheduling_strategies": "yes",
        "list_named_actors": "yes",
        "get_node_ip_address": "yes",
        "as_completed": "yes",
        "map_unordered": "yes",
        "inspect_serializability": "yes",
        "register_serializer": "yes: in the process that calls it, as in Ray",
        "deregister_serializer": "yes",
        "log_once": "yes",
        "disable_log_once_globally": "yes",
        "enable_periodic_logging": "yes",
        "accelerators": "partly: the names of accelerators; `accelerator_type=` asks for a resource of that name",
        "annotations": "yes: they return what they decorate",
        "state": "yes",
        "metrics": "no: not yet; your own prometheus_client works in tasks and actors",
        "collective": "no: use torch.distributed in actors",
        "iter": "no: use tasks over a list of refs",
        "pdb": "no: run the plain function in a debugger: f.__wrapped__(...)",
        "ray_debugpy": "no: run the plain function in a debugger: f.__wrapped__(...)",
        "rpdb": "no: run the plain function in a debugger: f.__wrapped__(...)",
        "client": "no: ray.init(address) connects",
        "connect": "no: ray.init(address) connects",
        "disconnect": "no: ray.shutdown() disconnects",
        "get_node_instance_id": "no: ray.get_runtime_context().get_node_id() names the node",
        "tracing": "no: not yet",
        "actor_group": "no: keep the handles in a list",
        "spark": "no: start nodes with `cluster up --join`",
        "dask": "no: not yet",
        "sgd": "no: it belongs to ray.train",
        "xgboost": "no: it belongs to ray.train",
        "lightgbm": "no: it belongs to ray.train",
        "horovod": "no: it belongs to ray.train",
        "tpu": "no: ask for a resource of your own, like resources={'tpu': 1}",
    },
    "ray.util.actor_pool": {"ActorPool": "yes"},
    "ray.util.queue": {"Queue": "yes", "Empty": "yes", "Full": "yes"},
    "ray.util.multiprocessing": {
        "Pool": "yes: its processes are actors, as Ray's are",
        "TimeoutError": "yes",
        "JoinableQueue": "yes: Python's own",
    },
    "ray.util.joblib": {"register_ray": "yes"},
    "ray.util.joblib.ray_backend": {"RayBackend": "yes"},
    "ray.util.placement_group": {
        "PlacementGroup": "yes",
        "placement_group": "partly: without `bundle_label_selector`",
        "placement_group_table": "yes",
        "remove_placement_group": "yes",
        "get_placement_group": "yes",
        "get_current_placement_group": "yes",
        "validate_placement_group": "yes",
        "VALID_PLACEMENT_GROUP_STRATEGIES": "yes",
    },
    "ray.util.scheduling_strategies": {
        "PlacementGroupSchedulingStrategy": "yes",
        "NodeAffinitySchedulingStrategy": "yes",
        "NodeLabelSchedulingStrategy": "yes",
        "In": "yes",
        "NotIn": "yes",
        "Exists": "yes",
        "DoesNotExist": "yes",
    },
    "ray.util.annotations": {"PublicAPI": "yes", "DeveloperAPI": "yes", "Deprecated": "yes"},
    "ray.util.state": {
        "list_tasks": "yes",
        "list_actors": "yes",
        "list_nodes": "yes",
        "list_objects": "yes",
        "list_jobs": "partly: those with tasks or actors in the tables",
        "list_workers": "no: not yet; list_nodes() counts them",
        "list_placement_groups": "yes",
        "list_runtime_envs": "no: not yet",
        "list_logs": "no: logs of tasks come to their driver",
        "list_cluster_events": "no: not yet",
        "get_task": "yes",
        "get_actor": "yes",
        "get_node": "yes",
        "get_objects": "yes",
        "get_job": "partly: see list_jobs",
        "get_worker": "no: not yet",
        "get_placement_group": "yes",
        "get_log": "no: logs of tasks come to their driver",
        "summarize_tasks": "yes",
        "summarize_actors": "yes",
        "summarize_objects": "yes",
        "StateApiClient": "no: call the functions of ray.util.state",
    },
}


def state_of(name: str) -> str:
    """`yes`, or what else the table has for a full name like `ray.util.queue`; for one it lacks, `no`."""
    module, _, last = name.rpartition(".")
    return NAMES.get(module, {}).get(last, "no")


def why_not(name: str) -> str:
    """The sentence for a name that is not provided."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        word, _, note = state_of(".".join(parts[:length])).partition(": ")
        if word == "no" and note:
            return f"{name} is not provided by concurrent_ml.compat.ray: {note}"
    return (
        f"{name} is not provided by concurrent_ml.compat.ray, which has the public names of Ray's core: "
        "see docs/ray-compatibility.md"
    )


_PAGE = """\
# Ray programs, unchanged

    python -m concurrent_ml.compat.ray script.py [arguments]
    python -m concurrent_ml.compat.ray -m package.module [arguments]

runs a program that says `import ray` on Concurrent-ML. In a program, before anything imports Ray, this does the same:

```python
from concurrent_ml.compat import ray

ray.install()
```

Tasks and actors of such a program find `ray` too, on every node. Nothing happens to programs that do not ask, and an
installed Ray is neither needed nor touched.

What is not provided raises an error that names it: `ImportError` where it is imported, `AttributeError` where it is
looked up, `ValueError` for an option. Names that begin with an underscore are Ray's own and are not provided.

Exceptions are this library's under Ray's names: `except ray.exceptions.RayTaskError` and `except ValueError` both
catch a task's `ValueError`.

This table is made from the code (`python -m concurrent_ml.compat.ray --names`), and tests hold it against the code.
`yes`: as in Ray. `partly`: what differs. `ignored`: accepted, without effect. `no`: what to do instead.
"""


def page() -> str:
    """The text of `docs/ray-compatibility.md`."""
    lines = [_PAGE]
    for module, names in NAMES.items():
        lines += [f"## `{module}`", "", "| name | state | |", "| --- | --- | --- |"]
        for name, state in names.items():
            word, _, note = state.partition(": ")
            lines.append(f"| `{name}` | {word} | {note} |")
        lines.append("")
    return "\n".join(lines)
