"""Memory that runs out: a task ends before the kernel ends something, is tried again, and says who took the memory."""

from testkit import Machine

SETUP = """
import os, time, numpy as np, concurrent_ml as cml
from concurrent_ml.exceptions import OutOfMemoryError, WorkerCrashedError
MIB = 1 << 20

def grow(most):
    kept = []
    while len(kept) * 32 < most:
        kept.append(np.ones(4 * MIB))  # of eight bytes
        time.sleep(0.02)
    return len(kept)
"""


def test_a_task_that_takes_more_than_it_asked_for_is_ended_and_says_so(machine: Machine):
    done = machine.program(
        SETUP
        + """
cml.init(num_cpus=2, memory=2_000 * MIB)
greedy = cml.remote(memory=300 * MIB, max_retries=0)(grow)
try:
    cml.get(greedy.remote(4_000))
except OutOfMemoryError as error:
    print(isinstance(error, MemoryError), isinstance(error, WorkerCrashedError))
    print(error)
print(cml.get(greedy.options(memory=1_000 * MIB).remote(400)))
"""
    )
    kinds, message, modest = done.stdout.splitlines()
    assert kinds == "True True"
    for words in ("task grow", "asked for memory=314572800 bytes (300 MiB)", "Ask for more"):
        assert words in message
    assert modest == "13"


def test_an_actor_that_takes_more_than_it_asked_for_dies_of_it_and_is_made_anew(machine: Machine):
    done = machine.program(
        SETUP
        + """
from concurrent_ml.exceptions import ActorUnavailableError
cml.init(num_cpus=2, memory=2_000 * MIB)

@cml.remote(memory=300 * MIB, max_restarts=1)
class Greedy:
    def grow(self, most):
        return grow(most)
    def pid(self):
        return os.getpid()

actor = Greedy.remote()
before = cml.get(actor.pid.remote())
try:
    cml.get(actor.grow.remote(4_000))
except ActorUnavailableError as error:  # it comes back, and the call may have run
    print("asked for memory=314572800 bytes" in str(error))
print(cml.get(actor.pid.remote()) != before)
"""
    )
    assert done.stdout.splitlines() == ["True", "True"]


def test_when_the_machine_runs_out_the_newest_task_ends_and_the_error_lists_the_largest(machine: Machine):
    # The threshold lies a little above what the machine uses now; whoever uses the rest, the task is the newest.
    done = machine.program(
        SETUP
        + """
fields = dict(line.split(":") for line in open("/proc/meminfo"))
total, available = (int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
os.environ["CLUSTER_MEMORY_THRESHOLD"] = str(min(0.98, (total - available + 600 * 1024) / total))
cml.init(num_cpus=2)

@cml.remote(max_retries=0)
def old():
    time.sleep(1)
    return "old"

first = old.remote()
time.sleep(0.3)
try:
    cml.get(cml.remote(max_retries=0)(grow).remote(8_000))
except OutOfMemoryError as error:
    print(error)
print(cml.get(first))
"""
    )
    message, old = done.stdout.splitlines()
    assert "has run out" in message
    assert "The largest processes: pid " in message
    assert "(task grow" in message
    assert old == "old"
