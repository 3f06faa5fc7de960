"""Time and memory of a training step with each loss of a comparison."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.stages.comparison_cells import Cell, finetuning
from pipeline.stages.run import Run
from pipeline.stages.training_volumes import training_regions


def measured_cells(run: Run) -> list[Cell]:
    """The trainings whose steps are measured: one of each loss, with the first seed."""
    config = run.config.comparison
    return [finetuning(run, name, config.seeds[0]) for name in config.losses]


def measure_costs(run: Run) -> dict[str, Any]:
    """Seconds and bytes by loss, each beside the baseline in one process.

    Steps begin with the pretrained network: what topology losses cost depends on the errors of the
    prediction.

    Returns:
        "losses": {name: {"seconds", "baseline_seconds", "ratio", "ratio_low", "ratio_high",
        "peak_bytes", "extra_bytes"}}, see `step_cost.ask`; "extra_bytes" is what the peak is above
        the baseline's. "patch", "batch", "threads".
    """
    config, train = run.config.comparison, run.config.train
    found = {cell.name: _measure(cell, run) for cell in measured_cells(run)}
    base = found[config.baseline]
    # Beside itself it would tell the noise of the measurement.
    base |= dict.fromkeys(("ratio", "ratio_low", "ratio_high"), 1.0)
    for row in found.values():
        row["extra_bytes"] = row["peak_bytes"] - base["peak_bytes"]
    return {"losses": found, **train.model_dump(mode="json", include={"patch", "batch", "threads"})}


def _measure(cell: Cell, run: Run) -> dict[str, float]:
    # torch costs seconds to import: only the process that measures pays.
    from pipeline.learning.loader import load_batches
    from pipeline.learning.sampling import PatchSampler, index_foreground
    from pipeline.learning.step_cost import ask, write_request

    regions = training_regions(run)
    sampler = PatchSampler(
        regions, index_foreground(regions), cell.settings, voxel_size=run.voxel_size_nm
    )
    config = run.config.comparison
    batches = load_batches(sampler, cell.settings, run.config.network, 0, 1)
    try:
        batch = next(batches)
    finally:
        batches.close()
    with tempfile.TemporaryDirectory() as folder:
        write_request(
            Path(folder),
            batch,
            cell.settings,
            run.config.network,
            loss=config.losses[cell.name],
            baseline=config.losses[config.baseline],
            steps=config.cost_steps,
            start=cell.start,
            voxel_size_nm=run.voxel_size_nm,
        )
        return ask(Path(folder))
