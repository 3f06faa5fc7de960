"""SWC files as they are written: their bytes, the order of their rows, refusals."""

from __future__ import annotations

import os
import tempfile
from heapq import heapify, heappop, heappush
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError
from pipeline.storage import swc_writer
from pipeline.storage.swc_writer import write_swc

VOXEL = (1000.0, 500.0, 100.0)


def forest(seed: int, count: int) -> Skeleton:
    """Edges (child, parent), parents first, some roots."""
    rng = np.random.default_rng(seed)
    parent = np.array(
        [-1] + [-1 if rng.random() < 0.1 else rng.integers(i) for i in range(1, count)]
    )
    child = np.flatnonzero(parent >= 0)
    return Skeleton(
        f"f{seed}",
        np.where(rng.random((count, 3)) < 0.3, rng.integers(0, 9999, (count, 3)), 0)
        + rng.normal(0, 1e4, (count, 3)) * (rng.random((count, 3)) < 0.7),
        np.stack([child, parent[child]], axis=1),
        rng.uniform(0, 900, count),
        rng.integers(0, 7, count),
    )


def test_written_rows(tmp_path: Path):
    """Edges in any direction; the root is the first node that is nobody's child."""
    nodes = [[3, 2, 1], [3, 2, 2.5], [0, 0, -0.0], [3, 2, 4]]
    skeleton = Skeleton("s", nodes, [[0, 1], [3, 0]], [100, 200, np.nan, 400], [1, 2, 3, 4])
    path = tmp_path / "s.swc"
    write_swc(path, skeleton, voxel_size_nm=(1000, 500, 100), header=["segment 7", "threshold 0.5"])
    assert path.read_text().splitlines() == [
        "# segment 7",
        "# threshold 0.5",
        "# coordinates and radii in um",
        "# id type x y z radius parent",
        "1 2 0.25 1.0 3.0 0.2 -1",
        "2 1 0.1 1.0 3.0 0.1 1",
        "3 3 0.0 0.0 0.0 0.0 -1",
        "4 4 0.4 1.0 3.0 0.4 2",
    ]
    before = path.read_bytes()
    write_swc(path, skeleton, voxel_size_nm=(1000, 500, 100), header=["segment 7", "threshold 0.5"])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.swc"]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(2, 30))
def test_parents_come_first_and_every_tree_has_one_root(seed: int, count: int):
    rng = np.random.default_rng(seed)
    plain = forest(seed % 1000, count)
    new = rng.permutation(count)
    edges = np.array([rng.permutation(e) for e in new[plain.edges]]).reshape(-1, 2)
    skeleton = Skeleton("s", plain.nodes[np.argsort(new)], edges)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.swc"
        write_swc(path, skeleton, voxel_size_nm=(1, 1, 1), unit="voxel")
        text = path.read_text()
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert [int(r[0]) for r in rows] == list(range(1, count + 1))
    assert all(int(r[6]) == -1 or 1 <= int(r[6]) < int(r[0]) for r in rows)
    assert sum(int(r[6]) == -1 for r in rows) == count - len(edges)
    points = [tuple(map(float, r[4:1:-1])) for r in rows]
    joined = {
        frozenset((points[i], points[int(r[6]) - 1])) for i, r in enumerate(rows) if r[6] != "-1"
    }
    where = [tuple(p) for p in skeleton.nodes.tolist()]
    assert joined == {frozenset((where[a], where[b])) for a, b in edges.tolist()}


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "s.swc"
    path.write_text("old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_swc(path, forest(1, 5), voxel_size_nm=VOXEL)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["s.swc"]


def test_what_cannot_be_written_is_refused(tmp_path: Path):
    path, nodes = tmp_path / "s.swc", np.zeros((2, 3))
    with pytest.raises(InputError, match="cycle"):
        write_swc(path, Skeleton("s", nodes, [[0, 1], [1, 0]]), voxel_size_nm=VOXEL)
    with pytest.raises(InputError, match="finite"):
        write_swc(path, Skeleton("s", nodes + np.inf, [[0, 1]]), voxel_size_nm=VOXEL)
    with pytest.raises(InputError, match="no nodes"):
        write_swc(path, Skeleton("s", nodes[:0], []), voxel_size_nm=VOXEL)
    with pytest.raises(InputError, match="OFFSET"):
        write_swc(path, forest(1, 3), voxel_size_nm=VOXEL, header=["a\n OFFSET 1 2 3"])
    with pytest.raises(InputError, match="does not exist"):
        write_swc(tmp_path / "no" / "s.swc", forest(1, 3), voxel_size_nm=VOXEL)
    assert not os.listdir(tmp_path)


def plain_rows(skeleton: Skeleton, scale: list[float], radius_nm: float) -> list[str]:
    """Rows by Python's own heap and `repr`."""
    neighbours: list[set[int]] = [set() for _ in skeleton.nodes]
    for a, b in skeleton.edges.tolist():
        neighbours[a].add(b)
        neighbours[b].add(a)
    children = set(skeleton.edges[:, 0].tolist())
    heap: list[int] = []
    seen: set[int] = set()
    for root in range(len(skeleton.nodes)):
        if root in children or root in seen:
            continue
        heap.append(root)
        tree = [root]
        while tree:
            node = tree.pop()
            seen.add(node)
            tree += neighbours[node] - seen
    heapify(heap)
    parent, number, rows = dict.fromkeys(heap, -1), {-1: -1}, []
    while heap:
        node = heappop(heap)
        number[node] = len(rows) + 1
        place = [float(v) for v in (skeleton.nodes[node, ::-1] + 0.0) * scale]
        radius = float(np.nan_to_num(skeleton.radii_nm[node], nan=0.0) / radius_nm)
        x, y, z = place
        kind = int(skeleton.types[node])
        rows.append(f"{number[node]} {kind} {x!r} {y!r} {z!r} {radius!r} {number[parent[node]]}")
        for other in sorted(neighbours[node] - {parent[node]}):
            parent[other] = node
            heappush(heap, other)
    return rows


ODD = [0.0, -0.0, 1.0, -5.0, 1e-5, -3e-7, 1e-4, 0.1, 1 / 3, 99999.5, 12345.678, 5e-324]
LARGE = [1e9, 1e10, 123456789.125, 37259607275.49705, 1e15, 1e16, 2.0**53, 1.5e300, -1e22]


@pytest.mark.parametrize("rows", [1, 7, 1 << 16])
def test_the_bytes_are_those_of_repr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int):
    monkeypatch.setattr(swc_writer, "_ROWS", rows)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        plain = forest(seed, 40)
        new = rng.permutation(40)
        edges = np.array([rng.permutation(e) if seed % 2 else e for e in new[plain.edges]])
        nodes = rng.choice(ODD + LARGE if seed % 3 else [3.0, -7.0, 0.0], (40, 3))
        radii = rng.choice([np.nan, 0.0, -0.0, np.inf, 250.0, 1e-9, -5.0, 33.3], 40)
        skeleton = Skeleton("s", nodes, edges, radii, rng.integers(-3, 20, 40))
        write_swc(tmp_path / "s.swc", skeleton, voxel_size_nm=VOXEL, unit="voxel")
        found = (tmp_path / "s.swc").read_text().splitlines()
        assert found[2:] == plain_rows(skeleton, [1.0, 1.0, 1.0], VOXEL[2])


def test_views_and_odd_types_are_taken(tmp_path: Path):
    nodes = np.arange(60, dtype=np.float32).reshape(10, 6)[::2, ::2]
    edges = np.array([[1, 0], [2, 1], [4, 3]], np.int32)[:, ::-1][:, ::-1]
    write_swc(tmp_path / "a.swc", Skeleton("s", nodes, edges), voxel_size_nm=VOXEL, unit="nm")
    same = Skeleton("s", np.array(nodes, np.float64), np.array(edges, np.int64))
    write_swc(tmp_path / "b.swc", same, voxel_size_nm=VOXEL, unit="nm")
    assert (tmp_path / "a.swc").read_bytes() == (tmp_path / "b.swc").read_bytes()
