"""Runs of equal label along skeletons, and the labels that run on more than one of them.

`gather_runs` walks over one skeleton; tables of all skeletons end to end (`RunTable`) serve what is
done for each setting of a tolerance, without a loop over skeletons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.exact_sums import MOST_PARTIALS, exact_total, grouped_totals
from pipeline.arrays.labels import among
from pipeline.arrays.skeleton_forest import LENGTH_SLACK_NM, Floats, Forest, Integers, Labels


@dataclass(frozen=True, eq=False)
class Runs:
    """The P pieces of equal non-zero label of one skeleton, and its L labels.

    Attributes:
        piece_label: (P,) uint64 the label of each piece.
        piece_edges: (P,) its number of edges.
        piece_nm: (P,) its length.
        labels: (L,) uint64, ascending.
        label_nodes: (L,) number of nodes that carry the label.
        label_nm: (L,) length of the edges with the label at both ends.
        omit: number of edges with an end on background.
        split: number of edges between two labels.
        splits: pieces beyond the first of each tree.
    """

    piece_label: Labels
    piece_edges: Integers
    piece_nm: Floats
    labels: Labels
    label_nodes: Integers
    label_nm: Floats
    omit: int
    split: int
    splits: int


def gather_runs(labels: Labels, forest: Forest) -> tuple[Integers, Runs]:
    """The runs of one skeleton.

    Args:
        labels: (N,) uint64 by position of `forest`; 0 is background.

    Returns:
        (N,) int64 the piece of each position, -1 on background; and the runs.
    """
    piece, piece_label, piece_nodes, omit, split, trees = _find_pieces(labels, forest.up)
    piece_nm = _piece_lengths(piece, piece_nodes, forest.up, forest.length_nm)
    found, label_nodes, label_nm = _join_labels(piece_label, piece_nodes, piece_nm)
    splits = len(piece_label) - trees
    return piece, Runs(
        piece_label, piece_nodes - 1, piece_nm, found, label_nodes, label_nm, omit, split, splits
    )


@njit(cache=True, nogil=True)
def _find_pieces(labels: Labels, up: Integers) -> tuple[Integers, Labels, Integers, int, int, int]:
    """The piece of each position, -1 on background; label and number of nodes of each piece.

    Then the numbers of edges with an end on background, of edges between two labels, and of trees
    with a labelled node.
    """
    piece = np.full(len(up), -1, np.int64)
    label = np.empty(len(up), np.uint64)
    nodes = np.empty(len(up), np.int64)
    count = omit = split = trees = 0
    labelled = False  # whether the tree, whose positions lie together, has a labelled node
    for p in range(len(up)):
        above = np.uint64(0)
        if up[p] < 0:
            labelled = False
        else:
            above = labels[up[p]]
            if labels[p] == 0 or above == 0:
                omit += 1
            elif labels[p] != above:
                split += 1
        if labels[p] == 0:
            continue
        if not labelled:
            labelled = True
            trees += 1
        if labels[p] == above:
            piece[p] = piece[up[p]]
            nodes[piece[p]] += 1
        else:
            piece[p] = count
            label[count] = labels[p]
            nodes[count] = 1
            count += 1
    return piece, label[:count].copy(), nodes[:count].copy(), omit, split, trees


@njit(cache=True, nogil=True)
def _piece_lengths(
    piece: Integers, piece_nodes: Integers, up: Integers, length_nm: Floats
) -> Floats:
    """The length of each piece, rounded once."""
    fill = np.cumsum(piece_nodes) - piece_nodes
    ordered = np.zeros(piece_nodes.sum(), np.float64)
    for p in range(len(up)):
        if piece[p] < 0:
            continue
        if up[p] >= 0 and piece[up[p]] == piece[p]:
            ordered[fill[piece[p]]] = length_nm[p]
        fill[piece[p]] += 1
    partials = np.empty(MOST_PARTIALS, np.float64)
    lengths = np.empty(len(piece_nodes), np.float64)
    for i in range(len(piece_nodes)):
        lengths[i] = exact_total(ordered[fill[i] - piece_nodes[i] : fill[i]], partials)
    return lengths


@njit(cache=True, nogil=True)
def _join_labels(
    piece_label: Labels, piece_nodes: Integers, piece_nm: Floats
) -> tuple[Labels, Integers, Floats]:
    """The labels of pieces, ascending, with their numbers of nodes and their lengths."""
    found = np.empty(len(piece_label), np.uint64)
    nodes = np.zeros(len(piece_label), np.int64)
    group = np.empty(len(piece_label), np.int64)
    count = 0
    for i in np.argsort(piece_label):
        if count == 0 or piece_label[i] != found[count - 1]:
            found[count] = piece_label[i]
            count += 1
        group[i] = count - 1
        nodes[count - 1] += piece_nodes[i]
    lengths = grouped_totals(piece_nm, group, count)
    return found[:count].copy(), nodes[:count].copy(), lengths


@dataclass(frozen=True, eq=False)
class RunTable:
    """The runs of S skeletons, end to end.

    Attributes:
        piece_skeleton: (P,) the skeleton of each piece, ascending.
        piece_label, piece_edges, piece_nm: (P,) as in `Runs`.
        label_skeleton: (L,) with `labels` one row per label and skeleton that has it, ordered by
            label, then skeleton.
        labels, label_nodes, label_nm: (L,) as in `Runs`.
        omit, split, splits: (S,) as in `Runs`.
    """

    piece_skeleton: Integers
    piece_label: Labels
    piece_edges: Integers
    piece_nm: Floats
    label_skeleton: Integers
    labels: Labels
    label_nodes: Integers
    label_nm: Floats
    omit: Integers
    split: Integers
    splits: Integers

    @classmethod
    def of(cls, runs: Sequence[Runs]) -> RunTable:
        """The table of one or more skeletons, numbered as they come."""
        number = np.arange(len(runs))
        labels = np.concatenate([r.labels for r in runs])
        order = np.argsort(labels, kind="stable")
        return cls(
            np.repeat(number, [len(r.piece_label) for r in runs]),
            np.concatenate([r.piece_label for r in runs]),
            np.concatenate([r.piece_edges for r in runs]),
            np.concatenate([r.piece_nm for r in runs]),
            np.repeat(number, [len(r.labels) for r in runs])[order],
            labels[order],
            np.concatenate([r.label_nodes for r in runs])[order],
            np.concatenate([r.label_nm for r in runs])[order],
            np.array([r.omit for r in runs], np.int64),
            np.array([r.split for r in runs], np.int64),
            np.array([r.splits for r in runs], np.int64),
        )

    @property
    def skeletons(self) -> int:
        """Their number."""
        return len(self.omit)


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


def find_merges(runs: RunTable, min_nodes: int, min_nm: float) -> Merges:
    """The labels that are on two or more of the skeletons.

    A label is on a skeleton if at least `min_nodes` nodes of it carry the label, along edges of at
    least `min_nm` in all.
    """
    on = (runs.label_nodes >= min_nodes) & (runs.label_nm >= min_nm - LENGTH_SLACK_NM)
    labels, skeleton = runs.labels[on], runs.label_skeleton[on]
    first = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]][: len(labels)])
    members = np.diff(np.append(first, len(labels)))
    row = np.repeat(members > 1, members)
    merging, members = labels[first[members > 1]], members[members > 1]
    index, skeleton = np.repeat(np.arange(len(members)), members), skeleton[row]
    total = np.zeros(runs.skeletons, np.int64)
    np.add.at(total, skeleton, members[index] - 1)
    label_count = np.bincount(skeleton, minlength=runs.skeletons)
    ends = np.cumsum(members)
    partners = _count_partners(
        runs.skeletons, ends - members, ends, index[np.argsort(skeleton, kind="stable")],
        np.cumsum(label_count), skeleton,
    )  # fmt: skip
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
