import json

import numpy as np
import pytest
import zarr

from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Roi
from pipeline.storage.volume import Volume


def create(path, shape=(20, 30, 40), dtype="uint16", chunks=(8, 16, 16), **options):
    options.setdefault("voxel_size_nm", (1000.0, 400.0, 300.0))
    return Volume.create(path, shape, dtype, chunks=chunks, **options)


def test_reads_what_was_written_across_chunks(tmp_path):
    volume = create(tmp_path / "a.zarr")
    roi = Roi((3, 5, 7), (11, 20, 30))
    data = np.random.default_rng(0).integers(0, 60000, roi.shape, np.uint16)
    volume.write(roi, data)
    assert (Volume.open(tmp_path / "a.zarr").read(roi) == data).all()
    assert volume.read(Roi((0, 0, 0), (3, 5, 7))).sum() == 0


def test_channels_come_first(tmp_path):
    volume = create(tmp_path / "a.zarr", dtype="uint8", channels=3, compressor="lz4")
    roi = Roi((0, 0, 0), (4, 5, 6))
    data = np.arange(3 * 120, dtype=np.uint8).reshape(3, 4, 5, 6)
    volume.write(roi, data)
    assert (volume.read(roi) == data).all()
    assert volume.channels == 3


def test_metadata_are_ome_ngff(tmp_path):
    create(tmp_path / "a.zarr", level_factors=[(1, 2, 2)])
    meta = json.loads((tmp_path / "a.zarr/zarr.json").read_text())["attributes"]["ome"]
    assert meta["version"] == "0.5"
    [image] = meta["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["z", "y", "x"]
    assert [d["path"] for d in image["datasets"]] == ["0", "1"]
    steps = image["datasets"][1]["coordinateTransformations"]
    assert steps[0]["scale"] == [1000.0, 800.0, 600.0]
    assert steps[1]["translation"] == [0.0, 200.0, 150.0]
    array = json.loads((tmp_path / "a.zarr/0/zarr.json").read_text())
    assert array["dimension_names"] == ["z", "y", "x"]


def test_voxel_size_survives(tmp_path):
    assert create(tmp_path / "a.zarr").voxel_size_nm == (1000.0, 400.0, 300.0)
    assert create(tmp_path / "b.zarr", voxel_size_nm=None).voxel_size_nm is None


def test_levels_open(tmp_path):
    volume = create(tmp_path / "a.zarr", level_factors=[(1, 2, 2), (2, 4, 4)])
    assert volume.level(2).shape == (10, 8, 10)
    assert volume.level(1).voxel_size_nm == (1000.0, 800.0, 600.0)
    with pytest.raises(InputError, match="no level 3"):
        volume.level(3)


@pytest.mark.parametrize("version", [2, 3])
def test_foreign_arrays_open(tmp_path, version):
    array = zarr.create_array(
        tmp_path / "f.zarr", shape=(4, 5, 6), chunks=(2, 5, 3), dtype="u4", zarr_format=version
    )
    array[:] = np.arange(120).reshape(4, 5, 6)
    volume = Volume.open(tmp_path / "f.zarr")
    assert volume.dtype == np.uint32
    assert (volume.read(volume.roi) == array[:]).all()


def test_leading_axes_of_length_one_are_hidden(tmp_path):
    array = zarr.create_array(tmp_path / "f.zarr", shape=(1, 1, 4, 5, 6), dtype="u1")
    array[:] = np.arange(120, dtype=np.uint8).reshape(1, 1, 4, 5, 6)
    volume = Volume.open(tmp_path / "f.zarr")
    assert volume.shape == (4, 5, 6)
    assert volume.read(Roi((1, 1, 1), (1, 1, 2))).reshape(-1).tolist() == [37, 38]


def test_one_channel_is_no_channel_axis(tmp_path):
    array = zarr.create_array(tmp_path / "f.zarr", shape=(1, 4, 5, 6), dtype="u1")
    array[:] = np.arange(120, dtype=np.uint8).reshape(1, 4, 5, 6)
    volume = Volume.open(tmp_path / "f.zarr")
    assert volume.channels is None
    assert (volume.read(volume.roi) == array[0]).all()


def test_levels_can_be_replaced(tmp_path):
    volume = create(tmp_path / "a.zarr", level_factors=[(1, 2, 2), (2, 4, 4)])
    volume.write(volume.roi, np.ones(volume.shape, np.uint16))
    volume.set_levels([(2, 2, 2)])
    assert volume.level(1).shape == (10, 15, 20)
    assert not (tmp_path / "a.zarr" / "2").exists()
    assert Volume.open(tmp_path / "a.zarr").read(volume.roi).all()


def test_group_with_one_array_opens(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("raw", shape=(4, 5, 6), dtype="u1")
    assert Volume.open(tmp_path / "g.zarr").array == "raw"
    assert Volume.open(tmp_path / "g.zarr" / "raw").array == ""
    group.create_array("more", shape=(4, 5, 6), dtype="u1")
    with pytest.raises(InputError, match="more, raw"):
        Volume.open(tmp_path / "g.zarr")


def test_what_is_no_volume_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such volume"):
        Volume.open(tmp_path / "absent.zarr")
    with pytest.raises(InputError, match="not a zarr"):
        Volume.open(tmp_path)
    zarr.create_array(tmp_path / "flat.zarr", shape=(4, 5), dtype="u1")
    with pytest.raises(ShapeError, match=r"got shape \(4, 5\)"):
        Volume.open(tmp_path / "flat.zarr")
    zarr.create_array(tmp_path / "none.zarr", shape=(4, 0, 6), dtype="u1", chunks=(1, 1, 1))
    with pytest.raises(ShapeError, match="empty"):
        Volume.open(tmp_path / "none.zarr")


def test_requests_outside_are_refused(tmp_path):
    volume = create(tmp_path / "a.zarr")
    with pytest.raises(ShapeError, match="leaves the volume"):
        volume.read(Roi((0, 0, 39), (1, 1, 2)))
    with pytest.raises(ShapeError, match="expected data of shape"):
        volume.write(Roi((0, 0, 0), (2, 2, 2)), np.zeros((2, 2, 3), np.uint16))
    with pytest.raises(DtypeError, match="expected uint16, got uint32"):
        volume.write(Roi((0, 0, 0), (2, 2, 2)), np.zeros((2, 2, 2), np.uint32))


def test_zeros_are_stored_so_that_absence_shows(tmp_path):
    volume = create(tmp_path / "a.zarr")
    roi = Roi((0, 0, 0), (8, 16, 32))
    assert len(volume.missing_chunks(roi)) == 2
    volume.write(roi, np.zeros(roi.shape, np.uint16))
    assert volume.missing_chunks(roi) == []


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damaged_chunks_are_named(tmp_path, damage):
    volume = create(tmp_path / "a.zarr")
    roi = Roi((0, 0, 0), (8, 16, 16))
    volume.write(roi, np.arange(roi.size, dtype=np.uint16).reshape(roi.shape))
    chunk = tmp_path / "a.zarr/0/c/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[-7] ^= 1
    chunk.write_bytes(content if damage == "flip" else content[:-20])
    with pytest.raises(DataError, match="cannot read"):
        volume.read(roi)


def test_a_volume_created_anew_is_not_read_through_an_old_handle(tmp_path):
    import shutil

    first = create(tmp_path / "a.zarr", chunks=(8, 16, 16))
    roi = Roi((0, 0, 0), (8, 16, 16))
    first.write(roi, np.ones(roi.shape, np.uint16))
    shutil.rmtree(tmp_path / "a.zarr")
    second = create(tmp_path / "a.zarr", chunks=(4, 4, 4))
    assert second.read(roi).sum() == 0
    second.write(roi, np.full(roi.shape, 2, np.uint16))
    assert second.read(roi).min() == 2


def test_equal_content_gives_equal_bytes(tmp_path):
    data = np.random.default_rng(0).integers(0, 5, (20, 30, 40)).astype(np.uint64)
    for name in ("a", "b"):
        volume = create(tmp_path / name, dtype="uint64")
        volume.write(volume.roi, data)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*/c/**/*"))
    assert files
    for file in files:
        if (tmp_path / "a" / file).is_file():
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
