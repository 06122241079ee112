"""What this process is: connected or not, a driver or an executor."""

from __future__ import annotations

import contextvars
import os
import threading
from typing import TYPE_CHECKING, Any

from . import _native

if TYPE_CHECKING:
    from ._actor_process import Actor
    from ._embedded import Embedded
    from ._logs import Printer

client: _native.Client | None = None
"""The connection; `None` before `init` and after `shutdown`."""

address: str | None = None
"""What other programs give to `init` to join the same cluster; `None` before `init`."""

embedded: Embedded | None = None
"""The cluster that this driver started for itself, if it did."""

printer: Printer | None = None
"""What shows executors' prints in this driver."""

is_executor = False
"""Whether this process was started by the cluster to run tasks."""

is_fork = False
"""Whether this process was forked, by user code, from one that was connected."""

task: _native.Task | None = None
"""The task that this executor runs, if it runs one at a time."""

running: contextvars.ContextVar[_native.Task | None] = contextvars.ContextVar("running", default=None)
"""The call whose code asks, in an actor that runs several at once."""

actor: Actor | None = None
"""The actor that this process is."""

directory = ""
"""That of this executor's daemon."""

loop_threads: set[int] = set()
"""The threads of an actor's event loops, if this process has any."""

bar = False
"""Whether a progress bar stands on the terminal's last line: what is printed begins by wiping it out."""

captured: _native.ObjectRef[Any] | None = None
"""The placement group of the running task or actor, if that captures what its code submits."""

generation = 0
"""Counts connections, so that what was made for an older one is made anew."""

job_env: dict[str, str] = {}
"""Variables that executors of this program's job find, beside those of its `runtime_env`."""

job_runtime_env: dict[str, Any] = {}
"""In a driver: the environment of its job, over which those of tasks and actors are laid."""

lock = threading.RLock()
"""Held while connecting and disconnecting."""


def current_task() -> _native.Task | None:
    """The task whose code asks; `None` in a driver."""
    return task or running.get()


def capture(task: _native.Task) -> None:
    """What this process submits from now on goes where this task says."""
    global captured
    place = task.group
    captured = place[0] if place is not None and place[2] else None


def connected() -> _native.Client:
    """The connection; makes one (a cluster of this program's own) where there is none."""
    if client is not None:
        return client
    from ._api import init

    with lock:
        if client is None:
            init()
    assert client is not None
    return client


def become_executor(connection: _native.Client) -> None:
    """This process runs tasks from now on."""
    global client, is_executor, generation
    client = connection
    is_executor = True
    generation += 1


def _forked() -> None:
    """In the child: the connection is its parent's, and calls say so (rule P6)."""
    global is_fork, lock, embedded
    _native.mark_forked()
    is_fork = client is not None
    # Another thread of the parent may have held it.
    lock = threading.RLock()
    if embedded is not None:
        embedded.disown()
        embedded = None


os.register_at_fork(after_in_child=_forked)
