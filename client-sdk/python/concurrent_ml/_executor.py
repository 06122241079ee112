"""What an executor's process does: take a task, run it, answer, until there are no more."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from . import _calls, _native, _reports, _state, _streams, _zygote, exceptions
from ._lines import Lines

if TYPE_CHECKING:
    from ._actor_process import Actor

REASON_WITHIN = 0.5
"""Who cancelled is told beside the signal that interrupts: it comes within these seconds."""

MOVE = (1 << 64) - 1
"""Instead of the tag of a call to cancel: this node is to leave, and the actor may live on elsewhere."""

FUNCTIONS_KEPT = 256
"""Functions that an executor keeps loaded; the longest unused goes first, and is fetched again when it is needed."""


def main(socket_path: str, executor: int, page_fd: int, token: str) -> None:
    """Runs tasks until the daemon says that there will be no more, or goes away."""
    client = _native.Client.executor(token, socket_path, executor, page_fd)
    _state.directory = os.path.dirname(socket_path)
    _state.become_executor(client)
    if os.environ.pop("CLUSTER_COMPAT", None) == "ray":
        # Before anything of the program's is unpickled: it may say `import ray`.
        from .compat import ray

        ray.install()
    sys.stdout = Lines(client, to_stderr=False)
    sys.stderr = Lines(client, to_stderr=True)
    loop = _Loop(client)
    signal.signal(signal.SIGINT, loop.interrupted)
    while loop.next():
        pass
    if loop.actor is not None:
        loop.actor.let_calls_end(client)


@contextlib.contextmanager
def timed(task: _native.Task, seconds: float) -> Iterator[None]:
    """A task that runs for longer asks to be cancelled, as anybody could: its children are cancelled with it."""

    def ask() -> None:
        with contextlib.suppress(exceptions.ClusterError):
            task.cancel(f"it ran longer than its timeout of {seconds:g} s")

    timer = threading.Timer(seconds, ask)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_NO_LIMIT = contextlib.nullcontext()


class Reports:
    """How a task's end is told."""

    def __init__(self, client: _native.Client) -> None:
        self.client = client

    def settle(self, task: _native.Task, call: Callable[[_native.Task], Any]) -> None:
        """Runs a task and tells what came of it. Of `SystemExit` the daemon tells, when the process has ended."""
        try:
            self.finished(task, call(task))
        except SystemExit as leaving:
            self.leaving(task, leaving)
            raise
        except BaseException as error:
            self.ended_by(task, error)

    def limit(self, task: _native.Task) -> contextlib.AbstractContextManager[None]:
        """What user code runs in: it ends when its time is over."""
        seconds = task.timeout
        return _NO_LIMIT if seconds is None else timed(task, seconds)

    def finished(self, task: _native.Task, result: Any) -> None:
        """It returned."""
        _finish_lines()
        task.finish(result)

    def ended_by(self, task: _native.Task, error: BaseException) -> None:
        """It raised, whatever it was."""
        if isinstance(error, exceptions._Cancelled):
            self.cancelled(task)
        elif isinstance(error, exceptions._ActorExit):
            _finish_lines()
            task.fail(f"exit_actor() was called in {task.name} ({task.task_id})", b"", False, "ActorDied")
        else:
            self.failed(task, error)

    def cancelled(self, task: _native.Task) -> None:
        """It was stopped on somebody's wish."""
        _finish_lines()
        reason = task.cancel_reason(REASON_WITHIN) or "on request"
        task.fail(f"task {task.name} ({task.task_id}) was cancelled: {reason}", b"", False, "Cancelled")

    def leaving(self, task: _native.Task, leaving: SystemExit) -> None:
        """It ends its process: the daemon tells the submitter how."""
        print(f"task {task.name} ended its process: {leaving!r}", file=sys.stderr)
        _finish_lines()

    def failed(self, task: _native.Task, error: BaseException) -> None:
        """It raised an exception."""
        _finish_lines()
        where = _reports.where(task, self.client.node_id)
        story = _reports.story(task, self.client.node_id, error)
        message = f"{where} raised {exceptions._summary(error)}"[:2000]
        task.fail(message, story, _reports.is_retryable(task, error), "Exception")


def run(
    task: _native.Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Calls the user's code; what it yields goes out as it comes."""
    result = function(*args, **kwargs)
    return _streams.settled(task, result)


class _Loop:
    def __init__(self, client: _native.Client) -> None:
        self.client = client
        self.reports = Reports(client)
        self.functions: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()
        self.threads = _Threads()
        self.actor: Actor | None = None
        self.is_spent = False

    def interrupted(self, _number: int, _frame: object) -> None:
        """SIGINT: the daemon has written which task is to stop (rule E3); anything else that sends it is ignored."""
        if self.client.take_cancel():
            raise exceptions._Cancelled

    def next(self) -> bool:
        """One task; false when there will be none any more. Nothing of a task stays here when it has ended."""
        try:
            work = self.client.next_work()
        except (exceptions.ClusterError, exceptions._Cancelled):
            return False
        if work is None:
            return False
        if work == MOVE and self.actor is not None:
            self.actor.move()
            return True
        calls = self.actor.calls if self.actor is not None else None
        if calls is not None:
            if isinstance(work, int):
                calls.cancel(work)
            else:
                calls.start(work)
            return True
        if isinstance(work, int):
            return True  # of a call that has ended
        _state.task = work
        try:
            self.reports.settle(work, self.call)
        except (exceptions.ClusterClosedError, exceptions.ConnectionLostError):
            return False
        finally:
            _state.task = None
        return not self.is_spent

    def call(self, task: _native.Task) -> Any:
        kind = task.kind
        if kind == 1:
            return self.make_actor(task)
        if kind == 2:
            if self.actor is None:
                raise exceptions.InternalError(f"{task.name} was sent to an executor that is no actor")
            function = self.actor.method(task.method[0])
        else:
            self.threads.allow(task.num_cpus)
            function = self.function(task)
            if _state.captured is not None or task.in_group:
                _state.capture(task)
        args, kwargs = task.arguments()
        seconds = task.timeout
        task.enter()
        try:
            if seconds is None:
                return run(task, function, args, kwargs)
            with timed(task, seconds):
                return run(task, function, args, kwargs)
        finally:
            task.leave()
            self.is_spent = isinstance(function, _calls.Limited) and function.left <= 0

    def make_actor(self, task: _native.Task) -> None:
        from ._actor_process import Actor

        self.threads.allow(task.num_cpus)
        cls = task.function()
        args, kwargs = task.arguments()
        actor = Actor(task, self.reports)
        _state.capture(task)
        # `__init__` may ask which actor it is.
        _state.actor = actor
        task.enter()
        try:
            actor.make(cls, args, kwargs)
            if actor.states is not None:
                actor.states.begin()
        except BaseException:
            _state.actor = None
            raise
        finally:
            task.leave()
        self.actor = actor

    def function(self, task: _native.Task) -> Callable[..., Any]:
        key = task.function_id
        function = self.functions.get(key)
        if function is None:
            function = self.functions[key] = task.function()
            if len(self.functions) > FUNCTIONS_KEPT:
                self.functions.popitem(last=False)
        else:
            self.functions.move_to_end(key)
        return function


def _finish_lines() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            if isinstance(stream, Lines):
                stream.finish()
        except (OSError, ValueError, AttributeError):
            pass  # user code put something else there, and closed it


class _Threads:
    """Sizes the numeric libraries' thread pools to the CPUs of the task, unless the user set them."""

    def __init__(self) -> None:
        # The module that ran as the zygote's script, which knows; ours here was imported beside it.
        zygote = sys.modules.get("concurrent_ml._zygote", _zygote)
        self.by_user = getattr(zygote, "threads_set_by_user", False)
        # The zygote started with one thread.
        self.now = 1

    def allow(self, cpus: float) -> None:
        """Called before each task."""
        wanted = max(1, int(cpus))
        if self.by_user or wanted == self.now:
            return
        self.now = wanted
        # For libraries that are imported from now on, and for programs that the task starts.
        for name in _zygote.THREAD_VARIABLES:
            os.environ[name] = str(wanted)
        try:
            import threadpoolctl
        except ImportError:
            return
        threadpoolctl.threadpool_limits(limits=wanted)
