"""Pickling without a cluster: what lies beside the pickle, and what cannot be pickled at all."""

import pickle
import threading

import numpy as np
import pytest

from concurrent_ml import _serialization
from concurrent_ml._serialization import CannotPickle, dump, explain


def load(dumped):
    pickled, buffers = dumped
    return pickle.loads(pickled, buffers=buffers)


def test_large_buffers_lie_beside_the_pickle_and_small_ones_in_it():
    value = {"large": np.arange(1000), "small": np.arange(10)}
    pickled, buffers = dump(value, "it")
    assert [buffer.raw().nbytes for buffer in buffers] == [8000]
    back = load((pickled, buffers))
    assert (back["large"] == value["large"]).all()
    assert (back["small"] == value["small"]).all()


def test_arrays_of_any_order_come_back_equal():
    for array in (
        np.asfortranarray(np.arange(6000.0).reshape(60, 100)),
        np.arange(10_000)[::3],
        np.zeros((0, 5)),
        np.array(["a", None, 3], dtype=object),
        np.zeros(3000, dtype=[("x", "i4"), ("y", "f8")]),
    ):
        back = load(dump(array, "it"))
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)


def test_functions_of_a_closure_travel_by_value():
    factor = 3
    assert load(dump(lambda x: x * factor, "it"))(4) == 12


class Slotted:
    __slots__ = ("guard", "other")

    def __init__(self):
        self.other = 1
        self.guard = threading.Lock()


class Plain:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, (2, threading.Lock())]}, "['a'][1][1]"),
        (Plain(deep=Plain(guard=threading.Lock())), ".deep.guard"),
        (Slotted(), ".guard"),
        ([Plain(ok=1), Plain(bad={3: threading.Lock()})], "[1].bad[3]"),
        (Plain(guard=threading.Lock()).__init__, ".__self__.guard"),
    ],
)
def test_the_part_that_cannot_be_pickled_is_named(value, path):
    with pytest.raises(CannotPickle) as caught:
        dump(value, "argument 'x' of f")
    assert str(caught.value).startswith(f"cannot pickle argument 'x' of f: {path} is a _thread.lock: ")
    assert isinstance(caught.value, TypeError)


def test_closures_globals_and_defaults_are_named():
    guard = threading.Lock()

    def closes():
        return guard

    def defaults(lock=guard):
        return lock

    with pytest.raises(CannotPickle, match=r"the variable guard it closes over is a _thread.lock"):
        dump(closes, "f")
    with pytest.raises(CannotPickle, match=r"a default is a _thread.lock"):
        dump(defaults, "f")
    script: dict = {"guard": guard}
    exec("def uses():\n    return [guard for _ in range(3)]", script)
    with pytest.raises(CannotPickle, match=r"the global guard it uses is a _thread.lock"):
        dump(script["uses"], "f")


def test_a_value_that_refuses_by_itself_tells_its_own_reason():
    class Refuses:
        def __reduce__(self):
            raise ValueError("not for you")

    with pytest.raises(CannotPickle, match=r"cannot pickle it, a .*Refuses: not for you"):
        dump(Refuses(), "it")


def test_values_that_contain_themselves_end_the_search():
    loop: list = [threading.Lock()]
    loop.insert(0, loop)
    with pytest.raises(CannotPickle, match="lock"):
        dump(loop, "it")


def test_a_search_through_many_parts_ends(monkeypatch):
    monkeypatch.setattr(_serialization, "_LOOKS", 10)
    assert "list" in explain([*range(100), threading.Lock()], "it", TypeError("no"))


def test_an_object_that_hates_being_looked_at_is_no_second_error():
    class Hostile:
        def __reduce__(self):
            raise ValueError("first")

        def __getattribute__(self, name):
            if name == "__dict__":
                raise RuntimeError("second")
            return super().__getattribute__(name)

    with pytest.raises(CannotPickle, match="first"):
        dump(Hostile(), "it")


def test_a_long_way_to_the_part_is_shortened():
    value: object = threading.Lock()
    for _ in range(40):
        value = [value]
    path = explain(value, "the value", TypeError("no"))
    assert path.startswith(
        "cannot pickle the value: " + "[0]" * 8 + " … 24 more … " + "[0]" * 8 + " is a _thread.lock"
    )
