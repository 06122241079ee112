"""What `get` and its like raise.

An exception that a task raised arrives as a `TaskError` that is *also* of the exception's own class, so that
`except ValueError` works wherever the task ran.
"""

from __future__ import annotations

import builtins
import pickle
from typing import Any


class ClusterError(Exception):
    """Anything that the cluster, rather than the program, has to say."""


class ClusterConnectionError(ClusterError, ConnectionError):
    """No connection to a cluster came about. Says what was tried."""


class ConnectionRefusedByClusterError(ClusterConnectionError, PermissionError):
    """The cluster answered and refused: wrong token, other version. Its own reason."""


class ConnectionLostError(ClusterConnectionError):
    """The connection ended while it was needed."""


class ClusterClosedError(ClusterError, RuntimeError):
    """`shutdown` was called."""


class ForkedError(ClusterError, RuntimeError):
    """This process was forked from the one that is connected."""


class GetTimeoutError(ClusterError, TimeoutError):
    """The time given to `get` passed."""


class ObjectStoreFullError(ClusterError, MemoryError):
    """A value can never fit the object store."""


class OutOfDiskError(ClusterError, OSError):
    """The store is full and the disk that it spills to as well."""


class ObjectLostError(ClusterError):
    """The object's last copy went with the node that had it."""


class ObjectFreedError(ObjectLostError):
    """Nobody held a reference to the object any more when it was asked for."""


class TaskUnschedulableError(ClusterError):
    """No node has, or can have, what the task asks for."""


class TaskCancelledError(ClusterError):
    """The task was cancelled."""


class WorkerCrashedError(ClusterError):
    """The process that ran the task ended: its exit code or signal, and the last it wrote to stderr."""


class NodeLostError(WorkerCrashedError):
    """The machine that ran the task was lost."""


class InternalError(ClusterError):
    """A broken promise of the cluster's own. Please report it."""


class TaskError(ClusterError):
    """A task raised. `cause` is the exception, `remote_traceback` where it came from."""

    cause: BaseException | None = None
    remote_traceback: str = ""
    task_id: str | None = None
    _text: str = ""

    def __str__(self) -> str:
        return self._text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._text, self.remote_traceback, self.task_id, _pickled(self.cause))


_classes: dict[type[BaseException], type[TaskError]] = {}


def _class_for(cause: type[BaseException]) -> type[TaskError]:
    """A class that is both `TaskError` and the cause's own, where Python allows it."""
    known = _classes.get(cause)
    if known is not None:
        return known
    made: type[TaskError] = TaskError
    if not issubclass(cause, TaskError) and issubclass(cause, Exception):
        try:
            made = type(f"TaskError({cause.__name__})", (TaskError, cause), {"__module__": __name__})
            made.__new__(made)
        except Exception:
            made = TaskError
    elif issubclass(cause, TaskError):
        made = cause
    _classes[cause] = made
    return made


def _pickled(cause: BaseException | None) -> bytes | None:
    if cause is None:
        return None
    import cloudpickle

    try:
        pickled = cloudpickle.dumps(cause)
        pickle.loads(pickled)
        return pickled
    except Exception:
        return None


def _rebuild(text: str, traceback: str, task: str | None, pickled: bytes | None) -> TaskError:
    cause: BaseException | None = None
    if pickled is not None:
        try:
            cause = pickle.loads(pickled)
        except Exception:
            cause = None
    return _make(text, traceback, task, cause)


def _make(text: str, traceback: str, task: str | None, cause: BaseException | None, base: type[BaseException] | None = None) -> TaskError:
    kind = type(cause) if cause is not None else base
    if isinstance(cause, TaskError):
        # A task failed because another did: the first one's story is the one to tell.
        return cause
    class_ = _class_for(kind) if kind is not None else TaskError
    try:
        error = class_.__new__(class_)
    except Exception:
        error = TaskError.__new__(TaskError)
    if cause is not None:
        error.args = cause.args
        error.__dict__.update(getattr(cause, "__dict__", {}))
    else:
        error.args = (text,)
    error.cause = cause
    error.remote_traceback = traceback
    error.task_id = task
    error._text = text
    return error


def _describe(cause: BaseException, task: str, where: str, traceback: str) -> bytes:
    """An exception as bytes: itself if it can be pickled, else what can be told of it."""
    pickled = _pickled(cause)
    nearest = next((base for base in type(cause).__mro__ if base.__module__ == "builtins"), Exception)
    summary = f"{type(cause).__name__}: {cause}"
    text = f"{summary}\n\n{where} raised:\n{traceback}".rstrip()
    story = (text, traceback, task, pickled, nearest.__name__)
    data = pickle.dumps(story)
    if len(data) > 60_000:
        short = (text[:8000], traceback[-8000:], task, pickled if pickled and len(pickled) < 40_000 else None, nearest.__name__)
        data = pickle.dumps(short)
    return data


_KINDS: dict[str, type[ClusterError]] = {
    "ExecutorDied": WorkerCrashedError,
    "NodeLost": NodeLostError,
    "Cancelled": TaskCancelledError,
    "Unschedulable": TaskUnschedulableError,
    "ObjectLost": ObjectLostError,
    "ObjectFreed": ObjectFreedError,
    "ObjectTooLarge": ObjectStoreFullError,
    "OutOfDisk": OutOfDiskError,
    "Internal": InternalError,
}


def _from_failure(kind: str, message: str, payload: bytes, task: str | None) -> BaseException:
    """The exception that stands for a failure (called by the native module)."""
    if kind != "Exception" or not payload:
        return _KINDS.get(kind, ClusterError)(message)
    text, traceback, task, pickled, nearest = pickle.loads(payload)
    cause: BaseException | None = None
    if pickled is not None:
        try:
            cause = pickle.loads(pickled)
        except Exception as error:
            text = f"{text}\n\n(the exception itself could not be unpickled here: {error!r})"
    return _make(text, traceback, task, cause, getattr(builtins, nearest, None))
