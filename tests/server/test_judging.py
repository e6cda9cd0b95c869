"""Purchases over all rows, calibration on users that the fit did not see, and the stream behind a log."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_rows
from sklearn import metrics as sklearn_metrics

from common.calibration import fit_scale, of_log, of_stream
from common.config import Config, ModelConfig, ServerConfig
from common.errors import DataError
from common.model.click_model import ClickModel, build_model
from common.pretrained import Pretrained, locate
from common.runfolder import jsonable
from common.scoring import head_rates
from server.evaluation import KEPT_COLUMN, HeldOut, load_heldout, score
from server.halves import in_choosing_half, reported_N, require_halves, seen_each_round
from server.judging import judge

MODEL = ModelConfig(width=4, hidden=6)
Load = Callable[..., HeldOut]


def config(**server: Any) -> Config:
    return Config(model=MODEL, server=ServerConfig(**{"bootstrap_samples": 20} | server))


@pytest.fixture(scope="module")
def pretrained(tiny_encoder: Path) -> Pretrained:
    return locate(f"path:{tiny_encoder}")


@pytest.fixture
def load(tmp_path: Path, pretrained: Pretrained) -> Load:
    def write(frame: pd.DataFrame, model: ModelConfig = MODEL) -> HeldOut:
        frame.to_parquet(tmp_path / "central.parquet", index=False)
        return load_heldout(tmp_path / "central.parquet", model, pretrained)

    return write


def new_model(pretrained: Pretrained, heads: int) -> ClickModel:
    model = build_model(MODEL, pretrained.width, heads, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    return model


def central(num_users: int = 80, seed: int = 0) -> pd.DataFrame:
    rows = random_rows(num_users, seed, most_rows=16)
    place = rows.groupby("user").cumcount()
    half = (place >= rows.groupby("user")["user"].transform("size") // 2).to_numpy()
    bought = rows["clicked"].to_numpy() * (np.random.default_rng(seed).random(len(rows)) < 0.4)
    return rows.assign(purchased=bought.astype(np.int8), evaluate=half)


def evaluated(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["evaluate"]]


# --- purchases ----------------------------------------------------------------------------------------------------


def test_purchases_count_every_row_and_are_sklearns(load: Load, pretrained: Pretrained) -> None:
    frame = central()
    heldout, model = load(frame), new_model(pretrained, 2)
    figures = judge(model, heldout, config(), {}).figures["purchase"]
    rate_N2 = head_rates(model, heldout.rows, heldout.chosen)
    rows, p_N = evaluated(frame), rate_N2[:, 0] * rate_N2[:, 1]
    bought = rows["purchased"].to_numpy()
    assert (figures["rows"], figures["clicks"], figures["purchases"]) == (
        len(rows),
        rows["clicked"].sum(),
        bought.sum(),
    )
    assert figures["rows"] > figures["clicks"] > figures["purchases"] > 0
    assert figures["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(bought, p_N))
    assert figures["pr_auc"] == pytest.approx(sklearn_metrics.average_precision_score(bought, p_N))
    assert figures["base_rate"] == pytest.approx(bought.mean())
    assert figures["log_loss"] == pytest.approx(sklearn_metrics.log_loss(bought, p_N))
    assert figures["brier"] == pytest.approx(sklearn_metrics.brier_score_loss(bought, p_N))
    assert figures["calibration_ratio"] == pytest.approx(p_N.mean() / bought.mean())
    assert sum(figures["calibration"]["rows_B"]) == len(rows)
    low, high = figures["intervals"]["auc"]
    assert low < figures["auc"] < high
    clicked = rows["clicked"].to_numpy() == 1
    expected = sklearn_metrics.roc_auc_score(bought[clicked], rate_N2[clicked, 1])
    assert figures["given_click"]["auc"] == pytest.approx(expected)


def test_without_the_head_or_the_column_there_are_none(load: Load, pretrained: Pretrained) -> None:
    frame = central()
    assert "purchase" not in judge(new_model(pretrained, 1), load(frame), config(), {}).figures
    plain = frame.drop(columns="purchased")
    assert "purchase" not in judge(new_model(pretrained, 2), load(plain), config(), {}).figures


# --- halves -------------------------------------------------------------------------------------------------------


def test_halves_are_whole_users_about_as_many_and_the_same_everywhere() -> None:
    users = [f"u{number}" for number in range(2000)]
    half_U = in_choosing_half(users)
    assert 900 < half_U.sum() < 1100
    np.testing.assert_array_equal(in_choosing_half(users[::-1])[::-1], half_U)


def test_a_part_is_a_log_of_these_users_alone(load: Load, pretrained: Pretrained) -> None:
    frame, model = central(), new_model(pretrained, 1)
    heldout = load(frame)
    half = heldout.part(heldout.choosing_N)
    kept = frame[in_choosing_half(frame["user"])]
    alone = load(kept)
    np.testing.assert_allclose(score(model, half), score(model, alone), atol=1e-6)
    np.testing.assert_array_equal(half.label_NL, alone.label_NL)
    np.testing.assert_array_equal(score(model, half), score(model, heldout)[heldout.choosing_N])
    assert {each.name: len(each.group_N) for each in half.partitions} == dict.fromkeys(
        [each.name for each in heldout.partitions], len(half.label_NL)
    )


def test_patience_looks_at_one_half_and_reports_the_other(load: Load, pretrained: Pretrained) -> None:
    heldout, model = load(central()), new_model(pretrained, 1)
    on, off = ServerConfig(patience=2), ServerConfig()
    assert seen_each_round(heldout, off) is heldout
    assert reported_N(heldout, off).all()
    looked = seen_each_round(heldout, on)
    assert set(looked.user_N).isdisjoint(heldout.user_N[reported_N(heldout, on)])
    final = judge(model, heldout, config(patience=2), {"early_stopping": {}}).figures
    other_N = ~heldout.choosing_N
    assert final["rows"] == other_N.sum()
    expected = sklearn_metrics.roc_auc_score(heldout.label_NL[other_N, 0], score(model, heldout)[other_N])
    assert final["auc"] == pytest.approx(expected)
    assert final["early_stopping"] == {}


@pytest.mark.parametrize("settings", [{"patience": 1}, {"calibration": "platt"}])
def test_a_half_without_clicks_is_refused_before_the_rounds(settings: dict[str, Any], load: Load) -> None:
    frame = central()
    lacking = in_choosing_half(frame["user"]) & frame["evaluate"].to_numpy()
    frame.loc[lacking, ["clicked", "purchased"]] = 0
    heldout = load(frame)
    require_halves(heldout, ServerConfig())
    with pytest.raises(DataError, match=r"server\.\w+: one half of the held-out users has 0 clicks in"):
        require_halves(heldout, ServerConfig(**settings))


# --- calibration --------------------------------------------------------------------------------------------------


def with_labels(heldout: HeldOut, where_N: np.ndarray) -> HeldOut:
    label_NL = heldout.label_NL.copy()
    label_NL[where_N] = 1 - label_NL[where_N]
    return replace(heldout, label_NL=label_NL)


def test_the_fit_sees_one_half_and_the_figures_the_other(load: Load, pretrained: Pretrained) -> None:
    frame = central().drop(columns="purchased")
    heldout, model = load(frame), new_model(pretrained, 1)
    judged = judge(model, heldout, config(calibration="platt"), {})
    score_N, half_N = score(model, heldout), heldout.choosing_N
    assert judged.calibration is not None
    assert judged.calibration.click == fit_scale(heldout.label_NL[half_N, 0], score_N[half_N], "platt")
    found = judged.figures["calibrated"]
    after_N = judged.calibration.click(score_N[~half_N])
    assert found["after"]["log_loss"] == pytest.approx(sklearn_metrics.log_loss(heldout.label_NL[~half_N, 0], after_N))
    assert found["before"]["log_loss"] == pytest.approx(
        sklearn_metrics.log_loss(heldout.label_NL[~half_N, 0], score_N[~half_N])
    )
    assert found["after"]["auc"] == pytest.approx(found["before"]["auc"])
    assert found["after"]["log_loss"] < found["before"]["log_loss"]  # a random model has much to mend
    assert (found["fitted_rows"], found["rows"]) == (half_N.sum(), (~half_N).sum())
    # Other labels where the figures are: the same fit. Other labels where the fit is: the same figures before it.
    other = judge(model, with_labels(heldout, ~half_N), config(calibration="platt"), {})
    assert other.calibration == judged.calibration
    assert other.figures["calibrated"]["after"] != found["after"]
    other = judge(model, with_labels(heldout, half_N), config(calibration="platt"), {})
    assert other.calibration != judged.calibration
    assert other.figures["calibrated"]["before"] == found["before"]


def test_raw_figures_are_the_same_with_and_without_a_calibration(load: Load, pretrained: Pretrained) -> None:
    heldout, model = load(central()), new_model(pretrained, 2)
    without, found = (judge(model, heldout, config(calibration=kind), {}) for kind in ("none", "temperature"))
    assert without.calibration is None
    figures = dict(found.figures)
    calibrated = figures.pop("calibrated")
    assert jsonable(figures) == jsonable(without.figures)
    assert calibrated["method"] == "temperature"
    assert calibrated["click"]["intercept"] == 0


def test_purchases_are_calibrated_through_both_factors(load: Load, pretrained: Pretrained) -> None:
    heldout, model = load(central(120)), new_model(pretrained, 2)
    judged = judge(model, heldout, config(calibration="platt"), {})
    half_N, clicked_N = heldout.choosing_N, heldout.label_NL[:, 0] > 0
    rate_N2 = head_rates(model, heldout.rows, heldout.chosen)
    given = fit_scale(heldout.label_NL[half_N & clicked_N, 1], rate_N2[half_N & clicked_N, 1], "platt")
    assert judged.calibration is not None
    assert given is not None
    assert judged.calibration.purchase == given
    p_N = judged.calibration.click(rate_N2[~half_N, 0]) * given(rate_N2[~half_N, 1])
    expected = sklearn_metrics.log_loss(heldout.label_NL[~half_N, 1], p_N)
    assert judged.figures["calibrated"]["purchase_after"]["log_loss"] == pytest.approx(expected)


# --- the stream ---------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_log_at_hand(load: Load, pretrained: Pretrained) -> None:
    frame, model = central().drop(columns="purchased"), new_model(pretrained, 1)
    raw_N = score(model, load(frame))
    sampled = replace(MODEL, unclicked_kept=0.2)
    whole_N = score(model, load(frame, sampled))
    np.testing.assert_allclose(whole_N, of_stream(raw_N, 0.2))
    alike = frame.assign(**{KEPT_COLUMN: 0.2})
    np.testing.assert_allclose(score(model, load(alike, sampled)), raw_N)
    half = frame.assign(**{KEPT_COLUMN: 0.5})
    np.testing.assert_allclose(score(model, load(half, sampled)), of_log(of_stream(raw_N, 0.2), 0.5))


def test_each_unclicked_row_stands_for_those_that_were_dropped(load: Load, pretrained: Pretrained) -> None:
    frame, model = central().drop(columns="purchased").assign(**{KEPT_COLUMN: 0.25}), new_model(pretrained, 1)
    heldout = load(frame, replace(MODEL, unclicked_kept=0.25))
    found = judge(model, heldout, config(), {}).figures["stream"]
    label_N = heldout.label_NL[:, 0]
    p_N, weight_N = of_stream(score(model, heldout), 0.25), np.where(label_N > 0, 1, 4)
    assert found["base_rate"] == pytest.approx(np.average(label_N, weights=weight_N))
    assert found["log_loss"] == pytest.approx(sklearn_metrics.log_loss(label_N, p_N, sample_weight=weight_N))
    assert found["calibration_ratio"] == pytest.approx((weight_N * p_N).sum() / label_N.sum())
    assert "stream" not in judge(model, load(frame.drop(columns=KEPT_COLUMN)), config(), {}).figures
