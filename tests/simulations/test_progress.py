"""Live progress: says what the server's facts say on a terminal, nothing elsewhere, and leaves no trace."""

import logging
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from common.config import Config, PrivacyConfig
from common.privacy.accounting import rounded_up
from simulations.progress import RUN_LOGGER, LiveProgress
from simulations.spending import planned_epsilon

PRIVATE = Config(privacy=PrivacyConfig(noise_multiplier=1.2))
LOGGER = logging.getLogger(RUN_LOGGER)


def console(terminal: bool = True) -> tuple[Console, StringIO]:
    text = StringIO()
    return Console(file=text, force_terminal=terminal, width=200, color_system=None, legacy_windows=False), text


def say(fact: str, message: str = "", **values: Any) -> None:
    LOGGER.info(message, extra={"fact": {"fact": fact} | values})


def shown(config: Config, *facts: dict[str, Any], terminal: bool = True) -> str:
    screen, text = console(terminal)
    with LiveProgress(screen, config):
        for fact in facts:
            say(**fact)
    return text.getvalue()


BEGUN = {"fact": "begun", "partners": 6, "round": 0}


def test_rounds_auc_and_epsilon_are_shown() -> None:
    figures = {"auc": 0.71234, "intervals": {"auc": [0.7, 0.7251]}}
    text = shown(PRIVATE, BEGUN, {"fact": "round", "round": 3, **figures})
    assert "rounds" in text
    assert "3/10" in text
    assert "AUC 0.7123 [0.700, 0.725]" in text
    assert f"epsilon {rounded_up(planned_epsilon(PRIVATE, 3))} per user, delta 1e-05" in text


def test_a_resumed_run_begins_where_it_was() -> None:
    assert "4/10" in shown(PRIVATE, BEGUN | {"round": 4})
    assert "6 partners" in shown(PRIVATE, BEGUN)


def test_what_a_partner_says_is_text_and_no_markup() -> None:
    """A bracket in a partner's error would else raise in the middle of the run."""
    text = shown(PRIVATE, BEGUN, {"fact": "round", "round": 1, "error": "the partner said [/x] and [bold]"})
    assert "[/x] and [bold]" in text


def test_without_privacy_it_says_so_and_only_then() -> None:
    plain = Config(privacy=PrivacyConfig(mode="none"))
    fact = {"fact": "round", "round": 1}
    assert "no privacy" in shown(plain, BEGUN, fact)
    assert "no privacy" not in shown(PRIVATE, BEGUN, fact)


def test_a_round_without_evaluation_or_interval_is_no_error() -> None:
    text = shown(PRIVATE, BEGUN, {"fact": "round", "round": 1}, {"fact": "round", "round": 2, "auc": float("nan")})
    assert "AUC nan" in text
    assert "2/10" in text


def test_failures_are_said_above_the_bar() -> None:
    text = shown(
        PRIVATE,
        BEGUN,
        {"fact": "left_out", "message": "a partner did not join: no such file"},
        {"fact": "round", "round": 1, "error": "1 of at least 3 partners contributed"},
    )
    assert "a partner did not join: no such file" in text
    assert "round 1: 1 of at least 3 partners contributed" in text


def test_encoding_and_floors_are_shown() -> None:
    screen, text = console()
    with LiveProgress(screen, PRIVATE) as progress:
        progress.encoding(100, 250)
        progress.encoding(250, 250)
        progress.floor("floor: pooled training")
    assert "250/250" in text.getvalue()
    assert "floor: pooled training" in text.getvalue()


def test_elsewhere_than_on_a_terminal_there_is_silence() -> None:
    facts = [BEGUN, {"fact": "round", "round": 1, "auc": 0.7, "error": "x"}, {"fact": "left_out", "message": "y"}]
    assert shown(PRIVATE, *facts, terminal=False) == ""


def test_facts_before_the_beginning_and_other_records_are_no_error() -> None:
    screen, _ = console()
    with LiveProgress(screen, PRIVATE):
        say("round", round=1)
        say("finished", round=1, auc=0.5)
        LOGGER.info("a line without facts")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("level", "propagate"), [(logging.WARNING, True), (logging.NOTSET, False)])
def test_the_logger_is_left_as_it_was(fails: bool, level: int, propagate: bool) -> None:
    before = LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)
    LOGGER.setLevel(level)
    LOGGER.propagate = propagate
    try:
        screen, _ = console()
        try:
            with LiveProgress(screen, PRIVATE) as progress:
                assert progress in LOGGER.handlers
                assert not LOGGER.propagate
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert fails
        assert (LOGGER.level, LOGGER.propagate) == (level, propagate)
        assert LOGGER.handlers == before[2]
    finally:
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]


def test_the_cursor_comes_back() -> None:
    screen, text = console()
    with LiveProgress(screen, PRIVATE):
        say(**BEGUN)
    assert text.getvalue().rfind("\x1b[?25h") > text.getvalue().rfind("\x1b[?25l") >= 0


def test_noise_that_is_calibrated_later_is_counted() -> None:
    """The bar starts before noise is known; what it then says is the epsilon of the calibrated configuration."""
    screen, text = console()
    unset = replace(PRIVATE, privacy=replace(PRIVATE.privacy, noise_multiplier=None))
    with LiveProgress(screen, unset) as progress:
        progress.config = PRIVATE
        say(**BEGUN)
        say("round", round=10)
    assert f"epsilon {planned_epsilon(PRIVATE, 10):.2f}" in text.getvalue()
    assert "no privacy" not in text.getvalue()
