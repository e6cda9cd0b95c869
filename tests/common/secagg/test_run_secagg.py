"""The whole protocol, end to end, against plain addition; `test_every_dropout.py` has every single way to drop out.

The oracle knows only the numbers of who is left: 2t > n + c, and sums of at least max(t, 3, c + 2).

Legend: D coordinates.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from vectors.play import SESSION, STAGES, Cast, Source, cast

from common.errors import ProtocolError, TooFewPartners
from common.secagg.coding import PIECE_WORDS, Coding, decode, encode
from common.secagg.parameters import Policy, bits_for
from common.secagg.protocol import Dropouts, Outcome, run_secagg

NEVER = len(STAGES)
DID = {
    "advertise": "advertised",
    "share": "sent shares",
    "mask": "sent a masked body",
    "confirm": "confirmed the survivors",
    "unmask": "'s secret",
}
WEIGHTS = (1.0, 0.5, 0.25, 0.75, 0.125)
CASTS = {
    (num, colluders): cast(WEIGHTS[:num], Policy(colluders=colluders, update_bound=1.0), "runs")
    for num, colluders in ((3, 1), (4, 0), (4, 1), (5, 1))
}


def values_of(players: Cast, length: int = 3) -> dict[int, np.ndarray]:
    draw = np.random.default_rng(len(players.roster))
    return {number: draw.uniform(-1, 1, length).astype(np.float32) for number in players.identities}


def run(players: Cast, leaves: Sequence[int], source: Source) -> Outcome:
    """Plays with participant i falling silent before stage leaves[i - 1]; NEVER = stays."""
    gone = {stage: [i for i, at in enumerate(leaves, start=1) if at == place] for place, stage in enumerate(STAGES)}
    return run_secagg(
        values_of(players),
        players.identities,
        players.roster,
        SESSION,
        clip=1.0,
        policy=players.policy,
        dropouts=Dropouts(**gone),
        random=source,
    )


def expected(leaves: Sequence[int], colluders: int) -> tuple[str, int] | None:
    """Returns at which stage too few are left, and how many too few; None where a sum comes out."""
    advertised = sum(at > 0 for at in leaves)
    least = max(3, colluders + 2)
    if advertised < least:
        return "advertise", least - advertised
    threshold = (advertised + colluders) // 2 + 1
    at_once = sum(at > STAGES.index("share") for at in leaves) == sum(at > STAGES.index("mask") for at in leaves)
    for place, stage in enumerate(STAGES[1:-1] if at_once else STAGES[1:], start=1):
        left, needed = sum(at > place for at in leaves), max(threshold, least) if place < 3 else threshold
        if left < needed:
            return stage, needed - left
    return None


def plain_sum(players: Cast, survivors: Sequence[int], advertised: int, source: Source) -> np.ndarray:
    """Plain uint32 addition of the survivors' coded words; their rounding keys were the last draws."""
    coding, values = Coding(bits_for(advertised), 1.0), values_of(players)
    total_D = np.zeros(3, np.uint32)
    for number, key in zip(survivors, source.draws[-len(survivors) :], strict=True):
        weight = players.roster.member(number).weight
        total_D += np.concatenate(list(encode(values[number], weight, coding, key)))
    return total_D


def check(players: Cast, leaves: Sequence[int]) -> None:
    """One run against the oracle."""
    source, short = Source("runs"), expected(leaves, players.policy.colluders)
    if short is None:
        outcome = run(players, leaves, source)
        survivors = tuple(i for i, at in enumerate(leaves, start=1) if at > STAGES.index("mask"))
        assert outcome.survivors == survivors
        assert outcome.weight == sum(WEIGHTS[number - 1] for number in survivors)
        assert outcome.sum_D.dtype == np.uint32
        assert outcome.sum_D.tolist() == plain_sum(players, survivors, sum(at > 0 for at in leaves), source).tolist()
        return
    stage, missing = short
    with pytest.raises(TooFewPartners) as caught:
        run(players, leaves, source)
    text = str(caught.value)
    assert DID[stage] in text
    if stage == "advertise":
        assert re.match(rf"{sum(at > 0 for at in leaves)} of {len(leaves)} advertised: ", text)
    else:
        assert f": {missing} too few; nothing is unmasked" in text


def assigned(num: int) -> Iterator[tuple[int, ...]]:
    """How many leave at which stage, in every way; who they are turns round from way to way."""
    for place, leaves in enumerate(itertools.combinations_with_replacement(range(NEVER + 1), num)):
        turned = np.random.default_rng(place).permutation(leaves)
        yield tuple(turned.tolist())


@pytest.mark.parametrize(("num", "colluders", "ways"), [(3, 1, 56), (4, 0, 126), (5, 1, 252)])
def test_every_number_of_dropouts_at_every_stage(num: int, colluders: int, ways: int) -> None:
    found = list(assigned(num))
    assert len(found) == ways
    for leaves in found:
        check(CASTS[num, colluders], leaves)


def test_the_oracle_sees_every_outcome() -> None:
    found = {(expected(leaves, c) or ("", 0))[0] for c in (0, 1) for leaves in assigned(5)}
    assert found == {"", "advertise", "share", "mask", "confirm", "unmask"}
    found_for_three = [leaves for leaves in assigned(3) if expected(leaves, 1) is None]
    # Where nobody falls silent before its masked body came, nobody is asked to unmask: who would not answer is no loss.
    assert {tuple(sorted(leaves)) for leaves in found_for_three} == {(4, 4, 4), (4, 4, 5), (4, 5, 5), (5, 5, 5)}


def test_the_sum_decodes_to_the_weighted_sum_of_the_values() -> None:
    players = CASTS[5, 1]
    outcome = run(players, (NEVER, NEVER, STAGES.index("mask"), NEVER, NEVER), Source("runs"))
    coding = Coding(bits_for(5), 1.0)
    found_D = decode(outcome.sum_D, len(outcome.survivors), coding)
    values = values_of(players)
    exact_D = sum(values[number].astype(np.float64) * WEIGHTS[number - 1] for number in (1, 2, 4, 5))
    assert np.abs(found_D - exact_D).max() <= 4 / coding.scale


def test_the_sum_does_not_depend_on_the_masks() -> None:
    """Other randomness: other masks and roundings, a sum within a grid step per contribution."""
    sums = [run(CASTS[4, 1], (NEVER,) * 4, Source(label)).sum_D.view(np.int32) for label in ("one", "other")]
    assert np.abs(sums[0].astype(np.int64) - sums[1]).max() <= 4


def test_two_runs_with_the_systems_randomness_share_no_message() -> None:
    players = CASTS[3, 1]
    said = []
    for _ in range(2):
        outcome = run_secagg(values_of(players), players.identities, players.roster, SESSION, clip=1.0)
        said.append({repr(message) for stage, _, message in outcome.transcript if stage in STAGES[:4]})
    assert len(said[0]) == len(said[1]) == 12
    assert not said[0] & said[1]


@pytest.mark.parametrize(("value", "text"), [(np.nan, "not finite"), (1.5, "values over aggregation.update_bound = 1")])
def test_values_that_cannot_be_coded_end_the_run(value: float, text: str) -> None:
    players = CASTS[3, 1]
    values = values_of(players)
    values[1][0] = value
    with pytest.raises(ProtocolError, match=text):
        run_secagg(values, players.identities, players.roster, SESSION, clip=1.0, random=Source("nan"))


def test_a_long_body_is_masked_and_summed_piece_by_piece() -> None:
    """Longer than a piece of the coding, and no multiple of a block of the masks (2^15)."""
    players, length = CASTS[3, 1], PIECE_WORDS + 77
    source = Source("long")
    values = {number: np.full(length, number / 8, np.float32) for number in (1, 2, 3)}
    outcome = run_secagg(values, players.identities, players.roster, SESSION, clip=1.0, random=source)
    coding, total_D = Coding(bits_for(3), 1.0), np.zeros(length, np.uint32)
    for number, key in zip((1, 2, 3), source.draws[-3:], strict=True):
        total_D += np.concatenate(list(encode(values[number], WEIGHTS[number - 1], coding, key)))
    assert np.array_equal(outcome.sum_D, total_D)
    pieces = [message for stage, _, message in outcome.transcript if stage == "mask body"]
    assert [len(each) for each in pieces[0]] == [PIECE_WORDS, 77]
