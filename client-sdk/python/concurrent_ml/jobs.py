"""Programs that a cluster runs by itself, from Python.

>>> from concurrent_ml.jobs import JobClient
>>> jobs = JobClient("head:8264")                                                   # doctest: +SKIP
>>> job = jobs.submit(["python", "train.py"], working_dir=".", requirements=["scikit-learn"])  # doctest: +SKIP
>>> for line in jobs.follow(job.id):                                                # doctest: +SKIP
...     print(line, end="")
>>> jobs.wait(job.id).state                                                         # doctest: +SKIP
'succeeded'

It says what the `cluster` command says, which must be installed here too (it comes with this package).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import _state
from ._embedded import find_binary
from .exceptions import ClusterConnectionError, ClusterError, ConnectionRefusedByClusterError, GetTimeoutError

__all__ = ["Attempt", "Job", "JobClient", "JobError"]

ENDED = ("succeeded", "failed", "stopped")


class JobError(ClusterError):
    """Something is wrong with a job, or with what was asked about one."""


@dataclass(frozen=True)
class Attempt:
    """One try of a job. Times are seconds of Unix time; 0: not yet, or nobody knows."""

    number: int
    hostname: str
    started: float
    ended: float
    exit_code: int | None
    error: str


@dataclass(frozen=True)
class Job:
    """A job, as it was when somebody asked."""

    id: str
    name: str
    entrypoint: tuple[str, ...]
    state: str
    """`pending`, `preparing`, `running`, `stopping`, `succeeded`, `failed` or `stopped`."""
    message: str
    """What it waits for, or why it failed."""
    attempts: tuple[Attempt, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    submitter: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED

    @property
    def exit_code(self) -> int | None:
        """The program's, of the last attempt; as a shell has it: 128 and the signal's number where one ended it."""
        return self.attempts[-1].exit_code if self.attempts else None


class JobClient:
    """Submits programs to the cluster at `address` (`host:port`), and looks after them.

    Without an address: that of `CLUSTER_ADDRESS`, or the cluster of this machine.
    """

    def __init__(self, address: str | None = None, *, token: str | None = None) -> None:
        if address is None and not os.environ.get("CLUSTER_ADDRESS"):
            known = _state.address
            address = known if known and not known.startswith("unix:") else None
        self._place = ["--address", address] if address else []
        self._environment = {**os.environ, **({"CLUSTER_TOKEN": token} if token else {})}

    def submit(
        self,
        entrypoint: str | Sequence[str],
        *,
        name: str | None = None,
        working_dir: str | Path | None = None,
        env_vars: Mapping[str, str] | None = None,
        requirements: str | Path | Sequence[str] | None = None,
        py_modules: Sequence[str | Path] = (),
        preload: Sequence[str] = (),
        executable: str | Path | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        timeout: str | float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Job:
        """Has the cluster run a program: a list of words, or a line as a shell would split it.

        The meanings are those of `cluster submit --help`.
        """
        words = shlex.split(entrypoint) if isinstance(entrypoint, str) else [str(word) for word in entrypoint]
        if not words:
            raise ValueError("entrypoint is empty; it must be a program and its arguments")
        flags: list[str] = []

        def flag(option: str, value: Any) -> None:
            if value is not None:
                flags.extend([f"--{option}={value}"])

        flag("name", name)
        flag("working-dir", working_dir)
        flag("executable", executable)
        flag("num-cpus", num_cpus)
        flag("num-gpus", num_gpus)
        flag("memory", None if memory is None else int(memory))
        flag("resources", json.dumps(dict(resources)) if resources else None)
        flag("retries", retries)
        flag("timeout", f"{timeout}s" if isinstance(timeout, (int, float)) else timeout)
        for key, value in (env_vars or {}).items():
            flag("env", f"{key}={value}")
        for key, value in (metadata or {}).items():
            flag("metadata", f"{key}={value}")
        single = isinstance(requirements, (str, Path))
        for one in [requirements] if single else requirements or ():
            flag("requirements", one)
        for module in py_modules:
            flag("py-module", module)
        for module in preload:
            flag("preload", module)
        return _job(self._ask("submit", *flags, after=["--", *words]))

    def get(self, job: str) -> Job:
        """A job, by its id, the beginning of that, or its name."""
        return _job(self._ask("job", "--", job))

    def list(self, limit: int = 100) -> list[Job]:
        """Submitted jobs, newest first."""
        return [_job(view) for view in self._ask("jobs", f"--limit={limit}")]

    def stop(self, job: str) -> Job:
        """Ends a job and all that it started: asks first, and kills after five seconds. Returns when it has ended."""
        return _job(self._ask("stop", "--", job))

    def delete(self, job: str) -> Job:
        """Forgets a job that has ended, and its log."""
        return _job(self._ask("delete", "--", job))

    def wait(self, job: str, timeout: float | None = None) -> Job:
        """Waits until it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.01
        while True:
            view = self.get(job)
            if view.has_ended:
                return view
            if deadline is not None and time.monotonic() > deadline:
                raise GetTimeoutError(f"job {view.id} is still {view.state} after {timeout:g} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def logs(self, job: str, *, attempt: int | None = None, tail: int | None = None) -> str:
        """What it has printed."""
        return self._run("logs", *_log_flags(attempt, tail), "--", job)

    def follow(self, job: str, *, attempt: int | None = None, tail: int | None = None) -> Iterator[str]:
        """Lines that it prints, as they come, until it has ended."""
        command = [find_binary(), "logs", "--follow", *self._place, *_log_flags(attempt, tail), "--", job]
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                yield from process.stdout
                if process.wait() != 0:
                    raise _error(process.returncode, process.stderr.read())
            finally:
                process.kill()

    def _ask(self, what: str, *arguments: str, after: Sequence[str] = ()) -> Any:
        return json.loads(self._run(what, "--json", *arguments, *after))

    def _run(self, what: str, *arguments: str) -> str:
        done = subprocess.run(
            [find_binary(), what, *self._place, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise _error(done.returncode, done.stderr)
        return done.stdout


def _log_flags(attempt: int | None, tail: int | None) -> list[str]:
    given = {"attempt": attempt, "tail": tail}
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def _error(code: int, said: str) -> Exception:
    reason = said.strip().removeprefix("error: ") or f"the cluster command ended with exit code {code}"
    if code == 2:
        return ValueError(reason)
    kinds: dict[int, type[Exception]] = {3: ClusterConnectionError, 4: ConnectionRefusedByClusterError}
    return kinds.get(code, JobError)(reason)


def _job(view: Mapping[str, Any]) -> Job:
    spec = view["spec"]
    attempts = [
        Attempt(
            number=one["number"],
            hostname=one["hostname"],
            started=one["started_ms"] / 1000,
            ended=one["ended_ms"] / 1000,
            exit_code=one.get("exit_code"),
            error=one["error"],
        )
        for one in view["attempts"]
    ]
    return Job(
        id=view["job"],
        name=spec["name"],
        entrypoint=tuple(spec["entrypoint"]),
        state=view["state"],
        message=view["message"],
        attempts=tuple(attempts),
        metadata=dict(spec["metadata"]),
        submitter=spec["submitter"],
    )
