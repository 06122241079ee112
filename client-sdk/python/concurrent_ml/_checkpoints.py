"""What an actor keeps over its restarts: `__checkpoint__(self)` returns it, `__restore__(self, state)` takes it back.

A state is a value in the object store that the head holds for the actor, and copies to a second node; and a file of the
same name in the daemon's directory, which is read when no store has the value any more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _actor, _native, _state
from .exceptions import ClusterError, ObjectFreedError, ObjectLostError, _summary

if TYPE_CHECKING:
    from ._actor_process import Actor


class States:
    """The states of the actor that this process is."""

    def __init__(self, actor: Actor, about: _actor.Description) -> None:
        self.actor = actor
        self.about = about
        self.calls = 0
        """Calls begun; a state is kept by itself only where there were some since the last."""
        self.saved_calls = 0
        self.saved_at: float | None = None
        # States are taken one at a time, and told of in that order.
        self.lock = threading.RLock()
        self.teller: concurrent.futures.Executor | None = None
        self.restored = self._read() if actor.task.attempt > 1 else None
        """Gives an instance its state back; `None` where there is none."""

    @staticmethod
    def of(actor: Actor) -> States | None:
        """Those of an actor whose class says what to keep."""
        about = _actor._description(actor.task.actor_name[2])
        return States(actor, about) if about.keeps_state else None

    def _read(self) -> Callable[[Any], Any] | None:
        task = self.actor.task
        lost: ClusterError | None = None
        for ref in task.kept_states():
            try:
                state = _state.connected().get(ref, None)
            except (ObjectLostError, ObjectFreedError) as error:
                lost = error
                try:
                    state = task.read_state(_path(ref))
                except OSError:
                    continue
            return lambda instance: instance.__restore__(state)
        if lost is not None:
            raise lost
        return None

    def begin(self) -> None:
        """The actor is made: from now on its state is kept at the interval asked for."""
        self.restored = None
        interval = self.about.checkpoint_interval
        if interval is not None:
            threading.Thread(
                target=self._keep_time, args=(interval,), name="checkpoints", daemon=True
            ).start()

    def _keep_time(self, interval: float) -> None:
        """Calls the actor, as anybody could: so its state is taken between calls, where those run."""
        about, task = self.about, self.actor.task
        while True:
            time.sleep(interval)
            if self.calls == self.saved_calls:
                continue
            try:
                ref = task.actor_ref()
                method = _actor.ActorMethod(ref, about, "__ray_call__", _state.generation)
                named: Any = method.options(name=f"{about.class_name}.__checkpoint__")
                del ref, method
                named.remote(_on_time)
                del named
            except ClusterError:
                return

    def checkpoint(self) -> Any:
        """On request of a method's."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self.save()
        # It goes on whether it is awaited or not.
        return asyncio.ensure_future(self._save_in_loop())

    def save(self) -> Any:
        """Takes the state and keeps it; a coroutine that does, in an actor with coroutines."""
        if self.about.is_async:
            return self._save_in_loop()
        with self.lock:
            calls = self.calls
            state = self.actor.instance.__checkpoint__()
            self._keep(_state.connected().put(state), calls)
        return None

    async def _save_in_loop(self) -> None:
        calls = self.calls
        state = self.actor.instance.__checkpoint__()
        if inspect.isawaitable(state):
            state = await state
        # What it is at this moment; nothing of the actor's runs meanwhile.
        ref = _state.connected().put(state)
        if self.teller is None:
            self.teller = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        await asyncio.get_running_loop().run_in_executor(self.teller, self._keep, ref, calls)

    def _keep(self, ref: _native.ObjectRef[Any], calls: int) -> None:
        path = _path(ref)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        try:
            self.actor.task.write_state(ref, path)
            self.actor.task.keep_state(ref)
        except BaseException:
            if os.path.exists(path):
                os.unlink(path)
            raise
        self.saved_calls, self.saved_at = calls, time.monotonic()

    def complain(self, error: BaseException) -> None:
        """What goes wrong at the interval is nobody's result: the driver's terminal shows it."""
        before = "there is none yet"
        if self.saved_at is not None:
            before = f"the state of {time.monotonic() - self.saved_at:.0f} s ago stays"
        print(
            f"the state of actor {self.about.class_name} ({self.actor.task.actor_id}) could not be kept: "
            f"{_summary(error)}; {before}",
            file=sys.stderr,
            flush=True,
        )


def _path(ref: _native.ObjectRef[Any]) -> str:
    return os.path.join(_state.directory, "checkpoints", ref._id)


def _on_time(_instance: Any) -> Any:
    states = _state.actor.states if _state.actor is not None else None
    if states is None:
        return None
    try:
        made = states.save()
    except Exception as error:
        states.complain(error)
        return None
    return _awaited(states, made) if made is not None else None


async def _awaited(states: States, made: Any) -> None:
    try:
        await made
    except Exception as error:
        states.complain(error)
