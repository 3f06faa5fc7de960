"""Skeleton metrics on cases small enough to count by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pipeline.arrays.metrics import (
    CORRECT,
    MERGED,
    OMIT,
    SPLIT,
    Scores,
    ScoringOptions,
    build_forest,
    crop_skeleton,
    keep_nodes,
    labels_at_nodes,
    node_voxels,
    score,
    score_forests,
)
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi

VOXEL = (40.0, 16.0, 8.0)

KEYS = {
    "edges", "correct_edges", "omit_edges", "split_edges", "merged_edges", "splits",
    "merges_total", "merging_labels", "merged_pairs", "merged_components", "pct_omit", "pct_split",
    "pct_merged", "edge_accuracy", "edge_accuracy_strict", "erl", "nerl", "erl_nm", "nerl_nm",
    "ffn_erl_nm", "ffn_nerl_nm", "split_rate_nm", "merge_rate_nm", "run_length_nm",
    "ambiguous_nodes", "out_of_bounds_nodes", "repaired_nodes",
}  # fmt: skip


def chain(count: int, name: str = "a", axis: int = 2) -> Skeleton:
    """Nodes one voxel apart along an axis; a step along x is 8 nm."""
    nodes = np.full((count, 3), 0.5)
    nodes[:, axis] += np.arange(count)
    index = np.arange(1, count)
    return Skeleton(name, nodes, np.stack([index, index - 1], axis=1))


def labels(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def score_chain(*values: int, **options: object) -> dict:
    return score_chains([values], **options).overall


def score_chains(rows: list, **options: object) -> Scores:
    skeletons = [chain(len(row), f"n{i}") for i, row in enumerate(rows)]
    return score(skeletons, [labels(*r) for r in rows], VOXEL, ScoringOptions(**options))


def star(*arms: int) -> Skeleton:
    """Node 0 is the centre; arms of so many nodes leave it, each numbered outwards."""
    nodes, edges = [(0, 0, 0)], []
    for direction, length in enumerate(arms):
        for step in range(1, length + 1):
            nodes.append((0, direction, step))
            edges.append((len(nodes) - 1, 0 if step == 1 else len(nodes) - 2))
    return Skeleton("star", np.array(nodes, float), np.array(edges))


def row(**counted: float) -> dict:
    """What was counted by hand; all other measures are 0, and rates undefined."""
    return dict.fromkeys(KEYS, 0) | {"split_rate_nm": None, "merge_rate_nm": None} | counted


def chains(*rows: tuple[int, ...]) -> list[tuple[Skeleton, tuple[int, ...]]]:
    return [(chain(len(values), f"n{i}"), values) for i, values in enumerate(rows)]


def several_roots() -> Skeleton:
    """Three trees of 2, 3 and 2 nodes, 8 nm apart."""
    return Skeleton("f", chain(7).nodes, np.array([[1, 0], [3, 2], [4, 3], [6, 5]]))


# A step is 8 nm, unless an axis is named. Skeletons and labels, options, measures of all together.
BY_HAND = {
    "no error": (chains((1, 1, 1, 1, 1)), {}, row(
        edges=4, correct_edges=4, edge_accuracy=100, edge_accuracy_strict=100, erl=4, nerl=1,
        erl_nm=32, nerl_nm=1, ffn_erl_nm=32, ffn_nerl_nm=1, run_length_nm=32, splits_per_neuron=0,
    )),
    "one split": (chains((1, 1, 2, 2, 2)), {}, row(
        edges=4, correct_edges=3, split_edges=1, splits=1, splits_per_neuron=1, pct_split=25,
        edge_accuracy=100, edge_accuracy_strict=75, erl=5 / 4, nerl=5 / 16, erl_nm=10,
        nerl_nm=10 / 32, ffn_erl_nm=10, ffn_nerl_nm=10 / 32, split_rate_nm=32, run_length_nm=32,
    )),
    "omitted between two labels": (chains((1, 1, 0, 2, 2)), {}, row(
        edges=4, correct_edges=2, omit_edges=2, splits=1, splits_per_neuron=1, pct_omit=50,
        edge_accuracy=50, edge_accuracy_strict=50, erl=1 / 2, nerl=1 / 8, erl_nm=4, nerl_nm=1 / 8,
        ffn_erl_nm=4, ffn_nerl_nm=1 / 8, split_rate_nm=32, run_length_nm=32,
    )),
    "dangling omitted end": (chains((0, 0, 1, 1, 1)), {}, row(
        edges=4, correct_edges=2, omit_edges=2, splits_per_neuron=0, pct_omit=50, edge_accuracy=50,
        edge_accuracy_strict=50, erl=1, nerl=1 / 4, erl_nm=8, nerl_nm=1 / 4, ffn_erl_nm=8,
        ffn_nerl_nm=1 / 4, run_length_nm=32,
    )),
    "repaired gap": (chains((1, 1, 0, 0, 1)), {}, row(
        edges=4, correct_edges=4, splits_per_neuron=0, edge_accuracy=100, edge_accuracy_strict=100,
        erl=4, nerl=1, erl_nm=32, nerl_nm=1, ffn_erl_nm=64 / 32, ffn_nerl_nm=64 / 32**2,
        run_length_nm=32, repaired_nodes=2,
    )),
    "gap longer than the limit": (chains((1, 0, 0, 1, 1)), {"max_gap_nm": 23}, row(
        edges=4, correct_edges=1, omit_edges=3, splits=1, splits_per_neuron=1, pct_omit=75,
        edge_accuracy=25, edge_accuracy_strict=25, erl=1 / 4, nerl=1 / 16, erl_nm=2,
        nerl_nm=2 / 32, ffn_erl_nm=2, ffn_nerl_nm=2 / 32, split_rate_nm=32, run_length_nm=32,
    )),
    "ambiguous gap": ([(star(1, 1, 1, 1), (0, 1, 1, 2, 2))], {}, row(
        edges=4, omit_edges=4, splits=3, splits_per_neuron=3, pct_omit=100, ambiguous_nodes=1,
        run_length_nm=8 + 320**0.5 + 1088**0.5 + 2368**0.5,
        split_rate_nm=(8 + 320**0.5 + 1088**0.5 + 2368**0.5) / 3,
    )),
    "two merged neurons": (chains((1, 1, 1), (1, 1, 2)), {}, row(
        edges=4, merged_edges=3, split_edges=1, splits=1, splits_per_neuron=1 / 2, merges_total=1,
        merging_labels=1, merged_pairs=1, merged_components=2, pct_split=25, pct_merged=75,
        edge_accuracy=25, split_rate_nm=32, merge_rate_nm=32, run_length_nm=32,
    )),
    "short of the tolerance": (chains((1, 1, 1, 1), (1, 1, 2, 2)), {"merge_min_nodes": 3}, row(
        edges=6, correct_edges=5, split_edges=1, splits=1, splits_per_neuron=1 / 2,
        pct_split=100 / 6, edge_accuracy=100, edge_accuracy_strict=500 / 6, erl=11 / 6,
        nerl=(3 + 2 / 3) / 6, erl_nm=(24**2 + 2 * 8**2) / 48, nerl_nm=(3 + 2 / 3) / 6,
        ffn_erl_nm=(24**2 + 2 * 8**2) / 48, ffn_nerl_nm=(24**2 + 2 * 8**2) / (2 * 24**2),
        split_rate_nm=48, run_length_nm=48,
    )),
    "merged into background only": (chains((0, 0, 1, 1), (2, 2, 0, 0)), {}, row(
        edges=6, correct_edges=2, omit_edges=4, splits_per_neuron=0, pct_omit=200 / 3,
        edge_accuracy=100 / 3, edge_accuracy_strict=100 / 3, erl=1 / 3, nerl=1 / 9, erl_nm=64 / 24,
        nerl_nm=1 / 9, ffn_erl_nm=64 / 24, ffn_nerl_nm=1 / 9, run_length_nm=48,
    )),
    "two branches with one label": (chains((1, 1, 2, 2, 1, 1)), {}, row(
        edges=5, correct_edges=3, split_edges=2, splits=2, splits_per_neuron=2, pct_split=40,
        edge_accuracy=100, edge_accuracy_strict=60, erl=3 / 5, nerl=3 / 25, erl_nm=192 / 40,
        nerl_nm=192 / 1600, ffn_erl_nm=320 / 40, ffn_nerl_nm=320 / 1600, split_rate_nm=20,
        run_length_nm=40,
    )),
    "anisotropic voxels": ([(chain(3, "z", 0), (1, 1, 2)), (chain(3, "y", 1), (3, 3, 3))], {}, row(
        edges=4, correct_edges=3, split_edges=1, splits=1, splits_per_neuron=1 / 2, pct_split=25,
        edge_accuracy=100, edge_accuracy_strict=75, erl=(1 + 4) / 4, nerl=(2 / 4 + 2) / 4,
        erl_nm=(40**2 + 32**2) / 112, nerl_nm=(80 / 4 + 32) / 112,
        ffn_erl_nm=(40**2 + 32**2) / 112, ffn_nerl_nm=(40**2 + 32**2) / (80**2 + 32**2),
        split_rate_nm=112, run_length_nm=112,
    )),
    "several roots": ([(several_roots(), (1, 1, 2, 2, 3, 0, 0))], {}, row(
        edges=4, correct_edges=2, split_edges=1, omit_edges=1, splits=1, splits_per_neuron=1,
        pct_split=25, pct_omit=25, edge_accuracy=75, edge_accuracy_strict=50, erl=1 / 2, nerl=1 / 8,
        erl_nm=4, nerl_nm=1 / 8, ffn_erl_nm=4, ffn_nerl_nm=1 / 8, split_rate_nm=32,
        run_length_nm=32,
    )),
    "a wholly omitted neuron": (chains((0, 0, 0), (1, 1, 1)), {}, row(
        edges=4, correct_edges=2, omit_edges=2, splits_per_neuron=0, pct_omit=50, edge_accuracy=50,
        edge_accuracy_strict=50, erl=1, nerl=1 / 2, erl_nm=8, nerl_nm=1 / 2, ffn_erl_nm=8,
        ffn_nerl_nm=1 / 2, run_length_nm=32,
    )),
    "one node beside a neuron": (chains((3,), (1, 1)), {}, row(
        edges=1, correct_edges=1, splits_per_neuron=0, edge_accuracy=100, edge_accuracy_strict=100,
        erl=1, nerl=1, erl_nm=8, nerl_nm=1, ffn_erl_nm=8, ffn_nerl_nm=1, run_length_nm=8,
    )),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_every_measure_counted_by_hand(case: str):
    skeletons, options, wanted = BY_HAND[case]
    rows = [labels(*values) for _, values in skeletons]
    got = score([s for s, _ in skeletons], rows, VOXEL, ScoringOptions(**options))
    assert got.overall.keys() == wanted.keys()
    for key, value in wanted.items():
        assert got.overall[key] == (value and pytest.approx(value, rel=1e-14)), key


def test_every_measure_of_one_of_two_merged_neurons():
    got = score_chains([(1, 1, 1), (1, 1, 2)], repair=True).per_skeleton
    merged = {"merges_total": 1, "merging_labels": 1, "merged_pairs": 1, "merged_components": 1}
    assert got["n0"] == row(
        edges=2, merged_edges=2, pct_merged=100, merge_rate_nm=16, run_length_nm=16, **merged
    )
    assert got["n1"] == row(
        edges=2, merged_edges=1, split_edges=1, splits=1, pct_merged=50, pct_split=50,
        edge_accuracy=50, split_rate_nm=16, merge_rate_nm=16, run_length_nm=16, **merged
    )  # fmt: skip


def test_no_error():
    got = score_chain(1, 1, 1, 1, 1)
    assert (got["edges"], got["correct_edges"], got["splits"]) == (4, 4, 0)
    assert (got["erl"], got["nerl"], got["edge_accuracy"]) == (4, 1, 100)
    assert (got["erl_nm"], got["nerl_nm"], got["run_length_nm"]) == (32, 1, 32)
    assert (got["ffn_erl_nm"], got["ffn_nerl_nm"]) == (32, 1)
    assert got["split_rate_nm"] is None
    assert got["merge_rate_nm"] is None


def test_one_split():
    got = score_chain(1, 1, 2, 2, 2)
    assert (got["correct_edges"], got["split_edges"], got["splits"]) == (3, 1, 1)
    assert (got["pct_split"], got["edge_accuracy"], got["edge_accuracy_strict"]) == (25, 100, 75)
    assert got["erl"] == (1 + 4) / 4
    assert got["nerl"] == (1 + 4) / 16
    assert got["erl_nm"] == (8**2 + 16**2) / 32
    assert got["ffn_nerl_nm"] == (8**2 + 16**2) / 32**2
    assert (got["split_rate_nm"], got["splits_per_neuron"]) == (32, 1)


def test_dangling_omitted_end_is_omitted_and_no_split():
    got = score_chain(0, 0, 1, 1, 1)
    assert (got["omit_edges"], got["pct_omit"], got["splits"]) == (2, 50, 0)
    assert (got["erl"], got["edge_accuracy"], got["repaired_nodes"]) == (1, 50, 0)


def test_repaired_gap_counts_for_all_but_the_ffn_columns():
    got = score_chain(1, 1, 0, 0, 1)
    assert (got["repaired_nodes"], got["omit_edges"], got["erl"], got["splits"]) == (2, 0, 4, 0)
    assert got["ffn_erl_nm"] == 8**2 / 32
    off = score_chain(1, 1, 0, 0, 1, repair=False)
    assert (off["repaired_nodes"], off["omit_edges"], off["splits"]) == (0, 3, 1)
    assert off["erl"] == 1 / 4


def test_figure_9_of_the_paper_has_two_splits():
    got = score_chain(0, 1, 1, 0, 1, 2, 0, 3)
    assert (got["splits"], got["split_edges"], got["omit_edges"]) == (2, 1, 3)
    assert (got["correct_edges"], got["repaired_nodes"]) == (3, 1)


def test_figure_10_of_the_paper_has_three_merged_edges():
    got = score_chains([(1, 1), (1, 1, 1)])
    assert got.overall["merged_edges"] == 3
    assert got.overall["erl"] == got.overall["ffn_erl_nm"] == 0
    assert (got.overall["edge_accuracy"], got.overall["pct_merged"]) == (0, 100)


def test_contested_gap_node_stays_background():
    cross = star(1, 1, 1, 1)
    got = score([cross], [labels(0, 1, 1, 2, 2)], VOXEL)
    assert got.overall["ambiguous_nodes"] == 1
    assert got.overall["repaired_nodes"] == 0
    assert got.overall["omit_edges"] == 4
    assert got.overall["splits"] == 3
    assert got.node_labels[0].tolist() == [0, 1, 1, 2, 2]


def test_only_the_contested_node_of_two_crossing_gaps_stays():
    arms = star(2, 2, 2, 2)
    given = labels(0, 0, 1, 0, 1, 0, 2, 0, 2)
    got = score([arms], [given], VOXEL)
    assert got.node_labels[0].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert (got.overall["repaired_nodes"], got.overall["ambiguous_nodes"]) == (4, 1)
    assert (got.overall["splits"], got.overall["correct_edges"]) == (3, 4)


def test_gap_with_a_branch_point_leaves_the_side_branch_out():
    arms = star(2, 2, 3)
    got = score([arms], [labels(0, 0, 7, 0, 7, 0, 0, 5)], VOXEL)
    assert got.node_labels[0].tolist() == [7, 7, 7, 7, 7, 0, 0, 5]
    assert (got.overall["repaired_nodes"], got.overall["omit_edges"]) == (3, 3)
    three = score([arms], [labels(0, 0, 7, 0, 7, 0, 0, 7)], VOXEL)
    assert three.node_labels[0].tolist() == [7] * 8


def test_repair_works_on_the_labels_as_given():
    """The gap between the 2s is inside the gap of nothing: 1 0 2 0 1 has no repairable path."""
    assert score_chain(1, 0, 2, 0, 1)["repaired_nodes"] == 0
    got = score_chains([(1, 0, 2, 0, 2, 0, 1)])
    assert got.node_labels[0].tolist() == [1, 0, 2, 2, 2, 0, 1]


def test_max_gap_is_the_length_between_the_labelled_nodes_and_inclusive():
    assert score_chain(1, 0, 0, 1, max_gap_nm=24)["repaired_nodes"] == 2
    assert score_chain(1, 0, 0, 1, max_gap_nm=23.9)["repaired_nodes"] == 0
    diagonal = Skeleton("d", np.arange(12).reshape(4, 3) * 0.1, np.array([[1, 0], [2, 1], [3, 2]]))
    length = float(diagonal.edge_lengths_nm(VOXEL).sum())
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        shuffled = renumber(diagonal, np.array(order))
        values = labels(1, 0, 0, 1)[np.argsort(order)]
        got = score([shuffled], [values], VOXEL, ScoringOptions(max_gap_nm=length))
        assert got.overall["repaired_nodes"] == 2


def test_max_gap_can_settle_a_contest_and_says_what_it_changed():
    arms = star(1, 1, 4, 4)
    given = labels(0, 1, 1, 0, 0, 0, 2, 0, 0, 0, 2)
    free = score([arms], [given], VOXEL)
    assert (free.overall["repaired_nodes"], free.overall["ambiguous_nodes"]) == (6, 1)
    limited = score([arms], [given], VOXEL, ScoringOptions(max_gap_nm=40))
    assert limited.node_labels[0].tolist() == [1, 1, 1, 0, 0, 0, 2, 0, 0, 0, 2]
    text = limited.conventions["repair"]
    assert "at most 40.0 nm" in text
    assert "1 nodes repaired, 0 ambiguous" in text
    assert "without that limit 6 and 1" in text


def test_two_merged_neurons_are_both_charged():
    got = score_chains([(1, 1, 1), (1, 1, 2)])
    first, second = got.per_skeleton["n0"], got.per_skeleton["n1"]
    assert (first["merged_edges"], second["merged_edges"], second["split_edges"]) == (2, 1, 1)
    assert got.edge_classes[1].tolist() == [MERGED, SPLIT]
    for row in (first, second, got.overall):
        assert (row["merges_total"], row["merging_labels"], row["merged_pairs"]) == (1, 1, 1)
    assert got.overall["merged_components"] == 2
    assert got.overall["merge_rate_nm"] == 32
    assert got.overall["edge_accuracy"] == 25
    assert got.merges.labels.tolist() == [1]
    assert got.merges.skeleton_index.tolist() == [0, 1]


def test_merge_counts_over_several_neurons():
    """Label 1 on three neurons, label 2 on two of these, label 9 on one."""
    got = score_chains([(1, 1, 2, 2), (1, 1, 2, 2), (1, 1, 9, 9), (5, 5, 5, 5)])
    overall = got.overall
    assert (overall["merging_labels"], overall["merges_total"], overall["merged_pairs"]) == (
        2,
        3,
        3,
    )
    assert overall["merged_components"] == 5
    rows = [got.per_skeleton[f"n{i}"] for i in range(4)]
    assert [r["merges_total"] for r in rows] == [3, 3, 2, 0]
    assert [r["merged_pairs"] for r in rows] == [2, 2, 2, 0]
    assert [r["merging_labels"] for r in rows] == [2, 2, 1, 0]
    assert rows[3]["nerl"] == 1


def test_sharing_the_background_is_no_merge():
    got = score_chains([(0, 0, 1, 1), (2, 2, 0, 0), (0, 0, 0, 0)]).overall
    assert (got["merged_edges"], got["merges_total"], got["merging_labels"]) == (0, 0, 0)
    assert got["omit_edges"] == 2 + 2 + 3


def test_two_branches_with_one_label_are_two_components_and_one_segment():
    got = score_chain(1, 1, 2, 2, 1, 1)
    assert (got["splits"], got["split_edges"], got["merged_edges"]) == (2, 2, 0)
    assert got["erl_nm"] == 3 * 8**2 / 40
    assert got["ffn_erl_nm"] == (16**2 + 8**2) / 40


def test_merge_tolerance_in_nodes_serves_all_merge_counts():
    rows = [(1, 1, 1, 1), (1, 1, 2, 2)]
    strict = score_chains(rows, merge_min_nodes=2)
    assert strict.overall["merged_edges"] == 4
    lax = score_chains(rows, merge_min_nodes=3)
    assert lax.overall["merged_edges"] == lax.overall["merges_total"] == 0
    assert lax.overall["ffn_erl_nm"] == (24**2 + 8**2 + 8**2) / 48
    assert "at least 3 of its nodes" in lax.conventions["merge_tolerance"]
    assert "at least 3 of its nodes" in lax.conventions["ffn_erl"]


def test_a_merging_label_is_charged_also_where_it_falls_short():
    got = score_chains([(1, 1, 1), (1, 1, 1), (1, 1, 4)], merge_min_nodes=3)
    assert got.per_skeleton["n2"]["merged_edges"] == 1
    assert got.per_skeleton["n2"]["merging_labels"] == 0
    assert got.overall["merges_total"] == 1
    assert got.overall["merged_components"] == 3


def test_ffn_columns_judge_the_tolerance_without_repair():
    """The gap of the first makes its label short of three nodes; after repair it has them."""
    got = score_chains([(1, 0, 1), (1, 1, 1)], merge_min_nodes=3).overall
    assert (got["merging_labels"], got["merged_edges"], got["erl_nm"]) == (1, 4, 0)
    assert got["ffn_erl_nm"] == 16**2 / 32


def test_merge_tolerance_in_nanometres():
    rows = [(1, 1, 1, 1), (1, 1, 2, 2)]
    assert score_chains(rows, merge_min_nm=8).overall["merging_labels"] == 1
    assert score_chains(rows, merge_min_nm=8.1).overall["merging_labels"] == 0


def test_anisotropic_voxels_weigh_by_length():
    along_z, along_y = chain(3, "z", axis=0), chain(3, "y", axis=1)
    got = score([along_z, along_y], [labels(1, 1, 2), labels(3, 3, 3)], VOXEL)
    overall = got.overall
    assert overall["run_length_nm"] == 2 * 40 + 2 * 16
    assert overall["erl_nm"] == (40**2 + 32**2) / 112
    assert overall["nerl_nm"] == pytest.approx((80 * 0.25 + 32 * 1) / 112, rel=1e-15)
    assert overall["nerl"] == (2 * 0.25 + 2 * 1) / 4
    assert overall["ffn_nerl_nm"] == (40**2 + 32**2) / (80**2 + 32**2)
    assert overall["splits_per_neuron"] == 0.5


def test_several_roots_are_no_split_and_an_omitted_tree_counts_nothing():
    nodes = np.zeros((7, 3))
    nodes[:, 2] = np.arange(7)
    forest = Skeleton("f", nodes, np.array([[1, 0], [3, 2], [4, 3], [6, 5]]))
    got = score([forest], [labels(1, 1, 2, 2, 3, 0, 0)], VOXEL).overall
    assert (got["splits"], got["split_edges"], got["omit_edges"]) == (1, 1, 1)
    assert got["erl"] == 2 / 4
    same = score([forest], [labels(1, 1, 1, 1, 1, 1, 1)], VOXEL).overall
    assert (same["splits"], same["merged_edges"]) == (0, 0)
    assert same["nerl"] == (1 + 4 + 1) / 16
    assert same["ffn_nerl_nm"] == 1


def test_gap_between_trees_is_not_repaired():
    nodes = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3.0]])
    two = Skeleton("two", nodes, np.array([[1, 0], [3, 2]]))
    assert score([two], [labels(1, 0, 0, 1)], VOXEL).overall["repaired_nodes"] == 0


def test_wholly_omitted_neuron():
    got = score_chains([(0, 0, 0), (1, 1, 1)])
    row = got.per_skeleton["n0"]
    assert (row["splits"], row["pct_omit"], row["erl"], row["nerl"]) == (0, 100, 0, 0)
    assert got.overall["nerl"] == 0.5
    assert got.overall["ffn_nerl_nm"] == 0.5


def test_single_node_skeleton_scores_zero():
    got = score_chains([(3,)])
    for row in (got.overall, got.per_skeleton["n0"]):
        for key in ("edges", "splits", "erl", "nerl", "erl_nm", "ffn_nerl_nm", "run_length_nm"):
            assert row[key] == 0
        for key in ("pct_omit", "pct_merged", "edge_accuracy", "edge_accuracy_strict"):
            assert row[key] == 0
        assert row["split_rate_nm"] is None
    beside = score_chains([(1,), (1, 1, 1)])
    assert beside.overall["merged_edges"] == 2
    assert beside.overall["merged_components"] == 2


def test_empty_skeleton_counts_nothing():
    got = score([Skeleton("e", np.zeros((0, 3)), np.zeros((0, 2)))], [labels()], VOXEL)
    assert got.overall["edges"] == got.overall["splits"] == got.overall["nerl"] == 0


def test_coincident_nodes_have_edges_without_length():
    nodes = np.zeros((3, 3))
    point = Skeleton("p", nodes, np.array([[1, 0], [2, 1]]))
    got = score([point], [labels(1, 1, 2)], VOXEL).overall
    assert (got["erl"], got["erl_nm"], got["nerl_nm"], got["ffn_nerl_nm"]) == (0.5, 0, 0, 0)
    assert got["split_rate_nm"] == 0


def test_labels_fill_64_bits():
    high = 2**64 - 1
    got = score_chains([(high, 0, high, high - 1), (high - 1, high - 1)])
    assert got.node_labels[0].tolist() == [high, high, high, high - 1]
    assert got.merges.labels.tolist() == [high - 1]


def test_every_edge_has_one_class_and_arrays_follow_the_input():
    got = score_chains([(0, 1, 1, 2, 9, 9, 0), (9, 9)])
    expected = [OMIT, CORRECT, SPLIT, SPLIT, MERGED, OMIT]
    assert got.edge_classes[0].tolist() == expected
    row = got.per_skeleton["n0"]
    parts = ("omit_edges", "split_edges", "merged_edges", "correct_edges")
    assert sum(row[key] for key in parts) == row["edges"] == 6
    pieces = got.components[0].tolist()
    assert pieces[0] == pieces[6] == -1
    assert pieces[1] == pieces[2]
    assert pieces[4] == pieces[5]
    assert len({pieces[1], pieces[3], pieces[4]}) == 3


def test_json_has_exactly_the_documented_keys_and_no_nan():
    got = score_chains([(1, 1), (2,), (0, 0)]).as_json()
    assert set(got) == {"overall", "per_skeleton", "conventions"}
    assert set(got["overall"]) == KEYS | {"splits_per_neuron"}
    assert list(got["per_skeleton"]) == ["n0", "n1", "n2"]
    for row in got["per_skeleton"].values():
        assert set(row) == KEYS
    json.dumps(got, allow_nan=False)
    assert all(isinstance(text, str) and text for text in got["conventions"].values())
    assert "40.0 x 16.0 x 8.0" in got["conventions"]["voxel_size_nm"]


def test_out_of_bounds_counts_are_reported():
    pair = [chain(2, "a"), chain(2, "b")]
    got = score(pair, [labels(1, 1), labels(2, 2)], VOXEL, out_of_bounds=[0, 2])
    assert got.overall["out_of_bounds_nodes"] == 2
    assert got.per_skeleton["b"]["out_of_bounds_nodes"] == 2


def test_input_is_not_changed_and_forests_serve_again():
    given = labels(1, 0, 1, 2)
    forest = build_forest(chain(4), VOXEL)
    first = score_forests([forest], [given], VOXEL)
    assert given.tolist() == [1, 0, 1, 2]
    assert score_forests([forest], [given], VOXEL).as_json() == first.as_json()


@pytest.mark.parametrize("edges", [[[0, 1], [1, 2], [2, 0]], [[0, 1], [1, 0]], [[1, 1]]])
def test_cycles_are_refused(edges: list):
    ring = Skeleton("ring", np.zeros((4, 3)), np.array(edges))
    with pytest.raises(InputError, match=r"ring.*cycle"):
        score([ring], [labels(1, 1, 1, 1)], VOXEL)


def test_bad_input_is_refused():
    one = chain(2)
    with pytest.raises(InputError, match="no skeleton"):
        score([], [], VOXEL)
    with pytest.raises(InputError, match="distinct"):
        score([one, one], [labels(1, 1)] * 2, VOXEL)
    with pytest.raises(ShapeError, match="2 nodes"):
        score([one], [labels(1)], VOXEL)
    with pytest.raises(ShapeError, match="1 skeletons"):
        score([one], [], VOXEL)
    with pytest.raises(DtypeError, match="float64"):
        score([one], [np.array([1.0, 1.0])], VOXEL)
    with pytest.raises(DataError, match="negative label -1"):
        score([one], [np.array([1, -1])], VOXEL)
    with pytest.raises(InputError, match="voxel size"):
        score([one], [labels(1, 1)], 40.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="merge_min_nodes"):
        ScoringOptions(merge_min_nodes=1.5)  # type: ignore[arg-type]
    expected = score([one], [labels(1, 1)], VOXEL).as_json()
    for kind in (np.int64, np.uint8, ">u8", list):
        given = [1, 1] if kind is list else np.array([1, 1], kind)
        assert score([one], [given], VOXEL).as_json() == expected
    with pytest.raises(InputError, match="voxel size"):
        score([one], [labels(1, 1)], (40, 0, 8))
    with pytest.raises(InputError, match="finite"):
        score([Skeleton("n", np.full((1, 3), np.nan), np.zeros((0, 2)))], [labels(1)], VOXEL)


@pytest.mark.parametrize(
    "options",
    [{"max_gap_nm": -1}, {"max_gap_nm": math.nan}, {"merge_min_nodes": 0}, {"merge_min_nm": -1}],
)
def test_bad_options_are_refused(options: dict):
    with pytest.raises(InputError, match=next(iter(options))):
        ScoringOptions(**options)


def renumber(skeleton: Skeleton, new: np.ndarray) -> Skeleton:
    """Node i becomes node new[i]."""
    return Skeleton(skeleton.name, skeleton.nodes[np.argsort(new)], new[skeleton.edges])


def test_node_voxels_are_floors():
    skeleton = Skeleton("a", [[-0.25, 0.0, 0.999], [3.0, 2.5, -1.0]], np.zeros((0, 2)))
    assert node_voxels(skeleton).tolist() == [[-1, 0, 0], [3, 2, -1]]
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(InputError, match="finite"):
            node_voxels(Skeleton("a", [[0, 0, bad]], np.zeros((0, 2))))


def test_labels_at_nodes_put_together_from_blocks():
    rng = np.random.default_rng(1)
    volume = rng.integers(0, 2**63, (5, 7, 9)).astype(np.uint64) * 2 + 1
    nodes = rng.uniform(-2, 11, (200, 3))
    skeleton = Skeleton("a", nodes, np.zeros((0, 2)))
    whole, inside = labels_at_nodes(skeleton, volume)
    for i, (z, y, x) in enumerate(np.floor(nodes).astype(int)):
        within = 0 <= z < 5 and 0 <= y < 7 and 0 <= x < 9
        assert inside[i] == within
        assert whole[i] == (volume[z, y, x] if within else 0)
    parts = np.zeros(200, np.uint64)
    seen = np.zeros(200, int)
    for block in BlockGrid.over((5, 7, 9), (2, 3, 4)):
        values, found = labels_at_nodes(skeleton, volume[block.write.slices], block.write.offset)
        parts[found] = values[found]
        seen += found
    assert (parts == whole).all()
    assert (seen == inside).all()


def test_labels_at_nodes_refuses_what_are_no_labels():
    skeleton = chain(1)
    with pytest.raises(DtypeError, match="float"):
        labels_at_nodes(skeleton, np.zeros((1, 1, 1)))
    with pytest.raises(ShapeError, match="Z, Y, X"):
        labels_at_nodes(skeleton, np.zeros((1, 1), np.uint64))
    with pytest.raises(DataError, match="negative"):
        labels_at_nodes(skeleton, np.full((1, 1, 1), -3))


def test_crop_keeps_nodes_inside_and_edges_between_them():
    skeleton = Skeleton(
        "a",
        [[0.5, 0.5, x] for x in (0.5, 3.999, 4.0, 2.0)],
        [[1, 0], [2, 1], [3, 2]],
        radii_nm=[1, 2, 3, 4],
        types=[5, 6, 7, 8],
    )
    part = crop_skeleton(skeleton, Roi((0, 0, 0), (1, 1, 4)))
    assert part is not None
    assert part.nodes[:, 2].tolist() == [0.5, 3.999, 2.0]
    assert part.edges.tolist() == [[1, 0]]
    assert part.radii_nm.tolist() == [1, 2, 4]
    assert part.types.tolist() == [5, 6, 8]
    assert crop_skeleton(skeleton, Roi((7, 0, 0), (1, 1, 4))) is None
    with pytest.raises(ShapeError, match="mask"):
        keep_nodes(skeleton, np.ones(3, bool))
