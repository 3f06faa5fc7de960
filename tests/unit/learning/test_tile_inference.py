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
