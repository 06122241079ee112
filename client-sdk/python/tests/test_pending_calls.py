"""`max_pending_calls`, and other limits that a caller of an actor meets where the call is written."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import concurrent_ml as cml
from concurrent_ml.exceptions import ActorDiedError, PendingCallsLimitExceeded

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    cml.init(num_cpus=2, log_to_driver=False)
    yield
    cml.shutdown()


class Slow:
    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def exit(self) -> None:
        cml.exit_actor()


def test_calls_beyond_the_limit_are_refused_until_some_are_answered() -> None:
    actor = cml.remote(max_pending_calls=2)(Slow).remote()
    first = [actor.nap.remote(0.5), actor.nap.remote(0)]
    with pytest.raises(PendingCallsLimitExceeded, match=r"nap was not called: 2 calls .*max_pending_calls=2"):
        actor.nap.remote(0)
    with pytest.raises(PendingCallsLimitExceeded):
        actor.nap.options(name="other").map([0])
    assert cml.get(first, timeout=20) == [0.5, 0]
    assert cml.get(actor.nap.remote(0), timeout=20) == 0


def test_minus_one_is_no_limit_and_zero_is_a_mistake() -> None:
    actor = cml.remote(Slow).options(max_pending_calls=-1).remote()
    assert len(cml.get([actor.nap.remote(0) for _ in range(100)], timeout=20)) == 100
    with pytest.raises(ValueError, match="max_pending_calls"):
        cml.remote(Slow).options(max_pending_calls=0)


def test_a_call_cannot_be_cancelled_by_force() -> None:
    actor = cml.remote(Slow).remote()
    ref = actor.nap.remote(0.5)
    with pytest.raises(ValueError, match="force=True"):
        cml.cancel(ref, force=True)
    assert cml.get(ref, timeout=20) == 0.5


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_dead_actor_is_named_by_its_id(how: str) -> None:
    actor = cml.remote(Slow).remote()
    cml.get(actor.nap.remote(0), timeout=20)
    if how == "kill":
        calls = [actor.nap.remote(30), actor.nap.remote(30)]
        cml.kill(actor)
    else:
        calls = [actor.exit.remote(), actor.nap.remote(0)]
    for call in [*calls, actor.nap.remote(0)]:
        with pytest.raises(ActorDiedError) as caught:
            cml.get(call, timeout=20)
        assert caught.value.actor_id == actor._actor_id


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("host", "host:8264"),
        ("10.0.0.1", "10.0.0.1:8264"),
        ("::1", "[::1]:8264"),
        ("[::1]", "[::1]:8264"),
        ("[::1]:7", "[::1]:7"),
        (" host:7 ", "host:7"),
        ("one, two:9", "one:8264,two:9"),
    ],
)
def test_an_address_without_a_port_has_the_default_one(given: str, whole: str) -> None:
    from concurrent_ml._api import _whole_address

    assert _whole_address(given) == whole


@pytest.mark.parametrize(
    "given", ["", ":8264", "host:", "host:0", "host:99999", "http://host:8264", "a b", "a,,b"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    from concurrent_ml._api import _whole_address

    with pytest.raises(ValueError, match="must be host:port"):
        _whole_address(given)
