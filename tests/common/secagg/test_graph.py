"""Neighbourhoods: hand-computed cases, exact fractions, simulated failure rates, and the same answer everywhere."""

import ast
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.special import gammaln, logsumexp
from scipy.stats import chi2, hypergeom

from common.errors import ProtocolError
from common.secagg import graph
from common.secagg.graph import MOST_COMPLETE, SLACK_BITS, VIEW_BITS, choose, dropped, neighbourhood

LN2 = math.log(2)


def byte_source(seed: int = 0) -> Callable[[int], bytes]:
    """The same uniform bytes in every run: SHA-256 of a counter."""
    counter = itertools.count()
    pool = bytearray()

    def read(count: int) -> bytes:
        while len(pool) < count:
            pool.extend(hashlib.sha256(f"{seed} {next(counter)}".encode()).digest())
        taken = bytes(pool[:count])
        del pool[:count]
        return taken

    return read


# --- exact fractions, by the definitions -----------------------------------------------------------------------------


def tail(total: int, marked: int, draws: int, least: int) -> Fraction:
    """P[at least `least` marked], term by term."""
    terms = range(max(least, 0), min(marked, draws) + 1)
    ways = sum(math.comb(marked, j) * math.comb(total - marked, draws - j) for j in terms)
    return Fraction(ways, math.comb(total, draws))


def exact_either_or(n: int, c: int, k: int, t: int) -> Fraction:
    """Union over honest owners of P[2t <= k + 1 + C]."""
    return (n - c) * tail(n - 1, c, k, 2 * t - k - 1)


def exact_liveness(n: int, d: int, k: int, t: int) -> Fraction:
    """Union over live owners (themselves a holder) and dropped ones of P[fewer than t live holders]."""
    live = (n - d) * (1 - tail(n - 1, n - 1 - d, k, t - 1))
    gone = d * (1 - tail(n - 1, n - d, k, t)) if d else Fraction(0)
    return live + gone


def exact_connectivity(n: int, m: int, k: int) -> Fraction:
    """Union over cuts of the m honest survivors."""
    total = Fraction(0)
    for s in range(1, m // 2 + 1):
        few = Fraction(math.comb(n - 1 - (m - s), k), math.comb(n - 1, k))
        rest = Fraction(math.comb(n - 1 - s, k), math.comb(n - 1, k))
        total += math.comb(m, s) * few**s * rest ** (m - s)
    return total


def exact_closed(n: int, c: int, k: int, t: int, below: int) -> Fraction:
    """Union over honest sets smaller than `below` that close on themselves with the colluders' help."""
    sizes = range(1, below)
    return sum((math.comb(n - c, s) * tail(n - 1, s - 1 + c, k, t - 1) ** s for s in sizes), Fraction(0))


def bits(probability: Fraction) -> float:
    if not probability:
        return math.inf
    return math.log2(probability.denominator) - math.log2(probability.numerator)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_tail_by_hand() -> None:
    # two marked of five, two drawn: both 1 / 10, at least one 1 - 3/10
    assert graph._log2_tail(5, 2, 2, 2) == pytest.approx(math.log2(1 / 10), abs=1e-9)
    assert graph._log2_tail(5, 2, 2, 1) == pytest.approx(math.log2(7 / 10), abs=1e-9)
    assert graph._log2_tail(5, 2, 2, 3) == -math.inf
    assert graph._log2_tail(5, 2, 2, 0) == 0


def test_either_or_by_hand() -> None:
    # seven, two of them colluders, three chosen of six: both colluders with probability 4 / 20, for five honest owners
    assert graph._either_or(7, 2, 3, 3) == pytest.approx(-math.log2(5 * 4 / 20), abs=1e-9)
    # t = 3 of four holders: 2t = 6 is above 4 + C for the one colluder that there is
    assert graph._either_or(6, 1, 3, 3) == math.inf
    # t = 2 of four holders: two honest ones with either kind are enough
    assert graph._either_or(6, 0, 3, 2) == pytest.approx(-math.log2(6))


def test_liveness_by_hand() -> None:
    # six, one dropped, two chosen of five: t = 2 of three holders bear any one loss
    assert graph._liveness(6, 1, 2, 2) == math.inf
    # t = 3: each of five live owners fails with 2/5 (it chose the one), the dropped owner for sure: 5 * 2/5 + 1
    assert graph._liveness(6, 1, 2, 3) == pytest.approx(-math.log2(3), abs=1e-9)


def test_connectivity_by_hand() -> None:
    # four choose one of three: two pairs that choose each other, (1/3)^4 for each of six halves; one alone cannot be
    assert graph._connectivity(4, 4, 1) == pytest.approx(-math.log2(6 / 81), abs=1e-9)
    assert graph._connectivity(4, 4, 3) == math.inf


def test_least_view_by_hand() -> None:
    # four choose two of three, t = 2: a pair closes with (2/3)^2, and there are six pairs; one alone never
    assert graph._least_view(4, 0, 2, 2, bits=1) == (2, math.inf)
    # five choose two of four, t = 3: a triple closes with (1/6)^3, ten of them: 10 / 216 is 4.43 bits
    assert graph._least_view(5, 0, 2, 3, bits=5) == (3, math.inf)
    size, reached = graph._least_view(5, 0, 2, 3, bits=4.4)
    assert size == 4
    assert reached == pytest.approx(-math.log2(10 / 216), abs=1e-9)


def test_dropped_counts_what_the_rate_says() -> None:
    assert [dropped(100, rate) for rate in (0.29, 0.3, 0.2, 0.0)] == [29, 30, 20, 0]
    assert dropped(101, 0.2) == 20


def test_the_complete_graph_ends_at_one_hundred() -> None:
    assert MOST_COMPLETE == 100


# --- against independent oracles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "marked", "draws"), [(30, 7, 9), (199, 20, 86), (999, 250, 137), (9999, 500, 201)])
def test_tails_agree_with_scipy_above_the_mean(total: int, marked: int, draws: int) -> None:
    mean = marked * draws / total
    for least in range(math.floor(mean) + 1, min(marked, draws, math.floor(4 * mean) + 3)):
        expected = hypergeom.logsf(least - 1, total, marked, draws) / LN2
        assert graph._log2_tail(total, marked, draws, least) == pytest.approx(expected, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize(("n", "c", "k", "t", "d"), [(12, 2, 5, 5, 2), (20, 0, 6, 5, 4), (25, 5, 12, 10, 5)])
def test_bounds_agree_with_fractions(n: int, c: int, k: int, t: int, d: int) -> None:
    # Below the mean a tail is bounded by 1; these cases are above it, so that both sides are exact.
    assert 2 * t - k - 1 > c * k / (n - 1)
    assert min(k + 2 - t, k + 1 - t) > d * k / (n - 1)
    assert graph._either_or(n, c, k, t) == pytest.approx(bits(exact_either_or(n, c, k, t)), abs=1e-8)
    assert graph._liveness(n, d, k, t) == pytest.approx(bits(exact_liveness(n, d, k, t)), abs=1e-8)
    m = n - c - d
    assert graph._connectivity(n, m, k) == pytest.approx(bits(exact_connectivity(n, m, k)), abs=1e-8)
    size, reached = graph._least_view(n, c, k, t, bits=6)
    assert reached == pytest.approx(bits(exact_closed(n, c, k, t, size)), abs=1e-8)
    assert bits(exact_closed(n, c, k, t, size)) >= 6 > bits(exact_closed(n, c, k, t, size + 1))


@pytest.mark.parametrize(("n", "c", "rate"), [(1000, 50, 0.2), (1000, 100, 0.1)])
def test_sums_over_a_thousand_agree_with_scipy_within_the_slack(n: int, c: int, rate: float) -> None:
    found = neighbourhood(n, c, rate)
    h, k, t = n - c, found.size, found.threshold
    sizes = np.arange(1, found.least_view)
    choices = gammaln(h + 1) - gammaln(sizes + 1) - gammaln(h - sizes + 1)
    closes = np.array([hypergeom.logsf(t - 2, n - 1, s - 1 + c, k) for s in sizes])
    expected = -logsumexp(choices + sizes * closes) / LN2
    assert found.least_view_bits == pytest.approx(expected, abs=SLACK_BITS / 10)
    assert found.either_or_bits == pytest.approx(bits(exact_either_or(n, c, k, t)), abs=SLACK_BITS / 10)
    assert found.liveness_bits == pytest.approx(bits(exact_liveness(n, dropped(n, rate), k, t)), abs=SLACK_BITS / 10)


def smallest(n: int, c: int, rate: float, secret: int, live: int) -> tuple[int, int] | None:
    """The smallest k, and its largest t, among all pairs, in fractions."""
    d = dropped(n, rate)
    secret_bits, live_bits = secret + SLACK_BITS, live + SLACK_BITS
    for k in range(1, n - 1):
        for t in range(k + 1, 0, -1):
            if (
                bits(exact_liveness(n, d, k, t)) >= live_bits
                and bits(exact_either_or(n, c, k, t)) >= secret_bits
                and bits(exact_connectivity(n, n - c - d, k)) >= secret_bits
                and bits(exact_closed(n, c, k, t, max(3, c + 2))) >= secret_bits + VIEW_BITS
            ):
                return k, t
    return None


@pytest.mark.parametrize("n", [9, 16, 23])
@pytest.mark.parametrize("c", [0, 1, 3])
@pytest.mark.parametrize("rate", [0.0, 0.13, 0.25])
def test_finds_the_smallest_size_that_any_threshold_allows(n: int, c: int, rate: float) -> None:
    expected = smallest(n, c, rate, secret=6, live=4)
    if expected is None:
        with pytest.raises(ProtocolError, match=r"no number of neighbours|survivors"):
            neighbourhood(n, c, rate, security_bits=6, liveness_bits=4)
    else:
        found = neighbourhood(n, c, rate, security_bits=6, liveness_bits=4)
        assert (found.size, found.threshold) == expected


def test_the_exhaustive_cases_hold_both_outcomes() -> None:
    outcomes = {smallest(n, c, 0.25, 6, 4) is None for n in (9, 23) for c in (0, 3)}
    assert outcomes == {True, False}


# --- simulated failure rates (n chosen small and bits weak, so that failures are seen) -------------------------------


def draw_graphs(n: int, k: int, count: int, seed: int) -> np.ndarray:
    """Boolean (count, n, n): who chose whom, uniformly without replacement, nobody itself."""
    noise = np.random.default_rng(seed).random((count, n, n))
    noise[:, np.arange(n), np.arange(n)] = 2
    return noise.argsort(axis=2).argsort(axis=2) < k


def within_bound(failures: np.ndarray, bound_bits: float) -> bool:
    """Whether a failure rate can be that of a bound: four standard deviations of the bound above it at most."""
    bound = 2.0**-bound_bits
    return bool(failures.mean() <= bound + 4 * math.sqrt(bound / len(failures)))


def connected(edges: np.ndarray) -> bool:
    """Whether the undirected graph is one component."""
    seen = np.zeros(len(edges), bool)
    seen[0] = True
    for _ in edges:
        seen |= edges[seen].any(axis=0)
    return bool(seen.all())


def test_simulated_rates_stay_under_the_bounds_of_a_found_neighbourhood() -> None:
    n, c, rate = 30, 4, 0.2
    found = neighbourhood(n, c, rate, security_bits=6, liveness_bits=6)
    k, t, d = found.size, found.threshold, dropped(n, rate)
    chose = draw_graphs(n, k, 3000, seed=1)
    honest, live = slice(c, n), np.arange(n) < n - d  # the last d drop out, the first c collude
    colluding = chose[:, honest, :c].sum(axis=2)
    assert within_bound((2 * t <= k + 1 + colluding).any(axis=1), 6)
    holders = chose[:, :, live].sum(axis=2) + live
    assert within_bound((holders < t).any(axis=1), 6)
    survivors = slice(c, n - d)
    either = chose | chose.transpose(0, 2, 1)
    apart = np.array([not connected(edges[survivors, survivors]) for edges in either[:500]])
    assert within_bound(apart, 6)


def test_simulated_either_or_and_liveness_are_near_bounds_of_a_few_bits() -> None:
    # A union bound over owners is nearly tight where failures are rare: a rate far below it would be a wrong formula.
    n, c, k, t, d = 30, 4, 10, 7, 6
    chose = draw_graphs(n, k, 4000, seed=2)
    unsafe = 2 * t <= k + 1 + chose[:, c:, :c].sum(axis=2)
    assert unsafe.sum(axis=1).mean() == pytest.approx(2.0 ** -graph._either_or(n, c, k, t), rel=0.1)
    live = np.arange(n) < n - d
    dead = chose[:, :, live].sum(axis=2) + live < t - 2
    assert dead.sum(axis=1).mean() == pytest.approx(2.0 ** -graph._liveness(n, d, k, t - 2), rel=0.1)


def test_simulated_graphs_fall_apart_about_as_often_as_the_bound_says() -> None:
    n, m, k = 14, 10, 2
    chose = draw_graphs(n, k, 6000, seed=3)[:, :m, :m]
    apart = np.array([not connected(edges) for edges in chose | chose.transpose(0, 2, 1)])
    reached = graph._connectivity(n, m, k)
    assert within_bound(apart, reached)
    assert apart.mean() > 2.0**-reached / 3


@pytest.mark.parametrize(("n", "c", "k", "t"), [(12, 2, 5, 4), (11, 0, 4, 4), (13, 3, 6, 6)])
def test_simulated_sets_that_close_are_no_smaller_than_the_bound(n: int, c: int, k: int, t: int) -> None:
    asked = 5
    size, reached = graph._least_view(n, c, k, t, bits=asked)
    chose = draw_graphs(n, k, 3000, seed=4)
    smaller, same = np.zeros(len(chose), bool), np.zeros(len(chose), bool)
    for count in range(1, size + 1):
        for members in itertools.combinations(range(c, n), count):
            inside = [*range(c), *members]
            closes = (chose[:, members][:, :, inside].sum(axis=2) + 1 >= t).all(axis=1)
            smaller |= closes & (count < size)
            same |= closes
    assert within_bound(smaller, min(reached, 40))
    assert same.any()  # the next size does occur: the bound is not idle


# --- the argument of docs/SECAGG.md, on graphs: what a server that splits views can open ---------------------------

Views = list[tuple[frozenset[int], frozenset[int]]]  # of each participant: U2 when it masked, U3 when it confirmed


def opened(chose: np.ndarray, c: int, t: int, views: Views, owner_signs: bool, withheld: int = -1) -> list[set[int]]:
    """The sets of honest participants whose sums come out, by the rules of the protocol; the first c collude.

    `owner_signs` is the rule that a share of b_v needs the signature of v over the holder's own U2; `withheld` receives
    no box.
    """
    n = len(chose)
    honest = range(c, n)
    holders = [{i, *np.flatnonzero(chose[i])} for i in range(n)]

    def reveals(w: int) -> bool:
        alive = views[w][1]
        return sum(j in alive and (j < c or (views[j] == views[w] and j in alive)) for j in holders[w]) >= t

    revealing = {w for w in honest if w in views[w][1] and reveals(w)}

    def collected(v: int, of_seed: bool) -> int:
        count = 0
        for w in holders[v]:
            second, third = views[w]
            given = v in third and (not owner_signs or views[v][0] == second) if of_seed else v in second - third
            count += w < c or (w in revealing and given and (w == v or w != withheld))
        return count

    lost = {v for v in honest if collected(v, of_seed=False) >= t}
    bare = {v for v in honest if collected(v, of_seed=True) >= t}
    masks = {
        i: {j for j in views[i][0] - {i} if j in holders[i] or (i in holders[j] and i != withheld)}
        - lost
        - set(range(c))
        for i in honest
    }  # pairwise masks in y_i that nobody can compute
    sums, left = [], set(honest) - lost
    while left:
        group, edge = set(), {left.pop()}
        while edge:
            group |= edge
            edge = {j for i in edge for j in masks[i] if i in masks[j]} - group
        left -= group
        if group <= bare and all(masks[i] <= group and all(i in masks[j] for j in masks[i]) for i in group):
            sums.append(group)
    return sums


def test_a_lie_about_u2_opens_one_contribution_unless_its_owner_signs() -> None:
    n, c = 101, 1
    found = neighbourhood(n, c)
    chose = draw_graphs(n, found.size, 1, seed=6)[0]
    everyone, victim = frozenset(range(n)), 50
    strangers = everyone - set(np.flatnonzero(chose[victim, c:]) + c)
    assert len(strangers) >= (n + c) // 2 + 1  # so many that the victim masks among them
    views: Views = [(everyone, everyone)] * n
    views[victim] = (strangers, strangers)
    assert {victim} in opened(chose, c, found.threshold, views, owner_signs=False, withheld=victim)
    assert opened(chose, c, found.threshold, views, owner_signs=True, withheld=victim) == []


def invented_views(n: int, c: int, rng: np.random.Generator) -> Views:
    """Two classes that are shown different U2 and U3, and a few participants with a U2 or a U3 of their own."""
    colluders = set(range(c))
    side = rng.random(n) < rng.choice([0.0, 0.3, 0.5])
    classes = []
    for own in (False, True):
        second = set(np.flatnonzero((side == own) | (rng.random(n) < rng.choice([0.0, 0.2, 1.0])))) | colluders
        third = {i for i in second if side[i] == own or rng.random() < 0.5} - set(np.flatnonzero(rng.random(n) < 0.05))
        classes.append((second, third | colluders))
    views: Views = []
    for i in range(n):
        second, third = classes[int(side[i])]
        if rng.random() < 0.03:
            second = second - set(np.flatnonzero(rng.random(n) < 0.3))
        if rng.random() < 0.03:
            third = third - set(np.flatnonzero(rng.random(n) < 0.3))
        views.append((frozenset(second | {i}), frozenset((third & second) | {i})))
    return views


@pytest.mark.parametrize(("n", "c", "k"), [(14, 0, 2), (18, 2, 4), (22, 0, 5)])
def test_whatever_views_a_server_invents_each_sum_closes_on_itself(n: int, c: int, k: int) -> None:
    rng = np.random.default_rng(7)
    found: Counter[int] = Counter()
    for chose in draw_graphs(n, k, 1000, seed=8):
        t = int(k + 1 + chose[c:, :c].sum(axis=1).max(initial=0)) // 2 + 1  # the least that keeps b and s apart
        sums = opened(chose, c, t, invented_views(n, c, rng), owner_signs=True)
        for group in sums:
            members = sorted(group)
            inside = [*range(c), *members]
            assert (chose[members][:, inside].sum(axis=1) + 1 >= t).all()
            found[len(group)] += 1
    assert found.total() >= 100  # sums do come out,
    assert len(found) >= 4  # of many kinds of splits


# --- what callers rely on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [101, 200, 500, 1000])
def test_more_colluders_dropouts_or_bits_never_need_fewer_neighbours(n: int) -> None:
    sizes = [neighbourhood(n, c).size for c in range(0, n // 5, max(1, n // 60))]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    rates = [neighbourhood(n, n // 20, rate).size for rate in (0.0, 0.05, 0.1, 0.2, 0.3)]
    assert rates == sorted(rates)
    assert neighbourhood(n, n // 10, 0.1, security_bits=30).size <= neighbourhood(n, n // 10, 0.1).size
    assert neighbourhood(n, n // 10, 0.1, liveness_bits=30).size >= neighbourhood(n, n // 10, 0.1).size


@pytest.mark.parametrize(("n", "c"), [(101, 1), (200, 40), (500, 25), (1000, 100), (10_000, 500), (65_536, 10)])
def test_what_is_found_reaches_what_is_asked(n: int, c: int) -> None:
    found = neighbourhood(n, c)
    assert 1 <= found.size <= n - 2
    assert found.threshold <= found.size + 1 < 2 * found.threshold
    assert found.either_or_bits >= 40 + SLACK_BITS
    assert found.connectivity_bits >= 40 + SLACK_BITS
    assert found.least_view_bits >= 40 + VIEW_BITS + SLACK_BITS
    assert found.liveness_bits >= 20 + SLACK_BITS
    assert max(3, c + 2) <= found.least_view <= n - c
    assert found.least_view_share == found.least_view / (n - c)


def test_the_same_numbers_as_ever() -> None:
    # Both sides compute these; another value is another protocol, which old and new partners cannot speak together.
    cases = [(101, 1), (200, 10), (500, 5), (1000, 10), (1000, 200), (10_000, 100), (10_000, 500), (10_000, 2000)]
    found = [neighbourhood(n, c) for n, c in cases]
    assert [(each.size, each.threshold, each.least_view) for each in found] == [
        (37, 20, 41),
        (70, 41, 95),
        (77, 42, 237),
        (100, 56, 502),
        (297, 203, 466),
        (140, 80, 5251),
        (201, 123, 5359),
        (473, 322, 4671),
    ]


def test_the_answer_does_not_depend_on_what_was_asked_before() -> None:
    first = neighbourhood(150, 7)
    neighbourhood(9000, 3)
    neighbourhood.cache_clear()
    graph._log2_factorials.cache_clear()
    again = neighbourhood(150, 7)
    assert again == first
    assert again is not first
    assert neighbourhood(150, 7) is again


def test_only_arithmetic_that_every_machine_rounds_alike() -> None:
    tree = ast.parse(Path(graph.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"itertools", "math", "collections.abc", "dataclasses", "functools", "common.errors"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math"
    }
    assert used <= {"floor", "frexp", "ldexp", "inf"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "sum" not in called  # its order and compensation differ between versions of Python
    powers = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)]
    assert all(isinstance(node.left, ast.Constant) and isinstance(node.left.value, int) for node in powers)


def test_own_logarithm_and_power() -> None:
    for value in [*range(1, 3000), 0.7071067811865475, 0.7071067811865477, 1e-300, 5e-324, 1e300, 1 / 3]:
        assert graph._log2(value) == pytest.approx(math.log2(value), rel=4e-16, abs=4e-16)
    for exponent in np.linspace(-1060, -1e-9, 3001):
        assert graph._exp2(float(exponent)) == pytest.approx(2.0**exponent, rel=1e-15)
    assert [graph._exp2(exponent) for exponent in (0.0, 3.5, -math.inf, -5000.0)] == [1, 1, 0, 0]


def test_factorials_are_exact_to_their_grid() -> None:
    factorials = graph._log2_factorials(11)
    assert len(factorials) == 2**11
    assert factorials[:3] == (0, 0, graph._GRID)
    for i in (3, 20, 170, 2047):
        exact = math.factorial(i)
        shift = max(exact.bit_length() - 900, 0)
        assert factorials[i] / graph._GRID == pytest.approx(math.log2(exact >> shift) + shift, rel=1e-15)


# --- choices ---------------------------------------------------------------------------------------------------------


def test_choose_draws_every_subset_alike() -> None:
    random = byte_source(5)
    people = (9, 2, 40, 7, 5, 3)
    counts = Counter(choose(people, 7, 2, random) for _ in range(6000))
    assert set(counts) == set(itertools.combinations((2, 3, 5, 9, 40), 2))
    statistic = sum((count - 600) ** 2 / 600 for count in counts.values())
    assert statistic < chi2.ppf(0.999, 9)
    assert statistic > chi2.ppf(0.001, 9)


def test_draws_below_a_bound_are_exactly_uniform() -> None:
    # Every first byte: the low 3 bits are kept, and 5, 6, 7 are refused, after which the source gives 0b11.
    outcomes: Counter[int] = Counter()
    for byte in range(256):
        feed: Iterator[bytes] = iter([bytes([byte]), b"\x03"])
        number = graph._below(5, lambda count, feed=feed: next(feed)[:count])
        outcomes[number] += next(feed, None) is not None  # accepted at once
    assert outcomes == {0: 32, 1: 32, 2: 32, 3: 32, 4: 32}


def test_draws_take_as_many_bytes_as_the_bound_needs() -> None:
    asked: list[int] = []

    def zeros(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    assert [graph._below(bound, zeros) for bound in (1, 2, 256, 257, 65_537)] == [0] * 5
    assert asked == [1, 1, 2, 3]  # none for a single possibility


def test_choose_is_sorted_and_leaves_out_its_own_whatever_the_order() -> None:
    people = list(range(300, 0, -1))
    drawn = choose(people, 150, 40, byte_source(1))
    assert len(set(drawn)) == 40
    assert list(drawn) == sorted(drawn)
    assert set(drawn) <= set(people) - {150}
    assert drawn == choose(sorted(people), 150, 40, byte_source(1))
    assert drawn != choose(people, 150, 40, byte_source(2))
    assert people == list(range(300, 0, -1))


def test_choose_everyone_else() -> None:
    assert choose((4, 1, 3), 3, 2, byte_source()) == (1, 4)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((2, 0), "2 participants: must be from 3 to 65536"),
        ((65_537, 0), "65537 participants: must be from 3 to 65536"),
        ((200, -1), "colluders = -1: must be at least 0"),
        ((200, 1, -0.1), "dropout_rate = -0.1: must be at least 0 and below 1"),
        ((200, 1, 1.0), "dropout_rate = 1.0: must be at least 0 and below 1"),
        ((200, 1, math.nan), "dropout_rate = nan"),
        ((200, 1, 0.2, 0), "security_bits = 0: must be from 1 to 256"),
        ((200, 1, 0.2, 257), "security_bits = 257: must be from 1 to 256"),
        ((200, 1, 0.2, 40, 0), "liveness_bits = 0: must be from 1 to 256"),
        ((200, 150), "colluders = 150 of 200 participants ask for 176 survivors and dropout_rate = 0.2 leaves 160"),
        (
            (200, 199, 0.0),
            "colluders = 199 of 200 participants ask for 201 survivors and dropout_rate = 0.0 leaves 200",
        ),
        ((200, 110), "colluders = 110 of 200 participants with dropout_rate = 0.2: no number of neighbours below 199"),
    ],
)
def test_refused_numbers_name_value_and_bound(arguments: tuple[int, int], text: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        neighbourhood(*arguments)
    assert text in str(refusal.value)


def test_a_refusal_offers_the_complete_graph_where_that_is_an_answer() -> None:
    with pytest.raises(ProtocolError, match=r"lower colluders or dropout_rate, or use the complete graph$"):
        neighbourhood(10, 3)
    with pytest.raises(ProtocolError, match=r"lower colluders or dropout_rate$"):
        neighbourhood(200, 110)


@pytest.mark.parametrize(
    ("people", "own", "size", "text"),
    [
        ((1, 2, 2), 1, 1, "3 participants, 2 of them distinct: name each once"),
        ((1, 2, 3), 4, 1, "participant 4 is not one of the 3 participants"),
        ((1, 2, 3), 1, 0, "0 neighbours: must be from 1 to 2"),
        ((1, 2, 3), 1, 3, "3 neighbours: must be from 1 to 2"),
    ],
)
def test_choose_refuses(people: tuple[int, ...], own: int, size: int, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        choose(people, own, size, byte_source())


def test_choose_refuses_a_broken_source() -> None:
    with pytest.raises(ProtocolError, match=r"0 bytes instead of 1; use os\.urandom"):
        choose((1, 2, 3, 4), 1, 2, lambda _: b"")
    with pytest.raises(ProtocolError, match=r"256 draws in a row were not below 3; use os\.urandom"):
        choose((1, 2, 3, 4), 1, 2, lambda count: b"\xff" * count)
