"""Which partners take part in a round."""

from collections.abc import Sequence

import numpy as np


def draw_cohort(partners: Sequence[str], size: int, seed: int, round_number: int) -> list[str]:
    """Returns the partners of a round in name order: all of them, or `size` drawn without replacement.

    The draw is a public function of (seed, round), so a resumed run draws the same cohorts. No privacy is claimed
    from it: every partner is accounted as if it always took part.

    Args:
        partners: names, in any order.
        size: 0 = all; more than there are = all.
        seed: `round.seed`.
        round_number: from 1.
    """
    ordered = sorted(partners)
    if size == 0 or size >= len(ordered):
        return ordered
    generator = np.random.default_rng([seed, round_number])
    return [ordered[index] for index in np.sort(generator.choice(len(ordered), size, replace=False))]
