"""Work on the threads of this process, for functions that let go of the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_threads() -> int:
    """How many threads this process may keep busy.

    `OMP_NUM_THREADS` where it is set, as Dask and cluster managers do for their workers, which
    share a machine; else the processors that the process may use.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0))


def map_threads(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int | None = None
) -> list[Result]:
    """`function` of each item, in the order of the items; the first error ends it.

    Args:
        function: must be safe to call from several threads.
        items: what to call it with.
        threads: None: as many as the process may keep busy.
    """
    count = min(len(items), usable_threads() if threads is None else threads)
    if count <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(count) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
