"""The tables of scores: this run beside the baseline or reference, and one row per tracing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.facts import LabelScoreFacts, ScoreFacts
from pipeline.report.quantities import MISSING, decimal

_Metric = tuple[str, str, str, float, int, int]
_Intervals = Mapping[str, tuple[float, float]]

# key, name, unit, factor from the stored value, decimals, +1 if more is better
_METRICS = (
    ("nerl", "Normalized ERL", "0 to 1, in edges", 1.0, 3, +1),
    ("nerl_nm", "Normalized ERL by length", "0 to 1", 1.0, 3, +1),
    ("erl_nm", "ERL", "µm", 1e-3, 1, +1),
    ("ffn_nerl_nm", "FFN ERL, normalized", "0 to 1, no repair", 1.0, 3, +1),
    ("ffn_erl_nm", "FFN ERL", "µm, no repair", 1e-3, 1, +1),
    ("edge_accuracy", "Edge accuracy", "%, split edges count as right", 1.0, 2, +1),
    ("edge_accuracy_strict", "Edge accuracy, strict", "%, split edges count as wrong", 1.0, 2, +1),
    ("pct_omit", "Omitted edges", "%", 1.0, 2, -1),
    ("pct_split", "Split edges", "%", 1.0, 2, -1),
    ("pct_merged", "Merged edges", "%", 1.0, 2, -1),
    ("splits_per_neuron", "Splits per neuron", "weighted by size", 1.0, 2, -1),
    ("merges_total", "Merges", "a label on n tracings counts n - 1", 1.0, 0, -1),
)

_LABEL_METRICS = (
    ("voi", "VOI", "bits, split + merge", 1.0, 3, -1),
    ("voi_split", "VOI split", "bits", 1.0, 3, -1),
    ("voi_merge", "VOI merge", "bits", 1.0, 3, -1),
    ("ari", "Adjusted Rand index", "1 is best, chance is 0", 1.0, 3, +1),
    ("adapted_rand_error", "Adapted Rand error", "0 to 1", 1.0, 3, -1),
    ("adapted_rand_precision", "Adapted Rand precision", "merges lower it", 1.0, 3, +1),
    ("adapted_rand_recall", "Adapted Rand recall", "splits lower it", 1.0, 3, +1),
    ("omitted_voxels", "Labelled voxels without a segment", "", 1.0, 0, -1),
    ("accuracy", "Accuracy of foreground", "0 to 1, background voxels count", 1.0, 3, +1),
    ("dice", "Dice of foreground", "0 to 1", 1.0, 3, +1),
    ("voxels", "Labelled voxels", "", 1.0, 0, +1),
)


def label_score_rows(facts: LabelScoreFacts) -> list[dict[str, str]]:
    """One row per metric, formatted: this run, the reference, and the difference."""
    return [
        _row(facts.run or {}, facts.reference or {}, metric, {}, {}) for metric in _LABEL_METRICS
    ]


def score_rows(facts: ScoreFacts) -> list[dict[str, str]]:
    """One row per metric, formatted: both values, their intervals, and the difference."""
    ours, theirs = overall(facts.run), overall(facts.baseline)
    intervals = facts.run_intervals, facts.baseline_intervals
    return [_row(ours, theirs, metric, *intervals) for metric in _METRICS]


def tracing_rows(facts: ScoreFacts) -> list[dict[str, Any]]:
    """One row per tracing of `per_skeleton`, the worst normalized ERL first, unscored ones last.

    Adds `name` and `baseline_nerl` (None where the baseline lacks the tracing).
    """
    before = (facts.baseline or {}).get("per_skeleton") or {}
    found = facts.run.get("per_skeleton") or {}
    rows = [
        {**row, "name": str(name), "baseline_nerl": number(before.get(name, {}).get("nerl"))}
        for name, row in found.items()
    ]
    return sorted(rows, key=_worst_first)


def _worst_first(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    nerl = number(row.get("nerl"))
    return nerl is None, nerl or 0.0, row["name"]


def nerl_pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Normalized ERL of baseline and run, of every tracing that has both."""
    pairs = [(number(row["baseline_nerl"]), number(row.get("nerl"))) for row in rows]
    return [(before, now) for before, now in pairs if before is not None and now is not None]


def convention_rows(facts: ScoreFacts) -> list[tuple[str, str]]:
    """Name and text of each scoring convention."""
    found: Mapping[str, Any] = facts.run.get("conventions") or {}
    return [(str(name).replace("_", " "), str(text)) for name, text in found.items()]


def overall(metrics: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The pooled metrics; empty where there are none."""
    return (metrics or {}).get("overall") or {}


def number(value: Any) -> float | None:
    """`value` as a float if it is a finite number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def _row(
    run: Mapping[str, Any],
    other: Mapping[str, Any],
    metric: _Metric,
    run_intervals: _Intervals,
    other_intervals: _Intervals,
) -> dict[str, str]:
    key, name, unit, factor, digits, sense = metric
    ours, theirs = number(run.get(key)), number(other.get(key))
    change, verdict = MISSING, ""
    if ours is not None and theirs is not None:
        difference = round((ours - theirs) * factor, digits)
        sign = "+" if difference > 0 else "\N{MINUS SIGN}" if difference < 0 else ""
        change = sign + decimal(abs(difference), digits)
        if difference:
            verdict = "better" if difference * sense > 0 else "worse"
    return {
        "name": name,
        "unit": unit,
        "run": _scaled(ours, factor, digits),
        "run_interval": _interval(run_intervals.get(key), factor, digits),
        "baseline": _scaled(theirs, factor, digits),
        "baseline_interval": _interval(other_intervals.get(key), factor, digits),
        "change": change,
        "verdict": verdict,
    }


def _scaled(value: float | None, factor: float, digits: int) -> str:
    return MISSING if value is None else decimal(value * factor, digits)


def _interval(bounds: Sequence[float] | None, factor: float, digits: int) -> str:
    if bounds is None:
        return ""
    return f"{_scaled(bounds[0], factor, digits)} to {_scaled(bounds[1], factor, digits)}"
