"""What one partner says in its own TOML: who it is, where its clicks and ledger lie, what it allows.

Nothing here comes from the server, and nothing that the server sends can change it.
"""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field
from pydantic.dataclasses import dataclass

from common.addresses import UNIX, require_local
from common.config import (
    STRICT,
    EvaluationConfig,
    ModelConfig,
    Positive,
    PrivacyConfig,
    parse_table,
    read_toml,
    to_table,
)
from common.config_checks import evaluation_checks, item_rate_checks, label_checks, tuning_checks
from common.errors import ConfigError
from common.kit import take_version
from common.lineage import MOST_MODEL_BYTES
from common.noise_shares import shares_of
from common.secagg.parameters import Policy


@dataclass(frozen=True, config=STRICT)
class PartnerAggregation:
    """What this partner allows when contributions are summed; a server that asks for less is refused."""

    method: Literal["secure", "plain"] = "secure"  # secure = a plain update never leaves
    colluders: Annotated[int, Field(ge=0)] = 1  # partners that may collude with the server; all partners state the same
    least_participants: Annotated[int, Field(ge=3)] = 3
    least_threshold: Annotated[int, Field(ge=2)] = 2
    least_bits: Annotated[int, Field(ge=8, le=28)] = 12
    most_bits: Annotated[int, Field(ge=8, le=28)] = 28
    update_bound: Annotated[float, Field(ge=0.001, le=1_000_000)] = 4.0  # on one coordinate of a weighted update
    round_secrets: Literal["memory", "disk"] = "memory"  # disk = sealed in the state folder; survives a restart

    def policy(self) -> Policy:
        """Returns the bounds as the protocol takes them."""
        return Policy(
            self.colluders,
            self.least_participants,
            self.least_threshold,
            self.least_bits,
            self.most_bits,
            self.update_bound,
        )


@dataclass(frozen=True, config=STRICT)
class PartnerOverlap:
    """With whom this partner counts shared users (`check --overlap`): with nobody, unless it says so."""

    partners: tuple[str, ...] = ()  # may ask this partner, and may be asked by it; both must name each other
    identifiers: str = ""  # file with one per line, of the people in the clicks; unset = the users of the clicks
    fold_case: bool = False  # e-mail addresses: true; ids in which A and a differ: false. Both partners state the same
    secret: str = ""  # file with 64 hex digits that these partners share; unset = the masks alone hide identifiers
    least_users: Annotated[int, Field(ge=100, le=10**9)] = 1000  # neither asks nor answers with fewer
    days_between_answers: Annotated[int, Field(ge=1, le=3660)] = 30  # to the same partner


@dataclass(frozen=True, config=STRICT)
class PartnerWorker:
    """How `hushclick worker` serves this partner; a simulation has no use for it."""

    listen: str = "unix:worker/socket"  # unix:PATH, or HOST:PORT on loopback, which any user of the machine can reach
    group: str = ""  # of the socket: the group of the shim's user; unset = this user alone
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 0  # Prometheus, on loopback; 0 = none
    most_message_bytes: Annotated[int, Field(ge=2**16, le=2**36)] = 2**30
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 60.0  # for the answer under way, when it is stopped
    linger_seconds: Annotated[float, Field(ge=0)] = 600.0  # of silence, before a worker without budget ends

    def __post_init__(self) -> None:
        require_local(self.listen, "worker.listen")


@dataclass(frozen=True, config=STRICT)
class PartnerRetention:
    """How long this partner keeps what it need not keep for ever; what is deleted is counted in its audit log."""

    log_days: Annotated[int, Field(ge=1, le=3660)] = 30  # state/worker.log and state/supernode.log, by day
    secrets_hours: Annotated[float, Field(ge=1, le=8760)] = 24.0  # a round's secrets and contribution, if it never ends
    delivered_models: Annotated[int, Field(ge=1, le=10_000)] = 5  # the newest so many


@dataclass(frozen=True, config=STRICT)
class PartnerPersonal:
    """A small correction of a delivered model, fitted on this partner's own clicks by `predict`; it never leaves."""

    kind: Literal["none", "scale", "head"] = "none"  # a line over the logit, or also other weights of the last layer
    penalty: Annotated[float, Field(gt=0, le=1e9)] = 10.0  # of "head": against long weights, in rows


@dataclass(frozen=True, config=STRICT)
class PartnerConfig:
    """One partner's own configuration; relative paths are taken from the file's folder."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    clicks: str  # CSV or Parquet
    card: str  # data card: which column plays which role
    ledger: str  # append-only privacy ledger
    state: str  # folder for the last contribution sent, so that a retry never draws fresh noise
    declared_users: Positive  # published; the divisor of steps and the partner's weight, never read off the data
    identity: str = ""  # this partner's signing key (PEM); needed where aggregation.method = "secure"
    roster: str = ""  # all partners' names and public keys, agreed among partners; the server does not vouch for it
    signing_key: str = ""  # public half (PEM) of the key that the final model must be signed with; unset = takes none
    most_model_bytes: Annotated[int, Field(ge=2**10, le=2**36)] = MOST_MODEL_BYTES  # of a model that it takes
    model: ModelConfig = field(default_factory=ModelConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    aggregation: PartnerAggregation = field(default_factory=PartnerAggregation)
    overlap: PartnerOverlap = field(default_factory=PartnerOverlap)
    worker: PartnerWorker = field(default_factory=PartnerWorker)
    retention: PartnerRetention = field(default_factory=PartnerRetention)
    personal: PartnerPersonal = field(default_factory=PartnerPersonal)

    @property
    def noise_shares(self) -> int:
        """The parts of the noise that this partner's own policy guarantees in every sum."""
        policy = self.aggregation
        return shares_of(self.privacy.mode, policy.least_participants, policy.colluders)

    def __post_init__(self) -> None:
        if self.privacy.noised and self.privacy.noise_multiplier is None:
            raise ConfigError(
                f"{self.name}: privacy.noise_multiplier is unset; a partner states its own noise"
                f' (privacy.mode = "{self.privacy.mode}")'
            )
        if self.aggregation.method == "secure" and not (self.identity and self.roster):
            raise ConfigError(f'{self.name}: identity or roster is unset; aggregation.method = "secure" needs both')
        if self.privacy.mode == "distributed" and (self.aggregation.method == "plain" or self.noise_shares < 2):
            raise ConfigError(
                f'{self.name}: privacy.mode = "distributed" needs aggregation.method = "secure", and'
                f" aggregation.least_participants at least 2 over aggregation.colluders (they are"
                f" {self.aggregation.least_participants} and {self.aggregation.colluders})"
            )
        method, rates = self.aggregation.method, self.model.item_rates
        problems = [*tuning_checks(self.model), *label_checks(self.privacy)]
        problems += item_rate_checks(rates, self.privacy, method)
        if problems := [*problems, *evaluation_checks(self.evaluation, method), *self._own_evaluation()]:
            raise ConfigError("\n".join(f"{self.name}: {problem}" for problem in problems))
        if rates == "private" and self.privacy.statistics_noise_multiplier is None:
            raise ConfigError(
                f"{self.name}: privacy.statistics_noise_multiplier is unset; a partner states its own noise"
                ' (model.item_rates = "private")'
            )

    def _own_evaluation(self) -> list[str]:
        """Returns what a partner that evaluates must say itself: what it holds out, and its noise."""
        if not self.evaluation.by_partners:
            return []
        problems = []
        if self.evaluation.from_time is None and self.evaluation.user_share is None:
            problems.append(
                'evaluation.from_time and evaluation.user_share are unset, and evaluation.at = "partners": what is held'
                " out is agreed by all partners; set one, or both"
            )
        if self.privacy.noised and self.privacy.evaluation_noise_multiplier is None:
            problems.append(
                "privacy.evaluation_noise_multiplier is unset; a partner states its own noise (evaluation.at ="
                ' "partners")'
            )
        return problems


def load_partner(path: Path) -> PartnerConfig:
    """Returns a partner's configuration with absolute paths, or raises `ConfigError`."""
    table = read_toml(path)
    take_version(table, path, needed=False)  # a simulation's partners have no kit
    overlap = table.get("overlap")
    _anchor(table, ("clicks", "card", "ledger", "state", "identity", "roster", "signing_key"), path.parent)
    _anchor(overlap if isinstance(overlap, dict) else {}, ("identifiers", "secret"), path.parent)
    _anchor_socket(table, path.parent)
    return parse_table(PartnerConfig, table)


def _anchor(table: dict[str, Any], keys: Sequence[str], folder: Path) -> None:
    """Takes relative paths from the file's folder, in place."""
    for key in keys:
        if isinstance(table.get(key), str) and table[key]:
            table[key] = str((folder / table[key]).resolve())


def _anchor_socket(table: dict[str, Any], folder: Path) -> None:
    worker = table.setdefault("worker", {})
    if not isinstance(worker, dict):
        return
    listen = worker.setdefault("listen", PartnerWorker.listen)
    if isinstance(listen, str) and listen.startswith(UNIX):
        worker["listen"] = UNIX + str((folder / listen.removeprefix(UNIX)).resolve())


def dump_partner(config: PartnerConfig) -> str:
    """Returns the TOML text of a partner's configuration."""
    return tomli_w.dumps(to_table(config))
