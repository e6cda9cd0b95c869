"""The central evaluation against sklearn and by hand: which rows are scored, in which order, in which slices."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_rows
from sklearn import metrics as sklearn_metrics

from common import scoring
from common.cachefolder import default_cache_dir
from common.config import ModelConfig, ServerConfig
from common.errors import DataError
from common.features import featurise, make_batch
from common.model.click_model import ClickModel, build_model, forward
from common.pretrained import Pretrained, locate
from common.textstates import TextStates
from server.evaluation import HeldOut, final_figures, intervals, load_heldout, round_figures, score

CONFIG = ModelConfig(width=4, hidden=6)
Load = Callable[..., HeldOut]


@pytest.fixture(scope="module")
def pretrained(tiny_encoder: Path) -> Pretrained:
    return locate(f"path:{tiny_encoder}")


@pytest.fixture
def load(tmp_path: Path, pretrained: Pretrained) -> Load:
    """Writes a held-out log and loads it."""

    def write(frame: pd.DataFrame, config: ModelConfig = CONFIG) -> HeldOut:
        frame.to_parquet(tmp_path / "central.parquet", index=False)
        return load_heldout(tmp_path / "central.parquet", config, pretrained)

    return write


def central(num_users: int = 40, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Returns rows of which the later half of each user's is evaluated."""
    rows = random_rows(num_users, seed, most_rows=16)
    place = rows.groupby("user").cumcount()
    size = rows.groupby("user")["user"].transform("size")
    partner = rows["user"].str[-1].astype(int) % 3
    return rows.assign(evaluate=(place >= size // 2).to_numpy(), partner=partner.to_numpy(), **columns)


def new_model(pretrained: Pretrained, heads: int = 1) -> ClickModel:
    model = build_model(CONFIG, pretrained.width, heads, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    return model


# --- scores -------------------------------------------------------------------------------------------------------


def test_scores_are_in_the_order_of_the_evaluated_rows(load: Load, pretrained: Pretrained) -> None:
    """The oracle scores row after row, each alone, from features of its own making."""
    frame = central()
    heldout, model = load(frame), new_model(pretrained)
    score_N = score(model, heldout)
    encoded = TextStates(pretrained, CONFIG.max_tokens, default_cache_dir("")).states(list(frame["text"]))
    rows = featurise(frame, encoded.index_N, encoded.states_TE, CONFIG)
    wanted = np.flatnonzero(frame["evaluate"])
    expected = [torch.sigmoid(forward(model, make_batch(rows, [np.array([row])]))).item() for row in wanted]
    assert score_N.dtype == np.float64
    assert len(score_N) == len(wanted) < len(frame)
    np.testing.assert_allclose(score_N, expected, atol=1e-6)
    np.testing.assert_array_equal(heldout.label_NL[:, 0], frame["clicked"].to_numpy()[wanted])
    users = frame["user"].to_numpy()[wanted]
    np.testing.assert_array_equal(heldout.user_N, pd.factorize(frame["user"])[0][wanted])
    assert len(np.unique(users)) == len(np.unique(heldout.user_N))


def test_history_rows_are_seen_but_not_scored(load: Load, pretrained: Pretrained) -> None:
    frame = central(10)
    heldout = load(frame)
    assert len(heldout.rows.text_N) == len(frame)
    assert sum(len(row_M) for row_M in heldout.chosen) == frame["evaluate"].sum()
    blind = frame.copy()
    blind.loc[~blind["evaluate"], "clicked"] = 1 - blind.loc[~blind["evaluate"], "clicked"]
    model = new_model(pretrained)
    assert np.abs(score(model, load(blind)) - score(model, heldout)).max() > 0.01


def test_a_user_of_a_thousand_rows_scores_the_same_in_chunks_as_at_once(
    load: Load, pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    big = pd.DataFrame(
        {
            "user": "u",
            "time": 1_700_000_000 + np.sort(rng.integers(0, 10_000, 1000)) * 60,
            "item": [f"i{number}" for number in range(1000)],
            "text": [f"text number {number}" for number in rng.integers(0, 12, 1000)],
            "clicked": rng.integers(0, 2, 1000).astype(np.int8),
            "domain": "",
            "evaluate": True,
        }
    )
    small = central(5).drop(columns=["partner", "context:device"]).assign(domain="")
    frame = pd.concat([big, small])
    model, heldout = new_model(pretrained), load(frame)
    assert [len(row_M) for row_M in heldout.chosen[:8]] == [128] * 7 + [104]
    chunked = score(model, heldout)
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 5000)
    monkeypatch.setattr(scoring, "BATCH_ROWS", 10**9)
    whole = load(frame)
    assert len(whole.chosen[0]) == 1000
    assert len(scoring.batches(whole.chosen)) == 1
    np.testing.assert_allclose(chunked, score(model, whole), atol=1e-6)


@pytest.mark.parametrize("bound", [1, 100, 1000])
def test_batches_keep_order_and_bound(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_ROWS", bound)
    rng = np.random.default_rng(1)
    chosen = [np.arange(size) + 1000 * place for place, size in enumerate(rng.integers(1, 40, 60))]
    batches = scoring.batches(chosen)
    assert [row_M.tolist() for batch in batches for row_M in batch] == [row_M.tolist() for row_M in chosen]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(row_M) for row_M in batch) <= bound


def test_scoring_leaves_no_gradient_and_is_repeatable(load: Load, pretrained: Pretrained) -> None:
    heldout, model = load(central(10)), new_model(pretrained)
    assert score(model, heldout).tobytes() == score(model, heldout).tobytes()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_heads_are_scored_by_their_click(load: Load, pretrained: Pretrained) -> None:
    frame = central(10)
    bought = frame.assign(purchased=(frame["clicked"] * (np.arange(len(frame)) % 2)).astype(np.int8))
    heldout, model = load(bought), new_model(pretrained, heads=2)
    assert heldout.label_NL.shape[1] == 2
    score_N = score(model, heldout)
    with torch.no_grad():
        model.head.weight[1] += 5  # the purchase head alone
    assert score(model, heldout).tobytes() == score_N.tobytes()


# --- figures ------------------------------------------------------------------------------------------------------


def test_figures_equal_sklearns(load: Load, pretrained: Pretrained) -> None:
    heldout = load(central())
    score_N, label_N = score(new_model(pretrained), heldout), heldout.label_NL[:, 0]
    figures = final_figures(score_N, heldout, ServerConfig(bootstrap_samples=50), seed=1)
    loss = sklearn_metrics.log_loss(label_N, score_N)
    rate = label_N.mean()
    assert figures["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(label_N, score_N), abs=1e-12)
    assert figures["pr_auc"] == pytest.approx(sklearn_metrics.average_precision_score(label_N, score_N), abs=1e-12)
    assert figures["log_loss"] == pytest.approx(loss, abs=1e-9)
    assert figures["brier"] == pytest.approx(sklearn_metrics.brier_score_loss(label_N, score_N), abs=1e-9)
    assert figures["ne"] == pytest.approx(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)), rel=1e-6)
    assert (figures["rows"], figures["users"]) == (len(label_N), len(np.unique(heldout.user_N)))
    low, high = figures["intervals"]["auc"]
    assert low < figures["auc"] < high
    brief = round_figures(score_N, heldout, ServerConfig(bootstrap_samples=50), seed=1)
    assert brief.keys() == {"auc", "log_loss", "ne", "intervals"}
    assert brief["intervals"] == figures["intervals"] == intervals(score_N, heldout, 50, 1)
    assert brief["auc"] == figures["auc"]


def test_without_resamples_there_are_no_intervals(load: Load, pretrained: Pretrained) -> None:
    heldout = load(central(10))
    score_N = score(new_model(pretrained), heldout)
    config = ServerConfig(bootstrap_samples=0)
    assert "intervals" not in round_figures(score_N, heldout, config, 1)
    assert "intervals" not in final_figures(score_N, heldout, config, 1)


def test_slates_give_ranking_figures(load: Load, pretrained: Pretrained) -> None:
    frame = central(30)
    slates = load(frame.assign(slate=(frame["user"] + frame["time"].astype(str)).astype("str")))
    assert slates.slate_N is not None
    assert len(slates.slate_N) == frame["evaluate"].sum()
    model = new_model(pretrained)
    config = ServerConfig(bootstrap_samples=0)
    assert "mrr" in final_figures(score(model, slates), slates, config, 1)
    plain = load(frame)
    assert plain.slate_N is None
    assert "mrr" not in final_figures(score(model, plain), plain, config, 1)


# --- slices -------------------------------------------------------------------------------------------------------


def lines_of(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["slice"]: line for line in figures["slices"]}


def test_slices_by_hand(load: Load, pretrained: Pretrained) -> None:
    frame = central(90)
    cold_N = frame["user"].str[-2].astype(int) % 2 == 0
    frame = frame.assign(cold_user=cold_N, cold_item=frame["item"].isin(["i1", "i2"]))
    heldout = load(frame)
    score_N = score(new_model(pretrained), heldout)
    lines = lines_of(final_figures(score_N, heldout, ServerConfig(bootstrap_samples=0), 1))
    evaluated = frame[frame["evaluate"]].reset_index(drop=True)
    masks = {
        "partner 0": evaluated["partner"] == 0,
        "partner 2": evaluated["partner"] == 2,
        "new users": evaluated["cold_user"],
        "known users": ~evaluated["cold_user"],
        "new items": evaluated["cold_item"],
        "known items": ~evaluated["cold_item"],
        "domain news": evaluated["domain"] == "news",
        "domain video": evaluated["domain"] == "video",
    }
    assert set(masks) <= set(lines)
    for name, mask in masks.items():
        line, mask_N = lines[name], mask.to_numpy(bool)
        label_N = evaluated["clicked"].to_numpy()[mask_N]
        assert line["rows"] == mask_N.sum() > 50
        assert line["users"] == evaluated["user"][mask_N].nunique()
        assert line["click_rate"] == pytest.approx(label_N.mean())
        assert line["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(label_N, score_N[mask_N]), abs=1e-12)
        assert line["calibration_ratio"] == pytest.approx(score_N[mask_N].mean() / label_N.mean())
        assert "intervals" not in line


def test_history_slices_partition_the_rows(load: Load) -> None:
    frame = central(60)
    heldout = load(frame, replace(CONFIG, history=20))
    partition = next(each for each in heldout.partitions if each.name == "history")
    earlier = np.array(
        [
            ((frame["user"] == row.user) & (frame["time"] < row.time) & (frame["clicked"] == 1)).sum()
            for row in frame.itertuples()
        ]
    )[frame["evaluate"]]
    bins = {"no history": (0, 0), "1 to 4 positives": (1, 4), "5 to 19": (5, 19), "20 or more": (20, 999)}
    total = np.zeros(len(earlier), int)
    for name, (low, high) in bins.items():
        mask_N = partition.group_N == partition.groups.index(f"history: {name}")
        np.testing.assert_array_equal(mask_N, (earlier >= low) & (earlier <= high))
        total += mask_N
    assert (total == 1).all()


def test_small_slices_give_no_figure_and_no_count(load: Load, pretrained: Pretrained) -> None:
    heldout = load(central(6))
    score_N = score(new_model(pretrained), heldout)
    lines = lines_of(final_figures(score_N, heldout, ServerConfig(bootstrap_samples=0), 1))
    assert lines["history: 20 or more"] == {"slice": "history: 20 or more", "of": "history", "hidden": "no rows"}
    assert lines["partner 0"] == {"slice": "partner 0", "of": "partner", "hidden": "under 20 users"}
    assert {line["hidden"] for line in lines.values()} == {"no rows", "under 20 users"}
    lines = lines_of(
        final_figures(score_N, heldout, ServerConfig(bootstrap_samples=0, least_slice_users=1, least_slice_rows=1), 1)
    )
    assert sum(line["users"] for line in lines.values() if line["of"] == "partner") == 6


def test_a_log_without_extras_has_history_slices_only(load: Load) -> None:
    frame = central(10).drop(columns=["partner"]).assign(domain="")
    assert [each.name for each in load(frame).partitions] == ["history"]


# --- groups of people ---------------------------------------------------------------------------------------------


def with_groups(frame: pd.DataFrame) -> pd.DataFrame:
    """Every third user stated nothing; the others are of two groups."""
    number_N = frame["user"].str[1:].astype(int)
    age_N = np.array(["", "old", "young"], object)[number_N % 3]
    return frame.assign(**{"sensitive:age": pd.Series(age_N, index=frame.index, dtype="str")})


def test_groups_of_people_are_slices_and_change_no_score(load: Load, pretrained: Pretrained) -> None:
    frame = central(90)
    plain, grouped = load(frame), load(with_groups(frame))
    model = new_model(pretrained)
    score_N = score(model, grouped)
    assert score_N.tobytes() == score(model, plain).tobytes()
    assert grouped.rows.dense_NF.tobytes() == plain.rows.dense_NF.tobytes()
    config = ServerConfig(bootstrap_samples=30)
    figures = final_figures(score_N, grouped, config, 1)
    lines = lines_of(figures)
    assert {name for name in lines if name.startswith("age")} == {"age: old", "age: young", "age not stated"}
    evaluated = with_groups(frame)[frame["evaluate"]]
    old_N = (evaluated["sensitive:age"] == "old").to_numpy()
    label_N = evaluated["clicked"].to_numpy()
    assert lines["age: old"]["users"] == evaluated["user"][old_N].nunique() > 20
    assert lines["age: old"]["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(label_N[old_N], score_N[old_N]))
    (column,) = figures["fairness"]["columns"]
    assert column["groups"] == ["age: old", "age: young"]
    gap = {each["figure"]: each for each in column["gaps"]}["auc"]
    assert gap["gap"] == pytest.approx(abs(lines["age: old"]["auc"] - lines["age: young"]["auc"]))
    without = final_figures(score_N, plain, config, 1)
    assert "fairness" not in without
    assert without["slices"] == [line for line in figures["slices"] if line["of"] != "sensitive:age"]


# --- what cannot be evaluated -------------------------------------------------------------------------------------


def test_a_missing_file_is_told(tmp_path: Path, pretrained: Pretrained) -> None:
    for path in (tmp_path / "none.parquet", tmp_path):
        with pytest.raises(DataError, match="no held-out clicks"):
            load_heldout(path, CONFIG, pretrained)


@pytest.mark.parametrize("content", [b"", b"user,time\n", b"PAR1 and no more PAR1"])
def test_another_kind_of_file_is_told(content: bytes, tmp_path: Path, pretrained: Pretrained) -> None:
    (tmp_path / "central.parquet").write_bytes(content)
    with pytest.raises(DataError, match="not readable as Parquet"):
        load_heldout(tmp_path / "central.parquet", CONFIG, pretrained)


def test_no_row_to_evaluate_is_told(load: Load) -> None:
    frame = central(4)
    with pytest.raises(DataError, match=f"none of the {len(frame)} rows is marked for evaluation"):
        load(frame.assign(evaluate=False))
    with pytest.raises(DataError, match="none of the 0 rows"):
        load(frame.iloc[:0])


@pytest.mark.parametrize("column", ["user", "time", "item", "text", "clicked", "domain", "evaluate"])
def test_a_missing_column_is_named(column: str, load: Load) -> None:
    with pytest.raises(DataError, match=f"no column {column}; it needs user, time"):
        load(central(4).drop(columns=[column]))


def test_rows_out_of_order_are_refused(load: Load) -> None:
    """Else features would be wrong in silence: a torn user forgets its past, and a later row would count as earlier."""
    frame = central(6)
    size = frame.groupby("user")["user"].transform("size")
    assert size.max() > 2
    backwards = frame.iloc[::-1]
    shuffled = frame.sample(frac=1, random_state=1)
    torn = pd.concat([frame.iloc[1:], frame.iloc[:1]])
    assert frame["user"].iloc[0] == frame["user"].iloc[1]
    for wrong in (backwards, shuffled, torn):
        with pytest.raises(DataError, match="not in the order of users, then times"):
            load(wrong.reset_index(drop=True))


def test_users_need_no_alphabet(load: Load) -> None:
    """Any order of whole users will do."""
    frame = central(6)
    parts = [part for _, part in frame.groupby("user")]
    moved = pd.concat(parts[::-1]).reset_index(drop=True)
    assert load(moved).label_NL[:, 0].sum() == load(frame).label_NL[:, 0].sum()


def test_features_are_made_once_for_the_same_bytes_and_anew_for_others(tmp_path: Path, pretrained: Pretrained) -> None:
    """Wherever the file lies; and a file that was replaced is never answered with the features of the earlier one."""
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    central(seed=1).to_parquet(first, index=False)
    second.write_bytes(first.read_bytes())
    kept = load_heldout(first, CONFIG, pretrained)
    assert load_heldout(second, CONFIG, pretrained) is kept
    assert load_heldout(first, replace(CONFIG, history=CONFIG.history + 1), pretrained) is not kept
    central(seed=2).to_parquet(first, index=False)
    assert load_heldout(first, CONFIG, pretrained).label_NL.tolist() != kept.label_NL.tolist()
    assert load_heldout(second, CONFIG, pretrained).label_NL.tolist() == kept.label_NL.tolist()
