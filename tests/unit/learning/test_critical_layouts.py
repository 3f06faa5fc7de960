"""Critical components and edges on layouts that a person can check."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DtypeError, InputError, ShapeError
from pipeline.learning.critical import critical_components
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


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (ShapeError, {"prediction": np.zeros((3, 3), int)}),
        (DtypeError, {"prediction": np.zeros((2, 2))}),
        (InputError, {"connectivity": 6}),
        (InputError, {"sign": "both"}),
        (InputError, {"mode": "nonsense"}),
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
