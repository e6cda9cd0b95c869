"""Training against independent truths: one user at a time, plain autograd, the claimed noise, the claimed bound."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_features

from client import training
from client.gradients import GradientHooks
from client.training import DpStep, Randomness, clipped_sum, train_privately
from common.config import ModelConfig
from common.features import UserRows, make_batch
from common.messages import TrainingPlan
from common.model.click_model import ClickModel, build_model, forward, user_losses
from common.vector import read_vector, write_vector

CONFIG = ModelConfig(width=4, hidden=6)
WIDTH = 8


def new_model(heads: int = 1) -> ClickModel:
    model = build_model(CONFIG, WIDTH, heads, seed=3)
    # Away from the start, so that every parameter has a gradient.
    write_vector(
        model, read_vector(model) + np.random.default_rng(5).normal(0, 0.3, len(read_vector(model))).astype("f4")
    )
    return model


def all_rows(features: UserRows) -> list[np.ndarray]:
    return [np.arange(a, b) for a, b in zip(features.offset_U1[:-1], features.offset_U1[1:], strict=True)]


def one_user_gradient(model: ClickModel, features: UserRows, row_M: np.ndarray) -> np.ndarray:
    """Plain autograd on one user alone, unpadded: no hooks, no batch."""
    batch = make_batch(features, [row_M])
    model.zero_grad()
    user_losses(forward(model, batch), batch).sum().backward()
    return np.concatenate([parameter.grad.numpy().ravel().copy() for parameter in model.parameters()])


@pytest.mark.parametrize("heads", [1, 2])
def test_per_user_gradients_equal_one_user_at_a_time(heads: int) -> None:
    features = random_features(12, purchases=heads == 2)
    model = new_model(heads)
    expected_BD = np.stack([one_user_gradient(model, features, row_M) for row_M in all_rows(features)])
    hooks = GradientHooks(model)
    parts = training.per_user_gradients(model.train(), features, all_rows(features))
    found_BD = np.concatenate([part_bD.numpy().copy() for part_bD in parts])
    hooks.cleanup()
    assert np.abs(expected_BD).max() > 0.1
    np.testing.assert_allclose(found_BD, expected_BD, atol=2e-5)


def test_without_noise_and_clip_it_is_plain_full_batch_training() -> None:
    features, plan = random_features(10), TrainingPlan(5, "adam", 0.05, 0.0)
    model = new_model()
    start_D = read_vector(model)
    step = DpStep(1.0, 0.0, None, max_rows=100, expected_units=10.0)
    update_D = train_privately(model, start_D, features, plan, step, Randomness(1, "p", 1))

    plain = new_model()
    optimiser = torch.optim.Adam(plain.parameters(), lr=0.05)
    batch = make_batch(features, all_rows(features))
    for _ in range(5):
        optimiser.zero_grad()
        (user_losses(forward(plain, batch), batch).sum() / 10).backward()
        optimiser.step()
    assert np.abs(update_D).max() > 0.05
    np.testing.assert_allclose(update_D, read_vector(plain) - start_D, atol=2e-5)


@pytest.mark.parametrize("bound", [1, 7, 40, 4096])
def test_physical_batches_change_nothing(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, model = random_features(15), new_model().train()
    hooks = GradientHooks(model)
    whole_D = clipped_sum(model, features, all_rows(features), 0.5)
    monkeypatch.setattr(training, "_PHYSICAL_ROWS", bound)
    parts_D = clipped_sum(model, features, all_rows(features), 0.5)
    hooks.cleanup()
    np.testing.assert_allclose(parts_D, whole_D, atol=1e-5)


def spoil(features: UserRows, how: str) -> UserRows:
    """Returns the features with the first user's made hostile."""
    first = slice(0, int(features.offset_U1[1]))
    dense_NF, label_NL = features.dense_NF.copy(), features.label_NL.copy()
    if how == "huge":
        dense_NF[first] = 1e6
    if how == "nan":
        dense_NF[first] = np.nan
    if how == "infinite":
        dense_NF[first] = np.inf
    if how == "labels":
        label_NL[first] = 1 - label_NL[first]
    return dataclasses.replace(features, dense_NF=dense_NF, label_NL=label_NL)


@pytest.mark.parametrize("clip", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("how", ["plain", "huge", "nan", "infinite", "labels"])
def test_one_user_moves_the_clipped_sum_by_at_most_the_clip(how: str, clip: float) -> None:
    features, model = spoil(random_features(20), how), new_model().train()
    hooks = GradientHooks(model)
    with_user_D = clipped_sum(model, features, all_rows(features), clip)
    without_D = clipped_sum(model, features, all_rows(features)[1:], clip)
    hooks.cleanup()
    moved = np.linalg.norm(with_user_D - without_D)
    assert np.isfinite(with_user_D).all()
    # float32 gradients differ a little with the padding that the user brings: that, and no more, is the slack
    assert moved <= clip * (1 + 1e-4) + 1e-4
    if how in ("huge", "plain") and clip <= 0.5:
        assert moved >= 0.9 * clip  # the bound is reached: it is the clip that bounds
    if how in ("nan", "infinite"):
        assert moved <= 1e-4  # a user that is not finite counts nothing


def test_a_bug_of_per_row_clipping_would_be_seen() -> None:
    """Clipping each row instead of each user breaks the bound, and this measure finds it."""
    features, model = random_features(20), new_model().train()
    hooks = GradientHooks(model)
    per_row = [np.array([row]) for row in range(len(features.text_N))]
    first = int(features.offset_U1[1])
    moved = clipped_sum(model, features, per_row, 0.01) - clipped_sum(model, features, per_row[first:], 0.01)
    hooks.cleanup()
    assert first > 2
    assert np.linalg.norm(moved) > 0.015


def noise_of_one_release(step: DpStep, seed: int) -> np.ndarray:
    """Returns the noise that one SGD step released: update = -lr * (sum + noise) / expected users, nobody sampled."""
    features = random_features(3)
    model = new_model()
    plan = TrainingPlan(1, "sgd", 1.0, 0.0)
    update_D = train_privately(model, read_vector(model), features, plan, step, Randomness(seed, "p", 1))
    return -update_D.astype(float) * step.expected_units


def is_scale(sample: np.ndarray, scale: float) -> bool:
    """A chi-square test of the standard deviation at about five standard errors."""
    return abs(sample.std() / scale - 1) < 5 / np.sqrt(2 * len(sample))


def test_released_noise_has_the_claimed_scale_and_no_other() -> None:
    step = DpStep(1e-12, 1.7, 0.8, max_rows=10, expected_units=4.0)
    noise = np.concatenate([noise_of_one_release(step, seed) for seed in range(40)])
    assert is_scale(noise, 1.7 * 0.8)
    assert not is_scale(noise, 1.7 * 0.8 * 2 / 3)
    assert not is_scale(noise, 1.7 * 0.8 * 3 / 2)
    assert abs(noise.mean()) < 5 * 1.36 / np.sqrt(len(noise))


def test_an_empty_sample_is_a_step_like_any_other() -> None:
    step = DpStep(1e-12, 1.0, 1.0, max_rows=10, expected_units=4.0)
    first_D, second_D = noise_of_one_release(step, 1), noise_of_one_release(step, 2)
    assert len(first_D) == len(read_vector(new_model()))
    assert np.linalg.norm(first_D - second_D) > 1


def test_noise_does_not_depend_on_how_many_rows_were_drawn() -> None:
    """Sampling and noise are separate streams: equal seeds with other data still draw the same noise."""
    one, other = Randomness(4, "p", 2), Randomness(4, "p", 2)
    one.sampling.random(1000)
    assert np.array_equal(one.noise.normal(size=8), other.noise.normal(size=8))


@pytest.mark.parametrize("change", [{"partner": "q"}, {"round": 3}, {"seed": 5}])
def test_partners_rounds_and_seeds_draw_unrelated_noise(change: dict[str, object]) -> None:
    key: dict[str, Any] = {"seed": 4, "partner": "p", "round": 2}
    draws = [Randomness(k["seed"], k["partner"], k["round"]).noise.normal(size=4000) for k in (key, key | change)]
    assert abs(np.corrcoef(*draws)[0, 1]) < 0.08


def test_production_noise_is_not_reproducible() -> None:
    draws = [Randomness(None, "p", 1).noise.normal(size=100) for _ in range(2)]
    assert not np.array_equal(*draws)


def test_sampling_is_poisson_at_the_asked_rate() -> None:
    generator = np.random.default_rng(0)
    sizes = [len(training.sample_users(400, 0.2, generator)) for _ in range(3000)]
    assert np.mean(sizes) == pytest.approx(80, abs=5 * 8 / np.sqrt(3000))
    assert np.std(sizes) == pytest.approx(8, rel=0.08)  # a fixed batch size would give 0


def test_rows_of_a_user_are_capped_without_replacement() -> None:
    features = random_features(30)
    chosen = training.choose_rows(features, np.arange(30), 4, np.random.default_rng(0))
    for user, row_M in enumerate(chosen):
        start, stop = features.offset_U1[user], features.offset_U1[user + 1]
        assert len(row_M) == min(4, stop - start)
        assert len(set(row_M)) == len(row_M)
        assert start <= row_M.min() <= row_M.max() < stop


def test_noise_without_a_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="without clip"):
        DpStep(0.5, 1.0, None, 10, 1.0)


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.1)])
def test_layers_with_memory_or_own_randomness_are_refused(layer: torch.nn.Module) -> None:
    model = new_model()
    model.extra = layer
    step = DpStep(1.0, 0.0, None, 10, 1.0)
    with pytest.raises(TypeError, match="cannot be trained privately"):
        train_privately(
            model,
            read_vector(new_model()),
            random_features(2),
            TrainingPlan(1, "sgd", 1.0, 0.0),
            step,
            Randomness(1, "p", 1),
        )
