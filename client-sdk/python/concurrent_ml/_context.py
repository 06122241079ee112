"""Where the program is: job, node, process, task."""

from __future__ import annotations

from typing import Any

from . import _state
from ._actor import ActorHandle, _handle_from


def _of_task(what: str, otherwise: Any) -> Any:
    task = _state.current_task()
    return otherwise if task is None else getattr(task, what)


class RuntimeContext:
    """Answers of `get_runtime_context`, true at the moment of asking."""

    def get_job_id(self) -> str:
        """The id of the job that this process belongs to."""
        return _state.connected().job_id

    def get_node_id(self) -> str:
        """The id of the node whose daemon this process is attached to."""
        return _state.connected().node_id

    def get_worker_id(self) -> str:
        """The id of this process at the cluster."""
        return _state.connected().client_id

    def get_task_id(self) -> str | None:
        """The id of the running task; `None` in a driver."""
        return _of_task("task_id", None)

    def get_task_name(self) -> str | None:
        """The name of the running task; `None` in a driver."""
        return _of_task("name", None)

    def get_attempt_number(self) -> int:
        """How often the running task was tried before; 0 in a driver."""
        return _of_task("attempt", 1) - 1

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task, or the actor it is a call of, asked for; empty in a driver."""
        return _state.actor.task.resources if _state.actor is not None else _of_task("resources", {})

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The GPUs that the running task may use."""
        return {"GPU": [str(index) for index in self.gpu_ids]}

    def get_actor_id(self) -> str | None:
        """The id of the actor that this process is; `None` elsewhere."""
        return _state.actor.task.actor_id if _state.actor is not None else None

    def get_actor_name(self) -> str | None:
        """The name that it was given; `None` without one."""
        return (_state.actor.task.actor_name[0] or None) if _state.actor is not None else None

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the actor was made anew after it died."""
        return _state.actor is not None and _state.actor.task.attempt > 1

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """A handle of the actor that this process is, to pass on. While it is kept, the actor has a handle."""
        if _state.actor is None:
            raise RuntimeError("there is no current actor: this is no code of an actor's")
        return _handle_from(_state.actor.task.actor_ref(), _state.actor.task.actor_name[2])

    @property
    def namespace(self) -> str:
        """The namespace given to `init`."""
        return _state.connected().namespace

    @property
    def gpu_ids(self) -> list[int]:
        """The indices of the GPUs that the running task may use."""
        return list(_state.actor.task.gpus if _state.actor is not None else _of_task("gpus", []))


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """Where this code runs.

    >>> get_runtime_context().get_node_id()  # doctest: +SKIP
    'c5d3a1b09f3c2e11'
    """
    return _context
