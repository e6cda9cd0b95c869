"""The pinned roster: numbers by name, one hash, and what no roster may hold."""

from pathlib import Path

import pytest

from common.errors import ConfigError, ProtocolError
from common.secagg.roster import Member, Roster, dump_roster, load_roster
from common.secagg.transcript import digest

KEYS = {name: f"{number:02x}" * 32 for number, name in enumerate(("alder", "birch", "cedar"), start=1)}
ROSTER = Roster(tuple(Member(name, KEYS[name], 0.5) for name in ("cedar", "alder", "birch")))


def test_numbers_are_places_in_name_order_from_one() -> None:
    assert [ROSTER.number(name) for name in ("alder", "birch", "cedar")] == [1, 2, 3]
    assert ROSTER.member(2).name == "birch"
    assert ROSTER.public_key(3) == bytes([3]) * 32
    assert len(ROSTER) == 3


def test_the_hash_is_of_all_members_in_name_order() -> None:
    parts = [part for name in ("alder", "birch", "cedar") for part in (name, KEYS[name], 2**31)]
    assert ROSTER.hash == digest("roster", *parts)
    assert ROSTER.hash == Roster(tuple(reversed(ROSTER.members))).hash


def test_every_name_key_and_weight_is_in_the_hash() -> None:
    found = {ROSTER.hash, Roster(ROSTER.members[:2]).hash}
    for change in (
        Member("ash", KEYS["alder"], 0.5),
        Member("alder", "0a" * 32, 0.5),
        Member("alder", KEYS["alder"], 0.5 + 2**-32),
    ):
        found.add(Roster((change, *ROSTER.members[1:])).hash)
    assert len(found) == 5


def test_weights_are_whole_multiples_of_two_to_minus_32() -> None:
    assert Member("a", "00" * 32, 1.0).units == 2**32
    assert Member("a", "00" * 32, 0.25).units == 2**30
    assert Member("a", "00" * 32, 2**-31).units == 2
    assert Member("a", "00" * 32, 1 / 3).units == round(2**32 / 3)


def test_who_is_not_there() -> None:
    with pytest.raises(ProtocolError, match="elm is not in the roster"):
        ROSTER.number("elm")
    for number in (0, -1, 4):
        with pytest.raises(ProtocolError, match=f"participant {number}: the roster has 3 members"):
            ROSTER.member(number)
        with pytest.raises(ProtocolError, match="the roster has 3 members"):
            ROSTER.public_key(number)


def test_names_and_keys_are_there_once() -> None:
    with pytest.raises(ConfigError, match="the name alder is there twice"):
        Roster((Member("alder", KEYS["alder"]), Member("alder", KEYS["birch"])))
    with pytest.raises(ConfigError, match=f"the public key {KEYS['alder']} is there twice"):
        Roster((Member("alder", KEYS["alder"]), Member("birch", KEYS["alder"])))


def test_a_roster_has_members_and_not_too_many() -> None:
    with pytest.raises(ConfigError, match="roster: 0 members, must be from 1 to 65536"):
        Roster(())
    many = tuple(Member(f"p{number}", f"{number:064x}") for number in range(2**16 + 1))
    with pytest.raises(ConfigError, match="roster: 65537 members"):
        Roster(many)


def test_a_file_gives_the_roster_back(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(dump_roster(ROSTER))
    assert load_roster(path) == ROSTER
    assert load_roster(path).hash == ROSTER.hash


@pytest.mark.parametrize(
    "line",
    [
        'name = "alder"',
        f'name = "alder"\npublic_key = "{"ab" * 31}"',
        f'name = "alder"\npublic_key = "{"AB" * 32}"',
        f'name = ""\npublic_key = "{"ab" * 32}"',
        f'name = "../alder"\npublic_key = "{"ab" * 32}"',
        f'name = "alder"\npublic_key = "{"ab" * 32}"\nweight = 0.0',
        f'name = "alder"\npublic_key = "{"ab" * 32}"\nweight = 1.5',
        f'name = "alder"\npublic_key = "{"ab" * 32}"\nweight = -0.5',
        f'name = "alder"\npublic_key = "{"ab" * 32}"\nweight = nan',
        f'name = "alder"\npublic_key = "{"ab" * 32}"\nsecret = "x"',
    ],
)
def test_files_that_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(f"[[member]]\n{line}\n")
    with pytest.raises(ConfigError):
        load_roster(path)
