"""The table of a comparison: means, spread, tests against the baseline, and what lacks figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.arrays.permutation import paired_permutation_test
from pipeline.report.comparison_words import how_tested, outcome, sentences, signed, verdict
from pipeline.stages.comparison_table import case_differences, compare_rows, table_rows

COSTS: dict[str, Any] = {"losses": {}}


def scores(overall: dict[str, float | None], **cases: list[float | None]) -> dict[str, Any]:
    return {"overall": overall, "cases": cases}


def result(seed: int, **rows: dict[str, Any]) -> dict[str, Any]:
    return {"seed": seed, "rows": rows}


def compare(results: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return compare_rows(results, "base", COSTS, **options)


def two_seeds() -> list[dict[str, Any]]:
    """The loss is better by 0.1 in each of 8 windows, and by 0.2 with the other seed."""
    windows = [0.1 * i for i in range(8)]

    def better(by: float) -> dict[str, Any]:
        return scores({"dice": 0.5 + by}, dice=[v + by for v in windows])

    return [
        result(seed, base=scores({"dice": 0.5}, dice=[*windows]), loss=better(by))
        for seed, by in ((3, 0.1), (7, 0.2))
    ]


def entry(table: dict[str, Any], row: str, figure: str = "dice") -> dict[str, Any]:
    found: dict[str, Any] = table["rows"][row]["figures"][figure]
    return found


def test_means_and_spread_over_seeds() -> None:
    table = compare(two_seeds())
    assert table["seeds"] == [3, 7]
    assert table["figures"] == {"dice": "high"}
    assert entry(table, "base")["mean"] == 0.5
    assert entry(table, "base")["sd"] == 0.0
    loss = entry(table, "loss")
    assert loss["mean"] == pytest.approx(0.65)
    assert loss["sd"] == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert loss["seeds"] == {"3": pytest.approx(0.6), "7": pytest.approx(0.7)}
    assert loss["difference"] == pytest.approx(0.15)


def test_seeds_are_repetitions_and_cases_observations() -> None:
    loss = entry(compare(two_seeds()), "loss")
    assert (loss["observations"], loss["over"]) == (8, "windows")
    assert loss["p"] == loss["p_adjusted"] == 2 / 2**8
    assert loss["smallest_p"] == 2 / 2**8
    assert loss["observed"] == pytest.approx(0.15)
    assert "p" not in entry(compare(two_seeds()), "base")


def test_figures_without_more_cases_than_seeds_are_tested_over_seeds() -> None:
    one = [
        result(s, base=scores({"nerl": 0.1}, nerl=[0.1]), loss=scores({"nerl": v}, nerl=[v]))
        for s, v in ((0, 0.2), (1, 0.4))
    ]
    loss = entry(compare(one), "loss", "nerl")
    assert (loss["observations"], loss["over"], loss["p"]) == (2, "seeds", 0.5)
    assert loss["observed"] == pytest.approx(0.2)


def test_what_cases_are_called() -> None:
    table = compare(two_seeds(), cases="planes")
    assert entry(table, "loss")["over"] == "planes"
    rows = {"base": scores({"nerl": 0.1}, nerl=[0.1, 0.2]), "x": scores({"nerl": 0.2}, nerl=[1, 2])}
    assert entry(compare([result(0, **rows)], cases="planes"), "x", "nerl")["over"] == "neurons"


def test_p_values_are_adjusted_for_the_rows() -> None:
    """By hand: p of 2/32 and 6/32 over three rows, one of which has no figure."""
    base = scores({"dice": 0.5}, dice=[0.0] * 5)
    results = [
        result(
            0,
            base=base,
            all_up=scores({"dice": 0.6}, dice=[1.0, 2.0, 4.0, 8.0, 16.0]),
            one_down=scores({"dice": 0.6}, dice=[1.0, -2.0, 4.0, 8.0, 16.0]),
            none=scores({"dice": None}, dice=[None] * 5),
        )
    ]
    table = compare(results)
    assert entry(table, "all_up")["p"] == 2 / 32
    assert entry(table, "all_up")["p_adjusted"] == 4 / 32
    expected = paired_permutation_test([1, -2, 4, 8, 16], [0] * 5)
    assert entry(table, "one_down")["p"] == entry(table, "one_down")["p_adjusted"] == expected
    assert expected > 4 / 32
    assert entry(table, "all_up")["smallest_p"] == 4 / 32
    nothing = entry(table, "none")
    assert (nothing["mean"], nothing["sd"], nothing["p"], nothing["p_adjusted"]) == (None,) * 4
    assert nothing["observations"] == 0


def test_cases_without_a_figure_are_left_out() -> None:
    results = [
        result(
            seed,
            base=scores({"dice": 0.5}, dice=[0.1, None, 0.3, 0.4]),
            loss=scores({"dice": 0.6}, dice=[0.2, 0.9, None if seed else 0.5, 0.5]),
        )
        for seed in (0, 1)
    ]
    loss = entry(compare(results), "loss")
    assert loss["observations"] == 3
    found = case_differences(results, "base")["dice"]
    assert found == {"loss": pytest.approx([0.1, 0.2, 0.1])}


def test_a_row_that_lacks_a_seed_is_compared_on_the_others() -> None:
    results = two_seeds()
    del results[1]["rows"]["loss"]
    loss = entry(compare(results), "loss")
    assert loss["seeds"] == {"3": pytest.approx(0.6)}
    assert loss["sd"] is None
    assert [loss["difference"], loss["observed"]] == pytest.approx([0.1, 0.1])
    assert loss["observations"] == 8


def test_rows_keep_their_order_and_the_spreadsheet_has_all() -> None:
    results = [{"seed": 0, "rows": {"z": scores({"dice": 0.1}), "base": scores({"dice": 0.2})}}]
    table = compare(results)
    assert list(table["rows"]) == ["z", "base"]
    heading, first, second = table_rows(table)
    assert first[: heading.index("mean") + 1] == ["z", "dice", "high", 0.1]
    assert second[heading.index("p")] is None
    assert first[heading.index("over")] == "seeds"


# --- in words


def test_the_verdict_says_which_end_is_better() -> None:
    told = {"p_adjusted": 0.01, "observed": 0.2, "difference": 0.1}
    assert verdict(told, "high") == "better"
    assert verdict(told, "low") == "worse"
    assert verdict({**told, "p_adjusted": 0.05}, "high") == ""
    assert verdict({**told, "p_adjusted": None}, "high") == ""
    assert verdict({**told, "difference": -0.1}, "high") == "unclear"
    assert verdict({**told, "difference": 0.0}, "low") == "worse"


def test_sentences() -> None:
    table = compare(two_seeds())
    table["costs"] = {"losses": {"loss": {"ratio": 1.084}}}
    assert list(sentences(table)) == [
        ("loss", "Dice +0.150 (better, p 0.0078, 8 windows); step x1.08")
    ]
    assert outcome(table) == ["loss: significantly better in Dice"]
    assert "8 windows, the smallest p possible is 0.0078" in how_tested(table)[1]


def test_few_observations_are_said_to_show_nothing() -> None:
    rows = {"base": scores({"nerl": 0.1}, nerl=[0, 0, 0]), "x": scores({"nerl": 1}, nerl=[1, 1, 1])}
    table = compare([result(0, **rows)])
    assert how_tested(table)[1].endswith("0.25, so none can be significant")
    assert outcome(table) == ["no significant difference to base: x"]
    [(_, sentence)] = sentences(table)
    assert sentence == "nERL +0.900 (n.s.)"


def test_signs() -> None:
    assert signed(0.25, 1) == "+0.2"
    assert signed(-0.0001, 2) == "0.00"
    assert signed(-0.6, 0) == "-1"
