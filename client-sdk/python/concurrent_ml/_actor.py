"""Actors: `@remote` on a class. What a driver or a task does with them; `_actor_process` is where they live."""

from __future__ import annotations

import difflib
import functools
import inspect
import pickle
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, cast

from . import _calls, _environments, _native, _state, _strategies, _streams
from ._native import ObjectRef, ObjectRefGenerator
from ._options import STREAM_BYTES, ActorOptions, MethodOptions
from .exceptions import (
    ActorNameTakenError,
    ClusterClosedError,
    ConnectionLostError,
    PendingCallsLimitExceeded,
    _ActorExit,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from . import _actor_types
    from ._options import AllActorOptions, AllMethodOptions

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A", bound="Actor")
F = TypeVar("F", bound=Callable[..., Any])

ASYNC_CONCURRENCY = 1000
"""Calls of an actor with coroutines that run at once, unless told."""

_SPECIAL = {"__ray_ready__": (), "__ray_call__": None, "__ray_terminate__": (), "__checkpoint__": ()}
"""Methods that actors have of themselves: answers once it is made; calls a function with the instance; ends it; keeps
its state, if its class says what that is."""


@dataclass(frozen=True)
class Method:
    """What a handle knows of a method."""

    num_returns: int | str | None = None
    group: str = ""
    signature: _calls.Described | None = None
    limits: tuple[int | None, int | None] = (None, STREAM_BYTES)
    """Of items and of bytes, where it yields."""
    retries: tuple[int | None, bytes] = (None, b"")
    """How often a call is tried again, unless as often as its actor says; and of which exceptions."""


@dataclass(frozen=True)
class Description:
    """What a handle is made of, beside the ref: it travels with each."""

    class_name: str
    module: str
    methods: dict[str, Method]
    is_async: bool = False
    groups: tuple[str, ...] = ()
    max_task_retries: int = 0
    concurrent: bool = False
    keeps_state: bool = False
    checkpoint_interval: float | None = None
    max_pending_calls: int | None = None

    @functools.cached_property
    def pickled(self) -> bytes:
        """As bytes that any process can read."""
        methods = {
            name: (m.num_returns, m.group, m.signature, m.limits, m.retries)
            for name, m in self.methods.items()
        }
        parts = (self.class_name, self.module, methods, self.is_async, self.groups, self.max_task_retries)
        more = (self.concurrent, self.keeps_state, self.checkpoint_interval, self.max_pending_calls)
        return pickle.dumps(parts + more, 5)


@functools.lru_cache(1024)
def _description(pickled: bytes) -> Description:
    class_name, module, methods, *rest = pickle.loads(pickled)
    return Description(class_name, module, {name: Method(*parts) for name, parts in methods.items()}, *rest)


def _handle_from(ref: ObjectRef[Any], pickled: bytes) -> ActorHandle[Any]:
    """What a pickled handle becomes again, and what a name leads to."""
    return ActorHandle(ref, _description(pickled))


# ---- methods ----


def _method(function: Any = None, /, **options: Any) -> Any:
    """Options of one method: how many values it returns, and its concurrency group.

    >>> import concurrent_ml as cml
    >>> @cml.remote(concurrency_groups={"io": 2})
    ... class Store:
    ...     @cml.method(num_returns=2)
    ...     def both(self):
    ...         return 1, 2
    ...     @cml.method(concurrency_group="io")
    ...     def read(self):
    ...         return 3
    """
    if function is not None and (options or not callable(function)):
        raise TypeError("method() takes options: @method(num_returns=2)")
    chosen = MethodOptions().changed(options)

    def mark(function: F) -> F:
        if not callable(function):
            raise TypeError(f"method() is for methods, not for a {type(function).__name__}")
        function.__cml_method__ = chosen  # type: ignore[attr-defined]
        return function

    return mark(function) if function is not None else mark


method = cast("_actor_types.Method", _method)


class Actor:
    """A base that a class of actors may have, so that type checkers know the methods of its handles.

    >>> import concurrent_ml as cml
    >>> @cml.remote
    ... class Counter(cml.Actor):
    ...     count = 0
    ...     @cml.method
    ...     def add(self, n: int = 1) -> int:
    ...         self.count += n
    ...         return self.count

    Here `Counter.remote()` is a handle with `add.remote(n: int = 1) -> ObjectRef[int]`. When the program runs, the
    base changes nothing.
    """


class _Pending:
    """The calls through one handle that have no answer yet, where their number is limited."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.calls: list[Any] = []
        self.lock = threading.Lock()

    def call(self, name: str, make: Callable[[], Any]) -> Any:
        """Makes the call if there is room for it."""
        with self.lock:
            if len(self.calls) >= self.limit:
                client = _state.connected()
                self.calls = [ref for ref in self.calls if not client.is_ready(ref)]
            if len(self.calls) >= self.limit:
                raise PendingCallsLimitExceeded(
                    f"{name} was not called: {len(self.calls)} calls through this handle have no answer yet, and its "
                    f"actor was made with max_pending_calls={self.limit}. Wait for some of them first"
                )
            made = make()
            ref = made.completed() if isinstance(made, ObjectRefGenerator) else made
            ref = next(iter(ref), None) if isinstance(ref, list) else ref
            if ref is not None:
                self.calls.append(ref)
            return made


class ActorMethod(Generic[P, R]):
    """A method of an actor: `.remote(...)` calls it there and returns a ref at once."""

    def __init__(
        self,
        ref: ObjectRef[Any],
        description: Description,
        name: str,
        generation: int,
        options: MethodOptions | None = None,
        *,
        pending: _Pending | None = None,
    ) -> None:
        self._pending = pending
        self._ref = ref
        self._description = description
        self._name = name
        self._generation = generation
        self._options = options
        self._native: _native.Function | None = None

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]:
        """Calls it; returns a ref to the result at once (a list of refs with `num_returns`).

        Of a method that yields, it returns an `ObjectRefGenerator`.

        A ref among the arguments becomes its value before the method starts; refs inside lists, dicts and other
        objects stay refs.
        """
        native = self._native or self._prepare()
        try:
            if self._pending is not None:
                return self._pending.call(self._name, lambda: native.call(args, kwargs))
            return native.call(args, kwargs)
        except (ClusterClosedError, ConnectionLostError) as error:
            _check_cluster(self._generation, self._description, self._ref, error)
            raise

    def map(self, *iterables: Iterable[Any], **kwargs: Any) -> list[ObjectRef[R]]:
        """Calls it for each item of an iterable, or of several as Python's `map` does; returns the refs in order."""
        native = self._native or self._prepare()
        if self._pending is not None:
            return [self.remote(*items, **kwargs) for items in zip(*iterables, strict=False)]
        try:
            return _calls.many(native, f"{self._name}.map", iterables, kwargs)
        except (ClusterClosedError, ConnectionLostError) as error:
            _check_cluster(self._generation, self._description, self._ref, error)
            raise

    def options(self, **options: Unpack[AllMethodOptions]) -> ActorMethod[P, R]:
        """The same method with other options: `num_returns`, `concurrency_group`, `name`, `timeout`, and of
        what yields `stream_max_items`, `stream_max_bytes`.
        """
        before = self._options or self._declared()
        chosen = before.changed(options)
        if chosen.num_returns is None:
            chosen = chosen.changed({"num_returns": self._declared().num_returns})
        return ActorMethod(
            self._ref, self._description, self._name, self._generation, chosen, pending=self._pending
        )

    def _declared(self) -> MethodOptions:
        known = self._description.methods.get(self._name, Method())
        max_items, max_bytes = known.limits
        return MethodOptions(
            num_returns=known.num_returns,
            concurrency_group=known.group,
            stream_max_items=max_items,
            stream_max_bytes=max_bytes,
            max_task_retries=known.retries[0],
            retry_exceptions=known.retries[1] or False,
        )

    def _prepare(self) -> _native.Function:
        _check_cluster(self._generation, self._description, self._ref)
        options = self._options or self._declared()
        about = self._description
        group = options.concurrency_group or ""
        if group and group not in about.groups:
            there_are = ", ".join(about.groups) or "none; name them in concurrency_groups={...}"
            raise ValueError(f"{about.class_name} has no concurrency group {group!r}; there are {there_are}")
        name = options.name or f"{about.class_name}.{self._name}"
        known = about.methods.get(self._name)
        signature = known.signature if known else _SPECIAL.get(self._name)
        num_returns, stream = _streams.returns(options)
        retries = options.max_task_retries
        method = self._name + (_streams.COLLECTED if options.num_returns == "dynamic" else "")
        self._native = _native.Function(
            _state.connected(),
            self._ref,
            name,
            num_cpus=0,
            num_gpus=0,
            memory=0,
            resources={},
            num_returns=num_returns,
            stream=stream,
            max_retries=about.max_task_retries if retries is None else retries,
            retry_exceptions=_calls.retry_bytes(options.retry_exceptions),
            env_vars={},
            strategy="DEFAULT",
            parameters=_calls.parameters(signature),
            complain=functools.partial(_calls.complain, signature, name),
            method=(method, group, about.concurrent),
            timeout=options.timeout,
        )
        return self._native

    if not TYPE_CHECKING:

        def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
            call = f"{self._name}.remote(...)"
            raise TypeError(
                f"{self._description.class_name}.{self._name} is a method of an actor: call it as {call}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _method_from, (_handle_of(self), self._name, self._options)

    def __repr__(self) -> str:
        return f"ActorMethod({self._description.class_name}.{self._name}, {self._ref._id})"


def _handle_of(of: ActorMethod[..., Any]) -> ActorHandle[Any]:
    handle: ActorHandle[Any] = ActorHandle(of._ref, of._description)
    handle.__dict__["_generation"] = of._generation
    return handle


def _method_from(handle: ActorHandle[Any], name: str, options: MethodOptions | None) -> ActorMethod[..., Any]:
    made: ActorMethod[..., Any] = getattr(handle, name)
    return made.options(**vars(options)) if options else made


def _check_cluster(
    generation: int, about: Description, ref: ObjectRef[Any], cause: BaseException | None = None
) -> None:
    if generation != _state.generation:
        raise ClusterClosedError(
            f"the actor {about.class_name} ({ref._id}) belongs to a cluster that this program has left: its handle is "
            "of no use here. Make it anew, or look it up by its name"
        ) from cause


# ---- handles ----


class ActorHandle(Generic[T]):
    """A handle on an actor. Its methods are called as `handle.method.remote(...)`.

    A handle can be passed to tasks and other actors, stored, and kept inside values. The actor ends when the last
    handle goes, unless it is detached.
    """

    def __init__(self, ref: ObjectRef[Any], description: Description) -> None:
        self._ref = ref
        self._description = description
        self._generation = _state.generation
        limit = description.max_pending_calls
        self._pending = _Pending(limit) if limit is not None else None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> ActorMethod[..., Any]:
            """A method."""
            ...

    else:

        def __getattr__(self, name: str) -> ActorMethod[..., Any]:
            about = self.__dict__.get("_description")
            is_there = about is not None and (name in about.methods or name in _SPECIAL)
            if about is None or not is_there or (name == "__checkpoint__" and not about.keeps_state):
                raise AttributeError(_no_method(about, name)) from None
            # Methods hold the ref and not this handle: no cycle may keep an actor alive.
            made = ActorMethod(self._ref, about, name, self._generation, pending=self._pending)
            self.__dict__[name] = made
            return made

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("_ref", "_description", "_generation", "_pending"):
            about = self._description.class_name
            raise AttributeError(
                f"{name!r} cannot be set through a handle: the attributes of an actor are where it lives. "
                f"Give {about} a method that sets it"
            )
        self.__dict__[name] = value

    @property
    def _actor_id(self) -> str:
        return self._ref._id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._ref == self._ref

    def __hash__(self) -> int:
        return hash(self._ref)

    def __reduce__(self) -> tuple[Any, ...]:
        _check_cluster(self._generation, self._description, self._ref)
        return _handle_from, (self._ref, self._description.pickled)

    def __copy__(self) -> ActorHandle[T]:
        return self

    def __deepcopy__(self, _memo: Any) -> ActorHandle[T]:
        return self

    def __dir__(self) -> list[str]:
        return [*self._description.methods]

    def __repr__(self) -> str:
        return f"Actor({self._description.class_name}, {self._ref._id})"

    if not TYPE_CHECKING:

        def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
            raise TypeError(
                f"{self!r} is a handle of an actor: call one of its methods, as handle.method.remote(...)"
            )


def _no_method(about: Description | None, name: str) -> str:
    if about is None:
        return name
    close = difflib.get_close_matches(name, about.methods, n=3, cutoff=0.5)
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif about.methods:
        hint = f"it has {', '.join(list(about.methods)[:20])}"
    else:
        hint = "it has none"
    return f"the actor class {about.class_name} has no method {name!r}; {hint}"


# ---- classes ----


class ActorClass(Generic[P, T]):
    """A class whose instances live on the cluster, each in a process of its own: `C.remote(...)` makes one.

    >>> import concurrent_ml as cml
    >>> @cml.remote
    ... class Counter:
    ...     def __init__(self, start=0):
    ...         self.count = start
    ...     def add(self, n=1):
    ...         self.count += n
    ...         return self.count
    >>> counter = Counter.remote(5)
    >>> cml.get([counter.add.remote(), counter.add.remote(10)])
    [6, 16]
    """

    __name__: str
    __wrapped__: type[T]

    def __init__(self, cls: type[T], options: ActorOptions) -> None:
        self._class = cls
        self._options = options
        self._stored: ObjectRef[Any] | None = None
        self._generation = 0
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(self, name, getattr(cls, name, None))
        self.__wrapped__ = cls

    if not TYPE_CHECKING:  # to a type checker it cannot be called

        def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
            name = self._class.__name__
            raise TypeError(
                f"{name} is a remote class: make an actor with {name}.remote(...), "
                f"or a plain instance here with {name}.__wrapped__(...)"
            )

    def __getattr__(self, name: str) -> Any:
        """What the plain class has: constants, static and class methods."""
        cls = self.__dict__.get("_class")
        if cls is None or name.startswith("__"):
            raise AttributeError(name)
        try:
            return getattr(cls, name)
        except AttributeError:
            raise AttributeError(f"the remote class {cls.__name__} has no attribute {name!r}") from None

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type[T]]:
        """A class may inherit from this one: from the plain class, then."""
        return (self._class,)

    def __getitem__(self, _item: Any) -> ActorClass[P, T]:
        """`Box[int].remote()` of a generic class."""
        if not hasattr(self._class, "__class_getitem__"):
            raise TypeError(f"{self._class.__name__} is not generic")
        return self

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ActorHandle[T]:
        """Makes an actor; returns its handle at once. What goes wrong in `__init__`, calls of its methods tell."""
        options, client = self._options, _state.connected()
        namespace = options.namespace or client.namespace
        if options.name and options.get_if_exists:
            found = client.named_actor(namespace, options.name)
            if found is not None:
                return _handle_from(*found)
        about = self._describe()
        ref = self._prepare(client, about, namespace).call(args, kwargs)
        if options.name:
            # The same stream carries both, so this is the answer to whether the name was free.
            found = client.named_actor(namespace, options.name)
            if found is not None and found[0] != ref:
                if options.get_if_exists:
                    return _handle_from(*found)
                there = _description(found[1]).class_name
                raise ActorNameTakenError(
                    f"the name {options.name!r} is taken in namespace {namespace!r} by an actor of class {there}: "
                    "take another, kill that actor, or use get_if_exists=True to get it"
                )
        return ActorHandle(ref, about)

    def options(self, **options: Unpack[AllActorOptions]) -> ActorClass[P, T]:
        """The same class with other options: `C.options(num_gpus=1, name="trainer").remote(...)`."""
        return type(self)(self._class, self._options.changed(options))

    def _describe(self) -> Description:
        cls, options = self._class, self._options
        methods: dict[str, Method] = {}
        is_async = False
        for name, function in _functions(cls):
            is_async |= inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
            if name.startswith("__") and name != "__call__":
                continue
            declared = getattr(function, "__cml_method__", None) or MethodOptions()
            bound = not isinstance(inspect.getattr_static(cls, name), staticmethod)
            signature = _calls.described(function, bound=bound)
            group = declared.concurrency_group or ""
            if group and group not in options.concurrency_groups:
                there_are = ", ".join(options.concurrency_groups) or "none"
                raise ValueError(
                    f"{cls.__name__}.{name} is in the concurrency group {group!r}, and the class has "
                    f"{there_are}: name it in concurrency_groups={{{group!r}: 1}}"
                )
            num_returns = declared.num_returns
            if num_returns is None and _streams.is_generator(function):
                num_returns = "streaming"
            limits = (declared.stream_max_items, declared.stream_max_bytes)
            retries = (declared.max_task_retries, _calls.retry_bytes(declared.retry_exceptions))
            methods[name] = Method(num_returns, group, signature, limits, retries)
        name = cls.__qualname__.rpartition("<locals>.")[2]
        groups = tuple(options.concurrency_groups)
        concurrent = is_async or bool(groups) or (options.max_concurrency or 1) > 1
        retries, interval = options.max_task_retries, options.checkpoint_interval
        keeps_state = _keeps_state(cls, interval)
        return Description(
            name,
            cls.__module__,
            methods,
            is_async,
            groups,
            retries,
            concurrent,
            keeps_state,
            interval,
            options.max_pending_calls,
        )

    def _prepare(self, client: _native.Client, about: Description, namespace: str) -> _native.Function:
        options = self._options
        signature = _calls.described(self._class)
        _strategies.check_place(options.scheduling_strategy, about.class_name, options.asks())
        with _state.lock:
            if self._stored is None or self._generation != _state.generation:
                self._stored = client.put_function(self._class, f"the class {about.class_name}")
                self._generation = _state.generation
        concurrency = options.max_concurrency or (ASYNC_CONCURRENCY if about.is_async else 1)
        return _native.Function(
            client,
            self._stored,
            about.class_name,
            **_calls.requests(options.requests()),
            num_returns=1,
            max_retries=options.max_restarts,
            retry_exceptions=b"",
            env_vars=_environments.variables(options.runtime_env),
            strategy=_strategies.native(options.scheduling_strategy, _state.captured),
            parameters=_calls.parameters(signature),
            complain=functools.partial(_calls.complain, signature, about.class_name),
            actor={
                "name": options.name or "",
                "namespace": namespace if options.name else "",
                "detached": options.lifetime == "detached",
                "max_restarts": options.max_restarts,
                "max_concurrency": concurrency,
                "groups": dict(options.concurrency_groups),
                "is_async": about.is_async,
                "handle": about.pickled,
            },
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._class, self._options)

    def __repr__(self) -> str:
        return f"ActorClass({self._class.__qualname__.rpartition('<locals>.')[2]})"


class TypedActorClass(ActorClass[P, A], Generic[P, A]):
    """What type checkers take a class derived from `Actor` for: its handles have its own type."""

    if TYPE_CHECKING:

        def remote(self, *args: P.args, **kwargs: P.kwargs) -> A:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Makes an actor; returns its handle at once."""
            ...

        def options(self, **options: Unpack[AllActorOptions]) -> TypedActorClass[P, A]:
            """The same class with other options."""
            ...


def _keeps_state(cls: type[Any], interval: float | None) -> bool:
    """Whether the class says what its actors keep over restarts."""
    has = [callable(getattr(cls, name, None)) for name in ("__checkpoint__", "__restore__")]
    if has[0] != has[1]:
        there, missing = ("__checkpoint__", "__restore__") if has[0] else ("__restore__", "__checkpoint__")
        raise TypeError(f"the actor class {cls.__name__} defines {there} and no {missing}: it needs both")
    if interval is not None and not has[0]:
        raise TypeError(
            f"checkpoint_interval={interval:g}: the actor class {cls.__name__} defines no __checkpoint__(self) that "
            "returns its state, and no __restore__(self, state)"
        )
    return has[0]


def _functions(cls: type[Any]) -> list[tuple[str, Callable[..., Any]]]:
    """Methods by name, inherited ones too, but those of `object`."""
    found = []
    for name in dir(cls):
        if name == "__class__" or hasattr(object, name):
            continue
        try:
            member = getattr(cls, name)
        except AttributeError:
            continue
        if not isinstance(member, type) and callable(member) and not isinstance(member, ActorClass):
            found.append((name, member))
    return found


# ---- what else one does with actors ----


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """The actor of this name, in this program's namespace unless told. `ValueError` if there is none."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"name is {name!r}; it must be a string that is not empty")
    client = _state.connected()
    space = client.namespace if namespace is None else namespace
    found = client.named_actor(space, name)
    if found is None:
        raise ValueError(
            f"there is no actor named {name!r} in namespace {space!r}: it was not made, has died, or lives in another "
            "namespace (see `cluster list actors`)"
        )
    from . import rust

    if found[1].startswith(rust.HANDLE):
        return cast(Any, rust._handle_from(*found))
    return _handle_from(*found)


def kill(actor: ActorHandle[Any] | Actor, *, no_restart: bool = True) -> None:
    """Ends an actor at once: what it runs is interrupted, and its calls fail.

    With `no_restart=False` it is made anew, if it has restarts left (`max_restarts`).
    """
    from . import rust

    if isinstance(actor, rust.RustActor):
        _state.connected().kill(actor._ref, not no_restart)
        return
    if not isinstance(actor, ActorHandle):
        hint = "; cancel() ends a task" if isinstance(actor, ObjectRef) else ""
        raise TypeError(
            f"kill() takes the handle of an actor, not a value of type {type(actor).__name__}{hint}"
        )
    client = _state.connected()
    _check_cluster(actor._generation, actor._description, actor._ref)
    client.kill(actor._ref, not no_restart)


def exit_actor() -> NoReturn:
    """Ends the actor in whose method this is called, at the end of that method's call; it is not made anew.

    The call itself and all that wait fail with `ActorDiedError`.
    """
    task = _state.current_task()
    if task is None or task.kind != 2:
        raise TypeError("exit_actor() is called in a method of an actor, and this is none")
    raise _ActorExit


def checkpoint() -> Any:
    """Keeps the state of the actor in whose method this is called: what its `__checkpoint__` returns now.

    Returns when the state is kept: in the object store, of a second node too where there is one, and on disk. In an
    actor with coroutines it returns at once, an awaitable that says so: `await checkpoint()`.

    >>> import concurrent_ml as cml
    >>> @cml.remote(max_restarts=-1)
    ... class Counter:
    ...     def __init__(self):
    ...         self.count = 0
    ...     def add(self):
    ...         self.count += 1
    ...         cml.checkpoint()
    ...         return self.count
    ...     def __checkpoint__(self):
    ...         return self.count
    ...     def __restore__(self, count):
    ...         self.count = count

    An actor that dies and is made anew (`max_restarts`) gets `__init__` with its first arguments, then `__restore__`
    with the state kept last. What calls changed after that is lost. From outside, `handle.__checkpoint__.remote()` does
    the same as a call in its order; `checkpoint_interval="30s"` among the class's options does it by itself.
    """
    actor = _state.actor
    if actor is None or _state.current_task() is None:
        raise TypeError("checkpoint() is called in a method of an actor, and this is none")
    if actor.states is None:
        raise TypeError(
            "checkpoint() was called in an actor whose class does not define __checkpoint__(self) and "
            "__restore__(self, state)"
        )
    return actor.states.checkpoint()


def cancel(
    ref: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> None:
    """Cancels the task whose result this is; `get` of it raises `TaskCancelledError`, which says who cancelled.

    A task that has not started never does. One that runs is interrupted: a function, or a method of a plain actor,
    wherever it is (also in `time.sleep`, in a read, in `get`); a coroutine gets `asyncio.CancelledError`; a method of
    an actor with threads ends when it next runs Python code, or waits in `get` or `wait`. With `force` the process
    that runs it is ended (a task's; an actor's never is). With `recursive`, tasks that it submitted are cancelled
    too. One that has ended stays as it is.
    """
    if isinstance(ref, ActorHandle):
        raise TypeError("cancel() takes an ObjectRef, not an actor; kill(actor) ends one")
    if isinstance(ref, ObjectRefGenerator):
        ref = ref.completed()
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"cancel() takes an ObjectRef, not a value of type {type(ref).__name__}")
    task = _state.current_task()
    who = f"task {task.name} ({task.task_id})" if task is not None else "the driver"
    _state.connected().cancel(ref, bool(force), bool(recursive), f"by {who}")


__all__ = [
    "Actor",
    "ActorClass",
    "ActorHandle",
    "ActorMethod",
    "cancel",
    "checkpoint",
    "exit_actor",
    "get_actor",
    "kill",
    "method",
]
