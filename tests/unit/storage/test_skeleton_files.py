"""Skeletons of precomputed folders, of kimimaro, and as SWC, through one function."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import kimimaro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from osteoid import Skeleton as Foreign

from pipeline.arrays.metrics import score
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_nodes import labels_at_nodes, node_voxels
from pipeline.errors import InputError
from pipeline.storage.precomputed import CloudVolume, create_segmentation, link
from pipeline.storage.precomputed_skeletons import write_skeletons
from pipeline.storage.skeleton_files import options_for, read_skeleton_set, stored_skeletons
from pipeline.storage.swc import SwcOptions, check_placement, read_skeletons

SIZE = (40.0, 8.5, 4.3)
OPTIONS = SwcOptions(voxel_size_nm=SIZE)
IDS = (7, 1000, 2**64 - 1)
RADIUS = {"id": "radius", "data_type": "float32", "num_components": 1}
TYPES = {"id": "vertex_types", "data_type": "uint8", "num_components": 1}
AREA = {"id": "cross_section", "data_type": "float32", "num_components": 3}
TURNED = [0, 2, 0, 10, 3, 0, 0, 20, 0, 0, 1, 30]


def path_graph(count: int) -> np.ndarray:
    return np.stack([np.arange(1, count), np.arange(count - 1)], axis=1)


def skeletons() -> dict[int, Skeleton]:
    rng = np.random.default_rng(5)
    found = {}
    for number, segment in enumerate(IDS, start=1):
        nodes = rng.integers(0, 3000, (4 * number, 3)).astype(float)
        nodes[::2] += 0.5
        radii = rng.random(len(nodes)).astype(np.float32)
        found[segment] = Skeleton(str(segment), nodes, path_graph(len(nodes)), radii)
    return found


def encode(skeleton: Skeleton, attributes: list[dict[str, Any]] = [RADIUS]) -> bytes:  # noqa: B006
    return Foreign(
        vertices=np.ascontiguousarray((skeleton.nodes * SIZE)[:, ::-1], np.float32),
        edges=skeleton.edges.astype(np.uint32),
        radii=skeleton.radii_nm.astype(np.float32),
        segid=1,
        extra_attributes=attributes,
    ).to_precomputed()


def assert_same(found: list[Skeleton], given: dict[int, Skeleton] | None = None) -> None:
    given = skeletons() if given is None else given
    assert [s.name for s in found] == sorted(str(segment) for segment in given)
    for skeleton in found:
        expected = given[int(skeleton.name)]
        assert (node_voxels(skeleton) == node_voxels(expected)).all()
        np.testing.assert_allclose(skeleton.nodes, expected.nodes, atol=1e-3)
        assert (skeleton.edges == expected.edges).all()
        np.testing.assert_array_equal(skeleton.radii_nm, expected.radii_nm)


def test_a_folder_of_this_project(tmp_path: Path) -> None:
    write_skeletons(tmp_path, skeletons(), SIZE)
    assert_same(read_skeleton_set(tmp_path, OPTIONS))
    assert_same(read_skeleton_set(str(tmp_path), replace(OPTIONS, unit="um")))


def test_the_skeletons_of_a_volume(tmp_path: Path) -> None:
    create_segmentation(tmp_path, (8, 8, 8), SIZE, (8, 8, 8))
    with pytest.raises(InputError, match="`info` names no skeletons"):
        read_skeleton_set(tmp_path, OPTIONS)
    write_skeletons(tmp_path / "lines", skeletons(), SIZE)
    link(tmp_path, skeletons="lines")
    assert_same(read_skeleton_set(tmp_path, OPTIONS))
    assert options_for(tmp_path, OPTIONS).unit == "nm"
    assert stored_skeletons(tmp_path) == tmp_path / "lines" == stored_skeletons(tmp_path / "lines")
    for file in (tmp_path / "lines").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="lines: no skeleton in it"):
        read_skeleton_set(tmp_path, OPTIONS)
    (tmp_path / "lines").rmdir()
    with pytest.raises(InputError, match="names the skeletons 'lines', which is no folder"):
        read_skeleton_set(tmp_path, OPTIONS)


def foreign_volume(path: Path, sharded: bool) -> CloudVolume:
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "raw", list(SIZE[::-1]), [0, 0, 0], [64, 64, 64],
        skeletons="skeletons",
    )  # fmt: skip
    volume = CloudVolume(f"precomputed://file://{path}", info=info, progress=False)
    volume.commit_info()
    if sharded:
        volume.skeleton.meta.info["sharding"] = {
            "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 1, "shard_bits": 0,
            "hash": "murmurhash3_x86_128", "minishard_bits": 2, "data_encoding": "gzip",
            "minishard_index_encoding": "gzip",
        }  # fmt: skip
    volume.skeleton.meta.commit_info()
    return CloudVolume(f"precomputed://file://{path}", progress=False)


@pytest.mark.parametrize("sharded", [False, True])
def test_what_cloud_volume_writes(tmp_path: Path, sharded: bool) -> None:
    """Each file packed as .gz, or all in a shard; with structure types."""
    volume = foreign_volume(tmp_path, sharded)
    foreign = []
    for segment, skeleton in skeletons().items():
        foreign.append(Foreign.from_precomputed(encode(skeleton), segment, [RADIUS]))
        foreign[-1].vertex_types = np.full(len(skeleton.nodes), 3, np.uint8)
        foreign[-1].extra_attributes = [RADIUS, TYPES]
    volume.skeleton.upload(foreign)
    names = [file.name for file in (tmp_path / "skeletons").iterdir()]
    assert any(name.endswith(".shard" if sharded else ".gz") for name in names)
    for place in (tmp_path, tmp_path / "skeletons"):
        found = read_skeleton_set(place, OPTIONS)
        assert_same(found)
        assert all((skeleton.types == 3).all() for skeleton in found)
    if sharded:
        (shard,) = (tmp_path / "skeletons").glob("*.shard")
        shard.write_bytes(shard.read_bytes()[:-9])
        with pytest.raises(InputError, match="skeletons: the shards cannot be read"):
            read_skeleton_set(tmp_path, OPTIONS)
        shard.unlink()
        with pytest.raises(InputError, match=r"no \.shard file"):
            read_skeleton_set(tmp_path, OPTIONS)
    else:
        packed = tmp_path / "skeletons" / "7.gz"
        (tmp_path / "skeletons" / "7").write_bytes(gzip.decompress(packed.read_bytes()))
        with pytest.raises(InputError, match=r"segment 7 has two files, .*7 and .*7\.gz"):
            read_skeleton_set(tmp_path, OPTIONS)
        (tmp_path / "skeletons" / "7").unlink()
        packed.write_bytes(packed.read_bytes()[:-9])
        with pytest.raises(InputError, match=r"7\.gz: damaged"):
            read_skeleton_set(tmp_path, OPTIONS)


def describe(folder: Path, **changes: Any) -> None:
    info = {"@type": "neuroglancer_skeletons", "vertex_attributes": [RADIUS], **changes}
    folder.mkdir(exist_ok=True)
    (folder / "info").write_text(json.dumps(info))


def test_the_transform_of_a_folder(tmp_path: Path) -> None:
    """x' = 2 y + 10, y' = 3 x + 20, z' = z + 30, by hand."""
    describe(tmp_path, transform=TURNED)
    data = struct.pack("<II", 2, 1) + struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    (tmp_path / "5").write_bytes(data + struct.pack("<2I", 1, 0) + struct.pack("<2f", 9, -1))
    (found,) = read_skeleton_set(tmp_path, SwcOptions(voxel_size_nm=(10, 5, 2)))
    assert found.nodes.tolist() == [[3.3, 4.6, 7.0], [3.6, 6.4, 10.0]]
    assert found.edges.tolist() == [[1, 0]]
    assert found.radii_nm.tolist() == [9, 0]


def test_axes_offset_and_flip_are_applied(tmp_path: Path) -> None:
    write_skeletons(tmp_path, skeletons(), SIZE)
    shape = (3000, 3001, 3002)
    moved = replace(OPTIONS, offset_vox=(-3.0, 2.0, 0.0), flip=("y",), volume_shape=shape)
    plain, found = read_skeleton_set(tmp_path, OPTIONS), read_skeleton_set(tmp_path, moved)
    for before, after in zip(plain, found, strict=True):
        expected = node_voxels(before) + np.array([-3, 2, 0])
        expected[:, 1] = 3001 - 1 - expected[:, 1]
        assert (node_voxels(after) == expected).all()
    cube = SwcOptions(voxel_size_nm=(7.0, 7.0, 7.0))
    swapped = read_skeleton_set(tmp_path, replace(cube, axes="zyx"))
    for before, after in zip(read_skeleton_set(tmp_path, cube), swapped, strict=True):
        assert (after.nodes == before.nodes[:, ::-1]).all()


def test_vertices_on_the_face_of_a_voxel_are_in_the_voxel_above(tmp_path: Path) -> None:
    """In single precision, 4.3 nm times a whole number often lies below the face."""
    voxels = np.arange(1, 60_000, 7)
    product = (voxels * 4.3).astype(np.float32)
    assert (np.floor(product.astype(float) / 4.3) != voxels).any()
    below = np.nextafter(product, np.float32(0))
    describe(tmp_path, vertex_attributes=[])
    for segment, values in ((1, product), (2, below)):
        vertices = np.zeros((len(values), 3), np.float32)
        vertices[:, 0] = values
        head = struct.pack("<II", len(values), 0)
        (tmp_path / str(segment)).write_bytes(head + vertices.tobytes())
    found = read_skeleton_set(tmp_path, OPTIONS)
    assert (found[0].nodes[:, 2] == voxels).all()
    # A whole unit in the last place away: near enough as well.
    assert (node_voxels(found[1])[:, 2] == voxels).all()


def test_further_attributes_are_passed_over(tmp_path: Path) -> None:
    describe(tmp_path, vertex_attributes=[AREA, TYPES, RADIUS])
    data = struct.pack("<II3f", 1, 0, 1, 2, 3) + struct.pack("<3fBf", 4, 5, 6, 2, 8)
    (tmp_path / "5").write_bytes(data)
    (tmp_path / "5:0-64_0-64.frags").write_bytes(b"left by a forge")
    (tmp_path / "0-64_0-64_0-64.spatial").write_bytes(b"{}")
    (found,) = read_skeleton_set(tmp_path, SwcOptions(voxel_size_nm=(1, 1, 1)))
    assert (found.nodes.tolist(), found.radii_nm.tolist()) == ([[3, 2, 1]], [8])
    assert found.types.tolist() == [2]
    (tmp_path / "5").write_bytes(data[:20])
    (found,) = read_skeleton_set(tmp_path, SwcOptions(voxel_size_nm=(1, 1, 1)))
    assert found.radii_nm.tolist() == [0]


def test_a_folder_without_info_and_single_files(tmp_path: Path) -> None:
    given_ = skeletons()
    (tmp_path / "bare").mkdir()
    for segment, skeleton in given_.items():
        (tmp_path / "bare" / str(segment)).write_bytes(encode(skeleton))
    assert_same(read_skeleton_set(tmp_path / "bare", OPTIONS))
    one = {7: given_[7]}
    assert_same(read_skeleton_set(tmp_path / "bare" / "7", OPTIONS), one)
    assert options_for(tmp_path / "bare" / "7", OPTIONS).unit == "nm"
    packed = tmp_path / "7.gz"
    packed.write_bytes(gzip.compress(encode(given_[7])))
    assert_same(read_skeleton_set(packed, OPTIONS), one)
    packed.write_bytes(gzip.compress(b"1 1 0 0 0 1 -1\n"))
    with pytest.raises(InputError, match="gunzip"):
        read_skeleton_set(packed, OPTIONS)
    describe(tmp_path / "bare", transform=[2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0])
    (found,) = read_skeleton_set(tmp_path / "bare" / "7", OPTIONS)
    np.testing.assert_allclose(found.nodes, 2 * given_[7].nodes, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"5: damaged skeleton: 59 bytes, expected 60"),
        (lambda data: data + b"\0", "damaged"),
        (lambda data: data[:5], "5 bytes, expected 8 or more"),
        (lambda data: struct.pack("<II", 0, 0), "no vertices"),
        (lambda data: data[:12] + struct.pack("<f", np.nan) + data[16:], r"vertex 0 is not finite"),
        (lambda data: data[:24] + struct.pack("<f", np.inf) + data[28:], r"vertex 1 is not finite"),
        (lambda data: data[:48] + struct.pack("<I", 3) + data[52:], "vertex 3, but there are 3"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    describe(tmp_path, vertex_attributes=[])
    data = struct.pack("<II9f4I", 3, 2, *range(9), 1, 0, 2, 1)
    assert len(data) == 60
    (tmp_path / "4").write_bytes(data)
    (tmp_path / "5").write_bytes(change(data))
    with pytest.raises(InputError, match=message) as caught:
        read_skeleton_set(tmp_path, OPTIONS)
    assert str(tmp_path / "5") in str(caught.value)


@pytest.mark.parametrize("edges", [(0, 1, 1, 2, 2, 0), (0, 1, 1, 0), (1, 1)])
def test_loops_are_refused(tmp_path: Path, edges: tuple[int, ...]) -> None:
    describe(tmp_path, vertex_attributes=[])
    count = len(edges) // 2
    data = struct.pack(f"<II9f{len(edges)}I", 3, count, *range(9), *edges)
    (tmp_path / "5").write_bytes(data)
    with pytest.raises(InputError, match=r"5: skeleton 5: .* close a cycle.*consolidate"):
        read_skeleton_set(tmp_path, OPTIONS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"@type": "neuroglancer_legacy_mesh", "vertex_attributes": None}, "well formed|describes"),
        ({"transform": [1, 2]}, "info: not well formed"),
        ({"transform": [float("nan")] * 12}, "not finite"),
        ({"vertex_attributes": [{"id": "a"}]}, "info: not well formed"),
        ({"sharding": {"@type": "x"}}, r"no \.shard file"),
    ],
)
def test_an_info_that_is_not_well_formed(tmp_path: Path, changes: dict, message: str) -> None:
    describe(tmp_path, **changes)
    if changes.get("vertex_attributes", 0) is None:
        (tmp_path / "info").write_text('{"@type": "neuroglancer_legacy_mesh"}')
    with pytest.raises(InputError, match=message):
        read_skeleton_set(tmp_path, OPTIONS)


def test_pickles_are_never_unpacked(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    for place in (tmp_path / "skeletons.pkl", tmp_path / "folder" / "7.pickle"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(pickle.dumps(Trap()))
        read = place if place.suffix == ".pkl" else place.parent
        with pytest.raises(InputError, match=r"a Python pickle.*to_swc\(\)"):
            read_skeleton_set(read, OPTIONS)
    assert not (tmp_path / "sprung").exists()
    np.savez(tmp_path / "a.npz", a=1)
    with pytest.raises(InputError, match="no skeletons of a known kind"):
        read_skeleton_set(tmp_path / "a.npz", OPTIONS)


def test_swcs_are_read_as_ever(tmp_path: Path) -> None:
    (tmp_path / "7.swc").write_text("1 0 4.3 8.5 40 1 -1\n2 0 8.6 8.5 40 1 1\n")
    um = SwcOptions(voxel_size_nm=SIZE, unit="nm")
    for path in (tmp_path, tmp_path / "7.swc"):
        (found,) = read_skeleton_set(path, um)
        assert found.nodes.tolist() == [[1, 1, 1], [1, 1, 2]]
        assert options_for(path, OPTIONS) is OPTIONS
    (tmp_path / "info").write_text("traced by hand")
    assert len(read_skeleton_set(tmp_path, um)) == 1
    assert stored_skeletons(str(tmp_path)) == tmp_path
    describe(tmp_path)
    with pytest.raises(InputError, match="both SWC files and precomputed skeletons"):
        read_skeleton_set(tmp_path, um)
    (tmp_path / "info").unlink()
    (tmp_path / "7.swc").rename(tmp_path / "7.txt")
    assert len(read_skeleton_set(tmp_path / "7.txt", um)) == 1
    with pytest.raises(InputError, match="no such file or folder"):
        read_skeleton_set(tmp_path / "absent", um)
    with pytest.raises(InputError, match=r"no \.swc file"):
        read_skeleton_set(tmp_path, um)


def test_what_kimimaro_makes_lies_on_its_labels(tmp_path: Path) -> None:
    """As SWC in nanometres and as a precomputed folder: the same nodes, on the label."""
    labels = np.zeros((40, 30, 60), np.uint64)  # z, y, x
    labels[10:14, 8:11, 5:50] = 7
    labels[14:34, 8:11, 45:50] = 7
    made = kimimaro.skeletonize(labels.T, anisotropy=SIZE[::-1], progress=False, dust_threshold=10)
    (tmp_path / "swc").mkdir()
    describe(tmp_path / "precomputed", vertex_attributes=made[7].extra_attributes)
    (tmp_path / "swc" / "7.swc").write_text(made[7].to_swc())
    (tmp_path / "precomputed" / "7").write_bytes(made[7].to_precomputed())
    voxels = {}
    for name, unit in (("swc", "nm"), ("precomputed", "voxel")):
        options = replace(OPTIONS, unit=unit)
        (skeleton,) = read_skeleton_set(tmp_path / name, options)
        values, inside = labels_at_nodes(skeleton, labels)
        assert inside.all()
        assert (values == 7).all()
        assert len(skeleton.edges) == len(skeleton.nodes) - 1 > 20
        used = options_for(tmp_path / name, options)
        assert used.unit == "nm"
        assert check_placement([skeleton], labels.shape).tolist() == [0]
        voxels[name] = sorted(map(tuple, node_voxels(skeleton).tolist()))
    assert voxels["swc"] == voxels["precomputed"]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_the_order_of_the_rows_and_the_ids_leave_no_trace_in_scores(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(seed)
    parent = [-1] + [int(rng.integers(-1, i)) for i in range(1, count)]
    at = rng.random((count, 3)) * (9, 8, 7)
    labels = rng.integers(0, 3, (7, 8, 9)).astype(np.uint64)

    def scores(ids: np.ndarray, order: np.ndarray) -> dict[str, Any]:
        rows = []
        for node in order.tolist():
            x, y, z = at[node].tolist()
            above = ids[parent[node]] if parent[node] >= 0 else -1
            rows.append(f"{ids[node]} 0 {x!r} {y!r} {z!r} 1 {above}\n# note\n")
        (folder / "a.swc").write_text("".join(rows))
        found = read_skeletons(folder, OPTIONS)
        return score(found, [labels_at_nodes(s, labels)[0] for s in found], SIZE).as_json()

    plain = scores(np.arange(count), np.arange(count))
    assert scores(np.arange(count), rng.permutation(count)) == plain
    assert scores(rng.permutation(3 * count)[:count], rng.permutation(count)) == plain
