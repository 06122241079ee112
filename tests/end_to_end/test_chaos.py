"""What goes wrong at random for a minute changes no result: `scripts/chaos`, in small."""

import faulthandler
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.timeout(240)
def test_a_minute_of_chaos_changes_no_result() -> None:
    # That it takes longer than a test usually does is no reason to show where it hangs.
    faulthandler.cancel_dump_traceback_later()
    # What is left for a run that began in the minute's last second is its own deadline.
    command = [sys.executable, "-m", "faults.chaos", "--minutes", "1", "--fits", "40", "--megabytes", "100"]
    done = subprocess.run(
        command, cwd=TESTS, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=220, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "every result was that of the quiet run" in done.stdout
