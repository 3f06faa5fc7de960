"""What a comparison of losses trains: one pretraining a seed, and from it each loss.

A *cell* is one training. Its folder is named by what was trained and by a digest of everything that
the result depends on, so a cell is trained once, however often the comparison is begun anew, with
more losses or more seeds: what is finished is found, what was interrupted goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.learning.loss_settings import LossSettings
from pipeline.learning.settings import PhaseLosses, TrainSettings
from pipeline.stages.ingest import normalisation_note
from pipeline.stages.run import Run
from pipeline.stages.training_volumes import training_regions, training_run_keys
from pipeline.storage.fingerprint import digest
from pipeline.storage.ledger import Ledger

PRETRAINED = "pretrained"
FOLDER = Path("comparison", "networks")
"""Of the cells, in a run's folder."""

_DIGITS = 12
# All cells have the same budget, and many run side by side, one device each.
_PLAIN = {"validate_every_steps": 0, "processes": 1}


@dataclass(frozen=True)
class Cell:
    """One training of the comparison.

    Attributes:
        name: row of the comparison, or `PRETRAINED`.
        seed: of the comparison.
        settings: of this training alone.
        folder: where it is trained, and its scores kept.
        start: folder of the pretraining that it begins with; None for that itself.
    """

    name: str
    seed: int
    settings: TrainSettings
    folder: Path
    start: Path | None


def pretraining(run: Run, seed: int) -> Cell:
    """The training that all losses of a seed begin with."""
    train = run.config.train
    settings = train.model_copy(
        update={
            **_PLAIN,
            "finetune_steps": 0,
            "seed": 2 * seed,
            "loss": _only(train.loss.pretrain),
        }
    )
    return Cell(PRETRAINED, seed, settings, _folder(run, PRETRAINED, seed, settings, ""), None)


def finetuning(run: Run, name: str, seed: int) -> Cell:
    """The training with one loss; all losses of a seed get the same patches."""
    before, config, train = pretraining(run, seed), run.config.comparison, run.config.train
    settings = train.model_copy(
        update={
            **_PLAIN,
            "pretrain_steps": 0,
            "seed": 2 * seed + 1,
            "loss": _only(config.losses[name]),
            "learning_rate": config.learning_rate or 0.5 * train.learning_rate,
        }
    )
    folder = _folder(run, name, seed, settings, before.folder.name)
    return Cell(name, seed, settings, folder, before.folder)


def _only(loss: LossSettings) -> PhaseLosses:
    """The same in both phases: the phase that a cell has not must not tell cells apart."""
    return PhaseLosses(pretrain=loss, finetune=loss)


def pretrainings(run: Run) -> list[Cell]:
    """One for each seed."""
    return [pretraining(run, seed) for seed in run.config.comparison.seeds]


def finetunings(run: Run) -> list[Cell]:
    """One for each seed and loss; seeds first, so that a part of them compares all losses."""
    config = run.config.comparison
    return [finetuning(run, name, seed) for seed in config.seeds for name in config.losses]


def train_cell(cell: Cell, run: Run) -> dict[str, Any]:
    """Train to the end, or from where it was interrupted; at once if it is finished."""
    # torch costs seconds to import: only the process that trains pays.
    from pipeline.learning.train import train

    return train(
        cell.settings,
        run.config.network,
        training_regions(run),
        cell.folder,
        normalisation=normalisation_note(run),
        voxel_size_nm=run.voxel_size_nm,
        start_from=cell.start,
    )


def data_parameters(run: Run) -> dict[str, Any]:
    """What every cell depends on, beside its settings and the stages that made its data."""
    return {
        "network": run.config.network.model_dump(),
        "region": run.train_roi.offset + run.train_roi.shape,
        "voxel_size_nm": run.voxel_size_nm,
        "training_runs": training_run_keys(run),
    }


def cell_parameters(cells: list[Cell]) -> list[dict[str, Any]]:
    """What tells cells apart, in their order; not their folders, which depend on finished data."""
    return [{"name": c.name, "seed": c.seed, "train": c.settings.deciding()} for c in cells]


def steps_made(cells: list[Cell]) -> int:
    """Steps in the logs of cells."""
    return sum(map(_lines, (cell.folder / "log.jsonl" for cell in cells)))


def _lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _folder(run: Run, name: str, seed: int, settings: TrainSettings, start: str) -> Path:
    what = {
        **data_parameters(run),
        "train": settings.deciding(),
        "data": dict(_keys(run)),
        "start": start,
    }
    return run.directory / FOLDER / name / f"seed-{seed}-{digest(what)[:_DIGITS]}"


def _keys(run: Run) -> Iterator[tuple[str, str]]:
    """The keys of the stages that made the data."""
    for stage in ("ingest", "statistics", "targets"):
        path = run.ledger_file(stage)
        if path.exists():
            stamp = path.stat()
            yield stage, _key(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=64)
def _key(path: Path, _mtime_ns: int, _size: int) -> str:
    """Progress asks for it again and again."""
    with closing(Ledger(path)) as ledger:
        return ledger.header.key if ledger.header else ""
