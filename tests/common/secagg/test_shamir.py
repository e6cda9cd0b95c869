"""Secret sharing: the field, any t of n, and that t - 1 shares say nothing."""

import itertools

import numpy as np
import pytest

from common.errors import ProtocolError
from common.secagg.shamir import PRIME, SHARE_BYTES, combine, lagrange_at_zero, split

SECRET = bytes(range(1, 33))
DRAW = 48


def is_probably_prime(number: int, bases: range) -> bool:
    """Miller and Rabin's test to some bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        if not any((power := power * power % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True


def fixed(*coefficients: int):  # type: ignore[no-untyped-def]
    """A source that draws these coefficients, the highest power first."""
    left = list(coefficients)
    return lambda count: left.pop(0).to_bytes(count, "little")


def seeded(seed: int):  # type: ignore[no-untyped-def]
    return np.random.default_rng(seed).bytes


def test_the_modulus_is_the_first_prime_over_2_to_256() -> None:
    bases = range(2, 60)
    assert PRIME == 2**256 + 297
    assert not any(is_probably_prime(number, bases) for number in range(2**256 + 1, PRIME))
    assert is_probably_prime(PRIME, bases)
    assert is_probably_prime(2**127 - 1, bases)  # the test accepts and
    assert not is_probably_prime(PRIME + 2, bases)  # rejects
    assert not is_probably_prime((2**61 - 1) * (2**89 - 1), bases)
    assert (PRIME.bit_length() + 7) // 8 == SHARE_BYTES


def test_shares_by_hand() -> None:
    """f(x) = 5 + 3x + 2x^2: f(1) = 10, f(2) = 19, f(4) = 49; the highest coefficient is drawn first."""
    shares = split((5).to_bytes(32, "little"), (1, 2, 4), 3, fixed(2, 3))
    assert [int.from_bytes(share, "little") for share in shares] == [10, 19, 49]
    assert all(len(share) == SHARE_BYTES for share in shares)
    assert combine((1, 2, 4), shares) == (5).to_bytes(32, "little")


def test_draws_are_reduced_modulo_the_prime() -> None:
    shares = split(bytes(32), (1, 3), 2, fixed(PRIME + 7))
    assert [int.from_bytes(share, "little") for share in shares] == [7, 21]


def test_lagrange_by_hand() -> None:
    """At 0 for x = 1, 2, 3: 3, -3, 1."""
    assert lagrange_at_zero((1, 2, 3)) == (3, PRIME - 3, 1)
    assert lagrange_at_zero((9,)) == (1,)


def test_lagrange_of_many_agrees_with_the_formula() -> None:
    holders = (1, 5, 17, 18, 40, 99, 65_536)
    for place, weight in enumerate(lagrange_at_zero(holders)):
        expected = 1
        for other in holders:
            if other != holders[place]:
                expected = expected * other * pow(other - holders[place], -1, PRIME) % PRIME
        assert weight == expected


def test_lagrange_is_worked_out_once_for_a_set_of_holders() -> None:
    lagrange_at_zero.cache_clear()
    shares = split(SECRET, (1, 2, 3, 4), 3, seeded(0))
    for _ in range(5):
        assert combine((1, 2, 4), [shares[0], shares[1], shares[3]]) == SECRET
    assert lagrange_at_zero.cache_info().misses == 1
    assert combine((4, 2, 1), [shares[3], shares[1], shares[0]]) == SECRET
    assert lagrange_at_zero.cache_info().misses == 2


@pytest.mark.parametrize(("num", "threshold"), [(1, 1), (3, 2), (5, 3), (5, 5), (6, 4)])
def test_any_threshold_of_holders_reconstruct(num: int, threshold: int) -> None:
    holders = tuple(range(1, 2 * num, 2))
    for secret in (SECRET, bytes(32), b"\xff" * 32):
        shares = dict(zip(holders, split(secret, holders, threshold, seeded(num)), strict=True))
        for count in range(threshold, num + 1):
            for some in itertools.combinations(holders, count):
                assert combine(some, [shares[holder] for holder in some]) == secret


def polynomial_through(points: list[tuple[int, int]]) -> list[int]:
    """Coefficients, constant first, by Newton's divided differences: no code of `shamir`."""
    xs = [x for x, _ in points]
    table = [y for _, y in points]
    for level in range(1, len(points)):
        for at in range(len(points) - 1, level - 1, -1):
            table[at] = (table[at] - table[at - 1]) * pow(xs[at] - xs[at - level], -1, PRIME) % PRIME
    found = [table[-1]]
    for at in range(len(points) - 2, -1, -1):
        shifted = [0, *found]
        for place, value in enumerate(found):
            shifted[place] = (shifted[place] - xs[at] * value) % PRIME
        shifted[0] = (shifted[0] + table[at]) % PRIME
        found = shifted
    return found


@pytest.mark.parametrize("some", list(itertools.combinations(range(5), 2)))
def test_one_share_short_fits_every_secret_equally(some: tuple[int, ...]) -> None:
    """For t - 1 shares and any other secret there is exactly one draw that gives those very shares."""
    holders, threshold, other = (1, 2, 3, 4, 5), 3, bytes(reversed(SECRET))
    shares = split(SECRET, holders, threshold, seeded(7))
    seen = [(holders[at], int.from_bytes(shares[at], "little")) for at in some]
    coefficients = polynomial_through([(0, int.from_bytes(other, "little")), *seen])
    assert len(coefficients) == threshold
    again = split(other, holders, threshold, fixed(*reversed(coefficients[1:])))
    assert [again[at] for at in some] == [shares[at] for at in some]
    assert again != shares


def test_shares_of_one_secret_and_one_draw_differ_by_holder_and_by_draw() -> None:
    once, twice = (split(SECRET, (1, 2, 3), 2, seeded(seed)) for seed in (1, 2))
    assert len({*once, *twice}) == 6


def test_a_corrupted_share_gives_another_secret() -> None:
    """The commitments to shares (client_role.py) are what names its sender; the sum alone cannot."""
    shares = split(SECRET, (1, 2, 3), 3, seeded(3))
    for bit in range(256):
        flipped = (int.from_bytes(shares[1], "little") ^ 1 << bit).to_bytes(SHARE_BYTES, "little")
        assert combine((1, 2, 3), [shares[0], flipped, shares[2]]) != SECRET


def test_shares_that_give_no_32_byte_secret_do_not_belong_together() -> None:
    with pytest.raises(ProtocolError, match="do not belong together"):
        combine((1,), [(2**256).to_bytes(SHARE_BYTES, "little")])
    assert combine((1,), [(2**256 - 1).to_bytes(SHARE_BYTES, "little")]) == b"\xff" * 32


@pytest.mark.parametrize(
    ("secret", "holders", "threshold", "text"),
    [
        (bytes(31), (1, 2), 2, "a secret of 31 bytes"),
        (bytes(33), (1, 2), 2, "a secret of 33 bytes"),
        (SECRET, (1, 2), 0, "threshold = 0: must be from 1 to the 2"),
        (SECRET, (1, 2), 3, "threshold = 3: must be from 1 to the 2"),
        (SECRET, (), 1, "must be from 1 to the 0"),
        (SECRET, (1, 1, 2), 2, "different numbers from 1"),
        (SECRET, (0, 1), 2, "different numbers from 1"),
        (SECRET, (-1, 1), 2, "different numbers from 1"),
    ],
)
def test_split_refuses(secret: bytes, holders: tuple[int, ...], threshold: int, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        split(secret, holders, threshold, seeded(0))


def test_with_a_threshold_of_one_every_share_is_the_secret() -> None:
    """Why `shape` never gives one."""
    for share in split(SECRET, (1, 2, 3), 1, seeded(0)):
        assert share[:32] == SECRET
