"""Bad input: one clear sentence, at once."""

import threading
from typing import Any

import numpy as np
import pytest


def test_an_argument_that_cannot_be_pickled_is_named_by_its_path(cml: Any):
    class Model:
        def __init__(self):
            self.settings = {"guard": threading.Lock()}

    @cml.remote
    def use(model):
        return model

    with pytest.raises(TypeError, match="lock") as caught:
        use.remote(Model())
    assert "settings" in str(caught.value)
    assert "guard" in str(caught.value)


def test_a_closure_that_cannot_be_pickled_names_the_variable(cml: Any):
    guard = threading.Lock()

    @cml.remote
    def use():
        return guard.locked()

    with pytest.raises(TypeError, match="guard"):
        use.remote()


def test_a_result_that_cannot_be_pickled_is_named_by_its_path(cml: Any):
    @cml.remote
    def make():
        return {"socket": [threading.Lock()]}

    with pytest.raises(TypeError, match="socket"):
        cml.get(make.remote())


def test_an_exception_that_cannot_be_pickled_still_tells_its_story(cml: Any):
    @cml.remote
    def fail():
        error = RuntimeError("the real reason")
        error.guard = threading.Lock()  # type: ignore[attr-defined]
        raise error

    with pytest.raises(Exception, match="the real reason") as caught:
        cml.get(fail.remote())
    assert "RuntimeError" in str(caught.value)


def test_an_exception_with_other_arguments_keeps_its_type_and_attributes(cml: Any):
    class Odd(ValueError):
        def __init__(self, code, *, where):
            super().__init__(f"code {code} at {where}")
            self.code = code

    @cml.remote
    def fail():
        raise Odd(7, where="home")

    with pytest.raises(ValueError, match="code 7 at home"):
        cml.get(fail.remote())


def test_a_task_that_no_node_can_run_fails_naming_the_resource(cml: Any):
    @cml.remote(resources={"unicorn": 1})
    def never():
        return 1

    with pytest.raises(Exception, match="unicorn"):
        cml.get(never.remote(), timeout=10)


def test_more_cpus_than_there_are_is_an_error_on_an_embedded_cluster(cml: Any):
    @cml.remote(num_cpus=1000)
    def never():
        return 1

    with pytest.raises(Exception, match=r"CPU.*1000|1000.*CPU"):
        cml.get(never.remote(), timeout=10)


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), "two"])
@pytest.mark.parametrize("option", ["num_cpus", "num_gpus", "memory"])
def test_an_amount_that_is_none_is_refused_by_name(cml: Any, option, amount):
    with pytest.raises((ValueError, TypeError), match=option):
        cml.remote(**{option: amount})(lambda: 1).remote()


def test_a_negative_custom_resource_is_refused_by_name(cml: Any):
    with pytest.raises(ValueError, match="lamp"):
        cml.remote(resources={"lamp": -1})(lambda: 1).remote()


@pytest.mark.parametrize("thing", [5, "a ref?", None, {"a": 1}])
def test_get_of_something_that_is_no_ref_says_so(cml: Any, thing):
    with pytest.raises((TypeError, ValueError), match="ObjectRef"):
        cml.get(thing)
    with pytest.raises((TypeError, ValueError), match="ObjectRef"):
        cml.get([thing])


def test_put_of_a_ref_says_what_to_do(cml: Any):
    with pytest.raises(TypeError, match="ObjectRef"):
        cml.put(cml.put(1))


def test_wrong_arguments_fail_where_the_call_is_written(cml: Any):
    @cml.remote
    def f(a, b):
        return a, b

    with pytest.raises(TypeError, match="b"):
        f.remote(1)


def test_errors_leave_the_cluster_working(cml: Any):
    @cml.remote
    def total(array):
        return float(array.sum())

    assert cml.get([total.remote(np.ones(50_000)) for _ in range(20)]) == [50_000.0] * 20


def test_more_entries_than_a_message_has_are_told_with_the_limit(cml: Any):
    @cml.remote
    def one():
        return 1

    many = {f"kind{n}": 1.0 for n in range(5000)}
    with pytest.raises(ValueError, match="resources has 5000 entries; there can be 4096 at most"):
        one.options(resources=many)
    with pytest.raises(ValueError, match="resources has 5000 entries; there can be 4096 at most"):
        one.options(variants=[{"resources": many}])
    with pytest.raises(ValueError, match="bundle 0 has 5000 entries; there can be 4096 at most"):
        cml.placement_group([many])
    with pytest.raises(ValueError, match="bundles has 5000 entries; there can be 4096 at most"):
        cml.placement_group([{"CPU": 1}] * 5000)
    with pytest.raises(ValueError, match="entries; there can be 4000 at most"):
        one.options(runtime_env={"env_vars": dict.fromkeys(many, "")})
    assert cml.get(one.remote(), timeout=20) == 1
