"""What this process is: connected or not, a driver or an executor."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from . import _native

if TYPE_CHECKING:
    from ._embedded import Embedded

client: _native.Client | None = None
"""The connection; `None` before `init` and after `shutdown`."""

embedded: Embedded | None = None
"""The cluster that this driver started for itself, if it did."""

is_executor = False
"""Whether this process was started by the cluster to run tasks."""

task: _native.Task | None = None
"""The task that this executor runs."""

generation = 0
"""Counts connections, so that what was made for an older one is made anew."""

lock = threading.RLock()
"""Held while connecting and disconnecting."""


def connected() -> _native.Client:
    """The connection; makes one (a cluster of this program's own) where there is none."""
    if client is not None:
        return client
    from ._api import init

    init()
    assert client is not None
    return client


os.register_at_fork(after_in_child=_native.mark_forked)
