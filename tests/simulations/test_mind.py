"""MIND folders: what becomes a row, what is history alone, and a whole run over one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_runs import run, small_config

from client.userdata import HeldOutRows, UserData
from common.clicks import impressions_N, validate_rows
from common.config import DataConfig
from common.errors import ConfigError, DataError
from common.runfolder import RunFolder
from simulations.generator import generate_clicks
from simulations.sources import load_source

NEWS = (
    "N1\tsports\tsoccer\tA goal, at last.\tabstract\n"
    'N2\tfinance\tmarkets\t"Shares" fall\tabstract\nN3\tnews\tworld\t\tno title\n'
)
BEHAVIOURS = (
    "1\tU1\t11/15/2019 8:55:22 AM\tN1 N2\tN1-0 N2-1\n"
    "2\tU1\t11/14/2019 11:00:00 PM\tN2\tN1-1 N3-0\n"
    "3\tU2\t11/15/2019 12:00:01 PM\t\tN1-0 N2-0\n"
    "4\tU2\tyesterday\tN1\tN1-1\n"
    "5\tU3\t11/16/2019 1:00:00 AM\tN1 N9\tN1 N2\n"
)


def mind_folder(folder: Path, behaviours: str = BEHAVIOURS, news: str = NEWS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "behaviors.tsv").write_text(behaviours, encoding="utf-8")
    (folder / "news.tsv").write_text(news, encoding="utf-8")
    return folder


def mind(folder: Path, **changes) -> DataConfig:
    return DataConfig(source="mind", path=str(folder), **changes)


def test_mind_reads_as_clicks_and_histories(tmp_path):
    log = load_source(mind(mind_folder(tmp_path / "MINDsmall_train")))
    rows = validate_rows(log.rows)
    first = int(pd.Timestamp("2019-11-14 23:00:00").timestamp())
    later = int(pd.Timestamp("2019-11-15 08:55:22").timestamp())
    noon = int(pd.Timestamp("2019-11-15 12:00:01").timestamp())
    found = list(rows[["user", "time", "item", "clicked", "history", "slate"]].itertuples(index=False, name=None))
    assert [line for line in found if line[0] != "U3"] == [
        ("U1", first - 1, "N2", 1, 1, ""),  # the history of the earliest impression
        ("U1", first, "N1", 1, 0, "MINDsmall_train/2"),
        ("U1", later, "N1", 0, 0, "MINDsmall_train/1"),
        ("U1", later, "N2", 1, 0, "MINDsmall_train/1"),
        ("U2", noon, "N1", 0, 0, "MINDsmall_train/3"),
        ("U2", noon, "N2", 0, 0, "MINDsmall_train/3"),
    ]
    assert set(rows["text"]) == {"A goal, at last. sports, soccer", '"Shares" fall. finance, markets'}
    assert log.report.dropped == {"time not readable": 1, "click not 0 or 1": 2, "no text": 2}
    assert log.report.history_rows == 2
    assert log.report.click_rate == 2 / 5


def test_several_folders_are_one_log_and_few_users_can_be_drawn(tmp_path):
    mind_folder(tmp_path / "train")
    mind_folder(
        tmp_path / "dev", "1\tU1\t11/17/2019 8:00:00 AM\tN1 N2 N1\tN2-0\n2\tU4\t11/17/2019 8:00:00 AM\tN1\tN2-1\n"
    )
    rows = load_source(mind(tmp_path)).rows
    assert set(rows["user"]) == {"U1", "U2", "U3", "U4"}
    assert rows.loc[rows["user"] == "U1", "history"].sum() == 1  # the history of its first file
    assert {"train/1", "dev/1", "dev/2"} <= set(rows["slate"])
    some = load_source(mind(tmp_path, max_users=2)).rows
    assert len(set(some["user"])) == 2


def test_what_is_no_mind_folder_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"holds no behaviors\.tsv, nor does a folder in it"):
        load_source(mind(tmp_path))
    folder = mind_folder(tmp_path / "one")
    with pytest.raises(ConfigError, match="has clicks, not ratings"):
        load_source(mind(folder, click_threshold=3.0))
    (folder / "news.tsv").unlink()
    with pytest.raises(DataError, match=r"news\.tsv: no such file"):
        load_source(mind(folder))
    mind_folder(folder, "SECRET,1\n")
    with pytest.raises(DataError, match=r"behaviors\.tsv: not readable \(other columns\)") as refusal:
        load_source(mind(folder))
    assert "SECRET" not in str(refusal.value)


def test_a_mind_folder_of_which_nothing_is_left_says_why(tmp_path):
    folder = mind_folder(tmp_path, BEHAVIOURS.replace("11/", "2019-11/"))
    with pytest.raises(DataError, match="no row is left: time not readable: 5"):
        load_source(mind(folder))
    mind_folder(folder, "1\tU1\t11/15/2019 8:55:22 AM\t\t\n2\t \t11/15/2019 8:55:22 AM\t\tN1-1\n")
    with pytest.raises(DataError, match="no row is left: no user: 1"):
        load_source(mind(folder))
    (folder / "news.tsv").write_bytes(b"N1\tsports\tsoccer\tcaf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8"):
        load_source(mind(folder))


def generated_mind(folder: Path, users: int) -> Path:
    """Writes generated clicks as MIND writes its: of each user the first third of the clicks is a history.

    Four users more come last of all, each with a history.
    """
    config = small_config(Path("none"), 4, 1).data.generator
    log = generate_clicks(replace(config, users=users, purchase_rate=0.0)).rows
    lines, number = [], 0
    for user, rows in log.groupby("user", sort=False):
        clicked = rows.loc[rows["clicked"] == 1, "item"].tolist()
        past = clicked[: max(1, len(clicked) // 3)] if clicked else []
        for _, slate in rows.groupby("slate", sort=False):
            number += 1
            moment = pd.Timestamp(int(slate["time"].iloc[0]), unit="s").strftime("%m/%d/%Y %I:%M:%S %p")
            shown = " ".join(f"{item}-{label}" for item, label in zip(slate["item"], slate["clicked"], strict=True))
            lines.append(f"{number}\t{user}\t{moment}\t{' '.join(past)}\t{shown}")
    items = log.drop_duplicates("item")
    first, second = items["item"].iloc[:2]
    last = pd.Timestamp(int(log["time"].max()) + 60, unit="s").strftime("%m/%d/%Y %I:%M:%S %p")
    lines += [f"{number + 1 + late}\tlate{late}\t{last}\t{first} {second}\t{first}-1 {second}-0" for late in range(4)]
    news = [f"{item}\t{domain}\tkind\t{text}\tnone" for item, domain, text in items[["item", "domain", "text"]].values]
    return mind_folder(folder, "\n".join(lines) + "\n", "\n".join(news) + "\n")


@pytest.mark.parametrize("at", ["server", "partners"])
def test_a_run_over_a_mind_folder_trains_counts_and_evaluates_no_history(tiny_encoder, tmp_path, monkeypatch, at):
    folder = generated_mind(tmp_path / "mind", 60)
    counted: list[pd.DataFrame] = []
    rows_of = UserData._counted_rows

    def watched(self: UserData) -> pd.DataFrame:
        rows = rows_of(self)
        counted.append(rows)
        return rows

    held: list[HeldOutRows] = []
    held_of = UserData.held_out

    def watched_held(self: UserData) -> HeldOutRows | None:
        found = held_of(self)
        held.extend([found] if found else [])
        return found

    monkeypatch.setattr(UserData, "_counted_rows", watched)
    monkeypatch.setattr(UserData, "held_out", watched_held)
    config = small_config(
        tiny_encoder,
        4,
        2,
        data={"source": "mind", "path": str(folder), "generator": {}},
        model={"item_rates": "private"},
        privacy={"statistics_epsilon": 100.0, "evaluation_epsilon": 100.0} if at == "partners" else {},
        evaluation={"at": at},
        server={"floors": ["base_rate", "item_popularity", "logistic_regression", "pooled"], "bootstrap_samples": 10},
    )
    metrics = run(config, tmp_path / "out")
    central = pd.read_parquet(RunFolder(tmp_path / "out").central)
    history_N = ~impressions_N(central)
    assert history_N.any()
    assert not central.loc[history_N, "evaluate"].any()
    assert history_N[central["user"].str.startswith("late")].sum() == 8
    assert sum(metrics["data"]["rows_per_partner"]) == metrics["data"]["rows_trained"]
    assert metrics["final"]["rows"] == int(central["evaluate"].sum())
    written = pd.concat(
        [pd.read_parquet(path) for path in sorted((tmp_path / "out").glob("partners/*/clicks.parquet"))]
    )
    assert written["history"].any(), "partners keep their users' histories"
    assert len(counted) == 4
    assert len(held) == (4 if at == "partners" else 0)
    marked = [(found.features.trains_N, found.row_N) for found in held]
    assert all(trains_N is not None and trains_N[row_N].all() and not trains_N.all() for trains_N, row_N in marked)
    assert sum(len(rows) for rows in counted) == metrics["data"]["rows_trained"]
    assert np.isfinite(metrics["floors"]["logistic_regression"]["auc"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["data"]["users_trained"] <= 60
