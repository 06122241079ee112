"""The runner behind `scripts/bench`: both systems by turns, medians, one table."""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.alone import MEASUREMENTS
from benchmarks.remote import remote_cluster
from benchmarks.rows import ALONE, BESIDE_RAY, Row

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("program.py")
INTERPRETERS = {"ray": ROOT / ".bench-venv/bin/python", "concurrent_ml": ROOT / ".venv/bin/python"}
Figures = dict[str, dict[str, list[float]]]  # row, system, one figure a round


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the cluster beside Ray (both by turns, medians of the rounds) and prints one table.",
        epilog='Example: scripts/bench --rows "tasks sync,put gigabytes" --rounds 5 --json figures.json',
    )
    parser.add_argument(
        "--rows", default="", help="only rows whose name contains one of these words, comma-separated"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each system (default 3)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="how long a row is measured in a round (default 2)"
    )
    parser.add_argument("--only", choices=("ours", "ray"), help="measure one system only")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every figure of every round there"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="also write the table to docs/benchmarks.md"
    )
    parser.add_argument(
        "--deadline", type=float, default=900, help="seconds one round of one system may take"
    )
    return parser.parse_args()


def chosen(rows: tuple[Row, ...], words: str) -> list[Row]:
    """The rows that were asked for; all, if none was named."""
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    return [row for row in rows if not wanted or any(word in row.name for word in wanted)]


def one_round(system: str, rows: list[Row], seconds: float, deadline: float) -> dict[str, float]:
    """Runs the program once under a system for the rows of each kind."""
    far = [row for row in rows if row.name.startswith("remote client")]
    near = [row for row in rows if row not in far]
    figures = run_program(system, near, seconds, deadline) if near else {}
    if far:
        try:
            with remote_cluster(system) as address:
                figures |= run_program(system, far, seconds, deadline, address)
        except subprocess.CalledProcessError as error:
            print(f"{system} did not start: {error.stderr.decode()[-3000:]}", file=sys.stderr)
    return figures


def run_program(
    system: str, rows: list[Row], seconds: float, deadline: float, address: str | None = None
) -> dict[str, float]:
    """What was measured before a failure counts, and the failure is shown."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "figures.json", Path(folder) / "log"
        command = [INTERPRETERS[system], PROGRAM, "--system", system, "--seconds", str(seconds), "--out", out]
        command += ["--rows", ",".join(row.name for row in rows)]
        command += ["--address", address] if address else []
        # Not the cluster's own run directory: a program of another machine has none.
        environment = {**os.environ, "CLUSTER_DIR": folder} if address else None
        with log.open("w") as stream:
            child = subprocess.Popen(
                list(map(str, command)),
                stdout=stream,
                stderr=stream,
                cwd=folder,
                start_new_session=True,
                env=environment,
            )
            try:
                status = child.wait(timeout=deadline)
            except subprocess.TimeoutExpired:
                child.terminate()
                status = f"no end after {deadline:g} s"
                try:
                    child.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
        if status != 0:
            print(f"{system} did not finish ({status}):\n{log.read_text()[-3000:]}", file=sys.stderr)
        return json.loads(out.read_text()) if out.exists() else {}


def beside_ray(rows: list[Row], options: argparse.Namespace) -> Figures:
    """Every round of every system, by turns, so that a slow minute of the machine meets both."""
    systems = {"ours": ["concurrent_ml"], "ray": ["ray"]}.get(options.only, ["concurrent_ml", "ray"])
    figures: Figures = {row.name: {system: [] for system in systems} for row in rows}
    for number in range(options.rounds):
        # The one that goes first changes, too.
        for system in systems if number % 2 == 0 else reversed(systems):
            print(f"round {number + 1} of {options.rounds}: {system}", file=sys.stderr, flush=True)
            for name, figure in one_round(system, rows, options.seconds, options.deadline).items():
                figures[name][system].append(figure)
    return figures


def alone(rows: list[Row], rounds: int) -> Figures:
    """The rows without a counterpart in Ray."""
    figures: Figures = {row.name: {"concurrent_ml": []} for row in rows}
    for names, measure in MEASUREMENTS:
        wanted = [name for name in names if name in figures]
        if not wanted:
            continue
        for _ in range(1 if "million" in names[0] else rounds):
            print(f"measuring {', '.join(wanted)}", file=sys.stderr, flush=True)
            try:
                results = measure()
            except Exception as error:  # one row's failure must not cost the figures of the others
                said = getattr(error, "stderr", None) or ""
                print(f"failed: {type(error).__name__}: {error}\n{said}".rstrip(), file=sys.stderr)
                break
            for name in wanted:
                if name in results:
                    figures[name]["concurrent_ml"].append(results[name])
                else:
                    print(f"not measured here: {name}", file=sys.stderr)
    return figures


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: list[Row], figures: Figures) -> str:
    """Markdown; it reads as well in a terminal."""
    lines = [("row", "unit", "Concurrent-ML", "Ray", "ratio", "target", "reached")]
    for row in rows:
        medians = {system: statistics.median(v) for system, v in figures[row.name].items() if v}
        ours, ray = medians.get("concurrent_ml"), medians.get("ray")
        both = ours is not None and ray is not None
        reached = row.reached(ours, ray) if ours is not None else None
        lines.append(
            (
                row.name,
                row.unit,
                number(ours),
                number(ray),
                f"{row.ratio(ours, ray):.1f}" if both and ours is not None and ray is not None else "",
                row.target(),
                {True: "yes", False: "NO", None: ""}[reached],
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    right = (False, False, True, True, True, False, False)

    def render(cells: tuple[str, ...]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = tuple("-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True))
    return "\n".join([render(lines[0]), render(rule), *map(render, lines[1:])])


def machine() -> str:
    """The machine in a sentence."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} × {cpu}, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, Ray {ray_version()}"
    )


def ray_version() -> str:
    """As installed beside; empty words where it is not."""
    if not INTERPRETERS["ray"].exists():
        return "not installed"
    ask = "import importlib.metadata as m; print(m.version('ray'))"
    return subprocess.run(
        [INTERPRETERS["ray"], "-c", ask], capture_output=True, text=True, check=False
    ).stdout.strip()


DOCS = """# Benchmarks

The table is `scripts/bench`'s own output{command}. Both systems ran the same program by turns on the same machine;
figures are medians of {rounds} rounds. Absolute figures belong to this machine; the ratios are what to compare.

Machine: {machine}. Measured {day}.

{table}

What the rows mean: `tests/benchmarks/program.py` (the rows beside Ray, as in Ray's own microbenchmark; its first lines
say where they differ) and `tests/benchmarks/alone.py` (the others). To measure again:

```
scripts/bench                       # everything, about ten minutes
scripts/bench --rows "tasks sync"   # one row
scripts/bench --write-docs          # everything, and this file
```
"""


def main() -> int:
    """Measures, prints, writes."""
    options = parse()
    with_ray, without = chosen(BESIDE_RAY, options.rows), chosen(ALONE, options.rows)
    if options.only == "ray":
        without = []
    if not with_ray and not without:
        print(
            "no row has such a name; there are:",
            *(r.name for r in BESIDE_RAY + ALONE),
            sep="\n  ",
            file=sys.stderr,
        )
        return 2
    figures: Figures = {}
    if with_ray:
        figures |= beside_ray(with_ray, options)
    if without:
        figures |= alone(without, options.rounds)
    rows = with_ray + without
    text = table(rows, figures)
    print(f"{machine()}\n\n{text}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
    if options.write_docs:
        extra = " ".join(word for word in sys.argv[1:] if word != "--write-docs")
        docs = DOCS.format(
            command=f", with `{extra}`" if extra else "",
            rounds=options.rounds,
            machine=machine(),
            day=datetime.date.today().isoformat(),
            table=text,
        )
        (ROOT / "docs/benchmarks.md").write_text(docs)
    wanted_systems = {"ours": ["concurrent_ml"], "ray": ["ray"]}.get(options.only, ["concurrent_ml", "ray"])
    missing = [n for n, per in figures.items() for s in per if s in wanted_systems and not per[s]]
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
