"""Batches made ahead of time, by threads, while the network computes.

A sample is a function of (seed, step, index in the batch) alone, so neither the number of threads
nor the number of processes shows in it. Process r of n takes the indices r, r + n, ... of a batch.
What a loss wants prepared from the labels (skeletons, say) is made here too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, PipelineError
from pipeline.learning.losses import Prepared, prepare_sample
from pipeline.learning.sampling import PatchSampler
from pipeline.learning.settings import NetworkSettings, TrainSettings

STEPS_AHEAD = 3
"""Steps whose batches are held or being made, beside the one that is used."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one process gets of a step; b samples.

    Attributes:
        step: counted from 0.
        images: (b, 1, Z, Y, X) float32.
        labels: (b, Z, Y, X) uint64, or (b, Y, X) for networks of two dimensions.
        prepared: (b, ...) by key, what the loss of the step asked for.
    """

    step: int
    images: NDArray[np.float32]
    labels: NDArray[np.uint64]
    prepared: Mapping[str, NDArray[Any]]


class _Sample(NamedTuple):
    image: NDArray[np.float32]
    labels: NDArray[np.uint64]
    prepared: Prepared


def load_batches(
    sampler: PatchSampler,
    settings: TrainSettings,
    network: NetworkSettings,
    first: int,
    end: int,
    *,
    rank: int = 0,
    processes: int = 1,
) -> Generator[Batch]:
    """The batches of steps `first` to `end`; close it, or read it to the end.

    Args:
        sampler: makes the samples.
        settings: batch, losses, threads of the loader.
        network: says whether labels are made 2-D, and for which form losses prepare.
        first, end: steps, counted from 0.
        rank, processes: which share of each batch is wanted.

    Raises:
        PipelineError, OSError and what else a source raises: of the same class where it is one of
            the project, the message naming step and sample.
    """
    indices = range(rank, settings.batch, processes)
    waiting: deque[list[Future[_Sample]]] = deque()
    threads = ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="loader")

    def request(step: int) -> list[Future[_Sample]]:
        return [
            threads.submit(_load_sample, sampler, settings, network, step, index)
            for index in indices
        ]

    try:
        for step in range(first, end):
            while len(waiting) <= STEPS_AHEAD and step + len(waiting) < end:
                waiting.append(request(step + len(waiting)))
            yield _stack(step, [future.result() for future in waiting.popleft()])
    finally:
        threads.shutdown(cancel_futures=True)


def describe_samples(sampler: PatchSampler, settings: TrainSettings, step: int) -> str:
    """Where each sample of a batch was cut, in words."""
    places = [sampler.place(step, index) for index in range(settings.batch)]
    return "; ".join(
        f"sample {index}: volume {number}, {box}" for index, (number, box) in enumerate(places)
    )


def _load_sample(
    sampler: PatchSampler,
    settings: TrainSettings,
    network: NetworkSettings,
    step: int,
    index: int,
) -> _Sample:
    try:
        image, labels = sampler.sample(step, index)
        if network.dimensions == 2:
            labels = labels[0]
        loss = getattr(settings.loss, settings.phase(step))
        return _Sample(image, labels, prepare_sample(labels, network.output, loss))
    except PipelineError as error:
        raise type(error)(f"training step {step}, sample {index}: {error}") from error
    except Exception as error:
        error.add_note(f"while training step {step}, sample {index} was loaded")
        raise


def _stack(step: int, samples: Sequence[_Sample]) -> Batch:
    keys = samples[0].prepared.keys()
    if any(sample.prepared.keys() != keys for sample in samples):
        raise DataError(f"training step {step}: a loss prepared other things for other samples")
    return Batch(
        step,
        np.stack([sample.image for sample in samples])[:, None],
        np.stack([sample.labels for sample in samples]),
        {key: np.stack([sample.prepared[key] for sample in samples]) for key in keys},
    )
