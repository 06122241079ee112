"""Programs that the cluster runs by itself: `cluster submit` and what belongs to it."""

import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit import Machine, Network, Role, wait_until
from testkit.processes import by_role

pytestmark = pytest.mark.timeout(120)


class Cluster:
    """A cluster on this machine, and its `cluster` command."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        ports = ["--port", "0", "--data-port", "0", "--gateway-port", "0"]
        up = json.loads(machine.cluster("up", *ports, "--num-cpus", "2", "--json").stdout)
        machine.environment["CLUSTER_ADDRESS"] = up["address"]
        self.port = str(up["address"].rpartition(":")[2])
        self.directory = Path(machine.environment["CLUSTER_DIR"])

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.machine.cluster(*arguments, check=check)

    def submit(self, *arguments: str) -> str:
        """The job's id."""
        return json.loads(self("submit", "--json", *arguments).stdout)["job"]

    def job(self, job: str) -> dict[str, Any]:
        return json.loads(self("job", job, "--json").stdout)

    def reaches(self, job: str, *states: str, deadline: float = 20) -> dict[str, Any]:
        wait_until(lambda: self.job(job)["state"] in states, deadline, f"job {job} is {states}")
        return self.job(job)


@pytest.fixture
def cluster(machine: Machine) -> Iterator[Cluster]:
    yield Cluster(machine)
    machine.cluster("down", check=False)
    machine.assert_nothing_left()


def test_a_program_runs_and_its_output_and_exit_code_are_kept(cluster: Cluster):
    job = cluster.submit(
        "--name", "hello", "--metadata", "who=me", "--", "sh", "-c", "echo out; echo err >&2"
    )
    shown = cluster.reaches(job, "succeeded")
    assert shown["attempts"][0]["exit_code"] == 0
    assert shown["attempts"][0]["started_ms"] <= shown["attempts"][0]["ended_ms"]
    assert shown["spec"]["metadata"] == {"who": "me"}
    assert cluster("logs", "hello").stdout == "out\nerr\n"
    assert cluster("logs", job[:5], "--tail", "1").stdout == "err\n"
    assert job in cluster("jobs").stdout
    assert "exit code 0" in cluster("job", "hello").stdout
    cluster("delete", job)
    assert "no job" in cluster("logs", job, check=False).stderr
    logs = cluster.directory / "logs"
    wait_until(lambda: not list(logs.glob("job-*")), 10, "they are deleted")


def test_a_new_cluster_removes_what_jobs_of_the_one_before_left(cluster: Cluster):
    cluster("run", "--", "sh", "-c", "echo printed; echo written > file")
    cluster("down")
    [log] = (cluster.directory / "logs").glob("job-*")
    [file] = (cluster.directory / "jobs").glob("*/file")
    assert (log.read_text(), file.read_text()) == ("printed\n", "written\n"), (
        "they can be looked at until then"
    )
    Cluster(cluster.machine)
    assert not log.exists()
    assert not file.exists()


def test_a_python_program_inside_joins_the_cluster(cluster: Cluster):
    program = cluster.machine.directory / "squares.py"
    program.write_text("""
import concurrent_ml as cml
cml.init()

@cml.remote
def square(x):
    return x * x

print(sum(cml.get([square.remote(i) for i in range(10)])))
""")
    done = cluster("run", "--", "python", str(program))
    assert done.stdout == "285\n"


def test_run_passes_on_the_output_and_the_exit_code(cluster: Cluster):
    done = cluster("run", "--env", "COLOUR=blue", "--", "sh", "-c", "echo $COLOUR; exit 7", check=False)
    assert (done.returncode, done.stdout) == (7, "blue\n")
    killed = cluster("run", "--", "sh", "-c", "kill -9 $$", check=False)
    assert killed.returncode == 137
    assert "signal 9" in killed.stderr
    waited = cluster("submit", "--wait", "--", "false", check=False)
    assert waited.returncode == 1


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_run_and_all_it_started(cluster: Cluster, times: int):
    ignoring = "trap '' INT; sleep 1000 & echo ready; wait"
    run = subprocess.Popen(
        ["cluster", "run", "--", "sh", "-c", ignoring],
        env=cluster.machine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    for _ in range(times):
        run.send_signal(signal.SIGINT)
        time.sleep(0.3 if times == 2 else 0)
    run.communicate(timeout=20)
    assert run.returncode == 130
    [job] = json.loads(cluster("jobs", "--json").stdout)
    cluster.reaches(job["job"], "stopped")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["submit"], "PROGRAM"),
        (["submit", "--", ""], "nothing to run"),
        (["submit", "--env", "COLOUR", "--", "true"], "key=value"),
        (["submit", "--timeout", "soon", "--", "true"], "soon"),
        (["submit", "--num-cpus", "-1", "--", "true"], "-1"),
        (["job", "nope"], "no job nope (see `cluster jobs`)"),
        (["logs", "nope"], "no job nope"),
        (["logs"], "name one of"),
        (["logs", "--node", "nope"], "nope"),
        (["submit", "--timeout", "0s", "--", "true"], "a timeout of 0"),
        (["submit", "--name", "two\nlines", "--", "true"], "control characters"),
        (["submit", "--requirements", "", "--", "true"], "a requirement is empty"),
        (["submit", "--py-module", "/nope", "--", "true"], "the module /nope does not exist"),
        (["logs", "--task", "nope"], "no task nope"),
        (["logs", "--task", ""], "name a task"),
        (["logs", "--actor", ""], "name an actor"),
        (["logs", "--actor", "nope"], "no actor nope"),
        (["stop", "nope"], "no job nope"),
        (["delete", "nope"], "no job nope"),
    ],
)
def test_what_is_wrong_is_said(cluster: Cluster, wrong: list[str], said: str):
    done = cluster(*wrong, check=False)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_missing_program_fails_at_once_and_says_where_it_was_looked_for(cluster: Cluster):
    job = cluster.submit("--retries", "3", "--", "trian", "--epochs", "3")
    shown = cluster.reaches(job, "failed")
    assert "cannot start `trian`" in shown["message"]
    assert len(shown["attempts"]) == 1, "a next try would end the same"
    assert "no such program on this node" in cluster("logs", job).stdout


def test_a_name_is_taken_until_its_job_has_ended(cluster: Cluster):
    job = cluster.submit("--name", "nightly", "--", "sleep", "1000")
    refused = cluster("submit", "--name", "nightly", "--", "true", check=False)
    assert refused.returncode == 1
    assert f"cluster stop {job}" in refused.stderr
    refused = cluster("delete", "nightly", check=False)
    assert "stop it first" in refused.stderr
    cluster("stop", "nightly")
    cluster.submit("--name", "nightly", "--", "true")


def test_a_failing_job_is_tried_again_and_a_slow_one_is_ended(cluster: Cluster):
    job = cluster.submit("--retries", "2", "--", "sh", "-c", "echo $CLUSTER_JOB_ATTEMPT; exit 5")
    shown = cluster.reaches(job, "failed")
    assert [tried["exit_code"] for tried in shown["attempts"]] == [5, 5, 5]
    assert cluster("logs", job).stdout == "3\n"
    assert cluster("logs", job, "--attempt", "2").stdout == "2\n"
    slow = cluster.submit("--timeout", "300ms", "--retries", "2", "--", "sleep", "1000")
    shown = cluster.reaches(slow, "failed")
    assert "longer than 0.3 s" in shown["message"]
    assert len(shown["attempts"]) == 1


def test_stop_ends_a_program_that_ignores_it_and_its_children_of_other_sessions(cluster: Cluster):
    stubborn = "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 1000; true\" & sleep 1000; true"
    job = cluster.submit("--", "sh", "-c", stubborn)
    cluster.reaches(job, "running")

    def sleeping() -> int:
        return sum(process.command[:1] == ("sleep",) for process in cluster.machine.processes())

    wait_until(lambda: sleeping() >= 2, 10, "it has children")
    cluster("stop", job)
    shown = cluster.job(job)
    assert shown["state"] == "stopped"
    assert shown["attempts"][0]["exit_code"] == 137
    assert sleeping() == 0


def test_logs_follow_a_job_to_its_end_and_json_lines_stay_whole(cluster: Cluster):
    text = """
import json, time
for n in range(2000):
    print(json.dumps({"n": n, "pad": "x" * 500}))
    n % 500 or time.sleep(0.3)
"""
    job = cluster.submit("--", "python", "-c", text)
    followed = cluster("logs", job, "-f").stdout
    assert [json.loads(line)["n"] for line in followed.splitlines()] == list(range(2000))


def test_what_tasks_and_actors_print_is_found_by_their_ids(cluster: Cluster):
    cluster.machine.program("""
import concurrent_ml as cml
cml.init(log_to_driver=False)

@cml.remote
def speak(text):
    print(text, flush=True)

@cml.remote
class Speaker:
    def speak(self, text):
        print(text, flush=True)

cml.get(speak.options(name="first").remote("from the first"))
cml.get(speak.options(name="second").remote("from the second"))
speaker = Speaker.options(name="speaker", lifetime="detached").remote()
cml.get(speaker.speak.remote("from the actor"))
gone = Speaker.options(name="gone").remote()
cml.get(gone.speak.remote("from an actor that is gone"))
cml.kill(gone)
""")
    tasks = json.loads(cluster("list", "tasks", "--json").stdout)
    [first] = [task["id"] for task in tasks if task["name"] == "first"]
    wait_until(lambda: cluster("logs", "--task", first).stdout == "from the first\n", 10, "it is kept")
    wait_until(lambda: "from the actor\n" in cluster("logs", "--actor", "speaker").stdout, 10, "it is kept")
    assert cluster("logs", "--actor", "gone").stdout.endswith("from an actor that is gone\n")
    [node] = json.loads(cluster("list", "nodes", "--json").stdout)
    assert "admitted by the head" in cluster("logs", "--node", node["hostname"]).stdout


def test_jobs_go_on_while_the_head_is_started_again(cluster: Cluster):
    job = cluster.submit("--", "sh", "-c", "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo ended")
    cluster.reaches(job, "running")
    short = cluster.submit("--", "sh", "-c", "while [ ! -e go ]; do sleep 0.05; done; exit 4")
    cluster.reaches(short, "running")
    for process in by_role(cluster.directory, Role.HEAD):
        process.kill()
    # It ends while there is no head.
    (cluster.directory / "jobs" / f"{short}-1" / "go").touch()
    cluster("up", "--port", cluster.port)
    assert cluster.reaches(short, "failed")["attempts"][0]["exit_code"] == 4
    assert cluster.job(job)["state"] == "running"
    (cluster.directory / "jobs" / f"{job}-1" / "go").touch()
    shown = cluster.reaches(job, "succeeded")
    assert len(shown["attempts"]) == 1
    assert cluster("logs", job).stdout == "begun\nended\n"


def test_a_job_whose_node_dies_is_tried_again_elsewhere_or_has_failed(net: Network):
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=0)
    b.cluster_join(a, num_cpus=1)

    def submit(*arguments: str) -> str:
        return json.loads(a.cluster("submit", "--json", "--num-cpus", "0.5", *arguments).stdout)["job"]

    def job(job: str) -> dict[str, Any]:
        return json.loads(a.cluster("job", job, "--json").stdout)

    stays = "if [ $CLUSTER_JOB_ATTEMPT = 1 ]; then echo first; sleep 1000; fi; echo second"
    once, again = submit("--", "sh", "-c", stays), submit("--retries", "1", "--", "sh", "-c", stays)
    for one in (once, again):
        wait_until(lambda one=one: job(one)["state"] == "running", 10, "it runs")
    c.cluster_join(a, num_cpus=1)
    b.kill_everything()
    wait_until(lambda: job(once)["state"] == "failed", 30, "it has failed")
    assert "is lost" in job(once)["message"]
    wait_until(lambda: job(again)["state"] == "succeeded", 30, "it was tried again")
    assert len({tried["node"] for tried in job(again)["attempts"]}) == 2
    assert a.cluster("logs", again).stdout == "second\n"
    assert "not part of the cluster any more" in a.cluster("logs", once, check=False).stderr


def test_the_log_of_a_job_whose_node_dies_is_read_from_durable_storage(net: Network, tmp_path: Path):
    a, b = net.host("a"), net.host("b")
    shared = f"file://{tmp_path}/shared"
    a.cluster_up(num_cpus=0, durable=shared)
    b.cluster_join(a, num_cpus=1, durable=shared)
    words = ["--num-cpus", "1", "--", "sh", "-c", "echo one; echo two; sleep 1000"]
    job = json.loads(a.cluster("submit", "--json", *words).stdout)["job"]
    logs = Path(tmp_path, "shared", "logs", f"job-{job}-1")
    wait_until(lambda: logs.exists() and any(logs.iterdir()), 20, "it is copied")
    b.kill_everything()
    wait_until(
        lambda: json.loads(a.cluster("job", job, "--json").stdout)["state"] == "failed", 30, "it has failed"
    )
    assert a.cluster("logs", job).stdout == "one\ntwo\n"
    assert a.cluster("logs", job, "--tail", "1").stdout == "two\n"
    a.cluster("delete", job)
    wait_until(lambda: not any(logs.iterdir()) if logs.exists() else True, 10, "it is deleted there")


DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("guide", ["jobs.md", "logs.md", "runtime-environments.md"])
def test_the_commands_of_the_guides_run_as_written(cluster: Cluster, guide: str, tmp_path: Path):
    blocks = re.findall(r"```(sh|python)\n(.*?)```", (DOCS / guide).read_text(), re.DOTALL)
    assert blocks
    for language, text in blocks:
        program = ["sh", "-e", "-c", text] if language == "sh" else ["python", "-c", text]
        done = subprocess.run(
            program,
            env=cluster.machine.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_jobs_over_http(cluster: Cluster):
    token = (cluster.directory / "token").read_text().strip()
    base = f"http://{cluster.machine.environment['CLUSTER_ADDRESS']}"

    def ask(method: str, path: str, body: Any = None, given: str = token) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {given}"}
        request = urllib.request.Request(base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    code, made = ask("POST", "/api/v1/jobs", {"entrypoint": ["sh", "-c", "echo hello"], "name": "greet"})
    assert (code, made["spec"]["submitter"]) == (201, "http")
    job = made["job"]
    cluster.reaches(job, "succeeded")
    assert ask("GET", f"/api/v1/jobs/{job}")[1]["attempts"][0]["exit_code"] == 0
    assert ask("GET", "/api/v1/jobs/greet/logs?tail=1")[1]["text"] == "hello\n"
    assert [one["job"] for one in ask("GET", "/api/v1/jobs")[1]] == [job]
    code, refused = ask("GET", "/api/v1/jobs/nope")
    assert (code, "no job nope" in refused["error"]) == (404, True)
    for method, path, expected in (("GET", "/api/v1/nothing", 404), ("DELETE", "/api/v1/jobs", 405)):
        code, refused = ask(method, path)
        assert (code, "/openapi.json" in refused["error"]) == (expected, True)
    code, refused = ask("POST", "/api/v1/jobs", {"entry": ["true"]})
    assert (code, "entrypoint" in refused["error"]) == (400, True)
    code, refused = ask("GET", "/api/v1/jobs", given="wrong")
    assert (code, "token" in refused["error"]) == (401, True)
    ask("POST", "/api/v1/jobs?job=0000000a", {"entrypoint": ["sleep", "1000"], "name": "long"})
    assert ask("POST", "/api/v1/jobs", {"entrypoint": ["true"], "name": "long"})[0] == 409
    assert ask("DELETE", "/api/v1/jobs/long")[0] == 409
    ask("POST", "/api/v1/jobs/long/stop")
    cluster.reaches("long", "stopped")
    assert ask("DELETE", "/api/v1/jobs/long")[0] == 200
    code, described = ask("GET", "/openapi.json")
    assert (code, described["openapi"]) == (200, "3.1.0")
    for path, methods in described["paths"].items():
        for method in methods:
            code, _ = ask(method.upper(), path.replace("{job}", "greet"), {} if method == "post" else None)
            assert code != 405, f"{method} {path}"
