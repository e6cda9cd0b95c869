"""Shared noise (privacy.mode = "distributed"): a sum holds the noise that the ledger counts on, or does not come out.

Legend: D parameters.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hostile.hostile_round import Round, refused
from hostile.hostile_server import HostileServer, partners

from client.worker import noise_shares
from common.errors import TooFewPartners
from common.messages import TrainingPlan, shared_hash

PLAN = TrainingPlan(1, "sgd", 0.1, 0.0)
COLLUDER = 7


@pytest.fixture
def seven(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    """Seven partners, of whom one may collude; every sum is over four or more: three honest parts make up its noise."""
    privacy = {"mode": "distributed", "epsilon": 100.0}
    with partners(tmp_path, tiny_encoder, 7, privacy=privacy, least_participants=4) as found:
        yield found


def shared_round(server: HostileServer, numbers: tuple[int, ...], attempt: int = 0) -> Round:
    config = server.worker(1).config
    shared = shared_hash(b"", config.privacy, noise_shares(config))
    return Round(server, attempt=attempt, numbers=numbers, plan=PLAN, clip=0.0, shared=shared)


def test_a_sum_is_that_of_the_whole_numbers(seven: HostileServer) -> None:
    round_ = shared_round(seven, (1, 2, 3, COLLUDER))
    (total_D,) = round_.run()
    assert np.array_equal(total_D, sum(seven.contribution(number) for number in round_.numbers))


def test_fewer_parts_of_the_noise_than_are_counted_on_are_refused(seven: HostileServer) -> None:
    """Of four, one colludes: three parts. Two would be noise that the ledger does not know of."""
    fewer = shared_round(seven, (1, 2, 3)).until("share")
    refused(fewer, 1, fewer.tasks("share")[1], "3 participants: this partner's aggregation.least_participants is 4")
    dropped = shared_round(seven, (1, 2, 3, COLLUDER), 1).until("confirm", mask=(3,))
    refused(dropped, 1, dropped.tallies[0].confirm_task(), "survivors|do not make up U2")


def test_another_noise_rate_clip_or_grid_for_one_client_is_refused(seven: HostileServer) -> None:
    round_ = shared_round(seven, (1, 2, 3, COLLUDER))
    round_.shared = b""
    round_.until("mask")
    refused(round_, 1, round_.tasks("mask")[1], "model or configuration hash is not that of the task beside it")


def test_a_part_of_the_noise_is_in_one_sum_only(seven: HostileServer) -> None:
    """Two attempts that share the victim alone: its users would be in two sums with one part of noise in both, and its
    ledger knows of one. The average over sixteen attempts would hold hardly more noise than the victim's own part."""
    first = shared_round(seven, (1, 2, 3, COLLUDER)).until("unmask")
    first.play("unmask", silent=(1,))
    (one_D,) = first.sums()
    assert np.array_equal(one_D, sum(seven.contribution(number) for number in first.numbers))
    colluders_D = seven.contribution(COLLUDER)
    second = shared_round(seven, (1, 4, 5, 6), 1)
    try:
        (two_D,) = second.run()
    except TooFewPartners:  # the victim refused, or drew and charged anew
        assert 1 in second.refusals
        return
    part_D = two_D - sum(seven.contribution(number) for number in (4, 5, 6))
    again = np.array_equal(part_D, one_D - colluders_D - sum(seven.contribution(number) for number in (2, 3)))
    assert not again
    assert seven.charged(1) == 2
