"""What the end-to-end tests share: clusters, programs run as a user runs them, hosts."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit import Machine, Network, RunProgram

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Programs get Ctrl-C even if the tests run in a shell's background, where it is ignored and that is inherited."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A run directory and programs of this test's own; whatever they leave is ended."""
    made = Machine(tmp_path)
    yield made
    made.end()


@pytest.fixture
def program(machine: Machine) -> RunProgram:
    """Runs a Python program as a user would, in a process of its own."""
    return machine.program


@pytest.fixture(scope="module")
def cml() -> Iterator[Any]:
    """The package, with an embedded cluster of two CPUs that the tests of a file share."""
    import concurrent_ml

    for name in [key for key in os.environ if key.startswith("CLUSTER_")]:
        del os.environ[name]
    concurrent_ml.init(num_cpus=2, resources={"lamp": 1})
    yield concurrent_ml
    concurrent_ml.shutdown()


@pytest.fixture
def net() -> Iterator[Network]:
    """Hosts joined by a bridge."""
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def getting_started() -> Path:
    """The user's own first program."""
    case = ROOT.parent / "shared/cases/getting_started.py"
    return case if case.exists() else ROOT / "examples/getting_started.py"
