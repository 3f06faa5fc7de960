import os

import numpy as np
import pytest
import tifffile
import zarr

from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Roi
from pipeline.storage.fingerprint import fingerprint
from pipeline.storage.source import (
    labels_at,
    open_source,
    read_labels,
    source_offset,
    translation_vox,
)

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


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["plain", "compressed"])
def archive(request, tmp_path):
    labels = DATA.astype(">i4")
    request.param(
        tmp_path / "volume.npz",
        gray=np.asfortranarray(DATA),
        labels=labels,
        mask=DATA > 2000,
        flat=DATA[0],
        empty=DATA[:0],
        objects=np.array([[[None]]], dtype=object),
        texts=np.array([[["a"]]]),
        **{"deep/er": DATA[::-1]},
    )
    return tmp_path / "volume.npz"


def test_an_array_of_an_archive(archive):
    source = open_source(archive / "gray")
    assert (source.shape, source.dtype, source.voxel_size_nm) == (DATA.shape, DATA.dtype, None)
    found = source.read(ROI)
    assert (found == DATA[ROI.slices]).all()
    assert found.flags.c_contiguous
    found[:] = 0
    assert (source.read(ROI) == DATA[ROI.slices]).all(), "what is given away is a copy"
    assert (open_source(archive / "deep" / "er").read(ROI) == DATA[::-1][ROI.slices]).all()
    with pytest.raises(InputError, match=r"leaves the array of \(6, 20, 30\)"):
        source.read(Roi((1, 0, 0), (6, 20, 30)))


def test_labels_of_an_archive(archive):
    found = read_labels(archive / "labels", ROI)
    assert found.dtype == np.uint64
    assert open_source(archive / "labels").dtype.isnative
    assert (found == DATA[ROI.slices]).all()
    mask = read_labels(archive / "mask", ROI)
    assert (mask == (DATA[ROI.slices] > 2000)).all()


def test_an_archive_is_unpacked_once_and_again_when_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "volume.npz"
    np.savez(path, gray=DATA)
    loads = []
    monkeypatch.setattr(
        np, "load", lambda *a, _load=np.load, **k: loads.append(1) or _load(*a, **k)
    )
    for _ in range(3):
        open_source(path / "gray").read(ROI)
    assert len(loads) == 1
    np.savez(tmp_path / "new.npz", gray=DATA + 1)
    (tmp_path / "new.npz").replace(path)
    assert (open_source(path / "gray").read(ROI) == DATA[ROI.slices] + 1).all()


@pytest.mark.parametrize(
    ("member", "error", "message"),
    [
        ("grey", InputError, r"no array named 'grey' in it.*gray, labels, mask"),
        ("", InputError, r"name one of its arrays, as in volume\.npz/gray"),
        ("gray.npy", InputError, "no array named 'gray.npy'"),
        ("flat", ShapeError, r"got shape \(20, 30\)"),
        ("empty", ShapeError, r"got shape \(0, 20, 30\)"),
        ("objects", DtypeError, "an array of Python objects"),
        ("texts", DtypeError, "expected numbers, got <U1"),
    ],
)
def test_what_an_archive_cannot_give(archive, member, error, message):
    with pytest.raises(error, match=message):
        open_source(archive / member)


def test_no_archive(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_source(tmp_path / "absent.npz" / "gray")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match="not a NumPy archive"):
        open_source(tmp_path / "text.npz" / "gray")
    np.savez(tmp_path / "whole.npz", gray=DATA)
    damaged = bytearray((tmp_path / "whole.npz").read_bytes())
    damaged[200] ^= 255
    (tmp_path / "cut.npz").write_bytes(damaged)
    with pytest.raises(InputError, match=r"cut\.npz/gray: cannot be read"):
        open_source(tmp_path / "cut.npz" / "gray").read(ROI)
    np.savez(tmp_path / "none.npz")
    with pytest.raises(InputError, match="it holds none"):
        open_source(tmp_path / "none.npz" / "gray")


def test_a_folder_with_the_name_of_an_archive_is_a_folder(tmp_path):
    (tmp_path / "planes.npz").mkdir()
    tifffile.imwrite(tmp_path / "planes.npz" / "a.tif", DATA[0])
    assert open_source(tmp_path / "planes.npz").shape == (1, 20, 30)


def test_the_fingerprint_of_an_array_is_that_of_its_archive(archive):
    before = fingerprint(archive / "gray")
    assert fingerprint(archive / "gray") == before
    assert fingerprint(archive / "labels") != before
    stamp = archive.stat().st_mtime_ns + 1
    os.utime(archive, ns=(stamp, stamp))
    assert fingerprint(archive / "gray") != before


def ome(path, zarr_format, lead=(), unit="micrometer", version="0.4", order="zyx"):
    """An OME-Zarr image of two levels, the first of which is DATA; a name that is not "0"."""
    group = zarr.create_group(path, zarr_format=zarr_format)
    spec = {"chunks": (*lead, 2, 8, 7), "dtype": DATA.dtype}
    if zarr_format == 3:
        spec |= {"shards": (*lead, 4, 16, 14)}
    for name, values in (("full", DATA), ("half", DATA[::2, ::2, ::2])):
        array = group.create_array(name, shape=(*lead, *values.shape), **spec)
        array[...] = np.broadcast_to(values, (*lead, *values.shape))
    names = ("t", "c")[2 - len(lead) :]
    axes = [{"name": n, "type": "time" if n == "t" else "channel"} for n in names]
    axes += [{"name": n, "type": "space", **({"unit": unit} if unit else {})} for n in order]
    scale = [1.0] * len(lead) + [2.0, 0.5, 0.4]
    datasets = [
        {"path": name, "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for name in ("full", "half")
    ]
    images = [{"version": version, "axes": axes, "datasets": datasets}]
    group.attrs.update(
        {"multiscales": images}
        if zarr_format == 2
        else {"ome": {"version": "0.5", "multiscales": images}}
    )


@pytest.mark.parametrize("lead", [(), (1,), (1, 1)])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_ome_zarr_images(tmp_path, zarr_format, lead):
    ome(tmp_path / "a.zarr", zarr_format, lead)
    source = open_source(tmp_path / "a.zarr")
    assert (source.shape, source.dtype) == (DATA.shape, DATA.dtype)
    assert source.voxel_size_nm == (2000.0, 500.0, 400.0)
    assert source_offset(source) == (0, 0, 0)
    assert (source.read(ROI) == DATA[ROI.slices]).all()
    assert (read_labels(tmp_path / "a.zarr", ROI) == DATA[ROI.slices]).all()
    assert (open_source(tmp_path / "a.zarr" / "full").read(ROI) == DATA[ROI.slices]).all()


def test_ome_zarr_without_a_unit_and_with_other_axes(tmp_path):
    ome(tmp_path / "plain", 2, unit=None)
    assert open_source(tmp_path / "plain").voxel_size_nm is None
    ome(tmp_path / "turned", 2, order="xyz")
    with pytest.raises(InputError, match=r"axes ending in z, y, x.*\['x', 'y', 'z'\]"):
        open_source(tmp_path / "turned")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_labels_with_channels_are_refused(tmp_path, zarr_format):
    ome(tmp_path / "a", zarr_format, (2,))
    with pytest.raises(ShapeError, match="got 2 channels"):
        read_labels(tmp_path / "a", ROI)
    ome(tmp_path / "b", zarr_format, (2, 1))
    with pytest.raises(ShapeError, match="expected a volume"):
        read_labels(tmp_path / "b", ROI)


def test_plain_zarr_arrays(tmp_path):
    for zarr_format in (2, 3):
        path = tmp_path / f"v{zarr_format}"
        array = zarr.create_array(
            path, shape=DATA.shape, chunks=(4, 8, 9), dtype=DATA.dtype, zarr_format=zarr_format
        )
        array[...] = DATA
        assert (open_source(path).read(ROI) == DATA[ROI.slices]).all()


def test_labels_at_voxels_of_a_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DATA, photometric="minisblack")
    voxels = np.random.default_rng(1).integers(0, DATA.shape, (50, 3))
    assert (labels_at(tmp_path / "a.tif", voxels) == DATA[tuple(voxels.T)]).all()


def test_planes_beside_a_file_called_info_are_planes(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DATA[0])
    (tmp_path / "info").write_text("taken on a Monday")
    assert open_source(tmp_path).shape == (1, 20, 30)


def _ome(path, dataset, levels=None, version="0.5"):
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    group.create_array("0", shape=(2, 3, 4), dtype="u2")
    axes = [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": dataset}]}
    if levels is not None:
        image["coordinateTransformations"] = levels
    inner = {"version": version, "multiscales": [image]}
    group.attrs.update({"ome": inner} if version == "0.5" else inner)
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_translations_of_the_metadata_compose(tmp_path, version):
    scale = {"type": "scale", "scale": [200.0, 100.0, 50.0]}
    moved = {"type": "translation", "translation": [400.0, 0.0, -75.0]}
    again = [
        {"type": "scale", "scale": [2.0, 1.0, 1.0]},
        {"type": "translation", "translation": [100.0, 50.0, 0.0]},
    ]
    plain = _ome(tmp_path / "plain.zarr", [scale], version=version)
    one = _ome(tmp_path / "one.zarr", [scale, moved], version=version)
    both = _ome(tmp_path / "both.zarr", [scale, moved], again, version=version)
    assert translation_vox(open_source(plain)) == (0.0, 0.0, 0.0)
    assert translation_vox(open_source(one)) == (2.0, 0.0, -1.5)
    # (400 * 2 + 100) / (200 * 2), 50 / 100, -75 / 50
    assert translation_vox(open_source(both)) == (2.25, 0.5, -1.5)


def test_other_sources_have_no_translation(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(2, 3, 4), dtype="u2")
    tifffile.imwrite(tmp_path / "a.tif", DATA, photometric="minisblack")
    for name in ("a.zarr", "a.tif"):
        assert translation_vox(open_source(tmp_path / name)) == (0.0, 0.0, 0.0)
