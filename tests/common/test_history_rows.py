"""Rows that are history alone: features see them, and nothing is trained, counted or evaluated on them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.labels import NoisyLabels
from client.partner import PartnerConfig
from client.training import DpStep, sample_units
from common.card import canonical_card, parse_card
from common.clicks import read_clicks, validate_rows
from common.config import ModelConfig, PrivacyConfig
from common.errors import ConfigError, DataError
from common.features import UserRows, count_items, dense_names, featurise
from common.model.click_model import build_model
from common.nextitem import NEVER, Log, items_of
from common.split import split_rows
from simulations.audit.mechanism import sensitivity
from simulations.audit.userrows import few_users, gather, rows_by_user

CARD = {
    "columns": {"user": "u", "time": "t", "text": "x", "clicked": "y", "history": "past", "item": "i"},
    "time": {"unit": "seconds"},
}
STATES = np.eye(4, dtype=np.float32)[[0, 0, 1, 2, 3]] * 2
NAMES = dense_names(ModelConfig())


def table(history: list[int]) -> pd.DataFrame:
    """Two users of five rows and one with a history alone; each item has a text of its own."""
    count = len(history)
    rows = {
        "user": (["a"] * 5 + ["b"] * 5 + ["c"] * 5)[:count],
        "time": [*range(100, 105)] * 3,
        "item": ["i0", "i1", "i2", "i3", "i4"] * 3,
        "text": ["t0", "t1", "t2", "t3", "t4"] * 3,
        "clicked": [1, 1, 0, 1, 0] * 3,
        "domain": ["d"] * 15,
    }
    frame = pd.DataFrame({name: values[:count] for name, values in rows.items()})
    kinds = {"user": "str", "item": "str", "text": "str", "domain": "str", "clicked": "int8", "time": "int64"}
    return validate_rows(frame.astype(kinds).assign(history=np.array(history, "int8")))


HISTORY = [1, 1, 0, 0, 0] + [0] * 5 + [1] * 5


def featured(rows: pd.DataFrame) -> UserRows:
    text_N = rows["item"].str[1:].astype(int).to_numpy()
    return featurise(rows, text_N, STATES, ModelConfig(item_rates="exact"), item_counts=count_items(rows))


def test_a_log_says_which_rows_are_history(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("u,t,x,y,past,i\na,1,one,1,1,p\na,2,two,0,0,q\na,3,three,1,0,r\na,4,four,1,2,s\na,5,five,1,,w\n")
    log = read_clicks(path, parse_card(CARD))
    assert log.rows["history"].tolist() == [1, 0, 0]
    assert log.report.dropped == {"history not 0 or 1": 2}
    assert (log.report.history_rows, log.report.click_rate, log.report.impressions_per_user["max"]) == (1, 0.5, 2)
    path.write_text("u,t,x,y,past,i\na,1,one,0,1,p\na,2,two,1,0,q\n")
    with pytest.raises(DataError, match="every row is clicked among 1;"):
        read_clicks(path, parse_card(CARD))
    with pytest.raises(ConfigError, match=r'columns\.history = "y": is columns\.clicked too'):
        parse_card({**CARD, "columns": CARD["columns"] | {"history": "y"}})  # type: ignore[operator]


def test_rates_of_a_user_leave_history_out_and_what_is_alike_sees_it() -> None:
    rows = table(HISTORY[:5])
    with_past, alone = featured(rows), featured(rows.iloc[2:].assign(history=np.int8(0)))
    rates = [NAMES.index(name) for name in NAMES if name.endswith(("_rate", "_rows", "_clicks"))]
    assert len(rates) == 8
    # The kernel's rate and rows compare texts: these three are new, so that they are level with and without a history.
    np.testing.assert_array_equal(with_past.dense_NF[2:, rates], alone.dense_NF[:, rates])
    pull = NAMES.index("click_pull")
    assert with_past.history_NH[2, :2].tolist() == [1, 0]
    assert (with_past.dense_NF[3, pull], alone.dense_NF[1, pull]) == (0.0, 0.0)
    again = table([1, 0, 0, 0, 0]).assign(text="t0")
    seen = featurise(again, np.array([0, 1, 2, 3, 4]), STATES, ModelConfig())
    nearest, alike = NAMES.index("nearest_click"), NAMES.index("alike_rows")
    assert seen.dense_NF[1, nearest] == pytest.approx(2.0)  # the same text was clicked, in the history
    assert seen.dense_NF[1, alike] == 0.0  # and was never shown


@pytest.mark.parametrize("unit", ["user", "impression"])
@pytest.mark.parametrize("most", [1, 2, 100])
def test_no_row_of_history_is_ever_sampled(unit, most) -> None:
    features = featured(table(HISTORY))
    assert features.trains_N is not None
    step = DpStep(1.0, 1.0, 1.0, most, 3.0, unit)
    seen = set()
    for seed in range(40):
        chosen = sample_units(features, step, np.random.default_rng(seed))
        assert len(chosen) == (3 if unit == "user" else sum(min(most, rows) for rows in (3, 5)))
        assert all(len(row_M) <= most for row_M in chosen)
        seen |= {int(row) for row_M in chosen for row in row_M}
    expected = np.flatnonzero(np.array(HISTORY) == 0)
    if unit == "impression":  # a user's latest ones
        expected = np.concatenate([expected[:3][-most:], expected[3:][-most:]])
    assert seen == set(expected.tolist())


def test_without_history_sampling_is_as_it_was() -> None:
    rows = table([0] * 15)
    marked, plain = featured(rows), featured(rows.drop(columns="history"))
    assert marked.trains_N is None
    np.testing.assert_array_equal(marked.dense_NF, plain.dense_NF)


def test_items_are_counted_without_history() -> None:
    rows = table(HISTORY)
    assert count_items(rows)["i0"] == (1.0, 1.0)  # of user b alone
    features = featured(rows)
    rate = [*dense_names(ModelConfig(item_rates="exact"))].index("item_rate")
    # b's own label is taken out of i0's counts; a's row of history was never in them.
    assert features.dense_NF[5, rate] == 0.0
    assert features.dense_NF[0, rate] > 0.0


def test_history_that_was_not_clicked_is_no_negative() -> None:
    rows = table([1, 0, 0, 0, 0]).assign(clicked=np.array([0, 1, 0, 0, 0], "int8"))
    features = featurise(rows, np.array([0, 0, 1, 2, 3]), STATES, ModelConfig())
    pull = NAMES.index("click_pull")
    assert features.dense_NF[1, pull] == 0.0  # the same text, in a history, without a click
    shown = featurise(rows.assign(history=np.int8(0)), np.array([0, 0, 1, 2, 3]), STATES, ModelConfig())
    assert shown.dense_NF[1, pull] == -5.0


def test_of_a_click_in_both_exports_the_shown_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("u,t,x,y,past,i\na,1,one,1,1,p\na,1,one,1,0,p\na,2,two,0,0,q\na,2,two,0,1,q\n")
    log = read_clicks(path, parse_card(CARD))
    assert log.rows[["item", "history"]].to_numpy().tolist() == [["p", 0], ["q", 0]]
    assert log.report.dropped == {"same user, item and time as an earlier row": 2}


def test_an_item_of_histories_alone_is_no_next_item() -> None:
    rows = table(HISTORY).assign(item=["h", "i1", "i2", "i3", "i4"] * 2 + ["h"] * 5)
    rows.loc[5, "item"] = "i0"
    items = items_of(Log(rows, np.zeros(15, np.int64), STATES))
    assert {name: int(first) for name, first in zip(items.name_I, items.first_I, strict=True)} == {
        "h": NEVER,
        "i0": 100,
        "i1": 101,
        "i2": 102,
        "i3": 103,
        "i4": 104,
    }


def test_a_split_puts_history_on_no_side() -> None:
    rows = table(HISTORY)
    split = split_rows(rows, "time", 0.4)
    assert split.cut_time == 103  # of the impressions' times alone
    assert not (split.train_N | split.test_N)[np.array(HISTORY) == 1].any()
    assert split.past_N.tolist() == [
        bool(past) and time < 103 for past, time in zip(HISTORY, rows["time"], strict=True)
    ]


@pytest.mark.parametrize("unit", ["user", "impression"])
def test_an_audit_attacks_with_rows_that_train(unit) -> None:
    features = featured(table(HISTORY))
    assert [len(row_M) for row_M in rows_by_user(features)] == [3, 5, 0]
    whole = gather(features, [np.arange(5)])
    assert whole.trains_N is not None
    assert whole.trains_N.tolist() == [False, False, True, True, True]
    few = few_users(features, 9, 4, np.random.default_rng(1))
    assert few.num_users == 2  # nobody of history alone
    model = build_model(ModelConfig(item_rates="exact"), 4, 1, 1)
    privacy = PrivacyConfig(unit=unit, max_impressions_per_user=4, noise_multiplier=1.0)
    found = sensitivity(model, features, privacy, 5, 1)
    assert {finding.verdict for finding in found} == {"holds"}


def test_label_mode_refuses_a_log_of_history(tmp_path: Path) -> None:
    config = PartnerConfig(
        name="p",
        clicks="c",
        card="card.toml",
        ledger="l",
        identity="i",
        roster="r",
        state=str(tmp_path),
        declared_users=3,
        privacy=PrivacyConfig(mode="label", label_epsilon=1.0, fixed_seed=1),
    )
    with pytest.raises(ConfigError, match=r"maps a history.*would say its label"):
        NoisyLabels(config, canonical_card(table(HISTORY))).flipped(table(HISTORY))
