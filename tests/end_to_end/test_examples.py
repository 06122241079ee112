"""The examples in the documentation run, and show what they say."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from testkit import RunProgram

pytestmark = pytest.mark.timeout(90)

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = re.findall(
    r"^## (.+?)$|^```python\n(.+?)^```", (DOCS / "libraries.md").read_text(), re.MULTILINE | re.DOTALL
)


def examples() -> list[Any]:
    found, title = [], ""
    for heading, code in BLOCKS:
        title = heading or title
        if code:
            found.append(pytest.param(code, id=title))
    return found


@pytest.mark.parametrize("code", examples())
def test_examples_of_the_page_about_libraries(program: RunProgram, code: str):
    program(code, timeout=60)


@pytest.mark.parametrize(
    "module",
    [
        "_completed",
        "_progress",
        "_remote",
        "dask",
        "futures",
        "multiprocessing",
        "util._actor_pool",
        "util._queue",
    ],
)
def test_examples_in_docstrings(cml: Any, module: str):
    found = doctest.testmod(importlib.import_module(f"concurrent_ml.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
