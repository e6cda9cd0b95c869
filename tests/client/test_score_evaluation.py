"""What a partner holds out: never trained on, nor in statistics; and what of it leaves, by mode and unit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import random_rows
from partner_folder import start_model, task_for, write_partner

from client.distributed import rounding_bound
from client.evaluation import score_histogram
from client.partner import PartnerAggregation
from client.preflight import preflight
from client.worker import Worker
from common.errors import ConfigError, DataError
from common.features import count_items
from common.histogram_messages import EvaluationTask
from common.messages import JoinTask
from common.scorehistogram import gridded_scores
from common.scoring import chunks, click_rates
from common.secagg.wire import SessionId
from common.split import stable_hash
from common.vector import write_vector

LOG = random_rows(30, seed=4)
SINCE = int(LOG["time"].median())
RULES: dict[str, dict[str, Any]] = {
    "time": {"from_time": SINCE},
    "users": {"user_share": 0.4},
    "users, another key": {"user_share": 0.4, "key": "second"},
    "both": {"user_share": 0.4, "from_time": SINCE},
}


def partner(home: Path, encoder: Path, rule: dict[str, Any], rows: pd.DataFrame | None = None, **change: Any) -> Worker:
    """A worker that takes no part in secure aggregation, and gives its histograms when it is asked directly."""
    noise = {} if change.get("mode") in ("label", "none") else {"evaluation_noise_multiplier": 2.0}
    own = write_partner(
        home,
        encoder,
        LOG if rows is None else rows,
        aggregation=PartnerAggregation(),
        evaluation={"at": "partners", "bins": 16} | rule,
        **{"epsilon": 400.0} | noise | change,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.worker.participant_of", lambda _: (None, ""))
        worker = Worker(own)
    worker.join(JoinTask("run"))
    return worker


def sides(rule: dict[str, Any], rows: pd.DataFrame = LOG) -> tuple[pd.Series, pd.Series]:
    """Which rows train and which are held out, row by row."""
    share, since, key = rule.get("user_share"), rule.get("from_time"), rule.get("key", "")
    purpose = f"split/{key}" if key else "split"
    drawn = rows["user"].map(lambda user: share is None or int(stable_hash([user], purpose)[0]) < share * 2**64)
    later = rows["time"] >= (since if since is not None else -1)
    train = pd.Series(True, index=rows.index)
    if share is not None:
        train &= ~drawn
    if since is not None:
        train &= ~later
    return train, drawn & later


def asked(worker: Worker, after: int = 1, bits: int = 16) -> np.ndarray:
    model_D = start_model(worker)
    task = EvaluationTask(f"run-e{after}", bits, worker.config.evaluation.bins, worker._layout(), model_D)
    return worker._evaluations.contribution(task, SessionId(task.run_id, 0, 0))


# --- held out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_held_out_rows_are_in_no_training_row_statistic_or_label_that_trains(
    name: str, tmp_path: Path, tiny_encoder: Path
) -> None:
    train, test = sides(RULES[name])
    assert 10 < train.sum() < len(LOG) - 10
    assert 10 < test.sum() < len(LOG) - 10
    worker = partner(tmp_path / "shop", tiny_encoder, RULES[name])
    expected = LOG[train].reset_index(drop=True)
    names = ["user", "time", "item", "clicked"]
    pd.testing.assert_frame_equal(worker._rows()[names], expected[names], check_dtype=False)
    assert worker._data().num_users == expected["user"].nunique()
    assert len(worker._data().label_NL) == len(expected)
    assert count_items(worker._rows()) == count_items(expected)
    held_out = worker.held_out()
    assert held_out is not None
    assert len(held_out.row_N) == test.sum()
    assert held_out.clicked_N.sum() == LOG.loc[test, "clicked"].sum()
    flipping = partner(
        tmp_path / "flipping", tiny_encoder, RULES[name], mode="label", noise_multiplier=None, epsilon=1.0
    )
    pd.testing.assert_frame_equal(flipping._rows()[names[:3]], expected[names[:3]], check_dtype=False)


def test_what_is_held_out_does_not_move_training(tmp_path: Path, tiny_encoder: Path) -> None:
    """The update is the same to the bit, whatever the held-out rows say: other clicks, other items, more of them."""
    rule, (_, test) = RULES["time"], sides(RULES["time"])
    changed = LOG.assign(clicked=np.where(test, 1 - LOG["clicked"], LOG["clicked"]).astype(np.int8))
    changed = pd.concat([changed, changed[test].assign(user="u-new")], ignore_index=True)
    changed = changed.sort_values(["user", "time"], kind="stable").drop_duplicates(["user", "item", "time"])
    updates = []
    for name, rows in (("one", LOG), ("other", changed.reset_index(drop=True))):
        worker = partner(tmp_path / name, tiny_encoder, rule, rows, fixed_seed=3)
        updates.append(worker._train(task_for(worker)))
    assert np.array_equal(*updates)
    whole = partner(tmp_path / "whole", tiny_encoder, {"from_time": 2**33}, fixed_seed=3)
    assert not np.array_equal(updates[0], whole._train(task_for(whole)))


def test_features_of_a_held_out_row_know_its_users_earlier_rows(tmp_path: Path, tiny_encoder: Path) -> None:
    """As at the central evaluation: history goes on over the moment, and a row's own label is not in it."""
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["time"])
    held_out = worker.held_out()
    assert held_out is not None
    users = set(LOG.loc[sides(RULES["time"])[1], "user"])
    rows = LOG[LOG["user"].isin(users)].reset_index(drop=True)
    assert len(held_out.features.label_NL) == len(rows)
    assert (rows["time"].to_numpy()[held_out.row_N] >= SINCE).all()
    assert (held_out.features.history_NH[held_out.row_N] >= 0).any()


def test_of_each_user_the_latest_rows_count(tmp_path: Path, tiny_encoder: Path) -> None:
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["users"] | {"max_rows": 2})
    held_out, (_, test) = worker.held_out(), sides(RULES["users"])
    assert held_out is not None
    assert len(held_out.row_N) == sum(min(2, count) for count in LOG[test].groupby("user").size())
    kept = LOG[test].groupby("user").tail(2)
    assert held_out.clicked_N.sum() == kept["clicked"].sum()


# --- what leaves ------------------------------------------------------------------------------------------------------


def expected_of(worker: Worker, bits: int = 16) -> np.ndarray:
    """The histogram without noise, of scores of all held-out rows in one go."""
    held_out = worker.held_out()
    assert held_out is not None
    model = worker._model()
    write_vector(model, start_model(worker))
    score_N = click_rates(model, held_out.features, chunks(held_out.row_N, held_out.user_N))
    terms = worker._evaluations.terms
    bound = rounding_bound(terms.length, terms.clip, 2**bits)
    return gridded_scores(held_out.clicked_N, score_N, held_out.user_N, terms, bound, 2**bits)


@pytest.mark.parametrize(("mode", "unit"), [("local", "user"), ("local", "impression"), ("distributed", "user")])
def test_a_histogram_is_the_clipped_counts_and_noise_of_the_claimed_size(
    mode: str, unit: str, tmp_path: Path, tiny_encoder: Path
) -> None:
    change: dict[str, Any] = {"unit": unit, "max_impressions_per_user": 5, "evaluation_noise_multiplier": 0.05}
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["time"], mode=mode, **change)
    noise_D = asked(worker) - expected_of(worker)
    shares = worker.config.noise_shares
    claimed = 0.05 * 2**16 / np.sqrt(shares)
    assert 0.6 < noise_D.std() / claimed < 1.5  # 32 entries
    (event,) = worker._ledger.events()
    assert (event.purpose, event.unit, event.shares) == ("evaluation", unit, shares)
    assert event.impressions == (5 if unit == "impression" else 1)
    assert event.clip == (1.0 if unit == "impression" else 4.0)
    assert (shares > 1) == (mode == "distributed")


def test_where_the_unit_is_a_row_a_user_has_no_more_of_them_than_is_accounted_for(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    change = {"unit": "impression", "max_impressions_per_user": 2}
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["users"], **change)
    assert worker._evaluations.terms.max_rows == 2
    held_out = worker.held_out()
    assert held_out is not None
    assert np.bincount(held_out.user_N).max() == 2


def test_in_mode_label_flipped_clicks_are_counted_and_cost_no_more(tmp_path: Path, tiny_encoder: Path) -> None:
    """Counts are exact of the answers that training reads too; the ledger's epsilon is that of the labels alone."""
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["time"], mode="label", noise_multiplier=None, epsilon=1.0)
    found_D = asked(worker)
    assert np.array_equal(found_D, expected_of(worker))
    held_out = worker.held_out()
    assert held_out is not None
    assert found_D.sum() == len(held_out.row_N)
    truth = LOG.loc[sides(RULES["time"])[1], "clicked"].to_numpy()
    assert 0 < (held_out.clicked_N != truth).mean() < 0.5  # flipped with probability .27
    again = worker.held_out()
    assert again is not None
    assert np.array_equal(again.clicked_N, held_out.clicked_N)
    (event,) = worker._ledger.events()
    assert (event.purpose, event.mechanism, event.unit) == ("evaluation", "randomised_response", "label")
    assert worker.epsilon_spent() == pytest.approx(1.0, abs=1e-3)
    worker._budget.reserve(replace(event, purpose="training", run_id="run", round=1))
    assert worker.epsilon_spent() == pytest.approx(1.0, abs=1e-3)


def test_without_privacy_counts_are_exact(tmp_path: Path, tiny_encoder: Path) -> None:
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["time"], mode="none")
    found_D = asked(worker)
    assert np.array_equal(found_D, expected_of(worker))
    held_out = worker.held_out()
    assert held_out is not None
    assert found_D[:16].sum() == held_out.clicked_N.sum()
    assert found_D.sum() == len(held_out.row_N)


def test_a_partner_without_a_row_to_hold_out_sends_noise_on_zero(tmp_path: Path, tiny_encoder: Path) -> None:
    worker = partner(tmp_path / "shop", tiny_encoder, {"from_time": 2**33})
    assert worker.held_out() is None
    found_D = asked(worker)
    assert 0.6 < found_D.std() / (2.0 * 2**16) < 1.5
    assert worker.noise_alone == 0  # nothing failed
    assert [event.purpose for event in worker._ledger.events()] == ["evaluation"]


def test_a_log_that_cannot_be_read_gives_the_evaluations_noise_alone(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal would show that something is wrong with the data."""
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["time"])

    def broken(_worker: Worker) -> pd.DataFrame:
        raise DataError("not readable")

    monkeypatch.setattr(Worker, "_log", broken)
    found_D = asked(worker)
    assert 0.6 < found_D.std() / (2.0 * 2**16) < 1.5
    assert worker.noise_alone == 1


def test_scores_that_are_not_finite_count_nothing_and_are_said_in_the_partners_own_log(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["time"], mode="none")
    honest = click_rates

    def scores(*arguments: Any) -> np.ndarray:
        score_N = honest(*arguments)
        score_N[0] = np.nan  # the first row of each user
        return score_N

    monkeypatch.setattr("client.evaluation.click_rates", scores)
    found_D, held_out = asked(worker), worker.held_out()
    assert held_out is not None
    users = len(np.unique(held_out.user_N))
    assert found_D.sum() == len(held_out.row_N) - users
    assert f"{users} held-out rows have no finite score" in caplog.text


def test_who_asked_to_be_erased_is_not_evaluated_on(tmp_path: Path, tiny_encoder: Path) -> None:
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["users"], mode="none")
    (_, test) = sides(RULES["users"])
    gone = LOG.loc[test, "user"].iloc[0]
    worker.erased.add([gone])
    assert asked(worker).sum() == (test & (LOG["user"] != gone)).sum()


def test_a_users_scores_do_not_depend_on_who_else_is_held_out(tmp_path: Path, tiny_encoder: Path) -> None:
    """To the last bit: a batch's rounding must not move another user's score over an edge between bins."""
    model, found = None, {}
    for place, users in enumerate((30, 12, 3)):
        rows = LOG[LOG["user"].isin(sorted(LOG["user"].unique())[:users])].reset_index(drop=True)
        worker = partner(tmp_path / str(place), tiny_encoder, {"user_share": 0.999999}, rows, mode="none")
        held_out = worker.held_out()
        assert held_out is not None
        model = worker._model()
        write_vector(model, start_model(worker))
        terms = replace(worker._evaluations.terms, bins=2**15)
        first = held_out.user_N == 0
        own = replace(
            held_out,
            row_N=held_out.row_N[first],
            user_N=held_out.user_N[first],
            clicked_N=held_out.clicked_N[first],
        )
        alone_D = score_histogram(own, model, terms, 0.0, 1)
        rest = replace(
            held_out,
            row_N=held_out.row_N[~first],
            user_N=held_out.user_N[~first],
            clicked_N=held_out.clicked_N[~first],
        )
        rest_D = score_histogram(rest, model, terms, 0.0, 1)
        assert np.array_equal(score_histogram(held_out, model, terms, 0.0, 1) - rest_D, alone_D)
        found[users] = alone_D
    assert np.array_equal(found[30], found[3])
    assert np.array_equal(found[30], found[12])


# --- a partner's own configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluation", "change", "match"),
    [
        ({}, {}, "evaluation.from_time and evaluation.user_share are unset"),
        ({"from_time": 1}, {"evaluation_noise_multiplier": None}, "evaluation_noise_multiplier is unset"),
        ({"from_time": 1}, {"plain": True}, 'evaluation.at = "partners": needs aggregation.method = "secure"'),
        (
            {"from_time": 1, "at": "server"},
            {},
            'evaluation.from_time = 1: holds nothing out with evaluation.at = "server"',
        ),
        ({"user_share": 0.5, "at": "server"}, {}, "evaluation.user_share = 0.5: holds nothing out"),
    ],
)
def test_a_partner_says_what_it_holds_out_and_its_noise(
    evaluation: dict[str, Any], change: dict[str, Any], match: str, tmp_path: Path, tiny_encoder: Path
) -> None:
    secure = None if change.pop("plain", False) else PartnerAggregation()
    with pytest.raises(ConfigError, match=match):
        write_partner(
            tmp_path / "shop",
            tiny_encoder,
            aggregation=secure,
            evaluation={"at": "partners"} | evaluation,
            **{"evaluation_noise_multiplier": 1.0} | change,
        )


def test_check_says_how_many_rows_are_held_out(tmp_path: Path, tiny_encoder: Path) -> None:
    worker = partner(tmp_path / "shop", tiny_encoder, RULES["both"])
    (finding,) = [one for one in preflight(worker.config) if one.what == "held-out rows"]
    train, test = sides(RULES["both"])
    users = LOG.loc[test, "user"].nunique()
    assert finding.says.startswith(f"{test.sum()} rows of {users} users are held out (0.4 of users, since 2023-11-1")
    assert finding.says.endswith(f"{train.sum()} rows train")
    everything = partner(tmp_path / "all", tiny_encoder, {"from_time": 0})
    (finding,) = [one for one in preflight(everything.config) if one.what == "held-out rows"]
    assert not finding.ok
    assert "none trains: agree on another rule" in finding.says
