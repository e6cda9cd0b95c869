"""White-box: which canaries are in the data, from every round's release and everything else but the coins.

The attacker is the one that differential privacy is defined against: it knows the configuration, every weight, every
other user's rows, and each canary's gradient. It works out the other users' gradients at the weights that a round
started from, takes them off what it sees, and estimates all coins at once by ridge regression, the linear estimate of
least error where noise is Gaussian.

Legend: M canaries, D parameters, N rows, T rounds, G canaries of one partner.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from client.training import clipped_sum, hooks_on, load_for_training
from common.features import UserRows
from common.model.click_model import ClickModel
from common.privacy.views import VIEWS, View
from simulations.audit.observed import Observation
from simulations.audit.views import Scale, Sight

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Units = Sequence[NDArray[np.int64]]


class Others:
    """The sums of everybody's clipped gradients but the canaries', at any weights.

    Args:
        model: the run's.
        rows: partner number -> its rows without canaries.
        units: partner number -> row numbers of each unit.
        clip: the run's.
    """

    def __init__(
        self, model: ClickModel, rows: Mapping[int, UserRows], units: Mapping[int, Units], clip: float
    ) -> None:
        self._model, self._rows, self._units, self._clip = model, rows, units, clip

    def sums(self, start_D: Float32) -> dict[int, Float]:
        """Returns partner number -> the sum over its units of clipped gradients over the clip, float64 [D]."""
        load_for_training(self._model, start_D)
        hooks = hooks_on(self._model)
        try:
            return {
                number: clipped_sum(self._model, rows, self._units[number], self._clip) / self._clip
                for number, rows in self._rows.items()
            }
        finally:
            hooks.cleanup()


def white_box(
    seen: Observation,
    scale: Scale,
    others: Others,
    gradient_MD: Float32,
    partner_M: NDArray[np.int64],
    views: Sequence[View] = VIEWS,
) -> dict[View, Float]:
    """Returns, for each adversary, how likely each canary is in: higher = in, float64 [M].

    Args:
        seen: the run.
        scale: of its contributions.
        others: everybody else.
        gradient_MD: the canaries' clipped gradients over the clip.
        partner_M: partner number of each canary.
        views: adversaries.
    """
    # Where one sum holds everybody's steps, all canaries are found at once; else those of one partner at a time.
    joint = scale.config.privacy.mode == "distributed"
    estimates = {view: _Ridge(partner_M, joint=joint and view == "server") for view in views}
    product_MM = gradient_MD @ gradient_MD.T
    for release in seen.releases:
        rest, rate = others.sums(release.start_D), scale.config.privacy.sampling_rate * scale.steps
        for view, estimate in estimates.items():
            estimate.add(scale.sights(view, seen, release), gradient_MD, product_MM, rest, rate)
    return {view: estimate.solve() for view, estimate in estimates.items()}


class _Ridge:
    """The coins' linear estimate, over all rounds: one regression per partner, or one for all.

    With s the coins, a round shows rate * G^T s + rest + noise. The prior of a coin has variance 1/4.
    """

    def __init__(self, partner_M: NDArray[np.int64], *, joint: bool) -> None:
        self._partner_M, self._joint = partner_M, joint
        self._group_M = np.zeros_like(partner_M) if joint else partner_M
        sizes = dict(zip(*(each.tolist() for each in np.unique(self._group_M, return_counts=True)), strict=True))
        self._product = {number: np.zeros((count, count)) for number, count in sizes.items()}
        self._seen = {number: np.zeros(count) for number, count in sizes.items()}

    def add(
        self,
        sights: dict[int, Sight],
        gradient_MD: Float32,
        product_MM: Float32,
        rest: dict[int, Float],
        rate: float,
    ) -> None:
        """Adds one round; every partner's part is weighed by its own noise."""
        if self._joint:  # the same to all
            sights = {0: next(iter(sights.values()))} if sights else {}
        for number, sight in sights.items():
            if number not in self._product:
                continue
            here_M = self._group_M == number
            expected_D = np.zeros(gradient_MD.shape[1])
            for one, factor in sight.factor_of.items():
                own_D = gradient_MD[self._partner_M == one].sum(0)
                expected_D += factor * rate * (rest[one] + 0.5 * own_D)
            precision = 1 / max(sight.deviation, 1e-6) ** 2
            self._product[number] += precision * rate**2 * product_MM[np.ix_(here_M, here_M)]
            self._seen[number] += precision * rate * (gradient_MD[here_M] @ (sight.seen_D - expected_D))

    def solve(self) -> Float:
        """Returns the estimates, less one half, of all canaries."""
        found_M = np.zeros(len(self._partner_M))
        for number, product_GG in self._product.items():
            found_M[self._group_M == number] = np.linalg.solve(
                product_GG + 4 * np.eye(len(product_GG)), self._seen[number]
            )
        return found_M
