"""Runtime environments: files, packages, modules and interpreters that jobs, tasks and actors find around them."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit import Machine, Network

pytestmark = pytest.mark.timeout(180)

BESIDE = Path(sys.executable).parent / "uv"
needs_uv = pytest.mark.skipif(not (BESIDE.exists() or shutil.which("uv")), reason="there is no uv here")


@pytest.fixture
def cluster(machine: Machine) -> Iterator[Machine]:
    ports = ["--port", "0", "--data-port", "0", "--gateway-port", "0"]
    up = json.loads(machine.cluster("up", *ports, "--num-cpus", "2", "--json").stdout)
    machine.environment["CLUSTER_ADDRESS"] = up["address"]
    yield machine
    machine.cluster("down", check=False)
    machine.assert_nothing_left()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A program of several files, with some that it does not need."""
    root = tmp_path / "project"
    (root / "model").mkdir(parents=True)
    (root / "model/__init__.py").write_text("WEIGHT = 3\n")
    (root / "data.txt").write_text("4")
    (root / ".gitignore").write_text("*.bin\n")
    (root / "checkpoint.bin").write_bytes(b"x" * 1000)
    (root / "main.py").write_text("""
import os
import concurrent_ml as cml
from model import WEIGHT

cml.init()

@cml.remote
def inner():
    return int(open("data.txt").read())

@cml.remote
def outer():
    import model
    return model.WEIGHT * cml.get(inner.remote())

print(cml.get(outer.remote()), WEIGHT, sorted(os.listdir()))
""")
    (root / "run.sh").write_text("#!/bin/sh\necho $((WEIGHT + 1)) $(cat data.txt)\n")
    (root / "run.sh").chmod(0o755)
    return root


def test_a_working_directory_goes_along_without_what_git_ignores(cluster: Machine, project: Path):
    done = cluster.cluster("run", "--working-dir", str(project), "--", "python", "main.py", timeout=60)
    assert done.stdout.splitlines()[-1] == ("12 3 ['.gitignore', 'data.txt', 'main.py', 'model', 'run.sh']")
    done = cluster.cluster("run", "--working-dir", str(project), "--env", "WEIGHT=6", "--", "./run.sh")
    assert done.stdout.splitlines()[-1] == "7 4"


def test_a_working_directory_that_cannot_be_sent_says_why(cluster: Machine, project: Path):
    missing = cluster.cluster("run", "--working-dir", str(project / "none"), "--", "true", check=False)
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
    (project / "weights.dat").write_bytes(b"x" * (3 << 20))
    large = cluster.cluster(
        "run", "--working-dir", str(project), "--", "true", check=False, env={"CLUSTER_PACKAGE_LIMIT": "1MiB"}
    )
    assert large.returncode == 1
    assert "3.0 MiB  weights.dat" in large.stderr
    assert ".gitignore" in large.stderr


def test_a_large_directory_is_sent_once_and_then_what_changed(cluster: Machine, project: Path):
    for number in range(40):
        (project / f"part{number}.dat").write_bytes(bytes([number]) * (5 << 20))

    def seconds() -> float:
        begun = time.monotonic()
        cluster.cluster("submit", "--working-dir", str(project), "--", "true", timeout=120)
        return time.monotonic() - begun

    seconds()
    with (project / "main.py").open("a") as file:
        file.write("# one more line\n")
    assert seconds() < 2


def test_tasks_and_actors_have_environments_of_their_own(cluster: Machine, project: Path):
    done = cluster.program(f"""
import os, pathlib
import concurrent_ml as cml
cml.init()
project = {str(project)!r}

@cml.remote
def child():
    return os.environ.get("COLOUR"), os.path.exists("data.txt")

@cml.remote
def parent():
    import model
    return model.WEIGHT, *cml.get(child.remote())

print(cml.get(parent.options(runtime_env={{"working_dir": project, "env_vars": {{"COLOUR": "red"}}}}).remote()))

@cml.remote
class Reader:
    def read(self):
        import model
        return model.WEIGHT, os.path.exists("data.txt")

reader = Reader.options(runtime_env={{"py_modules": [project + "/model"]}}).remote()
print(cml.get(reader.read.remote()))

@cml.remote
def loaded():
    import sys
    return "sqlite3" in sys.modules
print(cml.get([loaded.remote(), loaded.options(runtime_env={{"preload": ["sqlite3"]}}).remote()]))

@cml.remote
def outer():
    return cml.get(child.remote())
print(cml.get(outer.options(runtime_env={{"env_vars": {{"COLOUR": "blue"}}}}).remote()))
""")
    assert done.stdout.splitlines() == ["(3, 'red', True)", "(3, False)", "[False, True]", "('blue', False)"]


def test_a_tasks_environment_is_laid_over_its_jobs(cluster: Machine, project: Path):
    done = cluster.program(f"""
import os
import concurrent_ml as cml
cml.init(runtime_env={{"working_dir": {str(project)!r}, "env_vars": {{"COLOUR": "red", "SHAPE": "round"}}}})

@cml.remote
def found():
    import sys
    return open("data.txt").read(), os.environ["COLOUR"], os.environ["SHAPE"], "sqlite3" in sys.modules

own = {{"preload": ["sqlite3"], "env_vars": {{"COLOUR": "blue"}}}}
print(cml.get([found.remote(), found.options(runtime_env=own).remote()]))
""")
    assert done.stdout == "[('4', 'red', 'round', False), ('4', 'blue', 'round', True)]\n"


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"colour": "red"}, "has the key 'colour'"),
        ({"working_dir": "/nowhere"}, "/nowhere, which is no directory"),
        ({"py_modules": "model"}, "must be a list"),
        ({"py_modules": ["/nowhere"]}, "/nowhere, which is not on this machine"),
        ({"uv": ["numpy"], "pip": ["numpy"]}, "both 'uv' and 'pip'"),
        ({"uv": "none.txt"}, "requirements file"),
        ({"preload": ["no module"]}, "no name of a module"),
    ],
)
def test_wrong_environments_are_told_where_they_are_written(env: dict, said: str):
    import concurrent_ml as cml

    with pytest.raises((TypeError, ValueError), match=said):
        cml.remote(runtime_env=env)(abs)


def test_an_embedded_cluster_has_environments_too(machine: Machine, project: Path):
    done = machine.program(f"""
import concurrent_ml as cml
cml.init(num_cpus=1, runtime_env={{"working_dir": {str(project)!r}}})

@cml.remote
def weight():
    import model
    return model.WEIGHT, open("data.txt").read()

print(cml.get(weight.remote()))
""")
    assert done.stdout == "(3, '4')\n"


def test_the_job_client_does_what_the_command_does(cluster: Machine, project: Path):
    done = cluster.program(f"""
from concurrent_ml.jobs import JobClient, JobError

jobs = JobClient()
job = jobs.submit("./run.sh", working_dir={str(project)!r}, env_vars={{"WEIGHT": "1"}},
                  name="small", metadata={{"a": "b"}})
print(list(jobs.follow("small"))[-1].strip())
ended = jobs.wait(job.id, timeout=20)
print(ended.state, ended.exit_code, ended.metadata, ended.attempts[0].number)
endless = jobs.submit(["sleep", "1000"])
print(jobs.stop(endless.id).state, len(jobs.list()))
try:
    jobs.get("nope")
except JobError as error:
    print(error)
print(jobs.delete("small").id == job.id)
""")
    assert done.stdout.splitlines() == [
        "2 4",
        "succeeded 0 {'a': 'b'} 1",
        "stopped 2",
        "no job nope (see `cluster jobs`)",
        "True",
    ]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A directory with a package that can be installed without a network."""
    source = tmp_path / "source"
    (source / "tinycolours").mkdir(parents=True)
    (source / "tinycolours/__init__.py").write_text("NAME = 'teal'\n")
    (source / "pyproject.toml").write_text("[project]\nname = 'tinycolours'\nversion = '1.0'\n")
    import zipfile

    found = tmp_path / "wheels"
    found.mkdir()
    info = "tinycolours-1.0.dist-info"
    with zipfile.ZipFile(found / "tinycolours-1.0-py3-none-any.whl", "w") as made:
        made.writestr("tinycolours/__init__.py", "NAME = 'teal'\n")
        made.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinycolours\nVersion: 1.0\n")
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{info}/RECORD", "")
    return found


@needs_uv
def test_requirements_are_installed_once_and_shared(cluster: Machine, wheel: Path, tmp_path: Path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("tinycolours==1.0  # a colour\n")
    program = """
import tinycolours
import concurrent_ml as cml
cml.init()

@cml.remote
def name():
    import numpy, tinycolours
    return tinycolours.NAME

print(cml.get(name.remote()))
"""
    (tmp_path / "p").mkdir()
    (tmp_path / "p/main.py").write_text(program)
    offline = ["--env", "UV_NO_INDEX=1", "--env", f"UV_FIND_LINKS={wheel}"]
    arguments = ["--requirements", str(requirements), "--working-dir", str(tmp_path / "p"), *offline]
    first = cluster.cluster("run", *arguments, "--", "python", "main.py", timeout=60)
    assert first.stdout.splitlines()[-1] == "teal"
    assert "installing tinycolours==1.0 with uv" in first.stdout
    second = cluster.cluster("run", *arguments, "--", "python", "main.py", timeout=60)
    assert second.stdout == "teal\n"


@needs_uv
def test_a_requirement_that_does_not_resolve_is_said_in_the_resolvers_words(cluster: Machine, wheel: Path):
    offline = ["--env", "UV_NO_INDEX=1", "--env", f"UV_FIND_LINKS={wheel}"]
    job = cluster.cluster(
        "submit", "--wait", "--requirements", "tinycolours==9.9", *offline, "--", "true", check=False
    )
    assert job.returncode == 1
    assert "tinycolours==9.9" in job.stderr
    assert "unsatisfiable" in job.stderr
    done = cluster.program(f"""
import concurrent_ml as cml
cml.init()
env = {{"uv": ["tinycolours==9.9"], "env_vars": {{"UV_NO_INDEX": "1", "UV_FIND_LINKS": {str(wheel)!r}}}}}

@cml.remote(runtime_env=env)
def f():
    pass

try:
    cml.get(f.remote())
except Exception as error:
    print(error)
""")
    assert "unsatisfiable" in done.stdout


def test_files_come_from_outside_to_every_node(net: Network, project: Path):
    a, b, outside = net.host("a"), net.host("b"), net.host("outside")
    a.cluster_up(num_cpus=0)
    b.cluster_join(a, num_cpus=2)
    outside.join_cluster_of(a)
    run = ["run", "--num-cpus", "1", "--working-dir", str(project), "--", "python", "main.py"]
    done: subprocess.CompletedProcess[str] = outside.cluster(*run, timeout=60)
    assert "12 3" in done.stdout.splitlines()[-1]


def test_files_that_a_task_names_are_fetched_from_its_node(net: Network, project: Path):
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1, resources={"a": 1})
    b.cluster_join(a, num_cpus=1, resources={"b": 1})
    done = a.python(f"""
import os
import concurrent_ml as cml
cml.init()

@cml.remote(resources={{"b": 1}})
def inner():
    import model
    return model.WEIGHT, open("data.txt").read(), os.path.exists("checkpoint.bin")

@cml.remote(resources={{"a": 1}})
def outer():
    return cml.get(inner.options(runtime_env={{"working_dir": {str(project)!r}}}).remote())

print(cml.get(outer.remote(), timeout=30))
""")
    assert done.stdout == "(3, '4', False)\n"
