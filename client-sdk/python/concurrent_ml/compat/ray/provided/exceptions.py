"""`ray.exceptions`: this library's exceptions under Ray's names; the few it has no use for are here to be named."""

from typing import Any

from ....exceptions import (
    _KINDS,
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectFreedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    PendingCallsLimitExceeded,
    TaskCancelledError,
    TaskUnschedulableError,
    WorkerCrashedError,
    _also_said,
)
from ....exceptions import ActorError as RayActorError
from ....exceptions import ActorNameTakenError as ActorAlreadyExistsError
from ....exceptions import ClusterError as RayError
from ....exceptions import ConnectionLostError as LocalRayletDiedError
from ....exceptions import ConnectionRefusedByClusterError as AuthenticationError
from ....exceptions import InternalError as RaySystemError
from ....exceptions import NodeLostError as NodeDiedError
from ....exceptions import TaskError as RayTaskError
from .._missing import getter

__getattr__ = getter("ray.exceptions")

# Programs look for these words.
_also_said.update(
    {
        "with kill()": "The actor is dead because it was killed by `ray.kill`",
        " is lost: ": "The actor died because its node has died",
    }
)

ActorUnschedulableError = TaskUnschedulableError

# A task's error is always also of its cause's class.
RayTaskError.as_instanceof_cause = lambda self: self  # type: ignore[attr-defined]


class _TaskCancelled(TaskCancelledError, RayTaskError):
    """Ray has a task that was interrupted as an error of the task, too."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self._text = message if "TaskCancelledError" in message else f"TaskCancelledError: {message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _TaskCancelled, (self._text,)


_KINDS["Cancelled"] = _TaskCancelled


class ActorHandleNotFoundError(RayError, ValueError):
    """There is no such actor."""


class ActorPlacementGroupRemoved(RayError):
    """The placement group of an actor is gone."""


class TaskPlacementGroupRemoved(RayError):
    """The placement group of a task is gone."""


class OwnerDiedError(ObjectLostError):
    """The process that made an object ended."""


class ObjectFetchTimedOutError(ObjectLostError):
    """An object did not arrive."""


class ObjectReconstructionFailedError(ObjectLostError):
    """A lost object could not be made again."""


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """An object was deleted that is still held."""


class AsyncioActorExit(RayError):
    """Ends an actor with coroutines."""


class CrossLanguageError(RayError):
    """An exception of another language."""


class RpcError(RayError):
    """A message between processes failed."""


class RuntimeEnvSetupError(RayError):
    """The environment of a task could not be made."""


class UserCodeException(RayError):
    """User code raised."""


class PlasmaObjectNotAvailable(RayError):
    """An object is not in the store."""


class ObjectRefStreamEndOfStreamError(RayError):
    """A stream has ended."""


class StreamingGeneratorReplayInconsistentError(RaySystemError):
    """A stream came out differently when it was made again."""


class OufOfBandObjectRefSerializationException(RayError):  # its name is Ray's
    """A ref was pickled where nobody can follow it."""


class UnserializableException(RayError):
    """An exception that could not be unpickled."""


class RayChannelError(RaySystemError):
    """A channel broke."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """A channel did not deliver in time."""


__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "CrossLanguageError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayChannelError",
    "RayChannelTimeoutError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]
