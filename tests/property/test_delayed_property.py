"""Groups do not show: delayed agglomeration over any tree against slow references and the whole."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from references import reference_merges
from strategies import edge_tables

from pipeline.arrays.agglomerate import (
    MergeHistory,
    agglomerate,
    fragment_to_segment,
    merge_histories,
)
from pipeline.arrays.delayed import (
    RegionGraph,
    add_graphs,
    agglomerate_group,
    compose_lookup,
)
from pipeline.arrays.edges import EdgeTable, sum_edges
from pipeline.arrays.labels import SparseMap

QUICK = settings(deadline=None, max_examples=100, derandomize=True)
LEVELS = [0.0, 0.2, 0.5, 0.8]
Rows = dict[tuple[int, int], tuple[int, int, tuple[int, int]]]  # pair: (sum, count, key)


# --- Reference of one group: dictionaries, straight from the definition


def add_rows(rows: list[tuple[tuple[int, int], tuple[int, int, tuple[int, int]]]]) -> Rows:
    added: Rows = {}
    for pair, (total, count, key) in rows:
        s, c, k = added.get(pair, (0, 0, key))
        added[pair] = (s + total, c + count, min(k, key))
    return added


def reference_group(
    rows: Rows, frozen: set[int], threshold: float, scale: int
) -> tuple[list[tuple[int, ...]], Rows]:
    """((sum, count, key_u, key_v, kept, absorbed) in the order of the merges, residual)."""
    rows, frozen, merges = dict(rows), set(frozen), []
    while True:
        open_rows = [
            pair
            for pair, (s, c, _) in rows.items()
            if s / c / scale >= threshold and not frozen.issuperset(pair)
        ]
        if not open_rows:
            return merges, {pair: row for pair, row in rows.items() if frozen.issuperset(pair)}
        best = min(open_rows, key=lambda p: (-Fraction(rows[p][0], rows[p][1]), rows[p][2]))
        if frozen.intersection(best):
            frozen.update(best)
            continue
        kept, absorbed = best
        total, count, key = rows.pop(best)
        merges.append((total, count, *key, kept, absorbed))
        renamed = [
            (tuple(sorted(kept if end == absorbed else end for end in pair)), row)
            for pair, row in rows.items()
        ]
        rows = add_rows(renamed)


def rows_of(graph: RegionGraph) -> Rows:
    names = ("u", "v", "affinity_sum", "face_count", "key_u", "key_v")
    columns = zip(*(getattr(graph, name).tolist() for name in names), strict=True)
    return {(u, v): (s, c, (a, b)) for u, v, s, c, a, b in columns}


def graph_of(rows: Rows) -> RegionGraph:
    flat = [(*pair, s, c, *key) for pair, (s, c, key) in sorted(rows.items())]
    return RegionGraph(*np.array(flat, np.uint64).reshape(-1, 6).T)


def merges_of(history: MergeHistory) -> list[tuple[int, ...]]:
    columns = ("affinity_sum", "face_count", "key_u", "key_v", "kept", "absorbed")
    return list(zip(*(getattr(history, name).tolist() for name in columns), strict=True))


def lookup_of(lookup: SparseMap) -> dict[int, int]:
    return dict(zip(*(column.tolist() for column in lookup), strict=True))


# --- Random graphs, and trees of groups over them


def widened(rng: np.random.Generator, table: EdgeTable, scale: int) -> EdgeTable:
    """The same scores but for a hair: products need 128 bits, sums stay exact as float64."""
    factor = np.uint64(2**33 // (scale + 1))
    count = table.face_count * factor + rng.integers(0, 2, len(table), np.uint64)
    total = table.affinity_sum * factor + rng.integers(0, 2, len(table), np.uint64)
    most = count * np.uint64(scale)
    return EdgeTable(table.u, table.v, np.minimum(total, most), count)


@st.composite
def lattices(draw: st.DrawFn, scale: int) -> tuple[EdgeTable, dict[int, int]]:
    """A strip of fragments, neighbours joined, and the place of each along the strip.

    Scores are plateaus of few values, or free; ids do not follow the places.
    """
    long, wide = draw(st.integers(2, 12)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1, 10, 2**57]))
    ids = np.uint64(1) + (rng.permutation(long * wide).astype(np.uint64) * np.uint64(spread))
    at = ids.reshape(long, wide)
    steps = [(at[1:], at[:-1]), (at[:, 1:], at[:, :-1]), (at[1:, 1:], at[:-1, :-1])]
    a, b = (np.concatenate([step[k].ravel() for step in steps]) for k in (0, 1))
    some = rng.random(len(a)) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    a, b = a[some], b[some]
    count = rng.integers(1, draw(st.sampled_from([2, 4, 50])), len(a)).astype(np.uint64)
    levels = rng.integers(0, scale + 1, draw(st.integers(1, 5))).astype(np.uint64)
    total = count * levels[np.sort(rng.integers(0, len(levels), len(a)))]
    if draw(st.booleans()):
        total = rng.integers(0, count * np.uint64(scale) + np.uint64(1), dtype=np.uint64)
    table = EdgeTable(np.minimum(a, b), np.maximum(a, b), total, count)
    if draw(st.booleans()):
        table = widened(rng, table, scale)
    return table, {int(i): place for place, row in enumerate(at) for i in row}


def split_row(
    rng: np.random.Generator, total: int, count: int, scale: int
) -> list[tuple[int, int]]:
    """One contact in one or two parts, each with a mean in [0, scale]."""
    if count < 2 or rng.random() < 0.6:
        return [(total, count)]
    part = int(rng.integers(1, count))
    least, most = max(0, total - scale * (count - part)), min(total, scale * part)
    here = int(rng.integers(least, most + 1))
    return [(here, part), (total - here, count - part)]


@dataclass(frozen=True)
class Tree:
    """A table, what each block owns of it, and the blocks of each group on each level."""

    table: EdgeTable
    blocks: list[EdgeTable]
    levels: list[list[list[int]]]
    scale: int


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    scale = draw(st.sampled_from([255, 65535]))
    table, place = draw(lattices(scale))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 6))
    length = max(place.values()) + 1
    cell = {i: at * n // length for i, at in place.items()}
    owned: list[list[tuple[int, ...]]] = [[] for _ in range(n)]
    far = draw(st.sampled_from([0.0, 0.1]))  # chance that a row is anywhere
    for u, v, s, c in zip(
        *(getattr(table, k).tolist() for k in ("u", "v", "affinity_sum", "face_count")), strict=True
    ):
        for total, count in split_row(rng, s, c, scale):
            owner = int(rng.choice([cell[u], cell[v]]))
            owner = int(rng.integers(n)) if rng.random() < far else owner
            owned[owner].append((u, v, total, count))
    blocks = [sum_edges([EdgeTable(*np.array(r, np.uint64).reshape(-1, 4).T)]) for r in owned]
    levels, size = [[[k] for k in range(n)]], 1
    for _ in range(draw(st.integers(0, 2))):
        size *= draw(st.integers(2, 4))
        levels.append([list(range(k, min(k + size, n))) for k in range(0, n, size)])
    if size < n:
        levels.append([list(range(n))])
    return Tree(table, blocks, levels, scale)


def ids_of(tables: list[EdgeTable]) -> set[int]:
    return {int(i) for table in tables for i in np.concatenate([table.u, table.v])}


def frozen_of(blocks: list[EdgeTable], group: list[int]) -> set[int]:
    outside = [table for k, table in enumerate(blocks) if k not in group]
    return ids_of([blocks[k] for k in group]) & ids_of(outside)


def sorted_ids(ids: set[int]) -> np.ndarray:
    return np.array(sorted(ids), np.uint64)


def climb(
    tree: Tree, blocks: list[EdgeTable], threshold: float, extra: set[int]
) -> list[list[MergeHistory]]:
    """The histories of each level; `extra` ids are frozen below the root without need."""
    graphs = [RegionGraph.from_edges(table) for table in blocks]
    histories = []
    for level, groups in enumerate(tree.levels):
        found = []
        for graph, group in zip(graphs, groups, strict=True):
            frozen = frozen_of(blocks, group)
            frozen |= extra if level < len(tree.levels) - 1 else set()
            found.append(agglomerate_group(graph, sorted_ids(frozen), threshold, tree.scale))
        histories.append([result.history for result in found])
        if level + 1 < len(tree.levels):
            graphs = [
                add_graphs(r.residual for r, own in zip(found, groups, strict=True) if own[0] in up)
                for up in tree.levels[level + 1]
            ]
        else:
            assert all(len(result.residual) == 0 for result in found)
    return histories


def look_down(tree: Tree, histories: list[list[MergeHistory]], threshold: float) -> dict[int, int]:
    """The lookups of all lowest groups, composed from the root down."""
    above = {0: (np.zeros(0, np.uint64),) * 2}
    for level in range(len(tree.levels) - 1, -1, -1):
        told = {}
        for k, group in enumerate(tree.levels[level]):
            parent = 0
            if level + 1 < len(tree.levels):
                parent = next(p for p, up in enumerate(tree.levels[level + 1]) if group[0] in up)
            own = fragment_to_segment(histories[level][k], threshold)
            told[k] = compose_lookup(own, above[parent])
        above = told
    found: dict[int, int] = {}
    for k, group in enumerate(tree.levels[0]):
        inside = ids_of([tree.blocks[b] for b in group])
        for i, segment in lookup_of(above[k]).items():
            if i in inside:
                assert found.setdefault(i, segment) == segment
    return found


# --- Properties


@QUICK
@given(edge_tables(), st.data())
def test_a_group_equals_the_reference(table: EdgeTable, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    if data.draw(st.booleans()):
        table = widened(rng, table, 255)
    names = np.unique(np.concatenate([table.u, table.v])).tolist()
    share = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    frozen = {i for i in names if rng.random() < share}
    threshold = data.draw(st.sampled_from(LEVELS))
    graph = RegionGraph.from_edges(table)
    result = agglomerate_group(graph, sorted_ids(frozen), threshold)
    merges, residual = reference_group(rows_of(graph), frozen, threshold, 255)
    assert merges_of(result.history) == merges
    assert list(rows_of(result.residual).items()) == sorted(residual.items())
    # Once more, with keys that are not the rows' own; nothing may be left that could merge.
    again = agglomerate_group(result.residual, sorted_ids(frozen), 0.0)
    expected = reference_group(residual, frozen, 0.0, 255)
    assert (merges_of(again.history), rows_of(again.residual)) == expected


@QUICK
@given(edge_tables(), st.sampled_from(LEVELS))
def test_a_group_without_frozen_regions_is_the_whole(table: EdgeTable, threshold: float) -> None:
    graph = RegionGraph.from_edges(table)
    result = agglomerate_group(graph, np.zeros(0, np.uint64), threshold)
    whole = agglomerate(table, threshold)
    assert merges_of(result.history) == merges_of(whole)
    assert reference_group(rows_of(graph), set(), threshold, 255) == (merges_of(whole), {})
    assert len(result.residual) == 0


@settings(QUICK, max_examples=200)
@given(trees(), st.data())
def test_groups_do_not_show(tree: Tree, data: st.DataObject) -> None:
    scores = (tree.table.affinity_sum / tree.table.face_count / tree.scale).tolist()
    threshold = data.draw(st.sampled_from([*LEVELS, *scores[:3]]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    needless = data.draw(st.sampled_from([0.0, 0.0, 0.1]))
    extra = {i for i in ids_of([tree.table]) if rng.random() < needless}
    histories = climb(tree, tree.blocks, threshold, extra)
    union = merge_histories([history for level in histories for history in level])
    whole = agglomerate(tree.table, threshold, tree.scale)
    assert merges_of(union) == merges_of(whole)
    rows = {pair: row[:2] for pair, row in rows_of(RegionGraph.from_edges(tree.table)).items()}
    assert merges_of(whole) == reference_merges(rows, threshold, tree.scale)
    for higher in sorted({threshold, *LEVELS, *scores[:5]}):
        if higher >= threshold:
            expected = lookup_of(fragment_to_segment(whole, higher))
            assert look_down(tree, histories, higher) == expected


@QUICK
@given(st.data())
def test_graphs_add_in_any_grouping(data: st.DataObject) -> None:
    end = st.sampled_from([1, 2, 3, 7, 2**63, 2**64 - 1])
    pair = st.tuples(end, end).filter(lambda p: p[0] < p[1])
    row = st.tuples(st.integers(0, 99), st.integers(1, 9), pair)
    parts = data.draw(st.lists(st.dictionaries(pair, row, max_size=8), max_size=6))
    expected = add_rows([item for part in parts for item in part.items()])
    graphs = [graph_of(part) for part in parts]
    assert list(rows_of(add_graphs(graphs)).items()) == sorted(expected.items())
    at = data.draw(st.integers(0, len(graphs)))
    halves = (add_graphs(graphs[at:]), add_graphs(graphs[:at]))
    assert list(rows_of(add_graphs(halves)).items()) == sorted(expected.items())


@QUICK
@given(st.data())
def test_composed_lookups_are_one_after_the_other(data: st.DataObject) -> None:
    ids = st.sampled_from([1, 2, 3, 4, 5, 2**63, 2**64 - 1])
    maps = [data.draw(st.dictionaries(ids, ids)) for _ in range(2)]
    first, then = (
        (sorted_ids(set(m)), np.array([m[i] for i in sorted(m)], np.uint64)) for m in maps
    )
    expected = {i: maps[1].get(maps[0].get(i, i), maps[0].get(i, i)) for i in {*maps[0], *maps[1]}}
    got = compose_lookup(first, then)
    assert got[0].tolist() == sorted(got[0].tolist())
    assert lookup_of(got) == {i: target for i, target in expected.items() if target != i}
