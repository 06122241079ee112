"""Exceptions on their way from an executor to a driver, without a cluster."""

import pickle
import subprocess
import sys
import threading

import pytest

from concurrent_ml import exceptions
from concurrent_ml._reports import traceback_of
from concurrent_ml.exceptions import TaskError, _from_failure, _story


def travel(error, traceback="Traceback: ...\n"):
    return _from_failure(
        "Exception", "short", _story(error, "1.2", "task f (1.2) on node n", traceback), "1.2"
    )


class Odd(ValueError):
    def __init__(self, code, *, where):
        super().__init__(f"code {code} at {where}")
        self.code = code


class Locked(RuntimeError):
    def __init__(self):
        super().__init__("the reason", threading.Lock())
        self.guard = threading.Lock()
        self.kept = 3


def test_the_type_the_arguments_and_the_story_arrive():
    error = travel(KeyError("name"), "Traceback: in f\n")
    assert isinstance(error, TaskError)
    assert isinstance(error, KeyError)
    assert error.args == ("name",)
    assert str(error) == "KeyError: 'name'\n\ntask f (1.2) on node n raised:\nTraceback: in f"
    assert isinstance(error.cause, KeyError)
    assert error.remote_traceback == "Traceback: in f\n"
    assert error.task_id == "1.2"
    assert type(error).__name__ == "TaskError(KeyError)"


def test_attributes_arrive_also_where_init_takes_other_arguments():
    error = travel(Odd(7, where="home"))
    assert isinstance(error, Odd)
    assert error.code == 7
    assert "code 7 at home" in str(error)


def test_what_cannot_be_pickled_is_left_out():
    error = travel(Locked())
    assert isinstance(error, Locked)
    assert error.kept == 3
    assert not hasattr(error, "guard")
    assert error.args[0] == "the reason"
    assert "lock" in error.args[1]


def test_built_in_exceptions_keep_their_fields():
    error = travel(FileNotFoundError(2, "No such file", "data.csv"))
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (2, "data.csv")
    error = travel(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))
    assert isinstance(error, UnicodeDecodeError)
    assert error.reason == "bad"


def test_groups_arrive_as_groups():
    error = travel(ExceptionGroup("several", [ValueError("one"), OSError("two")]))
    assert isinstance(error, TaskError)
    assert isinstance(error, ExceptionGroup)
    assert [type(each) for each in error.exceptions] == [ValueError, OSError]


def test_an_exception_without_text_or_with_a_broken_one_arrives():
    class Broken(Exception):
        def __str__(self):
            raise ValueError("no text")

    assert str(travel(StopIteration())).startswith("StopIteration\n")
    assert "its text cannot be made" in str(travel(Broken()))


def test_exits_and_interrupts_are_no_exceptions_of_their_kind_in_the_driver():
    error = travel(KeyboardInterrupt())
    assert isinstance(error, TaskError)
    assert not isinstance(error, KeyboardInterrupt)
    assert isinstance(error.cause, KeyboardInterrupt)


def test_the_failure_of_an_argument_is_told_as_it_was():
    first = travel(ValueError("first"))
    again = travel(first)
    assert isinstance(again, ValueError)
    assert str(again) == str(first)


def test_task_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(travel(ValueError("x"))))
    assert isinstance(error, ValueError)
    assert isinstance(error, TaskError)
    assert error.remote_traceback


def test_a_class_that_the_driver_has_not_becomes_its_nearest_built_in():
    script = (
        "import sys, types; m = types.ModuleType('only_there'); sys.modules['only_there'] = m\n"
        "exec('class Theirs(LookupError): pass', m.__dict__)\n"
        "from concurrent_ml.exceptions import _story\n"
        "sys.stdout.buffer.write(_story(m.Theirs('gone'), '1.2', 'task f', 'Traceback\\n'))"
    )
    story = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=30).stdout
    error = _from_failure("Exception", "short", story, "1.2")
    assert isinstance(error, TaskError)
    assert isinstance(error, LookupError)
    assert "Theirs: gone" in str(error)
    assert "could not be unpickled here" in str(error)


def test_long_stories_are_shortened_to_what_a_message_may_carry():
    data = _story(ValueError("x" * 200_000), "1.2", "task f", "frame\n" * 100_000)
    assert len(data) < 64 << 10
    error = _from_failure("Exception", "short", data, "1.2")
    assert isinstance(error, ValueError)
    assert "characters left out" in str(error)


def test_the_traceback_is_the_users_own():
    def inner():
        raise ValueError("inside")

    told = ""
    try:
        try:
            inner()
        except ValueError as error:
            raise KeyError("outside") from error
    except KeyError as error:
        told = traceback_of(error)
    assert "in inner" in told
    assert "direct cause" in told
    assert told.endswith("KeyError: 'outside'\n")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ExecutorDied", exceptions.WorkerCrashedError),
        ("NodeLost", exceptions.NodeLostError),
        ("Cancelled", exceptions.TaskCancelledError),
        ("Unschedulable", exceptions.TaskUnschedulableError),
        ("ObjectLost", exceptions.ObjectLostError),
        ("ObjectFreed", exceptions.ObjectFreedError),
        ("ObjectTooLarge", exceptions.ObjectTooLargeError),
        ("OutOfDisk", exceptions.OutOfDiskError),
        ("Internal", exceptions.InternalError),
        ("SomethingNew", exceptions.ClusterError),
    ],
)
def test_every_kind_of_failure_has_its_class_and_keeps_its_sentence(kind, expected):
    error = _from_failure(kind, "one clear sentence", b"", None)
    assert type(error) is expected
    assert isinstance(error, exceptions.ClusterError)
    assert str(error) == "one clear sentence"
