"""What a run left behind: processes, shared-memory segments, sockets.

Everything the testkit starts carries a mark in its environment, which every process below it inherits, so a leftover
is found wherever it ended up in the process tree.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from testkit.processes import Process, all_processes
from testkit.waiting import wait_until

MARK = "TESTKIT_RUN"


def marked(run: str) -> list[Process]:
    """The live processes of a run."""
    return [process for process in all_processes() if process.environment().get(MARK) == run]


def segments_mapped(process: Process) -> set[str]:
    """The shared-memory segments that a process holds, mapped or by descriptor."""
    found = set()
    try:
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            name = line.partition("/")[2]
            if name.startswith(("memfd:", "dev/shm/")):
                found.add("/" + name)
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            target = os.readlink(entry)
            if target.startswith(("/memfd:", "/dev/shm/")):
                found.add(target)
    except OSError:
        pass  # it ended while we looked, or is not ours to look into
    return found


def sockets_bound(directory: Path) -> Iterator[str]:
    """Unix sockets that some process still listens on below a folder, or whose files are still there."""
    prefix = f"{directory}/"
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        path = line.split(maxsplit=7)[7] if len(line.split(maxsplit=7)) > 7 else ""
        if path.startswith(prefix):
            yield f"bound socket {path}"
    if directory.is_dir():
        for path in directory.rglob("*"):
            if path.is_socket():
                yield f"socket file {path}"


def leftovers(
    run: str, directories: Iterable[Path] = (), shm_before: Iterable[str] | None = None
) -> list[str]:
    """In words, what is left of a run; nothing, if the list is empty.

    ``directories`` are the run directories whose sockets must be gone. With ``shm_before`` (`shm_files` before the
    run), files that are new in /dev/shm count as well.
    """
    found = []
    for process in marked(run):
        found.append(str(process))
        found += [f"segment {name} in {process}" for name in sorted(segments_mapped(process))]
    for directory in directories:
        found += sorted(set(sockets_bound(directory)))
    if shm_before is not None:
        found += [f"file /dev/shm/{name}" for name in sorted(shm_files() - set(shm_before))]
    return found


def assert_nothing_left(
    run: str, directories: Iterable[Path] = (), shm_before: Iterable[str] | None = None, deadline: float = 5
) -> None:
    """Fails with the list unless everything of the run is gone within the deadline."""
    directories = list(directories)
    last: list[str] = []

    def clean() -> bool:
        last[:] = leftovers(run, directories, shm_before)
        return not last

    try:
        wait_until(clean, deadline, "nothing is left of the run")
    except AssertionError as error:
        raise AssertionError("left of the run:\n  " + "\n  ".join(last)) from error


def shm_files() -> set[str]:
    """The names in /dev/shm."""
    return {entry.name for entry in Path("/dev/shm").iterdir()}
