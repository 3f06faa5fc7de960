"""Training on several runs: what each gives, what is refused, and what changes the key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flows.runs import check, prepare, run_stages
from pipeline.config import load_config, parse_config, save_config
from pipeline.errors import ConfigError, InputError, StageError
from pipeline.geometry import Roi
from pipeline.stages import plan
from pipeline.stages.keys import stage_keys
from pipeline.stages.run import Run
from pipeline.stages.training_volumes import (
    VolumeSource,
    check_training_runs,
    training_regions,
    training_run_keys,
)

SHAPES = {"own": (32, 40, 48), "other": (36, 32, 40)}
BOX = {"own": Roi((0, 0, 0), (32, 40, 24)), "other": Roi((4, 0, 8), (32, 32, 32))}
PREPARED = ("ingest", "statistics", "targets")


def arrays(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Bright bars in noise; the other recording is brighter throughout."""
    labels = np.zeros(SHAPES[name], np.uint32)
    labels[:, 8:14, 10:16] = 3
    labels[10:15, 20:26, :] = 70_000
    gain = 1 if name == "own" else 10
    noise = np.random.default_rng(len(name)).integers(0, 100, labels.shape)
    return (gain * (noise + 400 * (labels > 0))).astype(np.uint16), labels


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name in SHAPES:
        for kind, data in zip(("image", "labels"), arrays(name), strict=True):
            zarr.create_array(folder / f"{name}_{kind}.zarr", data=data, chunks=(32, 32, 32))
    return folder


def values(inputs: Path, run_dir: Path, name: str, **given: Any) -> dict[str, Any]:
    sizes = {"own": [300.0, 100.0, 100.0], "other": [400.0, 100.0, 120.0]}
    return {
        "run_dir": str(run_dir),
        "input": {
            "image": str(inputs / f"{name}_image.zarr"),
            "labels": str(inputs / f"{name}_labels.zarr"),
            "voxel_size_nm": sizes[name],
            **given,
        },
        "regions": {
            "train": {"begin": list(BOX[name].offset), "end": list(BOX[name].end)},
            "score": {"begin": [0, 0, 24], "end": [32, 32, 40]},
        },
        "ingest": {"chunk": [16, 16, 16], "block": [32, 32, 32], "levels": 0},
        "network": {"width": 2, "levels": 2, "pool": [[1, 2, 2]]},
        "train": {
            "patch": [8, 16, 16],
            "batch": 2,
            "pretrain_steps": 2,
            "finetune_steps": 1,
            "threads": 1,
        },
        "execution": {"kind": "serial"},
    }


def changed(given: dict[str, Any], section: str, **more: Any) -> dict[str, Any]:
    return given | {section: given[section] | more}


def run_some(given: dict[str, Any], *names: str) -> Run:
    run, stages = prepare(parse_config(given), only=names)
    run_stages(run, stages)
    return run


@pytest.fixture(scope="module")
def made(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "other"
    run_some(values(inputs, folder, "other"), *PREPARED)
    return folder


@pytest.fixture
def other(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "other")


def draft(inputs: Path, folder: Path, *others: Path, **sections: Any) -> Run:
    given = values(inputs, folder, "own", training_runs=[str(path) for path in others])
    for section, more in sections.items():
        given = changed(given, section, **more)
    config = parse_config(given)
    return Run(config.run_dir.resolve(), config)


def train_key(run: Run) -> str:
    return stage_keys(run, plan(run.config))["train"].key


def test_each_run_gives_its_own_region(inputs: Path, other: Path, tmp_path: Path) -> None:
    run = draft(inputs, tmp_path / "own", other)
    check_training_runs(run)
    own, second = training_regions(run)
    assert own == (VolumeSource(run), BOX["own"])
    assert (own[0].shape, second[0].shape) == (SHAPES["own"], SHAPES["other"])
    assert second[1] == BOX["other"]
    assert second[0].run.directory == other
    [alone] = training_regions(draft(inputs, tmp_path / "own"))
    assert alone == own


def test_images_are_normalised_by_their_own_statistics(
    inputs: Path, other: Path, tmp_path: Path
) -> None:
    run = run_some(values(inputs, tmp_path / "own", "own", training_runs=[str(other)]), *PREPARED)
    for (source, _), name in zip(training_regions(run), SHAPES, strict=True):
        image, labels = arrays(name)
        image = image.astype(np.float64)
        roi = Roi((3, 2, 9), (20, 22, 11))
        low, high = np.percentile(image, [1, 99.9], method="inverted_cdf")
        expected = np.clip((image[roi.slices] - low) / (high - low), -0.5, 4)
        np.testing.assert_allclose(source.image(roi), expected, rtol=1e-5, atol=1e-6)
        assert source.image(roi).dtype == np.float32
        np.testing.assert_array_equal(source.labels(roi), labels[roi.slices])
        assert source.labels(roi).dtype == np.uint64


def test_a_prepared_run_needs_none_of_its_sources(inputs: Path, made: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(inputs, tmp_path / "inputs")
    folder = tmp_path / "moved"
    run_some(values(moved, folder, "other"), *PREPARED)
    shutil.rmtree(moved)
    run = draft(inputs, tmp_path / "own", folder)
    check_training_runs(run)
    assert training_regions(run)[1][1] == BOX["other"]


def test_the_key_follows_what_is_trained_on(inputs: Path, other: Path, tmp_path: Path) -> None:
    """Another place of the same run changes nothing; other targets do, and nothing upstream."""
    alone = draft(inputs, tmp_path / "own")
    assert training_run_keys(alone) == []
    with_other = draft(inputs, tmp_path / "own", other)
    before = stage_keys(with_other, plan(with_other.config))
    without = stage_keys(alone, plan(alone.config))
    differing = {name for name in before if before[name].key != without[name].key}
    assert "train" in differing
    assert not differing & {"ingest", "statistics", "pyramid", "targets"}
    elsewhere = shutil.copytree(other, tmp_path / "elsewhere")
    assert train_key(draft(inputs, tmp_path / "own", elsewhere)) == before["train"].key
    given = values(inputs, elsewhere, "other")
    run_some(changed(given, "regions", train={"begin": [0, 0, 0], "end": [16, 32, 32]}), *PREPARED)
    assert train_key(draft(inputs, tmp_path / "own", elsewhere)) != before["train"].key
    run_some(changed(given, "ingest", mask_sigma=3.0), *PREPARED)
    assert train_key(draft(inputs, tmp_path / "own", elsewhere)) != before["train"].key


def test_the_order_of_runs_is_part_of_the_key(inputs: Path, other: Path, tmp_path: Path) -> None:
    """Patches are drawn by the number of the region."""
    second = tmp_path / "second"
    given = values(inputs, second, "other")
    run_some(changed(given, "regions", train={"begin": [0, 0, 0], "end": [16, 32, 32]}), *PREPARED)
    one = train_key(draft(inputs, tmp_path / "own", other, second))
    assert one != train_key(draft(inputs, tmp_path / "own", second, other))


def refused(run: Run, *words: str) -> None:
    for function in (check_training_runs, lambda r: check(r.config, plan(r.config),
                                                          replace_output=True)):  # fmt: skip
        with pytest.raises(InputError) as caught:
            function(run)
        for word in words:
            assert word in str(caught.value)


def test_what_is_no_run_is_refused(inputs: Path, tmp_path: Path) -> None:
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    empty.mkdir()
    refused(draft(inputs, tmp_path / "own", absent), str(absent), "no such directory")
    refused(draft(inputs, tmp_path / "own", empty), str(empty), "no run of axonloom", "config.yaml")


def test_a_run_is_named_once_and_not_by_itself(inputs: Path, other: Path, tmp_path: Path) -> None:
    run = draft(inputs, tmp_path / "own", other, other / ".." / "other")
    with pytest.raises(InputError, match=r"other twice"):
        check_training_runs(run)
    with pytest.raises(InputError, match="this run itself"):
        check_training_runs(draft(inputs, other, other))


@pytest.mark.parametrize("stage", PREPARED)
def test_an_unfinished_run_is_refused(
    inputs: Path, other: Path, tmp_path: Path, stage: str
) -> None:
    ledger = other / "ledger" / f"{stage}.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    blocks = json.loads(lines[0])["blocks"]
    # The header, "ready" and all blocks but one.
    ledger.write_text("".join(lines[: 1 + blocks]))
    run = draft(inputs, tmp_path / "own", other)
    with pytest.raises(InputError) as caught:
        check_training_runs(run)
    assert f"stage {stage} is not complete ({blocks - 1} of {blocks} blocks)" in str(caught.value)
    assert f"axonloom run {other / 'config.yaml'} --until targets" in str(caught.value)
    ledger.unlink()
    with pytest.raises(InputError, match=f"stage {stage} is not complete .it was never run"):
        check_training_runs(run)


def test_stages_of_different_images_are_refused(inputs: Path, other: Path, tmp_path: Path) -> None:
    """The image was made anew, what comes after was not."""
    given = changed(values(inputs, other, "other"), "ingest", chunk=[32, 32, 32])
    run_some(given, "ingest")
    refused(draft(inputs, tmp_path / "own", other), "stage statistics was made from another image")
    run_some(given, "ingest", "statistics")
    refused(draft(inputs, tmp_path / "own", other), "stage targets was made from another image")


def test_another_scale_is_refused_with_both(inputs: Path, other: Path, tmp_path: Path) -> None:
    run = draft(inputs, tmp_path / "own", other, input={"voxel_size_nm": [300, 100, 185]})
    refused(run, "(400.0, 100.0, 120.0)", "(300.0, 100.0, 185.0)", "1.5")
    check_training_runs(
        draft(inputs, tmp_path / "own", other, input={"voxel_size_nm": [600, 100, 100]})
    )


def test_another_normalisation_is_refused(inputs: Path, other: Path, tmp_path: Path) -> None:
    run = draft(inputs, tmp_path / "own", other, ingest={"high_percentile": 99.0})
    refused(run, "(1.0, 99.9)", "(1.0, 99.0)", "ingest.high_percentile")


def test_a_patch_that_does_not_fit_is_refused(inputs: Path, other: Path, tmp_path: Path) -> None:
    """It fits into this run: 40 voxels along y; the other has 32."""
    run = draft(inputs, tmp_path / "own", other,
                train={"patch": [8, 40, 16], "augment": {"transpose": "none"}})  # fmt: skip
    refused(run, str(other), "(8, 40, 16)", "(32, 32, 32)")


def test_lost_voxels_are_refused(inputs: Path, other: Path, tmp_path: Path) -> None:
    """A chunk that is gone would be read as background, or as black."""
    for name in ("targets.zarr", "image.zarr"):
        folder = other / name / "0" / "c"
        lost = max(path for path in folder.rglob("*") if path.is_file())
        kept = lost.read_bytes()
        lost.unlink()
        run = draft(inputs, tmp_path / "own", other)
        with pytest.raises(InputError, match=rf"{name}: chunk .* is gone"):
            check(run.config, plan(run.config), replace_output=True)
        lost.write_bytes(kept)
    (other / "statistics.json").unlink()
    refused(draft(inputs, tmp_path / "own", other), "statistics.json is gone")


def test_runs_without_labels_of_this_one_are_refused(
    inputs: Path, other: Path, tmp_path: Path
) -> None:
    run = draft(inputs, tmp_path / "own", other, input={"labels": None})
    with pytest.raises(InputError, match=r"training_runs adds to .* neither input.labels"):
        check(run.config, plan(run.config), replace_output=True)


def test_paths_are_relative_to_the_file_and_survive(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("input: {training_runs: [runs/a, /b, '${HOME_OF_RUNS:-/c}/d']}\n")
    config = load_config(file)
    expected = (tmp_path / "runs" / "a", Path("/b"), Path("/c/d"))
    assert config.input.training_runs == expected
    (tmp_path / "deep").mkdir()
    save_config(config, tmp_path / "deep" / "c.yaml")
    assert load_config(tmp_path / "deep" / "c.yaml") == config
    file.write_text("input: {training_runs: runs/a}\n")
    with pytest.raises(ConfigError, match=r"input\.training_runs"):
        load_config(file)
    file.write_text("input: {training_runs: [3]}\n")
    with pytest.raises(ConfigError, match=r"input\.training_runs\.0"):
        load_config(file)


def test_a_network_learns_from_both(inputs: Path, other: Path, tmp_path: Path) -> None:
    """Trained on both it is another network than trained on one; and it resumes from its ledger."""
    both = values(inputs, tmp_path / "both", "own", training_runs=[str(other)])
    run = run_some(both, *PREPARED, "train")
    alone = run_some(values(inputs, tmp_path / "alone", "own"), *PREPARED, "train")
    network = "checkpoint/model.safetensors"
    assert (run.directory / network).read_bytes() != (alone.directory / network).read_bytes()
    before = (run.directory / network).stat().st_mtime_ns
    run_some(both, *PREPARED, "train")
    assert (run.directory / network).stat().st_mtime_ns == before
    given = values(inputs, other, "other")
    run_some(changed(given, "regions", train={"begin": [0, 0, 0], "end": [16, 32, 32]}), *PREPARED)
    run_some(both, *PREPARED, "train")
    assert (run.directory / network).stat().st_mtime_ns != before


def test_a_failure_names_the_run_that_it_came_from(
    inputs: Path, other: Path, tmp_path: Path
) -> None:
    """Its voxels are damaged after the check: training stops, and says where."""
    given = values(inputs, tmp_path / "own", "own", training_runs=[str(other)])
    run, stages = prepare(parse_config(given), only=(*PREPARED, "train"))
    for path in (other / "image.zarr" / "0" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(b"no chunk")
    with pytest.raises(StageError, match=r"other/image.zarr"):
        run_stages(run, stages)
