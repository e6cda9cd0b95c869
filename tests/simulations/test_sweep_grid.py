"""The grid of a sweep: which cells it has, what each runs, and what is refused before anything runs."""

import math
from pathlib import Path
from typing import Any

import pytest
from sweeps import write_toml

from common.config import Config, load_config
from common.errors import ConfigError, UsageError
from common.noise_shares import noise_shares
from common.privacy.accounting import composed_epsilon
from simulations.sweep_grid import MODES, Cell, make_cells, make_grid, realised_noise


@pytest.fixture
def toml(tmp_path: Path, tiny_encoder: Path) -> Path:
    return write_toml(tmp_path, tiny_encoder)


def cells(toml: Path, *, modes: Any = MODES, epsilons: Any = (1.0, 8.0), seeds: int = 2, **words: Any) -> list[Cell]:
    overrides = words.get("overrides", [])
    grid = make_grid(toml, overrides, modes, epsilons, seeds, words.get("vary", []), words.get("settings", []))
    return make_cells(grid, load_config(toml, overrides))


def test_every_mode_epsilon_and_seed_is_a_cell_and_without_noise_one_per_seed(toml: Path) -> None:
    found = cells(toml)
    assert len(found) == 2 * (3 * 2 + 1)
    assert len({cell.name for cell in found}) == len(found)
    assert [cell.seed for cell in found] == [1] * 7 + [2] * 7
    assert [(cell.mode, cell.epsilon) for cell in found[:7]] == [
        *(("local", 1.0), ("distributed", 1.0), ("pooled", 1.0), ("none", None)),
        *(("local", 8.0), ("distributed", 8.0), ("pooled", 8.0)),
    ]


def test_noise_is_calibrated_to_the_epsilon_of_the_cell(toml: Path) -> None:
    for cell in cells(toml, modes=("local", "distributed")):
        spent = composed_epsilon(((0.5, cell.config.privacy.noise_multiplier or 0.0, 2),), 1e-4)
        assert cell.epsilon is not None
        assert 0.98 * cell.epsilon < spent <= cell.epsilon
        assert cell.config.privacy.epsilon == cell.epsilon
        assert cell.config.privacy.mode == cell.mode


def test_a_pooled_cell_is_one_holder_at_the_terms_and_the_realised_noise_of_the_distributed_one(toml: Path) -> None:
    """Four partners, one colluder: no sum over fewer than three, so two honest parts; with all four sqrt(4 / 2)."""
    by_name = {cell.name: cell for cell in cells(toml)}
    shared, pooled = by_name["distributed-epsilon-1-seed-2"], by_name["pooled-epsilon-1-seed-2"]
    assert noise_shares(shared.config) == 2
    noise = shared.config.privacy.noise_multiplier
    assert noise is not None
    assert pooled.config.privacy.noise_multiplier == pytest.approx(noise * math.sqrt(2), rel=1e-12)
    assert pooled.claimed == shared.claimed == noise
    assert pooled.config.privacy.mode == "local"
    assert pooled.config.data.partners == 1
    assert pooled.data == shared.data == shared.config.data
    for table, keys in (
        ("privacy", ("sampling_rate", "clip", "delta", "max_impressions_per_user")),
        ("round", ("num_rounds", "local_steps", "seed")),
    ):
        for key in keys:
            assert getattr(getattr(pooled.config, table), key) == getattr(getattr(shared.config, table), key), key
    assert pooled.config.server == shared.config.server
    assert pooled.config.model == shared.config.model
    assert (pooled.config.round.client_optimiser, pooled.config.round.learning_rate) == ("sgd", 1.0)


def test_what_is_set_for_distributed_cells_holds_for_their_counterparts(toml: Path) -> None:
    settings = ["distributed:round.num_rounds=5", "local:round.local_steps=3", "none:server.learning_rate=0.5"]
    found = {cell.mode: cell.config for cell in cells(toml, epsilons=(1.0,), settings=settings)}
    rounds = {mode: config.round.num_rounds for mode, config in found.items()}
    assert rounds == {"local": 2, "distributed": 5, "pooled": 5, "none": 5}
    assert found["local"].round.local_steps == 3
    assert found["none"].server.learning_rate == 0.5
    assert found["pooled"].server.learning_rate == found["distributed"].server.learning_rate == 0.05
    assert found["none"].privacy.mode == "none"


def test_seeds_move_weights_and_noise_and_no_two_cells_share_noise(toml: Path) -> None:
    found = cells(toml)
    assert {cell.config.round.seed for cell in found} == {1, 2}
    assert len({cell.config.privacy.fixed_seed for cell in found}) == len(found)
    again = [cell.config.privacy.fixed_seed for cell in cells(toml)]
    assert again == [cell.config.privacy.fixed_seed for cell in found]


def test_without_a_fixed_seed_every_cell_draws_fresh_noise(tmp_path: Path, tiny_encoder: Path) -> None:
    privacy = {"delta": 1e-4, "sampling_rate": 0.5}
    path = write_toml(tmp_path, tiny_encoder)
    text = path.read_text(encoding="utf-8").replace("fixed_seed = 7\n", "")
    assert str(privacy["delta"]) in text
    path.write_text(text, encoding="utf-8")
    assert {cell.config.privacy.fixed_seed for cell in cells(path)} == {None}


def test_further_keys_make_the_grid_again_at_each_of_their_values(toml: Path) -> None:
    vary = ["server.optimiser=fedadam,fedavgm", "privacy.clip=0.1, 1.0"]
    found = cells(toml, modes=("distributed",), epsilons=(1.0,), vary=vary)
    assert len(found) == 2 * 2 * 2
    assert len({cell.name for cell in found}) == 8
    assert {(cell.config.server.optimiser, cell.config.privacy.clip) for cell in found} == {
        ("fedadam", 0.1), ("fedadam", 1.0), ("fedavgm", 0.1), ("fedavgm", 1.0)
    }  # fmt: skip
    assert all(str(cell.config.privacy.clip) == cell.settings["privacy.clip"] for cell in found)


def test_the_mark_of_a_cell_is_that_of_its_configuration(toml: Path) -> None:
    first, second = cells(toml)[0], cells(toml, settings=["local:round.local_steps=2"])[0]
    assert first.mark == cells(toml)[0].mark
    assert first.name == second.name
    assert first.mark != second.mark


def test_an_evaluation_a_round_and_a_report_a_cell_are_not_made(toml: Path) -> None:
    config = cells(toml)[0].config
    assert config.server.evaluate_every == config.round.num_rounds
    assert config.server.floors == ()
    assert config.output.report is False


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"modes": ("pooled", "central")}, "--modes central: of local, distributed, pooled, none"),
        ({"seeds": 1}, "--seeds 1: at least 2"),
        ({"epsilons": (-1.0,)}, "--epsilon -1: over 0"),
        ({"epsilons": (math.nan,)}, "--epsilon nan: over 0"),
        ({"epsilons": (math.inf,)}, "--epsilon inf: over 0"),
        ({"epsilons": (1000.0,)}, "privacy.epsilon = 1000.0: input should be less than 1000"),
        ({"vary": ["clip=1,2"]}, "--vary clip=1,2: expected table.key=VALUE,VALUE"),
        ({"vary": ["privacy.clip="]}, "expected table.key=VALUE,VALUE"),
        ({"vary": ["privacy.clip=1.0,1.0"]}, "comes twice"),
        ({"vary": ["privacy.clip=1.0", "privacy.clip=2.0"]}, "comes twice"),
        ({"vary": ["privacy.epsilon=1.0,2.0"]}, "privacy.epsilon is the sweep's own; say it with --epsilon"),
        ({"vary": ["round.seed=1,2"]}, "say it with --seeds"),
        ({"vary": ["privacy.clip=one,two"]}, "local cells: privacy.clip = "),
        ({"vary": ["privacy.clop=1.0,2.0"]}, "did you mean privacy.clip"),
        ({"settings": ["round.local_steps=1"]}, "expected MODE:table.key=value"),
        ({"settings": ["pooled:privacy.clip=1.0"]}, "pooled cells take over what distributed ones have"),
        ({"settings": ["local:privacy.mode=none"]}, "say it with --modes"),
        ({"seeds": 200}, "1400 cells: at most 1000"),
        ({"overrides": ["privacy.noise_multiplier=1.0"]}, "leave it out"),
        ({"overrides": ["round.local_steps=2"]}, "distributed cells: round.local_steps = 2: must be 1"),
        ({"overrides": ["aggregation.method=plain"]}, 'distributed cells: privacy.mode = "distributed": needs'),
        ({"overrides": ["round.partners_per_round=3"]}, "pooled cells: round.partners_per_round = 3: with a part"),
        ({"overrides": ["simulation.dropout_rate=0.1"]}, "none cells: simulation.dropout_rate"),
    ],
)
def test_what_is_refused_says_why(toml: Path, words: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, ConfigError)) as raised:
        cells(toml, **words)
    assert says in str(raised.value)


def test_a_contradiction_is_mended_in_one_mode_alone(toml: Path) -> None:
    overrides, settings = ["round.local_steps=4"], ["distributed:round.local_steps=1"]
    found = {cell.mode: cell.config.round.local_steps for cell in cells(toml, overrides=overrides, settings=settings)}
    assert found == {"local": 4, "distributed": 1, "pooled": 1, "none": 1}


def test_realised_noise_of_a_cohort_counts_those_who_take_part(toml: Path) -> None:
    """Of six partners three a round, without colluders: all three must answer, so their three parts are the claim."""
    config: Config = load_config(
        toml,
        [
            *('privacy.mode="distributed"', "data.partners=6", "round.partners_per_round=3"),
            *("aggregation.colluders=0", "privacy.noise_multiplier=2.0"),
        ],
    )
    assert noise_shares(config) == 3
    assert realised_noise(config) == 2.0
