"""Scores of segmentations in a comparison: planes, windows, tracings, and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.arrays.labels import IGNORE
from pipeline.arrays.segmentation_metrics import instance_metrics, segmentation_metrics
from pipeline.config import parse_config
from pipeline.errors import InputError
from pipeline.geometry import Roi
from pipeline.stages.comparison_pictures import picture_box, row_pictures
from pipeline.stages.comparison_scores import (
    FIGURES,
    Truth,
    label_components,
    read_truth,
    score_segments,
)
from pipeline.stages.run import Run

SHAPE = (4, 12, 20)
# Two fibres along x, and the tracing of the first.
SWC = "1 2 0 3 1 1 -1\n2 2 6 3 1 1 1\n3 2 12 3 1 1 2\n4 2 19 3 1 1 3\n"


def fibres() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint64)
    labels[0:3, 2:5, :] = 5
    labels[0:3, 7:10, :] = 9
    return labels


@pytest.fixture
def run(tmp_path: Path):
    """A handle on a run of the given truth."""

    def make(labels: np.ndarray, skeletons: bool = False, **sections: Any) -> Run:
        array = zarr.create_array(tmp_path / "labels.zarr", shape=SHAPE, dtype="uint64")
        array[:] = labels
        zarr.create_array(tmp_path / "image.zarr", shape=SHAPE, dtype="uint16")
        (tmp_path / "a.swc").write_text(SWC)
        given = {"image": "image.zarr", "labels": "labels.zarr"}
        given |= {"skeletons": "a.swc"} if skeletons else {}
        paths: dict[str, Any] = {name: str(tmp_path / path) for name, path in given.items()}
        values = {
            "run_dir": str(tmp_path / "run"),
            "input": {**paths, "voxel_size_nm": [1000, 1000, 1000]},
            "comparison": {"window": [4, 6, 10]},
            **sections,
        }
        return Run(tmp_path / "run", parse_config(values))

    return make


FLAT = {"network": {"dimensions": 2, "kernel": [1, 3, 3], "pool": [[1, 2, 2]]}}


def test_windows_are_cases_and_betti_errors_means_over_them(run) -> None:
    handle = run(fibres())
    truth = read_truth(handle)
    broken = fibres()
    broken[:, 2:5, 4] = 0
    found = score_segments(broken, truth, handle)
    mask = segmentation_metrics(broken != 0, fibres() != 0, patch=(4, 6, 10))
    assert {k: found.overall[k] for k in mask} == mask
    labels = instance_metrics(broken, fibres())
    assert {k: found.overall[k] for k in found.overall if k not in mask} == {
        k: labels[k] for k in labels if k in FIGURES
    }
    assert found.overall["betti_e0"] == 1 / 4
    # Windows in order: rows 0-5 and 6-11, columns 0-9 and 10-19.
    assert found.cases["betti_e0"] == [1, 0, 0, 0]
    assert found.cases["fnr"] == [pytest.approx(9 / 90), 0, 0, 0]
    assert "nerl" not in found.overall


def test_windows_without_an_object_are_no_cases(run) -> None:
    labels = fibres()
    labels[:, 6:, 10:] = 0
    handle = run(labels)
    assert len(score_segments(labels, read_truth(handle), handle).cases["dice"]) == 3


def test_planes_are_images_of_their_own(run) -> None:
    handle = run(fibres(), **FLAT)
    truth = read_truth(handle)
    assert truth.dimensions == 2
    segments = fibres()
    segments[1] = 0
    found = score_segments(segments, truth, handle)
    assert found.cases["dice"] == [1.0, 0.0, 1.0, None]
    assert found.overall["dice"] == pytest.approx(2 / 3)
    assert found.cases["accuracy"][3] == 1.0, "background counts where it is known"
    plane = segmentation_metrics(segments[1] != 0, fibres()[1] != 0, patch=(6, 10))
    assert found.cases["betti_e0"][1] == plane["betti_e0"] == 1.0


def test_planes_without_knowledge_are_no_cases(run) -> None:
    labels = fibres()
    labels[2:] = IGNORE
    handle = run(labels, **FLAT)
    found = score_segments(fibres(), read_truth(handle), handle)
    assert len(found.cases["betti_e"]) == len(found.cases["dice"]) == 2


def test_unknown_voxels_do_not_count(run) -> None:
    labels = fibres()
    labels[:, :, 10:] = IGNORE
    handle = run(labels)
    truth = read_truth(handle)
    clean = score_segments(np.where(labels == IGNORE, 0, labels), truth, handle)
    wild = score_segments(np.where(labels == IGNORE, np.uint64(77), labels), truth, handle)
    assert wild == clean
    assert clean.overall["dice"] == 1.0
    assert len(clean.cases["dice"]) == 2


def test_tracings_give_neurons(run) -> None:
    handle = run(fibres(), skeletons=True)
    truth = read_truth(handle)
    broken = fibres()
    broken[:, 2:5, 10:] = 6
    found = score_segments(broken, truth, handle)
    assert found.overall["splits"] == 1
    assert found.cases["splits"] == [1.0]
    # Edges of 6, 6 and 7: two nodes of three edges remain on each side.
    assert 0 < found.overall["nerl"] < 1
    assert found.cases["nerl"] == [found.overall["nerl"]]
    assert score_segments(fibres(), truth, handle).overall["nerl"] == 1.0


def test_nothing_to_score_is_an_error(run) -> None:
    with pytest.raises(InputError, match=r"regions\.score"):
        read_truth(run(np.zeros(SHAPE, np.uint64)))


def test_nothing_known_to_score_is_an_error(run) -> None:
    with pytest.raises(InputError, match="no labelled voxel"):
        read_truth(run(np.where(fibres() > 0, IGNORE, 0)))


def test_one_label_for_all_foreground_is_cut_into_components(run) -> None:
    handle = run((fibres() > 0).astype(np.uint64), network={"output": "foreground"})
    labels = read_truth(handle).labels
    assert set(np.unique(labels)) == {0, 1, 2}
    assert score_segments(fibres(), read_truth(handle), handle).overall["voi"] == 0


def test_other_labels_stay_as_they_are(run) -> None:
    np.testing.assert_array_equal(read_truth(run(fibres())).labels, fibres())


def test_one_label_for_all_stays_with_affinities(run) -> None:
    labels = (fibres() > 0).astype(np.uint64)
    np.testing.assert_array_equal(read_truth(run(labels)).labels, labels)


def test_components_by_hand() -> None:
    mask = np.zeros((2, 3, 4), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[0, 2, 3] = True
    mask[1, 2, 3] = True
    space = label_components(mask, 3)
    assert space.dtype == np.uint64
    assert space[0, 0, 0] == space[0, 1, 1] != space[0, 2, 3]
    assert space[0, 2, 3] == space[1, 2, 3]
    planes = label_components(mask, 2)
    assert sorted(np.unique(planes)) == [0, 1, 2, 3]
    assert planes[0, 2, 3] != planes[1, 2, 3]
    assert planes[0, 0, 0] == planes[0, 1, 1]
    assert not label_components(np.zeros((1, 2, 2), bool), 2).any()


# --- pictures


def truth_of(labels: np.ndarray, dimensions: int = 3) -> Truth:
    return Truth(Roi((0, 0, 0), labels.shape), labels, (), dimensions)


def test_the_box_of_the_pictures_holds_most_of_the_truth() -> None:
    labels = np.zeros((90, 4, 700), np.uint64)
    labels[60:80, :, 500:510] = 1
    labels[:, :, 100] = IGNORE
    box = picture_box(truth_of(labels))
    assert box.shape == (48, 4, 320)
    assert box.offset[0] <= 60 < 80 <= box.end[0]
    assert box.offset[2] <= 500 < 510 <= box.end[2]
    flat = picture_box(truth_of(labels, 2))
    assert (flat.offset[0], flat.shape[0]) == (60, 1), "the first plane with an object"


def test_errors_by_hand() -> None:
    labels = np.zeros((2, 1, 6), np.uint64)
    labels[0, 0, 0] = labels[1, 0, 1] = 4
    labels[:, 0, 3] = IGNORE
    labels[0, 0, 4] = IGNORE
    segments = np.zeros_like(labels)
    segments[1, 0, [2, 3]] = 8
    segments[:, 0, 1] = 9
    segments[0, 0, 4] = 9
    found = row_pictures(segments, truth_of(labels))
    assert found["errors"].tolist() == [[3, 1, 2, 4, 0, 0]]
    assert found["errors"].dtype == np.uint8
    # 9 is seen in two columns, 8 in two: of equal ones the smaller label comes first.
    assert found["segments"].tolist() == [[0, 2, 1, 1, 2, 0]]
    assert found["segments"].dtype == np.uint16


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 1, 1), (1, 7, 1)])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_components_of_a_line_of_voxels(shape, dimensions):
    mask = np.zeros(shape, np.bool_)
    mask.flat[::2] = True
    labels = label_components(mask, dimensions)
    assert labels[mask].tolist() == list(range(1, mask.sum() + 1))
    assert not labels[~mask].any()
