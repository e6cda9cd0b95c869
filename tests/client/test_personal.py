"""A partner's own correction: against changing the model itself, against scikit-learn, and kept where it was made."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch
from conftest import random_features
from scipy.special import expit
from simulated_runs import run, small_config
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import client.personalising
from client.erasure import Erased
from client.personal import PERSONAL_VERSION, Personal, Seen, fit, look
from client.retention import PERSONAL
from common.calibration import Scale, fit_scale
from common.cli import main
from common.config import ModelConfig, read_toml
from common.model.click_model import build_model
from common.runfolder import RunFolder
from common.scoring import chunks, click_rates
from common.split import stable_hash

ROOT = Path(__file__).parents[2]
MADE_OF = "a" * 64


def planted(users: int, seed: int, mend: bool) -> tuple[Seen, np.ndarray, np.ndarray]:
    """Returns rows whose clicks follow hidden values that the model does not weigh, or follow nothing."""
    rng = np.random.default_rng(seed)
    user_N = np.repeat([f"u{number}" for number in range(users)], 10)
    hidden_NH = rng.normal(size=(len(user_N), 3))
    true_N = expit(hidden_NH @ [1.5, -1.0, 0.0] - 0.5) if mend else np.full(len(user_N), 0.5)
    label_N = (rng.random(len(user_N)) < true_N).astype(np.int8)
    return Seen(np.full(len(user_N), 0.5), hidden_NH), label_N, user_N


def fitted_half(user_N: np.ndarray) -> np.ndarray:
    return stable_hash(user_N, "personal") < 0.8 * 2.0**64


# --- what is fitted -----------------------------------------------------------------------------------------------


def test_added_weights_are_those_of_the_models_own_last_layer() -> None:
    config, features = ModelConfig(width=4, hidden=6), random_features(20)
    model = build_model(config, 8, 2, seed=3)
    seen = look(model, features)
    row_N = np.arange(len(features.text_N))
    chosen = chunks(row_N, np.searchsorted(features.offset_U1, row_N, side="right") - 1)
    np.testing.assert_allclose(seen.click_N, click_rates(model, features, chosen), rtol=1e-12)
    assert seen.hidden_NH.shape == (len(row_N), 6)
    weights, bias = (0.5, -1.0, 0.25, 2.0, 0.0, -0.75), 0.3
    personal = Personal(PERSONAL_VERSION, "head", MADE_OF, True, Scale(1.0, bias), weights, 4, 1, 0.7, 0.6)
    with torch.no_grad():
        model.head.weight[0] += torch.tensor(weights)
        model.head.bias[0] += bias
    np.testing.assert_allclose(personal(seen), click_rates(model, features, chosen), atol=1e-6)
    assert not list(model.head._forward_hooks)


def test_a_head_is_scikit_learns_logistic_regression_where_the_model_says_nothing() -> None:
    seen, label_N, user_N = planted(100, 1, mend=True)
    found = fit("head", 4.0, seen, label_N, user_N, MADE_OF)
    half_N = fitted_half(user_N)
    theirs = LogisticRegression(C=1 / 4.0, tol=1e-8).fit(seen.hidden_NH[half_N], label_N[half_N])
    np.testing.assert_allclose(found.weights, theirs.coef_[0], atol=1e-3)
    assert found.scale.intercept == pytest.approx(theirs.intercept_[0], abs=1e-3)
    assert found.used
    assert found.before == pytest.approx(np.log(2))
    assert found.after == pytest.approx(log_loss(label_N[~half_N], found(seen)[~half_N]))
    assert (found.fitted_users, found.judged_users) == (len(set(user_N[half_N])), len(set(user_N[~half_N])))
    assert found.fitted_users + found.judged_users == 100


def test_a_heavier_penalty_changes_less() -> None:
    rows = planted(100, 1, mend=True)
    light, heavy = (np.linalg.norm(fit("head", penalty, *rows, MADE_OF).weights) for penalty in (1.0, 1000.0))
    assert heavy < 0.5 * light


def test_a_scale_is_fitted_on_four_users_in_five() -> None:
    rng = np.random.default_rng(2)
    user_N = np.repeat([f"u{number}" for number in range(200)], 10)
    z_N = rng.normal(size=len(user_N))
    label_N = (rng.random(len(user_N)) < expit(0.5 * z_N + 1)).astype(np.int8)
    seen = Seen(expit(z_N), np.zeros((len(user_N), 2)))
    found = fit("scale", 1.0, seen, label_N, user_N, MADE_OF)
    half_N = fitted_half(user_N)
    assert 0.7 < half_N.mean() < 0.9
    assert found.scale == fit_scale(label_N[half_N], seen.click_N[half_N], "platt")
    assert found.used
    assert found.weights == ()
    np.testing.assert_allclose(found(seen), found.scale(seen.click_N))


def test_what_is_no_better_for_others_is_not_used() -> None:
    for seed in range(20):
        seen, label_N, user_N = planted(12, seed, mend=False)
        found = fit("head", 0.01, seen, label_N, user_N, MADE_OF)
        if not found.used:
            break
    assert found.after is not None
    assert found.before is not None
    assert found.after >= found.before
    np.testing.assert_array_equal(found(seen), seen.click_N)


@pytest.mark.parametrize("kind", ["head", "scale"])
def test_clicks_of_one_class_teach_nothing(kind: Any) -> None:
    seen, label_N, user_N = planted(20, 1, mend=True)
    found = fit(kind, 1.0, seen, np.zeros_like(label_N), user_N, MADE_OF)
    assert (found.used, found.before) == (False, None)
    np.testing.assert_array_equal(found(seen), seen.click_N)


# --- where it is kept ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("personal") / "run")
    data = {"generator": {"users": 160, "items": 30, "impressions_per_user": 12}}
    run(small_config(tiny_encoder, 4, 2, data=data), folder.root)
    return folder


def with_personal(done: RunFolder, number: int, **personal: Any) -> Path:
    path = done.partner(number) / "partner.toml"
    path.write_text(tomli_w.dumps(read_toml(path) | {"personal": personal}), encoding="utf-8")
    return path


def predict(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    assert main(["predict", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_predict_fits_it_once_and_uses_it(
    done: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = predict(capsys, done.partner(2) / "partner.toml")
    assert plain["personal"] is None
    config = with_personal(done, 2, kind="scale")
    found = predict(capsys, config, "--out", tmp_path)
    assert found["figures"] == plain["figures"]
    assert found["personal"]["used"]
    assert found["personal"]["after"] < found["personal"]["before"]
    scores, rows = pd.read_parquet(found["scores"]), pd.read_parquet(done.partner(2) / "clicks.parquet")
    assert list(scores.columns)[3:] == ["score", "purchase", "personal", "personal_purchase"]
    assert found["personal"]["log_loss"] == pytest.approx(log_loss(rows["clicked"], scores["personal"]))
    half_N = fitted_half(rows["user"].to_numpy())
    expected = log_loss(rows["clicked"][~half_N], scores["personal"][~half_N])
    assert found["personal"]["after"] == pytest.approx(expected)
    kept = done.partner(2) / "state" / PERSONAL
    assert kept.stat().st_mode & 0o077 == 0

    def refuse(*_: Any) -> None:
        raise AssertionError("fitted again")

    with monkeypatch.context() as patch:
        patch.setattr(client.personalising, "fit", refuse)
        assert predict(capsys, config)["personal"] == found["personal"]
        with pytest.raises(AssertionError, match="fitted again"):
            predict(capsys, with_personal(done, 2, kind="head"))
    kept.write_text("{damaged")
    assert predict(capsys, with_personal(done, 2, kind="scale"))["personal"] == found["personal"]


def test_another_log_is_scored_with_the_correction_of_the_partners_own(
    done: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_personal(done, 1, kind="scale")
    other = done.partner(2)
    found = predict(capsys, config, "--clicks", other / "clicks.parquet", "--card", other / "card.toml")
    own = predict(capsys, config)
    for name in ("kind", "used", "fitted_users", "judged_users", "before", "after"):
        assert found["personal"][name] == own["personal"][name]
    assert found["rows"] != own["rows"]


def test_who_is_erased_is_taken_out_of_it(done: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_personal(done, 3, kind="scale")
    before = predict(capsys, config)["personal"]
    kept = done.partner(3) / "state" / PERSONAL
    first = json.loads(kept.read_text())["made_of"]
    rows = pd.read_parquet(done.partner(3) / "clicks.parquet")
    gone = rows["user"][fitted_half(rows["user"].to_numpy())].iloc[0]
    assert main(["erase", str(config), "--user", gone]) == 0
    assert not kept.exists()
    capsys.readouterr()
    after = predict(capsys, config)["personal"]
    assert after["fitted_users"] == before["fitted_users"] - 1
    Erased(done.partner(3) / "state").add([rows["user"].iloc[-1]])  # by a list that changed without the command
    predict(capsys, config)
    assert json.loads(kept.read_text())["made_of"] != first


@pytest.mark.parametrize("changed", ["erased", "card"])
def test_what_changes_while_it_is_fitted_is_not_kept_in_it(
    done: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    config, kept = with_personal(done, 2, kind="head"), done.partner(2) / "state" / PERSONAL
    kept.unlink(missing_ok=True)
    user = pd.read_parquet(done.partner(2) / "clicks.parquet")["user"].iloc[0]

    def fit_and_change(*given: Any) -> Personal:
        found = fit(*given)
        if changed == "erased":
            Erased(done.partner(2) / "state").add([user])
        else:
            card = done.partner(2) / "card.toml"
            card.write_text(card.read_text() + "\n# another card\n")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(client.personalising, "fit", fit_and_change)
        assert predict(capsys, config)["personal"] is not None
        assert not kept.exists()
    predict(capsys, config)
    assert kept.exists()


def test_it_is_used_by_predict_alone() -> None:
    """No part of what trains, answers a server or sends has a way to it."""
    users = {}
    for path in sorted((ROOT / "client").rglob("*.py")):
        named = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        for module in ("client.personal", "client.personalising", "client.predicting", "client.predict_command"):
            if module in named:
                users.setdefault(module, set()).add(path.stem)
    assert users == {
        "client.personal": {"personalising", "predicting"},
        "client.personalising": {"predict_command"},
        "client.predicting": {"personalising", "predict_command", "next_items"},
    }
