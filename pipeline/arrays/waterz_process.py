"""The process that runs waterz, and the scores that its package ships.

waterz holds the interpreter lock for the whole merge, prints to standard output, and ends its
process when memory runs out; so it gets one of its own. It is started as
`python -m pipeline.arrays.waterz_process FOLDER` by `waterz_engine`, reads the arrays and a request
from the folder and leaves one file per cost there. Not `multiprocessing`: Dask's workers are
daemons, which may not have children of that kind.

Source: Funke et al. 2019, doi:10.1109/TPAMI.2018.2835450; package waterz, 0.10.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

# fmt: off
Scoring = Literal[
    "mean",
    "quantile_10", "quantile_15", "quantile_20", "quantile_25", "quantile_30", "quantile_35",
    "quantile_40", "quantile_45", "quantile_50", "quantile_55", "quantile_60", "quantile_65",
    "quantile_70", "quantile_75", "quantile_80", "quantile_85", "quantile_90", "quantile_95",
    "quantile_10_initmax", "quantile_15_initmax", "quantile_20_initmax", "quantile_25_initmax",
    "quantile_30_initmax", "quantile_35_initmax", "quantile_40_initmax", "quantile_45_initmax",
    "quantile_50_initmax", "quantile_55_initmax", "quantile_60_initmax", "quantile_65_initmax",
    "quantile_70_initmax", "quantile_75_initmax", "quantile_80_initmax", "quantile_85_initmax",
    "quantile_90_initmax", "quantile_95_initmax",
]
# fmt: on
"""The scores that waterz ships compiled: the mean, or a quantile of the affinities in 256 bins.

With `initmax` a contact starts with its largest affinity alone; what later falls together with it
adds its own. Without, every affinity counts.
"""

SCORINGS: tuple[str, ...] = get_args(Scoring)

AFFINITIES, FRAGMENTS, REQUEST = "affinities.npy", "fragments.npy", "request.json"

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def quantile_percent(scoring: str) -> int | None:
    """50 for "quantile_50" and "quantile_50_initmax"; None for the mean."""
    return None if scoring == "mean" else int(scoring.split("_")[1])


def scoring_function(scoring: str) -> str:
    """The C++ type that waterz knows a score by. Its cost is 1 - score: smaller merges first."""
    percent = quantile_percent(scoring)
    if percent is None:
        return "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>"
    init = "true" if scoring.endswith("_initmax") else "false"
    return (
        f"OneMinus<HistogramQuantileAffinity<RegionGraphType, {percent}, ScoreValue, 256, {init}>>"
    )


def segments_name(number: int) -> str:
    """The file of the request's cost `number`: (n,) uint64, the segment of fragments 1 to n."""
    return f"segments_{number}.npy"


def run(folder: Path) -> None:
    """Do what the request in `folder` asks.

    Reads (3, Z, Y, X) uint8 or uint16 affinities, (Z, Y, X) uint32 fragments 1 to n (0 background),
    and the request: the C++ scoring function and the increasing costs.
    Writes one file per cost, the smallest fragment of the segment of each fragment.

    Memory: 20 bytes per voxel, the files, and what waterz keeps for each fragment and edge.
    """
    request = json.loads((folder / REQUEST).read_text())
    end_with_parent()
    # What is not shipped, waterz compiles with this package; without it, it says what is missing.
    sys.modules["witty"] = None  # type: ignore[assignment]
    import waterz

    affinities = _in_unit_interval(np.load(folder / AFFINITIES, mmap_mode="r"))
    segmentation = np.load(folder / FRAGMENTS, mmap_mode="r").astype(np.uint64)
    voxels = _one_voxel_each(segmentation)
    results = waterz.agglomerate(
        affinities,
        request["costs"],
        fragments=segmentation,
        scoring_function=request["scoring_function"],
    )
    for number, _ in enumerate(results):  # each is `segmentation` itself, written over
        segments = segmentation.reshape(-1)[voxels]
        np.save(folder / segments_name(number), _smallest_members(segments))


def end_with_parent() -> None:
    """Have this process killed when the thread that started it ends without waiting for it.

    A worker that is killed for its memory must not leave the larger part of it behind. On Linux;
    elsewhere waterz finishes first.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _in_unit_interval(stored: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
    """Affinities q as q / 256 or q / 65536, which float32 holds exactly, unlike q / 255."""
    steps = 2 ** (8 * stored.dtype.itemsize)
    out = np.empty(stored.shape, np.float32)
    return np.multiply(stored, np.float32(1 / steps), out=out)


def _one_voxel_each(fragments: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(n,) the linear index of some voxel of each of the fragments 1 to n."""
    plane = fragments[0].size
    at = np.empty(int(fragments.max()) + 1, np.int64)
    for z, labels in enumerate(fragments):
        at[labels.reshape(-1)] = np.arange(z * plane, (z + 1) * plane)
    return at[1:]


def _smallest_members(segments: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(n,) for fragments 1 to n, given any name of the segment of each, at most n."""
    members = np.arange(1, segments.size + 1, dtype=np.uint64)
    smallest = np.empty(segments.size + 1, np.uint64)
    smallest[segments[::-1]] = members[::-1]  # of repeated places the last value stays
    return smallest[segments]


if __name__ == "__main__":
    run(Path(sys.argv[1]))
