"""joblib's loops on the cluster: `with joblib.parallel_backend("concurrent_ml")`, and scikit-learn through it."""

import multiprocessing
import os
import time
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import delayed, parallel_backend, parallel_config

from testkit import Network, RunProgram

Parallel: Any = joblib.Parallel  # joblib has no types, and what checkers make of its code is wrong

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def backend(cml: Any):
    with parallel_backend("concurrent_ml") as made:
        yield made


def square(x):
    return x * x


def where(_):
    return os.getpid()


def test_calls_run_in_the_clusters_processes(cml: Any, backend):
    @cml.remote
    def pid():
        return os.getpid()

    cml.get([pid.remote() for _ in range(10)])
    pids = set(Parallel()(delayed(where)(n) for n in range(50)))
    assert os.getpid() not in pids
    assert Parallel()(delayed(square)(n) for n in range(500)) == [n * n for n in range(500)]


def test_a_parallel_can_name_the_backend_itself(program: RunProgram):
    text = "import concurrent_ml, joblib, os\n"
    text += "print(os.getpid() in joblib.Parallel(2, 'concurrent_ml')(joblib.delayed(os.getpid)() for _ in 'abc'))"
    assert program(text).stdout.strip() == "False"


def test_n_jobs_counts_the_clusters_cpus(cml: Any, backend):
    assert [joblib.effective_n_jobs(n) for n in (-1, -2, 3)] == [2, 1, 3]
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0)(delayed(square)(n) for n in range(2))
    # As with joblib's own backends, one job needs no cluster.
    assert set(Parallel(n_jobs=1)(delayed(where)(n) for n in range(3))) == {os.getpid()}


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
def test_batches_do_not_change_the_results(backend, batch_size):
    results = Parallel(batch_size=batch_size)(delayed(square)(n) for n in range(100))
    assert results == [n * n for n in range(100)]


def test_results_can_be_read_while_others_are_computed(backend):
    results = Parallel(n_jobs=2, return_as="generator")(delayed(square)(n) for n in range(20))
    assert next(results) == 0
    assert list(results) == [n * n for n in range(1, 20)]
    unordered = Parallel(n_jobs=2, return_as="generator_unordered")(delayed(square)(n) for n in range(20))
    assert sorted(unordered) == [n * n for n in range(20)]


def test_a_parallel_can_be_used_again(backend):
    with Parallel(n_jobs=2) as parallel:
        for _ in range(3):
            assert parallel(delayed(square)(n) for n in range(10)) == [n * n for n in range(10)]


# ---- errors ----


def test_an_exception_arrives_as_itself_and_ends_the_others(backend):
    def work(n):
        if n == 3:
            raise KeyError("three")
        time.sleep(0.01 if n < 3 else 100)

    begun = time.monotonic()
    with pytest.raises(KeyError, match="three"):
        Parallel(n_jobs=2, batch_size=1)(delayed(work)(n) for n in range(100))
    assert time.monotonic() - begun < 30
    # Their CPUs are free again.
    assert Parallel(n_jobs=2)(delayed(square)(n) for n in range(4)) == [0, 1, 4, 9]


def test_after_an_error_the_same_parallel_goes_on(backend):
    with Parallel(n_jobs=2) as parallel:
        with pytest.raises(ZeroDivisionError):
            parallel(delayed(lambda n: 1 // n)(n) for n in (1, 0))
        assert parallel(delayed(square)(n) for n in range(4)) == [0, 1, 4, 9]


def test_a_loop_that_takes_too_long_ends(backend):
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(n_jobs=2, timeout=0.3)(delayed(time.sleep)(100) for _ in range(2))


def test_what_cannot_be_sent_is_told(backend):
    import threading

    with pytest.raises(TypeError, match=r"cannot pickle '_thread.lock' object"):
        Parallel(n_jobs=2)(delayed(square)(threading.Lock()) for _ in range(2))


def test_wrong_options_are_told(cml: Any):
    with pytest.raises(TypeError, match="did you mean num_gpus"), parallel_config("concurrent_ml", num_gpu=1):
        pass
    with (
        parallel_backend("concurrent_ml"),
        pytest.raises(ValueError, match="share no memory that they can write to"),
    ):
        Parallel(n_jobs=2, mmap_mode="r+")(delayed(square)(n) for n in range(2))


# ---- options, arguments ----


def test_options_are_those_of_remote(cml: Any):
    def asked():
        return cml.get_runtime_context().get_assigned_resources()["CPU"]

    with parallel_config("concurrent_ml", num_cpus=0.5):
        assert Parallel(n_jobs=2)(delayed(asked)() for _ in range(2)) == [0.5, 0.5]


def test_threads_of_numeric_libraries_can_be_limited(cml: Any):
    def pools():
        import threadpoolctl

        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}

    with parallel_config("concurrent_ml", inner_max_num_threads=3):
        assert all(found <= {3} for found in Parallel(n_jobs=2)(delayed(pools)() for _ in range(2)))


def test_a_large_array_is_stored_once_for_all_calls(backend):
    array = np.arange(1_000_000.0)

    def seen(x, y, n):
        same = x.ctypes.data == y.ctypes.data
        return same, x.flags.writeable, float(x[n]), (os.getpid(), x.ctypes.data)

    results = Parallel(n_jobs=2, batch_size=1)(delayed(seen)(array, y=array, n=n) for n in range(20))
    assert [result[:3] for result in results] == [(True, False, n) for n in range(20)]
    places = {place for *_, place in results}
    assert len(places) == len({pid for pid, _ in places}), "each process sees it in one place"


def test_a_changed_array_is_seen_by_the_next_loop(backend):
    array = np.zeros(1_000_000)
    with Parallel(n_jobs=2) as parallel:
        for value in range(3):
            array[:] = value
            assert parallel(delayed(np.max)(array) for _ in range(2)) == [value] * 2


def test_arrays_of_less_than_max_nbytes_can_be_written_to(backend):
    def write(x):
        x += 1
        return float(x.sum())

    for size in (10, 10_000):
        array = np.zeros(size)
        assert Parallel(n_jobs=2)(delayed(write)(array) for _ in range(4)) == [size] * 4
        assert array.sum() == 0
    large = np.zeros(1_000_000)
    with pytest.raises(ValueError, match="read-only"):
        Parallel(n_jobs=2)(delayed(write)(large) for _ in range(2))
    assert Parallel(n_jobs=2, mmap_mode="c")(delayed(write)(large) for _ in range(2)) == [1e6] * 2


def test_refs_among_the_arguments_become_values(cml: Any, backend):
    assert Parallel(n_jobs=2)(delayed(square)(cml.put(n)) for n in range(3)) == [0, 1, 4]


# ---- loops in loops ----


def test_inner_loops_use_threads_then_nothing(backend):
    def names(depth):
        active, _ = joblib.parallel.get_active_backend()
        inner = Parallel(n_jobs=2)(delayed(names)(depth - 1) for _ in range(2)) if depth else [[]]
        return [type(active).__name__, *inner[0]]

    assert (
        Parallel(n_jobs=2)(delayed(names)(2) for _ in range(2))
        == [["ThreadingBackend", "SequentialBackend", "SequentialBackend"]] * 2
    )


def test_a_task_can_run_loops_on_the_cluster(cml: Any):
    @cml.remote
    def loop():
        import joblib

        with joblib.parallel_backend("concurrent_ml"):
            return joblib.Parallel(n_jobs=2)(joblib.delayed(square)(n) for n in range(10))

    # As many as CPUs: they go on only if they lend theirs.
    assert cml.get([loop.remote() for _ in range(3)], timeout=40) == [[n * n for n in range(10)]] * 3


# ---- the name ----


@pytest.mark.parametrize(
    "imports",
    [
        "import concurrent_ml, joblib",
        "import joblib, concurrent_ml",
        "import joblib, concurrent_ml.joblib\nconcurrent_ml.joblib.register()",
    ],
)
def test_the_backend_is_known_once_the_package_is_imported(program: RunProgram, imports: str):
    text = f"""
{imports}
with joblib.parallel_backend("concurrent_ml"):
    print(joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-n) for n in range(3)))
"""
    assert program(text).stdout.strip() == "[0, 1, 2]"


def test_importing_the_package_imports_no_joblib(program: RunProgram):
    done = program("import sys, concurrent_ml\nprint('joblib' in sys.modules)")
    assert done.stdout.strip() == "False"


# ---- scikit-learn ----

GRID_SEARCH = """
import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.svm import SVC
import concurrent_ml as cml

# The scikit-learn guide's "Custom refit strategy of a grid search": the hand-written digits, the same SVC, a part of
# its grid.
digits = load_digits()
X, y = digits.images.reshape((len(digits.images), -1)), digits.target == 8
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, random_state=0)
grid = [
    {"kernel": ["rbf"], "gamma": [1e-3, 1e-4], "C": [1, 100]},
    {"kernel": ["linear"], "C": [1]},
]
search = lambda: GridSearchCV(SVC(), grid, scoring="precision", n_jobs=-1, cv=3)

with joblib.parallel_backend("concurrent_ml"):
    print("jobs", joblib.effective_n_jobs(-1))
    there = search().fit(X_train, y_train)
with joblib.parallel_backend("threading"):
    here = search().fit(X_train, y_train)
assert (there.cv_results_["mean_test_score"] == here.cv_results_["mean_test_score"]).all()
assert (there.predict(X_test) == here.predict(X_test)).all()
print("best", there.best_params_ == here.best_params_, there.best_params_)

nodes = joblib.Parallel(n_jobs=-1, batch_size=1, backend="concurrent_ml")(
    joblib.delayed(lambda: (__import__("time").sleep(0.3), cml.get_runtime_context().get_node_id())[1])()
    for _ in range(12)
)
print("hosts", len(set(nodes)))
"""


def test_a_grid_search_over_digits_on_three_hosts_finds_the_same_parameters(net: Network):
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1)
    c.cluster_join(a, num_cpus=1)
    shown = a.python(GRID_SEARCH, timeout=55).stdout
    assert "jobs 3" in shown
    assert "best True" in shown
    assert "hosts 3" in shown


def test_a_forest_grows_on_the_cluster(backend):
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    X, y = make_classification(2000, random_state=0)  # noqa: N806
    forest = RandomForestClassifier(5, random_state=0)
    assert cross_val_score(forest, X, y, cv=3, n_jobs=-1).mean() > 0.8
