"""Connecting, reading, storing, waiting, asking."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from . import _environments, _logs, _native, _options, _state
from ._embedded import Embedded
from ._native import ObjectRef, ObjectRefGenerator
from .exceptions import ClusterConnectionError, ConnectionRefusedByClusterError, ForkedError, GetTimeoutError

T = TypeVar("T")
W = TypeVar("W", bound="ObjectRef[Any] | ObjectRefGenerator[Any]")


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: float | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: int | None = None,
    durable: str | None = None,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    log_to_driver: bool = True,
    ignore_reinit_error: bool = False,
) -> None:
    """Connects this program to a cluster.

    `address` is a head's `host:port`, or `unix:DIRECTORY`, the cluster of another program on this machine; without it
    the environment's `CLUSTER_ADDRESS` counts; without that too, the program gets a cluster of its own on this machine,
    which ends with it. `num_cpus` to `object_store_memory` (bytes) describe that one: all the machine has, unless told.
    Its durable objects lie in its own directory, or where `durable` says: `file:///a/directory` or `s3://bucket/prefix`.

    >>> import concurrent_ml as cml
    >>> cml.init(num_cpus=2)
    >>> cml.is_initialized()
    True
    >>> cml.shutdown()
    """
    with _state.lock:
        if _state.is_fork:
            raise ForkedError(
                "this process was forked from one that is connected to a cluster, and a connection does not survive a "
                "fork: start it with multiprocessing's `spawn` method, or use the cluster only in the parent"
            )
        if _state.client is not None:
            if ignore_reinit_error or _state.is_executor:
                return
            raise RuntimeError(
                "init() was called before: this program is connected already; call shutdown() first to connect anew"
            )
        _check_words(address=address, namespace=namespace, durable=durable)
        if not isinstance(log_to_driver, bool):
            raise TypeError(f"log_to_driver is {log_to_driver!r}; it must be True or False")
        offer = {
            "num_cpus": None if num_cpus is None else _options.amount("num_cpus", num_cpus),
            "num_gpus": None if num_gpus is None else _options.amount("num_gpus", num_gpus),
            "memory": None if memory is None else _options.amount("memory", memory),
            "resources": _options.amounts("resources", resources),
            "labels": dict(labels or {}),
            "object_store_memory": None
            if object_store_memory is None
            else _options.amount("object_store_memory", object_store_memory),
            "durable": durable,
        }
        around = _options.runtime_env("runtime_env", runtime_env)
        if address is None:
            address = os.environ.get("CLUSTER_ADDRESS") or None
        if address == "local" or address is None:
            embedded = Embedded(offer)
            try:
                info = _job_info(namespace, around, log_to_driver, embedded.address)
                client = _native.Client.driver(embedded.token, info, socket=embedded.socket)
            except BaseException:
                embedded.end()
                raise
            _state.embedded, _state.address = embedded, embedded.address
        else:
            given = [name for name, value in offer.items() if value not in (None, {})]
            if given:
                raise ValueError(
                    f"{given[0]} is for a cluster of this program's own; the one at {address} has its own resources"
                )
            client = _connect(address, _job_info(namespace, around, log_to_driver, address))
            _state.address = address
        _state.client = client
        _state.generation += 1
        _state.printer = _logs.Printer(client)


def _check_words(**given: object) -> None:
    for name, value in given.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}; it must be a string")


def _files_at(address: str) -> tuple[str, ...]:
    """Where the files of a runtime environment are brought for the cluster at this address."""
    if address == "auto":
        address = _here(_run_dir()).get("address") or ""
    return _environments.place(address)


def _job_info(
    namespace: str | None, runtime_env: Mapping[str, Any], log_to_driver: bool, address: str
) -> dict[str, Any]:
    variables = _environments.variables(runtime_env, _files_at(address))
    _state.job_runtime_env = _environments.named_by(variables)
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None) or (sys.argv[0] if sys.argv else "")
    return {
        "name": os.path.basename(script) or "interactive",
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "python": sys.executable,
        "sys_path": [os.path.abspath(entry or os.getcwd()) for entry in sys.path],
        "working_dir": os.getcwd(),
        "env_vars": {**variables, **_state.job_env},
        "log_to_driver": log_to_driver,
        "namespace": namespace or "",
    }


def _run_dir() -> Path:
    named = os.environ.get("CLUSTER_DIR")
    if named:
        return Path(named)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime, "concurrent-ml") if runtime else Path(f"/tmp/concurrent-ml-{os.getuid()}")


def _token(directory: Path) -> tuple[str, str]:
    """The cluster's secret; where there is none, where it was looked for."""
    if os.environ.get("CLUSTER_TOKEN"):
        return os.environ["CLUSTER_TOKEN"], ""
    path = Path(os.environ.get("CLUSTER_TOKEN_FILE") or directory / "token")
    try:
        return path.read_text().strip(), ""
    except OSError as error:
        return "", f"CLUSTER_TOKEN is not set and {path} cannot be read ({error.strerror})"


DEFAULT_PORT = 8264
"""The head's, where an address names none."""


def _whole_address(address: str) -> str:
    """`host:port`, or several joined by commas; of a host alone, with the default port."""
    return ",".join(_whole_head(head.strip(), address) for head in address.split(","))


def _whole_head(head: str, address: str) -> str:
    if head.count(":") > 1 and not head.startswith("["):
        head = f"[{head}]"
    if ":" not in head.rpartition("]")[2]:
        head = f"{head}:{DEFAULT_PORT}"
    host, _, port = head.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16
    if not host or host == "[]" or not is_port or set(host) & set("/ "):
        raise ValueError(f"address is {address!r}; it must be host:port, like 127.0.0.1:8264, or host")
    return head


def _here(directory: Path) -> dict[str, Any]:
    """What `cluster up` wrote about this machine's daemons."""
    try:
        here = json.loads((directory / "cluster.json").read_text())
    except (OSError, ValueError):
        return {}
    return here if isinstance(here, dict) else {}


def _heads(directory: Path, here: dict[str, Any]) -> set[str]:
    """The heads of this machine's cluster: those it was started with, and those its daemon has heard of."""
    known = [here.get("address") or ""]
    if not known[0]:
        return set()
    with contextlib.suppress(OSError):
        known.append((directory / "heads").read_text())
    return {head.strip() for heads in known for head in heads.split(",") if head.strip()}


def _connect(address: str, info: dict[str, Any]) -> _native.Client:
    if address.startswith("unix:"):
        return _connect_here(Path(address.removeprefix("unix:")), info)
    directory = _run_dir()
    here = _here(directory)
    if address == "auto":
        address = here.get("address") or ""
        if not address:
            raise ClusterConnectionError(
                f'init("auto") joins the cluster of this machine, but {directory} names none: run `cluster up`, or set '
                "CLUSTER_DIR"
            )
    address = _whole_address(address)
    token, without = _token(directory)
    try:
        # A daemon of that cluster on this machine shares its memory.
        if _heads(directory, here).intersection(address.split(",")) and os.path.exists(
            here.get("node_socket") or ""
        ):
            return _native.Client.driver(token, info, socket=here["node_socket"])
        return _native.Client.driver(token, info, address=address)
    except ConnectionRefusedByClusterError as error:
        if without:
            raise ConnectionRefusedByClusterError(
                f"the cluster at {address} wants a token, and there is none: {without}. "
                "Copy it from the machine where `cluster up` ran"
            ) from None
        raise error from None


def _connect_here(directory: Path, info: dict[str, Any]) -> _native.Client:
    """Joins the cluster of another program of this machine."""
    try:
        socket, token = _here(directory)["node_socket"], (directory / "token").read_text().strip()
    except (OSError, KeyError):
        raise ClusterConnectionError(
            f"there is no cluster at unix:{directory}: the program that it belonged to has ended"
        ) from None
    return _native.Client.driver(token, info, socket=socket)


def shutdown() -> None:
    """Disconnects; a cluster of the program's own ends. Without a connection, does nothing."""
    with _state.lock:
        client, embedded = _state.client, _state.embedded
        if client is None or _state.is_executor or _state.is_fork:
            return
        printer = _state.printer
        _state.client = _state.embedded = _state.printer = None
        _state.generation += 1
        client.disconnect()
        if printer is not None:
            printer.finish()
        if embedded is not None:
            embedded.end()


atexit.register(shutdown)


def is_initialized() -> bool:
    """Whether this program is connected."""
    return _state.client is not None


@overload
def get(refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(refs: Sequence[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...
def get(refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a ref, or the list of values of a list of refs; waits for what is not there yet.

    An exception that a task raised is raised here. After `timeout` seconds, `GetTimeoutError` (a `TimeoutError`).
    Arrays come as read-only views of shared memory: copy one to change it.
    """
    client = _state.client or _state.connected()
    if _state.loop_threads:
        _warn_in_loop("get", "await ref")
    try:
        return client.get(refs, timeout)
    except GetTimeoutError:
        raise _timed_out(client, refs, timeout) from None
    except TypeError:
        if isinstance(refs, tuple) and refs and all(isinstance(ref, ObjectRef) for ref in refs):
            return get(list(refs), timeout=timeout)
        raise


def _warn_in_loop(what: str, instead: str, level: int = 3) -> None:
    """Waiting in an actor's event loop holds up all its calls, and for ever if one of them is waited for."""
    if threading.get_ident() in _state.loop_threads:
        warnings.warn(
            f"{what}() blocks this actor's event loop, and with it all its other calls, until it returns: use "
            f"`{instead}`",
            RuntimeWarning,
            stacklevel=level,
        )


def _timed_out(client: _native.Client, refs: Any, timeout: float | None) -> GetTimeoutError:
    """Says what it was waiting for."""
    late = [ref for ref in (refs if isinstance(refs, list) else [refs]) if not client.is_ready(ref)]
    what = f"{len(late)} values were not ready" if len(late) != 1 else f"{late[0]} was not ready"
    reason = ""
    if late and late[0].task_id():
        try:
            why = json.loads(client.query("why", late[0].task_id(), 0.5))
            reason = f": task {why['task']['name']} ({why['task']['task']}): {why['reason']}"
        except Exception:
            reason = ""
    return GetTimeoutError(f"{what} after {timeout} s{reason}")


def put(value: T, *, durable: bool = False) -> ObjectRef[T]:
    """Stores a value once, for any number of tasks, and returns a ref to it.

    With `durable=True` it returns when a copy is on disk or in S3 (see `init`), from where any node reads it when no
    node has it any more. The copy goes when nobody holds a ref.

    >>> import concurrent_ml as cml
    >>> cml.get(cml.put([1, 2, 3], durable=True))
    [1, 2, 3]
    """
    if isinstance(value, ObjectRef):
        raise TypeError("put() takes a value, not an ObjectRef: the ref you have is what put() would return")
    client = _state.client or _state.connected()
    ref = client.put(value)
    if durable:
        client.make_durable(ref)
    return ref


def wait(
    refs: Sequence[W],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[W], list[W]]:
    """Splits refs into those that are ready (at most `num_returns`) and the others, both in order.

    An `ObjectRefGenerator` may be among them: it is ready when its next item is, or when there will be none.

    Returns as soon as `num_returns` are ready, or after `timeout` seconds with what is.
    """
    if not isinstance(refs, list):
        if isinstance(refs, ObjectRef):
            raise TypeError("wait() takes a list of ObjectRefs, not a single one: wait([ref])")
        refs = list(refs)
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns is {num_returns!r}; it must be a whole number")
    if num_returns <= 0:
        raise ValueError(f"num_returns is {num_returns}; it must be 1 or more")
    if _state.loop_threads and timeout != 0:
        _warn_in_loop("wait", "await asyncio.wait([asyncio.ensure_future(ref), ...])")
    return (_state.client or _state.connected()).wait(refs, num_returns, timeout, fetch_local)


def nodes() -> list[dict[str, Any]]:
    """The cluster's nodes: `NodeID`, `Alive`, `NodeName`, `NodeManagerAddress`, `Resources`, `Available`, `Labels`."""
    views = json.loads(_state.connected().query("nodes"))
    return [
        {
            "NodeID": view["node"],
            "Alive": view["alive"],
            "NodeName": view["hostname"],
            "NodeManagerHostname": view["hostname"],
            "NodeManagerAddress": view["address"].rpartition(":")[0],
            "Resources": view["total"],
            "Available": view["available"],
            "Labels": view["labels"],
        }
        for view in views
    ]


def cluster_resources() -> dict[str, float]:
    """All that the nodes have, by name."""
    return json.loads(_state.connected().query("status"))["total"]


def available_resources() -> dict[str, float]:
    """What is not in use at this moment, by name."""
    available = json.loads(_state.connected().query("status"))["available"]
    return {name: amount for name, amount in available.items() if amount > 0}
