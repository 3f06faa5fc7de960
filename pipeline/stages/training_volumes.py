"""The volumes that a network is trained on: this run's, and those of other runs.

Another run gives its image, normalised by its own statistics, and its targets in its own training
region. What is there is read from its ledgers, not from its configuration: they know which stages
are complete, of which parameters, and that they belong together. Its source files may be gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.geometry import Roi, Triple, triple
from pipeline.settings import NmTriple
from pipeline.stages.ingest import statistics_of
from pipeline.stages.run import Run
from pipeline.storage.ledger import Ledger
from pipeline.storage.volume import Volume

# The stages whose output is trained on, and what each must have read of the one before.
_STAGES = {"ingest": None, "statistics": "histograms", "targets": "image"}


@dataclass(frozen=True)
class VolumeSource:
    """Training patches straight from the volumes of a run.

    Attributes:
        run: with finished ingest, statistics and targets once a voxel is read.
        extent: of its volume if known; else that of the run's source.
    """

    run: Run
    extent: Triple | None = None

    @property
    def shape(self) -> Triple:
        """z, y, x."""
        return self.extent or self.run.shape

    def image(self, roi: Roi) -> NDArray[np.float32]:
        """The image in `roi`, normalised by the statistics of the whole volume, as in predict."""
        return statistics_of(self.run).normalise(_opened(self.run, "image").read(roi))

    def labels(self, roi: Roi) -> NDArray[np.uint64]:
        """The targets in `roi`."""
        return _opened(self.run, "targets").read(roi)


def training_regions(run: Run) -> list[tuple[VolumeSource, Roi]]:
    """What is trained on, and the box of it: this run first, then `input.training_runs`.

    Raises:
        InputError: another run is none, or not prepared.
    """
    others = [_prepared(other) for other in _others(run)]
    return [
        (VolumeSource(run), run.train_roi),
        *((VolumeSource(other.run, other.extent), other.region) for other in others),
    ]


def training_run_keys(run: Run) -> list[dict[str, str]]:
    """What identifies the voxels of the other runs: the keys of the stages that made them.

    Part of the key of the train stage: it changes when another run's image, statistics, targets or
    training region do.
    """
    return [_prepared(other).keys for other in _others(run)]


def check_training_runs(run: Run) -> None:
    """Refuse other runs that cannot be trained on together with this one; reads no voxel.

    Raises:
        InputError: a directory is no run, is this run, or is named twice; its stages up to targets
            are not complete; its voxel size or its normalisation is another; a patch does not fit.
    """
    from pipeline.learning.sampling import check_regions

    directories = [other.directory for other in _others(run)]
    for number, directory in enumerate(directories):
        if directory == run.directory.resolve():
            raise InputError(
                f"input.training_runs names {directory}, this run itself: it is trained on anyway"
            )
        if directory in directories[:number]:
            raise InputError(f"input.training_runs names {directory} twice: name it once")
        other = _prepared(Run(directory))
        _require_same_scale(run, other)
        _require_same_normalisation(run, other)
        try:
            check_regions([(VolumeSource(other.run, other.extent), other.region)], run.config.train)
        except InputError as error:
            raise InputError(f"{directory} (input.training_runs): {error}") from error


@dataclass(frozen=True)
class _Prepared:
    """What the ledgers of a run say of its finished stages."""

    run: Run
    extent: Triple
    region: Roi
    voxel_size_nm: NmTriple
    percentiles: tuple[float, float]
    keys: dict[str, str]


def _others(run: Run) -> list[Run]:
    return [Run(path.resolve()) for path in run.config.input.training_runs]


def _prepared(run: Run) -> _Prepared:
    _require_run(run)
    ledgers = {name: _ledger(run, name) for name in _STAGES}
    headers = {name: _description(run, name, ledger) for name, ledger in ledgers.items()}
    keys = {name: ledger.header.key for name, ledger in ledgers.items() if ledger.header}
    for name, read in _STAGES.items():
        if read is not None and headers[name]["inputs"].get(read) != keys["ingest"]:
            raise InputError(
                f"{run.directory} (input.training_runs): stage {name} was made from another image "
                f"than the one there now. {_how_to_prepare(run)}"
            )
    for artifact in ("image", "statistics", "targets"):
        if not run.path(artifact).exists():
            raise InputError(
                f"{run.path(artifact)} is gone, but input.training_runs names its run and the "
                "ledger says that it was made; restore it"
            )
    limits = headers["statistics"]["parameters"]
    region = headers["targets"]["parameters"]["train"]
    z, y, x = (float(size) for size in headers["ingest"]["parameters"]["voxel_size_nm"])
    return _Prepared(
        run=run,
        extent=triple(headers["ingest"]["grid"][1]),
        region=Roi(triple(region[:3]), triple(region[3:])),
        voxel_size_nm=(z, y, x),
        percentiles=(float(limits["low_percentile"]), float(limits["high_percentile"])),
        keys=keys,
    )


def _require_run(run: Run) -> None:
    if not run.directory.is_dir():
        raise InputError(f"input.training_runs: {run.directory}: no such directory")
    if not (run.directory / "config.yaml").is_file() or not (run.directory / "ledger").is_dir():
        raise InputError(
            f"input.training_runs: {run.directory} is no run of axonloom: expected config.yaml and "
            "ledger in it"
        )


def _ledger(run: Run, stage: str) -> Ledger:
    path = run.ledger_file(stage)
    if not path.is_file():
        return Ledger(path)
    stamp = path.stat()
    return _read_ledger(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=64)
def _read_ledger(path: Path, _mtime_ns: int, _size: int) -> Ledger:
    return Ledger(path)


def _description(run: Run, stage: str, ledger: Ledger) -> dict[str, Any]:
    if ledger.header is None or not ledger.complete:
        blocks = ledger.header.blocks if ledger.header else 0
        complete = sum(ledger.count(state) for state in ("done", "empty", "masked"))
        found = f"{complete} of {blocks} blocks" if blocks else "it was never run"
        raise InputError(
            f"{run.directory} (input.training_runs): stage {stage} is not complete ({found}). "
            f"{_how_to_prepare(run)}"
        )
    return ledger.header.description


def _how_to_prepare(run: Run) -> str:
    return f"Run first: axonloom run {run.directory / 'config.yaml'} --until targets"


def _require_same_scale(run: Run, other: _Prepared) -> None:
    from pipeline.learning.settings import VOXEL_RATIO

    theirs, ours = other.voxel_size_nm, run.voxel_size_nm
    ratios = [max(a / b, b / a) for a, b in zip(theirs, ours, strict=True)]
    if max(ratios) > VOXEL_RATIO:
        raise InputError(
            f"{other.run.directory} (input.training_runs): its voxels are {theirs} nm, those of "
            f"this run {ours} nm (z, y, x), more than a factor of {VOXEL_RATIO} apart; resample "
            "one of the images, or leave that run out"
        )


def _require_same_normalisation(run: Run, other: _Prepared) -> None:
    config = run.config.ingest
    ours = config.low_percentile, config.high_percentile
    if other.percentiles != ours:
        raise InputError(
            f"{other.run.directory} (input.training_runs): its image was normalised by percentiles "
            f"{other.percentiles}, this run's by {ours}; set ingest.low_percentile and "
            "ingest.high_percentile alike and run one of them again"
        )


def _opened(run: Run, artifact: str) -> Volume:
    path = run.path(artifact)
    stamp = (path / "zarr.json").stat()
    return _open(path, stamp.st_mtime_ns, stamp.st_ino)


# Reading the metadata of a volume takes longer than reading a patch of it.
@lru_cache(maxsize=64)
def _open(path: Path, _mtime_ns: int, _inode: int) -> Volume:
    return Volume.open(path)
