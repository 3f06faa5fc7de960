"""The other agglomeration engine: waterz, for one block or a small volume, with quantile scores.

It stands beside `agglomerate` as a yardstick, and for the scores that the exact engine lacks. What
it gives is a function of its input, but blocks would show: it breaks ties by the order in which its
queue holds them, and its means are running means in float32.

How far its means are to be trusted. Affinities are handed over as q / 256 or q / 65536, which
float32 holds exactly, and thresholds are set so that a contact of one face is decided as in the
exact engine. Other means are rounded at every face and every merge. The largest errors seen, in
units of a 16-bit affinity: 0.003 with 100 faces, 0.7 with 1,000, 7 with 10,000, 110 with a million,
4,200 (6 %) with ten million. Scores that are closer than that may merge in either order. A score of
quantiles is one of 256 bins: exact, and often tied.

The arrays pass to a process of their own (`waterz_process`) through files in a temporary folder,
which is gone when the call returns: the one place in `pipeline.arrays` that opens files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import (
    Affinities,
    Labels,
    SparseMap,
    affinity_scale,
    quantised_threshold,
)
from pipeline.arrays.relabel import apply_lookup, count_voxels
from pipeline.arrays.waterz_process import (
    AFFINITIES,
    FRAGMENTS,
    REQUEST,
    SCORINGS,
    Scoring,
    quantile_percent,
    scoring_function,
    segments_name,
)
from pipeline.errors import DtypeError, InputError, ShapeError, StageError

MAX_FRAGMENTS = 2**32 - 1
"""They pass as 32-bit numbers; waterz itself keeps about 100 bytes for each, edges not counted."""

_MAX_RANK = 2**31
"""waterz computes percent * faces, the rank of a quantile, in 32 bits and would wrap around."""

_LAST_LINES = 8


def agglomerate_with_waterz(
    affinities: Affinities,
    fragments: Labels,
    thresholds: Sequence[float],
    *,
    scoring: Scoring = "mean",
) -> dict[float, SparseMap]:
    """The segment of every fragment that is not its own segment, at each threshold, by waterz.

    The best edge merges first while score >= threshold. The score of a contact is the mean of its
    affinities / scale; or, for "quantile_Q", b / 255, where b is the affinity of rank
    floor(Q * faces / 100) + 1 from below (of uint16 affinities their upper 8 bits).

    Args:
        affinities: (C >= 3, Z, Y, X) uint8 or uint16; channel d < 3 joins a voxel to its
            predecessor along axis d and is ignored on the first plane along d. Not changed.
        fragments: (Z, Y, X) uint64, any ids; 0 is background. Not changed.
        thresholds: lowest scores that merge, in [0, 1]; any order.
        scoring: one of `SCORINGS`. Nothing else is tried: waterz would start a compiler.

    Returns:
        For each threshold (ids, segments) uint64, ids strictly increasing; a segment is its
        smallest fragment, fragments that are their own segment are left out.

    Memory: in the process that runs waterz 25 bytes per voxel, and about 0.25 KB (quantiles: 2 KB)
    per edge of the region graph; here one plane beside the arrays given. In the folder for
    temporary files (TMPDIR) 7 bytes per voxel, 10 with uint16.

    Raises:
        DtypeError: affinities are neither uint8 nor uint16, or fragments not uint64.
        ShapeError: shapes disagree.
        InputError: no threshold, one outside [0, 1], another scoring, more fragments or (for
            quantiles) contact faces than waterz can take.
        StageError: the process failed; names its exit code or signal and its last lines.

    Source: Funke et al. 2019, doi:10.1109/TPAMI.2018.2835450; package waterz, 0.10.
    """
    _check(affinities, fragments, thresholds, scoring)
    costs = {float(t): merge_cost(t, affinities.dtype, scoring) for t in thresholds}
    ids, _ = count_voxels(fragments)
    _check_size(fragments, len(ids), scoring)
    if len(ids) < 2:
        return {t: (np.zeros(0, np.uint64), np.zeros(0, np.uint64)) for t in costs}
    with tempfile.TemporaryDirectory(prefix="axonloom-waterz-") as name:
        folder = Path(name)
        ordered = sorted(set(costs.values()))
        _write_request(folder, ordered, scoring)
        _write_arrays(folder, affinities, fragments, ids)
        _run(folder)
        files = {cost: folder / segments_name(k) for k, cost in enumerate(ordered)}
        return {t: _lookup(ids, np.load(files[cost])) for t, cost in costs.items()}


def merge_cost(threshold: float, dtype: np.dtype, scoring: Scoring = "mean") -> float:
    """The float32 cost that a contact must stay below in waterz to merge at `threshold`.

    The cost is 1 - score in float32, scores being q / 256 or q / 65536. A contact of one face
    passes exactly if its affinity / scale >= threshold in float64; other means are decided within
    2^-24 of the threshold, beside what waterz rounds itself. Quantiles pass exactly: the score of
    bin b is (b + 1/2) / 256.
    """
    if scoring != "mean":
        return 1 - quantised_threshold(threshold, np.uint8) / 256
    scale = affinity_scale(dtype)
    steps = scale + 1
    lowest = float(np.float32(threshold * scale / steps))
    above = float(np.nextafter(np.float32(1 - lowest), np.float32(2)))  # costs are below, not at
    failing = quantised_threshold(threshold, dtype) - 1  # the next integer that must not pass
    return min(above, 1 - failing / steps)


def _check(
    affinities: Affinities, fragments: Labels, thresholds: Iterable[float], scoring: str
) -> None:
    affinity_scale(affinities.dtype)
    if fragments.dtype != np.uint64:
        raise DtypeError(f"fragments are uint64, got {fragments.dtype}")
    found = affinities.shape
    if fragments.ndim != 3 or len(found) != 4 or found[0] < 3 or found[1:] != fragments.shape:
        raise ShapeError(
            "expected affinities (C >= 3, Z, Y, X) and fragments (Z, Y, X) of the same extent, got "
            f"{found} and {fragments.shape}"
        )
    levels = list(thresholds)
    if not levels:
        raise InputError("no threshold to agglomerate to; give at least one, in [0, 1]")
    for threshold in levels:
        if not 0.0 <= threshold <= 1.0:
            raise InputError(f"a threshold lies in [0, 1], got {threshold}")
    if scoring not in SCORINGS:
        raise InputError(
            f"waterz has no compiled score {scoring!r}, and none is compiled here; it has "
            f"{', '.join(SCORINGS)}"
        )


def _check_size(fragments: Labels, count: int, scoring: str) -> None:
    if count > MAX_FRAGMENTS:
        raise InputError(
            f"{count} fragments, waterz is given {MAX_FRAGMENTS} at most; use the exact engine"
        )
    percent = quantile_percent(scoring)
    if percent is None:
        return
    faces = int(_contact_faces(np.ascontiguousarray(fragments)))
    if faces * percent >= _MAX_RANK:
        raise InputError(
            f"the fragments touch at {faces} faces; waterz finds the quantile {percent} of up to "
            f"{(_MAX_RANK - 1) // percent}: cut a smaller volume, or use the mean"
        )


@njit(cache=True, nogil=True)
def _contact_faces(fragments: np.ndarray) -> int:
    """How many voxel pairs carry two different labels, neither background."""
    faces = 0
    for z in range(fragments.shape[0]):
        for y in range(fragments.shape[1]):
            for x in range(fragments.shape[2]):
                here = fragments[z, y, x]
                if here == 0:
                    continue
                before = fragments[z - 1, y, x] if z > 0 else here
                faces += before != here and before != 0
                before = fragments[z, y - 1, x] if y > 0 else here
                faces += before != here and before != 0
                before = fragments[z, y, x - 1] if x > 0 else here
                faces += before != here and before != 0
    return faces


def _write_request(folder: Path, costs: list[float], scoring: str) -> None:
    request = {"scoring_function": scoring_function(scoring), "costs": costs}
    (folder / REQUEST).write_text(json.dumps(request))


def _write_arrays(
    folder: Path, affinities: Affinities, fragments: Labels, ids: NDArray[np.uint64]
) -> None:
    """Fragments pass as 1 to n, in their order: waterz keeps a row for every number up to n."""
    np.save(folder / AFFINITIES, affinities[:3])
    numbers = np.arange(1, len(ids) + 1, dtype=np.uint64)
    header = {"descr": "<u4", "fortran_order": False, "shape": fragments.shape}
    with (folder / FRAGMENTS).open("wb") as file:  # a full disk raises here; a map would kill us
        np.lib.format.write_array_header_1_0(file, header)
        for plane in fragments:
            file.write(apply_lookup(plane, ids, numbers).astype("<u4").data)


def _run(folder: Path) -> None:
    said = folder / "stderr"
    with said.open("wb") as stderr:
        done = subprocess.run(
            _command(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=_environment(),
            check=False,
        )
    if done.returncode != 0:
        raise StageError(_failure(done.returncode, said.read_text(errors="replace")))


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "pipeline.arrays.waterz_process", str(folder)]


def _environment() -> dict[str, str]:
    """That of this process, with the same packages, and with waterz's compiled scores in use."""
    environment = {k: v for k, v in os.environ.items() if k != "WATERZ_NO_PREBUILT"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return environment


def _failure(code: int, said: str) -> str:
    how = f"exit code {code}" if code > 0 else f"signal {-code} ({signal.strsignal(-code)})"
    lines = "\n".join(said.strip().splitlines()[-_LAST_LINES:]) or "(nothing)"
    memory = ""
    if code in (-signal.SIGKILL, -signal.SIGABRT) or "MemoryError" in said:
        memory = "; probably out of memory: take a smaller block, or the exact engine"
    return f"the process that runs waterz ended with {how}{memory}. The last it said:\n{lines}"


def _lookup(ids: NDArray[np.uint64], segments: NDArray[np.uint64]) -> SparseMap:
    """`segments` numbers the smallest member of the segment of each of `ids`, from 1."""
    smallest = ids[segments.astype(np.int64) - 1]
    merged = smallest != ids
    return ids[merged], smallest[merged]
