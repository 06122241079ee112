"""What is measured of objects that go to disk and come back, beside what `dd` reaches on the same disk."""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

Figures = dict[str, float]

SPILLING = "spilling to disk, of dd with direct I/O"
RESTORING = "restoring from disk, of dd with direct I/O"
ROUNDS = 3
BLOCK = "bs=16M"
GIGABYTES = 2

# The store holds 512 MB, and of 2.5 GB put into it 2 GB go to disk. Then all are read in turn, twice: the first time
# what is in memory must make room by being written, the second time all is on disk, and that is measured.
SPILL = """
import json, os, subprocess, sys, time
import numpy as np
import concurrent_ml as cml

MB = 1_000_000
cml.init(num_cpus=1, object_store_memory=512 * MB)
source = np.random.default_rng(1).integers(0, 256, 32 * MB, dtype=np.uint8)
# The memory of the store is made once.
warm = [cml.put(source) for _ in range(15)]
count = int(sys.argv[1]) * 1000 // 32
start = time.perf_counter()
refs = [cml.put(source) for _ in range(count)]
spilling = count * 32 * MB / (time.perf_counter() - start)
del warm
for ref in refs:
    cml.get(ref)
start = time.perf_counter()
read = 0
for ref in refs:
    read += len(cml.get(ref))
restoring = read / (time.perf_counter() - start)
print(json.dumps([spilling / 1e6, restoring / 1e6]))
"""


def dd(folder: str) -> tuple[float, float]:
    """Megabytes a second that `dd` writes and reads, past the kernel's cache."""
    path = f"{folder}/dd"
    count = f"count={GIGABYTES * 1000 // 16}"
    write = _megabytes(["dd", "if=/dev/zero", f"of={path}", BLOCK, count, "oflag=direct"])
    read = _megabytes(["dd", f"if={path}", "of=/dev/null", BLOCK, "iflag=direct"])
    os.unlink(path)
    return write, read


def _megabytes(command: list[str]) -> float:
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    found = re.search(r"(\d+) bytes .* ([\d.]+) s,", done.stderr)
    assert found is not None, done.stderr
    return int(found[1]) / float(found[2]) / 1e6


def ours(folder: str) -> tuple[float, float]:
    """Megabytes a second that a program's puts and gets reach when all of them go by the disk."""
    script = Path(folder) / "spill.py"
    script.write_text(SPILL)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CLUSTER_")}
    done = subprocess.run(
        [sys.executable, str(script), str(GIGABYTES)],
        env={**inherited, "CLUSTER_SPILL_DIR": folder},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"status {done.returncode}: {done.stderr[-2000:]}")
    write, read = json.loads(done.stdout.splitlines()[-1])
    return write, read


def spilling() -> Figures:
    """Both by turns, on the disk that temporary files lie on."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            before, mine, after = dd(folder), ours(folder), dd(folder)
            plain = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
            print(
                f"  spilled {mine[0]:.0f} MB/s, dd {plain[0]:.0f}; restored {mine[1]:.0f} MB/s, dd {plain[1]:.0f}",
                file=sys.stderr,
            )
            rounds.append((mine[0] / plain[0], mine[1] / plain[1]))
    return {
        SPILLING: statistics.median(write for write, _ in rounds),
        RESTORING: statistics.median(read for _, read in rounds),
    }
