"""The clipped sum's bound under models that a server chose for it: overflow, rounding, padding.

Adding a user may lengthen the padding of every other user of a physical batch. Under an honest model that is
invisible; these models make it as visible as they can.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_features

from client.gradients import GradientHooks
from client.training import MAX_WEIGHT, DpStep, Randomness, clipped_sum, require_in_bounds, train_privately
from common.config import ModelConfig
from common.errors import ProtocolError
from common.features import UserRows, featurise, make_batch
from common.messages import TrainingPlan
from common.model.click_model import ClickModel, build_model
from common.vector import read_vector, write_vector

CONFIG = ModelConfig(width=4, hidden=6)


def rows_of(features: UserRows, least: int, most: int) -> list[np.ndarray]:
    """Returns the first rows of each user that has at least `least`, at most `most` of them."""
    spans = zip(features.offset_U1[:-1], features.offset_U1[1:], strict=True)
    return [np.arange(a, min(b, a + most)) for a, b in spans if b - a >= least]


def random_signs(size: float) -> ClickModel:
    model = build_model(CONFIG, 8, 1, seed=3)
    signs_D = np.random.default_rng(1).choice([-size, size], len(read_vector(model)))
    write_vector(model, signs_D.astype(np.float32))
    return model.train()


def moved_by_a_longer_user(model: ClickModel, clip: float = 1.0) -> float:
    features = random_features(60, seed=4)
    short, long = rows_of(features, 3, 3)[1:], rows_of(features, 9, 9)[:1]
    hooks = GradientHooks(model)
    with np.errstate(all="ignore"):
        without_D = clipped_sum(model, features, short, clip)
        with_user_D = clipped_sum(model, features, [*short, *long], clip)
    hooks.cleanup()
    assert len(short) > 20
    assert len(long) == 1
    return float(np.linalg.norm(with_user_D - without_D))


@pytest.mark.parametrize("size", [1.0, 10.0, MAX_WEIGHT])
def test_a_longer_user_moves_the_sum_by_the_clip_under_any_model_in_bounds(size: float) -> None:
    assert moved_by_a_longer_user(random_signs(size)) <= 1.001


def equal_users_and_one_longer(count: int) -> UserRows:
    """Returns users of 8 rows each, and a last one of 9, whose coming lengthens everybody's padding."""
    rng = np.random.default_rng(0)
    user = np.repeat([f"u{number:04d}" for number in range(count + 1)], [8] * count + [9])
    frame = pd.DataFrame(
        {
            "user": user,
            "time": 1_600_000_000 + rng.integers(0, 10**7, len(user)),
            "item": "i",
            "text": "t",
            "clicked": (rng.random(len(user)) < 0.3).astype(np.int8),
            "domain": "",
        }
    ).sort_values(["user", "time"], kind="stable")
    states_TE = rng.normal(size=(200, 64)).astype(np.float32)
    return featurise(frame.reset_index(drop=True), rng.integers(0, 200, len(user)), states_TE, ModelConfig())


def overflowing_model() -> ClickModel:
    """Finite weights: zeros overflow in the query where text states, whose projections saturate, cancel."""
    model = build_model(ModelConfig(), 64, 1, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        direction = torch.randn(8, 64, generator=generator)
        model.project.weight[:8], model.project.weight[8:] = 1000 * direction, -1000 * direction
        model.project.bias.fill_(20.0)
        model.query.weight[0].fill_(3e37)
        model.head.weight.fill_(0.1)
        model.hidden.weight.normal_(0, 0.1, generator=generator)
    return model.train()


def test_padding_reaches_no_other_user_even_where_numbers_overflow() -> None:
    """Out of bounds, so refused in training; padding with a user's own row holds without that as well."""
    features, model = equal_users_and_one_longer(100), overflowing_model()
    chosen = rows_of(features, 8, 9)
    hooks = GradientHooks(model)
    without_D, with_user_D = clipped_sum(model, features, chosen[:-1], 1.0), clipped_sum(model, features, chosen, 1.0)
    hooks.cleanup()
    assert [len(row_M) for row_M in chosen] == [8] * 100 + [9]
    assert np.linalg.norm(without_D) > 10  # most users do have a gradient
    assert np.linalg.norm(with_user_D - without_D) <= 1.001


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
