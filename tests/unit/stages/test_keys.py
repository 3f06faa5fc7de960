"""Keys: a change reaches the stages that depend on it, and no other."""

import os
from typing import Any

import numpy as np
import pytest
import zarr
from pydantic import BaseModel

from pipeline.config import RunConfig, parse_config
from pipeline.stages import STAGES, plan
from pipeline.stages.keys import stage_keys
from pipeline.stages.run import Run

SHAPE = (64, 96, 160)
SWC = "1 2 5 5 5 1 -1\n2 2 25 25 25 1 1\n"

ALL = {stage.name for stage in STAGES}
SKELETONS = {"skeletonize", "join", "proofread"}
LABELLED = SKELETONS | {"node_labels", "evaluate", "export", "project"}
COLLECTED = LABELLED | {"collect", "relabel"}
MERGED = COLLECTED | {"agglomerate"}
SEGMENTED = MERGED | {"fragments", "stitch", "edges"}
TUNED = SEGMENTED | {"tune", "baseline"}
PREDICTED = TUNED | {"predict"}
TRAINED = PREDICTED | {"train"}
TARGETED = TRAINED | {"targets"}
NORMALISED = TRAINED | {"statistics"}
SCORED = {"node_labels", "baseline", "evaluate"}
NONE: set[str] = set()

# Each parameter of the configuration, another value, and the stages whose keys must change.
TABLE: dict[str, tuple[Any, set[str]]] = {
    "name": ("another", NONE),
    "run_dir": ("elsewhere", NONE),
    "input.voxel_size_nm": ([900, 400, 400], ALL),
    # Tracings are scored and tuned on; labels are trained on.
    "input.require_chunks": (True, SEGMENTED),
    "input.swc.axes": ("zyx", TUNED),
    "input.swc.unit": ("um", TUNED),
    "input.swc.offset": ([0, 0, 1], TUNED),
    "input.swc.flip": (["x"], TUNED),
    # Read by `axonloom sweep` alone, whose stages have tests of their own.
    "input.fragments": ("fragments.zarr", NONE),
    "input.history": ("history.arrow", NONE),
    "sweep.thresholds": ([0.4], NONE),
    "phantom.shape": ([64, 64, 64], NONE),
    "phantom.seed": (2, NONE),
    "regions.train.begin": ([0, 0, 8], TARGETED),
    "regions.train.end": ([32, 32, 24], TARGETED),
    "regions.score.begin": ([0, 0, 8], SCORED),
    "regions.score.end": ([32, 32, 24], SCORED),
    "ingest.block": ([32, 32, 32], ALL),
    "ingest.chunk": ([16, 16, 16], ALL),
    "ingest.levels": (0, {"pyramid"}),
    "ingest.low_percentile": (2.0, NORMALISED),
    "ingest.high_percentile": (98.0, NORMALISED),
    "ingest.mask_sigma": (3.0, NORMALISED),
    "ingest.mask_dilation_tiles": (2, NORMALISED),
    "targets.source": ("skeletons", TARGETED),
    "targets.radius_nm": (100.0, NONE),
    "targets.min_radius_nm": (100.0, NONE),
    "targets.shell_nm": (100.0, NONE),
    "targets.background": ("near", NONE),
    "targets.neighbourhood_nm": (100.0, NONE),
    "predict_block": ([64, 64, 64], PREDICTED),
    "segment.block": ([16, 16, 16], SEGMENTED | {"baseline"}),
    "segment.group": ([16, 16, 16], MERGED),
    # Tuning is for the exact engine: see test_agglomerate_stage.
    "segment.engine": ("waterz", MERGED),
    "segment.scoring": ("quantile_50", MERGED),
    "segment.tune": (False, SEGMENTED | {"baseline"}),
    "segment.low": (0.4, NONE),
    "segment.high": (0.9, NONE),
    "segment.thresholds": ([0.4], NONE),
    "segment.min_voxels": (9, COLLECTED),
    "segment.tune_max_voxels": (999, TUNED),
    "skeletonize.block": ([16, 16, 16], SKELETONS),
    "evaluate.repair": (False, TUNED),
    "evaluate.max_gap_nm": (9.0, TUNED),
    "evaluate.merge_min_nodes": (2, TUNED),
    "evaluate.merge_min_nm": (9.0, TUNED),
    "evaluate.out_of_bounds": ("drop", SCORED),
    "evaluate.baseline": (False, {"evaluate"}),
    "evaluate.baseline_threshold": (9.0, {"baseline", "evaluate"}),
    "proofread.levels": (1, {"export", "proofread"}),
    "proofread.swc_unit": ("nm", {"proofread"}),
    "execution.kind": ("serial", NONE),
    "execution.workers": (7, NONE),
    "execution.address": ("tcp://host:8786", NONE),
    "execution.tries": (7, NONE),
    "train.checkpoint_every_steps": (7, NONE),
}
# Sections of settings that all reach the same stages.
SECTIONS = {
    "phantom.": NONE,
    "network.": TRAINED,
    "train.": TRAINED,
    "predict.": PREDICTED,
    "skeletonize.method.": SKELETONS,
}
# Foreign paths, tested by their files.
INPUTS = {
    "input.image": ALL,
    "input.labels": TARGETED,
    "input.skeletons": TUNED,
}
REPLACING = {"input.checkpoint", "input.affinities", "input.segments"}


@pytest.fixture
def volumes(tmp_path):
    rng = np.random.default_rng(0)
    for name, dtype in (("image", np.uint16), ("labels", np.uint32)):
        array = zarr.create_array(tmp_path / f"{name}.zarr", shape=SHAPE, dtype=dtype)
        array[:] = rng.integers(0, 9, SHAPE)
    (tmp_path / "swc").mkdir()
    (tmp_path / "swc" / "a.swc").write_text(SWC)
    return tmp_path


@pytest.fixture
def values(volumes):
    return {
        "run_dir": str(volumes / "run"),
        "input": {
            "image": str(volumes / "image.zarr"),
            "labels": str(volumes / "labels.zarr"),
            "skeletons": str(volumes / "swc"),
            "voxel_size_nm": [1000, 400, 400],
        },
        "phantom": {"shape": [32, 32, 32], "neurons": 1},
        "regions": {
            "train": {"begin": [0, 0, 0], "end": [32, 32, 32]},
            "score": {"begin": [0, 0, 0], "end": [32, 32, 32]},
        },
        "ingest": {"chunk": [32, 32, 32], "block": [64, 64, 64]},
    }


def keys_of(values):
    config = parse_config(values)
    run = Run(config.run_dir.resolve(), config)
    return {name: key.key for name, key in stage_keys(run, plan(config)).items()}


def changes(before, after):
    return {name for name in before if name in after and after[name] != before[name]}


def leaves(model: type[BaseModel], prefix=""):
    """Every parameter that the configuration has."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if inner:
            yield from leaves(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def replaced(values, path, value):
    copy = dict(values)
    head, _, rest = path.partition(".")
    copy[head] = replaced(dict(copy.get(head) or {}), rest, value) if rest else value
    return copy


def test_the_plan_has_every_stage(values):
    assert set(keys_of(values)) == ALL


def test_no_parameter_is_forgotten():
    known = {*TABLE, *INPUTS, *REPLACING}
    for path in leaves(RunConfig):
        assert path in known or any(path.startswith(section) for section in SECTIONS), (
            f"{path}: say here which stages depend on it"
        )


@pytest.mark.parametrize("path", TABLE)
def test_a_parameter_reaches_what_depends_on_it(values, path):
    value, expected = TABLE[path]
    after = replaced(values, path, value)
    if path.startswith("execution.") and path != "execution.workers":
        kind = {"execution.address": "address"}.get(path)
        after["execution"] |= {"kind": kind} if kind else {}
    if path == "segment.scoring":
        after["segment"]["engine"] = "waterz"
    assert changes(keys_of(values), keys_of(after)) == expected


OTHER_SECTIONS = {
    "network.width": 4,
    "network.levels": 2,
    "network.kernel": [1, 3, 3],
    "network.pool": [[1, 2, 2]],
    "train.patch": [16, 16, 16],
    "train.batch": 1,
    "train.pretrain_steps": 9,
    "train.finetune_steps": 9,
    "train.learning_rate": 0.1,
    "train.seed": 9,
    "train.loss.alpha": 0.9,
    "train.loss.finetune": "bce",
    "train.augment.flip": False,
    "train.precision": "fp32",
    "predict.tile": [32, 32, 32],
    "predict.context": [8, 8, 8],
    "predict.precision": "fp32",
}


@pytest.mark.parametrize("path", OTHER_SECTIONS)
def test_a_setting_reaches_what_depends_on_its_section(values, path):
    [section] = [s for s in SECTIONS if path.startswith(s)]
    after = replaced(values, path, OTHER_SECTIONS[path])
    assert changes(keys_of(values), keys_of(after)) == SECTIONS[section]


def test_the_skeleton_method_reaches_the_skeletons(values):
    fields = parse_config(values).skeletonize.method
    tried = 0
    for name, value in fields:
        if isinstance(value, float):
            after = replaced(values, f"skeletonize.method.{name}", value + 1)
            assert changes(keys_of(values), keys_of(after)) == SKELETONS, name
            tried += 1
    assert tried


def test_untuned_thresholds_reach_what_they_make(values):
    values = replaced(values, "segment.tune", False)
    before = keys_of(values)
    assert changes(before, keys_of(replaced(values, "segment.low", 0.4))) == SEGMENTED
    assert changes(before, keys_of(replaced(values, "segment.high", 0.9))) == SEGMENTED
    assert changes(before, keys_of(replaced(values, "segment.thresholds", [0.4]))) == MERGED


def test_tubes_reach_the_targets_that_are_drawn_from_tracings(values):
    values = replaced(values, "targets.source", "skeletons")
    before = keys_of(values)
    for path in [p for p in TABLE if p.startswith("targets.") and p != "targets.source"]:
        after = keys_of(replaced(values, path, TABLE[path][0]))
        assert changes(before, after) == TARGETED, path
    after = keys_of(replaced(values, "input.swc.offset", [0, 0, 1]))
    assert changes(before, after) == TARGETED


@pytest.mark.parametrize("name", INPUTS)
def test_a_touched_input_reaches_what_reads_it(values, volumes, name):
    before = keys_of(values)
    assert keys_of(values) == before, "looking changes nothing"
    folder = {"image": "image.zarr", "labels": "labels.zarr", "skeletons": "swc"}
    path = volumes / folder[name.partition(".")[2]]
    file = max(p for p in path.rglob("*") if p.is_file())
    stamp = file.stat().st_mtime_ns + 1
    os.utime(file, ns=(stamp, stamp))
    assert changes(before, keys_of(values)) == INPUTS[name]


@pytest.mark.parametrize("name", INPUTS)
def test_a_file_more_in_an_input_reaches_what_reads_it(values, volumes, name):
    before = keys_of(values)
    folder = {"image": "image.zarr", "labels": "labels.zarr", "skeletons": "swc"}
    (volumes / folder[name.partition(".")[2]] / "more").write_text("x")
    assert changes(before, keys_of(values)) == INPUTS[name]


def test_the_same_configuration_elsewhere_has_the_same_keys(values, volumes):
    """Reached by another spelling of the inputs' path, too."""
    before = keys_of(values)
    values = replaced(values, "run_dir", str(volumes / "a" / "b"))
    (volumes / "link").symlink_to(volumes)
    values = replaced(values, "input.image", str(volumes / "link" / "image.zarr"))
    assert keys_of(values) == before


def test_another_version_of_a_stage_reaches_what_reads_it(values, monkeypatch):
    import dataclasses

    config = parse_config(values)
    run = Run(config.run_dir.resolve(), config)
    stages = plan(config)
    newer = tuple(
        dataclasses.replace(s, version=s.version + 1) if s.name == "skeletonize" else s
        for s in stages
    )
    before = {name: key.key for name, key in stage_keys(run, stages).items()}
    after = {name: key.key for name, key in stage_keys(run, newer).items()}
    assert changes(before, after) == SKELETONS


def test_a_fixed_key():
    """What a key is made of is part of the format: runs of an earlier version must be found."""
    from pipeline.storage.fingerprint import digest

    assert digest({"b": (1, 2), "a": None}) == digest({"a": None, "b": [1, 2]})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert digest([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5"
