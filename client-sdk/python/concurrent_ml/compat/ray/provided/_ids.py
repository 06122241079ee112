"""Ids: strings here, with the methods that Ray's ids have."""

from __future__ import annotations

from typing import Self


class UniqueID(str):
    """An id. As a string it is what `cluster list` shows."""

    def __new__(cls, value: str | bytes = "") -> Self:
        """From its text, or from what `binary()` gave."""
        return super().__new__(cls, value.decode() if isinstance(value, bytes) else value)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """From what `hex()` gave."""
        return cls(text)

    @classmethod
    def from_binary(cls, data: bytes) -> Self:
        """From what `binary()` gave."""
        return cls(data)

    @classmethod
    def nil(cls) -> Self:
        """The id of nothing."""
        return cls("")

    def is_nil(self) -> bool:
        """Whether it is the id of nothing."""
        return not self

    def hex(self) -> str:
        """As text."""
        return str(self)

    def binary(self) -> bytes:
        """As bytes."""
        return self.encode()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"


class ActorID(UniqueID):
    """The id of an actor."""


class ActorClassID(UniqueID):
    """The id of a class of actors."""


class FunctionID(UniqueID):
    """The id of a function."""


class JobID(UniqueID):
    """The id of a job."""


class NodeID(UniqueID):
    """The id of a node."""


class PlacementGroupID(UniqueID):
    """The id of a placement group."""


class TaskID(UniqueID):
    """The id of a task."""


class WorkerID(UniqueID):
    """The id of a process."""
