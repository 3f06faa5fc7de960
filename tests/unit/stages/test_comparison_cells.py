"""Cells of a comparison: what tells trainings apart, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zarr

from pipeline.config import parse_config
from pipeline.errors import ConfigError
from pipeline.stages.comparison import comparison_stages
from pipeline.stages.comparison_cells import (
    Cell,
    cell_parameters,
    finetuning,
    finetunings,
    pretraining,
    pretrainings,
    steps_made,
)
from pipeline.stages.keys import stage_keys
from pipeline.stages.run import Run
from pipeline.storage.ledger import Header, Ledger

LOSSES = {"ce": "ce", "focal": {"name": "focal", "gamma": 1.0}}


@pytest.fixture
def make(tmp_path: Path):
    """A handle on a run of the values, in one folder."""
    for name in ("image", "labels"):
        array = zarr.create_array(tmp_path / f"{name}.zarr", shape=(16, 16, 16), dtype="uint16")
        array[4:8] = 3

    def of(comparison: dict[str, Any] | None = None, **sections: Any) -> Run:
        given = {name: str(tmp_path / f"{name}.zarr") for name in ("image", "labels")}
        values = {
            "run_dir": str(tmp_path / "run"),
            "input": {**given, "voxel_size_nm": [100, 100, 100]},
            "ingest": {"chunk": [16, 16, 16], "block": [16, 16, 16]},
            "comparison": {
                "losses": LOSSES, "baseline": "ce", "seeds": [1, 4], **(comparison or {})
            },
            **sections,
        }  # fmt: skip
        sizes = {"patch": [8, 8, 8], "pretrain_steps": 5, "finetune_steps": 3}
        values["train"] = {**sizes, **sections.get("train", {})}
        config = parse_config(values)
        return Run(config.run_dir.resolve(), config)

    return of


def folders(run: Run) -> set[Path]:
    return {cell.folder for cell in (*pretrainings(run), *finetunings(run))}


def note_key(run: Run, stage: str, key: str) -> None:
    """Write the ledger of a stage that made the data."""
    run.ledger_file(stage).parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(run.ledger_file(stage))
    ledger.begin(Header(stage, key, 1, {}))
    ledger.close()


def test_a_cell_for_each_seed_and_loss_seeds_first(make) -> None:
    run = make()
    assert [(c.name, c.seed) for c in pretrainings(run)] == [("pretrained", 1), ("pretrained", 4)]
    names = [(c.name, c.seed) for c in finetunings(run)]
    assert names == [("ce", 1), ("focal", 1), ("ce", 4), ("focal", 4)]
    assert len(folders(run)) == 6
    for cell in finetunings(run):
        assert cell.start == pretraining(run, cell.seed).folder
        assert run.directory in cell.folder.parents


def test_phases_and_seeds_of_the_settings(make) -> None:
    run = make(train={"learning_rate": 0.01, "validate_every_steps": 2, "batch": 2, "processes": 2})
    before, after = pretraining(run, 4), finetuning(run, "focal", 4)
    assert (before.settings.pretrain_steps, before.settings.finetune_steps) == (5, 0)
    assert (after.settings.pretrain_steps, after.settings.finetune_steps) == (0, 3)
    assert (before.settings.seed, after.settings.seed) == (8, 9)
    assert after.settings.loss.finetune.gamma == 1.0
    assert before.settings.learning_rate == 0.01
    assert after.settings.learning_rate == 0.005
    for cell in (before, after):
        assert (cell.settings.validate_every_steps, cell.settings.processes) == (0, 1)
    assert finetuning(make({"learning_rate": 0.3}), "ce", 1).settings.learning_rate == 0.3


def test_more_losses_or_seeds_leave_the_others_alone(make) -> None:
    before = folders(make())
    assert folders(make({"losses": {**LOSSES, "dice": "dice"}})) > before
    assert folders(make({"seeds": [4, 9, 1]})) > before
    assert folders(make({"losses": {"ce": "ce"}})) < before


# Another value, and what of (pretraining, ce, focal) is trained anew.
EVERY = {"pretrained", "ce", "focal"}
FINE = {"ce", "focal"}
CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "baseline": ({"comparison": {"baseline": "focal"}}, set()),
    "window": ({"comparison": {"window": [8, 8, 8], "closing_radii_vox": []}}, set()),
    "costs": ({"comparison": {"cost_steps": 1}}, set()),
    "one loss": ({"comparison": {"losses": {**LOSSES, "focal": "focal"}}}, {"focal"}),
    "rate of fine-tuning": ({"comparison": {"learning_rate": 0.1}}, FINE),
    "steps of fine-tuning": ({"train": {"finetune_steps": 4}}, FINE),
    "steps of pretraining": ({"train": {"pretrain_steps": 4}}, EVERY),
    "loss of pretraining": ({"train": {"loss": {"pretrain": "dice"}}}, EVERY),
    "loss of the ordinary fine-tuning": ({"train": {"loss": {"finetune": "dice"}}}, set()),
    "rate": ({"train": {"learning_rate": 0.1}}, EVERY),
    "seed of ordinary training": ({"train": {"seed": 8}}, set()),
    "validation": ({"train": {"validate_every_steps": 3, "validate_max_voxels": 9}}, set()),
    "what has no effect": ({"train": {"tensorboard": False, "loader_threads": 3}}, set()),
    "network": ({"network": {"width": 3}}, EVERY),
    "region": ({"regions": {"train": {"begin": [0, 0, 0], "end": [12, 16, 16]}}}, EVERY),
    "region to score": ({"regions": {"score": {"begin": [0, 0, 0], "end": [12, 16, 16]}}}, set()),
    "workers": ({"execution": {"workers": 7}}, set()),
}


@pytest.mark.parametrize("case", CHANGES)
def test_folders_change_with_what_matters_and_only_with_that(make, case) -> None:
    sections, expected = CHANGES[case]
    before, after = make(), make(**sections)

    def by_name(run: Run) -> dict[tuple[str, int], Path]:
        return {(c.name, c.seed): c.folder for c in (*pretrainings(run), *finetunings(run))}

    found, now = by_name(before), by_name(after)
    assert {name for name, seed in found if found[name, seed] != now[name, seed]} == expected


@pytest.mark.parametrize("stage", ["ingest", "statistics", "targets"])
def test_other_data_are_trained_anew(make, stage) -> None:
    run = make()
    for name in ("ingest", "statistics", "targets"):
        note_key(run, name, "first")
    before = folders(run)
    note_key(run, stage, "first")
    assert folders(run) == before
    note_key(run, stage, "second")
    assert not folders(run) & before


def test_the_place_of_a_run_does_not_matter(make, tmp_path) -> None:
    run = make()
    moved = Run(tmp_path / "moved", run.config)
    assert {f.relative_to(run.directory) for f in folders(run)} == {
        f.relative_to(moved.directory) for f in folders(moved)
    }


def test_what_tells_cells_apart_in_keys(make) -> None:
    cells = finetunings(make())
    parameters = cell_parameters(cells)
    assert [(p["name"], p["seed"]) for p in parameters] == [(c.name, c.seed) for c in cells]
    assert parameters[0]["train"]["loss"]["finetune"]["name"] == "ce"
    assert "tensorboard" not in parameters[0]["train"]


def test_progress_counts_the_lines_of_the_logs(make, tmp_path) -> None:
    run = make()
    cells = [
        Cell("a", 0, run.config.train, tmp_path / "a", None),
        Cell("b", 0, run.config.train, tmp_path / "absent", None),
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log.jsonl").write_text("{}\n{}\n")
    assert steps_made(cells) == 2


# --- stages


def keys(run: Run) -> dict[str, str]:
    draft = Run(run.directory, run.config)
    return {n: k.key for n, k in stage_keys(draft, comparison_stages(run.config)).items()}


def changed(make, **sections: Any) -> set[str]:
    before, after = keys(make()), keys(make(**sections))
    return {name for name in before if before[name] != after[name]}


def test_keys_of_the_stages(make) -> None:
    every = {"pretrain", "finetune", "costs", "compare"}
    assert changed(make, comparison={"seeds": [1]}) == every
    assert changed(make, comparison={"window": [8, 8, 8]}) == every
    assert changed(make, comparison={"losses": {"ce": "ce"}}) == every - {"pretrain"}
    assert changed(make, comparison={"closing_radii_vox": [1]}) == {"finetune", "compare"}
    assert changed(make, comparison={"cost_steps": 1}) == {"costs", "compare"}
    assert changed(make, comparison={"baseline": "focal"}) == every - {"pretrain"}
    assert changed(make, train={"finetune_steps": 9}) == every - {"pretrain"}
    assert changed(make, train={"loss": {"finetune": "dice"}}) == set()


def test_what_cannot_be_compared_is_refused_at_once(make) -> None:
    def refuse(words: str, **sections: Any) -> None:
        run = make(**sections)
        [stage] = [s for s in comparison_stages(run.config) if s.name == "pretrain"]
        with pytest.raises(ConfigError, match=words):
            stage.check(run)

    refuse("train.finetune_steps is 0", train={"finetune_steps": 0})
    refuse("train.pretrain_steps is 0", train={"pretrain_steps": 0})
    given = dict(make().config.input)
    refuse("start_from", input={**given, "start_from": str(given["image"])})
    with pytest.raises(ConfigError, match="compare-losses trains"):
        comparison_stages(make(input={**given, "labels": None}).config)


@pytest.mark.parametrize("name", ["pretrained", "..", ".", "a/b", ""])
def test_rows_that_cannot_name_a_folder_are_refused(make, name) -> None:
    with pytest.raises(ConfigError, match="cannot name a row"):
        make({"losses": {**LOSSES, name: "dice"}})
