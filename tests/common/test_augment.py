"""Other wordings of texts: functions of the text alone, what each kind may change, and one drawn for each step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import random_features

from common.augment import MASK, reworded, with_wordings, wordings
from common.config import ModelConfig
from common.features import make_batch

TEXT = "one two three four five six seven eight nine ten"


def model(*kinds: str, share: float = 0.3, count: int = 40) -> ModelConfig:
    return ModelConfig(augment_wordings=count, augment=kinds, augment_share=share)  # type: ignore[arg-type]


def test_words_are_left_out_as_often_as_asked() -> None:
    found = wordings(TEXT, model("delete", count=64))
    assert all([word for word in TEXT.split() if word in new.split()] == new.split() for new in found)
    left = np.mean([len(new.split()) / 10 for new in found])
    assert 0.6 < left < 0.8
    assert len(set(found)) > 40


def test_swaps_keep_all_words_and_masks_keep_their_places() -> None:
    for new in wordings(TEXT, model("swap")):
        assert sorted(new.split()) == sorted(TEXT.split())
    assert any(new != TEXT for new in wordings(TEXT, model("swap")))
    masked = [new.split() for new in wordings(TEXT, model("mask"))]
    assert all(word in (MASK, own) for new in masked for word, own in zip(new, TEXT.split(), strict=True))
    assert 0.2 < np.mean([new.count(MASK) / 10 for new in masked]) < 0.4


@pytest.mark.parametrize("text", ["", "word", " ", "\ud800", "🎬🎬", "今天看电影", "a" * 10_000])
def test_any_text_has_wordings_which_are_its_own(text: str) -> None:
    settings = model("delete", "swap", "mask", count=3)
    assert wordings(text, settings) == wordings(text, settings)
    assert len(wordings(text, settings)) == 3
    if len(text.strip()) < 2 or " " in text.strip():
        assert set(wordings(text, settings)) == {text}


def test_chinese_is_reworded_by_characters() -> None:
    assert any(0 < len(new) < 5 and set(new) <= set("今天看电影") for new in wordings("今天看电影", model("delete")))


def test_texts_come_first_and_a_wording_depends_on_its_text_alone() -> None:
    settings = model("delete", "swap", count=2)
    flat = with_wordings(["a b c d e f", TEXT, "a b c d e f"], settings)
    assert len(flat) == 9
    assert flat[:3] == ["a b c d e f", TEXT, "a b c d e f"]
    assert flat[3:6] == [wordings(text, settings)[0] for text in flat[:3]]
    assert flat[7] == wordings(TEXT, settings)[1]


def test_a_step_draws_each_row_one_wording_as_likely_as_its_own() -> None:
    rows = random_features(200)
    count = len(rows.text_N)
    others = 1000 + np.arange(2 * count).reshape(count, 2)
    many = replace(rows, wording_NW=others)
    drawn = reworded(many, np.random.default_rng(0)).text_N
    own = drawn == rows.text_N
    assert ((drawn == others[:, 0]) | (drawn == others[:, 1]) | own).all()
    assert 0.28 < own.mean() < 0.39
    assert reworded(rows, np.random.default_rng(0)) is rows
    assert many.text_N is rows.text_N  # what others read is as it was


def test_a_batch_reads_the_wordings_that_were_drawn() -> None:
    rows = random_features(3, config=ModelConfig(width=4, hidden=6))
    states_TE = np.concatenate([rows.states_TE, -rows.states_TE])
    other_NW = (rows.text_N + len(rows.states_TE))[:, None]
    many = replace(rows, states_TE=states_TE, wording_NW=other_NW)
    drawn = reworded(many, np.random.default_rng(1))
    chosen = [np.arange(rows.offset_U1[0], rows.offset_U1[1])]
    own, new = make_batch(many, chosen), make_batch(drawn, chosen)
    sign_M = np.where(drawn.text_N[chosen[0]] == many.text_N[chosen[0]], 1, -1)
    np.testing.assert_array_equal(new.candidate_BME[0], own.candidate_BME[0] * sign_M[:, None])
    assert set(sign_M) <= {1, -1}


def test_a_run_trains_on_wordings(tiny_encoder: Path, tmp_path: Path) -> None:
    from simulated_runs import run, small_config

    figures = [
        run(small_config(tiny_encoder, 4, 2, model={"augment_wordings": count}), tmp_path / str(count))
        for count in (0, 3)
    ]
    assert figures[0]["final"]["log_loss"] != figures[1]["final"]["log_loss"]
    assert figures[0]["privacy"]["epsilon"] == figures[1]["privacy"]["epsilon"]
