"""Contacts between fragments: counts, joints, blocks."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.arrays.skeleton_contacts import Contacts, combine_contacts, find_contacts
from pipeline.errors import DtypeError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi, Triple

Pair = tuple[int, int]
Voxel = tuple[int, ...]


def reference(
    labels: NDArray[np.uint64], origin: Triple, owned: Triple
) -> dict[Pair, tuple[list[int], list[int], Voxel, Voxel]]:
    """Faces, place sum, place in a, place in b, one voxel pair after the other."""
    found: dict[Pair, list[tuple[int, Voxel, Voxel]]] = {}
    for place in product(*map(range, owned)):
        for axis in range(3):
            beyond = tuple(p + (k == axis) for k, p in enumerate(place))
            if beyond[axis] == labels.shape[axis]:
                continue
            here, there = int(labels[place]), int(labels[beyond])
            if here and there and here != there:
                first = tuple(p + o for p, o in zip(place, origin, strict=True))
                second = tuple(p + o for p, o in zip(beyond, origin, strict=True))
                pair = (first, second) if here < there else (second, first)
                found.setdefault((min(here, there), max(here, there)), []).append((axis, *pair))
    table = {}
    for ids, rows in found.items():
        sums = [sum(a[k] + b[k] for _, a, b in rows) for k in range(3)]

        count = len(rows)
        squares = [
            sum((count * (a[k] + b[k]) - sums[k]) ** 2 for k in range(3)) for _, a, b in rows
        ]
        best = rows[squares.index(min(squares))]  # rows are in C order, so the first of equals
        faces = [sum(axis == k for axis, _, _ in rows) for k in range(3)]
        table[ids] = (faces, sums, best[1], best[2])
    return table


def as_dict(table: Contacts) -> dict[Pair, tuple[list[int], list[int], Voxel, Voxel]]:
    rows = zip(*(column.tolist() for column in table.columns().values()), strict=True)
    return {(a, b): (f, s, tuple(p), tuple(q)) for a, b, f, s, p, q in rows}


def volume_of(seed: int, shape: Triple, labels: int = 5) -> NDArray[np.uint64]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, labels, tuple(n // 2 + 1 for n in shape)).astype(np.uint64)
    fine = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[: shape[0], : shape[1], : shape[2]]
    noise = rng.random(shape) < 0.2
    fine[noise] = rng.integers(0, labels, noise.sum())
    return fine * np.uint64(2**61 + 7)


def blocks_of(volume: NDArray[np.uint64], block: Triple, about: Contacts | None) -> list[Contacts]:
    grid = BlockGrid(Roi((0, 0, 0), volume.shape), block, (0, 0, 0), (1, 1, 1))  # type: ignore[arg-type]
    return [
        find_contacts(
            volume[b.read.slices], origin=b.read.offset, write_shape=b.write.shape, about=about
        )
        for b in grid
    ]


def whole(volume: NDArray[np.uint64]) -> Contacts:
    return find_contacts(volume, origin=(0, 0, 0), write_shape=volume.shape)  # type: ignore[arg-type]


def test_a_patch_by_hand() -> None:
    labels = np.zeros((3, 5, 6), np.uint64)
    labels[:, :, :3], labels[:, :, 3:] = 9, 4
    table = find_contacts(labels, origin=(10, 20, 30), write_shape=(3, 5, 6))
    assert table.count.tolist() == [15]
    assert as_dict(table) == {
        (4, 9): ([0, 0, 15], [22 * 15, 44 * 15, 65 * 15], (11, 22, 33), (11, 22, 32))
    }


def test_of_equally_near_contacts_the_first_is_the_joint() -> None:
    labels = np.zeros((2, 2, 2), np.uint64)
    labels[0], labels[1] = 1, 2
    table = whole(labels)
    assert table.place_a.tolist() == [[0, 0, 0]]
    assert table.place_b.tolist() == [[1, 0, 0]]
    # Equal distance, the same predecessor: the axis z comes before y.
    corner = np.zeros((2, 2, 1), np.uint64)
    corner[0, 0], corner[1, 0], corner[0, 1] = 1, 2, 2
    assert whole(corner).place_b.tolist() == [[1, 0, 0]]


def test_a_pair_belongs_to_the_block_of_the_predecessor() -> None:
    labels = np.array([[[1, 1, 2, 2]]], np.uint64)
    lower = find_contacts(labels[..., :3], origin=(0, 0, 0), write_shape=(1, 1, 2))
    upper = find_contacts(labels[..., 2:], origin=(0, 0, 2), write_shape=(1, 1, 2))
    assert as_dict(lower) == {(1, 2): ([0, 0, 1], [0, 0, 3], (0, 0, 1), (0, 0, 2))}
    assert len(upper) == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([(5, 6, 7), (1, 9, 4), (8, 1, 1), (6, 6, 6)]))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_as_the_plain_reference(seed: int, shape: Triple) -> None:
    volume = volume_of(seed, shape)
    owned: Triple = (max(1, shape[0] - 1), shape[1], max(1, shape[2] - 1))
    found = find_contacts(volume, origin=(3, 50, 7), write_shape=owned)
    assert as_dict(found) == reference(volume, (3, 50, 7), owned)
    assert as_dict(whole(volume)) == reference(volume, (0, 0, 0), shape)


def test_many_pairs_outgrow_the_first_tables() -> None:
    volume = np.random.default_rng(0).integers(1, 2**63, (9, 10, 11)).astype(np.uint64)
    found = whole(volume)
    assert len(found) > 2000
    assert as_dict(found) == reference(volume, (0, 0, 0), (9, 10, 11))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 4, 4), (3, 5, 2), (12, 3, 3), (1, 1, 14)]))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_blocks_add_up(seed: int, block: Triple) -> None:
    volume = volume_of(seed, (12, 11, 14))
    exact = whole(volume)
    tables = blocks_of(volume, block, None)
    total = combine_contacts(tables[::-1])
    for name in ("a", "b", "faces", "place_sum"):
        np.testing.assert_array_equal(getattr(total, name), getattr(exact, name))
    joints = total.place_a, total.place_b
    for side, ids in zip(joints, (total.a, total.b), strict=True):
        np.testing.assert_array_equal(volume[tuple(side.T)], ids)
    assert (np.abs(total.place_a - total.place_b).sum(axis=1) == 1).all()
    again = combine_contacts(tables)
    assert as_dict(again) == as_dict(total), "the order of the blocks shows"
    # A second pass leaves no trace of the blocks.
    refined = combine_contacts(blocks_of(volume, block, total))
    assert as_dict(refined) == as_dict(exact)


def test_the_nearest_proposal_is_taken() -> None:
    ids = np.array([1], np.uint64), np.array([2], np.uint64)

    def table(count: int, place: int, middle: int) -> Contacts:
        faces = np.array([[0, 0, count]])
        sums = np.array([[0, 0, (2 * middle + 1) * count]])
        return Contacts(*ids, faces, sums, np.array([[0, 0, place]]), np.array([[0, 0, place + 1]]))

    total = combine_contacts([table(1, 0, 0), table(9, 9, 10), table(1, 30, 30)])
    assert total.count.tolist() == [11]
    assert total.place_a.tolist() == [[0, 0, 9]]


def test_empty_and_odd_input() -> None:
    nothing = whole(np.zeros((3, 4, 5), np.uint64))
    assert len(nothing) == len(combine_contacts([])) == len(combine_contacts([nothing])) == 0
    volume = volume_of(1, (6, 7, 8))
    turned = np.asfortranarray(volume)
    assert as_dict(whole(turned)) == as_dict(whole(volume))
    every_other = volume_of(2, (6, 14, 8))[:, ::2]
    assert as_dict(whole(every_other)) == as_dict(whole(every_other.copy()))
    kept = volume.copy()
    kept.setflags(write=False)
    whole(kept)


def test_refusals() -> None:
    labels = np.ones((4, 4, 4), np.uint64)
    with pytest.raises(DtypeError, match="uint64"):
        find_contacts(labels.astype(np.int64), origin=(0, 0, 0), write_shape=(4, 4, 4))
    with pytest.raises(ShapeError, match="Z, Y, X"):
        find_contacts(labels[0], origin=(0, 0, 0), write_shape=(4, 4, 4))
    for wrong in ((2, 4, 4), (5, 4, 4), (0, 4, 4)):
        with pytest.raises(ShapeError, match="one plane more"):
            find_contacts(labels, origin=(0, 0, 0), write_shape=wrong)
    volume = volume_of(3, (4, 4, 4))
    with pytest.raises(InputError, match="lacks a pair"):
        find_contacts(volume, origin=(0, 0, 0), write_shape=(4, 4, 4), about=Contacts.empty())
    columns = whole(volume).columns()
    with pytest.raises(InputError, match="sorted"):
        Contacts(**{name: column[::-1] for name, column in columns.items()})
    with pytest.raises(InputError, match="0 < a < b"):
        Contacts(**{**columns, "a": columns["b"], "b": columns["a"]})
    with pytest.raises(ShapeError, match="faces"):
        Contacts(**{**columns, "faces": columns["faces"][:-1]})
    with pytest.raises(DtypeError, match="place_a"):
        Contacts(**{**columns, "place_a": columns["place_a"].astype(float)})
