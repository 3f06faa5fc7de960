"""Two segmentations of the same neurons: what differs, and can it be chance?

The tables per neuron of two `metrics.json` are matched by name. Overall figures are made again from
the neurons that both have:

1. rebuild the sums behind each row (`sums_of`);
2. refuse what cannot be compared: other conventions, other voxel sizes, other tracings;
3. for each figure the overall values as everywhere, weighted with edges or lengths; a bootstrap
   interval of their difference, both resampled alike; a permutation test; how many neurons are
   better, worse, equal;
4. adjust the p-values for the number of figures.

The test swaps A and B neuron by neuron. All figures but the rates divide by sizes of the tracings,
the same in A and B, so a swap changes the sign of what the neuron adds to the overall difference:
the statistic is that difference itself, with its weights. Rates (length per split) are tested by
their reciprocal.

Counts of merges are of all neurons together and are told without a test.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.bootstrap import (
    FIGURES,
    LEVEL,
    ONE_NEURON,
    RESAMPLES,
    Figure,
    check_draws,
    figure_draws,
    method_text,
    notes_on,
    overall_figures,
    percentile_bounds,
    sum_columns,
)
from pipeline.arrays.metrics_sums import Sums
from pipeline.arrays.paired_documents import (
    EQUAL,
    OF_THE_SEGMENTATION,
    Document,
    Row,
    check_sizes,
    conventions_that_differ,
    counted,
    named,
    other_sizes,
    refuse_differences,
    rows_of,
    sums_of,
)
from pipeline.arrays.permutation import holm, paired_permutation_tests, smallest_p
from pipeline.errors import InputError

COMPARED = tuple(name for name, figure in FIGURES.items() if figure.whole != "merges")
"""Figures that are compared."""
UNTESTED = ("splits", "merges_total", "merging_labels", "merged_pairs", "merge_rate_nm")
"""Figures of all neurons together that are told without a test."""
_NO_TEST = "no test: the neurons are not of one size in A and B"


@dataclass(frozen=True)
class FigureComparison:
    """One overall figure of two segmentations.

    Attributes:
        better: which end is good.
        a, b: of the neurons that both have; None where undefined.
        difference: b - a.
        low, high: 95 % bootstrap interval of the difference; None where there is none.
        p: of the paired permutation test; None where there is none.
        p_adjusted: for the number of figures tested (Holm).
        neurons_better, neurons_worse, neurons_equal: neurons by what B does to them. A rate without
            an event counts as the best.
        reason: why the interval or the test is missing; else empty.
    """

    better: Literal["high", "low"]
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    neurons_better: int
    neurons_worse: int
    neurons_equal: int
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two segmentations, compared on the neurons that both have.

    Attributes:
        figures: by key of metrics.json, in the order of `COMPARED`.
        per_neuron: name -> figure -> (a, b), names ascending.
        edges: name -> number of edges (of A).
        only_a, only_b: names of neurons that the other lacks, ascending; not compared.
        untested: counts of all neurons together, (a, b), those that the other lacks included.
        differing: conventions that differ, (a, b): compared nevertheless.
        other_sizes: common neurons that are not of one size in A and B, ascending.
        n_resamples, seed: of the bootstrap and of the test's random assignments.
        notes: what a reader must know to use it.
    """

    figures: dict[str, FigureComparison]
    per_neuron: dict[str, dict[str, tuple[float | None, float | None]]]
    edges: dict[str, int]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    untested: dict[str, tuple[float | None, float | None]]
    differing: dict[str, tuple[str | None, str | None]]
    other_sizes: tuple[str, ...]
    n_resamples: int
    seed: int
    notes: tuple[str, ...]

    @property
    def neurons(self) -> int:
        """Number of neurons that both have."""
        return len(self.per_neuron)

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, no NaN; None where something is undefined."""
        return {
            "neurons": {
                "common": self.neurons,
                "only_a": list(self.only_a),
                "only_b": list(self.only_b),
                "other_sizes": list(self.other_sizes),
            },
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "untested": {n: {"a": a, "b": b} for n, (a, b) in self.untested.items()},
            "per_neuron": {
                name: {
                    "edges": self.edges[name],
                    **{key: {"a": a, "b": b} for key, (a, b) in row.items()},
                }
                for name, row in self.per_neuron.items()
            },
            "conventions_that_differ": {
                n: {"a": a, "b": b} for n, (a, b) in self.differing.items()
            },
            "method": self.method(),
            "notes": list(self.notes),
        }

    def method(self) -> dict[str, Any]:
        """How the numbers were made."""
        return {
            "figures": (
                "of the neurons that both have, weighted as in metrics.json; difference: b - a"
            ),
            "interval": (
                f"{method_text(self.n_resamples, self.seed)}. A and B are resampled alike; the "
                "interval is that of the difference"
            ),
            "p": (
                "paired permutation test, two-sided: A and B swapped neuron by neuron; statistic: "
                "the difference of the overall figure, of rates that of their reciprocal. All "
                f"assignments up to 16 neurons, else random ones, seed {self.seed}"
            ),
            "p_adjusted": "Holm, over the figures tested",
            "smallest_p": smallest_p(self.neurons),
            "untested": "counted over all neurons together, also those that only one has",
            "n_resamples": self.n_resamples,
            "seed": self.seed,
            "level": LEVEL,
        }


def compare(
    a: Document,
    b: Document,
    *,
    allow_differences: bool = False,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two segmentations neuron by neuron.

    Neither the order of neurons in the documents nor that of their keys matters.

    Args:
        a, b: what metrics.json holds: "overall", "per_skeleton", "conventions".
        allow_differences: compare also where conventions or tracings differ; says so in the notes.
        n_resamples, seed: of the bootstrap; see `bootstrap_intervals`.

    Raises:
        InputError: a part is missing, no common neuron, or conventions, voxel sizes or tracings
            differ; the message names what differs.
    """
    check_draws(n_resamples, seed)
    rows_a, rows_b = rows_of(a, "A"), rows_of(b, "B")
    differing = conventions_that_differ(a["conventions"], b["conventions"])
    common = sorted(rows_a.keys() & rows_b.keys())
    only_a, only_b = sorted(rows_a.keys() - rows_b.keys()), sorted(rows_b.keys() - rows_a.keys())
    resized = other_sizes(common, rows_a, rows_b)
    if not common:
        raise InputError(
            "A and B have no neuron in common: neurons are matched by name, and A has "
            f"{named(only_a)}, B has {named(only_b)}"
        )
    if not allow_differences:
        refuse_differences(differing)
        check_sizes(resized, rows_a, rows_b)
    pairs = _Pairs.of([rows_a[n] for n in common], [rows_b[n] for n in common])
    return Comparison(
        _figures(pairs, n_resamples, seed),
        {n: {f: (rows_a[n][f], rows_b[n][f]) for f in COMPARED} for n in common},
        {n: int(rows_a[n]["edges"]) for n in common},
        tuple(only_a),
        tuple(only_b),
        {n: (a["overall"].get(n), b["overall"].get(n)) for n in UNTESTED},
        differing,
        tuple(resized),
        n_resamples,
        seed,
        (
            *_notes(common, only_a, only_b, differing, resized),
            *_segmentation_notes("A", a["conventions"]),
            *_segmentation_notes("B", b["conventions"]),
        ),
    )


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Rows and sums of the common neurons in A and in B, in the order of their names."""

    rows_a: Sequence[Row]
    rows_b: Sequence[Row]
    sums_a: Sequence[Sums]
    sums_b: Sequence[Sums]

    @classmethod
    def of(cls, rows_a: Sequence[Row], rows_b: Sequence[Row]) -> _Pairs:
        return cls(rows_a, rows_b, [sums_of(r) for r in rows_a], [sums_of(r) for r in rows_b])


def _figures(pairs: _Pairs, n_resamples: int, seed: int) -> dict[str, FigureComparison]:
    a, b = overall_figures(pairs.sums_a, None), overall_figures(pairs.sums_b, None)
    draws = _difference_draws(pairs, n_resamples, seed)
    known = _p_values(pairs, seed)
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    found = {}
    for name in COMPARED:
        low, high, reason = _interval(a[name], b[name], draws.get(name))
        found[name] = FigureComparison(
            better=FIGURES[name].better,
            a=a[name],
            b=b[name],
            difference=_difference(a[name], b[name]),
            low=low,
            high=high,
            p=known.get(name),
            p_adjusted=adjusted.get(name),
            **_verdicts(name, pairs),
            reason="; ".join(r for r in (reason, "" if name in known else _NO_TEST) if r),
        )
    return found


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else b - a


def _difference_draws(pairs: _Pairs, n_resamples: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """The differences of every resample, not finite where either figure is undefined."""
    if len(pairs.rows_a) < 2:
        return {}
    a = figure_draws(pairs.sums_a, None, n_resamples, seed)
    b = figure_draws(pairs.sums_b, None, n_resamples, seed)
    with np.errstate(invalid="ignore"):
        return {name: b[name] - a[name] for name in a}


def _p_values(pairs: _Pairs, seed: int) -> dict[str, float]:
    """By figure; none of those for which A and B do not divide by the same sizes."""
    a, b = sum_columns(pairs.sums_a, None), sum_columns(pairs.sums_b, None)
    tested = {name: _tested(FIGURES[name]) for name in COMPARED}
    parts = {
        name: some
        for name, (some, whole) in tested.items()
        if np.allclose(a[whole], b[whole], rtol=EQUAL, atol=0.0)
    }
    if not parts:
        return {}
    ours, theirs = (
        [np.sum([columns[part] for part in some], axis=0) for some in parts.values()]
        for columns in (b, a)
    )
    return dict(zip(parts, paired_permutation_tests(ours, theirs, seed=seed), strict=True))


def _tested(figure: Figure) -> tuple[tuple[str, ...], str]:
    """Columns of the statistic: of a rate those of its reciprocal."""
    return ((figure.whole,), figure.parts[0]) if figure.rate else (figure.parts, figure.whole)


def _interval(
    a: float | None, b: float | None, draws: NDArray[np.float64] | None
) -> tuple[float | None, float | None, str]:
    if a is None or b is None:
        return None, None, "no event, no rate"
    if draws is None:
        return None, None, ONE_NEURON
    undefined = int((~np.isfinite(draws)).sum())
    if undefined:
        return None, None, f"no event in {undefined} of {len(draws)} resamples"
    return (*percentile_bounds(draws), "")


def _verdicts(name: str, pairs: _Pairs) -> dict[str, int]:
    found = Counter(
        _verdict(x[name], y[name], FIGURES[name].better)
        for x, y in zip(pairs.rows_a, pairs.rows_b, strict=True)
    )
    return {f"neurons_{word}": found[word] for word in ("better", "worse", "equal")}


def _verdict(a: float | None, b: float | None, better: str) -> str:
    """What B does to a neuron; no event, no rate: the best."""
    first, second = (math.inf if value is None else value for value in (a, b))
    if first == second or math.isclose(first, second, rel_tol=EQUAL):
        return "equal"
    return "better" if (second > first) == (better == "high") else "worse"


def _notes(
    common: Sequence[str],
    only_a: Sequence[str],
    only_b: Sequence[str],
    differing: Mapping[str, Any],
    resized: Sequence[str],
) -> tuple[str, ...]:
    notes = list(notes_on(len(common)))
    for which, names in (("A", only_a), ("B", only_b)):
        if names:
            notes.append(f"{counted(names)} only in {which}, not compared: {named(names)}")
    if differing:
        notes.append(f"scored in different ways, compared nevertheless: {', '.join(differing)}")
    if resized:
        notes.append(f"{counted(resized)} of other size in A and B: {named(resized)}")
    least = smallest_p(len(common))
    if least > 1 - LEVEL:
        notes.append(f"{counted(common)} cannot give a p-value below {least:g}")
    return tuple(notes)


def _segmentation_notes(which: str, conventions: Mapping[str, str]) -> list[str]:
    """What was done to the labels of a segmentation before it was scored."""
    return [f"{which}: {conventions[n]}" for n in OF_THE_SEGMENTATION if n in conventions]
