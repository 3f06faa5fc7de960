"""The table of a comparison: mean and spread over seeds, and tests against the baseline.

Each figure of each row is tested against the baseline's (`paired_permutation_test`). Observations
are cases (planes, windows, neurons), each with the mean of its differences over the seeds: seeds
are repetitions, not observations. A figure with no more cases than seeds is tested over the seeds.
p-values of one figure are adjusted for the number of rows (Holm).

What is tested is the mean of the observations. It need not be the difference of the figures of the
whole region, in which large neurons and full windows weigh more; both are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.arrays.permutation import holm, paired_permutation_test, smallest_p
from pipeline.stages.comparison_scores import FIGURES, SKELETON_BETTER

Result = Mapping[str, Any]


def compare_rows(
    results: Sequence[Result], baseline: str, costs: Mapping[str, Any], cases: str = "windows"
) -> dict[str, Any]:
    """Everything the report tells.

    Args:
        results: of the trainings: "seed" and "rows" ({name: {"overall", "cases"}}).
        baseline: name of the row to test against.
        costs: time and memory of a step, see `comparison_costs`.
        cases: what the cases of voxel figures are: "planes" or "windows".

    Returns:
        "baseline", "seeds", "figures" ({name: better end}), "costs", and "rows": {name: {"figures":
        {figure: entry}}}. An entry has "mean" and "sd" over the seeds (None where there is none),
        "seeds" ({seed: figure}), "p_adjusted", and unless it is the baseline's "difference" (mean
        over the seeds, of the region), "p", "observations" (their number), "over" ("neurons",
        "planes", "windows" or "seeds"), "observed" (the mean of their differences) and
        "smallest_p" (that so many can give, adjusted).
    """
    by_row = _by_row(results)
    figures = [figure for figure in FIGURES if any(_values(row, figure) for row in by_row.values())]
    rows: dict[str, dict[str, Any]] = {name: {"figures": {}} for name in by_row}
    for figure in figures:
        tests = _tests(by_row, baseline, figure, cases)
        for name, row in by_row.items():
            rows[name]["figures"][figure] = {
                **_spread(_values(row, figure)),
                "p_adjusted": None,
                **tests.get(name, {}),
            }
    return {
        "baseline": baseline,
        "seeds": sorted({result["seed"] for result in results}),
        "figures": {figure: FIGURES[figure] for figure in figures},
        "rows": rows,
        "costs": dict(costs),
    }


def case_differences(results: Sequence[Result], baseline: str) -> dict[str, dict[str, list[float]]]:
    """Of each figure and row but the baseline, the difference of each case to the baseline's.

    Means over the seeds, in the order of the cases; cases that either has no figure for are left
    out.
    """
    by_row = _by_row(results)
    return {
        figure: {
            name: _differences_by_case(row, by_row[baseline], figure)
            for name, row in by_row.items()
            if name != baseline
        }
        for figure in FIGURES
    }


def table_rows(table: Mapping[str, Any]) -> list[list[Any]]:
    """A heading and a line for each row and figure, for a spreadsheet."""
    columns = ("mean", "sd", "difference", "p", "p_adjusted", "observations", "over", "observed")
    lines: list[list[Any]] = [["row", "figure", "better", *columns]]
    for name, row in table["rows"].items():
        for figure, entry in row["figures"].items():
            lines.append([name, figure, table["figures"][figure], *(entry.get(c) for c in columns)])
    return lines


def _by_row(results: Sequence[Result]) -> dict[str, dict[int, Result]]:
    """Scores by row and seed; rows in the order in which trainings gave them."""
    names = dict.fromkeys(name for result in results for name in result["rows"])
    return {n: {r["seed"]: r["rows"][n] for r in results if n in r["rows"]} for n in names}


def _values(seeds: Mapping[int, Result], figure: str) -> dict[int, float]:
    """The figure of the region, by seed, where it exists."""
    found = {seed: row["overall"].get(figure) for seed, row in seeds.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _spread(values: Mapping[int, float]) -> dict[str, Any]:
    every = list(values.values())
    return {
        "mean": float(np.mean(every)) if every else None,
        "sd": float(np.std(every, ddof=1)) if len(every) > 1 else None,
        "seeds": {str(seed): value for seed, value in sorted(values.items())},
    }


def _tests(
    by_row: Mapping[str, Mapping[int, Result]], baseline: str, figure: str, cases: str
) -> dict[str, dict[str, Any]]:
    """The test of each row but the baseline, adjusted for their number."""
    base = by_row[baseline]
    tests = {
        name: _test(row, base, figure, cases) for name, row in by_row.items() if name != baseline
    }
    known = [test for test in tests.values() if test["p"] is not None]
    for test, p in zip(known, holm([test["p"] for test in known]), strict=True):
        test["p_adjusted"] = p
        test["smallest_p"] = min(1.0, len(known) * smallest_p(test["observations"]))
    return tests


def _test(
    row: Mapping[int, Result], base: Mapping[int, Result], figure: str, cases: str
) -> dict[str, Any]:
    """The differences to the baseline, and whether they can be chance."""
    by_case = _differences_by_case(row, base, figure)
    ours, theirs = _values(row, figure), _values(base, figure)
    by_seed = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    over, differences = "seeds", by_seed
    if len(by_case) > len(by_seed):
        over, differences = "neurons" if figure in SKELETON_BETTER else cases, by_case
    count = len(differences)
    return {
        "difference": float(np.mean(by_seed)) if by_seed else None,
        "p": paired_permutation_test(differences, [0.0] * count) if count else None,
        "observations": count,
        "over": over,
        "observed": float(np.mean(differences)) if count else None,
    }


def _differences_by_case(
    row: Mapping[int, Result], base: Mapping[int, Result], figure: str
) -> list[float]:
    """Of each case the mean difference over the seeds in which both have the figure."""
    found: dict[int, list[float]] = {}
    for seed in row.keys() & base.keys():
        pairs = zip(
            row[seed]["cases"].get(figure, ()), base[seed]["cases"].get(figure, ()), strict=True
        )
        for case, (ours, theirs) in enumerate(pairs):
            if ours is not None and theirs is not None:
                found.setdefault(case, []).append(ours - theirs)
    return [float(np.mean(found[case])) for case in sorted(found)]
