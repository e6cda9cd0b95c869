"""Groups by everyone's coins: sizes, who draws, and what a wrong coin does."""

import hashlib
from collections import Counter

import pytest

from common.errors import ProtocolError
from common.secagg.grouping import commit_coin, draw_groups, own_group, require_coins
from common.secagg.masking import keystream_words
from common.secagg.transcript import digest
from common.secagg.wire import Advertisement

SESSION, FIRST = bytes(32), hashlib.sha256(b"U1").digest()


def coins_of(count: int, label: str = "coin") -> list[bytes]:
    return [hashlib.sha256(f"{label} {number}".encode()).digest() for number in range(count)]


@pytest.mark.parametrize(("num", "num_groups"), [(4, 1), (12, 3), (13, 3), (14, 3), (23, 5), (4, 4)])
def test_groups_are_a_partition_with_sizes_at_most_one_apart(num: int, num_groups: int) -> None:
    numbers = list(range(2, 2 * num + 1, 2))
    groups = draw_groups(FIRST, numbers, coins_of(num), num_groups)
    assert sorted(number for group in groups for number in group) == numbers
    sizes = sorted(len(group) for group in groups)
    assert sizes == sorted(num // num_groups + (place < num % num_groups) for place in range(num_groups))
    assert all(list(group) == sorted(group) for group in groups)


def test_groups_by_hand() -> None:
    """Sorted by 64 bits of keystream each, the first word the upper half; then dealt round."""
    numbers, coins = [1, 2, 5, 9], coins_of(4)
    words = keystream_words(digest("groups", FIRST, *coins), 8).tolist()
    keys = {number: words[2 * place] * 2**32 + words[2 * place + 1] for place, number in enumerate(numbers)}
    order = sorted(numbers, key=keys.__getitem__)
    assert draw_groups(FIRST, numbers, coins, 2) == [tuple(sorted(order[0::2])), tuple(sorted(order[1::2]))]


def test_the_same_coins_draw_the_same_groups_and_any_other_coin_others() -> None:
    numbers, coins = list(range(1, 21)), coins_of(20)
    drawn = draw_groups(FIRST, numbers, coins, 4)
    assert draw_groups(FIRST, numbers, coins, 4) == drawn
    for place in range(20):
        other = [*coins[:place], bytes(32), *coins[place + 1 :]]
        assert draw_groups(FIRST, numbers, other, 4) != drawn
    assert draw_groups(SESSION, numbers, coins, 4) != drawn


def test_everyone_finds_itself_in_its_own_group() -> None:
    numbers, coins = list(range(1, 11)), coins_of(10)
    groups = draw_groups(FIRST, numbers, coins, 3)
    for number in numbers:
        assert own_group(FIRST, numbers, coins, 3, number) in groups
        assert number in own_group(FIRST, numbers, coins, 3, number)


def test_pairs_meet_as_often_as_chance_says() -> None:
    """Of 9 in 3 groups a given pair meets with probability 2/8; 3,000 draws are within five standard errors."""
    numbers = list(range(1, 10))
    meets: Counter[tuple[int, int]] = Counter()
    for trial in range(3000):
        for group in draw_groups(FIRST, numbers, coins_of(9, str(trial)), 3):
            meets.update((one, other) for one in group for other in group if one < other)
    assert len(meets) == 36
    assert all(abs(count / 3000 - 0.25) < 5 * (0.25 * 0.75 / 3000) ** 0.5 for count in meets.values())


def advertisement(number: int, coin: bytes) -> Advertisement:
    return Advertisement(number, bytes(32), bytes(32), commit_coin(SESSION, number, coin), bytes(64))


def test_coins_must_be_those_that_were_committed_to() -> None:
    coins = coins_of(3)
    first = [advertisement(number, coin) for number, coin in zip((1, 2, 4), coins, strict=True)]
    require_coins(SESSION, first, coins)
    with pytest.raises(ProtocolError, match="participant 2: another coin than it committed to"):
        require_coins(SESSION, first, [coins[0], bytes(32), coins[2]])
    with pytest.raises(ProtocolError, match="participant 1: another coin"):
        require_coins(SESSION, first, [coins[1], coins[0], coins[2]])
    with pytest.raises(ProtocolError, match="participant 1: another coin"):
        require_coins(b"\x01" * 32, first, coins)


def test_a_commitment_is_of_one_session_and_participant() -> None:
    coin = bytes(32)
    assert commit_coin(SESSION, 1, coin) == digest("coin", SESSION, 1, coin)
    assert len({commit_coin(SESSION, 1, coin), commit_coin(SESSION, 2, coin), commit_coin(FIRST, 1, coin)}) == 3


@pytest.mark.parametrize("num_groups", [-1, 0, 5])
def test_numbers_of_groups_that_are_refused(num_groups: int) -> None:
    with pytest.raises(ProtocolError, match=f"num_groups = {num_groups}: must be from 1 to the 4 participants"):
        draw_groups(FIRST, [1, 2, 3, 4], coins_of(4), num_groups)
