"""Functions and actors of Rust programs, by their names, with plain values.

A program that uses the crate `concurrent-ml` is its own executor: from Python, too, it is called by giving its file.

    import concurrent_ml as cml
    from concurrent_ml import rust

    cml.init()
    program = rust.Program("target/release/examples/monte_carlo")
    throw = program.function("throw")
    print(cml.get(throw.remote(1, 1_000_000)))

What passes between the languages are plain values: None, numbers, strings, bytes, lists, dicts, NumPy arrays of numbers
(in shared memory, without a copy) and refs. Anything else raises a `TypeError` that says where in the value it is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _calls, _environments, _native, _state, _strategies, _streams
from ._native import ObjectRef
from ._options import ActorOptions, Options

PROGRAM = "CLUSTER_PROGRAM"
HANDLE = b"rust\n"
_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


def put(value: Any) -> ObjectRef[Any]:
    """Stores a plain value, which functions in Rust read too. (What `concurrent_ml.put` stores only Python reads.)"""
    return _state.connected().put_plain(value)


class Program:
    """A Rust program whose `main` calls `concurrent_ml::init` or `concurrent_ml::serve_if_executor`.

    It is put into the object store at the first call, and sent to the nodes that run its tasks.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no program {str(path)!r}")
        self._stored: ObjectRef[Any] | None = None
        self._named = ""
        self._generation = 0

    def _put(self) -> tuple[ObjectRef[Any], dict[str, str]]:
        client = _state.connected()
        with _state.lock:
            if self._stored is None or self._generation != _state.generation:
                data = self.path.read_bytes()
                platform = _platform(data, self.path)
                self._stored, self._generation = client.put_raw(data), _state.generation
                self._named = f"{hashlib.sha256(data).hexdigest()} {platform} {self._stored._id}"
            return self._stored, {PROGRAM: self._named}

    def function(self, name: str, /, **options: Any) -> RustFunction:
        """A function marked with `#[remote]`, by its path or the end of it; options as of `concurrent_ml.remote`."""
        return RustFunction(self, name, Options().changed(options))

    def actor(self, name: str, /, **options: Any) -> RustActorClass:
        """A type whose `impl` block is marked with `#[remote]`, by its path or the end of it."""
        return RustActorClass(self, name, ActorOptions().changed(options))

    def __repr__(self) -> str:
        return f"Program({str(self.path)!r})"


def _platform(data: bytes, path: Path) -> str:
    """As Rust names it; from the file's own header."""
    if data[:4] != b"\x7fELF" or len(data) < 20:
        raise ValueError(f"{path} is no program for Linux: build it with `cargo build --release`")
    (machine,) = struct.unpack_from("<H" if data[5] == 1 else ">H", data, 18)
    return f"{_MACHINES.get(machine, f'machine{machine}')}-linux"


def _nothing_to_say(_args: Any, _kwargs: Any, _error: Any = None) -> None:
    """What is wrong with arguments, their function says: its signature is not known here."""


class RustFunction:
    """A function of a Rust program: `f.remote(...)`. Its arguments are given by position."""

    def __init__(self, program: Program, name: str, options: Options) -> None:
        self._program = program
        self._name = name
        self._options = options
        self._native: _native.Function | None = None
        self._generation = 0

    def remote(self, *args: Any) -> Any:
        """Starts a call; returns a ref to its result at once."""
        if self._native is None or self._generation != _state.generation:
            self._prepare()
        assert self._native is not None
        return self._native.call(args, {})

    def options(self, **options: Any) -> RustFunction:
        """The same function with other options."""
        return RustFunction(self._program, self._name, self._options.changed(options))

    def _prepare(self) -> None:
        options, name = self._options, self._name
        stored, env = self._program._put()
        num_returns, stream = _streams.returns(options)
        marker = b"R" if options.retry_exceptions else b"N"
        self._native = _native.Function(
            _state.connected(),
            stored,
            options.name or name.rpartition("::")[2],
            **_calls.requests(options.requests()),
            backoff=options.backoff(),
            durable=options.durable,
            num_returns=num_returns,
            max_retries=options.max_retries,
            retry_exceptions=marker + name.encode(),
            env_vars={**_environments.variables(options.runtime_env), **env},
            strategy=_strategies.native(options.scheduling_strategy, _state.captured),
            timeout=options.timeout,
            stream=stream,
            parameters=None,
            complain=_nothing_to_say,
            plain=True,
        )
        self._generation = _state.generation

    def __repr__(self) -> str:
        return f"RustFunction({self._name!r} of {self._program!r})"


class RustActorClass:
    """A type of a Rust program: `C.remote(...)` makes an actor."""

    def __init__(self, program: Program, name: str, options: ActorOptions) -> None:
        self._program = program
        self._name = name
        self._options = options

    def remote(self, *args: Any) -> RustActor:
        """Makes an actor; returns its handle at once. What goes wrong in `new`, calls of its methods tell."""
        options, client = self._options, _state.connected()
        stored, env = self._program._put()
        about = {"class": self._name, "max_task_retries": options.max_task_retries}
        namespace = options.namespace or client.namespace
        make = _native.Function(
            client,
            stored,
            self._name.rpartition("::")[2],
            **_calls.requests(options.requests()),
            num_returns=1,
            max_retries=options.max_restarts,
            retry_exceptions=b"N" + self._name.encode(),
            env_vars={**_environments.variables(options.runtime_env), **env},
            strategy=_strategies.native(options.scheduling_strategy, _state.captured),
            parameters=None,
            complain=_nothing_to_say,
            actor={
                "name": options.name or "",
                "namespace": namespace if options.name else "",
                "detached": options.lifetime == "detached",
                "max_restarts": options.max_restarts,
                "max_concurrency": 1,
                "groups": {},
                "is_async": False,
                "handle": HANDLE + json.dumps(about).encode(),
            },
            plain=True,
        )
        ref = make.call(args, {})
        if options.name:
            found = client.named_actor(namespace, options.name)
            if found is not None and found[0] != ref:
                raise ValueError(
                    f"the name {options.name!r} is taken in namespace {namespace!r} by another actor"
                )
        return RustActor(ref, about)

    def options(self, **options: Any) -> RustActorClass:
        """The same type with other options."""
        return RustActorClass(self._program, self._name, self._options.changed(options))


class RustActor:
    """A handle on an actor of a Rust program: `handle.method.remote(...)`."""

    def __init__(self, ref: ObjectRef[Any], about: Mapping[str, Any]) -> None:
        self._ref = ref
        self._about = dict(about)
        self._generation = _state.generation

    def __getattr__(self, name: str) -> RustMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        made = RustMethod(self, name)
        self.__dict__[name] = made
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return RustActor, (self._ref, self._about)

    def __repr__(self) -> str:
        return f"RustActor({self._about['class']}, {self._ref._id})"


class RustMethod:
    """A method of an actor in Rust."""

    def __init__(self, actor: RustActor, name: str, num_returns: int | str | None = None) -> None:
        self._num_returns = num_returns
        about = actor._about
        returns, stream = _streams.returns(Options(num_returns=num_returns))
        self._native = _native.Function(
            _state.connected(),
            actor._ref,
            f"{about['class'].rpartition('::')[2]}.{name}",
            num_cpus=0,
            num_gpus=0,
            memory=0,
            resources={},
            num_returns=returns,
            max_retries=about["max_task_retries"],
            retry_exceptions=b"N",
            env_vars={},
            strategy="DEFAULT",
            parameters=None,
            complain=_nothing_to_say,
            method=(name, "", False),
            stream=stream,
            plain=True,
        )
        self.options = functools.partial(RustMethod, actor, name)

    def remote(self, *args: Any) -> Any:
        """Starts a call; returns a ref to its result at once."""
        return self._native.call(args, {})


def _handle_from(ref: ObjectRef[Any], handle: bytes) -> RustActor:
    """Of what a name leads to."""
    return RustActor(ref, json.loads(handle.removeprefix(HANDLE)))


__all__ = ["Program", "RustActor", "RustActorClass", "RustFunction", "RustMethod", "put"]
