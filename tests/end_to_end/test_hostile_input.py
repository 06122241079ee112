"""Strangers, and peers that lie, on the ports of a cluster: others are served meanwhile."""

import contextlib
import os
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(120)

HEAD, DATA, GATEWAY = 8264, 8266, 8267
# A client's first bytes on an HTTP/2 connection, and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")

# Runs on another host than the cluster's, and says nothing on a thousand connections to each port.
CROWD = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
address, first, *ports = sys.argv[1:]
crowd = []
for port in ports:
    for _ in range(1000):
        crowd.append(socket.create_connection((address, int(port)), timeout=10))
        crowd[-1].sendall(bytes.fromhex(first))
print("there", flush=True)
sys.stdin.read()
closed = 0
deadline = time.monotonic() + 20
for one in crowd:
    one.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
        while data := one.recv(1 << 16):
            pass
        closed += 1
    except TimeoutError:
        pass
    except ConnectionError:
        closed += 1
print(closed)
"""

# What other users do meanwhile.
WORK = """
import time, numpy as np, concurrent_ml as cml
begun = time.monotonic()
cml.init()
attached = time.monotonic() - begun

@cml.remote
def double(x):
    return 2 * x

@cml.remote(num_cpus=0, resources={"other": 1})
def make():
    return np.ones(2_000_000)

assert cml.get([double.remote(n) for n in range(500)]) == [2 * n for n in range(500)]
begun = time.monotonic()
for n in range(100):
    assert cml.get(double.remote(n)) == 2 * n
trip = (time.monotonic() - begun) / 100
# Over the data port.
assert cml.get(make.remote()).sum() == 2_000_000
print(attached, trip)
"""


@pytest.fixture
def cluster(net: Network) -> tuple[Host, Host]:
    """The host of the head, and one that hosts nothing."""
    head, other, stranger = net.host("head"), net.host("other"), net.host("stranger")
    head.cluster_up(num_cpus=2)
    other.cluster_join(head, num_cpus=1, resources={"other": 1})
    return head, stranger


def others_are_served(head: Host) -> None:
    attached, trip = map(float, head.python(WORK, timeout=45).stdout.split())
    assert attached < 3
    assert trip < 0.05


def open_files(head: Host, role: Role) -> int:
    return len(list(Path(f"/proc/{head.process(role).pid}/fd").iterdir()))


@pytest.mark.parametrize("first", [b"", PREFACE], ids=["nothing", "preface"])
def test_a_thousand_connections_that_say_nothing(cluster: tuple[Host, Host], first: bytes) -> None:
    head, stranger = cluster
    before = {role: open_files(head, role) for role in (Role.HEAD, Role.WORKER)}
    ports = [str(port) for port in (HEAD, DATA, GATEWAY)]
    crowd = stranger.popen_python(CROWD, [head.address, first.hex(), *ports])
    assert crowd.stdout is not None
    assert crowd.stdout.readline() == "there\n"
    others_are_served(head)
    # Who has not shown the token in time is shown the door, one way or another.
    for role, files in before.items():
        wait_until(lambda role=role, files=files: open_files(head, role) < files + 40, 30, "strangers go")
    others_are_served(head)
    # The last of them, too, when their time has come.
    out, _ = crowd.communicate("", timeout=30)
    assert int(out) == 3000


def test_a_head_with_few_open_files_outlives_a_crowd(net: Network) -> None:
    head, stranger = net.host("head"), net.host("stranger")
    head.run(
        ["prlimit", "--nofile=512:512", "cluster", "up", "--host", head.address, "--num-cpus=2", "--json"]
    )
    head.join_cluster_of(head)
    crowd = stranger.popen_python(CROWD, [head.address, "", str(HEAD), str(GATEWAY)])
    assert crowd.stdout is not None
    assert crowd.stdout.readline() == "there\n"
    program = "import concurrent_ml as cml; cml.init(); print(cml.get(cml.remote(abs).remote(-3)))"
    assert head.python(program, timeout=45).stdout == "3\n"
    crowd.communicate("", timeout=30)


def talk(host: Host, port: int, *chunks: bytes) -> bytes:
    """What the other end says to this until it closes the connection; the test fails if it does not."""
    script = (
        "import socket, sys\n"
        f"s = socket.create_connection(({host.address!r}, {port}), timeout=40)\n"
        "try:\n"
        "    for chunk in sys.argv[1:]:\n"
        "        s.sendall(bytes.fromhex(chunk))\n"
        "    while data := s.recv(1 << 16):\n"
        "        sys.stdout.write(data.hex())\n"
        "except ConnectionError:\n"
        "    pass\n"
    )
    # In the host's own namespace, by a process of its own.
    return bytes.fromhex(host.python(script, timeout=60, arguments=[chunk.hex() for chunk in chunks]).stdout)


def grpc_call(path: str, token: str, *messages: bytes) -> bytes:
    """The bytes of an HTTP/2 request, written by hand: headers that no table compresses, then data."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return (
            struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload
        )

    def header(name: str, value: str) -> bytes:
        # Literal without indexing, lengths with a prefix of seven bits.
        def text(what: str) -> bytes:
            assert len(what) < 127 + 128
            length = bytes([len(what)]) if len(what) < 127 else bytes([127, len(what) - 127])
            return length + what.encode()

        return b"\0" + text(name) + text(value)

    headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
    headers += [("content-type", "application/grpc"), ("te", "trailers"), ("cluster-token", token)]
    out = PREFACE + frame(1, 4, 1, b"".join(header(*pair) for pair in headers))
    for message in messages:
        out += frame(0, 0, 1, message)
    return out


def grpc_message(payload: bytes, says: int | None = None) -> bytes:
    return b"\0" + struct.pack("!I", len(payload) if says is None else says) + payload


ATTACH = {HEAD: "/cluster.v1.Head/Attach", GATEWAY: "/cluster.v1.ClientService/Attach"}


@pytest.mark.parametrize("port", [HEAD, GATEWAY])
def test_frames_that_are_too_long_or_cut_off_or_nonsense(cluster: tuple[Host, Host], port: int) -> None:
    head, _ = cluster
    for message in (
        grpc_message(b"", says=0xFFFFFFFF),
        grpc_message(b"", says=64 << 20) + b"x" * 100,
        grpc_message(b"\xff" * 200),
        grpc_message(os.urandom(1000)),
        grpc_message(b"\x0a\x7f" + b"\x00" * 10),
    ):
        call = grpc_call(ATTACH[port], head.token, message)
        script = (
            "import socket, sys\n"
            f"s = socket.create_connection(({head.address!r}, {port}), timeout=20)\n"
            "s.sendall(bytes.fromhex(sys.argv[1]))\n"
            "said = b''\n"
            # The answer's trailers hold the status, whose name is not compressed away.
            "while b'grpc-status' not in said and (data := s.recv(1 << 16)):\n"
            "    said += data\n"
            "    if len(said) > 60: break\n"
            "print(len(said))\n"
        )
        assert int(head.python(script, arguments=[call.hex()]).stdout) > 0
    others_are_served(head)


def test_garbage_on_every_port(cluster: tuple[Host, Host]) -> None:
    head, stranger = cluster
    for port in (HEAD, DATA, GATEWAY):
        for garbage in (os.urandom(64), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\0" * 4096):
            script = (
                "import socket, sys\n"
                f"s = socket.create_connection(({head.address!r}, {port}), timeout=20)\n"
                "try:\n"
                "    s.sendall(bytes.fromhex(sys.argv[1]))\n"
                "    while s.recv(1 << 16): pass\n"
                "except ConnectionError: pass\n"
                "print('closed')\n"
            )
            assert stranger.python(script, arguments=[garbage.hex()]).stdout == "closed\n"
    others_are_served(head)


def test_a_frame_that_says_it_is_long_on_the_daemons_socket(cluster: tuple[Host, Host]) -> None:
    head, _ = cluster
    for garbage in (b"\xff" * 64, struct.pack("<I", 1 << 31) + b"x", struct.pack("<I", 100) + b"\x0a", b""):
        with socket.socket(socket.AF_UNIX) as ours:
            ours.settimeout(20)
            ours.connect(str(head.directory / "node.sock"))
            with contextlib.suppress(ConnectionError):
                ours.sendall(garbage)
                while ours.recv(1 << 16):
                    pass
    others_are_served(head)


def test_a_slow_reader_keeps_nobody_waiting(cluster: tuple[Host, Host]) -> None:
    head, _ = cluster
    # Asks for far more results than fit into a socket, and stands still.
    slow = head.popen_python(
        """
import os, signal, concurrent_ml as cml
cml.init()

@cml.remote
def much(n):
    return b"x" * 4000

refs = [much.remote(n) for n in range(20_000)]
print("asked", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
print(sum(len(value) for value in cml.get(refs)), flush=True)
"""
    )
    assert slow.stdout is not None
    assert slow.stdout.readline() == "asked\n"
    begun = time.monotonic()
    # Its tasks are served first where they came first: what is asked is that theirs end, and all else goes on.
    while time.monotonic() - begun < 10:
        others_are_served(head)
    os.kill(slow.pid, 18)
    assert slow.communicate(timeout=60)[0] == f"{4000 * 20_000}\n"


def test_a_remote_driver_that_reads_nothing_keeps_nobody_waiting(cluster: tuple[Host, Host]) -> None:
    head, stranger = cluster
    stranger.join_cluster_of(head)
    slow = stranger.popen_python(
        """
import os, signal, numpy as np, concurrent_ml as cml
cml.init()

@cml.remote
def much(n):
    return np.full(100_000, n)

refs = [much.remote(n) for n in range(300)]
print("asked", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
print(sum(int(value[0]) for value in cml.get(refs)), flush=True)
"""
    )
    assert slow.stdout is not None
    assert slow.stdout.readline() == "asked\n"
    for _ in range(3):
        others_are_served(head)
    with contextlib.suppress(subprocess.TimeoutExpired):
        slow.wait(0.1)
    os.kill(slow.pid, 18)
    assert slow.communicate(timeout=60)[0] == f"{sum(range(300))}\n"
