"""What `axonloom skeletonize` says of its skeletons: on the terminal, and in its report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flows.launch import tell_skeletons
from flows.report import write_report
from flows.runs import prepare, run_stages
from flows.skeleton_facts import skeleton_facts
from pipeline.config import parse_config
from pipeline.report.quantities import MISSING
from pipeline.stages.run import Run
from pipeline.stages.skeleton_join import skeleton_rows, stage_sums

SHAPE = (24, 40, 48)


def labels() -> np.ndarray:
    """Two rods along x (one with a side branch), one cut into fragments, and a crumb."""
    found = np.zeros(SHAPE, np.uint64)
    found[5:8, 5:8, 2:46] = 3
    found[5:8, 8:30, 20:23] = 3
    found[15:18, 5:8, 2:24] = 7
    found[15:18, 5:8, 24:46] = 8
    found[20, 35, 10:12] = 9
    return found


def made(
    folder: Path, volume: np.ndarray, section: dict[str, Any] | None = None, **method: Any
) -> Run:
    zarr.create_array(folder / "labels.zarr", shape=volume.shape, dtype=volume.dtype)[:] = volume
    values = {
        "run_dir": folder / "run",
        "input": {"segments": folder / "labels.zarr", "voxel_size_nm": [100, 100, 100]},
        "skeletonize": {"block": [24, 40, 16], "method": method, **(section or {})},
        "execution": {"kind": "serial"},
    }
    run, stages = prepare(parse_config(values))
    run_stages(run, stages)
    return run


def lookup(folder: Path, *rows: str) -> Path:
    path = folder / "lookup.csv"
    path.write_text("\n".join(("fragment,segment", *rows)))
    return path


def test_figures_are_those_of_the_table_and_of_the_ledgers(tmp_path):
    run = made(tmp_path, labels())
    facts, rows = skeleton_facts(run), skeleton_rows(run)
    assert len(facts.cable_nm) == 4
    assert (facts.branch_points, facts.components, facts.loops) == (1, 4, 0)
    assert facts.tips == rows["tips"].sum()
    assert [row.id for row in facts.longest] == [3, 7, 8, 9]
    assert facts.longest[0].cable_nm == rows["cable_nm"][0]
    assert facts.longest[0].largest_radius_nm == rows["largest_radius_nm"][0] > 0
    # Blocks end at x 16 and 32. Rods in 3 + 2 + 2 blocks (the branch lies within one), a crumb.
    assert facts.traced["components"] == 8
    # Two shared planes cut rod 3, one each 7 and 8.
    assert facts.joined["welded"] == 4
    assert facts.joined["cable_out_nm"] >= np.sum(facts.cable_nm) > 0
    assert facts.fused is None
    assert (facts.warnings, facts.notes) == ([], [])


def test_what_was_limited_or_left_out_is_counted(tmp_path):
    volume = labels()
    volume[2:22, 12:38, 34:46] = 5
    run = made(tmp_path, volume, min_voxels=5)
    facts = skeleton_facts(run)
    [limited] = facts.warnings
    assert limited.startswith("1 component fills more than 25 % of the block")
    assert facts.notes == ["1 component has less than 5 voxels (min_voxels) and no skeleton."]
    page = write_report(run, scope="skeletons").read_text()
    assert limited in page
    assert facts.notes[0] in page


def test_fragments_that_a_lookup_lacks_are_counted(tmp_path):
    named = lookup(tmp_path, "7,70", "8,70")
    facts = skeleton_facts(made(tmp_path, labels(), {"lookup": named}))
    [kept] = facts.warnings
    assert kept.startswith(f"2 segments are fragments that the lookup {named} lacks")
    assert [row.id for row in facts.longest] == [3, 70, 9]


def test_those_that_become_background_did_not_keep_their_id(tmp_path):
    named = lookup(tmp_path, "7,70", "8,70")
    facts = skeleton_facts(made(tmp_path, labels(), {"lookup": named, "lookup_missing": "zero"}))
    assert facts.warnings == []
    assert [row.id for row in facts.longest] == [70]


def test_fragments_that_were_fused_are_told_apart_from_those_joined(tmp_path):
    named = lookup(tmp_path, "7,70", "8,70", "3,3", "9,9")
    run = made(tmp_path, labels(), {"lookup": named, "level": "fragments"})
    facts = skeleton_facts(run)
    assert facts.joined["welded"] == 4
    assert facts.fused is not None
    assert (facts.fused["joints"], facts.fused["fragments"], facts.fused["segments"]) == (1, 4, 3)
    assert facts.components == 3
    page = write_report(run, scope="skeletons").read_text()
    assert "Fusing fragments by the lookup" in page


def test_the_longest_tie_is_the_longest_of_all_buckets(tmp_path):
    volume = labels()
    volume[5:8, 5:8, 34:46] = 10
    named = lookup(tmp_path, "7,70", "8,70", "3,3", "10,3", "9,9")
    run = made(tmp_path, volume, {"lookup": named, "level": "fragments"})
    marks = [m.stats for m in run.ledger("fuse").marks.values() if m.state == "done"]
    assert sum(m["longest_joint_nm"] > 0 for m in marks) == 2
    found = stage_sums(run, "fuse")
    assert found["longest_joint_nm"] == max(m["longest_joint_nm"] for m in marks) > 0
    assert found["fragments"] == sum(m["fragments"] for m in marks) == 5
    assert stage_sums(run, "none") == {}


def test_nodes_without_a_cross_section_are_counted(tmp_path):
    volume = np.zeros((24, 40, 48), np.uint64)
    volume[0:3, 10:13] = 4  # at the border of the volume: what is outside is not known
    facts = skeleton_facts(made(tmp_path, volume, {"cross_sections": True}))
    [unknown] = facts.warnings
    assert re.match(r"\d+ nodes have no cross-section", unknown)


def test_loops_are_opened_in_swc(tmp_path):
    volume = np.zeros((24, 40, 48), np.uint64)
    volume[10:13, 4:36, 4:44] = 6
    volume[10:13, 7:33, 7:41] = 0
    facts = skeleton_facts(made(tmp_path, volume))
    assert facts.loops == 1
    [opened] = facts.notes
    assert opened.startswith("1 loop is opened in the SWC files")


def test_an_empty_segmentation_has_a_report_that_says_so(tmp_path, capsys):
    run = made(tmp_path, np.zeros(SHAPE, np.uint64))
    tell_skeletons(run.directory)
    told = capsys.readouterr().out
    assert "warning No segment has a skeleton" in told
    assert "No segment has a skeleton" in (run.directory / "report.html").read_text()


def test_the_terminal_tells_figures_report_and_viewer(tmp_path, capsys):
    run = made(tmp_path, labels())
    tell_skeletons(run.directory)
    told = capsys.readouterr().out
    cells = dict(re.findall(r"│ ([a-z ]+?) +│ +(\S+(?: \S+)?) │", told))
    assert cells["segments"] == "4"
    assert cells["branch points"] == "1"
    assert cells["seams joined"] == "4"
    assert cells["ticks removed"] == f"{stage_sums(run, 'join')['ticks_removed']:.0f}"
    assert cells["cable"].endswith("µm")
    assert {"tips", "components", "loops", "gaps joined", "dust removed"} <= set(cells)
    assert {"cable of the pieces", "cable joined"} <= set(cells)
    assert f"report  {run.directory / 'report.html'}" in told
    assert f"viewer  axonloom view {run.directory}" in told
    assert "warning" not in told
    page = (run.directory / "report.html").read_text()
    assert "l-skeletons-0" in page
    assert "l-segments-0" in page
    assert 'id="training"' not in page
    assert "segments.parquet" in page


def test_a_whole_run_has_the_section_too(tmp_path):
    page = write_report(made(tmp_path, labels())).read_text()
    assert "4 segments have a skeleton" in page
    assert 'id="training"' in page


@pytest.mark.parametrize("stage", ["join", "skeleton_files"])
def test_buckets_have_no_voxels_per_second(tmp_path, stage):
    page = write_report(made(tmp_path, labels()), scope="skeletons").read_text()
    [row] = re.findall(rf'<tr><td class="label">{stage}</td>.*?</tr>', page, re.DOTALL)
    assert row.endswith(f'<td class="n">{MISSING}</td></tr>')
