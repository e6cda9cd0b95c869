"""Sensitive columns at a partner: `check` says so, features do not change, their values reach no message or file."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w
from hostile.hostile_round import Round
from hostile.hostile_server import HostileServer, Sent, partners
from partner_folder import write_partner
from sensitive_logs import CANARY, OTHER, card_table, sensitive_log, write_log

from client.erasure import Erased
from client.partner import PartnerConfig, load_partner
from client.preflight import Finding, preflight
from client.worker import Worker
from common.card import load_card
from common.cli import main
from common.clicks import read_clicks
from common.features import UserRows
from common.message_types import QUERY_JOIN
from common.messages import JoinTask, TrainingPlan

PLAN = TrainingPlan(1, "adam", 0.05, 0.0)


def bring(folder: Path, raw: pd.DataFrame, table: dict[str, dict]) -> None:
    """Gives a partner whose folder is there another log and card."""
    clicks, card = write_log(folder / "own", raw, table)
    path = folder / "partner.toml"
    config = tomllib.loads(path.read_text(encoding="utf-8")) | {"clicks": str(clicks), "card": str(card)}
    path.write_text(tomli_w.dumps(config), encoding="utf-8")


def partner(home: Path, encoder: Path, raw: pd.DataFrame, table: dict[str, dict]) -> PartnerConfig:
    write_partner(home, encoder)
    bring(home, raw, table)
    return load_partner(home / "partner.toml")


def finding(config: PartnerConfig) -> Finding:
    return next(one for one in preflight(config) if one.what == "sensitive columns")


# --- check --------------------------------------------------------------------------------------------------------


def test_check_says_that_none_is_a_feature_and_which_column_gives_one_away(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = card_table(context=("slot", "campaign"))
    config = partner(tmp_path, tiny_encoder, sensitive_log(), table)
    found = finding(config)
    assert (found.ok, found.warns) == (True, True)
    assert found.says.startswith(
        "age, gender: none of them is a feature; training does not read them; context:campaign"
    )
    assert f'with context:campaign = "autumn", 100% have age = "{CANARY}", and 57% of all users' in found.says
    main(["check", str(tmp_path / "partner.toml")])
    shown = capsys.readouterr().out
    assert "WARN  sensitive columns: age, gender: none of them is a feature" in shown
    assert not (tmp_path / "ledger.jsonl").exists()


def test_check_measures_what_does_not_give_one_away(tmp_path: Path, tiny_encoder: Path) -> None:
    found = finding(
        partner(tmp_path, tiny_encoder, sensitive_log(proxy=False), card_table(context=("slot", "campaign")))
    )
    assert (found.ok, found.warns) == (True, False)
    assert "no other column gives them away (at most " in found.says
    assert CANARY not in found.says


def test_a_column_that_cannot_be_compared_is_said_to_be_so(tmp_path: Path, tiny_encoder: Path) -> None:
    found = finding(partner(tmp_path, tiny_encoder, sensitive_log().assign(age="old"), card_table(("age",))))
    assert found.says == (
        "age: none of them is a feature; training does not read them; no other column could be compared with them"
    )


def test_a_sensitive_feature_is_to_be_mended(tmp_path: Path, tiny_encoder: Path) -> None:
    config = partner(tmp_path, tiny_encoder, sensitive_log(), card_table(context=("slot", "age")))
    found = finding(config)
    assert not found.ok
    assert "take it out of columns.context, or out of sensitive.columns" in found.says


def test_a_mistyped_sensitive_column_is_to_be_mended(tmp_path: Path, tiny_encoder: Path) -> None:
    """It would be kept out of nothing; training, which reads none of them, goes on."""
    config = partner(tmp_path, tiny_encoder, sensitive_log(), card_table(("age_band",), context=("slot", "age")))
    found = finding(config)
    assert not found.ok
    assert "no column age_band; mend the data card" in found.says
    assert Worker(config)._data().num_users == 240


def test_the_erased_are_not_measured(tmp_path: Path, tiny_encoder: Path) -> None:
    """The elder of the campaign are erased, and with them what the campaign gives away."""
    raw = sensitive_log()
    config = partner(tmp_path, tiny_encoder, raw, card_table(("age",), context=("slot", "campaign")))
    assert finding(config).warns
    Erased(Path(config.state)).add(raw.loc[raw["age"] == CANARY, "visitor"].unique())
    assert "could be compared" in finding(config).says


# --- features and messages ----------------------------------------------------------------------------------------


def swapped(raw: pd.DataFrame) -> pd.DataFrame:
    """The same log in which everybody is of another group."""
    return raw.assign(age=raw["age"].map({CANARY: OTHER, OTHER: "", "": CANARY}), gender="x")


def data_of(config: PartnerConfig) -> tuple[UserRows, str]:
    worker = Worker(config)
    return worker._data(), worker.join(JoinTask("run")).fingerprint


def test_features_and_layout_do_not_change_with_them(tmp_path: Path, tiny_encoder: Path) -> None:
    """Named, other values, not in the log at all: the same to the bit. Mapped as context, the planted bug: not so."""
    raw = sensitive_log(30)
    logs = {
        "named": (raw, card_table()),
        "swapped": (swapped(raw), card_table()),
        "gone": (raw.drop(columns=["age", "gender"]), card_table(sensitive=())),
        "planted": (raw, card_table(sensitive=(), context=("slot", "age"))),
    }
    found = {name: data_of(partner(tmp_path / name, tiny_encoder, *log)) for name, log in logs.items()}
    rows, layout = found["named"]
    for name in ("swapped", "gone"):
        other, other_layout = found[name]
        assert other_layout == layout
        for part in ("offset_U1", "text_N", "label_NL", "dense_NF", "history_NH"):
            assert getattr(rows, part).tobytes() == getattr(other, part).tobytes(), (name, part)
    assert found["planted"][0].dense_NF.tobytes() != rows.dense_NF.tobytes()


def rounds(
    root: Path, encoder: Path, change: Callable[[pd.DataFrame], pd.DataFrame], table: dict[str, Any]
) -> tuple[list[Sent], list[bytes]]:
    """Returns all that left four partners in two secure rounds, and what each contributed to the second."""
    with partners(root, encoder, privacy={"fixed_seed": 7, "epsilon": 100.0}) as server:
        for number in range(1, 5):
            bring(server.folder(number), change(sensitive_log(12, seed=number)), table)
        for number in range(1, 5):
            server.ask(number, QUERY_JOIN, JoinTask("run").to_record())
        for number in (1, 2):
            Round(server, round=number, plan=PLAN).run()
        _keeps_no_canary(server)
        return server.traffic, [server.contribution(number).tobytes() for number in range(1, 5)]


def _keeps_no_canary(server: HostileServer) -> None:
    for number in range(1, 5):
        facts = server.facts(number)
        for blob in (*facts["files"].values(), *facts["secrets"].values()):
            assert CANARY.encode() not in bytes(blob)


def test_promise_1_no_message_depends_on_a_sensitive_value(tmp_path: Path, tiny_encoder: Path) -> None:
    """What was contributed is the same to the bit under other values, and no value is in anything that left."""
    contributions = []
    for name, change in (("as-is", lambda raw: raw), ("swapped", swapped)):
        traffic, given = rounds(tmp_path / name, tiny_encoder, change, card_table())
        assert not [sent.error for sent in traffic if sent.error]
        assert {sent.kind for sent in traffic} >= {"query.join", "train.mask", "query.confirm", "query.unmask"}
        for sent in traffic:
            assert CANARY.encode() not in sent.body
            assert OTHER.encode() not in sent.body
        contributions.append(given)
    assert len(set(contributions[0])) == 4
    assert contributions[0] == contributions[1]


def test_the_card_that_is_hashed_names_columns_and_no_value(tmp_path: Path) -> None:
    clicks, path = write_log(tmp_path, sensitive_log(12), card_table())
    assert CANARY not in repr(load_card(path))
    assert CANARY not in repr(read_clicks(clicks, load_card(path), sensitive=True))
