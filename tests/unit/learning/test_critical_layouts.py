"""Critical components and edges on layouts that a person can check."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.learning.critical import (
    critical_components,
    number_both_signs,
    number_critical_components,
)
from pipeline.learning.critical_edges import critical_edges, number_critical_edges


def line(text: str) -> np.ndarray:
    """A row of labels: '.' is 0, '?' unknown, digits are ids."""
    ids = [IGNORE if c == "?" else np.uint64(0 if c == "." else int(c)) for c in text]
    return np.array(ids, np.uint64).reshape(1, 1, -1)


def row_edges(text: str) -> np.ndarray:
    """Predicted edges along x: '-' where a voxel is joined to its predecessor."""
    edges = np.zeros((3, 1, 1, len(text)), bool)
    edges[2, 0, 0] = [c == "-" for c in text]
    return edges


def along_x(mask: np.ndarray) -> str:
    assert not mask[:2].any()
    return "".join("#" if flag else " " for flag in mask[2, 0, 0])


@pytest.mark.parametrize(
    ("labels", "edges", "split", "merge"),
    [
        pytest.param("111111", " -----", "      ", "      ", id="perfect"),
        pytest.param("111111", " -- --", "   #  ", "      ", id="one edge missing"),
        pytest.param("111111", "      ", " #####", "      ", id="object missed"),
        pytest.param("11111111", " --   --", "   ###  ", "        ", id="gap of two voxels"),
        pytest.param("111111", "  ----", "      ", "      ", id="frayed end"),
        pytest.param("111222", " -----", "      ", "   #  ", id="touching objects merged"),
        pytest.param("111222", " --- -", "      ", "      ", id="boundary off by a voxel"),
        pytest.param("11...22", " ------", "       ", "  #### ", id="bridge"),
        pytest.param("11....", " --   ", "      ", "      ", id="rim grown"),
        pytest.param("11.....", " -  -- ", "       ", "   ####", id="object invented"),
        pytest.param("111?111", " ------", "       ", "       ", id="unknown voxel"),
        pytest.param("11?22", " ----", "     ", "     ", id="no merge through the unknown"),
    ],
)
def test_edges_of_a_row(labels: str, edges: str, split: str, merge: str) -> None:
    found = critical_edges(line(labels), row_edges(edges))
    assert [along_x(mask) for mask in found] == [split, merge]


def test_edges_of_an_image() -> None:
    """Objects 1 and 2 touch along a line; one edge across it is predicted, one of 2 is not."""
    labels = np.array([[1, 1, 1], [2, 2, 2]], np.uint64)
    positive = np.array([[[0, 0, 0], [0, 1, 0]], [[0, 1, 1], [0, 1, 0]]], bool)
    split, merge = critical_edges(labels, positive)
    assert split.shape == merge.shape == (2, 2, 3)
    # The last voxel of 2 has no edge: it is frayed, not split off.
    assert not split.any()
    assert np.argwhere(merge).tolist() == [[0, 1, 1]]


def test_a_bridge_down_an_image() -> None:
    labels = np.array([[1, 1], [0, 0], [0, 0], [2, 2]], np.uint64)
    positive = np.zeros((2, 4, 2), bool)
    positive[1, [0, 3], 1] = True
    positive[0, 1:, 0] = True
    split, merge = number_critical_edges(labels, positive)
    assert not split.any()
    # The edges along the bridge, and those at its voxels that lead aside.
    assert merge[0].tolist() == [[0, 0], [1, 0], [1, 0], [1, 0]]
    assert merge[1].tolist() == [[0, 0], [0, 1], [0, 1], [0, 0]]


def test_components_of_edges_are_numbered_apart() -> None:
    split, merge = number_critical_edges(line("11111112222"), row_edges(" - -- -----"))
    assert [int(n) for n in split[2, 0, 0]] == [0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0]
    assert [int(n) for n in merge[2, 0, 0]] == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_both_gaps_of_a_ring_are_flagged() -> None:
    ring = np.ones((5, 5), int)
    ring[1:4, 1:4] = 0
    broken = ring.copy()
    broken[0, 2] = broken[4, 2] = 0
    mask, count = critical_components(ring, broken, connectivity=4)
    assert count == 2
    np.testing.assert_array_equal(mask, ring != broken)
    assert critical_components(ring, broken, connectivity=4, mode="local")[1] == 2
    assert critical_components(ring, broken, connectivity=4, mode="global")[1] == 0


def test_one_gap_of_a_ring_is_not_critical() -> None:
    ring = np.ones((5, 5), int)
    ring[1:4, 1:4] = 0
    broken = ring.copy()
    broken[0, 2] = 0
    assert critical_components(ring, broken, connectivity=4)[1] == 0
    assert critical_components(ring, broken, connectivity=4, mode="local")[1] == 1


def test_connectivity_decides() -> None:
    target = np.array([[1, 1, 0], [0, 1, 1]])
    prediction = np.array([[1, 1, 0], [0, 0, 1]])
    assert critical_components(target, prediction, connectivity=4)[1] == 1
    assert critical_components(target, prediction, connectivity=8)[1] == 0
    assert critical_components(target, prediction)[1] == 0


def test_merge_of_two_objects() -> None:
    target = np.array([[1, 1, 0, 2, 2]])
    prediction = np.array([[5, 5, 5, 5, 5]])
    mask, count = critical_components(target, prediction, sign="positive")
    assert mask.tolist() == [[False, False, True, False, False]]
    assert count == 1


def test_ignored_voxels_connect_nothing() -> None:
    target, prediction = np.array([[1, 1, 1, 1]]), np.array([[1, 0, 1, 1]])
    ignore = np.array([[True, False, False, False]])
    assert critical_components(target, prediction)[1] == 1
    assert critical_components(target, prediction, ignore=ignore)[1] == 0


def test_both_signs_at_once() -> None:
    target = np.array([[3, 3, 3, 0, 0, 2, 0, 1, 1]])
    prediction = np.array([[3, 0, 3, 0, 0, 7, 7, 7, 7]])
    negative, positive = number_both_signs(target, prediction)
    assert negative.tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 0]]
    assert positive.tolist() == [[0, 0, 0, 0, 0, 0, 1, 0, 0]]


def test_runs_that_end_together_touch_over_the_corner() -> None:
    """Rows whose runs end at one place, in both orders: the diagonal neighbours must be seen."""
    for flip in (slice(None), slice(None, None, -1)):
        target = np.array([[1, 1, 2, 2], [3, 3, 1, 1]])[flip]
        prediction = np.array([[1, 0, 2, 2], [3, 3, 1, 1]])[flip]
        assert critical_components(target, prediction, connectivity=8)[1] == 1
        assert critical_components(target, prediction, connectivity=4)[1] == 0


def test_ids_that_differ_above_the_32nd_bit_are_two_objects() -> None:
    target = np.array([[7, 7, 7 + 2**32, 7 + 2**63]], np.uint64)
    prediction = np.array([[7, 0, 1, 1]], np.uint64)
    assert critical_components(target, prediction)[1] == 0
    prediction = np.array([[7, 7, 0, 0]], np.uint64)
    assert number_critical_components(target, prediction).tolist() == [[0, 0, 1, 2]]


def test_lists_are_taken_as_arrays() -> None:
    assert number_critical_components([[7, 7, 8]], [[7, 0, 0]]).tolist() == [[0, 0, 1]]  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (2, 0, 3), (3, 2, 0)])
@pytest.mark.parametrize("mode", ["linear", "local", "global"])
def test_images_without_voxels(shape: tuple[int, ...], mode: str) -> None:
    empty = np.zeros(shape, np.uint8)
    mask, count = critical_components(empty, empty, mode=mode)  # type: ignore[arg-type]
    assert (mask.shape, mask.dtype, count) == (shape, np.bool_, 0)
    split, merge = number_critical_edges(empty, np.zeros((len(shape), *shape), bool))
    assert split.shape == merge.shape == (len(shape), *shape)


@pytest.mark.parametrize("mode", ["linear", "local", "global"])
@pytest.mark.parametrize("sign", ["negative", "positive"])
def test_everything_missed_and_nothing_wrong(mode: str, sign: str) -> None:
    image, nothing = np.ones((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
    pair = (image, nothing) if sign == "negative" else (nothing, image)
    arguments = {"mode": mode, "sign": sign}
    assert critical_components(*pair, **arguments)[1] == 1  # type: ignore[arg-type]
    assert critical_components(*pair[::-1], **arguments)[1] == 0  # type: ignore[arg-type]
    assert critical_components(image, image, **arguments)[1] == 0  # type: ignore[arg-type]


def test_negative_labels_are_refused() -> None:
    good, bad = np.ones((2, 2), np.int32), np.array([[1, -1], [0, 1]], np.int32)
    with pytest.raises(DataError, match=r"target: .* found -1"):
        critical_components(bad, good)
    with pytest.raises(DataError, match=r"prediction: .* found -1"):
        critical_components(good, bad)
    with pytest.raises(DataError, match=r"labels: .* found -1"):
        critical_edges(bad, np.ones((2, 2, 2), bool))


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (ShapeError, {"prediction": np.zeros((3, 3), int)}),
        (DtypeError, {"prediction": np.zeros((2, 2))}),
        (InputError, {"connectivity": 6}),
        (InputError, {"sign": "both"}),
        (InputError, {"mode": "nonsense"}),
        (DtypeError, {"ignore": np.zeros((2, 2), np.uint8)}),
        (ShapeError, {"ignore": np.zeros((2, 3), bool)}),
    ],
)
def test_wrong_input_is_refused(error: type[Exception], changes: dict[str, object]) -> None:
    arguments: dict[str, object] = {"prediction": np.zeros((2, 2), int)} | changes
    with pytest.raises(error, match=r"got|must"):
        critical_components(np.ones((2, 2), int), **arguments)  # type: ignore[arg-type]


def test_wrong_edges_are_refused() -> None:
    labels = np.ones((2, 2, 2), np.uint64)
    with pytest.raises(ShapeError, match=r"\(3, Z, Y, X\)"):
        critical_edges(labels, np.ones((2, 2, 2), bool))
    with pytest.raises(DtypeError, match="bool"):
        critical_edges(labels, np.ones((3, 2, 2, 2), np.uint8))
    with pytest.raises(DtypeError, match="integer labels"):
        critical_edges(labels.astype(float), np.ones((3, 2, 2, 2), bool))
    with pytest.raises(ShapeError, match=r"\(2, Y, X\)"):
        critical_edges(labels[0], np.ones((3, 2, 2), bool))
