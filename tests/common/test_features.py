"""Features by hand, and that no row sees its own label, later rows or other users.

Legend: N rows, H history, T texts, E width of a text state.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_features, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import ModelConfig
from common.features import UserRows, count_items, dense_names, featurise, make_batch
from common.model.click_model import build_model, forward, user_losses

CONFIG = ModelConfig(width=4, hidden=6, history=3, context_buckets=4)
HOUR = 3600
THURSDAY = 1_700_092_800  # 2023-11-16 00:00:00 UTC


def log_of(rows: list[tuple[Any, ...]], **columns: list[Any]) -> pd.DataFrame:
    """Returns a canonical log from (user, time, item, text, clicked, domain)."""
    frame = pd.DataFrame(rows, columns=["user", "time", "item", "text", "clicked", "domain"])
    frame["clicked"] = frame["clicked"].astype(np.int8)
    return frame.assign(**columns)


def features_of(frame: pd.DataFrame, config: ModelConfig = CONFIG, **options: Any) -> UserRows:
    """Returns features with one orthogonal state per letter: the text's first."""
    text_N = np.array(["ABCDEFGH".index(text[0]) for text in frame["text"]], np.int64)
    return featurise(frame, text_N, np.eye(8, dtype=np.float32), config, **options)


def column(features: UserRows, name: str, config: ModelConfig = CONFIG) -> np.ndarray:
    return features.dense_NF[:, dense_names(config).index(name)]


# The second and third row are of one moment.
ONE_USER = [
    ("u", THURSDAY, "i1", "A", 1, "news"),
    ("u", THURSDAY + 6 * HOUR, "i2", "B", 0, "news"),
    ("u", THURSDAY + 6 * HOUR, "i1", "A", 1, "video"),
    ("u", THURSDAY + 60 * HOUR, "i1", "A", 1, "news"),
]


def close(found: np.ndarray, expected: list[float]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_own_past_rates_by_hand() -> None:
    """Before each row lie 0, 1, 1 and 3 rows with 0, 1, 1 and 2 clicks; 4 pseudo-rows pull to one half."""
    features = features_of(log_of(ONE_USER))
    close(column(features, "past_rate"), [0, np.log(3 / 2), np.log(3 / 2), np.log(4 / 3)])
    close(column(features, "past_rows"), [0, np.log(2) / 3, np.log(2) / 3, np.log(4) / 3])
    close(column(features, "past_clicks"), [0, np.log(2) / 3, np.log(2) / 3, np.log(3) / 3])
    close(column(features, "recent_rate"), [0, np.log(3 / 2), np.log(3 / 2), np.log(4 / 3)])


def test_past_rates_of_the_same_domain_by_hand() -> None:
    """News before: none, one clicked, (video: none), one clicked and one not."""
    features = features_of(log_of(ONE_USER))
    close(column(features, "domain_rate"), [0, np.log(3 / 2), 0, 0])
    close(column(features, "domain_rows"), [0, np.log(2) / 3, 0, np.log(3) / 3])


def test_text_rates_by_hand() -> None:
    """Equal texts count 10 rows, orthogonal ones 10 exp(-12)."""
    far = np.exp(-12.0)
    features = features_of(log_of(ONE_USER))
    close(
        column(features, "alike_rate"),
        [0, np.log((10 * far + 2) / 2), np.log(12 / 2), np.log(22 / (10 * far + 2))],
    )
    close(
        column(features, "alike_rows"),
        [0, np.log1p(10 * far) / 2, np.log1p(10) / 2, np.log1p(20 + 10 * far) / 2],
    )
    close(column(features, "nearest_click"), [0, 0, 2, 2])
    close(column(features, "click_pull"), [0, 0, 5, 5])


def test_the_public_prior_moves_the_zero_point_only() -> None:
    """With prior .2: (1 + .8) / 5 after one click; nothing known is 0 whatever the prior."""
    config = dataclasses.replace(CONFIG, prior_click_rate=0.2)
    close(
        column(features_of(log_of(ONE_USER), config), "past_rate")[:2],
        [0, np.log(1.8 / 3.2) - np.log(0.2 / 0.8)],
    )


def test_the_recent_rate_is_of_the_last_ten_rows() -> None:
    rows = [("u", THURSDAY + hour * HOUR, "i", "A", int(hour < 2), "") for hour in range(13)]
    features = features_of(log_of(rows))
    close(column(features, "recent_rate")[[10, 11, 12]], [0 + np.log(4 / 10), np.log(3 / 11), np.log(2 / 12)])
    close(column(features, "past_rate")[[12]], [np.log(4 / 12)])


def test_history_is_the_latest_earlier_positives_newest_first() -> None:
    rows = [("t", THURSDAY, "i", "C", 1, "")]
    rows += [("u", THURSDAY + hour * HOUR, "i", "A", clicked, "") for hour, clicked in enumerate([1, 0, 1, 1, 1, 0])]
    features = features_of(log_of(rows))
    assert features.history_NH.tolist() == [
        [-1, -1, -1],
        [-1, -1, -1],
        [1, -1, -1],
        [1, -1, -1],
        [3, 1, -1],
        [4, 3, 1],
        [5, 4, 3],
    ]


def test_rows_of_one_moment_do_not_see_each_other() -> None:
    rows = [("u", THURSDAY, "i", "A", 1, "d")] * 4 + [("u", THURSDAY + 1, "i", "A", 0, "d")]
    features = features_of(log_of(rows))
    own = features.dense_NF[:, :10]
    assert not own[:4].any()
    assert (features.history_NH[:4] == -1).all()
    close(column(features, "past_rate")[[4]], [np.log(6 / 2)])
    assert features.history_NH[4].tolist() == [3, 2, 1]


def test_without_history_there_are_no_entries() -> None:
    config = dataclasses.replace(CONFIG, history=0)
    features = features_of(log_of(ONE_USER), config)
    assert features.history_NH.shape == (4, 0)
    batch = make_batch(features, [np.arange(4)])
    assert not batch.attend_BMK.any()
    assert batch.bank_BKE.shape == (1, 1, 8)


def test_time_of_day_and_weekend_in_utc() -> None:
    """Midnight on a Thursday, 6 o'clock, noon on Saturday, Sunday, Monday."""
    offsets = [0, 6 * HOUR, 60 * HOUR, 72 * HOUR, 96 * HOUR]
    features = features_of(log_of([("u", THURSDAY + offset, "i", "A", 0, "") for offset in offsets]))
    close(column(features, "hour_sin"), [0, 1, 0, 0, 0])
    close(column(features, "hour_cos"), [1, 0, -1, 1, 1])
    close(column(features, "weekend"), [0, 0, 1, 1, 0])
    assert pd.Timestamp(THURSDAY, unit="s").day_name() == "Thursday"


def bucket(text: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % buckets


def test_context_is_hashed_by_name_and_value() -> None:
    frame = log_of(ONE_USER, **{"context:device": ["phone", "phone", "", "desk"]})
    features = features_of(frame)
    found = np.stack([column(features, f"context_{number}") for number in range(4)], axis=1)
    expected = np.zeros((4, 4))
    for row, (domain, device) in enumerate(zip(frame["domain"], frame["context:device"], strict=True)):
        expected[row, bucket(f"domain={domain}", 4)] = 1
        if device:
            expected[row, bucket(f"context:device={device}", 4)] = 1
    np.testing.assert_array_equal(found, expected)
    assert found[2].sum() == 1  # an empty value sets nothing


def test_a_value_in_two_columns_is_two_facts() -> None:
    config = dataclasses.replace(CONFIG, context_buckets=4096)
    features = features_of(log_of(ONE_USER, **{"context:place": ["news", "news", "x", "x"]}), config)
    assert features.dense_NF[0, -4096:].sum() == 2


def test_an_empty_domain_sets_nothing() -> None:
    features = features_of(log_of([("u", THURSDAY, "i", "A", 0, "")]))
    assert not features.dense_NF[0, -4:].any()


ITEMS = dataclasses.replace(CONFIG, item_rates="exact")


def test_item_rates_leave_the_own_label_out() -> None:
    """Item i1 was clicked 3 of 5 times: the clicked row sees 2 of 4, the other 3 of 4; 5 pseudo-rows."""
    rows = [
        ("u", THURSDAY, "i1", "A", 1, ""),
        ("u", THURSDAY + 1, "i1", "A", 0, ""),
        ("u", THURSDAY + 2, "x", "A", 0, ""),
    ]
    features = features_of(log_of(rows), ITEMS, item_counts={"i1": (3.0, 5.0)})
    close(column(features, "item_rate", ITEMS), [0, np.log(5.5 / 3.5), 0])
    close(column(features, "item_rows", ITEMS), [np.log(5) / 3, np.log(5) / 3, 0])


def test_item_rates_of_rows_that_were_not_counted_are_whole() -> None:
    rows = [("u", THURSDAY, "i1", "A", 1, ""), ("u", THURSDAY + 1, "i1", "A", 1, "")]
    own_N = np.array([True, False])
    features = features_of(log_of(rows), ITEMS, item_counts={"i1": (3.0, 5.0)}, own_rows_N=own_N)
    close(column(features, "item_rate", ITEMS), [0, np.log(5.5 / 4.5)])
    close(column(features, "item_rows", ITEMS), [np.log(5) / 3, np.log(6) / 3])


def test_counted_items_by_hand() -> None:
    assert count_items(log_of(ONE_USER)) == {"i1": (3.0, 3.0), "i2": (0.0, 1.0)}


def test_names_and_columns_agree() -> None:
    for config in (CONFIG, ITEMS, ModelConfig()):
        features = features_of(log_of(ONE_USER), config, item_counts={})
        assert features.dense_NF.shape == (4, len(dense_names(config)))
        assert features.dense_NF.dtype == np.float32
        assert len(set(dense_names(config))) == len(dense_names(config))


def test_labels_and_offsets() -> None:
    frame = log_of([("a", 1, "i", "A", 1, ""), ("b", 1, "i", "A", 0, ""), ("b", 2, "i", "A", 1, "")])
    features = features_of(frame)
    assert features.offset_U1.tolist() == [0, 1, 3]
    assert features.num_users == 2
    assert features.label_NL.tolist() == [[1], [0], [1]]
    bought = features_of(frame.assign(purchased=np.array([1, 0, 0], np.int8)))
    assert bought.label_NL.tolist() == [[1, 1], [0, 0], [1, 0]]


def test_an_empty_log_has_no_users() -> None:
    features = features_of(log_of(ONE_USER).iloc[:0])
    assert features.num_users == 0
    assert features.dense_NF.shape == (0, len(dense_names(CONFIG)))


def test_text_rates_in_blocks_equal_one_row_at_a_time() -> None:
    """A user of 600 rows crosses the blocks of 256; the oracle is a plain loop in float64."""
    rng = np.random.default_rng(3)
    frame = log_of(
        [
            ("u", THURSDAY + int(t), "i", "A", int(c), "")
            for t, c in zip(np.sort(rng.integers(0, 300, 600)), rng.integers(0, 2, 600), strict=True)
        ]
    )
    states_TE = rng.normal(size=(40, 6)).astype(np.float32)
    text_N = rng.integers(0, 40, 600)
    features = featurise(frame, text_N, states_TE, CONFIG)
    unit = states_TE[text_N].astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    time_N, click_N = frame["time"].to_numpy(), frame["clicked"].to_numpy().astype(float)
    for row in (0, 1, 255, 256, 257, 511, 512, 599):
        before = np.flatnonzero(time_N < time_N[row])
        if not len(before):
            continue
        cosine = unit[before] @ unit[row]
        kernel, yes = np.exp(12 * (cosine - 1)), click_N[before] > 0
        rate = (10 * kernel[yes].sum() + 2) / (10 * kernel.sum() + 4)
        close(column(features, "alike_rate")[[row]], [np.log(rate / (1 - rate))])
        close(column(features, "nearest_click")[[row]], [2 * max(cosine[yes].max(initial=0), 0)])
        close(column(features, "click_pull")[[row]], [5 * (cosine[yes].mean() - cosine[~yes].mean())])


# --- leaks --------------------------------------------------------------------------------------------------------

STATES_TE = np.random.default_rng(99).normal(size=(12, 5)).astype(np.float32)


def random_log(seed: int, num_users: int = 4) -> pd.DataFrame:
    frame = random_rows(num_users, seed, most_rows=12)
    frame["time"] = 1_700_000_000 + (frame["time"] - 1_700_000_000) // 7200 * 7200  # many ties
    return frame.sort_values(["user", "time"], kind="stable").reset_index(drop=True)


def states_of(frame: pd.DataFrame) -> UserRows:
    text_N = frame["text"].str.removeprefix("text number ").astype(np.int64).to_numpy()
    return featurise(frame, text_N, STATES_TE, ModelConfig(width=4, hidden=6, history=4))


def assert_same(one: UserRows, rows: Any, other: UserRows, others: Any, shift: int = 0) -> None:
    """Asserts that some rows of one have the features of some rows of the other, `shift` rows further up."""
    np.testing.assert_allclose(one.dense_NF[rows], other.dense_NF[others], atol=2e-5)
    history = other.history_NH[others]
    np.testing.assert_array_equal(one.history_NH[rows], np.where(history >= 0, history - shift, -1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_no_label_enters_its_own_earlier_or_other_users_features(seed: int, data: st.DataObject) -> None:
    frame = random_log(seed)
    row = data.draw(st.integers(0, len(frame) - 1))
    flipped = frame.copy()
    flipped.loc[row, "clicked"] = 1 - flipped.loc[row, "clicked"]
    one, other = states_of(frame), states_of(flipped)
    later_N = (frame["user"] == frame["user"][row]) & (frame["time"] > frame["time"][row])
    free = np.flatnonzero(~later_N)
    assert one.dense_NF[free].tobytes() == other.dense_NF[free].tobytes()  # to the bit
    assert (one.history_NH[free] == other.history_NH[free]).all()
    if later_N.any():  # and the label does what it is for
        assert (one.dense_NF[later_N] != other.dense_NF[later_N]).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_later_rows_change_nothing_earlier(seed: int, data: st.DataObject) -> None:
    frame = random_log(seed, num_users=1)
    kept = data.draw(st.integers(1, len(frame)))
    some = frame.iloc[:kept]
    one = states_of(some)
    # Rows of the moment at which the log is cut may lose their neighbours, which they do not see anyhow.
    assert_same(one, slice(None), states_of(frame), slice(0, kept))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_users_are_independent(seed: int) -> None:
    frame = random_log(seed)
    whole = states_of(frame)
    for start, stop in zip(whole.offset_U1[:-1], whole.offset_U1[1:], strict=True):
        alone = states_of(frame.iloc[start:stop].reset_index(drop=True))
        assert_same(alone, slice(None), whole, slice(start, stop), shift=int(start))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_other_users_in_another_order_change_nothing(seed: int, shuffler: Any) -> None:
    frame = random_log(seed)
    users = list(frame["user"].unique())
    shuffler.shuffle(users)
    moved = pd.concat([frame[frame["user"] == user] for user in users]).reset_index(drop=True)
    one, other = states_of(frame), states_of(moved)
    for user in users:
        here, there = np.flatnonzero(frame["user"] == user), np.flatnonzero(moved["user"] == user)
        assert_same(one, here, other, there, shift=int(there[0] - here[0]))


# --- batches ------------------------------------------------------------------------------------------------------


def some_model(features: UserRows, heads: int = 1) -> Any:
    model = build_model(ModelConfig(width=4, hidden=6), features.states_TE.shape[1], heads, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.from_numpy(np.random.default_rng(1).normal(0, 0.4, tuple(parameter.shape)).astype("f4"))
    return model


def per_user(features: UserRows) -> list[np.ndarray]:
    return [np.arange(a, b) for a, b in zip(features.offset_U1[:-1], features.offset_U1[1:], strict=True)]


@pytest.mark.parametrize("history", [0, 1, 20])
def test_padding_changes_no_logit(history: int) -> None:
    features = random_features(12, config=ModelConfig(width=4, hidden=6, history=history))
    model = some_model(features)
    padded = make_batch(features, per_user(features))
    together = forward(model, padded).detach().numpy()
    assert padded.weight_BM.sum() == len(features.text_N) < padded.weight_BM.size
    for user, row_M in enumerate(per_user(features)):
        alone = forward(model, make_batch(features, [row_M])).detach().numpy()[0]
        np.testing.assert_allclose(together[user, : len(row_M)], alone, atol=1e-5)


def test_chosen_rows_bring_their_whole_history() -> None:
    """A row scores the same whichever other rows of the user are in the batch."""
    features = random_features(12)
    model = some_model(features)
    for row_M in per_user(features):
        whole = forward(model, make_batch(features, [row_M])).detach().numpy()[0]
        for place, row in enumerate(row_M):
            alone = forward(model, make_batch(features, [np.array([row])])).detach().numpy()[0, 0]
            np.testing.assert_allclose(alone, whole[place], atol=1e-5)


def test_users_without_chosen_rows_weigh_nothing() -> None:
    features = random_features(5)
    empty = np.array([], np.int64)
    batch = make_batch(features, [empty, np.arange(2), empty])
    assert batch.weight_BM.sum(1).tolist() == [0, 2, 0]
    losses = user_losses(forward(some_model(features), batch), batch)
    assert losses[[0, 2]].tolist() == [0, 0]
    assert losses[1] > 0
    nobody = make_batch(features, [])
    assert nobody.candidate_BME.shape[0] == 0
    assert user_losses(forward(some_model(features), nobody), nobody).shape == (0,)


def test_attention_is_to_the_own_history_and_no_other() -> None:
    features = random_features(9)
    batch = make_batch(features, per_user(features))
    for user, row_M in enumerate(per_user(features)):
        for place, row in enumerate(row_M):
            expected = features.history_NH[row]
            bank = batch.bank_BKE[user, batch.attend_BMK[user, place]]
            wanted = features.states_TE[features.text_N[np.sort(expected[expected >= 0])]]
            np.testing.assert_array_equal(bank, wanted)
    assert not batch.attend_BMK[batch.weight_BM == 0].any()


@pytest.mark.parametrize("field", ["dense_NF", "label_NL"])
def test_promise_2_the_last_users_nan_does_not_reach_other_users(field: str) -> None:
    """Padding is written, not multiplied: 0 times NaN is NaN, and one user would silence all others."""
    features = random_features(6)
    values = getattr(features, field).copy()
    values[-1] = np.nan  # the row that index -1, padding, points at
    spoilt = dataclasses.replace(features, **{field: values})
    model = some_model(features)
    clean_batch, batch = (make_batch(each, per_user(each)) for each in (features, spoilt))
    assert (batch.weight_BM[:-1] == 0).any()
    clean, found = (user_losses(forward(model, each), each) for each in (clean_batch, batch))
    assert torch.equal(found[:-1], clean[:-1])
    assert found[-1].isnan()


def test_batches_do_not_write_to_the_features() -> None:
    features = random_features(5)
    arrays = {name: value for name, value in vars(features).items() if isinstance(value, np.ndarray)}
    assert len(arrays) >= 6
    before = {name: value.copy() for name, value in arrays.items()}
    batch = make_batch(features, per_user(features))
    batch.candidate_BME[...] = 7
    batch.dense_BMF[...] = 7
    batch.label_BML[...] = 7
    for name, old in before.items():
        np.testing.assert_array_equal(getattr(features, name), old)
