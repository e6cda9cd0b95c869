"""Epsilon of flipped labels: worked out by hand, by two accountants, and once per key."""

import json
import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
from dp_events import release, unprotected

from common.errors import ConfigError
from common.privacy.accounting import epsilon
from common.privacy.events import DpEvent
from common.privacy.labels import closed_epsilon, flips_of, label_epsilon, pure_epsilon, user_epsilon
from common.privacy.statement import privacy_statement

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def flipped(label_epsilon: float = 1.0, labels: str = f"{KEY}:1", **changes: Any) -> DpEvent:
    facts: dict[str, Any] = {
        "mechanism": "randomised_response",
        "unit": "label",
        "adjacency": "replace_label",
        "mode": "label",
        "noise_multiplier": 0.0,
        "sampling_rate": 1.0,
        "steps": 1,
        "clip": 0.0,
        "impressions": 4,
        "flip_probability": 1 / (1 + math.exp(label_epsilon)),
        "labels": labels,
    }
    return release(**(facts | changes))


def least_delta(flips: tuple[float, ...], at: float) -> float:
    """Returns the largest P(S) - e^at Q(S) over all sets of answers of all keys, one by one."""
    total = 0.0
    for kept in product((True, False), repeat=len(flips)):
        one = math.prod(1 - flip if keep else flip for keep, flip in zip(kept, flips, strict=True))
        other = math.prod(flip if keep else 1 - flip for keep, flip in zip(kept, flips, strict=True))
        total += max(0.0, one - math.exp(at) * other)
    return total


@pytest.mark.parametrize("asked", [0.1, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("delta", [1e-5, 0.1])
def test_one_key_costs_what_is_worked_out_by_hand(asked: float, delta: float) -> None:
    """P keeps with 1 - f, Q with f: 1 - f <= e^epsilon f + delta."""
    flip = 1 / (1 + math.exp(asked))
    by_hand = max(0.0, math.log((1 - flip - delta) / flip)) if 1 - flip > delta else 0.0
    assert pure_epsilon((flip,)) == pytest.approx(asked, rel=1e-12)
    assert closed_epsilon((flip,), delta) == pytest.approx(by_hand, abs=1e-7)
    assert by_hand - 1e-9 <= label_epsilon((flip,), delta) <= min(asked + 1e-12, by_hand + 2e-4 + asked / 2**13)


@pytest.mark.parametrize("flips", [(0.3, 0.3), (0.1, 0.4), (0.05, 0.2, 0.2, 0.45)])
@pytest.mark.parametrize("delta", [1e-5, 0.02, 0.2])
def test_several_keys_compose_as_their_answers_enumerated_say(flips: tuple[float, ...], delta: float) -> None:
    found = closed_epsilon(flips, delta)
    assert least_delta(flips, found) <= delta + 1e-8
    if found > 0:
        assert least_delta(flips, found - 1e-6) > delta - 1e-8
    assert found - 1e-6 <= label_epsilon(flips, delta) <= found + 1e-2
    assert label_epsilon(flips, delta) <= pure_epsilon(flips)


def test_rounds_of_the_same_labels_cost_what_one_does_and_another_key_costs_again() -> None:
    once = epsilon([flipped()], 1e-5)
    assert once == pytest.approx(1.0, abs=2e-4)
    assert once <= 1.0
    assert epsilon([flipped(round=number) for number in range(50)], 1e-5) == once
    assert epsilon([flipped(), flipped(labels=f"{KEY}:2")], 1e-5) == once  # other rows: other labels
    twice = epsilon([flipped(), flipped(labels=f"{OTHER}:1")], 1e-5)
    assert twice == pytest.approx(2.0, abs=1e-3)
    # The same key is never used at two probabilities (they have two names); were it, both would count.
    assert epsilon([flipped(), flipped(2.0)], 1e-5) == pytest.approx(3.0, abs=2e-3)


def test_a_user_has_as_many_epsilons_as_labels() -> None:
    assert user_epsilon([flipped(), flipped(round=1)]) == pytest.approx(4.0)
    assert user_epsilon([flipped(impressions=10)]) == pytest.approx(10.0)
    assert user_epsilon([flipped(), flipped(labels=f"{KEY}:3")]) == pytest.approx(12.0)
    assert user_epsilon([flipped(), flipped(2.0, f"{OTHER}:1")]) == pytest.approx(12.0)


def test_no_accountant_of_noise_is_asked_about_labels() -> None:
    with pytest.raises(ConfigError, match="knows no randomised response"):
        epsilon([flipped()], 1e-5, "prv")
    with pytest.raises(ConfigError, match="releases of units label and user in one ledger"):
        epsilon([flipped(), release()], 1e-5)
    assert epsilon([flipped(), unprotected()], 1e-5) == math.inf


def test_the_statement_says_labels_first_and_what_it_leaves_out() -> None:
    statement = privacy_statement([flipped(2.0), flipped(2.0, round=1)], 1e-5)
    assert statement.sentence() == (
        "label-private, NOT user-private: epsilon 2.00 at delta 1e-05 for the click label of one row replaced by the"
        " other (PLD; closed form 2.00), against anyone who sees the updates or the model (the server, other partners,"
        " the public, a broken aggregation); for all labels of one user with up to 4 rows epsilon 8.00; NOT protected:"
        " who was shown what, and when; the text and the context of a row; that a row or a user is in the log"
    )
    assert (statement.unit, statement.adjacency, statement.second_accountant) == (
        "label",
        "replace_label",
        "closed form",
    )
    assert statement.user_epsilon == pytest.approx(8.0)
    assert "NO FINITE BOUND HOLDS" in privacy_statement([flipped(2.0, impressions=501)], 1e-5).sentence()
    assert "fixed seed" in privacy_statement([flipped(fixed_seed=True)], 1e-5).sentence()
    assert privacy_statement([flipped(), unprotected()], 1e-5).second_epsilon == math.inf


def test_an_event_of_labels_survives_json() -> None:
    event = flipped()
    assert DpEvent.from_dict(json.loads(json.dumps(event.to_dict()))) == event
    assert flips_of([event, flipped(round=3)]) == (event.flip_probability,)


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("unit", {"unit": "user", "impressions": 1}),
        ("adjacency", {"adjacency": "add_remove"}),
        ("mode", {"mode": "local"}),
        ("flip_probability", {"flip_probability": 0.0}),
        ("flip_probability", {"flip_probability": 0.5}),
        ("labels", {"labels": ""}),
        ("labels", {"labels": "key:1"}),
        ("labels", {"labels": f"{KEY}:0"}),
        ("noise_multiplier", {"noise_multiplier": 1.0}),
    ],
)
def test_a_release_of_labels_says_all_of_it(named: str, changes: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"event\.{named} = "):
        flipped(**changes)


@pytest.mark.parametrize("changes", [{"flip_probability": 0.1}, {"labels": f"{KEY}:1"}, {"adjacency": "replace_label"}])
def test_no_other_release_says_any_of_it(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"event\.{next(iter(changes))} = "):
        release(**changes)


@pytest.mark.parametrize("version", [3, 4])
def test_older_versions_knew_no_labels(version: int) -> None:
    record = {**release().to_dict(), "version": version}
    with pytest.raises(ConfigError, match=r"unknown \['flip_probability', 'labels'\] in version"):
        DpEvent.from_dict(record)
    del record["flip_probability"], record["labels"]
    assert DpEvent.from_dict(record) == release()
    of_labels = {**flipped().to_dict(), "version": version}
    del of_labels["flip_probability"], of_labels["labels"]
    with pytest.raises(ConfigError, match=r"event\.flip_probability = 0"):
        DpEvent.from_dict(of_labels)
