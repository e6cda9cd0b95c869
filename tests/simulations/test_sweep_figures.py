"""Means, intervals and differences of a sweep, against hand-worked figures and SciPy."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from simulations.sweep_figures import lines_of, t_interval
from simulations.sweep_table import price_text, span, verdicts


def record(mode: str, seed: int, auc: float, epsilon: float | None = 1.0, **change: Any) -> dict[str, Any]:
    found = {"mode": mode, "seed": seed, "auc": auc, "log_loss": 0.5, "ne": 0.9, "epsilon": epsilon, "settings": {}}
    return found | {"state": "done", "noise_of_sum": 1.0, "steps": 4, "spent": 0.9} | change


def test_the_interval_by_hand() -> None:
    """Mean 2, deviation 1, t(.975, 2) = 4.3027: half of it is 4.3027 / sqrt(3) = 2.4841."""
    found = t_interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["seeds"] == 3
    assert (found["low"], found["high"]) == (pytest.approx(-0.48414, abs=1e-5), pytest.approx(4.48414, abs=1e-5))


@pytest.mark.parametrize("number", [2, 5, 30])
def test_the_interval_is_scipys(number: int) -> None:
    values = np.random.default_rng(number).normal(0.7, 0.1, number)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = t_interval(list(values))
    assert (found["low"], found["high"]) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


def test_one_repeat_has_a_mean_and_no_interval() -> None:
    found = t_interval([0.7])
    assert (found["mean"], found["low"], found["high"]) == (0.7, None, None)
    assert span(found) == "-"


def test_lines_are_per_mode_epsilon_and_settings_over_the_cells_that_are_done() -> None:
    records = [
        record("local", 1, 0.6),
        record("local", 2, 0.8),
        record("local", 3, math.nan, state="failed"),
        record("local", 1, 0.9, epsilon=8.0),
        record("local", 1, 0.5, settings={"privacy.clip": "0.1"}),
        record("none", 1, 0.95, epsilon=None, noise_of_sum=None, spent=None),
    ]
    found = {(line["mode"], line["epsilon"], bool(line["settings"])): line for line in lines_of(records)}
    assert len(found) == 4
    assert found["local", 1.0, False]["auc"]["mean"] == pytest.approx(0.7)
    assert found["local", 1.0, False]["auc"]["seeds"] == 2
    assert found["local", 1.0, True]["auc"]["mean"] == 0.5
    assert found["none", None, False]["spent"] is None
    assert "minus_pooled" not in found["none", None, False]


def test_the_difference_to_pooled_is_paired_by_seed() -> None:
    """Seed 3 has no pooled cell, so it does not count; the gaps are .01 and .03, whatever the levels are."""
    records = [
        *(record("distributed", seed, auc) for seed, auc in ((1, 0.61), (2, 0.83), (3, 0.2))),
        *(record("pooled", seed, auc) for seed, auc in ((1, 0.60), (2, 0.80))),
        record("pooled", 3, 0.9, epsilon=8.0),
    ]
    line = next(line for line in lines_of(records) if line["mode"] == "distributed")
    gap = line["minus_pooled"]
    assert gap["mean"] == pytest.approx(0.02)
    assert gap["seeds"] == 2
    # t(.975, 1) = 12.706, deviation .01414: .02 +- .1271 holds 0.
    assert (gap["low"], gap["high"]) == (pytest.approx(-0.10706, abs=1e-5), pytest.approx(0.14706, abs=1e-5))
    assert gap["within"] is True
    assert verdicts(lines_of(records)) == ["distributed: epsilon 1 level with pooled (+0.0200 +- 0.1271)."]


def test_a_mode_that_is_behind_is_said_to_be_behind() -> None:
    records = [
        *(record("local", seed, 0.5 + seed / 1000) for seed in (1, 2, 3)),
        *(record("pooled", seed, 0.7 + seed / 1000) for seed in (1, 2, 3)),
    ]
    lines = lines_of(records)
    assert lines[0]["minus_pooled"]["within"] is False
    assert verdicts(lines) == ["local: epsilon 1 below it (-0.2000 +- 0.0000)."]


def test_without_pooled_cells_nothing_is_compared() -> None:
    (line,) = lines_of([record("distributed", 1, 0.6), record("distributed", 2, 0.7)])
    assert line["minus_pooled"] is None
    assert verdicts([line]) == []


def test_the_price_is_rounded_up_and_says_of_whom() -> None:
    price = {"charged": True, "why": "", "budget": 9.0, "spent": {"server": 3.14159, "partner": None}}
    text = price_text(price, 1e-5)
    assert "epsilon 3.15 against the server, no finite bound against the partner" in text
    assert "of a budget of 9" in text
    assert price_text({"charged": False, "why": "it is nobody's"}, 1e-5) == "Nothing was charged: it is nobody's."
