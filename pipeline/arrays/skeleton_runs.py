"""Runs of equal label along skeletons, and the labels that run on more than one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import among
from pipeline.arrays.skeleton_forest import (
    LENGTH_SLACK_NM,
    Floats,
    Forest,
    Integers,
    Labels,
    label_pieces,
)


@dataclass(frozen=True, eq=False)
class Runs:
    """The P pieces of equal non-zero label of one skeleton, and its L labels.

    Attributes:
        piece: (N,) the piece of each position of the forest, -1 on background.
        piece_label: (P,) its label.
        piece_edges: (P,) its number of edges.
        piece_nm: (P,) its length.
        labels: (L,) uint64, ascending.
        label_nodes: (L,) number of nodes that carry the label.
        label_nm: (L,) length of the edges with the label at both ends.
    """

    piece: Integers
    piece_label: Labels
    piece_edges: Integers
    piece_nm: Floats
    labels: Labels
    label_nodes: Integers
    label_nm: Floats


def gather_runs(labels: Labels, forest: Forest) -> Runs:
    """The runs of one skeleton; `labels` is (N,) by position of `forest`."""
    piece, count = label_pieces(labels, forest.up)
    on = piece >= 0
    nodes = np.bincount(piece[on], minlength=count)
    inside = on & (forest.up >= 0)
    inside[inside] = piece[inside] == piece[forest.up[inside]]
    piece_label = np.zeros(count, np.uint64)
    piece_label[piece[on]] = labels[on]
    piece_nm = sum_groups(forest.length_nm[inside], piece[inside], count)
    found, label_of_piece = np.unique(piece_label, return_inverse=True)
    label_nodes = np.zeros(len(found), np.int64)
    np.add.at(label_nodes, label_of_piece, nodes)
    label_nm = sum_groups(piece_nm, label_of_piece, len(found))
    return Runs(piece, piece_label, nodes - 1, piece_nm, found, label_nodes, label_nm)


def sum_groups(values: Floats, groups: Integers, count: int) -> Floats:
    """(count,) the sum of the values of each group, rounded once.

    `math.fsum` does not depend on the order of its terms, so a sum is the same to the last bit
    however the nodes are numbered.
    """
    ordered = values[np.argsort(groups, kind="stable")].tolist()
    ends = np.cumsum(np.bincount(groups, minlength=count)).tolist()
    starts = [0, *ends[:-1]]
    sums = (math.fsum(ordered[a:b]) for a, b in zip(starts, ends, strict=True))
    return np.fromiter(sums, np.float64, count) if count else np.zeros(0)


@dataclass(frozen=True, eq=False)
class Merges:
    """The M labels that are on two or more skeletons.

    Attributes:
        labels: (M,) uint64, ascending.
        label_index: (R,) with `skeleton_index` one row per label and skeleton it is on, ordered by
            label, then skeleton.
        skeleton_index: (R,).
        total: (S,) per skeleton, its merging labels, each times the other skeletons it is on.
        label_count: (S,) per skeleton, the number of merging labels on it.
        partners: (S,) per skeleton, the number of skeletons it shares a merging label with.
    """

    labels: Labels
    label_index: Integers
    skeleton_index: Integers
    total: Integers
    label_count: Integers
    partners: Integers

    def hits(self, labels: Labels) -> NDArray[np.bool_]:
        """Which of the labels are merging."""
        return among(labels, self.labels)


def find_merges(runs: Sequence[Runs], min_nodes: int, min_nm: float) -> Merges:
    """The labels that are on two or more of the skeletons.

    A label is on a skeleton if at least `min_nodes` nodes of it carry the label, along edges of at
    least `min_nm` in all.
    """
    counted = [
        (r.label_nodes >= min_nodes) & (r.label_nm >= min_nm - LENGTH_SLACK_NM) for r in runs
    ]
    labels = np.concatenate(
        [np.zeros(0, np.uint64), *(r.labels[on] for r, on in zip(runs, counted, strict=True))]
    )
    skeleton = np.repeat(np.arange(len(runs)), [int(on.sum()) for on in counted])
    order = np.argsort(labels, kind="stable")
    labels, skeleton = labels[order], skeleton[order]
    found, index, members = np.unique(labels, return_inverse=True, return_counts=True)
    row = members[index] > 1
    number = np.cumsum(members > 1) - 1
    index, skeleton = number[index[row]], skeleton[row]
    merging, members = found[members > 1], members[members > 1]
    total = np.zeros(len(runs), np.int64)
    np.add.at(total, skeleton, members[index] - 1)
    ends = np.cumsum(members)
    partners = _count_partners(
        len(runs), ends - members, ends, index[np.argsort(skeleton, kind="stable")],
        np.cumsum(np.bincount(skeleton, minlength=len(runs))), skeleton,
    )  # fmt: skip
    label_count = np.bincount(skeleton, minlength=len(runs))
    return Merges(merging, index, skeleton, total, label_count, partners)


@njit(cache=True, nogil=True)
def _count_partners(
    count: int,
    starts: Integers,
    ends: Integers,
    labels_by_skeleton: Integers,
    skeleton_ends: Integers,
    skeleton: Integers,
) -> Integers:
    """Distinct other skeletons that share a label with each; rows of label m: starts[m]:ends[m].

    A table of skeletons against skeletons would not do: one label on 10,000 of them fills it.
    """
    partners = np.zeros(count, np.int64)
    seen_by = np.full(count, -1, np.int64)
    begin = 0
    for s in range(count):
        seen_by[s] = s
        for i in range(begin, skeleton_ends[s]):
            m = labels_by_skeleton[i]
            for row in range(starts[m], ends[m]):
                other = skeleton[row]
                if seen_by[other] != s:
                    seen_by[other] = s
                    partners[s] += 1
        begin = skeleton_ends[s]
    return partners
