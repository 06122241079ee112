"""Executors that die while a task runs: noticed at once, tried again as asked, else an error that says how and shows
the last lines of what they wrote.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from testkit import wait_until

pytestmark = pytest.mark.timeout(60)

DEATHS = {
    "kill": ("killed by signal 9 (SIGKILL)", lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "segv": ("killed by signal 11 (SIGSEGV)", lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    "abort": ("killed by signal 6 (SIGABRT)", os.abort),
    "_exit": ("exit code 3", lambda: os._exit(3)),
}


def write_and_die(way: str) -> None:
    print("said before the last", file=sys.stderr)
    os.write(2, b"the last words\n")
    DEATHS[way][1]()


@pytest.mark.parametrize("way", DEATHS)
def test_without_retries_the_error_says_how_it_ended_and_what_it_wrote(cml: Any, way: str) -> None:
    die = cml.remote(max_retries=0)(write_and_die)
    begun = time.monotonic()
    with pytest.raises(cml.exceptions.WorkerCrashedError) as raised:
        cml.get(die.remote(way))
    assert time.monotonic() - begun < 5
    text = str(raised.value)
    assert DEATHS[way][0] in text
    assert "the last words" in text
    assert "said before the last" in text
    assert "write_and_die" in text
    assert "pid" in text


@pytest.mark.parametrize("way", DEATHS)
def test_with_retries_it_runs_again_elsewhere_once(cml: Any, way: str, tmp_path: Path) -> None:
    @cml.remote(max_retries=2)
    def die_once() -> int:
        with open(tmp_path / "tries", "a") as tries:
            tries.write(f"{os.getpid()}\n")
        if len((tmp_path / "tries").read_text().split()) == 1:
            DEATHS[way][1]()
        return os.getpid()

    survivor = cml.get(die_once.remote())
    first, second = map(int, (tmp_path / "tries").read_text().split())
    assert first != second == survivor


def test_retries_come_to_an_end(cml: Any, tmp_path: Path) -> None:
    @cml.remote(max_retries=2)
    def always_dies() -> None:
        with open(tmp_path / "tries", "a") as tries:
            tries.write("x")
        os._exit(3)

    with pytest.raises(cml.exceptions.WorkerCrashedError, match="exit code 3"):
        cml.get(always_dies.remote())
    assert (tmp_path / "tries").read_text() == "xxx"


def test_sys_exit_ends_the_executor_and_says_who_did(cml: Any) -> None:
    @cml.remote(max_retries=0)
    def leave() -> None:
        sys.exit("enough")

    with pytest.raises(
        cml.exceptions.WorkerCrashedError, match=r"ended its process: SystemExit.'enough'."
    ) as raised:
        cml.get(leave.remote())
    assert "exit code 1" in str(raised.value)


def test_an_exception_in_a_thread_is_printed_and_the_task_goes_on(cml: Any, program: Any) -> None:
    done = program(
        """
import threading
import concurrent_ml as cml

@cml.remote
def with_thread():
    def fail():
        raise ValueError("in the thread")
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    return 5

cml.init(num_cpus=1)
print(cml.get(with_thread.remote()))
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5\n"
    assert "ValueError: in the thread" in done.stderr


def test_who_waits_for_a_dead_task_as_an_argument_hears_the_same(cml: Any) -> None:
    @cml.remote
    def after(value: Any) -> Any:
        return value

    die = cml.remote(max_retries=0)(write_and_die)
    with pytest.raises(cml.exceptions.WorkerCrashedError, match="SIGKILL"):
        cml.get(after.remote(die.remote("kill")))


def test_other_tasks_of_the_executor_that_dies_are_not_harmed(cml: Any) -> None:
    @cml.remote(max_retries=0)
    def short(n: int) -> int:
        if n == 50:
            os._exit(3)
        return n

    # Once it has proved short, several lie ready in an executor.
    assert cml.get([short.remote(n) for n in range(100, 300)]) == list(range(100, 300))
    refs = [short.remote(n) for n in range(200)]
    with pytest.raises(cml.exceptions.WorkerCrashedError):
        cml.get(refs[50])
    del refs[50]
    assert cml.get(refs) == [n for n in range(200) if n != 50]


def test_a_thread_that_outlives_its_task_does_not_take_the_next_one_with_it(cml: Any) -> None:
    @cml.remote(max_retries=3)
    def leaves_a_bomb() -> int:
        threading.Timer(0.2, lambda: os._exit(3)).start()
        return 1

    @cml.remote(max_retries=3)
    def slow() -> int:
        time.sleep(0.5)
        return 2

    assert cml.get(leaves_a_bomb.remote()) == 1
    assert cml.get([slow.remote() for _ in range(4)]) == [2, 2, 2, 2]


def test_what_a_killed_executor_started_ends_with_it(cml: Any, tmp_path: Path) -> None:
    @cml.remote(max_retries=0)
    def with_child() -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "600"])
        (tmp_path / "pid").write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(cml.exceptions.WorkerCrashedError):
        cml.get(with_child.remote())
    child = int((tmp_path / "pid").read_text())

    def gone() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            return True

    wait_until(gone, 10, "the child of a killed executor ends")
