"""What an adversary found beyond the list: attacks that are refused now, and limits that docs/SECAGG.md states.

A `test_limit_...` plays an attack that works, so that nobody promises otherwise.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hostile.hostile_round import BOUND, Round, forge, refused
from hostile.hostile_server import HostileServer, Refused, partners

from common.features import dense_names
from common.message_types import QUERY_CATALOGUE
from common.messages import CatalogueTask, TrainingPlan, counts_hash
from common.model.click_model import build_model
from common.secagg.wire import Advertisement, ShareTask

ITEMS = tuple(f"i{number}" for number in range(12))
ONE_STEP = TrainingPlan(1, "sgd", 0.1, 0.0)


@pytest.fixture
def bare(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    """Partners without differential privacy whose every step is over all users: nothing in it is random."""
    privacy = {"mode": "none", "sampling_rate": 1.0}
    with partners(tmp_path, tiny_encoder, privacy=privacy, model={"item_rates": "exact"}) as found:
        yield found


def tell_counts(server: HostileServer, numbers: tuple[int, ...], pair: tuple[float, float]) -> bytes:
    """Tells partners the same counts of every item; returns the hash that tasks of theirs need."""
    told = CatalogueTask("run", ITEMS, np.tile([[pair[0]], [pair[1]]], (1, len(ITEMS))))
    for number in numbers:
        server.ask(number, QUERY_CATALOGUE, told.to_record())
    return counts_hash(dict.fromkeys(ITEMS, pair))


def item_rate_weights(server: HostileServer) -> np.ndarray:
    """Returns the places, in a contribution, of the weights that only see item rates."""
    worker, place = server.worker(1), 0
    for name, parameter in build_model(worker.config.model, worker._pretrained.width, 1, 1).named_parameters():
        if name == "wide.weight":
            columns = [dense_names(worker.config.model).index(column) for column in ("item_rate", "item_rows")]
            return place + np.array(columns)
        place += parameter.numel()
    raise AssertionError("the model has no wide part")


def test_a_contribution_with_features_of_its_own_is_not_used_in_a_later_attempt(bare: HostileServer) -> None:
    """The victim alone trains with real item counts, then all are told the same: its kept contribution would have had
    coordinates of the sum to itself, though every hash agrees."""
    tagged = tell_counts(bare, (1,), (5.0, 20.0))
    tell_counts(bare, (2, 3, 4), (0.0, 0.0))
    first = Round(bare, plan=ONE_STEP, shared=tagged).until("mask")
    first.tell(1, first.tasks("mask")[1])
    places = item_rate_weights(bare)
    assert (bare.contribution(1)[places] != 0).all()
    same = tell_counts(bare, (1, 2, 3, 4), (0.0, 0.0))
    again = Round(bare, attempt=1, plan=ONE_STEP, shared=same).until("mask")
    refused(again, 1, again.tasks("mask")[1], "round 1 was answered for another model; it is not answered again")
    (total_D,) = again.run("mask")
    assert (total_D[places] == 0).all()


def test_counts_of_one_round_cannot_change_within_it(bare: HostileServer) -> None:
    """What is bound is what was told last: a catalogue after the task was made is seen at the next stage."""
    told = tell_counts(bare, (1, 2, 3, 4), (5.0, 20.0))
    round_ = Round(bare, plan=ONE_STEP, shared=told).until("mask")
    tell_counts(bare, (1,), (0.0, 20.0))
    refused(round_, 1, round_.tasks("mask")[1], "model or configuration hash is not that of the task beside it")
    (total_D,) = round_.run("mask")
    expected_D, tolerance = round_.expected((2, 3, 4))
    assert np.abs(total_D - expected_D).max() <= tolerance


def test_one_sum_over_all_after_a_coin_was_shown_is_refused(bare: HostileServer) -> None:
    """With the coins known, the server must not choose between the groups and none."""
    round_ = Round(bare).until("share")
    round_.tell(1, round_.gathering.reveal_task())
    refused(round_, 1, round_.tasks("share")[1], "coins without groups")


def test_neighbours_that_were_refused_are_not_drawn_again(tmp_path: Path, tiny_encoder: Path) -> None:
    """101 participants: with bad entries outside a set of its choice, a server would ask until the draw fits."""
    with partners(tmp_path, tiny_encoder, 101, real=1) as server:
        round_ = Round(server, run_id="second", numbers=range(1, 102))
        round_.take("advertise", 1, round_.tell(1, round_.tasks("advertise")[1]))
        good = {number: forge(server, number, round_.session) for number in range(2, 102)}
        bad = {number: forge(server, number, round_.session, signer=1) for number in range(30, 102)}
        task = crowd_task(round_, good | bad)
        with pytest.raises(Refused, match=r"advertisement of partner-\d+: its signature"):
            server.tell(1, task)
        for again in (task, crowd_task(round_, good)):
            refused(round_, 1, again, "round 1, attempt 0: not under way here")
        fresh = Round(server, run_id="second", attempt=1, numbers=range(1, 102))
        fresh.take("advertise", 1, fresh.tell(1, fresh.tasks("advertise")[1]))
        good = {number: forge(server, number, fresh.session) for number in range(2, 102)}
        assert len(server.tell(1, crowd_task(fresh, good)).recipients) == 37


def crowd_task(round_: Round, entries: dict[int, Advertisement]) -> ShareTask:
    """Returns SHARE over 101 participants, the first of whom is real."""
    for number, entry in entries.items():
        round_.gathering._found[number] = entry
    (tally,) = round_.gathering.tallies()
    return tally.share_task


# --- limits -----------------------------------------------------------------------------------------------------------


def test_limit_without_privacy_two_runs_that_differ_by_one_partner_show_its_contribution(bare: HostileServer) -> None:
    """The same model over {1, 2, 3, 4} and, as another run, over {1, 2, 3}: nothing but noise could hide partner 4."""
    hashed = tell_counts(bare, (1, 2, 3, 4), (1.0, 4.0))
    (all_D,) = Round(bare, plan=ONE_STEP, shared=hashed).run()
    (fewer_D,) = Round(bare, run_id="other", plan=ONE_STEP, shared=hashed, numbers=(1, 2, 3)).run()
    alone_D = bare.contribution(4)
    assert np.abs(all_D - fewer_D - alone_D).max() < 1e-5 * np.abs(alone_D).max()


def test_a_partner_that_sums_with_the_whole_roster_only_is_not_shown_by_two_runs(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    """What such a partner can do about it: least_participants of the size of the roster."""
    privacy = {"mode": "none", "sampling_rate": 1.0}
    with partners(tmp_path, tiny_encoder, privacy=privacy, least_participants=4) as server:
        fewer = Round(server, numbers=(1, 2, 3)).until("share")
        for number in (1, 2, 3):
            refused(fewer, number, fewer.tasks("share")[number], "aggregation.least_participants is 4")


def test_with_privacy_two_runs_that_differ_by_one_partner_show_it_under_its_own_noise(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    """Every run is paid for, and its noise is new: the difference holds the noise of all who are in both."""
    with partners(tmp_path, tiny_encoder) as server:
        (all_D,) = Round(server, plan=ONE_STEP).run()
        alone_D = server.contribution(4)
        (fewer_D,) = Round(server, run_id="other", plan=ONE_STEP, numbers=(1, 2, 3)).run()
        privacy = server.worker(4).config.privacy
        assert privacy.noise_multiplier is not None
        # Of one step: learning rate x noise x clip over the expected users, here sampling rate x 12.
        noise = 0.1 * privacy.noise_multiplier * privacy.clip / (privacy.sampling_rate * 12)
        left_D = all_D - fewer_D - alone_D
        assert 0.7 < left_D.std() / (noise * 6**0.5) < 1.4  # three partners, twice each
        assert [server.charged(number) for number in (1, 2, 3, 4)] == [2, 2, 2, 1]


def test_limit_without_privacy_refusals_over_rounds_measure_one_partner(bare: HostileServer) -> None:
    """Learning rates of the server's choice, one refusal or none a round: partner 1's largest gradient, exactly."""
    hashed = tell_counts(bare, (1, 2, 3, 4), (1.0, 4.0))
    low, high = 1e-2, 1000.0
    for number in range(1, 21):
        rate = (low * high) ** 0.5
        round_ = Round(bare, round=number, plan=TrainingPlan(1, "sgd", rate, 0.0), shared=hashed).until("mask")
        try:
            round_.tell(1, round_.tasks("mask")[1])
            low = rate
        except Refused:
            high = rate
    last = Round(bare, round=99, plan=TrainingPlan(1, "sgd", 0.01, 0.0), shared=hashed).until("mask")
    last.tell(1, last.tasks("mask")[1])
    assert np.abs(bare.contribution(1)).max() / 0.01 == pytest.approx(BOUND / low, rel=1e-3)
    assert not bare.shares_left()
