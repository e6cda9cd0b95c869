"""The clipped sum's bound under models that a server chose for it: overflow, rounding, padding.

Adding a user may lengthen the padding of every other user of a physical batch. Under an honest model that is
invisible; these models make it as visible as they can.
"""

import numpy as np
import pytest
import torch
from conftest import random_features
from opacus.grad_sample import GradSampleHooks

from client.training import MAX_WEIGHT, DpStep, Randomness, clipped_sum, require_in_bounds, train_privately
from common.config import ModelConfig
from common.errors import ProtocolError
from common.features import UserRows, make_batch
from common.messages import TrainingPlan
from common.model.click_model import ClickModel, build_model
from common.vector import read_vector, write_vector

CONFIG = ModelConfig(width=4, hidden=6)


def rows_of(features: UserRows, least: int, most: int) -> list[np.ndarray]:
    """Returns the first rows of each user that has at least `least`, at most `most` of them."""
    spans = zip(features.offset_U1[:-1], features.offset_U1[1:], strict=True)
    return [np.arange(a, min(b, a + most)) for a, b in spans if b - a >= least]


def hostile(kind: str, size: float) -> ClickModel:
    model = build_model(CONFIG, 8, 1, seed=3)
    vector_D = read_vector(model)
    if kind == "random signs":
        vector_D = np.random.default_rng(1).choice([-size, size], len(vector_D)).astype(np.float32)
    write_vector(model, vector_D)
    if kind == "overflowing query":
        with torch.no_grad():
            model.project.bias.fill_(20.0)
            model.project.weight[0].fill_(1000.0)
            model.query.weight[0].fill_(size)
    return model.train()


def moved_by_a_longer_user(model: ClickModel, clip: float = 1.0) -> float:
    features = random_features(60, seed=4)
    short, long = rows_of(features, 3, 3)[1:], rows_of(features, 9, 9)[:1]
    hooks = GradSampleHooks(model, loss_reduction="sum")
    with np.errstate(all="ignore"):
        without_D = clipped_sum(model, features, short, clip)
        with_user_D = clipped_sum(model, features, [*short, *long], clip)
    hooks.cleanup()
    assert len(short) > 20
    assert len(long) == 1
    return float(np.linalg.norm(with_user_D - without_D))


@pytest.mark.parametrize("size", [1.0, 10.0, MAX_WEIGHT])
def test_a_longer_user_moves_the_sum_by_the_clip_under_any_model_in_bounds(size: float) -> None:
    assert moved_by_a_longer_user(hostile("random signs", size)) <= 1.001


@pytest.mark.parametrize("size", [3e30, 3e37])
def test_padding_reaches_no_other_user_even_where_numbers_overflow(size: float) -> None:
    """Out of bounds, so refused in training; padding with a user's own row holds without that as well."""
    assert moved_by_a_longer_user(hostile("overflowing query", size)) <= 1.001


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 101.0, -1e30])
def test_a_model_out_of_bounds_is_refused_before_anything_is_trained(bad: float) -> None:
    vector_D = read_vector(build_model(CONFIG, 8, 1, seed=3))
    require_in_bounds(vector_D)
    vector_D[7] = bad
    with pytest.raises(ProtocolError, match=r"not finite or over 100"):
        require_in_bounds(vector_D)


def test_steps_of_any_learning_rate_stay_in_bounds() -> None:
    """Else the second step would start from the very model that the first was refused."""
    features, model = random_features(12), build_model(CONFIG, 8, 1, seed=3)
    start_D = read_vector(model)
    step, plan = DpStep(1.0, 1.0, 1.0, 10, 12.0), TrainingPlan(3, "sgd", 1000.0, 0.0)
    update_D = train_privately(model, start_D, features, plan, step, Randomness(1, "p", 1))
    assert np.isfinite(update_D).all()
    assert np.abs(start_D + update_D).max() == pytest.approx(MAX_WEIGHT)


def test_padding_is_the_users_own_first_row_with_weight_zero() -> None:
    features = random_features(60, seed=4)
    chosen = [rows_of(features, 9, 9)[0], rows_of(features, 3, 3)[1]]
    batch = make_batch(features, chosen)
    assert batch.weight_BM.tolist() == [[1.0] * 9, [1.0] * 3 + [0.0] * 6]
    assert np.array_equal(batch.dense_BMF[1, 3:], np.repeat(batch.dense_BMF[1, :1], 6, axis=0))
    assert np.array_equal(batch.candidate_BME[1, 3:], np.repeat(batch.candidate_BME[1, :1], 6, axis=0))
    assert np.array_equal(batch.attend_BMK[1, 3:], np.repeat(batch.attend_BMK[1, :1], 6, axis=0))
