"""Lines that executors print, and sentences of the cluster, on the driver's own stderr and stdout."""

from __future__ import annotations

import sys
import threading

from . import _native
from .exceptions import ClusterError


def start(client: _native.Client) -> None:
    """Prints in a thread of its own until the connection ends."""
    threading.Thread(target=_run, args=(client,), name="concurrent-ml-logs", daemon=True).start()


def _run(client: _native.Client) -> None:
    while True:
        try:
            notice = client.next_notice(60.0)
        except ClusterError:
            return
        if notice is not None:
            _show(notice)


def drain(client: _native.Client) -> None:
    """Prints what has come already: the program is about to end."""
    try:
        while (notice := client.next_notice(0.0)) is not None:
            _show(notice)
    except ClusterError:
        return


def _show(notice: tuple[str, str | None, int | None, str | None, bool]) -> None:
    text, name, pid, node, to_stderr = notice
    if pid is None:
        line = f"concurrent_ml: {text}"
    else:
        line = f"({name or 'executor'} pid={pid}, node={(node or '')[:8]}) {text}"
    stream = sys.stderr if to_stderr else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError):
        return
