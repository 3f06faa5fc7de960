"""Gaps in labels along skeletons: who claims a node, and up to which length."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Forest, build_forest
from pipeline.arrays.skeleton_gaps import close_gaps, find_claims


def star(*arms: int) -> Forest:
    """Node 0 is the centre; arm k has one node, so many nanometres away along axis k % 3."""
    nodes = np.zeros((len(arms) + 1, 3))
    for arm, length in enumerate(arms):
        nodes[arm + 1, arm % 3] = length * (-1) ** (arm // 3)
    index = np.arange(1, len(arms) + 1)
    return build_forest(Skeleton("star", nodes, np.stack([index, 0 * index], axis=1)), (1, 1, 1))


def labels(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_two_labels_claim_the_centre_by_their_shortest_paths():
    """Label 7 on arms of 10, 20 and 40 nm, label 9 on arms of 15 and 25 nm."""
    claims = find_claims(labels(0, 7, 9, 7, 9, 7), star(10, 15, 20, 25, 40))
    assert claims.position.tolist() == [0]
    assert claims.label.tolist() == [7]
    assert (claims.path_nm.tolist(), claims.next_nm.tolist()) == ([30.0], [40.0])
    counted = {gap: claims.counts(gap) for gap in (0.0, 29.9, 30.0, 39.9, 40.0, None)}
    assert list(counted.values()) == [(0, 0), (0, 0), (1, 0), (1, 0), (0, 1), (0, 1)]


@pytest.mark.parametrize(("gap", "centre"), [(29.0, 0), (30.0, 7), (35.0, 7), (40.0, 0), (None, 0)])
def test_labels_up_to_a_limit(gap, centre):
    given = labels(0, 7, 9, 7, 9, 7)
    claims = find_claims(given, star(10, 15, 20, 25, 40))
    assert close_gaps(given, claims, gap).tolist() == [centre, 7, 9, 7, 9, 7]
    assert given.tolist() == [0, 7, 9, 7, 9, 7]


def test_equal_paths_of_two_labels_leave_the_node_ambiguous_as_soon_as_one_counts():
    claims = find_claims(labels(0, 7, 9, 7, 9), star(10, 10, 20, 20))
    assert (claims.path_nm.tolist(), claims.next_nm.tolist()) == ([30.0], [30.0])
    assert [claims.counts(gap) for gap in (29.0, 30.0, None)] == [(0, 0), (0, 1), (0, 1)]


def test_one_label_alone_needs_two_nodes():
    claims = find_claims(labels(0, 7, 9), star(10, 20))
    assert len(claims.position) == 0
    assert claims.counts(None) == (0, 0)
    claims = find_claims(labels(0, 7, 7), star(10, 20))
    assert claims.next_nm.tolist() == [np.inf]
    assert claims.counts(None) == (1, 0)


def test_without_background_or_nodes_nothing_is_claimed():
    for forest, given in ((star(1, 2), labels(3, 3, 3)), (star(1, 2), labels(0, 0, 0))):
        claims = find_claims(given, forest)
        assert len(claims.position) == 0
        assert close_gaps(given, claims).tolist() == given.tolist()
    empty = build_forest(Skeleton("e", np.zeros((0, 3)), np.zeros((0, 2))), (1, 1, 1))
    assert close_gaps(labels(), find_claims(labels(), empty)).shape == (0,)


def test_a_path_as_long_as_the_limit_but_for_rounding_is_closed():
    claims = find_claims(labels(0, 7, 7), star(0.1, 0.2))
    assert claims.counts(0.3 - 1e-9) == (1, 0)
    assert claims.counts(0.29) == (0, 0)
