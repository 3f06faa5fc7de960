"""The stage `targets` on small volumes: sparse labels, grown tubes, sampled background."""

import json
from itertools import pairwise

import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from flows.runs import prepare, run_stages
from pipeline.arrays.labels import IGNORE
from pipeline.arrays.negatives import sampled_tiles
from pipeline.arrays.tube_growth import Growth
from pipeline.arrays.tubes import training_targets
from pipeline.config import parse_config
from pipeline.errors import ConfigError, DtypeError, InputError, ShapeError, StageError
from pipeline.stages.dense_labels import explain_no_foreground, require_foreground

SHAPE = (40, 50, 70)
NM = (1000.0, 400.0, 400.0)
SWC = "1 2 5.5 5.5 5.5 1 -1\n2 2 40.5 30.5 25.5 1 1\n3 2 62.5 10.5 35.5 1 2\n"
BLOCKS = {"whole": [64, 64, 96], "even": [32, 32, 32], "pencil": [32, 64, 32]}
STAGES = ("ingest", "statistics", "placement", "targets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.uniform(0, 1000, SHAPE), 1.0)
    corners = np.array([[5.5, 5.5, 5.5], [25.5, 30.5, 40.5], [35.5, 10.5, 62.5]])
    for a, b in pairwise(corners):
        for z, y, x in np.floor(np.linspace(a, b, 99)).astype(int):
            image[z, y - 2 : y + 3, x - 2 : x + 3] = rng.uniform(700, 1300, (5, 5))
    save(folder / "image.zarr", image.astype(np.uint16))
    (folder / "swc").mkdir()
    (folder / "swc" / "a.swc").write_text(SWC)
    return folder


def save(path, data):
    zarr.create_array(path, shape=data.shape, dtype=data.dtype, chunks=(32, 32, 32))[:] = data
    return path


def config_of(folder, out, labels=None, region=None, block=(32, 32, 32), **targets):
    given = {"skeletons": folder / "swc"} if labels is None else {"labels": labels}
    box = {"begin": region[0], "end": region[1]} if region else None
    return parse_config(
        {
            "run_dir": out,
            "input": {"image": folder / "image.zarr", "voxel_size_nm": NM, **given},
            "regions": {"train": box},
            "ingest": {"block": block, "chunk": [32, 32, 32]},
            "train": {"patch": [16, 16, 16], "pretrain_steps": 1, "finetune_steps": 0},
            "targets": targets,
            "execution": {"kind": "serial"},
        }
    )


def targets_of(*args, **kwargs):
    run, stages = prepare(config_of(*args, **kwargs), only=STAGES)
    run_stages(run, stages)
    return run, run.volume("targets").read(run.roi)


def stats(run, name):
    return sum(mark.stats.get(name, 0) for mark in run.ledger("targets").marks.values())


# --- dense and sparse labels


def sparse(tmp_path, dtype=np.uint8):
    """Classes as annotators draw them: 0 unlabelled, 1 background, 2 axon, 3 artefact, 4 edge."""
    rng = np.random.default_rng(1)
    labels = np.zeros(SHAPE, dtype)
    for z in (7, 33):
        labels[z] = rng.integers(1, 5, SHAPE[1:])
    return labels, save(tmp_path / "labels.zarr", labels)


@pytest.mark.parametrize("block", BLOCKS)
def test_sparse_labels_get_their_roles(folder, tmp_path, block):
    labels, path = sparse(tmp_path)
    run, targets = targets_of(
        folder, tmp_path / "run", path, block=BLOCKS[block],
        ignore_labels=[0, 3, 4], background_labels=[1],
    )  # fmt: skip
    meaning = np.array([IGNORE, 0, 2, IGNORE, IGNORE], np.uint64)
    np.testing.assert_array_equal(targets, meaning[labels])
    assert stats(run, "foreground") == (labels == 2).sum()
    assert stats(run, "ignored") == np.isin(labels, (0, 3, 4)).sum()


def test_counts_are_those_of_the_training_region(folder, tmp_path):
    labels, path = sparse(tmp_path)
    run, _ = targets_of(folder, tmp_path / "run", path, region=([3, 5, 7], [20, 40, 61]))
    inside = labels[3:20, 5:40, 7:61]
    assert stats(run, "foreground") == (inside > 0).sum()


def test_negative_and_largest_labels(folder, tmp_path):
    labels = np.ones(SHAPE, np.int64)
    labels[0] = -1
    _, targets = targets_of(
        folder, tmp_path / "a", save(tmp_path / "i.zarr", labels), ignore_labels=[-1]
    )
    np.testing.assert_array_equal(targets, np.where(labels < 0, IGNORE, 1))
    labels = np.ones(SHAPE, np.uint64)
    labels[0] = 2**64 - 1
    _, targets = targets_of(folder, tmp_path / "b", save(tmp_path / "u.zarr", labels))
    np.testing.assert_array_equal(targets, labels)


REFUSED = {
    "float": (np.float32, {}, DtypeError, "labels must be integers, got float32"),
    "beyond": (np.uint8, {"ignore_labels": [300]}, InputError, r"no values \[300\]"),
    "largest": (np.uint64, {"background_labels": [2**64 - 1]}, InputError, "means unknown"),
    "growth": (np.uint8, {"grow_nm": 9.0}, ConfigError, "grow_nm is for tracings"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_labels_cannot_have_is_refused_before_anything_is_written(folder, tmp_path, name):
    dtype, options, error, message = REFUSED[name]
    path = save(tmp_path / "labels.zarr", np.ones(SHAPE, dtype))
    with pytest.raises(error, match=message) as caught:
        targets_of(folder, tmp_path / "run", path, **options)
    assert "grow" in message or "labels.zarr" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_labels_of_another_shape_are_refused(folder, tmp_path):
    path = save(tmp_path / "labels.zarr", np.ones((40, 50, 71), np.uint8))
    with pytest.raises(ShapeError, match=r"labels.zarr: labels of shape \(40, 50, 71\)"):
        targets_of(folder, tmp_path / "run", path)


@pytest.mark.parametrize("kind", ["zarr", "tif"])
def test_labels_without_foreground_are_refused_with_what_they_hold(folder, tmp_path, kind):
    labels = np.zeros(SHAPE, np.uint8)
    labels[3] = 1
    labels[4:6] = 4
    labels[38] = 2  # outside the training region
    path = tmp_path / f"labels.{kind}"
    if kind == "tif":
        tifffile.imwrite(path, labels)
    else:
        save(path, labels)
    with pytest.raises(InputError) as caught:
        targets_of(
            folder, tmp_path / "run", path, region=([0, 0, 0], [32, 50, 70]),
            ignore_labels=[0, 4], background_labels=[1],
        )  # fmt: skip
    message = str(caught.value)
    for part in (
        f"labels.{kind}: no voxel to learn from in the training region [0:32, 0:50, 0:70]",
        "0 (ignored, 101,500 voxels), 4 (ignored, 7,000 voxels), 1 (background, 3,500 voxels)",
        "Move regions.train",
        "targets.ignore_labels",
    ):
        assert part in message
    assert not (tmp_path / "run").exists()


def test_one_labelled_voxel_is_enough(folder, tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[39, 49, 69] = 7
    run, targets = targets_of(folder, tmp_path / "run", save(tmp_path / "labels.zarr", labels))
    assert targets.sum() == 7
    require_foreground(run)


def test_training_begins_only_with_foreground(folder, tmp_path, monkeypatch):
    """Where the look before the run ends early, the counts of the stage say it."""
    monkeypatch.setattr("pipeline.stages.dense_labels._LOOK_AT_VOXELS", 1)
    labels = np.zeros(SHAPE, np.uint16)
    labels[:, :, :9] = 5
    path = save(tmp_path / "labels.zarr", labels)
    run, stages = prepare(
        config_of(folder, tmp_path / "run", path, ignore_labels=[5]), only=(*STAGES, "train")
    )
    assert [stage.name for stage in stages][-2:] == ["targets", "train"]
    with pytest.raises(StageError, match=r"stage train.*\n.*5 \(ignored, 18,000 voxels\)"):
        run_stages(run, stages)
    assert not list(run.path("checkpoint").iterdir())


def test_many_values_are_not_all_listed(folder, tmp_path):
    labels = np.broadcast_to(np.arange(70, dtype=np.uint8), SHAPE)
    path = save(tmp_path / "labels.zarr", labels)
    with pytest.raises(InputError, match=r"7 \(ignored, 2,000 voxels\) and 62 more"):
        targets_of(folder, tmp_path / "run", path, ignore_labels=list(range(70)))


# --- tracings


def expected_targets(run, **changes):
    truth = run.truth()
    chosen = {
        "voxel_size_nm": NM, "radius_nm": None, "min_radius_nm": 400.0, "shell_nm": 800.0,
        "negatives": "assumed", **changes,
    }  # fmt: skip
    return training_targets(truth, range(1, len(truth) + 1), run.roi, **chosen)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("threshold", [None, 520.0])
def test_tubes_grow_in_the_image_of_the_run(folder, tmp_path, block, threshold):
    options = {"grow_threshold": threshold} if threshold else {"grow_fraction": 0.2}
    run, targets = targets_of(
        folder, tmp_path / "run", block=BLOCKS[block], grow_nm=1500.0, shell_nm=800.0, **options
    )
    image = zarr.open(folder / "image.zarr")[:]
    median = float(np.sort(image.ravel())[(image.size - 1) // 2])
    deviation = np.sort(np.abs(image.ravel() - median))[(image.size - 1) // 2]
    grown = Growth(
        read=lambda roi: image[roi.slices],
        volume=run.roi,
        reach_nm=1500.0,
        threshold=threshold,
        fraction=0.2,
        background=median,
        floor=median + 3 * 1.4826 * deviation,
    )
    np.testing.assert_array_equal(targets, expected_targets(run, growth=grown))
    drawn = expected_targets(run)
    assert (targets == 1).sum() > (drawn == 1).sum()
    assert (targets[drawn == 1] == 1).all()


def test_without_statistics_a_threshold_is_enough(folder, tmp_path):
    config = config_of(folder, tmp_path / "run", grow_nm=1500.0, grow_threshold=520.0)
    run, stages = prepare(config, only=("ingest", "targets"))
    run_stages(run, stages)
    assert run.volume("targets").read(run.roi).any()


def test_growth_by_the_axis_waits_for_the_statistics(folder, tmp_path):
    config = config_of(folder, tmp_path / "run", grow_nm=1500.0)
    with pytest.raises(InputError, match="nothing gives statistics"):
        prepare(config, only=("ingest", "targets"))


def test_background_is_sampled_as_configured(folder, tmp_path):
    run, targets = targets_of(
        folder, tmp_path / "run", background="sampled", neighbourhood_nm=3000.0, shell_nm=800.0,
        sampled_share=0.3, sampled_seed=11,
    )  # fmt: skip
    expected = expected_targets(
        run, negatives="sampled", neighbourhood_nm=3000.0, sampled_share=0.3, sampled_seed=11
    )
    np.testing.assert_array_equal(targets, expected)
    near = expected_targets(run, negatives="near", neighbourhood_nm=3000.0)
    unknown = near == IGNORE
    tiles = sampled_tiles(run.roi, 0.3, 11)
    in_shell = expected_targets(run) == IGNORE
    np.testing.assert_array_equal((targets == 0) & unknown, tiles & unknown & ~in_shell)
    assert stats(run, "ignored") == (targets == IGNORE).sum()
    assert stats(run, "foreground") == (targets == 1).sum()


@pytest.mark.parametrize("name", ["ignore_labels", "background_labels"])
def test_roles_of_labels_are_refused_for_tracings(folder, tmp_path, name):
    with pytest.raises(ConfigError, match=f"targets.{name} is for dense labels"):
        targets_of(folder, tmp_path / "run", **{name: [1]})
    assert not (tmp_path / "run").exists()


def test_what_is_said_of_tracings_without_a_voxel(folder, tmp_path):
    run, _ = targets_of(folder, tmp_path / "run")
    require_foreground(run)
    message = explain_no_foreground(run)
    assert "no tube of a tracing reaches it" in message
    assert "flip" in message


# --- placement


def mirrored(folder, tmp_path, axis):
    """A rod along its own diagonal in a noisy image, and its tracing read backwards along axes."""
    rng = np.random.default_rng(4)
    image = rng.normal(1000, 50, SHAPE)
    line = np.linspace((4.5, 3.5, 5.5), (30.5, 20.5, 60.5), 60)
    for place in np.floor(line).astype(int):
        image[tuple(slice(max(p - 1, 0), p + 2) for p in place)] += 300
    save(tmp_path / "image.zarr", image.clip(0).astype(np.uint16))
    (tmp_path / "swc").mkdir()
    nodes = line.copy()
    for letter in axis:
        k = "zyx".index(letter)
        nodes[:, k] = SHAPE[k] - nodes[:, k]
    rows = [f"{i + 1} 2 {x} {y} {z} 1 {i or -1}" for i, (z, y, x) in enumerate(nodes.tolist())]
    (tmp_path / "swc" / "rod.swc").write_text("\n".join(rows))
    return tmp_path


def placement_of(run):
    return json.loads(run.path("placement").read_text())


@pytest.mark.parametrize("axis", ["", "y", "zx"])
@pytest.mark.parametrize("block", ["whole", "even"])
def test_placement_names_the_flip(folder, tmp_path, axis, block):
    inputs = mirrored(folder, tmp_path, axis)
    run, stages = prepare(config_of(inputs, tmp_path / "run", block=BLOCKS[block]), only=STAGES)
    run_stages(run, stages)
    found = placement_of(run)
    if not axis:
        assert found["warning"] is None
        assert found["better"] is None
        assert found["used"] == {
            "axes": "xyz", "flip": [], "nodes": 60, "inside": 60, "bright": 60
        }  # fmt: skip
        return
    flip = ", ".join(letter for letter in "zyx" if letter in axis)
    assert f"with flip: [{flip}] 100% would" in found["warning"]
    assert found["warning"].startswith("only ")
    assert found["better"]["flip"] == flip.split(", ")


def test_the_setting_that_is_named_helps(folder, tmp_path):
    inputs = mirrored(folder, tmp_path, "y")
    config = config_of(inputs, tmp_path / "run")
    swc = config.input.swc.model_copy(update={"flip": ("y",)})
    config = config.model_copy(update={"input": config.input.model_copy(update={"swc": swc})})
    run, stages = prepare(config, only=STAGES)
    run_stages(run, stages)
    assert placement_of(run)["warning"] is None
