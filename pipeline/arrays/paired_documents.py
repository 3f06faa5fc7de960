"""The scores that a `metrics.json` holds: what a comparison takes from it, and what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from pipeline.arrays.bootstrap import FIGURES
from pipeline.arrays.metrics_sums import Sums, ratio
from pipeline.errors import InputError

Document = Mapping[str, Any]
Row = Mapping[str, Any]
Differences = Mapping[str, tuple[str | None, str | None]]

EQUAL = 1e-9
"""Figures and lengths that differ relatively by less are equal but for rounding."""

_RATES = tuple(name for name, figure in FIGURES.items() if figure.rate)
_NUMBERS = (
    *(name for name in FIGURES if name not in (*_RATES, "splits_per_neuron")),
    "edges", "correct_edges", "omit_edges", "split_edges", "merged_edges", "splits",
    "merged_components", "repaired_nodes", "ambiguous_nodes", "out_of_bounds_nodes",
    "run_length_nm",
)  # fmt: skip
_SIZES = (("edges", "edges"), ("run_length_nm", "nm of cable"))
# What the repair changed differs between segmentations; how it is done must not.
_REPAIR_COUNTS = re.compile(r": \d+ nodes repaired, \d+ ambiguous; without that limit \d+ and \d+")
OF_THE_SEGMENTATION = ("lookup", "excluded")
"""Topics of the conventions that say what was scored, not how."""
_SHOWN = 3
_CLIP = 60


def rows_of(document: Document, which: str) -> dict[str, Row]:
    """The measures of each neuron by name, its splits also as `splits_per_neuron`.

    Args:
        document: what metrics.json holds.
        which: what to call it in messages.

    Raises:
        InputError: a part or a measure is missing, or a measure is no finite number.
    """
    for part in ("overall", "per_skeleton", "conventions"):
        if not isinstance(document.get(part), Mapping):
            raise InputError(
                f"{which} has no {part!r}; expected the content of a metrics.json that axonloom "
                "evaluate has finished"
            )
    rows = document["per_skeleton"]
    for name, row in rows.items():
        _check_row(row, f"{which}: neuron {name}")
    return {name: {**row, "splits_per_neuron": row["splits"]} for name, row in rows.items()}


def _check_row(row: Row, what: str) -> None:
    missing = [key for key in (*_NUMBERS, *_RATES) if key not in row]
    if missing:
        raise InputError(f"{what} has no {', '.join(missing)}; score it again with this version")
    wrong = [key for key in _NUMBERS if not _is_number(row[key])]
    wrong += [key for key in _RATES if row[key] is not None and not _is_number(row[key])]
    if wrong:
        raise InputError(f"{what}: {wrong[0]} is {row[wrong[0]]!r}, expected a finite number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def conventions_that_differ(
    a: Mapping[str, str], b: Mapping[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    """Conventions, by topic, that two sets of scores do not share; None where one has none.

    How many nodes the repair changed is a result, and a lookup or segments left out are part of the
    segmentation: no conventions.
    """
    names = [n for n in (*a, *(n for n in b if n not in a)) if n not in OF_THE_SEGMENTATION]
    pairs = {name: (a.get(name), b.get(name)) for name in names}
    return {n: pair for n, pair in pairs.items() if _rule(pair[0]) != _rule(pair[1])}


def _rule(text: str | None) -> str | None:
    return None if text is None else _REPAIR_COUNTS.sub("", text)


def refuse_differences(differing: Differences) -> None:
    """Refuse scores that were not made alike.

    Raises:
        InputError: there are conventions that differ.
    """
    if differing:
        told = "; ".join(
            f"{name} (A: {_clipped(a, b)}, B: {_clipped(b, a)})"
            for name, (a, b) in differing.items()
        )
        raise InputError(
            f"A and B were scored in different ways: {told}. Score both alike, or allow the "
            "difference if you know what it does to the figures"
        )


def _clipped(text: str | None, other: str | None) -> str:
    """The text from shortly before it differs from the other."""
    if text is None:
        return "none"
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(text, other or "", strict=False))
    start = max(0, sum(1 for _ in alike) - _CLIP // 2)
    end = start + _CLIP
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def other_sizes(names: Iterable[str], a: Mapping[str, Row], b: Mapping[str, Row]) -> list[str]:
    """The neurons whose tracings have other numbers of edges or other lengths in A and B."""
    return [
        name
        for name in names
        if not all(math.isclose(a[name][key], b[name][key], rel_tol=EQUAL) for key, _ in _SIZES)
    ]


def check_sizes(names: Sequence[str], a: Mapping[str, Row], b: Mapping[str, Row]) -> None:
    """Refuse neurons of `other_sizes`.

    Raises:
        InputError: there are any.
    """
    if not names:
        return
    first = names[0]
    told = ", ".join(
        f"{a[first][key]:.10g} and {b[first][key]:.10g} {what}" for key, what in _SIZES
    )
    raise InputError(
        f"{counted(names)} {'is' if len(names) == 1 else 'are'} not of one size in A and B: "
        f"{named(names)}; {first} has {told}. Score both with the same tracings, region "
        "and treatment of nodes out of bounds, or allow the difference"
    )


def counted(names: Sequence[str]) -> str:
    """How many neurons these are."""
    return "1 neuron" if len(names) == 1 else f"{len(names)} neurons"


def named(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    if not names:
        return "none"
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def sums_of(row: Row) -> Sums:
    """The sums behind the measures of one neuron: the inverse of `measures`.

    Counts are exact; squared lengths are rounded once more.
    """
    edges, length = int(row["edges"]), float(row["run_length_nm"])
    square_edges = round(row["erl"] * edges)
    return Sums(
        edges=edges,
        correct=int(row["correct_edges"]),
        omit=int(row["omit_edges"]),
        split=int(row["split_edges"]),
        merged=int(row["merged_edges"]),
        splits=int(row["splits"]),
        weighted_splits=int(row["splits"]) * edges,
        merged_components=int(row["merged_components"]),
        repaired=int(row["repaired_nodes"]),
        ambiguous=int(row["ambiguous_nodes"]),
        outside=int(row["out_of_bounds_nodes"]),
        square_edges=square_edges,
        share_edges=ratio(square_edges, edges),
        length_nm=length,
        square_length=length**2,
        square_nm=row["erl_nm"] * length,
        share_nm=row["nerl_nm"] * length,
        ffn_square_nm=row["ffn_erl_nm"] * length,
    )
