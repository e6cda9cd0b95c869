"""Which columns give a sensitive one away: against scikit-learn, planted proxies, and what chance alone does."""

import numpy as np
import pandas as pd
import pytest
from sensitive_logs import card_table, sensitive_log, write_log
from sklearn.metrics import homogeneity_score

from common import proxies
from common.card import parse_card
from common.clicks import read_clicks
from common.proxies import Association, associations, facts_of, warnings_of


def log_of(group_U: np.ndarray, values: list[list[str]], column: str = "context:site") -> pd.DataFrame:
    """Returns rows of users, each in its group, one row per value of its list."""
    user_N = np.repeat(np.arange(len(group_U)), [len(own) for own in values])
    item_N = np.arange(len(user_N)) % 3
    return pd.DataFrame(
        {
            "user": [f"u{number:05d}" for number in user_N],
            "time": np.arange(len(user_N)),
            "item": [f"i{number}" for number in item_N],
            "text": [f"text {number}" for number in item_N],
            "clicked": np.int8(0),
            "domain": "",
            column: [value for own in values for value in own],
            "sensitive:gender": group_U[user_N],
        }
    )


def found_for(rows: pd.DataFrame, column: str = "context:site") -> Association:
    (one,) = [one for one in associations(rows) if one.column == column]
    return one


def test_it_is_the_homogeneity_of_scikit_learn_before_chance_is_taken_off() -> None:
    """With one value per user the two count the same."""
    rng = np.random.default_rng(0)
    group_U = rng.choice(["f", "m", "x"], 400, p=[0.5, 0.4, 0.1])
    value_U = np.where(rng.random(400) < 0.6, group_U, rng.choice(["a", "b", "f"], 400))
    pairs = proxies._pairs(np.arange(400), value_U.astype(object), pd.factorize(group_U)[0], pd.factorize(group_U)[1])
    assert proxies._explained(pairs, pairs.group_U) == pytest.approx(homogeneity_score(group_U, value_U), abs=1e-12)


def test_by_hand_a_user_counts_once_however_many_values_it_has() -> None:
    """Two users of "f" at "a"; two of "m", one at "b" and one at both: H(group | value) = 1.5 h(1/5 ... ) by hand."""
    group_U = np.array([0, 0, 1, 1])
    user_N, value_N = np.array([0, 1, 2, 3, 3]), np.array(["a", "a", "b", "a", "b"], dtype=object)
    pairs = proxies._pairs(user_N, value_N, group_U, np.array(["f", "m"]))
    # Weights: at a, f 2 and m 1/2; at b, m 3/2. So H(group | a) = h(1/5), of 2.5 users in 4; b tells all.
    left = 2.5 / 4 * -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))
    assert proxies._explained(pairs, pairs.group_U) == pytest.approx(1 - left / np.log(2), abs=1e-12)


@pytest.mark.parametrize("many", [1, 3])
def test_a_column_from_which_the_group_can_be_read_off_explains_all_of_it(many: int) -> None:
    """One to one, and many to one: finer values give no less away."""
    group_U = np.array(["f", "m"] * 150)
    rows = log_of(group_U, [[f"{group}-{place % many}"] for place, group in enumerate(group_U)])
    one = found_for(rows)
    assert one.explained == pytest.approx(1.0)
    assert one.is_proxy
    assert {(each.value[0], each.group, each.share) for each in one.telling} == {("f", "f", 1.0), ("m", "m", 1.0)}
    (warning,) = warnings_of([one])
    assert warning.startswith("context:site gives gender away: it explains 100% of it; of ")
    assert '"f", and 50% of all users' in warning or '"m", and 50% of all users' in warning


@pytest.mark.parametrize("distinct", [2, 30, 120])
def test_chance_explains_nothing_however_fine_the_column_is(distinct: int) -> None:
    """Plainly measured, 120 values over 300 users would explain a quarter of a gender that they know nothing of."""
    rng = np.random.default_rng(distinct)
    group_U = rng.choice(["f", "m"], 300)
    value_U = rng.integers(0, distinct, 300).astype(str)
    one = found_for(log_of(group_U, [[value] for value in value_U]))
    assert one.explained is not None
    assert one.explained < 0.03
    assert not one.is_proxy
    if distinct == 120:
        assert homogeneity_score(group_U, value_U) > 0.2


def test_rows_of_one_user_are_not_taken_for_evidence() -> None:
    """Users who repeat a value a hundred times say no more than once: counted by rows, chance would look certain."""
    rng = np.random.default_rng(5)
    group_U, value_U = rng.choice(["f", "m"], 40), rng.choice(list("abcd"), 40)
    once, often = (found_for(log_of(group_U, [[value] * times for value in value_U])) for times in (1, 100))
    assert once.explained == often.explained
    assert once.telling == often.telling


def test_one_telling_value_is_found_in_a_column_that_explains_little() -> None:
    rng = np.random.default_rng(2)
    group_U = rng.choice(["f", "m"], 2000)
    value_U = rng.choice([f"s{number}" for number in range(8)], 2000).astype(object)
    value_U[np.flatnonzero(group_U == "f")[:60]] = "mothers"
    one = found_for(log_of(group_U, [[value] for value in value_U]))
    assert one.explained is not None
    assert one.explained < proxies.MOST_EXPLAINED
    assert [(each.value, each.group, each.users, each.share) for each in one.telling] == [("mothers", "f", 60, 1.0)]
    assert 'of 60 users with context:site = "mothers", 100% have gender = "f"' in warnings_of([one])[0]


def test_no_value_of_few_users_is_named_and_none_that_says_what_all_say() -> None:
    group_U = np.array(["f", "m"] * 100)
    values = [["rare"] if place < 38 and group == "f" else ["usual"] for place, group in enumerate(group_U)]
    assert sum(own == ["rare"] for own in values) == 19
    assert found_for(log_of(group_U, values)).telling == ()
    values[38] = ["rare"]
    assert [each.value for each in found_for(log_of(group_U, values)).telling] == ["rare"]
    mostly = np.array((["m"] * 19 + ["f"]) * 20)  # 95 % are m, so that 95 % of m says nothing
    halves = log_of(mostly, [[str(place // 20 % 2)] for place in range(len(mostly))])
    assert found_for(halves).telling == ()


def test_a_column_with_a_value_for_each_user_is_called_an_id() -> None:
    group_U = np.array(["f", "m"] * 60)
    one = found_for(log_of(group_U, [[f"device-{place}"] for place in range(120)]))
    assert one.explained is None
    assert (
        "nearly each of its values is of one user, so that it cannot be measured, and works as an id"
        in warnings_of([one])[0]
    )


def test_users_of_whom_nothing_is_stated_do_not_count() -> None:
    group_U = np.array(["f", "m", "", ""] * 60)
    rows = log_of(group_U, [[group or "?"] for group in group_U])
    assert found_for(rows).explained == pytest.approx(1.0)
    assert {each.value for each in found_for(rows).telling} == {"f", "m"}
    assert associations(log_of(np.array(["", "f"] * 60), [["a"], ["b"]] * 60)) == []  # one group is nothing to tell


def test_the_planted_proxy_of_a_log_leads_and_without_it_there_is_none(tmp_path) -> None:
    for proxy in (True, False):
        table = card_table(context=("slot", "campaign"))
        clicks, _ = write_log(tmp_path / str(proxy), sensitive_log(proxy=proxy), table)
        rows = read_clicks(clicks, parse_card(table), sensitive=True).rows
        found = associations(rows)
        assert {one.column for one in found} == {"text", "context:slot", "context:campaign"}  # items are the texts
        warned = [one for one in found if one.is_proxy]
        assert [(one.column, one.sensitive) for one in warned] == ([("context:campaign", "age")] if proxy else [])
        assert len(warnings_of(found)) == len(warned)
        assert [one["is_proxy"] for one in facts_of(found)] == [one.is_proxy for one in found]


def test_values_are_in_no_repr_and_long_ones_are_cut() -> None:
    group_U = np.array(["f", "m"] * 60)
    rows = log_of(group_U, [[f"SECRET-{group}-{'y' * 80}"] for group in group_U])
    one = found_for(rows)
    assert "SECRET" not in repr(one)
    assert (
        "SECRET-f-" + "y" * 30 + "…" in warnings_of([one])[0] or "SECRET-m-" + "y" * 30 + "…" in warnings_of([one])[0]
    )
