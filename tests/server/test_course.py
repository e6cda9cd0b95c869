"""Means of models by hand, patience by hand, and a restart in between that changes no bit."""

from typing import Any

import numpy as np
import pytest

from common.config import ServerConfig
from server.course import Course

MODELS = [np.array(values, np.float32) for values in ([1.0, 0.0], [3.0, 8.0], [2.0, -2.0], [7.0, 1.0])]


def course(rounds: int = 4, **settings: Any) -> Course:
    return Course(ServerConfig(**settings), rounds, 2)


def after(found: Course, models: list[np.ndarray] = MODELS) -> np.ndarray:
    for number, model_D in enumerate(models, 1):
        found.add(number, model_D)
    return found.model(models[-1])


# --- averaging ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, MODELS[-1]),
        ({"averaging": "uniform"}, [13 / 4, 7 / 4]),
        ({"averaging": "tail"}, [(2 + 7) / 2, (-2 + 1) / 2]),
        ({"averaging": "tail", "averaging_from": 0.0}, [13 / 4, 7 / 4]),
        ({"averaging": "tail", "averaging_from": 0.8}, [7, 1]),
        # Weights 1/8, 1/4, 1/2 and 1, over their sum.
        (
            {"averaging": "exponential", "averaging_decay": 0.5},
            [(1 / 8 + 3 / 4 + 2 / 2 + 7) / 1.875, (8 / 4 - 2 / 2 + 1) / 1.875],
        ),
    ],
)
def test_means_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    found_D = after(course(**settings))
    assert found_D.dtype == np.float32
    np.testing.assert_allclose(found_D, expected, rtol=1e-6)


def test_before_its_first_round_a_tail_is_the_latest_model() -> None:
    found = course(averaging="tail")
    found.add(1, MODELS[0])
    np.testing.assert_array_equal(found.model(MODELS[0]), MODELS[0])
    assert found.facts(1) == {}


def test_a_first_model_is_its_own_mean() -> None:
    np.testing.assert_array_equal(after(course(averaging="exponential"), MODELS[:1]), MODELS[0])


def test_the_mean_cannot_be_changed_from_outside() -> None:
    found = course(averaging="uniform")
    found.add(1, MODELS[0])
    found.state()["mean"][:] = 9
    np.testing.assert_array_equal(found.model(MODELS[0]), MODELS[0])


# --- early stopping -----------------------------------------------------------------------------------------------


def looked(values: list[float], **settings: Any) -> Course:
    found = course(rounds=10, **settings)
    for number, value in enumerate(values, 1):
        if found.done:
            break
        model_D = np.full(2, number, np.float32)
        found.add(number, model_D)
        found.look(number, {"auc": value, "log_loss": value}, model_D)
    return found


def test_the_best_model_is_kept_and_the_run_ends() -> None:
    found = looked([0.7, 0.6, 0.65, 0.61, 0.5], patience=2)
    assert found.done
    np.testing.assert_array_equal(found.chosen(MODELS[0]), [2, 2])
    assert found.facts(4)["early_stopping"] == {
        "figure": "log_loss",
        "patience": 2,
        "best_round": 2,
        "best": 0.6,
        "stopped": True,
        "rounds_run": 4,
        "rounds_not_run": 6,
    }


def test_a_larger_auc_is_better() -> None:
    found = looked([0.6, 0.7, 0.65, 0.7], patience=2, patience_figure="auc")
    assert found.done  # the same again is no gain
    np.testing.assert_array_equal(found.chosen(MODELS[0]), [2, 2])


def test_a_gain_starts_the_waiting_anew() -> None:
    assert not looked([0.7, 0.71, 0.69, 0.72], patience=2).done


def test_what_is_not_defined_is_not_better() -> None:
    found = looked([float("nan"), float("nan")], patience=3)
    np.testing.assert_array_equal(found.chosen(MODELS[1]), MODELS[1])
    assert not found.done
    assert looked([float("nan")] * 3, patience=3).done


def test_without_patience_nothing_ends_and_the_last_model_is_kept() -> None:
    found = looked([0.5, 0.6, 0.7, 0.8])
    assert not found.done
    np.testing.assert_array_equal(found.chosen(MODELS[2]), MODELS[2])
    assert found.facts(4) == {}
    assert found.state() == {}


def test_the_best_of_means_is_a_mean() -> None:
    found = looked([0.7, 0.6, 0.9, 0.9], patience=2, averaging="uniform")
    np.testing.assert_array_equal(found.chosen(MODELS[0]), [1.5, 1.5])
    assert found.facts(4)["averaging"] == {"kind": "uniform", "models": 2}


# --- restart ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("averaging", ["none", "exponential", "uniform", "tail"])
def test_a_restart_changes_no_bit(at: int, averaging: Any) -> None:
    rng = np.random.default_rng(4)
    models = [rng.normal(size=2).astype(np.float32) for _ in range(5)]
    losses = [0.7, 0.5, 0.6, 0.65, 0.4]

    def play(restarted: bool) -> Course:
        found = course(5, averaging=averaging, patience=4)
        for place, (model_D, loss) in enumerate(zip(models, losses, strict=True)):
            if restarted and place == at:
                state = found.state()
                found = course(5, averaging=averaging, patience=4)
                found.load_state(state)
            found.add(place + 1, model_D)
            found.look(place + 1, {"log_loss": loss}, model_D)
        return found

    whole, restarted = play(False), play(True)
    assert whole.facts(5) == restarted.facts(5)
    assert whole.chosen(models[-1]).tobytes() == restarted.chosen(models[-1]).tobytes()
    assert {name: values.tobytes() for name, values in whole.state().items()} == {
        name: values.tobytes() for name, values in restarted.state().items()
    }
