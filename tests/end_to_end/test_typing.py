"""What a type checker sees: the types of the user's own functions, through every call."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import concurrent_ml as cml
from typing_extensions import assert_type

@cml.remote
def length(word: str, times: int = 1) -> int:
    return len(word) * times

@cml.remote(num_cpus=0.5, max_retries=2)
def words(count: int) -> list[str]:
    return ["word"] * count

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
    assert lines == {8, 9, 10, 11, 12}
