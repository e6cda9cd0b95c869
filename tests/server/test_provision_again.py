"""Running `provision` again: keys stay byte for byte; partners come, leave, rotate; stopped runs go on."""

import json
import shutil
import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kits import Operator, consortium, write

from client.deployment import load_client
from client.identity import load_identity
from client.participant import own_membership
from client.partner import load_partner
from common.certificates import load_certificate
from common.cli import main
from common.errors import ConfigError
from common.keyfiles import load_node_key, public_hex, public_line, replace_private
from common.secagg.roster import load_roster
from server.deployment import load_deployment, node_keys
from server.provision import command as provisioning


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    one = Operator(tmp_path, capsys)
    one.provision(consortium())
    return one


def everything(operator: Operator) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in operator.kits.rglob("*") if path.is_file()}


def with_partner(name: str, users: int = 900) -> dict[str, Any]:
    table = consortium()
    table["partners"].append({"name": name, "declared_users": users})
    return table


def without(name: str) -> dict[str, Any]:
    table = consortium()
    table["partners"] = [partner for partner in table["partners"] if partner["name"] != name]
    return table


def test_the_same_again_changes_nothing(operator: Operator) -> None:
    before = everything(operator)
    result = operator.provision(consortium())
    assert everything(operator) == before
    assert {name: partner["send"] for name, partner in result["partners"].items()} == {
        name: [] for name in result["partners"]
    }
    assert result["attention"] == []


def test_a_new_partner_gets_a_kit_and_everybody_a_roster(operator: Operator) -> None:
    keys, old = operator.private_files(), load_roster(operator.kits / "server" / "roster.toml")
    result = operator.provision(with_partner("shop-e", users=2400))
    assert {path: operator.private_files()[path] for path in keys} == keys
    assert result["partners"]["shop-e"]["send"] == ["the whole kit"]
    assert result["partners"]["shop-a"]["send"] == ["roster.toml"]
    assert any("every partner takes the new roster.toml" in note for note in result["notes"])
    assert any("data.partners is 5, it was 4" in note for note in result["notes"])
    new = load_roster(operator.kits / "server" / "roster.toml")
    assert new.hash != old.hash
    assert new.member(new.number("shop-a")).weight == 0.5  # 1200 of 2400
    for name in result["partners"]:
        assert load_roster(operator.partner(name) / "roster.toml").hash == new.hash
    assert "data]\npartners = 5" in (operator.kits / "server" / "run.toml").read_text().replace(
        'source = "movielens"\npath = ""\ncard = ""\n', ""
    )


def test_who_left_is_taken_out(operator: Operator) -> None:
    secret = (operator.partner("shop-b") / "identity.pem").read_bytes()
    result = operator.provision(without("shop-b"))
    assert list(result["removed"]) == ["shop-b"]
    assert not operator.partner("shop-b").exists()
    assert (operator.kits / "removed" / "shop-b" / "identity.pem").read_bytes() == secret
    deployment = load_deployment(operator.kits / "server" / "server.toml")
    assert list(node_keys(deployment)) == ["shop-a", "shop-c", "shop-d"]
    assert [member.name for member in load_roster(Path(deployment.roster)).members] == ["shop-a", "shop-c", "shop-d"]
    assert operator.provision(without("shop-b"))["removed"] == {}


def test_who_comes_back_gets_new_keys(operator: Operator) -> None:
    first = load_identity(operator.partner("shop-b") / "identity.pem")
    operator.provision(without("shop-b"))
    operator.provision(consortium())
    assert public_hex(load_identity(operator.partner("shop-b") / "identity.pem")) != public_hex(first)
    operator.provision(without("shop-b"))
    assert sorted(path.name for path in (operator.kits / "removed").iterdir()) == ["shop-b", "shop-b.2"]


def test_one_too_few_is_refused_before_anything_moves(operator: Operator) -> None:
    before = everything(operator)
    table = consortium()
    table["partners"] = table["partners"][:2]
    assert "at most the 2 partners" in operator.refused(table)
    assert everything(operator) == before


def test_a_kit_that_was_handed_over_and_deleted_is_not_made_again(operator: Operator) -> None:
    issued = json.loads((operator.kits / "issued.json").read_text())["partners"]["shop-a"]
    (operator.partner("shop-a") / "identity.pem").unlink()
    shutil.rmtree(operator.partner("shop-c"))
    result = operator.provision(with_partner("shop-e"))
    assert not (operator.partner("shop-a") / "identity.pem").exists()
    assert not (operator.partner("shop-c") / "node.key").exists()
    assert result["partners"]["shop-a"]["identity_public_key"] == issued["identity"]
    roster = load_roster(operator.kits / "server" / "roster.toml")
    assert roster.public_key(roster.number("shop-a")).hex() == issued["identity"]


def test_a_server_folder_that_was_moved_away_is_not_made_again(operator: Operator) -> None:
    for name in ("server.key", "server.crt", "signing.key"):
        (operator.kits / "server" / name).unlink()
    result = operator.provision(consortium())
    assert not (operator.kits / "server" / "server.key").exists()
    assert not (operator.kits / "server" / "signing.key").exists()
    assert any("server.crt is not here" in line for line in result["attention"])


def test_rotating_a_partner_keeps_the_old_keys_beside_the_new(operator: Operator) -> None:
    home = operator.partner("shop-b")
    old = {name: (home / name).read_bytes() for name in ("identity.pem", "node.key")}
    others = {path: data for path, data in operator.private_files().items() if path.parent != home}
    result = operator.provision(consortium(), "--rotate", "shop-b")
    for name, data in old.items():
        assert (home / name).read_bytes() != data
        assert (home / f"{name}.old").read_bytes() == data
        assert stat.S_IMODE((home / f"{name}.old").stat().st_mode) == 0o600
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert {path: operator.private_files()[path] for path in others} == others
    assert set(result["partners"]["shop-b"]["send"]) == {"identity.pem", "node.key", "node.pub", "roster.toml"}
    assert result["partners"]["shop-a"]["send"] == ["roster.toml"]
    own_membership(load_partner(home / "worker.toml"))
    line = public_line(load_node_key(home / "node.key").public_key())
    assert (operator.kits / "server" / "nodes" / "shop-b.pub").read_text().split()[:2] == line.split()
    operator.provision(consortium(), "--rotate", "shop-b")
    assert (home / "node.key.old").read_bytes() == old["node.key"]  # the first is still the first
    assert (home / "node.key.old.2").exists()


def test_rotating_nobody_or_a_partner_with_its_own_keys_is_refused(
    operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no kit was issued" in operator.refused(consortium(), "--rotate", "shop-x")
    assert main(["keys", "new", "--out", str(tmp_path / "k"), "--json"]) == 0
    public = json.loads(capsys.readouterr().out)
    table = consortium()
    own = {key: public[key] for key in ("identity_public_key", "node_public_key")}
    table["partners"][0] |= own
    result = operator.provision(table)
    assert result["partners"]["shop-a"]["identity_public_key"] == own["identity_public_key"]
    home = operator.partner("shop-a")
    assert not (home / "identity.pem").exists()  # what the operator made is put aside
    assert (home / "identity.pem.old").exists()
    assert "its keys were made at the partner" in operator.refused(table, "--rotate", "shop-a")
    operator.provision(consortium())  # the lines are gone from the file: what was issued stays
    assert not (home / "identity.pem").exists()
    assert "its keys were made at the partner" in operator.refused(consortium(), "--rotate", "shop-a")


def test_rotating_the_server_makes_a_new_certificate_under_the_same_authority(operator: Operator) -> None:
    server = operator.kits / "server"
    old, key, authority = ((server / name).read_bytes() for name in ("server.crt", "server.key", "ca.crt"))
    partners = {path: data for path, data in everything(operator).items() if "partners" in path.parts}
    result = operator.provision(consortium(), "--rotate-server")
    assert (server / "server.key").read_bytes() != key
    assert (server / "server.key.old").read_bytes() == key
    assert (server / "server.crt").read_bytes() != old
    assert (server / "ca.crt").read_bytes() == authority
    assert {path: data for path, data in everything(operator).items() if "partners" in path.parts} == partners
    assert result["attention"] == []
    certificate = load_certificate(server / "server.crt")
    certificate.verify_directly_issued_by(load_certificate(server / "ca.crt"))


def test_rotating_the_signing_key_sends_its_public_half_to_everybody(operator: Operator) -> None:
    old = (operator.kits / "server" / "signing.key").read_bytes()
    result = operator.provision(consortium(), "--rotate-signing")
    assert (operator.kits / "server" / "signing.key.old").read_bytes() == old
    assert all(partner["send"] == ["signing.pub"] for partner in result["partners"].values())


def test_another_host_asks_for_another_certificate(operator: Operator) -> None:
    table = consortium(server={"host": ["hush.example.org", "10.0.0.7"], "port": 8443})
    result = operator.provision(table)
    assert any("for localhost, 127.0.0.1, not for hush.example.org" in line for line in result["attention"])
    assert any("not for 10.0.0.7" in line for line in result["attention"])
    assert result["partners"]["shop-a"]["send"] == ["client.toml"]
    assert operator.provision(table, "--rotate-server")["attention"] == []
    assert load_client(operator.partner("shop-a") / "client.toml").superlink == "hush.example.org:8443"


def test_a_certificate_that_ends_soon_or_has_ended_is_said(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = load_certificate(operator.kits / "server" / "server.crt")
    days = (certificate.not_valid_after_utc - provisioning.utc_now()).total_seconds() / 86_400
    assert 364.9 < days <= 365
    now = provisioning.utc_now()
    for later, says in ((336, "ends on"), (366, "--rotate-server"), (3_651, "the authority's certificate ended")):
        monkeypatch.setattr(provisioning, "utc_now", lambda later=later: now + timedelta(days=later))
        assert any(says in line for line in operator.provision(consortium())["attention"]), later
    monkeypatch.setattr(provisioning, "utc_now", lambda: now + timedelta(days=334))
    assert operator.provision(consortium())["attention"] == []


def test_a_file_that_was_changed_by_hand_is_left_alone(operator: Operator) -> None:
    path = operator.partner("shop-a") / "worker.toml"
    mine = path.read_text().replace("clicks.parquet", "/data/mine.parquet")
    path.write_text(mine)
    assert operator.provision(consortium())["attention"] == []  # nothing new to tell
    table = consortium()
    table["partners"][0]["declared_users"] = 1100
    result = operator.provision(table)
    assert path.read_text() == mine
    assert load_partner(path).declared_users == 1200
    assert "declared_users = 1100" in (path.parent / "worker.toml.new").read_text()
    assert any("worker.toml was changed by hand" in line for line in result["attention"])
    path.write_text((path.parent / "worker.toml.new").read_text())
    assert operator.provision(table)["attention"] == []
    assert not (path.parent / "worker.toml.new").exists()


def test_a_key_that_was_swapped_is_noticed(operator: Operator) -> None:
    path = operator.partner("shop-a") / "identity.pem"
    right = path.read_bytes()
    path.write_bytes((operator.partner("shop-b") / "identity.pem").read_bytes())
    assert "another key than the one that was issued" in operator.refused(consortium())
    path.write_bytes(right)
    path.chmod(0o644)
    assert "others can read this key; chmod 600 it" in operator.refused(consortium())
    path.chmod(0o600)
    authority = operator.kits / "ca" / "ca.crt"
    authority.write_bytes((operator.kits / "server" / "server.crt").read_bytes())
    assert "not the authority that issued these kits" in operator.refused(consortium())


def test_without_the_authoritys_key_all_but_a_new_certificate_works(operator: Operator) -> None:
    (operator.kits / "ca" / "ca.key").unlink()
    operator.provision(with_partner("shop-e"))
    assert "bring it back: it signs the server's certificate" in operator.refused(consortium(), "--rotate-server")


@pytest.mark.parametrize("stop", range(8))
def test_a_run_that_was_stopped_anywhere_is_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Killed at the nth writing of a record: the keys that were made then are the keys of the finished kits."""
    operator, real, calls = Operator(tmp_path, capsys), provisioning.save_issued, []

    def save(*arguments: Any) -> None:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(1)
        real(*arguments)

    monkeypatch.setattr(provisioning, "save_issued", save)
    assert main(["provision", str(write(tmp_path, consortium())), "--out", str(operator.kits)]) == 1
    capsys.readouterr()
    made = operator.private_files()
    monkeypatch.setattr(provisioning, "save_issued", real)
    result = operator.provision(consortium())
    assert {path: operator.private_files()[path] for path in made} == made
    assert result["attention"] == []
    for name in result["partners"]:
        own_membership(load_partner(operator.partner(name) / "worker.toml"))


def test_a_rotation_that_was_stopped_before_it_was_written_down_is_said(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, real, calls = operator.private_files(), provisioning.save_issued, []

    def save(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 4:  # begun, server, signing, shop-a
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(provisioning, "save_issued", save)
    path = operator.home / "consortium.toml"
    assert main(["provision", str(path), "--out", str(operator.kits), "--rotate", "shop-a"]) == 1
    capsys.readouterr()
    monkeypatch.setattr(provisioning, "save_issued", real)
    home = operator.partner("shop-a")
    assert (home / "identity.pem.old").read_bytes() == old[home / "identity.pem"]
    assert "replace it on purpose (--rotate shop-a)" in operator.refused(consortium())
    operator.provision(consortium(), "--rotate", "shop-a")
    own_membership(load_partner(home / "worker.toml"))


def test_a_rotation_that_was_interrupted_is_said(operator: Operator) -> None:
    (operator.partner("shop-a") / "identity.pem.new").write_text("half")
    error = operator.refused(consortium(), "--rotate", "shop-a")
    assert "left by a rotation that was interrupted" in error
    with pytest.raises(ConfigError, match="interrupted"):
        replace_private(operator.partner("shop-a") / "identity.pem", b"")
