from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import DataError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi, Triple
from pipeline.learning.checkpoint import load_model, save_model
from pipeline.learning.inference import (
    Predictor,
    lattice_tiles,
    predict_probability,
    predict_roi,
)
from pipeline.learning.model import UNet, initialise
from pipeline.learning.settings import NetworkSettings, PredictSettings, TrainSettings

NETWORK = NetworkSettings(width=4, levels=2)
SHAPE: Triple = (21, 30, 37)
WHOLE = Roi((0, 0, 0), SHAPE)
SETTINGS = PredictSettings(tile=(8, 12, 16), context=(2, 4, 4), threads=1)
IMAGE = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def read(roi: Roi) -> np.ndarray:
    assert WHOLE.contains(roi)
    return IMAGE[roi.slices]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = UNet(NETWORK)
    initialise(model, 1)
    with torch.no_grad():
        model.head.weight.mul_(40.0)  # affinities over the whole range
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, model, TrainSettings(), {}, normalisation="none")
    return directory


@pytest.fixture(scope="module")
def predictor(model_directory: Path) -> Predictor:
    return Predictor.load(model_directory, SETTINGS)


@pytest.fixture(scope="module")
def whole(predictor: Predictor) -> np.ndarray:
    return predict_roi(predictor, read, SHAPE, WHOLE)


def test_affinities_use_the_range(whole: np.ndarray) -> None:
    assert (whole.shape, whole.dtype) == ((3, *SHAPE), np.uint8)
    assert whole.std() > 20


@pytest.mark.parametrize("block", [(21, 30, 37), (8, 12, 16), (7, 11, 13), (21, 5, 37)])
def test_blocks_do_not_show(predictor: Predictor, whole: np.ndarray, block: Triple) -> None:
    for cell in BlockGrid(WHOLE, block):
        found = predict_roi(predictor, read, SHAPE, cell.write)
        np.testing.assert_array_equal(found, whole[(slice(None), *cell.write.slices)])


@pytest.mark.parametrize("roi", [Roi((5, 6, 7), (1, 1, 1)), Roi((3, 0, 15), (14, 30, 3))])
def test_any_box_is_the_same_part(predictor: Predictor, whole: np.ndarray, roi: Roi) -> None:
    found = predict_roi(predictor, read, SHAPE, roi)
    np.testing.assert_array_equal(found, whole[(slice(None), *roi.slices)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_large_context_makes_the_lattice_invisible(model_directory: Path, precision: str) -> None:
    """With all the context a voxel can see, another lattice gives the same affinities."""
    results = []
    for tile in ((8, 12, 16), (10, 10, 20)):
        settings = PredictSettings.model_validate(
            {"tile": tile, "context": (11, 11, 11), "precision": precision}
        )
        predictor = Predictor.load(model_directory, settings)
        assert max(predictor.receptive_radius) <= 11
        results.append(predict_roi(predictor, read, SHAPE, WHOLE).astype(int))
    inner = (slice(None), slice(11, -9), slice(11, -11), slice(11, -11))
    difference = np.abs(results[0] - results[1])[inner]
    assert difference.max() <= (1 if precision == "fp32" else 6)


def test_the_network_alone_gives_the_same(predictor: Predictor, model_directory: Path) -> None:
    """One tile against the bare network in float32, quantised by hand."""
    settings = SETTINGS.model_copy(update={"precision": "fp32"})
    exact = Predictor.load(model_directory, settings)
    roi = Roi((8, 12, 16), (8, 12, 16))
    with torch.inference_mode():
        box = torch.from_numpy(IMAGE[roi.grow(SETTINGS.context).slices])[None, None]
        logits = exact.model(box)[0, :, 2:-2, 4:-4, 4:-4]
    p = torch.sigmoid(logits).double().numpy()
    found = predict_roi(exact, read, SHAPE, roi).astype(int)
    assert np.abs(found - np.rint(255 * p)).max() <= 1
    assert (found == np.rint(255 * p)).mean() > 0.999


def test_outside_the_volume_its_edge_is_repeated(predictor: Predictor) -> None:
    padded = np.pad(IMAGE, [(0, 3), (0, 6), (0, 11)], mode="edge")
    larger: Triple = (24, 36, 48)
    found = predict_roi(predictor, lambda roi: padded[roi.slices], larger, WHOLE)
    expected = predict_roi(predictor, read, SHAPE, WHOLE)
    np.testing.assert_array_equal(found[:, :-2, :-4, :-4], expected[:, :-2, :-4, :-4])


def test_first_planes_have_no_partner(whole: np.ndarray) -> None:
    for axis in range(3):
        channel = np.moveaxis(whole[axis], axis, 0)
        assert not channel[0].any()
        assert channel[1].any()


def test_unwanted_tiles_are_zero_and_are_not_read(predictor: Predictor, whole: np.ndarray) -> None:
    asked, boxes = [], []

    def wanted(tile: Roi) -> bool:
        asked.append(tile)
        return tile.offset == (8, 12, 32)

    def record(roi: Roi) -> np.ndarray:
        boxes.append(roi)
        return read(roi)

    found = predict_roi(predictor, record, SHAPE, WHOLE, wanted=wanted)
    kept = Roi((8, 12, 32), (8, 12, 5))  # clipped to the volume
    assert kept in asked
    assert len(asked) == 27
    assert boxes == [kept.grow((2, 4, 4)).intersect(WHOLE)]
    expected = np.zeros_like(whole)
    expected[(slice(None), *kept.slices)] = whole[(slice(None), *kept.slices)]
    np.testing.assert_array_equal(found, expected)
    assert not predict_roi(predictor, record, SHAPE, WHOLE, wanted=lambda _: False).any()


def test_nan_is_never_predicted_from(predictor: Predictor) -> None:
    spoilt = IMAGE.copy()
    spoilt[10, 15, 20] = np.nan
    with pytest.raises(DataError, match=r"NaN or infinity in \["):
        predict_roi(predictor, lambda roi: spoilt[roi.slices], SHAPE, WHOLE)
    far = Roi((0, 0, 0), (4, 4, 4))
    predict_roi(predictor, lambda roi: spoilt[roi.slices], SHAPE, far)


def test_a_nan_of_the_network_is_an_error(model_directory: Path) -> None:
    predictor = Predictor.load(model_directory, SETTINGS)
    with torch.no_grad():
        predictor.model.head.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="output"):
        predict_roi(predictor, read, SHAPE, Roi((0, 0, 0), (2, 2, 2)))


def test_tiles_that_do_not_suit_the_network(model_directory: Path) -> None:
    settings = PredictSettings(tile=(8, 11, 16), context=(2, 4, 4))
    with pytest.raises(InputError, match=r"stride \(2, 2, 2\): use tile \(8, 1[02], 16\)"):
        Predictor.load(model_directory, settings)


def test_boxes_and_readers_that_do_not_fit(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="leaves the volume"):
        predict_roi(predictor, read, SHAPE, Roi((0, 0, 30), (1, 1, 8)))
    with pytest.raises(ShapeError, match="expected"):
        predict_roi(predictor, lambda roi: read(roi)[1:], SHAPE, WHOLE)


def test_lattice_is_anchored_at_the_origin() -> None:
    tiles = lattice_tiles(Roi((7, 12, 0), (2, 12, 1)), (8, 12, 16))
    assert tiles == [Roi((0, 12, 0), (8, 12, 16)), Roi((8, 12, 0), (8, 12, 16))]


# --- networks of foreground, and of two dimensions


def save_network(directory: Path, seed: int = 1, **settings: Any) -> Path:
    model = UNet(NetworkSettings(width=4, levels=2, **settings))
    initialise(model, seed)
    with torch.no_grad():
        model.head.weight.mul_(40.0)
    save_model(directory, model, TrainSettings(), {}, normalisation="none")
    return directory


FLAT: dict[str, Any] = {"dimensions": 2, "kernel": (1, 3, 3), "pool": ((1, 2, 2),)}


@pytest.fixture(scope="module")
def foreground(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = save_network(tmp_path_factory.mktemp("foreground"), output="foreground")
    return Predictor.load(folder, SETTINGS)


def weaker_of_two(probability: np.ndarray, axes: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """The definition, voxel by voxel."""
    found = np.zeros((3, *probability.shape), probability.dtype)
    for axis in axes:
        for voxel in np.ndindex(probability.shape):
            if voxel[axis]:
                before = tuple(v - (a == axis) for a, v in enumerate(voxel))
                found[(axis, *voxel)] = min(probability[voxel], probability[before])
    return found


def test_edges_of_foreground_are_the_weaker_of_two_voxels(foreground: Predictor) -> None:
    quantised = predict_probability(foreground, read, SHAPE, WHOLE, quantised=True)
    exact = predict_probability(foreground, read, SHAPE, WHOLE)
    assert (quantised.shape, quantised.dtype, exact.dtype) == (SHAPE, np.uint8, np.float32)
    np.testing.assert_array_equal(quantised, np.rint(exact.astype(np.float64) * 255))
    found = predict_roi(foreground, read, SHAPE, WHOLE)
    assert (found.dtype, found.std() > 20) == (np.uint8, True)
    np.testing.assert_array_equal(found, weaker_of_two(quantised))


@pytest.mark.parametrize("block", [(8, 12, 16), (7, 11, 13), (21, 5, 37), (1, 1, 37)])
def test_blocks_of_foreground_do_not_show(foreground: Predictor, block: Triple) -> None:
    whole = predict_roi(foreground, read, SHAPE, WHOLE)
    probability = predict_probability(foreground, read, SHAPE, WHOLE)
    for cell in BlockGrid(WHOLE, block):
        found = predict_roi(foreground, read, SHAPE, cell.write)
        np.testing.assert_array_equal(found, whole[(slice(None), *cell.write.slices)])
        part = predict_probability(foreground, read, SHAPE, cell.write)
        np.testing.assert_array_equal(part, probability[cell.write.slices])


def test_unwanted_tiles_of_foreground_are_zero_in_every_block(foreground: Predictor) -> None:
    def wanted(tile: Roi) -> bool:
        return sum(tile.offset) % 8 == 0

    probability = predict_probability(foreground, read, SHAPE, WHOLE, wanted=wanted, quantised=True)
    assert (probability == 0).any()
    assert probability.any()
    whole = weaker_of_two(probability)
    for cell in BlockGrid(WHOLE, (7, 11, 13)):
        found = predict_roi(foreground, read, SHAPE, cell.write, wanted=wanted)
        np.testing.assert_array_equal(found, whole[(slice(None), *cell.write.slices)])


def test_affinities_are_no_probability_of_foreground(predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"network.output: foreground"):
        predict_probability(predictor, read, SHAPE, WHOLE)


@pytest.mark.parametrize("output", ["affinities", "foreground"])
def test_planes_do_not_see_each_other(tmp_path: Path, output: str) -> None:
    predictor = Predictor.load(save_network(tmp_path / "flat", output=output, **FLAT), SETTINGS)
    found = predict_roi(predictor, read, SHAPE, WHOLE)
    assert not found[0].any()
    assert found[1, :, 1:].any()
    assert found[2, :, :, 1:].any()
    assert not found[1, :, 0].any()
    assert not found[2, :, :, 0].any()
    other = IMAGE.copy()
    other[:10] = 0
    changed = predict_roi(predictor, lambda roi: other[roi.slices], SHAPE, WHOLE)
    np.testing.assert_array_equal(changed[:, 10:], found[:, 10:])
    assert (changed[:, :10] != found[:, :10]).any()
    boxes = []

    def record(roi: Roi) -> np.ndarray:
        boxes.append(roi)
        return read(roi)

    predict_roi(predictor, record, SHAPE, Roi((8, 12, 16), (8, 12, 16)))
    # No plane of context; foreground needs the tiles before this one, along y and x.
    assert (boxes[0].offset[0], boxes[0].shape[0]) == (8, 8)


def test_a_network_in_memory_predicts_as_one_from_disk(
    predictor: Predictor, whole: np.ndarray, model_directory: Path
) -> None:
    again = Predictor.of(load_model(model_directory).model, SETTINGS)
    np.testing.assert_array_equal(predict_roi(again, read, SHAPE, WHOLE), whole)


# --- averages over mirrored inputs


FLIPS = {"yx": [(), (1,), (2,), (1, 2)]}
FLIPS["zyx"] = [*FLIPS["yx"], (0,), (0, 1), (0, 2), (0, 1, 2)]


def flipped(predictor: Predictor, flips: str, **changes: Any) -> Predictor:
    values = {**SETTINGS.model_dump(), "flips": flips, **changes}
    return Predictor.of(predictor.model, PredictSettings.model_validate(values))


def edges_of_mirror(model: UNet, image: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Affinities (float64) from the network's view of a mirrored whole image, pair by pair.

    The pair of v - 1 and v along a mirrored axis of extent n lies at n - 1 - v and n - v there, and
    the second of these stores it. Pairs that reach beyond the image are NaN.
    """
    with torch.inference_mode():
        batch = torch.from_numpy(np.flip(image, axes).copy())[None, None]
        seen = torch.sigmoid(model(batch))[0].double().numpy()
    found = np.full(seen.shape, np.nan)
    first = 3 - model.settings.dimensions
    for channel, stored in enumerate(seen):
        own = first + channel if model.settings.output == "affinities" else None
        for v in np.ndindex(image.shape):
            pairs = zip(v, image.shape, strict=True)
            at = [n - 1 - i if a in axes else i for a, (i, n) in enumerate(pairs)]
            if own in axes:
                at[own] += 1
                if v[own] == 0:
                    continue
            found[(channel, *v)] = stored[tuple(at)]
    return found


@pytest.mark.parametrize("flips", ["yx", "zyx"])
def test_mirrors_are_averaged_pair_by_pair(
    predictor: Predictor, foreground: Predictor, flips: str
) -> None:
    tile = Roi((8, 12, 16), (8, 12, 16))
    image = IMAGE[tile.grow(SETTINGS.context).slices]
    inner = (slice(None), *Roi(SETTINGS.context, tile.shape).slices)
    for network in (predictor, foreground):
        views = [edges_of_mirror(network.model, image, axes)[inner] for axes in FLIPS[flips]]
        expected = np.mean(views, axis=0)
        assert np.isfinite(expected).all()
        assert np.abs(expected - views[0]).max() > 0.1
        exact = flipped(network, flips, precision="fp32")
        np.testing.assert_allclose(exact.probabilities(image), expected, atol=1e-5)
    edges = predict_roi(flipped(predictor, flips, precision="fp32"), read, SHAPE, tile)
    affinities = flipped(predictor, flips, precision="fp32").probabilities(image)
    np.testing.assert_array_equal(edges, np.rint(affinities.double().numpy() * 255))


def test_mirrors_of_a_whole_volume(predictor: Predictor) -> None:
    """One tile with the volume in it, against the network on mirrored whole arrays."""
    exact = flipped(predictor, "zyx", tile=(24, 32, 40), context=(2, 2, 2), precision="fp32")
    padded = np.pad(IMAGE, [(2, 5), (2, 4), (2, 5)], mode="edge")
    views = [edges_of_mirror(exact.model, padded, axes) for axes in FLIPS["zyx"]]
    inner = (slice(None), *Roi((2, 2, 2), SHAPE).slices)
    expected = np.rint(255 * np.mean(views, axis=0)[inner])
    for axis in range(3):
        np.moveaxis(expected[axis], axis, 0)[0] = 0
    found = predict_roi(exact, read, SHAPE, WHOLE).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.999


@pytest.mark.parametrize(("flips", "block"), [("yx", (21, 5, 37)), ("zyx", (7, 11, 13))])
def test_blocks_do_not_show_in_mirrors(
    predictor: Predictor, foreground: Predictor, flips: str, block: Triple
) -> None:
    for network in (predictor, foreground):
        mirrored = flipped(network, flips)
        whole = predict_roi(mirrored, read, SHAPE, WHOLE)
        assert (whole != predict_roi(network, read, SHAPE, WHOLE)).any()
        assert not any(np.moveaxis(whole[axis], axis, 0)[0].any() for axis in range(3))
        for cell in BlockGrid(WHOLE, block):
            found = predict_roi(mirrored, read, SHAPE, cell.write)
            np.testing.assert_array_equal(found, whole[(slice(None), *cell.write.slices)])


def test_a_symmetric_image_gets_symmetric_affinities(
    predictor: Predictor, foreground: Predictor
) -> None:
    shape: Triple = (8, 12, 16)
    image = IMAGE[Roi((0, 0, 0), shape).slices].copy()
    for axis in range(3):
        image += np.flip(image, axis)
    for network in (predictor, foreground):
        mirrored = flipped(network, "zyx", precision="fp32")
        found = predict_roi(mirrored, lambda roi: image[roi.slices], shape, Roi((0, 0, 0), shape))
        alone = predict_roi(network, lambda roi: image[roi.slices], shape, Roi((0, 0, 0), shape))
        for channel, axis in np.ndindex(3, 3):
            edges, before = (np.moveaxis(e[channel], axis, 0).astype(int) for e in (found, alone))
            if channel == axis:  # the pair of v - 1 and v mirrors that of n - v - 1 and n - v
                edges, before = edges[1:], before[1:]
            assert np.abs(edges - edges[::-1]).max() <= 1
            assert np.abs(before - before[::-1]).max() > 10


@pytest.mark.parametrize("output", ["affinities", "foreground"])
def test_planes_are_not_mirrored_along_z(tmp_path: Path, output: str) -> None:
    flat = Predictor.load(save_network(tmp_path / "flat", output=output, **FLAT), SETTINGS)
    views = {flips: predict_roi(flipped(flat, flips), read, SHAPE, WHOLE) for flips in FLIPS}
    np.testing.assert_array_equal(views["zyx"], views["yx"])
    assert not views["zyx"][0].any()
    assert (views["yx"] != predict_roi(flat, read, SHAPE, WHOLE)).any()
    image = IMAGE[Roi((8, 8, 12), (8, 20, 24)).slices]
    edges = [edges_of_mirror(flat.model, image, axes) for axes in FLIPS["yx"]]
    found = flipped(flat, "zyx", precision="fp32").probabilities(image)
    expected = np.mean(edges, axis=0)[:, :, 4:-4, 4:-4]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mirrored_affinities_need_context(
    model_directory: Path, predictor: Predictor, foreground: Predictor, tmp_path: Path
) -> None:
    bare = {"tile": (8, 12, 16), "context": (0, 4, 4)}
    settings = PredictSettings.model_validate({**bare, "flips": "zyx"})
    message = r"flips: zyx needs predict.context of at least 1 along z, got \(0, 4, 4\)"
    with pytest.raises(InputError, match=message):
        Predictor.load(model_directory, settings)
    with pytest.raises(InputError, match=message):
        Predictor.of(predictor.model, settings)
    with pytest.raises(InputError, match="at least 1 along x"):
        flipped(predictor, "yx", context=(2, 4, 0))
    # What is not mirrored, or not between voxels, needs none.
    for allowed in (
        flipped(predictor, "yx", **bare),
        flipped(foreground, "zyx", **bare),
        flipped(Predictor.load(save_network(tmp_path / "flat", **FLAT), SETTINGS), "zyx", **bare),
    ):
        assert predict_roi(allowed, read, SHAPE, WHOLE).any()


def test_a_nan_of_a_mirror_is_an_error(model_directory: Path) -> None:
    predictor = Predictor.load(model_directory, SETTINGS.model_copy(update={"flips": "yx"}))
    with torch.no_grad():
        predictor.model.head.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="output"):
        predict_roi(predictor, read, SHAPE, Roi((0, 0, 0), (2, 2, 2)))
