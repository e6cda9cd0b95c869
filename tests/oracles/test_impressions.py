"""The unit impression: what one row and what a whole user can move, how rows are sampled, and what is said about it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import random_features
from dp_events import release
from simulated_runs import run, small_config
from test_training_oracles import new_model, one_user_gradient

from client.budget import Budget
from client.distributed import SharedStep, noised_step
from client.gradients import GradientHooks
from client.training import DpStep, Randomness, clipped_sum, sample_units, train_privately
from common.config import PrivacyConfig
from common.errors import BudgetExhausted, ConfigError
from common.messages import TrainingPlan
from common.privacy.accounting import epsilon
from common.privacy.ledger import Ledger
from common.privacy.mixture import by_rows, epsilon_per_user, user_epsilon
from common.privacy.quick import gaussian_epsilon
from common.privacy.statement import privacy_statement
from common.vector import read_vector

DELTA, CLIP = 1e-5, 0.05


def step_of(rate: float, most: int) -> DpStep:
    return DpStep(rate, 0.0, CLIP, max_rows=most, expected_units=1.0, unit="impression")


def one_impression(**changes: object) -> object:
    return release(unit="impression", impressions=8, **changes)


def test_only_a_users_latest_rows_can_ever_join() -> None:
    features = random_features(9)
    sampled = sample_units(features, step_of(1.0, 2), np.random.default_rng(0))
    expected = [
        row
        for start, stop in zip(features.offset_U1[:-1], features.offset_U1[1:], strict=True)
        for row in range(max(start, stop - 2), stop)
    ]
    assert [row_M.tolist() for row_M in sampled] == [[row] for row in expected]
    assert len(expected) < len(features.text_N)


def test_rows_are_sampled_one_by_one_at_the_asked_rate() -> None:
    """Poisson: the variance of the sample size is n q (1 - q); drawing whole users would have several times that."""
    features, generator = random_features(60), np.random.default_rng(3)
    most = 4
    eligible = int(np.minimum(np.diff(features.offset_U1), most).sum())
    sizes = [len(sample_units(features, step_of(0.3, most), generator)) for _ in range(2000)]
    assert np.mean(sizes) == pytest.approx(eligible * 0.3, abs=5 * math.sqrt(eligible * 0.21 / 2000))
    assert np.var(sizes) == pytest.approx(eligible * 0.21, rel=0.2)


def test_the_step_is_the_sum_of_clipped_gradients_of_single_rows() -> None:
    features, model = random_features(6), new_model()
    plan, step = TrainingPlan(1, "sgd", 1.0, 0.0), step_of(1.0, 3)
    update_D = train_privately(model, read_vector(model), features, plan, step, Randomness(1, "p", 1))
    expected_D, shortened = np.zeros(len(update_D)), 0
    for row_M in sample_units(features, step, np.random.default_rng(0)):  # at rate 1 all
        gradient_D = one_user_gradient(new_model(), features, row_M).astype(float)
        shortened += np.linalg.norm(gradient_D) > CLIP
        expected_D += gradient_D * min(1.0, CLIP / np.linalg.norm(gradient_D))
    assert shortened > 5
    np.testing.assert_allclose(-update_D, expected_D, atol=2e-5)


def test_one_row_moves_the_sum_by_the_clip_and_a_user_by_as_many_clips_as_it_has_rows() -> None:
    features, model = random_features(20), new_model().train()
    sampled = sample_units(features, step_of(1.0, 4), np.random.default_rng(0))
    of_first = [row_M for row_M in sampled if row_M[0] < features.offset_U1[1]]
    hooks = GradientHooks(model)
    whole_D = clipped_sum(model, features, sampled, CLIP)
    row = np.linalg.norm(whole_D - clipped_sum(model, features, sampled[1:], CLIP))
    user = np.linalg.norm(whole_D - clipped_sum(model, features, sampled[len(of_first) :], CLIP))
    hooks.cleanup()
    assert 0.9 * CLIP <= row <= CLIP * (1 + 1e-4)
    assert len(of_first) >= 3
    assert 1.2 * CLIP < user <= len(of_first) * CLIP * (1 + 1e-4)


def test_in_whole_numbers_it_is_the_same_step() -> None:
    features, model = random_features(10), new_model()
    shared = SharedStep(1.0, 0.0, 3, CLIP, 2**16, max_rows=3, declared_units=10, unit="impression")
    found_D = noised_step(model, read_vector(model), lambda: features, shared, Randomness(1, "p", 1)).sum_D * (
        CLIP / 2**16
    )
    plan = TrainingPlan(1, "sgd", 1.0, 0.0)
    local_D = train_privately(new_model(), read_vector(model), features, plan, step_of(1.0, 3), Randomness(1, "p", 1))
    assert np.abs(local_D).max() > CLIP
    np.testing.assert_allclose(found_D, -local_D, atol=30 * CLIP / 2**16 + 5e-4)


def test_a_users_epsilon_composes_over_releases_of_either_unit() -> None:
    """Without sampling all are one Gaussian: 8 rows at noise 40, three times, and a user's release at noise 3."""
    rows = one_impression(sampling_rate=1.0, noise_multiplier=40.0, steps=3)
    whole = release(sampling_rate=1.0, noise_multiplier=3.0, steps=1)
    precision = 3 * (8 / 40) ** 2 + (1 / 3) ** 2
    assert epsilon_per_user([rows, whole], DELTA) == pytest.approx(gaussian_epsilon(precision**-0.5, DELTA), abs=0.01)
    sampled = one_impression(sampling_rate=0.1, noise_multiplier=4.0, steps=20)
    alone = user_epsilon(((0.1, 4.0, 20),), 8, DELTA)
    assert epsilon_per_user([sampled], DELTA) == alone
    both = epsilon_per_user([sampled, release(sampling_rate=0.1, noise_multiplier=1.0, steps=20)], DELTA)
    other = epsilon([release(sampling_rate=0.1, noise_multiplier=1.0, steps=20)], DELTA)
    assert max(alone, other) < both < alone + other


def test_a_release_without_noise_leaves_a_user_nothing() -> None:
    unprotected = release(mechanism="none", mode="none", noise_multiplier=0.0)
    assert epsilon_per_user([one_impression(), unprotected], DELTA) == math.inf


def test_two_units_have_no_single_epsilon() -> None:
    with pytest.raises(ConfigError, match="units impression and user"):
        epsilon([release(), one_impression()], DELTA)


def test_the_sentence_says_the_users_epsilon_beside_the_rows() -> None:
    event = one_impression(sampling_rate=0.01024, noise_multiplier=1.0, steps=488)
    statement = privacy_statement([event], 1e-6)
    assert (statement.unit, statement.impressions) == ("impression", 8)
    assert statement.user_epsilon == user_epsilon(((0.01024, 1.0, 488),), 8, 1e-6)
    assert 15 < statement.user_epsilon < 21  # the design has 21 for ten
    sentence = statement.sentence()
    assert "epsilon 1.61 at delta 1e-06 for one training row added or removed" in sentence
    assert "for one user with up to 8 training rows, against the server and other partners and" in sentence
    lost = privacy_statement([release(unit="impression", impressions=4096)], 1e-6)
    assert "for one user with up to 4096 training rows NO FINITE BOUND HOLDS" in lost.sentence()


def test_a_table_by_rows_ends_with_the_most_that_a_user_can_have() -> None:
    event = one_impression(sampling_rate=0.1, noise_multiplier=4.0, steps=5)
    costs = by_rows([event], DELTA)
    assert list(costs) == [1, 2, 5, 8]
    assert costs[1] == epsilon([event], DELTA)
    assert sorted(costs.values()) == list(costs.values())


@pytest.mark.parametrize("version", [1, 2])
def test_a_release_of_a_version_before_units_is_read_as_it_was_meant(version: int) -> None:
    record = release().to_dict()
    del record["impressions"], record["flip_probability"], record["labels"]
    if version == 1:
        del record["shares"]
    assert type(release()).from_dict({**record, "version": version}) == release()
    with pytest.raises(ConfigError, match=r"unknown .*'impressions'.* in version"):
        type(release()).from_dict({**record, "version": version, "impressions": 1})
    with pytest.raises(ConfigError, match=f"event.unit = 'impression': version {version} knows only"):
        type(release()).from_dict({**record, "version": version, "unit": "impression"})


def test_a_users_release_cannot_say_several_impressions() -> None:
    with pytest.raises(ConfigError, match=r"event\.impressions = 2: must be 1 where unit is"):
        release(impressions=2)


def test_promise_2_a_ledger_keeps_to_one_unit(tmp_path: Path) -> None:
    """Rows are charged less than users: a partner that could switch would spend users' budgets at the rows' price."""
    ledger = Ledger(tmp_path / "a.jsonl", "a", durable=False)
    policy = PrivacyConfig(epsilon=50.0, delta=DELTA, noise_multiplier=1.0, unit="impression")
    budget = Budget(ledger, policy)
    budget.reserve(release())
    with pytest.raises(
        BudgetExhausted, match=r'privacy\.unit = "impression", and the ledger counts in units of one user'
    ):
        budget.reserve(one_impression())
    assert budget.affordable_rounds(one_impression()) == 0
    assert (budget.affordable_rounds(release()) or 0) > 0
    assert len(ledger.events()) == 1


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_a_run_in_impressions_says_what_it_means_for_users(mode: str, tiny_encoder: Path, tmp_path: Path) -> None:
    config = small_config(
        tiny_encoder, 3, 2, privacy={"unit": "impression", "mode": mode, "max_impressions_per_user": 3},
        output={"report": True, "jobs": 1},
    )  # fmt: skip
    privacy = run(config, tmp_path / "run")["privacy"]
    assert privacy["unit"] == "impression"
    assert list(privacy["by_rows_of_a_user"]) == [1, 2, 3]
    assert privacy["epsilon"] < privacy["user_epsilon"] == privacy["by_rows_of_a_user"][3]
    assert "for one user with up to 3 training rows" in privacy["sentence"]
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())["privacy"]
    assert written["user_epsilon"] == privacy["user_epsilon"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Single rows are protected, not users" in page
    assert "Epsilon of a user with 3 training rows" in page
