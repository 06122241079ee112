"""What is measured of executors and nodes that fail: how long until their work runs again."""

import statistics
import sys
import time
from collections.abc import Callable

from testkit import Host, Network, Role, wait_until

Figures = dict[str, float]

EXECUTOR = "executor killed: its task runs again"
NODE_GONE = "node killed, its connection closed: its tasks run elsewhere"
NODE_SILENT = "node silent: its tasks run elsewhere"
TIMES = 3

# The first attempt of each task says that it began, and never ends; the second one's beginning is what is measured.
TASKS = """
import os, sys, time
import concurrent_ml as cml
cml.init()

@cml.remote(max_retries=-1)
def work(folder, number):
    began = time.time()
    try:
        os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return began
    time.sleep(600)

print(max(cml.get([work.remote(sys.argv[2], number) for number in range(int(sys.argv[1]))])), flush=True)
"""

# A task that kills its own process when it runs for the first time, twenty times over.
DIES = """
import os, signal, statistics, sys, time
import concurrent_ml as cml
cml.init()

@cml.remote(max_retries=1)
def dies(path):
    now = time.time()
    if os.path.exists(path):
        return now - float(open(path).read())
    with open(path, "w") as file:
        file.write(repr(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)

@cml.remote
def warm():
    return 1

took = []
for number in range(20):
    # As in a cluster that works: there is an executor, and it has run something.
    cml.get([warm.remote() for _ in range(10)])
    took.append(cml.get(dies.remote(f"{sys.argv[1]}/{number}")))
print(statistics.median(took), max(took))
"""


def executor() -> Figures:
    """From the SIGKILL of a process to the beginning of the next attempt in another, in milliseconds."""
    with Network() as net:
        host = net.host("a")
        host.cluster_up(num_cpus=1)
        folder = host.directory / "tries"
        folder.mkdir()
        median, most = map(float, host.python(DIES, arguments=[str(folder)]).stdout.split())
        print(f"  executor killed: median {median * 1e3:.1f} ms, most {most * 1e3:.1f} ms", file=sys.stderr)
        return {EXECUTOR: median * 1e3}


def node_gone() -> Figures:
    """The daemon is killed: the system closes its connections."""
    return _node(NODE_GONE, lambda _, host: host.kill(Role.WORKER))


def node_silent() -> Figures:
    """The host is cut off: nobody is told."""
    return _node(NODE_SILENT, lambda net, host: net.cut(host))


def _node(name: str, fail: Callable[[Network, Host], object]) -> Figures:
    """Seconds from the failure of a node until the last of its tasks runs on another."""
    took = []
    for _ in range(TIMES):
        with Network() as net:
            a, b, c = net.host("a"), net.host("b"), net.host("c")
            folder = a.directory / "tries"
            folder.mkdir()
            a.cluster_up(num_cpus=0)
            b.cluster_join(a, num_cpus=2)
            driver = a.popen_python(TASKS, arguments=["2", str(folder)])
            wait_until(lambda f=folder: len(list(f.iterdir())) == 2, 30, "both tasks run")
            c.cluster_join(a, num_cpus=2)
            wait_until(lambda c=c: c.processes(Role.ZYGOTE), 30, "the other node is ready")
            failed = time.time()
            fail(net, b)
            said, errors = driver.communicate(timeout=60)
            if driver.returncode != 0:
                raise RuntimeError(f"the program ended:\n{errors}")
            took.append(float(said) - failed)
    print(f"  {name}: {', '.join(f'{seconds:.2f}' for seconds in took)} s", file=sys.stderr)
    return {name: statistics.median(took)}
