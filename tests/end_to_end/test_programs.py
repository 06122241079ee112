"""Whole programs on an embedded cluster, run as a user runs them."""

import os
import re
import signal
from pathlib import Path

import pytest

from testkit import Machine, RunProgram, wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(120)
def test_the_getting_started_program_prints_its_line(program: RunProgram, getting_started: Path):
    assert program(getting_started, timeout=100).stdout.splitlines()[-1] == "Models trained concurrently!"


@pytest.mark.timeout(120)
def test_the_published_example_prints_its_line(program: RunProgram):
    shown = program(ROOT / "examples/getting_started.py", timeout=100).stdout
    assert shown.splitlines()[-1] == "Models trained concurrently!"


@pytest.mark.timeout(300)
def test_the_quickstart_shows_a_table_of_a_dozen_models_and_what_it_gained(program: RunProgram):
    shown = program(ROOT / "examples/quickstart.py", timeout=280).stdout
    assert "12/12" in shown
    rows = re.findall(
        r"^(?:forest|SVC|k-NN|gradient|histogram).* (0\.[89]\d\d) +\d+\.\d\d  \S+ +\S+ *$", shown, re.M
    )
    assert len(rows) == 12
    assert re.search(r"at once [\d.]+ s, one after another [\d.]+ s: [\d.]+ times as fast", shown)


@pytest.mark.timeout(120)
def test_a_chain_of_50_nested_tasks_finishes_on_one_cpu(program: RunProgram):
    text = """
import concurrent_ml as cml
cml.init(num_cpus=1)

@cml.remote
def nest(depth):
    return depth if depth == 50 else cml.get(nest.remote(depth + 1))

print(cml.get(nest.remote(1)))
"""
    assert program(text, timeout=100).stdout.splitlines()[-1] == "50"


def test_classes_and_functions_of_main_travel(program: RunProgram):
    text = """
import dataclasses, enum
import concurrent_ml as cml

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Point:
    x: int
    colour: Colour

def helper(x):
    return x * SCALE

SCALE = 10

@cml.remote
def move(point):
    assert point.colour is Colour.RED
    return Point(helper(point.x), Colour.RED)

if __name__ == "__main__":
    cml.init(num_cpus=1)
    moved = cml.get(move.remote(Point(4, Colour.RED)))
    print(moved, moved.colour is Colour.RED, isinstance(moved, Point))
"""
    assert program(text).stdout.strip() == "Point(x=40, colour=<Colour.RED: 1>) True True"


def test_modules_beside_the_script_can_be_imported_by_tasks(program: RunProgram, machine: Machine):
    (machine.directory / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    text = """
import concurrent_ml as cml
import beside

cml.init(num_cpus=1)
print(cml.get(cml.remote(beside.triple).remote(2)))
"""
    assert program(text).stdout.strip() == "6"


def test_prints_of_tasks_appear_in_the_driver_with_task_and_pid_in_front(program: RunProgram):
    text = """
import os, sys
import concurrent_ml as cml
cml.init(num_cpus=1)

@cml.remote
def chatty():
    print("hello from inside")
    print("and from stderr", file=sys.stderr)
    return os.getpid()

print("pid", cml.get(chatty.remote()))
cml.shutdown()
"""
    done = program(text)
    pid = re.search(r"^pid (\d+)$", done.stdout, re.M)
    assert pid is not None
    for words in ("hello from inside", "and from stderr"):
        line = next(line for line in (done.stdout + done.stderr).splitlines() if words in line)
        front = line.partition(words)[0]
        assert "chatty" in front
        assert pid[1] in front


def test_log_to_driver_false_keeps_the_driver_quiet(program: RunProgram):
    text = """
import concurrent_ml as cml
cml.init(num_cpus=1, log_to_driver=False)

@cml.remote
def chatty():
    print("hello from inside")

cml.get(chatty.remote())
cml.shutdown()
"""
    done = program(text)
    assert "hello from inside" not in done.stdout + done.stderr


def test_init_and_shutdown_can_be_repeated(program: RunProgram):
    text = """
import concurrent_ml as cml

@cml.remote
def cpus():
    return cml.cluster_resources()["CPU"]

for number in (1, 2, 3):
    assert not cml.is_initialized()
    cml.init(num_cpus=number)
    assert cml.is_initialized()
    print(int(cml.get(cpus.remote())))
    cml.shutdown()
"""
    assert program(text).stdout.split() == ["1", "2", "3"]


def test_a_second_init_is_refused_unless_it_may_be_ignored(program: RunProgram):
    text = """
import concurrent_ml as cml
cml.init(num_cpus=1)
cml.init(ignore_reinit_error=True)
try:
    cml.init()
except RuntimeError as error:
    print(error)
"""
    assert "shutdown" in program(text).stdout


def test_using_the_api_first_starts_an_embedded_cluster(program: RunProgram):
    text = "import concurrent_ml as cml\nprint(cml.get(cml.put(3)))\n"
    assert program(text).stdout.strip() == "3"


def test_it_works_where_an_event_loop_already_runs(program: RunProgram):
    """As in a notebook's cell, which is run by a loop that the user did not start."""
    text = """
import asyncio
import concurrent_ml as cml

async def cell():
    cml.init(num_cpus=1)
    f = cml.remote(lambda: 5)
    print(cml.get(f.remote()), await f.remote())

asyncio.run(cell())
"""
    assert program(text).stdout.split() == ["5", "5"]


def test_ctrl_c_ends_a_get_at_once(machine: Machine):
    text = """
import time
import concurrent_ml as cml
cml.init(num_cpus=1)

@cml.remote
def sleep():
    time.sleep(600)

ref = sleep.remote()
print("waiting", flush=True)
cml.get(ref)
"""
    child = machine.popen(text)
    assert child.stdout is not None
    assert child.stdout.readline() == "waiting\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=10)
    assert "KeyboardInterrupt" in err
    machine.assert_nothing_left()


def test_a_forked_child_is_told_what_is_wrong(program: RunProgram):
    text = """
import os
import concurrent_ml as cml
cml.init(num_cpus=1)
ref = cml.put(1)
child = os.fork()
if child == 0:
    try:
        cml.get(ref)
    except RuntimeError as error:
        print("told:", error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent still has", cml.get(ref))
"""
    shown = program(text).stdout
    assert re.search(r"told: .*fork", shown)
    assert "parent still has 1" in shown


def test_nothing_is_left_when_the_program_ends(machine: Machine):
    text = """
import numpy as np
import concurrent_ml as cml
cml.init(num_cpus=2)
f = cml.remote(lambda x: x + 1)
print(cml.get(f.remote(np.ones(1_000_000))).sum())
"""
    machine.program(text)
    machine.assert_nothing_left()


def test_nothing_is_left_when_the_program_is_killed(machine: Machine):
    text = """
import subprocess, time
import numpy as np
import concurrent_ml as cml
cml.init(num_cpus=2)

@cml.remote
def busy(array):
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    print("busy", flush=True)
    time.sleep(600)

refs = [busy.remote(np.ones(1_000_000)) for _ in range(2)]
cml.get(refs)
"""
    child = machine.popen(text)
    wait_until(
        lambda: sum(process.command[:1] == ("sleep",) for process in machine.processes()) == 2,
        30,
        "both tasks have started a program of their own",
    )
    child.kill()
    child.communicate()
    machine.assert_nothing_left()


def test_an_executor_killed_while_running_is_replaced_and_the_task_tried_again(
    program: RunProgram, tmp_path: Path
):
    text = f"""
import os, pathlib, signal
import concurrent_ml as cml
cml.init(num_cpus=1)
log = pathlib.Path({str(tmp_path / "attempts")!r})

@cml.remote
def die_twice():
    with log.open("a") as attempts:
        attempts.write(".")
    if log.stat().st_size < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"

print(cml.get(die_twice.remote()), log.stat().st_size)
"""
    assert program(text).stdout.splitlines()[-1] == "survived 3"


def test_an_executor_that_always_dies_gives_an_error_with_the_exit_cause(program: RunProgram):
    text = """
import os, signal
import concurrent_ml as cml
cml.init(num_cpus=1)

@cml.remote(max_retries=1)
def die():
    os.kill(os.getpid(), signal.SIGSEGV)

try:
    cml.get(die.remote())
except cml.exceptions.WorkerCrashedError as error:
    print(error)
"""
    shown = program(text).stdout
    assert "SIGSEGV" in shown
    assert "die" in shown


def test_sys_exit_in_a_task_is_an_error_and_not_the_end(program: RunProgram):
    text = """
import sys
import concurrent_ml as cml
cml.init(num_cpus=1)

@cml.remote(max_retries=0)
def leave():
    sys.exit(4)

try:
    cml.get(leave.remote())
except cml.exceptions.WorkerCrashedError as error:
    print("told:", error)
print(cml.get(cml.remote(lambda: "works").remote()))
"""
    shown = program(text).stdout
    assert re.search(r"told: .*\b4\b", shown)
    assert "works" in shown


def test_an_object_larger_than_the_store_fails_at_once(program: RunProgram):
    text = """
import numpy as np
import concurrent_ml as cml
cml.init(num_cpus=1, object_store_memory=128 * 2**20)
try:
    cml.put(np.ones(64 * 2**20))
except cml.exceptions.ObjectStoreFullError as error:
    print("told:", error)
print(cml.get(cml.put("still works")))
"""
    shown = program(text).stdout
    assert re.search(r"told: .*512.*128", shown)
    assert "still works" in shown


@pytest.mark.timeout(120)
def test_more_than_the_store_holds_is_spilled_and_comes_back(program: RunProgram):
    text = """
import numpy as np
import concurrent_ml as cml
cml.init(num_cpus=1, object_store_memory=128 * 2**20)
refs = [cml.put(np.full(2 * 2**20, number)) for number in range(32)]
print(all((cml.get(ref) == number).all() for number, ref in enumerate(refs)))
"""
    assert program(text, timeout=100).stdout.strip() == "True"


def test_what_was_read_and_is_not_looked_at_makes_room(program: RunProgram):
    text = """
import os
import numpy as np
import concurrent_ml as cml
STORE = 128 * 2**20
cml.init(num_cpus=1, object_store_memory=STORE)

def taken():
    segments = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            mine = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1] == str(os.getpid())
            for fd in os.listdir(f"/proc/{pid}/fd") if mine else []:
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/memfd:"):
                    about = os.stat(f"/proc/{pid}/fd/{fd}")
                    segments[about.st_ino] = about.st_blocks * 512
        except OSError:
            continue
    return sum(segments.values())

refs = [cml.put(np.full(2 * 2**20, number)) for number in range(24)]
most = 0
for _ in range(2):
    for number, ref in enumerate(refs):
        assert (cml.get(ref) == number).all()
        most = max(most, taken())
# What a writer or the daemon has at the ready, beside what is counted.
print(0 < most <= STORE + 2**26 or most)
"""
    assert program(text, timeout=55).stdout.strip() == "True"


def test_freed_objects_make_room_without_spilling(program: RunProgram):
    text = """
import numpy as np
import concurrent_ml as cml
cml.init(num_cpus=1, object_store_memory=128 * 2**20)
for number in range(100):
    assert cml.get(cml.put(np.full(4 * 2**20, number)))[0] == number
print("done")
"""
    assert program(text).stdout.strip() == "done"


@pytest.mark.parametrize(
    "option", ["num_cpus=-1", "num_cpus=float('nan')", "object_store_memory=-5", "memory=-1"]
)
def test_init_refuses_an_amount_that_is_none(program: RunProgram, option: str):
    done = program(f"import concurrent_ml as cml\ncml.init({option})\n", check=False)
    assert done.returncode == 1
    assert option.partition("=")[0] in done.stderr.splitlines()[-1]


def test_init_tells_within_five_seconds_that_nobody_is_at_the_address(program: RunProgram):
    text = """
import time
import concurrent_ml as cml
begun = time.monotonic()
try:
    cml.init("127.0.0.1:9")
except ConnectionError as error:
    print(f"{time.monotonic() - begun:.1f}", error)
"""
    seconds, _, words = program(text).stdout.partition(" ")
    assert float(seconds) < 5
    assert "127.0.0.1:9" in words


@pytest.mark.parametrize("address", ["", "no host", "host:notaport", "host:99999"])
def test_init_refuses_what_is_no_address(program: RunProgram, address: str):
    done = program(f"import concurrent_ml as cml\ncml.init({address!r})\n", check=False)
    assert done.returncode == 1
    assert "ValueError" in done.stderr.splitlines()[-1]


def test_the_native_module_starts_no_thread_at_import(program: RunProgram):
    text = "import concurrent_ml, os\nprint(len(os.listdir('/proc/self/task')))\n"
    # Numeric libraries may start theirs; ours starts none.
    assert program(text, env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}).stdout.strip() == "1"


def test_the_wheel_carries_the_command(machine: Machine):
    assert os.access(Path(machine.environment["PATH"].split(":")[0]) / "cluster", os.X_OK)
