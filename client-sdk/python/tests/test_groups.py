"""Placement groups on one machine: what they hold, who may use it, and what ends with them."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from concurrent_ml import (
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroup,
    PlacementGroupSchedulingStrategy,
    exceptions,
)

pytestmark = pytest.mark.timeout(60)


def within(what: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def free_cpus(cml: Any) -> float:
    return cml.available_resources().get("CPU", 0)


@pytest.fixture
def group(cml: Any) -> Any:
    within(lambda: free_cpus(cml) == 2)
    made = cml.placement_group([{"CPU": 1}, {"CPU": 1}])
    yield made
    cml.remove_placement_group(made)


def inside(
    group: PlacementGroup, index: int = -1, capture: bool | None = None
) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, index, capture)


def test_ready_is_a_ref_to_the_group(cml: Any, group: PlacementGroup) -> None:
    assert cml.get(group.ready(), timeout=10) == group
    assert cml.wait([group.ready()], timeout=10)[0] == [group.ready()]
    assert group.wait(10)
    assert cml.get(group.ready()).bundle_specs == group.bundle_specs == [{"CPU": 1}, {"CPU": 1}]
    assert group.bundle_count == 2


def test_what_a_group_holds_nobody_else_gets(cml: Any, group: PlacementGroup) -> None:
    assert group.wait(10)
    assert free_cpus(cml) == 0
    outside = cml.remote(lambda: "outside").remote()
    assert cml.wait([outside], timeout=0.2)[0] == []
    within_group = cml.remote(lambda: "inside").options(scheduling_strategy=inside(group)).remote()
    assert cml.get(within_group, timeout=10) == "inside"
    cml.remove_placement_group(group)
    assert cml.get(outside, timeout=10) == "outside"


def test_a_bundle_runs_what_fits_it_and_no_more(cml: Any, group: PlacementGroup) -> None:
    @cml.remote
    def until(signal: Any) -> float:
        return cml.get(signal.get.remote())

    @cml.remote
    def now() -> float:
        return time.monotonic()

    sleep = cml.remote(time.sleep).options(scheduling_strategy=inside(group, 0))
    slow = sleep.remote(0.5)
    second = now.options(scheduling_strategy=inside(group, 0)).remote()
    other = now.options(scheduling_strategy=inside(group, 1)).remote()
    assert cml.get(other, timeout=10) < cml.get(second, timeout=10)
    assert cml.wait([slow], timeout=0)[0] == [slow]


def test_children_stay_outside_unless_the_group_captures_them(cml: Any) -> None:
    group = cml.placement_group([{"CPU": 1}])

    @cml.remote(num_cpus=0.5)
    def where() -> Any:
        return cml.get_current_placement_group()

    @cml.remote(num_cpus=0.5)
    def parent(strategy: Any = None) -> Any:
        return cml.get(where.options(scheduling_strategy=strategy).remote())

    for capture, strategy, expected in (
        (True, None, group),
        (False, None, None),
        (None, None, None),
        (True, "DEFAULT", None),
        (True, inside(group), group),
    ):
        task = parent.options(scheduling_strategy=inside(group, 0, capture)).remote(strategy)
        assert cml.get(task, timeout=10) == expected
    assert cml.get(parent.remote(), timeout=10) is None
    cml.remove_placement_group(group)


def test_an_actor_lives_in_a_bundle_and_captures_too(cml: Any) -> None:
    group = cml.placement_group([{"CPU": 2}])

    @cml.remote(num_cpus=1)
    class Inside:
        def where(self) -> Any:
            return cml.get_current_placement_group()

        def child(self) -> Any:
            return cml.get(cml.remote(cml.get_current_placement_group).remote())

    actor = Inside.options(scheduling_strategy=inside(group, 0, True)).remote()
    assert cml.get([actor.where.remote(), actor.child.remote()], timeout=10) == [group, group]
    cml.remove_placement_group(group)
    with pytest.raises(exceptions.ActorDiedError, match=r"placement group .* was removed by the driver"):
        cml.get(actor.where.remote(), timeout=10)
    within(lambda: free_cpus(cml) == 2)


def test_with_its_group_ends_what_runs_and_what_waits(cml: Any, group: PlacementGroup) -> None:
    slow = cml.remote(time.sleep).options(scheduling_strategy=inside(group, 0))
    running, queued = slow.remote(60), slow.remote(60)
    within(lambda: cml.placement_group_table(group)["state"] == "CREATED")
    assert cml.wait([running], timeout=0.3)[0] == []
    cml.remove_placement_group(group)
    for ref in (running, queued, slow.remote(1)):
        with pytest.raises(exceptions.PlacementGroupRemovedError, match="was removed by the driver of job"):
            cml.get(ref, timeout=10)
    within(lambda: free_cpus(cml) == 2)
    assert cml.placement_group_table(group)["state"] == "REMOVED"


def test_a_name_leads_to_its_group(cml: Any) -> None:
    group = cml.placement_group([{"CPU": 1}], name="mine")
    assert cml.get_placement_group("mine") == group
    assert cml.get_placement_group("mine").bundle_specs == [{"CPU": 1}]
    with pytest.raises(ValueError, match="the name 'mine' is taken"):
        cml.placement_group([{"CPU": 1}], name="mine")
    cml.remove_placement_group(group)
    with pytest.raises(ValueError, match="there is no placement group named 'mine'"):
        cml.get_placement_group("mine")


def test_a_group_needs_no_handle(cml: Any) -> None:
    cml.placement_group([{"CPU": 2}], name="kept").wait(10)
    assert cml.get_placement_group("kept").wait(10)
    assert free_cpus(cml) == 0
    cml.remove_placement_group(cml.get_placement_group("kept"))


def test_all_or_nothing(cml: Any) -> None:
    within(lambda: free_cpus(cml) == 2)
    first = cml.placement_group([{"CPU": 1}])
    assert first.wait(10)
    both = cml.placement_group([{"CPU": 1}, {"CPU": 1}])
    assert not both.wait(0.2)
    assert free_cpus(cml) == 1, "it holds nothing while it cannot hold all"
    reason = cml.placement_group_table(both)["reason"]
    assert "it waits until 1 CPU for bundle 0, 1 CPU for bundle 1 are free at once" in reason
    cml.remove_placement_group(first)
    assert both.wait(10)
    cml.remove_placement_group(both)


def test_what_can_never_be_is_said_at_once(cml: Any) -> None:
    group = cml.placement_group([{"CPU": 1}, {"CPU": 100}])
    with pytest.raises(
        exceptions.TaskUnschedulableError, match="bundle 1 needs 100 CPU; no node has more than 2"
    ):
        cml.get(group.ready(), timeout=10)
    with pytest.warns(RuntimeWarning, match="no node can join this cluster"):
        assert not group.wait(10)
    task = cml.remote(lambda: 1).options(scheduling_strategy=inside(group)).remote()
    with pytest.raises(exceptions.TaskUnschedulableError, match="100 CPU"):
        cml.get(task, timeout=10)


@pytest.mark.parametrize(
    ("bundles", "others", "kind", "words"),
    [
        ([], {}, ValueError, "bundles is empty"),
        ({"CPU": 1}, {}, ValueError, "a list of dicts"),
        ([{}], {}, ValueError, "bundle 0 .* asks for nothing"),
        ([{"CPU": 0}], {}, ValueError, "bundle 0 .* asks for nothing"),
        ([{"CPU": -1}], {}, ValueError, "0 or more"),
        ([{"CPU": float("nan")}], {}, ValueError, "finite"),
        ([{"GPU": 1.5}], {}, ValueError, "whole"),
        ([{"CPU": 1}], {"strategy": "NEAR"}, ValueError, "strategy is 'NEAR'; it must be one of PACK"),
        ([{"CPU": 1}], {"lifetime": "long"}, ValueError, "lifetime is 'long'"),
    ],
)
def test_a_wrong_group_fails_where_it_is_written(
    cml: Any, bundles: Any, others: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        cml.placement_group(bundles, **others)


def test_a_wrong_place_fails_where_it_is_written(cml: Any, group: PlacementGroup) -> None:
    task = cml.remote(lambda: 1)
    with pytest.raises(
        ValueError, match="placement_group_bundle_index is 2; the group has 2 bundles, from 0 to 1"
    ):
        task.options(scheduling_strategy=inside(group, 2)).remote()
    with pytest.raises(ValueError, match=r"needs .*'CPU': 2.*none of the group's bundles has that"):
        task.options(scheduling_strategy=inside(group), num_cpus=2).remote()
    with pytest.raises(TypeError, match="must be what placement_group"):
        PlacementGroupSchedulingStrategy("group")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scheduling_strategy is 'NEAR'"):
        task.options(scheduling_strategy="NEAR")
    with pytest.raises(ValueError, match="16 hexadecimal digits"):
        NodeAffinitySchedulingStrategy("host", soft=True)
    with pytest.raises(TypeError, match=r"must be In\(\.\.\.\)"):
        NodeLabelSchedulingStrategy(hard={"zone": "a"})  # type: ignore[dict-item]
