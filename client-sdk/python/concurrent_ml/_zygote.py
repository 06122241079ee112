"""The process that executors are forked from.

The daemon starts one per interpreter. It imports what every executor needs, once, and then forks executors
in milliseconds that share its memory. It never runs user code, never computes, and has one thread: what a
fork may safely copy (rule E1).

It talks to its daemon over a sequenced-packet socket, given to it as file descriptor 0; each message is one
JSON object. From the daemon: `{"executor", "env", "unset", "cwd", "sys_path", "socket", "token"}` with three
descriptors (the page shared with the executor, and the pipes for its stdout and stderr). To the daemon:
`{"ready"}` or `{"failed"}` once; then `{"forked", "pid"}` with a pidfd, `{"unforked", "error"}`, and
`{"exited", "pid", "status", "user", "system", "max_rss"}`.

When the socket ends, the daemon is gone: the zygote kills all that descends from it, then ends (rule E2).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
SFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
SIGNALFD_RECORD = 128
MESSAGE_MAX = 1 << 18

# Libraries size their thread pools when they are imported; more than one thread must not exist before a fork.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# What each was before this process set it; executors see the user's own setting again, if there was one.
user_threads: dict[str, str | None] = {}
# In an executor: whether its user chose the sizes, for all programs or for this job.
threads_set_by_user = False

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


class Zygote:
    """One thread, one command socket, and the executors it has forked."""

    def __init__(self, commands: socket.socket, main: str) -> None:
        self.commands = commands
        self.main = main
        self.pid = os.getpid()
        self.executors: dict[int, int] = {}  # pid -> executor
        self.children = _signalfd(signal.SIGCHLD)

    def run(self) -> None:
        """Serve until the daemon's end of the socket is closed."""
        poll = select.poll()
        poll.register(self.commands, select.POLLIN)
        poll.register(self.children, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.children:
                    self.reap()
                elif not self.command():
                    return

    def command(self) -> bool:
        """Carry out one command; false when there will be none any more."""
        try:
            data, fds, _, _ = socket.recv_fds(self.commands, MESSAGE_MAX, 3)
        except InterruptedError:
            return True
        except OSError:
            return False
        if not data:
            return False
        try:
            self.fork(json.loads(data), fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def fork(self, order: dict, fds: list[int]) -> None:
        """Start an executor."""
        try:
            pid = os.fork()
        except OSError as error:
            self.say({"unforked": order["executor"], "error": f"fork failed: {error.strerror}"})
            return
        if pid == 0:
            become_executor(self.pid, self.main, order, fds)
        self.executors[pid] = order["executor"]
        # Before it can have been reaped, so that it names this process for ever.
        pidfd = os.pidfd_open(pid)
        try:
            self.say({"forked": order["executor"], "pid": pid}, [pidfd])
        finally:
            os.close(pidfd)

    def reap(self) -> None:
        """Report every executor that ended, and what it left running ends with it."""
        while True:
            try:
                os.read(self.children, 64 * SIGNALFD_RECORD)
            except BlockingIOError:
                break
        while True:
            # Looked at before it is reaped: until then nobody else can get its process group's number.
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            executor = self.executors.pop(ended.si_pid, None)
            if executor is not None:
                _kill_group(ended.si_pid)
            pid, status, usage = os.wait4(ended.si_pid, 0)
            if executor is not None:
                self.say(
                    {
                        "exited": executor,
                        "pid": pid,
                        "status": status,
                        "user": usage.ru_utime,
                        "system": usage.ru_stime,
                        "max_rss": usage.ru_maxrss * 1024,
                    }
                )

    def say(self, message: dict, fds: list[int] | None = None) -> None:
        """Tell the daemon; if it is gone, the command socket says so soon."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.commands, [json.dumps(message).encode()], fds or [])


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _signalfd(number: int) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    mask = (ctypes.c_ulong * (128 // ctypes.sizeof(ctypes.c_ulong)))()
    _libc.sigemptyset(mask)
    _libc.sigaddset(mask, ctypes.c_int(number))
    fd = _libc.signalfd(-1, mask, SFD_FLAGS)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd


def become_executor(parent: int, main: str, order: dict, fds: list[int]) -> NoReturn:
    """In the forked child: undo what a fork copied, then run the executor until it ends."""
    code = 1
    try:
        _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)
        # A group of its own: what it starts can be ended with it, and a Ctrl-C at a terminal is not for it.
        os.setpgid(0, 0)
        _prctl(PR_SET_NAME, b"cml-executor")
        _reset_signals()
        page = _take_descriptors(fds)
        _reset_python(order)
        code = _call(main, order, page)
    except BaseException:  # nothing may return into the zygote's loop
        import traceback

        traceback.print_exc(file=sys.__stderr__)
    finally:
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):
                pass
        os._exit(code)


def _call(main: str, order: dict, page: int) -> int:
    import atexit
    import importlib

    module, _, function = main.partition(":")
    try:
        getattr(importlib.import_module(module), function)(
            order["socket"], order["executor"], page, order["token"]
        )
        code = 0
    except SystemExit as leaving:
        if leaving.code is not None and not isinstance(leaving.code, int):
            print(leaving.code, file=sys.__stderr__)
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    atexit._run_exitfuncs()  # what user code registered
    return code & 0xFF


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        try:
            if signal.getsignal(number) not in {signal.SIG_DFL, None}:
                signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            pass  # the C library's own
    # Cancellation is by SIGINT; until the executor can take it, there is nothing to cancel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _take_descriptors(fds: list[int]) -> int:
    """Keep what was sent for this executor, as descriptors 0 to 3, and nothing else."""
    page, stdout, stderr = (os.dup(fd) for fd in fds)
    null = os.open(os.devnull, os.O_RDONLY)
    # Each is a copy that lies above 3: the zygote holds 0 to 3 for itself.
    for source, target in ((null, 0), (stdout, 1), (stderr, 2), (page, 3)):
        os.dup2(source, target, inheritable=target != 3)
    os.closerange(4, 1 << 20)
    return 3


def _reset_python(order: dict) -> None:
    import random
    import types

    gc.enable()
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    asyncio_events = sys.modules.get("asyncio.events")
    if asyncio_events is not None:
        asyncio_events._set_running_loop(None)
    for name, value in user_threads.items():
        if value is not None:
            os.environ[name] = value
    global threads_set_by_user
    threads_set_by_user = any(user_threads.values()) or any(name in order["env"] for name in THREAD_VARIABLES)
    for name in order["unset"]:
        os.environ.pop(name, None)
    os.environ.update(order["env"])
    with contextlib.suppress(OSError):  # the driver's directory need not exist on this machine
        os.chdir(order["cwd"])
    known = set(sys.path)
    sys.path[:0] = [entry for entry in order["sys_path"] if entry not in known]
    sys.argv = [""]
    # This module by its own name: it was run as the script, and whoever imports it should see this state.
    sys.modules["concurrent_ml._zygote"] = sys.modules["__main__"]
    # User code must not find the zygote when it looks for its own script.
    sys.modules["__main__"] = types.ModuleType("__main__")


def _children() -> set[int]:
    """Processes whose parent this is."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            return {int(pid) for pid in children.read().split()}
    except OSError:
        pass  # a kernel without that file
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    parent = stat.read().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if int(parent) == os.getpid():
                found.add(int(entry))
    return found


def kill_descendants() -> None:
    """Until there is none: as a subreaper, this process inherits the children of those it kills."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.wait4(-1, 0)
        except ChildProcessError:
            return


def _import_all(modules: list[str]) -> str | None:
    """Import what executors need; a sentence if that cannot be forked from."""
    import importlib

    for variable in THREAD_VARIABLES:
        user_threads[variable] = os.environ.get(variable)
        os.environ[variable] = "1"
    for module in modules:
        importlib.import_module(module)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        names = ", ".join(modules)
        return f"importing {names} started {threads - 1} threads; a process with threads cannot be forked"
    return None


def run(main: str, preload: list[str]) -> None:
    """Be a zygote; returns when the daemon is gone and nothing is left."""
    # Descriptors 0 to 3 stay taken, so that those sent for an executor lie above them.
    commands = socket.socket(fileno=fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10))
    null = os.open(os.devnull, os.O_RDWR)
    for taken in {0, 3} - {null}:
        os.dup2(null, taken, inheritable=taken == 0)
    if null != 3:
        os.close(null)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _prctl(PR_SET_NAME, b"cml-zygote")
    zygote = Zygote(commands, main)
    try:
        problem = _import_all([main.partition(":")[0], *preload])
    except Exception as error:  # whatever a module does when it is imported
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        zygote.say({"failed": problem})
        sys.exit(1)
    # From here on there may be descendants, which this process outlives its daemon to kill.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prctl(PR_SET_PDEATHSIG, 0)
    gc.collect()
    gc.disable()
    gc.freeze()
    zygote.say({"ready": f"{sys.version_info.major}.{sys.version_info.minor}"})
    try:
        zygote.run()
    finally:
        kill_descendants()


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
