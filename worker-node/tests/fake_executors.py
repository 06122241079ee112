"""What executors do in the supervisor's tests."""

import os
import subprocess
import sys
import time


def main(socket_path: str, executor: int, page_fd: int, token: str) -> None:
    what = os.environ["FAKE"]
    os.fstat(page_fd)
    if what == "exit 3":
        raise SystemExit(3)
    if what == "raise":
        raise ValueError("no good")
    if what == "report":
        import numpy as np

        print("open", sorted(os.listdir("/proc/self/fd"))[:4], "main", sys.modules["__main__"].__name__)
        print("threads", len(os.listdir("/proc/self/task")), "path", sys.path[0])
        os.write(2, f"random {np.random.randint(1 << 30)}\n".encode())
        return
    if what == "family":
        subprocess.Popen(["sleep", "1000"])
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(1000)",
            ]
        )
        print("children of", os.getpid(), child.pid, flush=True)
    time.sleep(1000)
