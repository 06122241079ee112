"""Rust programs on clusters: their examples on several hosts, and calls between Rust and Python."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testkit import Machine, Network

pytestmark = pytest.mark.timeout(1200)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def examples() -> Path:
    """Where the examples of the Rust SDK are, built; `RUST_EXAMPLES` names those that are built already."""
    named = os.environ.get("RUST_EXAMPLES")
    if named:
        return Path(named)
    cargo = shutil.which("cargo") or str(Path.home() / ".cargo/bin/cargo")
    command = [cargo, "build", "--quiet", "--locked", "--package", "concurrent-ml", "--examples"]
    subprocess.run(command, cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/examples"


@pytest.mark.parametrize(
    ("example", "arguments", "shows"),
    [
        ("monte_carlo", ["30", "200000"], r"^pi is about 3\.1"),
        ("matrix_multiplication", ["240", "3"], r"^240 x 240 in 9 blocks"),
        ("parameter_server", ["3", "120"], r"^after 360 steps: \[2\.0"),
        ("gpu_saxpy", ["1000"], r"no GPU|1000 elements on the GPU, 0 wrong"),
    ],
)
def test_examples_run_on_three_hosts(
    net: Network, examples: Path, example: str, arguments: list[str], shows: str
):
    a, b, c = net.host("a"), net.host("b"), net.host("c")
    a.cluster_up(num_cpus=1)
    b.cluster_join(a, num_cpus=1)
    c.cluster_join(a, num_cpus=1)
    done = b.run([examples / example, *arguments], b.cluster_environment(), timeout=120)
    assert re.search(shows, done.stdout), done.stdout + done.stderr
    # From a host without a daemon, too.
    d = net.host("d")
    d.join_cluster_of(a)
    done = d.run([examples / example, *arguments], d.cluster_environment(), timeout=120)
    assert re.search(shows, done.stdout), done.stdout + done.stderr


@pytest.fixture(scope="module")
def program(cml: Any, examples: Path) -> Any:
    from concurrent_ml import rust

    return rust.Program(examples / "with_python")


def test_python_calls_rust_functions_with_plain_values(cml: Any, program: Any):
    assert cml.get(program.function("words").remote("to be or not to be")) == [
        {"text": "be", "places": [1, 5]},
        {"text": "not", "places": [3]},
        {"text": "or", "places": [2]},
        {"text": "to", "places": [0, 4]},
    ]
    assert cml.get(program.function("divide", num_returns=2).remote(17, 5)) == [3, 2]
    refs = [cml.get(ref) for ref in program.function("count", num_returns="streaming").remote(4)]
    assert refs == [0, 1, 2, 3]


def test_arrays_pass_without_a_copy(cml: Any, program: Any):
    from concurrent_ml import rust

    scale = program.function("with_python::scale")
    array = np.arange(200_000, dtype=np.float64)
    scaled = cml.get(scale.remote(array, 0.5))
    assert np.array_equal(scaled, array / 2)
    assert not scaled.flags.writeable
    stored = rust.put(array[::2])
    assert np.array_equal(cml.get(scale.remote(scale.remote(stored, 2), 2)), array[::2] * 4)
    # Numbers of NumPy's are numbers; a small array need not be aligned.
    assert list(cml.get(scale.remote(np.ones(3), np.float64(3)))) == [3, 3, 3]


def test_refs_inside_values_stay_refs(cml: Any, program: Any):
    from concurrent_ml import rust

    parts = [rust.put(1), rust.put(20), program.function("total").remote([rust.put(300)])]
    assert cml.get(program.function("total").remote(parts)) == 321


def test_python_makes_rust_actors_and_finds_them_by_name(cml: Any, program: Any):
    tally = program.actor("Tally").remote(5)
    assert cml.get([tally.add.remote(1) for _ in range(3)]) == [6, 7, 8]
    named = program.actor("Tally", name="tally").remote(1)
    assert cml.get(named.add.remote(1)) == 2
    assert cml.get(cml.get_actor("tally").add.remote(1)) == 3
    cml.kill(named)
    with pytest.raises(cml.exceptions.ActorDiedError):
        cml.get(named.add.remote(1))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"x": [1, {2}]}, r"argument 0 of words\['x'\]\[1\] is of type set, which cannot be passed"),
        (object(), r"argument 0 of words is of type object"),
        (1 << 70, r"argument 0 of words is a number beyond 64 bits"),
        ([np.array(["a"])], r"argument 0 of words\[0\] is an array of <U1"),
        ("\ud800", r"no Unicode"),
    ],
)
def test_what_cannot_cross_is_named_with_its_place(cml: Any, program: Any, value: Any, said: str):
    with pytest.raises(TypeError, match=said):
        program.function("words").remote(value)


def test_a_result_of_python_that_cannot_cross_is_named(machine: Machine, examples: Path):
    done = subprocess.run(
        [examples / "with_python"],
        env={**machine.environment, "VIRTUAL_ENV": str(Path(sys.executable).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["hypot: 5", "cumsum: 50005000", 'dict: {"a": 1, "b": 2}']
    assert "sqrt: " in done.stdout
    assert "math domain error" in done.stdout


def test_mistakes_are_told_by_the_rust_program(cml: Any, program: Any):
    def said(ref: Any) -> str:
        with pytest.raises(cml.exceptions.ClusterError) as caught:
            cml.get(ref, timeout=60)
        return str(caught.value)

    unknown = said(program.function("wordz").remote("x"))
    assert 'no single remote function or actor "wordz"' in unknown
    assert "with_python::words" in unknown
    assert "argument text: the value is no" in said(program.function("words").remote(7))
    assert "argument factor is missing: 1 were given" in said(program.function("scale").remote(np.ones(2)))
    assert "it takes 1 arguments, and 2 were given" in said(program.function("words").remote("a", "b"))
    assert "<f4" in said(program.function("scale").remote(np.ones(2, np.float32), 1))
    assert "there are no words in nothing" in said(program.function("words").remote(""))
    panicked = said(program.function("divide", num_returns=2).remote(1, 0))
    assert "panicked at" in panicked
    assert "divide by zero" in panicked
    assert "divide_here" in panicked
    assert "num_returns = 1" in said(program.function("divide").remote(1, 1))
    assert "call it as a stream" in said(program.function("count").remote(1))
    assert "Python object" in said(program.function("words").remote(cml.put("only Python reads this")))
    tally = program.actor("Tally").remote(0)
    assert 'no public method "subtract"' in said(tally.subtract.remote(1))


def _call_of(cml: Any, data: bytes, named: str) -> Any:
    """A call whose program is these bytes, named so."""
    from concurrent_ml import _calls, _native, _state, rust
    from concurrent_ml._options import Options

    client = _state.connected()
    stored = client.put_raw(data)
    return _native.Function(
        client,
        stored,
        "broken",
        **_calls.requests(Options().requests()),
        num_returns=1,
        max_retries=0,
        retry_exceptions=b"Nbroken",
        env_vars={rust.PROGRAM: f"{named} {stored._id}"},
        strategy="DEFAULT",
        parameters=None,
        complain=lambda *_: None,
        plain=True,
    ).call((), {})


def test_a_program_that_cannot_run_here_says_why(cml: Any):
    import hashlib

    def said(data: bytes, named: str) -> str:
        with pytest.raises(cml.exceptions.ClusterError) as caught:
            cml.get(_call_of(cml, data, named), timeout=60)
        return str(caught.value)

    # As large as programs are: smaller values lie in messages.
    room = b" " * 5000
    machine = os.uname().machine

    def right(data: bytes) -> str:
        return f"{hashlib.sha256(data).hexdigest()} {machine}-linux"

    other = said(b"x", f"{'0' * 64} riscv64-linux")
    assert "built for riscv64-linux" in other
    assert f"{machine}-linux" in other
    assert "damaged" in said(b"something else" + room, f"{'0' * 64} {machine}-linux")
    # As a program of another version of the protocol ends: it prints its refusal and exits.
    old = (
        b"#!/bin/sh\necho 'the cluster refused the connection: client speaks protocol 99' >&2\nexit 1\n"
        + room
    )
    assert "client speaks protocol 99" in said(old, right(old))


def test_rust_calls_an_actor_of_python_by_its_name(machine: Machine, examples: Path):
    script = """
import subprocess, sys, concurrent_ml as cml
cml.init(num_cpus=2, namespace="")

@cml.remote
class Counter:
    def __init__(self):
        self.count = 40
    def add(self, n):
        self.count += n
        return self.count

counter = Counter.options(name="counter").remote()
cml.get(counter.add.remote(0))
import concurrent_ml._state as state
done = subprocess.run([sys.argv[1], "counter"], env={**__import__("os").environ, "CLUSTER_ADDRESS": state.address},
                      capture_output=True, text=True)
print(done.stdout, done.stderr)
"""
    shown = machine.program(
        script.replace("sys.argv[1]", repr(str(examples / "with_python"))), timeout=120
    ).stdout
    assert "actor: 42" in shown


def test_the_commands_of_the_guide_run_as_written(machine: Machine, examples: Path, tmp_path: Path):
    page = (ROOT / "docs/rust.md").read_text()
    blocks = re.findall(r"^```(sh|python)\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "sh", "python", "sh"]
    environment = {**os.environ, "PATH": f"{Path.home()}/.cargo/bin:{os.environ['PATH']}"}
    environment = {key: value for key, value in environment.items() if not key.startswith("CLUSTER_")}
    said = ""
    for language, text in blocks:
        # Where cargo puts it is the user's own affair.
        words = text.replace("target/debug/examples", str(examples))
        program = ["sh", "-euc", words] if language == "sh" else [sys.executable, "-c", words]
        done = subprocess.run(
            program,
            cwd=ROOT,
            env={**environment, "CLUSTER_DIR": str(tmp_path / "run")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
    assert "pi is about 3.1" in said
    assert "{'text': 'be', 'places': [1, 5]} 6" in said
    assert re.search(r"no GPU|elements on the GPU, 0 wrong", said)
