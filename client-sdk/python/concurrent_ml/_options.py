"""The options of remote functions, classes and methods: names, meanings, and what is wrong with others."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from . import _environments, _strategies

if TYPE_CHECKING:
    from ._strategies import SchedulingStrategy


STREAM_BYTES = 256 << 20
"""A task that yields may be so many bytes ahead of who takes its items, unless told."""


class Variant(TypedDict, total=False):
    """One of several requests that would do, for type checkers."""

    num_cpus: float
    num_gpus: float
    memory: float
    resources: Mapping[str, float]


class OtherOptions(TypedDict, total=False):
    """Every option but `num_returns`, for type checkers."""

    num_cpus: float | None
    num_gpus: float | None
    memory: float | None
    resources: Mapping[str, float] | None
    max_calls: int
    max_retries: int
    retry_exceptions: bool | Sequence[type[BaseException]]
    name: str | None
    runtime_env: Mapping[str, Any] | None
    scheduling_strategy: SchedulingStrategy | None
    timeout: str | float | None
    stream_max_items: int | None
    stream_max_bytes: int | None
    retry_delay: str | float
    retry_backoff: float
    retry_max_delay: str | float
    variants: Sequence[Variant] | None
    durable: bool


class AllOptions(OtherOptions, total=False):
    """Every option, for type checkers."""

    num_returns: int | Literal["streaming", "dynamic"] | None


class AllActorOptions(TypedDict, total=False):
    """Every option of a remote class, for type checkers."""

    num_cpus: float | None
    num_gpus: float | None
    memory: float | None
    resources: Mapping[str, float] | None
    name: str | None
    namespace: str | None
    get_if_exists: bool
    lifetime: Literal["detached", "non_detached"] | None
    max_restarts: int
    max_task_retries: int
    max_concurrency: int | None
    concurrency_groups: Mapping[str, int] | None
    runtime_env: Mapping[str, Any] | None
    scheduling_strategy: SchedulingStrategy | None
    variants: Sequence[Variant] | None
    checkpoint_interval: str | float | None
    max_pending_calls: int | None


class OtherMethodOptions(TypedDict, total=False):
    """Every option of a method but `num_returns`, for type checkers."""

    concurrency_group: str | None
    max_task_retries: int | None
    retry_exceptions: bool | Sequence[type[BaseException]]
    name: str | None
    timeout: str | float | None
    stream_max_items: int | None
    stream_max_bytes: int | None


class AllMethodOptions(OtherMethodOptions, total=False):
    """Every option of a method, for type checkers."""

    num_returns: int | Literal["streaming", "dynamic"] | None


@dataclass(frozen=True)
class Options:
    """What a call asks for."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    num_returns: int | str | None = None
    """`None`: one, or as many as there are where the function is a generator's."""
    max_calls: int = 0
    max_retries: int = 3
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    name: str | None = None
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    scheduling_strategy: Any = None
    timeout: float | None = None
    stream_max_items: int | None = None
    stream_max_bytes: int | None = STREAM_BYTES
    retry_delay: float = 0.1
    retry_backoff: float = 2
    retry_max_delay: float = 30
    variants: tuple[Mapping[str, Any], ...] = ()
    durable: bool = False

    def asks(self) -> dict[str, float]:
        """What it asks for, by resource name."""
        return _asks(self)

    def requests(self) -> list[dict[str, float]]:
        """All that would do, by resource name."""
        return _requests(self)

    def backoff(self) -> tuple[int, int, int]:
        """The pause before a retry, as the native module takes it."""
        if not self.retry_exceptions:
            return 0, 0, 0
        first, most = (
            min(round(1000 * span), (1 << 32) - 1) for span in (self.retry_delay, self.retry_max_delay)
        )
        return first, min(round(100 * self.retry_backoff), (1 << 32) - 1), most

    def changed(self, given: Mapping[str, Any]) -> Options:
        """These options with some replaced. A wrong one raises with a sentence."""
        return replace(self, **_checked(given, _CHECKS, "of a remote function"))

    @staticmethod
    def knows(given: Mapping[str, Any]) -> bool:
        """Whether all of these are options of functions."""
        return all(key in _CHECKS or key in _NOT_YET for key in given)


@dataclass(frozen=True)
class ActorOptions:
    """What an actor is to be."""

    num_cpus: float = 0
    num_gpus: float = 0
    memory: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    name: str | None = None
    namespace: str | None = None
    get_if_exists: bool = False
    lifetime: str | None = None
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int | None = None
    concurrency_groups: Mapping[str, int] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    scheduling_strategy: Any = None
    variants: tuple[Mapping[str, Any], ...] = ()
    checkpoint_interval: float | None = None
    max_pending_calls: int | None = None
    """Through one handle; `None`: as many as there are."""

    def asks(self) -> dict[str, float]:
        """What it asks for, by resource name."""
        return _asks(self)

    def requests(self) -> list[dict[str, float]]:
        """All that would do, by resource name."""
        return _requests(self)

    def changed(self, given: Mapping[str, Any]) -> ActorOptions:
        """These options with some replaced. A wrong one raises with a sentence."""
        changed = replace(self, **_checked(given, _ACTOR_CHECKS, "of a remote class"))
        if changed.get_if_exists and not changed.name:
            raise ValueError("get_if_exists needs a name: .options(name=..., get_if_exists=True)")
        return changed

    @staticmethod
    def knows(given: Mapping[str, Any]) -> bool:
        """Whether all of these are options of actors."""
        return all(key in _ACTOR_CHECKS or key in _NOT_YET for key in given)


@dataclass(frozen=True)
class MethodOptions:
    """What a call of a method asks for."""

    num_returns: int | str | None = None
    concurrency_group: str | None = None
    name: str | None = None
    timeout: float | None = None
    stream_max_items: int | None = None
    stream_max_bytes: int | None = STREAM_BYTES
    max_task_retries: int | None = None
    """`None`: the actor's."""
    retry_exceptions: bool | bytes | tuple[type[BaseException], ...] = False

    def changed(self, given: Mapping[str, Any]) -> MethodOptions:
        """These options with some replaced. A wrong one raises with a sentence."""
        return replace(self, **_checked(given, _METHOD_CHECKS, "of a method"))


def _asks(options: Options | ActorOptions) -> dict[str, float]:
    plain = {"CPU": options.num_cpus, "GPU": options.num_gpus, "memory": options.memory}
    return {**plain, **options.resources}


def _requests(options: Options | ActorOptions) -> list[dict[str, float]]:
    if not options.variants:
        return [_asks(options)]
    if isinstance(options.scheduling_strategy, _strategies.PlacementGroupSchedulingStrategy):
        raise ValueError("variants cannot be used in a placement group: what it sets aside is of one kind")
    return [_asks(replace(options, variants=(), **variant)) for variant in options.variants]


def _variants(key: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(variant, Mapping) for variant in value):
        raise TypeError(f'{key} is {value!r}; it must be a list like [{{"num_gpus": 1}}, {{"num_cpus": 8}}]')
    checks = {"num_cpus": amount, "num_gpus": _gpus, "memory": amount, "resources": amounts}
    for variant in value:
        for name in variant:
            if name not in checks:
                raise TypeError(f"{key} has {name!r} in {variant!r}; there are {', '.join(checks)}")
    return tuple({name: checks[name](name, asked) for name, asked in variant.items()} for variant in value)


def _pause(key: str, value: Any) -> float:
    return 0.0 if value in (None, 0) else duration(key, value) or 0.0


def _growth(key: str, value: Any) -> float:
    if amount(key, value) < 1:
        raise ValueError(f"{key} is {value}; it must be 1 (each pause as long as the first) or more")
    return value


def _some_retries(key: str, value: Any) -> int | None:
    return None if value is None else _retries(key, value)


def _checked(given: Mapping[str, Any], checks: Mapping[str, Any], whose: str) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for key, value in given.items():
        if key not in checks:
            later = _NOT_YET.get(key)
            if later is not None:
                raise ValueError(f"the option {key!r} is not available: {later}")
            close = difflib.get_close_matches(key, checks, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(checks)}"
            others = _ACTOR_CHECKS if checks is _CHECKS else _CHECKS
            what = f"{key!r} is no option {whose}" if key in others else f"there is no option {key!r}"
            raise TypeError(f"{what}; {hint}")
        checked[key] = checks[key](key, value)
    return checked


_AMOUNT_AT_MOST = 9e14
"""Amounts are counted in ten-thousandths, in 64 bits."""


def amount(key: str, value: Any) -> float:
    """A number that can be an amount of a resource."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key} is {value!r}; it must be a number")
    if math.isnan(value) or math.isinf(value) or value < 0:
        raise ValueError(f"{key} is {value}; it must be a finite number, 0 or more")
    if value > _AMOUNT_AT_MOST:
        raise ValueError(f"{key} is {float(value):g}; that is more than can be counted")
    return value


def _cpus(key: str, value: Any) -> float:
    return 1 if value is None else amount(key, value)


def _gpus(key: str, value: Any) -> float:
    number = amount(key, value)
    if number > 1 and number != int(number):
        raise ValueError(f"{key} is {value}; above 1, GPUs are requested whole")
    return number


ENTRIES_AT_MOST = 4096
"""Named resources of a task or node, bundles of a group, environment variables: a message with more is refused."""


def few_enough(key: str, value: Sized) -> None:
    """Raises where there are more than a message may have."""
    if len(value) > ENTRIES_AT_MOST:
        raise ValueError(f"{key} has {len(value)} entries; there can be {ENTRIES_AT_MOST} at most")


def amounts(key: str, value: Any) -> dict[str, float]:
    """Named resources."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f'{key} is {value!r}; it must be a dict like {{"tpu": 1}}')
    few_enough(key, value)
    for name, number in value.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{key} has the name {name!r}; names of resources are words")
        if name in ("CPU", "GPU", "memory"):
            option = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}[name]
            raise ValueError(f"{key} names {name}; use {option} for that")
        amount(f"{key}[{name!r}]", number)
    return dict(value)


def _returns(key: str, value: Any) -> int | str | None:
    if value is None or (isinstance(value, str) and value in ("streaming", "dynamic")):
        return value
    if isinstance(value, str):
        raise ValueError(f'{key} is {value!r}; it must be a whole number, "streaming" or "dynamic"')
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'{key} is {value!r}; it must be a whole number, "streaming" or "dynamic"')
    if not 0 <= value < 1 << 24:
        raise ValueError(f"{key} is {value}; it must be from 0 to {(1 << 24) - 1}")
    return value


def _limit(key: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key} is {value!r}; it must be a whole number, or None (no limit)")
    if not 1 <= value < 1 << (31 if key == "stream_max_items" else 62):
        raise ValueError(f"{key} is {value}; it must be 1 or more, or None (no limit)")
    return value


def _calls(key: str, value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key} is {value!r}; it must be a whole number")
    if value < 0:
        raise ValueError(f"{key} is {value}; it must be 0 (any number) or more")
    return value


def _retries(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key} is {value!r}; it must be a whole number")
    if not -1 <= value < 1 << 31:
        raise ValueError(f"{key} is {value}; it must be -1 (without end), 0 or more")
    return value


def _retry_exceptions(key: str, value: Any) -> bool | tuple[type[BaseException], ...]:
    if isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    ):
        return tuple(value)
    raise TypeError(f"{key} is {value!r}; it must be True, False or a list of exception classes")


def _name(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}; it must be a string")
    return value


def _actor_cpus(key: str, value: Any) -> float:
    return 0 if value is None else amount(key, value)


def _bool(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{key} is {value!r}; it must be True or False")
    return value


def _lifetime(key: str, value: Any) -> str | None:
    if value in (None, "detached", "non_detached"):
        return value
    raise ValueError(f'{key} is {value!r}; it must be "detached" (until it is killed) or "non_detached"')


def _actor_name(key: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{key} is {value!r}; it must be a string that is not empty")
    return value


def _concurrency(key: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key} is {value!r}; it must be a whole number")
    if not 1 <= value < 1 << 31:
        raise ValueError(f"{key} is {value}; it must be 1 or more")
    return value


def _groups(key: str, value: Any) -> dict[str, int]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f'{key} is {value!r}; it must be a dict like {{"io": 4}}')
    for name, limit in value.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{key} has the name {name!r}; names of groups are words")
        if _concurrency(f"{key}[{name!r}]", limit) is None:
            raise TypeError(f"{key}[{name!r}] is None; it must be a whole number")
    return dict(value)


def runtime_env(key: str, value: Any) -> dict[str, Any]:
    """An environment: see `_environments`."""
    return _environments.checked(key, value)


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def duration(key: str, value: Any) -> float | None:
    """Seconds, from a number of them or a text like "30s"."""
    if value is None:
        return None
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h)\s*", value)
        if found is None:
            raise ValueError(f'{key} is {value!r}; it must be like "500ms", "30s", "5m" or "2h", or seconds')
        value = float(found[1]) * _UNITS[found[2]]
    if amount(key, value) <= 0:
        raise ValueError(f"{key} is {value}; it must be more than 0")
    return float(value)


def _strategy(key: str, value: Any) -> Any:
    if value is None or value in ("DEFAULT", "SPREAD") or isinstance(value, _strategies.KINDS):
        return value
    kinds = ", ".join(f"{kind.__name__}(...)" for kind in _strategies.KINDS)
    raise ValueError(f'{key} is {value!r}; it must be "DEFAULT", "SPREAD", {kinds}')


_NOT_YET = {
    "accelerator_type": 'ask for a custom resource instead, like resources={"a100": 1}',
}

_CHECKS = {
    "num_cpus": _cpus,
    "num_gpus": _gpus,
    "memory": amount,
    "resources": amounts,
    "num_returns": _returns,
    "max_calls": _calls,
    "max_retries": _retries,
    "retry_exceptions": _retry_exceptions,
    "name": _name,
    "runtime_env": runtime_env,
    "scheduling_strategy": _strategy,
    "timeout": duration,
    "stream_max_items": _limit,
    "stream_max_bytes": _limit,
}

_CHECKS |= {
    "retry_delay": _pause,
    "retry_backoff": _growth,
    "retry_max_delay": _pause,
    "variants": _variants,
    "durable": _bool,
}

_ACTOR_CHECKS = {
    "num_cpus": _actor_cpus,
    "num_gpus": _gpus,
    "memory": amount,
    "resources": amounts,
    "name": _actor_name,
    "namespace": _actor_name,
    "get_if_exists": _bool,
    "lifetime": _lifetime,
    "max_restarts": _retries,
    "max_task_retries": _retries,
    "max_concurrency": _concurrency,
    "concurrency_groups": _groups,
    "runtime_env": runtime_env,
    "scheduling_strategy": _strategy,
    "checkpoint_interval": duration,
    "max_pending_calls": lambda key, value: None if value == -1 else _concurrency(key, value),
}

_ACTOR_CHECKS["variants"] = _variants

_METHOD_CHECKS = {
    "max_task_retries": _some_retries,
    "retry_exceptions": _retry_exceptions,
    "num_returns": _returns,
    "concurrency_group": _name,
    "name": _name,
    "timeout": duration,
    "stream_max_items": _limit,
    "stream_max_bytes": _limit,
}
