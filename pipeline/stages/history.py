"""The merge history of a segmentation on disk: one table, from which every threshold follows."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.arrays.agglomerate import MergeHistory
from pipeline.errors import DataError
from pipeline.storage.tables import read_meta, read_table

HISTORY_COLUMNS = ("affinity_sum", "face_count", "key_u", "key_v", "kept", "absorbed")


def read_history(path: Path) -> MergeHistory:
    """A merge history, in however many batches it was written.

    Raises:
        DataError: the file is missing or damaged, or is no merge history.
    """
    meta, columns = read_meta(path), read_table(path)
    _require(path, {*meta, *columns})
    arrays = {name: columns[name].astype(np.uint64, copy=False) for name in HISTORY_COLUMNS}
    return MergeHistory(**arrays, threshold=float(meta["threshold"]), scale=int(meta["scale"]))


def history_reach(path: Path) -> float:
    """The threshold down to which a history was recorded.

    Raises:
        DataError: as `read_history`.
    """
    return _reach(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _reach(path: Path, _mtime_ns: int) -> float:
    meta = read_meta(path)
    _require(path, {*meta, *HISTORY_COLUMNS})
    return float(meta["threshold"])


def _require(path: Path, found: set[str]) -> None:
    missing = [field.name for field in fields(MergeHistory) if field.name not in found]
    if missing:
        raise DataError(f"{path}: not a merge history, it has no {', '.join(missing)}")
