"""Stages 0 and 1: whose keys a client shares its secrets with, and with how many others."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hostile.hostile_round import Round, colluder_shares, forge, own_secret, refused, sums_up
from hostile.hostile_server import HostileServer, Refused, identity, partners, write_key

from common.errors import ProtocolError
from common.secagg.keys import public_key
from common.secagg.roster import Member, Roster
from common.secagg.wire import Advertisement, RevealTask, SessionId, ShareTask
from common.stage_messages import AdvertiseTask

LOW_ORDER = bytes(32), (1).to_bytes(32, "little")


@pytest.fixture
def server(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path, tiny_encoder) as found:
        yield found


def share_task(round_: Round, *entries: Advertisement, only: tuple[int, ...] = (), threshold: int = 0) -> ShareTask:
    """Returns the honest task with some entries in place of those of their number, and `only` some of the others."""
    first = {entry.number: entry for entry in round_.gathering.first if not only or entry.number in only}
    first |= {entry.number: entry for entry in entries}
    blob = b"".join(first[number].to_bytes() for number in sorted(first))
    honest: ShareTask = round_.tally().share_task
    return replace(honest, advertisements=blob, threshold=threshold or honest.threshold)


def test_a_key_swapped_for_a_peer_is_refused(server: HostileServer) -> None:
    """The server in the middle: it signs with what it has, or puts its key beside the peer's own signature."""
    round_ = Round(server).until("share")
    honest = next(entry for entry in round_.gathering.first if entry.number == 2)
    for key in ("mask_key", "channel_key", "coin"):
        swapped = replace(honest, **{key: public_key(own_secret(9, key))})
        refused(round_, 1, share_task(round_, swapped), "advertisement of partner-0001: its signature")
    refused(round_, 1, share_task(round_, forge(server, 2, round_.session, signer=4)), "advertisement of partner-0001")
    sums_up(round_, start="share")


def test_a_signature_by_an_identity_outside_the_roster_is_refused(server: HostileServer) -> None:
    round_ = Round(server).until("share")
    stranger = forge(server, 2, round_.session, signer=99)
    refused(round_, 1, share_task(round_, stranger), "advertisement of partner-0001: its signature is not that of the")
    outside = forge(server, 5, round_.session)
    refused(round_, 1, share_task(round_, outside), "advertisements: a participant outside the roster of 4")
    refused(round_, 1, replace(share_task(round_), cohort=(1, 2, 3, 4, 5)), "cohort: a participant outside the roster")
    refused(
        round_, 1, replace(share_task(round_), cohort=(1, 2, 3)), "an advertisement by one who is not in the cohort"
    )
    sums_up(round_, start="share")


@pytest.mark.parametrize("key", ["mask", "channel", "coin"])
def test_an_own_entry_replaced_is_refused(key: str, server: HostileServer) -> None:
    """Also where the server could sign for the victim: it would hold the secret that the victim's shares are of."""
    round_ = Round(server).until("share")
    own = forge(server, 1, round_.session, **{key: public_key(own_secret(7, key))})
    refused(round_, 1, share_task(round_, own), "own advertisement is missing or replaced")
    refused(round_, 1, share_task(round_, only=(2, 3, 4)), "own advertisement is missing or replaced")
    sums_up(round_, start="share")


def test_a_duplicate_participant_is_refused(server: HostileServer) -> None:
    round_ = Round(server).until("share")
    entries = {entry.number: entry.to_bytes() for entry in round_.gathering.first}
    for order in ((1, 2, 2, 3, 4), (1, 1, 2, 3, 4), (2, 1, 3, 4)):
        blob = b"".join(entries[number] for number in order)
        task = replace(share_task(round_), advertisements=blob)
        refused(round_, 1, task, "advertisements: participants must be named once each, in ascending order")
    twice = replace(share_task(round_), cohort=(1, 2, 2, 3, 4))
    refused(round_, 1, twice, "cohort: participants must be named once each, in ascending order")
    for blob in (entries[1] + entries[2] + entries[3][:-1], entries[1] + b"\0", b"\0"):
        refused(round_, 1, replace(share_task(round_), advertisements=blob), "advertisements: .* bytes, expected whole")
    sums_up(round_, start="share")


@pytest.mark.parametrize(
    "session",
    [SessionId("run", 2, 0), SessionId("run", 0, 0), SessionId("another run", 1, 0), SessionId("run", 1, 1)],
    ids=["round", "round 0", "run", "attempt"],
)
def test_an_advertisement_replayed_from_another_round_run_or_attempt_is_refused(
    session: SessionId, server: HostileServer
) -> None:
    round_ = Round(server).until("share")
    refused(round_, 1, share_task(round_, forge(server, 2, session)), "advertisement of partner-0001: its signature")
    sums_up(round_, start="share")


def test_an_advertisement_replayed_from_another_roster_is_refused(server: HostileServer) -> None:
    """The same people with another weight are another roster, and so is one of them less."""
    members = server.roster.members
    round_ = Round(server).until("share")
    for other in ((*members[:3], Member(members[3].name, members[3].public_key, 0.5)), members[:3]):
        entry = forge(server, 2, round_.session, roster=Roster(other))
        refused(round_, 1, share_task(round_, entry), "advertisement of partner-0001: its signature")
    sums_up(round_, start="share")


def test_a_real_answer_of_the_round_before_is_refused(server: HostileServer) -> None:
    before = Round(server)
    before.run()
    round_ = Round(server, round=2).until("share")
    replayed = next(entry for entry in before.gathering.first if entry.number == 3)
    refused(round_, 1, share_task(round_, replayed), "advertisement of partner-0002: its signature")
    sums_up(round_, start="share")


def test_fewer_than_three_participants_are_refused(server: HostileServer) -> None:
    """Of two, each knows the other's contribution; of one, everyone does."""
    round_ = Round(server).until("share")
    for only in ((1, 2), (1,)):
        for threshold in (1, 2):
            task = share_task(round_, only=only, threshold=threshold)
            refused(round_, 1, task, f"{len(only)} participants: secure aggregation needs at least 3")
    refused(round_, 1, replace(share_task(round_), advertisements=b""), "own advertisement is missing")
    sums_up(round_, start="share")


def test_fewer_than_colluders_and_two_honest_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder, 5, colluders=2) as server:
        round_ = Round(server, colluders=2).until("share")
        task = share_task(round_, only=(1, 2, 3), threshold=3)
        refused(round_, 1, task, r"3 participants: secure aggregation needs at least 4 \(colluders = 2\)")
        sums_up(round_, start="share")


def test_fewer_than_the_policys_participants_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder, 5, least_participants=5) as server:
        round_ = Round(server).until("share")
        task = share_task(round_, only=(1, 2, 3, 4), threshold=3)
        refused(round_, 1, task, "4 participants: this partner's aggregation.least_participants is 5")
        sums_up(round_, start="share")


@pytest.mark.parametrize("threshold", [-1, 0, 1, 2, 4, 2**62])
def test_a_threshold_of_at_most_half_of_participants_and_colluders_is_refused(
    threshold: int, server: HostileServer
) -> None:
    """n = 4, c = 1: at 2, the server and its colluder open the secrets that two honest ones believe to be shared."""
    round_ = Round(server).until("share")
    task = replace(share_task(round_), threshold=threshold)
    refused(round_, 1, task, f"threshold = {threshold}: this partner needs 3 of 4")
    sums_up(round_, start="share")


def test_a_threshold_under_the_policys_is_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    with partners(tmp_path, tiny_encoder, 4, least_threshold=4) as server:
        round_ = Round(server).until("share")
        refused(round_, 1, share_task(round_), "threshold = 3: .* at least aggregation.least_threshold = 4")
        assert not server.shares_left()


@pytest.mark.parametrize("point", LOW_ORDER, ids=["0", "1"])
def test_a_low_order_channel_key_is_refused_before_anything_is_shared(point: bytes, server: HostileServer) -> None:
    """A colluder signs for it: the channel to it would have a key that everyone knows."""
    round_ = Round(server).until("share")
    task = share_task(round_, forge(server, 4, round_.session, channel=point))
    refused(round_, 1, task, "public key of low order")
    sums_up(round_, start="share")


@pytest.mark.parametrize("point", LOW_ORDER, ids=["0", "1"])
def test_a_low_order_mask_key_is_refused_before_data_is_touched(point: bytes, server: HostileServer) -> None:
    """A colluder signs for it: its pairwise mask would be one that everyone knows. No budget is charged for it."""
    round_ = Round(server).until("share")
    entry = forge(server, 4, round_.session, mask=point)
    task = share_task(round_, entry)
    round_.gathering._found[4] = entry
    (round_.tallies[0],) = round_.gathering.tallies()
    for number in (1, 2, 3):
        round_.take("share", number, round_.tell(number, task))
    round_.take("share", 4, colluder_shares(round_, entry, task)[1])
    refused(round_, 1, round_.tasks("mask")[1], "public key of low order")
    again = Round(server, attempt=1, numbers=(1, 2, 3))
    sums_up(again)
    assert server.charged(1) == 1


def test_a_partner_whose_key_is_not_that_of_its_roster_takes_no_part(server: HostileServer) -> None:
    """Somebody put another key, or another roster, on its disk: it would sign in vain, or believe others."""
    write_key(server.folder(1) / "identity.pem", identity(77))
    server.restart()
    with pytest.raises(Refused, match=r"refused \(ConfigError\)"):
        server.tell(1, AdvertiseTask(SessionId("run", 1, 0), 2))


def test_the_server_names_whose_key_is_of_low_order(server: HostileServer) -> None:
    round_ = Round(server)
    for lie in ({"mask": LOW_ORDER[0]}, {"channel": LOW_ORDER[1]}):
        with pytest.raises(ProtocolError, match="advertisement of partner-0003: a public key of low order"):
            round_.gathering.add(4, forge(server, 4, round_.session, **lie))


def test_the_server_names_whose_coin_is_another(server: HostileServer) -> None:
    round_ = Round(server).until("share")
    with pytest.raises(ProtocolError, match="participant 4: another coin than it committed to"):
        round_.gathering.add_coin(4, own_secret(4, "coin"))


# --- groups: the coin that decides with whom one is summed up --------------------------------------------------------


def coin_task(round_: Round, **change: object) -> RevealTask:
    return replace(round_.gathering.reveal_task(), **change)  # type: ignore[arg-type]


def test_a_coin_is_revealed_once_and_only_beside_the_own_entry(server: HostileServer) -> None:
    round_ = Round(server, num_groups=1).until("share")
    without_own = b"".join(entry.to_bytes() for entry in round_.gathering.first if entry.number != 1)
    refused(round_, 1, coin_task(round_, advertisements=without_own), "own advertisement is missing or replaced")
    coin = round_.tell(1, coin_task(round_)).coin
    assert len(coin) == 32
    refused(round_, 1, coin_task(round_), "the coin of this attempt was revealed already")


def test_groups_over_other_participants_than_the_coin_was_for_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    """Once the coins are known, another U1, cohort or number of groups would let the server choose the groups."""
    with partners(tmp_path, tiny_encoder, 8) as server:
        round_ = Round(server, num_groups=2).until("share")
        honest = round_.tasks("share")[1]
        fewer = b"".join(entry.to_bytes() for entry in round_.gathering.first if entry.number != 8)
        drawn = "groups over another cohort, U1 or number of groups than the coin was revealed for"
        refused(round_, 1, replace(honest, advertisements=fewer, coins=honest.coins[:-32]), drawn)
        refused(round_, 1, replace(honest, num_groups=3), drawn)
        refused(round_, 1, replace(honest, num_groups=2, cohort=(*range(1, 9),)[:7]), "not in the cohort")
        flipped = bytes([honest.coins[-1] ^ 1])
        refused(round_, 1, replace(honest, coins=honest.coins[:-1] + flipped), "participant 8: another coin than")
        refused(round_, 1, replace(honest, coins=honest.coins[:-32]), "coins: .* bytes, expected 8 parts")
        refused(round_, 1, replace(honest, coins=b"", num_groups=2), "coins: 0 bytes")
        sums = round_.run("share")
        assert [len(tally.third) for tally in round_.tallies] == [4, 4]
        assert len(sums) == 2


def test_groups_without_a_revealed_coin_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    """The coins of the others must not be known to the server before every honest one has seen the same U1."""
    with partners(tmp_path, tiny_encoder, 8) as server:
        round_ = Round(server, num_groups=2).until("reveal")
        coins = b"".join(own_secret(number, "coin") for number in range(1, 9))
        blob = b"".join(entry.to_bytes() for entry in round_.gathering.first)
        task = ShareTask(round_.session, round_.gathering.cohort, blob, 3, 2, coins)
        refused(round_, 1, task, "than the coin was revealed for")


def test_coins_without_groups_are_refused(server: HostileServer) -> None:
    round_ = Round(server).until("share")
    refused(round_, 1, replace(share_task(round_), coins=bytes(128)), "coins without groups")
    sums_up(round_, start="share")


def test_the_harness_holds_the_keys_of_its_colluders(server: HostileServer) -> None:
    """What the colluders of these tests sign is good: refusals are not for a broken forgery."""
    assert identity(4).public_key().public_bytes_raw().hex() == server.roster.member(4).public_key
    round_ = Round(server).until("share")
    assert len(round_.tell(1, share_task(round_, forge(server, 4, round_.session))).recipients) == 3
