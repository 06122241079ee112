"""Options, names and calls of remote functions, without a cluster."""

import pytest

from concurrent_ml import init, remote
from concurrent_ml._options import Options


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_cpu": 1}, TypeError, "did you mean num_cpus"),
        ({"num_cpus": -1}, ValueError, "num_cpus is -1"),
        ({"num_cpus": float("nan")}, ValueError, "finite"),
        ({"num_cpus": True}, TypeError, "number"),
        ({"num_gpus": 1.5}, ValueError, "whole"),
        ({"memory": float("inf")}, ValueError, "memory"),
        ({"resources": {"tpu": -1}}, ValueError, "tpu"),
        ({"resources": {"CPU": 1}}, ValueError, "num_cpus"),
        ({"resources": 5}, TypeError, "dict"),
        ({"num_returns": -1}, ValueError, "num_returns"),
        ({"num_returns": "two"}, ValueError, "num_returns"),
        ({"max_retries": -2}, ValueError, "max_retries"),
        ({"retry_exceptions": ["OSError"]}, TypeError, "classes"),
        ({"runtime_env": {"conda": ["x"]}}, ValueError, "'conda'.*env_vars"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError, "strings"),
        ({"runtime_env": {"env_vars": {"": "x"}}}, ValueError, "no name of an environment variable"),
        ({"runtime_env": {"env_vars": {"A=B": "x"}}}, ValueError, "'A=B', which is no name"),
        ({"runtime_env": {"env_vars": {"A": "x\0y"}}}, ValueError, "'A'.*NUL"),
        ({"memory": 1e300}, ValueError, r"memory is 1e\+300; that is more than can be counted"),
        ({"name": 5}, TypeError, "string"),
        ({"scheduling_strategy": "NEAR"}, ValueError, "SPREAD"),
        ({"accelerator_type": "A100"}, ValueError, "not available"),
    ],
)
def test_wrong_options_are_refused_with_a_sentence(options, error, words):
    with pytest.raises(error, match=words):
        Options().changed(options)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"address": 8264}, "address is 8264; it must be a string"),
        ({"namespace": 3}, "namespace is 3"),
        ({"log_to_driver": "no"}, "log_to_driver is 'no'"),
    ],
)
def test_init_refuses_words_of_another_type(given, words):
    with pytest.raises(TypeError, match=words):
        init(**given)


def test_options_are_changed_one_by_one():
    options = Options().changed({"num_cpus": 0.5, "resources": {"tpu": 2}})
    changed = options.changed({"num_cpus": 2})
    assert (changed.num_cpus, changed.resources, options.num_cpus) == (2, {"tpu": 2}, 0.5)


def test_a_remote_function_looks_like_the_function():
    @remote
    def f(x):
        """Says so."""
        return x

    assert f.__name__ == "f"
    assert f.__doc__ == "Says so."
    assert f.__wrapped__(3) == 3
    assert repr(f) == "RemoteFunction(f)"
    with pytest.raises(TypeError, match=r"f\.remote\("):
        f(1)  # pyright: ignore[reportCallIssue]


def test_what_cannot_be_remote_is_refused():
    f = remote(lambda: 1)

    async def later():
        return 1

    for thing, words in ((5, "int"), (f, "already"), (later, r"later is an `async def`.*asyncio\.run")):
        with pytest.raises(TypeError, match=words):
            remote(thing)  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(TypeError, match="either a function or options"):
        remote(lambda: 1, num_cpus=1)  # pyright: ignore[reportCallIssue]
