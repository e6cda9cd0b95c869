"""Who holds whose shares when there are too many participants for everyone to hold everyone's.

Every participant draws `size` others after it has seen all advertisements: they and itself hold the shares of its two
secrets, and pairwise masks run along these choices. `neighbourhood` finds how many and with which threshold;
`choose` draws them. docs/SECAGG.md has the argument. It needs each holder to keep three rules: one kind of share per
owner; none before t of its own holders confirmed its own view of (context, U1, U2, U3); and a share of b_v only with
the signature of v that it masked within the same (context, U1, U2). Without the third, a server that shows v alone a U2
without v's neighbours opens v's single contribution.

Every participant computes these numbers for itself and all must agree to the last bit. So what decides uses nothing but
integers and `+ - * /` and comparisons of doubles in a fixed order, which IEEE 754 rounds alike on every machine. The
logarithm and the power of two are series of our own, because those of C libraries differ in the last place.

Legend: n participants, c colluders, d dropped, h = n - c honest, k chosen by each, t threshold, m honest survivors.

Source: Bell, Bonawitz, Gascon, Lepoint and Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead", CCS 2020, section 4 (each client chooses its own neighbours). The bounds are computed here, not copied.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.errors import ProtocolError

MOST_COMPLETE = 100  # participants up to which everyone holds a share of everyone
MOST_BITS = 256  # of certainty that can be asked for: doubles end at 2^-1074
VIEW_BITS = 16  # a server may show each of at most 2^16 partners another list of participants: that many tries
SLACK_BITS = 0.01  # above what is asked for; rounding errors of all sums here are below a thousandth of a bit

_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_GRID = 2**48  # parts of a bit in which factorials are tabulated: 16 bits before the point and 48 behind fill a double
_NEGLIGIBLE = 1 / 2**60  # against a sum that is at least 1
_MOST_REFUSALS = 256  # of draws in a row; an honest source of bytes gets there with probability 2^-256
_BROKEN = "random source: {}; use os.urandom"


@dataclass(frozen=True)
class Neighbourhood:
    """How many holders each participant chooses, and what that reaches.

    Attributes:
        size: k, others that each participant chooses; with itself they are its k + 1 holders.
        threshold: t, shares that reconstruct a secret, and confirmations that a participant must see.
        either_or_bits: -log2 of the bound on "of some honest owner both secrets can be collected".
        liveness_bits: -log2 of the bound on "some owner has fewer than t live holders".
        connectivity_bits: -log2 of the bound on "the honest survivors fall apart", for dropouts that do not depend on
            the choices.
        least_view: fewest honest participants of any sum that a malicious server can open.
        least_view_share: alpha, `least_view` over the honest participants; at most floor(1 / alpha) sums come out.
        least_view_bits: -log2 of the bound on "there is a smaller one", over all lists of participants it may show.
    """

    size: int
    threshold: int
    either_or_bits: float
    liveness_bits: float
    connectivity_bits: float
    least_view: int
    least_view_share: float
    least_view_bits: float


@lru_cache(maxsize=256)
def neighbourhood(
    num_participants: int,
    colluders: int,
    dropout_rate: float = 0.2,
    security_bits: int = 40,
    liveness_bits: int = 20,
) -> Neighbourhood:
    """Returns the smallest number of neighbours that keeps secrets apart, sums large and rounds alive.

    Formal guarantees, each except with the probability that is asked for (the choices being the only randomness, and
    the colluders fixed before them):

    - either-or: no honest owner has more than 2t - k - 2 colluders among its holders, so that holders who reveal one
      kind of share each cannot open both of its secrets (2^-security_bits);
    - least view: every set of honest participants of which each has t holders within the set and the colluders is as
      large as `least_view`, itself at least max(3, c + 2) (2^-security_bits);
    - connectivity: the honest survivors are one component (2^-security_bits);
    - liveness: every owner has t live holders, whichever floor(dropout_rate * n) participants are fixed as dropped
      (2^-liveness_bits).

    The threshold is the largest with which the round stays alive: both secrecy bounds gain from a larger one, so if
    any threshold will do for a size, this one does.

    Args:
        num_participants: n = |U1|, at least 3 and at most 65,536.
        colluders: c, participants that may collude with the server.
        dropout_rate: share of all participants (colluders that stay silent among them) that may drop out.
        security_bits: -log2 of the failure probability of each of the three secrecy bounds, per run of the protocol.
        liveness_bits: -log2 of the probability that a round fails with that many dropouts.

    Raises:
        ProtocolError: for an argument out of its range, and where no size below n - 1 will do.

    Source: Bell et al. 2020, section 4; Bonawitz et al. 2017, section 4 (double masking, either-or).
    """
    _check(num_participants, colluders, dropout_rate, security_bits, liveness_bits)
    n, c, secret = num_participants, colluders, security_bits + SLACK_BITS
    num_dropped = dropped(n, dropout_rate)
    least = max(3, c + 2)
    threshold = 0
    for size in range(1, n - 1):
        # One more neighbour raises the largest live threshold by at most 1, and never lowers it.
        while _liveness(n, num_dropped, size, threshold + 1) >= liveness_bits + SLACK_BITS:
            threshold += 1
        either_or = _either_or(n, c, size, threshold)
        if either_or < secret:
            continue
        connectivity = _connectivity(n, n - c - num_dropped, size)
        view, view_bits = _least_view(n, c, size, threshold, secret + VIEW_BITS)
        if connectivity >= secret and view >= least:
            live = _liveness(n, num_dropped, size, threshold)
            return Neighbourhood(size, threshold, either_or, live, connectivity, view, view / (n - c), view_bits)
    mend = "lower colluders or dropout_rate" + (", or use the complete graph" if n <= MOST_COMPLETE else "")
    raise ProtocolError(
        f"colluders = {c} of {n} participants with dropout_rate = {dropout_rate}: no number of neighbours below"
        f" {n - 1} keeps {security_bits} bits of secrecy and {liveness_bits} of liveness; {mend}"
    )


def dropped(num_participants: int, dropout_rate: float) -> int:
    """Returns floor(rate * n); a billionth makes .29 of 100 the 29 that it says, and not the 28 of its double."""
    return math.floor(dropout_rate * num_participants + 1e-9)


def choose(participants: Sequence[int], own: int, size: int, random: Callable[[int], bytes]) -> tuple[int, ...]:
    """Returns `size` of the other participants, sorted: every subset of that size is equally likely.

    Args:
        participants: all of U1, in any order, each once.
        own: the participant who chooses; never chosen.
        size: how many, from 1 to all of the others.
        random: a source of uniform bytes that the server cannot influence, as `os.urandom`: count -> that many bytes.

    Raises:
        ProtocolError: for repeated participants, an own number that is not among them, a size out of its range, or a
            source that returns another number of bytes or never an acceptable one.

    Source: Fisher-Yates (Knuth, TAOCP volume 2, algorithm 3.4.2 P), stopped after `size` steps.
    """
    distinct = set(participants)
    others = sorted(distinct - {own})
    if len(distinct) != len(participants):
        raise ProtocolError(f"{len(participants)} participants, {len(distinct)} of them distinct: name each once")
    if own not in distinct:
        raise ProtocolError(f"participant {own} is not one of the {len(participants)} participants")
    if not 1 <= size <= len(others):
        raise ProtocolError(f"{size} neighbours: must be from 1 to {len(others)}")
    for place in range(size):
        drawn = place + _below(len(others) - place, random)
        others[place], others[drawn] = others[drawn], others[place]
    return tuple(sorted(others[:size]))


def _below(bound: int, random: Callable[[int], bytes]) -> int:
    """Returns a uniform integer from 0 to bound - 1: a remainder would favour the small ones, so refuse and redraw."""
    num_bits = (bound - 1).bit_length()
    num_bytes = (num_bits + 7) // 8
    for _ in range(_MOST_REFUSALS):
        drawn = random(num_bytes) if num_bytes else b""
        if len(drawn) != num_bytes:
            raise ProtocolError(_BROKEN.format(f"{len(drawn)} bytes instead of {num_bytes}"))
        number = int.from_bytes(drawn, "little") & ((1 << num_bits) - 1)
        if number < bound:
            return number
    raise ProtocolError(_BROKEN.format(f"{_MOST_REFUSALS} draws in a row were not below {bound}"))


def _check(n: int, c: int, dropout_rate: float, security_bits: int, liveness_bits: int) -> None:
    """Refuses numbers for which the bounds mean nothing.

    Raises:
        ProtocolError: naming the number and its bound.
    """
    if not 3 <= n <= 2**VIEW_BITS:
        raise ProtocolError(f"{n} participants: must be from 3 to {2**VIEW_BITS}")
    if c < 0:
        raise ProtocolError(f"colluders = {c}: must be at least 0")
    if not 0 <= dropout_rate < 1:
        raise ProtocolError(f"dropout_rate = {dropout_rate}: must be at least 0 and below 1")
    for name, bits in (("security_bits", security_bits), ("liveness_bits", liveness_bits)):
        if not 1 <= bits <= MOST_BITS:
            raise ProtocolError(f"{name} = {bits}: must be from 1 to {MOST_BITS}")
    survivors, least = n - dropped(n, dropout_rate), max((n + c) // 2 + 1, 3, c + 2)
    if survivors < least:
        raise ProtocolError(
            f"colluders = {c} of {n} participants ask for {least} survivors and dropout_rate = {dropout_rate} leaves"
            f" {survivors}: lower one of them"
        )


def _either_or(n: int, c: int, k: int, t: int) -> float:
    """Returns the bits against an honest owner with C colluders among its holders and 2t <= k + 1 + C.

    Its k + 1 - C honest holders reveal one kind of share each, the C colluders both: k + 1 + C shares of two kinds.
    """
    return -_log2(n - c) - _log2_tail(n - 1, c, k, 2 * t - k - 1)


def _liveness(n: int, d: int, k: int, t: int) -> float:
    """Returns the bits against an owner with fewer than t live holders when d fixed participants have dropped out.

    Of a live owner's k + 1 holders (itself among them) k + 2 - t must be gone; of a dropped one's k, k + 1 - t.
    """
    live = (n - d) * _exp2(_log2_tail(n - 1, d, k, k + 2 - t))
    gone = d * _exp2(_log2_tail(n - 1, d - 1, k, k + 1 - t)) if d else 0.0
    return _bits(live + gone)


def _connectivity(n: int, m: int, k: int) -> float:
    """Returns the bits against m honest survivors falling apart, by a union over the smaller side of the cut.

    For s on one side and m - s on the other: nobody of the s chose any of the m - s, and none of these any of the s.
    """
    ways = _log2_choose(n - 1, k)
    failure = 0.0
    for s in range(1, m // 2 + 1):
        few, rest = n - 1 - (m - s), n - 1 - s
        if few >= k and rest >= k:
            apart = s * (_log2_choose(few, k) - ways) + (m - s) * (_log2_choose(rest, k) - ways)
            failure += _exp2(_log2_choose(m, s) + apart)
    return _bits(failure)


def _least_view(n: int, c: int, k: int, t: int, bits: float) -> tuple[int, float]:
    """Returns the size below which no honest set closes on itself, and the bits against a smaller one that does.

    A set of s honest participants closes if each has t of its k + 1 holders (itself one) among the s and the c
    colluders. Choices are independent: (the tail for one)^s, times the sets of that size, summed over s.
    """
    failure = 0.0
    for s in range(1, n - c):
        closes = s * _log2_tail(n - 1, s - 1 + c, k, t - 1)
        more = failure + _exp2(_log2_choose(n - c, s) + closes)
        if _bits(more) < bits:
            return s, _bits(failure)
        failure = more
    return n - c, _bits(failure)


def _log2_tail(total: int, marked: int, draws: int, least: int) -> float:
    """Returns log2 P[at least `least` marked ones in `draws` of `total` without replacement]; 0 if that is not rare.

    The largest term exactly, the others by their ratios, each below 1 because `least` is above the mean.
    """
    if least * total <= marked * draws or least <= 0:
        return 0.0
    if least > min(marked, draws):
        return -math.inf
    ratio = terms = 1.0
    for j in range(least, min(marked, draws)):
        ratio *= (marked - j) * (draws - j) / ((j + 1) * (total - marked - draws + j + 1))
        terms += ratio
        if ratio < _NEGLIGIBLE:
            break
    ways = _log2_choose(marked, least) + _log2_choose(total - marked, draws - least)
    return ways - _log2_choose(total, draws) + _log2(terms)


def _log2_choose(total: int, chosen: int) -> float:
    """Returns log2 of the number of subsets, exact to about 10^-10."""
    factorials = _log2_factorials(total.bit_length())
    return (factorials[total] - factorials[chosen] - factorials[total - chosen]) / _GRID


@lru_cache(maxsize=20)
def _log2_factorials(num_bits: int) -> tuple[int, ...]:
    """Returns log2(i!) for every i of that many bits, in units of 1 / _GRID: integers add without rounding."""
    steps = (round(_log2(i) * _GRID) for i in range(1, 1 << num_bits))
    return tuple(itertools.accumulate(steps, initial=0))


def _bits(probability: float) -> float:
    return -_log2(probability) if probability > 0 else math.inf


def _log2(value: float) -> float:
    """Returns log2 of a positive number, alike on every machine: 2 / ln 2 * artanh((m - 1) / (m + 1)) + exponent."""
    mantissa, exponent = math.frexp(value)
    if mantissa < _SQRT_HALF:
        mantissa, exponent = 2 * mantissa, exponent - 1
    ratio = (mantissa - 1) / (mantissa + 1)
    series = 0.0
    for odd in range(25, 0, -2):
        series = 1 / odd + series * ratio * ratio
    return exponent + 2 * ratio * series / _LN2


def _exp2(exponent: float) -> float:
    """Returns min(2^exponent, 1), alike on every machine: what is bounded here are probabilities."""
    if exponent >= 0 or exponent == -math.inf:
        return float(exponent >= 0)
    whole = math.floor(exponent)
    power = (exponent - whole) * _LN2
    series = 1.0
    for i in range(20, 0, -1):
        series = 1 + series * power / i
    return math.ldexp(series, whole)
