"""One host: a network namespace, an address, a run directory, and what runs there."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from testkit.permissions import sbin_path
from testkit.processes import Process, Role, all_processes, by_role, namespace_inode
from testkit.remains import MARK
from testkit.waiting import wait_until

HEAD_PORT = 8264


class CommandFailed(AssertionError):
    """A command ended with an error, or not in time; the message holds what it printed."""


class Host:
    """Made by `Network.host`."""

    def __init__(self, name: str, address: str, namespace: str, directory: Path, run: str) -> None:
        self.name = name
        self.address = address
        self.namespace = namespace
        self.directory = directory
        self._run_mark = run
        self._started: list[subprocess.Popen[str]] = []
        self._head: Host | None = None

    def __repr__(self) -> str:
        return f"<host {self.name} {self.address}>"

    # What runs here.

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a login on this host would have: the package's commands, this host's run directory, no more."""
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("CLUSTER_", "PYTEST_", "COV_"))
        }
        bin_directory = Path(sys.executable).parent
        return {
            **inherited,
            "PATH": f"{bin_directory}:{sbin_path()}",
            "CLUSTER_DIR": str(self.directory),
            "PYTHONUNBUFFERED": "1",
            MARK: self._run_mark,
            **(extra or {}),
        }

    def popen(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.PIPE,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Starts a command on this host; the network's end is its end too.

        Its process id is the command's own, since nsenter becomes the command. The namespace of files stays the
        machine's (``ip netns exec`` would mount a new /sys, without the cgroups in it).
        """
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.namespace}", *map(str, command)],
            env=self.environment(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            **options,
        )
        self._started.append(process)
        return process

    def run(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        check: bool = True,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on this host to its end; unless ``check`` is false, a failure raises what it printed."""
        process = self.popen(command, env, **options)
        words = " ".join(map(str, command))[:200]
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            process.kill()
            out, err = process.communicate()
            raise CommandFailed(
                f"on {self.name}, after {timeout:g} s not done: {words}\n{out}\n{err}"
            ) from error
        finally:
            self._started.remove(process)
        if check and process.returncode != 0:
            raise CommandFailed(f"on {self.name}, status {process.returncode}: {words}\n{out}\n{err}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def python(
        self,
        script: str | Path,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        check: bool = True,
        arguments: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Runs a Python program here, given as a file (`Path`) or as its text (`str`), with this test's interpreter.

        Once this host is part of a cluster, the program's ``CLUSTER_ADDRESS`` is that cluster's.
        """
        command = [sys.executable, self._program(script), *arguments]
        return self.run(command, {**self.cluster_environment(), **(env or {})}, timeout, check)

    def popen_python(self, script: str | Path, arguments: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Starts a Python program as `python` does, without waiting for it; its standard input is a pipe."""
        command = [sys.executable, self._program(script), *arguments]
        return self.popen(command, self.cluster_environment(), stdin=subprocess.PIPE)

    def _program(self, script: str | Path) -> Path:
        if isinstance(script, Path):
            return script
        # A file and not `-c`, so that tracebacks show the lines and `inspect` finds the source.
        path = self.directory / f"program-{len(list(self.directory.glob('program-*')))}.py"
        path.write_text(script)
        return path

    # The cluster.

    @property
    def head_address(self) -> str:
        """Where the head of this host's cluster listens."""
        return f"{(self._head or self).address}:{HEAD_PORT}"

    @property
    def token(self) -> str:
        """The token of this host's cluster, as `cluster up` made it on the head's host."""
        return ((self._head or self).directory / "token").read_text().strip()

    def cluster_environment(self) -> dict[str, str]:
        """What a program on this host needs to reach the cluster; nothing before there is one."""
        if not ((self._head or self).directory / "token").exists():
            return {}
        return {"CLUSTER_ADDRESS": self.head_address, "CLUSTER_TOKEN": self.token}

    def join_cluster_of(self, other: "Host") -> None:
        """Makes programs of this host drivers of another host's cluster, without a daemon here."""
        self._head = other

    def cluster(
        self, *arguments: str, timeout: float = 30, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``cluster ARGUMENTS`` on this host."""
        return self.run(
            ["cluster", *arguments], {**self.cluster_environment(), **(env or {})}, timeout, check
        )

    def cluster_json(self, *arguments: str, timeout: float = 30) -> Any:
        """Runs ``cluster ARGUMENTS --json`` and returns what it printed."""
        return json.loads(self.cluster(*arguments, "--json", timeout=timeout).stdout)

    def cluster_up(self, timeout: float = 30, env: Mapping[str, str] | None = None, **flags: Any) -> str:
        """Starts head and worker daemon here and returns the head's address.

        A flag is an option of ``cluster up``: ``num_cpus=2``, ``object_store_memory="256MiB"``,
        ``resources={"tpu": 1}``, ``label={"zone": "a"}``.
        """
        self._head = self
        self.run(["cluster", "up", "--host", self.address, *_options(flags), "--json"], env, timeout)
        return self.head_address

    def cluster_join(
        self, head: "Host", timeout: float = 30, env: Mapping[str, str] | None = None, **flags: Any
    ) -> None:
        """Starts a worker daemon here that joins the cluster of ``head``; flags as for `cluster_up`."""
        self._head = head
        command = [
            "cluster",
            "up",
            "--join",
            self.head_address,
            "--host",
            self.address,
            *_options(flags),
            "--json",
        ]
        self.run(command, {"CLUSTER_TOKEN": self.token, **(env or {})}, timeout)

    def down(self, timeout: float = 30) -> None:
        """``cluster down``: ends the daemons of this host."""
        self.run(["cluster", "down"], timeout=timeout)

    # Its processes.

    def processes(self, role: Role | None = None) -> list[Process]:
        """The processes on this host: all of them, or those of one role of its cluster."""
        if role is not None:
            return by_role(self.directory, role)
        inode = namespace_inode(Path(f"/run/netns/{self.namespace}"))
        return [process for process in all_processes() if inode and process.network_namespace() == inode]

    def process(self, role: Role, deadline: float = 10) -> Process:
        """The first process of a role, awaited if need be."""
        return wait_until(lambda: self.processes(role), deadline, f"a {role.value} process on {self.name}")[0]

    def kill(self, role: Role) -> list[Process]:
        """SIGKILL to every process of a role; returns them once they are gone."""
        return self._each(role, Process.kill)

    def pause(self, role: Role) -> list[Process]:
        """SIGSTOP to every process of a role."""
        return self._each(role, Process.pause)

    def resume(self, role: Role) -> list[Process]:
        """SIGCONT to every process of a role."""
        return self._each(role, Process.resume)

    def _each(self, role: Role, action: Any) -> list[Process]:
        found = self.processes(role)
        if not found:
            raise LookupError(f"no {role.value} process on {self.name}")
        for process in found:
            action(process)
        return found

    def kill_everything(self) -> None:
        """SIGKILL to whatever runs on this host, until nothing does."""

        def none_left() -> bool:
            for process in self.processes():
                process.kill()
            for process in self._started:
                process.poll()  # reaps our own children
            return not self.processes()

        wait_until(none_left, 10, f"every process on {self.name} ends")
        for process in self._started:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait(timeout=10)
        self._started.clear()


def _options(flags: Mapping[str, Any]) -> list[str]:
    options: list[str] = []
    for key, value in flags.items():
        option = "--" + key.replace("_", "-")
        if value is True:
            options.append(option)
        elif key == "label":
            for name, label in value.items():
                options += [option, f"{name}={label}"]
        elif isinstance(value, Mapping):
            options += [option, json.dumps(value)]
        elif value is not None and value is not False:
            options += [option, str(value)]
    return options
