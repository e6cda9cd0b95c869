"""`hushclick check` as a partner's operator runs it: the preflight, and a count of shared users in three steps."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from dp_events import ledger_at, release
from overlap_pair import change, write_pair
from partner_folder import write_partner

from client.anchors import HeadFile
from client.boundary import boundary
from client.deployment import ClientConfig
from client.partner import PartnerConfig
from common.cli import main
from common.config import to_table

A = [f"user-{number}" for number in range(120)]
B = [f"user-{number}" for number in range(100, 230)]  # 20 shared


@pytest.fixture
def pair(tmp_path: Path, tiny_encoder: Path) -> dict[str, PartnerConfig]:
    return write_pair(tmp_path, tiny_encoder, {"shop-a": A, "shop-b": B, "shop-c": B})


def check(folder: Path, *words: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["check", str(folder / "partner.toml"), *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def findings(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[bool, str]]:
    code, result = check(folder, capsys=capsys)
    found = {one["what"]: (one["ok"], one["says"]) for one in result["checks"]}
    assert code == (0 if all(ok for ok, _ in found.values()) else 1)
    assert result["ok"] == (code == 0)
    return found


def test_a_partner_in_order_passes(
    pair: dict[str, PartnerConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(tmp_path / "shop-a", capsys)
    assert list(found) == [
        *("card and clicks", "sensitive columns", "held-out rows", "encoder", "identity and roster", "noise"),
        *("ledger and budget", "state folder", "overlap"),
    ]
    assert all(ok for ok, _ in found.values()), found
    assert found["card and clicks"][1].startswith("120 rows of 120 users, clicked 50.0%; declared_users = 12")
    assert found["ledger and budget"][1].startswith("0 records, chain verified; epsilon 0.00 of 12 spent (server)")
    assert "member 1 of 3" in found["identity and roster"][1]
    assert not Path(pair["shop-a"].state).exists()  # a preflight leaves nothing behind
    assert not Path(pair["shop-a"].ledger).exists()
    assert main(["check", str(tmp_path / "shop-a" / "partner.toml")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("ok    ") == 9
    assert "sensitive columns: none is named in the data card ([sensitive])" in shown
    assert "not checked in this version: GPU, certificates, network (give client.toml)" in shown


def test_a_prior_far_from_a_partners_own_clicks_is_a_warning(
    pair: dict[str, PartnerConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path / "shop-a", model__prior_click_rate=0.03)
    code, result = check(tmp_path / "shop-a", capsys=capsys)
    (found,) = [one for one in result["checks"] if one["what"] == "card and clicks"]
    assert (code, found["ok"], found["warns"]) == (0, True, True)
    assert "50.0% of the rows are clicks, and model.prior_click_rate = 0.03" in found["says"]


def spoil(folder: Path, **keys: Any) -> None:
    """Changes keys of a partner's TOML, as its operator might."""
    path = folder / "partner.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    for key, value in keys.items():
        section, _, name = key.partition("__")
        (table[section] if name else table)[name or section] = value
    path.write_text(tomli_w.dumps(table), encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "what", "says"),
    [
        ({"clicks": "nowhere.csv"}, "card and clicks", "no such file"),
        ({"card": "nowhere.toml"}, "card and clicks", "no such data card"),
        ({"privacy__delta": 0.00999}, "card and clicks", "a delta of 1 / users"),
        ({"model__encoder": "path:nowhere"}, "encoder", "no such folder"),
        ({"identity": "nowhere.pem"}, "identity and roster", "no identity key"),
        ({"roster": "nowhere.toml"}, "identity and roster", "no such file"),
        ({"name": "shop-x"}, "identity and roster", "has no member shop-x"),
        ({"identity": "../shop-b/identity.pem"}, "identity and roster", "has no member shop-a with the public key"),
        ({"aggregation__least_participants": 5}, "identity and roster", "roster of 3 members"),
        ({"privacy__fixed_seed": 7}, "noise", "whoever knows it can remove the noise"),
        ({"privacy__mode": "none"}, "noise", "nothing protects"),
        ({"state": "clicks.parquet/state"}, "state folder", "cannot be written to"),
        ({"overlap__partners": ["shop-b", "nobody"]}, "overlap", "nobody: not another member"),
        ({"overlap__partners": ["shop-a"]}, "overlap", "shop-a: not another member"),
        ({"overlap__secret": "nowhere"}, "overlap", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named_beside_what_is_right(
    keys: dict[str, Any],
    what: str,
    says: str,
    pair: dict[str, PartnerConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(tmp_path / "shop-a", **keys)
    found = findings(tmp_path / "shop-a", capsys)
    ok, text = found.pop(what)
    assert not ok
    assert says in text
    for other in ("card and clicks", "encoder", "state folder"):
        assert other == what or found[other][0], found


def test_a_delta_of_one_over_the_users_is_the_bound(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = [f"user-{number}" for number in range(200)]
    write_pair(tmp_path, tiny_encoder, {"shop-a": users, "shop-b": users, "shop-c": users})
    for delta, ok in ((1 / 200, False), (1 / 201, True)):
        change(tmp_path / "shop-a", privacy={"delta": delta})
        assert findings(tmp_path / "shop-a", capsys)["card and clicks"][0] is ok


def test_a_ledger_is_verified_and_what_it_spent_is_said(
    pair: dict[str, PartnerConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(pair["shop-a"].ledger)
    ledger = ledger_at(path, "shop-a")
    ledger.reserve(release(noise_multiplier=2.0, sampling_rate=0.5, steps=10))
    ok, text = findings(tmp_path / "shop-a", capsys)["ledger and budget"]
    assert ok
    assert text.startswith("2 records, chain verified; epsilon ")
    assert not text.startswith("2 records, chain verified; epsilon 0.00")
    ledger.reserve(release(noise_multiplier=0.5, sampling_rate=1.0, steps=10, round=2))
    ok, text = findings(tmp_path / "shop-a", capsys)["ledger and budget"]
    assert not ok
    assert "of 12 is spent (server): every round will be refused" in text
    cut = path.read_bytes()
    kept = HeadFile(Path(pair["shop-a"].state))
    kept.keep(replace(ledger.head(), num_records=9))
    ok, text = findings(tmp_path / "shop-a", capsys)["ledger and budget"]
    assert not ok
    assert "does not contain the known record 9" in text
    (Path(pair["shop-a"].state) / "ledger-head.json").unlink()
    path.write_bytes(cut.replace(b'"steps":10', b'"steps":11', 1))
    ok, text = findings(tmp_path / "shop-a", capsys)["ledger and budget"]
    assert not ok
    assert "line 2" in text


def test_a_plain_partner_needs_no_roster_and_hears_what_that_means(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_partner(tmp_path / "plain", tiny_encoder)
    ok, text = findings(tmp_path / "plain", capsys)["identity and roster"]
    assert ok
    assert "the server sees every update" in text
    code, result = check(tmp_path / "plain", "--overlap", "ask", "--with", "shop-b", capsys=capsys)
    assert code == 2
    assert "identity or roster is unset" in result["error"]


def test_two_partners_count_their_shared_users(
    pair: dict[str, PartnerConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(tmp_path / "shop-b", privacy={"epsilon": 3.0, "delta": 2e-4})
    a, b = (str(tmp_path / name / "partner.toml") for name in ("shop-a", "shop-b"))
    assert main(["check", a, "--overlap", "ask", "--with", "shop-b", "--out", str(tmp_path / "mail")]) == 0
    asked = capsys.readouterr().out
    (request,) = (tmp_path / "mail").glob("overlap-shop-a-shop-b-*.request")
    assert request.name in asked.replace("\n", "")
    assert "Send it to shop-b" in asked
    assert main(["check", b, "--overlap", "answer", "--file", str(request), "--out", str(tmp_path / "mail")]) == 0
    (response,) = (tmp_path / "mail").glob("*.response")
    capsys.readouterr()
    assert main(["check", a, "--overlap", "count", "--file", str(response), "--out", str(tmp_path / "mail")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "20 of the 120 users of shop-a are users of shop-b too" in shown
    assert "the server and the public 15.00 0.0003" in shown  # 12 + 3 at 1e-4 + 2e-4
    assert "no epsilon covers it" in shown
    (written,) = (tmp_path / "mail").glob("*.json")
    result = json.loads(written.read_text(encoding="utf-8"))
    assert (result["shared_users"], result["own_users"], result["other_users_at_most"]) == (20, 120, 1024)
    assert result["user_of_both"]["broken"] == {"epsilon": 15.0, "delta": pytest.approx(3e-4)}
    # The session is over at both.
    for toml, step, file in ((b, "answer", request), (a, "count", response)):
        assert main(["check", toml, "--overlap", step, "--file", str(file), "--out", str(tmp_path / "2")]) == 1
        error = capsys.readouterr().err
        assert "answered already" in error or "no open request" in error
        assert "Traceback" not in error
    assert not (tmp_path / "2").exists()


def test_without_shared_users_the_assumption_holds(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair(tmp_path, tiny_encoder, {"shop-a": A, "shop-b": [f"x{number}" for number in range(100)]})
    _, asked = check(tmp_path / "shop-a", "--overlap", "ask", "--with", "shop-b", "--out", tmp_path, capsys=capsys)
    _, answered = check(
        tmp_path / "shop-b", "--overlap", "answer", "--file", asked["file"], "--out", tmp_path, capsys=capsys
    )
    words = ["--overlap", "count", "--file", answered["file"], "--out", str(tmp_path)]
    assert main(["check", str(tmp_path / "shop-a" / "partner.toml"), *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0 of the 120 users" in shown
    assert "each user is protected by one partner's epsilon" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "privacy.epsilon=3"], "takes no --set"),
        (["--out", "x"], "only together with --overlap"),
        (["--with", "shop-b"], "only together with --overlap"),
        (["--file", "x"], "only together with --overlap"),
        (["--overlap", "ask"], "needs --with NAME"),
        (["--overlap", "answer"], "needs --file REQUEST"),
        (["--overlap", "count"], "needs --file RESPONSE"),
        (["--overlap", "ask", "--with", "shop-b", "--file", "x"], "takes --with NAME alone"),
        (["--overlap", "count", "--file", "x", "--with", "shop-b"], "takes --file RESPONSE alone"),
        (["--overlap", "answer", "--file", "nowhere"], "no such file"),
        (["--overlap", "ask", "--with", "shop-x"], "both must name each other"),
    ],
)
def test_usage_is_refused_with_the_mend(
    words: list[str], says: str, pair: dict[str, PartnerConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = check(tmp_path / "shop-a", *words, capsys=capsys)
    assert code == 2
    assert says in result["error"]


@pytest.mark.parametrize(
    "value", [{"partners": "shop-b"}, {"least_users": 99}, {"days_between_answers": 0}, {"with": []}]
)
def test_the_table_is_checked(
    value: dict[str, Any], pair: dict[str, PartnerConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pair["shop-a"]
    table = to_table(config) | {"overlap": to_table(config.overlap) | value}
    (tmp_path / "shop-a" / "partner.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    code, result = check(tmp_path / "shop-a", capsys=capsys)
    assert code == 2
    assert f"overlap.{next(iter(value))}" in result["error"]


def test_a_kit_is_checked_with_what_connects_it(
    pair: dict[str, PartnerConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given a client.toml: one name, certificates and server, and in so many words whether the boundary is there."""
    home = tmp_path / "shop-a"
    (home / "client.toml").write_text(
        'kit = 1\nname = "shop-b"\nsuperlink = "localhost:1"\nworker = "partner.toml"\n', encoding="utf-8"
    )
    code = main(["check", str(home / "client.toml"), "--json"])
    found = {one["what"]: (one["ok"], one["says"]) for one in json.loads(capsys.readouterr().out)["checks"]}
    assert code == 1
    assert found["name"] == (False, "client.toml is of 'shop-b', worker.toml of 'shop-a': one kit, one name")
    assert found["boundary"][0] is False
    assert "NO BOUNDARY, shim_user in client.toml is unset" in found["boundary"][1]
    assert found["card and clicks"][0] is True
    missing = [says for what, (ok, says) in found.items() if not ok and what not in ("name", "boundary")]
    assert len(missing) >= 2  # neither authority nor node key lies there


@pytest.mark.parametrize(
    ("user", "root", "ok", "says"),
    [
        ("", True, False, "is unset"),
        ("daemon", False, False, "only root can start"),
        ("no-user-of-that-name", True, False, "is no user of this machine"),
        ("root", True, False, "is the worker's own user"),
        ("daemon", True, True, "what Flower runs is user daemon, the worker is root"),
    ],
)
def test_the_boundary_is_one_of_users_or_none(
    user: str, root: bool, ok: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getuid", lambda: 0 if root else 1)
    found, text = boundary(ClientConfig(name="a", superlink="localhost:1", shim_user=user), None)
    assert found is ok
    assert says in text
    assert found is not ("NO BOUNDARY" in text)
