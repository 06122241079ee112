"""A cluster on this machine for the rows of the remote client, each system's own way."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def remote_cluster(system: str) -> Iterator[str]:
    """Yields the address that a program without a daemon on its machine connects to."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield from (_ray() if system == "ray" else _ours(folder))


def _ours(folder: str) -> Iterator[str]:
    cluster = str(ROOT / ".venv/bin/cluster")
    environment = {**os.environ, "CLUSTER_DIR": folder}
    up = [
        cluster,
        "up",
        "--host",
        "127.0.0.1",
        "--port",
        "8364",
        "--data-port",
        "8366",
        "--gateway-port",
        "8367",
    ]
    subprocess.run(up, env=environment, check=True, capture_output=True, timeout=60)
    os.environ["CLUSTER_TOKEN"] = (Path(folder) / "token").read_text().strip()
    try:
        yield "127.0.0.1:8364"
    finally:
        del os.environ["CLUSTER_TOKEN"]
        subprocess.run([cluster, "down"], env=environment, check=False, capture_output=True, timeout=60)


def _ray() -> Iterator[str]:
    command = str(ROOT / ".bench-venv/bin/ray")
    # Its workers have the ports from 10002 to 19999.
    start = [command, "start", "--head", "--port", "6390", "--ray-client-server-port", "20011"]
    start += ["--include-dashboard", "false", "--disable-usage-stats"]
    # Without the token that its client has no option for; a program started below inherits it.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    subprocess.run(start, check=True, capture_output=True, timeout=120)
    try:
        yield "ray://127.0.0.1:20011"
    finally:
        del os.environ["RAY_AUTH_MODE"]
        subprocess.run([command, "stop", "--force"], check=False, capture_output=True, timeout=60)
