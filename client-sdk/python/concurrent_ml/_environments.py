"""Runtime environments: what tasks and actors find around them.

A daemon reads one as JSON from the variable ``CLUSTER_RUNTIME_ENV`` among those of the executor, where code that runs
there finds it too: what it submits inherits it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import _state
from ._embedded import find_binary
from .exceptions import RuntimeEnvError

VARIABLE = "CLUSTER_RUNTIME_ENV"
_VARIABLES_AT_MOST = 4000
"""A message has room for 4096, some of which are this library's own."""

KEYS = ("env_vars", "executable", "pip", "preload", "py_modules", "uv", "working_dir")


def checked(key: str, value: Any) -> dict[str, Any]:
    """What a person wrote, with one spelling of each thing; paths stay paths."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f'{key} is {value!r}; it must be a dict like {{"env_vars": {{"NAME": "value"}}}}')
    for name in value:
        if name not in KEYS:
            raise ValueError(f"{key} has the key {name!r}; there is {', '.join(KEYS)}")
    variables = value.get("env_vars") or {}
    if not isinstance(variables, Mapping) or not all(
        isinstance(k, str) and isinstance(v, str) for k, v in variables.items()
    ):
        raise TypeError(f"{key}['env_vars'] is {variables!r}; it must map strings to strings")
    for name, text in variables.items():
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{key}['env_vars'] has {name!r}, which is no name of an environment variable")
        if "\0" in text:
            raise ValueError(f"{key}['env_vars'][{name!r}] has a NUL character, which no variable can hold")
    if len(variables) > _VARIABLES_AT_MOST:
        raise ValueError(
            f"{key}['env_vars'] has {len(variables)} entries; there can be {_VARIABLES_AT_MOST} at most"
        )
    env: dict[str, Any] = {"env_vars": dict(variables)} if variables else {}
    if value.get("working_dir") is not None:
        env["working_dir"] = _path(f"{key}['working_dir']", value["working_dir"])
        if not os.path.isdir(env["working_dir"]):
            raise ValueError(
                f"{key}['working_dir'] is {env['working_dir']}, which is no directory of this machine"
            )
    if value.get("py_modules"):
        env["py_modules"] = tuple(
            _module(f"{key}['py_modules']", one) for one in _list(key, "py_modules", value)
        )
    if value.get("uv") and value.get("pip"):
        raise ValueError(f"{key} has both 'uv' and 'pip'; they mean the same: give one")
    for name in ("uv", "pip"):
        if value.get(name):
            env["requirements"] = _requirements(f"{key}[{name!r}]", value[name])
    if value.get("preload"):
        env["preload"] = tuple(_list(key, "preload", value))
        for module in env["preload"]:
            if not isinstance(module, str) or not all(part.isidentifier() for part in module.split(".")):
                raise ValueError(f"{key}['preload'] has {module!r}, which is no name of a module")
    if value.get("executable") is not None:
        env["executable"] = _path(f"{key}['executable']", value["executable"])
    return env


def _list(key: str, name: str, value: Mapping[str, Any]) -> Sequence[Any]:
    given = value[name]
    if isinstance(given, (str, bytes, Path)) or not isinstance(given, Sequence):
        raise TypeError(f"{key}[{name!r}] is {given!r}; it must be a list")
    return given


def _path(key: str, value: Any) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise TypeError(f"{key} is {value!r}; it must be a path")
    return str(value)


def _module(key: str, value: Any) -> str:
    file = getattr(value, "__file__", None)
    if file is not None:
        path = Path(file)
        value = path.parent if path.name == "__init__.py" else path
    path = _path(key, value)
    if not os.path.exists(path):
        raise ValueError(f"{key} has {path}, which is not on this machine")
    return os.path.abspath(path)


def _requirements(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        value = value.get("packages")
    if isinstance(value, (str, Path)):
        if not os.path.isfile(value):
            raise ValueError(
                f"{key} is {str(value)!r}; it must be a list of requirements, or a requirements file"
            )
        return (os.path.abspath(value),)
    if not isinstance(value, Sequence) or not all(isinstance(one, str) and one.strip() for one in value):
        raise TypeError(f'{key} is {value!r}; it must be a list like ["numpy>=2"], or a requirements file')
    return tuple(value)


def variables(env: Mapping[str, Any], job_at: tuple[str, ...] | None = None) -> dict[str, str]:
    """The variables of executors in this environment, within the one that this code runs in.

    `job_at` says that it is a whole job's, and where its files are brought.
    """
    of_job = job_at is not None
    around = inherited() if _state.is_executor or of_job else _state.job_runtime_env
    if not env and not (around and (_state.is_executor or of_job)):
        # A driver's tasks have its job's.
        return {}
    if of_job and set(env) <= {"env_vars"} and set(around) <= {"env_vars"}:
        return dict(env.get("env_vars", {}))
    made = dict(env)
    paths = {name: made.pop(name) for name in ("working_dir", "py_modules", "requirements") if name in made}
    if paths:
        made.update(_pack(json.dumps(paths), place(_state.address) if job_at is None else job_at))
    if isinstance(made.get("preload"), tuple):
        made["preload"] = list(made["preload"])
    merged = {**around, **made, "env_vars": {**around.get("env_vars", {}), **env.get("env_vars", {})}}
    return {**merged["env_vars"], VARIABLE: json.dumps(merged, sort_keys=True)}


def inherited() -> dict[str, Any]:
    """The environment that this code runs in."""
    return named_by(os.environ)


def named_by(variables: Mapping[str, str]) -> dict[str, Any]:
    """The environment that these variables name."""
    try:
        env = json.loads(variables.get(VARIABLE) or "{}")
    except ValueError:
        return {}
    return env if isinstance(env, dict) else {}


def place(address: str | None) -> tuple[str, ...]:
    """Where files are brought: arguments of ``cluster pack``."""
    if _state.is_executor:
        return ("--into", os.path.join(_state.directory, "packages", "chunks"))
    if address is not None and address.startswith("unix:"):
        return ("--into", os.path.join(address.removeprefix("unix:"), "packages", "chunks"))
    return ("--address", address) if address else ()


@functools.lru_cache(maxsize=256)
def _pack_once(paths: str, where: tuple[str, ...], stamp: int) -> str:
    done = subprocess.run(
        [find_binary(), "pack", *where],
        input=paths,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = done.stderr.strip().removeprefix("error: ")
        raise RuntimeEnvError(f"the runtime environment cannot be sent to the cluster: {reason}")
    return done.stdout


def _pack(paths: str, where: tuple[str, ...]) -> dict[str, Any]:
    """Files are looked at once for each connection."""
    env: dict[str, Any] = json.loads(_pack_once(paths, where, _state.generation))
    return {name: value for name, value in env.items() if value}
