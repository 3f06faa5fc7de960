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

# Tracings are held against the segments only where these are given.
# Of fragments that a lookup fuses: see test_skeleton_stages.
FUSED = {"fragment_join", "scatter", "scatter_index", "fuse"}
ALL = {stage.name for stage in STAGES} - {"label_placement"} - FUSED
# The segmentation to compare with depends on nothing that the run does.
MADE = ALL - {"reference_overlap"}
FROM_NODES = {"sites", "curves", "proofread"}
FILED = {"skeleton_files", "proofread"}
SKELETONS = {"skeletonize", "skeleton_index", "join", *FILED}
AGAINST_LABELS = {"label_overlap", "label_scores"}
LABELLED = (
    SKELETONS | AGAINST_LABELS | {"node_labels", "evaluate", *FROM_NODES, "export", "project"}
)
COLLECTED = LABELLED | {"collect", "relabel"}
MERGED = COLLECTED | {"agglomerate"}
SEGMENTED = MERGED | {"fragments", "stitch", "edges"}
TUNED = SEGMENTED | {"tune", "baseline"}
TRACED = TUNED | {"placement"}
PREDICTED = TUNED | {"predict"}
TRAINED = PREDICTED | {"train"}
TARGETED = TRAINED | {"targets"}
NORMALISED = TRAINED | {"statistics", "placement"}
SCORED = {"node_labels", "baseline", "evaluate", *FROM_NODES}
COMPARED = {"reference_overlap", "label_scores", "evaluate"}
NONE: set[str] = set()

# Each parameter of the configuration, another value, and the stages whose keys must change.
TABLE: dict[str, tuple[Any, set[str]]] = {
    "name": ("another", NONE),
    "run_dir": ("elsewhere", NONE),
    "input.voxel_size_nm": ([900, 400, 400], MADE),
    # Tracings are scored and tuned on; labels are trained on and scored.
    "input.require_chunks": (True, SEGMENTED),
    "input.swc.axes": ("zyx", TRACED),
    "input.swc.unit": ("um", TRACED),
    "input.swc.offset": ([0, 0, 1], TRACED),
    "input.swc.flip": (["x"], TRACED),
    # Read by `axonloom sweep` alone, whose stages have tests of their own.
    "input.fragments": ("fragments.zarr", NONE),
    "input.history": ("history.arrow", NONE),
    "sweep.thresholds": ([0.4], NONE),
    "phantom.shape": ([64, 64, 64], NONE),
    "phantom.seed": (2, NONE),
    "regions.train.begin": ([0, 0, 8], TARGETED),
    "regions.train.end": ([32, 32, 24], TARGETED),
    "regions.validation.begin": ([0, 0, 8], TUNED),
    "regions.validation.end": ([32, 32, 24], TUNED),
    "regions.score.begin": ([0, 0, 8], SCORED | AGAINST_LABELS | COMPARED),
    "regions.score.end": ([32, 32, 24], SCORED | AGAINST_LABELS | COMPARED),
    "ingest.block": ([32, 32, 32], MADE),
    "ingest.chunk": ([16, 16, 16], MADE),
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
    "train.validate_max_voxels": (5, NONE),  # nothing is validated
    "targets.neighbourhood_nm": (100.0, NONE),
    "targets.grow_nm": (100.0, NONE),
    "targets.grow_fraction": (0.4, NONE),
    "targets.grow_threshold": (9.0, NONE),
    "targets.sampled_share": (0.4, NONE),
    "targets.sampled_seed": (9, NONE),
    "targets.ignore_labels": ([0, 3], TARGETED | COMPARED),
    "targets.plane_components": (True, TARGETED | COMPARED),
    "targets.background_labels": ([1], TARGETED | COMPARED),
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
    "evaluate.block": ([64, 64, 64], {"node_labels", "evaluate", *FROM_NODES}),
    "evaluate.bootstrap": (99, {"evaluate"}),
    "evaluate.curves": (False, NONE),
    "evaluate.repair": (False, TUNED),
    "evaluate.max_gap_nm": (9.0, TUNED),
    "evaluate.merge_min_nodes": (2, TUNED),
    "evaluate.merge_min_nm": (9.0, TUNED),
    "evaluate.out_of_bounds": ("drop", {"evaluate", *FROM_NODES}),
    "evaluate.baseline": (False, {"evaluate"}),
    "evaluate.baseline_threshold": (9.0, {"baseline", "evaluate"}),
    "skeletonize.cross_sections": (True, SKELETONS),
    "skeletonize.section_context": (9, NONE),  # nothing is measured
    "proofread.levels": (1, {"export", *FILED}),
    "proofread.swc": (False, FILED),
    "proofread.swc_unit": ("nm", FILED),
    "proofread.sharded": ("yes", FILED),
    "execution.kind": ("serial", NONE),
    "execution.workers": (7, NONE),
    "execution.address": ("tcp://host:8786", NONE),
    "execution.tries": (7, NONE),
    "train.checkpoint_every_steps": (7, NONE),
    "train.loader_threads": (7, NONE),
    "train.tensorboard": (False, NONE),
}
# What these settings refine must be on.
GROWN, SAMPLED = {"grow_nm": 50.0}, {"background": "sampled"}
NEEDED = {
    "targets.neighbourhood_nm": SAMPLED,
    "targets.grow_fraction": GROWN,
    "targets.grow_threshold": GROWN,
    "targets.sampled_share": SAMPLED,
    "targets.sampled_seed": SAMPLED,
}
# Sections of settings that all reach the same stages.
SECTIONS = {
    "phantom.": NONE,
    # Read by `axonloom compare-losses` alone, whose stages have tests of their own.
    "comparison.": NONE,
    "network.": TRAINED,
    "train.": TRAINED,
    "predict.": PREDICTED,
    "skeletonize.method.": SKELETONS,
}
# Foreign paths, tested by their files.
INPUTS = {
    "input.image": MADE,
    "input.labels": TARGETED | COMPARED,
    "input.skeletons": TRACED,
    "evaluate.compare_segments": COMPARED,
    "evaluate.exclude_ids": {"label_scores", "evaluate", *FROM_NODES},
}
FILES = {
    "input.image": "image.zarr",
    "input.labels": "labels.zarr",
    "input.skeletons": "swc",
    "evaluate.compare_segments": "other.zarr",
    "evaluate.exclude_ids": "ids",
}
REPLACING = {"input.checkpoint", "input.start_from", "input.affinities", "input.segments",
             "evaluate.lookup", "evaluate.lookup_missing"}  # fmt: skip
# Need other runs: see test_training_volumes and test_skeleton_stages.
OTHER_RUNS = {"input.training_runs", "skeletonize.lookup", "skeletonize.lookup_missing",
              "skeletonize.level", "skeletonize.soma_mask"}  # fmt: skip


@pytest.fixture
def volumes(tmp_path):
    rng = np.random.default_rng(0)
    for name, dtype in (("image", np.uint16), ("labels", np.uint32), ("other", np.uint32)):
        array = zarr.create_array(tmp_path / f"{name}.zarr", shape=SHAPE, dtype=dtype)
        array[:] = rng.integers(0, 9, SHAPE)
    (tmp_path / "swc").mkdir()
    (tmp_path / "swc" / "a.swc").write_text(SWC)
    (tmp_path / "ids").mkdir()
    (tmp_path / "ids" / "excluded.txt").write_text("7")
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
            "validation": {"begin": [0, 0, 0], "end": [32, 32, 32]},
            "score": {"begin": [0, 0, 0], "end": [32, 32, 32]},
        },
        "ingest": {"chunk": [32, 32, 32], "block": [64, 64, 64]},
        "evaluate": {
            "compare_segments": str(volumes / "other.zarr"),
            "exclude_ids": str(volumes / "ids" / "excluded.txt"),
        },
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
    known = {*TABLE, *INPUTS, *REPLACING, *OTHER_RUNS}
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
    if path in NEEDED:
        after["targets"] |= NEEDED[path]
    assert changes(keys_of(values), keys_of(after)) == expected


OTHER_SECTIONS = {
    "comparison.window": [8, 8, 8],
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
    "train.loss.pretrain": "dice",
    "train.loss.finetune": {"name": "supervoxel", "alpha": 0.9},
    "train.augment.flip": False,
    "train.augment.elastic": 1.0,
    "train.augment.blur": 0.1,
    "train.augment.missing_sections": 0.1,
    "train.precision": "fp32",
    "train.ema": 0.5,
    "train.processes": 2,
    "train.compile": True,
    "train.validate_every_steps": 5,
    "predict.tile": [32, 32, 32],
    "predict.context": [8, 8, 8],
    "predict.precision": "fp32",
    "predict.flips": "yx",
    "comparison.seeds": [5],
    "comparison.learning_rate": 0.5,
    "comparison.closing_radii_vox": [],
    "comparison.losses": {"ce_dice": "ce_dice", "ce": "ce"},
    "comparison.cost_steps": 9,
}


@pytest.mark.parametrize("path", OTHER_SECTIONS)
def test_a_setting_reaches_what_depends_on_its_section(values, path):
    [section] = [s for s in SECTIONS if path.startswith(s)]
    after = replaced(values, path, OTHER_SECTIONS[path])
    assert changes(keys_of(values), keys_of(after)) == SECTIONS[section]


def test_the_size_of_a_validation_counts_where_there_is_one(values):
    values = replaced(values, "train.validate_every_steps", 5)
    after = replaced(values, "train.validate_max_voxels", 5)
    assert changes(keys_of(values), keys_of(after)) == TRAINED


def test_the_skeleton_method_reaches_the_skeletons(values):
    fields = parse_config(values).skeletonize.method
    tried = 0
    for name, value in fields:
        if isinstance(value, float | int):
            other = not value if isinstance(value, bool) else type(value)(value / 2 + 1.5)
            other = 0.2 if name == "max_fill" else other
            after = replaced(values, f"skeletonize.method.{name}", other)
            assert changes(keys_of(values), keys_of(after)) == SKELETONS, name
            tried += 1
    assert tried


def test_untuned_thresholds_reach_what_they_make(values):
    values = replaced(values, "segment.tune", False)
    before = keys_of(values)
    assert changes(before, keys_of(replaced(values, "segment.low", 0.4))) == SEGMENTED
    assert changes(before, keys_of(replaced(values, "segment.high", 0.9))) == SEGMENTED
    assert changes(before, keys_of(replaced(values, "segment.thresholds", [0.4]))) == MERGED


def of_tubes(values, **targets):
    return {**values, "targets": {"source": "skeletons", **targets}}


OF_LABELS = {"targets.ignore_labels", "targets.background_labels", "targets.plane_components"}
TUBES = [p for p in TABLE if p.startswith("targets.") and p not in OF_LABELS]


@pytest.mark.parametrize("path", [p for p in TUBES if p != "targets.source"])
def test_tubes_reach_the_targets_that_are_drawn_from_tracings(values, path):
    name = path.partition(".")[2]
    before = keys_of(of_tubes(values, **NEEDED.get(path, {})))
    after = keys_of(of_tubes(values, **NEEDED.get(path, {}), **{name: TABLE[path][0]}))
    assert changes(before, after) == TARGETED


def test_the_place_of_tracings_reaches_the_targets_drawn_from_them(values):
    before = keys_of(of_tubes(values))
    after = keys_of(replaced(of_tubes(values), "input.swc.offset", [0, 0, 1]))
    assert changes(before, after) == TARGETED | {"placement"}


def test_roles_of_labels_do_not_reach_the_targets_drawn_from_tracings(values):
    before = keys_of(of_tubes(values))
    for name in ("ignore_labels", "background_labels"):
        after = keys_of(of_tubes(values, **{name: [3]}))
        assert changes(before, after) == COMPARED | AGAINST_LABELS


def test_settings_that_are_off_do_not_reach_the_targets(values):
    """Nor do defaults that are spelt out."""
    before = keys_of(of_tubes(values))
    assert keys_of(of_tubes(values, sampled_share=0.4, sampled_seed=3)) == before
    assert keys_of(of_tubes(values, grow_nm=0.0)) == before
    grown = keys_of(of_tubes(values, grow_nm=50.0))
    assert keys_of(of_tubes(values, grow_nm=50.0, grow_fraction=0.5)) == grown
    labels = {"ignore_labels": [3, 0, 3]}, {"ignore_labels": [0, 3]}
    first, second = (keys_of({**values, "targets": {"source": "labels", **t}}) for t in labels)
    assert first["targets"] == second["targets"]


def test_statistics_reach_targets_that_grow_by_them(values):
    other = {"ingest": {**values["ingest"], "mask_sigma": 3.0}}

    def reached(**targets):
        before = of_tubes(values, **targets)
        return "targets" in changes(keys_of(before), keys_of({**before, **other}))

    assert reached(grow_nm=50.0)
    assert not reached(grow_nm=50.0, grow_threshold=9.0)
    assert not reached()
    assert not reached(source="labels", grow_nm=50.0)


@pytest.mark.parametrize("name", INPUTS)
def test_a_touched_input_reaches_what_reads_it(values, volumes, name):
    before = keys_of(values)
    assert keys_of(values) == before, "looking changes nothing"
    path = volumes / FILES[name]
    file = max(p for p in path.rglob("*") if p.is_file())
    stamp = file.stat().st_mtime_ns + 1
    os.utime(file, ns=(stamp, stamp))
    assert changes(before, keys_of(values)) == INPUTS[name]


@pytest.mark.parametrize("name", [n for n in INPUTS if n != "evaluate.exclude_ids"])
def test_a_file_more_in_an_input_reaches_what_reads_it(values, volumes, name):
    before = keys_of(values)
    (volumes / FILES[name] / "more").write_text("x")
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


def test_a_network_to_start_from_reaches_what_is_trained(values, volumes):
    folder = volumes / "start"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    before = keys_of(values)
    values = replaced(values, "input.start_from", str(folder))
    given = keys_of(values)
    assert changes(before, given) == TRAINED
    (folder / "model.json").write_text("{...}")
    assert changes(given, keys_of(values)) == TRAINED


def test_what_networks_are_validated_by_reaches_what_is_trained(values, volumes):
    values = replaced(values, "train.validate_every_steps", 5)
    before = keys_of(values)
    for path, value in (
        ("regions.validation", {"begin": [0, 0, 0], "end": [16, 32, 32]}),
        ("predict.tile", [32, 32, 32]),
        ("evaluate.merge_min_nodes", 2),
        ("input.swc.offset", [0, 0, 1]),
    ):
        assert "train" in changes(before, keys_of(replaced(values, path, value))), path
    (volumes / "swc" / "b.swc").write_text(SWC)
    assert "train" in changes(before, keys_of(values))
    labelled = replaced(values, "input.skeletons", None)
    before = keys_of(labelled)
    after = keys_of(replaced(labelled, "skeletonize.method.min_voxels", 99))
    assert "train" in changes(before, after)
