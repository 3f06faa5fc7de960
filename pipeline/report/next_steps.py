"""What a user should do next, read off the report's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.report.facts import ReportData, ScoreFacts, ThresholdFacts
from pipeline.report.quantities import decimal
from pipeline.report.score_tables import number, overall

_ERRORS = {
    "pct_omit": (
        "of the tracings' edges lie on background: the network misses neurites. Look at the "
        "affinities where a tracing has no skeleton beside it. More training data of such places, "
        "longer training or a lower limit for fragments help; the agglomeration threshold "
        "does not."
    ),
    "pct_split": (
        "of the tracings' edges join two segments: neurites are cut. A lower agglomeration "
        "threshold joins more (see the threshold curve for what it costs in merges)."
    ),
    "pct_merged": (
        "of the tracings' edges lie in segments that hold more than one neuron. A higher "
        "agglomeration threshold separates more (see the threshold curve for what it costs in "
        "splits)."
    ),
}
# The same where the segmentation is given, and nothing is known of how it was made.
_GIVEN = {
    "pct_omit": (
        "of the tracings' edges lie on background: neurites are missing. The omissions among the "
        "sites say where; a whole tree without a segment was not found at all."
    ),
    "pct_split": (
        "of the tracings' edges join two segments: neurites are cut. The splits among the sites "
        "say where, those that cost most cable first."
    ),
    "pct_merged": (
        "of the tracings' edges lie in segments that hold more than one neuron. The merges among "
        "the sites say which segments, and where the neurons come closest."
    ),
}
_SMALL_PERCENT = 1.0
_OUTSIDE = "Check their unit, offset and the direction of each axis before trusting the scores."


@dataclass(frozen=True)
class NextStep:
    """One advice: `urgent` if results are incomplete or doubtful without it."""

    text: str
    command: str = ""
    urgent: bool = False


def next_steps(data: ReportData) -> list[NextStep]:
    """What to do next, the urgent first."""
    steps = [NextStep(warning, urgent=True) for warning in data.warnings]
    steps += _unfinished(data)
    if data.scores is not None:
        steps += _from_scores(data.scores, data)
    elif data.scope != "skeletons" and _unscored(data):
        text = (
            "Nothing was scored. With SWC tracings of a few neurons, or dense labels of a box, "
            "this report says how good the segmentation is."
        )
        steps.append(NextStep(text, data.commands.get("score", "")))
    if data.threshold is not None:
        steps += _from_threshold(data.threshold)
    if "view" in data.commands:
        steps.append(NextStep("Look at the result in the viewer.", data.commands["view"]))
    return sorted(steps, key=lambda step: not step.urgent)


def _unscored(data: ReportData) -> bool:
    return data.label_scores is None and (data.segments is not None or bool(data.stages))


def _unfinished(data: ReportData) -> Iterator[NextStep]:
    parts = []
    for stage in data.stages:
        if stage.failed:
            parts.append(f"{stage.name}: {stage.failed:,} failed")
        if stage.missing > 0:
            parts.append(f"{stage.name}: {stage.missing:,} not finished")
    if parts:
        text = f"Blocks are missing ({'; '.join(parts)}). Resume the run; finished blocks are kept."
        yield NextStep(text, data.commands.get("resume", ""), urgent=True)


def _from_scores(scores: ScoreFacts, data: ReportData) -> Iterator[NextStep]:
    run = overall(scores.run)
    outside, edges = number(run.get("out_of_bounds_nodes")), number(run.get("edges"))
    if outside and edges and outside > 0.02 * edges:
        # A warning of the run may have said so already.
        told = any("nodes of the tracings lie outside" in warning for warning in data.warnings)
        what = "So many" if told else decimal(outside)
        text = f"{what} nodes of the tracings lie outside of the volume. {_OUTSIDE}"
        yield NextStep(text, urgent=True)
    before = number(overall(scores.baseline).get("nerl"))
    now = number(run.get("nerl"))
    if before is not None and now is not None and now < before:
        yield NextStep(
            f"The {scores.baseline_name} scores higher (normalized ERL {before:.3f} against "
            f"{now:.3f}). Compare the training curves before using this network.",
            urgent=True,
        )
    shares = {key: number(run.get(key)) or 0.0 for key in _ERRORS}
    worst = max(shares, key=lambda key: shares[key])
    if shares[worst] >= _SMALL_PERCENT:
        advice = _GIVEN if data.scope == "evaluation" else _ERRORS
        yield NextStep(f"{decimal(shares[worst], 1)} % {advice[worst]}")


def _from_threshold(facts: ThresholdFacts) -> Iterator[NextStep]:
    if facts.chosen is None or len(facts.thresholds) < 3:
        return
    if facts.chosen in (min(facts.thresholds), max(facts.thresholds)):
        yield NextStep(
            f"The chosen threshold {facts.chosen:.3g} is at the end of those tried; "
            "a wider sweep may find a better one."
        )
