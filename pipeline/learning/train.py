"""The training loop: pretraining with a voxelwise loss, then fine-tuning with the topology loss.

Training may be killed at any moment and started again: it goes on from the last saved state and
ends in the same bytes (`model.safetensors`, `model.json`, `log.jsonl`) as an undisturbed run on the
same machine with the same number of threads. Three things make it so: a batch is a function of
(seed, step); the state is replaced as a whole; the log is cut back to what it held when the state
was saved.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import DataError, InputError, OutputExistsError
from pipeline.learning import checkpoint
from pipeline.learning.losses import LOSSES
from pipeline.learning.model import AffinityUNet, initialise, stride
from pipeline.learning.precision import autocast, choose_bf16, choose_device, deterministic, place
from pipeline.learning.sampling import PatchSampler, Region, index_foreground
from pipeline.learning.settings import NetworkSettings, TrainSettings
from pipeline.learning.targets import LossBatch

Report = Callable[[dict[str, Any]], None]


def train(
    settings: TrainSettings,
    network: NetworkSettings,
    sources: Sequence[Region],
    directory: Path,
    report: Report | None = None,
    *,
    normalisation: str = "as given",
) -> dict[str, Any]:
    """Train a network to the end, from scratch or from the last saved state in `directory`.

    Args:
        settings, network: what to train and how; a directory belongs to one choice of both.
        sources: volumes and the boxes of them that patches may touch.
        directory: receives `model.safetensors`, `model.json`, `log.jsonl`, `state.safetensors`.
        report: called after each step with its log record and "seconds".
        normalisation: how the sources make image values, in words; kept with the model.

    Returns:
        "steps", "loss" (of the last step), "digest" (of the model). If the directory holds the
        finished model already, that is returned at once.

    Raises:
        OutputExistsError: the directory belongs to other settings or other data.
        InputError: patches do not fit, there is nothing to train on, or a saved file is damaged.
        DataError: the loss or its gradient is not finite; the last saved state stays.
    """
    if checkpoint.has_model(directory):
        return _finished(settings, network, directory)
    _check_patch(settings, network)
    saved = checkpoint.state_facts(directory)
    facts: dict[str, Any] = {"settings": _settings_note(settings, network)}
    if saved is not None:
        _require_same(directory, saved["settings"], facts["settings"])
    device = choose_device(settings.device)
    index = index_foreground(sources)
    sampler = PatchSampler(sources, index, settings)
    facts["data"] = index.digest
    with deterministic(settings.threads, device), _sample_pool(settings) as pool:
        model, optimiser = _start(settings, network, device)
        first, log_bytes = _resume(directory, model, optimiser, saved, facts)
        step_once = _Step(settings, model, optimiser, pool)
        with (
            _open_log(directory, log_bytes) as log,
            closing(sampler.batches(first, _total(settings))) as batches,
        ):
            for step, images, labels in batches:
                begin = time.perf_counter()
                record = step_once(step, images, labels)
                log.write((json.dumps(record) + "\n").encode())
                if (step + 1) % settings.checkpoint_every_steps == 0:
                    _save(directory, model, optimiser, log, step + 1, facts)
                if report is not None:
                    report(record | {"seconds": time.perf_counter() - begin})
            _save(directory, model, optimiser, log, _total(settings), facts)
        done = {"steps": _total(settings), "loss": _last_loss(directory), "data": facts["data"]}
        checkpoint.save_model(directory, model, settings, done, normalisation=normalisation)
    return _summary(directory)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate at a step: linear warm-up, then half a cosine down to the final fraction."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    span = max(1, _total(settings) - 1 - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / span)
    floor = settings.final_rate_fraction
    wave = 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.learning_rate * (floor + (1.0 - floor) * wave)


class _Step:
    """One step of training: forward, loss, backward, update."""

    def __init__(
        self,
        settings: TrainSettings,
        model: AffinityUNet,
        optimiser: torch.optim.AdamW,
        pool: Executor | None,
    ) -> None:
        self._settings, self._model, self._optimiser = settings, model, optimiser
        self._pool = pool
        self._device = next(model.parameters()).device
        self._bf16 = choose_bf16(settings.precision, self._device)

    def __call__(
        self, step: int, images: NDArray[np.float32], labels: NDArray[np.uint64]
    ) -> dict[str, Any]:
        phase = "pretrain" if step < self._settings.pretrain_steps else "finetune"
        rate = learning_rate(self._settings, step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        loss, parts, norm = self._gradients(getattr(self._settings.loss, phase), images, labels)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DataError(
                f"training step {step} ({phase}): loss {loss}, gradient norm {norm}. The last "
                f"saved state is kept; look at the data of this step or lower learning_rate "
                f"(now {rate:.3g})"
            )
        self._optimiser.step()
        terms = {name: parts.get(name) for name in ("voxel_loss", "split_loss", "merge_loss")}
        return {
            "step": step, "phase": phase, "loss": loss, "lr": rate, **terms, "gradient_norm": norm
        }  # fmt: skip

    def _gradients(
        self, name: str, images: NDArray[np.float32], labels: NDArray[np.uint64]
    ) -> tuple[float, dict[str, float], float]:
        image = torch.from_numpy(images).to(self._device, memory_format=torch.channels_last_3d)
        with autocast(self._device, self._bf16):
            logits = self._model(image)
        batch = LossBatch.of(logits, labels, self._settings.loss, self._pool)
        value = LOSSES[name](batch)
        self._optimiser.zero_grad(set_to_none=True)
        value.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            self._model.parameters(), self._settings.gradient_clip
        )
        return float(value.total.detach()), value.parts, float(norm)


def _start(
    settings: TrainSettings, network: NetworkSettings, device: torch.device
) -> tuple[AffinityUNet, torch.optim.AdamW]:
    model = AffinityUNet(network)
    initialise(model, settings.seed)
    model = place(model, device)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": kernels, "weight_decay": settings.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    return model, torch.optim.AdamW(groups, lr=settings.learning_rate)


def _resume(
    directory: Path,
    model: AffinityUNet,
    optimiser: torch.optim.AdamW,
    saved: dict[str, Any] | None,
    facts: dict[str, Any],
) -> tuple[int, int]:
    """The step to go on with, and the length of the log at that step."""
    if saved is None:
        return 0, 0
    if saved["data"] != facts["data"]:
        raise OutputExistsError(
            f"{directory} was trained on other labels or regions than those given now: train into "
            f"another directory, or empty this one"
        )
    checkpoint.load_state(directory, model, optimiser)
    return int(saved["step"]), int(saved["log_bytes"])


def _save(
    directory: Path,
    model: AffinityUNet,
    optimiser: torch.optim.AdamW,
    log: IO[bytes],
    step: int,
    facts: dict[str, Any],
) -> None:
    """The log first, then the state that tells its length: the log is never the shorter one."""
    log.flush()
    os.fsync(log.fileno())
    now = {"step": step, "log_bytes": log.tell()}
    checkpoint.save_state(directory, model, optimiser, facts | now)


@contextmanager
def _open_log(directory: Path, length: int) -> Iterator[IO[bytes]]:
    """The log, cut back to `length` bytes, open at its end."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "log.jsonl"
    found = path.stat().st_size if path.exists() else 0
    if found < length:
        raise InputError(
            f"{path} has {found} bytes, the saved state knows {length}: the log was changed. "
            f"Restore it, or delete state.safetensors to train from the start"
        )
    with path.open("r+b" if path.exists() else "w+b") as log:
        log.truncate(length)
        log.seek(length)
        yield log


@contextmanager
def _sample_pool(settings: TrainSettings) -> Iterator[Executor | None]:
    """Threads for work that is done sample by sample; none where one thread is all."""
    workers = min(settings.batch, settings.threads)
    if workers == 1:
        yield None
        return
    with ThreadPoolExecutor(workers) as pool:
        yield pool


def _finished(settings: TrainSettings, network: NetworkSettings, directory: Path) -> dict[str, Any]:
    saved = checkpoint.load_model(directory)
    _require_same(
        directory,
        _settings_note(saved.training, saved.network),
        _settings_note(settings, network),
    )
    return _summary(directory)


def _summary(directory: Path) -> dict[str, Any]:
    facts = checkpoint.load_model(directory).note["facts"]
    return {
        "steps": facts["steps"], "loss": facts["loss"], "digest": checkpoint.digest(directory)
    }  # fmt: skip


def _last_loss(directory: Path) -> float:
    *_, last = (directory / "log.jsonl").read_text().splitlines()
    return float(json.loads(last)["loss"])


def _settings_note(settings: TrainSettings, network: NetworkSettings) -> dict[str, Any]:
    # How often the state is saved changes no result: another value may resume.
    training = settings.model_dump(mode="json", exclude={"checkpoint_every_steps"})
    return {"network": network.model_dump(mode="json"), "training": training}


def _require_same(directory: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = [
        f"{part}.{key}: {saved[part].get(key)!r} there, {wanted[part].get(key)!r} now"
        for part in wanted
        for key in wanted[part].keys() | saved[part].keys()
        if saved[part].get(key) != wanted[part].get(key)
    ]
    if changed:
        raise OutputExistsError(
            f"{directory} belongs to a training with other settings ({'; '.join(sorted(changed))}):"
            f" train into another directory, or empty this one"
        )


def _check_patch(settings: TrainSettings, network: NetworkSettings) -> None:
    steps = stride(network)
    if any(n % s for n, s in zip(settings.patch, steps, strict=True)):
        nearest = tuple(
            max(s, round(n / s) * s) for n, s in zip(settings.patch, steps, strict=True)
        )
        raise InputError(
            f"training patch {settings.patch} must be a multiple of the network's stride {steps}: "
            f"use {nearest}"
        )


def _total(settings: TrainSettings) -> int:
    return settings.pretrain_steps + settings.finetune_steps
