"""What `get` and its like raise.

An exception that a task raised arrives as a `TaskError` that is *also* of the exception's own class, so that
`except ValueError` works wherever the task ran.
"""

from __future__ import annotations

import builtins
import contextlib
import pickle
import types
from typing import Any, NoReturn


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


class ObjectTooLargeError(ObjectStoreFullError):
    """A value is larger than the object store can ever be."""


class OutOfDiskError(ClusterError, OSError):
    """The store is full and the disk that it spills to as well."""


class ObjectLostError(ClusterError):
    """The object's last copy went with the node that had it."""


class ObjectFreedError(ObjectLostError):
    """Nobody held a reference to the object any more when it was asked for."""


class TaskUnschedulableError(ClusterError):
    """No node has, or can have, what the task asks for."""


class PlacementGroupRemovedError(ClusterError):
    """The placement group that it ran in, or waited for, was removed: by whom, and why."""


class TaskCancelledError(ClusterError):
    """The task was cancelled: by whom, and why."""


class RuntimeEnvError(ClusterError):
    """A `runtime_env` cannot be had: files that cannot be sent, requirements that do not resolve."""


class ActorError(ClusterError):
    """An actor that was called cannot answer."""

    actor_id: str | None = None
    cause: BaseException | None = None


class PendingCallsLimitExceeded(ClusterError):
    """A handle has as many calls without an answer as `max_pending_calls` allows: this one was not made."""


class ActorNameTakenError(ActorError, ValueError):
    """An actor of this name lives already."""


class ActorDiedError(ActorError):
    """The actor that was called is dead. Says why: exit code or signal, exception in `__init__` (which is `cause`),
    node lost, killed by whom. `actor_id` is the id that its handle shows.
    """


class ActorUnavailableError(ActorError):
    """The actor that was called died or was cut off, and is being made anew. The call may have run, and its
    `max_task_retries` do not allow to try it again. Later calls wait until the actor is back.
    """


class WorkerCrashedError(ClusterError):
    """The process that ran the task ended: its exit code or signal, and the last it wrote to stderr."""


class OutOfMemoryError(WorkerCrashedError, MemoryError):
    """The task's process was ended because its node had no memory left, or because it took more than the `memory=` that
    the task had asked for. Lists the largest processes.
    """


class NodeLostError(WorkerCrashedError):
    """The machine that ran the task was lost."""


class InternalError(ClusterError):
    """A broken promise of the cluster's own. Please report it."""


class _Cancelled(BaseException):
    """Raised inside a task that was cancelled; no `except Exception` of the task's stops it."""


class _ActorExit(BaseException):
    """What `exit_actor` raises; no `except Exception` of the method's stops it."""


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
    if issubclass(cause, TaskError):
        made = cause
    elif issubclass(cause, Exception):
        try:
            made = type(f"TaskError({cause.__name__})", (TaskError, cause), {"__module__": __name__})
        except TypeError:  # a final class, say
            made = TaskError
    if len(_classes) < 10_000:  # classes made inside functions are new each time
        _classes[cause] = made
    return made


def _instance(kind: type[BaseException], given: tuple[Any, ...]) -> BaseException:
    """Made without an `__init__` of the user's, which may want anything; that of a built-in class is run."""
    for arguments in (given, ()):
        try:
            error = kind.__new__(kind, *arguments)
        except Exception:
            continue
        if isinstance(kind.__init__, types.WrapperDescriptorType):
            with contextlib.suppress(Exception):
                error.__init__(*arguments)
        return error
    return TaskError.__new__(TaskError)


def _given(error: BaseException) -> tuple[Any, ...]:
    """What it was made from: its `args`, and for a built-in class that leaves some out of them, those too."""
    return OSError.__reduce__(error)[1] if isinstance(error, OSError) else error.args  # type: ignore[index]


def _summary(error: BaseException) -> str:
    """What Python shows of it in the last line of a traceback."""
    try:
        text = str(error)
    except Exception as worse:
        text = f"(its text cannot be made: {type(worse).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _pickled(cause: BaseException | None) -> bytes | None:
    """An exception as bytes that are certain to become one again; `None` if there are none."""
    if cause is None:
        return None
    import cloudpickle

    def tried(value: Any) -> bytes | None:
        try:
            data = cloudpickle.dumps(value)
            return data if isinstance(pickle.loads(data), BaseException) else None
        except Exception:
            return None

    return tried(cause) or tried(_Parts(cause))


class _Parts:
    """An exception whose `__init__` takes other arguments, or that carries something that cannot be pickled: its
    class, its `args` and those of its attributes that can.
    """

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        import cloudpickle

        def can(value: Any) -> bool:
            try:
                cloudpickle.dumps(value)
            except Exception:
                return False
            return True

        cause = self.cause
        args = tuple(arg if can(arg) else repr(arg) for arg in _given(cause))
        state = {name: value for name, value in vars(cause).items() if can(value)}
        return _from_parts, (type(cause), args, state)


def _from_parts(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = _instance(kind, args)
    if not isinstance(error, OSError):  # which keeps its file's name out of them
        error.args = args
    error.__dict__.update(state)
    return error


def _rebuild(text: str, traceback: str, task: str | None, pickled: bytes | None) -> TaskError:
    cause: BaseException | None = None
    if pickled is not None:
        try:
            cause = pickle.loads(pickled)
        except Exception:
            cause = None
    return _make(text, traceback, task, cause)


def _make(
    text: str,
    traceback: str,
    task: str | None,
    cause: BaseException | None,
    nearest: type[BaseException] | None = None,
) -> TaskError:
    if isinstance(cause, TaskError):
        # A task failed because another did: the first one's story is the one to tell.
        return cause
    kind = type(cause) if cause is not None else nearest
    given = _given(cause) if cause is not None else (text,)
    error = _instance(_class_for(kind) if kind is not None else TaskError, given)
    assert isinstance(error, TaskError)
    error.args = cause.args if cause is not None else given
    error.__dict__.update(getattr(cause, "__dict__", {}))
    error.cause = cause
    error.remote_traceback = traceback
    error.task_id = task
    error._text = text
    return error


class _Raising:
    """Stands in a task's results for one that did not come about: whoever reads it gets the exception instead."""

    def __init__(self, story: bytes) -> None:
        self.story = story

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise_told, (self.story,)


def _raise_told(story: bytes) -> NoReturn:
    raise _told(story)


_STORY_MAX = 60_000
"""A failure's payload has at most 64 KiB."""


def _story(cause: BaseException, task: str, where: str, traceback: str) -> bytes:
    """An exception as bytes: itself if it can be pickled, else what can be told of it."""
    pickled = _pickled(cause)
    # Which of its classes the driver is certain to have, should it not have the exception's own.
    nearest = next(
        (kind for kind in type(cause).__mro__ if kind.__module__ == "builtins"), Exception
    ).__name__

    def told(summary: str, traceback: str, pickled: bytes | None) -> bytes:
        text = f"{summary}\n\n{where} raised:\n{traceback}".rstrip()
        return pickle.dumps((text, traceback, task, pickled, nearest))

    story = told(_summary(cause), traceback, pickled)
    if len(story) <= _STORY_MAX:
        return story
    summary, traceback = _shortened(_summary(cause), 8_000), _shortened(traceback, 12_000)
    story = told(summary, traceback, pickled)
    return story if len(story) <= _STORY_MAX else told(summary, traceback, None)


def _shortened(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}\n[{len(text) - length} characters left out]\n{text[-length // 2 :]}"


_KINDS: dict[str, type[ClusterError]] = {
    "ExecutorDied": WorkerCrashedError,
    "NodeLost": NodeLostError,
    "Cancelled": TaskCancelledError,
    "ActorDied": ActorDiedError,
    "ActorUnavailable": ActorUnavailableError,
    "Unschedulable": TaskUnschedulableError,
    "GroupRemoved": PlacementGroupRemovedError,
    "ObjectLost": ObjectLostError,
    "ObjectFreed": ObjectFreedError,
    "ObjectTooLarge": ObjectTooLargeError,
    "OutOfDisk": OutOfDiskError,
    "OutOfMemory": OutOfMemoryError,
    "Internal": InternalError,
}


def _from_failure(kind: str, message: str, payload: bytes, task: str | None) -> BaseException:
    """The exception that stands for a failure (called by the native module)."""
    if kind == "ActorDied":
        return _actor_died(message, payload, task)
    if kind == "ActorUnavailable":
        unavailable = ActorUnavailableError(message)
        unavailable.actor_id = f"{task}.0" if task is not None else None
        return unavailable
    if kind == "Exception" and (not payload or payload.startswith(_RUST)):
        return _told_by_rust(message, payload, task)
    if kind != "Exception":
        return _KINDS.get(kind, ClusterError)(message)
    return _told(payload)


_also_said: dict[str, str] = {}
"""What is added to the death of an actor whose message has these words."""

_RUST = b"rust backtrace\n"
"""Begins what a Rust program tells of a panic. No pickle begins so."""


def _told_by_rust(message: str, payload: bytes, task: str | None) -> TaskError:
    """The error of a task in Rust, with the backtrace of a panic."""
    trace = payload.removeprefix(_RUST).decode(errors="replace")
    error = TaskError(message)
    error._text = f"{message}\n\nRust's backtrace:\n{trace}" if trace else message
    error.remote_traceback, error.task_id = trace, task
    return error


def _actor_died(message: str, payload: bytes, task: str | None) -> BaseException:
    message += "".join(f". {more}" for words, more in _also_said.items() if words in message)
    died = ActorDiedError(message)
    # The actor's id is that of its handle, the one result of what made it.
    died.actor_id = f"{task}.0" if task is not None else None
    if payload and not payload.startswith(_RUST):
        cause = _told(payload)
        died.args = (f"{message}\n\n{cause}",) if str(cause) not in message else (message,)
        died.cause = getattr(cause, "cause", None) or cause
        died.__cause__ = died.cause
    return died


def _told(payload: bytes) -> TaskError:
    """The story of an exception, as an exception."""
    text, traceback, task, pickled, nearest = pickle.loads(payload)
    cause: BaseException | None = None
    if pickled is not None:
        try:
            cause = pickle.loads(pickled)
        except Exception as error:
            text = f"{text}\n\n(the exception itself could not be unpickled here: {error!r})"
    return _make(text, traceback, task, cause, getattr(builtins, nearest, None))
