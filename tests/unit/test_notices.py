"""Warnings of a run: told as soon as they are known, and in its report."""

import io

import numpy as np
import pytest
import zarr
from rich.console import Console

from flows.notices import notices, telling
from flows.runs import prepare, run_stages
from pipeline.config import parse_config
from pipeline.report.facts import ReportData, StageFacts
from pipeline.report.next_steps import next_steps
from pipeline.report.page import render_report
from pipeline.stages.run import Run

WARNING = "Only 0% of the tracings' nodes lie on bright voxels; with flip: [y] 100% would"
STAGES = ("ingest", "statistics", "pyramid", "placement")


def a_run(folder, **swc):
    image = np.random.default_rng(0).integers(90, 110, (20, 30, 40)).astype(np.uint16)
    image[3:8, 3:8] = 500
    if not (folder / "image.zarr").exists():
        zarr.create_array(folder / "image.zarr", shape=image.shape, dtype=image.dtype)[:] = image
        rows = [f"{i + 1} 2 {i + 0.5} 24.5 5.5 1 {i or -1}" for i in range(40)]
        (folder / "rod.swc").write_text("\n".join(rows))
    config = parse_config(
        {
            "run_dir": folder / "run",
            "input": {
                "image": folder / "image.zarr",
                "skeletons": folder / "rod.swc",
                "voxel_size_nm": [4, 4, 4],
                "swc": swc,
            },
            "execution": {"kind": "serial"},
        }
    )
    return prepare(config, only=STAGES)


def printed(run, stages):
    """What is told, with the stages that were begun when it was."""
    console = Console(file=io.StringIO(), width=60)
    seen = []

    def observe(stage, _report):
        seen.append(stage.name)

    run_stages(run, stages, observe=telling(run, console, observe))
    assert set(seen) == set(STAGES)
    return console.file.getvalue()


def test_a_wrong_flip_is_told_once_and_again_by_a_run_that_resumes(tmp_path):
    run, stages = a_run(tmp_path)
    assert notices(run) == []
    for _ in range(2):
        text = printed(run, stages)
        assert text.startswith(f"warning {WARNING}")
        assert text.count("warning") == 1
        assert text.count("[y]") == 1
    [told] = notices(run)
    assert told.startswith(WARNING)
    assert told.endswith(".")


def test_nothing_is_told_where_all_is_well(tmp_path):
    """Also after an earlier configuration that was wrong."""
    run_stages(*a_run(tmp_path))
    run, stages = a_run(tmp_path, flip=["y"])
    assert printed(run, stages) == ""
    assert notices(run) == []


def test_warnings_are_the_first_steps_of_a_report():
    data = ReportData(
        name="r", stages=[StageFacts("predict", 5, failed=1)], warnings=["Axes <look> wrong."]
    )
    first, *others = next_steps(data)
    assert (first.text, first.urgent) == ("Axes <look> wrong.", True)
    assert others
    page = render_report(data)
    assert "Axes &lt;look&gt; wrong." in page


@pytest.mark.parametrize("given", [{}, {"affinities": "a.zarr"}])
def test_runs_without_tracings_have_nothing_to_say(tmp_path, given):
    a_run(tmp_path)
    values = {"input": {"image": tmp_path / "image.zarr", "voxel_size_nm": [4, 4, 4], **given}}
    assert notices(Run(tmp_path / "run", parse_config(values))) == []
