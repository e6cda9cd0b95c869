"""The global step from the mean contribution of a round.

Legend: D parameters.
Source: Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2 (FedAdam); Hsu et al. 2019, "Measuring the
Effects of Non-Identical Data Distribution", section 4.3 (FedAvgM).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.config import ServerConfig
from common.contribution import LocalDelta, NoisedStep

Double = NDArray[np.float64]


@dataclass
class ServerOptimiser:
    """Holds the moments between rounds; `state` and `load_state` carry them over a restart."""

    config: ServerConfig
    length: int
    rate_D: Double | None = None  # each coordinate's learning rate over the configured one
    _first_D: Double = field(init=False, repr=False)
    _second_D: Double = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._first_D = np.zeros(self.length)
        self._second_D = np.zeros(self.length)

    def step(
        self, global_D: NDArray[np.float32], mean_D: Double, kind: type[LocalDelta] | type[NoisedStep]
    ) -> NDArray[np.float32]:
        """Returns the new global model, float32 [D].

        Args:
            global_D: the model that the contributions started from.
            mean_D: their weighted mean: an update (`LocalDelta`, added) or a gradient (`NoisedStep`, subtracted).
            kind: which of the two.
        """
        direction_D = mean_D if kind is LocalDelta else -mean_D
        step_D = self.config.learning_rate * self._shape(direction_D)
        # A partner's own steps have had their rates already, but FedAdam takes every coordinate's size out again.
        if self.rate_D is not None and (kind is NoisedStep or self.config.optimiser == "fedadam"):
            step_D *= self.rate_D
        return (global_D.astype(np.float64) + step_D).astype(np.float32)

    def _shape(self, direction_D: Double) -> Double:
        if self.config.optimiser == "fedavg":
            return direction_D
        if self.config.optimiser == "fedavgm":
            self._first_D = self.config.momentum * self._first_D + direction_D
            return self._first_D
        beta1, beta2 = self.config.momentum, self.config.beta2
        self._first_D = beta1 * self._first_D + (1 - beta1) * direction_D
        self._second_D = beta2 * self._second_D + (1 - beta2) * direction_D**2
        return self._first_D / (np.sqrt(self._second_D) + self.config.tau)

    def state(self) -> dict[str, Double]:
        """Returns copies of the moments."""
        return {"first": self._first_D.copy(), "second": self._second_D.copy()}

    def load_state(self, state: dict[str, Double]) -> None:
        """Takes over moments that `state` returned."""
        self._first_D, self._second_D = state["first"].copy(), state["second"].copy()
