"""What a model must beat, on the rows that the model is evaluated on. Only a simulation can know these.

| floor | what it is | private? |
|---|---|---|
| base_rate | the training rows' click rate for every row | no |
| item_popularity | the item's shrunk click rate | no |
| private_item_popularity | the same from the run's private statistics, where it has any | yes |
| own_recent_rate | the user's own last ten labels, shrunk to the prior; nothing is trained | yes |
| logistic_regression | pooled, on the model's own features and 32 components of the text states | no |
| logistic_regression_item_means | the same with exact item means | no |
| logistic_regression_private_item_rates | the same with the run's private statistics, where it has any | no |
| local_only | the same model, each partner alone; each row is scored by its own partner's model | no |
| pooled | the same model on the union | no |

Legend: N evaluated rows, F features, T distinct texts, E text width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from client.training import DpStep, Randomness, train_privately
from common.bootstrap import paired_difference
from common.clicks import impressions_N
from common.config import Config, ModelConfig
from common.features import ItemCounts, UserRows, count_items, dense_names, featurise, item_features
from common.itemrates import ItemRates, parse_release
from common.lineage import STATISTICS
from common.messages import TrainingPlan
from common.metrics import evaluate_scores
from common.model.click_model import build_model
from common.pretrained import Pretrained, locate
from common.runfolder import RunFolder
from common.split import rule_of
from common.textstates import encode_texts
from common.vector import read_vector, write_vector
from server.evaluation import HeldOut, intervals, load_heldout, score
from server.halves import reported_N

Scores = NDArray[np.float64]

_ITEM_STRENGTH = 5.0
_TEXT_COMPONENTS = 32
_LEAST_VARIANCE = 1e-6  # of a component, as a share
_COMPONENT_ROWS = 100_000  # whose text states the components are of, at most: all rows' would need E numbers for each
_LEAST_STEPS = 100  # a floor is trained to the end, however few steps the federated run takes
_EXPECTED_USERS = 128  # of a floor's step, at most


@dataclass(frozen=True)
class Logs:
    """What the floors are computed from: the pooled training rows, the held-out rows, the text states."""

    config: Config
    training: pd.DataFrame  # canonical rows and `partner`; with what is history alone
    central: pd.DataFrame
    heldout: HeldOut
    pretrained: Pretrained
    item_counts: ItemCounts
    item_rates: ItemRates | None = None  # of the private statistics that the final model goes with

    @property
    def trained(self) -> pd.DataFrame:
        """The training rows without what is history alone."""
        return self.training[impressions_N(self.training)]

    @property
    def evaluated(self) -> pd.DataFrame:
        """The N evaluated rows of the held-out log, in the order of all scores."""
        return self.central[self.central["evaluate"].to_numpy(bool)]


def load_logs(config: Config, folder: RunFolder) -> Logs:
    """Returns the logs of a prepared run folder."""
    pretrained = locate(config.model.encoder, config.model.encoder_sha256, config.model.cache)
    parts = []
    for number in range(config.data.partners):
        rows = pd.read_parquet(folder.partner(number) / "clicks.parquet")
        trains_N, _ = rule_of(config.evaluation).sides(rows)  # the rest is what the partner holds out
        parts.append(rows[trains_N].assign(partner=number))
    training = pd.concat(parts).sort_values(["user", "time"], kind="stable").reset_index(drop=True)
    counts = count_items(training)
    used, released = counts if config.model.item_rates == "exact" else None, folder.model / STATISTICS
    rates = ItemRates(parse_release(released.read_bytes())) if released.exists() else None
    return Logs(
        config=config,
        training=training,
        central=pd.read_parquet(folder.central),
        heldout=load_heldout(folder.central, config.model, pretrained, used, rates),
        pretrained=pretrained,
        item_counts=counts,
        item_rates=rates,
    )


def compute_floors(config: Config, folder: RunFolder, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Returns the figures of every floor in `server.floors`, each with its paired AUC difference to the model."""
    if not config.server.floors:
        return {}
    logs = load_logs(config, folder)
    model_N: Scores = np.load(folder.root / "scores.npy")
    floors: dict[str, dict[str, Any]] = {}
    for name in config.server.floors:
        for label, (score_N, note) in _FLOORS[name](logs, say).items():
            floors[label] = _figures(logs, score_N, model_N) | {"private": label in _PRIVATE, "note": note}
    return floors


def _figures(logs: Logs, score_N: Scores, model_N: Scores) -> dict[str, Any]:
    server, seed, kept_N = logs.config.server, logs.config.round.seed, reported_N(logs.heldout, logs.config.server)
    heldout, score_N, model_N = logs.heldout.part(kept_N), score_N[kept_N], model_N[kept_N]
    label_N = heldout.label_NL[:, 0]
    values = evaluate_scores(label_N, score_N, heldout.user_N)
    figures: dict[str, Any] = {name: values[name] for name in ("auc", "log_loss", "ne", "uauc")}
    if server.bootstrap_samples:
        figures["intervals"] = intervals(score_N, heldout, server.bootstrap_samples, seed)
        gap = paired_difference(label_N, model_N, score_N, heldout.user_N, server.bootstrap_samples, seed)
        figures["difference"] = [gap.value, gap.low, gap.high]
    return figures


Floor = dict[str, tuple[Scores, str]]
# A user's own past rate is computed where the user is, and reveals nothing of anybody else.
_PRIVATE = ("own_recent_rate", "private_item_popularity")


def _base_rate(logs: Logs, _say: Callable[[str], None]) -> Floor:
    rate = float(logs.trained["clicked"].mean())
    return {"base_rate": (np.full(len(logs.evaluated), rate), f"{rate:.3f} of the training rows are clicks")}


def _item_popularity(logs: Logs, _say: Callable[[str], None]) -> Floor:
    rate = float(logs.trained["clicked"].mean())
    count_N2 = np.array([logs.item_counts.get(item, (0.0, 0.0)) for item in logs.evaluated["item"]]).reshape(-1, 2)
    score_N = (count_N2[:, 0] + _ITEM_STRENGTH * rate) / (count_N2[:, 1] + _ITEM_STRENGTH)
    floor: Floor = {"item_popularity": (score_N, "exact item means over all partners' training rows")}
    if logs.item_rates is not None:
        note = "the run's private statistics, in the partners' ledgers already"
        floor["private_item_popularity"] = (logs.item_rates.rates(logs.evaluated), note)
    return floor


def _own_recent_rate(logs: Logs, _say: Callable[[str], None]) -> Floor:
    rows, prior = logs.heldout.rows, logs.config.model.prior_click_rate
    column = dense_names(logs.config.model).index("recent_rate")
    logit_N = rows.dense_NF[np.concatenate(logs.heldout.chosen), column].astype(np.float64)
    score_N = expit(logit_N + np.log(prior / (1 - prior)))
    return {"own_recent_rate": (score_N, "the user's own last ten labels, shrunk; nothing is trained")}


def _logistic_regression(logs: Logs, say: Callable[[str], None]) -> Floor:
    say("logistic regression")
    train, test = logs.training, logs.central
    test_N = test["evaluate"].to_numpy(bool)
    trains_N = impressions_N(train)
    train_text_NC, test_text_NC = _text_components(logs, train[trains_N], test[test_N])
    note = f"pooled, not private; own past rates, context, {train_text_NC.shape[1]} text components"
    floors: Floor = {}
    kinds: list[tuple[str, Literal["none", "exact", "private"], str]] = [
        ("logistic_regression", "none", ""),
        ("logistic_regression_item_means", "exact", ", exact item means"),
    ]
    if logs.item_rates is not None:
        kinds.append(("logistic_regression_private_item_rates", "private", ", private item rates"))
    plain = replace(logs.config.model, item_rates="none")
    train_NF = _dense(logs, train, plain, trains_N).dense_NF[trains_N]
    test_NF = _dense(logs, test, plain, ~test_N).dense_NF[test_N]
    for label, item_rates, added in kinds:
        model = replace(plain, item_rates=item_rates)
        train_item_NF = item_features(train, model, trains_N, logs.item_counts, logs.item_rates)[trains_N]
        test_item_NF = item_features(test, model, ~test_N & impressions_N(test), logs.item_counts, logs.item_rates)
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        regression.fit(np.hstack([train_NF, train_item_NF, train_text_NC]), train["clicked"].to_numpy()[trains_N])
        score_N = regression.predict_proba(np.hstack([test_NF, test_item_NF[test_N], test_text_NC]))[:, 1]
        floors[label] = (score_N, note + added)
    return floors


def _text_components(logs: Logs, train: pd.DataFrame, test: pd.DataFrame) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns principal components of the rows' text states, worked out once for each distinct text."""
    model = replace(logs.config.model, tune="head")
    train_texts, test_texts = (encode_texts(list(rows["text"]), model, logs.pretrained) for rows in (train, test))
    row_N = train_texts.index_N
    if len(row_N) > _COMPONENT_ROWS:
        row_N = np.random.default_rng(0).choice(row_N, _COMPONENT_ROWS, replace=False)
    states_NE = train_texts.states_TE[row_N]
    found = PCA(min(_TEXT_COMPONENTS, *states_NE.shape), svd_solver="randomized", random_state=0).fit(states_NE)
    # Of fewer texts than components the last ones are rounding errors, which scaling would blow up.
    kept_C = found.explained_variance_ratio_ > _LEAST_VARIANCE
    train_NC, test_NC = (
        found.transform(texts.states_TE)[:, kept_C][texts.index_N] for texts in (train_texts, test_texts)
    )
    return train_NC, test_NC


def _dense(logs: Logs, rows: pd.DataFrame, model: ModelConfig, in_counts_N: NDArray[np.bool_]) -> UserRows:
    encoded = encode_texts(list(rows["text"]), model, logs.pretrained)
    counts = logs.item_counts if model.item_rates == "exact" else None
    return featurise(
        rows,
        encoded.index_N,
        encoded.states_TE,
        model,
        item_counts=counts,
        item_rates=logs.item_rates,
        own_rows_N=in_counts_N,
        tokens_T=encoded.tokens_T,
    )


def _pooled(logs: Logs, say: Callable[[str], None]) -> Floor:
    say("pooled training without privacy")
    steps, score_N = _train_and_score(logs, logs.training, "pooled")
    return {"pooled": (score_N, f"the same model on the union, not private, {steps} steps")}


def _local_only(logs: Logs, say: Callable[[str], None]) -> Floor:
    partner_N = logs.evaluated["partner"].to_numpy()
    score_N = np.zeros(len(partner_N))
    steps = 0
    for number in range(logs.config.data.partners):
        say(f"partner {number + 1} of {logs.config.data.partners} alone")
        own = logs.training[logs.training["partner"] == number]
        steps, own_score_N = _train_and_score(logs, own, f"local {number}")
        score_N[partner_N == number] = own_score_N[partner_N == number]
    counts = ", with everybody's item means" if logs.config.model.item_rates == "exact" else ""
    note = f"the same model, each partner alone on its own users{counts}, not private, {steps} steps"
    return {"local_only": (score_N, note)}


def _train_and_score(logs: Logs, rows: pd.DataFrame, label: str) -> tuple[int, Scores]:
    """Trains the run's model without privacy on some rows and returns (steps, scores of the evaluated rows)."""
    config = logs.config
    features = _dense(logs, rows, config.model, np.ones(len(rows), bool))
    steps = max(_LEAST_STEPS, config.round.num_rounds * config.round.local_steps)
    rate = min(config.privacy.sampling_rate, _EXPECTED_USERS / features.num_users)
    plan = TrainingPlan(steps, config.round.client_optimiser, config.round.learning_rate, config.round.weight_decay)
    step = DpStep(rate, 0.0, None, config.privacy.max_impressions_per_user, rate * features.num_users)
    heads = logs.heldout.label_NL.shape[1]
    model = build_model(config.model, logs.pretrained.width, heads, config.round.seed, logs.pretrained)
    start_D = read_vector(model)
    randomness = Randomness(config.round.seed, label, 0)
    write_vector(model, start_D + train_privately(model, start_D, features, plan, step, randomness))
    return steps, score(model, logs.heldout)


_FLOORS: dict[str, Callable[[Logs, Callable[[str], None]], Floor]] = {
    "base_rate": _base_rate,
    "item_popularity": _item_popularity,
    "own_recent_rate": _own_recent_rate,
    "logistic_regression": _logistic_regression,
    "local_only": _local_only,
    "pooled": _pooled,
}
