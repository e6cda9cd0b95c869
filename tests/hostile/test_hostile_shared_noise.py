"""Shared noise (privacy.mode = "distributed"): a sum holds the noise that the ledger counts on, or does not come out.

Legend: D parameters.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hostile.hostile_round import Round, forge, refused
from hostile.hostile_server import HostileServer, partners

from common.messages import TrainingPlan, shared_hash
from common.stage_messages import AdvertiseTask

PLAN = TrainingPlan(1, "sgd", 0.1, 0.0)
COLLUDER = 7


@pytest.fixture
def seven(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    """Seven partners, of whom one may collude; every sum is over four or more: three honest parts make up its noise."""
    privacy = {"mode": "distributed", "epsilon": 100.0}
    with partners(tmp_path, tiny_encoder, 7, privacy=privacy, least_participants=4) as found:
        yield found


def shared_round(server: HostileServer, numbers: tuple[int, ...], attempt: int = 0, round_number: int = 1) -> Round:
    config = server.worker(1).config
    shared = shared_hash(b"", config.privacy, config.noise_shares)
    return Round(server, round=round_number, attempt=attempt, numbers=numbers, plan=PLAN, clip=0.0, shared=shared)


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


@pytest.mark.parametrize("stage", ["confirm", "unmask", "after"])
def test_a_part_of_the_noise_is_in_one_sum_only(stage: str, seven: HostileServer) -> None:
    """Two attempts that share the victim alone: its users would be in two sums with one part of noise in both, and its
    ledger knows of one. The average over sixteen attempts would hold hardly more noise than the victim's own part."""
    first = shared_round(seven, (1, 2, 3, COLLUDER)).until("confirm")
    for played in ("confirm", "unmask")[: ("confirm", "unmask", "after").index(stage)]:
        first.play(played, silent=(1,) if played == "unmask" else ())
    again = AdvertiseTask(shared_round(seven, (1, 4, 5, 6), 1).session, 1)
    for _ in range(2):
        refused(first, 1, again, "round 1: this partner sent its part of the noise; there is no other attempt")
        seven.restart()
    next_round = shared_round(seven, (1, 4, 5, 6), round_number=2)
    assert len(next_round.run()) == 1
    assert [seven.charged(number) for number in (1, 2, 4)] == [2, 1, 1]


def test_an_attempt_that_ended_before_its_body_left_is_no_sum_and_may_be_tried_again(seven: HostileServer) -> None:
    shared_round(seven, (1, 2, 3, COLLUDER)).until("mask")
    second = shared_round(seven, (1, 2, 3, COLLUDER), 1)
    (total_D,) = second.run()
    assert np.array_equal(total_D, sum(seven.contribution(number) for number in second.numbers))


def test_noise_is_not_shared_among_neighbours(tmp_path: Path, tiny_encoder: Path) -> None:
    """With neighbours a hostile server opens sums of fewer honest parts than the ledger counts on."""
    privacy = {"mode": "distributed", "epsilon": 100.0}
    with partners(tmp_path, tiny_encoder, 101, real=1, privacy=privacy, least_participants=4) as server:
        round_ = shared_round(server, tuple(range(1, 102)))
        round_.take("advertise", 1, round_.tell(1, round_.tasks("advertise")[1]))
        for number in range(2, 102):
            round_.gathering._found[number] = forge(server, number, round_.session)
        (tally,) = round_.gathering.tallies()
        refused(round_, 1, tally.share_task, "over 100 participants: this partner shares noise among fewer only")
