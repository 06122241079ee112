"""A bridge in a namespace of its own, and the hosts that hang on it."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import tempfile
import uuid
from pathlib import Path
from types import TracebackType

from testkit import remains
from testkit.host import Host
from testkit.links import SlowedLink
from testkit.permissions import ip, live_pids, require_namespaces
from testkit.processes import all_processes, namespace_inode

_numbers = itertools.count()
_NAMESPACES = Path("/run/netns")


class Network:
    """Hosts that reach each other and nothing else.

    The bridge has its own namespace too, so the machine's firewall, routes and interfaces are neither used nor
    changed, and networks of tests that run at the same time cannot meet, though all use the same addresses.
    """

    SUBNET = "10.77.0"

    def __init__(self) -> None:
        require_namespaces()
        _remove_networks_of_dead_processes()
        self.run = uuid.uuid4().hex
        self.hosts: dict[str, Host] = {}
        # Process id and number make the names unique; an interface has no room for more than 15 letters.
        self._prefix = f"tk{os.getpid():x}-{next(_numbers)}"
        # A short path: Unix socket addresses hold 107 bytes.
        self._directory = Path(tempfile.mkdtemp(prefix=f"{self._prefix}-"))
        self._slowed: dict[str, SlowedLink] = {}
        self._cut: set[str] = set()
        self.bridge = f"{self._prefix}-br"
        try:
            ip("netns", "add", self.bridge)
            ip("-n", self.bridge, "link", "add", "br0", "type", "bridge")
            ip("-n", self.bridge, "link", "set", "br0", "up")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Network":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def host(self, name: str) -> Host:
        """A new host, with an address and a run directory of its own."""
        if not re.fullmatch(r"[a-z][a-z0-9]{0,9}", name) or name in self.hosts:
            raise ValueError(f"not a new host's name of up to ten letters and digits: {name!r}")
        address = f"{self.SUBNET}.{len(self.hosts) + 1}"
        directory = self._directory / name
        directory.mkdir(mode=0o700)
        host = Host(name, address, f"{self._prefix}-{name}", directory, self.run)
        self.hosts[name] = host
        inside, port = host.namespace, _port(host)
        ip("netns", "add", inside)
        ip("-n", self.bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", inside)
        ip("-n", self.bridge, "link", "set", port, "master", "br0", "up")
        ip("-n", inside, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", inside, "link", "set", "lo", "up")
        ip("-n", inside, "link", "set", "eth0", "up")
        return host

    def cut(self, host: Host) -> None:
        """Silences a host's link: packets vanish both ways, and neither end is told, as when a switch dies."""
        ip("-n", self.bridge, "link", "set", self._bridge_side(host), "nomaster")
        self._cut.add(host.name)

    def restore(self, host: Host) -> None:
        """Makes a link what it was at first: neither cut nor slowed."""
        if host.name in self._slowed:
            self._slowed.pop(host.name).undo()
        ip("-n", self.bridge, "link", "set", _port(host), "master", "br0")
        self._cut.discard(host.name)

    def slow(self, host: Host, delay: str | None = None, rate: str | None = None) -> None:
        """Delays what passes a host's link by ``delay`` ("20ms") in each direction, at ``rate`` ("100mbit") at most.

        Replaces what was set before. The kernel's netem does it where there is one; otherwise a small process that
        passes the packets on, good for some hundred Mbit/s.
        """
        if host.name in self._slowed:
            self._slowed.pop(host.name).undo()
        link = SlowedLink(self.bridge, _port(host), host.namespace, host.name in self._cut, self.run)
        self._slowed[host.name] = link
        link.apply(delay, rate)

    def assert_nothing_left(self, deadline: float = 5) -> None:
        """Fails unless every process, segment and socket of this network's hosts is gone."""
        remains.assert_nothing_left(
            self.run, [host.directory for host in self.hosts.values()], deadline=deadline
        )

    def close(self) -> None:
        """Ends every process of every host, then removes hosts, bridge and folders. Never fails half way."""
        for link in self._slowed.values():
            with contextlib.suppress(Exception):
                link.undo()
        for host in self.hosts.values():
            host.kill_everything()
        for process in remains.marked(self.run):
            process.kill()
        for namespace in [host.namespace for host in self.hosts.values()] + [self.bridge]:
            ip("netns", "del", namespace, check=False)
        self.hosts = {}
        self._slowed = {}
        shutil.rmtree(self._directory, ignore_errors=True)

    def _bridge_side(self, host: Host) -> str:
        slowed = self._slowed.get(host.name)
        return slowed.bridge_side if slowed is not None else _port(host)


def _port(host: Host) -> str:
    return f"p-{host.name}"


def _remove_networks_of_dead_processes() -> None:
    alive = live_pids()

    def abandoned(folder: Path) -> list[Path]:
        entries = folder.iterdir() if folder.is_dir() else ()
        named = ((entry, re.fullmatch(r"tk([0-9a-f]+)-.+", entry.name)) for entry in entries)
        return [entry for entry, name in named if name is not None and int(name[1], 16) not in alive]

    for entry in abandoned(_NAMESPACES):
        inode = namespace_inode(entry)
        for process in all_processes():
            if inode and process.network_namespace() == inode:
                process.kill(signal.SIGKILL)
        ip("netns", "del", entry.name, check=False)
    for entry in abandoned(Path(tempfile.gettempdir())):
        shutil.rmtree(entry, ignore_errors=True)
