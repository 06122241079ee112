"""What a type checker sees: the types of the user's own functions, through every call."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import concurrent_ml as cml
from concurrent_ml.futures import Executor
from concurrent_ml.multiprocessing import Pool
from concurrent_ml.util import Queue
from typing_extensions import assert_type

@cml.remote
def length(word: str, times: int = 1) -> int:
    return len(word) * times

@cml.remote(num_cpus=0.5, max_retries=2)
def words(count: int) -> list[str]:
    return ["word"] * count

@cml.remote
class Counter(cml.Actor):
    def __init__(self, start: int = 0) -> None:
        self.count = start

    @cml.method
    def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    @cml.method(concurrency_group="io")
    async def name(self, prefix: str) -> str:
        return prefix + str(self.add(0))

    @cml.method(num_returns=2)
    def both(self) -> tuple[int, int]:
        return 1, 2

    @cml.method(stream_max_items=2)
    def parts(self, n: int) -> Iterator[str]:
        yield "part"

    @cml.method
    async def ticks(self) -> AsyncIterator[float]:
        yield 1.0

@cml.remote
def numbers(n: int) -> Iterator[int]:
    yield from range(n)

@cml.remote(stream_max_bytes=None)
def texts() -> Generator[str, None, int]:
    yield "text"
    return 1

@cml.remote
async def later() -> AsyncIterator[bytes]:
    yield b""

@cml.remote(num_returns="streaming")
def listed() -> list[int]:
    return [1]

@cml.remote(num_returns="dynamic")
def split() -> Iterator[int]:
    yield 1

async def streams() -> None:
    for ref in numbers.remote(3):
        assert_type(cml.get(ref), int)
    async for ref in later.remote():
        assert_type(await ref, bytes)
    assert_type(next(texts.remote()), cml.ObjectRef[str])
    assert_type(listed.remote(), cml.ObjectRefGenerator[int])
    assert_type(numbers.options(stream_max_items=1).remote(1), cml.ObjectRefGenerator[int])
    assert_type(cml.get(split.remote()), cml.DynamicObjectRefGenerator[int])
    counter = Counter.remote(5)
    assert_type(next(counter.parts.remote(3)), cml.ObjectRef[str])
    assert_type(counter.ticks.remote(), cml.ObjectRefGenerator[float])
    cml.cancel(counter.ticks.remote())

@cml.remote(max_restarts=2)
class Plain:
    def work(self) -> int:
        return 1

async def actors() -> None:
    counter = Counter.options(concurrency_groups={"io": 1}).remote(5)
    assert_type(cml.get(counter.add.remote(1)), int)
    assert_type(await counter.name.remote("a"), str)
    assert_type(counter.both.remote(), list[cml.ObjectRef[Any]])
    assert_type(counter.add.options(name="more").remote(n=2), cml.ObjectRef[int])
    cml.kill(counter)
    # Of a class that does not derive from Actor, methods are known to be remote, not what they return.
    assert_type(Plain.remote().work.remote(), cml.ObjectRef[Any])

async def main() -> None:
    assert_type(cml.get(length.remote("a")), int)
    assert_type(cml.get(words.remote(2)), list[str])
    assert_type(cml.get([length.remote("a")]), list[int])
    assert_type(await length.remote("a"), int)
    assert_type(length.remote("a").future().result(), int)
    assert_type(cml.get(cml.put(1.5)), float)
    assert_type(cml.get(words.options(num_cpus=1).remote(1)), list[str])
    ref = length.remote("a")
    # A ref may stand where its value is wanted.
    assert_type(cml.get(length.remote("b", ref)), int)
    ready, waiting = cml.wait([ref], num_returns=1, timeout=1.0)
    assert_type(ready, list[cml.ObjectRef[int]])
    assert_type(length.map(["a", "b"]), list[cml.ObjectRef[int]])
    assert_type(length.map(["a", "b"], [1, 2]), list[cml.ObjectRef[int]])
    assert_type(cml.get(cml.progress(words.map([1, 2], scale=2))), list[list[str]])
    assert_type([cml.get(ref) for ref in cml.as_completed([ref])], list[int])
    async for done in cml.as_completed([ref], timeout=1):
        assert_type(await done, int)
    with Executor() as executor:
        assert_type(executor.submit(len, "a").result(), int)
        assert_type(list(executor.map(str, [1, 2])), list[str])
    with Pool() as pool:
        assert_type(pool.map(str, [1, 2]), list[str])
        assert_type(pool.apply_async(len, ("a",)).get(timeout=1), int)
    queue: Queue[int] = Queue(3)
    assert_type(queue.get(), int)
"""

WRONG = """
import concurrent_ml as cml

@cml.remote
def length(word: str) -> int:
    return len(word)

length.remote(5)
length.remote()
length("a")
cml.get(5)
cml.remote(num_cpu=1)

@cml.remote
class Counter(cml.Actor):
    def __init__(self, start: int) -> None: ...
    @cml.method
    def add(self, n: int) -> int:
        return n

counter = Counter.remote("five")
counter.add.remote("one")
counter.add.options(num_returnz=2)
cml.kill(5)
Counter(1)
length.map([1, 2])
cml.progress([1])
"""


def check(text: str, folder: Path) -> list[dict]:
    """Pyright's complaints about a program."""
    path = folder / "program.py"
    path.write_text(text)
    settings = {"pythonVersion": "3.11", "venvPath": str(ROOT), "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [
        sys.executable,
        "-m",
        "pyright",
        "--outputjson",
        "--pythonpath",
        sys.executable,
        "--project",
        folder,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, done.stdout + done.stderr
    return [entry for entry in report["generalDiagnostics"] if entry["severity"] == "error"]


@pytest.mark.timeout(120)
def test_results_have_the_types_of_the_functions(tmp_path: Path):
    assert [entry["message"] for entry in check(PROGRAM, tmp_path)] == []


@pytest.mark.timeout(120)
def test_wrong_calls_are_found_where_they_are_written(tmp_path: Path):
    lines = {entry["range"]["start"]["line"] + 1 for entry in check(WRONG, tmp_path)}
    assert lines == {8, 9, 10, 11, 12, 21, 22, 23, 24, 25, 26, 27}
