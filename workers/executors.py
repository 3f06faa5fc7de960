"""Where the blocks of a stage run: in this process, or on Dask workers.

An executor takes a function of a block index and gives outcomes in the order in which they end.
Between outcomes it may give None, so that its caller can show progress.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

# Dask tells the life of each worker at level info; it reads this when it is imported, here and in
# the workers.
os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")

import dask
from distributed import Client, LocalCluster
from distributed.client import Future

from pipeline.config import ExecutionConfig
from pipeline.errors import ConfigError
from pipeline.storage.ledger import Mark

Task = Callable[[int], Mark]
Running = dict[Future, tuple[int, bool]]
TICK_SECONDS = 0.5
# Blocks in flight per worker: one that runs, and enough behind it that none waits for the driver.
AHEAD = 3
# Ctrl+C goes to every process in the foreground. The driver alone answers, and ends the workers;
# they would each print a traceback.
_DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


class Executor(Protocol):
    """Runs a task for each index; never raises for a failed block."""

    def map(
        self, task: Task, indices: Iterable[int], *, name: str, resources: Mapping[str, float]
    ) -> Generator[Mark | None]:
        """Outcomes as they come; closing the generator cancels what has not begun."""

    def close(self) -> None:
        """Give back what it holds."""


class SerialExecutor:
    """One block after the other in this process: the reference, and the debugger."""

    def map(
        self, task: Task, indices: Iterable[int], *, name: str, resources: Mapping[str, float]
    ) -> Generator[Mark | None]:
        """As `Executor.map`; resources are ignored, this process has what it has."""
        for index in indices:
            yield task(index)

    def close(self) -> None:
        """Nothing to give back."""


class DaskExecutor:
    """A bounded window of futures on a Dask cluster.

    Each future returns a small status and is released at once: results that are held cost the
    scheduler memory for ever, and run again when a worker is lost.
    """

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The client, connected at first use.

        Raises:
            ConfigError: no scheduler answers.
        """
        if self._client is None:
            try:
                self._client = self._connect()
            except (OSError, ValueError) as error:
                raise ConfigError(f"execution: no Dask scheduler to be had: {error}") from error
        return self._client

    def map(
        self, task: Task, indices: Iterable[int], *, name: str, resources: Mapping[str, float]
    ) -> Generator[Mark | None]:
        """As `Executor.map`.

        Raises:
            ConfigError: no worker offers the resources asked for; Dask would wait for ever.
        """
        self._require(resources)
        queue, suspects = iter(indices), list[int]()
        running: Running = {}
        ended: SimpleQueue[Future] = SimpleQueue()
        token = f"{os.getpid()}-{time.monotonic_ns()}"
        lost = False
        try:
            while True:
                for index, alone in self._next(queue, suspects, running):
                    key = f"{name}-{index}-{token}{'-alone' if alone else ''}"
                    options = {"resources": dict(resources)} if resources else {}
                    future = self.client.submit(task, index, key=key, pure=False, **options)
                    running[future] = index, alone
                    future.add_done_callback(ended.put)
                if not running:
                    return
                done = _drain(ended)
                for future in done:
                    index, alone = running.pop(future)
                    mark, died = _outcome(future, index)
                    lost = lost or died
                    if died and not alone:
                        suspects.append(index)
                    else:
                        yield mark
                if not done:
                    yield None
        finally:
            self.client.cancel(list(running))
            if lost:
                # What follows on a cluster whose workers were killed hung once: make a new one.
                self.close()

    def _next(
        self, queue: Iterator[int], suspects: list[int], running: Running
    ) -> list[tuple[int, bool]]:
        """What to submit now: blocks, and whether each runs alone.

        Dask blames a worker's death on every block that was waiting there. So those blamed are
        tried once more, one by one with nothing beside them, before others go on.
        """
        if any(alone for _, alone in running.values()):
            return []
        if suspects:
            return [] if running else [(suspects.pop(), True)]
        room = max(0, self._window() - len(running))
        return [(index, False) for index in islice(queue, room)]

    def _window(self) -> int:
        threads = sum(self.client.nthreads().values())
        return max(2, AHEAD * threads)

    def _require(self, resources: Mapping[str, float]) -> None:
        if not resources:
            return
        info = self.client.scheduler_info(n_workers=-1)["workers"].values()
        offers = [worker.get("resources", {}) for worker in info]
        if not any(all(o.get(n, 0) >= v for n, v in resources.items()) for o in offers):
            raise ConfigError(
                f"no worker offers {dict(resources)}; the {len(offers)} workers offer {offers}. "
                "Start workers with --resources, or set device: cpu"
            )

    def close(self) -> None:
        """Close the client and, if it is ours, the cluster."""
        if self._client is None:
            return
        cluster = self._client.cluster
        self._client.close()
        if cluster is not None:
            cluster.close()
        self._client = None


def _drain(ended: SimpleQueue[Future]) -> list[Future]:
    """The futures that ended, however they did, waiting up to a tick for the first.

    distributed's own `wait` raises when a future was cancelled, and complains when Ctrl+C ends it.
    """
    try:
        found = [ended.get(timeout=TICK_SECONDS)]
        while not ended.empty():
            found.append(ended.get_nowait())
    except Empty:
        return []
    return found


def _outcome(future: Future, index: int) -> tuple[Mark, bool]:
    try:
        if future.status == "finished":
            mark: Mark = future.result()
            return mark, False
        error = future.exception()
        cause = f"{type(error).__name__}: {error}" if error else f"the task was {future.status}"
        return Mark(index, "failed", error=cause), type(error).__name__ == "KilledWorker"
    finally:
        future.release()


# Dask has its workers give memory back after every large array, and the next one pays for each page
# again: a third of the time of a network's pass on the CPU.
_WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": 2**31,
    "MALLOC_MMAP_THRESHOLD_": 2**32,
    # Memory that one thread frees is then there for all: a worker needs half as much.
    "MALLOC_ARENA_MAX": 1,
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
}


def local_client(workers: int) -> Client:
    """A cluster of `workers` single-threaded processes on this machine."""
    with dask.config.set({"distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT}):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            # A free port; None would mean the default one, with a warning if it is taken.
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            preload=[_DEAF],
            # The workers share the GPUs of this machine.
            resources={"GPU": 1} if any(Path("/dev").glob("nvidia[0-9]*")) else {},
        )
    return Client(cluster)


def make_executor(config: ExecutionConfig) -> Executor:
    """The executor that the configuration asks for; nothing is started before it is used."""
    if config.kind == "serial":
        return SerialExecutor()
    if config.kind == "local":
        return DaskExecutor(lambda: local_client(config.workers))
    address = config.address
    return DaskExecutor(lambda: Client(address))
