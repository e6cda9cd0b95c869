"""Properties of secure aggregation: masks cancel, sums are exact and never wrap, whoever drops out.

Legend: D coordinates.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors.play import SESSION, STAGES, Play, Source, cast

from common.errors import ProtocolError, TooFewPartners
from common.secagg import shamir
from common.secagg.coding import Coding, decode, encode
from common.secagg.keys import public_key
from common.secagg.masking import Masker, keystream_words, pair_mask, self_mask
from common.secagg.parameters import Policy, bits_for, shape
from common.secagg.roster import Member, Roster
from common.secagg.transcript import digest, session_hash
from common.secagg.wire import Advertisement

keys = st.binary(min_size=32, max_size=32)
parts = st.lists(st.one_of(st.binary(max_size=9), st.text(max_size=9), st.integers(0, 2**64 - 1)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 7),
    st.integers(0, 2),
    st.data(),
)
def test_any_dropouts_give_the_plain_sum_or_too_few_partners(num: int, colluders: int, data: st.DataObject) -> None:
    """Who leaves at which stage, what is contributed and with which weights is anything."""
    leaves = data.draw(st.lists(st.sampled_from([*["never"] * 12, *STAGES]), min_size=num, max_size=num))
    weights = data.draw(st.lists(st.floats(2**-20, 1.0), min_size=num, max_size=num))
    values = data.draw(
        st.lists(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=2), min_size=num, max_size=num)
    )
    players = cast(weights, Policy(colluders=colluders, update_bound=1.0), "properties")
    gone = {stage: [i for i, at in enumerate(leaves, start=1) if at == stage] for stage in STAGES}
    arrays = {i: np.array(each, np.float32) for i, each in enumerate(values, start=1)}
    played = Play(players, arrays, Source(f"{leaves}"))
    left = [num - sum(len(gone[stage]) for stage in STAGES[: place + 1]) for place in range(5)]
    threshold, least = (left[0] + colluders) // 2 + 1, max(3, colluders + 2)
    if left[0] < least or min(left) < threshold or left[2] < least:
        with pytest.raises(TooFewPartners, match=r"nothing is unmasked|advertised"):
            played.run(**gone)
        return
    played.run(**gone)
    survivors = [i for i, at in enumerate(leaves, start=1) if at not in STAGES[:3]]
    assert played.tally.third == tuple(survivors)
    assert np.array_equal(played.sum_D, played.plain_sum())
    coding = Coding(bits_for(left[0]), 1.0)
    exact = [sum(min(max(values[i - 1][at] * weights[i - 1], -1.0), 1.0) for i in survivors) for at in (0, 1)]
    found_D = decode(played.sum_D, len(survivors), coding)
    assert np.abs(found_D - exact).max() <= len(survivors) / coding.scale * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2**16), st.floats(2**-60, 2**60), st.data())
def test_no_sum_of_the_largest_words_wraps(num: int, clip: float, data: st.DataObject) -> None:
    """n contributions at the bound, all of one sign: within int32, and decoded to n times the bound."""
    coding = Coding(bits_for(num), clip)
    sign = data.draw(st.sampled_from([1.0, -1.0]))
    (word_D,) = encode(np.array([sign * clip * 2]), 1.0, coding, bytes(32))
    word = int(word_D.view(np.int32)[0])
    assert abs(word) <= coding.limit
    assert abs(num * word) < 2**29
    coding.require_room(num)
    total_D = np.array([num * word % 2**32], np.uint32)
    assert decode(total_D, num, coding)[0] == pytest.approx(sign * num * clip, rel=1 / coding.scale / clip + 2**-20)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=30),
    st.floats(2**-32, 1.0, exclude_min=True),
    st.integers(2, 30),
    st.floats(1e-6, 1e6),
    keys,
)
def test_coding_is_within_one_step_of_the_clamped_value(
    values: list[float], weight: float, bits: int, clip: float, key: bytes
) -> None:
    coding = Coding(bits, clip)
    (words_D,) = encode(np.array(values, np.float32), weight, coding, key)
    for value, word in zip(values, words_D.view(np.int32).tolist(), strict=True):
        clamped = 0.0 if math.isnan(value) else min(max(value * weight, -clip), clip)
        exact = Fraction(clamped) * (coding.limit - 1) / Fraction(clip)
        assert abs(word - exact) <= 1 + Fraction(coding.limit, 2**50)
        assert abs(word) <= coding.limit


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20), st.integers(1, 6))
def test_integers_add_up_modulo_two_to_32(values: list[int], num: int) -> None:
    words = [next(encode(np.array(values), 0.5, Coding(12, 0.0), bytes(32))) for _ in range(num)]
    assert sum(words[1:], words[0]).tolist() == [num * value % 2**32 for value in values]


@settings(max_examples=60, deadline=None)
@given(keys, st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_a_keystream_does_not_depend_on_how_it_is_cut(key: bytes, sizes: list[int]) -> None:
    masker = Masker([self_mask(key, bytes(32), 1)])
    pieces = [np.zeros(size, np.uint32) for size in sizes]
    for piece_D in pieces:
        masker.apply(piece_D)
    assert np.array_equal(np.concatenate(pieces), keystream_words(self_mask(key, bytes(32), 1).body, sum(sizes)))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(1, 2**16), keys, min_size=2, max_size=5), keys)
def test_pair_masks_of_any_participants_cancel(secrets: dict[int, bytes], context: bytes) -> None:
    total_D = np.zeros(9, np.uint32)
    for own, secret in secrets.items():
        Masker(
            [pair_mask(secret, public_key(secrets[peer]), context, own, peer) for peer in secrets if peer != own]
        ).apply(total_D)
    assert not total_D.any()


@settings(max_examples=60, deadline=None)
@given(keys, st.sets(st.integers(1, 2**16), min_size=1, max_size=8), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, holders: set[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(sorted(holders)))
    threshold = data.draw(st.integers(1, len(order)))
    shares = dict(zip(order, shamir.split(secret, order, threshold, Source("shares")), strict=True))
    some = tuple(data.draw(st.permutations(order))[:threshold])
    assert shamir.combine(some, [shares[holder] for holder in some]) == secret


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=5), parts, st.text(max_size=5), parts)
def test_equal_digests_have_equal_parts(one: str, ones: list[Any], other: str, others: list[Any]) -> None:
    same = one == other and [(type(part), part) for part in ones] == [(type(part), part) for part in others]
    assert (digest(one, *ones) == digest(other, *others)) == same


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), keys, keys, keys, st.binary(min_size=64, max_size=64))
def test_advertisements_come_back(number: int, mask: bytes, channel: bytes, coin: bytes, signature: bytes) -> None:
    advertisement = Advertisement(number, mask, channel, coin, signature)
    assert Advertisement.from_bytes(advertisement.to_bytes()) == advertisement


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(6)))
def test_a_roster_does_not_depend_on_its_order(order: list[int]) -> None:
    members = [Member(f"p{number}", f"{number:064x}", (number + 1) / 8) for number in range(6)]
    shuffled = Roster(tuple(members[place] for place in order))
    assert shuffled.hash == Roster(tuple(members)).hash
    assert [shuffled.number(f"p{number}") for number in range(6)] == [1, 2, 3, 4, 5, 6]


@settings(max_examples=60, deadline=None)
@given(st.integers(-5, 100), st.integers(-2, 110))
def test_a_shape_is_sound_or_refused(num: int, colluders: int) -> None:
    try:
        found = shape(num, colluders)
    except ProtocolError:
        assert colluders < 0 or num < max(3, colluders + 2)
        return
    assert colluders < found.threshold <= found.num_holders
    assert 2 * found.threshold > num + colluders
    assert found.least_survivors >= max(3, colluders + 2, found.threshold)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_rounds_of_one_run_share_no_session(round_number: int, attempt: int) -> None:
    numbers = round_number, attempt
    hashes = {session_hash(SESSION.run_id, r, a, bytes(32)) for r in numbers for a in numbers}
    assert len(hashes) == (1 if round_number == attempt else 4)
