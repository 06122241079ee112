"""Lines that tasks print, as their driver shows them: all up to the rate that docs/logs.md states, above it counted."""

import json
import re
import signal
from pathlib import Path

import pytest

from testkit import Machine, wait_until

pytestmark = pytest.mark.timeout(120)

SPEAKERS = """
import os, signal, sys, time
import concurrent_ml as cml
cml.init(num_cpus=2)

@cml.remote
def speak(who, count, rate):
    import time
    begun = time.monotonic()
    for n in range(count):
        print(f"line {who} {n} " + "x" * 80)
        if rate and n % 100 == 99:
            time.sleep(max(0.0, begun + n / rate - time.monotonic()))
    open(f"{sys.argv[1]}/said-{who}", "w").close()
    return time.monotonic() - begun
"""


def shown(text: str) -> list[list[int]]:
    """The numbers of each task's lines."""
    found = re.findall(r"line (\d) (\d+) x{80}$", text, re.MULTILINE)
    return [[int(n) for who, n in found if who == task] for task in ("0", "1")]


def test_no_line_is_lost_at_the_rate_that_the_guide_states(machine: Machine, tmp_path: Path):
    guide = (Path(__file__).resolve().parents[2] / "docs/logs.md").read_text()
    (stated,) = re.findall(r"up to ([\d,]+) lines a second", guide)
    rate = int(stated.replace(",", ""))
    text = SPEAKERS.replace("sys.argv[1]", repr(str(tmp_path)))
    done = machine.program(
        text
        + f"print(max(cml.get([speak.remote(who, {rate * 2}, {rate / 2}) for who in range(2)])))\ntime.sleep(1)",
        timeout=100,
    )
    assert float(done.stdout) < 8, "the tasks themselves were slower than the rate"
    assert "not shown" not in done.stderr
    assert shown(done.stderr) == [list(range(rate * 2))] * 2


def test_who_does_not_read_is_told_how_many_lines_it_missed(machine: Machine, tmp_path: Path):
    lines = 150_000
    text = SPEAKERS.replace("sys.argv[1]", repr(str(tmp_path)))
    program = machine.popen(
        text
        + f"""
@cml.remote
def ready():
    pass
cml.get([ready.remote(), ready.remote()])
refs = [speak.remote(who, {lines}, 0) for who in range(2)]
cml.wait(refs, timeout=0.3)
os.kill(os.getpid(), signal.SIGSTOP)
cml.get(refs)
# No line follows, and still it is told.
time.sleep(3)
"""
    )
    wait_until(lambda: len(list(tmp_path.glob("said-*"))) == 2, 60, "both tasks have said all")
    program.send_signal(signal.SIGCONT)
    _, said = program.communicate(timeout=60)
    missed = sum(map(int, re.findall(r"concurrent_ml: (\d+) lines that tasks printed", said)))
    here = shown(said)
    assert missed > 0
    assert sum(map(len, here)) + missed == 2 * lines
    assert all(numbers == sorted(numbers) for numbers in here), "each process's lines keep their order"


def test_json_lines_stay_whole(machine: Machine):
    done = machine.program("""
import json, os, sys, time
import concurrent_ml as cml
cml.init(num_cpus=1)

@cml.remote
def speak():
    import subprocess
    for n in range(20):
        print(json.dumps({"n": n, "pad": "x" * 200_000}))
    # Past Python, too.
    text = json.dumps({"n": 20, "pad": "x" * 200_000})
    subprocess.run([sys.executable, "-c", "import sys; print(sys.stdin.read())"], input=text, text=True)

cml.get(speak.remote())
time.sleep(1)
""")
    lines = [line.partition(") ")[2] for line in done.stderr.splitlines() if "xxx" in line]
    assert sorted(json.loads(line)["n"] for line in lines) == list(range(21))
