"""`ActorUnavailableError`: what becomes of calls whose actor dies under them and comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import concurrent_ml as cml
from concurrent_ml.exceptions import ActorDiedError, ActorError, ActorUnavailableError
from testkit import wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    cml.init(num_cpus=2, log_to_driver=False)
    yield
    cml.shutdown()


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def pid(self) -> int:
        return os.getpid()

    def slow(self, seconds: float, begun: Path | None = None) -> int:
        if begun is not None:
            begun.touch()
        time.sleep(seconds)
        self.count += 1
        return self.count


def under_way(actor, begun: Path, seconds: float = 30) -> cml.ObjectRef[int]:
    """A call that the actor is at."""
    call = actor.slow.remote(seconds, begun)
    wait_until(begun.exists, deadline=20, what="the call begins")
    return call


@pytest.mark.parametrize("straight", [False, True])
def test_what_was_under_way_is_unavailable_and_later_calls_wait(straight: bool, tmp_path: Path) -> None:
    actor = cml.remote(max_restarts=1)(Counter).remote()
    # After a few calls they go straight to it, past the daemon.
    pid = [cml.get(actor.pid.remote(), timeout=20) for _ in range(20 if straight else 1)][-1]
    running = under_way(actor, tmp_path / "first")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorUnavailableError, match=r"SIGKILL.*made anew.*max_task_retries") as caught:
        cml.get(running, timeout=20)
    assert isinstance(caught.value, ActorError)
    assert caught.value.actor_id == actor._actor_id
    assert cml.get(actor.slow.remote(0), timeout=20) == 1
    # That was its last life.
    running = under_way(actor, tmp_path / "last")
    cml.kill(actor)
    with pytest.raises(ActorDiedError):
        cml.get(running, timeout=20)


def test_a_call_that_may_be_tried_again_is(tmp_path: Path) -> None:
    actor = cml.remote(max_restarts=1, max_task_retries=1)(Counter).remote()
    pid = cml.get(actor.pid.remote(), timeout=20)
    running = under_way(actor, tmp_path / "begun", seconds=0.5)
    os.kill(pid, signal.SIGKILL)
    assert cml.get(running, timeout=20) == 1
