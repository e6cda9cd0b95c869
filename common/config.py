"""One TOML file -> nested frozen dataclasses, and back.

Every key is declared here once, with its type, its bounds and what it means. An unknown key, a wrong type or a
value out of range is a `ConfigError` that names the key, the value and the bound. The fields that can change what
an epsilon means form a class of their own, `PrivacyConfig`: nothing outside it may alter a guarantee.
"""

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from common.config_checks import contradictions
from common.errors import ConfigError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
PositiveFloat = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

Split = Literal["time", "user", "user_time"]
Tune = Literal["head", "top_layers", "lora", "adalora", "adapter", "prefix", "prompt", "full"]
Partition = Literal["hash", "dominant", "skew"]


@dataclass(frozen=True, config=STRICT)
class GeneratorConfig:
    """Size and structure of a generated click log (used where `data.source = "generated"`)."""

    users: Annotated[int, Field(ge=1, le=5_000_000)] = 2000
    items: Annotated[int, Field(ge=5, le=200_000)] = 600
    impressions_per_user: Annotated[int, Field(ge=2, le=5_000)] = 24  # mean; the spread is geometric-like
    languages: Literal["en", "zh", "both"] = "both"
    domains: Annotated[int, Field(ge=1, le=5)] = 5  # e-commerce, social, news, video, apps: the first so many
    signal: Annotated[float, Field(ge=0, le=10)] = 1.5  # logit weight of a user's planted taste; 0 = nothing to learn
    base_rate: Share = 0.2
    purchase_rate: Annotated[float, Field(ge=0, lt=1)] = 0.15  # of clicks; 0 = the log has no purchase column
    seed: Seed = 1


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Where clicks come from, how they are split in time and over partners."""

    source: Literal["movielens", "movietweetings", "mind", "generated", "files"] = "movielens"
    path: str = ""  # a folder (movietweetings, mind, movielens) or a CSV or Parquet file (files)
    card: str = ""  # data card (TOML) that maps the file's columns to roles; needed for "files"
    click_threshold: float | None = None  # rating that counts as a click; unset = the source's usual one
    partners: Annotated[int, Field(ge=1, le=65_536)] = 6
    partition: Partition = "hash"
    size_skew: Annotated[float, Field(ge=0, le=5)] = 1.2  # Zipf exponent of partner sizes for partition = "skew"
    split: Split = "time"
    test_share: Share = 0.2  # latest share of rows (time), share of users (user)
    max_users: Annotated[int, Field(ge=0)] = 0  # 0 = all; else so many users, drawn by hash
    measure_click_rate: bool = False  # without privacy: model.prior_click_rate becomes that of the training rows
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)


LEAST_PRIOR = 0.001  # as is 1 - LEAST_PRIOR the most
MACHINES_OWN = ("cache", "device", "device_memory")  # keys of [model] that each machine sets for itself


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The click model: which text encoder, and how large the trained part is."""

    encoder: str = "bundled:minilm"  # bundled:NAME | path:DIR | hub:ORG/NAME@COMMIT
    encoder_sha256: str = ""  # expected hash of the weights file; bundled encoders know theirs
    max_tokens: Annotated[int, Field(ge=4, le=512)] = 48
    # What of the encoder is trained with the small layers above it: nothing (head), its top layers or all of them
    # (top_layers, full), or what is put into them while they stay frozen (the others).
    tune: Tune = "head"
    tune_layers: Annotated[int, Field(ge=0, le=512)] = 2  # so many top layers; 0 = all, as with tune = "full"
    tune_rank: Annotated[int, Field(ge=1, le=512)] = 8  # of lora and adalora (to begin with); width of adapters
    tune_final_rank: Annotated[float, Field(gt=0, le=512)] = 4.0  # adalora: mean rank of a layer at the end
    tune_targets: Literal["query_value", "attention", "all"] = "query_value"  # layers that get lora or adalora
    tune_tokens: Annotated[int, Field(ge=1, le=128)] = 4  # learnt vectors of prefix (in each layer) and prompt
    # Where the trained layers run: auto, cpu, cuda or cuda:N; auto = a GPU where torch finds one. In a simulation, auto
    # and cuda deal partners out to all GPUs. Each machine's own, like cache; so is device_memory.
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = "auto"
    device_memory: Rate = 1.0  # share of a GPU's memory that one process (a worker, or a whole simulation) may take
    precision: Literal["float32", "bfloat16"] = "float32"  # of products in these layers; gradients are float32
    tune_rate: Annotated[float, Field(gt=0, le=100)] = 0.1  # learning rate of the encoder's part over that of the rest
    history: Annotated[int, Field(ge=0, le=512)] = 20  # latest positives that an impression may attend to
    width: Annotated[int, Field(ge=2, le=1024)] = 16  # of the candidate projection and the interest vector
    hidden: Annotated[int, Field(ge=2, le=4096)] = 16  # of the head
    context_buckets: Annotated[int, Field(ge=1, le=4096)] = 16  # context values are hashed into so many
    # Public guess, to which a user's own past rate is shrunk.
    prior_click_rate: Annotated[float, Field(ge=LEAST_PRIOR, le=1 - LEAST_PRIOR)] = 0.5
    label_delay_seconds: Annotated[int, Field(ge=0, le=10**9)] = 0  # a row's features see labels older than this
    # Click rates per item as features: exact means are not private, and refused under privacy; private = noised sums,
    # charged to each partner's budget (privacy.statistics_*).
    item_rates: Literal["none", "exact", "private"] = "none"
    # Share of the unclicked rows that the training logs hold, the same at all partners; 1 = every row. It is undone in
    # what the model predicts, and has to be what each log's data card says (click.unclicked_kept).
    unclicked_kept: Rate = 1.0
    # Training reads each text in so many other wordings as well, made by what `augment` names with this chance a word.
    augment_wordings: Annotated[int, Field(ge=0, le=64)] = 0
    augment: tuple[Literal["delete", "swap", "mask"], ...] = ("delete", "swap")
    augment_share: Share = 0.15
    cache: str = ""  # folder of encoded texts; unset = HUSHCLICK_CACHE, else ~/.cache/hushclick

    def frozen_layers(self, layers: int) -> int:
        """Returns how many of an encoder's layers come before the first that is trained, or that is added to."""
        return 0 if self.tune == "full" or not self.tune_layers else max(0, layers - self.tune_layers)


@dataclass(frozen=True, config=STRICT)
class RoundConfig:
    """How many rounds, over which partners, with what local work."""

    num_rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    partners_per_round: Annotated[int, Field(ge=0)] = 0  # 0 = all
    local_steps: Annotated[int, Field(ge=1, le=100_000)] = 4
    client_optimiser: Literal["sgd", "adam"] = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 0.01
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Seed = 1  # of initial weights and cohorts: public, never of noise or sampling


@dataclass(frozen=True, config=STRICT)
class PrivacyConfig:
    """Every field that can change what an epsilon means. Each partner holds its own copy and its own limits."""

    # local = each partner adds the whole noise itself; distributed = its part of the secure sum's; label = click labels
    # alone are private, by randomised response, and the rest is public; none = no privacy
    mode: Literal["local", "distributed", "label", "none"] = "local"
    # Whose data one clipped gradient holds: a user's sampled rows, or one row; a user's epsilon is then far larger.
    unit: Literal["user", "impression"] = "user"
    epsilon: Annotated[float, Field(gt=0, lt=1000)] = (
        8.0  # the partner's budget; noise is calibrated to it where noise_multiplier is unset
    )
    # The same bound against another partner, and against whoever breaks secure aggregation; unset = not bounded. They
    # differ from epsilon in mode "distributed" only.
    epsilon_partner: Annotated[float, Field(gt=0, lt=1000)] | None = None
    epsilon_broken: Annotated[float, Field(gt=0, lt=1000)] | None = None
    delta: Annotated[float, Field(gt=0, lt=0.01)] = 1e-5  # well under one over the users of a partner
    # The budget is for every span of so many days; unset = for ever. A user who stays longer has more than one budget.
    period_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0, le=1000)] | None = None  # over clip; unset = calibrated
    clip: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0  # L2 bound on one user's gradient
    sampling_rate: Rate = 0.25  # each user joins each step with this probability, independently (Poisson)
    # Unit user: random rows of a sampled user per step. Unit impression: the latest rows of a user, the only ones used.
    max_impressions_per_user: Annotated[int, Field(ge=1, le=4096)] = 32
    grid_bits: Annotated[int, Field(ge=8, le=24)] = 16  # distributed: a gradient of length clip has length 2^grid_bits
    max_local_steps: Positive = 64  # the most steps a round that the partner agrees to
    # model.item_rates = "private": the noised histogram of clicks and impressions. Over statistics_clip; unset = for
    # statistics_epsilon, which is what all of a run's histograms may cost by themselves; unset = a quarter of epsilon.
    statistics_noise_multiplier: Annotated[float, Field(gt=0, le=1000)] | None = None
    statistics_epsilon: Annotated[float, Field(gt=0, lt=1000)] | None = None
    statistics_clip: Annotated[float, Field(gt=0, le=1000)] = 0.75  # L2 bound on one user's vector, in rows
    statistics_every: Annotated[int, Field(ge=0, le=10**6)] = 0  # rounds between histograms; 0 = one, before round 1
    # evaluation.at = "partners": the noised histogram of scores. Over its clip; unset = for evaluation_epsilon, which
    # all of a run's may cost by themselves; unset = a quarter of epsilon.
    evaluation_noise_multiplier: Annotated[float, Field(gt=0, le=1000)] | None = None
    evaluation_epsilon: Annotated[float, Field(gt=0, lt=1000)] | None = None
    evaluation_clip: Annotated[float, Field(gt=0, le=1000)] = 4.0  # L2 bound on one user's vector, in rows
    # Mode label: of one click label, which is kept with probability e^epsilon / (1 + e^epsilon); unset = epsilon.
    label_epsilon: Annotated[float, Field(gt=0, le=20)] | None = None
    fixed_seed: Seed | None = None  # tests and reproducible simulations only: whoever knows it can remove the noise

    @property
    def units_per_user(self) -> int:
        """How many units one user can have, at most: 1 where the unit is the user."""
        return 1 if self.unit == "user" else self.max_impressions_per_user

    @property
    def noised(self) -> bool:
        """Whether gradients are clipped and noised; else they are not, as in modes "label" and "none"."""
        return self.mode in ("local", "distributed")

    @property
    def epsilon_of_a_label(self) -> float:
        """What one draw of a click label costs in mode "label"."""
        return self.label_epsilon or self.epsilon

    @property
    def flip_probability(self) -> float:
        """With what probability mode "label" flips a click label."""
        return 1 / (1 + math.exp(self.epsilon_of_a_label))


@dataclass(frozen=True, config=STRICT)
class AggregationConfig:
    """How contributions become one sum."""

    method: Literal["secure", "plain"] = "secure"  # secure = the server sees only the sum; plain = every update
    weights: Literal["equal", "declared"] = "declared"  # declared = the user count that a partner publishes
    min_partners: Annotated[int, Field(ge=1)] = 3
    colluders: Annotated[int, Field(ge=0)] = 1  # partners that may collude with the server and still learn only sums
    update_bound: Annotated[float, Field(ge=0.001, le=1_000_000)] = 4.0  # bound on one coordinate of a weighted update
    groups: Annotated[int, Field(ge=1)] = 1  # over 1: a sum per group, and the median of their means (robust)
    timeout_seconds: PositiveFloat = 600.0  # of joining and training
    stage_timeout_seconds: PositiveFloat = 60.0  # of each short stage of secure aggregation


@dataclass(frozen=True, config=STRICT)
class ServerConfig:
    """The global step and the central evaluation."""

    optimiser: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    learning_rate: PositiveFloat = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # fedavgm, and beta1 of fedadam
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: PositiveFloat = 1e-3
    evaluate_every: Positive = 1
    # The mean of the global models after each round takes the place of the last one, and is what is evaluated and kept:
    # exponential (weights fall by averaging_decay a round), uniform (all), tail (those after a share averaging_from of
    # num_rounds). Partners train from the last one all the same.
    averaging: Literal["none", "exponential", "tail", "uniform"] = "none"
    averaging_decay: Share = 0.9
    averaging_from: Annotated[float, Field(ge=0, lt=1)] = 0.5
    # Early stopping: the run ends after so many evaluations without a better one on one half of the held-out users,
    # and its best model is kept. Final figures are then of the other half. 0 = off.
    patience: Annotated[int, Field(ge=0, le=10**6)] = 0
    patience_figure: Literal["auc", "log_loss"] = "log_loss"
    # Fitted on one half of the held-out users and judged on the other; kept in the signed model folder.
    calibration: Literal["none", "temperature", "platt"] = "none"
    # Next item: so many held-out clicks, drawn by round.seed, are sought among all items known by then; 0 = not. Where
    # more than next_item_candidates are known, among so many drawn ones.
    next_item_clicks: Annotated[int, Field(ge=0, le=10**6)] = 0
    next_item_candidates: Annotated[int, Field(ge=10, le=10**6)] = 2000
    bootstrap_samples: Annotated[int, Field(ge=0, le=100_000)] = 200
    least_slice_users: Positive = 20  # a slice of fewer users, or rows, has no figures, nor has what would give it away
    least_slice_rows: Positive = 50
    floors: tuple[
        Literal["base_rate", "item_popularity", "own_recent_rate", "logistic_regression", "local_only", "pooled"], ...
    ] = (
        "base_rate",
        "item_popularity",
        "own_recent_rate",
        "logistic_regression",
        "local_only",
        "pooled",
    )


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """Whether partners evaluate too, on rows that they hold out; public, and the same at all of them."""

    # partners = each holds rows out, on which nothing is ever trained; of their scores a noised, summed histogram is
    # all that leaves (privacy.evaluation_*). server = the operator's own held-out clicks alone
    at: Literal["server", "partners"] = "server"
    # Rows at or after this moment are held out (Unix seconds), or all rows of a share of users; both set = those users'
    # rows since, while other users' earlier ones train. Unset = what a simulation's data.split does.
    from_time: Annotated[int, Field(ge=0, lt=253_402_300_800)] | None = None
    user_share: Share | None = None
    key: Annotated[str, Field(max_length=200)] = ""  # of the hash that draws these users: another draws others
    bins: Annotated[int, Field(ge=8, le=1024)] = 64  # of the histogram, clicked and not: AUC has ties within one
    max_rows: Annotated[int, Field(ge=1, le=4096)] = 16  # of a user, the latest that are held out
    releases: Annotated[int, Field(ge=1, le=1000)] = 1  # of a run; the last is of the final model

    @property
    def by_partners(self) -> bool:
        """Whether partners hold rows out."""
        return self.at == "partners"


@dataclass(frozen=True, config=STRICT)
class SimulationConfig:
    """Faults that a simulation plays at its partners; nothing of it reaches a deployed one."""

    dropout_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0  # chance that a partner falls silent in a round
    attack: Literal["none", "boost", "sign_flip", "label_flip", "garbage", "nan"] = "none"
    attackers: Annotated[int, Field(ge=0)] = 0  # partners that attack in every round, the first so many by hash
    attack_factor: PositiveFloat = 10.0  # of boost and sign_flip: what an update is multiplied by

    @property
    def faulty(self) -> bool:
        """Whether any partner behaves otherwise than a deployed one."""
        return self.dropout_rate > 0 or self.attackers > 0


@dataclass(frozen=True, config=STRICT)
class AuditConfig:
    """How hard `hushclick audit` attacks; nothing of it changes a run."""

    canaries: Annotated[int, Field(ge=0, le=100_000)] = 0  # 0 = as many as most_canary_share allows, up to 1,000
    most_canary_share: Annotated[float, Field(gt=0, le=0.5)] = 0.2  # of the training users
    shadow_runs: Annotated[int, Field(ge=0, le=1000)] = 8  # of membership inference, beside the run that is attacked
    targets: Annotated[int, Field(ge=20, le=100_000)] = 200  # users whose membership is inferred
    zero_rounds: Annotated[int, Field(ge=2, le=1000)] = 3  # without anybody in a sample: noise alone
    neighbours: Annotated[int, Field(ge=10, le=100_000)] = 200  # that sensitivity is tried on, of each kind
    confidence: Annotated[float, Field(ge=0.5, le=0.9999)] = 0.95  # of every lower bound
    seed: Seed = 1  # of canaries and coins


@dataclass(frozen=True, config=STRICT)
class OutputConfig:
    """What a run leaves behind, and what it is called."""

    title: str = "Hushclick run"
    report: bool = True
    jobs: Annotated[int, Field(ge=0)] = 0  # clients at a time in a simulation; 0 = one per core
    # Told each round's figures and the final ones, as metrics.json has them; files in the run folder, no network.
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


@dataclass(frozen=True, config=STRICT)
class Config:
    """The whole configuration of a run; `load_config` is the usual way to get one."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    round: RoundConfig = Field(default_factory=RoundConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    aggregation: AggregationConfig = Field(default_factory=AggregationConfig)
    server: ServerConfig = Field(default_factory=ServerConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    simulation: SimulationConfig = Field(default_factory=SimulationConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        problems = contradictions(self)
        if problems:
            raise ConfigError("\n".join(problems))


T = TypeVar("T")


def parse_config(table: Mapping[str, Any]) -> Config:
    """Returns the configuration of a run that a parsed TOML table describes; raises like `parse_table`."""
    return parse_table(Config, table)


def parse_table(kind: type[T], table: Mapping[str, Any]) -> T:
    """Returns a configuration class filled from a parsed TOML table.

    Raises:
        ConfigError: for unknown keys, wrong types, values out of range and values that contradict each other; the
            text has one line per problem.
    """
    try:
        # JSON mode: strict about scalars, yet tables become dataclasses and arrays become tuples.
        return TypeAdapter(kind).validate_json(json.dumps(table, default=_moment))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, kind) for problem in error.errors())) from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration in a TOML file after `key=value` overrides (`table.key=value`, value as TOML).

    Relative paths in the file are taken from the file's folder, those of overrides from the working folder.

    Raises:
        ConfigError: when the file is missing, is not TOML, or `parse_config` refuses it.
    """
    table = read_toml(path)
    _anchor_paths(table, path.resolve().parent)
    for override in overrides:
        apply_override(table, override)
    _anchor_paths(table, Path.cwd())  # what is still relative came from an override
    return parse_config(table)


_PATH_KEYS = (("data", "path"), ("data", "card"), ("model", "cache"), ("model", "encoder"))


def _anchor_paths(table: dict[str, Any], folder: Path) -> None:
    for section, key in _PATH_KEYS:
        values = table.get(section)
        text = values.get(key) if isinstance(values, dict) else None
        if not isinstance(text, str) or not text or (key == "encoder" and not text.startswith("path:")):
            continue
        scheme, name = ("path:", text.removeprefix("path:")) if key == "encoder" else ("", text)
        values[key] = scheme + str(folder / Path(name).expanduser())  # type: ignore[index]


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the table in a TOML file, or raises a `ConfigError` that says where it fails to parse."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; shipped configurations are in simulations/configs") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give a TOML file") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be a configuration") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def apply_override(table: dict[str, Any], override: str) -> None:
    """Sets one `table.key=value` in place; the value is read as TOML, and as plain text where that fails."""
    key, equals, text = override.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise ConfigError(f"--set {override}: expected table.key=value, such as round.num_rounds=3")
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text  # more than one: text with line breaks of its own
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {name} is a value, not a table")
    table[names[-1]] = value


def to_table(config: object) -> dict[str, Any]:
    """Returns the plain nested dict of a configuration; unset optional values are left out, as TOML has no null."""
    return _without_none(asdict(config))  # type: ignore[call-overload,no-any-return]


def dump_config(config: Config) -> str:
    """Returns the effective configuration as TOML; `parse_config` of it gives the same configuration."""
    return tomli_w.dumps(to_table(config))


def fingerprint(config: object) -> str:
    """Returns the SHA-256 (hex) of a configuration's canonical JSON."""
    return hashlib.sha256(json.dumps(to_table(config), sort_keys=True).encode()).hexdigest()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value


def _moment(value: object) -> dict[str, str]:
    """Stands in for TOML's dates and times, so that none passes where text is asked for."""
    return {"date": str(value)}


def _explain(problem: Any, kind: type) -> str:
    """Returns one pydantic problem as `key = value: bound`, with the nearest known key for a typo."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "unexpected_keyword_argument":
        known = _keys_at(kind, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {'.'.join([*location[:-1], close[0]])}?" if close else f"known: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{key}: missing, and has no default"
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{key} = {json.dumps(problem['input'], default=str)}: {message}"


def _keys_at(kind: Any, location: Sequence[str]) -> list[str]:
    """Returns the keys that the table at `location` knows."""
    for name in location:
        kind = next((field.type for field in fields(kind) if field.name == name), None) if is_dataclass(kind) else None
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []
