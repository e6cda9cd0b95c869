"""A partner's own TOML: absolute paths, no guessed noise, and every mistake by name."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client.partner import PartnerConfig, dump_partner, load_partner
from common.config import ModelConfig, PrivacyConfig, parse_table, to_table
from common.errors import ConfigError

PARTNER = PartnerConfig(
    name="shop-1",
    clicks="logs/clicks.csv",
    card="card.toml",
    ledger="../ledger.jsonl",
    state="state",
    declared_users=1200,
    identity="identity.pem",
    roster="roster.toml",
    model=ModelConfig(width=8),
    privacy=PrivacyConfig(noise_multiplier=1.1, fixed_seed=3),
)


def table(**change: Any) -> dict[str, Any]:
    return to_table(PARTNER) | change


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in table().items() if key not in names}


def refusal(entries: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as refused:
        parse_table(PartnerConfig, entries)
    return str(refused.value)


def test_there_and_back() -> None:
    assert parse_table(PartnerConfig, tomllib.loads(dump_partner(PARTNER))) == PARTNER


def test_paths_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    home = tmp_path / "partners" / "one"
    home.mkdir(parents=True)
    (home / "partner.toml").write_text(dump_partner(PARTNER))
    config = load_partner(home / "partner.toml")
    assert Path(config.clicks) == home / "logs" / "clicks.csv"
    assert Path(config.card) == home / "card.toml"
    assert Path(config.ledger) == tmp_path / "partners" / "ledger.jsonl"
    assert Path(config.state) == home / "state"
    (home / "partner.toml").write_text(tomli_w.dumps(table(ledger="/var/lib/ledger.jsonl")))
    assert load_partner(home / "partner.toml").ledger == "/var/lib/ledger.jsonl"


def test_a_relative_path_to_the_file_gives_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "partner.toml").write_text(dump_partner(PARTNER))
    monkeypatch.chdir(tmp_path)
    assert Path(load_partner(Path("partner.toml")).clicks) == tmp_path / "logs" / "clicks.csv"


@pytest.mark.parametrize("key", ["name", "clicks", "card", "ledger", "state", "declared_users"])
def test_what_has_no_default_must_be_said(key: str) -> None:
    assert refusal(without(key)) == f"{key}: missing, and has no default"


@pytest.mark.parametrize("name", ["", " shop", "shop 1", "a/b", "../x", ".hidden", "-x", "shop\n", "läden", "a\0b"])
def test_names_are_plain(name: str) -> None:
    """A name becomes a file's name and a line in reports."""
    assert "name = " in refusal(table(name=name))


@pytest.mark.parametrize("name", ["a", "Shop.de_2-x", "0"])
def test_plain_names_pass(name: str) -> None:
    assert parse_table(PartnerConfig, table(name=name)).name == name


@pytest.mark.parametrize("users", [0, -1, True, 3.0, "12"])
def test_declared_users_are_a_positive_number(users: Any) -> None:
    assert "declared_users = " in refusal(table(declared_users=users))


def test_promise_2_the_partner_states_its_own_noise() -> None:
    text = refusal(table(privacy={"epsilon": 8.0}))
    assert text == 'shop-1: privacy.noise_multiplier is unset; a partner states its own noise (privacy.mode = "local")'
    assert parse_table(PartnerConfig, table(privacy={"mode": "none"})).privacy.noise_multiplier is None


def test_exact_counts_need_privacy_off() -> None:
    assert "not private" in refusal(table(model={"item_rates": "exact"}))
    parse_table(PartnerConfig, table(model={"item_rates": "exact"}, privacy={"mode": "none"}))


def test_a_typo_gets_a_hint() -> None:
    assert refusal(table(declared_user=3)) == "declared_user: unknown key; did you mean declared_users?"
    text = refusal(table(privacy={"noise_multiplyer": 1.0, "noise_multiplier": 1.0}))
    assert text == "privacy.noise_multiplyer: unknown key; did you mean privacy.noise_multiplier?"


def test_a_path_of_another_type_is_named(tmp_path: Path) -> None:
    (tmp_path / "partner.toml").write_text(tomli_w.dumps(table(clicks=3)))
    with pytest.raises(ConfigError, match="clicks = 3"):
        load_partner(tmp_path / "partner.toml")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_partner(tmp_path / "partner.toml")
    (tmp_path / "partner.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_partner(tmp_path / "partner.toml")


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PARTNER.declared_users = 5  # type: ignore[misc]
