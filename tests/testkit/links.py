"""A slow link: by the kernel where it can, by a process that passes packets on where it cannot."""

import os
import re
import subprocess
import sys

from testkit.permissions import has_netem, ip, tc
from testkit.remains import MARK

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def seconds(text: str) -> float:
    """A delay as ``tc`` writes it, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text)
    if match is None:
        raise ValueError(f'not a delay such as "20ms": {text!r}')
    return float(match[1]) * _UNITS[match[2]]


class SlowedLink:
    """One host's link while it is slowed.

    Without netem, the port of the host leaves the bridge and a new pair of devices takes its place there::

        eth0 (host) -- port    delay process    far -- near -- br0
    """

    def __init__(self, bridge: str, port: str, inside: str, is_cut: bool, run: str) -> None:
        self.bridge_side = port
        self._bridge = bridge
        self._port = port
        self._inside = inside
        self._is_cut = is_cut
        self._run = run
        self._relay: subprocess.Popen[bytes] | None = None

    def apply(self, delay: str | None, rate: str | None) -> None:
        """Sets delay and rate, for both directions."""
        relayed = delay is not None and not has_netem(self._bridge, self._port)
        if relayed and delay is not None:
            self._start_relay(seconds(delay))
        shape: list[str] = []
        if delay is not None and not relayed:
            # The queue must hold what the link carries in the delay; netem's 1,000 packets are too few for a fast one.
            shape = ["netem", "delay", delay, "limit", "100000", *(["rate", rate] if rate else [])]
        elif rate is not None:
            shape = ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
        if shape:
            tc(self._bridge, "qdisc", "replace", "dev", self._port, "root", *shape)
            tc(self._inside, "qdisc", "replace", "dev", "eth0", "root", *shape)

    def undo(self) -> None:
        """Makes the link direct again; the caller puts the port back on the bridge if it is to be there."""
        tc(self._bridge, "qdisc", "del", "dev", self._port, "root", check=False)
        tc(self._inside, "qdisc", "del", "dev", "eth0", "root", check=False)
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
            if self._relay.stdout is not None:
                self._relay.stdout.close()
            ip("-n", self._bridge, "link", "del", self.bridge_side, check=False)
            self.bridge_side = self._port
            if not self._is_cut:
                ip("-n", self._bridge, "link", "set", self._port, "master", "br0", check=False)

    def _start_relay(self, delay: float) -> None:
        near, far = f"n{self._port[1:]}", f"f{self._port[1:]}"
        ip("-n", self._bridge, "link", "add", near, "type", "veth", "peer", "name", far)
        ip("-n", self._bridge, "link", "set", far, "up")
        ip("-n", self._bridge, "link", "set", near, "up")
        self.bridge_side = near
        command = ["nsenter", f"--net=/run/netns/{self._bridge}", sys.executable, "-m", "testkit.relay"]
        self._relay = subprocess.Popen(
            [*command, self._port, far, str(delay)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, MARK: self._run, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
        )
        for namespace, device in ((self._inside, "eth0"), (self._bridge, near)):
            _whole_frames_only(namespace, device)
        stdout = self._relay.stdout
        if stdout is None or stdout.readline() != b"ready\n":
            raise RuntimeError(f"the process that delays packets ended with {self._relay.wait()}")
        ip("-n", self._bridge, "link", "set", self._port, "nomaster")
        if not self._is_cut:
            ip("-n", self._bridge, "link", "set", near, "master", "br0")


def _whole_frames_only(namespace: str, device: str) -> None:
    """Turns a device's offloads off: the relay passes on frames as they are, so they need their checksums and sizes."""
    subprocess.run(
        [
            "nsenter",
            f"--net=/run/netns/{namespace}",
            sys.executable,
            "-m",
            "testkit.relay",
            "--no-offload",
            device,
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
    )
