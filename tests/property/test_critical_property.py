"""Critical components against the literal definitions, on small random cases."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from pipeline.arrays.labels import IGNORE
from pipeline.learning.critical import (
    critical_components,
    number_both_signs,
    number_critical_components,
)
from pipeline.learning.critical_edges import critical_edges, number_critical_edges

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
@settings(max_examples=60, deadline=None, derandomize=True)
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
    both = number_both_signs(
        target, prediction, connectivity=connectivity, ignore=ignore if use_ignore else None
    )
    numbers = both[0 if sign == "negative" else 1]
    assert numbers.dtype == np.int32
    # Each component has one number, and numbers rise with first voxels.
    assert [set(map(tuple, np.argwhere(numbers == n))) for n in range(1, count + 1)] == sorted(
        expected, key=min
    )
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
@settings(max_examples=40, deadline=None, derandomize=True)
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
@settings(max_examples=40, deadline=None, derandomize=True)
def test_layout_and_type_of_the_arrays_do_not_matter(data: st.DataObject) -> None:
    target, prediction, ignore = data.draw(label_pairs(3))
    expected = number_both_signs(target, prediction, connectivity=18, ignore=ignore)
    assert expected[0].flags.c_contiguous
    small = np.searchsorted(IDS, target)
    for dtype in (np.uint8, np.int16, np.int32, np.int64, ">u2", ">i8"):
        wide = np.zeros((2 * target.shape[0], *target.shape[1:]), dtype)
        wide[::2] = small
        layouts = (wide[::2], small.astype(dtype)[::-1, :, ::-1].copy()[::-1, :, ::-1])
        for layout in (*layouts, np.asfortranarray(small.astype(dtype))):
            layout.flags.writeable = False
            found = number_both_signs(layout, prediction, connectivity=18, ignore=ignore)
            np.testing.assert_array_equal(found, expected)
    big = prediction.astype(">u8")
    found = number_both_signs(target, big, connectivity=18, ignore=np.asfortranarray(ignore))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sign", ["negative", "positive"])
@pytest.mark.parametrize(("dimensions", "connectivity"), CASES)
def test_larger_images_in_all_modes(dimensions: int, connectivity: int, sign: str) -> None:
    random = np.random.default_rng(connectivity)
    shape = (19, 31) if dimensions == 2 else (5, 9, 17)
    structure = ndimage.generate_binary_structure(dimensions, AXES_CHANGED[connectivity])
    for right in (0.5, 0.75, 0.95):
        target = IDS[random.choice(4, shape, p=[0.3, 0.4, 0.2, 0.1])]
        prediction = np.where(random.random(shape) < right, target, random.permuted(target))
        ignore = random.random(shape) < 0.05
        for mode, masks in masks_by_hand(target, prediction, ignore, structure, sign).items():
            numbers = number_critical_components(
                target,
                prediction,
                connectivity=connectivity,
                mode=mode,
                sign=sign,
                ignore=ignore,
            )
            assert numbers.max() == len(masks)
            for mask in masks:
                (number,) = np.unique(numbers[mask])
                np.testing.assert_array_equal(numbers == number, mask)


def masks_by_hand(
    target: np.ndarray,
    prediction: np.ndarray,
    ignore: np.ndarray,
    structure: np.ndarray,
    sign: str,
) -> dict[str, list[np.ndarray]]:
    """Critical components of each mode, from dilations and counted components alone."""
    y, other = (target, prediction) if sign == "negative" else (prediction, target)
    masks: dict[str, list[np.ndarray]] = {"linear": [], "local": [], "global": []}
    for label in np.unique(y[y != 0]):
        body = (y == label) & ~ignore
        remaining, _ = ndimage.label(body & (other != 0), structure)
        mistakes, count = ndimage.label(body & (other == 0), structure)
        objects = ndimage.label(body, structure)[1]
        for number in range(1, count + 1):
            c = mistakes == number
            shell = ndimage.binary_dilation(c, structure) & body & ~c
            if len(np.unique(remaining[shell])) != 1:
                masks["linear"].append(c)
            if ndimage.label(shell, structure)[1] != 1:
                masks["local"].append(c)
            if ndimage.label(body & ~c, structure)[1] != objects:
                masks["global"].append(c)
    return masks


def edge_set(edges: np.ndarray) -> dict[Node, tuple[int, ...]]:
    """Each edge as a pair of voxels, with its index (channel, *voxel)."""
    found = {}
    for d, *v in map(tuple, np.argwhere(edges)):
        u = list(v)
        u[d] -= 1
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


def existing_edges(labels: np.ndarray) -> np.ndarray:
    """Edges whose two ends lie in the patch and are known."""
    exists = np.zeros((labels.ndim, *labels.shape), bool)
    for d, *v in product(range(labels.ndim), *map(range, labels.shape)):
        u = list(v)
        u[d] -= 1
        exists[(d, *v)] = u[d] >= 0 and IGNORE not in (labels[tuple(v)], labels[tuple(u)])
    return exists


def true_edges(labels: np.ndarray) -> np.ndarray:
    """Edges between two voxels of one object."""
    wanted = existing_edges(labels)
    for d, *v in np.argwhere(wanted):
        u = list(v)
        u[d] -= 1
        wanted[(d, *v)] = labels[tuple(v)] == labels[tuple(u)] != 0
    return wanted


def reference_edges(
    labels: np.ndarray, positive: np.ndarray
) -> list[dict[tuple[int, ...], tuple[str, int]]]:
    """For each sign the critical edges, each with the name of the component it counts for."""
    every, target = edge_set(existing_edges(labels)), set(edge_set(true_edges(labels)))
    predicted = {e for e in every if positive[every[e]]}
    parts = [set().union(*group) for group in connected(predicted & target)]
    kept = set().union(*parts)
    decoded, wanted = (np.zeros(labels.shape, np.uint64) for _ in range(2))
    for image, edges in ((decoded, predicted), (wanted, target)):
        for number, group in enumerate(connected(edges), 1):
            for v in set().union(*group):
                image[v] = number
    result = []
    nowhere = np.zeros(labels.shape, bool)
    nearest = 6 if labels.ndim == 3 else 4
    for sign, wrong in (("negative", target - predicted), ("positive", predicted - target)):
        free = {v for e in wrong for v in e} - kept
        critical: dict[Node, tuple[str, int]] = {}
        for number, group in enumerate(connected(wrong, free)):
            ends = set().union(*group)
            if sum(bool(part & ends) for part in parts) != 1:
                critical |= dict.fromkeys(group, ("edges", number))
        _, voxels = reference_components(wanted, decoded, nowhere, nearest, sign)
        component = {v: ("voxels", number) for number, c in enumerate(voxels) for v in c}
        for e in every:
            for v in sorted(e):  # the predecessor first, so that the edge's own voxel counts
                if v in component:
                    critical[e] = component[v]
        result.append({every[e]: name for e, name in critical.items()})
    return result


@st.composite
def edge_cases(draw: st.DrawFn, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predicted edges: any, or the true ones but for some."""
    largest = 4 if dimensions == 3 else 6
    shape = draw(st.tuples(*[st.integers(1, largest)] * dimensions))
    ids = np.append(IDS[:3], [IDS[1], IDS[2], IGNORE])
    labels = ids[draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 5)))]
    if draw(st.booleans()):  # larger objects
        labels = np.repeat(labels[..., : (shape[-1] + 1) // 2], 2, axis=-1)[..., : shape[-1]]
    likely = draw(st.integers(1, 9))
    chance = draw(hnp.arrays(np.int8, (dimensions, *shape), elements=st.integers(0, 9)))
    changed = chance < likely
    return labels, true_edges(labels) ^ changed if draw(st.booleans()) else changed


def check_edges(labels: np.ndarray, positive: np.ndarray) -> None:
    masks = critical_edges(labels, positive)
    numbers = number_critical_edges(labels, positive)
    for mask, number, expected in zip(
        masks, numbers, reference_edges(labels, positive), strict=True
    ):
        assert mask.dtype == np.bool_
        assert number.dtype == np.int32
        assert mask.shape == number.shape == positive.shape
        np.testing.assert_array_equal(mask, number > 0)
        assert {tuple(e) for e in np.argwhere(mask)} == set(expected)
        names = {(int(number[e]), name) for e, name in expected.items()}
        assert len(names) == len(set(expected.values())) == len({n for n, _ in names})


@pytest.mark.parametrize("dimensions", [2, 3])
@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_edges_equal_the_literal_definition(data: st.DataObject, dimensions: int) -> None:
    check_edges(*data.draw(edge_cases(dimensions)))


@pytest.mark.parametrize("flips", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("shape", [(9, 14), (3, 5, 9)])
def test_edges_of_larger_patches(shape: tuple[int, ...], flips: float) -> None:
    random = np.random.default_rng(int(100 * flips))
    coarse = random.choice(4, tuple(-(-n // 3) for n in shape), p=[0.4, 0.3, 0.2, 0.1])
    for axis, extent in enumerate(shape):
        coarse = np.repeat(coarse, 3, axis).take(range(extent), axis)
    for ids in (IDS, np.append(IDS[:3], IGNORE)):
        labels = ids[coarse]
        check_edges(labels, true_edges(labels) ^ (random.random((len(shape), *shape)) < flips))


@pytest.mark.parametrize("dimensions", [2, 3])
@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_perfect_prediction_has_no_critical_edge(data: st.DataObject, dimensions: int) -> None:
    labels, _ = data.draw(edge_cases(dimensions))
    assert not any(mask.any() for mask in critical_edges(labels, true_edges(labels)))


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_an_image_is_a_volume_of_one_plane(data: st.DataObject) -> None:
    labels, positive = data.draw(edge_cases(2))
    volume = np.concatenate([np.ones_like(positive[:1]), positive])[:, None]
    for flat, deep in zip(
        number_critical_edges(labels, positive),
        number_critical_edges(labels[None], volume),
        strict=True,
    ):
        np.testing.assert_array_equal(flat, deep[1:, 0])
        assert not deep[0].any()


@given(data=st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_layout_and_type_of_the_edges_do_not_matter(data: st.DataObject) -> None:
    labels, positive = data.draw(edge_cases(3))
    expected = number_critical_edges(labels, positive)
    before = labels.copy(), positive.copy()
    edges = np.moveaxis(np.moveaxis(positive, 0, -1).copy(), -1, 0)
    edges.flags.writeable = False
    for layout in (
        labels.astype(">u8"),
        np.asfortranarray(labels),
        labels[:, ::-1].copy()[:, ::-1],
    ):
        layout.flags.writeable = False
        np.testing.assert_array_equal(number_critical_edges(layout, edges), expected)
    np.testing.assert_array_equal(labels, before[0])
    np.testing.assert_array_equal(positive, before[1])
