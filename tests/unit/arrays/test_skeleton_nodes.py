"""Nodes against a box: voxels, spans, labels; each against numpy, one axis at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_nodes import (
    crop_skeleton,
    inside_roi,
    node_span,
    node_voxels,
    nodes_inside,
    take_labels,
)
from pipeline.errors import InputError, ShapeError
from pipeline.geometry import Roi

ROI = Roi((-2, 0, 3), (4, 5, 6))
PLACES = st.lists(st.tuples(*(st.floats(-6, 12) | st.integers(-3, 9).map(float),) * 3), max_size=20)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(PLACES, st.booleans())
def test_spans_and_masks_are_those_of_numpy(places, strided):
    nodes = np.array(places).reshape(-1, 3)
    given_nodes = np.asfortranarray(nodes) if strided else nodes
    skeleton = Skeleton("a", given_nodes, [])
    voxels = np.floor(nodes).astype(np.int64)
    mask = np.ones(len(nodes), bool)
    for axis in range(3):
        mask &= (voxels[:, axis] >= ROI.offset[axis]) & (voxels[:, axis] < ROI.end[axis])
    assert node_voxels(skeleton).tolist() == voxels.tolist()
    assert node_voxels(skeleton).dtype == np.int64
    assert nodes_inside(skeleton, ROI).tolist() == mask.tolist()
    assert inside_roi(voxels[:, ::-1].copy()[:, ::-1], ROI).tolist() == mask.tolist()
    assert inside_roi(voxels.astype(np.int32), ROI).dtype == np.bool_
    span = node_span(skeleton, ROI)
    assert (span.nodes, span.inside) == (len(nodes), mask.sum())
    if len(nodes):
        assert span.low == tuple(voxels.min(axis=0))
        assert span.high == tuple(voxels.max(axis=0))
    part = crop_skeleton(skeleton, ROI)
    assert (0 if part is None else len(part.nodes)) == mask.sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**62, -(2.0**62)])
@pytest.mark.parametrize("axis", range(3))
def test_a_coordinate_without_a_voxel_is_refused_wherever_it_is(bad, axis):
    nodes = np.zeros((5, 3))
    nodes[3, axis] = bad
    for look in (node_voxels, lambda s: node_span(s, ROI), lambda s: nodes_inside(s, ROI)):
        with pytest.raises(InputError, match=r"skeleton a: a coordinate is not finite, or beyond"):
            look(Skeleton("a", nodes, []))
    largest = np.nextafter(2.0**62, 0)
    far = Skeleton("a", [[largest, -largest, 0.0]], [])
    assert node_voxels(far).tolist() == [[int(largest), -int(largest), 0]]
    assert node_span(far, ROI).high == (int(largest), -int(largest), 0)


def test_labels_go_to_the_rows_asked_for_and_to_no_other():
    labels = np.arange(24, dtype=np.uint64).reshape(4, 3, 2).T + np.uint64(2**63)
    voxels = np.array([[11, 20, 33], [10, 22, 30], [0, 0, 0], [11, 22, 33]])
    found = np.full(4, 7, np.uint64)
    take_labels(labels, (10, 20, 30), voxels, np.array([3, 0]), found)
    assert found.tolist() == [2**63 + 19, 7, 7, 2**63 + 23]
    for outside in ([9, 20, 30], [12, 20, 30], [10, 23, 30], [10, 20, 34], [10, 20, 29]):
        with pytest.raises(ShapeError, match=r"outside the labels of shape \(2, 3, 4\)"):
            take_labels(labels, (10, 20, 30), np.array([outside]), np.array([0]), found[:1])
