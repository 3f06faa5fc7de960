"""Critical components against the literal definitions, on small random cases."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.arrays.labels import IGNORE
from pipeline.learning.critical import critical_components
from pipeline.learning.critical_edges import critical_edges

Voxel = tuple[int, ...]
Node = frozenset[Voxel]

AXES_CHANGED = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}
IDS = np.array([0, 7, 2**31 + 5, 2**63 + 1], dtype=np.uint64)


def are_neighbours(a: Voxel, b: Voxel, connectivity: int) -> bool:
    steps = [abs(i - j) for i, j in zip(a, b, strict=True)]
    return max(steps) == 1 and sum(steps) <= AXES_CHANGED[connectivity]


def components(labels: dict[Voxel, int], connectivity: int) -> list[set[Voxel]]:
    """Components of voxels that touch and carry one label."""
    found, left = [], set(labels)
    while left:
        component, queue = set(), [left.pop()]
        while queue:
            v = queue.pop()
            component.add(v)
            near = {
                u for u in left if labels[u] == labels[v] and are_neighbours(u, v, connectivity)
            }
            left -= near
            queue.extend(near)
        found.append(component)
    return found


def touch(a: set[Voxel], b: set[Voxel], connectivity: int) -> bool:
    return any(are_neighbours(u, v, connectivity) for u in a for v in b)


def reference_components(
    target: np.ndarray, prediction: np.ndarray, ignore: np.ndarray, connectivity: int, sign: str
) -> tuple[list[set[Voxel]], list[set[Voxel]]]:
    """All mistake components of a sign, and the critical ones by Corollary 1 or 2, literally."""
    y, other = (target, prediction) if sign == "negative" else (prediction, target)
    voxels = [tuple(v) for v in np.argwhere((y != 0) & ~ignore)]
    labels = {v: int(y[v]) for v in voxels}
    mistakes = {v: label for v, label in labels.items() if other[v] == 0}
    objects = components(labels, connectivity)
    remaining = components({v: labels[v] for v in labels if v not in mistakes}, connectivity)
    critical, every = [], components(mistakes, connectivity)
    for c in every:
        (a,) = [a for a in objects if a >= c]
        parts = [b for b in remaining if b <= a and touch(b, c, connectivity)]
        if a == c or len(parts) >= 2:
            critical.append(c)
    return every, critical


@st.composite
def label_pairs(draw: st.DrawFn, dimensions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    largest = 6 if dimensions == 2 else 4
    shape = draw(st.tuples(*[st.integers(1, largest)] * dimensions))
    indices = hnp.arrays(np.int8, shape, elements=st.integers(0, 3))
    ignored = draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 9))) == 9
    return IDS[draw(indices)], IDS[draw(indices)], ignored


CASES = [(2, 4), (2, 8), (3, 6), (3, 18), (3, 26)]


@pytest.mark.parametrize(("dimensions", "connectivity"), CASES)
@given(data=st.data(), sign=st.sampled_from(["negative", "positive"]), use_ignore=st.booleans())
@settings(max_examples=60, deadline=None)
def test_equals_the_literal_definition(
    data: st.DataObject, sign: str, use_ignore: bool, dimensions: int, connectivity: int
) -> None:
    target, prediction, ignore = data.draw(label_pairs(dimensions))
    ignore &= use_ignore
    before = target.copy(), prediction.copy()
    mask, count = critical_components(
        target,
        prediction,
        connectivity=connectivity,
        sign=sign,
        ignore=ignore if use_ignore else None,
    )
    _, expected = reference_components(target, prediction, ignore, connectivity, sign)
    assert count == len(expected)
    assert {tuple(v) for v in np.argwhere(mask)} == set().union(*expected)
    np.testing.assert_array_equal(target, before[0])
    np.testing.assert_array_equal(prediction, before[1])


def count_objects(labels: dict[Voxel, int], connectivity: int) -> int:
    return len(components(labels, connectivity))


def removal_shows(labels: dict[Voxel, int], c: set[Voxel], connectivity: int, mode: str) -> bool:
    """Definitions 2 and 3 (local) or the number of objects (global), literally."""
    if mode == "local":
        around = {v for v in labels if v in c or touch({v}, c, connectivity)}
        labels = {v: labels[v] for v in around}
    without = {v: label for v, label in labels.items() if v not in c}
    return count_objects(labels, connectivity) != count_objects(without, connectivity)


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize(("dimensions", "connectivity"), CASES)
@given(data=st.data(), sign=st.sampled_from(["negative", "positive"]))
@settings(max_examples=40, deadline=None)
def test_the_other_definitions_and_how_they_imply_each_other(
    data: st.DataObject, sign: str, dimensions: int, connectivity: int, mode: str
) -> None:
    target, prediction, ignore = data.draw(label_pairs(dimensions))
    every, linear = reference_components(target, prediction, ignore, connectivity, sign)
    y = target if sign == "negative" else prediction
    labels = {tuple(v): int(y[tuple(v)]) for v in np.argwhere((y != 0) & ~ignore)}
    expected = [c for c in every if removal_shows(labels, c, connectivity, mode)]
    mask, count = critical_components(
        target, prediction, connectivity=connectivity, mode=mode, sign=sign, ignore=ignore
    )
    assert count == len(expected)
    assert {tuple(v) for v in np.argwhere(mask)} == set().union(*expected)
    if mode == "local":
        assert all(c in expected for c in linear)
    else:
        assert all(c in linear for c in expected)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_layout_and_type_of_the_arrays_do_not_matter(data: st.DataObject) -> None:
    target, prediction, _ = data.draw(label_pairs(3))
    small = {int(i): n for n, i in enumerate(IDS)}
    expected, count = critical_components(target, prediction, connectivity=18)
    for dtype in (np.uint8, np.int32, np.int64):
        wide = np.zeros((2 * target.shape[0], *target.shape[1:]), dtype)
        wide[::2] = np.vectorize(small.__getitem__)(target)
        mask, found = critical_components(wide[::2], prediction, connectivity=18)
        assert found == count
        np.testing.assert_array_equal(mask, expected)


def edge_set(edges: np.ndarray) -> dict[Node, tuple[int, ...]]:
    """Each edge as a pair of voxels, with its index (channel, z, y, x)."""
    found = {}
    for d, *v in np.argwhere(edges):
        u = list(v)
        u[d - 0] -= 1
        found[frozenset((tuple(v), tuple(u)))] = (d, *v)
    return found


def connected(edges: Iterable[Node], may_pass: set[Voxel] | None = None) -> list[set[Node]]:
    """Sets of edges that hang together at common voxels (those in `may_pass`, if given)."""
    found, left = [], set(edges)
    while left:
        group, queue = set(), [left.pop()]
        while queue:
            e = queue.pop()
            group.add(e)
            near = {f for f in left if any(may_pass is None or v in may_pass for v in e & f)}
            left -= near
            queue.extend(near)
        found.append(group)
    return found


def reference_edges(labels: np.ndarray, positive: np.ndarray) -> list[set[tuple[int, ...]]]:
    exists = np.zeros(positive.shape, bool)
    for d, z, y, x in product(range(3), *map(range, labels.shape)):
        v, u = [z, y, x], [z, y, x]
        u[d] -= 1
        known = u[d] >= 0 and IGNORE not in (labels[tuple(v)], labels[tuple(u)])
        exists[d, z, y, x] = known
    every = edge_set(exists)
    predicted = {e for e in every if positive[every[e]]}
    target = {e for e in every if len({int(labels[v]) for v in e}) == 1 and labels[min(e)] != 0}
    parts = [set().union(*group) for group in connected(predicted & target)]
    kept = set().union(*parts)
    decoded, wanted = (np.zeros(labels.shape, np.uint64) for _ in range(2))
    for image, edges in ((decoded, predicted), (wanted, target)):
        for number, group in enumerate(connected(edges), 1):
            for v in set().union(*group):
                image[v] = number
    result = []
    for sign, wrong in (("negative", target - predicted), ("positive", predicted - target)):
        free = {v for e in wrong for v in e} - kept
        critical: set[Node] = set()
        for group in connected(wrong, free):
            ends = set().union(*group)
            if sum(bool(part & ends) for part in parts) != 1:
                critical |= group
        nowhere = np.zeros(labels.shape, bool)
        _, voxels = reference_components(wanted, decoded, nowhere, 6, sign)
        bad = set().union(*voxels)
        critical |= {e for e in every if e & bad}
        result.append({every[e] for e in critical})
    return result


@st.composite
def edge_cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    ids = np.append(IDS[:3], [IDS[1], IDS[2], IGNORE])
    labels = ids[draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 5)))]
    likely = draw(st.integers(1, 9))
    chance = draw(hnp.arrays(np.int8, (3, *shape), elements=st.integers(0, 9)))
    return labels, chance < likely


@given(case=edge_cases())
@settings(max_examples=200, deadline=None)
def test_edges_equal_the_literal_definition(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, positive = case
    split, merge = critical_edges(labels, positive)
    expected = reference_edges(labels, positive)
    assert {tuple(e) for e in np.argwhere(split)} == expected[0]
    assert {tuple(e) for e in np.argwhere(merge)} == expected[1]


@given(case=edge_cases())
@settings(max_examples=60, deadline=None)
def test_a_perfect_prediction_has_no_critical_edge(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, _ = case
    target = np.zeros((3, *labels.shape), bool)
    for d, z, y, x in product(range(3), *map(range, labels.shape)):
        u = [z, y, x]
        u[d] -= 1
        here = labels[z, y, x]
        target[d, z, y, x] = u[d] >= 0 and here == labels[tuple(u)] and here not in (0, IGNORE)
    assert not any(mask.any() for mask in critical_edges(labels, target))
