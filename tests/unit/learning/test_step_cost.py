"""Time and memory of a step: in a process of its own, on a tiny network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.learning import step_cost
from pipeline.learning.checkpoint import save_model
from pipeline.learning.loader import Batch
from pipeline.learning.loss_settings import LossSettings, parse_loss
from pipeline.learning.model import UNet, initialise
from pipeline.learning.settings import NetworkSettings, TrainSettings
from pipeline.learning.step_cost import answer, ask, write_request

NETWORK = NetworkSettings(width=2, levels=2)
SETTINGS = TrainSettings(
    patch=(16, 16, 16), batch=2, pretrain_steps=0, finetune_steps=4, threads=1, device="cpu"
)


def make_batch() -> Batch:
    rng = np.random.default_rng(0)
    labels = np.zeros((2, 16, 16, 16), np.uint64)
    labels[:, 4:8] = 1
    labels[:, 10:12, 3:9] = 2
    images = rng.standard_normal((2, 1, 16, 16, 16)).astype(np.float32)
    return Batch(0, images, labels, {})


def request(folder: Path, loss: LossSettings, *, steps: int = 2, start: Path | None = None) -> Path:
    write_request(
        folder,
        make_batch(),
        SETTINGS,
        NETWORK,
        loss=loss,
        baseline=parse_loss("ce"),
        steps=steps,
        start=start,
        voxel_size_nm=(300.0, 100.0, 100.0),
    )
    return folder


def test_a_process_of_its_own_answers(tmp_path: Path) -> None:
    found = ask(request(tmp_path, parse_loss("supervoxel")))
    assert set(found) == {
        "seconds", "baseline_seconds", "ratio", "ratio_low", "ratio_high", "peak_bytes"
    }  # fmt: skip
    assert found["seconds"] > 0
    assert found["baseline_seconds"] > 0
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert 0 <= found["peak_bytes"] < 2**32


def test_a_failure_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "killed: $3" >&2\nexit 137\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DataError, match=r"measuring a step failed.*killed: /there"):
        ask(Path("/there"))


def test_an_answer_without_its_batch(tmp_path: Path) -> None:
    request(tmp_path, parse_loss("ce"))
    (tmp_path / "batch.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"batch\.npz"):
        answer(tmp_path)


def test_both_losses_are_timed_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are those of neighbours; the clock is set by hand."""
    seconds = iter([1.0, 2.0, 3.0, 1.0, 8.0, 4.0])
    asked: list[str] = []

    def timed(step: step_cost.TrainingStep, batch: Batch, device: object) -> float:
        asked.append(step._settings.loss.finetune.name)
        return next(seconds)

    monkeypatch.setattr(step_cost, "_timed", timed)
    found = answer(request(tmp_path, parse_loss("dice"), steps=3))
    assert asked == ["dice", "ce"] * 3
    assert (found["seconds"], found["baseline_seconds"]) == (3.0, 2.0)
    assert (found["ratio"], found["ratio_low"], found["ratio_high"]) == (2.0, 1.25, 2.5)


def test_steps_begin_with_the_given_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = UNet(NETWORK)
    initialise(model, 5)
    save_model(tmp_path / "start", model, SETTINGS, {})
    weights: list[np.ndarray] = []
    original = step_cost.make_optimiser

    def watch(model: UNet, settings: TrainSettings) -> object:
        weights.append(next(model.parameters()).detach().numpy().copy())
        return original(model, settings)

    monkeypatch.setattr(step_cost, "make_optimiser", watch)
    answer(request(tmp_path / "a", parse_loss("ce"), steps=1, start=tmp_path / "start"))
    given = next(model.parameters()).detach().numpy()
    for found in weights:
        np.testing.assert_array_equal(found, given)
    weights.clear()
    answer(request(tmp_path / "b", parse_loss("ce"), steps=1))
    assert not np.array_equal(weights[0], given)


def test_the_request_is_plain_data(tmp_path: Path) -> None:
    request(tmp_path, parse_loss({"name": "tversky", "false_positives": 0.4}))
    held = json.loads((tmp_path / "request.json").read_text())
    assert held["losses"][0]["false_positives"] == 0.4
    assert held["losses"][1]["name"] == "ce"
    assert held["start"] is None


def test_memory_of_a_large_loss_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that holds 64 MiB more has a peak that is higher by about that."""
    plain = answer(request(tmp_path / "a", parse_loss("ce"), steps=1))
    original = step_cost.TrainingStep.__call__

    def greedy(self: step_cost.TrainingStep, batch: Batch) -> object:
        held = np.ones(2**23)
        result = original(self, batch)
        assert held.any()
        return result

    monkeypatch.setattr(step_cost.TrainingStep, "__call__", greedy)
    more = answer(request(tmp_path / "b", parse_loss("ce"), steps=1))
    assert more["peak_bytes"] - plain["peak_bytes"] == pytest.approx(2**26, rel=0.35)
