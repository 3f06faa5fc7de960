"""What a comparison of losses says, in words: names of figures, verdicts, sentences.

Used by the terminal and by the report, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SIGNIFICANT = 0.05

Table = Mapping[str, Any]
Entry = Mapping[str, Any]
Verdict = Literal["better", "worse", "unclear", ""]


@dataclass(frozen=True)
class Figure:
    """How a figure is called, and its decimals."""

    key: str
    name: str
    digits: int


FIGURES = (
    Figure("nerl", "nERL", 3),
    Figure("splits", "splits", 1),
    Figure("merges_total", "merges", 1),
    Figure("voi", "VOI", 3),
    Figure("ari", "ARI", 3),
    Figure("dice", "Dice", 3),
    Figure("cldice", "clDice", 3),
    Figure("betti_e", "Betti e", 2),
    Figure("fpr", "FPR", 4),
    Figure("fnr", "FNR", 3),
)
"""The figures of the table; `comparison.csv` has all."""

_TOLD = ("nerl", "voi", "cldice", "betti_e", "dice")


def figures_of(table: Table) -> list[Figure]:
    """The figures of `FIGURES` that a comparison has."""
    return [figure for figure in FIGURES if figure.key in table["figures"]]


def verdict(entry: Entry, better: str) -> Verdict:
    """Whether a figure differs from the baseline's, and to which side.

    "unclear" where the cases differ significantly to one side and the whole region to the other.
    """
    p = entry["p_adjusted"]
    if p is None or p >= SIGNIFICANT:
        return ""
    sense = 1 if better == "high" else -1
    gains = [sense * entry[key] for key in ("observed", "difference") if entry[key] is not None]
    if min(gains) < 0 < max(gains):
        return "unclear"
    return "better" if sum(gains) > 0 else "worse"


def signed(value: float, digits: int) -> str:
    """A difference with its sign, and without one if it rounds to 0."""
    text = f"{value:+.{digits}f}"
    return text if any(c in "123456789" for c in text) else text[1:]


def sentences(table: Table) -> Iterator[tuple[str, str]]:
    """Name of each row but the baseline, and a sentence of what differs from the baseline."""
    for name, row in table["rows"].items():
        if name != table["baseline"]:
            yield name, _sentence(table, name, row)


def _sentence(table: Table, name: str, row: Mapping[str, Any]) -> str:
    parts = []
    for figure in figures_of(table):
        entry = row["figures"][figure.key]
        found = verdict(entry, table["figures"][figure.key])
        told = found or figure.key in _TOLD
        if told and entry.get("difference") is not None:
            parts.append(f"{figure.name} {_difference(entry, figure, found)}")
    cost = table["costs"]["losses"].get(name)
    if cost is not None:
        parts.append(f"step x{cost['ratio']:.2f}")
    return "; ".join(parts) or "nothing to compare"


def _difference(entry: Entry, figure: Figure, found: Verdict) -> str:
    said = signed(entry["difference"], figure.digits)
    if not found:
        return f"{said} (n.s.)"
    return f"{said} ({found}, p {p_text(entry['p_adjusted'])}, {observations(entry)})"


def observations(entry: Entry) -> str:
    """Such as "12 neurons"."""
    count, over = entry["observations"], entry["over"]
    return f"{count} {over if count != 1 else over[:-1]}"


def p_text(p: float) -> str:
    """A p-value with two digits; never 0."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def how_tested(table: Table) -> list[str]:
    """How was tested, and which figures could not have shown a difference."""
    entries = {
        figure: [row["figures"][figure.key] for row in _others(table)]
        for figure in figures_of(table)
    }
    tested = {f: [e for e in rows if e["p"] is not None] for f, rows in entries.items()}
    counts: dict[tuple[str, float], list[str]] = {}
    for figure, rows in tested.items():
        if rows:
            largest = max(rows, key=lambda e: e["observations"])
            key = observations(largest), min(e["smallest_p"] for e in rows)
            counts.setdefault(key, []).append(figure.name)
    number = max((len(rows) for rows in tested.values()), default=0)
    told = [
        "Paired permutation tests against "
        f"{table['baseline']}, two-sided; p-values are adjusted for {number} rows (Holm), and "
        f"significant means below {SIGNIFICANT}. Seeds are repetitions: of each observation the "
        "mean over the seeds counts, but where there are no more observations than seeds. "
        "p-values are not adjusted for the number of figures; windows, planes and neurons of one "
        "volume are less than independent volumes."
    ]
    for (what, smallest), names in counts.items():
        line = f"{', '.join(names)}: {what}, the smallest p possible is {p_text(smallest)}"
        told.append(line + (", so none can be significant" if smallest >= SIGNIFICANT else ""))
    return told


def outcome(table: Table) -> list[str]:
    """Which rows are significantly better or worse in which figures, and which in none."""
    told, none = [], []
    for name, row in table["rows"].items():
        if name == table["baseline"]:
            continue
        found: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
        for figure in figures_of(table):
            said = verdict(row["figures"][figure.key], table["figures"][figure.key])
            if said:
                found[said].append(figure.name)
        parts = [f"{said} in {', '.join(names)}" for said, names in found.items() if names]
        if parts:
            told.append(f"{name}: significantly {'; '.join(parts)}")
        else:
            none.append(name)
    if none:
        told.append(f"no significant difference to {table['baseline']}: {', '.join(none)}")
    return told


def _others(table: Table) -> list[Mapping[str, Any]]:
    return [row for name, row in table["rows"].items() if name != table["baseline"]]
