"""Stages on a small phantom, cut in several ways: what they promise against the whole volume."""

import json

import numpy as np
import pytest
import zarr

from flows.runs import prepare, run_stages
from pipeline.arrays.labels import affinities_from_labels
from pipeline.arrays.phantom import grow_neurons, render
from pipeline.arrays.phantom_spec import PhantomSpec
from pipeline.config import parse_config
from pipeline.geometry import Roi
from pipeline.stages.project import projections
from pipeline.storage.swc import write_swc
from workers.runner import Order

SPEC = PhantomSpec((40, 70, 90), (1000.0, 400.0, 400.0), 5, 2)
BLOCKS = {"whole": [40, 70, 90], "even": [20, 35, 45], "odd": [17, 33, 41], "pencil": [8, 70, 90]}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    neurons = grow_neurons(SPEC)
    image, labels = render(SPEC, neurons, Roi((0, 0, 0), SPEC.shape))
    (folder / "swc").mkdir()
    for neuron in neurons:
        path = folder / "swc" / f"{neuron.name}.swc"
        write_swc(path, neuron, voxel_size_nm=SPEC.voxel_size_nm, unit="voxel")
    for name, data in (
        ("image", image),
        ("labels", labels),
        ("affinities", affinities_from_labels(labels)),
    ):
        array = zarr.create_array(folder / f"{name}.zarr", shape=data.shape, dtype=data.dtype)
        array[:] = data
    return folder


def run(directory, phantom, block, **given):
    config = parse_config(
        {
            "run_dir": directory,
            "input": {
                "image": phantom / "image.zarr",
                "skeletons": phantom / "swc",
                "voxel_size_nm": SPEC.voxel_size_nm,
                **given,
            },
            "ingest": {"block": block, "chunk": [32, 32, 32], "levels": 1},
            "segment": {"block": block, "tune": False, "low": 0.5, "high": 0.9},
            "skeletonize": {"block": block},
            "execution": {"kind": "serial"},
        }
    )
    handle, stages = prepare(config)
    reports = run_stages(handle, stages, order=Order("shuffled", 1))
    assert all(report.complete == report.blocks for report in reports)
    return handle


@pytest.fixture(scope="module")
def runs(tmp_path_factory, phantom):
    folder = tmp_path_factory.mktemp("runs")
    given = {"affinities": phantom / "affinities.zarr"}
    return {name: run(folder / name, phantom, block, **given) for name, block in BLOCKS.items()}


@pytest.mark.parametrize("name", [n for n in BLOCKS if n != "whole"])
def test_files_do_not_show_the_blocks(runs, name):
    whole, cut = runs["whole"].directory, runs[name].directory
    for part in (
        "image.zarr",
        "mask.zarr",
        "statistics.json",
        "fragments.zarr",
        "segments.zarr",
        "edges",
        "history",
        "lookup",
        "metrics.json",
        "neurons.csv",
        "scratch/projections",
        "scratch/node_labels",
    ):
        paths = [whole / part] if (whole / part).is_file() else sorted((whole / part).rglob("*"))
        files = [p.relative_to(whole) for p in paths if p.is_file()]
        assert files
        other = [p for p in (cut / part).rglob("*") if p.is_file()] or [cut / part]
        assert len(other) == len(files)
        for file in files:
            assert (whole / file).read_bytes() == (cut / file).read_bytes(), file


def test_ideal_affinities_give_the_truth_back(runs):
    metrics = json.loads((runs["odd"].directory / "metrics.json").read_text())
    overall = metrics["overall"]
    assert overall["splits"] == 0
    assert overall["merges_total"] == 0
    assert overall["pct_omit"] == 0
    assert overall["nerl"] == 1
    assert overall["edges"] > 100


def test_the_baseline_is_that_of_the_whole_volume(runs, phantom):
    """An independent baseline: scipy's components of the same mask, one node at a time."""
    from scipy import ndimage

    from pipeline.arrays.metrics import labels_at_nodes, score

    stored = json.loads((runs["odd"].directory / "metrics.json").read_text())["baseline"]
    image = zarr.open(phantom / "image.zarr")[:]
    components, _ = ndimage.label(image >= stored["threshold"])
    sizes = np.bincount(components.ravel())
    components[(sizes < 2)[components]] = 0
    truth = runs["odd"].truth()
    labels = [labels_at_nodes(s, components.astype(np.uint64))[0] for s in truth]
    expected = score(truth, labels, SPEC.voxel_size_nm).as_json()
    for key in ("nerl", "splits", "merges_total", "pct_omit", "pct_merged"):
        assert stored["overall"][key] == expected["overall"][key], key


def test_projections_equal_those_of_the_arrays(runs, phantom):
    found = projections(runs["pencil"])
    image = zarr.open(phantom / "image.zarr")[:]
    segments = runs["whole"].volume("segments")
    # One pixel per voxel in the plane; z is drawn to scale.
    assert found["image"][0].max() == image.max()
    assert set(np.unique(found["segments"][0])) <= set(np.unique(segments.read(segments.roi)))


def test_skeletons_lie_in_their_segments(runs):
    from pipeline.stages.skeleton_join import read_joined, skeleton_rows

    handle = runs["odd"]
    volume = handle.volume("segments")
    labels = volume.read(volume.roi)
    joined = read_joined(handle, skeleton_rows(handle)["segment"].tolist())
    assert set(joined) == set(np.unique(labels)) - {0}
    inside = total = 0
    for segment, skeleton in joined.items():
        z, y, x = np.floor(skeleton.nodes).astype(int).T
        inside += int((labels[z, y, x] == segment).sum())
        total += len(z)
    assert inside == total


def test_targets_from_tracings_are_the_drawn_tubes(tmp_path, phantom):
    from pipeline.arrays.tubes import rasterise_tubes
    from pipeline.stages.targets import TARGETS

    config = parse_config(
        {
            "run_dir": tmp_path / "t",
            "input": {
                "image": phantom / "image.zarr",
                "skeletons": phantom / "swc",
                "voxel_size_nm": SPEC.voxel_size_nm,
            },
            "ingest": {"block": [32, 32, 32], "chunk": [32, 32, 32]},
            "execution": {"kind": "serial"},
        }
    )
    handle, stages = prepare(config, only=("ingest", "targets"))
    assert TARGETS in stages
    run_stages(handle, stages)
    volume = handle.volume("targets")
    truth = handle.truth()
    expected = rasterise_tubes(
        truth, range(1, len(truth) + 1), handle.roi, voxel_size_nm=SPEC.voxel_size_nm,
        radius_nm=None, min_radius_nm=400.0,
    )  # fmt: skip
    assert (volume.read(volume.roi) == expected).all()
    assert expected.max() == 5
