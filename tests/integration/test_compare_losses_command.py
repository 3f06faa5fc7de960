"""`axonloom compare-losses` from end to end: nothing is trained twice, and a kill does not show."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr

from pipeline.learning import step_cost

SHAPE = (6, 24, 48)
KILLED = """
import os, sys
from pipeline.learning.step import TrainingStep

step, original = int(sys.argv.pop(1)), TrainingStep.__call__
name = sys.argv.pop(1)

def deadly(self, batch):
    if batch.step == step and self._settings.loss.finetune.name == name:
        os._exit(9)
    return original(self, batch)

TrainingStep.__call__ = deadly
sys.argv[0] = "axonloom"
from flows.cli import main
main()
"""


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    """Costs are measured without a process of their own, which has to import everything again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_cost, "ask", step_cost.answer)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A stack of planes with bright fibres, all of one label."""
    folder = tmp_path_factory.mktemp("stack")
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 5:9] = labels[:, 14:17] = labels[:, :, 20:23] = 1
    rng = np.random.default_rng(0)
    image = (200 * labels + rng.integers(0, 60, SHAPE)).astype(np.uint16)
    for name, values in (("image", image), ("labels", labels)):
        array = zarr.create_array(folder / f"{name}.zarr", shape=SHAPE, dtype=values.dtype)
        array[:] = values
    return folder


@pytest.fixture(scope="module")
def values(data: Path) -> Callable[..., dict[str, Any]]:
    def of(run_dir: Path, *losses: str) -> dict[str, Any]:
        given = {name: str(data / f"{name}.zarr") for name in ("image", "labels")}
        return {
            "name": "fibres",
            "run_dir": str(run_dir),
            "input": {**given, "voxel_size_nm": [50, 10, 10]},
            "regions": {
                "train": {"begin": [0, 0, 0], "end": [3, 24, 48]},
                "score": {"begin": [3, 0, 0], "end": [6, 24, 48]},
            },
            "ingest": {"chunk": [8, 32, 64], "block": [8, 32, 64], "levels": 0},
            "network": {
                "output": "foreground", "dimensions": 2, "width": 2, "levels": 2,
                "kernel": [1, 3, 3], "pool": [[1, 2, 2]],
            },
            "train": {
                "patch": [1, 16, 16], "batch": 2, "pretrain_steps": 6, "finetune_steps": 4,
                "warmup_steps": 1, "learning_rate": 0.01, "checkpoint_every_steps": 2,
                "tensorboard": False, "loss": {"pretrain": "ce_dice"},
            },
            "predict": {"tile": [1, 24, 48], "context": [0, 4, 4]},
            "comparison": {
                "losses": dict(zip(losses, losses, strict=True)), "baseline": losses[0],
                "seeds": [0, 5], "window": [8, 12, 16], "closing_radii_vox": [1], "cost_steps": 1,
            },
            "execution": {"kind": "serial"},
        }  # fmt: skip

    return of


def save(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def networks(run_dir: Path) -> dict[str, int]:
    """Each trained network, and when it was written."""
    root = run_dir / "comparison" / "networks"
    files = root.glob("*/*/model.safetensors")
    return {file.parent.relative_to(root).as_posix(): file.stat().st_mtime_ns for file in files}


def comparison(run_dir: Path) -> dict[str, Any]:
    """`comparison.json` without what depends on time."""
    found: dict[str, Any] = json.loads((run_dir / "comparison" / "comparison.json").read_text())
    del found["costs"]
    return found


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory) -> Path:
    """The folder of a comparison of two losses; not to be changed."""
    from flows.compare_losses import report_and_tell_comparison, run_comparison
    from pipeline.config import parse_config

    folder = tmp_path_factory.mktemp("comparison") / "run"
    report_and_tell_comparison(run_comparison(parse_config(values(folder, "ce_dice", "context"))))
    return folder


def test_what_a_comparison_leaves(finished: Path) -> None:
    table = comparison(finished)
    expected = [
        "pretrained", "ce_dice", "ce_dice + closing 1", "context", "context + post-processing"
    ]  # fmt: skip
    assert list(table["rows"]) == expected
    assert (table["baseline"], table["seeds"]) == ("ce_dice", [0, 5])
    assert len(networks(finished)) == 6
    for row in table["rows"].values():
        entry = row["figures"]["dice"]
        assert set(entry["seeds"]) == {"0", "5"}
        assert 0 <= entry["mean"] <= 1
    dice = table["rows"]["context"]["figures"]["dice"]
    assert (dice["observations"], dice["over"]) == (3, "planes")
    assert dice["smallest_p"] == 1.0
    costs = json.loads((finished / "comparison" / "costs.json").read_text())
    assert list(costs["losses"]) == ["ce_dice", "context"]
    assert costs["losses"]["ce_dice"]["ratio"] == 1.0
    assert costs["losses"]["context"]["seconds"] > 0
    text = (finished / "comparison" / "comparison.csv").read_text()
    lines = list(csv.DictReader(text.splitlines()))
    assert len(lines) == len(expected) * len(table["figures"])
    assert lines[0]["mean"] == str(table["rows"]["pretrained"]["figures"]["accuracy"]["mean"])


def test_the_report(finished: Path) -> None:
    folder = finished / "comparison"
    page = (folder / "report.html").read_text()
    for words in ("context + post-processing", "3 planes", "none can be significant", "fibres"):
        assert words in page
    assert page.count("<svg") >= 5
    assert page.count("data:image/png") == 2 * 6
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    for name in ("figures", "gains", "trade-offs", "curves", "costs", "examples"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text()


def test_scores_are_those_of_the_kept_segments(finished: Path) -> None:
    [file] = (finished / "comparison" / "results" / "pretrained").glob("00000.json")
    result = json.loads(file.read_text())
    with np.load(finished / result["pictures"]) as held:
        truth, errors = held["truth"], held["errors/pretrained"]
        segments = held["segments/pretrained"]
        assert held["image"].shape == truth.shape == (24, 48)
    np.testing.assert_array_equal(np.isin(errors, (1, 3)), truth > 0)
    np.testing.assert_array_equal(np.isin(errors, (1, 2)), segments > 0)
    both = int(((truth > 0) & (segments > 0)).sum())
    dice = 2 * both / ((truth > 0).sum() + (segments > 0).sum())
    assert result["rows"]["pretrained"]["cases"]["dice"][0] == pytest.approx(dice)


def test_again_trains_nothing_and_another_loss_only_itself(
    axonloom, values, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    trained, table = networks(folder), comparison(folder)
    same = save(tmp_path / "same.yaml", values(folder, "ce_dice", "context"))
    done = axonloom("compare-losses", same)
    assert done.code == 0, done.err
    assert done.err.count("already done") >= 6
    assert networks(folder) == trained
    assert comparison(folder) == table
    scored = {p: p.stat().st_mtime_ns for p in folder.glob("comparison/networks/*/*/scores*")}
    more = save(tmp_path / "more.yaml", values(folder, "ce_dice", "context", "dice"))
    done = axonloom("compare-losses", more)
    assert done.code == 0, done.err
    now = networks(folder)
    assert {name.split("/")[0] for name in now.keys() - trained.keys()} == {"dice"}
    assert {name: now[name] for name in trained} == trained
    for path, stamp in scored.items():
        assert path.stat().st_mtime_ns == stamp, "what is scored is not scored again"
    found = comparison(folder)
    assert list(found["rows"]) == [*table["rows"], "dice"]
    for name, row in table["rows"].items():
        for figure, entry in row["figures"].items():
            assert found["rows"][name]["figures"][figure]["seeds"] == entry["seeds"]
    assert "dice: " in done.out
    assert max(map(len, done.out.split("\n\n")[0].splitlines())) <= 80


def test_a_killed_comparison_goes_on_to_the_same_end(
    axonloom, values, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = save(tmp_path / "c.yaml", values(folder, "ce_dice", "context"))
    words = [sys.executable, "-c", KILLED, "3", "context", "compare-losses", str(config)]
    killed = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert killed.returncode == 9, killed.stderr
    assert sorted(name.split("/")[0] for name in networks(folder)) == [
        "ce_dice", "pretrained", "pretrained"
    ]  # fmt: skip
    before = networks(folder)
    done = axonloom("compare-losses", config)
    assert done.code == 0, done.err
    assert comparison(folder) == comparison(finished)
    now = networks(folder)
    assert {name: now[name] for name in before} == before
    for name in now:
        ours, theirs = (
            root / "comparison" / "networks" / name / "log.jsonl" for root in (folder, finished)
        )
        assert ours.read_text() == theirs.read_text()


def test_a_region_without_truth_is_refused_before_training(
    axonloom, values, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    given = values(folder, "ce_dice")
    given["regions"]["score"] = {"begin": [0, 0, 0], "end": [6, 4, 16]}
    done = axonloom("compare-losses", save(tmp_path / "c.yaml", given))
    assert done.code == 2
    assert "regions.score" in done.err
    assert not folder.exists()
