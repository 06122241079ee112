"""Finding the product's processes by where they stand in the tree, and ending, stopping and resuming them."""

import enum
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testkit.permissions import live_pids
from testkit.waiting import wait_until


class Role(enum.Enum):
    """What a process is for."""

    HEAD = "head"
    WORKER = "worker"
    ZYGOTE = "zygote"
    EXECUTOR = "executor"


@dataclass(frozen=True)
class Process:
    """A process as it was seen; `start` tells it from a later one with the same id."""

    pid: int
    parent: int
    start: int
    command: tuple[str, ...]
    thread_name: str

    @staticmethod
    def look(pid: int) -> "Process | None":
        """The process with this id, unless it has ended (a zombie has)."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        name, _, rest = fields.partition("(")[2].rpartition(")")
        values = rest.split()
        if values[0] in "ZX":
            return None
        words = tuple(word.decode(errors="replace") for word in command.split(b"\0") if word)
        return Process(pid, int(values[1]), int(values[19]), words, name)

    def alive(self) -> bool:
        """Whether this very process still runs."""
        now = Process.look(self.pid)
        return now is not None and now.start == self.start

    def state(self) -> str:
        """The kernel's letter: R, S, D, T (stopped), Z; empty when it is gone."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return ""

    def network_namespace(self) -> int:
        """The inode of its network namespace, 0 when it cannot be told."""
        return namespace_inode(Path(f"/proc/{self.pid}/ns/net"))

    def environment(self) -> dict[str, str]:
        """The environment it was started with."""
        try:
            block = Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:
            return {}
        pairs = (entry.partition(b"=") for entry in block.split(b"\0") if entry)
        return {key.decode(errors="replace"): value.decode(errors="replace") for key, _, value in pairs}

    def private_bytes(self) -> int:
        """Memory that only this process holds, from smaps_rollup."""
        total = 0
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
        return total

    def resident_bytes(self) -> int:
        """Its resident set, shared pages included."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def kill(self, number: int = signal.SIGKILL, deadline: float = 5) -> None:
        """Sends the signal; for SIGKILL, also waits until the process is gone."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return
        if number == signal.SIGKILL:
            wait_until(lambda: not self.alive(), deadline, f"{self} ends after SIGKILL")

    def pause(self) -> None:
        """SIGSTOP, and waits until it has taken effect."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(lambda: self.state() in ("T", ""), 5, f"{self} stops")

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def __str__(self) -> str:
        return f"process {self.pid} ({' '.join(self.command) or self.thread_name})"[:160]


def namespace_inode(path: Path) -> int:
    """The inode a namespace file stands for, 0 when it cannot be told."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def all_processes() -> Iterator[Process]:
    """Every live process of the machine."""
    for pid in sorted(live_pids()):
        found = Process.look(pid)
        if found is not None:
            yield found


def children_of(parents: Iterable[int], among: Iterable[Process]) -> list[Process]:
    """The processes whose parent is one of these."""
    wanted = set(parents)
    return [process for process in among if process.parent in wanted]


def descendants(pid: int) -> list[Process]:
    """Everything below a process, nearest first."""
    everyone = list(all_processes())
    found: list[Process] = []
    level = [pid]
    while level:
        below = children_of(level, everyone)
        found += below
        level = [process.pid for process in below]
    return found


def by_role(directory: Path, role: Role) -> list[Process]:
    """The processes of one role of the cluster whose run directory this is.

    The daemons name themselves in pid files. A worker daemon's children are its zygotes, and what those forked are the
    executors, whatever either is called.
    """
    if role in (Role.HEAD, Role.WORKER):
        try:
            daemon = Process.look(int((directory / f"{role.value}.pid").read_text().split()[0]))
        except (OSError, ValueError, IndexError):
            return []
        return [daemon] if daemon is not None else []
    everyone = list(all_processes())
    zygotes = children_of((daemon.pid for daemon in by_role(directory, Role.WORKER)), everyone)
    return zygotes if role is Role.ZYGOTE else children_of((zygote.pid for zygote in zygotes), everyone)
