"""One partner's folder as a real partner has it (click log, data card, `partner.toml`), and tasks for its worker."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w
from conftest import random_rows

from client.labels import NoisyLabels
from client.partner import PartnerAggregation, PartnerConfig, dump_partner, load_partner
from client.worker import Worker
from common.card import canonical_card, load_card
from common.clicks import write_clicks
from common.config import EvaluationConfig, ModelConfig, PrivacyConfig, to_table
from common.messages import JoinTask, TrainingPlan, TrainTask
from common.model.click_model import build_model
from common.vector import read_vector

PLAN = TrainingPlan(2, "adam", 0.05, 0.0)
# One round of two steps costs an epsilon of 5.66, four rounds one below 12.
PRIVACY = PrivacyConfig(epsilon=12.0, delta=1e-4, noise_multiplier=0.8, sampling_rate=0.5, clip=0.7, max_local_steps=4)


def write_partner(
    home: Path,
    encoder: Path,
    rows: pd.DataFrame | None = None,
    *,
    model: dict[str, Any] | None = None,
    name: str = "shop",
    aggregation: PartnerAggregation | None = None,
    evaluation: dict[str, Any] | None = None,
    **privacy: Any,
) -> PartnerConfig:
    """Writes a partner's folder and returns its configuration, with absolute paths.

    Where `aggregation` says secure, `identity.pem` and `roster.toml` beside the configuration are for the caller.
    """
    home.mkdir(parents=True, exist_ok=True)
    rows = random_rows(12) if rows is None else rows
    write_clicks(rows, home / "clicks.parquet")
    (home / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(rows))), encoding="utf-8")
    config = PartnerConfig(
        name=name,
        clicks="clicks.parquet",
        card="card.toml",
        ledger="ledger.jsonl",
        state="state",
        declared_users=12,
        model=ModelConfig(**({"encoder": f"path:{encoder}", "width": 4, "hidden": 4} | (model or {}))),
        privacy=replace(PRIVACY, **privacy),
        evaluation=EvaluationConfig(**evaluation or {}),
        identity="identity.pem" if aggregation else "",
        roster="roster.toml" if aggregation else "",
        aggregation=aggregation or PartnerAggregation(method="plain"),
    )
    (home / "partner.toml").write_text(dump_partner(config), encoding="utf-8")
    return load_partner(home / "partner.toml")


def start_model(worker: Worker, seed: int = 1) -> np.ndarray:
    """Returns a global model in this worker's layout."""
    reply = worker.join(JoinTask("run"))
    model = build_model(worker.config.model, worker._pretrained.width, 2 if reply.has_purchases else 1, seed)
    return read_vector(model)


def task_for(worker: Worker, round_number: int = 1, **change: Any) -> TrainTask:
    """Returns the task that a server would send to this worker."""
    fingerprint = worker.join(JoinTask("run")).fingerprint
    task = TrainTask("run", round_number, 0, 1.0, fingerprint, PLAN, start_model(worker))
    return replace(task, **change)


def noisy_labels(config: PartnerConfig) -> NoisyLabels:
    """Returns the flipped labels of a partner, as its worker would have them."""
    return NoisyLabels(config, load_card(Path(config.card)))
