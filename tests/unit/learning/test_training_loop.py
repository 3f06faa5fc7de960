from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import DataError, InputError, OutputExistsError
from pipeline.geometry import Roi, Triple
from pipeline.learning.checkpoint import load_model
from pipeline.learning.settings import AugmentSettings, NetworkSettings, TrainSettings
from pipeline.learning.state import state_facts
from pipeline.learning.train import learning_rate, train
from pipeline.learning.training import Training

NETWORK = NetworkSettings(width=2, levels=2)
SETTINGS = TrainSettings(
    patch=(8, 8, 8),
    batch=2,
    pretrain_steps=5,
    finetune_steps=4,
    warmup_steps=2,
    checkpoint_every_steps=3,
    threads=1,
    tensorboard=False,
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


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    train(SETTINGS, NETWORK, regions(), directory)
    return directory


def test_the_log_tells_each_step_and_no_time(undisturbed: Path) -> None:
    records = [json.loads(line) for line in (undisturbed / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(9))
    assert [r["phase"] for r in records] == ["pretrain"] * 5 + ["finetune"] * 4
    before, after = "step phase loss lr voxel_loss", "gradient_norm"
    assert all(list(r) == f"{before} {after}".split() for r in records[:5])
    names = f"{before} split_loss merge_loss {after}".split()
    assert all(sorted(r) == sorted(names) for r in records[5:])
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
    with pytest.raises(OutputExistsError, match=r"train\.seed: 0 there, 4 now"):
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


class Dark(Rods):
    """Other images beside the same labels."""

    def image(self, roi: Roi) -> np.ndarray:
        return super().image(roi) * np.float32(0.5)


@pytest.mark.parametrize("stop", [4, None], ids=["interrupted", "finished"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": Dark()}, "another image"),
        ({"normalisation": "in percent"}, "run.normalisation: 'as given' there, 'in percent' now"),
        ({"voxel_size_nm": (1.0, 1.0, 1.0)}, "run.voxel_size_nm: None there"),
        ({"settings": {"validate_every_steps": 3}}, "run.validated: False there, True now"),
    ],
    ids=["image", "normalisation", "voxel size", "validation"],
)
def test_a_training_goes_on_only_as_what_it_began_as(
    change: dict, message: str, stop: int | None, undisturbed: Path, tmp_path: Path
) -> None:
    folder = undisturbed
    if stop is not None:
        folder = tmp_path
        with pytest.raises(InterruptionError):
            train(SETTINGS, NETWORK, regions(), folder, stop_at(stop))
    before = files_of(folder)
    change = dict(change)
    settings = SETTINGS.model_copy(update=change.pop("settings", {}))
    validate = (lambda _: {"score": 1.0}) if settings.validate_every_steps else None
    sources = regions(change.pop("sources", None) or Rods())
    with pytest.raises(OutputExistsError, match=message):
        train(settings, NETWORK, sources, folder, validate=validate, **change)
    assert files_of(folder) == before


def test_fields_that_decide_nothing_are_no_part_of_a_training() -> None:
    idle = SETTINGS.model_copy(update={"tensorboard": False, "validate_max_voxels": 3})
    assert idle.deciding() == SETTINGS.deciding()
    judged = SETTINGS.model_copy(update={"validate_every_steps": 3})
    assert judged.deciding() != judged.model_copy(update={"validate_max_voxels": 3}).deciding()


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_state(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
    settings = settings.model_copy(update={"checkpoint_every_steps": 1})
    with pytest.raises(DataError, match=r"training step \d+ .*saved before stays"):
        train(settings, NETWORK, regions(), tmp_path)
    assert (tmp_path / "state.safetensors").exists()
    assert not (tmp_path / "model.json").exists()


def test_the_samples_of_a_bad_step_are_named(tmp_path: Path) -> None:
    class Bright(Rods):
        def image(self, roi: Roi) -> np.ndarray:
            return np.full(roi.shape, 3e38, np.float32)

    plain = AugmentSettings(
        deform_fraction=0, scale=0, shift=0, gamma=0, noise=0, blur=0, blur_fraction=0
    )
    settings = SETTINGS.model_copy(update={"precision": "fp32", "augment": plain})
    with pytest.raises(DataError, match=r"training step 0 .*sample 0: volume 0, \[.*sample 1: vol"):
        train(settings, NETWORK, regions(Bright()), tmp_path)
    assert not (tmp_path / "state.safetensors").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_every_steps": 1})

    def spoil(self: Training) -> None:
        if self.step == 3:
            with torch.no_grad():
                self.model.head.bias.fill_(float("nan"))
        counted(self)

    counted = Training.count_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "count_step", spoil)
        with pytest.raises(DataError, match=r"after training step 3 weights of head.bias"):
            train(settings, NETWORK, regions(), tmp_path)
    facts = state_facts(tmp_path)
    assert facts is not None
    assert facts["step"] == 3


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("not enough memory: you tried to allocate 9 bytes"),
    MemoryError("Unable to allocate 3 TiB"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: type(error).__name__)
def test_too_little_memory_says_what_to_lower(error: Exception, tmp_path: Path) -> None:
    def exhaust(_record: dict[str, object]) -> None:
        raise error

    message = r"lower train.patch \(now \(8, 8, 8\)\), train.batch \(now 2, .*width \(now 2\)"
    with pytest.raises(InputError, match=message):
        train(SETTINGS, NETWORK, regions(), tmp_path, exhaust)


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    def fail(_record: dict[str, object]) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        train(SETTINGS, NETWORK, regions(), tmp_path, fail)


def test_times_are_told_apart_from_the_result(tmp_path: Path) -> None:
    told = []
    train(SETTINGS, NETWORK, regions(), tmp_path, told.append)
    assert all(record["seconds"] > 0 <= record["wait_seconds"] for record in told)
    facts = json.loads((tmp_path / "timing.json").read_text())
    assert (facts["device"], facts["threads"], facts["processes"]) == ("cpu", 1, 1)
    for phase, steps in (("pretrain", 5), ("finetune", 4)):
        found = facts["phases"][phase]
        assert found["steps"] == steps
        seconds = [record["seconds"] for record in told if record["phase"] == phase]
        assert found["mean_seconds_per_step"] == pytest.approx(np.mean(seconds))
        assert found["median_seconds_per_step"] == pytest.approx(np.median(seconds))
        waits = [record["wait_seconds"] for record in told if record["phase"] == phase]
        assert found["data_wait_seconds"] == pytest.approx(sum(waits))


def test_settings_without_effect_may_change_between_starts(
    undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(InterruptionError):
        train(SETTINGS, NETWORK, regions(), tmp_path, stop_at(4))
    others = {"checkpoint_every_steps": 2, "loader_threads": 3, "tensorboard": True}
    train(SETTINGS.model_copy(update=others), NETWORK, regions(), tmp_path)
    for name in ("model.safetensors", "log.jsonl"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


def test_without_a_mean_the_last_weights_are_the_model(tmp_path: Path) -> None:
    """With a decay of 0 the network that is saved is the one that was trained."""
    settings = SETTINGS.model_copy(update={"ema": 0.0})
    kept = {}
    counted = Training.count_step

    def keep(self: Training) -> None:
        counted(self)
        kept.update({n: p.detach().clone() for n, p in self.model.named_parameters()})

    for name, ema in (("last", 0.0), ("mean", 0.9)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Training, "count_step", keep)
            settings = SETTINGS.model_copy(update={"ema": ema})
            train(settings, NETWORK, regions(), tmp_path / name)
        saved = dict(load_model(tmp_path / name).model.named_parameters())
        equal = all(torch.equal(saved[n], kept[n]) for n in kept)
        assert equal == (ema == 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_learns_the_same_and_resumes(undisturbed: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"compile": True})
    train(settings, NETWORK, regions(), tmp_path / "a")
    with pytest.raises(InterruptionError):
        train(settings, NETWORK, regions(), tmp_path / "b", stop_at(7))
    train(settings, NETWORK, regions(), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    losses = [
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "a", undisturbed)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


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
