"""What a step of training costs with one loss, beside another: time and memory.

Memory is the peak of a process, and what a process has freed may stay with it, so it is measured
in a process of its own: `python -m pipeline.learning.step_cost FOLDER`, where FOLDER has
`request.json` and `batch.npz` from `write_request`. Its answer is one line of JSON.

Steps of both losses alternate, so that what else the machine does falls on both.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import DataError
from pipeline.learning.checkpoint import load_model
from pipeline.learning.distributed import Group
from pipeline.learning.loader import Batch
from pipeline.learning.loss_settings import LossSettings
from pipeline.learning.losses import prepare_sample
from pipeline.learning.model import UNet, initialise
from pipeline.learning.precision import choose_device, deterministic, place
from pipeline.learning.settings import NetworkSettings, TrainSettings
from pipeline.learning.step import TrainingStep, make_optimiser

_REQUEST, _BATCH = "request.json", "batch.npz"


def write_request(
    folder: Path,
    batch: Batch,
    settings: TrainSettings,
    network: NetworkSettings,
    *,
    loss: LossSettings,
    baseline: LossSettings,
    steps: int,
    start: Path | None = None,
    voxel_size_nm: tuple[float, float, float],
) -> None:
    """Describe what is to be measured; what losses prepare is made in the answer's process.

    Args:
        folder: receives the two files.
        batch: that every step is made with.
        settings, network: of the training; its own losses are not used.
        loss, baseline: to measure, and to measure beside.
        steps: timed steps of each.
        start: folder of a trained network to begin with; none: random weights.
        voxel_size_nm: z, y, x.
    """
    request = {
        "train": settings.model_dump(mode="json"),
        "network": network.model_dump(mode="json"),
        "losses": [loss.model_dump(mode="json"), baseline.model_dump(mode="json")],
        "steps": steps,
        "start": None if start is None else str(start),
        "voxel_size_nm": voxel_size_nm,
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / _BATCH, images=batch.images, labels=batch.labels)
    (folder / _REQUEST).write_text(json.dumps(request))


def ask(folder: Path) -> dict[str, float]:
    """Measure in a process of its own.

    Returns:
        "seconds", "baseline_seconds": medians over the steps. "ratio", "ratio_low", "ratio_high":
        median and quartiles of the ratios of neighbouring steps. "peak_bytes": of the loss alone,
        above what is held between steps.

    Raises:
        DataError: the process failed; the message ends with what it said.
    """
    # It finds the same packages, however this process did.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise DataError(f"measuring a step failed: {done.stderr.strip()[-2000:]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def answer(folder: Path) -> dict[str, float]:
    """Do what `write_request` describes, in this process."""
    request = json.loads((folder / _REQUEST).read_text())
    settings = TrainSettings.model_validate(request["train"])
    network = NetworkSettings.model_validate(request["network"])
    device = choose_device(settings.device)
    threads = min(settings.batch, settings.threads)
    with (
        deterministic(settings.threads, device),
        ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool,
    ):
        steps = [
            _prepare(settings, network, loss, folder, device, pool, request)
            for loss in request["losses"]
        ]
        peak = _peak_of_step(*steps[0], device)
        for step, batch in steps:
            step(batch)
        seconds: list[list[float]] = [[], []]
        for _ in range(request["steps"]):
            for times, (step, batch) in zip(seconds, steps, strict=True):
                times.append(_timed(step, batch, device))
    ratios = [ours / theirs for ours, theirs in zip(*seconds, strict=True)]
    low, middle, high = (float(v) for v in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return {
        "seconds": statistics.median(seconds[0]),
        "baseline_seconds": statistics.median(seconds[1]),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
        "peak_bytes": float(max(0, peak)),
    }


def _peak_of_step(step: TrainingStep, batch: Batch, device: torch.device) -> int:
    """Bytes at the peak of a step, above what is held between steps."""
    step(batch)  # the first loads kernels and makes the state of the optimiser
    idle = _begin_peak(device)
    step(batch)
    return _peak_bytes(device) - idle


def _prepare(
    settings: TrainSettings,
    network: NetworkSettings,
    loss: dict[str, Any],
    folder: Path,
    device: torch.device,
    pool: Executor | None,
    request: dict[str, Any],
) -> tuple[TrainingStep, Batch]:
    """A step with the loss in the fine-tuning phase, and its batch."""
    losses = settings.loss.model_validate({"finetune": loss})
    settings = settings.model_copy(
        update={"pretrain_steps": 0, "finetune_steps": 1, "loss": losses, "processes": 1}
    )
    model = UNet(network)
    initialise(model, settings.seed)
    if request["start"] is not None:
        model.load_state_dict(load_model(Path(request["start"])).model.state_dict())
    model = place(model, device)
    size: list[float] = request["voxel_size_nm"]
    step = TrainingStep(
        settings,
        model,
        make_optimiser(model, settings),
        group=Group(),
        pool=pool,
        voxel_size=(size[0], size[1], size[2]),
        explain=lambda _step: "the batch that costs are measured on",
    )
    with np.load(folder / _BATCH) as held:
        images, labels = held["images"], held["labels"]
    samples = [prepare_sample(one, network.output, losses.finetune) for one in labels]
    prepared = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    return step, Batch(0, images, labels, prepared)


def _timed(step: TrainingStep, batch: Batch, device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    step(batch)
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _begin_peak(device: torch.device) -> int:
    """Begin to look for the peak; gives what is held now, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # Both exist on Linux alone; without them what was freed or held before hides a part of a peak.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _peak_resident()


def _peak_resident() -> int:
    """The peak of the memory of this program, in bytes.

    `ru_maxrss` is no measure of it on Linux: a new process inherits its parent's there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(json.dumps(answer(Path(sys.argv[1]))))
