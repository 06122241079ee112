"""`python -m concurrent_ml.compat.ray script.py`: runs a program with `import ray` meaning this library."""

from __future__ import annotations

import io
import os
import runpy
import sys
import types
from typing import NoReturn

from concurrent_ml.compat.ray import install
from concurrent_ml.compat.ray._names import page

USAGE = """usage: python -m concurrent_ml.compat.ray script.py [arguments]
       python -m concurrent_ml.compat.ray -m module [arguments]
       python -m concurrent_ml.compat.ray --names

Runs a program written for Ray's core API on Concurrent-ML, unchanged. --names prints, as Markdown, every name of Ray's
core API and what becomes of it."""


def main(arguments: list[str]) -> None:
    """Becomes the program: its own `__main__`, `sys.argv` and `sys.path[0]`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    if arguments == ["--names"]:
        print(page(), end="")
        return
    install()
    if arguments[0] == "-m":
        if len(arguments) < 2:
            _wrong("-m needs the name of a module")
        sys.argv = arguments[1:]
        # `python -m` has put the working directory there already.
        _, spec, code = runpy._get_module_details(arguments[1])  # type: ignore[attr-defined]
        sys.argv[0] = spec.origin
        program = _become_main(spec.origin, spec.parent, spec)
    else:
        script = arguments[0]
        if script.startswith("-"):
            _wrong(f"there is no option {script}")
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(script))
        try:
            with io.open_code(os.path.abspath(script)) as file:
                source = file.read()
        except OSError as error:
            _wrong(f"cannot read {script}: {error.strerror}")
        code = compile(source, script, "exec")
        program = _become_main(script, None, None)
    exec(code, program.__dict__)


def _become_main(file: str, package: str | None, spec: object) -> types.ModuleType:
    program = types.ModuleType("__main__")
    program.__dict__.update(
        __file__=file, __package__=package, __spec__=spec, __builtins__=__builtins__, __cached__=None
    )
    sys.modules["__main__"] = program
    return program


def _wrong(why: str) -> NoReturn:
    print(f"python -m concurrent_ml.compat.ray: {why}\n\n{USAGE}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
