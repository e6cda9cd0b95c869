"""Preparing a run: each partner gets what a real one brings, and a folder can be resumed only once it is whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import simulations.prepare
from client.partner import load_partner
from client.worker import Worker
from common.card import load_card
from common.clicks import read_clicks
from common.config import Config, load_config, parse_config
from common.errors import ConfigError, PretrainedError
from common.messages import JoinTask
from common.privacy.accounting import composed_epsilon
from common.privacy.calibrate import affordable_steps
from common.runfolder import RunFolder
from simulations.partners import build_partners
from simulations.prepare import declared, prepare
from simulations.sources import load_source
from simulations.spending import with_noise


def config_for(encoder: Path | str, **tables: dict[str, Any]) -> Config:
    table: dict[str, Any] = {
        "data": {
            "source": "generated",
            "partners": 3,
            "generator": {"users": 60, "items": 20, "impressions_per_user": 6},
        },
        "model": {"encoder": f"path:{encoder}", "width": 4, "hidden": 4},
        "round": {"num_rounds": 5, "local_steps": 2},
        "privacy": {"delta": 1e-4, "sampling_rate": 0.5},
    }
    return parse_config({name: table.get(name, {}) | tables.get(name, {}) for name in {**table, **tables}})


@pytest.fixture(scope="module")
def prepared(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunFolder]:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    return prepare(config_for(tiny_encoder), folder).config, folder


# --- the folder ---------------------------------------------------------------------------------------------------


def test_each_partner_finds_its_own_files(prepared: tuple[Config, RunFolder]) -> None:
    """What a partner reads back under its own card are its training rows of the partition, row for row."""
    config, folder = prepared
    logs = build_partners(load_source(config.data), config.data)
    for number, rows in enumerate(logs.training):
        partner = load_partner(folder.partner(number) / "partner.toml")
        assert partner.name == logs.names[number] == f"partner-{number:04d}"
        assert Path(partner.ledger) == folder.ledgers / f"{partner.name}.jsonl"
        assert Path(partner.state).is_dir()
        assert partner.declared_users == declared(rows["user"].nunique())
        assert partner.model == config.model
        assert partner.privacy == config.privacy
        read = read_clicks(Path(partner.clicks), load_card(Path(partner.card)), allow_one_class=True).rows
        pd.testing.assert_frame_equal(read, rows)


def test_users_are_of_one_partner_and_test_rows_of_none(prepared: tuple[Config, RunFolder]) -> None:
    _, folder = prepared
    parts = [pd.read_parquet(folder.partner(number) / "clicks.parquet") for number in range(3)]
    users = [set(part["user"]) for part in parts]
    assert sum(map(len, users)) == len(set.union(*users)) > 50
    central = pd.read_parquet(folder.central)
    key = ["user", "time", "item"]
    tested = central[central["evaluate"]].set_index(key).index
    assert len(tested) > 20
    for part in parts:
        assert not part.set_index(key).index.isin(tested).any()


def test_partners_start_from_their_folders(prepared: tuple[Config, RunFolder]) -> None:
    _, folder = prepared
    replies = [Worker(load_partner(folder.partner(number) / "partner.toml")).join(JoinTask("r")) for number in range(3)]
    assert len({reply.partner for reply in replies}) == 3
    assert len({reply.fingerprint for reply in replies}) == 1


def test_the_configuration_is_written_with_its_noise(prepared: tuple[Config, RunFolder]) -> None:
    config, folder = prepared
    assert load_config(folder.config) == config
    assert config.privacy.noise_multiplier is not None


def test_facts_and_timings_are_kept(prepared: tuple[Config, RunFolder]) -> None:
    _, folder = prepared
    kept = json.loads(folder.preparation.read_text())
    facts = kept["data"]
    assert facts["source"] == "generated"
    assert facts["partners"] == 3
    texts = {text for number in range(3) for text in pd.read_parquet(folder.partner(number) / "clicks.parquet")["text"]}
    texts |= set(pd.read_parquet(folder.central)["text"])
    assert facts["texts"]["distinct"] == len(texts) == facts["texts"]["encoded"] + facts["texts"]["reused"]
    assert set(kept["timings"]) == {"read_seconds", "encode_seconds"}


def test_a_second_run_reuses_every_text_and_is_the_same(
    prepared: tuple[Config, RunFolder], tiny_encoder: Path, tmp_path: Path
) -> None:
    _, folder = prepared
    again = prepare(config_for(tiny_encoder), RunFolder(tmp_path))
    assert again.facts["texts"]["encoded"] == 0
    for place in ("central.parquet", "partners/partner-0001/clicks.parquet", "config.toml"):
        assert (tmp_path / place).read_bytes() == (folder.root / place).read_bytes()


def test_the_catalogue_is_written_only_where_item_rates_are(
    prepared: tuple[Config, RunFolder], tiny_encoder: Path, tmp_path: Path
) -> None:
    _, folder = prepared
    assert not (folder.root / "catalogue.json").exists()
    config = config_for(tiny_encoder, privacy={"mode": "none"}, model={"item_rates": "exact"})
    prepare(config, RunFolder(tmp_path))
    items = json.loads((tmp_path / "catalogue.json").read_text())
    shown = {
        item
        for number in range(3)
        for item in pd.read_parquet(RunFolder(tmp_path).partner(number) / "clicks.parquet")["item"]
    }
    assert list(items) == sorted(items)
    assert shown <= set(items)
    rows = pd.read_parquet(RunFolder(tmp_path).partner(1) / "clicks.parquet")
    assert all(items[item] == domain for item, domain in zip(rows["item"], rows["domain"], strict=True))


def test_progress_is_told(tiny_encoder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    config = config_for(tiny_encoder, model={"max_tokens": 11})  # a cache of its own
    facts = prepare(config, RunFolder(tmp_path), lambda done, total: told.append((done, total))).facts
    total = facts["texts"]["distinct"]
    assert told[-1] == (total, total)


# --- what stops it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["write_central", "write_json", "write_clicks"])
def test_a_kill_leaves_nothing_that_could_be_resumed(
    where: str, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    folder = RunFolder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(simulations.prepare, where, kill)
        with pytest.raises(KeyboardInterrupt):
            prepare(config_for(tiny_encoder), folder)
    assert not folder.config.exists()
    prepare(config_for(tiny_encoder), folder)  # and the same folder can be prepared again
    assert folder.config.exists()


def test_a_missing_encoder_is_told_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("read the clicks first")

    monkeypatch.setattr(simulations.prepare, "load_source", read)
    with pytest.raises(PretrainedError):
        prepare(config_for(tmp_path / "none"), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_noise_that_does_not_exist_is_told_before_anything_is_read(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("read the clicks first")

    monkeypatch.setattr(simulations.prepare, "load_source", read)
    with pytest.raises(ConfigError, match="noise multiplier over 1000"):
        prepare(config_for(tiny_encoder, privacy={"epsilon": 1e-4}), RunFolder(tmp_path / "run"))


# --- noise and sizes ----------------------------------------------------------------------------------------------


def test_promise_4_the_noise_spends_the_budget_over_all_planned_steps_and_no_more() -> None:
    config = with_noise(config_for("none"))
    noise = config.privacy.noise_multiplier
    assert noise is not None
    assert composed_epsilon(((0.5, noise, 10),), 1e-4) <= 8.0
    assert composed_epsilon(((0.5, noise - 0.001, 10),), 1e-4) > 8.0
    assert affordable_steps(8.0, 1e-4, 0.5, noise) == 10
    assert replace(config, privacy=replace(config.privacy, noise_multiplier=None)) == config_for("none")


def test_noise_that_is_named_or_off_stays_as_it_is() -> None:
    for privacy in ({"noise_multiplier": 3.5}, {"mode": "none"}):
        config = config_for("none", privacy=privacy)
        assert with_noise(config) == config


@pytest.mark.parametrize(
    ("users", "said"),
    [(1, 1), (9, 9), (10, 10), (99, 99), (101, 100), (104, 100), (106, 110), (1234, 1200), (99_999, 100_000)],
)
def test_a_partner_publishes_two_digits_of_its_size(users: int, said: int) -> None:
    assert declared(users) == said
