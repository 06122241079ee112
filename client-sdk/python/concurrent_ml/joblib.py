"""joblib's parallel loops on the cluster, and with them scikit-learn's `n_jobs`.

    import concurrent_ml as cml
    import joblib

    cml.init("host:8264")
    with joblib.parallel_backend("concurrent_ml"):
        GridSearchCV(model, grid, n_jobs=-1).fit(X, y)

`n_jobs=-1` means all CPUs of the cluster. Options of `@remote` may follow the name:
`joblib.parallel_config("concurrent_ml", num_gpus=1)`.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import cloudpickle
from joblib import parallel as _parallel
from joblib._parallel_backends import FallbackToBackend, SequentialBackend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend

from . import _state
from ._joblib_name import NAME
from ._native import ObjectRef
from ._options import Options
from .futures import Executor, Future

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import OtherOptions

SHARED_FROM = 64 * 1024
"""Arguments of at least this many bytes are stored once per loop and read from shared memory by all its calls."""


def register() -> None:
    """Makes the backend known to joblib. Importing `concurrent_ml` does it too, before joblib or after."""
    register_parallel_backend(NAME, Backend)


class Backend(AutoBatchingMixin, ParallelBackendBase):  # pyright: ignore[reportIncompatibleMethodOverride]
    """joblib's backend `"concurrent_ml"`."""

    # In seconds. A task costs the cluster some 0.1 ms, so batches may be shorter than joblib's own.
    MIN_IDEAL_BATCH_DURATION = 0.02
    MAX_IDEAL_BATCH_DURATION = 0.5

    supports_inner_max_num_threads = True
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **options: Unpack[OtherOptions],
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        Options().changed(options)  # a wrong one is told here
        self._options = options
        self._executor: Executor | None = None
        self._shared: dict[int, tuple[Any, ObjectRef[Any]]] = {}
        self._lock = threading.Lock()
        self._max_nbytes: int | None = 1 << 20

    @property
    def supports_retrieve_callback(self) -> bool:
        """In a task, the loop itself waits for results: that lends the task's CPU to those it waits for."""
        return not _state.is_executor

    def effective_n_jobs(self, n_jobs: int | None) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """How many calls may run at once: `-1` is as many as the cluster has CPUs, `-2` one less, and so on."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        from ._api import cluster_resources

        return max(int(cluster_resources().get("CPU", 1)) + 1 + n_jobs, 1)

    def configure(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        *,
        max_nbytes: int | None = 1 << 20,
        mmap_mode: str | None = "r",
        **_others: Any,
    ) -> int:
        """Before one or several loops."""
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level or 0))
        if mmap_mode in ("r+", "w+"):
            raise ValueError(
                f"mmap_mode is {mmap_mode!r}, but calls on a cluster share no memory that they can write to; "
                "return what they compute, or use mmap_mode='r' or 'c'"
            )
        self.parallel = parallel
        self._max_nbytes = None if mmap_mode == "c" else max_nbytes
        # Beyond the cluster's CPUs nothing runs anyway.
        self._executor = Executor(n_jobs if n_jobs > 0 else None, **self._options)
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Sends a batch of calls."""
        if self._executor is None:
            raise RuntimeError("this loop has ended: it can take no more calls")
        values: list[Any] = []
        copied: set[int] = set()
        payload = cloudpickle.dumps(self._with_places(func, values, copied), protocol=5)
        future = self._executor.submit(_run, payload, self.inner_max_num_threads, frozenset(copied), *values)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch that has ended."""
        return out.result()

    def retrieve_result(self, out: Future[Any], timeout: float | None = None) -> Any:
        """The results of a batch; waits for them."""
        return out.result(timeout)

    def _with_places(self, batch: Any, values: list[Any], copied: set[int]) -> Any:
        """The batch with its large arguments replaced by places among `values`, where refs to them are.

        An argument is known by its identity as long as the loop runs, and held: nothing is hashed or compared.
        """
        places: dict[int, _Place] = {}

        def placed(value: Any) -> Any:
            is_ref = isinstance(value, ObjectRef)
            size = 0 if is_ref else _size(value)
            if not is_ref and size < SHARED_FROM:
                return value
            place = places.get(id(value))
            if place is None:
                place = places[id(value)] = _Place(len(values))
                # Smaller ones joblib's other backends would have copied: functions may write into them.
                if not is_ref and (self._max_nbytes is None or size < self._max_nbytes):
                    copied.add(place.index)
                values.append(value if is_ref else self._ref_of(value))
            return place

        items = [
            (func, tuple(map(placed, args)), {name: placed(value) for name, value in kwargs.items()})
            for func, args, kwargs in batch.items
        ]
        if not values:
            return batch
        return _parallel.BatchedCalls(
            items, (batch._backend, batch._n_jobs), batch._reducer_callback, batch._pickle_cache
        )

    def _ref_of(self, value: Any) -> ObjectRef[Any]:
        with self._lock:
            known = self._shared.get(id(value))
            if known is None:
                known = self._shared[id(value)] = (value, _state.connected().put(value))
            return known[1]

    def stop_call(self) -> None:
        """A loop has ended. What is changed between two loops must be seen by the second."""
        with self._lock:
            self._shared = {}

    def terminate(self) -> None:
        """No more loops will come, or none soon."""
        self.stop_call()
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed: nobody will read what the others return."""
        if self._executor is not None:
            self._executor.cancel_all()
        self.terminate()
        if ensure_ready:
            self.configure(
                n_jobs=self.parallel.n_jobs, parallel=self.parallel, **self.parallel._backend_kwargs
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.nesting_level, self.inner_max_num_threads, dict(self._options))


def _unpickled(
    nesting_level: int | None, inner_max_num_threads: int | None, options: dict[str, Any]
) -> Backend:
    return Backend(nesting_level, inner_max_num_threads, **options)


def _size(value: Any) -> int:
    """The bytes of an argument, where that can be told at once: arrays, data frames, sparse matrices, bytes."""
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    try:
        size = getattr(value, "nbytes", None)
        if size is None and hasattr(value, "memory_usage"):
            usage = value.memory_usage()
            size = usage.sum() if hasattr(usage, "sum") else usage
        if size is None:
            size = getattr(getattr(value, "data", None), "nbytes", None)
        return int(size) if size is not None else 0
    except Exception:  # whatever a user's own class does there
        return 0


class _Place:
    """Where a shared argument stood."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return _Place, (self.index,)


def _run(payload: bytes, threads: int | None, copied: frozenset[int], *values: Any) -> Any:
    """In an executor: one batch."""
    batch = pickle.loads(payload)

    def value_of(value: Any) -> Any:
        if not isinstance(value, _Place):
            return value
        found = values[value.index]
        return copy.deepcopy(found) if value.index in copied else found

    if values:
        batch.items = [
            (func, tuple(map(value_of, args)), {name: value_of(value) for name, value in kwargs.items()})
            for func, args, kwargs in batch.items
        ]
    with _limited(threads):
        return batch()


@contextlib.contextmanager
def _limited(threads: int | None) -> Iterator[None]:
    if threads is None:
        yield
        return
    import threadpoolctl

    with threadpoolctl.threadpool_limits(limits=threads):
        yield


__all__ = ["Backend", "register"]
