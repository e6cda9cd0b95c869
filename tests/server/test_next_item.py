"""Where the clicked item stands, against scoring each candidate as the log's own row, and against other metrics."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_rows
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from common.cachefolder import default_cache_dir
from common.config import Config, ModelConfig, ServerConfig
from common.features import featurise, make_batch
from common.model.click_model import ClickModel, build_model, forward
from common.pretrained import Pretrained, locate
from common.textstates import TextStates
from server.evaluation import HeldOut, load_heldout
from server.next_item import _figures, next_item_figures

MODEL = ModelConfig(width=4, hidden=6)
Load = Callable[[pd.DataFrame], HeldOut]


def config(**server: Any) -> Config:
    server = {"next_item_clicks": 10_000, "bootstrap_samples": 0} | server
    return Config(model=MODEL, server=ServerConfig(**server))


@pytest.fixture(scope="module")
def pretrained(tiny_encoder: Path) -> Pretrained:
    return locate(f"path:{tiny_encoder}")


@pytest.fixture
def load(tmp_path: Path, pretrained: Pretrained) -> Load:
    def write(frame: pd.DataFrame) -> HeldOut:
        frame.to_parquet(tmp_path / "central.parquet", index=False)
        return load_heldout(tmp_path / "central.parquet", MODEL, pretrained)

    return write


@pytest.fixture(scope="module")
def model(pretrained: Pretrained) -> ClickModel:
    found = build_model(MODEL, pretrained.width, 1, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    return found


def central(num_users: int = 12, seed: int = 0) -> pd.DataFrame:
    rows = random_rows(num_users, seed, most_rows=12)
    place = rows.groupby("user").cumcount()
    return rows.assign(evaluate=(place >= rows.groupby("user")["user"].transform("size") // 2).to_numpy())


def ranks_one_by_one(frame: pd.DataFrame, model: ClickModel, pretrained: Pretrained) -> list[tuple[int, int]]:
    """Returns (rank, candidates) of each evaluated click; each candidate is put in the row's place, alone."""
    first = frame.groupby("item")["time"].min()
    known = frame.drop_duplicates("item").set_index("item")
    found = []
    for place in np.flatnonzero(frame["evaluate"] & (frame["clicked"] == 1)):
        row = frame.iloc[place]
        past = frame[(frame["user"] == row["user"]) & (frame["time"] < row["time"])]
        seen = set(past["item"]) - {row["item"]}
        score = {}
        for item in first[first <= row["time"]].index:
            if item in seen:
                continue
            shown = row.copy()
            shown["item"], shown["text"], shown["domain"] = item, known.loc[item, "text"], known.loc[item, "domain"]
            rows = (
                pd.concat([past, shown.to_frame().T]).reset_index(drop=True).astype({"clicked": np.int8, "time": int})
            )
            encoded = TextStates(pretrained, MODEL.max_tokens, default_cache_dir("")).states(list(rows["text"]))
            features = featurise(rows, encoded.index_N, encoded.states_TE, MODEL)
            logit = forward(model, make_batch(features, [np.array([len(rows) - 1])]))[0, 0, 0].item()
            score[item] = round(logit, 4)
        found.append((1 + sum(value > score[row["item"]] for value in score.values()), len(score)))
    return found


def test_ranks_are_those_of_scoring_each_candidate_alone(load: Load, model: ClickModel, pretrained: Pretrained) -> None:
    frame = central()
    figures = next_item_figures(model, load(frame), config())
    assert figures is not None
    ranks = ranks_one_by_one(frame, model, pretrained)
    assert len({rank for rank, _ in ranks}) > 3
    assert figures["clicks"] == figures["of_clicks"] == len(ranks) > 15
    assert figures["candidates"]["most"] == max(size for _, size in ranks)
    assert figures["candidates"]["mean"] == pytest.approx(np.mean([size for _, size in ranks]))
    assert figures["mrr"] == pytest.approx(np.mean([1 / rank for rank, _ in ranks]), abs=1e-6)
    assert figures["hit_10"] == pytest.approx(np.mean([rank <= 10 for rank, _ in ranks]))
    gains = [1 / np.log2(rank + 1) if rank <= 10 else 0 for rank, _ in ranks]
    assert figures["ndcg_10"] == pytest.approx(np.mean(gains), abs=1e-6)


def test_figures_are_torchmetrics_where_nothing_ties() -> None:
    rng = np.random.default_rng(1)
    scores = [rng.random(size) for size in rng.integers(2, 40, 60)]
    score, index = torch.tensor(np.concatenate(scores)), torch.tensor(np.repeat(range(60), [len(s) for s in scores]))
    target = torch.tensor(np.concatenate([np.arange(len(s)) == 0 for s in scores]))
    theirs = [
        metric(score, target, indexes=index).item()
        for metric in (RetrievalHitRate(top_k=10), RetrievalMRR(), RetrievalNormalizedDCG(top_k=10))
    ]
    np.testing.assert_allclose(_figures(scores).mean(0), theirs, atol=1e-6)


def test_ties_stand_at_each_place_with_the_same_chance() -> None:
    (all_alike,) = _figures([np.zeros(20)])
    gains = [1 / np.log2(rank + 1) for rank in range(1, 11)]
    expected = [0.5, np.mean([1 / rank for rank in range(1, 21)]), sum(gains) / 20]
    np.testing.assert_allclose(all_alike, expected)
    ((hit, reciprocal, _),) = _figures([np.array([0.5] + [0.9] * 9 + [0.5])])  # place 10 or 11
    assert (hit, reciprocal) == (0.5, pytest.approx((1 / 10 + 1 / 11) / 2))


def test_floors_by_hand(load: Load, model: ClickModel) -> None:
    """Three users: the third clicks b when a was clicked twice before, b once and c never."""
    moments = [(1, "u1", "a", 1), (2, "u1", "b", 1), (3, "u2", "a", 1), (3, "u2", "c", 0), (9, "u3", "b", 1)]
    frame = pd.DataFrame(moments, columns=["time", "user", "item", "clicked"]).astype({"clicked": np.int8})
    frame = frame.assign(time=frame["time"] + 1_700_000_000, text="text of " + frame["item"], domain="")
    frame["evaluate"] = frame["user"] == "u3"
    figures = next_item_figures(
        model, load(frame[["user", "time", "item", "text", "clicked", "domain", "evaluate"]]), config()
    )
    assert figures is not None
    assert figures["candidates"] == {"least": 3, "mean": 3.0, "most": 3}
    assert figures["floors"]["popularity"] == {"hit_10": 1, "mrr": 0.5, "ndcg_10": pytest.approx(1 / np.log2(3))}
    assert figures["floors"]["random"]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_fewer_clicks_and_fewer_candidates_are_said(load: Load, model: ClickModel) -> None:
    heldout = load(central(30, 1))
    whole = next_item_figures(model, heldout, config())
    some = next_item_figures(model, heldout, config(next_item_clicks=20))
    assert whole is not None
    assert some is not None
    assert (some["clicks"], some["of_clicks"]) == (20, whole["clicks"])
    assert some == next_item_figures(model, heldout, config(next_item_clicks=20))
    other = replace(config(next_item_clicks=20), round=replace(Config().round, seed=9))
    assert next_item_figures(model, heldout, other) != some
    assert whole["clicks_with_drawn_candidates"] == 0
    assert whole["candidates"]["most"] > 10
    drawn = next_item_figures(model, heldout, config(next_item_candidates=10))
    assert drawn is not None
    assert drawn["candidates"]["most"] == 10
    assert 0 < drawn["clicks_with_drawn_candidates"] <= drawn["clicks"]
    assert drawn["hit_10"] == 1  # among ten, each is in the first ten: why candidates are not drawn lightly


def test_intervals_hold_their_figure(load: Load, model: ClickModel) -> None:
    figures = next_item_figures(model, load(central(30, 1)), config(bootstrap_samples=100))
    assert figures is not None
    for name in ("hit_10", "mrr", "ndcg_10"):
        low, high = figures["intervals"][name]
        assert low < figures[name] < high


def test_it_is_off_by_default_and_where_nothing_is_clicked(load: Load, model: ClickModel) -> None:
    heldout = load(central())
    assert next_item_figures(model, heldout, config(next_item_clicks=0)) is None
    assert ServerConfig().next_item_clicks == 0
    frame = central()
    frame.loc[frame["evaluate"], "clicked"] = 0
    assert next_item_figures(model, load(frame), config()) is None
