"""The rows of the table: what is measured, in what unit, and what is to be reached."""

from dataclasses import dataclass

from benchmarks.disks import RESTORING, SPILLING
from benchmarks.failures import EXECUTOR, NODE_GONE, NODE_SILENT
from benchmarks.heads import FAILOVER, HEAD_RESTART
from benchmarks.jobs import FIRST_OF_ENVIRONMENT, IN_ENVIRONMENT, SENT_AGAIN, SUBMIT


@dataclass(frozen=True)
class Row:
    """One line of the table.

    A target is a factor over Ray measured in the same run (`times_ray`), or a bound on our own figure: `at_most` or
    `at_least`.
    """

    name: str
    unit: str
    times_ray: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    lower_is_better: bool = False

    def target(self) -> str:
        """The target in words."""
        if self.times_ray is not None:
            return f"≥ {self.times_ray:g} × Ray"
        if self.at_most is not None:
            return f"≤ {self.at_most:g} {self.unit}"
        if self.at_least is not None:
            return f"≥ {self.at_least:g} {self.unit}"
        return ""

    def ratio(self, ours: float, ray: float) -> float:
        """How many times better than Ray."""
        return ray / ours if self.lower_is_better else ours / ray

    def reached(self, ours: float, ray: float | None) -> bool | None:
        """Whether the target is reached; None where there is no target, or no figure to judge it by."""
        if self.times_ray is not None:
            return None if ray is None else self.ratio(ours, ray) >= self.times_ray
        if self.at_most is not None:
            return ours <= self.at_most
        if self.at_least is not None:
            return ours >= self.at_least
        return None


BESIDE_RAY = (
    Row("init to first result", "s", at_most=0.5, lower_is_better=True),
    Row("single client tasks sync", "/s", times_ray=15),
    Row("single client tasks async", "/s", times_ray=25),
    Row("single client tasks and get batch", "/s"),
    Row("multi client tasks async", "/s", times_ray=25),
    Row("single client get calls", "/s", times_ray=40),
    Row("single client put calls", "/s", times_ray=50),
    Row("multi client put calls", "/s"),
    Row("single client put gigabytes", "GB/s", times_ray=6),
    Row("multi client put gigabytes", "GB/s"),
    Row("single client get object containing 10k refs", "/s", times_ray=10),
    Row("single client wait 1k refs", "/s", times_ray=12),
    Row("1:1 actor calls sync", "/s", times_ray=12),
    Row("1:1 actor calls async", "/s", times_ray=15),
    Row("1:1 actor calls concurrent", "/s", times_ray=8),
    Row("1:n actor calls async", "/s", times_ray=10),
    Row("n:n actor calls async", "/s", times_ray=10),
    Row("n:n actor calls with arg async", "/s", times_ray=10),
    Row("1:1 async-actor calls sync", "/s", times_ray=8),
    Row("1:1 async-actor calls async", "/s", times_ray=8),
    Row("1:1 async-actor calls with args async", "/s", times_ray=8),
    Row("n:n async-actor calls async", "/s", times_ray=8),
    Row("items of a stream read one by one", "/s"),
    Row("placement group create and removal", "/s", times_ray=10),
    Row("remote client: get calls", "/s", times_ray=8),
    Row("remote client: put calls", "/s", times_ray=8),
    Row("remote client: put gigabytes", "GB/s", times_ray=10),
    Row("remote client: 1:1 actor calls sync", "/s", times_ray=8),
    Row("remote client: 1:1 actor calls async", "/s", times_ray=8),
)

ALONE = (
    Row("put of a touched source, of a plain copy", "×", at_least=0.6),
    Row("view of an 800 MB array on its node", "µs", at_most=100, lower_is_better=True),
    Row("executor's private memory, idle", "MB", at_most=5, lower_is_better=True),
    Row("executor's private memory, after a NumPy task", "MB", at_most=10, lower_is_better=True),
    Row("transfer between two namespaces, of one iperf3 stream", "×", at_least=0.7),
    Row("a million queued tasks: head's memory", "MiB", at_most=1024, lower_is_better=True),
    Row("a million queued tasks: last tenth's rate, of the first's", "×", at_least=0.8),
    Row("scheduling decisions of one core: 1,000 nodes, 100,000 queued tasks", "/s", at_least=100_000),
    Row("a thousand actors of no CPU, made and called once", "s", at_most=10, lower_is_better=True),
    Row("an actor's private memory, one of a thousand", "MB", at_most=5, lower_is_better=True),
    Row("store's footprint under the mix, of live bytes", "×", at_most=2, lower_is_better=True),
    Row(EXECUTOR, "ms", at_most=100, lower_is_better=True),
    Row(NODE_GONE, "s", at_most=1, lower_is_better=True),
    Row(NODE_SILENT, "s", at_most=6, lower_is_better=True),
    Row(HEAD_RESTART, "s", at_most=2, lower_is_better=True),
    Row(FAILOVER, "s", at_most=5, lower_is_better=True),
    Row(SPILLING, "×", at_least=0.7),
    Row(RESTORING, "×", at_least=0.7),
    Row(SUBMIT, "ms", at_most=150, lower_is_better=True),
    Row(SENT_AGAIN, "s", at_most=2, lower_is_better=True),
    Row(FIRST_OF_ENVIRONMENT, "s", at_most=3, lower_is_better=True),
    Row(IN_ENVIRONMENT, "ms", at_most=5, lower_is_better=True),
    Row("Rust: no-op tasks from one client", "/s", at_least=100_000),
    Row("Rust: a no-op task, sync", "µs", at_most=120, lower_is_better=True),
    Row("Rust: get of an 800 MB ndarray on its node", "ms", at_most=1, lower_is_better=True),
)
