"""Blocks do not show in any file: segmentation as a whole, from affinities on disk to results.

Each volume is segmented in one block, and again in blocks of any shape in any order. The result
files must be the same, byte for byte, and must hold what the slow reference computes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from references import (
    reference_edges,
    reference_fragments,
    reference_merges,
    reference_passing,
    reference_quantised,
    reference_segments,
)
from strategies import any_block_shapes, fractions_near, stored_affinities

from flows.runs import prepare, run_stages
from pipeline.config import parse_config
from pipeline.geometry import Triple
from pipeline.stages import plan
from pipeline.storage.tables import read_meta, read_table
from pipeline.storage.volume import Volume
from workers.runner import Order

RESULTS = ("fragments.zarr", "segments.zarr", "edges", "history", "lookup")
ARTIFACTS = {"fragments", "segments", "edges", "history", "lookup"}


@pytest.fixture(autouse=True, scope="module")
def nothing_waits_for_the_disk() -> Iterator[None]:
    """No test here cuts the power, and flushing takes three quarters of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


def segment(
    out: Path,
    affinities: Path,
    section: dict[str, Any],
    chunk: Triple,
    *,
    order: Order | None = None,
    workers: int = 0,
    slab_voxels: int | None = None,
) -> Path:
    """Run the stages that lead from the affinities to the results, and no others.

    Args:
        out: the run directory.
        affinities: as they lie on disk.
        section: the settings of the segmentation.
        chunk: of the final volumes.
        order: of the blocks.
        workers: processes; 0 is none but this.
        slab_voxels: how tables of the whole volume are cut, which is not to be set by users.
    """
    execution = {"kind": "local", "workers": workers} if workers else {"kind": "serial"}
    config = parse_config(
        {
            "run_dir": out,
            "input": {"affinities": affinities},
            "ingest": {"chunk": chunk},
            "segment": section,
            "execution": execution,
        }
    )
    wanted, names = set(ARTIFACTS), []
    for stage in reversed(plan(config)):
        if wanted & set(stage.writes):
            names.append(stage.name)
            wanted |= {*stage.reads, *stage.optional}
    with pytest.MonkeyPatch.context() as patch:
        if slab_voxels is not None:
            patch.setattr("pipeline.stages.id_slabs._SLAB_VOXELS", slab_voxels)
            patch.setattr("pipeline.stages.id_slabs._SLAB_PLANES", 1)
        run, stages = prepare(config, only=names)
        run_stages(run, stages, order=order)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Every result file, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in RESULTS
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def assert_same_files(found: Path, expected: Path) -> None:
    a, b = contents(found), contents(expected)
    assert {name.split("/")[0] for name in b} == set(RESULTS)
    assert sorted(a) == sorted(b)
    assert [name for name in b if a[name] != b[name]] == []


def save(path: Path, data: NDArray) -> Path:
    zarr.create_array(path, shape=data.shape, dtype=data.dtype)[:] = data
    return path


def rows(path: Path, names: Sequence[str]) -> list[tuple[int, ...]]:
    """The rows of a table, as integers."""
    table = read_table(path)
    assert sorted(table) == sorted(names), path
    return list(zip(*(table[name].tolist() for name in names), strict=True))


def array(path: Path) -> NDArray[np.uint64]:
    volume = Volume.open(path)
    return volume.read(volume.roi)


EDGE = ("u", "v", "affinity_sum", "face_count")
MERGE = ("affinity_sum", "face_count", "key_u", "key_v", "kept", "absorbed")


def assert_results_are_those_of_the_reference(
    out: Path, affinities: NDArray, section: dict[str, Any]
) -> None:
    if affinities.dtype == np.float32:
        affinities = reference_quantised(affinities)
    scale = int(np.iinfo(affinities.dtype).max)
    low, high = (reference_passing(section[name], scale) for name in ("low", "high"))
    labels = reference_fragments(affinities, low, high)
    np.testing.assert_array_equal(array(out / "fragments.zarr"), labels)
    graph = reference_edges(affinities, labels)
    table = [(*pair, *sums) for pair, sums in sorted(graph.items())]
    assert rows(out / "edges" / "edges.arrow", EDGE) == table
    merges = reference_merges(graph, min(section["thresholds"]), scale)
    history = out / "history" / "history.arrow"
    assert rows(history, MERGE) == merges
    assert read_meta(history) == {"threshold": min(section["thresholds"]), "scale": scale}
    found = [
        reference_segments(labels, merges, threshold, scale, section["min_voxels"])
        for threshold in section["thresholds"]
    ]
    for threshold, (segment_of, _) in zip(section["thresholds"], found, strict=True):
        changed = sorted((f, s) for f, s in segment_of.items() if f != s)
        assert rows(out / "lookup" / f"threshold_{threshold!r}.arrow", ("id", "target")) == changed
    segment_of, voxels = found[0]
    assert rows(out / "lookup" / "segments.arrow", ("id", "voxels")) == sorted(voxels.items())
    expected = np.array([segment_of.get(int(label), 0) for label in labels.flat], np.uint64)
    np.testing.assert_array_equal(array(out / "segments.zarr"), expected.reshape(labels.shape))


# --- any volume, any blocks, any order


@st.composite
def sections(draw: st.DrawFn, affinities: NDArray) -> dict[str, Any]:
    """The settings of a segmentation, often thresholds that some affinity just passes."""
    low = draw(fractions_near(affinities, least=1e-3))
    # Often so high that plateaus stay apart: else little is left to agglomerate.
    high = draw(st.just(1.0) | fractions_near(affinities, least=low))
    several = st.lists(fractions_near(affinities), min_size=1, max_size=3, unique=True)
    return {
        "low": low,
        "high": high,
        "thresholds": draw(several),
        "min_voxels": draw(st.sampled_from([0, 2, 3, 5, 0, 8, 1, 1000])),
    }


@pytest.mark.slow
@settings(deadline=None, max_examples=30, derandomize=True, phases=[Phase.generate])
@given(st.data())
def test_no_file_shows_the_blocks(data: st.DataObject) -> None:
    """A failure is not made smaller, which takes minutes; add `Phase.shrink` for that."""
    affinities = data.draw(stored_affinities())
    z, y, x = affinities.shape[1:]
    section = data.draw(sections(affinities))
    chunk = data.draw(st.sampled_from([(64, 64, 64), (2, 3, 4)]))
    cut = {name: data.draw(any_block_shapes((z, y, x))) for name in ("block", "group")}
    slab_voxels = data.draw(st.integers(1, z * y * x))
    seed = data.draw(st.none() | st.integers(0, 2**31))
    order = Order() if seed is None else Order("shuffled", seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = save(folder / "affinities.zarr", affinities)
        whole = segment(folder / "whole", path, section | {"block": (z, y, x)}, chunk)
        blocks = segment(
            folder / "blocks", path, section | cut, chunk, order=order, slab_voxels=slab_voxels
        )
        assert_same_files(blocks, whole)
        assert_results_are_those_of_the_reference(whole, affinities, section)
        merges = len(rows(whole / "history" / "history.arrow", MERGE))
        event(f"merges: {min(merges, 10) // 5 * 5} or more")


# --- volumes made to be hard


def plateaus(shape: Triple, seed: int = 1) -> NDArray[np.uint8]:
    """Cells of two voxels with one of four values each: ties and plateaus across every face."""
    rng = np.random.default_rng(seed)
    cells = rng.choice(np.array([0, 120, 180, 250], np.uint8), (3, *(-(-n // 2) for n in shape)))
    for axis in (1, 2, 3):
        cells = cells.repeat(2, axis)
    return np.ascontiguousarray(cells[(slice(None), *map(slice, shape))])


SECTION = {"low": 0.4, "high": 0.9, "thresholds": (0.6, 0.45), "min_voxels": 3}


def cut_every_way(
    folder: Path, affinities: NDArray, section: dict[str, Any], blocks: Iterable[Triple], **how: Any
) -> None:
    """Segment in one block and in each of `blocks`, and compare them and the reference."""
    path = save(folder / "affinities.zarr", affinities)
    shape = affinities.shape[1:]
    whole = segment(folder / "whole", path, section | {"block": shape}, (64, 64, 64))
    assert_results_are_those_of_the_reference(whole, affinities, section)
    for number, block in enumerate(blocks):
        cut = {"block": block, "group": block}
        out = segment(folder / str(number), path, section | cut, (64, 64, 64), **how)
        assert_same_files(out, whole)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (1, 9, 1), (9, 1, 1), (1, 7, 8)])
def test_volumes_one_voxel_thick(tmp_path: Path, shape: Triple) -> None:
    cut_every_way(tmp_path, plateaus(shape), SECTION, [(1, 1, 1), (1, 2, 3), (4, 4, 4)])


def test_many_blocks_in_a_row(tmp_path: Path) -> None:
    """So many that groups of blocks, and groups of groups, meet at faces."""
    affinities = plateaus((2, 3, 70))
    cut_every_way(tmp_path, affinities, SECTION, [(2, 3, 1), (1, 3, 2)], order=Order("shuffled", 5))


def test_one_segment_through_every_block(tmp_path: Path) -> None:
    affinities = np.full((3, 4, 5, 12), 200, np.uint8)
    section = SECTION | {"min_voxels": 240}
    cut_every_way(tmp_path, affinities, section, [(1, 2, 1), (3, 3, 3)])
    assert np.unique(array(tmp_path / "1" / "segments.zarr")).tolist() == [1]


def test_a_segment_is_dropped_by_its_size_in_the_whole_volume(tmp_path: Path) -> None:
    """Of two rods of 12 and 11 voxels, both in pieces of at most 3, only the longer one stays."""
    affinities = np.zeros((3, 1, 3, 12), np.uint8)
    affinities[2, 0, 0, 1:], affinities[2, 0, 2, 1:11] = 255, 255
    cut_every_way(tmp_path, affinities, SECTION | {"min_voxels": 12}, [(1, 3, 3), (1, 1, 2)])
    for folder in ("whole", "0", "1"):
        segments = array(tmp_path / folder / "segments.zarr")
        assert segments[0, 0].tolist() == [1] * 12
        assert not segments[0, 1:].any()
        fragments = array(tmp_path / folder / "fragments.zarr")
        assert fragments[0, 2].tolist() == [25] * 11 + [0]


@pytest.mark.slow
def test_two_workers_in_any_order(tmp_path: Path) -> None:
    cut_every_way(
        tmp_path, plateaus((6, 7, 18)), SECTION, [(4, 3, 5)], order=Order("shuffled", 2), workers=2
    )
