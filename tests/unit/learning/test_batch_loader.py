"""The loader: neither threads nor processes show, errors are named, little is held ahead."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.geometry import Roi
from pipeline.learning import loader
from pipeline.learning.loader import STEPS_AHEAD, Batch, describe_samples, load_batches
from pipeline.learning.sampling import PatchSampler, index_foreground
from pipeline.learning.settings import NetworkSettings, TrainSettings

SHAPE = (16, 18, 20)
NETWORK = NetworkSettings(width=2, levels=2)
FLAT = NetworkSettings(width=2, levels=2, dimensions=2, kernel=(1, 3, 3), pool=((1, 2, 2),))
SETTINGS = TrainSettings(patch=(8, 8, 8), batch=4, pretrain_steps=3, finetune_steps=5)


class Source:
    """Two blocks in noise."""

    shape = SHAPE

    def __init__(self) -> None:
        self.held = np.zeros(SHAPE, np.uint64)
        self.held[:, 4:7, 4:7] = 1
        self.held[8:11, :, 12:15] = 2
        self.picture = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)

    def image(self, roi: Roi) -> np.ndarray:
        return self.picture[roi.slices]

    def labels(self, roi: Roi) -> np.ndarray:
        return self.held[roi.slices]


def sampler_of(settings: TrainSettings, source: Source | None = None) -> PatchSampler:
    regions = [(source or Source(), Roi((0, 0, 0), SHAPE))]
    return PatchSampler(regions, index_foreground(regions), settings)


def batches(settings: TrainSettings = SETTINGS, first: int = 0, **share: int) -> list[Batch]:
    return list(load_batches(sampler_of(settings), settings, NETWORK, first, 8, **share))


def test_batches_are_those_of_the_sampler() -> None:
    sampler = sampler_of(SETTINGS)
    found = batches()
    assert [batch.step for batch in found] == list(range(8))
    for batch in found:
        images, labels = sampler.batch(batch.step)
        np.testing.assert_array_equal(batch.images, images)
        np.testing.assert_array_equal(batch.labels, labels)
        assert batch.images.shape == (4, 1, 8, 8, 8)
        assert (batch.images.dtype, batch.labels.dtype) == (np.float32, np.uint64)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_and_the_first_step_do_not_show(threads: int) -> None:
    settings = SETTINGS.model_copy(update={"loader_threads": threads})
    for found, expected in zip(batches(settings, 5), batches()[5:], strict=True):
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(processes: int) -> None:
    shares = [batches(rank=rank, processes=processes) for rank in range(processes)]
    for number, whole in enumerate(batches()):
        for rank in range(processes):
            mine = shares[rank][number]
            np.testing.assert_array_equal(mine.images, whole.images[rank::processes])
            np.testing.assert_array_equal(mine.labels, whole.labels[rank::processes])


def test_what_the_loss_of_the_phase_asks_for_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(labels: np.ndarray, form: str, loss: object) -> dict[str, np.ndarray]:
        return {f"{form} {loss.name}": labels * 2}  # type: ignore[attr-defined]

    monkeypatch.setattr(loader, "prepare_sample", prepare)
    for batch in batches():
        phase = "ce" if batch.step < 3 else "supervoxel"
        assert list(batch.prepared) == [f"affinities {phase}"]
        np.testing.assert_array_equal(batch.prepared[f"affinities {phase}"], batch.labels * 2)


def test_labels_of_planes_have_two_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prepare(labels: np.ndarray, *_: object) -> dict[str, np.ndarray]:
        asked.append(labels.shape)
        return {}

    monkeypatch.setattr(loader, "prepare_sample", prepare)
    settings = SETTINGS.model_copy(update={"patch": (1, 8, 6)})
    [batch] = load_batches(sampler_of(settings), settings, FLAT, 0, 1)
    assert batch.images.shape == (4, 1, 1, 8, 6)
    assert batch.labels.shape == (4, 8, 6)
    assert asked == [(8, 6)] * 4


class Failing(PatchSampler):
    def sample(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        if (step, index) == (4, 2):
            raise self.error
        return super().sample(step, index)

    error: Exception = DataError("spoilt")


@pytest.mark.parametrize("threads", [1, 4])
def test_errors_come_with_their_step_when_it_is_their_turn(threads: int) -> None:
    settings = SETTINGS.model_copy(update={"loader_threads": threads})
    regions = [(Source(), Roi((0, 0, 0), SHAPE))]
    sampler = Failing(regions, index_foreground(regions), settings)
    running = load_batches(sampler, settings, NETWORK, 0, 8)
    assert [next(running).step for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match="training step 4, sample 2: spoilt"):
        next(running)
    sampler.error = ConnectionError("gone")
    with pytest.raises(ConnectionError, match="gone") as caught:
        list(load_batches(sampler, settings, NETWORK, 4, 8))
    assert caught.value.__notes__ == ["while training step 4, sample 2 was loaded"]


def test_little_is_made_ahead_and_nothing_after_closing() -> None:
    made = []

    class Counting(PatchSampler):
        def sample(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
            made.append(step)
            return super().sample(step, index)

    settings = TrainSettings(patch=(8, 8, 8), batch=1, pretrain_steps=10**6, loader_threads=2)
    regions = [(Source(), Roi((0, 0, 0), SHAPE))]
    sampler = Counting(regions, index_foreground(regions), settings)
    before = threading.active_count()
    running = load_batches(sampler, settings, NETWORK, 0, 10**6)
    assert next(running).step == 0
    for _ in range(600):
        if len(made) == STEPS_AHEAD + 1:
            break
        time.sleep(0.05)
    assert sorted(made) == list(range(STEPS_AHEAD + 1))
    running.close()
    assert threading.active_count() == before


def test_places_of_samples_are_told() -> None:
    settings = SETTINGS.model_copy(update={"batch": 2})
    sampler = sampler_of(settings)
    told = describe_samples(sampler, settings, 3)
    boxes = [sampler.place(3, index)[1] for index in range(2)]
    assert told == f"sample 0: volume 0, {boxes[0]}; sample 1: volume 0, {boxes[1]}"
