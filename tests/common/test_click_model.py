"""The click model against a loop over rows in numpy, and what its gradients and losses may depend on.

Legend: B users, M rows, K bank, E text width, D width, F dense, L heads.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_features

from common.config import ModelConfig
from common.features import Batch, UserRows, dense_names, make_batch
from common.model.click_model import ClickModel, build_model, forward, user_losses

CONFIG = ModelConfig(width=4, hidden=6, context_buckets=3)
WIDTH = 8


def new_model(heads: int = 1, spread: float = 0.5) -> ClickModel:
    model = build_model(CONFIG, WIDTH, heads, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model


def new_features(purchases: bool = False) -> UserRows:
    return random_features(7, config=CONFIG, width=WIDTH, purchases=purchases)


def whole_batch(features: UserRows) -> Batch:
    return make_batch(
        features, [np.arange(a, b) for a, b in zip(features.offset_U1[:-1], features.offset_U1[1:], strict=True)]
    )


def sigmoid(value: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(value, np.float64)))


@pytest.mark.parametrize("heads", [1, 2])
def test_logits_equal_a_loop_over_rows(heads: int) -> None:
    """The oracle knows no batch, no padding and no mask: one row, its history, softmax with a null entry of score 0."""
    features, model = new_features(), new_model(heads)
    weight = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def item(state_E: np.ndarray) -> np.ndarray:
        return np.tanh(weight["project.weight"] @ state_E.astype(float) + weight["project.bias"])

    batch = whole_batch(features)
    found = forward(model, batch).detach().numpy()[batch.weight_BM > 0]
    assert len(found) == len(features.text_N)
    for row, logits_L in enumerate(found):
        candidate_D = item(features.states_TE[features.text_N[row]])
        query_D = weight["query.weight"] @ candidate_D + weight["query.bias"]
        interest_D, total = np.zeros(CONFIG.width), 1.0
        for past in features.history_NH[row]:
            if past >= 0:
                past_D = item(features.states_TE[features.text_N[past]])
                share = np.exp(query_D @ past_D / np.sqrt(CONFIG.width))
                interest_D, total = interest_D + share * past_D, total + share
        interest_D /= total
        dense_F = features.dense_NF[row].astype(float)
        joined = np.concatenate([candidate_D, interest_D, candidate_D * interest_D, dense_F])
        hidden = np.tanh(weight["hidden.weight"] @ joined + weight["hidden.bias"])
        expected_L = weight["head.weight"] @ hidden + weight["head.bias"] + weight["wide.weight"] @ dense_F
        np.testing.assert_allclose(logits_L, expected_L, atol=1e-5)


def test_a_user_without_history_gets_a_finite_score_from_candidate_and_context() -> None:
    features = new_features()
    first_M = features.offset_U1[:-1]
    assert (features.history_NH[first_M] == -1).all()
    batch = make_batch(features, [np.array([row]) for row in first_M])
    assert torch.isfinite(forward(new_model(), batch)).all()


def test_the_same_seed_gives_the_same_weights_and_torchs_own_rng_is_left_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second, other = (build_model(CONFIG, WIDTH, 2, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)  # nor do the weights depend on it
    third = build_model(CONFIG, WIDTH, 2, 4)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
        assert torch.equal(weight, third.state_dict()[name])
    assert not torch.equal(first.project.weight, other.project.weight)


def test_first_predictions_are_near_one_half() -> None:
    features = new_features()
    batch = whole_batch(features)
    rate = torch.sigmoid(forward(build_model(CONFIG, WIDTH, 1, 1), batch))
    assert ((rate > 0.4) & (rate < 0.6)).all()


@pytest.mark.parametrize("heads", [1, 2])
def test_the_number_of_parameters_by_hand(heads: int) -> None:
    dense = len(dense_names(CONFIG))
    assert dense == 10 + 3 + 3
    project, query = 8 * 4 + 4, 4 * 4 + 4
    hidden, head, wide = (3 * 4 + dense) * 6 + 6, 6 * heads + heads, dense * heads
    model = build_model(CONFIG, WIDTH, heads, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == project + query + hidden + head + wide


def test_it_has_no_buffers_and_linear_layers_only() -> None:
    """A buffer would carry private rows out unaccounted; Opacus' hooks are exact for linear layers."""
    model = new_model()
    assert not list(model.buffers())
    assert {type(module) for name, module in model.named_modules() if name} == {torch.nn.Linear}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("heads", [1, 2])
def test_padding_has_no_gradient(heads: int) -> None:
    batch = whole_batch(new_features(purchases=True))
    model = new_model(heads)
    inputs = [
        torch.from_numpy(array).requires_grad_(array.dtype == np.float32)
        for array in (batch.candidate_BME, batch.bank_BKE, batch.attend_BMK, batch.dense_BMF)
    ]
    user_losses(model(*inputs), batch).sum().backward()
    padding, rows = batch.weight_BM == 0, batch.weight_BM > 0
    unused = ~batch.attend_BMK.any(axis=1)
    assert padding.any()
    assert unused.any()
    for tensor in (inputs[0], inputs[3]):
        assert not tensor.grad.numpy()[padding].any()
        assert (np.abs(tensor.grad.numpy()[rows]).sum(-1) > 0).all()
    assert not inputs[1].grad.numpy()[unused].any()
    assert inputs[1].grad.numpy()[~unused].any()


@pytest.mark.parametrize("heads", [1, 2])
def test_the_loss_is_one_number_per_user(heads: int) -> None:
    batch = whole_batch(new_features(purchases=True))
    losses = user_losses(forward(new_model(heads), batch), batch)
    assert losses.shape == (7,)
    assert (losses > 0).all()


def one_user(labels: list[list[float]], weight: list[float]) -> Batch:
    rows = len(labels)
    empty = np.zeros((1, rows, 1), np.float32)
    label_BML, weight_BM = np.array([labels], np.float32), np.array([weight], np.float32)
    no_text = np.full((1, rows), -1)
    return Batch(empty, empty, np.zeros((1, rows, rows), bool), empty, label_BML, weight_BM, no_text, no_text)


def test_the_click_loss_by_hand() -> None:
    batch = one_user([[1.0], [0.0], [1.0]], [1.0, 1.0, 0.0])
    logits = torch.tensor([[[0.5], [-1.0], [9.0]]])
    expected = -np.log(sigmoid(0.5)) - np.log(1 - sigmoid(-1.0))
    assert user_losses(logits, batch).item() == pytest.approx(expected, rel=1e-6)


def test_the_purchase_loss_uses_all_rows() -> None:
    """p(purchase) = p(click) p(purchase | click), and a row without a click counts as not bought (ESMM)."""
    labels = [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    logits = [[0.5, -0.3], [1.0, 0.2], [-0.7, 2.0]]
    expected = 0.0
    for (clicked, bought), (click, buy) in zip(labels, logits, strict=True):
        rate, both = sigmoid(click), sigmoid(click) * sigmoid(buy)
        expected -= np.log(rate if clicked else 1 - rate) + np.log(both if bought else 1 - both)
    found = user_losses(torch.tensor([logits]), one_user(labels, [1.0] * 3)).item()
    assert found == pytest.approx(expected, rel=1e-6)
    skipped = user_losses(torch.tensor([logits]), one_user(labels, [1.0, 1.0, 0.0])).item()
    assert found > skipped + 0.1


@pytest.mark.parametrize("bought", [0.0, 1.0])
@pytest.mark.parametrize("buy", [-40.0, -5.0, 0.0, 5.0, 40.0])
@pytest.mark.parametrize("click", [-40.0, -5.0, 0.0, 5.0, 40.0])
def test_the_purchase_loss_and_its_gradient_are_right_far_out(click: float, buy: float, bought: float) -> None:
    """Against the logarithms in float64, which hold where 1 - p rounds to 0 in float32."""
    logits = torch.tensor([[[click, buy]]], requires_grad=True)
    loss = user_losses(logits, one_user([[1.0, bought]], [1.0]))
    loss.sum().backward()
    a, b = np.longdouble(click), np.longdouble(buy)
    log_both = -np.log1p(np.exp(-a)) - np.log1p(np.exp(-b))
    log_not = np.log1p(np.exp(a) + np.exp(b)) - np.log1p(np.exp(a)) - np.log1p(np.exp(b))
    expected = np.log1p(np.exp(-a)) - (log_both if bought else log_not)
    assert loss.item() == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
    either = 1 + np.exp(a) + np.exp(b)
    slope_a = -sigmoid(-click) - (sigmoid(-click) if bought else float(np.exp(a) / either) - sigmoid(click))
    slope_b = -(sigmoid(-buy) if bought else float(np.exp(b) / either) - sigmoid(buy))
    np.testing.assert_allclose(logits.grad.numpy()[0, 0], [slope_a, slope_b], atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_users_bad_values_are_no_error_and_stay_with_that_user(heads: int, bad: float) -> None:
    """DP-SGD counts such a user as 0, which needs a loss that is not finite rather than an exception."""
    batch = whole_batch(new_features(purchases=True))
    model = new_model(heads)
    clean = user_losses(forward(model, batch), batch)
    batch.dense_BMF[2, 0, 0] = bad
    spoilt = user_losses(forward(model, batch), batch)
    others = [user for user in range(7) if user != 2]
    assert torch.equal(spoilt[others], clean[others])
    if np.isnan(bad):
        assert spoilt[2].isnan()


@pytest.mark.parametrize("prior", [0.5, 0.04])
def test_the_first_prediction_is_the_public_prior(prior: float) -> None:
    config = replace(CONFIG, prior_click_rate=prior)
    rows = UserRows(
        np.array([0, 3]),
        np.arange(3),
        np.zeros((3, 2), np.float32),
        np.random.default_rng(1).normal(size=(3, len(dense_names(config)))).astype(np.float32),
        np.full((3, config.history), -1),
        np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32),
    )
    model = build_model(config, 8, 2, 1)
    logits_BML = forward(model, make_batch(rows, [np.arange(3)])).detach().numpy()
    np.testing.assert_allclose(sigmoid(logits_BML[..., 0]), prior, rtol=0.15)
    np.testing.assert_allclose(sigmoid(logits_BML[..., 1]), 0.5, rtol=0.15)
