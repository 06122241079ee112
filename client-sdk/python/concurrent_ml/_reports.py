"""How an executor tells of an exception."""

from __future__ import annotations

import os
import pickle
import traceback

from . import _native, exceptions


def where(task: _native.Task, node: str) -> str:
    """For people: which task, and where it ran."""
    return (
        f"task {task.name} ({task.task_id}, attempt {task.attempt}) in executor {os.getpid()} on node {node}"
    )


def story(task: _native.Task, node: str, error: BaseException) -> bytes:
    """The exception as who gets the task's result is told it."""
    return exceptions._story(error, task.task_id, where(task, node), traceback_of(error))


def is_retryable(task: _native.Task, error: BaseException) -> bool:
    """Whether the task asked to be tried again after this."""
    wanted = task.retry_exceptions
    if not wanted:
        return False
    try:
        kinds = pickle.loads(wanted)
    except Exception:  # a class that cannot be loaded here is none that was raised here
        return False
    return isinstance(error, Exception) if kinds is True else isinstance(error, kinds)


def traceback_of(error: BaseException) -> str:
    """The traceback as the user's code has it, without our own frames."""
    own = os.path.dirname(__file__)
    told = traceback.TracebackException.from_exception(error)
    todo, seen = [told], set()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        frames = [frame for frame in part.stack if not frame.filename.startswith(own)]
        part.stack = traceback.StackSummary.from_list(frames)
        todo += [other for other in (part.__cause__, part.__context__) if other is not None]
        todo += part.exceptions or []
    return "".join(told.format())
