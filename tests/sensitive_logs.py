"""A small click log with sensitive columns and a planted proxy, as a user would bring it: file, card, configuration."""

from pathlib import Path

import numpy as np
import pandas as pd
import tomli_w

CANARY = "canary-elder-7f3a"  # a group's name that must turn up nowhere but in the held-out log and its slices
OTHER = "young-91bc-canary"


def sensitive_log(users: int = 240, rows_each: int = 8, seed: int = 0, proxy: bool = True) -> pd.DataFrame:
    """Returns raw rows: `age` (two groups and some unstated), `gender` (one in seventy is "x"), and `campaign`.

    Clicks follow the slot for the young, and a coin for the elder: a model that is good on average serves them worse.
    Where `proxy`, the campaign says who is elder.
    """
    rng = np.random.default_rng(seed)
    number_U = np.arange(users)
    elder_U = number_U % 2 == 1
    age_U = np.where(number_U % 8 == 6, "", np.where(elder_U, CANARY, OTHER))
    gender_U = np.where(number_U % 70 == 3, "x", np.where(number_U // 2 % 2 == 0, "f", "m"))
    user_N = np.repeat(number_U, rows_each)
    item_N = rng.integers(0, 10, len(user_N))
    top_N = rng.random(len(user_N)) < 0.5
    rate_N = np.where(elder_U[user_N], 0.5, np.where(top_N, 0.9, 0.1))
    campaign_N = (
        np.where(elder_U[user_N], "autumn", "spring") if proxy else rng.choice(["autumn", "spring"], len(user_N))
    )
    return pd.DataFrame(
        {
            "visitor": [f"v{number:04d}" for number in user_N],
            "shown": 1_700_000_000 + np.tile(np.arange(rows_each), users) * 86_400 + user_N,
            "headline": [f"headline number {number}" for number in item_N],
            "ad": [f"ad-{number}" for number in item_N],
            "clicked": (rng.random(len(user_N)) < rate_N).astype(int),
            "campaign": campaign_N,
            "slot": np.where(top_N, "top", "side"),
            "age": age_U[user_N],
            "gender": gender_U[user_N],
        }
    )


def card_table(sensitive: tuple[str, ...] = ("age", "gender"), context: tuple[str, ...] = ("slot",)) -> dict[str, dict]:
    """Returns a data card of that log as a TOML table."""
    columns = {"user": "visitor", "time": "shown", "text": "headline", "item": "ad", "clicked": "clicked"}
    table: dict[str, dict] = {"columns": columns | {"context": list(context)}, "time": {"unit": "seconds"}}
    return table | ({"sensitive": {"columns": list(sensitive)}} if sensitive else {})


def write_log(folder: Path, raw: pd.DataFrame, table: dict[str, dict], suffix: str = "csv") -> tuple[Path, Path]:
    """Writes a log and its card, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    clicks, card = folder / f"log.{suffix}", folder / "card.toml"
    raw.to_csv(clicks, index=False) if suffix == "csv" else raw.to_parquet(clicks, index=False)
    card.write_text(tomli_w.dumps(table), encoding="utf-8")
    return clicks, card
