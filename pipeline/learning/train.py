"""The training loop: pretraining with a voxelwise loss, then fine-tuning with the topology loss.

Training may be killed at any moment and started again: it goes on from the last saved state and
ends in the same bytes (`model.safetensors`, `model.json`, `log.jsonl`, `validation.jsonl`) as an
undisturbed run on the same machine with the same number of threads. Three things make it so: a
batch is a function of (seed, step); the state is replaced as a whole; the logs are cut back to what
they held when the state was saved.

What is validated and saved is the running mean of the weights. Where there are validations the best
network becomes the result, of equal ones the latest; else the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.learning import checkpoint
from pipeline.learning.checkpoint import VoxelSize
from pipeline.learning.distributed import Group
from pipeline.learning.failures import memory_explained
from pipeline.learning.identity import (
    data_digest,
    describe_finished,
    describe_training,
    require_same,
)
from pipeline.learning.journal import Journal, Timing, open_journal
from pipeline.learning.loader import Batch, describe_samples, load_batches
from pipeline.learning.model import UNet, stride
from pipeline.learning.precision import choose_device, deterministic
from pipeline.learning.sampling import PatchSampler, Region, index_foreground
from pipeline.learning.settings import NetworkSettings, TrainSettings
from pipeline.learning.state import state_facts
from pipeline.learning.step import TrainingStep, learning_rate, picture
from pipeline.learning.training import Training, checked_scores

__all__ = ["check_training", "learning_rate", "summary", "train"]

Report = Callable[[dict[str, Any]], None]
Validate = Callable[[UNet], dict[str, float]]


def train(
    settings: TrainSettings,
    network: NetworkSettings,
    sources: Sequence[Region],
    directory: Path,
    report: Report | None = None,
    *,
    normalisation: str = "as given",
    voxel_size_nm: VoxelSize | None = None,
    validate: Validate | None = None,
    start_from: Path | None = None,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a network to the end, from scratch or from the last saved state in `directory`.

    Args:
        settings, network: what to train and how; a directory belongs to one choice of both.
        sources: volumes and the boxes of them that patches may touch.
        directory: receives `model.safetensors`, `model.json`, `log.jsonl`, `state.safetensors`,
            `timing.json`, and as settings say `validation.jsonl` and `tensorboard`.
        report: called after each step with its log record, "seconds" and "wait_seconds".
        normalisation: how the sources make image values, in words; kept with the model.
        voxel_size_nm: of the sources, z, y, x; given to the losses and kept with the model.
        validate: gives figures of a network (float32, on the training's device); "score" is the
            higher the better. Called every `validate_every_steps` and after the last step.
        start_from: folder of a network whose weights training begins with.
        config: the whole configuration, JSON values; kept with the model.

    Returns:
        "steps", "loss" (of the last step), "digest" (of the model), and with validations "score"
        and "chosen_step" of the network that was kept. If the directory holds the finished model
        already, no step is made.

    Raises:
        OutputExistsError: the directory belongs to other settings or other data.
        InputError: patches do not fit, there is nothing to train on, a saved file is damaged, the
            network to start from is another, or memory is not enough.
        DataError: the loss, its gradient or a validation is not finite; the last saved state stays.
    """
    group = Group.of(settings)
    check_training(settings, network)
    validate = validate if settings.validate_every_steps else None
    index = index_foreground(sources)
    sampler = PatchSampler(sources, index, settings, voxel_size=voxel_size_nm or (1.0, 1.0, 1.0))
    start = None if start_from is None else checkpoint.digest(start_from)
    facts = describe_training(
        settings,
        network,
        data=data_digest(sources, index, settings),
        start=start,
        validated=validate is not None,
        normalisation=normalisation,
        voxel_size_nm=voxel_size_nm,
    )
    finished = checkpoint.has_model(directory)
    group.require_same("a finished model", finished)
    if finished:
        require_same(directory, describe_finished(checkpoint.load_model(directory)), facts)
        return summary(directory)
    saved = state_facts(directory)
    group.require_same("a saved state of step", saved and saved["step"])
    if saved is not None:
        require_same(directory, saved, facts)
    device = choose_device(settings.device)
    with (
        memory_explained(settings, network),
        deterministic(settings.threads, device),
        _sample_pool(settings) as pool,
    ):
        training = Training(settings, network, device, directory, facts)
        if saved is not None:
            training.resume(saved)
        elif start_from is not None:
            training.start_from(start_from, normalisation, voxel_size_nm)
        step = TrainingStep(
            settings,
            training.model,
            training.optimiser,
            group=group,
            pool=pool,
            voxel_size=voxel_size_nm,
            explain=lambda number: describe_samples(sampler, settings, number),
        )
        with ExitStack() as stack:
            journal = None
            if group.writes:
                opened = open_journal(
                    directory, settings, training.step, saved or {}, validate is not None
                )
                journal = stack.enter_context(opened)
            _loop(settings, training, step, sampler, group, journal, validate, report)
        if group.writes:
            training.finish(normalisation, voxel_size_nm, config)
    return group.share(summary(directory) if group.writes else None)


def _loop(
    settings: TrainSettings,
    training: Training,
    make_step: TrainingStep,
    sampler: PatchSampler,
    group: Group,
    journal: Journal | None,
    validate: Validate | None,
    report: Report | None,
) -> None:
    """All steps that are left; without a journal, a process makes steps and nothing else."""
    timing, network, end = Timing(), training.model.settings, settings.steps
    batches = load_batches(
        sampler, settings, network, training.step, end, rank=group.rank, processes=group.size
    )
    with closing(batches):
        waiting = time.perf_counter()
        for batch in batches:
            begin = time.perf_counter()
            record = make_step(batch)
            training.count_step()
            seconds = time.perf_counter() - begin
            timing.add(record["phase"], seconds, begin - waiting)
            if journal is not None:
                journal.step(record, seconds)
                if validate and _due(training.step, settings.validate_every_steps, end):
                    _validate(training, validate, journal, sampler, settings)
                if _due(training.step, settings.checkpoint_every_steps, end):
                    training.save(journal)
            if report is not None:
                report(record | {"seconds": seconds, "wait_seconds": begin - waiting})
            waiting = time.perf_counter()
    if journal is not None:
        timing.write(training.directory, settings, training.device)


def _due(step: int, every: int, end: int) -> bool:
    return step % every == 0 or step == end


def _validate(
    training: Training,
    validate: Validate,
    journal: Journal,
    sampler: PatchSampler,
    settings: TrainSettings,
) -> None:
    model, step = training.averaged.model, training.step - 1
    scores = checked_scores(validate(model), step)
    best = training.consider(scores["score"])
    image, labels = sampler.sample(0, 0)  # the same patch every time
    flat = labels[0] if model.settings.dimensions == 2 else labels
    example = Batch(0, image[None, None], flat[None], {})
    journal.validation(
        {"step": step, **scores, "best": best}, picture(model, example, settings.precision)
    )


def check_training(settings: TrainSettings, network: NetworkSettings) -> None:
    """Refuse patches and losses that do not suit the network.

    Raises:
        InputError: names what to set.
    """
    steps, patch = stride(network), settings.patch
    if network.dimensions == 2 and patch[0] != 1:
        raise InputError(
            f"network.dimensions: 2 learns from single planes, train.patch is {patch}: set "
            f"train.patch to [1, {patch[1]}, {patch[2]}]"
        )
    if any(n % s for n, s in zip(patch, steps, strict=True)):
        nearest = tuple(max(s, round(n / s) * s) for n, s in zip(patch, steps, strict=True))
        raise InputError(
            f"train.patch {patch}: a training patch must be a multiple of the network's stride "
            f"{steps}: use {nearest}"
        )
    for phase in ("pretrain", "finetune"):
        loss = getattr(settings.loss, phase)
        problem = loss.problem(network.output, network.dimensions)
        if getattr(settings, f"{phase}_steps") and problem:
            raise InputError(
                f"train.loss.{phase} does not suit network.output {network.output!r} in "
                f"{network.dimensions} dimensions: {problem}"
            )


@contextmanager
def _sample_pool(settings: TrainSettings) -> Iterator[Executor | None]:
    """Threads for work that is done sample by sample; none where one thread is all."""
    workers = min(settings.batch // settings.processes, settings.threads)
    if workers == 1:
        yield None
        return
    with ThreadPoolExecutor(workers) as pool:
        yield pool


def summary(directory: Path) -> dict[str, Any]:
    """What `train` returns, from a directory that holds a finished model."""
    facts = checkpoint.load_model(directory).note["facts"]
    found = {
        "steps": facts["steps"], "loss": facts["loss"], "digest": checkpoint.digest(directory)
    }  # fmt: skip
    chosen = facts["chosen"]
    if chosen["score"] is not None:
        found |= {"score": chosen["score"], "chosen_step": chosen["step"]}
    return found
