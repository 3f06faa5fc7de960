"""The segments of a volume of fragments: labels read through a lookup, where one is named."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import SparseMap
from pipeline.errors import InputError
from pipeline.geometry import Roi
from pipeline.stages.renaming import NAMED, kept_lookup, look_up
from pipeline.stages.run import Run
from pipeline.storage.source import read_labels


def read_segments(run: Run, roi: Roi) -> NDArray[np.uint64]:
    """The segments in a box: (Z, Y, X) uint64, renamed by `skeletonize.lookup` if there is one.

    Raises:
        InputError: the lookup lacks a fragment, and that is to be refused.
    """
    labels = read_labels(run.path("segments"), roi)
    lookup = segment_lookup(run)
    if lookup is None:
        return labels
    foreground = labels != 0
    labels[foreground] = rename_fragment_ids(labels[foreground], lookup, run)
    return labels


def segment_lookup(run: Run) -> SparseMap | None:
    """The lookup from fragments to segments; read once."""
    path = run.foreign("segment_lookup")
    return None if path is None else kept_lookup(path)


def rename_fragment_ids(
    fragments: NDArray[np.uint64], lookup: SparseMap, run: Run
) -> NDArray[np.uint64]:
    """The segment of each fragment, none of which is 0: (N,) uint64.

    Raises:
        InputError: the lookup lacks one, and that is to be refused.
    """

    def refusal(absent: NDArray[np.uint64]) -> str:
        return (
            f"{run.path('segment_lookup')}: lacks {len(absent)} fragments of "
            f"{run.path('segments')}, among them {absent[:NAMED].tolist()}: give a lookup that "
            "names all, or say what becomes of the others (skeletonize.lookup_missing, "
            "--lookup-missing keep or zero)"
        )

    return look_up(fragments, lookup, run.config.skeletonize.lookup_missing, refusal)


def renaming_of_segments(run: Run) -> dict[str, Any]:
    """The part of the configuration that this depends on, beside the lookup itself."""
    if run.foreign("segment_lookup") is None:
        return {}
    return {"lookup_missing": run.config.skeletonize.lookup_missing}


def check_segment_lookup(run: Run) -> None:
    """Refuse a lookup that cannot be read.

    Raises:
        InputError: names the file; or this run makes its segments itself.
    """
    lookup = run.config.skeletonize.lookup
    if lookup is None:
        return
    if not lookup.is_file():
        raise InputError(f"{lookup}: no such file (skeletonize.lookup)")
    if run.foreign("segments") is None:
        raise InputError(
            "skeletonize.lookup renames the labels of input.segments, but this run makes its "
            "segments itself; give `axonloom skeletonize` its fragments.zarr and a lookup"
        )
    segment_lookup(run)
