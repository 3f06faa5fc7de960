"""Precomputed volumes of others: written by cloud-volume and tensorstore, read back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, InputError, ShapeError
from pipeline.geometry import Roi
from pipeline.storage.precomputed import CloudVolume
from pipeline.storage.precomputed_source import PrecomputedSource, open_precomputed_source
from pipeline.storage.source import labels_at, open_source, read_labels, source_offset

SHAPE, OFFSET, CHUNK = (20, 24, 35), (7, 5, 3), (8, 16, 16)
SIZE = (40.0, 8.5, 8.0)
KEY = "8.0_8.5_40.0"
ROI = Roi((3, 4, 5), (10, 18, 25))


def labels(dtype: type = np.uint64) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 5, SHAPE).astype(dtype)
    values[4:12, 2:9, 20:30] = np.iinfo(dtype).max
    return values


def write_foreign(
    path: Path,
    values: np.ndarray,
    *,
    encoding: str = "raw",
    compress: str | bool = False,
    offset: tuple[int, int, int] = OFFSET,
    kind: str = "segmentation",
    size: tuple[float, float, float] = SIZE,
) -> None:
    """With cloud-volume, which counts x, y, z."""
    info = CloudVolume.create_new_info(
        1, kind, values.dtype.name, encoding, list(size[::-1]), list(offset[::-1]),
        list(values.shape[::-1]), chunk_size=list(CHUNK[::-1]),
    )  # fmt: skip
    address = f"precomputed://file://{path}"
    volume = CloudVolume(address, info=info, progress=False, compress=compress)
    volume.commit_info()
    volume[:, :, :] = values.T


def write_sharded(path: Path, values: np.ndarray, encoding: str) -> None:
    """With tensorstore."""
    sharding = {
        "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 1, "hash": "identity",
        "minishard_bits": 1, "shard_bits": 1, "minishard_index_encoding": "gzip",
        "data_encoding": "gzip",
    }  # fmt: skip
    scale = {
        "encoding": encoding, "chunk_size": list(CHUNK[::-1]), "resolution": list(SIZE[::-1]),
        "size": list(values.shape[::-1]), "voxel_offset": list(OFFSET[::-1]), "sharding": sharding,
    }  # fmt: skip
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "multiscale_metadata": {
            "type": "segmentation", "num_channels": 1, "data_type": values.dtype.name
        },
        "scale_metadata": scale,
    }  # fmt: skip
    ts.open(spec, create=True).result()[..., 0].write(values.T).result()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("compress", [False, "gzip"])
def test_raw_labels_with_an_offset(tmp_path: Path, dtype: type, compress: str | bool) -> None:
    values = labels(dtype)
    write_foreign(tmp_path, values, compress=compress)
    assert any(f.suffix == ".gz" for f in (tmp_path / KEY).iterdir()) == bool(compress)
    source = open_source(tmp_path)
    assert (source.shape, source.dtype, source.voxel_size_nm) == (SHAPE, values.dtype, SIZE)
    assert source_offset(source) == OFFSET
    found = source.read(ROI)
    assert (found == values[ROI.slices]).all()
    assert found.flags.c_contiguous
    found[:] = 0
    assert (read_labels(tmp_path, ROI) == values[ROI.slices]).all()


@pytest.mark.parametrize("compress", [False, "gzip"])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_packed_labels(tmp_path: Path, dtype: type, compress: str | bool) -> None:
    values = labels(dtype)
    write_foreign(tmp_path, values, encoding="compressed_segmentation", compress=compress)
    source = open_precomputed_source(tmp_path)
    assert (source.chunks, source.kind, source.sharded) == (CHUNK, "segmentation", False)
    assert (source.read(source.roi) == values).all()


@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_sharded_labels(tmp_path: Path, encoding: str) -> None:
    values = labels()
    write_sharded(tmp_path, values, encoding)
    source = open_precomputed_source(tmp_path)
    assert source.sharded
    assert (source.offset, source.voxel_size_nm) == (OFFSET, SIZE)
    assert (source.read(ROI) == values[ROI.slices]).all()
    assert (source.read(source.roi) == values).all()
    for shard in (tmp_path / source.key).iterdir():
        shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(DataError, match=r"chunk \[.*in a shard"):
        source.read(ROI)


def test_images_and_offsets_below_zero(tmp_path: Path) -> None:
    values = (labels(np.uint16) * 1.5).astype(np.float32)
    write_foreign(tmp_path, values, kind="image", offset=(-4, 0, -9))
    source = open_precomputed_source(tmp_path)
    assert (source.kind, source.offset, source.dtype) == ("image", (-4, 0, -9), np.float32)
    assert (source.read(ROI) == values[ROI.slices]).all()


boxes = st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in SHAPE))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(boxes)
def test_any_box_is_that_of_the_array(tmp_path_factory: pytest.TempPathFactory, box) -> None:
    path = tmp_path_factory.getbasetemp() / "boxes"
    if not path.exists():
        write_foreign(path, labels(), compress="gzip")
    begin = tuple(b for b, _ in box)
    end = tuple(min(b + n, s) for (b, n), s in zip(box, SHAPE, strict=True))
    roi = Roi.between(begin, end)
    assert (open_source(path).read(roi) == labels()[roi.slices]).all()


@pytest.mark.parametrize("compress", [False, "gzip"])
def test_an_absent_chunk_is_background(tmp_path: Path, compress: str | bool) -> None:
    values = labels()
    write_foreign(tmp_path, values, compress=compress)
    (chunk,) = (tmp_path / KEY).glob("3-19_5-21_7-15*")
    chunk.unlink()
    expected = values.copy()
    expected[:8, :16, :16] = 0
    source = open_precomputed_source(tmp_path)
    assert (source.read(source.roi) == expected).all()


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("raw", False), ("raw", "gzip"), ("compressed_segmentation", False)],
)
def test_a_damaged_chunk_is_named(tmp_path: Path, encoding: str, compress: str | bool) -> None:
    write_foreign(tmp_path, labels(), encoding=encoding, compress=compress)
    (chunk,) = (tmp_path / KEY).glob("19-35_5-21_15-23*")
    chunk.write_bytes(chunk.read_bytes()[:-30])
    source = open_precomputed_source(tmp_path)
    with pytest.raises(DataError, match="19-35_5-21_15-23"):
        source.read(source.roi)
    away = Roi((0, 0, 0), (8, 16, 16))
    assert (source.read(away) == labels()[away.slices]).all(), "other chunks are not touched"


def test_a_gzip_that_holds_too_little_is_damaged(tmp_path: Path) -> None:
    write_foreign(tmp_path, labels(), compress="gzip")
    (chunk,) = (tmp_path / KEY).glob("19-35_5-21_15-23.gz")
    chunk.write_bytes(gzip.compress(gzip.decompress(chunk.read_bytes())[:-8]))
    with pytest.raises(DataError, match=r"chunk \[8:16, 0:16, 16:32\] .*19-35_5-21_15-23"):
        open_precomputed_source(tmp_path).read(ROI)


def test_packed_and_plain_chunks_side_by_side(tmp_path: Path) -> None:
    """Written in two goes: every second chunk is plain."""
    write_foreign(tmp_path, labels(), compress="gzip")
    for packed in sorted((tmp_path / KEY).iterdir())[::2]:
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    source = open_precomputed_source(tmp_path)
    assert (source.read(source.roi) == labels()).all()


def test_only_chunks_that_the_box_touches_are_read(tmp_path: Path) -> None:
    """All others are damaged."""
    write_foreign(tmp_path, labels())
    for chunk in (tmp_path / KEY).iterdir():
        if chunk.name != "19-35_5-21_15-23":
            chunk.write_bytes(b"damaged")
    roi = Roi((8, 0, 16), (8, 16, 16))
    source = open_precomputed_source(tmp_path)
    assert (source.read(roi) == labels()[roi.slices]).all()
    with pytest.raises(DataError, match="cannot be read"):
        source.read(roi.grow((1, 0, 0)))


def test_chunks_that_cannot_be_told(tmp_path: Path) -> None:
    write_foreign(tmp_path, labels(), compress="gzip")
    (chunk,) = (tmp_path / KEY).glob("19-35_5-21_15-23.gz")
    plain = chunk.with_suffix("")
    plain.write_bytes(gzip.decompress(chunk.read_bytes()))
    source = open_precomputed_source(tmp_path)
    with pytest.raises(DataError, match=r"twice, plain and as 19-35_5-21_15-23\.gz"):
        source.read(ROI)
    plain.unlink()
    chunk.rename(chunk.with_suffix(".br"))
    with pytest.raises(DataError, match=r"19-35_5-21_15-23\.br: expected.*compress=False"):
        source.read(ROI)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file `info`"):
        open_precomputed_source(tmp_path)
    for text, message in (
        ("{", "as JSON"),
        ("[]", "expected a JSON object"),
        ('{"@type": "neuroglancer_skeletons"}', "describes neuroglancer_skeletons, no volume"),
        ('{"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [{}]}', "not a"),
    ):
        (tmp_path / "info").write_text(text)
        with pytest.raises(InputError, match=message):
            open_source(tmp_path)


def test_channels_are_refused(tmp_path: Path) -> None:
    write_foreign(tmp_path, labels())
    info = json.loads((tmp_path / "info").read_text())
    info["num_channels"] = 3
    (tmp_path / "info").write_text(json.dumps(info))
    with pytest.raises(ShapeError, match="one channel"):
        open_source(tmp_path)


def test_a_box_that_leaves_the_volume(tmp_path: Path) -> None:
    write_foreign(tmp_path, labels())
    with pytest.raises(ShapeError, match=r"leaves the volume of \(20, 24, 35\)"):
        open_source(tmp_path).read(Roi(OFFSET, SHAPE))


def test_a_volume_written_anew_is_not_read_through_the_old_handle(tmp_path: Path) -> None:
    write_foreign(tmp_path, labels())
    old = open_source(tmp_path)
    assert isinstance(old, PrecomputedSource)
    assert (old.read(ROI) == labels()[ROI.slices]).all()
    write_foreign(tmp_path, labels()[:, :16], offset=(0, 0, 0))
    found = open_source(tmp_path)
    assert (found.shape, source_offset(found)) == ((20, 16, 35), (0, 0, 0))
    roi = Roi((0, 0, 0), (20, 16, 35))
    assert (found.read(roi) == labels()[:, :16]).all()


def test_labels_at_voxels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**63, (20, 90, 140)).astype(np.uint64)
    write_foreign(tmp_path, values)
    voxels = np.random.default_rng(1).integers(0, values.shape, (500, 3))
    voxels[100:200] = voxels[:100]
    assert (labels_at(tmp_path, voxels) == values[tuple(voxels.T)]).all()
    assert labels_at(tmp_path, voxels[:0]).shape == (0,)
    for outside in ([20, 0, 0], [0, -1, 0]):
        with pytest.raises(ShapeError, match="outside"):
            labels_at(tmp_path, np.array([[0, 0, 0], outside]))
