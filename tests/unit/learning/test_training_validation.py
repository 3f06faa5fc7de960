"""Validation while training: the best network is kept, through interruptions, to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training_loop import (
    NETWORK,
    InterruptionError,
    contents,
    regions,
    stop_at,
)
from test_training_loop import SETTINGS as UNVALIDATED

from pipeline.errors import DataError, OutputExistsError
from pipeline.learning.checkpoint import load_model
from pipeline.learning.model import UNet
from pipeline.learning.train import train

SETTINGS = UNVALIDATED.model_copy(update={"validate_every_steps": 2, "tensorboard": True})
Judge = Callable[[UNet], dict[str, float]]


def judged(scores: list[float], seen: list[dict[str, torch.Tensor]] | None = None) -> Judge:
    """The scores in turn; keeps the weights that it was shown."""
    left = iter(scores)

    def judge(model: UNet) -> dict[str, float]:
        if seen is not None:
            seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return {"score": next(left), "other": 7}

    return judge


def by_weights(model: UNet) -> dict[str, float]:
    """A figure of the weights alone, which goes up and down while they are trained."""
    total = sum(float(parameter.double().sum()) for parameter in model.parameters())
    return {"score": float(np.sin(1e4 * total))}


def files(directory: Path) -> list[bytes]:
    return [*contents(directory), (directory / "validation.jsonl").read_bytes()]


def test_the_best_network_becomes_the_model(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    summary = train(SETTINGS, NETWORK, regions(), tmp_path, validate=judged([1, 5, 3, 5, 4], seen))
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [(r["step"], r["score"], r["best"]) for r in lines] == [
        (1, 1.0, True), (3, 5.0, True), (5, 3.0, False), (7, 5.0, True), (8, 4.0, False),
    ]  # fmt: skip
    assert all(r["other"] == 7.0 for r in lines)
    assert (summary["score"], summary["chosen_step"]) == (5.0, 7)
    saved = load_model(tmp_path)
    assert saved.note["facts"]["chosen"] == {"step": 7, "score": 5.0}
    for name, value in saved.model.named_parameters():
        assert torch.equal(value, seen[3][name])
        assert not value.ndim > 1 or not torch.equal(value, seen[4][name])


@pytest.mark.parametrize("steps", [(1,), (3,), (4,), (7,), (8,), (2, 4, 4, 7)])
def test_interrupted_runs_end_in_the_same_bytes(steps: tuple[int, ...], tmp_path: Path) -> None:
    train(SETTINGS, NETWORK, regions(), tmp_path / "a", validate=by_weights)
    lines = [json.loads(t) for t in (tmp_path / "a/validation.jsonl").read_text().splitlines()]
    assert {line["best"] for line in lines} == {True, False}, "else this test sees nothing"
    for step in steps:
        with pytest.raises(InterruptionError):
            train(SETTINGS, NETWORK, regions(), tmp_path / "b", stop_at(step), validate=by_weights)
    train(SETTINGS, NETWORK, regions(), tmp_path / "b", validate=by_weights)
    assert files(tmp_path / "b") == files(tmp_path / "a")


def test_without_validation_the_last_mean_is_the_model(tmp_path: Path) -> None:
    for name, settings, judge in (
        ("off", UNVALIDATED, judged([])),
        ("none", SETTINGS, None),
    ):
        summary = train(settings, NETWORK, regions(), tmp_path / name, validate=judge)
        assert "score" not in summary
        assert not (tmp_path / name / "validation.jsonl").exists()
        facts = load_model(tmp_path / name).note["facts"]
        assert facts["chosen"] == {"step": 8, "score": None}
    seen: list[dict[str, torch.Tensor]] = []
    train(SETTINGS, NETWORK, regions(), tmp_path / "on", validate=judged([1, 2, 3, 4, 5], seen))
    for name, value in load_model(tmp_path / "off").model.named_parameters():
        assert torch.equal(value, seen[-1][name]), "validating changes no weight"


def test_a_training_that_was_validated_is_not_resumed_without(tmp_path: Path) -> None:
    with pytest.raises(InterruptionError):
        train(SETTINGS, NETWORK, regions(), tmp_path, stop_at(4), validate=by_weights)
    with pytest.raises(OutputExistsError, match=r"run.validated: True there, False now"):
        train(SETTINGS, NETWORK, regions(), tmp_path)


@pytest.mark.parametrize("scores", [{"score": float("nan")}, {"quality": 1.0}])
def test_scores_that_cannot_choose_are_errors(scores: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validation after training step 1: expected finite"):
        train(SETTINGS, NETWORK, regions(), tmp_path, validate=lambda _: scores)


def test_curves_have_no_point_twice_after_interruptions(tmp_path: Path) -> None:
    for step in (4, 4, 7):
        with pytest.raises(InterruptionError):
            train(SETTINGS, NETWORK, regions(), tmp_path, stop_at(step), validate=by_weights)
    train(SETTINGS, NETWORK, regions(), tmp_path, validate=by_weights)
    curves = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    curves.Reload()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "voxel_loss", "lr", "gradient_norm"):
        points = curves.Scalars(f"train/{name}")
        assert [p.step for p in points] == list(range(9))
        np.testing.assert_allclose([p.value for p in points], [r[name] for r in log], rtol=1e-6)
    assert [p.step for p in curves.Scalars("time/seconds_per_step")] == list(range(9))
    assert [p.step for p in curves.Scalars("validation/score")] == [1, 3, 5, 7, 8]
    images = curves.Images("validation/image_target_prediction")
    assert [p.step for p in images] == [1, 3, 5, 7, 8]
    assert (images[0].width, images[0].height) == (24, 8)


def test_curves_can_be_switched_off_and_change_nothing(tmp_path: Path) -> None:
    without = SETTINGS.model_copy(update={"tensorboard": False})
    for name, settings in (("on", SETTINGS), ("off", without)):
        train(settings, NETWORK, regions(), tmp_path / name, validate=by_weights)
    assert not (tmp_path / "off" / "tensorboard").exists()
    assert files(tmp_path / "on")[0] == files(tmp_path / "off")[0]
    assert files(tmp_path / "on")[2:] == files(tmp_path / "off")[2:]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from test_training_loop import NETWORK, regions
    from test_training_validation import SETTINGS, by_weights
    from pipeline.learning.train import train

    def report(record):
        if record["step"] == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    train(SETTINGS, NETWORK, regions(), Path(sys.argv[2]), report, validate=by_weights)
"""


def test_a_killed_process_loses_no_point_before_its_state(tmp_path: Path) -> None:
    code, root = textwrap.dedent(KILLED), Path(__file__).parents[3]
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    killed = subprocess.run(arguments, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    assert killed.returncode == -signal.SIGKILL
    train(SETTINGS, NETWORK, regions(), tmp_path, validate=by_weights)
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [p.step for p in curves.Scalars("train/loss")] == list(range(9))
    assert [p.step for p in curves.Scalars("validation/score")] == [1, 3, 5, 7, 8]
