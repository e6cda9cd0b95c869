"""The global step, by hand, and a state that survives a restart."""

from dataclasses import replace

import numpy as np
import pytest

from common.config import ServerConfig
from common.contribution import LocalDelta, NoisedStep, RunningSum
from server.optimiser import ServerOptimiser

START_D = np.array([1.0, -1.0], np.float32)
UP_D = np.array([0.5, 0.25])


def steps(config: ServerConfig, count: int, optimiser: ServerOptimiser | None = None) -> np.ndarray:
    optimiser = optimiser or ServerOptimiser(config, 2)
    model_D = START_D
    for _ in range(count):
        model_D = optimiser.step(model_D, UP_D, LocalDelta)
    return model_D


def test_fedavg_adds_the_mean_update() -> None:
    model_D = ServerOptimiser(ServerConfig(), 2).step(START_D, UP_D, LocalDelta)
    assert model_D.dtype == np.float32
    np.testing.assert_array_equal(model_D, [1.5, -0.75])
    np.testing.assert_array_equal(START_D, [1.0, -1.0])


def test_the_learning_rate_scales_the_step() -> None:
    model_D = ServerOptimiser(ServerConfig(learning_rate=0.5), 2).step(START_D, UP_D, LocalDelta)
    np.testing.assert_array_equal(model_D, [1.25, -0.875])


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam"])
def test_a_noised_step_is_a_gradient_and_goes_downhill(name: str) -> None:
    """The loss w^2 / 2 has the gradient w: both kinds of contribution bring the model nearer to 0."""
    config = ServerConfig(optimiser=name, learning_rate=0.1)
    gradient = RunningSum(2, NoisedStep)
    gradient.add(NoisedStep(np.array([10, -10], np.int64), 10))
    downhill_D = ServerOptimiser(config, 2).step(START_D, gradient.mean(1), NoisedStep)
    assert (np.abs(downhill_D) < 1).all()
    update = RunningSum(2, LocalDelta)
    update.add(LocalDelta(-START_D, 1.0))
    np.testing.assert_allclose(ServerOptimiser(config, 2).step(START_D, update.mean(1), LocalDelta), downhill_D)


def test_fedavgm_by_hand() -> None:
    """Momenta g, 1.5 g, 1.75 g with factor .5: after three steps 4.25 g."""
    found_D = steps(ServerConfig(optimiser="fedavgm", momentum=0.5), 3)
    np.testing.assert_allclose(found_D, START_D + 4.25 * UP_D, rtol=1e-6)


def test_fedavgm_without_momentum_is_fedavg() -> None:
    plain = steps(ServerConfig(), 4)
    np.testing.assert_array_equal(steps(ServerConfig(optimiser="fedavgm", momentum=0.0), 4), plain)


def test_fedadam_by_hand() -> None:
    """Reddi et al., algorithm 2, without bias correction: m = .1 g, v = .01 g^2, then m / (sqrt(v) + tau)."""
    config = ServerConfig(optimiser="fedadam", learning_rate=0.1, momentum=0.9, beta2=0.99, tau=0.05)
    m1, v1 = 0.1 * UP_D, 0.01 * UP_D**2
    first_D = START_D + 0.1 * m1 / (np.sqrt(v1) + 0.05)
    np.testing.assert_allclose(steps(config, 1), first_D, rtol=1e-6)
    m2, v2 = 0.9 * m1 + 0.1 * UP_D, 0.99 * v1 + 0.01 * UP_D**2
    np.testing.assert_allclose(steps(config, 2), first_D + 0.1 * m2 / (np.sqrt(v2) + 0.05), rtol=1e-6)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam"])
def test_a_restored_state_goes_on_to_the_bit(name: str) -> None:
    config = ServerConfig(optimiser=name, learning_rate=0.03)
    rng = np.random.default_rng(0)
    means = rng.normal(size=(6, 2))

    def run(optimiser: ServerOptimiser, model_D: np.ndarray, some: np.ndarray) -> np.ndarray:
        for mean_D in some:
            model_D = optimiser.step(model_D, mean_D, LocalDelta)
        return model_D

    whole = run(ServerOptimiser(config, 2), START_D, means)
    first = ServerOptimiser(config, 2)
    half = run(first, START_D, means[:3])
    second = ServerOptimiser(config, 2)
    second.load_state(first.state())
    assert run(second, half, means[3:]).tobytes() == whole.tobytes()
    if name != "fedavg":
        assert run(ServerOptimiser(config, 2), half, means[3:]).tobytes() != whole.tobytes()


def test_the_state_is_a_copy_both_ways() -> None:
    optimiser = ServerOptimiser(ServerConfig(optimiser="fedavgm"), 2)
    optimiser.step(START_D, UP_D, LocalDelta)
    state = optimiser.state()
    state["first"][:] = 99.0
    np.testing.assert_array_equal(optimiser.state()["first"], UP_D)
    optimiser.load_state(state)
    state["first"][:] = -99.0
    np.testing.assert_array_equal(optimiser.state()["first"], [99.0, 99.0])


def test_moments_do_not_show_in_a_repr() -> None:
    assert "_first_D" not in repr(ServerOptimiser(replace(ServerConfig()), 2))
