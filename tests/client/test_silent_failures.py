"""What fails silently elsewhere and is not on offer here, or does not depend on data here."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from conftest import random_features
from partner_folder import task_for, write_partner

from client import training
from client.training import DpStep, Randomness, train_privately
from client.worker import Worker
from common.config import ModelConfig, PrivacyConfig, RoundConfig, ServerConfig, parse_table
from common.contribution import LocalDelta, NoisedStep
from common.errors import ConfigError
from common.features import UserRows
from common.messages import TrainingPlan
from common.model.click_model import build_model
from common.vector import read_vector


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (PrivacyConfig, "secure_mode"),
        (PrivacyConfig, "adaptive_clipping"),
        (PrivacyConfig, "target_unclipped_quantile"),
        (PrivacyConfig, "rand_on_empty"),
        (PrivacyConfig, "ghost"),
        (RoundConfig, "batch_size"),
        (RoundConfig, "early_stopping"),
        (ServerConfig, "early_stopping"),
    ],
)
def test_what_fails_silently_is_not_on_offer(kind: type[Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key.*{key}|{key}.*unknown"):
        parse_table(kind, {key: True})


def spoilt(features: UserRows, how: str) -> UserRows:
    values = {"clicked by all": 1.0, "clicked by none": 0.0}
    if how in values:
        return dataclasses.replace(features, label_NL=np.full_like(features.label_NL, values[how]))
    if how == "not a number":
        return dataclasses.replace(features, dense_NF=np.full_like(features.dense_NF, np.nan))
    return features


@pytest.mark.parametrize("how", ["as it is", "clicked by all", "clicked by none", "not a number", "nobody sampled"])
def test_the_steps_made_are_the_steps_asked_for_whatever_the_data_hold(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping early, or skipping an empty or a sick batch, would tell of the data, and is not in the ledger."""
    noises: list[int] = []
    noise = training.gaussian_noise
    monkeypatch.setattr(training, "gaussian_noise", lambda *given: (noises.append(given[0]), noise(*given))[1])
    config = ModelConfig(width=4, hidden=6)
    model = build_model(config, 8, 1, seed=3)
    start_D = read_vector(model)
    step = DpStep(1e-12 if how == "nobody sampled" else 1.0, 1.0, 1.0, 10, 12.0)
    plan = TrainingPlan(7, "adam", 0.1, 0.0)
    update_D = train_privately(model, start_D, spoilt(random_features(12), how), plan, step, Randomness(1, "p", 1))
    assert noises == [len(start_D)] * 7
    assert np.isfinite(update_D).all()
    assert np.abs(update_D).max() > 0.01


def test_a_contribution_has_no_field_for_a_loss_a_norm_or_a_count_of_the_data() -> None:
    assert [field.name for field in dataclasses.fields(LocalDelta)] == ["delta_D", "weight"]
    assert [field.name for field in dataclasses.fields(NoisedStep)] == ["sum_D", "declared_units"]


def test_the_weight_of_a_contribution_is_the_declared_one_whatever_the_log_holds(
    tmp_path: Any, tiny_encoder: Any
) -> None:
    """FedAvg's weight is usually the number of examples, which is private."""
    from conftest import random_rows

    weights = set()
    for name, users in (("few", 3), ("many", 40)):
        worker = Worker(write_partner(tmp_path / name, tiny_encoder, random_rows(users)))
        weights.add(worker.train(task_for(worker, weight=0.25)).contribution.weight)  # type: ignore[union-attr]
    assert weights == {0.25}
