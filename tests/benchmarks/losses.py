"""What the losses cost: beside bare cross entropy, by themselves, and in a step of training.

Ratios are of runs that alternate in one process on one torch thread, the least of several each.
On the CPU processor time counts, on a GPU the time between two events with the device drained.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from numpy.typing import NDArray
from patches import OBJECTS, STATES, Shape, draw_image, draw_labels, draw_logits
from printing import print_table, save
from torch import Tensor
from torch.nn import functional as F
from worker_memory import worker_environment

from pipeline.learning.batch import LossBatch
from pipeline.learning.critical import number_both_signs
from pipeline.learning.critical_edges import critical_edges
from pipeline.learning.distributed import Group
from pipeline.learning.loader import Batch
from pipeline.learning.loss_settings import LossSettings, parse_loss
from pipeline.learning.losses import LOSSES, compute_loss, prepare_sample
from pipeline.learning.model import UNet, initialise
from pipeline.learning.precision import choose_bf16, choose_device, place
from pipeline.learning.settings import Form, NetworkSettings, PhaseLosses, TrainSettings
from pipeline.learning.step import TrainingStep, make_optimiser

SHAPES: tuple[Shape, ...] = ((512, 512), (64,) * 3, (96,) * 3, (128,) * 3)
QUICK = SHAPES[:2]
STEP_SHAPES = ((64,) * 3, (128,) * 3)

# Rows beside, or instead of, a loss with its defaults.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "scnp": {"scnp 3 of ce": {"of": "ce"}, "scnp 5 of ce": {"of": "ce", "window": 5}},
    "skeleton_recall": {
        "skeleton_recall of ce": {"of": "ce"},
        "skeleton_recall of ce_dice": {"of": "ce_dice"},
    },
    "malis": {"malis alone": {"share": 1.0}, "malis with ce": {"of": "ce", "share": 0.5}},
}
# Times bare cross entropy; of clDice for volumes.
TARGETS = {
    "scnp 3 of ce": 6.0,
    "skeleton_recall of ce": 2.5,
    "skeleton_recall of ce_dice": 2.5,
    "cldice": 150.0,
    "malis alone": 25.0,
}
AFFINITY_ROWS = ("ce", "supervoxel", "malis")
CRITICAL_MS = {  # by axes of the patch and state; both signs
    (512, 512): {"late": 10.0, "untrained": 10.0},
    (128, 128, 128): {"late": 100.0, "untrained": 400.0},
}
STEP_TARGETS = {"supervoxel": 1.10, "scnp": 1.05}

_LEAST_ROUNDS, _MOST_ROUNDS = 4, 200


class Clock:
    """Seconds that a call takes on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, run: Callable[[], object]) -> float:
        """Run once."""
        if self.device.type == "cuda":
            return self._between_events(run)
        began = time.process_time()
        run()
        return time.process_time() - began

    def _between_events(self, run: Callable[[], object]) -> float:
        # What the CPU does meanwhile counts: the second event waits for the work that it sends.
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        first.record()
        run()
        last.record()
        torch.cuda.synchronize(self.device)
        return first.elapsed_time(last) / 1000

    def least(self, runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
        """The least seconds of each, in turns, for as many rounds as fit; the first not counted."""
        for run in runs.values():
            run()
        found = dict.fromkeys(runs, math.inf)
        began = time.monotonic()
        for number in range(_MOST_ROUNDS):
            if number >= _LEAST_ROUNDS and time.monotonic() - began > seconds:
                break
            for name, run in runs.items():
                found[name] = min(found[name], self(run))
        return found


@dataclass(frozen=True)
class Case:
    """One patch and what a network says of it."""

    shape: Shape
    form: Form
    objects: str
    state: str
    labels: NDArray[np.uint64]
    logits: NDArray[np.float32]

    @property
    def name(self) -> str:
        """Column of the tables."""
        return f"{self.objects} {self.state}"

    def batch(self, device: torch.device, settings: LossSettings | None = None) -> LossBatch:
        """One sample, with what the loader prepares for a loss, and logits that want a gradient."""
        found = {} if settings is None else prepare_sample(self.labels, self.form, settings)
        prepared = {key: array[None] for key, array in found.items()}
        leaf = torch.from_numpy(self.logits[None].copy()).to(device).requires_grad_()
        return LossBatch.of(leaf, self.labels[None], self.form, prepared=prepared)

    def wrong(self) -> float:
        """Share of the elements on the wrong side of 0."""
        batch = self.batch(torch.device("cpu"))
        return float((((batch.logits > 0) != (batch.targets > 0)) & batch.mask).float().mean())


def cases(shape: Shape, form: Form, seed: int) -> Iterator[Case]:
    """The columns of a table."""
    for objects in OBJECTS:
        labels = draw_labels(objects, shape, seed)
        for state in STATES:
            yield Case(shape, form, objects, state, labels, draw_logits(labels, form, state))


def rows(form: Form, dimensions: int, only: str | None = None) -> dict[str, LossSettings]:
    """The losses that are measured, by row: every loss of the table, with its variants."""
    found = {}
    for name in LOSSES:
        if only not in (None, name) or (form == "affinities" and name not in AFFINITY_ROWS):
            continue
        for row, given in VARIANTS.get(name, {name: {}}).items():
            settings = parse_loss({"name": name, **given})
            if settings.problem(form, dimensions) is None:
                found[row] = settings
    return found


def measure_losses(
    shape: Shape, form: Form, chosen: dict[str, LossSettings], clock: Clock, given: Any
) -> dict[str, Any]:
    """Milliseconds of every row in every case, of bare cross entropy, and of what is prepared."""
    found: dict[str, Any] = {"shape": shape, "form": form, "cases": {}}
    for case in cases(shape, form, given.seed):
        bare, ms = math.inf, {}
        for row, settings in chosen.items():
            batch = case.batch(clock.device, settings)
            runs = {"bare": _bare(batch), "loss": _whole(batch, settings)}
            least = clock.least(runs, given.seconds)
            bare, ms[row] = min(bare, least["bare"] * 1e3), least["loss"] * 1e3
        prepare = {row: _preparing(case, settings) for row, settings in chosen.items()}
        found["cases"][case.name] = {
            "foreground": float((case.labels > 0).mean()), "wrong": case.wrong(),
            "bare_ms": bare, "ms": ms, "prepare_ms": prepare,
        }  # fmt: skip
    return found


def _bare(batch: LossBatch) -> Callable[[], object]:
    def run() -> None:
        batch.logits.grad = None
        F.binary_cross_entropy_with_logits(batch.logits, batch.targets).backward()

    return run


def _whole(batch: LossBatch, settings: LossSettings) -> Callable[[], object]:
    def run() -> None:
        batch.logits.grad = None
        compute_loss(batch, settings).total.backward()

    return run


def _preparing(case: Case, settings: LossSettings) -> float:
    """Milliseconds of processor in the loader, the less of two; 0 where nothing is prepared."""
    if not prepare_sample(case.labels, case.form, settings):
        return 0.0
    least = math.inf
    for _ in range(2):
        began = time.process_time()
        prepare_sample(case.labels, case.form, settings)
        least = min(least, time.process_time() - began)
    return least * 1e3


def print_losses(found: dict[str, Any]) -> None:
    """Times bare cross entropy; the dearest case over the target."""
    columns = found["cases"]
    lines: list[list[object]] = []
    for row in next(iter(columns.values()))["ms"]:
        ratios = [case["ms"][row] / case["bare_ms"] for case in columns.values()]
        prepare = max(case["prepare_ms"][row] for case in columns.values())
        target = _target(row, found)
        lines.append(
            [row, *ratios, prepare, target, None if target is None else max(ratios) / target]
        )
    lines.append(["bare cross entropy, ms", *(case["bare_ms"] for case in columns.values())])
    lines.append(["wrong elements, %", *(100 * case["wrong"] for case in columns.values())])
    header = ["times bare cross entropy", *columns, "prepare, ms", "target", "dearest of target"]
    padded = [line + [None] * (len(header) - len(line)) for line in lines]
    print_table(f"{_size(found['shape'])}, {found['form']}, forward + backward", header, padded)


def _target(row: str, found: dict[str, Any]) -> float | None:
    volume = len(found["shape"]) == 3
    return None if row == "cldice" and not volume else TARGETS.get(row)


def _size(shape: Shape) -> str:
    return f"{shape[0]}^{len(shape)}"


def measure_critical(shape: Shape, clock: Clock, given: Any) -> list[dict[str, Any]]:
    """Milliseconds of critical voxels of both signs, and of critical edges."""
    found = []
    for form in ("foreground", "affinities"):
        for case in cases(shape, form, given.seed):
            positive = case.logits > 0
            if form == "foreground":
                what, target = "voxels", CRITICAL_MS.get(shape, {}).get(case.state)
                run = _both_signs(case.labels, positive[0])
            else:
                what, target = "edges", None
                run = _both_edges(case.labels, positive)
            ms = clock.least({what: run}, given.seconds)[what] * 1e3
            found.append(
                {"shape": shape, "what": what, "case": case.name, "ms": ms, "target_ms": target}
            )
    return found


def _both_signs(labels: NDArray[np.uint64], positive: NDArray[np.bool_]) -> Callable[[], object]:
    return lambda: number_both_signs(labels, positive)


def _both_edges(labels: NDArray[np.uint64], positive: NDArray[np.bool_]) -> Callable[[], object]:
    return lambda: critical_edges(labels, positive)


def print_critical(found: list[dict[str, Any]]) -> None:
    """One line for a size and kind, one column for a case."""
    columns = [f"{objects} {state}" for objects, state in itertools.product(OBJECTS, STATES)]
    lines = []
    for (shape, what), group in itertools.groupby(found, lambda one: (one["shape"], one["what"])):
        ones = {one["case"]: one for one in group}
        shares = [one["ms"] / one["target_ms"] for one in ones.values() if one["target_ms"]]
        name = f"{_size(shape)} {what}"
        lines.append([name, *(ones[c]["ms"] for c in columns), max(shares, default=None)])
    header = ["both signs, ms", *columns, "dearest of target"]
    print_table("Critical components (512^2: 10 ms; 128^3: 100 late, 400 untrained)", header, lines)


class _Guided(UNet):
    """A network that is trained as far as is wanted: given logits are added to its own."""

    guide: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        return super().forward(image) + self.guide


def measure_step(case: Case, losses: dict[str, Any], clock: Clock, given: Any) -> dict[str, Any]:
    """Milliseconds of a step of training with each loss, in turns, on one batch of one patch."""
    image = draw_image(case.labels)[None, None]
    runs = {
        row: _stepping(case, image, parse_loss(loss), clock.device) for row, loss in losses.items()
    }
    least = clock.least(runs, given.step_seconds)
    ms = {row: seconds * 1e3 for row, seconds in least.items()}
    return {"shape": case.shape, "form": case.form, "case": case.name, "ms": ms}


def _stepping(
    case: Case, image: NDArray[np.float32], loss: LossSettings, device: torch.device
) -> Callable[[], object]:
    settings = TrainSettings(
        patch=case.shape, batch=1, pretrain_steps=0, finetune_steps=2**20, warmup_steps=0,
        learning_rate=1e-9, loss=PhaseLosses(finetune=loss),
    )  # fmt: skip
    model = _Guided(NetworkSettings(output=case.form, width=16, levels=3))
    initialise(model, 0)
    model = place(model, device)
    model.guide = torch.from_numpy(case.logits[None]).to(device)
    prepared = prepare_sample(case.labels, case.form, loss)
    batch = Batch(0, image, case.labels[None], {key: a[None] for key, a in prepared.items()})
    step = TrainingStep(
        settings, model, make_optimiser(model, settings), group=Group(), pool=None,
        voxel_size=None, explain=lambda _: "benchmark",
    )  # fmt: skip
    return lambda: step(batch)


def step_cases(shape: Shape, seed: int) -> Iterator[tuple[Case, dict[str, Any]]]:
    """The supervoxel loss in its home, affinities; SCNP of ce beside ce on foreground."""
    for case in cases(shape, "affinities", seed):
        yield case, {"ce": "ce", "supervoxel": "supervoxel"}
    for case in cases(shape, "foreground", seed):
        penalised = {"name": "scnp", "of": "ce"}
        yield case, {"ce": "ce", "supervoxel": "supervoxel", "scnp": penalised}


def print_steps(found: list[dict[str, Any]], device: torch.device) -> None:
    """Steps over those with ce."""
    lines = []
    for one in found:
        ms = one["ms"]
        for row in ms:
            if row != "ce":
                ratio = ms[row] / ms["ce"]
                name = f"{_size(one['shape'])} {one['form']}, {one['case']}: {row}"
                lines.append([name, ms["ce"], ms[row], ratio, ratio / STEP_TARGETS[row]])
    arithmetic = "bf16" if choose_bf16("auto", device) else "fp32"
    title = f"A step of training, U-Net of width 16 and 3 levels, {arithmetic}, one patch"
    print_table(title, ["loss", "ce, ms", "loss, ms", "times ce", "of target"], lines)


def as_workers() -> None:
    """Start again with the memory settings of workers, which malloc reads at the start alone.

    Otherwise pages go back to the system and are paid for again, now by one loss and now by
    another.
    """
    wanted = worker_environment()
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="512^2 and 64^3 only")
    choices = [*LOSSES, "critical", "step"]
    parser.add_argument(
        "--only", choices=choices, metavar="NAME", help=f"one of {', '.join(choices)}"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the patches")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="spent on each figure, at least %(default)s"
    )
    parser.add_argument("--step-seconds", type=float, default=30.0, help="the same of steps")
    parser.add_argument("--sizes", type=int, nargs="+", help="edges of volumes, instead of ours")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure and print everything that is asked for."""
    given = options()
    device = choose_device(given.device)
    clock = Clock(device)
    torch.set_num_threads(1)
    machine.print_facts()
    print(f"torch {torch.__version__}, {device}\n", flush=True)
    shapes: tuple[Shape, ...] = QUICK if given.quick else SHAPES
    step_shapes: tuple[Shape, ...] = STEP_SHAPES[:1] if given.quick else STEP_SHAPES
    if given.sizes:
        shapes = step_shapes = tuple((n,) * 3 for n in given.sizes)
    figures: dict[str, Any] = {"facts": machine.facts(), "device": str(device)}
    if given.only not in ("critical", "step"):
        figures["losses"] = list(_all_losses(shapes, clock, given))
    if given.only in (None, "critical"):
        figures["critical"] = [
            one
            for shape in shapes
            for one in measure_critical(shape, Clock(torch.device("cpu")), given)
        ]
        print_critical(figures["critical"])
    if given.only in (None, "step"):
        figures["step"] = list(_all_steps(step_shapes, clock, given))
    parts = ["losses", given.only, "quick" if given.quick else None, device.type]
    save(given.folder / "figures", "_".join(part for part in parts if part), figures)


def _all_losses(shapes: tuple[Shape, ...], clock: Clock, given: Any) -> Iterator[dict[str, Any]]:
    """Each table is printed when it is there."""
    forms: tuple[Form, ...] = ("foreground", "affinities")
    for shape, form in itertools.product(shapes, forms):
        chosen = rows(form, len(shape), given.only)
        if chosen:
            found = measure_losses(shape, form, chosen, clock, given)
            print_losses(found)
            yield found


def _all_steps(shapes: tuple[Shape, ...], clock: Clock, given: Any) -> Iterator[dict[str, Any]]:
    """Likewise."""
    for shape in shapes:
        found = [measure_step(*pair, clock, given) for pair in step_cases(shape, given.seed)]
        print_steps(found, clock.device)
        yield from found


if __name__ == "__main__":
    as_workers()
    main()
