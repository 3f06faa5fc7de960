from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.arrays.fragments import BlockFragments, extract_fragments
from pipeline.arrays.labels import affinities_from_labels
from pipeline.errors import DtypeError, InputError, PipelineError, ShapeError


def whole(affinities: NDArray, low: int = 100, high: int = 200) -> BlockFragments:
    shape = affinities.shape[1:]
    return extract_fragments(
        affinities, origin=(0, 0, 0), write_shape=shape, volume_shape=shape, low=low, high=high
    )


def line(*values: int, dtype: type = np.uint8) -> NDArray:
    """Voxels along x; value i joins voxel i to voxel i - 1."""
    affinities = np.zeros((3, 1, 1, len(values)), dtype)
    affinities[2, 0, 0] = values
    return affinities


def labels_of(*values: int, low: int = 100, high: int = 200) -> list[int]:
    return whole(line(*values), low, high).labels.ravel().tolist()


def test_a_voxel_points_along_its_largest_edge() -> None:
    # Voxel 2 prefers voxel 3: the edge of 120 between voxels 1 and 2 stays open.
    assert labels_of(0, 150, 120, 160) == [1, 1, 3, 3]


def test_equal_edges_go_to_the_smaller_id() -> None:
    # Every voxel but the first takes the edge that it stores: one fragment.
    assert labels_of(0, 150, 150, 150, 150) == [1] * 5
    # Voxel 1 stores the z edge of 150 and ties with its successor along x: z has the smaller id.
    affinities = np.zeros((3, 2, 1, 3), np.uint8)
    affinities[0, 1, 0, 1] = affinities[2, 1, 0, 2] = 150
    affinities[0, 1, 0, 2] = 160
    assert whole(affinities).labels.tolist() == [[[0, 2, 3]], [[0, 2, 3]]]


def test_high_joins_what_no_voxel_points_at() -> None:
    values = (0, 250, 220, 250)
    assert labels_of(*values, high=220) == [1, 1, 1, 1]
    assert labels_of(*values, high=221) == [1, 1, 3, 3]


def test_below_low_is_background() -> None:
    assert labels_of(0, 99, 0, 100, 0) == [0, 0, 3, 3, 0]
    assert labels_of(0, 1, 0, low=1) == [1, 1, 0]


def test_first_planes_are_ignored() -> None:
    affinities = np.full((3, 1, 1, 2), 255, np.uint8)
    affinities[2, 0, 0, 1] = 0
    assert not whole(affinities).labels.any()


def test_further_channels_are_ignored() -> None:
    near = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 6)).astype(np.uint8)
    far = np.full((2, 4, 5, 6), 255, np.uint8)
    both = np.concatenate([near, far])
    np.testing.assert_array_equal(whole(both).labels, whole(near).labels)


def test_perfect_affinities_give_the_labels_back() -> None:
    truth = np.zeros((6, 9, 12), np.uint64)
    truth[1:3, 2:8, 1:11] = 5
    truth[3:6, 2:8, 1:11] = 7
    found = whole(affinities_from_labels(truth))
    pairs = np.unique(np.stack([truth.ravel(), found.labels.ravel()]), axis=1).T.tolist()
    first5, first7 = 1 + (1 * 9 + 2) * 12 + 1, 1 + (3 * 9 + 2) * 12 + 1
    assert pairs == [[0, 0], [5, first5], [7, first7]]
    assert found.ids.tolist() == [first5, first7]
    assert found.voxels.tolist() == [2 * 6 * 10, 3 * 6 * 10]
    columns = (found.edges.u, found.edges.v, found.edges.affinity_sum, found.edges.face_count)
    assert [c.tolist() for c in columns] == [[first5], [first7], [0], [60]]


def test_contacts_count_affinity_zero_and_all_three_axes() -> None:
    affinities = np.zeros((3, 2, 2, 4), np.uint8)
    affinities[2, :, :, (1, 3)] = 255  # two columns of pairs along x
    affinities[0, 1] = 120
    affinities[1, 1, 1] = 30
    affinities[2, :, :, 2] = [[10, 20], [30, 0]]
    found = whole(affinities)
    assert found.labels[0, 0].tolist() == [1, 1, 3, 3]
    rows = dict(
        zip(
            zip(found.edges.u.tolist(), found.edges.v.tolist(), strict=True),
            zip(found.edges.affinity_sum.tolist(), found.edges.face_count.tolist(), strict=True),
            strict=True,
        )
    )
    assert rows[1, 3] == (10, 1)  # x
    assert rows[1, 5] == (0, 2)  # y, affinity 0
    assert rows[1, 9] == (240, 2)  # z
    assert rows[9, 13] == (60, 2)
    assert len(rows) == 12


def cut(
    affinities: NDArray, origin: tuple[int, int, int], shape: tuple[int, int, int], low: int = 100
) -> BlockFragments:
    volume = affinities.shape[1:]
    box = [
        slice(o, min(o + n + 1, whole_)) for o, n, whole_ in zip(origin, shape, volume, strict=True)
    ]
    return extract_fragments(
        affinities[(slice(None), *box)],
        origin=origin,
        write_shape=shape,
        volume_shape=volume,
        low=low,
        high=200,
    )


def test_face_records_of_a_line_cut_in_two() -> None:
    # The edge of 150 crosses; voxel 2 (right block) points along it, voxel 1 prefers 160.
    affinities = line(0, 160, 150, 140)
    left, right = cut(affinities, (0, 0, 0), (1, 1, 2)), cut(affinities, (0, 0, 2), (1, 1, 2))
    lower, upper = right.faces[2, 0], left.faces[2, 1]
    assert lower is not None
    assert upper is not None
    assert lower.affinities is not None
    assert (upper.labels.tolist(), upper.joins.tolist()) == ([[1]], [[False]])
    assert upper.affinities is None
    assert (lower.labels.tolist(), lower.joins.tolist()) == ([[3]], [[True]])
    assert (lower.affinities.tolist(), lower.affinities.dtype) == ([[150]], np.uint8)
    border = [key for key, record in left.faces.items() if record is None]
    assert border == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_upper_face_knows_the_first_edge_of_its_own_voxel() -> None:
    affinities = line(0, 120, 150, 160, dtype=np.uint16)
    left, right = cut(affinities, (0, 0, 0), (1, 1, 2)), cut(affinities, (0, 0, 2), (1, 1, 2))
    lower, upper = right.faces[2, 0], left.faces[2, 1]
    assert lower is not None
    assert upper is not None
    assert upper.joins.tolist() == [[True]]
    assert lower.joins.tolist() == [[False]]
    assert left.labels.ravel().tolist() == [1, 1]


def test_high_across_a_face_is_known_by_the_lower_face() -> None:
    affinities = line(0, 250, 200, 250)
    right = cut(affinities, (0, 0, 2), (1, 1, 2)).faces[2, 0]
    assert right is not None
    assert right.joins.tolist() == [[True]]


def test_a_voxel_joined_only_across_a_face_is_a_local_fragment() -> None:
    left = cut(line(0, 0, 150, 0), (0, 0, 0), (1, 1, 2))
    assert left.labels.ravel().tolist() == [0, 2]
    assert (left.ids.tolist(), left.voxels.tolist(), len(left.edges)) == ([2], [1], 0)


def test_ids_beyond_32_bits_are_exact() -> None:
    volume, origin = (5000, 5000, 5000), (4990, 4000, 4321)
    affinities = np.full((3, 3, 3, 3), 255, np.uint8)
    found = extract_fragments(
        affinities, origin=origin, write_shape=(2, 2, 2), volume_shape=volume, low=1, high=255
    )
    smallest = 1 + (4990 * 5000 + 4000) * 5000 + 4321
    assert smallest > 2**32
    assert found.ids.tolist() == [smallest]
    assert (found.labels == smallest).all()


def test_face_planes_keep_their_axes() -> None:
    affinities = np.random.default_rng(2).integers(0, 256, (3, 7, 9, 11)).astype(np.uint8)
    found = cut(affinities, (2, 3, 4), (3, 4, 5))
    expected = {0: affinities[0, 2, 3:7, 4:9], 1: affinities[1, 2:5, 3, 4:9]}
    expected[2] = affinities[2, 2:5, 3:7, 4]
    for axis, plane in expected.items():
        lower, upper = found.faces[axis, 0], found.faces[axis, 1]
        assert lower is not None
        assert upper is not None
        np.testing.assert_array_equal(lower.affinities, plane)
        np.testing.assert_array_equal(lower.labels, found.labels.take(0, axis=axis))
        np.testing.assert_array_equal(upper.labels, found.labels.take(-1, axis=axis))


def test_noise_below_low_leaves_an_empty_block_with_its_faces() -> None:
    affinities = np.random.default_rng(0).integers(0, 100, (3, 5, 6, 70)).astype(np.uint8)
    found = cut(affinities, (0, 0, 1), (4, 6, 69))
    assert not found.labels.any()
    assert (found.labels.shape, found.labels.dtype) == ((4, 6, 69), np.uint64)
    assert (found.ids.size, found.voxels.size, len(found.edges)) == (0, 0, 0)
    lower = found.faces[2, 0]
    assert lower is not None
    np.testing.assert_array_equal(lower.affinities, affinities[2, :4, :, 1])
    assert found.faces[2, 1] is None
    assert found.faces[0, 1] is not None


def test_strided_and_read_only_input() -> None:
    affinities = np.random.default_rng(1).integers(0, 256, (3, 6, 7, 8)).astype(np.uint8)
    expected = whole(affinities).labels
    strided = np.ascontiguousarray(affinities.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
    strided.setflags(write=False)
    np.testing.assert_array_equal(whole(strided).labels, expected)


BAD = {
    "float": (np.zeros((3, 2, 2, 3), np.float32), {}, DtypeError, "quantise"),
    "channels": (np.zeros((2, 2, 2, 3), np.uint8), {}, ShapeError, "expected shape"),
    "axes": (np.zeros((3, 2, 2), np.uint8), {}, ShapeError, "expected shape"),
    "no halo": (np.zeros((3, 2, 2, 2), np.uint8), {}, ShapeError, r"\(3, 2, 2, 3\)"),
    "outside": (np.zeros((3, 2, 2, 3), np.uint8), {"origin": (1, 0, 0)}, ShapeError, "leaves"),
    "low 0": (np.zeros((3, 2, 2, 3), np.uint8), {"low": 0}, InputError, "1 <= low"),
    "low above high": (np.zeros((3, 2, 2, 3), np.uint8), {"high": 9}, InputError, "1 <= low"),
    "high": (np.zeros((3, 2, 2, 3), np.uint8), {"high": 256}, InputError, "<= 255"),
    "block": (
        np.zeros((3, 2, 2, 3), np.uint8),
        {"write_shape": (2048, 1024, 1024), "volume_shape": (4096, 4096, 4096)},
        ShapeError,
        r"2\^31",
    ),
    "volume": (
        np.zeros((3, 2, 2, 3), np.uint8),
        {"volume_shape": (2**21, 2**21, 2**21)},
        InputError,
        "63 bits",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    affinities, changes, error, message = BAD[case]
    settings = {
        "origin": (0, 0, 0),
        "write_shape": (2, 2, 2),
        "volume_shape": (2, 2, 4),
        "low": 10,
        "high": 20,
    }
    assert issubclass(error, PipelineError)
    with pytest.raises(error, match=message):
        extract_fragments(affinities, **{**settings, **changes})
