"""Label-only privacy at one partner: one answer for ever, nothing made of true labels, one charge per key."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import random_rows
from partner_folder import noisy_labels, task_for, write_partner

from client.overlap.composition import NOTHING, for_a_user_of_both, stated
from client.partner import PartnerConfig, load_partner
from client.preflight import preflight
from client.worker import Worker
from common.cli import main
from common.clicks import write_clicks
from common.config import parse_config
from common.errors import BudgetExhausted, ConfigError, LedgerError
from common.privacy.ledger import Ledger

ROWS = random_rows(12)
LABELS: dict[str, Any] = {"mode": "label", "epsilon": 1.0, "noise_multiplier": None, "sampling_rate": 1.0}


def label_partner(home: Path, encoder: Path, rows: pd.DataFrame = ROWS, **privacy: Any) -> PartnerConfig:
    return write_partner(home, encoder, rows, **(LABELS | privacy))


@pytest.fixture
def shop(tmp_path: Path, tiny_encoder: Path) -> PartnerConfig:
    return label_partner(tmp_path / "shop", tiny_encoder)


def answers(config: PartnerConfig, rows: pd.DataFrame = ROWS) -> np.ndarray:
    found: np.ndarray = noisy_labels(config).flipped(rows)["clicked"].to_numpy()
    return found


def opposite(rows: pd.DataFrame = ROWS) -> pd.DataFrame:
    return rows.assign(clicked=(1 - rows["clicked"]).astype(np.int8))


def test_every_reading_and_every_restart_sees_the_same_answer(shop: PartnerConfig) -> None:
    first = answers(shop)
    assert (first != ROWS["clicked"]).any()
    assert (first == answers(shop)).all()
    assert (first[5:20] == answers(shop, ROWS[5:20].reset_index(drop=True))).all()
    for path in (Path(shop.state) / "labels").glob("*.drawn"):
        path.unlink()
    assert (first == answers(shop)).all()  # a function of the key alone, for the same log
    key = Path(shop.state) / "labels" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_bytes()) == 32


def test_another_key_or_epsilon_draws_other_answers_under_another_name(
    shop: PartnerConfig, tmp_path: Path, tiny_encoder: Path
) -> None:
    other = label_partner(tmp_path / "other", tiny_encoder)
    assert (answers(shop) != answers(other)).any()
    assert noisy_labels(shop).identity() != noisy_labels(other).identity()
    milder = replace(shop, privacy=replace(shop.privacy, epsilon=2.0))
    assert noisy_labels(milder).identity() != noisy_labels(shop).identity()
    # Independent draws, not nested ones: some rows are flipped at the milder rate alone. Many rows, or chance may spare
    # them all.
    many = random_rows(150)
    strong, mild = answers(shop, many) != many["clicked"], answers(milder, many) != many["clicked"]
    assert (mild & ~strong).any()


def features_of(worker: Worker) -> dict[str, np.ndarray]:
    data = worker._data()
    return {field.name: getattr(data, field.name) for field in fields(data)}


def test_no_feature_label_or_update_depends_on_a_true_label_behind_the_same_answers(
    shop: PartnerConfig,
) -> None:
    """Every true label turned into the other, the answers kept: all that is made of the log is the same to the bit."""
    worker = Worker(shop)
    before, first = features_of(worker), worker.train(task_for(worker)).contribution.delta_D
    write_clicks(opposite(), Path(shop.clicks))
    again = Worker(shop)
    after = features_of(again)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert np.array_equal(array, after[name]), name
    changed = task_for(again, 1, run_id="anew")
    assert np.array_equal(again.train(changed).contribution.delta_D, first)
    # It can fail: with other answers features and update differ.
    for path in (Path(shop.state) / "labels").iterdir():
        path.unlink()
    redrawn = features_of(Worker(shop))
    assert not np.array_equal(redrawn["label_NL"], before["label_NL"])
    assert not np.array_equal(redrawn["dense_NF"], before["dense_NF"])


def test_labels_are_trained_on_as_unbiased_estimates(shop: PartnerConfig) -> None:
    flip = 1 / (1 + np.e)
    found = np.unique(features_of(Worker(shop))["label_NL"])
    np.testing.assert_allclose(found, [-flip / (1 - 2 * flip), (1 - flip) / (1 - 2 * flip)], rtol=1e-6)


def test_of_a_user_the_latest_rows_have_answers_and_new_ones_are_counted(tmp_path: Path, tiny_encoder: Path) -> None:
    config = label_partner(tmp_path, tiny_encoder, max_impressions_per_user=2)
    labels = noisy_labels(config)
    assert labels.identity().endswith(":1")
    early = ROWS[ROWS["time"] < ROWS["time"].median()].reset_index(drop=True)
    assert labels.flipped(early).groupby("user").size().max() == 2
    assert labels.identity().endswith(":1")
    kept = labels.flipped(ROWS)
    expected = ROWS.groupby("user", sort=False).tail(2)
    assert kept[["user", "time", "item"]].equals(expected[["user", "time", "item"]].reset_index(drop=True))
    assert labels.identity().endswith(":2")
    labels.flipped(early)
    assert labels.identity().endswith(":2")


def test_what_is_damaged_or_gone_is_refused_and_never_drawn_anew(shop: PartnerConfig) -> None:
    answers(shop)
    folder = Path(shop.state) / "labels"
    (drawn,) = folder.glob("*.drawn")
    whole, key = drawn.read_bytes(), (folder / "key").read_bytes()
    for damaged in (whole[:20], whole[:-8], whole[:-1] + bytes([whole[-1] ^ 1]), b"x" + whole[1:]):
        drawn.write_bytes(damaged)
        with pytest.raises(
            LedgerError, match=r"labels/.*\.drawn: (damaged|cannot be read); labels would be drawn anew"
        ):
            answers(shop)
    drawn.write_bytes(whole[:8] + b"\2" + whole[9:])
    with pytest.raises(LedgerError, match="version 2, and this release reads 1"):
        answers(shop)
    drawn.write_bytes(whole)
    (folder / "key").write_bytes(key[:-1])
    with pytest.raises(LedgerError, match="labels/key: damaged"):
        answers(shop)
    (folder / "key").unlink()
    with pytest.raises(LedgerError, match="labels/key: is gone, and answers are there"):
        answers(shop)
    drawn.unlink()
    seeded = replace(shop, privacy=replace(shop.privacy, fixed_seed=1))
    assert (answers(seeded) == answers(seeded)).all()
    assert not (folder / "key").exists()
    answers(shop)  # what a seed drew does not stand in the way of a key


def test_rounds_and_runs_cost_one_label_and_the_ledger_says_why(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    for number in (1, 2):
        worker.train(task_for(worker, number))
    worker.train(task_for(worker, 1, run_id="another"))
    events = Ledger(Path(shop.ledger)).events()
    assert [(event.run_id, event.round) for event in events] == [("run", 1), ("run", 2), ("another", 1)]
    assert {event.labels for event in events} == {noisy_labels(shop).identity()}
    assert {(event.unit, event.mechanism) for event in events} == {("label", "randomised_response")}
    assert 0.999 < worker.epsilon_spent() <= 1.0


def test_promise_2_a_partner_that_lost_its_key_is_out_of_budget(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    worker.train(task_for(worker))
    for path in (Path(shop.state) / "labels").iterdir():
        path.unlink()
    fresh = Worker(shop)
    with pytest.raises(
        BudgetExhausted, match=r"round 2 refused before anything was trained; .* another key or privacy"
    ):
        fresh.train(task_for(fresh, 2))
    richer = Worker(replace(shop, privacy=replace(shop.privacy, epsilon=2.0, label_epsilon=1.0)))
    richer.train(task_for(richer, 2))
    assert 1.99 < richer.epsilon_spent() <= 2.0


def test_promise_2_a_ledger_of_labels_holds_no_users(shop: PartnerConfig) -> None:
    worker = Worker(shop)
    worker.train(task_for(worker))
    noised = replace(shop.privacy, mode="local", noise_multiplier=1.0, epsilon=100.0)
    user_level = Worker(replace(shop, privacy=noised))
    with pytest.raises(BudgetExhausted, match=r'privacy\.unit = "user", and the ledger counts in units of one label'):
        user_level.train(task_for(user_level, 2))


def test_nobody_at_all_and_a_user_of_two_partners(shop: PartnerConfig) -> None:
    assert noisy_labels(shop).flipped(ROWS[:0]).empty
    user_level = stated(replace(shop.privacy, mode="local", noise_multiplier=1.0))
    for bound in for_a_user_of_both(stated(shop.privacy), user_level).values():
        assert bound == NOTHING  # labels are bounded, users are not


def test_a_purchase_is_refused_with_the_mend(tmp_path: Path, tiny_encoder: Path) -> None:
    config = label_partner(tmp_path, tiny_encoder, random_rows(12, purchases=True))
    with pytest.raises(ConfigError, match=r"take `purchased` out of the card's \[columns\]"):
        Worker(config).ready()
    noise = next(one for one in preflight(config) if one.what == "noise")
    assert not noise.ok
    assert "take `purchased` out" in noise.says


@pytest.mark.parametrize(
    ("privacy", "says"),
    [
        ({"epsilon": 30.0}, "privacy.epsilon = 30: at most 20 for one label"),
        ({"epsilon": 2.0, "label_epsilon": 3.0}, "privacy.label_epsilon = 3: at most privacy.epsilon = 2"),
        ({"unit": "impression"}, 'privacy.unit = "impression": has no meaning'),
    ],
)
def test_what_contradicts_the_mode_is_refused_in_both_files(
    tmp_path: Path, tiny_encoder: Path, privacy: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        label_partner(tmp_path, tiny_encoder, **privacy)
    with pytest.raises(ConfigError, match=says):
        parse_config({"privacy": {"mode": "label", "epsilon": 1.0} | privacy})


@pytest.mark.parametrize("rates", ["exact", "private"])
def test_item_rates_are_refused(rates: str) -> None:
    with pytest.raises(ConfigError, match=rf'model\.item_rates = "{rates}"'):
        parse_config({"model": {"item_rates": rates}, "privacy": {"mode": "label", "epsilon": 1.0}})


def test_check_and_budget_show_say_what_is_not_protected(
    shop: PartnerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Path(shop.state).parent
    worker = Worker(shop)
    worker.train(task_for(worker))
    (noise,) = (one for one in preflight(load_partner(home / "partner.toml")) if one.what == "noise")
    assert noise.ok
    assert noise.warns
    assert "flipped with probability 0.269: epsilon 1 of one label, 32 of all labels of one user with 32" in noise.says
    assert main(["budget", "show", shop.ledger]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Epsilon by PLD for one click label replaced by the other" in said
    assert "label-private, NOT user-private" in said
    assert "epsilon 32.00 for all labels of one user with up to 32 rows; NOT protected: who was shown what" in said
    assert main(["budget", "show", shop.ledger, "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["ledgers"]
    assert (one["units"], one["adjacency"]) == (["label"], "replace_label")
    assert one["of_all_labels_of_a_user"]["epsilon"] == pytest.approx(32.0)


def test_answers_that_the_ledger_knows_and_the_folder_lacks_are_refused(shop: PartnerConfig) -> None:
    """Deleted, or from a backup: a label that changed since would be answered with the same flip, which shows it."""
    worker = Worker(shop)
    worker.train(task_for(worker))
    (drawn,) = (Path(shop.state) / "labels").glob("*.drawn")
    drawn.unlink()
    with pytest.raises(LedgerError, match="the ledger knows answers that are not in it"):
        answers(shop)


def test_another_data_card_draws_under_another_key(shop: PartnerConfig) -> None:
    """What names a row has changed, so the same click may have a second draw: that is charged as one."""
    before, name = answers(shop), noisy_labels(shop).identity()
    card = Path(shop.card)
    card.write_text(card.read_text(encoding="utf-8").replace('unit = "seconds"', 'unit = "milliseconds"'), "utf-8")
    assert noisy_labels(shop).identity() != name
    assert (answers(shop) != before).any()
