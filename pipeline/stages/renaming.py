"""What becomes of the labels of a segmentation before they are scored: a lookup, and exclusions.

Tables hold labels as they are stored in the volume; they are renamed when they are scored, so
another lookup or other exclusions cost no look at a voxel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.contingency import Contingency, rename_fragments
from pipeline.arrays.labels import SparseMap, among, distinct
from pipeline.arrays.relabel import apply_lookup
from pipeline.errors import InputError
from pipeline.stages.run import Run
from pipeline.storage.lookup_files import missing_ids, read_ids, read_lookup

# Of labels that are missing so many are named.
NAMED = 5


@dataclass(frozen=True, eq=False)
class Renaming:
    """How labels are renamed.

    Attributes:
        lookup: fragment to segment, or None.
        missing: what becomes of labels that the lookup does not name: "keep", "zero" or "raise".
        excluded: (E,) uint64, ascending, without 0, which is background anyway: segments that count
            as background; None: not asked for.
    """

    lookup: SparseMap | None = None
    missing: str = "keep"
    excluded: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, run: Run) -> Renaming:
        """As the configuration says; files are read once.

        Raises:
            InputError: a file cannot be used.
        """
        lookup, excluded = run.foreign("source_lookup"), run.foreign("source_excluded")
        return cls(
            None if lookup is None else kept_lookup(lookup),
            run.config.evaluate.lookup_missing,
            None if excluded is None else _ids(excluded, excluded.stat().st_mtime_ns),
        )

    def apply(self, labels: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The names of labels of any shape.

        Raises:
            InputError: the lookup lacks one of them, and that is to be refused.
        """
        labels = self._looked_up(labels)
        if self.excluded is None:
            return labels
        return np.where(among(labels, self.excluded), np.uint64(0), labels)

    def _looked_up(self, labels: NDArray[np.uint64]) -> NDArray[np.uint64]:
        if self.lookup is None:
            return labels
        return look_up(labels, self.lookup, self.missing, _refusal)

    def absent(self, labels: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The distinct labels, ascending and not 0, that the lookup does not name."""
        if self.lookup is None:
            return np.zeros(0, np.uint64)
        return missing_ids(labels, self.lookup)

    def rename_table(self, table: Contingency) -> Contingency:
        """The table of the segments."""
        fragments = distinct(table.fragment)
        return rename_fragments(table, fragments, self.apply(fragments))

    def conventions(self, labels: NDArray[np.uint64], missing: int) -> dict[str, str]:
        """In words, what was done with these labels; nothing where nothing was.

        `missing` is how many distinct ones the lookup does not name.
        """
        words = {}
        if self.lookup is not None:
            words["lookup"] = (
                f"labels renamed by a lookup of {len(self.lookup[0])} rows; "
                f"{missing} labels that it does not name {self._fate(labels, missing)}"
            )
        if self.excluded is not None:
            hit = int(among(self._looked_up(labels), self.excluded).sum())
            words["excluded"] = (
                f"{len(self.excluded)} segments count as background: {hit} nodes lie on them"
            )
        return words

    def _fate(self, labels: NDArray[np.uint64], missing: int) -> str:
        """What becomes of the labels that the lookup does not name."""
        if self.missing != "keep":
            return {"zero": "count as background", "raise": "are refused"}[self.missing]
        if not missing or self.excluded is None:
            return "keep their id"
        # Of one that is excluded it would be wrong to say that it keeps its id.
        excluded = int(among(self.absent(labels), self.excluded).sum())
        return "keep their id" + (f", {excluded} of them being excluded" if excluded else "")


def look_up(
    labels: NDArray[np.uint64],
    lookup: SparseMap,
    missing: str,
    refusal: Callable[[NDArray[np.uint64]], str],
) -> NDArray[np.uint64]:
    """The names of labels of any shape.

    Args:
        labels: 0 is background.
        lookup: label to name.
        missing: what becomes of labels that it does not name: "keep", "zero" or "raise".
        refusal: what to say of the absent labels, distinct and ascending, where they are refused.

    Raises:
        InputError: one is absent, and that is to be refused.
    """
    renamed = apply_lookup(labels, *lookup)
    if missing == "keep":
        return renamed
    unnamed = (labels != 0) & ~among(labels, lookup[0])
    if missing == "raise" and unnamed.any():
        raise InputError(refusal(distinct(labels[unnamed])))
    renamed[unnamed] = 0
    return renamed


def _refusal(absent: NDArray[np.uint64]) -> str:
    return (
        f"the lookup lacks {len(absent)} labels of the segmentation, the first "
        f"{absent[:NAMED].tolist()}: give one that names all, or say what becomes of the others "
        "(evaluate.lookup_missing, --lookup-missing keep or zero)"
    )


def renaming_parameters(run: Run) -> dict[str, Any]:
    """The part of the configuration that a renaming depends on, beside its files."""
    if run.foreign("source_lookup") is None:
        return {}
    return {"lookup_missing": run.config.evaluate.lookup_missing}


def check_renaming(run: Run) -> None:
    """Refuse a lookup or a list of ids that cannot be read.

    Raises:
        InputError: names the file.
    """
    for name in ("lookup", "exclude_ids"):
        path = getattr(run.config.evaluate, name)
        if path is not None and not path.is_file():
            raise InputError(f"{path}: no such file (evaluate.{name})")
    Renaming.of(run)


def kept_lookup(path: Path) -> SparseMap:
    """A lookup, read once as long as its file stays."""
    return _lookup(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _lookup(path: Path, _mtime_ns: int) -> SparseMap:
    return read_lookup(path)


@lru_cache(maxsize=2)
def _ids(path: Path, _mtime_ns: int) -> NDArray[np.uint64]:
    ids = read_ids(path)
    # Background is no segment: neither its nodes nor those of labels set to 0 count as excluded.
    return ids[ids != 0]
