"""`docs/guarantees.md` names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_guarantees_name_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs/guarantees.md").read_text())
    assert len(named) > 40
    missing = []
    for file, test in named:
        path = ROOT / "tests/end_to_end" / file
        if not path.exists() or not re.search(rf"^(async )?def {test}\(", path.read_text(), re.MULTILINE):
            missing.append(f"{file}::{test}")
    assert not missing


def test_every_row_names_a_test() -> None:
    rows = [line for line in (ROOT / "docs/guarantees.md").read_text().splitlines() if line.startswith("|")]
    heads = ("| what", "| ---")
    promises = rows[: next(n for n, row in enumerate(rows) if row.startswith("| what | limit"))]
    unproved = [row for row in promises if not row.startswith(heads) and "::test_" not in row]
    assert not unproved
