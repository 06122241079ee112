"""A pool of actors that share the work given to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from .._actor import ActorHandle
from .._api import get, wait
from .._native import ObjectRef
from ..exceptions import GetTimeoutError

V = TypeVar("V")


class ActorPool:
    """Gives each of several actors one piece of work at a time.

    Work is a function of an actor and a value: it calls one of the actor's methods and returns the ref.

    >>> import concurrent_ml as cml
    >>> from concurrent_ml.util import ActorPool
    >>> @cml.remote
    ... class Doubler:
    ...     def double(self, x):
    ...         return 2 * x
    >>> pool = ActorPool([Doubler.remote(), Doubler.remote()])
    >>> list(pool.map(lambda actor, value: actor.double.remote(value), [1, 2, 3]))
    [2, 4, 6]
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: deque[Any] = deque(actors)
        for actor in self._idle:
            _check(actor)
        # In the order of submission: what an actor was given, and the actor. Several refs where a method has several.
        self._running: dict[int, tuple[ObjectRef[Any] | list[ObjectRef[Any]], Any]] = {}
        self._waiting: deque[tuple[int, Callable[[Any, Any], Any], Any]] = deque()
        self._next = 0

    def submit(self, fn: Callable[[Any, V], Any], value: V) -> None:
        """Gives `fn(actor, value)` to the next actor that is free; `get_next` gives its result."""
        if not callable(fn):
            raise TypeError(f"submit() takes a function of an actor and a value, not a {type(fn).__name__}")
        self._next += 1
        if self._idle:
            self._give(self._next, fn, value)
        else:
            self._waiting.append((self._next, fn, value))

    def _give(self, number: int, fn: Callable[[Any, Any], Any], value: Any) -> None:
        actor = self._idle.popleft()
        try:
            refs = fn(actor, value)
            several = refs if isinstance(refs, list) and refs else [refs]
            if not all(isinstance(ref, ObjectRef) for ref in several):
                raise TypeError(
                    f"the function returned a {type(refs).__name__} and not a ref: it calls a method of the actor, as "
                    "actor.method.remote(value), and returns what that gives"
                )
        except BaseException:
            self._idle.appendleft(actor)
            raise
        self._running[number] = (refs, actor)

    def _take(self, number: int) -> ObjectRef[Any] | list[ObjectRef[Any]]:
        """Its actor is free for what waits."""
        refs, actor = self._running.pop(number)
        self._free(actor)
        return refs

    def _free(self, actor: Any) -> None:
        self._idle.append(actor)
        if self._waiting:
            self._give(*self._waiting.popleft())

    def map(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """The results of `fn(actor, value)` for all values, in their order.

        Results of earlier work that nobody took are dropped.
        """
        self._begin(fn, values)
        return self._results(self.get_next)

    def map_unordered(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """The results of `fn(actor, value)` for all values, as they come."""
        self._begin(fn, values)
        return self._results(self.get_next_unordered)

    def _begin(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> None:
        while self._running:
            self._take(next(iter(self._running)))
        if not self._idle:
            raise ValueError("the pool has no actors: push() one first")
        for value in values:
            self.submit(fn, value)

    def _results(self, following: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield following()

    def has_next(self) -> bool:
        """Whether there are results to take, now or later."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result of what was submitted first, of those not taken; waits for it.

        After `timeout` seconds, `TimeoutError`: it can be asked for again, but with `ignore_if_timedout` it is given
        up.
        """
        self._check_next()
        number = min(self._running)
        refs, _ = self._running[number]
        several = refs if isinstance(refs, list) else [refs]
        ready, _ = wait(several, num_returns=len(several), timeout=timeout, fetch_local=False)
        if len(ready) < len(several):
            raise self._late(number, timeout, ignore_if_timedout)
        return get(self._take(number))

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result that comes first; waits for one. After `timeout` seconds, `TimeoutError`, as `get_next`."""
        self._check_next()
        # A method's several values come together.
        numbers = {
            (refs[-1] if isinstance(refs, list) else refs): number
            for number, (refs, _) in self._running.items()
        }
        ready, _ = wait(list(numbers), timeout=timeout, fetch_local=False)
        if not ready:
            raise self._late(min(self._running), timeout, ignore_if_timedout)
        return get(self._take(numbers[ready[0]]))

    def _check_next(self) -> None:
        if not self.has_next():
            raise StopIteration("there are no more results: all that was submitted was taken")

    def _late(self, number: int, timeout: float | None, ignore: bool) -> GetTimeoutError:
        refs, actor = self._running[number]
        late = f"no result after {timeout} s; {refs} of {actor} is waited for"
        if ignore:
            self._take(number)
            return GetTimeoutError(f"{late}, and given up")
        return GetTimeoutError(late)

    def has_free(self) -> bool:
        """Whether an actor has nothing to do."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any:
        """Takes an actor that has nothing to do out of the pool; `None` if there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Puts another actor into the pool."""
        _check(actor)
        if actor in self._idle or any(actor == busy for _, busy in self._running.values()):
            raise ValueError(f"{actor} is in this pool already")
        self._free(actor)


def _check(actor: Any) -> None:
    if not isinstance(actor, ActorHandle):
        hint = "; make one with .remote(...)" if hasattr(actor, "remote") else ""
        raise TypeError(f"a pool holds handles of actors, not a {type(actor).__name__}{hint}")
