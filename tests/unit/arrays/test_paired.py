"""Two segmentations of the same neurons: against swapping and resampling by hand."""

from __future__ import annotations

import copy
import json
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.bootstrap import FIGURES, draw_counts, percentile_bounds
from pipeline.arrays.metrics import Scores, ScoringOptions, score
from pipeline.arrays.metrics_sums import add_sums, measures, ratio
from pipeline.arrays.paired import COMPARED, compare
from pipeline.arrays.paired_documents import conventions_that_differ, sums_of
from pipeline.arrays.permutation import holm
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError

VOXEL = (40.0, 16.0, 8.0)
Rows = dict[str, list[int]]


def chain(name: str, count: int) -> Skeleton:
    nodes = np.zeros((count, 3))
    nodes[:, 2] = np.cumsum(1 + np.arange(count) % 3)
    index = np.arange(1, count)
    return Skeleton(name, nodes, np.stack([index, index - 1], axis=1))


def scores_of(rows: Rows, voxel: tuple[float, float, float] = VOXEL, **options: Any) -> Scores:
    skeletons = [chain(name, len(row)) for name, row in rows.items()]
    labels = [np.array(row, np.uint64) for row in rows.values()]
    return score(skeletons, labels, voxel, ScoringOptions(**options))


def document(rows: Rows, **options: Any) -> dict[str, Any]:
    return json.loads(json.dumps(scores_of(rows, **options).as_json()))


A = {
    "a": [1, 1, 1, 2, 2, 0, 9],
    "b": [3, 3, 9, 9, 9],
    "c": [4] * 12,
    "d": [0, 5, 5, 8, 8, 0, 0],
    "e": [7],
}
B = {
    "a": [1, 1, 1, 1, 1, 1, 1],
    "b": [3, 3, 3, 3, 10],
    "c": [4] * 6 + [6] * 6,
    "d": [5, 5, 5, 8, 8, 0, 0],
    "e": [0],
}


def value(total: Any, name: str) -> float | None:
    row = measures(total, 0, 0, 0)
    row["splits_per_neuron"] = ratio(total.weighted_splits, total.edges)
    return row[name]


def test_sums_come_back_from_the_measures():
    for rows in (A, B):
        scores = scores_of(rows)
        for sums, name in zip(scores.sums, rows, strict=True):
            found = sums_of(scores.per_skeleton[name])
            for field, expected in vars(sums).items():
                if isinstance(expected, int):
                    assert getattr(found, field) == expected, field
                else:
                    assert getattr(found, field) == pytest.approx(expected, rel=1e-14), field


def test_values_are_those_of_the_documents():
    a, b = document(A), document(B)
    found = compare(a, b)
    assert tuple(found.figures) == COMPARED
    for name, figure in found.figures.items():
        assert figure.a == pytest.approx(a["overall"][name], rel=1e-12), name
        assert figure.b == pytest.approx(b["overall"][name], rel=1e-12), name
        assert figure.difference == pytest.approx(figure.b - figure.a), name
    assert found.per_neuron["c"]["nerl"] == (1.0, pytest.approx(50 / 121))
    assert found.per_neuron["a"]["split_rate_nm"] == (
        a["per_skeleton"]["a"]["split_rate_nm"],
        None,
    )
    assert found.edges == {"a": 6, "b": 4, "c": 11, "d": 6, "e": 0}


def test_p_values_are_those_of_swapping_neurons():
    """Every assignment of the two tables to A and B, the overall figure of each made anew."""
    a, b = scores_of(A).sums, scores_of(B).sums
    found = compare(document(A), document(B)).figures
    for name in COMPARED:
        if FIGURES[name].rate:
            continue
        differences = []
        for swaps in product((False, True), repeat=len(a)):
            pairs = [(y, x) if s else (x, y) for s, x, y in zip(swaps, a, b, strict=True)]
            first, second = (add_sums([p[i] for p in pairs]) for i in (0, 1))
            differences.append(abs(value(second, name) - value(first, name)))
        extreme = sum(d >= differences[0] * (1 - 1e-9) - 1e-12 for d in differences)
        assert found[name].p == extreme / 2 ** len(a), name
    assert len(differences) == 32


def test_rates_are_tested_by_splits_per_length():
    """Three neurons that lose a split each: all signs but two give less."""
    rows = {f"n{i}": [3 * i + 1, 3 * i + 2, 3 * i + 3] for i in range(3)}
    fewer = {name: [row[0], row[0], row[2]] for name, row in rows.items()}
    figure = compare(document(rows), document(fewer)).figures["split_rate_nm"]
    assert (figure.p, figure.difference) == (0.25, pytest.approx(figure.a))
    assert (figure.neurons_better, figure.neurons_worse, figure.neurons_equal) == (3, 0, 0)


def test_intervals_are_those_of_neurons_drawn_for_both():
    a, b = scores_of(A).sums, scores_of(B).sums
    found = compare(document(A), document(B), n_resamples=99, seed=4).figures
    counts = np.concatenate(list(draw_counts(len(a), 99, 4))).astype(int)
    for name in COMPARED:
        if FIGURES[name].rate:
            continue
        draws = []
        for drawn in counts:
            some = [i for i, n in enumerate(drawn) for _ in range(n)]
            first, second = (add_sums([sums[i] for i in some]) for sums in (a, b))
            draws.append(value(second, name) - value(first, name))
        expected = percentile_bounds(np.array(draws))
        assert (found[name].low, found[name].high) == pytest.approx(expected, abs=1e-9, rel=1e-9)


def test_holm_over_all_figures():
    figures = compare(document(A), document(B)).figures
    expected = holm([figure.p for figure in figures.values()])
    assert [figure.p_adjusted for figure in figures.values()] == expected


def test_better_and_worse_follow_the_figure():
    figures = compare(document(A), document(B)).figures
    nerl, omit = figures["nerl"], figures["pct_omit"]
    assert (nerl.better, omit.better) == ("high", "low")
    assert (nerl.neurons_better, nerl.neurons_worse, nerl.neurons_equal) == (3, 1, 1)
    assert (omit.neurons_better, omit.neurons_worse, omit.neurons_equal) == (2, 0, 3)
    swapped = compare(document(B), document(A)).figures["nerl"]
    assert (swapped.neurons_better, swapped.neurons_worse) == (1, 3)
    assert swapped.difference == -nerl.difference
    assert swapped.p == nerl.p


def test_equal_segmentations():
    found = compare(document(A), document(A))
    for name, figure in found.figures.items():
        assert (figure.p, figure.p_adjusted) == (1.0, 1.0)
        assert figure.difference == 0
        assert (figure.neurons_better, figure.neurons_worse, figure.neurons_equal) == (0, 0, 5)
        if not FIGURES[name].rate:
            assert (figure.low, figure.high) == (0, 0)


def test_neurons_that_one_lacks_are_listed_and_not_compared():
    more = document({**A, "z": [60, 61], "y": [62, 62]})
    fewer = document({name: row for name, row in B.items() if name != "c"})
    found = compare(more, fewer)
    assert (found.only_a, found.only_b, found.neurons) == (("c", "y", "z"), (), 4)
    assert "3 neurons only in A, not compared: c, y, z" in found.notes
    four = [name for name in A if name != "c"]
    expected = add_sums([sums_of(more["per_skeleton"][name]) for name in four])
    assert found.figures["pct_omit"].a == value(expected, "pct_omit")
    listed = found.as_json()["neurons"]
    assert (listed["common"], listed["only_a"], listed["only_b"]) == (4, ["c", "y", "z"], [])


def test_counts_of_all_neurons_together_are_told():
    found = compare(document(A), document(B)).untested
    assert found["merges_total"] == (1, 0)
    assert found["splits"] == (4, 3)
    assert found["merge_rate_nm"][0] == document(A)["overall"]["merge_rate_nm"]


def test_one_common_neuron():
    found = compare(document({"a": [1, 1, 2]}), document({"a": [1, 1, 1]}))
    figure = found.figures["nerl"]
    assert (figure.a, figure.b, figure.p, figure.low) == (0.25, 1, 1.0, None)
    assert figure.reason == "one neuron: nothing to resample"
    assert "1 neuron cannot give a p-value below 1" in found.notes


def test_rates_that_do_not_exist():
    whole = {"a": [1, 1, 1], "b": [2, 2, 2]}
    figure = compare(document(whole), document({**whole, "a": [1, 1, 4]})).figures["split_rate_nm"]
    assert (figure.a, figure.difference, figure.low) == (None, None, None)
    assert figure.reason == "no event, no rate"
    assert (figure.neurons_worse, figure.neurons_equal, figure.p) == (1, 1, 1.0)
    both = {**whole, "a": [1, 1, 4]}
    figure = compare(document(both), document(both)).figures["split_rate_nm"]
    assert figure.difference == 0
    assert figure.reason.startswith("no event in ")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 7), st.randoms(use_true_random=False))
def test_order_does_not_matter(seed, neurons, shuffler):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 12, neurons)
    a, b = ({f"n{i}": random.integers(0, 4, n).tolist() for i, n in enumerate(sizes)} for _ in "ab")
    first = compare(document(a), document(b), n_resamples=60)
    names = list(a)
    shuffler.shuffle(names)
    again = compare(
        document({n: a[n] for n in names}), document({n: b[n] for n in names}), n_resamples=60
    )
    assert json.dumps(again.as_json()) == json.dumps(first.as_json())
    for figure in first.figures.values():
        assert figure.neurons_better + figure.neurons_worse + figure.neurons_equal == neurons


@pytest.mark.parametrize(
    ("options", "topic"),
    [
        ({"repair": False}, "repair"),
        ({"max_gap_nm": 500.0}, "repair"),
        ({"merge_min_nodes": 2}, "merge_tolerance"),
        ({"merge_min_nm": 30.0}, "merge_tolerance"),
        ({"voxel": (40.0, 16.0, 4.0)}, "voxel_size_nm"),
    ],
)
def test_other_conventions_are_refused_by_name(options, topic):
    a, b = document(A), document(B, **options)
    with pytest.raises(InputError, match=rf"different ways: .*\b{topic} \(A: .*B: .*allow"):
        compare(a, b)
    allowed = compare(a, b, allow_differences=True)
    assert topic in allowed.differing
    assert allowed.as_json()["conventions_that_differ"][topic]["b"] == b["conventions"][topic]
    assert any("scored in different ways" in note and topic in note for note in allowed.notes)


def test_what_the_repair_changed_is_no_convention():
    gap, none = {"a": [1, 0, 1, 2]}, {"a": [1, 1, 1, 2]}
    a, b = document(gap, max_gap_nm=500.0), document(none, max_gap_nm=500.0)
    assert a["conventions"]["repair"] != b["conventions"]["repair"]
    assert compare(a, b).differing == {}
    other = document(none, max_gap_nm=400.0)
    assert list(conventions_that_differ(a["conventions"], other["conventions"])) == ["repair"]


def test_a_lookup_is_part_of_the_segmentation():
    a, b = document(A), document(B)
    b["conventions"]["lookup"] = "labels renamed by a lookup of 7 rows"
    found = compare(a, b)
    assert found.differing == {}
    assert "B: labels renamed by a lookup of 7 rows" in found.notes


def test_a_convention_that_one_lacks_differs():
    a, b = document(A), document(B)
    del b["conventions"]["rates"]
    with pytest.raises(InputError, match=r"rates \(A: run_length.*\.\.\., B: none\)"):
        compare(a, b)


def test_other_tracings_are_refused_and_not_tested():
    b = document({**B, "a": [1, 1, 1, 1]})
    with pytest.raises(InputError, match=r"1 neuron is not of one size.*a has 6 and 3 edges, "):
        compare(document(A), b)
    found = compare(document(A), b, allow_differences=True)
    assert found.other_sizes == ("a",)
    assert found.figures["nerl"].p is None
    assert found.figures["nerl"].p_adjusted is None
    assert found.figures["nerl"].low is not None
    assert "not of one size" in found.figures["nerl"].reason
    assert any("1 neuron of other size in A and B: a" in note for note in found.notes)


def test_other_voxels_leave_the_figures_of_edges_to_be_tested():
    b = document(B, voxel=(40.0, 16.0, 4.0))
    found = compare(document(A), b, allow_differences=True).figures
    assert found["nerl"].p is not None
    assert found["nerl_nm"].p is None
    assert found["split_rate_nm"].p is None


def test_what_cannot_be_compared_is_refused():
    a = document(A)
    with pytest.raises(InputError, match=r"no neuron in common.*A has a, b, c and 2 more, B has x"):
        compare(a, document({"x": [1, 1]}))
    for part in ("overall", "per_skeleton", "conventions"):
        with pytest.raises(InputError, match=f"B has no '{part}'"):
            compare(a, {k: v for k, v in a.items() if k != part})
    broken = copy.deepcopy(a)
    del broken["per_skeleton"]["b"]["erl"]
    with pytest.raises(InputError, match="A: neuron b has no erl"):
        compare(broken, a)
    for wrong in (None, float("nan"), "1"):
        broken["per_skeleton"]["b"]["erl"] = wrong
        with pytest.raises(InputError, match=r"B: neuron b: erl is .*finite number"):
            compare(a, broken)
    with pytest.raises(InputError, match="39 or more"):
        compare(a, a, n_resamples=10)


def test_json_has_no_nan_and_says_how():
    found = compare(document(A), document(B), seed=3).as_json()
    text = json.loads(json.dumps(found, allow_nan=False))
    assert text["method"]["smallest_p"] == 2 / 2**5
    assert "seed 3" in text["method"]["interval"]
    assert text["per_neuron"]["a"]["edges"] == 6
    assert text["figures"]["nerl"]["p"] == found["figures"]["nerl"]["p"]
