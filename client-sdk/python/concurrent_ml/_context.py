"""Where the program is: job, node, process, task."""

from __future__ import annotations

from . import _state


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
        return _state.task.task_id if _state.task is not None else None

    def get_task_name(self) -> str | None:
        """The name of the running task; `None` in a driver."""
        return _state.task.name if _state.task is not None else None

    def get_attempt_number(self) -> int:
        """How often the running task was tried before; 0 in a driver."""
        return _state.task.attempt - 1 if _state.task is not None else 0

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task asked for; empty in a driver."""
        return _state.task.resources if _state.task is not None else {}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The GPUs that the running task may use."""
        return {"GPU": [str(index) for index in _state.task.gpus] if _state.task is not None else []}

    @property
    def namespace(self) -> str:
        """The namespace given to `init`."""
        return _state.connected().namespace

    @property
    def gpu_ids(self) -> list[int]:
        """The indices of the GPUs that the running task may use."""
        return list(_state.task.gpus) if _state.task is not None else []


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """Where this code runs.

    >>> get_runtime_context().get_node_id()  # doctest: +SKIP
    'c5d3a1b09f3c2e11'
    """
    return _context
