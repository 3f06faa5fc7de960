"""Merge histories of groups on disk, and the history of the volume made of them.

The rows of a group are kept by buckets of the score, so that the whole history is put in order one
bucket at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.agglomerate import MergeHistory, merge_histories
from pipeline.stages.history import HISTORY_COLUMNS
from pipeline.storage.tables import Columns, read_arrays, write_arrays, write_long_table

# A score in [0, 1] belongs to bucket floor(16 * score). Quotients of integers below 2^53 round
# in their order, so the buckets are in the exact order too.
_BUCKETS = 16


def write_run(path: Path, history: MergeHistory) -> None:
    """Keep the history of one group."""
    scores = history.affinity_sum / history.face_count / history.scale
    bucket = np.minimum((scores * _BUCKETS).astype(np.int64), _BUCKETS - 1)
    arrays: dict[str, NDArray[np.generic]] = {}
    for number in np.unique(bucket).tolist():
        own = bucket == number
        for name in HISTORY_COLUMNS:
            arrays[f"{name}_{number}"] = getattr(history, name)[own]
    write_arrays(path, {"reach": np.array([history.threshold, history.scale]), **arrays})


def read_run(path: Path) -> MergeHistory:
    """What `write_run` wrote."""
    return _history(read_arrays(path), range(_BUCKETS - 1, -1, -1))


def write_whole_history(path: Path, runs: Sequence[Path]) -> int:
    """Write the history that the runs of all groups make up; gives the number of merges.

    Args:
        path: of the table, as `read_history` takes it.
        runs: what `write_run` wrote, in any order; at least one.
    """
    reach = read_arrays(runs[0], ("reach",))["reach"]
    meta = {"threshold": float(reach[0]), "scale": int(reach[1])}
    return write_long_table(path, _parts(runs), dict.fromkeys(HISTORY_COLUMNS, np.uint64), meta)


def _parts(runs: Sequence[Path]) -> Iterator[Columns]:
    for number in range(_BUCKETS - 1, -1, -1):
        names = {"reach", *(f"{name}_{number}" for name in HISTORY_COLUMNS)}
        whole = merge_histories([_history(read_arrays(run, names), [number]) for run in runs])
        yield {name: getattr(whole, name) for name in HISTORY_COLUMNS}


def _history(arrays: Columns, buckets: Sequence[int]) -> MergeHistory:
    columns = {}
    for name in HISTORY_COLUMNS:
        parts = [arrays[f"{name}_{n}"] for n in buckets if f"{name}_{n}" in arrays]
        columns[name] = np.concatenate([np.zeros(0, np.uint64), *parts])
    threshold, scale = arrays["reach"]
    return MergeHistory(**columns, threshold=float(threshold), scale=int(scale))
