"""`ray.runtime_context`."""

from __future__ import annotations

import os
from typing import Any

from .... import _api, _context, _groups, _state
from .._missing import getter
from ._ids import ActorID, JobID, NodeID, TaskID
from .runtime_env import RuntimeEnv

__getattr__ = getter("ray.runtime_context")


_OTHER_ACCELERATORS = ("neuron_cores", "TPU", "HPU", "NPU", "RBLN")


class RuntimeContext(_context.RuntimeContext):
    """Where the program is, with all of Ray's questions."""

    @property
    def job_id(self) -> JobID:
        """The id of the job."""
        return JobID(self.get_job_id())

    @property
    def node_id(self) -> NodeID:
        """The id of the node."""
        return NodeID(self.get_node_id())

    @property
    def task_id(self) -> TaskID | None:
        """The id of the running task."""
        found = self.get_task_id()
        return None if found is None else TaskID(found)

    @property
    def actor_id(self) -> ActorID | None:
        """The id of the actor that this process is."""
        found = self.get_actor_id()
        return None if found is None else ActorID(found)

    def get(self) -> dict[str, Any]:
        """All of it."""
        found = {"job_id": self.job_id, "node_id": self.node_id, "namespace": self.namespace}
        if self.task_id is not None:
            found["task_id"] = self.task_id
        if self.actor_id is not None:
            found["actor_id"] = self.actor_id
        return found

    def get_task_function_name(self) -> str | None:
        """The name of the running task's function."""
        return self.get_task_name()

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The accelerators that the running task may use: GPUs, and none of the other kinds that Ray names."""
        others: dict[str, list[str]] = {kind: [] for kind in _OTHER_ACCELERATORS}
        return {"GPU": [str(gpu) for gpu in self.gpu_names()], **others}

    def gpu_names(self) -> list[Any]:
        """The running task's GPUs: numbers, or what `CUDA_VISIBLE_DEVICES` called them where the node started."""
        indices = self.gpu_ids
        names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if len(names) != len(indices) or names == [str(index) for index in indices]:
            return list(indices)
        return names

    def get_resource_ids(self) -> dict[str, list[str]]:
        """The accelerators that the running task may use."""
        return self.get_accelerator_ids()

    def get_node_labels(self) -> dict[str, str]:
        """The labels of this process's node."""
        here = self.get_node_id()
        return next((dict(node["Labels"]) for node in _api.nodes() if node["NodeID"] == here), {})

    def get_placement_group_id(self) -> str | None:
        """The placement group that this code runs in."""
        group = _groups.get_current_placement_group()
        return None if group is None else group.id

    @property
    def current_placement_group_id(self) -> str | None:
        """The placement group that this code runs in."""
        return self.get_placement_group_id()

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what this code submits belongs to its placement group."""
        task = _state.actor.task if _state.actor is not None else _state.current_task()
        return task is not None and task.group is not None and task.group[2]

    def get_runtime_env_string(self) -> str:
        """The environment given to `init`, as JSON."""
        return self.runtime_env.serialize()

    @property
    def runtime_env(self) -> RuntimeEnv:
        """The environment given to `init`, as far as this process knows it."""
        from . import _job_environment

        return RuntimeEnv(**_job_environment)

    @property
    def gcs_address(self) -> str:
        """What joins the same cluster."""
        return _state.address or ""

    def get_session_name(self) -> str:
        """A name for this run of the program's job."""
        return f"session_{self.get_job_id()}"

    def is_canceled(self) -> bool:
        """Whether somebody wants the running task to end."""
        task = _state.current_task()
        return task is not None and task.cancel_reason() is not None


_context_of_ray = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """Where this code runs."""
    _state.connected()
    return _context_of_ray


__all__ = ["RuntimeContext", "get_runtime_context"]
