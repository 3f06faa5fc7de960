import numpy as np
import pytest
import tifffile

from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Roi
from pipeline.storage.source import open_source, read_labels

DATA = np.random.default_rng(0).integers(0, 4000, (6, 20, 30)).astype(np.uint16)
ROI = Roi((1, 3, 4), (4, 10, 20))


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_a_tiff_of_several_planes(tmp_path, compression):
    tifffile.imwrite(tmp_path / "a.tif", DATA, compression=compression, photometric="minisblack")
    source = open_source(tmp_path / "a.tif")
    assert source.shape == DATA.shape
    assert source.dtype == DATA.dtype
    assert (source.read(ROI) == DATA[ROI.slices]).all()


def test_a_folder_of_planes_in_the_order_of_their_names(tmp_path):
    for z in (3, 0, 5, 1, 2, 4):
        tifffile.imwrite(tmp_path / f"plane_{z:03d}.tiff", DATA[z])
    source = open_source(tmp_path)
    assert source.shape == DATA.shape
    assert (source.read(ROI) == DATA[ROI.slices]).all()


def test_the_voxel_size_of_imagej(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        DATA,
        imagej=True,
        resolution=(1 / 0.4, 1 / 0.5),
        metadata={"spacing": 2.0, "unit": "um"},
    )
    assert open_source(tmp_path / "a.tif").voxel_size_nm == pytest.approx((2000, 500, 400))


def test_a_plane_that_differs_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DATA[0])
    tifffile.imwrite(tmp_path / "b.tif", DATA[1, :10])
    source = open_source(tmp_path)
    with pytest.raises(DataError, match=r"b\.tif: plane 1 is \(10, 30\)"):
        source.read(Roi((0, 0, 0), (2, 20, 30)))


def test_what_is_no_volume_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_source(tmp_path / "absent.tif")
    tifffile.imwrite(tmp_path / "flat.tif", DATA[0])
    with pytest.raises(ShapeError, match=r"got shape \(20, 30\)"):
        open_source(tmp_path / "flat.tif")
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(InputError, match="not a readable TIFF"):
        open_source(tmp_path / "text.tif")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected \.tif"):
        open_source(tmp_path / "a.png")


def test_labels_are_unsigned_integers(tmp_path):
    labels = DATA.astype(np.int32)
    tifffile.imwrite(tmp_path / "a.tif", labels)
    found = read_labels(tmp_path / "a.tif", ROI)
    assert found.dtype == np.uint64
    assert (found == DATA[ROI.slices]).all()
    labels[2, 5, 6] = -3
    tifffile.imwrite(tmp_path / "a.tif", labels)
    with pytest.raises(DataError, match="negative: -3"):
        read_labels(tmp_path / "a.tif", ROI)
    tifffile.imwrite(tmp_path / "f.tif", DATA.astype(np.float32))
    with pytest.raises(DtypeError, match="got float32"):
        read_labels(tmp_path / "f.tif", ROI)


def test_planes_without_leading_zeros_are_in_the_order_of_their_numbers(tmp_path):
    for z in range(12):
        tifffile.imwrite(tmp_path / f"p{z + 1}.tif", np.full((4, 5), z, np.uint8))
    (tmp_path / "._p1.tif").write_bytes(b"not an image")
    source = open_source(tmp_path)
    assert source.read(Roi((0, 0, 0), (12, 4, 5)))[:, 0, 0].tolist() == list(range(12))


def test_a_colour_picture_is_no_volume(tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb")
    with pytest.raises(ShapeError, match="samples of a pixel"):
        open_source(tmp_path / "a.tif")
