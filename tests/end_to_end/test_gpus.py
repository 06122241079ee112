"""GPUs: found by the driver's own count, leased whole or by fractions of one, and shown to those who lease them.

The tests bring a CUDA driver library of their own, so that they say the same on every machine: one of three devices,
one that fails, one of a version that has nothing we know.
"""

import subprocess
from pathlib import Path

import pytest

from testkit import Machine

THREE_DEVICES = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 3; return 0; }
"""
NO_DEVICE = """
int cuInit(unsigned flags) { return 100; }
int cuDeviceGetCount(int *count) { return 100; }
"""
NOTHING_KNOWN = "int somethingElse(void) { return 0; }"


@pytest.fixture
def cuda(machine: Machine, tmp_path: Path):
    """Gives the machine a `libcuda.so.1` made of this source."""

    def bring(source: str) -> None:
        folder = tmp_path / "cuda"
        folder.mkdir()
        (folder / "cuda.c").write_text(source)
        library = folder / "libcuda.so.1"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, folder / "cuda.c"], check=True, timeout=60)
        (folder / "libcuda.so").symlink_to(library.name)
        machine.environment["LD_LIBRARY_PATH"] = str(folder)
        machine.environment.pop("CUDA_VISIBLE_DEVICES", None)

    return bring


SEES = """
import os, concurrent_ml as cml
cml.init(num_cpus=4)

@cml.remote
def sees():
    ids = cml.get_runtime_context().get_accelerator_ids()["GPU"]
    return os.environ.get("CUDA_VISIBLE_DEVICES"), ids
"""


def test_found_devices_are_leased_and_shown(machine: Machine, cuda):
    cuda(THREE_DEVICES)
    out = machine.program(
        SEES
        + """
print(cml.cluster_resources()["GPU"])
print(cml.get(sees.remote())[0] == "")
devices, ids = cml.get(sees.options(num_gpus=2).remote())
print(len(set(devices.split(","))), set(devices.split(",")) <= {"0", "1", "2"}, devices.split(",") == ids)
""",
    ).stdout
    assert out.splitlines() == ["3.0", "True", "2 True True"]


def test_fractions_share_one_device_and_whole_ones_do_not(machine: Machine, cuda):
    cuda(THREE_DEVICES)
    out = machine.program(
        SEES
        + """
@cml.remote(num_cpus=0, max_concurrency=1)
class Holder:
    def sees(self):
        return os.environ["CUDA_VISIBLE_DEVICES"]

halves = [Holder.options(num_gpus=0.5).remote() for _ in range(2)]
wholes = [Holder.options(num_gpus=1).remote() for _ in range(2)]
halves, wholes = [cml.get([holder.sees.remote() for holder in holders]) for holders in (halves, wholes)]
print(len(set(halves)), len(set(wholes)), set(halves) & set(wholes))
""",
    ).stdout
    assert out.splitlines() == ["1 2 set()"]


def test_devices_hidden_from_the_daemon_are_named_as_the_user_named_them(machine: Machine, cuda):
    # CUDA itself counts only what it may see.
    cuda(THREE_DEVICES.replace("3;", "2;"))
    machine.environment["CUDA_VISIBLE_DEVICES"] = "5,GPU-77"
    out = machine.program(SEES + "print(cml.get(sees.options(num_gpus=2).remote())[0])").stdout
    assert out.splitlines() == ["5,GPU-77"]


@pytest.mark.parametrize("source", [NO_DEVICE, NOTHING_KNOWN], ids=["fails", "unknown"])
def test_a_driver_that_cannot_be_used_is_no_gpus_and_no_error(machine: Machine, cuda, source: str):
    cuda(source)
    done = machine.program(SEES + 'print(cml.cluster_resources().get("GPU", 0), cml.get(sees.remote()))')
    assert done.stdout.splitlines()[-1].startswith("0 (")
    assert "panicked" not in done.stderr
    assert "Traceback" not in done.stderr
