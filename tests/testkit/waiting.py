"""Waiting for a state, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class DeadlinePassed(AssertionError):
    """What a test waited for did not come about in time."""


def wait_until(predicate: Callable[[], T], deadline: float, what: str, poll: float = 0.02) -> T:
    """Calls ``predicate`` until it returns something true, and returns that.

    ``deadline`` is in seconds from now. ``what`` says in words what is awaited; it and the last value seen are the
    message of the `DeadlinePassed` that is raised otherwise.
    """
    end = time.monotonic() + deadline
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= end:
            raise DeadlinePassed(f"not within {deadline:g} s: {what} (last seen: {value!r})")
        time.sleep(poll)
