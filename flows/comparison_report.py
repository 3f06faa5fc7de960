"""Gathering what a comparison of losses left behind into its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.learning.loss_settings import LossSettings
from pipeline.report.comparison_charts import Curves
from pipeline.report.comparison_page import ComparisonData, render_comparison
from pipeline.report.comparison_pictures import chart_files
from pipeline.stages.comparison import read_results
from pipeline.stages.comparison_table import case_differences
from pipeline.stages.run import Run
from pipeline.storage.atomic import replacing, write_text


def write_comparison_report(run: Run) -> Path:
    """Write comparison/report.html, and its charts as PNG and SVG beside it."""
    folder = run.path("comparison").parent
    data = _data(run)
    path = folder / "report.html"
    write_text(path, render_comparison(data))
    for name, content in chart_files(data):
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return path


def _data(run: Run) -> ComparisonData:
    config, results = run.config.comparison, read_results(run)
    losses = {name: _in_words(loss) for name, loss in config.losses.items()}
    return ComparisonData(
        name=run.config.name,
        when=datetime.now().strftime("%Y-%m-%d %H:%M"),
        table=json.loads(run.path("comparison").read_text()),
        losses=losses,
        facts=list(_facts(run)),
        warnings=list(_warnings(run)),
        gains=case_differences(results, config.baseline),
        curves=_curves(run, results),
        pictures=_pictures(run, results),
        picture_caption=_caption(run),
        pixel_aspect=run.voxel_size_nm[1] / run.voxel_size_nm[2],
        commands={"again": f"axonloom compare-losses {run.directory / 'config.yaml'}"},
    )


def _in_words(loss: LossSettings) -> str:
    """A loss and its parameters, as a configuration would give them."""
    values = {key: value for key, value in loss.model_dump(mode="json").items() if key != "name"}
    told = ", ".join(f"{key} {_value(value)}" for key, value in values.items())
    return f"{loss.name} ({told})" if told else loss.name


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_value(part)}" for key, part in value.items()) + "}"
    return "none" if value is None else str(value)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    config = run.config
    train, network = config.train, config.network
    yield "Image", f"{config.input.image}, {' x '.join(map(str, run.shape))} voxels"
    yield "Trained on", f"voxels {run.train_roi}, targets from {run.target_source}"
    yield "Scored on", f"voxels {run.score_roi}"
    if network.output == "affinities":
        yield "Thresholds chosen on", f"voxels {run.validate_roi}, for each network"
    yield (
        "Network",
        f"{network.dimensions}-D, {network.output}, width {network.width}, levels {network.levels}",
    )
    yield (
        "Steps",
        f"{train.pretrain_steps} of pretraining ({_in_words(train.loss.pretrain)}), "
        f"{train.finetune_steps} of fine-tuning with each loss",
    )


def _warnings(run: Run) -> Iterator[str]:
    if run.train_roi.overlaps(run.score_roi):
        yield (
            "The region that is scored overlaps the one that was learned from: figures say how "
            "well losses learn by heart. Set regions.train and regions.score apart."
        )
    elif run.config.network.output == "affinities" and run.validate_roi.overlaps(run.score_roi):
        yield "Thresholds were chosen on a part of what is scored: set regions.validation apart."
    if len(run.config.comparison.seeds) == 1:
        yield "One seed tells nothing of how much training varies: give comparison.seeds more."


def _curves(run: Run, results: Sequence[dict[str, Any]]) -> Curves:
    """Steps and losses of each loss, (seeds, steps)."""
    curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for name in run.config.comparison.losses:
        logs = [
            _log(run.directory / result["folder"]) for result in results if result["name"] == name
        ]
        length = min((len(log) for log in logs), default=0)
        if length:
            values = np.stack([log[:length] for log in logs])
            curves[name] = np.arange(length, dtype=np.float64), values
    return curves


def _log(folder: Path) -> NDArray[np.float64]:
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return np.array([json.loads(line)["loss"] for line in lines], np.float64)


def _pictures(run: Run, results: Sequence[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """Those of the first seed, of all rows."""
    found: dict[str, NDArray[Any]] = {}
    for result in results:
        path = run.directory / result["pictures"]
        if result["seed"] == run.config.comparison.seeds[0] and path.exists():
            with np.load(path, allow_pickle=False) as held:
                found |= {name: held[name] for name in held.files}
    return found


def _caption(run: Run) -> str:
    seed = run.config.comparison.seeds[0]
    if run.config.network.dimensions == 2:
        return f"One plane of the scored region, seed {seed}."
    return f"A part of the scored region in projection along z, seed {seed}."
