"""What an executor's process does: take a task, run it, answer, until there are no more."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from . import _native, _state, exceptions

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Cancelled(BaseException):
    """Raised inside a task that was cancelled; no `except Exception` of the task's stops it."""


def main(socket_path: str, executor: int, page_fd: int, token: str) -> None:
    """Runs tasks until the daemon says that there will be no more, or goes away."""
    client = _native.Client.executor(token, socket_path, executor, page_fd)
    _state.client = client
    _state.is_executor = True
    _state.generation += 1
    loop = _Loop(client)
    sys.stdout = _Lines(client, stderr=False)
    sys.stderr = _Lines(client, stderr=True)
    signal.signal(signal.SIGINT, loop.interrupted)
    while True:
        try:
            task = client.next_task()
        except exceptions.ClusterError:
            return
        if task is None:
            return
        loop.run(task)


class _Loop:
    def __init__(self, client: _native.Client) -> None:
        self.client = client
        self.functions: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()
        self.threads = _Threads()

    def interrupted(self, _number: int, _frame: object) -> None:
        if self.client.take_cancel():
            raise Cancelled

    def run(self, task: _native.Task) -> None:
        _state.task = task
        try:
            self.threads.allow(task.num_cpus)
            result = self.call(task)
            self.flush()
            task.finish(result)
        except Cancelled:
            self.flush()
            task.fail(f"task {task.name} ({task.task_id}) was cancelled: {task.cancel_reason() or 'on request'}", b"", False, True)
        except (SystemExit, GeneratorExit):
            self.flush()
            raise
        except BaseException as error:
            self.flush()
            self.failed(task, error)
        finally:
            _state.task = None

    def call(self, task: _native.Task) -> Any:
        key = task.function_id
        function = self.functions.get(key)
        if function is None:
            function = self.functions[key] = task.function()
        args, kwargs = task.arguments()
        task.enter()
        try:
            return function(*args, **kwargs)
        finally:
            task.leave()

    def failed(self, task: _native.Task, error: BaseException) -> None:
        where = f"task {task.name} ({task.task_id}#{task.attempt}) in process {os.getpid()} on node {self.client.node_id}"
        told = _trimmed(error)
        payload = exceptions._describe(error, task.task_id, where, told)
        task.fail(f"{where} raised {type(error).__name__}: {error}"[:2000], payload, self.retryable(task, error), False)

    def retryable(self, task: _native.Task, error: BaseException) -> bool:
        wanted = task.retry_exceptions
        if not wanted:
            return False
        import pickle

        kinds = pickle.loads(wanted)
        return isinstance(error, Exception) if kinds is True else isinstance(error, kinds)

    def flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def _trimmed(error: BaseException) -> str:
    """The traceback as the user's code has it, without our own frames."""
    own = os.path.dirname(__file__)
    told = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = told
    while part is not None:
        part.stack = traceback.StackSummary.from_list([frame for frame in part.stack if not frame.filename.startswith(own)])
        part = part.__cause__ or part.__context__
    return "".join(told.format())


class _Threads:
    """Sizes the numeric libraries' thread pools to the CPUs of the task, unless the user set them."""

    def __init__(self) -> None:
        self.by_user = any(name in os.environ for name in _THREAD_VARIABLES)
        self.now = 0

    def allow(self, cpus: float) -> None:
        wanted = max(1, int(cpus))
        # The zygote started with one thread, so nothing is to be done for tasks of one CPU.
        if self.by_user or wanted == (self.now or 1):
            return
        self.now = wanted
        try:
            import threadpoolctl
        except ImportError:
            for name in _THREAD_VARIABLES:
                os.environ[name] = str(wanted)
            return
        threadpoolctl.threadpool_limits(limits=wanted)


class _Lines(io.TextIOBase):
    """A text stream whose whole lines go to the driver, with the task that printed them."""

    def __init__(self, client: _native.Client, stderr: bool) -> None:
        self.client = client
        self.to_stderr = stderr
        self.rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2 if self.to_stderr else 1

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.send(line)
        return len(text)

    def flush(self) -> None:
        if self.rest:
            rest, self.rest = self.rest, ""
            self.send(rest)

    def send(self, line: str) -> None:
        task = _state.task
        self.client.log(line, self.to_stderr, task.task_id if task else None, task.name if task else None)
