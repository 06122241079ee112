"""What this machine allows, asked once and answered in one sentence."""

import functools
import os
import shutil
import subprocess
from pathlib import Path


class TestkitUnavailable(RuntimeError):
    """This machine or this user cannot make network namespaces; the message says what is missing."""

    __test__ = False  # pytest: not a test class, whatever its name begins with


def sbin_path() -> str:
    """PATH with the folders that ``ip`` and ``tc`` live in, which a plain user's PATH often lacks."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs ``ip ARGUMENTS``; what it said is in the error when it fails."""
    done = subprocess.run(
        ["ip", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": sbin_path()},
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done


@functools.cache
def require_namespaces() -> None:
    """Raises `TestkitUnavailable` unless namespaces, bridges and veth pairs can be made here."""
    for command in ("ip", "tc", "nsenter"):
        if shutil.which(command, path=sbin_path()) is None:
            package = "util-linux" if command == "nsenter" else "iproute2"
            raise TestkitUnavailable(f"the command `{command}` is missing: install {package}")
    name = f"tk{os.getpid():x}-probe"
    made = ip("netns", "add", name, check=False)
    if made.returncode != 0:
        who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
        raise TestkitUnavailable(
            f"{who} may not make network namespaces here ({made.stderr.strip()}); run as root, or with CAP_NET_ADMIN "
            "and CAP_SYS_ADMIN. scripts/test does so inside a user namespace where the kernel allows that."
        )
    try:
        for kind in (("bridge",), ("veth", "peer", "name", "probe1")):
            added = ip("-n", name, "link", "add", "probe0", "type", *kind, check=False)
            if added.returncode != 0:
                raise TestkitUnavailable(f"this kernel has no {kind[0]} devices ({added.stderr.strip()})")
            ip("-n", name, "link", "del", "probe0")
    finally:
        ip("netns", "del", name, check=False)


def has_netem(namespace: str, device: str) -> bool:
    """Whether this kernel can delay packets itself (the sch_netem queue discipline)."""
    tried = tc(namespace, "qdisc", "add", "dev", device, "root", "netem", "delay", "1ms", check=False)
    if tried.returncode == 0:
        tc(namespace, "qdisc", "del", "dev", device, "root")
    return tried.returncode == 0


def tc(namespace: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs ``tc`` in a namespace."""
    done = subprocess.run(
        ["tc", "-n", namespace, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": sbin_path()},
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"tc {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done


def live_pids() -> set[int]:
    """Every process on the machine that is more than a zombie."""
    pids = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue  # it ended while we looked
            if state not in "ZX":
                pids.add(int(entry.name))
    return pids
