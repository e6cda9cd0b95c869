"""When statistics are released, what they cost, and what training has left."""

from dataclasses import replace
from typing import Any

import pytest

from common.config import Config, EvaluationConfig, parse_config
from common.errors import ConfigError
from common.privacy.accounting import composed_epsilon, merge
from common.schedule import (
    evaluated_in,
    evaluation_cost,
    first_round,
    histograms_cost,
    num_releases,
    number_of_release,
    release_due,
    rounds_evaluated,
    run_of_evaluation,
    run_of_release,
    statistics_cost,
    with_calibrated_noise,
)


def config(every: int = 0, rounds: int = 10, **privacy: Any) -> Config:
    table = {"statistics_every": every, "epsilon": 8.0, "sampling_rate": 0.3} | privacy
    return parse_config(
        {"round": {"num_rounds": rounds, "local_steps": 1}, "privacy": table, "model": {"item_rates": "private"}}
    )


@pytest.mark.parametrize(
    ("every", "due"), [(0, {1: 0}), (3, {1: 0, 4: 1, 7: 2, 10: 3}), (1, {n: n - 1 for n in range(1, 11)}), (99, {1: 0})]
)
def test_a_release_comes_before_every_so_manieth_round(every: int, due: dict[int, int]) -> None:
    own = config(every)
    assert {n: found for n in range(1, 11) if (found := release_due(own, n)) is not None} == due
    for rounds in range(1, 11):
        assert num_releases(own, rounds) == sum(first <= rounds for first in due)
    assert num_releases(own, 0) == 0
    assert all(first_round(own, number) == first for first, number in due.items())


def test_without_private_rates_there_is_none() -> None:
    none = replace(config(), model=replace(config().model, item_rates="none"))
    assert [release_due(none, 1), num_releases(none, 5), statistics_cost(none, 5)] == [None, 0, ()]


def test_a_releases_own_run_is_told_apart() -> None:
    assert run_of_release("abc", 3) == "abc-s3"
    assert number_of_release("abc", "abc-s3") == 3
    assert [number_of_release("abc", other) for other in ("abc", "abc-s", "abc-sx", "xabc-s3", "ab-s3", "abc-s-1")] == [
        None
    ] * 6


@pytest.mark.parametrize("every", [0, 4])
def test_statistics_keep_their_own_epsilon_and_all_together_keep_the_budget(every: int) -> None:
    found = with_calibrated_noise(config(every, statistics_epsilon=2.0), 10)
    releases, noise = num_releases(found, 10), found.privacy.statistics_noise_multiplier
    assert noise is not None
    assert (
        composed_epsilon(((1.0, noise, releases),), 1e-5)
        <= 2.0
        < composed_epsilon(((1.0, noise - 0.001, releases),), 1e-5)
    )
    training = found.privacy.noise_multiplier
    assert training is not None

    def together(sigma: float) -> float:
        return composed_epsilon(merge([(0.3, sigma, 10), (1.0, noise, releases)]), 1e-5)

    assert together(training) <= 8.0 < together(training - 0.001)
    alone = with_calibrated_noise(
        replace(
            found, model=replace(found.model, item_rates="none"), privacy=replace(found.privacy, noise_multiplier=None)
        ),
        10,
    )
    assert (alone.privacy.noise_multiplier or 0) < training


def test_unset_they_may_cost_a_quarter_of_the_budget() -> None:
    noise = with_calibrated_noise(config(), 10).privacy.statistics_noise_multiplier
    assert noise == with_calibrated_noise(config(statistics_epsilon=2.0), 10).privacy.statistics_noise_multiplier


def test_what_is_named_stays() -> None:
    own = config(statistics_noise_multiplier=3.0, noise_multiplier=2.0)
    assert with_calibrated_noise(own, 10) == own


def test_statistics_that_use_the_budget_up_are_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match=r"the histograms alone cost 9\.\d+.*lower privacy\.statistics_epsilon"):
        with_calibrated_noise(config(statistics_epsilon=10.0), 10)


# --- evaluation at the partners ---------------------------------------------------------------------------------------


def evaluated(releases: int = 1, rounds: int = 10, **privacy: Any) -> Config:
    table = {"epsilon": 8.0, "sampling_rate": 0.3} | privacy
    return parse_config(
        {
            "round": {"num_rounds": rounds, "local_steps": 1},
            "privacy": table,
            "evaluation": {"at": "partners", "releases": releases},
        }
    )


@pytest.mark.parametrize(
    ("rounds", "releases", "after"),
    [(10, 1, (10,)), (10, 2, (5, 10)), (10, 3, (4, 7, 10)), (3, 3, (1, 2, 3)), (7, 2, (4, 7)), (1, 1, (1,))],
)
def test_evaluations_are_spread_over_the_rounds_and_the_last_model_has_one(
    rounds: int, releases: int, after: tuple[int, ...]
) -> None:
    assert rounds_evaluated(rounds, releases) == after
    config = with_calibrated_noise(evaluated(releases, rounds), rounds)
    noise = config.privacy.evaluation_noise_multiplier
    for done in range(rounds + 1):
        count = sum(number <= done for number in after)
        assert evaluation_cost(config, done) == (((1.0, noise, count),) if count else ())


@pytest.mark.parametrize("releases", [1, 4])
def test_evaluations_keep_their_own_epsilon_and_all_together_keep_the_budget(releases: int) -> None:
    found = with_calibrated_noise(evaluated(releases, evaluation_epsilon=2.0), 10)
    noise, training = found.privacy.evaluation_noise_multiplier, found.privacy.noise_multiplier
    assert noise is not None
    assert training is not None
    assert composed_epsilon(((1.0, noise, releases),), 1e-5) <= 2.0
    assert composed_epsilon(((1.0, noise - 0.002, releases),), 1e-5) > 2.0
    whole = merge([(0.3, training, 10), *histograms_cost(found, 10)])
    assert composed_epsilon(whole, 1e-5) <= 8.0
    assert composed_epsilon(merge([(0.3, training - 0.002, 10), *histograms_cost(found, 10)]), 1e-5) > 8.0


def test_exact_and_flipped_counts_are_no_noised_releases() -> None:
    for mode in ("none", "label"):
        assert evaluation_cost(evaluated(mode=mode), 10) == ()
    assert evaluation_cost(replace(evaluated(), evaluation=EvaluationConfig()), 10) == ()


def test_noise_that_is_named_must_leave_the_evaluation_room() -> None:
    named = {"noise_multiplier": 1.4, "evaluation_noise_multiplier": 2.0, "epsilon": 4.0}
    alone = replace(evaluated(**named), evaluation=EvaluationConfig())
    assert with_calibrated_noise(alone, 10) == alone
    with pytest.raises(ConfigError, match=r"10 rounds and 1 evaluations .* come to epsilon .* unevaluated"):
        with_calibrated_noise(evaluated(**named), 10)
    assert with_calibrated_noise(evaluated(**named | {"epsilon": 6.0}), 10) is not None


def test_an_evaluations_own_run_is_told_apart() -> None:
    assert run_of_evaluation("abc", 12) == "abc-e12"
    assert evaluated_in("abc-e12") == ("abc", 12)
    assert evaluated_in("a-e1-e2") == ("a-e1", 2)
    assert [evaluated_in(other) for other in ("abc", "abc-e", "abc-ex", "-e3", "abc-s3", "abc-e-1", "abc-e1\n")] == [
        None
    ] * 7
