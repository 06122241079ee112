"""Several hosts on one machine, for tests of what crosses a network.

A host is a network namespace with an address of its own; all hosts of a `Network` hang on one bridge. Real daemons run
in them, links are cut and slowed, processes are killed and paused::

    with Network() as net:
        a, b = net.host("a"), net.host("b")
        a.cluster_up(num_cpus=2)
        b.cluster_join(a, num_cpus=2)
        print(a.python("import concurrent_ml as cml; cml.init(); print(cml.nodes())").stdout)
        net.cut(b)
        wait_until(lambda: b.name not in alive_nodes(a), 30, "the head gives up the node that was cut off")

Everything a network made is gone when its ``with`` ends, and what a killed test process left behind is removed when
the next network is made. It takes root's rights (CAP_NET_ADMIN and CAP_SYS_ADMIN) and the commands ``ip`` and ``tc``.
"""

from testkit.etcd import start_etcd
from testkit.host import CommandFailed, Host
from testkit.machine import Machine, RunProgram
from testkit.network import Network
from testkit.permissions import TestkitUnavailable
from testkit.processes import Process, Role
from testkit.remains import assert_nothing_left, leftovers
from testkit.waiting import DeadlinePassed, wait_until

__all__ = [
    "CommandFailed",
    "DeadlinePassed",
    "Host",
    "Machine",
    "Network",
    "Process",
    "Role",
    "RunProgram",
    "TestkitUnavailable",
    "assert_nothing_left",
    "leftovers",
    "start_etcd",
    "wait_until",
]
