"""The distributed mode against independent truths: the centralised step, the claimed bound, the claimed noise."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_features
from dp_events import release
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_training_oracles import all_rows, new_model, one_user_gradient

from client.distributed import SharedStep, clip_and_round, noised_step, rounding_bound, skellam
from client.gradients import GradientHooks
from client.observing import JsonLines
from client.training import Randomness, clipped_sum, load_for_training, secure_generator
from common.errors import ConfigError, DataError
from common.privacy.accounting import epsilon
from common.privacy.statement import privacy_statement
from common.privacy.views import VIEWS, as_seen, noise_seen
from common.vector import read_vector

GRID, CLIP = 2**16, 0.5
STEP = SharedStep(1.0, 0.0, shares=3, clip=CLIP, grid=GRID, max_rows=100, declared_units=10)


def part(seed: int, step: SharedStep = STEP, users: int = 12) -> np.ndarray:
    model = new_model()
    return noised_step(
        model, read_vector(model), lambda: random_features(users, seed), step, Randomness(1, f"p{seed}", 1)
    ).sum_D


def test_without_noise_the_parts_add_up_to_the_centralised_step_on_the_union() -> None:
    """Each user's rounding is off by half a grid step at most in every coordinate, and its clip is a little smaller."""
    parts = [part(seed) for seed in (1, 2, 3)]
    model = new_model()
    load_for_training(model, read_vector(model))
    hooks = GradientHooks(model)
    bound = rounding_bound(len(parts[0]), CLIP, GRID)
    central_D = sum(
        clipped_sum(model, random_features(12, s), all_rows(random_features(12, s)), bound) for s in (1, 2, 3)
    )
    hooks.cleanup()
    found_D = sum(parts) * (CLIP / GRID)
    assert np.abs(central_D).max() > 1.0
    assert np.abs(found_D - central_D).max() <= 36 * 0.5 * CLIP / GRID * (1 + 1e-6)


@pytest.mark.parametrize("size", [1, 100, 70_000])
@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-3, 1e6), seed=st.integers(0, 2**32 - 1))
def test_no_gradient_is_longer_than_the_grid_once_rounded(size: int, scale: float, seed: int) -> None:
    gradient_BD = torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (1, size)))
    whole_D = clip_and_round(gradient_BD, rounding_bound(size, CLIP, GRID), STEP).numpy()
    assert math.sqrt((whole_D.astype(float) ** 2).sum()) <= GRID


def test_rounding_makes_a_gradient_longer_and_the_smaller_clip_makes_room_for_it() -> None:
    """10,000 equal coordinates of length 65,555 are 655.55 each, and round to 656: length 65,600."""
    step, gradient_BD = replace(STEP, grid=65_555), torch.full((1, 10_000), 1e3, dtype=torch.float64)
    kept_D = clip_and_round(gradient_BD, rounding_bound(10_000, CLIP, step.grid), step).numpy()
    assert math.sqrt((kept_D.astype(float) ** 2).sum()) == 65_500
    too_long_D = clip_and_round(gradient_BD, CLIP, step).numpy()
    assert math.sqrt((too_long_D.astype(float) ** 2).sum()) == 65_600


def test_one_user_more_moves_the_whole_numbers_by_the_grid_at_most_whatever_it_holds() -> None:
    model = new_model()
    features = random_features(12, 4)
    gradients_BD = torch.from_numpy(
        np.stack([one_user_gradient(model, features, row_M) for row_M in all_rows(features)])
    ).double()
    bound = rounding_bound(gradients_BD.shape[1], CLIP, GRID)
    before_D = clip_and_round(gradients_BD, bound, STEP).numpy()
    for added in (torch.full((1, gradients_BD.shape[1]), 1e30), torch.full((1, gradients_BD.shape[1]), math.nan)):
        after_D = clip_and_round(torch.cat([gradients_BD, added.double()]), bound, STEP).numpy()
        moved = math.sqrt(((after_D - before_D).astype(float) ** 2).sum())
        assert moved <= GRID
        assert (moved == 0) == bool(added.isnan().any())


def test_a_grid_that_rounding_alone_would_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy.grid_bits: a grid of 256 is too coarse for 262144 parameters"):
        rounding_bound(2**18, 1.0, 2**8)


def test_nobody_sampled_is_a_step_of_noise_alone() -> None:
    quiet = replace(STEP, sampling_rate=1e-12, noise_multiplier=1.0)
    assert part(1, replace(quiet, noise_multiplier=0.0)).any() == False  # noqa: E712 (a numpy bool)
    noise_D = part(1, quiet)
    assert noise_D.std() > 0.5 * quiet.part_deviation


def test_a_partner_that_cannot_train_sends_its_part_of_the_noise_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The others' sums rely on that part; and the same noise as ever: a failure must not show in the numbers."""
    step, model = replace(STEP, noise_multiplier=1.0), new_model()

    def broken() -> Any:
        raise DataError("/data/clicks.csv: no such file")

    found_D = noised_step(model, read_vector(model), broken, step, Randomness(1, "p1", 1)).sum_D
    assert np.array_equal(found_D, part(1, step) - part(1, replace(step, noise_multiplier=0.0)))
    assert found_D.std() > 0.9 * step.part_deviation
    assert "cannot train; it sends its part of the noise alone" in caplog.text


def test_an_error_of_the_program_is_loud_and_still_gives_the_noise(caplog: pytest.LogCaptureFixture) -> None:
    """A bug must not pass for a log that cannot be read; and its text, which may hold data, stays out of the log."""
    step, model, failures = replace(STEP, noise_multiplier=1.0), new_model(), []

    def broken() -> Any:
        raise TypeError("user-17 has no len()")

    randomness = Randomness(1, "p1", 1)
    found_D = noised_step(model, read_vector(model), broken, step, randomness, lambda: failures.append(1)).sum_D
    assert np.array_equal(found_D, part(1, step) - part(1, replace(step, noise_multiplier=0.0)))
    assert failures == [1]
    (record,) = caplog.records
    assert record.levelname == "CRITICAL"
    assert "AN ERROR OF THIS PROGRAM, not of the data: TypeError" in record.getMessage()
    line = json.loads(JsonLines().format(record))
    assert line["exception"] == "TypeError"
    assert line["places"][-1].startswith("test_distributed_oracles.py:")
    assert "user-17" not in json.dumps(line)


@pytest.mark.parametrize("survivors", [3, 4, 7])
@pytest.mark.parametrize("shares", [2, 3])
def test_the_noise_of_a_sum_has_the_claimed_scale_and_never_less(shares: int, survivors: int) -> None:
    """On zero data: accepted at the claim for `shares` honest parts; 2/3 and 3/2 of it are rejected."""
    step, size = replace(STEP, noise_multiplier=1.3, shares=shares), 40_000
    parts = [skellam(size, step.part_deviation, secure_generator(bytes([n + 1]) * 32)) for n in range(survivors)]
    honest_D, all_D = sum(parts[:shares]), sum(parts)

    def fits(noise_D: np.ndarray, deviation: float) -> bool:
        statistic = float((noise_D.astype(float) ** 2).sum()) / deviation**2
        return bool(1e-6 < stats.chi2.cdf(statistic, size) < 1 - 1e-6)

    claimed = 1.3 * GRID
    assert fits(honest_D, claimed)
    assert not fits(honest_D, claimed * 2 / 3)
    assert not fits(honest_D, claimed * 3 / 2)
    assert fits(all_D, claimed * math.sqrt(survivors / shares))
    assert survivors < shares or all_D.std() >= 0.98 * claimed


def test_parts_of_two_partners_and_two_rounds_are_unrelated() -> None:
    draws = [
        skellam(20_000, 1000.0, Randomness(7, partner, number).noise)
        for partner, number in (("a", 1), ("b", 1), ("a", 2))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(draws[one], draws[other])[0, 1]) < 5 / math.sqrt(20_000)
    again_D = skellam(20_000, 1000.0, Randomness(7, "a", 1).noise)
    assert np.array_equal(draws[0], again_D)
    fresh = [skellam(100, 1000.0, Randomness(None, "a", 1).noise) for _ in range(2)]
    assert not np.array_equal(*fresh)


# The design's table: N = 1e5, q = .01024, 488 steps, delta 1e-6, noise multiplier 1 in the sum.
@pytest.mark.parametrize(
    ("shares", "partner", "broken"),
    [(2, 4.27, 4.27), (3, 2.79, 7.87), (5, 2.15, 17.2), (8, 1.90, 35.0), (16, 1.74, 96.0)],
)
def test_who_sees_what(shares: int, partner: float, broken: float) -> None:
    events = [
        release(
            round=number, mechanism="poisson_skellam", mode="distributed", shares=shares, steps=1, sampling_rate=0.01024
        )
        for number in range(1, 489)
    ]
    found = privacy_statement(events, 1e-6).views
    assert found["server"] == pytest.approx(1.60, abs=0.01)
    assert found["partner"] == pytest.approx(partner, abs=0.01)
    assert found["broken"] == pytest.approx(broken, rel=0.01)
    for view in VIEWS:
        assert found[view] == epsilon(as_seen(events, view), 1e-6)


def test_in_local_mode_everyone_sees_the_whole_noise() -> None:
    assert {noise_seen(release(noise_multiplier=0.7), view) for view in VIEWS} == {0.7}
    statement = privacy_statement([release()], 1e-5)
    assert set(statement.views.values()) == {statement.epsilon}
