"""Standard output and error of an executor: whole lines, sent to the driver with the task that printed them."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from typing import Any

from . import _native, _state

LINE_MAX = 250_000
"""A line of more characters is sent in pieces: with its mark it must be below the 1 MiB that a log is read in."""


class Lines(io.TextIOBase):
    """A text stream for one of the two. A line goes out when it ends, or when its task does."""

    def __init__(self, client: _native.Client, to_stderr: bool) -> None:
        self.client = client
        self.to_stderr = to_stderr
        # What is no whole line yet, by the tag of the task that wrote it: several may run at once.
        self.rests: dict[int, str] = {}
        self.lock = threading.Lock()
        self.buffer = _Bytes(self)

    encoding = "utf-8"
    errors = "replace"

    @property
    def name(self) -> str:
        """As of the stream it stands for."""
        return "<stderr>" if self.to_stderr else "<stdout>"

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor that the daemon reads for what comes past this stream."""
        return 2 if self.to_stderr else 1

    def isatty(self) -> bool:
        """False."""
        return False

    def write(self, text: str) -> int:
        """Keeps what is no whole line yet."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        task = _state.current_task()
        key = task.tag if task is not None else 0
        with self.lock:
            *lines, rest = (self.rests.pop(key, "") + text).split("\n")
            if len(rest) > LINE_MAX:
                lines.append(rest)
                rest = ""
            if rest:
                self.rests[key] = rest
        for line in lines:
            self.send(line)
        return len(text)

    def finish(self) -> None:
        """The task has ended: what it began is a line."""
        task = _state.current_task()
        with self.lock:
            if not self.rests:
                return
            rests = [
                self.rests.pop(key) for key in {task.tag if task is not None else 0, 0} if key in self.rests
            ]
        for rest in rests:
            self.send(rest)

    def send(self, line: str) -> None:
        """One line, as a terminal would show it: of a progress bar, the last state."""
        line = line.removesuffix("\r").rpartition("\r")[2]
        if _state.is_fork:
            # The connection is the parent's; the daemon reads the descriptors too.
            with contextlib.suppress(OSError):
                os.write(self.fileno(), f"{line}\n".encode(errors="replace"))
            return
        task = _state.current_task()
        self.client.log(line, self.to_stderr, task.task_id if task else None, task.name if task else None)


class _Bytes(io.RawIOBase):
    """What `sys.stdout.buffer` is for."""

    def __init__(self, text: Lines) -> None:
        self.text = text

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.text.fileno()

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self.text.write(raw.decode("utf-8", "replace"))
        return len(raw)
