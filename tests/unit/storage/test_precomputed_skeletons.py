"""Folders of skeletons, plain and sharded, as this project and as cloud-volume read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from osteoid import Skeleton as Foreign

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_buckets import bucket_of
from pipeline.errors import DataError, InputError, ShapeError
from pipeline.storage.precomputed import CloudVolume, create_segmentation, link
from pipeline.storage.precomputed_skeletons import (
    CROSS_SECTION,
    RADIUS,
    create_skeletons,
    encode_skeleton,
    read_areas,
    read_skeletons,
    sharding_of,
    skeleton_info,
    write_skeleton_files,
    write_skeleton_shard,
    write_skeletons,
)
from pipeline.storage.skeleton_files import read_skeleton_set
from pipeline.storage.swc import SwcOptions

SIZE = (40.0, 8.5, 4.3)
BOTH = (RADIUS, CROSS_SECTION)
BUCKETS = 32


def skeletons(count: int = 40) -> tuple[dict[int, Skeleton], dict[int, NDArray]]:
    """Forests, and among them rings; ids over the whole range; some areas unknown."""
    rng = np.random.default_rng(7)
    ids = [1, 2**63, 2**64 - 1, *rng.integers(1, 2**64, count - 3, np.uint64, endpoint=False)]
    found, areas = {}, {}
    for number, segment in enumerate(map(int, ids)):
        size = 1 + number % 12
        nodes = np.floor(rng.random((size, 3)) * 5000) + 0.5
        edges = np.stack([np.arange(1, size), np.arange(size - 1)], axis=1)
        if number % 3 == 0 and size > 2:
            edges = np.vstack([edges, [0, size - 1]])
        radii = rng.random(size).astype(np.float32)
        found[segment] = Skeleton(str(segment), nodes, edges, radii)
        areas[segment] = np.where(rng.random(size) < 0.2, np.nan, rng.random(size) * 1e5)
    assert count < 40 or sum(segment >= 2**63 for segment in found) > 5
    return found, areas


def shares(found: dict[int, Skeleton]) -> dict[int, dict[int, Skeleton]]:
    bucket = bucket_of(np.array(list(found), np.uint64), BUCKETS).tolist()
    return {
        number: {s: found[s] for s, b in zip(found, bucket, strict=True) if b == number}
        for number in range(BUCKETS)
    }


def write(path: Path, layout: str) -> None:
    """A segmentation with its skeletons, and cross-sections."""
    found, areas = skeletons()
    create_segmentation(path, (8, 8, 8), SIZE, (8, 8, 8))
    folder = path / "lines"
    if layout == "plain":
        write_skeletons(folder, found, SIZE, areas)
    elif layout == "files":
        create_skeletons(folder, BOTH)
        for share in shares(found).values():
            write_skeleton_files(folder, share, SIZE, areas)
    else:
        create_skeletons(folder, BOTH, sharding_of(BUCKETS))
        for number, share in shares(found).items():
            write_skeleton_shard(folder, number, share, SIZE, areas)
    link(path, skeletons="lines")


def undirected(edges: NDArray) -> set[tuple[int, ...]]:
    return {tuple(sorted(edge)) for edge in edges.tolist()}


@pytest.mark.parametrize("layout", ["plain", "files", "sharded"])
def test_read_back_here_and_by_cloud_volume(tmp_path: Path, layout: str) -> None:
    write(tmp_path, layout)
    given, areas = skeletons()
    found, found_areas = read_skeletons(tmp_path / "lines", SIZE), read_areas(tmp_path / "lines")
    assert list(found) == list(found_areas) == sorted(given)
    volume = CloudVolume(f"precomputed://file://{tmp_path}", progress=False)
    foreign = {int(s.id): s for s in volume.skeleton.get(list(given))}
    assert set(foreign) == set(given)
    for segment, skeleton in given.items():
        np.testing.assert_allclose(found[segment].nodes, skeleton.nodes, rtol=1e-6)
        assert found[segment].edges.tolist() == skeleton.edges.tolist()
        assert found[segment].radii_nm.tolist() == skeleton.radii_nm.tolist()
        np.testing.assert_array_equal(found_areas[segment], areas[segment].astype(np.float32))
        other = foreign[segment]
        place = (skeleton.nodes * SIZE)[:, ::-1].astype(np.float32)
        np.testing.assert_array_equal(other.vertices, place)
        assert undirected(other.edges) == undirected(skeleton.edges)
        np.testing.assert_array_equal(other.radius, skeleton.radii_nm.astype(np.float32))
        np.testing.assert_array_equal(other.cross_sectional_area, areas[segment].astype(np.float32))


def test_the_reader_of_tracings_takes_both_layouts(tmp_path: Path) -> None:
    found, _ = skeletons()
    trees = {
        s: skeleton for s, skeleton in found.items() if len(skeleton.edges) < len(skeleton.nodes)
    }
    write_skeletons(tmp_path / "plain", trees, SIZE)
    create_skeletons(tmp_path / "shards", sharding=sharding_of(BUCKETS))
    for number, share in shares(trees).items():
        write_skeleton_shard(tmp_path / "shards", number, share, SIZE)
    options = SwcOptions(voxel_size_nm=SIZE)
    plain, sharded = (read_skeleton_set(tmp_path / n, options) for n in ("plain", "shards"))
    assert [s.name for s in sharded] == sorted(map(str, trees))
    for one, other in zip(plain, sharded, strict=True):
        assert one.name == other.name
        assert one.nodes.tolist() == other.nodes.tolist()
        assert one.edges.tolist() == other.edges.tolist()
        assert one.radii_nm.tolist() == other.radii_nm.tolist()


def test_the_bytes_are_those_of_osteoid() -> None:
    found, areas = skeletons()
    attributes = skeleton_info(BOTH)["vertex_attributes"]
    for segment, skeleton in found.items():
        for count in (1, 2):
            foreign = Foreign(
                vertices=np.ascontiguousarray((skeleton.nodes * SIZE)[:, ::-1], np.float32),
                edges=skeleton.edges.astype(np.uint32),
                radii=skeleton.radii_nm.astype(np.float32),
                segid=segment,
                extra_attributes=attributes[:count],
            )
            foreign.cross_sectional_area = areas[segment].astype(np.float32)
            given = areas[segment] if count == 2 else None
            assert encode_skeleton(segment, skeleton, SIZE, given) == foreign.to_precomputed()


def test_by_hand() -> None:
    """Two vertices, one edge: 2 * 4 + 6 * 4 + 2 * 4 bytes and two attributes of 2 * 4."""
    skeleton = Skeleton("7", np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 0]]), np.array([8, 9]))
    data = encode_skeleton(7, skeleton, (100, 10, 1), np.array([5.0, np.nan]))
    assert np.frombuffer(data[:8], "<u4").tolist() == [2, 1]
    assert np.frombuffer(data[8:32], "<f4").tolist() == [3, 20, 100, 6, 50, 400]
    assert np.frombuffer(data[32:40], "<u4").tolist() == [1, 0]
    assert np.frombuffer(data[40:52], "<f4").tolist() == [8, 9, 5]
    assert len(data) == 56
    assert np.isnan(np.frombuffer(data[52:], "<f4")[0])


def test_a_shard_depends_on_its_skeletons_alone(tmp_path: Path) -> None:
    found, _ = skeletons()
    create_skeletons(tmp_path, sharding=sharding_of(2))
    bucket = bucket_of(np.array(list(found), np.uint64), 2).tolist()
    share = {s: found[s] for s, b in zip(found, bucket, strict=True) if b == 1}
    write_skeleton_shard(tmp_path, 1, share, SIZE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.shard", "info"]
    first = (tmp_path / "1.shard").read_bytes()
    write_skeleton_shard(tmp_path, 1, dict(reversed(share.items())), SIZE)
    assert (tmp_path / "1.shard").read_bytes() == first
    assert list(read_skeletons(tmp_path, SIZE)) == sorted(share)
    write_skeleton_shard(tmp_path, 1, {}, SIZE)
    assert [p.name for p in tmp_path.iterdir()] == ["info"]
    assert read_skeletons(tmp_path, SIZE) == {}


def test_names_of_many_shards(tmp_path: Path) -> None:
    """As many hexadecimal digits as the number of shards needs."""
    create_skeletons(tmp_path, sharding=sharding_of(512))
    found, _ = skeletons(3)
    (number,) = bucket_of(np.array([2**63], np.uint64), 512).tolist()
    write_skeleton_shard(tmp_path, number, {2**63: found[2**63]}, SIZE)
    assert (tmp_path / f"{number:03x}.shard").is_file()
    assert list(read_skeletons(tmp_path, SIZE)) == [2**63]


def test_refusals(tmp_path: Path) -> None:
    found, areas = skeletons()
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    create_skeletons(plain, BOTH)
    create_skeletons(sharded, sharding=sharding_of(4))
    some = {1: found[1]}
    (home,) = bucket_of(np.array([1], np.uint64), 4).tolist()
    with pytest.raises(InputError, match="plain files, not in shards"):
        write_skeleton_shard(plain, 0, some, SIZE, areas)
    with pytest.raises(InputError, match="lie in shards"):
        write_skeleton_files(sharded, some, SIZE)
    with pytest.raises(InputError, match="shards 0 to 3, got 4"):
        write_skeleton_shard(sharded, 4, {}, SIZE)
    with pytest.raises(InputError, match=f"key 1 belongs to shard {home}, not to {home ^ 1}"):
        write_skeleton_shard(sharded, home ^ 1, some, SIZE)
    with pytest.raises(InputError, match="segment id 0 is not within"):
        write_skeleton_shard(sharded, 0, {0: found[1]}, SIZE)
    with pytest.raises(InputError, match="tells of radius for each vertex, but radius, cross"):
        write_skeleton_shard(sharded, home, some, SIZE, areas)
    with pytest.raises(InputError, match=r"tells of radius, cross_sectional_area .* but radius"):
        write_skeleton_files(plain, some, SIZE)
    with pytest.raises(InputError, match="no cross-sections of segment 1"):
        write_skeleton_files(plain, some, SIZE, {})
    with pytest.raises(ShapeError, match=r"segment 1: areas of shape \(3,\) for 1 nodes"):
        write_skeleton_files(plain, some, SIZE, {1: np.zeros(3)})
    with pytest.raises(InputError, match="without nodes"):
        write_skeletons(plain, {5: Skeleton("", np.zeros((0, 3)), np.zeros((0, 2)))}, SIZE)
    with pytest.raises(InputError, match=r"segment 5: .* not finite"):
        write_skeletons(plain, {5: Skeleton("", [[0, np.inf, 0]], np.zeros((0, 2)))}, SIZE)
    with pytest.raises(InputError, match="got none"):
        skeleton_info(())
    with pytest.raises(InputError, match="power of two"):
        sharding_of(6)
    with pytest.raises(InputError, match="have no attribute cross_sectional_area"):
        read_areas(sharded)
    for number in range(4):
        assert not (sharded / f"{number}.shard").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, "sharded")
    (shard, *_) = sorted((tmp_path / "lines").glob("*.shard"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DataError, match="lines: the shards cannot be read"):
        read_skeletons(tmp_path / "lines", SIZE)
    create_skeletons(tmp_path / "p")
    skeleton = Skeleton("", np.zeros((2, 3)), np.array([[0, 1]]))
    data = encode_skeleton(1, skeleton, SIZE)
    wrong = data[:36] + np.array([2], "<u4").tobytes() + data[40:]
    for damaged, message in ((data[:-1], "47 bytes, expected 48"), (b"", "0 bytes"), (wrong, "2")):
        (tmp_path / "p" / "1").write_bytes(damaged)
        with pytest.raises(DataError, match=f"1: damaged skeleton: .*{message}"):
            read_skeletons(tmp_path / "p", SIZE)
    (tmp_path / "p" / "info").write_text('{"vertex_attributes": [{"id": 3}]}')
    with pytest.raises(InputError, match="info: not well formed"):
        read_skeletons(tmp_path / "p", SIZE)


def test_the_transform_of_a_foreign_folder(tmp_path: Path) -> None:
    """x' = 2 y + 10, y' = 3 x + 20, z' = z + 30, by hand; without attributes."""
    info = {"@type": "neuroglancer_skeletons", "transform": [0, 2, 0, 10, 3, 0, 0, 20, 0, 0, 1, 30]}
    (tmp_path / "info").write_text(json.dumps(info))
    head, place = np.array([1, 0], "<u4"), np.array([1, 2, 3], "<f4")
    (tmp_path / "5").write_bytes(head.tobytes() + place.tobytes())
    (found,) = read_skeletons(tmp_path, (10, 1, 2)).values()
    assert found.nodes.tolist() == [[3.3, 23, 7]]
    assert found.radii_nm.tolist() == [0]
