"""What all tests share: quiet threads, no network, a cache of their own, and a tiny encoder."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_encoder import write_tiny_encoder

from common.config import ModelConfig
from common.features import UserRows, featurise


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random BERT for `path:`."""
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of encoded texts that no other run shares."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["HUSHCLICK_CACHE"] = str(folder)
    return folder


def random_rows(num_users: int, seed: int = 0, most_rows: int = 9, purchases: bool = False) -> pd.DataFrame:
    """Returns a canonical log of users with 1 to `most_rows` rows over a dozen items in two domains."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most_rows + 1, num_users)
    user = np.repeat([f"u{number:04d}" for number in range(num_users)], counts)
    item = rng.integers(0, 12, len(user))
    frame = pd.DataFrame(
        {
            "user": user,
            "time": 1_700_000_000 + rng.integers(0, 40, len(user)) * 1800,
            "item": [f"i{number}" for number in item],
            "text": [f"text number {number}" for number in item],
            "clicked": rng.integers(0, 2, len(user)).astype(np.int8),
            "domain": np.where(item % 2 == 0, "news", "video"),
            "context:device": rng.choice(["phone", "desktop", ""], len(user)),
        }
    )
    if purchases:
        frame["purchased"] = (frame["clicked"] * rng.integers(0, 2, len(user))).astype(np.int8)
    frame = frame.sort_values(["user", "time"], kind="stable").drop_duplicates(["user", "item", "time"])
    return frame.reset_index(drop=True)


def random_features(
    num_users: int, seed: int = 0, config: ModelConfig | None = None, width: int = 8, purchases: bool = False
) -> UserRows:
    """Returns the features of `random_rows` over random text states."""
    rows = random_rows(num_users, seed, purchases=purchases)
    codes, texts = pd.factorize(rows["text"], sort=True)
    states_TE = np.random.default_rng(99).normal(size=(len(texts), width)).astype(np.float32)
    return featurise(rows, codes.astype(np.int64), states_TE, config or ModelConfig(width=4, hidden=6))
