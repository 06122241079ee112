"""An etcd whose members are hosts of a network."""

import itertools
from collections.abc import Sequence

from testkit.host import Host

_numbers = itertools.count()


def start_etcd(members: Sequence[Host]) -> str:
    """Starts a member on each host and returns what ``cluster up --state`` takes.

    The members elect one of them within a second or two; a head that is started at once waits for that.
    """
    names = [f"{host.name}=http://{host.address}:2380" for host in members]
    number = next(_numbers)
    for host in members:
        client, peer = f"http://{host.address}:2379", f"http://{host.address}:2380"
        command = ["etcd", "--name", host.name, "--data-dir", host.directory / f"etcd{number}"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        # Disks of machines that test are slow and shared, and nobody pulls the plug.
        command += ["--initial-cluster", ",".join(names), "--unsafe-no-fsync"]
        # As newer ones do by themselves: a member that comes back must not depose the leader of the others.
        command += ["--pre-vote=true"]
        with (host.directory / "etcd.log").open("w") as log:
            host.popen(command, stdout=log, stderr=log)
    return "etcd://" + ",".join(f"{host.address}:2379" for host in members)
