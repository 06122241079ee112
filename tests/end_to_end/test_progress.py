"""`progress`: a bar in a terminal, in a notebook, and lines elsewhere."""

import _thread
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from testkit import Machine, RunProgram

pytestmark = pytest.mark.timeout(60)

PROGRAM = """\
import time, concurrent_ml as cml
cml.init(num_cpus=2)

@cml.remote
def work(n):
    time.sleep(0.1)
    if n == 3:
        raise ValueError("three")
    if n == 2:
        print("a line from a task")
    return n

refs = work.map(range(6))
assert cml.progress(refs, label="working") == refs
assert cml.get(refs[:3]) == [0, 1, 2]
cml.shutdown()
"""


def test_it_returns_the_refs_when_all_are_ready(cml: Any):
    refs = cml.remote(lambda n: n).map(range(10))
    assert cml.progress(ref for ref in refs) == refs
    assert cml.wait(refs, num_returns=10, timeout=0)[1] == []
    assert cml.progress([]) == []


def test_where_nobody_watches_a_line_says_how_it_ended(program: RunProgram):
    done = program(PROGRAM)
    assert re.search(r"^working: 6/6, 1 failed in \d\.\d s$", done.stderr, re.MULTILINE), done.stderr
    assert "\x1b" not in done.stderr
    assert done.stdout == ""


def test_in_a_terminal_a_bar_is_drawn_and_lines_of_tasks_wipe_it_out(machine: Machine, tmp_path: Path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, path],
        env={**machine.environment, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:
        pass  # the terminal's other side is closed
    finally:
        os.close(ours)
    assert child.wait(20) == 0, shown
    text = shown.decode()
    assert "\r\x1b[Kworking ░░░" in text
    assert text.count("█") > 10
    assert re.search(r"█ 6/6, 1 failed in \d\.\d s\r\n", text), text
    assert re.search(r"\r\x1b\[K\(work pid=\d+, node=\w+\) a line from a task\r\n", text), text


def test_in_a_notebook_a_bar_is_updated():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PROGRAM)])
    nbclient.NotebookClient(notebook, timeout=45, kernel_name="python3").execute()
    shown = [o["data"]["text/html"] for o in notebook.cells[0].outputs if "text/html" in o.get("data", {})]
    assert len(shown) == 1, "one output, updated in place"
    assert '<progress value="6" max="6"' in shown[0]
    assert "6/6, 1 failed" in shown[0]


def test_an_interrupt_ends_the_bar_and_leaves_the_tasks(cml: Any):
    refs = [cml.remote(time.sleep).remote(1.0)]
    threading.Timer(0.3, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        cml.progress(refs)
    assert cml.get(refs, timeout=20) == [None]


def test_wrong_use_is_told(cml: Any):
    with pytest.raises(TypeError, match="not a single one"):
        cml.progress(cml.put(1))
    with pytest.raises(TypeError, match="item 0 is of type int"):
        cml.progress([1])
