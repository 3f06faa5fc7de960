from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError, InputError, OutputExistsError
from pipeline.geometry import Roi, Triple
from pipeline.learning.settings import NetworkSettings, TrainSettings
from pipeline.learning.train import learning_rate, train

NETWORK = NetworkSettings(width=2, levels=2)
SETTINGS = TrainSettings(
    patch=(8, 8, 8),
    batch=2,
    pretrain_steps=5,
    finetune_steps=4,
    warmup_steps=2,
    checkpoint_every_steps=3,
    threads=1,
)
FILES = ("model.safetensors", "model.json", "log.jsonl")


class Rods:
    """Bright rods along z and y in noise."""

    def __init__(self, seed: int = 0, shape: Triple = (16, 18, 20)) -> None:
        self.shape = shape
        self.held = np.zeros(shape, np.uint64)
        self.held[:, 4:7, 4:7] = 1
        self.held[8:11, :, 12:15] = 2**50
        noise = np.random.default_rng(seed).standard_normal(shape) * 0.2
        self.picture = ((self.held > 0) + noise).astype(np.float32)

    def image(self, roi: Roi) -> np.ndarray:
        return self.picture[roi.slices]

    def labels(self, roi: Roi) -> np.ndarray:
        return self.held[roi.slices]


def regions(source: Rods | None = None) -> list[tuple[Rods, Roi]]:
    source = source or Rods()
    return [(source, Roi((0, 0, 0), source.shape))]


class InterruptionError(Exception):
    """Stands for whatever ends a run."""


def stop_at(step: int) -> Callable[[dict[str, object]], None]:
    def report(record: dict[str, object]) -> None:
        if record["step"] == step:
            raise InterruptionError

    return report


def contents(directory: Path) -> list[bytes]:
    return [(directory / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    train(SETTINGS, NETWORK, regions(), directory)
    return directory


def test_the_log_tells_each_step_and_no_time(undisturbed: Path) -> None:
    records = [json.loads(line) for line in (undisturbed / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(9))
    assert [r["phase"] for r in records] == ["pretrain"] * 5 + ["finetune"] * 4
    names = "step phase loss lr voxel_loss split_loss merge_loss gradient_norm"
    assert all(list(r) == names.split() for r in records)
    assert all(r["split_loss"] is None for r in records[:5])
    assert any(r["split_loss"] + r["merge_loss"] > 0 for r in records[5:])


@pytest.mark.parametrize("steps", [(0,), (3,), (6,), (8,), (1, 4, 4, 8)])
def test_interrupted_runs_end_in_the_same_bytes(
    steps: tuple[int, ...], undisturbed: Path, tmp_path: Path
) -> None:
    for step in steps:
        with pytest.raises(InterruptionError):
            train(SETTINGS, NETWORK, regions(), tmp_path, stop_at(step))
    train(SETTINGS, NETWORK, regions(), tmp_path)
    assert contents(tmp_path) == contents(undisturbed)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from test_training_loop import NETWORK, SETTINGS, regions
    from pipeline.learning.train import train

    def report(record):
        if record["step"] == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    train(SETTINGS, NETWORK, regions(), Path(sys.argv[2]), report)
"""


def test_a_killed_process_ends_in_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    code = textwrap.dedent(KILLED)
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    root = Path(__file__).parents[3]
    killed = subprocess.run(arguments, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "state.safetensors").exists()
    assert not (tmp_path / "model.json").exists()
    train(SETTINGS, NETWORK, regions(), tmp_path)
    assert contents(tmp_path) == contents(undisturbed)


def test_a_log_that_ran_ahead_is_cut_back(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(InterruptionError):
        train(SETTINGS, NETWORK, regions(), tmp_path, stop_at(4))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "lo' + 100_000 * "x")  # longer than the finished log
    train(SETTINGS, NETWORK, regions(), tmp_path)
    assert contents(tmp_path) == contents(undisturbed)


def test_a_log_that_lost_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterruptionError):
        train(SETTINGS, NETWORK, regions(), tmp_path, stop_at(4))
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(InputError, match="has 0 bytes"):
        train(SETTINGS, NETWORK, regions(), tmp_path)


def test_a_finished_run_returns_at_once(undisturbed: Path) -> None:
    before = contents(undisturbed)
    first = train(SETTINGS, NETWORK, regions(), undisturbed, stop_at(0))
    assert first == train(SETTINGS, NETWORK, regions(), undisturbed)
    assert first["steps"] == 9
    assert contents(undisturbed) == before


def test_two_threads_are_as_reproducible_as_one(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"threads": 2})
    summaries = [train(settings, NETWORK, regions(), tmp_path / name) for name in "ab"]
    assert summaries[0] == summaries[1]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_other_settings_are_refused_by_name(undisturbed: Path, tmp_path: Path) -> None:
    changed = SETTINGS.model_copy(update={"seed": 4})
    with pytest.raises(OutputExistsError, match=r"training\.seed: 0 there, 4 now"):
        train(changed, NETWORK, regions(), undisturbed)
    with pytest.raises(InterruptionError):
        train(SETTINGS, NETWORK, regions(), tmp_path, stop_at(4))
    with pytest.raises(OutputExistsError, match=r"network\.width: 2 there, 3 now"):
        train(SETTINGS, NetworkSettings(width=3, levels=2), regions(), tmp_path)


def test_other_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InterruptionError):
        train(SETTINGS, NETWORK, regions(), tmp_path, stop_at(4))
    other = Rods()
    other.held[0, 0, 0] = 5
    with pytest.raises(OutputExistsError, match="other labels"):
        train(SETTINGS, NETWORK, regions(other), tmp_path)


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_state(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
    settings = settings.model_copy(update={"checkpoint_every_steps": 1})
    with pytest.raises(DataError, match=r"training step \d+ .*last saved state"):
        train(settings, NETWORK, regions(), tmp_path)
    assert (tmp_path / "state.safetensors").exists()
    assert not (tmp_path / "model.json").exists()


def test_patches_that_do_not_suit_the_network(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"patch": (8, 9, 8)})
    with pytest.raises(InputError, match=r"stride \(2, 2, 2\): use \(8, 8, 8\)"):
        train(settings, NETWORK, regions(), tmp_path)


def test_learning_rate_rises_and_falls() -> None:
    settings = TrainSettings(
        pretrain_steps=60, finetune_steps=41, warmup_steps=10, learning_rate=1.0,
        final_rate_fraction=0.1,
    )  # fmt: skip
    rates = [learning_rate(settings, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_training_learns_to_tell_objects_from_background(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(
        update={"pretrain_steps": 50, "finetune_steps": 10, "learning_rate": 1e-2}
    )
    network = NetworkSettings(width=4, levels=2)
    train(settings, network, regions(), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    early = np.mean([r["voxel_loss"] for r in records[:5]])
    late = np.mean([r["voxel_loss"] for r in records[-10:]])
    assert late < 0.5 * early
