"""Dask collections computed by the cluster: `concurrent_ml.dask.get`."""

import os
import time
from typing import Any

import dask
import dask.array
import dask.bag as db
import numpy as np
import pytest
from dask.callbacks import Callback
from dask.diagnostics.progress import ProgressBar

from concurrent_ml.dask import disable_dask_on_concurrent_ml, enable_dask_on_concurrent_ml, get
from testkit import Network

pytestmark = pytest.mark.timeout(60)

delayed: Any = dask.delayed  # type: ignore[attr-defined]
da: Any = dask.array


@pytest.fixture
def on_cluster(cml: Any):
    with enable_dask_on_concurrent_ml():
        yield


# ---- graphs ----


def test_a_graph_written_by_hand(cml: Any):
    graph = {
        "x": 1,
        "y": (sum, ["x", 2]),
        "z": (lambda y: y * 10, "y"),
        "same": "z",
        "unused": ((1).__truediv__, 0),
    }
    assert get(graph, "z") == 30
    assert get(graph, ["x", "same"]) == (1, 30)
    assert get(graph, ["y", ["x", "z"]]) == (3, (1, 30))


def test_what_a_graph_lacks_is_told(cml: Any):
    with pytest.raises(KeyError, match="the graph has no key 'z'"):
        get({"x": 1}, "z")
    from dask._task_spec import Task, TaskRef

    with pytest.raises(KeyError, match="the graph has no key 'x', which 'y' needs"):
        get({"y": Task("y", abs, TaskRef("x"))}, "y")


def test_each_node_is_a_task_with_its_name(cml: Any):
    def who(x):
        return os.getpid(), cml.get_runtime_context().get_task_name()

    pid, name = delayed(who)(1).compute(scheduler=get)
    assert pid != os.getpid()
    assert name == "who"


def test_options_are_those_of_remote(cml: Any):
    def cpus():
        return cml.get_runtime_context().get_assigned_resources()["CPU"]

    assert delayed(cpus)().compute(scheduler=get, num_cpus=0.5, num_workers=4) == 0.5
    with enable_dask_on_concurrent_ml(num_cpus=0.25):
        assert delayed(cpus)().compute() == 0.25
    with pytest.raises(TypeError, match="did you mean num_cpus"):
        enable_dask_on_concurrent_ml(num_cpu=1)


# ---- collections ----


def test_arrays(on_cluster):
    x = da.random.RandomState(0).random((600, 600), chunks=200)
    expected = (x @ x.T + 1).sum(axis=0).compute(scheduler="synchronous")
    np.testing.assert_allclose((x @ x.T + 1).sum(axis=0).compute(), expected)


def test_a_large_array_of_the_program_is_an_argument(on_cluster):
    mine = np.arange(1_000_000.0)
    assert da.from_array(mine, chunks=250_000).sum().compute() == mine.sum()


def test_bags(on_cluster):
    squares = db.from_sequence(range(100), npartitions=5).map(lambda x: x * x)
    assert squares.filter(lambda x: x % 2).sum().compute() == sum(n * n for n in range(1, 100, 2))


def test_delayed_functions_of_a_program_in_lists_and_dicts(on_cluster):
    parts = {"a": [delayed(lambda n=n: n)() for n in range(5)], "b": delayed(max)(3, 4)}
    assert delayed(lambda p: sum(p["a"]) + p["b"])(parts).compute() == 14
    assert dask.compute(delayed(abs)(-1), delayed(abs)(-2), 3) == (1, 2, 3)  # type: ignore[attr-defined]


def test_refs_among_the_arguments_become_values(cml: Any, on_cluster):
    assert delayed(lambda x: x + 1)(cml.put(5)).compute() == 6


def test_dask_itself_runs_where_it_is_not_asked_for_the_cluster(cml: Any):
    enable_dask_on_concurrent_ml()
    assert delayed(os.getpid)().compute() != os.getpid()
    disable_dask_on_concurrent_ml()
    assert delayed(os.getpid)().compute(scheduler="concurrent_ml") != os.getpid()
    assert delayed(os.getpid)().compute() == os.getpid()


# ---- where data is ----


def test_what_is_in_between_does_not_come_to_the_program(cml: Any, on_cluster):
    # 8 GB in all, of which no more than a few parts exist at a time.
    x = da.ones((1_000_000, 100), chunks=(10_000, 100))
    from concurrent_ml import dask as ours

    fetched = []
    real = ours._get

    def counting(refs):
        got = real(refs)
        fetched.extend(np.size(value) for value in got)
        return got

    ours._get = counting
    try:
        assert (x + 1).sum().compute() == 2e8
    finally:
        ours._get = real
    assert sum(fetched) < 100


def test_persist_keeps_refs(cml: Any):
    def stamp(block):
        return block + time.time()

    x = da.zeros((400, 400), chunks=200).map_blocks(stamp, dtype=float).persist(scheduler=get)
    assert {type(value) for value in dict(x.dask).values()} == {cml.ObjectRef}
    first, again = x.compute(scheduler=get), x.compute(scheduler=get)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose((x * 2).sum().compute(scheduler=get), first.sum() * 2)
    np.testing.assert_allclose(x[:10].mean(axis=0).compute(scheduler=get), first[:10].mean(axis=0))


def test_persist_of_several_and_by_default(cml: Any):
    with enable_dask_on_concurrent_ml(num_cpus=0.5):
        a, b = dask.persist(da.ones(10, chunks=5), delayed(abs)(-3))  # type: ignore[attr-defined]
        assert dask.compute(a.sum(), b) == (10, 3)  # type: ignore[attr-defined]


# ---- errors, callbacks ----


def test_an_exception_arrives_as_itself(on_cluster):
    broken = delayed(lambda: 1 // 0)()
    with pytest.raises(ZeroDivisionError):
        delayed(sum)([broken, 1]).compute()


@pytest.mark.parametrize("fails", [False, True])
def test_callbacks_and_the_progress_bar_follow(on_cluster, capsys, fails: bool):
    seen = []
    work = delayed(sum)(
        [delayed(abs)(n) if not (fails and n == 3) else delayed(divmod)(1, 0) for n in range(5)]
    )
    with Callback(
        pretask=lambda key, *_: seen.append(key),
        posttask=lambda key, *_: seen.remove(key),
        finish=lambda _dsk, _state, failed: seen.append(failed),
    ):
        if fails:
            with pytest.raises(ZeroDivisionError):
                work.compute()
            assert seen[-1] is True
            return
        with ProgressBar(dt=0.05):
            assert work.compute() == 10
    assert seen == [False]
    assert "100% Completed" in capsys.readouterr().out


def test_on_three_hosts(net: Network):
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1)
    c.cluster_join(a, num_cpus=1)
    text = """
import time, numpy as np, dask, dask.array as da, concurrent_ml as cml
from concurrent_ml.dask import enable_dask_on_concurrent_ml
cml.init()
enable_dask_on_concurrent_ml()
x = da.random.RandomState(1).random((1500, 1500), chunks=500)
there = (x @ x.T).persist()
here = (x @ x.T).compute(scheduler="threads")
print(bool(np.allclose(there.compute(), here)))

@dask.delayed
def where(n):
    time.sleep(0.3)
    return cml.get_runtime_context().get_node_id()

print(len(set(dask.compute(*[where(n) for n in range(12)]))))
"""
    assert a.python(text, timeout=55).stdout.split() == ["True", "3"]
