"""A cluster inside this program: one child process that ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .exceptions import ClusterConnectionError

START_TIMEOUT = 20.0


def find_binary() -> str:
    """The `cluster` command that came with this package."""
    named = os.environ.get("CLUSTER_BINARY")
    if named:
        if not os.access(named, os.X_OK):
            raise ClusterConnectionError(f"CLUSTER_BINARY is {named}, and there is no program of that name")
        return named
    places = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    for scheme in ("posix_user", "posix_prefix"):
        if scheme in sysconfig.get_scheme_names():
            places.append(sysconfig.get_path("scripts", scheme))
    # `pip install --target DIR` puts commands into DIR/bin.
    places.append(str(Path(__file__).parent.parent / "bin"))
    for place in places:
        path = os.path.join(place, "cluster")
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("cluster")
    if found:
        return found
    raise ClusterConnectionError(
        f"the `cluster` command is missing: looked in {', '.join(dict.fromkeys(places))} and PATH. "
        "Reinstall concurrent-ml, or name the command in CLUSTER_BINARY"
    )


# Settings of the environment that mean an embedded cluster too; the others describe some cluster elsewhere.
FOR_EMBEDDED = ("CLUSTER_LOG", "CLUSTER_MEMORY_THRESHOLD", "CLUSTER_DURABLE")


class Embedded:
    """The child process: head, daemon and store. It ends when this program does, however that happens."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        binary = find_binary()
        self.dir = tempfile.mkdtemp(prefix="concurrent-ml-")
        command = [binary, "embedded", "--dir", self.dir, "--python", sys.executable]
        for name in ("num_cpus", "num_gpus", "memory", "object_store_memory"):
            value = options.get(name)
            if value is not None:
                number = int(value) if name in ("memory", "object_store_memory") else value
                command += ["--" + name.replace("_", "-"), str(number)]
        if options.get("durable"):
            command += ["--durable", str(options["durable"])]
        if options.get("resources"):
            command += ["--resources", json.dumps(options["resources"])]
        for name, value in (options.get("labels") or {}).items():
            command += ["--label", f"{name}={value}"]
        self.token = secrets.token_hex(16)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("CLUSTER_") or name in FOR_EMBEDDED
        }
        environment["CLUSTER_TOKEN"] = self.token
        self._log = open(os.path.join(self.dir, "log"), "w+b")  # noqa: SIM115 - it stays open as long as the child lives
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the program
        )
        try:
            ready = self._await_ready()
        except BaseException:
            self.end()
            raise
        self.socket: str = ready["socket"]
        self.token = ready.get("token") or self.token
        # For other programs of this user: the directory is closed to everybody else.
        Path(self.dir, "cluster.json").write_text(json.dumps({"node_socket": self.socket}))
        Path(self.dir, "token").write_text(self.token)
        self.address = f"unix:{self.dir}"

    def _await_ready(self) -> dict[str, Any]:
        out = self._process.stdout
        assert out is not None
        deadline = time.monotonic() + START_TIMEOUT
        line = b""
        poll = select.poll()
        poll.register(out.fileno(), select.POLLIN | select.POLLHUP)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0, (deadline - time.monotonic()) * 1000)):
                raise ClusterConnectionError(
                    f"the embedded cluster did not start within {START_TIMEOUT:.0f} s. {self._said()}"
                )
            more = os.read(out.fileno(), 4096)
            if not more:
                # It closes this before it says why.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(2)
                raise ClusterConnectionError(f"the embedded cluster could not start. {self._said()}")
            line += more
        return json.loads(line)

    def _said(self) -> str:
        self._log.flush()
        text = Path(self._log.name).read_text(errors="replace").strip()
        return f"It said: {text[-2000:]}" if text else "It said nothing."

    def disown(self) -> None:
        """In a forked child of the program: the cluster is its parent's and must not outlive that."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.returncode = 0  # no child of this process

    def end(self) -> None:
        """Ends the child and waits for it; nothing is left."""
        process = self._process
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._log.close()
        shutil.rmtree(self.dir, ignore_errors=True)
