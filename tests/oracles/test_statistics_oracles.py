"""Private statistics against independent truths: one user at a time by hand, the claimed bound, the claimed noise."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import common.histogram
from client.distributed import rounding_bound
from client.statistics import HistogramStep, noised_histogram
from client.training import secure_generator
from common.errors import ConfigError, DataError
from common.histogram import Catalogue, Terms, gridded_histogram, row_shares, weights
from common.histogram_messages import LEAST_GRID_BITS
from common.itemrates import ItemRates, Release
from common.privacy.skellam import relative_gap

ITEMS = 12
CATALOGUE = Catalogue(tuple(f"i{n:02d}" for n in range(ITEMS)), tuple("abc"[n % 3] for n in range(ITEMS)))
TERMS = Terms(prior=0.5, clip=1.0)
GRID = 2**16
STEP = HistogramStep(CATALOGUE, TERMS, GRID, 0.0, 1)


def one_log(clicks: dict[str, list[tuple[str, int]]]) -> pd.DataFrame:
    """Returns canonical rows of user -> (item, clicked) in order of time; an item's domain is the catalogue's."""
    domains = dict(zip(CATALOGUE.items, CATALOGUE.categories, strict=True))
    flat = [(user, place, *row) for user, rows in sorted(clicks.items()) for place, row in enumerate(rows)]
    frame = pd.DataFrame(flat, columns=["user", "time", "item", "clicked"])
    return frame.assign(domain=[domains.get(item, "else") for item in frame["item"]], text=frame["item"])


def crowd(users: int, seed: int, most_rows: int = 9) -> dict[str, list[tuple[str, int]]]:
    rng = np.random.default_rng(seed)
    return {
        f"u{number:03d}": [
            (f"i{rng.integers(ITEMS + 2):02d}", int(rng.integers(2))) for _ in range(rng.integers(1, most_rows + 1))
        ]
        for number in range(users)
    }


def by_hand(
    clicks: dict[str, list[tuple[str, int]]], bound: float, grid: int = GRID, terms: Terms = TERMS
) -> np.ndarray:
    """The histogram in plain Python: one user at a time, one entry at a time."""
    names = [*CATALOGUE.items, *sorted(set(CATALOGUE.categories)), "total"]
    category = dict(zip(CATALOGUE.items, CATALOGUE.categories, strict=True))
    total = [0] * (2 * len(names))
    for rows in clicks.values():
        vector = [0.0] * len(total)
        for item, clicked in [row for row in rows if row[0] in category][-common.histogram.MOST_ROWS :]:
            for name, weight in ((item, 1.0), (category[item], 0.1), ("total", 0.05)):
                place = names.index(name)
                vector[place] += weight * (clicked - terms.prior)
                vector[len(names) + place] += weight * common.histogram.IMPRESSION_WEIGHT
        length = math.sqrt(math.fsum(value * value for value in vector))
        factor = min(1.0, bound / length) if length else 0.0
        for place, value in enumerate(vector):
            total[place] += round(value * factor * grid / terms.clip)
    return np.array(total, np.int64)


BOUND = rounding_bound(CATALOGUE.length, TERMS.clip, GRID)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_histogram_is_that_of_one_user_at_a_time(seed: int) -> None:
    clicks = crowd(40, seed)
    found_D = gridded_histogram(one_log(clicks), CATALOGUE, TERMS, BOUND, GRID)
    assert np.abs(found_D - by_hand(clicks, BOUND)).max() <= 1  # a tie of rounding, at most
    assert found_D.dtype == np.int64


def test_a_row_is_worth_what_the_weights_say() -> None:
    """One click on i01 (category b) at clip 1: half a row in the item's entry, and nothing is clipped."""
    found_D = gridded_histogram(one_log({"u": [("i01", 1)]}), CATALOGUE, TERMS, BOUND, GRID)
    found_2B = found_D.reshape(2, -1) / GRID
    assert found_2B[0, 1] == pytest.approx(0.5, abs=1e-5)
    assert found_2B[0, ITEMS + 1] == pytest.approx(0.05, abs=1e-5)
    assert found_2B[0, -1] == pytest.approx(0.025, abs=1e-5)
    assert found_2B[1, [1, ITEMS + 1, -1]] == pytest.approx(
        common.histogram.IMPRESSION_WEIGHT * np.array([1, 0.1, 0.05]), abs=1e-5
    )
    assert np.count_nonzero(found_D) == 6
    assert found_2B / weights(CATALOGUE) == pytest.approx(
        Release(0, CATALOGUE, TERMS, GRID, found_D.reshape(2, -1), 0.0).rows_2B
    )


# --- sensitivity ------------------------------------------------------------------------------------------------------

WORST: dict[str, list[tuple[str, int]]] = {
    "one item 4096 times, always clicked": [("i03", 1)] * 4096,
    "one item, never clicked": [("i03", 0)] * 4096,
    "more rows than are ever read": [("i03", 1)] * 6000,
    "every item, one category at a time": [(item, 1) for item in sorted(CATALOGUE.items, key=lambda i: int(i[1:]) % 3)],
    "every item many times": [(item, place % 2) for place in range(300) for item in CATALOGUE.items],
    "items of no catalogue": [("stranger", 1), ("", 0), ("i99", 1)] * 50,
    "one row": [("i00", 1)],
    "strangers and one row": [("stranger", 1)] * 4096 + [("i05", 0)],
    "clicks that cancel": [("i04", place % 2) for place in range(1000)],
}


def moved(user: list[tuple[str, int]], terms: Terms = TERMS, grid: int = GRID, bound: float | None = None) -> float:
    """Returns how far one user more moves the whole numbers, over the grid: L2, exact."""
    others = crowd(15, 7)
    bound = rounding_bound(CATALOGUE.length, terms.clip, grid) if bound is None else bound
    before_D = gridded_histogram(one_log(others), CATALOGUE, terms, bound, grid)
    after_D = gridded_histogram(one_log(others | {"v": user}), CATALOGUE, terms, bound, grid)
    return math.sqrt(sum(int(value) ** 2 for value in after_D - before_D)) / grid


@pytest.mark.parametrize("name", WORST)
@pytest.mark.parametrize("clip", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("grid", [2**12, 2**16, 2**24])
def test_one_user_more_moves_the_whole_numbers_by_the_grid_at_most(name: str, clip: float, grid: int) -> None:
    assert moved(WORST[name], Terms(0.5, clip), grid) <= 1.0


def test_the_worst_user_comes_near_the_bound_so_that_the_test_above_can_fail() -> None:
    assert max(moved(user) for user in WORST.values()) > 0.99


@settings(max_examples=60, deadline=None, database=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, ITEMS + 1), st.integers(0, 1)), max_size=60),
    prior=st.floats(0.01, 0.99),
    clip=st.floats(0.05, 20.0),
)
def test_no_user_is_longer_than_the_grid_once_rounded(rows: list[tuple[int, int]], prior: float, clip: float) -> None:
    assert moved([(f"i{item:02d}", clicked) for item, clicked in rows], Terms(prior, clip), 2**12) <= 1.0


def test_a_users_vector_does_not_depend_on_other_users() -> None:
    """To the last whole number, whoever else is in the log and wherever the user stands in it."""
    user, alone = crowd(1, 3)["u000"], {"m": crowd(1, 3)["u000"]}
    own_D = gridded_histogram(one_log(alone), CATALOGUE, TERMS, BOUND, GRID)
    for seed in range(5):
        others = {f"{letter}{name}": rows for letter in "az" for name, rows in crowd(30, seed, 40).items()}
        without_D = gridded_histogram(one_log(others), CATALOGUE, TERMS, BOUND, GRID)
        with_D = gridded_histogram(one_log(others | {"m": user}), CATALOGUE, TERMS, BOUND, GRID)
        assert np.array_equal(with_D - without_D, own_D)


def blockwise(bound: float) -> Callable[..., np.ndarray]:
    """A planted bug: items, categories and total are clipped each by itself."""
    honest = common.histogram._factors

    def factors(vectors: common.histogram.csr_array, _bound: float) -> np.ndarray:
        items_alone = vectors.copy()
        items_alone.data = np.where(items_alone.indices % CATALOGUE.block < ITEMS, items_alone.data, 0.0)
        return np.asarray(honest(items_alone, bound))

    return factors


BUGS: dict[str, Callable[[pytest.MonkeyPatch], float | None]] = {
    "no clip": lambda patch: patch.setattr(common.histogram, "_factors", lambda vectors, _: np.ones(vectors.shape[0])),
    "clip of every row": lambda patch: patch.setattr(
        common.histogram, "_factors", lambda vectors, bound: np.full(vectors.shape[0], min(1.0, bound / 0.55))
    ),
    "categories and total outside the clip": lambda patch: patch.setattr(
        common.histogram, "_factors", blockwise(BOUND)
    ),
    "no room for rounding": lambda _patch: 1.0 + 2e-5,
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_of_clipping_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = BUGS[bug](monkeypatch)
    assert max(moved(user, bound=bound) for user in WORST.values()) > 1.0


def test_a_grid_too_coarse_to_round_on_is_refused() -> None:
    wide = Catalogue(tuple(f"i{n}" for n in range(40_000)), ("",) * 40_000)
    with pytest.raises(ConfigError, match="too coarse"):
        noised_histogram(lambda: one_log({"u": [("i1", 1)]}), replace(STEP, catalogue=wide, grid=64), generator(1))


# --- noise ------------------------------------------------------------------------------------------------------------


def generator(seed: int) -> np.random.Generator:
    return secure_generator(seed.to_bytes(32, "little"))


@pytest.mark.parametrize("shares", [1, 3])
def test_the_noise_of_the_statistics_has_the_claimed_scale(shares: int) -> None:
    """The parts of so many partners, on no data: chi-square accepts the claim, and rejects 2/3 and 3/2 of it."""
    step, empty = replace(STEP, noise_multiplier=1.7, shares=shares), one_log({"u": [("stranger", 1)]})
    sums = [
        sum(noised_histogram(lambda: empty, step, generator(100 * turn + part)) for part in range(shares))
        for turn in range(40)
    ]
    noise_N = np.concatenate(sums) / GRID

    def fits(deviation: float) -> bool:
        statistic, freedom = float((noise_N**2).sum() / deviation**2), len(noise_N)
        return bool(1e-4 < stats.chi2.cdf(statistic, freedom) < 1 - 1e-4)

    assert fits(1.7)
    assert not fits(1.7 * 2 / 3)
    assert not fits(1.7 * 3 / 2)
    assert stats.kstest(noise_N, "norm", args=(0, 1.7)).pvalue > 1e-4


@pytest.mark.parametrize(("bits", "most"), [(LEAST_GRID_BITS, 1.5e-8), (16, 6e-11)])
def test_skellam_noise_of_the_statistics_is_as_good_as_gaussian(bits: int, most: float) -> None:
    assert 0.5 * most < max(relative_gap(order, 2.0, 2**bits, 40_000) for order in (2, 8, 32)) <= most


def test_a_log_that_cannot_be_read_gives_the_noise_alone() -> None:
    def broken() -> pd.DataFrame:
        raise DataError("not readable")

    failed: list[int] = []
    step = replace(STEP, noise_multiplier=2.0)
    found_D = noised_histogram(broken, step, generator(5), lambda: failed.append(1))
    assert np.array_equal(found_D, noised_histogram(lambda: one_log({"u": [("no", 1)]}), step, generator(5)))
    assert failed == [1]


def test_parts_add_up_to_the_histogram_of_the_union() -> None:
    logs = [crowd(20, seed) for seed in (1, 2, 3)]
    union = {f"p{place}{name}": rows for place, log in enumerate(logs) for name, rows in log.items()}
    parts = [noised_histogram(lambda log=log: one_log(log), STEP, generator(1)) for log in logs]  # type: ignore[misc]
    assert np.array_equal(sum(parts), noised_histogram(lambda: one_log(union), STEP, generator(1)))


# --- what is taken out again ------------------------------------------------------------------------------------------


def test_a_rows_own_label_is_not_among_its_features() -> None:
    """A row's features are those of a release in which what that row added to its item was left out."""
    rows = one_log(crowd(25, 11))
    grid, weight_2B = 2**24, weights(CATALOGUE)
    sums_2B = gridded_histogram(rows, CATALOGUE, TERMS, TERMS.clip, grid).reshape(2, -1)
    release = Release(0, CATALOGUE, TERMS, grid, sums_2B, 1.3)
    rates, share_N = ItemRates(release), row_shares(rows, CATALOGUE, TERMS)
    features_N2, item_N, nobody_N = rates.features(rows), CATALOGUE.items_of(rows), np.zeros(len(rows), bool)
    for place in np.flatnonzero(item_N >= 0)[::5]:
        less_2B = sums_2B.astype(float)
        own = np.array([rows["clicked"].iloc[place] - 0.5, 1.0]) * share_N[place]
        less_2B[:, item_N[place]] -= own * weight_2B[:, item_N[place]] * grid
        without = ItemRates(replace(release, sums_2B=np.rint(less_2B).astype(np.int64)))
        without.__dict__["_fitted"] = rates._fitted  # how items are distributed is fitted to all of them
        assert without.features(rows, nobody_N)[place] == pytest.approx(features_N2[place], abs=1e-4)
        assert rates.features(rows, nobody_N)[place] != pytest.approx(features_N2[place], abs=1e-4)
