"""An all-to-all shuffle: every map task makes a part for every reduce task. Prints a digest of what those saw."""

import hashlib
import sys

import numpy as np

import concurrent_ml as cml

MEGABYTES = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
WIDTH = 16
NUMBERS = MEGABYTES * 1_000_000 // 8 // WIDTH // WIDTH

cml.init(log_to_driver=False)


@cml.remote(max_retries=-1, num_returns=WIDTH)
def split(mapper: int):
    random = np.random.default_rng(mapper)
    return tuple(random.integers(0, 1 << 40, NUMBERS) for _ in range(WIDTH))


@cml.remote(max_retries=-1)
def join(reducer: int, *parts):
    digest = hashlib.sha256(str(reducer).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


columns = [split.remote(mapper) for mapper in range(WIDTH)]
digests = [join.remote(reducer, *[parts[reducer] for parts in columns]) for reducer in range(WIDTH)]
del columns
print(hashlib.sha256("".join(cml.get(digests)).encode()).hexdigest())
