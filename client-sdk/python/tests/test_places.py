"""Where tasks run that say where, what they get that would take several things, and how they are tried again."""

import time
from typing import Any

import pytest

import concurrent_ml
from concurrent_ml import DoesNotExist, Exists, In, NodeLabelSchedulingStrategy, NotIn, exceptions

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def cml() -> Any:
    if concurrent_ml.is_initialized():
        concurrent_ml.shutdown()
    labels = {"zone": "west", "disk": "fast"}
    concurrent_ml.init(num_cpus=2, num_gpus=1, labels=labels, log_to_driver=False)
    yield concurrent_ml
    concurrent_ml.shutdown()


def test_a_node_has_its_labels_and_its_id_as_one(cml: Any) -> None:
    (node,) = cml.nodes()
    assert node["Labels"] == {"zone": "west", "disk": "fast", "node-id": node["NodeID"]}


@pytest.mark.parametrize(
    ("hard", "runs"),
    [
        ({"zone": In("west", "east")}, True),
        ({"zone": In("east")}, False),
        ({"zone": NotIn("east"), "disk": Exists()}, True),
        ({"spot": DoesNotExist()}, True),
        ({"spot": Exists()}, False),
    ],
)
def test_labels_say_where(cml: Any, hard: Any, runs: bool) -> None:
    strategy = NodeLabelSchedulingStrategy(hard, soft={"zone": In("east")})
    task = cml.remote(lambda: 1).options(scheduling_strategy=strategy).remote()
    if runs:
        assert cml.get(task, timeout=10) == 1
    else:
        with pytest.raises(exceptions.TaskUnschedulableError, match=r"needs a node with .*; there is none"):
            cml.get(task, timeout=10)


def test_a_node_that_is_not_there(cml: Any) -> None:
    @cml.remote
    def where() -> str:
        return concurrent_ml.get_runtime_context().get_node_id()

    here = cml.nodes()[0]["NodeID"]

    def on(node: str, soft: bool) -> Any:
        strategy = concurrent_ml.NodeAffinitySchedulingStrategy(node, soft)
        return cml.get(where.options(scheduling_strategy=strategy).remote(), timeout=10)

    assert on(here, False) == here
    assert on("00000000000000aa", True) == here
    with pytest.raises(exceptions.TaskUnschedulableError, match="00000000000000aa"):
        on("00000000000000aa", False)


def test_of_variants_a_task_gets_what_is_free(cml: Any) -> None:
    @cml.remote(variants=[{"num_gpus": 1, "num_cpus": 0}, {"num_cpus": 2}])
    def got(seconds: float) -> dict[str, float]:
        time.sleep(seconds)
        return concurrent_ml.get_runtime_context().get_assigned_resources()

    both = cml.get([got.remote(0.3), got.remote(0.3)], timeout=20)
    assert sorted(both, key=str) == [{"CPU": 2.0}, {"GPU": 1.0}]
    many = cml.get([got.remote(0.05) for _ in range(10)], timeout=20)
    assert {"CPU": 2.0} in many
    assert {"GPU": 1.0} in many


def test_variants_are_checked_where_they_are_written(cml: Any) -> None:
    for wrong, words in ((["num_gpus"], "must be a list like"), ([{"gpus": 1}], "has 'gpus'")):
        with pytest.raises(TypeError, match=words):
            cml.remote(variants=wrong)(lambda: 1)


def test_an_exception_that_is_named_is_retried_after_a_growing_pause(cml: Any, tmp_path: Any) -> None:
    log = tmp_path / "log"

    @cml.remote(max_retries=3, retry_exceptions=[OSError], retry_delay="50ms")
    def fails(times: int, kind: type[Exception]) -> int:
        with log.open("a") as file:
            file.write("x")
        if len(log.read_text()) <= times:
            raise kind("again")
        return concurrent_ml.get_runtime_context().get_attempt_number()

    assert cml.get(fails.remote(2, ConnectionError), timeout=20) == 2
    log.write_text("")
    with pytest.raises(OSError, match="again"):
        cml.get(fails.remote(9, OSError), timeout=20)
    assert log.read_text() == "xxxx"
    log.write_text("")
    with pytest.raises(ValueError, match="again"):
        cml.get(fails.remote(9, ValueError), timeout=20)
    assert log.read_text() == "x"


def test_a_pause_is_said_and_can_be_cut_short(cml: Any) -> None:
    @cml.remote(max_retries=-1, retry_exceptions=True, retry_delay="1h", retry_max_delay="2h")
    def fails() -> None:
        raise OSError("again")

    task = fails.remote()
    with pytest.raises(exceptions.GetTimeoutError, match="it raised, and is tried again in"):
        cml.get(task, timeout=1)
    cml.cancel(task)
    with pytest.raises(exceptions.TaskCancelledError):
        cml.get(task, timeout=10)


def test_methods_say_what_of_them_is_retried(cml: Any) -> None:
    @cml.remote(max_task_retries=2)
    class Flaky:
        def __init__(self) -> None:
            self.tries = 0

        @cml.method(retry_exceptions=[OSError])
        def often(self, until: int) -> int:
            self.tries += 1
            if self.tries < until:
                raise OSError("again")
            return self.tries

        @cml.method(max_task_retries=0, retry_exceptions=True)
        def once(self) -> None:
            self.tries += 1
            raise OSError("once")

        def plain(self) -> None:
            self.tries += 1
            raise OSError("plain")

        def count(self) -> int:
            return self.tries

    flaky = Flaky.remote()
    assert cml.get(flaky.often.remote(3), timeout=10) == 3
    for method in (flaky.once, flaky.plain):
        with pytest.raises(OSError, match=r"once|plain"):
            cml.get(method.remote(), timeout=10)
    assert cml.get(flaky.count.remote(), timeout=10) == 5
    again = Flaky.remote()
    with pytest.raises(OSError, match="plain"):
        cml.get(again.plain.options(max_task_retries=1, retry_exceptions=True).remote(), timeout=10)
    assert cml.get(again.count.remote(), timeout=10) == 2
