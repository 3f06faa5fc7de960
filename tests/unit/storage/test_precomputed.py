"""Precomputed volumes, skeletons and segment properties."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.arrays.label_pyramid import downsample_labels
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi, Triple
from pipeline.storage.precomputed import (
    CloudVolume,
    create_segmentation,
    downsample_region,
    link,
    open_precomputed,
    read_region,
    write_region,
)
from pipeline.storage.precomputed_skeletons import (
    read_skeletons,
    write_segment_properties,
    write_skeletons,
)

SHAPE = (38, 50, 70)
SIZE = (40.0, 8.0, 8.5)
FACTORS = [(1, 2, 2), (2, 4, 4)]


def labels(seed: int = 0) -> NDArray[np.uint64]:
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 5, SHAPE).astype(np.uint64) * np.uint64(2**62 - 1)
    values[rng.random(SHAPE) > 0.05] = 0
    values[:16, :16, :32] = 0
    return values


def fill(path: Path, values: NDArray[np.uint64], block: Triple, offset: Triple = (0, 0, 0)) -> None:
    volume = create_segmentation(
        path, SHAPE, SIZE, (16, 16, 32), level_factors=FACTORS, offset=offset
    )
    for cell in BlockGrid(volume.roi, block):
        write_region(path, cell.write, values[cell.write.relative_to(volume.roi).slices])
    for level in (1, 2):
        for cell in BlockGrid(open_precomputed(path, level).roi, block):
            downsample_region(path, cell.write, level)


def digest(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_round_trip_and_what_cloudvolume_reads(tmp_path: Path) -> None:
    path, values = tmp_path / "a folder", labels()
    fill(path, values, (32, 32, 64))
    volume = open_precomputed(path)
    assert (volume.shape, volume.offset, volume.chunk) == (SHAPE, (0, 0, 0), (16, 16, 32))
    assert (volume.voxel_size_nm, volume.dtype, volume.levels) == (SIZE, np.dtype(np.uint64), 3)
    roi = Roi((3, 5, 7), (20, 33, 41))
    found = read_region(path, roi)
    np.testing.assert_array_equal(found, values[roi.slices])
    assert found.flags.c_contiguous
    foreign = CloudVolume(f"precomputed://file://{path}", progress=False, fill_missing=True)
    np.testing.assert_array_equal(np.asarray(foreign[:])[..., 0].T, values)
    assert list(foreign.resolution) == [8.5, 8.0, 40.0]


def test_every_blocking_gives_the_same_bytes(tmp_path: Path) -> None:
    values = labels()
    blocks = [(48, 64, 96), (32, 32, 64), (16, 16, 32), (48, 16, 32)]
    for number, block in enumerate(blocks):
        fill(tmp_path / str(number), values, block)
    first = digest(tmp_path / "0")
    assert len(first) > 20
    assert not any(name.endswith(".gz") for name in first)
    assert all(digest(tmp_path / str(n)) == first for n in range(1, len(blocks)))
    assert not (tmp_path / "0" / "8.5_8_40" / "0-32_0-16_0-16").exists()


def test_levels_are_those_of_the_whole_volume(tmp_path: Path) -> None:
    values = labels()
    fill(tmp_path, values, (16, 32, 32))
    expected = downsample_labels(values, (1, 2, 2))
    np.testing.assert_array_equal(read_region(tmp_path, Roi((0, 0, 0), (38, 25, 35)), 1), expected)
    expected = downsample_labels(expected, (2, 2, 2))
    coarse = open_precomputed(tmp_path, 2)
    assert coarse.shape == expected.shape == (19, 13, 18)
    assert coarse.voxel_size_nm == (80.0, 32.0, 34.0)
    np.testing.assert_array_equal(read_region(tmp_path, coarse.roi, 2), expected)


def test_cells_of_coarse_levels_stay_in_place_under_an_offset(tmp_path: Path) -> None:
    offset, values = (3, 5, 7), labels()
    fill(tmp_path, values, (16, 32, 32), offset)
    padded = np.pad(values, [(o, 0) for o in offset])
    level = open_precomputed(tmp_path, 1)
    assert level.roi == Roi.between((3, 2, 3), (41, 28, 39))
    expected = downsample_labels(padded, (1, 2, 2))[level.roi.slices]
    np.testing.assert_array_equal(read_region(tmp_path, level.roi, 1), expected)


def test_rewriting_zeros_clears_old_labels(tmp_path: Path) -> None:
    fill(tmp_path, labels(), (48, 64, 96))
    roi = Roi((0, 0, 0), (16, 16, 70))
    write_region(tmp_path, roi, np.zeros(roi.shape, np.uint64))
    assert not read_region(tmp_path, roi).any()


def test_image_volumes(tmp_path: Path) -> None:
    values = np.arange(24 * 20 * 22, dtype=np.uint16).reshape(24, 20, 22)
    volume = create_segmentation(
        tmp_path, (24, 20, 22), SIZE, (16, 16, 16), kind="image", dtype=np.uint16
    )
    assert volume.kind == "image"
    write_region(tmp_path, volume.roi, values)
    np.testing.assert_array_equal(read_region(tmp_path, volume.roi), values)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    with pytest.raises(InputError, match="no precomputed volume"):
        open_precomputed(path)
    with pytest.raises(DtypeError, match="float32"):
        create_segmentation(path, SHAPE, SIZE, (16, 16, 16), dtype=np.float32)
    with pytest.raises(InputError, match="multiple"):
        create_segmentation(path, SHAPE, SIZE, (16, 16, 16), level_factors=[(2, 2, 2), (3, 4, 4)])
    assert not path.exists()
    volume = create_segmentation(path, SHAPE, SIZE, (16, 16, 16))
    with pytest.raises(InputError, match="already"):
        create_segmentation(path, SHAPE, SIZE, (16, 16, 16))
    with pytest.raises(InputError, match="no level 3"):
        open_precomputed(path, 3)
    part = Roi((0, 0, 0), (16, 16, 20))
    with pytest.raises(InputError, match=r"cuts chunks .* axis x"):
        write_region(path, part, np.zeros(part.shape, np.uint64))
    with pytest.raises(InputError, match="cuts chunks"):
        write_region(path, part.shift((8, 0, 0)), np.zeros(part.shape, np.uint64))
    with pytest.raises(ShapeError, match="leaves"):
        read_region(path, volume.roi.shift((0, 0, 1)))
    with pytest.raises(ShapeError, match="expected voxels"):
        write_region(path, volume.roi, np.zeros((1, 2, 3), np.uint64))
    with pytest.raises(DtypeError, match="uint64"):
        write_region(path, volume.roi, np.zeros(SHAPE, np.uint32))
    with pytest.raises(DataError, match="no file"):
        read_region(path, volume.roi, missing_is_zero=False)


def test_a_truncated_image_chunk_is_no_zeros(tmp_path: Path) -> None:
    volume = create_segmentation(
        tmp_path, (8, 8, 8), SIZE, (8, 8, 8), kind="image", dtype=np.uint16
    )
    write_region(tmp_path, volume.roi, np.ones(volume.shape, np.uint16))
    (chunk,) = (tmp_path / "8.5_8_40").iterdir()
    chunk.write_bytes(chunk.read_bytes()[:-6])
    with pytest.raises(DataError, match="cannot read"):
        read_region(tmp_path, volume.roi)


def skeletons() -> dict[int, Skeleton]:
    rng = np.random.default_rng(1)
    edges = np.array([[1, 0], [2, 1], [3, 1], [4, 3]])
    return {
        5: Skeleton("5", np.array([[1.5, 2.5, 3.5]]), np.zeros((0, 2), np.int64), np.array([9.0])),
        2**64 - 1: Skeleton("big", rng.random((5, 3)) * 1000, edges, rng.random(5) * 100),
    }


def test_skeletons_round_trip_also_through_cloudvolume(tmp_path: Path) -> None:
    given = skeletons()
    fill(tmp_path, labels(), (48, 64, 96))
    write_skeletons(tmp_path / "skeletons", given, SIZE)
    link(tmp_path, skeletons="skeletons")
    found = read_skeletons(tmp_path / "skeletons", SIZE)
    assert list(found) == sorted(given)
    foreign = CloudVolume(f"precomputed://file://{tmp_path}", progress=False)
    for segment, skeleton in given.items():
        np.testing.assert_allclose(found[segment].nodes, skeleton.nodes, rtol=1e-6)
        np.testing.assert_array_equal(found[segment].edges, skeleton.edges)
        np.testing.assert_allclose(found[segment].radii_nm, skeleton.radii_nm, rtol=1e-6)
        other = foreign.skeleton.get(segment)
        np.testing.assert_allclose(other.vertices, (skeleton.nodes * SIZE)[:, ::-1], rtol=1e-6)
        np.testing.assert_allclose(other.radii, skeleton.radii_nm, rtol=1e-6)
    # A node at the centre of a voxel lies in the middle of it: (i + 0.5) * resolution.
    np.testing.assert_allclose(foreign.skeleton.get(5).vertices, [[29.75, 20.0, 60.0]])


def test_skeletons_that_are_gone_leave_no_file(tmp_path: Path) -> None:
    given = skeletons()
    write_skeletons(tmp_path, given, SIZE)
    del given[5]
    write_skeletons(tmp_path, given, SIZE)
    assert list(read_skeletons(tmp_path, SIZE)) == [2**64 - 1]


def test_skeleton_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no precomputed skeletons"):
        read_skeletons(tmp_path, SIZE)
    with pytest.raises(InputError, match="segment id 0"):
        write_skeletons(tmp_path, {0: skeletons()[5]}, SIZE)
    write_skeletons(tmp_path, skeletons(), SIZE)
    (tmp_path / "5").write_bytes((tmp_path / "5").read_bytes()[:-5])
    with pytest.raises(DataError, match="5: damaged"):
        read_skeletons(tmp_path, SIZE)
    create_segmentation(tmp_path / "volume", SHAPE, SIZE, (16, 16, 16))
    with pytest.raises(InputError, match="nothing to link"):
        link(tmp_path / "volume", skeletons="skeletons")


def test_segment_properties(tmp_path: Path) -> None:
    segments = np.array([7, 2**64 - 1], np.uint64)
    columns = {
        "voxels": ("voxels", np.array([10, 2**33], np.int64)),
        "nodes": ("nodes of the skeleton", np.array([3, 4], np.int64)),
        "cable_um": ("cable length, um", np.array([1.25, 3.0])),
    }
    write_segment_properties(tmp_path, segments, columns)
    info = json.loads((tmp_path / "info").read_text())
    assert info["@type"] == "neuroglancer_segment_properties"
    assert info["inline"]["ids"] == ["7", str(2**64 - 1)]
    rows = {row["id"]: row for row in info["inline"]["properties"]}
    assert rows["label"]["type"] == "label"
    assert rows["voxels"]["data_type"] == "float32"
    assert rows["nodes"]["data_type"] == "uint32"
    assert rows["nodes"]["values"] == [3, 4]
    assert rows["cable_um"]["values"] == [1.25, 3.0]
    with pytest.raises(ShapeError, match="1 values of nodes"):
        write_segment_properties(tmp_path, segments, {"nodes": ("nodes", np.array([1]))})
