"""The cohort of a round: a public, repeatable and fair draw."""

from collections import Counter

import pytest

from server.cohort import draw_cohort

PARTNERS = [f"p{number}" for number in range(10)]


def test_all_partners_by_default_in_name_order() -> None:
    assert draw_cohort(PARTNERS[::-1], 0, seed=1, round_number=1) == PARTNERS
    assert draw_cohort(PARTNERS, 10, seed=1, round_number=1) == PARTNERS
    assert draw_cohort(PARTNERS, 11, seed=1, round_number=1) == PARTNERS


@pytest.mark.parametrize("size", [1, 4, 9])
def test_a_cohort_is_of_its_size_without_repeats_in_name_order(size: int) -> None:
    cohort = draw_cohort(PARTNERS, size, seed=1, round_number=3)
    assert len(cohort) == len(set(cohort)) == size
    assert set(cohort) <= set(PARTNERS)
    assert cohort == sorted(cohort)


def test_the_draw_is_a_function_of_seed_round_and_names() -> None:
    first = draw_cohort(PARTNERS, 4, seed=1, round_number=3)
    assert draw_cohort(PARTNERS[::-1], 4, seed=1, round_number=3) == first
    others = {tuple(draw_cohort(PARTNERS, 4, seed, number)) for seed in (1, 2) for number in range(1, 11)}
    assert len(others) > 15
    assert draw_cohort(PARTNERS, 4, seed=2**63 - 1, round_number=1)


def test_every_partner_is_drawn_about_equally_often() -> None:
    counts = Counter(name for number in range(1, 2001) for name in draw_cohort(PARTNERS, 3, 5, number))
    # 600 expected each, standard deviation sqrt(2000 * .3 * .7) = 20.5
    assert all(abs(counts[name] - 600) < 5 * 20.5 for name in PARTNERS)


def test_the_partners_given_are_left_as_they_are() -> None:
    given = ["b", "a", "c"]
    draw_cohort(given, 2, 1, 1)
    assert given == ["b", "a", "c"]


def test_no_partners_give_no_cohort() -> None:
    assert draw_cohort([], 0, 1, 1) == []
    assert draw_cohort([], 3, 1, 1) == []
