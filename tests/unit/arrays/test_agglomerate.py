from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.arrays.agglomerate import (
    MergeHistory,
    agglomerate,
    fragment_to_segment,
    merge_histories,
)
from pipeline.arrays.edges import EdgeTable
from pipeline.errors import InputError


def table(*rows: tuple[int, int, int, int]) -> EdgeTable:
    return EdgeTable(*np.array(rows, np.uint64).reshape(-1, 4).T)


def merges_of(history: MergeHistory) -> list[tuple[int, ...]]:
    """(sum, count, key_u, key_v, kept, absorbed)."""
    columns = ("affinity_sum", "face_count", "key_u", "key_v", "kept", "absorbed")
    return list(zip(*(getattr(history, name).tolist() for name in columns), strict=True))


def test_parallel_edges_add_after_a_merge() -> None:
    # 1-2 merges; then 1-3 (90/1) and 2-3 (10/1) are one edge of mean 50 with the smaller key.
    edges = table((1, 2, 200, 1), (1, 3, 90, 1), (2, 3, 10, 1))
    assert merges_of(agglomerate(edges, 50 / 255)) == [(200, 1, 1, 2, 1, 2), (100, 2, 1, 3, 1, 3)]
    assert len(agglomerate(edges, 51 / 255)) == 1


def test_an_edge_below_the_threshold_still_pulls_its_parallel_down() -> None:
    edges = table((1, 2, 250, 1), (1, 3, 130, 1), (2, 3, 1, 1))
    assert [m[4:] for m in merges_of(agglomerate(edges, 0.5))] == [(1, 2)]


def test_ties_go_to_the_smallest_original_pair() -> None:
    # All score 100. (1, 9) first; then the merged region reaches 5 through the key (5, 9).
    edges = table((1, 9, 100, 1), (5, 9, 200, 2), (3, 4, 300, 3), (4, 5, 100, 1))
    assert [m[2:] for m in merges_of(agglomerate(edges, 0.1))] == [
        (1, 9, 1, 9),
        (3, 4, 3, 4),
        (4, 5, 3, 5),
        (5, 9, 1, 3),
    ]


def test_kept_region_carries_the_smallest_member() -> None:
    edges = table((5, 6, 255, 1), (6, 7, 200, 1), (2, 7, 150, 1))
    history = agglomerate(edges, 0.3)
    assert [m[4:] for m in merges_of(history)] == [(5, 6), (5, 7), (2, 5)]
    ids, segments = fragment_to_segment(history, 0.3)
    assert (ids.tolist(), segments.tolist()) == ([5, 6, 7], [2, 2, 2])
    ids, segments = fragment_to_segment(history, 0.7)
    assert (ids.tolist(), segments.tolist()) == ([6, 7], [5, 5])


def test_scores_that_tie_as_floats_are_told_apart() -> None:
    count = 2**54
    total = 200 * count
    assert (total + 1) / count == total / count
    edges = table((1, 2, total, count), (8, 9, total + 1, count), (4, 5, total - 1, count))
    assert [m[4:] for m in merges_of(agglomerate(edges, 0.5))] == [(8, 9), (1, 2), (4, 5)]


@pytest.mark.parametrize("bits", [20, 31, 33, 45, 52])
def test_products_of_any_size_compare_exactly(bits: int) -> None:
    """Scores a / b that differ by 1 / (b * b'): neighbours in a continued fraction."""
    b = 2**bits
    near = [(100 * b, b), (100 * (b + 1) + 1, b + 1), (100 * (b - 1) + 1, b - 1), (200 * b, 2 * b)]
    rows = [(10 * k + 1, 10 * k + 2, total, count) for k, (total, count) in enumerate(near)]
    order = [m[4] for m in merges_of(agglomerate(table(*rows), 0.1))]
    assert order == [21, 11, 1, 31]  # 100 + 1/(b-1), 100 + 1/(b+1), 100 and 100 by key


def test_a_star_merges_into_one_whatever_the_side_that_is_larger() -> None:
    rows = [(k, 1000, 255 - k, 1) for k in range(1, 100)]
    history = agglomerate(table(*rows), 0.0)
    ids, segments = fragment_to_segment(history, 0.0)
    assert (len(history), ids.tolist()) == (99, [*range(2, 100), 1000])
    assert set(segments.tolist()) == {1}


def test_repeated_rows_are_added_first() -> None:
    twice = table((1, 2, 200, 1), (3, 4, 255, 1), (1, 2, 0, 1))
    assert merges_of(agglomerate(twice, 0.3)) == [
        (255, 1, 3, 4, 3, 4),
        (200, 2, 1, 2, 1, 2),
    ]


def test_threshold_is_compared_as_float64_quotients() -> None:
    edges = table((1, 2, 77 * 3, 3))
    exact = 231 / 3 / 255
    assert len(agglomerate(edges, exact)) == 1
    assert len(agglomerate(edges, float(np.nextafter(exact, 1)))) == 0


def test_nothing_to_merge() -> None:
    for edges in (EdgeTable.empty(), table((1, 2, 10, 1))):
        history = agglomerate(edges, 0.9)
        assert merges_of(history) == []
        assert [column.size for column in fragment_to_segment(history, 0.95)] == [0, 0]


def test_thresholds_below_the_history_are_refused() -> None:
    history = agglomerate(table((1, 2, 200, 1)), 0.5)
    for threshold in (0.49, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"down to 0\.5"):
            fragment_to_segment(history, threshold)


def test_input_is_not_changed() -> None:
    edges = table((1, 2, 200, 1), (1, 3, 90, 1), (2, 3, 10, 1))
    before = {name: column.copy() for name, column in dataclasses.asdict(edges).items()}
    fragment_to_segment(agglomerate(edges, 0.1), 0.2)
    for name, column in before.items():
        np.testing.assert_array_equal(getattr(edges, name), column)


def test_bad_input_is_refused() -> None:
    edges = table((1, 2, 200, 1))
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            agglomerate(edges, threshold)
    with pytest.raises(InputError, match="255"):
        agglomerate(edges, 0.5, 100)
    with pytest.raises(InputError, match="65535 for uint16"):
        agglomerate(table((1, 2, 300, 1)), 0.5)
    assert len(agglomerate(table((1, 2, 65535, 1)), 1.0, 65535)) == 1
    with pytest.raises(InputError, match="without faces"):
        agglomerate(table((1, 2, 3, 0)), 0.5)
    with pytest.raises(InputError, match="64 bits"):
        agglomerate(table((1, 2, 2**63, 2**62), (3, 4, 2**63, 2**62)), 0.5)


def test_histories_of_groups_unite_in_one_order() -> None:
    # 7-8 and 1-2 tie; the exact order tells (200 2^54 + 1) / 2^54 from 200.
    count = 2**54
    first = agglomerate(table((7, 8, 200, 1), (8, 9, 150, 1)), 0.3)
    second = agglomerate(table((1, 2, 200, 1), (3, 4, 200 * count + 1, count)), 0.3)
    expected = [
        (200 * count + 1, count, 3, 4, 3, 4),
        (200, 1, 1, 2, 1, 2),
        (200, 1, 7, 8, 7, 8),
        (150, 1, 8, 9, 7, 9),
    ]
    for histories in ([first, second], [second, first]):
        united = merge_histories(histories)
        assert merges_of(united) == expected
        assert (united.threshold, united.scale) == (0.3, 255)
    assert merges_of(merge_histories([first])) == merges_of(first)


def test_histories_without_merges_unite() -> None:
    empty, some = agglomerate(EdgeTable.empty(), 0.5), agglomerate(table((1, 2, 200, 1)), 0.5)
    assert merges_of(merge_histories([empty, empty])) == []
    assert merges_of(merge_histories([empty, some])) == merges_of(some)


def test_histories_that_do_not_belong_together_are_refused() -> None:
    edges = table((1, 2, 200, 1), (3, 4, 150, 1))
    history = agglomerate(edges, 0.5)
    others = agglomerate(edges, 0.4), agglomerate(edges, 0.5, 65535)
    for histories in ([], [history, others[0]], [history, others[1]]):
        with pytest.raises(InputError, match=r"one \(threshold, scale\)"):
            merge_histories(histories)
    with pytest.raises(InputError, match="twice"):
        merge_histories([history, history])
