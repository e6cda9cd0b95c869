"""Flips of click labels: at the claimed rate and no other; the loss made of them is unbiased, and its gradient exact.

Legend: N rows, D parameters.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch
from conftest import random_features
from partner_folder import noisy_labels

from client.gradients import GradientHooks
from client.labels import unbiased
from client.partner import PartnerAggregation, PartnerConfig
from client.training import clipped_sum
from common.card import canonical_card
from common.config import ModelConfig, PrivacyConfig, to_table
from common.features import UserRows, make_batch
from common.model.click_model import ClickModel, build_model, forward, user_losses

ROWS, PER_USER = 20_000, 10
CLAIMED = PrivacyConfig(mode="label", epsilon=1.0, max_impressions_per_user=PER_USER, fixed_seed=3)


def partner(state: Path, privacy: PrivacyConfig = CLAIMED) -> PartnerConfig:
    plain = PartnerAggregation(method="plain")
    card, ledger = state.parent / "card.toml", state.parent / "ledger.jsonl"
    card.parent.mkdir(parents=True, exist_ok=True)
    card.write_text(tomli_w.dumps(to_table(canonical_card(log_of(np.zeros(1))))), encoding="utf-8")
    return PartnerConfig("shop", "clicks", str(card), str(ledger), str(state), 12, aggregation=plain, privacy=privacy)


def log_of(clicked_N: np.ndarray) -> pd.DataFrame:
    number_N = np.arange(len(clicked_N))
    return pd.DataFrame(
        {
            "user": [f"u{number // PER_USER:05d}" for number in number_N],
            "time": 1_700_000_000 + number_N,
            "item": [f"i{number % 7}" for number in number_N],
            "clicked": clicked_N.astype(np.int8),
        }
    )


def deviations(flipped_N: np.ndarray, probability: float) -> float:
    """Returns how far the number of flips is from its mean, in standard deviations."""
    spread = np.sqrt(len(flipped_N) * probability * (1 - probability))
    return float(abs(flipped_N.sum() - len(flipped_N) * probability) / spread)


@pytest.mark.parametrize("asked", [0.5, 1.0, 2.0, 4.0])
def test_labels_are_flipped_at_the_claimed_rate_and_no_other(tmp_path: Path, asked: float) -> None:
    """Of clicks and of non-clicks alike; two thirds and three halves of the rate are rejected."""
    labels = noisy_labels(partner(tmp_path, replace(CLAIMED, epsilon=asked)))
    clicked_N = np.random.default_rng(1).random(ROWS) < 0.2
    flipped_N = labels.flipped(log_of(clicked_N))["clicked"].to_numpy() != clicked_N
    claimed = 1 / (1 + np.exp(asked))
    for part_N in (flipped_N, flipped_N[clicked_N], flipped_N[~clicked_N]):
        assert deviations(part_N, claimed) < 3
    for wrong in (2 / 3, 3 / 2):
        assert deviations(flipped_N, wrong * claimed) > 3


def test_flips_of_neighbouring_rows_and_of_two_partners_are_unrelated(tmp_path: Path) -> None:
    zeros_N = np.zeros(ROWS)
    first_N = noisy_labels(partner(tmp_path / "a")).flipped(log_of(zeros_N))["clicked"].to_numpy()
    other = replace(partner(tmp_path / "b"), name="other")
    second_N = noisy_labels(other).flipped(log_of(zeros_N))["clicked"].to_numpy()
    both = CLAIMED.flip_probability**2
    assert deviations(first_N[1:] & first_N[:-1], both) < 4  # neighbours share a row, so a little wider than 3
    assert deviations(first_N & second_N, both) < 3
    assert not deviations(first_N & first_N, both) < 3


def loss_of(model: ClickModel, rows: UserRows) -> torch.Tensor:
    batch = make_batch(rows, users_of(rows))
    return user_losses(forward(model, batch), batch)


def users_of(rows: UserRows) -> list[np.ndarray]:
    return [np.arange(start, stop) for start, stop in zip(rows.offset_U1[:-1], rows.offset_U1[1:], strict=True)]


@pytest.mark.parametrize("asked", [0.5, 1.0, 3.0])
def test_the_mean_over_all_flips_of_loss_and_gradient_is_that_of_the_true_labels(asked: float) -> None:
    """Every one of the 2^N answers of a user, with its probability; the model's input is held."""
    rows = random_features(1, seed=4)
    flip, count = 1 / (1 + np.exp(asked)), len(rows.label_NL)
    assert 4 <= count <= 9
    model = build_model(ModelConfig(width=4, hidden=6), 8, 1, seed=1)
    true = rows.label_NL[:, 0]
    mean, mean_D, biased = 0.0, 0.0, 0.0
    for flips in product((0, 1), repeat=count):
        answer_N = np.abs(true - np.array(flips)).astype(np.int8)
        share = float(np.prod(np.where(np.array(flips), flip, 1 - flip)))
        noisy = replace(rows, label_NL=unbiased(answer_N, flip)[:, None])
        mean += share * float(loss_of(model, noisy).detach().sum())
        mean_D = mean_D + share * gradient(model, noisy)
        biased += share * float(
            loss_of(model, replace(rows, label_NL=answer_N[:, None].astype(np.float32))).detach().sum()
        )
    honest = float(loss_of(model, rows).detach().sum())
    assert mean == pytest.approx(honest, rel=1e-5)
    np.testing.assert_allclose(mean_D, gradient(model, rows), rtol=1e-3, atol=1e-5)
    assert abs(biased - honest) > 1e-3  # what would be learnt of the flipped labels as they are


def gradient(model: ClickModel, rows: UserRows) -> np.ndarray:
    found = torch.autograd.grad(loss_of(model, rows).sum(), list(model.parameters()))
    return np.concatenate([part.numpy().ravel() for part in found]).astype(np.float64)


def test_the_gradient_that_is_trained_with_is_autograds(tmp_path: Path) -> None:
    rows = random_features(6, seed=2)
    answers = noisy_labels(partner(tmp_path)).flipped(log_of(rows.label_NL[:, 0]))["clicked"].to_numpy()
    assert (answers != rows.label_NL[: len(answers), 0]).any()
    noisy = replace(rows, label_NL=unbiased(answers, CLAIMED.flip_probability)[:, None])
    assert noisy.label_NL.min() < 0 < 1 < noisy.label_NL.max()
    model = build_model(ModelConfig(width=4, hidden=6), 8, 1, seed=1).train()
    hooks = GradientHooks(model)
    try:
        summed_D = clipped_sum(model, noisy, users_of(noisy), None)
    finally:
        hooks.cleanup()
    plain = build_model(ModelConfig(width=4, hidden=6), 8, 1, seed=1)
    np.testing.assert_allclose(summed_D, gradient(plain, noisy), rtol=1e-4, atol=1e-5)
