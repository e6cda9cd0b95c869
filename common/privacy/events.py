"""The facts of one release: what a partner did to its users' data, and nothing derived from it.

Epsilon is never a field here. It is computed from these facts when it is asked for (`common.privacy.accounting`), so
that a better accountant, another delta or a longer history needs no change to what was written down.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from common.errors import ConfigError

EVENT_VERSION = 5
_NO_LABELS: dict[str, Any] = {"flip_probability": 0.0, "labels": ""}
# What an older version did not know, and what it meant by that.
_MEANT_BY: dict[int, dict[str, Any]] = {
    1: {"shares": 1, "impressions": 1, **_NO_LABELS},
    2: {"impressions": 1, **_NO_LABELS},
    3: _NO_LABELS,  # Skellam noise in mode "distributed" only
    4: _NO_LABELS,
    EVENT_VERSION: {},
}
_FIRST_WITH_IMPRESSIONS, _FIRST_WITH_WHOLE_SKELLAM = 3, 4
MAX_STEPS = 10_000_000  # more than any training; it keeps one absurd event from stalling the accountants
MAX_NOISE_MULTIPLIER = 1e6
MAX_NAME_LENGTH = 200
MAX_IMPRESSIONS = 100_000  # of one user

Purpose = Literal["training", "statistics", "evaluation"]
Mechanism = Literal["poisson_gaussian", "poisson_skellam", "randomised_response", "none"]
Unit = Literal["user", "impression", "label"]
Adjacency = Literal["add_remove", "replace_label"]
Mode = Literal["local", "distributed", "label", "none"]


@dataclass(frozen=True, kw_only=True)
class DpEvent:
    """One release by one partner, as immutable facts.

    Attributes:
        run_id: name of the training run, 1 to 200 printable characters.
        round: number of the round in that run, >= 0.
        attempt: number of the attempt at that round, >= 0.
        purpose: what the release is for.
        mechanism: "poisson_gaussian" = Poisson-sampled units, clipped, summed, Gaussian noise added;
            "poisson_skellam" = the same in whole numbers, with Skellam noise: this partner's share of it in mode
            "distributed", the whole of it in mode "local"; "randomised_response" = every click label was flipped with
            `flip_probability`, once, and everything else is made of the flipped ones; "none" = released without noise,
            which has no finite epsilon.
        unit: whose data one clipped gradient holds: all sampled rows of a user, or one training row (an impression
            with the features made of its user's earlier rows); "label" = the click of one row, and nothing else of it.
        adjacency: which data sets count as neighbours: "add_remove" of one unit, or, of labels, "replace_label": the
            click of one row has the other value.
        noise_multiplier: standard deviation of the noise over `clip`, > 0; 0 where no noise is added to sums. In mode
            "distributed" it is that of all `shares` together, which the secure sum has at least.
        sampling_rate: probability with which each unit joins each step, independently, in (0, 1].
        steps: noised releases in this event, 1 to `MAX_STEPS`.
        clip: L2 bound on one unit's contribution to a step, > 0; 0 = unclipped, where no noise is added to sums.
        fixed_seed: the noise came from a known seed: whoever knows the seed can remove the noise.
        mode: "local" = each partner adds the full noise itself; "distributed" = this partner added one of `shares`
            equal parts of it, under secure aggregation; "label" goes with mechanism "randomised_response", and "none"
            with mechanism "none".
        shares: honest partners whose parts of the noise are in every sum; 1 unless mode is "distributed".
        impressions: training rows of one user, at most; 1 where the unit is the user.
        flip_probability: with which each label was flipped, over 0 and under 1/2; 0 where none was.
        labels: "KEY:GENERATION": a hash of the key that all flips are a function of, and how often labels that were
            never read before came to those flipped with it. Releases with the same key are made of the same flipped
            labels, and cost what one of them does. Empty where none was flipped.

    Raises:
        ConfigError: for a value of the wrong type, out of range or not finite; one line per field.
    """

    run_id: str
    round: int
    attempt: int
    purpose: Purpose
    mechanism: Mechanism
    unit: Unit
    adjacency: Adjacency
    noise_multiplier: float
    sampling_rate: float
    steps: int
    clip: float
    fixed_seed: bool
    mode: Mode
    shares: int = 1
    impressions: int = 1
    flip_probability: float = 0.0
    labels: str = ""

    def __post_init__(self) -> None:
        problems = [problem for problem in map(self._problem_with, _FIELDS) if problem] or _contradictions(self)
        if problems:
            raise ConfigError("\n".join(problems))
        for name in _NUMBERS:
            # -0.0 and 1 would be other bytes in the ledger, yet the same fact.
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)

    def _problem_with(self, name: str) -> str | None:
        value = getattr(self, name)
        if name in _CHOICES:
            choices = _CHOICES[name]
            return None if isinstance(value, str) and value in choices else _refuse(name, value, f"one of {choices}")
        if name in _COUNTS:
            low, high = _COUNTS[name]
            fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            return None if fits else _refuse(name, value, f"a whole number from {low} to {high}")
        if name in _NUMBERS:
            low_number, high_number = _NUMBERS[name]
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            fits = fits and math.isfinite(value) and low_number <= value <= high_number
            return None if fits else _refuse(name, value, f"a number from {low_number:g} to {high_number:g}")
        if name == "fixed_seed":
            return None if isinstance(value, bool) else _refuse(name, value, "true or false")
        if name == "labels":
            fits = isinstance(value, str) and _LABELS.fullmatch(value) is not None
            return None if fits else _refuse(name, value, '"" or 16 hex digits, a colon and a count from 1')
        fits = isinstance(value, str) and 1 <= len(value) <= MAX_NAME_LENGTH and value.isprintable()
        return None if fits else _refuse(name, value, f"1 to {MAX_NAME_LENGTH} printable characters")

    def to_dict(self) -> dict[str, Any]:
        """Returns the event as JSON-ready fields, with the version of their meaning."""
        return {"version": EVENT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "DpEvent":
        """Returns the event that `to_dict` wrote.

        Raises:
            ConfigError: for another version, unknown or missing fields, and values that the class refuses.
        """
        version = record.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or version not in _MEANT_BY:
            raise ConfigError(
                f"event version {version!r}: this release reads {tuple(_MEANT_BY)}; use the matching release"
            )
        meant = _MEANT_BY[version]
        if early := sorted(meant.keys() & record.keys()):
            raise ConfigError(f"event fields: unknown {early} in version {version}")
        if version < _FIRST_WITH_IMPRESSIONS and record.get("unit") != "user":
            raise ConfigError(f'event.unit = {record.get("unit")!r:.80}: version {version} knows only "user"')
        whole_skellam = record.get("mechanism") == "poisson_skellam" and record.get("mode") != "distributed"
        if version < _FIRST_WITH_WHOLE_SKELLAM and whole_skellam:
            raise ConfigError(
                f"event.mode = {record.get('mode')!r:.80}: version {version} knows poisson_skellam in mode"
                ' "distributed" only'
            )
        record = {**record, **meant}
        names = set(record) - {"version"}
        unknown, missing = sorted(map(str, names - _FIELD_SET)), sorted(_FIELD_SET - names)
        if unknown or missing:
            raise ConfigError(f"event fields: unknown {unknown}, missing {missing}; an event has {sorted(_FIELD_SET)}")
        return cls(**{name: record[name] for name in _FIELDS})


_FIELDS = tuple(field.name for field in fields(DpEvent))
_FIELD_SET = frozenset(_FIELDS)
_CHOICES: dict[str, tuple[str, ...]] = {
    "purpose": get_args(Purpose),
    "mechanism": get_args(Mechanism),
    "unit": get_args(Unit),
    "adjacency": get_args(Adjacency),
    "mode": get_args(Mode),
}
_COUNTS = {
    "round": (0, 2**53),
    "attempt": (0, 2**53),
    "steps": (1, MAX_STEPS),
    "shares": (1, 2**16),
    "impressions": (1, MAX_IMPRESSIONS),
}
_NUMBERS = {
    "noise_multiplier": (0.0, MAX_NOISE_MULTIPLIER),
    "sampling_rate": (0.0, 1.0),
    "clip": (0.0, 1e12),
    "flip_probability": (0.0, 0.5),
}
_LABELS = re.compile(r"([0-9a-f]{16}:[1-9][0-9]{0,8})?")
_OF_LABELS = {"mechanism": "randomised_response", "mode": "label", "unit": "label", "adjacency": "replace_label"}


def _contradictions(event: DpEvent) -> list[str]:
    """Returns one line per value that fits its own range but not the other fields."""
    problems = []
    if event.sampling_rate <= 0:
        problems.append(_refuse("sampling_rate", event.sampling_rate, "a number over 0 and at most 1"))
    if (event.mechanism == "none") != (event.mode == "none"):
        problems.append(
            _refuse("mode", event.mode, f'"none" exactly when mechanism is "none", not {event.mechanism!r}')
        )
    if event.mode == "distributed" and event.mechanism != "poisson_skellam":
        problems.append(
            _refuse(
                "mode", event.mode, f'"distributed" only where mechanism is "poisson_skellam", not {event.mechanism!r}'
            )
        )
    if (event.shares == 1) == (event.mode == "distributed"):
        problems.append(_refuse("shares", event.shares, '1, and over 1 exactly where mode is "distributed"'))
    if event.unit == "user" and event.impressions != 1:
        problems.append(
            _refuse("impressions", event.impressions, '1 where unit is "user": all of its rows are one unit')
        )
    if event.mode == "distributed" and event.steps != 1:
        problems.append(
            _refuse(
                "steps",
                event.steps,
                "1: several local steps with shared noise have no bound (each step after the"
                " first would be made from a model with only a share of the noise)",
            )
        )
    return [*problems, *_contradictions_of_noise(event), *_contradictions_of_labels(event)]


def _contradictions_of_noise(event: DpEvent) -> list[str]:
    noised, problems = event.mechanism.startswith("poisson"), []
    if not noised and event.noise_multiplier != 0:
        problems.append(
            _refuse("noise_multiplier", event.noise_multiplier, f'0 where mechanism is "{event.mechanism}"')
        )
    if noised and event.noise_multiplier <= 0:
        problems.append(
            _refuse("noise_multiplier", event.noise_multiplier, 'over 0; without noise say mechanism "none"')
        )
    if noised and event.clip <= 0:
        problems.append(_refuse("clip", event.clip, "over 0: noise is a multiple of it"))
    return problems


def _contradictions_of_labels(event: DpEvent) -> list[str]:
    flipped = event.mechanism == "randomised_response"
    problems = [
        _refuse(name, getattr(event, name), f"{only!r} exactly when mechanism is 'randomised_response'")
        for name, only in _OF_LABELS.items()
        if (getattr(event, name) == only) != flipped
    ]
    if flipped != (0 < event.flip_probability < 0.5):
        bound = "over 0 and under 0.5 exactly when mechanism is 'randomised_response', and else 0"
        problems.append(_refuse("flip_probability", event.flip_probability, bound))
    if flipped != bool(event.labels):
        problems.append(_refuse("labels", event.labels, "there exactly when mechanism is 'randomised_response'"))
    return problems


def _refuse(name: str, value: object, bound: str) -> str:
    return f"event.{name} = {value!r:.80}: must be {bound}"
