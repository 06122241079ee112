"""The testkit's own promises, shown with plain sockets and web servers."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testkit import CommandFailed, DeadlinePassed, Host, Network, assert_nothing_left, leftovers, wait_until
from testkit.permissions import ip
from testkit.processes import Process, descendants

FETCH = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=3).read().decode())
"""

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("listening", flush=True)
while True:
    peer, _ = server.accept()
    while data := peer.recv(65536):
        peer.sendall(data)
"""
# Seconds that one byte takes there and back.
ROUND_TRIP = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 7000), timeout=10)
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
peer.sendall(b"."); peer.recv(1)
start = time.perf_counter()
for _ in range(10):
    peer.sendall(b"."); peer.recv(1)
print((time.perf_counter() - start) / 10)
"""
# Megabytes a second that go to the echo server and come back.
TRANSFER = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 7000), timeout=20)
size = int(sys.argv[2]); sent = got = 0
start = time.perf_counter()
while got < size:
    if sent < size:
        peer.sendall(bytes(65536)); sent += 65536
    got += len(peer.recv(1 << 20))
print(size / 1e6 / (time.perf_counter() - start))
"""


@pytest.fixture
def net():
    with Network() as network:
        yield network


def serve(host: Host) -> None:
    (host.directory / "page").write_text(f"served by {host.name}")
    command = [
        sys.executable,
        "-m",
        "http.server",
        "8000",
        "--bind",
        host.address,
        "--directory",
        host.directory,
    ]
    host.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def fetch(client: Host, server: Host) -> str:
    """What the server's page holds, as seen from the client; empty when it cannot be had."""
    command = [sys.executable, "-c", FETCH, f"http://{server.address}:8000/page"]
    return client.run(command, check=False).stdout.strip()


def start_echo(host: Host) -> None:
    process = host.popen([sys.executable, "-c", ECHO, host.address])
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"


def round_trip(client: Host, server: Host) -> float:
    return float(client.run([sys.executable, "-c", ROUND_TRIP, server.address]).stdout)


def test_hosts_reach_each_other_by_address(net: Network):
    a, b = net.host("a"), net.host("b")
    serve(b)
    assert wait_until(lambda: fetch(a, b), 10, "a fetches b's page") == "served by b"


def test_hosts_have_their_own_loopback_and_directory(net: Network):
    a, b = net.host("a"), net.host("b")
    listen = "import socket; socket.create_server(('127.0.0.1', 7001)); print('bound', flush=True); input()"
    for host in (a, b):
        process = host.popen([sys.executable, "-c", listen], stdin=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
    show = [sys.executable, "-c", "import os; print(os.environ['CLUSTER_DIR'])"]
    assert Path(a.run(show).stdout.strip()) == a.directory != b.directory
    assert a.directory.stat().st_mode & 0o777 == 0o700


def test_a_cut_link_is_silent_until_restored(net: Network):
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    serve(b)
    wait_until(lambda: fetch(a, b), 10, "a fetches b's page")
    net.cut(b)
    assert fetch(a, b) == ""
    serve(c)
    assert wait_until(lambda: fetch(a, c), 10, "the other hosts go on") == "served by c"
    # Nobody was told: the interface of the host that is cut off still looks well.
    assert "LOWER_UP" in ip("-n", b.namespace, "link", "show", "eth0").stdout
    net.restore(b)
    assert wait_until(lambda: fetch(a, b), 10, "a fetches b's page again") == "served by b"


def test_a_delay_counts_in_each_direction_and_ends_with_restore(net: Network):
    a, b = net.host("a"), net.host("b")
    start_echo(b)
    assert round_trip(a, b) < 0.010
    net.slow(b, delay="20ms")
    assert 0.040 <= round_trip(a, b) < 0.080
    net.restore(b)
    assert round_trip(a, b) < 0.010


def test_a_slowed_link_can_be_cut(net: Network):
    a, b = net.host("a"), net.host("b")
    serve(b)
    net.slow(b, delay="5ms")
    wait_until(lambda: fetch(a, b), 10, "a fetches b's page over the slowed link")
    net.cut(b)
    assert fetch(a, b) == ""
    net.restore(b)
    assert wait_until(lambda: fetch(a, b), 10, "a fetches b's page again") == "served by b"


def test_a_rate_limits_what_passes(net: Network):
    a, b = net.host("a"), net.host("b")
    start_echo(b)
    net.slow(b, rate="80mbit")
    command = [sys.executable, "-c", TRANSFER, b.address, "5000000"]
    assert float(a.run(command).stdout) < 12  # 80 Mbit/s are 10 MB/s


def test_delay_and_rate_together(net: Network):
    a, b = net.host("a"), net.host("b")
    start_echo(b)
    net.slow(b, delay="10ms", rate="80mbit")
    assert round_trip(a, b) >= 0.020
    command = [sys.executable, "-c", TRANSFER, b.address, "5000000"]
    assert float(a.run(command).stdout) < 12


def test_a_command_that_fails_shows_what_it_printed(net: Network):
    with pytest.raises(CommandFailed, match=r"(?s)on a, status 3.*so it is"):
        net.host("a").run([sys.executable, "-c", "import sys; print('so it is'); sys.exit(3)"])


def test_a_command_that_hangs_is_ended_at_its_deadline(net: Network):
    a = net.host("a")
    with pytest.raises(CommandFailed, match=r"after 0.3 s not done"):
        a.run(["sleep", "600"], timeout=0.3)
    assert a.processes() == []


def test_the_same_names_can_be_used_by_two_networks_at_once():
    with Network() as one, Network() as other:
        first, second = one.host("a"), other.host("a")
        assert first.address == second.address
        serve(first)
        wait_until(lambda: fetch(first, first), 10, "the first host serves itself")
        assert fetch(second, second) == ""


def test_pause_and_resume_stop_and_continue_a_process(net: Network):
    process = Process.look(net.host("a").popen(["sleep", "600"]).pid)
    assert process is not None
    process.pause()
    assert process.state() == "T"
    process.resume()
    wait_until(lambda: process.state() == "S", 5, "the process goes on")
    process.kill()
    assert not process.alive()


def test_descendants_are_found_level_by_level(net: Network):
    top = net.host("a").popen(["sh", "-c", "sh -c 'sleep 601; true'; true"])

    def two_below() -> list[Process]:
        found = descendants(top.pid)
        return found if len(found) == 2 and found[1].command[:1] == ("sleep",) else []

    found = wait_until(two_below, 5, "the shell started a shell that started a sleep")
    assert [process.parent for process in found] == [top.pid, found[0].pid]


def test_nothing_is_left_when_a_test_fails():
    with Network() as net:
        a = net.host("a")
        # A daemon as stubborn as they come: its own session, no terminal, its parent gone.
        a.run(["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 </dev/null &"])
        namespaces, directory, run = [a.namespace, net.bridge], a.directory, net.run
        wait_until(a.processes, 5, "the daemon runs on after its parent")
        assert leftovers(run, [directory])
    listed = ip("netns", "list").stdout
    assert not [name for name in namespaces if name in listed]
    assert not directory.exists()
    assert leftovers(run, [directory]) == []


ABANDONED = """
import sys, time
from testkit import Network
net = Network()
host = net.host("a")
child = host.popen(["sleep", "600"])
print(host.namespace, child.pid, host.directory, flush=True)
time.sleep(600)
"""


def test_what_a_killed_test_process_left_is_removed_by_the_next():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    victim = subprocess.Popen(
        [sys.executable, "-c", ABANDONED], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert victim.stdout is not None
    namespace, child, directory = victim.stdout.readline().split()
    victim.kill()
    victim.wait()
    victim.stdout.close()
    assert namespace in ip("netns", "list").stdout
    with Network():
        assert not re.search(rf"^{namespace}\b", ip("netns", "list").stdout, re.MULTILINE)
        assert Process.look(int(child)) is None
        assert not Path(directory).exists()


SEGMENT = """
import mmap, os, socket, time
segment = os.memfd_create("a-segment")
os.ftruncate(segment, 4096)
view = mmap.mmap(segment, 4096)
server = socket.socket(socket.AF_UNIX)
server.bind(os.environ["CLUSTER_DIR"] + "/listening")
server.listen()
print("ready", flush=True)
time.sleep(600)
"""


def test_leftovers_name_processes_segments_and_sockets(net: Network):
    a = net.host("a")
    process = a.popen([sys.executable, "-c", SEGMENT])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    found = "\n".join(leftovers(net.run, [a.directory]))
    assert f"process {process.pid}" in found
    assert "segment /memfd:a-segment" in found
    assert f"socket file {a.directory}/listening" in found
    process.kill()
    process.wait()
    with pytest.raises(AssertionError, match="socket file"):
        assert_nothing_left(net.run, [a.directory], deadline=0.1)
    (a.directory / "listening").unlink()
    net.assert_nothing_left()


def test_wait_until_says_what_did_not_come_about():
    begun = time.monotonic()
    with pytest.raises(DeadlinePassed, match=r"not within 0.1 s: the moon turns green \(last seen: 0\)"):
        wait_until(lambda: 0, 0.1, "the moon turns green")
    assert time.monotonic() - begun < 1
