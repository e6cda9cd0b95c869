"""How large a run will be, before anything heavy is loaded: users, trained numbers, and who takes part how often.

Nothing here imports torch, so that a budget is planned in a moment.
"""

from collections import Counter
from functools import lru_cache
from pathlib import Path

from common.card import load_card
from common.config import Config, read_toml
from common.errors import ConfigError, PretrainedError
from common.features import dense_names
from common.pretrained import locate
from common.runfolder import RunFolder, partner_name
from server.cohort import draw_cohort
from simulations.partners import build_partners, users_trained
from simulations.sources import load_source

_QUICKLY_GENERATED = 5_000  # users
_ASK = "give the users that each partner declares: --users N"


def declared(users: int) -> int:
    """Returns what a simulated partner publishes as its size: the count to two significant digits."""
    return int(float(f"{users:.2g}"))


@lru_cache(maxsize=64)
def busiest(config: Config) -> tuple[int, ...]:
    """Returns, after 0, 1, 2 ... rounds, in how many the busiest partner took part: cohorts are public, drawn ahead."""
    rounds = config.round
    if not rounds.partners_per_round:
        return tuple(range(rounds.num_rounds + 1))
    names = [partner_name(number) for number in range(config.data.partners)]
    drawn, most = Counter[str](), [0]
    for number in range(1, rounds.num_rounds + 1):
        drawn.update(draw_cohort(names, rounds.partners_per_round, rounds.seed, number))
        most.append(max(drawn.values()))
    return tuple(most)


def declared_users(config: Config, folder: Path) -> tuple[list[int], str]:
    """Returns the users that each partner would declare, and in words where the figures come from.

    Args:
        config: of the run.
        folder: where the configuration lies; a run folder holds what its partners declared.

    Raises:
        ConfigError: where they are not known without reading a log, and must be given.
        DataError: where a simulation's own log is missing or cannot be partitioned.
    """
    homes = [RunFolder(folder).partner(number) / "partner.toml" for number in range(config.data.partners)]
    if all(path.is_file() for path in homes):
        return [int(read_toml(path)["declared_users"]) for path in homes], "declared in the run folder"
    data = config.data
    if data.source in ("files", "movietweetings", "mind") or (data.source == "movielens" and data.path):
        raise ConfigError(f'data.source = "{data.source}": a plan does not read a log; {_ASK}')
    if data.source == "generated" and data.generator.users > _QUICKLY_GENERATED:
        if data.partition == "skew":
            raise ConfigError(f'data.partition = "skew" of {data.generator.users} generated users: {_ASK}')
        kept = data.generator.users if data.split == "time" else data.generator.users * (1 - data.test_share)
        return [declared(max(1, round(kept / data.partners)))] * data.partners, "an equal part of the generated users"
    logs = build_partners(load_source(data), data)
    return [declared(users_trained(rows)) for rows in logs.training], "the simulation's own partners"


def trained_parameters(config: Config) -> int:
    """Returns how many numbers the configured click model trains (D).

    Raises:
        PretrainedError: where the text encoder, whose width counts, is not there.
    """
    try:
        base = locate(config.model.encoder, config.model.encoder_sha256, config.model.cache)
    except PretrainedError as error:
        raise PretrainedError(f"{error}; or say how many parameters are trained: --parameters N") from None
    model, dense, heads = config.model, len(dense_names(config.model)), 2 if _has_purchases(config) else 1
    if model.tune != "head":
        from common.model.click_model import build_model  # torch, which takes seconds, is needed for these alone
        from common.vector import num_trainable

        return num_trainable(build_model(model, base.width, heads, 0, base))
    project = base.width * model.width + model.width
    query = model.width**2 + model.width
    hidden = (3 * model.width + dense) * model.hidden + model.hidden
    return project + query + hidden + (model.hidden + 1) * heads + dense * heads


def _has_purchases(config: Config) -> bool:
    if config.data.source == "generated":
        return config.data.generator.purchase_rate > 0
    return config.data.source == "files" and bool(load_card(Path(config.data.card)).columns.purchased)
