"""Curves over conventions: each row is what scoring with these options gives, to the last bit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.metric_curves import metric_curves
from pipeline.arrays.metrics import Forest, ScoringOptions, build_forest, score_forests
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import DtypeError, InputError, ShapeError

VOXEL = (40.0, 16.0, 8.0)


def chain(name: str, count: int) -> Skeleton:
    nodes = np.zeros((count, 3))
    nodes[:, 2] = np.arange(count)
    index = np.arange(1, count)
    return Skeleton(name, nodes, np.stack([index, index - 1], axis=1))


def random_case(seed: int) -> tuple[list[Forest], list[np.ndarray]]:
    """Forests of several trees, with runs of few labels and gaps, shared between skeletons."""
    random = np.random.default_rng(seed)
    forests, labels = [], []
    for number in range(random.integers(1, 6)):
        count = int(random.integers(1, 40))
        parent = np.array([random.integers(max(0, i - 3), i) for i in range(1, count)], int)
        edges = np.stack([np.arange(1, count), parent], axis=1)
        edges = edges[random.random(len(edges)) > 0.05]
        skeleton = Skeleton(f"n{number}", random.random((count, 3)) * 9, edges)
        values = np.zeros(count, np.uint64)
        for i in range(count):
            fresh = i == 0 or random.random() < 0.25
            values[i] = random.choice([0, 0, 1, 2, 3, 4 + number]) if fresh else values[i - 1]
        forests.append(build_forest(skeleton, VOXEL))
        labels.append(values)
    return forests, labels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([None, 0.0, 90.0, 300.0]),
    st.integers(1, 4),
    st.sampled_from([0.0, 60.0, 200.0]),
)
def test_every_row_is_what_scoring_gives(seed, repair, gap, nodes, length):
    forests, labels = random_case(seed)
    options = ScoringOptions(repair, gap, nodes, length)
    outside = list(range(len(forests)))
    found = metric_curves(
        forests, labels, VOXEL, options, outside,
        merge_min_nodes=(1, 2, 3, 5, 10), merge_min_nm=(0.0, 50.0, 100.0, 400.0),
        max_gap_nm=(0.0, 60.0, 120.0, 500.0, None),
    )  # fmt: skip
    assert len(found.rows) == (14 if repair else 9)
    for row in found.rows:
        chosen = replace(options, **{row["option"]: row["value"]})
        expected = score_forests(forests, labels, VOXEL, chosen, outside)
        assert row["overall"] == expected.overall
        assert list(row["overall"]) == list(expected.overall)
    assert found.conventions == score_forests(forests, labels, VOXEL, options, outside).conventions


def by_value(rows: tuple, option: str, key: str) -> dict:
    return {row["value"]: row["overall"][key] for row in rows if row["option"] == option}


def test_tolerance_and_gap_by_hand():
    """Label 1 has 2 nodes, 8 nm, on the second chain; the gap of label 2 is 24 nm."""
    rows = [[1, 1, 1, 1], [1, 1, 2, 0, 0, 2]]
    forests = [build_forest(chain(f"n{i}", len(r)), VOXEL) for i, r in enumerate(rows)]
    found = metric_curves(
        forests, [np.array(r, np.uint64) for r in rows], VOXEL,
        merge_min_nodes=(1, 2, 3), merge_min_nm=(0, 8, 8.5), max_gap_nm=(0, 23.5, 24, None),
    ).rows  # fmt: skip
    assert by_value(found, "merge_min_nodes", "merges_total") == {1: 1, 2: 1, 3: 0}
    assert by_value(found, "merge_min_nodes", "merged_edges") == {1: 4, 2: 4, 3: 0}
    assert by_value(found, "merge_min_nm", "merges_total") == {0: 1, 8: 1, 8.5: 0}
    assert by_value(found, "max_gap_nm", "omit_edges") == {0: 3, 23.5: 3, 24: 0, None: 0}
    assert by_value(found, "max_gap_nm", "repaired_nodes") == {0: 0, 23.5: 0, 24: 2, None: 2}


def test_rows_stand_in_the_order_asked_for_with_defaults_for_all():
    forests, labels = random_case(1)
    found = metric_curves(forests, labels, VOXEL)
    options = [row["option"] for row in found.rows]
    assert list(dict.fromkeys(options)) == ["merge_min_nodes", "merge_min_nm", "max_gap_nm"]
    nodes = [row["value"] for row in found.rows if row["option"] == "merge_min_nodes"]
    assert nodes == [1, 2, 5, 10, 20, 50, 100, 200]
    assert found.rows[-1]["value"] is None
    assert found.neurons == len(forests)
    text = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert text["rows"][0]["overall"] == found.rows[0]["overall"]


def test_labels_are_not_changed_and_may_be_views():
    forests, labels = random_case(2)
    spread = [np.repeat(values, 2)[::2] for values in labels]
    before = [values.copy() for values in spread]
    assert metric_curves(forests, spread, VOXEL).rows == metric_curves(forests, labels, VOXEL).rows
    for now, then in zip(spread, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_bad_input_is_refused():
    forests, labels = random_case(3)
    with pytest.raises(InputError, match="merge_min_nodes: expected 1 or more, got 0"):
        metric_curves(forests, labels, VOXEL, merge_min_nodes=(1, 0))
    with pytest.raises(InputError, match="max_gap_nm"):
        metric_curves(forests, labels, VOXEL, max_gap_nm=(-1.0,))
    with pytest.raises(InputError, match="no skeleton"):
        metric_curves([], [], VOXEL)
    with pytest.raises(ShapeError):
        metric_curves(forests, labels[:-1], VOXEL)
    with pytest.raises(DtypeError):
        metric_curves(forests, [values.astype(np.float64) for values in labels], VOXEL)


def star(name: str, *arms: float) -> Skeleton:
    """Node 0 is the centre; arm k has one node so many nanometres away."""
    nodes = np.zeros((len(arms) + 1, 3))
    nodes[1:, 2] = np.array(arms) / VOXEL[2]
    index = np.arange(1, len(arms) + 1)
    return Skeleton(name, nodes, np.stack([index, 0 * index], axis=1))


def test_limits_that_repair_as_many_nodes_but_not_the_same():
    """Up to 40 nm: the one node that was closed becomes ambiguous, another one is closed."""
    first, second = star("a", 10, 10, 20, 20), star("b", 15, 20)
    nodes = np.concatenate([first.nodes, second.nodes])
    edges = np.concatenate([first.edges, second.edges + len(first.nodes)])
    forests = [build_forest(Skeleton("ab", nodes, edges), VOXEL)]
    labels = [np.array([0, 1, 1, 2, 2, 0, 3, 3], np.uint64)]
    found = metric_curves(forests, labels, VOXEL, max_gap_nm=(20.0, 40.0)).rows
    assert by_value(found, "max_gap_nm", "repaired_nodes") == {20.0: 1, 40.0: 1}
    assert by_value(found, "max_gap_nm", "ambiguous_nodes") == {20.0: 0, 40.0: 1}
    assert by_value(found, "max_gap_nm", "correct_edges") == {20.0: 2, 40.0: 2}
    assert by_value(found, "max_gap_nm", "split_edges") == {20.0: 2, 40.0: 0}


def test_ffn_columns_hold_the_tolerance_against_labels_before_repair():
    """Label 1 has 3 nodes on the first chain only if its gap is closed."""
    rows = [[1, 0, 1, 4, 4], [1, 1, 1, 2, 2]]
    forests = [build_forest(chain(f"n{i}", len(r)), VOXEL) for i, r in enumerate(rows)]
    labels = [np.array(r, np.uint64) for r in rows]
    found = metric_curves(forests, labels, VOXEL, merge_min_nodes=(2, 3)).rows
    assert by_value(found, "merge_min_nodes", "merges_total") == {2: 1, 3: 1}
    squares = {2: 8**2 + 8**2, 3: 8**2 + 16**2 + 8**2}
    expected = {nodes: square / 64 for nodes, square in squares.items()}
    assert by_value(found, "merge_min_nodes", "ffn_erl_nm") == expected
