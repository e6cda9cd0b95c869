"""The grid of a sweep: modes, epsilons, seeds and further settings -> cells, each a whole configuration.

| mode | what its cells run |
|---|---|
| local | each partner adds the whole noise to its own update |
| distributed | one step a round over everybody's users, the noise shared under the secure sum |
| pooled | centralised DP-SGD on the union: one data holder with every user, at the distributed cell's terms |
| none | as pooled, without noise and without clip: what privacy costs is read off against it |

A distributed cell's terms: its rate, steps, clip, divisor, server's optimiser and *realised* noise, which is more than
what is accounted for wherever more partners answer than the fewest that its parts of the noise are sized for.
"""

import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from common.config import Config, DataConfig, EvaluationConfig, fingerprint, load_config
from common.errors import ConfigError, UsageError
from common.noise_shares import noise_shares
from simulations.spending import with_noise

Mode = Literal["local", "distributed", "pooled", "none"]
MODES: tuple[Mode, ...] = get_args(Mode)
MOST_CELLS = 1000
LEAST_SEEDS = 2
_OWN_SETTINGS: tuple[Mode, ...] = ("local", "distributed", "none")
# What the sweep itself sets in every cell, and the option that says it.
_RESERVED = {
    "privacy.mode": "--modes",
    "privacy.epsilon": "--epsilon",
    "privacy.noise_multiplier": "--epsilon, from which the noise follows",
    "round.seed": "--seeds",
    "privacy.fixed_seed": "--seeds; set it once with --set, and every cell gets a seed of its own",
    "server.evaluate_every": "nothing: cells are evaluated at their end",
    "server.floors": "--set: floors are computed once for the whole sweep",
    "output.report": "nothing: the sweep has a page of its own",
    "output.title": "--set",
}


@dataclass(frozen=True)
class Grid:
    """What the command line asks for.

    Attributes:
        path: of the base configuration.
        overrides: of every cell, `key=value`.
        modes: which, each once.
        epsilons: rising.
        seeds: how many.
        vary: key -> its values, each a text that `--set` would take.
        settings: mode -> overrides of its cells alone; those of "distributed" hold for "pooled" and "none" too.
    """

    path: Path
    overrides: tuple[str, ...]
    modes: tuple[Mode, ...]
    epsilons: tuple[float, ...]
    seeds: int
    vary: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Cell:
    """One run of the sweep.

    Attributes:
        name: of its folder.
        mode: of `MODES`.
        epsilon: what its noise is calibrated to; None in mode "none".
        seed: 1 for the first.
        settings: the values of `--vary` in it.
        config: the whole configuration, noise included.
        claimed: of the distributed run that a pooled one stands beside, its own otherwise: the noise multiplier that
            is accounted for; 0 in mode "none".
        data: what its clicks are read, split and partitioned by, with the partners that a pooled run puts together.
    """

    name: str
    mode: Mode
    epsilon: float | None
    seed: int
    settings: Mapping[str, str]
    config: Config
    claimed: float
    data: DataConfig

    @property
    def mark(self) -> str:
        """A hash of all that decides what its run does."""
        return fingerprint(self.config)


def make_grid(
    path: Path,
    overrides: Sequence[str],
    modes: Sequence[str],
    epsilons: Sequence[float],
    seeds: int,
    vary: Sequence[str],
    settings: Sequence[str],
) -> Grid:
    """Returns the grid that some words ask for.

    Raises:
        UsageError: for an unknown mode, fewer than two seeds, and words that do not parse or come twice.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise UsageError(f"--modes {' '.join(unknown)}: of {', '.join(MODES)}")
    if seeds < LEAST_SEEDS:
        raise UsageError(f"--seeds {seeds}: at least {LEAST_SEEDS}; an interval over seeds needs more than one")
    for epsilon in epsilons:
        if not 0 < epsilon < math.inf:
            raise UsageError(f"--epsilon {epsilon:g}: over 0 and below 1000; without privacy say --modes none")
    chosen: tuple[Mode, ...] = tuple(mode for mode in MODES if mode in modes)
    return Grid(path, tuple(overrides), chosen, tuple(sorted(set(epsilons))), seeds, _varied(vary), _own(settings))


def _varied(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns key -> values of `--vary KEY=V1,V2` words."""
    varied: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        values = _values(text)
        if not equals or "." not in key or not values or not all(values):
            raise UsageError(f"--vary {word}: expected table.key=VALUE,VALUE, such as privacy.clip=0.1,1.0")
        if key in varied or len(set(values)) < len(values):
            raise UsageError(f"--vary {word}: {key} or a value of it comes twice")
        _refuse_reserved("--vary", word, key)
        varied[key] = values
    return varied


def _values(text: str) -> tuple[str, ...]:
    """Returns the values of a list as the texts that `--set` takes; arrays and quoted texts may hold commas."""
    try:
        parsed = tomllib.loads(f"values = [{text}]")["values"]
        return tuple(json.dumps(value) for value in parsed)
    except (tomllib.TOMLDecodeError, TypeError):  # bare words, and dates, which no key takes
        return tuple(value.strip() for value in text.split(","))


def _own(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns mode -> overrides of `--set-for MODE:KEY=VALUE` words."""
    own: dict[str, list[str]] = {}
    for word in words:
        mode, colon, override = word.partition(":")
        if not colon or mode not in MODES or "=" not in override:
            raise UsageError(f"--set-for {word}: expected MODE:table.key=value, MODE of {', '.join(_OWN_SETTINGS)}")
        if mode == "pooled":
            raise UsageError(
                f"--set-for {word}: pooled cells take over what distributed ones have, or they would not be"
                " comparable; say --set-for distributed:..."
            )
        _refuse_reserved("--set-for", word, override.partition("=")[0])
        own.setdefault(mode, []).append(override)
    return {mode: tuple(overrides) for mode, overrides in own.items()}


def _refuse_reserved(option: str, word: str, key: str) -> None:
    if key.strip() in _RESERVED:
        raise UsageError(f"{option} {word}: {key} is the sweep's own; say it with {_RESERVED[key.strip()]}")


def make_cells(grid: Grid, base: Config) -> list[Cell]:
    """Returns every cell, those of one seed together, so that a sweep that is stopped has whole seeds.

    Raises:
        UsageError: for too many cells.
        ConfigError: for a cell whose configuration is refused, naming its mode; one line per problem.
    """
    if base.privacy.noise_multiplier is not None:
        raise UsageError(
            f"privacy.noise_multiplier = {base.privacy.noise_multiplier:g}: a sweep over epsilon calibrates the noise;"
            " leave it out"
        )
    points = [
        (settings, seed, epsilon, mode)
        for settings in _combinations(grid.vary)
        for seed in range(1, grid.seeds + 1)
        for epsilon in grid.epsilons
        for mode in grid.modes
        if mode != "none" or epsilon == grid.epsilons[0]  # without noise every epsilon is the same
    ]
    if len(points) > MOST_CELLS:
        raise UsageError(f"{len(points)} cells: at most {MOST_CELLS}; fewer --seeds, --epsilon, --modes or --vary")
    cells: list[Cell] = []
    problems: list[str] = []
    for settings, seed, epsilon, mode in points:
        try:
            cells.append(_without_noise(grid, base, settings, seed, epsilon, mode))
        except ConfigError as error:
            problems += [f"{mode} cells: {line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join([*dict.fromkeys(problems), "one mode alone is set with --set-for MODE:KEY=VALUE"]))
    return [_with_noise(cell) for cell in cells]  # which takes a moment for each epsilon


def _combinations(vary: Mapping[str, tuple[str, ...]]) -> list[dict[str, str]]:
    return [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


def _without_noise(
    grid: Grid, base: Config, settings: Mapping[str, str], seed: int, epsilon: float, mode: Mode
) -> Cell:
    """Returns a cell before its noise is calibrated; a pooled one as the distributed run that it stands beside."""
    parts = [mode, *([] if mode == "none" else [f"epsilon-{epsilon:g}"]), *_settings_words(settings), f"seed-{seed}"]
    name = "-".join(parts)
    run = "distributed" if mode in ("pooled", "none") else mode
    overrides = [
        *grid.overrides,
        *(f"{key}={value}" for key, value in settings.items()),
        f'privacy.mode="{run}"',
        f"privacy.epsilon={epsilon!r}",
        f"round.seed={base.round.seed + seed - 1}",
        *([] if base.privacy.fixed_seed is None else [f"privacy.fixed_seed={_own_seed(base, name)}"]),
        *grid.settings.get(run, ()),
        *(grid.settings.get("none", ()) if mode == "none" else ()),
    ]
    config = load_config(grid.path, overrides)
    config = replace(
        config,
        server=replace(config.server, evaluate_every=config.round.num_rounds, floors=()),
        output=replace(config.output, report=False, title=f"{base.output.title}: {name}"),
    )
    if run != mode:
        _require_counterpart(config)
    return Cell(name, mode, None if mode == "none" else epsilon, seed, dict(settings), config, 0.0, config.data)


def _with_noise(cell: Cell) -> Cell:
    if cell.mode == "none":
        return replace(cell, config=without_privacy(cell.config))
    config = with_noise(cell.config)
    claimed = config.privacy.noise_multiplier or 0.0
    return replace(cell, config=pooled(config) if cell.mode == "pooled" else config, claimed=claimed)


def _settings_words(settings: Mapping[str, str]) -> list[str]:
    """Returns what of a folder's name says the settings: readable, and never the same for two."""
    if not settings:
        return []
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    words = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items())
    return [re.sub(r"[^A-Za-z0-9._-]+", "", words)[:80], digest]


def _own_seed(base: Config, name: str) -> int:
    """Returns a seed for one cell's noise: of two cells with one seed, the difference would show what noise hides."""
    digest = hashlib.sha256(repr((base.privacy.fixed_seed, "sweep", name)).encode()).digest()
    return int.from_bytes(digest[:8], "little") % 2**63


def realised_noise(config: Config) -> float:
    """Returns the noise multiplier that a full cohort's sum has: shares are sized for the fewest that can be left."""
    cohort = config.round.partners_per_round or config.data.partners
    return (config.privacy.noise_multiplier or 0.0) * math.sqrt(cohort / noise_shares(config))


def pooled(config: Config) -> Config:
    """Returns the centralised counterpart of a distributed run: one data holder with the users of all partners.

    Its one partner takes a plain gradient step of length 1, so that what reaches the server's optimiser is the noised
    mean gradient, as in a distributed run.

    Raises:
        ConfigError: where a run has no centralised counterpart.
    """
    _require_counterpart(config)
    noise = None if config.privacy.noise_multiplier is None else realised_noise(config)
    bare = replace(config.privacy, mode="local", epsilon_partner=None, epsilon_broken=None)
    return replace(
        config,
        data=replace(config.data, partners=1),
        round=replace(
            config.round,
            partners_per_round=0,
            local_steps=1,
            client_optimiser="sgd",
            learning_rate=1.0,
            weight_decay=0.0,
        ),
        privacy=replace(bare, noise_multiplier=noise),
        evaluation=EvaluationConfig(),  # of one holder there is no sum
        aggregation=replace(config.aggregation, method="plain", min_partners=1, colluders=0, weights="equal"),
    )


def without_privacy(config: Config) -> Config:
    """Returns the centralised counterpart of a distributed run, without noise and clip."""
    private = pooled(config)
    return replace(private, privacy=replace(private.privacy, mode="none", noise_multiplier=None))


def _require_counterpart(config: Config) -> None:
    if config.round.partners_per_round not in (0, config.data.partners):
        raise ConfigError(
            f"round.partners_per_round = {config.round.partners_per_round}: with a part of the partners a round there"
            " is no centralised run with the same sampling; set it to 0, or leave out the modes pooled and none"
        )
    if config.simulation.faulty:
        raise ConfigError(
            "simulation.dropout_rate or simulation.attackers: a centralised run has no partners that fail; set both to"
            " 0, or leave out the modes pooled and none"
        )
