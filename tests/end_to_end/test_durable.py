"""Durable objects: what is on disk or in S3 outlives every node that had it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import concurrent_ml as cml
from testkit import Host, Network, Role, wait_until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "durable"
    cml.init(num_cpus=2, durable=f"file://{place}")
    yield place
    cml.shutdown()


def files(place: Path) -> list[str]:
    return sorted(os.listdir(place)) if place.exists() else []


def test_a_put_is_written_when_put_returns_and_goes_with_its_last_ref(storage: Path) -> None:
    small, large = cml.put("x", durable=True), cml.put(bytes(20_000_000), durable=True)
    assert len(files(storage)) == 2
    assert max(os.path.getsize(storage / file) for file in files(storage)) >= 20_000_000
    assert cml.get(small) == "x"
    del small, large
    wait_until(lambda: not files(storage), 5, "the copies are deleted")


def test_a_task_has_ended_when_its_results_are_written(storage: Path) -> None:
    @cml.remote(durable=True, num_returns=2)
    def two() -> tuple[int, bytes]:
        return 1, bytes(1_000_000)

    refs = two.remote()
    cml.wait(refs, num_returns=2, timeout=30)
    assert len(files(storage)) == 2
    assert [len(file.split(".")) for file in files(storage)] == [4, 4]


def test_a_cluster_leaves_nothing_behind(tmp_path: Path) -> None:
    place = tmp_path / "durable"
    cml.init(num_cpus=1, durable=f"file://{place}")
    kept = cml.put(1, durable=True)
    assert len(files(place)) == 1
    cml.shutdown()
    assert files(place) == []
    del kept


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cml.init(num_cpus=1, durable=f"file://{tmp_path}/file/below")
    try:
        with pytest.raises(OSError, match="file/below"):
            cml.put(1, durable=True)

        @cml.remote(durable=True, max_retries=0)
        def one() -> int:
            return 1

        with pytest.raises(cml.exceptions.ObjectLostError, match="returned, but no durable copy"):
            cml.get(one.remote())
    finally:
        cml.shutdown()


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(TypeError, match="True or False"):
        cml.remote(durable=1)(lambda: 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(cml.exceptions.ClusterConnectionError, match="s3://bucket/prefix"):
        cml.init(num_cpus=1, durable="gs://bucket")


SURVIVES = """
import sys
import numpy as np
import concurrent_ml as cml
cml.init()

@cml.remote(resources={"away": 1}, max_retries=0, durable=True)
def made():
    return np.arange(1_000_000)

@cml.remote(resources={"away": 1})
def put():
    return cml.put(np.arange(500_000), durable=True), cml.put("small", durable=True)

result = made.remote()
large, small = cml.get(put.remote())
cml.wait([result, large, small], num_returns=3, fetch_local=False)
print("made", flush=True)
sys.stdin.readline()
print(cml.get(result).sum(), cml.get(large).sum(), cml.get(small), flush=True)
"""
SUMS = f"{sum(range(1_000_000))} {sum(range(500_000))} small\n"


def survive(a: Host, b: Host, url: str, env: dict[str, str]) -> None:
    """Values that were made on b are read when it is gone, by a program on a."""
    a.cluster_up(num_cpus=1, durable=url, env=env)
    b.cluster_join(a, num_cpus=1, resources='{"away": 8}', durable=url, env=env)
    driver = a.popen_python(SURVIVES)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "made\n"
    b.kill(Role.WORKER)
    wait_until(lambda: len(a.cluster_json("list", "nodes")) == 1, 20, "b is lost")
    out, err = driver.communicate("\n", timeout=60)
    assert driver.returncode == 0, err
    assert out == SUMS


def test_values_of_a_killed_node_are_read_from_a_shared_directory(net: Network, tmp_path: Path) -> None:
    place = tmp_path / "shared"
    survive(net.host("a"), net.host("b"), f"file://{place}", {})
    wait_until(lambda: not files(place), 10, "the other node deletes what the killed one wrote")


def test_without_a_shared_place_the_error_says_where_it_was_looked_for(net: Network) -> None:
    a, b = net.host("a"), net.host("b")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1, resources='{"away": 8}')
    driver = a.popen_python(SURVIVES)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "made\n"
    b.kill(Role.WORKER)
    wait_until(lambda: len(a.cluster_json("list", "nodes")) == 1, 20, "b is lost")
    _, err = driver.communicate("\n", timeout=60)
    assert "ObjectLostError" in err, err
    assert "its durable copy cannot be read (file://" in err, err


@pytest.fixture
def bucket(net: Network) -> Iterator[tuple[Host, str, dict[str, str]]]:
    """An S3 service on a host of its own, with a bucket in it."""
    pytest.importorskip("moto")
    host = net.host("s3")
    endpoint = f"http://{host.address}:5000"
    command = [sys.executable, "-m", "moto.server", "-H", host.address, "-p", "5000"]
    server = host.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    make = f"""
import urllib.request
urllib.request.urlopen(urllib.request.Request("{endpoint}/bucket", method="PUT"), timeout=5)
"""
    wait_until(lambda: host.run([sys.executable, "-c", make], check=False).returncode == 0, 30, "S3 is up")
    env = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    yield host, endpoint, env
    server.send_signal(signal.SIGTERM)


def keys(host: Host, endpoint: str) -> int:
    look = f'import urllib.request; print(urllib.request.urlopen("{endpoint}/bucket").read().count(b"<Key>"))'
    return int(host.run([sys.executable, "-c", look]).stdout)


def test_values_of_a_killed_node_are_read_from_s3(
    net: Network, bucket: tuple[Host, str, dict[str, str]]
) -> None:
    host, endpoint, env = bucket
    survive(net.host("a"), net.host("b"), "s3://bucket/below/this", env)
    wait_until(lambda: keys(host, endpoint) == 0, 15, "the copies are deleted")


def test_an_s3_service_that_is_away_is_an_error(
    net: Network, bucket: tuple[Host, str, dict[str, str]]
) -> None:
    _, _, env = bucket
    a = net.host("a")
    a.cluster_up(num_cpus=1, durable="s3://nosuch", env=env)
    done = a.python(
        "import concurrent_ml as cml\ncml.init()\ncml.put(1, durable=True)", check=False, timeout=60
    )
    assert "OSError" in done.stderr, done.stderr
    assert "s3://nosuch" in done.stderr, done.stderr
