"""What is counted on skeletons, from tables of their runs; shared by scores and curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.exact_sums import sum_groups
from pipeline.arrays.metrics_sums import Measures, Sums, add_sums, measures, ratio
from pipeline.arrays.skeleton_forest import Forest
from pipeline.arrays.skeleton_runs import Merges, RunTable


@dataclass(frozen=True, eq=False)
class Judged:
    """S skeletons with their labels after repair.

    Attributes:
        runs: of these labels.
        repaired, ambiguous: (S,) numbers of nodes.
        outside: (S,) number of nodes outside the volume.
    """

    runs: RunTable
    repaired: Sequence[int]
    ambiguous: Sequence[int]
    outside: Sequence[int]


def sum_up(
    forests: Sequence[Forest], judged: Judged, merges: Merges, ffn_square_nm: Sequence[float]
) -> list[Sums]:
    """The sums of each skeleton.

    Args:
        forests: of the S skeletons.
        judged: what is on them.
        merges: of `judged.runs`.
        ffn_square_nm: (S,) of `ffn_squares`.
    """
    runs, count = judged.runs, len(forests)
    hit = merges.hits(runs.piece_label)
    skeleton, edges = runs.piece_skeleton[~hit], runs.piece_edges[~hit]
    columns = zip(
        forests,
        _add(edges, skeleton, count),
        runs.omit.tolist(),
        runs.split.tolist(),
        _add(runs.piece_edges[hit], runs.piece_skeleton[hit], count),
        runs.splits.tolist(),
        np.bincount(runs.piece_skeleton[hit], minlength=count).tolist(),
        judged.repaired,
        judged.ambiguous,
        judged.outside,
        _add(edges**2, skeleton, count),
        sum_groups(runs.piece_nm[~hit] ** 2, skeleton, count).tolist(),
        ffn_square_nm,
        strict=True,
    )
    return [_sums(*row) for row in columns]


def _add(values: NDArray[np.int64], groups: NDArray[np.int64], count: int) -> list[int]:
    added = np.zeros(count, np.int64)
    np.add.at(added, groups, values)
    return added.tolist()


def _sums(
    forest: Forest,
    correct: int,
    omit: int,
    split: int,
    merged: int,
    splits: int,
    merged_components: int,
    repaired: int,
    ambiguous: int,
    outside: int,
    square_edges: int,
    square_nm: float,
    ffn_square_nm: float,
) -> Sums:
    edges, length = forest.edge_count, forest.cable_nm
    return Sums(
        edges=edges,
        correct=correct,
        omit=omit,
        split=split,
        merged=merged,
        splits=splits,
        weighted_splits=splits * edges,
        merged_components=merged_components,
        repaired=repaired,
        ambiguous=ambiguous,
        outside=outside,
        square_edges=square_edges,
        share_edges=ratio(square_edges, edges),
        length_nm=length,
        square_length=length**2,
        square_nm=square_nm,
        share_nm=ratio(square_nm, length),
        ffn_square_nm=ffn_square_nm,
    )


def ffn_squares(before: RunTable, merges: Merges) -> list[float]:
    """(S,) of each skeleton the squared lengths of its labels that are not merging, added up.

    Args:
        before: runs of the labels before repair.
        merges: of these.
    """
    kept = ~merges.hits(before.labels)
    squares = before.label_nm[kept] ** 2
    return sum_groups(squares, before.label_skeleton[kept], before.skeletons).tolist()


def overall_measures(sums: Sequence[Sums], merges: Merges) -> Measures:
    """The measures of all skeletons together."""
    added = add_sums(sums)
    labels = len(merges.labels)
    pairs = int(merges.partners.sum()) // 2
    row = measures(added, len(merges.label_index) - labels, labels, pairs)
    row["splits_per_neuron"] = ratio(added.weighted_splits, added.edges)
    return row
