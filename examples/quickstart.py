"""Trains a dozen models on the digits data set, all at once, and shows what that gained.

    python examples/quickstart.py

The cluster is inside this program: nothing has to run beforehand. With ``CLUSTER_ADDRESS=host:8264`` in the
environment the same program uses a running cluster instead.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

from sklearn.datasets import load_digits
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import concurrent_ml as cml

# Every model is seeded, so both runs below train exactly the same thing.
MODELS: dict[str, Any] = {
    "forest, 200 trees": RandomForestClassifier(200, random_state=0),
    "forest, 600 trees": RandomForestClassifier(600, random_state=0),
    "forest, 600 trees, entropy": RandomForestClassifier(600, criterion="entropy", random_state=0),
    "SVC, RBF, C=1": SVC(C=1.0),
    "SVC, RBF, C=10": SVC(C=10.0),
    "SVC, cubic, scaled": make_pipeline(StandardScaler(), SVC(kernel="poly", degree=3)),
    "k-NN, k=1": KNeighborsClassifier(1),
    "k-NN, k=3": KNeighborsClassifier(3),
    "k-NN, k=9, by distance": KNeighborsClassifier(9, weights="distance"),
    "gradient boosting, 60 rounds": GradientBoostingClassifier(n_estimators=60, random_state=0),
    "gradient boosting, depth 5": GradientBoostingClassifier(n_estimators=40, max_depth=5, random_state=0),
    "histogram boosting": HistGradientBoostingClassifier(max_iter=60, random_state=0),
}

# Training images, test images, training digits, test digits.
Split = list[Any]


@dataclass
class Trained:
    """What one task hands back."""

    name: str
    accuracy: float
    seconds: float
    node: str
    executor: str


def score(model: Any, data: Split) -> tuple[float, float]:
    """Fits the model; its accuracy on the test half, and the seconds both took."""
    x_train, x_test, y_train, y_test = data
    start = time.perf_counter()
    model.fit(x_train, y_train)
    accuracy = float(model.score(x_test, y_test))
    return accuracy, time.perf_counter() - start


@cml.remote
def train(name: str, model: Any, data: Split) -> Trained:
    accuracy, seconds = score(model, data)
    here = cml.get_runtime_context()
    return Trained(name, accuracy, seconds, here.get_node_id(), here.get_worker_id())


def show_progress(done: int, total: int, started: float, last: str) -> None:
    """One line that is rewritten in place on a terminal; a line for each model where output is a file."""
    bar = ("#" * (24 * done // total)).ljust(24, ".")
    line = f"[{bar}] {done:2}/{total}  {time.perf_counter() - started:5.1f} s  {last}"
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="\n" if done == total else "", flush=True)
    else:
        print(line, flush=True)


def main() -> None:
    images, digits = load_digits(return_X_y=True)
    data: Split = train_test_split(images, digits, test_size=0.5, random_state=0)

    cml.init()
    cores = cml.cluster_resources()["CPU"]
    print(f"{len(MODELS)} models, {len(data[0])} training images, {cores:g} CPUs\n")

    # The data is stored once; every task reads the same copy.
    data_ref = cml.put(data)
    started = time.perf_counter()
    waiting = [train.remote(name, model, data_ref) for name, model in MODELS.items()]
    results: list[Trained] = []
    show_progress(0, len(MODELS), started, "started")
    while waiting:
        ready, waiting = cml.wait(waiting)
        results += cml.get(ready)
        show_progress(len(results), len(MODELS), started, results[-1].name)
    at_once = time.perf_counter() - started
    cml.shutdown()

    print(f"\n{'model':<30}{'accuracy':>9}{'seconds':>9}  {'node':<10}{'executor':<10}")
    for r in sorted(results, key=lambda r: -r.accuracy):
        print(f"{r.name:<30}{r.accuracy:>9.3f}{r.seconds:>9.2f}  {r.node[:8]:<10}{r.executor[:8]:<10}")

    print("\nThe same models again, one after another, without a cluster ...", flush=True)
    accuracies = {r.name: r.accuracy for r in results}
    started = time.perf_counter()
    for name, model in MODELS.items():
        accuracy, _ = score(model, data)
        if accuracy != accuracies[name]:
            raise SystemExit(f"{name}: {accuracy:.3f} here, {accuracies[name]:.3f} in its task")
    in_turn = time.perf_counter() - started
    print(
        f"at once {at_once:.1f} s, one after another {in_turn:.1f} s: {in_turn / at_once:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
