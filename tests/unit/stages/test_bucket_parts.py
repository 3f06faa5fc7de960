"""Pieces by bucket: what is written block by block is read back segment by segment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.arrays.skeleton_buckets import bucket_of
from pipeline.config import parse_config
from pipeline.errors import DataError
from pipeline.stages import skeleton_buckets
from pipeline.stages.run import Run
from pipeline.stages.skeleton_buckets import (
    Bucket,
    bucket_count,
    bucket_grid,
    index_file,
    write_bucket_index,
    write_by_bucket,
)
from pipeline.storage.ledger import Header, Mark
from pipeline.storage.tables import Columns, part_numbers, read_table

Nodes = tuple[float, ...]
Held = dict[int, tuple[list[Nodes], list[Nodes], list[Nodes]]]
"""By segment: its nodes, its edges as pairs of the nodes' first values, its contacts; sorted."""
PIECES, INDEX = "skeleton_pieces", "skeleton_index"
TOP = 2**64 - 1


def make_run(folder: Path, shape: tuple[int, int, int] = (8, 8, 8)) -> Run:
    """A run of which nothing is there but its volume."""
    zarr.create_array(folder / "labels.zarr", shape=shape, dtype=np.uint64)
    given = {"segments": str(folder / "labels.zarr"), "voxel_size_nm": [100, 100, 100]}
    return Run(folder / "run", parse_config({"run_dir": str(folder / "run"), "input": given}))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


def write_blocks(run: Run, blocks: Sequence[Columns]) -> None:
    """Write each block that has rows, as a stage does, and the index."""
    ledger = run.ledger("skeletonize")
    run.ledger_file("skeletonize").parent.mkdir(parents=True, exist_ok=True)
    ledger.begin(Header("skeletonize", "key", len(blocks), {}))
    ledger.set_ready()
    for number, columns in enumerate(blocks):
        filled = len(columns["segment"]) + len(columns["contact_segment"]) > 0
        if filled:
            write_by_bucket(run.block_file(PIECES, number), columns, run)
        ledger.mark(Mark(number, "done" if filled else "empty"))
    ledger.close()
    write_bucket_index(run, PIECES, "skeletonize", INDEX)


def groups(run: Run) -> Iterator[tuple[int, tuple[int, int], list[Columns]]]:
    """Every group of every bucket: the bucket, its first and last segment, and its rows."""
    for number in range(bucket_count(run)):
        bucket = Bucket.of(run, PIECES, INDEX, number)
        for group, (low, high) in enumerate(bucket.groups):
            yield number, (int(low), int(high)), bucket.read(group)


def gathered(parts: Sequence[Columns]) -> Held:
    """The rows of some parts by segment; a node's first value names it in the whole volume."""
    found: Held = defaultdict(lambda: ([], [], []))
    for part in parts:
        segment, name = part["segment"].tolist(), part["place"][:, 0].tolist()
        for row, node in enumerate(part["place"].tolist()):
            found[segment[row]][0].append((*node, part["radius"][row]))
        for first, second in part["edges"].tolist():
            assert segment[first] == segment[second]
            found[segment[first]][1].append((name[first], name[second]))
        rows = zip(part["contact_segment"].tolist(), part["contact_b"].tolist(), strict=True)
        for owner, other in rows:
            found[owner][2].append((other,))
    return {segment: tuple(sorted(rows) for rows in held) for segment, held in found.items()}


def random_block(rng: np.random.Generator, ids: NDArray[np.uint64], block: int) -> Columns:
    """Nodes of some segments in any order, edges within segments; contacts of any segment."""
    count = int(rng.integers(0, 40)) if len(ids) else 0
    segment = ids[rng.integers(0, len(ids), count)] if count else np.zeros(0, np.uint64)
    name = block * 1000 + np.arange(count)
    pairs = rng.integers(0, count, (3 * count, 2)) if count else np.zeros((0, 2), np.int64)
    pairs = pairs[(segment[pairs[:, 0]] == segment[pairs[:, 1]]) & (pairs[:, 0] != pairs[:, 1])]
    owners = ids[rng.integers(0, len(ids), int(rng.integers(0, 20)))] if len(ids) else ids
    return {
        "segment": segment,
        "place": np.stack([name, rng.random(count), rng.random(count)], axis=1),
        "radius": rng.random(count),
        "edges": pairs.astype(np.int64),
        "contact_segment": owners,
        "contact_b": np.arange(len(owners), dtype=np.int64) + block * 1000,
    }


def stacked(blocks: Sequence[Columns]) -> dict[str, NDArray[Any]]:
    """The rows of some blocks as those of one."""
    starts = np.cumsum([0, *(len(b["segment"]) for b in blocks)])
    edges = [b["edges"] + s for b, s in zip(blocks, starts, strict=False)]
    return {n: np.concatenate([b[n] for b in blocks]) for n in blocks[0]} | {
        "edges": np.concatenate(edges)
    }


@pytest.mark.parametrize("most", [1, 50, 10**9])
@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    st.lists(st.integers(1, TOP), min_size=0, max_size=25, unique=True),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
def test_every_segment_gets_its_rows_back_whatever_the_groups(
    most: int, ids: list[int], blocks: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    made = [random_block(rng, np.array(ids, np.uint64), block) for block in range(blocks)]
    before = [{n: v.copy() for n, v in block.items()} for block in made]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(skeleton_buckets, "GROUP_NODES", most)
        run = make_run(Path(folder))
        write_blocks(run, made)
        found: Held = {}
        for number, (low, high), parts in groups(run):
            held = gathered(parts)
            assert not held.keys() & found.keys()
            assert min(held) == low <= max(held) == high
            buckets = bucket_of(np.array(list(held), np.uint64), bucket_count(run))
            assert set(buckets.tolist()) == {number}
            assert len(held) == 1 or sum(len(n) for n, _, _ in held.values()) <= most
            found |= held
    expected = gathered([stacked(made)])
    assert found == expected
    for block, same in zip(made, before, strict=True):
        assert all((block[n] == same[n]).all() for n in block), "input is not changed"


def simple_block(segment: Sequence[int]) -> Columns:
    """Nodes numbered from 0, each joined to the next of its segment."""
    ids = np.array(segment, np.uint64)
    edges = []
    for label in set(segment):
        rows = np.flatnonzero(ids == np.uint64(label))
        edges += list(zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True))
    count = len(segment)
    return {
        "segment": ids,
        "place": np.stack([np.arange(count, dtype=float)] * 3, axis=1),
        "radius": np.zeros(count),
        "edges": np.array(sorted(edges), np.int64).reshape(-1, 2),
        "contact_segment": np.zeros(0, np.uint64),
        "contact_b": np.zeros(0, np.int64),
    }


def in_bucket(run: Run, wanted: int, count: int) -> list[int]:
    """The first ids that belong to a bucket."""
    ids = np.arange(1, 5000, dtype=np.uint64)
    return [int(i) for i in ids[bucket_of(ids, bucket_count(run)) == wanted][:count]]


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [[0], [1], [2], [3]]),
        (4, [[0], [1], [2, 3]]),
        (5, [[0], [1], [2, 3]]),
        (6, [[0, 1], [2, 3]]),
        (7, [[0, 1], [2, 3]]),
        (9, [[0, 1, 2], [3]]),
        (10, [[0, 1, 2, 3]]),
    ],
)
def test_groups_fill_up_in_the_order_of_ids(
    run: Run, monkeypatch: pytest.MonkeyPatch, most: int, expected: list[list[int]]
) -> None:
    # Segments of 1, 5, 3 and 1 nodes, over two blocks.
    a, b, c, d = in_bucket(run, 7, 4)
    write_blocks(run, [simple_block([d, c, b, b]), simple_block([b, a, c, b, c, b])])
    monkeypatch.setattr(skeleton_buckets, "GROUP_NODES", most)
    bucket = Bucket.of(run, PIECES, INDEX, 7)
    ids = [a, b, c, d]
    ends = [(ids[group[0]], ids[group[-1]]) for group in expected]
    assert [(int(low), int(high)) for low, high in bucket.groups] == ends


def test_rows_keep_their_order_within_a_segment_and_edges_follow_their_nodes(run: Run) -> None:
    """Also of ids that a signed integer, or a float, does not hold."""
    ids = [2**63 + 1, 5, 2**63, TOP]
    order = [0, 1, 0, 2, 3, 1, 0, 3]
    write_blocks(run, [simple_block([ids[i] for i in order])])
    found = {}
    for _, _, parts in groups(run):
        [part] = parts
        for label in np.unique(part["segment"]).tolist():
            rows = part["segment"] == np.uint64(label)
            found[label] = part["place"][rows, 0].tolist()
            names = part["place"][:, 0][part["edges"]]
            mine = names[rows[part["edges"][:, 0]]].tolist()
            assert mine == [list(p) for p in zip(found[label], found[label][1:], strict=False)]
    assert found == {ids[0]: [0, 2, 6], 5: [1, 5], 2**63: [3], TOP: [4, 7]}


def test_parts_of_other_groups_are_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = in_bucket(run, 3, 2)
    write_blocks(run, [simple_block([a, a]), simple_block([b]), simple_block([b, a])])
    monkeypatch.setattr(skeleton_buckets, "GROUP_NODES", 1)
    bucket = Bucket.of(run, PIECES, INDEX, 3)
    assert [len(bucket.read(group)) for group in range(len(bucket.groups))] == [2, 2]
    assert bucket.paths == [run.block_file(PIECES, i) for i in range(3)]


def test_the_index_names_the_files_that_hold_a_part(run: Run) -> None:
    a, b = in_bucket(run, 2, 1) + in_bucket(run, 9, 1)
    write_blocks(
        run, [simple_block([a]), simple_block([]), simple_block([b, a]), simple_block([b])]
    )
    stored = read_table(index_file(run, INDEX))
    pairs = list(zip(stored["bucket"].tolist(), stored["file"].tolist(), strict=True))
    assert pairs == [(2, 0), (2, 2), (9, 2), (9, 3)]
    assert part_numbers(run.block_file(PIECES, 2)) == [2, 9]
    assert not run.block_file(PIECES, 1).exists()
    assert Bucket.of(run, PIECES, INDEX, 5).groups == []
    assert Bucket.of(run, PIECES, INDEX, 5).paths == []


def test_without_any_rows_no_bucket_holds_any(run: Run) -> None:
    write_blocks(run, [simple_block([]), simple_block([])])
    assert len(read_table(index_file(run, INDEX))["file"]) == 0
    assert list(groups(run)) == []


def test_a_lost_index_or_file_is_an_error(run: Run) -> None:
    [a] = in_bucket(run, 2, 1)
    write_blocks(run, [simple_block([a])])
    run.block_file(PIECES, 0).unlink()
    with pytest.raises(DataError, match=r"000000000\.arrow: missing or damaged"):
        Bucket.of(run, PIECES, INDEX, 2)
    index_file(run, INDEX).unlink()
    with pytest.raises(DataError, match=r"index\.arrow: missing or damaged"):
        Bucket.of(run, PIECES, INDEX, 2)


def test_a_new_index_is_read_anew(run: Run) -> None:
    [a] = in_bucket(run, 2, 1)
    write_blocks(run, [simple_block([a])])
    assert len(Bucket.of(run, PIECES, INDEX, 2).paths) == 1
    write_blocks(run, [simple_block([a]), simple_block([a])])
    assert len(Bucket.of(run, PIECES, INDEX, 2).paths) == 2


def test_equal_rows_give_equal_bytes(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    block = random_block(rng, np.arange(1, 9, dtype=np.uint64), 0)
    shown = []
    for name in ("one", "other"):
        write_by_bucket(tmp_path / name, block, run)
        shown.append((tmp_path / name).read_bytes())
        # What lies elsewhere in memory is the same table.
        block = {n: np.asfortranarray(v) for n, v in block.items()}
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((1, 1, 1), 16),
        ((2048, 2048, 2048), 16),
        ((2048, 2048, 2049), 32),
        ((2**14, 2**14, 2**14), 4096),
        ((2**17, 2**15, 2**15), 4096),
    ],
)
def test_the_number_of_buckets_follows_the_volume(
    run: Run, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], count: int
) -> None:
    monkeypatch.setattr(Run, "shape", property(lambda _: shape))
    assert bucket_count(run) == count
    assert len(bucket_grid(run)) == count
