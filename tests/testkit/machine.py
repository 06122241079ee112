"""This machine as one user has it: a run directory, and the programs and commands that are run there."""

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Protocol

from testkit.processes import Process
from testkit.remains import MARK, assert_nothing_left, marked


class RunProgram(Protocol):
    """The type of `Machine.program`."""

    def __call__(
        self, text: str | Path, env: dict[str, str] | None = None, timeout: float = 45, check: bool = True
    ) -> subprocess.CompletedProcess[str]: ...


class Machine:
    """For what needs no second host; see `Network` for what does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = uuid.uuid4().hex
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("CLUSTER_", "PYTEST_"))
        }
        self.environment = {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CLUSTER_DIR": str(directory / "run"),
            "PYTHONUNBUFFERED": "1",
            MARK: self.run,
        }

    def popen(self, text: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Starts a Python program, given as a file or as its text."""
        path = text
        if isinstance(text, str):
            path = self.directory / f"program_{uuid.uuid4().hex[:6]}.py"
            path.write_text(text)
        return subprocess.Popen(
            [sys.executable, path],
            env={**self.environment, **(env or {})},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def program(
        self, text: str | Path, env: dict[str, str] | None = None, timeout: float = 45, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a Python program to its end."""
        child = self.popen(text, env)
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            child.kill()
            out, err = child.communicate()
            raise AssertionError(f"no end after {timeout:g} s:\n{out}\n{err}") from error
        assert child.returncode == 0 or not check, f"status {child.returncode}:\n{out}\n{err}"
        return subprocess.CompletedProcess([], child.returncode, out, err)

    def cluster(
        self, *arguments: str, check: bool = True, timeout: float = 30, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``cluster ARGUMENTS``."""
        done = subprocess.run(
            ["cluster", *arguments],
            env={**self.environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0 or not check, f"status {done.returncode}: {done.stdout}\n{done.stderr}"
        return done

    def processes(self) -> list[Process]:
        """Everything of this run that lives."""
        return marked(self.run)

    def assert_nothing_left(self, deadline: float = 5) -> None:
        """Fails unless every process, segment and socket of this run is gone."""
        assert_nothing_left(self.run, [self.directory], deadline=deadline)

    def end(self) -> None:
        """Whatever a failed test left."""
        for process in self.processes():
            process.kill()
