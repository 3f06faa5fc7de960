"""Bootstrap intervals: against resampling by hand, and what few neurons or events give."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import bootstrap
from pipeline.arrays.bootstrap import (
    FIGURES,
    LEFT_OUT,
    Interval,
    bootstrap_intervals,
    draw_counts,
    figure_draws,
    merge_shares,
    percentile_bounds,
)
from pipeline.arrays.metrics import Scores, score
from pipeline.arrays.metrics_sums import add_sums, measures, ratio
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError, ShapeError

VOXEL = (40.0, 16.0, 8.0)


def scores_of(rows: dict[str, list[int]]) -> Scores:
    """Chains with these labels; a step along x is 8 nm."""
    return score(
        [chain(name, len(row)) for name, row in rows.items()],
        [np.array(row, np.uint64) for row in rows.values()],
        VOXEL,
    )


def chain(name: str, count: int) -> Skeleton:
    nodes = np.zeros((count, 3))
    nodes[:, 2] = np.arange(count)
    index = np.arange(1, count)
    return Skeleton(name, nodes, np.stack([index, index - 1], axis=1))


def intervals_of(rows: dict[str, list[int]], **options: int) -> bootstrap.Intervals:
    scores = scores_of(rows)
    return bootstrap_intervals(list(rows), scores.sums, scores.merges, **options)


def random_rows(seed: int, neurons: int) -> dict[str, list[int]]:
    random = np.random.default_rng(seed)
    return {f"n{i}": random.integers(0, 4, random.integers(1, 15)).tolist() for i in range(neurons)}


ROWS = {
    "a": [1, 1, 1, 2, 2, 0, 9],
    "b": [3, 3, 9, 9, 9],
    "c": [4] * 12,
    "d": [0, 5, 5, 9, 9, 0, 0],
    "e": [7],
}


def test_equals_adding_up_the_neurons_drawn():
    """Each resample as a list of neurons, scored like any other list."""
    scores = scores_of(ROWS)
    shares = merge_shares(scores.merges)
    found = figure_draws(scores.sums, shares, 60, 3)
    counts = np.concatenate(list(draw_counts(len(ROWS), 60, 3))).astype(int)
    for row, drawn in enumerate(counts):
        some = [i for i, n in enumerate(drawn) for _ in range(n)]
        total = add_sums([scores.sums[i] for i in some])
        expected = measures(total, 0, 0, 0)
        expected["splits_per_neuron"] = ratio(total.weighted_splits, total.edges)
        merges = math.fsum(shares[i] for i in some)
        expected["merge_rate_nm"] = total.length_nm / merges if merges else None
        for name in FIGURES:
            value = math.inf if expected[name] is None else expected[name]
            assert found[name][row] == pytest.approx(value, rel=1e-12), name


def test_values_are_the_overall_figures():
    overall = scores_of(ROWS).overall
    found = intervals_of(ROWS).figures
    assert {name: i.value for name, i in found.items()} == {name: overall[name] for name in FIGURES}
    assert not LEFT_OUT.keys() & found.keys()


def test_two_neurons_by_hand():
    """Edge accuracy 100 with 3 edges and 0 with 1: a resample gives 0, 75 or 100."""
    found = intervals_of({"a": [1, 1, 1, 1], "b": [0, 0]})
    assert found.figures["edge_accuracy"] == Interval(75.0, 0.0, 100.0)
    assert found.figures["pct_omit"] == Interval(25.0, 0.0, 100.0)
    assert found.figures["nerl"] == Interval(0.75, 0.0, 1.0)
    assert found.figures["erl_nm"] == Interval(18.0, 0.0, 24.0)
    assert "fewer than 20" in found.notes[0]


def test_equal_neurons_leave_no_doubt():
    found = intervals_of({f"n{i}": [2 * i + 1, 2 * i + 1, 2 * i + 2] for i in range(25)})
    assert found.figures["pct_split"] == Interval(50.0, 50.0, 50.0)
    assert found.figures["split_rate_nm"] == Interval(16.0, 16.0, 16.0)
    assert found.notes == ()


def test_intervals_hold_the_spread_of_the_mean():
    """Half of 400 equal neurons are omitted: the share has a standard deviation of 2.5 %."""
    found = intervals_of({f"n{i:03}": [i + 1, i + 1] if i % 2 else [0, 0] for i in range(400)})
    interval = found.figures["pct_omit"]
    assert interval.value == 50
    assert interval.low == pytest.approx(50 - 1.96 * 2.5, abs=0.6)
    assert interval.high == pytest.approx(50 + 1.96 * 2.5, abs=0.6)


def test_one_neuron_has_values_and_a_reason():
    found = intervals_of({"a": [1, 1, 2]})
    assert found.figures["nerl"] == Interval(0.25, None, None, "one neuron: nothing to resample")
    assert found.figures["merge_rate_nm"] == Interval(None, None, None, "no event, no rate")
    assert found.notes == ("one neuron: nothing to resample",)
    assert found.bounds() == {}


def test_rates_without_events():
    none = intervals_of({"a": [1, 1], "b": [2, 2, 2]}).figures["split_rate_nm"]
    assert none == Interval(None, None, None, "no event, no rate")
    rows = {f"n{i}": [i + 1] * 3 for i in range(9)} | {"s": [50, 51, 52]}
    some = intervals_of(rows).figures["split_rate_nm"]
    assert (some.value, some.high) == (80.0, None)
    assert some.low == pytest.approx(160 / 8, rel=0.5)
    # (9 / 10) ** 10 of the resamples lack the neuron that is split.
    without = int(some.reason.split(" in ")[1].split()[0])
    assert without == pytest.approx(2000 * 0.9**10, rel=0.1)
    assert some.reason == f"no event in {without} of 2000 resamples: no upper bound"
    assert "split_rate_nm" not in intervals_of(rows).bounds()


def test_a_label_is_shared_by_its_neurons():
    """Label 9 on three neurons is two merges, label 1 on two of these one."""
    scores = scores_of({"a": [9, 9, 1], "b": [2, 9, 1], "c": [3, 9], "d": [4]})
    shares = merge_shares(scores.merges)
    np.testing.assert_allclose(shares, [2 / 3 + 1 / 2, 2 / 3 + 1 / 2, 2 / 3, 0])
    assert math.fsum(shares) == pytest.approx(scores.overall["merges_total"])


def test_without_merges_their_rate_is_left_out():
    scores = scores_of(ROWS)
    plain = bootstrap_intervals(list(ROWS), scores.sums)
    full = bootstrap_intervals(list(ROWS), scores.sums, scores.merges)
    assert full.figures.keys() - plain.figures.keys() == {"merge_rate_nm"}
    assert plain.figures == {n: full.figures[n] for n in plain.figures}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 9), st.randoms(use_true_random=False))
def test_order_of_neurons_does_not_matter(seed, neurons, shuffler):
    rows = random_rows(seed, neurons)
    names = list(rows)
    shuffler.shuffle(names)
    first = intervals_of(rows, n_resamples=100)
    assert intervals_of({name: rows[name] for name in names}, n_resamples=100) == first
    for interval in first.figures.values():
        bounds = [b for b in (interval.low, interval.high) if b is not None]
        assert bounds == sorted(bounds)
        assert (len(bounds) == 2) == (interval.reason == "")


def test_seed_decides_and_blocks_do_not(monkeypatch):
    first = intervals_of(ROWS, seed=1)
    assert intervals_of(ROWS, seed=1) == first
    assert intervals_of(ROWS, seed=2).figures != first.figures
    for at_once in (1, 17, 1000):
        monkeypatch.setattr(bootstrap, "_AT_ONCE", at_once)
        assert intervals_of(ROWS, seed=1) == first


def test_every_resample_draws_as_many_neurons_as_there_are():
    counts = np.concatenate(list(draw_counts(7, 4000, 0)))
    assert counts.shape == (4000, 7)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(counts.var(axis=0), 6 / 7, atol=0.08)


def test_bounds_are_values_counted_from_both_ends():
    values = np.random.default_rng(0).permutation(2000).astype(float)
    assert percentile_bounds(values) == (49.0, 1950.0)
    assert percentile_bounds(np.arange(39.0)) == (0.0, 38.0)
    assert percentile_bounds(np.arange(79.0)) == (1.0, 77.0)


def test_json_says_how():
    found = json.loads(json.dumps(intervals_of(ROWS, seed=5).as_json(), allow_nan=False))
    assert (found["neurons"], found["seed"], found["n_resamples"]) == (5, 5, 2000)
    assert "seed 5" in found["method"]
    assert "merges are not found again" in found["method"]
    assert found["figures"]["nerl"].keys() == {"value", "low", "high", "reason"}
    assert set(found["left_out"]) == {"merges_total", "merging_labels", "merged_pairs"}


def test_what_cannot_be_resampled_is_refused():
    scores = scores_of({"a": [1, 1], "b": [2, 2]})
    with pytest.raises(ShapeError, match="1 names for the sums of 2 neurons"):
        bootstrap_intervals(["a"], scores.sums)
    with pytest.raises(InputError, match="distinct"):
        bootstrap_intervals(["a", "a"], scores.sums)
    with pytest.raises(InputError, match="no neuron"):
        bootstrap_intervals([], [])
    with pytest.raises(InputError, match=r"39 or more.*got 38"):
        bootstrap_intervals(["a", "b"], scores.sums, n_resamples=38)
    with pytest.raises(InputError, match="seed"):
        bootstrap_intervals(["a", "b"], scores.sums, seed=-1)
    with pytest.raises(ShapeError, match="merges of 2 neurons, sums of 1"):
        bootstrap_intervals(["a"], scores.sums[:1], scores.merges)


def test_sums_of_scores_are_as_given():
    scores = scores_of({"b": [1, 1, 1], "a": [2, 2]})
    assert [s.edges for s in scores.sums] == [2, 1]
    assert [s.correct for s in scores.sums] == [2, 1]
