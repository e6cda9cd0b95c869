"""What becomes of the models that the rounds give: averaged, looked at, and one of them kept.

Averages and choices are made of models that every partner has been sent, and of held-out rows of the operator's own:
post-processing, which costs no privacy.

Legend: D parameters.
Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging" (uniform); Shamir and Zhang
2013, "Stochastic Gradient Descent for Non-smooth Optimization", section 3 (tail).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import ServerConfig

Float = NDArray[np.float32]
State = dict[str, NDArray[np.float64]]


class Average:
    """A running mean of the models after each round.

    With weights w of the models before, and 1 of the new one: the mean moves by (new - mean) / (w + 1). Weights fall by
    `averaging_decay` a round ("exponential") or not at all; so the first model counts as one among others, and no mean
    is drawn towards zero.
    """

    def __init__(self, config: ServerConfig, num_rounds: int, length: int) -> None:
        self._on = config.averaging != "none"
        self._decay = config.averaging_decay if config.averaging == "exponential" else 1.0
        self._from = math.floor(config.averaging_from * num_rounds) + 1 if config.averaging == "tail" else 1
        self._mean_D, self._weight, self.count = np.zeros(length), 0.0, 0

    def add(self, number: int, model_D: Float) -> None:
        """Takes in the model after a round."""
        if not self._on or number < self._from:
            return
        self._weight = self._weight * self._decay + 1
        self._mean_D += (model_D.astype(np.float64) - self._mean_D) / self._weight
        self.count += 1

    def model(self, latest_D: Float) -> Float:
        """Returns the mean, float32 [D]; the latest model while there is none."""
        return self._mean_D.astype(np.float32) if self.count else latest_D

    def state(self) -> State:
        """Returns copies of what a restart needs."""
        return {"mean": self._mean_D.copy(), "weight": np.array([self._weight, self.count])} if self._on else {}

    def load_state(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Takes over what `state` returned."""
        if "mean" in state:
            self._mean_D = state["mean"].copy()
            self._weight, self.count = float(state["weight"][0]), int(state["weight"][1])


class Patience:
    """Keeps the best of the models that were looked at, and says when enough others were not better."""

    def __init__(self, config: ServerConfig) -> None:
        self.patience, self.figure = config.patience, config.patience_figure
        self.best: float | None = None
        self.best_round = self.waited = self.best_models = 0
        self._best_D: NDArray[np.float64] | None = None

    def look(self, number: int, figures: Mapping[str, Any], model_D: Float, models: int = 0) -> None:
        """Takes in the figures of a model, which is a mean of so many; a figure that is not defined is not better."""
        if not self.patience:
            return
        value = float(figures[self.figure])
        if math.isfinite(value) and (self.best is None or self._gain(value) > 0):
            self.best, self.best_round, self.best_models, self.waited = value, number, models, 0
            self._best_D = model_D.astype(np.float64)
        else:
            self.waited += 1

    def _gain(self, value: float) -> float:
        gain = value - (self.best or 0.0)
        return gain if self.figure == "auc" else -gain

    @property
    def done(self) -> bool:
        """Whether the run should end."""
        return bool(self.patience) and self.waited >= self.patience

    def model(self, latest_D: Float) -> Float:
        """Returns the best model, float32 [D]; the latest where none was looked at."""
        return latest_D if self._best_D is None else self._best_D.astype(np.float32)

    def state(self) -> State:
        """Returns copies of what a restart needs."""
        if not self.patience:
            return {}
        best = math.nan if self.best is None else self.best
        state = {"patience": np.array([best, self.best_round, self.waited, self.best_models])}
        return state if self._best_D is None else state | {"best": self._best_D.copy()}

    def load_state(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Takes over what `state` returned."""
        if "patience" in state:
            best, (self.best_round, self.waited, self.best_models) = (
                state["patience"][0],
                map(int, state["patience"][1:]),
            )
            self.best = None if math.isnan(best) else float(best)
            self._best_D = state["best"].copy() if "best" in state else None


class Course:
    """The models of a run in their order: `add` each, `look` at some, and `chosen` is what the run ends with."""

    def __init__(self, config: ServerConfig, num_rounds: int, length: int) -> None:
        self._config, self._num_rounds = config, num_rounds
        self._average, self._patience = Average(config, num_rounds, length), Patience(config)

    def add(self, number: int, global_D: Float) -> None:
        """Takes in the global model after a round that was aggregated."""
        self._average.add(number, global_D)

    def model(self, global_D: Float) -> Float:
        """Returns what is evaluated after a round: the global model, or the mean so far."""
        return self._average.model(global_D)

    def look(self, number: int, figures: Mapping[str, Any], global_D: Float) -> None:
        """Takes in what the evaluation says of `model`."""
        self._patience.look(number, figures, self.model(global_D), self._average.count)

    @property
    def done(self) -> bool:
        """Whether the run should end before its last round."""
        return self._patience.done

    def chosen(self, global_D: Float) -> Float:
        """Returns the model that the run ends with."""
        return self._patience.model(self.model(global_D))

    def state(self) -> State:
        """Returns copies of what a restart needs."""
        return self._average.state() | self._patience.state()

    def load_state(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Takes over what `state` returned."""
        self._average.load_state(state)
        self._patience.load_state(state)

    def facts(self, rounds: int) -> dict[str, Any]:
        """Returns what metrics.json says of which model was kept, after so many rounds; empty where nothing was chosen.

        Every round that was run is charged, whichever model is kept.
        """
        found: dict[str, Any] = {}
        models = self._patience.best_models if self._patience.best_round else self._average.count
        if models:
            found["averaging"] = {"kind": self._config.averaging, "models": models}
        if self._patience.patience:
            patience = self._patience
            found["early_stopping"] = {
                "figure": patience.figure,
                "patience": patience.patience,
                "best_round": patience.best_round,
                "best": patience.best,
                "stopped": patience.done and rounds < self._num_rounds,
                "rounds_run": rounds,
                "rounds_not_run": self._num_rounds - rounds,
            }
        return found
