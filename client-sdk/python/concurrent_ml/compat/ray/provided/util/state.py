"""`ray.util.state`: the tables that `cluster list` shows, in Ray's words."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from typing import Any

from ..... import _state
from ....._groups import placement_group_table
from ....._native import ObjectRef
from ..._missing import getter

__getattr__ = getter("ray.util.state")

Filters = list[tuple[str, str, Any]] | None

_TASK_STATES = {
    "waiting": "PENDING_ARGS_AVAIL",
    "queued": "PENDING_NODE_ASSIGNMENT",
    "prefetched": "SUBMITTED_TO_WORKER",
    "running": "RUNNING",
    "alive": "FINISHED",
    "finished": "FINISHED",
    "failed": "FAILED",
    "cancelled": "FAILED",
}
_ACTOR_STATES = {"pending": "PENDING_CREATION", "ending": "DEAD"}
_FAILURES = {"cancelled": "TASK_CANCELLED"}


class State(dict[str, Any]):
    """One row: its columns are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no column {name!r}; there are {', '.join(self)}") from None


def _table(question: str, limit: int | None = None) -> list[dict[str, Any]]:
    del limit  # the head keeps its tables short
    return json.loads(_state.connected().query(question))


_COMPARE: dict[str, Callable[[str, str], bool]] = {"=": lambda a, b: a == b, "!=": lambda a, b: a != b}


def _chosen(rows: list[State], filters: Filters, limit: int) -> list[State]:
    for column, predicate, value in filters or []:
        key = column.lower()
        if predicate not in _COMPARE:
            raise ValueError(f"the predicate {predicate!r} is not one of {', '.join(_COMPARE)}")
        if rows and key not in rows[0]:
            raise ValueError(f"there is no column {key!r}; there are {', '.join(rows[0])}")
        # As Ray does: without regard to case, and true for True.
        rows = [row for row in rows if _COMPARE[predicate](str(row[key]).lower(), str(value).lower())]
    return rows[:limit]


def _one(rows: list[State], column: str, wanted: Any) -> State | None:
    return next((row for row in rows if row[column] == str(wanted)), None)


def _tasks() -> list[State]:
    rows = []
    for task in _table("tasks"):
        state = _TASK_STATES.get(task["state"], task["state"].upper())
        rows.append(
            State(
                task_id=task["task"],
                attempt_number=max(task["attempt"] - 1, 0),
                name=task["name"],
                func_or_class_name=task["name"],
                state=state,
                job_id=task["job"],
                node_id=task["node"] or None,
                type="NORMAL_TASK",
                error_type=_FAILURES.get(task["state"], "TASK_EXECUTION_EXCEPTION")
                if state == "FAILED"
                else None,
                error_message=task["error"] or None,
            )
        )
    return rows


def _actors() -> list[State]:
    return [
        State(
            actor_id=actor["actor"],
            class_name=actor["class"],
            state=_ACTOR_STATES.get(actor["state"], actor["state"].upper()),
            job_id=actor["job"],
            name=actor["name"],
            ray_namespace=actor["namespace"],
            node_id=actor["node"] or None,
            num_restarts=str(actor["restarts"]),
            death_cause=actor["error"] or None,
        )
        for actor in _table("actors")
    ]


def _nodes() -> list[State]:
    return [
        State(
            node_id=node["node"],
            node_ip=node["address"].rpartition(":")[0],
            node_name=node["hostname"],
            is_head_node=index == 0,
            state="ALIVE" if node["alive"] else "DEAD",
            resources_total=node["total"],
            labels=node["labels"],
        )
        for index, node in enumerate(_table("nodes"))
    ]


def _objects() -> list[State]:
    return [
        State(
            object_id=thing["object"],
            object_size=thing["size"],
            task_status="FINISHED" if thing["state"] != "pending" else "PENDING",
            reference_type="PINNED_IN_MEMORY" if thing["nodes"] else "LOCAL_REFERENCE",
            nodes=thing["nodes"],
        )
        for thing in _table("objects")
    ]


def _groups() -> list[State]:
    return [
        State(
            placement_group_id=row["placement_group_id"],
            name=row["name"],
            state=row["state"],
            strategy=row["strategy"],
            bundles=list(row["bundles"].values()),
        )
        for row in placement_group_table().values()
    ]


def _jobs() -> list[State]:
    names = dict.fromkeys(row["job"] for row in [*_table("tasks"), *_table("actors")])
    return [State(job_id=name, type="DRIVER", status="RUNNING") for name in names]


def list_tasks(address: str | None = None, filters: Filters = None, limit: int = 100, **_ignored: Any) -> Any:
    """Tasks, the youngest first."""
    return _chosen(_tasks(), filters, limit)


def list_actors(
    address: str | None = None, filters: Filters = None, limit: int = 100, **_ignored: Any
) -> Any:
    """Actors, dead ones too."""
    return _chosen(_actors(), filters, limit)


def list_nodes(address: str | None = None, filters: Filters = None, limit: int = 100, **_ignored: Any) -> Any:
    """Nodes."""
    return _chosen(_nodes(), filters, limit)


def list_objects(
    address: str | None = None, filters: Filters = None, limit: int = 100, **_ignored: Any
) -> Any:
    """Objects that the head knows."""
    return _chosen(_objects(), filters, limit)


def list_jobs(address: str | None = None, filters: Filters = None, limit: int = 100, **_ignored: Any) -> Any:
    """Jobs that have tasks or actors in the tables."""
    return _chosen(_jobs(), filters, limit)


def list_placement_groups(
    address: str | None = None, filters: Filters = None, limit: int = 100, **_ignored: Any
) -> Any:
    """Placement groups."""
    return _chosen(_groups(), filters, limit)


def get_placement_group(id: Any, **_ignored: Any) -> Any:  # noqa: A002
    """One placement group."""
    return _one(_groups(), "placement_group_id", id)


def get_task(id: Any, **_ignored: Any) -> Any:  # noqa: A002 - Ray's name
    """One task, or the list of its attempts; by its id or the ref of its result."""
    wanted = id.task_id() if isinstance(id, ObjectRef) else id
    found = [row for row in _tasks() if row["task_id"] == str(wanted)]
    return found if len(found) > 1 else (found[0] if found else None)


def get_actor(id: Any, **_ignored: Any) -> Any:  # noqa: A002
    """One actor."""
    return _one(_actors(), "actor_id", id)


def get_node(id: Any, **_ignored: Any) -> Any:  # noqa: A002
    """One node."""
    return _one(_nodes(), "node_id", id)


def get_job(id: Any, **_ignored: Any) -> Any:  # noqa: A002
    """One job."""
    return _one(_jobs(), "job_id", id)


def get_objects(id: Any, **_ignored: Any) -> Any:  # noqa: A002
    """One object, as a list."""
    found = _one(_objects(), "object_id", id)
    return [] if found is None else [found]


def _summary(rows: list[State], name: str, states: str, what: str) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    for row in rows:
        group = groups.setdefault(row[name], {name: row[name], "state_counts": collections.Counter()})
        group["state_counts"][row[states]] += 1
    for group in groups.values():
        group["state_counts"] = dict(group["state_counts"])
    return {"cluster": {"summary": groups, f"total_{what}": len(rows), "summary_by": name}}


def summarize_tasks(**_ignored: Any) -> dict[str, Any]:
    """How many tasks of each function are in which state."""
    return _summary(_tasks(), "func_or_class_name", "state", "tasks")


def summarize_actors(**_ignored: Any) -> dict[str, Any]:
    """How many actors of each class are in which state."""
    return _summary(_actors(), "class_name", "state", "actors")


def summarize_objects(**_ignored: Any) -> dict[str, Any]:
    """How many objects there are, and how large they are together."""
    rows = _objects()
    found = _summary(rows, "reference_type", "task_status", "objects")
    found["cluster"]["total_size_mb"] = sum(row["object_size"] or 0 for row in rows) / 1e6
    return found
