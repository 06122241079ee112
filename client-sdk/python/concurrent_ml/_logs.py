"""Lines that executors print, and sentences of the cluster, on the driver's own stdout and stderr."""

from __future__ import annotations

import contextlib
import sys
import threading

from . import _native, _state
from .exceptions import ClusterError


class Printer:
    """A thread that prints what comes, until the connection ends."""

    def __init__(self, client: _native.Client) -> None:
        self.client = client
        self.thread = threading.Thread(target=self._run, name="concurrent-ml-logs", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        # Once the connection has ended, the rest is still handed out; then it raises.
        with contextlib.suppress(ClusterError):
            while True:
                notice = self.client.next_notice(60.0)
                if notice is not None:
                    _show(notice)

    def finish(self) -> None:
        """After the end of the connection: what has come is printed."""
        if self.thread is not threading.current_thread():
            self.thread.join(2.0)


def _show(notice: tuple[str, str | None, int | None, str | None, bool]) -> None:
    text, name, pid, node, to_stderr = notice
    if pid is None:
        line = f"concurrent_ml: {text}"
    else:
        line = f"({name or 'executor'} pid={pid}, node={(node or '')[:6]}) {text}"
    # A program's own standard output stays its own: `print` writes in pieces, and a line of another thread between
    # them would break what may be read by a program. Notebooks and test tools put streams of theirs there.
    stream = sys.stderr if to_stderr or sys.stdout is sys.__stdout__ else sys.stdout
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"\r\x1b[K{line}\n" if _state.bar else f"{line}\n")
        stream.flush()
