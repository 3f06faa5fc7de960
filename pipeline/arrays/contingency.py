"""How many voxels each fragment shares with each true object, and the scores that follow.

A contingency table has a row (fragment, truth, voxels) for every pair that occurs. Tables of
disjoint boxes add up to that of their union. Renaming the fragments by the lookup of a threshold
gives the table of its segments: any threshold is scored without looking at a voxel again.

Conventions, as the scores are commonly computed in connectomics:

- Voxels whose truth is 0 are left out, whatever the segmentation says there; so are those whose
  truth is IGNORE. A merge with true background is therefore not seen.
- Background of the segmentation, 0, on a true object is one segment like any other, and scored.
  (CREMI's own script counts each such voxel as a segment of its own, in adapted Rand alone.)
- Logarithms are to base 2: entropies are in bits.
- Pairs are unordered pairs of different voxels.

Source: variation of information, Meila 2007, doi:10.1016/j.jmva.2006.11.013; adjusted Rand index,
Hubert & Arabie 1985, doi:10.1007/BF01908075; adapted Rand error, Arganda-Carreras et al. 2015,
doi:10.3389/fnana.2015.00142.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE, Labels, SparseMap
from pipeline.arrays.relabel import apply_lookup, count_voxels, sum_counts
from pipeline.errors import DataError, DtypeError, InputError, ShapeError

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_HALF = np.uint64(32)
# Rows that are gathered before they are added up: a few hundred megabytes at most.
_PENDING_ROWS = 2**22

VoxelScores = dict[str, float | int]


@dataclass(frozen=True, eq=False)
class Contingency:
    """Voxels per pair; sorted by (fragment, truth), each pair once.

    Attributes:
        fragment: (n,) uint64, fragment or segment; 0 is background of the segmentation.
        truth: (n,) uint64, never 0 or IGNORE.
        voxels: (n,) uint64, at least 1.
    """

    fragment: NDArray[np.uint64]
    truth: NDArray[np.uint64]
    voxels: NDArray[np.uint64]

    def __post_init__(self) -> None:
        for name in ("fragment", "truth", "voxels"):
            column = np.ascontiguousarray(getattr(self, name), np.uint64)
            object.__setattr__(self, name, column)
            if column.shape != (self.fragment.size,):
                raise ShapeError(f"{column.shape} {name} for {self.fragment.size} fragments")
        if len(self) and (not self.truth.all() or (self.truth == IGNORE).any()):
            raise InputError("a contingency table leaves out voxels without truth (0, IGNORE)")

    def __len__(self) -> int:
        return int(self.fragment.size)

    @classmethod
    def empty(cls) -> Contingency:
        """A table without rows."""
        return cls(*(np.zeros(0, np.uint64) for _ in range(3)))


def count_contingency(fragments: Labels, truth: Labels) -> Contingency:
    """The table of a box: one pass, time linear in its voxels.

    Args:
        fragments: uint64, any shape; 0 is background and counts.
        truth: uint64, the same shape; voxels of 0 and of IGNORE are left out.

    Raises:
        DtypeError: not uint64: no id may be rounded on the way.
        ShapeError: the shapes differ.
    """
    for name, labels in (("fragments", fragments), ("truth", truth)):
        if labels.dtype != np.uint64:
            raise DtypeError(f"{name}: labels are uint64, got {labels.dtype}")
    if fragments.shape != truth.shape:
        raise ShapeError(f"fragments of shape {fragments.shape}, truth of shape {truth.shape}")
    first, second, voxels = _count_pairs(
        np.ascontiguousarray(fragments).reshape(-1), np.ascontiguousarray(truth).reshape(-1)
    )
    used = voxels != 0
    return _canonical(first[used], second[used], voxels[used])


@njit(cache=True, nogil=True)
def _slot(first: np.ndarray, second: np.ndarray, voxels: np.ndarray, a: int, b: int) -> int:
    """Where the pair is, or the free slot where it belongs; free is what has no voxel."""
    mask = voxels.size - 1
    mixed = (a * _SPREAD) ^ (b * _MIX)
    mixed ^= mixed >> _HALF
    slot = np.int64((mixed * _SPREAD) >> _HALF) & mask
    while voxels[slot] != 0 and (first[slot] != a or second[slot] != b):
        slot = (slot + 1) & mask
    return int(slot)


@njit(cache=True, nogil=True)
def _count_pairs(
    fragments: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Open hash table of pairs; slots without voxels are free."""
    first = np.zeros(1024, np.uint64)
    second = np.zeros(1024, np.uint64)
    voxels = np.zeros(1024, np.uint64)
    at, used = _fill(fragments, truth, 0, first, second, voxels, 0)
    while at < truth.size:
        first, second, voxels = _grown(first, second, voxels)
        at, used = _fill(fragments, truth, at, first, second, voxels, used)
    return first, second, voxels


@njit(cache=True, nogil=True)
def _fill(
    fragments: np.ndarray,
    truth: np.ndarray,
    i: int,
    first: np.ndarray,
    second: np.ndarray,
    voxels: np.ndarray,
    used: int,
) -> tuple[int, int]:
    """Count from voxel `i` until the table is half full; the next voxel, and the slots in use.

    A function of its own: a loop that could replace its arrays takes ten times as long a voxel.
    """
    while i < truth.size and 2 * used <= voxels.size:
        b = truth[i]
        if b == 0 or b == IGNORE:
            i += 1
            continue
        a = fragments[i]
        begin = i
        # Runs of equal pairs along x are looked up once.
        while i < truth.size and truth[i] == b and fragments[i] == a:
            i += 1
        slot = _slot(first, second, voxels, a, b)
        if voxels[slot] == 0:
            first[slot], second[slot] = a, b
            used += 1
        voxels[slot] += np.uint64(i - begin)
    return i, used


@njit(cache=True, nogil=True)
def _grown(
    first: np.ndarray, second: np.ndarray, voxels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same table with twice the slots."""
    new_first = np.zeros(2 * first.size, np.uint64)
    new_second = np.zeros(2 * first.size, np.uint64)
    new_voxels = np.zeros(2 * first.size, np.uint64)
    for k in range(voxels.size):
        if voxels[k] != 0:
            slot = _slot(new_first, new_second, new_voxels, first[k], second[k])
            new_first[slot], new_second[slot] = first[k], second[k]
            new_voxels[slot] = voxels[k]
    return new_first, new_second, new_voxels


def _canonical(
    fragment: NDArray[np.uint64], truth: NDArray[np.uint64], voxels: NDArray[np.uint64]
) -> Contingency:
    """Rows sorted by (fragment, truth), equal pairs added."""
    order = np.lexsort((truth, fragment))
    fragment, truth, voxels = fragment[order], truth[order], voxels[order]
    if len(order):
        new = (fragment[1:] != fragment[:-1]) | (truth[1:] != truth[:-1])
        first = np.flatnonzero(np.append(True, new))
        fragment, truth = fragment[first], truth[first]
        voxels = np.add.reduceat(voxels, first)
    return Contingency(fragment, truth, voxels)


def sum_contingency(tables: Iterable[Contingency]) -> Contingency:
    """The table of all boxes together, whatever their order; no more is held than that and a bit.

    Args:
        tables: of disjoint boxes; may be a generator that reads them one by one.
    """
    total = Contingency.empty()
    pending: list[Contingency] = []
    rows = 0
    for table in tables:
        pending.append(table)
        rows += len(table)
        # At least as many as the total has, so that a row is sorted few times.
        if rows > max(len(total), _PENDING_ROWS):
            total, pending, rows = _concatenated([total, *pending]), [], 0
    return _concatenated([total, *pending])


def _concatenated(tables: list[Contingency]) -> Contingency:
    return _canonical(
        np.concatenate([table.fragment for table in tables]),
        np.concatenate([table.truth for table in tables]),
        np.concatenate([table.voxels for table in tables]),
    )


def rename_fragments(
    table: Contingency, ids: NDArray[np.uint64], targets: NDArray[np.uint64]
) -> Contingency:
    """The table of the segments that a lookup makes of the fragments.

    Args:
        table: not changed.
        ids: (n,) uint64, strictly increasing; fragments that are not listed keep their id.
        targets: (n,) uint64.
    """
    return _canonical(apply_lookup(table.fragment, ids, targets), table.truth, table.voxels)


def score_contingency(table: Contingency) -> VoxelScores:
    """The scores of a segmentation against dense truth; see the conventions above.

    Returns:
        voxels: how many are scored: those with truth.
        omitted_voxels: those of them that are background of the segmentation.
        voi_split, voi_merge: H(segment | truth) and H(truth | segment), in bits; 0 is best.
        voi: their sum.
        ari: adjusted Rand index; 1 is best, chance is 0.
        adapted_rand_precision: of the pairs of voxels that share a segment, those that share a
            true object too; merges lower it. 1 if no pair shares a segment.
        adapted_rand_recall: of the pairs that share a true object, those that share a segment too;
            splits lower it. 1 if no pair shares a true object.
        adapted_rand_error: 1 - F, F being their harmonic mean; 0 is best.

    Raises:
        DataError: no voxel has truth.
    """
    if not len(table):
        raise DataError("no voxel has a true label: nothing can be scored")
    _, of_segment = sum_counts(table.fragment, table.voxels)
    _, of_truth = sum_counts(table.truth, table.voxels)
    total = int(table.voxels.sum())
    joint = _entropy_sum(table.voxels)
    split = max(0.0, (_entropy_sum(of_truth) - joint) / total)
    merge = max(0.0, (_entropy_sum(of_segment) - joint) / total)
    both, in_segment, in_truth = (_pairs(n) for n in (table.voxels, of_segment, of_truth))
    precision, recall, error = _adapted_rand(both, in_segment, in_truth)
    return {
        "voxels": total,
        "omitted_voxels": int(table.voxels[table.fragment == 0].sum()),
        "voi_split": split,
        "voi_merge": merge,
        "voi": split + merge,
        "ari": _adjusted_rand(both, in_segment, in_truth, total * (total - 1) / 2),
        "adapted_rand_precision": precision,
        "adapted_rand_recall": recall,
        "adapted_rand_error": error,
    }


def count_background(fragments: Labels, truth: Labels) -> SparseMap:
    """The labels where the truth is background: (ids, voxels), ids ascending, 0 among them.

    Args:
        fragments: uint64, any shape.
        truth: uint64, the same shape; only voxels of 0 are looked at.
    """
    labels = fragments[truth == 0]
    ids, voxels = count_voxels(labels)
    empty = np.uint64(labels.size - int(voxels.sum()))
    if not empty:
        return ids, voxels
    return np.append(np.uint64(0), ids), np.append(empty, voxels)


def score_foreground(table: Contingency, background: SparseMap) -> VoxelScores:
    """How well the foreground, any segment at all, agrees with that of the truth.

    Args:
        table: of the voxels that have a true object.
        background: (ids, voxels) where the truth is background, see `count_background`.

    Returns:
        accuracy: share of the known voxels that are foreground, or background, in both.
        dice: 2 tp / (2 tp + fp + fn); 1 if neither has foreground.
        background_voxels: how many voxels are background in the truth.
    """
    hit, beyond = table.fragment != 0, background[0] != 0
    tp, fn = int(table.voxels[hit].sum()), int(table.voxels[~hit].sum())
    fp, tn = int(background[1][beyond].sum()), int(background[1][~beyond].sum())
    known, size = tp + fn + fp + tn, 2 * tp + fp + fn
    return {
        "accuracy": (tp + tn) / known if known else 1.0,
        "dice": 2 * tp / size if size else 1.0,
        "background_voxels": fp + tn,
    }


def _entropy_sum(counts: NDArray[np.uint64]) -> float:
    """Sum of n log2 n, rounded once, whatever the order."""
    numbers = counts.astype(np.float64)
    return math.fsum((numbers * np.log2(numbers)).tolist())


def _pairs(counts: NDArray[np.uint64]) -> float:
    """How many pairs of voxels lie in one group of each size."""
    numbers = counts.astype(np.float64)
    return math.fsum((numbers * (numbers - 1)).tolist()) / 2


def _adjusted_rand(both: float, in_segment: float, in_truth: float, all_pairs: float) -> float:
    if not all_pairs:
        return 1.0
    expected = in_segment * in_truth / all_pairs
    best = (in_segment + in_truth) / 2
    # Equal: both are one group, or both are single voxels, and agree.
    return (both - expected) / (best - expected) if best != expected else 1.0


def _adapted_rand(both: float, in_segment: float, in_truth: float) -> tuple[float, float, float]:
    """Precision, recall and error from numbers of pairs."""
    precision = both / in_segment if in_segment else 1.0
    recall = both / in_truth if in_truth else 1.0
    whole = precision + recall
    return precision, recall, 1 - (2 * precision * recall / whole if whole else 0.0)


def describe_voxel_conventions() -> dict[str, str]:
    """The conventions of the voxel scores in words, by topic."""
    return {
        "voxels": (
            "voxels with truth 0 or the ignore label (2^64 - 1) are left out; background of the "
            "segmentation on a true object is one segment like any other, and scored"
        ),
        "accuracy, dice": (
            "of foreground, which is any segment, over all voxels whose truth is known, background "
            "too"
        ),
        "voi": "bits: voi_split = H(segment | truth), voi_merge = H(truth | segment), voi the sum",
        "ari": "adjusted Rand index (Hubert & Arabie 1985) over the same voxels",
        "adapted_rand": (
            "unordered pairs of different voxels; precision: of the pairs in one segment those in "
            "one true object, recall: of the pairs in one true object those in one segment; error: "
            "1 - their harmonic mean (Arganda-Carreras et al. 2015)"
        ),
    }
