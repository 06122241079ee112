"""What is measured of submitted jobs: how long a small one takes, and what files cost the second time."""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Figures = dict[str, float]

PROGRAMS = Path(__file__).resolve().parents[2] / ".venv/bin"

SUBMIT = "job: submit of `true` to finished"
SENT_AGAIN = "job: 1 GB working directory sent again after one changed line"
FIRST_OF_ENVIRONMENT = "task: first in a new environment of 5 packages, uv's cache warm"
IN_ENVIRONMENT = "task: in an environment that is there, beyond one without"
TIMES = 9


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which the command finds a cluster of two CPUs on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_")}
        environment = {
            **inherited,
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "CLUSTER_DIR": f"{folder}/run",
            "XDG_CACHE_HOME": f"{folder}/cache",
        }
        ports = ["--port", "0", "--data-port", "0", "--gateway-port", "0"]
        command = ["cluster", "up", *ports, "--num-cpus", "2", "--json"]
        up = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        try:
            yield {**environment, "CLUSTER_ADDRESS": json.loads(up.stdout)["address"]}
        finally:
            subprocess.run(["cluster", "down"], env=environment, check=False, capture_output=True)


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """How long a command takes that must end well."""
    begun = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - begun


def submit() -> Figures:
    """With the command's own start, on a cluster that does nothing else."""
    with cluster() as environment:
        command = ["cluster", "submit", "--wait", "--", "true"]
        seconds(command, environment)
        return {SUBMIT: 1000 * statistics.median(seconds(command, environment) for _ in range(TIMES))}


def sent_again() -> Figures:
    """A thousand files of 1 MB that differ; then a line more in one."""
    with cluster() as environment, tempfile.TemporaryDirectory() as folder:
        for number in range(1000):
            Path(folder, f"part{number}.dat").write_bytes(os.urandom(1_000_000))
        program = Path(folder, "main.py")
        program.write_text("print(1)\n")
        command = ["cluster", "submit", "--working-dir", folder, "--", "true"]
        seconds(command, environment)
        took = []
        for _ in range(3):
            with program.open("a") as file:
                file.write("# one line more\n")
            took.append(seconds(command, environment))
        return {SENT_AGAIN: statistics.median(took)}


ENVIRONMENTS = """
import json, statistics, sys, time
import concurrent_ml as cml
cml.init()

@cml.remote
def nothing():
    pass

def took(function):
    begun = time.perf_counter()
    cml.get(function.remote())
    return time.perf_counter() - begun

packages = ["attrs", "click", "idna", "toolz", "wrapt"]
warm = {"uv": packages, "env_vars": {"ROUND": "warm"}}
cml.get(nothing.options(runtime_env={"uv": [*packages, "six"]}).remote())
inside = nothing.options(runtime_env=warm)
took(nothing)
first = took(inside)
apart = statistics.median(took(inside) for _ in range(200)) - statistics.median(took(nothing) for _ in range(200))
print(json.dumps([first, 1000 * apart]))
"""


def environments() -> Figures:
    """Packages that are small, so that their download says nothing; before it a similar set fills uv's cache."""
    with cluster() as environment, tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        program.write_text(ENVIRONMENTS)
        done = subprocess.run(
            ["python", str(program)], env=environment, check=True, capture_output=True, text=True
        )
        first, apart = json.loads(done.stdout.splitlines()[-1])
        return {FIRST_OF_ENVIRONMENT: first, IN_ENVIRONMENT: apart}
