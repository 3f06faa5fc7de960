"""`axonloom compare`: two scored segmentations of the same neurons, neuron by neuron.

Reads two `metrics.json` and nothing else. Writes into one folder

- comparison.json, all numbers and how they were made;
- comparison.csv, a line for each figure; comparison_neurons.csv, a line for each neuron;
- comparison.png and comparison.svg.

Every file appears whole or not at all, and equal input gives equal bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.arrays.bootstrap import RESAMPLES
from pipeline.arrays.paired import COMPARED, Comparison, FigureComparison, compare
from pipeline.arrays.paired_documents import counted
from pipeline.errors import InputError
from pipeline.report.comparison_words import signed
from pipeline.report.metric_charts import comparison_chart, verdict_of
from pipeline.report.quantities import MISSING, decimal
from pipeline.report.sweep_chart import as_png, as_svg
from pipeline.stages.evaluate import EVALUATE, NODE_LABELS
from pipeline.storage.atomic import replacing, write_json, write_text
from pipeline.storage.ledger import Ledger

METRICS = "metrics.json"
_FINISH = "the result of axonloom evaluate, or of an axonloom run with tracings"


@dataclass(frozen=True)
class Compared:
    """A finished comparison: what was compared, and where the files are."""

    a: Path
    b: Path
    folder: Path
    comparison: Comparison


def compare_segmentations(
    a: Path,
    b: Path,
    out: Path,
    *,
    allow_differences: bool = False,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Compared:
    """Compare two scored segmentations and write the results; earlier results are replaced.

    Args:
        a, b: folders with a metrics.json, or such files.
        out: folder of the results; made if absent.
        allow_differences: compare also where conventions or tracings differ.
        n_resamples, seed: of the bootstrap.

    Raises:
        InputError: before anything is written: no metrics.json, an unfinished one, no common
            neuron, or scores that were not made alike.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; expected a folder")
    comparison = compare(
        read_metrics(a),
        read_metrics(b),
        allow_differences=allow_differences,
        n_resamples=n_resamples,
        seed=seed,
    )
    _write(comparison, a, b, out)
    return Compared(a, b, out, comparison)


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a metrics.json, given as file or by its folder.

    Raises:
        InputError: it is absent, of an evaluation that has not finished, or of an earlier one.
    """
    file = path / METRICS if path.is_dir() else path
    if not file.is_file():
        what = f"no {METRICS} in it" if path.is_dir() else "no such file or folder"
        raise InputError(f"{path}: {what}; expected {_FINISH}")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file}: no JSON ({error}); expected {_FINISH}") from error
    _require_present(file.parent)
    if content == {}:
        raise InputError(
            f"{file} is still empty: the evaluation has not finished; run it to its end first"
        )
    if not isinstance(content, dict) or not isinstance(content.get("per_skeleton"), dict):
        raise InputError(f"{file}: no scores of neurons in it; expected {_FINISH}")
    return content


def _require_present(folder: Path) -> None:
    """Refuse scores that lie beside the ledger of a later evaluation, which has not finished."""
    scored, labels = (
        Ledger(folder / "ledger" / f"{s.name}.jsonl") for s in (EVALUATE, NODE_LABELS)
    )
    if scored.header is None or labels.header is None:
        return
    if scored.header.description["inputs"].get("node_labels") != labels.header.key:
        raise InputError(
            f"{folder / METRICS}: of an earlier evaluation in this folder; a later one, of other "
            f"input, has not finished (axonloom status {folder}); run it to its end first"
        )


def _write(comparison: Comparison, a: Path, b: Path, out: Path) -> None:
    names = _names(a, b)
    write_json(out / "comparison.json", {"a": str(a), "b": str(b), **comparison.as_json()})
    write_text(out / "comparison.csv", _csv(_figure_lines(comparison)))
    write_text(out / "comparison_neurons.csv", _csv(_neuron_lines(comparison)))
    chart = comparison_chart(comparison, *names)
    for name, content in (("png", as_png(chart)), ("svg", as_svg(chart).encode())):
        with replacing(out / f"comparison.{name}") as temporary:
            temporary.write_bytes(content)


def _names(a: Path, b: Path) -> tuple[str, str]:
    """What to call them in the picture: their folders, as far up as tells them apart."""
    first, second = ((p.parent if p.name == METRICS else p).resolve() for p in (a, b))
    if first == second:
        return "A", "B"
    if first.name != second.name:
        return first.name, second.name
    return f"{first.parent.name}/{first.name}", f"{second.parent.name}/{second.name}"


def _figure_lines(comparison: Comparison) -> Iterable[Sequence[Any]]:
    columns = (
        "better", "a", "b", "difference", "low", "high", "p", "p_adjusted", "neurons_better",
        "neurons_worse", "neurons_equal", "reason",
    )  # fmt: skip
    yield ("figure", *columns)
    for name, figure in comparison.figures.items():
        yield (name, *(getattr(figure, column) for column in columns))


def _neuron_lines(comparison: Comparison) -> Iterable[Sequence[Any]]:
    yield (
        "neuron",
        "edges",
        *(f"{name}_{which}" for name in COMPARED for which in ("a", "b", "difference")),
    )
    for name, row in comparison.per_neuron.items():
        cells = (cell for a, b in row.values() for cell in (a, b, _difference(a, b)))
        yield (name, comparison.edges[name], *cells)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else b - a


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(["" if cell is None else cell for cell in line] for line in lines)
    return text.getvalue()


# Key, heading, factor from the stored value, decimals.
_LINES = (
    ("nerl", "nERL", 1.0, 3),
    ("nerl_nm", "nERL by length", 1.0, 3),
    ("erl_nm", "ERL (µm)", 1e-3, 1),
    ("ffn_nerl_nm", "FFN ERL, normalized", 1.0, 3),
    ("ffn_erl_nm", "FFN ERL (µm)", 1e-3, 1),
    ("edge_accuracy", "edge accuracy (%)", 1.0, 2),
    ("edge_accuracy_strict", "strict (%)", 1.0, 2),
    ("pct_omit", "omitted (%)", 1.0, 2),
    ("pct_split", "split (%)", 1.0, 2),
    ("pct_merged", "merged (%)", 1.0, 2),
    ("splits_per_neuron", "splits per neuron", 1.0, 2),
    ("split_rate_nm", "µm per split", 1e-3, 1),
)


def tell_comparison(done: Compared) -> None:
    """Print the table of a comparison, its notes, and where the files are.

    Bold is what differs by the adjusted p-value.
    """
    console = Console(soft_wrap=True, emoji=False)
    comparison = done.comparison
    console.print(f"A  {done.a}\nB  {done.b}", highlight=False, markup=False)
    console.print(_table(comparison))
    counts = "; ".join(
        f"{heading} {decimal(a)} in A, {decimal(b)} in B"
        for heading, (a, b) in (
            ("splits", comparison.untested["splits"]),
            ("merges", comparison.untested["merges_total"]),
        )
    )
    console.print(f"all neurons of each: {counts}", highlight=False)
    for note in comparison.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(
        f"comparison  {done.folder / 'comparison.json'}, comparison.csv, comparison_neurons.csv\n"
        f"picture     {done.folder / 'comparison.png'}, comparison.svg",
        highlight=False, markup=False,
    )  # fmt: skip


def _table(comparison: Comparison) -> Table:
    title = f"{counted(list(comparison.per_neuron))} in both"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("A", "B", "B - A", "95 % interval", "p\n(Holm)", "better/worse\n/equal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for key, heading, factor, digits in _LINES:
        figure = comparison.figures[key]
        change = figure.difference
        table.add_row(
            heading,
            _scaled(figure.a, factor, digits),
            _scaled(figure.b, factor, digits),
            MISSING if change is None else signed(change * factor, digits),
            _interval(figure, factor, digits),
            MISSING if figure.p_adjusted is None else f"{figure.p_adjusted:.2g}",
            f"{figure.neurons_better}/{figure.neurons_worse}/{figure.neurons_equal}",
            style="bold" if verdict_of(figure) else None,
        )
    return table


def _scaled(value: float | None, factor: float, digits: int) -> str:
    return MISSING if value is None else decimal(value * factor, digits)


def _interval(figure: FigureComparison, factor: float, digits: int) -> str:
    if figure.low is None or figure.high is None:
        return MISSING
    return f"{_scaled(figure.low, factor, digits)} to {_scaled(figure.high, factor, digits)}"
