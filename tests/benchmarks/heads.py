"""What is measured of a head that fails: how long nothing new is done."""

import statistics
import sys
import time
from collections.abc import Callable

from testkit import Host, Network, Role, start_etcd

Figures = dict[str, float]

HEAD_RESTART = "head killed and started again: first new result, 10,000 tasks queued"
FAILOVER = "leading head killed: first new result from the next"
TIMES = 3

# Prints a line for every result: when its task began, and when it was here.
WORK = """
import sys, time
import concurrent_ml as cml
cml.init()

@cml.remote(max_retries=-1)
def begin(_):
    began = time.time()
    time.sleep(0.05)
    return began

for ref in cml.as_completed(begin.map(range(int(sys.argv[1])))):
    print(cml.get(ref), time.time(), flush=True)
"""


def first_new_result(driver_on: Host, fail: Callable[[], object], tasks: int) -> float:
    """Seconds from the head's death to the first result of a task that began after it, in the program's hands."""
    driver = driver_on.popen_python(WORK, arguments=[str(tasks)])
    assert driver.stdout is not None
    try:
        for _ in range(20):
            driver.stdout.readline()
        died = time.time()
        fail()
        while line := driver.stdout.readline():
            began, here = (float(word) for word in line.split())
            if began > died:
                return here - died
        raise RuntimeError(f"the program ended:\n{driver.communicate()[1]}")
    finally:
        driver.kill()
        driver.communicate()


def head_restart() -> Figures:
    """The head is a process of its own, with no room for tasks; two workers have a CPU each."""
    with Network() as net:
        a, b, c = net.host("a"), net.host("b"), net.host("c")
        a.cluster_up(num_cpus=0)
        b.cluster_join(a, num_cpus=1)
        c.cluster_join(a, num_cpus=1)

        def fail() -> None:
            a.kill(Role.HEAD)
            a.cluster_up(num_cpus=0)

        took = [first_new_result(a, fail, 10_000) for _ in range(TIMES)]
        print(f"  head restart: {', '.join(f'{seconds:.2f}' for seconds in took)} s", file=sys.stderr)
        return {HEAD_RESTART: statistics.median(took)}


def failover() -> Figures:
    """Two heads, and three members of etcd on hosts of their own."""
    took = []
    for _ in range(TIMES):
        with Network() as net:
            a, b, c = net.host("a"), net.host("b"), net.host("c")
            url = start_etcd([net.host(f"e{n}") for n in range(3)])
            a.cluster_up(num_cpus=0, state=url)
            b.cluster_up(num_cpus=0, state=url, env={"CLUSTER_TOKEN": a.token})
            c.cluster_join(b, num_cpus=2)
            took.append(first_new_result(c, lambda a=a: a.kill(Role.HEAD), 10_000))
    print(f"  failover: {', '.join(f'{seconds:.2f}' for seconds in took)} s", file=sys.stderr)
    return {FAILOVER: statistics.median(took)}
