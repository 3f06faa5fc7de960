"""Trees and slabs do not show: many levels and many slabs give the files of one step."""

import numpy as np
import pytest
import zarr

import pipeline.stages.id_slabs
from flows.runs import prepare, run_stages
from pipeline.config import parse_config
from pipeline.stages.agglomerate import AGGLOMERATE
from pipeline.stages.collect import COLLECT
from workers.runner import Order

SHAPE = (22, 35, 45)
STAGES = ("fragments", "stitch", "edges", "agglomerate", "collect", "relabel")
RESULTS = ("fragments.zarr", "segments.zarr", "edges", "history", "lookup")


@pytest.fixture(scope="module")
def affinities(tmp_path_factory):
    """Coarse blobs with noise: fragments of every size, some of them through many blocks."""
    rng = np.random.default_rng(0)
    field = rng.integers(0, 256, (3, 6, 9, 12)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    field = field[:, : SHAPE[0], : SHAPE[1], : SHAPE[2]]
    data = np.clip(field + rng.integers(-60, 61, field.shape), 0, 255).astype(np.uint8)
    data[0, :, 10:12, 10:12] = 250  # through all blocks along z
    path = tmp_path_factory.mktemp("affinities") / "affinities.zarr"
    zarr.create_array(path, shape=data.shape, dtype=data.dtype, chunks=(3, 16, 16, 16))[:] = data
    return path


def segment(directory, affinities, block, group, min_voxels=0, order="grid"):
    config = parse_config(
        {
            "run_dir": directory,
            "input": {"affinities": affinities},
            "ingest": {"chunk": [16, 16, 16]},
            "segment": {
                "block": block, "group": group, "low": 0.3, "high": 0.9,
                "thresholds": [0.6, 0.35], "min_voxels": min_voxels,
            },
            "execution": {"kind": "serial"},
        }
    )  # fmt: skip
    run, stages = prepare(config, only=STAGES)
    run_stages(run, stages, order=Order(order, 3))
    return run


def files(run):
    found = {}
    for name in RESULTS:
        for path in sorted((run.directory / name).rglob("*")):
            if path.is_file():
                found[str(path.relative_to(run.directory))] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(affinities, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {n: files(segment(folder / str(n), affinities, SHAPE, SHAPE, n)) for n in (0, 30)}


@pytest.mark.parametrize("min_voxels", [0, 30])
@pytest.mark.parametrize(
    ("block", "group", "slab_planes"),
    [((6, 9, 12), (1, 1, 1), 1), ((5, 35, 45), (1, 1, 1), 3), ((11, 7, 6), (20, 20, 20), 8)],
)
def test_trees_and_slabs_do_not_show(
    affinities, whole, tmp_path, monkeypatch, block, group, slab_planes, min_voxels
):
    voxels = slab_planes * SHAPE[1] * SHAPE[2]
    monkeypatch.setattr(pipeline.stages.id_slabs, "_SLAB_VOXELS", voxels)
    monkeypatch.setattr(pipeline.stages.id_slabs, "_SLAB_PLANES", 1)
    run = segment(tmp_path / "cut", affinities, block, group, min_voxels, "shuffled")
    assert len(AGGLOMERATE.grid(run).rounds) >= 3
    assert len(COLLECT.grid(run)) == 2 * -(-SHAPE[0] // slab_planes) + 2
    found = files(run)
    assert sorted(found) == sorted(whole[min_voxels])
    assert [name for name in found if found[name] != whole[min_voxels][name]] == []


def test_what_moves_up_is_told_level_by_level(affinities, tmp_path):
    run = segment(tmp_path / "cut", affinities, (6, 9, 12), (1, 1, 1))
    rows: dict[int, list[tuple[float, float]]] = {}
    for mark in run.ledger("agglomerate").marks.values():
        if "level" in mark.stats:
            rows.setdefault(int(mark.stats["level"]), []).append(
                (mark.stats["rows"], mark.stats["rows_up"])
            )
    assert sorted(rows) == [0, 1, 2]
    for level in (0, 1):
        handed = sum(up for _, up in rows[level])
        merged = sum(count for count, _ in rows[level + 1])
        assert 0 < merged <= handed < sum(count for count, _ in rows[level])
    assert rows[2][0][1] == 0
