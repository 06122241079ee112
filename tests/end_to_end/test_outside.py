"""Programs submitted from a host that is no part of the cluster: it knows an address and a token."""

import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from testkit import Host, Network, wait_until

pytestmark = pytest.mark.timeout(240)

BESIDE = Path(sys.executable).parent / "uv"
needs_uv = pytest.mark.skipif(not (BESIDE.exists() or shutil.which("uv")), reason="there is no uv here")

TRAINING = """
import sys, time
import concurrent_ml as cml
import tinycolours
from sklearn.datasets import load_iris
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

cml.init()

@cml.remote
def score(c):
    import tinycolours
    data = load_iris()
    return tinycolours.NAME, cross_val_score(SVC(C=c), data.data, data.target).mean()

rounds = int(open("rounds").read())
for epoch in range(rounds):
    name, mean = cml.get(score.remote(10.0 ** (epoch % 3)))
    print(f"epoch {epoch} {name} {mean > 0.9}", flush=True)
    time.sleep(0.1)
sys.exit(7)
"""


def cluster_and_outside(net: Network) -> tuple[Host, Host]:
    """A cluster, and a host that knows only its address and token."""
    head, outside = net.host("head"), net.host("outside")
    head.cluster_up(num_cpus=2)
    outside.join_cluster_of(head)
    return head, outside


def started(host: Host, *arguments: str | Path) -> "subprocess.Popen[str]":
    """`cluster ARGUMENTS` there, without waiting for it."""
    return host.popen(["cluster", *arguments], host.cluster_environment())


@needs_uv
def test_a_program_with_requirements_is_followed_while_its_submitter_is_cut_off(net: Network, tmp_path: Path):
    head, outside = cluster_and_outside(net)
    wheels, project = tmp_path / "wheels", tmp_path / "project"
    wheels.mkdir()
    project.mkdir()
    info = "tinycolours-1.0.dist-info"
    with zipfile.ZipFile(wheels / "tinycolours-1.0-py3-none-any.whl", "w") as made:
        made.writestr("tinycolours/__init__.py", "NAME = 'teal'\n")
        made.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinycolours\nVersion: 1.0\n")
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{info}/RECORD", "")
    (project / "train.py").write_text(TRAINING)
    (project / "rounds").write_text("150\n")
    # The hosts reach no index; this directory lies where all of them see it.
    (project / "requirements.txt").write_text(f"--no-index\n--find-links {wheels}\ntinycolours==1.0\n")
    program = ["--name", "training", "--working-dir", project, "--requirements", project / "requirements.txt"]
    waiting = started(outside, "submit", "--wait", *program, "--", "python", "train.py")
    wait_until(lambda: head.cluster("job", "training", check=False).returncode == 0, 30, "it is submitted")
    following = started(outside, "logs", "training", "-f")
    assert following.stdout is not None
    live = [following.stdout.readline()]
    while live[-1] and not live[-1].startswith("epoch 5 "):
        live.append(following.stdout.readline())
    assert live[-1], live
    assert "running" in head.cluster("job", "training").stdout, "its lines come while it runs"
    net.cut(outside)
    # Longer than it takes both commands to notice.
    away = time.monotonic()
    wait_until(lambda: time.monotonic() > away + 8, 10, "it is away for a while")
    net.restore(outside)
    # Through the same buffer: some of it was read ahead.
    rest, (_, said) = following.stdout.read(), following.communicate(timeout=30)
    assert following.returncode == 0, said
    shown = [line for line in ("".join(live) + rest).splitlines() if line.startswith("epoch")]
    assert shown == [f"epoch {epoch} teal True" for epoch in range(150)]
    assert "trying on" in said
    _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 7, said


def test_an_upload_that_is_cut_off_goes_on_where_it_was(net: Network, tmp_path: Path):
    head, outside = cluster_and_outside(net)
    project = tmp_path / "project"
    project.mkdir()
    for number in range(24):
        (project / f"part{number}").write_bytes(bytes([number]) * 1_000_000)
    net.slow(outside, rate="20mbit")
    run = started(outside, "run", "--working-dir", project, "--", "sh", "-c", "cat part* | wc -c")
    chunks = head.directory / "packages/chunks"
    wait_until(lambda: len(list(chunks.glob("??/*"))) >= 4, 60, "a part of it has arrived")
    arrived = {path: path.stat().st_mtime_ns for path in chunks.glob("??/*")}
    net.cut(outside)
    assert run.stderr is not None
    assert "is cut off" in run.stderr.readline()
    net.restore(outside)
    out, said = run.communicate(timeout=90)
    assert (run.returncode, out.splitlines()[-1]) == (0, "24000000"), said
    kept = {path: path.stat().st_mtime_ns for path in arrived}
    assert kept == arrived, "what had arrived was not sent again"


def test_an_upload_whose_submitter_is_killed_leaves_nothing_to_clear_up(net: Network, tmp_path: Path):
    head, outside = cluster_and_outside(net)
    project = tmp_path / "project"
    project.mkdir()
    for number in range(8):
        (project / f"part{number}").write_bytes(bytes([number]) * 1_000_000)
    net.slow(outside, rate="20mbit")
    run = started(outside, "run", "--working-dir", project, "--", "true")
    chunks = head.directory / "packages/chunks"
    wait_until(lambda: len(list(chunks.glob("??/*"))) >= 2, 60, "a part of it has arrived")
    run.kill()
    run.communicate()
    net.restore(outside)
    assert head.cluster_json("jobs") == []
    wait_until(lambda: not list(chunks.glob("new-*")), 10, "nothing is left half written")
    done = outside.cluster("run", "--working-dir", str(project), "--", "sh", "-c", "cat part* | wc -c")
    assert done.stdout.splitlines()[-1] == "8000000"
