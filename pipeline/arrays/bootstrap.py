"""How sure are the figures of a few neurons? Bootstrap intervals of the skeleton metrics.

Neurons are the units: as many as there are get drawn with replacement, many times, and each overall
figure is made again from the sums of those drawn. Every figure here is a ratio of two sums over
neurons, so a resample is a row of counts and needs no look at nodes:

1. sort the neurons by name, so that their order does not matter;
2. draw counts, add up weighted sums (`figure_draws`);
3. take the bounds from the ordered values (`percentile_bounds`).

The bounds are plain percentiles. They lie within the range of the figure, exist for every figure
and turn with its reciprocal. Bias-corrected ones (BCa) do not exist where leaving a neuron out
changes nothing, as with no merge anywhere, and in simulations of ratios with skewed sizes they held
the true figure no more often: 0.76, 0.86, 0.89 and 0.91 of the time with 4, 10, 20 and 50 neurons,
percentiles 0.78, 0.88, 0.91 and 0.93. Few neurons are few: below about 20 both are too narrow.

A merge belongs to several neurons. A neuron keeps the merged edges that it has beside all the
others; merges are not found again among the neurons drawn.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.exact_sums import sum_groups
from pipeline.arrays.metrics_sums import Sums, add_sums, measures, ratio
from pipeline.arrays.skeleton_runs import Merges
from pipeline.errors import InputError, ShapeError

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
FEW_NEURONS = 20
"""Below this the intervals are too narrow, and say so."""
_AT_ONCE = 2**20  # counts held in memory

LEFT_OUT = dict.fromkeys(
    ("merges_total", "merging_labels", "merged_pairs"),
    "counted once for all neurons of a merging label: no sum over neurons. See pct_merged",
)
"""Overall figures without interval, and why."""


@dataclass(frozen=True)
class Figure:
    """An overall figure as `scale` * sum of `parts` / sum of `whole` over neurons.

    Attributes:
        parts: fields of `Sums`, added.
        whole: a field of `Sums`, or "merges": the neuron's share of the merges.
        scale: 100 for percentages.
        better: which end is good.
        rate: length per event; without an event it is undefined and counts as infinite.
    """

    parts: tuple[str, ...]
    whole: str = "edges"
    scale: int = 1
    better: Literal["high", "low"] = "high"
    rate: bool = False


FIGURES: Mapping[str, Figure] = {
    "nerl": Figure(("share_edges",)),
    "erl": Figure(("square_edges",)),
    "nerl_nm": Figure(("share_nm",), "length_nm"),
    "erl_nm": Figure(("square_nm",), "length_nm"),
    "ffn_nerl_nm": Figure(("ffn_square_nm",), "square_length"),
    "ffn_erl_nm": Figure(("ffn_square_nm",), "length_nm"),
    "edge_accuracy": Figure(("correct", "split"), scale=100),
    "edge_accuracy_strict": Figure(("correct",), scale=100),
    "pct_omit": Figure(("omit",), scale=100, better="low"),
    "pct_split": Figure(("split",), scale=100, better="low"),
    "pct_merged": Figure(("merged",), scale=100, better="low"),
    "splits_per_neuron": Figure(("weighted_splits",), better="low"),
    "split_rate_nm": Figure(("length_nm",), "splits", rate=True),
    "merge_rate_nm": Figure(("length_nm",), "merges", rate=True),
}
"""What has an interval, by its key in metrics.json."""


@dataclass(frozen=True)
class Interval:
    """A figure and its interval.

    Attributes:
        value: the figure of all neurons; None where it is undefined.
        low, high: bounds; None where there is none.
        reason: why a bound is missing; else empty.
    """

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True)
class Intervals:
    """Intervals of the overall figures of a set of neurons.

    Attributes:
        figures: by key of metrics.json, in the order of `FIGURES`.
        neurons: their number.
        n_resamples, seed, level: of the bootstrap.
        notes: what a reader must know to use them.
    """

    figures: dict[str, Interval]
    neurons: int
    n_resamples: int
    seed: int
    level: float
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers; None where a bound is missing."""
        return {
            "method": method_text(self.n_resamples, self.seed),
            "neurons": self.neurons,
            "n_resamples": self.n_resamples,
            "seed": self.seed,
            "level": self.level,
            "figures": {name: asdict(interval) for name, interval in self.figures.items()},
            "merge_rate_nm": (
                "of a label on k neurons, which is k - 1 merges, each has the share (k - 1) / k"
            ),
            "left_out": dict(LEFT_OUT),
            "notes": list(self.notes),
        }

    def bounds(self) -> dict[str, tuple[float, float]]:
        """The figures that have both bounds."""
        return {
            name: (i.low, i.high)
            for name, i in self.figures.items()
            if i.low is not None and i.high is not None
        }


def bootstrap_intervals(
    names: Sequence[str],
    sums: Sequence[Sums],
    merges: Merges | None = None,
    *,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Intervals:
    """95 % intervals of the overall figures of a set of neurons.

    They depend on the names of neurons (which sort them), not on their order.

    Args:
        names, sums: of the N >= 1 neurons; `Scores.sums`.
        merges: `Scores.merges` of the same neurons in the same order. None: no merge_rate_nm.
        n_resamples: 39 or more.
        seed: of the draws.

    Raises:
        ShapeError: names, sums and merges are not of as many neurons.
        InputError: no neuron, a name twice, too few resamples, a negative seed.
    """
    order = _by_name(names, sums)
    check_draws(n_resamples, seed)
    if merges is not None and len(merges.total) != len(sums):
        raise ShapeError(f"merges of {len(merges.total)} neurons, sums of {len(sums)}")
    ordered = [sums[i] for i in order]
    shares = None if merges is None else merge_shares(merges)[order]
    merges_total = 0 if merges is None else len(merges.label_index) - len(merges.labels)
    values = overall_figures(ordered, None if merges is None else merges_total)
    draws = figure_draws(ordered, shares, n_resamples, seed) if len(sums) > 1 else {}
    figures = {name: _interval(name, value, draws.get(name)) for name, value in values.items()}
    return Intervals(figures, len(sums), n_resamples, seed, LEVEL, notes_on(len(sums)))


def _by_name(names: Sequence[str], sums: Sequence[Sums]) -> list[int]:
    if len(names) != len(sums):
        raise ShapeError(f"{len(names)} names for the sums of {len(sums)} neurons")
    if not names:
        raise InputError("no neuron to resample")
    if len(set(names)) < len(names):
        raise InputError("names of neurons must be distinct to bring them into an order")
    return sorted(range(len(names)), key=lambda i: names[i])


def check_draws(n_resamples: int, seed: int) -> None:
    """Refuse numbers that give no interval.

    Raises:
        InputError: fewer than 39 resamples, or a negative seed.
    """
    if _tail(n_resamples) < 1:
        raise InputError(
            f"n_resamples: expected 39 or more, which a 95 % interval needs, got {n_resamples}"
        )
    if seed < 0:
        raise InputError(f"seed: expected 0 or more, got {seed}")


def overall_figures(sums: Sequence[Sums], merges_total: int | None) -> dict[str, float | None]:
    """The figures of all neurons together, as `Scores.overall` has them.

    `merge_rate_nm` is left out where `merges_total` is None.
    """
    total = add_sums(sums)
    row = measures(total, merges_total or 0, 0, 0)
    row["splits_per_neuron"] = ratio(total.weighted_splits, total.edges)
    return {name: row[name] for name in FIGURES if not (_of_merges(name) and merges_total is None)}


def _of_merges(name: str) -> bool:
    return FIGURES[name].whole == "merges"


def merge_shares(merges: Merges) -> Floats:
    """(S,) of each neuron the merges that are its own; they add up to `merges_total`.

    A label on k neurons is k - 1 merges; each of the k has (k - 1) / k of them.
    """
    on = np.bincount(merges.label_index, minlength=len(merges.labels)).astype(np.float64)
    share = ((on - 1) / on)[merges.label_index]
    return sum_groups(share, merges.skeleton_index, len(merges.total))


def figure_draws(
    sums: Sequence[Sums], shares: Floats | None, n_resamples: int, seed: int
) -> dict[str, Floats]:
    """The overall figures of every resample: (n_resamples,) each, infinite where undefined.

    Two sets of sums of the same neurons and one seed are resampled alike, so their differences are
    those of paired resamples.
    """
    columns = sum_columns(sums, shares)
    drawn = {name: np.empty(n_resamples) for name in columns}
    begin = 0
    for counts in draw_counts(len(sums), n_resamples, seed):
        for name, column in columns.items():
            # Not a matrix product: its rounding depends on the number of threads.
            drawn[name][begin : begin + len(counts)] = (counts * column).sum(axis=1)
        begin += len(counts)
    return {
        name: _ratios(figure, drawn) for name, figure in FIGURES.items() if figure.whole in drawn
    }


def sum_columns(sums: Sequence[Sums], shares: Floats | None) -> dict[str, Floats]:
    """(N,) of each sum that a figure needs, the shares of the merges as "merges"."""
    needed = sorted({name for f in FIGURES.values() for name in (*f.parts, f.whole)} - {"merges"})
    columns = {name: np.array([getattr(s, name) for s in sums], np.float64) for name in needed}
    return columns if shares is None else {**columns, "merges": shares}


def draw_counts(neurons: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    """How often each neuron is drawn: (some, neurons) at a time, `n_resamples` rows in all."""
    random = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // neurons)
    for begin in range(0, n_resamples, rows):
        here = min(rows, n_resamples - begin)
        chosen = random.integers(0, neurons, (here, neurons))
        chosen += neurons * np.arange(here)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=here * neurons)
        yield counts.reshape(here, neurons).astype(np.float64)


def _ratios(figure: Figure, drawn: Mapping[str, Floats]) -> Floats:
    part = figure.scale * sum(drawn[name] for name in figure.parts)
    whole = drawn[figure.whole]
    undefined = np.full(len(whole), math.inf if figure.rate else 0.0)
    return np.divide(part, whole, out=undefined, where=whole != 0)


def percentile_bounds(values: Floats) -> tuple[float, float]:
    """The k-th smallest and k-th largest value, k = 2.5 % of (number + 1), rounded down."""
    ordered = np.sort(values)
    k = _tail(len(values))
    return float(ordered[k - 1]), float(ordered[-k])


def _tail(count: int) -> int:
    return (count + 1) // 40


def _interval(name: str, value: float | None, draws: Floats | None) -> Interval:
    if value is None:
        return Interval(None, None, None, "no event, no rate")
    if draws is None:
        return Interval(value, None, None, ONE_NEURON)
    low, high = percentile_bounds(draws)
    if high < math.inf:
        return Interval(value, low, high)
    without = f"no event in {int(np.isinf(draws).sum())} of {len(draws)} resamples"
    if low < math.inf:
        return Interval(value, low, None, f"{without}: no upper bound")
    return Interval(value, None, None, without)


ONE_NEURON = "one neuron: nothing to resample"


def notes_on(neurons: int) -> tuple[str, ...]:
    """What the number of neurons means for their intervals."""
    if neurons >= FEW_NEURONS:
        return ()
    if neurons == 1:
        return (ONE_NEURON,)
    return (
        f"{neurons} neurons: with fewer than {FEW_NEURONS} such intervals are too narrow; "
        "take them for lower limits of the uncertainty",
    )


def method_text(n_resamples: int, seed: int) -> str:
    """How intervals are made, in words."""
    return (
        f"percentile bootstrap over neurons, {100 * LEVEL:.0f} %: {n_resamples} resamples with "
        f"replacement of the neurons in the order of their names, seed {seed}. A neuron keeps the "
        "merged edges that it has beside all others: merges are not found again in a resample"
    )
