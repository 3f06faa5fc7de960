"""Labels at nodes: which chunks are read, and what becomes of nodes outside the volume."""

import json

import numpy as np
import pytest
import zarr

from flows.runs import begin, run_stages
from pipeline.arrays.metrics import labels_at_nodes
from pipeline.config import parse_config
from pipeline.errors import InputError
from pipeline.stages import plan
from pipeline.stages.evaluate import NODE_LABELS
from pipeline.stages.node_labels import by_tracing, gather_node_labels
from pipeline.stages.truth import located_truth, scored_nodes, scored_truth
from pipeline.storage.volume import Volume

SHAPE = (20, 30, 40)
CHUNKS = (8, 8, 8)


def a_tracing(places):
    rows = [f"{i} 2 {x} {y} {z} 1 {i - 1 or -1}" for i, (z, y, x) in enumerate(places, start=1)]
    return "\n".join(rows) + "\n"


# The second leaves the volume and comes back, the third never enters it.
SWC = {
    "a": a_tracing([(3.5, 3.5, x) for x in range(1, 40, 2)]),
    "b": a_tracing([(z, 17, 21.5) for z in (*range(15, 24), *range(19, 2, -1))]),
    "c": a_tracing([(3, 3, x) for x in (55, 56, 57)]),
}


@pytest.fixture
def volume(tmp_path):
    labels = np.random.default_rng(4).integers(0, 2**63, SHAPE).astype(np.uint64)
    zarr.create_array(tmp_path / "s.zarr", shape=SHAPE, chunks=CHUNKS, dtype="u8")[:] = labels
    (tmp_path / "swc").mkdir()
    for name, text in SWC.items():
        (tmp_path / "swc" / f"{name}.swc").write_text(text)
    return labels


@pytest.fixture
def reads(monkeypatch):
    found = []
    plain = Volume.read

    def read(volume, roi):
        found.append(roi)
        return plain(volume, roi)

    monkeypatch.setattr(Volume, "read", read)
    return found


def scored(folder, out, rule="zero", **sections):
    config = parse_config(
        {
            "run_dir": folder / out,
            "input": {
                "segments": folder / "s.zarr",
                "skeletons": folder / "swc",
                "voxel_size_nm": (1000.0, 400.0, 200.0),
            },
            "evaluate": {"out_of_bounds": rule, "block": [16, 16, 16], "curves": False},
            "execution": {"kind": "serial"},
            **sections,
        }
    )
    stages = [s for s in plan(config) if s.name in ("node_labels", "evaluate")]
    run = begin(config, stages, replace_output=True)
    run_stages(run, stages)
    return run


def node_chunks(truth):
    voxels = np.concatenate([np.floor(s.nodes).astype(int) for s in truth])
    voxels = voxels[(voxels < SHAPE).all(axis=1)]
    return set(map(tuple, (voxels // CHUNKS).tolist()))


@pytest.mark.parametrize("threads", ["1", "3"])
def test_each_chunk_with_nodes_is_read_once(volume, tmp_path, reads, monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    run = scored(tmp_path, "out")
    chunks = [tuple(o // c for o, c in zip(r.offset, CHUNKS, strict=True)) for r in reads]
    assert len(chunks) == len(set(chunks))
    assert set(chunks) == node_chunks(run.truth())
    assert all(r.shape == (min(8, 20 - r.offset[0]), min(8, 30 - r.offset[1]), 8) for r in reads)
    expected = [labels_at_nodes(s, volume)[0].tolist() for s in run.truth()]
    found = by_tracing(gather_node_labels("node_labels", run), run)
    assert [part.tolist() for part in found] == expected


def test_another_rule_for_nodes_outside_reads_nothing(volume, tmp_path, reads):
    run = scored(tmp_path, "out", "zero")
    tables = {p: p.read_bytes() for p in run.path("node_labels").rglob("*.arrow")}
    zero = run.path("metrics").read_text()
    assert scored_nodes(run) is None
    assert [len(s.nodes) for s in scored_truth(run)] == [20, 26, 3]
    reads.clear()
    run = scored(tmp_path, "out", "drop")
    assert not reads
    assert {p: p.read_bytes() for p in run.path("node_labels").rglob("*.arrow")} == tables
    assert [len(s.nodes) for s in located_truth(run)] == [20, 26, 3]
    assert [len(s.nodes) for s in scored_truth(run)] == [20, 22, 0][:2]
    expected = [labels_at_nodes(s, volume) for s in scored_truth(run)]
    assert all(inside.all() for _, inside in expected)
    found = by_tracing(gather_node_labels("node_labels", run), run)
    assert [part.tolist() for part in found] == [labels.tolist() for labels, _ in expected]
    dropped = json.loads(run.path("metrics").read_text())
    assert dropped["left_out"] == ["c"]
    assert dropped["overall"]["out_of_bounds_nodes"] == 4 + 3
    fresh = scored(tmp_path, "fresh", "drop")
    assert fresh.path("metrics").read_text() == run.path("metrics").read_text() != zero
    reads.clear()
    back = scored(tmp_path, "out", "zero")
    assert not reads
    assert back.path("metrics").read_text() == zero
    with pytest.raises(InputError, match=r"swc: 4 nodes of b lie outside the volume"):
        scored(tmp_path, "out", "raise")


def test_in_a_region_to_score_the_rule_has_nothing_to_decide(volume, tmp_path, reads):
    region = {"regions": {"score": {"begin": [0, 0, 0], "end": [20, 30, 9]}}}
    run = scored(tmp_path, "out", "raise", **region)
    assert scored_nodes(run) is None
    assert [s.name for s in located_truth(run)] == ["a"]
    assert [len(s.nodes) for s in scored_truth(run)] == [4]
    expected = labels_at_nodes(scored_truth(run)[0], volume)[0]
    assert gather_node_labels("node_labels", run).tolist() == expected.tolist()
    reads.clear()
    assert scored(tmp_path, "out", "drop", **region).path("metrics").exists()
    assert not reads


def test_the_key_of_the_labels_leaves_the_rule_out(volume, tmp_path):
    run = scored(tmp_path, "out", "drop")
    assert "out_of_bounds" not in NODE_LABELS.parameters(run)
    assert set(NODE_LABELS.parameters(run)) == {"region", "swc", "voxel_size_nm"}
