"""`progress`: waits for refs and shows how far they are."""

from __future__ import annotations

import html
import shutil
import sys
import time
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from . import _state
from ._completed import as_completed
from ._native import ObjectRef

T = TypeVar("T")

_REDRAWN = 0.1
"""Seconds between two looks of a bar that somebody watches."""
_SAID = 10.0
"""Seconds between two lines where nobody does."""


def progress(refs: Iterable[ObjectRef[T]], *, label: str = "") -> list[ObjectRef[T]]:
    """Waits until all refs are ready and shows a bar meanwhile; returns the refs, in their order.

    In a terminal the bar is drawn on stderr, in a notebook under the cell; where stderr is neither, a line is written
    now and then. Failed tasks are counted, not raised: `get` raises what went wrong.

    >>> import concurrent_ml as cml
    >>> square = cml.remote(lambda x: x * x)
    >>> cml.get(cml.progress(square.map(range(3)), label="squares"))
    [0, 1, 4]
    """
    every = list(refs) if not isinstance(refs, ObjectRef) else refs
    completed = as_completed(every)  # tells what is no ref
    show = _display(label)
    count = _Count(len(completed))
    client = _state.connected()
    show.update(count)
    try:
        while len(completed):
            for ref in completed._within(show.interval):
                count.ready += 1
                count.failed += client.has_failed(ref)
            show.update(count)
    finally:
        show.end(count)
    return every  # type: ignore[return-value]


class _Count:
    def __init__(self, total: int) -> None:
        self.total = total
        self.ready = 0
        self.failed = 0
        self.begun = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def text(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        seconds = self.seconds()
        if self.ready == self.total:
            return f"{self.ready}/{self.total}{failed} in {_clock(seconds)}"
        left = f", {_clock(seconds / self.ready * (self.total - self.ready))} left" if self.ready else ""
        return f"{self.ready}/{self.total}{failed}, {_clock(seconds)}{left}"

    def part(self) -> float:
        return self.ready / self.total if self.total else 1.0


def _clock(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Display(Protocol):
    interval: float

    def update(self, count: _Count) -> None: ...
    def end(self, count: _Count) -> None: ...


def _display(label: str) -> _Display:
    if _in_notebook():
        return _Notebook(label)
    if getattr(sys.stderr, "isatty", lambda: False)():
        return _Terminal(label)
    return _Lines(label)


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and getattr(running, "kernel", None) is not None


class _Terminal:
    """One line that is drawn again and again."""

    interval = _REDRAWN

    def __init__(self, label: str) -> None:
        self.label = f"{label} " if label else ""

    def update(self, count: _Count) -> None:
        text = count.text()
        room = shutil.get_terminal_size().columns - len(self.label) - len(text) - 4
        width = max(0, min(40, room))
        full = round(width * count.part())
        bar = f"{'█' * full}{'░' * (width - full)} " if width else ""
        try:
            sys.stderr.write(f"\r\x1b[K{self.label}{bar}{text}")
        except UnicodeEncodeError:
            sys.stderr.write(f"\r\x1b[K{self.label}{bar.replace('█', '#').replace('░', '.')}{text}")
        sys.stderr.flush()
        _state.bar = True

    def end(self, count: _Count) -> None:
        self.update(count)
        _state.bar = False
        sys.stderr.write("\n")
        sys.stderr.flush()


class _Lines:
    """A line now and then."""

    interval = 1.0

    def __init__(self, label: str) -> None:
        self.label = f"{label}: " if label else ""
        self.last = time.monotonic()

    def update(self, count: _Count) -> None:
        if time.monotonic() - self.last >= _SAID and count.ready < count.total:
            self.say(count)

    def say(self, count: _Count) -> None:
        self.last = time.monotonic()
        print(f"{self.label}{count.text()}", file=sys.stderr, flush=True)

    def end(self, count: _Count) -> None:
        self.say(count)


class _Notebook:
    """A bar under the cell."""

    interval = 2 * _REDRAWN

    def __init__(self, label: str) -> None:
        self.label = html.escape(label)
        self.handle: Any = None

    def update(self, count: _Count) -> None:
        from IPython.display import HTML, display

        shown = HTML(
            f'<div>{self.label} <progress value="{count.ready}" max="{max(1, count.total)}" style="width: 20em">'
            f"</progress> {count.text()}</div>"
        )
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)

    def end(self, count: _Count) -> None:
        self.update(count)
