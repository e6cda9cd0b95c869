"""Counts of shared users between two partners' folders: right, silent about who, and refused wherever it should be."""

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from overlap_pair import NAMES, NOW, change, write_pair

from client.identity import load_identity
from client.overlap.answers import Answer, AnswerLog
from client.overlap.composition import NOTHING, Bound, Stated, for_a_user_of_both, span_of, stated
from client.overlap.exchange import Overlap, _key_check
from client.overlap.files import (
    MOST_POINTS,
    Request,
    Response,
    bucket,
    parse_file,
    write_file,
)
from client.overlap.identifiers import session_key
from client.overlap.points import masked, new_secret
from client.partner import PartnerConfig
from common.config import PrivacyConfig
from common.errors import ConfigError, DataError, HushclickError, LedgerError, ProtocolError, UsageError
from common.secagg.roster import load_roster

DAY = 86_400
A = [f"user-{number}" for number in range(120)]
B = [f" user-{number}\u200b" for number in range(83, 240)]  # 37 shared, in another spelling
C = [f"other-{number}" for number in range(110)]


def at(days: float) -> Any:
    return lambda: NOW + days * DAY


@pytest.fixture
def fresh(tmp_path: Path, tiny_encoder: Path) -> dict[str, PartnerConfig]:
    """Partners for tests that leave something in a state folder."""
    return write_pair(tmp_path, tiny_encoder, dict(zip(NAMES, (A, B, C), strict=True)))


@pytest.fixture
def fresh_files(fresh: dict[str, PartnerConfig], tmp_path: Path) -> tuple[Path, Path]:
    """A request of shop-a to shop-b, and its response."""
    return asked_and_answered(fresh, tmp_path / "out")


def asked_and_answered(partners: dict[str, PartnerConfig], out: Path) -> tuple[Path, Path]:
    request = Overlap(partners["shop-a"], now=at(0)).ask("shop-b", out)
    return request, Overlap(partners["shop-b"], now=at(0)).answer(request, out)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> dict[str, PartnerConfig]:
    """The same partners for all tests in which every file is refused, or is only read."""
    return write_pair(tmp_path_factory.mktemp("three"), tiny_encoder, dict(zip(NAMES, (A, B, C), strict=True)))


@pytest.fixture(scope="module")
def played(three: dict[str, PartnerConfig], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return asked_and_answered(three, tmp_path_factory.mktemp("played"))


@pytest.fixture
def files(played: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of a request of shop-a to shop-b, and of its response."""
    request, response = (tmp_path / path.name for path in played)
    request.write_bytes(played[0].read_bytes())
    response.write_bytes(played[1].read_bytes())
    return request, response


@pytest.fixture(scope="module")
def unanswered(three: dict[str, PartnerConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A request of shop-c to shop-b that is good, and that no test has answered."""
    return Overlap(three["shop-c"], now=at(0)).ask("shop-b", tmp_path_factory.mktemp("unanswered"))


def exchange(asker: PartnerConfig, answerer: PartnerConfig, out: Path, days: float = 0) -> int:
    request = Overlap(asker, now=at(days)).ask(answerer.name, out)
    response = Overlap(answerer, now=at(days)).answer(request, out)
    return Overlap(asker, now=at(days)).count(response).shared


def test_the_count_is_that_of_the_sets(fresh: dict[str, PartnerConfig], tmp_path: Path) -> None:
    assert exchange(fresh["shop-a"], fresh["shop-b"], tmp_path) == 37
    assert exchange(fresh["shop-b"], fresh["shop-a"], tmp_path) == 37
    assert exchange(fresh["shop-a"], fresh["shop-c"], tmp_path) == 0


def test_all_and_with_a_secret(tmp_path: Path, tiny_encoder: Path) -> None:
    (tmp_path / "secret").write_text("5a" * 32 + "\n")
    (tmp_path / "secret").chmod(0o600)
    pair = write_pair(tmp_path, tiny_encoder, {"shop-a": A, "shop-b": A}, secret="../secret")
    assert exchange(pair["shop-a"], pair["shop-b"], tmp_path) == len(A)


def test_identifiers_come_from_a_file_where_one_is_named(tmp_path: Path, tiny_encoder: Path) -> None:
    pair = write_pair(tmp_path, tiny_encoder, {"shop-a": A, "shop-b": C}, identifiers="people.txt", fold_case=True)
    people = [*(f"P{number}@x.example" for number in range(130)), "", "p0@x.example"]
    (tmp_path / "shop-a" / "people.txt").write_text("\ufeff" + "\r\n".join(people), encoding="utf-8")
    (tmp_path / "shop-b" / "people.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"overlap\.identifiers: .*not UTF-8"):
        Overlap(pair["shop-b"]).ask("shop-a", tmp_path)
    people = [f" p{number}@X.example" for number in range(30, 230)]
    (tmp_path / "shop-b" / "people.txt").write_text("\n".join(people), encoding="utf-8")
    request = Overlap(pair["shop-a"], now=at(0)).ask("shop-b", tmp_path / "2")
    response = Overlap(pair["shop-b"], now=at(0)).answer(request, tmp_path / "2")
    counted = Overlap(pair["shop-a"]).count(response)
    assert (counted.shared, counted.own_users, counted.answerer_points) == (100, 130, 1024)


def hashes_of(identifier: str) -> Iterator[bytes]:
    """What a careless protocol would show of an identifier."""
    text = identifier.encode()
    yield text
    for name in ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b"):
        yield from (hashlib.new(name, text).digest(), hashlib.new(name, text).hexdigest().encode())


def test_no_file_shows_an_identifier_or_a_hash_of_one(
    fresh_files: tuple[Path, Path], fresh: dict[str, PartnerConfig], tmp_path: Path
) -> None:
    Overlap(fresh["shop-a"]).count(fresh_files[1])
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "clicks.parquet"]
    assert {path.name for path in left} >= {fresh_files[0].name, fresh_files[1].name, "answers.jsonl"}
    shown = b"".join(path.read_bytes() for path in left)
    for identifier in {*A, *B, *(name.strip(" \u200b") for name in B)}:
        assert not [found for found in hashes_of(identifier) if found in shown], identifier


def test_a_point_is_told_by_no_key_that_the_file_names(
    files: tuple[Path, Path], three: dict[str, PartnerConfig]
) -> None:
    """Without a secret the session's key is public: the mask alone must stand between a guess and a point."""
    header, points = parse_file(files[0].read_bytes(), Request, "asker", load_roster(Path(three["shop-a"].roster)))
    key = session_key(three["shop-b"].overlap, header.session, "shop-a", "shop-b")
    guesses = set(masked((1).to_bytes(32), key, A))
    hashed = {hmac.digest(key, bytes(4) + one.encode(), "sha256") for one in A}
    assert not (guesses | hashed) & set(points)
    other = set(masked(new_secret(lambda count: b"\x07" * count), key, A))
    assert not other & set(points)


def test_each_session_has_other_points(three: dict[str, PartnerConfig], tmp_path: Path) -> None:
    roster, seen = load_roster(Path(three["shop-a"].roster)), []
    for turn in range(2):
        path = Overlap(three["shop-a"]).ask("shop-b", tmp_path / str(turn))
        seen.append(set(parse_file(path.read_bytes(), Request, "asker", roster)[1]))
    assert not seen[0] & seen[1]


def test_sizes_are_powers_of_two_and_the_order_says_nothing(
    files: tuple[Path, Path], three: dict[str, PartnerConfig]
) -> None:
    assert [bucket(users) for users in (1, 1024, 1025, 2048, 100_000, MOST_POINTS)] == [
        *(1024, 1024, 2048, 2048, 131_072, MOST_POINTS)
    ]
    with pytest.raises(UsageError, match="at most"):
        bucket(MOST_POINTS + 1)
    roster = load_roster(Path(three["shop-a"].roster))
    header, points = parse_file(files[0].read_bytes(), Request, "asker", roster)
    answered, doubled = parse_file(files[1].read_bytes(), Response, "answerer", roster)
    assert (header.points, len(points), answered.points, answered.own_points, len(doubled)) == (1024,) * 4 + (2048,)
    assert points == sorted(points)
    assert doubled[:1024] == sorted(doubled[:1024])
    assert doubled[1024:] == sorted(doubled[1024:])


ALTERED = "not signed by|not a file of|cut short|its header|not a re|both need the same roster"


def altered(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [0, 20, 90, 100, 300, -1, -20_000])
def test_an_altered_request_is_refused(
    place: int, unanswered: Path, three: dict[str, PartnerConfig], tmp_path: Path
) -> None:
    path = tmp_path / "request"
    path.write_bytes(unanswered.read_bytes())
    altered(path, place)
    with pytest.raises(ProtocolError, match=ALTERED):
        Overlap(three["shop-b"], now=at(0)).answer(path, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("place", [0, 20, 90, 100, 300, -1, -40_000])
def test_an_altered_response_is_refused(place: int, files: tuple[Path, Path], three: dict[str, PartnerConfig]) -> None:
    altered(files[1], place)
    with pytest.raises(ProtocolError, match=ALTERED):
        Overlap(three["shop-a"]).count(files[1])


def test_what_is_no_such_file_is_refused(
    three: dict[str, PartnerConfig], files: tuple[Path, Path], tmp_path: Path
) -> None:
    b, path = Overlap(three["shop-b"]), tmp_path / "file"
    with pytest.raises(UsageError, match="no such file"):
        b.answer(path, tmp_path)
    whole = files[0].read_bytes()
    for data in (
        b"",
        b"PK",
        whole[:40],
        whole[:200],
        whole[:-1],
        whole + b"\0",
        b"hushclick-overlap\n" + b"\xff" * 100,
    ):
        path.write_bytes(data)
        with pytest.raises(ProtocolError):
            b.answer(path, tmp_path)
    with pytest.raises(ProtocolError, match="not a request of version 1"):
        b.answer(files[1], tmp_path)
    with pytest.raises(ProtocolError, match="not a response of version 1"):
        b.count(files[0])
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ProtocolError, match="which no overlap file has"):
        b.answer(path, tmp_path)


def forged(three: dict[str, PartnerConfig], source: Path, kind: Any, signer: str, **change: Any) -> bytes:
    """Returns a file with another header (or points), signed by a partner of the forger's choice."""
    sender = "asker" if kind is Request else "answerer"
    header, points = parse_file(source.read_bytes(), kind, sender, load_roster(Path(three["shop-a"].roster)))
    points = change.pop("with_points", points)
    return write_file(replace(header, **change), points, load_identity(Path(three[signer].identity)))


@pytest.mark.parametrize(
    ("signer", "change", "says"),
    [
        ("shop-a", {}, "not signed by shop-c"),
        ("shop-b", {}, "not signed by shop-c"),
        ("shop-a", {"asker": "nobody"}, "nobody is not in the roster"),
        ("shop-c", {"answerer": "shop-a"}, "this partner is shop-b"),
        ("shop-b", {"asker": "shop-b"}, "this partner is shop-b"),
        ("shop-c", {"roster": "00" * 32}, "the same roster"),
        ("shop-c", {"points": 2048}, "2048 points"),
        ("shop-c", {"fold_case": True}, "fold_case = true"),
        ("shop-c", {"key_check": "00" * 32}, r"overlap\.secret"),
        ("shop-c", {"least_users": 99}, "99 users or more"),
        ("shop-c", {"time": int(NOW) - 31 * DAY}, "31 days ago"),
        ("shop-c", {"time": int(NOW) + 2 * DAY}, "in the future"),
    ],
)
def test_a_request_that_is_not_for_this_pair_and_policy_is_refused(
    signer: str, change: dict[str, Any], says: str, unanswered: Path, three: dict[str, PartnerConfig], tmp_path: Path
) -> None:
    (tmp_path / "request").write_bytes(forged(three, unanswered, Request, signer, **change))
    with pytest.raises(ProtocolError, match=says):
        Overlap(three["shop-b"], now=at(0)).answer(tmp_path / "request", tmp_path)
    assert "shop-c" not in {one.asker for one in AnswerLog(log_of(three["shop-b"])).answers()}


def log_of(config: PartnerConfig) -> Path:
    return Path(config.state) / "overlap" / "answers.jsonl"


def test_points_twice_or_off_the_curve_are_refused(
    files: tuple[Path, Path], three: dict[str, PartnerConfig], tmp_path: Path
) -> None:
    _, points = parse_file(files[0].read_bytes(), Request, "asker", load_roster(Path(three["shop-a"].roster)))
    b = Overlap(three["shop-b"], now=at(20))
    cases = {
        "ascending order": [points[0], *points[:-1]],
        "each once": points[::-1],
        "not on the curve": [*points[:-1], b"\xff" * 32],
    }
    for says, wrong in cases.items():
        (tmp_path / "wrong").write_bytes(
            forged(three, files[0], Request, "shop-a", session="ab" * 16, with_points=wrong, key_check=check(three))
        )
        with pytest.raises(ProtocolError, match=says):
            replace_days(b, 1).answer(tmp_path / "wrong", tmp_path)


def check(three: dict[str, PartnerConfig]) -> str:
    """The key check of session abab... without a secret."""
    return _key_check(session_key(three["shop-b"].overlap, "ab" * 16, "shop-a", "shop-b"))


def replace_days(overlap: Overlap, days: int) -> Overlap:
    policy = replace(overlap.config.overlap, days_between_answers=days)
    return Overlap(replace(overlap.config, overlap=policy), now=overlap.now)


@pytest.mark.parametrize(
    ("signer", "change", "says"),
    [
        ("shop-c", {}, "not signed by shop-b"),
        ("shop-c", {"answerer": "shop-c"}, "sent to shop-b"),
        ("shop-b", {"asker": "shop-c"}, "answers shop-c"),
        ("shop-b", {"session": "ab" * 16}, "no open request"),
        ("shop-b", {"request": "00" * 32}, "does not answer the request"),
        ("shop-b", {"points": 2048, "own_points": 1024}, "3072 points"),
    ],
)
def test_a_response_to_something_else_is_refused(
    signer: str, change: dict[str, Any], says: str, files: tuple[Path, Path], three: dict[str, PartnerConfig]
) -> None:
    files[1].write_bytes(forged(three, files[1], Response, signer, **change))
    with pytest.raises(ProtocolError, match=says):
        Overlap(three["shop-a"]).count(files[1])


def test_a_response_in_which_a_point_is_there_twice_is_refused(
    files: tuple[Path, Path], three: dict[str, PartnerConfig]
) -> None:
    """Else the answerer could have one shared user counted many times."""
    _, points = parse_file(files[1].read_bytes(), Response, "answerer", load_roster(Path(three["shop-a"].roster)))
    for wrong in ([points[0], *points[:1023], *points[1024:]], [*points[:1024], points[1024], *points[1024:-1]]):
        files[1].write_bytes(forged(three, files[1], Response, "shop-b", with_points=wrong))
        with pytest.raises(ProtocolError, match="each once"):
            Overlap(three["shop-a"]).count(files[1])


def test_a_request_is_answered_once_and_a_partner_seldom(
    fresh_files: tuple[Path, Path], fresh: dict[str, PartnerConfig], tmp_path: Path
) -> None:
    a, b = fresh["shop-a"], fresh["shop-b"]
    with pytest.raises(ProtocolError, match="answered already"):
        Overlap(b, now=at(29)).answer(fresh_files[0], tmp_path / "again")
    new = Overlap(a, now=at(29)).ask("shop-b", tmp_path / "new")
    with pytest.raises(ProtocolError, match=r"not before 2027-02-14"):
        Overlap(b, now=at(29.9)).answer(new, tmp_path / "new")
    assert exchange(fresh["shop-c"], b, tmp_path, days=1) == 0  # another partner is another matter
    response = Overlap(b, now=at(30)).answer(new, tmp_path / "new")
    assert Overlap(a).count(response).shared == 37
    log = log_of(b).read_text().splitlines()
    assert [json.loads(line)["asker"] for line in log] == ["shop-a", "shop-c", "shop-a"]
    assert json.loads(log[0])["request"] == hashlib.sha256(fresh_files[0].read_bytes()).hexdigest()
    assert json.loads(log[0])["response"] == hashlib.sha256(fresh_files[1].read_bytes()).hexdigest()


@pytest.mark.parametrize("harm", ["altered", "removed", "cut", "not json"])
def test_a_damaged_log_answers_nothing(harm: str, fresh: dict[str, PartnerConfig], tmp_path: Path) -> None:
    b = fresh["shop-b"]
    path = log_of(b)
    for session, name in (("aa" * 16, "shop-a"), ("bb" * 16, "shop-c")):
        AnswerLog(path).append(Answer(int(NOW), session, name, "00" * 32, "11" * 32, 1024, 1024))
    assert [answer.asker for answer in AnswerLog(path).answers()] == ["shop-a", "shop-c"]
    first, second = path.read_bytes().splitlines(keepends=True)
    harmed = {
        "altered": first.replace(b"shop-a", b"shop-x") + second,
        "removed": second,
        "cut": first + second[:-9],
        "not json": first + second + b"{}\n",
    }
    path.write_bytes(harmed[harm])
    request = Overlap(fresh["shop-a"], now=at(99)).ask("shop-b", tmp_path / "new")
    with pytest.raises(LedgerError, match="damaged"):
        Overlap(b, now=at(99)).answer(request, tmp_path / "new")


def test_a_session_that_is_closed_is_over(fresh_files: tuple[Path, Path], fresh: dict[str, PartnerConfig]) -> None:
    a = Overlap(fresh["shop-a"])
    counted = a.count(fresh_files[1])
    assert Overlap(fresh["shop-a"]).count(fresh_files[1]) == counted  # a crash before it is written down loses nothing
    a.close(counted.session)
    with pytest.raises(ProtocolError, match="no open request"):
        Overlap(fresh["shop-a"]).count(fresh_files[1])


def test_the_askers_secret_is_sealed_on_its_disk(
    fresh_files: tuple[Path, Path], fresh: dict[str, PartnerConfig]
) -> None:
    (kept,) = (path for path in (Path(fresh["shop-a"].state) / "overlap").iterdir() if path.name != "lock")
    assert b"secret" not in kept.read_bytes()
    altered(kept, 30)
    with pytest.raises(ProtocolError, match="damaged"):
        Overlap(fresh["shop-a"]).count(fresh_files[1])


def test_nobody_is_answered_or_asked_unless_both_say_so(fresh: dict[str, PartnerConfig], tmp_path: Path) -> None:
    a, b = fresh["shop-a"], fresh["shop-b"]
    silent = replace(b, overlap=replace(b.overlap, partners=("shop-c",)))
    request = Overlap(a).ask("shop-b", tmp_path / "out")
    with pytest.raises(ProtocolError, match=r"overlap\.partners of this partner does not name it"):
        Overlap(silent).answer(request, tmp_path)
    for config, peer in ((silent, "shop-a"), (a, "shop-a"), (a, "nobody")):
        with pytest.raises(UsageError, match="both must name each other"):
            Overlap(config).ask(peer, tmp_path)
    assert PartnerConfig.__dataclass_fields__["overlap"].default_factory().partners == ()  # type: ignore[misc]


def test_few_users_neither_ask_nor_answer(fresh: dict[str, PartnerConfig], tmp_path: Path) -> None:
    a, b = fresh["shop-a"], fresh["shop-b"]
    strict = {config.name: replace(config, overlap=replace(config.overlap, least_users=121)) for config in (a, b)}
    with pytest.raises(ProtocolError, match="120 users here"):
        Overlap(strict["shop-a"]).ask("shop-b", tmp_path)
    request = Overlap(strict["shop-b"]).ask("shop-a", tmp_path)
    with pytest.raises(ProtocolError, match="120 users here"):
        Overlap(strict["shop-a"]).answer(request, tmp_path)
    assert not log_of(a).exists()


def test_secrets_that_differ_or_cannot_be_kept_are_named(fresh: dict[str, PartnerConfig], tmp_path: Path) -> None:
    a, b = fresh["shop-a"], fresh["shop-b"]
    secret = tmp_path / "secret"
    with_one = replace(a, overlap=replace(a.overlap, secret=str(secret)))
    with pytest.raises(ConfigError, match="cannot be read"):
        Overlap(with_one).ask("shop-b", tmp_path)
    secret.write_text("ab" * 31)
    with pytest.raises(ConfigError, match="64 hex digits"):
        Overlap(with_one).ask("shop-b", tmp_path)
    secret.write_text("ab" * 32)
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Overlap(with_one).ask("shop-b", tmp_path)
    secret.chmod(0o600)
    request = Overlap(with_one).ask("shop-b", tmp_path)
    assert b"ab" * 32 not in request.read_bytes()
    with pytest.raises(ProtocolError, match=r"another overlap\.secret"):
        Overlap(b).answer(request, tmp_path)


def test_no_file_is_overwritten(three: dict[str, PartnerConfig], tmp_path: Path) -> None:
    fixed = Overlap(three["shop-a"], random=lambda count: b"\x01" * count, now=at(0))
    path = tmp_path / f"overlap-shop-a-shop-b-{'01' * 4}.request"
    path.write_text("mine")
    small = replace(fixed.config, overlap=replace(fixed.config.overlap, partners=("shop-b",)))
    drawn = iter(range(10**6))

    def random(count: int) -> bytes:
        number = next(drawn)
        return b"\x01" * count if number == 0 else hashlib.shake_128(number.to_bytes(4)).digest(count)

    with pytest.raises(HushclickError, match="is there already"):
        Overlap(small, random=random, now=at(0)).ask("shop-b", tmp_path)
    assert path.read_text() == "mine"


LOCAL = Stated("local", "user", 1e-5, None, 8.0, 8.0, 8.0)


def test_a_user_of_both_in_local_mode_by_hand() -> None:
    found = for_a_user_of_both(LOCAL, replace(LOCAL, delta=2e-5, server=2.0, partner=2.0, broken=2.0))
    assert set(found) == {"server", "partner", "broken"}
    for bound in found.values():
        assert (bound.epsilon, bound.delta) == (10.0, pytest.approx(3e-5))


def test_a_user_of_both_in_one_sum_by_hand() -> None:
    """Group privacy: 1e-6 + e^1 1e-6 = 3.718e-6 is less than 1e-6 + e^2 1e-6 = 8.389e-6."""
    one, other = (
        Stated("distributed", "user", 1e-6, None, 1.0, None, 4.0),
        Stated("distributed", "user", 1e-6, None, 2.0, 3.0, 5.0),
    )
    found = for_a_user_of_both(one, other)
    assert (found["server"].epsilon, found["server"].delta) == (3.0, pytest.approx(3.71828e-6, rel=1e-5))
    assert for_a_user_of_both(other, one)["server"].delta == pytest.approx(3.71828e-6, rel=1e-5)
    assert found["partner"] == NOTHING
    assert found["broken"] == Bound(9.0, 2e-6)


def test_where_nothing_holds_it_says_nothing() -> None:
    none = stated(PrivacyConfig(mode="none"))
    assert set(for_a_user_of_both(LOCAL, none).values()) == {NOTHING}
    assert set(for_a_user_of_both(LOCAL, replace(LOCAL, unit="impression")).values()) == {NOTHING}
    large = Stated("distributed", "user", 1e-3, None, 300.0, 900.0, 900.0)
    assert for_a_user_of_both(large, large)["server"] == NOTHING  # exp(300) 1e-3 is no probability


def test_a_policy_states_its_bounds_and_the_least_in_local_mode() -> None:
    assert stated(PrivacyConfig(epsilon=8, epsilon_broken=6, delta=1e-6)) == Stated(
        "local", "user", 1e-6, None, 6, 6, 6
    )
    shared = PrivacyConfig(mode="distributed", epsilon=1, epsilon_broken=6, delta=1e-6)
    assert stated(shared) == Stated("distributed", "user", 1e-6, None, 1.0, None, 6.0)


def test_the_response_carries_the_answerers_policy(tmp_path: Path, tiny_encoder: Path) -> None:
    pair = write_pair(tmp_path, tiny_encoder, {"shop-a": A, "shop-b": B})
    b = change(tmp_path / "shop-b", privacy={"epsilon": 3.0, "delta": 1e-6, "period_days": 14})
    request = Overlap(pair["shop-a"]).ask("shop-b", tmp_path)
    assert Overlap(pair["shop-a"]).count(Overlap(b).answer(request, tmp_path)).stated == Stated(
        "local", "user", 1e-6, 14, 3.0, 3.0, 3.0
    )


@pytest.mark.parametrize(("one", "other", "span"), [(None, None, None), (30, None, 30), (None, 7, 7), (30, 7, 7)])
def test_a_sum_holds_for_the_shorter_period(one: int | None, other: int | None, span: int | None) -> None:
    assert span_of(replace(LOCAL, period_days=one), replace(LOCAL, period_days=other)) == span


def test_a_key_is_of_one_session_one_pair_and_one_secret(three: dict[str, PartnerConfig], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("cd" * 32)
    (tmp_path / "secret").chmod(0o600)
    policy = three["shop-a"].overlap
    with_secret = replace(policy, secret=str(tmp_path / "secret"))
    places = [("aa" * 16, "shop-a", "shop-b"), ("bb" * 16, "shop-a", "shop-b"), ("aa" * 16, "shop-b", "shop-a")]
    keys = [session_key(one, *place) for one in (policy, with_secret) for place in places]
    assert len(set(keys)) == 6
    assert session_key(with_secret, *places[0]) == keys[3]
