"""The `cluster` command on one machine."""

import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit import Machine, Role, wait_until
from testkit.processes import by_role


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Up:
    """A cluster that `cluster up` started on ports of its own."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.port, self.data_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.directory = Path(machine.environment["CLUSTER_DIR"])
        self.started = machine.cluster(
            "up", "--port", str(self.port), "--data-port", str(self.data_port), "--num-cpus", "2", "--json"
        )
        machine.environment["CLUSTER_ADDRESS"] = self.address

    @property
    def token(self) -> str:
        return (self.directory / "token").read_text().strip()

    def json(self, *arguments: str):
        return json.loads(self.machine.cluster(*arguments, "--json").stdout)


@pytest.fixture
def up(machine: Machine) -> Iterator[Up]:
    yield Up(machine)
    machine.cluster("down", check=False)


SQUARES = """
import concurrent_ml as cml
cml.init()

@cml.remote
def square(x):
    return x * x

print(sum(cml.get([square.remote(i) for i in range(100)])))
"""


def test_a_program_runs_on_a_cluster_that_was_started_before(up: Up):
    assert up.machine.program(SQUARES).stdout.strip() == "328350"
    assert up.machine.program(SQUARES).stdout.strip() == "328350"


def test_up_prints_the_address_and_the_command_to_join(machine: Machine):
    port = free_port()
    shown = machine.cluster("up", "--port", str(port), "--data-port", str(free_port())).stdout
    assert f"127.0.0.1:{port}" in shown
    assert re.search(rf"cluster up --join \S+:{port}", shown)
    machine.cluster("down")


def test_up_a_second_time_says_that_one_is_running(up: Up):
    done = up.machine.cluster("up", "--port", str(free_port()), check=False)
    assert done.returncode != 0
    assert re.search(r"(?i)already|running", done.stderr)


def test_a_port_that_is_taken_is_named(machine: Machine):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = machine.cluster("up", "--port", str(port), "--data-port", str(free_port()), check=False)
    assert done.returncode != 0
    assert str(port) in done.stderr
    assert "in use" in done.stderr
    machine.assert_nothing_left()


def test_status_and_lists_as_json(up: Up):
    (node,) = up.json("list", "nodes")
    assert node["state"] == "alive"
    assert up.json("status")["resources"]["total"]["CPU"] == 2
    assert up.json("list", "objects") == []


def test_finished_tasks_are_listed_by_name(up: Up):
    up.machine.program(SQUARES)
    tasks = up.json("list", "tasks")
    assert {task["name"] for task in tasks if task["state"] == "finished"} == {"square"}


def test_why_names_what_a_task_waits_for(up: Up):
    text = """
import concurrent_ml as cml
cml.init()
ref = cml.remote(resources={"unicorn": 1})(lambda: 1).remote()
print("submitted", flush=True)
cml.get(ref)
"""
    child = up.machine.popen(text)

    def waiting() -> list[str]:
        return [task["id"] for task in up.json("list", "tasks") if task["state"] == "pending"]

    (task,) = wait_until(waiting, 20, "the task is listed as pending")
    assert "unicorn" in up.machine.cluster("why", task).stdout
    child.kill()
    child.communicate()


def test_why_of_a_task_that_is_not_there_says_so(up: Up):
    done = up.machine.cluster("why", "job-ffff/99", check=False)
    assert done.returncode != 0
    assert "job-ffff/99" in done.stderr


def test_down_leaves_no_process_no_segment_and_no_socket(up: Up):
    text = """
import numpy as np
import concurrent_ml as cml
cml.init()
f = cml.remote(lambda x: x * 2)
print(cml.get(f.remote(np.ones(2_000_000))).sum())
"""
    up.machine.program(text)
    up.machine.cluster("down")
    up.machine.assert_nothing_left(deadline=2)


def test_down_while_tasks_run_leaves_nothing_either(up: Up):
    text = """
import subprocess, time
import concurrent_ml as cml
cml.init()

@cml.remote
def busy():
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    time.sleep(600)

cml.get(busy.remote())
"""
    child = up.machine.popen(text)
    wait_until(
        lambda: [p for p in up.machine.processes() if p.command[:1] == ("sleep",)],
        30,
        "the task runs a program",
    )
    up.machine.cluster("down")
    child.communicate(timeout=20)
    assert child.returncode != 0
    up.machine.assert_nothing_left()


def test_sigkill_of_the_worker_daemon_leaves_no_orphan(up: Up):
    text = """
import subprocess, time
import concurrent_ml as cml
cml.init()

@cml.remote
def busy():
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    time.sleep(600)

cml.get([busy.remote(), busy.remote()])
"""
    child = up.machine.popen(text)
    wait_until(
        lambda: len([p for p in up.machine.processes() if p.command[:1] == ("sleep",)]) == 2,
        30,
        "two tasks run a program each",
    )
    executors = by_role(up.directory, Role.EXECUTOR)
    assert len(executors) >= 2
    (daemon,) = by_role(up.directory, Role.WORKER)
    daemon.kill()
    wait_until(lambda: not [p for p in executors if p.alive()], 5, "the executors end with their daemon")
    wait_until(
        lambda: not [p for p in up.machine.processes() if p.command[:1] == ("sleep",)],
        5,
        "and so do the programs they started",
    )
    child.kill()
    child.communicate()


def test_down_twice_is_no_error(up: Up):
    up.machine.cluster("down")
    assert up.machine.cluster("down").returncode == 0


def test_the_token_is_for_its_owner_only(up: Up):
    assert (up.directory / "token").stat().st_mode & 0o777 == 0o600
    assert up.directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("token", ["", "wrong"])
def test_without_the_right_token_nothing_is_answered(up: Up, tmp_path: Path, token: str):
    strange = {"CLUSTER_TOKEN": token, "CLUSTER_DIR": str(tmp_path / "elsewhere")}
    begun = time.monotonic()
    done = up.machine.cluster("status", check=False, env=strange)
    assert done.returncode != 0
    assert "token" in done.stderr
    driver = up.machine.program(SQUARES, env=strange, check=False)
    assert driver.returncode == 1
    assert "token" in driver.stderr.splitlines()[-1]
    assert time.monotonic() - begun < 10


def test_the_token_can_come_from_a_file(up: Up, tmp_path: Path):
    (tmp_path / "secret").write_text(up.token + "\n")
    shown = up.machine.program(
        SQUARES,
        env={"CLUSTER_TOKEN_FILE": str(tmp_path / "secret"), "CLUSTER_DIR": str(tmp_path / "elsewhere")},
    )
    assert shown.stdout.strip() == "328350"


def test_nobody_at_the_address_is_told_within_five_seconds(machine: Machine):
    begun = time.monotonic()
    done = machine.cluster("status", "--address", "127.0.0.1:9", check=False, env={"CLUSTER_TOKEN": "any"})
    assert time.monotonic() - begun < 5
    assert done.returncode != 0
    assert "127.0.0.1:9" in done.stderr


def test_joining_nobody_is_told_within_five_seconds_and_leaves_nothing(machine: Machine):
    begun = time.monotonic()
    done = machine.cluster("up", "--join", "127.0.0.1:9", check=False, env={"CLUSTER_TOKEN": "any"})
    assert time.monotonic() - begun < 7
    assert done.returncode != 0
    assert "127.0.0.1:9" in done.stderr
    machine.assert_nothing_left()


GARBAGE = [
    pytest.param(os.urandom(65536), id="noise"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="http"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096, id="a broken http2 preface"),
    pytest.param(b"\xff\xff\xff\xff" * 64, id="a huge length"),
    pytest.param(b"\0\0\0\x10half", id="half a frame"),
    pytest.param(b"", id="nothing"),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_on_every_port_and_socket_is_survived(up: Up, garbage: bytes):
    doors: list[socket.socket] = [
        socket.create_connection(("127.0.0.1", port), timeout=5) for port in (up.port, up.data_port)
    ]
    sockets = [path for path in up.directory.rglob("*") if path.is_socket()]
    assert sockets, "a driver on this machine attaches by Unix socket"
    for path in sockets:
        door = socket.socket(socket.AF_UNIX)
        door.settimeout(5)
        door.connect(str(path))
        doors.append(door)
    for door in doors:
        with contextlib.suppress(OSError):  # hung up on already: right
            door.sendall(garbage)
    daemons = by_role(up.directory, Role.HEAD) + by_role(up.directory, Role.WORKER)
    assert len(daemons) == 2
    assert up.machine.program(SQUARES).stdout.strip() == "328350"
    for door in doors:
        door.close()
    assert up.machine.program(SQUARES).stdout.strip() == "328350"
    assert all(daemon.alive() for daemon in daemons)


def test_unknown_keys_in_the_config_file_are_refused_with_the_nearest_name(machine: Machine, tmp_path: Path):
    (tmp_path / "cluster.toml").write_text("num_cpu = 2\n")
    done = machine.cluster("up", "--config", str(tmp_path / "cluster.toml"), check=False)
    assert done.returncode != 0
    assert "num_cpu" in done.stderr
    assert "num_cpus" in done.stderr
    machine.assert_nothing_left()


def test_flags_win_over_environment_and_environment_over_the_file(machine: Machine, tmp_path: Path):
    (tmp_path / "cluster.toml").write_text(f"num_cpus = 3\ndata_port = {free_port()}\nport = 1\n")
    port = free_port()
    arguments = ["up", "--config", str(tmp_path / "cluster.toml"), "--port", str(port)]
    machine.cluster(*arguments, env={"CLUSTER_NUM_CPUS": "5", "CLUSTER_PORT": "2"})
    status = json.loads(machine.cluster("status", "--address", f"127.0.0.1:{port}", "--json").stdout)
    assert status["resources"]["total"]["CPU"] == 5
    machine.cluster("down")


@pytest.mark.parametrize("option", ["--num-cpus=-1", "--num-cpus=nan", "--memory=lots", "--port=99999"])
def test_up_refuses_values_that_make_no_sense(machine: Machine, option: str):
    done = machine.cluster("up", option, check=False)
    assert done.returncode == 2
    assert option.partition("=")[0] in done.stderr
    machine.assert_nothing_left()


@pytest.mark.parametrize("command", [[], ["up"], ["down"], ["status"], ["list"], ["why"]])
def test_help_shows_examples(machine: Machine, command: list[str]):
    shown = machine.cluster(*command, "--help").stdout
    assert re.search(r"(?i)example", shown)


def test_help_documents_the_exit_codes(machine: Machine):
    assert re.search(r"(?i)exit (code|status)", machine.cluster("--help").stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_know_the_commands(machine: Machine, shell: str):
    shown = machine.cluster("completions", shell).stdout
    assert "status" in shown
    assert "why" in shown
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=shown, text=True, check=True)
