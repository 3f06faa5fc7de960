"""Annotation layers, read back by a reader of the format made here from its description."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)
    from cloudvolume.datasource.precomputed.annotation import PrecomputedAnnotationSource
import tensorstore as ts
from neuroglancer import CoordinateSpace
from neuroglancer.read_precomputed_annotations import AnnotationReader
from neuroglancer.viewer_state import AnnotationPropertySpec
from neuroglancer.write_annotations import AnnotationWriter

from pipeline.arrays.error_sites import KINDS, Sites, find_sites
from pipeline.arrays.metrics import build_forest, score
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError
from pipeline.storage import annotations
from pipeline.storage.annotations import LAYERS, write_site_layers

VOXEL = (40.0, 9.0, 7.0)
SHAPE = (5, 60, 20)
TOP = 2**64 - 1
POINTS = {"POINT": 1, "LINE": 2}
PROPERTIES = {"float32": "f", "uint32": "I"}


def line(name: str, count: int, y: float, start: float = 0) -> Skeleton:
    nodes = np.array([(0.5, y, start + x) for x in range(count)])
    return Skeleton(name, nodes, np.array([(i + 1, i) for i in range(count - 1)]))


def sites_of(*cases: tuple[Skeleton, list[int]]) -> Sites:
    skeletons = [skeleton for skeleton, _ in cases]
    forests = [build_forest(skeleton, VOXEL) for skeleton in skeletons]
    scores = score(skeletons, [np.array(v, np.uint64) for _, v in cases], VOXEL)
    return find_sites(skeletons, forests, scores, VOXEL)


def with_errors() -> Sites:
    return sites_of(
        (line("b", 3, 4), [TOP, TOP, 3]),
        (line("a", 7, 0), [1, 0, 0, 3, TOP, TOP, 0]),
        (line("c", 6, 50), [7, 7, 0, 0, 0, 0]),
        (line("d", 2, 40), [0, 0]),
    )


def read_info(layer: Path) -> dict[str, Any]:
    info = json.loads((layer / "info").read_text())
    assert info["@type"] == "neuroglancer_annotations_v1"
    assert list(info["dimensions"]) == ["x", "y", "z"]
    return info


def record(info: dict[str, Any]) -> struct.Struct:
    """Coordinates, then the properties: all of four bytes, so nothing lies between them."""
    coordinates = 3 * POINTS[info["annotation_type"]]
    kinds = "".join(PROPERTIES[p["type"]] for p in info["properties"])
    return struct.Struct(f"<{coordinates}f{kinds}")


def read_list(layer: Path, part: str) -> dict[int, tuple[Any, ...]]:
    data = (layer / part).read_bytes()
    one = record(read_info(layer))
    (count,) = struct.unpack_from("<Q", data)
    assert len(data) == 8 + count * (one.size + 8)
    ids = struct.unpack_from(f"<{count}Q", data, 8 + count * one.size)
    assert len(set(ids)) == count
    return {i: one.unpack_from(data, 8 + n * one.size) for n, i in enumerate(ids)}


def read_by_id(layer: Path) -> dict[int, tuple[tuple[Any, ...], list[int]]]:
    info = read_info(layer)
    one = record(info)
    found = {}
    for file in (layer / info["by_id"]["key"]).iterdir():
        data = file.read_bytes()
        (count,) = struct.unpack_from("<I", data, one.size)
        assert len(data) == one.size + 4 + 8 * count
        related = struct.unpack_from(f"<{count}Q", data, one.size + 4)
        found[int(file.name)] = (one.unpack_from(data), list(related))
    return found


def expected(sites: Sites, kind: str) -> dict[int, tuple[tuple[Any, ...], list[int]]]:
    found = {}
    for row in np.flatnonzero(sites.kind == KINDS.index(kind)).tolist():
        ends = (
            [sites.position_vox[row]]
            if kind == "omission"
            else [sites.end_a_vox[row], sites.end_b_vox[row]]
        )
        places = [float(np.float32(end[axis])) for end in ends for axis in (2, 1, 0)]
        values = (*places, float(np.float32(sites.cable_nm[row])), row + 1)
        labels = {int(sites.label_a[row]), int(sites.label_b[row])} - {0}
        found[row + 1] = (values, sorted(labels))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_index_holds_the_sites(tmp_path, kind):
    sites = with_errors()
    counts = write_site_layers(tmp_path, sites, SHAPE, VOXEL)
    layer = tmp_path / LAYERS[kind]
    wanted = expected(sites, kind)
    assert counts[LAYERS[kind]] == len(wanted) > 1
    assert read_by_id(layer) == wanted
    info = read_info(layer)
    assert info["annotation_type"] == ("POINT" if kind == "omission" else "LINE")
    (level,) = info["spatial"]
    assert level["limit"] == len(wanted)
    assert level["grid_shape"] == [1, 1, 1]
    values = {i: annotation for i, (annotation, _) in wanted.items()}
    assert read_list(layer, f"{level['key']}/0_0_0") == values
    (relationship,) = info["relationships"]
    related = {
        int(file.name): read_list(layer, f"{relationship['key']}/{file.name}")
        for file in (layer / relationship["key"]).iterdir()
    }
    segments = {label for _, labels in wanted.values() for label in labels}
    assert related == {
        label: {i: values[i] for i, (_, labels) in wanted.items() if label in labels}
        for label in segments
    }


def test_bounds_hold_the_volume_and_what_lies_outside(tmp_path):
    write_site_layers(tmp_path, with_errors(), SHAPE, VOXEL)
    info = read_info(tmp_path / "omissions")
    assert info["lower_bound"] == [0, 0, 0]
    assert info["upper_bound"] == [20, 60, 5]
    assert info["spatial"][0]["chunk_size"] == [20, 60, 5]
    assert [v[0] for v in info["dimensions"].values()] == pytest.approx([7e-9, 9e-9, 40e-9])
    assert {v[1] for v in info["dimensions"].values()} == {"m"}
    outside = sites_of((line("a", 30, -3.5, start=2.0), [*[1] * 27, 0, 0, 0]))
    write_site_layers(tmp_path, outside, SHAPE, VOXEL)
    info = read_info(tmp_path / "omissions")
    (point,) = read_list(tmp_path / "omissions", "spatial0/0_0_0").values()
    # From the label at x = 28 to the end at x = 31: of two middle nodes the first.
    assert point[:3] == (29.0, -3.5, 0.5)
    assert info["lower_bound"] == [0, -4, 0]
    assert info["upper_bound"] == [30, 60, 5]
    assert info["spatial"][0]["chunk_size"] == [30, 64, 5]


def test_a_layer_without_sites_is_whole(tmp_path):
    counts = write_site_layers(tmp_path, sites_of((line("a", 3, 0), [1, 1, 1])), SHAPE, VOXEL)
    assert counts == {"splits": 0, "merges": 0, "omissions": 0}
    for layer in counts:
        assert read_by_id(tmp_path / layer) == {}
        assert read_list(tmp_path / layer, "spatial0/0_0_0") == {}
        assert read_info(tmp_path / layer)["spatial"][0]["limit"] == 1


def test_a_layer_is_replaced_and_equal_sites_give_equal_bytes(tmp_path):
    def content() -> dict[str, bytes]:
        files = (p for p in tmp_path.rglob("*") if p.is_file())
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in files}

    sites = with_errors()
    write_site_layers(tmp_path, sites, SHAPE, VOXEL)
    first = content()
    write_site_layers(tmp_path, sites_of((line("a", 2, 0), [8, 9])), SHAPE, VOXEL)
    assert set(read_by_id(tmp_path / "splits")) == {1}
    assert {p.name for p in (tmp_path / "splits" / "segments").iterdir()} == {"8", "9"}
    write_site_layers(tmp_path, sites, SHAPE, VOXEL)
    assert content() == first


def test_only_the_largest_of_each_kind_are_written(tmp_path):
    sites = with_errors()
    counts = write_site_layers(tmp_path, sites, SHAPE, VOXEL, largest=1)
    assert counts == {"splits": 1, "merges": 1, "omissions": 1}
    for kind in KINDS:
        first = int(np.flatnonzero(sites.kind == KINDS.index(kind))[0])
        assert set(read_by_id(tmp_path / LAYERS[kind])) == {first + 1}
    with pytest.raises(InputError, match="largest: expected 1 or more annotations a kind, got 0"):
        write_site_layers(tmp_path, sites, SHAPE, VOXEL, largest=0)


def test_coordinates_that_the_format_cannot_hold_are_refused(tmp_path):
    sites = sites_of((line("a", 3, 1e39), [1, 2, 2]))
    with pytest.raises(InputError, match="beyond what float32 holds"):
        write_site_layers(tmp_path, sites, SHAPE, VOXEL)


def test_cloud_volume_reads_the_points(tmp_path):
    sites = with_errors()
    write_site_layers(tmp_path, sites, SHAPE, VOXEL)
    # Its own opener of layers takes these for volumes, and its reader fails on lines.
    found = PrecomputedAnnotationSource(f"file://{tmp_path / 'omissions'}").get_all()
    wanted = expected(sites, "omission")
    order = np.argsort(found.ids)
    points = np.asarray(found.geometry)[order].reshape(-1, 3)
    assert found.ids[order].tolist() == sorted(wanted)
    assert points.tolist() == [list(wanted[i][0][:3]) for i in sorted(wanted)]
    assert found.properties["rank"][order].tolist() == sorted(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_writer_of_the_viewer_gives_the_same_bytes(tmp_path, kind):
    sites = with_errors()
    write_site_layers(tmp_path, sites, SHAPE, VOXEL)
    # It sets a uint32 after a float32 too far; a positive int32 has the same bytes.
    properties = [
        AnnotationPropertySpec(id="cable_nm", type="float32"),
        AnnotationPropertySpec(id="rank", type="int32"),
    ]
    space = CoordinateSpace(names=["x", "y", "z"], units="nm", scales=[7, 9, 40])
    shape = "point" if kind == "omission" else "line"
    writer = AnnotationWriter(space, shape, ["segments"], properties)
    for number, (values, segments) in expected(sites, kind).items():
        *places, cable, rank = values
        points = [places[i : i + 3] for i in range(0, len(places), 3)]
        add = writer.add_point if kind == "omission" else writer.add_line
        add(*points, id=number, cable_nm=cable, rank=rank, segments=segments)
    other = tmp_path / "other"
    writer.write(other)
    layer = tmp_path / LAYERS[kind]
    for ours, theirs in (("by_id", "by_id"), ("segments", "rel_segments")):
        names = sorted(p.name for p in (layer / ours).iterdir())
        assert names == sorted(p.name for p in (other / theirs).iterdir())
        for name in names:
            assert (layer / ours / name).read_bytes() == (other / theirs / name).read_bytes()
    info = json.loads((other / "info").read_text())
    for key in ("annotation_type", "by_id"):
        assert read_info(layer)[key].__repr__().lower() == info[key].__repr__().lower()
    for axis, (scale, unit) in read_info(layer)["dimensions"].items():
        assert info["dimensions"][axis] == [pytest.approx(scale), unit]


def many_sites() -> Sites:
    """Neurons with gaps of background, split edges and labels that others carry too."""
    rng = np.random.default_rng(3)
    cases = []
    for number in range(8):
        nodes = np.cumsum(rng.normal(0, 1.2, (150, 3)), axis=0) + np.array([2, 30, 10])
        edges = np.array([(i + 1, i) for i in range(149)])
        labels = np.repeat(rng.integers(0, 40, 50) * (rng.random(50) < 0.6), 3).tolist()
        cases.append((Skeleton(f"n{number}", nodes, edges), labels))
    return sites_of(*cases)


def read_part(layer: Path, part: dict[str, Any], keys: set[int]) -> dict[int, bytes]:
    """The entries of a part, by the viewer's own kind of store where it is sharded."""
    folder = layer / part["key"]
    if "sharding" not in part:
        return {int(file.name): file.read_bytes() for file in folder.iterdir()}
    assert all(file.suffix == ".shard" for file in folder.iterdir())
    spec = {"driver": "neuroglancer_uint64_sharded", "metadata": part["sharding"]}
    store = ts.KvStore.open(spec | {"base": f"file://{folder}/"}).result()
    assert len(store.list().result()) == len(keys)
    return {key: store.read(struct.pack(">Q", key)).result().value for key in keys}


def read_cells(layer: Path, level: dict[str, Any]) -> dict[tuple[int, ...], bytes]:
    """The cells of a level, by their three numbers."""
    every = np.stack(np.unravel_index(np.arange(np.prod(level["grid_shape"])), level["grid_shape"]))
    folder = layer / level["key"]
    if "sharding" not in level:
        return {tuple(map(int, f.name.split("_"))): f.read_bytes() for f in folder.iterdir()}
    spec = {"driver": "neuroglancer_uint64_sharded", "metadata": level["sharding"]}
    store = ts.KvStore.open(spec | {"base": f"file://{folder}/"}).result()
    found = {}
    for cell in every.T.tolist():
        code, place = 0, 0
        for bit in range(32):
            for axis in range(3):
                if level["grid_shape"][axis] > 1 << bit:
                    code |= (cell[axis] >> bit & 1) << place
                    place += 1
        read = store.read(struct.pack(">Q", code)).result()
        if read.state == "value":
            found[tuple(cell)] = read.value
    assert len(store.list().result()) == len(found)
    return found


def decode_list(info: dict[str, Any], data: bytes) -> dict[int, tuple[Any, ...]]:
    one = record(info)
    (count,) = struct.unpack_from("<Q", data)
    assert len(data) == 8 + count * (one.size + 8)
    ids = struct.unpack_from(f"<{count}Q", data, 8 + count * one.size)
    return {i: one.unpack_from(data, 8 + n * one.size) for n, i in enumerate(ids)}


@pytest.mark.parametrize("most_files", [0, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_large_layers_are_sharded_and_spread_over_levels(tmp_path, monkeypatch, kind, most_files):
    monkeypatch.setattr(annotations, "_MOST_FILES", most_files)
    monkeypatch.setattr(annotations, "_CELL_LIMIT", 5)
    sites = many_sites()
    write_site_layers(tmp_path, sites, SHAPE, VOXEL)
    layer, wanted = tmp_path / LAYERS[kind], expected(sites, kind)
    info = read_info(layer)
    values = {i: annotation for i, (annotation, _) in wanted.items()}
    assert len(wanted) > 30
    assert ("sharding" in info["by_id"]) == (most_files == 0)
    by_id = {}
    one = record(info)
    for key, data in read_part(layer, info["by_id"], set(wanted)).items():
        (count,) = struct.unpack_from("<I", data, one.size)
        assert len(data) == one.size + 4 + 8 * count
        listed = struct.unpack_from(f"<{count}Q", data, one.size + 4)
        by_id[key] = (one.unpack_from(data), list(listed))
    assert by_id == wanted
    segments = {label for _, labels in wanted.values() for label in labels}
    related = read_part(layer, info["relationships"][0], segments)
    assert {key: decode_list(info, data) for key, data in related.items()} == {
        label: {i: values[i] for i, (_, labels) in wanted.items() if label in labels}
        for label in segments
    }
    low, extent = np.array(info["lower_bound"]), np.array(info["upper_bound"]) - info["lower_bound"]
    assert info["spatial"][0]["grid_shape"] == [1, 1, 1]
    assert len(info["spatial"]) > 1
    seen: dict[int, tuple[Any, ...]] = {}
    for level in info["spatial"]:
        size = np.array(level["chunk_size"])
        np.testing.assert_allclose(size * level["grid_shape"], extent)
        cells = {c: decode_list(info, data) for c, data in read_cells(layer, level).items()}
        assert max(map(len, cells.values())) == level["limit"]
        here: dict[int, tuple[Any, ...]] = {}
        for cell, found in cells.items():
            for i, annotation in found.items():
                places = np.reshape(annotation[:-2], (-1, 3))
                assert (places.max(axis=0) >= low + cell * size - 1e-6).all()
                assert (places.min(axis=0) <= low + (np.array(cell) + 1) * size + 1e-6).all()
                here[i] = annotation
        for i, annotation in here.items():
            cell = tuple(((np.array(annotation[:3]) - low) / size).astype(int).tolist())
            assert i in cells[cell]
        assert not seen.keys() & here.keys()
        seen |= here
    assert seen == values


def test_the_viewer_package_finds_what_is_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "_MOST_FILES", 0)
    monkeypatch.setattr(annotations, "_CELL_LIMIT", 5)
    sites = many_sites()
    write_site_layers(tmp_path, sites, SHAPE, VOXEL)
    # It takes the properties for longer than the format has them: bytes only.
    monkeypatch.setattr(AnnotationReader, "_decode_multiple_annotations", lambda _, key, data: data)
    reader = AnnotationReader(f"file://{tmp_path / 'splits'}")
    info = read_info(tmp_path / "splits")
    values = {i: annotation for i, (annotation, _) in expected(sites, "split").items()}
    found: dict[int, tuple[Any, ...]] = {}
    for level, spatial in zip(info["spatial"], reader.spatial, strict=True):
        for cell in np.ndindex(*level["grid_shape"]):
            if cell in spatial:
                found |= decode_list(info, spatial[cell])
    assert found == values
