"""What the package's own tests share."""

import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def cml() -> Iterator[Any]:
    """The package, with an embedded cluster of two CPUs that the tests of a file share."""
    import concurrent_ml

    for name in [key for key in os.environ if key.startswith("CLUSTER_") and key != "CLUSTER_BINARY"]:
        del os.environ[name]
    if concurrent_ml.is_initialized():
        concurrent_ml.shutdown()
    concurrent_ml.init(num_cpus=2, log_to_driver=False)
    yield concurrent_ml
    concurrent_ml.shutdown()
